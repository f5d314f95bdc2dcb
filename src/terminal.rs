//! A session on the user's terminal (or pipes): raw mode, relay, window size, the keys that
//! leave, signals. What is relayed never touches a file of the host directly: the process
//! inside has its own pty or pipes.

use crate::error::CliError;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use sandbox_core::connection::{Connection, ConnectionError};
use sandbox_protocol::{Channel, ExitStatus, Failure, FrameError, FrameType, MAX_PAYLOAD, Message, WINDOW, WindowSize};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

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

/// Modes of the terminal that the session switched on and did not switch off again: alternate
/// screen, mouse, bracketed paste, hidden cursor. A program that is left or killed cannot.
#[derive(Debug, Default)]
struct Modes {
    on: std::collections::BTreeSet<u16>,
    hidden: bool,
    /// The beginning of a sequence that the next bytes complete.
    partial: Vec<u8>,
}

impl Modes {
    /// Reads `ESC [ ? n ; n h` and `l`; everything else passes by.
    fn watch(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match (self.partial.as_slice(), byte) {
                (_, 0x1b) => self.partial = vec![0x1b],
                ([], _) => {}
                ([0x1b], b'[') | ([0x1b, b'['], b'?') => self.partial.push(*byte),
                ([0x1b, b'[', b'?', ..], b'0'..=b'9' | b';') if self.partial.len() < 32 => self.partial.push(*byte),
                ([0x1b, b'[', b'?', numbers @ ..], b'h' | b'l') => {
                    let text = String::from_utf8_lossy(numbers).into_owned();
                    for mode in text.split(';').filter_map(|mode| mode.parse::<u16>().ok()) {
                        self.set(mode, *byte == b'h');
                    }
                    self.partial.clear();
                }
                _ => self.partial.clear(),
            }
        }
    }

    fn set(&mut self, mode: u16, on: bool) {
        match mode {
            25 => self.hidden = !on,
            47 | 1000..=1006 | 1015 | 1047 | 1049 | 2004 if on => {
                self.on.insert(mode);
            }
            mode => {
                self.on.remove(&mode);
            }
        }
    }

    /// What switches everything off that is still on.
    fn reset(&self) -> String {
        let mut out: String = self.on.iter().rev().map(|mode| format!("\x1b[?{mode}l")).collect();
        if self.hidden {
            out.push_str("\x1b[?25h");
        }
        out
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

/// Relays until the session ends or is left. `leave` allows Ctrl-P Ctrl-Q.
pub fn relay(connection: &mut Connection, stream: u32, input: Input, leave: bool) -> Result<Ended, CliError> {
    let signals = watch_signals().map_err(CliError::io("watch for signals"))?;
    let raw = if input == Input::Terminal { Raw::enter() } else { None };
    let mut modes = Modes::default();
    let ended = relay_until_end(connection, stream, input, leave, &signals, &mut modes);
    if raw.is_some() {
        let mut out = io::stdout();
        let _ = out.write_all(modes.reset().as_bytes()).and_then(|()| out.flush());
    }
    drop(raw);
    for (_, _, id) in signals {
        signal_hook::low_level::unregister(id);
    }
    match ended {
        Ok(ended) => Ok(ended),
        Err(ConnectionError::Closed) => Ok(Ended::Closed),
        Err(error) => Err(error.into()),
    }
}

fn relay_until_end(
    connection: &mut Connection,
    stream: u32,
    input: Input,
    leave: bool,
    signals: &[SignalSocket],
    modes: &mut Modes,
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
                if frame.stream == 0
                    && let Ok(Message::Error(failure)) = frame.message()
                {
                    return Ok(Ended::Refused(failure));
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
                    // A reader that has gone away (`| head`) must not end the work inside.
                    let mut out = io::stdout();
                    let _ = out.write_all(&frame.payload).and_then(|()| out.flush());
                    modes.watch(&frame.payload);
                    let bytes = frame.payload.len() as u64;
                    connection.send(stream, &Message::Credit { channel: Channel::Stdout, bytes })?;
                }
                FrameType::Stderr => {
                    let _ = io::stderr().write_all(&frame.payload);
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

    #[test]
    fn only_what_was_left_on_is_switched_off() {
        let mut modes = Modes::default();
        modes.watch(b"plain \x1b[1mbold\x1b[0m \x1b[?1049h\x1b[?10");
        modes.watch(b"00;1006h\x1b[?25l\x1b[?2004h\x1b[?2004l");
        assert_eq!(modes.reset(), "\x1b[?1049l\x1b[?1006l\x1b[?1000l\x1b[?25h");
        modes.watch(b"\x1b[?1049l\x1b[?1000;1006l\x1b[?25h");
        assert_eq!(modes.reset(), "");
    }
}
