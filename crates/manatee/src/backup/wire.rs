//! What both sides say to each other: JSON over HTTP, version 1.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /v1/snapshots` | an [`Offer`] |
//! | `POST /v1/snapshots` with a [`SnapshotRequest`] | 201, [`SnapshotInfo`] of a new one |
//! | `POST /v1/streams` with a [`StreamRequest`] | 201, [`StreamStarted`] |
//! | `GET /v1/streams` | a list of [`JobStatus`] |
//! | `GET /v1/streams/ID` | its [`JobStatus`] |
//! | `GET /v1/streams/ID/N` | segment N, counted from 0; `?zstd` for a compressed one |
//! | `DELETE /v1/streams/ID` | 204; the stream is ended |
//! | `POST /v1/rebuild` with a [`RebuildRequest`] | 202 and `null`; 409 with the reason why not |
//!
//! Whatever fails is answered with a status of 4xx or 5xx and `{"error": "…"}`.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The raw bytes of every segment but the last.
pub(crate) const SEGMENT: usize = 2 << 20;

/// The raw length of a segment, in bytes.
pub(super) const LENGTH: &str = "manatee-length";
/// XXH3 (64 bits) of a segment's raw bytes, in hexadecimal.
pub(super) const CHECKSUM: &str = "manatee-checksum";
/// On the last segment: XXH3 (128 bits) of the raw bytes of the whole stream, in hexadecimal.
pub(super) const WHOLE: &str = "manatee-whole-checksum";
/// How long the answer waited for the segment to be read, in milliseconds.
pub(super) const WAITED: &str = "manatee-waited";

/// A snapshot that can be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotInfo {
    /// Its name within the dataset.
    pub name: String,
    /// What it is known by on every machine that has it.
    pub guid: String,
    /// When it was made, where that is known.
    pub created: Option<jiff::Timestamp>,
    /// What it refers to, in bytes, where that is known.
    pub bytes: Option<u64>,
}

/// What can be had from a sender.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Offer {
    /// What its streams are: `zfs`, `btrfs`.
    pub format: String,
    /// What its streams may contain beyond what all versions of that format share.
    pub features: BTreeSet<String>,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<SnapshotInfo>,
    /// What is left of snapshots that are gone, oldest first: a difference can begin there.
    pub bookmarks: Vec<SnapshotInfo>,
}

/// What a new snapshot is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SnapshotRequest {
    /// A word that becomes part of its name.
    pub purpose: String,
}

/// What a stream is to bring. Snapshots are named by their GUIDs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "kind")]
pub enum Part {
    /// All of a snapshot.
    Full {
        /// The snapshot.
        to: String,
    },
    /// The difference to a snapshot that the receiver has.
    Difference {
        /// The one that the receiver has.
        from: String,
        /// The snapshot.
        to: String,
    },
    /// The rest of a stream that broke off.
    Rest {
        /// Where it broke off, as the receiver's file system tells it.
        token: String,
        /// The snapshot.
        to: String,
    },
}

impl Part {
    /// The GUID of the snapshot that the receiver has in the end.
    pub fn to(&self) -> &str {
        match self {
            Part::Full { to } | Part::Difference { to, .. } | Part::Rest { to, .. } => to,
        }
    }
}

/// What a receiver asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StreamRequest {
    /// Who asks, for the list of streams.
    pub receiver: String,
    /// What is wanted.
    pub part: Part,
    /// The features of streams that the receiver can take, as in [`Offer`].
    pub accepted: BTreeSet<String>,
    /// Bytes a second that it is not to exceed.
    pub rate: Option<u64>,
}

/// That the sitter is to rebuild its own database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RebuildRequest {
    /// Whether everything is to be copied.
    pub full: bool,
}

/// The stream that a receiver is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamStarted {
    /// What it is asked for by.
    pub id: uuid::Uuid,
    /// The snapshot that it brings.
    pub snapshot: SnapshotInfo,
    /// About how long it will be, in bytes, where that is known.
    pub estimate: Option<u64>,
}

/// How a stream is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum JobState {
    /// Segments are being asked for.
    Sending,
    /// The receiver has been given all of it.
    Done,
    /// It cannot go on.
    Failed {
        /// Why.
        error: String,
    },
}

/// A stream, as the sender sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobStatus {
    /// What it is asked for by.
    pub id: uuid::Uuid,
    /// Who receives it.
    pub receiver: String,
    /// The snapshot that it brings.
    pub snapshot: String,
    /// Which part of it.
    pub part: Part,
    /// How it is.
    #[serde(flatten)]
    pub state: JobState,
    /// Bytes that the receiver has been given.
    pub bytes_done: u64,
    /// About how many there will be.
    pub bytes_estimate: Option<u64>,
    /// Bytes a second since it began.
    pub rate: u64,
    /// Seconds that are left at this rate.
    pub remaining: Option<u64>,
}

/// What an answer of 4xx or 5xx holds.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Problem {
    /// What was wrong, and what to do.
    pub error: String,
}
