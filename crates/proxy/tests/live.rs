//! The proxy at work: tunnels, plain requests, a policy that changes, a reader that is slow or gone.

mod support;

use sandbox_protocol::event::{Network, Verdict};
use sandbox_proxy::policy;
use sandbox_proxy::{Limits, serve};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::*;

fn allowed(event: &Network) -> bool {
    event.verdict == Verdict::Allowed
}

fn closed(event: &Network) -> bool {
    event.verdict == Verdict::Closed
}

#[test]
fn a_tunnel_carries_tls_and_is_written_down() {
    let identity = Identity::new(&["allow.test"]);
    let server = tls(&identity);
    let rule = format!("allow.test={server}");
    let proxy = Proxy::start(std::slice::from_ref(&rule));
    let (stream, status) = proxy.tunnel("allow.test:443");
    assert_eq!(status, 200);
    let mut tls = over(stream, "allow.test", identity.client());
    let body = vec![7; 3 << 20];
    assert!(get(&mut tls, "allow.test", &body).unwrap().ends_with("reached allow.test 3145728\n"));
    let event = proxy.event(allowed);
    assert_eq!((event.method.as_str(), event.host.as_str(), event.port), ("CONNECT", "allow.test", 443));
    assert_eq!((event.rule, event.address, event.sent), (Some(rule), Some(server.to_string()), None));
    assert!(!proxy.events().iter().any(closed), "it is still open");
    drop(tls);
    let event = proxy.event(closed);
    assert!(event.sent.unwrap() > 3 << 20 && event.received.unwrap() > 500 && event.ms.is_some(), "{event:?}");
}

#[test]
fn another_server_name_or_none_ends_the_tunnel_before_a_byte_is_passed() {
    let (address, seen) = sink(b"");
    let proxy =
        Proxy::start(&[format!("allow.test={address}"), format!("*.wild.test={address}"), "127.0.0.1:1".into()]);
    for name in ["evil.test", "sub.allow.test", "allow.test.evil.test", "127.0.0.1"] {
        let (mut client, _) = proxy.tunnel("allow.test:443");
        client.write_all(&hello(name)).unwrap();
        assert_eq!(to_end(&mut client), "", "{name}");
    }
    // A name below the star is one host too: not any other below it.
    let (mut client, _) = proxy.tunnel("a.wild.test:443");
    client.write_all(&hello("b.wild.test")).unwrap();
    assert_eq!(to_end(&mut client), "");
    assert!(wait_seen(&seen, 5).iter().all(Vec::is_empty));
    proxy.events_like(5, refused("server-name"));
    assert!(!proxy.events().iter().any(allowed));
    // Controls: the name itself, in another case, and below the star.
    for (target, name) in
        [("allow.test:443", "allow.test"), ("a.wild.test:443", "a.wild.test"), ("ALLOW.test:443", "allow.test")]
    {
        let (mut client, _) = proxy.tunnel(target);
        client.write_all(&hello(name)).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        to_end(&mut client);
    }
    assert_eq!(wait_seen(&seen, 8)[5..].iter().filter(|bytes| !bytes.is_empty()).count(), 3);
}

#[test]
fn an_address_is_reached_without_a_server_name() {
    let (address, seen) = sink(b"bye");
    let proxy = Proxy::start(&[address.to_string()]);
    let (mut client, status) = proxy.tunnel(&address.to_string());
    assert_eq!(status, 200);
    client.write_all(&hello("allow.test")).unwrap();
    assert_eq!(to_end(&mut client), "");
    let (mut client, _) = proxy.tunnel(&address.to_string());
    client.write_all(&hello("127.0.0.1")).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(to_end(&mut client), "bye");
    // In whatever order the two ended: nothing came of the first, and a ClientHello of the second.
    let mut arrived = wait_seen(&seen, 2);
    arrived.sort_by_key(Vec::len);
    assert_eq!(arrived[0], b"");
    assert_eq!((arrived[1][0], arrived[1][5]), (22, 1));
}

#[test]
fn a_hello_in_pieces_and_records_arrives_as_it_was_sent() {
    let (address, seen) = sink(b"");
    let proxy = Proxy::start(&[format!("allow.test={address}")]);
    let whole = hello("allow.test");
    let records = in_records(&whole, 100);
    for (n, (bytes, piece)) in [(&whole, 17), (&records, 40), (&whole, whole.len())].into_iter().enumerate() {
        let (mut client, _) = proxy.tunnel("allow.test:443");
        for part in bytes.chunks(piece) {
            client.write_all(part).unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
        client.shutdown(Shutdown::Write).unwrap();
        to_end(&mut client);
        assert_eq!(&wait_seen(&seen, n + 1)[n], bytes);
    }
    // Behind the request, without waiting for its answer.
    let mut client = connect(proxy.address);
    client.write_all(&[connect_request("allow.test:443").as_bytes(), &whole[..]].concat()).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert!(to_end(&mut client).starts_with("HTTP/1.1 200 "));
    assert_eq!(wait_seen(&seen, 4)[3], whole);
}

#[test]
fn a_hello_that_stops_in_the_middle_is_ended() {
    let (address, seen) = sink(b"");
    let limits = Limits { handshake: Duration::from_millis(200), ..Limits::default() };
    let proxy = Proxy::limited(&[format!("allow.test={address}")], limits);
    let whole = hello("allow.test");
    let (mut slow, _) = proxy.tunnel("allow.test:443");
    slow.write_all(&whole[..whole.len() - 1]).unwrap();
    assert_eq!(to_end(&mut slow), "");
    proxy.event(refused("slow"));
    let (mut cut, _) = proxy.tunnel("allow.test:443");
    cut.write_all(&whole[..whole.len() - 1]).unwrap();
    cut.shutdown(Shutdown::Write).unwrap();
    assert_eq!(to_end(&mut cut), "");
    proxy.event(refused("not-tls"));
    assert!(wait_seen(&seen, 2).iter().all(Vec::is_empty));
    // One that was opened and given up is no refusal.
    drop(proxy.tunnel("allow.test:443"));
    assert_eq!(proxy.event(closed).sent, Some(0));
}

#[test]
fn either_side_of_a_tunnel_may_end_first() {
    // This server reads to the end before it says a word.
    const ANSWER: &[u8] = &[b'a'; 300_000];
    let (late, seen) = sink(ANSWER);
    // This one says all and ends, and then reads.
    let (told, heard) = channel();
    let told = Mutex::new(told);
    let early = server(move |mut stream| {
        stream.write_all(b"all").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        told.lock().unwrap().send(bytes.len()).unwrap();
    });
    let proxy = Proxy::start(&[format!("late.test={late}"), format!("early.test={early}")]);
    let whole = hello("late.test");
    let (mut client, _) = proxy.tunnel("late.test:443");
    client.write_all(&whole).unwrap();
    client.write_all(&vec![b'b'; 500_000]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(to_end(&mut client).len(), ANSWER.len());
    assert_eq!(wait_seen(&seen, 1)[0].len(), whole.len() + 500_000);
    let event = proxy.event(closed);
    assert_eq!((event.sent, event.received), (Some(whole.len() as u64 + 500_000), Some(300_000)));

    let whole = hello("early.test");
    let (mut client, _) = proxy.tunnel("early.test:443");
    client.write_all(&whole).unwrap();
    assert_eq!(to_end(&mut client), "all");
    client.write_all(&vec![b'b'; 500_000]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), whole.len() + 500_000);
}

#[test]
fn a_receiver_that_is_slow_slows_the_sender_and_nobody_else() {
    let (told, go) = channel::<()>();
    let go = Mutex::new(go);
    let slow = server(move |mut stream| {
        go.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        stream.write_all(bytes.len().to_string().as_bytes()).unwrap();
    });
    let identity = Identity::new(&["allow.test"]);
    let proxy = Proxy::start(&[format!("slow.test={slow}"), format!("allow.test={}", tls(&identity))]);
    let whole = hello("slow.test");
    let (mut client, _) = proxy.tunnel("slow.test:443");
    client.write_all(&whole).unwrap();
    client.set_nonblocking(true).unwrap();
    // Until nothing is taken any more: 1 GiB would have to be somewhere.
    let mut sent = 0;
    let mut stalls = 0;
    while sent < 1 << 30 && stalls < 20 {
        match client.write(&[0; 1 << 16]) {
            Ok(n) => (sent, stalls) = (sent + n, 0),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                stalls += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(sent < 256 << 20, "{sent} bytes were taken");
    let (stream, _) = proxy.tunnel("allow.test:443");
    assert!(get(&mut over(stream, "allow.test", identity.client()), "allow.test", b"").is_ok());
    told.send(()).unwrap();
    client.set_nonblocking(false).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(to_end(&mut client), (whole.len() + sent).to_string());
}

#[test]
fn plain_requests_are_decided_one_by_one() {
    let (http, requests) = plain();
    let proxy = Proxy::start(&[format!("allow.test:80={http}")]);
    let mut client = connect(proxy.address);
    client
        .write_all(
            b"GET http://allow.test/1 HTTP/1.1\r\nHost: allow.test\r\nProxy-Authorization: Basic eDp5\r\nTE: trailers\r\n\
              Connection: x-mine\r\nX-Mine: 1\r\nX-Kept: 2\r\n\r\n",
        )
        .unwrap();
    let answer = head(&mut client);
    assert_eq!(status(&answer), 200);
    assert_eq!(
        (field(&answer, "x-hop"), field(&answer, "connection"), field(&answer, "x-end")),
        (None, None, Some("2".into()))
    );
    let mut body = vec![0; field(&answer, "content-length").unwrap().parse().unwrap()];
    client.read_exact(&mut body).unwrap();
    assert_eq!(body, b"reached GET /1 HTTP/1.1 allow.test 0\n");
    let seen = requests.lock().unwrap()[0].to_ascii_lowercase();
    assert!(seen.contains("\r\nx-kept: 2\r\n") && seen.contains("\r\nhost: allow.test\r\n"), "{seen}");
    for gone in ["x-mine", "te:", "proxy-authorization", "connection"] {
        assert!(!seen.contains(gone), "{gone}: {seen}");
    }
    // Another host over the same connection, and then the connection is of no use any more.
    client.write_all(b"POST http://allow.test/2 HTTP/1.1\r\nHost: allow.test\r\nContent-Length: 3\r\n\r\nabc").unwrap();
    let answer = head(&mut client);
    let mut body = vec![0; field(&answer, "content-length").unwrap().parse().unwrap()];
    client.read_exact(&mut body).unwrap();
    assert_eq!(body, b"reached POST /2 HTTP/1.1 allow.test 3\n");
    client.write_all(b"GET http://evil.test/3 HTTP/1.1\r\nHost: evil.test\r\n\r\n").unwrap();
    let answer = to_end(&mut client);
    assert_eq!(status(&answer), 403);
    assert!(answer.contains("X-Test: blocked\r\n") && answer.contains("Connection: close\r\n"), "{answer}");
    let events: Vec<_> = proxy.events_like(2, closed);
    assert_eq!(events[1].sent, Some(3));
    assert_ne!(events[0].path_hash, events[1].path_hash);
    assert_eq!(events[0].path_hash.as_ref().unwrap().len(), 16);
}

#[test]
fn what_follows_a_request_is_a_request_of_its_own() {
    let (http, requests) = plain();
    let proxy = Proxy::start(&[format!("allow.test:80={http}")]);
    let one = "GET http://allow.test/1 HTTP/1.1\r\nHost: allow.test\r\n\r\n";
    let evil = "GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n";
    // Both at once; hidden behind a length; after the last chunk; before a CONNECT.
    let answer = proxy.talk([one, evil].concat().as_bytes());
    assert!(status(&answer) == 200 && answer.contains("HTTP/1.1 403 "), "{answer}");
    let hidden = format!(
        "POST http://allow.test/2 HTTP/1.1\r\nHost: allow.test\r\nContent-Length: {}\r\n\r\n{evil}{evil}",
        evil.len()
    );
    let answer = proxy.talk(hidden.as_bytes());
    assert!(answer.contains(&format!("allow.test {}\n", evil.len())) && answer.contains("HTTP/1.1 403 "), "{answer}");
    let chunked = format!(
        "POST http://allow.test/3 HTTP/1.1\r\nHost: allow.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n{one}"
    );
    let answer = proxy.talk(chunked.as_bytes());
    assert!(answer.ends_with("reached POST /3 HTTP/1.1 allow.test 3\n"), "the last of its connection: {answer}");
    let answer = proxy.talk([one, &connect_request("evil.test:443")].concat().as_bytes());
    assert!(status(&answer) == 200 && answer.contains("HTTP/1.1 403 "), "{answer}");
    // Control: two that are allowed.
    let last = one.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    let answer = proxy.talk([one, one, &last].concat().as_bytes());
    assert_eq!(answer.matches("reached GET /1").count(), 3, "{answer}");
    assert!(
        requests
            .lock()
            .unwrap()
            .iter()
            .all(|head| head.contains("host: allow.test") || head.contains("Host: allow.test"))
    );
    let bad =
        "POST http://allow.test/4 HTTP/1.1\r\nHost: allow.test\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n";
    let answer = proxy.talk(bad.as_bytes());
    assert!(!answer.contains("200 OK"), "{answer}");
}

#[test]
fn bodies_stream_both_ways() {
    let (got, seen) = channel::<usize>();
    let (go, wait) = channel::<()>();
    let (got, wait) = (Mutex::new(got), Mutex::new(wait));
    let http = server(move |mut stream| {
        let mut bytes = Vec::new();
        let mut part = [0; 4096];
        while !bytes.ends_with(b"first") {
            let n = stream.read(&mut part).unwrap();
            bytes.extend_from_slice(&part[..n]);
        }
        got.lock().unwrap().send(5).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").unwrap();
        while !bytes.ends_with(b"second") {
            let n = stream.read(&mut part).unwrap();
            bytes.extend_from_slice(&part[..n]);
        }
        wait.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        stream.write_all(b"5\r\nworld\r\n0\r\n\r\n").unwrap();
    });
    let proxy = Proxy::start(&[format!("allow.test:80={http}")]);
    let mut client = connect(proxy.address);
    client.write_all(b"POST http://allow.test/ HTTP/1.1\r\nHost: allow.test\r\nContent-Length: 11\r\nConnection: close\r\n\r\nfirst").unwrap();
    // The first half is there before the second has been sent, in both directions.
    assert_eq!(seen.recv_timeout(PATIENCE).unwrap(), 5);
    let mut answer = String::new();
    while !answer.ends_with("hello\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        answer.push(byte[0].into());
    }
    client.write_all(b"second").unwrap();
    go.send(()).unwrap();
    assert_eq!(to_end(&mut client), "5\r\nworld\r\n0\r\n\r\n");
    assert_eq!(proxy.event(closed).received, Some(10));
}

#[test]
fn large_plain_bodies_pass_unchanged() {
    let bytes: Arc<Vec<u8>> = Arc::new((0..5_000_000u32).map(|n| (n % 251) as u8).collect());
    let sent = bytes.clone();
    let http = server(move |mut stream| {
        let mut request = Vec::new();
        let mut part = [0; 65536];
        while request.len() < sent.len() || !request.ends_with(&sent[sent.len() - 100..]) {
            let n = stream.read(&mut part).unwrap();
            request.extend_from_slice(&part[..n]);
        }
        assert!(request.ends_with(&sent));
        // Without a length: its end is the end of the connection.
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        stream.write_all(&sent).unwrap();
    });
    let proxy = Proxy::start(&[format!("allow.test:80={http}")]);
    let mut client = connect(proxy.address);
    let head_text = format!(
        "PUT http://allow.test/ HTTP/1.1\r\nHost: allow.test\r\nExpect: 100-continue\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        bytes.len()
    );
    client.write_all(head_text.as_bytes()).unwrap();
    assert_eq!(status(&head(&mut client)), 100);
    client.write_all(&bytes).unwrap();
    assert_eq!(status(&head(&mut client)), 200);
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    let mut body = Vec::new();
    let mut rest = &answer[..];
    while let Some(end) = rest.windows(2).position(|part| part == b"\r\n") {
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        body.extend_from_slice(&rest[end + 2..end + 2 + length]);
        rest = &rest[end + 4 + length..];
    }
    assert!(body == *bytes, "{} bytes", body.len());
}

#[test]
fn a_server_that_answers_nonsense_is_a_bad_gateway() {
    let answers = |answer: &'static [u8]| {
        server(move |mut stream| {
            let request = head(&mut stream).to_ascii_lowercase();
            assert!(!request.contains("upgrade"), "{request}");
            let _ = stream.write_all(answer);
        })
    };
    let servers = [
        answers(b"nonsense\r\n\r\n"),
        answers(b""),
        answers(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nevil"),
        // Nobody listens there any more.
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap(),
        answers(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nevil"),
        // The control.
        answers(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    ];
    let allow: Vec<String> = servers.iter().enumerate().map(|(n, to)| format!("s{n}.test:80={to}")).collect();
    let proxy = Proxy::start(&allow);
    for n in 0..servers.len() {
        let request = format!(
            "GET http://s{n}.test/ HTTP/1.1\r\nHost: s{n}.test\r\nConnection: close, upgrade\r\nUpgrade: x\r\n\r\n"
        );
        let answer = proxy.talk(request.as_bytes());
        let expected = if n + 1 == servers.len() { 200 } else { 502 };
        assert!(status(&answer) == expected && !answer.contains("evil"), "{n}: {answer}");
    }
    assert_eq!(proxy.event(refused("unreachable")).host, "s3.test");
}

#[test]
fn a_changed_policy_counts_from_the_next_decision_and_cuts_what_is_open() {
    let identity = Identity::new(&["allow.test", "other.test"]);
    let server = tls(&identity);
    let (rule, other) = (format!("allow.test={server}"), format!("other.test={server}"));
    let proxy = Proxy::start(&[rule.clone(), other.clone()]);
    let open = |name: &str| {
        let (stream, status) = proxy.tunnel(&format!("{name}:443"));
        assert_eq!(status, 200);
        let mut tls = over(stream, name, identity.client());
        get(&mut tls, name, b"").unwrap();
        tls
    };
    let (mut cut, mut kept) = (open("allow.test"), open("other.test"));
    // Denied: what allows it stays in the list.
    policy::edit(&proxy.policy(), |rules| rules.deny.push("allow.test".parse().unwrap())).unwrap();
    assert_eq!(proxy.tunnel("allow.test:443").1, 403);
    assert_eq!(proxy.event(refused("denied")).rule.as_deref(), Some("allow.test"));
    // As an error: an end in order would pass for the end of an answer without a length.
    let end = cut.sock.read(&mut [0; 100]).map_err(|error| error.kind());
    assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset));
    get(&mut kept, "other.test", b"").unwrap();
    policy::edit(&proxy.policy(), |rules| rules.deny.clear()).unwrap();
    let mut again = open("allow.test");
    // Without a policy nothing is let out, and nothing stays.
    std::fs::remove_file(proxy.policy()).unwrap();
    assert_eq!(proxy.tunnel("other.test:443").1, 403);
    proxy.event(refused("policy-gone"));
    for tls in [&mut again, &mut kept] {
        assert!(matches!(tls.sock.read(&mut [0; 100]), Ok(0) | Err(_)), "it was cut");
    }
    // The same name, led elsewhere, is not the same.
    policy::write(&proxy.policy(), &rules(&[rule, other], &[])).unwrap();
    let mut moved = open("allow.test");
    policy::write(&proxy.policy(), &rules(&["allow.test=127.0.0.1:1".into()], &[])).unwrap();
    assert!(matches!(moved.sock.read(&mut [0; 100]), Ok(0) | Err(_)), "it was cut");
    proxy.events_like(4, closed);
}

#[test]
fn a_policy_that_changes_during_the_handshake_counts() {
    let (address, seen) = sink(b"");
    let proxy = Proxy::start(&[format!("allow.test={address}")]);
    let (mut client, status) = proxy.tunnel("allow.test:443");
    assert_eq!(status, 200);
    policy::write(&proxy.policy(), &rules(&[], &[])).unwrap();
    client.write_all(&hello("allow.test")).unwrap();
    assert_eq!(to_end(&mut client), "");
    assert_eq!(wait_seen(&seen, 1), [Vec::<u8>::new()]);
    proxy.event(refused("denied"));
}

#[test]
fn there_are_as_many_tunnels_as_the_limit_says() {
    let (address, _) = sink(b"");
    let limits = Limits { tunnels: 2, ..Limits::default() };
    let proxy = Proxy::limited(&[format!("allow.test={address}")], limits);
    let (first, _second) = (proxy.tunnel("allow.test:443"), proxy.tunnel("allow.test:443"));
    assert_eq!((first.1, proxy.tunnel("allow.test:443").1), (200, 503));
    proxy.event(refused("too-many"));
    drop(first);
    proxy.event(closed);
    assert_eq!(proxy.tunnel("allow.test:443").1, 200);
}

#[test]
fn a_tunnel_in_which_nothing_moves_is_ended() {
    let (address, _) = sink(b"");
    let proxy = Proxy::limited(
        &[format!("allow.test={address}")],
        Limits { idle: Duration::from_millis(300), ..Limits::default() },
    );
    let (mut client, _) = proxy.tunnel("allow.test:443");
    client.write_all(&hello("allow.test")).unwrap();
    assert_eq!(to_end(&mut client), "");
    assert!(proxy.event(closed).ms.unwrap() >= 300);
}

#[test]
fn who_asked_is_looked_up_for_refusals_only() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    let who = move |peer: std::net::SocketAddr| {
        seen.lock().unwrap().push(peer);
        Some("a\u{1b}[31m very long name of a process that goes on and on".to_owned())
    };
    let (address, _) = sink(b"");
    let proxy = Proxy::with(&[format!("allow.test={address}")], &[], Limits::default(), Box::new(who));
    assert_eq!(proxy.tunnel("allow.test:443").1, 200);
    let (client, _) = proxy.tunnel("evil.test:443");
    let event = proxy.event(refused("not-allowed"));
    let process = event.process.unwrap();
    assert!(process.starts_with("a[31m very") && process.chars().count() <= 32, "{process}");
    assert_eq!(*asked.lock().unwrap(), [client.local_addr().unwrap()]);
    // A few times in a second; then what the client calls itself.
    for _ in 0..20 {
        proxy.tunnel("evil.test:443");
    }
    proxy.event(|event| event.process.as_deref() == Some("probe"));
    assert!(asked.lock().unwrap().len() < 20);
}

#[test]
fn unresolved_is_said_so() {
    // By RFC 6761 nobody is asked about this name.
    let proxy = Proxy::start(&["no.such.invalid".into()]);
    assert_eq!(proxy.tunnel("no.such.invalid:443").1, 502);
    proxy.event(refused("unresolved"));
}

#[test]
fn decisions_wait_for_whoever_reads_them() {
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("network.json");
    policy::write(&policy, &rules(&[], &[])).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (read, write) = rustix::pipe::pipe().unwrap();
    let size = rustix::pipe::fcntl_setpipe_size(&read, 4096).unwrap();
    let limits = Limits { connections: 1000, ..Limits::default() };
    let serving = std::thread::spawn(move || serve(config(listener.into(), policy, write, limits)));
    let mut clients: Vec<TcpStream> = Vec::new();
    for n in 0..100 {
        let mut client = connect(address);
        client.write_all(connect_request(&format!("evil{n}.test:443")).as_bytes()).unwrap();
        clients.push(client);
    }
    // Until no line fits any more.
    let until = std::time::Instant::now() + PATIENCE;
    while (rustix::io::ioctl_fionread(&read).unwrap() as usize) < size - 250 {
        assert!(std::time::Instant::now() < until, "the pipe does not fill");
        std::thread::sleep(Duration::from_millis(5));
    }
    let most = size / 120;
    let answered = |client: &TcpStream| {
        client.set_nonblocking(true).unwrap();
        let there = matches!(client.peek(&mut [0]), Ok(1));
        client.set_nonblocking(false).unwrap();
        there
    };
    let early = clients.iter().filter(|client| answered(client)).count();
    assert!(early <= most, "{early} were answered, {most} lines fit");
    // Whoever reads gets whole lines, one for each, and then all are answered.
    let mut file = File::from(read);
    let mut text = Vec::new();
    while text.iter().filter(|byte| **byte == b'\n').count() < 100 {
        let mut part = [0; 777];
        let n = file.read(&mut part).unwrap();
        text.extend_from_slice(&part[..n]);
    }
    let mut hosts: Vec<String> =
        text.trim_ascii_end().split(|byte| *byte == b'\n').map(|line| parsed(line).host).collect();
    hosts.sort();
    hosts.dedup();
    assert_eq!(hosts.len(), 100);
    for client in &mut clients {
        assert_eq!(status(&to_end(client)), 403);
    }
    // And when it goes, so does the proxy: without anything being asked of it.
    drop(file);
    serving.join().unwrap().unwrap();
    assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
}

#[test]
fn nothing_is_decided_after_the_reader_is_gone() {
    let (address, seen) = sink(b"");
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("network.json");
    policy::write(&policy, &rules(&[format!("allow.test={address}")], &[])).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = listener.local_addr().unwrap();
    let (read, write) = rustix::pipe::pipe().unwrap();
    let serving = std::thread::spawn(move || serve(config(listener.into(), policy, write, Limits::default())));
    let mut client = connect(proxy);
    client.write_all(connect_request("allow.test:443").as_bytes()).unwrap();
    assert_eq!(status(&head(&mut client)), 200);
    drop(read);
    let _ = client.write_all(&hello("allow.test"));
    assert_eq!(to_end(&mut client), "");
    serving.join().unwrap().unwrap();
    assert_eq!(wait_seen(&seen, 1), [Vec::<u8>::new()]);
}

#[test]
fn a_unix_socket_is_listened_on_as_well() {
    let (http, _) = plain();
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("network.json");
    policy::write(&policy, &rules(&[format!("allow.test:80={http}")], &[])).unwrap();
    let path = dir.path().join("proxy");
    let listener = UnixListener::bind(&path).unwrap();
    let (read, write) = rustix::pipe::pipe().unwrap();
    let serving = std::thread::spawn(move || serve(config(listener.into(), policy, write, Limits::default())));
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(b"GET http://allow.test/ HTTP/1.1\r\nHost: allow.test\r\nConnection: close\r\n\r\n").unwrap();
    let answer = to_end(&mut client);
    assert!(status(&answer) == 200 && answer.contains("reached GET /"), "{answer}");
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(connect_request("evil.test:443").as_bytes()).unwrap();
    assert_eq!(status(&to_end(&mut client)), 403);
    drop(read);
    serving.join().unwrap().unwrap();
}

#[test]
fn what_is_no_listener_or_no_pipe_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let null = || std::os::fd::OwnedFd::from(File::options().write(true).open("/dev/null").unwrap());
    let (_read, write) = rustix::pipe::pipe().unwrap();
    let error = serve(config(null(), dir.path().join("p"), write, Limits::default())).unwrap_err();
    assert_eq!(error.to_string(), "cannot listen on what was handed over");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let error = serve(config(listener.into(), dir.path().join("p"), null(), Limits::default())).unwrap_err();
    assert!(error.to_string().starts_with("cannot write events"), "{error}");
}
