//! Sessions from the request to the answer: the nursery, births, ends.

use super::peer::repo_state_answer;
use super::{Nursery, Phase, Server, other};
use crate::nursery::{self, Spawn, Spawned};
use crate::rename;
use crate::session::{Ends, Session, Sink, errno_text};
use crate::start::fork_nursery;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};
use sandbox_protocol::{ExitStatus, Failure, FailureKind, Message, escape_bytes};
use sandbox_sys::{pty, socket};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

impl Server {
    pub(super) fn begin(
        &mut self,
        spawn: Spawn,
        size: Option<(u16, u16)>,
        sink: Sink,
        input: Option<Vec<u8>>,
    ) -> Result<(), Failure> {
        let stream = spawn.id;
        if !self.greeted || stream == 0 || self.sessions.contains_key(&stream) {
            return Err(other("a session needs a hello and a stream of its own"));
        }
        if spawn.argv.is_empty() {
            return Err(other("no command was given"));
        }
        if self.phase != Phase::Serving {
            return Err(Failure { kind: FailureKind::Stopping, ..other("the sandbox is being stopped") });
        }
        let Some(nursery) = &self.nursery else { return Err(other("no session can be started any more")) };
        let failed = |error: io::Error| {
            let kind = match error.kind() {
                io::ErrorKind::ArgumentListTooLong => FailureKind::Limit,
                _ => FailureKind::Other,
            };
            let why = error.raw_os_error().map_or_else(|| error.to_string(), errno_text);
            Failure { kind, message: format!("cannot start a session: {why}") }
        };
        let record = spawn.encode().map_err(failed)?;
        let (errors, errors_end) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        let (ends, theirs) = open_ends(size).map_err(failed)?;
        let name: String = escape_bytes(&spawn.argv[0]).chars().take(200).collect();
        let cwd: String = escape_bytes(&spawn.cwd).chars().take(200).collect();
        let mut session = Session::new(name, cwd, ends, errors, sink).map_err(failed)?;
        if let Some(input) = input {
            session.preset_input(input);
        }
        // Somebody inside may have stopped it (`kill -STOP -1`).
        let _ = kill_process(nursery.pid, Signal::CONT);
        let fds: Vec<BorrowedFd<'_>> =
            std::iter::once(errors_end.as_fd()).chain(theirs.iter().map(AsFd::as_fd)).collect();
        socket::send(&nursery.socket, &record, &fds).map_err(failed)?;
        self.unborn.push(stream);
        self.sessions.insert(stream, session);
        self.poller.activity(Instant::now());
        Ok(())
    }

    pub(super) fn nursery_speaks(&mut self) {
        let mut record = [0; 16];
        while let Some(nursery) = &self.nursery {
            match socket::receive(&nursery.socket, &mut record, false) {
                Ok((length, _)) if length > 0 => {
                    if let Some(spawned) = Spawned::decode(&record[..length]) {
                        self.spawned(spawned);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                _ => return self.new_nursery(),
            }
        }
    }

    fn spawned(&mut self, spawned: Spawned) {
        let stream = spawned.id;
        self.unborn.retain(|unborn| *unborn != stream);
        let pid = match spawned.result {
            Ok(pid) => Pid::from_raw(pid),
            Err(errno) => {
                self.fail(stream, other(&format!("cannot start a process: {}", errno_text(errno))));
                None
            }
        };
        if let Some(pid) = pid {
            let early = self.early.remove(&pid);
            match (self.sessions.get_mut(&stream), early) {
                (Some(session), early) => {
                    session.born(pid, stream, &mut self.control);
                    match early {
                        Some(status) => session.ended(status, Instant::now()),
                        None => {
                            self.leaders.insert(pid, stream);
                        }
                    }
                }
                // Its session failed meanwhile: nobody waits for it.
                (None, None) => drop(kill_process(pid, Signal::KILL)),
                (None, Some(_)) => {}
            }
        }
        if self.unborn.is_empty() {
            self.early.clear();
        }
    }

    /// The old one was killed, by somebody inside or for want of memory.
    fn new_nursery(&mut self) {
        self.nursery = None;
        for stream in std::mem::take(&mut self.unborn) {
            self.fail(stream, other("the process that starts sessions was killed; try again"));
        }
        if self.phase != Phase::Serving {
            return;
        }
        let made = fork_nursery(&self.config).and_then(|(socket, pid)| {
            let (_, listener) = nursery::receive_ready(&socket)?;
            if let Some(listener) = listener {
                rename::answer(listener, &self.notifier)?;
            }
            Ok(Nursery { socket, pid })
        });
        // Without one, sessions that run go on, and requests for new ones are refused.
        self.nursery = made.ok();
    }

    pub(super) fn fail(&mut self, stream: u32, failure: Failure) {
        self.internal.remove(&stream);
        if let Some(session) = self.sessions.remove(&stream) {
            if let Some(pid) = session.pid() {
                self.leaders.remove(&pid);
            }
            self.control.control(stream, &Message::Error(failure));
        }
    }

    pub(super) fn finish(&mut self, stream: u32) {
        self.internal.remove(&stream);
        let Some(session) = self.sessions.remove(&stream) else { return };
        if let Some(pid) = session.pid() {
            self.leaders.remove(&pid);
        }
        let (status, sink) = session.finish();
        let answer = match (status, sink) {
            (None, _) => return,
            (Some(status), Sink::Peer) => {
                self.tell_all_moved();
                Message::Exited(status)
            }
            (Some(status), Sink::Collect { out, err, limit }) => repo_state_answer(status, &out, &err, limit),
        };
        self.control.control(stream, &answer);
    }

    pub(super) fn reap(&mut self, now: Instant) {
        loop {
            match wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
                Ok(Some((pid, status))) => self.reaped(pid, status, now),
                Ok(None) => return,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => {
                    self.childless = true;
                    return;
                }
            }
        }
    }

    /// A child was stopped. The nursery may be in the middle of a birth that somebody waits for: the newborn
    /// itself may have stopped it (`kill -STOP -1`), before its birth was told.
    fn stood_still(&self, pid: Pid) {
        if self.nursery.as_ref().is_some_and(|nursery| nursery.pid == pid) {
            let _ = kill_process(pid, Signal::CONT);
        }
    }

    fn reaped(&mut self, pid: Pid, status: WaitStatus, now: Instant) {
        let status = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => ExitStatus::Code(code),
            (None, Some(signal)) => ExitStatus::Signal(signal),
            (None, None) => return self.stood_still(pid),
        };
        if let Some(stream) = self.leaders.remove(&pid) {
            if let Some(session) = self.sessions.get_mut(&stream) {
                session.ended(status, now);
            }
        } else if self.worker.ended(pid, status, &self.notifier) {
            self.work_renames();
        } else if self.nursery.as_ref().is_some_and(|nursery| nursery.pid == pid) {
            // What it still said is read first; then its socket ends, and a new one is made.
            self.nursery_speaks();
        } else if !self.unborn.is_empty() {
            self.early.insert(pid, status);
        }
    }
}

/// Opens a session's descriptors: our ends, which do not block, and its own.
fn open_ends(size: Option<(u16, u16)>) -> io::Result<(Ends, Vec<OwnedFd>)> {
    if let Some((rows, cols)) = size {
        let pty = pty::open(rows, cols)?;
        rustix::io::ioctl_fionbio(&pty.master, true)?;
        return Ok((Ends::Tty(pty.master), vec![pty.slave]));
    }
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let (input, output, error) = (pipe()?, pipe()?, pipe()?);
    for fd in [&input.1, &output.0, &error.0] {
        rustix::io::ioctl_fionbio(fd, true)?;
    }
    Ok((Ends::Pipes(input.1, output.0, error.0), vec![input.0, output.1, error.1]))
}
