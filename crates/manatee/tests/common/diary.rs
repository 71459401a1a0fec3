//! What the sitters of a test said, for whoever has to find out why it failed.

use std::{fs, path::PathBuf};

/// How much of each log is told, in bytes.
const MOST: usize = 64 << 10;

/// Logs that are told when this is dropped: whoever runs tests shows what one told only if it failed.
pub struct Diary(Vec<PathBuf>);

impl Diary {
    pub fn of<'a>(peers: impl IntoIterator<Item = &'a manatee::shard::Peer>) -> Diary {
        Diary(peers.into_iter().map(manatee::shard::Peer::log_file).collect())
    }

    /// Nobody needs to know.
    pub fn forget(&mut self) {
        self.0.clear();
    }
}

impl Drop for Diary {
    fn drop(&mut self) {
        for path in &self.0 {
            let text = match fs::read(path) {
                Ok(bytes) => {
                    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(MOST)..]).into_owned()
                }
                Err(error) => error.to_string(),
            };
            println!("==> {} <==\n{text}", path.display());
        }
    }
}
