//! Where the server programs are, and of which version.

use super::{PgCause, files};
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
    /// The programs in this directory; or, of the usual places, those of the version of a database that there is
    /// already, and the newest where there are none.
    pub fn find(wanted: Option<&Path>, database: Option<u32>) -> Result<Binaries, PgCause> {
        let candidates = match wanted {
            Some(directory) => vec![directory.to_owned()],
            None => usual_places(),
        };
        let mut found = Vec::new();
        for directory in &candidates {
            let Some(major) = version(&directory.join("postgres"))? else {
                continue;
            };
            if major >= OLDEST {
                found.push(Binaries { directory: directory.clone(), major });
            }
        }
        best(found, database).ok_or_else(|| PgCause::MissingBinaries {
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

/// The first of those for this version, or else the first of the newest.
fn best(found: Vec<Binaries>, database: Option<u32>) -> Option<Binaries> {
    found.into_iter().rev().max_by_key(|one| (Some(one.major) == database, one.major))
}

/// The directory and the major version of the server programs: those in `wanted`, or the newest of the
/// usual places.
///
/// # Errors
/// When there are none of version 13 or later.
pub fn programs(wanted: Option<&Path>) -> Result<(PathBuf, u32), PgCause> {
    Binaries::find(wanted, None).map(|found| (found.directory, found.major))
}

/// The same, but of the usual places those for the database that lies in `data`, if there is one.
///
/// # Errors
/// Also when the version of the database cannot be read.
pub fn programs_for(wanted: Option<&Path>, data: &Path) -> Result<(PathBuf, u32), PgCause> {
    let found = Binaries::find(wanted, database_version(data)?)?;
    Ok((found.directory, found.major))
}

/// The major version of the database in this directory, if there is one, and it says so.
pub(super) fn database_version(data: &Path) -> Result<Option<u32>, PgCause> {
    let version = files::read(&data.join("PG_VERSION"))?;
    Ok(version.and_then(|version| version.trim().parse().ok()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_the_database_comes_before_the_newest() {
        let found = || {
            let of = |(place, major): (&str, u32)| Binaries { directory: place.into(), major };
            [("a", 15), ("b", 17), ("c", 15), ("d", 17)].map(of).to_vec()
        };
        let chosen = |database| best(found(), database).map(|best| best.directory);
        assert_eq!(chosen(None), Some("b".into()));
        assert_eq!(chosen(Some(15)), Some("a".into()));
        assert_eq!(chosen(Some(16)), Some("b".into()), "none of them can run it");
        assert!(best(Vec::new(), Some(15)).is_none());
    }
}
