//! The index file, versions 2 to 4, of both hash functions (gitformat-index(5)).
//!
//! ```text
//! "DIRC" version count
//! entry*      10 × u32 of stat data, id, flags (+ flags of v3), path (v4: shared prefix left out)
//! extension*  TREE cache-tree · REUC resolve-undo · link split index · sdir sparse directories ·
//!             FSMN fsmonitor · UNTR untracked cache · EOIE, IEOT where entries and extensions are
//! checksum    over all before it; zeros when `index.skipHash` is set
//! ```
//!
//! A copied work tree has the contents of the original, but other inodes and change times: git would
//! open every file to see that it is unchanged. Here the stat data of chosen entries is rewritten
//! where it stands; everything else stays byte for byte, except the two caches that are bound to a
//! machine (`FSMN`, `UNTR`), which are left out.

mod build;

pub use build::{NewEntry, build};

use crate::oid::{ObjectFormat, Oid};
use sha1::Digest;
use std::os::unix::fs::MetadataExt;

/// Stat data as the index keeps it: everything cut to 32 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// Change time, seconds and nanoseconds.
    pub ctime: (u32, u32),
    /// Modification time, seconds and nanoseconds.
    pub mtime: (u32, u32),
    /// Device (git does not compare it unless built to).
    pub dev: u32,
    /// Inode.
    pub ino: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u32,
}

impl Stat {
    /// Of a file as the kernel shows it.
    pub fn from_metadata(metadata: &std::fs::Metadata) -> Self {
        Self {
            ctime: (metadata.ctime() as u32, metadata.ctime_nsec() as u32),
            mtime: (metadata.mtime() as u32, metadata.mtime_nsec() as u32),
            dev: metadata.dev() as u32,
            ino: metadata.ino() as u32,
            uid: metadata.uid(),
            gid: metadata.gid(),
            size: metadata.size() as u32,
        }
    }

    /// Whether git would take a file with stat data `now` for the one that was recorded, by its
    /// default settings (seconds only, no device).
    pub fn matches(&self, now: &Self) -> bool {
        self.ctime.0 == now.ctime.0
            && self.mtime.0 == now.mtime.0
            && self.ino == now.ino
            && self.uid == now.uid
            && self.gid == now.gid
            && self.size == now.size
    }
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path from the top of the work tree.
    pub path: Vec<u8>,
    /// The object.
    pub oid: Oid,
    /// `0o100644`, `0o100755`, `0o120000`, `0o160000` (a submodule) or `0o040000` (a sparse directory).
    pub mode: u32,
    /// 0, or 1 to 3 of a conflict.
    pub stage: u8,
    /// What the file was like when it was last known to be unchanged.
    pub stat: Stat,
    /// `git update-index --assume-unchanged`.
    pub assume_valid: bool,
    /// Outside the sparse checkout.
    pub skip_worktree: bool,
    /// `git add -N`.
    pub intent_to_add: bool,
    offset: usize,
}

/// Why bytes are not an index that this code knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// Cut short, or not an index.
    #[error("the index is damaged at byte {0}")]
    Damaged(usize),
    /// A later version.
    #[error("the index has version {0}")]
    Version(u32),
    /// An extension that must be understood and is not.
    #[error("the index has an unknown extension '{0}'")]
    Extension(String),
}

struct Extension {
    signature: [u8; 4],
    start: usize,
    end: usize,
}

/// A parsed index.
pub struct Index {
    bytes: Vec<u8>,
    format: ObjectFormat,
    entries: Vec<Entry>,
    entries_end: usize,
    extensions: Vec<Extension>,
}

/// Extensions that are bound to a machine or a directory.
const MACHINE_BOUND: [&[u8; 4]; 2] = [b"FSMN", b"UNTR"];

impl Index {
    /// Parses the bytes of an index file.
    pub fn parse(bytes: Vec<u8>, format: ObjectFormat) -> Result<Self, IndexError> {
        let mut reader = Reader { bytes: &bytes, at: 0 };
        if reader.take(4)? != b"DIRC" {
            return Err(IndexError::Damaged(0));
        }
        let version = reader.u32()?;
        if !(2..=4).contains(&version) {
            return Err(IndexError::Version(version));
        }
        let count = reader.u32()? as usize;
        let mut entries: Vec<Entry> = Vec::with_capacity(count.min(bytes.len() / 64));
        for _ in 0..count {
            let previous = entries.last().map_or(&[][..], |entry| &entry.path);
            let entry = reader.entry(version, format, previous)?;
            entries.push(entry);
        }
        let entries_end = reader.at;
        let checksum = bytes.len().checked_sub(format.raw_len()).ok_or(IndexError::Damaged(bytes.len()))?;
        let mut extensions = Vec::new();
        while reader.at < checksum {
            let start = reader.at;
            let signature: [u8; 4] = reader.take(4)?.try_into().expect("four bytes");
            let len = reader.u32()? as usize;
            reader.take(len)?;
            let known = [b"link", b"sdir"].contains(&&signature);
            if signature[0].is_ascii_lowercase() && !known {
                return Err(IndexError::Extension(crate::printable(&signature)));
            }
            extensions.push(Extension { signature, start, end: reader.at });
        }
        if reader.at != checksum {
            return Err(IndexError::Damaged(reader.at));
        }
        Ok(Self { format, entries, entries_end, extensions, bytes })
    }

    /// The file as it was parsed, with the stat data as it is now.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All entries in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Whether a part of it is in a `sharedindex` file (`core.splitIndex`). Such an index holds only
    /// what differs from that file; git has to join them first.
    pub fn is_split(&self) -> bool {
        self.extension(b"link").is_some_and(|data| data.iter().take(self.format.raw_len()).any(|b| *b != 0))
    }

    /// Whether it needs something that is bound to the machine and is left out by [`Index::finish`].
    pub fn has_machine_bound(&self) -> bool {
        self.extensions.iter().any(|ext| MACHINE_BOUND.contains(&&ext.signature))
    }

    /// Whether it remembers conflicts that were resolved.
    pub fn has_resolve_undo(&self) -> bool {
        self.extension(b"REUC").is_some_and(|data| !data.is_empty())
    }

    /// The tree that the whole index stands for, if git has computed it and it is still valid.
    pub fn root_tree(&self) -> Option<Oid> {
        let conflict = self.entries.iter().any(|entry| entry.stage != 0 || entry.intent_to_add);
        let data = self.extension(b"TREE").filter(|_| !conflict)?;
        let rest = data.strip_prefix(b"\0")?;
        let space = rest.iter().position(|b| *b == b' ')?;
        let line = rest.iter().position(|b| *b == b'\n')?;
        let count: i64 = std::str::from_utf8(rest.get(..space)?).ok()?.parse().ok()?;
        if count != self.entries.len() as i64 {
            return None;
        }
        Oid::from_raw(rest.get(line + 1..line + 1 + self.format.raw_len())?)
    }

    /// Every id that it names: all stages, sparse directories, resolve-undo and cache-tree; without
    /// submodules, whose commits are in other repositories. Sorted, each once.
    pub fn oids(&self) -> Result<Vec<Oid>, IndexError> {
        let mut oids: Vec<Oid> =
            self.entries.iter().filter(|entry| entry.mode & 0o170000 != 0o160000).map(|entry| entry.oid).collect();
        if let Some(data) = self.extension(b"TREE") {
            oids.extend(cache_tree_oids(data, self.format)?);
        }
        if let Some(data) = self.extension(b"REUC") {
            oids.extend(resolve_undo_oids(data, self.format)?);
        }
        oids.sort();
        oids.dedup();
        Ok(oids)
    }

    /// Replaces the stat data of entry number `i`.
    pub fn set_stat(&mut self, i: usize, stat: Stat) {
        let entry = &mut self.entries[i];
        entry.stat = stat;
        let (first, second) = self.bytes[entry.offset..].split_at_mut(24);
        let head = [stat.ctime.0, stat.ctime.1, stat.mtime.0, stat.mtime.1, stat.dev, stat.ino];
        // The mode stands between inode and owner.
        for (slot, value) in first.chunks_exact_mut(4).zip(head) {
            slot.copy_from_slice(&value.to_be_bytes());
        }
        for (slot, value) in second[4..16].chunks_exact_mut(4).zip([stat.uid, stat.gid, stat.size]) {
            slot.copy_from_slice(&value.to_be_bytes());
        }
    }

    /// Returns the file: entries as they are now, extensions verbatim without the machine-bound ones,
    /// the checksum redone.
    pub fn finish(self) -> Vec<u8> {
        let raw = self.format.raw_len();
        let skip_hash = self.bytes[self.bytes.len() - raw..].iter().all(|b| *b == 0);
        let mut out = self.bytes[..self.entries_end].to_vec();
        let mut headers = Vec::new();
        for ext in &self.extensions {
            if MACHINE_BOUND.contains(&&ext.signature) {
                continue;
            }
            if &ext.signature == b"EOIE" {
                // Its hash covers the headers of all extensions before it.
                let len = (4 + raw) as u32;
                out.extend_from_slice(b"EOIE");
                out.extend_from_slice(&len.to_be_bytes());
                out.extend_from_slice(&(self.entries_end as u32).to_be_bytes());
                out.extend_from_slice(&hash(self.format, &headers));
                continue;
            }
            headers.extend_from_slice(&self.bytes[ext.start..ext.start + 8]);
            out.extend_from_slice(&self.bytes[ext.start..ext.end]);
        }
        let checksum = if skip_hash { vec![0; raw] } else { hash(self.format, &out) };
        out.extend_from_slice(&checksum);
        out
    }

    fn extension(&self, signature: &[u8; 4]) -> Option<&[u8]> {
        let ext = self.extensions.iter().find(|ext| &ext.signature == signature)?;
        Some(&self.bytes[ext.start + 8..ext.end])
    }
}

pub(crate) fn hash(format: ObjectFormat, bytes: &[u8]) -> Vec<u8> {
    match format {
        ObjectFormat::Sha1 => sha1::Sha1::digest(bytes).to_vec(),
        ObjectFormat::Sha256 => sha2::Sha256::digest(bytes).to_vec(),
    }
}

/// `path NUL entries SP subtrees LF [id]`, depth first; no id where the count is negative.
fn cache_tree_oids(data: &[u8], format: ObjectFormat) -> Result<Vec<Oid>, IndexError> {
    let mut reader = Reader { bytes: data, at: 0 };
    let mut oids = Vec::new();
    while reader.at < data.len() {
        reader.until(0)?;
        let count = reader.until(b' ')?;
        let valid = !count.starts_with(b"-");
        reader.until(b'\n')?;
        if valid {
            oids.push(reader.oid(format)?);
        }
    }
    Ok(oids)
}

/// `path NUL`, three octal modes each with NUL, then an id for each mode that is not zero.
fn resolve_undo_oids(data: &[u8], format: ObjectFormat) -> Result<Vec<Oid>, IndexError> {
    let mut reader = Reader { bytes: data, at: 0 };
    let mut oids = Vec::new();
    while reader.at < data.len() {
        reader.until(0)?;
        let mut modes = [0u32; 3];
        for mode in &mut modes {
            let at = reader.at;
            let digits = std::str::from_utf8(reader.until(0)?).map_err(|_| IndexError::Damaged(at))?;
            *mode = u32::from_str_radix(digits, 8).map_err(|_| IndexError::Damaged(at))?;
        }
        for mode in modes.into_iter().filter(|mode| *mode != 0) {
            let oid = reader.oid(format)?;
            if mode & 0o170000 != 0o160000 {
                oids.push(oid);
            }
        }
    }
    Ok(oids)
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], IndexError> {
        let end = self.at.checked_add(n).ok_or(IndexError::Damaged(self.at))?;
        let part = self.bytes.get(self.at..end).ok_or(IndexError::Damaged(self.at))?;
        self.at = end;
        Ok(part)
    }

    fn u32(&mut self) -> Result<u32, IndexError> {
        Ok(u32::from_be_bytes(self.take(4)?.try_into().expect("four bytes")))
    }

    fn u16(&mut self) -> Result<u16, IndexError> {
        Ok(u16::from_be_bytes(self.take(2)?.try_into().expect("two bytes")))
    }

    fn oid(&mut self, format: ObjectFormat) -> Result<Oid, IndexError> {
        Ok(Oid::from_raw(self.take(format.raw_len())?).expect("as long as the format says"))
    }

    /// What is before the next `end`, which is passed over.
    fn until(&mut self, end: u8) -> Result<&'a [u8], IndexError> {
        let rest = &self.bytes[self.at..];
        let len = rest.iter().position(|b| *b == end).ok_or(IndexError::Damaged(self.at))?;
        self.at += len + 1;
        Ok(&rest[..len])
    }

    /// The variable-length number of v4 (and of pack offsets).
    fn varint(&mut self) -> Result<usize, IndexError> {
        let mut byte = self.take(1)?[0];
        let mut value = usize::from(byte & 0x7f);
        while byte & 0x80 != 0 {
            byte = self.take(1)?[0];
            value = value
                .checked_add(1)
                .and_then(|v| v.checked_mul(128))
                .map(|v| v | usize::from(byte & 0x7f))
                .ok_or(IndexError::Damaged(self.at))?;
        }
        Ok(value)
    }

    fn entry(&mut self, version: u32, format: ObjectFormat, previous: &[u8]) -> Result<Entry, IndexError> {
        let offset = self.at;
        let mut number = || self.u32();
        let (ctime, mtime) = ((number()?, number()?), (number()?, number()?));
        let (dev, ino, mode) = (number()?, number()?, number()?);
        let (uid, gid, size) = (number()?, number()?, number()?);
        let oid = self.oid(format)?;
        let flags = self.u16()?;
        let extended = if flags & 0x4000 != 0 && version >= 3 { self.u16()? } else { 0 };
        let path = if version == 4 {
            let strip = self.varint()?;
            let keep = previous.len().checked_sub(strip).ok_or(IndexError::Damaged(self.at))?;
            let mut path = previous[..keep].to_vec();
            path.extend_from_slice(self.until(0)?);
            path
        } else {
            let path = self.until(0)?.to_vec();
            // Padded with 1 to 8 NULs to a multiple of 8; `until` took one of them.
            let fixed = self.at - offset - 1;
            self.take((8 - fixed % 8) - 1)?;
            path
        };
        Ok(Entry {
            path,
            oid,
            mode,
            stage: (flags >> 12 & 3) as u8,
            stat: Stat { ctime, mtime, dev, ino, uid, gid, size },
            assume_valid: flags & 0x8000 != 0,
            skip_worktree: extended & 0x4000 != 0,
            intent_to_add: extended & 0x2000 != 0,
            offset,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn damage_is_an_error_not_a_panic() {
        let good = build(
            vec![NewEntry {
                path: b"a/b".to_vec(),
                oid: ObjectFormat::Sha1.empty_tree(),
                mode: 0o100644,
                stat: Stat::default(),
            }],
            &[],
            ObjectFormat::Sha1,
        );
        assert!(Index::parse(good.clone(), ObjectFormat::Sha1).is_ok());
        for len in 0..good.len() {
            assert!(Index::parse(good[..len].to_vec(), ObjectFormat::Sha1).is_err(), "cut at {len}");
        }
        let mut newer = good;
        newer[7] = 5;
        assert_eq!(Index::parse(newer, ObjectFormat::Sha1).err(), Some(IndexError::Version(5)));
    }

    proptest! {
        #[test]
        fn stat_data_is_rewritten_in_place(
            names in proptest::collection::btree_set("[a-z]{1,20}(/[a-z]{1,9}){0,3}", 1..20),
            fields in proptest::array::uniform9(any::<u32>()),
            sha256: bool,
        ) {
            let format = if sha256 { ObjectFormat::Sha256 } else { ObjectFormat::Sha1 };
            let entries: Vec<NewEntry> = names
                .iter()
                .map(|name| NewEntry { path: name.clone().into_bytes(), oid: format.empty_tree(), mode: 0o100755, stat: Stat::default() })
                .collect();
            let [a, b, c, d, dev, ino, uid, gid, size] = fields;
            let stat = Stat { ctime: (a, b), mtime: (c, d), dev, ino, uid, gid, size };
            let mut index = Index::parse(build(entries.clone(), &[], format), format).unwrap();
            for i in 0..index.entries().len() {
                index.set_stat(i, stat);
            }
            let again = Index::parse(index.finish(), format).unwrap();
            prop_assert_eq!(again.entries().len(), entries.len());
            for (entry, new) in again.entries().iter().zip(&entries) {
                prop_assert_eq!(&entry.path, &new.path);
                prop_assert_eq!(entry.mode, 0o100755);
                prop_assert_eq!(entry.stat, stat);
                prop_assert_eq!(entry.oid, new.oid);
            }
        }
    }
}
