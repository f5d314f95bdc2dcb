//! QEMU's command line, as a value.
//!
//! The machine is `microvm`: virtio devices on a memory-mapped bus, no PCI, no disk controller, no graphics, no USB,
//! no firmware tables but the few that name these devices. QEMU opens no file of the sandbox by name: all come as
//! descriptors.

use std::fmt;

/// Which descriptor is what in QEMU.
pub mod fd {
    /// The guest's port for the control channel.
    pub const CONTROL: i32 = 3;
    /// QEMU's own control (QMP).
    pub const MONITOR: i32 = 4;
    /// The console of the guest.
    pub const CONSOLE: i32 = 5;
    /// The file server.
    pub const FILES: i32 = 6;
    /// The kernel.
    pub const KERNEL: i32 = 7;
    /// The initramfs.
    pub const INITRD: i32 = 8;
    /// The disk, if there is one, to be read. QEMU picks of a set the one that is open as it wants it.
    pub const DISK: i32 = 9;
    /// The disk, if it is the sandbox's own, to be written.
    pub const DISK_WRITE: i32 = 10;
    /// The device of the ways out, if there are any.
    pub const SOCKETS: i32 = 11;
    /// The guest's port for its first process.
    pub const OWN: i32 = 12;
    /// The first that is none of them.
    pub const FIRST_FREE: i32 = 13;
}

/// What differs from one machine to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Virtual processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Whether there is a disk, and whether what is written to it stays.
    pub disk: Disk,
    /// Whether something leads out.
    pub sockets: bool,
}

/// The disk of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// There is none.
    None,
    /// The sandbox's.
    Own,
    /// The sandbox's, to look at: what is written (a journal is replayed) goes to a temporary file.
    Look,
}

/// A command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine(pub Vec<String>);

/// What the guest's kernel is told.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet loglevel=3 rdinit=/git-sandbox-guest reboot=t panic=-1";

impl CommandLine {
    /// Returns the arguments after the program's name.
    ///
    /// With `kvm` the guest's instructions are run by the processor, not emulated. `tsc_khz` is the speed of the host's time stamp counter. Emulated, the guest's is the same, and this machine
    /// has no other clock to measure it by: the guest's kernel would wait for ever.
    pub fn of(shape: Shape, kvm: bool, ports: (&str, &str), tag: &str, tsc_khz: Option<u64>) -> Self {
        let mut line = Self(Vec::new());
        let accel = if kvm { "kvm" } else { "tcg,thread=multi" };
        let cpu = if kvm { "host" } else { "max" };
        let memory = shape.memory_mib;
        line.flag("-nodefaults").flag("-no-user-config").flag("-no-reboot");
        line.option("-display", "none");
        line.option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
        // What the file server sees of the guest is this memory.
        line.option("-object", format!("memory-backend-memfd,id=memory,size={memory}M,share=on"));
        line.option("-machine", "microvm,rtc=on,memory-backend=memory");
        line.option("-global", "virtio-mmio.force-legacy=false");
        line.option("-accel", accel).option("-cpu", cpu);
        line.option("-smp", shape.cpus.to_string()).option("-m", format!("{memory}M"));
        line.option("-kernel", format!("/proc/self/fd/{}", fd::KERNEL));
        line.option("-initrd", format!("/proc/self/fd/{}", fd::INITRD));
        let clock = tsc_khz.filter(|_| !kvm).map(|khz| format!(" tsc_early_khz={khz}")).unwrap_or_default();
        line.option("-append", format!("{KERNEL_ARGUMENTS}{clock}"));
        line.option("-chardev", format!("socket,id=console,fd={}", fd::CONSOLE)).option("-serial", "chardev:console");
        line.option("-chardev", format!("socket,id=monitor,fd={}", fd::MONITOR));
        line.option("-mon", "chardev=monitor,mode=control");
        line.option("-chardev", format!("socket,id=control,fd={}", fd::CONTROL));
        line.option("-chardev", format!("socket,id=own,fd={}", fd::OWN));
        // The number 0 is a console's.
        line.option("-device", "virtio-serial-device,max_ports=3");
        line.option("-device", format!("virtserialport,chardev=control,name={}", ports.0));
        line.option("-device", format!("virtserialport,chardev=own,name={}", ports.1));
        line.option("-chardev", format!("socket,id=files,fd={}", fd::FILES));
        line.option("-device", format!("vhost-user-fs-device,chardev=files,tag={tag},queue-size=1024"));
        if shape.sockets {
            line.option("-chardev", format!("socket,id=sockets,fd={}", fd::SOCKETS));
            line.option("-device", "vhost-user-vsock-device,chardev=sockets");
        }
        if shape.disk != Disk::None {
            let snapshot = if shape.disk == Disk::Look { "on" } else { "off" };
            line.option("-add-fd", format!("set=1,fd={}", fd::DISK));
            if shape.disk == Disk::Own {
                line.option("-add-fd", format!("set=1,fd={}", fd::DISK_WRITE));
            }
            line.option(
                "-drive",
                format!(
                    "if=none,id=disk,format=raw,file=/dev/fdset/1,discard=unmap,detect-zeroes=unmap,cache=writeback,\
                     snapshot={snapshot}"
                ),
            );
            line.option("-device", "virtio-blk-device,drive=disk");
        }
        // What the guest does not use goes back to the host.
        line.option("-device", "virtio-balloon-device,free-page-reporting=on");
        line.option("-object", "rng-builtin,id=random").option("-device", "virtio-rng-device,rng=random");
        line
    }

    fn flag(&mut self, flag: &str) -> &mut Self {
        self.0.push(flag.to_owned());
        self
    }

    fn option(&mut self, name: &str, value: impl Into<String>) -> &mut Self {
        self.0.extend([name.to_owned(), value.into()]);
        self
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, word) in self.0.iter().enumerate() {
            let space = match (n, word.starts_with('-')) {
                (0, _) => "",
                (_, true) => "\n",
                (_, false) => " ",
            };
            write!(f, "{space}{word}")?;
        }
        writeln!(f)
    }
}
