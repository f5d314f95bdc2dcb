//! Marks in the order in which they came, each path once.

use std::collections::{BTreeMap, HashMap};

/// What is known about a path that is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Its content or its attributes may be others.
    Content,
    /// Also: the name may be new, gone or another file's.
    Name,
    /// Also: everything below it, if it is a directory.
    Subtree,
}

/// Something that must be looked at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mark {
    /// A path relative to the root; the empty path is the root.
    Path(Vec<u8>, Kind),
    /// All names of an inode: it was changed through a name that is not known, or may be at any time.
    Inode(u64),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Path(Vec<u8>),
    Inode(u64),
}

/// The marks since some time.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// The number of the last mark.
    last: u64,
    /// Marks up to this number are forgotten.
    floor: u64,
    in_order: BTreeMap<u64, (Key, Kind)>,
    at: HashMap<Key, u64>,
    most: usize,
}

impl Log {
    /// Returns an empty log that keeps up to `most` marks.
    pub(crate) fn new(most: usize) -> Self {
        Self { most: most.max(2), ..Self::default() }
    }

    /// Returns the number of the last mark.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    pub(crate) fn path(&mut self, path: Vec<u8>, kind: Kind) {
        self.mark(Key::Path(path), kind);
    }

    pub(crate) fn inode(&mut self, ino: u64) {
        self.mark(Key::Inode(ino), Kind::Content);
    }

    fn mark(&mut self, key: Key, kind: Kind) {
        let before = self.at.get(&key).and_then(|at| self.in_order.remove(at));
        // What was said of it once holds for those who ask from further back.
        let kind = before.map_or(kind, |(_, before)| before.max(kind));
        self.last += 1;
        self.at.insert(key.clone(), self.last);
        self.in_order.insert(self.last, (key, kind));
        if self.at.len() > self.most {
            for _ in 0..self.most / 2 {
                let Some((number, (key, _))) = self.in_order.pop_first() else { break };
                self.at.remove(&key);
                self.floor = number;
            }
        }
    }

    /// Returns all marks after a number; `None` when some of them are forgotten.
    pub(crate) fn since(&self, number: u64) -> Option<Vec<Mark>> {
        if number < self.floor || number > self.last {
            return None;
        }
        let marks = self.in_order.range(number + 1..).map(|(_, (key, kind))| match key {
            Key::Path(path) => Mark::Path(path.clone(), *kind),
            Key::Inode(ino) => Mark::Inode(*ino),
        });
        Some(marks.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(path: &str, kind: Kind) -> Mark {
        Mark::Path(path.into(), kind)
    }

    #[test]
    fn a_path_is_told_to_each_who_asks_from_before_its_last_change() {
        let mut log = Log::new(100);
        log.path(b"a".to_vec(), Kind::Subtree);
        log.path(b"b".to_vec(), Kind::Content);
        let between = log.last();
        log.path(b"a".to_vec(), Kind::Content);
        log.inode(7);
        assert_eq!(log.since(0).unwrap(), [path("b", Kind::Content), path("a", Kind::Subtree), Mark::Inode(7)]);
        assert_eq!(log.since(between).unwrap(), [path("a", Kind::Subtree), Mark::Inode(7)]);
        assert_eq!(log.since(log.last()).unwrap(), []);
        assert_eq!(log.since(log.last() + 1), None, "a number from the future");
    }

    #[test]
    fn what_was_forgotten_is_not_answered_for() {
        let mut log = Log::new(4);
        for n in 0..5u8 {
            log.path(vec![n], Kind::Name);
        }
        assert_eq!(log.since(0), None);
        assert_eq!(log.since(1), None);
        assert_eq!(log.since(2).unwrap().len(), 3);
    }
}
