//! A session on the user's terminal (or pipes): raw mode, relay, window size, the keys that
//! leave, signals, refusals of the network. What is relayed never touches a file of the host directly: the process
//! inside has its own pty or pipes.
//!
//! | signal | here | inside |
//! |---|---|---|
//! | INT, TERM, QUIT | once: goes on to the command; twice: the caller stops it at once | as at a terminal |
//! | HUP, end of the terminal | leaves | goes on |
//! | TSTP | puts the terminal back and stops this program | goes on |
//! | CONT | takes the terminal again, and has it drawn | a new window size, twice |
//! | WINCH | | the new size; a storm of them is one |
//!
//! However a session ends, the terminal's modes are as before, and full-screen, mouse and paste modes that
//! it had switched on are off. Only after KILL of this program they are not: `reset` does it then.

use crate::error::CliError;
use crate::notices::Notices;
use crate::signals::Ours;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use sandbox_core::connection::{Connection, ConnectionError};
use sandbox_protocol::event::{Event, Happened};
use sandbox_protocol::{
    Channel, EVENTS, ExitStatus, Failure, Frame, FrameError, FrameType, MAX_PAYLOAD, Message, SCREEN, WINDOW,
    WindowSize,
};
use sandbox_supervisor::Screen;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGWINCH};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

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
    /// A second interrupt: the command is to end at once.
    Interrupted,
}

/// Is standard input and output a terminal?
pub fn interactive() -> bool {
    isatty(io::stdin()) && isatty(io::stdout())
}

/// What a client of ours can do: it is told of events, and a terminal need not get every byte.
pub fn features() -> Vec<&'static str> {
    let screen = (isatty(io::stdout()) && isatty(io::stderr())).then_some(SCREEN);
    [EVENTS].into_iter().chain(screen).collect()
}

/// Writes a line about a session to standard error. Nobody may read it any more: that is no reason to fail.
pub fn tell(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Size of the terminal on standard output (or input).
pub fn window() -> WindowSize {
    let size = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin()));
    match size {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => WindowSize { rows: size.ws_row, cols: size.ws_col },
        _ => WindowSize { rows: 24, cols: 80 },
    }
}

/// Signals that come within this are one.
const TWICE: Duration = Duration::from_millis(100);
/// The pause between the two sizes that make a full-screen program draw everything again: it must see both.
const NUDGE: Duration = Duration::from_millis(60);

/// Raw mode for as long as it lives.
struct Raw {
    before: Termios,
}

impl Raw {
    fn enter() -> Option<Self> {
        let raw = Self { before: tcgetattr(io::stdin()).ok()? };
        raw.take().ok()?;
        Some(raw)
    }

    fn take(&self) -> rustix::io::Result<()> {
        let mut raw = self.before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Drain, &raw)
    }

    fn give_back(&self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.before);
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.give_back();
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
    for signal in [SIGWINCH, SIGINT, SIGTERM, SIGQUIT, SIGHUP, SIGTSTP, SIGCONT] {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        let id = signal_hook::low_level::pipe::register(signal, write)?;
        all.push((signal, read, id));
    }
    Ok(all)
}

/// Relays a session of the sandbox `name` until it ends or is left. `leave` allows Ctrl-P Ctrl-Q, `redraw`
/// has the program inside draw its screen first.
/// The connection should have asked for events: refusals of the network are told as they come.
pub fn relay(
    connection: &mut Connection,
    stream: u32,
    input: Input,
    leave: bool,
    redraw: bool,
    name: &str,
) -> Result<Ended, CliError> {
    let _ours = Ours::take();
    let signals = watch_signals().map_err(CliError::io("watch for signals"))?;
    let raw = if input == Input::Terminal { Raw::enter() } else { None };
    let mut shown = Shown::new(name, raw.is_some());
    let mut relay =
        Relay { stream, input, leave, signals: &signals, raw: raw.as_ref(), shown: &mut shown, nudge: None };
    if redraw {
        relay.nudge = Some(Instant::now());
    }
    let ended = relay.until_end(connection);
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
    /// Everything inside was stopped, for want of room.
    frozen: bool,
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
            frozen: false,
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
        match event.what {
            Happened::Frozen(_) => self.frozen = true,
            Happened::Thawed => self.frozen = false,
            _ => {}
        }
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

/// One relayed session.
struct Relay<'a> {
    stream: u32,
    input: Input,
    leave: bool,
    signals: &'a [SignalSocket],
    raw: Option<&'a Raw>,
    shown: &'a mut Shown,
    /// When the window's real size is sent, after a wrong one.
    nudge: Option<Instant>,
}

impl Relay<'_> {
    fn until_end(&mut self, connection: &mut Connection) -> Result<Ended, ConnectionError> {
        let (stream, input) = (self.stream, self.input);
        let mut window = if input == Input::None { 0 } else { WINDOW as usize };
        let mut open = input != Input::None;
        let mut keys = LeaveKeys::default();
        let mut interrupted: Option<Instant> = None;
        if input == Input::None {
            connection.send(stream, &Message::CloseStdin)?;
        }
        if self.nudge.is_some() {
            self.draw_again(connection)?;
        }
        let stdin = io::stdin();
        loop {
            while let Some(frame) = connection.buffered()? {
                if let Some(ended) = self.frame(connection, &frame, &mut window)? {
                    return Ok(ended);
                }
            }
            let want_input = open && window > 0;
            let mut fds = vec![PollFd::new(&*connection, PollFlags::IN)];
            for (_, socket, _) in self.signals {
                fds.push(PollFd::new(socket, PollFlags::IN));
            }
            if want_input {
                fds.push(PollFd::new(&stdin, PollFlags::IN));
            }
            let timeout = self.nudge.map(|at| {
                let left = at.saturating_duration_since(Instant::now());
                Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos().into() }
            });
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(io::Error::from(error).into()),
            }
            let fired: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            if self.nudge.is_some_and(|at| at <= Instant::now()) {
                self.nudge = None;
                connection.send(stream, &Message::Resize(crate::terminal::window()))?;
            }
            if fired[0] && !connection.fill()? {
                return Ok(Ended::Closed);
            }
            for ((signal, socket, _), _) in self.signals.iter().zip(&fired[1..]).filter(|(_, fired)| **fired) {
                let mut byte = [0u8; 64];
                let n = (&mut &*socket).read(&mut byte).unwrap_or(0);
                match *signal {
                    _ if n == 0 => {}
                    SIGWINCH if input == Input::Terminal => {
                        connection.send(stream, &Message::Resize(crate::terminal::window()))?;
                    }
                    SIGWINCH => {}
                    SIGHUP => return Ok(Ended::Detached),
                    SIGTSTP => self.suspend(),
                    SIGCONT => self.go_on(connection)?,
                    signal => {
                        match interrupted {
                            // `timeout` and others send theirs to a process and then to its group.
                            Some(at) if at.elapsed() < TWICE => {}
                            Some(_) => return Ok(Ended::Interrupted),
                            // Nobody inside could hear it, and `timeout` asks once.
                            None if self.shown.frozen => return Ok(Ended::Interrupted),
                            None => {
                                interrupted = Some(Instant::now());
                                connection.send(stream, &Message::Signal { signal })?;
                            }
                        }
                    }
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
                } else if self.leave && input == Input::Terminal {
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

    /// Shows what a frame brings; how it ended, if this is the end.
    fn frame(
        &mut self,
        connection: &mut Connection,
        frame: &Frame,
        window: &mut usize,
    ) -> Result<Option<Ended>, ConnectionError> {
        let stream = self.stream;
        if frame.stream != stream {
            return Ok(match frame.message() {
                Ok(Message::Error(failure)) if frame.stream == 0 => Some(Ended::Refused(failure)),
                Ok(Message::Event(event)) if frame.stream == 0 => {
                    self.shown.event(&event);
                    None
                }
                _ => None,
            });
        }
        let (channel, bytes) = match frame.kind {
            FrameType::Control => {
                return Ok(match frame.message().map_err(ConnectionError::Protocol)? {
                    Message::Exited(status) => Some(Ended::Exited(status)),
                    Message::Error(failure) => Some(Ended::Refused(failure)),
                    Message::Done => Some(Ended::Detached),
                    Message::Credit { channel: Channel::Stdin, bytes } => {
                        *window = window.saturating_add(bytes as usize);
                        None
                    }
                    _ => None,
                });
            }
            FrameType::Stdin => return Err(ConnectionError::Protocol(FrameError::Type(1))),
            FrameType::Stdout => {
                self.shown.stdout(&frame.payload);
                (Channel::Stdout, frame.payload.len() as u64)
            }
            FrameType::Stderr => {
                self.shown.stderr(&frame.payload);
                (Channel::Stderr, frame.payload.len() as u64)
            }
        };
        connection.send(stream, &Message::Credit { channel, bytes })?;
        Ok(None)
    }

    /// Has the program inside draw its whole screen: many do so only when the window's size is another one.
    fn draw_again(&mut self, connection: &mut Connection) -> Result<(), ConnectionError> {
        if self.input == Input::Terminal {
            let size = window();
            let wrong = WindowSize { cols: if size.cols > 1 { size.cols - 1 } else { 2 }, ..size };
            connection.send(self.stream, &Message::Resize(wrong))?;
            self.nudge = Some(Instant::now() + NUDGE);
        } else {
            self.nudge = None;
        }
        Ok(())
    }

    /// Puts the terminal back and stops this program, as any other that is told to. Returns when it goes on.
    fn suspend(&mut self) {
        if let Some(raw) = self.raw {
            let mut out = io::stdout();
            let _ = out.write_all(self.shown.screen.reset().as_bytes()).and_then(|()| out.flush());
            raw.give_back();
        }
        // The signal that cannot be caught: the one that came is ours now, and its default would be too.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
    }

    /// It goes on: whoever had the terminal meanwhile has left it in another state.
    fn go_on(&mut self, connection: &mut Connection) -> Result<(), ConnectionError> {
        let Some(raw) = self.raw else { return Ok(()) };
        let _ = raw.take();
        let mut out = io::stdout();
        let _ = out.write_all(self.shown.screen.enter().as_bytes()).and_then(|()| out.flush());
        self.draw_again(connection)
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
