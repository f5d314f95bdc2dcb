//! `branch`: makes a branch here of a sandbox's commits.

use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::text::escape;
use sandbox_core::ops::{Deed, Log, Operation};
use sandbox_core::work;
use sandbox_integrate::review::review_between;

pub fn run(context: &Context, args: &cli::Branch) -> Outcome {
    let store = context.store()?;
    store.writable()?;
    let sandbox = context.sandbox(&store, &args.name)?;
    super::fetch::bring(context, &store, &sandbox)?;
    super::trees::tell_others(context, &store, &sandbox, &format!("branch {} BRANCH", sandbox.name()))?;
    let git = context.git()?;
    let tip = work::tip(git, &store, &sandbox)?.ok_or_else(|| {
        CliError::new(format!("the sandbox '{}' has no commit{}", sandbox.name(), super::trees::of_which(&sandbox)))
            .hint(format!("`git sandbox commit {} -m MSG` makes one of its files", sandbox.name()))
            .status(1)
    })?;
    // Nothing of it is in a working tree yet: it is told, and not asked.
    let base = sandbox.snapshot(&store)?.git.base.as_deref().and_then(sandbox_git::Oid::parse);
    let mut found = review_between(&super::merge::open(context, &store, &sandbox)?, base, tip)?;
    super::review::tell(context, &mut found)?;
    let host = work::host(&store, &sandbox)?;
    // The user's own git decides what a valid branch is and refuses an existing one.
    let made = git
        .user(host.top_or_gitdir())
        .config("core.hooksPath=/dev/null")
        .config("core.fsync=committed,reference")
        .args(["branch", "--no-track", "--end-of-options", &args.branch, &tip.to_string()])
        .run();
    made.map_err(|error| {
        CliError::new(format!("cannot make the branch '{}'", escape(&args.branch)))
            .cause(error.stderr().map_or_else(|| error.to_string(), str::to_owned))
            .hint("take another name")
    })?;
    let deed = Deed::Branch { reference: format!("refs/heads/{}", args.branch), commit: tip.to_string() };
    let told = format!("made the branch '{}' at {} of '{}'", escape(&args.branch), tip.short(), sandbox.name());
    Log::of(&store.repo(&sandbox.mount().repo))
        .add(&Operation::now("branch", told, vec![deed]).of([&sandbox.record.id]))?;
    let which = super::trees::of_which(&sandbox);
    eprintln!("branch '{}' is at {}{which}", escape(&args.branch), tip.short());
    Ok(0)
}
