//! Whether an entry is carried.

use super::{Context, Found, Place, Scanner};
use crate::manifest::{Look, Reason};
use crate::paths::{is_below, to_path};
use crate::request::Secrets;
use crate::secrets::looks_secret;
use crate::stat::{Kind, Stat};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering;

/// What is decided about an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Carry(Look),
    LeaveOut(Reason),
    /// As if it did not exist.
    Skip,
}

impl Scanner<'_> {
    /// Decides about an entry from its path and content.
    pub(super) fn decide(
        &self,
        dir_fd: BorrowedFd<'_>,
        place: &Place,
        name: &[u8],
        stat: &Stat,
        context: &Context,
    ) -> Verdict {
        let kind = stat.kind();
        let is_dir = kind == Kind::Dir;
        if kind == Kind::Special {
            return Verdict::LeaveOut(Reason::Special);
        }
        if is_dir && self.is_excluded(place, name) {
            return Verdict::Skip;
        }
        let ignored =
            context.rules.as_ref().is_some_and(|rules| rules.leave_out(self.root, &self.path_of(place, name), is_dir));
        // A directory that holds tracked files is entered for them; the rest of it is left out below.
        if ignored && !self.tracked(&self.path_of(place, name), is_dir) {
            return Verdict::LeaveOut(Reason::Ignored);
        }
        let secret = kind == Kind::File && !context.dependency && looks_secret(dir_fd, &place.path(self.known), name);
        if !secret {
            return Verdict::Carry(Look::Plain);
        }
        let tracked = self.tracked(&self.path_of(place, name), false);
        if tracked || self.request.secrets == Secrets::Carry {
            Verdict::Carry(Look::Secret { tracked })
        } else {
            Verdict::LeaveOut(Reason::Secret)
        }
    }

    /// Returns whether a file that looks like a secret is carried.
    pub(super) fn carries_secret(&self, place: &Place, name: &[u8]) -> bool {
        self.request.secrets == Secrets::Carry || self.tracked(&self.path_of(place, name), false)
    }

    /// Returns what a known file looks like now; notes a carried secret.
    pub(super) fn look_again(&self, place: &Place, name: &[u8], look: Look, found: &mut Found) -> Look {
        let Look::Secret { tracked } = look else { return look };
        let tracked = if self.git_same { tracked } else { self.tracked(&self.path_of(place, name), false) };
        let list = if tracked { &mut found.tracked_secrets } else { &mut found.carried_secrets };
        list.push(to_path(&self.path_of(place, name)));
        Look::Secret { tracked }
    }

    /// Returns whether a file is tracked, or whether a directory holds any tracked file.
    pub(crate) fn tracked(&self, path: &[u8], is_dir: bool) -> bool {
        self.asked.store(true, Ordering::Relaxed);
        if is_dir {
            let mut path = path.to_vec();
            path.push(b'/');
            (self.request.tracked)(&path)
        } else {
            (self.request.tracked)(path)
        }
    }

    /// Returns whether git ignores a directory.
    pub(crate) fn ignored(&self, path: &[u8]) -> bool {
        self.asked.store(true, Ordering::Relaxed);
        (self.request.ignored)(path, true)
    }

    /// Returns whether git would answer as last time.
    pub(crate) fn git_same(&self) -> bool {
        self.git_same
    }

    pub(crate) fn is_frozen(&self, stat: &Stat) -> bool {
        !self.frozen.is_empty() && self.frozen.contains(&(stat.dev, stat.ino))
    }

    fn is_excluded(&self, place: &Place, name: &[u8]) -> bool {
        if self.request.exclude.is_empty() {
            return false;
        }
        let path = self.path_of(place, name);
        self.request.exclude.iter().any(|excluded| {
            excluded.strip_prefix(self.request.root).is_ok_and(|below| {
                let below = below.as_os_str().as_bytes();
                !below.is_empty() && is_below(&path, below)
            })
        })
    }
}
