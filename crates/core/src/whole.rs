//! `sandbox.view = copy`: a sandbox's tree as a full copy of its layers, where no overlay can be had.
//!
//! ```text
//!  trees/<n>/upper       all of the tree, mounted as it is
//!  trees/<n>/manifest    the snapshot's manifest with the stat data of this copy
//! ```
//!
//! The index of each git directory in it names inodes of the layers: it gets those of the copy, so that
//! git inside opens no file that it would not open outside. Nothing of the layers is needed to run such a
//! sandbox; they are what its changes are told against.

use crate::launch::TreeView;
use crate::record::{Snapshot, ViewRecord};
use crate::sandbox::Sandbox;
use crate::store::{RepoDir, SandboxDir, StoreError, write_whole};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags, Timespec, Timestamps, openat2, statat, utimensat};
use sandbox_capture::{CopyStat, MANIFEST, Manifest, ManifestError, Progress, WholeError, WholeRequest};
use sandbox_git::index::{Index, Stat};
use sandbox_sys::beneath::open_beneath;
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Indexes larger than this are left as they are, in bytes: git inside then reads every file once.
const LARGEST_INDEX: u64 = 1 << 30;

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A file.
    #[error(transparent)]
    Tree(#[from] WholeError),
    /// The manifest of the snapshot.
    #[error("cannot read what was captured")]
    Manifest(#[from] ManifestError),
    /// The manifest of the copy.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An index.
    #[error("cannot rewrite '{path}'", path = path.display())]
    Index {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

type Result<T> = std::result::Result<T, CopyError>;

/// Returns the manifest that a sandbox's changes are told against.
pub fn manifest(sandbox: &Sandbox, repo: &RepoDir, snapshot: &Snapshot) -> Result<Option<Manifest>> {
    let path = match (sandbox.record.view, snapshot.layers.first()) {
        (TreeView::Copy, _) => sandbox.dir.manifest(sandbox.tree),
        (TreeView::Overlay, Some(top)) => repo.layer(top).join(MANIFEST),
        (TreeView::Overlay, None) => return Ok(None),
    };
    Ok(Some(Manifest::open(&path)?))
}

/// Fills the tree number `n` of a sandbox that is being made with a copy of its snapshot.
pub fn fill(
    repo: &RepoDir,
    snapshot: &Snapshot,
    dir: &SandboxDir,
    n: usize,
    threads: usize,
    progress: &dyn Progress,
) -> Result<()> {
    let layers = crate::assemble::stack(snapshot, |id| repo.layer_tree(id));
    let target = dir.upper(n);
    sandbox_capture::whole(&WholeRequest { layers: &layers, target: &target, threads, progress })?;
    let Some(top) = snapshot.layers.first() else { return Ok(()) };
    let old = Manifest::open(&repo.layer(top).join(MANIFEST))?;
    settle(&old, None, snapshot, dir, n)
}

/// Takes over the manifest of a parent's copy for a child's: what the parent has not changed is unchanged there.
pub fn inherit(parent: &SandboxDir, snapshot: &Snapshot, child: &SandboxDir, n: usize) -> Result<()> {
    let old = Manifest::open(&parent.manifest(n))?;
    settle(&old, Some(&parent.upper(n)), snapshot, child, n)
}

/// Writes the manifest of a copy that is complete, and its indexes.
fn settle(old: &Manifest, before: Option<&Path>, snapshot: &Snapshot, dir: &SandboxDir, n: usize) -> Result<()> {
    let target = dir.upper(n);
    let bytes = sandbox_capture::restated(old, before, &target)?;
    write_whole(&dir.manifest(n), &bytes, false)?;
    let new = Manifest::open(&dir.manifest(n))?;
    for view in &snapshot.git.views {
        let Some(path) = index_of(view, &snapshot.worktree) else { continue };
        restat_index(&target, &path, view, old, &new)
            .map_err(|source| CopyError::Index { path: target.join(path), source })?;
    }
    // What was done later is newer than this file: so the supervisor knows whether anything was. What a child took
    // over from its parent counts as its own.
    let now = Timespec { tv_sec: 0, tv_nsec: if before.is_some() { 0 } else { rustix::fs::UTIME_NOW } };
    let times = Timestamps { last_access: now, last_modification: now };
    // A copy that has no such time is looked at more often.
    let _ = utimensat(rustix::fs::CWD, dir.manifest(n), &times, AtFlags::empty());
    Ok(())
}

/// The index of a repository, relative to the tree.
fn index_of(view: &ViewRecord, worktree: &Path) -> Option<PathBuf> {
    Some(view.inside_gitdir.strip_prefix(worktree).ok()?.join("index"))
}

/// Gives entries that name a file of the old tree the stat data of its copy; the index keeps its own times,
/// which git compares with those of the entries.
fn restat_index(tree: &Path, path: &Path, view: &ViewRecord, old: &Manifest, new: &Manifest) -> io::Result<()> {
    let root = rustix::fs::open(tree, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    // In a fork it is the parent's work: it may be gone, or anything.
    let Ok(file) = openat2(&root, path, flags, Mode::empty(), beneath) else { return Ok(()) };
    let mut file = fs::File::from(file);
    let meta = file.metadata()?;
    let Ok(format) = view.object_format.parse() else { return Ok(()) };
    if !meta.is_file() || meta.len() > LARGEST_INDEX {
        return Ok(());
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let Ok(mut index) = Index::parse(bytes, format) else { return Ok(()) };
    let mut at = view.path.as_os_str().as_bytes().to_vec();
    if !at.is_empty() {
        at.push(b'/');
    }
    let prefix = at.len();
    let mut changed = false;
    for i in 0..index.entries().len() {
        let entry = &index.entries()[i];
        at.truncate(prefix);
        at.extend_from_slice(&entry.path);
        let copy = |manifest: &Manifest| manifest.lookup(&at).and_then(|entry| entry.copy);
        let Some(was) = copy(old).filter(|was| names(&entry.stat, was)) else { continue };
        let Some(now) = copy(new) else { continue };
        if now != was {
            let stat = Stat { ino: now.ino as u32, ctime: (now.ctime.sec as u32, now.ctime.nsec), ..entry.stat };
            index.set_stat(i, stat);
            changed = true;
        }
    }
    if changed {
        let bytes = index.finish();
        file.rewind()?;
        file.set_len(0)?;
        file.write_all(&bytes)?;
        file.set_modified(meta.modified()?)?;
    }
    Ok(())
}

/// An index entry is of this file.
fn names(stat: &Stat, file: &CopyStat) -> bool {
    stat.ino == file.ino as u32 && stat.ctime == (file.ctime.sec as u32, file.ctime.nsec)
}

/// A git directory of a copy, `inside` it at this relative path, has something that the git layer has not, or not
/// so; `harmless` names are passed over in it. Whoever is inside decides what is there: nothing is followed.
pub fn git_dir_changed(
    layer: &Path,
    copy: BorrowedFd<'_>,
    inside: &Path,
    harmless: impl Fn(&std::ffi::OsStr) -> bool,
) -> bool {
    let mut waiting = vec![(layer.to_owned(), inside.to_owned())];
    let mut top = true;
    while let Some((layer, inside)) = waiting.pop() {
        let Ok(dir) = list_beneath(copy, &inside) else { return true };
        let Ok(was) = fs::read_dir(&layer).and_then(Iterator::collect::<io::Result<Vec<_>>>) else { return true };
        let counts = |name: &std::ffi::OsString| !top || !harmless(name);
        let was: BTreeSet<_> = was.into_iter().map(|entry| entry.file_name()).filter(counts).collect();
        let now: BTreeSet<_> = dir.names.into_iter().filter(counts).collect();
        if was != now {
            return true;
        }
        top = false;
        for name in now {
            let (was, now) =
                (fs::symlink_metadata(layer.join(&name)), statat(&dir.fd, &name, AtFlags::SYMLINK_NOFOLLOW));
            let (Ok(was), Ok(now)) = (was, now) else { return true };
            if was.mode() & S_IFMT != now.st_mode & S_IFMT {
                return true;
            }
            if was.is_dir() {
                waiting.push((layer.join(&name), inside.join(&name)));
            } else if was.len() != now.st_size as u64
                || (was.mtime(), was.mtime_nsec() as u64) != (now.st_mtime, now.st_mtime_nsec)
            {
                return true;
            }
        }
    }
    false
}

/// The bits of a mode that are the kind of a file.
const S_IFMT: u32 = 0o170_000;

/// Whether there is anything of this name; no symlink is followed on the way.
pub(crate) fn exists_beneath(root: BorrowedFd<'_>, path: &Path) -> bool {
    open_beneath(root, path.as_os_str().as_bytes(), OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC).is_ok()
}

/// A directory that whoever is inside can change: what it lists, and where it is.
pub(crate) struct Listed {
    pub fd: OwnedFd,
    pub names: Vec<std::ffi::OsString>,
}

/// Lists a directory below `root`; no symlink is followed on the way.
pub(crate) fn list_beneath(root: BorrowedFd<'_>, path: &Path) -> io::Result<Listed> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = open_beneath(root, path.as_os_str().as_bytes(), flags)?;
    let mut names = Vec::new();
    for entry in Dir::read_from(&fd)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(std::ffi::OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(Listed { fd, names })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    /// A link that leads to the very same content is not the directory that was there.
    #[test]
    fn no_link_of_a_sandbox_is_followed() {
        let temp = tempfile::tempdir().unwrap();
        let (layer, copy) = (temp.path().join("layer"), temp.path().join("copy"));
        for dir in ["refs/heads", "info"] {
            fs::create_dir_all(layer.join(dir)).unwrap();
        }
        fs::create_dir(&copy).unwrap();
        let root = || fs::File::open(&copy).unwrap();
        let changed = || git_dir_changed(&layer, root().as_fd(), Path::new(".git"), |_| false);
        for dir in ["refs/heads", "info"] {
            fs::create_dir_all(copy.join(".git").join(dir)).unwrap();
        }
        assert!(!changed());
        fs::remove_dir(copy.join(".git/refs/heads")).unwrap();
        symlink(layer.join("refs/heads"), copy.join(".git/refs/heads")).unwrap();
        assert!(changed());
        fs::remove_dir_all(copy.join(".git")).unwrap();
        symlink(&layer, copy.join(".git")).unwrap();
        assert!(changed());
        assert!(list_beneath(root().as_fd(), Path::new(".git")).is_err());
        assert!(list_beneath(root().as_fd(), Path::new(".git/refs")).is_err());
        assert!(exists_beneath(root().as_fd(), Path::new(".git")));
    }
}
