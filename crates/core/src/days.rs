//! Days that the store has seen pass, for what may be deleted when it is old enough.
//!
//! ```text
//! days.json    { version, day, at, since: { sandbox id: day } }
//! ```
//!
//! A clock can jump, and some machines begin in 1970: what was dropped a minute ago would then be 30 days old. So
//! `gc` counts: each run adds the days since the last one, a week at most, and what it meets for the first time is
//! as old as that run. Something goes only if it is old by the clock and by this count.

use crate::id::SandboxId;
use crate::store::{Store, StoreError, read_json, write_json};
use sandbox_sys::clock::unix_seconds;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// The most that one run adds, in days: a clock that jumps by years takes several runs of `gc` to expire anything.
const MOST: u64 = 7;

/// Seconds of a day.
const DAY: u64 = 86_400;

/// `days.json`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Days {
    version: u32,
    /// How many have passed.
    day: u64,
    /// Unix seconds up to which they are counted.
    at: u64,
    /// On which day each was first seen dropped, or without its directory.
    since: BTreeMap<SandboxId, u64>,
}

fn file(store: &Store) -> PathBuf {
    store.root().join("days.json")
}

impl Days {
    /// Reads the count and brings it up to now, writing nothing. A file that cannot be read counts from now on:
    /// everything is kept longer.
    pub fn read(store: &Store) -> Self {
        let now = unix_seconds();
        let read = read_json::<Self>(&file(store)).ok().flatten();
        read.unwrap_or(Self { version: 1, day: 0, at: now, since: BTreeMap::new() }).up_to(now)
    }

    fn up_to(mut self, now: u64) -> Self {
        let passed = now.saturating_sub(self.at) / DAY;
        if passed > 0 {
            self.day += passed.min(MOST);
            self.at = if passed > MOST { now } else { self.at + passed * DAY };
        } else if now + DAY < self.at {
            // The clock was set back: counted is from here on.
            self.at = now;
        }
        self
    }

    /// Days for which something is known to be dropped.
    pub fn of(&self, id: &SandboxId) -> u64 {
        self.since.get(id).map_or(0, |since| self.day.saturating_sub(*since))
    }

    /// Writes the count down, with these as what there is.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write(mut self, store: &Store, there: &BTreeSet<SandboxId>) -> Result<(), StoreError> {
        self.since.retain(|id, _| there.contains(id));
        for id in there {
            self.since.entry(id.clone()).or_insert(self.day);
        }
        write_json(&file(store), &self, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn days(at: u64) -> Days {
        Days { version: 1, day: 10, at, since: BTreeMap::new() }
    }

    #[test]
    fn days_are_counted_and_a_jump_is_a_week_at_most() {
        let start = 1_000 * DAY;
        assert_eq!(days(start).up_to(start + DAY - 1).day, 10);
        let next = days(start).up_to(start + 2 * DAY + 5);
        assert_eq!((next.day, next.at), (12, start + 2 * DAY));
        let jumped = days(start).up_to(start + 4_000 * DAY);
        assert_eq!((jumped.day, jumped.at), (17, start + 4_000 * DAY));
        // Back again: nothing passes, and it goes on from there.
        let back = jumped.up_to(start);
        assert_eq!((back.day, back.at), (17, start));
        // An hour back is nothing.
        assert_eq!(days(start).up_to(start - 3600), days(start));
    }

    #[test]
    fn what_is_new_is_as_old_as_the_run_that_met_it() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(&root.path().join("s")).unwrap();
        let (a, b) = (SandboxId::random(), SandboxId::random());
        let first = Days::read(&store);
        assert_eq!(first.of(&a), 0);
        first.write(&store, &[a.clone()].into()).unwrap();
        let mut later = Days::read(&store);
        later.day += 31;
        assert_eq!((later.of(&a), later.of(&b)), (31, 0));
        later.write(&store, &[b.clone()].into()).unwrap();
        let after = Days::read(&store);
        assert_eq!((after.of(&a), after.of(&b)), (0, 0), "what is gone is forgotten");
    }
}
