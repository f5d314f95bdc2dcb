//! The entries of one directory, in little room: a first capture holds those of the whole tree.
//!
//! ```text
//!  records   56 bytes each: the stat without the device, what is to become of it, where its name is
//!  names     one after the other, each with its NUL, so that it goes to the kernel as it is
//!  odd       stats of which some number does not fit into a record, or that are on another device
//! ```

use super::{Node, What};
use crate::manifest::{Look, Reason};
use crate::stat::{Stat, Time};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};

/// Entries of a directory, sorted by name.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    records: Box<[Record]>,
    names: Box<[u8]>,
    /// The device of all that are not odd.
    dev: u64,
    odd: BTreeMap<u32, Stat>,
}

#[derive(Debug, Clone, Copy)]
struct Record {
    size: u64,
    ino: u64,
    mtime: i64,
    ctime: i64,
    mtime_nsec: u32,
    ctime_nsec: u32,
    blocks: u32,
    /// Where its name begins.
    name: u32,
    /// What belongs to the tag.
    value: u32,
    mode: u16,
    nlink: u8,
    tag: u8,
}

const _: () = assert!(size_of::<Record>() == 56);

/// Values of [`Record::tag`].
const KEEP: u8 = 0;
const DIR: u8 = 1;
const LEAVE_OUT: u8 = 2;
const COPY: u8 = 3;
const COPY_SECRET: u8 = 4;
const COPY_TRACKED_SECRET: u8 = 5;

impl Nodes {
    /// Packs entries; they are sorted here. `None`: their names are too long together.
    pub(super) fn new(mut entries: Vec<(CString, Stat, What)>) -> Option<Self> {
        entries.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let dev = entries.first().map_or(0, |(_, stat, _)| stat.dev);
        let mut names = Vec::with_capacity(entries.iter().map(|(name, ..)| name.as_bytes_with_nul().len()).sum());
        u32::try_from(names.capacity()).ok()?;
        let mut odd = BTreeMap::new();
        let mut records = Vec::with_capacity(entries.len());
        for (name, stat, what) in &entries {
            let record = Record::new(names.len() as u32, stat, *what);
            if record.stat(dev) != *stat {
                odd.insert(records.len() as u32, *stat);
            }
            records.push(record);
            names.extend_from_slice(name.as_bytes_with_nul());
        }
        Some(Self { records: records.into(), names: names.into(), dev, odd })
    }

    /// Returns how many there are.
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// Returns one by its position.
    pub(crate) fn get(&self, at: usize) -> Option<Node<'_>> {
        let record = self.records.get(at)?;
        let name = self.names.get(record.name as usize..).and_then(|rest| CStr::from_bytes_until_nul(rest).ok());
        let odd = if self.odd.is_empty() { None } else { self.odd.get(&(at as u32)) };
        let stat = odd.copied().unwrap_or_else(|| record.stat(self.dev));
        Some(Node { name: name.unwrap_or_default(), stat, what: record.what() })
    }

    /// Returns all, in the order of their names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Node<'_>> {
        (0..self.len()).filter_map(|at| self.get(at))
    }

    /// Returns the position of a name.
    pub(crate) fn find(&self, name: &[u8]) -> Option<usize> {
        let at = self.records.partition_point(|record| {
            let rest = self.names.get(record.name as usize..).unwrap_or_default();
            CStr::from_bytes_until_nul(rest).unwrap_or_default().to_bytes() < name
        });
        self.get(at).filter(|node| node.name() == name).map(|_| at)
    }

    /// Changes what is to become of one.
    pub(crate) fn decide(&mut self, at: usize, what: What) {
        if let Some(record) = self.records.get_mut(at) {
            (record.tag, record.value) = packed(what);
        }
    }
}

impl Record {
    /// Takes what fits: a number that does not makes the stat another one.
    fn new(name: u32, stat: &Stat, what: What) -> Self {
        let (tag, value) = packed(what);
        Self {
            size: stat.size,
            ino: stat.ino,
            mtime: stat.mtime.sec,
            ctime: stat.ctime.sec,
            mtime_nsec: stat.mtime.nsec,
            ctime_nsec: stat.ctime.nsec,
            blocks: stat.blocks as u32,
            name,
            value,
            mode: stat.mode as u16,
            nlink: stat.nlink as u8,
            tag,
        }
    }

    fn stat(&self, dev: u64) -> Stat {
        Stat {
            mode: self.mode.into(),
            size: self.size,
            mtime: Time { sec: self.mtime, nsec: self.mtime_nsec },
            ctime: Time { sec: self.ctime, nsec: self.ctime_nsec },
            dev,
            ino: self.ino,
            nlink: self.nlink.into(),
            blocks: self.blocks.into(),
        }
    }

    fn what(&self) -> What {
        let copy = |look| What::Copy { look, op: self.value };
        match self.tag {
            DIR => What::Dir(self.value),
            LEAVE_OUT => What::LeaveOut(Reason::from_code(self.value as u16).unwrap_or(Reason::Unreadable)),
            COPY => copy(Look::Plain),
            COPY_SECRET => copy(Look::Secret { tracked: false }),
            COPY_TRACKED_SECRET => copy(Look::Secret { tracked: true }),
            _ => What::Keep(self.value),
        }
    }
}

fn packed(what: What) -> (u8, u32) {
    match what {
        What::Keep(index) => (KEEP, index),
        What::Dir(id) => (DIR, id),
        What::LeaveOut(reason) => (LEAVE_OUT, reason.code().into()),
        What::Copy { look: Look::Plain, op } => (COPY, op),
        What::Copy { look: Look::Secret { tracked: false }, op } => (COPY_SECRET, op),
        What::Copy { look: Look::Secret { tracked: true }, op } => (COPY_TRACKED_SECRET, op),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(n: u64) -> Stat {
        let time = Time { sec: -5, nsec: 999_999_999 };
        Stat { mode: 0o100644, size: n << 40, mtime: time, ctime: time, dev: 7, ino: n, nlink: 1, blocks: 8 }
    }

    #[test]
    fn what_is_packed_comes_back() {
        let of = |name: &str, stat, what| (CString::new(name).unwrap(), stat, what);
        let looks = [Look::Plain, Look::Secret { tracked: false }, Look::Secret { tracked: true }];
        let copies = looks.map(|look| What::Copy { look, op: 5 });
        let whats = [What::Keep(u32::MAX), What::Dir(4), What::LeaveOut(Reason::OverLimit)];
        let mut all: Vec<_> =
            copies.into_iter().chain(whats).enumerate().map(|(n, what)| of(&format!("n{n}"), stat(9), what)).collect();
        all.push(of("other device", Stat { dev: 8, ..stat(1) }, What::Keep(0)));
        all.push(of("huge", Stat { blocks: 1 << 40, ..stat(2) }, What::Keep(1)));
        all.push(of("many names", Stat { nlink: 256, ..stat(3) }, What::Keep(2)));
        all.push(of("a", Stat { nlink: 255, mode: 0o177777, ..stat(4) }, What::Keep(3)));
        let mut nodes = Nodes::new(all.iter().rev().cloned().collect()).unwrap();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        let back: Vec<_> = nodes.iter().map(|node| (node.name.to_owned(), node.stat, node.what)).collect();
        assert_eq!((back, nodes.len(), nodes.odd.len()), (all.clone(), all.len(), 3));
        for (at, (name, ..)) in all.iter().enumerate() {
            assert_eq!(nodes.find(name.as_bytes()), Some(at));
        }
        assert_eq!((nodes.find(b"A"), nodes.find(b"n00"), nodes.find(b"zz")), (None, None, None));
        nodes.decide(0, What::LeaveOut(Reason::Special));
        assert_eq!(nodes.get(0).unwrap().what, What::LeaveOut(Reason::Special));
        assert!(nodes.get(all.len()).is_none() && Nodes::default().iter().next().is_none());
    }
}
