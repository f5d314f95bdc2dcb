//! Listeners and what is spoken on them.
//!
//! ```text
//! Listener { socket, speaks, gate } ─► accept ─► http ─┬─► an Endpoint (health, ensure, admin, …)
//!                                          │           └─► smart HTTP ─┐
//!                                          └─► git:// ─────────────────┴─► one git process, in its turn
//! ```

pub mod ask;
pub mod daemon;
pub mod http;
pub mod listen;
pub mod process;
pub mod queue;
pub mod relay;
pub mod smart;

use crate::config;
use crate::identity::{Gate, Identity};
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, StatusCode};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

/// How much there may be of everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Git processes that serve at the same time.
    pub max_inflight: usize,
    /// Of these, for one repository.
    pub max_inflight_repo: usize,
    /// Requests that wait for their turn; who comes when there are so many is told to come again.
    pub queue: usize,
    /// How long a request waits for its turn.
    pub queue_timeout: Duration,
    /// How long a connection may be silent in the middle of a request, or between two.
    pub idle_timeout: Duration,
    /// Bytes of the body of a fetch request, as it is sent.
    pub request_body_max: u64,
    /// Bytes of it after it was inflated.
    pub inflate_max: u64,
}

impl From<&config::Serve> for Settings {
    fn from(serve: &config::Serve) -> Self {
        Self {
            max_inflight: serve.max_inflight,
            // One repository leaves room for others.
            max_inflight_repo: (serve.max_inflight * 3 / 4).max(1),
            queue: serve.queue,
            queue_timeout: serve.queue_timeout,
            idle_timeout: serve.idle_timeout,
            request_body_max: serve.request_body_max,
            inflate_max: serve.inflate_max,
        }
    }
}

impl Default for Settings {
    /// What a configuration that says nothing says.
    fn default() -> Self {
        Self::from(&config::Config::default().serve)
    }
}

/// The body of an answer.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;
/// An answer.
pub type Response = hyper::Response<Body>;
/// A request.
pub type Request = hyper::Request<Incoming>;
/// An answer that is being made.
pub type Answer<'a> = Pin<Box<dyn Future<Output = Response> + Send + 'a>>;

/// Who asks, and where.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Who it is.
    pub who: Identity,
    /// The listener's gate.
    pub gate: Gate,
    /// The address, on TCP.
    pub peer: Option<SocketAddr>,
}

/// A part of the service that answers some paths: health, metrics, ensure, webhooks, the admin API.
pub trait Endpoint: Send + Sync + 'static {
    /// Whether a request is for it. The first that says so answers.
    fn takes(&self, method: &Method, path: &str, asked: &Asked) -> bool;

    /// Answers.
    fn answer<'a>(&'a self, request: Request, asked: &'a Asked) -> Answer<'a>;
}

/// An answer that is all there, not to be kept by caches.
pub fn whole(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = hyper::Response::new(Full::new(body.into()).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    headers.insert(hyper::header::CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-cache"));
    response
}

/// A line of text for people.
pub fn text(status: StatusCode, line: impl std::fmt::Display) -> Response {
    whole(status, "text/plain; charset=utf-8", format!("{line}\n"))
}

/// JSON, with a line's end.
pub fn json(status: StatusCode, value: &impl serde::Serialize) -> Response {
    match serde_json::to_string_pretty(value) {
        Ok(body) => whole(status, "application/json", body + "\n"),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error),
    }
}
