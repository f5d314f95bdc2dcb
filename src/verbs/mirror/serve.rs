//! `git sandbox mirror serve`: puts the service together, listens, and ends it well.
//!
//! ```text
//! flags, mirror.toml ─► Config ─► registry ─► catalog ─┐
//!                          │          └─► refresher    ├─► Service ─► listeners ─► READY=1
//!                          └─► log, metrics, status ───┘
//! SIGTERM, SIGINT ─► no new connections ─► clients end, at most GRACE ─► what is left is ended
//! SIGHUP          ─► the repositories of mirror.toml are read again
//! ```

use super::log::Log;
use super::notify;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::text::escape;
use clap::Args;
use sandbox_git::{Git, HostEnv};
use sandbox_mirror::admin::Admin;
use sandbox_mirror::cache;
use sandbox_mirror::catalog::{Catalog, channel};
use sandbox_mirror::config::{self, Config, ConfigError};
use sandbox_mirror::credential::Keeper;
use sandbox_mirror::desk::Desk;
use sandbox_mirror::ensure::Ensure;
use sandbox_mirror::event::{Event, Observer};
use sandbox_mirror::identity::Gate;
use sandbox_mirror::layout::Layout;
use sandbox_mirror::log::Level;
use sandbox_mirror::maintain::{self, Maintainer};
use sandbox_mirror::metrics::Metrics;
use sandbox_mirror::name::{NameError, Upstream};
use sandbox_mirror::operate::Operate;
use sandbox_mirror::refresh::{self, Refresher};
use sandbox_mirror::registry::plan::of_file;
use sandbox_mirror::registry::{Registry, Spec};
use sandbox_mirror::scratch;
use sandbox_mirror::serve::listen::{Listener, Socket, Speaks};
use sandbox_mirror::serve::{Endpoint, Settings};
use sandbox_mirror::service::{self, Service};
use sandbox_mirror::tls;
use sandbox_mirror::webhook::Hooks;
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::mpsc;

/// How long clients may take to end when the service stops.
const GRACE: Duration = Duration::from_secs(20);

/// Serve.
#[derive(Debug, Default, Args)]
#[command(
    after_help = "Without --config: HTTP on 127.0.0.1:9480 and a store of this user, with the defaults of docs/mirror.md.\n\
What it listens on is printed; its log is JSON on standard error. SIGTERM ends it when its clients are\n\
served, SIGHUP makes it read the repositories of its configuration again.\n\nExamples:\n  \
git sandbox mirror serve                                     for you, on this machine\n  \
git sandbox mirror serve --root /srv/git --http 127.0.0.1:0  elsewhere, on any free port\n  \
git sandbox mirror serve --config /etc/git-sandbox/mirror.toml\n  \
git sandbox mirror serve --config mirror.toml --check        tell whether the file is right, and serve nothing"
)]
pub struct Serve {
    /// The configuration
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Keep everything below this directory (store.root)
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Serve HTTP here (serve.http); port 0 is any free one
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub http: Vec<SocketAddr>,
    /// Serve git:// here (serve.git)
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub git: Vec<SocketAddr>,
    /// Serve HTTP on this Unix socket (serve.unix)
    #[arg(long, value_name = "PATH")]
    pub unix: Option<PathBuf>,
    /// The administrator's Unix socket (serve.admin)
    #[arg(long, value_name = "PATH")]
    pub admin: Option<PathBuf>,
    /// Take tokens without TLS on addresses that others reach (serve.insecure)
    #[arg(long)]
    pub insecure: bool,
    /// Look at the configuration, and serve nothing
    #[arg(long)]
    pub check: bool,
    /// Log what the cache does and probes, too
    #[arg(short, long)]
    pub verbose: bool,
    /// Print what it listens on as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Runs it until a signal.
pub fn run(context: &Context, args: &Serve) -> Outcome {
    let config = configuration(context, args)?;
    if args.check {
        let repos = crate::text::count_of(config.repos.len(), "repository", "repositories");
        println!("the configuration is right: {repos}, {}", crate::text::count(config.credentials.len(), "credential"));
        return Ok(0);
    }
    let runtime = service::runtime().map_err(CliError::io("start the event loop"))?;
    let metrics = Arc::new(Metrics::new(env!("CARGO_PKG_VERSION")));
    let least = if args.verbose { Level::Debug } else { Level::Info };
    let (log, writer) = Log::start(metrics.clone(), least).map_err(CliError::io("start the log"))?;
    let outcome = runtime.block_on(serve(context, args, &config, metrics, log.clone()));
    // Tasks that hold the observer end with the runtime.
    runtime.shutdown_timeout(Duration::from_secs(5));
    log.end();
    let _ = writer.join();
    outcome
}

/// The file, with what the command line says otherwise.
fn configuration(context: &Context, args: &Serve) -> Result<Config, CliError> {
    let mut config = match &args.config {
        Some(path) => {
            let shown = path.display();
            let text = fs::read_to_string(path).map_err(CliError::io(format!("read '{shown}'")))?;
            Config::parse(&text, args.insecure).map_err(|error| refused(&error).cause_of(path))?
        }
        None => {
            let mut config = Config::default();
            config.serve.git.clear();
            config.store.root = default_root(context);
            config
        }
    };
    if let Some(root) = &args.root {
        config.store.root = absolute(root)?;
    }
    if args.root.is_some() || args.config.is_none() {
        let layout = Layout::new(&config.store.root);
        config.store.db = layout.registry();
        config.cache.dir = layout.packcache();
        config.serve.admin = layout.run().join("admin.sock");
    }
    config.serve.insecure |= args.insecure;
    if !args.http.is_empty() {
        config.serve.http.clone_from(&args.http);
        let exposed = args.http.iter().find(|address| !address.ip().is_loopback());
        if let Some(address) = exposed.filter(|_| config.serve.tls.is_none() && !config.serve.insecure) {
            return Err(refused(&ConfigError::Insecure { key: "--http".to_owned(), address: *address }));
        }
    }
    if !args.git.is_empty() {
        config.serve.git.clone_from(&args.git);
    }
    if let Some(path) = &args.unix {
        config.serve.unix = Some(absolute(path)?);
    }
    if let Some(path) = &args.admin {
        config.serve.admin = absolute(path)?;
    }
    Ok(config)
}

/// Where a user's own mirror keeps its store: some of it cannot be made again.
pub fn default_root(context: &Context) -> PathBuf {
    let state = context.vars.get("XDG_STATE_HOME").filter(|dir| dir.starts_with('/')).map(PathBuf::from);
    state.unwrap_or_else(|| context.home.join(".local/state")).join("git-sandbox-mirror")
}

fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path).map_err(CliError::io(format!("find '{}'", path.display())))
}

fn refused(error: &ConfigError) -> CliError {
    let failure = CliError::chain(error);
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

impl CliError {
    /// Puts the file in front of what is wrong with it.
    fn cause_of(self, path: &Path) -> Self {
        let message = format!("cannot use '{}'", path.display());
        Self { causes: std::iter::once(self.message).chain(self.causes).collect(), message, ..self }
    }
}

/// The repositories of the file.
fn specs(config: &Config) -> Result<Vec<Spec>, CliError> {
    let spec = |repo: &config::Repo| {
        let wrong = |error: NameError| CliError::chain(&error).cause(format!("repo.url = '{}'", escape(&repo.url)));
        let mut spec = Spec::of(Upstream::parse(&repo.url).map_err(wrong)?);
        if let Some(name) = &repo.name {
            spec.name = name
                .parse()
                .map_err(|error: NameError| CliError::chain(&error).cause(format!("repo.name = '{}'", escape(name))))?;
        }
        let pattern = |text: &String| refresh::Pattern::parse(text).map_err(CliError::new);
        spec.refs = repo.refs.iter().map(pattern).collect::<Result<_, _>>()?;
        spec.interval_ms = repo.interval.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        spec.credential.clone_from(&repo.credential);
        spec.private = repo.private;
        Ok(spec)
    };
    config.repos.iter().map(spec).collect()
}

async fn serve(
    context: &Context,
    args: &Serve,
    config: &Config,
    metrics: Arc<Metrics>,
    log: Arc<dyn Observer>,
) -> Outcome {
    let layout = Layout::new(&config.store.root).with_packcache(&config.cache.dir);
    layout.create().map_err(CliError::io(format!("make the store '{}'", layout.root().display())))?;
    let env = HostEnv { path: context.vars.get("PATH").cloned().unwrap_or_default().into(), ..HostEnv::default() };
    let git = Git::new(env)?;
    let (publisher, catalog) = channel(Catalog::default());
    let registry = Registry::open(config.store.db.clone(), layout.clone(), publisher, Vec::new())
        .map_err(|error| CliError::chain(&error))?;
    if let Some(trouble) = registry.trouble() {
        log.observe(&Event::Trouble { what: trouble.to_owned() });
    }
    registry.apply(of_file(&registry.now(), specs(config)?)).map_err(|error| CliError::chain(&error))?;
    let running = Arc::new(OnceLock::new());
    let (gather, sizes) = super::gather::gather(&registry, &layout, config, &metrics, running.clone());
    let phase = Arc::new(Phase::default());
    let asked = phase.clone();
    let operate = Operate { metrics: metrics.clone(), gather, ready: Box::new(move || asked.ready()) };
    let path = || context.vars.get("PATH").cloned().unwrap_or_default().into();
    let keeper = || Keeper::new(context.vars.clone(), path());
    let webhook = config.webhook.clone().map(|webhook| (webhook, keeper()));
    let desk = Desk::new(git.clone(), layout.clone(), registry.clone(), webhook);
    let credentials = config.credentials.iter().map(|credential| credential.id.clone()).collect();
    let admin = Arc::new(Admin::new(desk.clone(), credentials));
    let endpoints: Vec<Arc<dyn Endpoint>> =
        vec![Arc::new(operate), Arc::new(Ensure(desk.clone())), Arc::new(Hooks(desk.clone())), admin.clone()];
    let parts = service::Parts {
        git: git.clone(),
        program: context.program.clone(),
        layout: layout.clone(),
        catalog,
        observer: log.clone(),
        serve: Settings::from(&config.serve),
        scratch: scratch_settings(config),
        cache: cache::Settings {
            enabled: config.cache.max_bytes > 0,
            max_bytes: config.cache.max_bytes,
            max_age: config.cache.max_age,
            min_free: config.store.min_free,
        },
        endpoints,
    };
    let service = Service::start(parts).map_err(|error| CliError::chain(&error))?;
    let _ = running.set(service.clone());
    // Only now: a start of the service empties what refreshes work in, and nobody else has the store.
    for removed in maintain::clean(&layout) {
        let what =
            format!("removed '{}', which a service that was killed had left", escape(&removed.to_string_lossy()));
        log.observe(&Event::Trouble { what });
    }
    let refresher = Refresher::start(refresh::Parts {
        git,
        layout,
        registry: registry.clone(),
        keeper: keeper(),
        refresh: config.refresh.clone(),
        upstream: config.upstream.clone(),
        credentials: config.credentials.clone(),
        observer: log.clone(),
    });
    let maintainer =
        Maintainer::start(refresher.clone(), config.maintenance.clone(), config.scratch.ttl, service.stopping());
    admin.maintained_by(maintainer);
    desk.running(refresher.clone(), service.clone());
    let listening = listen(&service, config).await?;
    phase.0.store(SERVING, Ordering::Relaxed);
    // Before anything is said: who hears it may end us at once.
    let mut signals = signals()?;
    listening.print(args.json);
    if registry.now().repos.is_empty() {
        let admin = config.serve.admin.display();
        eprintln!("hint: `git sandbox mirror add --admin {admin} URL` registers a repository");
    }
    let measuring = tokio::spawn(sizes);
    notify::tell("READY=1\nSTATUS=serving");
    while let Some(signal) = signals.recv().await {
        if signal != SIGHUP {
            break;
        }
        if let Err(error) = reread(args, context, &registry) {
            log.observe(&Event::Trouble { what: format!("{}: {}", error.message, error.causes.join(": ")) });
        }
    }
    phase.0.store(STOPPING, Ordering::Relaxed);
    notify::tell("STOPPING=1\nSTATUS=waiting for clients");
    measuring.abort();
    drop(refresher);
    service.stop(GRACE).await;
    Ok(0)
}

/// How far the service is, for `/readyz`: whoever balances clients asks it.
#[derive(Default)]
struct Phase(AtomicU8);

const SERVING: u8 = 1;
const STOPPING: u8 = 2;

impl Phase {
    /// From when the registry is as the file says and every listener is there, until it is asked to end.
    fn ready(&self) -> Result<(), String> {
        match self.0.load(Ordering::Relaxed) {
            SERVING => Ok(()),
            STOPPING => Err("the mirror is stopping".to_owned()),
            _ => Err("the mirror is starting".to_owned()),
        }
    }
}

/// Brings the registry to what the file says now.
fn reread(args: &Serve, context: &Context, registry: &Registry) -> Result<(), CliError> {
    let config = configuration(context, args)?;
    let changes = of_file(&registry.now(), specs(&config)?);
    registry.apply(changes).map(drop).map_err(|error| CliError::chain(&error))
}

fn scratch_settings(config: &Config) -> scratch::Settings {
    let wanted = &config.scratch;
    scratch::Settings {
        enabled: wanted.enabled,
        isolation: match wanted.isolation {
            config::Isolation::Session => scratch::Isolation::Session,
            config::Isolation::Repo => scratch::Isolation::Repo,
        },
        max_push: wanted.max_push,
        quota: wanted.quota,
        min_free: config.store.min_free,
    }
}

/// The signals that are ours, as they come. Who sends a second one to end it has lost patience: it ends at once.
fn signals() -> Result<mpsc::UnboundedReceiver<i32>, CliError> {
    let mut signals =
        signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(CliError::io("take signals"))?;
    let (sender, receiver) = mpsc::unbounded_channel();
    let run = move || {
        let mut ending = false;
        for signal in signals.forever() {
            if signal != SIGHUP && std::mem::replace(&mut ending, true) {
                std::process::exit(1);
            }
            let _ = sender.send(signal);
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(run).map_err(CliError::io("take signals"))?;
    Ok(receiver)
}

/// What is listened on.
#[derive(Default)]
struct Listening {
    http: Vec<String>,
    git: Vec<String>,
    admin: String,
}

impl Listening {
    fn print(&self, as_json: bool) {
        if as_json {
            println!("{}", json!({ "http": self.http, "git": self.git, "admin": self.admin }));
        } else {
            for url in self.http.iter().chain(&self.git) {
                println!("listening on {url}");
            }
            println!("administered on {}", self.admin);
        }
        let _ = std::io::Write::flush(&mut std::io::stdout());
    }
}

async fn listen(service: &Service, config: &Config) -> Result<Listening, CliError> {
    let failed = |error| CliError::chain(&error);
    let tls = config.serve.tls.as_ref().map(|files| tls::server(&files.cert, &files.key)).transpose();
    let tls = tls.map_err(|error| CliError::chain(&error))?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let mut listening = Listening::default();
    let serve = |socket: Socket, speaks, gate, tls| service.listen(Listener { socket, speaks, gate, tls });
    let handed = notify::sockets();
    for (name, fd) in handed {
        let socket = Socket::from_fd(fd).map_err(CliError::io(format!("listen on the socket '{name}'")))?;
        let (speaks, gate) = match &*name {
            "git" => (Speaks::Git, Gate::Anyone),
            "admin" => (Speaks::Http, Gate::Admin),
            _ => (Speaks::Http, Gate::Anyone),
        };
        let shown = socket.address().map_or_else(|| format!("the socket '{name}'"), |address| address.to_string());
        match (speaks, &gate) {
            (Speaks::Git, _) => listening.git.push(format!("git://{shown}")),
            (_, Gate::Admin) => listening.admin.clone_from(&shown),
            _ => listening.http.push(format!("{scheme}://{shown}")),
        }
        let tls = tls.clone().filter(|_| speaks == Speaks::Http && gate == Gate::Anyone && socket.address().is_some());
        serve(socket, speaks, gate, tls);
    }
    if listening.http.is_empty() {
        for address in &config.serve.http {
            let socket = Socket::tcp(*address).await.map_err(failed)?;
            listening.http.push(format!("{scheme}://{}", socket.address().unwrap_or(*address)));
            serve(socket, Speaks::Http, Gate::Anyone, tls.clone());
        }
    }
    if listening.git.is_empty() {
        for address in &config.serve.git {
            let socket = Socket::tcp(*address).await.map_err(failed)?;
            listening.git.push(format!("git://{}", socket.address().unwrap_or(*address)));
            serve(socket, Speaks::Git, Gate::Anyone, None);
        }
    }
    if let Some(path) = &config.serve.unix {
        let socket = Socket::unix(path, 0o666).map_err(failed)?;
        listening.http.push(format!("unix:{}", path.display()));
        serve(socket, Speaks::Http, Gate::Anyone, None);
    }
    if let Some(port) = config.serve.vsock {
        let socket = Socket::vsock(port).map_err(failed)?;
        listening.http.push(format!("vsock:{port}"));
        serve(socket, Speaks::Http, Gate::Anyone, None);
    }
    if listening.admin.is_empty() {
        let path = &config.serve.admin;
        let socket = Socket::unix(path, 0o600).map_err(failed)?;
        listening.admin = format!("unix:{}", path.display());
        serve(socket, Speaks::Http, Gate::Admin, None);
    }
    Ok(listening)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_sent_here_only_while_it_serves() {
        let phase = Phase::default();
        assert_eq!(phase.ready(), Err("the mirror is starting".to_owned()));
        phase.0.store(SERVING, Ordering::Relaxed);
        assert_eq!(phase.ready(), Ok(()));
        phase.0.store(STOPPING, Ordering::Relaxed);
        assert_eq!(phase.ready(), Err("the mirror is stopping".to_owned()));
    }
}
