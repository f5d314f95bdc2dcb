//! Carries out a plan: from nothing to a machine whose agent is ready.

use super::command::{Disk, fd};
use super::keeper::{self, Keeper, Leash};
use super::machine::{Processes, QemuMachine};
use super::monitor::Monitor;
use super::own::Own;
use super::{QemuPlan, program, unsupported, vm};
use crate::namespace::{effective, listeners};
use crate::vm::accel::{self, Choice};
use crate::vm::boot;
use crate::vm::console::Console;
use crate::vm::disk::{self, DiskError};
use crate::vm::kernel::GuestKernel;
use crate::vm::{initramfs, kernel};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{DumpableBehavior, PidfdFlags, pidfd_open, set_dumpable_behavior};
use sandbox_core::driver::{DriverError, ProcessIdentity};
use sandbox_core::launch::{Accel, LaunchSpec, PROXY_PORT, Vm};
use sandbox_sys::clock::tsc_khz;
use sandbox_sys::landlock::{self, Rights, Ruleset};
use sandbox_sys::namespace::{self, Forked, Namespaces};
use sandbox_sys::{caps, fork, process, socket};
use sandbox_vhost::fs::{self as vhost_fs, Cache, Share};
use sandbox_vhost::vsock;
use serde::Serialize;
use std::convert::Infallible;
use std::error::Error;
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

fn during(step: impl Into<String>) -> impl FnOnce(io::Error) -> DriverError {
    let step = step.into();
    move |source| DriverError::Step { step, source }
}

/// An error of the parts that a machine is made of.
fn part<E: Error + Send + Sync + 'static>(step: &'static str) -> impl FnOnce(E) -> DriverError {
    move |error| DriverError::Step { step: step.to_owned(), source: io::Error::other(error) }
}

/// How long the clock is measured: to one part in ten thousand.
const CLOCK: Duration = Duration::from_millis(10);

/// Starts it.
pub fn launch(spec: &LaunchSpec, plan: &QemuPlan) -> Result<QemuMachine, DriverError> {
    let vm = vm(spec)?;
    let qemu = program().ok_or_else(|| during("find QEMU")(io::ErrorKind::NotFound.into()))?;
    let cache = &vm.settings.cache;
    let kernel =
        kernel::find(vm.settings.kernel.as_deref(), cache, Path::new("/")).map_err(part("choose a guest kernel"))?;
    if plan.shape.sockets && !kernel.has_sockets() {
        let what = format!("lead out of a guest of the kernel '{}', which has no vsock", kernel.version);
        return Err(unsupported(what));
    }
    let (kvm, emulated) = accelerator(spec, vm, qemu, &kernel)?;
    let initrd_path = initramfs::ensure(&spec.program, &kernel, cache).map_err(part("make the guest's first files"))?;
    let open = |path: &Path| File::open(path).map_err(during(format!("open '{}'", path.display())));
    let (image, initrd) = (open(&kernel.image)?, open(&initrd_path)?);
    let (read, write) = disks(spec, plan).map_err(part("have a disk"))?;

    let pair = || UnixStream::pair().map_err(during("create a socket pair"));
    let ((control, guest_control), (monitor, guest_monitor), (console, guest_console)) = (pair()?, pair()?, pair()?);
    let (own, guest_own) = pair()?;
    let mut console = Console::new(console, &plan.console).map_err(during("keep the guest's console"))?;
    let mut processes = Processes { qemu: None, helpers: Vec::new() };
    let (files, helper) = file_server(spec, plan, &vm.dir)?;
    let server = pidfd_open(rustix::process::Pid::from_child(&helper), PidfdFlags::empty());
    processes.helpers.push(helper);
    let mut devices = vec![server.map_err(|error| during("watch the file server")(error.into()))?];
    let step = || during("start the device of the ways out");
    let (ways, device) = sockets(spec, &vm.dir).map_err(step())?;
    let way = device.map(|(way, helper)| {
        let pidfd = pidfd_open(rustix::process::Pid::from_child(&helper), PidfdFlags::empty());
        processes.helpers.push(helper);
        pidfd.map(|pidfd| (way, pidfd))
    });
    let (way, device) = way.transpose().map_err(|error| step()(error.into()))?.unzip();
    devices.extend(device);
    let (leash, guard) = pair()?;

    let null = openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| during("open '/dev/null'")(error.into()))?;
    // A number that is not used must not be something else.
    let mut placed = vec![
        (null.as_fd(), 0),
        (guest_console.as_fd(), 1),
        (guest_console.as_fd(), 2),
        (guest_control.as_fd(), fd::CONTROL),
        (guest_monitor.as_fd(), fd::MONITOR),
        (guest_console.as_fd(), fd::CONSOLE),
        (files.as_fd(), fd::FILES),
        (image.as_fd(), fd::KERNEL),
        (initrd.as_fd(), fd::INITRD),
        (guest_own.as_fd(), fd::OWN),
    ];
    for (disk, number) in [(&read, fd::DISK), (&write, fd::DISK_WRITE), (&way, fd::SOCKETS)] {
        placed.push((disk.as_ref().map_or(null.as_fd(), |disk| disk.as_fd()), number));
    }
    let tsc_khz = if kvm { None } else { tsc_khz(CLOCK) };
    let readable = [kernel.image.as_path(), initrd_path.as_path()];
    let mut kept = vec![guard.as_fd(), control.as_fd()];
    kept.extend(devices.iter().map(AsFd::as_fd));
    let (pid, pidfd) = start(spec, qemu, &plan.command(kvm, tsc_khz).0, &placed, &kept, &readable)?;
    let second = pidfd.try_clone().map_err(during("watch QEMU"))?;
    processes.qemu = Some(pidfd);
    drop((guard, devices, read, write, guest_control, guest_own, guest_monitor, guest_console, files, way));

    let identity = ProcessIdentity {
        pid,
        start_time: process::start_time(pid).map_err(during("read QEMU's start time"))?,
        boot_id: process::boot_id().map_err(during("read the boot id"))?,
    };
    let mut notes = boot::hand_over(&control, &mut console, second.as_fd(), &plan.guest.spec)?;
    notes.splice(0..0, plan.guest.spec.plan.notes.iter().cloned());
    notes.dedup();
    notes.extend(emulated);
    console.keep();
    let monitor = Monitor::new(monitor).map_err(during("use QEMU's monitor"))?;
    let own = Own::new(own).map_err(during("use the guest's own port"))?;
    let leash = Leash(leash);
    Ok(QemuMachine {
        control,
        identity,
        pidfd: second,
        processes,
        monitor,
        own,
        leash,
        frozen: false,
        held: false,
        notes,
        ways,
    })
}

/// Whether the processor runs the guest, and what is to be said where it does not.
fn accelerator(
    spec: &LaunchSpec,
    vm: &Vm,
    qemu: &Path,
    kernel: &GuestKernel,
) -> Result<(bool, Option<String>), DriverError> {
    let wanted = vm.settings.accel;
    let why = match accel::choose(wanted, &vm.settings.cache, qemu, &kernel.image) {
        Choice::Kvm if may_open(spec) => return Ok((true, None)),
        Choice::Kvm => format!("uid {} may not open '/dev/kvm'", spec.user.uid),
        Choice::Tcg { why, .. } => why,
    };
    match wanted {
        Accel::Kvm => Err(unsupported(format!("run a guest with KVM: {why}"))),
        Accel::Auto | Accel::Tcg => Ok((false, Some(format!("the guest is emulated, which is slow: {why}")))),
    }
}

/// Run by root, QEMU is somebody else, who has no group besides.
fn may_open(spec: &LaunchSpec) -> bool {
    let facts = || fs::metadata("/dev/kvm").ok();
    !rustix::process::geteuid().is_root()
        || facts().is_some_and(|facts| {
            let rights = [(facts.uid() == spec.user.uid, 0o600), (facts.gid() == spec.user.gid, 0o060), (true, 0o006)];
            rights.iter().find(|(is, _)| *is).is_some_and(|(_, bits)| facts.mode() & bits == *bits)
        })
}

/// The disk to be read, and to be written.
fn disks(spec: &LaunchSpec, plan: &QemuPlan) -> Result<(Option<OwnedFd>, Option<OwnedFd>), DiskError> {
    let size = spec.limits.disk.unwrap_or(disk::DEFAULT_SIZE);
    Ok(match plan.shape.disk {
        Disk::None => (None, None),
        Disk::Look => {
            let read = disk::open(&plan.disk, false)?;
            disk::claim(&read, &plan.disk, false, disk::PATIENCE)?;
            (Some(read), None)
        }
        Disk::Own => {
            let write = disk::ensure(&plan.disk, size)?;
            disk::claim(&write, &plan.disk, true, disk::PATIENCE)?;
            (Some(disk::open(&plan.disk, false)?), Some(write))
        }
    })
}

/// Starts the file server; returns QEMU's end of its connection.
fn file_server(spec: &LaunchSpec, plan: &QemuPlan, dir: &Path) -> Result<(OwnedFd, Child), DriverError> {
    let shares = plan.guest.exports.iter().map(|export| Share {
        name: export.name.clone(),
        dir: export.source.clone(),
        cache: if export.immutable { Cache::Always } else { Cache::Auto },
    });
    let told =
        vhost_fs::Plan { shares: shares.collect(), xattrs: false, user: becomes(spec), parent: std::process::id() };
    device(spec, "__vm-fs", &told, (dir, "files.sock")).map_err(during("start the file server"))
}

/// Run by root, processes of devices are the sandbox's user, as QEMU is.
fn becomes(spec: &LaunchSpec) -> Option<(u32, u32)> {
    rustix::process::geteuid().is_root().then_some((spec.user.uid, spec.user.gid))
}

/// Starts a process that serves one of QEMU's devices. The socket by which they meet has a name for a moment only.
fn device(spec: &LaunchSpec, role: &str, told: &impl Serialize, at: (&Path, &str)) -> io::Result<(OwnedFd, Child)> {
    let told = serde_json::to_string(told)?;
    let (dir, name) = at;
    let open = openat(CWD, dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // One of an earlier life that ended in between.
    let _ = fs::remove_file(dir.join(name));
    let listener = socket::listen_at(&open, name)?;
    let connection = socket::connect_at(&open, name);
    let _ = fs::remove_file(dir.join(name));
    let child = Command::new(&spec.program)
        .args([role, &told])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::null())
        .spawn()?;
    Ok((connection?.into(), child))
}

/// What leads out of a guest.
#[derive(Debug, Default)]
pub struct Ways {
    /// Where connections to the proxy arrive.
    pub proxy: Option<OwnedFd>,
    /// Where connections to the mirror arrive.
    pub mirror: Option<OwnedFd>,
}

/// The directory, of the sandbox's own, with the sockets to which a guest can connect, and nothing else.
const OUT: &str = "out";
/// The name of one of them, before its port.
const PORTS: &str = "port";
/// A guest's number; each has a device of its own, so that all have the same.
const CID: u64 = 3;

/// Starts the device of the ways out, where there are any; returns QEMU's end of its connection besides.
fn sockets(spec: &LaunchSpec, dir: &Path) -> io::Result<(Ways, Option<(OwnedFd, Child)>)> {
    let out = dir.join(OUT);
    let ports = listeners(&effective(spec));
    if ports.is_empty() {
        return Ok((Ways::default(), None));
    }
    // One of an earlier life.
    match fs::remove_dir_all(&out) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::DirBuilder::new().mode(0o700).create(&out)?;
    let at = openat(CWD, &out, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut ways = Ways::default();
    let own = |path: &Path| match becomes(spec) {
        Some((uid, gid)) => std::os::unix::fs::lchown(path, Some(uid), Some(gid)),
        None => Ok(()),
    };
    for port in ports {
        let name = format!("{PORTS}_{port}");
        let listener = OwnedFd::from(socket::listen_at(&at, &name)?);
        own(&out.join(&name))?;
        *(if port == PROXY_PORT { &mut ways.proxy } else { &mut ways.mirror }) = Some(listener);
    }
    own(&out)?;
    let told = vsock::Plan {
        cid: CID,
        incoming: false,
        outgoing: Some(out.join(PORTS)),
        user: becomes(spec),
        parent: std::process::id(),
    };
    Ok((ways, Some(device(spec, "__vm-vsock", &told, (dir, "sockets.sock"))?)))
}

/// Forks into namespaces: the keeper, and QEMU beneath it.
fn start(
    spec: &LaunchSpec,
    program: &Path,
    args: &[String],
    placed: &[(BorrowedFd<'_>, i32)],
    kept: &[BorrowedFd<'_>],
    readable: &[&Path],
) -> Result<(u32, OwnedFd), DriverError> {
    let switch_user = rustix::process::geteuid().is_root();
    let user = (spec.user.uid, spec.user.gid);
    let (go_read, go_write) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| during("create a pipe")(error.into()))?;
    let namespaces = Namespaces::USER.and(Namespaces::PID).and(Namespaces::IPC).and(Namespaces::UTS);
    let namespaces = namespaces.and(Namespaces::NET).and(Namespaces::MOUNT).and(Namespaces::CGROUP);
    let wall = wall(readable).map_err(during("make QEMU's Landlock rules"))?;
    match namespace::fork_into(namespaces, None).map_err(during("start QEMU"))? {
        Forked::Child => {
            drop(go_write);
            let child = QemuChild { program, args, placed, kept, go: go_read, user: switch_user.then_some(user) };
            if let Err(error) = child.run(wall) {
                child.say(&error);
            }
            namespace::exit_now(1)
        }
        Forked::Parent { pid, pidfd } => {
            let started = namespace::write_id_map(pid, user, user)
                .and_then(|()| Ok(rustix::io::write(&go_write, b"g")?))
                .map_err(during("start QEMU"));
            if let Err(error) = started {
                crate::namespace::end(&pidfd);
                return Err(error);
            }
            Ok((pid, pidfd))
        }
    }
}

/// What QEMU may open by name: its own files, the kernel's directory and that of the initramfs (it opens both once
/// more), devices, and a place for the temporary copy of a disk that is only looked at. `None` where the kernel has
/// no Landlock that is of use.
fn wall(readable: &[&Path]) -> io::Result<Option<Ruleset>> {
    let abi = landlock::abi();
    if abi < landlock::FIRST_USABLE {
        return Ok(None);
    }
    let rules = Ruleset::new(abi)?;
    let system = ["/usr", "/lib", "/lib64", "/etc", "/sys", "/nix"].map(|path| (Path::new(path), Rights::Read));
    let own = [("/dev", Rights::Devices), ("/proc", Rights::ReadWriteFiles), ("/var/tmp", Rights::All)];
    let beside = readable.iter().filter_map(|path| Some((path.parent()?, Rights::Read)));
    for (path, rights) in system.into_iter().chain(own.map(|(path, rights)| (Path::new(path), rights))).chain(beside) {
        // What is not there needs no rule.
        if let Ok(dir) = openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            rules.allow(&dir, rights)?;
        }
    }
    Ok(Some(rules))
}

/// The keeper's first descriptor after the standard ones.
const KEPT: i32 = 3;

struct QemuChild<'a> {
    program: &'a Path,
    args: &'a [String],
    placed: &'a [(BorrowedFd<'a>, i32)],
    /// The keeper's end of its leash, the control channel, and the pidfds of the devices' processes.
    kept: &'a [BorrowedFd<'a>],
    go: OwnedFd,
    user: Option<(u32, u32)>,
}

impl QemuChild<'_> {
    /// The last words are in the console's log.
    fn say(&self, error: &io::Error) {
        let _ = rustix::io::write(self.placed[2].0, format!("cannot start QEMU: {error}\n").as_bytes());
    }

    /// The keeper's whole life.
    fn run(&self, wall: Option<Ruleset>) -> io::Result<()> {
        let mut go = [0u8; 1];
        if rustix::io::retry_on_intr(|| rustix::io::read(&self.go, &mut go))? == 0 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if let Some((uid, gid)) = self.user {
            namespace::switch_user(uid, gid)?;
        }
        caps::no_new_privs()?;
        caps::drop_all()?;
        if let Some(wall) = wall {
            wall.enforce()?;
        }
        let qemu = fork::fork(|| {
            let Err(error) = self.become_qemu();
            self.say(&error);
            1
        })?;
        let qemu = pidfd_open(qemu, PidfdFlags::empty())?;
        // It is as good as a supervisor to the guest, and QEMU is the same user.
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        let own = self.kept.iter().copied().chain([qemu.as_fd()]);
        // All others are QEMU's, or the supervisor's: held here, their ends would never be seen.
        let null = openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let mut placed: Vec<(BorrowedFd<'_>, i32)> = (0..KEPT).map(|number| (null.as_fd(), number)).collect();
        placed.extend(own.zip(KEPT..));
        let end = KEPT + self.kept.len() as i32 + 1;
        namespace::place_descriptors(&placed, end)?;
        fork::close_from(end as u32, None)?;
        let mut own = (KEPT..end).map(fork::inherited).collect::<io::Result<Vec<_>>>()?.into_iter();
        let mut next = || own.next().ok_or(io::ErrorKind::NotFound);
        let (leash, control) = (next()?, next()?);
        let mut devices: Vec<OwnedFd> = own.collect();
        let qemu = devices.pop().ok_or(io::ErrorKind::NotFound)?;
        let keeper = Keeper { leash, control, qemu, devices };
        let ended = keeper.run(keeper::TIMES);
        // Whatever owned a descriptor before must not close what has its number now.
        namespace::exit_now(i32::from(ended.is_err()))
    }

    fn become_qemu(&self) -> io::Result<Infallible> {
        namespace::place_descriptors(self.placed, fd::FIRST_FREE)?;
        let program = CString::new(self.program.as_os_str().as_bytes())?;
        let words =
            std::iter::once(Ok(program.clone())).chain(self.args.iter().map(|word| CString::new(word.as_str())));
        let argv = words.collect::<Result<Vec<CString>, _>>()?;
        Err(fork::exec(&program, &argv, &[]))
    }
}
