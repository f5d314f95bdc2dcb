//! The rename of a directory that overlayfs refuses with EXDEV, done entry by entry.
//!
//! Files are *renamed*, never copied: descriptors, locks and inodes of the upper layer stay. The
//! directories themselves are made new. While it runs, the tree's top holds
//!
//! ```text
//! <top>/.gs-rename/
//!   source -> src/app         where it comes from, relative to the top
//!   target -> lib/app         where it goes
//!   new/                      what was moved already
//!
//!   mkdir .gs-rename, source, target, new
//!   ► children of source renamed into new (directories that refuse: the same for them)
//!   ► mode, owner, attributes and times of source put on new
//!   ► new renamed to target         <- from here on it has happened
//!   ► rmdir source, .gs-rename removed
//! ```
//!
//! A fixed name at the top is found at the next start without a scan; links hold the plan because
//! their text is written with the inode, so that no power cut can separate the two. A rename that
//! was cut is undone when `new` is still there (which needs no space on the disk), else finished.

use rustix::fs::{AtFlags, Dir, Mode, OFlags, RenameFlags, ResolveFlags, Stat, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

type Result<T> = std::result::Result<T, Errno>;

/// The reserved name at a tree's top.
pub const RESERVED: &CStr = c".gs-rename";

/// How often stragglers, made in the source while it was moved, are moved after it.
const STRAGGLER_ROUNDS: usize = 8;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What is renamed, by open directories.
#[derive(Debug)]
pub struct Places<'a> {
    /// The tree's top, a mount point.
    pub top: &'a Path,
    /// The directory that holds the source.
    pub old_parent: &'a OwnedFd,
    /// The source's name in it.
    pub old_name: &'a [u8],
    /// The directory that will hold the target.
    pub new_parent: &'a OwnedFd,
    /// The target's name in it.
    pub new_name: &'a [u8],
}

/// Renames a directory within one tree, as `rename(2)` would. The kernel has looked at it before
/// (permissions, loops, types) and refused only the overlay's part. On an error all is as it was.
pub fn rename_directory(places: &Places<'_>, noreplace: bool) -> Result<()> {
    recover(places.top)?;
    let (old_name, new_name) = (OsStr::from_bytes(places.old_name), OsStr::from_bytes(places.new_name));
    let source = open_directory(places.old_parent, old_name)?;
    match open_directory(places.new_parent, new_name) {
        Ok(_) if noreplace => return Err(Errno::EXIST),
        Ok(target) if !entries(&target)?.is_empty() => return Err(Errno::NOTEMPTY),
        Ok(_) | Err(Errno::NOENT) => {}
        // A file, or a link.
        Err(Errno::LOOP) => return Err(Errno::NOTDIR),
        Err(error) => return Err(error),
    }
    let top = open_directory(rustix::fs::CWD, places.top)?;
    let source_path = path_below(places.top, places.old_parent, places.old_name)?;
    let target_path = path_below(places.top, places.new_parent, places.new_name)?;
    // Something of the user's has our name: then it is the overlay's answer.
    rustix::fs::mkdirat(&top, RESERVED, Mode::RWXU).map_err(|e| if e == Errno::EXIST { Errno::XDEV } else { e })?;
    let moved = (|| {
        let reserved = open_directory(&top, RESERVED)?;
        rustix::fs::symlinkat(OsStr::from_bytes(&source_path), &reserved, c"source")?;
        rustix::fs::symlinkat(OsStr::from_bytes(&target_path), &reserved, c"target")?;
        rustix::fs::mkdirat(&reserved, c"new", Mode::RWXU)?;
        let new = open_directory(&reserved, c"new")?;
        let before = rustix::fs::fstat(&source)?;
        fill(&source, &new, &before)?;
        let flags = if noreplace { RenameFlags::NOREPLACE } else { RenameFlags::empty() };
        rustix::fs::renameat_with(&reserved, c"new", places.new_parent, new_name, flags).inspect_err(|_| {
            let _ = put_back(&new, &source, &before);
        })?;
        for _ in 0..STRAGGLER_ROUNDS {
            match rustix::fs::unlinkat(places.old_parent, old_name, AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY) => {}
                _ => break,
            }
            // It has happened: what cannot follow stays where somebody made it.
            if move_all(&source, &new).is_err() {
                break;
            }
        }
        Ok(())
    })();
    clean(&top)?;
    moved
}

/// Undoes or finishes what an earlier life of the agent left in a tree; true when there was something.
pub fn recover(top: &Path) -> Result<bool> {
    let top = open_directory(rustix::fs::CWD, top)?;
    let reserved = match open_directory(&top, RESERVED) {
        Ok(reserved) => reserved,
        Err(Errno::NOENT) => return Ok(false),
        // A file or link of that name is not ours.
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(false),
        Err(error) => return Err(error),
    };
    // Only what we make is touched.
    if entries(&reserved)?.iter().any(|name| !matches!(name.to_bytes(), b"source" | b"target" | b"new")) {
        return Ok(false);
    }
    let source = rustix::fs::readlinkat(&reserved, c"source", Vec::new());
    if let Ok(source) = source {
        match open_directory(&reserved, c"new") {
            Ok(new) => {
                let source = make_below(&top, &source)?;
                let stat = rustix::fs::fstat(&source)?;
                put_back(&new, &source, &stat)?;
            }
            // The target is there: only the empty shell of the source may be left.
            Err(Errno::NOENT) => {
                if let Ok((parent, name)) = parent_below(&top, &source) {
                    let _ = rustix::fs::unlinkat(parent, &name, AtFlags::REMOVEDIR);
                }
            }
            Err(error) => return Err(error),
        }
    }
    drop(reserved);
    clean(&top)?;
    Ok(true)
}

fn clean(top: &OwnedFd) -> Result<()> {
    let reserved = open_directory(top, RESERVED)?;
    // First what could be mistaken for work to do; `new` is empty or gone.
    let _ = rustix::fs::unlinkat(&reserved, c"new", AtFlags::REMOVEDIR);
    for name in [c"target", c"source"] {
        let _ = rustix::fs::unlinkat(&reserved, name, AtFlags::empty());
    }
    rustix::fs::unlinkat(top, RESERVED, AtFlags::REMOVEDIR)
}

fn open_directory(parent: impl AsFd, name: impl rustix::path::Arg) -> Result<OwnedFd> {
    rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())
}

/// Returns the path of a name in an open directory, relative to the tree's top.
fn path_below(top: &Path, parent: &OwnedFd, name: &[u8]) -> Result<Vec<u8>> {
    let link = format!("/proc/self/fd/{}", parent.as_raw_fd());
    let parent = rustix::fs::readlink(link, Vec::new())?.into_bytes();
    let below = Path::new(OsStr::from_bytes(&parent)).strip_prefix(top).map_err(|_| Errno::XDEV)?;
    Ok(below.join(OsStr::from_bytes(name)).into_os_string().into_encoded_bytes())
}

/// Opens the parent of a path that a link in the tree told us: never through links, never out of the tree.
fn parent_below(top: &OwnedFd, path: &CStr) -> Result<(OwnedFd, CString)> {
    let path = Path::new(OsStr::from_bytes(path.to_bytes()));
    let name = path.file_name().ok_or(Errno::INVAL)?;
    let parent = match path.parent().map(Path::as_os_str) {
        None => OsStr::new("."),
        Some(parent) if parent.is_empty() => OsStr::new("."),
        Some(parent) => parent,
    };
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let parent = rustix::fs::openat2(top, parent, DIRECTORY, Mode::empty(), resolve)?;
    Ok((parent, CString::new(name.as_bytes()).map_err(|_| Errno::INVAL)?))
}

fn make_below(top: &OwnedFd, path: &CStr) -> Result<OwnedFd> {
    let (parent, name) = parent_below(top, path)?;
    match rustix::fs::mkdirat(&parent, &name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => open_directory(&parent, &name),
        Err(error) => Err(error),
    }
}

fn entries(directory: &OwnedFd) -> Result<Vec<CString>> {
    let mut names = Vec::new();
    let mut dir = Dir::read_from(directory)?;
    dir.rewind();
    for entry in dir {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

/// Moves all that is in `from` into the new directory `to` and makes `to` like `from` was.
/// On an error everything is back in `from`.
fn fill(from: &OwnedFd, to: &OwnedFd, before: &Stat) -> Result<()> {
    // rename(2) of a directory asks nothing of the right to write in it.
    let mode = Mode::from_raw_mode(before.st_mode);
    if !mode.contains(Mode::RWXU) {
        rustix::fs::fchmod(from, mode | Mode::RWXU)?;
    }
    move_all(from, to).and_then(|()| copy_attributes(from, to, before)).inspect_err(|_| {
        let _ = put_back(to, from, before);
    })
}

fn move_all(from: &OwnedFd, to: &OwnedFd) -> Result<()> {
    // Again until a listing is empty: somebody may add entries meanwhile.
    for _ in 0..STRAGGLER_ROUNDS {
        let names = entries(from)?;
        if names.is_empty() {
            break;
        }
        for name in names {
            match rustix::fs::renameat(from, &name, to, &name) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::XDEV) => move_directory(from, to, &name)?,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

fn move_directory(from: &OwnedFd, to: &OwnedFd, name: &CStr) -> Result<()> {
    let source = open_directory(from, name).map_err(|error| match error {
        // Not a directory: then this EXDEV is a true one (a mount).
        Errno::NOTDIR | Errno::LOOP => Errno::XDEV,
        error => error,
    })?;
    let before = rustix::fs::fstat(&source)?;
    match rustix::fs::mkdirat(to, name, Mode::RWXU) {
        // Made again in the source after it was moved: its entries join the others.
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    let made = open_directory(to, name)?;
    let filled = fill(&source, &made, &before);
    if filled.is_err() {
        let _ = rustix::fs::unlinkat(to, name, AtFlags::REMOVEDIR);
        return filled;
    }
    for _ in 0..STRAGGLER_ROUNDS {
        match rustix::fs::unlinkat(from, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY) => move_all(&source, &made)?,
            other => return other,
        }
    }
    Err(Errno::BUSY)
}

/// Moves all that is in `from` back to where it was, and gives `to` its attributes again.
fn put_back(from: &OwnedFd, to: &OwnedFd, before: &Stat) -> Result<()> {
    // `from` may already be like its source was, read-only perhaps.
    let _ = rustix::fs::fchmod(from, Mode::RWXU);
    for name in entries(from)? {
        match rustix::fs::renameat_with(from, &name, to, &name, RenameFlags::NOREPLACE) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::EXIST | Errno::XDEV) => match (open_directory(from, &name), open_directory(to, &name)) {
                (Ok(inner), Ok(outer)) => {
                    let stat = rustix::fs::fstat(&outer)?;
                    put_back(&inner, &outer, &stat)?;
                    rustix::fs::unlinkat(from, &name, AtFlags::REMOVEDIR)?;
                }
                // Made anew meanwhile: both are kept.
                _ => keep_beside(from, to, &name)?,
            },
            Err(error) => return Err(error),
        }
    }
    rustix::fs::fchmod(to, Mode::from_raw_mode(before.st_mode))?;
    rustix::fs::futimens(to, &times(before))
}

fn keep_beside(from: &OwnedFd, to: &OwnedFd, name: &CStr) -> Result<()> {
    for number in 1..1000 {
        let mut other = name.to_bytes().to_vec();
        other.extend_from_slice(format!("~{number}~").as_bytes());
        match rustix::fs::renameat_with(from, name, to, OsStr::from_bytes(&other), RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            other => return other,
        }
    }
    Err(Errno::EXIST)
}

fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ },
    }
}

fn copy_attributes(from: &OwnedFd, to: &OwnedFd, before: &Stat) -> Result<()> {
    copy_xattrs(from.as_fd(), to.as_fd());
    let gid = rustix::fs::Gid::from_raw(before.st_gid);
    // A foreign group is kept where we may; the owner is ours or the kernel had refused.
    let _ = rustix::fs::fchown(to, None, Some(gid));
    rustix::fs::fchmod(to, Mode::from_raw_mode(before.st_mode))?;
    rustix::fs::futimens(to, &times(before))
}

/// Copies what may be copied: attributes that we may not set were not set by this user either.
fn copy_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
    let mut names = vec![0u8; 4096];
    let Ok(length) = rustix::fs::flistxattr(from, &mut names) else { return };
    let mut value = vec![0u8; 64 * 1024];
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = OsStr::from_bytes(name);
        if let Ok(size) = rustix::fs::fgetxattr(from, name, &mut value) {
            let _ = rustix::fs::fsetxattr(to, name, &value[..size], XattrFlags::empty());
        }
    }
}
