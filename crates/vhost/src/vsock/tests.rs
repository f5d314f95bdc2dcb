//! The multiplexer between a guest of packets and real Unix sockets.

use super::mux::{MAX_CONNECTIONS, MAX_REFUSALS, Mux};
use super::wire::{HOST, Header, NO_RECEIVE, NO_SEND, STREAM, op};
use proptest::prelude::*;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

const CID: u64 = 7;
/// Far more than a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(60);

struct Guest {
    mux: Mux,
    dir: tempfile::TempDir,
}

impl Guest {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("vsock");
        let mux = Mux::new(CID, Some(UnixListener::bind(&socket).unwrap()), Some(socket)).unwrap();
        Self { mux, dir }
    }

    fn dial(&self) -> UnixStream {
        UnixStream::connect(self.dir.path().join("vsock")).unwrap()
    }

    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.dir.path().join(format!("vsock_{port}"))).unwrap()
    }

    /// Sends a packet from the guest's `guest` port to the host's `host` port.
    fn send(&mut self, op: u16, (host, guest): (u32, u32), data: &[u8], flags: u32) {
        self.send_with(op, (host, guest), data, flags, 1 << 16, 0);
    }

    fn send_with(&mut self, op: u16, ports: (u32, u32), data: &[u8], flags: u32, buf_alloc: u32, fwd_cnt: u32) {
        let header = Header {
            src_cid: CID,
            dst_cid: HOST,
            src_port: ports.1,
            dst_port: ports.0,
            len: data.len() as u32,
            kind: STREAM,
            op,
            flags,
            buf_alloc,
            fwd_cnt,
        };
        self.mux.take(&header, Some(data));
    }

    /// What is there for the guest now.
    fn poll(&mut self) -> Option<(Header, Vec<u8>)> {
        self.mux.look();
        let mut data = Vec::new();
        let header = self.mux.give(4096, &mut data)?;
        assert_eq!((header.src_cid, header.dst_cid, header.len as usize), (HOST, CID, data.len()));
        Some((header, data))
    }

    /// The next packet for the guest, which must come.
    fn next(&mut self) -> (Header, Vec<u8>) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(packet) = self.poll() {
                return packet;
            }
            assert!(Instant::now() < deadline, "no packet came");
            std::thread::yield_now();
        }
    }

    fn expect(&mut self, op: u16, (host, guest): (u32, u32)) -> Header {
        let (header, _) = self.next();
        assert_eq!((header.op, header.src_port, header.dst_port), (op, host, guest), "{header:?}");
        header
    }

    /// A connection that the guest has made; the host's end of it.
    fn open(&mut self, listener: &UnixListener, ports: (u32, u32)) -> UnixStream {
        self.send(op::REQUEST, ports, &[], 0);
        self.expect(op::RESPONSE, ports);
        listener.accept().unwrap().0
    }
}

#[test]
fn the_host_connects_and_both_ends_say_goodbye() {
    let mut guest = Guest::new();
    let mut host = guest.dial();
    // In pieces, and more than the line at once: the rest is data.
    host.write_all(b"CONNECT 10").unwrap();
    assert_eq!(guest.poll().map(|(header, _)| header.op), None);
    host.write_all(b"24\nearly").unwrap();
    let (asked, _) = guest.next();
    assert_eq!((asked.op, asked.dst_port, asked.kind), (op::REQUEST, 1024, STREAM));
    let ports = (asked.src_port, 1024);
    guest.send(op::RESPONSE, ports, &[], 0);
    let line = format!("OK {}\n", ports.0);
    let mut said = vec![0; line.len()];
    host.read_exact(&mut said).unwrap();
    assert_eq!(said, line.as_bytes());
    let (header, data) = guest.next();
    assert_eq!((header.op, &data[..]), (op::RW, &b"early"[..]));
    guest.send(op::RW, ports, b"answer", 0);
    let mut answer = [0; 6];
    host.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
    // The guest sends no more; the host still does.
    guest.send(op::SHUTDOWN, ports, &[], NO_SEND);
    assert_eq!(host.read(&mut answer).unwrap(), 0);
    host.write_all(b"last").unwrap();
    let (header, data) = guest.next();
    assert_eq!((header.op, &data[..]), (op::RW, &b"last"[..]));
    host.shutdown(std::net::Shutdown::Write).unwrap();
    let header = guest.expect(op::SHUTDOWN, ports);
    assert_eq!(header.flags & NO_SEND, NO_SEND);
    guest.send(op::SHUTDOWN, ports, &[], NO_SEND | NO_RECEIVE);
    loop {
        let (header, _) = guest.next();
        if header.op == op::RST {
            break;
        }
    }
    assert_eq!(host.read(&mut answer).unwrap(), 0);
}

#[test]
fn what_the_host_says_wrong_ends_its_connection() {
    let mut guest = Guest::new();
    for line in ["CONNECT x\n", "CONNECT -1\n", "CONNECT 4294967296\n", "GET / HTTP/1.1\r\n", "\n", &"x".repeat(64)] {
        let mut host = guest.dial();
        host.write_all(line.as_bytes()).unwrap();
        let deadline = Instant::now() + PATIENCE;
        host.set_nonblocking(true).unwrap();
        let ended = loop {
            assert!(guest.poll().is_none(), "{line:?}");
            match host.read(&mut [0; 8]) {
                Ok(count) => break count == 0,
                // Closed with bytes of ours unread.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break true,
                Err(_) => assert!(Instant::now() < deadline, "{line:?}"),
            }
        };
        assert!(ended, "{line:?}");
    }
    // A guest that refuses.
    let mut host = guest.dial();
    host.write_all(b"CONNECT 9\n").unwrap();
    let (asked, _) = guest.next();
    guest.send(op::RST, (asked.src_port, 9), &[], 0);
    assert_eq!(host.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn the_guest_connects_where_somebody_listens() {
    let mut guest = Guest::new();
    let listener = guest.listen(5000);
    let mut host = guest.open(&listener, (5000, 40));
    guest.send(op::RW, (5000, 40), b"hello", 0);
    let mut five = [0; 5];
    host.read_exact(&mut five).unwrap();
    assert_eq!(&five, b"hello");
    guest.send(op::REQUEST, (5001, 41), &[], 0);
    guest.expect(op::RST, (5001, 41));
    // The host's end is gone: the guest hears that nothing comes and nothing is taken.
    drop(host);
    let mut flags = 0;
    while flags != NO_SEND | NO_RECEIVE {
        flags |= guest.expect(op::SHUTDOWN, (5000, 40)).flags;
    }
    guest.send(op::RST, (5000, 40), &[], 0);
    guest.send(op::RW, (5000, 40), b"x", 0);
    guest.expect(op::RST, (5000, 40));
}

#[test]
fn no_more_waits_than_the_guest_was_told() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    guest.send(op::REQUEST, (1, 2), &[], 0);
    let window = guest.expect(op::RESPONSE, (1, 2)).buf_alloc;
    let mut host = listener.accept().unwrap().0;
    // Nobody reads: the socket takes some, the window takes the rest, and then it is too much.
    let (mut sent, mut room) = (0u64, u64::from(window));
    let refused = loop {
        let len = room.clamp(1, 4096) as usize;
        guest.send(op::RW, (1, 2), &vec![b'x'; len], 0);
        match guest.poll() {
            Some((header, _)) if header.op == op::RST => break true,
            Some((header, _)) => {
                assert_eq!(header.op, op::CREDIT_UPDATE);
                sent += len as u64;
                room = u64::from(header.fwd_cnt) + u64::from(header.buf_alloc) - sent;
            }
            None => {
                sent += len as u64;
                room = room.saturating_sub(len as u64);
            }
        }
        assert!(sent < 64 << 20, "the guest may send for ever");
    };
    assert!(refused && room == 0, "refused with {room} left");
    let mut all = Vec::new();
    host.read_to_end(&mut all).unwrap();
    assert!(all.len() as u64 <= sent);
}

#[test]
fn no_more_is_sent_than_the_guest_has_room_for() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    guest.send_with(op::REQUEST, (1, 2), &[], 0, 10, 0);
    guest.expect(op::RESPONSE, (1, 2));
    let mut host = listener.accept().unwrap().0;
    host.write_all(&[b'x'; 25]).unwrap();
    assert_eq!(guest.next().1.len(), 10);
    guest.expect(op::CREDIT_REQUEST, (1, 2));
    assert!(guest.poll().is_none());
    // Room that cannot be: it took more than was sent.
    guest.send_with(op::CREDIT_UPDATE, (1, 2), &[], 0, 10, 500);
    while let Some((header, _)) = guest.poll() {
        assert_eq!(header.op, op::CREDIT_REQUEST);
    }
    guest.send_with(op::CREDIT_UPDATE, (1, 2), &[], 0, u32::MAX, 10);
    assert_eq!(guest.next().1.len(), 15);
}

#[test]
fn too_many_are_refused_and_refusals_are_bounded() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    if maximum.is_some_and(|maximum| maximum < 4096) {
        println!("SKIP: this user may not have the descriptors of {MAX_CONNECTIONS} connections (`ulimit -Hn`)");
        return;
    }
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    let mut hosts = Vec::new();
    let mut most = 0;
    for port in 0..MAX_CONNECTIONS as u32 {
        guest.send(op::REQUEST, (1, port), &[], 0);
        let (header, _) = guest.next();
        assert_eq!(header.op, op::RESPONSE, "{port}");
        most += u64::from(header.buf_alloc);
        hosts.push(listener.accept().unwrap());
    }
    assert!(most <= 9 << 20, "{most} bytes may wait");
    guest.send(op::REQUEST, (1, 5000), &[], 0);
    guest.expect(op::RST, (1, 5000));
    // It sends and never reads.
    let mut taken = 0;
    while guest.mux.takes_more() {
        guest.send(op::RW, (9, taken), b"x", 0);
        taken += 1;
        assert!(taken as usize <= MAX_REFUSALS);
    }
    guest.expect(op::RST, (9, 0));
    assert!(guest.mux.takes_more());
    // A RST is never answered.
    guest.mux.forget_all();
    guest.send(op::RST, (9, 9), &[], 0);
    assert!(guest.poll().is_none());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    /// Whatever a guest sends, it is answered in bounds.
    #[test]
    fn any_packets_are_survived(
        packets in proptest::collection::vec((0u16..10, 0u32..3, 0u32..3, any::<u32>(), any::<u32>(), any::<u32>(), 0u16..3,
            proptest::option::of(proptest::collection::vec(any::<u8>(), 0..64)), 0u64..9), 1..200),
    ) {
        let mut guest = Guest::new();
        let _one = guest.listen(1);
        let _two = guest.listen(2);
        for (op, src_port, dst_port, flags, buf_alloc, fwd_cnt, kind, data, src_cid) in packets {
            let len = data.as_ref().map_or(u32::MAX, |data| data.len() as u32);
            let header = Header {
                src_cid: src_cid.max(CID - 1), dst_cid: HOST, src_port, dst_port, len, kind, op, flags, buf_alloc, fwd_cnt,
            };
            prop_assert!(guest.mux.most(&header) <= 64 * 1024);
            guest.mux.take(&header, data.as_deref());
            for _ in 0..3 {
                guest.poll();
            }
        }
        for _ in 0..1000 {
            guest.poll();
        }
        prop_assert!(guest.mux.takes_more());
    }
}
