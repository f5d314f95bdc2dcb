//! What `stat` says about one entry, as far as the capture compares it.

use rustix::fs::FileType;

/// A point in time as the kernel keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Time {
    /// Seconds since 1970, negative before.
    pub sec: i64,
    /// Nanoseconds within the second.
    pub nsec: u32,
}

impl Time {
    /// Returns the time of the clock that stamps files.
    ///
    /// Inode times come from the coarse clock, which stands still between ticks: the fine one would
    /// run ahead of them.
    pub fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        Self { sec: now.tv_sec, nsec: now.tv_nsec as u32 }
    }

    /// Returns nanoseconds since 1970 as far as they can be told (years 1385 to 2554 in i128).
    fn nanos(self) -> i128 {
        i128::from(self.sec) * 1_000_000_000 + i128::from(self.nsec)
    }
}

/// A moment by the clock that people set and by one that only goes forward.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    set: i128,
    forward: i128,
}

impl Clock {
    /// Returns this moment.
    pub fn now() -> Self {
        let read = |id| {
            let now = rustix::time::clock_gettime(id);
            i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
        };
        Self { set: read(rustix::time::ClockId::Realtime), forward: read(rustix::time::ClockId::Monotonic) }
    }

    /// Whether the clock that people set has lost more than a tick against the other one since then.
    pub fn was_set_back(self) -> bool {
        self.lost_until(Self::now())
    }

    fn lost_until(self, now: Self) -> bool {
        const TICK: i128 = 4_000_000;
        (now.set - self.set) < (now.forward - self.forward) - TICK
    }
}

/// Kinds of entries that layers can hold, and the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A FIFO, socket or device.
    Special,
}

/// The parts of a `stat` that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Type and permission bits.
    pub mode: u32,
    /// Length in bytes.
    pub size: u64,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Device.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
    /// Number of names.
    pub nlink: u32,
    /// Occupied space in units of 512 bytes; not kept in manifests.
    pub blocks: u64,
}

impl Stat {
    /// Takes over the kernel's answer.
    #[allow(clippy::unnecessary_cast, reason = "field types differ between architectures")]
    pub(crate) fn from_kernel(stat: &rustix::fs::Stat) -> Self {
        Self {
            mode: stat.st_mode as u32,
            size: stat.st_size as u64,
            mtime: Time { sec: stat.st_mtime as i64, nsec: stat.st_mtime_nsec as u32 },
            ctime: Time { sec: stat.st_ctime as i64, nsec: stat.st_ctime_nsec as u32 },
            dev: stat.st_dev as u64,
            ino: stat.st_ino as u64,
            nlink: stat.st_nlink as u32,
            blocks: stat.st_blocks as u64,
        }
    }

    /// Returns the kind of entry.
    pub fn kind(&self) -> Kind {
        kind_of(self.mode)
    }

    /// Returns the permission bits that a layer keeps: no set-id bits, and sticky for directories only.
    pub fn kept_mode(&self) -> u32 {
        kept_mode(self.mode)
    }

    /// Returns the bytes that a copy without reflinks takes.
    pub(crate) fn weight(&self) -> u64 {
        self.size.min(self.blocks.saturating_mul(512))
    }

    /// Returns whether a change after `seen` could have left this very stat.
    ///
    /// Inode times move in ticks of up to 10 ms (up to 2 s on filesystems that keep whole seconds):
    /// what was written in the tick in which it was looked at can be written again without a trace.
    /// Only ctime counts: mtime can be set to anything, and every write moves ctime too.
    pub(crate) fn racy(&self, seen: Time) -> bool {
        let slack: i128 = if self.ctime.nsec == 0 { 2_000_000_000 } else { 20_000_000 };
        self.ctime.nanos() + slack >= seen.nanos()
    }
}

/// Returns the kind that the type bits of a mode stand for.
pub(crate) fn kind_of(mode: u32) -> Kind {
    match FileType::from_raw_mode(mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Symlink,
        _ => Kind::Special,
    }
}

/// Returns the permission bits of a mode that a layer keeps.
pub(crate) fn kept_mode(mode: u32) -> u32 {
    match kind_of(mode) {
        Kind::Dir => mode & 0o1777,
        _ => mode & 0o777,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(mtime: Time, ctime: Time) -> Stat {
        Stat { mode: 0o100644, size: 1, mtime, ctime, dev: 1, ino: 2, nlink: 1, blocks: 8 }
    }

    #[test]
    fn what_was_written_in_the_tick_of_the_look_is_racy() {
        let at = |sec, nsec| Time { sec, nsec };
        let seen = at(100, 500_000_000);
        let old = at(99, 1);
        assert!(!stat(old, at(100, 400_000_000)).racy(seen));
        assert!(stat(old, at(100, 490_000_000)).racy(seen));
        assert!(stat(old, seen).racy(seen));
        // A modification time in the future was set by somebody, at ctime.
        assert!(!stat(at(2000, 1), at(99, 1)).racy(seen));
        // Whole seconds: the filesystem may keep no more.
        assert!(stat(old, at(99, 0)).racy(seen));
        assert!(!stat(old, at(98, 0)).racy(seen));
    }

    #[test]
    fn set_id_bits_are_dropped() {
        assert_eq!(kept_mode(0o104755), 0o755);
        assert_eq!(kept_mode(0o42770), 0o770);
        assert_eq!(kept_mode(0o41777), 0o1777);
    }

    #[test]
    fn a_clock_that_goes_on_or_is_set_forward_loses_nothing() {
        let start = Clock { set: 1_000_000_000, forward: 5_000_000_000 };
        let after = |set, forward| start.lost_until(Clock { set: start.set + set, forward: start.forward + forward });
        assert!(!after(90_000_000, 90_000_000));
        assert!(!after(89_000_000, 90_000_000));
        assert!(!after(3_600_000_000_000, 90_000_000));
        assert!(after(80_000_000, 90_000_000));
        assert!(after(-10_000_000, 0));
    }
}
