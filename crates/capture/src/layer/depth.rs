//! How much of the previous stack is worth building upon.
//!
//! ```text
//!  git checkout other      d1 base          git checkout main      d2 base    and not   d2 d1 base
//! ```
//!
//! A checkout gives the files that it writes new times, and times belong to a snapshot: going back to
//! a branch, its files are copied again. But nothing is left then of the layer of the other branch, so
//! the new layer takes its place instead of lying on top: a tree that goes back and forth has two
//! layers, however often it does; and a file that is edited over and over has a few copies at most.

use super::Build;
use super::plan::Fate;
use crate::manifest::Manifest;
use crate::request::{CaptureError, MAX_STACK};
use crate::scan::{Scan, What};
use std::collections::{BTreeSet, HashSet};

/// A stack that is shorter than this is built upon as it is when next to nothing changed: looking through
/// it for what is still in use takes longer than another layer costs.
const SHORT: usize = 4;

/// "Next to nothing": fewer files than this.
const FEW: u64 = 64;

/// What is still in use of the layers that are given up may be this part of what is copied anyway.
const KEPT_PART: u64 = 8;

/// Entries of a manifest that the next layer will replace or hide.
#[derive(Debug, Default)]
pub(crate) struct Gone(HashSet<u32>);

impl Gone {
    /// Returns whether an entry is among them.
    pub(crate) fn has(&self, index: u32) -> bool {
        self.0.contains(&index)
    }

    /// Adds an entry, and with a directory all that is in it.
    fn add(&mut self, known: &Manifest, index: u32) {
        let mut waiting = vec![index];
        while let Some(index) = waiting.pop() {
            // What was seen before is not entered again: damage cannot make a loop.
            let child = known.raw(index).child().filter(|_| self.0.insert(index)).map(|child| known.dir(child));
            self.0.insert(index);
            waiting.extend(child.into_iter().flat_map(|dir| dir.first..dir.first + dir.count));
        }
    }
}

/// What the new layer is put upon.
#[derive(Debug, Default)]
pub(crate) struct Depth {
    /// So many layers of the previous stack, counted from below.
    pub(crate) layers: usize,
    /// Files above them that are still in use.
    pub(crate) kept: u64,
    /// Entries that are not.
    pub(crate) gone: Gone,
}

impl Depth {
    /// All of the previous stack.
    pub(crate) fn all(layers: usize) -> Self {
        Self { layers, ..Self::default() }
    }
}

impl Build<'_> {
    /// Decides what the layer for a scan's result is put upon; changes nothing.
    pub(crate) fn depth(&self, known: &Manifest, scan: &mut Scan) -> Result<Depth, CaptureError> {
        let all = self.stack.len();
        let (files, bytes) = crate::limit::weights(Some(known), scan)
            .values()
            .fold((0, 0), |sum, weight| (sum.0 + weight.0, sum.1 + weight.1));
        if all < SHORT && files < FEW {
            return Ok(Depth::all(all));
        }
        let fates = self.fates(Some(known), scan)?;
        if super::plan::plan(self, Some(known), scan, &fates).is_empty() {
            return Ok(Depth::all(all));
        }
        let gone = gone(known, scan, &fates);
        let mut kept = known.held().layers;
        kept.resize(all, (0, 0));
        for raw in gone.0.iter().map(|index| known.raw(*index)) {
            if raw.child().is_none()
                && raw.flags().reason().is_none()
                && let Some(layer) = kept.get_mut(usize::from(raw.layer_index()))
            {
                *layer = (layer.0.saturating_sub(1), layer.1.saturating_sub(raw.size()));
            }
        }
        let layers = choose(&kept, (files / KEPT_PART, bytes / KEPT_PART));
        let kept = kept[layers..].iter().map(|layer| layer.0).sum();
        Ok(Depth { layers, kept, gone })
    }
}

/// Returns how many layers to keep, given what is in use of each (files and bytes, lowermost first) and
/// how much may be copied again. The base always stays.
fn choose(kept: &[(u64, u64)], most: (u64, u64)) -> usize {
    let mut above = (0, 0);
    let mut layers = kept.len();
    for (at, layer) in kept.iter().enumerate().skip(1).rev() {
        above = (above.0 + layer.0, above.1 + layer.1);
        if above.0 > most.0 || above.1 > most.1 {
            break;
        }
        layers = at;
    }
    if layers >= MAX_STACK { 1 } else { layers }
}

/// Returns the entries of which the scan says that they are another by now, or nowhere.
fn gone(known: &Manifest, scan: &Scan, fates: &[Fate]) -> Gone {
    let mut gone = Gone::default();
    for (update, fate) in scan.updates.iter().zip(fates) {
        if *fate == Fate::Copy {
            gone.add(known, update.index);
        }
    }
    for (dir, listing) in &scan.changed {
        let kept: BTreeSet<u32> = listing
            .nodes
            .iter()
            .filter_map(|node| match node.what {
                What::Keep(index) => Some(index),
                _ => None,
            })
            .collect();
        let record = known.dir(*dir);
        for index in (record.first..record.first + record.count).filter(|index| !kept.contains(index)) {
            gone.add(known, index);
        }
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_of_which_nothing_is_left_are_given_up() {
        assert_eq!(choose(&[(9, 900)], (0, 0)), 1);
        assert_eq!(choose(&[(9, 900), (0, 0)], (0, 0)), 1);
        assert_eq!(choose(&[(9, 900), (1, 10), (0, 0)], (0, 0)), 2);
        assert_eq!(choose(&[(9, 900), (0, 0), (1, 10)], (0, 0)), 3);
    }

    #[test]
    fn a_little_is_copied_again_and_much_is_not() {
        assert_eq!(choose(&[(9, 900), (1, 10), (1, 10)], (2, 20)), 1);
        assert_eq!(choose(&[(9, 900), (1, 10), (1, 10)], (1, 20)), 2);
        assert_eq!(choose(&[(9, 900), (1, 10), (1, 1000)], (2, 20)), 3);
    }

    #[test]
    fn a_full_stack_is_folded_whatever_it_holds() {
        assert_eq!(choose(&[(9, 900); MAX_STACK - 1], (0, 0)), MAX_STACK - 1);
        assert_eq!(choose(&[(9, 900); MAX_STACK], (0, 0)), 1);
    }
}
