//! A session on the user's terminal (or pipes): raw mode, relay, window size, the keys that
//! leave, signals, refusals of the network. What is relayed never touches a file of the host directly: the process
//! inside has its own pty or pipes.

use crate::error::CliError;
use crate::notices::Notices;
use crate::screen::Screen;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use sandbox_core::connection::{Connection, ConnectionError};
use sandbox_protocol::{
    Channel, Event, ExitStatus, Failure, FrameError, FrameType, MAX_PAYLOAD, Message, WINDOW, WindowSize,
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

/// How a relayed session ended for this client.
#[derive(Debug)]
pub enum Ended {
    /// The process ended.
    Exited(ExitStatus),
    /// The user left it running.
    Detached,
    /// It could not be started, or the request was refused.
    Refused(Failure),
    /// The supervisor is gone.
    Closed,
    /// A second interrupt asked for the sandbox to be stopped.
    Interrupted,
}

/// Is standard input and output a terminal?
pub fn interactive() -> bool {
    isatty(io::stdin()) && isatty(io::stdout())
}

/// Size of the terminal on standard output (or input).
pub fn window() -> WindowSize {
    let size = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin()));
    match size {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => WindowSize { rows: size.ws_row, cols: size.ws_col },
        _ => WindowSize { rows: 24, cols: 80 },
    }
}

/// Raw mode for as long as it lives.
struct Raw {
    before: Termios,
}

impl Raw {
    fn enter() -> Option<Self> {
        let before = tcgetattr(io::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Drain, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.before);
    }
}

/// What of standard input goes to the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A terminal, in raw mode.
    Terminal,
    /// Bytes until the end of file.
    Pipe,
    /// Nothing.
    None,
}

/// A signal, the socket on which a byte tells of it, and its registration.
type SignalSocket = (i32, UnixStream, signal_hook::SigId);

fn watch_signals() -> io::Result<Vec<SignalSocket>> {
    let mut all = Vec::new();
    for signal in [SIGWINCH, SIGINT, SIGTERM, SIGQUIT, SIGHUP] {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        let id = signal_hook::low_level::pipe::register(signal, write)?;
        all.push((signal, read, id));
    }
    Ok(all)
}

/// Relays a session of the sandbox `name` until it ends or is left. `leave` allows Ctrl-P Ctrl-Q.
/// The connection should have asked for events: refusals of the network are told as they come.
pub fn relay(
    connection: &mut Connection,
    stream: u32,
    input: Input,
    leave: bool,
    name: &str,
) -> Result<Ended, CliError> {
    let signals = watch_signals().map_err(CliError::io("watch for signals"))?;
    let raw = if input == Input::Terminal { Raw::enter() } else { None };
    let mut shown = Shown::new(name, raw.is_some());
    let ended = relay_until_end(connection, stream, input, leave, &signals, &mut shown);
    if raw.is_some() {
        let mut out = io::stdout();
        let _ = out.write_all(shown.screen.reset().as_bytes()).and_then(|()| out.flush());
    }
    drop(raw);
    shown.end();
    for (_, _, id) in signals {
        signal_hook::low_level::unregister(id);
    }
    match ended {
        Ok(ended) => Ok(ended),
        Err(ConnectionError::Closed) => Ok(Ended::Closed),
        Err(error) => Err(error.into()),
    }
}

/// What the user sees: the session's output, and between it lines of ours on standard error.
struct Shown {
    screen: Screen,
    /// Output and our lines meet on one terminal.
    same: bool,
    /// Lines end in CR LF.
    raw: bool,
    /// The last byte of the session's standard error was no line break.
    open: bool,
    notices: Notices,
    since: Instant,
}

impl Shown {
    fn new(name: &str, raw: bool) -> Self {
        let terminal = isatty(io::stderr());
        Self {
            screen: Screen::default(),
            same: terminal && isatty(io::stdout()),
            raw: raw && terminal,
            open: false,
            notices: Notices::new(name),
            since: Instant::now(),
        }
    }

    fn stdout(&mut self, bytes: &[u8]) {
        // A reader that has gone away (`| head`) must not end the work inside.
        let mut out = io::stdout();
        let _ = out.write_all(bytes).and_then(|()| out.flush());
        self.screen.watch(bytes);
        self.tell();
    }

    fn stderr(&mut self, bytes: &[u8]) {
        let _ = io::stderr().write_all(bytes);
        if self.same {
            self.screen.watch(bytes);
        }
        self.open = bytes.last().is_some_and(|byte| *byte != b'\n');
        self.tell();
    }

    fn event(&mut self, event: &Event) {
        self.notices.event(event, self.since.elapsed());
        self.tell();
    }

    /// Writes what waits, unless a full-screen program or an unfinished sequence is in the way.
    fn tell(&mut self) {
        if self.notices.waiting() && (!self.same || self.screen.may_write()) {
            let lines = self.notices.take();
            self.write(&lines);
        }
    }

    /// The session is over, and the terminal as it was before.
    fn end(&mut self) {
        self.raw = false;
        let lines = self.notices.last();
        self.write(&lines);
    }

    fn write(&mut self, lines: &[String]) {
        if lines.is_empty() {
            return;
        }
        let end = if self.raw { "\r\n" } else { "\n" };
        let mut text = String::new();
        if self.open || (self.same && self.screen.line_is_open()) {
            text.push_str(end);
        }
        for line in lines {
            text.push_str(line);
            text.push_str(end);
        }
        let _ = io::stderr().write_all(text.as_bytes());
        self.open = false;
        self.screen.line_written();
    }
}

fn relay_until_end(
    connection: &mut Connection,
    stream: u32,
    input: Input,
    leave: bool,
    signals: &[SignalSocket],
    shown: &mut Shown,
) -> Result<Ended, ConnectionError> {
    let mut window = if input == Input::None { 0 } else { WINDOW as usize };
    let mut open = input != Input::None;
    let mut keys = LeaveKeys::default();
    let mut interrupts = 0;
    if input == Input::None {
        connection.send(stream, &Message::CloseStdin)?;
    }
    let stdin = io::stdin();
    loop {
        while let Some(frame) = connection.buffered()? {
            if frame.stream != stream {
                match frame.message() {
                    Ok(Message::Error(failure)) if frame.stream == 0 => return Ok(Ended::Refused(failure)),
                    Ok(Message::Event(event)) if frame.stream == 0 => shown.event(&event),
                    _ => {}
                }
                continue;
            }
            match frame.kind {
                FrameType::Control => match frame.message().map_err(ConnectionError::Protocol)? {
                    Message::Exited(status) => return Ok(Ended::Exited(status)),
                    Message::Error(failure) => return Ok(Ended::Refused(failure)),
                    Message::Done => return Ok(Ended::Detached),
                    Message::Credit { channel: Channel::Stdin, bytes } => {
                        window = window.saturating_add(bytes as usize);
                    }
                    _ => {}
                },
                FrameType::Stdin => return Err(ConnectionError::Protocol(FrameError::Type(1))),
                FrameType::Stdout => {
                    shown.stdout(&frame.payload);
                    let bytes = frame.payload.len() as u64;
                    connection.send(stream, &Message::Credit { channel: Channel::Stdout, bytes })?;
                }
                FrameType::Stderr => {
                    shown.stderr(&frame.payload);
                    let bytes = frame.payload.len() as u64;
                    connection.send(stream, &Message::Credit { channel: Channel::Stderr, bytes })?;
                }
            }
        }
        let want_input = open && window > 0;
        let mut fds = vec![PollFd::new(&*connection, PollFlags::IN)];
        for (_, socket, _) in signals {
            fds.push(PollFd::new(socket, PollFlags::IN));
        }
        if want_input {
            fds.push(PollFd::new(&stdin, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let fired: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        if fired[0] && !connection.fill()? {
            return Ok(Ended::Closed);
        }
        for ((signal, socket, _), _) in signals.iter().zip(&fired[1..]).filter(|(_, fired)| **fired) {
            let mut byte = [0u8; 64];
            let n = (&mut &*socket).read(&mut byte).unwrap_or(0);
            match *signal {
                SIGWINCH if input == Input::Terminal => {
                    connection.send(stream, &Message::Resize(crate::terminal::window()))?;
                }
                SIGWINCH => {}
                SIGHUP => return Ok(Ended::Detached),
                signal if n > 0 => {
                    interrupts += 1;
                    if interrupts > 1 {
                        return Ok(Ended::Interrupted);
                    }
                    connection.send(stream, &Message::Signal { signal })?;
                }
                _ => {}
            }
        }
        if want_input && fired.last() == Some(&true) {
            let mut bytes = [0u8; 16 * 1024];
            let room = window.min(bytes.len()).min(MAX_PAYLOAD);
            let n = match rustix::io::read(&stdin, &mut bytes[..room]) {
                Ok(n) => n,
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => continue,
                Err(_) => 0,
            };
            if n == 0 {
                open = false;
                connection.send(stream, &Message::CloseStdin)?;
            } else if leave && input == Input::Terminal {
                let (pass, left) = keys.feed(&bytes[..n]);
                window -= pass.len().min(window);
                connection.send_data(FrameType::Stdin, stream, &pass)?;
                if left {
                    connection.send(stream, &Message::Detach)?;
                    return Ok(Ended::Detached);
                }
            } else {
                window -= n;
                connection.send_data(FrameType::Stdin, stream, &bytes[..n])?;
            }
        }
    }
}

/// Finds Ctrl-P Ctrl-Q in what is typed.
#[derive(Default, Debug)]
struct LeaveKeys {
    held: bool,
}

impl LeaveKeys {
    /// Returns what goes on to the session, and whether the user wants to leave. A Ctrl-P is
    /// held back until the next key tells what it was.
    fn feed(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        const CTRL_P: u8 = 0x10;
        const CTRL_Q: u8 = 0x11;
        let mut pass = Vec::with_capacity(bytes.len() + 1);
        for byte in bytes {
            match (self.held, *byte) {
                (true, CTRL_Q) => return (pass, true),
                (true, CTRL_P) => pass.push(CTRL_P),
                (true, other) => {
                    self.held = false;
                    pass.extend([CTRL_P, other]);
                }
                (false, CTRL_P) => self.held = true,
                (false, other) => pass.push(other),
            }
        }
        (pass, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_p_ctrl_q_leaves_and_nothing_else_does() {
        let mut keys = LeaveKeys::default();
        assert_eq!(keys.feed(b"ls\x10"), (b"ls".to_vec(), false));
        assert_eq!(keys.feed(b"x"), (b"\x10x".to_vec(), false));
        assert_eq!(keys.feed(b"\x10\x10\x11"), (b"\x10".to_vec(), true));
    }
}
