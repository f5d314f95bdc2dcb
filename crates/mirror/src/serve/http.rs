//! One HTTP connection: who it is, and which part of the service answers; git's smart HTTP
//! (gitprotocol-http(5)).
//!
//! ```text
//! GET  /{repo}/info/refs?service=git-upload-pack|git-receive-pack
//! POST /{repo}/git-upload-pack | /{repo}/git-receive-pack
//! ```

use super::ask::Protocol;
use super::queue::RETRY;
use super::relay::{Failure, Output, Source};
use super::smart::{Ask, Refusal, Smart};
use super::{Answer, Asked, Request, Response, text};
use crate::catalog::{Entry, Found};
use crate::event::{Event, GitService, Outcome, Served, Shape, Transport};
use crate::identity::Gate;
use crate::name::RepoName;
use crate::pktline;
use crate::serve::Endpoint;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Frame;
use hyper::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, EXPIRES, HeaderMap, HeaderName, HeaderValue,
    LOCATION, PRAGMA, RETRY_AFTER, WWW_AUTHENTICATE,
};
use hyper::service::service_fn;
use hyper::{Method, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Pieces of an answer that wait for a client to read.
const AHEAD: usize = 2;
/// How old what is served is, in seconds since it was last compared with the upstream.
const AGE: HeaderName = HeaderName::from_static("x-mirror-age");

/// What all connections share.
pub struct Http {
    /// Git's services.
    pub smart: Arc<Smart>,
    /// Parts that answer paths of their own, asked in this order.
    pub endpoints: Vec<Arc<dyn Endpoint>>,
}

impl Http {
    /// Serves a connection until its end, or until `stop`: then the request that runs is the last one.
    pub async fn connection(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        gate: Gate,
        peer: Option<SocketAddr>,
        stop: CancellationToken,
    ) {
        let service = service_fn(|request| {
            let (http, gate) = (self.clone(), gate.clone());
            async move { Ok::<_, Infallible>(http.answer(request, gate, peer).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.smart.settings.idle_timeout)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        tokio::select! {
            // The client's ways to break off are of no interest to anybody.
            _ = connection.as_mut() => return,
            () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    }

    async fn answer(&self, request: Request, gate: Gate, peer: Option<SocketAddr>) -> Response {
        let since = Instant::now();
        let token = request.headers().get(AUTHORIZATION).and_then(bearer);
        let Some(who) = self.smart.catalog.now().identify(&gate, token, SystemTime::now()) else {
            let mut refused = text(StatusCode::UNAUTHORIZED, "no session has this token");
            refused.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return refused;
        };
        let asked = Asked { who, gate, peer };
        let endpoint = self.endpoints.iter().find(|part| part.takes(request.method(), request.uri().path(), &asked));
        match endpoint {
            Some(endpoint) => {
                let answer: Answer<'_> = endpoint.answer(request, &asked);
                answer.await
            }
            None => self.git(request, asked, since).await,
        }
    }

    async fn git(&self, request: Request, asked: Asked, since: Instant) -> Response {
        let Some(route) = Route::of(request.method(), request.uri().path(), request.uri().query()) else {
            return text(StatusCode::NOT_FOUND, "not found");
        };
        let (name, service, refs) = match route {
            Route::Dumb => return text(StatusCode::FORBIDDEN, "only git's smart protocol is spoken here"),
            Route::Refs(name, service) => (name, service, true),
            Route::Call(name, service) => (name, service, false),
        };
        let not_found = || text(StatusCode::NOT_FOUND, "no such repository");
        let Ok(name) = RepoName::from_request_path(name.as_bytes()) else { return not_found() };
        let protocol = request.headers().get("git-protocol").map(|value| Protocol::parse(value.as_bytes()));
        let protocol = protocol.unwrap_or_default();
        let (response, outcome) = match self.smart.find(&name, &asked) {
            Found::Serve(entry) => {
                let ask = Ask { entry, asked, transport: Transport::Http, protocol, since };
                return match refs {
                    true => self.refs(ask, service).await,
                    false => self.call(ask, service, request).await,
                };
            }
            // Git follows a redirection of its first request only.
            Found::Redirect(url) if refs => {
                let location = format!("{url}/info/refs?service={}", word(service));
                let mut sent_on = text(StatusCode::FOUND, format_args!("not here yet: {url} has it"));
                if let Ok(location) = HeaderValue::try_from(location) {
                    sent_on.headers_mut().insert(LOCATION, location);
                }
                (sent_on, Outcome::Redirected)
            }
            Found::Redirect(_) | Found::Unavailable => {
                (busy(text(StatusCode::SERVICE_UNAVAILABLE, "the repository is not ready: try again")), Outcome::Busy)
            }
            Found::Gone => {
                (text(StatusCode::GONE, "the upstream does not have this repository any more"), Outcome::Gone)
            }
            Found::Unknown => (not_found(), Outcome::Unknown),
        };
        self.smart.observer.observe(&Event::Served(Served {
            transport: Transport::Http,
            service: Some(service),
            protocol: protocol.version,
            shape: if refs { Shape::Refs } else { Shape::Other },
            // A name that is not registered would make a label of whatever a client sends.
            repo: (outcome != Outcome::Unknown).then_some(name),
            session: asked.who.session().map(|session| session.id.clone()),
            outcome,
            queued: Duration::ZERO,
            took: since.elapsed(),
            received: 0,
            sent: 0,
            said: String::new(),
        }));
        response
    }

    /// Answers `info/refs`.
    async fn refs(&self, ask: Ask, service: GitService) -> Response {
        let told = match service {
            GitService::UploadPack => self.smart.advertise(&ask).await,
            GitService::ReceivePack => self.smart.advertise_push(&ask).await,
        };
        let (response, outcome, sent, said) = match told {
            Ok(bytes) => {
                let mut body = Vec::with_capacity(bytes.len() + 40);
                // v2 begins with its own first line.
                if ask.protocol.version != 2 || service == GitService::ReceivePack {
                    pktline::write(&mut body, format!("# service={}\n", word(service)).as_bytes());
                    pktline::flush(&mut body);
                }
                body.extend_from_slice(&bytes);
                let sent = body.len() as u64;
                let content_type = match service {
                    GitService::UploadPack => "application/x-git-upload-pack-advertisement",
                    GitService::ReceivePack => "application/x-git-receive-pack-advertisement",
                };
                let mut response = super::whole(StatusCode::OK, content_type, body);
                never_cached(response.headers_mut(), &ask.entry);
                (response, Outcome::Done, sent, String::new())
            }
            Err(refusal) => {
                let (response, outcome, said) = refused(refusal);
                (response, outcome, 0, said)
            }
        };
        let ended = super::relay::Ended { outcome, sent, said };
        self.smart.served(&ask, service, Shape::Refs, Duration::ZERO, 0, ended);
        response
    }

    /// Answers a call of a service: git runs beside this connection, and ends with it.
    async fn call(&self, ask: Ask, service: GitService, request: Request) -> Response {
        let (expected, answered) = match service {
            GitService::UploadPack => ("application/x-git-upload-pack-request", "application/x-git-upload-pack-result"),
            GitService::ReceivePack => {
                ("application/x-git-receive-pack-request", "application/x-git-receive-pack-result")
            }
        };
        if request.headers().get(CONTENT_TYPE).is_none_or(|found| found != expected) {
            return text(StatusCode::UNSUPPORTED_MEDIA_TYPE, format_args!("the body must be {expected}"));
        }
        let settings = &self.smart.settings;
        let (most, inflated) = match service {
            GitService::UploadPack => (settings.request_body_max, settings.inflate_max),
            GitService::ReceivePack => (self.smart.scratch.most(), self.smart.scratch.most()),
        };
        let inflated = match request.headers().get(CONTENT_ENCODING).map(HeaderValue::as_bytes) {
            None | Some(b"identity") => None,
            Some(b"gzip" | b"x-gzip") => Some(inflated),
            Some(_) => return text(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the only encoding of a body is gzip"),
        };
        let mut source = Source::body(request.into_body(), most, inflated, settings.idle_timeout);
        let (sender, mut receiver) = mpsc::channel(AHEAD);
        let (smart, entry) = (self.smart.clone(), ask.entry.clone());
        let work = tokio::spawn(async move {
            let mut output = Output::Body(sender);
            match service {
                GitService::UploadPack => smart.upload(&ask, &mut source, &mut output).await,
                GitService::ReceivePack => smart.receive(&ask, &mut source, &mut output).await,
            }
        });
        // Whoever drops this (the connection is gone) drops the work, and with it git.
        let mut work = AbortOnDropHandle::new(work);
        let first = receiver.recv().await;
        let mut response = match first {
            Some(Ok(bytes)) => {
                let mut response = Response::new(Streamed { first: Some(bytes), receiver, _work: work }.boxed_unsync());
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(answered));
                response
            }
            Some(Err(failure)) => return failed(&failure),
            None => match (&mut work).await {
                Ok(Ok(())) => super::whole(StatusCode::OK, answered, Bytes::new()),
                Ok(Err(refusal)) => return refused(refusal).0,
                Err(_) => return failed(&Failure::Git),
            },
        };
        never_cached(response.headers_mut(), &entry);
        response
    }
}

/// A body of what comes from a channel; the work ends with it.
struct Streamed {
    first: Option<Bytes>,
    receiver: mpsc::Receiver<Result<Bytes, Failure>>,
    _work: AbortOnDropHandle<Result<(), Refusal>>,
}

impl hyper::body::Body for Streamed {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = self.get_mut();
        let next = match this.first.take() {
            Some(bytes) => Some(Ok(bytes)),
            None => std::task::ready!(this.receiver.poll_recv(cx)),
        };
        // A body that breaks off is not ended in order: the client knows that there should be more.
        Poll::Ready(next.map(|next| next.map(Frame::data).map_err(|_| io::Error::other("git failed"))))
    }
}

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
enum Route<'p> {
    Refs(&'p str, GitService),
    Call(&'p str, GitService),
    /// The protocol without a server, and services that are not given.
    Dumb,
}

impl<'p> Route<'p> {
    fn of(method: &Method, path: &'p str, query: Option<&str>) -> Option<Self> {
        let called = |end: &str| path.strip_suffix(end);
        if let Some(name) = called("/info/refs") {
            if method != Method::GET {
                return None;
            }
            let mut words = query.unwrap_or_default().split('&');
            return Some(match words.find_map(|word| word.strip_prefix("service=")) {
                Some("git-upload-pack") => Self::Refs(name, GitService::UploadPack),
                Some("git-receive-pack") => Self::Refs(name, GitService::ReceivePack),
                _ => Self::Dumb,
            });
        }
        if method == Method::POST {
            return called("/git-upload-pack")
                .map(|name| Self::Call(name, GitService::UploadPack))
                .or_else(|| called("/git-receive-pack").map(|name| Self::Call(name, GitService::ReceivePack)))
                .or_else(|| called("/git-upload-archive").map(|_| Self::Dumb));
        }
        let dumb = method == Method::GET && (path.ends_with("/HEAD") || path.contains("/objects/"));
        dumb.then_some(Self::Dumb)
    }
}

fn word(service: GitService) -> &'static str {
    match service {
        GitService::UploadPack => "git-upload-pack",
        GitService::ReceivePack => "git-receive-pack",
    }
}

/// What every answer of git says to caches (S2), and how fresh it is.
fn never_cached(headers: &mut HeaderMap, entry: &Entry) {
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, max-age=0, must-revalidate"));
    headers.insert(PRAGMA, HeaderValue::from_static("no-cache"));
    headers.insert(EXPIRES, HeaderValue::from_static("Fri, 01 Jan 1980 00:00:00 GMT"));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64);
    if let Some(age) = entry.live.refreshed().map(|then| now.saturating_sub(then).max(0)) {
        headers.insert(AGE, HeaderValue::from(age));
    }
}

fn busy(mut response: Response) -> Response {
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(RETRY.as_secs()));
    response
}

fn refused(refusal: Refusal) -> (Response, Outcome, String) {
    match refusal {
        Refusal::Busy => {
            (busy(text(StatusCode::SERVICE_UNAVAILABLE, super::queue::Busy)), Outcome::Busy, String::new())
        }
        Refusal::Failed(said) => (failed(&Failure::Git), Outcome::Failed, said),
    }
}

fn failed(failure: &Failure) -> Response {
    match failure {
        Failure::TooLarge => text(StatusCode::PAYLOAD_TOO_LARGE, "the request is too large"),
        Failure::Malformed => text(StatusCode::BAD_REQUEST, "the request is not git's, or was not sent to its end"),
        Failure::Git => text(StatusCode::INTERNAL_SERVER_ERROR, "the mirror cannot serve this repository now"),
    }
}

/// The token of `Authorization: Bearer …`, as git sends it with `http.extraHeader`.
fn bearer(header: &HeaderValue) -> Option<&[u8]> {
    let value = header.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_by_their_ends() {
        let get = |path, query| Route::of(&Method::GET, path, query);
        let upload = Some("service=git-upload-pack");
        assert_eq!(get("/h/o/r/info/refs", upload), Some(Route::Refs("/h/o/r", GitService::UploadPack)));
        let both = Some("x=1&service=git-receive-pack");
        assert_eq!(get("/h/r.git/info/refs", both), Some(Route::Refs("/h/r.git", GitService::ReceivePack)));
        assert_eq!(get("/h/r/info/refs", None), Some(Route::Dumb));
        assert_eq!(get("/h/r/info/refs", Some("service=git-upload-archive")), Some(Route::Dumb));
        assert_eq!(get("/h/r/HEAD", None), Some(Route::Dumb));
        assert_eq!(get("/h/r/objects/info/packs", None), Some(Route::Dumb));
        assert_eq!(get("/h/r/git-upload-pack", None), None);
        let post = |path| Route::of(&Method::POST, path, None);
        assert_eq!(post("/h/r/git-upload-pack"), Some(Route::Call("/h/r", GitService::UploadPack)));
        assert_eq!(post("/h/r/git-receive-pack"), Some(Route::Call("/h/r", GitService::ReceivePack)));
        assert_eq!(post("/h/r/git-upload-archive"), Some(Route::Dumb));
        assert_eq!(post("/h/r/info/refs"), None);
    }

    #[test]
    fn tokens_are_bearers() {
        let of = |text: &'static str| bearer(&HeaderValue::from_static(text)).map(<[u8]>::to_vec);
        assert_eq!(of("Bearer abc"), Some(b"abc".to_vec()));
        assert_eq!(of("bearer  abc "), Some(b"abc".to_vec()));
        assert_eq!(of("Basic abc"), None);
        assert_eq!(of("x"), None);
    }
}
