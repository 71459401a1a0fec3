//! Where the server programs are, and of which version.

use super::PgCause;
use crate::exec::{Exec, OsUser};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The oldest major version that works.
const OLDEST: u32 = 13;

/// The server programs of one version.
#[derive(Debug, Clone)]
pub(super) struct Binaries {
    directory: PathBuf,
    /// The major version.
    pub major: u32,
}

impl Binaries {
    /// The programs in this directory, or the newest of the usual places.
    pub fn find(wanted: Option<&Path>) -> Result<Binaries, PgCause> {
        let candidates = match wanted {
            Some(directory) => vec![directory.to_owned()],
            None => usual_places(),
        };
        let mut found: Option<Binaries> = None;
        for directory in &candidates {
            let Some(major) = version(&directory.join("postgres"))? else {
                continue;
            };
            if major >= OLDEST && found.as_ref().is_none_or(|best| major > best.major) {
                found = Some(Binaries { directory: directory.clone(), major });
            }
        }
        found.ok_or_else(|| PgCause::MissingBinaries {
            searched: match wanted {
                Some(directory) => directory.display().to_string(),
                None => "/usr/lib/postgresql/*/bin, /usr/pgsql-*/bin, PATH".to_owned(),
            },
        })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A program.
    pub fn path(&self, program: &str) -> PathBuf {
        self.directory.join(program)
    }

    /// A program, to be run as this user.
    pub fn exec(&self, program: &str, user: Option<&OsUser>) -> Exec {
        Exec::new(self.path(program)).as_user(user)
    }
}

/// The directory and the major version of the server programs: those in `wanted`, or the newest of the
/// usual places.
///
/// # Errors
/// When there are none of version 13 or later.
pub fn programs(wanted: Option<&Path>) -> Result<(PathBuf, u32), PgCause> {
    Binaries::find(wanted).map(|found| (found.directory, found.major))
}

fn usual_places() -> Vec<PathBuf> {
    let mut places = Vec::new();
    for (parent, prefix) in [("/usr/lib/postgresql", ""), ("/usr", "pgsql-")] {
        // A place that cannot be read has nothing for us.
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let version = name.to_string_lossy();
            if version
                .strip_prefix(prefix)
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
            {
                places.push(entry.path().join("bin"));
            }
        }
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    places.extend(std::env::split_paths(&path));
    places
}

/// The major version of this program; `None` when there is none.
fn version(program: &Path) -> Result<Option<u32>, PgCause> {
    if !program.is_file() {
        return Ok(None);
    }
    let output = Exec::new(program).arg("--version").run_briefly()?;
    let text = String::from_utf8_lossy(&output);
    // "postgres (PostgreSQL) 15.18 (Debian …)", "… 18beta1"
    let number = text.split_whitespace().nth(2).unwrap_or_default();
    let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().map(Some).map_err(|_| {
        PgCause::file(program)(io::Error::other(format!("no version in {:?}", text.trim_end())))
    })
}
