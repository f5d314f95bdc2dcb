//! The first process of a guest: this program again.
//!
//! ```text
//!   kernel ─► /dev /proc /sys ─► modules ─► channel ─► GuestSpec
//!     ─► a root directory that can be left ─► exports, disk, trees      (build)
//!     ─► the namespace driver: agent as PID 1 of its own namespaces, without any privilege
//!     ─► carries bytes between channel and agent, reaps                 (relay)
//!     ─► agent gone, or channel gone: sync, unmount, off
//! ```
//! Whatever runs for the user is two walls away from the host: it would first have to get out of its namespaces,
//! past the system call filter and without any capability, and then out of the machine.

mod build;
mod channel;
pub use channel::PORT;
mod copy;
mod relay;

use super::guest::{GuestSpec, VERSION, Word};
use crate::namespace;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::system::{RebootCommand, finit_module, reboot};
use sandbox_core::driver::Machine;
use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

type Failure = Box<dyn Error>;

/// Says what was being done when something failed.
fn during<E: Into<io::Error>>(step: impl Into<String>) -> impl FnOnce(E) -> Failure {
    let step = step.into();
    move |error| Box::new(Step { step, source: error.into() })
}

#[derive(Debug, thiserror::Error)]
#[error("cannot {step}")]
struct Step {
    step: String,
    source: io::Error,
}

/// Runs the guest, until it is switched off. Anywhere but as the first process of a machine it does nothing.
pub fn run() -> ExitCode {
    if rustix::process::getpid().as_raw_nonzero().get() != 1 {
        return ExitCode::FAILURE;
    }
    if let Err(error) = live() {
        // The console is the log of the host.
        let _ = writeln!(io::stderr(), "git-sandbox-guest: {}", causes(&*error).join(": "));
    }
    off()
}

fn causes(error: &dyn Error) -> Vec<String> {
    let mut said = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        said.push(error.to_string());
        cause = error.source();
    }
    said
}

fn live() -> Result<(), Failure> {
    kernel_file_systems()?;
    load_modules()?;
    let mut channel = channel::open()?;
    let spec: GuestSpec = channel::read_spec(&mut channel)?;
    match start(&spec) {
        Ok((machine, notes)) => {
            for note in notes {
                channel::say(&mut channel, &Word::Note(note))?;
            }
            channel::say(&mut channel, &Word::Ready)?;
            relay::run(channel, machine)?;
        }
        Err(error) => channel::say(&mut channel, &Word::Failed(causes(&*error)))?,
    }
    Ok(())
}

fn start(spec: &GuestSpec) -> Result<(Box<dyn Machine>, Vec<String>), Failure> {
    if spec.version != VERSION {
        return Err(format!("the guest speaks version {VERSION}, the host {}", spec.version).into());
    }
    build::build(spec)?;
    let machine = namespace::launch(&spec.launch, &spec.plan)?;
    let notes = machine.notes().to_vec();
    Ok((Box::new(machine), notes))
}

fn kernel_file_systems() -> Result<(), Failure> {
    for (kind, at) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        let step = || format!("mount '{at}'");
        match fs::create_dir(at) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(during(step())(error)),
            _ => {}
        }
        match mount(kind, at, kind, MountFlags::empty(), None) {
            // The kernel may have done it (CONFIG_DEVTMPFS_MOUNT).
            Ok(()) | Err(rustix::io::Errno::BUSY) => {}
            Err(error) => return Err(during(step())(error)),
        }
    }
    Ok(())
}

fn load_modules() -> Result<(), Failure> {
    let dir = Path::new("/modules");
    let mut names: Vec<String> = fs::read_dir(dir)
        .map_err(during("read '/modules'"))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    for name in names {
        let path = dir.join(&name);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(CWD, &path, flags, Mode::empty()).map_err(during(format!("open '{}'", path.display())))?;
        match finit_module(&file, c"", 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(during(format!("load the module '{name}'"))(error)),
        }
    }
    // They take memory, and are not needed again.
    let _ = fs::remove_dir_all(dir);
    Ok(())
}

/// Writes everything out and switches the machine off. The VMM is told to end at a restart.
fn off() -> ! {
    rustix::fs::sync();
    // All others are gone or hold nothing of it: a disk that was unmounted needs no recovery.
    let trees = fs::read_dir(super::guest::TREES).into_iter().flatten().flatten().map(|entry| entry.path());
    for at in trees.chain([build::CGROUPS, super::guest::DISK].map(Into::into)) {
        let _ = unmount(&at, UnmountFlags::DETACH);
    }
    rustix::fs::sync();
    let _ = reboot(RebootCommand::Restart);
    // The kernel stops when its first process ends, and then restarts (`panic=-1`).
    sandbox_sys::namespace::exit_now(1)
}
