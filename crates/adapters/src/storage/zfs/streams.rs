//! `zfs send` and `zfs receive`.

use super::{POLL, PROPERTIES, Zfs, dialect::FEATURES, missing, run, zfs};
use crate::{
    exec::ExecCause,
    storage::{
        DatasetName, Guid, ReceiveStream, ResumeToken, SendFrom, SendStream, Snapshot,
        SnapshotName, Snapshots, StorageCause, Unfinished, snapshots::broken,
    },
};
use std::{collections::BTreeSet, time::Duration};
use tokio::{
    io::AsyncWriteExt,
    time::{sleep, timeout},
};

/// How long the remains of a killed receive may take to go.
const GONE_LIMIT: Duration = Duration::from_secs(10);
/// What says in ZFS's answers that a stream can go on.
const TOKEN: &str = "receive_resume_token";

impl Zfs {
    pub(super) async fn start_sending(
        &self,
        dataset: &DatasetName,
        name: &SnapshotName,
        from: &SendFrom,
        accepted: &BTreeSet<String>,
    ) -> Result<SendStream, StorageCause> {
        let snapshot = self.one(dataset, name).await?;
        let mut args: Vec<String> = FEATURES
            .iter()
            .filter(|(_, name)| accepted.contains(*name) && self.dialect.features.contains(*name))
            .map(|(flag, _)| format!("-{flag}"))
            .collect();
        match from {
            SendFrom::Nothing => {}
            SendFrom::Snapshot(base) => {
                self.one(dataset, base).await?;
                args.extend(["-i".to_owned(), self.of(dataset, base)]);
            }
            SendFrom::Bookmark(base) => {
                let known = self.bookmarks(dataset).await?;
                let bookmark = format!("{}#{base}", self.full(dataset));
                if !known.iter().any(|mark| mark.name == *base) {
                    return Err(StorageCause::NoSnapshot(bookmark));
                }
                args.extend(["-i".to_owned(), bookmark]);
            }
        }
        args.push(self.of(dataset, name));
        let estimate = match (self.dialect.estimate, from) {
            (true, _) => self.estimate(&args).await?,
            (false, SendFrom::Nothing) => snapshot.size.map(|size| size.referenced),
            (false, _) => None,
        };
        let reader = zfs().arg("send").args(&args).reader()?;
        Ok(SendStream { reader, estimate })
    }

    pub(super) async fn start_sending_rest(
        &self,
        token: &ResumeToken,
    ) -> Result<SendStream, StorageCause> {
        if !self.dialect.resume {
            return Err(StorageCause::Unsupported {
                backend: "zfs",
                what: "resume a stream: this version of ZFS is too old".to_owned(),
            });
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        let text = token.as_str();
        if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) || !text.chars().all(plain) {
            return Err(StorageCause::Answer {
                command: format!("the receiver's {TOKEN}"),
                answer: text.to_owned(),
            });
        }
        let args = ["-t".to_owned(), text.to_owned()];
        let estimate = self.estimate(&args).await?;
        let reader = zfs().arg("send").args(args).reader()?;
        Ok(SendStream { reader, estimate })
    }

    /// How long the stream will be, in bytes.
    async fn estimate(&self, args: &[String]) -> Result<Option<u64>, StorageCause> {
        if !self.dialect.estimate {
            return Ok(None);
        }
        let output = run(zfs().args(["send", "-nvP"]).args(args)).await?;
        let size = output.lines().find_map(|line| line.strip_prefix("size"));
        Ok(size.and_then(|size| size.trim().parse().ok()))
    }

    pub(super) async fn start_receiving(
        &self,
        into: &DatasetName,
    ) -> Result<ReceiveStream, StorageCause> {
        match self.refuse_mounted(into).await {
            Ok(()) | Err(StorageCause::NoDataset(_)) => {}
            Err(error) => return Err(error),
        }
        let mut command = zfs().args(["receive", "-u"]);
        if self.dialect.resume {
            command = command.arg("-s");
        }
        let writer = command.arg(self.full(into)).writer()?;
        Ok(ReceiveStream { writer, into: into.clone(), arriving: None })
    }

    pub(super) async fn finish_receiving(
        &self,
        mut stream: ReceiveStream,
    ) -> Result<Snapshot, StorageCause> {
        let full = self.full(&stream.into);
        if let Err(error) = stream.writer.shutdown().await {
            let cause = broken(error);
            return Err(match cause {
                StorageCause::Command(error) if error.says("has been modified") => {
                    self.refused_as_modified(&stream.into).await?
                }
                StorageCause::Command(error)
                    if error.says("does not\nmatch incremental source") =>
                {
                    StorageCause::WrongBase { dataset: full }
                }
                StorageCause::Command(error) if error.says("must specify -F to overwrite") => {
                    StorageCause::Exists(full)
                }
                // The end of the stream is one of its records: ZFS knows whether it has seen it.
                StorageCause::Command(error)
                    if error.says("incomplete stream") || error.says("invalid backup stream") =>
                {
                    StorageCause::Truncated
                }
                other => other,
            });
        }
        for property in PROPERTIES.iter().chain(&["mountpoint=none"]) {
            run(zfs().arg("set").arg(property).arg(&full)).await?;
        }
        let newest = self.list(&stream.into).await?.pop();
        newest.ok_or(StorageCause::NoSnapshot(full))
    }

    /// Why ZFS took a dataset for modified. Versions that resume say so of a difference from an older
    /// snapshot than the newest, too: then nothing was written since. All of them have the property that
    /// tells.
    async fn refused_as_modified(&self, into: &DatasetName) -> Result<StorageCause, StorageCause> {
        let dataset = self.full(into);
        if self.dialect.resume && self.value(&dataset, "written").await? == "0" {
            return Ok(StorageCause::WrongBase { dataset });
        }
        let newest = self.list(into).await?.pop();
        let snapshot = newest.map(|one| one.name.to_string()).unwrap_or_default();
        Ok(StorageCause::Modified { dataset, snapshot })
    }

    pub(super) async fn find_unfinished(
        &self,
        into: &DatasetName,
    ) -> Result<Option<Unfinished>, StorageCause> {
        let Some(token) = self.token(into).await? else {
            return Ok(None);
        };
        // It tells what it holds, and then that this host has no such snapshot to send, which is so.
        let asked = zfs().args(["send", "-nvt", token.as_str()]);
        let text = match run(asked).await {
            Ok(text) => text,
            Err(StorageCause::Command(error)) => match error.cause {
                ExecCause::Failed { output, .. } => output,
                _ => return Err(error.into()),
            },
            Err(error) => return Err(error),
        };
        match to_guid(&text) {
            Some(to) => Ok(Some(Unfinished { token, to })),
            None => Err(StorageCause::Answer { command: "zfs send -nvt".to_owned(), answer: text }),
        }
    }

    async fn token(&self, into: &DatasetName) -> Result<Option<ResumeToken>, StorageCause> {
        if !self.dialect.resume {
            return Ok(None);
        }
        let full = self.full(into);
        let value = match self.value(&full, TOKEN).await.map_err(|cause| match cause {
            StorageCause::Command(_) => missing(&full)(cause),
            other => other,
        }) {
            Ok(value) => value,
            Err(StorageCause::NoDataset(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok((!["", "-"].contains(&value.as_str())).then(|| ResumeToken::new(value)))
    }

    pub(super) async fn abandon_receiving(&self, into: &DatasetName) -> Result<(), StorageCause> {
        if self.token(into).await?.is_some() {
            return run(zfs().args(["receive", "-A"]).arg(self.full(into))).await.map(drop);
        }
        // Otherwise ZFS itself leaves nothing of what broke off. But the daemon of `zfs-fuse` reads on
        // when its command was killed, until it finds the end of the input; only then it is gone.
        let gone = async {
            while self.is_arriving(into).await? {
                sleep(POLL).await;
            }
            Ok(())
        };
        // What is there for longer was not left by a receive: it is not ours to remove.
        timeout(GONE_LIMIT, gone).await.unwrap_or(Ok(()))
    }

    async fn is_arriving(&self, into: &DatasetName) -> Result<bool, StorageCause> {
        match self.list(into).await {
            Ok(snapshots) => Ok(snapshots.is_empty()),
            Err(StorageCause::NoDataset(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The GUID of the snapshot that a token is to bring: `toguid = 0x…`.
fn to_guid(text: &str) -> Option<Guid> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix("toguid = 0x"))?;
    let guid = u64::from_str_radix(line.trim(), 16).ok()?;
    Some(Guid::new(guid.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_tells_what_it_brings() {
        let text = "resume token contents:\nnvlist version: 0\n\tobject = 0x2\n\toffset = 0x0\n\
            \tbytes = 0x20a98\n\ttoguid = 0xc84dbca0ce1b6a29\n\ttoname = p/m/a@1\n\
            cannot resume send: 'p/m/a@1' used in the initial send no longer exists\n";
        assert_eq!(to_guid(text), Some(Guid::new(0xc84d_bca0_ce1b_6a29_u64.to_string())));
        assert_eq!(to_guid("cannot"), None);
    }
}
