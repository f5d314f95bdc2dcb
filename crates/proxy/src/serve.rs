//! The proxy itself: one thread, one task for each connection.

use crate::head::{self, Head, Wrong, path_hash, word_shown};
use crate::plain::{self, Exchange};
use crate::policy::{Decision, Policy, Reason, Target, Watched};
use crate::record::{Gone, Recorder};
use crate::resolve::Dialer;
use crate::rule::Rule;
use crate::stream::Stream;
use crate::tunnel::{self, Moved};
use bytes::BytesMut;
use rustix::net::AddressFamily;
use sandbox_protocol::event::{Network, Verdict};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// How often the policy is looked at while something is open.
const LOOK: Duration = Duration::from_millis(500);
/// How long a refused client may take to read why.
const LINGER: Duration = Duration::from_secs(2);
/// How long the search for a process may hold up a refusal.
const WHO: Duration = Duration::from_millis(300);
/// Searches in a second.
const WHO_RATE: u32 = 4;

/// Who is at the other end of a connection.
pub type Who = Box<dyn Fn(SocketAddr) -> Option<String> + Send>;

/// What is told to a client that was refused, below the reason: what its user can do about it.
pub type Advice = fn(&Network) -> Option<String>;

/// What the proxy works with.
pub struct Config {
    /// A listening stream socket of the family TCP or Unix.
    pub listener: OwnedFd,
    /// The policy file.
    pub policy: PathBuf,
    /// The writing end of a pipe, for one JSON line for each decision and for each end.
    pub events: OwnedFd,
    /// Tells the name of the process at a peer's address; asked for refusals only, a few times a second.
    pub who: Who,
    /// One more field of each refusal, as it is written: `Name: value`.
    pub marker: Option<&'static str>,
    /// One more line of each refusal.
    pub advice: Advice,
    /// How much there may be of everything.
    pub limits: Limits,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("policy", &self.policy).field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// How much there may be of everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections from inside; who comes when there are so many is told so at once.
    pub connections: usize,
    /// Of these, the ones that lead outside.
    pub tunnels: usize,
    /// Bytes of the head of a request.
    pub head: usize,
    /// For a head, from its first byte.
    pub head_time: Duration,
    /// From the answer to a `CONNECT` to the end of the ClientHello.
    pub handshake: Duration,
    /// For resolving, and for connecting.
    pub dial: Duration,
    /// Between two requests of a kept connection.
    pub keep_alive: Duration,
    /// While nothing moves either way.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            tunnels: 256,
            head: 64 * 1024,
            head_time: Duration::from_secs(10),
            handshake: Duration::from_secs(10),
            dial: Duration::from_secs(10),
            keep_alive: Duration::from_secs(60),
            // An agent that waits for a person holds its stream open.
            idle: Duration::from_secs(30 * 60),
        }
    }
}

/// The proxy could not go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The listener is none.
    #[error("cannot listen on what was handed over")]
    Listener(#[source] io::Error),
    /// Events cannot be written there.
    #[error("cannot write events to what was handed over: it must be the writing end of a pipe")]
    Events(#[source] io::Error),
    /// No runtime.
    #[error("cannot start the event loop")]
    Runtime(#[source] io::Error),
}

/// Lets out what the policy allows, until whoever reads the events is gone: a decision that nobody
/// writes down is none.
pub fn serve(config: Config) -> Result<(), ServeError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        // Only for `who`.
        .max_blocking_threads(1)
        .build()
        .map_err(ServeError::Runtime)?;
    let local = LocalSet::new();
    let served = local.block_on(&runtime, run(config));
    drop(local);
    // A search that takes long does not hold up the end.
    runtime.shutdown_background();
    served
}

async fn run(config: Config) -> Result<(), ServeError> {
    let listener = Listener::new(config.listener).map_err(ServeError::Listener)?;
    let recorder = Recorder::new(config.events).map_err(ServeError::Events)?;
    let (cut, _) = watch::channel(());
    let shared = Rc::new(Shared {
        policy: RefCell::new(Watched::new(config.policy)),
        recorder,
        dialer: Dialer::default(),
        tunnels: Arc::new(Semaphore::new(config.limits.tunnels)),
        connections: Rc::new(()),
        cut,
        who: Arc::new(Mutex::new(config.who)),
        searches: Rate::new(WHO_RATE),
        crowded: Rate::new(1),
        marker: config.marker,
        advice: config.advice,
        limits: config.limits,
    });
    tokio::select! {
        () = shared.recorder.gone() => Ok(()),
        () = shared.watch() => Ok(()),
        failed = shared.accept(listener) => failed.map_or(Ok(()), |error| Err(ServeError::Listener(error))),
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        match rustix::net::sockopt::socket_domain(&fd)? {
            AddressFamily::INET | AddressFamily::INET6 => Ok(Self::Tcp(TcpListener::from_std(fd.into())?)),
            AddressFamily::UNIX => Ok(Self::Unix(UnixListener::from_std(fd.into())?)),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    async fn accept(&self) -> io::Result<(Stream, Option<SocketAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // Small records would wait for one another.
                let _ = stream.set_nodelay(true);
                Ok((Stream::Tcp(stream), Some(peer)))
            }
            Self::Unix(listener) => Ok((Stream::Unix(listener.accept().await?.0), None)),
        }
    }
}

/// So many in a second.
struct Rate {
    limit: u32,
    second: Cell<(Option<Instant>, u32)>,
}

impl Rate {
    fn new(limit: u32) -> Self {
        Self { limit, second: Cell::new((None, 0)) }
    }

    fn take(&self) -> bool {
        let (since, used) = match self.second.get() {
            (Some(since), used) if since.elapsed() < Duration::from_secs(1) => (since, used),
            _ => (Instant::now(), 0),
        };
        self.second.set((Some(since), used.saturating_add(1)));
        used < self.limit
    }
}

struct Shared {
    policy: RefCell<Watched>,
    recorder: Recorder,
    dialer: Dialer,
    tunnels: Arc<Semaphore>,
    /// As many as there are connections, and this one.
    connections: Rc<()>,
    /// The policy has changed.
    cut: watch::Sender<()>,
    who: Arc<Mutex<Who>>,
    searches: Rate,
    crowded: Rate,
    marker: Option<&'static str>,
    advice: Advice,
    limits: Limits,
}

/// What has been let out.
struct Open {
    target: Target,
    address: SocketAddr,
    event: Network,
    since: Instant,
    outside: TcpStream,
    permit: OwnedSemaphorePermit,
}

impl Shared {
    /// Takes connections until the listener fails for good, or (`None`) nobody takes events any more.
    async fn accept(self: &Rc<Self>, listener: Listener) -> Option<io::Error> {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) if Rc::strong_count(&self.connections) <= self.limits.connections => {
                    let (shared, counted) = (self.clone(), self.connections.clone());
                    tokio::task::spawn_local(async move {
                        // `Gone` ends the whole proxy by itself.
                        let _ = shared.connection(stream, peer).await;
                        drop(counted);
                    });
                }
                Ok((stream, _)) => {
                    let event = Network { reason: Some(Reason::TooMany.word().to_owned()), ..Network::default() };
                    // Not waited for: whoever floods must not be able to hold up the others.
                    let _ = stream.try_write(self.answer(Reason::TooMany, &event).as_bytes());
                    if self.crowded.take() && self.recorder.record(event).await.is_err() {
                        return None;
                    }
                }
                Err(error) if lasting(&error) => return Some(error),
                // No descriptors or no memory just now, or a client that has gone already.
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Looks at the policy while something is open, and tells those who have it.
    async fn watch(&self) {
        let mut last = self.policy.borrow_mut().now();
        loop {
            sleep(LOOK).await;
            if self.tunnels.available_permits() == self.limits.tunnels {
                continue;
            }
            let now = self.policy.borrow_mut().now();
            if now != last {
                last = now;
                self.cut.send_replace(());
            }
        }
    }

    fn policy(&self) -> Arc<Policy> {
        self.policy.borrow_mut().now()
    }

    async fn connection(&self, mut stream: Stream, peer: Option<SocketAddr>) -> Result<(), Gone> {
        let mut buffer = BytesMut::new();
        let mut patience = self.limits.head_time;
        loop {
            let (head, length) = match self.head(&stream, &mut buffer, patience).await {
                Ok(Some(read)) => read,
                Ok(None) => return Ok(()),
                Err(wrong) => {
                    let event =
                        Network { method: wrong.method, host: wrong.host, port: wrong.port, ..Network::default() };
                    return self.refuse(&stream, peer, wrong.reason, event, wrong.agent).await;
                }
            };
            let event = Network {
                method: head.method.clone(),
                host: head.target.host.to_string(),
                port: head.target.port,
                path_hash: head.path.as_deref().map(path_hash),
                ..Network::default()
            };
            let open = match self.open(&head.target, event).await {
                Ok(open) => open,
                Err((reason, event)) => return self.refuse(&stream, peer, reason, event, head.agent).await,
            };
            if head.path.is_none() {
                let early = buffer.split_off(length).to_vec();
                return self.tunnel(stream, early, open, peer, head.agent).await;
            }
            match self.plain(stream, buffer, length, &head, open).await? {
                Some(kept) => (stream, buffer) = kept,
                None => return Ok(()),
            }
            patience = self.limits.keep_alive;
        }
    }

    /// Reads a head; `None` when the client has ended or said nothing. `patience` is for its first byte.
    async fn head(
        &self,
        stream: &Stream,
        buffer: &mut BytesMut,
        patience: Duration,
    ) -> Result<Option<(Head, usize)>, Box<Wrong>> {
        let mut deadline = Instant::now() + patience;
        let mut begun = false;
        loop {
            if !buffer.is_empty() {
                if let Some(read) = head::read(buffer, self.limits.head)? {
                    return Ok(Some(read));
                }
                if !std::mem::replace(&mut begun, true) {
                    deadline = Instant::now() + self.limits.head_time;
                }
            }
            let mut more = [0; 8192];
            match timeout_at(deadline, stream.receive(&mut more)).await {
                Ok(Ok(0) | Err(_)) => return Ok(None),
                Ok(Ok(n)) => buffer.extend_from_slice(&more[..n]),
                Err(_) if buffer.is_empty() => return Ok(None),
                Err(_) => return Err(Box::new(head::slow(buffer))),
            }
        }
    }

    /// Decides, and connects if it is allowed. Nothing is recorded yet.
    async fn open(&self, target: &Target, mut event: Network) -> Result<Open, (Reason, Network)> {
        let policy = self.policy();
        let rule: Rule = match policy.decide(target) {
            Decision::Allowed(rule) => rule,
            Decision::Refused(reason, rule) => {
                event.rule = rule.map(|rule| rule.to_string());
                return Err((reason, event));
            }
        };
        event.rule = Some(rule.to_string());
        let Ok(permit) = self.tunnels.clone().try_acquire_owned() else { return Err((Reason::TooMany, event)) };
        match self.dialer.dial(&policy, &rule, target, self.limits.dial).await {
            Ok((outside, address)) => {
                // Resolving and connecting take their time: it may be denied by now.
                if !self.still_allows(target, address) {
                    return Err((Reason::Denied, event));
                }
                let _ = outside.set_nodelay(true);
                event.address = Some(address.to_string());
                Ok(Open { target: target.clone(), address, event, since: Instant::now(), outside, permit })
            }
            Err(reason) => Err((reason, event)),
        }
    }

    async fn tunnel(
        &self,
        stream: Stream,
        mut bytes: Vec<u8>,
        open: Open,
        peer: Option<SocketAddr>,
        agent: Option<String>,
    ) -> Result<(), Gone> {
        let mut changes = self.cut.subscribe();
        if stream.send(b"HTTP/1.1 200 Connection established\r\n\r\n").await.is_err() {
            return self.opened_and_ended(open).await;
        }
        let greeting = tunnel::greeting(&stream, &mut bytes, &open.target.host);
        let refused = match timeout(self.limits.handshake, greeting).await {
            Ok(Ok(true)) => None,
            // It had no use for the connection after all: browsers open some in advance.
            Ok(Ok(false)) => return self.opened_and_ended(open).await,
            Ok(Err(reason)) => Some(reason),
            Err(_) => Some(Reason::Slow),
        };
        // What was allowed when it was asked for may not be any more.
        let refused = refused.or_else(|| (!self.still_allows(&open.target, open.address)).then_some(Reason::Denied));
        if let Some(reason) = refused {
            let event = self.refused(reason, open.event, peer, agent).await;
            return self.recorder.record(event).await;
        }
        self.recorder.record(Network { verdict: Verdict::Allowed, ..open.event.clone() }).await?;
        let moved = Moved::new();
        let Open { target, address, event, since, outside, permit } = open;
        let outside = Stream::Tcp(outside);
        let relay = async {
            moved.add(&moved.sent, bytes.len());
            if outside.send(&bytes).await.is_ok() {
                drop(bytes);
                tunnel::relay(&stream, &outside, &moved).await;
            }
        };
        let cut = tokio::select! {
            () = relay => false,
            () = moved.idle(self.limits.idle) => true,
            () = self.cut(&mut changes, &target, address) => true,
        };
        if cut {
            // An end in order would pass for the end of what was sent.
            stream.reset();
        }
        drop((stream, outside, permit));
        self.closed(event, &moved, since).await
    }

    async fn plain(
        &self,
        stream: Stream,
        buffer: BytesMut,
        length: usize,
        head: &Head,
        open: Open,
    ) -> Result<Option<(Stream, BytesMut)>, Gone> {
        let mut changes = self.cut.subscribe();
        self.recorder.record(Network { verdict: Verdict::Allowed, ..open.event.clone() }).await?;
        let exchange = Exchange::new();
        let Open { target, address, event, since, outside, permit } = open;
        let kept = tokio::select! {
            kept = plain::exchange(stream, buffer, length, head, outside, &exchange) => kept,
            () = exchange.moved.idle(self.limits.idle) => None,
            () = self.cut(&mut changes, &target, address) => None,
        };
        drop(permit);
        self.closed(event, &exchange.moved, since).await?;
        Ok(kept)
    }

    /// Waits until the policy does not allow this any more.
    async fn cut(&self, changes: &mut watch::Receiver<()>, target: &Target, address: SocketAddr) {
        loop {
            // The sender lives as long as we do.
            if changes.changed().await.is_err() {
                return;
            }
            if !self.still_allows(target, address) {
                return;
            }
        }
    }

    fn still_allows(&self, target: &Target, address: SocketAddr) -> bool {
        self.dialer.own().is_some_and(|own| self.policy().still_allows(target, address, &own))
    }

    async fn opened_and_ended(&self, open: Open) -> Result<(), Gone> {
        self.recorder.record(Network { verdict: Verdict::Allowed, ..open.event.clone() }).await?;
        self.closed(open.event, &Moved::new(), open.since).await
    }

    async fn closed(&self, event: Network, moved: &Moved, since: Instant) -> Result<(), Gone> {
        let event = Network {
            verdict: Verdict::Closed,
            sent: Some(moved.sent.get()),
            received: Some(moved.received.get()),
            ms: Some(since.elapsed().as_millis() as u64),
            ..event
        };
        self.recorder.record(event).await
    }

    /// Records a refusal and tells the client.
    async fn refuse(
        &self,
        stream: &Stream,
        peer: Option<SocketAddr>,
        reason: Reason,
        event: Network,
        agent: Option<String>,
    ) -> Result<(), Gone> {
        let event = self.refused(reason, event, peer, agent).await;
        let answer = self.answer(reason, &event);
        // Of a crowd, one line a second: the log is for what was decided.
        if reason != Reason::TooMany || self.crowded.take() {
            self.recorder.record(event).await?;
        }
        let _ = timeout(LINGER, async {
            stream.send(answer.as_bytes()).await?;
            stream.end();
            // What is unread when it is closed would take the answer with it.
            let mut rest = [0; 4096];
            for _ in 0..64 {
                if stream.receive(&mut rest).await? == 0 {
                    break;
                }
            }
            io::Result::Ok(())
        })
        .await;
        Ok(())
    }

    /// A refusal as an event, with whose it was.
    async fn refused(
        &self,
        reason: Reason,
        event: Network,
        peer: Option<SocketAddr>,
        agent: Option<String>,
    ) -> Network {
        let mut process = None;
        if let Some(peer) = peer
            && reason != Reason::TooMany
            && self.searches.take()
        {
            let who = self.who.clone();
            let search = tokio::task::spawn_blocking(move || who.lock().ok().and_then(|who| who(peer)));
            process = timeout(WHO, search).await.ok().and_then(Result::ok).flatten();
        }
        let process = process.map(|name| word_shown(name.as_bytes())).or(agent).filter(|name| !name.is_empty());
        Network { verdict: Verdict::Refused, reason: Some(reason.word().to_owned()), process, ..event }
    }

    /// A refusal as the client sees it.
    fn answer(&self, reason: Reason, event: &Network) -> String {
        let status = match reason {
            Reason::Malformed | Reason::HostHeader => "400 Bad Request",
            Reason::Method => "405 Method Not Allowed",
            Reason::Slow => "408 Request Timeout",
            Reason::TooLarge => "431 Request Header Fields Too Large",
            Reason::Unresolved | Reason::Unreachable => "502 Bad Gateway",
            Reason::TooMany => "503 Service Unavailable",
            _ => "403 Forbidden",
        };
        let printable = |text: &str| text.chars().filter(|c| !c.is_control()).collect::<String>();
        let what = match event.port {
            0 => printable(&event.host),
            port => format!("{}:{port}", printable(&event.host)),
        };
        let mut body = format!("blocked: {what} ({}): {}\n", reason.word(), words(reason));
        if let Some(advice) = (self.advice)(event) {
            body.push_str(&format!("{}\n", printable(&advice)));
        }
        let marker = self.marker.map(|marker| format!("{marker}\r\n")).unwrap_or_default();
        let allow =
            if reason == Reason::Method { "Allow: CONNECT, GET, HEAD, POST, PUT, PATCH, DELETE\r\n" } else { "" };
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n{marker}{allow}\
             Connection: close\r\n\r\n{body}",
            body.len()
        )
    }
}

/// Whether accepting will never work again.
fn lasting(error: &io::Error) -> bool {
    matches!(
        rustix::io::Errno::from_io_error(error),
        Some(rustix::io::Errno::BADF | rustix::io::Errno::INVAL | rustix::io::Errno::NOTSOCK)
    )
}

/// A reason in a sentence.
fn words(reason: Reason) -> &'static str {
    match reason {
        Reason::NotAllowed => "the policy does not allow this host",
        Reason::Denied => "the policy denies this host",
        Reason::Port => "the policy allows this host, but not this port",
        Reason::Address => "the name leads to an address that is private or this machine's own",
        Reason::Name => "this is no host name",
        Reason::Literal => "addresses are refused unless the policy lists them",
        Reason::Unresolved => "the name could not be resolved",
        Reason::Unreachable => "the host could not be reached",
        Reason::NotTls => "only TLS goes through a tunnel",
        Reason::ServerName => "the TLS server name is not the host that was asked for",
        Reason::HostHeader => "the Host field is not the host that was asked for",
        Reason::Malformed => "the request is not plain HTTP/1.1 to a proxy",
        Reason::TooLarge => "the head of the request is too large",
        Reason::TooMany => "there are too many connections",
        Reason::Slow => "the request took too long",
        Reason::Method => "this method is not passed on",
        Reason::PolicyGone => "there is no policy",
    }
}
