//! The poll loop of PID 1: control channel, sessions, relay, signals, nursery, helpers.
//!
//! One iteration builds the list of descriptors that may make progress (credit, buffers), waits,
//! and lets each make one step. The loop itself never blocks elsewhere.
//!
//! ```text
//! Serving ──Shutdown, SIGTERM──► Ending (TERM sent) ──grace──► Killing (KILL sent) ──► exit 0
//!    └──control channel closed──► exit 0 at once       └──nobody left──────────────────►
//! ```

use crate::nursery::{self, Spawn, Spawned, environment};
use crate::refs::{Debounce, Poller};
use crate::relay::{Relay, ToolId};
use crate::rename::{self, Notifier, Worker};
use crate::session::{Ends, Session, Sink, errno_text};
use crate::start::fork_nursery;
use crate::wire::{Wire, WireError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};
use sandbox_protocol::{
    AgentConfig, Exec, ExitStatus, Failure, FailureKind, Frame, FrameType, MAX_PAYLOAD, Message, PROGRAM,
    REPO_STATE_VERB, RepoQuestion, RepoState, VERSIONS, escape_bytes, unescape_bytes,
};
use sandbox_sys::signals::{self, SignalFd};
use sandbox_sys::{pty, socket};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a `SIGTERM` from outside gives the processes inside.
const DEFAULT_GRACE: Duration = Duration::from_secs(5);

/// How long after KILL the last process may take.
const KILL_GRACE: Duration = Duration::from_secs(2);

/// The most that the state of a repository may be, in bytes of JSON.
const MAX_STATE: usize = 16 * 1024 * 1024;

/// The process that sessions descend from.
#[derive(Debug)]
pub struct Nursery {
    /// Our end of its socket.
    pub socket: OwnedFd,
    /// Its pid.
    pub pid: Pid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    Ending { until: Instant },
    Killing { until: Instant },
}

/// What a descriptor in the poll list is.
#[derive(Clone, Copy, Debug)]
enum Source {
    Control,
    Signals,
    Nursery,
    Notifier,
    Listener,
    Tool(ToolId),
    Errors(u32),
    Input(u32),
    Output(u32, usize),
}

/// PID 1.
#[derive(Debug)]
pub struct Server {
    control: Wire,
    greeted: bool,
    config: AgentConfig,
    nursery: Option<Nursery>,
    signals: SignalFd,
    sessions: BTreeMap<u32, Session>,
    /// Session leaders that run.
    leaders: HashMap<Pid, u32>,
    /// Requests that the nursery has not answered, by their id (the stream).
    unborn: Vec<u32>,
    /// Children that ended while the nursery's answer, which may name them, was under way.
    early: HashMap<Pid, ExitStatus>,
    relay: Option<Relay>,
    notifier: Arc<Notifier>,
    worker: Worker,
    refs: Debounce,
    poller: Poller,
    phase: Phase,
    childless: bool,
    scratch: Vec<u8>,
}

impl Server {
    /// Returns the loop over what the start has set up.
    pub fn new(
        control: Wire,
        config: AgentConfig,
        nursery: Nursery,
        signals: SignalFd,
        notifier: Arc<Notifier>,
        relay: Option<Relay>,
    ) -> Self {
        let poller = Poller::new(&config, notifier.is_answering());
        Self {
            control,
            greeted: false,
            nursery: Some(nursery),
            signals,
            sessions: BTreeMap::new(),
            leaders: HashMap::new(),
            unborn: Vec::new(),
            early: HashMap::new(),
            relay,
            notifier,
            worker: Worker::default(),
            refs: Debounce::default(),
            poller,
            phase: Phase::Serving,
            childless: false,
            scratch: vec![0; MAX_PAYLOAD],
            config,
        }
    }

    /// Serves until the end.
    pub fn run(mut self) -> ExitCode {
        loop {
            match self.turn() {
                Ok(false) => {}
                Ok(true) => {
                    self.last_words();
                    return ExitCode::SUCCESS;
                }
                // Without a control channel there is nobody to serve: our end is everybody's end.
                Err(WireError::Closed) => return ExitCode::SUCCESS,
                Err(_) => return ExitCode::FAILURE,
            }
        }
    }

    /// Gives the peer a moment to take what was said last.
    fn last_words(&mut self) {
        let until = Instant::now() + Duration::from_secs(1);
        while self.control.flush().is_ok() && self.control.backlog() > 0 && Instant::now() < until {
            let mut fds = [PollFd::new(&self.control, PollFlags::OUT)];
            let _ = poll(&mut fds, Some(&timespec(Duration::from_millis(100))));
        }
    }

    /// One turn; true when everything is over.
    fn turn(&mut self) -> Result<bool, WireError> {
        self.control.flush()?;
        let (events, now) = self.wait()?;
        for (source, ready) in events {
            self.step(source, ready, now)?;
        }
        self.timers(now);
        Ok(self.is_over(now))
    }

    fn wait(&self) -> Result<(Vec<(Source, PollFlags)>, Instant), WireError> {
        let now = Instant::now();
        let full = self.control.is_full();
        let mut sources = Vec::with_capacity(8 + 3 * self.sessions.len());
        let mut fds = Vec::with_capacity(sources.capacity());
        let mut add = |source, fd, flags| {
            sources.push(source);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        };
        let control_flags = if self.control.backlog() > 0 { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        add(Source::Control, self.control.as_fd(), control_flags);
        // Before the signals: an answer that names a child should be known before that child's end.
        if let Some(nursery) = &self.nursery {
            add(Source::Nursery, nursery.socket.as_fd(), PollFlags::IN);
        }
        add(Source::Notifier, self.notifier.as_fd(), PollFlags::IN);
        for (stream, session) in &self.sessions {
            if let Some(fd) = session.errors() {
                add(Source::Errors(*stream), fd.as_fd(), PollFlags::IN);
            }
            if let Some(fd) = session.wants_to_write() {
                add(Source::Input(*stream), fd.as_fd(), PollFlags::OUT);
            }
            for index in [0, 1] {
                if !full && let Some(fd) = session.wants_to_read(index, now) {
                    add(Source::Output(*stream, index), fd.as_fd(), PollFlags::IN);
                }
            }
        }
        if let Some(relay) = &self.relay {
            if let Some(listener) = relay.wants_to_accept(now) {
                add(Source::Listener, listener, PollFlags::IN);
            }
            for (id, wire) in relay.tools() {
                let mut flags = if full || wire.is_full() { PollFlags::empty() } else { PollFlags::IN };
                flags.set(PollFlags::OUT, wire.backlog() > 0);
                add(Source::Tool(id), wire.as_fd(), flags);
            }
        }
        // Last: what a process wrote before its end is seen before that.
        add(Source::Signals, self.signals.as_fd(), PollFlags::IN);

        let timeout = self.deadline(now).map(|at| timespec(at.saturating_duration_since(now)));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let ready = fds.iter().map(PollFd::revents);
        let events = sources.iter().copied().zip(ready).filter(|(_, flags)| !flags.is_empty()).collect();
        Ok((events, Instant::now()))
    }

    fn deadline(&self, now: Instant) -> Option<Instant> {
        let phase = match self.phase {
            Phase::Serving => None,
            Phase::Ending { until } | Phase::Killing { until } => Some(until),
        };
        let sessions = self.sessions.values().filter_map(Session::deadline);
        let relay = self.relay.as_ref().and_then(|relay| relay.deadline(now));
        sessions.chain(phase).chain(relay).chain(self.refs.deadline()).chain(self.poller.deadline(now)).min()
    }

    fn step(&mut self, source: Source, flags: PollFlags, now: Instant) -> Result<(), WireError> {
        match source {
            Source::Control => {
                if flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                    self.control.fill(&mut self.scratch)?;
                    while let Some(frame) = self.control.next_frame()? {
                        self.frame(frame)?;
                    }
                }
            }
            Source::Signals => {
                while let Some(signal) = self.signals.next()? {
                    if signal == Signal::TERM.as_raw() {
                        self.shut_down(DEFAULT_GRACE, now);
                    }
                }
                self.reap(now);
            }
            Source::Nursery => self.nursery_speaks(),
            Source::Notifier => {
                for gitdir in self.notifier.take_refs() {
                    self.refs.note(gitdir, now);
                }
                self.work_renames();
            }
            Source::Errors(stream) => {
                if let Some(session) = self.sessions.get_mut(&stream)
                    && let Err(failure) = session.exec_done(stream, &mut self.control)
                {
                    self.fail(stream, failure);
                }
            }
            Source::Input(stream) => {
                if let Some(session) = self.sessions.get_mut(&stream) {
                    session.write_input(stream, &mut self.control);
                }
            }
            Source::Output(stream, index) => {
                if let Some(session) = self.sessions.get_mut(&stream) {
                    session.read_output(index, stream, &mut self.control, &mut self.scratch, now);
                    self.poller.activity(now);
                }
            }
            Source::Listener => {
                if let Some(relay) = &mut self.relay {
                    relay.accept();
                }
            }
            Source::Tool(id) => {
                if let Some(relay) = &mut self.relay {
                    relay.step(id, flags, &mut self.control, &mut self.scratch);
                }
            }
        }
        Ok(())
    }

    fn timers(&mut self, now: Instant) {
        let over: Vec<u32> =
            self.sessions.iter_mut().filter_map(|(stream, session)| session.is_over(now).then_some(*stream)).collect();
        for stream in over {
            self.finish(stream);
        }
        for gitdir in self.poller.look(now) {
            self.refs.note(gitdir, now);
        }
        let due = self.refs.take_due(now);
        self.tell_moved(due);
    }

    fn tell_moved(&mut self, gitdirs: impl IntoIterator<Item = Vec<u8>>) {
        for gitdir in gitdirs {
            self.control.control(0, &Message::RefsMoved { gitdir: escape_bytes(&gitdir) });
        }
    }

    /// What a session has moved is told before its end is: the peer may stop everything then.
    fn tell_all_moved(&mut self) {
        let mut moved = self.notifier.take_refs();
        moved.extend(self.refs.take_all());
        moved.extend(self.poller.look_now());
        self.work_renames();
        self.tell_moved(moved);
    }

    // ---- the peer ------------------------------------------------------------------------

    fn frame(&mut self, frame: Frame) -> Result<(), WireError> {
        let stream = frame.stream;
        if stream % 2 == 1 {
            if let Some(relay) = &mut self.relay {
                relay.take_from_host(frame, &mut self.control)?;
            }
            return Ok(());
        }
        if frame.kind == FrameType::Control {
            let message = frame.message()?;
            return self.message(stream, message);
        }
        if frame.kind == FrameType::Stdin
            && let Some(session) = self.sessions.get_mut(&stream)
        {
            self.poller.activity(Instant::now());
            if let Err(failure) = session.take_input(&frame.payload, stream, &mut self.control) {
                session.kill();
                self.fail(stream, failure);
            }
        }
        Ok(())
    }

    fn message(&mut self, stream: u32, message: Message) -> Result<(), WireError> {
        match message {
            Message::Hello(hello) => {
                if hello.max < VERSIONS.0 || hello.min > VERSIONS.1 {
                    let message = format!("this agent speaks protocol {} to {}", VERSIONS.0, VERSIONS.1);
                    self.control.control(0, &Message::Error(Failure { kind: FailureKind::Unsupported, message }));
                    self.last_words();
                    return Err(WireError::Closed);
                }
                self.greeted = true;
            }
            Message::Shutdown { grace_ms } => self.shut_down(Duration::from_millis(grace_ms), Instant::now()),
            Message::Exec(exec) => self.exec(stream, exec),
            Message::AskRepoState { path, granted } => self.ask_repo_state(stream, RepoQuestion { path, granted }),
            message => {
                let Some(session) = self.sessions.get_mut(&stream) else { return Ok(()) };
                match message {
                    Message::Signal { signal } => session.signal(signal),
                    Message::Resize(size) => session.resize(size.rows, size.cols),
                    Message::CloseStdin => session.close_input(),
                    Message::Credit { channel, bytes } => session.credit(channel, bytes),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn exec(&mut self, stream: u32, exec: Exec) {
        let argv: Vec<Vec<u8>> = exec.argv.iter().map(|text| unescape_bytes(text)).collect();
        let cwd = if exec.cwd.is_empty() { self.config.cwd.to_string_lossy().into_owned() } else { exec.cwd };
        let spawn = Spawn {
            id: stream,
            tty: exec.tty.is_some(),
            env: environment(&self.config.env, &exec.env, cwd.as_bytes()),
            cwd: cwd.into_bytes(),
            argv,
        };
        let size = exec.tty.map(|size| (size.rows, size.cols));
        if let Err(failure) = self.begin(spawn, size, Sink::Peer, None) {
            self.control.control(stream, &Message::Error(failure));
        }
    }

    fn ask_repo_state(&mut self, stream: u32, question: RepoQuestion) {
        let spawn = Spawn {
            id: stream,
            tty: false,
            cwd: b"/".to_vec(),
            argv: vec![PROGRAM.into(), REPO_STATE_VERB.into()],
            env: environment(&self.config.env, &[], b"/"),
        };
        let question = serde_json::to_vec(&question).expect("strings are JSON");
        let sink = Sink::Collect { out: Vec::new(), err: Vec::new(), limit: MAX_STATE };
        if let Err(failure) = self.begin(spawn, None, sink, Some(question)) {
            self.control.control(stream, &Message::Error(failure));
        }
    }

    // ---- sessions ------------------------------------------------------------------------

    fn begin(
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
            return Err(other("the sandbox is being stopped"));
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

    fn nursery_speaks(&mut self) {
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

    fn fail(&mut self, stream: u32, failure: Failure) {
        if let Some(session) = self.sessions.remove(&stream) {
            if let Some(pid) = session.pid() {
                self.leaders.remove(&pid);
            }
            self.control.control(stream, &Message::Error(failure));
        }
    }

    fn finish(&mut self, stream: u32) {
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

    fn reap(&mut self, now: Instant) {
        loop {
            match wait(WaitOptions::NOHANG) {
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

    fn reaped(&mut self, pid: Pid, status: WaitStatus, now: Instant) {
        let status = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => ExitStatus::Code(code),
            (None, Some(signal)) => ExitStatus::Signal(signal),
            (None, None) => return,
        };
        if let Some(stream) = self.leaders.remove(&pid) {
            if let Some(session) = self.sessions.get_mut(&stream) {
                session.ended(status, now);
            }
        } else if self.worker.ended(pid, status) {
            self.work_renames();
        } else if self.nursery.as_ref().is_some_and(|nursery| nursery.pid == pid) {
            // What it still said is read first; then its socket ends, and a new one is made.
            self.nursery_speaks();
        } else if !self.unborn.is_empty() {
            self.early.insert(pid, status);
        }
    }

    fn work_renames(&mut self) {
        if self.phase != Phase::Serving {
            // Whoever waits for one can end only when it is answered.
            self.notifier.refuse_jobs();
        } else if self.worker.next(&self.notifier) {
            self.childless = false;
        }
    }

    // ---- the end -------------------------------------------------------------------------

    fn shut_down(&mut self, grace: Duration, now: Instant) {
        if self.phase != Phase::Serving {
            return;
        }
        self.phase = Phase::Ending { until: now + grace };
        // It ends when its socket does, after what it was asked before.
        self.nursery = None;
        self.work_renames();
        for session in self.sessions.values() {
            session.hang_up();
        }
        signals::send_to_all(Signal::TERM.as_raw());
        signals::send_to_all(Signal::CONT.as_raw());
        self.reap(now);
    }

    fn is_over(&mut self, now: Instant) -> bool {
        match self.phase {
            Phase::Serving => false,
            _ if self.childless && self.sessions.is_empty() => true,
            Phase::Ending { until } if self.childless => {
                // Only output that the peer does not take is left.
                self.phase = Phase::Killing { until: until.min(now + Duration::from_millis(300)) };
                false
            }
            Phase::Ending { until } if now >= until => {
                signals::send_to_all(Signal::KILL.as_raw());
                self.phase = Phase::Killing { until: now + KILL_GRACE };
                false
            }
            Phase::Killing { until } => now >= until,
            Phase::Ending { .. } => false,
        }
    }
}

fn other(message: &str) -> Failure {
    Failure { kind: FailureKind::Other, message: message.into() }
}

fn timespec(duration: Duration) -> Timespec {
    // Rounded up: a poll that ends just before its time would spin.
    let duration = duration + Duration::from_micros(50);
    Timespec { tv_sec: duration.as_secs() as i64, tv_nsec: i64::from(duration.subsec_nanos()) }
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

fn repo_state_answer(status: ExitStatus, bytes: &[u8], errors: &[u8], limit: usize) -> Message {
    let failed = |message: String| Message::Error(other(&message));
    if status != ExitStatus::Code(0) {
        let said = String::from_utf8_lossy(errors);
        let said = said.lines().next().unwrap_or_default();
        return failed(match said.strip_prefix("error: ").unwrap_or(said) {
            "" => format!("reading the repository failed with status {}", status.shell()),
            said => said.chars().take(500).collect(),
        });
    }
    if bytes.len() > limit {
        return failed("the state of the repository is too large".into());
    }
    match serde_json::from_slice::<RepoState>(bytes) {
        Ok(state) => {
            let message = Message::RepoState(state);
            match serde_json::to_vec(&message) {
                Ok(json) if json.len() <= MAX_PAYLOAD => message,
                _ => Message::Error(Failure {
                    kind: FailureKind::Limit,
                    message: format!(
                        "the state of the repository does not fit a message: run `{REPO_STATE_VERB}` as a session"
                    ),
                }),
            }
        }
        Err(error) => failed(format!("the state of the repository is not readable: {error}")),
    }
}
