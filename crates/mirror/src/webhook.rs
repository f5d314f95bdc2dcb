//! Webhooks: a forge says that something was pushed, and the mirror looks at once.
//!
//! ```text
//! POST /hooks/{provider} ─► body (capped) ─► signature (constant time) ─► whose repository ─► refresh
//!
//! github    X-Hub-Signature-256: sha256=HEX       HMAC-SHA-256 of the body
//! gitlab    X-Gitlab-Token: SECRET                the secret itself
//! gitea     X-Gitea-Signature: HEX                HMAC-SHA-256 of the body (Forgejo and Gogs as well)
//! generic   X-Signature-256: sha256=HEX           HMAC-SHA-256 of the body: {"url": "…"} or {"repo": "host/o/n"}
//! ```
//!
//! What a delivery says is only a reason to look: the refs are always read from the upstream itself. So a delivery
//! that comes twice, late or in the wrong order does no harm, and none is remembered.

use crate::desk::{Desk, blocking, body};
use crate::event::Trigger;
use crate::name::{RepoName, Upstream};
use crate::registry::Snapshot;
use crate::serve::{Answer, Asked, Endpoint, Request, Response, json, text};
use hmac::{Hmac, KeyInit, Mac};
use hyper::{Method, StatusCode};
use serde_json::Value;
use sha2::Sha256;
use std::str::FromStr;
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// The largest delivery that is read. What is larger is found by the next refresh.
pub const MAX_BODY: usize = 4 << 20;

/// Who sends webhooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// github.com and GitHub Enterprise.
    Github,
    /// gitlab.com and GitLab.
    Gitlab,
    /// Gitea, Forgejo, Gogs.
    Gitea,
    /// Anything that can compute an HMAC.
    Generic,
}

impl Provider {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Github, Self::Gitlab, Self::Gitea, Self::Generic];

    /// As in configuration and paths.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Github => "github",
            Self::Gitlab => "gitlab",
            Self::Gitea => "gitea",
            Self::Generic => "generic",
        }
    }

    /// The header that proves who sent it.
    fn header(self) -> &'static str {
        match self {
            Self::Github => "x-hub-signature-256",
            Self::Gitlab => "x-gitlab-token",
            Self::Gitea => "x-gitea-signature",
            Self::Generic => "x-signature-256",
        }
    }
}

impl FromStr for Provider {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|provider| provider.as_str() == text).ok_or_else(|| {
            format!("'{}' is none of 'github', 'gitlab', 'gitea', 'generic'", sandbox_git::printable(text.as_bytes()))
        })
    }
}

/// Why a delivery was not taken. What is told to the sender says nothing of repositories or secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not configured, or not this provider.
    #[error("no such webhook")]
    Unknown,
    /// No signature.
    #[error("the signature is missing")]
    Unsigned,
    /// Another secret.
    #[error("the signature does not match")]
    Signature,
    /// Over [`MAX_BODY`].
    #[error("the delivery is too large")]
    TooLarge,
    /// Not JSON, or without a repository.
    #[error("the delivery names no repository")]
    Nameless,
}

impl Refusal {
    /// The status that says so.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Unknown => StatusCode::NOT_FOUND,
            Self::Unsigned | Self::Signature => StatusCode::UNAUTHORIZED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Nameless => StatusCode::BAD_REQUEST,
        }
    }
}

/// Checks that whoever knows `secret` has sent this body, in a time that does not depend on how much of it is right.
pub fn verify<'h>(
    provider: Provider,
    secret: &str,
    header: impl Fn(&str) -> Option<&'h str>,
    body: &[u8],
) -> Result<(), Refusal> {
    if body.len() > MAX_BODY {
        return Err(Refusal::TooLarge);
    }
    let proof = header(provider.header()).ok_or(Refusal::Unsigned)?;
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("any length is a key");
    let right = if provider == Provider::Gitlab {
        // Of the same length whatever was sent.
        let digest = |text: &str| sandbox_git::sha256(text.as_bytes());
        bool::from(digest(proof).ct_eq(&digest(secret)))
    } else {
        mac.update(body);
        let digits = proof.strip_prefix("sha256=").unwrap_or(proof);
        unhex(digits).is_some_and(|sent| mac.verify_slice(&sent).is_ok())
    };
    if right { Ok(()) } else { Err(Refusal::Signature) }
}

fn unhex(digits: &str) -> Option<Vec<u8>> {
    let value = |b: u8| char::from(b).to_digit(16).map(|digit| digit as u8);
    (digits.len() == 64).then_some(())?;
    digits.as_bytes().chunks_exact(2).map(|pair| Some(value(pair[0])? << 4 | value(pair[1])?)).collect()
}

/// Returns what the delivery calls its repository: URLs, or a name in the mirror. Empty: nothing to look at
/// (a test of the connection).
pub fn repositories(provider: Provider, body: &[u8]) -> Result<Vec<String>, Refusal> {
    let body: Value = serde_json::from_slice(body).map_err(|_| Refusal::Nameless)?;
    let (object, keys): (&Value, &[&str]) = match provider {
        Provider::Github => (&body["repository"], &["clone_url", "ssh_url", "git_url"]),
        Provider::Gitea => (&body["repository"], &["clone_url", "ssh_url"]),
        Provider::Gitlab => (&body["project"], &["git_http_url", "git_ssh_url", "http_url", "ssh_url"]),
        Provider::Generic => (&body, &["url", "repo"]),
    };
    let found: Vec<String> = keys.iter().filter_map(|key| object[*key].as_str()).map(str::to_owned).collect();
    // An organisation's ping names none.
    let ping = body["zen"].is_string() && object.is_null();
    if found.is_empty() && !ping { Err(Refusal::Nameless) } else { Ok(found) }
}

/// The repositories of the registry that a delivery means: by name, or by the upstream's address, whichever way it
/// is spelled.
pub fn meant(registry: &Snapshot, said: &[String]) -> Vec<RepoName> {
    let upstreams: Vec<RepoName> =
        said.iter().filter_map(|text| Upstream::parse(text).ok()).map(|upstream| upstream.name().clone()).collect();
    let names: Vec<RepoName> = said.iter().filter_map(|text| text.parse().ok()).collect();
    let is_meant = |name: &RepoName, upstream: &RepoName| names.contains(name) || upstreams.contains(upstream);
    let all = registry.repos.values().map(|record| &record.spec);
    all.filter(|spec| is_meant(&spec.name, spec.url.name())).map(|spec| spec.name.clone()).collect()
}

/// The endpoint.
pub struct Hooks(pub Arc<Desk>);

impl Endpoint for Hooks {
    fn takes(&self, _: &Method, path: &str, _: &Asked) -> bool {
        path.starts_with("/hooks/")
    }

    fn answer<'a>(&'a self, request: Request, _: &'a Asked) -> Answer<'a> {
        Box::pin(async move {
            self.take(request).await.unwrap_or_else(|refused| match refused {
                Ok(refusal) => text(refusal.status(), refusal),
                Err(response) => *response,
            })
        })
    }
}

impl Hooks {
    async fn take(&self, request: Request) -> Result<Response, Result<Refusal, Box<Response>>> {
        let (head, incoming) = request.into_parts();
        let provider = head.uri.path().strip_prefix("/hooks/").and_then(|name| name.parse().ok());
        let configured = self.0.webhook.as_ref().filter(|_| head.method == Method::POST);
        let (Some(provider), Some((webhook, _))) = (provider, configured) else { return Err(Ok(Refusal::Unknown)) };
        if !webhook.providers.contains(&provider) {
            return Err(Ok(Refusal::Unknown));
        }
        let bytes = body(Request::new(incoming), MAX_BODY).await.ok_or(Ok(Refusal::TooLarge))?;
        let desk = self.0.clone();
        let secret = blocking(move || {
            let (webhook, keeper) = desk.webhook.as_ref()?;
            keeper.get(&webhook.secret, "webhook").ok()
        });
        let no_secret = || Box::new(text(StatusCode::INTERNAL_SERVER_ERROR, "the webhook's secret cannot be read"));
        let secret = secret.await.map_err(Err)?.ok_or_else(|| Err(no_secret()))?;
        let header = |name: &str| head.headers.get(name)?.to_str().ok();
        verify(provider, secret.expose(), header, &bytes).map_err(Ok)?;
        let said = repositories(provider, &bytes).map_err(Ok)?;
        let refresher = self.0.refresher().map_err(Err)?;
        let mut refreshing = meant(&self.0.registry.now(), &said);
        refreshing.retain(|name| refresher.poke(name, Trigger::Webhook));
        Ok(json(StatusCode::ACCEPTED, &serde_json::json!({ "refreshing": refreshing })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // From GitHub's documentation of "Validating webhook deliveries".
    const SECRET: &str = "It's a Secret to Everybody";
    const BODY: &[u8] = b"Hello, World!";
    const SIGNATURE: &str = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

    fn check(provider: Provider, name: &str, value: &str, body: &[u8]) -> Result<(), Refusal> {
        verify(provider, SECRET, |asked| (asked == name).then_some(value), body)
    }

    #[test]
    fn each_provider_proves_itself_in_its_way() {
        let github = format!("sha256={SIGNATURE}");
        assert_eq!(check(Provider::Github, "x-hub-signature-256", &github, BODY), Ok(()));
        assert_eq!(check(Provider::Generic, "x-signature-256", &github, BODY), Ok(()));
        assert_eq!(check(Provider::Gitea, "x-gitea-signature", SIGNATURE, BODY), Ok(()));
        assert_eq!(check(Provider::Gitlab, "x-gitlab-token", SECRET, BODY), Ok(()));
    }

    #[test]
    fn what_is_not_signed_by_the_secret_is_refused() {
        let github = format!("sha256={SIGNATURE}");
        for (provider, name, value) in [
            (Provider::Github, "x-hub-signature-256", "sha256="),
            (Provider::Github, "x-hub-signature-256", &SIGNATURE[..62]),
            (Provider::Gitea, "x-gitea-signature", &"0".repeat(64)),
            (Provider::Gitea, "x-gitea-signature", "\u{e9}"),
            (Provider::Gitlab, "x-gitlab-token", "It's a Secret"),
            (Provider::Gitlab, "x-gitlab-token", ""),
        ] {
            assert_eq!(check(provider, name, value, BODY), Err(Refusal::Signature), "{provider:?} {value}");
        }
        assert_eq!(check(Provider::Github, "x-hub-signature-256", &github, b"Hello, World?"), Err(Refusal::Signature));
        // A signature of another provider's is none.
        assert_eq!(check(Provider::Gitlab, "x-hub-signature-256", &github, BODY), Err(Refusal::Unsigned));
        assert_eq!(check(Provider::Github, "x-gitlab-token", SECRET, BODY), Err(Refusal::Unsigned));
        let large = vec![b' '; MAX_BODY + 1];
        assert_eq!(check(Provider::Github, "x-hub-signature-256", &github, &large), Err(Refusal::TooLarge));
    }

    #[test]
    fn the_repository_is_where_each_provider_names_it() {
        let github =
            br#"{"ref":"refs/heads/x","repository":{"clone_url":"https://h/o/n.git","ssh_url":"git@h:o/n.git"}}"#;
        assert_eq!(repositories(Provider::Github, github).unwrap(), ["https://h/o/n.git", "git@h:o/n.git"]);
        let gitlab = br#"{"object_kind":"push","project":{"git_http_url":"https://h/g/s/n.git"}}"#;
        assert_eq!(repositories(Provider::Gitlab, gitlab).unwrap(), ["https://h/g/s/n.git"]);
        assert_eq!(repositories(Provider::Generic, br#"{"repo":"h/o/n"}"#).unwrap(), ["h/o/n"]);
        assert_eq!(repositories(Provider::Github, br#"{"zen":"Keep it simple."}"#).unwrap(), [""; 0]);
        for bad in [&b"{}"[..], b"[]", b"not json", br#"{"repository":7}"#] {
            assert_eq!(repositories(Provider::Gitea, bad), Err(Refusal::Nameless));
        }
    }

    #[test]
    fn a_repository_is_meant_however_its_address_is_spelled() {
        use crate::registry::{Origin, Record, Spec, Status};
        let mut spec = Spec::of(Upstream::parse("https://Forge.test/o/n").unwrap());
        spec.name = "mine/n".parse().unwrap();
        let record = Record { spec, origin: Origin::Api, paused: false, status: Status::default() };
        let registry =
            Snapshot { repos: [("mine/n".parse().unwrap(), Arc::new(record))].into(), ..Snapshot::default() };
        for said in ["https://forge.test/o/n.git", "git@forge.test:o/n.git", "ssh://git@forge.test:22/o/n", "mine/n"] {
            assert_eq!(meant(&registry, &[said.to_owned()]).len(), 1, "{said}");
        }
        for said in ["https://forge.test/o/nn", "forge.test/o", "", "ext::sh -c x"] {
            assert_eq!(meant(&registry, &[said.to_owned()]).len(), 0, "{said}");
        }
    }

    #[test]
    fn every_refusal_has_its_status_and_tells_nothing() {
        let all = [Refusal::Unknown, Refusal::Unsigned, Refusal::Signature, Refusal::TooLarge, Refusal::Nameless];
        let told: Vec<_> = all.iter().map(|r| format!("{} {r}", r.status().as_u16())).collect();
        assert_eq!(
            told,
            [
                "404 no such webhook",
                "401 the signature is missing",
                "401 the signature does not match",
                "413 the delivery is too large",
                "400 the delivery names no repository",
            ]
        );
    }
}
