//! The contract of a driver: a way to isolate. One trait, one suite of tests (`e2e`).
//!
//! ```text
//!   LaunchSpec ──launch()──► Machine: control channel, identity, kill, freeze
//!                              │
//!                              ▼ (readable pidfd)
//!                            gone: nothing of it runs any more
//! ```

use crate::launch::{LaunchSpec, VmSettings};
use crate::record::SandboxRecord;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// How hard the wall is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// Kernel namespaces, seccomp, no capabilities; one shared kernel.
    Namespace,
    /// A hardware boundary with a kernel of its own.
    Vm,
}

/// A way to isolate.
pub trait Driver: Sync {
    /// Its name on the command line.
    fn name(&self) -> &'static str;

    /// How hard its wall is.
    fn isolation(&self) -> Isolation;

    /// What this machine has not got for it, in few words, as far as that is known without a trial: what goes on
    /// without it says so in the first line of a run.
    fn lacks(&self) -> Vec<&'static str> {
        Vec::new()
    }

    /// What it can do on this machine, what not and why: the lines of `doctor`. Changes nothing that is not made
    /// again: what took time to find out is remembered below `settings.cache`.
    fn check(&self, settings: &VmSettings) -> Vec<Check>;

    /// Refuses by name what this driver cannot do of what a sandbox is asked to be.
    fn refuse(&self, record: &SandboxRecord) -> Result<(), DriverError> {
        let _ = record;
        Ok(())
    }

    /// It can hand out a listener that leads to the mirror.
    fn reaches_mirror(&self) -> bool {
        false
    }

    /// What a sandbox writes lies in directories of the host, for whoever looks at one that does not run. Else it is
    /// on a disk that only the guest's kernel mounts: it is asked, or a helper over that disk is.
    fn writes_on_host(&self) -> bool {
        true
    }

    /// Why no overlay of a sandbox can have its upper directory at `place`, in words; `None` when one can, and from
    /// a driver that needs none. What is not known of the file system is tried as `uid` and `gid`, in an empty
    /// directory there that `scratch` makes; whoever gave it removes it.
    fn refuses_overlay(
        &self,
        place: &Path,
        scratch: &mut dyn FnMut() -> io::Result<PathBuf>,
        uid: u32,
        gid: u32,
    ) -> io::Result<Option<String>> {
        let _ = (place, scratch, uid, gid);
        Ok(None)
    }

    /// The steps that [`Driver::launch`] would take, as text: for tests and `spawn --dry-run`.
    fn plan(&self, spec: &LaunchSpec) -> Result<String, DriverError>;

    /// Starts the sandbox and its agent. Returns when the agent holds the other end of
    /// the control channel and every layer of the wall stands. On an error nothing is left behind.
    ///
    /// Must be called from the main thread of a process with no other threads.
    fn launch(&self, spec: &LaunchSpec) -> Result<Box<dyn Machine>, DriverError>;
}

/// A launched sandbox, owned by the process that launched it. Dropping it kills it.
pub trait Machine {
    /// The control channel to the agent (see `sandbox-protocol`), non-blocking is the caller's choice.
    fn control(&self) -> &UnixStream;

    /// The process whose end is the sandbox's end (PID 1 of the namespace, or the VMM).
    fn process(&self) -> &ProcessIdentity;

    /// Readable as soon as that process and all that it held are gone.
    fn pidfd(&self) -> BorrowedFd<'_>;

    /// What is enforced and what is missing, for the first line and for `show`.
    fn notes(&self) -> &[String];

    /// The limit of memory holds without anybody's looking. Where it does not, its owner looks.
    fn limits_memory(&self) -> bool {
        true
    }

    /// With [`crate::launch::Network::Allow`], once: a listening stream socket at which connections of
    /// the sandbox's processes, and of nobody else, arrive for the proxy.
    fn take_egress(&mut self) -> Option<OwnedFd> {
        None
    }

    /// With [`crate::launch::LaunchSpec::mirror`], once: a listening stream socket at which connections of the sandbox's
    /// processes, and of nobody else, arrive for the mirror.
    fn take_mirror(&mut self) -> Option<OwnedFd> {
        None
    }

    /// What was used since the start, to be asked once [`Machine::pidfd`] is readable.
    fn usage(&mut self) -> Usage {
        Usage::default()
    }

    /// A machine with a disk of its own has ended, and has said that everything is on it: to be asked as
    /// [`Machine::usage`].
    fn is_written_out(&mut self) -> bool {
        false
    }

    /// Ends everything inside at once, without its cooperation and without waiting for it: the end is when
    /// [`Machine::pidfd`] is readable. What hangs in the kernel takes as long as it hangs.
    fn kill(&mut self) -> io::Result<()>;

    /// Stops all processes inside for a moment; `Unsupported` where only a cgroup could and there is none.
    fn freeze(&mut self) -> io::Result<()>;

    /// Lets them go on.
    fn thaw(&mut self) -> io::Result<()>;

    /// Keeps what it writes as it is now, whole where it lies, until [`Machine::thaw`]. Returns the lock of a git
    /// command inside that does not end, where only the inside can see it. `Unsupported` as [`Machine::freeze`].
    fn hold(&mut self) -> io::Result<Option<String>> {
        self.freeze().map(|()| None)
    }
}

/// What one life of a sandbox has used, as far as it can be told here.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Milliseconds of processor time in programs and in the kernel for them, of processes that were waited for.
    #[serde(default)]
    pub cpu_ms: Option<(u64, u64)>,
    /// The most memory that all processes had at once, in bytes; only with a cgroup.
    #[serde(default)]
    pub memory_peak: Option<u64>,
    /// The most resident memory of one process, in bytes.
    #[serde(default)]
    pub largest_process: Option<u64>,
    /// The most processes and threads at once; only with a cgroup.
    #[serde(default)]
    pub processes_peak: Option<u64>,
    /// Limits that something ran into: `memory`, `pids`.
    #[serde(default)]
    pub limits_hit: Vec<String>,
}

/// A process that cannot be mistaken for a later one with the same pid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Pid in the host's namespace.
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks from boot to its start.
    pub start_time: u64,
    /// `/proc/sys/kernel/random/boot_id` when it was started.
    pub boot_id: String,
}

/// One finding about the machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at, a short stable name (`user-namespaces`, `overlay`, `landlock` …).
    pub name: String,
    /// What follows.
    pub verdict: Verdict,
    /// What was found, one line.
    pub found: String,
    /// The command that changes it.
    pub fix: Option<String>,
}

/// What follows from a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It holds.
    Ok,
    /// It is missing; sandboxes run without it, and say so.
    Weak,
    /// It is missing, and this driver cannot run without it.
    Missing,
}

/// Why a sandbox could not be launched.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The kernel refused a user namespace.
    #[error("cannot create a user namespace")]
    UserNamespace {
        /// AppArmor's restriction is on (Ubuntu ≥ 23.10).
        apparmor: bool,
        /// What the kernel said.
        source: io::Error,
    },
    /// The overlay could not be mounted.
    #[error("cannot mount the overlay of '{at}' (upper directory '{upper}', work directory '{work}')", at = at.display(), upper = upper.display(), work = work.display())]
    Overlay {
        /// The tree.
        at: PathBuf,
        /// Its upper directory.
        upper: PathBuf,
        /// Its work directory.
        work: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A step of the start failed.
    #[error("cannot {step}")]
    Step {
        /// What was being done, with its object.
        step: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A layer of the wall that must hold cannot be had.
    #[error("'{layer}' cannot be enforced here")]
    Weak {
        /// Its name for `--allow-weak`.
        layer: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Something that the spec names does not exist.
    #[error("'{path}' is gone", path = path.display())]
    Vanished {
        /// What vanished.
        path: PathBuf,
    },
    /// The driver cannot do what was asked.
    #[error("the driver '{driver}' cannot {what}")]
    Unsupported {
        /// Which driver.
        driver: &'static str,
        /// What it cannot.
        what: String,
    },
    /// The agent ended or was silent before it was ready.
    #[error("the sandbox's first process did not get ready")]
    NotReady {
        /// What it last said, or how it ended.
        source: io::Error,
    },
}
