//! `log`: the commits that sandboxes made, as the host has them; of several also as one picture.

use super::conflicts::one_repository;
use super::diff::{print, range};
use super::list::print_json;
use super::merge::open_to_read as open;
use super::trees::{of_which, several, title};
use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::text::{age, count, escape};
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::Store;
use sandbox_git::Oid;
use sandbox_integrate::{Commit, commits, graph};
use sandbox_sys::clock::unix_seconds;
use serde::Serialize;
use std::path::PathBuf;

/// Schema version 1.
#[derive(Serialize)]
struct Listing {
    version: u32,
    name: String,
    #[serde(flatten)]
    main: Made,
    /// Of its further repositories, where they are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    with: Vec<MadeThere>,
}

#[derive(Serialize)]
struct Made {
    base: Option<Oid>,
    commits: Vec<Commit>,
}

#[derive(Serialize)]
struct MadeThere {
    repository: PathBuf,
    #[serde(flatten)]
    made: Made,
}

pub fn run(context: &Context, args: &cli::Log) -> Outcome {
    let store = context.store()?;
    let sandboxes: Vec<Sandbox> =
        args.names.iter().map(|name| context.sandbox(&store, name)).collect::<Result<_, CliError>>()?;
    if args.graph {
        return drawn(context, &store, &sandboxes, args);
    }
    let [sandbox] = sandboxes.as_slice() else {
        if args.json {
            return Err(CliError::usage("the commits of one sandbox at a time are told as JSON")
                .hint("`git sandbox log --json NAME` for each"));
        }
        for (n, sandbox) in sandboxes.iter().enumerate() {
            if n > 0 {
                print(b"\n")?;
            }
            one(context, &store, sandbox, args)?;
        }
        return Ok(0);
    };
    one(context, &store, sandbox, args)
}

/// Several histories in one picture.
fn drawn(context: &Context, store: &Store, sandboxes: &[Sandbox], args: &cli::Log) -> Outcome {
    one_repository(&sandboxes.iter().collect::<Vec<_>>())?;
    let Some(first) = sandboxes.first() else { return Ok(0) };
    let repo = open(context, store, first)?;
    let head = repo.head()?;
    let mut tips: Vec<(String, Oid)> = Vec::new();
    if let Some(commit) = head.commit {
        let name = head.reference.as_deref().map_or("HEAD", |name| name.strip_prefix("refs/heads/").unwrap_or(name));
        tips.push((escape(name), commit));
    }
    for sandbox in sandboxes {
        super::fetch::bring_to_read(context, store, sandbox)?;
        match range(context, store, sandbox)? {
            Some((_, tip)) => tips.push((format!("sandbox/{}", sandbox.name()), tip)),
            None => eprintln!("no commits in '{}'{}", sandbox.name(), of_which(sandbox)),
        }
    }
    let commits: Vec<Oid> = tips.iter().map(|(_, tip)| *tip).collect();
    if commits.is_empty() {
        return Ok(0);
    }
    let limit = args.max_count.and_then(|n| u32::try_from(n).ok());
    let now = unix_seconds();
    let mut text = String::new();
    for line in graph(&repo, &commits, limit)? {
        text.push_str(&line.drawing);
        if let Some(commit) = &line.commit {
            let names: Vec<&str> =
                tips.iter().filter(|(_, tip)| *tip == commit.id).map(|(name, _)| name.as_str()).collect();
            let names = if names.is_empty() { String::new() } else { format!("({}) ", names.join(", ")) };
            let ago = age(now.saturating_sub(u64::try_from(commit.committed).unwrap_or(0)));
            let (id, subject, author) = (commit.id.short(), escape(&commit.subject), escape(&commit.author));
            text.push_str(&format!("{id} {names}{subject} ({author}, {ago} ago)"));
        }
        text.truncate(text.trim_end_matches(' ').len());
        text.push('\n');
    }
    print(text.as_bytes())
}

fn one(context: &Context, store: &Store, sandbox: &Sandbox, args: &cli::Log) -> Outcome {
    super::fetch::bring_to_read(context, store, sandbox)?;
    let limit = args.max_count.and_then(|n| u32::try_from(n).ok());
    let made = |tree: &Sandbox| -> Result<Made, CliError> {
        let range = range(context, store, tree)?;
        let commits = match range {
            Some((base, tip)) => commits(&open(context, store, tree)?, base, tip, limit)?,
            None => Vec::new(),
        };
        Ok(Made { base: range.and_then(|(base, _)| base), commits })
    };
    let main = made(&sandbox.at(0))?;
    let others = sandbox.trees().skip(1).filter(|tree| tree.mount().has_commits());
    let with = others.map(|tree| Ok((made(&tree)?, tree))).collect::<Result<Vec<(Made, Sandbox)>, CliError>>()?;
    if args.json {
        let there = |(made, tree): (Made, Sandbox)| MadeThere { repository: tree.mount().worktree.clone(), made };
        let with = with.into_iter().map(there).collect();
        print_json(&Listing { version: 1, name: sandbox.name().to_owned(), main, with })?;
        return Ok(0);
    }
    let all: Vec<(Made, Sandbox)> = std::iter::once((main, sandbox.at(0))).chain(with).collect();
    if all.iter().all(|(made, _)| made.commits.is_empty()) {
        eprintln!("no commits in '{}'", sandbox.name());
        return Ok(0);
    }
    let now = unix_seconds();
    for (made, tree) in all.iter().filter(|(made, _)| !made.commits.is_empty()) {
        let mut text = if several(tree) { format!("{}\n", title(tree)) } else { String::new() };
        for commit in &made.commits {
            let ago = now.saturating_sub(u64::try_from(commit.committed).unwrap_or(0));
            text.push_str(&format!(
                "{} {} ({}, {} ago)\n",
                commit.id.short(),
                escape(&commit.subject),
                escape(&commit.author),
                age(ago)
            ));
        }
        print(text.as_bytes())?;
        eprintln!("{} on sandbox/{}{}", count(made.commits.len(), "commit"), sandbox.name(), of_which(tree));
    }
    Ok(0)
}
