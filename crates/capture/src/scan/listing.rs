//! A directory whose names must be read: new, or with another stat than before.

use super::decide::Verdict;
use super::{Context, Found, Held, Item, Listing, NewPlace, Nodes, Place, Scanner, Update, What, Work, stat_at};
use crate::manifest::{DIR_GIT, DIR_UNREADABLE, Look, Raw, Reason};
use crate::paths::{self, to_path};
use crate::request::{CaptureError, LeftOut};
use crate::rules::{self, Rules};
use crate::secrets::is_dependency_dir;
use crate::stat::{Kind, Stat, Time};
use rustix::io::Errno;
use std::ffi::CString;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// An entry before it is packed.
type Entry = (CString, Stat, What);

impl<'s> Scanner<'s> {
    /// Lists a directory and compares it with the manifest's, if that has it.
    pub(super) fn listing(
        &'s self,
        mut item: Item<'s>,
        found: &mut Found,
        more: &mut Vec<Item<'s>>,
    ) -> Result<(), CaptureError> {
        let mut names = Vec::new();
        let mut flags = 0;
        let read = self.open(&item, paths::LIST).and_then(|held| {
            paths::list(held.fd.as_fd(), |name| names.push(name.to_owned()))?;
            Ok(held)
        });
        let held = match read {
            Ok(held) => Some(held),
            Err(Errno::ACCESS | Errno::PERM) => {
                names.clear();
                flags |= DIR_UNREADABLE;
                found
                    .left_out
                    .push(LeftOut { path: to_path(&item.place.path(self.known)), reason: Reason::Unreadable });
                None
            }
            // Somebody was faster. Its parent is looked at again.
            Err(Errno::NOENT | Errno::NOTDIR) => {
                found.disturbed.push(to_path(&item.place.path(self.known)));
                return Ok(());
            }
            Err(error) => return Err(self.error(&item.place, b"", error)),
        };
        if names.iter().any(|name| name.as_bytes() == b".git") {
            flags |= DIR_GIT;
            found.git.push(to_path(&item.place.path(self.known)));
            names.retain(|name| name.as_bytes() != b".git");
        }
        let mut nodes = Vec::with_capacity(names.len());
        let mut same_names = item.known.is_some();
        if let Some(held) = &held {
            self.own_rules(&mut item, held, &names);
            for name in names {
                let stat = match stat_at(&held.fd, &name) {
                    Ok(stat) => stat,
                    Err(Errno::NOENT) => {
                        found.disturbed.push(to_path(&self.path_of(&item.place, name.as_bytes())));
                        continue;
                    }
                    // A directory that may be listed and not searched.
                    Err(Errno::ACCESS) => UNKNOWN,
                    Err(error) => return Err(self.error(&item.place, name.as_bytes(), error)),
                };
                if let Some((node, same)) = self.node(&item, held, name, stat, found, more)? {
                    same_names &= same;
                    nodes.push(node);
                }
            }
        }
        if let (Some(known), Some(dir)) = (self.known, item.known) {
            let record = known.dir(dir);
            same_names &= record.count as usize == nodes.len() && record.flags == flags;
        }
        if same_names {
            return Ok(());
        }
        let too_large = || CaptureError::TooLarge { root: self.request.root.to_owned() };
        let nodes = Nodes::new(nodes).ok_or_else(too_large)?;
        let listing = Listing { place: item.place.clone(), flags, nodes };
        match &item.place {
            Place::Known(dir) => found.changed.push((*dir, listing)),
            Place::New(place) => found.new.push((place.id, listing)),
        }
        Ok(())
    }

    /// Puts the directory's `.sandboxignore`, if there is one, before the rules from above.
    fn own_rules(&self, item: &mut Item<'s>, held: &Arc<Held<'s>>, names: &[CString]) {
        let has = names.iter().any(|name| name.as_bytes() == rules::FILE);
        let before = match (self.known, item.known) {
            (Some(known), Some(dir)) => known.find_in(dir, rules::FILE).map(|index| known.raw(index)),
            _ => None,
        };
        if has {
            let rules = Rules::new(item.context.rules.take(), item.place.path(self.known));
            item.context.rules = Some(Arc::new(rules));
        }
        let unchanged = match (has, before) {
            (false, None) => true,
            (true, Some(before)) => {
                !before.flags().racy() && stat_at(&held.fd, rules::FILE).is_ok_and(|stat| before.same(&stat))
            }
            _ => false,
        };
        item.context.again |= !unchanged;
    }

    /// Returns the node of a name, and whether the manifest says the same about it.
    fn node(
        &'s self,
        item: &Item<'s>,
        held: &Arc<Held<'s>>,
        name: CString,
        stat: Stat,
        found: &mut Found,
        more: &mut Vec<Item<'s>>,
    ) -> Result<Option<(Entry, bool)>, CaptureError> {
        let bytes = name.as_bytes();
        let dir = item.known.unwrap_or_default();
        let before = match (self.known, item.known) {
            (Some(known), Some(dir)) => known.find_in(dir, bytes).map(|index| (index, known.raw(index))),
            _ => None,
        }
        .filter(|(_, raw)| raw.kind() == stat.kind());
        let verdict = if stat == UNKNOWN {
            Verdict::LeaveOut(Reason::Unreadable)
        } else {
            self.verdict(item, held, bytes, &stat, before.map(|(_, raw)| raw))
        };
        let (what, same) = match verdict {
            Verdict::Skip => return Ok(None),
            Verdict::LeaveOut(reason) => {
                found.left_out.push(LeftOut { path: to_path(&self.path_of(&item.place, bytes)), reason });
                match before.filter(|(_, raw)| raw.flags().reason() == Some(reason)) {
                    Some((index, raw)) => {
                        if !raw.same(&stat) {
                            found.updates.push(Update { index, dir, stat, look: Look::Plain });
                        }
                        (What::Keep(index), true)
                    }
                    None => (What::LeaveOut(reason), false),
                }
            }
            Verdict::Carry(look) => {
                match look {
                    Look::Plain => {}
                    Look::Secret { tracked: false } => {
                        found.carried_secrets.push(to_path(&self.path_of(&item.place, bytes)));
                    }
                    Look::Secret { tracked: true } => {
                        found.tracked_secrets.push(to_path(&self.path_of(&item.place, bytes)));
                    }
                }
                let context =
                    Context { dependency: item.context.dependency || is_dependency_dir(bytes), ..item.context.clone() };
                let carried = before.filter(|(_, raw)| {
                    raw.flags().reason().is_none() && (stat.kind() != Kind::Dir || raw.child().is_some())
                });
                match carried {
                    Some((index, raw)) => {
                        let moved = !raw.same(&stat) || raw.flags().racy();
                        // The flag must be right for the next scan, which only looks at flags.
                        let flag_moved = raw.flags().look() != look;
                        if moved || flag_moved {
                            found.updates.push(Update { index, dir, stat, look });
                        }
                        if let Some(child) = raw.child()
                            && !self.is_frozen(&stat)
                        {
                            more.extend(self.below(
                                item,
                                held,
                                bytes,
                                child,
                                raw.same(&stat),
                                raw.flags().racy(),
                                context,
                            ));
                        }
                        (What::Keep(index), true)
                    }
                    None if stat.kind() == Kind::Dir => {
                        let id = self.ids.fetch_add(1, Ordering::Relaxed);
                        let place = NewPlace { parent: Some(item.place.clone()), name: name.clone(), id };
                        more.push(Item {
                            at: self.from(held),
                            place: Place::New(Arc::new(place)),
                            known: None,
                            work: Work::Listing,
                            context,
                            marks: None,
                        });
                        (What::Dir(id), false)
                    }
                    None => (What::Copy { look, op: 0 }, false),
                }
            }
        };
        Ok(Some(((name, stat, what), same)))
    }

    /// Decides about an entry; from the manifest's flags alone where that is enough.
    fn verdict(
        &self,
        item: &Item<'s>,
        held: &Arc<Held<'s>>,
        name: &[u8],
        stat: &Stat,
        before: Option<Raw<'_>>,
    ) -> Verdict {
        let decide = || self.decide(held.fd.as_fd(), &item.place, name, stat, &item.context);
        let Some(raw) = before.filter(|_| !item.context.again) else { return decide() };
        match raw.flags().reason() {
            Some(Reason::OverLimit) if (self.limited)() && self.still_over(&held.fd, &item.place, name, stat) => {
                Verdict::LeaveOut(Reason::OverLimit)
            }
            Some(Reason::Unreadable) if raw.same(stat) => Verdict::LeaveOut(Reason::Unreadable),
            Some(reason @ (Reason::Secret | Reason::Ignored)) if raw.same(stat) && self.git_same() => {
                Verdict::LeaveOut(reason)
            }
            None if raw.same(stat) && !raw.flags().racy() && (self.git_same() || raw.flags().look() == Look::Plain) => {
                Verdict::Carry(raw.flags().look())
            }
            _ => decide(),
        }
    }
}

/// Stands for an entry that could not even be looked at.
const UNKNOWN: Stat = Stat {
    mode: 0,
    size: 0,
    mtime: Time { sec: 0, nsec: 0 },
    ctime: Time { sec: 0, nsec: 0 },
    dev: 0,
    ino: 0,
    nlink: 0,
    blocks: 0,
};
