//! The QEMU driver: a guest with a kernel of its own in a machine without history (`microvm`).
//!
//! ```text
//!   supervisor                          QEMU                       guest
//!   ──────────                          ────                       ─────
//!   kernel, initramfs, disk, plan
//!   file server (role `__vm-fs`) ◄────► vhost-user-fs
//!   fork into namespaces ─────────────► exec ────────────────────► kernel ─► first process (vm::init)
//!   GuestSpec ────────────────────────► virtio-serial ───────────► builds, starts the agent
//!   notes, Ready ◄────────────────────────────────────────────────
//!   Machine: the same port is now the agent's control channel
//! ```
//! QEMU runs as the sandbox's user in namespaces of its own (no network, no process of the host in sight), cannot
//! gain privileges, and ends with its supervisor. What it opens it has as descriptors.

pub mod command;
mod launch;
mod machine;
mod monitor;

use command::{CommandLine, Disk, Shape};
use sandbox_core::driver::{Check, Driver, DriverError, Isolation, Machine};
use sandbox_core::launch::{Accel, LaunchSpec, Mode, Network, TreeView, Vm, VmSettings};
use sandbox_core::record::SandboxRecord;
use std::path::{Path, PathBuf};

use crate::namespace::view::Host;
use crate::vm::guest::{Guest, TAG, guest};
use crate::vm::init::PORT;

/// The driver's name.
pub const NAME: &str = "qemu";

/// What a guest's kernel and our processes in it take, beside what is for the user.
const OVERHEAD: u64 = 128 << 20;

/// The memory of a sandbox without a limit.
const DEFAULT_MEMORY: u64 = 4 << 30;

/// The driver.
#[derive(Debug)]
pub struct Qemu;

impl Driver for Qemu {
    fn name(&self) -> &'static str {
        NAME
    }

    fn isolation(&self) -> Isolation {
        Isolation::Vm
    }

    fn check(&self, settings: &VmSettings) -> Vec<Check> {
        crate::vm::check::checks(settings, program())
    }

    fn refuse(&self, record: &SandboxRecord) -> Result<(), DriverError> {
        if record.view == TreeView::Copy {
            return Err(unsupported("show a full copy of a tree (sandbox.view = copy): its trees are overlays"));
        }
        if record.limits.disk.is_some_and(|disk| disk < crate::vm::disk::SMALLEST) {
            return Err(unsupported("have a disk of less than 16 MiB"));
        }
        refuse_network(record.network)
    }

    fn writes_on_host(&self) -> bool {
        false
    }

    fn plan(&self, spec: &LaunchSpec) -> Result<String, DriverError> {
        let plan = plan(spec, &Host::default())?;
        // Which it will be is found out at the start.
        let kvm = vm(spec)?.settings.accel != Accel::Tcg;
        Ok(format!("{}\n{}", plan.command(kvm, None), plan.guest))
    }

    fn launch(&self, spec: &LaunchSpec) -> Result<Box<dyn Machine>, DriverError> {
        Ok(Box::new(launch::launch(spec, &plan(spec, &Host::default())?)?))
    }
}

/// Everything that is decided before anything is started.
#[derive(Debug)]
pub struct QemuPlan {
    /// The machine.
    pub shape: Shape,
    /// The guest.
    pub guest: Guest,
    /// The disk's file.
    pub disk: PathBuf,
    /// Where the console is kept.
    pub console: PathBuf,
}

impl QemuPlan {
    fn command(&self, kvm: bool, tsc_khz: Option<u64>) -> CommandLine {
        CommandLine::of(self.shape, kvm, PORT, TAG, tsc_khz)
    }
}

fn unsupported(what: impl Into<String>) -> DriverError {
    DriverError::Unsupported { driver: NAME, what: what.into() }
}

/// What the spec says of a virtual machine.
fn vm(spec: &LaunchSpec) -> Result<&Vm, DriverError> {
    spec.vm.as_ref().ok_or_else(|| unsupported("start without a place for its disk"))
}

fn refuse_network(network: Network) -> Result<(), DriverError> {
    match network {
        Network::None => Ok(()),
        Network::Host => Err(unsupported("give a guest the host's network (`--net host`)")),
        Network::Allow => Err(unsupported("give a guest a network with a policy (`--net allow`)")),
    }
}

/// Decides; reads the host, changes nothing.
pub fn plan(spec: &LaunchSpec, host: &Host) -> Result<QemuPlan, DriverError> {
    let vm = vm(spec)?;
    if spec.mode == Mode::Work {
        refuse_network(spec.network)?;
    }
    let disk = vm.dir.join("disk.img");
    let has_disk = spec.mode == Mode::Work || disk.exists();
    let shape = Shape {
        cpus: cpus(spec),
        memory_mib: (spec.limits.memory.unwrap_or(DEFAULT_MEMORY) + OVERHEAD).div_ceil(1 << 20),
        disk: match (spec.mode, has_disk) {
            (_, false) => Disk::None,
            (Mode::Work, true) => Disk::Own,
            (Mode::Helper, true) => Disk::Look,
        },
    };
    let guest = guest(spec, host, has_disk, NAME)?;
    Ok(QemuPlan { shape, guest, disk, console: vm.dir.join("log/console.log") })
}

/// As many processors as the limit has any use for, and no more than there are.
fn cpus(spec: &LaunchSpec) -> u32 {
    let here = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
    match (spec.mode, spec.limits.cpu_percent) {
        (Mode::Helper, _) => 1,
        (Mode::Work, Some(percent)) => percent.div_ceil(100).clamp(1, here),
        (Mode::Work, None) => here,
    }
}

/// Where distributions have it.
fn program() -> Option<&'static Path> {
    const PROGRAMS: &[&str] =
        &["/usr/bin/qemu-system-x86_64", "/usr/local/bin/qemu-system-x86_64", "/usr/libexec/qemu-kvm"];
    PROGRAMS.iter().map(Path::new).find(|path| path.exists())
}
