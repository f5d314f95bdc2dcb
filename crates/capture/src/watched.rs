//! What a watcher contributes to a capture: what must be looked at, and what the last capture saw of the rest.

use crate::capture::settings;
use crate::manifest::{DIR_GIT, DIR_UNREADABLE, Look, Manifest, Reason};
use crate::request::{CaptureError, CaptureRequest, LeftOut};
use crate::scan::{Frozen, Marked, Scan, What, scan};
use crate::stat::{Kind, Time};
use sandbox_watch::{Kind as MarkKind, Mark};
use std::collections::HashSet;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Tells what may have changed in the tree.
pub trait Watch: Sync {
    /// Returns what may have changed since the last call, and with the first one since the previous capture:
    /// what the manifest of the previous stack says. `None`: anything.
    fn changed(&self) -> Option<Vec<Mark>>;

    /// Returns what the previous capture saw; without it the whole tree is looked at.
    fn seen(&self) -> Option<&Seen>;
}

/// What a capture saw that is told each time, and is not found again where nothing is looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// [`CaptureRequest::git_state`] for which decisions hold.
    pub git_state: u64,
    /// What is on the host and not in the snapshot.
    pub left_out: Vec<LeftOut>,
    /// Untracked files that look like secrets and were carried.
    pub carried_secrets: Vec<PathBuf>,
    /// Tracked files that look like secrets.
    pub tracked_secrets: Vec<PathBuf>,
    /// Directories that hold an entry named `.git`.
    pub git_boundaries: Vec<PathBuf>,
}

/// The scans of one capture.
pub(crate) struct Looks<'a> {
    request: &'a CaptureRequest<'a>,
    root: BorrowedFd<'a>,
    first: bool,
    /// What all looks together saw.
    seen: Seen,
    /// The last look was at a part of the tree: some of what was seen before may not be true any more.
    partly: bool,
    scans: u32,
}

impl<'a> Looks<'a> {
    pub(crate) fn new(request: &'a CaptureRequest<'a>, root: BorrowedFd<'a>) -> Self {
        Self { request, root, first: true, seen: Seen::default(), partly: false, scans: 0 }
    }

    /// Returns who the layers belong to, where that is not who captures.
    pub(crate) fn owner(&self) -> Option<(u32, u32)> {
        self.request.owner
    }

    /// Returns how many scans there were.
    pub(crate) fn scans(&self) -> u32 {
        self.scans
    }

    /// Returns whether something was taken over from the previous capture, or an earlier look.
    pub(crate) fn partly(&self) -> bool {
        self.partly
    }

    /// Compares the tree with a manifest that holds what the last look found, if there was one: all of it, or
    /// what the watcher names.
    pub(crate) fn look(
        &mut self,
        known: Option<&Manifest>,
        frozen: &Frozen,
        limited: &(dyn Fn() -> bool + Sync),
    ) -> Result<Scan, CaptureError> {
        self.scans += 1;
        // What the watcher does not name is as it was before it was asked: that is the scan's instant.
        let start = Time::now();
        let mut marks = self.request.watch.and_then(Watch::changed);
        let settings = settings(self.request);
        let first = std::mem::replace(&mut self.first, false);
        let Some(known) = known.filter(|known| known.settings() == settings) else {
            self.partly = false;
            return scan(self.request, self.root, known, frozen, limited, settings, None, None);
        };
        let mut git_state = known.git_state();
        if first {
            match self.request.watch.and_then(Watch::seen) {
                Some(seen) if marks.is_some() => {
                    git_state = seen.git_state;
                    marks.iter_mut().for_each(|marks| marks.extend(to_be_decided(seen, self.request.git_state)));
                    self.seen = seen.clone();
                }
                _ => marks = None,
            }
        }
        self.partly = marks.is_some();
        match marks {
            Some(marks) => {
                let scan = self.marked(known, frozen, limited, marks, git_state)?;
                Ok(Scan { start: start.min(scan.start), ..scan })
            }
            None => scan(self.request, self.root, Some(known), frozen, limited, settings, None, None),
        }
    }

    /// Notes what a look saw, once the limit was applied to it.
    pub(crate) fn note(&mut self, scan: &Scan) {
        if !self.partly {
            self.seen = Seen::default();
        }
        self.seen.left_out.extend(scan.left_out.iter().cloned());
        self.seen.carried_secrets.extend(scan.carried_secrets.iter().cloned());
        self.seen.tracked_secrets.extend(scan.tracked_secrets.iter().cloned());
        self.seen.git_boundaries.extend(scan.git.iter().cloned());
    }

    /// Scans what is marked, and all other names of the files with several names among that.
    fn marked(
        &self,
        known: &Manifest,
        frozen: &Frozen,
        limited: &(dyn Fn() -> bool + Sync),
        mut marks: Vec<Mark>,
        git_state: u64,
    ) -> Result<Scan, CaptureError> {
        let mut linked = HashSet::new();
        loop {
            let node = Marked::new(known, &marks);
            let settings = settings(self.request);
            let found =
                scan(self.request, self.root, Some(known), frozen, limited, settings, Some(&node), Some(git_state))?;
            let before = linked.len();
            for ino in several_names(&found) {
                if linked.insert(ino) {
                    marks.push(Mark::Inode(ino));
                }
            }
            if linked.len() == before {
                return Ok(found);
            }
        }
    }

    /// Returns what was seen, as far as it is true of the manifest that came of it.
    pub(crate) fn seen(self, manifest: &Manifest, left_out: Vec<LeftOut>) -> Seen {
        let mut seen = self.seen;
        seen.git_state = self.request.git_state;
        let flags = |path: &PathBuf| manifest.find(path.as_os_str().as_bytes()).map(|index| manifest.raw(index));
        let dir = |path: &PathBuf| flags(path).and_then(|raw| raw.child()).map(|dir| manifest.dir(dir).flags);
        if self.partly {
            seen.left_out.retain(|entry| {
                let unreadable = entry.reason == Reason::Unreadable
                    && dir(&entry.path).is_some_and(|flags| flags & DIR_UNREADABLE != 0);
                unreadable || flags(&entry.path).is_some_and(|raw| raw.flags().reason() == Some(entry.reason))
            });
            let secret = |path: &PathBuf, tracked| {
                flags(path)
                    .is_some_and(|raw| raw.flags().reason().is_none() && raw.flags().look() == Look::Secret { tracked })
            };
            seen.carried_secrets.retain(|path| secret(path, false));
            seen.tracked_secrets.retain(|path| secret(path, true));
            seen.git_boundaries.retain(|path| dir(path).is_some_and(|flags| flags & DIR_GIT != 0));
        }
        seen.left_out.extend(left_out);
        seen.left_out.sort();
        seen.left_out.dedup();
        for list in [&mut seen.carried_secrets, &mut seen.tracked_secrets, &mut seen.git_boundaries] {
            list.sort();
            list.dedup();
        }
        seen
    }
}

/// Returns marks for what must be decided about although nothing changed.
fn to_be_decided(seen: &Seen, git_state: u64) -> Vec<Mark> {
    let git_same = git_state != 0 && seen.git_state == git_state;
    let path = |path: &PathBuf| path.as_os_str().as_bytes().to_vec();
    let mut marks = Vec::new();
    for entry in &seen.left_out {
        match entry.reason {
            // Its older state is in the snapshot: all that it misses is found again.
            Reason::Stale => marks.push(Mark::Path(path(&entry.path), MarkKind::Subtree)),
            // The limit may be another one.
            Reason::OverLimit => marks.push(Mark::Path(path(&entry.path), MarkKind::Content)),
            Reason::Secret | Reason::Ignored if !git_same => {
                marks.push(Mark::Path(path(&entry.path), MarkKind::Content));
            }
            Reason::Secret | Reason::Ignored | Reason::Special | Reason::Unreadable => {}
        }
    }
    if !git_same {
        let secrets = seen.carried_secrets.iter().chain(&seen.tracked_secrets);
        marks.extend(secrets.map(|secret| Mark::Path(path(secret), MarkKind::Content)));
    }
    marks
}

/// Returns the inodes with several names of what a scan found.
fn several_names(scan: &Scan) -> impl Iterator<Item = u64> {
    let updated = scan.updates.iter().map(|update| update.stat);
    let listings = scan.changed.iter().map(|(_, listing)| listing).chain(scan.new.iter().flatten());
    let new = listings.flat_map(|listing| listing.nodes.iter());
    let new = new.filter(|node| matches!(node.what, What::Copy { .. })).map(|node| node.stat);
    updated.chain(new).filter(|stat| stat.kind() != Kind::Dir && stat.nlink > 1).map(|stat| stat.ino)
}

impl crate::request::Captured {
    /// Returns what a watched capture of the same tree takes over.
    pub fn seen(&self, git_state: u64) -> Seen {
        Seen {
            git_state,
            left_out: self.left_out.clone(),
            carried_secrets: self.carried_secrets.clone(),
            tracked_secrets: self.tracked_secrets.clone(),
            git_boundaries: self.git_boundaries.clone(),
        }
    }
}
