//! The user's repository: where it is, what kind it is, and which id it has in the store.
//!
//! ```text
//!   <top>/.git ──────► git dir (of this work tree) ──commondir──► common dir (of all work trees)
//!                                                                    sandbox-id   32 hex digits
//!   store: repos/<id>/repo.json  { common_dir, dev, ino }
//!
//!   id, same inode                     → it
//!   id, other inode, old place is gone → moved: the record follows
//!   id, other inode, old place is there→ a copy: it gets an id of its own
//!   no id, or another one              → another repository, whatever its path ([`refound`])
//! ```

mod plain;
pub mod refound;

use crate::id::RepoId;
use crate::record::RepoRecord;
use crate::store::{self, RepoDir, Store, StoreError};
use sandbox_git::{Git, GitCommand, GitError, ObjectFormat, printable};
use sandbox_sys::lock::FileLock;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A repository of the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRepo {
    top: Option<PathBuf>,
    git_dir: PathBuf,
    common_dir: PathBuf,
    format: ObjectFormat,
    bare: bool,
    owner: (u32, u32),
}

/// Why there is no repository to work with.
#[derive(Debug, thiserror::Error)]
pub enum HostRepoError {
    /// Git found none.
    #[error("not a git repository: '{path}'", path = path.display())]
    NotARepository {
        /// Where it was looked for.
        path: PathBuf,
        /// Git's own words.
        said: String,
    },
    /// It belongs to somebody else, and git was not told to trust it.
    #[error("'{path}' belongs to another user", path = path.display())]
    DubiousOwnership {
        /// What `git config --global --add safe.directory` wants to hear.
        path: PathBuf,
    },
    /// It has no work tree.
    #[error("'{path}' is a bare repository", path = path.display())]
    Bare {
        /// The git directory.
        path: PathBuf,
    },
    /// The current directory is inside `.git`.
    #[error("'{path}' is inside a git directory, not in a work tree", path = path.display())]
    InsideGitDir {
        /// The git directory.
        path: PathBuf,
    },
    /// A git operation holds its lock for longer than one can wait.
    #[error("another git command is at work in this repository: '{lock}' exists", lock = lock.display())]
    Busy {
        /// Its lock.
        lock: PathBuf,
    },
    /// Git is missing, too old, or failed.
    #[error("cannot ask git about the repository")]
    Git(#[from] GitError),
    /// The state directory.
    #[error("cannot use the state directory")]
    Store(#[from] StoreError),
    /// A file of the repository.
    #[error("cannot {action} '{path}'", path = path.display())]
    Io {
        /// `read`, `write`, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

type Result<T> = std::result::Result<T, HostRepoError>;

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HostRepoError {
    let path = path.to_owned();
    move |source| HostRepoError::Io { action, path, source }
}

impl HostRepo {
    /// Finds the repository that `cwd` is in, as git finds it (`GIT_DIR`, ceilings and trusted
    /// owners included). A usual one is found without a process.
    pub fn discover(git: &Git, cwd: &Path) -> Result<Self> {
        // Whom sudo came from, and where the user's own configuration is, say nothing about a layout.
        let harmless = ["SUDO_UID", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM"];
        if git.env().discovery.iter().all(|(name, _)| harmless.iter().any(|known| name == known))
            && let Some(top) = plain::top(cwd)
        {
            let git_dir = top.join(".git");
            let owner = owner(&git_dir)?;
            let (common_dir, format) = (git_dir.clone(), ObjectFormat::Sha1);
            return Ok(Self { top: Some(top), git_dir, common_dir, format, bare: false, owner });
        }
        Self::ask(git, cwd)
    }

    /// [`HostRepo::discover`] by one git process, whatever the repository is.
    pub fn ask(git: &Git, cwd: &Path) -> Result<Self> {
        // The work tree comes last: without one git stops there, after it has answered the rest.
        let questions = [
            "rev-parse",
            "--path-format=absolute",
            "--is-bare-repository",
            "--show-object-format",
            "--is-inside-git-dir",
            "--git-dir",
            "--git-common-dir",
            "--show-toplevel",
        ];
        let (status, out) = git.user(cwd).args(questions).try_output()?;
        let answers: Vec<&[u8]> = out.stdout.split(|b| *b == b'\n').filter(|line| !line.is_empty()).collect();
        if answers.len() < 5 {
            return Err(refusal(cwd, &out.stderr));
        }
        let path = |bytes: &[u8]| PathBuf::from(std::ffi::OsStr::from_bytes(bytes));
        let canonical = |path: PathBuf| fs::canonicalize(&path).map_err(failed("find", &path));
        let unexpected = || GitError::Unexpected { command: "git rev-parse".into(), what: printable(&out.stdout) };
        let format = std::str::from_utf8(answers[1]).ok().and_then(|text| text.parse().ok()).ok_or_else(unexpected)?;
        let common_dir = canonical(path(answers[4]))?;
        Ok(Self {
            top: answers.get(5).filter(|_| status.success()).map(|top| canonical(path(top))).transpose()?,
            git_dir: canonical(path(answers[3]))?,
            owner: owner(&common_dir)?,
            common_dir,
            format,
            bare: answers[0] == b"true",
        })
    }

    /// Opens the repository whose work tree's top is exactly `top`: a nested one or a submodule
    /// inside a repository that is already trusted. No process.
    pub fn nested(top: &Path) -> Result<Self> {
        let dot_git = top.join(".git");
        let none = |said: String| HostRepoError::NotARepository { path: top.to_owned(), said };
        let metadata = fs::symlink_metadata(&dot_git).map_err(|error| none(error.to_string()))?;
        let git_dir = if metadata.is_file() {
            let text = fs::read(&dot_git).map_err(failed("read", &dot_git))?;
            let target = text.strip_prefix(b"gitdir:").ok_or_else(|| none("not a gitfile".into()))?;
            top.join(std::ffi::OsStr::from_bytes(target.trim_ascii()))
        } else {
            dot_git
        };
        let mut repo = Self::from_git_dir(&git_dir)?;
        repo.top = Some(fs::canonicalize(top).map_err(failed("find", top))?);
        repo.bare = false;
        Ok(repo)
    }

    /// Opens a repository by its git directory, without its work tree. No process.
    pub fn from_git_dir(git_dir: &Path) -> Result<Self> {
        let none = |said: &str| HostRepoError::NotARepository { path: git_dir.to_owned(), said: said.into() };
        let git_dir = fs::canonicalize(git_dir).map_err(|_| none("no such directory"))?;
        let common_dir = match fs::read(git_dir.join("commondir")) {
            Ok(text) => {
                let dir = git_dir.join(std::ffi::OsStr::from_bytes(text.trim_ascii()));
                fs::canonicalize(&dir).map_err(failed("find", &dir))?
            }
            Err(_) => git_dir.clone(),
        };
        if !common_dir.join("objects").is_dir() || !git_dir.join("HEAD").exists() {
            return Err(none("no HEAD or no objects in it"));
        }
        let config = fs::read(common_dir.join("config")).unwrap_or_default();
        let sha256 = String::from_utf8_lossy(&config).lines().any(|line| {
            let line: String = line.chars().filter(|c| !c.is_whitespace() && *c != '"').collect();
            line.eq_ignore_ascii_case("objectformat=sha256")
        });
        Ok(Self {
            top: None,
            owner: owner(&common_dir)?,
            git_dir,
            common_dir,
            format: if sha256 { ObjectFormat::Sha256 } else { ObjectFormat::Sha1 },
            bare: true,
        })
    }

    /// The top of the work tree, canonical; `None` in a bare repository or inside `.git`.
    pub fn top(&self) -> Option<&Path> {
        self.top.as_deref()
    }

    /// The top of the work tree, or why there is none.
    pub fn worktree(&self) -> Result<&Path> {
        match (&self.top, self.bare) {
            (Some(top), _) => Ok(top),
            (None, true) => Err(HostRepoError::Bare { path: self.git_dir.clone() }),
            (None, false) => Err(HostRepoError::InsideGitDir { path: self.git_dir.clone() }),
        }
    }

    /// The top of the work tree, else the git directory: where git can be run.
    pub fn top_or_gitdir(&self) -> &Path {
        self.top.as_deref().unwrap_or(&self.git_dir)
    }

    /// The git directory of this work tree, canonical.
    pub fn git_dir(&self) -> &Path {
        &self.git_dir
    }

    /// The git directory that all work trees share, canonical.
    pub fn common_dir(&self) -> &Path {
        &self.common_dir
    }

    /// Which hash function names its objects.
    pub fn format(&self) -> ObjectFormat {
        self.format
    }

    /// It has no work tree.
    pub fn is_bare(&self) -> bool {
        self.bare
    }

    /// It is a work tree made by `git worktree add`.
    pub fn is_linked(&self) -> bool {
        self.git_dir != self.common_dir
    }

    /// Uid and gid of the common directory.
    pub fn owner(&self) -> (u32, u32) {
        self.owner
    }

    /// Objects may be missing here (a partial clone).
    pub fn is_partial(&self) -> bool {
        let config = fs::read(self.common_dir.join("config")).unwrap_or_default();
        String::from_utf8_lossy(&config).to_ascii_lowercase().contains("partialclone")
    }

    /// A hermetic git command on it that only reads.
    pub fn read(&self, git: &Git) -> GitCommand {
        git.host(&self.git_dir)
    }

    /// A hermetic git command on it that writes: run by root, as the repository's owner, so that
    /// its owner can still use what was written.
    pub fn write(&self, git: &Git) -> GitCommand {
        git.host(&self.git_dir).as_user(self.foreign_owner())
    }

    /// The owner, when we are root and it is somebody else.
    pub fn foreign_owner(&self) -> Option<(u32, u32)> {
        (rustix::process::geteuid().is_root() && self.owner.0 != 0).then_some(self.owner)
    }

    /// Waits until no git command holds a lock in this repository, at most `limit`.
    pub fn wait_quiet(&self, limit: Duration) -> Result<()> {
        let locks = ["index.lock", "HEAD.lock", "config.lock", "shallow.lock", "packed-refs.lock"];
        let held = || {
            let dirs = [&self.git_dir, &self.common_dir];
            dirs.into_iter().flat_map(|dir| locks.iter().map(move |lock| dir.join(lock))).find(|lock| lock.exists())
        };
        let deadline = Instant::now() + limit;
        let mut pause = Duration::from_millis(2);
        while let Some(lock) = held() {
            if Instant::now() >= deadline {
                return Err(HostRepoError::Busy { lock });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The id that this repository has in the store, if it has one. Writes nothing.
    pub fn known_id(&self, store: &Store) -> Result<Option<RepoId>> {
        let Some(id) = self.read_id()? else { return Ok(None) };
        let record: Option<RepoRecord> = store::read_json(&store.repo(&id).record())?;
        let Some(record) = record else { return Ok(None) };
        Ok(self.is_of(&record)?.then_some(id))
    }

    /// Whether this is the repository that a record is of: it has its id, and is no copy of it. A path says
    /// nothing: another repository may have been made there. Writes nothing.
    pub fn is_of(&self, record: &RepoRecord) -> Result<bool> {
        if self.read_id()?.is_none_or(|id| id != record.id) {
            return Ok(false);
        }
        Ok((record.dev, record.ino) == self.identity()? || !still_there(record))
    }

    /// The id of this repository in the store: found again when it was moved, new when it is new or
    /// a copy. Makes the repository's directory with its record and its vault.
    pub fn repo_id(&self, store: &Store) -> Result<RepoId> {
        let (dev, ino) = self.identity()?;
        if let Some(id) = self.read_id()?
            && let Some(record) = store::read_json::<RepoRecord>(&store.repo(&id).record())?
            && (record.dev, record.ino) == (dev, ino)
            && record.common_dir == self.common_dir
        {
            return Ok(id);
        }
        store.writable()?;
        let lock_file = store.lock_file();
        let _lock = FileLock::exclusive(&lock_file).map_err(failed("lock", &lock_file))?;
        let id = match self.read_id()? {
            Some(id) => {
                let record: Option<RepoRecord> = store::read_json(&store.repo(&id).record())?;
                match record {
                    Some(record) if (record.dev, record.ino) != (dev, ino) && still_there(&record) => self.new_id()?,
                    Some(mut record) => {
                        (record.common_dir, record.dev, record.ino) = (self.common_dir.clone(), dev, ino);
                        store::write_twice(&store.repo(&id).record(), &record, true)?;
                        return Ok(id);
                    }
                    None => id,
                }
            }
            None => self.new_id()?,
        };
        let dir = store.repo(&id);
        for part in [dir.path().to_owned(), dir.views(), dir.layers(), dir.snapshots()] {
            store::make_dir(&part)?;
        }
        make_vault(&dir, self.format)?;
        let record = RepoRecord {
            id: id.clone(),
            common_dir: self.common_dir.clone(),
            dev,
            ino,
            carry_secrets: None,
            carry_credentials: Default::default(),
            with: Default::default(),
            checks: Default::default(),
            directory: false,
        };
        store::write_twice(&dir.record(), &record, true)?;
        Ok(id)
    }

    fn identity(&self) -> Result<(u64, u64)> {
        let metadata = fs::metadata(&self.common_dir).map_err(failed("look at", &self.common_dir))?;
        Ok((metadata.dev(), metadata.ino()))
    }

    fn id_file(&self) -> PathBuf {
        self.common_dir.join("sandbox-id")
    }

    fn read_id(&self) -> Result<Option<RepoId>> {
        match fs::read_to_string(self.id_file()) {
            Ok(text) => Ok(RepoId::parse(text.trim())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(HostRepoError::Io { action: "read", path: self.id_file(), source }),
        }
    }

    fn new_id(&self) -> Result<RepoId> {
        let id = RepoId::random();
        self.write_id(&id)?;
        Ok(id)
    }

    fn write_id(&self, id: &RepoId) -> Result<()> {
        store::write_whole(&self.id_file(), format!("{id}\n").as_bytes(), false)?;
        if let Some((uid, gid)) = self.foreign_owner() {
            let path = self.id_file();
            std::os::unix::fs::lchown(&path, Some(uid), Some(gid)).map_err(failed("change the owner of", &path))?;
        }
        Ok(())
    }
}

fn owner(dir: &Path) -> Result<(u32, u32)> {
    let metadata = fs::metadata(dir).map_err(failed("look at", dir))?;
    Ok((metadata.uid(), metadata.gid()))
}

/// The directory that a record names is still the one it was made for. An inode number may have been given to
/// another repository, which then has another id.
fn still_there(record: &RepoRecord) -> bool {
    fs::metadata(&record.common_dir).is_ok_and(|m| (m.dev(), m.ino()) == (record.dev, record.ino))
        && fs::read_to_string(record.common_dir.join("sandbox-id"))
            .map_or(true, |text| RepoId::parse(text.trim()).is_none_or(|id| id == record.id))
}

fn refusal(cwd: &Path, stderr: &[u8]) -> HostRepoError {
    let text = String::from_utf8_lossy(stderr);
    if text.contains("dubious ownership") {
        let path = text.split('\'').nth(1).map_or_else(|| cwd.to_owned(), PathBuf::from);
        return HostRepoError::DubiousOwnership { path };
    }
    let line = text.lines().find(|line| line.starts_with("fatal: ")).unwrap_or("").trim_start_matches("fatal: ");
    HostRepoError::NotARepository { path: cwd.to_owned(), said: printable(line.as_bytes()) }
}

/// Makes `packs/`, a bare repository, by writing its four files.
fn make_vault(dir: &RepoDir, format: ObjectFormat) -> Result<()> {
    let vault = dir.vault();
    if vault.join("HEAD").exists() {
        return Ok(());
    }
    write_bare(&vault, format, "")?;
    Ok(())
}

/// Writes an empty bare repository of ours: no process, no template, no hook.
pub(crate) fn write_bare(dir: &Path, format: ObjectFormat, more_config: &str) -> std::result::Result<(), StoreError> {
    for part in ["objects/info", "objects/pack", "refs/heads"] {
        store::make_dir(&dir.join(part))?;
    }
    let (version, extension) = match format {
        ObjectFormat::Sha1 => (0, ""),
        ObjectFormat::Sha256 => (1, "[extensions]\n\tobjectFormat = sha256\n"),
    };
    let version = if more_config.contains("[extensions]") { 1 } else { version };
    let config = format!(
        "[core]\n\trepositoryFormatVersion = {version}\n\tbare = true\n\tlogAllRefUpdates = always\n{extension}{more_config}"
    );
    store::write_whole(&dir.join("config"), config.as_bytes(), false)?;
    // Last: a directory without it is not a repository.
    store::write_whole(&dir.join("HEAD"), b"ref: refs/heads/none\n", false)
}
