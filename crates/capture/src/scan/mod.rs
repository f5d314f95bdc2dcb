//! Comparing the host tree with a manifest, in parallel, with nothing but stat for what did not change.
//!
//! ```text
//!  item = one directory ──┬─ its stat is as in the manifest ─► known:   stat the names of the manifest
//!                         │                                    │ a name is gone, changed its kind, …
//!                         │                                    ▼
//!                         └─ new, or its stat differs ───────► listing: getdents, stat, compare
//! ```
//!
//! With the marks of a watcher, only what is marked is looked at, and the way to it; all else is as in the
//! manifest.
//!
//! A directory whose mtime and ctime did not move holds the same names, so it is not even listed.
//! Directories are worked on in any order by all threads; each holds the descriptor that its
//! subdirectories are opened from, and no path is built unless something is to be reported.

mod decide;
mod known;
mod listing;
mod marks;
mod nodes;
mod queue;

pub(crate) use marks::Marked;
pub(crate) use nodes::Nodes;

use crate::manifest::{Look, Manifest};
use crate::paths::{self, to_path};
use crate::request::{CaptureError, CaptureRequest, LeftOut};
use crate::rules::Rules;
use crate::stat::{Clock, Stat, Time};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

/// Directory descriptors that may be held open for subdirectories that wait; beyond, they are opened
/// again by path. Far below the usual limit of 1024.
const MAX_HELD: usize = 300;

/// The result of one scan.
#[derive(Debug)]
pub(crate) struct Scan {
    /// When it started.
    pub(crate) start: Time,
    /// The clock at that time.
    pub(crate) clock: Clock,
    /// The top directory's stat.
    pub(crate) top: Stat,
    /// Entries of the manifest that are still of the same kind and have another stat, or whose
    /// content must be looked at although the stat is the same.
    pub(crate) updates: Vec<Update>,
    /// Directories of the manifest with other names than before, by index.
    pub(crate) changed: Vec<(u32, Listing)>,
    /// New directories, by id. `None`: the number was not used in the end, or it vanished.
    pub(crate) new: Vec<Option<Listing>>,
    pub(crate) left_out: Vec<LeftOut>,
    pub(crate) carried_secrets: Vec<PathBuf>,
    pub(crate) tracked_secrets: Vec<PathBuf>,
    pub(crate) git: Vec<PathBuf>,
    /// Something moved while it was looked at: the scan is no picture of one instant.
    pub(crate) disturbed: Vec<PathBuf>,
    /// What git tracks or ignores was asked: the answers hold for the request's `git_state`.
    pub(crate) asked: bool,
}

/// A known entry that must be looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Update {
    /// Its index in the manifest.
    pub(crate) index: u32,
    /// The directory that it is in; for the top directory, itself.
    pub(crate) dir: u32,
    /// Its stat now.
    pub(crate) stat: Stat,
    /// What it looks like.
    pub(crate) look: Look,
}

/// The whole content of one directory.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) place: Place,
    /// Flags of the directory's record in the manifest.
    pub(crate) flags: u32,
    pub(crate) nodes: Nodes,
}

/// One entry of a listing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Node<'a> {
    pub(crate) name: &'a CStr,
    pub(crate) stat: Stat,
    pub(crate) what: What,
}

impl<'a> Node<'a> {
    /// Returns its name without the NUL.
    pub(crate) fn name(&self) -> &'a [u8] {
        self.name.to_bytes()
    }
}

/// What is to become of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// It is the manifest's entry with this index (whose stat may be in `updates`).
    Keep(u32),
    /// A file or symlink that the stack does not hold.
    Copy {
        /// What it looks like.
        look: Look,
        /// The operation that copies it, once it is planned.
        op: u32,
    },
    /// A directory that the stack does not hold, by id.
    Dir(u32),
    /// It is not carried.
    LeaveOut(crate::manifest::Reason),
}

/// Where a directory is.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// A directory of the manifest.
    Known(u32),
    /// One that the manifest has not got.
    New(Arc<NewPlace>),
}

/// A directory that the manifest has not got.
#[derive(Debug)]
pub(crate) struct NewPlace {
    parent: Option<Place>,
    name: CString,
    id: u32,
}

impl Drop for NewPlace {
    fn drop(&mut self) {
        // A chain as long as the tree is deep must not be dropped by recursion.
        let mut parent = self.parent.take();
        while let Some(Place::New(place)) = parent {
            parent = Arc::into_inner(place).and_then(|mut place| place.parent.take());
        }
    }
}

impl Place {
    /// Returns the path relative to the root.
    pub(crate) fn path(&self, known: Option<&Manifest>) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = Some(self);
        let mut head = Vec::new();
        while let Some(place) = at {
            match place {
                Self::Known(dir) => {
                    head = known.map(|known| known.dir_path(*dir)).unwrap_or_default();
                    at = None;
                }
                Self::New(place) => {
                    names.push(place.name.as_bytes());
                    at = place.parent.as_ref();
                }
            }
        }
        for name in names.into_iter().rev().filter(|name| !name.is_empty()) {
            head = paths::join(&head, name);
        }
        head
    }
}

/// A directory descriptor, counted.
#[derive(Debug)]
struct Held<'s> {
    fd: OwnedFd,
    count: &'s AtomicUsize,
}

impl<'s> Held<'s> {
    fn new(fd: OwnedFd, count: &'s AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self { fd, count }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How an item's directory is opened.
#[derive(Debug, Clone)]
enum At<'s> {
    /// From its parent, by name.
    Parent(Arc<Held<'s>>),
    /// It is open.
    Open(Arc<Held<'s>>),
    /// By its path from the root.
    Path,
}

/// What holds for a directory because of those above it.
#[derive(Debug, Clone, Default)]
struct Context {
    rules: Option<Arc<Rules>>,
    /// Below a directory that package managers fill: no secrets there.
    dependency: bool,
    /// Rules or settings changed: decide anew about every entry.
    again: bool,
}

/// One directory, or a part of its names.
#[derive(Debug, Clone)]
struct Item<'s> {
    at: At<'s>,
    place: Place,
    /// The manifest's directory to compare with.
    known: Option<u32>,
    work: Work,
    context: Context,
    /// What is to be looked at in it; `None`: everything.
    marks: Option<&'s Marked>,
}

#[derive(Debug, Clone, Copy)]
enum Work {
    /// The names are those of the manifest, from entry to entry.
    Known(u32, u32),
    /// The names must be read.
    Listing,
}

/// A directory in which nothing is marked.
static NOTHING: Marked = Marked { names: false, all: false, below: std::collections::BTreeMap::new() };

/// Directories that are taken as they are in the manifest, by device and inode.
pub(crate) type Frozen = HashSet<(u64, u64)>;

/// A scan in progress.
pub(crate) struct Scanner<'s> {
    request: &'s CaptureRequest<'s>,
    root: BorrowedFd<'s>,
    known: Option<&'s Manifest>,
    frozen: &'s Frozen,
    /// Whether the limit applies here at all.
    limited: &'s (dyn Fn() -> bool + Sync),
    /// What git says about files is what it said last time.
    git_same: bool,
    /// Git was asked something.
    asked: AtomicBool,
    held: AtomicUsize,
    ids: AtomicU32,
}

/// What one thread found.
#[derive(Debug, Default)]
struct Found {
    updates: Vec<Update>,
    changed: Vec<(u32, Listing)>,
    new: Vec<(u32, Listing)>,
    left_out: Vec<LeftOut>,
    carried_secrets: Vec<PathBuf>,
    tracked_secrets: Vec<PathBuf>,
    git: Vec<PathBuf>,
    disturbed: Vec<PathBuf>,
}

/// Scans the whole tree, or of a known one only what is marked.
///
/// `settings` differing from the manifest's means that decisions are made anew.
#[allow(clippy::too_many_arguments, reason = "each is another thing to look at, and there is one caller")]
pub(crate) fn scan(
    request: &CaptureRequest<'_>,
    root: BorrowedFd<'_>,
    known: Option<&Manifest>,
    frozen: &Frozen,
    limited: &(dyn Fn() -> bool + Sync),
    settings: u64,
    marks: Option<&Marked>,
    git_state: Option<u64>,
) -> Result<Scan, CaptureError> {
    let (start, clock) = (Time::now(), Clock::now());
    let io = |error: Errno| CaptureError::io("read", request.root)(error.into());
    let top = Stat::from_kernel(&rustix::fs::fstat(root).map_err(io)?);
    let scanner = Scanner {
        request,
        root,
        known,
        frozen,
        limited,
        git_same: known
            .is_some_and(|known| request.git_state != 0 && git_state.unwrap_or(known.git_state()) == request.git_state),
        asked: AtomicBool::new(false),
        held: AtomicUsize::new(0),
        ids: AtomicU32::new(0),
    };
    let fd = rustix::fs::openat(root, ".", paths::LIST, rustix::fs::Mode::empty()).map_err(io)?;
    let mut item = Item {
        at: At::Open(Arc::new(Held::new(fd, &scanner.held))),
        place: Place::Known(0),
        known: Some(0),
        work: Work::Listing,
        context: Context::default(),
        marks: marks.filter(|node| !node.all && known.is_some_and(|known| known.settings() == settings)),
    };
    let mut update = None;
    match known {
        Some(known) => {
            item.context.again = known.settings() != settings;
            let raw = known.raw(0);
            if !raw.same(&top) || raw.flags().racy() && item.marks.is_none() {
                update = Some(Update { index: 0, dir: 0, stat: top, look: Look::Plain });
            } else if !item.context.again {
                let dir = known.dir(0);
                item.work = Work::Known(dir.first, dir.first + dir.count);
            }
        }
        None => {
            item.place = Place::New(Arc::new(NewPlace {
                parent: None,
                name: CString::default(),
                id: scanner.ids.fetch_add(1, Ordering::Relaxed),
            }));
            item.known = None;
        }
    }
    // A second thread costs more than it brings for a few hundred files.
    let small = known.is_some_and(|known| known.len() < 1500);
    let threads = if small || item.marks.is_some() { 1 } else { request.threads.max(1) };
    let found = queue::run(threads, item, |item, found, more| scanner.work(item, found, more))?;
    let mut scan = Scan {
        start,
        clock,
        top,
        updates: update.into_iter().collect(),
        changed: Vec::new(),
        new: Vec::new(),
        left_out: Vec::new(),
        carried_secrets: Vec::new(),
        tracked_secrets: Vec::new(),
        git: Vec::new(),
        disturbed: Vec::new(),
        asked: scanner.asked.load(Ordering::Relaxed),
    };
    scan.new.resize_with(scanner.ids.load(Ordering::Relaxed) as usize, || None);
    for mut part in found {
        scan.updates.append(&mut part.updates);
        scan.changed.append(&mut part.changed);
        for (id, listing) in part.new {
            scan.new[id as usize] = Some(listing);
        }
        scan.left_out.append(&mut part.left_out);
        scan.carried_secrets.append(&mut part.carried_secrets);
        scan.tracked_secrets.append(&mut part.tracked_secrets);
        scan.git.append(&mut part.git);
        scan.disturbed.append(&mut part.disturbed);
    }
    // A directory that had to be listed after all has reported some of its entries twice.
    scan.updates.sort_by_key(|update| update.index);
    scan.updates.dedup_by_key(|update| update.index);
    scan.changed.sort_by_key(|(dir, _)| *dir);
    scan.changed.dedup_by_key(|(dir, _)| *dir);
    scan.left_out.sort();
    scan.left_out.dedup();
    for list in [&mut scan.carried_secrets, &mut scan.tracked_secrets, &mut scan.git, &mut scan.disturbed] {
        list.sort();
        list.dedup();
    }
    Ok(scan)
}

impl Scan {
    /// Gives up what a round has made a manifest of. Of a large tree it is as much as the manifest: the system gets it
    /// back.
    pub(crate) fn forget(&mut self) {
        let many = self.new.len() > 100;
        (self.updates, self.changed, self.new) = (Vec::new(), Vec::new(), Vec::new());
        if many {
            sandbox_sys::heap::trim();
        }
    }

    /// Returns whether everything is as in the manifest.
    pub(crate) fn is_clean(&self) -> bool {
        self.updates.is_empty() && self.changed.is_empty() && self.new.is_empty() && self.disturbed.is_empty()
    }
}

impl<'s> Scanner<'s> {
    fn work(&'s self, item: Item<'s>, found: &mut Found, more: &mut Vec<Item<'s>>) -> Result<(), CaptureError> {
        match item.work {
            Work::Known(from, to) => match item.marks {
                Some(node) => self.marked_names(item, node, found, more),
                None => self.known_names(item, from, to, found, more),
            },
            Work::Listing => self.listing(item, found, more),
        }
    }

    /// Opens the item's directory.
    fn open(&'s self, item: &Item<'s>, flags: rustix::fs::OFlags) -> Result<Arc<Held<'s>>, Errno> {
        let none = rustix::fs::Mode::empty();
        let fd = match &item.at {
            At::Open(held) if flags.contains(rustix::fs::OFlags::PATH) => return Ok(held.clone()),
            At::Open(held) => rustix::fs::openat(&held.fd, ".", flags, none)?,
            At::Path => paths::open_beneath(self.root, &item.place.path(self.known), flags)?,
            At::Parent(parent) => match &item.place {
                Place::New(place) => rustix::fs::openat(&parent.fd, place.name.as_c_str(), flags, none)?,
                Place::Known(dir) => {
                    let known = self.known.ok_or(Errno::NOENT)?;
                    rustix::fs::openat(&parent.fd, known.raw(known.dir(*dir).own).name_c(), flags, none)?
                }
            },
        };
        Ok(Arc::new(Held::new(fd, &self.held)))
    }

    /// Returns how the subdirectories of an open directory are opened.
    fn from(&self, held: &Arc<Held<'s>>) -> At<'s> {
        if self.held.load(Ordering::Relaxed) < MAX_HELD { At::Parent(held.clone()) } else { At::Path }
    }

    /// Returns the item for a subdirectory that the manifest has; `None` when a watcher says that there is
    /// nothing to be looked at.
    #[allow(clippy::too_many_arguments, reason = "one entry, as its two callers know it")]
    fn below(
        &self,
        item: &Item<'s>,
        held: &Arc<Held<'s>>,
        name: &[u8],
        dir: u32,
        same: bool,
        racy: bool,
        context: Context,
    ) -> Option<Item<'s>> {
        let marks = match item.marks {
            // Other rules hold: all decisions are made anew.
            Some(_) if context.again => None,
            Some(node) => match node.below.get(name) {
                Some(node) if node.all => None,
                Some(node) => Some(node),
                None if same => return None,
                // It changed after the watcher was asked: the next scan looks at what.
                None => Some(&NOTHING),
            },
            None => None,
        };
        let listing = !same || racy && marks.is_none();
        let work = match self.known.map(|known| known.dir(dir)) {
            Some(raw) if !listing && !context.again => Work::Known(raw.first, raw.first + raw.count),
            _ => Work::Listing,
        };
        Some(Item { at: self.from(held), place: Place::Known(dir), known: Some(dir), work, context, marks })
    }

    fn error(&self, place: &Place, name: &[u8], error: Errno) -> CaptureError {
        let path = self.request.root.join(to_path(&paths::join(&place.path(self.known), name)));
        CaptureError::io("read", path)(error.into())
    }

    pub(crate) fn request(&self) -> &'s CaptureRequest<'s> {
        self.request
    }

    pub(crate) fn path_of(&self, place: &Place, name: &[u8]) -> Vec<u8> {
        paths::join(&place.path(self.known), name)
    }
}

/// Stats a name without following it.
fn stat_at(dir: &impl AsFd, name: impl rustix::path::Arg) -> Result<Stat, Errno> {
    rustix::fs::statat(dir, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).map(|stat| Stat::from_kernel(&stat))
}
