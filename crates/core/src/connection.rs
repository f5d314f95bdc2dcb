//! A client's end of the control protocol, blocking: what commit-back, the command line and
//! tests speak to a supervisor with.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sandbox_protocol::{
    Channel, Decoder, Exec, ExitStatus, Failure, Frame, FrameError, FrameType, Hello, MAX_PAYLOAD, Message, VERSIONS,
    WINDOW, encode, try_encode_control,
};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How long a relayed process may go on after its listener has hung up.
const CLOSING: Duration = Duration::from_secs(30);

/// One connection. Streams that it opens have even numbers from 2.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    decoder: Decoder,
    next: u32,
    peer: Option<Hello>,
}

/// Why a conversation failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The other side is gone.
    #[error("the sandbox's supervisor closed the connection")]
    Closed,
    /// The other side broke the protocol.
    #[error("the sandbox's supervisor sent what is not in the protocol")]
    Protocol(#[source] FrameError),
    /// Versions do not overlap.
    #[error("the running sandbox speaks protocol {min} to {max}, this program {} to {}", VERSIONS.0, VERSIONS.1)]
    Version {
        /// Its oldest.
        min: u32,
        /// Its newest.
        max: u32,
    },
    /// The request was refused.
    #[error("{}", .0.message)]
    Refused(Failure),
    /// More output than the caller wanted.
    #[error("more than {0} bytes of output")]
    TooMuch(usize),
    /// The request does not fit into a message.
    #[error("a command line and its environment of more than {} KiB cannot be passed on", MAX_PAYLOAD / 1024)]
    TooLong,
    /// The command inside took too long, and was ended.
    #[error("no answer from inside in {0} s")]
    Late(u64),
    /// The socket failed.
    #[error("cannot speak with the sandbox's supervisor")]
    Io(#[from] io::Error),
}

type Result<T> = std::result::Result<T, ConnectionError>;

impl Connection {
    /// Starts to speak over a connected socket: sends our hello, does not wait for theirs.
    pub fn new(stream: UnixStream) -> Result<Self> {
        Self::with_features(stream, &[])
    }

    /// As [`Connection::new`], with features that our hello names ([`sandbox_protocol::EVENTS`]).
    pub fn with_features(stream: UnixStream, features: &[&str]) -> Result<Self> {
        let mut connection = Self { stream, decoder: Decoder::new(), next: 2, peer: None };
        let features = features.iter().map(|feature| (*feature).to_owned()).collect();
        let hello = Hello { min: VERSIONS.0, max: VERSIONS.1, features, enforced: Vec::new() };
        connection.send(0, &Message::Hello(hello))?;
        Ok(connection)
    }

    /// Returns a stream number that was not used before.
    pub fn open(&mut self) -> u32 {
        let stream = self.next;
        self.next += 2;
        stream
    }

    /// Sends one control message.
    pub fn send(&mut self, stream: u32, message: &Message) -> Result<()> {
        let mut out = Vec::new();
        if !try_encode_control(&mut out, stream, message) {
            return Err(ConnectionError::TooLong);
        }
        self.write(&out)
    }

    /// Sends data of any length, cut into frames. The caller minds the credit window.
    pub fn send_data(&mut self, kind: FrameType, stream: u32, bytes: &[u8]) -> Result<()> {
        let mut out = Vec::with_capacity(bytes.len() + 16);
        for chunk in bytes.chunks(MAX_PAYLOAD) {
            encode(&mut out, kind, stream, chunk);
        }
        self.write(&out)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match self.stream.write_all(bytes) {
            // Gone: but its last words (why it could not launch) may still be there to be read.
            // Whoever reads after them learns that it is gone.
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Waits for the next frame. Hellos are consumed and checked.
    pub fn recv(&mut self) -> Result<Frame> {
        loop {
            if let Some(frame) = self.recv_until(None)? {
                return Ok(frame);
            }
        }
    }

    /// As [`Connection::recv`]; `None` when the deadline is over.
    fn recv_until(&mut self, deadline: Option<Instant>) -> Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(Some(frame));
            }
            if let Some(deadline) = deadline {
                let left = deadline.saturating_duration_since(Instant::now());
                let left = Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos().into() };
                match poll(&mut [PollFd::new(&self.stream, PollFlags::IN)], Some(&left)) {
                    Ok(0) => return Ok(None),
                    Ok(_) => {}
                    Err(rustix::io::Errno::INTR) => continue,
                    Err(error) => return Err(io::Error::from(error).into()),
                }
            }
            let mut bytes = [0u8; 16 * 1024];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(ConnectionError::Closed),
                Ok(n) => self.decoder.push(&bytes[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(ConnectionError::Closed),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Returns a frame that has already arrived, without reading from the socket.
    pub fn buffered(&mut self) -> Result<Option<Frame>> {
        while let Some(frame) = self.decoder.next_frame().map_err(ConnectionError::Protocol)? {
            if frame.stream == 0
                && frame.kind == FrameType::Control
                && let Message::Hello(hello) = frame.message().map_err(ConnectionError::Protocol)?
            {
                if hello.max < VERSIONS.0 || hello.min > VERSIONS.1 {
                    return Err(ConnectionError::Version { min: hello.min, max: hello.max });
                }
                self.peer = Some(hello);
                continue;
            }
            return Ok(Some(frame));
        }
        Ok(None)
    }

    /// Waits for the peer's hello and returns it.
    pub fn hello(&mut self) -> Result<Hello> {
        while self.peer.is_none() {
            if self.buffered()?.is_some() {
                return Err(ConnectionError::Protocol(FrameError::Type(255)));
            }
            if self.peer.is_some() {
                break;
            }
            let mut bytes = [0u8; 4096];
            match self.stream.read(&mut bytes)? {
                0 => return Err(ConnectionError::Closed),
                n => self.decoder.push(&bytes[..n]),
            }
        }
        Ok(self.peer.clone().expect("set above"))
    }

    /// Sends a request on a new stream and waits for the one message that answers it,
    /// collecting data that comes before it (at most `limit` bytes).
    pub fn ask(&mut self, request: &Message, limit: usize) -> Result<(Message, Vec<u8>)> {
        let stream = self.open();
        self.send(stream, request)?;
        let mut output = Vec::new();
        loop {
            let frame = self.recv()?;
            if frame.stream != stream {
                continue;
            }
            match frame.kind {
                FrameType::Control => match frame.message().map_err(ConnectionError::Protocol)? {
                    Message::Error(failure) => return Err(ConnectionError::Refused(failure)),
                    Message::Credit { .. } | Message::Started { .. } => {}
                    answer => return Ok((answer, output)),
                },
                FrameType::Stdin => {}
                FrameType::Stdout | FrameType::Stderr => {
                    let bytes = frame.payload.len() as u64;
                    output.extend_from_slice(&frame.payload);
                    if output.len() > limit {
                        return Err(ConnectionError::TooMuch(limit));
                    }
                    let channel = if frame.kind == FrameType::Stdout { Channel::Stdout } else { Channel::Stderr };
                    self.send(stream, &Message::Credit { channel, bytes })?;
                }
            }
        }
    }

    /// Runs a command to its end with `input` on its standard input; returns its status,
    /// standard output and standard error, each at most `limit` bytes.
    pub fn run(&mut self, exec: Exec, input: &[u8], limit: usize) -> Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
        self.run_until(exec, input, limit, None)
    }

    /// As [`Connection::run`], but ends the command when it takes longer than `time`: whoever is inside can
    /// make it wait for ever.
    pub fn run_within(
        &mut self,
        exec: Exec,
        input: &[u8],
        limit: usize,
        time: Duration,
    ) -> Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
        self.run_until(exec, input, limit, Some(time))
    }

    fn run_until(
        &mut self,
        exec: Exec,
        input: &[u8],
        limit: usize,
        time: Option<Duration>,
    ) -> Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
        let deadline = time.map(|time| Instant::now() + time);
        let stream = self.open();
        self.send(stream, &Message::Exec(exec))?;
        let (mut sent, mut window, mut closed) = (0, WINDOW as usize, false);
        let (mut out, mut err) = (Vec::new(), Vec::new());
        loop {
            while sent < input.len() && window > 0 {
                let n = window.min(input.len() - sent).min(MAX_PAYLOAD);
                self.send_data(FrameType::Stdin, stream, &input[sent..sent + n])?;
                sent += n;
                window -= n;
            }
            if sent == input.len() && !closed {
                self.send(stream, &Message::CloseStdin)?;
                closed = true;
            }
            // Whoever sends one frame after the other is late all the same.
            let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            let frame = if late { None } else { self.recv_until(deadline)? };
            let Some(frame) = frame else {
                self.send(stream, &Message::Signal { signal: 9 })?;
                return Err(ConnectionError::Late(time.unwrap_or_default().as_secs()));
            };
            if frame.stream != stream {
                continue;
            }
            match frame.kind {
                FrameType::Control => match frame.message().map_err(ConnectionError::Protocol)? {
                    Message::Error(failure) => return Err(ConnectionError::Refused(failure)),
                    Message::Exited(status) => return Ok((status, out, err)),
                    Message::Credit { channel: Channel::Stdin, bytes } => {
                        window = window.saturating_add(bytes as usize);
                    }
                    _ => {}
                },
                FrameType::Stdin => {}
                kind @ (FrameType::Stdout | FrameType::Stderr) => {
                    let (sink, channel) = match kind {
                        FrameType::Stdout => (&mut out, Channel::Stdout),
                        _ => (&mut err, Channel::Stderr),
                    };
                    sink.extend_from_slice(&frame.payload);
                    if sink.len() > limit {
                        return Err(ConnectionError::TooMuch(limit));
                    }
                    let bytes = frame.payload.len() as u64;
                    self.send(stream, &Message::Credit { channel, bytes })?;
                }
            }
        }
    }

    /// Runs a command and relays its standard input and output to `local` until it ends, or
    /// until `local`'s other side closes both directions. Standard error is dropped after 64 KiB.
    ///
    /// This is how host git speaks with an upload-pack inside: `local` is one end of a socket
    /// pair, host git has the other.
    pub fn relay(&mut self, exec: Exec, local: &UnixStream) -> Result<(ExitStatus, Vec<u8>)> {
        self.relay_request(&Message::Exec(exec), local)
    }

    /// As [`Connection::relay`], for any request that is answered by data and `Exited`.
    pub fn relay_request(&mut self, request: &Message, local: &UnixStream) -> Result<(ExitStatus, Vec<u8>)> {
        let stream = self.open();
        self.send(stream, request)?;
        let mut window = WINDOW as usize;
        let (mut local_open, mut stderr) = (true, Vec::new());
        let mut closing: Option<Instant> = None;
        loop {
            // Nobody listens any more: a process that goes on all the same is ended.
            if closing.is_some_and(|at| at.elapsed() > CLOSING) {
                self.send(stream, &Message::Signal { signal: 9 })?;
                return Err(ConnectionError::Closed);
            }
            while let Some(frame) = self.buffered()? {
                if frame.stream != stream {
                    continue;
                }
                match frame.kind {
                    FrameType::Control => match frame.message().map_err(ConnectionError::Protocol)? {
                        Message::Error(failure) => return Err(ConnectionError::Refused(failure)),
                        Message::Exited(status) => return Ok((status, stderr)),
                        Message::Credit { channel: Channel::Stdin, bytes } => {
                            window = window.saturating_add(bytes as usize);
                        }
                        _ => {}
                    },
                    FrameType::Stdin => {}
                    FrameType::Stdout => {
                        // The reader may have had enough; then the process gets no more credit and is ended below.
                        if (&mut &*local).write_all(&frame.payload).is_err() {
                            local_open = false;
                            closing.get_or_insert_with(Instant::now);
                            self.send(stream, &Message::Signal { signal: 15 })?;
                        }
                        let bytes = frame.payload.len() as u64;
                        self.send(stream, &Message::Credit { channel: Channel::Stdout, bytes })?;
                    }
                    FrameType::Stderr => {
                        let room = (64 * 1024usize).saturating_sub(stderr.len());
                        stderr.extend_from_slice(&frame.payload[..frame.payload.len().min(room)]);
                        let bytes = frame.payload.len() as u64;
                        self.send(stream, &Message::Credit { channel: Channel::Stderr, bytes })?;
                    }
                }
            }
            let want_local = local_open && window > 0;
            let mut fds = vec![PollFd::new(&self.stream, PollFlags::IN)];
            if want_local {
                fds.push(PollFd::new(local, PollFlags::IN));
            }
            let tick = closing.map(|_| Timespec { tv_sec: 0, tv_nsec: 200_000_000 });
            match poll(&mut fds, tick.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
            let (from_peer, from_local) =
                (!fds[0].revents().is_empty(), fds.get(1).is_some_and(|fd| !fd.revents().is_empty()));
            drop(fds);
            let mut bytes = vec![0u8; MAX_PAYLOAD];
            if from_peer {
                match self.stream.read(&mut bytes)? {
                    0 => return Err(ConnectionError::Closed),
                    n => self.decoder.push(&bytes[..n]),
                }
            }
            if from_local {
                let n = (&mut &*local).read(&mut bytes[..window.min(MAX_PAYLOAD)]).unwrap_or(0);
                if n == 0 {
                    local_open = false;
                    closing = Some(Instant::now());
                    self.send(stream, &Message::CloseStdin)?;
                } else {
                    self.send_data(FrameType::Stdin, stream, &bytes[..n])?;
                    window -= n;
                }
            }
        }
    }

    /// Reads what the socket has into the decoder; false at its end.
    pub fn fill(&mut self) -> Result<bool> {
        let mut bytes = [0u8; 16 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) => Ok(false),
            Ok(n) => {
                self.decoder.push(&bytes[..n]);
                Ok(true)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_protocol::encode_control;

    #[test]
    fn a_command_that_does_not_end_is_ended() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(ours).unwrap();
        let time = Duration::from_millis(50);
        assert!(matches!(connection.run_within(Exec::default(), b"", 10, time), Err(ConnectionError::Late(0))));
        let mut peer = Connection::new(theirs).unwrap();
        let asked: Vec<Message> = (0..3).map(|_| peer.recv().unwrap().message().unwrap()).collect();
        assert!(
            matches!(asked[..], [Message::Exec(_), Message::CloseStdin, Message::Signal { signal: 9 }]),
            "{asked:?}"
        );
    }

    #[test]
    fn a_long_command_line_is_an_error_and_huge_credit_is_none() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(ours).unwrap();
        let long = Exec { argv: vec!["x".repeat(MAX_PAYLOAD)], ..Exec::default() };
        assert!(matches!(connection.run(long, b"", 10), Err(ConnectionError::TooLong)));
        let mut out = Vec::new();
        for _ in 0..3 {
            encode_control(&mut out, 4, &Message::Credit { channel: Channel::Stdin, bytes: u64::MAX });
        }
        encode_control(&mut out, 4, &Message::Exited(ExitStatus::Code(3)));
        theirs.write_all(&out).unwrap();
        let (status, ..) = connection.run(Exec::default(), b"input", 10).unwrap();
        assert_eq!(status, ExitStatus::Code(3));
    }
}
