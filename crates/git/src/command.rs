//! The one constructor of every `git` command.
//!
//! ```text
//! Git::new(env) ─► git.host(gitdir)      a repository of the user, by its git directory
//!                  git.landing(dir, …)   a bare repository of ours that holds untrusted objects
//!                  git.vault(dir)        a bare repository of ours
//!                  git.user(dir)         with the user's own configuration: discovery, identity
//!                  git.remote(dir)       the same, with what it takes to speak with a remote
//!                        │
//!                        ▼  .args(…) .stdin(…) .timeout(…)
//!                  GitCommand ─► .run() | .line() | .output() | .lines(f) | .spawn()
//! ```
//!
//! The environment starts empty. Every flag of `FLAGS` has its reason beside it. No command here
//! ever opens a repository that a sandbox can write.

use crate::environ::HostEnv;
use crate::escape::printable;
use crate::version::{MINIMUM, Version};
use sandbox_sys::child::{self, ChildLimits};
use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Configuration that every hermetic command gets, each with what it prevents.
const FLAGS: &[&str] = &[
    // Hooks of the repository run only when its user runs git there.
    "core.hooksPath=/dev/null",
    // A monitor is a program that the repository's configuration names.
    "core.fsmonitor=false",
    // It is bound to a machine and a directory, and writing it changes the user's index.
    "core.untrackedCache=false",
    // Attributes select filters and drivers; only those of the tree in question may.
    "core.attributesFile=/dev/null",
    // Otherwise git runs `for-each-ref` in each alternate, with that repository's configuration.
    "core.alternateRefsCommand=true",
    // A bare repository committed inside a work tree must not be taken for one.
    "safe.bareRepository=explicit",
    // No transport at all; the one that an operation needs is allowed by name.
    "protocol.allow=never",
    // Submodules are repositories of their own, asked one by one.
    "submodule.recurse=false",
    "fetch.recurseSubmodules=false",
    // No background work in the user's repository on our account.
    "gc.auto=0",
    "maintenance.auto=false",
    // Would start gpg.
    "log.showSignature=false",
    // Nothing may ask, and nothing may be asked.
    "credential.helper=",
    "core.askPass=true",
    "core.sshCommand=false",
];

/// Configuration that keeps the memory of commands in a landing bounded.
const LANDING: &[&str] = &[
    "pack.threads=1",
    "pack.windowMemory=64m",
    "pack.deltaCacheSize=64m",
    "core.packedGitWindowSize=32m",
    "core.packedGitLimit=256m",
    "core.deltaBaseCacheLimit=64m",
    // Larger ones are streamed, and no deltas are made of them.
    "core.bigFileThreshold=64m",
];

/// Events whose hooks configuration can name since 2.54; an older git ignores these settings.
const HOOK_EVENTS: &[&str] =
    &["reference-transaction", "post-index-change", "pre-auto-gc", "post-merge", "post-checkout", "post-commit"];

/// Why a git command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// No such program.
    #[error("cannot find `git`")]
    Missing,
    /// Older than [`MINIMUM`].
    #[error("git {found} is too old: {MINIMUM} or newer is needed")]
    TooOld {
        /// What is installed.
        found: Version,
    },
    /// It could not be started, or reading from it failed.
    #[error("cannot run `{command}`")]
    Start {
        /// `git` and its verb.
        command: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// It ran and said no.
    #[error("`{command}` failed ({status}): {stderr}")]
    Failed {
        /// `git` and its verb.
        command: String,
        /// `status 128`, `signal 9`.
        status: String,
        /// The exit code, if it was not a signal.
        code: Option<i32>,
        /// The most telling line of its standard error, escaped.
        stderr: String,
    },
    /// It took longer than it was allowed to, and was ended.
    #[error("`{command}` took longer than {seconds} s")]
    Timeout {
        /// `git` and its verb.
        command: String,
        /// The limit.
        seconds: u64,
    },
    /// It printed something unexpected.
    #[error("`{command}` printed something unexpected: {what}")]
    Unexpected {
        /// `git` and its verb.
        command: String,
        /// What was wrong, escaped.
        what: String,
    },
}

impl GitError {
    /// Git's own text, when it ran and refused.
    pub fn stderr(&self) -> Option<&str> {
        match self {
            Self::Failed { stderr, .. } => Some(stderr),
            _ => None,
        }
    }
}

type Result<T> = std::result::Result<T, GitError>;

/// The installed git.
#[derive(Clone, Debug)]
pub struct Git {
    program: PathBuf,
    env: Arc<HostEnv>,
    version: Arc<OnceLock<Version>>,
}

impl Git {
    /// Finds git on the `PATH` of `env`. Runs nothing: the version is asked for when it matters.
    pub fn new(env: HostEnv) -> Result<Self> {
        let program = env.find_program("git").ok_or(GitError::Missing)?;
        Ok(Self::with_program(program, env))
    }

    /// Uses this program.
    pub fn with_program(program: PathBuf, env: HostEnv) -> Self {
        Self { program, env: Arc::new(env), version: Arc::default() }
    }

    /// What git may know of the user's environment.
    pub fn env(&self) -> &HostEnv {
        &self.env
    }

    /// The program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Returns the version, asked once, and refuses one below [`MINIMUM`].
    pub fn version(&self) -> Result<Version> {
        if let Some(version) = self.version.get() {
            return Ok(*version);
        }
        let mut command = self.bare_command("--version", true);
        command.args.push("--version".into());
        let text = command.line()?;
        let found = Version::parse(&text).ok_or_else(|| GitError::Unexpected {
            command: "git --version".into(),
            what: printable(text.as_bytes()),
        })?;
        if found < MINIMUM {
            return Err(GitError::TooOld { found });
        }
        Ok(*self.version.get_or_init(|| found))
    }

    /// Skips the question of [`Git::version`] when the answer is known from an earlier run of the
    /// same program.
    pub fn assume_version(&self, version: Version) {
        let _ = self.version.set(version);
    }

    /// A command on a repository of the user, by its git directory; without the user's
    /// configuration, work tree or hooks. (An explicit directory is not discovered, so a
    /// repository of another owner works too: whether to trust it was decided when it was found.)
    pub fn host(&self, gitdir: &Path) -> GitCommand {
        let mut command = self.hermetic();
        command.args.push(prefixed("--git-dir=", gitdir));
        command
    }

    /// A command in a landing repository: bare, ours, with objects that nobody has checked yet. Whatever it does
    /// with them, it does within limits.
    pub fn landing(&self, dir: &Path, limits: ChildLimits, time: Duration) -> GitCommand {
        let command = self.host(dir).limits(limits).timeout(time);
        LANDING.iter().fold(command, GitCommand::config)
    }

    /// A command in a vault: bare, ours.
    pub fn vault(&self, dir: &Path) -> GitCommand {
        self.host(dir)
    }

    /// A command that needs no repository.
    pub fn anywhere(&self) -> GitCommand {
        self.hermetic()
    }

    /// A command in directory `dir` that finds the repository by itself and reads the user's
    /// configuration: for `rev-parse`, `config`, `var`. No flag of ours shows in what it lists.
    pub fn user(&self, dir: &Path) -> GitCommand {
        let mut command = self.bare_command("", true);
        command.env.extend(self.env.discovery.iter().map(|(name, value)| (name.clone(), value.clone())));
        command.args.push("-C".into());
        command.args.push(dir.into());
        command
    }

    /// A command in directory `dir` that speaks with a remote for the user, as the user would: with the user's own
    /// configuration, credentials, agents and proxies. What it opens is the user's, or was just made by us.
    pub fn remote(&self, dir: &Path) -> GitCommand {
        let mut command = self.user(dir);
        // A partial clone fetches while it checks out.
        command.env.retain(|(name, _)| {
            !["GIT_NO_LAZY_FETCH", "GIT_TERMINAL_PROMPT", "GIT_LITERAL_PATHSPECS"].iter().any(|known| name == known)
        });
        command.env.extend(self.env.signing.iter().chain(&self.env.network).cloned());
        // Which repository it works in is said by `dir`.
        command
            .env
            .retain(|(name, _)| !["GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR"].iter().any(|known| name == known));
        command
    }

    fn hermetic(&self) -> GitCommand {
        let mut command = self.bare_command("", false);
        command.args.push("--no-pager".into());
        for flag in FLAGS {
            command.push_config(flag);
        }
        for event in HOOK_EVENTS {
            command.push_config(&format!("hook.{event}.enabled=false"));
        }
        command
    }

    fn bare_command(&self, verb: &str, user: bool) -> GitCommand {
        let mut env: Vec<(OsString, OsString)> = vec![
            ("PATH".into(), self.env.path.clone()),
            ("LANG".into(), "C.UTF-8".into()),
            ("LC_ALL".into(), "C.UTF-8".into()),
            ("GIT_ATTR_NOSYSTEM".into(), "1".into()),
            ("GIT_TERMINAL_PROMPT".into(), "0".into()),
            ("GIT_NO_LAZY_FETCH".into(), "1".into()),
            ("GIT_NO_REPLACE_OBJECTS".into(), "1".into()),
            ("GIT_OPTIONAL_LOCKS".into(), "0".into()),
            ("GIT_LITERAL_PATHSPECS".into(), "1".into()),
        ];
        env.extend(self.env.home.as_ref().map(|home| ("HOME".into(), home.into())));
        if user {
            env.extend(self.env.xdg_config_home.as_ref().map(|dir| ("XDG_CONFIG_HOME".into(), dir.into())));
        } else {
            env.push(("GIT_CONFIG_NOSYSTEM".into(), "1".into()));
            env.push(("GIT_CONFIG_GLOBAL".into(), "/dev/null".into()));
        }
        GitCommand {
            program: self.program.clone(),
            verb: verb.to_owned(),
            args: Vec::new(),
            env,
            stdin: Input::Null,
            timeout: None,
            limits: None,
            user: None,
            cwd: None,
            ends_with_us: false,
            inherit: Vec::new(),
            host: Arc::clone(&self.env),
        }
    }
}

fn prefixed(prefix: &str, path: &Path) -> OsString {
    let mut arg = OsString::from(prefix);
    arg.push(path);
    arg
}

enum Input {
    Null,
    Bytes(Vec<u8>),
    Piped,
}

/// A git command that is being put together. The first argument without a dash is its verb.
#[must_use = "a command does nothing until it is run"]
pub struct GitCommand {
    program: PathBuf,
    verb: String,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    stdin: Input,
    timeout: Option<Duration>,
    limits: Option<ChildLimits>,
    user: Option<(u32, u32)>,
    cwd: Option<PathBuf>,
    ends_with_us: bool,
    inherit: Vec<OwnedFd>,
    host: Arc<HostEnv>,
}

/// What a successful command printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// The last 8 KiB of standard error.
    pub stderr: Vec<u8>,
}

impl GitCommand {
    fn push_config(&mut self, setting: &str) {
        self.args.push("-c".into());
        self.args.push(setting.into());
    }

    /// Sets `key=value` for this command; only before the verb.
    pub fn config(mut self, setting: impl AsRef<str>) -> Self {
        debug_assert!(self.verb.is_empty(), "configuration comes before the verb");
        self.push_config(setting.as_ref());
        self
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        if self.verb.is_empty() {
            let text = arg.as_ref().to_string_lossy();
            if !text.starts_with('-') {
                self.verb = text.into_owned();
            }
        }
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(self, args: impl IntoIterator<Item = S>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Lets it, and the program that it signs with, see the user's keys and agents.
    pub fn signing(mut self) -> Self {
        self.env.extend(self.host.signing.iter().cloned());
        self
    }

    /// Gives it this standard input.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Input::Bytes(bytes.into());
        self
    }

    /// Runs it in this directory.
    pub fn cwd(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cwd = Some(dir.into());
        self
    }

    /// Ends it, with its children, after this time.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// Limits its resources and those of its children.
    pub fn limits(mut self, limits: ChildLimits) -> Self {
        self.limits = Some(limits);
        self
    }

    /// Has the kernel end it when the thread that starts it ends, as that of a service that is killed: for callers that
    /// wait for it where they start it.
    pub fn ends_with_us(mut self) -> Self {
        self.ends_with_us = true;
        self
    }

    /// Runs it as another user (only root can).
    pub fn as_user(mut self, user: Option<(u32, u32)>) -> Self {
        self.user = user;
        self
    }

    /// Lets it inherit a descriptor, under the number that it has now.
    pub fn inherit(mut self, fd: OwnedFd) -> Self {
        self.inherit.push(fd);
        self
    }

    /// `git` and the verb, for messages.
    pub fn name(&self) -> String {
        format!("git {}", self.verb).trim_end().to_owned()
    }

    /// Runs it for its effect.
    pub fn run(self) -> Result<()> {
        self.output().map(drop)
    }

    /// Runs it and returns the one line that it prints, without the line's end.
    pub fn line(self) -> Result<String> {
        let command = self.name();
        let out = self.output()?.stdout;
        let text = out.strip_suffix(b"\n").unwrap_or(&out);
        String::from_utf8(text.to_vec()).map_err(|_| GitError::Unexpected { command, what: printable(text) })
    }

    /// Runs it and returns what it printed; any status but 0 is an error.
    pub fn output(self) -> Result<Output> {
        let name = self.name();
        let (status, output) = self.try_output()?;
        check(&name, status, &output.stderr)?;
        Ok(output)
    }

    /// Runs it and returns its status with what it printed: for commands whose 1 means "no".
    pub fn try_output(self) -> Result<(ExitStatus, Output)> {
        let mut running = self.spawn()?;
        let mut stdout = Vec::new();
        let read = running.stdout.as_mut().map_or(Ok(0), |out| out.read_to_end(&mut stdout));
        let name = running.name.clone();
        let (status, stderr) = running.wait()?;
        read.map_err(|source| GitError::Start { command: name, source })?;
        Ok((status, Output { stdout, stderr }))
    }

    /// Runs it and hands each line of its output (without the end) to `each`, until that breaks;
    /// then the command is ended.
    pub fn lines(self, mut each: impl FnMut(&[u8]) -> ControlFlow<()>) -> Result<()> {
        let mut running = self.spawn()?;
        let out = running.stdout.take().expect("standard output is piped");
        let mut out = BufReader::with_capacity(64 * 1024, out);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = out.read_until(b'\n', &mut line);
            let n = read.map_err(|source| GitError::Start { command: running.name.clone(), source })?;
            if n == 0 {
                break;
            }
            if each(line.strip_suffix(b"\n").unwrap_or(&line)).is_break() {
                return Ok(());
            }
        }
        let name = running.name.clone();
        let (status, stderr) = running.wait()?;
        check(&name, status, &stderr)
    }

    /// Runs it on this process's own standard input and output: it speaks with whoever started us.
    /// Any status but 0 is an error.
    pub fn pass_through(self) -> Result<()> {
        let name = self.name();
        let failed = |source| GitError::Start { command: name.clone(), source };
        let output = self
            .prepared()
            .stdin(Stdio::inherit())
            .stdout(Stdio::inherit())
            .stderr(Stdio::piped())
            .spawn()
            .and_then(Child::wait_with_output)
            .map_err(failed)?;
        check(&name, output.status, &output.stderr)
    }

    /// Runs it for its effect, with this process's own standard error: whoever started us sees how it goes. Any status
    /// but 0 is an error, without what was shown.
    pub fn shown(self) -> Result<()> {
        let name = self.name();
        let failed = |source| GitError::Start { command: name.clone(), source };
        let mut command = self.prepared();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        let status = command.status().map_err(failed)?;
        check(&name, status, b"see above")
    }

    /// The process as it will be started, without its standard streams.
    fn prepared(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).env_clear().envs(self.env.iter().map(|(name, value)| (name, value)));
        command.current_dir(self.cwd.as_deref().unwrap_or(Path::new("/")));
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        if let Some(limits) = self.limits {
            child::limit(&mut command, limits);
        }
        if self.ends_with_us {
            child::die_with_us(&mut command);
        }
        command
    }

    /// The process as it will be started, for a caller that drives it by a runtime of its own: no
    /// standard stream is set, no time limit is kept.
    pub fn into_command(mut self) -> Command {
        let mut command = self.prepared();
        for fd in std::mem::take(&mut self.inherit) {
            child::inherit(&mut command, fd);
        }
        command
    }

    /// Starts it with piped input and output, for a conversation.
    pub fn converse(mut self) -> Result<Running> {
        self.stdin = Input::Piped;
        self.spawn()
    }

    /// Starts it.
    pub fn spawn(self) -> Result<Running> {
        let name = self.name();
        let failed = |source| GitError::Start { command: name.clone(), source };
        let mut command = self.prepared();
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.stdin(if matches!(self.stdin, Input::Null) { Stdio::null() } else { Stdio::piped() });
        for fd in self.inherit {
            child::inherit(&mut command, fd);
        }
        if self.timeout.is_some() {
            // A group of its own, so that its helpers end with it.
            command.process_group(0);
        }
        let mut child = command.spawn().map_err(failed)?;
        drop(command);
        let stdout = child.stdout.take();
        let mut stdin = child.stdin.take();
        let feeder = match self.stdin {
            Input::Bytes(bytes) => {
                let mut pipe = stdin.take().expect("standard input is piped");
                if bytes.len() <= 4096 {
                    // Fits into any pipe: no thread needed. A command that does not read it is fine.
                    let _ = pipe.write_all(&bytes);
                    None
                } else {
                    Some(std::thread::spawn(move || drop(pipe.write_all(&bytes))))
                }
            }
            _ => None,
        };
        let mut errors = child.stderr.take().expect("standard error is piped");
        let stderr = std::thread::spawn(move || tail(&mut errors));
        let watchdog = self.timeout.map(|limit| Watchdog::start(&child, limit)).transpose().map_err(failed)?;
        Ok(Running { name, child, stdin, stdout, feeder, stderr: Some(stderr), watchdog, waited: false })
    }
}

fn tail(pipe: &mut impl Read) -> Vec<u8> {
    const KEEP: usize = 8 * 1024;
    let (mut kept, mut chunk) = (Vec::new(), [0; 4096]);
    while let Ok(n) = pipe.read(&mut chunk) {
        if n == 0 {
            break;
        }
        kept.extend_from_slice(&chunk[..n]);
        if kept.len() > 2 * KEEP {
            kept.drain(..kept.len() - KEEP);
        }
    }
    kept
}

/// Refuses any status but 0, with the telling line of standard error.
fn check(name: &str, status: ExitStatus, stderr: &[u8]) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    let lines: Vec<&[u8]> = stderr.split(|b| *b == b'\n').filter(|line| !line.is_empty()).collect();
    // The first says what went wrong, later ones who noticed.
    let telling = lines.iter().find(|line| line.starts_with(b"fatal: ") || line.starts_with(b"error: "));
    let line = telling.or(lines.last()).copied().unwrap_or(b"no message");
    let line = line.strip_prefix(b"fatal: ").or_else(|| line.strip_prefix(b"error: ")).unwrap_or(line);
    Err(GitError::Failed {
        command: name.to_owned(),
        status: match (status.code(), status.signal()) {
            (Some(code), _) => format!("status {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "no status".to_owned(),
        },
        code: status.code(),
        stderr: printable(line),
    })
}

/// Ends a process group at a deadline, unless told before that it is not needed.
struct Watchdog {
    cancel: std::sync::mpsc::Sender<()>,
    thread: JoinHandle<bool>,
    limit: Duration,
}

impl Watchdog {
    fn start(child: &Child, limit: Duration) -> io::Result<Self> {
        let group = rustix::process::Pid::from_child(child);
        let deadline = Instant::now() + limit;
        let (cancel, cancelled) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let left = deadline.saturating_duration_since(Instant::now());
            let expired = matches!(cancelled.recv_timeout(left), Err(std::sync::mpsc::RecvTimeoutError::Timeout));
            if expired {
                // The leader is reaped only after this thread was cancelled, so the id is still its own.
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            }
            expired
        });
        Ok(Self { cancel, thread, limit })
    }

    /// Returns whether it had to act.
    fn stop(self) -> bool {
        drop(self.cancel);
        self.thread.join().unwrap_or(false)
    }
}

/// A git command that runs. Dropped before it ended, it is killed.
pub struct Running {
    name: String,
    child: Child,
    /// Its standard input, after [`GitCommand::converse`].
    pub stdin: Option<ChildStdin>,
    /// Its standard output.
    pub stdout: Option<ChildStdout>,
    feeder: Option<JoinHandle<()>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    watchdog: Option<Watchdog>,
    waited: bool,
}

impl Running {
    /// Closes its input, waits for its end and returns status and the tail of standard error.
    pub fn wait(mut self) -> Result<(ExitStatus, Vec<u8>)> {
        self.stdin = None;
        self.stdout = None;
        // Standard error ends with the command (and its helpers); the watchdog bounds both.
        let stderr = self.stderr.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        let expired = self.watchdog_after_exit();
        let status = self.child.wait();
        self.waited = true;
        if let Some(feeder) = self.feeder.take() {
            let _ = feeder.join();
        }
        if let Some(limit) = expired {
            return Err(GitError::Timeout { command: self.name.clone(), seconds: limit.as_secs() });
        }
        let status = status.map_err(|source| GitError::Start { command: self.name.clone(), source })?;
        Ok((status, stderr))
    }

    /// As [`Running::wait`]; any status but 0 is an error.
    pub fn finish(self) -> Result<()> {
        let name = self.name.clone();
        let (status, stderr) = self.wait()?;
        check(&name, status, &stderr)
    }

    /// Stops the watchdog once the process has ended (but is not yet reaped); the limit if it acted.
    fn watchdog_after_exit(&mut self) -> Option<Duration> {
        let watchdog = self.watchdog.take()?;
        let pid = rustix::process::Pid::from_child(&self.child);
        let options = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        while let Err(rustix::io::Errno::INTR) = rustix::process::waitid(rustix::process::WaitId::Pid(pid), options) {}
        let limit = watchdog.limit;
        watchdog.stop().then_some(limit)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.waited {
            return;
        }
        if self.watchdog.is_some() {
            let group = rustix::process::Pid::from_child(&self.child);
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.child.kill();
        if let Some(watchdog) = self.watchdog.take() {
            watchdog.stop();
        }
        let _ = self.child.wait();
    }
}
