//! One plain request and its answer.
//!
//! ```text
//!   head (read strictly) ──► decided, dialled, recorded ──► hyper reads exactly this message ──► origin
//!                                                            hyper writes the answer         ◄──
//! ```
//!
//! hyper never sees where the next request starts: it is given the bytes of one head and of its body and
//! then nothing more, so each head of a kept connection is read strictly and decided about anew. A
//! chunked body has no end that could be known without reading it: such a request is the last of its connection.

use crate::head::{Framing, Head};
use crate::policy::Target;
use crate::stream::Stream;
use crate::tunnel::Moved;
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{self, AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

/// Fields that are about one connection, not about the message (RFC 9110 §7.6.1), and what has been seen to by then.
const HOP: [&str; 10] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "expect",
];

type Answer = BoxBody<Bytes, hyper::Error>;

/// What one exchange shares between the connections and whoever watches it.
pub(crate) struct Exchange {
    pub(crate) moved: Moved,
    /// The answer has been made: nothing more is to come.
    answered: Cell<bool>,
    /// Whoever waits for the request to go on.
    waiting: RefCell<Option<Waker>>,
}

impl Exchange {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self { moved: Moved::new(), answered: Cell::new(false), waiting: RefCell::new(None) })
    }

    fn answered(&self) {
        self.answered.set(true);
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }
}

/// Sends the request whose head has been read from `buffer`, and its answer back. Returns the connection
/// and what came after the request, if it can be used again.
pub(crate) async fn exchange(
    stream: Stream,
    buffer: BytesMut,
    length: usize,
    head: &Head,
    upstream: TcpStream,
    exchange: &Rc<Exchange>,
) -> Option<(Stream, BytesMut)> {
    let (sender, connection) = hyper::client::conn::http1::Builder::new()
        .preserve_header_case(true)
        .handshake::<_, Counted>(TokioIo::new(upstream))
        .await
        .ok()?;
    let driver = Aborted(tokio::task::spawn_local(connection).abort_handle());
    let closes = !head.keep_alive || head.body == Framing::Chunked;
    let sender = RefCell::new(Some(sender));
    let service = service_fn(|request: Request<Incoming>| {
        let sender = sender.borrow_mut().take();
        Box::pin(async move {
            let mut answer = match sender {
                Some(mut sender) => match outgoing(request, head, exchange) {
                    Some(request) => match sender.send_request(request).await {
                        Ok(answer) => incoming(answer, exchange),
                        Err(_) => failed("the server gave no answer that could be read", exchange),
                    },
                    None => failed("the request could not be passed on", exchange),
                },
                None => failed("there was one request", exchange),
            };
            if closes {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(answer)
        })
    });
    let message = Message { stream, buffer, head: length, body: head.body, exchange: exchange.clone() };
    let mut serving = hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .auto_date_header(false)
        .preserve_header_case(true)
        .max_headers(crate::head::MAX_FIELDS)
        .serve_connection(TokioIo::new(message), service);
    // Not to its own shutdown: the connection is ours.
    let served = std::future::poll_fn(|cx| serving.poll_without_shutdown(cx)).await;
    let message = serving.into_parts().io.into_inner();
    drop(driver);
    (served.is_ok() && !closes && message.head == 0 && message.body == Framing::Length(0))
        .then_some((message.stream, message.buffer))
}

/// The request as the origin gets it: its own form of target, the one name as `Host`.
fn outgoing(request: Request<Incoming>, head: &Head, exchange: &Rc<Exchange>) -> Option<Request<Counted>> {
    let (mut parts, body) = request.into_parts();
    // The same bytes, read by the same parser: anything else is our mistake, and goes nowhere.
    if parts.method.as_str() != head.method {
        return None;
    }
    parts.uri = head.path.as_deref()?.parse::<Uri>().ok()?;
    strip(&mut parts.headers);
    parts.headers.insert(HOST, HeaderValue::from_str(&authority(&head.target)).ok()?);
    Some(Request::from_parts(parts, Counted { inner: body, exchange: exchange.clone(), answer: false }))
}

/// The answer as inside gets it. Whatever its status: what it redirects to is asked for, or not, from inside.
fn incoming(answer: Response<Incoming>, exchange: &Rc<Exchange>) -> Response<LocalAnswer> {
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return failed("the server changed the protocol unasked", exchange);
    }
    let (mut parts, body) = answer.into_parts();
    strip(&mut parts.headers);
    // What the origin speaks is not what we do.
    parts.version = hyper::Version::HTTP_11;
    Response::from_parts(parts, LocalAnswer::Passed(Counted { inner: body, exchange: exchange.clone(), answer: true }))
}

fn failed(why: &'static str, exchange: &Rc<Exchange>) -> Response<LocalAnswer> {
    let body = Full::new(Bytes::from(format!("{why}\n"))).map_err(|never: Infallible| match never {}).boxed();
    let mut answer = Response::new(LocalAnswer::Own(body, Finished(exchange.clone())));
    *answer.status_mut() = StatusCode::BAD_GATEWAY;
    answer.headers_mut().insert("content-type", HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

/// Takes out what is about the connection, also what `Connection` says is.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        // `Content-Length` and `Host` say what the message is: nobody may have them taken out.
        .filter(|name| !["content-length", "host"].contains(&name.trim().to_ascii_lowercase().as_str()))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().map(HeaderName::as_str).chain(HOP) {
        headers.remove(name);
    }
}

fn authority(target: &Target) -> String {
    match target.port {
        80 => target.host.to_string(),
        port => format!("{}:{port}", target.host),
    }
}

/// Ends a task when it goes out of scope.
struct Aborted(AbortHandle);

impl Drop for Aborted {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A connection as hyper sees it: the bytes of one message.
struct Message {
    stream: Stream,
    /// Read and not yet passed on.
    buffer: BytesMut,
    /// Bytes of the head that are still to be passed on; all of them are in the buffer.
    head: usize,
    /// What is left of the body.
    body: Framing,
    exchange: Rc<Exchange>,
}

impl AsyncRead for Message {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let limit = match (this.head, this.body) {
            (0, Framing::Length(0)) if this.exchange.answered.get() => return Poll::Ready(Ok(())),
            (0, Framing::Length(0)) => {
                // An end now would look as if the client had gone before the answer.
                *this.exchange.waiting.borrow_mut() = Some(cx.waker().clone());
                return Poll::Pending;
            }
            (0, Framing::Length(left)) => usize::try_from(left).unwrap_or(usize::MAX),
            (0, Framing::Chunked) => usize::MAX,
            (head, _) => head,
        };
        let n = if this.buffer.is_empty() {
            // Ours to write to: what is read through it is known to be there.
            let room = limit.min(into.remaining());
            let mut part = ReadBuf::new(into.initialize_unfilled_to(room));
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut part))?;
            let n = part.filled().len();
            into.advance(n);
            n
        } else {
            let n = limit.min(this.buffer.len()).min(into.remaining());
            into.put_slice(&this.buffer[..n]);
            this.buffer.advance(n);
            n
        };
        if this.head > 0 {
            this.head -= n;
        } else if let Framing::Length(left) = &mut this.body {
            *left -= n as u64;
        }
        this.exchange.moved.last.set(tokio::time::Instant::now());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Message {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A body whose bytes are counted as they pass.
struct Counted {
    inner: Incoming,
    exchange: Rc<Exchange>,
    answer: bool,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(cx));
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            let moved = &this.exchange.moved;
            moved.add(if this.answer { &moved.received } else { &moved.sent }, data.len());
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.answer {
            self.exchange.answered();
        }
    }
}

/// Says that the answer has been made when it goes out of scope.
struct Finished(Rc<Exchange>);

impl Drop for Finished {
    fn drop(&mut self) {
        self.0.answered();
    }
}

/// The origin's answer, or one of ours.
enum LocalAnswer {
    Passed(Counted),
    Own(Answer, #[allow(dead_code, reason = "for its drop")] Finished),
}

impl Body for LocalAnswer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            LocalAnswer::Passed(body) => Pin::new(body).poll_frame(cx),
            LocalAnswer::Own(body, _) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            LocalAnswer::Passed(body) => body.is_end_stream(),
            LocalAnswer::Own(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            LocalAnswer::Passed(body) => body.size_hint(),
            LocalAnswer::Own(body, _) => body.size_hint(),
        }
    }
}
