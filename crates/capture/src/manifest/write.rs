//! Building a manifest, directory by directory.

use super::delta::push_dir_record;
use super::format::{DIR, ENTRY, Flags, HEADER, MAGIC, NO_LAYER, NONE, VERSION, entry, head};
use super::held::Held;
use super::spool::{Part, Spool};
use super::{CopyStat, Raw};
use crate::stat::{Stat, Time};
use std::io;
use std::ops::Range;
use std::path::Path;

/// An entry to be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    pub(crate) stat: Stat,
    /// Index of the layer, lowermost is 0.
    pub(crate) layer: Option<u16>,
    pub(crate) copy: Option<CopyStat>,
    pub(crate) flags: Flags,
}

/// A manifest that is in no place yet: head and directories, entries, names, the end. They are not joined, because
/// a large one would then be there twice.
#[derive(Debug)]
pub(crate) struct Parts(pub(super) Vec<Part>);

impl Parts {
    /// Returns the file's bytes.
    pub(crate) fn whole(self) -> Vec<u8> {
        self.0.iter().flat_map(|part| part.iter().copied()).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|part| part.len()).sum()
    }

    /// Returns a range that lies in one part.
    pub(super) fn get(&self, range: Range<usize>) -> Option<&[u8]> {
        let mut before = 0;
        for part in &self.0 {
            if range.start < before + part.len() {
                return part.get(range.start - before..range.end.checked_sub(before)?);
            }
            before += part.len();
        }
        None
    }
}

/// Collects records; directories are announced by their entry and filled later, in any order.
pub(crate) struct Builder {
    dirs: Vec<[u32; 5]>,
    entries: Spool,
    names: Spool,
    devs: Vec<u64>,
    layers: Vec<String>,
    scan: Time,
    settings: u64,
    git_state: u64,
    held: Held,
    overflow: bool,
}

impl Builder {
    /// Starts with the top directory, which has index 0.
    ///
    /// `devs` is the table of the manifest that records will be taken over from.
    pub(crate) fn new(scan: Time, settings: u64, layers: Vec<String>, devs: &[u64], top: Record) -> Self {
        let mut builder = Self {
            dirs: Vec::new(),
            entries: Spool::default(),
            names: Spool::default(),
            devs: devs.to_vec(),
            layers,
            scan,
            settings,
            git_state: 0,
            held: Held::default(),
            overflow: false,
        };
        builder.push_dir(NONE, b"", top);
        builder
    }

    /// Notes the request's `git_state`.
    pub(crate) fn git_state(&mut self, state: u64) {
        self.git_state = state;
    }

    /// Keeps a large manifest in files without a name in this directory, not in memory.
    pub(crate) fn spool(&mut self, dir: &Path) {
        self.entries.spill(dir);
        self.names.spill(dir);
    }

    fn index(&self) -> u32 {
        (self.entries.len() / ENTRY) as u32
    }

    /// Begins the entries of a directory; they follow in name order.
    pub(crate) fn begin(&mut self, dir: u32, flags: u32) {
        let first = self.index();
        let record = &mut self.dirs[dir as usize];
        record[0] = first;
        record[4] = flags;
    }

    /// Ends the entries of a directory.
    pub(crate) fn end(&mut self, dir: u32) {
        let next = self.index();
        let record = &mut self.dirs[dir as usize];
        record[1] = next - record[0];
    }

    fn add_name(&mut self, name: &[u8]) -> u32 {
        let at = self.names.len();
        self.names.push(&[name, &[0]]);
        u32::try_from(at).unwrap_or_else(|_| {
            self.overflow = true;
            0
        })
    }

    /// Adds an entry that is not a carried directory.
    pub(crate) fn push(&mut self, name: &[u8], record: Record) {
        self.write(name, record, NONE);
    }

    /// Adds a directory's entry and returns the directory's index.
    pub(crate) fn push_dir(&mut self, parent: u32, name: &[u8], record: Record) -> u32 {
        let dir = self.dirs.len() as u32;
        self.dirs.push([0, 0, self.index(), parent, 0]);
        self.write(name, record, dir);
        dir
    }

    /// Takes over an entry as it is in another manifest with the same devices and layers.
    ///
    /// Returns the directory's new index when it is a directory.
    pub(crate) fn take(&mut self, parent: u32, raw: &Raw<'_>) -> Option<u32> {
        let at = self.entries.len();
        let name = self.add_name(raw.name());
        let child = raw.child().map(|_| {
            let dir = self.dirs.len() as u32;
            self.dirs.push([0, 0, (at / ENTRY) as u32, parent, 0]);
            dir
        });
        let mut bytes = [0; ENTRY];
        bytes.iter_mut().zip(raw.bytes).for_each(|(to, from)| *to = *from);
        bytes[entry::NAME..][..4].copy_from_slice(&name.to_le_bytes());
        bytes[entry::CHILD..][..4].copy_from_slice(&child.unwrap_or(NONE).to_le_bytes());
        self.held.add(&bytes);
        self.entries.push(&[&bytes]);
        child
    }

    fn write(&mut self, name: &[u8], record: Record, child: u32) {
        let name_at = self.add_name(name);
        let bytes = encode(&mut self.devs, &record, (name_at, name.len() as u16), child);
        self.held.add(&bytes);
        self.entries.push(&[&bytes]);
    }

    /// Returns the file in parts; [`io::ErrorKind::FileTooLarge`] when the tree is too large for the format.
    pub(crate) fn finish(self) -> io::Result<Parts> {
        if self.overflow || self.entries.len() / ENTRY >= NONE as usize {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let entries_at = HEADER + self.dirs.len() * DIR;
        let names_at = entries_at + self.entries.len();
        let mut out = Vec::with_capacity(entries_at);
        out.resize(HEADER, 0);
        self.dirs.iter().for_each(|dir| push_dir_record(&mut out, dir));
        let head = Head {
            devs: &self.devs,
            layers: &self.layers,
            scan: self.scan,
            settings: self.settings,
            git_state: self.git_state,
            held: &self.held,
            entries: (self.entries.len() / ENTRY) as u32,
            dirs: self.dirs.len() as u32,
        };
        let rest = self.entries.len() + self.names.len();
        let tables = finish(head, &mut out, VERSION, [HEADER, entries_at, names_at], rest);
        let mut parts = vec![Part::Owned(out)];
        parts.extend(self.entries.into_parts()?);
        parts.extend(self.names.into_parts()?);
        parts.push(Part::Owned(tables));
        Ok(Parts(parts))
    }
}

/// Returns an entry's record; a device that is new is added to the table.
pub(super) fn encode(devs: &mut Vec<u64>, record: &Record, name: (u32, u16), child: u32) -> [u8; ENTRY] {
    let dev = devs.iter().position(|dev| *dev == record.stat.dev).unwrap_or_else(|| {
        devs.push(record.stat.dev);
        devs.len() - 1
    });
    let (copy_ino, copy_ctime) = record.copy.map_or((0, Time::default()), |copy| (copy.ino, copy.ctime));
    let stat = &record.stat;
    let mut bytes = [0; ENTRY];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(entry::MTIME_SEC, &stat.mtime.sec.to_le_bytes());
    put(entry::CTIME_SEC, &stat.ctime.sec.to_le_bytes());
    put(entry::SIZE, &stat.size.to_le_bytes());
    put(entry::INO, &stat.ino.to_le_bytes());
    put(entry::COPY_INO, &copy_ino.to_le_bytes());
    put(entry::COPY_CTIME_SEC, &copy_ctime.sec.to_le_bytes());
    put(entry::MTIME_NSEC, &stat.mtime.nsec.to_le_bytes());
    put(entry::CTIME_NSEC, &stat.ctime.nsec.to_le_bytes());
    put(entry::COPY_CTIME_NSEC, &copy_ctime.nsec.to_le_bytes());
    put(entry::MODE, &stat.mode.to_le_bytes());
    put(entry::NAME, &name.0.to_le_bytes());
    put(entry::CHILD, &child.to_le_bytes());
    // Names have at most 255 bytes, devices a tree can span are few.
    put(entry::NAME_LEN, &name.1.to_le_bytes());
    put(entry::LAYER, &record.layer.unwrap_or(NO_LAYER).to_le_bytes());
    put(entry::DEV, &(dev.min(usize::from(u16::MAX)) as u16).to_le_bytes());
    put(entry::FLAGS, &record.flags.0.to_le_bytes());
    bytes
}

/// What the header and the tables say.
pub(super) struct Head<'a> {
    pub(super) devs: &'a [u64],
    pub(super) layers: &'a [String],
    pub(super) scan: Time,
    pub(super) settings: u64,
    pub(super) git_state: u64,
    pub(super) held: &'a Held,
    pub(super) entries: u32,
    pub(super) dirs: u32,
}

/// Fills in the header at the start of `out`; returns the tables and the end of the file. Between `out` and those
/// there are `rest` bytes.
pub(super) fn finish(head: Head<'_>, out: &mut [u8], version: u32, at: [usize; 3], rest: usize) -> Vec<u8> {
    let tables_at = out.len() + rest;
    let mut tables = Vec::new();
    for dev in head.devs {
        tables.extend_from_slice(&dev.to_le_bytes());
    }
    for id in head.layers {
        tables.extend_from_slice(&(id.len() as u16).to_le_bytes());
        tables.extend_from_slice(id.as_bytes());
    }
    head.held.write(head.layers.len(), &mut tables);
    tables.extend_from_slice(MAGIC);
    let mut put = |at: usize, value: &[u8]| out[at..at + value.len()].copy_from_slice(value);
    put(0, MAGIC);
    put(head::VERSION, &version.to_le_bytes());
    put(head::ENTRIES, &head.entries.to_le_bytes());
    put(head::DIRS, &head.dirs.to_le_bytes());
    put(head::LAYERS, &(head.layers.len() as u32).to_le_bytes());
    put(head::DEVS, &(head.devs.len() as u32).to_le_bytes());
    put(head::DIRS_AT, &(at[0] as u64).to_le_bytes());
    put(head::ENTRIES_AT, &(at[1] as u64).to_le_bytes());
    put(head::NAMES_AT, &(at[2] as u64).to_le_bytes());
    put(head::TABLES_AT, &(tables_at as u64).to_le_bytes());
    put(head::LENGTH, &((tables_at + tables.len()) as u64).to_le_bytes());
    put(head::SCAN_SEC, &head.scan.sec.to_le_bytes());
    put(head::SCAN_NSEC, &head.scan.nsec.to_le_bytes());
    put(head::SETTINGS, &head.settings.to_le_bytes());
    put(head::GIT_STATE, &head.git_state.to_le_bytes());
    put(head::FILES, &head.held.files.to_le_bytes());
    put(head::HELD, &2u64.to_le_bytes());
    tables
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Manifest, ManifestError, Reason};
    use crate::stat::Kind;

    fn record(mode: u32, ino: u64) -> Record {
        let time = Time { sec: -1, nsec: 999_999_999 };
        Record {
            stat: Stat { mode, size: ino * 10, mtime: time, ctime: time, dev: 7, ino, nlink: 0, blocks: 0 },
            layer: Some(0),
            copy: Some(CopyStat { ino: ino + 100, ctime: time }),
            flags: Flags::default(),
        }
    }

    fn sample() -> Vec<u8> {
        let mut builder =
            Builder::new(Time { sec: 5, nsec: 6 }, 42, vec!["base".into(), "delta".into()], &[], record(0o40755, 1));
        builder.begin(0, super::super::DIR_GIT);
        builder.push(b"a.txt", record(0o100644, 2));
        let src = builder.push_dir(0, b"src", Record { layer: Some(1), ..record(0o40700, 3) });
        let flags = Flags::default().with_reason(Some(Reason::Special));
        builder.push(b"z", Record { layer: None, copy: None, flags, ..record(0o10600, 4) });
        builder.end(0);
        builder.begin(src, 0);
        builder.push(b"\xff", record(0o120777, 5));
        builder.end(src);
        builder.finish().unwrap().whole()
    }

    #[test]
    fn what_is_written_is_read() {
        let manifest = Manifest::from_bytes(sample()).unwrap();
        assert_eq!(manifest.layers(), ["delta", "base"]);
        assert_eq!((manifest.scanned(), manifest.settings(), manifest.len()), (Time { sec: 5, nsec: 6 }, 42, 5));
        let link = manifest.lookup(b"src/\xff").unwrap();
        assert_eq!((link.kind(), link.stat, link.layer), (Kind::Symlink, record(0o120777, 5).stat, Some("base")));
        assert_eq!(link.copy.unwrap().ino, 105);
        assert_eq!(manifest.lookup(b"src").unwrap().layer, Some("delta"));
        let fifo = manifest.lookup(b"z").unwrap();
        assert_eq!((fifo.left_out, fifo.layer, fifo.copy), (Some(Reason::Special), None, None));
        assert!(manifest.lookup(b"src/a.txt").is_none() && manifest.lookup(b"a.txt/x").is_none());
        assert_eq!(manifest.dir_path(1), b"src");
        assert_eq!(manifest.files(), 2);
        assert_eq!(manifest.dir(0).flags, super::super::DIR_GIT);
        let paths: Vec<_> = manifest.walk(b"").map(|(path, _)| path).collect();
        assert_eq!(paths, [&b"a.txt"[..], b"src", b"src/\xff", b"z"]);
        assert_eq!(manifest.walk(b"src").count(), 1);
    }

    #[test]
    fn entries_are_taken_over() {
        let old = Manifest::from_bytes(sample()).unwrap();
        let mut builder = Builder::new(Time::default(), 0, old.layers_up().to_vec(), old.devs(), record(0o40755, 1));
        builder.begin(0, 0);
        let src = builder.take(0, &old.raw(old.find(b"src").unwrap())).unwrap();
        builder.end(0);
        builder.begin(src, 0);
        assert!(builder.take(src, &old.raw(old.find(b"src/\xff").unwrap())).is_none());
        builder.end(src);
        let new = Manifest::from_parts(builder.finish().unwrap()).unwrap();
        let joined = Manifest::from_bytes(new.chunks().collect::<Vec<_>>().concat()).unwrap();
        assert!(joined.walk(b"").eq(new.walk(b"")) && joined.layers() == new.layers());
        assert_eq!(new.files(), 1);
        assert_eq!(new.lookup(b"src/\xff"), old.lookup(b"src/\xff"));
        assert_eq!(new.lookup(b"src"), old.lookup(b"src"));
    }

    #[test]
    fn damage_is_an_error_or_a_difference_but_never_a_panic() {
        let whole = sample();
        for end in 0..whole.len() {
            assert!(matches!(Manifest::from_bytes(whole[..end].to_vec()), Err(ManifestError::Damaged { .. })));
        }
        for at in 12..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0xff;
            if let Ok(manifest) = Manifest::from_bytes(bytes) {
                let _ = manifest.lookup(b"src/\xff");
                assert!(manifest.walk(b"").count() < 100);
                for dir in 0..manifest.dirs() {
                    let _ = manifest.dir_path(dir);
                }
            }
        }
        let mut newer = whole;
        newer[8] = 9;
        assert!(matches!(Manifest::from_bytes(newer), Err(ManifestError::Version { found: 9, .. })));
    }
}
