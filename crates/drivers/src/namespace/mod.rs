//! The namespace driver: user, mount, pid, ipc, uts, net and cgroup namespaces on the host's kernel.
//!
//! ```text
//!   supervisor (one thread)                     child = PID 1
//!   ───────────────────────                     ─────────────
//!   plan (a value), checks
//!   clone3 ───────────────────────────────────► waits
//!   id map, cgroup, "go" ─────────────────────► mounts, user, limits, pivot, capabilities   (apply)
//!   reads reports until the pipe closes ◄────── exec of our own binary as agent
//!   waits for the agent's first word ◄───────── filter, nursery, Hello                      (agent crate)
//!   Machine
//! ```
//!
//! | module | |
//! |---|---|
//! | `plan` | the mount tree as a value, readable as text |
//! | `view` | what of the host's system is shown |
//! | `apply` | the child: has the plan applied, gives up what it has, becomes the agent |
//! | `tree` | the new root while it is being built |
//! | `machine` | a running sandbox |
//! | `wall` | which system calls are refused |
//! | `cgroup` | limits, where the user may set them |
//! | `check` | what this machine can do |
//! | `upper` | whether an overlay can be written to at a place |

mod apply;
pub mod cgroup;
pub mod check;
mod machine;
pub mod plan;
mod tree;
mod upper;
pub mod view;
pub mod wall;

use apply::{Child, Line, Report};
use cgroup::Cgroup;
pub(crate) use machine::end;
use machine::{NamespaceMachine, Starting};
use plan::{Kernel, MountPlan};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use sandbox_core::driver::{Check, Driver, DriverError, Isolation, Machine, ProcessIdentity};
use sandbox_core::launch::{
    LaunchSpec, MIRROR_PORT, Mode, NESTED_COST, Network, PROXY_PORT, Tree, TreeView, VmSettings,
};
use sandbox_protocol::{AgentConfig, AgentTree, AgentUser, Decoder, FilterBytes, Message};
use sandbox_sys::namespace::{self, Forked, Namespaces};
use sandbox_sys::socket::{message_pair, receive};
use sandbox_sys::{landlock, process};
use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use view::Host;

/// The driver's name.
pub const NAME: &str = "namespace";

/// How long the agent may take to say its first word. It needs a few milliseconds; a machine that swaps, more.
const READY: Duration = Duration::from_secs(20);

/// The driver.
#[derive(Debug)]
pub struct Namespace;

impl Driver for Namespace {
    fn name(&self) -> &'static str {
        NAME
    }

    fn isolation(&self) -> Isolation {
        Isolation::Namespace
    }

    fn check(&self, _settings: &VmSettings) -> Vec<Check> {
        check::all()
    }

    fn reaches_mirror(&self) -> bool {
        true
    }

    fn lacks(&self) -> Vec<&'static str> {
        let landlock = (sandbox_sys::landlock::abi() < sandbox_sys::landlock::FIRST_USABLE).then_some("no landlock");
        landlock.into_iter().chain(check::own_cgroup().is_none().then_some("no cgroup")).collect()
    }

    fn refuses_overlay(
        &self,
        place: &Path,
        scratch: &mut dyn FnMut() -> io::Result<PathBuf>,
        uid: u32,
        gid: u32,
    ) -> io::Result<Option<String>> {
        upper::refused(place, scratch, uid, gid)
    }

    fn plan(&self, spec: &LaunchSpec) -> Result<String, DriverError> {
        Ok(plan::plan(&effective(spec), &Host::default(), kernel())?.to_string())
    }

    fn launch(&self, spec: &LaunchSpec) -> Result<Box<dyn Machine>, DriverError> {
        let spec = effective(spec);
        check_user(&spec)?;
        let plan = plan::plan(&spec, &Host::default(), kernel())?;
        Ok(Box::new(launch(&spec, &plan)?))
    }
}

/// The spec as it is carried out: a helper never has a network, and nests nothing.
pub(crate) fn effective(spec: &LaunchSpec) -> LaunchSpec {
    let mut spec = spec.clone();
    if spec.mode == Mode::Helper {
        spec.network = Network::None;
        spec.nested = false;
        spec.mirror = false;
    }
    spec
}

/// What of the running kernel changes a plan.
fn kernel() -> Kernel {
    Kernel { own_pid_max: check::version() >= (6, 14) }
}

fn during(step: &str) -> impl FnOnce(io::Error) -> DriverError {
    let step = step.to_owned();
    move |source| DriverError::Step { step, source }
}

/// An ordinary user can be nobody else.
fn check_user(spec: &LaunchSpec) -> Result<(), DriverError> {
    let now = rustix::process::geteuid();
    if now.is_root() || now.as_raw() == spec.user.uid {
        return Ok(());
    }
    let what = format!("run as uid {} when uid {} starts it", spec.user.uid, now.as_raw());
    Err(DriverError::Unsupported { driver: NAME, what })
}

/// Starts what `plan` says, which was made of `spec` here or, for a guest, on its host.
pub(crate) fn launch(spec: &LaunchSpec, plan: &MountPlan) -> Result<NamespaceMachine, DriverError> {
    let switch_user = rustix::process::geteuid().is_root();
    check::layers(spec)?;
    let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let created = Cgroup::create(Path::new("/sys/fs/cgroup"), &membership, &spec.id, &spec.limits);
    let mut machine = Starting { cgroup: created.cgroup, child: None };
    let mut notes = plan.notes.clone();
    let nice = spec.limits.cpu_percent.is_some() && !created.enforced.contains(&"cpu");
    // Without a cgroup, the limit of processes is the pid namespace's and the user namespace's own.
    notes.extend(created.notes.into_iter().filter(|note| !note.starts_with("process ")));

    // A process in a Landlock domain cannot mount anything.
    let landlock = Some(landlock::abi()).filter(|abi| !spec.nested && *abi >= landlock::FIRST_USABLE);
    if spec.nested {
        notes.push(NESTED_COST.to_owned());
    } else if landlock.is_none() {
        notes.push("Landlock not enforced: this kernel has none that allows renames".to_owned());
    }
    required(spec, "landlock", landlock.is_some())?;
    required(spec, "limits", created.enforced.len() >= wanted(&spec.limits))?;
    let (config, weak) = agent_config(spec, &created.enforced, landlock)?;
    notes.extend(weak);
    let config = sealed(&config).map_err(during("hand the agent its parameters"))?;
    let pair = SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, pair, None)
        .map_err(|error| during("create the control channel")(error.into()))?;
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|error| during("create a pipe")(error.into()));
    let ((go_read, go_write), (report_read, report_write)) = (pipe()?, pipe()?);

    let mut namespaces = Namespaces::USER.and(Namespaces::MOUNT).and(Namespaces::PID);
    namespaces = namespaces.and(Namespaces::IPC).and(Namespaces::UTS);
    if spec.network != Network::Host {
        namespaces = namespaces.and(Namespaces::NET);
    }
    let ports = listeners(spec);
    let egress = match ports.is_empty() {
        false => Some(message_pair().map_err(during("create a socket pair"))?),
        true => None,
    };
    let (egress_ours, egress_theirs) = egress.unzip();
    // Supplementary groups are inherited and cannot be dropped inside, where setgroups is denied.
    let groups = if switch_user { Some(namespace::groups().map_err(during("read the groups"))?) } else { None };
    if groups.is_some() {
        namespace::set_groups(&[]).map_err(during("drop the supplementary groups"))?;
    }
    let entrances = machine.cgroup.entrances().map_err(during("open the sandbox's cgroup"))?;
    let forked = namespace::fork_into(namespaces, machine.cgroup.for_clone());
    if let Ok(Forked::Child) = forked {
        drop((ours, go_write, report_read, egress_ours));
        let (go, report) = (go_read, report_write);
        let (control, egress) = (theirs, egress_theirs);
        Child { spec, plan, switch_user, go, report, control, config, egress, entrances, nice, landlock }.run();
    }
    if let Some(groups) = &groups {
        namespace::set_groups(groups).map_err(during("restore the supplementary groups"))?;
    }
    drop((theirs, config, go_read, report_write, egress_theirs, entrances));
    let pid = match forked {
        Ok(Forked::Parent { pid, pidfd }) => {
            machine.child = Some(pidfd);
            pid
        }
        Ok(Forked::Child) => unreachable!("the child does not come back"),
        Err(source) => return Err(user_namespace(source)),
    };

    let user = &spec.user;
    let inside = if user.root { (0, 0) } else { (user.uid, user.gid) };
    namespace::write_id_map(pid, inside, (user.uid, user.gid)).map_err(during("write the id map"))?;
    rustix::io::write(&go_write, b"g").map_err(|error| during("start the first process")(error.into()))?;

    for line in reports(report_read)? {
        match line {
            Line::Note(note) => notes.push(note),
            Line::Failed(report) => return Err(failed(spec, report)),
        }
    }
    let identity = ProcessIdentity {
        pid,
        start_time: process::start_time(pid).map_err(during("read the first process's start time"))?,
        boot_id: process::boot_id().map_err(during("read the boot id"))?,
    };
    // What cannot be opened only makes the end slower.
    let mounts = fs::File::open(format!("/proc/{pid}/ns/mnt")).ok().map(OwnedFd::from);
    wait_until_ready(&ours, &mut machine)?;
    let handed = egress_ours.map(listening).transpose().map_err(during("take over the sockets of the way out"))?;
    let mut handed: Vec<(u16, OwnedFd)> = ports.into_iter().zip(handed.into_iter().flatten()).collect();
    let mut taken = |port: u16| {
        let at = handed.iter().position(|(known, _)| *known == port)?;
        Some(handed.swap_remove(at).1)
    };
    let egress = (taken(PROXY_PORT), taken(MIRROR_PORT));
    let limits_memory = created.enforced.contains(&"memory");
    machine.finish(UnixStream::from(ours), identity, notes, egress, mounts, limits_memory)
}

/// Ports on the sandbox's loopback whose listeners are handed out.
pub(crate) fn listeners(spec: &LaunchSpec) -> Vec<u16> {
    let proxy = (spec.network == Network::Allow).then_some(PROXY_PORT);
    // With the host's network the loopback device is the host's.
    let mirror = (spec.mirror && spec.network != Network::Host).then_some(MIRROR_PORT);
    proxy.into_iter().chain(mirror).collect()
}

/// The listening sockets that the child has made inside its network namespace, in the order of [`listeners`].
fn listening(egress: OwnedFd) -> io::Result<Vec<OwnedFd>> {
    let (_, fds) = receive(&egress, &mut [0u8; 1], false)?;
    if fds.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(fds) }
}

/// Refuses to go on without a layer that would only be told of, where it was required.
fn required(spec: &LaunchSpec, layer: &'static str, stands: bool) -> Result<(), DriverError> {
    let names = |list: &[String]| list.iter().any(|name| name == layer);
    if stands || spec.mode == Mode::Helper || !names(&spec.require) || names(&spec.allow_weak) {
        return Ok(());
    }
    let why = match layer {
        "landlock" if spec.nested => "a nested sandbox has none",
        "landlock" => "this kernel has none that allows renames",
        "limits" => "no cgroup can be made here for each limit",
        _ => "kernel.yama.ptrace_scope is 3",
    };
    Err(DriverError::Weak { layer, source: io::Error::new(io::ErrorKind::Unsupported, why) })
}

/// How many limits were asked for that a cgroup can have.
fn wanted(limits: &sandbox_core::launch::Limits) -> usize {
    [limits.memory.is_some(), limits.pids.is_some(), limits.cpu_percent.is_some()].iter().filter(|is| **is).count()
}

/// What the agent is told, and what is weak.
fn agent_config(
    spec: &LaunchSpec,
    limits: &[&'static str],
    landlock: Option<u32>,
) -> Result<(AgentConfig, Vec<String>), DriverError> {
    let user = &spec.user;
    let (uid, gid) = if user.root { (0, 0) } else { (user.uid, user.gid) };
    let mut notes = Vec::new();
    // Where the tree is what it looks like, the kernel renames it itself.
    let overlay = |tree: &Tree| !tree.read_only && spec.mode == Mode::Work && tree.view == TreeView::Overlay;
    let writable = spec.trees.iter().any(overlay);
    // At 3 not even CAP_SYS_PTRACE may read a path out of another process.
    let yama = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").is_ok_and(|scope| scope.trim() == "3");
    required(spec, "directory-renames", !(writable && yama))?;
    if writable && yama {
        notes.push("directories of the snapshot cannot be renamed: kernel.yama.ptrace_scope is 3".to_owned());
    }
    let rename_notify = writable && !yama;
    let (base, session) =
        wall::programs(rename_notify, spec.nested).map_err(during("compile the system call filter"))?;
    let mut enforced: Vec<String> = ["user-namespace", "mount-namespace", "pid-namespace", "ipc-namespace"]
        .into_iter()
        .chain((spec.network != Network::Host).then_some("net-namespace"))
        .chain(["no-new-privs"])
        // Where namespaces may be made, so may another view of it.
        .chain((!spec.nested).then_some("read-only-proc-sys"))
        .map(str::to_owned)
        .collect();
    enforced.extend(landlock.map(|abi| format!("landlock-abi-{}", landlock::effective(abi))));
    enforced.extend(limits.iter().map(|controller| format!("cgroup-{controller}")));
    let config = AgentConfig {
        id: spec.id.clone(),
        name: spec.name.clone(),
        helper: spec.mode == Mode::Helper,
        env: spec.env.clone(),
        cwd: spec.trees.first().map_or(&spec.home.at, |tree| &tree.at).clone(),
        user: AgentUser { name: user.name.clone(), uid, gid, home: spec.home.at.clone(), shell: user.shell.clone() },
        trees: spec
            .trees
            .iter()
            .map(|tree| AgentTree {
                at: tree.at.clone(),
                read_only: tree.read_only || spec.mode == Mode::Helper,
                rename_exdev: overlay(tree),
            })
            .collect(),
        base_filter: FilterBytes(base),
        session_filter: FilterBytes(session),
        rename_notify,
        relay: true,
        enforced,
        // The agent calls its part of it by what it does.
        allow_weak: spec
            .allow_weak
            .iter()
            .map(|layer| if layer == "directory-renames" { "rename-notify".to_owned() } else { layer.clone() })
            .collect(),
    };
    Ok((config, notes))
}

/// A memory file with the parameters, which nobody can change any more.
fn sealed(config: &AgentConfig) -> io::Result<OwnedFd> {
    let text = serde_json::to_vec(config)?;
    let fd = rustix::fs::memfd_create("agent", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut offset = 0;
    while offset < text.len() {
        offset += rustix::io::pwrite(&fd, &text[offset..], offset as u64)?;
    }
    rustix::fs::fcntl_add_seals(&fd, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(fd)
}

fn user_namespace(source: io::Error) -> DriverError {
    match source.raw_os_error() {
        // EUSERS: nested too deep; EINVAL: this kernel has no user namespaces.
        Some(libc_errno::EPERM | libc_errno::ENOSPC | libc_errno::EUSERS | libc_errno::EINVAL) => {
            DriverError::UserNamespace { apparmor: check::apparmor_restricts(), source }
        }
        _ => DriverError::Step { step: "start the first process".to_owned(), source },
    }
}

/// The few numbers that are told apart here.
mod libc_errno {
    pub const EPERM: i32 = 1;
    pub const EACCES: i32 = 13;
    pub const EINVAL: i32 = 22;
    pub const ENOSPC: i32 = 28;
    pub const EUSERS: i32 = 87;
}

/// Reads what the child says until it executes the agent, or ends.
fn reports(pipe: OwnedFd) -> Result<Vec<Line>, DriverError> {
    let mut text = String::new();
    fs::File::from(pipe).read_to_string(&mut text).map_err(during("read the first process's report"))?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

fn failed(spec: &LaunchSpec, report: Report) -> DriverError {
    // The kernel's own words where it gave some; else the errno alone, as everywhere.
    let bare = report.errno.map(io::Error::from_raw_os_error);
    let source = match bare {
        Some(bare) if bare.to_string() == report.said => bare,
        Some(bare) => io::Error::new(bare.kind(), report.said),
        None => io::Error::other(report.said),
    };
    if let Some(path) = report.vanished {
        return DriverError::Vanished { path };
    }
    if let Some(tree) = report.tree.and_then(|at| spec.trees.iter().find(|tree| tree.at == at)) {
        let (at, upper, work) = (tree.at.clone(), tree.upper.clone(), tree.work.clone());
        return DriverError::Overlay { at, upper, work, source };
    }
    // With AppArmor's restriction the namespace is made, and then has no power at all.
    let powerless = matches!(report.errno, Some(libc_errno::EPERM | libc_errno::EACCES));
    if powerless && report.step == "make the mounts private" {
        return DriverError::UserNamespace { apparmor: check::apparmor_restricts(), source };
    }
    DriverError::Step { step: report.step, source }
}

/// Waits until the agent has sent something, which it does when its part of the wall stands.
fn wait_until_ready(control: &OwnedFd, machine: &mut Starting) -> Result<(), DriverError> {
    let deadline = Instant::now() + READY;
    let source = loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut fds = [PollFd::new(control, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => break io::ErrorKind::TimedOut.into(),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => break error.into(),
        }
        let mut first = [0u8; 4096];
        match rustix::net::recv(control, &mut first, RecvFlags::PEEK) {
            Ok((0, _)) | Err(Errno::CONNRESET) => break machine.last_words(),
            Ok((length, _)) => match complaint(&first[..length]) {
                Some(message) => break io::Error::other(message),
                None => return Ok(()),
            },
            Err(Errno::INTR) => {}
            Err(error) => break error.into(),
        }
    };
    Err(DriverError::NotReady { source })
}

/// What the agent says instead of its greeting when it cannot go on.
fn complaint(bytes: &[u8]) -> Option<String> {
    let mut decoder = Decoder::new();
    decoder.push(bytes);
    let frame = decoder.next_frame().ok()??;
    match frame.message().ok()? {
        Message::Error(failure) => Some(failure.message),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_protocol::{Failure, FailureKind, Hello, VERSIONS, encode_control};

    #[test]
    fn a_complaint_is_told_from_a_greeting() {
        let said = |message: &Message| {
            let mut bytes = Vec::new();
            encode_control(&mut bytes, 0, message);
            complaint(&bytes)
        };
        let failure = Failure { kind: FailureKind::Other, message: "the agent cannot enforce 'seccomp'".to_owned() };
        assert_eq!(said(&Message::Error(failure)).as_deref(), Some("the agent cannot enforce 'seccomp'"));
        let hello = Hello { min: VERSIONS.0, max: VERSIONS.1, features: vec![], enforced: vec![] };
        assert_eq!(said(&Message::Hello(hello)), None);
        assert_eq!(complaint(b"\x01"), None);
    }

    #[test]
    fn a_powerless_namespace_is_no_namespace() {
        let report = |step: &str| Report {
            step: step.to_owned(),
            tree: None,
            vanished: None,
            errno: Some(libc_errno::EACCES),
            said: "no".to_owned(),
        };
        let spec = plan::tests::spec();
        assert!(matches!(failed(&spec, report("make the mounts private")), DriverError::UserNamespace { .. }));
        assert_eq!(failed(&spec, report("open '/x'")).to_string(), "cannot open '/x'");
    }
}
