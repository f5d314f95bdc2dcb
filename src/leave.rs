//! The conversation when a command has ended: what is new, and what shall happen with it.
//!
//! ```text
//!   2 new commits on sandbox/fix-login, 1 file uncommitted
//!   fast-forward 'main' to them? [Y/n]
//! ```

use crate::cli::OnExit;
use crate::context::Context;
use crate::error::CliError;
use crate::terminal::interactive;
use crate::text::{count, escape, escape_bytes, size};
use crate::verbs::drop::{self, Force};
use crate::verbs::trees::of_which;
use crate::verbs::{apply, commit, fetch, merge};
use sandbox_core::auto_commit;
use sandbox_core::mirror_record;
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::Store;
use sandbox_core::work::{self, Uncommitted};
use sandbox_integrate::Relation;
use std::io::{self, BufRead, Write};

/// Asks a yes-or-no question whose text is already printed; Enter is `default`.
pub fn yes(default: bool) -> bool {
    let mut line = String::new();
    if io::stdin().lock().read_line(&mut line).unwrap_or(0) == 0 {
        return false;
    }
    match line.trim().to_ascii_lowercase().as_str() {
        "" => default,
        answer => answer.starts_with('y'),
    }
}

/// What a user wants at the end of a command: the flag, else `sandbox.onExit`, else to be asked.
pub fn wish(context: &Context, flag: Option<OnExit>) -> Result<OnExit, CliError> {
    if let Some(flag) = flag {
        return Ok(flag);
    }
    match context.setting("sandbox.onExit").as_deref() {
        None | Some("ask") => Ok(OnExit::Ask),
        Some("merge") => Ok(OnExit::Merge),
        Some("keep") => Ok(OnExit::Keep),
        Some(other) => Err(CliError::new(format!("'{}' is not a value of sandbox.onExit", escape(other)))
            .hint("it is one of ask, merge, keep")),
    }
}

/// Ends a spawn: the sandbox has stopped, its commits are here. Asks only on a terminal.
pub fn leave(context: &Context, store: &Store, sandbox: &Sandbox, wish: OnExit, quiet: bool) -> Result<(), CliError> {
    let sandbox = &sandbox.at(0);
    // Anything that the supervisor could not bring home any more, or that a fork had from the beginning.
    if !sandbox.status()?.home || sandbox.record.forked.is_some() {
        fetch::bring(context, store, sandbox)?;
    }
    crate::picture::fresh(context, store, sandbox)?;
    let mut left = work::uncommitted_now(context.git()?, store, sandbox)?;
    let (mut others, mut directories) = (Vec::new(), Vec::new());
    for tree in sandbox.trees().skip(1).filter(|tree| !tree.mount().read_only) {
        let top = &tree.mount().worktree;
        let there = work::uncommitted_now(context.git()?, store, &tree)?;
        if tree.mount().directory && !there.files.is_empty() {
            directories.push((tree.clone(), there.files.len()));
        }
        left.files.extend(there.files.into_iter().map(|change| change.below(top)));
        left.ignored.extend(there.ignored.into_iter().map(|change| change.below(top)));
        left.ignored_bytes += there.ignored_bytes;
        let commits = work::commits_on_host(context.git()?, store, &tree)?;
        if commits.ahead > 0 || commits.rewritten {
            others.push((tree, commits));
        }
    }
    let in_directories: usize = directories.iter().map(|(_, files)| files).sum();
    if sandbox.record.auto_commit && !quiet {
        match auto_commit::outcome(sandbox).map(|outcome| outcome.words()) {
            Some(Some(words)) => eprintln!("{}", escape(&words)),
            Some(None) => {}
            None if left.files.is_empty() => {}
            None => eprintln!("not committed automatically: it ended too soon for that"),
        }
    }
    if let Some(recorded) = mirror_record::outcome(sandbox).filter(|_| !quiet) {
        eprintln!("{}", escape(&recorded.words()));
    }
    let commits = work::commits_on_host(context.git()?, store, sandbox)?;
    let name = sandbox.name();
    if commits.ahead == 0 && !commits.rewritten && left.files.is_empty() && others.is_empty() {
        if !quiet {
            eprintln!("no changes in '{name}'{}", ignored_words(&left));
        }
        if sandbox.record.unnamed || sandbox.record.rm {
            drop::drop_one(context, store, sandbox, Force::No)?;
        }
        return Ok(());
    }
    if !quiet {
        eprintln!("{}", summary(sandbox, &commits, &others, &left));
    }
    let ask = wish == OnExit::Ask && interactive();
    if others.iter().any(|(_, commits)| commits.ahead > 0) {
        integrate_all(context, store, sandbox, wish, ask)?;
    } else if commits.ahead > 0 {
        integrate(context, store, sandbox, wish, ask)?;
    }
    if !left.files.is_empty() && ask {
        uncommitted(context, store, sandbox, &left)?;
    } else if !left.files.is_empty() && !quiet {
        if left.files.len() > in_directories {
            eprintln!(
                "hint: `git sandbox apply {name}` brings the uncommitted files here, `git sandbox commit {name} -m MSG` commits them"
            );
        }
        for (tree, files) in &directories {
            eprintln!("hint: {}", merge::no_commits(tree, *files));
        }
    }
    offer_drop(context, store, sandbox, ask)
}

fn summary(
    sandbox: &Sandbox,
    commits: &work::Commits,
    others: &[(Sandbox, work::Commits)],
    left: &Uncommitted,
) -> String {
    let name = sandbox.name();
    let mut parts = Vec::new();
    let main = (sandbox.clone(), commits.clone());
    for (tree, commits) in std::iter::once(&main).chain(others) {
        let which = of_which(tree);
        if commits.ahead > 0 {
            let rewritten = if commits.rewritten { ", history rewritten" } else { "" };
            parts.push(format!("{} on sandbox/{name}{which}{rewritten}", count(commits.ahead, "new commit")));
        } else if commits.rewritten {
            parts.push(format!("history was rewritten on sandbox/{name}{which}"));
        }
    }
    if !left.files.is_empty() {
        parts.push(format!("{} uncommitted", count(left.files.len(), "file")));
    }
    parts.join(", ") + &ignored_words(left)
}

fn ignored_words(left: &Uncommitted) -> String {
    match left.ignored.first() {
        None => String::new(),
        Some(first) => format!(
            " ({} changed, {}, e.g. {})",
            count(left.ignored.len(), "ignored file"),
            size(left.ignored_bytes),
            escape_bytes(&first.path)
        ),
    }
}

/// Brings commits onto the branch that was checked out at the spawn, if that is what is wanted
/// and possible; else says what can be done.
fn integrate(context: &Context, store: &Store, sandbox: &Sandbox, wish: OnExit, ask: bool) -> Result<(), CliError> {
    let name = sandbox.name();
    let snapshot = sandbox.snapshot(store)?;
    let Some(spawned_on) =
        snapshot.git.branch.as_deref().map(|b| b.strip_prefix("refs/heads/").unwrap_or(b).to_owned())
    else {
        eprintln!("hint: `git merge sandbox/{name}` takes the commits (no branch was checked out at the spawn)");
        return Ok(());
    };
    let here = merge::checked_out(context, sandbox, store)?;
    if here.as_deref() != Some(spawned_on.as_str()) {
        let now = here.map_or_else(|| "no branch".to_owned(), |branch| format!("'{}'", escape(&branch)));
        eprintln!("kept: '{}' was checked out at the spawn, now it is {now}", escape(&spawned_on));
        eprintln!(
            "hint: `git sandbox branch {name} BRANCH` or, on the branch that is meant, `git sandbox merge {name}`"
        );
        return Ok(());
    }
    match merge::relation(context, store, sandbox)? {
        Relation::FastForward { .. } if wish == OnExit::Merge => merge::fast_forward(context, store, sandbox),
        Relation::FastForward { .. } if ask => {
            eprint!("fast-forward '{}' to them? [Y/n] ", escape(&spawned_on));
            let _ = io::stderr().flush();
            if yes(true) {
                merge::fast_forward(context, store, sandbox)
            } else {
                eprintln!("kept: `git merge sandbox/{name}` takes them later");
                Ok(())
            }
        }
        Relation::FastForward { .. } => {
            eprintln!("hint: `git merge sandbox/{name}` or `git sandbox merge {name}` takes them");
            Ok(())
        }
        Relation::Contained => Ok(()),
        _ => {
            eprint!("{}", merge::diffstat(context, store, sandbox)?);
            eprintln!("'{}' has moved on since the spawn: nothing was merged", escape(&spawned_on));
            eprintln!(
                "hint: `git sandbox merge {name}` merges, `--squash` makes one commit of it, `git sandbox diff {name}` shows it"
            );
            Ok(())
        }
    }
}

/// The same for a sandbox that has commits in further repositories: all of them move, or none.
fn integrate_all(context: &Context, store: &Store, sandbox: &Sandbox, wish: OnExit, ask: bool) -> Result<(), CliError> {
    let name = sandbox.name();
    let mut forward = true;
    for tree in sandbox.trees().filter(|tree| tree.mount().has_commits()) {
        let spawned_on = tree.snapshot(store)?.git.branch;
        let spawned_on = spawned_on.as_deref().map(|branch| branch.strip_prefix("refs/heads/").unwrap_or(branch));
        let same = spawned_on.is_some() && merge::checked_out(context, &tree, store)?.as_deref() == spawned_on;
        let fits =
            matches!(merge::relation(context, store, &tree)?, Relation::FastForward { .. } | Relation::Contained);
        forward &= same && fits;
    }
    if !forward {
        eprintln!("nothing was merged: not every repository is at the branch that it was spawned on, or some moved on");
        eprintln!(
            "hint: `git sandbox merge {name}` merges into all of them, or none; `git sandbox diff {name}` shows it"
        );
        return Ok(());
    }
    if wish != OnExit::Merge && !ask {
        eprintln!("hint: `git sandbox merge {name}` takes them in all repositories");
        return Ok(());
    }
    if ask {
        eprint!("fast-forward each repository to them? [Y/n] ");
        let _ = io::stderr().flush();
        if !yes(true) {
            eprintln!("kept: `git sandbox merge {name}` takes them later");
            return Ok(());
        }
    }
    merge::fast_forward(context, store, sandbox)
}

/// Asks what shall happen with uncommitted work.
fn uncommitted(context: &Context, store: &Store, sandbox: &Sandbox, left: &Uncommitted) -> Result<(), CliError> {
    let name = sandbox.name();
    for change in left.files.iter().take(10) {
        eprintln!("  {} {}", change.letter(), escape_bytes(&change.path));
    }
    if left.files.len() > 10 {
        eprintln!("  … and {} more", left.files.len() - 10);
    }
    loop {
        eprint!("uncommitted: [c]ommit, [a]pply here as edits, [s]tash here, [K]eep, [d]iscard to the trash? ");
        let _ = io::stderr().flush();
        let mut line = String::new();
        if io::stdin().lock().read_line(&mut line).unwrap_or(0) == 0 {
            return Ok(());
        }
        match line.trim().to_ascii_lowercase().as_str() {
            "" | "k" | "keep" => {
                eprintln!("kept: `git sandbox start {name}` goes on with them");
                return Ok(());
            }
            "c" | "commit" => {
                eprint!("message: ");
                let _ = io::stderr().flush();
                let mut message = String::new();
                let _ = io::stdin().lock().read_line(&mut message);
                if message.trim().is_empty() {
                    eprintln!("no message: nothing was committed");
                    continue;
                }
                commit::all(context, store, sandbox, message.trim())?;
                fetch::bring(context, store, sandbox)?;
                return integrate(context, store, sandbox, OnExit::Ask, true);
            }
            "a" | "apply" => return apply::edits(context, store, sandbox, false),
            "s" | "stash" => return apply::edits(context, store, sandbox, true),
            "d" | "discard" => {
                eprintln!("{}", drop::drop_one(context, store, sandbox, Force::Trash)?);
                return Ok(());
            }
            other => eprintln!("'{}' is none of c, a, s, k, d", escape(other)),
        }
    }
}

/// After a merge that left nothing, dropping is offered; `--rm` does not ask.
fn offer_drop(context: &Context, store: &Store, sandbox: &Sandbox, ask: bool) -> Result<(), CliError> {
    if !sandbox.dir.record().exists() {
        return Ok(());
    }
    crate::picture::fresh(context, store, sandbox)?;
    if !work::nothing_left(context.git()?, store, sandbox)? {
        return Ok(());
    }
    let name = sandbox.name();
    if sandbox.record.rm || sandbox.record.unnamed {
        drop::drop_one(context, store, sandbox, Force::No)?;
        return Ok(());
    }
    if ask {
        eprint!("everything of '{name}' is here: drop it? [Y/n] ");
        let _ = io::stderr().flush();
        if yes(true) {
            eprintln!("{}", drop::drop_one(context, store, sandbox, Force::No)?);
        }
    }
    Ok(())
}
