//! A listener of ours that leads to a mirror, and to nothing else.
//!
//! ```text
//! git ──http──► 127.0.0.1:PORT ──► front ──► the mirror (http:// or unix:)
//!                                    │          with the session's token, if it has one
//!                                    └ the mirror is down or hung: 302 to the upstream, or 503
//! ```
//!
//! Git speaks HTTP over TCP only, and `insteadOf` knows no second choice: what it leads to must always be up. So a
//! front is, for as long as it is needed: for one clone in a thread of the command, for a sandbox in a process of its
//! own, whose listener is inside. Only what git fetches and pushes with goes through, and nothing is kept: bodies are
//! streams. Who asks is told by the listener; what a client says about that is dropped.

use super::endpoint::{Endpoint, resolve};
use super::probe::PROBE;
use super::settings::Setting;
use crate::name::RepoName;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustix::net::AddressFamily;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Connections at once; more wait.
const CONNECTIONS: usize = 64;
/// How long an answer about the mirror's health is believed.
const BELIEVED: Duration = Duration::from_secs(1);
/// The header that carries the secret of a front which others on this machine could connect to.
const SECRET: &str = "x-git-sandbox-front";
/// Headers of a request that go on to the mirror; who asks is not for the client to say.
const REQUEST: [HeaderName; 7] = [
    header::ACCEPT,
    header::ACCEPT_ENCODING,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::RANGE,
    header::USER_AGENT,
];
/// Headers of an answer that are about the connection to the mirror alone.
const HOP: [HeaderName; 4] = [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE, header::TRAILER];

/// What is said instead of the mirror, while it is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Otherwise {
    /// Where the upstream is.
    Upstream,
    /// That there is none: nothing else can be reached from where the client is.
    Nothing,
}

/// A front that does not serve yet.
#[derive(Debug)]
pub struct Front {
    /// Where the mirror is.
    pub to: Endpoint,
    /// The token of the session that all clients are.
    pub bearer: Option<String>,
    /// What a client must send to be heard; none is needed where nobody else can connect.
    pub secret: Option<String>,
    /// While the mirror is down.
    pub otherwise: Otherwise,
    /// Bytes in both directions together, after which there is no more.
    pub most: u64,
}

/// A front of this process, until it is dropped.
#[derive(Debug)]
pub struct Fronted {
    port: u16,
    secret: String,
    end: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Fronted {
    /// What it is for git.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What git must send to be heard.
    pub fn secret(&self, url: &str) -> Setting {
        Setting::new(format!("http.{url}/.extraHeader"), format!("{SECRET}: {}", self.secret))
    }
}

impl Drop for Fronted {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Front {
    /// Serves on a port of this machine, in a thread, for whoever is told its secret.
    pub fn own(to: Endpoint, bearer: Option<String>) -> io::Result<Fronted> {
        let mut bytes = [0u8; 16];
        getrandom::fill(&mut bytes).map_err(io::Error::other)?;
        let secret: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let (end, ended) = tokio::sync::oneshot::channel();
        let front = Self { to, bearer, secret: Some(secret.clone()), otherwise: Otherwise::Nothing, most: u64::MAX };
        let thread = std::thread::Builder::new().name("front".into()).spawn(move || {
            let _ = front.serve(listener, async { drop(ended.await) });
        })?;
        Ok(Fronted { port, secret, end: Some(end), thread: Some(thread) })
    }

    /// Serves until `end`. The listener is a stream socket of the family TCP or Unix.
    pub fn serve(self, listener: impl Into<OwnedFd>, end: impl Future<Output = ()>) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let listener = Listener::new(listener.into())?;
            let shared =
                Arc::new(Shared { left: Arc::new(AtomicU64::new(self.most)), front: self, health: Mutex::default() });
            let room = Arc::new(Semaphore::new(CONNECTIONS));
            tokio::pin!(end);
            loop {
                let permit = tokio::select! {
                    permit = room.clone().acquire_owned() => permit.map_err(io::Error::other)?,
                    () = &mut end => return Ok(()),
                };
                let accepted = tokio::select! {
                    accepted = listener.accept(shared.clone(), permit) => accepted,
                    () = &mut end => return Ok(()),
                };
                if accepted.is_err() {
                    // Out of descriptors, most likely: others end.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        })
    }
}

/// Where clients come from.
enum Listener {
    Tcp(tokio::net::TcpListener),
    /// A relay stands between.
    Unix(tokio::net::UnixListener),
}

impl Listener {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        match rustix::net::sockopt::socket_domain(&fd)? {
            AddressFamily::UNIX => Ok(Self::Unix(tokio::net::UnixListener::from_std(fd.into())?)),
            _ => Ok(Self::Tcp(tokio::net::TcpListener::from_std(fd.into())?)),
        }
    }

    /// Takes one, and serves it beside.
    async fn accept(&self, shared: Arc<Shared>, permit: OwnedSemaphorePermit) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => {
                let stream = listener.accept().await?.0;
                let _ = stream.set_nodelay(true);
                tokio::spawn(serve_one(stream, shared, permit));
            }
            Self::Unix(listener) => drop(tokio::spawn(serve_one(listener.accept().await?.0, shared, permit))),
        }
        Ok(())
    }
}

async fn serve_one(stream: impl AsyncRead + AsyncWrite + Unpin, shared: Arc<Shared>, permit: OwnedSemaphorePermit) {
    let answer = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(shared.answer(request).await) }
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
    drop(permit);
}

type Answer = Response<BoxBody<Bytes, io::Error>>;

struct Shared {
    front: Front,
    left: Arc<AtomicU64>,
    /// When it was last asked, and whether it was well.
    health: Mutex<Option<(Instant, bool)>>,
}

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// The beginning of a fetch.
    Fetch,
    /// Anything else of git's, and `ensure`.
    Other,
}

/// What a request is for, and of which repository; `None`: nothing that goes through.
fn purpose(method: &Method, path: &str, query: Option<&str>) -> Option<(Purpose, RepoName)> {
    let (repo, purpose) = match (method, query) {
        (&Method::GET, Some("service=git-upload-pack")) => (path.strip_suffix("/info/refs")?, Purpose::Fetch),
        (&Method::GET, Some("service=git-receive-pack")) => (path.strip_suffix("/info/refs")?, Purpose::Other),
        (&Method::POST, None) => {
            let ends = ["/git-upload-pack", "/git-receive-pack", "/ensure"];
            (ends.iter().find_map(|end| path.strip_suffix(end))?, Purpose::Other)
        }
        _ => return None,
    };
    Some((purpose, RepoName::from_request_path(repo.as_bytes()).ok()?))
}

fn said(status: StatusCode, text: &str) -> Answer {
    let body = Full::new(Bytes::from(format!("{text}\n"))).map_err(|never| match never {}).boxed();
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    // Git shows what is plain text.
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

impl Shared {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        if let Some(secret) = &self.front.secret
            && request.headers().get(SECRET).map(HeaderValue::as_bytes) != Some(secret.as_bytes())
        {
            return said(StatusCode::FORBIDDEN, "this is another command's way to its mirror");
        }
        let (method, uri) = (request.method().clone(), request.uri().clone());
        if method == Method::GET && uri.path() == "/healthz" {
            return match self.healthy().await {
                true => said(StatusCode::OK, "ok"),
                false => said(StatusCode::SERVICE_UNAVAILABLE, "the mirror does not answer"),
            };
        }
        let Some((purpose, name)) = purpose(&method, uri.path(), uri.query()) else {
            return said(StatusCode::FORBIDDEN, "only fetches and pushes of git go to the mirror from here");
        };
        if self.left.load(Ordering::Relaxed) == 0 {
            return said(StatusCode::INSUFFICIENT_STORAGE, "all that may go to the mirror and come from it has");
        }
        if !self.healthy().await {
            return match (self.front.otherwise, purpose) {
                (Otherwise::Upstream, Purpose::Fetch) => {
                    let mut answer = said(StatusCode::FOUND, "the mirror does not answer");
                    let to = format!("https://{}/info/refs?service=git-upload-pack", name.url_path());
                    if let Ok(to) = HeaderValue::from_str(&to) {
                        answer.headers_mut().insert(header::LOCATION, to);
                    }
                    answer
                }
                _ => said(StatusCode::SERVICE_UNAVAILABLE, "the mirror does not answer"),
            };
        }
        match self.forward(request).await {
            Ok(answer) => answer,
            Err(_) => {
                self.believe(false);
                said(StatusCode::BAD_GATEWAY, "the mirror went away")
            }
        }
    }

    fn believe(&self, well: bool) {
        if let Ok(mut health) = self.health.lock() {
            *health = Some((Instant::now(), well));
        }
    }

    async fn healthy(&self) -> bool {
        let known = self.health.lock().ok().and_then(|health| *health);
        if let Some((at, well)) = known
            && at.elapsed() < BELIEVED
        {
            return well;
        }
        let asked = async {
            let request = self.request(&Method::GET, "/healthz")?.body(Empty::<Bytes>::new().map_err(never).boxed());
            Ok::<_, io::Error>(self.send(request.map_err(io::Error::other)?).await?.status())
        };
        let well = matches!(timeout(PROBE, asked).await, Ok(Ok(StatusCode::OK)));
        self.believe(well);
        well
    }

    fn request(&self, method: &Method, path: &str) -> io::Result<hyper::http::request::Builder> {
        let mut builder = Request::builder().method(method).uri(path).header(header::HOST, self.front.to.authority());
        if let Some(bearer) = &self.front.bearer {
            builder = builder.header(header::AUTHORIZATION, format!("Bearer {bearer}"));
        }
        Ok(builder)
    }

    async fn forward(&self, request: Request<Incoming>) -> io::Result<Answer> {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let mut onward = self.request(request.method(), &path)?;
        let protocol = HeaderName::from_static("git-protocol");
        for name in REQUEST.iter().chain([&protocol]) {
            if let Some(value) = request.headers().get(name) {
                onward = onward.header(name, value);
            }
        }
        let body = Counted { inner: request.into_body(), left: self.left.clone() }.boxed();
        let answer = self.send(onward.body(body).map_err(io::Error::other)?).await?;
        let (mut parts, body) = answer.into_parts();
        strip(&mut parts.headers);
        Ok(Response::from_parts(parts, Counted { inner: body, left: self.left.clone() }.boxed()))
    }

    /// Sends a request on a connection of its own.
    async fn send(&self, request: Request<BoxBody<Bytes, io::Error>>) -> io::Result<Response<Incoming>> {
        match &self.front.to {
            Endpoint::Unix(path) => exchange(tokio::net::UnixStream::connect(path).await?, request).await,
            Endpoint::Tcp { host, port } => {
                let addresses = match host.parse() {
                    Ok(ip) => vec![ip],
                    Err(_) if host == "localhost" => vec![Ipv4Addr::LOCALHOST.into()],
                    Err(_) => resolve(host).await?,
                };
                let mut last = io::Error::from(io::ErrorKind::NotFound);
                for ip in addresses {
                    match timeout(Duration::from_secs(5), tokio::net::TcpStream::connect((ip, *port))).await {
                        Ok(Ok(stream)) => {
                            let _ = stream.set_nodelay(true);
                            return exchange(stream, request).await;
                        }
                        Ok(Err(error)) => last = error,
                        Err(_) => last = io::ErrorKind::TimedOut.into(),
                    }
                }
                Err(last)
            }
        }
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<BoxBody<Bytes, io::Error>>,
) -> io::Result<Response<Incoming>> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(async move { drop(connection.await) });
    sender.send_request(request).await.map_err(io::Error::other)
}

fn never(never: Infallible) -> io::Error {
    match never {}
}

/// Takes away what is about one connection, and what the mirror may not say to a client inside.
fn strip(headers: &mut HeaderMap) {
    for name in HOP {
        headers.remove(name);
    }
    headers.remove(header::SET_COOKIE);
}

/// A body whose bytes are counted down; at zero it is cut.
struct Counted {
    inner: Incoming,
    left: Arc<AtomicU64>,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = self.get_mut();
        let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(context) else { return Poll::Pending };
        Poll::Ready(frame.map(|frame| {
            let frame = frame.map_err(io::Error::other)?;
            let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
            let before =
                this.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(bytes)));
            match before {
                Ok(left) if left >= bytes => Ok(frame),
                _ => Err(io::Error::other("all that may go to the mirror and come from it has")),
            }
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::super::probe::probe;
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::os::unix::net::UnixListener;

    /// A mirror on a Unix socket that tells what it was asked; it answers as many times as is said.
    fn telling(path: &std::path::Path, times: usize) -> std::thread::JoinHandle<Vec<String>> {
        let listener = UnixListener::bind(path).unwrap();
        std::thread::spawn(move || {
            let mut heads = Vec::new();
            for _ in 0..times {
                let (mut stream, _) = listener.accept().unwrap();
                let (mut head, mut byte) = (Vec::new(), [0u8; 1]);
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() > 0 {
                    head.push(byte[0]);
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nSet-Cookie: a\r\n\r\nhi\n").unwrap();
                heads.push(String::from_utf8(head).unwrap());
            }
            heads
        })
    }

    fn ask(port: u16, text: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn serving(front: Front) -> Fronted {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::spawn(move || front.serve(listener, async { drop(ended.await) }).unwrap());
        Fronted { port, secret: String::new(), end: Some(end), thread: Some(thread) }
    }

    #[test]
    fn only_git_goes_through_and_as_the_session() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let mirror = telling(&path, 2);
        let front = Front {
            to: Endpoint::Unix(path),
            bearer: Some("t0ken".into()),
            secret: None,
            otherwise: Otherwise::Nothing,
            most: 1000,
        };
        let fronted = serving(front);
        let lines =
            "Host: x\r\nConnection: close\r\nAuthorization: Bearer mine\r\nCookie: a\r\nGit-Protocol: version=2\r\n";
        let refs = format!("GET /h/o/n/info/refs?service=git-upload-pack HTTP/1.1\r\n{lines}\r\n");
        let answer = ask(fronted.port, &refs);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nhi\n"), "{answer}");
        assert!(!answer.to_lowercase().contains("cookie"), "{answer}");
        for path in
            ["/metrics", "/v1/repos", "/hooks/github", "/h/o/n/status", "/h/../x/info/refs?service=git-upload-pack"]
        {
            let answer = ask(fronted.port, &format!("GET {path} HTTP/1.1\r\n{lines}\r\n"));
            assert!(answer.starts_with("HTTP/1.1 403 "), "{path}: {answer}");
            assert!(answer.ends_with("only fetches and pushes of git go to the mirror from here\n"), "{answer}");
        }
        drop(fronted);
        let heads = mirror.join().unwrap();
        assert!(heads[0].starts_with("GET /healthz "), "{}", heads[0]);
        let asked = heads[1].to_lowercase();
        assert!(
            asked.contains("authorization: bearer t0ken\r\n") && asked.contains("git-protocol: version=2"),
            "{asked}"
        );
        assert!(!asked.contains("mine") && !asked.contains("cookie"), "{asked}");
    }

    #[test]
    fn while_the_mirror_is_down_fetches_are_led_to_the_upstream() {
        let gone = Endpoint::Unix("/nowhere/sock".into());
        for (otherwise, status) in [(Otherwise::Upstream, "302 Found"), (Otherwise::Nothing, "503 Service Unavailable")]
        {
            let fronted = serving(Front { to: gone.clone(), bearer: None, secret: None, otherwise, most: 10 });
            let get =
                |path: &str| ask(fronted.port, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
            let answer = get("/h/o/n/info/refs?service=git-upload-pack");
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
            assert!(answer.ends_with("the mirror does not answer\n"), "{answer}");
            let leads = answer.contains("location: https://h/o/n/info/refs?service=git-upload-pack\r\n");
            assert_eq!(leads, otherwise == Otherwise::Upstream, "{answer}");
            let push = get("/h/o/n/info/refs?service=git-receive-pack");
            assert!(push.starts_with("HTTP/1.1 503 "), "{push}");
        }
    }

    #[test]
    fn a_relay_may_stand_between() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("inside");
        let listener = UnixListener::bind(&path).unwrap();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let to = Endpoint::Unix("/nowhere/sock".into());
        let front = Front { to, bearer: None, secret: None, otherwise: Otherwise::Nothing, most: 10 };
        let thread = std::thread::spawn(move || front.serve(listener, async { drop(ended.await) }).unwrap());
        let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        drop(end);
        thread.join().unwrap();
    }

    #[test]
    fn a_front_of_this_command_hears_only_who_knows_its_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let mirror = telling(&path, 1);
        let fronted = Front::own(Endpoint::Unix(path), None).unwrap();
        let get = |lines: &str| {
            ask(fronted.port, &format!("GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{lines}\r\n"))
        };
        let answer = get("");
        assert!(
            answer.starts_with("HTTP/1.1 403 ") && answer.ends_with("this is another command's way to its mirror\n"),
            "{answer}"
        );
        let setting = fronted.secret(&fronted.url());
        assert_eq!(setting.key, format!("http.{}/.extraHeader", fronted.url()));
        let answer = get(&format!("{}\r\n", setting.value));
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let url: Endpoint = fronted.url().parse().unwrap();
        assert!(probe(&url, Duration::from_secs(5)).is_err());
        drop(fronted);
        mirror.join().unwrap();
    }

    #[test]
    fn what_may_go_through_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let mirror = telling(&path, 2);
        let fronted = serving(Front {
            to: Endpoint::Unix(path),
            bearer: None,
            secret: None,
            otherwise: Otherwise::Nothing,
            most: 2,
        });
        let refs = "GET /h/o/n/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let answer = ask(fronted.port, refs);
        assert!(!answer.ends_with("hi\n"), "{answer}");
        let answer = ask(fronted.port, refs);
        assert!(answer.starts_with("HTTP/1.1 507 "), "{answer}");
        assert!(answer.ends_with("all that may go to the mirror and come from it has\n"), "{answer}");
        drop(fronted);
        mirror.join().unwrap();
    }
}
