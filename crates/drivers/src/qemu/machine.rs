//! QEMU under way and a running machine: values that end it when they are dropped.

use super::keeper::Leash;
use super::launch::Ways;
use super::monitor::Monitor;
use super::own::Own;
use crate::namespace::end;
use crate::vm::guest::{Answer, Ask};
use sandbox_core::driver::{Machine, ProcessIdentity, Usage};
use sandbox_sys::process;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::time::Duration;

/// QEMU and its helpers; dropped, they end.
#[derive(Debug)]
pub struct Processes {
    /// The pidfd of QEMU's keeper, once it was started: QEMU dies with it.
    pub qemu: Option<OwnedFd>,
    /// Processes that serve its devices; each ends by itself when QEMU does.
    pub helpers: Vec<Child>,
}

impl Drop for Processes {
    fn drop(&mut self) {
        if let Some(pidfd) = &self.qemu {
            end(pidfd);
        }
        for helper in &mut self.helpers {
            // Fails only for one that has ended.
            let _ = helper.kill();
            let _ = helper.wait();
        }
    }
}

/// A running machine.
#[derive(Debug)]
pub struct QemuMachine {
    /// The port that the agent is at.
    pub control: UnixStream,
    /// Its keeper's.
    pub identity: ProcessIdentity,
    /// Its keeper's pidfd, a second one.
    pub pidfd: OwnedFd,
    /// QEMU and its helpers.
    #[expect(dead_code, reason = "it ends them when it is dropped")]
    pub processes: Processes,
    /// QEMU's monitor.
    pub monitor: Monitor,
    /// The guest's first process.
    pub own: Own,
    /// It ends when this is let go.
    pub leash: Leash,
    /// It stands still.
    pub frozen: bool,
    /// Its disk stands still.
    pub held: bool,
    /// What is missing.
    pub notes: Vec<String>,
    /// Where connections to the proxy and to the mirror arrive.
    pub ways: Ways,
}

impl Machine for QemuMachine {
    fn control(&self) -> &UnixStream {
        &self.control
    }

    fn process(&self) -> &ProcessIdentity {
        &self.identity
    }

    fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn take_egress(&mut self) -> Option<OwnedFd> {
        self.ways.proxy.take()
    }

    fn take_mirror(&mut self) -> Option<OwnedFd> {
        self.ways.mirror.take()
    }

    fn usage(&mut self) -> Usage {
        let mut usage = Usage::default();
        let _ = process::wait_gone(&self.pidfd, Some(Duration::from_millis(200)));
        if let Ok(Some(used)) = process::reap(self.identity.pid) {
            let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            usage.cpu_ms = Some((ms(used.user), ms(used.system)));
            // The machine's memory, as far as it was ever in use at once.
            usage.memory_peak = Some(used.largest);
        }
        usage
    }

    fn is_written_out(&mut self) -> bool {
        self.own.last_word().unwrap_or(false)
    }

    /// The guest has a few seconds to write out what is in its memory.
    fn kill(&mut self) -> io::Result<()> {
        if self.frozen {
            let _ = self.thaw();
        }
        match process::state(self.identity.pid) {
            // Somebody else has hold of its keeper.
            Ok('T' | 't') => process::kill(&self.pidfd),
            _ => self.leash.end(),
        }
    }

    fn freeze(&mut self) -> io::Result<()> {
        self.monitor.execute("stop")?;
        self.frozen = true;
        Ok(())
    }

    fn thaw(&mut self) -> io::Result<()> {
        if self.frozen {
            self.monitor.execute("cont")?;
            self.frozen = false;
        }
        if std::mem::take(&mut self.held) {
            match self.own.ask(&Ask::Release)? {
                Answer::Released => {}
                other => return Err(io::Error::other(format!("the guest says {other:?}"))),
            }
        }
        Ok(())
    }

    /// The guest's kernel lets its disk stand still: what is in its memory would not be in a copy.
    fn hold(&mut self) -> io::Result<Option<String>> {
        if self.frozen {
            return Err(io::Error::other("it stands still already, with what it has not written yet"));
        }
        // Whatever it says, it is let go afterwards.
        self.held = true;
        match self.own.ask(&Ask::Hold)? {
            Answer::Held { locked } => Ok(locked),
            Answer::Failed(why) => Err(io::Error::other(why)),
            Answer::Released | Answer::Off => Err(io::Error::other("the guest says something else")),
        }
    }
}
