//! Which OpenZFS this is: what its commands say of themselves, asked once.

use crate::exec::{Exec, ExecCause};
use crate::storage::StorageCause;
use cluster::Millis;
use std::collections::BTreeSet;

/// How long any command may take that sends no data. Destroying much takes long; a pool that does not
/// answer at all is told after this.
pub(super) const LIMIT: Millis = Millis(300_000);

/// What this version can do beyond what all share.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Dialect {
    /// What a stream may hold, by flags of `zfs send`: large blocks, compressed ones, embedded data.
    pub features: BTreeSet<String>,
    /// `send -nvP` tells the size beforehand.
    pub estimate: bool,
    /// `receive -s` and `send -t`.
    pub resume: bool,
    /// `bookmark`.
    pub bookmarks: bool,
    /// `holds -H` lists who holds a snapshot.
    pub holds: bool,
}

/// The flag of `zfs send` and the name of the feature that it stands for.
pub(super) const FEATURES: [(char, &str); 3] =
    [('L', "large_blocks"), ('c', "compressed"), ('e', "embedded_data")];

impl Dialect {
    /// Asks the commands how they are used.
    pub async fn probe(zfs: &Exec) -> Result<Dialect, StorageCause> {
        let send = usage(zfs, "send").await?;
        let receive = usage(zfs, "receive").await?;
        let flags = flags(&send, "send");
        let features = FEATURES.iter().filter(|(flag, _)| flags.contains(flag));
        Ok(Dialect {
            features: features.map(|(_, name)| (*name).to_owned()).collect(),
            estimate: "nvP".chars().all(|flag| flags.contains(&flag)),
            resume: send.contains("-t <") && self::flags(&receive, "receive").contains(&'s'),
            bookmarks: usage(zfs, "bookmark").await?.contains("bookmark <"),
            holds: self::flags(&usage(zfs, "holds").await?, "holds").contains(&'H'),
        })
    }
}

/// What `zfs COMMAND` without arguments says, which is an error and its usage.
async fn usage(zfs: &Exec, command: &str) -> Result<String, StorageCause> {
    match zfs.clone().arg(command).limit(LIMIT).run().await {
        Ok(output) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Err(error) => match error.cause {
            ExecCause::Failed { output, .. } => Ok(output),
            _ => Err(error.into()),
        },
    }
}

/// The letters in the first brackets of the lines `COMMAND [-abc] …`.
fn flags(usage: &str, command: &str) -> BTreeSet<char> {
    usage
        .lines()
        .filter_map(|line| {
            // Some versions write `receive|recv [-…`.
            let (name, rest) = line.trim_start().split_once(' ')?;
            name.split('|').any(|name| name == command).then_some(rest)?.strip_prefix("[-")
        })
        .filter_map(|rest| rest.split_once(']'))
        .flat_map(|(flags, _)| flags.chars())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read_from_the_usage() {
        let old = "missing snapshot argument\nusage:\n\tsend [-RDp] [-[iI] snapshot] <snapshot>\n";
        assert_eq!(flags(old, "send"), "RDp".chars().collect());
        assert!(flags("\treceive|recv [-vnsFu] <filesystem>", "receive").contains(&'s'));
        let new = "usage:\n\tsend [-DLPbcehnpsvw] [-[i|I] snapshot] <snapshot>\n\
                   \tsend [-DnvPLecw] [-i snapshot|bookmark] <filesystem|volume|snapshot>\n\
                   \tsend [-nvPe] -t <receive_resume_token>\n";
        let found = flags(new, "send");
        assert!("LcenvP".chars().all(|flag| found.contains(&flag)), "{found:?}");
        assert!(flags("internal error: pyzfs.py not found", "holds").is_empty());
    }
}
