//! Events become marks; questions are answered from them.
//!
//! ```text
//!            new ──► Starting ──all directories watched──► Ready
//!                       ▲ │                                 │ queue overflow
//!                       │ └─ limit, mount inside ─► Broken  │
//!                       └───────────────────────────────────┘ (another instance: old tokens are void)
//! ```

mod sweep;

pub use sweep::Sweeps;

use crate::dirs::{Dirs, Watch};
use crate::log::{Kind, Log};
use crate::mapped::{Tree, mapped};
use crate::wire::{Answer, Root, Status, Token};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags};
use rustix::io::Errno;
use sandbox_sys::beneath::{LOOK, open_resolved};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use sweep::{Looks, Moment};

/// What is said about each directory.
const DIR: WatchFlags = WatchFlags::MODIFY
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::ONLYDIR);

/// What is said about a file with several names: one of them may be outside of the tree.
const FILE: WatchFlags = WatchFlags::MODIFY.union(WatchFlags::ATTRIB).union(WatchFlags::CLOSE_WRITE);

/// File systems whose every change goes through this kernel and its inodes. Not those that others change
/// from elsewhere (NFS, 9p, FUSE), nor overlays, whose lower layers can change unseen.
const FILESYSTEMS: &[(u64, &str)] = &[
    (0xef53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0x0102_1994, "tmpfs"),
    (0xf2f5_2010, "f2fs"),
    (0xca45_1a4e, "bcachefs"),
    (0x2fc1_2fc1, "zfs"),
];

/// Whether every change of the file system that `fd` is on goes through this kernel, and is stamped by its clock.
///
/// # Errors
///
/// It cannot be asked.
#[allow(clippy::unnecessary_cast, reason = "field types differ between architectures")]
pub fn is_local(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let kind = rustix::fs::fstatfs(fd)?.f_type as u64 & 0xffff_ffff;
    Ok(FILESYSTEMS.iter().any(|(known, _)| *known == kind))
}

/// What is watched.
#[derive(Clone, Debug)]
pub struct Config {
    /// The top directory, canonical.
    pub root: PathBuf,
    /// Absolute paths of directories that are not watched.
    pub exclude: Vec<PathBuf>,
    /// Marks that are kept; who asks from further back gets doubt.
    pub most_marks: usize,
    /// Directories that are looked at before a question is answered with doubt instead of waiting.
    pub patience: usize,
    /// How often all files are looked at.
    pub sweeps: Sweeps,
}

impl Config {
    /// Returns the usual settings for a tree.
    pub fn new(root: PathBuf) -> Self {
        Self { root, exclude: Vec::new(), most_marks: 100_000, patience: 20_000, sweeps: Sweeps::default() }
    }
}

/// Why a tree cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The kernel does not say all that happens there.
    #[error("'{root}' is on a file system that cannot be watched", root = root.display())]
    Filesystem {
        /// The tree.
        root: PathBuf,
    },
    /// No more inotify instances.
    #[error("the limit of inotify instances is reached: '{name}' is {limit}")]
    Instances {
        /// The limit's name: `fs.inotify.max_user_instances`, or that of the user namespace.
        name: &'static str,
        /// Its value.
        limit: u64,
    },
    /// Something else.
    #[error("cannot {action} '{path}'", path = path.display())]
    Io {
        /// `open`, …
        action: &'static str,
        /// What.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// The kernel's limits for each user: instances, watches, queued events.
pub fn limits() -> (u64, u64, u64) {
    let read = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/fs/inotify/{name}")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    };
    (read("max_user_instances"), read("max_user_watches"), read("max_queued_events"))
}

/// The lower of two limits that hold at once: the system's, and the one of the user namespace that we are in.
fn lower(names: [&'static str; 2]) -> (&'static str, u64) {
    let read = |name: &'static str| {
        let file = format!("/proc/sys/{}", name.replace('.', "/"));
        Some((name, std::fs::read_to_string(file).ok()?.trim().parse().ok()?))
    };
    let found = names.into_iter().filter_map(read);
    found.min_by_key(|(_, limit)| *limit).unwrap_or((names[0], 0))
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Starting,
    Ready,
    /// It cannot be watched as it is now.
    Broken,
}

/// A directory, or a file that may have several names, that is to be looked at.
#[derive(Clone, Debug)]
struct Job {
    parent: Watch,
    name: Box<[u8]>,
    how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// A file.
    File,
    /// A directory; if it is known at this place, what is below is known too.
    New,
    /// A directory; what is below may not be known, even if it is.
    Moved,
    /// As `New`, but its names are read in any case.
    Again,
}

/// Why there is no answer from the marks.
struct Doubt {
    why: String,
    again: Again,
}

/// Whether another try may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    /// Too much happened at once; it need not be so the next time.
    Always,
    /// Once. What goes wrong while the tree is looked at for the first time goes wrong each time.
    Once,
    Never,
}

fn doubt(why: impl Into<String>) -> Doubt {
    Doubt { why: why.into(), again: Again::Once }
}

/// Watches one tree.
#[derive(Debug)]
pub struct Watcher {
    config: Config,
    root: OwnedFd,
    id: Root,
    /// As `/proc` shows it.
    dev: (u32, u32),
    mounts: File,
    inotify: OwnedFd,
    dirs: Dirs,
    /// Watches of files with several names, and their inodes.
    files: HashMap<Watch, u64>,
    log: Log,
    instance: String,
    jobs: Vec<Job>,
    /// A directory could not be reached: what is below one that can be reached again may not be known.
    closed: bool,
    /// When all files were looked at.
    looks: Looks,
    state: State,
    status: Status,
    gone: bool,
}

impl Watcher {
    /// Opens the tree. Nothing is watched before the first [`step`](Self::step).
    pub fn new(config: Config) -> Result<Self, WatchError> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |errno: Errno| WatchError::Io { action, path, source: errno.into() }
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&config.root, flags, Mode::empty()).map_err(io("open", &config.root))?;
        if !is_local(root.as_fd()).map_err(io("look at", &config.root))? {
            return Err(WatchError::Filesystem { root: config.root });
        }
        let id = Root::of_open(root.as_fd()).map_err(|source| WatchError::Io {
            action: "look at",
            path: config.root.clone(),
            source,
        })?;
        let mounts = File::open("/proc/self/mountinfo").map_err(|source| WatchError::Io {
            action: "open",
            path: "/proc/self/mountinfo".into(),
            source,
        })?;
        let inotify = instance()?;
        let log = Log::new(config.most_marks);
        let mut watcher = Self {
            config,
            root,
            id,
            dev: (0, 0),
            mounts,
            inotify,
            dirs: Dirs::new(-1),
            files: HashMap::new(),
            log,
            instance: random(),
            jobs: Vec::new(),
            closed: false,
            looks: Looks::new(),
            state: State::Starting,
            status: Status { pid: std::process::id(), ..Status::default() },
            gone: false,
        };
        watcher.begin();
        Ok(watcher)
    }

    /// The queue of events, to wait for.
    pub(crate) fn events(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// Whether the tree is gone.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone
    }

    /// Whether there are directories or files to be looked at.
    pub fn is_busy(&self) -> bool {
        !self.jobs.is_empty() || self.state == State::Starting || self.looks_again()
    }

    /// Facts.
    pub fn status(&self) -> Status {
        Status {
            dirs: self.dirs.len() as u64,
            files: self.files.len() as u64,
            ready: self.state == State::Ready,
            ..self.status.clone()
        }
    }

    /// Starts from nothing: another instance, whose tokens say nothing about what was before.
    fn begin(&mut self) {
        self.instance = random();
        self.log = Log::new(self.config.most_marks);
        self.files.clear();
        self.jobs.clear();
        self.closed = false;
        self.looks = Looks::new();
        self.state = State::Starting;
        if let Err(doubt) = self.first() {
            self.fail(doubt);
        }
    }

    fn first(&mut self) -> Result<(), Doubt> {
        self.inotify = instance().map_err(|error| Doubt { why: error.to_string(), again: Again::Never })?;
        self.look_for_mounts()?;
        let root = self.add(self.root.as_fd(), DIR)?.ok_or_else(|| Doubt {
            why: format!("'{}' cannot be read", self.config.root.display()),
            again: Again::Never,
        })?;
        self.dirs = Dirs::new(root);
        let fd = self.open(b"", LOOK)?.ok_or_else(|| doubt("the top directory is gone"))?;
        self.list(root, fd.as_fd(), How::New)
    }

    fn fail(&mut self, doubt: Doubt) {
        self.status.why = doubt.why;
        if doubt.again == Again::Always || doubt.again == Again::Once && self.state == State::Ready {
            self.begin();
        } else {
            self.state = State::Broken;
            self.jobs.clear();
            self.log = Log::new(self.config.most_marks);
            self.instance = random();
        }
    }

    /// Reads the events that are there, and looks at some directories.
    pub fn step(&mut self) {
        let most = self.jobs.len().min(256);
        if let Err(doubt) = self.drain().and_then(|()| self.work(most.max(64))).and_then(|()| self.sweep()) {
            self.fail(doubt);
        }
        if self.state == State::Starting && self.jobs.is_empty() {
            self.state = State::Ready;
        }
    }

    /// Answers from what had happened before the call.
    pub fn answer(&mut self, since: Option<&Token>) -> Answer {
        self.status.questions += 1;
        self.looks.asked = Moment::now();
        match self.settle(since) {
            Ok(answer) => {
                if let Answer::All { why, .. } = &answer {
                    self.status.doubts += 1;
                    self.status.why.clone_from(why);
                }
                answer
            }
            Err(doubt) => {
                self.status.doubts += 1;
                let why = doubt.why.clone();
                self.fail(doubt);
                Answer::All { token: None, why }
            }
        }
    }

    fn settle(&mut self, since: Option<&Token>) -> Result<Answer, Doubt> {
        let all = |token, why: &str| Ok(Answer::All { token, why: why.to_owned() });
        if self.mounts_changed() {
            if self.state == State::Broken {
                self.begin();
            }
            self.look_for_mounts()?;
        }
        match self.state {
            State::Broken => return all(None, &self.status.why.clone()),
            State::Starting => return all(None, "the tree is still being looked at"),
            State::Ready => {}
        }
        let path = std::fs::read_link(format!("/proc/self/fd/{}", self.root.as_raw_fd()))
            .map_err(|error| doubt(format!("the tree's path is not known: {error}")))?;
        let tree = Tree { path: &path, dev: self.dev, mount: self.id.mount };
        let mapped = mapped(&tree).map_err(|error| doubt(format!("'/proc' cannot be read: {error}")))?;
        self.drain()?;
        self.work(self.config.patience)?;
        if !self.jobs.is_empty() {
            return all(None, "too many directories are new");
        }
        for watch in self.dirs.prune() {
            let _ = inotify::remove_watch(&self.inotify, watch);
        }
        let token = Token { instance: self.instance.clone(), number: self.log.last() };
        let Some(since) = since.filter(|since| since.instance == self.instance) else {
            return all(Some(token), "this watcher has not seen what was before");
        };
        if let Some(why) = self.looks.doubt(&self.config.sweeps) {
            return all(Some(token), &why);
        }
        match self.log.since(since.number) {
            Some(mut marks) => {
                marks.extend(mapped);
                Ok(Answer::Since { token, root: self.id, marks })
            }
            None => all(Some(token), "too much has changed"),
        }
    }

    /// Reads the queue to its end.
    fn drain(&mut self) -> Result<(), Doubt> {
        let mut buffer = [const { MaybeUninit::uninit() }; 64 * 1024];
        let inotify = self.inotify.try_clone().map_err(|error| doubt(error.to_string()))?;
        let mut reader = inotify::Reader::new(&inotify, &mut buffer);
        loop {
            match reader.next() {
                Ok(event) => {
                    let name = event.file_name().map(std::ffi::CStr::to_bytes).unwrap_or_default();
                    self.event(event.wd(), event.events(), name)?;
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(doubt(format!("events cannot be read: {errno}"))),
            }
        }
    }

    fn event(&mut self, watch: Watch, what: ReadFlags, name: &[u8]) -> Result<(), Doubt> {
        if what.contains(ReadFlags::QUEUE_OVERFLOW) {
            return Err(Doubt {
                why: "more happened at once than the kernel's queue holds".into(),
                again: Again::Always,
            });
        }
        if what.contains(ReadFlags::UNMOUNT) {
            self.gone = true;
            return Err(Doubt { why: "the file system was unmounted".into(), again: Again::Never });
        }
        if what.contains(ReadFlags::IGNORED) {
            if watch == self.dirs.root() {
                self.gone = true;
                return Err(Doubt { why: "the top directory is gone".into(), again: Again::Never });
            }
            self.dirs.forget(watch);
            self.files.remove(&watch);
            return Ok(());
        }
        if let Some(ino) = self.files.get(&watch) {
            self.log.inode(*ino);
            return Ok(());
        }
        if !self.dirs.has(watch) {
            return Ok(());
        }
        if name.is_empty() {
            // Of other directories their parent says the same.
            if watch == self.dirs.root() {
                self.log.path(Vec::new(), Kind::Content);
                if self.closed && what.contains(ReadFlags::ATTRIB) {
                    return Err(doubt("the top directory was closed"));
                }
            }
            return Ok(());
        }
        let is_dir = what.contains(ReadFlags::ISDIR);
        let came = what.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO);
        let went = what.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM);
        // A repository's own directory is not part of the tree, but whether there is one is.
        if name == b".git" && !came && !went {
            return Ok(());
        }
        if let Some(dir) = self.dirs.path(watch) {
            let kind = match (came || went, is_dir) {
                (true, true) => Kind::Subtree,
                (true, false) => Kind::Name,
                (false, _) => Kind::Content,
            };
            self.log.path(join(&dir, name), kind);
        }
        let how = match (is_dir, came) {
            (true, true) if what.contains(ReadFlags::MOVED_TO) => How::Moved,
            (true, true) => How::New,
            // It may be readable now.
            (true, false) if self.closed => How::Moved,
            (true, false) => How::Again,
            (false, _) => How::File,
        };
        if is_dir && went {
            self.dirs.unname(watch, name);
        } else if came || what.contains(ReadFlags::ATTRIB) {
            self.jobs.push(Job { parent: watch, name: name.into(), how });
        }
        Ok(())
    }

    /// Looks at up to `most` directories and files.
    fn work(&mut self, most: usize) -> Result<(), Doubt> {
        for _ in 0..most {
            let Some(job) = self.jobs.pop() else { break };
            self.look(&job)?;
        }
        Ok(())
    }

    fn look(&mut self, job: &Job) -> Result<(), Doubt> {
        let Some(dir) = self.dirs.path(job.parent) else { return Ok(()) };
        let path = join(&dir, &job.name);
        if job.name.as_ref() == b".git" || self.is_excluded(&path) {
            return Ok(());
        }
        if job.how == How::File {
            return self.look_at_file(&path);
        }
        let Some(fd) = self.open(&path, LOOK)? else { return Ok(()) };
        let Some(watch) = self.add(fd.as_fd(), DIR)? else { return Ok(()) };
        let known = self.dirs.hang(watch, job.parent, &job.name);
        if known && job.how == How::New {
            return Ok(());
        }
        self.list(watch, fd.as_fd(), if job.how == How::Again { How::New } else { job.how })
    }

    /// Watches a file that has several names.
    #[allow(clippy::unnecessary_cast, reason = "field types differ between architectures")]
    fn look_at_file(&mut self, path: &[u8]) -> Result<(), Doubt> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Some(fd) = self.open(path, flags)? else { return Ok(()) };
        let Ok(stat) = rustix::fs::fstat(&fd) else { return Ok(()) };
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && stat.st_nlink > 1
            && let Some(watch) = self.add(fd.as_fd(), FILE)?
        {
            self.files.insert(watch, stat.st_ino as u64);
        }
        Ok(())
    }

    /// Reads the names of a directory that is watched by now: what comes later is told.
    fn list(&mut self, watch: Watch, dir: BorrowedFd<'_>, how: How) -> Result<(), Doubt> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(dir, ".", flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::ACCESS | Errno::PERM | Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(doubt(format!("a directory cannot be read: {errno}"))),
        };
        let mut buffer = Vec::with_capacity(32 * 1024);
        let mut entries = RawDir::new(&fd, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(|errno| doubt(format!("a directory cannot be read: {errno}")))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b".." | b".git") {
                continue;
            }
            let how = match entry.file_type() {
                FileType::Directory => how,
                FileType::RegularFile | FileType::Unknown => {
                    let Ok(stat) = rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
                    match FileType::from_raw_mode(stat.st_mode) {
                        FileType::Directory => how,
                        FileType::RegularFile if stat.st_nlink > 1 => How::File,
                        _ => continue,
                    }
                }
                _ => continue,
            };
            self.jobs.push(Job { parent: watch, name: name.to_bytes().into(), how });
        }
        Ok(())
    }

    /// Opens a path; `None` when it is not there or not ours to see.
    fn open(&mut self, path: &[u8], flags: OFlags) -> Result<Option<OwnedFd>, Doubt> {
        match open_resolved(self.root.as_fd(), path, flags, ResolveFlags::NO_XDEV) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(Errno::ACCESS | Errno::PERM) => {
                self.closed = true;
                Ok(None)
            }
            Err(Errno::XDEV) => Err(Doubt { why: mounted(path), again: Again::Never }),
            Err(errno) => Err(doubt(format!("'{}' cannot be opened: {errno}", path.escape_ascii()))),
        }
    }

    /// Watches what a descriptor is of; `None` when it is not ours to read.
    fn add(&self, fd: BorrowedFd<'_>, flags: WatchFlags) -> Result<Option<Watch>, Doubt> {
        match inotify::add_watch(&self.inotify, format!("/proc/self/fd/{}", fd.as_raw_fd()), flags) {
            Ok(watch) => Ok(Some(watch)),
            Err(Errno::ACCESS | Errno::PERM | Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(Errno::NOSPC) => {
                let (dirs, files) = (self.dirs.len(), self.files.len());
                let (name, limit) = lower(["fs.inotify.max_user_watches", "user.max_inotify_watches"]);
                let why = format!(
                    "the limit of inotify watches is reached after {dirs} directories and {files} files: \
                     '{name}' is {limit}"
                );
                Err(Doubt { why, again: Again::Never })
            }
            Err(errno) => Err(doubt(format!("a directory cannot be watched: {errno}"))),
        }
    }

    fn is_excluded(&self, path: &[u8]) -> bool {
        self.config.exclude.iter().any(|excluded| {
            excluded.strip_prefix(&self.config.root).is_ok_and(|below| {
                let below = below.as_os_str().as_bytes();
                !below.is_empty() && path.strip_prefix(below).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
            })
        })
    }

    /// Whether anything was mounted or unmounted since the last look.
    fn mounts_changed(&self) -> bool {
        let mut fds = [PollFd::new(&self.mounts, PollFlags::PRI)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // In doubt: yes.
        poll(&mut fds, Some(&now)).is_err() || !fds[0].revents().is_empty()
    }

    /// Refuses mount points within the tree: what lies below is another file system's. Notes the device.
    fn look_for_mounts(&mut self) -> Result<(), Doubt> {
        let mut text = Vec::new();
        let read = self.mounts.rewind().and_then(|()| self.mounts.read_to_end(&mut text));
        read.map_err(|error| doubt(format!("the mounts cannot be read: {error}")))?;
        let mut dev = None;
        for line in text.split(|b| *b == b'\n') {
            let mut fields = line.split(|b| *b == b' ');
            let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse::<u64>().ok();
            let (Some(id), Some(numbers), Some(at)) = (fields.next(), fields.nth(1), fields.nth(1)) else { continue };
            if number(id) == Some(self.id.mount)
                && let Some((major, minor)) = std::str::from_utf8(numbers).ok().and_then(|n| n.split_once(':'))
            {
                dev = major.parse().ok().zip(minor.parse().ok());
            }
            let at = unescape(at);
            if let Some(below) = at.strip_prefix(self.config.root.as_os_str().as_bytes())
                && let Some(below) = below.strip_prefix(b"/")
                && !below.is_empty()
                && !self.is_excluded(below)
            {
                return Err(Doubt { why: mounted(below), again: Again::Never });
            }
        }
        self.dev = dev.ok_or_else(|| doubt("the tree's mount is not listed"))?;
        Ok(())
    }
}

fn mounted(path: &[u8]) -> String {
    format!("another file system is mounted at '{}'", path.escape_ascii())
}

fn instance() -> Result<OwnedFd, WatchError> {
    inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(|errno| match errno {
        Errno::MFILE => {
            let (name, limit) = lower(["fs.inotify.max_user_instances", "user.max_inotify_instances"]);
            WatchError::Instances { name, limit }
        }
        errno => WatchError::Io { action: "open", path: "inotify".into(), source: errno.into() },
    })
}

fn random() -> String {
    let mut bytes = [0u8; 16];
    // Without random bits no token could be told from another instance's.
    getrandom::fill(&mut bytes).expect("the kernel has random bits");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

/// Undoes the octal escapes of `/proc/self/mountinfo`.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut at = text;
    while let Some((byte, rest)) = at.split_first() {
        let octal = (*byte == b'\\')
            .then(|| rest.get(..3).and_then(|d| std::str::from_utf8(d).ok()))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(value) => {
                out.push(value);
                at = &rest[3..];
            }
            None => {
                out.push(*byte);
                at = rest;
            }
        }
    }
    out
}
