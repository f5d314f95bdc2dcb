//! What the peer says: frames of sessions, requests, questions.

use super::{Server, other};
use crate::nursery::{Spawn, environment};
use crate::session::Sink;
use crate::wire::WireError;
use sandbox_protocol::{
    Exec, ExitStatus, Failure, FailureKind, Frame, FrameType, MAX_PAYLOAD, Message, PROGRAM, REPO_STATE_VERB,
    RepoQuestion, RepoState, VERSIONS, unescape_bytes,
};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

/// The most that the state of a repository may be, in bytes of JSON.
const MAX_STATE: usize = 16 * 1024 * 1024;

impl Server {
    pub(super) fn frame(&mut self, frame: Frame) -> Result<(), WireError> {
        let stream = frame.stream;
        if stream % 2 == 1 {
            if let Some(relay) = &mut self.relay {
                relay.take_from_host(frame, &mut self.control)?;
            }
            return Ok(());
        }
        if frame.kind == FrameType::Control {
            let message = frame.message()?;
            return self.message(stream, message);
        }
        if frame.kind == FrameType::Stdin
            && let Some(session) = self.sessions.get_mut(&stream)
        {
            self.poller.activity(Instant::now());
            if let Err(failure) = session.take_input(&frame.payload, stream, &mut self.control) {
                session.kill();
                self.fail(stream, failure);
            }
        }
        Ok(())
    }

    fn message(&mut self, stream: u32, message: Message) -> Result<(), WireError> {
        match message {
            Message::Hello(hello) => {
                if hello.max < VERSIONS.0 || hello.min > VERSIONS.1 {
                    let message = format!("this agent speaks protocol {} to {}", VERSIONS.0, VERSIONS.1);
                    self.control.control(0, &Message::Error(Failure { kind: FailureKind::Unsupported, message }));
                    self.last_words();
                    return Err(WireError::Closed);
                }
                self.greeted = true;
            }
            Message::Shutdown { grace_ms } => self.shut_down(Duration::from_millis(grace_ms), Instant::now()),
            Message::Exec(exec) => self.exec(stream, exec),
            Message::Hold { on } => {
                self.hold(on);
                self.control.control(stream, &Message::Done);
            }
            Message::AskRepoState { path, granted } => self.ask_repo_state(stream, RepoQuestion { path, granted }),
            message => {
                let Some(session) = self.sessions.get_mut(&stream) else { return Ok(()) };
                match message {
                    Message::Signal { signal } => session.signal(signal),
                    Message::Resize(size) => session.resize(size.rows, size.cols),
                    Message::CloseStdin => session.close_input(),
                    Message::Credit { channel, bytes } => session.credit(channel, bytes),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn exec(&mut self, stream: u32, exec: Exec) {
        let argv: Vec<Vec<u8>> = exec.argv.iter().map(|text| unescape_bytes(text)).collect();
        let cwd = match exec.cwd.as_str() {
            "" => self.config.cwd.as_os_str().as_bytes().to_vec(),
            cwd => unescape_bytes(cwd),
        };
        let spawn = Spawn {
            id: stream,
            tty: exec.tty.is_some(),
            env: environment(&self.config.env, &exec.env, &cwd),
            cwd,
            argv,
        };
        let size = exec.tty.map(|size| (size.rows, size.cols));
        match self.begin(spawn, size, Sink::Peer, None) {
            Ok(()) if exec.internal => {
                self.internal.insert(stream);
            }
            Ok(()) => {}
            Err(failure) => self.control.control(stream, &Message::Error(failure)),
        }
    }

    fn ask_repo_state(&mut self, stream: u32, question: RepoQuestion) {
        let spawn = Spawn {
            id: stream,
            tty: false,
            cwd: b"/".to_vec(),
            argv: vec![PROGRAM.into(), REPO_STATE_VERB.into()],
            env: environment(&self.config.env, &[], b"/"),
        };
        let question = serde_json::to_vec(&question).expect("strings are JSON");
        let sink = Sink::Collect { out: Vec::new(), err: Vec::new(), limit: MAX_STATE };
        match self.begin(spawn, None, sink, Some(question)) {
            Ok(()) => {
                self.internal.insert(stream);
            }
            Err(failure) => self.control.control(stream, &Message::Error(failure)),
        }
    }
}

/// Returns the answer to [`Message::AskRepoState`] from what its process said.
pub(super) fn repo_state_answer(status: ExitStatus, bytes: &[u8], errors: &[u8], limit: usize) -> Message {
    let failed = |message: String| Message::Error(other(&message));
    if status != ExitStatus::Code(0) {
        let said = String::from_utf8_lossy(errors);
        let said = said.lines().next().unwrap_or_default();
        return failed(match said.strip_prefix("error: ").unwrap_or(said) {
            "" => format!("reading the repository failed with status {}", status.shell()),
            said => said.chars().take(500).collect(),
        });
    }
    if bytes.len() > limit {
        return failed("the state of the repository is too large".into());
    }
    match serde_json::from_slice::<RepoState>(bytes) {
        Ok(state) => {
            let message = Message::RepoState(state);
            match serde_json::to_vec(&message) {
                Ok(json) if json.len() <= MAX_PAYLOAD => message,
                _ => Message::Error(Failure {
                    kind: FailureKind::Limit,
                    message: format!(
                        "the state of the repository does not fit a message: run `{REPO_STATE_VERB}` as a session"
                    ),
                }),
            }
        }
        Err(error) => failed(format!("the state of the repository is not readable: {error}")),
    }
}
