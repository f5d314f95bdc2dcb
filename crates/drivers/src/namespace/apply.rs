//! The child's side of a launch: from the fork to the exec of the agent.
//!
//! ```text
//!   wait for the id map ─► private mounts ─► open all that is the host's     (as who launched it)
//!     ─► become the user ─► new root: tmpfs, steps of the plan ─► limits ─► pivot
//!     ─► rlimits, capabilities, no_new_privs ─► descriptors ─► exec          (as the user)
//! ```
//!
//! The host's directories are opened before the user is switched, since for root they may be
//! where the sandbox's user cannot go (`/root`, mode 0700); everything afterwards is by descriptor.
//! Whatever is mounted *into* may be a directory that an earlier run of the sandbox could write to, so mount
//! points are found without following any symlink.

use super::plan::{Access, EMPTY, MASKS, MountPlan, PID_MAX, Step};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, major, minor, mkdirat, openat, symlinkat};
use rustix::io::Errno;
use sandbox_core::launch::{LaunchSpec, Mode as LaunchMode, Network};
use sandbox_protocol::{ARGV0, CONFIG_FD, CONTROL_FD};
use sandbox_sys::caps;
use sandbox_sys::landlock::{Rights, Ruleset};
use sandbox_sys::mount::{self, Attributes, Filesystem, Overlay};
use sandbox_sys::namespace::{self, Namespaces, resource};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// What the child writes to its parent, one JSON line each; the last one is a failure or nothing.
#[derive(Debug, Serialize, Deserialize)]
pub enum Line {
    /// Something was left out; the start goes on.
    Note(String),
    /// The start ended here.
    Failed(Report),
}

/// Why a start ended.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// What was being done, with its object, to follow "cannot".
    pub step: String,
    /// The tree, if it was the mount of its overlay.
    pub tree: Option<PathBuf>,
    /// What did not exist, if that was it.
    pub vanished: Option<PathBuf>,
    /// The error's number, if it had one.
    pub errno: Option<i32>,
    /// The error in words, the kernel's own where it gave some.
    pub said: String,
}

impl Report {
    fn new(step: impl Into<String>, error: &io::Error) -> Self {
        let errno = mount::errno(error);
        Self { step: step.into(), tree: None, vanished: None, errno, said: error.to_string() }
    }
}

/// Names the step that an error happened in.
trait During<T> {
    fn during(self, step: impl FnOnce() -> String) -> Result<T, Report>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, step: impl FnOnce() -> String) -> Result<T, Report> {
        self.map_err(|error| Report::new(step(), &error.into()))
    }
}

/// What the child has from its parent.
pub struct Child<'a> {
    /// What was asked.
    pub spec: &'a LaunchSpec,
    /// What follows from it.
    pub plan: &'a MountPlan,
    /// The real root launches it: it must become the sandbox's user.
    pub switch_user: bool,
    /// One byte comes when the id map is written; the end of the file means that the parent has died.
    pub go: OwnedFd,
    /// Where [`Line`]s go; closed by the exec.
    pub report: OwnedFd,
    /// The agent's end of the control channel.
    pub control: OwnedFd,
    /// The agent's parameters.
    pub config: OwnedFd,
    /// Lower the priority, since no cgroup does it.
    pub nice: bool,
    /// The Landlock ABI to use, if the kernel has a usable one.
    pub landlock: Option<u32>,
}

impl Child<'_> {
    /// Does all of it. Comes back only by ending the process.
    pub fn run(self) -> ! {
        let report = match self.start() {
            Ok(never) => match never {},
            Err(report) => report,
        };
        self.tell(&Line::Failed(report));
        namespace::exit_now(1)
    }

    fn tell(&self, line: &Line) {
        if let Ok(mut text) = serde_json::to_vec(line) {
            text.push(b'\n');
            // A parent that is gone needs no report.
            let _ = rustix::io::write(&self.report, &text);
        }
    }

    fn start(&self) -> Result<Infallible, Report> {
        let mut go = [0u8; 1];
        if rustix::io::retry_on_intr(|| rustix::io::read(&self.go, &mut go)).unwrap_or(0) == 0 {
            namespace::exit_now(1);
        }
        let umask = rustix::process::umask(Mode::empty());
        mount::make_all_private().during(|| "make the mounts private".to_owned())?;
        // The kernel's out-of-memory killer shall prefer what runs inside; before the user changes,
        // since the file then belongs to someone else.
        write_file(CWD, "/proc/self/oom_score_adj", "500").during(|| "set oom_score_adj".to_owned())?;
        if self.nice {
            namespace::nice(10).during(|| "lower the priority".to_owned())?;
        }
        let mut sources = Vec::with_capacity(self.plan.steps.len());
        for step in &self.plan.steps {
            sources.push(self.unless_missing(step, open_sources(step))?);
        }
        if self.switch_user {
            let user = &self.spec.user;
            let (uid, gid) = if user.root { (0, 0) } else { (user.uid, user.gid) };
            namespace::switch_user(uid, gid).during(|| format!("become uid {}", user.uid))?;
        }
        // After the last change of the user, which clears it.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
            .during(|| "ask for a signal when the supervisor ends".to_owned())?;
        namespace::unshare(Namespaces::CGROUP).during(|| "create a cgroup namespace".to_owned())?;
        self.build(&sources)?;
        drop(sources);
        self.leave(umask)
    }

    /// Builds the new root and makes it the root directory.
    fn build(&self, sources: &[Option<Sources>]) -> Result<(), Report> {
        let tmpfs = Step::Tmpfs {
            at: "/".into(),
            size: 16 << 20,
            inodes: 16384,
            mode: 0o755,
            access: Access { read_only: false, no_exec: false },
        };
        let root = memory(&tmpfs).during(|| "create the new root directory".to_owned())?;
        let old = openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .during(|| "open the root directory".to_owned())?;
        mount::attach(&root, &old).during(|| "attach the new root directory".to_owned())?;
        let mut tree = Tree { root, proc: None, last: RefCell::new(None) };
        for (step, sources) in self.plan.steps.iter().zip(sources) {
            if let Some(sources) = sources {
                self.unless_missing(step, tree.step(step, sources))?;
            }
        }
        rustix::system::sethostname(self.spec.hostname.as_bytes()).during(|| "set the host name".to_owned())?;
        if self.spec.network == Network::None {
            namespace::loopback_up().during(|| "switch the loopback device on".to_owned())?;
        }
        for note in tree.finish()? {
            self.tell(&Line::Note(note));
        }
        mount::pivot_to(&tree.root).during(|| "pivot to the new root directory".to_owned())?;
        // Outside of the root it would begin with "(unreachable)" (CVE-2024-21626).
        let cwd = rustix::process::getcwd(Vec::new()).during(|| "read the working directory".to_owned())?;
        if cwd.as_bytes() != b"/" {
            return Err(Report::new("leave the old root directory", &io::Error::other("it is still the working one")));
        }
        Ok(())
    }

    /// Toolchains and links may be missing: the host's can vanish or be closed to us, and in the private home
    /// an earlier run can have put something else in their place. That is the sandbox's own loss.
    fn may_be_missing(&self, step: &Step, report: &Report) -> bool {
        let at = step.at();
        let optional = match step {
            Step::Bind { .. } => self.spec.toolchains.iter().any(|toolchain| toolchain.at == at),
            Step::Symlink { .. } => self.spec.links.iter().any(|link| link.0 == at),
            _ => false,
        };
        let reasons = [
            Errno::LOOP,
            Errno::NOTDIR,
            Errno::EXIST,
            Errno::ISDIR,
            Errno::NOENT,
            Errno::ROFS,
            Errno::ACCESS,
            Errno::PERM,
        ];
        optional && report.errno.is_some_and(|errno| reasons.contains(&Errno::from_raw_os_error(errno)))
    }

    /// Passes a result on, but for a step that may be missing only a note to the parent.
    fn unless_missing<T>(&self, step: &Step, result: Result<T, Report>) -> Result<Option<T>, Report> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(report) if self.may_be_missing(step, &report) => {
                self.tell(&Line::Note(format!("'{}' is not there: {}", step.at().display(), report.said)));
                Ok(None)
            }
            Err(report) => Err(report),
        }
    }

    /// Limits, capabilities, descriptors, exec.
    fn leave(&self, umask: Mode) -> Result<Infallible, Report> {
        for (number, soft, hard) in self.rlimits() {
            namespace::limit(number, soft, hard).during(|| format!("set resource limit {number}"))?;
        }
        caps::no_new_privs().during(|| "set no_new_privs".to_owned())?;
        caps::keep_only_ambient(caps::SYS_PTRACE).during(|| "drop capabilities".to_owned())?;
        if let Some(abi) = self.landlock {
            self.second_wall(abi)?;
        }
        let null = openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .during(|| "open '/dev/null' inside".to_owned())?;
        let null = null.as_fd();
        let placed =
            [(null, 0), (null, 1), (null, 2), (self.control.as_fd(), CONTROL_FD), (self.config.as_fd(), CONFIG_FD)];
        namespace::place_descriptors(&placed, CONFIG_FD + 1).during(|| "place the descriptors".to_owned())?;
        rustix::process::umask(umask);
        let program = CString::new(format!("{}/bin/git-sandbox", sandbox_core::launch::INSIDE)).unwrap_or_default();
        let argv = [CString::new(ARGV0).unwrap_or_default()];
        let error = sandbox_sys::fork::exec(&program, &argv, &[]);
        Err(Report::new(format!("execute '{}' inside", self.spec.program.display()), &error))
    }

    /// Says once more, to another part of the kernel, what can be written: a mount that was forgotten
    /// or a page that can be had by a hole in one is still shut.
    fn second_wall(&self, abi: u32) -> Result<(), Report> {
        let rules = Ruleset::new(abi).during(|| "make Landlock rules".to_owned())?;
        let spec = self.spec;
        let fixed = [("/", Rights::Read), ("/proc", Rights::ReadWriteFiles), ("/dev", Rights::Devices)];
        let own = ["/run", "/tmp", "/var/tmp", "/dev/shm"].map(Path::new);
        let trees = spec.trees.iter().filter(|tree| !tree.read_only && spec.mode == LaunchMode::Work);
        let writable = own.into_iter().chain([spec.home.at.as_path()]).chain(trees.map(|tree| tree.at.as_path()));
        let fixed = fixed.into_iter().map(|(path, rights)| (Path::new(path), rights));
        for (path, rights) in fixed.chain(writable.map(|path| (path, Rights::All))) {
            let opened = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(io::Error::from);
            opened
                .and_then(|opened| rules.allow(opened, rights))
                .during(|| format!("make the Landlock rule of '{}'", path.display()))?;
        }
        rules.enforce().during(|| "enforce Landlock".to_owned())
    }

    fn rlimits(&self) -> Vec<(u32, Option<u64>, Option<u64>)> {
        let both = |number, value| (number, Some(value), Some(value));
        let mut limits = vec![
            both(resource::CORE, 0),
            both(resource::NOFILE, 65536),
            both(resource::MEMLOCK, 8 << 20),
            both(resource::MSGQUEUE, 819_200),
            both(resource::RTPRIO, 0),
            both(resource::NICE, 0),
            (resource::STACK, Some(8 << 20), None),
        ];
        limits.extend(self.spec.limits.disk.map(|bytes| both(resource::FSIZE, bytes)));
        // Set inside, it counts only what is inside (Linux 5.14).
        limits.extend(self.spec.limits.pids.map(|pids| both(resource::NPROC, u64::from(pids))));
        limits
    }
}

/// The host's half of a step, opened before the user is switched.
struct Sources {
    tree: Option<OwnedFd>,
    lowers: Vec<OwnedFd>,
    writable: Option<(OwnedFd, OwnedFd)>,
}

fn open_sources(step: &Step) -> Result<Sources, Report> {
    let mut sources = Sources { tree: None, lowers: Vec::new(), writable: None };
    match step {
        Step::Bind { source, access, .. } => {
            let tree = mount::clone_tree(source).map_err(|error| gone(source, "show", &error))?;
            mount::set_attributes(&tree, attributes(*access), true)
                .during(|| format!("protect '{}'", source.display()))?;
            sources.tree = Some(tree);
        }
        Step::Device { name, number } => sources.tree = Some(device(name, *number, false)?),
        Step::Overlay { lowers, writable, .. } => {
            for lower in lowers {
                sources.lowers.push(open_layer(lower)?);
            }
            if let Some((upper, work)) = writable {
                sources.writable = Some((open_layer(upper)?, open_layer(work)?));
            }
        }
        _ => {}
    }
    Ok(sources)
}

fn open_layer(path: &Path) -> Result<OwnedFd, Report> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).map_err(|error| gone(path, "open", &error.into()))
}

fn gone(path: &Path, verb: &str, error: &io::Error) -> Report {
    let mut report = Report::new(format!("{verb} '{}'", path.display()), error);
    if error.kind() == io::ErrorKind::NotFound {
        report.vanished = Some(path.to_owned());
    }
    report
}

/// A detached mount of one device node, which must be the device that its name promises: the host's
/// `/dev` may itself have been arranged by someone (CVE-2025-31133).
fn device(name: &str, number: (u32, u32), read_only: bool) -> Result<OwnedFd, Report> {
    let path = Path::new("/dev").join(name);
    let step = || format!("show '{}'", path.display());
    let tree = mount::clone_tree(&path).during(step)?;
    let facts = fstat(&tree).during(step)?;
    let found = (major(facts.st_rdev), minor(facts.st_rdev));
    if FileType::from_raw_mode(facts.st_mode) != FileType::CharacterDevice || found != number {
        return Err(Report::new(step(), &io::Error::other(format!("it is not device {}:{}", number.0, number.1))));
    }
    let attributes = Attributes { no_suid: true, no_exec: true, no_dev: false, read_only };
    mount::set_attributes(&tree, attributes, false).during(step)?;
    Ok(tree)
}

fn attributes(access: Access) -> Attributes {
    Attributes { read_only: access.read_only, no_suid: true, no_dev: true, no_exec: access.no_exec }
}

fn memory(step: &Step) -> io::Result<OwnedFd> {
    let Step::Tmpfs { size, inodes, mode, access, .. } = step else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let tmpfs = Filesystem::new("tmpfs")?;
    tmpfs.set("size", &size.to_string())?;
    tmpfs.set("nr_inodes", &inodes.to_string())?;
    tmpfs.set("mode", &format!("{mode:o}"))?;
    tmpfs.mount(attributes(*access))
}

/// The tree that is being built.
struct Tree {
    root: OwnedFd,
    proc: Option<Proc>,
    /// The last directory that something was made in; forgotten when something is mounted over it.
    last: RefCell<Option<(PathBuf, Rc<OwnedFd>)>>,
}

struct Proc {
    mount: OwnedFd,
    /// A read-only copy of its `sys`, made while mount namespaces may still be made.
    read_only_sys: OwnedFd,
    sysctls: Vec<(&'static str, u64)>,
}

impl Tree {
    fn step(&mut self, step: &Step, sources: &Sources) -> Result<(), Report> {
        match step {
            Step::Tmpfs { at, .. } => {
                let mount = memory(step).during(|| format!("create '{}'", at.display()))?;
                self.attach(&mount, at, true)?;
            }
            Step::Bind { at, directory, .. } => {
                if let Some(tree) = &sources.tree {
                    self.attach(tree, at, *directory)?;
                }
            }
            Step::Device { name, .. } => {
                if let Some(tree) = &sources.tree {
                    self.attach(tree, &Path::new("/dev").join(name), false)?;
                }
            }
            Step::Directory { at } => {
                self.directory(at).during(|| format!("make '{}'", at.display()))?;
            }
            Step::Symlink { at, target } => {
                self.symlink(at, target).during(|| format!("link '{}'", at.display()))?;
            }
            Step::File { at, mode, contents } => {
                self.file(at, *mode, contents).during(|| format!("write '{}'", at.display()))?;
            }
            Step::Terminals { max } => {
                let mount = terminals(*max).during(|| "create '/dev/pts'".to_owned())?;
                self.attach(&mount, Path::new("/dev/pts"), true)?;
            }
            Step::Proc { sysctls } => self.proc(sysctls)?,
            Step::Overlay { at, .. } => {
                let target = self.mount_point(at, true)?;
                self.last.borrow_mut().take_if(|(path, _)| path.starts_with(at));
                let overlay = Overlay {
                    lowers: &sources.lowers,
                    writable: sources.writable.as_ref().map(|(upper, work)| (upper, work)),
                    attributes: Attributes { read_only: sources.writable.is_none(), ..attributes(Access::OWN) },
                };
                overlay.mount_on(&target).map_err(|error| {
                    let report = Report::new(format!("mount the overlay of '{}'", at.display()), &error);
                    Report { tree: Some(at.clone()), ..report }
                })?;
            }
        }
        Ok(())
    }

    fn attach(&self, mount: &OwnedFd, at: &Path, directory: bool) -> Result<(), Report> {
        let target = self.mount_point(at, directory)?;
        self.last.borrow_mut().take_if(|(path, _)| path.starts_with(at));
        mount::attach(mount, &target).during(|| format!("mount '{}'", at.display()))
    }

    fn mount_point(&self, at: &Path, directory: bool) -> Result<OwnedFd, Report> {
        let result = if directory { self.directory(at) } else { self.empty_file(at) };
        result.during(|| format!("make the mount point '{}'", at.display()))
    }

    /// Opens a directory of the new tree, making it and its parents as needed.
    fn directory(&self, at: &Path) -> io::Result<OwnedFd> {
        match mount::open_below(&self.root, at) {
            Ok(found) => return Ok(found),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let (parent, name) = self.parent(at)?;
        match mkdirat(&*parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(openat(&*parent, name, flags, Mode::empty())?)
    }

    fn empty_file(&self, at: &Path) -> io::Result<OwnedFd> {
        let (parent, name) = self.parent(at)?;
        let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(openat(&*parent, name, flags, Mode::from_raw_mode(0o644))?)
    }

    /// The directory that `at` is an entry of. The last one is remembered: the steps of `/etc` or `/dev`
    /// come in a row.
    fn parent<'p>(&self, at: &'p Path) -> io::Result<(Rc<OwnedFd>, &'p std::ffi::OsStr)> {
        let (Some(parent), Some(name)) = (at.parent(), at.file_name()) else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        if let Some((path, fd)) = &*self.last.borrow()
            && path == parent
        {
            return Ok((Rc::clone(fd), name));
        }
        let fd = Rc::new(self.directory(parent)?);
        *self.last.borrow_mut() = Some((parent.to_owned(), Rc::clone(&fd)));
        Ok((fd, name))
    }

    fn symlink(&self, at: &Path, target: &Path) -> io::Result<()> {
        let (parent, name) = self.parent(at)?;
        match symlinkat(target, &*parent, name) {
            Err(Errno::EXIST) => match rustix::fs::readlinkat(&*parent, name, Vec::new()) {
                Ok(found) if found.as_bytes() == target.as_os_str().as_bytes() => Ok(()),
                _ => Err(Errno::EXIST.into()),
            },
            other => Ok(other?),
        }
    }

    fn file(&self, at: &Path, mode: u32, contents: &[u8]) -> io::Result<()> {
        let (parent, name) = self.parent(at)?;
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&*parent, name, flags, Mode::from_raw_mode(mode & 0o777))?;
        let mut rest = contents;
        while !rest.is_empty() {
            rest = &rest[rustix::io::write(&fd, rest)?..];
        }
        Ok(())
    }

    /// Mounts `/proc` and covers what shows the whole machine.
    fn proc(&mut self, sysctls: &[(&'static str, u64)]) -> Result<(), Report> {
        let hidden = Attributes { no_suid: true, no_dev: true, no_exec: true, read_only: false };
        let mount =
            Filesystem::new("proc").and_then(|proc| proc.mount(hidden)).during(|| "mount '/proc'".to_owned())?;
        self.attach(&mount, Path::new("/proc"), true)?;
        let read_only = Attributes { read_only: true, ..hidden };
        for (path, kind) in MASKS {
            let step = || format!("mask '{path}'");
            let name = path.trim_start_matches("/proc/");
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let target = match openat(&mount, name, flags, Mode::empty()) {
                Ok(target) => target,
                Err(Errno::NOENT) => continue,
                other => other.during(step)?,
            };
            let cover = if *kind == "directory" {
                let empty = EMPTY.trim_start_matches('/');
                let cover = mount::clone_at(&self.root, Path::new(empty), false).during(step)?;
                mount::set_attributes(&cover, read_only, false).during(step)?;
                cover
            } else {
                device("null", (1, 3), true)?
            };
            mount::attach(&cover, &target).during(step)?;
        }
        let step = || "make '/proc/sys' read-only".to_owned();
        let read_only_sys = mount::clone_at(&mount, Path::new("sys"), false).during(step)?;
        mount::set_attributes(&read_only_sys, read_only, false).during(step)?;
        self.proc = Some(Proc { mount, read_only_sys, sysctls: sysctls.to_vec() });
        Ok(())
    }

    /// Writes the limits and makes read-only what must be. Afterwards no mount can be made any more: the
    /// limit of mount namespaces counts detached mounts too. Returns what could not be had.
    fn finish(&mut self) -> Result<Vec<String>, Report> {
        let mut notes = Vec::new();
        let read_only = Attributes { read_only: true, no_suid: true, no_dev: true, no_exec: false };
        mount::set_attributes(&self.root, read_only, false).during(|| "make '/' read-only".to_owned())?;
        if let Some(proc) = &self.proc {
            for (name, value) in &proc.sysctls {
                match write_file(proc.mount.as_fd(), &format!("sys/{name}"), &value.to_string()) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    // Numbers above the limit are in use by none: only the fall-back limit holds.
                    Err(_) if *name == PID_MAX => {}
                    Err(error) => notes.push(format!("limit '{name}' is not enforced: {error}")),
                }
            }
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let step = || "make '/proc/sys' read-only".to_owned();
            let target = openat(&proc.mount, "sys", flags, Mode::empty()).during(step)?;
            mount::attach(&proc.read_only_sys, &target).during(step)?;
        }
        Ok(notes)
    }
}

fn terminals(max: u32) -> io::Result<OwnedFd> {
    let devpts = Filesystem::new("devpts")?;
    devpts.set("mode", "620")?;
    devpts.set("ptmxmode", "0666")?;
    devpts.set("max", &max.to_string())?;
    devpts.mount(Attributes { no_suid: true, no_exec: true, no_dev: false, read_only: false })
}

fn write_file(dir: BorrowedFd<'_>, path: &str, text: &str) -> io::Result<()> {
    let fd = openat(dir, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&fd, text.as_bytes())?;
    Ok(())
}
