//! Which watch stands for which directory.
//!
//! A watch is of an inode, whatever its path: so the tree is kept as it is in the file system, each
//! directory with its name and the watch of its parent, and a directory that was moved is one that hangs
//! elsewhere.

use std::collections::HashMap;

/// The kernel's number of a watch; they are not used again.
pub(crate) type Watch = i32;

#[derive(Debug)]
struct Dir {
    /// `None`: the root, or moved away and not seen again yet.
    place: Option<(Watch, Box<[u8]>)>,
    children: HashMap<Box<[u8]>, Watch>,
}

/// The directories that are watched.
#[derive(Debug)]
pub(crate) struct Dirs {
    root: Watch,
    dirs: HashMap<Watch, Dir>,
}

impl Dirs {
    /// Returns a tree of one directory.
    pub(crate) fn new(root: Watch) -> Self {
        let dir = Dir { place: None, children: HashMap::new() };
        Self { root, dirs: HashMap::from([(root, dir)]) }
    }

    pub(crate) fn root(&self) -> Watch {
        self.root
    }

    pub(crate) fn len(&self) -> usize {
        self.dirs.len()
    }

    pub(crate) fn has(&self, watch: Watch) -> bool {
        self.dirs.contains_key(&watch)
    }

    /// Returns all watches.
    pub(crate) fn watches(&self) -> Vec<Watch> {
        self.dirs.keys().copied().collect()
    }

    pub(crate) fn child(&self, dir: Watch, name: &[u8]) -> Option<Watch> {
        self.dirs.get(&dir)?.children.get(name).copied()
    }

    /// Returns the path of a directory; `None` when it hangs nowhere.
    pub(crate) fn path(&self, watch: Watch) -> Option<Vec<u8>> {
        let mut names: Vec<&[u8]> = Vec::new();
        let mut at = watch;
        while at != self.root {
            let (parent, name) = self.dirs.get(&at)?.place.as_ref()?;
            names.push(name);
            // A loop is impossible in a file system, but not in what we believe between two events.
            if names.len() > self.dirs.len() {
                return None;
            }
            at = *parent;
        }
        names.reverse();
        Some(names.join(&b'/'))
    }

    /// Hangs a directory, known or not, below another one. Returns whether it hung there already.
    pub(crate) fn hang(&mut self, watch: Watch, parent: Watch, name: &[u8]) -> bool {
        if self.child(parent, name) == Some(watch) {
            return true;
        }
        self.unhang(watch);
        let Some(dir) = self.dirs.get_mut(&parent) else { return false };
        if let Some(other) = dir.children.insert(name.into(), watch)
            && let Some(other) = self.dirs.get_mut(&other)
        {
            other.place = None;
        }
        let dir = self.dirs.entry(watch).or_insert_with(|| Dir { place: None, children: HashMap::new() });
        dir.place = Some((parent, name.into()));
        false
    }

    /// Takes a name away: its directory hangs nowhere.
    pub(crate) fn unname(&mut self, parent: Watch, name: &[u8]) {
        if let Some(watch) = self.child(parent, name) {
            self.unhang(watch);
        }
    }

    fn unhang(&mut self, watch: Watch) {
        let Some((parent, name)) = self.dirs.get_mut(&watch).and_then(|dir| dir.place.take()) else { return };
        if let Some(parent) = self.dirs.get_mut(&parent)
            && parent.children.get(&name) == Some(&watch)
        {
            parent.children.remove(&name);
        }
    }

    /// Forgets a directory whose watch is gone. What hung below it hangs nowhere.
    pub(crate) fn forget(&mut self, watch: Watch) {
        self.unhang(watch);
        let Some(dir) = self.dirs.remove(&watch) else { return };
        for child in dir.children.into_values() {
            if let Some(child) = self.dirs.get_mut(&child) {
                child.place = None;
            }
        }
    }

    /// Forgets all directories that hang nowhere, with those below; returns their watches.
    pub(crate) fn prune(&mut self) -> Vec<Watch> {
        let loose = |(watch, dir): (&Watch, &Dir)| (dir.place.is_none() && *watch != self.root).then_some(*watch);
        let mut waiting: Vec<Watch> = self.dirs.iter().filter_map(loose).collect();
        let mut gone = Vec::new();
        while let Some(watch) = waiting.pop() {
            if let Some(dir) = self.dirs.remove(&watch) {
                waiting.extend(dir.children.into_values());
                gone.push(watch);
            }
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moved_directory_takes_what_is_below_along() {
        let mut dirs = Dirs::new(1);
        assert!(!dirs.hang(2, 1, b"a") && !dirs.hang(3, 2, b"b") && !dirs.hang(4, 1, b"c"));
        assert!(dirs.hang(3, 2, b"b"));
        assert_eq!(dirs.path(3).unwrap(), b"a/b");
        dirs.unname(1, b"a");
        assert_eq!((dirs.path(3), dirs.path(2)), (None, None));
        dirs.hang(2, 4, b"moved");
        assert_eq!(dirs.path(3).unwrap(), b"c/moved/b");
        assert!(dirs.prune().is_empty());
        dirs.unname(4, b"moved");
        let mut gone = dirs.prune();
        gone.sort_unstable();
        assert_eq!((gone, dirs.len()), (vec![2, 3], 2));
    }

    #[test]
    fn a_name_has_one_directory_and_a_directory_one_name() {
        let mut dirs = Dirs::new(1);
        dirs.hang(2, 1, b"a");
        dirs.hang(3, 1, b"a");
        assert_eq!((dirs.path(2), dirs.path(3)), (None, Some(b"a".to_vec())));
        dirs.hang(3, 1, b"b");
        assert_eq!((dirs.child(1, b"a"), dirs.path(3)), (None, Some(b"b".to_vec())));
        dirs.hang(4, 3, b"x");
        dirs.forget(3);
        assert_eq!((dirs.has(3), dirs.path(4)), (false, None));
        assert_eq!(dirs.prune().len(), 2);
        // What cannot be in a file system: neither endless nor a panic.
        dirs.hang(5, 1, b"p");
        dirs.hang(6, 5, b"q");
        dirs.hang(5, 6, b"r");
        assert_eq!(dirs.path(6), None);
    }
}
