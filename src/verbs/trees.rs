//! Which trees of a sandbox a verb is about, and how it says so where there are several.

use crate::context::Context;
use crate::error::CliError;
use crate::text::{count, escape_bytes};
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::Store;
use sandbox_core::work;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The trees that are meant: all, or the one of `--only`.
pub fn chosen(sandbox: &Sandbox, only: Option<&Path>) -> Result<Vec<Sandbox>, CliError> {
    let Some(only) = only else { return Ok(sandbox.trees().collect()) };
    let path = std::fs::canonicalize(only).unwrap_or_else(|_| only.to_owned());
    let found = sandbox.trees().find(|tree| tree.mount().worktree == path);
    found.map(|tree| vec![tree]).ok_or_else(|| {
        let known: Vec<String> = sandbox.trees().map(|tree| format!("'{}'", place(&tree))).collect();
        let shown = escape_bytes(path.as_os_str().as_bytes());
        CliError::usage(format!("'{shown}' is no repository of the sandbox '{}'", sandbox.name()))
            .hint(format!("it has {}", known.join(", ")))
    })
}

/// The one tree that is meant where several sandboxes are: that of `--only`, else its only one.
pub fn one(sandbox: Sandbox, only: Option<&Path>) -> Result<Sandbox, CliError> {
    if only.is_some() {
        return Ok(chosen(&sandbox, only)?.remove(0));
    }
    if merged_together(&sandbox) {
        return Err(CliError::usage(format!(
            "'{}' has several repositories, which are merged together",
            sandbox.name()
        ))
        .hint(format!("`git sandbox merge {}` alone, or `--only PATH` for one repository of each", sandbox.name())));
    }
    Ok(sandbox)
}

/// It has more than one repository that commits come home to.
pub fn merged_together(sandbox: &Sandbox) -> bool {
    sandbox.trees().filter(|tree| tree.mount().has_commits()).count() > 1
}

/// The sandbox has more than one tree: what is printed of one says of which.
pub fn several(sandbox: &Sandbox) -> bool {
    sandbox.record.repos.len() > 1
}

/// The path of a tree.
pub fn place(tree: &Sandbox) -> String {
    escape_bytes(tree.mount().worktree.as_os_str().as_bytes())
}

/// The line before what is printed of one of several trees.
pub fn title(tree: &Sandbox) -> String {
    let kind = if tree.mount().directory { "directory" } else { "repository" };
    format!("{kind} {}", place(tree))
}

/// ` in '/path'`, where there are several trees.
pub fn of_which(tree: &Sandbox) -> String {
    if several(tree) { format!(" in '{}'", place(tree)) } else { String::new() }
}

/// Says which other repositories of a sandbox have commits, and what takes them: for verbs of one repository.
pub fn tell_others(context: &Context, store: &Store, tree: &Sandbox, verb: &str) -> Result<(), CliError> {
    tell_others_by(context, store, tree, &|_| verb.to_owned())
}

/// The same, with a verb that depends on which other repository it is.
pub fn tell_others_by(
    context: &Context,
    store: &Store,
    tree: &Sandbox,
    verb: &dyn Fn(&Sandbox) -> String,
) -> Result<(), CliError> {
    for other in tree.trees().filter(|other| other.tree != tree.tree) {
        let ahead = work::commits_on_host(context.git()?, store, &other)?.ahead;
        if ahead > 0 {
            let (path, name) = (place(&other), tree.name());
            eprintln!(
                "note: '{name}' has {} in '{path}' too: `git sandbox -C '{path}' {}`",
                count(ahead, "commit"),
                verb(&other)
            );
        }
    }
    Ok(())
}
