//! What a dataset holds, by its files.

use super::{
    Inner, PgCause,
    files::{self, Marker, Served},
};
use cluster::PgConfig;
use std::{fs, sync::PoisonError};

/// What kind of database a dataset holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Database {
    /// None at all.
    None,
    /// Created here, never served.
    Prepared,
    /// One that may hold somebody's data.
    Established,
}

/// What a dataset holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its database.
    pub database: Database,
    /// Whether its server runs.
    pub running: bool,
    /// What the running server was last brought to; `None` when that is not known for certain.
    pub applied: Option<PgConfig>,
}

impl Inner {
    pub fn look(&self) -> Result<Found, PgCause> {
        let server = self.find()?;
        let record = match &server {
            Some(server) => self.record_of(server)?,
            None => None,
        };
        *self.names.lock().unwrap_or_else(PoisonError::into_inner) =
            record.as_ref().map(|record| record.names.clone());
        Ok(Found {
            database: self.database()?,
            running: server.is_some(),
            applied: record.and_then(|record| record.config),
        })
    }

    pub fn database(&self) -> Result<Database, PgCause> {
        let entries = match fs::read_dir(&self.data) {
            Ok(mut entries) => entries.next().is_some(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
            Err(error) => return Err(PgCause::file(&self.data)(error)),
        };
        if !entries {
            return Ok(Database::None);
        }
        let path = self.settings.dataset.join(files::MARKER);
        let marker: Option<Marker> = files::read_json(&path)?;
        let prepared = match marker {
            Some(marker) if marker.database == Served::Prepared => {
                files::system_identifier(&self.data)? == marker.system_identifier
            }
            _ => false,
        };
        Ok(if prepared { Database::Prepared } else { Database::Established })
    }
}
