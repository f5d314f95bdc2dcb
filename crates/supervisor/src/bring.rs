//! Commit-back: when it runs, and who is answered.

use crate::children::{Helper, pair};
use crate::supervise::{ClientStream, Phase, Supervisor, failure};
use sandbox_protocol::{FailureKind, FrameType, MAX_PAYLOAD, Message};
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::Instant;

/// A commit-back that runs, and who waits for one.
#[derive(Debug, Default)]
pub(crate) struct Bring {
    pub(crate) running: Option<(Helper, UnixStream, Vec<u8>)>,
    /// A ref moved since the last one was started; run again not before this instant.
    pub(crate) due: Option<Instant>,
    /// A ref moved that is not known to be home.
    pub(crate) moved: bool,
    /// They asked before the running one started: it answers them.
    pub(crate) waiting: Vec<Waiter>,
    /// They asked while one ran: the next one answers them.
    pub(crate) next: Vec<Waiter>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Waiter {
    Client(ClientStream),
    Inside(u32),
}

impl Supervisor {
    pub(crate) fn bring_wanted(&mut self, waiter: Waiter) {
        if self.bring.running.is_some() {
            self.bring.next.push(waiter);
            self.bring.due.get_or_insert_with(Instant::now);
        } else {
            self.bring.waiting.push(waiter);
            self.bring_start();
        }
    }

    pub(crate) fn bring_start(&mut self) {
        self.bring.due = None;
        self.bring.moved = false;
        let started = (|| -> io::Result<_> {
            let (client, client_fd) = pair()?;
            let (output, output_fd) = pair()?;
            output.set_nonblocking(true)?;
            let errors = output_fd.try_clone()?;
            let helper = Helper::start(&self.commit_back, client_fd, output_fd, Some(errors))?;
            Ok((helper, output, client))
        })();
        match started {
            Ok((helper, output, client)) => {
                self.bring_client = Some(self.next_client);
                self.accept(client);
                self.bring.running = Some((helper, output, Vec::new()));
            }
            Err(error) => self.bring_done(false, format!("cannot start commit-back: {error}").into_bytes()),
        }
    }

    pub(crate) fn bring_output(&mut self) {
        let Some((_, socket, output)) = &mut self.bring.running else { return };
        let mut bytes = [0u8; 4096];
        while let Ok(n) = socket.read(&mut bytes) {
            if n == 0 {
                break;
            }
            let room = MAX_PAYLOAD.saturating_sub(output.len());
            output.extend_from_slice(&bytes[..n.min(room)]);
        }
    }

    pub(crate) fn bring_ended(&mut self) {
        self.bring_output();
        let Some((mut helper, _, output)) = self.bring.running.take() else { return };
        let ok = helper.finish().unwrap_or(false);
        self.bring_done(ok, output);
    }

    pub(crate) fn bring_done(&mut self, ok: bool, output: Vec<u8>) {
        self.bring.moved |= !ok;
        let answer = if ok {
            Message::Done
        } else {
            let text = String::from_utf8_lossy(&output);
            let line = text.lines().find_map(|line| line.strip_prefix("error: ")).unwrap_or("commit-back failed");
            failure(FailureKind::Other, line)
        };
        for waiter in std::mem::take(&mut self.bring.waiting) {
            match waiter {
                Waiter::Client((id, stream)) => {
                    if let Some(client) = self.clients.get_mut(&id) {
                        client.data(FrameType::Stdout, stream, &output);
                        client.control(stream, &answer);
                    }
                }
                Waiter::Inside(stream) => {
                    self.agent.data(FrameType::Stdout, stream, &output);
                    self.agent.control(stream, &answer);
                }
            }
        }
        self.bring.waiting = std::mem::take(&mut self.bring.next);
        if let Phase::BringingHome { grace_ms, .. } = self.phase {
            if self.bring.due.is_some() {
                self.bring_start();
            } else {
                self.shut_down(grace_ms);
            }
        }
    }
}
