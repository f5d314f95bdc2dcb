//! What of a sandbox's work the host has, and what not: new commits, files that were changed
//! and not committed, changed ignored files.
//!
//! *Uncommitted* means: differs from the captured state, and from what the sandbox's tip has at
//! that path. Read from the host without trusting anything inside: the upper directory is listed
//! by descriptors, contents are hashed as they are, the tip is in the host's object database.

use crate::host_repo::{HostRepo, HostRepoError};
use crate::launch::TreeView;
use crate::picture;
use crate::record::ViewRecord;
use crate::sandbox::{Sandbox, SandboxError};
use crate::space::Need;
use crate::store::Store;
use crate::whole;
use rustix::fs::OFlags;
use sandbox_git::{Git, GitError, Oid, Running};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::iter;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ChildStdout;

/// Why the work of a sandbox cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The host repository.
    #[error(transparent)]
    Host(#[from] HostRepoError),
    /// At its place there is a repository with another id, or with none.
    #[error("'{path}' is not the repository that the sandbox '{name}' was made from", path = path.display())]
    AnotherRepository {
        /// The top of its work tree, or its git directory.
        path: PathBuf,
        /// Which.
        name: String,
    },
    /// Git.
    #[error("cannot ask git about the sandbox's commits")]
    Git(#[from] GitError),
    /// What it changed is on a disk that only a guest reads, and nobody has asked one.
    #[error("what the sandbox '{name}' changed is not known: it is on a disk that only its guest reads")]
    NotSeen {
        /// Which.
        name: String,
    },
    /// The upper directory.
    #[error("cannot look at what changed in the sandbox")]
    Changes(#[source] sandbox_capture::ChangesError),
    /// What was captured.
    #[error(transparent)]
    Captured(#[from] whole::CopyError),
}

type Result<T> = std::result::Result<T, WorkError>;

/// Commits of a sandbox as the host has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commits {
    /// Those that the base commit does not reach.
    pub ahead: usize,
    /// The base commit is not among their ancestors.
    pub rewritten: bool,
    /// `refs/sandbox/<name>`.
    pub tip: Option<Oid>,
}

/// A file that differs from the captured state.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChangedFile {
    /// Relative to the work tree.
    pub path: Vec<u8>,
    /// What happened to it.
    pub what: Changed,
    /// Bytes on disk.
    pub bytes: u64,
}

/// What happened to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Changed {
    /// It is new.
    Added,
    /// It has other content, mode or type.
    Modified,
    /// It is gone.
    Deleted,
}

impl ChangedFile {
    /// `A`, `M` or `D`.
    pub fn letter(&self) -> char {
        match self.what {
            Changed::Added => 'A',
            Changed::Modified => 'M',
            Changed::Deleted => 'D',
        }
    }

    /// The same by its absolute path, in the tree `top`.
    pub fn below(self, top: &Path) -> Self {
        Self { path: top.join(self.as_path()).into_os_string().into_vec(), ..self }
    }

    /// Its path as the file system knows it.
    pub fn as_path(&self) -> &Path {
        Path::new(std::ffi::OsStr::from_bytes(&self.path))
    }
}

/// Files that differ and are not committed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uncommitted {
    /// Those that git would commit.
    pub files: Vec<ChangedFile>,
    /// Those that git ignores.
    pub ignored: Vec<ChangedFile>,
    /// Bytes of the ignored ones.
    pub ignored_bytes: u64,
}

/// What would be lost with a sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unsaved {
    /// Commits that no ref of the host but the sandbox's own reaches.
    pub commits: usize,
    /// Repositories inside whose work the host has not got, one line each.
    pub elsewhere: Vec<String>,
    /// Files that are not committed; those of another tree than the main one by their absolute path.
    pub files: Vec<ChangedFile>,
    /// Directories without a repository in which some of them are: nothing commits or applies those.
    pub directories: Vec<PathBuf>,
    /// Changed ignored files: told, and no reason to keep it.
    pub ignored: Vec<ChangedFile>,
    /// Their bytes.
    pub ignored_bytes: u64,
    unknown: bool,
}

impl Unsaved {
    /// Nothing could be found out: everything counts as not saved.
    pub fn unknown() -> Self {
        Self { unknown: true, ..Self::default() }
    }

    /// Nothing could be found out.
    pub fn is_unknown(&self) -> bool {
        self.unknown
    }

    /// Nothing would be lost.
    pub fn is_empty(&self) -> bool {
        !self.unknown && self.commits == 0 && self.elsewhere.is_empty() && self.files.is_empty()
    }
}

/// The host repository of a sandbox's tree, found again when it was moved within reach. It is known by its id:
/// what else is at its path gets nothing.
pub fn host(store: &Store, sandbox: &Sandbox) -> Result<HostRepo> {
    let worktree = &sandbox.mount().worktree;
    let record = sandbox.repo(store)?;
    let common_dir = &record.common_dir;
    let captured = || worktree.join(".git").exists().then(|| HostRepo::nested(worktree));
    // Moved: the record knows the new place as soon as any command was run there.
    let around = || {
        let top = common_dir.parent().filter(|_| common_dir.file_name().is_some_and(|name| name == ".git"))?;
        Some(HostRepo::nested(top))
    };
    let itself = || Some(HostRepo::from_git_dir(common_dir));
    let places = iter::once_with(captured).chain(iter::once_with(around)).chain(iter::once_with(itself));
    let (mut other, mut failure) = (None, None);
    for place in places.flatten() {
        match place {
            Ok(repo) if repo.is_of(&record)? => return Ok(repo),
            Ok(repo) => other = other.or_else(|| Some(repo.top_or_gitdir().to_owned())),
            Err(error) => failure = Some(error),
        }
    }
    match (other, failure) {
        (None, Some(error)) => Err(error.into()),
        (path, _) => Err(WorkError::AnotherRepository {
            path: path.unwrap_or_else(|| common_dir.clone()),
            name: sandbox.name().to_owned(),
        }),
    }
}

/// `refs/sandbox/<name>` of the host.
pub fn tip(git: &Git, store: &Store, sandbox: &Sandbox) -> Result<Option<Oid>> {
    if !sandbox.mount().has_commits() {
        return Ok(None);
    }
    let host = host(store, sandbox)?;
    read_ref(git, &host, &format!("refs/sandbox/{}", sandbox.name()))
}

/// The commit that is checked out where `git_dir` is the git directory of a work tree of `host`; `None` if it is
/// unborn. Without a process where refs are files.
///
/// # Errors
///
/// When HEAD cannot be read.
pub fn head(git: &Git, host: &HostRepo, git_dir: &Path) -> Result<Option<Oid>> {
    let text = fs::read(git_dir.join("HEAD")).unwrap_or_default();
    let text = text.trim_ascii();
    match text.strip_prefix(b"ref: ").map(std::str::from_utf8) {
        Some(Ok(name)) if !host.common_dir().join("reftable").exists() => read_ref(git, host, name),
        None if Oid::parse(text).is_some() => Ok(Oid::parse(text)),
        _ => read_ref(git, host, "HEAD"),
    }
}

/// Larger `packed-refs` are left to git.
const SMALL: u64 = 1 << 20;

/// Reads one ref. Loose refs and small `packed-refs` are read without a process.
fn read_ref(git: &Git, host: &HostRepo, name: &str) -> Result<Option<Oid>> {
    match quick(host, name) {
        Quick::Is(oid) => return Ok(Some(oid)),
        Quick::None => return Ok(None),
        Quick::AskGit => {}
    }
    let (status, out) =
        host.read(git).args(["rev-parse", "--quiet", "--verify", "--end-of-options", name]).try_output()?;
    Ok(status.success().then(|| Oid::parse(out.stdout.trim_ascii())).flatten())
}

/// What can be said of a ref without git.
enum Quick {
    Is(Oid),
    None,
    AskGit,
}

fn quick(host: &HostRepo, name: &str) -> Quick {
    let common = host.common_dir();
    if common.join("reftable").exists() {
        return Quick::AskGit;
    }
    match fs::read(common.join(name)) {
        Ok(text) => return Oid::parse(text.trim_ascii()).map_or(Quick::AskGit, Quick::Is),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
        Err(_) => return Quick::AskGit,
    }
    let packed = common.join("packed-refs");
    match fs::metadata(&packed) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Quick::None,
        Ok(meta) if meta.len() <= SMALL => match fs::read_to_string(&packed) {
            Ok(text) => text
                .lines()
                .find_map(|line| line.split_once(' ').filter(|(_, known)| *known == name))
                .map_or(Quick::None, |(id, _)| Oid::parse(id).map_or(Quick::AskGit, Quick::Is)),
            Err(_) => Quick::AskGit,
        },
        _ => Quick::AskGit,
    }
}

/// Whether any repository of the host may have a ref of this sandbox; yes where that is not known.
pub(crate) fn may_have_any_refs(store: &Store, sandbox: &Sandbox) -> bool {
    let inner = sandbox.snapshot(store).map_or(true, |snapshot| snapshot.git.views.len() > 1);
    inner
        || sandbox
            .trees()
            .filter(|tree| tree.mount().has_commits())
            .any(|tree| host(store, &tree).map_or(true, |host| may_have_refs(&host, tree.name())))
}

/// Whether the host may have any ref of this sandbox.
fn may_have_refs(host: &HostRepo, name: &str) -> bool {
    let common = host.common_dir();
    let loose = common.join("refs/sandbox-meta").join(name).exists() || common.join("refs/sandbox").join(name).exists();
    let packed = || match fs::metadata(common.join("packed-refs")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Ok(meta) if meta.len() <= SMALL => fs::read_to_string(common.join("packed-refs")).map_or(true, |text| {
            text.contains(&format!("refs/sandbox/{name}")) || text.contains(&format!("refs/sandbox-meta/{name}/"))
        }),
        _ => true,
    };
    loose || common.join("reftable").exists() || packed()
}

/// What the host has of a sandbox's commits.
pub fn commits_on_host(git: &Git, store: &Store, sandbox: &Sandbox) -> Result<Commits> {
    if !sandbox.mount().has_commits() {
        return Ok(Commits::default());
    }
    let host = host(store, sandbox)?;
    let Some(tip) = read_ref(git, &host, &format!("refs/sandbox/{}", sandbox.name()))? else {
        return Ok(Commits::default());
    };
    let base = sandbox.snapshot(store)?.git.base.and_then(Oid::parse);
    let Some(base) = base else {
        let count = host.read(git).args(["rev-list", "--count", &tip.to_string()]).line()?;
        return Ok(Commits { ahead: count.parse().unwrap_or(0), rewritten: false, tip: Some(tip) });
    };
    if base == tip {
        return Ok(Commits { ahead: 0, rewritten: false, tip: Some(tip) });
    }
    let range = format!("{base}...{tip}");
    let line = host.read(git).args(["rev-list", "--count", "--left-right", &range]).line()?;
    let mut counts = line.split_whitespace().map(|n| n.parse::<usize>().unwrap_or(0));
    let (behind, ahead) = (counts.next().unwrap_or(0), counts.next().unwrap_or(0));
    Ok(Commits { ahead, rewritten: behind > 0, tip: Some(tip) })
}

/// Everything that differs from the captured state, committed or not, ignored or not.
pub fn changes(store: &Store, sandbox: &Sandbox) -> Result<Vec<ChangedFile>> {
    if sandbox.mount().read_only {
        return Ok(Vec::new());
    }
    if !picture::is_fresh(sandbox, &[])? {
        return Err(WorkError::NotSeen { name: sandbox.name().to_owned() });
    }
    let snapshot = sandbox.snapshot(store)?;
    let repo = store.repo(&sandbox.mount().repo);
    let upper = sandbox.upper();
    let Some(manifest) = whole::manifest(sandbox, &repo, &snapshot)? else { return Ok(Vec::new()) };
    let changes = match sandbox.record.view {
        TreeView::Overlay => sandbox_capture::changes(&upper, &repo.layers(), &manifest),
        TreeView::Copy => sandbox_capture::whole_changes(&upper, &repo.layers(), &manifest),
    };
    let changes = changes.map_err(WorkError::Changes)?;
    Ok(changes
        .into_iter()
        .map(|change| {
            let path = change.path.into_os_string().into_vec();
            let what = match change.kind {
                sandbox_capture::ChangeKind::Added => Changed::Added,
                sandbox_capture::ChangeKind::Modified | sandbox_capture::ChangeKind::Unreadable => Changed::Modified,
                sandbox_capture::ChangeKind::Deleted => Changed::Deleted,
            };
            let at = upper.join(std::ffi::OsStr::from_bytes(&path));
            let bytes = fs::symlink_metadata(&at).map(|meta| meta.blocks() * 512).unwrap_or(0);
            ChangedFile { path, what, bytes }
        })
        .collect())
}

/// Files that differ from the captured state and from the tip, ignored ones apart.
pub fn uncommitted_now(git: &Git, store: &Store, sandbox: &Sandbox) -> Result<Uncommitted> {
    sorted(git, store, sandbox, true)
}

/// Files that differ from the captured state, whether they were committed or not, ignored ones apart.
pub fn changed_now(git: &Git, store: &Store, sandbox: &Sandbox) -> Result<Uncommitted> {
    sorted(git, store, sandbox, false)
}

fn sorted(git: &Git, store: &Store, sandbox: &Sandbox, without_committed: bool) -> Result<Uncommitted> {
    let all = changes(store, sandbox)?;
    if all.is_empty() {
        return Ok(Uncommitted::default());
    }
    let snapshot = sandbox.snapshot(store)?;
    if sandbox.mount().directory {
        // Nothing commits and nothing ignores.
        return Ok(Uncommitted { files: all, ..Uncommitted::default() });
    }
    let host = host(store, sandbox)?;
    let name = format!("refs/sandbox/{}", sandbox.name());
    let mut left = Uncommitted::default();
    // Each file belongs to the innermost repository that it is in: a submodule's commit is no
    // entry of the outer tree.
    for (view, changes) in by_repository(&snapshot.git.views, all) {
        let inner = match view {
            Some(view) => crate::commit_back::nested_host(view, &snapshot, &host).ok(),
            None => Some(host.clone()),
        };
        let prefix = view.map(|view| [view.path.as_os_str().as_bytes(), b"/"].concat()).unwrap_or_default();
        let base = view.map_or(&snapshot.git.base, |view| &view.base);
        let tip = match &inner {
            Some(repo) => match read_ref(git, repo, &name)? {
                Some(tip) => Some(tip),
                None => inherited(git, repo, sandbox, view).or_else(|| base.as_deref().and_then(Oid::parse)),
            },
            None => None,
        };
        let committed = match (&inner, tip) {
            (Some(repo), Some(tip)) => listed(git, repo, &tip, &changes, prefix.len())?,
            _ => BTreeMap::new(),
        };
        let mut asked = Vec::new();
        let mut sizes = Sizes { git, repo: inner.as_ref(), conversation: None };
        for change in changes {
            let known = committed.get(&change.path);
            let same = match (change.what, known) {
                // Its deletion was committed; or it was untracked, and the host still has it.
                (Changed::Deleted, None) => without_committed,
                (Changed::Deleted, Some(_)) => false,
                (_, Some((mode, oid))) => without_committed && is_same(sandbox, &mut sizes, &change, mode, oid),
                (_, None) => false,
            };
            match (same, known) {
                (true, _) => {}
                (false, Some(_)) => left.files.push(change),
                (false, None) => asked.push(change),
            }
        }
        let ignored = match &inner {
            Some(repo) => ignored(git, repo, &asked, prefix.len())?,
            None => BTreeSet::new(),
        };
        for change in asked {
            if ignored.contains(&change.path) {
                left.ignored_bytes += change.bytes;
                left.ignored.push(change);
            } else {
                left.files.push(change);
            }
        }
    }
    left.files.sort();
    Ok(left)
}

/// What a fork that has brought nothing home yet inherited: its parent's commit, if the host still has it.
fn inherited(git: &Git, host: &HostRepo, sandbox: &Sandbox, view: Option<&ViewRecord>) -> Option<Oid> {
    let forked = sandbox.record.forked.as_ref().filter(|_| view.is_none())?;
    let tip = if sandbox.tree == 0 { forked.tip.as_ref() } else { forked.tips.get(&sandbox.tree) };
    let tip = tip.and_then(Oid::parse)?;
    let (status, _) = host.read(git).args(["cat-file", "-e", &format!("{tip}^{{commit}}")]).try_output().ok()?;
    status.success().then_some(tip)
}

/// Sorts changes to the innermost captured repository that each path is in; `None` is the main one.
fn by_repository(views: &[ViewRecord], all: Vec<ChangedFile>) -> Vec<(Option<&ViewRecord>, Vec<ChangedFile>)> {
    let mut inner: Vec<&ViewRecord> = views.iter().filter(|view| !view.path.as_os_str().is_empty()).collect();
    inner.sort_by_key(|view| std::cmp::Reverse(view.path.components().count()));
    let mut groups: Vec<(Option<&ViewRecord>, Vec<ChangedFile>)> =
        inner.iter().map(|view| (Some(*view), Vec::new())).chain([(None, Vec::new())]).collect();
    for change in all {
        let at = inner.iter().position(|view| change.as_path().starts_with(&view.path)).unwrap_or(inner.len());
        groups[at].1.push(change);
    }
    groups.retain(|(_, changes)| !changes.is_empty());
    groups
}

/// What a commit has at the changed paths, of which the first `skip` bytes lead to its repository.
fn listed(
    git: &Git,
    host: &HostRepo,
    tip: &Oid,
    changes: &[ChangedFile],
    skip: usize,
) -> Result<BTreeMap<Vec<u8>, (String, Oid)>> {
    let wanted: BTreeMap<&[u8], &[u8]> =
        changes.iter().map(|change| (change.path.get(skip..).unwrap_or_default(), change.path.as_slice())).collect();
    let out = host.read(git).args(["ls-tree", "-r", "-z", "--full-tree", &tip.to_string()]).output()?;
    let mut found = BTreeMap::new();
    for entry in out.stdout.split(|b| *b == 0).filter(|entry| !entry.is_empty()) {
        let Some(tab) = entry.iter().position(|b| *b == b'\t') else { continue };
        let (meta, path) = (&entry[..tab], &entry[tab + 1..]);
        if let Some(whole) = wanted.get(path) {
            let meta = String::from_utf8_lossy(meta);
            let mut parts = meta.split(' ');
            if let (Some(mode), Some(oid)) = (parts.next(), parts.nth(1).and_then(Oid::parse)) {
                found.insert(whole.to_vec(), (mode.to_owned(), oid));
            }
        }
    }
    Ok(found)
}

/// Files up to this size are hashed without asking what size they should have, in bytes.
const HASHED_UNASKED: u64 = 1 << 20;

/// The sizes of committed blobs, from one `git cat-file` that is started when the first is asked for.
struct Sizes<'a> {
    git: &'a Git,
    repo: Option<&'a HostRepo>,
    conversation: Option<(Running, BufReader<ChildStdout>)>,
}

impl Sizes<'_> {
    fn of(&mut self, oid: &Oid) -> Option<u64> {
        if self.conversation.is_none() {
            let mut running =
                self.repo?.read(self.git).args(["cat-file", "--batch-check=%(objectsize)"]).converse().ok()?;
            let out = BufReader::new(running.stdout.take()?);
            self.conversation = Some((running, out));
        }
        let (running, out) = self.conversation.as_mut()?;
        running.stdin.as_mut()?.write_all(format!("{oid}\n").as_bytes()).ok()?;
        let mut line = String::new();
        out.read_line(&mut line).ok()?;
        line.trim_end().parse().ok()
    }
}

/// The changed file is what the commit has: same kind, same executable bit, same bytes.
fn is_same(sandbox: &Sandbox, sizes: &mut Sizes<'_>, change: &ChangedFile, mode: &str, oid: &Oid) -> bool {
    use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
    let upper = sandbox.upper();
    let Ok(root) = rustix::fs::open(&upper, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) else {
        return false;
    };
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    if mode == "120000" {
        // Through the descriptor of its directory, so that no link on the way is followed.
        let path = change.as_path();
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let Ok(dir) =
            openat2(&root, parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), beneath)
        else {
            return false;
        };
        let Some(name) = path.file_name() else { return false };
        let Ok(target) = rustix::fs::readlinkat(&dir, name, Vec::new()) else { return false };
        return sandbox_git::hash_object(oid.format(), "blob", target.to_bytes()) == *oid;
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = openat2(&root, change.as_path(), flags, Mode::empty(), beneath) else { return false };
    let Ok(stat) = rustix::fs::fstat(&file) else { return false };
    let regular = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile;
    let executable = stat.st_mode & 0o100 != 0;
    if !regular || executable != (mode == "100755") {
        return false;
    }
    // One that was made long with `truncate` would be read for hours: sizes before contents.
    if stat.st_size as u64 > HASHED_UNASKED && sizes.of(oid) != Some(stat.st_size as u64) {
        return false;
    }
    sandbox_git::hash_file(oid.format(), &mut fs::File::from(file), stat.st_size as u64).is_ok_and(|hash| hash == *oid)
}

/// Which of these paths git ignores, by the host's own rules.
fn ignored(git: &Git, host: &HostRepo, changes: &[ChangedFile], skip: usize) -> Result<BTreeSet<Vec<u8>>> {
    let Some(top) = host.top().filter(|_| !changes.is_empty()) else { return Ok(BTreeSet::new()) };
    fn within(change: &ChangedFile, skip: usize) -> &[u8] {
        change.path.get(skip..).unwrap_or_default()
    }
    let command = git.user(top).config("core.fsmonitor=false").config("core.hooksPath=/dev/null");
    let hidden = sandbox_git::ignored(command, top, changes.iter().map(|change| within(change, skip)))?;
    Ok(changes
        .iter()
        .filter(|change| hidden.contains(within(change, skip)))
        .map(|change| change.path.clone())
        .collect())
}

/// What would be lost with this sandbox. Its commits must have been brought home before.
pub fn unsaved(git: &Git, store: &Store, sandbox: &Sandbox) -> Result<Unsaved> {
    let mut unsaved = unsaved_of_tree(git, store, &sandbox.at(0))?;
    for tree in sandbox.trees().skip(1).filter(|tree| !tree.mount().read_only) {
        let top = &tree.mount().worktree;
        let absolute = |change: ChangedFile| change.below(top);
        let other = unsaved_of_tree(git, store, &tree)?;
        if other.commits > 0 {
            let commits = if other.commits == 1 { "1 commit".to_owned() } else { format!("{} commits", other.commits) };
            let (name, shown) = (sandbox.name(), top.display());
            unsaved.elsewhere.push(format!("{commits} of '{shown}' only at refs/sandbox/{name} there"));
        }
        if tree.mount().directory && !other.files.is_empty() {
            unsaved.directories.push(top.clone());
        }
        unsaved.elsewhere.extend(other.elsewhere.into_iter().map(|line| format!("in '{}': {line}", top.display())));
        unsaved.files.extend(other.files.into_iter().map(absolute));
        unsaved.ignored.extend(other.ignored.into_iter().map(absolute));
        unsaved.ignored_bytes += other.ignored_bytes;
    }
    if let Some(refused) = crate::commit_back::refused(sandbox) {
        unsaved.elsewhere.extend(refused);
    }
    Ok(unsaved)
}

fn unsaved_of_tree(git: &Git, store: &Store, sandbox: &Sandbox) -> Result<Unsaved> {
    let mut left = uncommitted_now(git, store, sandbox)?;
    if sandbox.mount().directory {
        left.files.retain(|change| !has(&sandbox.mount().worktree, sandbox, change));
        return Ok(Unsaved { files: left.files, ..Unsaved::default() });
    }
    let host = host(store, sandbox)?;
    left.files.retain(|change| !host_has(&host, sandbox, change));
    let mut unsaved = Unsaved {
        commits: only_here(git, &host, sandbox.name())?,
        files: left.files,
        ignored: left.ignored,
        ignored_bytes: left.ignored_bytes,
        ..Unsaved::default()
    };
    let snapshot = sandbox.snapshot(store)?;
    for view in snapshot.git.views.iter().filter(|view| !view.path.as_os_str().is_empty()) {
        let path = view.path.display();
        // One that is not found has nothing of what was brought to it.
        let Ok(nested) = crate::commit_back::nested_host(view, &snapshot, &host) else {
            unsaved.elsewhere.push(format!("the repository of '{path}' is gone: its commits may be only here"));
            continue;
        };
        let commits = only_here(git, &nested, sandbox.name())?;
        if commits > 0 {
            let name = sandbox.name();
            unsaved.elsewhere.push(format!("{commits} commits of '{path}' only at refs/sandbox/{name} there"));
        }
    }
    for path in crate::made_inside::repositories(sandbox, &snapshot).map_err(WorkError::Changes)? {
        unsaved
            .elsewhere
            .push(format!("'{path}' is a repository that the host does not have: its commits cannot be brought home"));
    }
    for path in staged_only(git, store, sandbox)? {
        unsaved.elsewhere.push(format!("'{path}' is staged with content that is in no commit and in no file"));
    }
    for path in crate::made_inside::worktrees_at_home(sandbox) {
        unsaved.elsewhere.push(format!("'{path}' is a worktree in the sandbox's home: its files are only there"));
    }
    Ok(unsaved)
}

/// Paths whose staged content is in no commit and in no file.
pub fn staged_only(git: &Git, store: &Store, sandbox: &Sandbox) -> Result<Vec<String>> {
    let (host, snapshot) = (host(store, sandbox)?, sandbox.snapshot(store)?);
    let layer = store.repo(&sandbox.mount().repo).layer_tree(&snapshot.git_layer);
    let tip = read_ref(git, &host, &format!("refs/sandbox/{}", sandbox.name()))?;
    let tip = tip.or_else(|| snapshot.git.base.as_deref().and_then(Oid::parse));
    Ok(crate::made_inside::staged_only(git, &host, sandbox, &layer, tip.as_ref())?)
}

/// The host's working tree has the same at this path (it was applied, or made there too).
fn host_has(host: &HostRepo, sandbox: &Sandbox, change: &ChangedFile) -> bool {
    host.top().is_some_and(|top| has(top, sandbox, change))
}

fn has(top: &Path, sandbox: &Sandbox, change: &ChangedFile) -> bool {
    use std::os::unix::fs::PermissionsExt;
    let path = top.join(change.as_path());
    let there = fs::symlink_metadata(&path);
    // Sizes before contents.
    let size = fs::symlink_metadata(sandbox.upper().join(change.as_path())).ok().filter(fs::Metadata::is_file);
    if size.is_some_and(|size| there.as_ref().is_ok_and(|there| there.is_file() && there.len() != size.len())) {
        return false;
    }
    match (change.what, there) {
        (Changed::Deleted, there) => there.is_err(),
        (_, Err(_)) => false,
        (_, Ok(meta)) => match read_changed(sandbox, change) {
            Ok(Content::Symlink(target)) => {
                meta.is_symlink() && fs::read_link(&path).is_ok_and(|to| to.as_os_str().as_bytes() == target)
            }
            Ok(Content::File { executable, bytes }) => {
                meta.is_file()
                    && (meta.permissions().mode() & 0o100 != 0) == executable
                    && meta.len() == bytes.len() as u64
                    && fs::read(&path).is_ok_and(|there| there == bytes)
            }
            Err(_) => false,
        },
    }
}

/// Commits that only the sandbox's own refs reach.
fn only_here(git: &Git, host: &HostRepo, name: &str) -> Result<usize> {
    if !may_have_refs(host, name) {
        return Ok(0);
    }
    let own = [format!("refs/sandbox/{name}"), format!("refs/sandbox-meta/{name}/")];
    let listing =
        host.read(git).args(["for-each-ref", "--format=%(objecttype) %(objectname)", &own[0], &own[1]]).output()?;
    let text = String::from_utf8_lossy(&listing.stdout).into_owned();
    let tips: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("commit ").or(line.strip_prefix("tag "))).collect();
    if tips.is_empty() {
        return Ok(0);
    }
    let mut input = String::new();
    for tip in tips {
        input.push_str(tip);
        input.push('\n');
    }
    let count = host
        .read(git)
        .args([
            "rev-list",
            "--count",
            "--stdin",
            "--not",
            &format!("--exclude=refs/sandbox/{name}"),
            &format!("--exclude=refs/sandbox-meta/{name}/*"),
            "--all",
        ])
        .stdin(input)
        .line()?;
    Ok(count.trim().parse().unwrap_or(0))
}

/// The host has everything that the sandbox made. Its commits must have been brought home before.
pub fn nothing_left(git: &Git, store: &Store, sandbox: &Sandbox) -> Result<bool> {
    Ok(unsaved(git, store, sandbox)?.is_empty())
}

/// Something in a git directory inside was written that may be a commit or a ref, in any of its repositories.
pub fn git_changed(store: &Store, sandbox: &Sandbox) -> Result<bool> {
    // What was not seen may have changed.
    if !picture::is_fresh(sandbox, &[])? {
        return Ok(true);
    }
    for tree in sandbox.trees().filter(|tree| tree.mount().has_commits()) {
        if git_changed_in_tree(store, &tree)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn git_changed_in_tree(store: &Store, sandbox: &Sandbox) -> Result<bool> {
    let upper = sandbox.upper();
    let snapshot = sandbox.snapshot(store)?;
    let layer = store.repo(&sandbox.mount().repo).layer_tree(&snapshot.git_layer);
    let mut dirs: Vec<PathBuf> = vec![".git".into()];
    for view in &snapshot.git.views {
        if let Ok(relative) = view.inside_gitdir.strip_prefix(&sandbox.mount().worktree) {
            dirs.push(relative.to_owned());
        }
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // What cannot be looked at counts as changed: then it is looked at more closely.
    let Ok(root) = rustix::fs::open(&upper, flags, rustix::fs::Mode::empty()) else { return Ok(true) };
    let written = |below: &PathBuf| {
        let harmless =
            |name: &std::ffi::OsStr| matches!(name.as_bytes(), b"index" | b"COMMIT_EDITMSG" | b"gc.log" | b"objects");
        // In a copy it is there, unless somebody deleted it: then nothing is to be had of it.
        if sandbox.record.view == TreeView::Copy {
            return whole::exists_beneath(root.as_fd(), below)
                && whole::git_dir_changed(&layer.join(below), root.as_fd(), below, harmless);
        }
        match whole::list_beneath(root.as_fd(), below) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            // Replaced by something else, or by what cannot be listed: look closer.
            Err(_) => true,
            Ok(listed) => listed.names.iter().any(|name| !harmless(name)),
        }
    };
    Ok(dirs.iter().any(written))
}

/// Bytes on disk of what is the sandbox's own.
pub fn disk(sandbox: &Sandbox) -> u64 {
    disk_of(sandbox.dir.path())
}

/// Bytes on disk of a tree; each file once, nothing outside its file system.
pub fn disk_of(root: &Path) -> u64 {
    extent_of(root).bytes
}

/// What a tree takes of its disk, as [`disk_of`] counts.
pub fn extent_of(root: &Path) -> Need {
    let Ok(top) = fs::symlink_metadata(root) else { return Need::default() };
    let mut sum = Need { bytes: top.blocks() * 512, inodes: 1 };
    let mut seen = BTreeSet::new();
    let mut waiting = if top.is_dir() { vec![root.to_owned()] } else { Vec::new() };
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.dev() != top.dev() {
                continue;
            }
            if meta.is_dir() {
                waiting.push(entry.path());
            } else if meta.nlink() > 1 && !seen.insert(meta.ino()) {
                continue;
            }
            sum.bytes += meta.blocks() * 512;
            sum.inodes += 1;
        }
    }
    sum
}

/// What a changed file is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A regular file.
    File {
        /// Executable by its owner.
        executable: bool,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// A symlink and its target.
    Symlink(Vec<u8>),
}

/// Larger files are not brought over as uncommitted edits, in bytes.
const MAX_EDIT: u64 = 256 << 20;

/// Reads a changed file of the upper directory, beneath its root and without following links.
pub fn read_changed(sandbox: &Sandbox, change: &ChangedFile) -> io::Result<Content> {
    use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, openat2, statat};
    use std::io::Read;
    let dir_flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(sandbox.upper(), dir_flags, Mode::empty())?;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let path = change.as_path();
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let dir = openat2(&root, parent, dir_flags, Mode::empty(), beneath)?;
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let stat = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => Ok(Content::Symlink(rustix::fs::readlinkat(&dir, name, Vec::new())?.into_bytes())),
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = fs::File::from(rustix::fs::openat(&dir, name, flags, Mode::empty())?);
            let mut bytes = Vec::new();
            file.take(MAX_EDIT + 1).read_to_end(&mut bytes)?;
            if bytes.len() as u64 > MAX_EDIT {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            Ok(Content::File { executable: stat.st_mode & 0o100 != 0, bytes })
        }
        _ => Err(io::Error::new(io::ErrorKind::Unsupported, "neither a regular file nor a symlink")),
    }
}
