//! Whether the state directory can share blocks with the work tree; found out when first asked.

use crate::paths::{self, READ};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

/// The answer, once somebody asked.
#[derive(Debug, Default)]
pub(crate) struct Reflinks(OnceLock<bool>);

impl Reflinks {
    /// Returns whether a file of the work tree can be cloned into `tmp_dir`.
    pub(crate) fn work(&self, root: BorrowedFd<'_>, tmp_dir: &Path) -> bool {
        *self.0.get_or_init(|| probe(root, tmp_dir).unwrap_or(false))
    }
}

/// Returns whether files of this directory can share blocks with one another.
pub fn shares_blocks(dir: &Path) -> bool {
    paths::open_root(dir).is_ok_and(|root| Reflinks::default().work(root.as_fd(), dir))
}

fn probe(root: BorrowedFd<'_>, tmp_dir: &Path) -> Result<bool, Errno> {
    let target = scratch(tmp_dir)?;
    let source = match some_file(root)? {
        Some(file) => file,
        // Nothing to try it with in the top directory: the state directory's own filesystem, if the
        // tree is on the same.
        None => {
            let same = rustix::fs::fstat(root)?.st_dev == rustix::fs::fstat(&target)?.st_dev;
            let file = scratch(tmp_dir)?;
            rustix::io::write(&file, b"x")?;
            if !same {
                return Ok(false);
            }
            file
        }
    };
    Ok(rustix::fs::ioctl_ficlone(&target, &source).is_ok())
}

/// Returns a file without a name.
fn scratch(dir: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(dir, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)
}

/// Returns a readable, non-empty file of a directory.
fn some_file(dir: BorrowedFd<'_>) -> Result<Option<OwnedFd>, Errno> {
    let dir = rustix::fs::openat(dir, ".", paths::LIST, Mode::empty())?;
    let mut names: Vec<CString> = Vec::new();
    paths::list(dir.as_fd(), |name| names.push(name.to_owned()))?;
    Ok(names.into_iter().find_map(|name| {
        let stat = rustix::fs::statat(&dir, &name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let plain = crate::stat::kind_of(stat.st_mode) == crate::stat::Kind::File && stat.st_size > 0;
        plain.then(|| rustix::fs::openat(&dir, &name, READ, Mode::empty()).ok())?
    }))
}
