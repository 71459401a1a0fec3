//! A new database, and the roles of every one.

mod roles;

use super::{
    Inner, PgCause,
    files::{self, MARKER, Marker, Served},
};
use cluster::Millis;
use std::{fs, io, path::Path};

/// How long one of the programs may take. They write some 40 MB.
const LIMIT: Millis = Millis(300_000);
/// The settings that primary and standby agree on by the WAL.
const REPLICATED: [&str; 5] = [
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];
/// The start of the name of a database that is not complete.
const UNFINISHED: &str = "data.new-";

impl Inner {
    /// Makes an empty database with its roles. It is not there at all before it is complete.
    pub async fn create(&self) -> Result<(), PgCause> {
        let user = self.user.as_ref();
        self.refuse_to_overwrite()?;
        self.remove_unfinished()?;
        files::give(&self.settings.dataset, user).map_err(PgCause::file(&self.settings.dataset))?;
        let name = format!("{UNFINISHED}{}", uuid::Uuid::new_v4());
        let directory = self.settings.dataset.join(name);
        files::directory(&directory, 0o700, user)?;
        self.bin
            .exec("initdb", user)
            .arg("--pgdata")
            .arg(&directory)
            .args(["--data-checksums", "--encoding=UTF8", "--auth=scram-sha-256"])
            .args(["--auth-local=peer", "--no-sync"])
            // Order by bytes: it is the same with every C library that a peer may have.
            .args(["--locale=C.UTF-8", "--lc-collate=C", "--lc-messages=C"])
            .arg(format!("--username={}", self.settings.superuser))
            .limit(LIMIT)
            .run()
            .await?;
        self.make_roles(&directory).await?;
        self.bin
            .exec("initdb", user)
            .arg("--sync-only")
            .arg("--pgdata")
            .arg(&directory)
            .limit(LIMIT)
            .run()
            .await?;
        let marker = Marker {
            database: Served::Prepared,
            system_identifier: files::system_identifier(&directory)?,
        };
        files::write_json(&self.settings.dataset.join(MARKER), &marker, user)?;
        fs::rename(&directory, &self.data)
            .and_then(|()| files::sync_parent(&self.data))
            .map_err(PgCause::file(&self.data))
    }

    fn refuse_to_overwrite(&self) -> Result<(), PgCause> {
        // An empty directory is no database; removing it fails if it is not empty.
        match fs::remove_dir(&self.data) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error)
                if error.kind() == io::ErrorKind::DirectoryNotEmpty
                    || error.kind() == io::ErrorKind::NotADirectory =>
            {
                Err(PgCause::InTheWay { path: self.data.clone() })
            }
            Err(error) => Err(PgCause::file(&self.data)(error)),
        }
    }

    /// Removes what an interrupted creation left.
    fn remove_unfinished(&self) -> Result<(), PgCause> {
        let dataset = &self.settings.dataset;
        for entry in fs::read_dir(dataset).map_err(PgCause::file(dataset))? {
            let path = entry.map_err(PgCause::file(dataset))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(UNFINISHED) {
                fs::remove_dir_all(&path).map_err(PgCause::file(&path))?;
            }
        }
        Ok(())
    }

    /// What of the settings a standby may not have lower than its primary had. The database says from
    /// its beginning what it will be served with: a standby that recovers from before the first start
    /// would find those of `initdb`, and refuse to start where ours are lower.
    fn replicated_settings(&self) -> Vec<String> {
        let settings = &self.settings.user_settings;
        let given = REPLICATED.iter().filter_map(|name| Some((name, settings.get(*name)?)));
        given.flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]).collect()
    }

    /// Makes the roles in a server without a socket: passwords stand on no command line and no
    /// connection is possible.
    async fn make_roles(&self, directory: &Path) -> Result<(), PgCause> {
        let mut statements = self.replication_role() + "\n";
        if let Some(password) = &self.settings.superuser_password {
            statements += &roles::password_statement(&self.settings.superuser, password);
            statements += "\n";
        }
        self.bin
            .exec("postgres", self.user.as_ref())
            .args(["--single", "-c", "exit_on_error=on"])
            .args(["-c", "password_encryption=scram-sha-256"])
            .args(["-c", "log_statement=none", "-c", "log_min_error_statement=panic"])
            .args(self.replicated_settings())
            .arg("-D")
            .arg(directory)
            .arg("postgres")
            .stdin(statements)
            .limit(LIMIT)
            .run()
            .await?;
        Ok(())
    }
}
