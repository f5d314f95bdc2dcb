//! `git://`: one line says what is wanted (gitprotocol-pack(5), "Git Transport"), then git speaks.
//!
//! ```text
//! 003egit-upload-pack /github.com/o/r.git\0host=127.0.0.1\0\0version=2\0
//! ```

use super::Asked;
use super::ask::Protocol;
use super::listen::Stream;
use super::process::CHUNK;
use super::queue::Busy;
use super::relay::{Output, Source};
use super::smart::{Ask, Refusal, Smart};
use crate::catalog::Found;
use crate::event::{GitService, Transport};
use crate::identity::Gate;
use crate::name::RepoName;
use crate::pktline::{self, Packet};
use bytes::Bytes;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Bytes of the first line.
const FIRST: usize = 4096;

/// How long a refused client may take to read why.
const LINGER: Duration = Duration::from_secs(2);

/// Serves connections of `git://`.
pub struct Daemon {
    /// Git's services.
    pub smart: Arc<Smart>,
}

/// What the first line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Which service.
    pub service: GitService,
    /// The repository, decoded.
    pub name: RepoName,
    /// The version.
    pub protocol: Protocol,
}

impl Opening {
    /// Reads the first packet. The error is for the client.
    pub fn parse(line: &[u8]) -> Result<Self, &'static str> {
        let mut parts = line.split(|byte| *byte == 0);
        let first = parts.next().unwrap_or_default();
        let first = first.strip_suffix(b"\n").unwrap_or(first);
        let (command, path) = first
            .iter()
            .position(|byte| *byte == b' ')
            .map(|at| (&first[..at], &first[at + 1..]))
            .ok_or("this is not git's protocol")?;
        let service = match command {
            b"git-upload-pack" => GitService::UploadPack,
            b"git-receive-pack" => GitService::ReceivePack,
            _ => return Err("only git-upload-pack and git-receive-pack are served"),
        };
        // Unlike in HTTP, nothing is percent-encoded here; the rules for a name are the same.
        let text = std::str::from_utf8(path).map_err(|_| "no such repository")?;
        let name = RepoName::parse(text.strip_prefix('/').unwrap_or(text)).map_err(|_| "no such repository")?;
        // `host=…` and an empty part, then what the client says beside it.
        let said = parts.skip_while(|part| !part.is_empty()).find(|part| part.starts_with(b"version="));
        Ok(Self { service, name, protocol: said.map(Protocol::parse).unwrap_or_default() })
    }
}

impl Daemon {
    /// Serves a connection to its end.
    pub async fn connection(&self, stream: Stream, gate: Gate, peer: Option<SocketAddr>) {
        let since = Instant::now();
        let idle = self.smart.settings.idle_timeout;
        let (reader, writer) = tokio::io::split(stream);
        let mut source = Source::stream(reader, u64::MAX, idle);
        let mut output = Output::Stream(writer);
        if let Err(error) = self.speak(&mut source, &mut output, gate, peer, since).await {
            let mut line = Vec::new();
            pktline::write(&mut line, format!("ERR {error}\n").as_bytes());
            output.send(line.into()).await;
            // What is unread when it is closed would take the answer with it.
            let rest = async { while let Ok(Some(_)) = source.next().await {} };
            let _ = tokio::time::timeout(LINGER, rest).await;
        }
    }

    async fn speak(
        &self,
        source: &mut Source,
        output: &mut Output,
        gate: Gate,
        peer: Option<SocketAddr>,
        since: Instant,
    ) -> Result<(), String> {
        let smart = &self.smart;
        let opening = {
            let whole = |bytes: &[u8]| !matches!(pktline::read(bytes), Ok(None)) || bytes.len() > FIRST;
            let Ok(bytes) = source.peek(whole).await else { return Ok(()) };
            let (opening, length) = match pktline::read(bytes) {
                Ok(Some((Packet::Data(line), length))) if length <= FIRST => (Opening::parse(line)?, length),
                // Who looks whether the port is open says nothing.
                Ok(None) if bytes.is_empty() => return Ok(()),
                _ => return Err("this is not git's protocol".into()),
            };
            source.consume(length);
            opening
        };
        let now = SystemTime::now();
        let who = smart.catalog.now().identify(&gate, None, now).ok_or("the session has ended")?;
        let asked = Asked { who, gate, peer };
        let entry = match smart.find(&opening.name, &asked) {
            Found::Serve(entry) => entry,
            Found::Redirect(url) => return Err(format!("not here yet: {url} has it")),
            Found::Gone => return Err("the upstream does not have this repository any more".into()),
            Found::Unavailable => return Err("the repository is not ready: try again".into()),
            Found::Unknown => return Err("no such repository".into()),
        };
        let ask = Ask { entry, asked, transport: Transport::Git, protocol: opening.protocol, since };
        let done = match opening.service {
            GitService::UploadPack => smart.upload_on(&ask, source, output).await,
            GitService::ReceivePack => match smart.advertise_push(&ask).await {
                Ok(bytes) => {
                    for part in (0..bytes.len()).step_by(CHUNK) {
                        let part: Bytes = bytes.slice(part..bytes.len().min(part + CHUNK));
                        if !output.send(part).await {
                            return Ok(());
                        }
                    }
                    smart.receive(&ask, source, output).await
                }
                Err(refusal) => Err(refusal),
            },
        };
        done.map_err(|refusal| match refusal {
            Refusal::Busy => Busy.to_string(),
            Refusal::Failed(_) => "the mirror cannot serve this repository now".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line() {
        let read = |line: &str| {
            Opening::parse(line.as_bytes())
                .map(|opening| format!("{:?} {} {}", opening.service, opening.name, opening.protocol.version))
        };
        assert_eq!(
            read("git-upload-pack /github.com/o/r.git\0host=127.0.0.1:9418\0\0version=2\0").unwrap(),
            "UploadPack github.com/o/r 2"
        );
        assert_eq!(read("git-receive-pack h/r\n").unwrap(), "ReceivePack h/r 0");
        // What is where the host should be is no version.
        assert_eq!(read("git-upload-pack /h/r\0version=2\0").unwrap(), "UploadPack h/r 0");
        assert_eq!(read("git-upload-archive /h/r"), Err("only git-upload-pack and git-receive-pack are served"));
        assert_eq!(read("git-upload-pack /h/../r"), Err("no such repository"));
        assert_eq!(read("git-upload-pack"), Err("this is not git's protocol"));
    }
}
