//! Folding without a capture: a stack becomes a shorter one that shows the same, in the background.
//!
//! ```text
//!  d9 … d1 base   ─► deltas ──────► D base      the layers above the base become one
//!                 └► everything ──► base'       and the base too, when most of it is out of use
//! ```
//!
//! Nothing that exists is changed: the host is not looked at, the old layers stay for the sandboxes that
//! stand on them. [`plan`] decides, [`fold`] does.

use crate::layer::{Build, Gone};
use crate::manifest::{MANIFEST, Manifest, TREE};
use crate::paths::{self, LOOK};
use crate::request::{CaptureError, CaptureRequest, Secrets};
use rustix::fs::Mode;
use sandbox_sys::copy::Copier;
use std::os::fd::AsFd;
use std::path::Path;

/// A stack of so many layers is folded, long before it is full.
pub const FOLD_AT: usize = 8;

/// Less than this out of use is not worth a copy, in bytes.
const DEAD_AT_LEAST: u64 = 64 << 20;

/// What a stack weighs, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct StackWeight {
    /// Layers.
    pub layers: usize,
    /// Files of the base, when it was made.
    pub base: u64,
    /// Those of them that are still in use.
    pub base_live: u64,
    /// What the layers above take on disk.
    pub above: u64,
    /// Files of theirs that are in use.
    pub above_live: u64,
}

/// What is to be done with a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoldPlan {
    /// It is short and light.
    Nothing,
    /// The layers above the base become one.
    Deltas,
    /// All layers become a new base.
    Everything,
}

/// Decides; `free` bytes are there to be used.
///
/// Folding pays when it takes layers out of the way of each lookup, or when at least as much is out of use
/// as in use: layers that are large because much was added hold nothing that a copy would save.
pub fn plan(weight: &StackWeight, free: u64) -> FoldPlan {
    let dead = |all: u64, live: u64| {
        let dead = all.saturating_sub(live);
        dead >= DEAD_AT_LEAST && dead >= live
    };
    let plan = if weight.layers < 2 {
        FoldPlan::Nothing
    } else if dead(weight.base, weight.base_live) {
        FoldPlan::Everything
    } else if weight.layers >= FOLD_AT || dead(weight.above, weight.above_live) {
        FoldPlan::Deltas
    } else {
        FoldPlan::Nothing
    };
    let copied = match plan {
        FoldPlan::Nothing => 0,
        FoldPlan::Deltas => weight.above_live,
        FoldPlan::Everything => weight.above_live + weight.base_live,
    };
    // Room for others is worth more than a short stack.
    if copied.saturating_mul(2) > free { FoldPlan::Nothing } else { plan }
}

/// Returns what a stack weighs (uppermost layer first); `disk` says what a layer's directory takes. `None`
/// when it is not as it must be: then there is nothing to fold.
pub fn weigh(layers_dir: &Path, stack: &[String], disk: impl Fn(&Path) -> u64) -> Option<StackWeight> {
    let manifest = open(layers_dir, stack)?;
    let base = Manifest::open(&layers_dir.join(stack.last()?).join(MANIFEST)).ok()?;
    let mut weight = StackWeight { layers: stack.len(), ..StackWeight::default() };
    weight.base = base.held().layers.iter().map(|(_, bytes)| bytes).sum();
    let live = manifest.held().layers;
    weight.base_live = live.first().map_or(0, |(_, bytes)| *bytes);
    weight.above_live = live.iter().skip(1).map(|(_, bytes)| bytes).sum();
    weight.above = stack[..stack.len() - 1].iter().map(|id| disk(&layers_dir.join(id).join(TREE))).sum();
    Some(weight)
}

/// One folding.
#[derive(Clone, Copy, Debug)]
pub struct FoldRequest<'a> {
    /// The stack, uppermost layer first.
    pub stack: &'a [String],
    /// Where its layers are.
    pub layers_dir: &'a Path,
    /// An empty directory on the same filesystem: the new layer will be in it, under its id.
    pub out_dir: &'a Path,
    /// The new layer's id.
    pub new_layer_id: &'a str,
    /// Run by root: who shall own it.
    pub owner: Option<(u32, u32)>,
    /// The base becomes part of it.
    pub everything: bool,
}

/// Makes the layer that replaces the uppermost ones of a stack; returns the new stack.
pub fn fold(request: &FoldRequest<'_>) -> Result<Vec<String>, CaptureError> {
    let io = |errno: rustix::io::Errno| CaptureError::io("read", request.layers_dir)(errno.into());
    let gone = || CaptureError::io("read", request.layers_dir)(std::io::ErrorKind::NotFound.into());
    let full = open(request.layers_dir, request.stack).ok_or_else(gone)?;
    let mut trees = Vec::new();
    for id in request.stack.iter().rev() {
        let tree = request.layers_dir.join(id).join(TREE);
        trees.push(rustix::fs::open(&tree, LOOK, Mode::empty()).map_err(io)?);
    }
    let below = match request.stack.last() {
        Some(id) if !request.everything => Some(Manifest::open(&request.layers_dir.join(id).join(MANIFEST))?),
        _ => None,
    };
    // There is no host tree in this: every file comes from a layer.
    let root = paths::open_root(request.layers_dir).map_err(io)?;
    let making = request.out_dir.join("making");
    std::fs::create_dir(&making).map_err(CaptureError::io("create", &making))?;
    let build = CaptureRequest {
        root: request.layers_dir,
        previous: request.stack,
        layers_dir: request.out_dir,
        tmp_dir: &making,
        new_layer_id: request.new_layer_id,
        owner: request.owner,
        exclude: &[],
        secrets: Secrets::Carry,
        tracked: &|_| false,
        ignored: &|_, _| false,
        git_state: 0,
        limit: None,
        threads: 1,
        progress: &(),
        watch: None,
    };
    let copier = Copier::new();
    let mut build = Build::new(&build, root.as_fd(), &trees, below.as_ref(), full.settings(), &copier);
    let manifest = build.fold(&full, &Gone::default())?;
    build.publish(&manifest)?;
    Ok(manifest.layers())
}

fn open(layers_dir: &Path, stack: &[String]) -> Option<Manifest> {
    let manifest = Manifest::open(&layers_dir.join(stack.first()?).join(MANIFEST)).ok()?;
    (manifest.layers() == stack).then_some(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn planned(layers: usize, base: (u64, u64), above: (u64, u64), free: u64) -> FoldPlan {
        let weight = StackWeight {
            layers,
            base: base.0 * MIB,
            base_live: base.1 * MIB,
            above: above.0 * MIB,
            above_live: above.1 * MIB,
        };
        plan(&weight, free * MIB)
    }

    #[test]
    fn deep_and_dead_stacks_are_folded() {
        assert_eq!(planned(1, (1000, 1000), (0, 0), 9999), FoldPlan::Nothing);
        assert_eq!(planned(FOLD_AT - 1, (1000, 1000), (50, 10), 9999), FoldPlan::Nothing);
        assert_eq!(planned(FOLD_AT, (1000, 1000), (50, 10), 9999), FoldPlan::Deltas);
        assert_eq!(planned(3, (1000, 1000), (200, 100), 9999), FoldPlan::Deltas);
        assert_eq!(planned(3, (1000, 400), (600, 600), 9999), FoldPlan::Everything);
    }

    #[test]
    fn what_was_added_is_not_copied_for_nothing() {
        assert_eq!(planned(2, (100, 100), (5000, 5000), 99_999), FoldPlan::Nothing);
    }

    #[test]
    fn a_full_disk_is_not_filled_further() {
        assert_eq!(planned(FOLD_AT, (1000, 1000), (500, 500), 1001), FoldPlan::Deltas);
        assert_eq!(planned(FOLD_AT, (1000, 1000), (500, 500), 999), FoldPlan::Nothing);
    }
}
