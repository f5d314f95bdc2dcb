//! `merge` and `apply`: a sandbox's work comes into this working tree. A plan first, then all of
//! it or nothing.

use super::conflicts::{HERE, Table, in_order, one_repository};
use super::list::print_json;
use crate::changing::{Part, Work, carry_out};
use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::text::{count, escape, escape_lines};
use sandbox_core::journal::Verb;
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::Store;
use sandbox_core::work::{self, Changed};
use sandbox_git::Oid;
use sandbox_integrate::{
    Commit, Conflicts, Edit, EditsPlan, EditsRequest, Grade, How, Identity, Kind, Landed, Layers, LeftOut, MergeError,
    MergePlan, MergeRequest, Pair, Relation, Repo, RepoPath, StashRequest, What, best_order,
};
use sandbox_protocol::{Exec, escape_bytes};
use serde::Serialize;
use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

pub fn run(context: &Context, args: &cli::Merge) -> Outcome {
    let store = context.store()?;
    store.writable()?;
    let how = match (args.ff_only, args.no_ff, args.squash, args.rebase) {
        (true, ..) => How::FastForwardOnly,
        (_, true, ..) => How::NoFf,
        (_, _, true, _) => How::Squash,
        (.., true) => How::Rebase,
        _ => How::FastForward,
    };
    let [name] = args.names.as_slice() else { return several(context, &store, args, how) };
    let sandbox = context.sandbox(&store, name)?;
    let trees = super::trees::chosen(&sandbox, args.only.as_deref())?;
    super::fetch::bring(context, &store, &sandbox)?;
    let mut found = Vec::new();
    for tree in trees.iter().filter(|tree| tree.mount().has_commits()) {
        let planned = plan(context, &store, tree, how, args.message.as_deref());
        let planned = planned.map_err(|error| in_tree(&sandbox, tree, error))?;
        found.extend(planned.filter(|(_, plan)| plan.what != What::UpToDate).map(|(repo, plan)| (tree, repo, plan)));
    }
    if found.is_empty() {
        return nothing(context, &store, &sandbox, &trees, args.json);
    }
    let several = sandbox.record.repos.len() > 1;
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
        if several && !plan.warnings.is_empty() {
            eprintln!("{}:", escape_path(repo.worktree()));
        }
        warn(plan);
    }
    if args.dry_run {
        return Ok(0);
    }
    let plans: Vec<(Sandbox, &Repo, &MergePlan)> =
        found.iter().map(|(tree, repo, plan)| ((*tree).clone(), repo, plan)).collect();
    do_all(context, &store, &plans)?;
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

fn escape_path(path: &Path) -> String {
    crate::text::escape_bytes(path.as_os_str().as_bytes())
}

/// Schema version 1.
#[derive(Serialize)]
struct Several<'a> {
    version: u32,
    plan: Option<&'a MergePlan>,
    merged: &'a [Landed],
    left_out: Vec<Left<'a>>,
}

#[derive(Serialize)]
struct Left<'a> {
    name: &'a str,
    error: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    conflicts: Option<&'a Conflicts>,
    here: &'a [Commit],
    there: &'a [Commit],
}

/// Several at once: each onto the result of those before, and this working tree changes once.
fn several(context: &Context, store: &Store, args: &cli::Merge, how: How) -> Outcome {
    let named = in_order(context, store, &args.names, args.all)?;
    let (alone, named): (Vec<Sandbox>, Vec<Sandbox>) = named
        .into_iter()
        .partition(|sandbox| args.all && args.only.is_none() && super::trees::merged_together(sandbox));
    for sandbox in &alone {
        let name = sandbox.name();
        eprintln!("left out '{name}': it has several repositories; `git sandbox merge {name}` merges them together");
    }
    let named = named.into_iter().map(|sandbox| super::trees::one(sandbox, args.only.as_deref()));
    let named = named.collect::<Result<Vec<Sandbox>, CliError>>()?;
    one_repository(&named.iter().collect::<Vec<_>>())?;
    for sandbox in &named {
        super::fetch::bring(context, store, sandbox)?;
    }
    let Some(table) = Table::read(context, store, &named, false)? else {
        eprintln!("no sandbox of this repository has commits");
        return Ok(1);
    };
    let has_commits = |sandbox: &&Sandbox| !table.without.iter().any(|name| name == sandbox.name());
    let given: Vec<&Sandbox> = named.iter().filter(has_commits).collect();
    let order = if args.in_order || how == How::FastForwardOnly {
        (0..given.len()).collect()
    } else {
        let at = |name: &str| table.tips.iter().position(|tip| tip.name == name);
        let collide = |a: Option<usize>, b: Option<usize>| {
            a.zip(b).is_some_and(|(a, b)| matches!(table.pair(a, b), Pair::Conflict { .. }))
        };
        let numbers: Vec<Option<usize>> = given.iter().map(|sandbox| at(sandbox.name())).collect();
        best_order(given.len(), |a, b| collide(numbers[a], numbers[b]), |n| collide(at(HERE), numbers[n]))
    };
    let sandboxes: Vec<&Sandbox> = order.iter().map(|n| given[*n]).collect();
    let Some(first) = sandboxes.first() else {
        eprintln!("no sandbox of this repository has commits");
        return Ok(1);
    };
    if !order.is_sorted() {
        let names: Vec<&str> = sandboxes.iter().map(|sandbox| sandbox.name()).collect();
        eprintln!("in this order, so that most of them merge: {}", names.join(", "));
    }
    let repo = open(context, store, first)?;
    let ask = !is_clean(context, &repo)?;
    let known = sandboxes.iter().map(|sandbox| Known::of(context, store, sandbox, ask));
    let known = known.collect::<Result<Vec<_>, _>>()?;
    let identity = identity(context, &repo)?;
    let requests: Vec<MergeRequest<'_>> =
        known.iter().flatten().map(|known| known.request(how, args.message.as_deref(), &identity)).collect();
    let found = sandbox_integrate::plan_several(&repo, &requests, args.octopus)?;
    if args.json {
        let left = found.left_out.iter().map(|left| Left {
            name: &left.name,
            error: left.error.to_string(),
            conflicts: match &left.error {
                MergeError::Conflicts { conflicts, .. } => Some(conflicts),
                _ => None,
            },
            here: &left.sides.0,
            there: &left.sides.1,
        });
        let (plan, left_out) = (found.plan.as_ref(), left.collect());
        print_json(&Several { version: 1, plan, merged: &found.merged, left_out })?;
    } else if let Some(plan) = found.plan.as_ref().filter(|_| args.dry_run) {
        print!("{}", escape_lines(&plan.describe()));
    }
    for landed in found.merged.iter().filter(|landed| landed.what == What::UpToDate && !args.all) {
        eprintln!("nothing to merge from '{}'", landed.name);
    }
    for left in &found.left_out {
        tell_left_out(left);
    }
    if !found.left_out.is_empty() && (args.atomic || args.octopus) {
        let names: Vec<String> = found.left_out.iter().map(|left| format!("'{}'", left.name)).collect();
        let flag = if args.octopus { "--octopus" } else { "--atomic" };
        return Err(CliError::new(format!("cannot merge all of them: {} would be left out", names.join(", ")))
            .hint(format!("nothing was written; without `{flag}` the others are merged"))
            .status(1));
    }
    let Some(plan) = found.plan else {
        if found.left_out.is_empty() {
            eprintln!("nothing to merge");
        }
        return Ok(1);
    };
    warn(&plan);
    if !args.dry_run {
        do_it(context, store, first, &repo, &plan)?;
    }
    Ok((!found.left_out.is_empty()).into())
}

/// One that does not fit: why, and which commits are against each other.
fn tell_left_out(left: &LeftOut) {
    let error = CliError::chain(&left.error);
    eprintln!("left out '{}': {}", left.name, error.message);
    let causes = match &left.error {
        MergeError::Conflicts { conflicts, .. } => conflicts.to_string().lines().map(str::to_owned).collect(),
        _ => error.causes,
    };
    for cause in causes {
        eprintln!("  {cause}");
    }
    for (side, commits) in [("here ", &left.sides.0), ("there", &left.sides.1)] {
        for commit in commits {
            eprintln!("  {side} {} {}", commit.id.short(), escape(&commit.subject));
        }
    }
}

fn nothing(context: &Context, store: &Store, sandbox: &Sandbox, trees: &[Sandbox], json: bool) -> Outcome {
    if json {
        println!("{{ \"what\": {{ \"kind\": \"up-to-date\" }} }}");
    }
    let name = sandbox.name();
    eprintln!("nothing to merge from '{name}'");
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

/// Opens the host repository of a sandbox for merging, at the work tree that the caller is in if
/// it is one of that repository, else at the one that was captured.
pub fn open(context: &Context, store: &Store, sandbox: &Sandbox) -> Result<Repo, CliError> {
    let host = work::host(store, sandbox)?;
    let here = context.maybe_repo().filter(|repo| repo.common_dir() == host.common_dir());
    let repo = here.unwrap_or(&host);
    Ok(Repo::open(context.git()?, repo.worktree()?, repo.git_dir(), &store.tmp())?)
}

/// The branch that is checked out where a merge would go; `None` when detached.
pub fn checked_out(context: &Context, sandbox: &Sandbox, store: &Store) -> Result<Option<String>, CliError> {
    let host = work::host(store, sandbox)?;
    let here = context.maybe_repo().filter(|repo| repo.common_dir() == host.common_dir());
    let git_dir = here.unwrap_or(&host).git_dir().to_owned();
    let head = std::fs::read_to_string(git_dir.join("HEAD")).map_err(CliError::io("read HEAD"))?;
    Ok(head.trim().strip_prefix("ref: refs/heads/").filter(|branch| *branch != ".invalid").map(str::to_owned).or_else(
        || {
            // The reftable format keeps HEAD elsewhere.
            let name = here
                .unwrap_or(&host)
                .read(context.git().ok()?)
                .args(["symbolic-ref", "--quiet", "--short", "HEAD"])
                .line()
                .ok()?;
            Some(name).filter(|name| !name.is_empty())
        },
    ))
}

/// How the sandbox's tip stands against the commit that is checked out.
pub fn relation(context: &Context, store: &Store, sandbox: &Sandbox) -> Result<Relation, CliError> {
    let repo = open(context, store, sandbox)?;
    let Some(tip) = work::tip(context.git()?, store, sandbox)? else { return Ok(Relation::Contained) };
    Ok(sandbox_integrate::relation(&repo, repo.head()?.commit, tip)?)
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
    let mut found = Vec::new();
    for tree in sandbox.trees().filter(|tree| tree.mount().has_commits()) {
        let planned = plan(context, store, &tree, How::FastForwardOnly, None);
        let planned = planned.map_err(|error| in_tree(sandbox, &tree, error))?;
        found.extend(planned.filter(|(_, plan)| plan.what != What::UpToDate).map(|(repo, plan)| (tree, repo, plan)));
    }
    for (_, _, plan) in &found {
        warn(plan);
    }
    let plans: Vec<(Sandbox, &Repo, &MergePlan)> =
        found.iter().map(|(tree, repo, plan)| (tree.clone(), repo, plan)).collect();
    if plans.is_empty() { Ok(()) } else { do_all(context, store, &plans) }
}

fn plan(
    context: &Context,
    store: &Store,
    sandbox: &Sandbox,
    how: How,
    message: Option<&str>,
) -> Result<Option<(Repo, MergePlan)>, CliError> {
    let Some(known) = Known::of(context, store, sandbox, true)? else { return Ok(None) };
    let repo = open(context, store, sandbox)?;
    let identity = identity(context, &repo)?;
    match sandbox_integrate::plan(&repo, &known.request(how, message, &identity)) {
        Ok(plan) => Ok(Some((repo, plan))),
        Err(error) => Err(error.into()),
    }
}

/// What is known of a sandbox when it is merged.
struct Known {
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
    fn of(context: &Context, store: &Store, sandbox: &Sandbox, ask: bool) -> Result<Option<Self>, CliError> {
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

    fn request<'a>(&'a self, how: How, message: Option<&'a str>, identity: &'a Identity) -> MergeRequest<'a> {
        MergeRequest {
            name: &self.name,
            base: self.base,
            tip: self.tip,
            captured: Some(&self.captured),
            captured_index: self.index.as_deref(),
            left_inside: self.left.as_ref(),
            how,
            message,
            identity,
        }
    }
}

/// Whether nothing is uncommitted here, untracked files included.
fn is_clean(context: &Context, repo: &Repo) -> Result<bool, CliError> {
    let git = context.git()?.user(repo.worktree()).config("core.hooksPath=/dev/null").config("core.fsmonitor=false");
    let args = ["--no-optional-locks", "status", "--porcelain=v1", "-z", "--no-renames", "--ignore-submodules=all"];
    Ok(git.args(args).output()?.stdout.is_empty())
}

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
    let ask =
        |connection: &mut sandbox_core::connection::Connection| Ok(connection.run(exec.clone(), b"", 64 << 20)?);
    let answer = match super::stop::live(sandbox)? {
        Some(mut connection) => ask(&mut connection),
        None => super::fetch::with_helper(context, store, sandbox, ask),
    };
    let Ok((status, out, _)) = answer else { return Ok(None) };
    if status.shell() != 0 {
        return Ok(None);
    }
    Ok(sandbox_integrate::status_paths(&out))
}

/// Who makes a merge commit: as git resolves it in the host repository.
pub fn identity(context: &Context, repo: &Repo) -> Result<Identity, CliError> {
    let line = context.git()?.user(repo.worktree()).args(["var", "GIT_COMMITTER_IDENT"]).line().map_err(|error| {
        CliError::new("git does not know who you are")
            .cause(error.stderr().unwrap_or_default().to_owned())
            .hint("`git config --global user.name NAME` and `git config --global user.email ADDRESS`")
    })?;
    let (name, rest) = line.split_once(" <").unwrap_or((&line, ""));
    let email = rest.split_once('>').map_or("", |(email, _)| email);
    Ok(Identity { name: name.to_owned(), email: email.to_owned(), date: None })
}

pub fn warn(plan: &MergePlan) {
    if plan.warnings.is_empty() {
        return;
    }
    eprintln!("look here first:");
    for warning in plan.warnings.iter().take(20) {
        let grade = match warning.grade {
            Grade::Red => "red  ",
            Grade::Amber => "amber",
        };
        eprintln!("  {grade} {}: {}", warning.path, escape_lines(&warning.why));
    }
    if plan.warnings.len() > 20 {
        eprintln!("  … and {} more", plan.warnings.len() - 20);
    }
}

/// Carries a plan out and says what it did.
pub fn do_it(
    context: &Context,
    store: &Store,
    sandbox: &Sandbox,
    repo: &Repo,
    plan: &MergePlan,
) -> Result<(), CliError> {
    do_all(context, store, &[(sandbox.clone(), repo, plan)])
}

/// Carries out all plans or none, and says what was done.
fn do_all(context: &Context, store: &Store, plans: &[(Sandbox, &Repo, &MergePlan)]) -> Result<(), CliError> {
    let Some((_, _, first)) = plans.first() else { return Ok(()) };
    let verb = if matches!(first.what, What::Pick { .. }) { Verb::Pick } else { Verb::Merge };
    let parts: Vec<Part<'_>> = plans
        .iter()
        .map(|(tree, repo, plan)| Part { tree, repo, work: Work::Merge(plan), told: words(plan) })
        .collect();
    let done = carry_out(context, store, verb, &first.name, &parts)?;
    for ((_, repo, plan), merged) in plans.iter().zip(&done) {
        // Where, if that is not clear.
        let place = if plans.len() > 1 { format!("{}: ", escape_path(repo.worktree())) } else { String::new() };
        eprintln!("{place}{}", words(plan));
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

pub fn apply(context: &Context, args: &cli::Apply) -> Outcome {
    let store = context.store()?;
    store.writable()?;
    let sandbox = context.sandbox(&store, &args.name)?;
    let trees = super::trees::chosen(&sandbox, args.only.as_deref())?;
    super::fetch::bring(context, &store, &sandbox)?;
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
    if found.is_empty() {
        eprintln!("nothing changed in '{}'", sandbox.name());
        return Ok(1);
    }
    if args.dry_run {
        for (tree, changed) in &found {
            if sandbox.record.repos.len() > 1 {
                println!("repository {}", escape_path(&tree.mount().worktree));
            }
            for change in changed {
                println!("{} {}", change.letter(), crate::text::escape_bytes(&change.path));
            }
        }
        return Ok(0);
    }
    bring_edits(context, &store, &sandbox, found, args.stash)?;
    Ok(0)
}

/// Brings uncommitted changes over, as edits of the working tree or as a stash entry.
pub fn apply_edits(context: &Context, store: &Store, sandbox: &Sandbox, stash: bool) -> Result<(), CliError> {
    let mut found = Vec::new();
    for tree in sandbox.trees().filter(|tree| tree.mount().has_commits()) {
        let left = work::uncommitted_now(context.git()?, store, &tree)?.files;
        if !left.is_empty() {
            found.push((tree, left));
        }
    }
    bring_edits(context, store, sandbox, found, stash)
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
        let edits = changed.iter().map(|change| read_edit(&tree, change)).collect::<Result<Vec<Edit>, CliError>>()?;
        let base = snapshot.git.base.as_deref().and_then(Oid::parse);
        let tip = work::tip(context.git()?, store, &tree)?.or(base);
        Ok(Self { tree, repo, edits, captured, base, tip, branch: snapshot.git.branch })
    }

    /// As a stash entry.
    fn stash(&self, context: &Context, store: &Store) -> Result<(), CliError> {
        let name = self.tree.name();
        let commit = self.tip.ok_or_else(|| {
            CliError::new("a stash needs a commit, and there is none")
                .hint(format!("`git sandbox apply {name}` brings the files as edits"))
        })?;
        let identity = identity(context, &self.repo)?;
        let message = format!("sandbox '{name}': uncommitted work");
        let branch = self.branch.as_deref().map(|b| b.strip_prefix("refs/heads/").unwrap_or(b));
        let request = StashRequest { name, commit, branch, edits: &self.edits, message: &message, identity: &identity };
        let _lock = crate::changing::lock(context, store, &self.tree.mount().repo)?;
        Ok(sandbox_integrate::stash(&self.repo, &request).map(drop)?)
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

fn bring_edits(
    context: &Context,
    store: &Store,
    sandbox: &Sandbox,
    found: Vec<(Sandbox, Vec<work::ChangedFile>)>,
    stash: bool,
) -> Result<(), CliError> {
    let all = found.into_iter().map(|(tree, changed)| Edited::of(context, store, tree, &changed));
    let all = all.collect::<Result<Vec<Edited>, CliError>>()?;
    let place = |edited: &Edited| match sandbox.record.repos.len() {
        1 => String::new(),
        _ => format!("{}: ", escape_path(edited.repo.worktree())),
    };
    if stash {
        for edited in &all {
            edited.stash(context, store)?;
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
    let plans = all.iter().map(plan).collect::<Result<Vec<EditsPlan>, CliError>>()?;
    let told = |edited: &Edited| format!("{} applied here, uncommitted", count(edited.edits.len(), "file"));
    let parts: Vec<Part<'_>> = all
        .iter()
        .zip(&plans)
        .map(|(edited, plan)| Part {
            tree: &edited.tree,
            repo: &edited.repo,
            work: Work::Edits(plan),
            told: format!("{}, from '{}'", told(edited), sandbox.name()),
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

/// Reads a changed file of the upper directory, beneath its root and without following links.
pub fn read_edit(sandbox: &Sandbox, change: &work::ChangedFile) -> Result<Edit, CliError> {
    let name = crate::text::escape_bytes(&change.path);
    let path = RepoPath::parse(&change.path)
        .ok_or_else(|| CliError::new(format!("'{name}' is not a path that may be written")))?;
    let after = match change.what {
        Changed::Deleted => None,
        _ => Some(
            match work::read_changed(sandbox, change).map_err(CliError::io(format!("read '{name}' of the sandbox")))? {
                work::Content::File { executable, bytes } => (Kind::File { executable }, bytes),
                work::Content::Symlink(target) => (Kind::Symlink, target),
            },
        ),
    };
    Ok(Edit { path, after })
}

impl From<MergeError> for CliError {
    fn from(error: MergeError) -> Self {
        let hint = error.hint();
        let failure = match &error {
            MergeError::Conflicts { conflicts, .. } | MergeError::PickConflicts { conflicts, .. } => {
                let mut failure = Self::new(error.to_string()).status(1);
                for line in conflicts.to_string().lines() {
                    failure = failure.cause(line.to_owned());
                }
                failure
            }
            MergeError::NotFastForward { .. } | MergeError::Unrelated { .. } => Self::chain(&error).status(1),
            error => Self::chain(error),
        };
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}
