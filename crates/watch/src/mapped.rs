//! Files that may be written without a word: through a shared mapping, or by the kernel on behalf of
//! asynchronous calls.
//!
//! A write through a mapping raises no event. But the mapping keeps its file open, and when the last one
//! goes, the kernel says that a file that was open for writing was closed. So only mappings that exist now
//! matter; they are looked for before the events are read: one that ends in between is among these.
//!
//! Only processes that this one may look into are seen: those of the same user, or all for root.

use crate::log::{Kind, Mark};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use sandbox_sys::mappings::shared;
use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The tree that mappings are looked for in.
pub(crate) struct Tree<'a> {
    /// Its path now.
    pub(crate) path: &'a Path,
    /// Major and minor number of its device, as `/proc` shows them.
    pub(crate) dev: (u32, u32),
    /// The mount that it is in.
    pub(crate) mount: u64,
}

/// Returns marks for all files of the tree that can change without an event now.
pub(crate) fn mapped(tree: &Tree<'_>) -> std::io::Result<Vec<Mark>> {
    let mut marks = Vec::new();
    let mut seen: HashMap<(u64, PathBuf), ()> = HashMap::new();
    let own = std::process::id();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if pid == own {
            continue;
        }
        // It has ended, or is not ours to look into.
        let Ok(maps) = shared(pid) else { continue };
        let mut asynchronous = false;
        for map in maps {
            let path = map.path.as_os_str().as_bytes();
            asynchronous |= path.starts_with(b"/[aio]") || path.starts_with(b"anon_inode:[io_uring]");
            if map.dev == tree.dev && seen.insert((map.ino, map.path.clone()), ()).is_none() {
                marks.extend(mark(tree, &map.path, map.ino));
            }
        }
        if asynchronous {
            marks.extend(open(tree, pid));
        }
    }
    Ok(marks)
}

/// Returns what a mapping of a file on the tree's device means.
fn mark(tree: &Tree<'_>, path: &Path, ino: u64) -> Option<Mark> {
    // The path is the one in that process's mounts; it is good for us if it leads to the same file in the tree's.
    let flags = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    let stat = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, flags).ok();
    match stat.filter(|stat| stat.stx_ino == ino && stat.stx_mnt_id == tree.mount) {
        Some(stat) => match below(tree, path) {
            Some(below) => Some(Mark::Path(below, Kind::Content)),
            // Its only name, and not in the tree.
            None if stat.stx_nlink == 1 => None,
            None => Some(Mark::Inode(ino)),
        },
        None => Some(Mark::Inode(ino)),
    }
}

/// Returns marks for the files of the tree that a process has open.
fn open(tree: &Tree<'_>, pid: u32) -> Vec<Mark> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let links = entries.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.filter_map(|link| below(tree, &link)).map(|path| Mark::Path(path, Kind::Content)).collect()
}

fn below(tree: &Tree<'_>, path: &Path) -> Option<Vec<u8>> {
    path.strip_prefix(tree.path).ok().map(|below| below.as_os_str().as_bytes().to_vec())
}
