//! The supervisor against a scripted agent: what is relayed, what is bounded, how it ends.

use sandbox_core::connection::{Connection, ConnectionError};
use sandbox_core::driver::{Check, Driver, DriverError, Isolation, Machine, ProcessIdentity};
use sandbox_core::id::SandboxId;
use sandbox_core::launch::{LaunchSpec, Limits, Mode, Mount, Network, User, VmSettings};
use sandbox_core::record::StatusRecord;
use sandbox_core::space::Reserve;
use sandbox_core::store::{SandboxDir, Store, make_dir, read_json};
use sandbox_protocol::event::{FrozenBy, Happened};
use sandbox_protocol::{
    Channel, Decoder, EVENTS, Exec, ExitStatus, Failure, FailureKind, Frame, FrameType, Hello, Message, SCREEN,
    VERSIONS, WINDOW, WindowSize, encode, encode_control,
};
use sandbox_supervisor::{Config, supervise};
use sandbox_sys::lock::FileLock;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The agent's end of the control channel, with a few words to speak.
struct Agent {
    stream: UnixStream,
    decoder: Decoder,
}

impl Agent {
    fn say(&mut self, stream: u32, message: &Message) {
        let mut out = Vec::new();
        encode_control(&mut out, stream, message);
        let _ = self.stream.write_all(&out);
    }

    fn data(&mut self, kind: FrameType, stream: u32, bytes: &[u8]) {
        let mut out = Vec::new();
        for chunk in bytes.chunks(60_000) {
            encode(&mut out, kind, stream, chunk);
        }
        let _ = self.stream.write_all(&out);
    }

    fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame);
            }
            let mut bytes = [0u8; 65536];
            match self.stream.read(&mut bytes) {
                Ok(0) | Err(_) => return None,
                Ok(n) => self.decoder.push(&bytes[..n]),
            }
        }
    }

    /// Waits for a control message that `pick` wants.
    fn wait<T>(&mut self, pick: impl Fn(u32, Message) -> Option<T>) -> Option<T> {
        loop {
            let frame = self.next()?;
            if frame.kind == FrameType::Control
                && let Some(found) = pick(frame.stream, frame.message().unwrap())
            {
                return Some(found);
            }
        }
    }

    fn exec(&mut self) -> Option<u32> {
        let stream = self.wait(|stream, message| matches!(message, Message::Exec(_)).then_some(stream))?;
        self.say(stream, &Message::Started { pid: 7 });
        Some(stream)
    }

    fn signal(&mut self) -> Option<(u32, i32)> {
        self.wait(|stream, message| match message {
            Message::Signal { signal } => Some((stream, signal)),
            _ => None,
        })
    }

    fn exited(&mut self, stream: u32, code: i32) {
        self.say(stream, &Message::Exited(ExitStatus::Code(code)));
    }

    /// Ends the main command with 42: the script came this far.
    fn came_far(&mut self) {
        if let Some(stream) = self.exec() {
            self.exited(stream, 42);
        }
        self.until_shutdown();
    }

    fn until_shutdown(&mut self) {
        let _ = self.wait(|_, message| matches!(message, Message::Shutdown { .. }).then_some(()));
    }
}

type Script = Box<dyn FnOnce(&mut Agent) + Send>;

struct Scripted {
    script: Mutex<Option<Script>>,
    /// Whether the machine stands still (`None`: it cannot).
    frozen: Option<Arc<AtomicBool>>,
    hangs: bool,
    speaks: (u32, u32),
}

struct Fake {
    control: UnixStream,
    child: Child,
    pidfd: OwnedFd,
    process: ProcessIdentity,
    frozen: Option<Arc<AtomicBool>>,
    hangs: bool,
}

impl Driver for Scripted {
    fn name(&self) -> &'static str {
        "scripted"
    }
    fn isolation(&self) -> Isolation {
        Isolation::Namespace
    }
    fn check(&self, _: &VmSettings) -> Vec<Check> {
        Vec::new()
    }
    fn plan(&self, _: &LaunchSpec) -> Result<String, DriverError> {
        Ok(String::new())
    }
    fn launch(&self, _: &LaunchSpec) -> Result<Box<dyn Machine>, DriverError> {
        let (control, theirs) = UnixStream::pair().unwrap();
        // The machine's process lives as long as the script, which holds the other end of its input.
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let alive = child.stdin.take();
        let (min, max) = self.speaks;
        let script = self.script.lock().unwrap().take().expect("launched once");
        std::thread::spawn(move || {
            let mut agent = Agent { stream: theirs, decoder: Decoder::new() };
            let enforced = vec!["rename-notify".to_owned()];
            agent.say(0, &Message::Hello(Hello { min, max, features: vec!["not-known-yet".into()], enforced }));
            script(&mut agent);
            drop(alive);
        });
        let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        let process = ProcessIdentity { pid: child.id(), start_time: 0, boot_id: String::new() };
        Ok(Box::new(Fake { control, child, pidfd, process, frozen: self.frozen.clone(), hangs: self.hangs }))
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Machine for Fake {
    fn control(&self) -> &UnixStream {
        &self.control
    }
    fn process(&self) -> &ProcessIdentity {
        &self.process
    }
    fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
    fn notes(&self) -> &[String] {
        &[]
    }
    fn kill(&mut self) -> io::Result<()> {
        if !self.hangs {
            self.child.kill()?;
        }
        Ok(())
    }
    fn take_egress(&mut self) -> Option<OwnedFd> {
        Some(std::fs::File::open("/dev/null").unwrap().into())
    }
    fn freeze(&mut self) -> io::Result<()> {
        self.frozen.as_ref().ok_or(io::ErrorKind::Unsupported)?.store(true, Ordering::SeqCst);
        Ok(())
    }
    fn thaw(&mut self) -> io::Result<()> {
        self.frozen.as_ref().ok_or(io::ErrorKind::Unsupported)?.store(false, Ordering::SeqCst);
        Ok(())
    }
}

fn spec() -> LaunchSpec {
    let (name, group, shell) = ("u".into(), "u".into(), "/bin/sh".into());
    LaunchSpec {
        id: "x".into(),
        name: "x".into(),
        mode: Mode::Work,
        trees: vec![],
        views: vec![],
        home: Mount { source: "/".into(), at: "/".into() },
        tmp: "/".into(),
        system: vec![],
        toolchains: vec![],
        covers: vec![],
        links: vec![],
        files: vec![],
        user: User { name, group, uid: 1000, gid: 1000, shell, root: false },
        hostname: "x".into(),
        env: vec![],
        network: Network::None,
        mirror: false,
        limits: Limits::default(),
        allow_weak: vec![],
        require: vec![],
        nested: false,
        program: "/bin/false".into(),
        vm: None,
    }
}

struct Setup {
    once: bool,
    timeout: Option<Duration>,
    commit_back: &'static str,
    reserve: Reserve,
    disk: Option<u64>,
    auto_commit: bool,
    rescue: &'static str,
    rescue_every: Option<Duration>,
    serve_host: &'static str,
    freezer: bool,
    /// KILL has no effect on the machine before its script ends.
    hangs: bool,
    /// The network is `allow`, and this is the proxy; its lines end where a line of input does.
    proxy: Option<&'static str>,
    /// The versions of the protocol that the agent says it speaks.
    speaks: (u32, u32),
}

const SETUP: Setup = Setup {
    once: false,
    timeout: None,
    commit_back: "true",
    reserve: Reserve::None,
    disk: None,
    auto_commit: false,
    rescue: "true",
    rescue_every: None,
    serve_host: "true",
    freezer: false,
    hangs: false,
    proxy: None,
    speaks: VERSIONS,
};

struct Running {
    root: tempfile::TempDir,
    dir: SandboxDir,
    frozen: Arc<AtomicBool>,
    /// One byte for each TERM.
    terminate: UnixStream,
    thread: JoinHandle<()>,
}

impl Setup {
    /// Starts a supervisor, with the script as its agent; children see the test's directory as `$1`.
    fn run(self, script: impl FnOnce(&mut Agent) + Send + 'static) -> (Running, Connection) {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(&root.path().join("s")).unwrap();
        let dir = store.sandbox(&SandboxId::random());
        make_dir(dir.path()).unwrap();
        let lock = FileLock::exclusive(&dir.lock_file()).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (terminate, terminated) = UnixStream::pair().unwrap();
        let own = root.path().to_string_lossy().into_owned();
        let shell = |script: &str| ["/bin/sh", "-c", script, "sh", &own].map(str::to_owned).to_vec();
        let config = Config {
            dir: dir.clone(),
            spec: LaunchSpec {
                network: self.proxy.map_or(Network::None, |_| Network::Allow),
                limits: Limits { disk: self.disk, ..Limits::default() },
                ..spec()
            },
            first_client: Some(theirs),
            once: self.once,
            timeout: self.timeout,
            lock,
            commit_back: shell(self.commit_back),
            auto_commit: self.auto_commit,
            rescue: shell(self.rescue),
            rescue_every: self.rescue_every,
            serve_host: shell(self.serve_host),
            proxy: shell(self.proxy.unwrap_or("false")),
            mirror: shell("false"),
            reserve: self.reserve,
            terminate: Some(terminated.into()),
        };
        let frozen = Arc::new(AtomicBool::new(false));
        let driver = Scripted {
            script: Mutex::new(Some(Box::new(script))),
            frozen: self.freezer.then(|| Arc::clone(&frozen)),
            hangs: self.hangs,
            speaks: self.speaks,
        };
        let thread = std::thread::spawn(move || supervise(config, &driver).unwrap());
        (Running { root, dir, frozen, terminate, thread }, Connection::new(ours).unwrap())
    }
}

impl Running {
    fn connect(&self) -> Connection {
        self.connect_with(&[])
    }

    fn connect_with(&self, features: &[&str]) -> Connection {
        use std::os::fd::AsRawFd;
        // Through a descriptor, as clients do: the path of a test directory may be too long.
        let dir = std::fs::File::open(self.dir.path()).unwrap();
        let ctl = format!("/proc/self/fd/{}/ctl", dir.as_raw_fd());
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            match UnixStream::connect(&ctl) {
                Ok(stream) => return Connection::with_features(stream, features).unwrap(),
                Err(error) if Instant::now() > until => panic!("{error}"),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Waits for the end and returns the last status.
    fn ended(self) -> StatusRecord {
        let until = Instant::now() + Duration::from_secs(20);
        while !self.thread.is_finished() {
            assert!(Instant::now() < until, "the supervisor does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        self.thread.join().unwrap();
        assert!(!self.dir.ctl().exists());
        read_json(&self.dir.status()).unwrap().unwrap()
    }

    fn stop(self, connection: &mut Connection) -> StatusRecord {
        let (answer, _) = connection.ask(&Message::Stop { grace_ms: 10 }, 1 << 20).unwrap();
        assert_eq!(answer, Message::Done);
        self.ended()
    }
}

fn command(main: bool) -> Exec {
    Exec { argv: vec!["work".into()], cwd: "/".into(), main, ..Exec::default() }
}

fn exec(connection: &mut Connection, exec: Exec) -> u32 {
    let stream = connection.open();
    connection.send(stream, &Message::Exec(exec)).unwrap();
    stream
}

/// Reads a stream until it ends; returns its output and how it ended.
fn collect(connection: &mut Connection, stream: u32) -> (Vec<u8>, Message) {
    let mut out = Vec::new();
    loop {
        let frame = connection.recv().unwrap();
        if frame.stream != stream {
            continue;
        }
        match frame.kind {
            FrameType::Control => match frame.message().unwrap() {
                Message::Started { .. } | Message::Credit { .. } => {}
                end => return (out, end),
            },
            _ => out.extend_from_slice(&frame.payload),
        }
    }
}

fn exited(code: i32) -> Message {
    Message::Exited(ExitStatus::Code(code))
}

fn serves(connection: &mut Connection) {
    assert!(matches!(connection.ask(&Message::AskStatus, 1 << 20).unwrap().0, Message::Status(_)));
}

#[test]
fn the_main_session_is_relayed_logged_and_attached_to() {
    let (running, mut first) = SETUP.run(|agent| {
        let stream = agent.exec().unwrap();
        agent.data(FrameType::Stdout, stream, b"one ");
        assert_eq!(agent.signal(), Some((stream, 10)));
        agent.data(FrameType::Stdout, stream, b"two");
        agent.exited(stream, 3);
        agent.until_shutdown();
    });
    let stream = exec(&mut first, command(true));
    while first.recv().unwrap().payload != b"one " {}
    first.send(stream, &Message::Detach).unwrap();
    assert_eq!(collect(&mut first, stream).1, Message::Done);
    let mut second = running.connect();
    let attached = second.open();
    second.send(attached, &Message::Attach { session: 0, replay: 100 }).unwrap();
    while second.recv().unwrap().payload != b"one " {}
    second.send(attached, &Message::Signal { signal: 10 }).unwrap();
    assert_eq!(collect(&mut second, attached), (b"two".to_vec(), exited(3)));
    // Whoever comes later reads how it ended.
    let late = second.open();
    second.send(late, &Message::Attach { session: 0, replay: 3 }).unwrap();
    assert_eq!(collect(&mut second, late), (b"two".to_vec(), exited(3)));
    let status = running.stop(&mut second);
    assert!(status.stopped && status.home);
    assert_eq!(status.exited.unwrap().0, ExitStatus::Code(3));
}

#[test]
fn input_that_waits_is_sent_before_the_end_of_input() {
    let size = 3 * WINDOW as usize;
    let (running, mut client) = SETUP.run(|agent| {
        let stream = agent.exec().unwrap();
        // Everything that can be under way is, and somebody who only looks on is attached.
        std::thread::sleep(Duration::from_millis(300));
        let mut got = 0;
        loop {
            let frame = agent.next().unwrap();
            match frame.kind {
                FrameType::Stdin => {
                    got += frame.payload.len();
                    let bytes = frame.payload.len() as u64;
                    agent.say(stream, &Message::Credit { channel: Channel::Stdin, bytes });
                }
                FrameType::Control if frame.message().unwrap() == Message::CloseStdin => break,
                _ => {}
            }
        }
        agent.data(FrameType::Stdout, stream, got.to_string().as_bytes());
        agent.exited(stream, 0);
        agent.until_shutdown();
    });
    let mut watcher = running.connect();
    let looking = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        let stream = watcher.open();
        watcher.send(stream, &Message::Attach { session: 0, replay: 0 }).unwrap();
        watcher.send(stream, &Message::CloseStdin).unwrap();
        collect(&mut watcher, stream)
    });
    let (status, out, _) = client.run(command(true), &vec![b'x'; size], 1 << 20).unwrap();
    assert_eq!((status, out), (ExitStatus::Code(0), size.to_string().into_bytes()));
    assert_eq!(looking.join().unwrap().1, exited(0));
    running.stop(&mut client);
}

#[test]
fn a_slow_client_slows_the_main_session_and_costs_bounded_memory() {
    let (running, mut client) = SETUP.run(|agent| {
        let stream = agent.exec().unwrap();
        // An honest agent sends what the window allows.
        let (mut window, mut sent) = (WINDOW as usize, 0);
        agent.stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        loop {
            if window > 0 {
                let n = window.min(32 * 1024);
                agent.data(FrameType::Stdout, stream, &vec![b'x'; n]);
                (window, sent) = (window - n, sent + n);
                continue;
            }
            match agent.next().map(|frame| frame.message().unwrap()) {
                Some(Message::Credit { bytes, .. }) => window += bytes as usize,
                Some(_) => {}
                None => break,
            }
        }
        agent.stream.set_read_timeout(None).unwrap();
        agent.exited(stream, i32::from(sent > 4 << 20));
        agent.until_shutdown();
    });
    let stream = exec(&mut client, command(true));
    let mut other = running.connect();
    std::thread::sleep(Duration::from_millis(1000));
    // Others are served meanwhile.
    serves(&mut other);
    assert_eq!(collect(&mut client, stream).1, exited(0));
    running.stop(&mut other);
}

#[test]
fn a_client_that_vanishes_leaves_the_main_session_and_hangs_up_its_terminal() {
    let (running, mut first) = SETUP.run(|agent| {
        let main = agent.exec().unwrap();
        let other = agent.exec().unwrap();
        assert_eq!(agent.signal(), Some((other, 1)));
        agent.exited(other, 129);
        agent.data(FrameType::Stdout, main, b"still here");
        agent.until_shutdown();
    });
    exec(&mut first, command(true));
    let tty = Some(sandbox_protocol::WindowSize { rows: 1, cols: 1 });
    exec(&mut first, Exec { tty, ..command(false) });
    for _ in 0..2 {
        while !matches!(first.recv().unwrap().message(), Ok(Message::Started { .. })) {}
    }
    drop(first);
    let mut second = running.connect();
    let stream = second.open();
    std::thread::sleep(Duration::from_millis(100));
    second.send(stream, &Message::Attach { session: 0, replay: 100 }).unwrap();
    while second.recv().unwrap().payload != b"still here" {}
    assert_eq!(running.stop(&mut second).exited.unwrap().0, ExitStatus::Signal(9));
}

#[test]
fn with_once_it_ends_with_its_last_session_or_its_last_client() {
    let once = || Setup { once: true, ..SETUP };
    let (running, mut client) = once().run(Agent::came_far);
    let stream = exec(&mut client, command(true));
    assert_eq!(collect(&mut client, stream).1, exited(42));
    assert!(running.ended().stopped);
    let (running, client) = once().run(Agent::until_shutdown);
    drop(client);
    assert!(running.ended().stopped);
}

#[test]
fn who_has_just_connected_is_heard_before_the_end() {
    let (running, mut first) = Setup { once: true, ..SETUP }.run(|agent| {
        let stream = agent.exec().unwrap();
        agent.exited(stream, 0);
        agent.came_far();
    });
    let mut second = running.connect();
    let stream = exec(&mut first, command(true));
    collect(&mut first, stream);
    std::thread::sleep(Duration::from_millis(100));
    let stream = exec(&mut second, command(false));
    assert_eq!(collect(&mut second, stream).1, exited(42));
    running.ended();
}

#[test]
fn a_timeout_ends_the_command() {
    let timeout = Some(Duration::from_millis(100));
    let (running, mut client) = Setup { once: true, timeout, ..SETUP }.run(|agent| {
        agent.exec().unwrap();
        let (stream, signal) = agent.signal().unwrap();
        agent.say(stream, &Message::Exited(ExitStatus::Signal(signal)));
        agent.until_shutdown();
    });
    let stream = exec(&mut client, command(true));
    assert_eq!(collect(&mut client, stream).1, Message::Exited(ExitStatus::Signal(15)));
    assert!(running.ended().timed_out);
    // One of centuries is none.
    let (running, mut client) = Setup { timeout: Some(Duration::MAX), ..SETUP }.run(Agent::until_shutdown);
    exec(&mut client, command(true));
    assert!(!running.stop(&mut client).timed_out);
}

#[test]
fn a_request_larger_than_a_message_is_refused() {
    let (running, mut client) = SETUP.run(Agent::until_shutdown);
    // Fits as it is sent, not with the fields that are written out when it is passed on.
    let (head, tail) = (&br#"{"op":"exec","argv":[""#[..], &br#""],"cwd":"/"}"#[..]);
    let filler = vec![b'x'; sandbox_protocol::MAX_PAYLOAD - head.len() - tail.len()];
    let stream = client.open();
    client.send_data(FrameType::Control, stream, &[head, &filler, tail].concat()).unwrap();
    match collect(&mut client, stream).1 {
        Message::Error(failure) => assert_eq!(failure.kind, FailureKind::Limit),
        other => panic!("{other:?}"),
    }
    running.stop(&mut client);
}

#[test]
fn long_command_lines_do_not_break_the_status() {
    let (running, mut client) = SETUP.run(Agent::until_shutdown);
    for _ in 0..3 {
        exec(&mut client, Exec { argv: vec!["x".repeat(50_000), "y".into()], ..command(false) });
    }
    match client.ask(&Message::AskStatus, 1 << 20).unwrap().0 {
        Message::Status(status) => assert_eq!(status.sessions.len(), 3),
        other => panic!("{other:?}"),
    }
    running.stop(&mut client);
}

#[test]
fn hostile_frames_harm_nobody() {
    let (running, mut client) = SETUP.run(|agent| {
        let stream = agent.exec().unwrap();
        for hostile in [stream, 9998, 9999, 0] {
            agent.data(FrameType::Stdin, hostile, b"x");
            for channel in [Channel::Stdin, Channel::Stdin, Channel::Stdout, Channel::Stdout] {
                agent.say(hostile, &Message::Credit { channel, bytes: u64::MAX });
            }
            agent.say(hostile, &Message::Attach { session: 0, replay: u64::MAX });
            agent.say(hostile, &Message::Stop { grace_ms: 0 });
            agent.say(hostile, &Message::Shutdown { grace_ms: 0 });
        }
        let message = "{\"message\":\"\u{1b}]0;x\u{7}\"}".to_owned();
        agent.say(stream, &Message::Error(Failure { kind: FailureKind::Other, message }));
        agent.until_shutdown();
    });
    let stream = exec(&mut client, command(false));
    match collect(&mut client, stream).1 {
        Message::Error(failure) => assert_eq!(failure.message, "the sandbox said: {\"message\":\"?]0;x?\"}"),
        other => panic!("{other:?}"),
    }
    running.stop(&mut client);
}

#[test]
fn an_agent_that_floods_a_client_that_does_not_read_cuts_that_client_off() {
    let (running, mut client) = SETUP.run(|agent| {
        let stream = agent.exec().unwrap();
        // 46 MB, whatever the window is.
        for _ in 0..768 {
            agent.data(FrameType::Stdout, stream, &[b'x'; 60_000]);
        }
        agent.came_far();
    });
    exec(&mut client, command(false));
    let mut other = running.connect();
    let stream = exec(&mut other, command(true));
    assert_eq!(collect(&mut other, stream).1, exited(42));
    let mut read = 0;
    let end = loop {
        match client.recv() {
            Ok(frame) => read += frame.payload.len(),
            Err(error) => break error,
        }
    };
    assert!(matches!(end, ConnectionError::Closed), "{end}");
    assert!(read < 20 << 20, "{read}");
    running.stop(&mut other);
}

#[test]
fn what_is_not_in_the_protocol_ends_the_sandbox() {
    let (running, client) = SETUP.run(|agent| {
        agent.stream.write_all(&[0xff; 64]).unwrap();
        agent.until_shutdown();
    });
    let status = running.ended();
    assert!(!status.stopped && !status.home);
    drop(client);
}

#[test]
fn an_agent_with_a_version_in_common_is_spoken_with_and_another_is_not() {
    let newer = Setup { speaks: (VERSIONS.1, VERSIONS.1 + 7), ..SETUP };
    let (running, mut client) = newer.run(Agent::until_shutdown);
    serves(&mut client);
    assert!(!running.stop(&mut client).enforced.is_empty());
    for speaks in [(VERSIONS.1 + 1, VERSIONS.1 + 7), (0, VERSIONS.0 - 1)] {
        let (running, client) = Setup { speaks, ..SETUP }.run(Agent::until_shutdown);
        let status = running.ended();
        assert!(!status.stopped && status.enforced.is_empty(), "{speaks:?}");
        drop(client);
    }
}

#[test]
fn a_client_of_a_newer_program_uses_a_sandbox_that_goes_on() {
    let (running, mut client) = SETUP.run(Agent::until_shutdown);
    let hello =
        Hello { min: VERSIONS.0, max: VERSIONS.1 + 7, features: vec!["not-known-yet".into()], enforced: vec![] };
    client.send(0, &Message::Hello(hello)).unwrap();
    serves(&mut client);
    running.stop(&mut client);
}

#[test]
fn the_last_output_arrives_though_the_first_process_is_gone() {
    let (running, mut client) = SETUP.run(|agent| {
        let stream = agent.exec().unwrap();
        agent.data(FrameType::Stdout, stream, &[b'x'; 150_000]);
    });
    let stream = exec(&mut client, command(true));
    let (out, end) = collect(&mut client, stream);
    assert_eq!((out.len(), end), (150_000, Message::Exited(ExitStatus::Signal(9))));
    running.ended();
}

#[test]
fn commit_back_answers_everyone_who_asked() {
    let (running, mut client) = Setup { commit_back: "echo 'sandbox/x  new..1'", ..SETUP }.run(|agent| {
        agent.say(1, &Message::CommitBack);
        let out = loop {
            let frame = agent.next().unwrap();
            if frame.stream == 1 && frame.kind == FrameType::Stdout {
                break frame.payload;
            }
        };
        assert_eq!(out, b"sandbox/x  new..1\n");
        assert_eq!(agent.wait(|stream, message| (stream == 1).then_some(message)), Some(Message::Done));
        agent.came_far();
    });
    let (answer, told) = client.ask(&Message::CommitBack, 1 << 20).unwrap();
    assert_eq!((answer, told), (Message::Done, b"sandbox/x  new..1\n".to_vec()));
    std::thread::sleep(Duration::from_millis(1500));
    let stream = exec(&mut client, command(true));
    assert_eq!(collect(&mut client, stream).1, exited(42));
    running.stop(&mut client);
}

#[test]
fn a_failed_commit_back_says_why_and_is_not_home() {
    let commit_back = r"printf 'error: no \033]0;room\n' >&2; exit 1";
    let (running, mut client) = Setup { commit_back, ..SETUP }.run(Agent::until_shutdown);
    match client.ask(&Message::CommitBack, 1 << 20) {
        Err(ConnectionError::Refused(failure)) => assert_eq!(failure.message, "no ?]0;room"),
        other => panic!("{other:?}"),
    }
    assert!(!running.stop(&mut client).home);
}

/// What the host's git says, and where things are on the host, is for clients.
#[test]
fn inside_learns_what_was_refused_and_nothing_else_of_the_host() {
    for (error, told) in [
        ("cannot write /home/ann/state: disk full", "commit-back failed on the host"),
        ("not brought home: 'x' (no)", "not brought home: 'x' (no)"),
    ] {
        let commit_back: &'static str =
            format!(r#"echo line; echo 'warning: /home/ann' >&2; echo "error: {error}" >&2; exit 1"#).leak();
        let (running, mut client) = Setup { commit_back, ..SETUP }.run(move |agent| {
            agent.say(1, &Message::CommitBack);
            let mut out = Vec::new();
            let answer = loop {
                let frame = agent.next().unwrap();
                match frame.kind {
                    _ if frame.stream != 1 => {}
                    FrameType::Stdout => out.extend_from_slice(&frame.payload),
                    FrameType::Control => break frame.message().unwrap(),
                    _ => {}
                }
            };
            assert_eq!(out, b"line\n");
            assert!(matches!(&answer, Message::Error(failure) if failure.message == told), "{answer:?}");
            agent.came_far();
        });
        match client.ask(&Message::CommitBack, 1 << 20) {
            Err(ConnectionError::Refused(failure)) => assert_eq!(failure.message, error),
            other => panic!("{other:?}"),
        }
        std::thread::sleep(Duration::from_millis(1500));
        let stream = exec(&mut client, command(true));
        assert_eq!(collect(&mut client, stream).1, exited(42));
        running.stop(&mut client);
    }
}

#[test]
fn a_ref_that_moved_comes_home_before_the_end() {
    let (running, mut client) = Setup { commit_back: r#"echo run >> "$1/runs""#, ..SETUP }.run(|agent| {
        let stream = agent.exec().unwrap();
        agent.say(0, &Message::RefsMoved { gitdir: "/w/.git".into() });
        agent.exited(stream, 0);
        agent.until_shutdown();
    });
    let runs = running.root.path().join("runs");
    let stream = exec(&mut client, command(true));
    collect(&mut client, stream);
    let (answer, _) = client.ask(&Message::Stop { grace_ms: 10 }, 1 << 20).unwrap();
    assert_eq!(answer, Message::Done);
    assert!(std::fs::read_to_string(runs).unwrap().starts_with("run"));
    assert!(running.ended().home);
}

#[test]
fn what_a_command_left_is_committed_once_whatever_happens_to_the_helper() {
    let commit_back = r#"echo "$2 $3" >>"$1/runs"
        case $(wc -l <"$1/runs") in
            1) echo 'error: no' >&2; exit 1;;
            2) kill -9 $$;;
            3) for dir in "$1"/s/sandboxes/*; do
                   echo '{"commit":null,"files":0,"why_not":"a merge is in progress"}' >"$dir/auto-commit.json"
               done;;
        esac"#;
    let (running, mut client) = Setup { commit_back, auto_commit: true, ..SETUP }.run(|agent| {
        for _ in 0..2 {
            let stream = agent.exec().unwrap();
            agent.exited(stream, 0);
        }
        agent.until_shutdown();
    });
    let stream = exec(&mut client, command(true));
    assert_eq!(collect(&mut client, stream).1, exited(0));
    let mut failed = 0;
    while client.ask(&Message::CommitBack, 1 << 20).is_err() {
        failed += 1;
    }
    assert!(failed <= 2, "{failed}");
    client.ask(&Message::CommitBack, 1 << 20).unwrap();
    let runs = std::fs::read_to_string(running.root.path().join("runs")).unwrap();
    assert_eq!(runs, "--auto-commit work\n--auto-commit work\n--auto-commit work\n \n");
    let log = std::fs::read_to_string(running.dir.log()).unwrap();
    assert_eq!(log, "git-sandbox: not committed automatically: a merge is in progress\n");
    // The next command's is its own.
    let stream = exec(&mut client, command(true));
    assert_eq!(collect(&mut client, stream).1, exited(0));
    client.ask(&Message::CommitBack, 1 << 20).unwrap();
    let runs = std::fs::read_to_string(running.root.path().join("runs")).unwrap();
    assert!(runs.ends_with(" \n--auto-commit work\n"), "{runs}");
    running.stop(&mut client);
}

#[test]
fn it_stands_still_as_long_as_somebody_who_asked_is_there() {
    let (running, mut client) = Setup { freezer: true, ..SETUP }.run(Agent::until_shutdown);
    let still = || running.frozen.load(Ordering::SeqCst);
    assert!(matches!(client.ask(&Message::Thaw, 1 << 10), Err(ConnectionError::Refused(_))));
    let mut other = running.connect();
    assert_eq!(client.ask(&Message::Freeze, 1 << 10).unwrap().0, Message::Done);
    assert_eq!(other.ask(&Message::Freeze, 1 << 10).unwrap().0, Message::Done);
    assert!(still());
    assert_eq!(client.ask(&Message::Thaw, 1 << 10).unwrap().0, Message::Done);
    assert!(still(), "the other one needs it");
    // Killed: nothing stays frozen for it.
    drop(other);
    let until = Instant::now() + Duration::from_secs(10);
    while still() {
        assert!(Instant::now() < until, "it stays frozen");
        std::thread::sleep(Duration::from_millis(5));
    }
    running.stop(&mut client);
    let (running, mut client) = SETUP.run(Agent::until_shutdown);
    match client.ask(&Message::Freeze, 1 << 10) {
        Err(ConnectionError::Refused(failure)) => assert_eq!(failure.kind, FailureKind::Unsupported),
        other => panic!("{other:?}"),
    }
    running.stop(&mut client);
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < until, "still not: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn held(agent: &mut Agent, wanted: bool) -> Option<u32> {
    agent.wait(|stream, message| matches!(message, Message::Hold { on } if on == wanted).then_some(stream))
}

#[test]
fn what_has_no_room_is_frozen_and_goes_on_with_room() {
    let (running, mut client) = Setup { disk: Some(64 << 10), ..SETUP }.run(|agent| {
        for on in [true, false] {
            let Some(stream) = held(agent, on) else { return };
            agent.say(stream, &Message::Done);
        }
        agent.until_shutdown();
    });
    let frozen = || read_json::<StatusRecord>(&running.dir.status()).unwrap().and_then(|status| status.frozen);
    match client.ask(&Message::GoOn { disk: None }, 1 << 10) {
        Err(ConnectionError::Refused(failure)) => assert_eq!(failure.message, "the sandbox is not frozen"),
        other => panic!("{other:?}"),
    }
    let large = running.dir.home().join("large");
    make_dir(&running.dir.home()).unwrap();
    std::fs::write(&large, vec![1; 100 << 10]).unwrap();
    wait_until("it is frozen", || {
        frozen().is_some_and(|frozen| frozen.why == FrozenBy::Limit && frozen.bound == 64 << 10)
    });
    match client.ask(&Message::GoOn { disk: None }, 1 << 10) {
        Err(ConnectionError::Refused(failure)) => assert_eq!(failure.kind, FailureKind::Frozen),
        other => panic!("{other:?}"),
    }
    std::fs::remove_file(&large).unwrap();
    wait_until("it goes on", || frozen().is_none());
    running.stop(&mut client);
}

/// A reserve that no disk has: only this sandbox's own things are done.
#[test]
fn with_no_room_for_the_host_no_session_is_begun() {
    let (running, mut client) = Setup { reserve: Reserve::Bytes(u64::MAX), ..SETUP }.run(|agent| {
        let Some(stream) = held(agent, true) else { return };
        agent.say(stream, &Message::Done);
        let Some(stream) = agent.exec() else { return };
        agent.exited(stream, 0);
        agent.until_shutdown();
    });
    let frozen = || read_json::<StatusRecord>(&running.dir.status()).unwrap().and_then(|status| status.frozen);
    wait_until("it is frozen", || frozen().is_some_and(|frozen| frozen.why == FrozenBy::DiskFull));
    match client.run(command(false), b"", 1 << 10) {
        Err(ConnectionError::Refused(failure)) => assert_eq!(failure.kind, FailureKind::Frozen),
        other => panic!("{other:?}"),
    }
    let internal = Exec { internal: true, ..command(false) };
    assert_eq!(client.run(internal, b"", 1 << 10).unwrap().0, ExitStatus::Code(0));
    running.stop(&mut client);
}

/// Whoever does not answer is frozen with everything else, or ended.
#[test]
fn an_agent_that_does_not_hold_them_is_held_itself() {
    let full = Setup { disk: Some(64 << 10), ..SETUP };
    let fill = |dir: &SandboxDir| {
        make_dir(&dir.home()).unwrap();
        std::fs::write(dir.home().join("large"), vec![1; 100 << 10]).unwrap();
    };
    let (running, mut client) = Setup { freezer: true, ..full }.run(Agent::until_shutdown);
    fill(&running.dir);
    wait_until("the machine stands still", || running.frozen.load(Ordering::SeqCst));
    assert_eq!(client.ask(&Message::GoOn { disk: Some(0) }, 1 << 10).unwrap().0, Message::Done);
    assert!(!running.frozen.load(Ordering::SeqCst));
    running.stop(&mut client);
    let (running, _client) = Setup { disk: Some(64 << 10), ..SETUP }.run(Agent::until_shutdown);
    fill(&running.dir);
    assert!(running.ended().stopped, "it was ended and has not crashed");
}

#[test]
fn a_flood_of_ref_moves_is_not_a_flood_of_processes() {
    let (running, mut client) = Setup { commit_back: r#"echo run >> "$1/runs""#, ..SETUP }.run(|agent| {
        let until = Instant::now() + Duration::from_millis(2500);
        let mut asked = 1;
        while Instant::now() < until {
            agent.say(0, &Message::RefsMoved { gitdir: "/w/.git".into() });
            if asked < 201 {
                agent.say(asked, &Message::CommitBack);
                asked += 2;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        agent.until_shutdown();
    });
    std::thread::sleep(Duration::from_millis(2000));
    let runs = std::fs::read_to_string(running.root.path().join("runs")).unwrap().lines().count();
    assert!((2..=6).contains(&runs), "{runs} in two seconds");
    // Whoever is on the host and asks does not wait for a pause.
    client.ask(&Message::CommitBack, 1 << 20).unwrap();
    running.stop(&mut client);
}

/// The lines of the events' log, as soon as one of them has `word`.
fn events(running: &Running, word: &str) -> String {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let text = std::fs::read_to_string(running.dir.events()).unwrap_or_default();
        if text.contains(word) {
            return text;
        }
        assert!(Instant::now() < until, "no '{word}' in {text}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for the next event that a client is told of.
fn told(client: &mut Connection) -> Happened {
    loop {
        let frame = client.recv().unwrap();
        if frame.kind == FrameType::Control
            && frame.stream == 0
            && let Message::Event(event) = frame.message().unwrap()
        {
            return event.what;
        }
    }
}

fn wants_events(client: &mut Connection) {
    let hello = Hello { min: VERSIONS.0, max: VERSIONS.1, features: vec![EVENTS.into()], enforced: vec![] };
    client.send(0, &Message::Hello(hello)).unwrap();
}

#[test]
fn a_refusal_is_told_at_once_and_every_decision_is_written_down() {
    let proxy = r#"
        until [ -e "$1/go" ]; do sleep 0.01; done
        echo '{"at":1,"event":"network","verdict":"allowed","host":"good.test","port":443}'
        echo 'not an event'
        printf '{"at":2,"event":"network","verdict":"refused","host":"bad.test",'
        sleep 0.05
        echo '"port":443,"process":"curl"}'
        echo "$2 $3" > "$1/args"
        exec sleep 30"#;
    let (running, mut client) = Setup { proxy: Some(proxy), ..SETUP }.run(Agent::came_far);
    let mut silent = running.connect();
    wants_events(&mut client);
    client.ask(&Message::AskStatus, 1 << 20).unwrap();
    std::fs::write(running.root.path().join("go"), "").unwrap();
    let Happened::Network(network) = told(&mut client) else { panic!("another event") };
    assert_eq!((network.host.as_str(), network.process.as_deref()), ("bad.test", Some("curl")));
    let text = events(&running, "bad.test");
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(text.lines().next().unwrap().contains(r#""event":"started","argv":[]"#), "{text}");
    assert!(text.lines().nth(1).unwrap().contains(r#""verdict":"allowed","method":"","host":"good.test""#), "{text}");
    // Who did not ask is not told: the next word is the answer to its own question.
    silent.ask(&Message::AskStatus, 1 << 20).unwrap();
    let stream = exec(&mut client, command(true));
    assert_eq!(collect(&mut client, stream).1, exited(42));
    let text = events(&running, r#""event":"exited","status":42"#);
    assert!(text.contains(r#""event":"started","argv":["work"]"#), "{text}");
    let args = std::fs::read_to_string(running.root.path().join("args")).unwrap();
    assert!(args.starts_with("--init ") && args.trim_end().len() > "--init ".len(), "{args}");
    running.stop(&mut client);
}

#[test]
fn the_end_of_the_proxy_is_told() {
    let proxy = r#"
        until [ -e "$1/go" ]; do sleep 0.01; done
        printf '{"at":3,"event":"network","verdict":"closed","host":"last.test","port":443}\n'
        kill -9 $$"#;
    let (running, mut client) = Setup { proxy: Some(proxy), ..SETUP }.run(Agent::came_far);
    wants_events(&mut client);
    client.ask(&Message::AskStatus, 1 << 20).unwrap();
    std::fs::write(running.root.path().join("go"), "").unwrap();
    // It is started again, and what it says then counts too; but not for ever.
    for _ in 0..3 {
        let Happened::NetworkRestarted { reason } = told(&mut client) else { panic!("another event") };
        assert_eq!(reason, "its proxy ended (signal: 9 (SIGKILL))");
    }
    let Happened::NetworkEnded { reason } = told(&mut client) else { panic!("another event") };
    assert_eq!(reason, "its proxy ended (signal: 9 (SIGKILL))");
    let text = events(&running, "network-ended");
    assert!(text.contains("last.test"), "{text}");
    // The sandbox goes on without a network.
    let stream = exec(&mut client, command(true));
    assert_eq!(collect(&mut client, stream).1, exited(42));
    running.stop(&mut client);
}

#[test]
fn the_host_is_served_to_the_inside() {
    let serve_host = r#"read line; echo "served $line to $2 by ${3:-default}""#;
    let (running, mut client) = Setup { serve_host, ..SETUP }.run(|agent| {
        agent.say(1, &Message::ServeHost { repo: 4, protocol: Some("version=2\nx".into()) });
        agent.data(FrameType::Stdin, 1, b"want\n");
        let mut out = Vec::new();
        let end = loop {
            let frame = agent.next().unwrap();
            match (frame.stream, frame.kind) {
                (1, FrameType::Stdout) => out.extend_from_slice(&frame.payload),
                (1, FrameType::Control) => match frame.message().unwrap() {
                    Message::Started { .. } | Message::Credit { .. } => {}
                    end => break end,
                },
                _ => {}
            }
        };
        assert_eq!(String::from_utf8(out).unwrap(), "served want to 4 by default\n");
        assert_eq!(end, exited(0));
        agent.came_far();
    });
    std::thread::sleep(Duration::from_millis(200));
    let stream = exec(&mut client, command(true));
    assert_eq!(collect(&mut client, stream).1, exited(42));
    running.stop(&mut client);
}

#[test]
fn fetches_of_the_host_are_few_at_once() {
    let (running, mut client) = Setup { serve_host: "exec sleep 30", ..SETUP }.run(|agent| {
        for n in 0..40u32 {
            agent.say(2 * n + 1, &Message::ServeHost { repo: 0, protocol: None });
        }
        for _ in 0..24 {
            let kind = agent.wait(|_, message| match message {
                Message::Error(failure) => Some(failure.kind),
                _ => None,
            });
            assert_eq!(kind, Some(FailureKind::Limit));
        }
        agent.came_far();
    });
    std::thread::sleep(Duration::from_millis(300));
    let stream = exec(&mut client, command(true));
    assert_eq!(collect(&mut client, stream).1, exited(42));
    running.stop(&mut client);
}

const TTY: Option<WindowSize> = Some(WindowSize { rows: 24, cols: 80 });

/// Sends `total` bytes of a letter on a stream, as the window allows; false if it never opened for a second time.
fn pour(agent: &mut Agent, stream: u32, total: usize) -> bool {
    let (mut window, mut sent) = (WINDOW as usize, 0);
    agent.stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    while sent < total {
        if window > 0 {
            let n = window.min(32 * 1024).min(total - sent);
            agent.data(FrameType::Stdout, stream, &vec![b'x'; n]);
            (window, sent) = (window - n, sent + n);
            continue;
        }
        match agent.next().map(|frame| frame.message().unwrap()) {
            Some(Message::Credit { bytes, .. }) => window += bytes as usize,
            Some(_) => {}
            None => return false,
        }
    }
    agent.stream.set_read_timeout(None).unwrap();
    true
}

/// It was suspended, or its line is dead.
#[test]
fn a_terminal_that_stands_still_does_not_hold_up_the_main_session() {
    const TOTAL: usize = 4 << 20;
    let (running, mut client) = SETUP.run(|agent| {
        let stream = agent.exec().unwrap();
        let poured = pour(agent, stream, TOTAL);
        agent.data(FrameType::Stdout, stream, b"\nlast line\n");
        agent.exited(stream, i32::from(!poured));
        agent.until_shutdown();
    });
    let mut terminal = running.connect_with(&[SCREEN]);
    let stream = exec(&mut terminal, command(true));
    // Somebody else sees the end of it though nobody reads here.
    wait_for(&mut client, |status| status.sessions.is_empty() && status.silent_secs.is_some());
    let (out, end) = collect(&mut terminal, stream);
    assert_eq!(end, exited(0));
    let text = String::from_utf8_lossy(&out);
    assert!(text.ends_with("\nlast line\n"), "its last words are shown");
    assert!(text.contains(" KiB of output were not shown here]") && out.len() < TOTAL, "{} bytes", out.len());
    running.stop(&mut client);
}

fn wait_for(client: &mut Connection, what: impl Fn(&sandbox_protocol::Status) -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let (answer, _) = client.ask(&Message::AskStatus, 1 << 20).unwrap();
        let Message::Status(status) = answer else { panic!("{answer:?}") };
        if what(&status) {
            return;
        }
        assert!(Instant::now() < until, "{status:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_terminal_that_joins_gets_the_modes_and_not_the_pictures() {
    let (running, mut first) = SETUP.run(|agent| {
        let stream = agent.exec().unwrap();
        agent.data(FrameType::Stdout, stream, b"line\n\x1b[?2004h\x1b[?1049h\x1b[?25lpicture");
        assert_eq!(agent.signal(), Some((stream, 10)));
        agent.data(FrameType::Stdout, stream, b"\x1b[?1049l\x1b[?25hafter it\n");
        assert_eq!(agent.signal(), Some((stream, 11)));
        agent.until_shutdown();
    });
    let main = exec(&mut first, Exec { tty: TTY, ..command(true) });
    while !first.recv().unwrap().payload.ends_with(b"picture") {}
    let mut second = running.connect();
    let mut joined = |first: &mut Connection, then: i32| {
        let stream = second.open();
        second.send(stream, &Message::Attach { session: 0, replay: 1 << 16 }).unwrap();
        let mut seen = Vec::new();
        loop {
            let frame = second.recv().unwrap();
            match frame.kind {
                _ if frame.stream != stream => {}
                FrameType::Control => break,
                _ => seen.extend(frame.payload),
            }
        }
        first.send(main, &Message::Signal { signal: then }).unwrap();
        String::from_utf8(seen).unwrap()
    };
    assert_eq!(joined(&mut first, 10), "\x1b[?1049h\x1b[?2004h\x1b[?25l\x1b[2J\x1b[H");
    while !first.recv().unwrap().payload.ends_with(b"after it\n") {}
    assert_eq!(joined(&mut first, 11), "\x1b[?25hafter it\n\x1b[?2004h");
    running.stop(&mut first);
}

/// What is inside need not help, and nobody is waited for who hangs.
#[test]
fn a_stop_does_not_wait_for_cooperation() {
    // The last commit-back hangs, and the agent says nothing more.
    let setup = Setup { commit_back: "exec sleep 1000", ..SETUP };
    let (running, mut client) = setup.run(|agent| {
        agent.say(0, &Message::RefsMoved { gitdir: "/x/.git".into() });
        while agent.next().is_some() {}
    });
    serves(&mut client);
    let status = running.stop(&mut client);
    assert!(status.stopped && !status.home, "{status:?}");
}

#[test]
fn a_second_stop_without_grace_is_at_once() {
    let setup = || Setup { commit_back: "exec sleep 1000", ..SETUP };
    let moved = |agent: &mut Agent| {
        agent.say(0, &Message::RefsMoved { gitdir: "/x/.git".into() });
        while agent.next().is_some() {}
    };
    // The graces are hours: only the second one ends it.
    let (running, mut client) = setup().run(moved);
    serves(&mut client);
    let stream = client.open();
    client.send(stream, &Message::Stop { grace_ms: 9_999_999 }).unwrap();
    for _ in 0..2 {
        let stream = client.open();
        client.send(stream, &Message::Stop { grace_ms: 0 }).unwrap();
    }
    assert!(running.ended().stopped);
    // The same by TERM.
    let (mut running, mut client) = setup().run(moved);
    serves(&mut client);
    for _ in 0..3 {
        running.terminate.write_all(b"t").unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(running.ended().stopped);
}

#[test]
fn what_the_kernel_holds_on_to_is_named() {
    let (hold, release) = std::sync::mpsc::channel();
    let (running, mut client) = Setup { hangs: true, ..SETUP }.run(move |agent| {
        agent.until_shutdown();
        let _ = release.recv();
    });
    let refused = client.ask(&Message::Stop { grace_ms: 0 }, 1 << 20).unwrap_err();
    let ConnectionError::Refused(Failure { message, .. }) = refused else { panic!("{refused:?}") };
    assert!(message.contains("was killed and does not end: something inside hangs in the kernel"), "{message}");
    // The lock is held for as long as anything could write.
    assert!(FileLock::try_exclusive(&running.dir.lock_file()).unwrap().is_none());
    hold.send(()).unwrap();
    assert!(running.ended().stopped);
}

#[test]
fn a_sandbox_whose_directory_was_removed_is_stopped_and_says_so() {
    let (running, mut client) = SETUP.run(Agent::until_shutdown);
    serves(&mut client);
    std::fs::remove_dir_all(running.dir.path()).unwrap();
    let frame = client.recv().unwrap();
    let Ok(Message::Error(Failure { message, .. })) = frame.message() else { panic!("{frame:?}") };
    assert!(message.contains("was removed: the sandbox is stopped"), "{message}");
    let until = Instant::now() + Duration::from_secs(20);
    while !running.thread.is_finished() {
        assert!(Instant::now() < until, "the supervisor does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!running.dir.path().exists(), "nothing was made anew");
}

#[test]
fn a_client_of_another_protocol_is_told_and_harms_nobody() {
    let (running, mut client) = SETUP.run(Agent::until_shutdown);
    serves(&mut client);
    let mut out = Vec::new();
    let hello = Hello { min: 98, max: 99, features: vec![], enforced: vec![] };
    encode_control(&mut out, 0, &Message::Hello(hello));
    encode_control(&mut out, 2, &Message::Stop { grace_ms: 0 });
    use std::os::fd::AsRawFd;
    let dir = std::fs::File::open(running.dir.path()).unwrap();
    let mut other = UnixStream::connect(format!("/proc/self/fd/{}/ctl", dir.as_raw_fd())).unwrap();
    other.write_all(&out).unwrap();
    let (mut decoder, mut bytes) = (Decoder::new(), Vec::new());
    other.read_to_end(&mut bytes).unwrap();
    decoder.push(&bytes);
    let mut said = Vec::new();
    while let Some(frame) = decoder.next_frame().unwrap() {
        said.push(frame.message().unwrap());
    }
    assert!(matches!(&said[0], Message::Hello(_)));
    let Message::Error(Failure { kind: FailureKind::Unsupported, message }) = &said[1] else { panic!("{said:?}") };
    assert_eq!(message, "this sandbox was started by a git-sandbox of protocol 1 to 1, the command speaks 98 to 99");
    serves(&mut client);
    running.stop(&mut client);
}
