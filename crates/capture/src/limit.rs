//! Large directories that can be made again are not copied on the way to a shell.
//!
//! A directory that git ignores, or one with a `CACHEDIR.TAG` and nothing tracked in it, of which more
//! than the limit would have to be copied: its state in the last capture is kept, or, if there is
//! none, it is left out. Both are named. The topmost such directory counts as one.

use crate::manifest::{Manifest, Reason};
use crate::paths::{self, is_below, join, to_path};
use crate::request::{CaptureRequest, LeftOut};
use crate::scan::{Frozen, Place, Scan, What};
use crate::stat::{Kind, Stat};
use rustix::fs::{AtFlags, Mode};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

/// The file that marks a directory as a cache.
const TAG: &[u8] = b"CACHEDIR.TAG";

/// Returns whether the rule is about a directory of which `bytes` would have to be copied.
///
/// Git is asked last, and only about directories that are large enough: asking may cost a process.
fn is_over(request: &CaptureRequest<'_>, path: &[u8], bytes: u64, tagged: impl FnOnce() -> bool) -> bool {
    let Some(limit) = request.limit.filter(|_| !is_wanted(request, path)) else { return false };
    let by_tag = bytes > limit.cachedir_over && tagged();
    let by_git = || bytes > limit.ignored_over && (request.ignored)(path, true);
    (by_tag || by_git()) && !(request.tracked)(&slash(path))
}

/// Returns whether a directory was asked for by name, or holds one that was.
fn is_wanted(request: &CaptureRequest<'_>, path: &[u8]) -> bool {
    let wanted = |with: &std::path::PathBuf| {
        let with = with.as_os_str().as_bytes();
        is_below(path, with) || is_below(with, path)
    };
    path.is_empty() || request.limit.is_some_and(|limit| limit.with.iter().any(wanted))
}

fn slash(path: &[u8]) -> Vec<u8> {
    let mut path = path.to_vec();
    path.push(b'/');
    path
}

/// Returns whether a directory has the mark of a cache.
fn is_tagged(dir: BorrowedFd<'_>) -> bool {
    rustix::fs::statat(dir, TAG, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// Returns whether what lies below a directory takes more than `most` bytes; stops as soon as it does.
fn exceeds(dir: BorrowedFd<'_>, most: u64) -> bool {
    let mut sum = 0u64;
    let mut waiting = vec![Vec::new()];
    while let Some(path) = waiting.pop() {
        let Ok(fd) = paths::open_beneath(dir, &path, paths::LIST) else { continue };
        let mut over = false;
        let listed = paths::list(fd.as_fd(), |name| {
            let Ok(stat) = rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW) else { return };
            let stat = Stat::from_kernel(&stat);
            match stat.kind() {
                Kind::Dir => waiting.push(join(&path, name.to_bytes())),
                Kind::File => sum = sum.saturating_add(stat.weight()),
                _ => {}
            }
            over |= sum > most;
        });
        if over {
            return true;
        }
        if listed.is_err() {
            continue;
        }
    }
    sum > most
}

/// Bytes to copy, by directory (path relative to the root).
pub(crate) type Weights = BTreeMap<Vec<u8>, (u64, u64)>;

/// Returns files and bytes that a scan's result would copy, by directory.
pub(crate) fn weights(known: Option<&Manifest>, scan: &Scan) -> Weights {
    let mut weights = Weights::new();
    let mut add = |dir: &[u8], bytes: u64| {
        let sum = weights.entry(dir.to_vec()).or_default();
        sum.0 += 1;
        sum.1 += bytes;
    };
    if let Some(known) = known {
        for update in &scan.updates {
            let raw = known.raw(update.index);
            let copy = raw.size() != update.stat.size || raw.mtime() != update.stat.mtime;
            if copy && raw.kind() == Kind::File && raw.flags().reason().is_none() {
                add(&known.dir_path(update.dir), update.stat.weight());
            }
        }
    }
    let mut waiting: Vec<(Vec<u8>, &crate::scan::Listing)> =
        scan.changed.iter().map(|(_, listing)| (listing.place.path(known), listing)).collect();
    if known.is_none()
        && let Some(Some(top)) = scan.new.first()
    {
        waiting.push((Vec::new(), top));
    }
    while let Some((path, listing)) = waiting.pop() {
        for node in listing.nodes.iter() {
            match node.what {
                What::Copy { .. } => add(&path, node.stat.weight()),
                What::Dir(id) => {
                    if let Some(Some(listing)) = scan.new.get(id as usize) {
                        waiting.push((join(&path, node.name()), listing));
                    }
                }
                What::Keep(_) | What::LeaveOut(_) => {}
            }
        }
    }
    weights
}

/// Takes out of a scan's result what is over the limit, and remembers it in `frozen`.
pub(crate) fn apply(
    request: &CaptureRequest<'_>,
    root: BorrowedFd<'_>,
    known: Option<&Manifest>,
    scan: &mut Scan,
    frozen: &mut Frozen,
) {
    let Some(limit) = request.limit else { return };
    // What would be copied below each directory.
    let mut sums: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    for (dir, (_, bytes)) in weights(known, scan) {
        let ends = dir.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at).chain([dir.len()]);
        for end in ends {
            *sums.entry(dir[..end].to_vec()).or_default() += bytes;
        }
    }
    let least = limit.cachedir_over.min(limit.ignored_over);
    let mut over: Vec<Vec<u8>> = Vec::new();
    // In the order of paths a directory comes before what lies in it, if not directly before.
    let large = sums.into_iter().filter(|(_, bytes)| *bytes > least);
    for (path, bytes) in large {
        if over.iter().any(|unit| is_below(&path, unit)) {
            continue;
        }
        let tagged = || paths::open_beneath(root, &path, paths::LOOK).is_ok_and(|fd| is_tagged(fd.as_fd()));
        if is_over(request, &path, bytes, tagged) {
            over.push(path);
        }
    }
    for path in over {
        freeze(root, known, scan, frozen, &path);
    }
}

/// Takes one directory out of the result.
fn freeze(root: BorrowedFd<'_>, known: Option<&Manifest>, scan: &mut Scan, frozen: &mut Frozen, path: &[u8]) {
    if let Ok(fd) = paths::open_beneath(root, path, paths::LOOK)
        && let Ok(stat) = rustix::fs::fstat(&fd)
    {
        let stat = Stat::from_kernel(&stat);
        frozen.insert((stat.dev, stat.ino));
    }
    let before = known.and_then(|known| known.find(path).map(|index| (known, index)));
    let carried = before.filter(|(known, index)| known.raw(*index).child().is_some());
    let inside = |other: &std::path::Path| is_below(other.as_os_str().as_bytes(), path);
    scan.left_out.retain(|entry| !inside(&entry.path));
    scan.disturbed.retain(|other| !inside(other));
    let reason = match carried {
        Some((known, index)) => {
            scan.updates.retain(|update| update.index != index && !is_below(&known.dir_path(update.dir), path));
            scan.changed.retain(|(dir, _)| !is_below(&known.dir_path(*dir), path));
            Reason::Stale
        }
        None => {
            leave_out_node(known, scan, path);
            scan.git.retain(|other| !inside(other));
            scan.carried_secrets.retain(|other| !inside(other));
            Reason::OverLimit
        }
    };
    scan.left_out.push(LeftOut { path: to_path(path), reason });
}

/// Marks the node of a new directory as left out.
fn leave_out_node(known: Option<&Manifest>, scan: &mut Scan, path: &[u8]) {
    let (dir, base) = (paths::parent(path), paths::base(path));
    let in_new = scan.new.iter_mut().flatten();
    let listings = scan.changed.iter_mut().map(|(_, listing)| listing).chain(in_new);
    for listing in listings {
        if let Some(at) = listing.nodes.find(base)
            && listing.nodes.get(at).is_some_and(|node| matches!(node.what, What::Dir(_)))
            && listing.place.path(known) == dir
        {
            listing.nodes.decide(at, What::LeaveOut(Reason::OverLimit));
        }
    }
}

impl crate::scan::Scanner<'_> {
    /// Returns whether a directory that the last capture left out is still over the limit.
    pub(crate) fn still_over(&self, dir: &impl AsFd, place: &Place, name: &[u8], stat: &Stat) -> bool {
        if self.is_frozen(stat) {
            return true;
        }
        let Some(limit) = self.request().limit else { return false };
        let Ok(fd) = rustix::fs::openat(dir, name, paths::LIST, Mode::empty()) else { return false };
        let path = self.path_of(place, name);
        if is_wanted(self.request(), &path) {
            return false;
        }
        let asked = |answer: &dyn Fn() -> bool| self.git_same() || answer();
        let by_tag = is_tagged(fd.as_fd()) && exceeds(fd.as_fd(), limit.cachedir_over);
        let by_git = || exceeds(fd.as_fd(), limit.ignored_over) && asked(&|| self.ignored(&path));
        (by_tag || by_git()) && asked(&|| !self.tracked(&path, true))
    }
}
