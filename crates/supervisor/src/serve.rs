//! The remote `host`: a child process that serves granted refs to git inside.

use crate::children::{Helper, pair};
use crate::supervise::{Supervisor, failure};
use sandbox_protocol::{Channel, ExitStatus, FailureKind, FrameType, Message, WINDOW};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

/// Someone inside who asked the supervisor for something.
#[derive(Debug)]
pub(crate) struct Serve {
    pub(crate) helper: Helper,
    pub(crate) socket: UnixStream,
    pub(crate) window: u64,
    pub(crate) input: Vec<u8>,
    pub(crate) input_closed: bool,
    pub(crate) output_closed: bool,
}

/// Fetches of the host at once: each is a git process of the host.
const MAX_SERVES: usize = 16;

impl Supervisor {
    pub(crate) fn serve_start(&mut self, stream: u32, repo: u32, protocol: Option<String>) {
        if self.serves.contains_key(&stream) {
            return;
        }
        if self.serves.len() >= MAX_SERVES {
            self.agent.control(stream, &failure(FailureKind::Limit, "too many fetches at once"));
            return;
        }
        let mut argv = self.serve_host.clone();
        argv.push(repo.to_string());
        // Only what git itself would send: the value comes from inside.
        argv.extend(protocol.filter(|p| matches!(p.as_str(), "version=0" | "version=1" | "version=2")));
        let started = (|| -> io::Result<_> {
            let (socket, fd) = pair()?;
            socket.set_nonblocking(true)?;
            let out = fd.try_clone()?;
            Ok((Helper::start(&argv, fd, out, None)?, socket))
        })();
        match started {
            Ok((helper, socket)) => {
                self.agent.control(stream, &Message::Started { pid: 0 });
                let serve = Serve {
                    helper,
                    socket,
                    window: WINDOW,
                    input: Vec::new(),
                    input_closed: false,
                    output_closed: false,
                };
                self.serves.insert(stream, serve);
            }
            Err(error) => {
                let message = format!("cannot serve the host's refs: {error}");
                self.agent.control(stream, &failure(FailureKind::Other, message));
            }
        }
    }

    pub(crate) fn serve_input(&mut self, stream: u32, bytes: &[u8]) {
        let Some(serve) = self.serves.get_mut(&stream) else { return };
        if serve.input.len() + bytes.len() > 2 * WINDOW as usize {
            // It sent more than the window: end it.
            return self.serve_cut(stream);
        }
        serve.input.extend_from_slice(bytes);
        self.serve_flush(stream);
    }

    pub(crate) fn serve_flush(&mut self, stream: u32) {
        let Some(serve) = self.serves.get_mut(&stream) else { return };
        let mut written = 0;
        while written < serve.input.len() {
            match serve.socket.write(&serve.input[written..]) {
                Ok(n) if n > 0 => written += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                _ => {
                    written = serve.input.len();
                    break;
                }
            }
        }
        serve.input.drain(..written);
        if written > 0 {
            let credit = Message::Credit { channel: Channel::Stdin, bytes: written as u64 };
            self.agent.control(stream, &credit);
        }
        if serve.input.is_empty() && serve.input_closed {
            let _ = serve.socket.shutdown(std::net::Shutdown::Write);
        }
    }

    pub(crate) fn serve_readable(&mut self, stream: u32) {
        self.serve_flush(stream);
        let Some(serve) = self.serves.get_mut(&stream) else { return };
        let mut bytes = [0u8; 32 * 1024];
        let room = (serve.window as usize).min(bytes.len());
        if room == 0 {
            return;
        }
        match serve.socket.read(&mut bytes[..room]) {
            Ok(0) => serve.output_closed = true,
            Ok(n) => {
                serve.window -= n as u64;
                self.agent.data(FrameType::Stdout, stream, &bytes[..n]);
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(_) => serve.output_closed = true,
        }
    }

    pub(crate) fn serve_ended(&mut self, stream: u32) {
        let Some(mut serve) = self.serves.remove(&stream) else { return };
        let status = if serve.helper.finish().unwrap_or(false) { 0 } else { 128 };
        self.agent.control(stream, &Message::Exited(ExitStatus::Code(status)));
    }

    pub(crate) fn serve_cut(&mut self, stream: u32) {
        if let Some(mut serve) = self.serves.remove(&stream) {
            serve.helper.kill();
            self.agent.control(stream, &failure(FailureKind::Limit, "more input than the window allows"));
        }
    }
}
