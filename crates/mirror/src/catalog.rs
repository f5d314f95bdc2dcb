//! What may be served, as one value: the registry publishes it, serving reads it.
//!
//! ```text
//! registry (SQLite, one writer) ── publish ──► Arc<Catalog> ◄── borrow ── every request
//! ```
//!
//! Serving never asks the database: when that is locked or gone, the last value stands.

use crate::doubt::Doubt;
use crate::identity::{Gate, Identity, Session, SessionId, TokenHash};
use crate::name::RepoName;
use sandbox_git::ObjectFormat;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::SystemTime;
use tokio::sync::{Notify, watch};

/// How a repository is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Registered, and not cloned yet.
    Cold,
    /// Served.
    Ready,
    /// Found corrupt, set aside, being cloned again.
    Quarantined,
    /// The upstream took it away: it is not served any more.
    Gone,
}

/// What changes with every refresh, without a new catalog.
#[derive(Debug, Default)]
pub struct Live {
    refreshed: AtomicI64,
    doubted: Notify,
    objects: AtomicBool,
}

impl Live {
    /// Says that it was seen to be equal to its upstream, in seconds since 1970.
    pub fn refreshed_at(&self, seconds: i64) {
        self.refreshed.store(seconds, Ordering::Relaxed);
    }

    /// Seconds since 1970 of the last refresh that went well; `None` before the first.
    pub fn refreshed(&self) -> Option<i64> {
        Some(self.refreshed.load(Ordering::Relaxed)).filter(|seconds| *seconds != 0)
    }

    /// Says that it may be broken. Many of these before somebody looks are one.
    pub fn doubt(&self, doubt: Doubt) {
        if doubt == Doubt::Objects {
            self.objects.store(true, Ordering::Relaxed);
        }
        self.doubted.notify_one();
    }

    /// Waits until its tips are doubted; the doubt is taken.
    pub async fn doubted(&self) {
        self.doubted.notified().await;
    }

    /// Takes the doubt of its objects.
    pub fn objects_doubted(&self) -> bool {
        self.objects.swap(false, Ordering::Relaxed)
    }
}

/// One repository as serving sees it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub name: RepoName,
    /// The bare repository.
    pub dir: PathBuf,
    /// How it is.
    pub state: State,
    /// The hash of its objects, once that is known.
    pub format: ObjectFormat,
    /// Only sessions that it was granted to may know of it.
    pub private: bool,
    /// Where a client is sent while it cannot be served: the upstream's http or https URL, only of
    /// what needs no credential.
    pub redirect: Option<String>,
    /// What changes all the time.
    pub live: Arc<Live>,
}

/// What serving does with a name.
#[derive(Clone, Debug)]
pub enum Found {
    /// Serves it.
    Serve(Arc<Entry>),
    /// Sends the client to this URL of the upstream.
    Redirect(String),
    /// 410: the upstream took it away.
    Gone,
    /// 503: it cannot be served now, nor anywhere else.
    Unavailable,
    /// 404: unknown, or not granted; which of the two is not told (X6).
    Unknown,
}

/// All that may be served, and to whom.
#[derive(Debug, Default)]
pub struct Catalog {
    entries: HashMap<RepoName, Arc<Entry>>,
    sessions: HashMap<SessionId, Arc<Session>>,
    tokens: HashMap<[u8; 32], SessionId>,
    /// Hosts of public upstreams that clients of unregistered repositories are sent to.
    redirect_hosts: Vec<String>,
}

impl Catalog {
    /// Puts one together.
    pub fn new(
        entries: impl IntoIterator<Item = Arc<Entry>>,
        sessions: impl IntoIterator<Item = Arc<Session>>,
    ) -> Self {
        let sessions: HashMap<_, _> = sessions.into_iter().map(|session| (session.id.clone(), session)).collect();
        let token = |session: &Arc<Session>| Some((*session.token.as_ref()?.as_bytes(), session.id.clone()));
        let tokens = sessions.values().filter_map(token).collect();
        let entries = entries.into_iter().map(|entry| (entry.name.clone(), entry)).collect();
        Self { entries, sessions, tokens, redirect_hosts: Vec::new() }
    }

    /// Sends clients of unregistered repositories of these hosts to the hosts themselves, over https.
    pub fn redirecting(mut self, hosts: impl IntoIterator<Item = String>) -> Self {
        self.redirect_hosts.extend(hosts);
        self
    }

    /// All repositories.
    pub fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.values()
    }

    /// A repository, whoever asks.
    pub fn entry(&self, name: &RepoName) -> Option<&Arc<Entry>> {
        self.entries.get(name)
    }

    /// A session that has not ended.
    pub fn session(&self, id: &SessionId, now: SystemTime) -> Option<&Arc<Session>> {
        self.sessions.get(id).filter(|session| session.is_live(now))
    }

    /// Who is at a gate with this bearer token; `None` if it may not speak here at all: its session
    /// has ended, or the token is nobody's.
    pub fn identify(&self, gate: &Gate, token: Option<&[u8]>, now: SystemTime) -> Option<Identity> {
        match (gate, token) {
            (Gate::Admin, _) => Some(Identity::Admin),
            // The connection says who it is; a token cannot make it somebody else.
            (Gate::Session(id), _) => self.session(id, now).cloned().map(Identity::Session),
            (Gate::Anyone, None) => Some(Identity::Reader),
            (Gate::Anyone, Some(token)) => {
                // Looked up by its hash: how long that takes tells nothing about any token.
                let id = self.tokens.get(TokenHash::of(token).as_bytes())?;
                self.session(id, now).cloned().map(Identity::Session)
            }
        }
    }

    /// What is to be done with a name, for who asks.
    pub fn find(&self, name: &RepoName, who: &Identity) -> Found {
        let Some(entry) = self.entries.get(name) else {
            return match self.redirect_hosts.iter().any(|host| host == name.host()) {
                true => Found::Redirect(format!("https://{}", name.url_path())),
                false => Found::Unknown,
            };
        };
        if !who.may_read(name, entry.private) {
            return Found::Unknown;
        }
        match (entry.state, &entry.redirect) {
            (State::Ready, _) => Found::Serve(entry.clone()),
            (State::Gone, _) => Found::Gone,
            (State::Cold | State::Quarantined, Some(url)) if !entry.private => Found::Redirect(url.clone()),
            (State::Cold | State::Quarantined, _) => Found::Unavailable,
        }
    }
}

/// Makes the two ends of the catalog.
pub fn channel(first: Catalog) -> (Publisher, Reader) {
    let (sender, receiver) = watch::channel(Arc::new(first));
    (Publisher(sender), Reader(receiver))
}

/// The registry's end.
#[derive(Debug)]
pub struct Publisher(watch::Sender<Arc<Catalog>>);

impl Publisher {
    /// Replaces the catalog; requests that have begun go on with what they found.
    pub fn publish(&self, catalog: Catalog) {
        self.0.send_replace(Arc::new(catalog));
    }

    /// What is published now.
    pub fn now(&self) -> Arc<Catalog> {
        self.0.borrow().clone()
    }
}

/// Serving's end.
#[derive(Clone, Debug)]
pub struct Reader(watch::Receiver<Arc<Catalog>>);

impl Reader {
    /// What is published now.
    pub fn now(&self) -> Arc<Catalog> {
        self.0.borrow().clone()
    }

    /// Waits for another one; false when there will be none.
    pub async fn changed(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn entry(name: &str, state: State, private: bool) -> Arc<Entry> {
        let name: RepoName = name.parse().unwrap();
        Arc::new(Entry {
            dir: PathBuf::from("/s/x.git"),
            redirect: Some(format!("https://{name}")),
            name,
            state,
            format: ObjectFormat::Sha1,
            private,
            live: Arc::default(),
        })
    }

    fn session(id: &str, repo: &str, token: Option<&[u8]>, expires: Option<SystemTime>) -> Arc<Session> {
        Arc::new(Session {
            id: id.parse().unwrap(),
            repos: [(repo.parse().unwrap(), None)].into(),
            token: token.map(TokenHash::of),
            expires,
        })
    }

    fn found(found: Found) -> String {
        match found {
            Found::Serve(entry) => format!("serve {}", entry.name),
            Found::Redirect(url) => format!("redirect {url}"),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn what_is_private_is_as_unknown_as_what_is_not_there() {
        let catalog = Catalog::new(
            [entry("h/o/private", State::Ready, true), entry("h/o/public", State::Ready, false)],
            [session("s1", "h/o/private", None, None), session("s2", "h/o/public", None, None)],
        );
        let now = SystemTime::now();
        let of = |gate: Gate, repo: &str| {
            let who = catalog.identify(&gate, None, now).unwrap();
            found(catalog.find(&repo.parse().unwrap(), &who))
        };
        let session = |id: &str| Gate::Session(id.parse().unwrap());
        assert_eq!(of(Gate::Anyone, "h/o/private"), "Unknown");
        assert_eq!(of(Gate::Anyone, "h/o/absent"), "Unknown");
        assert_eq!(of(session("s2"), "h/o/private"), "Unknown");
        assert_eq!(of(session("s1"), "h/o/private"), "serve h/o/private");
        assert_eq!(of(Gate::Anyone, "h/o/public"), "serve h/o/public");
    }

    #[test]
    fn what_cannot_be_served_is_sent_on_unless_that_would_tell() {
        let catalog = Catalog::new(
            [
                entry("h/cold", State::Cold, false),
                entry("h/broken", State::Quarantined, false),
                entry("h/cold-private", State::Cold, true),
                entry("h/gone", State::Gone, false),
            ],
            [],
        )
        .redirecting(["pub.test".to_owned()]);
        let of = |repo: &str| found(catalog.find(&repo.parse().unwrap(), &Identity::Admin));
        assert_eq!(of("h/cold"), "redirect https://h/cold");
        assert_eq!(of("h/broken"), "redirect https://h/broken");
        assert_eq!(of("h/cold-private"), "Unavailable");
        assert_eq!(of("h/gone"), "Gone");
        assert_eq!(of("pub.test/a/b"), "redirect https://pub.test/a/b");
        assert_eq!(of("other.test/a/b"), "Unknown");
    }

    #[test]
    fn a_connection_is_who_it_is_whatever_it_says() {
        let soon = SystemTime::now() + Duration::from_secs(60);
        let past = SystemTime::now() - Duration::from_secs(1);
        let catalog = Catalog::new(
            [],
            [session("s1", "h/a", Some(b"t1"), Some(soon)), session("s2", "h/b", Some(b"t2"), Some(past))],
        );
        let now = SystemTime::now();
        let who = |gate: Gate, token: Option<&[u8]>| match catalog.identify(&gate, token, now) {
            Some(Identity::Session(session)) => session.id.to_string(),
            Some(other) => format!("{other:?}"),
            None => "nobody".to_owned(),
        };
        let own = |id: &str| Gate::Session(id.parse().unwrap());
        assert_eq!(who(Gate::Anyone, Some(b"t1")), "s1");
        assert_eq!(who(Gate::Anyone, Some(b"t2")), "nobody", "it has ended");
        assert_eq!(who(Gate::Anyone, Some(b"t3")), "nobody");
        assert_eq!(who(Gate::Anyone, None), "Reader");
        assert_eq!(who(own("s2"), Some(b"t1")), "nobody", "a token does not make it another's");
        assert_eq!(who(own("s1"), Some(b"t2")), "s1");
        assert_eq!(who(own("s9"), None), "nobody");
        assert_eq!(who(Gate::Admin, None), "Admin");
    }

    #[tokio::test]
    async fn what_is_published_is_seen_by_who_begins_after_it() {
        let (publisher, mut reader) = channel(Catalog::default());
        let before = reader.now();
        publisher.publish(Catalog::new([entry("h/a", State::Ready, false)], []));
        assert!(reader.changed().await);
        assert_eq!(before.entries().count(), 0);
        assert_eq!(reader.now().entries().count(), 1);
        assert_eq!(publisher.now().entries().count(), 1);
        drop(publisher);
        assert!(!reader.changed().await && reader.now().entries().count() == 1);
    }
}
