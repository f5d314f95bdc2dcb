//! A file system that stands still: what was written is on its disk, whole, and nothing more is written.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// `_IOWR('X', 119, int)` and `_IOWR('X', 120, int)` of `linux/fs.h`.
const FIFREEZE: u32 = 0xc004_5877;
const FITHAW: u32 = 0xc004_5878;

fn ioctl(dir: BorrowedFd<'_>, request: u32) -> io::Result<()> {
    // SAFETY: neither request reads or writes memory of ours: the argument is not used.
    match unsafe { libc::ioctl(dir.as_raw_fd(), request as _, 0) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Writes the file system of `dir` out and lets whoever writes to it wait until [`thaw`]. Reading goes on.
///
/// # Errors
/// `EBUSY` if it stands still already, `EOPNOTSUPP` where it cannot, `EPERM` without `CAP_SYS_ADMIN`.
pub fn freeze(dir: impl AsFd) -> io::Result<()> {
    ioctl(dir.as_fd(), FIFREEZE)
}

/// Lets writers go on.
///
/// # Errors
/// `EINVAL` if it does not stand still, `EPERM` without `CAP_SYS_ADMIN`.
pub fn thaw(dir: impl AsFd) -> io::Result<()> {
    ioctl(dir.as_fd(), FITHAW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_stand_still_is_said() {
        // A kernel file system has no disk.
        let proc = std::fs::File::open("/proc").unwrap();
        let known = [libc::EPERM, libc::EOPNOTSUPP];
        assert!(known.contains(&freeze(&proc).unwrap_err().raw_os_error().unwrap()));
        assert!([libc::EPERM, libc::EINVAL].contains(&thaw(&proc).unwrap_err().raw_os_error().unwrap()));
    }
}
