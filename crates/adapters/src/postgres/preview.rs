//! The operator's settings, shown to the server program before any server is to run with them.

use super::{Inner, PgCause, files, guard, render};
use crate::exec::{ExecCause, ExecError};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// A directory that is gone when this is dropped.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "cannot be removed");
        }
    }
}

impl Inner {
    /// Has the server program read these settings, and nothing else.
    pub async fn preview(&self, settings: &BTreeMap<String, String>) -> Result<(), PgCause> {
        // Before the program sees them: they could make it read or write files.
        guard::check_names(settings)?;
        let user = self.user.as_ref();
        let path = std::env::temp_dir().join(format!("manatee-check-{}", uuid::Uuid::new_v4()));
        // Nobody can have made it before us, and the program reads its files as its own user.
        files::directory(&path, 0o700, user)?;
        let scratch = Scratch(path);
        let conf = scratch.0.join("postgresql.conf");
        files::write(&conf, &render::settings(settings), user)?;
        // Its absence would be remarked upon.
        files::write(&scratch.0.join("postgresql.auto.conf"), "", user)?;
        let read = self
            .bin
            .exec("postgres", user)
            .arg("-D")
            .arg(&scratch.0)
            .arg("-c")
            .arg(format!("config_file={}", conf.display()))
            // Printing a setting, it ends when it has read all of them: there is no database.
            .args(["-C", "max_connections"])
            .limit(self.settings.query_timeout)
            .run()
            .await;
        match read {
            Ok(_) => Ok(()),
            Err(ExecError { cause: ExecCause::Failed { output, .. }, .. }) => {
                Err(PgCause::Rejected(said(&output, &conf)))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// What the program said of the settings, without the time and the file, which tell nothing.
fn said(output: &str, conf: &Path) -> String {
    let file = format!(" in file \"{}\"", conf.display());
    let texts = output.lines().filter_map(|line| {
        ["LOG:  ", "DETAIL:  ", "HINT:  "].iter().find_map(|mark| line.split_once(mark))
    });
    let texts: Vec<&str> =
        texts.map(|(_, text)| text.split_once(&file).map_or(text, |(text, _line)| text)).collect();
    if texts.is_empty() { output.to_owned() } else { texts.join("; ") }
}
