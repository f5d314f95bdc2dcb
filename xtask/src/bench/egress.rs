//! The rows of the network: what the proxy adds to a connection, what it takes from a large body, what it holds.

use super::machine::pss;
use super::measure::Sample;
use super::rows::{Bench, Rows, printed, take, timed};
use super::table::{Goal, Row, Unit};
use sandbox_testkit::{Origin, Repo, which};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

const CLIENT: &str = include_str!("egress.c");
/// Connections, one after the other, that make one value.
const EACH: &str = "200";
/// Bytes of a large body.
const BULK: usize = 512 << 20;
/// Tunnels at once.
const TUNNELS: usize = 200;

/// Answers `egress.c`: one byte, or that and a large body.
fn serve(mut peer: TcpStream) -> std::io::Result<()> {
    peer.set_nodelay(true)?;
    let mut head = [0; 5];
    peer.read_exact(&mut head)?;
    let mut rest = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
    peer.read_exact(&mut rest)?;
    peer.write_all(b"x")?;
    // The random, behind the handshake's head and the version.
    match rest.get(6) {
        Some(b'b') => {
            let block = vec![b'x'; 256 << 10];
            (0..BULK / block.len()).try_for_each(|_| peer.write_all(&block))
        }
        // Held until the other side goes.
        Some(b'h') => peer.read(&mut head).map(drop),
        _ => Ok(()),
    }
}

pub fn egress(bench: &Bench) -> Rows {
    let repo = bench.small()?;
    let program = bench.c_program("egress", CLIENT)?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(|error| error.to_string())?;
    let port = listener.local_addr().map_err(|error| error.to_string())?.port();
    std::thread::spawn(move || {
        for peer in listener.incoming().flatten() {
            // One that goes away early is its own affair: the client tells when something is wrong.
            std::thread::spawn(move || serve(peer));
        }
    });
    fs::copy(&program, repo.dir().join("egress")).map_err(|error| error.to_string())?;
    let rule = format!("bench.test=127.0.0.1:{port}");
    bench.spawn(&repo, &["-d", "bench-proxy", "--allow", &rule])?;
    bench.spawn(&repo, &["-d", "bench-direct", "--net", "host"])?;
    let port = port.to_string();
    let client = |how: &str, what: &[&str]| -> Command {
        let name = format!("bench-{how}");
        bench.env().sandbox_command(repo.dir(), &[&["exec", &name, "--", "./egress", how, &port], what].concat())
    };
    let [through, direct, bulk, bulk_direct] = take(bench.rounds(&mut [
        Box::new(|| printed(&mut client("proxy", &["connect", EACH]))),
        Box::new(|| printed(&mut client("direct", &["connect", EACH]))),
        Box::new(|| printed(&mut client("proxy", &["bulk"]))),
        Box::new(|| printed(&mut client("direct", &["bulk"]))),
    ])?)?;

    let https = https(bench, &repo)?;

    let proxy = proxy(bench).ok_or("no proxy is running")?;
    let idle = pss(proxy)?;
    let mut hold = client("proxy", &["hold", &TUNNELS.to_string()]);
    let mut hold = hold.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
    let mut line = String::new();
    if let Some(out) = hold.stdout.take() {
        BufReader::new(out).read_line(&mut line).map_err(|error| error.to_string())?;
    }
    let held = pss(proxy)?;
    drop(hold.stdin.take());
    let _ = hold.wait();
    if line != "open\n" {
        return Err(format!("{TUNNELS} tunnels did not open"));
    }
    for name in ["bench-proxy", "bench-direct"] {
        bench.run(&repo, &["drop", "--force", name])?;
    }
    let size = |what: String, value, goal| Row::alone(what, Sample::new(vec![value]), goal, Unit::Size);
    let mut rows = vec![
        Row::alone(
            "what the proxy adds to a connection (CONNECT, ClientHello, first byte)",
            through.less(direct.median()),
            Goal::Absolute(0.0005),
            Unit::Time,
        ),
        Row::alone("the connection itself, direct", direct, Goal::None, Unit::Time),
        // At least 0.8 times as fast is at most 1.25 times as long.
        Row::against(format!("{} MiB through a tunnel", BULK >> 20), bulk, "direct", bulk_direct, 1.25),
        size("PSS of the proxy, idle".into(), idle, Goal::None),
        size(format!("PSS of the proxy with {TUNNELS} tunnels"), held, Goal::Absolute(32.0 * 1024.0 * 1024.0)),
    ];
    rows.extend(https);
    Ok(rows)
}

/// A large body as it is in truth: by HTTPS, with the work of TLS at both ends.
fn https(bench: &Bench, repo: &Repo) -> Result<Option<Row>, String> {
    const BODY: usize = 256 << 20;
    if Origin::missing().is_some() || which("curl").is_none() {
        eprintln!("  not measured by HTTPS: that needs python3, openssl and curl");
        return Ok(None);
    }
    let origin = Origin::start(bench.env(), &["bench-https.test"]);
    bench.run(repo, &["allow", "bench-proxy", &origin.rule("bench-https.test")])?;
    let script = |args: &str, port: u16| {
        timed(&format!("curl -sSfk {args} -o /dev/null https://bench-https.test:{port}/bytes/{BODY}"))
    };
    let run = |name: &str, script: &str| {
        printed(&mut bench.env().sandbox_command(repo.dir(), &["exec", name, "--", "sh", "-c", script]))
    };
    let resolve = format!("--resolve bench-https.test:{}:127.0.0.1", origin.https());
    let (through, direct) = (script("", 443), script(&resolve, origin.https()));
    let [through, direct] = take(
        bench.rounds(&mut [Box::new(|| run("bench-proxy", &through)), Box::new(|| run("bench-direct", &direct))])?,
    )?;
    let what = format!("{} MiB by HTTPS, curl and a server on two cores", BODY >> 20);
    Ok(Some(Row::against(what, through, "direct", direct, 1.25)))
}

/// The process id of the proxy of this bench's sandboxes.
fn proxy(bench: &Bench) -> Option<u32> {
    let state = bench.env().state().to_string_lossy().into_owned();
    let ours = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        line.split('\0').any(|word| word == "__proxy") && line.contains(&state)
    };
    let pids = fs::read_dir("/proc").ok()?.flatten();
    pids.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok()).find(ours)
}
