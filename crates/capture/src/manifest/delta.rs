//! A manifest that says only what differs from a whole one, so that a capture writes as much as has changed.
//!
//! ```text
//!  layers/<id>/manifest           header, changed directories, new ones, changed entries, new ones, names, tables
//!             /base-<digest>      the whole manifest: a hard link, so that it stays whatever becomes of the
//!                                 layer that it was written for
//! ```
//!
//! Numbers go on where those of the whole manifest end: of directories, of entries, and the offsets of names. The
//! entries of a directory lie together, so one that got or lost a name has all of its entries among the new ones;
//! its old ones are left over. A delta stands on a whole manifest, never on another delta: the next one takes over
//! what this one says, and when it is no longer small a whole one is written.

use super::format::{DELTA, DIR, DIR_GONE, ENTRY, HEADER, MAGIC, NONE, base_name, entry, head};
use super::held::Held;
use super::read::{Data, Frame, Manifest, ManifestError, u32_at, u64_at};
use super::spool::Part;
use super::write::{Head, Parts, Record, encode, finish};
use crate::stat::Time;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Of a smaller manifest no delta is made: writing it whole takes no longer than a second file.
const SMALL: usize = 2000;

/// A delta holds at most this part of the entries.
const PART: usize = 16;

/// Of the entries at most this part are left over from before a change.
const LEFT_OVER: usize = 4;

/// Bytes of a changed entry's place: its index, and that of its directory.
const PLACE: usize = 8;

/// What differs from a whole manifest, read.
#[derive(Debug)]
pub(super) struct Delta {
    pub(super) data: Data,
    /// So many entries and directories has the whole manifest.
    base: (u32, u32),
    /// Which of its entries are among the changed ones, a bit for each.
    marks: Vec<u64>,
    /// Changed entries and their directories, sorted.
    places: Vec<(u32, u32)>,
    patches_at: usize,
    entries_at: usize,
    patched_dirs: Vec<u32>,
    dir_patches_at: usize,
    dirs_at: usize,
    pub(super) names_at: usize,
    pub(super) tables_at: usize,
}

impl Delta {
    /// Reads the frame; `None` when it is not whole, or stands on something else.
    pub(super) fn parse(data: Data, frame: &Frame) -> Option<Self> {
        let end = data.len().checked_sub(MAGIC.len()).filter(|at| *at >= HEADER)?;
        let head = data.get(0..HEADER).filter(|head| head.starts_with(MAGIC))?;
        let at = |offset| usize::try_from(u64_at(head, offset)).ok();
        let count = |offset| u32_at(head, offset) as usize;
        let new_dirs = count(head::DIRS).checked_sub(frame.dirs as usize)?;
        let new_entries = count(head::ENTRIES).checked_sub(frame.entries as usize)?;
        let (patched_dirs, patched) = (count(head::PATCHED_DIRS), count(head::PATCHED));
        let dir_patches_at = HEADER.checked_add(patched_dirs.checked_mul(4)?)?;
        let dirs_at = dir_patches_at.checked_add(patched_dirs.checked_mul(DIR)?)?;
        let places_at = dirs_at.checked_add(new_dirs.checked_mul(DIR)?)?;
        let patches_at = places_at.checked_add(patched.checked_mul(PLACE)?)?;
        let entries_at = patches_at.checked_add(patched.checked_mul(ENTRY)?)?;
        let names_at = entries_at.checked_add(new_entries.checked_mul(ENTRY)?)?;
        let tables_at = at(head::TABLES_AT)?;
        let whole = u32_at(head, head::VERSION) == DELTA
            && u64_at(head, head::BASE) == frame.digest()
            && at(head::LENGTH)? == data.len()
            && data.get(end..data.len()) == Some(MAGIC)
            && at(head::DIRS_AT)? == HEADER
            && at(head::ENTRIES_AT)? == places_at
            && at(head::NAMES_AT)? == names_at
            && names_at <= tables_at
            && tables_at <= end;
        if !whole {
            return None;
        }
        let numbers = |from: usize, to: usize, size: usize| {
            (from..to).step_by(size).map(|at| data.get(at..at + size).unwrap_or_default()).collect::<Vec<_>>()
        };
        let patched_dirs = numbers(HEADER, dir_patches_at, 4).into_iter().map(|bytes| u32_at(bytes, 0)).collect();
        let places: Vec<(u32, u32)> = numbers(places_at, patches_at, PLACE)
            .into_iter()
            .map(|bytes| (u32_at(bytes, 0), u32_at(bytes, 4)))
            .collect();
        let mut marks = vec![0; (frame.entries as usize).div_ceil(64)];
        for (index, _) in &places {
            *marks.get_mut(*index as usize / 64)? |= 1 << (index % 64);
        }
        let base = (frame.entries, frame.dirs);
        Some(Self {
            base,
            marks,
            places,
            patches_at,
            entries_at,
            patched_dirs,
            dir_patches_at,
            dirs_at,
            names_at,
            tables_at,
            data,
        })
    }

    /// Returns an entry that is new or has changed.
    pub(super) fn entry(&self, index: u32) -> Option<&[u8]> {
        let at = match index.checked_sub(self.base.0) {
            Some(new) => Some(self.entries_at + new as usize * ENTRY).filter(|at| at + ENTRY <= self.names_at)?,
            None if self.marks.get(index as usize / 64)? & 1 << (index % 64) == 0 => return None,
            None => {
                let nth = self.places.binary_search_by_key(&index, |place| place.0).ok()?;
                self.patches_at + nth * ENTRY
            }
        };
        self.data.get(at..at + ENTRY)
    }

    /// Returns a directory record that is new or has changed.
    pub(super) fn dir(&self, index: u32) -> Option<&[u8]> {
        let at = match index.checked_sub(self.base.1) {
            Some(new) => {
                let at = self.dirs_at + new as usize * DIR;
                let end = self.patches_at - self.places.len() * PLACE;
                Some(at).filter(|at| at + DIR <= end)?
            }
            None => self.dir_patches_at + self.patched_dirs.binary_search(&index).ok()? * DIR,
        };
        self.data.get(at..at + DIR)
    }

    /// Returns the directories in which anything is not as in the whole manifest; gone ones are among them.
    fn touched(&self, dirs: u32) -> impl Iterator<Item = u32> {
        let of_entries = self.places.iter().map(|place| place.1);
        of_entries.chain(self.patched_dirs.iter().copied()).chain(self.base.1..dirs)
    }
}

impl Manifest {
    /// Returns the directories that may look different in `self` and in an older manifest of the same line, in
    /// order; `None`: any.
    pub(crate) fn touched_since(&self, older: &Self) -> Option<Vec<u32>> {
        let (delta, ours, theirs) = (self.delta.as_ref()?, &self.frame.origin, &older.frame.origin);
        let same = Arc::ptr_eq(&self.frame, &older.frame) || ours.as_ref()?.file == theirs.as_ref()?.file;
        if !same {
            return None;
        }
        let mut dirs: Vec<u32> = delta.touched(self.dirs).filter(|dir| self.dir(*dir).flags & DIR_GONE == 0).collect();
        dirs.sort_unstable();
        dirs.dedup();
        Some(dirs)
    }

    /// Returns whether a delta can stand on the same whole manifest as this, or on this.
    fn can_be_base(&self) -> bool {
        self.frame.origin.is_some() && self.len() >= SMALL
    }

    /// Returns the whole manifest that this one stands on, where it lies and what it is to be called beside this
    /// one; `None` when this is a whole one.
    pub(crate) fn base(&self) -> Option<(&Path, (u64, u64), String)> {
        let origin = self.frame.origin.as_ref().filter(|_| self.delta.is_some())?;
        Some((&origin.path, origin.file, base_name(self.frame.digest())))
    }

    /// Returns the same as a whole manifest in memory, with the same indices.
    pub(crate) fn flat(&self, git_state: u64) -> Result<Self, ManifestError> {
        let mut edit = Edit::any(self, self.layers.clone(), self.scan, self.settings);
        edit.git_state(git_state);
        edit.finish_whole()
    }
}

/// A manifest being changed.
pub(crate) struct Edit<'a> {
    known: &'a Manifest,
    patched: BTreeMap<u32, (u32, [u8; ENTRY])>,
    patched_dirs: BTreeMap<u32, [u32; 5]>,
    dirs: Vec<[u32; 5]>,
    entries: Vec<u8>,
    names: Vec<u8>,
    devs: Vec<u64>,
    layers: Vec<String>,
    held: Held,
    scan: Time,
    settings: u64,
    git_state: u64,
    overflow: bool,
}

impl<'a> Edit<'a> {
    /// Begins with all that a manifest says; `None` when no delta can stand on it.
    pub(crate) fn new(known: &'a Manifest, layers: Vec<String>, scan: Time, settings: u64) -> Option<Self> {
        known.can_be_base().then(|| Self::any(known, layers, scan, settings))
    }

    /// Begins with all that a manifest says; [`Edit::finish`] may not be possible.
    pub(crate) fn any(known: &'a Manifest, layers: Vec<String>, scan: Time, settings: u64) -> Self {
        let mut edit = Self {
            known,
            patched: BTreeMap::new(),
            patched_dirs: BTreeMap::new(),
            dirs: Vec::new(),
            entries: Vec::new(),
            names: Vec::new(),
            devs: known.devs.clone(),
            layers,
            held: known.held(),
            scan,
            settings,
            git_state: known.git_state,
            overflow: false,
        };
        edit.held.files = known.files;
        if let Some(delta) = &known.delta {
            let record = |index| *known.raw(index).bytes;
            edit.patched = delta.places.iter().map(|(index, dir)| (*index, (*dir, record(*index)))).collect();
            edit.patched_dirs = delta.patched_dirs.iter().map(|dir| (*dir, numbers(known, *dir))).collect();
            edit.dirs = (delta.base.1..known.dirs).map(|dir| numbers(known, dir)).collect();
            edit.entries = (delta.base.0..known.entries).flat_map(record).collect();
            edit.names = delta.data.get(delta.names_at..delta.tables_at).unwrap_or_default().to_vec();
        }
        edit
    }

    /// Notes the request's `git_state`.
    pub(crate) fn git_state(&mut self, state: u64) {
        self.git_state = state;
    }

    /// Returns whether a small delta can stand on the known one's base when of its layers the lowermost `kept` are
    /// left.
    pub(crate) fn can_stand(&self, kept: usize) -> bool {
        let base = self.known.frame.layers;
        self.known.can_be_base() && base <= kept && !self.is_heavy(0)
    }

    /// Returns whether so much has changed that a whole manifest is better; `more` entries are still to come.
    pub(crate) fn is_heavy(&self, more: usize) -> bool {
        let entries = self.patched.len() + self.entries.len() / ENTRY + more;
        let dirs = self.patched_dirs.len() + self.dirs.len();
        let left_over = self.next().saturating_sub(self.held.entries) as usize;
        let base = self.known.frame.entries as usize;
        entries.max(dirs) > base / PART || left_over > base / LEFT_OVER
    }

    fn entry(&self, index: u32) -> [u8; ENTRY] {
        if let Some(new) = index.checked_sub(self.known.frame.entries) {
            let at = new as usize * ENTRY;
            return self.entries.get(at..at + ENTRY).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; ENTRY]);
        }
        self.patched.get(&index).map_or_else(|| *self.known.raw(index).bytes, |(_, bytes)| *bytes)
    }

    fn put(&mut self, index: u32, dir: u32, bytes: [u8; ENTRY]) {
        match index.checked_sub(self.known.frame.entries) {
            Some(new) => {
                let at = new as usize * ENTRY;
                if let Some(slot) = self.entries.get_mut(at..at + ENTRY) {
                    slot.copy_from_slice(&bytes);
                }
            }
            None => drop(self.patched.insert(index, (dir, bytes))),
        }
    }

    fn dir(&self, index: u32) -> [u32; 5] {
        if let Some(new) = index.checked_sub(self.known.frame.dirs) {
            return self.dirs.get(new as usize).copied().unwrap_or([0, 0, 0, NONE, DIR_GONE]);
        }
        self.patched_dirs.get(&index).copied().unwrap_or_else(|| numbers(self.known, index))
    }

    fn put_dir(&mut self, index: u32, record: [u32; 5]) {
        match index.checked_sub(self.known.frame.dirs) {
            Some(new) => {
                if let Some(slot) = self.dirs.get_mut(new as usize) {
                    *slot = record;
                }
            }
            None => drop(self.patched_dirs.insert(index, record)),
        }
    }

    fn next(&self) -> u32 {
        self.known.frame.entries + (self.entries.len() / ENTRY) as u32
    }

    /// Gives a known entry of a directory another record; name and content of a directory stay.
    pub(crate) fn set(&mut self, index: u32, dir: u32, record: Record) {
        let old = self.entry(index);
        let (name, child) = (u32_at(&old, entry::NAME), u32_at(&old, entry::CHILD));
        let len = u16::from_le_bytes([old[entry::NAME_LEN], old[entry::NAME_LEN + 1]]);
        let new = encode(&mut self.devs, &record, (name, len), child);
        self.held.remove(&old);
        self.held.add(&new);
        self.put(index, dir, new);
    }

    /// Returns whether something still leads to a directory.
    pub(crate) fn is_gone(&self, dir: u32) -> bool {
        self.dir(dir)[4] & DIR_GONE != 0
    }

    /// Begins a directory's entries anew; they follow in name order. Those of the old ones that are not kept are
    /// gone, with all below them.
    pub(crate) fn begin(&mut self, dir: u32, flags: u32, kept: impl Fn(u32) -> bool) {
        let [first, count, own, parent, _] = self.dir(dir);
        for index in (first..first.saturating_add(count)).filter(|index| !kept(*index)) {
            self.forget(index);
        }
        self.put_dir(dir, [self.next(), 0, own, parent, flags]);
    }

    /// Ends a directory's entries.
    pub(crate) fn end(&mut self, dir: u32) {
        let mut record = self.dir(dir);
        record[1] = self.next() - record[0];
        self.put_dir(dir, record);
    }

    fn forget(&mut self, index: u32) {
        let mut waiting = vec![index];
        while let Some(index) = waiting.pop() {
            let record = self.entry(index);
            self.held.remove(&record);
            self.patched.remove(&index);
            let child = u32_at(&record, entry::CHILD);
            if child != NONE && !self.is_gone(child) {
                let [first, count, own, parent, flags] = self.dir(child);
                waiting.extend(first..first.saturating_add(count));
                self.put_dir(child, [first, 0, own, parent, flags | DIR_GONE]);
            }
        }
    }

    /// Adds a known entry to the directory that was begun.
    pub(crate) fn keep(&mut self, index: u32) {
        let bytes = self.entry(index);
        let child = u32_at(&bytes, entry::CHILD);
        if child != NONE {
            let [first, count, _, parent, flags] = self.dir(child);
            self.put_dir(child, [first, count, self.next(), parent, flags]);
        }
        self.patched.remove(&index);
        self.entries.extend_from_slice(&bytes);
    }

    /// Adds a new entry that is not a carried directory.
    pub(crate) fn push(&mut self, name: &[u8], record: Record) {
        self.append(name, record, NONE);
    }

    /// Adds a new directory's entry and returns the directory's index.
    pub(crate) fn push_dir(&mut self, parent: u32, name: &[u8], record: Record) -> u32 {
        let dir = self.known.frame.dirs + self.dirs.len() as u32;
        self.dirs.push([0, 0, self.next(), parent, 0]);
        self.append(name, record, dir);
        dir
    }

    fn append(&mut self, name: &[u8], record: Record, child: u32) {
        let at = u32::try_from(self.known.frame.names() + self.names.len());
        self.overflow |= at.is_err() || self.next() == NONE;
        self.names.extend_from_slice(name);
        self.names.push(0);
        let bytes = encode(&mut self.devs, &record, (at.unwrap_or(0), name.len() as u16), child);
        self.held.add(&bytes);
        self.entries.extend_from_slice(&bytes);
    }

    fn head(&self) -> Head<'_> {
        Head {
            devs: &self.devs,
            layers: &self.layers,
            scan: self.scan,
            settings: self.settings,
            git_state: self.git_state,
            held: &self.held,
            entries: self.next(),
            dirs: self.known.frame.dirs + self.dirs.len() as u32,
        }
    }

    /// Returns the manifest, as a delta to the one that the known one stands on.
    pub(crate) fn finish(self) -> Result<Manifest, ManifestError> {
        let frame = &self.known.frame;
        let too_large = || ManifestError::Damaged { path: PathBuf::from(super::MANIFEST) };
        if self.overflow {
            return Err(too_large());
        }
        let mut out = vec![0; HEADER];
        self.patched_dirs.keys().for_each(|dir| out.extend_from_slice(&dir.to_le_bytes()));
        self.patched_dirs.values().chain(&self.dirs).for_each(|dir| push_dir_record(&mut out, dir));
        let entries_at = out.len();
        for (index, (dir, _)) in &self.patched {
            out.extend_from_slice(&index.to_le_bytes());
            out.extend_from_slice(&dir.to_le_bytes());
        }
        self.patched.values().for_each(|(_, bytes)| out.extend_from_slice(bytes));
        out.extend_from_slice(&self.entries);
        let names_at = out.len();
        out.extend_from_slice(&self.names);
        let tables = finish(self.head(), &mut out, DELTA, [HEADER, entries_at, names_at], 0);
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(head::PATCHED_DIRS, &(self.patched_dirs.len() as u32).to_le_bytes());
        put(head::PATCHED, &(self.patched.len() as u32).to_le_bytes());
        put(head::BASE, &frame.digest().to_le_bytes());
        out.extend_from_slice(&tables);
        let delta = Delta::parse(Data::Owned(out), frame).ok_or_else(too_large)?;
        Manifest::parse(frame.clone(), Some(delta), Path::new(super::MANIFEST))
    }

    /// Returns the manifest as a whole one, with the same indices.
    pub(crate) fn finish_whole(self) -> Result<Manifest, ManifestError> {
        let frame = &self.known.frame;
        let head = self.head();
        let mut out = vec![0; HEADER];
        (0..head.dirs).for_each(|dir| push_dir_record(&mut out, &self.dir(dir)));
        let mut entries = Vec::with_capacity(head.entries as usize * ENTRY);
        (0..head.entries).for_each(|index| entries.extend_from_slice(&self.entry(index)));
        let mut names = frame.data.get(frame.names_at..frame.tables_at).unwrap_or_default().to_vec();
        names.extend_from_slice(&self.names);
        let (entries_at, names_at) = (out.len(), out.len() + entries.len());
        let tables =
            finish(head, &mut out, super::format::VERSION, [HEADER, entries_at, names_at], entries.len() + names.len());
        Manifest::from_parts(Parts([out, entries, names, tables].map(Part::Owned).into()))
    }
}

/// Returns a directory's record.
fn numbers(manifest: &Manifest, dir: u32) -> [u32; 5] {
    let dir = manifest.dir(dir);
    [dir.first, dir.count, dir.own, dir.parent, dir.flags]
}

pub(super) fn push_dir_record(out: &mut Vec<u8>, dir: &[u32; 5]) {
    for number in dir {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&[0; 4]);
}
