//! What operators ask: health, readiness, numbers, one page.
//!
//! ```text
//! GET /healthz       200 while this process answers at all
//! GET /readyz        200 when clients are served, 503 with the reason else
//! GET /metrics       OpenMetrics
//! GET / /status.json the page, and the same as JSON
//! ```
//!
//! On a listener that is not the administrator's private repositories are not named (X6), and a session sees
//! whether the service is well and nothing else.

use crate::identity::Identity;
use crate::metrics::{CONTENT_TYPE, Metrics};
use crate::serve::{Answer, Asked, Endpoint, Request, json, text, whole};
use crate::status_page::Status;
use hyper::{Method, StatusCode};
use std::fmt;
use std::sync::Arc;

/// Tells the state of now. Called for each page and scrape: it must not block.
pub type Gather = Box<dyn Fn() -> Status + Send + Sync>;
/// Tells why clients are not served just now, if they are not.
pub type Ready = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// The endpoint.
pub struct Operate {
    /// The numbers.
    pub metrics: Arc<Metrics>,
    /// The state.
    pub gather: Gather,
    /// Whether clients are served.
    pub ready: Ready,
}

impl fmt::Debug for Operate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operate").finish_non_exhaustive()
    }
}

impl Endpoint for Operate {
    fn takes(&self, method: &Method, path: &str, asked: &Asked) -> bool {
        let read = method == Method::GET || method == Method::HEAD;
        let own = match path {
            "/healthz" | "/readyz" => true,
            "/" | "/status.json" | "/metrics" => !matches!(asked.who, Identity::Session(_)),
            _ => false,
        };
        read && own
    }

    fn answer<'a>(&'a self, request: Request, asked: &'a Asked) -> Answer<'a> {
        let status = || match asked.who {
            Identity::Admin => (self.gather)(),
            _ => (self.gather)().public(),
        };
        let answer = match request.uri().path() {
            "/healthz" => text(StatusCode::OK, "ok"),
            "/readyz" => match (self.ready)() {
                Ok(()) => text(StatusCode::OK, "ready"),
                Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, reason),
            },
            "/metrics" => whole(StatusCode::OK, CONTENT_TYPE, self.metrics.render(&status())),
            "/status.json" => json(StatusCode::OK, &status()),
            _ => page(&status()),
        };
        Box::pin(async move { answer })
    }
}

/// The page; a browser is told to run and to load nothing of it.
fn page(status: &Status) -> crate::serve::Response {
    use hyper::header::{CONTENT_SECURITY_POLICY, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
    let mut answer = whole(StatusCode::OK, "text/html; charset=utf-8", status.html());
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ] {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}
