//! What is known of a sandbox when it is merged: what it started from, where it is now, and what it has
//! left uncommitted.

use super::asked::Asked;
use crate::context::Context;
use crate::error::CliError;
use crate::verbs::{fetch, stop};
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::Store;
use sandbox_core::work;
use sandbox_git::Oid;
use sandbox_integrate::{How, Identity, Layers, MergeRequest, RepoPath};
use sandbox_protocol::{Exec, escape_bytes};
use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

/// What is known of a sandbox when it is merged.
pub struct Known {
    name: String,
    base: Option<Oid>,
    tip: Oid,
    captured: Layers,
    index: Option<PathBuf>,
    left: Option<BTreeSet<RepoPath>>,
}

impl Known {
    /// `None` if it has no commit. Asking inside takes a helper for each that does not run: it is not worth
    /// it where nothing here is uncommitted, and what is not known only makes a merge more careful.
    pub fn of(context: &Context, store: &Store, sandbox: &Sandbox, ask: bool) -> Result<Option<Self>, CliError> {
        let Some(tip) = work::tip(context.git()?, store, sandbox)? else { return Ok(None) };
        let snapshot = sandbox.snapshot(store)?;
        let dir = store.repo(&sandbox.mount().repo);
        let index = dir.layer_tree(&snapshot.git_layer).join(".git/index");
        Ok(Some(Self {
            name: sandbox.name().to_owned(),
            base: snapshot.git.base.as_deref().and_then(Oid::parse),
            tip,
            captured: Layers::new(snapshot.layers.iter().map(|id| dir.layer_tree(id))),
            index: Some(index).filter(|index| index.exists()),
            left: if ask { left_inside(context, store, sandbox)? } else { None },
        }))
    }

    pub fn request<'a>(
        &'a self,
        how: How,
        message: Option<&'a str>,
        asked: &'a Asked,
        identity: &'a Identity,
    ) -> MergeRequest<'a> {
        MergeRequest {
            name: &self.name,
            base: self.base,
            tip: self.tip,
            captured: Some(&self.captured),
            captured_index: self.index.as_deref(),
            left_inside: self.left.as_ref(),
            how,
            choices: &asked.choices,
            message,
            identity,
        }
    }
}

/// How long git inside may take to say what is not committed: a FIFO in its way makes it wait for ever.
const PATIENCE: Duration = Duration::from_secs(10);

/// The paths that are not committed inside, told by git inside. What it says only chooses which
/// of two safe merge bases a path gets; when it cannot be asked, the careful one is taken.
fn left_inside(context: &Context, store: &Store, sandbox: &Sandbox) -> Result<Option<BTreeSet<RepoPath>>, CliError> {
    let argv =
        ["git", "--no-optional-locks", "status", "--porcelain=v1", "-z", "--no-renames", "--untracked-files=all"];
    let exec = Exec {
        argv: argv.map(str::to_owned).into(),
        cwd: escape_bytes(sandbox.mount().worktree.as_os_str().as_bytes()),
        internal: true,
        ..Exec::default()
    };
    let ask = |connection: &mut sandbox_core::connection::Connection| {
        Ok(connection.run_within(exec.clone(), b"", 64 << 20, PATIENCE)?)
    };
    let answer = match stop::live(sandbox)? {
        Some(mut connection) => ask(&mut connection),
        None => fetch::with_helper(context, store, sandbox, ask),
    };
    let Ok((status, out, _)) = answer else { return Ok(None) };
    if status.shell() != 0 {
        return Ok(None);
    }
    Ok(sandbox_integrate::status_paths(&out))
}
