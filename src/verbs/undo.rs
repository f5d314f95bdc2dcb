//! `undo` and `ops`: takes back what a verb did here, exactly or not at all, and lists what was done.

use super::list::print_json;
use crate::changing::Changing;
use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::text::{age, escape, table};
use sandbox_core::checkpoint::{self, Checkpoint};
use sandbox_core::host_repo::HostRepo;
use sandbox_core::id::{RepoId, SandboxId};
use sandbox_core::ops::{Deed, Log, Operation, VERSION};
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::{Store, StoreError};
use sandbox_core::trash;
use sandbox_integrate::{MergeError, Repo};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub fn run(context: &Context, args: &cli::Undo) -> Outcome {
    let store = context.store()?;
    store.writable()?;
    let (number, operation) = chosen(context, &store, args.operation)?;
    let refused = |why: String| CliError::new(format!("cannot undo operation {number}: {}", operation.told)).cause(why);
    if let Some(at) = operation.undone {
        let ago = age(Operation { at, ..operation.clone() }.age_seconds());
        return Err(refused(format!("it was undone {ago} ago")).status(1));
    }
    if operation.version > VERSION {
        return Err(refused(format!("its format is {}, and this version knows {VERSION}", operation.version))
            .hint("undo it with the version that did it"));
    }
    let ways = operation.deeds.iter().map(|deed| Way::find(context, &store, deed)).collect::<Result<Vec<_>, _>>();
    let ways = ways.map_err(|refusal| refusal.about(number, &operation)).map_err(|error| {
        match undoable(context, &store) {
            // A drop is in nobody's way.
            Ok(all) if operation.deleted().is_some() => match all.iter().rfind(|(older, _)| *older < number) {
                Some((older, one)) => error
                    .hint(format!("`git sandbox undo {older}` takes back what was done before: {}", escape(&one.told))),
                None => error,
            },
            // What stands on it has to go first.
            Ok(all) => match all.last() {
                Some((newer, _)) if *newer > number => CliError { hints: Vec::new(), ..error }
                    .hint(format!("`git sandbox undo {newer}` takes the newest one back first")),
                _ => error,
            },
            Err(_) => error,
        }
    })?;
    let may = || relied_on(context, &store, number, &operation);
    may()?;
    if args.dry_run {
        for way in ways.iter().rev() {
            println!("{}", way.words());
        }
        return Ok(0);
    }
    for way in ways.iter().rev() {
        way.go(context, &store, &may).map_err(|refusal| refusal.about(number, &operation))?;
    }
    let repo = context.repo_id(&store)?.expect("it was found in its log");
    Log::of(&store.repo(&repo)).undone(number, &operation)?;
    // That of a sandbox of several repositories is in the log of each.
    for other in elsewhere(&store, &operation)?.into_iter().filter(|other| *other != repo) {
        let log = Log::of(&store.repo(&other));
        let same = |other: &Operation| (other.at, &other.deeds) == (operation.at, &operation.deeds);
        for (number, same) in log.all()?.into_iter().filter(|(_, other)| same(other)) {
            log.undone(number, &same)?;
        }
    }
    eprintln!("undone: {}", operation.told);
    Ok(0)
}

/// The repositories in whose logs an operation is that was undone now.
fn elsewhere(store: &Store, operation: &Operation) -> Result<BTreeSet<RepoId>, CliError> {
    let mut all = BTreeSet::new();
    for deed in &operation.deeds {
        match deed {
            Deed::Tree { repo, .. } => all.extend([repo.clone()]),
            Deed::Trashed { sandbox } => {
                let restored = Sandbox::load(store, sandbox)?;
                all.extend(restored.into_iter().flat_map(|restored| restored.record.repos).map(|mount| mount.repo));
            }
            Deed::Restored { sandbox, .. } => {
                let there = Sandbox::load(store, sandbox)?;
                all.extend(there.into_iter().flat_map(|there| there.record.repos).map(|mount| mount.repo));
            }
            Deed::Branch { .. } | Deed::Deleted { .. } | Deed::Unknown => {}
        }
    }
    Ok(all)
}

/// The operation that is meant: by its number, or the newest that was not undone.
fn chosen(context: &Context, store: &Store, number: Option<u64>) -> Result<(u64, Operation), CliError> {
    let nothing =
        || CliError::new("there is nothing to undo here").hint("`git sandbox ops` lists what was done").status(1);
    context.repo()?;
    let Some(repo) = context.repo_id(store)? else { return Err(nothing()) };
    let log = Log::of(&store.repo(&repo));
    match number {
        Some(number) => match log.get(number)? {
            Some(operation) => Ok((number, operation)),
            None => Err(CliError::new(format!("there is no operation {number} here"))
                .hint("`git sandbox ops` lists them; `gc` forgets them after 30 days")),
        },
        None => match newest(context, store)? {
            Some(found) => Ok(found),
            // Something was done, only nobody can read what.
            None => Err(log.read()?.damaged.pop().map_or_else(nothing, CliError::from)),
        },
    }
}

/// The newest operation that was not undone.
fn newest(context: &Context, store: &Store) -> Result<Option<(u64, Operation)>, CliError> {
    Ok(not_undone(context, store)?.pop())
}

/// Those that may still be undone, oldest first.
fn undoable(context: &Context, store: &Store) -> Result<Vec<(u64, Operation)>, CliError> {
    let mut all = not_undone(context, store)?;
    all.retain(|(_, operation)| operation.deleted().is_none());
    Ok(all)
}

/// Those that were not undone, oldest first; what came back from the trash by itself was.
fn not_undone(context: &Context, store: &Store) -> Result<Vec<(u64, Operation)>, CliError> {
    let Some(repo) = context.repo_id(store)? else { return Ok(Vec::new()) };
    let is_back = |deed: &Deed| matches!(deed, Deed::Trashed { sandbox } if store.sandbox(sandbox).record().exists());
    let mut all = Log::of(&store.repo(&repo)).all()?;
    all.retain(|(_, operation)| {
        operation.undone.is_none() && operation.came_about(store) && !operation.deeds.iter().any(is_back)
    });
    Ok(all)
}

/// Refuses what a later drop stood on: it deleted a sandbox because all that it had was here by this operation.
fn relied_on(context: &Context, store: &Store, number: u64, operation: &Operation) -> Result<(), CliError> {
    let Some(repo) = context.repo_id(store)? else { return Ok(()) };
    let log = Log::of(&store.repo(&repo)).read()?;
    let is_later = |error: &&StoreError| Log::number_of(error.path()).is_some_and(|later| later > number);
    if let Some(error) = log.damaged.iter().find(is_later) {
        return Err(CliError::new(format!("cannot undo operation {number}: {}", operation.told))
            .cause(format!("{}: it may be a drop that relied on it", escape(&error.to_string())))
            .hint("`git sandbox repair` tells the next step")
            .status(1));
    }
    for (later, drop) in log.whole.into_iter().filter(|(later, _)| *later > number) {
        let Some(sandbox) = drop.deleted().filter(|_| drop.undone.is_none() && drop.came_about(store)) else {
            continue;
        };
        let name = drop.told.split('\'').nth(1).unwrap_or_default();
        if operation.is_of(sandbox, name) {
            return Err(CliError::new(format!("cannot undo operation {number}: {}", operation.told))
                .cause(format!("'{name}' was dropped since (operation {later}), because all that it had is here"))
                .hint("nothing else has it any more; git itself takes it away: `git revert`, `git branch -D`, `git restore`")
                .status(1));
        }
    }
    Ok(())
}

/// Why something is not undone, and what can be done instead.
struct Refusal {
    error: CliError,
}

impl Refusal {
    fn new(why: impl Into<String>) -> Self {
        Self { error: CliError::new(why).status(1) }
    }

    fn hint(self, hint: impl Into<String>) -> Self {
        Self { error: self.error.hint(hint) }
    }

    fn about(self, number: u64, operation: &Operation) -> CliError {
        let mut causes = vec![self.error.message.clone()];
        causes.extend(self.error.causes.iter().cloned());
        CliError { message: format!("cannot undo operation {number}: {}", operation.told), causes, ..self.error }
    }
}

impl<E: Into<CliError>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self { error: error.into() }
    }
}

/// How one deed is taken back. Finding all ways writes nothing: one that is refused refuses all.
enum Way {
    Tree { id: RepoId, repo: Box<Repo>, undo: PathBuf },
    Branch { repo: HostRepo, reference: String, commit: String },
    Trash { sandbox: SandboxId, name: String },
    Restore { sandbox: Box<Sandbox>, before: Checkpoint },
}

impl Way {
    fn find(context: &Context, store: &Store, deed: &Deed) -> Result<Self, Refusal> {
        match deed {
            Deed::Tree { repo, worktree, git_dir, undo } => Self::tree(context, store, (repo, worktree, git_dir, undo)),
            Deed::Branch { reference, commit } => Self::branch(context, reference, commit),
            Deed::Trashed { sandbox } => match trash::list(store)?.iter().find(|item| item.record.id == *sandbox) {
                Some(item) => Ok(Self::Trash { sandbox: sandbox.clone(), name: item.record.name.to_string() }),
                None if store.sandbox(sandbox).record().exists() => Err(Refusal::new("it was restored since")),
                None => Err(Refusal::new("it is not in the trash any more")),
            },
            Deed::Restored { sandbox, before } => match Sandbox::load(store, sandbox)? {
                None => Err(Refusal::new("the sandbox was dropped since")),
                Some(sandbox) => match checkpoint::all(&sandbox.dir)?.into_iter().find(|all| all.number == *before) {
                    Some(before) => Ok(Self::Restore { sandbox: Box::new(sandbox), before }),
                    None => Err(Refusal::new(format!("checkpoint {before}, which has what it was, was removed since"))),
                },
            },
            Deed::Deleted { .. } => Err(Refusal::new("it was deleted, since everything of it is here")
                .hint("`git sandbox spawn --from COMMIT` makes a new one of a commit")),
            Deed::Unknown => {
                Err(Refusal::new("a newer version of git-sandbox did it").hint("undo it with the version that did it"))
            }
        }
    }

    fn tree(
        context: &Context,
        store: &Store,
        (id, worktree, git_dir, undo): (&RepoId, &Path, &Path, &str),
    ) -> Result<Self, Refusal> {
        // The repository may have been moved since: then it is the one that the caller is in.
        let here = context.repo()?;
        let moved = !git_dir.exists() && !here.is_linked();
        let (worktree, git_dir) = if moved { (here.worktree()?, here.git_dir()) } else { (worktree, git_dir) };
        let repo = Repo::open(context.git()?, worktree, git_dir, &store.tmp())?;
        let undo = store.repo(id).path().join("undo").join(undo);
        if !undo.exists() {
            return Err(Refusal::new("the former state is not kept any more"));
        }
        sandbox_integrate::can_restore(&repo, &undo).map_err(since)?;
        Ok(Self::Tree { id: id.clone(), repo: Box::new(repo), undo })
    }

    fn branch(context: &Context, reference: &str, commit: &str) -> Result<Self, Refusal> {
        let repo = context.repo()?;
        let now = repo.read(context.git()?).args(["rev-parse", "--verify", "--quiet", reference]).line();
        let short = escape(reference.strip_prefix("refs/heads/").unwrap_or(reference));
        match now {
            Ok(now) if now == commit => {}
            Ok(_) => return Err(Refusal::new(format!("the branch '{short}' has moved since"))),
            Err(_) => return Err(Refusal::new(format!("the branch '{short}' is gone"))),
        }
        let trees =
            repo.read(context.git()?).args(["worktree", "list", "--porcelain"]).output().map_err(CliError::from)?;
        let head = format!("branch {reference}");
        if String::from_utf8_lossy(&trees.stdout).lines().any(|line| line == head) {
            return Err(Refusal::new(format!("the branch '{short}' is checked out"))
                .hint("check another branch out, then undo it"));
        }
        Ok(Self::Branch { repo: repo.clone(), reference: reference.to_owned(), commit: commit.to_owned() })
    }

    fn words(&self) -> String {
        match self {
            Self::Tree { repo, .. } => {
                format!("put back files, index and HEAD of '{}'", escape(&repo.worktree().display().to_string()))
            }
            Self::Branch { reference, .. } => {
                format!("delete the branch '{}'", escape(reference.strip_prefix("refs/heads/").unwrap_or(reference)))
            }
            Self::Trash { name, .. } => format!("restore '{name}' from the trash"),
            Self::Restore { sandbox, before } => {
                format!("put '{}' back to checkpoint {}", sandbox.name(), before.number)
            }
        }
    }

    fn go(&self, context: &Context, store: &Store, may: &impl Fn() -> Result<(), CliError>) -> Result<(), Refusal> {
        match self {
            Self::Tree { id, repo, undo } => {
                Changing::take_back(context, store, id, repo, undo, may)?.map_err(since)?;
            }
            Self::Branch { repo, reference, commit } => {
                let id = context.repo_id(store)?.expect("it was found in its log");
                let _lock = crate::changing::lock(context, store, &id)?;
                may()?;
                let git = repo.write(context.git()?);
                git.args(["update-ref", "--no-deref", "-d", reference, commit]).run().map_err(|error| {
                    let short = escape(reference.strip_prefix("refs/heads/").unwrap_or(reference));
                    CliError::new(format!("cannot delete the branch '{short}'"))
                        .cause(error.stderr().map_or_else(|| error.to_string(), str::to_owned))
                        .hint("nothing was changed: undo it again when no other git command is at work here")
                })?;
            }
            Self::Restore { sandbox, before } => {
                super::checkpoint::go_back(context, store, sandbox, before)?;
            }
            Self::Trash { sandbox, .. } => {
                let all = trash::list(store)?;
                let Some(item) = all.iter().find(|item| item.record.id == *sandbox) else {
                    return Err(Refusal::new("it is not in the trash any more"));
                };
                let name = super::trash::come_back(context, store, item, None)?;
                if name != item.record.name {
                    eprintln!("restored '{}' as '{name}', since there is a new '{0}'", item.record.name);
                }
            }
        }
        Ok(())
    }
}

/// The refusal of a tree that is not as the operation left it.
fn since(error: MergeError) -> Refusal {
    match error {
        MergeError::ChangedSince { what } => Refusal::new(format!("{what} changed since"))
            .hint("commit or put back what came later, or take the change back with git itself (`git revert`)"),
        error => Refusal { error: CliError::chain(&error) },
    }
}

/// Schema version 1.
#[derive(Serialize)]
struct Listing {
    version: u32,
    operations: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    operation: u64,
    verb: String,
    told: String,
    /// Unix seconds.
    at: u64,
    age_seconds: u64,
    /// Unix seconds.
    undone: Option<u64>,
}

pub fn list(context: &Context, args: &cli::Ops) -> Outcome {
    let store = context.store()?;
    context.repo()?;
    let mut all = match context.repo_id(&store)? {
        Some(repo) => {
            let read = Log::of(&store.repo(&repo)).read()?;
            read.damaged.iter().for_each(|error| crate::damaged::warn("an operation", error));
            read.whole.into_iter().filter(|(_, operation)| operation.came_about(&store)).collect()
        }
        None => Vec::new(),
    };
    all.reverse();
    all.truncate(args.number.unwrap_or(usize::MAX));
    if args.json {
        let row = |(number, operation): (u64, Operation)| Row {
            operation: number,
            age_seconds: operation.age_seconds(),
            verb: operation.verb,
            told: operation.told,
            at: operation.at,
            undone: operation.undone,
        };
        print_json(&Listing { version: 1, operations: all.into_iter().map(row).collect() })?;
        return Ok(0);
    }
    if all.is_empty() {
        eprintln!("nothing was done here yet");
        return Ok(0);
    }
    let mut lines = vec![["OP", "WHEN", "VERB", "WHAT"].map(str::to_owned).to_vec()];
    for (number, operation) in all {
        let undone = if operation.undone.is_some() { " (undone)" } else { "" };
        lines.push(vec![
            number.to_string(),
            format!("{} ago", age(operation.age_seconds())),
            escape(&operation.verb),
            format!("{}{undone}", escape(&operation.told)),
        ]);
    }
    print!("{}", table(&lines));
    Ok(0)
}
