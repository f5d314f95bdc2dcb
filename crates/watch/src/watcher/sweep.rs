//! Looking at all files from time to time: what the kernel did not tell shows in its change time.
//!
//! ```text
//!   look ──every minute or later──► look ──► …      while somebody asks
//!     └── a file whose change time is not before the last look began is marked
//!     └── a file that has several names by now gets a watch
//! ```
//!
//! A write through a name outside of the tree, through one that is gone, or through another user's mapping moves
//! the change time as any other does, and nobody can set that back. A question that finds the last look too long
//! ago is answered with doubt.

use super::{Again, Doubt, How, Job, State, Watch, Watcher, doubt, join};
use crate::log::Kind;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use sandbox_sys::beneath::LOOK;
use std::collections::HashSet;
use std::os::fd::AsFd;
use std::time::Duration;

/// Directories that are looked at before events and questions get their turn.
const SLICE: usize = 64;

/// How much of a processor looking may take: one part of so many.
const SHARE: u32 = 100;

/// How much earlier than the change an inode's time can be: its clock ticks, on some file systems in seconds.
const TICK: i128 = 2_000_000_000;

/// How often all files are looked at, and for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sweeps {
    /// Time between two looks, at least.
    pub every: Duration,
    /// A question that finds the last look longer ago is answered with doubt.
    pub trusted: Duration,
    /// Nobody asked for so long: nobody is looked for.
    pub wanted: Duration,
}

impl Default for Sweeps {
    fn default() -> Self {
        let minutes = |n: u64| Duration::from_secs(60 * n);
        Self { every: minutes(1), trusted: minutes(5), wanted: minutes(60) }
    }
}

/// A moment by the clock that only goes forward, and by the one that inodes are stamped with; nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    forward: i128,
    pub(super) wall: i128,
}

impl Moment {
    pub(super) fn now() -> Self {
        let read = |id| {
            let now = clock_gettime(id);
            i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
        };
        Self { forward: read(ClockId::Boottime), wall: read(ClockId::Realtime) }
    }

    /// The time since then.
    fn ago(self, now: Self) -> Duration {
        Duration::from_nanos(u64::try_from(now.forward - self.forward).unwrap_or(0))
    }

    /// The clock of the inodes has lost time since then.
    fn was_set_back(self, now: Self) -> bool {
        now.wall - self.wall < now.forward - self.forward - TICK / 2
    }
}

/// Where the looking is.
#[derive(Debug)]
pub(super) struct Looks {
    /// When somebody asked last.
    pub(super) asked: Moment,
    /// When the last look that was finished began.
    began: Moment,
    /// How long that one took.
    took: Duration,
    now: Option<Look>,
}

/// One look.
#[derive(Debug)]
struct Look {
    began: Moment,
    /// Directories that are left.
    dirs: Vec<Watch>,
    /// Inodes with several names that have a watch.
    linked: HashSet<u64>,
}

impl Looks {
    /// All files are looked at just now, by whoever begins to watch them.
    pub(super) fn new() -> Self {
        let now = Moment::now();
        Self { asked: now, began: now, took: Duration::ZERO, now: None }
    }

    /// What is missing for an answer; `None`: nothing.
    pub(super) fn doubt(&self, sweeps: &Sweeps) -> Option<String> {
        let ago = self.began.ago(Moment::now());
        (ago > sweeps.trusted).then(|| format!("all files were last looked at {} s ago", ago.as_secs()))
    }

    fn is_due(&self, sweeps: &Sweeps) -> bool {
        let now = Moment::now();
        let pause = sweeps.every.max(self.took * SHARE);
        self.now.is_some() || self.began.ago(now) >= pause && self.asked.ago(now) < sweeps.wanted
    }
}

impl Watcher {
    /// Whether it is time for a look, or one is under way.
    pub(super) fn looks_again(&self) -> bool {
        self.state == State::Ready && self.looks.is_due(&self.config.sweeps)
    }

    /// Looks at the files of some directories, when it is time for that.
    pub(super) fn sweep(&mut self) -> Result<(), Doubt> {
        if !self.looks_again() {
            return Ok(());
        }
        let now = Moment::now();
        let mut look = match self.looks.now.take() {
            Some(look) => look,
            None if self.looks.began.was_set_back(now) => {
                // Changes may have older times than the last look.
                return Err(Doubt { why: "the clock was set back".into(), again: Again::Always });
            }
            None => Look { began: now, dirs: self.dirs.watches(), linked: self.files.values().copied().collect() },
        };
        for _ in 0..SLICE {
            let Some(watch) = look.dirs.pop() else {
                self.looks.took = look.began.ago(Moment::now());
                self.looks.began = look.began;
                return Ok(());
            };
            self.sweep_dir(watch, &mut look.linked)?;
        }
        self.looks.now = Some(look);
        Ok(())
    }

    /// Marks the files of one directory that changed since the last look, or may have.
    #[allow(clippy::unnecessary_cast, reason = "field types differ between architectures")]
    fn sweep_dir(&mut self, watch: Watch, linked: &mut HashSet<u64>) -> Result<(), Doubt> {
        // One that went somewhere else meanwhile is told as a whole.
        let Some(dir) = self.dirs.path(watch) else { return Ok(()) };
        let Some(fd) = self.open(&dir, LOOK)? else { return Ok(()) };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(fd) = rustix::fs::openat(fd.as_fd(), ".", flags, Mode::empty()) else { return Ok(()) };
        let since = self.looks.began.wall - TICK;
        let mut buffer = Vec::with_capacity(32 * 1024);
        let mut entries = RawDir::new(&fd, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // It was removed meanwhile.
                Err(Errno::NOENT) => return Ok(()),
                Err(errno) => return Err(doubt(format!("a directory cannot be read: {errno}"))),
            };
            if !matches!(entry.file_type(), FileType::RegularFile | FileType::Unknown) {
                continue;
            }
            let name = entry.file_name();
            let Ok(stat) = rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                continue;
            }
            let changed = i128::from(stat.st_ctime as i64) * 1_000_000_000 + i128::from(stat.st_ctime_nsec as i64);
            let new = stat.st_nlink > 1 && linked.insert(stat.st_ino as u64);
            if new {
                self.jobs.push(Job { parent: watch, name: name.to_bytes().into(), how: How::File });
            }
            if new || changed >= since {
                // Most were told when they changed: these are looked at once more.
                self.log.path(join(&dir, name.to_bytes()), Kind::Content);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(forward: i128, wall: i128) -> Moment {
        Moment { forward: forward * 1_000_000_000, wall: wall * 1_000_000_000 }
    }

    #[test]
    fn a_clock_that_lost_time_is_no_witness() {
        let then = at(1000, 5000);
        assert!(!then.was_set_back(at(1060, 5060)) && !then.was_set_back(at(1060, 9000)));
        assert!(then.was_set_back(at(1060, 5058)) && then.was_set_back(at(1060, 100)));
        assert_eq!(then.ago(at(1060, 100)), Duration::from_secs(60));
    }

    #[test]
    fn a_look_that_takes_long_is_rare_and_nobody_asks_for_none() {
        let sweeps = Sweeps::default();
        let now = Moment::now();
        let before = |secs: i128| Moment { forward: now.forward - secs * 1_000_000_000, ..now };
        let looks = |asked, began, took| Looks {
            asked: before(asked),
            began: before(began),
            took: Duration::from_secs(took),
            now: None,
        };
        assert!(looks(0, 61, 0).is_due(&sweeps) && !looks(0, 50, 0).is_due(&sweeps));
        assert!(!looks(0, 150, 2).is_due(&sweeps) && looks(0, 250, 2).is_due(&sweeps));
        assert!(!looks(3700, 61, 0).is_due(&sweeps));
        assert_eq!(looks(0, 250, 0).doubt(&sweeps), None);
        assert_eq!(looks(0, 310, 0).doubt(&sweeps).unwrap(), "all files were last looked at 310 s ago");
    }
}
