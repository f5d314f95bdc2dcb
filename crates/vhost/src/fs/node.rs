//! The inodes that the guest knows, by number.
//!
//! ```text
//!   number = place (16 bits) │ host inode (48 bits)      place = an export and a file system in it
//!   node   = parent's number + name ───► the way from the export's root, walked again when it is needed
//! ```
//! No descriptor is held for a node: a tree has more files than a process may open. The number follows
//! from the host's inode, so it is the same after a restart, and all names of a file have one number.

use super::Cache;
use super::wire::{Attr, device};
use rustix::fs::{Statx, StatxFlags};
use rustix::io::Errno;
use std::collections::HashMap;

/// The number of the directory that holds the exports.
pub const ROOT: u64 = 1;

/// What statx(2) is asked for.
pub const STAT: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

const INODE_BITS: u32 = 48;
/// Places that an export's file systems may take together; the bits above stay free for the guest's overlay.
const MAX_PLACES: u64 = 1 << 12;
/// The place of numbers that are given out one by one, for inodes that need more than 48 bits.
const COUNTED: u64 = MAX_PLACES + 1;

/// One inode.
#[derive(Debug)]
pub struct Node {
    /// Its directory.
    pub parent: u64,
    /// Its name there: one of them when it has several.
    pub name: Box<[u8]>,
    /// How often the guest was told of it and has not forgotten.
    lookups: u64,
    /// Nodes whose parent it is: it stays as long as there are some.
    children: u32,
    /// Tells two files apart that had the same number one after the other.
    pub generation: u32,
    /// Which export it is in.
    pub export: u16,
    /// The type bits of its mode, shifted down (`S_IFMT >> 12`).
    kind: u8,
}

impl Node {
    /// Whether it was a directory, regular file or whatever `kind` (`S_IF*`) says when it was last seen.
    pub fn is(&self, kind: u32) -> bool {
        u32::from(self.kind) << 12 == kind
    }
}

/// All nodes.
#[derive(Debug)]
pub struct Nodes {
    all: HashMap<u64, Node>,
    limit: usize,
    places: HashMap<(u16, u64), u64>,
    counted: HashMap<(u64, u64), u64>,
}

impl Nodes {
    /// Returns a table for at most `limit` nodes.
    pub fn new(limit: usize) -> Self {
        Self { all: HashMap::new(), limit, places: HashMap::new(), counted: HashMap::new() }
    }

    /// Returns the number of a host inode of an export.
    pub fn number(&mut self, export: u16, stat: &Statx) -> Result<u64, Errno> {
        let device = u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor);
        let next = self.places.len() as u64 + 1;
        let place = match self.places.get(&(export, device)) {
            Some(place) => *place,
            None if next >= MAX_PLACES => return Err(Errno::NOMEM),
            None => *self.places.entry((export, device)).or_insert(next),
        };
        if stat.stx_ino >> INODE_BITS == 0 {
            return Ok(place << INODE_BITS | stat.stx_ino);
        }
        let next = self.counted.len();
        match self.counted.get(&(place, stat.stx_ino)) {
            Some(number) => Ok(*number),
            None if next >= self.limit => Err(Errno::NOMEM),
            None => Ok(*self.counted.entry((place, stat.stx_ino)).or_insert(COUNTED << INODE_BITS | next as u64)),
        }
    }

    /// Returns a node that the guest may know.
    pub fn get(&self, number: u64) -> Result<&Node, Errno> {
        self.all.get(&number).ok_or(Errno::STALE)
    }

    /// Puts in the root of an export, which is never forgotten.
    pub fn pin(&mut self, number: u64, export: u16, name: &[u8]) {
        let node = Node { parent: ROOT, name: name.into(), lookups: 0, children: 1, generation: 0, export, kind: 0o4 };
        self.all.insert(number, node);
    }

    /// Notes that the guest was told of `name` in `parent`; the newest name is the one that is walked.
    pub fn told(&mut self, number: u64, parent: u64, name: &[u8], stat: &Statx) -> Result<u32, Errno> {
        let generation = generation(stat);
        let kind = (u32::from(stat.stx_mode) >> 12) as u8;
        if let Some(node) = self.all.get_mut(&number) {
            node.lookups = node.lookups.saturating_add(1);
            // The root of an export reached again through a loop of mounts keeps its place.
            if node.parent == ROOT || (node.parent == parent && *node.name == *name) {
                if node.parent != ROOT {
                    (node.generation, node.kind) = (generation, kind);
                }
                return Ok(node.generation);
            }
            let before = std::mem::replace(&mut node.parent, parent);
            (node.name, node.generation, node.kind) = (name.into(), generation, kind);
            // Its new directory first: it may be all that keeps the old one.
            if let Some(parent) = self.all.get_mut(&parent) {
                parent.children += 1;
            }
            self.release(before);
            return Ok(generation);
        }
        if self.all.len() >= self.limit {
            return Err(Errno::NOMEM);
        }
        let up = self.all.get_mut(&parent).ok_or(Errno::STALE)?;
        up.children += 1;
        let export = up.export;
        let node = Node { parent, name: name.into(), lookups: 1, children: 0, generation, export, kind };
        self.all.insert(number, node);
        Ok(generation)
    }

    /// Takes `count` lookups back; a node that nobody needs any more goes, and its directories with it.
    pub fn forget(&mut self, number: u64, count: u64) {
        let Some(node) = self.all.get_mut(&number) else { return };
        node.lookups = node.lookups.saturating_sub(count);
        if node.lookups == 0 && node.children == 0 {
            let parent = node.parent;
            self.all.remove(&number);
            self.release(parent);
        }
    }

    /// One child less.
    fn release(&mut self, mut number: u64) {
        while let Some(node) = self.all.get_mut(&number) {
            node.children -= 1;
            if node.children > 0 || node.lookups > 0 {
                return;
            }
            let parent = node.parent;
            self.all.remove(&number);
            number = parent;
        }
    }
}

/// Tells a file apart from a later one with the same inode number, as far as the file system knows births.
fn generation(stat: &Statx) -> u32 {
    let birth = stat.stx_btime;
    (birth.tv_sec as u32).wrapping_mul(0x9e37_79b1) ^ birth.tv_nsec
}

/// How owners are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Owners {
    /// The ids by which this process sees owners that its user namespace does not know; they are shown as 0,
    /// and set-id bits of such files are left out.
    pub unknown: Option<(u32, u32)>,
}

impl Owners {
    /// Returns what the guest is told of a file.
    pub fn attr(self, number: u64, stat: &Statx) -> Attr {
        let (mut mode, mut uid, mut gid) = (u32::from(stat.stx_mode), stat.stx_uid, stat.stx_gid);
        if let Some(unknown) = self.unknown {
            if uid == unknown.0 {
                (uid, mode) = (0, mode & !0o4000);
            }
            if gid == unknown.1 {
                gid = 0;
                if mode & 0o170000 != 0o040000 {
                    mode &= !0o2000;
                }
            }
        }
        Attr {
            ino: number,
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            atime: (stat.stx_atime.tv_sec, stat.stx_atime.tv_nsec),
            mtime: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
            ctime: (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec),
            mode,
            nlink: stat.stx_nlink,
            uid,
            gid,
            rdev: device(stat.stx_rdev_major, stat.stx_rdev_minor),
            blksize: stat.stx_blksize,
        }
    }
}

/// How long the guest may believe what it was told, in seconds.
pub fn seconds(cache: Cache) -> u64 {
    match cache {
        // The kernel cuts it to the longest that its clock can hold.
        Cache::Always => u64::from(u32::MAX),
        Cache::Auto => 1,
    }
}
