//! One non-blocking connection: frames in, bytes out.

use sandbox_protocol::{Decoder, Frame, FrameError, FrameType, Message, encode, try_encode_control};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

/// A client, or the agent.
#[derive(Debug)]
pub struct Peer {
    stream: UnixStream,
    decoder: Decoder,
    out: Vec<u8>,
    sent: usize,
    /// Bytes that may wait; a peer that reads nothing at all is cut off.
    most: usize,
    /// It takes nothing more; what it said before can still be read.
    deaf: bool,
    /// When it last took anything, or had taken everything.
    pub moved: Instant,
    /// Nothing more can be read from or written to it.
    pub gone: bool,
}

impl Peer {
    pub fn new(stream: UnixStream, most: usize) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            decoder: Decoder::new(),
            out: Vec::new(),
            sent: 0,
            most,
            deaf: false,
            moved: Instant::now(),
            gone: false,
        })
    }

    /// Queues a message; false when it is larger than a frame, and then nothing is queued.
    pub fn control(&mut self, stream: u32, message: &Message) -> bool {
        let fits = self.deaf || try_encode_control(&mut self.out, stream, message);
        self.bound();
        fits
    }

    pub fn data(&mut self, kind: FrameType, stream: u32, payload: &[u8]) {
        if !self.deaf {
            encode(&mut self.out, kind, stream, payload);
        }
        self.bound();
    }

    fn bound(&mut self) {
        if self.backlog() > self.most {
            self.gone = true;
            self.hang_up();
        }
    }

    fn hang_up(&mut self) {
        self.deaf = true;
        self.out = Vec::new();
        self.sent = 0;
    }

    /// Bytes that wait to be written.
    pub fn backlog(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Writes what the socket takes.
    pub fn flush(&mut self) {
        if self.backlog() == 0 {
            self.moved = Instant::now();
            return;
        }
        while self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(0) => self.hang_up(),
                Ok(n) => {
                    self.sent += n;
                    self.moved = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.hang_up(),
            }
        }
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
            self.out.shrink_to(16 * 1024);
        } else if self.sent > self.out.len() / 2 {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Reads once and returns the frames that are whole; a peer that breaks the protocol is gone.
    /// False when there was nothing to read.
    pub fn read(&mut self, frames: &mut Vec<Frame>) -> bool {
        let mut bytes = [0u8; 32 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) => {
                self.gone = true;
                false
            }
            Ok(n) => {
                self.decoder.push(&bytes[..n]);
                if self.drain(frames).is_err() {
                    self.gone = true;
                }
                true
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(_) => {
                self.gone = true;
                false
            }
        }
    }

    fn drain(&mut self, frames: &mut Vec<Frame>) -> Result<(), FrameError> {
        while let Some(frame) = self.decoder.next_frame()? {
            frames.push(frame);
        }
        Ok(())
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
