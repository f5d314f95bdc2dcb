//! The host's repository, as this room works with it.

use crate::database::Database;
use crate::error::MergeError;
use crate::run::{self, Answer, unexpected};
use sandbox_git::config::Listing;
use sandbox_git::refs::{self, read_head};
use sandbox_git::{Git, GitCommand, ObjectFormat, Oid};
use sandbox_sys::lock::FileLock;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// An operation that git has not finished, in which HEAD and the index have a meaning of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// `git merge`
    Merge,
    /// `git rebase`
    Rebase,
    /// `git am`
    Am,
    /// `git cherry-pick`
    CherryPick,
    /// `git revert`
    Revert,
    /// `git bisect`
    Bisect,
}

impl Operation {
    /// The git command that goes on with it or ends it.
    pub fn command(self) -> &'static str {
        match self {
            Self::Merge => "merge",
            Self::Rebase => "rebase",
            Self::Am => "am",
            Self::CherryPick => "cherry-pick",
            Self::Revert => "revert",
            Self::Bisect => "bisect",
        }
    }
}

/// Where HEAD is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The ref that it names, `None` when detached.
    pub reference: Option<String>,
    /// Its commit, `None` when unborn.
    pub commit: Option<Oid>,
}

impl Head {
    /// The branch's short name, or `HEAD`.
    pub fn short(&self) -> &str {
        self.reference.as_deref().map_or("HEAD", |name| name.strip_prefix("refs/heads/").unwrap_or(name))
    }
}

/// The host's repository: one working tree, its git directory, and a scratch repository beside.
#[derive(Debug)]
pub struct Repo {
    /// First, so that its processes end before their directory goes.
    database: Database,
    git: Git,
    worktree: PathBuf,
    gitdir: PathBuf,
    common: PathBuf,
    /// What is made here goes here, and is thrown away with it unless it is [published](crate::publish).
    objects: PathBuf,
    host_objects: PathBuf,
    index: PathBuf,
    format: ObjectFormat,
    scratch: TempDir,
    _lock: FileLock,
}

impl Repo {
    /// Opens the repository of `worktree`, whose git directory is `gitdir` (of a linked worktree: its
    /// own). `scratch` is a directory for temporary files of this program.
    pub fn open(git: &Git, worktree: &Path, gitdir: &Path, scratch: &Path) -> Result<Self, MergeError> {
        let args = [
            "rev-parse",
            "--path-format=absolute",
            "--show-object-format",
            "--git-common-dir",
            "--git-path",
            "objects",
            "--git-path",
            "index",
        ];
        git.version()?;
        let text = run::host(git, gitdir, worktree).args(args).output()?.stdout;
        let mut lines = text.split(|b| *b == b'\n');
        let mut line = || lines.next().filter(|l| !l.is_empty()).ok_or_else(|| unexpected("git rev-parse", &text));
        let format = line()?;
        let format: ObjectFormat = std::str::from_utf8(format)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| unexpected("git rev-parse", format))?;
        let path = |line: &[u8]| PathBuf::from(std::ffi::OsStr::from_bytes(line));
        let (common, objects, index) = (path(line()?), path(line()?), path(line()?));
        Self::at(git, (worktree, gitdir), common, (objects, index), format, scratch)
    }

    /// The same where it is known already, without a process, what git would say of it: the git directory that all
    /// working trees share, and the hash function.
    pub fn open_known(
        git: &Git,
        (worktree, gitdir): (&Path, &Path),
        (common, format): (&Path, ObjectFormat),
        scratch: &Path,
    ) -> Result<Self, MergeError> {
        // This moves the objects and refs of whatever git directory is named.
        if git.env().discovery_var("GIT_COMMON_DIR").is_some() {
            return Self::open(git, worktree, gitdir, scratch);
        }
        let inside = (common.join("objects"), gitdir.join("index"));
        Self::at(git, (worktree, gitdir), common.to_owned(), inside, format, scratch)
    }

    fn at(
        git: &Git,
        (worktree, gitdir): (&Path, &Path),
        common: PathBuf,
        (objects, index): (PathBuf, PathBuf),
        format: ObjectFormat,
        scratch: &Path,
    ) -> Result<Self, MergeError> {
        git.version()?;
        let dir = tempfile::Builder::new().prefix("integrate.").tempdir_in(scratch);
        let dir = dir.map_err(MergeError::io("create", scratch))?;
        // Held as long as it is used: a sweep can tell what a dead command left.
        let lock = dir.path().join("lock");
        let lock = FileLock::exclusive(&lock).map_err(MergeError::io("lock", lock))?;
        make_bare(&dir.path().join("git"), format, &common, &objects).map_err(MergeError::io("create", dir.path()))?;
        crate::rerere::sweep(&common);
        Ok(Self {
            database: Database::default(),
            git: git.clone(),
            worktree: worktree.to_owned(),
            gitdir: gitdir.to_owned(),
            common,
            objects: dir.path().join("git/objects"),
            host_objects: objects,
            index,
            format,
            scratch: dir,
            _lock: lock,
        })
    }

    pub(crate) fn database(&self) -> &Database {
        &self.database
    }

    /// Whether `git merge-file` can be told how to compare.
    pub(crate) fn merge_file_has_algorithm(&self) -> Result<bool, MergeError> {
        Ok(self.git.version()?.has_merge_file_algorithm())
    }

    /// Whether `git merge-tree` can be told the merge base.
    pub(crate) fn merge_tree_has_base(&self) -> Result<bool, MergeError> {
        Ok(self.git.version()?.has_merge_tree_base())
    }

    /// Where a shallow history ends; empty if it is whole.
    pub(crate) fn shallow(&self) -> Vec<u8> {
        fs::read(self.common.join("shallow")).unwrap_or_default()
    }

    /// The working tree.
    pub fn worktree(&self) -> &Path {
        &self.worktree
    }

    /// The git directory of this working tree.
    pub fn gitdir(&self) -> &Path {
        &self.gitdir
    }

    /// The git directory that all working trees share.
    pub fn common_dir(&self) -> &Path {
        &self.common
    }

    /// The hash function of its ids.
    pub fn format(&self) -> ObjectFormat {
        self.format
    }

    pub(crate) fn index(&self) -> &Path {
        &self.index
    }

    /// Where objects are before anybody else can see them.
    pub(crate) fn own_objects(&self) -> &Path {
        &self.objects
    }

    /// The host's object database.
    pub(crate) fn host_objects(&self) -> &Path {
        &self.host_objects
    }

    /// A new temporary file below the scratch directory.
    pub(crate) fn temp_file(&self, content: &[u8]) -> Result<tempfile::NamedTempFile, MergeError> {
        let make = || {
            let mut file = tempfile::NamedTempFile::new_in(self.scratch.path())?;
            file.write_all(content)?;
            Ok(file)
        };
        make().map_err(MergeError::io("write", self.scratch.path()))
    }

    /// A path below the scratch directory that nothing else uses.
    pub(crate) fn temp_path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// A command that sees the objects and nothing else of the repository.
    pub(crate) fn pure(&self) -> GitCommand {
        run::pure(&self.git, &self.scratch.path().join("git"), &self.objects)
    }

    /// Attributes for the next pure commands: the lines of the scratch repository's `info/attributes`.
    pub(crate) fn set_pure_attributes(&self, lines: &[u8]) -> Result<(), MergeError> {
        let file = self.scratch.path().join("git/info/attributes");
        fs::write(&file, lines).map_err(MergeError::io("write", file))
    }

    /// A command in the user's repository.
    pub(crate) fn host(&self) -> GitCommand {
        run::host(&self.git, &self.gitdir, &self.worktree)
    }

    /// Every setting that the user's git sees here. It names programs; none is run.
    pub(crate) fn listing(&self) -> Result<Listing, MergeError> {
        let command = self.git.user(&self.worktree).env("GIT_DIR", &self.gitdir).env("GIT_WORK_TREE", &self.worktree);
        Ok(Listing::of(command)?)
    }

    /// The user's home, as git knows it.
    pub(crate) fn home(&self) -> Option<&Path> {
        self.git.env().home.as_deref()
    }

    /// Reads where HEAD is: from files where that is certain, else by git.
    pub fn head(&self) -> Result<Head, MergeError> {
        let fits = |commit: &Option<Oid>| commit.is_none_or(|id| id.format() == self.format && !id.is_null());
        if let Some((head, commit)) = read_head(&self.gitdir, &self.common).filter(|(_, commit)| fits(commit)) {
            let reference = match head {
                refs::Head::Branch(name) => std::str::from_utf8(name.as_bytes()).ok().map(str::to_owned),
                refs::Head::Detached(_) => return Ok(Head { reference: None, commit }),
            };
            if reference.is_some() {
                return Ok(Head { reference, commit });
            }
        }
        let symbolic = Answer::of(self.host().args(["symbolic-ref", "-q", "HEAD"]))?;
        let reference = match symbolic.code() {
            Some(0) => Some(symbolic.line()?),
            Some(1) => None,
            _ => return Err(symbolic.failed().into()),
        };
        let commit = Answer::of(self.host().args(["rev-parse", "-q", "--verify", "HEAD^{commit}"]))?;
        let commit = match commit.code() {
            Some(0) => Some(parse_oid(&commit.line()?)?),
            Some(1) if reference.is_some() => None,
            _ => return Err(commit.failed().into()),
        };
        Ok(Head { reference, commit })
    }

    /// The operation that git has in progress here, if any.
    pub fn operation(&self) -> Option<Operation> {
        let has = |name: &str| self.gitdir.join(name).exists();
        if has("rebase-merge") {
            return Some(Operation::Rebase);
        }
        if has("rebase-apply") {
            return Some(if has("rebase-apply/applying") { Operation::Am } else { Operation::Rebase });
        }
        let table = [
            ("MERGE_HEAD", Operation::Merge),
            ("CHERRY_PICK_HEAD", Operation::CherryPick),
            ("REVERT_HEAD", Operation::Revert),
            ("BISECT_LOG", Operation::Bisect),
        ];
        if let Some((_, operation)) = table.into_iter().find(|(file, _)| has(file)) {
            return Some(operation);
        }
        // Between two commits of a range only the sequencer's todo is there.
        let todo = fs::read_to_string(self.gitdir.join("sequencer/todo")).ok()?;
        Some(if todo.trim_start().starts_with("revert") { Operation::Revert } else { Operation::CherryPick })
    }
}

pub(crate) fn parse_oid(text: &str) -> Result<Oid, MergeError> {
    Oid::parse(text).ok_or_else(|| unexpected("git rev-parse", text.as_bytes()).into())
}

/// Makes an empty bare repository by hand: nothing of a template, no process.
fn make_bare(dir: &Path, format: ObjectFormat, common: &Path, objects: &Path) -> std::io::Result<()> {
    for part in ["objects/info", "objects/pack", "refs/heads", "info"] {
        fs::create_dir_all(dir.join(part))?;
    }
    fs::write(dir.join("HEAD"), "ref: refs/heads/none\n")?;
    fs::write(dir.join("objects/info/alternates"), [objects.as_os_str().as_bytes(), b"\n"].concat())?;
    let config = match format {
        ObjectFormat::Sha1 => "[core]\n\trepositoryformatversion = 0\n\tbare = true\n".to_owned(),
        other => format!(
            "[core]\n\trepositoryformatversion = 1\n\tbare = true\n[extensions]\n\tobjectformat = {}\n",
            other.as_str()
        ),
    };
    fs::write(dir.join("config"), config)?;
    // History ends where the host's ends.
    match fs::copy(common.join("shallow"), dir.join("shallow")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
