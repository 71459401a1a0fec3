//! What is set aside: when it may be, and what it is called: `REASON-TIME`.

use super::{DatasetName, StorageCause, error::at};
use crate::postgres::process;
use std::path::Path;

/// Reasons that would make it look like something else of ours.
const RESERVED: [&str; 2] = ["new", "incoming"];

/// What is set aside now, for this reason, is called by.
pub(super) fn suffix(reason: &str) -> Result<String, StorageCause> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let reserved = RESERVED.contains(&reason.split('-').next().unwrap_or(""));
    if reason.is_empty() || reserved || reason.len() > 60 || !reason.chars().all(plain) {
        return Err(StorageCause::BadReason(reason.to_owned()));
    }
    let time = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S.%6fZ");
    Ok(format!("{reason}-{time}"))
}

/// When it was set aside, as this suffix says; `None` for what we did not set aside.
pub(super) fn time_of(suffix: &str) -> Option<&str> {
    let (reason, time) = suffix.rsplit_once('-')?;
    let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    (shape == "00000000T000000.000000Z" && !RESERVED.contains(&reason)).then_some(time)
}

/// When the dataset of this name was set aside, if it is what was set aside of that one.
pub(super) fn of<'a>(dataset: &DatasetName, name: &'a DatasetName) -> Option<&'a str> {
    time_of(name.as_str().strip_prefix(dataset.as_str())?.strip_prefix('.')?)
}

/// Refuses to move a database that is not there, or that a server runs in: it would go on writing,
/// under the new name.
pub(super) fn at_rest(data: &Path) -> Result<(), StorageCause> {
    if !data.exists() {
        return Err(StorageCause::NoDatabase(data.to_owned()));
    }
    let running = process::of_server(data).map_err(at(data))?;
    match running.first() {
        Some(&pid) => Err(StorageCause::InUse { path: data.to_owned(), pid }),
        None => Ok(()),
    }
}

/// All but the newest `keep`, oldest first.
pub(super) fn beyond<T: Ord>(mut found: Vec<(String, T)>, keep: usize) -> Vec<T> {
    found.sort();
    found.truncate(found.len().saturating_sub(keep));
    found.into_iter().map(|(_, one)| one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_set_aside_is_known_as_such() {
        let time = "20260102T030405.123456Z";
        for (name, known) in [
            (format!("deposed-{time}"), true),
            (format!("a-b-{time}"), true),
            (format!("incoming-{time}"), false),
            ("incoming-0f0e".to_owned(), false),
            ("old".to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(time_of(&name), known.then_some(time), "{name}");
        }
        let made = suffix("deposed").expect("a reason");
        assert!(time_of(&made).is_some(), "{made}");
    }
}
