//! The watcher's process: one thread, one question at a time.

use crate::watcher::Watcher;
use crate::wire::Question;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use sandbox_sys::socket::listen_at;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a client may take to ask, and then to take its answer: the others wait meanwhile.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often it is looked whether anybody needs this process.
const TICK: Duration = Duration::from_secs(30);

/// How long a reason why nothing can be watched is kept to be asked for.
const LINGER: Duration = Duration::from_secs(10);

/// Where and how long.
pub struct Serve<'a> {
    /// The directory of the socket.
    pub dir: &'a Path,
    /// Its name.
    pub name: &'a str,
    /// Ends when it becomes readable.
    pub stop: Option<BorrowedFd<'a>>,
    /// Ends after this time without a question, unless `needed` says otherwise.
    pub idle: Option<Duration>,
    /// Whether somebody needs it although nobody asks.
    pub needed: &'a mut dyn FnMut() -> bool,
}

/// Serves until it is stopped, nobody needs it, or the tree or the socket is gone.
///
/// The caller holds a lock: a socket of the same name is a dead one's, and is replaced.
///
/// # Errors
///
/// The socket cannot be made.
pub fn serve(watcher: &mut Watcher, serve: Serve<'_>) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(serve.dir, flags, Mode::empty())?;
    match rustix::fs::unlinkat(&dir, serve.name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let listener = listen_at(&dir, serve.name)?;
    listener.set_nonblocking(true)?;
    let ours = rustix::fs::statat(&dir, serve.name, AtFlags::SYMLINK_NOFOLLOW)?.st_ino;
    let mut asked = Instant::now();
    let mut ticked = Instant::now();
    let mut broken: Option<Instant> = None;
    loop {
        let mut fds = vec![
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(watcher.events(), PollFlags::IN),
        ];
        fds.extend(serve.stop.map(|stop| PollFd::from_borrowed_fd(stop, PollFlags::IN)));
        let busy = watcher.is_busy();
        let wait = if busy { Duration::ZERO } else { TICK.min(LINGER) };
        let wait = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: 0 };
        match poll(&mut fds, Some(&wait)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
        let (question, events, stopped) = (ready(0), ready(1), ready(2));
        drop(fds);
        if stopped {
            break;
        }
        if events || busy {
            watcher.step();
        }
        if question && let Ok((client, _)) = listener.accept() {
            asked = Instant::now();
            if one(watcher, client).is_ok_and(|stop| stop) {
                break;
            }
        }
        let is_broken = !watcher.is_busy() && !watcher.status().ready;
        broken = if is_broken { broken.or_else(|| Some(Instant::now())) } else { None };
        if watcher.is_gone() || broken.is_some_and(|since| since.elapsed() > LINGER) {
            break;
        }
        if ticked.elapsed() > TICK {
            ticked = Instant::now();
            let there = rustix::fs::statat(&dir, serve.name, AtFlags::SYMLINK_NOFOLLOW);
            let idle = serve.idle.is_some_and(|idle| asked.elapsed() > idle);
            if there.is_ok_and(|stat| stat.st_ino != ours) || there.is_err() || idle && !(serve.needed)() {
                break;
            }
        }
    }
    if rustix::fs::statat(&dir, serve.name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| stat.st_ino == ours) {
        let _ = rustix::fs::unlinkat(&dir, serve.name, AtFlags::empty());
    }
    Ok(())
}

/// Answers one client; true when it asked for the end.
fn one(watcher: &mut Watcher, mut client: UnixStream) -> io::Result<bool> {
    client.set_nonblocking(false)?;
    let mut until = Instant::now() + PATIENCE;
    let left = |until: Instant| match until.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::from(io::ErrorKind::TimedOut)),
        left => Ok(Some(left)),
    };
    let mut question = Vec::new();
    let mut buffer = [0; 256];
    while !Question::is_whole(&question) && question.len() < 1024 {
        client.set_read_timeout(left(until)?)?;
        match client.read(&mut buffer)? {
            0 => break,
            length => question.extend_from_slice(&buffer[..length]),
        }
    }
    let answer = match Question::decode(&question) {
        Some(Question::Since(token)) => watcher.answer(token.as_ref()).encode(),
        Some(Question::Status) => watcher.status().encode(),
        Some(Question::Stop) => return Ok(true),
        None => return Ok(false),
    };
    until = Instant::now() + PATIENCE;
    let mut rest = answer.as_slice();
    while !rest.is_empty() {
        client.set_write_timeout(left(until)?)?;
        match client.write(rest)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            length => rest = &rest[length..],
        }
    }
    Ok(false)
}
