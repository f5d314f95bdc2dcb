//! A service with one repository of each hash, on every kind of listener, and clients for it.

use crate::seen::Seen;
use sandbox_git::{Git, HostEnv, ObjectFormat};
use sandbox_mirror::cache;
use sandbox_mirror::catalog::{Catalog, Entry, Publisher, State, channel};
use sandbox_mirror::identity::{Gate, Session, TokenHash};
use sandbox_mirror::layout::Layout;
use sandbox_mirror::name::{RepoName, Upstream};
use sandbox_mirror::repo::MirrorRepo;
use sandbox_mirror::scratch;
use sandbox_mirror::serve::Settings;
use sandbox_mirror::serve::listen::{Listener, Socket, Speaks};
use sandbox_mirror::service::{Parts, Service, runtime};
use sandbox_testkit::{Output, TestEnv};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

pub struct World {
    pub env: TestEnv,
    pub service: Service,
    pub publisher: Publisher,
    pub layout: Layout,
    pub seen: Arc<Seen>,
    pub runtime: Runtime,
    pub http: SocketAddr,
    pub git: SocketAddr,
    /// Where session `s1` is.
    pub session: SocketAddr,
    /// Where session `s1` speaks `git://`.
    pub session_git: SocketAddr,
    /// Where session `s2` is.
    pub other: SocketAddr,
    pub unix: PathBuf,
}

pub const SHA1: &str = "forge.test/o/r";
pub const SHA256: &str = "forge.test/o/r256";
pub const PRIVATE: &str = "forge.test/o/private";
pub const TOKEN: &str = "token-of-s1";

impl World {
    pub fn new() -> Self {
        Self::with(Settings::default(), scratch::Settings::default())
    }

    pub fn with(serve: Settings, scratch: scratch::Settings) -> Self {
        Self::all(serve, scratch, cache::Settings { min_free: 0, ..Default::default() }, false)
    }

    /// With a git that writes down in `git-log` what it is called with.
    pub fn logged() -> Self {
        Self::cached(cache::Settings::default())
    }

    pub fn cached(cache: cache::Settings) -> Self {
        Self::all(Settings::default(), scratch::Settings::default(), cache::Settings { min_free: 0, ..cache }, true)
    }

    fn all(serve: Settings, scratch: scratch::Settings, cache: cache::Settings, logged: bool) -> Self {
        let env = TestEnv::new();
        let layout = Layout::new(env.root().join("store"));
        layout.create().unwrap();
        let mut path = env.path();
        if logged {
            let bin = env.root().join("logged");
            std::fs::create_dir(&bin).unwrap();
            let (log, real) = (env.root().join("git-log"), env.git_used().path.clone());
            let text = format!("#!/bin/sh\necho \"$*\" >> '{}'\nexec '{}' \"$@\"\n", log.display(), real.display());
            std::fs::write(bin.join("git"), text).unwrap();
            std::fs::set_permissions(bin.join("git"), std::fs::Permissions::from_mode(0o755)).unwrap();
            path = std::env::join_paths([bin].into_iter().chain(std::env::split_paths(&path))).unwrap();
        }
        let git = Git::new(HostEnv { path, home: Some(env.home()), ..Default::default() }).unwrap();
        let mut entries = Vec::new();
        for (name, format, private) in [
            (SHA1, ObjectFormat::Sha1, false),
            (SHA256, ObjectFormat::Sha256, false),
            (PRIVATE, ObjectFormat::Sha1, true),
        ] {
            let name: RepoName = name.parse().unwrap();
            let source = env.root().join("upstream").join(name.path());
            upstream(&env, &source, format);
            let dir = layout.mirror(&name);
            let from = Upstream::parse(&format!("https://{name}")).unwrap();
            MirrorRepo::create(&git, &dir, format, &from).unwrap();
            let entry = Entry { name, dir, state: State::Ready, format, private, redirect: None, live: Arc::default() };
            entry.live.refreshed_at(1);
            refresh(&env, &entry.dir, &source);
            entries.push(Arc::new(entry));
        }
        let session = |id: &str, repos: &[&str], token: Option<&str>| {
            Arc::new(Session {
                id: id.parse().unwrap(),
                repos: repos.iter().map(|repo| (repo.parse().unwrap(), None)).collect(),
                token: token.map(|token| TokenHash::of(token.as_bytes())),
                expires: None,
            })
        };
        let sessions = [session("s1", &[SHA1, SHA256, PRIVATE], Some(TOKEN)), session("s2", &[SHA1, SHA256], None)];
        let (publisher, catalog) = channel(Catalog::new(entries, sessions).redirecting(["public.test".to_owned()]));
        let seen = Arc::new(Seen::default());
        let runtime = runtime().unwrap();
        let parts = Parts {
            git,
            program: env!("CARGO_BIN_EXE_mirror-hook").into(),
            layout: layout.clone(),
            catalog,
            observer: seen.clone(),
            serve,
            cache,
            scratch,
            endpoints: Vec::new(),
        };
        let unix = env.root().join("mirror.sock");
        let (service, addresses) = runtime.block_on(async {
            let service = Service::start(parts).unwrap();
            let mut addresses = Vec::new();
            let own = |id: &str| Gate::Session(id.parse().unwrap());
            for (speaks, gate) in [
                (Speaks::Http, Gate::Anyone),
                (Speaks::Git, Gate::Anyone),
                (Speaks::Http, own("s1")),
                (Speaks::Git, own("s1")),
                (Speaks::Http, own("s2")),
            ] {
                let socket = Socket::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
                addresses.push(socket.address().unwrap());
                service.listen(Listener { socket, speaks, gate, tls: None });
            }
            let socket = Socket::unix(&unix, 0o600).unwrap();
            service.listen(Listener { socket, speaks: Speaks::Http, gate: Gate::Anyone, tls: None });
            (service, addresses)
        });
        let [http, git, session, session_git, other] = addresses[..] else { unreachable!() };
        Self { env, service, publisher, layout, seen, runtime, http, git, session, session_git, other, unix }
    }

    pub fn source(&self, name: &str) -> PathBuf {
        self.env.root().join("upstream").join(name.strip_prefix("forge.test/").unwrap())
    }

    pub fn mirror(&self, name: &str) -> PathBuf {
        self.layout.mirror(&name.parse().unwrap())
    }

    pub fn refresh(&self, name: &str) {
        refresh(&self.env, &self.mirror(name), &self.source(name));
    }

    pub fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.http)
    }

    /// Replaces what may be served.
    pub fn publish(&self, catalog: Catalog) {
        self.publisher.publish(catalog);
    }

    /// Git outside of any repository.
    pub fn run(&self, args: &[&str]) -> Output {
        self.env.git(self.env.root(), args)
    }

    /// Git in a clone.
    pub fn at(&self, dir: &Path, args: &[&str]) -> Output {
        self.env.git(dir, args)
    }

    pub fn dir(&self, name: &str) -> PathBuf {
        self.env.root().join(name)
    }

    /// A clone with a commit of its own on top.
    pub fn worked_in(&self, url: &str, name: &str, clone: &[&str]) -> PathBuf {
        let dir = self.dir(name);
        self.run(&[&["clone", "-q"], clone, &[url, dir.to_str().unwrap()]].concat()).ok();
        std::fs::write(dir.join("made"), name).unwrap();
        self.at(&dir, &["add", "made"]).ok();
        self.at(&dir, &["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "made"]).ok();
        dir
    }

    /// Git processes that this test's service has running.
    pub fn children(&self) -> Vec<u32> {
        let own = std::process::id();
        let store = self.layout.root().to_str().unwrap().to_owned();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let cwd = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            if pid != own && (String::from_utf8_lossy(&line).contains(&store) || cwd.starts_with(&store)) {
                found.push(pid);
            }
        }
        found
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.runtime.block_on(self.service.stop(Duration::from_secs(5)));
    }
}

fn upstream(env: &TestEnv, dir: &Path, format: ObjectFormat) {
    std::fs::create_dir_all(dir).unwrap();
    env.git(dir, &["init", "-q", "-b", "main", &format!("--object-format={format}")]).ok();
    for n in 0..5 {
        std::fs::create_dir_all(dir.join(format!("d{n}"))).unwrap();
        for m in 0..20 {
            std::fs::write(dir.join(format!("d{n}/f{m}")), format!("{n} {m}\n").repeat(50)).unwrap();
        }
        commit(env, dir, &format!("c{n}"));
    }
    env.git(dir, &["tag", "-a", "-m", "one", "v1"]).ok();
    env.git(dir, &["branch", "side", "HEAD~2"]).ok();
}

pub fn commit(env: &TestEnv, dir: &Path, subject: &str) -> String {
    env.git(dir, &["config", "user.name", "A"]).ok();
    env.git(dir, &["config", "user.email", "a@b"]).ok();
    std::fs::write(dir.join("counter"), subject).unwrap();
    env.git(dir, &["add", "-A"]).ok();
    env.git(dir, &["commit", "-q", "-m", subject]).ok();
    env.git(dir, &["rev-parse", "HEAD"]).ok().trim().to_owned()
}

fn refresh(env: &TestEnv, dir: &Path, source: &Path) {
    let args = ["fetch", "-q", source.to_str().unwrap(), "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"];
    env.git(dir, &args).ok();
}

/// Waits for what must come, without a word about how long it takes.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(120), "in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A client that speaks HTTP by hand.
pub fn curl(env: &TestEnv, args: &[&str]) -> Output {
    let mut command: Command = env.command("curl", env.root());
    env.run(command.args(["-sS", "-i", "--noproxy", "*"]).args(args))
}
