//! What a sandbox changed: its upper directory against the captured state.
//!
//! Only the upper directory is walked, so the cost is that of the changes and not of the tree:
//!
//! | in the upper directory | means |
//! |---|---|
//! | file, symlink | added, modified, or copied up and equal |
//! | character device 0:0; empty file with `user.overlay.whiteout` | deleted |
//! | directory with `user.overlay.opaque` = `y` | everything captured there and not in it is deleted |
//! | other directory | look inside |
//!
//! A whole copy of the stack ([`whole_changes`]) has no such marks: all of it is walked, what is not there is
//! deleted, and a file that still has the inode and change time that its manifest names is not read.
//!
//! What is equal in content, mode and size is no change, whatever its times: a file that was touched,
//! or opened for writing and left alone. Directories are not counted, as in git; entries named `.git`
//! are not looked at.
//!
//! The upper directory is the sandbox's: nothing in it is followed, waited for or changed. A directory
//! that may not be read is a change by itself.

use crate::layer::same_bytes;
use crate::manifest::{Entry, Manifest, TREE};
use crate::paths::{self, LIST, LOOK, READ, join, open_beneath, to_path};
use crate::stat::{Kind, Stat};
use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;
use std::collections::{BTreeSet, HashMap};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Deeper directories are not entered but named: opening them takes a walk from the top each time.
const MAX_DEPTH: usize = 5000;

/// One difference from the captured state.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// Path relative to the tree's top. Its bytes are the sandbox's choice: escape before printing.
    pub path: PathBuf,
    /// What happened to it.
    pub kind: ChangeKind,
    /// Its size now, or 0.
    pub size: u64,
}

/// How a path differs from the captured state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// It was not captured.
    Added,
    /// Content, mode or type is another.
    Modified,
    /// It is gone.
    Deleted,
    /// It cannot be read, so it counts as changed.
    Unreadable,
}

/// Why the changes could not be listed.
#[derive(Debug, thiserror::Error)]
#[error("cannot read '{path}'", path = path.display())]
pub struct ChangesError {
    /// The directory or file in the upper directory.
    pub path: PathBuf,
    /// What the kernel said.
    pub source: io::Error,
}

/// Lists what an overlay's upper directory changed, sorted by path.
///
/// `manifest` describes the stack that the sandbox stands on, whose layers are in `layers_dir`. An
/// upper directory that does not exist has changed nothing.
pub fn changes(upper: &Path, layers_dir: &Path, manifest: &Manifest) -> Result<Vec<Change>, ChangesError> {
    list(upper, layers_dir, manifest, false)
}

/// Lists what changed in a whole copy of a stack, sorted by path. `manifest` is the stack's with the stat data
/// of the copy ([`crate::restated`]).
pub fn whole_changes(tree: &Path, layers_dir: &Path, manifest: &Manifest) -> Result<Vec<Change>, ChangesError> {
    list(tree, layers_dir, manifest, true)
}

fn list(upper: &Path, layers_dir: &Path, manifest: &Manifest, whole: bool) -> Result<Vec<Change>, ChangesError> {
    let error = |errno: Errno| ChangesError { path: upper.to_owned(), source: errno.into() };
    let root = match rustix::fs::open(upper, LOOK, Mode::empty()) {
        Ok(root) => root,
        Err(Errno::NOENT) => return Ok(Vec::new()),
        Err(errno) => return Err(error(errno)),
    };
    let mut walk = Walker {
        upper,
        root: root.as_fd(),
        layers_dir,
        manifest,
        layers: HashMap::new(),
        changes: Vec::new(),
        // Nothing shines through anywhere.
        waiting: vec![Dir { path: Vec::new(), depth: 0, known: Some(0), opaque: whole }],
        whole,
    };
    while let Some(dir) = walk.waiting.pop() {
        walk.dir(dir)?;
    }
    walk.changes.sort();
    walk.changes.dedup();
    Ok(walk.changes)
}

/// Lists the directories of an overlay's upper directory, but its top, that have an entry named `.git` of
/// their own: repositories that were made or written to inside. `true` beside it: the entry is a directory, else
/// a file that names one. Sorted; what may not be read is passed over.
pub fn repositories(upper: &Path) -> Result<Vec<(PathBuf, bool)>, ChangesError> {
    let error = |path: &[u8], errno: Errno| ChangesError { path: upper.join(to_path(path)), source: errno.into() };
    let root = match rustix::fs::open(upper, LOOK, Mode::empty()) {
        Ok(root) => root,
        Err(Errno::NOENT) => return Ok(Vec::new()),
        Err(errno) => return Err(error(b"", errno)),
    };
    let mut found = Vec::new();
    let mut waiting: Vec<(Vec<u8>, usize)> = vec![(Vec::new(), 0)];
    while let Some((dir, depth)) = waiting.pop() {
        let mut names: Vec<CString> = Vec::new();
        let listed = open_beneath(root.as_fd(), &dir, LIST).and_then(|fd| {
            paths::list(fd.as_fd(), |name| names.push(name.to_owned()))?;
            Ok(fd)
        });
        let fd = match listed {
            Ok(fd) => fd,
            Err(Errno::ACCESS | Errno::PERM | Errno::NOENT | Errno::NOTDIR) => continue,
            Err(errno) => return Err(error(&dir, errno)),
        };
        for name in names {
            let Ok(stat) = rustix::fs::statat(&fd, &name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
            if name.as_bytes() == b".git" {
                // Anything but a whiteout; a link to a directory is a repository for git too.
                if !dir.is_empty() && kind != rustix::fs::FileType::CharacterDevice {
                    found.push((to_path(&dir).to_owned(), kind == rustix::fs::FileType::Directory));
                }
            } else if kind == rustix::fs::FileType::Directory && depth < MAX_DEPTH {
                waiting.push((join(&dir, name.as_bytes()), depth + 1));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// A directory of the upper directory that is still to be read.
struct Dir {
    path: Vec<u8>,
    depth: usize,
    /// The captured directory of the same path.
    known: Option<u32>,
    /// Nothing captured shines through here, because of a directory above.
    opaque: bool,
}

struct Walker<'a> {
    upper: &'a Path,
    root: BorrowedFd<'a>,
    layers_dir: &'a Path,
    manifest: &'a Manifest,
    /// It is a copy of the stack and not an overlay's upper directory.
    whole: bool,
    /// Trees of layers, opened when first needed.
    layers: HashMap<String, Option<OwnedFd>>,
    changes: Vec<Change>,
    waiting: Vec<Dir>,
}

impl Walker<'_> {
    fn dir(&mut self, dir: Dir) -> Result<(), ChangesError> {
        let mut names: Vec<CString> = Vec::new();
        let listed = open_beneath(self.root, &dir.path, LIST).and_then(|fd| {
            paths::list(fd.as_fd(), |name| names.push(name.to_owned()))?;
            Ok(fd)
        });
        let fd = match listed {
            Ok(fd) => fd,
            Err(Errno::ACCESS | Errno::PERM) => {
                self.add(&dir.path, ChangeKind::Unreadable, 0);
                return Ok(());
            }
            // A live sandbox goes on while we look.
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(errno) => return Err(self.error(&dir.path, errno)),
        };
        let opaque = dir.opaque || is_opaque(fd.as_fd());
        if let (true, Some(known)) = (opaque, dir.known) {
            let here: BTreeSet<&[u8]> = names.iter().map(|name| name.as_bytes()).collect();
            let record = self.manifest.dir(known);
            for index in record.first..record.first + record.count {
                let raw = self.manifest.raw(index);
                if !here.contains(raw.name()) {
                    self.gone(&join(&dir.path, raw.name()));
                }
            }
        }
        for name in names.iter().filter(|name| name.as_bytes() != b".git") {
            let stat = match rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(Errno::ACCESS) => {
                    self.add(&join(&dir.path, name.as_bytes()), ChangeKind::Unreadable, 0);
                    continue;
                }
                Err(errno) => return Err(self.error(&join(&dir.path, name.as_bytes()), errno)),
            };
            self.entry(&dir, fd.as_fd(), name, &stat, opaque);
        }
        Ok(())
    }

    fn entry(&mut self, dir: &Dir, fd: BorrowedFd<'_>, name: &CStr, stat: &rustix::fs::Stat, opaque: bool) {
        let path = join(&dir.path, name.to_bytes());
        let index = dir.known.and_then(|known| self.manifest.find_in(known, name.to_bytes()));
        let captured = index.map(|index| self.manifest.raw(index)).filter(|raw| raw.flags().reason().is_none());
        let device = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::CharacterDevice;
        if device && stat.st_rdev == 0 && !self.whole {
            return self.gone(&path);
        }
        let now = Stat::from_kernel(stat);
        if now.kind() == Kind::Dir {
            let known = captured.and_then(|raw| raw.child());
            if captured.is_some() && known.is_none() {
                self.gone(&path);
            }
            if dir.depth >= MAX_DEPTH {
                return self.add(&path, ChangeKind::Unreadable, 0);
            }
            return self.waiting.push(Dir { path, depth: dir.depth + 1, known, opaque });
        }
        if !self.whole && now.kind() == Kind::File && now.size == 0 && has_xattr(fd, name, c"user.overlay.whiteout") {
            return self.gone(&path);
        }
        match captured {
            None => self.add(&path, ChangeKind::Added, now.size),
            Some(raw) if raw.child().is_some() => {
                self.gone(&path);
                self.add(&path, ChangeKind::Added, now.size);
            }
            Some(raw) => {
                let captured = raw.entry();
                match self.same(fd, name, &path, &now, &captured) {
                    Ok(true) => {}
                    Ok(false) => self.add(&path, ChangeKind::Modified, now.size),
                    Err(_) => self.add(&path, ChangeKind::Unreadable, now.size),
                }
            }
        }
    }

    /// Returns whether a file or symlink is what was captured at this path, times aside.
    fn same(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        path: &[u8],
        now: &Stat,
        captured: &Entry<'_>,
    ) -> Result<bool, Errno> {
        if now.kind() != captured.kind() || now.size != captured.stat.size {
            return Ok(false);
        }
        let untouched = captured.copy.is_some_and(|copy| (copy.ino, copy.ctime) == (now.ino, now.ctime));
        if self.whole && untouched && !now.racy(self.manifest.scanned()) {
            return Ok(true);
        }
        let Some(tree) = captured.layer.and_then(|layer| self.layer(layer)) else { return Ok(false) };
        match now.kind() {
            Kind::Symlink => {
                let layer_dir = open_beneath(tree, paths::parent(path), LOOK)?;
                let (ours, theirs) = (
                    rustix::fs::readlinkat(dir, name, Vec::new())?,
                    rustix::fs::readlinkat(layer_dir, name, Vec::new())?,
                );
                Ok(ours == theirs)
            }
            Kind::File => {
                if now.mode & 0o7777 != captured.mode() {
                    return Ok(false);
                }
                let theirs = open_beneath(tree, path, READ)?;
                let ours = rustix::fs::openat(dir, name, READ, Mode::empty())?;
                // The name may be another thing by now: only what was opened counts.
                let opened = Stat::from_kernel(&rustix::fs::fstat(&ours)?);
                Ok(opened.kind() == Kind::File && same_bytes(ours.as_fd(), theirs.as_fd())?)
            }
            Kind::Dir | Kind::Special => Ok(false),
        }
    }

    fn layer(&mut self, id: &str) -> Option<BorrowedFd<'_>> {
        if !self.layers.contains_key(id) {
            let tree = rustix::fs::open(self.layers_dir.join(id).join(TREE), LOOK, Mode::empty()).ok();
            self.layers.insert(id.to_owned(), tree);
        }
        self.layers.get(id)?.as_ref().map(AsFd::as_fd)
    }

    /// Notes that a captured path is gone, with every file below it.
    fn gone(&mut self, path: &[u8]) {
        let Some(entry) = self.manifest.lookup(path).filter(|entry| entry.left_out.is_none()) else { return };
        if entry.kind() != Kind::Dir {
            return self.add(path, ChangeKind::Deleted, 0);
        }
        let below = self.manifest.walk(path);
        let files = below.filter(|(_, entry)| entry.left_out.is_none() && entry.kind() != Kind::Dir);
        self.changes.extend(files.map(|(path, _)| Change { path: to_path(&path), kind: ChangeKind::Deleted, size: 0 }));
    }

    fn add(&mut self, path: &[u8], kind: ChangeKind, size: u64) {
        self.changes.push(Change { path: to_path(path), kind, size });
    }

    fn error(&self, path: &[u8], errno: Errno) -> ChangesError {
        ChangesError { path: self.upper.join(to_path(path)), source: errno.into() }
    }
}

fn is_opaque(dir: BorrowedFd<'_>) -> bool {
    let mut value = [0u8; 4];
    // `trusted.*` is what a mount as real root or in a guest writes; only root can read it.
    [c"user.overlay.opaque", c"trusted.overlay.opaque"]
        .into_iter()
        .any(|name| rustix::fs::fgetxattr(dir, name, &mut value[..]).is_ok_and(|len| value[..len] == *b"y"))
}

fn has_xattr(dir: BorrowedFd<'_>, name: &CStr, attribute: &CStr) -> bool {
    let mut value = [0u8; 4];
    rustix::fs::openat(dir, name, READ, Mode::empty())
        .is_ok_and(|file| rustix::fs::fgetxattr(&file, attribute, &mut value[..]).is_ok())
}
