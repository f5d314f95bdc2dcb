//! What a repository inside has to say: its refs, tips and operations, and the repositories in it.
//!
//! Runs inside as an ordinary process of a session, never in PID 1: configuration and objects are a
//! stranger's. Asks the git inside, which may be any version from 2.20 on, and reads the few files
//! of operations in progress by itself, because git has no command that names them.

mod nested;
mod operation;

use sandbox_protocol::{RepoState, escape_bytes};
use std::collections::HashSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The most tips that only a reflog reaches.
const MAX_REFLOG_TIPS: usize = 1000;

/// The most stash entries.
const MAX_STASH: usize = 1000;

/// Variables that would lead git to another repository, or have it run what nobody asked for.
const CLEARED: [&str; 11] = [
    "GIT_COMMON_DIR",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_NAMESPACE",
    "GIT_CEILING_DIRECTORIES",
    "GIT_GRAFT_FILE",
    "GIT_SHALLOW_FILE",
    "GIT_REPLACE_REF_BASE",
    "GIT_QUARANTINE_PATH",
    "GIT_TRACE",
];

/// Why the state of a repository cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum RepoStateError {
    /// There is no repository.
    #[error("'{path}' is not a git repository", path = path.display())]
    NotARepository {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// git could not be run.
    #[error("cannot run git")]
    Git(#[source] io::Error),
    /// git refused.
    #[error("`git {command}` failed: {message}")]
    Refused {
        /// The subcommand.
        command: String,
        /// The last line that it said.
        message: String,
    },
}

type Result<T> = std::result::Result<T, RepoStateError>;

/// Returns the state of the repository whose work tree, or git directory, is `path`. Commits that
/// `granted` reaches are no tips of reflogs.
pub fn repo_state(path: &Path, granted: &[String]) -> Result<RepoState> {
    let gitdir = gitdir_of(path).ok_or_else(|| RepoStateError::NotARepository { path: path.to_owned() })?;
    let git = Git { gitdir: &gitdir, work_tree: path };
    let mut state = RepoState {
        head_ref: git.line(&["symbolic-ref", "-q", "HEAD"])?,
        head: git.line(&["rev-parse", "-q", "--verify", "HEAD^{commit}"])?,
        ..RepoState::default()
    };
    state.refs = git
        .run(&["for-each-ref", "--format=%(objectname) %(refname)"], b"")?
        .stdout
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let cut = line.iter().position(|byte| *byte == b' ')?;
            let (id, name) = (&line[..cut], &line[cut + 1..]);
            let is_ours = !name.starts_with(b"refs/remotes/");
            is_ours.then(|| (escape_bytes(name), String::from_utf8_lossy(id).into_owned()))
        })
        .collect();
    if state.refs.iter().any(|(name, _)| name == "refs/stash") {
        let count = format!("-n{MAX_STASH}");
        state.stash =
            lines(&git.run(&["log", "-g", "--no-show-signature", "--format=%H", &count, "refs/stash", "--"], b"")?);
    }
    state.reflog_tips = reflog_tips(&git, &state, granted)?;
    (state.operation, state.operation_branch) = operation::in_progress(&gitdir, &state);
    let search = nested::search(path, &gitdir);
    (state.nested, state.nested_cut) = (search.found, search.cut);
    Ok(state)
}

/// Returns the commits that only reflogs reach and that are nobody's parent, newest first.
fn reflog_tips(git: &Git<'_>, state: &RepoState, granted: &[String]) -> Result<Vec<String>> {
    let mut input = String::new();
    let known = granted.iter().chain(&state.stash).chain(&state.head);
    for id in known.filter(|id| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_hexdigit())) {
        input.push('^');
        input.push_str(id);
        input.push('\n');
    }
    // Not `--all`: that takes the heads of other worktrees as known, and nobody brings those.
    let args = ["rev-list", "--reflog", "--parents", "--ignore-missing", "--stdin", "--not", "--glob=refs/*"];
    let mut parents = HashSet::new();
    let mut commits = Vec::new();
    for line in lines(&git.run(&args, input.as_bytes())?) {
        let mut ids = line.split(' ').map(str::to_owned);
        commits.extend(ids.next());
        parents.extend(ids);
    }
    commits.retain(|id| !parents.contains(id));
    commits.truncate(MAX_REFLOG_TIPS);
    Ok(commits)
}

/// Finds the git directory of a work tree, without asking git: it would look into parents.
fn gitdir_of(path: &Path) -> Option<PathBuf> {
    let dot_git = path.join(".git");
    let metadata = dot_git.symlink_metadata();
    let gitdir = match metadata {
        Ok(metadata) if metadata.is_file() => nested::read_gitfile(&dot_git)?,
        Ok(metadata) if metadata.is_dir() => dot_git,
        // A link to a directory is a repository too, for git.
        Ok(_) => dot_git.canonicalize().ok()?,
        Err(_) => path.to_owned(),
    };
    nested::is_gitdir(&gitdir).then_some(gitdir)
}

struct Git<'a> {
    gitdir: &'a Path,
    work_tree: &'a Path,
}

impl Git<'_> {
    /// Runs git to its end; a status above 1 is an error, 1 is git's "no".
    fn run(&self, args: &[&str], input: &[u8]) -> Result<Output> {
        let mut command = Command::new("git");
        command
            // No pack of the view is missing, and nothing may be fetched to answer a question.
            .env("GIT_NO_LAZY_FETCH", "1")
            .env("GIT_OPTIONAL_LOCKS", "0")
            .env("GIT_TERMINAL_PROMPT", "0")
            // Ids as they are: a replacement is the sandbox's own view.
            .env("GIT_NO_REPLACE_OBJECTS", "1")
            .env("GIT_DIR", self.gitdir)
            // Named, so that a submodule whose work tree is gone can be read as well.
            .env("GIT_WORK_TREE", self.work_tree)
            .env("LC_ALL", "C.UTF-8")
            .args(["--no-pager", "-c", "core.fsmonitor=false"])
            .args(args)
            .stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for name in CLEARED {
            command.env_remove(name);
        }
        let mut child = command.spawn().map_err(RepoStateError::Git)?;
        // From another thread: git may write before it has read all.
        let stdin = child.stdin.take();
        let output = std::thread::scope(|scope| {
            if let Some(mut stdin) = stdin {
                // What git does not read it does not want; its status tells.
                scope.spawn(move || drop(stdin.write_all(input)));
            }
            child.wait_with_output()
        });
        let output = output.map_err(RepoStateError::Git)?;
        if matches!(output.status.code(), Some(0 | 1)) {
            return Ok(output);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let message = said.lines().next_back().unwrap_or_default();
        let message = message.strip_prefix("fatal: ").unwrap_or(message).to_owned();
        Err(RepoStateError::Refused { command: args[0].into(), message })
    }

    /// Returns the only line, as [`escape_bytes`] writes it; `None` when git says no.
    fn line(&self, args: &[&str]) -> Result<Option<String>> {
        let output = self.run(args, b"")?;
        let line = output.stdout.split(|byte| *byte == b'\n').next().unwrap_or_default();
        Ok((output.status.success() && !line.is_empty()).then(|| escape_bytes(line)))
    }
}

fn lines(output: &Output) -> Vec<String> {
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}
