//! One connection of the protocol, without blocking: frames in, frames out through a buffer.

use sandbox_protocol::{Decoder, Frame, FrameError, FrameType, MAX_PAYLOAD, Message, encode, encode_control};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// While more than this many bytes wait to be sent, nothing more is read for this connection.
pub const HIGH_WATER: usize = 256 * 1024;

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The other side closed it.
    #[error("the other side closed the connection")]
    Closed,
    /// The other side sent what is not in the protocol.
    #[error("the other side broke the protocol")]
    Protocol(#[from] FrameError),
    /// The socket failed.
    #[error("cannot read or write the connection")]
    Io(#[from] io::Error),
}

/// A connection.
#[derive(Debug)]
pub struct Wire {
    stream: UnixStream,
    decoder: Decoder,
    out: Vec<u8>,
    sent: usize,
}

impl Wire {
    /// Takes over a connected socket.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, decoder: Decoder::new(), out: Vec::new(), sent: 0 })
    }

    /// Bytes that wait to be sent.
    pub fn backlog(&self) -> usize {
        self.out.len() - self.sent
    }

    /// True when no more should be produced for it now.
    pub fn is_full(&self) -> bool {
        self.backlog() >= HIGH_WATER
    }

    /// Queues one control message.
    pub fn control(&mut self, stream: u32, message: &Message) {
        encode_control(&mut self.out, stream, message);
    }

    /// Queues data, at most one frame's worth.
    pub fn data(&mut self, kind: FrameType, stream: u32, bytes: &[u8]) {
        debug_assert!(bytes.len() <= MAX_PAYLOAD);
        encode(&mut self.out, kind, stream, bytes);
    }

    /// Sends what the socket takes now.
    pub fn flush(&mut self) -> Result<(), WireError> {
        while self.sent < self.out.len() {
            match (&self.stream).write(&self.out[self.sent..]) {
                Ok(0) => return Err(WireError::Closed),
                Ok(n) => self.sent += n,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => break,
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => return Err(WireError::Closed),
                    _ => return Err(error.into()),
                },
            }
        }
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
            if self.out.capacity() > 2 * MAX_PAYLOAD {
                self.out.shrink_to(0);
            }
        } else if self.sent > HIGH_WATER {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        Ok(())
    }

    /// Reads once what has arrived, through `scratch`; the frames come from [`Wire::next_frame`].
    pub fn fill(&mut self, scratch: &mut [u8]) -> Result<(), WireError> {
        match (&self.stream).read(scratch) {
            Ok(0) => Err(WireError::Closed),
            Ok(n) => {
                self.decoder.push(&scratch[..n]);
                Ok(())
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(()),
                io::ErrorKind::ConnectionReset => Err(WireError::Closed),
                _ => Err(error.into()),
            },
        }
    }

    /// Returns the next whole frame that has arrived.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, WireError> {
        Ok(self.decoder.next_frame()?)
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
