//! All connections of one guest, and the Unix sockets of the host that they lead to.
//!
//! Knows packets, not queues: [`Mux::take`] takes one, [`Mux::give`] gives one. What a guest can make
//! this process hold is bounded: connections by [`MAX_CONNECTIONS`], waiting bytes by their windows, refusals
//! by [`MAX_REFUSALS`], beyond which [`Mux::takes_more`] says no until the guest has read some.

use super::connection::{Connection, Next, State};
use super::wire::{HOST, Header, STREAM, op};
use rustix::event::{Timespec, epoll};
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, socket_with};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

/// Connections at a time, those that are not yet open among them.
pub const MAX_CONNECTIONS: usize = 1024;
/// Refusals that wait for the guest to read them.
pub const MAX_REFUSALS: usize = 256;
/// Bytes of the guest that may wait for a program of the host: for so many connections, and for the rest.
const WINDOW: u32 = 64 * 1024;
const WIDE: usize = 64;
const NARROW_WINDOW: u32 = 4 * 1024;
/// Longer than `CONNECT 4294967295\n`.
const MAX_LINE: usize = 32;
/// Below are the ports that programs choose for themselves.
const FIRST_PORT: u32 = 1 << 30;
/// The event number of the listener; connections have higher ones.
const LISTENER: u64 = 0;

/// All connections of one guest.
#[derive(Debug)]
pub struct Mux {
    cid: u64,
    /// Where programs of the host connect, if they may.
    listener: Option<UnixListener>,
    /// The socket `<this>_<port>` is where a connection of the guest to the host's port goes.
    outgoing: Option<PathBuf>,
    events: OwnedFd,
    connections: HashMap<u64, Connection>,
    by_ports: HashMap<(u32, u32), u64>,
    /// Those that have something for the guest, in turn.
    line: VecDeque<u64>,
    refusals: VecDeque<(u32, u32)>,
    wide: usize,
    next_id: u64,
    next_port: u32,
}

impl Mux {
    /// Returns a multiplexer for a guest.
    pub fn new(cid: u64, listener: Option<UnixListener>, outgoing: Option<PathBuf>) -> io::Result<Self> {
        let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        if let Some(listener) = &listener {
            listener.set_nonblocking(true)?;
            epoll::add(&events, listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
        }
        Ok(Self {
            cid,
            listener,
            outgoing,
            events,
            connections: HashMap::new(),
            by_ports: HashMap::new(),
            line: VecDeque::new(),
            refusals: VecDeque::new(),
            wide: 0,
            next_id: LISTENER + 1,
            next_port: FIRST_PORT,
        })
    }

    /// The descriptor that is readable when [`Mux::look`] has something to do.
    pub fn events(&self) -> &OwnedFd {
        &self.events
    }

    /// Whether packets of the guest may be taken: not while it leaves too many refusals unread.
    pub fn takes_more(&self) -> bool {
        self.refusals.len() < MAX_REFUSALS
    }

    /// The most data that a packet for these ports may have; a longer one is refused without being read.
    pub fn most(&self, header: &Header) -> usize {
        let id = self.by_ports.get(&(header.dst_port, header.src_port));
        id.and_then(|id| self.connections.get(id)).map_or(0, |connection| connection.window() as usize)
    }

    /// Looks at the sockets that have news.
    pub fn look(&mut self) {
        let mut events = Vec::with_capacity(128);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let buffer = rustix::buffer::spare_capacity(&mut events);
        if epoll::wait(&self.events, buffer, Some(&now)).is_err() {
            return;
        }
        for event in events {
            match event.data.u64() {
                LISTENER => self.accept(),
                id => self.news(id, event.flags),
            }
        }
    }

    fn accept(&mut self) {
        // A few at a time, so that connections that are open get their turn.
        for _ in 0..16 {
            // No more descriptors is the program's loss that is connecting: it is not taken before there are some.
            let Some(Ok((stream, _))) = self.listener.as_ref().map(UnixListener::accept) else { return };
            // Closed at once when there are too many.
            if self.connections.len() < MAX_CONNECTIONS && stream.set_nonblocking(true).is_ok() {
                let port = self.free_port();
                self.add(stream, State::Line, (port, 0));
            }
        }
    }

    /// The next port of the host that no connection has.
    fn free_port(&mut self) -> u32 {
        loop {
            let port = self.next_port;
            self.next_port = self.next_port.checked_add(1).filter(|next| *next != u32::MAX).unwrap_or(FIRST_PORT);
            if !self.connections.values().any(|connection| connection.ports.0 == port) {
                return port;
            }
        }
    }

    fn add(&mut self, stream: UnixStream, state: State, ports: (u32, u32)) -> Option<u64> {
        use epoll::EventFlags as Flags;
        let id = self.next_id;
        // Once for each change: what is not done now is asked for again by trying it.
        let flags = Flags::IN | Flags::OUT | Flags::RDHUP | Flags::ET;
        epoll::add(&self.events, &stream, epoll::EventData::new_u64(id), flags).ok()?;
        self.next_id += 1;
        let window = if self.wide < WIDE { WINDOW } else { NARROW_WINDOW };
        self.wide += usize::from(window == WINDOW);
        self.connections.insert(id, Connection::new(stream, state, ports, window));
        if state != State::Line {
            self.by_ports.insert(ports, id);
        }
        Some(id)
    }

    fn remove(&mut self, id: u64) -> Option<Connection> {
        let connection = self.connections.remove(&id)?;
        self.wide -= usize::from(connection.window() == WINDOW);
        if self.by_ports.get(&connection.ports) == Some(&id) {
            self.by_ports.remove(&connection.ports);
        }
        // Dropping the stream closes it, which takes it out of the epoll set.
        Some(connection)
    }

    fn news(&mut self, id: u64, flags: epoll::EventFlags) {
        use epoll::EventFlags as Flags;
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if flags.intersects(Flags::IN | Flags::RDHUP | Flags::HUP | Flags::ERR) {
            connection.readable = true;
        }
        match connection.state {
            State::Line => return self.line_of_host(id),
            // Gone before the guest has answered.
            State::Asked if flags.intersects(Flags::HUP | Flags::ERR) => return self.reset(id),
            State::Asked => return,
            State::Open => {}
        }
        if flags.intersects(Flags::HUP | Flags::ERR) {
            connection.hang_up();
        }
        let next = if flags.contains(Flags::OUT) { connection.flush() } else { Next::Stay };
        self.after(id, next);
    }

    /// Reads `CONNECT <port>\n` of a program of the host, and not a byte more.
    fn line_of_host(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let mut seen = [0; MAX_LINE];
        let count = match recv(connection.stream(), &mut seen, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((count, _)) if count > 0 => count,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
            _ => return drop(self.remove(id)),
        };
        let Some(end) = seen[..count].iter().position(|byte| *byte == b'\n') else {
            if count == MAX_LINE {
                self.remove(id);
            }
            return;
        };
        let taken = recv(connection.stream(), &mut seen[..=end], RecvFlags::DONTWAIT);
        let port = wanted(&seen[..end]);
        match (taken, port) {
            (Ok((count, _)), Some(port)) if count == end + 1 => {
                connection.state = State::Asked;
                connection.ports.1 = port;
                connection.due.begin = Some(op::REQUEST);
                self.by_ports.insert(connection.ports, id);
                self.queue(id);
            }
            _ => drop(self.remove(id)),
        }
    }

    /// Takes a packet of the guest; `data` is what followed its header, `None` when it was not whole or too long.
    pub fn take(&mut self, header: &Header, data: Option<&[u8]>) {
        // Not from this guest, or not for the host: nobody to answer.
        if header.src_cid != self.cid || header.dst_cid != HOST {
            return;
        }
        let ports = (header.dst_port, header.src_port);
        let known = self.by_ports.get(&ports).copied();
        if header.kind != STREAM {
            return self.refuse(ports, header.op);
        }
        let Some(id) = known else {
            if header.op == op::REQUEST {
                self.request(ports, header);
            } else {
                self.refuse(ports, header.op);
            }
            return;
        };
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.credit(header);
        let next = match header.op {
            op::RESPONSE if connection.state == State::Asked && connection.due.begin.is_none() => connection.accepted(),
            op::RW => match data {
                Some(data) => connection.data(data),
                None => Next::Reset,
            },
            op::SHUTDOWN => connection.shutdown(header.flags),
            op::CREDIT_UPDATE => Next::Stay,
            op::CREDIT_REQUEST => {
                connection.due.credit = true;
                Next::Stay
            }
            op::RST => {
                self.remove(id);
                return;
            }
            // Not now, or not known.
            _ => Next::Reset,
        };
        self.after(id, next);
    }

    /// The guest wants to connect to a port of the host.
    fn request(&mut self, ports: (u32, u32), header: &Header) {
        let id = match self.dial(ports.0) {
            Ok(stream) if self.connections.len() < MAX_CONNECTIONS => self.add(stream, State::Open, ports),
            _ => None,
        };
        match id.and_then(|id| Some((id, self.connections.get_mut(&id)?))) {
            Some((id, connection)) => {
                connection.credit(header);
                connection.due.begin = Some(op::RESPONSE);
                self.queue(id);
            }
            None => self.refuse(ports, op::REQUEST),
        }
    }

    fn dial(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = self.outgoing.clone().ok_or(io::ErrorKind::NotFound)?.into_os_string();
        path.push(format!("_{port}"));
        let address = SocketAddrUnix::new(PathBuf::from(path))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // A full backlog is `EAGAIN`: refused, never waited for.
        connect(&socket, &address)?;
        Ok(socket.into())
    }

    /// A RST is due for ports without a connection; one for a RST would never end.
    fn refuse(&mut self, ports: (u32, u32), op: u16) {
        if op != op::RST {
            self.refusals.push_back(ports);
        }
    }

    fn reset(&mut self, id: u64) {
        if let Some(connection) = self.remove(id) {
            self.refusals.push_back(connection.ports);
        }
    }

    fn after(&mut self, id: u64, next: Next) {
        match next {
            Next::Stay => self.queue(id),
            Next::Reset => self.reset(id),
        }
    }

    /// Puts a connection in the line if it has something for the guest.
    fn queue(&mut self, id: u64) {
        if let Some(connection) = self.connections.get_mut(&id)
            && connection.has_work()
            && !std::mem::replace(&mut connection.queued, true)
        {
            self.line.push_back(id);
        }
    }

    /// Returns the next packet for the guest; its data, at most `room` bytes, is put into `data`.
    pub fn give(&mut self, room: usize, data: &mut Vec<u8>) -> Option<Header> {
        data.clear();
        if let Some((host, guest)) = self.refusals.pop_front() {
            return Some(Header {
                src_cid: HOST,
                dst_cid: self.cid,
                src_port: host,
                dst_port: guest,
                kind: STREAM,
                op: op::RST,
                ..Header::default()
            });
        }
        while let Some(id) = self.line.pop_front() {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            connection.queued = false;
            let packet = connection.next(self.cid, room, data);
            self.queue(id);
            if packet.is_some() {
                return packet;
            }
        }
        None
    }

    /// Whether [`Mux::give`] may have something.
    pub fn has_work(&self) -> bool {
        !self.refusals.is_empty() || !self.line.is_empty()
    }

    /// Ends all connections: the guest has started anew and knows none of them.
    pub fn forget_all(&mut self) {
        self.connections.clear();
        self.by_ports.clear();
        self.line.clear();
        self.refusals.clear();
        self.wide = 0;
    }
}

/// The port of `CONNECT <port>`.
fn wanted(line: &[u8]) -> Option<u32> {
    let port = std::str::from_utf8(line).ok()?.strip_prefix("CONNECT ")?;
    port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse().ok())?
}
