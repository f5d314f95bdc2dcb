//! What may be reached: the file, and the decision as a function of it.
//!
//! ```text
//! {"version":1,"allow":["RULE",…],"deny":["RULE",…]}
//! ```
//!
//! The file appears whole (written beside, then renamed) and is for its owner only. Who changes it
//! holds the lock of `network.lock` beside it; who reads it needs none. A file that is missing or
//! that cannot be read as a whole allows nothing.

use crate::address;
use crate::rule::{HTTPS, Host, Pattern, Rule, Via};
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The version of the file that this build reads and writes.
const VERSION: u32 = 1;
/// Bytes of the largest policy that is read: tens of thousands of rules.
const MAX_FILE: u64 = 4 << 20;

/// The two lists of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rules {
    /// What may be reached.
    #[serde(default)]
    pub allow: Vec<Rule>,
    /// What may not, whatever is allowed.
    #[serde(default)]
    pub deny: Vec<Rule>,
}

#[derive(Serialize, Deserialize)]
struct OnDisk {
    version: u32,
    #[serde(flatten)]
    rules: Rules,
}

/// A policy that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file cannot be read.
    #[error("cannot read the policy '{}'", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no policy.
    #[error("'{}' is no policy", .path.display())]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// It was written by another version.
    #[error("the policy '{}' has version {version}, this program knows {VERSION}", .path.display())]
    Version {
        /// Which.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The file cannot be written, or its lock not be taken.
    #[error("cannot write the policy '{}'", .path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Reads a policy.
pub fn read(path: &Path) -> Result<Rules, PolicyError> {
    load(path).map(|(rules, _)| rules)
}

/// What tells one version of the file from another: a rename changes the inode, a write the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    dev: u64,
    ino: u64,
    mtime: (i64, i64),
    size: u64,
}

impl Stamp {
    fn of(meta: &std::fs::Metadata) -> Self {
        Self { dev: meta.dev(), ino: meta.ino(), mtime: (meta.mtime(), meta.mtime_nsec()), size: meta.size() }
    }
}

fn load(path: &Path) -> Result<(Rules, Stamp), PolicyError> {
    let failed = |source| PolicyError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let stamp = Stamp::of(&file.metadata().map_err(failed)?);
    if stamp.size > MAX_FILE {
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 4 MiB")));
    }
    let mut text = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut text).map_err(failed)?;
    let wrong = |source| PolicyError::Syntax { path: path.to_owned(), source };
    // The version first: rules of a newer one need not be readable.
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } = serde_json::from_slice(&text).map_err(wrong)?;
    if version != VERSION {
        return Err(PolicyError::Version { path: path.to_owned(), version });
    }
    let disk: OnDisk = serde_json::from_slice(&text).map_err(wrong)?;
    Ok((disk.rules, stamp))
}

/// Writes a policy: it appears whole, readable and writable by its owner only.
pub fn write(path: &Path, rules: &Rules) -> Result<(), PolicyError> {
    let save = || -> io::Result<()> {
        let disk = OnDisk { version: VERSION, rules: rules.clone() };
        let mut text = serde_json::to_vec(&disk)?;
        text.push(b'\n');
        // Its mode is 0600 from the beginning.
        let mut file = tempfile::Builder::new().prefix(".network-").tempfile_in(parent(path))?;
        file.write_all(&text)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    save().map_err(|source| PolicyError::Write { path: path.to_owned(), source })
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Changes a policy under the lock `network.lock` beside it, so that two changes at once both count.
/// One that does not exist yet is changed from the empty one; it is written only if it became another.
pub fn edit<T>(path: &Path, change: impl FnOnce(&mut Rules) -> T) -> Result<T, PolicyError> {
    let locked = || -> io::Result<_> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let lock = rustix::fs::open(parent(path).join("network.lock"), flags, Mode::RUSR | Mode::WUSR)?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&lock, FlockOperation::LockExclusive))?;
        Ok(lock)
    };
    let _lock = locked().map_err(|source| PolicyError::Write { path: path.to_owned(), source })?;
    let before = match read(path) {
        Ok(rules) => Some(rules),
        Err(PolicyError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let mut rules = before.clone().unwrap_or_default();
    let out = change(&mut rules);
    if before.as_ref() != Some(&rules) {
        write(path, &rules)?;
    }
    Ok(out)
}

/// What was asked for: a host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The host in its one spelling.
    pub host: Host,
    /// The port.
    pub port: u16,
}

/// Why something is refused, as the events have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is its word")]
pub enum Reason {
    NotAllowed,
    Denied,
    Port,
    Address,
    Name,
    Literal,
    Unresolved,
    Unreachable,
    NotTls,
    ServerName,
    HostHeader,
    Malformed,
    TooLarge,
    TooMany,
    Slow,
    Method,
    PolicyGone,
}

impl Reason {
    /// The stable word of it (see [`sandbox_protocol::event::Network::reason`]).
    pub fn word(self) -> &'static str {
        match self {
            Reason::NotAllowed => "not-allowed",
            Reason::Denied => "denied",
            Reason::Port => "port",
            Reason::Address => "address",
            Reason::Name => "name",
            Reason::Literal => "literal",
            Reason::Unresolved => "unresolved",
            Reason::Unreachable => "unreachable",
            Reason::NotTls => "not-tls",
            Reason::ServerName => "server-name",
            Reason::HostHeader => "host-header",
            Reason::Malformed => "malformed",
            Reason::TooLarge => "too-large",
            Reason::TooMany => "too-many",
            Reason::Slow => "slow",
            Reason::Method => "method",
            Reason::PolicyGone => "policy-gone",
        }
    }
}

/// A decision about a target, before anything is resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may be reached by this rule.
    Allowed(Rule),
    /// It may not, by a rule that says so or for want of one.
    Refused(Reason, Option<Rule>),
}

/// A policy as it is asked: the rules, or nothing when they are gone.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Policy {
    rules: Option<Rules>,
}

impl From<Rules> for Policy {
    fn from(rules: Rules) -> Self {
        Self { rules: Some(rules) }
    }
}

impl Policy {
    /// The policy that could not be read: refuses everything.
    pub fn gone() -> Self {
        Self { rules: None }
    }

    /// Decides about a target. What is denied is refused whatever is allowed; of several rules that
    /// allow, the one that names the host wins over one with a star, and then one that says
    /// where to dial.
    pub fn decide(&self, target: &Target) -> Decision {
        let Some(rules) = &self.rules else { return Decision::Refused(Reason::PolicyGone, None) };
        if let Some(rule) = rules.deny.iter().find(|rule| denies(rule, &target.host, target.port)) {
            return Decision::Refused(Reason::Denied, Some(rule.clone()));
        }
        let covering = || rules.allow.iter().filter(|rule| rule.host.covers(&target.host));
        let at_port = covering().filter(|rule| allows_port(rule, target.port));
        // `max_by_key` would take the last of equals: the first is what a reader expects.
        let rank = |rule: &&Rule| (matches!(rule.host, Pattern::Below(_)), rule.via.is_none());
        match at_port.min_by_key(rank) {
            Some(rule) => Decision::Allowed(rule.clone()),
            None if covering().next().is_some() => Decision::Refused(Reason::Port, None),
            None if matches!(target.host, Host::Address(_)) => Decision::Refused(Reason::Literal, None),
            None => Decision::Refused(Reason::NotAllowed, None),
        }
    }

    /// Whether a resolved address may be dialled under a rule of this policy: not if it is denied as an
    /// address, and else as [`address::may_dial`] has it.
    pub fn may_dial(&self, dialled: SocketAddr, rule: &Rule, own: &[IpAddr]) -> bool {
        let Some(rules) = &self.rules else { return false };
        let host = Host::Address(dialled.ip().to_canonical());
        let range = match &rule.via {
            Some(Via::Range(range)) => Some(range),
            _ => None,
        };
        !rules.deny.iter().any(|rule| denies(rule, &host, dialled.port()))
            && address::may_dial(dialled.ip(), range, own)
    }

    /// Whether a connection that is open would be made in the same way now.
    pub fn still_allows(&self, target: &Target, dialled: SocketAddr, own: &[IpAddr]) -> bool {
        match self.decide(target) {
            Decision::Refused(..) => false,
            Decision::Allowed(rule) => match straight(&rule, target) {
                Some(address) => address == dialled,
                None => self.may_dial(dialled, &rule, own),
            },
        }
    }
}

/// The address that a rule says to dial without asking anyone.
pub(crate) fn straight(rule: &Rule, target: &Target) -> Option<SocketAddr> {
    match (&rule.via, &target.host) {
        (Some(Via::Address(address, port)), _) => Some(SocketAddr::new(*address, port.unwrap_or(target.port))),
        (_, Host::Address(address)) => Some(SocketAddr::new(*address, target.port)),
        _ => None,
    }
}

fn allows_port(rule: &Rule, port: u16) -> bool {
    if rule.ports.is_empty() { port == HTTPS } else { rule.ports.contains(&port) }
}

fn denies(rule: &Rule, host: &Host, port: u16) -> bool {
    rule.host.covers(host) && (rule.ports.is_empty() || rule.ports.contains(&port))
}

/// The policy of a file, read again when the file is another.
#[derive(Debug)]
pub struct Watched {
    path: PathBuf,
    stamp: Option<Stamp>,
    policy: Arc<Policy>,
}

impl Watched {
    /// Watches the policy of this file.
    pub fn new(path: PathBuf) -> Self {
        Self { path, stamp: None, policy: Arc::new(Policy::gone()) }
    }

    /// Returns the policy as it is now; costs one `stat` when nothing has changed.
    pub fn now(&mut self) -> Arc<Policy> {
        let stamp = std::fs::metadata(&self.path).ok().map(|meta| Stamp::of(&meta));
        if stamp.is_none() || stamp != self.stamp {
            (self.policy, self.stamp) = match load(&self.path) {
                Ok((rules, stamp)) => (Arc::new(rules.into()), Some(stamp)),
                // Without a stamp it is tried again at the next decision.
                Err(_) => (Arc::new(Policy::gone()), None),
            };
        }
        self.policy.clone()
    }
}
