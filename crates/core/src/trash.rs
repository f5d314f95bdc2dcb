//! Dropped sandboxes, as they were: `trash/<id>/` is the sandbox's directory, moved by one
//! rename, so that restoring is exact (ignored files, home and nested repositories included).

use crate::id::Name;
use crate::record::SandboxRecord;
use crate::sandbox::{Names, Sandbox, SandboxError};
use crate::store::{SandboxDir, Store, StoreError, read_json, write_json};
use sandbox_sys::lock::FileLock;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Days that a dropped sandbox is kept.
pub const KEEP_DAYS: u64 = 30;

/// A dropped sandbox.
#[derive(Clone, Debug)]
pub struct Trashed {
    /// Where it is.
    pub dir: SandboxDir,
    /// What it was.
    pub record: SandboxRecord,
    /// Seconds since it was dropped.
    pub age_seconds: u64,
    /// Bytes on disk.
    pub disk: u64,
}

/// `trash/<id>/dropped.json`.
#[derive(Serialize, Deserialize)]
struct Dropped {
    /// Unix seconds.
    at: u64,
}

impl Trashed {
    /// The work tree that it was made of.
    pub fn worktree(&self) -> &Path {
        self.record.repos.first().map_or(Path::new(""), |mount| &mount.worktree)
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or(0)
}

/// Everything in the trash, newest first.
pub fn list(store: &Store) -> Result<Vec<Trashed>, StoreError> {
    let dir = store.root().join("trash");
    let mut all = Vec::new();
    for entry in fs::read_dir(&dir).map_err(StoreError::io("list", &dir))? {
        let entry = entry.map_err(StoreError::io("list", &dir))?;
        let Some(id) = entry.file_name().to_str().and_then(crate::id::SandboxId::parse) else { continue };
        let dir = store.trash(&id);
        let Some(record) = read_json::<SandboxRecord>(&dir.record())? else { continue };
        let dropped: Option<Dropped> = read_json(&dir.path().join("dropped.json"))?;
        let age_seconds = dropped.map_or(0, |dropped| now().saturating_sub(dropped.at));
        let disk = crate::work::disk_of(dir.path());
        all.push(Trashed { dir, record, age_seconds, disk });
    }
    all.sort_by_key(|item| item.age_seconds);
    Ok(all)
}

/// Moves a sandbox, whose lock is held and that does not run, into the trash.
pub fn discard(store: &Store, sandbox: &Sandbox, lock: FileLock) -> Result<(), StoreError> {
    let target = store.trash(&sandbox.record.id);
    write_json(&sandbox.dir.path().join("dropped.json"), &Dropped { at: now() }, true)?;
    fs::rename(sandbox.dir.path(), target.path()).map_err(StoreError::io("move away", sandbox.dir.path()))?;
    for mount in &sandbox.record.repos {
        Names::of(&store.repo(&mount.repo)).take_back(&sandbox.record.name, &sandbox.record.id);
    }
    drop(lock);
    Ok(())
}

/// Brings one back, under its name or, when that was given again, under that name with a number;
/// returns the name.
pub fn restore(store: &Store, item: &Trashed) -> Result<Name, SandboxError> {
    let mut record = item.record.clone();
    let taken = |name: &Name| {
        record.repos.iter().any(|mount| {
            Names::of(&store.repo(&mount.repo))
                .get(name.as_str())
                .is_some_and(|id| store.sandbox(&id).record().exists())
        })
    };
    let mut name = record.name.clone();
    for n in 2.. {
        if !taken(&name) {
            break;
        }
        let stem: String = record.name.as_str().chars().take(crate::id::MAX_NAME - 4).collect();
        name = Name::parse(&format!("{stem}-{n}")).unwrap_or_else(|_| Name::random());
    }
    record.name = name.clone();
    for mount in &record.repos {
        Names::of(&store.repo(&mount.repo)).give(&name, &record.id)?;
    }
    write_json(&item.dir.record(), &record, true)?;
    let target = store.sandbox(&record.id);
    fs::rename(item.dir.path(), target.path()).map_err(StoreError::io("move back", item.dir.path()))?;
    let _ = fs::remove_file(target.path().join("dropped.json"));
    Ok(name)
}

/// Deletes one for good.
pub fn delete(_store: &Store, item: &Trashed) -> Result<(), StoreError> {
    sandbox_capture::remove_tree(item.dir.path()).map_err(StoreError::io("delete", item.dir.path()))
}
