//! What the guest's kernel and the VMM print: kept in a file of bounded size (`log/console.log`).

use sandbox_supervisor::RingLog;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// The console of one machine.
#[derive(Debug)]
pub struct Console {
    stream: UnixStream,
    log: RingLog,
    last: Vec<u8>,
}

/// What is kept in memory to say why a guest did not start.
const LAST: usize = 4096;

impl Console {
    /// Keeps what comes from `stream` in `path`.
    pub fn new(stream: UnixStream, path: &Path) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        Ok(Self { stream, log: RingLog::open(path)?, last: Vec::new() })
    }

    /// What it comes from.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Reads once; false at the end.
    pub fn read(&mut self) -> io::Result<bool> {
        let mut chunk = [0u8; 16 * 1024];
        let length = match self.stream.read(&mut chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            other => other?,
        };
        // A log that cannot be written (full disk) must not stop the guest.
        let _ = self.log.append(&chunk[..length]);
        self.last.extend_from_slice(&chunk[..length]);
        let excess = self.last.len().saturating_sub(LAST);
        self.last.drain(..excess);
        Ok(length > 0)
    }

    /// The last line that says something, as plain text.
    pub fn last_line(&self) -> Option<String> {
        let text = String::from_utf8_lossy(&self.last);
        let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
        Some(line.chars().map(|c| if c.is_control() { '?' } else { c }).take(300).collect())
    }

    /// Goes on reading in a thread of its own until the machine is gone.
    pub fn keep(mut self) {
        // What cannot be read any more is the end, and so is a thread that cannot be had: then the pipe fills, and
        // the guest's console stands still.
        let run = move || while self.read().unwrap_or(false) {};
        let _ = std::thread::Builder::new().name("console".into()).stack_size(64 << 10).spawn(run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn the_last_line_is_plain_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log/console.log");
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        let mut console = Console::new(ours, &path).unwrap();
        theirs.write_all(b"[    0.1] first\r\n\x1b[31mlast\r\n\r\n").unwrap();
        assert!(console.read().unwrap());
        assert_eq!(console.last_line().as_deref(), Some("?[31mlast"));
        assert!(std::fs::read_to_string(&path).unwrap().contains("first"));
        drop(theirs);
        assert!(!console.read().unwrap());
    }
}
