//! Very many connections. Alone in its file, so that what the process needs is what the proxy needs.

mod support;

use sandbox_proxy::Limits;
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};
use support::*;

/// Clients that hold on.
const HELD: usize = 200;

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn g11_ten_thousand_idle_tunnels_stay_few() {
    let identity = Identity::new(&["allow.test"]);
    let idle = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = idle.local_addr().unwrap();
    // Takes each connection and lets it go: what stays open stays so on the proxy's side.
    std::thread::spawn(move || idle.incoming().for_each(drop));
    let limits = Limits { connections: 64, tunnels: 16, handshake: Duration::from_millis(500), ..Limits::default() };
    let (connections, tunnels) = (limits.connections, limits.tunnels);
    let proxy = Proxy::limited(&[format!("idle.test={address}"), format!("allow.test={}", tls(&identity))], limits);
    let request = connect_request("idle.test:443");
    let mut held = VecDeque::new();
    let mut before = (0, descriptors());
    for n in 0..10_000 {
        let mut client = connect(proxy.address);
        // One that was turned away may have gone already. An answer is waited for, so that the queue of
        // the listener never runs over: that would only test the kernel's patience.
        let _ = client.write_all(request.as_bytes());
        answer(&mut client);
        held.push_back(client);
        if held.len() > HELD {
            held.pop_front();
        }
        if n == 1000 {
            before.0 = resident();
        }
    }
    let (grown, open) = (resident().saturating_sub(before.0), descriptors() - before.1);
    assert!(grown < 8 * 1024, "{grown} KiB more after 9000 connections");
    // Both ends of what the listener's queue holds are ours as well.
    assert!(open <= HELD + connections + tunnels + 200, "{open} descriptors more");
    proxy.event(refused("too-many"));
    // Those that held on are ended, and whoever comes after that is served again.
    proxy.event(refused("slow"));
    let until = Instant::now() + PATIENCE;
    loop {
        let mut client = connect(proxy.address);
        let _ = client.write_all(connect_request("allow.test:443").as_bytes());
        if answer(&mut client).starts_with("HTTP/1.1 200") {
            let mut tls = over(client, "allow.test", identity.client());
            assert!(get(&mut tls, "allow.test", b"").unwrap().ends_with("reached allow.test 0\n"));
            break;
        }
        assert!(Instant::now() < until, "it stays closed");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The head of an answer, or less if there is less.
fn answer(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}
