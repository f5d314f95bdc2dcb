//! The service as a whole: what it is made of, its listeners, its end.
//!
//! ```text
//! Service::start(Parts) ─► listen(…) … ─► stop(grace)
//!        │                                   │ no new connections; running requests end, or are ended
//!        └ the store's lock, `tmp` emptied   └ the lock is given back with the last clone
//! ```

use crate::cache::{self, PackCache};
use crate::catalog::Reader;
use crate::event::{Event, Observer};
use crate::layout::Layout;
use crate::scratch::{self, Scratch};
use crate::serve::daemon::Daemon;
use crate::serve::http::Http;
use crate::serve::listen::{Listener, Speaks};
use crate::serve::process::Spawner;
use crate::serve::queue::Queue;
use crate::serve::smart::Smart;
use crate::serve::{Endpoint, Settings};
use sandbox_git::Git;
use sandbox_sys::lock::FileLock;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long the lock of a store may be a killed service's: a child that it had just forked holds the lock, too, until
/// it runs its own program or the kernel ends it.
const LOCKED: Duration = Duration::from_secs(2);

/// What a service is made of.
pub struct Parts {
    /// The git that serves.
    pub git: Git,
    /// This program, which git calls back as a hook.
    pub program: PathBuf,
    /// Where everything is.
    pub layout: Layout,
    /// What may be served.
    pub catalog: Reader,
    /// Who is told what happens.
    pub observer: Arc<dyn Observer>,
    /// How much there may be of everything.
    pub serve: Settings,
    /// How many packs are kept.
    pub cache: cache::Settings,
    /// What sessions may push.
    pub scratch: scratch::Settings,
    /// Parts that answer paths of their own, asked in this order.
    pub endpoints: Vec<Arc<dyn Endpoint>>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("layout", &self.layout).field("serve", &self.serve).finish_non_exhaustive()
    }
}

/// The service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Another one runs on this store.
    #[error("another mirror runs on '{}'", .0.display())]
    Running(PathBuf),
    /// The store cannot be used.
    #[error("cannot use the store '{}'", root.display())]
    Store {
        /// Its root.
        root: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Names a listener of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerId(u64);

/// A service that runs; a clone is the same one.
#[derive(Clone)]
pub struct Service(Arc<Inner>);

struct Inner {
    http: Arc<Http>,
    daemon: Arc<Daemon>,
    observer: Arc<dyn Observer>,
    listeners: Mutex<HashMap<ListenerId, AbortHandle>>,
    next: AtomicU64,
    connections: TaskTracker,
    /// No new requests.
    stopping: CancellationToken,
    /// Nothing at all any more.
    ended: CancellationToken,
    _lock: FileLock,
}

impl Service {
    /// Takes the store, and puts away what an earlier service left half-made. Needs a runtime
    /// ([`runtime`]); nothing is listened on yet.
    pub fn start(parts: Parts) -> Result<Self, ServiceError> {
        let root = parts.layout.root().to_owned();
        let store = |source| ServiceError::Store { root: root.clone(), source };
        parts.layout.create().map_err(store)?;
        let lock = FileLock::exclusive_within(&parts.layout.lock(), LOCKED).map_err(store)?;
        let lock = lock.ok_or_else(|| ServiceError::Running(root.clone()))?;
        for left in std::fs::read_dir(parts.layout.tmp()).map_err(store)?.flatten() {
            let path = left.path();
            let removed = match left.file_type() {
                Ok(kind) if kind.is_dir() => std::fs::remove_dir_all(&path),
                _ => std::fs::remove_file(&path),
            };
            removed.map_err(store)?;
        }
        let spawner = Spawner::start().map_err(store)?;
        let (layout, git) = (parts.layout.clone(), parts.git.clone());
        let (observer, catalog) = (parts.observer.clone(), parts.catalog.clone());
        let cache = PackCache::start(parts.cache, layout, git, &parts.program, spawner.clone(), observer, catalog);
        let smart = Arc::new(Smart {
            spawner,
            cache: cache.map_err(store)?,
            queue: Queue::new(parts.serve.clone()),
            catalog: parts.catalog,
            observer: parts.observer.clone(),
            settings: parts.serve,
            scratch: Scratch::new(parts.scratch, parts.layout, parts.git.clone()),
            git: parts.git,
            capabilities: Mutex::default(),
        });
        Ok(Self(Arc::new(Inner {
            http: Arc::new(Http { smart: smart.clone(), endpoints: parts.endpoints }),
            daemon: Arc::new(Daemon { smart }),
            observer: parts.observer,
            listeners: Mutex::default(),
            next: AtomicU64::new(0),
            connections: TaskTracker::new(),
            stopping: CancellationToken::new(),
            ended: CancellationToken::new(),
            _lock: lock,
        })))
    }

    /// Serves on one more listener.
    pub fn listen(&self, listener: Listener) -> ListenerId {
        let id = ListenerId(self.0.next.fetch_add(1, Ordering::Relaxed));
        let task = tokio::spawn(self.0.clone().accept(listener));
        self.listeners().insert(id, task.abort_handle());
        id
    }

    /// Closes a listener; connections that it has accepted go on.
    pub fn close(&self, id: ListenerId) {
        if let Some(task) = self.listeners().remove(&id) {
            task.abort();
        }
    }

    /// Takes no more connections, waits for the requests that run, at most so long, and ends the rest.
    /// Returns whether all of them ended by themselves.
    pub async fn stop(&self, grace: Duration) -> bool {
        for (_, task) in self.listeners().drain() {
            task.abort();
        }
        self.0.stopping.cancel();
        self.0.connections.close();
        let quiet = tokio::time::timeout(grace, self.0.connections.wait()).await.is_ok();
        self.0.ended.cancel();
        self.0.connections.wait().await;
        quiet
    }

    /// Is cancelled when the service stops: for tasks beside it.
    pub fn stopping(&self) -> CancellationToken {
        self.0.stopping.clone()
    }

    /// How many git processes serve.
    pub fn inflight(&self) -> usize {
        self.0.http.smart.queue.inflight()
    }

    /// How many requests wait for their turn.
    pub fn waiting(&self) -> usize {
        self.0.http.smart.queue.waiting()
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.0.connections.len()
    }

    fn listeners(&self) -> std::sync::MutexGuard<'_, HashMap<ListenerId, AbortHandle>> {
        self.0.listeners.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("connections", &self.connections()).finish_non_exhaustive()
    }
}

impl Inner {
    async fn accept(self: Arc<Self>, listener: Listener) {
        let Listener { socket, speaks, gate, tls } = listener;
        let tls = tls.map(tokio_rustls::TlsAcceptor::from);
        loop {
            let (stream, peer) = match socket.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // No descriptors just now, or a client that has gone already.
                    let what = format!("cannot accept a connection: {error}");
                    self.observer.observe(&Event::Trouble { what });
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            };
            let (inner, gate, tls) = (self.clone(), gate.clone(), tls.clone());
            self.connections.spawn(async move {
                let ended = inner.ended.clone();
                let serve = async {
                    match (speaks, tls) {
                        (Speaks::Http, None) => {
                            inner.http.clone().connection(stream, gate, peer, inner.stopping.clone()).await;
                        }
                        (Speaks::Http, Some(tls)) => {
                            let patience = inner.http.smart.settings.idle_timeout;
                            if let Ok(Ok(stream)) = tokio::time::timeout(patience, tls.accept(stream)).await {
                                inner.http.clone().connection(stream, gate, peer, inner.stopping.clone()).await;
                            }
                        }
                        (Speaks::Git, _) => inner.daemon.connection(stream, gate, peer).await,
                    }
                };
                tokio::select! {
                    () = serve => {}
                    () = ended.cancelled() => {}
                }
            });
        }
    }
}

/// A runtime for a service.
pub fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("mirror").build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Catalog, channel};
    use crate::identity::Gate;
    use crate::serve::listen::Socket;
    use crate::serve::{Answer, Asked, Request, text};
    use hyper::{Method, StatusCode};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    struct Hello;

    impl Endpoint for Hello {
        fn takes(&self, method: &Method, path: &str, asked: &Asked) -> bool {
            method == Method::GET && path == "/hello" && asked.gate == Gate::Anyone
        }

        fn answer<'a>(&'a self, _: Request, asked: &'a Asked) -> Answer<'a> {
            Box::pin(async move { text(StatusCode::OK, format_args!("{:?}", asked.who)) })
        }
    }

    fn parts(layout: Layout) -> Parts {
        let env = sandbox_git::HostEnv::default();
        Parts {
            git: Git::with_program("/nowhere/git".into(), env),
            program: "/nowhere".into(),
            layout,
            catalog: channel(Catalog::default()).1,
            observer: Arc::new(()),
            serve: Settings::default(),
            cache: cache::Settings::default(),
            scratch: scratch::Settings::default(),
            endpoints: vec![Arc::new(Hello)],
        }
    }

    async fn get(address: std::net::SocketAddr, path: &str, more: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn endpoints_are_asked_in_order_and_the_rest_is_not_found() {
        let dir = tempfile::tempdir().unwrap();
        let service = Service::start(parts(Layout::new(dir.path()))).unwrap();
        let socket = Socket::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = socket.address().unwrap();
        let id = service.listen(Listener { socket, speaks: Speaks::Http, gate: Gate::Anyone, tls: None });
        let answer = get(address, "/hello", "").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nReader\n"), "{answer}");
        assert!(get(address, "/other", "").await.starts_with("HTTP/1.1 404 "));
        let answer = get(address, "/hello", "Authorization: Bearer x\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 401 ") && answer.contains("no session has this token"), "{answer}");
        service.close(id);
        assert!(service.stop(Duration::from_secs(10)).await);
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn a_store_has_one_service_and_what_was_half_made_goes() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        layout.create().unwrap();
        std::fs::create_dir(layout.tmp().join("clone")).unwrap();
        let service = Service::start(parts(layout.clone())).unwrap();
        assert_eq!(std::fs::read_dir(layout.tmp()).unwrap().count(), 0);
        let refused = Service::start(parts(layout.clone())).unwrap_err().to_string();
        assert_eq!(refused, format!("another mirror runs on '{}'", dir.path().display()));
        drop(service);
        Service::start(parts(layout)).unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let refused = Service::start(parts(Layout::new(&file))).unwrap_err().to_string();
        assert_eq!(refused, format!("cannot use the store '{}'", file.display()));
    }
}
