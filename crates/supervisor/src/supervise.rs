//! The poll loop. Each pass: wait, read from who is readable, act on frames, write.

use crate::bring::Bring;
use crate::disk::Disk;
use crate::ending::Ground;
use crate::events::Egress;
use crate::log::RingLog;
use crate::main_session::Main;
use crate::memory::Memory;
use crate::peer::Peer;
use crate::rescue::Rescue;
use crate::serve::Serve;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sandbox_core::driver::{Driver, DriverError, Machine, ProcessIdentity};
use sandbox_core::launch::{LaunchSpec, Network, TreeView};
use sandbox_core::record::StatusRecord;
use sandbox_core::space::Reserve;
use sandbox_core::store::{SandboxDir, StoreError, read_json, write_json};
use sandbox_protocol::{Failure, FailureKind, Hello, Message, VERSIONS};
use sandbox_sys::clock::unix_seconds;
use sandbox_sys::lock::FileLock;
use sandbox_sys::process;
use sandbox_sys::program::Quiet;
use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

/// Clients at once.
pub(crate) const MAX_CLIENTS: usize = 256;
/// An attached client that is this far behind slows the main session down.
pub(crate) const SLOW_CLIENT: usize = 256 * 1024;
/// Bytes that wait for a client at most: one that reads nothing is cut off.
pub(crate) const MOST_FOR_CLIENT: usize = 16 << 20;
/// Bytes that wait for the agent before what can wait is held back.
pub(crate) const SLOW_AGENT: usize = 1 << 20;
/// Bytes that wait for the agent at most: one that reads nothing is not ours any more.
pub(crate) const MOST_FOR_AGENT: usize = 64 << 20;
/// How long a client that has just connected may think before an idle sandbox ends without it.
const FRESH: Duration = Duration::from_secs(1);

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
    /// What the main command leaves uncommitted is committed when it has ended: the command above gets
    /// `--auto-commit` and the main command then.
    pub auto_commit: bool,
    /// The command that rescues what is not committed; it gets a client connection as standard input, and the
    /// seconds that it may take are appended.
    pub rescue: Vec<String>,
    /// How often that is done while something happens inside; `None`: only when the main command has ended,
    /// and at the end.
    pub rescue_every: Option<Duration>,
    /// The command that serves the remote `host`; repository number and `GIT_PROTOCOL` are appended.
    pub serve_host: Vec<String>,
    /// The command that is the proxy of a sandbox whose network is `allow`; `--init` and the pid of the
    /// sandbox's first process are appended, the listening socket is its standard input, and it writes one
    /// event a line to its standard output.
    pub proxy: Vec<String>,
    /// The command that leads to the mirror, if the spec says so; the listening socket is its standard input.
    pub mirror: Vec<String>,
    /// What of the disk is kept for the host: before it is written by the sandbox, everything inside is frozen.
    pub reserve: Reserve,
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

pub(crate) type ClientId = u64;
/// A stream as a client numbers it.
pub(crate) type ClientStream = (ClientId, u32);

/// What an agent stream is for.
#[derive(Debug)]
pub(crate) enum Route {
    /// A session; its client, unless that went away, and whether it is the main one.
    Session(Session),
    /// The main session (its state is in [`Main`]).
    Main,
    /// A question that a client asked.
    Question(ClientStream),
    /// Our own wish that everything inside stands still, or goes on.
    Hold,
}

/// A session that is not the main one.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) owner: Option<ClientStream>,
    pub(crate) argv: Vec<String>,
    pub(crate) internal: bool,
    pub(crate) tty: bool,
    /// Bytes of input that its client may still send.
    pub(crate) room: u64,
    /// Credit for its client that is held back while the agent is slow.
    pub(crate) held: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Running,
    /// The last commit-back runs; then shut down with this grace.
    BringingHome {
        grace_ms: u64,
        until: Instant,
        /// Further commit-backs before the end, for refs that move meanwhile.
        rounds: u32,
    },
    /// The agent was told; kill at this instant.
    ShuttingDown {
        until: Instant,
    },
    /// Everything inside was killed; the kernel has yet to let go of it.
    Dying {
        /// It was asked to end: this is no crash.
        asked: bool,
        /// When those who wait for the end are told that it does not come.
        tell: Option<Instant>,
    },
}

pub(crate) struct Supervisor {
    pub(crate) dir: SandboxDir,
    pub(crate) machine: Box<dyn Machine>,
    pub(crate) agent: Peer,
    pub(crate) agent_hello: Option<Hello>,
    pub(crate) listener: UnixListener,
    pub(crate) clients: HashMap<ClientId, Peer>,
    /// Clients that have asked for nothing yet.
    pub(crate) fresh: HashSet<ClientId>,
    /// With `once`: since when nothing runs.
    pub(crate) idle: Option<Instant>,
    pub(crate) next_client: ClientId,
    pub(crate) routes: HashMap<u32, Route>,
    pub(crate) streams: HashMap<ClientStream, u32>,
    pub(crate) next_stream: u32,
    pub(crate) main: Option<Main>,
    pub(crate) had_session: bool,
    pub(crate) once: bool,
    pub(crate) timeout: Option<Duration>,
    pub(crate) log: RingLog,
    pub(crate) status: StatusRecord,
    pub(crate) phase: Phase,
    pub(crate) stop_waiters: Vec<ClientStream>,
    pub(crate) bring: Bring,
    pub(crate) rescue: Rescue,
    pub(crate) serves: HashMap<u32, Serve>,
    /// Clients for whom everything inside stands still.
    pub(crate) frozen_for: HashSet<ClientId>,
    pub(crate) commit_back: Vec<String>,
    pub(crate) auto_commit: bool,
    pub(crate) serve_host: Vec<String>,
    pub(crate) terminate: Option<OwnedFd>,
    /// The events' log, once there was one.
    pub(crate) events: Option<RingLog>,
    /// The proxy, while it runs.
    pub(crate) egress: Option<Egress>,
    /// What leads to the mirror, while it runs.
    pub(crate) mirror: Option<Egress>,
    /// The log says that it was started.
    pub(crate) started_said: bool,
    /// Clients that want to be told of events.
    pub(crate) told: HashSet<ClientId>,
    /// Clients whose output is a terminal.
    pub(crate) screens: HashSet<ClientId>,
    /// When the agent last said anything.
    pub(crate) heard: Instant,
    /// Whether our directory is still there.
    pub(crate) ground: Ground,
    /// Room on its disk.
    pub(crate) disk: Disk,
    /// Memory of what is inside, where nothing else limits it.
    pub(crate) memory: Memory,
    /// When we last had anything to do.
    pub(crate) quiet: Quiet,
}

/// Launches the sandbox and runs until it is gone. Must be called by the main thread of a
/// process without other threads.
pub fn supervise(config: Config, driver: &dyn Driver) -> Result<(), SuperviseError> {
    let pid = std::process::id();
    let identity = (|| -> io::Result<ProcessIdentity> {
        Ok(ProcessIdentity { pid, start_time: process::start_time(pid)?, boot_id: process::boot_id()? })
    })()
    .map_err(step("identify the supervisor"))?;
    // How the last main command ended is still true until there is a new one.
    // One that a power cut left is no more than none.
    let before: StatusRecord = read_json(&config.dir.status()).ok().flatten().unwrap_or_default();
    // From here on it runs, for all who look; who reads from a stopped one holds the same lock and has no name here.
    let launching = StatusRecord { supervisor: Some(identity.clone()), init: None, ..before.clone() };
    write_json(&config.dir.status(), &launching, false)?;
    let launched = (|| -> Result<_, SuperviseError> {
        let mut machine = driver.launch(&config.spec)?;
        let egress = start_proxy(&config, driver, machine.as_mut())?;
        let mirror = start_mirror(&config, machine.as_mut())?;
        let control = machine.control().try_clone().map_err(step("use the control channel"))?;
        let agent = Peer::new(control, MOST_FOR_AGENT).map_err(step("use the control channel"))?;
        let listener = listen(&config.dir).map_err(step("listen on the control socket"))?;
        let log = RingLog::open(&config.dir.log()).map_err(step("open the log"))?;
        Ok((machine, (egress, mirror), agent, listener, log))
    })();
    // What could not be started has not crashed.
    let (machine, (egress, mirror), agent, listener, log) = launched.inspect_err(|_| {
        let _ = write_json(&config.dir.status(), &before, false);
    })?;
    let status = StatusRecord {
        exited: before.exited,
        timed_out: before.timed_out,
        supervisor: Some(identity),
        init: Some(machine.process().clone()),
        started: Some(unix_seconds()),
        notes: machine.notes().to_vec(),
        ..StatusRecord::default()
    };
    write_json(&config.dir.status(), &status, false)?;
    let ground = Ground::new(&config.dir, &config.lock).map_err(step("look at the sandbox's directory"))?;
    let uppers = || config.spec.trees.iter().map(|tree| tree.upper.clone()).collect::<Vec<_>>();
    // The limit of a machine's own disk is its size.
    let limit = config.spec.limits.disk.filter(|_| config.spec.vm.is_none());
    let disk = Disk::new(&config.dir, config.reserve, limit, uppers());
    let memory = Memory::new(config.spec.limits.memory.filter(|_| !machine.limits_memory()));
    let whole = config.spec.trees.iter().any(|tree| tree.view == TreeView::Copy);
    let rescue = Rescue::new(config.rescue, config.rescue_every, uppers(), whole);
    // From here nobody sees what is written to a machine's own disk.
    let rescue = if config.spec.vm.is_some() { rescue.unseen() } else { rescue };
    let mut supervisor = Supervisor {
        disk,
        memory,
        dir: config.dir,
        machine,
        agent,
        agent_hello: None,
        listener,
        clients: HashMap::new(),
        fresh: HashSet::new(),
        idle: None,
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
        rescue,
        serves: HashMap::new(),
        frozen_for: HashSet::new(),
        commit_back: config.commit_back,
        auto_commit: config.auto_commit,
        serve_host: config.serve_host,
        terminate: config.terminate,
        events: None,
        egress,
        mirror,
        started_said: false,
        told: HashSet::new(),
        screens: HashSet::new(),
        heard: Instant::now(),
        ground,
        quiet: Quiet::new(),
    };
    supervisor.agent.control(0, &Message::Hello(our_hello(Vec::new())));
    if let Some(stream) = config.first_client {
        supervisor.accept(stream);
    }
    let result = supervisor.run();
    // Held until here: every process of this life is reaped by now. Its mounts stay until this process ends, where
    // nothing can reach them; a start that comes at once mounts the same directories again.
    drop(config.lock);
    result
}

/// The proxy of a sandbox that has one. Without it nothing is let out, so the start fails.
fn start_proxy(
    config: &Config,
    driver: &dyn Driver,
    machine: &mut dyn Machine,
) -> Result<Option<Egress>, SuperviseError> {
    if config.spec.network != Network::Allow {
        return Ok(None);
    }
    let listener = machine.take_egress().ok_or_else(|| DriverError::Unsupported {
        driver: driver.name(),
        what: "have a network with a policy".to_owned(),
    })?;
    let mut argv = config.proxy.clone();
    argv.extend(["--init".to_owned(), machine.process().pid.to_string()]);
    Egress::start(argv, listener).map(Some).map_err(step("start the proxy"))
}

/// What leads to the mirror. A driver that hands out nothing for it has none: git inside then says so itself.
fn start_mirror(config: &Config, machine: &mut dyn Machine) -> Result<Option<Egress>, SuperviseError> {
    let listener = machine.take_mirror().filter(|_| config.spec.mirror);
    let started = listener.map(|listener| Egress::start(config.mirror.clone(), listener));
    started.transpose().map_err(step("start what leads to the mirror"))
}

pub(crate) fn our_hello(enforced: Vec<String>) -> Hello {
    Hello { min: VERSIONS.0, max: VERSIONS.1, features: Vec::new(), enforced }
}

/// The instant `span` from now, or one that nobody lives to see.
pub(crate) fn after(span: Duration) -> Instant {
    const YEARS: Duration = Duration::from_secs(100 * 365 * 86_400);
    Instant::now() + span.min(YEARS)
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

pub(crate) fn failure(kind: FailureKind, message: impl Into<String>) -> Message {
    Message::Error(Failure { kind, message: message.into() })
}

/// Who became readable.
pub(crate) enum Ready {
    Agent,
    Listener,
    Machine,
    Terminate,
    Client(ClientId),
    BringOutput,
    BringEnd,
    RescueEnd,
    ServeSocket(u32),
    ServeEnd(u32),
    EgressLines,
    EgressEnd,
    MirrorEnd,
    Limit,
}

impl Supervisor {
    pub(crate) fn run(&mut self) -> Result<(), SuperviseError> {
        loop {
            self.agent.flush();
            self.release_input();
            for client in self.clients.values_mut() {
                client.flush();
            }
            self.sweep_clients();
            self.look_after_viewers();
            self.end_if_idle();
            if self.agent.gone {
                self.end_now();
            }
            if self.is_dead() {
                return self.gone();
            }
            let ready = self.wait().map_err(step("wait for the sandbox"))?;
            for who in ready {
                match who {
                    Ready::Agent => self.agent_readable(),
                    Ready::Listener => self.accept_all(),
                    Ready::Machine => return self.gone(),
                    Ready::Terminate => self.asked_to_end(),
                    Ready::Client(id) => self.client_readable(id),
                    Ready::BringOutput => self.bring_output(),
                    Ready::BringEnd => self.bring_ended(),
                    Ready::RescueEnd => self.rescue_ended(),
                    Ready::ServeSocket(stream) => self.serve_readable(stream),
                    Ready::ServeEnd(stream) => self.serve_ended(stream),
                    Ready::EgressLines => self.egress_readable(),
                    Ready::EgressEnd => self.egress_ended(),
                    Ready::MirrorEnd => self.mirror_ended(),
                    Ready::Limit => self.time_is_up(),
                }
            }
            self.timers();
        }
    }

    /// Waits until something happens or a timer is due.
    pub(crate) fn wait(&mut self) -> io::Result<Vec<Ready>> {
        let mut whos = vec![Ready::Listener, Ready::Machine];
        let out = |peer: &Peer| if peer.backlog() > 0 { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let pidfd = self.machine.pidfd();
        let mut fds = vec![PollFd::new(&self.listener, PollFlags::IN), PollFd::new(&pidfd, PollFlags::IN)];
        if !self.agent.gone {
            whos.push(Ready::Agent);
            fds.push(PollFd::new(&self.agent, out(&self.agent)));
        }
        if let Some(limit) = self.main.as_ref().and_then(|main| main.limit.as_ref()) {
            whos.push(Ready::Limit);
            fds.push(PollFd::new(&limit.fd, PollFlags::IN));
        }
        if let Some(fd) = &self.terminate {
            whos.push(Ready::Terminate);
            fds.push(PollFd::new(fd, PollFlags::IN));
        }
        for (id, client) in &self.clients {
            whos.push(Ready::Client(*id));
            fds.push(PollFd::new(client, out(client)));
        }
        if let Some(run) = &self.bring.running {
            whos.push(Ready::BringOutput);
            fds.push(PollFd::new(&run.socket, PollFlags::IN));
            whos.push(Ready::BringEnd);
            fds.push(PollFd::new(&run.helper.pidfd, PollFlags::IN));
        }
        if let Some(run) = &self.rescue.running {
            whos.push(Ready::RescueEnd);
            fds.push(PollFd::new(&run.helper.pidfd, PollFlags::IN));
        }
        if let Some(egress) = &self.egress {
            if !egress.closed {
                whos.push(Ready::EgressLines);
                fds.push(PollFd::new(&egress.lines, PollFlags::IN));
            }
            whos.push(Ready::EgressEnd);
            fds.push(PollFd::new(&egress.helper.pidfd, PollFlags::IN));
        }
        if let Some(mirror) = &self.mirror {
            whos.push(Ready::MirrorEnd);
            fds.push(PollFd::new(&mirror.helper.pidfd, PollFlags::IN));
        }
        // A window is a promise of whoever is inside; that they also read is not.
        let agent_reads = self.agent.backlog() <= SLOW_AGENT;
        for (stream, serve) in &self.serves {
            let mut flags = PollFlags::empty();
            if serve.window > 0 && !serve.output_closed && agent_reads {
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
            .quiet
            .wait(self.next_timer())
            .map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(ready) => self.quiet.waited(ready > 0),
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        let fired: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        let mut ready: Vec<Ready> =
            whos.into_iter().zip(fired).filter_map(|(who, fired)| fired.then_some(who)).collect();
        // A refusal is written down before the answer goes inside: it is also told before what the session
        // says next, its end above all. It was polled after the agent, so that what caused that is seen too.
        ready.sort_by_key(|who| !matches!(who, Ready::EgressLines));
        Ok(ready)
    }

    pub(crate) fn next_timer(&self) -> Option<Duration> {
        let mut times = Vec::new();
        match &self.bring.running {
            Some(run) => times.push(run.until),
            None => times.extend(self.bring.due),
        }
        times.extend(self.rescue_next());
        times.extend(self.idle.map(|since| since + FRESH));
        times.extend(self.next_of_the_end());
        times.extend(self.next_of_viewers());
        times.push(self.ground.next);
        times.push(self.disk.next);
        times.extend(self.memory.next());
        times.into_iter().min().map(|at| at.saturating_duration_since(Instant::now()))
    }

    pub(crate) fn timers(&mut self) {
        let now = Instant::now();
        match &self.bring.running {
            Some(run) if run.until <= now => self.bring_overdue(),
            None if self.bring.due.is_some_and(|due| due <= now) => self.bring_start(),
            _ => {}
        }
        self.rescue_timer(now);
        self.end_timers(now);
        self.disk_timer(now);
        self.memory_timer(now);
        if self.ground.next <= now && self.ground.is_gone(&self.dir) {
            self.lost();
        }
    }

    /// With `once`, the end of the last session is the end of the sandbox; so is the end of the
    /// last client when there never was a session. Whoever has just connected is heard first.
    pub(crate) fn end_if_idle(&mut self) {
        let busy = self.routes.values().any(|route| match route {
            Route::Main => true,
            Route::Session(session) => !session.internal,
            Route::Question(_) | Route::Hold => false,
        });
        let over = if self.had_session { !busy } else { self.clients.is_empty() };
        if !self.once || !over || self.phase != Phase::Running {
            self.idle = None;
            return;
        }
        self.accept_all();
        let since = *self.idle.get_or_insert_with(Instant::now);
        if self.fresh.is_empty() || since.elapsed() >= FRESH {
            self.idle = None;
            self.stop(2_000, false);
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let _ = self.machine.kill();
        for helper in self.egress.iter_mut().chain(&mut self.mirror) {
            helper.helper.kill();
        }
    }
}
