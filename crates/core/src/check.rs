//! A sandbox for one command, whose outcome is all that is wanted of it.
//!
//! ```text
//! sandboxes/<id>/check.json     what it is; there is no sandbox.json: it has no name, no verb sees it
//!               lock            held by whoever runs the command, and by whoever waits for it
//! ```
//!
//! To everybody else it is a half-made sandbox: it goes with the value here, and one whose owner was killed is swept
//! as any other. Only `gc` reads `check.json`: the layers that it stands on stay.

use crate::fork::{ForkError, Hold, copy};
use crate::id::SandboxId;
use crate::prepare::{PrepareError, Taken, furnish};
use crate::record::SandboxRecord;
use crate::sandbox::Sandbox;
use crate::store::{SandboxDir, Store, StoreError, make_dir, write_json};
use sandbox_capture::Progress;
use sandbox_sys::fault;
use sandbox_sys::lock::FileLock;
use std::path::Path;

/// The file that says what it stands on.
pub const RECORD: &str = "check.json";

/// One of them. Dropped, it is deleted: nothing may run in it then.
#[derive(Debug)]
pub struct CheckBox {
    /// It, as a sandbox that is launched.
    pub sandbox: Sandbox,
    lock: FileLock,
}

impl Drop for CheckBox {
    fn drop(&mut self) {
        let _ = sandbox_capture::remove_tree(self.sandbox.dir.path());
    }
}

/// A directory that goes unless it becomes a [`CheckBox`].
struct Half(SandboxDir);

impl Drop for Half {
    fn drop(&mut self) {
        let _ = sandbox_capture::remove_tree(self.0.path());
    }
}

impl CheckBox {
    /// One of what was just captured, as a spawn would make it.
    pub fn fresh(
        store: &Store,
        record: SandboxRecord,
        taken: &[&Taken],
        threads: usize,
        progress: &dyn Progress,
    ) -> Result<Self, PrepareError> {
        let (half, lock) = begin(store, &record.id)?;
        furnish(store, &half.0, &record, taken, threads, progress)?;
        Ok(finish(half, lock, record)?)
    }

    /// One as another sandbox is now, which does not run and whose lock is held.
    pub fn copy_of(store: &Store, sandbox: &Sandbox, lock: FileLock) -> Result<Self, ForkError> {
        let record = SandboxRecord { id: SandboxId::random(), ..sandbox.record.clone() };
        let (half, own) = begin(store, &record.id)?;
        copy(store, sandbox, &half.0, Hold::Stopped(lock))?;
        Ok(finish(half, own, record)?)
    }

    /// Its lock, for a process that is to hold it too.
    pub fn lock(&self) -> &FileLock {
        &self.lock
    }
}

fn begin(store: &Store, id: &SandboxId) -> Result<(Half, FileLock), StoreError> {
    let dir = store.sandbox(id);
    make_dir(dir.path())?;
    let half = Half(dir);
    let path = half.0.lock_file();
    let lock = FileLock::exclusive(&path).map_err(StoreError::io("lock", &path))?;
    stop("check.dir", half.0.path())?;
    Ok((half, lock))
}

fn finish(half: Half, lock: FileLock, record: SandboxRecord) -> Result<CheckBox, StoreError> {
    stop("check.record", half.0.path())?;
    write_json(&half.0.path().join(RECORD), &record, false)?;
    let dir = half.0.clone();
    std::mem::forget(half);
    Ok(CheckBox { sandbox: Sandbox::new(dir, record), lock })
}

fn stop(name: &'static str, path: &Path) -> Result<(), StoreError> {
    fault::point(name).map_err(StoreError::io("make", path))
}
