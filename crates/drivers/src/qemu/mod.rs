//! The QEMU driver: a guest with a kernel of its own in a machine without history (`microvm`).
//!
//! ```text
//!   supervisor                          QEMU                       guest
//!   ──────────                          ────                       ─────
//!   kernel, initramfs, disk, plan
//!   file server (role `__vm-fs`) ◄────► vhost-user-fs
//!   keeper in namespaces ─────────────► exec ────────────────────► kernel ─► first process (vm::init)
//!   GuestSpec ────────────────────────► virtio-serial ───────────► builds, starts the agent
//!   notes, Ready ◄────────────────────────────────────────────────
//!   Machine: the same port is now the agent's control channel
//! ```
//! QEMU runs as the sandbox's user in namespaces of its own (no network, no process of the host in sight), cannot
//! gain privileges, and ends with its supervisor, after the guest has written out its disk. What it opens it has as descriptors.

pub mod command;
mod keeper;
mod launch;
mod machine;
mod monitor;
mod own;

use command::{CommandLine, Disk, Shape};
use sandbox_core::driver::{Check, Driver, DriverError, Isolation, Machine};
use sandbox_core::launch::{Accel, LaunchSpec, Mode, Network, TreeView, Vm, VmSettings};
use sandbox_core::record::SandboxRecord;
use std::path::{Path, PathBuf};

use crate::namespace::{self, view::Host};
use crate::vm::guest::{Guest, TAG, guest};
use crate::vm::init::{OWN_PORT, PORT};

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

    fn reaches_mirror(&self) -> bool {
        true
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
        CommandLine::of(self.shape, kvm, (PORT, OWN_PORT), TAG, tsc_khz)
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
        Network::None | Network::Allow => Ok(()),
        Network::Host => Err(unsupported("give a guest the host's network (`--net host`)")),
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
        sockets: !namespace::listeners(&namespace::effective(spec)).is_empty(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::plan::tests::spec;
    use insta::assert_snapshot;

    fn planned(change: impl FnOnce(&mut LaunchSpec)) -> Result<QemuPlan, DriverError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("usr")).unwrap();
        let mut spec = spec();
        spec.vm = Some(Vm { dir: "/state/sandboxes/1".into(), settings: VmSettings::default() });
        spec.limits.cpu_percent = Some(100);
        change(&mut spec);
        plan(&spec, &Host::at(dir.path()))
    }

    /// What differs from the namespace driver's plan of the same spec.
    fn own_lines(plan: &QemuPlan) -> String {
        let text = plan.guest.to_string();
        let moved = ["/x/", "/disk", "/trees", "/git-sandbox-guest"];
        let keep = |line: &&str| moved.iter().any(|part| line.contains(part)) || line.starts_with("overlay");
        text.lines().filter(keep).map(|line| format!("{line}\n")).collect()
    }

    #[test]
    fn the_machine_is_minimal_and_gets_descriptors() {
        let plan = planned(|_| {}).unwrap();
        assert_eq!(
            (&*plan.disk, &*plan.console),
            (Path::new("/state/sandboxes/1/disk.img"), Path::new("/state/sandboxes/1/log/console.log"))
        );
        assert_snapshot!(plan.command(false, Some(2_400_000)), @r"
        -nodefaults
        -no-user-config
        -no-reboot
        -display none
        -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
        -object memory-backend-memfd,id=memory,size=1152M,share=on
        -machine microvm,rtc=on,memory-backend=memory
        -global virtio-mmio.force-legacy=false
        -accel tcg,thread=multi
        -cpu max
        -smp 1
        -m 1152M
        -kernel /proc/self/fd/7
        -initrd /proc/self/fd/8
        -append console=ttyS0 quiet loglevel=3 rdinit=/git-sandbox-guest reboot=t panic=-1 tsc_early_khz=2400000
        -chardev socket,id=console,fd=5
        -serial chardev:console
        -chardev socket,id=monitor,fd=4
        -mon chardev=monitor,mode=control
        -chardev socket,id=control,fd=3
        -chardev socket,id=own,fd=12
        -device virtio-serial-device,max_ports=3
        -device virtserialport,chardev=control,name=git-sandbox.control
        -device virtserialport,chardev=own,name=git-sandbox.machine
        -chardev socket,id=files,fd=6
        -device vhost-user-fs-device,chardev=files,tag=sandbox,queue-size=1024
        -add-fd set=1,fd=9
        -add-fd set=1,fd=10
        -drive if=none,id=disk,format=raw,file=/dev/fdset/1,discard=unmap,detect-zeroes=unmap,cache=writeback,snapshot=off
        -device virtio-blk-device,drive=disk
        -device virtio-balloon-device,free-page-reporting=on
        -object rng-builtin,id=random
        -device virtio-rng-device,rng=random
        ");
        let kvm = plan.command(true, Some(1)).to_string();
        assert!(kvm.contains("\n-accel kvm\n-cpu host\n") && !kvm.contains("tsc_early_khz"), "{kvm}");
    }

    #[test]
    fn what_is_the_hosts_becomes_an_export() {
        assert_snapshot!(own_lines(&planned(|_| {}).unwrap()), @r"
        export    /x/0  /state/layers/git  kept
        export    /x/1  /state/layers/delta  kept
        export    /x/2  /state/layers/base  kept
        export    /x/3  /usr
        export    /x/4  /state/views/k  kept
        export    /x/5  /state/sandboxes/1/home
        disk      /disk
        fill      /disk/home  from /x/5
        overlay   /trees/0  redirect_dir
          lowerdir  /x/0
          lowerdir  /x/1
          lowerdir  /x/2
          upperdir  /disk/upper/0
          workdir   /disk/work/0
        bind      /usr  ro,nosuid,nodev  from /x/3
        bind      /tmp  rw,nosuid,nodev  from /disk/tmp
        bind      /var/tmp  rw,nosuid,nodev  from /disk/tmp
        bind      /home/dev  rw,nosuid,nodev  from /disk/home
        bind      /home/dev/.rustup  ro,nosuid,nodev  from /x/3
        bind      /run/git-sandbox/objects/k  ro,nosuid,nodev,noexec  from /x/4
        bind      /run/git-sandbox/bin/git-sandbox  ro,nosuid,nodev  from /git-sandbox-guest
        copy      /home/dev/project  rw,nosuid,nodev  from /trees/0
        bind      /run/git-sandbox/own/0  ro,nosuid,nodev,noexec  from /disk/upper/0
        ");
    }

    #[test]
    fn a_way_out_is_a_device_of_ours() {
        let device = "\n-chardev socket,id=sockets,fd=11\n-device vhost-user-vsock-device,chardev=sockets\n";
        let has =
            |change: fn(&mut LaunchSpec)| planned(change).unwrap().command(false, None).to_string().contains(device);
        assert!(!has(|_| {}));
        assert!(has(|spec| spec.network = Network::Allow));
        assert!(has(|spec| spec.mirror = true));
        // Nobody works in it.
        assert!(!has(|spec| (spec.network, spec.mirror, spec.mode) = (Network::Allow, true, Mode::Helper)));
    }

    #[test]
    fn a_helper_looks_at_the_disk() {
        // Of a sandbox that never ran there is none.
        let plan = planned(|spec| spec.mode = Mode::Helper).unwrap();
        assert_eq!((plan.shape.disk, plan.shape.cpus), (Disk::None, 1));
        let text = own_lines(&plan);
        assert!(!text.contains("/disk") && !text.contains("upperdir") && !text.contains("fill"), "{text}");
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("disk.img"), "").unwrap();
        let at = dir.path().to_owned();
        let plan = planned(|spec| {
            spec.mode = Mode::Helper;
            spec.vm.as_mut().unwrap().dir = at;
        })
        .unwrap();
        assert_eq!(plan.shape.disk, Disk::Look);
        assert!(plan.command(false, None).to_string().contains(",snapshot=on\n"));
        assert!(
            own_lines(&plan)
                .contains("overlay   /trees/0  redirect_dir\n  lowerdir  /disk/upper/0\n  lowerdir  /x/0\n")
        );
    }

    #[test]
    fn what_a_guest_cannot_be_is_said() {
        let said = |change: fn(&mut LaunchSpec)| planned(change).unwrap_err().to_string();
        let host = said(|spec| spec.network = Network::Host);
        assert_eq!(host, "the driver 'qemu' cannot give a guest the host's network (`--net host`)");
        let nowhere = said(|spec| spec.vm = None);
        assert_eq!(nowhere, "the driver 'qemu' cannot start without a place for its disk");
        assert_eq!(said(|spec| spec.trees[0].at = "/usr".into()), "the driver 'qemu' cannot mount a tree at '/usr'");
        let copy = said(|spec| spec.trees[0].view = sandbox_core::launch::TreeView::Copy);
        assert_eq!(copy, "the driver 'qemu' cannot show '/home/dev/project' as a full copy: its trees are overlays");
    }
}
