//! What the agent says.

use crate::bring::Waiter;
use crate::supervise::{ClientStream, DEBOUNCE, Route, Supervisor, now, our_hello};
use sandbox_core::store::write_json;
use sandbox_protocol::{Channel, ExitStatus, Failure, FailureKind, Frame, FrameType, Message};
use std::time::Instant;

impl Supervisor {
    pub(crate) fn agent_readable(&mut self) {
        let mut frames = Vec::new();
        self.agent.read(&mut frames);
        for frame in frames {
            self.agent_frame(frame);
        }
    }

    pub(crate) fn agent_frame(&mut self, frame: Frame) {
        let stream = frame.stream;
        match frame.kind {
            FrameType::Control => match frame.message() {
                Ok(message) => self.agent_message(stream, message),
                // An agent that does not speak the protocol is not ours any more.
                Err(_) => self.agent.gone = true,
            },
            FrameType::Stdin => self.serve_input(stream, &frame.payload),
            kind => self.agent_output(kind, stream, &frame.payload),
        }
    }

    pub(crate) fn agent_output(&mut self, kind: FrameType, stream: u32, bytes: &[u8]) {
        match self.routes.get(&stream) {
            Some(Route::Session { owner: Some((id, theirs)), .. }) => {
                if let Some(client) = self.clients.get_mut(id) {
                    client.data(kind, *theirs, bytes);
                }
            }
            Some(Route::Session { owner: None, .. }) => {
                let channel = if kind == FrameType::Stdout { Channel::Stdout } else { Channel::Stderr };
                self.agent.control(stream, &Message::Credit { channel, bytes: bytes.len() as u64 });
            }
            Some(Route::Main) => {
                let Some(main) = &mut self.main else { return };
                main.last_output = Some(Instant::now());
                // A log that cannot be written (full disk) must not stop the work.
                let _ = self.log.append(bytes);
                for (id, theirs) in &main.attached {
                    if let Some(client) = self.clients.get_mut(id) {
                        client.data(kind, *theirs, bytes);
                    }
                }
                main.owed[usize::from(kind == FrameType::Stderr)] += bytes.len() as u64;
                self.pay_main();
            }
            _ => {}
        }
    }

    pub(crate) fn agent_message(&mut self, stream: u32, message: Message) {
        match message {
            Message::Hello(hello) => {
                for client in self.clients.values_mut() {
                    client.control(0, &Message::Hello(our_hello(hello.enforced.clone())));
                }
                self.agent_hello = Some(hello);
            }
            Message::RefsMoved { .. } => {
                self.bring.moved = true;
                self.bring.due.get_or_insert_with(|| Instant::now() + DEBOUNCE);
            }
            Message::CommitBack => self.bring_wanted(Waiter::Inside(stream)),
            Message::ServeHost { repo, protocol } => self.serve_start(stream, repo, protocol),
            Message::CloseStdin => {
                if let Some(serve) = self.serves.get_mut(&stream) {
                    serve.input_closed = true;
                }
                self.serve_flush(stream);
            }
            Message::Credit { channel, bytes } => {
                if let Some(serve) = self.serves.get_mut(&stream) {
                    serve.window = serve.window.saturating_add(bytes);
                } else {
                    self.credit_for_client(stream, channel, bytes);
                }
            }
            Message::Exited(_) | Message::Error(_) | Message::Done | Message::RepoState(_) => {
                self.end_stream(stream, &message);
            }
            Message::Started { .. } => self.forward(stream, &message),
            _ => {}
        }
    }

    pub(crate) fn credit_for_client(&mut self, stream: u32, channel: Channel, bytes: u64) {
        match self.routes.get(&stream) {
            Some(Route::Main) => {
                if let Some(main) = &mut self.main {
                    main.window = main.window.saturating_add(bytes);
                }
                self.pump_main_input();
            }
            Some(Route::Session { .. }) => self.forward(stream, &Message::Credit { channel, bytes }),
            _ => {}
        }
    }

    pub(crate) fn forward(&mut self, stream: u32, message: &Message) {
        let owners: Vec<ClientStream> = match self.routes.get(&stream) {
            Some(Route::Session { owner, .. }) => owner.iter().copied().collect(),
            Some(Route::Question(owner)) => vec![*owner],
            Some(Route::Main) => self.main.as_ref().map(|main| main.attached.clone()).unwrap_or_default(),
            None => Vec::new(),
        };
        for owner in owners {
            self.answer(owner, message);
        }
    }

    pub(crate) fn end_stream(&mut self, stream: u32, message: &Message) {
        self.forward(stream, message);
        let Some(route) = self.routes.remove(&stream) else { return };
        match route {
            Route::Main => {
                if let Some(main) = &mut self.main {
                    let exit = match message {
                        Message::Exited(status) => *status,
                        Message::Error(Failure { kind: FailureKind::NotFound, .. }) => ExitStatus::Code(127),
                        Message::Error(Failure { kind: FailureKind::CannotExecute, .. }) => ExitStatus::Code(126),
                        _ => ExitStatus::Code(125),
                    };
                    main.exit = Some(exit);
                    main.deadline = None;
                    for client in std::mem::take(&mut main.attached) {
                        self.streams.remove(&client);
                    }
                    self.status.exited = Some((exit, now()));
                    let _ = write_json(&self.dir.status(), &self.status, false);
                }
            }
            Route::Session { owner: Some(owner), .. } | Route::Question(owner) => {
                self.streams.remove(&owner);
            }
            Route::Session { owner: None, .. } => {}
        }
        self.end_if_idle();
    }
}
