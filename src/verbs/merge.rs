//! `merge`: commits of sandboxes come into this working tree. A plan first, then all of it or nothing.
//!
//! ```text
//! this file   one sandbox, into each of its repositories, and the fast-forward at a command's end
//! several     several sandboxes of one repository: the order, what is left out
//! asked       sides that win, the message, the signature
//! inside      a conflict that is resolved in a fresh sandbox; markers: here, as `git merge` leaves it
//! checked     what would land has to pass a command first; queue: which of several do
//! hooks       the user's own hooks, with `--with-hooks`
//! known       what a sandbox knew of uncommitted work when it was spawned, and what it has left now
//! place       the repository and working tree that a merge goes into
//! carry       carrying plans out, and telling it
//! refused     a refusal as the command line tells it
//! ```

mod asked;
mod carry;
mod checked;
mod hooks;
mod inside;
mod known;
mod markers;
mod place;
mod queue;
mod refused;
mod several;

use super::list::print_json;
use super::review;
use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::text::{count, escape, escape_lines};
pub use asked::Asked;
use carry::do_all;
pub use carry::{do_it, tell_resolved};
use hooks::Hooks;
use known::Known;
pub use place::{checked_out, escape_path, identity, open, open_to_read, relation};
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::Store;
use sandbox_core::work;
use sandbox_integrate::{Commit, Conflicts, How, MergeError, MergePlan, Repo, What};
use serde::Serialize;
use std::path::Path;

pub fn run(context: &Context, args: &cli::Merge) -> Outcome {
    let store = context.store()?;
    store.writable()?;
    super::mirror::source::refuse(context, &store, &args.names, "merge")?;
    let how = match (args.ff_only, args.no_ff, args.squash, args.rebase) {
        (true, ..) => How::FastForwardOnly,
        (_, true, ..) => How::NoFf,
        (_, _, true, _) => How::Squash,
        (.., true) => How::Rebase,
        _ => How::FastForward,
    };
    let asked = Asked::merge(args)?;
    if args.into_sandbox.is_none()
        && let Some(wanted) = checked::check(context, &store, args)?
    {
        return checked::run(context, &store, args, how, &asked, &wanted);
    }
    let [name] = args.names.as_slice() else {
        for (given, flag) in [(args.into_sandbox.is_some(), "--into-sandbox"), (args.markers, "--markers")] {
            if given {
                return Err(CliError::usage("a conflict of one sandbox is resolved at a time")
                    .hint(format!("`git sandbox merge {flag} NAME`, once the others are merged")));
            }
        }
        return several::run(context, &store, args, how, &asked);
    };
    let sandbox = context.sandbox(&store, name)?;
    if args.into_sandbox.is_some() {
        return inside::run(context, &store, args, &sandbox);
    }
    let trees = super::trees::chosen(&sandbox, args.only.as_deref())?;
    super::fetch::bring(context, &store, &sandbox)?;
    let mut found = Vec::new();
    for tree in trees.iter().filter(|tree| tree.mount().has_commits()) {
        let planned = match planned(context, &store, tree, how, args.message.as_deref(), &asked) {
            Ok(Some((repo, Err(error)))) if args.markers => {
                // Several are all or none, and a merge in progress is neither.
                return match trees.as_slice() {
                    [tree] => markers::leave(context, &store, args, tree, &repo, error),
                    _ => Err(in_tree(&sandbox, tree, not_merged(context, &store, tree, &repo, error, args.json)?)),
                };
            }
            Ok(Some((repo, Err(error)))) => Err(not_merged(context, &store, tree, &repo, error, args.json)?),
            Ok(Some((repo, Ok(plan)))) => Ok(Some((repo, plan))),
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        let planned = planned.map_err(|error| in_tree(&sandbox, tree, error))?;
        found.extend(planned.filter(|(_, plan)| plan.what != What::UpToDate).map(|(repo, plan)| (tree, repo, plan)));
    }
    if found.is_empty() {
        return nothing(context, &store, &sandbox, &trees, args.json);
    }
    let several = sandbox.record.repos.len() > 1;
    for (_, repo, plan) in &mut found {
        if several && !plan.warnings.is_empty() {
            eprintln!("{}:", escape_path(repo.worktree()));
        }
        review::tell(context, &mut plan.warnings)?;
        tell_resolved(plan);
    }
    let warnings = found.iter().flat_map(|(_, _, plan)| &plan.warnings);
    let agreed = match args.dry_run {
        true => Ok(false),
        false => review::agreed(context, warnings, ("merge", sandbox.name()), args.yes),
    };
    let mut kept = Vec::new();
    if matches!(agreed, Ok(true)) {
        for (tree, repo, plan) in &mut found {
            if args.with_hooks {
                let hooks = Hooks::keep(context, &store, repo)?;
                if let Some(message) = hooks.before(repo, plan)?
                    && let Some((again, with_message)) = planned(context, &store, tree, how, Some(&message), &asked)?
                {
                    (*repo, *plan) = (again, with_message?);
                }
                kept.push(hooks);
            }
            asked.finish(context, repo, plan)?;
        }
    }
    if args.json {
        match found.as_slice() {
            [(_, _, plan)] if !several => print_json(plan)?,
            all => {
                let plans = all.iter().map(|(tree, repo, plan)| InTree {
                    repository: repo.worktree(),
                    number: tree.tree,
                    plan,
                });
                print_json(&Trees { version: 1, repositories: plans.collect() })?;
            }
        }
    }
    for (_, repo, plan) in &found {
        if args.dry_run && !args.json {
            if several {
                println!("repository {}", escape_path(repo.worktree()));
            }
            print!("{}", escape_lines(&plan.describe()));
        }
    }
    if args.dry_run {
        return Ok(0);
    }
    if !agreed? {
        return Err(review::declined());
    }
    let plans: Vec<(Sandbox, &Repo, &MergePlan)> =
        found.iter().map(|(tree, repo, plan)| ((*tree).clone(), repo, plan)).collect();
    do_all(context, &store, &plans)?;
    for (hooks, (_, _, plan)) in kept.iter().zip(&plans) {
        hooks.after(plan);
    }
    Ok(0)
}

/// Schema version 1: a merge of a sandbox that has several repositories.
#[derive(Serialize)]
struct Trees<'a> {
    version: u32,
    repositories: Vec<InTree<'a>>,
}

#[derive(Serialize)]
struct InTree<'a> {
    repository: &'a Path,
    number: usize,
    plan: &'a MergePlan,
}

/// An error of one of several repositories: none of them was changed.
fn in_tree(sandbox: &Sandbox, tree: &Sandbox, error: CliError) -> CliError {
    if sandbox.record.repos.len() == 1 {
        return error;
    }
    let (name, place) = (sandbox.name(), escape_path(&tree.mount().worktree));
    let mut error = error.cause(format!("in '{place}'; nothing was written in any repository of '{name}'"));
    error.hints.push(format!("`git sandbox merge --only PATH {name}` merges one repository alone"));
    error
}

fn nothing(context: &Context, store: &Store, sandbox: &Sandbox, trees: &[Sandbox], json: bool) -> Outcome {
    if json {
        println!("{{ \"what\": {{ \"kind\": \"up-to-date\" }} }}");
    }
    let name = sandbox.name();
    eprintln!("nothing to merge from '{name}'");
    crate::picture::fresh(context, store, sandbox)?;
    let (mut left, mut directories) = (0, Vec::new());
    for tree in trees {
        let files = work::uncommitted_now(context.git()?, store, tree)?.files.len();
        match tree.mount().directory {
            true if files > 0 => directories.push((tree, files)),
            true => {}
            false => left += files,
        }
    }
    if left > 0 {
        eprintln!(
            "hint: {} not committed there: `git sandbox apply {name}` brings {}, `git sandbox commit {name} -m MSG` commits {1}",
            count_are(left),
            if left == 1 { "it" } else { "them" }
        );
    }
    for (tree, files) in directories {
        eprintln!("hint: {}", no_commits(tree, files));
    }
    Ok(1)
}

/// How changed files come out of a directory that is no repository.
pub fn no_commits(tree: &Sandbox, files: usize) -> String {
    let place = escape_path(&tree.mount().worktree);
    format!(
        "'{place}' is no repository and has no commits: `git sandbox cp {}:{place}/FILE .` takes what changed there ({})",
        tree.name(),
        count(files, "file")
    )
}

fn count_are(n: usize) -> String {
    format!("{} {}", count(n, "file"), if n == 1 { "is" } else { "are" })
}

/// The diffstat of what the sandbox committed.
pub fn diffstat(context: &Context, store: &Store, sandbox: &Sandbox) -> Result<String, CliError> {
    let repo = open(context, store, sandbox)?;
    match super::diff::range(context, store, sandbox)? {
        Some((base, tip)) => Ok(sandbox_integrate::diffstat(&repo, base, tip)?.text()),
        None => Ok(String::new()),
    }
}

/// Fast-forwards, at the end of a command: all of its repositories, or none.
pub fn fast_forward(context: &Context, store: &Store, sandbox: &Sandbox) -> Result<(), CliError> {
    let args = cli::Merge { names: vec![sandbox.name().to_owned()], ff_only: true, ..cli::Merge::default() };
    if let Some(wanted) = checked::check(context, store, &args)? {
        match checked::run(context, store, &args, How::FastForwardOnly, &Asked::default(), &wanted) {
            Ok(0) => {}
            Ok(_) => eprintln!("kept: `git sandbox merge {}` takes them later", sandbox.name()),
            Err(error) => kept(&error),
        }
        return Ok(());
    }
    let mut found = Vec::new();
    for tree in sandbox.trees().filter(|tree| tree.mount().has_commits()) {
        let planned = plan(context, store, &tree, How::FastForwardOnly, None);
        let planned = planned.map_err(|error| in_tree(sandbox, &tree, error))?;
        found.extend(planned.filter(|(_, plan)| plan.what != What::UpToDate).map(|(repo, plan)| (tree, repo, plan)));
    }
    for (_, _, plan) in &mut found {
        review::tell(context, &mut plan.warnings)?;
    }
    let warnings = found.iter().flat_map(|(_, _, plan)| &plan.warnings);
    match review::agreed(context, warnings, ("merge", sandbox.name()), false) {
        Ok(true) => {}
        // The command that it was spawned for has its own end.
        Ok(false) => {
            eprintln!("kept: `git sandbox merge {}` takes them later", sandbox.name());
            return Ok(());
        }
        Err(error) => {
            kept(&error);
            return Ok(());
        }
    }
    let plans: Vec<(Sandbox, &Repo, &MergePlan)> =
        found.iter().map(|(tree, repo, plan)| (tree.clone(), repo, plan)).collect();
    if plans.is_empty() { Ok(()) } else { do_all(context, store, &plans) }
}

/// Why the commits were not taken at a command's end: they are where they were.
fn kept(error: &CliError) {
    eprintln!("kept: {}", error.message);
    error.causes.iter().for_each(|cause| eprintln!("caused by: {cause}"));
    error.hints.iter().for_each(|hint| eprintln!("hint: {hint}"));
}

fn plan(
    context: &Context,
    store: &Store,
    sandbox: &Sandbox,
    how: How,
    message: Option<&str>,
) -> Result<Option<(Repo, MergePlan)>, CliError> {
    match planned(context, store, sandbox, how, message, &Asked::default())? {
        Some((repo, plan)) => Ok(Some((repo, plan?))),
        None => Ok(None),
    }
}

/// A repository, and the plan or why there is none.
type Planned = Option<(Repo, Result<MergePlan, MergeError>)>;

fn planned(
    context: &Context,
    store: &Store,
    sandbox: &Sandbox,
    how: How,
    message: Option<&str>,
    asked: &Asked,
) -> Result<Planned, CliError> {
    let Some(known) = Known::of(context, store, sandbox, true)? else { return Ok(None) };
    let repo = open(context, store, sandbox)?;
    let identity = identity(context, &repo)?;
    let plan = sandbox_integrate::plan(&repo, &known.request(how, message, asked, &identity));
    Ok(Some((repo, plan)))
}

/// Schema version 1: why one sandbox is not merged.
#[derive(Serialize)]
struct Refusal<'a> {
    version: u32,
    name: &'a str,
    conflicts: &'a Conflicts,
    here: &'a [Commit],
    there: &'a [Commit],
}

/// A refusal, with the commits that are against each other.
fn not_merged(
    context: &Context,
    store: &Store,
    tree: &Sandbox,
    repo: &Repo,
    error: MergeError,
    json: bool,
) -> Result<CliError, CliError> {
    let MergeError::Conflicts { name, conflicts } = &error else { return Ok(error.into()) };
    let (here, there) = match (repo.head()?.commit, work::tip(context.git()?, store, tree)?) {
        (Some(onto), Some(tip)) if inside::of_commits(conflicts) => {
            sandbox_integrate::sides(repo, onto, tip, conflicts)?
        }
        _ => Default::default(),
    };
    if json {
        print_json(&Refusal { version: 1, name, conflicts, here: &here, there: &there })?;
    }
    let mut failure = CliError::from(error);
    for (side, commits) in [("here", here), ("there", there)] {
        for commit in commits {
            failure = failure.cause(format!("{side}: {} {}", commit.id.short(), escape(&commit.subject)));
        }
    }
    Ok(failure)
}
