//! One round: a scan's result goes into the layer and into a new manifest.

use super::Build;
use super::assemble::assemble;
use super::entry::{Compared, Outcome};
use super::jobs::{compare_all, copy_all};
use super::plan::{Fate, Plan, Subjects, plan};
use crate::manifest::{Manifest, Reason};
use crate::paths::{parent, to_path};
use crate::request::{CaptureError, LeftOut};
use crate::scan::{Scan, Update};
use crate::stat::{Kind, Stat};
use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// What a round did.
pub(crate) struct Round {
    /// The state of the stack now.
    pub(crate) manifest: Manifest,
    /// The layer was changed: another scan must find nothing new.
    pub(crate) changed: bool,
    /// It need not: what is in the layer is what the tree was when the scan began.
    pub(crate) settled: bool,
    /// Only the manifest has something new to say.
    pub(crate) refreshed: bool,
    /// What turned out to be unreadable while copying.
    pub(crate) unreadable: Vec<LeftOut>,
    /// What was copied or removed, after the last round: it never settled.
    pub(crate) touched: Vec<PathBuf>,
}

impl Build<'_> {
    /// Brings the layer up to date with a scan; `last`: there will be no other.
    pub(crate) fn round(
        &mut self,
        known: Option<&Manifest>,
        scan: &mut Scan,
        last: bool,
    ) -> Result<Round, CaptureError> {
        let fates = self.fates(known, scan)?;
        let plan = plan(self, known, scan, &fates);
        let mut changed = !plan.is_empty() || !scan.disturbed.is_empty();
        let subjects = Subjects { known, scan: Some(scan) };
        let results = if plan.is_empty() { Vec::new() } else { self.execute(&plan, &subjects)? };
        let unreadable = self.clear_failed(&plan, &results, &subjects)?;
        changed |= !unreadable.is_empty();
        let gone = plan.ops.iter().zip(&results).filter(|(_, outcome)| matches!(outcome, Outcome::Vanished));
        let gone: BTreeSet<Vec<u8>> = gone.map(|(op, _)| op.dir.to_vec()).collect();
        let disturbed = scan.disturbed.iter().map(|path| path.as_os_str().as_bytes());
        let disturbed = disturbed.flat_map(|path| [path.to_vec(), parent(path).to_vec()]);
        self.doubted = gone.into_iter().chain(disturbed).collect();
        let refreshed = match known {
            None => true,
            Some(known) => {
                known.settings() != self.settings
                    || !scan.changed.is_empty()
                    || scan.updates.iter().zip(&fates).any(|(update, fate)| self.is_news(known, update, fate))
            }
        };
        for (op, outcome) in plan.ops.iter().zip(&results) {
            if let Some(done) = outcome.done() {
                let size = done.stat.copied().or_else(|| subjects.stat(&op)).map_or(0, |stat| stat.size);
                self.stats.copied_files += 1;
                self.stats.copied_bytes += if done.linked() { 0 } else { size };
                self.stats.reflinked += u64::from(done.reflinked());
            }
        }
        // They are named when it never settles, and only then.
        let ops = last.then(|| plan.ops.iter());
        let mut touched: Vec<PathBuf> = ops
            .into_iter()
            .flatten()
            .map(|op| subjects.path(&op))
            .chain(plan.white_out.iter().cloned())
            .chain(plan.take_out.iter().cloned())
            .map(|path| to_path(&path))
            .chain(scan.disturbed.iter().cloned())
            .collect();
        if touched.is_empty() {
            touched.extend(plan.dirs.iter().map(|path| to_path(path)));
        }
        let manifest = assemble(self, known, scan, &fates, &plan, &results)?;
        let settled = changed && self.settled(known, scan, &fates, &plan, &results, &manifest);
        Ok(Round { manifest, changed, settled, refreshed, unreadable, touched })
    }

    /// Decides about the known entries whose stat moved; looks at contents where stat cannot tell.
    pub(super) fn fates(&self, known: Option<&Manifest>, scan: &Scan) -> Result<Vec<Fate>, CaptureError> {
        let Some(known) = known else { return Ok(Vec::new()) };
        let mut fates = Vec::with_capacity(scan.updates.len());
        let mut compare = Vec::new();
        for (at, update) in scan.updates.iter().enumerate() {
            let fate = by_stat(known, update, scan);
            if fate.is_none() {
                compare.push(at);
            }
            fates.push(fate.unwrap_or(Fate::Copy));
        }
        let asked: Vec<Update> = compare.iter().map(|at| scan.updates[*at]).collect();
        for (at, compared) in compare.iter().zip(compare_all(self, known, &asked)?) {
            if scan.updates[*at].stat.kind() == Kind::Dir && matches!(compared, Compared::Differs) {
                fates[*at] = Fate::DirAttr;
            }
            if let Compared::Same(stat, racy, lessened) = compared {
                // It may have moved once more since the scan.
                let same = by_stat(known, &Update { stat, ..scan.updates[*at] }, scan);
                fates[*at] = if same == Some(Fate::Copy) { Fate::Copy } else { Fate::Refresh { stat, racy, lessened } };
            }
        }
        // A file that got a further name: all its names are copied together, to stay one file.
        let linked: std::collections::HashSet<(u64, u64)> = scan
            .updates
            .iter()
            .zip(&fates)
            .filter(|(update, fate)| **fate == Fate::Copy && update.stat.nlink > 1)
            .map(|(update, _)| (update.stat.dev, update.stat.ino))
            .chain(scan.changed.iter().flat_map(|(_, listing)| new_links(listing)))
            .chain(scan.new.iter().flatten().flat_map(new_links))
            .collect();
        for (update, fate) in scan.updates.iter().zip(&mut fates) {
            let carried = known.raw(update.index).flags().reason().is_none();
            if carried
                && matches!(fate, Fate::Refresh { .. })
                && update.stat.kind() == Kind::File
                && linked.contains(&(update.stat.dev, update.stat.ino))
            {
                *fate = Fate::Copy;
            }
        }
        Ok(fates)
    }

    /// Does what the plan says; returns what came of each operation.
    fn execute(&mut self, plan: &Plan, subjects: &Subjects<'_>) -> Result<Vec<Outcome>, CaptureError> {
        self.start()?;
        for path in &plan.take_out {
            self.take_out(path)?;
        }
        for path in &plan.dirs {
            self.make_dir(path)?;
            self.read_attributes(path);
        }
        for path in &plan.white_out {
            self.white_out(path)?;
        }
        copy_all(self, &plan.ops, subjects)
    }

    /// Takes out of the layer what could not be copied in the end, and hides its older state.
    fn clear_failed(
        &mut self,
        plan: &Plan,
        results: &[Outcome],
        subjects: &Subjects<'_>,
    ) -> Result<Vec<LeftOut>, CaptureError> {
        let mut unreadable = Vec::new();
        for (op, outcome) in plan.ops.iter().zip(results) {
            if outcome.done().is_some() {
                continue;
            }
            let path = subjects.path(&op);
            if let Outcome::Unreadable(_) = outcome {
                unreadable.push(LeftOut { path: to_path(&path), reason: Reason::Unreadable });
            }
            self.take_out(&path)?;
            if self.shows(&path) {
                self.white_out(&path)?;
            }
        }
        Ok(unreadable)
    }

    fn is_news(&self, known: &Manifest, update: &Update, fate: &Fate) -> bool {
        let raw = known.raw(update.index);
        match fate {
            Fate::Refresh { stat, racy, lessened } => {
                lessened.is_some_and(|lessened| lessened != raw.flags().lessened())
                    || !raw.same(stat)
                    || raw.flags().racy() != *racy
                    || raw.flags().look() != update.look
            }
            Fate::DirAttr => true,
            Fate::Copy => true,
        }
    }
}

/// Returns what stat alone says about an update; `None` when the content must be looked at.
fn by_stat(known: &Manifest, update: &Update, scan: &Scan) -> Option<Fate> {
    let raw = known.raw(update.index);
    let stat = &update.stat;
    let refresh = Fate::Refresh { stat: *stat, racy: stat.racy(scan.start), lessened: None };
    if raw.flags().reason().is_some() {
        return Some(Fate::Refresh { stat: *stat, racy: false, lessened: None });
    }
    let attributes = crate::stat::kept_mode(raw.mode()) == stat.kept_mode() && raw.mtime() == stat.mtime;
    match stat.kind() {
        Kind::Dir if update.index == 0 => Some(refresh),
        Kind::Dir if !attributes => Some(Fate::DirAttr),
        // Its attributes may be others.
        Kind::Dir if !raw.same(stat) || raw.flags().racy() => None,
        Kind::Dir => Some(refresh),
        Kind::Symlink if raw.mtime() != stat.mtime => Some(Fate::Copy),
        Kind::File if !attributes || raw.size() != stat.size => Some(Fate::Copy),
        // The same file with the same stat: it is here for a flag only.
        _ if raw.same(stat) && !raw.flags().racy() => Some(refresh_as_is(raw.flags().racy(), stat)),
        _ => None,
    }
}

fn refresh_as_is(racy: bool, stat: &Stat) -> Fate {
    Fate::Refresh { stat: *stat, racy, lessened: None }
}

/// Returns the files with several names among the new ones of a listing.
fn new_links(listing: &crate::scan::Listing) -> impl Iterator<Item = (u64, u64)> {
    listing
        .nodes
        .iter()
        .filter(|node| matches!(node.what, crate::scan::What::Copy { .. }) && node.stat.nlink > 1)
        .map(|node| (node.stat.dev, node.stat.ino))
}
