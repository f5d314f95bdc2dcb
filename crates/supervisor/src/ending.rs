//! The end of a sandbox, which waits for nobody's cooperation.
//!
//! ```text
//!               stop, TERM, last session           deadline, second stop        pidfd readable
//!   Running ──► BringingHome ──► ShuttingDown ──────────────────────────► Dying ──────► gone
//!      │         (last import)    (TERM, grace)                             ▲  │ 10 s: those who
//!      └── PID 1 or the control channel ends ───────────────────────────────┘  ▼ wait are told
//! ```
//!
//! Whoever asks for the end has it within [`BRING_ASKED`] + the grace + [`SHUTDOWN_EXTRA`], whatever
//! goes on inside: stopped, traced and frozen processes included. Only what hangs in the kernel
//! outlives that; it is named then, and the lock stays held. Nothing here forks but the last
//! import, and that may fail: commits stay in the sandbox's directory, and `fetch` brings them.

use crate::bring::Waiter;
use crate::supervise::{Phase, SuperviseError, Supervisor, after, failure};
use rustix::process::{Signal, pidfd_send_signal};
use sandbox_core::store::{SandboxDir, write_json};
use sandbox_protocol::event::Happened;
use sandbox_protocol::{ExitStatus, FailureKind, Message};
use sandbox_sys::clock::unix_seconds;
use sandbox_sys::lock::FileLock;
use sandbox_sys::process;
use std::io::{self, Write};
use std::time::{Duration, Instant};

/// How long the last commit-back may take when nobody waits: the command has ended by itself.
const BRING_HOME: Duration = Duration::from_secs(120);
/// How long it may take when somebody asked for the end. What is not home then is brought by the read-only
/// helper, which needs nobody inside.
const BRING_ASKED: Duration = Duration::from_secs(8);
/// The same of a guest: emulated it is slow, and to look at its disk afterwards takes a whole boot.
const BRING_ASKED_GUEST: Duration = Duration::from_secs(30);
/// How long the agent may take beyond the grace before it is killed.
const SHUTDOWN_EXTRA: Duration = Duration::from_secs(2);
/// Silence after which it is looked whether the first process is stopped or traced.
const SILENCE: Duration = Duration::from_secs(1);
/// How long the kernel may take to end killed processes before it is said.
const KERNEL: Duration = Duration::from_secs(10);
/// How often it is looked whether a killed process has ended that somebody traces: its pidfd does not tell.
const ZOMBIE: Duration = Duration::from_millis(100);
/// How often it is looked whether the sandbox's directory is still there.
const LOOK: Duration = Duration::from_secs(5);

/// The directory that the sandbox stands on, as it was at the start.
#[derive(Debug)]
pub(crate) struct Ground {
    /// Device and inode of the lock file; `None` when it cannot be told.
    lock: Option<(u64, u64)>,
    /// When to look next.
    pub(crate) next: Instant,
}

impl Ground {
    pub(crate) fn new(dir: &SandboxDir, lock: &FileLock) -> io::Result<Self> {
        let held = lock.identity()?;
        Ok(Self { lock: (identity(dir).ok() == Some(held)).then_some(held), next: Instant::now() + LOOK })
    }

    /// Somebody removed the directory, or put another in its place. A disk that does not answer is no such thing.
    pub(crate) fn is_gone(&mut self, dir: &SandboxDir) -> bool {
        self.next = Instant::now() + LOOK;
        match (self.lock, identity(dir)) {
            (Some(lock), Ok(there)) => lock != there,
            (Some(_), Err(error)) => error.kind() == io::ErrorKind::NotFound,
            (None, _) => false,
        }
    }
}

fn identity(dir: &SandboxDir) -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::symlink_metadata(dir.lock_file()).map(|meta| (meta.dev(), meta.ino()))
}

impl Supervisor {
    /// TERM: once as `stop`, twice at once.
    pub(crate) fn asked_to_end(&mut self) {
        if let Some(fd) = &self.terminate
            && !matches!(rustix::io::read(fd, &mut [0u8; 64]), Ok(1..))
        {
            self.terminate = None;
        }
        let grace_ms = if self.phase == Phase::Running { 10_000 } else { 0 };
        self.stop(grace_ms, true);
    }

    /// Ends the sandbox; `asked` by somebody who waits for it. Asked once more with no grace: at once.
    pub(crate) fn stop(&mut self, grace_ms: u64, asked: bool) {
        match self.phase {
            Phase::Running => {}
            Phase::BringingHome { .. } if grace_ms == 0 => {
                self.bring_abandon();
                return self.shut_down(0);
            }
            Phase::ShuttingDown { .. } if grace_ms == 0 => return self.end_now(),
            Phase::BringingHome { .. } | Phase::ShuttingDown { .. } | Phase::Dying { .. } => return,
        }
        // Somebody outside may have stopped it; who traces it keeps it.
        let _ = pidfd_send_signal(self.machine.pidfd(), Signal::CONT);
        // New clients find no socket and wait for the end, to start it again.
        let _ = std::fs::remove_file(self.dir.ctl());
        // What could not go on for want of room does not get to it now; what it committed is brought home by
        // the helper that needs nobody inside.
        if self.disk.frozen.is_some() {
            return self.shut_down(0);
        }
        // One that failed before is tried once more: it is the last time.
        let home = self.bring.moved || self.bring.due.is_some() || self.bring.running.is_some();
        // What a commit-back runs inside would be in the way of the last look at a disk that nobody else sees.
        let rescue = if home { self.rescue_waits() } else { self.rescue_at_the_end() };
        if rescue || home {
            let until = after(match asked {
                true if self.rescue.unseen => BRING_ASKED_GUEST,
                true => BRING_ASKED,
                false => BRING_HOME,
            });
            self.phase = Phase::BringingHome { grace_ms, until, rounds: 2 };
            if home && self.bring.running.is_none() {
                self.bring_start();
            }
        } else {
            self.shut_down(grace_ms);
        }
    }

    pub(crate) fn shut_down(&mut self, grace_ms: u64) {
        let until = after(Duration::from_millis(grace_ms).saturating_add(SHUTDOWN_EXTRA));
        self.phase = Phase::ShuttingDown { until };
        self.agent.control(0, &Message::Shutdown { grace_ms });
        self.agent.flush();
    }

    /// Kills everything inside, without a word to it. The end comes when the kernel has let go of the first
    /// process, which is after all others.
    pub(crate) fn end_now(&mut self) {
        if matches!(self.phase, Phase::Dying { .. }) {
            return;
        }
        let asked = self.phase != Phase::Running;
        let _ = std::fs::remove_file(self.dir.ctl());
        self.bring_abandon();
        let _ = self.machine.kill();
        self.phase = Phase::Dying { asked, tell: Some(after(KERNEL)) };
    }

    /// The directory was removed under it: what is written goes nowhere, and nothing of it can be kept.
    pub(crate) fn lost(&mut self) {
        if matches!(self.phase, Phase::Dying { .. }) {
            return;
        }
        let path = self.dir.path().display().to_string();
        let words = format!("its directory '{path}' was removed: the sandbox is stopped, its files are gone");
        let _ = writeln!(io::stderr(), "error: {words}");
        for client in self.clients.values_mut() {
            client.control(0, &failure(FailureKind::Other, words.clone()));
        }
        self.end_now();
        self.phase = Phase::Dying { asked: true, tell: Some(after(KERNEL)) };
    }

    /// When the end needs to be looked at next.
    pub(crate) fn next_of_the_end(&self) -> Option<Instant> {
        match self.phase {
            Phase::Running => None,
            Phase::BringingHome { until, .. } | Phase::ShuttingDown { until } => {
                let silent = self.heard + SILENCE;
                Some(if silent > Instant::now() { until.min(silent) } else { until.min(after(SILENCE)) })
            }
            Phase::Dying { .. } => Some(after(ZOMBIE)),
        }
    }

    /// Everything inside has ended, though the first process's end may be kept by whoever traces it.
    pub(crate) fn is_dead(&self) -> bool {
        let pid = self.machine.process().pid;
        matches!(self.phase, Phase::Dying { .. }) && matches!(process::state(pid), Ok('Z' | 'X'))
    }

    pub(crate) fn end_timers(&mut self, now: Instant) {
        match self.phase {
            Phase::Running => {}
            Phase::BringingHome { .. } | Phase::ShuttingDown { .. }
                if now.saturating_duration_since(self.heard) >= SILENCE && self.stands_still() =>
            {
                self.end_now();
            }
            Phase::BringingHome { grace_ms, until, .. } => {
                if until <= now {
                    self.bring_abandon();
                    self.shut_down(grace_ms);
                }
            }
            Phase::ShuttingDown { until } => {
                if until <= now {
                    self.end_now();
                }
            }
            Phase::Dying { asked, tell } => {
                if tell.is_some_and(|at| at <= now) {
                    self.phase = Phase::Dying { asked, tell: None };
                    self.does_not_end();
                }
            }
        }
    }

    /// The first process is stopped, or somebody traces it: it will not answer.
    fn stands_still(&self) -> bool {
        matches!(process::state(self.machine.process().pid), Ok('T' | 't'))
    }

    /// Tells those who wait that the kernel holds on to something inside. It goes on being waited for.
    fn does_not_end(&mut self) {
        let pid = self.machine.process().pid;
        let words = format!(
            "process {pid} of the sandbox was killed and does not end: something inside hangs in the kernel (a dead file system?)"
        );
        let _ = writeln!(io::stderr(), "error: {words}");
        for waiter in std::mem::take(&mut self.stop_waiters) {
            self.answer(waiter, &failure(FailureKind::Other, words.clone()));
        }
    }

    /// The sandbox's first process is gone, and everything inside before it.
    pub(crate) fn gone(&mut self) -> Result<(), SuperviseError> {
        // Output that was under way when PID 1 ended.
        let mut frames = Vec::new();
        while !self.agent.gone && self.agent.read(&mut frames) {
            for frame in frames.drain(..) {
                self.agent_frame(frame);
            }
        }
        // Its last process is gone, so nothing writes to the upper directory, and the lock may be given up.
        self.rescue_settle();
        let asked = match self.phase {
            Phase::Running => false,
            Phase::Dying { asked, .. } => asked,
            Phase::BringingHome { .. } | Phase::ShuttingDown { .. } => true,
        };
        self.bring_abandon();
        for (_, mut serve) in self.serves.drain() {
            serve.helper.kill();
        }
        self.egress_stop();
        self.status.usage = Some(self.machine.usage());
        self.status.supervisor = None;
        self.status.init = None;
        self.status.frozen = None;
        self.status.stopped = asked;
        let watched =
            self.agent_hello.as_ref().is_some_and(|hello| hello.enforced.iter().any(|e| e == "rename-notify"));
        self.status.home = asked && watched && !self.bring.moved;
        let mut ended = None;
        if let Some(main) = self.main.as_mut().filter(|main| main.exit.is_none()) {
            // The main session ended with the sandbox: KILL is what happened to it.
            main.exit = Some(ExitStatus::Signal(9));
            self.status.exited = Some((ExitStatus::Signal(9), unix_seconds()));
            ended = Some(ExitStatus::Signal(9));
            for (id, stream) in &main.attached {
                if let Some(client) = self.clients.get_mut(id) {
                    client.control(*stream, &Message::Exited(ExitStatus::Signal(9)));
                }
            }
        }
        if let Some(exit) = ended {
            self.happened(Happened::Exited { status: exit.shell() });
        }
        if !self.started_said {
            self.say_started(Vec::new());
        }
        self.happened(Happened::Stopped);
        let written = write_json(&self.dir.status(), &self.status, false);
        let _ = std::fs::remove_file(self.dir.ctl());
        for waiter in std::mem::take(&mut self.stop_waiters) {
            self.answer(waiter, &Message::Done);
        }
        let unmet = std::mem::take(&mut self.bring.waiting).into_iter().chain(std::mem::take(&mut self.bring.next));
        for waiter in unmet.collect::<Vec<_>>() {
            if let Waiter::Client(client) = waiter {
                self.answer(client, &failure(FailureKind::Other, "the sandbox has stopped"));
            }
        }
        // Clients read the rest in their own time; a dead one must not hold us.
        let until = Instant::now() + Duration::from_secs(2);
        while self.clients.values().any(|c| c.backlog() > 0 && !c.gone) && Instant::now() < until {
            for client in self.clients.values_mut() {
                client.flush();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        written.map_err(SuperviseError::Store)
    }
}
