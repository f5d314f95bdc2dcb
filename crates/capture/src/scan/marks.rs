//! The part of the tree that a watcher names: directories and entries that a scan must look at.
//!
//! ```text
//!  marks of the watcher ─┬─ path ───► its entry, and the way to it
//!                        ├─ name ───► also the listing of its directory
//!                        ├─ subtree ► everything below, as in a scan without marks
//!                        └─ inode ──► all its names in the manifest
//! ```

use crate::manifest::Manifest;
use crate::paths::join;
use sandbox_watch::{Kind, Mark};
use std::collections::{BTreeMap, HashSet};

/// One directory or entry on the way to what is marked.
#[derive(Debug, Default)]
pub(crate) struct Marked {
    /// Names came or went: its listing must be read.
    pub(super) names: bool,
    /// Everything below is to be looked at.
    pub(super) all: bool,
    /// What is marked in it, by name.
    pub(super) below: BTreeMap<Vec<u8>, Marked>,
}

impl Marked {
    /// Builds the tree of what is marked. A path that the manifest has not got marks the last of its
    /// directories that is known.
    pub(crate) fn new(known: &Manifest, marks: &[Mark]) -> Self {
        let mut top = Self::default();
        let mut inodes = HashSet::new();
        for mark in marks {
            match mark {
                Mark::Path(path, kind) => top.mark(known, path, *kind),
                Mark::Inode(ino) => drop(inodes.insert(*ino)),
            }
        }
        for path in named(known, &inodes) {
            top.mark(known, &path, Kind::Content);
        }
        top
    }

    fn mark(&mut self, known: &Manifest, path: &[u8], kind: Kind) {
        if path.is_empty() {
            // The top directory is looked at in any case.
            self.names |= kind >= Kind::Name;
            self.all |= kind == Kind::Subtree;
            return;
        }
        let (mut node, mut dir) = (self, 0);
        let mut names = path.split(|b| *b == b'/').peekable();
        while let Some(name) = names.next() {
            let child = known.find_in(dir, name).and_then(|index| known.raw(index).child());
            let last = names.peek().is_none();
            if last && kind >= Kind::Name || !last && child.is_none() {
                node.names = true;
            }
            node = node.below.entry(name.to_vec()).or_default();
            match child {
                Some(child) if !last => dir = child,
                _ => break,
            }
        }
        node.all |= kind == Kind::Subtree;
    }
}

/// Returns the paths of all entries with one of these inodes.
fn named(known: &Manifest, inodes: &HashSet<u64>) -> Vec<Vec<u8>> {
    let mut paths = Vec::new();
    if inodes.is_empty() {
        return paths;
    }
    for dir in 0..known.dirs() {
        let record = known.dir(dir);
        for index in record.first..record.first + record.count {
            let raw = known.raw(index);
            if inodes.contains(&raw.ino()) {
                paths.push(join(&known.dir_path(dir), raw.name()));
            }
        }
    }
    paths
}
