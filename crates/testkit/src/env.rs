//! The hermetic environment of one test.

use crate::filter::Filters;
use crate::gits::{Git, gits};
use crate::output::Output;
use crate::process::{self, Child};
use crate::repo::Repo;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The longest that one command of a test may take.
/// Emulated guests take a while, on a machine where everything else runs too.
const LIMIT: Duration = Duration::from_secs(240);

/// The host's clock for commits, in Unix seconds: 2023-11-14, and a minute more each time.
const EPOCH: u64 = 1_700_000_000;

/// A machine of its own for one test: home, state, git configuration, clock. Dropping it ends
/// every sandbox that the test left and removes the directory.
pub struct TestEnv {
    root: PathBuf,
    temp: Option<tempfile::TempDir>,
    git: Git,
    product: PathBuf,
    clock: AtomicU64,
    filters: Filters,
}

impl TestEnv {
    /// Makes the environment with the git that `TESTKIT_GIT` names, else the first one.
    ///
    /// # Panics
    /// If there is no git, or no temporary directory can be made.
    #[expect(clippy::new_without_default, reason = "making an environment has effects")]
    pub fn new() -> Self {
        let git = match std::env::var_os("TESTKIT_GIT") {
            Some(path) => Git::probe(Path::new(&path)).expect("TESTKIT_GIT names a git"),
            None => gits().into_iter().next().expect("the tests need a git"),
        };
        Self::with_git(git)
    }

    /// Makes the environment with this git first on `PATH`.
    ///
    /// # Panics
    /// If no temporary directory can be made.
    pub fn with_git(git: Git) -> Self {
        Self::below(&std::env::temp_dir(), git, product())
    }

    /// Makes the environment in a new directory below `base`, for this git and this program.
    ///
    /// # Panics
    /// If no temporary directory can be made.
    pub fn below(base: &Path, git: Git, product: PathBuf) -> Self {
        let temp = tempfile::Builder::new().prefix("gs-test-").tempdir_in(base).expect("a temporary directory");
        let root = temp.path().canonicalize().expect("it was just made");
        let env =
            Self { git, product, clock: AtomicU64::new(EPOCH), filters: Filters::default(), temp: Some(temp), root };
        for dir in ["home/src", "state", "cache", "config", "bin", "tmp"] {
            fs::create_dir_all(env.root.join(dir)).expect("the directory is new");
        }
        for name in ["git-sandbox", "git-remote-sandbox"] {
            symlink(&env.product, env.root.join("bin").join(name)).expect("the directory is new");
        }
        let config = "[user]\n\tname = Dev\n\temail = dev@example.com\n[init]\n\tdefaultBranch = main\n[gc]\n\tauto = 0\n\
             [maintenance]\n\tauto = false\n";
        fs::write(env.home().join(".gitconfig"), config).expect("the directory is new");
        env.filters.path(&env.root, "[ROOT]");
        env.filters.path(&env.home(), "[HOME]");
        env.filters.path(&env.state(), "[STATE]");
        env
    }

    /// The directory that holds everything.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `$HOME`.
    pub fn home(&self) -> PathBuf {
        self.root.join("home")
    }

    /// The product's state directory.
    pub fn state(&self) -> PathBuf {
        self.root.join("state/git-sandbox")
    }

    /// The git that is first on `PATH`.
    pub fn git_used(&self) -> &Git {
        &self.git
    }

    /// Whether the git of this environment is at least `major.minor`.
    pub fn git_is_at_least(&self, major: u32, minor: u32) -> bool {
        self.git.version >= (major, minor, 0)
    }

    /// What is replaced in the output of commands.
    pub fn filters(&self) -> &Filters {
        &self.filters
    }

    /// Returns a repository at `home/src/<name>`, which need not exist yet; its path is shown
    /// as `[REPO]` (the first one) or `[REPO:<name>]`.
    pub fn repo_at(&self, name: &str) -> Repo<'_> {
        let src = self.home().join("src");
        let first = fs::read_dir(&src).is_ok_and(|mut entries| entries.next().is_none());
        let dir = src.join(name);
        let word = if first { "[REPO]".to_owned() } else { format!("[REPO:{name}]") };
        self.filters.path(&dir, &word);
        Repo::new(self, dir)
    }

    /// Returns a command with exactly this environment.
    pub fn command(&self, program: impl Into<OsString>, dir: &Path) -> Command {
        let mut command = Command::new(program.into());
        let now = self.clock.fetch_add(60, Ordering::Relaxed);
        command.current_dir(dir).env_clear();
        command
            .env("HOME", self.home())
            .env("USER", user_name())
            .env("LOGNAME", user_name())
            .env("SHELL", "/bin/sh")
            .env("PATH", self.path())
            .env("PWD", dir)
            .env("TMPDIR", self.root.join("tmp"))
            .env("XDG_STATE_HOME", self.root.join("state"))
            .env("XDG_CACHE_HOME", self.root.join("cache"))
            .env("XDG_CONFIG_HOME", self.root.join("config"))
            .env("LC_ALL", "C.UTF-8")
            .env("LANG", "C.UTF-8")
            .env("TZ", "UTC")
            .env("TERM", "dumb")
            .env("EDITOR", "true")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_CEILING_DIRECTORIES", &self.root)
            .env("GIT_AUTHOR_DATE", format!("{now} +0000"))
            .env("GIT_COMMITTER_DATE", format!("{now} +0000"));
        command
    }

    /// `PATH`: the chosen git's directory, the product, the standard directories.
    pub fn path(&self) -> OsString {
        let own = self.git.path.parent().unwrap_or(Path::new("/usr/bin")).to_owned();
        let standard = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin"];
        let dirs = [own, self.root.join("bin")].into_iter().chain(standard.map(PathBuf::from));
        std::env::join_paths(dirs).expect("none of these has a colon")
    }

    /// Runs a command in this environment to its end.
    ///
    /// # Panics
    /// If it cannot be run or does not end.
    #[track_caller]
    pub fn run(&self, command: &mut Command) -> Output {
        self.run_with_input(command, b"")
    }

    /// Runs a command with this standard input.
    ///
    /// # Panics
    /// If it cannot be run or does not end.
    #[track_caller]
    pub fn run_with_input(&self, command: &mut Command, input: &[u8]) -> Output {
        let text = process::words(command);
        let raw = process::run(command, input, LIMIT);
        Output::new(text, raw, |text| self.filters.apply(text))
    }

    /// Runs git on the host.
    ///
    /// # Panics
    /// If git cannot be run.
    #[track_caller]
    pub fn git(&self, dir: &Path, args: &[&str]) -> Output {
        self.run(self.command(&self.git.path, dir).args(args))
    }

    /// Runs the product in `dir`.
    ///
    /// # Panics
    /// If the product was not built, or does not end.
    #[track_caller]
    pub fn sandbox(&self, dir: &Path, args: &[&str]) -> Output {
        self.run(&mut self.sandbox_command(dir, args))
    }

    /// Returns the product as a command, to be run by the caller.
    ///
    /// # Panics
    /// If the product was not built.
    #[track_caller]
    pub fn sandbox_command(&self, dir: &Path, args: &[&str]) -> Command {
        assert!(
            self.product.is_file(),
            "no program at '{}': run `cargo build` first, or set GIT_SANDBOX_BIN",
            self.product.display()
        );
        let mut command = self.command(self.root.join("bin/git-sandbox"), dir);
        command.args(args);
        command
    }

    /// Starts the product in the background.
    ///
    /// # Panics
    /// If the product was not built.
    #[track_caller]
    pub fn start(&self, dir: &Path, args: &[&str]) -> Child {
        Child::spawn(&mut self.sandbox_command(dir, args))
    }

    /// Returns the pids of supervisors and first processes that the state directory names and
    /// that still are what it says they are.
    pub fn live_processes(&self) -> Vec<(String, u32)> {
        let mut live = Vec::new();
        for dir in fs::read_dir(self.state().join("sandboxes")).into_iter().flatten().flatten() {
            let Ok(text) = fs::read(dir.path().join("status.json")) else { continue };
            let Ok(status) = serde_json::from_slice::<serde_json::Value>(&text) else { continue };
            for role in ["supervisor", "init"] {
                let pid = status[role]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
                let Some(pid) = pid else { continue };
                if start_time(pid).is_some_and(|now| Some(now) == status[role]["start_time"].as_u64()) {
                    live.push((role.to_owned(), pid));
                }
            }
        }
        live
    }

    fn end_sandboxes(&self) {
        let any = |dir: &str| fs::read_dir(self.state().join(dir)).is_ok_and(|mut all| all.next().is_some());
        if any("sandboxes") && self.product.is_file() {
            let all = fs::read_dir(self.home().join("src")).into_iter().flatten().flatten();
            // A test may have put files beside them.
            for repo in all.filter(|entry| entry.path().is_dir()) {
                let mut command = self.sandbox_command(&self.home(), &["drop", "--all", "--force"]);
                let mut child = Child::spawn(
                    command
                        .current_dir(repo.path())
                        .stdin(std::process::Stdio::null())
                        .stdout(std::process::Stdio::null())
                        .stderr(std::process::Stdio::null()),
                );
                let start = std::time::Instant::now();
                while child.try_ended().is_none() && start.elapsed() < Duration::from_secs(20) {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
        for (_, pid) in self.live_processes() {
            if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let start = std::time::Instant::now();
        while !self.live_processes().is_empty() && start.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for TestEnv {
    fn drop(&mut self) {
        self.end_sandboxes();
        if std::env::var_os("TESTKIT_KEEP").is_some() {
            if let Some(temp) = self.temp.take() {
                println!("kept: {}", temp.keep().display());
            }
            return;
        }
        // Work directories of overlayfs have mode 000, and a test may have made more of these.
        open_up(&self.root);
    }
}

/// Makes every directory below `dir` one that its owner can empty.
fn open_up(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let mode = entry.metadata().map_or(0, |meta| meta.permissions().mode());
            if mode & 0o700 != 0o700 {
                let _ = fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o700));
            }
            open_up(&entry.path());
        }
    }
}

/// The program under test: `GIT_SANDBOX_BIN`, else the one that cargo put beside the directory
/// of this test's executable.
fn product() -> PathBuf {
    if let Some(path) = std::env::var_os("GIT_SANDBOX_BIN") {
        return path.into();
    }
    let here = std::env::current_exe().expect("/proc is mounted");
    here.parent().and_then(Path::parent).unwrap_or(Path::new("/")).join("git-sandbox")
}

/// The user's login name, from the environment or the user id: the programs under test want one.
fn user_name() -> String {
    let uid = rustix::process::geteuid().as_raw();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let line = passwd.lines().find(|line| line.split(':').nth(2) == Some(&uid.to_string()));
    line.and_then(|line| line.split(':').next()).map_or_else(|| format!("u{uid}"), str::to_owned)
}

/// Field 22 of `/proc/<pid>/stat`; `None` when the process is gone or a zombie.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (state != "Z" && state != "X").then(|| fields.nth(18)?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_machine_shows_through() {
        let env = TestEnv::new();
        let config = env.git(env.root(), &["config", "--list", "--show-origin"]).ok();
        assert!(config.lines().all(|line| line.contains(&*env.home().to_string_lossy())), "{config}");
        let seen = env.run(&mut env.command("env", env.root())).ok();
        assert!(!seen.contains("CARGO"), "{seen}");
    }

    #[test]
    fn the_chosen_git_comes_first() {
        for git in gits() {
            let env = TestEnv::with_git(git.clone());
            let version = env.run(env.command("sh", env.root()).args(["-c", "git version"])).ok();
            let (major, minor, patch) = git.version;
            assert_eq!(version.trim_end(), format!("git version {major}.{minor}.{patch}"));
        }
    }

    #[test]
    fn nothing_stays_behind() {
        let env = TestEnv::new();
        let root = env.root().to_owned();
        let closed = env.home().join("a/b");
        fs::create_dir_all(closed.join("c")).unwrap();
        fs::set_permissions(closed.join("c"), fs::Permissions::from_mode(0o0)).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o0)).unwrap();
        drop(env);
        assert!(!root.exists());
    }

    #[test]
    fn output_is_one_text() {
        let env = TestEnv::new();
        let output = env.run(env.command("sh", &env.home()).args(["-c", "pwd; echo oops >&2; exit 3"]));
        assert_eq!(output.to_string(), "[HOME]\n---- stderr\noops\n---- status 3\n");
    }
}
