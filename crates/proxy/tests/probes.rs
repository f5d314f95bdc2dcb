//! What programs inside have been seen to try, each with a control: the same thing, allowed, gets through.

mod support;

use sandbox_proxy::Limits;
use sandbox_proxy::policy;
use std::io::Write;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use support::*;

/// A proxy with `allow.test` for TLS and plain HTTP, and how often `evil` was reached.
struct World {
    proxy: Proxy,
    identity: Identity,
    evil: std::net::SocketAddr,
    touched: Arc<AtomicUsize>,
}

impl World {
    fn new() -> Self {
        let identity = Identity::new(&["allow.test"]);
        let (https, (http, _)) = (tls(&identity), plain());
        let touched = Arc::new(AtomicUsize::new(0));
        let counter = touched.clone();
        let evil = server(move |mut stream| {
            counter.fetch_add(1, Ordering::SeqCst);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nevil\n");
        });
        let proxy = Proxy::start(&[format!("allow.test={https}"), format!("allow.test:80={http}")]);
        Self { proxy, identity, evil, touched }
    }

    fn reaches_allowed(&self) {
        let (stream, status) = self.proxy.tunnel("allow.test:443");
        assert_eq!(status, 200);
        let mut tls = over(stream, "allow.test", self.identity.client());
        assert!(get(&mut tls, "allow.test", b"").unwrap().ends_with("reached allow.test 0\n"));
    }

    fn none_allowed(&self, targets: &[&[u8]]) {
        for target in targets {
            let mut request = b"CONNECT ".to_vec();
            request.extend_from_slice(target);
            request.extend_from_slice(b" HTTP/1.1\r\nHost: ");
            request.extend_from_slice(target);
            request.extend_from_slice(b"\r\n\r\n");
            let answer = self.proxy.talk(&request);
            let shown = String::from_utf8_lossy(target);
            assert!((400..=431).contains(&status(&answer)), "{shown}: {answer}");
            assert!(answer.contains("X-Test: blocked\r\n"), "{shown}: {answer}");
        }
        assert_eq!(self.touched.load(Ordering::SeqCst), 0);
    }
}

#[test]
fn g03_no_spelling_of_an_address_gets_through() {
    let world = World::new();
    let port = world.evil.port();
    let spellings = [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "0",
        "[::ffff:127.0.0.1]",
        "localhost",
        "localhost.",
    ];
    let targets: Vec<String> = spellings.iter().map(|host| format!("{host}:{port}")).collect();
    let mut all: Vec<&[u8]> = targets.iter().map(|target| target.as_bytes()).collect();
    all.extend([&b"1.1.1.1:443"[..], b"[::1]:443"]);
    world.none_allowed(&all);
    // Control: listed literally it is reached, in any spelling.
    policy::edit(&world.proxy.policy(), |rules| rules.allow.push(format!("127.0.0.1:{port}").parse().unwrap()))
        .unwrap();
    for host in ["127.0.0.1", "0x7f.1", "[::ffff:127.0.0.1]"] {
        assert_eq!(world.proxy.tunnel(&format!("{host}:{port}")).1, 200, "{host}");
    }
    // A name that leads there is another matter, even when it is allowed, and when its range is.
    for rule in [format!("localhost:{port}"), format!("localhost:{port}=127.0.0.0/8")] {
        policy::edit(&world.proxy.policy(), |rules| rules.allow = vec![rule.parse().unwrap()]).unwrap();
        assert_eq!(world.proxy.tunnel(&format!("localhost:{port}")).1, 403);
        assert_eq!(world.proxy.event(|event| event.rule.as_deref() == Some(&*rule)).reason.as_deref(), Some("address"));
    }
}

#[test]
fn g04_no_metadata() {
    let world = World::new();
    world.none_allowed(&[
        b"169.254.169.254:80",
        b"metadata.google.internal:80",
        b"[fd00:ec2::254]:80",
        b"100.100.100.200:80",
        b"2852039166:80",
        b"[::ffff:a9fe:a9fe]:80",
    ]);
    world.reaches_allowed();
}

#[test]
fn g05_no_other_port() {
    let world = World::new();
    let other = format!("allow.test:{}", world.evil.port());
    world.none_allowed(&[
        b"allow.test:22",
        b"allow.test:25",
        other.as_bytes(),
        b"allow.test:0",
        b"allow.test:65536",
        b"allow.test:0443",
    ]);
    world.reaches_allowed();
}

#[test]
fn g06_no_name_that_reads_like_another() {
    let world = World::new();
    world.none_allowed(&[
        b"evilallow.test:443",
        b"allow.test.evil.test:443",
        b"allow.test@evil.test:443",
        b"evil.test@allow.test:443",
        b"allow.test#.evil.test:443",
        b"allow.test%2eevil.test:443",
        b"\xd0\xb0llow.test:443",
        b"..allow.test:443",
        b"allow.test..:443",
        b"*.test:443",
        b"xn--:443",
        b"allow.test\0.evil.test:443",
        b"allow_test:443",
        b"allow.test",
        b":443",
    ]);
    world.reaches_allowed();
    // The one name in another spelling is the same name.
    assert_eq!(world.proxy.tunnel("ALLOW.test.:443").1, 200);
}

#[test]
fn g07_plain_http_is_decided_by_the_same_function() {
    let world = World::new();
    let talk = |request: &str| world.proxy.talk(request.as_bytes());
    let answer = talk("GET http://allow.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n");
    assert_eq!(status(&answer), 400, "{answer}");
    let answer = talk("GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n");
    assert_eq!(status(&answer), 403, "{answer}");
    assert!(answer.ends_with("ask for evil.test\n"), "{answer}");
    let answer = talk("GET http://evil.test/ HTTP/1.1\r\nHost: allow.test\r\n\r\n");
    assert_eq!(status(&answer), 400, "{answer}");
    let answer = talk("GET http://allow.test:443/ HTTP/1.1\r\nHost: allow.test:443\r\nConnection: close\r\n\r\n");
    assert_ne!(status(&answer), 200, "{answer}");
    let answer = talk("GET http://allow.test/x HTTP/1.1\r\nHost: allow.test\r\nConnection: close\r\n\r\n");
    assert_eq!(status(&answer), 200, "{answer}");
    assert!(answer.ends_with("reached GET /x HTTP/1.1 allow.test 0\n"), "{answer}");
}

#[test]
fn g08_a_redirect_is_passed_on_and_not_followed() {
    let world = World::new();
    let request = "GET http://allow.test/redirect HTTP/1.1\r\nHost: allow.test\r\nConnection: close\r\n\r\n";
    let answer = world.proxy.talk(request.as_bytes());
    assert_eq!(status(&answer), 302);
    assert_eq!(field(&answer, "location").as_deref(), Some("http://evil.test/"));
    assert_eq!(world.touched.load(Ordering::SeqCst), 0);
    assert!(world.proxy.events().iter().all(|event| event.host != "evil.test"), "nobody asked for it");
    // Control: with a rule it is there to be reached.
    let rule = format!("evil.test:80={}", world.evil);
    policy::edit(&world.proxy.policy(), |rules| rules.allow.push(rule.parse().unwrap())).unwrap();
    world.proxy.talk(b"GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n");
    assert_eq!(world.touched.load(Ordering::SeqCst), 1);
}

#[test]
fn g10_a_relay_inside_changes_nothing() {
    let world = World::new();
    let proxy = world.proxy.address;
    let relay = server(move |inside| {
        let outside = connect(proxy);
        let (mut from, mut to) = (inside.try_clone().unwrap(), outside.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        let _ = std::io::copy(&mut &outside, &mut &inside);
        let _ = inside.shutdown(Shutdown::Write);
    });
    let mut client = connect(relay);
    client.write_all(connect_request("evil.test:443").as_bytes()).unwrap();
    assert_eq!(status(&head(&mut client)), 403);
    let mut client = connect(relay);
    client.write_all(connect_request("allow.test:443").as_bytes()).unwrap();
    assert_eq!(status(&head(&mut client)), 200);
    let mut tls = over(client, "allow.test", world.identity.client());
    assert!(get(&mut tls, "allow.test", b"").unwrap().ends_with("reached allow.test 0\n"));
}

#[test]
fn g11_a_head_has_a_largest_size() {
    let world = World::new();
    let filled = |size: usize| {
        let start = "GET http://allow.test/ HTTP/1.1\r\nHost: allow.test\r\nConnection: close\r\nX: ";
        format!("{start}{}\r\n\r\n", "x".repeat(size - start.len() - 4))
    };
    assert_eq!(status(&world.proxy.talk(filled(64 * 1024).as_bytes())), 200);
    assert_eq!(status(&world.proxy.talk(filled(64 * 1024 + 1).as_bytes())), 431);
    let fields = |n: usize| {
        let fields: String = (0..n).map(|n| format!("X{n}: 1\r\n")).collect();
        format!("GET http://allow.test/ HTTP/1.1\r\nHost: allow.test\r\nConnection: close\r\n{fields}\r\n")
    };
    assert_eq!(status(&world.proxy.talk(fields(98).as_bytes())), 200);
    assert_eq!(status(&world.proxy.talk(fields(99).as_bytes())), 431);
    world.proxy.event(refused("too-large"));
}

#[test]
fn g11_a_slow_head_is_ended() {
    let limits = Limits { head_time: Duration::from_millis(300), ..Limits::default() };
    let proxy = Proxy::limited(&[], limits);
    // Nothing at all: closed without a word.
    assert_eq!(proxy.talk(b""), "");
    // Some, and then one byte at a time, is not enough either.
    let mut client = connect(proxy.address);
    client.write_all(b"GET http://a.test/ HTTP/1.1\r\nX: ").unwrap();
    let mut reader = client.try_clone().unwrap();
    let dripping = std::thread::spawn(move || {
        for _ in 0..1000 {
            if client.write_all(b"x").is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    assert_eq!(status(&to_end(&mut reader)), 408);
    drop(reader);
    dripping.join().unwrap();
    let event = proxy.event(refused("slow"));
    assert_eq!((event.method.as_str(), event.host.as_str()), ("GET", "a.test"));
}

#[test]
fn g12_only_tls_goes_through_a_tunnel() {
    let (address, seen) = sink(b"");
    let proxy = Proxy::start(&[format!("allow.test={address}")]);
    let garbage: [&[u8]; 6] = [
        b"0032git-upload-pack /x\0host=allow.test\0",
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n",
        b"\0",
        b"\x16\x03\x01\x00\x02\x02\x00",
        b"\x15\x03\x03\x00\x02\x02\x28",
    ];
    for bytes in garbage {
        let (mut client, status) = proxy.tunnel("allow.test:443");
        assert_eq!(status, 200);
        client.write_all(bytes).unwrap();
        assert_eq!(to_end(&mut client), "", "{bytes:?}");
    }
    let seen_bytes = wait_seen(&seen, garbage.len());
    assert!(seen_bytes.iter().all(Vec::is_empty), "{seen_bytes:?}");
    proxy.events_like(garbage.len(), refused("not-tls"));
    // Control: a ClientHello for the host arrives as it was sent.
    let (mut client, _) = proxy.tunnel("allow.test:443");
    let sent = hello("allow.test");
    client.write_all(&sent).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(to_end(&mut client), "");
    assert_eq!(*wait_seen(&seen, garbage.len() + 1).last().unwrap(), sent);
}
