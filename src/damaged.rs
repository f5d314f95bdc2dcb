//! Records that cannot be read: each harms what it is of, is told in one line, and `repair` is the next step.

use crate::error::CliError;
use crate::text::escape;
use sandbox_core::id::RepoId;
use sandbox_core::sandbox::{Sandbox, Unreadable};
use sandbox_core::store::{Store, StoreError};
use serde::Serialize;
use std::path::PathBuf;

/// One, as `--json` tells it.
#[derive(Debug, Serialize)]
pub struct Damaged {
    /// The name of its sandbox, if it has one.
    pub name: Option<String>,
    /// The sandbox.
    pub id: String,
    /// The record.
    pub path: PathBuf,
}

impl From<&Unreadable> for Damaged {
    fn from(one: &Unreadable) -> Self {
        let name = one.name.as_ref().map(ToString::to_string);
        Self { name, id: one.id.to_string(), path: one.error.path().to_owned() }
    }
}

/// Says what is left out because its record cannot be read.
pub fn warn(what: &str, error: &StoreError) {
    eprintln!("warning: {what} is left out: {}; `git sandbox repair` tells the next step", escape(&error.to_string()));
}

/// Finds the sandboxes of a repository (or of all) that cannot be read, and says so of each.
pub fn warn_sandboxes(store: &Store, repo: Option<&RepoId>) -> Result<Vec<Unreadable>, CliError> {
    let found = Sandbox::damaged(store, repo)?;
    for one in &found {
        let name = one.name.as_ref().map_or_else(|| one.id.to_string(), ToString::to_string);
        warn(&format!("'{name}'"), &one.error);
    }
    Ok(found)
}
