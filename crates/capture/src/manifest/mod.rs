//! The manifest: what a stack of layers holds, and which host entry each part of it came from.
//!
//! One lies beside each layer and describes the whole stack with that layer on top. All numbers are
//! little-endian.
//!
//! ```text
//! header   128 bytes   magic "gsmanif\n", version, counts, offsets, scan time, settings, file length
//! dirs      24 bytes each: first entry, number of entries, own entry, parent, flags
//! entries   80 bytes each: host stat, layer, stat of the copy, flags, name offset
//! names     NUL-terminated, so that they go to the kernel as they are
//! tables    devices (8 bytes each); layer ids (2 bytes length, text), lowermost first; how many directories
//!           and entries are in use (4 bytes each), and of each layer how many files and bytes (8 and 8)
//! end       magic again: a file that was cut short has none
//! ```
//!
//! After a small change only what differs is written (`delta`).
//!
//! The entries of one directory lie together, sorted by name; entry 0 and directory 0 are the top
//! directory. A scan reads only the records of the directory it is in, without building any path.
//! Nothing is verified but the frame: an index out of range reads as "nothing there", so that damage
//! shows as a difference from the host and never as a panic.

mod delta;
mod format;
mod held;
mod read;
mod spool;
mod write;

pub(crate) use delta::Edit;
pub(crate) use format::{DIR_GIT, DIR_UNREADABLE, Flags, Look, NONE};
pub(crate) use read::Raw;
pub use read::{CopyStat, Entry, Manifest, ManifestError, Walk};
pub(crate) use write::{Builder, Parts, Record};

/// Name of the manifest in a layer's directory.
pub const MANIFEST: &str = "manifest";
/// The extension of a manifest that was replaced.
pub(crate) const REPLACED: &str = "before";
/// Name of the tree in a layer's directory.
pub const TREE: &str = "tree";

/// Why an entry of the host tree is not in a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// It looks like a secret, and secrets are not carried.
    Secret,
    /// A FIFO, socket or device.
    Special,
    /// We may not read it.
    Unreadable,
    /// `.sandboxignore` names it.
    Ignored,
    /// An ignored or cache directory that is over the limit, and no capture has it.
    OverLimit,
    /// As `OverLimit`, but an earlier capture has it: its older state is in the snapshot.
    Stale,
}

impl Reason {
    pub(crate) fn code(self) -> u16 {
        match self {
            Self::Secret => 1,
            Self::Special => 2,
            Self::Unreadable => 3,
            Self::Ignored => 4,
            Self::OverLimit => 5,
            Self::Stale => 6,
        }
    }

    pub(crate) fn from_code(code: u16) -> Option<Self> {
        Some(match code {
            1 => Self::Secret,
            2 => Self::Special,
            3 => Self::Unreadable,
            4 => Self::Ignored,
            5 => Self::OverLimit,
            6 => Self::Stale,
            _ => return None,
        })
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Secret => "looks like a secret",
            Self::Special => "not a file, directory or symlink",
            Self::Unreadable => "not readable",
            Self::Ignored => "named in .sandboxignore",
            Self::OverLimit => "over the capture limit",
            Self::Stale => "over the capture limit, taken from the last capture",
        })
    }
}
