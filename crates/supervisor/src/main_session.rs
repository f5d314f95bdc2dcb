//! The main session: several clients may be attached, its output is logged, its input counted.

use crate::attached::TimeLimit;
use crate::screen::Screen;
use crate::supervise::{ClientStream, Route, SLOW_AGENT, SLOW_CLIENT, Supervisor, failure};
use sandbox_protocol::{Channel, ExitStatus, FailureKind, FrameType, MAX_PAYLOAD, Message, WINDOW};
use std::collections::{HashMap, VecDeque};
use std::time::Instant;

/// The main session.
#[derive(Debug)]
pub(crate) struct Main {
    pub(crate) stream: u32,
    pub(crate) argv: Vec<String>,
    /// Who asked for it: the end of its input is the end of the session's.
    pub(crate) starter: ClientStream,
    pub(crate) attached: Vec<ClientStream>,
    /// Attached clients that have sent input.
    pub(crate) writers: Vec<ClientStream>,
    /// No more input comes after what waits.
    pub(crate) close: bool,
    pub(crate) exit: Option<ExitStatus>,
    pub(crate) last_output: Option<Instant>,
    /// Input of all attached clients that waits for the agent's window.
    pub(crate) input: Vec<u8>,
    pub(crate) input_from: VecDeque<(ClientStream, usize)>,
    pub(crate) window: u64,
    /// Credit that is held back while an attached client is slow.
    pub(crate) owed: [u64; 2],
    /// `--timeout`, while it has not ended.
    pub(crate) limit: Option<TimeLimit>,
    /// It has a terminal, in this state.
    pub(crate) tty: bool,
    pub(crate) screen: Screen,
    /// Bytes of it in the log.
    pub(crate) logged: u64,
    /// Attached terminals that stand still, with the bytes that they have missed.
    pub(crate) left_out: HashMap<ClientStream, u64>,
}

impl Supervisor {
    pub(crate) fn client_attach(&mut self, from: ClientStream, session: u32, replay: u64) {
        let Some(main) = self.main.as_mut().filter(|_| session == 0) else {
            return self.answer(from, &failure(FailureKind::NotFound, "no command was started in it"));
        };
        if main.attached.contains(&from) {
            return self.answer(from, &failure(FailureKind::Other, "it is attached already"));
        }
        let Some(client) = self.clients.get_mut(&from.0) else { return };
        if replay > 0 {
            for chunk in main.redraw(&self.dir.log(), replay).chunks(MAX_PAYLOAD) {
                client.data(FrameType::Stdout, from.1, chunk);
            }
        }
        match main.exit {
            Some(status) => {
                client.control(from.1, &Message::Exited(status));
            }
            None => {
                client.control(from.1, &Message::Started { pid: 0 });
                main.attached.push(from);
                self.streams.insert(from, main.stream);
            }
        }
    }

    /// Input for the main session is counted by us (it may have several writers); that of
    /// another session is its client's business.
    pub(crate) fn client_input(&mut self, from: ClientStream, bytes: &[u8]) {
        let Some(stream) = self.streams.get(&from).copied() else { return };
        match self.routes.get(&stream) {
            Some(Route::Session(_)) => {
                if let Some(Route::Session(session)) = self.routes.get_mut(&stream) {
                    session.room = session.room.saturating_sub(bytes.len() as u64);
                }
                self.agent.data(FrameType::Stdin, stream, bytes);
            }
            Some(Route::Main) => {
                if let Some(main) = &mut self.main {
                    let pending: usize = main.input_from.iter().filter(|(who, _)| *who == from).map(|(_, n)| n).sum();
                    if pending + bytes.len() > 2 * WINDOW as usize {
                        if let Some(client) = self.clients.get_mut(&from.0) {
                            client.gone = true;
                        }
                        return;
                    }
                    main.input.extend_from_slice(bytes);
                    main.input_from.push_back((from, bytes.len()));
                    if !main.writers.contains(&from) {
                        main.writers.push(from);
                    }
                }
                self.pump_main_input();
            }
            _ => {}
        }
    }

    pub(crate) fn pump_main_input(&mut self) {
        let Some(main) = self.main.as_mut().filter(|main| main.exit.is_none()) else { return };
        if self.agent.backlog() > SLOW_AGENT {
            return;
        }
        let n = main.input.len().min(main.window as usize);
        for chunk in main.input[..n].chunks(MAX_PAYLOAD) {
            self.agent.data(FrameType::Stdin, main.stream, chunk);
        }
        main.input.drain(..n);
        main.window -= n as u64;
        let mut left = n;
        while left > 0
            && let Some((from, size)) = main.input_from.front_mut()
        {
            let part = left.min(*size);
            if let Some(client) = self.clients.get_mut(&from.0) {
                client.control(from.1, &Message::Credit { channel: Channel::Stdin, bytes: part as u64 });
            }
            *size -= part;
            left -= part;
            if *size == 0 {
                main.input_from.pop_front();
            }
        }
        if main.input.is_empty() && std::mem::take(&mut main.close) {
            self.agent.control(main.stream, &Message::CloseStdin);
        }
    }

    /// A client has no more input. The main session's input ends with its starter's, or with
    /// that of somebody who wrote to it: who only looks on ends nothing.
    pub(crate) fn client_closes(&mut self, from: ClientStream) {
        let Some(stream) = self.streams.get(&from).copied() else { return };
        match (self.routes.get(&stream), &mut self.main) {
            (Some(Route::Session(_)), _) => {
                self.agent.control(stream, &Message::CloseStdin);
            }
            (Some(Route::Main), Some(main)) if main.starter == from || main.writers.contains(&from) => {
                main.close = true;
                self.pump_main_input();
            }
            _ => {}
        }
    }

    /// Gives the credit for input that was held back while the agent was slow.
    pub(crate) fn release_input(&mut self) {
        if self.agent.backlog() > SLOW_AGENT {
            return;
        }
        for route in self.routes.values_mut() {
            if let Route::Session(session) = route
                && session.held > 0
                && let Some((id, stream)) = session.owner
                && let Some(client) = self.clients.get_mut(&id)
            {
                let bytes = std::mem::take(&mut session.held);
                client.control(stream, &Message::Credit { channel: Channel::Stdin, bytes });
            }
        }
        if self.main.as_ref().is_some_and(|main| main.close || !main.input.is_empty()) {
            self.pump_main_input();
        }
    }

    pub(crate) fn detach(&mut self, from: ClientStream) {
        if let Some(main) = &mut self.main {
            main.attached.retain(|client| *client != from);
            main.left_out.remove(&from);
        }
        self.streams.remove(&from);
        self.pay_main();
    }

    /// Gives the main session the credit that was held back, once no attached client is slow.
    pub(crate) fn pay_main(&mut self) {
        let Some(main) = &mut self.main else { return };
        let slow = main
            .attached
            .iter()
            .filter(|viewer| !main.left_out.contains_key(viewer))
            .any(|(id, _)| self.clients.get(id).is_some_and(|client| client.backlog() > SLOW_CLIENT));
        if slow || main.exit.is_some() {
            return;
        }
        for (owed, channel) in main.owed.iter_mut().zip([Channel::Stdout, Channel::Stderr]) {
            if *owed > 0 {
                self.agent.control(main.stream, &Message::Credit { channel, bytes: *owed });
                *owed = 0;
            }
        }
    }
}
