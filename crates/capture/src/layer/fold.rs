//! Folding: the uppermost layers become one, for new snapshots.
//!
//! ```text
//!  d15 … d2 d1 base        ─►       D base
//! ```
//!
//! The layers below are kept, so that folding costs as much as has changed since, and not the whole
//! tree. What already stands on the old stack keeps it. Files are copied (or reflinked) from the old
//! layers, not linked: a link would move the ctime of files that live sandboxes see, and show a second
//! name in their `st_nlink`.

use super::Build;
use super::depth::Gone;
use super::entry::{Compared, Outcome, compare_directories};
use super::jobs::copy_all;
use super::ops::{Ops, Subject};
use super::plan::Subjects;
use crate::manifest::{Edit, Manifest, Raw, Record};
use crate::paths::{LIST, join, open_beneath};
use crate::request::CaptureError;
use crate::stat::Kind;
use std::collections::{BTreeSet, HashMap};
use std::iter;
use std::os::fd::AsFd;
use std::sync::Arc;

impl Build<'_> {
    /// Puts into the new layer what `full`, the manifest of the old stack, has above the layers that stay.
    ///
    /// The build must have been made with the manifest of those as what is below. Entries in `gone` are
    /// about to be replaced or removed: they are not copied. Returns the manifest of the new stack, whose
    /// entries have the same indices as those of `full`.
    pub(crate) fn fold(&mut self, full: &Manifest, gone: &Gone) -> Result<Manifest, CaptureError> {
        let mut dirs = BTreeSet::from([Vec::new()]);
        let mut white_out = Vec::new();
        let mut ops = Ops::default();
        let mut op_of = HashMap::new();
        // Directories and entries that do not only look as in the layers that are kept.
        let mut moved = Vec::new();
        let touched = self.below.and_then(|below| full.touched_since(below));
        let everywhere = touched.is_none();
        let mut waiting = touched.unwrap_or_else(|| vec![0]);
        while let Some(dir) = waiting.pop() {
            let record = full.dir(dir);
            let path: Arc<[u8]> = full.dir_path(dir).into();
            let mut shown: BTreeSet<&[u8]> = BTreeSet::new();
            for index in record.first..record.first + record.count {
                let raw = full.raw(index);
                if raw.flags().reason().is_some() {
                    continue;
                }
                shown.insert(raw.name());
                if let Some(child) = raw.child() {
                    let path = join(&path, raw.name());
                    let same = self.same_dir(&raw, &path);
                    if !same {
                        dirs.insert(path);
                    }
                    if !same || raw.layer_index() >= self.layer() {
                        moved.push((index, dir));
                    }
                    if everywhere {
                        waiting.push(child);
                    }
                } else if raw.layer_index() >= self.layer() {
                    moved.push((index, dir));
                    // What is gone goes before anybody could look for its copy.
                    if gone.has(index) {
                        continue;
                    }
                    op_of.insert(index, ops.push(&path, Subject::Layer(index)));
                    dirs.insert(path.to_vec());
                }
            }
            if let Some(below) = self.below
                && let Some(old) = below.find(&path).and_then(|index| below.raw(index).child())
            {
                let old = below.dir(old);
                for raw in (old.first..old.first + old.count).map(|index| below.raw(index)) {
                    if raw.flags().reason().is_none() && !shown.contains(raw.name()) {
                        white_out.push(join(&path, raw.name()));
                    }
                }
            }
        }
        self.start()?;
        for path in &dirs {
            self.make_dir(path)?;
        }
        for path in &white_out {
            self.white_out(path)?;
        }
        let subjects = Subjects { known: Some(full), scan: None };
        let results = copy_all(self, &ops, &subjects)?;
        for (op, copied) in ops.iter().zip(&results) {
            if copied.done().is_none() {
                let path = subjects.path(&op);
                return Err(self.layer_error("fold", &path, rustix::io::Errno::NOENT));
            }
        }
        self.folded(full, &moved, |index| op_of.get(&index).and_then(|op| results.get(*op)))
    }

    /// Returns whether the base's directory looks as the stack's.
    fn same_dir(&self, raw: &Raw<'_>, path: &[u8]) -> bool {
        self.below.and_then(|below| below.lookup(path)).is_some_and(|old| {
            old.kind() == Kind::Dir
                && old.left_out.is_none()
                && old.mode() == crate::stat::kept_mode(raw.mode())
                && old.stat.mtime == raw.mtime()
                && (old.stat.ctime == raw.stat().ctime || self.same_attributes(path))
        })
    }

    /// Returns whether a directory of the layers that are kept has the host's extended attributes.
    fn same_attributes(&self, path: &[u8]) -> bool {
        let open = |tree| open_beneath(tree, path, LIST).ok();
        let kept = (0..usize::from(self.layer())).rev().find_map(|at| open(self.stack.get(at)?.as_fd()));
        let (Some(host), Some(kept)) = (open(self.root), kept) else { return true };
        let compared = compare_directories(host.as_fd(), kept.as_fd(), self.request.owner);
        matches!(compared, Ok(Compared::Same(..)))
    }

    /// Returns the manifest in which what has `moved` (entries and their directories) is in the new layer.
    fn folded<'r>(
        &self,
        full: &Manifest,
        moved: &[(u32, u32)],
        result: impl Fn(u32) -> Option<&'r Outcome>,
    ) -> Result<Manifest, CaptureError> {
        let mut edit = Edit::any(full, self.layers.clone(), full.scanned(), full.settings());
        for (index, dir) in iter::once((0, 0)).chain(moved.iter().copied()) {
            let raw = full.raw(index);
            let copy = result(index).and_then(Outcome::done).map(|done| done.copy);
            let (stat, flags) = (raw.stat(), raw.flags());
            edit.set(index, dir, Record { stat, layer: Some(self.layer()), copy, flags });
        }
        Ok(if edit.can_stand(self.layers.len() - 1) { edit.finish()? } else { edit.finish_whole()? })
    }
}
