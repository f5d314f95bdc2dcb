//! `merge --into-sandbox`: a merge that conflicts goes on in a fresh sandbox, as git leaves it for somebody to
//! resolve. What is committed there comes home as any commit does.
//!
//! ```text
//! spawn NAME-merge, with the commits of NAME granted ─► inside: reset --hard, clean, merge ─► the command (a shell)
//!   ─► commit-back ─► `git sandbox merge NAME-merge` is a fast-forward
//! ```

use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::text::escape;
use crate::verbs::spawn::{self, First};
use crate::verbs::{fetch, trees};
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::Store;
use sandbox_core::work;
use sandbox_integrate::{Conflicts, How, MergeError, Reason};

/// The working tree becomes that of HEAD (what is ignored stays: dependencies), then the merge begins. Status 1 of it
/// is a conflict.
const SCRIPT: &str = r#"git reset --quiet --hard || exit 101
git clean --quiet -d --force || exit 101
git merge --quiet --no-ff -m "$2" "$1" >&2
test $? -le 1 || exit 102"#;

pub fn run(context: &Context, store: &Store, args: &cli::Merge, sandbox: &Sandbox) -> Outcome {
    let name = sandbox.name().to_owned();
    let tree = trees::one(sandbox.clone(), args.only.as_deref())?;
    fetch::bring(context, store, sandbox)?;
    let asked = super::Asked::default();
    let refused = match super::planned(context, store, &tree, How::NoFf, None, &asked)? {
        None | Some((_, Ok(_))) => None,
        Some((_, Err(error))) => Some(error),
    };
    match refused {
        Some(MergeError::Conflicts { conflicts, .. }) if of_commits(&conflicts) => {}
        Some(error) => return Err(error.into()),
        None => {
            return Err(CliError::new(format!("'{name}' merges without a conflict"))
                .hint(format!("`git sandbox merge {name}` merges it here"))
                .status(1));
        }
    }
    let tip = work::tip(context.git()?, store, &tree)?.map(|tip| tip.to_string()).unwrap_or_default();
    let new = args.into_sandbox.clone().filter(|new| !new.is_empty()).unwrap_or_else(|| format!("{name}-merge"));
    let message = args.message.clone().unwrap_or_else(|| format!("Merge sandbox '{name}'"));
    let argv = ["sh", "-c", SCRIPT, "merge", &tip, &message].map(str::to_owned).into();
    let spawned = cli::Spawn {
        name: Some(new.clone()),
        detach: args.detach,
        grant: vec![format!("refs/sandbox/{name}")],
        command: args.command.clone(),
        json: args.json,
        first: Some(First { argv, what: format!("begin the merge of '{name}' inside") }),
        ..cli::Spawn::default()
    };
    eprintln!(
        "the merge of '{name}' goes on in '{new}': resolve it there and commit; `git sandbox merge {}` then brings the result",
        escape(&new)
    );
    spawn::run(context, spawned)
}

/// At least one path conflicts in the commits: somebody can resolve that without what is uncommitted here.
pub fn of_commits(conflicts: &Conflicts) -> bool {
    conflicts.0.iter().any(|conflict| matches!(conflict.reason, Reason::Commits { .. } | Reason::Driver { .. }))
}
