//! The capture as a whole.
//!
//! ```text
//!         ┌──────────────────────────────────────────────┐
//!         ▼                                              │ something was copied (at most 5 scans)
//!  scan the whole tree ─ all as in the manifest ─► done  │
//!         │ differences                                  │
//!         ▼                                              │
//!  limit, estimate ─► bring the new layer up to date ────┘
//! ```
//!
//! A scan that finds nothing new proves that what was copied before it belongs to one instant: the
//! start of that scan. It is spared when the times of what was copied prove the same of the scan before
//! (see `layer::settled`). Scans that find changes over and over are ended after five, and the files are
//! named.

use crate::estimate::estimate;
use crate::layer::{Build, Depth, top_attributes, write_manifest};
use crate::limit;
use crate::manifest::{MANIFEST, Manifest, ManifestError, Reason, TREE};
use crate::paths::{self, LOOK};
use crate::reflink::Reflinks;
use crate::request::{
    ANNOUNCED, CaptureError, CaptureRequest, Captured, Decision, LeftOut, MAX_STACK, Rebased, Secrets,
};
use crate::scan::{Frozen, Scan};
use crate::watched::Looks;
use rustix::fs::Mode;
use rustix::io::Errno;
use sandbox_sys::copy::Copier;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Whole scans in one capture.
const MAX_SCANS: u32 = 5;

/// Captures the work tree as it is at one instant.
///
/// The caller holds the repository's lock: two captures at once would build upon the same stack.
/// Nothing is synced to disk; see [`sync`].
pub fn capture(request: &CaptureRequest<'_>) -> Result<Captured, CaptureError> {
    let root = paths::open_root(request.root).map_err(|errno| CaptureError::io("read", request.root)(errno.into()))?;
    let root = root.as_fd();
    let settings = settings(request);
    let (copier, reflinks) = (Copier::new(), Reflinks::default());
    let reflinks = || reflinks.work(root, request.tmp_dir);
    let limited = || request.limit.is_some_and(|limit| limit.with_reflinks || !reflinks());
    let mut frozen = Frozen::new();
    let mut looks = Looks::new(request, root);

    let stack = open_stack(request);
    let unusable = stack.is_none() && !request.previous.is_empty();
    let mut rebased = unusable.then_some(Rebased::Unusable);
    let (trees, mut below) = stack.unwrap_or_default();
    let mut found = looks.look(below.as_ref(), &frozen, &limited)?;
    if let Some(mut manifest) = below.take_if(|below| found.is_clean() && below.settings() == settings) {
        looks.note(&found);
        if found.asked && manifest.git_state() != request.git_state && !looks.partly() {
            // The answers were the same; the next capture need not ask. After a watcher's answer whoever asked
            // remembers that: nothing is written in proportion to the tree.
            manifest = manifest.with_git_state(request.git_state)?;
            refresh(request, Some(&manifest))?;
        }
        let scans = looks.scans();
        let mut captured = answer(looks, found.left_out, manifest, rebased, root);
        captured.stats.scans = scans;
        return Ok(captured);
    }

    let mut stale = Vec::new();
    let mut limit = |before: Option<&Manifest>, found: &mut Scan, frozen: &mut Frozen| {
        if limited() {
            limit::apply(request, root, before, found, frozen);
            stale.extend(found.left_out.iter().filter(|entry| entry.reason == Reason::Stale).cloned());
        }
    };
    limit(below.as_ref(), &mut found, &mut frozen);
    looks.note(&found);
    announce(request, below.as_ref(), &found, &reflinks)?;

    // Layers of which nothing is left, and a stack that is full, are not built upon.
    let mut prefix = None;
    let mut current = None;
    let depth = match &below {
        Some(below) if trees.len() > 1 => {
            Build::new(request, root, &trees, Some(below), settings, &copier).depth(below, &mut found)?
        }
        _ => Depth::all(trees.len()),
    };
    if depth.layers < trees.len() {
        prefix = open_prefix(request, trees.len() - depth.layers);
        rebased = prefix.as_ref().map(|_| Rebased::Folded { kept: depth.kept > 0 });
    }
    if prefix.is_none() && trees.len() >= MAX_STACK && depth.layers < trees.len() {
        let base = request.previous.last().map(|id| request.layers_dir.join(id).join(MANIFEST)).unwrap_or_default();
        return Err(ManifestError::Damaged { path: base }.into());
    }
    let shown = prefix.as_ref().or(below.as_ref());
    let mut build = Build::new(request, root, &trees, shown, settings, &copier);
    if let (true, Some(below)) = (prefix.is_some(), &below) {
        current = Some(build.fold(below, &depth.gone)?);
    }

    let mut unreadable;
    let mut unsettled = Vec::new();
    loop {
        let before = current.as_ref().or(below.as_ref());
        let round = build.round(before, &mut found, looks.scans() >= MAX_SCANS)?;
        let refreshed = round.refreshed;
        found.forget();
        unreadable = round.unreadable;
        current = Some(round.manifest);
        if !round.changed {
            if refreshed && !build.started() {
                // No layer is needed; but what the manifest learned spares the next capture a look.
                refresh(request, current.as_ref())?;
            }
            break;
        }
        if round.settled {
            break;
        }
        if looks.scans() >= MAX_SCANS {
            unsettled = round.touched;
            break;
        }
        found = looks.look(current.as_ref(), &frozen, &limited)?;
        if found.is_clean() {
            looks.note(&found);
            unreadable.clear();
            break;
        }
        limit(current.as_ref(), &mut found, &mut frozen);
        looks.note(&found);
    }
    let Some(manifest) = current else { return Err(CaptureError::Aborted) };
    let new_layer = build.started().then(|| request.new_layer_id.to_owned());
    let built = build.publish(&manifest)?;
    found.left_out.extend(stale);
    found.left_out.extend(unreadable);
    let scans = looks.scans();
    let mut captured = answer(looks, found.left_out, manifest, rebased, root);
    captured.stats = crate::request::Stats {
        files: captured.stats.files,
        dirs: captured.stats.dirs,
        unchanged: captured.stats.files.saturating_sub(built.copied_files),
        lessened: captured.stats.lessened + built.lessened,
        scans,
        ..built
    };
    captured.new_layer = new_layer;
    captured.unsettled = unsettled;
    Ok(captured)
}

/// Writes everything that a new layer consists of to disk.
///
/// A capture does not do it, because nothing is lost as long as no command has run on the layer:
/// call it after the launch, and before the snapshot's record is made durable.
pub fn sync(layers_dir: &Path) -> Result<(), CaptureError> {
    let io = |errno: Errno| CaptureError::io("sync", layers_dir)(errno.into());
    let dir = paths::open_root(layers_dir).map_err(io)?;
    rustix::fs::syncfs(&dir).map_err(io)
}

/// Opens the previous stack: trees lowermost first, and the manifest. `None` when any of it is not
/// as it must be.
fn open_stack(request: &CaptureRequest<'_>) -> Option<(Vec<OwnedFd>, Option<Manifest>)> {
    let newest = request.previous.first()?;
    let manifest = Manifest::open(&request.layers_dir.join(newest).join(MANIFEST)).ok()?;
    if manifest.layers() != request.previous {
        return None;
    }
    let mut trees = Vec::new();
    for id in request.previous.iter().rev() {
        let tree = request.layers_dir.join(id).join(TREE);
        trees.push(rustix::fs::open(&tree, LOOK, Mode::empty()).ok()?);
    }
    Some((trees, Some(manifest)))
}

/// Opens the manifest of the previous stack without its `above` uppermost layers.
fn open_prefix(request: &CaptureRequest<'_>, above: usize) -> Option<Manifest> {
    let below = request.previous.get(above..)?;
    let manifest = Manifest::open(&request.layers_dir.join(below.first()?).join(MANIFEST)).ok()?;
    (manifest.layers() == below).then_some(manifest)
}

/// Returns a number that is another one when entries must be decided about anew.
pub(crate) fn settings(request: &CaptureRequest<'_>) -> u64 {
    let mut hasher = DefaultHasher::new();
    (request.secrets == Secrets::Carry).hash(&mut hasher);
    request.exclude.hash(&mut hasher);
    // Root reads what its user could not.
    rustix::process::geteuid().is_root().hash(&mut hasher);
    hasher.finish()
}

/// Asks whether there is room for what is about to be copied, and tells it if it is much and is copied for real.
fn announce(
    request: &CaptureRequest<'_>,
    before: Option<&Manifest>,
    found: &Scan,
    reflinks: &dyn Fn() -> bool,
) -> Result<(), CaptureError> {
    let weights = limit::weights(before, found);
    let bytes: u64 = weights.values().map(|(_, bytes)| bytes).sum();
    let files: u64 = weights.values().map(|(files, _)| files).sum();
    if request.progress.has_room(files, bytes, reflinks) == Decision::Abort {
        return Err(CaptureError::Aborted);
    }
    if bytes <= ANNOUNCED || reflinks() {
        return Ok(());
    }
    match request.progress.estimate(&estimate(&weights)) {
        Decision::Continue => Ok(()),
        Decision::Abort => Err(CaptureError::Aborted),
    }
}

/// After this time a file is on the disk without being asked for (`dirty_expire_centisecs` is half of it).
const WRITTEN_BACK: std::time::Duration = std::time::Duration::from_secs(60);

/// Replaces the manifest of the newest layer by one that says the same about the layers and knows
/// newer stats of the host.
fn refresh(request: &CaptureRequest<'_>, manifest: Option<&Manifest>) -> Result<(), CaptureError> {
    let (Some(newest), Some(manifest)) = (request.previous.first(), manifest) else { return Ok(()) };
    let new = request.tmp_dir.join(format!("{}.manifest", request.new_layer_id));
    let layer = request.layers_dir.join(newest);
    write_manifest(&new, manifest, &layer, request.owner)?;
    let target = layer.join(MANIFEST);
    // Nothing is synced before the command runs: until this one is on the disk, the one before is kept.
    // One that is so young that it may not be there either does not take the place of an older one.
    let replaced = target.with_extension(crate::manifest::REPLACED);
    let age = std::fs::metadata(&target).and_then(|meta| meta.modified()).ok().and_then(|at| at.elapsed().ok());
    if !replaced.exists() || age.is_some_and(|age| age > WRITTEN_BACK) {
        let _ = std::fs::remove_file(&replaced);
        let _ = std::fs::hard_link(&target, &replaced);
    }
    std::fs::rename(&new, &target).map_err(|source| {
        let _ = std::fs::remove_file(&new);
        CaptureError::Io { action: "write", path: target, source }
    })
}

fn answer(
    looks: Looks<'_>,
    left_out: Vec<LeftOut>,
    manifest: Manifest,
    rebased: Option<Rebased>,
    root: BorrowedFd<'_>,
) -> Captured {
    let (root_attributes, root_lessened) = top_attributes(root, looks.owner());
    let seen = looks.seen(&manifest, left_out);
    let top = manifest.top();
    Captured {
        layers: manifest.layers(),
        new_layer: None,
        stats: crate::request::Stats {
            files: manifest.files(),
            dirs: u64::from(manifest.dirs_held()).saturating_sub(1),
            unchanged: manifest.files(),
            lessened: manifest.lessened() + u64::from(root_lessened),
            ..Default::default()
        },
        left_out: seen.left_out,
        carried_secrets: seen.carried_secrets,
        tracked_secrets: seen.tracked_secrets,
        git_boundaries: seen.git_boundaries,
        root_mode: top.mode(),
        root_mtime: top.stat.mtime,
        root_attributes,
        unsettled: Vec::new(),
        rebased,
        manifest,
    }
}
