//! Where a merge goes: the repository and working tree, and who makes its commits.

use crate::context::Context;
use crate::error::CliError;
use sandbox_core::host_repo::HostRepo;
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::Store;
use sandbox_core::work;
use sandbox_git::Git;
use sandbox_integrate::{Identity, Relation, Repo};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub fn escape_path(path: &Path) -> String {
    crate::text::escape_bytes(path.as_os_str().as_bytes())
}

/// Opens the host repository of a sandbox for merging, at the work tree that the caller is in if
/// it is one of that repository, else at the one that was captured.
pub fn open(context: &Context, store: &Store, sandbox: &Sandbox) -> Result<Repo, CliError> {
    let repo = host(context, store, sandbox)?;
    opened(context, store, &repo, repo.worktree()?)
}

/// The repository that a merge of this sandbox goes into, at that work tree.
pub fn host(context: &Context, store: &Store, sandbox: &Sandbox) -> Result<HostRepo, CliError> {
    let host = work::host(store, sandbox)?;
    let here = context.maybe_repo().filter(|repo| repo.common_dir() == host.common_dir());
    Ok(here.cloned().unwrap_or(host))
}

/// The same as [`open`], with what is asked of it next: whether nothing is uncommitted there, and who merges. No answer
/// needs another, so git is asked for all at once.
pub fn open_to_merge(context: &Context, store: &Store, sandbox: &Sandbox) -> Result<(Repo, bool, Identity), CliError> {
    let repo = host(context, store, sandbox)?;
    let (git, top) = (context.git()?, repo.worktree()?);
    let (clean, identity) = std::thread::scope(|scope| {
        // Remembered for those who ask for it.
        scope.spawn(|| git.version().ok());
        let identity = scope.spawn(|| identity_in(git, top));
        (is_clean(git, top), identity.join())
    });
    let opened = opened(context, store, &repo, top)?;
    let identity = identity.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    Ok((opened, clean?, identity))
}

/// Whether nothing is uncommitted in a working tree, untracked files included.
fn is_clean(git: &Git, worktree: &Path) -> Result<bool, CliError> {
    let git = git.user(worktree).config("core.hooksPath=/dev/null").config("core.fsmonitor=false");
    let args = ["--no-optional-locks", "status", "--porcelain=v1", "-z", "--no-renames", "--ignore-submodules=all"];
    Ok(git.args(args).output()?.stdout.is_empty())
}

/// The same to look at it: a bare repository will do.
pub fn open_to_read(context: &Context, store: &Store, sandbox: &Sandbox) -> Result<Repo, CliError> {
    let repo = host(context, store, sandbox)?;
    opened(context, store, &repo, repo.top_or_gitdir())
}

fn opened(context: &Context, store: &Store, repo: &HostRepo, worktree: &Path) -> Result<Repo, CliError> {
    let known = (repo.common_dir(), repo.format());
    Ok(Repo::open_known(context.git()?, (worktree, repo.git_dir()), known, &store.tmp())?)
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

/// Who makes a merge commit: as git resolves it in the host repository.
pub fn identity(context: &Context, repo: &Repo) -> Result<Identity, CliError> {
    identity_in(context.git()?, repo.worktree())
}

/// The same of a working tree.
fn identity_in(git: &Git, worktree: &Path) -> Result<Identity, CliError> {
    let line = git.user(worktree).args(["var", "GIT_COMMITTER_IDENT"]).line().map_err(|error| {
        CliError::new("git does not know who you are")
            .cause(error.stderr().unwrap_or_default().to_owned())
            .hint("`git config --global user.name NAME` and `git config --global user.email ADDRESS`")
    })?;
    let (name, rest) = line.split_once(" <").unwrap_or((&line, ""));
    // `name <address> seconds zone`: one time for all that is made.
    let (email, date) = rest.split_once('>').unwrap_or(("", ""));
    let date = Some(format!("@{}", date.trim())).filter(|date| date.len() > 1);
    Ok(Identity { name: name.to_owned(), email: email.to_owned(), date })
}
