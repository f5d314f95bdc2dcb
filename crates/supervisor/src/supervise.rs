//! The poll loop. Each pass: wait, read from who is readable, act on frames, write.

use crate::children::{Helper, pair};
use crate::log::RingLog;
use crate::peer::Peer;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sandbox_core::driver::{Driver, DriverError, Machine, ProcessIdentity};
use sandbox_core::launch::LaunchSpec;
use sandbox_core::record::StatusRecord;
use sandbox_core::store::{SandboxDir, StoreError, read_json, write_json};
use sandbox_protocol::{
    Channel, Exec, ExitStatus, Failure, FailureKind, Frame, FrameType, Hello, MAX_PAYLOAD, Message, SessionStatus,
    Status, VERSIONS, WINDOW,
};
use sandbox_sys::lock::FileLock;
use sandbox_sys::process;
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long a moved ref waits for further moves before it is brought home.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// How long the last commit-back may take before the sandbox is stopped without it.
const BRING_HOME: Duration = Duration::from_secs(120);
/// How long the agent may take beyond the grace before it is killed.
const SHUTDOWN_EXTRA: Duration = Duration::from_secs(5);
/// Clients at once.
const MAX_CLIENTS: usize = 256;
/// An attached client that is this far behind slows the main session down.
const SLOW_CLIENT: usize = 256 * 1024;
/// Seconds between TERM and KILL when `--timeout` ends the command.
const TIMEOUT_GRACE: Duration = Duration::from_secs(10);

/// What a supervisor needs to know.
#[derive(Debug)]
pub struct Config {
    /// The sandbox's directory.
    pub dir: SandboxDir,
    /// What to launch.
    pub spec: LaunchSpec,
    /// The client that asked for it, if it waits.
    pub first_client: Option<UnixStream>,
    /// End when the last session has ended (there was one).
    pub once: bool,
    /// End the main session after this long.
    pub timeout: Option<Duration>,
    /// The sandbox's lock, held for as long as we live.
    pub lock: FileLock,
    /// The command that brings commits home; it gets a client connection as standard input
    /// and prints one line per ref.
    pub commit_back: Vec<String>,
    /// The command that serves the remote `host`; repository number and `GIT_PROTOCOL` are appended.
    pub serve_host: Vec<String>,
    /// Signals that ask for a stop, as a descriptor that becomes readable.
    pub terminate: Option<OwnedFd>,
}

/// Why a supervisor ended early.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// The driver could not launch.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// State could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The control socket or the poll loop failed.
    #[error("cannot {step}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

fn step(step: &'static str) -> impl FnOnce(io::Error) -> SuperviseError {
    move |source| SuperviseError::Io { step, source }
}

type ClientId = u64;
/// A stream as a client numbers it.
type ClientStream = (ClientId, u32);

/// What an agent stream is for.
#[derive(Debug)]
enum Route {
    /// A session; its client, unless that went away, and whether it is the main one.
    Session { owner: Option<ClientStream>, argv: Vec<String>, internal: bool, tty: bool },
    /// The main session (its state is in [`Main`]).
    Main,
    /// A question that a client asked.
    Question(ClientStream),
}

/// The main session.
#[derive(Debug)]
struct Main {
    stream: u32,
    argv: Vec<String>,
    attached: Vec<ClientStream>,
    exit: Option<ExitStatus>,
    last_output: Option<Instant>,
    /// Input of all attached clients that waits for the agent's window.
    input: Vec<u8>,
    input_from: Vec<(ClientStream, usize)>,
    window: u64,
    /// Credit that is held back while an attached client is slow.
    owed: [u64; 2],
    deadline: Option<(Instant, bool)>,
}

/// Someone inside who asked the supervisor for something.
#[derive(Debug)]
struct Serve {
    helper: Helper,
    socket: UnixStream,
    window: u64,
    input: Vec<u8>,
    input_closed: bool,
    output_closed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// The last commit-back runs; then shut down with this grace.
    BringingHome {
        grace_ms: u64,
        until: Instant,
    },
    /// The agent was told; kill at this instant.
    ShuttingDown {
        until: Instant,
    },
}

/// A commit-back that runs, and who waits for one.
#[derive(Debug, Default)]
struct Bring {
    running: Option<(Helper, UnixStream, Vec<u8>)>,
    /// A ref moved since the last one was started; run again not before this instant.
    due: Option<Instant>,
    /// A ref moved that is not known to be home.
    moved: bool,
    /// They asked before the running one started: it answers them.
    waiting: Vec<Waiter>,
    /// They asked while one ran: the next one answers them.
    next: Vec<Waiter>,
}

#[derive(Clone, Copy, Debug)]
enum Waiter {
    Client(ClientStream),
    Inside(u32),
}

struct Supervisor {
    dir: SandboxDir,
    machine: Box<dyn Machine>,
    agent: Peer,
    agent_hello: Option<Hello>,
    listener: UnixListener,
    clients: HashMap<ClientId, Peer>,
    next_client: ClientId,
    routes: HashMap<u32, Route>,
    streams: HashMap<ClientStream, u32>,
    next_stream: u32,
    main: Option<Main>,
    had_session: bool,
    once: bool,
    timeout: Option<Duration>,
    log: RingLog,
    status: StatusRecord,
    phase: Phase,
    stop_waiters: Vec<ClientStream>,
    bring: Bring,
    bring_client: Option<ClientId>,
    serves: HashMap<u32, Serve>,
    commit_back: Vec<String>,
    serve_host: Vec<String>,
    terminate: Option<OwnedFd>,
}

/// Launches the sandbox and runs until it is gone. Must be called by the main thread of a
/// process without other threads.
pub fn supervise(config: Config, driver: &dyn Driver) -> Result<(), SuperviseError> {
    let machine = driver.launch(&config.spec)?;
    let agent = Peer::new(machine.control().try_clone().map_err(step("use the control channel"))?)
        .map_err(step("use the control channel"))?;
    let listener = listen(&config.dir).map_err(step("listen on the control socket"))?;
    let log = RingLog::open(&config.dir.log()).map_err(step("open the log"))?;
    let pid = std::process::id();
    let identity = (|| -> io::Result<ProcessIdentity> {
        Ok(ProcessIdentity { pid, start_time: process::start_time(pid)?, boot_id: process::boot_id()? })
    })()
    .map_err(step("identify the supervisor"))?;
    // How the last main command ended is still true until there is a new one.
    let before: StatusRecord = read_json(&config.dir.status())?.unwrap_or_default();
    let status = StatusRecord {
        exited: before.exited,
        timed_out: before.timed_out,
        supervisor: Some(identity),
        init: Some(machine.process().clone()),
        started: Some(now()),
        notes: machine.notes().to_vec(),
        ..StatusRecord::default()
    };
    write_json(&config.dir.status(), &status, false)?;
    let mut supervisor = Supervisor {
        dir: config.dir,
        machine,
        agent,
        agent_hello: None,
        listener,
        clients: HashMap::new(),
        next_client: 1,
        routes: HashMap::new(),
        streams: HashMap::new(),
        next_stream: 2,
        main: None,
        had_session: false,
        once: config.once,
        timeout: config.timeout,
        log,
        status,
        phase: Phase::Running,
        stop_waiters: Vec::new(),
        bring: Bring::default(),
        bring_client: None,
        serves: HashMap::new(),
        commit_back: config.commit_back,
        serve_host: config.serve_host,
        terminate: config.terminate,
    };
    supervisor.agent.control(0, &Message::Hello(our_hello(Vec::new())));
    if let Some(stream) = config.first_client {
        supervisor.accept(stream);
    }
    let result = supervisor.run();
    // Held until here: nobody starts a second life of this sandbox before the first one is gone.
    drop(config.lock);
    result
}

fn our_hello(enforced: Vec<String>) -> Hello {
    Hello { min: VERSIONS.0, max: VERSIONS.1, features: Vec::new(), enforced }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or(0)
}

/// Binds `ctl` through a descriptor of its directory: a path may be longer than a socket address.
fn listen(dir: &SandboxDir) -> io::Result<UnixListener> {
    use rustix::fs::{Mode, OFlags};
    let _ = std::fs::remove_file(dir.ctl());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(dir.path(), flags, Mode::empty())?;
    let path = format!("/proc/self/fd/{}/ctl", std::os::fd::AsRawFd::as_raw_fd(&fd));
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn failure(kind: FailureKind, message: impl Into<String>) -> Message {
    Message::Error(Failure { kind, message: message.into() })
}

/// Who became readable.
enum Ready {
    Agent,
    Listener,
    Machine,
    Terminate,
    Client(ClientId),
    BringOutput,
    BringEnd,
    ServeSocket(u32),
    ServeEnd(u32),
}

impl Supervisor {
    fn run(&mut self) -> Result<(), SuperviseError> {
        loop {
            self.agent.flush();
            for client in self.clients.values_mut() {
                client.flush();
            }
            self.sweep_clients();
            if self.agent.gone {
                return self.gone();
            }
            let ready = self.wait().map_err(step("wait for the sandbox"))?;
            for who in ready {
                match who {
                    Ready::Agent => self.agent_readable(),
                    Ready::Listener => {
                        while let Ok((stream, _)) = self.listener.accept() {
                            self.accept(stream);
                        }
                    }
                    Ready::Machine => return self.gone(),
                    Ready::Terminate => {
                        self.terminate = None;
                        self.stop(10_000);
                    }
                    Ready::Client(id) => self.client_readable(id),
                    Ready::BringOutput => self.bring_output(),
                    Ready::BringEnd => self.bring_ended(),
                    Ready::ServeSocket(stream) => self.serve_readable(stream),
                    Ready::ServeEnd(stream) => self.serve_ended(stream),
                }
            }
            self.timers();
        }
    }

    /// Waits until something happens or a timer is due.
    fn wait(&mut self) -> io::Result<Vec<Ready>> {
        let mut whos = vec![Ready::Agent, Ready::Listener, Ready::Machine];
        let out = |peer: &Peer| if peer.backlog() > 0 { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let pidfd = self.machine.pidfd();
        let mut fds = vec![
            PollFd::new(&self.agent, out(&self.agent)),
            PollFd::new(&self.listener, PollFlags::IN),
            PollFd::new(&pidfd, PollFlags::IN),
        ];
        if let Some(fd) = &self.terminate {
            whos.push(Ready::Terminate);
            fds.push(PollFd::new(fd, PollFlags::IN));
        }
        for (id, client) in &self.clients {
            whos.push(Ready::Client(*id));
            fds.push(PollFd::new(client, out(client)));
        }
        if let Some((helper, socket, _)) = &self.bring.running {
            whos.push(Ready::BringOutput);
            fds.push(PollFd::new(socket, PollFlags::IN));
            whos.push(Ready::BringEnd);
            fds.push(PollFd::new(&helper.pidfd, PollFlags::IN));
        }
        for (stream, serve) in &self.serves {
            let mut flags = PollFlags::empty();
            if serve.window > 0 && !serve.output_closed {
                flags |= PollFlags::IN;
            }
            if !serve.input.is_empty() {
                flags |= PollFlags::OUT;
            }
            if !flags.is_empty() {
                whos.push(Ready::ServeSocket(*stream));
                fds.push(PollFd::new(&serve.socket, flags));
            }
            if serve.output_closed {
                whos.push(Ready::ServeEnd(*stream));
                fds.push(PollFd::new(&serve.helper.pidfd, PollFlags::IN));
            }
        }
        let timeout = self
            .next_timer()
            .map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        let fired: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        Ok(whos.into_iter().zip(fired).filter_map(|(who, fired)| fired.then_some(who)).collect())
    }

    fn next_timer(&self) -> Option<Duration> {
        let mut times = Vec::new();
        if self.bring.running.is_none() {
            times.extend(self.bring.due);
        }
        match self.phase {
            Phase::Running => {}
            Phase::BringingHome { until, .. } | Phase::ShuttingDown { until } => times.push(until),
        }
        times.extend(self.main.as_ref().and_then(|main| main.deadline).map(|(at, _)| at));
        times.into_iter().min().map(|at| at.saturating_duration_since(Instant::now()))
    }

    fn timers(&mut self) {
        let now = Instant::now();
        if self.bring.running.is_none() && self.bring.due.is_some_and(|due| due <= now) {
            self.bring_start();
        }
        if let Some(main) = &mut self.main
            && let Some((at, killed)) = main.deadline
            && at <= now
            && main.exit.is_none()
        {
            self.status.timed_out = true;
            let (stream, signal) = (main.stream, if killed { 9 } else { 15 });
            main.deadline = (!killed).then(|| (now + TIMEOUT_GRACE, true));
            self.agent.control(stream, &Message::Signal { signal });
        }
        match self.phase {
            Phase::Running => {}
            Phase::BringingHome { grace_ms, until } => {
                if until <= now {
                    if let Some((mut helper, ..)) = self.bring.running.take() {
                        helper.kill();
                    }
                    self.shut_down(grace_ms);
                }
            }
            Phase::ShuttingDown { until } => {
                if until <= now {
                    let _ = self.machine.kill();
                }
            }
        }
    }

    // ---- clients -------------------------------------------------------------------------

    fn accept(&mut self, stream: UnixStream) {
        if self.clients.len() >= MAX_CLIENTS {
            return;
        }
        let Ok(mut peer) = Peer::new(stream) else { return };
        let enforced = self.agent_hello.as_ref().map(|hello| hello.enforced.clone()).unwrap_or_default();
        peer.control(0, &Message::Hello(our_hello(enforced)));
        self.clients.insert(self.next_client, peer);
        self.next_client += 1;
    }

    fn client_readable(&mut self, id: ClientId) {
        let mut frames = Vec::new();
        if let Some(client) = self.clients.get_mut(&id) {
            client.read(&mut frames);
        }
        for frame in frames {
            let stream = (id, frame.stream);
            match frame.kind {
                FrameType::Control => match frame.message() {
                    Ok(message) => self.client_message(stream, message),
                    Err(_) => {
                        if let Some(client) = self.clients.get_mut(&id) {
                            client.gone = true;
                        }
                    }
                },
                FrameType::Stdin => self.client_input(stream, &frame.payload),
                FrameType::Stdout | FrameType::Stderr => {}
            }
        }
    }

    fn answer(&mut self, (id, stream): ClientStream, message: &Message) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.control(stream, message);
        }
    }

    fn new_stream(&mut self) -> u32 {
        let stream = self.next_stream;
        self.next_stream += 2;
        stream
    }

    fn client_message(&mut self, from: ClientStream, message: Message) {
        match message {
            Message::Hello(_) => {}
            Message::Exec(exec) => self.client_exec(from, exec),
            Message::AskRepoState { .. } => {
                let stream = self.new_stream();
                self.routes.insert(stream, Route::Question(from));
                self.agent.control(stream, &message);
            }
            Message::Signal { .. } | Message::Resize(_) | Message::CloseStdin => {
                if let Some(stream) = self.streams.get(&from) {
                    self.agent.control(*stream, &message);
                }
            }
            Message::Credit { .. } => {
                if let Some(stream) = self.streams.get(&from)
                    && matches!(self.routes.get(stream), Some(Route::Session { .. }))
                {
                    self.agent.control(*stream, &message);
                }
            }
            Message::Attach { session, replay } => self.client_attach(from, session, replay),
            Message::Detach => {
                self.detach(from);
                self.answer(from, &Message::Done);
            }
            Message::Stop { grace_ms } => {
                self.stop_waiters.push(from);
                self.stop(grace_ms);
            }
            Message::CommitBack => self.bring_wanted(Waiter::Client(from)),
            Message::AskStatus => {
                let status = self.report();
                self.answer(from, &Message::Status(status));
            }
            _ => self.answer(from, &failure(FailureKind::Unsupported, "the supervisor does not know this request")),
        }
    }

    fn client_exec(&mut self, from: ClientStream, exec: Exec) {
        if self.phase != Phase::Running && !exec.internal {
            return self.answer(from, &failure(FailureKind::Other, "the sandbox is being stopped"));
        }
        if exec.main && self.main.as_ref().is_some_and(|main| main.exit.is_none()) {
            return self.answer(from, &failure(FailureKind::Other, "the sandbox already runs a command"));
        }
        let stream = self.new_stream();
        self.streams.insert(from, stream);
        self.had_session |= !exec.internal;
        if exec.main {
            self.main = Some(Main {
                stream,
                argv: exec.argv.clone(),
                attached: vec![from],
                exit: None,
                last_output: None,
                input: Vec::new(),
                input_from: Vec::new(),
                window: WINDOW,
                owed: [0, 0],
                deadline: self.timeout.map(|limit| (Instant::now() + limit, false)),
            });
            self.status.exited = None;
            self.status.timed_out = false;
            self.routes.insert(stream, Route::Main);
        } else {
            let route = Route::Session {
                owner: Some(from),
                argv: exec.argv.clone(),
                internal: exec.internal,
                tty: exec.tty.is_some(),
            };
            self.routes.insert(stream, route);
        }
        self.agent.control(stream, &Message::Exec(exec));
    }

    fn client_attach(&mut self, from: ClientStream, session: u32, replay: u64) {
        let Some(main) = self.main.as_mut().filter(|_| session == 0) else {
            return self.answer(from, &failure(FailureKind::NotFound, "no command was started in it"));
        };
        let Some(client) = self.clients.get_mut(&from.0) else { return };
        if replay > 0 {
            let past = RingLog::tail(&self.dir.log(), replay.min(1024 * 1024)).unwrap_or_default();
            for chunk in past.chunks(MAX_PAYLOAD) {
                client.data(FrameType::Stdout, from.1, chunk);
            }
        }
        match main.exit {
            Some(status) => client.control(from.1, &Message::Exited(status)),
            None => {
                client.control(from.1, &Message::Started { pid: 0 });
                main.attached.push(from);
                self.streams.insert(from, main.stream);
            }
        }
    }

    /// Input for the main session is counted by us (it may have several writers); that of
    /// another session is its client's business.
    fn client_input(&mut self, from: ClientStream, bytes: &[u8]) {
        let Some(stream) = self.streams.get(&from).copied() else { return };
        match self.routes.get(&stream) {
            Some(Route::Session { .. }) => self.agent.data(FrameType::Stdin, stream, bytes),
            Some(Route::Main) => {
                if let Some(main) = &mut self.main {
                    let pending: usize = main.input_from.iter().filter(|(who, _)| *who == from).map(|(_, n)| n).sum();
                    if pending + bytes.len() > 2 * WINDOW as usize {
                        if let Some(client) = self.clients.get_mut(&from.0) {
                            client.gone = true;
                        }
                        return;
                    }
                    main.input.extend_from_slice(bytes);
                    main.input_from.push((from, bytes.len()));
                }
                self.pump_main_input();
            }
            _ => {}
        }
    }

    fn pump_main_input(&mut self) {
        let Some(main) = &mut self.main else { return };
        let n = main.input.len().min(main.window as usize);
        if n == 0 {
            return;
        }
        for chunk in main.input[..n].chunks(MAX_PAYLOAD) {
            self.agent.data(FrameType::Stdin, main.stream, chunk);
        }
        main.input.drain(..n);
        main.window -= n as u64;
        let mut left = n;
        while left > 0 {
            let (from, size) = &mut main.input_from[0];
            let part = left.min(*size);
            if let Some(client) = self.clients.get_mut(&from.0) {
                client.control(from.1, &Message::Credit { channel: Channel::Stdin, bytes: part as u64 });
            }
            *size -= part;
            left -= part;
            if *size == 0 {
                main.input_from.remove(0);
            }
        }
    }

    fn detach(&mut self, from: ClientStream) {
        if let Some(main) = &mut self.main {
            main.attached.retain(|client| *client != from);
        }
        self.streams.remove(&from);
        self.pay_main();
    }

    /// Forgets clients that went away: the main session goes on without them, another
    /// terminal's session is hung up, plumbing is ended.
    fn sweep_clients(&mut self) {
        let gone: Vec<ClientId> = self.clients.iter().filter(|(_, c)| c.gone).map(|(id, _)| *id).collect();
        for id in gone {
            self.clients.remove(&id);
            if let Some(main) = &mut self.main {
                main.attached.retain(|client| client.0 != id);
            }
            self.stop_waiters.retain(|waiter| waiter.0 != id);
            for (stream, route) in &mut self.routes {
                if let Route::Session { owner, internal, tty, .. } = route
                    && owner.is_some_and(|owner| owner.0 == id)
                {
                    *owner = None;
                    // What was under way has no reader now: let it flow.
                    for channel in [Channel::Stdout, Channel::Stderr] {
                        self.agent.control(*stream, &Message::Credit { channel, bytes: WINDOW });
                    }
                    self.agent.control(*stream, &Message::CloseStdin);
                    if *internal {
                        self.agent.control(*stream, &Message::Signal { signal: 9 });
                    } else if *tty {
                        self.agent.control(*stream, &Message::Signal { signal: 1 });
                    }
                }
            }
            self.streams.retain(|client, _| client.0 != id);
            if self.bring_client == Some(id) {
                self.bring_client = None;
            }
        }
        self.pay_main();
    }

    /// Gives the main session the credit that was held back, once no attached client is slow.
    fn pay_main(&mut self) {
        let Some(main) = &mut self.main else { return };
        let slow = main
            .attached
            .iter()
            .any(|(id, _)| self.clients.get(id).is_some_and(|client| client.backlog() > SLOW_CLIENT));
        if slow || main.exit.is_some() {
            return;
        }
        for (owed, channel) in main.owed.iter_mut().zip([Channel::Stdout, Channel::Stderr]) {
            if *owed > 0 {
                self.agent.control(main.stream, &Message::Credit { channel, bytes: *owed });
                *owed = 0;
            }
        }
    }

    fn report(&self) -> Status {
        let mut sessions: Vec<SessionStatus> = Vec::new();
        if let Some(main) = self.main.as_ref().filter(|main| main.exit.is_none()) {
            sessions.push(SessionStatus { session: 0, argv: main.argv.clone(), clients: main.attached.len() as u32 });
        }
        for (stream, route) in &self.routes {
            if let Route::Session { owner, argv, internal: false, .. } = route {
                sessions.push(SessionStatus {
                    session: *stream,
                    argv: argv.clone(),
                    clients: u32::from(owner.is_some()),
                });
            }
        }
        Status {
            sessions,
            silent_secs: self.main.as_ref().and_then(|main| main.last_output).map(|at| at.elapsed().as_secs()),
            enforced: self.agent_hello.as_ref().map(|hello| hello.enforced.clone()).unwrap_or_default(),
        }
    }

    // ---- the agent -----------------------------------------------------------------------

    fn agent_readable(&mut self) {
        let mut frames = Vec::new();
        self.agent.read(&mut frames);
        for frame in frames {
            self.agent_frame(frame);
        }
    }

    fn agent_frame(&mut self, frame: Frame) {
        let stream = frame.stream;
        match frame.kind {
            FrameType::Control => match frame.message() {
                Ok(message) => self.agent_message(stream, message),
                // An agent that does not speak the protocol is not ours any more.
                Err(_) => self.agent.gone = true,
            },
            FrameType::Stdin => self.serve_input(stream, &frame.payload),
            kind => self.agent_output(kind, stream, &frame.payload),
        }
    }

    fn agent_output(&mut self, kind: FrameType, stream: u32, bytes: &[u8]) {
        match self.routes.get(&stream) {
            Some(Route::Session { owner: Some((id, theirs)), .. }) => {
                if let Some(client) = self.clients.get_mut(id) {
                    client.data(kind, *theirs, bytes);
                }
            }
            Some(Route::Session { owner: None, .. }) => {
                let channel = if kind == FrameType::Stdout { Channel::Stdout } else { Channel::Stderr };
                self.agent.control(stream, &Message::Credit { channel, bytes: bytes.len() as u64 });
            }
            Some(Route::Main) => {
                let Some(main) = &mut self.main else { return };
                main.last_output = Some(Instant::now());
                // A log that cannot be written (full disk) must not stop the work.
                let _ = self.log.append(bytes);
                for (id, theirs) in &main.attached {
                    if let Some(client) = self.clients.get_mut(id) {
                        client.data(kind, *theirs, bytes);
                    }
                }
                main.owed[usize::from(kind == FrameType::Stderr)] += bytes.len() as u64;
                self.pay_main();
            }
            _ => {}
        }
    }

    fn agent_message(&mut self, stream: u32, message: Message) {
        match message {
            Message::Hello(hello) => {
                for client in self.clients.values_mut() {
                    client.control(0, &Message::Hello(our_hello(hello.enforced.clone())));
                }
                self.agent_hello = Some(hello);
            }
            Message::RefsMoved { .. } => {
                self.bring.moved = true;
                self.bring.due.get_or_insert_with(|| Instant::now() + DEBOUNCE);
            }
            Message::CommitBack => self.bring_wanted(Waiter::Inside(stream)),
            Message::ServeHost { repo, protocol } => self.serve_start(stream, repo, protocol),
            Message::CloseStdin => {
                if let Some(serve) = self.serves.get_mut(&stream) {
                    serve.input_closed = true;
                }
                self.serve_flush(stream);
            }
            Message::Credit { channel, bytes } => {
                if let Some(serve) = self.serves.get_mut(&stream) {
                    serve.window = serve.window.saturating_add(bytes);
                } else {
                    self.credit_for_client(stream, channel, bytes);
                }
            }
            Message::Exited(_) | Message::Error(_) | Message::Done | Message::RepoState(_) => {
                self.end_stream(stream, &message);
            }
            Message::Started { .. } => self.forward(stream, &message),
            _ => {}
        }
    }

    fn credit_for_client(&mut self, stream: u32, channel: Channel, bytes: u64) {
        match self.routes.get(&stream) {
            Some(Route::Main) => {
                if let Some(main) = &mut self.main {
                    main.window = main.window.saturating_add(bytes);
                }
                self.pump_main_input();
            }
            Some(Route::Session { .. }) => self.forward(stream, &Message::Credit { channel, bytes }),
            _ => {}
        }
    }

    fn forward(&mut self, stream: u32, message: &Message) {
        let owners: Vec<ClientStream> = match self.routes.get(&stream) {
            Some(Route::Session { owner, .. }) => owner.iter().copied().collect(),
            Some(Route::Question(owner)) => vec![*owner],
            Some(Route::Main) => self.main.as_ref().map(|main| main.attached.clone()).unwrap_or_default(),
            None => Vec::new(),
        };
        for owner in owners {
            self.answer(owner, message);
        }
    }

    fn end_stream(&mut self, stream: u32, message: &Message) {
        self.forward(stream, message);
        let Some(route) = self.routes.remove(&stream) else { return };
        match route {
            Route::Main => {
                if let Some(main) = &mut self.main {
                    let exit = match message {
                        Message::Exited(status) => *status,
                        Message::Error(Failure { kind: FailureKind::NotFound, .. }) => ExitStatus::Code(127),
                        Message::Error(Failure { kind: FailureKind::CannotExecute, .. }) => ExitStatus::Code(126),
                        _ => ExitStatus::Code(125),
                    };
                    main.exit = Some(exit);
                    main.deadline = None;
                    for client in std::mem::take(&mut main.attached) {
                        self.streams.remove(&client);
                    }
                    self.status.exited = Some((exit, now()));
                    let _ = write_json(&self.dir.status(), &self.status, false);
                }
            }
            Route::Session { owner: Some(owner), .. } | Route::Question(owner) => {
                self.streams.remove(&owner);
            }
            Route::Session { owner: None, .. } => {}
        }
        self.end_if_idle();
    }

    /// With `once`, the end of the last session is the end of the sandbox.
    fn end_if_idle(&mut self) {
        let busy = self.routes.values().any(|route| match route {
            Route::Main => true,
            Route::Session { internal, .. } => !internal,
            Route::Question(_) => false,
        });
        if self.once && self.had_session && !busy && self.phase == Phase::Running {
            self.stop(2_000);
        }
    }

    // ---- the end -------------------------------------------------------------------------

    fn stop(&mut self, grace_ms: u64) {
        if self.phase != Phase::Running {
            return;
        }
        // New clients find no socket and wait for the end, to start it again.
        let _ = std::fs::remove_file(self.dir.ctl());
        if self.bring.due.is_some() || self.bring.running.is_some() {
            self.phase = Phase::BringingHome { grace_ms, until: Instant::now() + BRING_HOME };
            if self.bring.running.is_none() {
                self.bring_start();
            }
        } else {
            self.shut_down(grace_ms);
        }
    }

    fn shut_down(&mut self, grace_ms: u64) {
        self.phase = Phase::ShuttingDown { until: Instant::now() + Duration::from_millis(grace_ms) + SHUTDOWN_EXTRA };
        self.agent.control(0, &Message::Shutdown { grace_ms });
        self.agent.flush();
    }

    /// The sandbox's first process is gone, or about to be.
    fn gone(&mut self) -> Result<(), SuperviseError> {
        // Output that was under way when PID 1 ended.
        let mut frames = Vec::new();
        while !self.agent.gone {
            let before = frames.len();
            self.agent.read(&mut frames);
            if frames.len() == before {
                break;
            }
        }
        for frame in frames {
            self.agent_frame(frame);
        }
        let _ = self.machine.kill();
        let asked = self.phase != Phase::Running;
        if let Some((mut helper, ..)) = self.bring.running.take() {
            helper.kill();
            self.bring.moved = true;
        }
        for (_, mut serve) in self.serves.drain() {
            serve.helper.kill();
        }
        self.status.supervisor = None;
        self.status.init = None;
        self.status.stopped = asked;
        let watched =
            self.agent_hello.as_ref().is_some_and(|hello| hello.enforced.iter().any(|e| e == "rename-notify"));
        self.status.home = asked && watched && !self.bring.moved;
        if let Some(main) = self.main.as_mut().filter(|main| main.exit.is_none()) {
            // The main session ended with the sandbox: KILL is what happened to it.
            main.exit = Some(ExitStatus::Signal(9));
            self.status.exited = Some((ExitStatus::Signal(9), now()));
            for (id, stream) in &main.attached {
                if let Some(client) = self.clients.get_mut(id) {
                    client.control(*stream, &Message::Exited(ExitStatus::Signal(9)));
                }
            }
        }
        let written = write_json(&self.dir.status(), &self.status, true);
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

    // ---- commit-back ---------------------------------------------------------------------

    fn bring_wanted(&mut self, waiter: Waiter) {
        if self.bring.running.is_some() {
            self.bring.next.push(waiter);
            self.bring.due.get_or_insert_with(Instant::now);
        } else {
            self.bring.waiting.push(waiter);
            self.bring_start();
        }
    }

    fn bring_start(&mut self) {
        self.bring.due = None;
        self.bring.moved = false;
        let started = (|| -> io::Result<_> {
            let (client, client_fd) = pair()?;
            let (output, output_fd) = pair()?;
            output.set_nonblocking(true)?;
            let errors = output_fd.try_clone()?;
            let helper = Helper::start(&self.commit_back, client_fd, output_fd, Some(errors))?;
            Ok((helper, output, client))
        })();
        match started {
            Ok((helper, output, client)) => {
                self.bring_client = Some(self.next_client);
                self.accept(client);
                self.bring.running = Some((helper, output, Vec::new()));
            }
            Err(error) => self.bring_done(false, format!("cannot start commit-back: {error}").into_bytes()),
        }
    }

    fn bring_output(&mut self) {
        let Some((_, socket, output)) = &mut self.bring.running else { return };
        let mut bytes = [0u8; 4096];
        while let Ok(n) = socket.read(&mut bytes) {
            if n == 0 {
                break;
            }
            let room = MAX_PAYLOAD.saturating_sub(output.len());
            output.extend_from_slice(&bytes[..n.min(room)]);
        }
    }

    fn bring_ended(&mut self) {
        self.bring_output();
        let Some((mut helper, _, output)) = self.bring.running.take() else { return };
        let ok = helper.finish().unwrap_or(false);
        self.bring_done(ok, output);
    }

    fn bring_done(&mut self, ok: bool, output: Vec<u8>) {
        self.bring.moved |= !ok;
        let answer = if ok {
            Message::Done
        } else {
            let text = String::from_utf8_lossy(&output);
            let line = text.lines().find_map(|line| line.strip_prefix("error: ")).unwrap_or("commit-back failed");
            failure(FailureKind::Other, line)
        };
        for waiter in std::mem::take(&mut self.bring.waiting) {
            match waiter {
                Waiter::Client((id, stream)) => {
                    if let Some(client) = self.clients.get_mut(&id) {
                        client.data(FrameType::Stdout, stream, &output);
                        client.control(stream, &answer);
                    }
                }
                Waiter::Inside(stream) => {
                    self.agent.data(FrameType::Stdout, stream, &output);
                    self.agent.control(stream, &answer);
                }
            }
        }
        self.bring.waiting = std::mem::take(&mut self.bring.next);
        if let Phase::BringingHome { grace_ms, .. } = self.phase {
            if self.bring.due.is_some() {
                self.bring_start();
            } else {
                self.shut_down(grace_ms);
            }
        }
    }

    // ---- the remote `host` ----------------------------------------------------------------

    fn serve_start(&mut self, stream: u32, repo: u32, protocol: Option<String>) {
        let mut argv = self.serve_host.clone();
        argv.push(repo.to_string());
        // Only what git itself would send: the value comes from inside.
        argv.extend(protocol.filter(|p| matches!(p.as_str(), "version=0" | "version=1" | "version=2")));
        let started = (|| -> io::Result<_> {
            let (socket, fd) = pair()?;
            socket.set_nonblocking(true)?;
            let out = fd.try_clone()?;
            Ok((Helper::start(&argv, fd, out, None)?, socket))
        })();
        match started {
            Ok((helper, socket)) if self.serves.len() < 64 => {
                self.agent.control(stream, &Message::Started { pid: 0 });
                let serve = Serve {
                    helper,
                    socket,
                    window: WINDOW,
                    input: Vec::new(),
                    input_closed: false,
                    output_closed: false,
                };
                self.serves.insert(stream, serve);
            }
            Ok((mut helper, _)) => {
                helper.kill();
                self.agent.control(stream, &failure(FailureKind::Limit, "too many fetches at once"));
            }
            Err(error) => {
                let message = format!("cannot serve the host's refs: {error}");
                self.agent.control(stream, &failure(FailureKind::Other, message));
            }
        }
    }

    fn serve_input(&mut self, stream: u32, bytes: &[u8]) {
        let Some(serve) = self.serves.get_mut(&stream) else { return };
        if serve.input.len() + bytes.len() > 2 * WINDOW as usize {
            // It sent more than the window: end it.
            return self.serve_cut(stream);
        }
        serve.input.extend_from_slice(bytes);
        self.serve_flush(stream);
    }

    fn serve_flush(&mut self, stream: u32) {
        let Some(serve) = self.serves.get_mut(&stream) else { return };
        let mut written = 0;
        while written < serve.input.len() {
            match serve.socket.write(&serve.input[written..]) {
                Ok(n) if n > 0 => written += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                _ => {
                    written = serve.input.len();
                    break;
                }
            }
        }
        serve.input.drain(..written);
        if written > 0 {
            let credit = Message::Credit { channel: Channel::Stdin, bytes: written as u64 };
            self.agent.control(stream, &credit);
        }
        if serve.input.is_empty() && serve.input_closed {
            let _ = serve.socket.shutdown(std::net::Shutdown::Write);
        }
    }

    fn serve_readable(&mut self, stream: u32) {
        self.serve_flush(stream);
        let Some(serve) = self.serves.get_mut(&stream) else { return };
        let mut bytes = [0u8; 32 * 1024];
        let room = (serve.window as usize).min(bytes.len());
        if room == 0 {
            return;
        }
        match serve.socket.read(&mut bytes[..room]) {
            Ok(0) => serve.output_closed = true,
            Ok(n) => {
                serve.window -= n as u64;
                self.agent.data(FrameType::Stdout, stream, &bytes[..n]);
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(_) => serve.output_closed = true,
        }
    }

    fn serve_ended(&mut self, stream: u32) {
        let Some(mut serve) = self.serves.remove(&stream) else { return };
        let status = if serve.helper.finish().unwrap_or(false) { 0 } else { 128 };
        self.agent.control(stream, &Message::Exited(ExitStatus::Code(status)));
    }

    fn serve_cut(&mut self, stream: u32) {
        if let Some(mut serve) = self.serves.remove(&stream) {
            serve.helper.kill();
            self.agent.control(stream, &failure(FailureKind::Limit, "more input than the window allows"));
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let _ = self.machine.kill();
        let _ = self.machine.pidfd().as_fd();
    }
}
