//! One direction between two descriptors, with a bounded buffer.

use rustix::io::Errno;
use std::os::fd::BorrowedFd;

/// What is under way in one direction.
#[derive(Debug)]
pub struct Pipe {
    bytes: Vec<u8>,
    room: usize,
    /// Nothing more comes.
    pub ended: bool,
    /// It was cut off.
    pub reset: bool,
    /// Nobody takes any more.
    pub refused: bool,
}

/// The most that is read at once.
const CHUNK: usize = 64 * 1024;

impl Pipe {
    /// Holds about so many bytes at most: what was read at once is kept whole.
    pub fn new(room: usize) -> Self {
        Self { bytes: Vec::new(), room: room.min(CHUNK), ended: false, reset: false, refused: false }
    }

    /// Whether it would read.
    pub fn wants(&self) -> bool {
        !self.ended && self.bytes.len() < self.room
    }

    /// Whether there is something to write.
    pub fn has(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// Takes what is there. An error is one of the descriptor's own, not that its peer has gone.
    pub fn read(&mut self, from: BorrowedFd<'_>) -> Result<(), Errno> {
        let mut chunk = [0u8; CHUNK];
        match rustix::io::read(from, &mut chunk[..self.room]) {
            Ok(0) => self.ended = true,
            Ok(length) => self.bytes.extend_from_slice(&chunk[..length]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error @ (Errno::CONNRESET | Errno::NOTCONN | Errno::PIPE | Errno::NODEV)) => {
                self.ended = true;
                self.reset = error == Errno::CONNRESET;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Gives what fits.
    pub fn write(&mut self, to: BorrowedFd<'_>) -> Result<(), Errno> {
        match rustix::io::write(to, &self.bytes) {
            Ok(length) => drop(self.bytes.drain(..length)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // Nobody will take the rest.
            Err(Errno::CONNRESET | Errno::NOTCONN | Errno::PIPE | Errno::NODEV) => {
                self.refused = true;
                self.bytes.clear();
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
