//! `flock`s as guards: the lock lives as long as the value, and dies with the process.
//!
//! Who takes one exclusively writes into the file who that is, for those who wait. It is for people: nothing
//! is decided by it, and it stays there when the lock is given back.

use rustix::fs::{FlockOperation, Mode, OFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

static COMMAND: OnceLock<String> = OnceLock::new();

/// Names the command that this process is, for [`holder`] in others.
pub fn announce(command: &str) {
    let _ = COMMAND.set(command.to_owned());
}

/// What came of asking for a lock.
#[derive(Debug)]
pub enum Tried {
    /// It is ours.
    Taken(FileLock),
    /// Somebody has it.
    Held,
    /// There is no such file.
    Gone,
}

/// A held lock on a file.
#[derive(Debug)]
pub struct FileLock {
    fd: OwnedFd,
}

impl FileLock {
    /// Waits for the exclusive lock of `path`, making the file when it does not exist.
    pub fn exclusive(path: &Path) -> io::Result<Self> {
        Self::take(path, FlockOperation::LockExclusive).inspect(|lock| lock.note())
    }

    /// Waits for the shared lock of `path`.
    pub fn shared(path: &Path) -> io::Result<Self> {
        Self::take(path, FlockOperation::LockShared)
    }

    /// Takes the exclusive lock if it is free; `None` when somebody holds it.
    pub fn try_exclusive(path: &Path) -> io::Result<Option<Self>> {
        match Self::take(path, FlockOperation::NonBlockingLockExclusive) {
            Ok(lock) => {
                lock.note();
                Ok(Some(lock))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes the exclusive lock of `path`, waiting for it at most so long; `None` when it was held all the time.
    pub fn exclusive_within(path: &Path, patience: Duration) -> io::Result<Option<Self>> {
        let until = Instant::now() + patience;
        let mut pause = Duration::from_millis(1);
        loop {
            match Self::try_exclusive(path)? {
                None if Instant::now() < until => std::thread::sleep(pause),
                other => return Ok(other),
            }
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Writes who we are into the file. On a full disk there is no note.
    fn note(&self) {
        let command = COMMAND.get().map_or("git-sandbox", String::as_str);
        let note = format!("{command} {} {}\n", std::process::id(), uptime());
        let _ = rustix::io::pwrite(&self.fd, note.as_bytes(), 0);
    }

    /// Takes the exclusive lock of a file that exists, if it is free. Makes none.
    pub fn try_existing(path: &Path) -> io::Result<Tried> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match Self::take_with(path, FlockOperation::NonBlockingLockExclusive, flags) {
            Ok(lock) => Ok(Tried::Taken(lock)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Tried::Held),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Tried::Gone),
            Err(error) => Err(error),
        }
    }

    /// Whether somebody holds the exclusive lock of `path`. Does not get in the way of others who ask.
    pub fn is_held(path: &Path) -> bool {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let Ok(fd) = rustix::fs::open(path, flags, Mode::empty()) else { return false };
        rustix::fs::flock(&fd, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
    }

    /// Returns device and inode of the locked file: whether it is still the one at a path.
    pub fn identity(&self) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::fstat(&self.fd)?;
        Ok((stat.st_dev, stat.st_ino))
    }

    fn take(path: &Path, operation: FlockOperation) -> io::Result<Self> {
        Self::take_with(path, operation, OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW)
    }

    fn take_with(path: &Path, operation: FlockOperation, flags: OFlags) -> io::Result<Self> {
        loop {
            let fd = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?;
            match rustix::fs::flock(&fd, operation) {
                Ok(()) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            // Removed with its directory while it was waited for: whoever opens the path now gets another file,
            // and the lock of this one says nothing.
            let ours = rustix::fs::fstat(&fd)?;
            match rustix::fs::stat(path) {
                Ok(there) if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino) => return Ok(Self { fd }),
                Ok(_) | Err(rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Adopts a descriptor of a locked file that an earlier process image left open.
    pub fn adopt(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Gives up the guard without unlocking: the lock stays with the descriptor.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

/// Who took a lock last, by its own word. Not escaped, and never to be decided by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its command.
    pub command: String,
    /// Its process.
    pub pid: u32,
    /// For how long it has had it by now, in seconds.
    pub seconds: u64,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "'{}' by pid {} since {} s", self.command, self.pid, self.seconds)
    }
}

/// Reads who says that it has the lock of `path`.
pub fn holder(path: &Path) -> Option<Holder> {
    let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty()).ok()?;
    let mut bytes = [0; 128];
    let length = rustix::io::pread(&fd, &mut bytes, 0).ok()?;
    let text = std::str::from_utf8(&bytes[..length]).ok()?;
    let mut words = text.lines().next()?.split(' ');
    let (command, pid, since) = (words.next()?, words.next()?.parse().ok()?, words.next()?.parse::<u64>().ok()?);
    let printable = !command.is_empty() && command.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    printable.then(|| Holder { command: command.to_owned(), pid, seconds: uptime().saturating_sub(since) })
}

/// Seconds since the machine was started, sleep included: clocks that are set do not matter.
fn uptime() -> u64 {
    u64::try_from(rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec).unwrap_or_default()
}

impl AsFd for FileLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_is_told_for_whom() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert_eq!(holder(&path), None);
        let held = FileLock::exclusive(&path).unwrap();
        assert!(FileLock::exclusive_within(&path, Duration::from_millis(20)).unwrap().is_none());
        let told = holder(&path).unwrap();
        // A second may begin meanwhile.
        assert!(told.seconds < 60, "{told}");
        let told = Holder { seconds: 3, ..told };
        assert_eq!(told.to_string(), format!("'git-sandbox' by pid {} since 3 s", std::process::id()));
        drop(held);
        assert!(FileLock::exclusive_within(&path, Duration::ZERO).unwrap().is_some());
        // Whatever is in it, it is not printed.
        for text in ["", "merge\n", "\u{1b}]0;x 1 2\n", "merge -1 2\n"] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(holder(&path), None);
        }
    }

    #[test]
    fn a_lock_of_what_was_removed_is_no_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = FileLock::exclusive(&path).unwrap();
        assert!(FileLock::is_held(&path));
        assert!(FileLock::try_exclusive(&path).unwrap().is_none());
        let waiting = {
            let path = path.clone();
            std::thread::spawn(move || FileLock::exclusive(&path).map(|lock| (lock, path)))
        };
        std::thread::sleep(std::time::Duration::from_millis(50));
        std::fs::remove_file(&path).unwrap();
        drop(first);
        // It waited for a file that is gone, and has the lock of the one that is there.
        let (second, path) = waiting.join().unwrap().unwrap();
        assert!(FileLock::is_held(&path));
        drop(second);
        assert!(!FileLock::is_held(&path));
        std::fs::remove_file(&path).unwrap();
        assert!(!FileLock::is_held(&path) && !path.exists(), "asking makes no file");
        std::fs::remove_dir(dir.path()).unwrap();
        assert_eq!(FileLock::exclusive(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
