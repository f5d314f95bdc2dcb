//! What the agent says.

use crate::bring::Waiter;
use crate::supervise::{ClientStream, Route, SLOW_AGENT, Session, Supervisor, our_hello};
use sandbox_core::store::write_json;
use sandbox_protocol::event::Happened;
use sandbox_protocol::{Channel, ExitStatus, Failure, FailureKind, Frame, FrameType, Hello, Message, VERSIONS, WINDOW};
use sandbox_sys::clock::unix_seconds;
use std::time::Instant;

impl Supervisor {
    pub(crate) fn agent_readable(&mut self) {
        let mut frames = Vec::new();
        self.agent.read(&mut frames);
        self.heard = Instant::now();
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
            Some(Route::Session(Session { owner: Some((id, theirs)), .. })) => {
                if let Some(client) = self.clients.get_mut(id) {
                    client.data(kind, *theirs, bytes);
                }
            }
            Some(Route::Session(Session { owner: None, .. })) => {
                let channel = if kind == FrameType::Stdout { Channel::Stdout } else { Channel::Stderr };
                self.agent.control(stream, &Message::Credit { channel, bytes: bytes.len() as u64 });
            }
            Some(Route::Main) => {
                let Some(main) = &mut self.main else { return };
                main.last_output = Some(Instant::now());
                // A log that cannot be written (full disk) must not stop the work.
                let _ = self.log.append(bytes);
                main.watch(bytes);
                for (id, theirs) in &main.attached {
                    if let Some(missed) = main.left_out.get_mut(&(*id, *theirs)) {
                        *missed += bytes.len() as u64;
                    } else if let Some(client) = self.clients.get_mut(id) {
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
            // One with which we have no version in common is not ours to speak with.
            Message::Hello(hello) if hello.max < VERSIONS.0 || hello.min > VERSIONS.1 => self.agent.gone = true,
            Message::Hello(hello) if self.agent_hello.is_none() => {
                let hello = greeted(hello);
                for client in self.clients.values_mut() {
                    client.control(0, &Message::Hello(our_hello(hello.enforced.clone())));
                }
                self.status.enforced.clone_from(&hello.enforced);
                self.agent_hello = Some(hello);
            }
            Message::RefsMoved { .. } => {
                self.bring.moved = true;
                self.bring_soon();
            }
            // What the agent asks has odd numbers: ours are never mistaken for it.
            Message::CommitBack if stream % 2 == 1 => self.bring_wanted(Waiter::Inside(stream)),
            Message::ServeHost { repo, protocol } if stream % 2 == 1 => self.serve_start(stream, repo, protocol),
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
            Message::Exited(status) => self.end_stream(stream, &Message::Exited(possible(status))),
            Message::Error(failure) => self.end_stream(stream, &Message::Error(said(failure))),
            Message::Done | Message::RepoState(_) => self.end_stream(stream, &message),
            Message::Started { .. } => self.forward(stream, &message),
            _ => {}
        }
    }

    pub(crate) fn credit_for_client(&mut self, stream: u32, channel: Channel, bytes: u64) {
        match self.routes.get(&stream) {
            Some(Route::Main) => {
                if let Some(main) = &mut self.main {
                    main.window = main.window.saturating_add(bytes).min(WINDOW);
                }
                self.pump_main_input();
            }
            Some(Route::Session(_)) => {}
            _ => return,
        }
        let Some(Route::Session(session)) = self.routes.get_mut(&stream) else { return };
        // Never more than the window: what was not taken from us waits in our memory.
        let bytes = bytes.min(WINDOW.saturating_sub(session.room));
        session.room += bytes;
        if self.agent.backlog() > SLOW_AGENT {
            session.held += bytes;
        } else if bytes > 0 {
            self.forward(stream, &Message::Credit { channel, bytes });
        }
    }

    pub(crate) fn forward(&mut self, stream: u32, message: &Message) {
        let owners: Vec<ClientStream> = match self.routes.get(&stream) {
            Some(Route::Session(Session { owner, .. })) => owner.iter().copied().collect(),
            Some(Route::Question(owner)) => vec![*owner],
            Some(Route::Main) => self.main.as_ref().map(|main| main.attached.clone()).unwrap_or_default(),
            Some(Route::Hold) | None => Vec::new(),
        };
        for owner in owners {
            self.answer(owner, message);
        }
    }

    pub(crate) fn end_stream(&mut self, stream: u32, message: &Message) {
        if matches!(self.routes.get(&stream), Some(Route::Main)) {
            // Its last words are for everybody.
            let left_out: Vec<ClientStream> = self.main.iter().flat_map(|main| main.left_out.keys().copied()).collect();
            left_out.into_iter().for_each(|viewer| self.catch_up(viewer));
        }
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
                    main.limit = None;
                    for client in std::mem::take(&mut main.attached) {
                        self.streams.remove(&client);
                    }
                    self.status.exited = Some((exit, unix_seconds()));
                    let _ = write_json(&self.dir.status(), &self.status, false);
                    self.happened(Happened::Exited { status: exit.shell() });
                    self.rescue_soon();
                    if self.auto_commit {
                        // What it left may become a commit: nobody has seen a ref move for it yet.
                        self.bring.moved = true;
                        self.bring_soon();
                    }
                }
            }
            Route::Session(Session { owner: Some(owner), .. }) | Route::Question(owner) => {
                self.streams.remove(&owner);
            }
            Route::Session(Session { owner: None, .. }) => {}
            Route::Hold => self.disk_held(stream),
        }
    }
}

/// Characters of one line that the agent says at most.
const MAX_SAID: usize = 1000;

/// A hello with a bounded number of plain words.
fn greeted(mut hello: Hello) -> Hello {
    hello.enforced.truncate(64);
    for word in &mut hello.enforced {
        *word = word.chars().filter(|c| !c.is_control()).take(64).collect();
    }
    hello
}

/// A status that a process can really end with.
fn possible(status: ExitStatus) -> ExitStatus {
    match status {
        ExitStatus::Code(code) => ExitStatus::Code(code & 0xff),
        ExitStatus::Signal(signal) => ExitStatus::Signal(signal.clamp(1, 64)),
    }
}

/// What the agent says about a failure: one line of text, and never a document. Clients read
/// only our own failures as one.
fn said(failure: Failure) -> Failure {
    let plain = |c: char| if c.is_control() { '?' } else { c };
    let text: String = failure.message.chars().map(plain).take(MAX_SAID).collect();
    let message = if text.trim_start().starts_with('{') { format!("the sandbox said: {text}") } else { text };
    Failure { kind: failure.kind, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_agent_says_is_one_short_line_of_text() {
        let hostile = |message: String| said(Failure { kind: FailureKind::Other, message }).message;
        assert_eq!(hostile("\u{1b}]0;x\u{7}\nline".into()), "?]0;x??line");
        assert_eq!(hostile(" {\"message\":\"x\"}".into()), "the sandbox said:  {\"message\":\"x\"}");
        assert_eq!(hostile("x".repeat(100_000)).len(), MAX_SAID);
        assert_eq!(possible(ExitStatus::Signal(i32::MAX)).shell(), 192);
        assert_eq!(possible(ExitStatus::Code(-1)).shell(), 255);
        let hello = greeted(Hello { min: 1, max: 1, features: vec![], enforced: vec!["\u{1b}".repeat(9999); 9999] });
        assert_eq!(hello.enforced, vec![String::new(); 64]);
    }
}
