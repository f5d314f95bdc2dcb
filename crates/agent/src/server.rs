//! The poll loop of PID 1: control channel, sessions, relay, signals, nursery, helpers.
//!
//! One iteration builds the list of descriptors that may make progress (credit, buffers), waits,
//! and lets each make one step. The loop itself never blocks elsewhere.
//!
//! ```text
//! Serving ──Shutdown, SIGTERM──► Ending (TERM sent) ──grace──► Killing (KILL sent) ──► exit 0
//!    └──control channel closed──► exit 0 at once       └──nobody left──────────────────►
//! ```

mod hold;
mod peer;
mod sessions;

use crate::refs::{Debounce, Poller};
use crate::relay::{Relay, ToolId};
use crate::rename::{Notifier, Worker};
use crate::session::Session;
use crate::wire::{Wire, WireError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal};
use sandbox_protocol::{AgentConfig, ExitStatus, Failure, FailureKind, MAX_PAYLOAD, Message, escape_bytes};
use sandbox_sys::program::Quiet;
use sandbox_sys::signals::{self, SignalFd};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a `SIGTERM` from outside gives the processes inside.
const DEFAULT_GRACE: Duration = Duration::from_secs(5);

/// How long after KILL the last process may take.
const KILL_GRACE: Duration = Duration::from_secs(2);

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
    /// Those that were started for the supervisor, not for a user.
    internal: HashSet<u32>,
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
    /// When we last had anything to do.
    quiet: Quiet,
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
            internal: HashSet::new(),
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
            quiet: Quiet::new(),
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

    fn wait(&mut self) -> Result<(Vec<(Source, PollFlags)>, Instant), WireError> {
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

        let timeout = self.deadline(now).map(|at| at.saturating_duration_since(now));
        match poll(&mut fds, self.quiet.wait(timeout).map(timespec).as_ref()) {
            Ok(ready) => self.quiet.waited(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
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

    fn work_renames(&mut self) {
        if self.phase != Phase::Serving {
            // Whoever waits for one can end only when it is answered.
            self.notifier.refuse_jobs();
        } else {
            self.worker.next(&self.notifier);
        }
    }

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
        // From here on nothing is forked: once without children is for ever.
        self.childless = false;
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
