//! Copying what a virtual machine writes: its disk, as one file, while nothing is written to it.
//!
//! ```text
//!   live:     the guest's kernel lets the file system stand still ─► copy ─► it goes on
//!   stopped:  nobody has the disk, or whoever was left behind has ended ─► copy
//! ```
//! The copy shares its blocks with the disk where the file system can do that. What is in it is not looked at.

use super::{ENDING, ForkError, Hold, Result, io};
use crate::connection::{Connection, ConnectionError};
use crate::sandbox::Sandbox;
use crate::store::SandboxDir;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use sandbox_capture::TwinError;
use sandbox_protocol::Message;
use sandbox_sys::copy::Copier;
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// What is to be told of it.
pub(super) struct Copied {
    /// Bytes of it that are not holes.
    pub bytes: u64,
    /// As [`super::Told::frozen`].
    pub frozen: Option<bool>,
    /// As [`super::Told::locked`].
    pub locked: Option<String>,
}

/// Copies the parent's disk into `dir`; one that was never started has none.
pub(super) fn copy(parent: &Sandbox, dir: &SandboxDir, hold: &mut Hold<'_>) -> Result<Copied> {
    let (from, to) = (parent.dir.disk(), dir.disk());
    let disk = match File::open(&from) {
        Ok(disk) => disk,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Ok(Copied { bytes: 0, frozen: None, locked: None });
        }
        Err(error) => return Err(io("open", &from)(error)),
    };
    match hold {
        Hold::Stopped(_) | Hold::Still => {
            claim(parent, &disk, &from)?;
            Ok(Copied { bytes: copy_file(parent, &disk, &from, &to)?, frozen: None, locked: None })
        }
        Hold::Live(connection) => {
            let locked = stand_still(parent, connection)?;
            let done = copy_file(parent, &disk, &from, &to);
            super::thaw(parent, connection, Some(true))?;
            Ok(Copied { bytes: done?, frozen: Some(true), locked })
        }
    }
}

/// Returns the lock of a git command that does not end.
fn stand_still(parent: &Sandbox, connection: &mut Connection) -> Result<Option<String>> {
    match connection.ask(&Message::Freeze, 1 << 16) {
        Ok((Message::Frozen { locked }, _)) => Ok(Some(locked)),
        Ok(_) => Ok(None),
        Err(source @ ConnectionError::Refused(_)) => Err(ForkError::NotHeld { name: parent.name().to_owned(), source }),
        Err(source) => Err(ForkError::Ended { name: parent.name().to_owned(), source }),
    }
}

/// Waits until no machine writes to the disk. It is had as long as the file is open.
fn claim(parent: &Sandbox, disk: &File, path: &Path) -> Result<()> {
    let until = Instant::now() + ENDING;
    loop {
        match rustix::fs::flock(disk, FlockOperation::NonBlockingLockShared) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
            Err(Errno::WOULDBLOCK) => return Err(ForkError::DiskBusy { name: parent.name().to_owned() }),
            Err(error) => return Err(io("lock", path)(error.into())),
        }
    }
}

fn copy_file(parent: &Sandbox, disk: &File, from: &Path, to: &Path) -> Result<u64> {
    let copied = || -> std::io::Result<u64> {
        let target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
        let facts = disk.metadata()?;
        Copier::new().copy(disk.as_fd(), target.as_fd(), facts.len(), facts.blocks(), facts.dev())?;
        // A hole at its end, and a disk without any other.
        target.set_len(facts.len())?;
        Ok(target.metadata()?.blocks() * 512)
    };
    copied().map_err(|source| ForkError::Copy {
        name: parent.name().to_owned(),
        source: TwinError { path: from.to_owned(), source },
    })
}
