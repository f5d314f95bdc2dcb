//! Room on a disk: what is free, what is kept for the host, and whether what comes next fits.
//!
//! ```text
//!  0            free                                    all
//!  ├──reserve──┼──────────for sandboxes──────────┤ used │
//!              └ below it: nothing is begun, and what runs is frozen
//! ```
//!
//! Bytes and inodes alike. An estimate that fits is no promise, since others write too: what is refused here is
//! what cannot succeed, before anything was made.

use crate::units::size;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The reserve where the user names none: a twentieth of the disk, but no more than this many bytes.
const MOST_BYTES: u64 = 2 << 30;
/// The same of inodes.
const MOST_INODES: u64 = 100_000;
/// What part of a disk it is.
const PART: u64 = 20;

/// What of a disk is kept for the host (`sandbox.diskReserve`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reserve {
    /// A twentieth of it, at most 2 GiB and 100 000 inodes.
    #[default]
    Auto,
    /// This many bytes; inodes as above.
    Bytes(u64),
    /// Nothing.
    None,
}

impl Reserve {
    /// Bytes that are kept of a disk.
    pub fn bytes(self, room: &Room) -> u64 {
        match self {
            Self::Auto => (room.of_bytes / PART).min(MOST_BYTES),
            Self::Bytes(bytes) => bytes,
            Self::None => 0,
        }
    }

    /// Inodes that are kept; none where the file system makes them as they are needed.
    pub fn inodes(self, room: &Room) -> u64 {
        match (self, room.inodes) {
            (Self::None, _) | (_, None) => 0,
            (Self::Auto | Self::Bytes(_), Some(_)) => (room.of_inodes / PART).min(MOST_INODES),
        }
    }
}

/// What a file system has left for whoever asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Free bytes, without those that only root may use.
    pub bytes: u64,
    /// Free inodes; `None` where the file system has no number of them (Btrfs).
    pub inodes: Option<u64>,
    /// All bytes.
    pub of_bytes: u64,
    /// All inodes.
    pub of_inodes: u64,
}

impl Room {
    /// Asks the file system that a path is on.
    ///
    /// # Errors
    /// What `statvfs` said.
    pub fn of(path: &Path) -> io::Result<Self> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(Self {
            bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            inodes: (stat.f_files > 0).then_some(stat.f_favail),
            of_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            of_inodes: stat.f_files,
        })
    }

    /// No file of this disk can be larger than what is used of it: a copy of any part of it fits.
    pub fn fits_anything(&self, reserve: Reserve) -> bool {
        let used = self.of_bytes.saturating_sub(self.bytes);
        let used_inodes = self.inodes.map_or(0, |free| self.of_inodes.saturating_sub(free));
        self.short(reserve, Need { bytes: used, inodes: used_inodes }).is_none()
    }

    /// What is missing for something that is to be made, with the reserve left alone.
    pub fn short(&self, reserve: Reserve, need: Need) -> Option<Shortage> {
        let bytes = Shortage { inodes: false, need: need.bytes, free: self.bytes, kept: reserve.bytes(self) };
        let inodes =
            self.inodes.map(|free| Shortage { inodes: true, need: need.inodes, free, kept: reserve.inodes(self) });
        // Where the user wants no reserve, running out of it is what programs are told by the kernel.
        let is_short = |shortage: &Shortage| {
            let wanted = shortage.need.saturating_add(shortage.kept);
            wanted > shortage.free
        };
        Some(bytes).filter(is_short).or_else(|| inodes.filter(is_short))
    }
}

/// What something is going to take, as far as it can be known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// Bytes on disk.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
}

/// Why it does not fit, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// It is inodes that are missing, not bytes.
    pub inodes: bool,
    /// How much is needed.
    pub need: u64,
    /// How much is free.
    pub free: u64,
    /// How much of that is kept for the host.
    pub kept: u64,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = |n: u64| if self.inodes { format!("{n} inodes") } else { size(n) };
        match (self.need, self.kept) {
            (0, kept) => write!(f, "{} are free, and {} are kept for the host", words(self.free), words(kept)),
            (need, 0) => write!(f, "{} are needed, and {} are free", words(need), words(self.free)),
            (need, kept) => {
                let (need, free) = (words(need), words(self.free));
                write!(f, "{need} are needed, {free} are free, and {} of them are kept for the host", words(kept))
            }
        }
    }
}

impl std::error::Error for Shortage {}

/// A disk has too little room for what was asked. Nothing was made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is too little room on the disk of '{path}'", path = path.display())]
pub struct NoRoom {
    /// Where it was to be made.
    pub path: PathBuf,
    /// What is missing.
    #[source]
    pub shortage: Shortage,
}

/// Returns whether something fits where it is to be made. A disk that cannot be asked is not in the way.
///
/// # Errors
/// [`NoRoom`].
pub fn check(path: &Path, reserve: Reserve, need: Need) -> Result<(), NoRoom> {
    match Room::of(path).ok().and_then(|room| room.short(reserve, need)) {
        None => Ok(()),
        Some(shortage) => Err(NoRoom { path: path.to_owned(), shortage }),
    }
}

/// The disk, or the user's share of it, is full.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn room(bytes: u64, inodes: Option<u64>) -> Room {
        Room { bytes, inodes, of_bytes: 100 * GIB, of_inodes: inodes.map_or(0, |_| 1_000_000) }
    }

    #[test]
    fn a_twentieth_of_the_disk_is_kept_and_no_more_than_2_gib() {
        let small = Room { bytes: 0, inodes: Some(0), of_bytes: GIB, of_inodes: 2000 };
        assert_eq!((Reserve::Auto.bytes(&small), Reserve::Auto.inodes(&small)), (GIB / 20, 100));
        let large = room(0, Some(0));
        assert_eq!((Reserve::Auto.bytes(&large), Reserve::Auto.inodes(&large)), (2 * GIB, 50_000));
        assert_eq!(Reserve::Auto.inodes(&room(0, None)), 0, "a file system without a number of inodes");
        assert_eq!((Reserve::Bytes(7).bytes(&large), Reserve::None.bytes(&large)), (7, 0));
    }

    #[test]
    fn what_does_not_fit_is_told_in_numbers() {
        let need = |bytes, inodes| Need { bytes, inodes };
        let says = |room: Room, need| room.short(Reserve::Auto, need).map(|shortage| shortage.to_string());
        assert_eq!(says(room(3 * GIB, None), need(GIB, 1 << 40)), None);
        assert_eq!(
            says(room(3 * GIB, None), need(GIB + 1, 0)).unwrap(),
            "1.0 GiB are needed, 3.0 GiB are free, and 2.0 GiB of them are kept for the host"
        );
        assert_eq!(says(room(GIB, None), need(0, 0)).unwrap(), "1.0 GiB are free, and 2.0 GiB are kept for the host");
        assert_eq!(
            says(room(3 * GIB, Some(60_000)), need(0, 20_000)).unwrap(),
            "20000 inodes are needed, 60000 inodes are free, and 50000 inodes of them are kept for the host"
        );
        let shortage = room(GIB, None).short(Reserve::None, need(2 * GIB, 0)).unwrap();
        assert_eq!(shortage.to_string(), "2.0 GiB are needed, and 1.0 GiB are free");
        assert!(room(0, Some(0)).short(Reserve::None, need(0, 0)).is_none());
    }

    #[test]
    fn a_disk_that_is_half_empty_holds_a_copy_of_anything_on_it() {
        assert!(room(60 * GIB, Some(600_000)).fits_anything(Reserve::Auto));
        assert!(!room(50 * GIB, Some(600_000)).fits_anything(Reserve::Auto));
        assert!(!room(60 * GIB, Some(500_000)).fits_anything(Reserve::Auto));
    }
}
