//! How much of the disk trees take, counted a little at a time: the loop that counts has other things to do.
//!
//! Whoever wrote them is not to be trusted: no link is followed, no mount is entered, and what cannot be listed is
//! left out (the reserve of the host holds all the same). A file without a block still takes an inode: each name
//! counts at least [`LEAST`] bytes, so that a million empty files are not nothing.

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, statat};
use sandbox_sys::beneath::open_resolved;
use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What a file counts at least, in bytes.
const LEAST: u64 = 4096;
/// Entries between two looks at the clock.
const BATCH: usize = 64;

/// A count under way.
#[derive(Debug)]
pub(crate) struct Count {
    roots: Vec<PathBuf>,
    root: Option<OwnedFd>,
    /// Directories of `root` that were not listed yet.
    waiting: Vec<Vec<u8>>,
    listed: Option<(Vec<u8>, Dir)>,
    /// Inodes with several names, which count once.
    seen: HashSet<(u64, u64)>,
    /// What was found so far.
    pub(crate) bytes: u64,
    /// How long it has taken.
    pub(crate) took: Duration,
}

impl Count {
    pub(crate) fn new(roots: Vec<PathBuf>) -> Self {
        let (waiting, seen) = (Vec::new(), HashSet::new());
        Self { roots, root: None, waiting, listed: None, seen, bytes: 0, took: Duration::ZERO }
    }

    /// Counts for about this long; true when all is counted, or `enough` was found.
    pub(crate) fn go_on(&mut self, time: Duration, enough: u64) -> bool {
        let began = Instant::now();
        let mut over = false;
        while !over && began.elapsed() < time {
            over = (0..BATCH).any(|_| self.bytes >= enough || !self.one());
        }
        self.took += began.elapsed();
        over
    }

    /// One entry; false when there is none left.
    fn one(&mut self) -> bool {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let Some((path, dir)) = &mut self.listed else {
            match (self.waiting.pop(), &self.root) {
                (Some(path), Some(root)) => {
                    let opened = open_resolved(root.as_fd(), &path, flags, ResolveFlags::NO_XDEV);
                    self.listed = opened.and_then(Dir::new).ok().map(|dir| (path, dir));
                }
                _ => {
                    let Some(root) = self.roots.pop() else { return false };
                    self.root = rustix::fs::open(&root, flags, Mode::empty()).ok();
                    self.waiting = vec![Vec::new()];
                }
            }
            return true;
        };
        let Some(Ok(entry)) = dir.read() else {
            self.listed = None;
            return true;
        };
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            return true;
        }
        let Ok(stat) = dir.fd().and_then(|fd| statat(fd, name, AtFlags::SYMLINK_NOFOLLOW)) else { return true };
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if is_dir {
            let mut below = path.clone();
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend_from_slice(name.to_bytes());
            self.waiting.push(below);
        }
        if is_dir || stat.st_nlink < 2 || self.seen.insert((stat.st_dev, stat.st_ino)) {
            self.bytes += (stat.st_blocks as u64 * 512).max(LEAST);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn every_file_counts_once_and_nothing_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir_all(a.join("deep/er")).unwrap();
        fs::create_dir(&b).unwrap();
        fs::write(a.join("deep/er/large"), vec![1; 1 << 20]).unwrap();
        fs::hard_link(a.join("deep/er/large"), b.join("again")).unwrap();
        fs::write(b.join("empty"), "").unwrap();
        std::os::unix::fs::symlink("/", b.join("link")).unwrap();
        // Its blocks may not be there yet.
        fs::File::open(a.join("deep/er/large")).unwrap().sync_all().unwrap();
        let mut count = Count::new(vec![a.clone(), b, dir.path().join("none")]);
        while !count.go_on(Duration::from_nanos(100), u64::MAX) {}
        // Two directories, the file, an empty one and a link.
        let expected = (1 << 20) + 4 * LEAST;
        assert!((expected..expected + (1 << 17)).contains(&count.bytes), "{}", count.bytes);
        let mut enough = Count::new(vec![a]);
        assert!(enough.go_on(Duration::from_secs(9), 4096));
        assert!(enough.bytes < 1 << 20);
    }
}
