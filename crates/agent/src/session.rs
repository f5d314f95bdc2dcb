//! One session: a process that the agent started, its terminal or pipes, its credits.
//!
//! ```text
//!  Starting ──pid known and exec done──► Running ──leader reaped──► Draining ──► Exited
//!     └──error pipe──► Error                                          │
//!        until each output is at its end, or GRACE has passed and what is then readable was sent
//! ```
//!
//! Nothing is read from a process beyond the credit of its channel, and nothing is taken from the
//! peer beyond the window, so a session holds at most [`WINDOW`] bytes.

use crate::nursery::{Step, Trouble};
use crate::wire::Wire;
use rustix::process::Pid;
use sandbox_protocol::{Channel, ExitStatus, Failure, FailureKind, FrameType, MAX_PAYLOAD, Message, WINDOW};
use sandbox_sys::{pty, signals};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How long after the leader's end a background process may hold the output open before we stop
/// to wait for its end.
pub const GRACE: Duration = Duration::from_millis(100);

/// How long a terminal that nobody has open is left alone before it is looked at again.
const HUNG_UP_PAUSE: Duration = Duration::from_millis(100);

/// The most that is kept of the errors of a collected session.
const MAX_ERRORS: usize = 4096;

/// Where a session's output goes.
#[derive(Debug)]
pub enum Sink {
    /// To the peer, as it comes.
    Peer,
    /// Collected: the answer to a question of the peer's. Output, at most so many bytes, and errors.
    Collect {
        /// Standard output; one byte over the limit says that there was more.
        out: Vec<u8>,
        /// The beginning of standard error.
        err: Vec<u8>,
        /// The most bytes of output.
        limit: usize,
    },
}

/// One output channel of the process.
#[derive(Debug)]
struct Output {
    fd: Option<OwnedFd>,
    credit: u64,
    /// Once set: how much is still read before the channel is closed.
    left: Option<u64>,
    /// A terminal that nobody has open now.
    asleep_until: Option<Instant>,
}

impl Output {
    fn new(fd: Option<OwnedFd>) -> Self {
        Self { fd, credit: WINDOW, left: None, asleep_until: None }
    }
}

/// A session.
#[derive(Debug)]
pub struct Session {
    /// The command's name, for errors.
    name: String,
    cwd: String,
    sink: Sink,
    tty: Option<OwnedFd>,
    outputs: [Output; 2],
    input: Option<OwnedFd>,
    /// What the peer sent and the process has not taken yet; from `written` on.
    pending: Vec<u8>,
    written: usize,
    input_closing: bool,
    /// Bytes that the peer may still send.
    window: u64,
    errors: Option<OwnedFd>,
    /// A signal that came before there was a process.
    early_signal: Option<i32>,
    pid: Option<Pid>,
    status: Option<(ExitStatus, Instant)>,
}

/// Our ends of a session's descriptors.
#[derive(Debug)]
pub enum Ends {
    /// The terminal's master.
    Tty(OwnedFd),
    /// Standard input, output and error.
    Pipes(OwnedFd, OwnedFd, OwnedFd),
}

impl Session {
    /// Returns a session that waits for its process.
    pub fn new(name: String, cwd: String, ends: Ends, errors: OwnedFd, sink: Sink) -> io::Result<Self> {
        let (tty, input, stdout, stderr) = match ends {
            Ends::Tty(master) => (Some(master.try_clone()?), master.try_clone()?, master, None),
            Ends::Pipes(input, output, error) => (None, input, output, Some(error)),
        };
        Ok(Self {
            name,
            cwd,
            sink,
            tty,
            outputs: [Output::new(Some(stdout)), Output::new(stderr)],
            input: Some(input),
            pending: Vec::new(),
            written: 0,
            input_closing: false,
            window: WINDOW,
            errors: Some(errors),
            early_signal: None,
            pid: None,
            status: None,
        })
    }

    // ---- what to wait for ----------------------------------------------------------------

    /// The error pipe, until the exec was done.
    pub fn errors(&self) -> Option<&OwnedFd> {
        self.errors.as_ref()
    }

    /// The input, when there is something to write.
    pub fn wants_to_write(&self) -> Option<&OwnedFd> {
        self.input.as_ref().filter(|_| self.is_started() && self.written < self.pending.len())
    }

    /// Output channel `index`, when it may be read.
    pub fn wants_to_read(&self, index: usize, now: Instant) -> Option<&OwnedFd> {
        let output = &self.outputs[index];
        let awake = output.asleep_until.is_none_or(|until| until <= now);
        output.fd.as_ref().filter(|_| self.is_started() && output.credit > 0 && awake)
    }

    /// When something is to be done though nothing happened.
    pub fn deadline(&self) -> Option<Instant> {
        let grace = self.status.and_then(|(_, since)| {
            let waits = self.outputs.iter().any(|output| output.fd.is_some() && output.left.is_none());
            waits.then_some(since + GRACE)
        });
        self.outputs.iter().filter_map(|output| output.asleep_until).chain(grace).min()
    }

    fn is_started(&self) -> bool {
        self.errors.is_none() && self.pid.is_some()
    }

    // ---- its start -----------------------------------------------------------------------

    /// The nursery has made its process.
    pub fn born(&mut self, pid: Pid, stream: u32, wire: &mut Wire) {
        self.pid = Some(pid);
        self.tell_started(stream, wire);
    }

    /// The error pipe is readable: either the exec was done, or it says why not.
    pub fn exec_done(&mut self, stream: u32, wire: &mut Wire) -> Result<(), Failure> {
        let mut record = [0; 8];
        let length = match self.errors.as_ref().map(|fd| rustix::io::read(fd, &mut record)) {
            Some(Ok(length)) => length,
            Some(Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN)) | None => return Ok(()),
            Some(Err(_)) => 0,
        };
        self.errors = None;
        match Trouble::decode(&record[..length]) {
            Some(trouble) => Err(self.failure(trouble)),
            None => {
                self.tell_started(stream, wire);
                Ok(())
            }
        }
    }

    fn tell_started(&mut self, stream: u32, wire: &mut Wire) {
        if self.is_started()
            && let Some(signal) = self.early_signal.take()
        {
            self.signal(signal);
        }
        if let (Some(pid), None, Sink::Peer) = (self.pid, &self.errors, &self.sink) {
            wire.control(stream, &Message::Started { pid: pid.as_raw_nonzero().get() as u32 });
        }
    }

    fn failure(&self, trouble: Trouble) -> Failure {
        let why = errno_text(trouble.errno);
        let (kind, message) = match trouble.step {
            Step::Setup => (FailureKind::Other, format!("cannot set up '{}': {why}", self.name)),
            Step::Directory => (FailureKind::NoDirectory, format!("cannot change to '{}': {why}", self.cwd)),
            Step::Find => (FailureKind::NotFound, format!("cannot run '{}': {why}", self.name)),
            Step::Execute => (FailureKind::CannotExecute, format!("cannot execute '{}': {why}", self.name)),
        };
        Failure { kind, message }
    }

    // ---- from the peer -------------------------------------------------------------------

    /// Input from the peer. An error when it sent more than it was granted.
    pub fn take_input(&mut self, bytes: &[u8], stream: u32, wire: &mut Wire) -> Result<(), Failure> {
        let Some(window) = self.window.checked_sub(bytes.len() as u64) else {
            return Err(Failure { kind: FailureKind::Limit, message: "more input than was granted".into() });
        };
        self.window = window;
        if self.input.is_none() {
            // Nobody reads it any more; the peer must not wait for that.
            self.grant(bytes.len() as u64, stream, wire);
            return Ok(());
        }
        self.pending.extend_from_slice(bytes);
        self.write_input(stream, wire);
        Ok(())
    }

    /// Input that does not come from the peer, whole and followed by its end.
    pub fn preset_input(&mut self, bytes: Vec<u8>) {
        self.pending = bytes;
        self.input_closing = true;
    }

    /// The peer has no more input.
    pub fn close_input(&mut self) {
        if self.tty.is_none() {
            self.input_closing = true;
            self.close_input_if_done();
        }
    }

    fn close_input_if_done(&mut self) {
        if self.input_closing && self.written == self.pending.len() {
            self.input = None;
        }
    }

    /// Writes what the process takes now.
    pub fn write_input(&mut self, stream: u32, wire: &mut Wire) {
        let mut done = 0;
        while let (Some(fd), true) = (&self.input, self.written < self.pending.len()) {
            match rustix::io::write(fd, &self.pending[self.written..]) {
                Ok(n) => {
                    self.written += n;
                    done += n as u64;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                Err(_) => {
                    done += (self.pending.len() - self.written) as u64;
                    self.written = self.pending.len();
                    self.input = None;
                }
            }
        }
        if self.written == self.pending.len() {
            self.pending = Vec::new();
            self.written = 0;
        }
        if done > 0 {
            self.grant(done, stream, wire);
        }
        self.close_input_if_done();
    }

    fn grant(&mut self, bytes: u64, stream: u32, wire: &mut Wire) {
        if matches!(self.sink, Sink::Peer) {
            self.window += bytes;
            wire.control(stream, &Message::Credit { channel: Channel::Stdin, bytes });
        }
    }

    /// The peer has consumed output.
    pub fn credit(&mut self, channel: Channel, bytes: u64) {
        let index = match channel {
            Channel::Stdout => 0,
            Channel::Stderr => 1,
            Channel::Stdin => return,
        };
        let credit = &mut self.outputs[index].credit;
        *credit = credit.saturating_add(bytes);
    }

    /// Sets the terminal's size; no effect without one.
    pub fn resize(&self, rows: u16, cols: u16) {
        if let Some(tty) = &self.tty {
            let _ = pty::set_size(tty, rows, cols);
        }
    }

    /// Sends a signal to the terminal's foreground group, or to the session's own group.
    pub fn signal(&mut self, signal: i32) {
        if !self.is_started() {
            self.early_signal = Some(signal);
            return;
        }
        let Some(leader) = self.pid.filter(|_| self.status.is_none()) else { return };
        let group = self.tty.as_ref().and_then(pty::foreground).unwrap_or(leader);
        let _ = signals::send_to_group(group, signal);
    }

    /// Ends the session's own process group at once.
    pub fn kill(&self) {
        if let Some(leader) = self.pid.filter(|_| self.status.is_none()) {
            let _ = signals::send_to_group(leader, rustix::process::Signal::KILL.as_raw());
        }
    }

    /// The terminal goes away: HUP to its leader's group.
    pub fn hang_up(&self) {
        if let (Some(_), Some(leader), None) = (&self.tty, self.pid, self.status) {
            let _ = signals::send_to_group(leader, rustix::process::Signal::HUP.as_raw());
        }
    }

    // ---- from the process ----------------------------------------------------------------

    /// Its leader.
    pub fn pid(&self) -> Option<Pid> {
        self.pid
    }

    /// The leader was reaped.
    pub fn ended(&mut self, status: ExitStatus, now: Instant) {
        self.status = Some((status, now));
        self.input = None;
        for output in &mut self.outputs {
            output.asleep_until = None;
        }
    }

    /// Output channel `index` is readable: sends at most one frame of it.
    pub fn read_output(&mut self, index: usize, stream: u32, wire: &mut Wire, scratch: &mut [u8], now: Instant) {
        let ended = self.status.is_some();
        let output = &mut self.outputs[index];
        let Some(fd) = &output.fd else { return };
        let limit = output.credit.min(output.left.unwrap_or(u64::MAX)).min(MAX_PAYLOAD as u64) as usize;
        match rustix::io::read(fd, &mut scratch[..limit]) {
            // A terminal that nobody has open may be opened again while its session lives.
            Ok(0) | Err(rustix::io::Errno::IO) if self.tty.is_some() && !ended => {
                output.asleep_until = Some(now + HUNG_UP_PAUSE);
            }
            Ok(0) => output.fd = None,
            Ok(length) => {
                output.asleep_until = None;
                if let Some(left) = &mut output.left {
                    *left -= length as u64;
                    if *left == 0 {
                        output.fd = None;
                    }
                }
                match &mut self.sink {
                    Sink::Peer => {
                        output.credit -= length as u64;
                        let kind = if index == 0 { FrameType::Stdout } else { FrameType::Stderr };
                        wire.data(kind, stream, &scratch[..length]);
                    }
                    Sink::Collect { out, err, limit } => {
                        let (sink, limit) = if index == 0 { (out, *limit + 1) } else { (err, MAX_ERRORS) };
                        let room = limit.saturating_sub(sink.len());
                        sink.extend_from_slice(&scratch[..length.min(room)]);
                    }
                }
            }
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(_) => output.fd = None,
        }
    }

    /// Does what time has brought; true when the session is over.
    pub fn is_over(&mut self, now: Instant) -> bool {
        let Some((_, since)) = self.status else { return false };
        if now >= since + GRACE {
            for output in &mut self.outputs {
                // What is readable now was written before or soon after the leader's end; what a
                // background process writes from here on has no reader.
                let Some(fd) = output.fd.as_ref().filter(|_| output.left.is_none()) else { continue };
                match rustix::io::ioctl_fionread(fd) {
                    Ok(0) | Err(_) => output.fd = None,
                    Ok(readable) => output.left = Some(readable),
                }
            }
        }
        self.outputs.iter().all(|output| output.fd.is_none()) && self.is_started()
    }

    /// Returns how it ended and what was collected.
    pub fn finish(self) -> (Option<ExitStatus>, Sink) {
        (self.status.map(|(status, _)| status), self.sink)
    }
}

/// Returns the system's words for an error number, without the number.
pub fn errno_text(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}
