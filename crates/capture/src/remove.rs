//! Deleting a tree that may be hostile: any depth, any mode, without leaving the filesystem.
//!
//! ```text
//!  top ── a ── b ── … 64 levels … ── deep ── deeper ── …
//!   ▲                                  │
//!   └── deep is renamed up here ◄──────┘      so that no path, stack or number of descriptors grows
//! ```
//!
//! Every step is on one name in an open directory; symlinks are unlinked and never followed; a
//! directory without permissions (an overlay's `work/work`, or one that a guest made so) gets mode
//! 0700 first. A mount point in the tree is an error, and what is mounted there stays as it is.

use crate::paths::{self, LIST};
use rustix::fs::{AtFlags, Mode, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Directories open at once on the way down.
const MAX_OPEN: usize = 64;

/// Deletes `path` and everything below it; a path that does not exist is fine.
///
/// Not atomic: to make a tree vanish at once, rename it to where nobody looks first.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Some(name) = path.file_name() else { return Err(io::ErrorKind::InvalidInput.into()) };
    let parent = match paths::open_root(parent) {
        Ok(parent) => parent,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let name = CString::new(name.as_encoded_bytes())?;
    Ok(remove_at(parent.as_fd(), &name)?)
}

/// Deletes one name in a directory, with everything below it; a name that does not exist is fine.
pub(crate) fn remove_at(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // Linux says EISDIR for directories, others EPERM.
        Err(Errno::ISDIR | Errno::PERM) => {}
        // A directory above it may lack write permission: its owner can give it.
        Err(Errno::ACCESS) => {
            unlock(parent)?;
            match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(Errno::ISDIR | Errno::PERM) => {}
                Err(error) => return Err(error),
            }
        }
        Err(error) => return Err(error),
    }
    let top = match enter(parent, name) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error),
    };
    empty(top.as_fd())?;
    drop(top);
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

/// A directory on the way down.
struct Level {
    fd: OwnedFd,
    /// Its name in the level above; empty for the top.
    name: CString,
    /// Subdirectories that are still to be deleted.
    dirs: Vec<CString>,
}

/// Deletes everything in a directory.
fn empty(top: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut moved = 0u64;
    loop {
        let fd = rustix::fs::openat(top, ".", LIST, Mode::empty())?;
        let dirs = unlink_files(fd.as_fd())?;
        if dirs.is_empty() {
            return Ok(());
        }
        // Deep directories come up to the top while this runs: then it is listed again.
        let mut stack = vec![Level { fd, name: CString::default(), dirs }];
        while let Some(level) = stack.last_mut() {
            let Some(name) = level.dirs.pop() else {
                let done = stack.pop();
                if let (Some(done), Some(above)) = (done, stack.last()) {
                    rustix::fs::unlinkat(&above.fd, &done.name, AtFlags::REMOVEDIR)?;
                }
                continue;
            };
            let fd = match enter(level.fd.as_fd(), &name) {
                Ok(fd) => fd,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error),
            };
            if stack.len() < MAX_OPEN {
                let dirs = unlink_files(fd.as_fd())?;
                stack.push(Level { fd, name, dirs });
            } else if let Some(level) = stack.last() {
                move_up(level.fd.as_fd(), &name, top, &mut moved)?;
            }
        }
    }
}

/// Renames a directory into the top one, under a name that is free.
fn move_up(from: BorrowedFd<'_>, name: &CStr, top: BorrowedFd<'_>, moved: &mut u64) -> Result<(), Errno> {
    loop {
        *moved += 1;
        let free = format!(".deep-{moved}");
        match rustix::fs::renameat_with(from, name, top, free.as_str(), rustix::fs::RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Unlinks all that is no directory; returns the names of the directories.
fn unlink_files(dir: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    paths::list(dir, |name| names.push(name.to_owned()))?;
    let mut dirs = Vec::new();
    for name in names {
        match rustix::fs::unlinkat(dir, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => dirs.push(name),
            Err(error) => {
                // EPERM and EACCES say too little: look.
                match rustix::fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) if crate::stat::kind_of(stat.st_mode) == crate::stat::Kind::Dir => dirs.push(name),
                    _ => return Err(error),
                }
            }
        }
    }
    Ok(dirs)
}

/// Opens a directory for listing and deleting in it, giving it the permissions if needed.
fn enter(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let look = rustix::fs::openat(parent, name, paths::LOOK, Mode::empty())?;
    let stat = rustix::fs::statx(&look, "", AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MODE)?;
    if stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT)
        && stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
    {
        return Err(Errno::BUSY);
    }
    if stat.stx_mode & 0o700 != 0o700 {
        unlock(look.as_fd())?;
    }
    rustix::fs::openat(look.as_fd(), ".", LIST, Mode::empty())
}

/// Sets a directory's mode to 0700. The descriptor may be one that was opened with `O_PATH`, which
/// `fchmod` refuses; its entry in `/proc` names exactly what it refers to.
fn unlock(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    match rustix::fs::fchmod(dir, Mode::RWXU) {
        Err(Errno::BADF) => {
            let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
            rustix::fs::chmod(path.as_str(), Mode::RWXU)
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_a_guest_can_make_is_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("t");
        fs::create_dir_all(top.join("work/work/inner")).unwrap();
        fs::create_dir_all(top.join("ro/sub")).unwrap();
        fs::write(top.join("ro/sub/f"), "x").unwrap();
        fs::write(dir.path().join("outside"), "keep").unwrap();
        std::os::unix::fs::symlink(dir.path(), top.join("ro/up")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, top.join("fifo"), rustix::fs::FileType::Fifo, Mode::empty(), 0).unwrap();
        for (path, mode) in [("work/work", 0), ("ro/sub", 0o555), ("ro", 0o500)] {
            fs::set_permissions(top.join(path), fs::Permissions::from_mode(mode)).unwrap();
        }
        remove_tree(&top).unwrap();
        assert!(!top.exists() && dir.path().join("outside").exists());
        remove_tree(&top).unwrap();
        remove_tree(&dir.path().join("outside")).unwrap();
        assert!(!dir.path().join("outside").exists());
    }

    #[test]
    fn depth_does_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        let mut at = paths::open_root(dir.path()).unwrap();
        for level in 0..3000 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            if level % 100 == 0 {
                rustix::fs::mkdirat(&at, ".deep-1", Mode::RWXU).unwrap();
                rustix::fs::mkdirat(&at, "other", Mode::empty()).unwrap();
            }
            let next = rustix::fs::openat(&at, "d", paths::LIST, Mode::empty()).unwrap();
            if level % 7 == 0 {
                rustix::fs::fchmod(&next, Mode::RWXU).unwrap();
            }
            at = next;
        }
        drop(at);
        remove_tree(&dir.path().join("d")).unwrap();
        remove_tree(&dir.path().join("other")).unwrap();
        remove_tree(&dir.path().join(".deep-1")).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
