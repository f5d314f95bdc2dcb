//! The git layer: `.git` as it is inside at the start, of the repository and of those within it.
//!
//! ```text
//! <layer>/
//!   .git/
//!     HEAD  packed-refs  refs/  logs/      what was granted, no more
//!     index                                the host's, with the layer files' stat data; its own mtime
//!     config                               made key by key; includes /run/git-sandbox/repo.config first
//!     objects/info/alternates              /run/git-sandbox/objects/<view key>
//!     info/  hooks/  rr-cache/  lfs/       copied
//!     MERGE_HEAD … rebase-merge/ …         an operation in progress
//!     git-sandbox/{ignore,attributes}      the user's own rules
//!     modules/<name>/                      submodules, each made by the same rules
//!   <nested>/.git/                         other repositories within the tree
//! ```
//!
//! It is shared by all sandboxes of one state of the repository, and costs no process when the
//! repository's [`fingerprint`] is what it was. A linked work tree becomes an ordinary one.

mod checkout;
mod config;
mod fingerprint;
mod notes;
mod operation;
mod reflog;
mod remembered;
mod survey;
mod write;

pub use checkout::{CheckedOut, tree_checkout};
pub use fingerprint::{Fingerprint, fingerprint};
pub use remembered::Remembered;

use crate::host_repo::{HostRepo, HostRepoError};
use crate::launch::INSIDE;
use crate::record::{GitFacts, ViewRecord};
use crate::store::{RepoDir, StoreError};
use crate::view::{View, ViewError, Views};
use sandbox_git::index::{IndexError, Stat};
use sandbox_git::refs::{RefStore, RefsError};
use sandbox_git::{Git, GitError, Oid, RefName};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;
use survey::Survey;
use write::{Place, write};

/// How long a running git command is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often the layer is begun again when the repository changed while it was made.
const ATTEMPTS: usize = 5;

/// A captured file: what it was on the host, and what its copy in a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// The host's file when it was captured.
    pub host: Stat,
    /// The copy that will be seen inside.
    pub layer: Stat,
}

/// What the capture knows about files, by path from the top of the work tree.
pub trait Captured {
    /// Returns both sides of a file or symlink; `None` if it was not carried.
    fn file(&self, path: &[u8]) -> Option<Carried>;
}

impl<F: Fn(&[u8]) -> Option<Carried>> Captured for F {
    fn file(&self, path: &[u8]) -> Option<Carried> {
        self(path)
    }
}

/// A ref that the user grants by name (`--grant REF`, `sandbox.grant`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// A full name, a short one, or one with a `*` at its end.
    pub pattern: String,
    /// It is an error when nothing matches.
    pub required: bool,
}

impl Grant {
    /// Names of the refs that it means.
    fn matching(&self, refs: &RefStore) -> Vec<RefName> {
        if let Some(prefix) = self.pattern.strip_suffix('*') {
            let full = if prefix.starts_with("refs/") { prefix.to_owned() } else { format!("refs/heads/{prefix}") };
            return refs.refs.keys().filter(|name| name.as_bytes().starts_with(full.as_bytes())).cloned().collect();
        }
        let spellings = ["", "refs/", "refs/tags/", "refs/heads/", "refs/remotes/"];
        let names = spellings.iter().filter_map(|prefix| RefName::parse(format!("{prefix}{}", self.pattern)));
        names.into_iter().find(|name| refs.refs.contains_key(name)).into_iter().collect()
    }
}

/// What a git layer is made from.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// Git.
    pub git: &'a Git,
    /// The repository's directory in the store.
    pub repo: &'a RepoDir,
    /// The repository.
    pub host: &'a HostRepo,
    /// Work trees of nested repositories and submodules, relative to the top.
    pub nested: &'a [PathBuf],
    /// The capture.
    pub captured: &'a dyn Captured,
    /// Who owns what is written, when we are root.
    pub owner: Option<(u32, u32)>,
    /// Refs granted by name.
    pub grants: &'a [Grant],
    /// `sandbox.objects = all`.
    pub all_objects: bool,
}

/// A git layer that was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Made {
    /// What is known about git now.
    pub facts: GitFacts,
    /// What the repository was when the layer was made.
    pub fingerprint: Fingerprint,
    /// Further files whose change makes another layer (where configuration came from).
    pub hints: Vec<PathBuf>,
}

/// Why there is no git layer.
#[derive(Debug, thiserror::Error)]
pub enum GitDirError {
    /// The repository cannot be used.
    #[error("cannot read the repository")]
    Host(#[from] HostRepoError),
    /// Git failed.
    #[error("cannot ask git about the repository")]
    Git(#[from] GitError),
    /// Refs could not be read.
    #[error("cannot read the refs")]
    Refs(#[from] RefsError),
    /// The index is damaged.
    #[error("cannot read the index")]
    Index(#[from] IndexError),
    /// The objects could not be collected.
    #[error("cannot make the view of the object store")]
    View(#[from] ViewError),
    /// The state directory.
    #[error("cannot use the state directory")]
    Store(#[from] StoreError),
    /// A granted ref does not exist.
    #[error("no ref matches '{name}'", name = sandbox_git::printable(name.as_bytes()))]
    NoSuchRef {
        /// As it was asked for.
        name: String,
    },
    /// The revision does not name a commit.
    #[error("'{rev}' is not a commit", rev = sandbox_git::printable(rev.as_bytes()))]
    NoSuchCommit {
        /// As it was asked for.
        rev: String,
    },
    /// The repository is damaged.
    #[error("the object {oid} of '{what}' is missing in the repository")]
    MissingObject {
        /// Which object.
        oid: Oid,
        /// What names it.
        what: &'static str,
    },
    /// A tree names a path that no work tree can have.
    #[error("the tree has an impossible path '{path}'")]
    BadPath {
        /// Escaped.
        path: String,
    },
    /// The repository changed again and again.
    #[error("the repository keeps changing: '{path}'", path = path.display())]
    Unsettled {
        /// Its git directory.
        path: PathBuf,
    },
    /// A file.
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

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> GitDirError {
    let path = path.to_owned();
    move |source| GitDirError::Io { action, path, source }
}

/// Writes the git layer into `layer` (an empty directory, or none yet) and makes the views that it
/// needs. Waits for a running git command; begins again when the repository changed meanwhile.
pub fn make(request: &Request<'_>, layer: &Path) -> Result<Made, GitDirError> {
    request.git.version()?;
    let look = |hints: &[PathBuf]| fingerprint(request.git, request.host, request.nested, hints);
    for _ in 0..ATTEMPTS {
        request.host.wait_quiet(PATIENCE)?;
        let before = look(&[]);
        clear(layer)?;
        let mut hints = Vec::new();
        let facts = attempt(request, layer, &mut hints)?;
        if look(&[]).same_state(&before) {
            return Ok(Made { facts, fingerprint: look(&hints), hints });
        }
    }
    Err(GitDirError::Unsettled { path: request.host.git_dir().to_owned() })
}

fn clear(layer: &Path) -> Result<(), GitDirError> {
    match fs::remove_dir_all(layer) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("remove", layer)(error)),
    }
    fs::create_dir_all(layer).map_err(failed("create", layer))
}

fn attempt(request: &Request<'_>, layer: &Path, hints: &mut Vec<PathBuf>) -> Result<GitFacts, GitDirError> {
    let top = request.host.worktree()?;
    let main = survey::survey(
        request.git,
        request.host,
        request.grants,
        request.all_objects,
        &[],
        Some(&request.repo.vault()),
    )?;
    *hints = main.listing.files(top);
    let place = Place { layer, at: PathBuf::new(), gitdir: PathBuf::from(".git"), top };
    let (record, config) = one(request, request.host, &main, &place, true)?;
    let mut facts = GitFacts {
        base: record.base.clone(),
        branch: record.branch.clone(),
        granted: record.granted.clone(),
        object_format: record.object_format.clone(),
        user_config: config.user,
        remotes: config.remotes,
        notes: config.notes,
        views: vec![record],
    };
    facts.notes.extend(main.notes.iter().cloned());
    facts.notes.extend(missing_filters(request.git, &main, top));
    let mut surveys: BTreeMap<PathBuf, Survey> = BTreeMap::from([(PathBuf::new(), main)]);
    let mut nested: Vec<&PathBuf> = request.nested.iter().collect();
    // Outer ones first: their index says which commit of an inner one they want.
    nested.sort();
    for path in nested {
        match nested_place(request, layer, path) {
            Ok((host, place)) => {
                let pinned = pinned(&surveys, path);
                let survey = survey::survey(request.git, &host, &[], request.all_objects, &pinned, None)?;
                let (record, config) = one(request, &host, &survey, &place, false)?;
                facts.remotes.extend(config.remotes);
                facts.notes.extend(survey.notes.iter().map(|note| format!("'{}': {note}", path.display())));
                facts.views.push(record);
                surveys.insert(path.clone(), survey);
            }
            Err(note) => facts.notes.push(note),
        }
    }
    facts.remotes.sort();
    facts.remotes.dedup();
    write::settle(layer, top, request.nested, request.owner)?;
    Ok(facts)
}

/// Makes the view of one repository and writes its git directory.
fn one(
    request: &Request<'_>,
    host: &HostRepo,
    survey: &Survey,
    place: &Place<'_>,
    main: bool,
) -> Result<(ViewRecord, config::Made), GitDirError> {
    let views = Views { git: request.git, repo: request.repo, owner: request.owner, vault: main };
    let view =
        if request.all_objects { views.whole(host, &survey.wanted)? } else { views.ensure(host, &survey.wanted)? };
    let config = survey::configuration(survey, request.git, host.worktree()?);
    write(request, host, survey, &config, &view, place)?;
    Ok((record(host, survey, &view, place), config))
}

fn record(host: &HostRepo, survey: &Survey, view: &View, place: &Place<'_>) -> ViewRecord {
    ViewRecord {
        path: place.at.clone(),
        host_gitdir: host.common_dir().to_owned(),
        inside_gitdir: place.top.join(&place.gitdir),
        key: view.key().to_owned(),
        base: survey.head.map(|oid| oid.to_string()),
        branch: survey.refs.head_branch().and_then(RefName::to_str).map(str::to_owned),
        granted: survey.granted.iter().map(Oid::to_string).collect(),
        object_format: host.format().to_string(),
        shallow: view.shallow().iter().map(Oid::to_string).collect(),
        partial: view.is_partial(),
    }
}

/// Finds a nested repository and where its git directory will be inside; the note for the user if
/// it cannot be carried.
fn nested_place<'a>(request: &Request<'a>, layer: &'a Path, path: &Path) -> Result<(HostRepo, Place<'a>), String> {
    let main = request.host;
    let top = main.worktree().map_err(|error| error.to_string())?;
    let told = |why: &str| format!("'{}' {why}: its files are carried, its '.git' is not", path.display());
    let host = HostRepo::nested(&top.join(path)).map_err(|_| told("is not a repository that git knows"))?;
    if host.common_dir() == main.common_dir() {
        return Err(told("is another work tree of this repository"));
    }
    let me = rustix::process::geteuid().as_raw();
    if host.owner().0 != main.owner().0 && host.owner().0 != me {
        return Err(told("belongs to another user"));
    }
    let module = [main.common_dir(), main.git_dir()]
        .iter()
        .find_map(|dir| host.git_dir().strip_prefix(dir.join("modules")).ok())
        .map(|name| Path::new(".git/modules").join(name));
    let gitdir = match module {
        Some(gitdir) => gitdir,
        None if host.is_linked() => path.join(".git"),
        None => match host.git_dir().strip_prefix(top) {
            Ok(same) => same.to_owned(),
            Err(_) => path.join(".git"),
        },
    };
    Ok((host, Place { layer, at: path.to_owned(), gitdir, top }))
}

/// The commit that the enclosing repository's index wants of the submodule at `path`.
fn pinned(surveys: &BTreeMap<PathBuf, Survey>, path: &Path) -> Vec<Oid> {
    use std::os::unix::ffi::OsStrExt;
    let outer = surveys.iter().rev().find(|(outer, _)| path.starts_with(outer));
    let Some((outer, survey)) = outer else { return Vec::new() };
    let Ok(relative) = path.strip_prefix(outer) else { return Vec::new() };
    let Some(index) = survey.index.as_ref().and_then(|file| file.index.as_ref()) else { return Vec::new() };
    let wanted = |entry: &&sandbox_git::index::Entry| {
        entry.mode & 0o170000 == 0o160000 && entry.path == relative.as_os_str().as_bytes()
    };
    index.entries().iter().filter(wanted).map(|entry| entry.oid).collect()
}

/// Filters that the tree's attributes select and whose program is not installed.
fn missing_filters(git: &Git, survey: &Survey, top: &Path) -> Vec<String> {
    let attributes = fs::read_to_string(top.join(".gitattributes")).unwrap_or_default();
    let used = |name: &str| attributes.contains(&format!("filter={name}"));
    let mut notes = Vec::new();
    for (name, program) in config::filter_programs(&survey.listing) {
        let program_found = match program.as_str() {
            // `git-lfs clean` and `git lfs …` are the usual spellings.
            "git" => git.env().find_program(&format!("git-{name}")).is_some(),
            program => git.env().find_program(program).is_some(),
        };
        if used(&name) && !program_found {
            notes.push(format!("the filter '{name}' needs '{program}', which is not installed"));
        }
    }
    if used("lfs") && git.env().find_program("git-lfs").is_none() {
        notes.push("'.gitattributes' uses the filter 'lfs', but 'git-lfs' is not installed".to_owned());
    }
    notes.sort();
    notes.dedup();
    notes
}

/// Refs that a git layer started with: what "created or moved inside" is measured against.
pub fn granted_refs(gitdir_in_layer: &Path) -> Result<BTreeMap<RefName, Oid>, GitDirError> {
    let store = RefStore::read_files(gitdir_in_layer, gitdir_in_layer)?;
    Ok(store.refs.keys().filter_map(|name| Some((name.clone(), store.resolve(name)?))).collect())
}

/// `../` as often as needed from directory `from` to `to`, both relative to the same place.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let (mut a, mut b) = (from.components().peekable(), to.components().peekable());
    while a.peek().is_some() && a.peek() == b.peek() {
        a.next();
        b.next();
    }
    let mut path: PathBuf = a.filter(|part| matches!(part, Component::Normal(_))).map(|_| "..").collect();
    path.extend(b);
    path
}

/// Where a view is mounted inside.
pub(crate) fn view_inside(key: &str) -> String {
    format!("{INSIDE}/objects/{key}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_between_git_directory_and_work_tree() {
        let to = |from: &str, to: &str| relative(Path::new(from), Path::new(to)).to_string_lossy().into_owned();
        assert_eq!(to("lib", ".git/modules/lib"), "../.git/modules/lib");
        assert_eq!(to(".git/modules/lib", "lib"), "../../../lib");
        assert_eq!(to("a/b", "a/.git/modules/b"), "../.git/modules/b");
    }
}
