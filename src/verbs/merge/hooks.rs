//! `--with-hooks`: the user's own hooks, as they were before the change, in the order in which git runs them.
//!
//! ```text
//!   a merge commit    pre-merge-commit, prepare-commit-msg merge, commit-msg │ landed │ post-merge 0
//!   one squashed      pre-commit, prepare-commit-msg squash, commit-msg      │        │ post-commit, post-merge 1
//!   a fast-forward                                                           │        │ post-merge 0
//! ```
//!
//! What refuses before anything is written stops the merge. Hooks that lie in the working tree, or are links
//! into it, are copied before: what comes in does not choose what runs. They see the merged index and its
//! objects; the files of the working tree are still the former ones.

use super::place::escape_path;
use crate::context::Context;
use crate::error::CliError;
use crate::text::escape;
use sandbox_core::store::Store;
use sandbox_integrate::{MergePlan, Repo, What, landing_index, message_of};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use tempfile::TempDir;

/// Files of a directory of hooks that are copied, and their bytes together.
const FILES: usize = 1000;
const BYTES: u64 = 64 << 20;

/// The hooks of one repository, kept.
pub struct Hooks {
    git: PathBuf,
    worktree: PathBuf,
    copy: Option<TempDir>,
    store: PathBuf,
}

impl Hooks {
    /// Finds the hooks that git would run, and copies them if what comes in could change them.
    pub fn keep(context: &Context, store: &Store, repo: &Repo) -> Result<Self, CliError> {
        let git = context.git()?;
        let worktree = repo.worktree().to_owned();
        let args = ["rev-parse", "--path-format=absolute", "--git-path", "hooks"];
        let dir = PathBuf::from(git.user(&worktree).args(args).line()?);
        let copy = if lies_in(&dir, &worktree) { Some(copied(&dir, store)?) } else { None };
        Ok(Self { git: git.program().to_owned(), worktree, copy, store: store.tmp() })
    }

    /// Runs what comes before a commit is made; returns its message if a hook changed it.
    pub fn before(&self, repo: &Repo, plan: &MergePlan) -> Result<Option<String>, CliError> {
        let (check, source) = match plan.what {
            What::Merge { .. } => ("pre-merge-commit", "merge"),
            What::Squash { .. } => ("pre-commit", "squash"),
            _ => return Ok(None),
        };
        let (index, objects) = landing_index(repo, plan)?;
        let env = [("GIT_INDEX_FILE", index), ("GIT_ALTERNATE_OBJECT_DIRECTORIES", objects)];
        let message = message_of(repo, plan.head.new)?;
        let file = tempfile::Builder::new().prefix("message.").tempfile_in(&self.store);
        let file = file.map_err(CliError::io("write the message"))?;
        fs::write(file.path(), format!("{}\n", message.trim_end())).map_err(CliError::io("write the message"))?;
        self.must(check, &[], &env)?;
        self.must("prepare-commit-msg", &[file.path().into(), source.into()], &env)?;
        self.must("commit-msg", &[file.path().into()], &env)?;
        let changed = fs::read(file.path()).map_err(CliError::io("read the message"))?;
        let changed = String::from_utf8_lossy(&changed).trim().to_owned();
        if changed.is_empty() {
            return Err(CliError::new("your hooks left no message for the commit").hint(WITHOUT).status(1));
        }
        Ok((changed != message.trim()).then_some(changed))
    }

    /// Runs what comes after. Nothing can be refused any more; a failure is told.
    pub fn after(&self, plan: &MergePlan) {
        let squash = matches!(plan.what, What::Squash { .. });
        let mut hooks = vec![("post-merge", vec![OsString::from(if squash { "1" } else { "0" })])];
        if squash {
            hooks.insert(0, ("post-commit", Vec::new()));
        }
        for (hook, args) in hooks {
            match self.run(hook, &args, &[]) {
                Ok(status) if status.success() => {}
                Ok(status) => eprintln!("warning: your hook '{hook}' failed: {status}"),
                Err(error) => eprintln!("warning: cannot run your hook '{hook}': {}", escape(&error.to_string())),
            }
        }
    }

    fn must(&self, hook: &str, args: &[OsString], env: &[(&str, PathBuf)]) -> Result<(), CliError> {
        let status = self.run(hook, args, env).map_err(CliError::io(format!("run your hook '{hook}'")))?;
        if status.success() {
            return Ok(());
        }
        Err(CliError::new(format!("your hook '{hook}' refused: {status}")).hint(WITHOUT).status(1))
    }

    /// Git runs it, as it runs any hook: with the user's environment, its output on standard error. An absent one
    /// is passed over; those that configuration names (git 2.54) run as well.
    fn run(&self, hook: &str, args: &[OsString], env: &[(&str, PathBuf)]) -> io::Result<ExitStatus> {
        let mut command = Command::new(&self.git);
        command.arg("-C").arg(&self.worktree);
        if let Some(copy) = &self.copy {
            let mut setting = OsString::from("core.hooksPath=");
            setting.push(copy.path());
            command.arg("-c").arg(setting);
        }
        command.args(["hook", "run", "--ignore-missing", hook, "--"]).args(args);
        command.envs(env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::from(io::stderr())).status()
    }
}

const WITHOUT: &str = "nothing was written; without `--with-hooks` no hook runs";

/// Whether hooks are files of the working tree, or links to some.
fn lies_in(dir: &Path, worktree: &Path) -> bool {
    let tree = fs::canonicalize(worktree).unwrap_or_else(|_| worktree.to_owned());
    let git = fs::canonicalize(worktree.join(".git")).ok();
    let inside = |path: &Path| match fs::canonicalize(path) {
        Ok(path) => path.starts_with(&tree) && !git.as_ref().is_some_and(|git| path.starts_with(git)),
        Err(_) => false,
    };
    let entries = || fs::read_dir(dir).into_iter().flatten().flatten();
    inside(dir) || entries().any(|entry| inside(&entry.path()))
}

/// A copy of a directory of hooks with what is below it; links become what they lead to.
fn copied(dir: &Path, store: &Store) -> Result<TempDir, CliError> {
    let failed = || CliError::io(format!("copy your hooks in '{}'", escape_path(dir)));
    let copy = tempfile::Builder::new().prefix("hooks.").tempdir_in(store.tmp()).map_err(failed())?;
    let (mut files, mut bytes) = (0, 0);
    let mut todo = vec![(dir.to_owned(), copy.path().to_owned())];
    while let Some((from, to)) = todo.pop() {
        for entry in fs::read_dir(&from).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            let target = to.join(entry.file_name());
            let Ok(meta) = fs::metadata(entry.path()) else { continue };
            if entry.file_type().map_err(failed())?.is_dir() {
                fs::create_dir(&target).map_err(failed())?;
                todo.push((entry.path(), target));
            } else if meta.is_file() {
                (files, bytes) = (files + 1, bytes + meta.len());
                if files > FILES || bytes > BYTES {
                    return Err(CliError::new(format!("'{}' holds too much to be kept as it is", escape_path(dir)))
                        .hint("merge without `--with-hooks`, or let core.hooksPath name a directory of its own"));
                }
                fs::copy(entry.path(), target).map_err(failed())?;
            }
        }
    }
    Ok(copy)
}
