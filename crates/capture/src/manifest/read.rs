//! Reading a manifest: by path for others, by index for the scan.

use super::delta::{Delta, Edit};
use super::format::{DELTA, DIR, ENTRY, Flags, HEADER, MAGIC, NO_LAYER, NONE, VERSION, base_name, entry, head};
use super::held::Held;
use super::spool::Part;
use super::write::Parts;
use super::{DIR_UNREADABLE, Look, Reason};
use crate::stat::{Kind, Stat, Time, kept_mode, kind_of};
use sandbox_sys::map::Map;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::iter;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The file could not be opened or mapped.
    #[error("cannot read '{path}'", path = path.display())]
    Io {
        /// The manifest.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is not a whole manifest.
    #[error("'{path}' is damaged", path = path.display())]
    Damaged {
        /// The manifest.
        path: PathBuf,
    },
    /// Another version of this program wrote it.
    #[error("'{path}' has version {found}, this program reads {VERSION}", path = path.display())]
    Version {
        /// The manifest.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

#[derive(Debug)]
pub(super) enum Data {
    Mapped(Map),
    Owned(Vec<u8>),
    Parts(Parts),
}

impl Data {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Mapped(map) => map.len(),
            Self::Owned(bytes) => bytes.len(),
            Self::Parts(parts) => parts.len(),
        }
    }

    /// Returns some bytes: of one record, or of one name.
    pub(super) fn get(&self, range: Range<usize>) -> Option<&[u8]> {
        match self {
            Self::Mapped(map) => map.get(range),
            Self::Owned(bytes) => bytes.get(range),
            Self::Parts(parts) => parts.get(range),
        }
    }
}

/// Where a whole manifest lies.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) path: PathBuf,
    /// Device and inode.
    pub(super) file: (u64, u64),
}

/// A whole manifest's bytes, and where what is in them.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) data: Data,
    pub(super) entries: u32,
    pub(super) dirs: u32,
    pub(super) entries_at: usize,
    pub(super) names_at: usize,
    pub(super) tables_at: usize,
    /// So many layers has the stack that it describes.
    pub(super) layers: usize,
    /// `None`: only in memory.
    pub(super) origin: Option<Origin>,
}

impl Frame {
    pub(super) fn entry(&self, index: u32) -> Option<&[u8]> {
        let at = self.entries_at + index as usize * ENTRY;
        if index < self.entries { self.data.get(at..at + ENTRY) } else { None }
    }

    pub(super) fn dir(&self, index: u32) -> Option<&[u8]> {
        let at = HEADER + index as usize * DIR;
        if index < self.dirs { self.data.get(at..at + DIR) } else { None }
    }

    /// Returns the length of all names.
    pub(super) fn names(&self) -> usize {
        self.tables_at - self.names_at
    }

    /// Returns a number that no other manifest has: of the header, which holds the time, and of the tables, which
    /// hold the layers' ids.
    pub(super) fn digest(&self) -> u64 {
        let tables = (self.tables_at..self.data.len()).filter_map(|at| self.data.get(at..at + 1));
        let bytes = self.data.get(0..HEADER).unwrap_or_default().iter().chain(tables.flatten());
        // FNV-1a: the same in all versions.
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
    }
}

/// Maps a file; also tells which one it is.
fn map(path: &Path) -> Result<(Data, Origin), ManifestError> {
    let io = |source| ManifestError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let meta = file.metadata().map_err(io)?;
    let origin = Origin { path: path.to_owned(), file: (meta.dev(), meta.ino()) };
    Ok((Data::Mapped(Map::new(&file).map_err(io)?), origin))
}

impl Frame {
    pub(super) fn parse(data: Data, origin: Option<Origin>, path: &Path) -> Result<Self, ManifestError> {
        let damaged = || ManifestError::Damaged { path: path.to_owned() };
        let end = data.len().checked_sub(MAGIC.len()).filter(|at| *at >= HEADER).ok_or_else(damaged)?;
        let head = data.get(0..HEADER).filter(|head| head.starts_with(MAGIC)).ok_or_else(damaged)?;
        let found = u32_at(head, head::VERSION);
        if found != VERSION {
            return Err(ManifestError::Version { path: path.to_owned(), found });
        }
        let at = |offset| usize::try_from(u64_at(head, offset)).map_err(|_| damaged());
        let (dirs_at, entries_at) = (at(head::DIRS_AT)?, at(head::ENTRIES_AT)?);
        let (names_at, tables_at) = (at(head::NAMES_AT)?, at(head::TABLES_AT)?);
        let (entries, dirs) = (u32_at(head, head::ENTRIES), u32_at(head, head::DIRS));
        let whole = at(head::LENGTH)? == data.len()
            && data.get(end..data.len()) == Some(MAGIC)
            && dirs_at == HEADER
            && dirs_at.checked_add(dirs as usize * DIR) == Some(entries_at)
            && entries_at.checked_add(entries as usize * ENTRY) == Some(names_at)
            && names_at <= tables_at
            && tables_at <= end
            && entries > 0
            && dirs > 0;
        if !whole {
            return Err(damaged());
        }
        let layers = u32_at(head, head::LAYERS) as usize;
        Ok(Self { data, entries, dirs, entries_at, names_at, tables_at, layers, origin })
    }
}

/// What a stack of layers holds: a whole manifest, and what differs from it.
#[derive(Debug)]
pub struct Manifest {
    pub(super) frame: Arc<Frame>,
    pub(super) delta: Option<Delta>,
    pub(super) entries: u32,
    pub(super) dirs: u32,
    pub(super) scan: Time,
    pub(super) settings: u64,
    pub(super) git_state: u64,
    pub(super) files: u64,
    pub(super) layers: Vec<String>,
    pub(super) devs: Vec<u64>,
    /// As the file says; older ones do not say it.
    pub(super) held: Option<Held>,
}

/// Inode number and ctime of a file in its layer: what an overlay shows until it is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyStat {
    /// Inode.
    pub ino: u64,
    /// Last change of the inode.
    pub ctime: Time,
}

/// One entry of a captured tree.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entry<'a> {
    /// The last component of its path; empty for the top directory.
    pub name: &'a [u8],
    /// The host's stat when it was captured (`nlink` and `blocks` are 0).
    pub stat: Stat,
    /// The layer that holds it; `None` when it was left out. A directory may be in several: this is
    /// the one that was made when its stat was last taken.
    pub layer: Option<&'a str>,
    /// The stat of the copy in that layer; `None` for directories and what was left out.
    pub copy: Option<CopyStat>,
    /// Why it is in no layer.
    pub left_out: Option<Reason>,
    /// It looks like a secret (and was carried, unless `left_out`).
    pub secret: bool,
}

impl Entry<'_> {
    /// Returns the kind of entry.
    pub fn kind(&self) -> Kind {
        self.stat.kind()
    }

    /// Returns the permission bits in the layer.
    pub fn mode(&self) -> u32 {
        kept_mode(self.stat.mode)
    }
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes)
}
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}
fn i64_at(bytes: &[u8], at: usize) -> i64 {
    u64_at(bytes, at) as i64
}

impl Manifest {
    /// Maps a manifest, or the one that it replaced when a power cut has left nothing of it: both say the
    /// same about the layers.
    pub fn open(path: &Path) -> Result<Self, ManifestError> {
        Self::map(path).or_else(|error| Self::map(&path.with_extension(super::REPLACED)).map_err(|_| error))
    }

    fn map(path: &Path) -> Result<Self, ManifestError> {
        let (data, origin) = map(path)?;
        match data.get(0..HEADER) {
            Some(head) if head.starts_with(MAGIC) && u32_at(head, head::VERSION) == DELTA => {
                let base = path.with_file_name(base_name(u64_at(head, head::BASE)));
                let (base_data, origin) = map(&base)?;
                let frame = Frame::parse(base_data, Some(origin), &base)?;
                let delta =
                    Delta::parse(data, &frame).ok_or_else(|| ManifestError::Damaged { path: path.to_owned() })?;
                Self::parse(Arc::new(frame), Some(delta), path)
            }
            _ => Self::parse(Arc::new(Frame::parse(data, Some(origin), path)?), None, path),
        }
    }

    #[cfg(test)]
    pub(crate) fn from_bytes(bytes: Vec<u8>) -> Result<Self, ManifestError> {
        let path = Path::new(super::MANIFEST);
        Self::parse(Arc::new(Frame::parse(Data::Owned(bytes), None, path)?), None, path)
    }

    pub(crate) fn from_parts(parts: Parts) -> Result<Self, ManifestError> {
        let path = Path::new(super::MANIFEST);
        Self::parse(Arc::new(Frame::parse(Data::Parts(parts), None, path)?), None, path)
    }

    /// Reads what is said of the whole: by the delta, if there is one.
    pub(super) fn parse(frame: Arc<Frame>, delta: Option<Delta>, path: &Path) -> Result<Self, ManifestError> {
        let damaged = || ManifestError::Damaged { path: path.to_owned() };
        let (data, tables_at) = match &delta {
            Some(delta) => (&delta.data, delta.tables_at),
            None => (&frame.data, frame.tables_at),
        };
        let head = data.get(0..HEADER).ok_or_else(damaged)?;
        let mut devs = Vec::new();
        let mut at = tables_at;
        for _ in 0..u32_at(head, head::DEVS) {
            devs.push(u64::from_le_bytes(data.get(at..at + 8).and_then(|b| b.try_into().ok()).ok_or_else(damaged)?));
            at += 8;
        }
        let mut layers = Vec::new();
        for _ in 0..u32_at(head, head::LAYERS) {
            let len = usize::from(u16_at(data.get(at..at + 2).ok_or_else(damaged)?, 0));
            let text = data.get(at + 2..at + 2 + len).ok_or_else(damaged)?;
            layers.push(String::from_utf8(text.to_vec()).map_err(|_| damaged())?);
            at += 2 + len;
        }
        let files = u64_at(head, head::FILES);
        let sums = (u64_at(head, head::HELD) == 2).then(|| data.get(at..data.len() - MAGIC.len())).flatten();
        let held = sums.and_then(|sums| Held::read(sums, layers.len(), files));
        Ok(Self {
            entries: u32_at(head, head::ENTRIES),
            dirs: u32_at(head, head::DIRS),
            scan: Time { sec: i64_at(head, head::SCAN_SEC), nsec: u32_at(head, head::SCAN_NSEC) },
            settings: u64_at(head, head::SETTINGS),
            git_state: u64_at(head, head::GIT_STATE),
            files,
            layers,
            devs,
            held,
            frame,
            delta,
        })
    }

    /// Returns the ids of the layers that it describes, uppermost first.
    pub fn layers(&self) -> Vec<String> {
        self.layers.iter().rev().cloned().collect()
    }

    /// Returns when the scan started whose result this is.
    pub fn scanned(&self) -> Time {
        self.scan
    }

    /// Returns the number of entries, the top directory and left out ones included.
    pub fn len(&self) -> usize {
        self.entries as usize
    }

    /// Returns false: there is always the top directory.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Returns the top directory.
    pub fn top(&self) -> Entry<'_> {
        self.raw(0).entry()
    }

    /// Returns the entry at a path relative to the top, components separated by one `/`; the empty
    /// path is the top directory.
    pub fn lookup(&self, path: &[u8]) -> Option<Entry<'_>> {
        self.find(path).map(|index| self.raw(index).entry())
    }

    /// Returns all entries below a directory (not itself), parents before children, in name order.
    pub fn walk(&self, dir: &[u8]) -> Walk<'_> {
        let start = self.find(dir).and_then(|index| self.raw(index).child());
        Walk::new(self, start, dir)
    }

    /// Returns the file's bytes, in order: of a delta, without the whole manifest that it stands on.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        let data = self.delta.as_ref().map_or(&self.frame.data, |delta| &delta.data);
        let (whole, parts): (Option<&[u8]>, &[Part]) = match data {
            Data::Mapped(map) => (Some(map), &[]),
            Data::Owned(bytes) => (Some(bytes), &[]),
            Data::Parts(parts) => (None, &parts.0),
        };
        whole.into_iter().chain(parts.iter().map(|part| &**part))
    }

    /// Returns the number of regular files and symlinks that the stack holds.
    pub fn files(&self) -> u64 {
        self.files
    }

    /// Returns the number of files and directories that have fewer rights in the stack than on the host.
    pub fn lessened(&self) -> u64 {
        self.held.as_ref().map_or(0, |held| held.lessened)
    }

    /// Returns the bytes of the regular files that the stack holds, each name counted.
    pub fn bytes_held(&self) -> u64 {
        let held = |raw: &Raw<'_>| raw.kind() == Kind::File && raw.layer().is_some() && raw.flags().reason().is_none();
        self.live().map(|index| self.raw(index)).filter(held).map(|raw| raw.size()).sum()
    }

    /// Returns the indices of all entries but the top directory, those of one directory together. Others are
    /// left over from before a change.
    pub(crate) fn live(&self) -> impl Iterator<Item = u32> {
        (0..self.dirs).map(|dir| self.dir(dir)).flat_map(|dir| dir.first..dir.first + dir.count)
    }

    /// Returns what each layer still holds.
    pub(crate) fn held(&self) -> Held {
        self.held.clone().unwrap_or_else(|| {
            let mut held = Held { layers: vec![(0, 0); self.layers.len()], ..Held::default() };
            iter::once(0).chain(self.live()).for_each(|index| held.add(self.raw(index).bytes));
            held
        })
    }

    /// Returns the number of directories, the top included.
    pub(crate) fn dirs_held(&self) -> u32 {
        self.held.as_ref().map_or(self.dirs, |held| held.dirs)
    }

    pub(crate) fn settings(&self) -> u64 {
        self.settings
    }

    /// Returns the request's `git_state` under which its decisions hold.
    pub(crate) fn git_state(&self) -> u64 {
        self.git_state
    }

    /// Returns the same manifest, whose decisions hold under another `git_state`.
    pub(crate) fn with_git_state(self, state: u64) -> Result<Self, ManifestError> {
        let layers = self.layers.clone();
        let Some(mut edit) = Edit::new(&self, layers, self.scan, self.settings) else {
            return self.flat(state);
        };
        edit.git_state(state);
        edit.finish()
    }

    pub(crate) fn layers_up(&self) -> &[String] {
        &self.layers
    }

    pub(crate) fn devs(&self) -> &[u64] {
        &self.devs
    }

    pub(crate) fn dirs(&self) -> u32 {
        self.dirs
    }

    /// Returns the index of the entry at a path.
    pub(crate) fn find(&self, path: &[u8]) -> Option<u32> {
        let mut at = 0;
        if path.is_empty() {
            return Some(at);
        }
        for name in path.split(|b| *b == b'/') {
            let dir = self.raw(at).child()?;
            at = self.find_in(dir, name)?;
        }
        Some(at)
    }

    /// Returns the index of the entry called `name` in a directory.
    pub(crate) fn find_in(&self, dir: u32, name: &[u8]) -> Option<u32> {
        let dir = self.dir(dir);
        let (mut low, mut high) = (dir.first, dir.first + dir.count);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.raw(middle).name().cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Some(middle),
            }
        }
        None
    }

    pub(crate) fn raw(&self, index: u32) -> Raw<'_> {
        let changed = self.delta.as_ref().and_then(|delta| delta.entry(index));
        let bytes = changed.or_else(|| self.frame.entry(index));
        Raw { manifest: self, bytes: bytes.and_then(|b| b.try_into().ok()).unwrap_or(&[0; ENTRY]) }
    }

    pub(crate) fn dir(&self, index: u32) -> RawDir {
        let changed = self.delta.as_ref().and_then(|delta| delta.dir(index));
        let Some(bytes) = changed.or_else(|| self.frame.dir(index)) else {
            return RawDir { first: 0, count: 0, own: 0, parent: NONE, flags: DIR_UNREADABLE };
        };
        let (first, count) = (u32_at(bytes, 0), u32_at(bytes, 4));
        let fits = first.checked_add(count).is_some_and(|end| end <= self.entries);
        RawDir {
            first,
            count: if fits { count } else { 0 },
            own: u32_at(bytes, 8),
            // Parents come first in the file, so damage cannot make a loop.
            parent: Some(u32_at(bytes, 12)).filter(|parent| *parent < index).unwrap_or(NONE),
            flags: u32_at(bytes, 16),
        }
    }

    /// Returns the path of a directory.
    pub(crate) fn dir_path(&self, dir: u32) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = self.dir(dir);
        while at.parent != NONE {
            names.push(self.raw(at.own).name());
            at = self.dir(at.parent);
        }
        names.reverse();
        names.join(&b'/')
    }
}

/// A directory record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawDir {
    pub(crate) first: u32,
    pub(crate) count: u32,
    pub(crate) own: u32,
    pub(crate) parent: u32,
    pub(crate) flags: u32,
}

/// An entry record, read field by field.
#[derive(Clone, Copy)]
pub(crate) struct Raw<'a> {
    manifest: &'a Manifest,
    pub(crate) bytes: &'a [u8; ENTRY],
}

impl<'a> Raw<'a> {
    /// Returns so many bytes from where the name begins.
    fn name_bytes(&self, len: usize) -> Option<&'a [u8]> {
        let at = u32_at(self.bytes, entry::NAME) as usize;
        let frame = &self.manifest.frame;
        let (data, from, end) = match (at.checked_sub(frame.names()), &self.manifest.delta) {
            (Some(at), Some(delta)) => (&delta.data, delta.names_at + at, delta.tables_at),
            _ => (&frame.data, frame.names_at + at, frame.tables_at),
        };
        if from + len <= end { data.get(from..from + len) } else { None }
    }

    fn name_len(&self) -> usize {
        usize::from(u16_at(self.bytes, entry::NAME_LEN))
    }

    pub(crate) fn name(&self) -> &'a [u8] {
        self.name_bytes(self.name_len()).unwrap_or_default()
    }

    pub(crate) fn name_c(&self) -> &'a CStr {
        let bytes = self.name_bytes(self.name_len() + 1);
        bytes.and_then(|bytes| CStr::from_bytes_with_nul(bytes).ok()).unwrap_or_default()
    }

    pub(crate) fn mode(&self) -> u32 {
        u32_at(self.bytes, entry::MODE)
    }

    pub(crate) fn kind(&self) -> Kind {
        kind_of(self.mode())
    }

    pub(crate) fn flags(&self) -> Flags {
        Flags(u16_at(self.bytes, entry::FLAGS))
    }

    /// Returns the directory's index when it is a directory that is carried.
    pub(crate) fn child(&self) -> Option<u32> {
        let child = u32_at(self.bytes, entry::CHILD);
        (child < self.manifest.dirs && self.kind() == Kind::Dir).then_some(child)
    }

    pub(crate) fn layer_index(&self) -> u16 {
        u16_at(self.bytes, entry::LAYER)
    }

    /// Returns the layer's index, unless no layer has it.
    pub(crate) fn layer(&self) -> Option<u16> {
        Some(self.layer_index()).filter(|index| *index != NO_LAYER)
    }

    pub(crate) fn mtime(&self) -> Time {
        Time { sec: i64_at(self.bytes, entry::MTIME_SEC), nsec: u32_at(self.bytes, entry::MTIME_NSEC) }
    }

    pub(crate) fn size(&self) -> u64 {
        u64_at(self.bytes, entry::SIZE)
    }

    pub(crate) fn ino(&self) -> u64 {
        u64_at(self.bytes, entry::INO)
    }

    /// Returns whether the host entry is the one that was captured, as far as stat can tell.
    ///
    /// The device is not compared: its number changes over a reboot or a mount.
    #[inline]
    pub(crate) fn same(&self, stat: &Stat) -> bool {
        let b = self.bytes;
        u64_at(b, entry::INO) == stat.ino
            && i64_at(b, entry::CTIME_SEC) == stat.ctime.sec
            && u32_at(b, entry::CTIME_NSEC) == stat.ctime.nsec
            && i64_at(b, entry::MTIME_SEC) == stat.mtime.sec
            && u32_at(b, entry::MTIME_NSEC) == stat.mtime.nsec
            && u32_at(b, entry::MODE) == stat.mode
            && (u64_at(b, entry::SIZE) == stat.size || stat.kind() == Kind::Dir)
    }

    pub(crate) fn stat(&self) -> Stat {
        let b = self.bytes;
        let dev = self.manifest.devs.get(usize::from(u16_at(b, entry::DEV))).copied().unwrap_or_default();
        Stat {
            mode: self.mode(),
            size: self.size(),
            mtime: self.mtime(),
            ctime: Time { sec: i64_at(b, entry::CTIME_SEC), nsec: u32_at(b, entry::CTIME_NSEC) },
            dev,
            ino: u64_at(b, entry::INO),
            nlink: 0,
            blocks: 0,
        }
    }

    pub(crate) fn copy(&self) -> Option<CopyStat> {
        let b = self.bytes;
        let ino = u64_at(b, entry::COPY_INO);
        let ctime = Time { sec: i64_at(b, entry::COPY_CTIME_SEC), nsec: u32_at(b, entry::COPY_CTIME_NSEC) };
        (ino != 0).then_some(CopyStat { ino, ctime })
    }

    pub(crate) fn entry(&self) -> Entry<'a> {
        let flags = self.flags();
        Entry {
            name: self.name(),
            stat: self.stat(),
            layer: self.layer().and_then(|index| self.manifest.layers.get(usize::from(index))).map(String::as_str),
            copy: self.copy(),
            left_out: flags.reason(),
            secret: flags.look() != Look::Plain,
        }
    }
}

/// Entries below a directory, depth first.
#[derive(Debug)]
pub struct Walk<'a> {
    manifest: &'a Manifest,
    /// Next entry, end, length of the directory's path, the directory.
    stack: Vec<(u32, u32, usize, u32)>,
    path: Vec<u8>,
}

impl<'a> Walk<'a> {
    fn new(manifest: &'a Manifest, dir: Option<u32>, path: &[u8]) -> Self {
        let mut walk = Self { manifest, stack: Vec::new(), path: path.to_vec() };
        if let Some(index) = dir {
            let dir = manifest.dir(index);
            walk.stack.push((dir.first, dir.first + dir.count, path.len(), index));
        }
        walk
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = (Vec<u8>, Entry<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let (at, len, above) = loop {
            let top = self.stack.last_mut()?;
            if top.0 < top.1 {
                top.0 += 1;
                break (top.0 - 1, top.2, top.3);
            }
            self.stack.pop();
        };
        let raw = self.manifest.raw(at);
        self.path.truncate(len);
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(raw.name());
        // Directories have greater numbers than their parents: damage cannot make a loop.
        if let Some(child) = raw.child().filter(|child| *child > above) {
            let dir = self.manifest.dir(child);
            self.stack.push((dir.first, dir.first + dir.count, self.path.len(), child));
        }
        Some((self.path.clone(), raw.entry()))
    }
}
