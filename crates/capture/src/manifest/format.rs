//! Offsets and numbers of the manifest's format.

/// First and last bytes of the file.
pub(super) const MAGIC: &[u8; 8] = b"gsmanif\n";
/// The version of a whole manifest that this build reads and writes.
pub(super) const VERSION: u32 = 1;
/// The version of one that says what differs from a whole one.
pub(super) const DELTA: u32 = 2;
/// Length of the header.
pub(super) const HEADER: usize = 128;
/// Length of a directory record.
pub(super) const DIR: usize = 24;
/// Length of an entry record.
pub(super) const ENTRY: usize = 80;
/// "No such index".
pub(crate) const NONE: u32 = u32::MAX;
/// "In no layer".
pub(super) const NO_LAYER: u16 = u16::MAX;

/// The directory holds an entry named `.git`.
pub(crate) const DIR_GIT: u32 = 1;
/// The directory could not be listed; it is carried empty.
pub(crate) const DIR_UNREADABLE: u32 = 2;
/// The directory is left over from before a change: nothing leads to it.
pub(crate) const DIR_GONE: u32 = 4;

/// Returns the name, beside a delta, of the whole manifest that it stands on.
pub(crate) fn base_name(digest: u64) -> String {
    format!("base-{digest:016x}")
}

/// Header offsets.
pub(super) mod head {
    pub(crate) const VERSION: usize = 8;
    pub(crate) const ENTRIES: usize = 12;
    pub(crate) const DIRS: usize = 16;
    pub(crate) const LAYERS: usize = 20;
    pub(crate) const DEVS: usize = 24;
    /// Of a delta: changed directory records of the whole manifest.
    pub(crate) const PATCHED_DIRS: usize = 28;
    pub(crate) const DIRS_AT: usize = 32;
    pub(crate) const ENTRIES_AT: usize = 40;
    pub(crate) const NAMES_AT: usize = 48;
    pub(crate) const TABLES_AT: usize = 56;
    pub(crate) const LENGTH: usize = 64;
    pub(crate) const SCAN_SEC: usize = 72;
    pub(crate) const SCAN_NSEC: usize = 80;
    /// Of a delta: changed entries of the whole manifest.
    pub(crate) const PATCHED: usize = 84;
    pub(crate) const SETTINGS: usize = 88;
    pub(crate) const FILES: usize = 96;
    pub(crate) const GIT_STATE: usize = 104;
    /// 2: the sums of what the layers hold follow the layers' ids.
    pub(crate) const HELD: usize = 112;
    /// Of a delta: the digest of the whole manifest.
    pub(crate) const BASE: usize = 120;
}

/// Offsets in an entry record.
pub(super) mod entry {
    pub(crate) const MTIME_SEC: usize = 0;
    pub(crate) const CTIME_SEC: usize = 8;
    pub(crate) const SIZE: usize = 16;
    pub(crate) const INO: usize = 24;
    pub(crate) const COPY_INO: usize = 32;
    pub(crate) const COPY_CTIME_SEC: usize = 40;
    pub(crate) const MTIME_NSEC: usize = 48;
    pub(crate) const CTIME_NSEC: usize = 52;
    pub(crate) const COPY_CTIME_NSEC: usize = 56;
    pub(crate) const MODE: usize = 60;
    pub(crate) const NAME: usize = 64;
    pub(crate) const CHILD: usize = 68;
    pub(crate) const NAME_LEN: usize = 72;
    pub(crate) const LAYER: usize = 74;
    pub(crate) const DEV: usize = 76;
    pub(crate) const FLAGS: usize = 78;
}

/// What a carried file looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// An ordinary file.
    Plain,
    /// A secret; when it is tracked, everybody who has the repository has it.
    Secret {
        /// Git tracks it.
        tracked: bool,
    },
}

/// Flags of an entry; the upper byte is the code of a [`super::Reason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Flags(pub(crate) u16);

impl Flags {
    const RACY: u16 = 1;
    const SECRET: u16 = 2;
    const TRACKED: u16 = 4;
    const LESSENED: u16 = 8;

    pub(crate) fn with_racy(self, racy: bool) -> Self {
        Self(if racy { self.0 | Self::RACY } else { self.0 & !Self::RACY })
    }

    pub(crate) fn with_lessened(self, lessened: bool) -> Self {
        Self(if lessened { self.0 | Self::LESSENED } else { self.0 & !Self::LESSENED })
    }

    /// Some of its rights are not in the layer.
    pub(crate) fn lessened(self) -> bool {
        self.0 & Self::LESSENED != 0
    }

    pub(crate) fn with_look(self, look: Look) -> Self {
        let bits = match look {
            Look::Plain => 0,
            Look::Secret { tracked: false } => Self::SECRET,
            Look::Secret { tracked: true } => Self::SECRET | Self::TRACKED,
        };
        Self(self.0 & !(Self::SECRET | Self::TRACKED) | bits)
    }

    pub(crate) fn look(self) -> Look {
        match self.0 & Self::SECRET {
            0 => Look::Plain,
            _ => Look::Secret { tracked: self.0 & Self::TRACKED != 0 },
        }
    }

    pub(crate) fn with_reason(self, reason: Option<super::Reason>) -> Self {
        Self(self.0 & 0xff | reason.map_or(0, super::Reason::code) << 8)
    }

    /// Nothing about the entry needs a second look when its stat is unchanged.
    pub(crate) fn plain(self) -> bool {
        self.0 & !Self::LESSENED == 0
    }

    /// A change after the last look might have left no trace in the stat.
    pub(crate) fn racy(self) -> bool {
        self.0 & Self::RACY != 0
    }

    pub(crate) fn reason(self) -> Option<super::Reason> {
        super::Reason::from_code(self.0 >> 8)
    }
}
