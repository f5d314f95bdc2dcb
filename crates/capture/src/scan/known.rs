//! The hot path: a directory whose names are those of the manifest.

use super::{At, Context, Found, Held, Item, Marked, Place, Scanner, Update, Work, stat_at};
use crate::manifest::{DIR_GIT, DIR_UNREADABLE, Look, Reason};
use crate::paths::{self, to_path};
use crate::request::{CaptureError, LeftOut};
use crate::rules::{self, Rules};
use crate::secrets::{Suspicion, is_dependency_dir, suspicion};
use crate::stat::Kind;
use rustix::io::Errno;
use std::sync::Arc;

/// A directory with more names is split, so that one large directory keeps all threads busy.
const PART: u32 = 2048;

impl<'s> Scanner<'s> {
    /// Stats the entries `from..to` of the manifest, which lie in one directory.
    pub(super) fn known_names(
        &'s self,
        mut item: Item<'s>,
        from: u32,
        to: u32,
        found: &mut Found,
        more: &mut Vec<Item<'s>>,
    ) -> Result<(), CaptureError> {
        let (Some(known), Some(dir)) = (self.known, item.known) else { return self.listing(item, found, more) };
        let record = known.dir(dir);
        let first_part = from == record.first;
        if first_part {
            if record.flags & DIR_GIT != 0 {
                found.git.push(to_path(&known.dir_path(dir)));
            }
            if record.flags & DIR_UNREADABLE != 0 {
                found.left_out.push(LeftOut { path: to_path(&known.dir_path(dir)), reason: Reason::Unreadable });
            }
            // Later parts and subdirectories get the rules with their item.
            if record.count > 0 && known.find_in(dir, rules::FILE).is_some() {
                let rules = Rules::new(item.context.rules.take(), known.dir_path(dir));
                item.context.rules = Some(Arc::new(rules));
            }
        }
        if from == to {
            return Ok(());
        }
        let held = match self.open(&item, paths::LOOK) {
            Ok(held) => held,
            Err(_) => return self.list_after_all(item, found, more),
        };
        if to - from > PART {
            let parts = (from..to).step_by(PART as usize).skip(1).map(|start| Item {
                at: At::Open(held.clone()),
                work: Work::Known(start, to.min(start + PART)),
                ..item.clone()
            });
            more.extend(parts);
        }
        let kept = (found.updates.len(), more.len());
        for index in from..to.min(from + PART) {
            if !self.known_entry(&item, &held, index, found, more)? {
                found.updates.truncate(kept.0);
                more.truncate(kept.1);
                return self.list_after_all(item, found, more);
            }
        }
        Ok(())
    }

    /// Stats the entries of a directory that a watcher names.
    pub(super) fn marked_names(
        &'s self,
        mut item: Item<'s>,
        node: &'s Marked,
        found: &mut Found,
        more: &mut Vec<Item<'s>>,
    ) -> Result<(), CaptureError> {
        let (Some(known), Some(dir)) = (self.known, item.known) else { return self.listing(item, found, more) };
        if node.names {
            return self.listing(item, found, more);
        }
        if node.below.is_empty() {
            return Ok(());
        }
        if known.find_in(dir, rules::FILE).is_some() {
            let rules = Rules::new(item.context.rules.take(), known.dir_path(dir));
            item.context.rules = Some(Arc::new(rules));
        }
        let held = match self.open(&item, paths::LOOK) {
            Ok(held) => held,
            Err(_) => return self.list_after_all(item, found, more),
        };
        let kept = (found.updates.len(), more.len());
        for name in node.below.keys() {
            let same = match known.find_in(dir, name) {
                Some(index) => self.known_entry(&item, &held, index, found, more)?,
                None => false,
            };
            if !same {
                found.updates.truncate(kept.0);
                more.truncate(kept.1);
                return self.list_after_all(item, found, more);
            }
        }
        Ok(())
    }

    /// Stats one entry of the manifest; false when its directory must be listed.
    fn known_entry(
        &'s self,
        item: &Item<'s>,
        held: &Arc<Held<'s>>,
        index: u32,
        found: &mut Found,
        more: &mut Vec<Item<'s>>,
    ) -> Result<bool, CaptureError> {
        let (Some(known), Some(dir)) = (self.known, item.known) else { return Ok(false) };
        let raw = known.raw(index);
        let stat = match stat_at(&held.fd, raw.name_c()) {
            Ok(stat) => stat,
            // Gone, or no longer searchable: then the directory itself tells.
            Err(Errno::NOENT | Errno::ACCESS | Errno::NOTDIR) => return Ok(false),
            Err(error) => return Err(self.error(&item.place, raw.name(), error)),
        };
        let same = raw.same(&stat);
        let kind = stat.kind();
        let flags = raw.flags();
        if !same || !flags.plain() {
            let look_again = raw.kind() != kind
                || self.needs_decision(item, raw.name(), flags, same, kind)
                || !same && raw.name() == rules::FILE;
            if look_again {
                return Ok(false);
            }
            if let Some(reason) = flags.reason() {
                let path = to_path(&self.path_of(&item.place, raw.name()));
                found.left_out.push(LeftOut { path, reason });
            }
            let look = self.look_again(&item.place, raw.name(), flags.look(), found);
            if !same || flags.racy() || look != flags.look() {
                found.updates.push(Update { index, dir, stat, look });
            }
        }
        if kind == Kind::Dir
            && flags.reason().is_none()
            && let Some(child) = raw.child()
            && !self.is_frozen(&stat)
        {
            let context = Context {
                dependency: item.context.dependency || is_dependency_dir(raw.name()),
                ..item.context.clone()
            };
            more.extend(self.below(item, held, raw.name(), child, same, flags.racy(), context));
        }
        Ok(true)
    }

    /// Returns whether an entry that has flags or another stat needs the full decision of a listing.
    fn needs_decision(
        &self,
        item: &Item<'s>,
        name: &[u8],
        flags: crate::manifest::Flags,
        same: bool,
        kind: Kind,
    ) -> bool {
        match flags.reason() {
            Some(Reason::Special | Reason::Stale) => false,
            // Rules are the same, else we were not here; but what git tracks may have changed.
            Some(Reason::Ignored) => {
                !self.git_same && self.tracked(&self.path_of(&item.place, name), kind == Kind::Dir)
            }
            Some(Reason::Unreadable) => !same,
            Some(Reason::OverLimit) => true,
            Some(Reason::Secret) => !same || !self.git_same && self.carries_secret(&item.place, name),
            None if flags.look() != Look::Plain => !same || !self.git_same && !self.carries_secret(&item.place, name),
            None if same || kind != Kind::File || item.context.dependency => false,
            None => suspicion(&item.place.path(self.known), name) != Suspicion::None,
        }
    }

    /// The directory is not what the manifest says: starts it over, with its real names.
    fn list_after_all(
        &'s self,
        mut item: Item<'s>,
        found: &mut Found,
        more: &mut Vec<Item<'s>>,
    ) -> Result<(), CaptureError> {
        item.work = Work::Listing;
        if let (Some(rules), Place::Known(dir)) = (&item.context.rules, &item.place) {
            // The listing makes this directory's own rules itself.
            let path = self.known.map(|known| known.dir_path(*dir)).unwrap_or_default();
            if let Some(above) = rules.above_if_of(&path) {
                item.context.rules = above;
            }
        }
        self.listing(item, found, more)
    }
}
