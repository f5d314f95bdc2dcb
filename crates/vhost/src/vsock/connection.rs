//! One connection between a port of the guest and a Unix socket of the host.
//!
//! ```text
//!   host connects ──► Line ──"CONNECT port"──► Asked ──RESPONSE, "OK port"──► Open
//!   guest REQUEST ──────────────connect to the Unix socket, RESPONSE────────► Open ──► both ends done: RST
//! ```
//! Guest to host: what the Unix socket does not take at once waits in `waiting`, never more than the window
//! that the guest was told. Host to guest: nothing waits here; it is read when the guest has room for it.

use super::wire::{HOST, Header, NO_RECEIVE, NO_SEND, STREAM, op};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The program of the host has not said yet which port it wants.
    Line,
    /// The guest was asked.
    Asked,
    /// Both ends may send.
    Open,
}

/// Packets without data that are due to the guest.
#[derive(Clone, Copy, Debug, Default)]
pub struct Due {
    /// REQUEST or RESPONSE, whichever the connection begins with.
    pub begin: Option<u16>,
    /// CREDIT_UPDATE.
    pub credit: bool,
    /// SHUTDOWN.
    pub shutdown: bool,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    /// How far it has come.
    pub state: State,
    /// The port that the guest sees as the host's, and the guest's own.
    pub ports: (u32, u32),
    /// What is due to the guest.
    pub due: Due,
    /// Whether it stands in the line of those that have something for the guest.
    pub queued: bool,
    /// The socket may have bytes, or its end.
    pub readable: bool,
    window: u32,
    waiting: VecDeque<u8>,
    received: u32,
    taken: u32,
    told: u32,
    peer_window: u32,
    peer_taken: u32,
    sent: u32,
    asked_for_room: bool,
    /// What the guest has said that it will not do any more.
    guest: u32,
    /// What the host's end will not do any more.
    host: u32,
}

/// What comes of a packet of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It goes on.
    Stay,
    /// It ends: a RST is due.
    Reset,
}

impl Connection {
    /// Returns a connection over a socket that does not block. `window` is how many bytes of the guest may wait.
    pub fn new(stream: UnixStream, state: State, ports: (u32, u32), window: u32) -> Self {
        Self {
            stream,
            state,
            ports,
            due: Due::default(),
            queued: false,
            readable: false,
            window,
            waiting: VecDeque::new(),
            received: 0,
            taken: 0,
            told: 0,
            peer_window: 0,
            peer_taken: 0,
            sent: 0,
            asked_for_room: false,
            guest: 0,
            host: 0,
        }
    }

    /// The host's end.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// How many bytes of the guest may wait.
    pub fn window(&self) -> u32 {
        self.window
    }

    /// A header for the guest, which tells it how much was taken so far.
    pub fn header(&mut self, guest_cid: u64, op: u16, len: u32, flags: u32) -> Header {
        self.told = self.taken;
        Header {
            src_cid: HOST,
            dst_cid: guest_cid,
            src_port: self.ports.0,
            dst_port: self.ports.1,
            len,
            kind: STREAM,
            op,
            flags,
            buf_alloc: self.window,
            fwd_cnt: self.taken,
        }
    }

    /// Notes how much room the guest says that it has.
    pub fn credit(&mut self, header: &Header) {
        (self.peer_window, self.peer_taken) = (header.buf_alloc, header.fwd_cnt);
        if self.room() > 0 {
            self.asked_for_room = false;
        }
    }

    /// Bytes that the guest can take. A guest that says it took what was never sent has no room.
    fn room(&self) -> u32 {
        self.peer_window.saturating_sub(self.sent.wrapping_sub(self.peer_taken))
    }

    /// Whether there is anything for the guest.
    pub fn has_work(&self) -> bool {
        let due = self.due.begin.is_some() || self.due.credit || self.due.shutdown;
        due || self.wants_to_send() && (self.room() > 0 || !self.asked_for_room)
    }

    fn wants_to_send(&self) -> bool {
        self.state == State::Open && self.readable && self.host & NO_SEND == 0 && self.guest & NO_RECEIVE == 0
    }

    /// Returns the next packet for the guest; its data, at most `room` bytes, is put into `data`.
    pub fn next(&mut self, guest_cid: u64, room: usize, data: &mut Vec<u8>) -> Option<Header> {
        data.clear();
        if let Some(begin) = self.due.begin.take() {
            self.due.credit = false;
            return Some(self.header(guest_cid, begin, 0, 0));
        }
        if self.wants_to_send() {
            let most = (self.room() as usize).min(room);
            if most > 0 {
                data.resize(most, 0);
                match (&self.stream).read(data) {
                    Ok(0) => self.host_is_done(NO_SEND),
                    Ok(count) => {
                        data.truncate(count);
                        self.sent = self.sent.wrapping_add(count as u32);
                        self.due.credit = false;
                        return Some(self.header(guest_cid, op::RW, count as u32, 0));
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(_) => self.host_is_done(NO_SEND | NO_RECEIVE),
                }
                data.clear();
            } else if room > 0 && !self.asked_for_room {
                self.asked_for_room = true;
                return Some(self.header(guest_cid, op::CREDIT_REQUEST, 0, 0));
            }
        }
        if std::mem::take(&mut self.due.shutdown) {
            return Some(self.header(guest_cid, op::SHUTDOWN, 0, self.host));
        }
        if std::mem::take(&mut self.due.credit) {
            return Some(self.header(guest_cid, op::CREDIT_UPDATE, 0, 0));
        }
        None
    }

    /// Notes that the host's end will not send or receive any more; the guest is told.
    fn host_is_done(&mut self, with: u32) {
        if self.host | with != self.host {
            self.host |= with;
            self.due.shutdown = true;
        }
        if with & NO_RECEIVE != 0 {
            self.waiting = VecDeque::new();
        }
    }

    /// The peer of the socket has closed it: nothing can be given to it any more, what it sent can still be read.
    pub fn hang_up(&mut self) {
        self.readable = true;
        self.host_is_done(NO_RECEIVE);
    }

    /// Takes data of the guest.
    pub fn data(&mut self, data: &[u8]) -> Next {
        let waits = self.received.wrapping_sub(self.taken);
        let room = self.window.saturating_sub(waits);
        // More than it was told, before the connection is open, or after it said that it is done.
        if self.state != State::Open || self.guest & NO_SEND != 0 || data.len() > room as usize {
            return Next::Reset;
        }
        self.received = self.received.wrapping_add(data.len() as u32);
        if self.host & NO_RECEIVE != 0 {
            // Nobody reads it: the guest was told, and may not have heard yet.
            self.took(data.len());
            return Next::Stay;
        }
        let mut rest = data;
        if self.waiting.is_empty() {
            while !rest.is_empty() {
                match (&self.stream).write(rest) {
                    Ok(count) => {
                        self.took(count);
                        rest = &rest[count..];
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(_) => {
                        self.took(rest.len());
                        self.host_is_done(NO_RECEIVE);
                        return Next::Stay;
                    }
                }
            }
        }
        self.waiting.extend(rest);
        Next::Stay
    }

    fn took(&mut self, count: usize) {
        self.taken = self.taken.wrapping_add(count as u32);
        // Told late it would stall the guest, told each time it would double the packets.
        self.due.credit |= self.taken.wrapping_sub(self.told) >= self.window / 2;
    }

    /// Gives what waits to the socket, which has room again.
    pub fn flush(&mut self) -> Next {
        while !self.waiting.is_empty() {
            match (&self.stream).write(self.waiting.as_slices().0) {
                Ok(count) => {
                    self.waiting.drain(..count);
                    self.took(count);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Next::Stay,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.took(self.waiting.len());
                    self.host_is_done(NO_RECEIVE);
                }
            }
        }
        // An empty one needs no memory.
        self.waiting = VecDeque::new();
        self.end_halves()
    }

    /// Notes what the guest will not do any more.
    pub fn shutdown(&mut self, flags: u32) -> Next {
        self.guest |= flags & (NO_RECEIVE | NO_SEND);
        if self.waiting.is_empty() { self.end_halves() } else { Next::Stay }
    }

    /// Ends what is done at the host's end too, once nothing waits.
    fn end_halves(&mut self) -> Next {
        use std::net::Shutdown;
        if self.guest == NO_RECEIVE | NO_SEND {
            return Next::Reset;
        }
        if self.guest & NO_SEND != 0 {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        if self.guest & NO_RECEIVE != 0 {
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        Next::Stay
    }

    /// Tells the program of the host that the guest has accepted.
    pub fn accepted(&mut self) -> Next {
        let line = format!("OK {}\n", self.ports.0);
        self.state = State::Open;
        // A new socket has room for a line, or nobody reads it.
        match (&self.stream).write(line.as_bytes()) {
            Ok(count) if count == line.len() => Next::Stay,
            _ => Next::Reset,
        }
    }
}
