//! The operations of a plan, in little room: a first capture has one for each file of the tree.

use std::sync::Arc;

/// Operations, those of one directory together.
#[derive(Debug, Default)]
pub(super) struct Ops {
    groups: Vec<Group>,
    /// What each one copies, as far as its group does not say it.
    at: Vec<u32>,
}

/// Operations of one directory whose subjects are found in the same place.
#[derive(Debug)]
struct Group {
    dir: Arc<[u8]>,
    of: Of,
    /// Its first operation; it ends where the next group begins.
    first: usize,
}

/// Where subjects are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Updates,
    Changed(u32),
    New(u32),
    Layers,
}

/// One file or symlink to copy: what the scan or the manifest has is not repeated.
#[derive(Debug, Clone, Copy)]
pub(super) struct Op<'a> {
    /// Its directory's path.
    pub(super) dir: &'a [u8],
    pub(super) what: Subject,
}

/// What an operation copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    /// A known entry, by its position among the scan's updates.
    Update(u32),
    /// A node of a directory whose names changed, by the positions of both.
    Changed(u32, u32),
    /// A node of a new directory, by the directory's id and its position.
    New(u32, u32),
    /// A known entry, from the layer of the previous stack that holds it.
    Layer(u32),
}

impl Ops {
    /// Adds an operation, and returns its number.
    pub(super) fn push(&mut self, dir: &Arc<[u8]>, what: Subject) -> usize {
        let (of, at) = match what {
            Subject::Update(at) => (Of::Updates, at),
            Subject::Changed(listing, at) => (Of::Changed(listing), at),
            Subject::New(id, at) => (Of::New(id), at),
            Subject::Layer(index) => (Of::Layers, index),
        };
        let op = self.at.len();
        if !self.groups.last().is_some_and(|last| last.of == of && last.dir == *dir) {
            self.groups.push(Group { dir: dir.clone(), of, first: op });
        }
        self.at.push(at);
        op
    }

    /// Returns how many there are.
    pub(super) fn len(&self) -> usize {
        self.at.len()
    }

    /// Returns whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.at.is_empty()
    }

    /// Returns one by its number.
    pub(super) fn get(&self, op: usize) -> Option<Op<'_>> {
        let at = *self.at.get(op)?;
        let group = self.groups.get(self.groups.partition_point(|group| group.first <= op).checked_sub(1)?)?;
        Some(group.op(at))
    }

    /// Returns all, in their order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Op<'_>> {
        let ends = self.groups.iter().skip(1).map(|group| group.first).chain([self.at.len()]);
        self.groups.iter().zip(ends).flat_map(|(group, end)| {
            let ops = self.at.get(group.first..end).unwrap_or_default();
            ops.iter().map(|at| group.op(*at))
        })
    }

    /// Returns the paths of the directories, once for each group.
    pub(super) fn dirs(&self) -> impl Iterator<Item = &[u8]> {
        self.groups.iter().map(|group| &*group.dir)
    }
}

impl Group {
    fn op(&self, at: u32) -> Op<'_> {
        let what = match self.of {
            Of::Updates => Subject::Update(at),
            Of::Changed(listing) => Subject::Changed(listing, at),
            Of::New(id) => Subject::New(id, at),
            Of::Layers => Subject::Layer(at),
        };
        Op { dir: &self.dir, what }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_come_back_as_they_were_added() {
        let dirs: Vec<Arc<[u8]>> = [&b"a"[..], b"b"].map(Arc::from).to_vec();
        let all = [
            (0, Subject::Update(3)),
            (0, Subject::Update(9)),
            (0, Subject::New(1, 0)),
            (1, Subject::New(1, 1)),
            (1, Subject::Changed(0, 7)),
            (1, Subject::Changed(0, 8)),
            (0, Subject::Layer(5)),
        ];
        let mut ops = Ops::default();
        assert!(ops.is_empty() && ops.get(0).is_none() && ops.iter().next().is_none());
        for (at, (dir, what)) in all.iter().enumerate() {
            assert_eq!(ops.push(&dirs[*dir], *what), at);
        }
        let told: Vec<_> = all.iter().map(|(dir, what)| (&*dirs[*dir], *what)).collect();
        assert_eq!(ops.iter().map(|op| (op.dir, op.what)).collect::<Vec<_>>(), told);
        let each: Vec<_> = (0..ops.len()).filter_map(|op| ops.get(op)).map(|op| (op.dir, op.what)).collect();
        assert_eq!((each, ops.get(ops.len()).is_none()), (told, true));
        assert_eq!(ops.dirs().collect::<Vec<_>>(), [&b"a"[..], b"a", b"b", b"b", b"a"]);
    }
}
