//! Asking a guest what it changed, before anything here looks at it.

use crate::context::Context;
use crate::error::CliError;
use crate::verbs::{fetch, stop};
use sandbox_core::picture;
use sandbox_core::sandbox::{Sandbox, State};
use sandbox_core::store::Store;
use sandbox_protocol::escape_bytes;
use sandbox_sys::lock::FileLock;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Sees to it that what a sandbox changed is known here; at once where it writes to the host itself. A guest that
/// runs is asked, else a helper over its disk.
pub fn fresh(context: &Context, store: &Store, sandbox: &Sandbox) -> Result<(), CliError> {
    fresh_with(context, store, sandbox, &[])
}

/// As [`fresh`], with all of these paths of a tree (by its number).
pub fn fresh_with(
    context: &Context,
    store: &Store,
    sandbox: &Sandbox,
    whole: &[(usize, &Path)],
) -> Result<(), CliError> {
    let whole: Vec<(usize, String)> =
        whole.iter().map(|(n, path)| (*n, escape_bytes(path.as_os_str().as_bytes()))).collect();
    if picture::is_fresh(sandbox, &whole)? {
        return Ok(());
    }
    if let Some(mut connection) = stop::live(sandbox)? {
        return Ok(picture::take(&mut connection, store, sandbox, &whole)?);
    }
    fetch::with_helper(context, store, sandbox, |connection| Ok(picture::take(connection, store, sandbox, &whole)?))
}

/// As [`fresh`], of one that does not run and whose lock is held.
pub fn fresh_locked(context: &Context, store: &Store, sandbox: &Sandbox, lock: &FileLock) -> Result<(), CliError> {
    if picture::is_fresh(sandbox, &[])? {
        return Ok(());
    }
    fetch::helper(context, store, sandbox, lock, |connection| Ok(picture::take(connection, store, sandbox, &[])?))
}

/// As [`fresh`], for a listing: only one that runs is asked, and what it does not say is not known.
pub fn fresh_if_it_runs(context: &Context, store: &Store, sandbox: &Sandbox) {
    if sandbox.record.guest_disk && sandbox.state().is_ok_and(|state| state == State::Running) {
        let _ = fresh(context, store, sandbox);
    }
}
