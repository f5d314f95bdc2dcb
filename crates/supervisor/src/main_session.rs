//! The main session: several clients may be attached, its output is logged, its input counted.

use crate::log::RingLog;
use crate::supervise::{ClientStream, Route, SLOW_CLIENT, Supervisor, failure};
use sandbox_protocol::{Channel, ExitStatus, FailureKind, FrameType, MAX_PAYLOAD, Message, WINDOW};
use std::time::Instant;

/// The main session.
#[derive(Debug)]
pub(crate) struct Main {
    pub(crate) stream: u32,
    pub(crate) argv: Vec<String>,
    pub(crate) attached: Vec<ClientStream>,
    pub(crate) exit: Option<ExitStatus>,
    pub(crate) last_output: Option<Instant>,
    /// Input of all attached clients that waits for the agent's window.
    pub(crate) input: Vec<u8>,
    pub(crate) input_from: Vec<(ClientStream, usize)>,
    pub(crate) window: u64,
    /// Credit that is held back while an attached client is slow.
    pub(crate) owed: [u64; 2],
    pub(crate) deadline: Option<(Instant, bool)>,
}

impl Supervisor {
    pub(crate) fn client_attach(&mut self, from: ClientStream, session: u32, replay: u64) {
        let Some(main) = self.main.as_mut().filter(|_| session == 0) else {
            return self.answer(from, &failure(FailureKind::NotFound, "no command was started in it"));
        };
        let Some(client) = self.clients.get_mut(&from.0) else { return };
        if replay > 0 {
            let past = RingLog::tail(&self.dir.log(), replay.min(1024 * 1024)).unwrap_or_default();
            for chunk in past.chunks(MAX_PAYLOAD) {
                client.data(FrameType::Stdout, from.1, chunk);
            }
        }
        match main.exit {
            Some(status) => client.control(from.1, &Message::Exited(status)),
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
            Some(Route::Session { .. }) => self.agent.data(FrameType::Stdin, stream, bytes),
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
                    main.input_from.push((from, bytes.len()));
                }
                self.pump_main_input();
            }
            _ => {}
        }
    }

    pub(crate) fn pump_main_input(&mut self) {
        let Some(main) = &mut self.main else { return };
        let n = main.input.len().min(main.window as usize);
        if n == 0 {
            return;
        }
        for chunk in main.input[..n].chunks(MAX_PAYLOAD) {
            self.agent.data(FrameType::Stdin, main.stream, chunk);
        }
        main.input.drain(..n);
        main.window -= n as u64;
        let mut left = n;
        while left > 0 {
            let (from, size) = &mut main.input_from[0];
            let part = left.min(*size);
            if let Some(client) = self.clients.get_mut(&from.0) {
                client.control(from.1, &Message::Credit { channel: Channel::Stdin, bytes: part as u64 });
            }
            *size -= part;
            left -= part;
            if *size == 0 {
                main.input_from.remove(0);
            }
        }
    }

    pub(crate) fn detach(&mut self, from: ClientStream) {
        if let Some(main) = &mut self.main {
            main.attached.retain(|client| *client != from);
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
