//! Every failure as the user sees it: `error:`, `caused by:`, `hint:`, and an exit status.
//! Library errors come in by `From`; this is where they get hints.

use crate::text::escape;
use sandbox_capture::CaptureError;
use sandbox_core::commit_back::CommitBackError;
use sandbox_core::connection::ConnectionError;
use sandbox_core::copy_out::CopyOutError;
use sandbox_core::driver::DriverError;
use sandbox_core::gitdir::GitDirError;
use sandbox_core::host_repo::HostRepoError;
use sandbox_core::host_repo::refound::RefoundError;
use sandbox_core::id::NameError;
use sandbox_core::landing::LandingError;
use sandbox_core::picture::PictureError;
use sandbox_core::prepare::PrepareError;
use sandbox_core::sandbox::SandboxError;
use sandbox_core::served::ServedError;
use sandbox_core::space::{NoRoom, is_full};
use sandbox_core::store::StoreError;
use sandbox_core::view::ViewError;
use sandbox_core::work::WorkError;
use sandbox_drivers::vm::kernel_package::PackageError;
use sandbox_protocol::FailureKind;
use sandbox_supervisor::SuperviseError;
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::io::{self, Write};

/// A failure, ready to be printed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CliError {
    /// What failed, with its object.
    pub message: String,
    /// Why, outermost first.
    pub causes: Vec<String>,
    /// What to do next.
    pub hints: Vec<String>,
    /// The exit status; verbs that run a command turn 128 into 125.
    pub status: u8,
}

/// The result of a verb: its exit status.
pub type Outcome = Result<u8, CliError>;

/// Fatal, in git's manner.
pub const FATAL: u8 = 128;
/// Wrong usage, in git's manner.
pub const USAGE: u8 = 129;

impl CliError {
    /// A failure with a message of its own.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), causes: Vec::new(), hints: Vec::new(), status: FATAL }
    }

    /// The next step.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Why.
    pub fn cause(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    /// Another exit status than 128.
    pub fn status(mut self, status: u8) -> Self {
        self.status = status;
        self
    }

    /// Wrong usage.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(message).status(USAGE)
    }

    /// An I/O failure with what was being done.
    pub fn io(step: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let step = step.into();
        move |error| Self::new(format!("cannot {step}")).cause(error.to_string())
    }

    /// Takes message and causes from an error and its sources.
    pub fn chain(error: &dyn Error) -> Self {
        let mut failure = Self::new(escape(&error.to_string()));
        let mut source = error.source();
        while let Some(cause) = source {
            let text = escape(&cause.to_string());
            if text != failure.message && failure.causes.last() != Some(&text) {
                failure.causes.push(text);
            }
            source = cause.source();
        }
        failure
    }

    /// Prints it on standard error.
    pub fn print(&self) {
        let mut err = io::stderr().lock();
        let _ = writeln!(err, "error: {}", self.message);
        for cause in &self.causes {
            let _ = writeln!(err, "caused by: {cause}");
        }
        let fault = || self.fault().filter(|_| self.hints.is_empty());
        for hint in self.hints.iter().map(String::as_str).chain(self.limit().or_else(fault)) {
            let _ = writeln!(err, "hint: {hint}");
        }
    }

    /// What is wrong with the disk, where nothing more particular is known. Git says the same words as the kernel.
    fn fault(&self) -> Option<&'static str> {
        let said = |words: &str| self.causes.iter().chain([&self.message]).any(|text| text.contains(words));
        FAULTS.iter().find(|(words, _)| said(words)).map(|(_, hint)| *hint)
    }

    /// The limit of the machine that was met, by the error that the kernel has for it and for nothing else.
    fn limit(&self) -> Option<&'static str> {
        let met = |number: &str| {
            let code = format!("(os error {number})");
            self.causes.iter().chain([&self.message]).any(|text| text.contains(&code))
        };
        LIMITS.iter().find(|(number, _)| met(number)).map(|(_, hint)| *hint)
    }
}

/// Error numbers (asm-generic/errno-base.h) that mean that a limit was met, and which.
const LIMITS: [(&str, &str); 3] = [
    ("24", "this process may have no more open files (`ulimit -n`): raise that limit"),
    ("23", "this machine has no more open files: raise sysctl 'fs.file-max', or end what holds them"),
    (
        "11",
        "there may be no more processes: your limit (`ulimit -u`), that of the control group ('pids.max'), or sysctl 'kernel.threads-max'",
    ),
];

/// What the kernel says of a disk, and what to do.
const FAULTS: [(&str, &str); 4] = [
    (
        "No space left on device",
        "make room on that disk, blocks or inodes, and run the command again; nothing was lost",
    ),
    (
        "Disk quota exceeded",
        "your share of that disk is used up: make room in it, and run the command again; nothing was lost",
    ),
    (
        "Read-only file system",
        "the kernel makes a file system read-only after an error (`dmesg`): run the command again when it is writable",
    ),
    ("Input/output error", "the disk fails (`dmesg`): run the command again when it is well; nothing was deleted"),
];

impl From<NameError> for CliError {
    fn from(error: NameError) -> Self {
        Self::chain(&error)
            .hint("a name is 1 to 41 of a-z, 0-9, '.', '_', '-', and starts with a letter or digit")
            .status(USAGE)
    }
}

impl From<StoreError> for CliError {
    fn from(error: StoreError) -> Self {
        let failure = Self::chain(&error);
        match &error {
            StoreError::Newer { .. } => {
                failure.hint("it was written by a newer git-sandbox: upgrade this one; nothing was changed")
            }
            StoreError::Foreign { .. } => {
                failure.hint("`git config --global sandbox.stateDir DIR` names another directory")
            }
            StoreError::Copied { original, .. } => failure.hint(format!(
                "`git sandbox repair` gives this one an id of its own; what both have stays with '{}'",
                escape(&original.to_string_lossy())
            )),
            StoreError::Io { source, .. } => match source.kind() {
                _ if is_full(source) => failure.hint("make room on that disk; nothing was lost"),
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => failure.hint(
                    "the state directory must be writable: `git config --global sandbox.stateDir DIR` names another one",
                ),
                io::ErrorKind::NotADirectory => {
                    failure.hint("`git config --global sandbox.stateDir DIR` names a directory")
                }
                _ => failure,
            },
            StoreError::Damaged { .. } => failure
                .hint("`git sandbox repair` makes it whole where it has a copy, else tells the next step; nothing else is harmed"),
        }
    }
}

/// How room is made, and how less of the disk is kept for the host.
pub const MAKE_ROOM: &str = "make room on that disk (`git sandbox gc`, `git sandbox trash empty`), or keep less of it for the host: `git config --global sandbox.diskReserve SIZE`";

impl From<NoRoom> for CliError {
    fn from(error: NoRoom) -> Self {
        Self::chain(&error).hint(MAKE_ROOM)
    }
}

impl From<ConnectionError> for CliError {
    fn from(error: ConnectionError) -> Self {
        let failure = Self::chain(&error);
        match &error {
            ConnectionError::Closed => failure.hint("`git sandbox list` tells how it is now"),
            ConnectionError::Protocol(_) | ConnectionError::Version { .. } => {
                failure.hint("it was started by another version of git-sandbox: use that one, or `git sandbox stop` and start it again")
            }
            ConnectionError::Refused(refused) => match refused.kind {
                FailureKind::NotFound => failure.status(127),
                FailureKind::CannotExecute => failure.status(126),
                _ => failure,
            },
            ConnectionError::TooLong => failure.hint("the command line of a session has a limit: put it into a script"),
            ConnectionError::TooMuch(_) | ConnectionError::Late(_) | ConnectionError::Io(_) => failure,
        }
    }
}

impl From<SandboxError> for CliError {
    fn from(error: SandboxError) -> Self {
        match error {
            SandboxError::Store(error) => error.into(),
            SandboxError::Connection(error) => error.into(),
            error => {
                let failure = Self::chain(&error);
                match &error {
                    SandboxError::Unknown { name, known } => {
                        let near = known
                            .iter()
                            .map(|other| (strsim::damerau_levenshtein(name, other), other))
                            .filter(|(distance, _)| *distance <= (name.len() / 3).max(1))
                            .min();
                        match near {
                            Some((_, other)) => {
                                failure.hint(format!("did you mean '{other}'? `git sandbox list` shows them all"))
                            }
                            None if known.is_empty() => failure.hint("`git sandbox spawn` makes one"),
                            None => failure.hint("`git sandbox list` shows them all"),
                        }
                    }
                    SandboxError::Ambiguous { .. } => failure.hint("run this inside the repository that is meant"),
                    SandboxError::NotRunning { name } => failure.hint(format!("`git sandbox start {name}` starts it")),
                    SandboxError::Running { name } => failure.hint(format!("`git sandbox stop {name}` stops it")),
                    SandboxError::Busy { .. } => failure.hint("try again when that command has ended"),
                    SandboxError::Taken { .. } => failure.hint("`--as NAME` gives it another one").status(1),
                    SandboxError::Lingering { pid, .. } => failure.hint(format!(
                        "it may hang in the kernel (a dead network file system?): see /proc/{pid}/stack"
                    )),
                    SandboxError::Vanished { name, .. } => failure.hint(format!(
                        "its own changes are still there: `git sandbox rescue {name} --to DIR` copies them"
                    )),
                    SandboxError::Store(_) | SandboxError::Connection(_) | SandboxError::Io { .. } => failure,
                }
            }
        }
    }
}

impl From<DriverError> for CliError {
    fn from(error: DriverError) -> Self {
        let failure = Self::chain(&error);
        match &error {
            DriverError::UserNamespace { apparmor: true, .. } => failure
                .hint("AppArmor forbids user namespaces to this program: `git sandbox setup --apparmor` prints the profile and the one `sudo` command that allows it"),
            DriverError::UserNamespace { source, .. } if source.raw_os_error() == Some(28) => {
                failure.hint("this is the namespace limit, not the disk: raise sysctl 'user.max_user_namespaces'")
            }
            DriverError::UserNamespace { .. } => failure.hint(
                "user namespaces may be switched off: `git sandbox doctor` tells how to allow them; in Docker add `--security-opt seccomp=unconfined --security-opt systempaths=unconfined`",
            ),
            DriverError::Overlay { .. } => failure.hint(
                "the state directory must be on a local file system such as ext4, XFS or Btrfs: `git config --global sandbox.stateDir DIR` names another place; `--view copy` goes without an overlay",
            ),
            DriverError::Weak { layer, .. } => {
                failure.hint(format!("`--allow-weak={layer}` goes on without it, at your risk"))
            }
            DriverError::Vanished { .. } => failure.hint("`git sandbox doctor` tells what a sandbox needs"),
            DriverError::Unsupported { .. } => failure.hint("`git sandbox doctor` shows what each driver can do here"),
            DriverError::NotReady { .. } | DriverError::Step { .. } => {
                failure.hint("`git sandbox doctor` looks at what this machine allows")
            }
        }
    }
}

impl From<PackageError> for CliError {
    fn from(error: PackageError) -> Self {
        let failure = Self::chain(&error);
        match &error {
            PackageError::NoManager => {
                failure.hint("sandbox.vm.kernel names a kernel image, with its modules in '/lib/modules'")
            }
            PackageError::NoPackage => failure.hint("`sudo apt-get update` reads the lists of packages"),
            PackageError::Command { .. } => failure
                .hint("`sudo apt-get update` if the lists are old; else without a network there is nothing to be had"),
            PackageError::NoImage { .. } | PackageError::Io { .. } => failure,
        }
    }
}

impl From<SuperviseError> for CliError {
    fn from(error: SuperviseError) -> Self {
        match error {
            SuperviseError::Driver(error) => error.into(),
            SuperviseError::Store(error) => error.into(),
            SuperviseError::Io { .. } => Self::chain(&error),
        }
    }
}

impl From<sandbox_git::GitError> for CliError {
    fn from(error: sandbox_git::GitError) -> Self {
        use sandbox_git::GitError;
        let failure = Self::chain(&error);
        match &error {
            GitError::Missing => failure.hint("install git 2.39 or newer, or put it on PATH"),
            GitError::TooOld { .. } => failure.hint("install a newer git, or put one earlier on PATH"),
            _ => failure,
        }
    }
}

impl From<HostRepoError> for CliError {
    fn from(error: HostRepoError) -> Self {
        let failure = Self::chain(&error);
        match error {
            HostRepoError::Git(error) => error.into(),
            HostRepoError::Store(error) => error.into(),
            HostRepoError::NotARepository { .. } => failure.hint("`cd` into a repository, or make one with `git init`"),
            HostRepoError::DubiousOwnership { path } => failure.hint(format!(
                "if you trust it: `git config --global --add safe.directory '{}'`",
                crate::text::escape(&path.to_string_lossy())
            )),
            HostRepoError::Bare { .. } => failure.hint("`git sandbox spawn --from REV` takes the files of a revision"),
            HostRepoError::InsideGitDir { .. } => failure.hint("`cd` into the working tree"),
            HostRepoError::Busy { lock } => failure.hint(format!(
                "wait for that command; if none runs any more, remove '{}'",
                crate::text::escape(&lock.to_string_lossy())
            )),
            HostRepoError::Io { .. } => failure,
        }
    }
}

impl From<GitDirError> for CliError {
    fn from(error: GitDirError) -> Self {
        let failure = Self::chain(&error);
        match error {
            GitDirError::Host(error) => error.into(),
            GitDirError::Git(error) => error.into(),
            GitDirError::Store(error) => error.into(),
            GitDirError::NoSuchCommit { rev } if rev == "HEAD" => Self::new("there is no commit yet")
                .hint("`git sandbox spawn` without --clean takes the files as they are"),
            GitDirError::NoSuchCommit { .. } => failure.hint("`git log --oneline --all` shows what there is"),
            GitDirError::NoSuchRef { .. } => failure.hint("`git for-each-ref` shows what there is"),
            GitDirError::MissingObject { .. } => failure.hint("`git fsck` tells more: the repository is damaged"),
            GitDirError::Unsettled { .. } => {
                failure.hint("another git command is at work: try again when it has ended")
            }
            GitDirError::Refs(_) | GitDirError::Index(_) => failure.hint("`git status` and `git fsck` tell more"),
            GitDirError::View(ViewError::NoRoom(error)) => error.into(),
            GitDirError::View(_) if failure.fault().is_some_and(|hint| hint == FAULTS[0].1 || hint == FAULTS[1].1) => {
                failure.hint("make room on the disk of the state directory, or `git config --global sandbox.stateDir DIR`; nothing is left half made")
            }
            GitDirError::View(_) => failure.hint("`git fsck` tells whether the repository is damaged"),
            GitDirError::BadPath { .. } | GitDirError::Io { .. } => failure,
        }
    }
}

impl From<PrepareError> for CliError {
    fn from(error: PrepareError) -> Self {
        let failure = Self::chain(&error);
        match error {
            PrepareError::Host(error) => error.into(),
            PrepareError::GitDir(error) => error.into(),
            PrepareError::Store(error) => error.into(),
            PrepareError::NoRoom(error) => error.into(),
            PrepareError::NameTaken { name } => {
                failure.hint(format!("`git sandbox shell {name}` opens a shell in it; `git sandbox drop {name}` removes it"))
            }
            PrepareError::NameLeaving { .. } => {
                failure.hint("try again when that has ended, or take another name; `git sandbox repair` finishes one that was cut off")
            }
            PrepareError::NameTakenThere { .. } => failure.hint("take another name: a sandbox has the same in each of its repositories"),
            PrepareError::Capture(CaptureError::Io { ref source, .. }) | PrepareError::Io { ref source, .. }
                if is_full(source) =>
            {
                failure.hint("make room on the disk of the state directory, or `git config --global sandbox.stateDir DIR`; nothing is left half made")
            }
            PrepareError::Copy(ref error) if crate::view::is_full(error) => {
                failure.hint("make room on the disk of the state directory, or `git config --global sandbox.stateDir DIR`; nothing is left half made")
            }
            PrepareError::Capture(_) | PrepareError::Copy(_) | PrepareError::Io { .. } => failure,
        }
    }
}

/// What to do about a host repository that is not where it was.
pub const HOST_GONE: &str = "it was moved or deleted: in its new place, any `git sandbox` command finds its sandboxes again, or `git sandbox repair --repo NEW` does; `git sandbox bundle NAME FILE` takes out the commits";

/// The host repository of a sandbox is not where it was.
fn host_of_sandbox(error: HostRepoError) -> CliError {
    match error {
        HostRepoError::NotARepository { .. } | HostRepoError::Io { .. } => CliError::chain(&error).hint(HOST_GONE),
        error => error.into(),
    }
}

impl From<RefoundError> for CliError {
    fn from(error: RefoundError) -> Self {
        let failure = Self::chain(&error).status(1);
        match error {
            RefoundError::Host(error) => error.into(),
            RefoundError::Store(error) => error.into(),
            RefoundError::Sandbox(error) => error.into(),
            RefoundError::Git(error) => error.into(),
            RefoundError::Copy { .. } => failure.hint("delete or rename that one first, or use it"),
            RefoundError::OtherId { .. } => {
                failure.hint("only a repository without sandboxes of its own can take the place of a missing one")
            }
            RefoundError::NoneMissing => {
                failure.hint("`git sandbox list -A` shows all sandboxes with their repositories")
            }
            RefoundError::Another { .. } | RefoundError::NothingToCompare { .. } => failure
                .hint("`git sandbox bundle NAME FILE` takes out the commits of a sandbox whose repository is gone"),
            RefoundError::Ambiguous { .. } => {
                failure.hint(r#"in it, `echo ID >"$(git rev-parse --git-common-dir)/sandbox-id"` says which"#)
            }
            RefoundError::Refs(_) => failure.hint("`git fsck` tells whether the repository is damaged"),
        }
    }
}

impl From<WorkError> for CliError {
    fn from(error: WorkError) -> Self {
        match error {
            WorkError::Sandbox(error) => error.into(),
            WorkError::Host(error) => host_of_sandbox(error),
            WorkError::AnotherRepository { ref path, ref name } => Self::chain(&error)
                .hint(format!(
                    "if it is the same one from a backup or a clone: `git sandbox repair --repo '{}'`",
                    escape(&path.to_string_lossy())
                ))
                .hint(format!("else `git sandbox bundle {name} FILE` takes out the commits")),
            WorkError::Git(error) => error.into(),
            error @ WorkError::NotSeen { .. } => {
                Self::chain(&error).hint("`git sandbox diff --uncommitted NAME` asks it")
            }
            error @ (WorkError::Changes(_) | WorkError::Captured(_)) => Self::chain(&error).hint(
                "`git sandbox show NAME` names the directory of its own files; `git sandbox drop --force NAME` moves it to the trash",
            ),
        }
    }
}

impl From<PictureError> for CliError {
    fn from(error: PictureError) -> Self {
        match error {
            PictureError::Sandbox(error) => error.into(),
            PictureError::Store(error) => error.into(),
            error @ (PictureError::Asked { .. } | PictureError::Said { .. }) => Self::chain(&error)
                .hint("`git sandbox shell NAME` looks from inside; `git sandbox drop --force NAME` keeps all of it in the trash"),
            error @ PictureError::Io { .. } => Self::chain(&error),
        }
    }
}

impl From<CopyOutError> for CliError {
    fn from(error: CopyOutError) -> Self {
        let failure = Self::chain(&error);
        match error {
            CopyOutError::Sandbox(error) => error.into(),
            CopyOutError::Missing { .. } => failure.hint("paths are relative to the top of the working tree").status(1),
            CopyOutError::TooLarge { .. } => failure.hint("`--max-size SIZE` allows more"),
            CopyOutError::Io { .. } => failure,
        }
    }
}

impl From<CommitBackError> for CliError {
    fn from(error: CommitBackError) -> Self {
        let failure = Self::chain(&error);
        match error {
            CommitBackError::Sandbox(error) => error.into(),
            CommitBackError::Work(error) => error.into(),
            CommitBackError::Host(error) => host_of_sandbox(error),
            CommitBackError::Store(error) => error.into(),
            CommitBackError::Landing(error) => match error {
                LandingError::Store(error) => error.into(),
                LandingError::Changed(_) | LandingError::Locked(_) => {
                    failure.hint("nothing was moved; run the command again")
                }
                LandingError::TooLarge(_) => failure.hint("the commits stay in the sandbox; nothing was moved"),
                LandingError::InTheWay(_) => failure.hint("`git for-each-ref refs/sandbox` shows what is there"),
                LandingError::NoRoom(_) => {
                    failure.hint("make room on that disk and run the command again; the commits stay in the sandbox")
                }
                LandingError::Io { ref source, .. } if is_full(source) => {
                    failure.hint("make room on that disk and run the command again; the commits stay in the sandbox")
                }
                LandingError::Git(_) | LandingError::Connect(_) | LandingError::Io { .. } => failure,
            },
            CommitBackError::Foreign { name } => failure.hint(format!(
                "something else made this ref: `git branch SAVED {0} && git update-ref -d {0}` moves it out of the way",
                escape(&name)
            )),
            CommitBackError::Earlier { name } => failure.hint(format!(
                "`git branch SAVED refs/sandbox/{name}` keeps them; then run the command again"
            )),
            CommitBackError::Elsewhere { .. } => failure.hint(
                "it may be of another user or of another `GIT_SANDBOX_STATE`; `git sandbox repair` tells how to remove its refs when it is gone",
            ),
            CommitBackError::State { name, .. } => failure.hint(format!(
                "`git sandbox exec {name} -- git status` shows what git says inside; its files are untouched"
            )),
            CommitBackError::NoView { .. } => failure.hint("the sandbox's own files are untouched"),
            CommitBackError::Connection(_)
            | CommitBackError::Refs(_)
            | CommitBackError::Granted(_)
            | CommitBackError::View(_)
            | CommitBackError::Git(_)
            | CommitBackError::Lock { .. } => failure,
        }
    }
}

impl From<ServedError> for CliError {
    fn from(error: ServedError) -> Self {
        let failure = Self::chain(&error);
        match error {
            ServedError::Sandbox(error) => error.into(),
            ServedError::Work(error) => error.into(),
            ServedError::Host(error) => host_of_sandbox(error),
            ServedError::Store(error) => error.into(),
            _ => failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_disk_has_a_next_step_where_nothing_better_is_known() {
        let of = |cause: &str| CliError::new("cannot write 'x'").cause(cause).fault();
        let said = [
            "No space left on device (os error 28)",
            "Disk quota exceeded (os error 122)",
            "Read-only file system (os error 30)",
            // In the words of git.
            "fatal: unable to write file: Input/output error",
        ];
        for (cause, (_, hint)) in said.iter().zip(FAULTS) {
            assert_eq!(of(cause), Some(hint), "{cause}");
        }
        assert_eq!(of("Permission denied (os error 13)"), None);
    }

    #[test]
    fn a_full_disk_is_one_by_quota_too() {
        for number in [28, 122] {
            let full = || io::Error::from_raw_os_error(number);
            let path = || std::path::PathBuf::from("/s");
            let store = StoreError::Io { action: "write", path: path(), source: full() };
            assert_eq!(CliError::from(store).hints, ["make room on that disk; nothing was lost"]);
            let prepare = PrepareError::Io { action: "create", path: path(), source: full() };
            let half = "make room on the disk of the state directory, or `git config --global sandbox.stateDir DIR`; nothing is left half made";
            assert_eq!(CliError::from(prepare).hints, [half]);
            let landing = LandingError::Io { action: "write", path: path(), source: full() };
            let hints = CliError::from(CommitBackError::Landing(landing)).hints;
            assert_eq!(hints, ["make room on that disk and run the command again; the commits stay in the sandbox"]);
        }
    }
}
