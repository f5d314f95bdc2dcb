//! A mirror's inner parts over upstreams of the testkit, for tests of what keeps it fresh.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod seen;

use sandbox_git::{Git, HostEnv};
use sandbox_mirror::catalog::{self, Catalog, Reader};
use sandbox_mirror::config::Config;
use sandbox_mirror::credential::Keeper;
use sandbox_mirror::event::Trigger;
use sandbox_mirror::layout::Layout;
use sandbox_mirror::maintain::Maintainer;
use sandbox_mirror::name::{RepoName, Upstream};
use sandbox_mirror::refresh::{Parts, Refresher, Waited};
use sandbox_mirror::registry::plan::Change;
use sandbox_mirror::registry::{Origin, Registry, Spec, Status};
use sandbox_testkit::TestEnv;
use seen::Seen;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::{CancellationToken, DropGuard};

/// The part of a mirror that keeps it fresh.
pub struct Mirror {
    pub git: Git,
    pub layout: Layout,
    pub registry: Registry,
    pub catalog: Reader,
    pub refresher: Refresher,
    pub seen: Arc<Seen>,
    maintenance: sandbox_mirror::config::Maintenance,
}

/// Long intervals: what happens, a test has asked for. Loopback is allowed.
pub const CONFIG: &str = "
[refresh]
interval = '1h'
jitter = 0
backoff_max = '1h'
[upstream]
allow_insecure = true
allow_private = ['127.0.0.0/8', '::1/128']
";

impl Mirror {
    /// Starts it, with more configuration and these variables for `env:` sources.
    pub fn start(env: &TestEnv, more: &str, vars: &[(&str, &str)]) -> Self {
        Self::start_with(env, &format!("{CONFIG}{more}"), vars)
    }

    /// Starts it with this configuration.
    pub fn start_with(env: &TestEnv, config: &str, vars: &[(&str, &str)]) -> Self {
        let home = Some(env.home());
        let git = Git::new(HostEnv { path: env.path(), home, ..HostEnv::default() }).unwrap();
        Self::start_of(env, git, config, vars)
    }

    /// Starts it with a `git` that first runs this, in a shell that has `$git`, the real one, and the arguments.
    pub fn start_before(env: &TestEnv, script: &str) -> Self {
        let program = env.root().join("git-before");
        let real = Git::new(HostEnv { path: env.path(), ..HostEnv::default() }).unwrap();
        let text = format!("#!/bin/sh\ngit={}\n{script}\nexec \"$git\" \"$@\"\n", real.program().display());
        std::fs::write(&program, text).unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let env_of = HostEnv { path: env.path(), home: Some(env.home()), ..HostEnv::default() };
        Self::start_of(env, Git::with_program(program, env_of), CONFIG, &[])
    }

    fn start_of(env: &TestEnv, git: Git, config: &str, vars: &[(&str, &str)]) -> Self {
        let config = Config::parse(config, false).unwrap();
        let layout = Layout::new(env.root().join("store"));
        layout.create().unwrap();
        let (publisher, catalog) = catalog::channel(Catalog::default());
        let registry = Registry::open(layout.registry(), layout.clone(), publisher, Vec::new()).unwrap();
        let seen = Arc::new(Seen::default());
        let vars: BTreeMap<_, _> = vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let refresher = Refresher::start(Parts {
            git: git.clone(),
            layout: layout.clone(),
            registry: registry.clone(),
            keeper: Keeper::new(vars, env.path()),
            refresh: config.refresh,
            upstream: config.upstream,
            credentials: config.credentials,
            observer: seen.clone(),
        });
        Self { git, layout, registry, catalog, refresher, seen, maintenance: config.maintenance }
    }

    /// Maintains it until the guard is dropped; scratch refs are kept for `ttl`.
    pub fn maintained(&self, ttl: Duration) -> (Maintainer, DropGuard) {
        let stop = CancellationToken::new();
        let maintainer = Maintainer::start(self.refresher.clone(), self.maintenance.clone(), ttl, stop.clone());
        (maintainer, stop.drop_guard())
    }

    /// Registers an upstream as `name`.
    pub fn add(&self, name: &str, url: &str, more: impl FnOnce(&mut Spec)) -> RepoName {
        let mut spec = Spec::of(Upstream::parse(url).unwrap());
        spec.name = name.parse().unwrap();
        more(&mut spec);
        let name = spec.name.clone();
        self.registry.apply(vec![Change::Put(spec, Origin::Api)]).unwrap();
        name
    }

    /// Refreshes and waits.
    pub async fn refresh(&self, name: &RepoName) -> Waited {
        self.refresher.refresh(name, BTreeSet::new(), Trigger::Admin).await
    }

    /// Refreshes; what went wrong, as text.
    pub async fn fails(&self, name: &RepoName) -> String {
        match self.refresh(name).await {
            Waited::Failed(trouble) => trouble.to_string(),
            other => format!("{other:?}"),
        }
    }

    /// Refreshes, which must go well.
    pub async fn fresh(&self, name: &RepoName) {
        let waited = self.refresh(name).await;
        assert!(matches!(waited, Waited::Fresh(_)), "{waited:?}");
    }

    /// The bare repository.
    pub fn dir(&self, name: &RepoName) -> PathBuf {
        self.layout.mirror(name)
    }

    /// What is known of it.
    pub fn status(&self, name: &RepoName) -> Status {
        self.registry.record(name).unwrap().status.clone()
    }

    /// Runs git in the mirror.
    pub fn git(&self, env: &TestEnv, name: &RepoName, args: &[&str]) -> String {
        let dir = self.dir(name);
        env.git(&dir, args).ok()
    }

    /// `refname oid` of heads and tags, and what `HEAD` names.
    pub fn refs(&self, env: &TestEnv, name: &RepoName) -> String {
        let refs =
            self.git(env, name, &["for-each-ref", "--format=%(refname) %(objectname)", "refs/heads", "refs/tags"]);
        refs + "HEAD " + &self.git(env, name, &["symbolic-ref", "HEAD"])
    }
}

/// The same of an upstream.
pub fn refs_of(env: &TestEnv, dir: &std::path::Path) -> String {
    let refs = env.git(dir, &["for-each-ref", "--format=%(refname) %(objectname)", "refs/heads", "refs/tags"]).ok();
    refs + "HEAD " + &env.git(dir, &["symbolic-ref", "HEAD"]).ok()
}

/// A runtime as the service has one.
pub fn on_runtime<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build().unwrap();
    runtime.block_on(test)
}

/// Waits for what must come, without a word about how long it takes.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(120), "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
