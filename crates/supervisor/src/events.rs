//! `log/events.jsonl`, and the proxy of a sandbox whose network is `allow`.
//!
//! ```text
//!   sandbox's loopback ──► listening socket ──► proxy (child of ours) ──► the world
//!                          (made inside)          │ one JSON line for each decision
//!                                                 ▼
//!                          events.jsonl ◄── supervisor ──► clients that asked to be told
//! ```
//!
//! A proxy that ends is started again over the same listening socket, at most [`RESTARTS`] times in [`WITHIN`]: what
//! was connected is cut, and that is told. One that ends more often than that stays away, and with it the network.
//!
//! The supervisor is the only writer of the log. A proxy that is ahead of it waits, and with it
//! whoever asked for a connection: what was not written down is not let out for long.

use crate::children::Helper;
use crate::log::RingLog;
use crate::supervise::{Phase, Supervisor, failure};
use rustix::pipe::{PipeFlags, pipe_with};
use sandbox_protocol::event::{Event, Happened, Verdict};
use sandbox_protocol::{EVENTS, FailureKind, Hello, Message, SCREEN, VERSIONS};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Bytes of one line of the proxy's; it cuts names well below.
const MAX_LINE: usize = 16 * 1024;

/// How often a proxy is started again.
const RESTARTS: usize = 3;

/// In which time.
const WITHIN: Duration = Duration::from_secs(60);

/// What a proxy is started of.
#[derive(Debug)]
struct Origin {
    argv: Vec<String>,
    listener: OwnedFd,
    /// When earlier ones ended.
    ended: Vec<Instant>,
}

/// A running proxy.
#[derive(Debug)]
pub(crate) struct Egress {
    origin: Origin,
    pub(crate) helper: Helper,
    /// Its standard output, not blocking.
    pub(crate) lines: File,
    /// The beginning of a line.
    partial: Vec<u8>,
    /// Its standard output has ended.
    pub(crate) closed: bool,
}

impl Egress {
    /// Starts `argv` over a listening socket.
    pub(crate) fn start(argv: Vec<String>, listener: OwnedFd) -> io::Result<Self> {
        Self::of(Origin { argv, listener, ended: Vec::new() })
    }

    fn of(origin: Origin) -> io::Result<Self> {
        let listener = rustix::io::fcntl_dupfd_cloexec(&origin.listener, 3)?;
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&read, true)?;
        let errors = rustix::io::fcntl_dupfd_cloexec(io::stderr(), 3)?;
        let helper = Helper::start(&origin.argv, listener, write, Some(errors))?;
        Ok(Self { origin, helper, lines: File::from(read), partial: Vec::new(), closed: false })
    }

    /// Starts another one in the place of this one, which has ended; `None` if it ended too often.
    fn again(self) -> Option<Self> {
        let mut origin = self.origin;
        origin.ended.retain(|at| at.elapsed() < WITHIN);
        origin.ended.push(Instant::now());
        (origin.ended.len() <= RESTARTS).then(|| Self::of(origin).ok()).flatten()
    }

    /// Reads what is there; whole lines only.
    fn read(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let mut bytes = [0u8; 16 * 1024];
        match self.lines.read(&mut bytes) {
            Ok(0) => self.closed = true,
            Ok(n) => {
                for part in bytes[..n].split_inclusive(|byte| *byte == b'\n') {
                    self.partial.extend_from_slice(part);
                    if part.ends_with(b"\n") {
                        // A line that is none is the proxy's mistake; the others still count.
                        events.extend(serde_json::from_slice::<Event>(&self.partial).ok());
                        self.partial.clear();
                    } else if self.partial.len() > MAX_LINE {
                        self.partial.clear();
                    }
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(_) => self.closed = true,
        }
        events
    }
}

impl Supervisor {
    /// The proxy has said something.
    pub(crate) fn egress_readable(&mut self) {
        let events = self.egress.as_mut().map(Egress::read).unwrap_or_default();
        for event in &events {
            self.record(event);
        }
    }

    /// The proxy has ended: it is started again, or the network of the sandbox has ended too.
    pub(crate) fn egress_ended(&mut self) {
        let Some(mut egress) = self.egress.take() else { return };
        self.last_words(&mut egress);
        let reason = match egress.helper.status() {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        if self.phase != Phase::Running {
            return;
        }
        let reason = format!("its proxy ended ({reason})");
        self.egress = egress.again();
        self.happened(match self.egress {
            Some(_) => Happened::NetworkRestarted { reason },
            None => Happened::NetworkEnded { reason },
        });
    }

    /// What leads to the mirror has ended: it is started again, or git inside is told that nobody is there.
    pub(crate) fn mirror_ended(&mut self) {
        let Some(mut mirror) = self.mirror.take() else { return };
        let _ = mirror.helper.status();
        if self.phase == Phase::Running {
            self.mirror = mirror.again();
        }
    }

    /// Ends the proxy with the sandbox; its last words are kept.
    pub(crate) fn egress_stop(&mut self) {
        if let Some(mut mirror) = self.mirror.take() {
            mirror.helper.kill();
        }
        if let Some(mut egress) = self.egress.take() {
            egress.helper.kill();
            self.last_words(&mut egress);
        }
    }

    /// What is left in the pipe: nobody writes to it any more.
    fn last_words(&mut self, egress: &mut Egress) {
        loop {
            let events = egress.read();
            for event in &events {
                self.record(event);
            }
            if egress.closed || events.is_empty() {
                return;
            }
        }
    }

    /// Writes down that this life of the sandbox has begun, with its main command if that is known.
    pub(crate) fn say_started(&mut self, argv: Vec<String>) {
        self.started_said = true;
        self.happened(Happened::Started { argv });
    }

    /// Writes down that something has happened now, and tells those who want to know.
    pub(crate) fn happened(&mut self, what: Happened) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_millis() as u64).unwrap_or(0);
        self.record(&Event { at, what });
    }

    fn record(&mut self, event: &Event) {
        if let Ok(mut line) = serde_json::to_vec(event) {
            line.push(b'\n');
            if self.events.is_none() {
                self.events = RingLog::open(&self.dir.events()).ok();
            }
            // A log that cannot be written (full disk) must not stop the work.
            if let Some(log) = &mut self.events {
                let _ = log.append(&line);
            }
        }
        let urgent = match &event.what {
            Happened::Network(network) => network.verdict == Verdict::Refused,
            Happened::NetworkEnded { .. }
            | Happened::NetworkRestarted { .. }
            | Happened::DiskLow { .. }
            | Happened::Frozen(_)
            | Happened::Thawed
            | Happened::MemoryKilled { .. } => true,
            _ => false,
        };
        if urgent {
            for id in &self.told {
                if let Some(client) = self.clients.get_mut(id) {
                    client.control(0, &Message::Event(event.clone()));
                }
            }
        }
    }

    /// What a client can do and wants; one of another protocol is told so, and let go.
    pub(crate) fn greet(&mut self, id: crate::supervise::ClientId, hello: &Hello) {
        let has = |feature: &str| hello.features.iter().any(|one| one == feature);
        if has(EVENTS) {
            self.told.insert(id);
        }
        if has(SCREEN) {
            self.screens.insert(id);
        }
        // Ours was sent when it connected; this is for one that does not look at it.
        if (hello.max < VERSIONS.0 || hello.min > VERSIONS.1)
            && let Some(client) = self.clients.get_mut(&id)
        {
            let words = format!(
                "this sandbox was started by a git-sandbox of protocol {} to {}, the command speaks {} to {}",
                VERSIONS.0, VERSIONS.1, hello.min, hello.max
            );
            client.control(0, &failure(FailureKind::Unsupported, words));
            client.flush();
            client.gone = true;
        }
    }
}
