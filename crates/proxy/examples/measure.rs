//! What the proxy costs, on loopback and without TLS at the ends (the worst case: encryption would
//! hide its share). `cargo run --release -p sandbox-proxy --example measure`

use sandbox_proxy::policy::{self, Rules};
use sandbox_proxy::{Config, Limits, serve};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const BODY: usize = 1 << 30;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|arg| arg == "serve") {
        let duplicate = |fd| rustix::io::fcntl_dupfd_cloexec(fd, 3).unwrap();
        serve(Config {
            listener: duplicate(rustix::stdio::stdin()),
            policy: args[2].clone().into(),
            events: duplicate(rustix::stdio::stdout()),
            who: Box::new(|_| None),
            marker: None,
            advice: |_| None,
            limits: Limits::default(),
        })
        .unwrap();
        return;
    }
    let origin = origin();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("network.json");
    let allow = vec![format!("a.test={origin}").parse().unwrap()];
    policy::write(&path, &Rules { allow, deny: Vec::new() }).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = listener.local_addr().unwrap();
    let (mut events, write) = std::io::pipe().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg("serve")
        .arg(&path)
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(write)
        .spawn()
        .unwrap();
    let drained = std::thread::spawn(move || std::io::copy(&mut (&mut events).take(u64::MAX), &mut std::io::sink()));
    let direct = || {
        let mut stream = TcpStream::connect(origin).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(HELLO).unwrap();
        stream
    };
    let through = || {
        let mut stream = TcpStream::connect(proxy).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n").unwrap();
        let mut answer = [0; 39];
        stream.read_exact(&mut answer).unwrap();
        stream.write_all(HELLO).unwrap();
        stream
    };
    let mut ratios = Vec::new();
    for _ in 0..5 {
        let (a, b) = (download(direct()), download(through()));
        println!("download: {:.2} GiB/s direct, {:.2} GiB/s through", gib(a), gib(b));
        ratios.push(a.as_secs_f64() / b.as_secs_f64());
    }
    ratios.sort_by(f64::total_cmp);
    println!("download: {:.2} x direct (median of 5)", ratios[2]);
    let (a, b) = (median(direct), median(through));
    println!("a connection and its first byte: {a:?} direct, {b:?} through, {:?} added", b.saturating_sub(a));
    let before = pss(child.id());
    let open: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut stream = through();
            stream.write_all(b"1").unwrap();
            stream.read_exact(&mut [0]).unwrap();
            stream
        })
        .collect();
    println!("{} tunnels: {} KiB of {} KiB more", open.len(), pss(child.id()) - before, before);
    // All of them at once, to readers that do not read.
    for mut stream in &open {
        stream.write_all(b"d").unwrap();
    }
    std::thread::sleep(Duration::from_secs(1));
    println!("{} that are stuck: {} KiB more", open.len(), pss(child.id()) - before);
    drop(open);
    child.kill().unwrap();
    child.wait().unwrap();
    drained.join().unwrap().unwrap();
}

/// A whole ClientHello for `a.test`, as small as can be: one suite, one group, the server name.
const HELLO: &[u8] = &hello();

const fn hello() -> [u8; 87] {
    let mut out = [0; 87];
    let parts: [&[u8]; 4] = [
        // Record and handshake header, version.
        &[22, 3, 1, 0, 82, 1, 0, 0, 78, 3, 3],
        &[7; 32],
        // No session, one suite, no compression, 35 bytes of extensions.
        &[0, 0, 2, 0x13, 1, 1, 0, 0, 35],
        // server_name a.test; supported_groups; signature_algorithms.
        &[
            0, 0, 0, 11, 0, 9, 0, 0, 6, b'a', b'.', b't', b'e', b's', b't', 0, 10, 0, 4, 0, 2, 0, 29, 0, 13, 0, 4, 0,
            2, 4, 3, 0, 23, 0, 0,
        ],
    ];
    let (mut at, mut part) = (0, 0);
    while part < parts.len() {
        let mut n = 0;
        while n < parts[part].len() {
            out[at] = parts[part][n];
            (at, n) = (at + 1, n + 1);
        }
        part += 1;
    }
    out
}

/// Reads the ClientHello, then does what each byte says: `1` one byte, `d` very many.
fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                stream.set_nodelay(true).unwrap();
                let mut hello = [0; HELLO.len()];
                if stream.read_exact(&mut hello).is_err() {
                    return;
                }
                let chunk = vec![0; 256 << 10];
                let mut word = [0];
                while stream.read_exact(&mut word).is_ok() {
                    if word == *b"1" {
                        let _ = stream.write_all(b"1");
                        continue;
                    }
                    for _ in 0..BODY / chunk.len() {
                        if stream.write_all(&chunk).is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    address
}

fn download(mut stream: TcpStream) -> Duration {
    let start = Instant::now();
    stream.write_all(b"d").unwrap();
    let mut buffer = vec![0; 256 << 10];
    let mut got = 0;
    while got < BODY {
        got += stream.read(&mut buffer).unwrap();
    }
    start.elapsed()
}

fn median(open: impl Fn() -> TcpStream) -> Duration {
    let mut times: Vec<Duration> = (0..500)
        .map(|_| {
            let start = Instant::now();
            let mut stream = open();
            stream.write_all(b"1").unwrap();
            stream.read_exact(&mut [0]).unwrap();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

fn gib(time: Duration) -> f64 {
    BODY as f64 / (1u64 << 30) as f64 / time.as_secs_f64()
}

fn pss(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find(|line| line.starts_with("Pss:")).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}
