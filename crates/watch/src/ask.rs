//! The client's side.

use crate::wire::{Answer, Question, Status, Token};
use rustix::fs::{Mode, OFlags};
use rustix::net::sockopt::socket_peercred;
use sandbox_sys::socket::connect_at;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// No answer is larger than this.
const MOST: u64 = 64 << 20;

/// Asks the watcher whose socket is `name` in `dir` what changed since a token.
///
/// # Errors
///
/// `NotFound` or `ConnectionRefused` when there is none, `PermissionDenied` when it is another user's, `TimedOut` or
/// `WouldBlock` when it does not answer in time, `InvalidData` for an answer that is none. All mean: look at
/// everything.
pub fn ask(dir: &Path, name: &str, since: Option<&Token>, patience: Duration) -> io::Result<Answer> {
    let answer = say(dir, name, &Question::Since(since.cloned()), patience)?;
    Answer::decode(&answer).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Asks for facts.
///
/// # Errors
///
/// Those of [`ask`].
pub fn status(dir: &Path, name: &str, patience: Duration) -> io::Result<Status> {
    let answer = say(dir, name, &Question::Status, patience)?;
    Status::decode(&answer).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Asks a watcher to end.
///
/// # Errors
///
/// Those of [`ask`].
pub fn stop(dir: &Path, name: &str, patience: Duration) -> io::Result<()> {
    say(dir, name, &Question::Stop, patience).map(drop)
}

fn say(dir: &Path, name: &str, question: &Question, patience: Duration) -> io::Result<Vec<u8>> {
    let until = Instant::now() + patience;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(dir, flags, Mode::empty())?;
    let mut socket = connect_at(&dir, name)?;
    // Another user's watcher sees what that user may read, and other processes' mappings.
    if socket_peercred(&socket)?.uid != rustix::process::geteuid() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the watcher is another user's"));
    }
    socket.set_write_timeout(Some(patience))?;
    socket.write_all(&question.encode())?;
    let mut answer = Vec::new();
    let mut buffer = [0; 16 * 1024];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || answer.len() as u64 > MOST {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        match socket.read(&mut buffer) {
            Ok(0) => return Ok(answer),
            Ok(length) => answer.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
