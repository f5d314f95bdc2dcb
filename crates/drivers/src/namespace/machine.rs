//! A child under way and a running sandbox: values that end it when they are dropped.

use super::cgroup::Cgroup;
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, waitid};
use sandbox_core::driver::{DriverError, Machine, ProcessIdentity, Usage};
use sandbox_sys::process;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// A child under way: dropped, it ends and leaves nothing behind.
pub struct Starting {
    /// Its control group, as far as it has one.
    pub cgroup: Cgroup,
    /// Its pidfd, once it was started.
    pub child: Option<OwnedFd>,
}

impl Starting {
    /// How the child ended, after it hung up.
    pub fn last_words(&mut self) -> io::Error {
        let Some(pidfd) = self.child.take() else { return io::ErrorKind::NotFound.into() };
        // It may have hung up without ending.
        let _ = process::wait_gone(&pidfd, Some(Duration::from_secs(1)));
        let _ = process::kill(&pidfd);
        match reap(&pidfd) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => io::Error::other(format!("it exited with status {code}")),
                (None, Some(signal)) => io::Error::other(format!("it was killed by signal {signal}")),
                (None, None) => io::Error::other("it stopped"),
            },
            Ok(None) => io::Error::other("it is gone"),
            Err(error) => error,
        }
    }

    /// Becomes the running sandbox.
    pub fn finish(
        mut self,
        control: UnixStream,
        identity: ProcessIdentity,
        notes: Vec<String>,
        (egress, mirror): (Option<OwnedFd>, Option<OwnedFd>),
        mounts: Option<OwnedFd>,
        limits_memory: bool,
    ) -> Result<NamespaceMachine, DriverError> {
        let Some(pidfd) = self.child.take() else {
            return Err(DriverError::NotReady { source: io::ErrorKind::NotFound.into() });
        };
        let cgroup = std::mem::take(&mut self.cgroup);
        Ok(NamespaceMachine { control, identity, pidfd, notes, cgroup, egress, mirror, mounts, limits_memory })
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(pidfd) = &self.child {
            end(pidfd);
        }
        self.cgroup.remove();
    }
}

/// How long the kernel may take to end a killed process. One that takes longer hangs in it, or somebody traces it;
/// its status is then taken by whoever inherits it.
const ENDING: Duration = Duration::from_secs(10);

/// Kills a process and takes its status, so that no zombie stays.
pub fn end(pidfd: &OwnedFd) {
    // All can only fail when it has ended and somebody else took its status.
    let _ = process::kill(pidfd);
    if process::wait_gone(pidfd, Some(ENDING)).unwrap_or(true) {
        let _ = reap(pidfd);
    }
}

/// Waits for the child of a pidfd; `None` when its status was taken before.
fn reap(pidfd: &OwnedFd) -> io::Result<Option<WaitIdStatus>> {
    loop {
        match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Ok(status) => return Ok(status),
            Err(Errno::CHILD) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A running sandbox of this driver.
#[derive(Debug)]
pub struct NamespaceMachine {
    control: UnixStream,
    identity: ProcessIdentity,
    pidfd: OwnedFd,
    notes: Vec<String>,
    cgroup: Cgroup,
    egress: Option<OwnedFd>,
    mirror: Option<OwnedFd>,
    /// Its mount namespace, so that it does not go with the first process: unmounting an overlay writes back
    /// the whole file system below it, of all who write there, and the first process would only then be gone.
    mounts: Option<OwnedFd>,
    limits_memory: bool,
}

impl Machine for NamespaceMachine {
    fn control(&self) -> &UnixStream {
        &self.control
    }

    fn process(&self) -> &ProcessIdentity {
        &self.identity
    }

    /// A pid namespace's first process ends only after all its members.
    fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn limits_memory(&self) -> bool {
        self.limits_memory
    }

    fn take_egress(&mut self) -> Option<OwnedFd> {
        self.egress.take()
    }

    fn take_mirror(&mut self) -> Option<OwnedFd> {
        self.mirror.take()
    }

    fn usage(&mut self) -> Usage {
        let mut usage = self.cgroup.usage();
        // Its threads may end after it; somebody who traces it may keep it for ever.
        let _ = process::wait_gone(&self.pidfd, Some(Duration::from_millis(200)));
        // The first process waits for all others, and the kernel for those that it leaves.
        if let Ok(Some(used)) = process::reap(self.identity.pid) {
            let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            usage.cpu_ms = Some((ms(used.user), ms(used.system)));
            usage.largest_process = Some(used.largest);
        }
        usage
    }

    fn kill(&mut self) -> io::Result<()> {
        process::kill(&self.pidfd)?;
        // A frozen process of cgroup v1 gets even this signal only when it thaws.
        let _ = self.cgroup.freeze(false);
        // The kernel ends all members of a pid namespace with its first process, and lets none of them fork
        // meanwhile: a control group that is killed could do no more.
        Ok(())
    }

    fn freeze(&mut self) -> io::Result<()> {
        self.cgroup.freeze(true)
    }

    fn thaw(&mut self) -> io::Result<()> {
        self.cgroup.freeze(false)
    }
}

impl Drop for NamespaceMachine {
    fn drop(&mut self) {
        end(&self.pidfd);
        self.cgroup.remove();
        // Left to the end of this process, after whoever waits for the sandbox has been answered. Nothing can
        // reach those mounts any more; a start that comes at once stands on the same directories.
        let _ = self.mounts.take().map(IntoRawFd::into_raw_fd);
    }
}
