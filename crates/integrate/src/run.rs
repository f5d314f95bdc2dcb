//! Running git, in two ways.
//!
//! ```text
//!   pure   a scratch bare repository: no configuration, hooks, attributes or refs; borrows the host's
//!          object database (new objects go there). All that looks into incoming content runs here.
//!   host   the user's repository with the user's configuration, hooks and fsmonitor off: index,
//!          refs, attributes. Never sees an incoming file.
//! ```

use sandbox_git::{Git, GitCommand, GitError, Output, Running, printable};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, ExitStatus};

/// Configuration of commands that read the user's: nothing that it names is run.
const QUIET: &[&str] = &[
    // `update-ref` and `update-index` would run reference-transaction and post-index-change.
    "core.hooksPath=/dev/null",
    // The same, named by configuration since 2.54.
    "hook.reference-transaction.enabled=false",
    "hook.post-index-change.enabled=false",
    // A program, or a daemon's socket, asked at each reading of the index.
    "core.fsmonitor=false",
    "core.alternateRefsCommand=true",
    "protocol.allow=never",
    "submodule.recurse=false",
    "gc.auto=0",
    "maintenance.auto=false",
];

/// A command in the scratch repository `bare` that borrows `objects`.
pub(crate) fn pure(git: &Git, bare: &Path, objects: &Path) -> GitCommand {
    git.host(bare).cwd(bare).env("GIT_OBJECT_DIRECTORY", objects)
}

/// A command in the user's repository.
pub(crate) fn host(git: &Git, gitdir: &Path, worktree: &Path) -> GitCommand {
    let command = git.user(worktree).env("GIT_DIR", gitdir).env("GIT_WORK_TREE", worktree);
    // The machine's attributes count here as in the user's own `git status`.
    let command = command.env("GIT_ATTR_NOSYSTEM", "0");
    QUIET.iter().fold(command, GitCommand::config)
}

/// What a command answered whose status means something.
pub(crate) struct Answer {
    name: String,
    status: ExitStatus,
    output: Output,
}

impl Answer {
    pub fn of(command: GitCommand) -> Result<Self, GitError> {
        let name = command.name();
        let (status, output) = command.try_output()?;
        Ok(Self { name, status, output })
    }

    /// The exit code, if no signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Standard output, whatever the status.
    pub fn stdout(self) -> Vec<u8> {
        self.output.stdout
    }

    /// Standard output without the end of its line.
    pub fn line(self) -> Result<String, GitError> {
        let text = String::from_utf8(self.output.stdout);
        let text = text.map_err(|error| unexpected(&self.name, error.as_bytes()))?;
        Ok(text.trim_end_matches('\n').to_owned())
    }

    /// The error that this status is.
    pub fn failed(self) -> GitError {
        let said = self.output.stderr.split(|b| *b == b'\n').rfind(|line| !line.is_empty()).unwrap_or_default();
        let said = said.strip_prefix(b"fatal: ").or_else(|| said.strip_prefix(b"error: ")).unwrap_or(said);
        GitError::Failed {
            command: self.name,
            status: self.status.code().map_or("a signal".to_owned(), |code| format!("status {code}")),
            code: self.status.code(),
            stderr: printable(said),
        }
    }
}

/// An error for output that cannot be parsed.
pub(crate) fn unexpected(command: &str, what: &[u8]) -> GitError {
    let what = &what[..what.len().min(200)];
    GitError::Unexpected { command: command.to_owned(), what: printable(what) }
}

/// A command that answers line by line. Dropping it closes its input and waits for its end, so that
/// it puts away what it began.
pub(crate) struct Talk {
    name: String,
    running: Option<Running>,
    stdin: Option<ChildStdin>,
    pub stdout: BufReader<ChildStdout>,
}

impl Talk {
    pub fn start(command: GitCommand) -> Result<Self, GitError> {
        let name = command.name();
        let mut running = command.converse()?;
        let stdin = running.stdin.take();
        let stdout = BufReader::new(running.stdout.take().expect("a conversation has an output"));
        Ok(Self { name, running: Some(running), stdin, stdout })
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), GitError> {
        let sent = self.stdin.as_mut().is_some_and(|stdin| stdin.write_all(bytes).and_then(|()| stdin.flush()).is_ok());
        if sent { Ok(()) } else { Err(self.lost()) }
    }

    /// The next byte, which stays to be read.
    pub fn peek(&mut self) -> Result<u8, GitError> {
        match self.stdout.fill_buf().map(|bytes| bytes.first().copied()) {
            Ok(Some(byte)) => Ok(byte),
            _ => Err(self.lost()),
        }
    }

    /// Reads one line without its end; an error at the end of the output.
    pub fn line(&mut self) -> Result<String, GitError> {
        let mut line = String::new();
        match self.stdout.read_line(&mut line) {
            Ok(n) if n > 0 => Ok(line.trim_end_matches('\n').to_owned()),
            _ => Err(self.lost()),
        }
    }

    /// Reads up to the next NUL.
    pub fn field(&mut self) -> Result<Vec<u8>, GitError> {
        let mut field = Vec::new();
        match self.stdout.read_until(0, &mut field) {
            Ok(_) if field.last() == Some(&0) => {
                field.pop();
                Ok(field)
            }
            _ => Err(self.lost()),
        }
    }

    /// What it last said, if it failed.
    fn lost(&mut self) -> GitError {
        drop(self.stdin.take());
        let ended = self.running.take().map(Running::finish);
        match ended {
            Some(Err(error)) => error,
            _ => unexpected(&self.name, b"an end of its output"),
        }
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        drop(self.stdin.take());
        if let Some(running) = self.running.take() {
            let _ = running.wait();
        }
    }
}
