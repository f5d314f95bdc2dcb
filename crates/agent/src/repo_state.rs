//! What a repository inside has to say: its refs, tips and operations, and the repositories in it.
//!
//! Runs inside as an ordinary process of a session, never in PID 1: configuration and objects are a
//! stranger's. Asks the git inside, which may be any version from 2.20 on, and reads the few files
//! of operations in progress by itself, because git has no command that names them.

mod nested;
mod operation;

use rustix::process::{Pid, Signal, kill_process_group};
use sandbox_protocol::{RepoState, escape_bytes};
use std::collections::HashSet;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

/// The most tips that only a reflog reaches.
const MAX_REFLOG_TIPS: usize = 1000;

/// The most stash entries.
const MAX_STASH: usize = 1000;

/// How long all questions to git may take together.
const MAX_TIME: Duration = Duration::from_secs(20);

/// Files that git opens for every question: at a FIFO it would wait for a writer. (It may be put elsewhere, too:
/// then the time is over at some point.)
const READ_BY_GIT: &[&str] = &[
    "HEAD",
    "config",
    "config.worktree",
    "commondir",
    "packed-refs",
    "index",
    "shallow",
    "info/grafts",
    "objects/info/alternates",
    "objects/info/commit-graph",
    "objects/pack/multi-pack-index",
    "logs/HEAD",
    "refs/stash",
    "logs/refs/stash",
];

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
    /// Something in the git directory that git would wait at for ever.
    #[error("'{path}' is not a regular file", path = path.display())]
    NotAFile {
        /// It.
        path: PathBuf,
    },
    /// git took too long, and was ended.
    #[error("`git {command}` did not end")]
    Late {
        /// The subcommand.
        command: String,
    },
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
    only_files(&gitdir)?;
    let git = Git { gitdir: &gitdir, work_tree: path, until: Instant::now() + MAX_TIME, env: Vec::new(), config: &[] };
    let mut state = RepoState::default();
    // A star before the branch that is checked out, else a blank.
    let listed = git.run(&["for-each-ref", "--format=%(HEAD) %(objectname) %(refname)"], b"")?.stdout;
    for line in listed.split(|byte| *byte == b'\n').filter(|line| line.len() > 2) {
        let (is_head, rest) = (line[0] == b'*', &line[2..]);
        let Some(cut) = rest.iter().position(|byte| *byte == b' ') else { continue };
        let (id, name) = (String::from_utf8_lossy(&rest[..cut]).into_owned(), &rest[cut + 1..]);
        if is_head && name.starts_with(b"refs/heads/") {
            (state.head_ref, state.head) = (Some(escape_bytes(name)), Some(id.clone()));
        }
        if !name.starts_with(b"refs/remotes/") {
            state.refs.push((escape_bytes(name), id));
        }
    }
    // Detached, unborn, or elsewhere.
    if state.head_ref.is_none() {
        state.head_ref = git.line(&["symbolic-ref", "-q", "HEAD"])?;
        state.head = git.line(&["rev-parse", "-q", "--verify", "HEAD^{commit}"])?;
    }
    if state.refs.iter().any(|(name, _)| name == "refs/stash") {
        let count = format!("-n{MAX_STASH}");
        state.stash =
            lines(&git.run(&["log", "-g", "--no-show-signature", "--format=%H", &count, "refs/stash", "--"], b"")?);
    }
    state.reflog_tips = reflog_tips(&git, &state, granted)?;
    (state.operation, state.operation_branch) = operation::in_progress(&gitdir, &state);
    Ok(state)
}

/// Refuses a git directory in which git would wait at a FIFO.
pub(crate) fn only_files(gitdir: &Path) -> Result<()> {
    for name in READ_BY_GIT {
        let path = gitdir.join(name);
        if path.metadata().is_ok_and(|meta| !meta.is_file() && !meta.is_dir()) {
            return Err(RepoStateError::NotAFile { path });
        }
    }
    Ok(())
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
pub(crate) fn gitdir_of(path: &Path) -> Option<PathBuf> {
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

/// Git inside, in one repository.
pub(crate) struct Git<'a> {
    pub(crate) gitdir: &'a Path,
    pub(crate) work_tree: &'a Path,
    /// All commands together end by then.
    pub(crate) until: Instant,
    /// Further variables.
    pub(crate) env: Vec<(&'static str, OsString)>,
    /// Further settings.
    pub(crate) config: &'static [&'static str],
}

impl Git<'_> {
    /// Runs git to its end; a status above 1 is an error, 1 is git's "no".
    pub(crate) fn run(&self, args: &[&str], input: &[u8]) -> Result<Output> {
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
            .args(self.config.iter().flat_map(|setting| ["-c", setting]))
            .args(args)
            .stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // So that what it starts ends with it.
            .process_group(0);
        for name in CLEARED {
            command.env_remove(name);
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        let mut child = command.spawn().map_err(RepoStateError::Git)?;
        // From another thread: git may write before it has read all.
        let (stdin, mut stdout, mut stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let group = Pid::from_child(&child);
        let left = self.until.saturating_duration_since(Instant::now());
        let (ended, end) = std::sync::mpsc::channel::<()>();
        let (late, stdout, stderr) = std::thread::scope(|scope| {
            if let Some(mut stdin) = stdin {
                // What git does not read it does not want; its status tells.
                scope.spawn(move || drop(stdin.write_all(input)));
            }
            // It is reaped only below, so the number is still its own.
            let watch = scope.spawn(move || {
                let late = end.recv_timeout(left) == Err(RecvTimeoutError::Timeout);
                if late {
                    let _ = kill_process_group(group, Signal::KILL);
                }
                late
            });
            let errors = scope.spawn(move || read_all(stderr.as_mut()));
            let stdout = read_all(stdout.as_mut());
            let stderr = errors.join().unwrap_or_default();
            drop(ended);
            (watch.join().unwrap_or_default(), stdout, stderr)
        });
        let status = child.wait().map_err(RepoStateError::Git)?;
        if late {
            return Err(RepoStateError::Late { command: args[0].into() });
        }
        let output = Output { status, stdout, stderr };
        if matches!(output.status.code(), Some(0 | 1)) {
            return Ok(output);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let message = said.lines().next_back().unwrap_or_default();
        let message = message.strip_prefix("fatal: ").unwrap_or(message).to_owned();
        Err(RepoStateError::Refused { command: args[0].into(), message })
    }

    /// Returns the only line, as [`escape_bytes`] writes it; `None` when git says no.
    pub(crate) fn line(&self, args: &[&str]) -> Result<Option<String>> {
        let output = self.run(args, b"")?;
        let line = output.stdout.split(|byte| *byte == b'\n').next().unwrap_or_default();
        Ok((output.status.success() && !line.is_empty()).then(|| escape_bytes(line)))
    }
}

fn read_all(pipe: Option<&mut impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        // What came before an error is what git said.
        let _ = pipe.read_to_end(&mut bytes);
    }
    bytes
}

/// Reads a file of at most `limit` bytes; never waits, and opens nothing but regular files.
pub(crate) fn read_regular(path: &Path, limit: u64) -> Option<Vec<u8>> {
    use std::os::unix::fs::OpenOptionsExt;
    // A FIFO is opened at once, a device not at all.
    if !path.metadata().ok()?.is_file() {
        return None;
    }
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(nonblocking).open(path).ok()?;
    if !file.metadata().ok().filter(|meta| meta.len() <= limit)?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn lines(output: &Output) -> Vec<String> {
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}
