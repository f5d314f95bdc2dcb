//! What a sandbox with `--net allow` can reach and what not. Every probe that proves that something is refused has
//! a control: the same thing inside with the host allowed, or on the host, which shows that it can pass.

use crate::Subject;
use sandbox_testkit::{Child, Origin, Output, Pty, Repo, State, skip, wait_until, which};
use std::fs;
use std::io::{ErrorKind, Read};
use std::net::{TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

over_views_at_length! {
    no_way_leads_around_the_proxy,
    only_what_is_listed_is_reached,
    names_are_resolved_outside_and_only_when_listed,
    a_killed_proxy_is_started_again_and_not_for_ever,
    a_flood_stays_in_its_sandbox,
    slow_headers_are_not_waited_for,
    allow_and_deny_act_at_once,
    a_refusal_is_shown_at_once,
    every_decision_is_one_line_outside,
    tools_find_the_proxy,
    what_contradicts_itself_is_refused_before_anything_is_made,
}

const LIMIT: Duration = Duration::from_secs(60);

/// Skips the test when the machine lacks a program.
macro_rules! needs {
    ($($program:literal),*) => {
        if let Some(missing) = Origin::missing() {
            skip!("{missing}");
        }
        $(if which($program).is_none() {
            skip!("no {}", $program);
        })*
    };
}

/// Puts the probes and the authority to trust into a repository.
fn furnish(repo: &Repo, origin: &Origin) {
    repo.write("probe.py", include_str!("egress_probe.py"));
    repo.write("trust.txt", fs::read(origin.ca()).unwrap());
}

/// An idle sandbox that may reach what the rules say.
#[track_caller]
fn idle(subject: &Subject, repo: &Repo, name: &str, rules: &[&str]) {
    let allow: Vec<&str> = rules.iter().flat_map(|rule| ["--allow", rule]).collect();
    repo.sandbox(&[&["spawn", "--driver", subject.driver, "-d", name, "--net", "allow"], &*allow].concat()).ok();
}

/// A Python probe inside.
#[track_caller]
fn probe(repo: &Repo, name: &str, script: &str) -> Output {
    repo.sandbox(&["exec", name, "--", "python3", "-c", &format!("from probe import *\n{script}")])
}

/// The host's directory of a sandbox.
#[track_caller]
pub fn directory(subject: &Subject, name: &str) -> PathBuf {
    let named = |dir: &PathBuf| {
        let record = fs::read(dir.join("sandbox.json")).ok()?;
        let record: serde_json::Value = serde_json::from_slice(&record).ok()?;
        (record["name"] == name).then_some(())
    };
    let dirs = fs::read_dir(subject.env.state().join("sandboxes")).unwrap().flatten().map(|entry| entry.path());
    dirs.into_iter().find(|dir| named(dir).is_some()).expect("a sandbox of this name")
}

/// The lines of a sandbox's event log.
#[track_caller]
pub fn events(subject: &Subject, name: &str) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(directory(subject, name).join("log/events.jsonl")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// The process ids of the proxies of this test's sandboxes: those that hold its state directory's path as an argument.
fn proxies(subject: &Subject) -> Vec<u32> {
    let state = subject.env.state().to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        if line.split('\0').any(|word| word == "__proxy") && line.contains(&state) {
            found.push(pid);
        }
    }
    found
}

/// Takes connections and keeps what they send; what a probe must not reach.
struct Sink {
    port: u16,
    seen: Arc<Mutex<(usize, Vec<u8>)>>,
}

impl Sink {
    fn new() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new((0, Vec::new())));
        let into = seen.clone();
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                into.lock().unwrap().0 += 1;
                let into = into.clone();
                std::thread::spawn(move || {
                    let (mut stream, mut buffer) = (stream, [0; 4096]);
                    while let Ok(n @ 1..) = stream.read(&mut buffer) {
                        into.lock().unwrap().1.extend_from_slice(&buffer[..n]);
                    }
                });
            }
        });
        Self { port, seen }
    }

    fn connections(&self) -> usize {
        self.seen.lock().unwrap().0
    }

    fn bytes(&self) -> Vec<u8> {
        self.seen.lock().unwrap().1.clone()
    }
}

/// G01, and the first half of G09: the variables are a help for programs, the namespace is the wall.
fn no_way_leads_around_the_proxy(subject: &Subject) {
    needs!("curl");
    let repo = subject.repo(State::Plain);
    let origin = Origin::start(&subject.env, &["allow.test"]);
    furnish(&repo, &origin);
    let (tcp, udp) = (Sink::new(), UdpSocket::bind(("127.0.0.1", 0)).unwrap());
    udp.set_nonblocking(true).unwrap();
    let received = || !matches!(udp.recv(&mut [0; 64]), Err(error) if error.kind() == ErrorKind::WouldBlock);
    let direct = format!(
        "import socket, sys
def reaches(family, kind, address):
    s = socket.socket(family, kind)
    s.settimeout(5)
    try:
        s.connect(address)
        s.send(b'out')
        return True
    except OSError:
        return False
tcp = reaches(socket.AF_INET, socket.SOCK_STREAM, ('127.0.0.1', {}))
reaches(socket.AF_INET, socket.SOCK_DGRAM, ('127.0.0.1', {}))
far = [address for address in ('192.0.2.1', '2001:db8::1') for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
       for port in (53, 443) if reaches(socket.AF_INET6 if ':' in address else socket.AF_INET, kind, (address, port))]
print('tcp' if tcp else 'no tcp', far, len(open('/proc/net/dev').readlines()) - 2, 'devices')",
        tcp.port,
        udp.local_addr().unwrap().port()
    );
    idle(subject, &repo, "in", &[&origin.rule("allow.test")]);
    let seen = repo.sandbox(&["exec", "in", "--", "python3", "-c", &direct]).ok();
    assert_eq!(seen, "no tcp [] 1 devices\n");
    assert_eq!((tcp.connections(), received()), (0, false));

    // The same script where nothing is refused. (Only what is on loopback: nothing leaves the machine.)
    let near = direct.replace("('192.0.2.1', '2001:db8::1')", "()");
    let control = subject.env.run(subject.env.command("python3", repo.dir()).args(["-c", &near])).ok();
    assert!(control.starts_with("tcp ["), "{control}");
    wait_until("the host's sockets hear the control", LIMIT, || tcp.connections() == 1 && received());

    // Without the variables a program is not told of the proxy, and gets nowhere.
    let curl = "curl -sS -m 20 --cacert trust.txt https://allow.test/";
    assert_eq!(subject.exec(&repo, "in", curl).ok(), "reached allow.test\n");
    let bare = subject.exec(&repo, "in", &format!("env -i PATH=\"$PATH\" {curl}"));
    assert_eq!(bare.status, 6, "could not resolve: {bare}");
    let resolved = format!("{curl} --resolve allow.test:443:127.0.0.1");
    let bare = subject.exec(&repo, "in", &format!("env -i PATH=\"$PATH\" {resolved}"));
    assert_eq!(bare.status, 7, "could not connect: {bare}");
}

/// A row of the table below: what it is called in the catalogue of probes, what it tries, and a script that succeeds
/// when that is refused.
const PROBES: &[(&str, &str, &str)] = &[
    (
        "G03",
        "spellings of addresses, none of them listed",
        r#"deny(b"192.0.2.1:443", b"[::1]:443", b"127.0.0.1:39999", b"127.1:39999", b"2130706433:39999", b"0x7f.1:39999",
             b"0177.0.0.1:443", b"0:39999", b"[::ffff:127.0.0.1]:39999", b"localhost:39999", b"localhost.:39999",
             b"127.0.0.1:PORT", b"2130706433:PORT", b"[::ffff:7f00:1]:PORT", b"127.0.0.1:443", b"127.0.0.1.:443")"#,
    ),
    (
        "G04",
        "the metadata services of clouds",
        r#"deny(b"169.254.169.254:80", b"metadata.google.internal:80", b"[fd00:ec2::254]:80", b"100.100.100.200:80",
             b"2852039166:80", b"[::ffff:a9fe:a9fe]:80", b"169.254.169.254:443")"#,
    ),
    (
        "G05",
        "other ports of an allowed host",
        r#"deny(b"allow.test:22", b"allow.test:25", b"allow.test:39999", b"allow.test:0", b"allow.test:65536",
             b"allow.test:-1", b"allow.test:443x", b"allow.test:", b"allow.test", b"allow.test:PORT", b"allow.test:+443")"#,
    ),
    (
        "G06",
        "names that only look like an allowed one",
        r#"deny(b"evilallow.test:443", b"allow.test.evil.test:443", b"allow.test@evil.test:443", b"evil.test@allow.test:443",
             b"allow.test#.evil.test:443", b"allow.test%2eevil.test:443", b"allow%2etest:443", b"\xd0\xb0llow.test:443",
             b"..allow.test:443", b"allow..test:443", b"*.test:443", b"xn--:443", b"sub.allow.test:443", b"test:443",
             b"allow.test\x00.evil.test:443", b"allow.test..:443", b"allow.test/:443", b"a" * 254 + b":443")"#,
    ),
    (
        "G06",
        "the canonical spellings of the allowed name",
        r#"end(all(b"reached" in get(a, name="allow.test") for a in (b"allow.test:443", b"ALLOW.Test:443", b"allow.test.:443")))"#,
    ),
    (
        "G07",
        "a Host header that names another",
        r#"end(400 <= status(b"GET http://allow.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n") < 500
               and 400 <= status(b"GET http://evil.test/ HTTP/1.1\r\nHost: allow.test\r\n\r\n") < 500
               and 400 <= status(b"GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n") < 500
               and 400 <= status(b"GET / HTTP/1.1\r\nHost: allow.test\r\n\r\n") < 500
               and 400 <= status(b"GET http://allow.test/ HTTP/1.1\r\nHost: allow.test\r\nHost: evil.test\r\n\r\n") < 500
               and 400 <= status(b"GET http://allow.test@evil.test/ HTTP/1.1\r\nHost: allow.test\r\n\r\n") < 500
               and 400 <= status(b"GET http://allow.test:81/ HTTP/1.1\r\nHost: allow.test:81\r\n\r\n") < 500)"#,
    ),
    (
        "G07",
        "control: a Host header that names the same",
        r#"end(status(b"GET http://allow.test/ HTTP/1.1\r\nHost: allow.test\r\nConnection: close\r\n\r\n") == 200)"#,
    ),
    (
        "G07",
        "a second request on the same connection is decided anew",
        r#"peer = dial()
peer.sendall(b"GET http://allow.test/one HTTP/1.1\r\nHost: allow.test\r\n\r\n")
one = head(peer)
try:
    peer.sendall(b"GET http://evil.test/two HTTP/1.1\r\nHost: evil.test\r\n\r\n")
    two = head(peer)
except OSError:
    two = b""
end(b" 200 " in one and b" 200 " not in two)"#,
    ),
    (
        "G07",
        "two lengths, or a length and chunks",
        r#"start = b"POST http://allow.test/smuggled HTTP/1.1\r\nHost: allow.test\r\n"
end(400 <= status(start + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n") < 500
               and 400 <= status(start + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!") < 500
               and 400 <= status(start + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n") < 502)"#,
    ),
    (
        "G08",
        "control: the answer that leads elsewhere",
        r#"end(b"https://evil.test/stolen" in get(b"allow.test:443", "/redir"))"#,
    ),
    (
        "G08",
        "a redirect is not followed by the proxy",
        r#"end(status(b"GET http://allow.test/redir HTTP/1.1\r\nHost: allow.test\r\nConnection: close\r\n\r\n") == 302)"#,
    ),
    (
        "G08",
        "a redirect is not followed by curl",
        r#"import subprocess
curl = subprocess.run(["curl", "-sSL", "-m", "20", "--cacert", "trust.txt", "https://allow.test/redir"], capture_output=True)
end(curl.returncode == 56 and b"403" in curl.stderr)"#,
    ),
    (
        "G10",
        "a relay inside speaks with the same proxy under the same policy",
        r#"import threading
relay = socket.create_server(("127.0.0.1", 0))
def pump(a, b):
    try:
        while more := a.recv(4096): b.sendall(more)
    except OSError: pass
    finally:
        try: b.shutdown(socket.SHUT_WR)
        except OSError: pass
def serve():
    while True:
        a, _ = relay.accept()
        b = dial()
        threading.Thread(target=pump, args=(a, b), daemon=True).start()
        threading.Thread(target=pump, args=(b, a), daemon=True).start()
threading.Thread(target=serve, daemon=True).start()
import probe
direct = probe.PROXY
probe.dial = lambda: socket.create_connection(relay.getsockname(), 10)
def dial(): return socket.create_connection((direct.hostname, direct.port), 10)
end(connect(b"evil.test:443") == 403 and b"reached" in get(b"allow.test:443"))"#,
    ),
    (
        "G12",
        "what is not TLS gets no answer in a tunnel",
        r#"end(all(swallowed(raw) for raw in (b"SSH-2.0-probe\r\n", b"GET / HTTP/1.1\r\nHost: allow.test\r\n\r\n",
               b"\x00" * 64, b"\x16\x03\x01\xff\xff" + b"\x01" * 64, b"003egit-upload-pack /x\0host=allow.test\0", b"\x16", b"")))"#,
    ),
    (
        "G12",
        "what is not TLS does not even arrive",
        r#"end(all(swallowed(raw, b"raw.test:443") for raw in (b"SSH-2.0-probe\r\n", b"secret" * 100, b"\x16\x03\x01\x00\x06secret")))"#,
    ),
    (
        "§3.6",
        "another server name than the tunnel's, or none",
        r#"def hello(name):
    try:
        tls(tunnel(b"allow.test:443"), name)
        return True
    except (OSError, ssl.SSLError):
        return False
end(not hello("evil.test") and not hello("sub.allow.test") and not hello(None) and hello("allow.test"))"#,
    ),
    (
        "G12",
        "git and ssh by their own protocols",
        r#"import subprocess
run = lambda *words: subprocess.run(words, capture_output=True, timeout=60).returncode
end(run("git", "ls-remote", "git://allow.test/x") != 0
    and run("git", "-c", "core.sshCommand=ssh -o ConnectTimeout=5", "ls-remote", "ssh://allow.test/x") != 0)"#,
    ),
];

/// G03–G08, G10, G12: one sandbox, one table.
fn only_what_is_listed_is_reached(subject: &Subject) {
    needs!("curl");
    let repo = subject.repo(State::Plain);
    let origin = Origin::start(&subject.env, &["allow.test"]);
    let evil = Origin::start(&subject.env, &["evil.test"]);
    let raw = Sink::new();
    furnish(&repo, &origin);
    let rules =
        [origin.rule("allow.test"), origin.plain_rule("allow.test"), format!("raw.test=127.0.0.1:{}", raw.port)];
    idle(subject, &repo, "in", &rules.iter().map(String::as_str).collect::<Vec<_>>());
    let mut failed = String::new();
    for (id, title, script) in PROBES {
        let seen = probe(&repo, "in", &script.replace("PORT", &evil.https().to_string()));
        if seen.status != 0 {
            failed.push_str(&format!("{id}: {title}\n{seen}\n"));
        }
    }
    assert!(failed.is_empty(), "{failed}");
    assert_eq!(evil.log(), [""; 0], "nothing came to the host that was never allowed");
    assert!(!origin.log().iter().any(|line| line.contains("two") || line.contains("smuggled")), "{:?}", origin.log());
    assert_eq!(raw.bytes(), b"", "nothing but a ClientHello is passed on");

    // Controls: a ClientHello of the right name does arrive, and the host that was never allowed answers when it is.
    let hello = "peer = tunnel(b'raw.test:443')
peer.settimeout(2)
try: tls(peer, 'raw.test')
except OSError: pass";
    probe(&repo, "in", hello).ok();
    wait_until("the ClientHello arrives", LIMIT, || raw.bytes().first() == Some(&0x16));
    repo.sandbox(&["allow", "in", &evil.rule("evil.test")]).ok();
    repo.write("trust.txt", fs::read(evil.ca()).unwrap());
    idle(subject, &repo, "evil", &[&evil.rule("evil.test")]);
    assert_eq!(probe(&repo, "evil", "end(b'reached evil.test' in get(b'evil.test:443'))").status, 0);
    assert_eq!(probe(&repo, "in", "end(connect(b'evil.test:443') == 200)").status, 0);
    let followed = subject.exec(&repo, "in", "curl -sSkL -m 20 https://allow.test/redir");
    assert_eq!(followed.stdout, "reached evil.test\n", "{followed}");
}

/// G02, and that what was checked is what is dialled: in network namespaces of their own, with a name server that
/// keeps a log and names that lead where they should not.
fn names_are_resolved_outside_and_only_when_listed(subject: &Subject) {
    needs!("unshare", "ip");
    if !std::path::Path::new("/etc/resolv.conf").exists() {
        skip!("no /etc/resolv.conf to put another one over");
    }
    let repo = subject.repo(State::Plain);
    let names = ["allow", "opened", "mixed"].map(|name| format!("{name}.test"));
    let dir = Origin::prepare(&subject.env, &names.each_ref().map(String::as_str));
    repo.write("probe.py", include_str!("egress_probe.py"));
    repo.write("trust.txt", fs::read(dir.join("ca.pem")).unwrap());
    repo.write("look.py", LOOK);
    let mut unshare: Vec<&str> = vec!["unshare", "--net", "--mount"];
    if !sandbox_testkit::is_root() {
        unshare.extend(["--user", "--map-current-user", "--keep-caps"]);
    }
    let mut can = subject.env.command(unshare[0], repo.dir());
    let can = subject
        .env
        .run(can.args(&unshare[1..]).args(["ip", "link", "add", "gs0", "type", "veth", "peer", "name", "gs1"]));
    if can.status != 0 {
        skip!("no network namespaces with a cable between them here: {}", can.stderr.trim());
    }
    let script = dir.join("netbox.py");
    fs::write(&script, include_str!("egress_netbox.py")).unwrap();
    let mut command = subject.env.command(unshare[0], repo.dir());
    command.args(&unshare[1..]).arg("python3").arg(&script).arg(&dir);
    command.args(["git-sandbox", "spawn", "--driver", subject.driver, "names", "--net", "allow"]);
    command.args([
        "--allow",
        "opened.test=10.9.0.0/24",
        "--allow",
        "own.test=10.9.0.0/24",
        "--allow",
        "loopback.test=127.0.0.0/8",
    ]);
    for name in ["allow", "private", "metadata", "mixed", "shared", "zero", "nothing"] {
        command.args(["--allow", &format!("{name}.test")]);
    }
    let seen = subject.env.run(command.args(["--", "python3", "look.py"]));
    // Names mean nothing inside; the proxy does not ask for what is not listed; and of an allowed name only the
    // addresses are dialled to which nobody objects: public ones, and private ones that the rule opens.
    assert_eq!(
        seen.stdout,
        "inside: False False False\nunlisted: 403 403\nallow True\nopened True\nmixed True\n\
         private: 403\nmetadata: 403\nshared: 403\nzero: 403\nown: 403\nloopback: 403\nnothing: 502\n",
        "{seen}"
    );
    let queries = fs::read_to_string(dir.join("queries")).unwrap();
    assert!(!queries.contains("evil") && !queries.contains("data.allow") && !queries.contains("direct"), "{queries}");
    for name in ["allow", "opened", "private", "metadata"] {
        let asked = queries.lines().filter(|line| *line == format!("A {name}.test")).count();
        assert_eq!(asked, 1, "'{name}' is resolved once:\n{queries}");
    }
    let seen = events(subject, "names");
    let of = |verdict: &str, field: &str| -> Vec<String> {
        let of = seen.iter().filter(|event| event["verdict"] == verdict);
        of.map(|event| format!("{} {}", event["host"].as_str().unwrap_or("-"), event[field].as_str().unwrap_or("-")))
            .collect()
    };
    assert_eq!(
        of("allowed", "address"),
        ["allow.test 1.2.3.4:443", "opened.test 10.9.0.2:443", "mixed.test 1.2.3.4:443"],
        "what was checked is what was dialled"
    );
    let refused = of("refused", "reason");
    for name in ["private", "metadata", "shared", "zero", "own", "loopback"] {
        assert!(refused.contains(&format!("{name}.test address")), "'{name}' is not in {refused:?}");
    }
    assert!(refused.contains(&"secret.evil.test not-allowed".to_owned()), "{refused:?}");
}

/// What the sandbox of the test above does.
const LOOK: &str = r"from probe import *
def resolves(name):
    try: return bool(socket.getaddrinfo(name, 443))
    except OSError: return False
def asks(name):
    question = b'\x00\x07\x01\x00\x00\x01' + b'\x00' * 6 + b'\x06direct\x04test\x00\x00\x01\x00\x01'
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.settimeout(3)
            s.connect(('127.0.0.1', 53))
            s.send(question)
            return bool(s.recv(512))
    except OSError: return False
print('inside:', resolves('secret.evil.test'), resolves('allow.test'), asks('direct.test'))
print('unlisted:', connect(b'secret.evil.test:443'), connect(b'data.allow.test:443'))
for name in ('allow', 'opened', 'mixed'):
    print(name, b'reached ' + name.encode() + b'.test' in get(name.encode() + b'.test:443'))
for name in ('private', 'metadata', 'shared', 'zero', 'own', 'loopback', 'nothing'):
    print(name + ':', connect(name.encode() + b'.test:443'))
";

/// The second half of G09: the proxy is killed by its id, as often as it is started again.
fn a_killed_proxy_is_started_again_and_not_for_ever(subject: &Subject) {
    needs!("curl");
    let repo = subject.repo(State::Plain);
    let origin = Origin::start(&subject.env, &["allow.test"]);
    furnish(&repo, &origin);
    let rule = origin.rule("allow.test");
    let get = "curl -sS -m 20 --cacert trust.txt https://allow.test/";
    let wait = |file: &str| format!("while ! test -e {file}; do sleep 0.05; done; {get}; echo status $?");
    let script = format!("{get} && touch before && {} && {}", wait("again"), wait("over"));
    let args = [
        "spawn",
        "--driver",
        subject.driver,
        "-t",
        "ends",
        "--on-exit",
        "keep",
        "--allow",
        &rule,
        "--",
        "sh",
        "-c",
        &script,
    ];
    let mut terminal = Pty::spawn(&subject.env.sandbox_command(repo.dir(), &args));
    terminal.expect("reached allow.test");
    let kill = || {
        // One that was just started has not its own name yet.
        wait_until("one proxy runs", LIMIT, || proxies(subject).len() == 1);
        let pid = rustix::process::Pid::from_raw(i32::try_from(proxies(subject)[0]).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    };
    kill();
    // The user is told at once, while the command still runs; with the same policy as before.
    terminal.expect("was cut and is there again");
    subject.exec(&repo, "ends", "touch again").ok();
    terminal.expect("reached allow.test");
    terminal.expect("status 0");
    for _ in 0..2 {
        kill();
        terminal.expect("was cut and is there again");
    }
    kill();
    terminal.expect("has ended");
    subject.exec(&repo, "ends", "touch over").ok();
    let after = terminal.expect("status ");
    assert!(!after.contains("reached"), "{after}");
    let (_, all) = terminal.wait();
    // 28 would be a time-out: nobody is left to answer, and that is known at once.
    let status = all.rsplit("status ").next().unwrap_or_default().split_whitespace().next().unwrap_or_default();
    assert!(!["0", "28"].contains(&status), "curl's status {status}: {all}");
    assert_eq!(origin.log().iter().filter(|line| line.contains("GET /")).count(), 2);
    let of = |kind: &str| events(subject, "ends").iter().filter(|event| event["event"] == kind).count();
    assert_eq!((of("network-restarted"), of("network-ended")), (3, 1));
    assert_eq!(proxies(subject), [0; 0], "what ends again and again stays away");
}

/// G11.
fn a_flood_stays_in_its_sandbox(subject: &Subject) {
    needs!();
    let repo = subject.repo(State::Plain);
    let origin = Origin::start(&subject.env, &["allow.test"]);
    furnish(&repo, &origin);
    let rule = origin.rule("allow.test");
    idle(subject, &repo, "flood", &[&rule]);
    let [proxy] = proxies(subject)[..] else { panic!("one proxy") };
    idle(subject, &repo, "calm", &[&rule]);
    let long = "end(status(b'CONNECT allow.test:443 HTTP/1.1\\r\\nHost: allow.test:443\\r\\nX: ' + b'x' * 65536 + b'\\r\\n\\r\\n') == 431
    and status(b'GET http://allow.test/' + b'x' * 70000 + b' HTTP/1.1\\r\\nHost: allow.test\\r\\n\\r\\n') in (414, 431)
    and b'reached' in get(b'allow.test:443'))";
    assert_eq!(probe(&repo, "flood", long).status, 0);
    // More tunnels at once than there may be, all idle, in rounds; the first of a round get one, and the rest an answer.
    let flood = "import resource, selectors
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
rounds, each = 10, min(1000, min(hard, 4096) - 50)
worst = []
for round in range(rounds):
    open_now, answers = [], {}
    for _ in range(each):
        try:
            peer = socket.create_connection((PROXY.hostname, PROXY.port), 10)
            peer.settimeout(10)
            peer.sendall(b'CONNECT allow.test:443 HTTP/1.1\\r\\nHost: allow.test:443\\r\\n\\r\\n')
            open_now.append(peer)
        except OSError: pass
    for peer in open_now:
        peer.settimeout(5)
        try: word = peer.recv(64).split(b' ')[1:2]
        except OSError: word = [b'none']
        word = word[0] if word else b'closed'
        answers[word] = answers.get(word, 0) + 1
    if round == rounds - 1:
        open('full', 'w').close()
        import time
        while not os.path.exists('go'): time.sleep(0.02)
    for peer in open_now: peer.close()
    worst.append(answers)
print(worst[0])
end(all(0 < seen.get(b'200', 0) <= 256 for seen in worst))";
    let mut args = vec!["exec", "flood", "--", "python3", "-c"];
    let flood = format!("from probe import *\n{flood}");
    args.push(&flood);
    let mut command = subject.env.sandbox_command(repo.dir(), &args);
    let out = fs::File::create(subject.env.root().join("flood.out")).unwrap();
    let mut flooding = Child::spawn(command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out));
    let full = "while ! test -e full; do sleep 0.05; done";
    subject.exec(&repo, "flood", full).ok();
    let memory = fs::read_to_string(format!("/proc/{proxy}/status")).unwrap();
    let peak =
        memory.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    assert!(peak.is_some_and(|kilobytes| kilobytes < 64 * 1024), "the proxy's memory: {memory}");
    assert_eq!(probe(&repo, "calm", "end(b'reached' in get(b'allow.test:443'))").status, 0);
    subject.exec(&repo, "flood", "touch go").ok();
    let status = flooding.wait(LIMIT);
    assert_eq!(status, 0, "{}", fs::read_to_string(subject.env.root().join("flood.out")).unwrap());
    // What was held is free again.
    wait_until("the flooded sandbox has its network back", LIMIT, || {
        probe(&repo, "flood", "end(b'reached' in get(b'allow.test:443'))").status == 0
    });
}

/// G11, slowly: a byte now and then does not hold a place for ever.
fn slow_headers_are_not_waited_for(subject: &Subject) {
    needs!();
    let repo = subject.repo(State::Plain);
    let origin = Origin::start(&subject.env, &["allow.test"]);
    furnish(&repo, &origin);
    idle(subject, &repo, "slow", &[&origin.rule("allow.test")]);
    let drip = "import time
def ended(peer, every):
    for byte in every:
        try: peer.sendall(byte)
        except OSError: return True
        peer.settimeout(0.5)
        try: return b' 200 ' not in peer.recv(64)
        except TimeoutError: pass
        except OSError: return True
    return False
header = dial()
header.sendall(b'CONNECT allow.test:443 HTTP/1.1\\r\\nX: ')
hello = tunnel(b'allow.test:443')
hello.sendall(b'\\x16\\x03\\x01\\x02\\x00\\x01')
import threading
seen = []
threads = [threading.Thread(target=lambda p=p, b=b: seen.append(ended(p, [b] * 100))) for p, b in ((header, b'x'), (hello, b'\\x00'))]
for thread in threads: thread.start()
quick = b'reached' in get(b'allow.test:443')
for thread in threads: thread.join()
end(quick and seen == [True, True])";
    assert_eq!(probe(&repo, "slow", drip).status, 0);
}

fn allow_and_deny_act_at_once(subject: &Subject) {
    needs!("curl");
    let repo = subject.repo(State::Plain);
    let origin = Origin::start(&subject.env, &["allow.test"]);
    furnish(&repo, &origin);
    let rule = origin.rule("allow.test");
    idle(subject, &repo, "live", &[]);
    let reached = || probe(&repo, "live", "end(b'reached' in get(b'allow.test:443'))").status == 0;
    assert_eq!(probe(&repo, "live", "end(connect(b'allow.test:443') == 403)").status, 0, "the empty list denies");
    repo.sandbox(&["allow", "live", &rule]).ok();
    assert!(reached());
    // A tunnel that is open when its host is denied is cut: the server would go on for long.
    let hold = "curl -sS -N --cacert trust.txt https://allow.test/hold >held 2>&1; echo ended $? >end";
    let mut command = subject.env.sandbox_command(repo.dir(), &["exec", "live", "--", "sh", "-c", hold]);
    let mut holding = Child::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
    subject.exec(&repo, "live", "while ! grep -q held held 2>/dev/null; do sleep 0.02; done").ok();
    repo.sandbox(&["deny", "live", "allow.test"]).ok();
    holding.wait(LIMIT);
    let end = subject.exec(&repo, "live", "cat end").ok();
    assert_ne!(end, "ended 0\n");
    assert!(!subject.exec(&repo, "live", "cat held").ok().contains("released"));
    assert_eq!(probe(&repo, "live", "end(connect(b'allow.test:443') == 403)").status, 0);
    repo.sandbox(&["allow", "live", &rule]).ok();
    assert!(reached());
    let rules: Vec<String> = events(subject, "live")
        .iter()
        .filter(|event| event["event"] == "policy")
        .map(|event| format!("{} {}", event["verb"].as_str().unwrap(), event["rules"][0].as_str().unwrap()))
        .collect();
    let allowed = format!("allow {rule}");
    assert_eq!(rules, [allowed.as_str(), "deny allow.test", &allowed]);
    // What was allowed stays so over stop and start.
    repo.sandbox(&["stop", "live"]).ok();
    wait_until("the proxy has ended with its sandbox", LIMIT, || proxies(subject).is_empty());
    repo.sandbox(&["start", "live"]).ok();
    assert!(reached());
    let policies: Vec<_> = events(subject, "live")
        .into_iter()
        .filter(|event| event["event"] == "policy")
        .map(|event| event["verb"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(policies, ["allow", "deny", "allow"]);
    // Nor does a proxy outlive a supervisor that was killed.
    let supervisor =
        subject.env.live_processes().into_iter().find(|(role, _)| role == "supervisor").expect("it runs").1;
    let pid = rustix::process::Pid::from_raw(i32::try_from(supervisor).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    wait_until("the proxy has ended with its supervisor", LIMIT, || proxies(subject).is_empty());
    // Another sandbox has heard nothing of it.
    idle(subject, &repo, "other", &[]);
    assert_eq!(probe(&repo, "other", "end(connect(b'allow.test:443') == 403)").status, 0);
}

fn a_refusal_is_shown_at_once(subject: &Subject) {
    needs!("curl");
    let repo = subject.repo(State::Plain);
    let script =
        "curl -sS https://evil.test/ ; curl -sS https://evil.test/; curl -sS http://other.test/; read line; echo read";
    let args = ["spawn", "--driver", subject.driver, "-t", "shown", "--net", "allow", "--", "sh", "-c", script];
    let mut terminal = Pty::spawn(&subject.env.sandbox_command(repo.dir(), &args));
    let line = "blocked evil.test:443 (curl) — allow it with: git sandbox allow shown evil.test";
    terminal.expect(line);
    terminal.expect("blocked other.test:80 (curl) — allow it with: git sandbox allow shown other.test:80");
    // The command is still there, waiting for a key.
    terminal.send("\r");
    terminal.expect("read");
    let (_, all) = terminal.wait();
    assert_eq!(all.matches("blocked evil.test").count(), 1, "said once, though asked twice: {all}");
    let refused = events(subject, "shown").iter().filter(|event| event["host"] == "evil.test").count();
    assert_eq!(refused, 2, "but each is in the log");
    let listed = repo.sandbox(&["events", "shown"]).ok();
    assert!(listed.contains("evil.test:443") && listed.contains("curl"), "{listed}");
}

fn every_decision_is_one_line_outside(subject: &Subject) {
    needs!();
    let repo = subject.repo(State::Plain);
    let origin = Origin::start(&subject.env, &["allow.test"]);
    furnish(&repo, &origin);
    idle(subject, &repo, "told", &[&origin.rule("allow.test"), &origin.plain_rule("allow.test")]);
    let before = events(subject, "told").len();
    let asks = "get(b'allow.test:443', '/bytes/5000')
status(b'GET http://allow.test/secret-path?token=1 HTTP/1.1\\r\\nHost: allow.test\\r\\nConnection: close\\r\\n\\r\\n')
connect(b'evil.test:443')
connect(b'\\x1b]0;title\\x07evil.test:443')
connect(b'allow.test:22')";
    probe(&repo, "told", asks).ok();
    let network = || -> Vec<serde_json::Value> {
        events(subject, "told").into_iter().skip(before).filter(|event| event["event"] == "network").collect()
    };
    wait_until("both that were let out have ended", LIMIT, || {
        network().iter().filter(|event| event["verdict"] == "closed").count() == 2
    });
    let seen = network();
    let of = |verdict: &str| seen.iter().filter(|event| event["verdict"] == verdict).collect::<Vec<_>>();
    let (allowed, refused, closed) = (of("allowed"), of("refused"), of("closed"));
    assert_eq!((allowed.len(), refused.len()), (2, 3), "{seen:#?}");
    assert_eq!((&allowed[0]["host"], &allowed[0]["port"]), (&"allow.test".into(), &443.into()));
    assert_eq!(allowed[0]["address"], format!("127.0.0.1:{}", origin.https()));
    assert!(closed[0]["received"].as_u64() > Some(5000), "{seen:#?}");
    assert_eq!(allowed[1]["method"], "GET");
    assert!(allowed[1]["path_hash"].is_string(), "{seen:#?}");
    assert_eq!(refused[0]["reason"], "not-allowed");
    // Of a guest's processes the host knows nothing but what they say of themselves.
    let process = if subject.driver == "qemu" { serde_json::Value::Null } else { "python3".into() };
    assert_eq!(refused[0]["process"], process);
    assert_eq!((&refused[2]["reason"], &refused[2]["port"]), (&"port".into(), &22.into()));
    let raw = fs::read_to_string(directory(subject, "told").join("log/events.jsonl")).unwrap();
    assert!(!raw.contains("secret-path") && !raw.contains('\x1b') && !raw.contains("\\u001b"), "{raw}");
    let printed = repo.sandbox(&["events", "told"]).ok();
    assert!(!printed.contains('\x1b') && !printed.contains('\x07'), "{printed:?}");
    let lines = repo.sandbox(&["events", "told", "--json"]).ok();
    assert!(lines.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{lines}");
    // The log is not inside.
    let inside = subject.exec(&repo, "told", "find / -name events.jsonl -not -path '/proc/*' 2>/dev/null; true").ok();
    assert_eq!(inside, "");
}

/// Programs that ask for no proxy in the way that curl does: each has its own settings.
fn tools_find_the_proxy(subject: &Subject) {
    needs!("curl");
    let repo = subject.repo(State::Plain);
    let origin = Origin::start(&subject.env, &["allow.test"]);
    furnish(&repo, &origin);
    serve_packages(subject, &origin);
    let rules = [origin.rule("allow.test"), origin.plain_rule("allow.test")];
    let rust = rust_toolchain();
    if let Some(dir) = &rust {
        repo.git(&["config", "sandbox.toolchain", &dir.to_string_lossy()]).ok();
    }
    idle(subject, &repo, "tools", &[&rules[0], &rules[1]]);
    let mut failed = String::new();
    let tool = |name: &str, script: &str, requested: &str| -> String {
        if which(name).is_none() {
            println!("SKIP: no {name} to try the proxy with");
            return String::new();
        }
        let before = origin.log().len();
        let seen = subject.exec(&repo, "tools", script);
        let asked = origin.log().split_off(before);
        let good = seen.status == 0 && asked.iter().any(|line| line.contains(requested));
        if good { String::new() } else { format!("{name}\n{seen}{asked:?}\n") }
    };
    failed +=
        &tool("curl", "curl -fsS --cacert trust.txt https://allow.test/ | grep reached", "https allow.test GET /");
    failed += &tool("curl", "curl -fsS http://allow.test/ | grep reached", "http allow.test GET /");
    let clone =
        "git -c http.sslCAInfo=$PWD/trust.txt clone -q https://allow.test/git/demo.git /tmp/a && test -e /tmp/a/file
        git clone -q http://allow.test/git/demo.git /tmp/b && test -e /tmp/b/file";
    failed += &tool("git", clone, "POST /git/demo.git/git-upload-pack");
    // Without the variables too: what is in /etc is for everybody. (A git that was built with another prefix has its
    // system's configuration elsewhere.)
    if std::path::Path::new("/usr/bin/git").exists() {
        let bare = "env -i /usr/bin/git clone -q http://allow.test/git/demo.git /tmp/c && test -e /tmp/c/file";
        failed += &tool("git", bare, "POST /git/demo.git/git-upload-pack");
    } else {
        println!("SKIP: no git of the system to try the proxy with");
    }
    let pip = "python3 -m pip download -q --no-deps --disable-pip-version-check --cert trust.txt -d /tmp/pip \
        --index-url https://allow.test/files/simple/ demo && ls /tmp/pip | grep demo-1.0";
    if subject.exec(&repo, "tools", "python3 -m pip --version").status == 0 {
        failed += &tool("python3", pip, "GET /files/simple/demo/demo-1.0-py3-none-any.whl");
    } else {
        println!("SKIP: no pip to try the proxy with");
    }
    let npm = "mkdir -p /tmp/npm && cp trust.txt /tmp/npm && cd /tmp/npm && echo '{}' >package.json && \
        npm install --no-audit --no-fund --no-update-notifier --registry https://allow.test/files/npm/ \
        --cafile trust.txt demo@1.0.0 && test -e node_modules/demo/package.json";
    failed += &tool("npm", npm, "GET /files/npm/demo-1.0.0.tgz");
    let apt = "mkdir -p /tmp/apt/lists/partial /tmp/apt/cache/archives/partial && cd /tmp/apt && touch status && \
        echo 'deb [trusted=yes] http://allow.test/files/apt ./' >list && \
        apt-get -o Dir::Etc::sourcelist=$PWD/list -o Dir::Etc::sourceparts=- -o Dir::State=$PWD \
        -o Dir::State::status=$PWD/status -o Dir::Cache=$PWD/cache -o Debug::NoLocking=1 -o APT::Sandbox::User= update && \
        ls lists | grep Packages";
    failed += &tool("apt-get", apt, "GET /files/apt/./Packages");
    let bare = apt.replace("apt-get", "env -i PATH=\"$PATH\" apt-get").replace("/tmp/apt", "/tmp/apt-bare");
    failed += &tool("apt-get", &bare, "GET /files/apt/./Packages");
    let Some(rust) = rust else {
        println!("SKIP: no Rust toolchain to try the proxy with");
        assert!(failed.is_empty(), "{failed}");
        return;
    };
    let cargo = format!(
        "export PATH={}/bin:$PATH CARGO_HOME=/tmp/cargo-home; mkdir -p /tmp/cargo/src /tmp/cargo/.cargo && cp trust.txt /tmp/cargo
        cd /tmp/cargo && touch src/lib.rs
        printf '[package]\\nname = \"user\"\\nedition = \"2021\"\\n[dependencies]\\ndemo = {{ version = \"1\", registry = \"test\" }}\\n' >Cargo.toml
        printf '[registries.test]\\nindex = \"sparse+https://allow.test/files/index/\"\\n[http]\\ncainfo = \"/tmp/cargo/trust.txt\"\\n' >.cargo/config.toml
        cargo fetch -q && ls /tmp/cargo-home/registry/src/*/demo-1.0.0/Cargo.toml",
        rust.display()
    );
    let before = origin.log().len();
    let seen = subject.exec(&repo, "tools", &cargo);
    let asked = origin.log().split_off(before);
    if seen.status != 0 || !asked.iter().any(|line| line.contains("GET /files/demo-1.0.0.crate")) {
        failed += &format!("cargo\n{seen}{asked:?}\n");
    }
    assert!(failed.is_empty(), "{failed}");
}

/// A Rust toolchain of this machine, as its installer lays it out: the tests' own `PATH` has none.
fn rust_toolchain() -> Option<PathBuf> {
    let homes = std::env::var_os("HOME").map(PathBuf::from).into_iter().chain(["/root".into()]);
    let found = homes.flat_map(|home| fs::read_dir(home.join(".rustup/toolchains")).into_iter().flatten().flatten());
    found.map(|entry| entry.path()).find(|dir| dir.join("bin/cargo").is_file() && dir.join("bin/rustc").is_file())
}

/// A repository of each kind of package, with one package called `demo`.
fn serve_packages(subject: &Subject, origin: &Origin) {
    let script = r#"
        set -e
        git init -q work && cd work && echo file >file && git add file && git commit -qm demo && cd ..
        git clone -q --bare work git/demo.git
        mkdir -p files/simple/demo files/npm files/apt files/index/de/mo
        python3 - <<'END'
import gzip, hashlib, io, json, tarfile, zipfile
name = "demo-1.0-py3-none-any.whl"
with zipfile.ZipFile("files/simple/demo/" + name, "w") as wheel:
    wheel.writestr("demo.py", "")
    info = "demo-1.0.dist-info/"
    wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n")
    wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr(info + "RECORD", "demo.py,,\n")
open("files/simple/demo/index.html", "w").write(f'<a href="{name}">{name}</a>')
manifest = json.dumps({"name": "demo", "version": "1.0.0"}).encode()
with tarfile.open("files/npm/demo-1.0.0.tgz", "w:gz") as tar:
    entry = tarfile.TarInfo("package/package.json")
    entry.size = len(manifest)
    tar.addfile(entry, io.BytesIO(manifest))
sum = hashlib.sha1(open("files/npm/demo-1.0.0.tgz", "rb").read()).hexdigest()
dist = {"tarball": "https://allow.test/files/npm/demo-1.0.0.tgz", "shasum": sum}
open("files/npm/demo", "w").write(json.dumps({"name": "demo", "dist-tags": {"latest": "1.0.0"},
    "versions": {"1.0.0": {"name": "demo", "version": "1.0.0", "dist": dist}}}))
files = {"Cargo.toml": b'[package]\nname = "demo"\nversion = "1.0.0"\nedition = "2021"\n', "src/lib.rs": b""}
with tarfile.open("files/demo-1.0.0.crate", "w:gz") as tar:
    for path, text in files.items():
        entry = tarfile.TarInfo("demo-1.0.0/" + path)
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text))
sum = hashlib.sha256(open("files/demo-1.0.0.crate", "rb").read()).hexdigest()
open("files/index/config.json", "w").write('{"dl": "https://allow.test/files/{crate}-{version}.crate"}')
open("files/index/de/mo/demo", "w").write(json.dumps({"name": "demo", "vers": "1.0.0", "deps": [], "cksum": sum,
    "features": {}, "yanked": False}) + "\n")
open("files/apt/Packages", "w").write("Package: demo\nVersion: 1\nArchitecture: all\nFilename: ./demo.deb\nSize: 1\n"
    "SHA256: " + "0" * 64 + "\nDescription: demo\n")
END"#;
    subject.env.run(subject.env.command("sh", origin.dir()).args(["-c", script])).ok();
}

fn what_contradicts_itself_is_refused_before_anything_is_made(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let refused = |args: &[&str], said: &str| {
        let seen = repo.sandbox(&[&["spawn", "--driver", subject.driver, "never"], args, &["--", "true"]].concat());
        assert!(seen.status != 0 && seen.status != 1 && seen.stderr.contains(said), "{args:?}: {seen}");
        assert!(seen.stderr.contains("error: "), "{args:?}: {seen}");
    };
    refused(&["--net", "none", "--allow", "allow.test"], "--allow");
    refused(&["--net", "host", "--allow", "allow.test"], "--allow");
    refused(&["--allow", "https://allow.test/"], "allow.test");
    refused(&["--allow", "*.test"], "*.test");
    refused(&["--allow", "allow.test:99999"], "99999");
    refused(&["--allow", "allow.test:"], "allow.test:");
    refused(&["--allow", "allow.test=nowhere"], "nowhere");
    refused(&["--allow", "a b"], "a b");
    refused(&["--allow", "@no-such-set"], "no-such-set");
    refused(&["--allow", ""], "''");
    assert_eq!(repo.sandbox(&["list", "--json"]).ok().matches("never").count(), 0);
    // And the shortest form that is right.
    repo.write(".sandbox.toml", "");
    let seen =
        subject.spawn(&repo, &["right", "--allow", "allow.test"], "echo $https_proxy $HTTP_PROXY $no_proxy").ok();
    assert_eq!(seen, "http://127.0.0.1:3128 http://127.0.0.1:3128 localhost,127.0.0.1,::1\n");
}
