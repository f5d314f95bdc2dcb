//! Files, index and `HEAD` of one instant: whether git was at work while the tree was captured.
//!
//! ```text
//!  wait for a lock of git ─► pulse ─► capture ─► git layer ─► pulse: the same, and no lock? ─► done
//!        ▲                                                          │ no, at most 5 times
//!        └──────────────────────────────────────────────────────────┘
//! ```
//!
//! A git command that changes files holds `index.lock` while it does, and then puts another file in the index's
//! place; one that moves a branch only changes `HEAD` or a log. What was captured while neither happened belongs to
//! the index and the branch that were there before and after.

use crate::host_repo::{HostRepo, HostRepoError};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a running git command is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often a tree is captured that git changes meanwhile.
const ATTEMPTS: u32 = 5;

/// What tells that the index or the branch is another one.
const FILES: [&str; 4] = ["index", "HEAD", "logs/HEAD", "reftable/tables.list"];

/// Inode, size, times.
type Stat = (u64, u64, i64, i64, i64, i64);

/// What git looks like around the captures of one spawn.
#[derive(Debug)]
pub(crate) struct Pulse<'a> {
    host: Option<&'a HostRepo>,
    dirs: Vec<PathBuf>,
    seen: Vec<Option<Stat>>,
    /// A lock that did not go away: it may be of a command that died.
    lock: Option<PathBuf>,
    attempts: u32,
}

impl<'a> Pulse<'a> {
    /// Watches the repository, and git directories of others inside its tree.
    pub(crate) fn new(host: Option<&'a HostRepo>, nested: impl Iterator<Item = PathBuf>) -> Self {
        let own = host.map(|host| host.git_dir().to_owned());
        let dirs = own.into_iter().chain(nested.filter(|_| host.is_some())).collect();
        Self { host, dirs, seen: Vec::new(), lock: None, attempts: 0 }
    }

    /// Before a capture: waits for a git command that is at work.
    pub(crate) fn begin(&mut self) {
        self.attempts += 1;
        if self.lock.is_none()
            && let Some(Err(HostRepoError::Busy { lock })) = self.host.map(|host| host.wait_quiet(PATIENCE))
        {
            self.lock = Some(lock);
        }
        self.seen = self.look();
    }

    /// After a capture: whether it is to be done once more.
    pub(crate) fn again(&self) -> bool {
        !self.is_still() && self.attempts < ATTEMPTS
    }

    /// What changed all the time, if it did.
    pub(crate) fn unsettled(&self, top: &Path) -> Option<PathBuf> {
        let index = self.dirs.first().filter(|_| !self.is_still())?.join("index");
        Some(index.strip_prefix(top).map(Path::to_owned).unwrap_or(index))
    }

    /// A lock that was there all the time.
    pub(crate) fn lock(&self) -> Option<&Path> {
        self.lock.as_deref()
    }

    fn is_still(&self) -> bool {
        let at_work = || self.host.is_some_and(|host| host.wait_quiet(Duration::ZERO).is_err());
        self.seen == self.look() && (self.lock.is_some() || !at_work())
    }

    fn look(&self) -> Vec<Option<Stat>> {
        let stat = |path: PathBuf| {
            let meta = fs::symlink_metadata(path).ok()?;
            Some((meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()))
        };
        self.dirs.iter().flat_map(|dir| FILES.map(|name| stat(dir.join(name)))).collect()
    }
}
