//! `__sync DIR`: after the launch on a snapshot that is new, everything that the sandbox stands
//! on goes to the disk for good. Up to the launch nothing could be lost; from now on a power cut
//! must not take the layers from under files that were fsynced inside.

use super::{argument, supervise::open};
use crate::error::CliError;
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::{Store, make_dir, read_json, write_whole};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// `repos/<id>/synced/<snapshot>`: an empty file.
fn mark(store: &Store, sandbox: &Sandbox) -> Option<PathBuf> {
    let mount = sandbox.record.repos.first()?;
    Some(store.repo(&mount.repo).path().join("synced").join(&mount.snapshot))
}

/// Starts in the background what follows a launch: this, unless the snapshot is on the disk already, and
/// the daily `gc`.
pub fn start(program: &Path, store: &Store, sandbox: &Sandbox) {
    crate::verbs::gc::start_auto(program, store);
    if mark(store, sandbox).is_none_or(|mark| mark.exists()) {
        return;
    }
    // A failure costs durability over a power cut, not the start.
    let _ = Command::new(program)
        .arg("__sync")
        .arg(sandbox.dir.path())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
}

pub fn run(args: &[OsString]) -> Result<(), CliError> {
    let _ = rustix::process::setsid();
    let (store, dir) = open(Path::new(argument(args, 0, "the sandbox's directory")?))?;
    let record = read_json(&dir.record())?.ok_or_else(|| CliError::new("the sandbox is half-made"))?;
    let sandbox = Sandbox::new(dir, record);
    let Some(mark) = mark(&store, &sandbox) else { return Ok(()) };
    sandbox_capture::sync(store.root()).map_err(|error| CliError::chain(&error))?;
    make_dir(mark.parent().unwrap_or(store.root()))?;
    Ok(write_whole(&mark, b"", false)?)
}
