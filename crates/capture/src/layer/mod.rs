//! Building a layer from what scans found.
//!
//! ```text
//!  tmp/<id>/tree/       directories at once, with mode 0700
//!                       files by all threads, directory by directory
//!                       further names of one file as hard links
//!                       whiteouts (character device 0:0) for what the stack below has and the host has not
//!                       at last the directories' modes and times
//!  tmp/<id>/manifest
//!        │ rename
//!        ▼
//!  layers/<id>/
//! ```
//!
//! A layer holds what every mount reads alike: files, directories, symlinks, whiteouts, and no
//! attribute of the overlay. So a directory that was replaced is one whiteout per vanished name. A
//! whiteout is made only where the stack below shows an entry: in a directory that no lower layer
//! has, it would show as a device.
//!
//! A capture works in rounds: each takes a scan's result ([`plan`] decides, [`Build::round`] does),
//! brings the layer up to date and yields the manifest that the next scan compares with.

mod assemble;
mod attributes;
mod depth;
mod entry;
mod fold;
mod jobs;
mod ops;
mod plan;
mod round;
mod settled;

pub(crate) use depth::{Depth, Gone};
pub(crate) use entry::same_bytes;

use crate::manifest::{MANIFEST, Manifest, TREE};
use crate::paths::{self, LOOK, name_c, open_beneath, to_path};
use crate::remove::{remove_at, remove_tree};
use crate::request::{CaptureError, CaptureRequest, Stats};
use crate::stat::Kind;
use attributes::{Attributes, Pairs};
use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid};
use rustix::io::Errno;
use sandbox_sys::copy::Copier;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A layer in the making.
pub(crate) struct Build<'a> {
    request: &'a CaptureRequest<'a>,
    /// The host's top directory.
    root: BorrowedFd<'a>,
    /// Trees of the previous stack, lowermost first.
    stack: &'a [OwnedFd],
    /// What is visible below the new layer; `None` for a base.
    below: Option<&'a Manifest>,
    /// Ids of the layers below and of the new one, lowermost first.
    layers: Vec<String>,
    settings: u64,
    copier: &'a Copier,
    /// The half-made layer, once there is something to put into it.
    out: Option<Out>,
    /// Directories that are in the new layer.
    made: BTreeSet<Vec<u8>>,
    /// Extended attributes of those that have any; set at last, like the modes.
    attributes: BTreeMap<Vec<u8>, Attributes>,
    /// Directories of which the last round knows only a part: something in them was gone when it was to be read. Their
    /// own times need not tell, when it was one above them that moved.
    doubted: BTreeSet<Vec<u8>>,
    pub(crate) stats: Stats,
}

/// The half-made layer on disk; deleted with the value unless it was moved to its place.
struct Out {
    dir: PathBuf,
    tree: OwnedFd,
    published: bool,
}

impl Drop for Out {
    fn drop(&mut self) {
        if !self.published {
            // Nothing can be done about an error here: the state directory's sweep comes by later.
            let _ = remove_tree(&self.dir);
        }
    }
}

impl<'a> Build<'a> {
    /// Prepares a layer on top of `below` (whose trees are `stack`); nothing is written yet.
    pub(crate) fn new(
        request: &'a CaptureRequest<'a>,
        root: BorrowedFd<'a>,
        stack: &'a [OwnedFd],
        below: Option<&'a Manifest>,
        settings: u64,
        copier: &'a Copier,
    ) -> Self {
        let mut layers = below.map(|below| below.layers_up().to_vec()).unwrap_or_default();
        layers.push(request.new_layer_id.to_owned());
        Self {
            request,
            root,
            stack,
            below,
            layers,
            settings,
            copier,
            out: None,
            made: BTreeSet::new(),
            attributes: BTreeMap::new(),
            doubted: BTreeSet::new(),
            stats: Stats::default(),
        }
    }

    /// Returns the new layer's index.
    fn layer(&self) -> u16 {
        (self.layers.len() - 1) as u16
    }

    /// Returns whether anything was put into the layer.
    pub(crate) fn started(&self) -> bool {
        self.out.is_some()
    }

    /// Makes the directory that the layer is built in.
    fn start(&mut self) -> Result<(), CaptureError> {
        if self.out.is_some() {
            return Ok(());
        }
        let dir = self.request.tmp_dir.join(self.request.new_layer_id);
        let io = |errno: Errno| CaptureError::io("create", &dir)(errno.into());
        let mode = Mode::RWXU;
        rustix::fs::mkdir(&dir, mode).map_err(io)?;
        // From here on a failure deletes it again.
        let tree = dir.join(TREE);
        let made = rustix::fs::mkdir(&tree, mode).and_then(|()| paths::open_root(&tree));
        match made {
            Ok(tree) => {
                self.out = Some(Out { dir, tree, published: false });
                self.made.insert(Vec::new());
                Ok(())
            }
            Err(errno) => {
                let _ = remove_tree(&dir);
                Err(io(errno))
            }
        }
    }

    fn tree(&self) -> Result<BorrowedFd<'_>, CaptureError> {
        match &self.out {
            Some(out) => Ok(out.tree.as_fd()),
            None => Err(CaptureError::io("read", self.request.tmp_dir)(std::io::ErrorKind::NotFound.into())),
        }
    }

    /// Returns the tree that holds the copies of a layer, by index.
    fn tree_of(&self, layer: u16) -> Option<BorrowedFd<'_>> {
        if layer == self.layer() {
            return self.out.as_ref().map(|out| out.tree.as_fd());
        }
        self.stack.get(usize::from(layer)).map(AsFd::as_fd)
    }

    fn layer_error(&self, action: &'static str, path: &[u8], errno: Errno) -> CaptureError {
        let dir = self.out.as_ref().map_or(self.request.tmp_dir, |out| out.dir.as_path());
        CaptureError::io(action, dir.join(TREE).join(to_path(path)))(errno.into())
    }

    fn host_error(&self, path: &[u8], errno: Errno) -> CaptureError {
        CaptureError::io("read", self.request.root.join(to_path(path)))(errno.into())
    }

    /// Makes a directory and those above it in the layer, for now with mode 0700.
    fn make_dir(&mut self, path: &[u8]) -> Result<(), CaptureError> {
        if self.made.contains(path) {
            return Ok(());
        }
        // Not by recursion: trees can be deeper than the stack.
        let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at).chain([path.len()]);
        for end in ends {
            let dir = &path[..end];
            if self.made.contains(dir) {
                continue;
            }
            self.make_one(dir).map_err(|errno| self.layer_error("create", dir, errno))?;
            self.made.insert(dir.to_vec());
            self.read_attributes(&path[..end]);
        }
        Ok(())
    }

    /// Takes note of a directory's extended attributes. Those that are set after this have moved its
    /// ctime, and the next scan finds that.
    fn read_attributes(&mut self, path: &[u8]) {
        // The top directory is not the layer's business; one that may not be opened has none.
        let opened = if path.is_empty() { None } else { open_beneath(self.root, path, paths::LIST).ok() };
        match opened.map(|dir| Attributes::of(dir.as_fd(), entry::ids(self.request.owner))) {
            Some(attributes) if !attributes.is_empty() || attributes.lessened => {
                self.attributes.insert(path.to_vec(), attributes);
            }
            _ => drop(self.attributes.remove(path)),
        }
    }

    /// Returns whether a directory of the new layer has fewer rights there than on the host.
    fn lessens(&self, path: impl FnOnce() -> Vec<u8>) -> bool {
        // Nearly no tree has any: no path is put together for nothing.
        !self.attributes.is_empty() && self.attributes.get(&path()).is_some_and(|attributes| attributes.lessened)
    }

    /// Returns whether a directory must be listed again, whatever its times say.
    fn doubts(&self, path: impl FnOnce() -> Vec<u8>) -> bool {
        !self.doubted.is_empty() && self.doubted.contains(&path())
    }

    fn make_one(&self, path: &[u8]) -> Result<(), Errno> {
        let tree = self.tree().map_err(|_| Errno::NOENT)?;
        let parent = open_beneath(tree, paths::parent(path), LOOK)?;
        let name = name_c(paths::base(path));
        match rustix::fs::mkdirat(&parent, &name, Mode::RWXU) {
            Err(Errno::EXIST) => {
                // A file or a whiteout of an earlier round.
                remove_at(parent.as_fd(), &name)?;
                rustix::fs::mkdirat(&parent, &name, Mode::RWXU)
            }
            made => made,
        }
    }

    /// Takes a name out of the layer, with all below it.
    fn take_out(&mut self, path: &[u8]) -> Result<(), CaptureError> {
        let removed = self.made.contains(paths::parent(path)).then(|| {
            let tree = self.tree().map_err(|_| Errno::NOENT)?;
            let parent = open_beneath(tree, paths::parent(path), LOOK)?;
            remove_at(parent.as_fd(), &name_c(paths::base(path)))
        });
        if let Some(Err(errno)) = removed {
            return Err(self.layer_error("remove", path, errno));
        }
        self.made.remove(path);
        let mut inside = path.to_vec();
        inside.push(b'/');
        let gone: Vec<_> =
            self.made.range(inside.clone()..).take_while(|dir| dir.starts_with(&inside)).cloned().collect();
        for dir in gone {
            self.made.remove(&dir);
        }
        Ok(())
    }

    /// Hides a name of the stack below.
    fn white_out(&mut self, path: &[u8]) -> Result<(), CaptureError> {
        self.make_dir(paths::parent(path))?;
        let make = || {
            let parent = open_beneath(self.tree().map_err(|_| Errno::NOENT)?, paths::parent(path), LOOK)?;
            let name = name_c(paths::base(path));
            let node = || rustix::fs::mknodat(&parent, &name, FileType::CharacterDevice, Mode::empty(), 0);
            if node() == Err(Errno::EXIST) {
                remove_at(parent.as_fd(), &name)?;
                node()?;
            }
            // Overlayfs refuses one, or takes it and then hides it.
            match rustix::fs::statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(_) => self.own(&parent, &name),
                Err(Errno::NOENT) => Err(Errno::OPNOTSUPP),
                Err(errno) => Err(errno),
            }
        };
        make().map_err(|errno| match self.layer_error("create", path, errno) {
            CaptureError::Io { path, source, .. } if matches!(errno, Errno::PERM | Errno::OPNOTSUPP) => {
                CaptureError::Whiteout { path, source }
            }
            error => error,
        })?;
        self.stats.deleted += 1;
        Ok(())
    }

    /// Gives a name of the layer to its owner.
    fn own(&self, dir: &impl AsFd, name: &std::ffi::CStr) -> Result<(), Errno> {
        match self.request.owner {
            Some((uid, gid)) => rustix::fs::chownat(
                dir,
                name,
                Some(Uid::from_raw(uid)),
                Some(Gid::from_raw(gid)),
                AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH,
            ),
            None => Ok(()),
        }
    }

    /// Returns whether the stack below shows something at a path.
    pub(super) fn shows(&self, path: &[u8]) -> bool {
        self.below.and_then(|below| below.lookup(path)).is_some_and(|entry| entry.left_out.is_none())
    }

    /// Gives the layer its last touches and moves it to its place.
    pub(crate) fn publish(mut self, manifest: &Manifest) -> Result<Stats, CaptureError> {
        // Below before above: a directory that gets mode 0000 cannot be entered any more.
        for path in self.made.iter().rev() {
            let Some(entry) = manifest.lookup(path).filter(|entry| entry.kind() == Kind::Dir) else { continue };
            let finish = || {
                let dir = open_beneath(self.tree().map_err(|_| Errno::NOENT)?, path, paths::LIST)?;
                self.own(&dir, c"")?;
                rustix::fs::fchmod(&dir, Mode::from_raw_mode(entry.mode()))?;
                let attributes = self.attributes.get(path);
                // Of what was left out by choice the manifest knows.
                let lessened = attributes.is_some_and(|all| !all.set(dir.as_fd()) && !all.lessened);
                rustix::fs::futimens(&dir, &entry::times(entry.stat.mtime))?;
                Ok(lessened)
            };
            let lessened = finish().map_err(|errno| self.layer_error("finish", path, errno))?;
            self.stats.lessened += u64::from(lessened);
        }
        let target = self.request.layers_dir.join(self.request.new_layer_id);
        if let Some(out) = &mut self.out {
            write_manifest(&out.dir.join(MANIFEST), manifest, &out.dir, self.request.owner)?;
            if let Some((uid, gid)) = self.request.owner {
                rustix::fs::chown(&out.dir, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                    .map_err(|errno| CaptureError::io("finish", &out.dir)(errno.into()))?;
            }
            std::fs::rename(&out.dir, &target).map_err(CaptureError::io("create", &target))?;
            out.published = true;
        }
        Ok(self.stats)
    }
}

/// Returns the extended attributes of the work tree's top directory that can be carried, and whether some of its
/// rights cannot. It is in no layer: a merged tree's top is the upper directory.
pub(crate) fn top_attributes(root: BorrowedFd<'_>, owner: Option<(u32, u32)>) -> (Pairs, bool) {
    let Ok(top) = open_beneath(root, b"", paths::LIST) else { return (Vec::new(), false) };
    let attributes = Attributes::of(top.as_fd(), entry::ids(owner));
    let lessened = attributes.lessened;
    (attributes.into_pairs(), lessened)
}

/// Writes a manifest to a new file, and puts what it stands on into the directory where it will lie.
pub(crate) fn write_manifest(
    path: &Path,
    manifest: &Manifest,
    beside: &Path,
    owner: Option<(u32, u32)>,
) -> Result<(), CaptureError> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let whole;
    let manifest = if link_base(manifest, beside) {
        manifest
    } else {
        whole = manifest.flat(manifest.git_state())?;
        &whole
    };
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(CaptureError::io("create", path))?;
    for chunk in manifest.chunks() {
        file.write_all(chunk).map_err(CaptureError::io("write", path))?;
    }
    if let Some((uid, gid)) = owner {
        rustix::fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
            .map_err(|errno| CaptureError::io("finish", path)(errno.into()))?;
    }
    Ok(())
}

/// Links the whole manifest that a delta stands on into a directory; false when the file system does not, or
/// another file has its place by now.
fn link_base(manifest: &Manifest, beside: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let Some((from, file, name)) = manifest.base() else { return true };
    let to = beside.join(name);
    let is_it = || std::fs::symlink_metadata(&to).is_ok_and(|meta| (meta.dev(), meta.ino()) == file);
    if is_it() {
        return true;
    }
    let _ = std::fs::remove_file(&to);
    std::fs::hard_link(from, &to).is_ok() && is_it()
}
