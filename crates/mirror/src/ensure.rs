//! `POST /{repo}/ensure`: waits until the mirror has refs or commits.
//!
//! ```text
//! {"refs": {"main": "<oid>" | ""}, "commits": ["<oid>"], "timeout_ms": 5000}
//!    │   "": as it is upstream now          what is there already is answered at once
//!    ▼
//! look ─► all there? ─► answer
//!           │ no
//!           └─► one refresh, shared with everyone who waits ─► look again ─► answer
//!
//! {"resolved": {"main": "<oid>"}, "missing": ["<oid>"], "fetched": true, "age_ms": 12, "error": "…"}
//! ```

use crate::catalog::State;
use crate::desk::{Desk, blocking, body};
use crate::event::Trigger;
use crate::name::RepoName;
use crate::refresh::Waited;
use crate::repo::MirrorRepo;
use crate::serve::{Answer, Asked, Endpoint, Request, Response, json, text};
use hyper::{Method, StatusCode};
use sandbox_git::{Oid, RefName};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Refs and commits of one request.
const MOST: usize = 256;
/// The largest request.
const MAX_BODY: usize = 64 << 10;
/// How long is waited unless the request says otherwise, and at most.
const WAIT: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));

/// What is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// Refs by their full names, or branches by their own; with the commit that they shall have, or `""`: whatever
    /// they are upstream now.
    #[serde(default)]
    pub refs: BTreeMap<String, String>,
    /// Commits, whether anything names them or not.
    #[serde(default)]
    pub commits: Vec<String>,
    /// How long to wait for the upstream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// What there is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ensured {
    /// What each ref is in the mirror.
    pub resolved: BTreeMap<String, Oid>,
    /// Refs that are not there or not what was wanted, and commits that are not there.
    pub missing: Vec<String>,
    /// The upstream was asked.
    pub fetched: bool,
    /// How long ago the mirror was last seen to be equal to its upstream.
    pub age_ms: Option<u64>,
    /// Why the upstream could not be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A request that was understood.
struct Want {
    refs: Vec<(String, RefName, Option<Oid>)>,
    commits: BTreeSet<Oid>,
    wait: Duration,
}

impl Wanted {
    fn parse(&self) -> Result<Want, String> {
        if self.refs.len() + self.commits.len() > MOST {
            return Err(format!("more than {MOST} refs and commits"));
        }
        let shown = |text: &str| sandbox_git::printable(text.as_bytes());
        let oid = |text: &str| Oid::parse(text).ok_or_else(|| format!("'{}' is not an object id", shown(text)));
        let mut refs = Vec::new();
        for (name, value) in &self.refs {
            let full = if name.starts_with("refs/") { name.clone() } else { format!("refs/heads/{name}") };
            let parsed = RefName::parse(&full)
                .filter(|_| full.starts_with("refs/heads/") || full.starts_with("refs/tags/"))
                .ok_or_else(|| format!("'{}' is neither a branch nor a tag", shown(name)))?;
            refs.push((name.clone(), parsed, if value.is_empty() { None } else { Some(oid(value)?) }));
        }
        let commits = self.commits.iter().map(|text| oid(text)).collect::<Result<_, _>>()?;
        let wait = self.timeout_ms.map_or(WAIT.0, Duration::from_millis).min(WAIT.1);
        Ok(Want { refs, commits, wait })
    }
}

/// The endpoint.
pub struct Ensure(pub Arc<Desk>);

impl Endpoint for Ensure {
    fn takes(&self, method: &Method, path: &str, _: &Asked) -> bool {
        method == Method::POST && path.ends_with("/ensure") && !path.starts_with("/v1/")
    }

    fn answer<'a>(&'a self, request: Request, asked: &'a Asked) -> Answer<'a> {
        Box::pin(async move { self.ensure(request, asked).await.unwrap_or_else(|refused| *refused) })
    }
}

impl Ensure {
    async fn ensure(&self, request: Request, asked: &Asked) -> Result<Response, Box<Response>> {
        let refuse = |status, line: String| Box::new(text(status, line));
        let unknown = || refuse(StatusCode::NOT_FOUND, "no such repository".to_owned());
        let path = request.uri().path();
        let name =
            RepoName::from_request_path(&path.as_bytes()[..path.len() - "/ensure".len()]).map_err(|_| unknown())?;
        // What may not be read is not there (X6).
        let record = self.0.registry.record(&name).filter(|record| asked.who.may_read(&name, record.spec.private));
        record.ok_or_else(unknown)?;
        let bytes = body(request, MAX_BODY).await;
        let bytes =
            bytes.ok_or_else(|| refuse(StatusCode::PAYLOAD_TOO_LARGE, "the request is too large".to_owned()))?;
        let wanted: Wanted = serde_json::from_slice(&bytes)
            .map_err(|error| refuse(StatusCode::BAD_REQUEST, sandbox_git::printable(error.to_string().as_bytes())))?;
        let want = wanted.parse().map_err(|error| refuse(StatusCode::BAD_REQUEST, error))?;
        let want = Arc::new(want);
        let newest = want.refs.iter().any(|(_, _, oid)| oid.is_none());
        let mut ensured = self.look(&name, &want).await?;
        if newest || !ensured.missing.is_empty() {
            let refresh = self.0.refresher()?.refresh(&name, want.commits.clone(), Trigger::Ensure);
            let error = match tokio::time::timeout(want.wait, refresh).await {
                Ok(Waited::Fresh(_)) => None,
                Ok(Waited::Failed(trouble)) => Some(trouble.to_string()),
                Ok(Waited::Patience(left)) => Some(format!("the upstream asks for patience ({} s)", left.as_secs())),
                Ok(Waited::Unknown) => Some("the repository is not refreshed".to_owned()),
                Err(_) => Some(format!("the upstream took longer than {} ms", want.wait.as_millis())),
            };
            ensured = self.look(&name, &want).await?;
            ensured.fetched = error.is_none();
            if newest && error.is_some() {
                // What it is upstream now is not known.
                let asked_for = want.refs.iter().filter(|(_, _, oid)| oid.is_none()).map(|(name, ..)| name.clone());
                ensured
                    .missing
                    .extend(asked_for.filter(|name| ensured.resolved.contains_key(name)).collect::<Vec<_>>());
            }
            ensured.error = error;
        }
        if self.0.registry.record(&name).is_some_and(|record| record.status.state == State::Gone) {
            return Err(refuse(StatusCode::GONE, "the upstream took it away".to_owned()));
        }
        Ok(json(StatusCode::OK, &ensured))
    }

    /// What the mirror has of it: one process.
    async fn look(&self, name: &RepoName, want: &Arc<Want>) -> Result<Ensured, Box<Response>> {
        let (desk, want, name) = (self.0.clone(), want.clone(), name.clone());
        blocking(move || {
            let repo = MirrorRepo::at(desk.layout.mirror(&name));
            let mut input: Vec<u8> = Vec::new();
            for (_, full, _) in &want.refs {
                input.extend_from_slice(full.as_bytes());
                input.push(b'\n');
            }
            want.commits.iter().for_each(|oid| input.extend_from_slice(format!("{oid}\n").as_bytes()));
            let out = if repo.dir().join("HEAD").exists() {
                let ask = repo.git(&desk.git).stdin(input).args(["cat-file", "--batch-check=%(objectname)"]);
                ask.output().map(|out| out.stdout).unwrap_or_default()
            } else {
                Vec::new()
            };
            let mut lines = out.split(|b| *b == b'\n').map(Oid::parse);
            let mut ensured = Ensured::default();
            for (name, _, wanted) in &want.refs {
                let found = lines.next().flatten();
                match found {
                    Some(oid) => {
                        ensured.resolved.insert(name.clone(), oid);
                        if wanted.is_some_and(|wanted| wanted != oid) {
                            ensured.missing.push(name.clone());
                        }
                    }
                    None => ensured.missing.push(name.clone()),
                }
            }
            for oid in &want.commits {
                if lines.next().flatten().is_none() {
                    ensured.missing.push(oid.to_string());
                }
            }
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
            let then = desk.registry.live(&name).refreshed().and_then(|at| u128::try_from(at).ok());
            ensured.age_ms = then.map(|at| u64::try_from(now.saturating_sub(at * 1000)).unwrap_or(u64::MAX));
            ensured
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(json: &str) -> Result<Want, String> {
        serde_json::from_str::<Wanted>(json).map_err(|error| error.to_string())?.parse()
    }

    #[test]
    fn only_branches_tags_and_ids_can_be_asked_for() {
        let oid = "a".repeat(40);
        let want = parsed(&format!(r#"{{"refs":{{"main":"","refs/tags/v1":"{oid}"}},"commits":["{oid}"]}}"#)).unwrap();
        assert_eq!(
            want.refs.iter().map(|(_, full, _)| full.to_str().unwrap()).collect::<Vec<_>>(),
            ["refs/heads/main", "refs/tags/v1"]
        );
        assert_eq!((want.commits.len(), want.wait), (1, WAIT.0));
        let said = |json: &str| parsed(json).map(drop).unwrap_err();
        assert_eq!(said(r#"{"refs":{"refs/agents/s1":""}}"#), "'refs/agents/s1' is neither a branch nor a tag");
        assert_eq!(said(r#"{"refs":{"a..b":""}}"#), "'a..b' is neither a branch nor a tag");
        assert_eq!(said(r#"{"refs":{"main":"HEAD"}}"#), "'HEAD' is not an object id");
        assert_eq!(said(r#"{"commits":["--all"]}"#), "'--all' is not an object id");
        assert!(said(r#"{"ref":{}}"#).starts_with("unknown field `ref`"));
        let many = serde_json::to_string(&Wanted { commits: vec![oid; MOST + 1], ..Wanted::default() }).unwrap();
        assert_eq!(said(&many), "more than 256 refs and commits");
    }
}
