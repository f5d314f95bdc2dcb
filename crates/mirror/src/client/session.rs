//! Asks a mirror's administrator for a session: who may write `refs/agents/<session>`.

use super::endpoint::Endpoint;
use super::probe::Why;
use super::request::{Request, exchange};
use crate::identity::SessionId;
use crate::name::RepoName;
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

/// How long granting one may take.
const GRANT: Duration = Duration::from_secs(2);

/// How a session is recognised by the mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// By this listener: whoever is on it is the session.
    At(Endpoint),
    /// By this token.
    Token(String),
}

/// Why there is no session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// The administrator's listener does not answer as one.
    #[error("{0}")]
    Why(Why),
    /// It said no.
    #[error("the mirror grants no session: {said}")]
    Refused {
        /// Its words.
        said: String,
    },
}

#[derive(Deserialize)]
struct Failure {
    error: String,
}

#[derive(Deserialize)]
struct Granted {
    #[serde(default)]
    socket: Option<PathBuf>,
    #[serde(default)]
    port: Option<u16>,
    #[serde(default)]
    token: Option<String>,
}

/// Asks `admin` for a session that reads these repositories, and writes its own refs in them; `base` is the commit of
/// the first one that its work stands on, which the mirror then advertises to it. It is known by a token: sockets of
/// the service may be closed to us.
///
/// Where the mirror does not have all of them, the first one will do.
pub fn grant(admin: &Endpoint, id: &SessionId, repos: &[RepoName], base: Option<&str>) -> Result<Grant, GrantError> {
    match ask(admin, id, repos, base) {
        Err(GrantError::Refused { .. }) if repos.len() > 1 => ask(admin, id, &repos[..1], base),
        granted => granted,
    }
}

fn ask(admin: &Endpoint, id: &SessionId, repos: &[RepoName], base: Option<&str>) -> Result<Grant, GrantError> {
    let mut body = serde_json::json!({ "id": id, "repos": repos, "token": true });
    if let Some(base) = base {
        body["base"] = base.into();
    }
    let body = body.to_string();
    let request = Request { method: "POST", body: Some(&body), ..Request::get("/v1/sessions") };
    let answer = exchange(admin, &request, GRANT).map_err(|error| GrantError::Why(error.into()))?;
    let said = || match serde_json::from_slice::<Failure>(&answer.body) {
        Ok(failure) => failure.error,
        Err(_) => String::from_utf8_lossy(&answer.body).lines().next().unwrap_or("nothing").to_owned(),
    };
    if !(200..300).contains(&answer.status) {
        return Err(GrantError::Refused { said: said() });
    }
    let granted: Option<Granted> = serde_json::from_slice(&answer.body).ok();
    match granted {
        Some(Granted { socket: Some(path), .. }) => Ok(Grant::At(Endpoint::Unix(path))),
        Some(Granted { port: Some(port), .. }) => Ok(Grant::At(Endpoint::Tcp { host: "127.0.0.1".into(), port })),
        Some(Granted { token: Some(token), .. }) => Ok(Grant::Token(token)),
        _ => Err(GrantError::Refused { said: said() }),
    }
}

/// Takes a session back; what it pushed stays.
pub fn revoke(admin: &Endpoint, id: &SessionId) -> Result<(), GrantError> {
    let path = format!("/v1/sessions/{id}");
    let request = Request { method: "DELETE", ..Request::get(&path) };
    exchange(admin, &request, GRANT).map(drop).map_err(|error| GrantError::Why(error.into()))
}
