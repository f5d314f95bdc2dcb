//! The child's side of a launch: from the fork to the exec of the agent.
//!
//! ```text
//!   cgroups ─► wait for the id map ─► private mounts ─► open all that is the host's     (as who launched it)
//!     ─► become the user ─► new root: tmpfs, steps of the plan ─► limits ─► pivot
//!     ─► rlimits, capabilities, no_new_privs ─► descriptors ─► exec          (as the user)
//! ```
//!
//! The host's directories are opened before the user is switched, since for root they may be
//! where the sandbox's user cannot go (`/root`, mode 0700); everything afterwards is by descriptor.
//! Whatever is mounted *into* may be a directory that an earlier run of the sandbox could write to, so mount
//! points are found without following any symlink.

use super::cgroup;
use super::plan::{MountPlan, Step};
use super::tree::{Sources, Tree, open_sources, write_file};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use sandbox_core::launch::{LaunchSpec, Mode as LaunchMode, Network};
use sandbox_protocol::{ARGV0, CONFIG_FD, CONTROL_FD, RELAY_FD};
use sandbox_sys::caps;
use sandbox_sys::landlock::{Rights, Ruleset};
use sandbox_sys::mount;
use sandbox_sys::namespace::{self, Namespaces, resource};
use sandbox_sys::socket;
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

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
    /// Describes an error in a step.
    pub fn new(step: impl Into<String>, error: &io::Error) -> Self {
        let errno = mount::errno(error);
        Self { step: step.into(), tree: None, vanished: None, errno, said: error.to_string() }
    }
}

/// Names the step that an error happened in.
pub trait During<T> {
    /// Describes the error, if it is one.
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
    /// Where the listening sockets that lead out go, if there are to be any ([`super::listeners`]).
    pub egress: Option<OwnedFd>,
    /// The cgroups that it must enter by itself.
    pub entrances: Vec<OwnedFd>,
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
        for entrance in &self.entrances {
            rustix::io::write(entrance, cgroup::ENTER).during(|| "enter the sandbox's cgroup".to_owned())?;
        }
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
        let relay = self.build(&sources)?;
        drop(sources);
        self.leave(umask, relay)
    }

    /// Builds the new root and makes it the root directory.
    fn build(&self, sources: &[Option<Sources>]) -> Result<Option<UnixListener>, Report> {
        let mut tree = Tree::new()?;
        for (step, sources) in self.plan.steps.iter().zip(sources) {
            if let Some(sources) = sources {
                self.unless_missing(step, tree.step(step, sources))?;
            }
        }
        rustix::system::sethostname(self.spec.hostname.as_bytes()).during(|| "set the host name".to_owned())?;
        if self.spec.network != Network::Host {
            namespace::loopback_up().during(|| "switch the loopback device on".to_owned())?;
        }
        if let Some(handed) = &self.egress {
            let listen = |port: u16| {
                TcpListener::bind((Ipv4Addr::LOCALHOST, port)).during(|| format!("listen on port {port} inside"))
            };
            let ports = super::listeners(self.spec);
            let listeners = ports.into_iter().map(listen).collect::<Result<Vec<_>, _>>()?;
            let fds: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
            socket::send(handed, b"p", &fds).during(|| "hand out the sockets of the way out".to_owned())?;
        }
        let relay = tree.listen()?;
        for note in tree.finish()? {
            self.tell(&Line::Note(note));
        }
        mount::pivot_to(&tree.root).during(|| "pivot to the new root directory".to_owned())?;
        // Outside of the root it would begin with "(unreachable)" (CVE-2024-21626).
        let cwd = rustix::process::getcwd(Vec::new()).during(|| "read the working directory".to_owned())?;
        if cwd.as_bytes() != b"/" {
            return Err(Report::new("leave the old root directory", &io::Error::other("it is still the working one")));
        }
        Ok(relay)
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
    fn leave(&self, umask: Mode, relay: Option<UnixListener>) -> Result<Infallible, Report> {
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
        let relay = relay.as_ref().map_or(null, |relay| relay.as_fd());
        let placed = [
            (null, 0),
            (null, 1),
            (null, 2),
            (self.control.as_fd(), CONTROL_FD),
            (self.config.as_fd(), CONFIG_FD),
            (relay, RELAY_FD),
        ];
        namespace::place_descriptors(&placed, RELAY_FD + 1).during(|| "place the descriptors".to_owned())?;
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
