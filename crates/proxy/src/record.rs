//! Decisions, written down before they take effect.
//!
//! There is no queue: who has decided waits until the line is written. When whoever reads the lines
//! is slow, so is the proxy; when the reader is gone, nothing is let out any more.

use sandbox_protocol::event::{Event, Happened, Network};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::io::Interest;
use tokio::net::unix::pipe::Sender;
use tokio::sync::Mutex;

/// The reader is gone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gone;

/// The writing end.
pub(crate) struct Recorder {
    pipe: Sender,
    /// What is left of a line whose writer was cancelled in the middle: lines stay whole.
    rest: Mutex<Vec<u8>>,
}

impl Recorder {
    /// Takes the writing end of a pipe.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { pipe: Sender::from_owned_fd(fd)?, rest: Mutex::new(Vec::new()) })
    }

    /// Writes one line.
    pub(crate) async fn record(&self, network: Network) -> Result<(), Gone> {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_millis() as u64).unwrap_or(0);
        let mut line = serde_json::to_vec(&Event { at, what: Happened::Network(network) }).map_err(|_| Gone)?;
        line.push(b'\n');
        let mut rest = self.rest.lock().await;
        rest.extend_from_slice(&line);
        while !rest.is_empty() {
            self.pipe.writable().await.map_err(|_| Gone)?;
            match self.pipe.try_write(&rest) {
                Ok(n) => drop(rest.drain(..n)),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(_) => return Err(Gone),
            }
        }
        Ok(())
    }

    /// Waits until the reader is gone.
    pub(crate) async fn gone(&self) {
        // The other end of a pipe tells of itself only by this: an error without anything written.
        let _ = self.pipe.ready(Interest::ERROR).await;
    }
}
