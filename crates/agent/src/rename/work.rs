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
//! Each captured file is copied to the upper layer when it is renamed, and the overlay syncs every
//! copy by itself: one after the other that is 2.7 ms a file. So all are copied up first, by many
//! threads whose syncs the file system joins.
//!
//! A fixed name at the top is found at the next start without a scan; links hold the plan because
//! their text is written with the inode, so that no power cut can separate the two. A rename that
//! was cut is undone when `new` is still there (which needs no space on the disk), else finished.

use super::exchange;
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat, Timespec, Timestamps, XattrFlags,
};
use rustix::io::Errno;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

pub(super) type Result<T> = std::result::Result<T, Errno>;

/// The reserved name at a tree's top.
pub const RESERVED: &CStr = c".gs-rename";

/// How often stragglers, made in the source while it was moved, are moved after it.
pub(super) const STRAGGLER_ROUNDS: usize = 8;

/// How many files are copied up at once: they wait for the disk, not for a processor.
const COPY_UP_THREADS: usize = 16;

/// Deeper trees are not renamed, and a plan that needs more stays: each level is a call of its own, and whoever
/// is inside can make as many as the disk holds.
const MAX_DEPTH: usize = 256;

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
    // While something else is in our way the overlay's own answer stands.
    recover(places.top).map_err(|_| Errno::XDEV)?;
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
        copy_up(&source);
        fill(&source, &new, &before, 0)?;
        let flags = if noreplace { RenameFlags::NOREPLACE } else { RenameFlags::empty() };
        // A directory that its owner may not write cannot leave ours, though it may have kept its parent.
        let mode = Mode::from_raw_mode(before.st_mode);
        rustix::fs::fchmod(&new, mode | Mode::WUSR).inspect_err(|_| {
            let _ = put_back(&new, &source, &before, 0);
        })?;
        rustix::fs::renameat_with(&reserved, c"new", places.new_parent, new_name, flags).inspect_err(|_| {
            let _ = put_back(&new, &source, &before, 0);
        })?;
        let _ = rustix::fs::fchmod(&new, mode);
        for _ in 0..STRAGGLER_ROUNDS {
            match rustix::fs::unlinkat(places.old_parent, old_name, AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY) => {}
                _ => break,
            }
            // It has happened: what cannot follow stays where somebody made it.
            if move_all(&source, &new, 0).is_err() {
                break;
            }
        }
        Ok(())
    })();
    // Whether it was done is the answer; what could not be cleaned the next rename or start looks at.
    let _ = clean(&top);
    moved
}

/// There is something of ours in a tree's top, perhaps.
pub fn may_need_recovery(top: &Path) -> bool {
    top.join(OsStr::from_bytes(RESERVED.to_bytes())).symlink_metadata().is_ok()
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
    let ours = |name: &CString| matches!(name.to_bytes(), b"source" | b"target" | b"new" | b"exchange" | b"other");
    let names = entries(&reserved)?;
    if !names.iter().all(ours) {
        return Ok(false);
    }
    if names.iter().any(|name| **name == *exchange::MARK) {
        exchange::recover(&top, &reserved)?;
        drop(reserved);
        clean(&top)?;
        return Ok(true);
    }
    let source = rustix::fs::readlinkat(&reserved, c"source", Vec::new());
    if let Ok(source) = source {
        match open_directory(&reserved, c"new") {
            Ok(new) => {
                let source = make_below(&top, &source)?;
                let stat = rustix::fs::fstat(&source)?;
                put_back(&new, &source, &stat, 0)?;
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

pub(super) fn clean(top: &OwnedFd) -> Result<()> {
    let reserved = open_directory(top, RESERVED)?;
    // The plan stays as long as there is something to put back.
    for slot in [c"new", exchange::OTHER] {
        match rustix::fs::unlinkat(&reserved, slot, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
    // The mark last: without it, what is left is a plan of the other kind, and one with nothing in it.
    for name in [c"target", c"source", exchange::MARK] {
        let _ = rustix::fs::unlinkat(&reserved, name, AtFlags::empty());
    }
    rustix::fs::unlinkat(top, RESERVED, AtFlags::REMOVEDIR)
}

pub(super) fn open_directory(parent: impl AsFd, name: impl rustix::path::Arg) -> Result<OwnedFd> {
    rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())
}

/// Returns the path of a name in an open directory, relative to the tree's top.
pub(super) fn path_below(top: &Path, parent: &OwnedFd, name: &[u8]) -> Result<Vec<u8>> {
    let link = format!("/proc/self/fd/{}", parent.as_raw_fd());
    let parent = rustix::fs::readlink(link, Vec::new())?.into_bytes();
    let below = Path::new(OsStr::from_bytes(&parent)).strip_prefix(top).map_err(|_| Errno::XDEV)?;
    Ok(below.join(OsStr::from_bytes(name)).into_os_string().into_encoded_bytes())
}

/// Opens the parent of a path that a link in the tree told us: never through links, never out of the tree.
pub(super) fn parent_below(top: &OwnedFd, path: &CStr) -> Result<(OwnedFd, CString)> {
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
pub(super) fn fill(from: &OwnedFd, to: &OwnedFd, before: &Stat, depth: usize) -> Result<()> {
    // rename(2) of a directory asks nothing of the right to write in it.
    let mode = Mode::from_raw_mode(before.st_mode);
    if !mode.contains(Mode::RWXU) {
        rustix::fs::fchmod(from, mode | Mode::RWXU)?;
    }
    move_all(from, to, depth).and_then(|()| copy_attributes(from, to, before)).inspect_err(|_| {
        let _ = put_back(to, from, before, depth);
    })
}

pub(super) fn move_all(from: &OwnedFd, to: &OwnedFd, depth: usize) -> Result<()> {
    // Again until a listing is empty: somebody may add entries meanwhile.
    for _ in 0..STRAGGLER_ROUNDS {
        let names = entries(from)?;
        if names.is_empty() {
            break;
        }
        for name in names {
            match move_entry(from, to, &name, RenameFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::XDEV) => move_directory(from, to, &name, depth)?,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Has the overlay copy up every file below a directory, many at once. What fails here fails again,
/// and is told, when the file is renamed.
pub(super) fn copy_up(source: &OwnedFd) {
    let mut files = Vec::new();
    let mut directories = vec![b".".to_vec()];
    while let Some(directory) = directories.pop() {
        let Ok(opened) = open_directory(source, OsStr::from_bytes(&directory)) else { continue };
        for entry in Dir::read_from(&opened).into_iter().flatten().flatten() {
            let path = [&directory, &b"/"[..], entry.file_name().to_bytes()].concat();
            match entry.file_type() {
                FileType::Directory if !matches!(entry.file_name().to_bytes(), b"." | b"..") => directories.push(path),
                FileType::RegularFile => files.push(path),
                _ => {}
            }
        }
    }
    if files.len() < 2 {
        return;
    }
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            let file = OsStr::from_bytes(file);
            // Setting the times that it has is a change of the file, and so copies it up.
            if let Ok(stat) = rustix::fs::statat(source, file, AtFlags::SYMLINK_NOFOLLOW) {
                let _ = rustix::fs::utimensat(source, file, &times(&stat), AtFlags::SYMLINK_NOFOLLOW);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..COPY_UP_THREADS.min(files.len()) {
            // With fewer threads it takes longer, no more.
            let _ = std::thread::Builder::new().stack_size(64 * 1024).spawn_scoped(scope, work);
        }
        work();
    });
}

/// Renames one entry. A directory that its owner may not write cannot change its parent by
/// itself, though it could as a part of the whole: it is made writable for that moment.
fn move_entry(from: &OwnedFd, to: &OwnedFd, name: &CStr, flags: RenameFlags) -> Result<()> {
    move_as(from, name, to, name, flags)
}

/// The same, under another name.
pub(super) fn move_as(from: &OwnedFd, name: &CStr, to: &OwnedFd, new_name: &CStr, flags: RenameFlags) -> Result<()> {
    match rustix::fs::renameat_with(from, name, to, new_name, flags) {
        Err(Errno::ACCESS) => {}
        other => return other,
    }
    let directory = open_directory(from, name).map_err(|_| Errno::ACCESS)?;
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&directory)?.st_mode);
    if mode.contains(Mode::WUSR) {
        return Err(Errno::ACCESS);
    }
    rustix::fs::fchmod(&directory, mode | Mode::WUSR)?;
    let moved = rustix::fs::renameat_with(from, name, to, new_name, flags);
    rustix::fs::fchmod(&directory, mode)?;
    moved
}

fn move_directory(from: &OwnedFd, to: &OwnedFd, name: &CStr, depth: usize) -> Result<()> {
    if depth >= MAX_DEPTH {
        return Err(Errno::XDEV);
    }
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
    let filled = fill(&source, &made, &before, depth + 1);
    if filled.is_err() {
        let _ = rustix::fs::unlinkat(to, name, AtFlags::REMOVEDIR);
        return filled;
    }
    for _ in 0..STRAGGLER_ROUNDS {
        match rustix::fs::unlinkat(from, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY) => move_all(&source, &made, depth + 1)?,
            other => return other,
        }
    }
    Err(Errno::BUSY)
}

/// Moves all that is in `from` back to where it was, and gives `to` its attributes again.
pub(super) fn put_back(from: &OwnedFd, to: &OwnedFd, before: &Stat, depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Errno::XDEV);
    }
    // `from` may already be like its source was, read-only perhaps.
    let _ = rustix::fs::fchmod(from, Mode::RWXU);
    for name in entries(from)? {
        match move_entry(from, to, &name, RenameFlags::NOREPLACE) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::EXIST | Errno::XDEV) => match (open_directory(from, &name), open_directory(to, &name)) {
                (Ok(inner), Ok(outer)) => {
                    let stat = rustix::fs::fstat(&outer)?;
                    put_back(&inner, &outer, &stat, depth + 1)?;
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::PathBuf;
    use tempfile::TempDir;

    pub(in super::super) struct Tree(TempDir);

    impl Tree {
        /// Makes directories (a slash at the end) and files that hold their own path.
        pub(in super::super) fn of(paths: &[&str]) -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            for path in paths {
                let at = tree.at(path);
                fs::create_dir_all(if path.ends_with('/') { &at } else { at.parent().unwrap() }).unwrap();
                if !path.ends_with('/') {
                    fs::write(at, path).unwrap();
                }
            }
            tree
        }

        pub(in super::super) fn at(&self, path: &str) -> PathBuf {
            self.0.path().join(path)
        }

        pub(in super::super) fn top(&self) -> &Path {
            self.0.path()
        }

        fn rename(&self, old: &str, new: &str, noreplace: bool) -> Result<()> {
            self.with_places(old, new, |places| rename_directory(places, noreplace))
        }

        pub(in super::super) fn exchange(&self, one: &str, two: &str) -> Result<()> {
            self.with_places(one, two, exchange::exchange)
        }

        fn with_places(&self, old: &str, new: &str, act: impl FnOnce(&Places<'_>) -> Result<()>) -> Result<()> {
            let place = |path: &str| {
                let path = self.at(path);
                let parent = open_directory(rustix::fs::CWD, path.parent().unwrap()).unwrap();
                (parent, path.file_name().unwrap().as_bytes().to_vec())
            };
            let ((old_parent, old_name), (new_parent, new_name)) = (place(old), place(new));
            let places = Places {
                top: self.0.path(),
                old_parent: &old_parent,
                old_name: &old_name,
                new_parent: &new_parent,
                new_name: &new_name,
            };
            act(&places)
        }

        /// All files with what is in them, and empty directories.
        pub(in super::super) fn list(&self) -> String {
            fn walk(top: &Path, at: &Path, out: &mut Vec<String>) {
                let mut inner: Vec<_> = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path()).collect();
                inner.sort();
                if inner.is_empty() && at != top {
                    out.push(format!("{}/", at.strip_prefix(top).unwrap().display()));
                }
                for path in inner {
                    let name = path.strip_prefix(top).unwrap().display().to_string();
                    let metadata = path.symlink_metadata().unwrap();
                    if metadata.is_dir() {
                        walk(top, &path, out);
                    } else if metadata.is_symlink() {
                        out.push(format!("{name} -> {}", fs::read_link(&path).unwrap().display()));
                    } else {
                        out.push(format!("{name}: {}", fs::read_to_string(&path).unwrap()));
                    }
                }
            }
            let mut out = Vec::new();
            walk(self.0.path(), self.0.path(), &mut out);
            out.join("\n")
        }
    }

    #[test]
    fn files_keep_their_inodes_and_directories_their_attributes() {
        let tree = Tree::of(&["src/a", "src/deep/er/b", "lib/"]);
        let inode = fs::metadata(tree.at("src/a")).unwrap().ino();
        let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        for path in ["src", "src/deep"] {
            fs::File::open(tree.at(path)).unwrap().set_modified(time).unwrap();
        }
        fs::set_permissions(tree.at("src"), fs::Permissions::from_mode(0o2751)).unwrap();
        tree.rename("src", "lib/app", false).unwrap();
        assert_eq!(tree.list(), "lib/app/a: src/a\nlib/app/deep/er/b: src/deep/er/b");
        let app = fs::metadata(tree.at("lib/app")).unwrap();
        assert_eq!((app.mode() & 0o7777, app.modified().unwrap()), (0o2751, time));
        assert_eq!(fs::metadata(tree.at("lib/app/deep")).unwrap().modified().unwrap(), time);
        assert_eq!(fs::metadata(tree.at("lib/app/a")).unwrap().ino(), inode);
    }

    #[test]
    fn a_directory_without_write_permission_moves_too() {
        let tree = Tree::of(&["src/a"]);
        fs::set_permissions(tree.at("src"), fs::Permissions::from_mode(0o555)).unwrap();
        tree.rename("src", "lib", false).unwrap();
        assert_eq!(fs::metadata(tree.at("lib")).unwrap().mode() & 0o777, 0o555);
        fs::set_permissions(tree.at("lib"), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(tree.list(), "lib/a: src/a");
    }

    #[test]
    fn targets_are_judged_as_by_rename() {
        let tree = Tree::of(&["src/a", "empty/", "full/x", "file"]);
        symlink("empty", tree.at("link")).unwrap();
        let before = tree.list();
        assert_eq!(tree.rename("src", "full", false), Err(Errno::NOTEMPTY));
        assert_eq!(tree.rename("src", "file", false), Err(Errno::NOTDIR));
        assert_eq!(tree.rename("src", "link", false), Err(Errno::NOTDIR));
        assert_eq!(tree.rename("src", "empty", true), Err(Errno::EXIST));
        assert_eq!(tree.rename("gone", "new", false), Err(Errno::NOENT));
        assert_eq!(tree.list(), before);
        tree.rename("src", "empty", false).unwrap();
        assert_eq!(tree.list(), "empty/a: src/a\nfile: file\nfull/x: full/x\nlink -> empty");
    }

    fn cut(tree: &Tree, source: &str) {
        symlink(source, tree.at(".gs-rename/source")).unwrap();
        symlink("lib", tree.at(".gs-rename/target")).unwrap();
    }

    #[test]
    fn a_rename_that_was_cut_is_undone() {
        let tree =
            Tree::of(&["src/a", "src/deep/b", ".gs-rename/new/c", ".gs-rename/new/deep/d", ".gs-rename/new/x/y"]);
        cut(&tree, "src");
        assert_eq!(recover(tree.0.path()), Ok(true));
        let all = "src/a: src/a\nsrc/c: .gs-rename/new/c\nsrc/deep/b: src/deep/b\nsrc/deep/d: .gs-rename/new/deep/d\n\
                   src/x/y: .gs-rename/new/x/y";
        assert_eq!(tree.list(), all);
        assert_eq!(recover(tree.0.path()), Ok(false));
    }

    #[test]
    fn what_was_made_anew_meanwhile_is_kept_beside() {
        let tree = Tree::of(&["src/a", ".gs-rename/new/a"]);
        cut(&tree, "src");
        assert_eq!(recover(tree.0.path()), Ok(true));
        assert_eq!(tree.list(), "src/a: src/a\nsrc/a~1~: .gs-rename/new/a");
    }

    #[test]
    fn a_rename_that_had_happened_is_finished() {
        let tree = Tree::of(&["w/src/", "lib/a", ".gs-rename/"]);
        cut(&tree, "w/src");
        assert_eq!(recover(tree.0.path()), Ok(true));
        assert_eq!(tree.list(), "lib/a: lib/a\nw/");
    }

    #[test]
    fn a_plan_is_kept_as_long_as_it_is_needed() {
        let tree = Tree::of(&[".gs-rename/new/a"]);
        cut(&tree, "gone/src");
        assert_eq!(recover(tree.0.path()), Err(Errno::NOENT));
        assert_eq!(clean(&open_directory(rustix::fs::CWD, tree.0.path()).unwrap()), Err(Errno::NOTEMPTY));
        fs::create_dir(tree.at("gone")).unwrap();
        assert_eq!(recover(tree.0.path()), Ok(true));
        assert_eq!(tree.list(), "gone/src/a: .gs-rename/new/a");
    }

    #[test]
    fn a_start_that_was_cut_is_cleaned() {
        for paths in [&[".gs-rename/"][..], &[".gs-rename/new/"]] {
            let tree = Tree::of(paths);
            assert_eq!(recover(tree.0.path()), Ok(true));
            assert_eq!(tree.list(), "");
        }
    }

    #[test]
    fn entries_of_others_with_our_name_are_left_alone() {
        let tree = Tree::of(&[".gs-rename/notes", "src/a"]);
        let before = tree.list();
        assert_eq!(tree.rename("src", "lib", false), Err(Errno::XDEV));
        assert_eq!(tree.list(), before);
        let tree = Tree::of(&[".gs-rename", "src/a"]);
        assert_eq!(tree.rename("src", "lib", false), Err(Errno::XDEV));
    }

    /// On the stack of a test's thread, 2 MiB; a first process has four times as much.
    #[test]
    fn a_forged_plan_without_end_is_left() {
        let tree = Tree::of(&[".gs-rename/new/", "src/"]);
        cut(&tree, "src");
        for at in ["src", ".gs-rename/new"] {
            let mut dir = open_directory(rustix::fs::CWD, tree.at(at)).unwrap();
            for _ in 0..20_000 {
                rustix::fs::mkdirat(&dir, c"d", Mode::RWXU).unwrap();
                dir = open_directory(&dir, c"d").unwrap();
            }
        }
        assert_eq!(recover(tree.0.path()), Err(Errno::XDEV));
        assert!(tree.at(".gs-rename/source").is_symlink());
        let rest = std::process::Command::new("rm").args(["-rf", "--"]).arg(tree.0.path()).status().unwrap();
        assert!(rest.success());
    }

    #[test]
    fn a_forged_plan_leads_nowhere_else() {
        let tree = Tree::of(&["tree/.gs-rename/new/a", "outside/", "tree/in/"]);
        symlink("../outside", tree.at("tree/link")).unwrap();
        for forged in ["../outside/x", "/etc/x", "link/x", "../outside"] {
            let _ = fs::remove_file(tree.at("tree/.gs-rename/source"));
            symlink(forged, tree.at("tree/.gs-rename/source")).unwrap();
            assert!(recover(&tree.at("tree")).is_err(), "{forged}");
            assert!(tree.at("tree/.gs-rename/new/a").exists());
        }
        assert_eq!(fs::read_dir(tree.at("outside")).unwrap().count(), 0);
    }
}
