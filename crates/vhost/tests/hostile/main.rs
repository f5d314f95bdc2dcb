//! A guest that means harm to the vsock device: what the device's process may come to hold is looked at from outside.
//!
//! ```text
//!   this binary ─┬─ as a test: plays the VMM and the guest's kernel (a ring in shared memory), and the host's servers
//!                └─ device PLAN: the role, behind its wall
//! ```
#![forbid(unsafe_code)]

mod guest;

use guest::{Guest, Packet, op};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sandbox_vhost::vsock::Plan;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::catch_unwind;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Far more than a busy machine needs.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// More than the device has connections, several times.
const MANY: u32 = 3000;
/// Connections at a time, descriptors of its own, and what a table of descriptors is rounded up to.
const DESCRIPTORS: u64 = 2048;
/// What all windows come to (64 of 64 KiB, the others of 4 KiB), with as much again for what holds them.
const MEMORY_KIB: u64 = 24 * 1024;

const ALL: &[(&str, fn())] = &[
    ("connections_without_end_are_refused", connections_without_end_are_refused),
    ("what_nobody_reads_is_bounded", what_nobody_reads_is_bounded),
    ("resets_leave_nothing", resets_leave_nothing),
    ("half_open_connections_are_bounded", half_open_connections_are_bounded),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [role, plan] = args.as_slice()
        && role == "device"
    {
        return device(plan);
    }
    let filter = args.iter().find(|arg| !arg.starts_with('-'));
    let list = args.iter().any(|arg| arg == "--list");
    let most = getrlimit(Resource::Nofile).maximum;
    // The other ends of all that are here.
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).expect("a limit that it may have");
    let few = most.is_some_and(|most| most < 2 * DESCRIPTORS);
    let (mut failed, mut passed, mut skipped) = (0, 0, 0);
    for (name, test) in ALL.iter().filter(|(name, _)| filter.is_none_or(|filter| name.contains(filter.as_str()))) {
        if list {
            println!("{name}: test");
        } else if few {
            skipped += 1;
            println!("test {name} ... ignored, this user may not have the descriptors of so many connections");
        } else if catch_unwind(test).is_ok() {
            passed += 1;
            println!("test {name} ... ok");
        } else {
            failed += 1;
            println!("test {name} ... FAILED");
        }
    }
    if !list {
        let result = if failed == 0 { "ok" } else { "FAILED" };
        println!(
            "\ntest result: {result}. {passed} passed; {failed} failed; {skipped} ignored; 0 measured; 0 filtered out"
        );
    }
    ExitCode::from(u8::from(failed > 0))
}

fn device(plan: &str) -> ExitCode {
    let plan: Plan = serde_json::from_str(plan).expect("a plan");
    let taken = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().expect("a socket");
    let (vmm, host) = (taken(std::io::stdin().as_fd()), taken(std::io::stdout().as_fd()));
    match sandbox_vhost::vsock::run(vmm.into(), host, &plan) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("device: {error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
            ExitCode::FAILURE
        }
    }
}

/// A device and its guest.
struct Scene {
    guest: Guest,
    device: Child,
    dir: tempfile::TempDir,
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.device.kill();
        let _ = self.device.wait();
    }
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Root's device becomes this user.
        let user = rustix::process::geteuid().is_root().then_some((1_879_048_192, 1_879_048_192));
        let out = dir.path().join("out");
        fs::create_dir(&out).unwrap();
        let at = |name: &str| dir.path().join(name);
        let vmm = OwnedFd::from(UnixListener::bind(at("vmm")).unwrap());
        let host = OwnedFd::from(UnixListener::bind(at("host")).unwrap());
        let plan = Plan {
            cid: guest::CID,
            incoming: true,
            outgoing: Some(out.join("port")),
            user,
            parent: std::process::id(),
        };
        if let Some((uid, gid)) = user {
            std::os::unix::fs::chown(&out, Some(uid), Some(gid)).unwrap();
        }
        let device = Command::new(std::env::current_exe().unwrap())
            .args(["device", &serde_json::to_string(&plan).unwrap()])
            .stdin(Stdio::from(vmm))
            .stdout(Stdio::from(host))
            .spawn()
            .unwrap();
        let guest = Guest::boot(UnixStream::connect(at("vmm")).unwrap());
        Self { guest, device, dir }
    }

    /// Somebody of the host's at a port.
    fn listen(&self, port: u32) -> UnixListener {
        let path = self.dir.path().join(format!("out/port_{port}"));
        let listener = UnixListener::bind(&path).unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(1_879_048_192), Some(1_879_048_192)).unwrap();
        }
        listener
    }

    /// The room for descriptors that the kernel made for it, and its own memory in KiB.
    fn holds(&self) -> (u64, u64) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.device.id())).unwrap();
        let number = |key: &str| {
            let line = status.lines().find(|line| line.starts_with(key)).expect("the kernel says it");
            line.split_ascii_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number")
        };
        (number("FDSize:"), number("RssAnon:"))
    }

    #[track_caller]
    fn is_bounded(&self) {
        let (descriptors, memory) = self.holds();
        assert!(descriptors <= DESCRIPTORS && memory <= MEMORY_KIB, "{descriptors} descriptors, {memory} KiB");
    }

    /// It still does its work: a new connection carries bytes both ways.
    #[track_caller]
    fn works(&mut self, host: u32) {
        let listener = self.listen(host);
        let ports = (host, 77);
        self.guest.send(&[Packet::new(op::REQUEST, ports)]);
        self.guest.until(|packet| packet.op == op::RESPONSE && packet.ports == ports);
        let (mut stream, _) = listener.accept().unwrap();
        self.guest.send(&[Packet::with(op::RW, ports, b"ping")]);
        let mut ping = [0; 4];
        stream.read_exact(&mut ping).unwrap();
        stream.write_all(b"pong").unwrap();
        let said = self.guest.until(|packet| packet.op == op::RW && packet.ports == ports);
        assert_eq!((&ping, &*said.data), (b"ping", &b"pong"[..]));
        self.guest.send(&[Packet::new(op::RST, ports)]);
    }
}

/// Takes connections and reads nothing.
struct Host {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Host {
    /// With `keep` it holds them until its end.
    fn new(listener: UnixListener, keep: bool) -> Self {
        listener.set_nonblocking(true).unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let told = over.clone();
        let thread = std::thread::spawn(move || {
            let mut held = Vec::new();
            while !told.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => held.extend(keep.then_some(stream)),
                    Err(_) => std::thread::sleep(Duration::from_micros(200)),
                }
            }
        });
        Self { over, thread: Some(thread) }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn connections_without_end_are_refused() {
    let mut scene = Scene::new();
    let _host = Host::new(scene.listen(1), true);
    // It never reads: at some time nothing more is taken of it, and that is no more than memory for so many answers.
    let (mut port, mut taken) = (0, true);
    while taken && port < MANY {
        let packets: Vec<Packet> = (port..port + 64).map(|port| Packet::new(op::REQUEST, (1, port))).collect();
        taken = scene.guest.offer(&packets, Duration::from_secs(2));
        port += 64;
    }
    scene.is_bounded();
    // Once it reads, each was answered, and no more are open than there may be.
    scene.guest.read_everything();
    let (mut open, mut refused) = (0, 0);
    for port in port..port + MANY {
        scene.guest.send(&[Packet::new(op::REQUEST, (1, port))]);
        let answer = scene.guest.until(|packet| packet.ports == (1, port));
        match answer.op {
            op::RESPONSE => open += 1,
            _ => refused += 1,
        }
    }
    scene.is_bounded();
    assert!(open <= 1024 && refused >= MANY - 1024, "{open} open, {refused} refused");
    for port in 0..2 * MANY {
        scene.guest.send(&[Packet::new(op::RST, (1, port))]);
    }
    scene.works(2);
}

fn what_nobody_reads_is_bounded() {
    let mut scene = Scene::new();
    scene.guest.read_everything();
    let _host = Host::new(scene.listen(1), true);
    let mut open = Vec::new();
    for port in 0..200 {
        scene.guest.send(&[Packet::new(op::REQUEST, (1, port))]);
        // A backlog that is full just now refuses.
        let answer = scene.guest.until(|packet| packet.ports == (1, port));
        open.extend((answer.op == op::RESPONSE).then_some(port));
    }
    assert!(open.len() > 64, "{}", open.len());
    // As if it had never been told how much there may be; what is too much ends the connection.
    let data = vec![b'x'; 4000];
    for _ in 0..90 {
        for port in &open {
            scene.guest.send(&[Packet::with(op::RW, (1, *port), &data)]);
        }
    }
    scene.is_bounded();
    scene.works(2);
}

fn resets_leave_nothing() {
    let mut scene = Scene::new();
    scene.guest.read_everything();
    let _host = Host::new(scene.listen(1), false);
    scene.works(2);
    let before = scene.holds();
    for port in 0..2 * MANY {
        let ports = (1, port);
        scene.guest.send(&[
            Packet::new(op::REQUEST, ports),
            Packet::with(op::RW, ports, b"x"),
            Packet::new(op::RST, ports),
        ]);
    }
    scene.works(3);
    let after = scene.holds();
    // One at a time, so the table of descriptors never had to grow.
    assert_eq!(after.0, before.0);
    assert!(after.1 < before.1 + 4 * 1024, "{before:?} {after:?}");
}

fn half_open_connections_are_bounded() {
    let mut scene = Scene::new();
    scene.guest.read_everything();
    // Of the host: those that never say what they want, and those that the guest never answers.
    let mut hosts = Vec::new();
    for n in 0..1500 {
        let Ok(mut host) = UnixStream::connect(scene.dir.path().join("host")) else { continue };
        if n % 2 == 0 {
            let _ = host.write_all(b"CONNECT 9\n");
        }
        hosts.push(host);
    }
    // Of the guest: it says that it will not send, and goes on to be there.
    let _host = Host::new(scene.listen(1), true);
    for port in 0..MANY {
        let ports = (1, port);
        scene.guest.send(&[Packet::new(op::REQUEST, ports), Packet { flags: 2, ..Packet::new(op::SHUTDOWN, ports) }]);
    }
    scene.is_bounded();
    drop(hosts);
    for port in 0..MANY {
        scene.guest.send(&[Packet::new(op::RST, (1, port))]);
    }
    scene.works(2);
}
