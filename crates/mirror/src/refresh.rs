//! Keeps mirrors equal to their upstreams.
//!
//! ```text
//!          due (interval ± jitter, back-off)   webhook, ensure, admin (at once)
//!                         └───────────┬───────────┘
//!                                     ▼
//!            ┌── at most one runs and one waits, for each repository ──┐
//!            │ ask      ls-remote --symref: HEAD, heads, tags          │── Trouble ──┐
//!            │ plan     what is new, moved, gone; what gets a pin      │             │
//!            │ fetch    the new tips into a staging repository         │── Trouble ──┤
//!            │ promote  its packs, then refs and HEAD                  │             ▼
//!            └─────────────────────────┬───────────────────────────────┘     next::after (pure)
//!                                      ▼                                             │
//!   State:   Cold ───────────────► Ready ◄── ok ─── Gone (410) ◄── denied > max_stale ┤
//!              ▲                     │                                               │
//!              └── cloned again ── Quarantined (302) ◄───────── corrupt ─────────────┘
//! ```
//!
//! A fetch has no quarantine in git: what a bad upstream sends would be in the object store before it is judged. So
//! it goes into a *staging* repository that borrows from the mirror, is checked there (`fsckObjects`, and git's own
//! connectivity check over what the mirror has), and only whole packs of checked objects are linked into the mirror.
//! A service that is killed anywhere on the way leaves a directory in `tmp/`, which the next start empties.
//!
//! Exactly the tips that were advertised are fetched, by id: the mirror shows one instant of the upstream, never a
//! mixture. A tip that is moved away from and not part of the new history is pinned as `refs/keep/<oid>` (rule S5)
//! in the same transaction; pins are removed after `maintenance.prune_after`. Sessions' refs (`refs/agents`,
//! `refs/base`) are in no plan: nothing here can touch them.

mod ask;
mod change;
mod cycle;
mod engine;
mod next;
mod pins;
mod reach;
mod staging;
mod tips;
mod trouble;

pub use ask::Advertised;
pub use change::RefPlan;
pub use cycle::{Cycle, Done};
pub use engine::{Parts, Refresher, Waited};
pub use next::{After, after};
pub use pins::{expire as expire_pins, pinned};
pub use reach::{NotAllowed, Policy, Reach, Resolver};
pub(crate) use staging::{FORGIVEN, is_taken_in};
pub use trouble::Trouble;
pub(crate) use trouble::is_corrupt;

use sandbox_git::RefName;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Which refs are mirrored: a full name, or a prefix and `/*`; below `refs/heads/` or `refs/tags/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Checks a pattern.
    pub fn parse(text: &str) -> Result<Self, String> {
        let shown = || sandbox_git::printable(text.as_bytes());
        if !text.starts_with("refs/heads/") && !text.starts_with("refs/tags/") {
            return Err(format!("'{}' is not below 'refs/heads/' or 'refs/tags/'", shown()));
        }
        let plain = text.strip_suffix("/*").unwrap_or(text);
        let base = matches!(plain, "refs/heads" | "refs/tags") && plain != text;
        if !base && RefName::parse(plain).is_none() {
            return Err(format!("'{}' is neither the name of a ref nor a prefix and '/*'", shown()));
        }
        Ok(Self(text.to_owned()))
    }

    /// Heads and tags.
    pub fn all() -> Vec<Self> {
        vec![Self("refs/heads/*".to_owned()), Self("refs/tags/*".to_owned())]
    }

    /// As it is written, and as git takes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it has this ref.
    pub fn has(&self, name: &RefName) -> bool {
        match self.0.strip_suffix('*') {
            Some(prefix) => name.as_bytes().starts_with(prefix.as_bytes()),
            None => name.as_bytes() == self.0.as_bytes(),
        }
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_heads_and_tags_can_be_asked_for() {
        for good in ["refs/heads/*", "refs/tags/v*/x", "refs/heads/main", "refs/heads/release/*"] {
            assert_eq!(Pattern::parse(good).is_ok(), good != "refs/tags/v*/x", "{good}");
        }
        for bad in ["refs/*", "refs/agents/*", "refs/keep/x", "heads/main", "refs/heads/../agents/*", "refs/heads/"] {
            Pattern::parse(bad).unwrap_err();
        }
        let release = Pattern::parse("refs/heads/release/*").unwrap();
        let has = |name: &str| release.has(&RefName::parse(name).unwrap());
        assert!(has("refs/heads/release/1") && !has("refs/heads/released") && !has("refs/heads/main"));
    }
}
