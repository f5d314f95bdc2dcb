//! The first process of a guest: this program again.
//!
//! ```text
//!   kernel ─► /dev /proc /sys ─► modules ─► channel ─► GuestSpec
//!     ─► a root directory that can be left ─► exports, disk, trees      (build)
//!     ─► the namespace driver: agent as PID 1 of its own namespaces, without any privilege
//!     ─► carries bytes between channel and agent, reaps                 (relay)
//!        and between ports of the inner loopback and of the host        (ways)
//!     ─► agent gone, or channel gone: sync, unmount, off
//! ```
//! Whatever runs for the user is two walls away from the host: it would first have to get out of its namespaces,
//! past the system call filter and without any capability, and then out of the machine.

mod build;
mod channel;
pub use channel::{OWN_PORT, PORT};
mod copy;
mod hold;
mod locks;
mod pipe;
mod relay;
mod ways;

use super::guest::{GuestSpec, VERSION, Word};
use crate::namespace;
use hold::Hold;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::system::{RebootCommand, finit_module, reboot};
use sandbox_core::driver::Machine;
use sandbox_core::launch::{MIRROR_PORT, PROXY_PORT};
use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use ways::Way;

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
    let hold = Hold::default();
    if let Err(error) = live(&hold) {
        // The console is the log of the host.
        let _ = writeln!(io::stderr(), "git-sandbox-guest: {}", causes(&*error).join(": "));
    }
    hold.end();
    off(&hold)
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

fn live(hold: &Hold) -> Result<(), Failure> {
    kernel_file_systems()?;
    load_modules()?;
    let mut channel = channel::open(PORT)?;
    let spec: GuestSpec = channel::read_spec(&mut channel)?;
    match start(&spec) {
        Ok((mut machine, notes)) => {
            open_ways(&mut *machine)?;
            for note in notes {
                channel::say(&mut channel, &Word::Note(note))?;
            }
            // The one line of a start that goes well.
            let kernel = rustix::system::uname();
            let _ = writeln!(io::stderr(), "git-sandbox-guest: ready, Linux {}", kernel.release().to_string_lossy());
            hold.serve(channel::open(OWN_PORT)?, &spec)?;
            channel::say(&mut channel, &Word::Ready)?;
            relay::run(channel, machine, || hold.end())?;
        }
        Err(error) => channel::say(&mut channel, &Word::Failed(causes(&*error)))?,
    }
    Ok(())
}

fn start(spec: &GuestSpec) -> Result<(Box<dyn Machine>, Vec<String>), Failure> {
    if spec.version != VERSION {
        return Err(format!("the guest speaks version {VERSION}, the host {}", spec.version).into());
    }
    let cut = build::build(spec)?;
    let machine = namespace::launch(&spec.launch, &spec.plan)?;
    let mut notes = machine.notes().to_vec();
    notes.extend(cut);
    Ok((Box::new(machine), notes))
}

/// What the agent's namespaces have listening for the host is led there, by a thread of its own.
fn open_ways(machine: &mut dyn Machine) -> Result<(), Failure> {
    let ways = [(machine.take_egress(), PROXY_PORT), (machine.take_mirror(), MIRROR_PORT)];
    let ways: Vec<Way> =
        ways.into_iter().filter_map(|(listener, port)| Some(Way { listener: listener?, port: port.into() })).collect();
    if ways.is_empty() {
        return Ok(());
    }
    let thread = std::thread::Builder::new().name("ways".to_owned());
    let serve = move || {
        if let Err(error) = ways::run(&ways) {
            let _ = writeln!(io::stderr(), "git-sandbox-guest: the ways out have ended: {error}");
        }
    };
    thread.spawn(serve).map_err(during("open the ways out"))?;
    Ok(())
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
fn off(hold: &Hold) -> ! {
    locks::end();
    rustix::fs::sync();
    // All others are gone or hold nothing of it: a disk that was unmounted needs no recovery.
    let trees = fs::read_dir(super::guest::TREES).into_iter().flatten().flatten().map(|entry| entry.path());
    for at in trees.chain([build::CGROUPS, super::guest::DISK].map(Into::into)) {
        let _ = unmount(&at, UnmountFlags::DETACH);
    }
    rustix::fs::sync();
    hold.off();
    let _ = reboot(RebootCommand::Restart);
    // The kernel stops when its first process ends, and then restarts (`panic=-1`).
    sandbox_sys::namespace::exit_now(1)
}
