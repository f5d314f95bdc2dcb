//! Which upstreams may be asked (rule X7), and the flags by which git asks exactly those.
//!
//! ```text
//! URL ─► scheme ─► name resolved once ─► every address judged ─► git dials the judged ones, by
//!                                                                 http.curloptResolve, ssh HostName
//! ```
//!
//! Git never follows a redirect by itself; [`Reach::redirected`] decides.

use crate::credential::{Secret, Source, helper_setting};
use crate::name::{Scheme, Upstream};
use ipnet::IpNet;
use sandbox_git::GitCommand;
use sandbox_proxy::address::{Kind, kind};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// How long a name may take.
const RESOLVING: Duration = Duration::from_secs(10);

/// What may be asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// `http`, `git` and `file` as well.
    pub allow_insecure: bool,
    /// Ranges that are not public and may be asked all the same.
    pub allow_private: Vec<IpNet>,
    /// Authorities (PEM) in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// Keys of hosts for ssh, in place of those of who runs it.
    pub known_hosts: Option<PathBuf>,
}

/// Why an upstream is not asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAllowed {
    /// In the clear, or a path of this machine.
    #[error("'{0}' upstreams need 'upstream.allow_insecure = true'")]
    Scheme(&'static str),
    /// Not in the world.
    #[error("'{host}' is at {address}, which is not public: 'upstream.allow_private' can name its range")]
    Address {
        /// The host.
        host: String,
        /// Where it leads.
        address: IpAddr,
    },
    /// No address.
    #[error("'{0}' cannot be resolved")]
    Unresolved(String),
    /// A credential of another host.
    #[error("credential '{id}' is for '{host}', not for '{asked}'")]
    Credential {
        /// The credential.
        id: String,
        /// Its host.
        host: String,
        /// The upstream's.
        asked: String,
    },
    /// ssh takes keys only.
    #[error("an ssh upstream needs a key, as 'file:/path', not '{0}'")]
    Key(Source),
}

/// Resolves names without the C library's resolver: that one cannot be in a static program.
#[derive(Clone)]
pub struct Resolver {
    handle: tokio::runtime::Handle,
}

impl Resolver {
    /// Resolves on this runtime.
    pub fn new(handle: tokio::runtime::Handle) -> Self {
        Self { handle }
    }

    /// Returns the addresses of a host; none if it has none. Blocks.
    pub fn resolve(&self, host: &str) -> Vec<IpAddr> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse() {
            return vec![address];
        }
        let lookup = async {
            // Made each time: a laptop changes networks, and a refresh is rare.
            let resolver = hickory_resolver::TokioResolver::builder_tokio().ok()?.build().ok()?;
            // With the final dot: no search list.
            let name = hickory_resolver::proto::rr::Name::from_ascii(format!("{host}.")).ok()?;
            Some(resolver.lookup_ip(name).await.ok()?.iter().collect::<Vec<_>>())
        };
        let limited = async { tokio::time::timeout(RESOLVING, lookup).await };
        self.handle.block_on(limited).ok().flatten().unwrap_or_default()
    }
}

/// An upstream that may be asked, at these addresses.
#[derive(Debug, Clone)]
pub struct Reach {
    upstream: Upstream,
    addresses: Vec<IpAddr>,
    policy: Policy,
}

impl Reach {
    /// Judges an upstream. `resolve` is asked for the addresses of its host; all of them are judged.
    pub fn check(
        policy: &Policy,
        upstream: &Upstream,
        resolve: impl FnOnce(&str) -> Vec<IpAddr>,
        own: &[IpAddr],
    ) -> Result<Self, NotAllowed> {
        let scheme = upstream.scheme();
        if !matches!(scheme, Scheme::Https | Scheme::Ssh) && !policy.allow_insecure {
            return Err(NotAllowed::Scheme(scheme.as_str()));
        }
        let mut addresses = Vec::new();
        if scheme != Scheme::File {
            let host = host_of(upstream);
            addresses = resolve(host);
            let allowed = |address: &IpAddr| {
                let plain = address.to_canonical();
                policy.allow_private.iter().any(|range| range.contains(&plain))
                    || kind(*address) == Kind::Public && !own.contains(&plain)
            };
            if let Some(address) = addresses.iter().find(|address| !allowed(address)) {
                return Err(NotAllowed::Address { host: host.to_owned(), address: *address });
            }
            if addresses.is_empty() {
                return Err(NotAllowed::Unresolved(host.to_owned()));
            }
        }
        Ok(Self { upstream: upstream.clone(), addresses, policy: policy.clone() })
    }

    /// The upstream.
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// Adds to a command what it needs to ask this upstream and nobody else.
    pub(super) fn apply(&self, mut command: GitCommand, secret: Option<&Secret>, key: Option<&PathBuf>) -> GitCommand {
        let scheme = self.upstream.scheme();
        command = command
            .config(format!("protocol.{}.allow=always", scheme.as_str()))
            .config("protocol.version=2")
            .config("http.followRedirects=false")
            .config("http.lowSpeedLimit=1000")
            .config("http.lowSpeedTime=30")
            // Whoever asks gets nothing at once, not an empty name that costs one more request.
            .config("core.askPass=false");
        if let Some(file) = &self.policy.ca_file {
            command = command.config(format!("http.sslCAInfo={}", file.display()));
        }
        match scheme {
            Scheme::Https | Scheme::Http => {
                let host = host_of(&self.upstream);
                let port = self.port();
                let all = self.addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
                command = command.config(format!("http.curloptResolve={host}:{port}:{all}"));
                if let Some(fd) = secret.and_then(|secret| secret.hand().ok()) {
                    let origin = format!("{}://{}", scheme.as_str(), self.upstream.host());
                    command = command.config(helper_setting(&origin, &fd)).inherit(fd);
                }
            }
            Scheme::Ssh => {
                let host = host_of(&self.upstream);
                let mut ssh =
                    "ssh -F none -o BatchMode=yes -o StrictHostKeyChecking=yes -o ConnectTimeout=20".to_owned();
                if let Some(address) = self.addresses.first() {
                    let port = self.port();
                    let alias = if port == 22 { host.to_owned() } else { format!("[{host}]:{port}") };
                    ssh.push_str(&format!(" -o HostName={address} -o HostKeyAlias={alias}"));
                }
                if let Some(file) = &self.policy.known_hosts {
                    command = command.env("GIT_SANDBOX_KNOWN_HOSTS", file);
                    // Quoted once for the shell and once for ssh, which takes a list here.
                    ssh.push_str(" -o UserKnownHostsFile=\\\"\"$GIT_SANDBOX_KNOWN_HOSTS\"\\\"");
                }
                if let Some(key) = key {
                    command = command.env("GIT_SANDBOX_SSH_KEY", key);
                    ssh.push_str(" -o IdentitiesOnly=yes -i \"$GIT_SANDBOX_SSH_KEY\"");
                }
                command = command.config(format!("core.sshCommand={ssh}")).config("ssh.variant=ssh");
            }
            Scheme::Git | Scheme::File => {}
        }
        command
    }

    fn port(&self) -> u16 {
        let host = self.upstream.host();
        let tail =
            host.rsplit_once(':').filter(|(_, port)| !port.contains(']')).and_then(|(_, port)| port.parse().ok());
        tail.or(self.upstream.scheme().default_port()).unwrap_or(0)
    }

    /// Decides on a redirect of `info/refs`: the upstream that it means, if we go there by ourselves.
    /// With a credential that is the same host by the same scheme; without, any that is no weaker.
    pub(super) fn redirected(&self, location: &str, has_credential: bool) -> Option<Upstream> {
        let base = match location.find("/info/refs") {
            Some(end) => &location[..end],
            None => return None,
        };
        let absolute = match base.strip_prefix('/') {
            Some(path) if !path.starts_with('/') => {
                format!("{}://{}/{path}", self.upstream.scheme().as_str(), self.upstream.host())
            }
            _ => base.to_owned(),
        };
        let to = Upstream::parse(&absolute).ok()?;
        let same_host = to.host() == self.upstream.host() && to.scheme() == self.upstream.scheme();
        let safe = match to.scheme() {
            Scheme::Https => true,
            // No way down from TLS.
            Scheme::Http => self.upstream.scheme() == Scheme::Http,
            _ => false,
        };
        (safe && (same_host || !has_credential)).then_some(to)
    }
}

/// The host without a port.
fn host_of(upstream: &Upstream) -> &str {
    let host = upstream.host();
    match host.rsplit_once(':') {
        Some((bare, port)) if !port.contains(']') => bare,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(policy: &Policy, url: &str, addresses: &[&str]) -> Result<Reach, String> {
        let upstream = Upstream::parse(url).unwrap();
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        let own = ["203.0.113.7".parse().unwrap()];
        Reach::check(policy, &upstream, |_| addresses, &own).map_err(|error| error.to_string())
    }

    #[test]
    fn only_the_world_is_asked_unless_a_range_is_opened() {
        let policy = Policy::default();
        assert!(check(&policy, "https://h/o/r", &["93.184.216.34", "2606:2800:220:1::1"]).is_ok());
        for (url, address) in [
            ("https://h/r", "127.0.0.1"),
            ("https://h/r", "169.254.169.254"),
            ("https://h/r", "10.1.2.3"),
            ("https://h/r", "::1"),
            ("https://h/r", "fe80::1"),
            ("https://h/r", "::ffff:192.168.0.1"),
            ("ssh://git@h/r", "64:ff9b::7f00:1"),
            ("https://h/r", "203.0.113.7"),
        ] {
            let said = check(&policy, url, &["93.184.216.34", address]).unwrap_err();
            let address: IpAddr = address.parse().unwrap();
            let expected =
                format!("'h' is at {address}, which is not public: 'upstream.allow_private' can name its range");
            assert_eq!(said, expected);
        }
        let open = Policy { allow_private: vec!["10.0.0.0/8".parse().unwrap()], ..policy.clone() };
        assert!(check(&open, "https://h/r", &["10.1.2.3"]).is_ok());
        assert!(check(&open, "https://h/r", &["192.168.0.1"]).is_err());
        assert_eq!(check(&policy, "https://h/r", &[]).unwrap_err(), "'h' cannot be resolved");
    }

    #[test]
    fn in_the_clear_only_if_asked_for() {
        let policy = Policy::default();
        for (url, scheme) in [("http://h/r", "http"), ("git://h/r", "git"), ("file:///r", "file"), ("/r", "file")] {
            let said = check(&policy, url, &["93.184.216.34"]).unwrap_err();
            assert_eq!(said, format!("'{scheme}' upstreams need 'upstream.allow_insecure = true'"));
            let open = Policy { allow_insecure: true, ..policy.clone() };
            assert!(check(&open, url, &["93.184.216.34"]).is_ok());
        }
    }

    #[test]
    fn a_redirect_never_takes_a_credential_elsewhere_nor_tls_away() {
        let reach = check(&Policy::default(), "https://h/old/r", &["93.184.216.34"]).unwrap();
        let to = |location: &str, credential: bool| {
            reach.redirected(location, credential).map(|upstream| upstream.url().to_owned())
        };
        let refs = |base: &str| format!("{base}/info/refs?service=git-upload-pack");
        assert_eq!(to(&refs("https://h/new/r"), true).as_deref(), Some("https://h/new/r"));
        assert_eq!(to(&refs("/new/r.git"), true).as_deref(), Some("https://h/new/r.git"));
        assert_eq!(to(&refs("https://other/r"), true), None);
        assert_eq!(to(&refs("https://h:8443/r"), true), None);
        assert_eq!(to(&refs("https://other/r"), false).as_deref(), Some("https://other/r"));
        for bad in ["http://h/r", "file:///etc", "ssh://h/r", "https://u:p@h/r", "//other/r"] {
            assert_eq!(to(&refs(bad), false), None, "{bad}");
        }
        assert_eq!(to("https://h/login", false), None);
    }

    #[test]
    fn other_refusals_are_told_in_words() {
        let credential = NotAllowed::Credential { id: "gh".into(), host: "a".into(), asked: "b".into() };
        assert_eq!(credential.to_string(), "credential 'gh' is for 'a', not for 'b'");
        let key = NotAllowed::Key("env:T".parse().unwrap());
        assert_eq!(key.to_string(), "an ssh upstream needs a key, as 'file:/path', not 'env:T'");
    }
}
