//! Requests of tools inside, passed on to the supervisor: `git push host`, `git fetch host`.
//!
//! ```text
//!  tool ──its stream──► agent.sock ──odd stream──► control channel ──► supervisor
//! ```
//!
//! Whoever connects is hostile: connections, requests, frames and what waits for a reader are
//! bounded, and only two requests are passed on. A tool that vanishes leaves its request to be
//! finished by the supervisor; what still comes for it is swallowed and granted, so that nobody
//! waits for a reader that is gone.

use crate::wire::{HIGH_WATER, Wire, WireError};
use rustix::event::PollFlags;
use sandbox_protocol::{
    Channel, Failure, FailureKind, Frame, FrameType, Hello, MAX_PAYLOAD, Message, VERSIONS, WINDOW,
};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

/// The most connections at once.
const MAX_TOOLS: usize = 64;

/// The most requests of one connection at once.
const MAX_STREAMS: usize = 4;

/// The most requests at once, those of vanished tools included.
const MAX_ROUTES: usize = 64;

/// How long no connection is taken after one could not be.
const REST: Duration = Duration::from_millis(100);

/// Names a connection; never used again.
pub type ToolId = u64;

#[derive(Debug)]
struct Tool {
    wire: Wire,
    greeted: bool,
    streams: Vec<u32>,
}

/// A request under way.
#[derive(Debug)]
struct Route {
    /// The tool and its own number for the stream; `None` when it has vanished.
    tool: Option<(ToolId, u32)>,
    /// Bytes that the tool may still send.
    window: u64,
    /// Bytes of output that the tool was given and has not granted back, by channel.
    outstanding: [u64; 2],
}

/// The socket inside and its connections.
#[derive(Debug)]
pub struct Relay {
    listener: UnixListener,
    tools: BTreeMap<ToolId, Tool>,
    routes: BTreeMap<u32, Route>,
    next_tool: ToolId,
    next_stream: u32,
    rest_until: Option<Instant>,
}

impl Relay {
    /// Listens on `path`; `None` where no socket can be made.
    pub fn listen(path: &Path) -> Option<Self> {
        Self::on(UnixListener::bind(path).ok()?)
    }

    /// Takes over a socket that listens already.
    pub fn on(listener: UnixListener) -> Option<Self> {
        listener.set_nonblocking(true).ok()?;
        let (tools, routes) = (BTreeMap::new(), BTreeMap::new());
        Some(Self { listener, tools, routes, next_tool: 1, next_stream: 1, rest_until: None })
    }

    /// The listening socket, while another connection may come.
    pub fn wants_to_accept(&self, now: Instant) -> Option<BorrowedFd<'_>> {
        let rested = self.rest_until.is_none_or(|until| until <= now);
        (rested && self.tools.len() < MAX_TOOLS).then(|| self.listener.as_fd())
    }

    /// When to look at the listening socket again though nothing happened.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        self.rest_until.filter(|until| *until > now)
    }

    /// The connections.
    pub fn tools(&self) -> impl Iterator<Item = (ToolId, &Wire)> {
        self.tools.iter().map(|(id, tool)| (*id, &tool.wire))
    }

    /// Takes a new connection.
    pub fn accept(&mut self) {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: it stays readable, and must not keep us busy.
                if error.kind() != io::ErrorKind::WouldBlock {
                    self.rest_until = Some(Instant::now() + REST);
                }
                return;
            }
        };
        let Ok(mut wire) = Wire::new(stream) else { return };
        let hello = Hello { min: VERSIONS.0, max: VERSIONS.1, features: Vec::new(), enforced: Vec::new() };
        wire.control(0, &Message::Hello(hello));
        if wire.flush().is_ok() {
            self.tools.insert(self.next_tool, Tool { wire, greeted: false, streams: Vec::new() });
            self.next_tool += 1;
        }
    }

    /// A connection can be read or written.
    pub fn step(&mut self, id: ToolId, flags: PollFlags, host: &mut Wire, scratch: &mut [u8]) {
        if self.try_step(id, flags, host, scratch).is_err() {
            self.vanish(id, host);
        }
    }

    fn try_step(&mut self, id: ToolId, flags: PollFlags, host: &mut Wire, scratch: &mut [u8]) -> Result<(), WireError> {
        let Some(tool) = self.tools.get_mut(&id) else { return Ok(()) };
        if flags.contains(PollFlags::OUT) {
            tool.wire.flush()?;
        }
        if flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            tool.wire.fill(scratch)?;
            while let Some(tool) = self.tools.get_mut(&id)
                && let Some(frame) = tool.wire.next_frame()?
            {
                self.take_from_tool(id, frame, host)?;
            }
        }
        match self.tools.get_mut(&id) {
            Some(tool) => tool.wire.flush(),
            None => Ok(()),
        }
    }

    fn take_from_tool(&mut self, id: ToolId, frame: Frame, host: &mut Wire) -> Result<(), WireError> {
        let Some(tool) = self.tools.get_mut(&id) else { return Ok(()) };
        let theirs = frame.stream;
        let ours = self.routes.iter().find(|(_, route)| route.tool == Some((id, theirs))).map(|(ours, _)| *ours);
        match (frame.kind, ours) {
            (FrameType::Stdin, Some(ours)) => {
                let route = self.routes.get_mut(&ours).expect("found above");
                route.window = route.window.checked_sub(frame.payload.len() as u64).ok_or(WireError::Closed)?;
                host.data(FrameType::Stdin, ours, &frame.payload);
            }
            (FrameType::Control, ours) => match (frame.message()?, ours) {
                (Message::Hello(hello), None) if theirs == 0 => {
                    if hello.max < VERSIONS.0 || hello.min > VERSIONS.1 {
                        return Err(WireError::Closed);
                    }
                    tool.greeted = true;
                }
                (request @ (Message::CommitBack | Message::ServeHost { .. }), None) if theirs != 0 => {
                    let refusal = if !tool.greeted {
                        Some((FailureKind::Other, "a request comes after the hello"))
                    } else if tool.streams.len() >= MAX_STREAMS || self.routes.len() >= MAX_ROUTES {
                        Some((FailureKind::Limit, "too many requests at once"))
                    } else {
                        None
                    };
                    if let Some((kind, message)) = refusal {
                        tool.wire.control(theirs, &Message::Error(Failure { kind, message: message.into() }));
                        return self.bounded(id);
                    }
                    tool.streams.push(theirs);
                    let ours = self.next_stream;
                    self.next_stream = self.next_stream.wrapping_add(2);
                    self.routes.insert(ours, Route { tool: Some((id, theirs)), window: WINDOW, outstanding: [0, 0] });
                    host.control(ours, &request);
                }
                (Message::Credit { channel, bytes }, Some(ours)) => {
                    let route = self.routes.get_mut(&ours).expect("found above");
                    let index = channel_index(channel).ok_or(WireError::Closed)?;
                    // More than it was given is a lie that would make us hold without bound.
                    route.outstanding[index] = route.outstanding[index].checked_sub(bytes).ok_or(WireError::Closed)?;
                    host.control(ours, &Message::Credit { channel, bytes });
                }
                (Message::CloseStdin, Some(ours)) => host.control(ours, &Message::CloseStdin),
                (_, None) if theirs != 0 => {
                    let message = "the agent does not pass on this request".into();
                    let failure = Failure { kind: FailureKind::Unsupported, message };
                    tool.wire.control(theirs, &Message::Error(failure));
                    return self.bounded(id);
                }
                // A late word about a stream that has ended.
                _ => {}
            },
            (FrameType::Stdin, None) => {}
            (FrameType::Stdout | FrameType::Stderr, _) => return Err(WireError::Closed),
        }
        Ok(())
    }

    /// A tool that asks and never reads the answers is cut off.
    fn bounded(&mut self, id: ToolId) -> Result<(), WireError> {
        let Some(tool) = self.tools.get(&id) else { return Ok(()) };
        let most = HIGH_WATER + MAX_STREAMS * 2 * (WINDOW as usize + MAX_PAYLOAD);
        if tool.wire.backlog() > most { Err(WireError::Closed) } else { Ok(()) }
    }

    /// A frame of the supervisor's for one of our streams.
    pub fn take_from_host(&mut self, frame: Frame, host: &mut Wire) -> Result<(), WireError> {
        let ours = frame.stream;
        let Some(route) = self.routes.get_mut(&ours) else { return Ok(()) };
        let tool = route.tool.and_then(|(id, theirs)| self.tools.get_mut(&id).map(|tool| (id, tool, theirs)));
        let Some((id, tool, theirs)) = tool else { return self.swallow(frame, host) };
        match frame.kind {
            FrameType::Control => {
                let message = frame.message()?;
                match &message {
                    Message::Credit { bytes, .. } => route.window = route.window.saturating_add(*bytes),
                    Message::Done | Message::Error(_) | Message::Exited(_) => {
                        self.routes.remove(&ours);
                        tool.streams.retain(|stream| *stream != theirs);
                    }
                    _ => {}
                }
                tool.wire.control(theirs, &message);
            }
            kind => {
                let index = usize::from(kind == FrameType::Stderr);
                route.outstanding[index] += frame.payload.len() as u64;
                tool.wire.data(kind, theirs, &frame.payload);
            }
        }
        if tool.wire.flush().is_err() || self.bounded(id).is_err() {
            self.vanish(id, host);
        }
        Ok(())
    }

    /// Whatever comes for a tool that has vanished.
    fn swallow(&mut self, frame: Frame, host: &mut Wire) -> Result<(), WireError> {
        let channel = match frame.kind {
            FrameType::Control => {
                if matches!(frame.message()?, Message::Done | Message::Error(_) | Message::Exited(_)) {
                    self.routes.remove(&frame.stream);
                }
                return Ok(());
            }
            FrameType::Stderr => Channel::Stderr,
            _ => Channel::Stdout,
        };
        host.control(frame.stream, &Message::Credit { channel, bytes: frame.payload.len() as u64 });
        Ok(())
    }

    /// A tool is gone, or is not to be listened to any more.
    fn vanish(&mut self, id: ToolId, host: &mut Wire) {
        self.tools.remove(&id);
        for (ours, route) in &mut self.routes {
            if route.tool.is_some_and(|(tool, _)| tool == id) {
                route.tool = None;
                host.control(*ours, &Message::CloseStdin);
                for (channel, owed) in [Channel::Stdout, Channel::Stderr].into_iter().zip(route.outstanding) {
                    if owed > 0 {
                        host.control(*ours, &Message::Credit { channel, bytes: owed });
                    }
                }
                route.outstanding = [0, 0];
            }
        }
    }
}

fn channel_index(channel: Channel) -> Option<usize> {
    match channel {
        Channel::Stdin => None,
        Channel::Stdout => Some(0),
        Channel::Stderr => Some(1),
    }
}
