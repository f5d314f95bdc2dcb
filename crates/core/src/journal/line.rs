//! One line: its format, and what is said in it.

use super::FORMAT;
use crate::driver::ProcessIdentity;
use crate::id::OpId;
use sandbox_protocol::{escape_bytes, unescape_bytes};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The most bytes of a line, its line feed included: so much is written at once.
pub const MAX_LINE: usize = 4096;

/// What is named: by a key (`undo`, `refs/heads/main`), as text.
pub type Ids = BTreeMap<String, String>;

/// Writes a path as text that [`path_of`] reads back, whatever bytes it has.
pub fn path_id(path: &Path) -> String {
    escape_bytes(path.as_os_str().as_bytes())
}

/// Reads what [`path_id`] wrote.
pub fn path_of(text: &str) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(&unescape_bytes(text)))
}

/// What an operation is for. Those that only make something new (`spawn`) have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "each is its word")]
pub enum Verb {
    Import,
    Merge,
    Pick,
    Apply,
    Branch,
    Drop,
    Empty,
    Gc,
    Fold,
    Checkpoint,
    Restore,
    Rescue,
    Undo,
    /// Of a newer program.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Import => "import",
            Self::Merge => "merge",
            Self::Pick => "pick",
            Self::Apply => "apply",
            Self::Branch => "branch",
            Self::Drop => "drop",
            Self::Empty => "trash empty",
            Self::Gc => "gc",
            Self::Fold => "fold",
            Self::Checkpoint => "checkpoint",
            Self::Restore => "restore",
            Self::Rescue => "rescue",
            Self::Undo => "undo",
            Self::Unknown => "operation",
        })
    }
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// By itself, all of it done.
    Done,
    /// By itself, everything as it was before.
    Failed,
    /// It was cut, and a later command did the rest.
    Finished,
    /// It was cut, and a later command took back what was done.
    TakenBack,
    /// It was cut, and what it had changed was changed again since: left as it is.
    Left,
    /// Of a newer program.
    #[serde(other)]
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Line {
    pub v: u32,
    pub op: OpId,
    /// Unix seconds; for people only.
    pub at: u64,
    #[serde(flatten)]
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "kebab-case")]
pub(super) enum What {
    Start {
        verb: Verb,
        by: ProcessIdentity,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        of: Vec<String>,
    },
    Begin {
        step: String,
        #[serde(default, skip_serializing_if = "Ids::is_empty")]
        ids: Ids,
    },
    Done {
        step: String,
    },
    End {
        how: End,
    },
    #[serde(other)]
    Other,
}

impl Line {
    pub fn new(op: &OpId, what: What) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self { v: FORMAT, op: op.clone(), at: now.unwrap_or_default().as_secs(), what }
    }

    /// With its line feed; `None` when it is longer than [`MAX_LINE`].
    pub fn bytes(&self) -> Option<Vec<u8>> {
        let mut bytes = serde_json::to_vec(self).expect("lines have string keys only");
        bytes.push(b'\n');
        (bytes.len() <= MAX_LINE).then_some(bytes)
    }
}
