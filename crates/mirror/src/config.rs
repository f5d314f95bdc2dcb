//! `mirror.toml`: what a mirror serves, where it keeps it, how fresh it is kept.
//!
//! ```text
//! [serve]        http git unix vsock admin, tls_cert tls_key insecure, max_inflight queue queue_timeout idle_timeout
//!                request_body_max inflate_max
//! [store]        root db min_free
//! [refresh]      interval jitter concurrency per_host timeout clone_timeout max_stale backoff_max
//! [upstream]     allow_insecure allow_private ca_file known_hosts
//! [cache]        dir max_bytes max_age
//! [maintenance]  geometric_every full_every window prune_after quarantine threads memory
//! [scratch]      enabled prefix isolation max_push quota ttl
//! [webhook]      secret providers
//! [[credential]] id host source
//! [[repo]]       url name credential interval refs private
//! ```
//!
//! Each key is named in one place, where it is read; what is left over afterwards is unknown and refused, with
//! the known key that it looks like. Nothing here is a secret: credentials and the webhook's secret are named by
//! where they come from ([`crate::credential::Source`]).

mod read;
mod units;

use crate::credential::{Source, SourceError};
use ipnet::IpNet;
use read::{Section, sections};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use units::{parse_duration, parse_size};

/// Why a configuration was refused. Every text names the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// It is not TOML.
    #[error("not TOML: {0}")]
    Syntax(String),
    /// A key or table that nobody knows.
    #[error("unknown key '{key}'")]
    Unknown {
        /// With its table: `refresh.intervall`.
        key: String,
        /// The known key that it looks like.
        like: Option<String>,
    },
    /// A value that does not fit its key.
    #[error("'{key}': {wrong}")]
    Value {
        /// With its table.
        key: String,
        /// What is wrong with it, and what would be right.
        wrong: String,
    },
    /// A key that must be there is not.
    #[error("'{key}' is missing")]
    Missing {
        /// With its table.
        key: String,
    },
    /// A listener that others can reach would take tokens in the clear.
    #[error("'{key}' = {address} is not on loopback and takes tokens: it needs 'serve.tls_cert' and 'serve.tls_key'")]
    Insecure {
        /// With its table.
        key: String,
        /// The address.
        address: SocketAddr,
    },
}

impl ConfigError {
    /// The next step, where there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown { like: Some(like), .. } => Some(format!("did you mean '{like}'?")),
            Self::Insecure { .. } => {
                Some("'serve.insecure = true' (or `--insecure`) if the network between is trusted".to_owned())
            }
            _ => None,
        }
    }
}

pub(crate) type Result<T> = std::result::Result<T, ConfigError>;

/// The whole configuration, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `[serve]`.
    pub serve: Serve,
    /// `[store]`.
    pub store: Store,
    /// `[refresh]`.
    pub refresh: Refresh,
    /// `[upstream]`.
    pub upstream: Upstream,
    /// `[cache]`.
    pub cache: Cache,
    /// `[maintenance]`.
    pub maintenance: Maintenance,
    /// `[scratch]`.
    pub scratch: Scratch,
    /// `[webhook]`, if webhooks are taken.
    pub webhook: Option<Webhook>,
    /// `[[credential]]`.
    pub credentials: Vec<Credential>,
    /// `[[repo]]`.
    pub repos: Vec<Repo>,
}

/// Where it listens, and how much of it at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serve {
    /// Smart HTTP.
    pub http: Vec<SocketAddr>,
    /// `git://`.
    pub git: Vec<SocketAddr>,
    /// Smart HTTP on a Unix socket.
    pub unix: Option<PathBuf>,
    /// Smart HTTP on this vsock port.
    pub vsock: Option<u32>,
    /// The admin API's Unix socket.
    pub admin: PathBuf,
    /// Certificate chain (PEM) and key (PEM) of the HTTP listeners.
    pub tls: Option<Tls>,
    /// Listeners off loopback may take tokens without TLS.
    pub insecure: bool,
    /// Git processes that serve at once.
    pub max_inflight: usize,
    /// Requests that wait for one.
    pub queue: usize,
    /// For how long.
    pub queue_timeout: Duration,
    /// While nothing moves.
    pub idle_timeout: Duration,
    /// Bytes of a request's body as sent.
    pub request_body_max: u64,
    /// Bytes of a request's body once inflated.
    pub inflate_max: u64,
}

/// The files of TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The chain, PEM.
    pub cert: PathBuf,
    /// The key, PEM.
    pub key: PathBuf,
}

/// Where repositories are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    /// The directory of all repositories.
    pub root: PathBuf,
    /// The registry's database.
    pub db: PathBuf,
    /// Bytes that stay free: below, scratch pushes and cache fills stop.
    pub min_free: u64,
}

/// How upstreams are asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Refresh {
    /// Between two refreshes of a repository.
    pub interval: Duration,
    /// Part of the interval (0 to 1) by which each is moved at random.
    pub jitter: f64,
    /// Refreshes at once.
    pub concurrency: usize,
    /// Refreshes at once from one host.
    pub per_host: usize,
    /// The longest refresh.
    pub timeout: Duration,
    /// The longest first clone.
    pub clone_timeout: Duration,
    /// How long a repository that its upstream denies is still served.
    pub max_stale: Duration,
    /// The longest pause after failures.
    pub backoff_max: Duration,
}

/// Which upstreams may be asked at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// `http://`, `git://` and `file://` as well as `https://` and `ssh://`.
    pub allow_insecure: bool,
    /// Private and loopback ranges that upstreams may be in.
    pub allow_private: Vec<IpNet>,
    /// Authorities (PEM) for `https://` instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Keys of hosts for `ssh://` (sshd(8)) instead of those of who runs it.
    pub known_hosts: Option<PathBuf>,
}

/// The cache of packs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// Where.
    pub dir: PathBuf,
    /// How much.
    pub max_bytes: u64,
    /// How long one is kept.
    pub max_age: Duration,
}

/// What is done to keep serving fast.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maintenance {
    /// Between two geometric repacks.
    pub geometric_every: Duration,
    /// Between two full repacks.
    pub full_every: Duration,
    /// When full repacks may begin (UTC); `None`: at any time.
    pub window: Option<Window>,
    /// How long unreachable objects stay.
    pub prune_after: Duration,
    /// How long what was set aside as corrupt is kept.
    pub quarantine: Duration,
    /// Threads of a repack.
    pub threads: usize,
    /// Bytes of delta windows, all threads together.
    pub memory: u64,
}

/// A part of the day, UTC, in minutes since midnight; it may go over midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The first minute.
    pub from: u16,
    /// The minute after the last.
    pub to: u16,
}

impl Window {
    /// Whether this minute of the day is in it.
    pub fn contains(self, minute: u16) -> bool {
        if self.from <= self.to {
            (self.from..self.to).contains(&minute)
        } else {
            minute >= self.from || minute < self.to
        }
    }
}

/// Scratch refs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scratch {
    /// Whether anything may be pushed at all.
    pub enabled: bool,
    /// `refs/agents/`.
    pub prefix: String,
    /// Who can see them.
    pub isolation: Isolation,
    /// Bytes of one push.
    pub max_push: u64,
    /// Bytes of one session.
    pub quota: u64,
    /// How long after the last push they are kept.
    pub ttl: Duration,
}

/// Who sees the scratch refs of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// The session alone.
    Session,
    /// All who may read the repository.
    Repo,
}

/// Webhooks of forges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// Where their secret comes from.
    pub secret: Source,
    /// Whose are taken.
    pub providers: Vec<crate::webhook::Provider>,
}

/// A credential, by where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// What repositories name it by.
    pub id: String,
    /// The only host that it is ever shown to, with a port if it is not the scheme's own.
    pub host: String,
    /// Where it comes from.
    pub source: Source,
}

/// A repository of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repo {
    /// The upstream.
    pub url: String,
    /// What it is served as; from the URL otherwise.
    pub name: Option<String>,
    /// The credential's id.
    pub credential: Option<String>,
    /// In place of `refresh.interval`.
    pub interval: Option<Duration>,
    /// In place of all heads and tags: names of refs, or prefixes that end in `/*`.
    pub refs: Vec<String>,
    /// Only for sessions that were granted it.
    pub private: bool,
}

impl Config {
    /// Reads a file's text. `insecure` is the command line's `--insecure`.
    pub fn parse(text: &str, insecure: bool) -> Result<Self> {
        let mut all = sections(text)?;
        let mut serve = Serve::read(all.table("serve")?)?;
        let store = Store::read(all.table("store")?)?;
        let config = Self {
            refresh: Refresh::read(all.table("refresh")?)?,
            upstream: Upstream::read(all.table("upstream")?)?,
            cache: Cache::read(all.table("cache")?, &store.root)?,
            maintenance: Maintenance::read(all.table("maintenance")?)?,
            scratch: Scratch::read(all.table("scratch")?)?,
            webhook: all.optional_table("webhook")?.map(Webhook::read).transpose()?,
            credentials: all.array("credential")?.into_iter().map(Credential::read).collect::<Result<_>>()?,
            repos: all.array("repo")?.into_iter().map(Repo::read).collect::<Result<_>>()?,
            serve: {
                serve.insecure |= insecure;
                serve
            },
            store,
        };
        all.finish()?;
        config.check()?;
        Ok(config)
    }

    /// What no single key can tell.
    fn check(&self) -> Result<()> {
        let exposed = self.serve.http.iter().find(|address| !address.ip().is_loopback());
        if let Some(address) = exposed
            && self.serve.tls.is_none()
            && !self.serve.insecure
        {
            return Err(ConfigError::Insecure { key: "serve.http".to_owned(), address: *address });
        }
        for (i, credential) in self.credentials.iter().enumerate() {
            if self.credentials[..i].iter().any(|other| other.id == credential.id) {
                return Err(wrong("credential.id", format!("'{}' is there twice", credential.id)));
            }
        }
        for repo in &self.repos {
            if let Some(id) = &repo.credential
                && !self.credentials.iter().any(|credential| credential.id == *id)
            {
                return Err(wrong("repo.credential", format!("there is no credential '{id}'")));
            }
        }
        Ok(())
    }

    /// The credential of this id.
    pub fn credential(&self, id: &str) -> Option<&Credential> {
        self.credentials.iter().find(|credential| credential.id == id)
    }
}

impl Default for Config {
    /// What an empty file says.
    fn default() -> Self {
        Self::parse("", false).expect("the defaults are right")
    }
}

fn wrong(key: &str, wrong: impl Into<String>) -> ConfigError {
    ConfigError::Value { key: key.to_owned(), wrong: wrong.into() }
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

impl Serve {
    fn read(mut s: Section) -> Result<Self> {
        let cert = s.path("tls_cert")?;
        let key = s.path("tls_key")?;
        let tls = match (cert, key) {
            (Some(cert), Some(key)) => Some(Tls { cert, key }),
            (None, None) => None,
            (None, Some(_)) => return Err(ConfigError::Missing { key: s.key("tls_cert") }),
            (Some(_), None) => return Err(ConfigError::Missing { key: s.key("tls_key") }),
        };
        let admin = s.text("admin")?.unwrap_or_else(|| "unix:/run/git-sandbox/admin.sock".to_owned());
        let Some(admin) = admin.strip_prefix("unix:").filter(|path| path.starts_with('/')) else {
            return Err(wrong(&s.key("admin"), "only a Unix socket: 'unix:/run/git-sandbox/admin.sock'"));
        };
        let this = Self {
            http: s.addresses("http")?.unwrap_or_else(|| vec![([127, 0, 0, 1], 9480).into()]),
            git: s.addresses("git")?.unwrap_or_else(|| vec![([127, 0, 0, 1], 9418).into()]),
            unix: s.path("unix")?,
            vsock: s.number("vsock", 1, u64::from(u32::MAX) - 1)?.map(|port| port as u32),
            admin: admin.into(),
            tls,
            insecure: s.flag("insecure")?.unwrap_or(false),
            max_inflight: s.count("max_inflight", 1, 4096)?.unwrap_or(64),
            queue: s.count("queue", 0, 1 << 20)?.unwrap_or(8192),
            queue_timeout: s.duration("queue_timeout", SECOND / 10)?.unwrap_or(2 * MINUTE),
            idle_timeout: s.duration("idle_timeout", SECOND)?.unwrap_or(30 * SECOND),
            request_body_max: s.size("request_body_max")?.unwrap_or(64 * MIB),
            inflate_max: s.size("inflate_max")?.unwrap_or(256 * MIB),
        };
        s.finish()?;
        Ok(this)
    }
}

impl Store {
    fn read(mut s: Section) -> Result<Self> {
        let root = s.path("root")?.unwrap_or_else(|| "/var/lib/git-sandbox/mirrors".into());
        let db = s.text("db")?.unwrap_or_else(|| "registry.sqlite".to_owned());
        let min_free = s.size("min_free")?.unwrap_or(5 * GIB);
        s.finish()?;
        Ok(Self { db: root.join(db), root, min_free })
    }
}

impl Refresh {
    fn read(mut s: Section) -> Result<Self> {
        let this = Self {
            interval: s.duration("interval", SECOND)?.unwrap_or(30 * SECOND),
            jitter: s.fraction("jitter")?.unwrap_or(0.2),
            concurrency: s.count("concurrency", 1, 256)?.unwrap_or(4),
            per_host: s.count("per_host", 1, 256)?.unwrap_or(4),
            timeout: s.duration("timeout", SECOND)?.unwrap_or(5 * MINUTE),
            clone_timeout: s.duration("clone_timeout", SECOND)?.unwrap_or(HOUR),
            max_stale: s.duration("max_stale", Duration::ZERO)?.unwrap_or(15 * MINUTE),
            backoff_max: s.duration("backoff_max", SECOND)?.unwrap_or(10 * MINUTE),
        };
        s.finish()?;
        Ok(this)
    }
}

impl Upstream {
    fn read(mut s: Section) -> Result<Self> {
        let range = |text: &str| {
            let single = || text.parse::<IpAddr>().ok().map(IpNet::from);
            let range = text.parse::<IpNet>().ok().or_else(single);
            range.ok_or("expected a range of addresses like '10.0.0.0/8'".to_owned())
        };
        let this = Self {
            allow_insecure: s.flag("allow_insecure")?.unwrap_or(false),
            allow_private: s.list("allow_private", range)?.unwrap_or_default(),
            ca_file: s.path("ca_file")?,
            known_hosts: s.path("known_hosts")?,
        };
        s.finish()?;
        Ok(this)
    }
}

impl Cache {
    fn read(mut s: Section, root: &Path) -> Result<Self> {
        let this = Self {
            dir: s.path("dir")?.unwrap_or_else(|| root.join("packcache")),
            max_bytes: s.size("max_bytes")?.unwrap_or(4 * GIB),
            max_age: s.duration("max_age", Duration::ZERO)?.unwrap_or(5 * MINUTE),
        };
        s.finish()?;
        Ok(this)
    }
}

impl Maintenance {
    fn read(mut s: Section) -> Result<Self> {
        let window = match s.text("window")? {
            None => Some(Window { from: 120, to: 300 }),
            Some(text) if text == "always" => None,
            Some(text) => Some(window(&text).ok_or_else(|| {
                wrong(
                    &s.key("window"),
                    format!("'{}' is no part of a day like '02:00-05:00', nor 'always'", shown(&text)),
                )
            })?),
        };
        let this = Self {
            geometric_every: s.duration("geometric_every", SECOND)?.unwrap_or(10 * MINUTE),
            full_every: s.duration("full_every", HOUR)?.unwrap_or(7 * DAY),
            window,
            // What was served once stays fetchable so long: less would break the promise.
            prune_after: s.duration("prune_after", 14 * DAY)?.unwrap_or(14 * DAY),
            quarantine: s.duration("quarantine", Duration::ZERO)?.unwrap_or(30 * DAY),
            threads: s.count("threads", 1, 64)?.unwrap_or(2),
            memory: s.size("memory")?.unwrap_or(GIB),
        };
        s.finish()?;
        Ok(this)
    }
}

impl Scratch {
    fn read(mut s: Section) -> Result<Self> {
        let prefix = s.text("prefix")?.unwrap_or_else(|| "refs/agents/".to_owned());
        if prefix != "refs/agents/" {
            // Refresh, hiding and clients stand on this name.
            return Err(wrong(&s.key("prefix"), "only 'refs/agents/' is supported"));
        }
        let isolation = match s.text("isolation")?.as_deref() {
            None | Some("session") => Isolation::Session,
            Some("repo") => Isolation::Repo,
            Some(other) => {
                return Err(wrong(&s.key("isolation"), format!("'{}' is neither 'session' nor 'repo'", shown(other))));
            }
        };
        let this = Self {
            enabled: s.flag("enabled")?.unwrap_or(true),
            prefix,
            isolation,
            max_push: s.size("max_push")?.unwrap_or(256 * MIB),
            quota: s.size("quota")?.unwrap_or(GIB),
            ttl: s.duration("ttl", MINUTE)?.unwrap_or(14 * DAY),
        };
        s.finish()?;
        Ok(this)
    }
}

impl Webhook {
    fn read(mut s: Section) -> Result<Self> {
        let secret = s.required("secret")?;
        let secret = source(&s.key("secret"), &secret)?;
        let providers = s.list("providers", str::parse)?.unwrap_or_else(|| crate::webhook::Provider::ALL.to_vec());
        s.finish()?;
        Ok(Self { secret, providers })
    }
}

impl Credential {
    fn read(mut s: Section) -> Result<Self> {
        let (id, host, from) = (s.required("id")?, s.required("host")?, s.required("source")?);
        if host.is_empty() || !host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:[]".contains(&b)) {
            return Err(wrong(&s.key("host"), format!("'{}' is no host name: no scheme, no path", shown(&host))));
        }
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            return Err(wrong(&s.key("id"), format!("'{}' must be letters, digits, '-', '_' and '.'", shown(&id))));
        }
        let source = source(&s.key("source"), &from)?;
        s.finish()?;
        Ok(Self { id, host: host.to_ascii_lowercase(), source })
    }
}

impl Repo {
    fn read(mut s: Section) -> Result<Self> {
        let this = Self {
            url: s.required("url")?,
            name: s.text("name")?,
            credential: s.text("credential")?,
            interval: s.duration("interval", SECOND)?,
            refs: s
                .list("refs", |text| crate::refresh::Pattern::parse(text).map(|_| text.to_owned()))?
                .unwrap_or_default(),
            private: s.flag("private")?.unwrap_or(false),
        };
        s.finish()?;
        Ok(this)
    }
}

fn source(key: &str, text: &str) -> Result<Source> {
    text.parse().map_err(|error: SourceError| wrong(key, error.to_string()))
}

fn window(text: &str) -> Option<Window> {
    let minute = |text: &str| {
        let (h, m) = text.split_once(':')?;
        let two = |t: &str| (t.len() == 2).then(|| t.parse::<u16>().ok())?;
        let (h, m) = (two(h)?, two(m)?);
        (h < 24 && m < 60).then_some(h * 60 + m)
    };
    let (from, to) = text.split_once('-')?;
    let (from, to) = (minute(from)?, minute(to)?);
    (from != to).then_some(Window { from, to })
}

/// A value from the file, fit for a terminal.
fn shown(text: &str) -> String {
    sandbox_git::printable(text.as_bytes())
}

#[cfg(test)]
mod tests;
