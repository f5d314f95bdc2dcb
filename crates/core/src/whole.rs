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
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use sandbox_capture::{CopyStat, MANIFEST, Manifest, ManifestError, Progress, WholeError, WholeRequest};
use sandbox_git::index::{Index, Stat};
use std::fs;
use std::io::{self, Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
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

/// A git directory of a copy has something that the git layer has not, or not so; `harmless` names are
/// passed over in it.
pub fn git_dir_changed(layer: &Path, copy: &Path, harmless: impl Fn(&std::ffi::OsStr) -> bool) -> bool {
    let mut waiting = vec![(layer.to_owned(), copy.to_owned())];
    let mut top = true;
    while let Some((layer, copy)) = waiting.pop() {
        let names = |dir: &Path| -> io::Result<std::collections::BTreeSet<std::ffi::OsString>> {
            let names = fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.file_name()));
            names.filter(|name| !top || !name.as_ref().is_ok_and(|name| harmless(name))).collect()
        };
        let (Ok(was), Ok(now)) = (names(&layer), names(&copy)) else { return true };
        if was != now {
            return true;
        }
        top = false;
        for name in now {
            let (was, now) = (layer.join(&name), copy.join(&name));
            let (Ok(a), Ok(b)) = (fs::symlink_metadata(&was), fs::symlink_metadata(&now)) else { return true };
            if a.file_type() != b.file_type() {
                return true;
            }
            if a.is_dir() {
                waiting.push((was, now));
            } else if a.len() != b.len() || a.modified().ok() != b.modified().ok() {
                return true;
            }
        }
    }
    false
}
