//! Renames that the kernel asks us about: directories that a rootless overlay refuses, and the
//! news that a ref moved.
//!
//! ```text
//!  session: rename* ──notification──► one of two threads
//!      not a directory      ► Continue (and if it looks like a ref: a note to the loop)
//!      a directory          ► renameat2 by the thread, which has the session's ids and no more rights
//!          any result but EXDEV, or another file system ► that result is the answer
//!          EXDEV inside one overlay ► a Job for the loop ► a helper process does it (`work`) and answers
//! ```
//!
//! Helpers run one at a time: the work is not atomic, and two that overlap would undo each other.
//! A helper is a fork of PID 1 without capabilities; it has the same ids as the sessions. A caller
//! with other ids (a subuid range) gets the kernel's own answer, EXDEV.
//!
//! Before Linux 5.19 any signal interrupts a waiting caller, who then asks again for what may have
//! been done meanwhile: what nobody heard of is remembered for a moment and answered then.
//!
//! Paths are resolved as the caller would: from its working directory or descriptor, below its
//! root. A caller whose root is not ours (in an inner sandbox, with `--nested`) gets the kernel's own
//! answer: the same path is another file there, and what the inner sandbox shut must stay shut. Magic
//! links of `/proc` would lead PID 1 elsewhere than the caller and are left to the kernel.

mod exchange;
mod job;
pub mod work;

pub use job::{Job, Worker};

use crate::refs;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;
use sandbox_protocol::AgentConfig;
use sandbox_sys::notify::{Answer, Listener, Memory, Notification, RenameCall};
use std::collections::{BTreeSet, VecDeque};
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What the kernel takes as a path, with its end.
const PATH_MAX: usize = 4096;

/// How many notes about refs wait at most; the loop takes them within a turn.
const MAX_NOTES: usize = 64;

/// A tree in which a directory rename may be ours to do.
#[derive(Clone, Debug)]
struct Tree {
    /// Its top.
    at: PathBuf,
    /// The kernel's number of its mount.
    mount: u64,
}

/// What the answering threads and the loop share.
#[derive(Debug)]
pub struct Notifier {
    trees: Vec<Tree>,
    jobs: Mutex<VecDeque<Job>>,
    refs: Mutex<BTreeSet<Vec<u8>>>,
    /// Renames that were done while their callers were interrupted.
    unheard: Mutex<Vec<Unheard>>,
    /// There are some: most calls need not look.
    any_unheard: AtomicBool,
    wake: OwnedFd,
    answering: AtomicBool,
}

/// A rename that was done and could not be answered.
#[derive(Debug)]
struct Unheard {
    pid: u32,
    from: PlaceId,
    to: PlaceId,
    until: Instant,
}

/// How long an interrupted caller may take in its signal handler.
const REMEMBER: Duration = Duration::from_secs(5);

impl Notifier {
    /// Returns the shared half; no thread runs yet.
    pub fn new(config: &AgentConfig) -> io::Result<Self> {
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        let trees = config.trees.iter().filter(|tree| tree.rename_exdev && !tree.read_only);
        let trees = trees
            .filter_map(|tree| Some(Tree { at: tree.at.clone(), mount: mount_of(rustix::fs::CWD, &tree.at).ok()? }))
            .collect();
        Ok(Self {
            trees,
            jobs: Mutex::default(),
            refs: Mutex::default(),
            unheard: Mutex::default(),
            any_unheard: AtomicBool::new(false),
            wake: rustix::event::eventfd(0, flags)?,
            answering: AtomicBool::new(false),
        })
    }

    /// True when notifications are answered, so that moves of refs are seen.
    pub fn is_answering(&self) -> bool {
        self.answering.load(Ordering::Relaxed)
    }

    /// Returns the git directories in which refs moved, and quiets the descriptor.
    pub fn take_refs(&self) -> BTreeSet<Vec<u8>> {
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        std::mem::take(&mut *self.refs.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn take_job(&self) -> Option<Job> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn remember(&self, pid: u32, from: PlaceId, to: PlaceId) {
        let until = Instant::now() + REMEMBER;
        self.unheard.lock().unwrap_or_else(PoisonError::into_inner).push(Unheard { pid, from, to, until });
        self.any_unheard.store(true, Ordering::Release);
    }

    /// True, once, when this rename was done for this caller, who did not hear of it.
    fn was_done(&self, pid: u32, from: &Place, to: &Place) -> bool {
        if !self.any_unheard.load(Ordering::Acquire) {
            return false;
        }
        let mut unheard = self.unheard.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        unheard.retain(|one| one.until > now);
        let (Ok(from), Ok(to)) = (from.id(), to.id()) else { return false };
        let at = unheard.iter().position(|one| one.pid == pid && one.from == from && one.to == to);
        if let Some(at) = at {
            unheard.swap_remove(at);
        }
        self.any_unheard.store(!unheard.is_empty(), Ordering::Release);
        at.is_some()
    }

    /// Fails the renames that wait for a helper.
    pub fn refuse_jobs(&self) {
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        while let Some(job) = self.take_job() {
            job.refuse();
        }
    }

    fn add_job(&self, job: Job) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).push_back(job);
        self.ring();
    }

    fn note_ref(&self, gitdir: Vec<u8>) {
        let mut refs = self.refs.lock().unwrap_or_else(PoisonError::into_inner);
        if refs.len() < MAX_NOTES && refs.insert(gitdir) {
            drop(refs);
            self.ring();
        }
    }

    fn ring(&self) {
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

impl AsFd for Notifier {
    /// Readable when there is a job or a note.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// Starts the threads that answer a filter's notifications; they end with its last process.
pub fn answer(listener: OwnedFd, notifier: &Arc<Notifier>) -> io::Result<()> {
    let listener = Arc::new(Listener::new(listener));
    for _ in 0..2 {
        let (listener, notifier) = (listener.clone(), notifier.clone());
        std::thread::Builder::new().stack_size(96 * 1024).spawn(move || {
            while let Ok(Some(call)) = listener.receive() {
                if let Some(answer) = consider(&call, &listener, &notifier) {
                    // Not even "go on" can be said: then the caller is gone.
                    let _ = listener.answer(call.id, answer);
                }
            }
        })?;
    }
    notifier.answering.store(true, Ordering::Relaxed);
    Ok(())
}

/// Returns the answer, `None` when a helper will give it.
fn consider(call: &Notification, listener: &Arc<Listener>, notifier: &Notifier) -> Option<Answer> {
    let Some(rename) = RenameCall::of(call) else { return Some(Answer::Continue) };
    let (mut old, mut new) = ([0; PATH_MAX], [0; PATH_MAX]);
    // What cannot be read the kernel will judge by itself.
    let Ok(memory) = Memory::of(call.pid) else { return Some(Answer::Continue) };
    let Ok(old) = memory.read_str(rename.old_path, &mut old) else { return Some(Answer::Continue) };
    let Ok(new) = memory.read_str(rename.new_path, &mut new) else { return Some(Answer::Continue) };
    drop(memory);
    if notifier.any_unheard.load(Ordering::Acquire)
        && let (Ok(from), Ok(to)) = (resolve(call.pid, rename.old_dir, old), resolve(call.pid, rename.new_dir, new))
        && notifier.was_done(call.pid, &from, &to)
    {
        return Some(Answer::Return(0));
    }
    let exchanges = RenameFlags::from_bits_retain(rename.flags).contains(RenameFlags::EXCHANGE);
    let moved_back = exchanges && is_directory(call.pid, rename.new_dir, new);
    if !moved_back && !is_directory(call.pid, rename.old_dir, old) {
        if refs::may_be_ref(old.to_bytes(), new.to_bytes())
            && let Some(gitdir) = refs::gitdir_of(&absolute(call.pid, rename.new_dir, new))
        {
            notifier.note_ref(gitdir);
        }
        return Some(Answer::Continue);
    }
    match directory(call, &rename, old, new, listener, notifier) {
        Ok(answer) => answer,
        Err(_) => Some(Answer::Continue),
    }
}

/// A path by which we reach what the caller names by `directory`.
fn base_path(pid: u32, directory: i32) -> String {
    if directory == rustix::fs::CWD.as_raw_fd() {
        format!("/proc/{pid}/cwd")
    } else {
        format!("/proc/{pid}/fd/{directory}")
    }
}

fn is_directory(pid: u32, directory: i32, path: &CStr) -> bool {
    let stat = |path: &[u8]| {
        let stat = rustix::fs::statat(rustix::fs::CWD, OsStr::from_bytes(path), AtFlags::SYMLINK_NOFOLLOW);
        stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    };
    let path = path.to_bytes();
    if path.starts_with(b"/") {
        return stat(path);
    }
    let mut full = Vec::with_capacity(path.len() + 32);
    full.extend_from_slice(base_path(pid, directory).as_bytes());
    full.push(b'/');
    full.extend_from_slice(path);
    stat(&full)
}

/// The caller's path as an absolute one, not cleaned.
fn absolute(pid: u32, directory: i32, path: &CStr) -> Vec<u8> {
    let path = path.to_bytes();
    if path.starts_with(b"/") {
        return path.to_vec();
    }
    let base = rustix::fs::readlink(base_path(pid, directory), Vec::new()).map(CString::into_bytes);
    [base.unwrap_or_default().as_slice(), b"/", path].concat()
}

/// One side of a rename: an open directory and a name in it.
#[derive(Debug)]
struct Place {
    parent: OwnedFd,
    name: CString,
}

/// Names a place whoever opened it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PlaceId {
    device: u64,
    inode: u64,
    name: CString,
}

impl Place {
    fn id(&self) -> rustix::io::Result<PlaceId> {
        let stat = rustix::fs::fstat(&self.parent)?;
        Ok(PlaceId { device: stat.st_dev, inode: stat.st_ino, name: self.name.clone() })
    }
}

fn resolve(pid: u32, directory: i32, path: &CStr) -> rustix::io::Result<Place> {
    let path = path.to_bytes();
    // A slash at the end says "a directory" and stays with the name, as the kernel wants it there.
    let trimmed = path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    let cut = path[..trimmed].iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let (parent, name) = path.split_at(cut);
    if matches!(&path[cut..trimmed], b"" | b"." | b"..") {
        return Err(Errno::INVAL);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let base = if path.starts_with(b"/") {
        rustix::fs::open("/", flags, Mode::empty())?
    } else {
        rustix::fs::open(base_path(pid, directory), flags, Mode::empty())?
    };
    let parent = match parent {
        b"" => base,
        parent => {
            let parent = OsStr::from_bytes(parent);
            rustix::fs::openat2(base, parent, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)?
        }
    };
    Ok(Place { parent, name: CString::new(name).map_err(|_| Errno::INVAL)? })
}

fn mount_of(directory: impl AsFd, path: impl rustix::path::Arg) -> rustix::io::Result<u64> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
    Ok(rustix::fs::statx(directory, path, flags, StatxFlags::MNT_ID)?.stx_mnt_id)
}

fn directory(
    call: &Notification,
    rename: &RenameCall,
    old: &CStr,
    new: &CStr,
    listener: &Arc<Listener>,
    notifier: &Notifier,
) -> io::Result<Option<Answer>> {
    let from = resolve(call.pid, rename.old_dir, old)?;
    let to = resolve(call.pid, rename.new_dir, new)?;
    let mount = mount_of(&from.parent, c"")?;
    let tree = notifier.trees.iter().find(|tree| tree.mount == mount);
    let Some(tree) = tree.filter(|_| mount_of(&to.parent, c"").is_ok_and(|other| other == mount)) else {
        return Ok(Some(Answer::Continue));
    };
    if !same_root(call.pid)? || !same_ids(call.pid)? || !listener.is_valid(call.id) {
        return Ok(Some(Answer::Continue));
    }
    let flags = RenameFlags::from_bits_retain(rename.flags);
    match rustix::fs::renameat_with(&from.parent, &from.name, &to.parent, &to.name, flags) {
        Ok(()) => Ok(Some(Answer::Return(0))),
        Err(Errno::XDEV) => {
            notifier.add_job(Job::new(call, listener.clone(), tree.at.clone(), from, to, flags));
            Ok(None)
        }
        Err(error) => Ok(Some(Answer::Error(error.raw_os_error()))),
    }
}

/// True when a thread sees the files that we see: its root directory is ours, in the same mount.
fn same_root(pid: u32) -> rustix::io::Result<bool> {
    let root = |path: &str| {
        let facts = rustix::fs::statx(rustix::fs::CWD, path, AtFlags::empty(), StatxFlags::MNT_ID | StatxFlags::INO)?;
        Ok((facts.stx_mnt_id, facts.stx_ino))
    };
    Ok(root(&format!("/proc/{pid}/root"))? == root("/")?)
}

/// True when a thread has our ids: then what we may rename, it may.
fn same_ids(pid: u32) -> io::Result<bool> {
    let ids = |pid: &str| -> io::Result<Vec<String>> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let fields = status.lines().filter(|line| line.starts_with("Uid:") || line.starts_with("Gid:"));
        // The last of the four numbers is the one that files are judged by.
        Ok(fields.filter_map(|line| line.split_ascii_whitespace().next_back()).map(str::to_owned).collect())
    };
    Ok(ids(&pid.to_string())? == ids("thread-self")?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn own(path: &str) -> rustix::io::Result<Place> {
        resolve(std::process::id(), rustix::fs::CWD.as_raw_fd(), &CString::new(path).unwrap())
    }

    fn at(place: &Place) -> PathBuf {
        std::fs::read_link(format!("/proc/self/fd/{}", place.parent.as_raw_fd())).unwrap()
    }

    #[test]
    fn paths_are_cut_into_directory_and_name() {
        let top = tempfile::tempdir().unwrap();
        let top = top.path().canonicalize().unwrap();
        std::fs::create_dir_all(top.join("a/b")).unwrap();
        for (path, parent, name) in
            [("a", "", c"a"), ("a/b", "a", c"b"), ("a/b///", "a", c"b///"), ("a//new", "a", c"new")]
        {
            let place = own(&format!("{}/{path}", top.display())).unwrap();
            assert_eq!((at(&place), place.name.as_c_str()), (top.join(parent), name), "{path}");
        }
        assert_eq!(at(&own("/tmp").unwrap()), Path::new("/"));
        assert_eq!(at(&own("x").unwrap()), std::env::current_dir().unwrap());
        let directory = std::fs::File::open(top.join("a")).unwrap();
        let place = resolve(std::process::id(), directory.as_raw_fd(), c"b/x").unwrap();
        assert_eq!(at(&place), top.join("a/b"));
        assert_eq!(
            absolute(std::process::id(), directory.as_raw_fd(), c"b/x"),
            top.join("a/b/x").as_os_str().as_bytes()
        );
    }

    #[test]
    fn what_has_no_name_or_leads_through_us_is_left_to_the_kernel() {
        for path in ["", ".", "..", "/", "a/..", "/tmp/.", "/proc/self/cwd/x", "/proc/self/fd/0/x", "/no/where/x"] {
            assert!(own(path).is_err(), "{path}");
        }
    }

    #[test]
    fn what_was_not_heard_is_answered_once() {
        let notifier = Notifier::new(&AgentConfig::default()).unwrap();
        let (from, to) = (own("/tmp/a").unwrap(), own("/tmp/b").unwrap());
        assert!(!notifier.was_done(7, &from, &to));
        notifier.remember(7, from.id().unwrap(), to.id().unwrap());
        assert!(!notifier.was_done(8, &from, &to));
        assert!(!notifier.was_done(7, &to, &from));
        assert!(notifier.was_done(7, &from, &to));
        assert!(!notifier.was_done(7, &from, &to));
    }

    #[test]
    fn our_own_ids_are_the_same() {
        assert!(same_ids(std::process::id()).unwrap());
    }
}
