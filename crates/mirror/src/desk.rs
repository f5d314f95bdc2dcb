//! What the endpoints that change or wait for something share: the registry, and the parts that run.

use crate::config;
use crate::credential::Keeper;
use crate::identity::{Gate, SessionId};
use crate::layout::Layout;
use crate::refresh::Refresher;
use crate::registry::Registry;
use crate::serve::listen::{ListenError, Listener, Socket, Speaks};
use crate::serve::{Request, Response, text};
use crate::service::{ListenerId, Service};
use http_body_util::{BodyExt, Limited};
use hyper::StatusCode;
use sandbox_git::Git;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

/// How long the body of a request may take.
const BODY: Duration = Duration::from_secs(30);

/// Shared by [`Ensure`](crate::ensure::Ensure), [`Hooks`](crate::webhook::Hooks) and
/// [`Admin`](crate::admin::Admin). Made before the service, which it is told of when that runs.
pub struct Desk {
    /// The git to run.
    pub git: Git,
    /// Where mirrors are.
    pub layout: Layout,
    /// What is mirrored.
    pub registry: Registry,
    /// `[webhook]`, and where its secret comes from.
    pub webhook: Option<(config::Webhook, Keeper)>,
    running: OnceLock<(Refresher, Service)>,
    doors: Mutex<HashMap<SessionId, ListenerId>>,
}

impl Desk {
    /// Makes it.
    pub fn new(git: Git, layout: Layout, registry: Registry, webhook: Option<(config::Webhook, Keeper)>) -> Arc<Self> {
        Arc::new(Self { git, layout, registry, webhook, running: OnceLock::new(), doors: Mutex::default() })
    }

    /// Says that these run now, and opens the sockets of sessions that were there before a restart.
    pub fn running(&self, refresher: Refresher, service: Service) {
        let _ = self.running.set((refresher, service));
        self.expire();
        for session in self.registry.now().sessions.values().filter(|session| session.token.is_none()) {
            // Who cannot be reached is told by connecting.
            let _ = self.open(&session.id);
        }
    }

    /// The refresher, or the answer that it does not run yet.
    pub(crate) fn refresher(&self) -> Result<&Refresher, Box<Response>> {
        let starting = || Box::new(text(StatusCode::SERVICE_UNAVAILABLE, "the mirror is starting"));
        self.running.get().map(|(refresher, _)| refresher).ok_or_else(starting)
    }

    /// Opens the socket whose connections are this session's.
    pub(crate) fn open(&self, id: &SessionId) -> Result<PathBuf, ListenError> {
        let path = self.door(id);
        let mut doors = self.doors.lock().expect("nobody panics with it");
        if !doors.contains_key(id)
            && let Some((_, service)) = self.running.get()
        {
            let gate = Gate::Session(id.clone());
            let socket = Socket::unix(&path, 0o600)?;
            doors.insert(id.clone(), service.listen(Listener { socket, speaks: Speaks::Http, gate, tls: None }));
        }
        Ok(path)
    }

    /// Closes it.
    pub(crate) fn close(&self, id: &SessionId) {
        let listener = self.doors.lock().expect("nobody panics with it").remove(id);
        if let (Some(listener), Some((_, service))) = (listener, self.running.get()) {
            service.close(listener);
        }
    }

    /// Forgets sessions that have ended.
    pub(crate) fn expire(&self) {
        let now = SystemTime::now();
        for session in self.registry.now().sessions.values().filter(|session| !session.is_live(now)) {
            self.close(&session.id);
            let _ = self.registry.end_session(&session.id);
        }
    }

    /// Short whatever the id is: a socket's path has 107 bytes.
    fn door(&self, id: &SessionId) -> PathBuf {
        let hash = sandbox_git::sha256(id.as_str().as_bytes());
        let hash: String = hash[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        self.layout.run().join(format!("s-{hash}.sock"))
    }
}

/// Reads the whole body, up to `limit` bytes; `None`: it is larger, too slow or broken.
pub(crate) async fn body(request: Request, limit: usize) -> Option<Vec<u8>> {
    let body = Limited::new(request.into_body(), limit).collect();
    Some(tokio::time::timeout(BODY, body).await.ok()?.ok()?.to_bytes().to_vec())
}

/// Runs what blocks: git, the registry.
pub(crate) async fn blocking<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Result<T, Box<Response>> {
    let failed = |_| Box::new(text(StatusCode::INTERNAL_SERVER_ERROR, "the request has panicked"));
    tokio::task::spawn_blocking(job).await.map_err(failed)
}
