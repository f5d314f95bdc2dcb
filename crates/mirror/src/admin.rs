//! The administrator's API, on the administrator's socket only. Its types are the command line's as well.
//!
//! ```text
//! GET    /v1/repos                                    {"repos": [Repo…]}
//! POST   /v1/repos          Add                       201 Repo
//! GET    /v1/repos/{repo}                             Repo
//! DELETE /v1/repos/{repo}[?dry_run]                   Removed; 409 while there are scratch refs
//! POST   /v1/repos/{repo}/refresh|verify|repack       Repo, when it is done; repack?full
//! POST   /v1/repos/{repo}/pause|resume                Repo
//! GET    /v1/sessions                                 {"sessions": [SessionView…]}
//! POST   /v1/sessions       NewSession                201 Granted
//! DELETE /v1/sessions/{id}                            204
//! GET    /v1/scratch                                  AllHeld
//! GET    /v1/scratch/{session}/{repo}                 Held
//! POST   /v1/scratch/{session}/bundle/{repo}  Wanted  a bundle; 204 where nothing is left to bring
//! POST   /v1/scratch/{session}/saved/{repo}   Saved   Held; who has taken it says so
//! DELETE /v1/scratch/{session}/{repo}[?force]         Held; 409 while it is nowhere else
//! GET    /v1/quarantine                               AllAside
//! DELETE /v1/quarantine[?older=SECONDS&force&dry_run] Emptied
//!
//! errors: {"error": "…", "hint": "…"}
//! ```

mod scratch;

use crate::desk::{Desk, blocking, body};
use crate::event::Trigger;
use crate::identity::{Gate, Session, SessionId, TokenHash};
use crate::maintain::{MaintainError, Maintainer, Task};
use crate::name::{NameError, RepoName, Upstream};
use crate::quarantine::{self, AllAside};
use crate::refresh::{Pattern, Waited};
use crate::registry::plan::{Change, Refused, Removal, RemovalError};
use crate::registry::{Origin, Record, RegistryError, Spec};
use crate::serve::{Answer, Asked, Endpoint, Request, Response, json, text};
use hyper::{Method, StatusCode};
use sandbox_git::Oid;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const MAX_BODY: usize = 256 << 10;
/// The longest session.
const MAX_TTL: Duration = Duration::from_secs(366 * 86_400);

/// A repository, as it is told.
pub type Repo = Record;

/// All repositories.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Repos {
    /// Sorted by name.
    pub repos: Vec<Repo>,
}

/// A repository that shall be mirrored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Add {
    /// The upstream.
    pub url: String,
    /// What it is served as; from the URL otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The id of its credential, of the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
    /// Milliseconds between two refreshes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u64>,
    /// Which refs; empty: heads and tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refs: Vec<String>,
    /// Only for sessions that were granted it.
    #[serde(default)]
    pub private: bool,
}

impl Add {
    fn spec(self) -> Result<Spec, String> {
        let shown = |text: &str| sandbox_git::printable(text.as_bytes());
        let url = Upstream::parse(&self.url).map_err(|error| match error {
            // Neither told nor logged: it is somebody's.
            NameError::Password => error.to_string(),
            error if self.url.contains('@') => format!("the URL: {error}"),
            error => format!("'{}': {error}", shown(&self.url)),
        })?;
        let mut spec = Spec::of(url);
        if let Some(name) = self.name {
            spec.name = name.parse().map_err(|error| format!("'{}': {error}", shown(&name)))?;
        }
        if self.interval_ms.is_some_and(|ms| ms < 1000) {
            return Err("an interval is at least 1 s".to_owned());
        }
        spec.refs = self.refs.iter().map(|text| Pattern::parse(text)).collect::<Result<_, _>>()?;
        Ok(Spec { credential: self.credential, interval_ms: self.interval_ms, private: self.private, ..spec })
    }
}

/// What removing a repository takes away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Directories.
    pub dirs: Vec<PathBuf>,
    /// Scratch refs, which are nowhere else; with any, it is not removed.
    pub scratch: Vec<String>,
    /// It was done.
    pub done: bool,
}

/// A session that shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewSession {
    /// Its id: it may write `refs/agents/<id>`.
    pub id: SessionId,
    /// What it may read.
    pub repos: Vec<RepoName>,
    /// The commit that it begins at, in the first of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Oid>,
    /// Seconds that it lives; without it, until it is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u64>,
    /// It is known by a token, not by a socket of its own.
    #[serde(default)]
    pub token: bool,
}

/// How a session is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// Its id.
    pub id: SessionId,
    /// By this Unix socket: who connects is the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// By this bearer token. It is told once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// A session, as it is told: never its token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionView {
    /// Its id.
    pub id: SessionId,
    /// What it may read, with the commit that it began at.
    pub repos: BTreeMap<RepoName, Option<Oid>>,
    /// Seconds since 1970 of its end.
    pub expires: Option<u64>,
}

/// An error, as it is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What went wrong.
    pub error: String,
    /// The next step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// The endpoint.
pub struct Admin {
    desk: Arc<Desk>,
    maintainer: OnceLock<Maintainer>,
    /// Ids of the credentials that repositories can have.
    credentials: Vec<String>,
}

type Told = Result<Response, Box<Response>>;

fn fail(status: StatusCode, error: impl ToString, hint: Option<&str>) -> Box<Response> {
    Box::new(json(status, &Failure { error: error.to_string(), hint: hint.map(str::to_owned) }))
}

fn refused(error: &RegistryError) -> Box<Response> {
    let status = match error {
        RegistryError::Refused(Refused::Unknown { .. }) => StatusCode::NOT_FOUND,
        RegistryError::Refused(_) => StatusCode::CONFLICT,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    let hint = match error {
        RegistryError::Refused(why) => Some(why.hint()),
        _ => None,
    };
    let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    fail(status, format!("{error}{source}"), hint)
}

impl Endpoint for Admin {
    fn takes(&self, _: &Method, path: &str, asked: &Asked) -> bool {
        // Elsewhere there is no such path.
        path.starts_with("/v1/") && asked.gate == Gate::Admin
    }

    fn answer<'a>(&'a self, request: Request, _: &'a Asked) -> Answer<'a> {
        Box::pin(async move { self.route(request).await.unwrap_or_else(|refused| *refused) })
    }
}

impl Admin {
    /// Makes it, for a configuration with these credentials.
    pub fn new(desk: Arc<Desk>, credentials: Vec<String>) -> Self {
        Self { desk, maintainer: OnceLock::new(), credentials }
    }

    /// Says that maintenance runs now.
    pub fn maintained_by(&self, maintainer: Maintainer) {
        let _ = self.maintainer.set(maintainer);
    }

    async fn route(&self, request: Request) -> Told {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let query = request.uri().query().unwrap_or("").to_owned();
        let not_found = || fail(StatusCode::NOT_FOUND, "no such path", None);
        let rest = path.strip_prefix("/v1/").unwrap_or("");
        match (method.as_str(), rest.split_once('/')) {
            ("GET", None) if rest == "repos" => {
                let repos = self.desk.registry.now().repos.values().map(|record| Record::clone(record)).collect();
                Ok(json(StatusCode::OK, &Repos { repos }))
            }
            ("POST", None) if rest == "repos" => self.add(read(request).await?).await,
            ("GET", Some(("repos", name))) => self.show(&self.named(name)?),
            ("DELETE", Some(("repos", name))) => self.remove(self.named(name)?, query.contains("dry_run")).await,
            ("POST", Some(("repos", rest))) => {
                let (name, verb) = rest.rsplit_once('/').ok_or_else(not_found)?;
                let name = self.named(name)?;
                match verb {
                    "refresh" => self.refresh(&name).await?,
                    "verify" => self.maintain(&name, Task::Verify).await?,
                    "repack" if query.contains("full") => self.maintain(&name, Task::Full).await?,
                    "repack" => self.maintain(&name, Task::Geometric).await?,
                    "pause" => self.pause(&name, true).await?,
                    "resume" => self.pause(&name, false).await?,
                    _ => return Err(not_found()),
                }
                self.show(&name)
            }
            (verb, None) if rest == "scratch" => self.scratch(verb, "", &query, request).await,
            (verb, Some(("scratch", rest))) => self.scratch(verb, rest, &query, request).await,
            (verb @ ("GET" | "DELETE"), None) if rest == "quarantine" => {
                self.quarantine(verb == "DELETE", &query).await
            }
            ("GET", None) if rest == "sessions" => Ok(self.sessions()),
            ("POST", None) if rest == "sessions" => self.grant(read(request).await?).await,
            ("DELETE", Some(("sessions", id))) => {
                let id: SessionId = id.parse().map_err(|_| not_found())?;
                let (desk, of) = (self.desk.clone(), id.clone());
                let ended = blocking(move || {
                    desk.close(&of);
                    desk.registry.end_session(&of)
                });
                match ended.await?.map_err(|error| refused(&error))? {
                    true => Ok(text(StatusCode::NO_CONTENT, "")),
                    false => Err(fail(StatusCode::NOT_FOUND, format!("no session '{id}'"), None)),
                }
            }
            _ => Err(not_found()),
        }
    }

    fn named(&self, path: &str) -> Result<RepoName, Box<Response>> {
        RepoName::from_request_path(path.as_bytes()).map_err(|error| fail(StatusCode::BAD_REQUEST, error, None))
    }

    fn unknown(name: &RepoName) -> Box<Response> {
        refused(&RegistryError::Refused(Refused::Unknown { name: name.clone() }))
    }

    fn show(&self, name: &RepoName) -> Told {
        let record = self.desk.registry.record(name).ok_or_else(|| Self::unknown(name))?;
        Ok(json(StatusCode::OK, record.as_ref()))
    }

    async fn add(&self, add: Add) -> Told {
        if let Some(id) = add.credential.as_ref().filter(|id| !self.credentials.contains(id)) {
            let error = format!("there is no credential '{}'", sandbox_git::printable(id.as_bytes()));
            let hint = "`[[credential]]` in the configuration file adds one";
            return Err(fail(StatusCode::BAD_REQUEST, error, Some(hint)));
        }
        let spec = add.spec().map_err(|error| fail(StatusCode::BAD_REQUEST, error, None))?;
        let (desk, name) = (self.desk.clone(), spec.name.clone());
        let applied = blocking(move || desk.registry.apply(vec![Change::Put(spec, Origin::Api)])).await?;
        applied.map_err(|error| refused(&error))?;
        let record = self.desk.registry.record(&name).ok_or_else(|| Self::unknown(&name))?;
        Ok(json(StatusCode::CREATED, record.as_ref()))
    }

    async fn remove(&self, name: RepoName, dry: bool) -> Told {
        if self.desk.registry.record(&name).is_none() {
            return Err(Self::unknown(&name));
        }
        let desk = self.desk.clone();
        let done = blocking(move || -> Result<Removed, Box<Response>> {
            let conflict = |error: RemovalError| {
                let hint = "`git sandbox mirror scratch bundle` saves them, `… scratch drop` drops them";
                let hint = matches!(error, RemovalError::HasScratch { .. }).then_some(hint);
                fail(StatusCode::CONFLICT, error, hint)
            };
            let removal = Removal::look(&desk.git, &desk.layout, &name).map_err(conflict)?;
            let mut told = Removed { dirs: removal.dirs.clone(), scratch: removal.scratch.clone(), done: false };
            if !dry {
                removal.check().map_err(conflict)?;
                // First nobody is served from it any more.
                let changes = vec![Change::Remove(name.clone(), Origin::Api)];
                desk.registry.apply(changes).map_err(|error| refused(&error))?;
                removal.apply(&desk.layout).map_err(conflict)?;
                told.done = true;
            }
            Ok(told)
        });
        Ok(json(StatusCode::OK, &done.await??))
    }

    async fn refresh(&self, name: &RepoName) -> Result<(), Box<Response>> {
        match self.desk.refresher()?.refresh(name, BTreeSet::new(), Trigger::Admin).await {
            Waited::Fresh(_) => Ok(()),
            Waited::Failed(trouble) => Err(fail(StatusCode::BAD_GATEWAY, trouble, None)),
            Waited::Patience(left) => {
                let error = format!("the upstream asks for patience ({} s)", left.as_secs());
                Err(fail(StatusCode::SERVICE_UNAVAILABLE, error, None))
            }
            Waited::Unknown if self.desk.registry.record(name).is_some_and(|record| record.paused) => {
                let hint = "`git sandbox mirror resume` goes on with it";
                Err(fail(StatusCode::CONFLICT, format!("'{name}' is paused"), Some(hint)))
            }
            Waited::Unknown => Err(Self::unknown(name)),
        }
    }

    async fn maintain(&self, name: &RepoName, task: Task) -> Result<(), Box<Response>> {
        let starting = || fail(StatusCode::SERVICE_UNAVAILABLE, "maintenance does not run", None);
        let maintainer = self.maintainer.get().ok_or_else(starting)?;
        maintainer.run(name, task).await.map_err(|error| {
            let status = match error {
                MaintainError::Absent(_) => StatusCode::NOT_FOUND,
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            };
            fail(status, error, None)
        })
    }

    async fn pause(&self, name: &RepoName, paused: bool) -> Result<(), Box<Response>> {
        let (desk, name) = (self.desk.clone(), name.clone());
        blocking(move || desk.registry.pause(&name, paused)).await?.map_err(|error| refused(&error))
    }

    /// Tells what was set aside, or what of it went.
    async fn quarantine(&self, empty: bool, query: &str) -> Told {
        let words: Vec<&str> = query.split('&').collect();
        let older = match words.iter().find_map(|word| word.strip_prefix("older=")) {
            Some(text) => {
                text.parse().map_err(|_| fail(StatusCode::BAD_REQUEST, "'older' is a number of seconds", None))?
            }
            None => 0,
        };
        let (force, dry) = (words.contains(&"force"), words.contains(&"dry_run"));
        let (desk, names) = (self.desk.clone(), self.desk.registry.now());
        let now = sandbox_sys::clock::unix_seconds();
        let told = blocking(move || {
            let all = quarantine::list(&desk.layout, names.repos.keys());
            if !empty {
                return Ok(json(StatusCode::OK, &AllAside { quarantine: all }));
            }
            let mut plan = quarantine::plan(all, Duration::from_secs(older), force, now);
            if !dry {
                quarantine::apply(&desk.layout, &mut plan)?;
            }
            Ok(json(StatusCode::OK, &plan))
        });
        told.await?.map_err(|error: std::io::Error| fail(StatusCode::INTERNAL_SERVER_ERROR, error, None))
    }

    fn sessions(&self) -> Response {
        let seconds = |at: SystemTime| at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let view = |session: &Arc<Session>| SessionView {
            id: session.id.clone(),
            repos: session.repos.clone(),
            expires: session.expires.map(seconds),
        };
        let sessions: Vec<SessionView> = self.desk.registry.now().sessions.values().map(view).collect();
        json(StatusCode::OK, &serde_json::json!({ "sessions": sessions }))
    }

    async fn grant(&self, new: NewSession) -> Told {
        let now = self.desk.registry.now();
        if let Some(absent) = new.repos.iter().find(|name| !now.repos.contains_key(*name)) {
            return Err(Self::unknown(absent));
        }
        let desk = self.desk.clone();
        let granted = blocking(move || -> Result<Granted, Box<Response>> {
            desk.expire();
            let internal = |error: String| fail(StatusCode::INTERNAL_SERVER_ERROR, error, None);
            let mut repos: BTreeMap<RepoName, Option<Oid>> =
                new.repos.iter().map(|name| (name.clone(), None)).collect();
            if let Some(first) = new.repos.first() {
                repos.insert(first.clone(), new.base);
            }
            let mut granted = Granted { id: new.id.clone(), socket: None, token: None };
            if new.token {
                let mut bytes = [0; 32];
                getrandom::fill(&mut bytes).map_err(|error| internal(error.to_string()))?;
                granted.token = Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect());
            }
            let expires = new.ttl.map(|ttl| SystemTime::now() + Duration::from_secs(ttl).min(MAX_TTL));
            let token = granted.token.as_ref().map(|token| TokenHash::of(token.as_bytes()));
            let session = Session { id: new.id.clone(), repos, token, expires };
            desk.registry.put_session(session).map_err(|error| refused(&error))?;
            Ok(granted)
        });
        let mut granted = granted.await??;
        if granted.token.is_none() {
            // On the runtime: a listener belongs to it.
            let opened = self.desk.open(&granted.id);
            granted.socket = Some(opened.map_err(|error| fail(StatusCode::INTERNAL_SERVER_ERROR, error, None))?);
        }
        Ok(json(StatusCode::CREATED, &granted))
    }
}

async fn read<T: serde::de::DeserializeOwned>(request: Request) -> Result<T, Box<Response>> {
    let bytes = body(request, MAX_BODY).await;
    let bytes = bytes.ok_or_else(|| fail(StatusCode::PAYLOAD_TOO_LARGE, "the request is too large", None))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| fail(StatusCode::BAD_REQUEST, sandbox_git::printable(error.to_string().as_bytes()), None))
}
