//! What clients ask for.

use crate::attached::TimeLimit;
use crate::bring::Waiter;
use crate::disk::words;
use crate::main_session::Main;
use crate::peer::Peer;
use crate::screen::Screen;
use crate::supervise::{
    ClientId, ClientStream, MAX_CLIENTS, MOST_FOR_CLIENT, Phase, Route, Session, Supervisor, failure, our_hello,
};
use sandbox_core::auto_commit;
use sandbox_protocol::event::{FrozenBy, Happened};
use sandbox_protocol::{Channel, Exec, FailureKind, FrameType, MAX_PAYLOAD, Message, SessionStatus, Status, WINDOW};
use std::collections::{HashMap, VecDeque};
use std::os::unix::net::UnixStream;

/// Sessions in one status.
const MAX_SHOWN: usize = 64;
/// Bytes of a command line in a status.
const SHOWN_ARGV: usize = 512;

/// What of a command line is remembered for `list`.
fn shown(argv: &[String]) -> Vec<String> {
    let mut left = SHOWN_ARGV;
    let mut out = Vec::new();
    for arg in argv {
        if arg.len() <= left {
            left -= arg.len() + 1.min(left - arg.len());
            out.push(arg.clone());
        } else {
            out.push("…".to_owned());
            break;
        }
    }
    out
}

fn too_large() -> Message {
    failure(FailureKind::Limit, format!("a request of more than {} KiB is not possible", MAX_PAYLOAD / 1024))
}

impl Supervisor {
    pub(crate) fn accept(&mut self, stream: UnixStream) {
        if self.clients.len() >= MAX_CLIENTS {
            return;
        }
        let Ok(mut peer) = Peer::new(stream, MOST_FOR_CLIENT) else { return };
        let enforced = self.agent_hello.as_ref().map(|hello| hello.enforced.clone()).unwrap_or_default();
        peer.control(0, &Message::Hello(our_hello(enforced)));
        self.clients.insert(self.next_client, peer);
        self.fresh.insert(self.next_client);
        self.next_client += 1;
    }

    /// Takes everyone who waits at the socket.
    pub(crate) fn accept_all(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            self.accept(stream);
        }
    }

    pub(crate) fn client_readable(&mut self, id: ClientId) {
        let mut frames = Vec::new();
        if let Some(client) = self.clients.get_mut(&id) {
            client.read(&mut frames);
        }
        for frame in frames {
            // One that broke a rule is not heard any more.
            if self.clients.get(&id).is_none_or(|client| client.gone) {
                return;
            }
            let stream = (id, frame.stream);
            match frame.kind {
                FrameType::Control => match frame.message() {
                    Ok(message) => self.client_message(stream, message),
                    Err(_) => {
                        if let Some(client) = self.clients.get_mut(&id) {
                            client.gone = true;
                        }
                    }
                },
                FrameType::Stdin => self.client_input(stream, &frame.payload),
                FrameType::Stdout | FrameType::Stderr => {}
            }
        }
    }

    pub(crate) fn answer(&mut self, (id, stream): ClientStream, message: &Message) {
        if let Some(client) = self.clients.get_mut(&id)
            && !client.control(stream, message)
        {
            client.control(stream, &failure(FailureKind::Limit, "the answer is larger than a message may be"));
        }
    }

    pub(crate) fn new_stream(&mut self) -> u32 {
        let stream = self.next_stream;
        self.next_stream += 2;
        stream
    }

    pub(crate) fn client_message(&mut self, from: ClientStream, message: Message) {
        if !matches!(message, Message::Hello(_)) {
            self.fresh.remove(&from.0);
        }
        // Its main command may be what comes first; plumbing of ours says nothing about that.
        let first = match &message {
            Message::Hello(_) => false,
            Message::Exec(exec) => !exec.main && !exec.internal,
            _ => true,
        };
        if first && !self.started_said {
            self.say_started(Vec::new());
        }
        match message {
            Message::Hello(hello) => self.greet(from.0, &hello),
            Message::Exec(exec) => self.client_exec(from, exec),
            Message::AskRepoState { .. } => {
                let stream = self.new_stream();
                if self.agent.control(stream, &message) {
                    self.routes.insert(stream, Route::Question(from));
                } else {
                    self.answer(from, &too_large());
                }
            }
            Message::CloseStdin => self.client_closes(from),
            Message::Signal { .. } | Message::Resize(_) => {
                if let Some(stream) = self.streams.get(&from) {
                    self.agent.control(*stream, &message);
                }
            }
            Message::Credit { .. } => {
                if let Some(stream) = self.streams.get(&from)
                    && matches!(self.routes.get(stream), Some(Route::Session(_)))
                {
                    self.agent.control(*stream, &message);
                }
            }
            Message::Attach { session, replay } => self.client_attach(from, session, replay),
            Message::Detach => {
                self.detach(from);
                self.orphan(|owner| owner == from, false);
                self.answer(from, &Message::Done);
            }
            Message::Stop { grace_ms } => {
                self.stop_waiters.push(from);
                self.stop(grace_ms, true);
            }
            Message::GoOn { disk } => self.disk_go_on(from, disk),
            Message::Freeze => self.freeze(from),
            Message::Thaw => self.thaw(from),
            Message::CommitBack => self.bring_wanted(Waiter::Client(from)),
            Message::Policy { verb, rules } => {
                self.happened(Happened::Policy { verb, rules });
                self.answer(from, &Message::Done);
            }
            Message::AskStatus => {
                let status = self.report();
                self.answer(from, &Message::Status(status));
            }
            _ => self.answer(from, &failure(FailureKind::Unsupported, "the supervisor does not know this request")),
        }
    }

    pub(crate) fn client_exec(&mut self, from: ClientStream, exec: Exec) {
        if self.phase != Phase::Running && !exec.internal {
            return self.answer(from, &failure(FailureKind::Stopping, "the sandbox is being stopped"));
        }
        // Who comes to make room is let in where only this sandbox has too much.
        if let Some(frozen) = self.disk.frozen.filter(|frozen| frozen.why != FrozenBy::Limit && !exec.internal) {
            return self.answer(from, &failure(FailureKind::Frozen, words(&frozen)));
        }
        if exec.main && self.main.as_ref().is_some_and(|main| main.exit.is_none()) {
            return self.answer(from, &failure(FailureKind::Other, "the sandbox already runs a command"));
        }
        if self.streams.contains_key(&from) {
            return self.answer(from, &failure(FailureKind::Other, "a session is on this stream already"));
        }
        let stream = self.new_stream();
        if !self.agent.control(stream, &Message::Exec(exec.clone())) {
            return self.answer(from, &too_large());
        }
        self.rescue_began(from.0);
        let argv = shown(&exec.argv);
        self.streams.insert(from, stream);
        self.had_session |= !exec.internal;
        if !exec.internal {
            self.rescue_touched();
        }
        if exec.main {
            // What the one before left is no business of this one.
            let _ = std::fs::remove_file(auto_commit::file(&self.dir));
            self.say_started(argv.clone());
            self.main = Some(Main {
                stream,
                argv,
                starter: from,
                attached: vec![from],
                writers: Vec::new(),
                close: false,
                exit: None,
                last_output: None,
                tty: exec.tty.is_some(),
                screen: Screen::default(),
                logged: 0,
                left_out: HashMap::new(),
                input: Vec::new(),
                input_from: VecDeque::new(),
                window: WINDOW,
                owed: [0, 0],
                limit: self.timeout.and_then(|limit| TimeLimit::new(limit).ok()),
            });
            self.status.exited = None;
            self.status.timed_out = false;
            self.routes.insert(stream, Route::Main);
        } else {
            let session = Session {
                owner: Some(from),
                argv,
                internal: exec.internal,
                tty: exec.tty.is_some(),
                room: WINDOW,
                held: 0,
            };
            self.routes.insert(stream, Route::Session(session));
        }
    }

    /// Forgets clients that went away: the main session goes on without them, another
    /// terminal's session is hung up, plumbing is ended.
    pub(crate) fn sweep_clients(&mut self) {
        let gone: Vec<ClientId> = self.clients.iter().filter(|(_, c)| c.gone).map(|(id, _)| *id).collect();
        for id in gone {
            self.clients.remove(&id);
            if let Some(main) = &mut self.main {
                main.attached.retain(|client| client.0 != id);
                main.left_out.retain(|client, _| client.0 != id);
            }
            self.stop_waiters.retain(|waiter| waiter.0 != id);
            self.orphan(|owner| owner.0 == id, true);
            self.streams.retain(|client, _| client.0 != id);
            self.fresh.remove(&id);
            self.told.remove(&id);
            self.screens.remove(&id);
            self.thaw_for(id);
        }
        self.pay_main();
    }

    /// Lets sessions go on without their client.
    fn orphan(&mut self, whose: impl Fn(ClientStream) -> bool, hang_up: bool) {
        for (stream, route) in &mut self.routes {
            let Route::Session(session) = route else { continue };
            if !session.owner.is_some_and(&whose) {
                continue;
            }
            session.owner = None;
            // What was under way has no reader now: let it flow.
            for channel in [Channel::Stdout, Channel::Stderr] {
                self.agent.control(*stream, &Message::Credit { channel, bytes: WINDOW });
            }
            self.agent.control(*stream, &Message::CloseStdin);
            if hang_up && session.internal {
                self.agent.control(*stream, &Message::Signal { signal: 9 });
            } else if hang_up && session.tty {
                self.agent.control(*stream, &Message::Signal { signal: 1 });
            }
        }
    }

    pub(crate) fn report(&self) -> Status {
        let mut sessions: Vec<SessionStatus> = Vec::new();
        if let Some(main) = self.main.as_ref().filter(|main| main.exit.is_none()) {
            sessions.push(SessionStatus { session: 0, argv: main.argv.clone(), clients: main.attached.len() as u32 });
        }
        for (stream, route) in &self.routes {
            if let Route::Session(Session { owner, argv, internal: false, .. }) = route
                && sessions.len() < MAX_SHOWN
            {
                let clients = u32::from(owner.is_some());
                sessions.push(SessionStatus { session: *stream, argv: argv.clone(), clients });
            }
        }
        Status {
            sessions,
            silent_secs: self.main.as_ref().and_then(|main| main.last_output).map(|at| at.elapsed().as_secs()),
            enforced: self.agent_hello.as_ref().map(|hello| hello.enforced.clone()).unwrap_or_default(),
        }
    }
}
