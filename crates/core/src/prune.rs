//! What of the store nothing stands on: a plan that can be printed, then applied.
//!
//! Kept are: every snapshot of a sandbox (in the trash too); the layers and the views of those; packs that
//! a kept view links (a pack is one file with several names: removing a name never takes it from another).
//! The last snapshot of each work tree is kept for its next spawn as long as all that is kept only for this
//! fits into the cache's size; what was not used for longest goes first. The trash goes after
//! `sandbox.trashExpiry`.

use crate::days::Days;
use crate::id::{LayerId, SandboxId, SnapshotId};
use crate::journal::{End, Journal, Plan, Verb};
use crate::kept::Kept;
use crate::record::{SandboxRecord, Snapshot};
use crate::store::{RepoDir, Store, StoreError, copy_of, read_json};
use crate::trash::{self, KEEP_DAYS};
use crate::watch::Place;
use sandbox_sys::clock::unix_seconds;
use sandbox_sys::fault;
use sandbox_sys::lock::FileLock;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What will be removed.
#[derive(Clone, Debug, Default)]
pub struct PrunePlan {
    /// Each thing, in the order in which it goes: who names another goes first.
    pub items: Vec<Item>,
    /// Bytes that stay although no sandbox stands on them: for the next spawn of a work tree.
    pub idle: u64,
    /// What may stay.
    keep: Option<Keep>,
    /// What is in the trash and stays.
    pub trash: Vec<Waiting>,
    /// Records that cannot be read. As long as there is one, nothing goes that it might stand on.
    pub unread: Vec<PathBuf>,
    /// What is in the trash, or is kept without its directory.
    dropped: BTreeSet<SandboxId>,
}

/// What may stay.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// Bytes for the next spawns.
    pub cache: u64,
    /// Days for a dropped sandbox; `None`: until the trash is emptied.
    pub trash_days: Option<u64>,
}

/// A dropped sandbox that stays for now.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: SandboxId,
    /// The least days until it goes; `None`: it does not by itself.
    pub days_left: Option<u64>,
}

/// One thing.
#[derive(Clone, Debug)]
pub struct Item {
    /// `sandbox`, `rescue`, `capture`, `snapshot`, `layer`, `view`, `pack`, `undo`, `check`, `mark` or `watch`.
    pub kind: &'static str,
    /// In words.
    pub what: String,
    /// Its path.
    pub path: PathBuf,
    /// Bytes on disk.
    pub bytes: u64,
    /// The repository whose lock must be held; `None` for the trash.
    repo: Option<RepoDir>,
}

/// The least days until something goes that is so many seconds old by the clock, and so many days by what the store
/// has seen pass.
fn left(most: u64, age: u64, seen: u64) -> u64 {
    let clock = most.saturating_mul(86_400).saturating_sub(age).div_ceil(86_400);
    clock.max(most.saturating_sub(seen))
}

impl PrunePlan {
    /// The most bytes that may stay for the next spawns.
    pub fn cache(&self) -> u64 {
        self.keep.map_or(0, |keep| keep.cache)
    }

    /// Bytes of all.
    pub fn bytes(&self) -> u64 {
        self.items.iter().map(|item| item.bytes).sum()
    }
}

/// What `sandbox.cacheSize` is unless it is set: a tenth of the file system.
pub fn default_cache(store: &Store) -> u64 {
    rustix::fs::statvfs(store.root()).map_or(u64::MAX, |stat| stat.f_blocks.saturating_mul(stat.f_frsize) / 10)
}

/// What no sandbox can stand on, whatever a record says that cannot be read.
const NOBODYS: &[&str] = &["sandbox", "undo", "mark", "watch"];

/// Decides what goes. Changes nothing.
pub fn plan(store: &Store, keep: Keep) -> Result<PrunePlan, StoreError> {
    let mut plan = plan_all(store, keep)?;
    plan.unread.sort();
    plan.unread.dedup();
    if !plan.unread.is_empty() {
        plan.items.retain(|item| NOBODYS.contains(&item.kind));
    }
    Ok(plan)
}

fn plan_all(store: &Store, keep: Keep) -> Result<PrunePlan, StoreError> {
    let mut plan = PrunePlan { keep: Some(keep), ..PrunePlan::default() };
    let mut expired: BTreeSet<SandboxId> = BTreeSet::new();
    let days = Days::read(store);
    for item in trash::list(store)? {
        plan.dropped.insert(item.record.id.clone());
        let left = keep.trash_days.map(|most| left(most, item.age_seconds, days.of(&item.record.id)));
        if left != Some(0) {
            let (name, id) = (item.record.name.to_string(), item.record.id);
            plan.trash.push(Waiting { name, id, days_left: left });
            continue;
        }
        expired.insert(item.record.id.clone());
        plan.items.push(Item {
            kind: "sandbox",
            what: format!("dropped sandbox '{}' of {} days ago", item.record.name, item.age_seconds / 86_400),
            path: item.dir.path().to_owned(),
            bytes: item.disk,
            repo: None,
        });
    }
    let used = used_snapshots(store, &expired, &mut plan.unread)?;
    let mut latest = Vec::new();
    for id in store.repo_ids()? {
        latest.extend(latest_snapshots(&store.repo(&id))?);
    }
    let evicted = evict(latest.clone(), &used, &mut plan)?;
    for id in store.repo_ids()? {
        let repo = store.repo(&id);
        let mut keep = used.clone();
        for capture in latest.iter().filter(|capture| capture.repo.path() == repo.path()) {
            if evicted.contains(&capture.file) {
                plan.items.push(Item {
                    kind: "capture",
                    what: format!("capture of '{}', kept for its next spawn", capture.worktree.display()),
                    bytes: size_of(&capture.file),
                    path: capture.file.clone(),
                    repo: Some(repo.clone()),
                });
            } else {
                keep.insert(capture.snapshot.clone());
            }
        }
        plan_repo(store, &repo, &keep, &mut plan)?;
        let here = latest.iter().filter(|capture| capture.repo.path() == repo.path());
        plan_watch(&repo, &here.map(|capture| capture.worktree.as_path()).collect::<Vec<_>>(), &mut plan)?;
    }
    Ok(plan)
}

/// The last snapshot of a work tree, kept for its next spawn.
#[derive(Clone, Debug)]
struct Capture {
    repo: RepoDir,
    worktree: PathBuf,
    snapshot: SnapshotId,
    /// The file that names it. It is written or touched with each spawn.
    file: PathBuf,
    used: SystemTime,
}

/// Returns the captures (by their files) that do not fit into the cache, and notes what the others take.
fn evict(
    mut latest: Vec<Capture>,
    used: &BTreeSet<SnapshotId>,
    plan: &mut PrunePlan,
) -> Result<BTreeSet<PathBuf>, StoreError> {
    let parts = |repo: &RepoDir, id: &SnapshotId| -> Result<BTreeSet<PathBuf>, StoreError> {
        let Ok(Some(snapshot)) = read_json::<Snapshot>(&repo.snapshot(id)) else { return Ok(BTreeSet::new()) };
        let layers = snapshot.layers.iter().chain([&snapshot.git_layer]).map(|id| repo.layer(id));
        Ok(layers.chain(snapshot.git.views.iter().map(|view| repo.view(&view.key))).collect())
    };
    // What sandboxes stand on costs the cache nothing.
    let mut counted = BTreeSet::new();
    for capture in &latest {
        for id in used {
            counted.extend(parts(&capture.repo, id)?);
        }
    }
    latest.retain(|capture| !used.contains(&capture.snapshot));
    latest.sort_by_key(|capture| std::cmp::Reverse(capture.used));
    let mut evicted = BTreeSet::new();
    for capture in latest {
        let own: Vec<PathBuf> =
            parts(&capture.repo, &capture.snapshot)?.into_iter().filter(|path| !counted.contains(path)).collect();
        let bytes: u64 = own.iter().map(|path| crate::work::disk_of(path)).sum();
        if plan.idle.saturating_add(bytes) > plan.cache() {
            evicted.insert(capture.file);
        } else {
            plan.idle += bytes;
            counted.extend(own);
        }
    }
    Ok(evicted)
}

fn plan_repo(
    store: &Store,
    repo: &RepoDir,
    keep: &BTreeSet<SnapshotId>,
    plan: &mut PrunePlan,
) -> Result<(), StoreError> {
    let (mut layers, mut views): (BTreeSet<LayerId>, BTreeSet<String>) = Default::default();
    let packs = plan_kept(store, repo, &mut views, plan)?;
    for path in entries(&repo.snapshots())? {
        // A copy that was made when its record was gone.
        if path.extension().is_some_and(|ext| ext == "copy") && !path.with_extension("").exists() {
            plan.items.push(Item { kind: "mark", what: "a copy".into(), bytes: 0, path, repo: Some(repo.clone()) });
            continue;
        }
        let Some(id) = path.file_stem().and_then(|stem| stem.to_str()).and_then(SnapshotId::parse) else { continue };
        if keep.contains(&id) {
            match read_json::<Snapshot>(&path) {
                Ok(snapshot) => {
                    if let Some(snapshot) = snapshot {
                        layers.extend(snapshot.layers);
                        layers.insert(snapshot.git_layer);
                        views.extend(snapshot.git.views.into_iter().map(|view| view.key));
                    }
                }
                Err(_) => plan.unread.push(path),
            }
        } else {
            plan.items.push(Item {
                kind: "snapshot",
                what: format!("snapshot {id}"),
                bytes: size_of(&path),
                path,
                repo: Some(repo.clone()),
            });
        }
    }
    for path in entries(&repo.layers())? {
        let Some(id) = path.file_name().and_then(|name| name.to_str()).and_then(LayerId::parse) else { continue };
        if !layers.contains(&id) {
            let bytes = crate::work::disk_of(&path);
            let what = format!("layer {id}");
            plan.items.push(Item { kind: "layer", what, path, bytes, repo: Some(repo.clone()) });
        }
    }
    for path in entries(&repo.views())? {
        let key = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !views.contains(&key) {
            let bytes = crate::work::disk_of(&path);
            let what = format!("view {key}");
            plan.items.push(Item { kind: "view", what, path, bytes, repo: Some(repo.clone()) });
        }
    }
    // Marks of snapshots that are on the disk for good.
    for path in entries(&repo.path().join("synced"))? {
        let id = path.file_name().and_then(|name| name.to_str()).and_then(SnapshotId::parse);
        if id.is_none_or(|id| !keep.contains(&id)) {
            plan.items.push(Item { kind: "mark", what: "a mark".into(), bytes: 0, path, repo: Some(repo.clone()) });
        }
    }
    // The state before merges, the marks beside it, and what `undo` knows of them.
    let mut former = entries(&repo.path().join("undo"))?;
    former.extend(entries(&repo.path().join("ops"))?);
    let old = |path: &Path| {
        let at = fs::symlink_metadata(path).and_then(|meta| meta.modified());
        at.is_ok_and(|at| at.elapsed().is_ok_and(|age| age.as_secs() > KEEP_DAYS * 86_400))
    };
    for path in former {
        if old(&path) {
            let bytes = crate::work::disk_of(&path);
            plan.items.push(Item {
                kind: "undo",
                what: "the state before an old merge".into(),
                path,
                bytes,
                repo: Some(repo.clone()),
            });
        }
    }
    // What checks before merges printed.
    for path in entries(&repo.path().join("checks"))? {
        if old(&path) {
            let (kind, what) = ("check", "the output of an old check".to_owned());
            plan.items.push(Item { kind, what, bytes: size_of(&path), path, repo: Some(repo.clone()) });
        }
    }
    // A pack whose only name is the vault's own: no view links it any more, and no record of what is kept names it. (The last views of a
    // plan go in the same run; their packs follow in the next one.)
    for path in entries(&repo.vault().join("objects/pack"))? {
        let single = fs::symlink_metadata(&path).is_ok_and(|meta| meta.nlink() == 1);
        let stem = path.with_extension("");
        let kept = stem.file_name().is_some_and(|name| packs.contains(&*name.to_string_lossy()));
        if single && path.extension().is_some_and(|ext| ext == "pack") && !kept {
            for ext in ["idx", "rev", "promisor", "pack"] {
                let path = stem.with_extension(ext);
                if path.exists() {
                    let bytes = size_of(&path);
                    let what = format!("pack file {}", path.file_name().unwrap_or_default().to_string_lossy());
                    plan.items.push(Item { kind: "pack", what, path, bytes, repo: Some(repo.clone()) });
                }
            }
        }
    }
    Ok(())
}

/// Removes what was planned and still is not needed; returns how many.
pub fn apply(store: &Store, planned: &PrunePlan) -> Result<usize, StoreError> {
    // A full disk, on which this is how room is made, costs days of the count and nothing else.
    let _ = Days::read(store).write(store, &planned.dropped);
    let mut op = Journal::of_store(store).start(Plan::new(Verb::Gc).makes_room())?;
    let expired = planned.items.iter().filter(|item| item.repo.is_none());
    let named = expired.filter_map(|item| Some((item.path.file_name()?.to_str()?.to_owned(), String::new())));
    op.begin_durably("delete", named.collect())?;
    let mut removed = 0;
    let mut locked: Option<(PathBuf, FileLock)> = None;
    let mut again: Option<PrunePlan> = None;
    for item in &planned.items {
        if let Some(repo) = &item.repo
            && locked.as_ref().is_none_or(|(path, _)| path != repo.path())
        {
            drop(locked.take());
            let lock = repo.lock_file();
            locked = Some((repo.path().to_owned(), FileLock::exclusive(&lock).map_err(StoreError::io("lock", lock))?));
            // Between plan and lock a spawn may have come to stand on it.
            again = planned.keep.map(|keep| plan(store, keep)).transpose()?;
        }
        if item.repo.is_some()
            && !again.as_ref().is_some_and(|now| now.items.iter().any(|other| other.path == item.path))
        {
            continue;
        }
        if let Some(repo) = &item.repo
            && let Some(id) = crate::kept::id_of(repo, &item.path)
        {
            removed += usize::from(crate::kept::expire(repo, &id)?);
            continue;
        }
        if item.repo.is_none() {
            // Out of the trash by one rename: it is deleted or restored, never both.
            removed += usize::from(trash::delete_dir(store, &item.path)?);
            continue;
        }
        fault::point("gc.item").map_err(StoreError::io("delete", &item.path))?;
        sandbox_capture::remove_tree(&item.path).map_err(StoreError::io("delete", &item.path))?;
        if item.kind == "snapshot" {
            let _ = fs::remove_file(copy_of(&item.path));
        }
        removed += 1;
    }
    fault::point("gc.end").map_err(StoreError::io("write", store.root()))?;
    op.end(End::Done);
    Ok(removed)
}

fn used_snapshots(
    store: &Store,
    except: &BTreeSet<SandboxId>,
    unread: &mut Vec<PathBuf>,
) -> Result<BTreeSet<SnapshotId>, StoreError> {
    let mut used = BTreeSet::new();
    // Twice: one that is restored while we look is in neither place when that is looked at.
    for dir in ["sandboxes", "trash", "sandboxes"] {
        for path in entries(&store.root().join(dir))? {
            let read = |name: &str| {
                let path = path.join(name);
                read_json::<SandboxRecord>(&path).map_err(|_| path)
            };
            let record = match read("sandbox.json") {
                Ok(None) => read(crate::check::RECORD),
                other => other,
            };
            let record = match record {
                Ok(Some(record)) => record,
                other => {
                    unread.extend(other.err());
                    continue;
                }
            };
            if dir == "sandboxes" || !except.contains(&record.id) {
                used.extend(record.repos.into_iter().map(|mount| mount.snapshot));
            }
        }
    }
    Ok(used)
}

fn latest_snapshots(repo: &RepoDir) -> Result<Vec<Capture>, StoreError> {
    let mut latest = Vec::new();
    for file in entries(&crate::prepare::latest_dir(repo))? {
        // Without it the next spawn captures everything; nothing stands on it.
        if let Ok(Some(record)) = read_json::<crate::prepare::Latest>(&file) {
            // A work tree that is gone needs no next capture.
            if record.worktree.is_dir() {
                let used = fs::metadata(&file).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
                let (repo, worktree, snapshot) = (repo.clone(), record.worktree, record.snapshot);
                latest.push(Capture { repo, worktree, snapshot, file, used });
            }
        }
    }
    Ok(latest)
}

/// Plans what the vault keeps of sandboxes: it goes with a dropped sandbox, and as many days after the last rescue
/// of one whose directory was lost. Returns the packs that stay, and adds the views that do.
fn plan_kept(
    store: &Store,
    repo: &RepoDir,
    views: &mut BTreeSet<String>,
    plan: &mut PrunePlan,
) -> Result<BTreeSet<String>, StoreError> {
    let mut packs = BTreeSet::new();
    let now = unix_seconds();
    let passed = Days::read(store);
    let all = Kept::all(repo)?;
    plan.unread.extend(all.damaged.iter().map(|error| error.path().to_owned()));
    for kept in all.whole {
        let age = now.saturating_sub(kept.since());
        let days = age / 86_400;
        let is_lost = !store.sandbox(&kept.id).record().exists();
        if is_lost {
            plan.dropped.insert(kept.id.clone());
        }
        let most = plan.keep.and_then(|keep| keep.trash_days);
        if is_lost && kept.since() > 0 && most.is_some_and(|most| left(most, age, passed.of(&kept.id)) == 0) {
            plan.items.push(Item {
                kind: "rescue",
                what: format!("rescued work and commits of '{}' of {days} days ago", kept.name),
                bytes: kept.bytes(repo),
                path: crate::kept::file(repo, &kept.id),
                repo: Some(repo.clone()),
            });
        } else {
            packs.extend(kept.packs());
            views.extend(kept.views());
        }
    }
    Ok(packs)
}

/// Plans the files of watchers whose work tree is gone, or was never captured. Those of one that runs stay.
fn plan_watch(repo: &RepoDir, worktrees: &[&Path], plan: &mut PrunePlan) -> Result<(), StoreError> {
    let places: Vec<Place> = worktrees.iter().map(|top| Place::new(repo, top)).collect();
    for path in entries(&repo.path().join("watch"))? {
        let known = places.iter().any(|place| place.owns(&path));
        if !known && !FileLock::is_held(&path.with_extension("lock")) {
            let (what, bytes) = ("what a watcher left whose work tree is gone".into(), size_of(&path));
            plan.items.push(Item { kind: "watch", what, bytes, path, repo: Some(repo.clone()) });
        }
    }
    Ok(())
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    match fs::read_dir(dir) {
        // An entry that cannot be read may be the one that keeps something.
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()
            .map_err(StoreError::io("list", dir)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(StoreError::Io { action: "list", path: dir.to_owned(), source }),
    }
}

fn size_of(path: &Path) -> u64 {
    fs::symlink_metadata(path).map(|meta| meta.blocks() * 512).unwrap_or(0)
}
