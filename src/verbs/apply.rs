//! `apply`: what a sandbox changed comes into this working tree as uncommitted edits, or into the stash.

use super::merge::{escape_path, identity, no_commits, open, relation};
use super::review;
use crate::changing::{Part, Work, carry_out};
use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::text::count;
use crate::verbs::list::print_json;
use sandbox_core::journal::Verb;
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::Store;
use sandbox_core::work::{self, Changed};
use sandbox_git::Oid;
use sandbox_integrate::review::review_edits;
use sandbox_integrate::{
    Edit, EditsPlan, EditsRequest, Kind, Layers, MergeError, Relation, Repo, RepoPath, Stash, StashRequest,
};
use serde::Serialize;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

pub fn run(context: &Context, args: &cli::Apply) -> Outcome {
    let store = context.store()?;
    store.writable()?;
    super::mirror::source::refuse(context, &store, std::slice::from_ref(&args.name), "apply")?;
    let sandbox = context.sandbox(&store, &args.name)?;
    let trees = super::trees::chosen(&sandbox, args.only.as_deref())?;
    super::fetch::bring(context, &store, &sandbox)?;
    crate::picture::fresh(context, &store, &sandbox)?;
    let mut found = Vec::new();
    for tree in trees {
        if !tree.mount().has_commits() {
            let files = work::changed_now(context.git()?, &store, &tree)?.files.len();
            if files > 0 {
                eprintln!("hint: {}", no_commits(&tree, files));
            }
            continue;
        }
        // What is merged already is not brought a second time; what is not comes along.
        let merged = relation(context, &store, &tree)? == Relation::Contained;
        let changed = if merged {
            work::uncommitted_now(context.git()?, &store, &tree)?.files
        } else {
            work::changed_now(context.git()?, &store, &tree)?.files
        };
        if !changed.is_empty() {
            found.push((tree, changed));
        }
    }
    if !args.paths.is_empty() {
        found = chosen(context, &sandbox, found, &args.paths)?;
    }
    if args.json {
        let trees = found.iter().map(|(tree, changed)| TreeOf {
            repository: &tree.mount().worktree,
            files: changed.iter().map(FileOf::of).collect(),
        });
        print_json(&Listing { version: 1, name: sandbox.name(), repositories: trees.collect() })?;
    }
    if found.is_empty() {
        eprintln!("nothing changed in '{}'", sandbox.name());
        return Ok(1);
    }
    if args.dry_run && args.json {
        return Ok(0);
    }
    if args.dry_run {
        for (tree, changed) in &found {
            if sandbox.record.repos.len() > 1 {
                println!("repository {}", escape_path(&tree.mount().worktree));
            }
            for change in changed {
                println!("{} {}", change.letter(), crate::text::escape_bytes(&change.path));
            }
            review::tell(context, &mut review::of_files(context, &store, tree, changed)?)?;
        }
        return Ok(0);
    }
    bring_edits(context, &store, &sandbox, found, args.stash, args.yes)?;
    Ok(0)
}

/// Schema version 1.
#[derive(Serialize)]
struct Listing<'a> {
    version: u32,
    name: &'a str,
    repositories: Vec<TreeOf<'a>>,
}

#[derive(Serialize)]
struct TreeOf<'a> {
    repository: &'a Path,
    files: Vec<FileOf>,
}

#[derive(Serialize)]
struct FileOf {
    /// Bytes that are not UTF-8 are replaced. Not safe for a terminal.
    path: String,
    /// `A`, `M` or `D`
    change: char,
}

impl FileOf {
    fn of(change: &work::ChangedFile) -> Self {
        Self { path: String::from_utf8_lossy(&change.path).into_owned(), change: change.letter() }
    }
}

/// What changed in the trees, of the paths that are meant: a file, or all below a directory. Each must be something.
fn chosen(
    context: &Context,
    sandbox: &Sandbox,
    found: Vec<(Sandbox, Vec<work::ChangedFile>)>,
    paths: &[PathBuf],
) -> Result<Vec<(Sandbox, Vec<work::ChangedFile>)>, CliError> {
    let wanted: Vec<PathBuf> = paths.iter().map(|path| plain(&context.cwd.join(path))).collect();
    let here = context.maybe_repo().and_then(|repo| repo.worktree().ok());
    let mut used = vec![false; paths.len()];
    let mut chosen = Vec::new();
    for (tree, mut changed) in found {
        // The caller may be in another work tree of the same repository.
        let tops: Vec<&Path> = here.into_iter().chain([tree.mount().worktree.as_path()]).collect();
        changed.retain(|change| {
            let mut kept = false;
            for (wanted, used) in wanted.iter().zip(&mut used) {
                let mut below = tops.iter().filter_map(|top| wanted.strip_prefix(top).ok());
                if below.any(|path| change.as_path().starts_with(path)) {
                    (kept, *used) = (true, true);
                }
            }
            kept
        });
        if !changed.is_empty() {
            chosen.push((tree, changed));
        }
    }
    match paths.iter().zip(used).find(|(_, used)| !used) {
        Some((path, _)) => {
            Err(CliError::new(format!("nothing changed at '{}' in '{}'", escape_path(path), sandbox.name()))
                .hint(format!(
                    "`git sandbox apply --dry-run {}` lists what changed; nothing was written",
                    sandbox.name()
                ))
                .status(1))
        }
        None => Ok(chosen),
    }
}

/// A path without `.` and `..`, by its names alone: what it names need not exist here.
fn plain(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(out.pop()),
            part => out.push(part),
        }
    }
    out
}

/// Brings uncommitted changes over, as edits of the working tree or as a stash entry.
pub fn edits(context: &Context, store: &Store, sandbox: &Sandbox, stash: bool) -> Result<(), CliError> {
    let mut found = Vec::new();
    for tree in sandbox.trees().filter(|tree| tree.mount().has_commits()) {
        let left = work::uncommitted_now(context.git()?, store, &tree)?.files;
        if !left.is_empty() {
            found.push((tree, left));
        }
    }
    bring_edits(context, store, sandbox, found, stash, false)
}

/// What changed in one tree, and where it goes.
struct Edited {
    tree: Sandbox,
    repo: Repo,
    edits: Vec<Edit>,
    captured: Layers,
    base: Option<Oid>,
    tip: Option<Oid>,
    branch: Option<String>,
}

impl Edited {
    fn of(context: &Context, store: &Store, tree: Sandbox, changed: &[work::ChangedFile]) -> Result<Self, CliError> {
        let repo = open(context, store, &tree)?;
        let snapshot = tree.snapshot(store)?;
        let dir = store.repo(&tree.mount().repo);
        let captured = Layers::new(snapshot.layers.iter().map(|id| dir.layer_tree(id)));
        let mut left_out = Vec::new();
        let edits = read_edits(&tree, changed.iter(), &mut left_out)?;
        if !left_out.is_empty() {
            eprintln!("left out (a socket, a FIFO, a device or over 256 MiB): {}", left_out.join(", "));
        }
        let base = snapshot.git.base.as_deref().and_then(Oid::parse);
        let tip = work::tip(context.git()?, store, &tree)?.or(base);
        Ok(Self { tree, repo, edits, captured, base, tip, branch: snapshot.git.branch })
    }

    /// As a stash entry, which is not in the list yet.
    fn stash(&self, context: &Context) -> Result<Stash<'_>, CliError> {
        let name = self.tree.name();
        let commit = self.tip.ok_or_else(|| {
            CliError::new("a stash needs a commit, and there is none")
                .hint(format!("`git sandbox apply {name}` brings the files as edits"))
        })?;
        let identity = identity(context, &self.repo)?;
        let message = format!("sandbox '{name}': uncommitted work");
        let branch = self.branch.as_deref().map(|b| b.strip_prefix("refs/heads/").unwrap_or(b));
        let request = StashRequest { name, commit, branch, edits: &self.edits, message: &message, identity: &identity };
        Ok(sandbox_integrate::stash(&self.repo, &request)?)
    }

    /// As edits of the working tree.
    fn plan(&self, context: &Context, store: &Store) -> Result<EditsPlan, CliError> {
        let merged = relation(context, store, &self.tree)? == Relation::Contained;
        let request = EditsRequest {
            name: self.tree.name(),
            edits: &self.edits,
            since: self.tip.filter(|_| merged),
            captured: Some(&self.captured),
            base: self.base,
        };
        sandbox_integrate::plan_edits(&self.repo, &request).map_err(|error| not_applied(&self.tree, error))
    }
}

/// Puts the changes of all trees into the stash lists of their repositories, or of none.
fn into_stashes(context: &Context, store: &Store, sandbox: &Sandbox, all: &[Edited]) -> Result<(), CliError> {
    let _locks = crate::changing::lock_all(context, store, sandbox)?;
    let blame = |edited: &Edited, error: CliError| match sandbox.record.repos.len() {
        1 => error,
        _ => {
            error.cause(format!("in '{}'; nothing was stashed in any repository", escape_path(edited.repo.worktree())))
        }
    };
    // Whatever can go wrong with the files goes wrong before any list is changed.
    let made = all.iter().map(|edited| edited.stash(context).map_err(|error| blame(edited, error)));
    let made = made.collect::<Result<Vec<Stash<'_>>, CliError>>()?;
    for (n, (edited, stash)) in all.iter().zip(&made).enumerate() {
        if let Err(error) = stash.store() {
            for done in made[..n].iter().rev() {
                done.take_back()?;
            }
            return Err(blame(edited, error.into()));
        }
    }
    Ok(())
}

fn bring_edits(
    context: &Context,
    store: &Store,
    sandbox: &Sandbox,
    found: Vec<(Sandbox, Vec<work::ChangedFile>)>,
    stash: bool,
    yes: bool,
) -> Result<(), CliError> {
    let all = found.into_iter().map(|(tree, changed)| Edited::of(context, store, tree, &changed));
    let mut all = all.collect::<Result<Vec<Edited>, CliError>>()?;
    all.retain(|edited| !edited.edits.is_empty());
    let place = |edited: &Edited| match sandbox.record.repos.len() {
        1 => String::new(),
        _ => format!("{}: ", escape_path(edited.repo.worktree())),
    };
    if stash {
        for edited in &all {
            let since = edited.tip.or(edited.base);
            review::tell(context, &mut review_edits(&edited.repo, since, &edited.edits)?)?;
        }
        into_stashes(context, store, sandbox, &all)?;
        for edited in &all {
            eprintln!(
                "{}{} in the stash: `git stash pop` takes them out",
                place(edited),
                count(edited.edits.len(), "file")
            );
        }
        return Ok(());
    }
    let plan = |edited: &Edited| {
        edited.plan(context, store).map_err(|error| match sandbox.record.repos.len() {
            1 => error,
            _ => error.cause(format!("in '{}'", escape_path(edited.repo.worktree()))),
        })
    };
    let mut plans = all.iter().map(plan).collect::<Result<Vec<EditsPlan>, CliError>>()?;
    for plan in &mut plans {
        review::tell(context, &mut plan.warnings)?;
    }
    if !review::agreed(context, plans.iter().flat_map(|plan| &plan.warnings), ("apply", sandbox.name()), yes)? {
        return Err(review::declined());
    }
    let told = |edited: &Edited| format!("{} applied here, uncommitted", count(edited.edits.len(), "file"));
    let parts: Vec<Part<'_>> = all
        .iter()
        .zip(&plans)
        .map(|(edited, plan)| Part {
            tree: &edited.tree,
            repo: &edited.repo,
            work: Work::Edits(plan),
            told: format!("{}, from '{}'", told(edited), sandbox.name()),
            of: vec![sandbox.record.id.clone()],
        })
        .collect();
    carry_out(context, store, Verb::Apply, sandbox.name(), &parts)?;
    for edited in &all {
        eprintln!("{}{}", place(edited), told(edited));
    }
    Ok(())
}

/// The same refusal as of a merge, with the next step of this one.
fn not_applied(sandbox: &Sandbox, error: MergeError) -> CliError {
    let conflicts = matches!(error, MergeError::Conflicts { .. });
    let failure = CliError::from(error);
    if !conflicts {
        return failure;
    }
    let name = sandbox.name();
    let hint = format!(
        "nothing was written; commit or stash the files named and apply again, or `git sandbox apply --stash {name}` \
         puts the changes into the stash"
    );
    CliError { message: format!("cannot apply the changes of '{name}'"), hints: vec![hint], ..failure }
}

/// Reads changed files. What no commit and no patch can have is left out, by its printable name.
pub fn read_edits<'a>(
    sandbox: &Sandbox,
    changed: impl Iterator<Item = &'a work::ChangedFile>,
    left_out: &mut Vec<String>,
) -> Result<Vec<Edit>, CliError> {
    let mut edits = Vec::new();
    for change in changed {
        match read_edit(sandbox, change)? {
            Some(edit) => edits.push(edit),
            None => left_out.push(crate::text::escape_bytes(&change.path)),
        }
    }
    Ok(edits)
}

/// Reads a changed file of the upper directory, beneath its root and without following links; `None`: it is no file, or too large.
pub fn read_edit(sandbox: &Sandbox, change: &work::ChangedFile) -> Result<Option<Edit>, CliError> {
    let name = crate::text::escape_bytes(&change.path);
    let path = RepoPath::parse(&change.path)
        .ok_or_else(|| CliError::new(format!("'{name}' is not a path that may be written")))?;
    let after = match change.what {
        Changed::Deleted => None,
        _ => Some(match work::read_changed(sandbox, change) {
            Ok(work::Content::File { executable, bytes }) => (Kind::File { executable }, bytes),
            Ok(work::Content::Symlink(target)) => (Kind::Symlink, target),
            Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::FileTooLarge) => return Ok(None),
            Err(error) => return Err(CliError::io(format!("read '{name}' of the sandbox"))(error)),
        }),
    };
    Ok(Some(Edit { path, after }))
}
