//! The agent for real: PID 1 of its own user, pid and mount namespaces, over an overlay that an
//! ordinary user mounts, and a blocking client to speak with it.
#![allow(dead_code)]

use sandbox_protocol::*;
use sandbox_sys::seccomp::{Answer, NATIVE_ARCH, Policy, Rule};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// The directories of one sandbox, which outlive its agent.
pub struct Home {
    dir: TempDir,
}

impl Home {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["lower", "upper", "work", "tree"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { dir }
    }

    /// The captured state: to be filled before the start.
    pub fn lower(&self) -> PathBuf {
        self.dir.path().join("lower")
    }

    pub fn upper(&self) -> PathBuf {
        self.dir.path().join("upper")
    }

    /// Where the tree is, inside.
    pub fn tree(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    pub fn start(&self) -> Agent {
        self.start_with(|_| {})
    }

    pub fn start_with(&self, change: impl FnOnce(&mut AgentConfig)) -> Agent {
        match self.try_start(change) {
            Ok(agent) => agent,
            Err(failure) => panic!("{failure:?}"),
        }
    }

    /// Starts it; or what it said in place of a hello.
    pub fn try_start(&self, change: impl FnOnce(&mut AgentConfig)) -> Result<Agent, Failure> {
        Agent::start(self, change)
    }
}

pub fn filter(notify: bool) -> FilterBytes {
    let renames: &[i64] = &[
        #[cfg(target_arch = "x86_64")]
        libc_rename::RENAME,
        libc_rename::RENAMEAT,
        libc_rename::RENAMEAT2,
    ];
    let mut rules = vec![Rule { nr: 9999, tests: vec![], answer: Answer::Errno(1) }];
    if notify {
        rules.extend(renames.iter().map(|nr| Rule { nr: *nr as u32, tests: vec![], answer: Answer::Notify }));
    }
    FilterBytes(
        Policy { arch: NATIVE_ARCH, ceiling: 10_000, rules, otherwise: Answer::Allow }.compile().unwrap().to_bytes(),
    )
}

#[cfg(target_arch = "x86_64")]
mod libc_rename {
    pub const RENAME: i64 = 82;
    pub const RENAMEAT: i64 = 264;
    pub const RENAMEAT2: i64 = 316;
}
#[cfg(target_arch = "aarch64")]
mod libc_rename {
    pub const RENAMEAT: i64 = 38;
    pub const RENAMEAT2: i64 = 276;
}

/// Sets the namespace up as the driver does and becomes the agent. `$1` the home, `$2` the program.
const LAUNCH: &str = r#"
    exec 3<&0 4<&1 0</dev/null 1>/dev/null
    set -e
    mount --make-rprivate /
    mount -t overlay overlay -o "lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/work,userxattr" "$1/tree"
    mount -t tmpfs tmpfs /run
    mkdir -p /run/git-sandbox/bin
    touch /run/git-sandbox/bin/git-sandbox
    mount --bind "$2" /run/git-sandbox/bin/git-sandbox
    mount -t devpts devpts /dev/pts -o newinstance,ptmxmode=0666
    mount --bind /dev/pts/ptmx /dev/ptmx
    cd /
    exec env -i /usr/bin/setpriv --bounding-set -all --inh-caps=-all,+sys_ptrace --ambient-caps=-all,+sys_ptrace \
        --no-new-privs /bin/bash -c 'exec -a git-sandbox-agent "$0"' /run/git-sandbox/bin/git-sandbox
"#;

pub struct Agent {
    pub client: Client,
    pub hello: Hello,
    child: Child,
    tree: PathBuf,
}

impl Agent {
    fn start(home: &Home, change: impl FnOnce(&mut AgentConfig)) -> Result<Self, Failure> {
        let mut config = AgentConfig {
            id: "test".into(),
            name: "test".into(),
            env: vec![
                ("PATH".into(), "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin".into()),
                ("HOME".into(), home.tree().to_str().unwrap().into()),
                ("TERM".into(), "dumb".into()),
                ("LC_ALL".into(), "C.UTF-8".into()),
                ("GIT_CONFIG_NOSYSTEM".into(), "1".into()),
            ],
            cwd: home.tree(),
            trees: vec![AgentTree { at: home.tree(), read_only: false, rename_exdev: true }],
            base_filter: filter(false),
            session_filter: filter(true),
            rename_notify: true,
            enforced: vec!["pid".into()],
            ..AgentConfig::default()
        };
        change(&mut config);
        let mut file = tempfile::tempfile().unwrap();
        serde_json::to_writer(&mut file, &config).unwrap();
        file.flush().unwrap();

        let program = env!("CARGO_BIN_EXE_agent-for-tests");
        let (ours, theirs) = UnixStream::pair().unwrap();
        let child = Command::new("unshare")
            .args(["--user", "--map-current-user", "--keep-caps", "--mount", "--pid", "--fork", "--ipc"])
            .args(["--mount-proc", "--kill-child", "/bin/bash", "-c", LAUNCH, "launch"])
            .args([home.dir.path(), Path::new(program)])
            .stdin(OwnedFd::from(theirs))
            .stdout(OwnedFd::from(file))
            .stderr(Stdio::inherit())
            .spawn()
            .expect("util-linux's unshare");
        let mut agent = Self { client: Client::new(ours), hello: no_hello(), child, tree: home.tree() };
        match agent.client.message_of(0) {
            Message::Hello(hello) => agent.hello = hello,
            Message::Error(failure) => return Err(failure),
            other => panic!("{other:?} in place of a hello"),
        }
        Ok(agent)
    }

    /// An `Exec` in the tree.
    pub fn command(&self, argv: &[&str]) -> Exec {
        Exec {
            argv: argv.iter().map(|text| escape_bytes(text.as_bytes())).collect(),
            cwd: self.tree.to_str().unwrap().into(),
            ..Exec::default()
        }
    }

    /// Runs a shell script in the tree to its end.
    pub fn sh(&mut self, script: &str) -> Ran {
        let exec = self.command(&["bash", "-c", script]);
        self.client.run(exec, b"")
    }

    /// Runs a script that must succeed; returns what it printed.
    #[track_caller]
    pub fn ok(&mut self, script: &str) -> String {
        let ran = self.sh(script);
        assert!(ran.status == Ok(ExitStatus::Code(0)), "{script}: {ran:?}");
        ran.stdout()
    }

    /// Kills PID 1, as a crash of it would be, and waits until all of it is gone.
    pub fn crash(mut self) {
        // The child of `unshare` is PID 1.
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        let pid = std::fs::read_to_string(children).unwrap();
        let killed = Command::new("kill").args(["-9", pid.trim()]).status().unwrap();
        assert!(killed.success());
        self.child.wait().unwrap();
    }

    /// Closes the control channel.
    pub fn hang_up(&mut self) {
        self.client.stream.shutdown(std::net::Shutdown::Both).unwrap();
    }

    /// Pid of PID 1 outside.
    pub fn pid(&self) -> u32 {
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        std::fs::read_to_string(children).unwrap().trim().parse().unwrap()
    }

    /// Waits for the agent's own end.
    pub fn wait(&mut self) -> std::process::ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "the agent does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn no_hello() -> Hello {
    Hello { min: 0, max: 0, features: vec![], enforced: vec![] }
}

/// A finished command.
#[derive(Debug)]
pub struct Ran {
    pub status: Result<ExitStatus, Failure>,
    pub out: Vec<u8>,
    pub err: Vec<u8>,
}

impl Ran {
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }
}

/// A blocking client.
pub struct Client {
    stream: UnixStream,
    decoder: Decoder,
    next: u32,
    /// Frames of other streams that came while one was waited for.
    waiting: VecDeque<Frame>,
}

impl Client {
    pub fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Self { stream, decoder: Decoder::new(), next: 2, waiting: VecDeque::new() };
        let hello = Hello { min: VERSIONS.0, max: VERSIONS.1, features: vec![], enforced: vec![] };
        client.send(0, &Message::Hello(hello));
        client
    }

    pub fn connect(path: &Path) -> Self {
        Self::new(UnixStream::connect(path).unwrap())
    }

    pub fn hello(&mut self) -> Hello {
        match self.message_of(0) {
            Message::Hello(hello) => hello,
            other => panic!("{other:?} in place of a hello"),
        }
    }

    pub fn send(&mut self, stream: u32, message: &Message) {
        let mut out = Vec::new();
        encode_control(&mut out, stream, message);
        self.stream.write_all(&out).unwrap();
    }

    pub fn send_data(&mut self, stream: u32, bytes: &[u8]) {
        self.send_data_as(FrameType::Stdin, stream, bytes);
    }

    pub fn send_data_as(&mut self, kind: FrameType, stream: u32, bytes: &[u8]) {
        let mut out = Vec::new();
        for chunk in bytes.chunks(MAX_PAYLOAD) {
            encode(&mut out, kind, stream, chunk);
        }
        self.stream.write_all(&out).unwrap();
    }

    pub fn open(&mut self, message: &Message) -> u32 {
        let stream = self.next;
        self.next += 2;
        self.send(stream, message);
        stream
    }

    /// The next frame of any stream; `None` when the agent has closed the connection.
    pub fn try_frame(&mut self) -> Option<Frame> {
        if let Some(frame) = self.waiting.pop_front() {
            return Some(frame);
        }
        self.frame_from_wire()
    }

    fn frame_from_wire(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame);
            }
            let mut bytes = [0; 32 * 1024];
            match self.stream.read(&mut bytes) {
                Ok(0) => return None,
                Ok(n) => self.decoder.push(&bytes[..n]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no word from the agent: {error}"),
            }
        }
    }

    /// The next frame of one stream.
    pub fn frame_of(&mut self, stream: u32) -> Frame {
        if let Some(at) = self.waiting.iter().position(|frame| frame.stream == stream) {
            return self.waiting.remove(at).unwrap();
        }
        loop {
            let frame = self.frame_from_wire().expect("the agent is there");
            if frame.stream == stream {
                return frame;
            }
            self.waiting.push_back(frame);
        }
    }

    /// The next message of one stream; data is an error.
    pub fn message_of(&mut self, stream: u32) -> Message {
        let frame = self.frame_of(stream);
        assert_eq!(frame.kind, FrameType::Control, "{frame:?}");
        frame.message().unwrap()
    }

    /// Waits until a message for which `wanted` holds came on a stream.
    pub fn until(&mut self, stream: u32, wanted: impl Fn(&Message) -> bool) -> Message {
        loop {
            let frame = self.frame_of(stream);
            if frame.kind == FrameType::Control {
                let message = frame.message().unwrap();
                if wanted(&message) {
                    return message;
                }
            }
        }
    }

    /// Reads output of a stream, granting credit, until it contains `text`.
    #[track_caller]
    pub fn expect(&mut self, stream: u32, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            let frame = self.frame_of(stream);
            match frame.kind {
                FrameType::Stdout => {
                    seen.push_str(&String::from_utf8_lossy(&frame.payload));
                    let bytes = frame.payload.len() as u64;
                    self.send(stream, &Message::Credit { channel: Channel::Stdout, bytes });
                }
                FrameType::Control => match frame.message().unwrap() {
                    Message::Exited(status) => panic!("ended ({status:?}) before '{text}' came, after: {seen}"),
                    Message::Error(failure) => panic!("{failure:?}"),
                    _ => {}
                },
                _ => {}
            }
        }
        seen
    }

    /// Runs a command to its end.
    pub fn run(&mut self, exec: Exec, input: &[u8]) -> Ran {
        let stream = self.open(&Message::Exec(exec));
        self.finish(stream, input)
    }

    /// Feeds a started command and collects it to its end.
    pub fn finish(&mut self, stream: u32, input: &[u8]) -> Ran {
        let (mut sent, mut window, mut closed) = (0, WINDOW as usize, false);
        let (mut out, mut err) = (Vec::new(), Vec::new());
        loop {
            let n = window.min(input.len() - sent);
            self.send_data(stream, &input[sent..sent + n]);
            (sent, window) = (sent + n, window - n);
            if sent == input.len() && !closed {
                self.send(stream, &Message::CloseStdin);
                closed = true;
            }
            let frame = self.frame_of(stream);
            match frame.kind {
                FrameType::Control => match frame.message().unwrap() {
                    Message::Exited(status) => return Ran { status: Ok(status), out, err },
                    Message::Error(failure) => return Ran { status: Err(failure), out, err },
                    Message::Credit { channel: Channel::Stdin, bytes } => window += bytes as usize,
                    _ => {}
                },
                kind => {
                    let (sink, channel) = match kind {
                        FrameType::Stdout => (&mut out, Channel::Stdout),
                        _ => (&mut err, Channel::Stderr),
                    };
                    sink.extend_from_slice(&frame.payload);
                    self.send(stream, &Message::Credit { channel, bytes: frame.payload.len() as u64 });
                }
            }
        }
    }
}

/// Waits until something holds.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "{what} never came true");
        std::thread::sleep(Duration::from_millis(10));
    }
}
