//! One HTTP connection: who it is, and which part of the service answers.

use super::{Answer, Asked, Request, Response, text};
use crate::catalog::Reader;
use crate::identity::Gate;
use crate::serve::{Endpoint, Settings};
use hyper::StatusCode;
use hyper::header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

/// What all connections share.
pub struct Http {
    /// What may be served.
    pub catalog: Reader,
    /// Parts that answer paths of their own, asked in this order.
    pub endpoints: Vec<Arc<dyn Endpoint>>,
    /// How much there may be of everything.
    pub settings: Settings,
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
            .header_read_timeout(self.settings.idle_timeout)
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
        let token = bearer(request.headers().get(AUTHORIZATION));
        let Some(who) = self.catalog.now().identify(&gate, token.as_deref(), SystemTime::now()) else {
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
            None => text(StatusCode::NOT_FOUND, "not found"),
        }
    }
}

/// The token of `Authorization: Bearer …`, or the password of `Basic …`: git knows the latter only.
fn bearer(header: Option<&HeaderValue>) -> Option<Vec<u8>> {
    let (scheme, value) = header?.to_str().ok()?.split_once(' ')?;
    match scheme {
        _ if scheme.eq_ignore_ascii_case("bearer") => Some(value.trim().as_bytes().to_vec()),
        _ => None,
    }
}
