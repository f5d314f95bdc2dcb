//! A stack of layers as one ordinary directory: what an overlay would show, copied, for where none can be had.
//!
//! ```text
//!  walk ── names of all layers, uppermost first; whiteouts hide ─► directories made, files listed
//!  copy ── by all threads: shared blocks, else copied
//!  link ── further names of a file that has several
//!  finish ── owners, modes and times of directories, the deepest first
//! ```
//!
//! A [`restated`] manifest beside the copy says which inode each file has there: what still has it, and the
//! change time with it, needs no reading when changes are listed.

use crate::manifest::{Builder, CopyStat, Manifest, Record};
use crate::paths::{self, LIST, LOOK, READ, base, join, name_c, open_beneath, parent, to_path};
use crate::reflink::Reflinks;
use crate::request::{Decision, Progress};
use crate::stat::{Kind, Time, kind_of};
use crate::twin::{own, owner_of, same_xattrs, times};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use sandbox_sys::copy::Copier;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The most files that one thread takes at once.
const BATCH: usize = 64;

/// What is to be copied.
pub struct WholeRequest<'a> {
    /// Trees of layers, uppermost first.
    pub layers: &'a [PathBuf],
    /// The directory that is filled; it exists and is empty. Its own mode and times are the caller's business.
    pub target: &'a Path,
    /// Threads to copy with.
    pub threads: usize,
    /// Hears how much it is, and how it goes.
    pub progress: &'a dyn Progress,
}

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Whole {
    /// Files and symlinks, further names included.
    pub files: u64,
    /// Bytes of files, each once.
    pub bytes: u64,
    /// Files that share their blocks with the layer's.
    pub reflinked: u64,
}

/// Why a stack could not be copied.
#[derive(Debug, thiserror::Error)]
#[error("cannot copy '{path}'", path = path.display())]
pub struct WholeError {
    /// The file or directory, in a layer or in the copy.
    pub path: PathBuf,
    /// What the kernel said.
    pub source: io::Error,
}

/// What a name is, as far as the layers were looked through.
enum Found {
    /// Whatever a lower layer has does not show.
    Closed,
    /// A directory in these layers, uppermost first; a lower one may have it too.
    Open(Vec<usize>),
    /// A directory in these layers, and in no other.
    Shut(Vec<usize>),
}

/// Files of one directory and one layer.
struct Job {
    dir: Vec<u8>,
    layer: usize,
    names: Vec<(CString, rustix::fs::Stat)>,
}

/// A directory to be finished.
struct Dir {
    path: Vec<u8>,
    stat: rustix::fs::Stat,
    /// The layer that it looks like.
    layer: usize,
}

struct Stack<'a> {
    request: &'a WholeRequest<'a>,
    layers: Vec<OwnedFd>,
    target: OwnedFd,
    copier: Copier,
}

/// Copies a stack of layers into a directory, hard links within a layer as hard links.
pub fn whole(request: &WholeRequest<'_>) -> Result<Whole, WholeError> {
    let open = |path: &Path| {
        paths::open_root(path).map_err(|errno| WholeError { path: path.to_owned(), source: errno.into() })
    };
    let stack = Stack {
        layers: request.layers.iter().map(|path| open(path)).collect::<Result<_, _>>()?,
        target: open(request.target)?,
        copier: Copier::new(),
        request,
    };
    let mut plan = stack.walk()?;
    let reflinks = || Reflinks::default().work(stack.target.as_fd(), request.target);
    let files = plan.done.files + plan.dirs.len() as u64;
    if request.progress.has_room(files, plan.done.bytes, &reflinks) == Decision::Abort {
        return Err(WholeError { path: request.target.to_owned(), source: io::ErrorKind::StorageFull.into() });
    }
    request.progress.whole(plan.done.files, plan.done.bytes);
    plan.done.reflinked = stack.copy_all(&plan.jobs)?;
    for (first, path, layer, stat) in &plan.links {
        stack.link(first, path, *layer, stat)?;
    }
    for dir in plan.dirs.iter().rev() {
        stack.finish(dir)?;
    }
    Ok(plan.done)
}

/// What the walk found.
#[derive(Default)]
struct Plan {
    jobs: Vec<Job>,
    /// Further names: the first one, this one, its layer.
    links: Vec<(Vec<u8>, Vec<u8>, usize, rustix::fs::Stat)>,
    /// Outer ones before inner ones; without the top.
    dirs: Vec<Dir>,
    done: Whole,
}

impl Stack<'_> {
    fn in_layer(&self, layer: usize, path: &[u8]) -> impl FnOnce(Errno) -> WholeError + use<> {
        let path = self.request.layers[layer].join(to_path(path));
        move |errno| WholeError { path, source: errno.into() }
    }

    fn in_copy(&self, path: &[u8]) -> impl FnOnce(Errno) -> WholeError + use<> {
        let path = self.request.target.join(to_path(path));
        move |errno| WholeError { path, source: errno.into() }
    }

    /// Makes the directories and lists the files.
    fn walk(&self) -> Result<Plan, WholeError> {
        let mut plan = Plan::default();
        let mut first_names: HashMap<(usize, u64), Vec<u8>> = HashMap::new();
        let mut waiting = vec![(Vec::new(), (0..self.layers.len()).collect::<Vec<_>>())];
        while let Some((path, from)) = waiting.pop() {
            let mut names: BTreeMap<CString, Found> = BTreeMap::new();
            let mut below: Vec<Dir> = Vec::new();
            for layer in from {
                let mut job = Job { dir: path.clone(), layer, names: Vec::new() };
                let fd = match open_beneath(self.layers[layer].as_fd(), &path, LIST) {
                    Ok(fd) => fd,
                    // Nobody could look into it on the host either: it holds no more than what hides older states.
                    Err(Errno::ACCESS) => break,
                    Err(errno) => return Err(self.in_layer(layer, &path)(errno)),
                };
                let mut here: Vec<CString> = Vec::new();
                paths::list(fd.as_fd(), |name| here.push(name.to_owned())).map_err(self.in_layer(layer, &path))?;
                for name in here {
                    let known = names.get_mut(&name);
                    if matches!(known, Some(Found::Closed | Found::Shut(_))) {
                        continue;
                    }
                    let at = join(&path, name.as_bytes());
                    let stat =
                        rustix::fs::statat(&fd, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(self.in_layer(layer, &at))?;
                    let is_dir = kind_of(stat.st_mode) == Kind::Dir;
                    if let Some(found) = known {
                        if let Found::Open(layers) = found {
                            match is_dir {
                                true => layers.push(layer),
                                false => *found = Found::Shut(std::mem::take(layers)),
                            }
                        }
                        continue;
                    }
                    if is_dir {
                        below.push(Dir { path: at, stat, layer });
                        names.insert(name, Found::Open(vec![layer]));
                        continue;
                    }
                    // A whiteout, or what no layer should hold: nothing is made of it, and nothing shows through.
                    if !matches!(kind_of(stat.st_mode), Kind::Special) {
                        plan.done.files += 1;
                        let first = (stat.st_nlink > 1 && kind_of(stat.st_mode) == Kind::File)
                            .then(|| first_names.entry((layer, stat.st_ino)).or_insert_with(|| at.clone()).clone());
                        match first {
                            Some(first) if first != at => plan.links.push((first, at, layer, stat)),
                            _ => {
                                plan.done.bytes += stat.st_size as u64;
                                job.names.push((name.clone(), stat));
                            }
                        }
                    }
                    names.insert(name, Found::Closed);
                }
                while job.names.len() > BATCH {
                    let rest = job.names.split_off(job.names.len() - BATCH);
                    plan.jobs.push(Job { dir: path.clone(), layer, names: rest });
                }
                if !job.names.is_empty() {
                    plan.jobs.push(job);
                }
            }
            let to = open_beneath(self.target.as_fd(), &path, LOOK).map_err(self.in_copy(&path))?;
            for dir in below {
                rustix::fs::mkdirat(&to, name_c(base(&dir.path)), Mode::RWXU).map_err(self.in_copy(&dir.path))?;
                if let Some(Found::Open(layers) | Found::Shut(layers)) = names.remove(&*name_c(base(&dir.path))) {
                    waiting.push((dir.path.clone(), layers));
                }
                plan.dirs.push(dir);
            }
        }
        Ok(plan)
    }

    /// Copies by several threads; returns how many files share blocks.
    fn copy_all(&self, jobs: &[Job]) -> Result<u64, WholeError> {
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let (reflinked, failed) = (AtomicUsize::new(0), Mutex::new(None));
        let worker = || {
            while !stop.load(Ordering::Relaxed) {
                let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                match self.job(job) {
                    Ok(shared) => {
                        reflinked.fetch_add(shared, Ordering::Relaxed);
                    }
                    Err(error) => {
                        stop.store(true, Ordering::Relaxed);
                        failed.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.request.threads.max(1).min(jobs.len()) {
                scope.spawn(worker);
            }
            worker();
        });
        match failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
            Some(error) => Err(error),
            None => Ok(reflinked.into_inner() as u64),
        }
    }

    fn job(&self, job: &Job) -> Result<usize, WholeError> {
        let from =
            open_beneath(self.layers[job.layer].as_fd(), &job.dir, LOOK).map_err(self.in_layer(job.layer, &job.dir))?;
        let to = open_beneath(self.target.as_fd(), &job.dir, LOOK).map_err(self.in_copy(&job.dir))?;
        let (mut shared, mut bytes) = (0, 0);
        for (name, stat) in &job.names {
            let reflinked = self
                .copy(from.as_fd(), to.as_fd(), name, stat)
                .map_err(|errno| self.in_copy(&join(&job.dir, name.as_bytes()))(errno))?;
            shared += usize::from(reflinked);
            bytes += stat.st_size as u64;
        }
        self.request.progress.copied(job.names.len() as u64, bytes);
        Ok(shared)
    }

    /// Copies one file or symlink; returns whether it shares its blocks.
    fn copy(
        &self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &CStr,
        stat: &rustix::fs::Stat,
    ) -> Result<bool, Errno> {
        if kind_of(stat.st_mode) == Kind::Symlink {
            let link = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(&link, to, name)?;
            own(to, name, owner_of(stat))?;
            rustix::fs::utimensat(to, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?;
            return Ok(false);
        }
        let file = rustix::fs::openat(from, name, READ, Mode::empty())?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let new = rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
        let copied = self
            .copier
            .copy(file.as_fd(), new.as_fd(), stat.st_size as u64, stat.st_blocks as u64, stat.st_dev)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        own_file(new.as_fd(), stat)?;
        rustix::fs::fchmod(&new, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        same_xattrs(file.as_fd(), new.as_fd())?;
        rustix::fs::futimens(&new, &times(stat))?;
        Ok(copied.reflinked)
    }

    /// Makes a further name of a file that was copied.
    fn link(&self, first: &[u8], path: &[u8], layer: usize, stat: &rustix::fs::Stat) -> Result<(), WholeError> {
        let made = || {
            let from = open_beneath(self.target.as_fd(), parent(first), LOOK)?;
            let to = open_beneath(self.target.as_fd(), parent(path), LOOK)?;
            match rustix::fs::linkat(&from, name_c(base(first)), &to, name_c(base(path)), AtFlags::empty()) {
                // As many names as the file system allows, or it allows none.
                Err(Errno::MLINK | Errno::PERM | Errno::OPNOTSUPP) => {
                    let from = open_beneath(self.layers[layer].as_fd(), parent(path), LOOK)?;
                    self.copy(from.as_fd(), to.as_fd(), &name_c(base(path)), stat).map(drop)
                }
                made => made,
            }
        };
        made().map_err(self.in_copy(path))
    }

    fn finish(&self, dir: &Dir) -> Result<(), WholeError> {
        let done = open_beneath(self.target.as_fd(), &dir.path, LIST).and_then(|fd| {
            own_file(fd.as_fd(), &dir.stat)?;
            rustix::fs::fchmod(&fd, Mode::from_raw_mode(dir.stat.st_mode & 0o7777))?;
            match open_beneath(self.layers[dir.layer].as_fd(), &dir.path, LIST) {
                Ok(from) => same_xattrs(from.as_fd(), fd.as_fd())?,
                Err(Errno::ACCESS) => {}
                Err(errno) => return Err(errno),
            }
            rustix::fs::futimens(&fd, &times(&dir.stat))
        });
        done.map_err(self.in_copy(&dir.path))
    }
}

fn own_file(file: BorrowedFd<'_>, stat: &rustix::fs::Stat) -> Result<(), Errno> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let (uid, gid) = owner_of(stat);
    rustix::fs::fchown(file, Some(rustix::fs::Uid::from_raw(uid)), Some(rustix::fs::Gid::from_raw(gid)))
}

/// Returns the manifest of a stack with the stat data of `tree`, a copy of it. With `before`, the tree that
/// `manifest` describes and `tree` is a copy of, only for what is in there as `manifest` says.
///
/// What is not in `tree`, or another thing there, gets none: it will be compared by content.
pub fn restated(manifest: &Manifest, before: Option<&Path>, tree: &Path) -> Result<Vec<u8>, WholeError> {
    let failed = |path: &Path, errno: Errno| WholeError { path: path.to_owned(), source: errno.into() };
    let open = |path: &Path| paths::open_root(path).map_err(|errno| failed(path, errno));
    let (old, new) = (before.map(open).transpose()?, open(tree)?);
    let record = |raw: &crate::manifest::Raw<'_>, copy| Record {
        stat: raw.stat(),
        layer: raw.layer(),
        copy,
        flags: raw.flags(),
    };
    let layers = manifest.layers_up().to_vec();
    let mut builder =
        Builder::new(Time::now(), manifest.settings(), layers, manifest.devs(), record(&manifest.raw(0), None));
    let mut waiting = vec![(0, 0)];
    let mut below = Vec::new();
    while let Some((dir, index)) = waiting.pop() {
        let path = manifest.dir_path(dir);
        let at = |root: &OwnedFd| open_beneath(root.as_fd(), &path, LOOK).ok();
        let (old_dir, new_dir) = (old.as_ref().and_then(at), at(&new));
        let known = manifest.dir(dir);
        builder.begin(index, known.flags);
        for raw in (known.first..known.first + known.count).map(|n| manifest.raw(n)) {
            if let Some(child) = raw.child() {
                below.push((child, builder.push_dir(index, raw.name(), record(&raw, None))));
                continue;
            }
            let look = |dir: &Option<OwnedFd>| {
                let stat = rustix::fs::statat(dir.as_ref()?, raw.name_c(), AtFlags::SYMLINK_NOFOLLOW).ok()?;
                let stat = crate::stat::Stat::from_kernel(&stat);
                (stat.kind() == raw.kind()).then_some(CopyStat { ino: stat.ino, ctime: stat.ctime })
            };
            let same = old.is_none() || (raw.copy().is_some() && look(&old_dir) == raw.copy());
            let copy = if same && raw.flags().reason().is_none() { look(&new_dir) } else { None };
            builder.push(raw.name(), record(&raw, copy));
        }
        builder.end(index);
        waiting.extend(below.drain(..).rev());
    }
    builder.finish().map(|parts| parts.whole()).map_err(|_| failed(tree, Errno::FBIG))
}
