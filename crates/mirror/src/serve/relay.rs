//! Bytes between a client and a git process, each way at its own pace, nothing kept whole.
//!
//! ```text
//!   Source (body of a request, socket) ──► stdin  ┐
//!                                                 ├ git, killed when either side is gone
//!   Output (body of an answer, socket) ◄── stdout ┘
//! ```

use super::listen::Stream;
use super::process::{GitProcess, chunk, telling};
use crate::doubt::Doubt;
use crate::event::Outcome;
use bytes::{Bytes, BytesMut};
use flate2::write::GzDecoder;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::io::{self, Write};
use std::time::Duration;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Compressed bytes that are inflated at once: at most a thousand times as many come out.
const INFLATE: usize = 4 << 10;
/// How long git may go on after the client's side of a socket ended.
const HALF_CLOSED: Duration = Duration::from_millis(500);
/// How much longer than between two reads a client may take to make room for what it asked for: it
/// resolves deltas and writes files meanwhile.
const STALL: u32 = 10;

/// Why a client's bytes could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It went away.
    #[error("the client went away")]
    Gone(#[source] io::Error),
    /// It was silent for too long.
    #[error("the client was silent for too long")]
    Silent,
    /// More than is taken.
    #[error("the request is larger than {limit} bytes")]
    TooLarge {
        /// How much is taken.
        limit: u64,
    },
    /// Not gzip, or not git's protocol.
    #[error("the request cannot be read")]
    Malformed,
}

/// What comes from a client.
pub struct Source {
    from: From,
    /// What was read already and comes first.
    ahead: BytesMut,
    /// Bytes that came.
    pub received: u64,
    limit: u64,
    idle: Duration,
}

enum From {
    Body { body: Incoming, gzip: Option<Box<Gzip>> },
    Stream(ReadHalf<Stream>),
}

struct Gzip {
    decoder: GzDecoder<Vec<u8>>,
    compressed: Bytes,
    inflated: u64,
    limit: u64,
}

impl Source {
    /// The body of a request: at most `limit` bytes of it, and `inflated` ones after inflating when it
    /// is compressed.
    pub fn body(body: Incoming, limit: u64, inflated: Option<u64>, idle: Duration) -> Self {
        let gzip = inflated.map(|limit| {
            Box::new(Gzip { decoder: GzDecoder::new(Vec::new()), compressed: Bytes::new(), inflated: 0, limit })
        });
        Self { from: From::Body { body, gzip }, ahead: BytesMut::new(), received: 0, limit, idle }
    }

    /// A socket.
    pub fn stream(half: ReadHalf<Stream>, limit: u64, idle: Duration) -> Self {
        Self { from: From::Stream(half), ahead: BytesMut::new(), received: 0, limit, idle }
    }

    /// Whether the end of it says that the client is gone.
    pub fn end_is_gone(&self) -> bool {
        matches!(self.from, From::Stream(_))
    }

    /// Sets another limit for all that comes.
    pub fn limited(mut self, limit: u64) -> Self {
        self.limit = limit;
        self
    }

    /// What comes next; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        if !self.ahead.is_empty() {
            return Ok(Some(self.ahead.split().freeze()));
        }
        match timeout(self.idle, self.from.next(&mut self.received, self.limit)).await {
            Ok(next) => next,
            Err(_) => Err(SourceError::Silent),
        }
    }

    /// Reads until so much is there, or the end; it stays to be read. Returns what is there.
    pub async fn peek(&mut self, enough: impl Fn(&[u8]) -> bool) -> Result<&[u8], SourceError> {
        while !enough(&self.ahead) {
            match timeout(self.idle, self.from.next(&mut self.received, self.limit)).await {
                Ok(Ok(Some(bytes))) => self.ahead.extend_from_slice(&bytes),
                Ok(Ok(None)) => break,
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(SourceError::Silent),
            }
        }
        Ok(&self.ahead)
    }

    /// Takes away the first `n` bytes of what was peeked at.
    pub fn consume(&mut self, n: usize) -> Bytes {
        self.ahead.split_to(n).freeze()
    }

    /// Puts bytes before what comes next.
    pub fn put_back(&mut self, bytes: &[u8]) {
        let rest = self.ahead.split();
        self.ahead = BytesMut::with_capacity(bytes.len() + rest.len());
        self.ahead.extend_from_slice(bytes);
        self.ahead.extend_from_slice(&rest);
    }
}

impl From {
    async fn next(&mut self, received: &mut u64, limit: u64) -> Result<Option<Bytes>, SourceError> {
        let mut count = |bytes: &Bytes| {
            *received += bytes.len() as u64;
            if *received > limit { Err(SourceError::TooLarge { limit }) } else { Ok(()) }
        };
        match self {
            Self::Stream(half) => {
                let bytes = chunk(half).await.map_err(SourceError::Gone)?;
                bytes.iter().try_for_each(&mut count)?;
                Ok(bytes)
            }
            Self::Body { body, gzip } => loop {
                if let Some(inflated) = gzip.as_mut().map(|gzip| gzip.inflate()).transpose()?.flatten() {
                    return Ok(Some(inflated));
                }
                let frame = match body.frame().await {
                    Some(Ok(frame)) => frame,
                    Some(Err(error)) => return Err(SourceError::Gone(io::Error::other(error))),
                    None => {
                        return match gzip.take() {
                            Some(gzip) => gzip.finish(),
                            None => Ok(None),
                        };
                    }
                };
                let Ok(data) = frame.into_data() else { continue };
                count(&data)?;
                match gzip {
                    Some(gzip) => gzip.compressed = data,
                    None if data.is_empty() => {}
                    None => return Ok(Some(data)),
                }
            },
        }
    }
}

impl Gzip {
    /// Inflates some of what is there; `None` when more must come.
    fn inflate(&mut self) -> Result<Option<Bytes>, SourceError> {
        while !self.compressed.is_empty() {
            let some = self.compressed.split_to(self.compressed.len().min(INFLATE));
            self.decoder.write_all(&some).map_err(|_| SourceError::Malformed)?;
            let inflated = self.take()?;
            if !inflated.is_empty() {
                return Ok(Some(inflated));
            }
        }
        Ok(None)
    }

    fn take(&mut self) -> Result<Bytes, SourceError> {
        let bytes = std::mem::take(self.decoder.get_mut());
        self.inflated += bytes.len() as u64;
        if self.inflated > self.limit {
            return Err(SourceError::TooLarge { limit: self.limit });
        }
        Ok(bytes.into())
    }

    fn finish(mut self) -> Result<Option<Bytes>, SourceError> {
        self.decoder.try_finish().map_err(|_| SourceError::Malformed)?;
        Ok(Some(self.take()?).filter(|bytes| !bytes.is_empty()))
    }
}

/// Why an answer has no body, or breaks off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// More than is taken.
    TooLarge,
    /// Not git's protocol, or silent.
    Malformed,
    /// Git failed.
    Git,
}

/// Where an answer goes.
pub enum Output {
    /// The body of an answer; the first failure decides its status if nothing went before.
    Body(mpsc::Sender<Result<Bytes, Failure>>),
    /// A socket.
    Stream(WriteHalf<Stream>),
}

impl Output {
    /// Sends; false when the client is gone.
    pub async fn send(&mut self, bytes: Bytes) -> bool {
        match self {
            Self::Body(sender) => sender.send(Ok(bytes)).await.is_ok(),
            Self::Stream(half) => half.write_all(&bytes).await.is_ok(),
        }
    }

    /// Says why there is no more.
    pub async fn fail(&mut self, failure: Failure) {
        if let Self::Body(sender) = self {
            let _ = sender.send(Err(failure)).await;
        }
    }
}

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    /// In a word.
    pub outcome: Outcome,
    /// Bytes to the client.
    pub sent: u64,
    /// What git said, if it did not end well or says that something is broken.
    pub said: String,
}

/// Takes git's output: to the client as it is, or kept to be changed.
enum Taken<'o> {
    On(&'o mut Output),
    Kept(&'o mut Vec<u8>, usize),
}

/// Relays until git ends or the client is gone.
pub async fn relay(process: GitProcess, source: &mut Source, output: &mut Output) -> Ended {
    run(process, source, Taken::On(output)).await
}

/// As [`relay`], with git's output kept, at most `limit` bytes of it: for what is small.
pub async fn collect(process: GitProcess, source: &mut Source, kept: &mut Vec<u8>, limit: usize) -> Ended {
    run(process, source, Taken::Kept(kept, limit)).await
}

async fn run(mut process: GitProcess, source: &mut Source, mut taken: Taken<'_>) -> Ended {
    let (Some(mut stdin), Some(mut stdout)) = (process.stdin.take(), process.stdout.take()) else {
        return Ended { outcome: Outcome::Failed, sent: 0, said: String::new() };
    };
    let idle = source.idle;
    let end_is_gone = source.end_is_gone();
    let mut sent = 0;
    let pumped = {
        let feed = async {
            while let Some(bytes) = source.next().await? {
                // Git may have heard enough; what it has to say about that is still read.
                if stdin.write_all(&bytes).await.is_err() {
                    break;
                }
            }
            drop(stdin);
            if end_is_gone {
                tokio::time::sleep(HALF_CLOSED).await;
                return Err(SourceError::Gone(io::ErrorKind::UnexpectedEof.into()));
            }
            std::future::pending::<Result<(), SourceError>>().await
        };
        let pump = async {
            while let Some(bytes) = chunk(&mut stdout).await.ok().flatten() {
                sent += bytes.len() as u64;
                let fine = match &mut taken {
                    Taken::On(output) => matches!(timeout(idle * STALL, output.send(bytes)).await, Ok(true)),
                    Taken::Kept(kept, limit) => {
                        kept.extend_from_slice(&bytes);
                        kept.len() <= *limit
                    }
                };
                if !fine {
                    return Err(Outcome::Disconnected);
                }
            }
            Ok(())
        };
        tokio::select! {
            biased;
            pumped = pump => pumped.map_err(Ok),
            fed = feed => Err(Err(fed.err())),
        }
    };
    let failure = match pumped {
        Ok(()) => {
            let (good, said) = match process.wait().await {
                Ok((status, said)) => (status.success(), telling(&said)),
                Err(error) => (false, error.to_string()),
            };
            if good {
                // It leaves out of an answer what is broken, and says so.
                let said = if Doubt::of(&said).is_some() { said } else { String::new() };
                return Ended { outcome: Outcome::Done, sent, said };
            }
            // Git tells a client that asks for what is not there itself.
            let outcome = if sent > 0 { Outcome::Refused } else { Outcome::Failed };
            if let (Taken::On(output), Outcome::Failed) = (&mut taken, outcome) {
                output.fail(Failure::Git).await;
            }
            return Ended { outcome, sent, said };
        }
        Err(Ok(outcome)) => (outcome, None),
        Err(Err(Some(SourceError::TooLarge { .. }))) => (Outcome::Malformed, Some(Failure::TooLarge)),
        Err(Err(Some(SourceError::Malformed | SourceError::Silent))) => (Outcome::Malformed, Some(Failure::Malformed)),
        Err(Err(_)) => (Outcome::Disconnected, None),
    };
    drop(process);
    if let (Taken::On(output), (_, Some(failure))) = (&mut taken, &failure) {
        output.fail(failure.clone()).await;
    }
    Ended { outcome: failure.0, sent, said: String::new() }
}
