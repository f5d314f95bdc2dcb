//! Carrying plans out, all or none, and telling what was done.

use super::place::escape_path;
use crate::changing::{Part, Work, carry_out};
use crate::context::Context;
use crate::error::CliError;
use crate::text::{count, escape};
use sandbox_core::id::SandboxId;
use sandbox_core::journal::Verb;
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::Store;
use sandbox_integrate::{By, MergePlan, Repo, What};

/// Says which conflicts were resolved, and by what.
pub fn tell_resolved(plan: &MergePlan) {
    for resolved in &plan.resolved {
        let how = match resolved.by {
            By::Ours => "with what is here",
            By::Theirs => "with what the sandbox has",
            By::Recorded => "as it was resolved before (git rerere)",
        };
        eprintln!("conflict in '{}' resolved {how}", resolved.path);
    }
}

/// Carries a plan out, which may bring the work of several, and says what it did.
pub fn do_it(
    context: &Context,
    store: &Store,
    sandboxes: &[&Sandbox],
    repo: &Repo,
    plan: &MergePlan,
) -> Result<(), CliError> {
    let Some(first) = sandboxes.first() else { return Ok(()) };
    let of = sandboxes.iter().map(|sandbox| sandbox.record.id.clone()).collect();
    do_these(context, store, &[((*first).clone(), repo, plan)], of)
}

/// Carries out all plans or none, and says what was done. All are of one sandbox.
pub fn do_all(context: &Context, store: &Store, plans: &[(Sandbox, &Repo, &MergePlan)]) -> Result<(), CliError> {
    let of = plans.first().map(|(tree, ..)| tree.record.id.clone()).into_iter().collect();
    do_these(context, store, plans, of)
}

fn do_these(
    context: &Context,
    store: &Store,
    plans: &[(Sandbox, &Repo, &MergePlan)],
    of: Vec<SandboxId>,
) -> Result<(), CliError> {
    let Some((_, _, first)) = plans.first() else { return Ok(()) };
    let verb = if matches!(first.what, What::Pick { .. }) { Verb::Pick } else { Verb::Merge };
    let parts: Vec<Part<'_>> = plans
        .iter()
        .map(|(tree, repo, plan)| Part { tree, repo, work: Work::Merge(plan), told: words(plan), of: of.clone() })
        .collect();
    let done = carry_out(context, store, verb, &first.name, &parts)?;
    for ((_, repo, plan), merged) in plans.iter().zip(&done) {
        // Where, if that is not clear.
        let place = if plans.len() > 1 { format!("{}: ", escape_path(repo.worktree())) } else { String::new() };
        eprintln!("{place}{}", words(plan));
        match sandbox_integrate::learn(repo, plan) {
            Ok(paths) if !paths.is_empty() => {
                eprintln!("{place}kept for the next time (git rerere): how {} resolved", count_were(paths.len()));
            }
            Ok(_) => {}
            // It is merged, and that is what matters.
            Err(error) => eprintln!("note: {}", CliError::chain(&error).message),
        }
        if !merged.uncommitted.is_empty() {
            eprintln!(
                "{place}{} here still {} uncommitted changes",
                count(merged.uncommitted.len(), "file"),
                if merged.uncommitted.len() == 1 { "has" } else { "have" }
            );
        }
    }
    Ok(())
}

fn count_were(n: usize) -> String {
    format!("{} {}", count(n, "conflict"), if n == 1 { "was" } else { "were" })
}

/// What carrying a plan out does.
fn words(plan: &MergePlan) -> String {
    let what = match plan.what {
        What::UpToDate => "nothing to do".to_owned(),
        What::FastForward { commits } => format!("fast-forwarded by {}", count(commits as usize, "commit")),
        What::Merge { commits, .. } => format!("merged {}", count(commits as usize, "commit")),
        What::Squash { commits } => format!("squashed {} into one", count(commits as usize, "commit")),
        What::Rebase { commits } => format!("put {} on top", count(commits as usize, "commit")),
        What::Pick { commits } => format!("picked {}", count(commits as usize, "commit")),
        What::Several { sandboxes } => format!("merged {sandboxes} sandboxes"),
        What::Octopus { sandboxes } => format!("merged {sandboxes} sandboxes in one commit"),
    };
    let names: Vec<String> = plan.name.split(' ').map(|name| format!("'{name}'")).collect();
    let onto = plan.head.reference.as_deref().map_or("HEAD", |name| name.strip_prefix("refs/heads/").unwrap_or(name));
    format!("{what} from {} into '{}': now at {}", names.join(", "), escape(onto), plan.head.new.short())
}
