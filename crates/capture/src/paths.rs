//! Paths relative to a root, and how what they name is opened.

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

pub(crate) use sandbox_sys::beneath::{LOOK, open_beneath};

/// Flags for a directory that is listed.
pub(crate) const LIST: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Flags for a regular file that is read; a FIFO that took its place does not block.
pub(crate) const READ: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC).union(OFlags::NOCTTY);

/// Opens a directory given by an absolute path.
pub(crate) fn open_root(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Returns `dir/name`, or `name` when `dir` is the top.
pub(crate) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(dir.len() + 1 + name.len());
    if !dir.is_empty() {
        path.extend_from_slice(dir);
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// Returns the directory part of a relative path; the top for a single component.
pub(crate) fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|b| *b == b'/').map_or(b"", |cut| &path[..cut])
}

/// Returns the last component.
pub(crate) fn base(path: &[u8]) -> &[u8] {
    path.iter().rposition(|b| *b == b'/').map_or(path, |cut| &path[cut + 1..])
}

/// Returns whether `path` is `dir` or below it.
pub(crate) fn is_below(path: &[u8], dir: &[u8]) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| dir.is_empty() || rest.is_empty() || rest[0] == b'/')
}

/// Returns bytes as a path.
pub(crate) fn to_path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

/// Returns a name for the kernel. Names come from directories, which cannot hold a NUL.
pub(crate) fn name_c(name: &[u8]) -> CString {
    CString::new(name).unwrap_or_default()
}

/// Lists a directory, except `.` and `..`, in the kernel's order.
pub(crate) fn list(dir: BorrowedFd<'_>, mut entry: impl FnMut(&CStr)) -> Result<(), Errno> {
    let mut buffer = Vec::with_capacity(32 * 1024);
    let mut entries = rustix::fs::RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(next) = entries.next() {
        match next {
            Ok(next) => {
                let name = next.file_name();
                if !matches!(name.to_bytes(), b"." | b"..") {
                    entry(name);
                }
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn symlinks_are_not_followed_at_any_component() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        std::fs::write(dir.path().join("real/f"), "x").unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
        let root = open_root(dir.path()).unwrap();
        assert!(open_beneath(root.as_fd(), b"real/f", READ).is_ok());
        assert_eq!(open_beneath(root.as_fd(), b"link/f", READ).unwrap_err(), Errno::NOTDIR);
        assert!(open_beneath(root.as_fd(), b"real/../../x", READ).is_err());
        assert!(open_beneath(root.as_fd(), b"", LIST).is_ok());
    }

    #[test]
    fn paths_longer_than_the_kernel_takes_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let root = open_root(dir.path()).unwrap();
        let mut path = Vec::new();
        for _ in 0..40 {
            let below = open_beneath(root.as_fd(), &path, LOOK).unwrap();
            let name = [b'n'; 200];
            rustix::fs::mkdirat(&below, &name[..], Mode::RWXU).unwrap();
            path = join(&path, &name);
        }
        assert!(path.len() > 8000);
        let deep = open_beneath(root.as_fd(), &path, LIST).unwrap();
        let mut names = 0;
        list(deep.as_fd(), |_| names += 1).unwrap();
        assert_eq!(names, 0);
        crate::remove_tree(dir.path()).unwrap();
        std::fs::create_dir(dir.path()).unwrap();
    }

    #[test]
    fn paths_are_taken_apart() {
        assert_eq!((parent(b"a/b/c"), base(b"a/b/c")), (&b"a/b"[..], &b"c"[..]));
        assert_eq!((parent(b"a"), base(b"a")), (&b""[..], &b"a"[..]));
        assert!(is_below(b"a/b", b"a") && is_below(b"a", b"a") && is_below(b"x", b"") && !is_below(b"ab", b"a"));
    }
}
