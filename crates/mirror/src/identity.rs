//! Who asks: told by the connection or by a bearer token, never by a name that the client states (X2).

use crate::name::RepoName;
use sandbox_git::Oid;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::SystemTime;
use subtle::ConstantTimeEq;

/// The id of a session: `[a-z0-9][a-z0-9._-]{0,63}`, so that it is a part of a ref's name
/// (`refs/agents/<id>`) and of a path as it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(transparent)]
pub struct SessionId(Box<str>);

/// Why a text is no id of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the id of a session is 1 to 64 of 'a-z', '0-9', '.', '_' and '-', begins with a letter or digit, has no '..' and no '.lock' or '.' at its end"
)]
pub struct SessionIdError;

impl SessionId {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SessionId {
    type Err = SessionIdError;
    fn from_str(text: &str) -> Result<Self, SessionIdError> {
        let first = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let fine = (1..=64).contains(&text.len())
            && text.as_bytes().first().is_some_and(first)
            && text.bytes().all(|b| first(&b) || matches!(b, b'.' | b'_' | b'-'))
            && !text.contains("..")
            && !text.ends_with(".lock")
            && !text.ends_with('.');
        fine.then(|| Self(text.into())).ok_or(SessionIdError)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for SessionId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A bearer token as it is kept: its SHA-256.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// Hashes a token.
    pub fn of(token: &[u8]) -> Self {
        Self(sandbox_git::sha256(token))
    }

    /// Wraps a hash that was kept.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The hash.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether the token is this one, in a time that does not tell how much of it is right.
    pub fn matches(&self, token: &[u8]) -> bool {
        self.0.ct_eq(&sandbox_git::sha256(token)).into()
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(…)")
    }
}

/// A session: what one sandbox may read, and where it may write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its id: it may write `refs/agents/<id>` and what is below it.
    pub id: SessionId,
    /// The repositories that were granted, each with the commit that it began at, if that is known.
    pub repos: BTreeMap<RepoName, Option<Oid>>,
    /// What identifies it besides its own socket.
    pub token: Option<TokenHash>,
    /// When it ends.
    pub expires: Option<SystemTime>,
}

impl Session {
    /// Whether it has not ended yet.
    pub fn is_live(&self, now: SystemTime) -> bool {
        self.expires.is_none_or(|end| now < end)
    }
}

/// Who a request is from.
#[derive(Clone, Debug)]
pub enum Identity {
    /// Anybody who reaches the listener: reads what is not private.
    Reader,
    /// A session.
    Session(Arc<Session>),
    /// Whoever reaches the administrator's socket.
    Admin,
}

impl Identity {
    /// Whether it may read a repository (X6).
    pub fn may_read(&self, repo: &RepoName, private: bool) -> bool {
        match self {
            Self::Reader => !private,
            Self::Session(session) => session.repos.contains_key(repo) || !private,
            Self::Admin => true,
        }
    }

    /// The session.
    pub fn session(&self) -> Option<&Arc<Session>> {
        match self {
            Self::Session(session) => Some(session),
            _ => None,
        }
    }
}

/// Who is at the other end of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    /// A reader, or who a bearer token says.
    Anyone,
    /// One session: its own socket, port or vsock port.
    Session(SessionId),
    /// The administrator.
    Admin,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_sessions_fit_into_refs_and_paths() {
        for good in ["s42", "a", "0-x_y.z", &"a".repeat(64)] {
            let id: SessionId = good.parse().unwrap();
            assert!(sandbox_git::RefName::parse(format!("refs/agents/{id}")).is_some(), "{good}");
        }
        for bad in ["", "S1", "-a", ".a", "a..b", "a.lock", "a.", "a/b", "a b", "ü", "a\n", &"a".repeat(65)] {
            assert_eq!(bad.parse::<SessionId>(), Err(SessionIdError), "{bad:?}");
        }
        assert_eq!(
            SessionIdError.to_string(),
            "the id of a session is 1 to 64 of 'a-z', '0-9', '.', '_' and '-', begins with a letter or digit, \
             has no '..' and no '.lock' or '.' at its end"
        );
    }

    #[test]
    fn a_token_is_known_by_its_hash_and_not_shown() {
        let hash = TokenHash::of(b"secret");
        assert!(hash.matches(b"secret") && !hash.matches(b"secre") && !hash.matches(b""));
        assert_eq!(TokenHash::from_bytes(*hash.as_bytes()), hash);
        assert_eq!(format!("{hash:?}"), "TokenHash(…)");
    }

    #[test]
    fn private_repositories_are_for_whom_they_were_granted() {
        let repo: RepoName = "h/o/r".parse().unwrap();
        let other: RepoName = "h/o/other".parse().unwrap();
        let session = |repos: &[&RepoName]| {
            Identity::Session(Arc::new(Session {
                id: "s1".parse().unwrap(),
                repos: repos.iter().map(|repo| ((*repo).clone(), None)).collect(),
                token: None,
                expires: None,
            }))
        };
        assert!(Identity::Reader.may_read(&repo, false) && !Identity::Reader.may_read(&repo, true));
        assert!(session(&[&repo]).may_read(&repo, true) && !session(&[&other]).may_read(&repo, true));
        assert!(session(&[]).may_read(&repo, false));
        assert!(Identity::Admin.may_read(&repo, true));
    }
}
