//! Whether one scan is enough: then a capture costs what has changed, and not a second look at the tree.
//!
//! ```text
//!   ctime of what changed        scan          copies      directories once more
//!   ──────────┬───────────────────┬──────────────┬───────────────┬──────────►
//!          changed              start          read            looked at
//! ```
//!
//! A file that the scan found unchanged has not changed since it was captured, so it is what it was at the
//! start. A file that was copied is what it was at the start if its ctime is from before, and still is
//! after the copy: every write, rename and link moves it. A directory, with those above it, lists what it
//! listed at the start if its own ctime is still from before. If all of this holds, the layer and what
//! lies below are the tree at the start of the scan, and another scan could tell nothing new.
//!
//! A rename stamps its times first and shows its names last. On a busy machine whoever renames may have to wait in
//! between, and then names change after their times: so each directory must also be the one that was scanned under its
//! name. (Who lists a directory waits for a rename in it; who looks at one name does not.)
//!
//! One writer leaves no trace: a shared mapping of a page that is dirty already. The copy cleans the
//! pages first, so that from then on it shows; what such a program wrote between the start of the scan
//! and the copy is in the snapshot, up to the length of a scan too new. A tick of the clock is taken
//! off on each side ([`Stat::racy`]), so what is being edited at this moment gets its second scan.

use super::Build;
use super::entry::{self, Outcome};
use super::plan::{Fate, Plan};
use crate::manifest::Manifest;
use crate::paths::{LOOK, open_beneath, parent};
use crate::scan::{Listing, Scan, What};
use crate::stat::Stat;
use std::collections::BTreeSet;
use std::os::fd::AsFd;

impl Build<'_> {
    /// Returns whether a round has brought the layer to the state that the tree had when the scan began.
    pub(super) fn settled(
        &self,
        known: Option<&Manifest>,
        scan: &Scan,
        fates: &[Fate],
        plan: &Plan,
        results: &[Outcome],
        made: &Manifest,
    ) -> bool {
        // Times say something only if one clock made all of them, and was not set back meanwhile.
        if !sandbox_watch::is_local(self.root).unwrap_or(false) || scan.clock.was_set_back() {
            return false;
        }
        let old = |stat: &Stat| !stat.racy(scan.start);
        // The file that was copied is the one that was scanned, and has not changed since before.
        let copied = |op: Option<usize>, scanned: &Stat| match op.and_then(|op| results.get(op)?.done()) {
            Some(done) if !done.torn() => {
                let stat = done.stat.unwrap_or(scanned);
                (stat.dev, stat.ino, stat.ctime, stat.size) == (scanned.dev, scanned.ino, scanned.ctime, scanned.size)
                    && old(stat)
            }
            _ => false,
        };
        let updates = scan.updates.iter().zip(fates).all(|(update, fate)| match fate {
            Fate::Copy => copied(plan.op_of.get(&update.index).copied(), &update.stat),
            Fate::Refresh { stat, racy, .. } => !racy && old(stat),
            Fate::DirAttr => old(&update.stat),
        });
        let listed = || scan.changed.iter().map(|(_, listing)| listing).chain(scan.new.iter().flatten());
        let nodes = |listing: &Listing| {
            listing.nodes.iter().all(|node| match node.what {
                What::Copy { op, .. } => copied(Some(op as usize), &node.stat),
                What::Dir(id) => scan.new.get(id as usize).is_some_and(Option::is_some) && old(&node.stat),
                What::Keep(_) => true,
                What::LeaveOut(_) => old(&node.stat),
            })
        };
        if !scan.disturbed.is_empty() || !old(&scan.top) || !updates || !listed().all(nodes) {
            return false;
        }
        // Every directory that the way to something changed leads through.
        let mut dirs: BTreeSet<Vec<u8>> = BTreeSet::from([Vec::new()]);
        let found = listed().map(|listing| listing.place.path(known));
        // One that was listed again because of its times, and had the same names.
        let again = scan.updates.iter().filter_map(|update| {
            let known = known?;
            known.raw(update.index).child().map(|dir| known.dir_path(dir))
        });
        let touched = plan.ops.dirs().map(<[u8]>::to_vec).chain(plan.dirs.iter().cloned());
        for mut dir in found.chain(again).chain(touched).chain(plan.white_out.iter().map(|path| parent(path).to_vec()))
        {
            while dirs.insert(dir.clone()) {
                dir = parent(&dir).to_vec();
            }
        }
        dirs.iter().all(|dir| {
            let now = open_beneath(self.root, dir, LOOK).and_then(|fd| entry::fstat(fd.as_fd()));
            let scanned = made.find(dir).map(|index| made.raw(index).ino());
            now.is_ok_and(|stat| old(&stat) && scanned.is_none_or(|ino| ino == stat.ino))
        })
    }
}
