//! What happened, as values: serving, refresh and maintenance say it here, and metrics and logs are
//! made from it. Nothing else in this crate prints or counts.

use crate::identity::SessionId;
use crate::name::RepoName;
use std::time::Duration;

/// Takes events. It is called in the middle of serving: it must not block.
pub trait Observer: Send + Sync + 'static {
    /// Something happened.
    fn observe(&self, event: &Event);
}

/// Who does not want to know.
impl Observer for () {
    fn observe(&self, _: &Event) {}
}

/// Something that happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A request was answered, or ended otherwise.
    Served(Served),
    /// The pack cache was asked, or changed.
    Cache {
        /// For which repository, where it is for one.
        repo: Option<RepoName>,
        /// What it did.
        what: CacheEvent,
    },
    /// A repository was asked of its upstream.
    Refreshed(Refreshed),
    /// Maintenance of a repository ended.
    Maintained(Maintained),
    /// What a session pushed went: nobody had pushed to it for as long as it is kept.
    Expired {
        /// The repository.
        repo: RepoName,
        /// What went.
        expired: crate::scratch::held::Expired,
    },
    /// A mirror that was set aside went: it was as old as they are kept.
    Emptied(crate::quarantine::Aside),
    /// A listener, or the service itself, cannot do what it should; text is safe to print.
    Trouble {
        /// What could not be done.
        what: String,
    },
}

/// How a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Smart HTTP.
    Http,
    /// `git://`.
    Git,
}

/// Which of git's services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GitService {
    /// Fetch, clone, ls-remote.
    UploadPack,
    /// Push.
    ReceivePack,
}

/// What was asked for, as far as the request's first lines tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// Capabilities, or refs.
    Refs,
    /// All history, all objects.
    Full,
    /// Cut history.
    Shallow,
    /// All history without contents, or single objects that a partial clone misses.
    Blobless,
    /// Cut history without contents.
    ShallowBlobless,
    /// From what the client has.
    Incremental,
    /// A push.
    Push,
    /// Not known.
    Other,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Answered.
    Done,
    /// No such repository, for this client.
    Unknown,
    /// The upstream took it away.
    Gone,
    /// Sent to the upstream.
    Redirected,
    /// Refused.
    Refused,
    /// Waited too long, or too many waited.
    Busy,
    /// The client went away.
    Disconnected,
    /// It did not follow the protocol, or asked for too much.
    Malformed,
    /// Git, or we, failed.
    Failed,
}

/// A request that ended.
#[derive(Clone, Debug)]
pub struct Served {
    /// How it came.
    pub transport: Transport,
    /// Which service; `None` for what is not git's.
    pub service: Option<GitService>,
    /// The version of git's protocol: 0, 1 or 2.
    pub protocol: u8,
    /// What was asked for.
    pub shape: Shape,
    /// The repository, if the name was one that is registered.
    pub repo: Option<RepoName>,
    /// The session.
    pub session: Option<SessionId>,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it waited for its turn.
    pub queued: Duration,
    /// How long it took, with that.
    pub took: Duration,
    /// Bytes from the client.
    pub received: u64,
    /// Bytes to the client.
    pub sent: u64,
    /// The telling line that git wrote to standard error, escaped; empty when it went well.
    pub said: String,
}

/// What the pack cache did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheEvent {
    /// A pack was there, whole.
    Hit,
    /// A pack was just being made for somebody else, and was followed.
    Followed,
    /// It was made, and is kept.
    Filled {
        /// Its size.
        bytes: u64,
    },
    /// It was made for one client and not kept.
    Passed,
    /// Packs were removed to make room, or because of their age.
    Evicted {
        /// How much.
        bytes: u64,
    },
    /// It could not be used; clients are served without it.
    Failed,
}

/// Why a repository was refreshed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trigger {
    /// Its interval, or a wait after a failure, was over.
    Due,
    /// A forge's webhook.
    Webhook,
    /// Somebody waits for refs or commits.
    Ensure,
    /// The administrator.
    Admin,
    /// Something that a client wanted is not there.
    Doubt,
}

impl Trigger {
    /// A word for metrics and logs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Due => "due",
            Self::Webhook => "webhook",
            Self::Ensure => "ensure",
            Self::Admin => "admin",
            Self::Doubt => "doubt",
        }
    }
}

/// A refresh that ended.
#[derive(Clone, Debug)]
pub struct Refreshed {
    /// The repository.
    pub repo: RepoName,
    /// Why it began.
    pub trigger: Trigger,
    /// `ok`, `cloned`, or the word of a [`Trouble`](crate::refresh::Trouble).
    pub outcome: &'static str,
    /// What went wrong; safe to print, without any secret.
    pub error: Option<String>,
    /// How long it took.
    pub took: Duration,
    /// Refs that were made, moved or deleted.
    pub changed: usize,
    /// Bytes of packs that came.
    pub bytes: u64,
}

/// Maintenance that ended.
#[derive(Clone, Debug)]
pub struct Maintained {
    /// The repository.
    pub repo: RepoName,
    /// What was done.
    pub task: crate::maintain::Task,
    /// What went wrong; safe to print.
    pub error: Option<String>,
    /// How long it took.
    pub took: Duration,
    /// Packs before and after.
    pub packs: (usize, usize),
}
