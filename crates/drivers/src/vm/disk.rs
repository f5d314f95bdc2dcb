//! The guest's own disk: a sparse file with an ext4 file system that only guests ever mount.
//!
//! It is made by mke2fs(8) as a file, without root and without a mount, before any guest has seen it. Afterwards
//! nothing on the host looks into it.

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The size of a disk without a limit: what is not written takes no room.
pub const DEFAULT_SIZE: u64 = 64 << 30;

/// Below this a file system has no room for its own journal.
pub const SMALLEST: u64 = 16 << 20;

/// Where distributions have it; it is not on every user's PATH.
const PROGRAMS: &[&str] = &["/usr/sbin/mke2fs", "/sbin/mke2fs", "/usr/bin/mke2fs", "/usr/local/sbin/mke2fs"];

/// How long a machine that was left behind may take to end.
pub const PATIENCE: Duration = Duration::from_secs(75);

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// `mke2fs` is not installed.
    #[error("there is no 'mke2fs' to make the disk with")]
    NoProgram,
    /// It cannot be that small.
    #[error("a disk of {0} bytes is too small: a file system needs {SMALLEST}")]
    TooSmall(u64),
    /// A machine that was left behind still writes it out, or somebody looks at it.
    #[error("the disk '{path}' is in use by a virtual machine that is still ending", path = path.display())]
    Busy {
        /// Where.
        path: PathBuf,
    },
    /// It could not be made or opened.
    #[error("cannot {action} the disk '{path}'", path = path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What was said.
        source: io::Error,
    },
}

/// Where `mke2fs` is.
pub fn program() -> Option<&'static Path> {
    PROGRAMS.iter().map(Path::new).find(|path| path.exists())
}

/// Opens the disk to be written, and makes it first if there is none.
pub fn ensure(path: &Path, size: u64) -> Result<OwnedFd, DiskError> {
    if !path.exists() {
        make(path, size)?;
    }
    open(path, true)
}

/// Opens the disk.
pub fn open(path: &Path, write: bool) -> Result<OwnedFd, DiskError> {
    let file = OpenOptions::new().read(true).write(write).open(path);
    file.map(OwnedFd::from).map_err(|source| DiskError::Io { action: "open", path: path.to_owned(), source })
}

/// Waits until no other machine has the disk. It is had until the last process that has this descriptor ends.
pub fn claim(disk: &OwnedFd, path: &Path, write: bool, patience: Duration) -> Result<(), DiskError> {
    let how = if write { FlockOperation::NonBlockingLockExclusive } else { FlockOperation::NonBlockingLockShared };
    let until = Instant::now() + patience;
    loop {
        match rustix::fs::flock(disk, how) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
            Err(Errno::WOULDBLOCK) => return Err(DiskError::Busy { path: path.to_owned() }),
            Err(error) => {
                return Err(DiskError::Io { action: "lock", path: path.to_owned(), source: error.into() });
            }
        }
    }
}

fn make(path: &Path, size: u64) -> Result<(), DiskError> {
    if size < SMALLEST {
        return Err(DiskError::TooSmall(size));
    }
    let program = program().ok_or(DiskError::NoProgram)?;
    let failed = |source: io::Error| DiskError::Io { action: "make", path: path.to_owned(), source };
    let temporary = path.with_extension("new");
    let result = (|| {
        let mut create = OpenOptions::new();
        let file: File = create.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.set_len(size)?;
        let mut command = Command::new(program);
        // All of it is the user's; the tables of a new sparse file are zero already.
        command.args(["-q", "-F", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1"]);
        let made = command.arg(&temporary).env_clear().stdin(Stdio::null()).output()?;
        if !made.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&made.stderr).trim().to_owned()));
        }
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    result.map_err(|source| {
        let _ = fs::remove_file(&temporary);
        failed(source)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn it_is_made_once_and_takes_no_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        drop(ensure(&path, DEFAULT_SIZE).unwrap());
        let facts = fs::metadata(&path).unwrap();
        assert_eq!(facts.len(), DEFAULT_SIZE);
        assert!(facts.blocks() * 512 < 256 << 20, "{} blocks", facts.blocks());
        let inode = facts.ino();
        drop(ensure(&path, 1 << 30).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
        assert!(ensure(&dir.path().join("small"), SMALLEST).is_ok(), "the smallest");
    }

    #[test]
    fn one_machine_has_it_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let first = ensure(&path, SMALLEST).unwrap();
        claim(&first, &path, true, Duration::ZERO).unwrap();
        let second = open(&path, false).unwrap();
        let error = claim(&second, &path, false, Duration::ZERO).unwrap_err().to_string();
        assert_eq!(error, format!("the disk '{}' is in use by a virtual machine that is still ending", path.display()));
        drop(first);
        claim(&second, &path, false, Duration::ZERO).unwrap();
        claim(&open(&path, false).unwrap(), &path, false, Duration::ZERO).unwrap();
    }

    #[test]
    fn what_cannot_be_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let error = ensure(&dir.path().join("disk"), 1 << 20).unwrap_err().to_string();
        assert_eq!(error, "a disk of 1048576 bytes is too small: a file system needs 16777216");
        let nowhere = dir.path().join("none/disk");
        let error = ensure(&nowhere, 1 << 30).unwrap_err().to_string();
        assert_eq!(error, format!("cannot make the disk '{}'", nowhere.display()));
        let error = open(&nowhere, false).unwrap_err().to_string();
        assert_eq!(error, format!("cannot open the disk '{}'", nowhere.display()));
    }
}
