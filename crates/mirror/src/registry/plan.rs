//! Changes of the registry as values: what a file or the admin API asks for, against what is there.
//!
//! Both come the same way. The file's repositories are all `Put`s of the origin `File`, and a `Remove` for each of
//! that origin that is not in the file any more ([`of_file`]).

use super::{Origin, Record, Snapshot, Spec, Status};
use crate::layout::Layout;
use crate::name::RepoName;
use crate::repo::MirrorRepo;
use sandbox_git::{Git, GitError};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Something that is asked of the registry.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Mirror this.
    Put(Spec, Origin),
    /// Mirror it no more. What it has on disk is not the registry's: see [`Removal`].
    Remove(RepoName, Origin),
}

/// Why a change cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The name is another upstream's.
    #[error("'{name}' is registered already, from '{url}'")]
    OtherUpstream {
        /// The name.
        name: RepoName,
        /// The upstream that it has.
        url: String,
    },
    /// Nothing of this name.
    #[error("no repository named '{name}'")]
    Unknown {
        /// The name.
        name: RepoName,
    },
    /// The admin API cannot change what the file says.
    #[error("'{name}' is in the configuration file")]
    InFile {
        /// The name.
        name: RepoName,
    },
}

impl Refused {
    /// The next step.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::OtherUpstream { .. } => "remove it first, or give the new one a `--name`",
            Self::Unknown { .. } => "`git sandbox mirror ls` shows them all",
            Self::InFile { .. } => "change it there, and send the service SIGHUP",
        }
    }
}

/// What will be written.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// New, or changed in what is asked for.
    pub put: Vec<Record>,
    /// Gone.
    pub removed: Vec<RepoName>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.removed.is_empty()
    }

    /// The registry after it.
    pub fn applied_to(&self, now: &Snapshot) -> Snapshot {
        let mut next = now.clone();
        for name in &self.removed {
            next.repos.remove(name);
        }
        for record in &self.put {
            next.repos.insert(record.spec.name.clone(), Arc::new(record.clone()));
        }
        next
    }
}

/// The changes that make the registry hold exactly these repositories of the file, beside those of the API.
pub fn of_file(now: &Snapshot, file: Vec<Spec>) -> Vec<Change> {
    let gone = now
        .repos
        .values()
        .filter(|record| record.origin == Origin::File && !file.iter().any(|spec| spec.name == record.spec.name))
        .map(|record| Change::Remove(record.spec.name.clone(), Origin::File))
        .collect::<Vec<_>>();
    gone.into_iter().chain(file.into_iter().map(|spec| Change::Put(spec, Origin::File))).collect()
}

/// Decides what a list of changes comes to; the whole list or nothing.
pub fn plan(now: &Snapshot, changes: Vec<Change>) -> Result<Plan, Refused> {
    let mut plan = Plan::default();
    for change in changes {
        match change {
            Change::Put(spec, origin) => {
                let Some(known) = now.repos.get(&spec.name) else {
                    plan.put.push(Record { spec, origin, paused: false, status: Status::default() });
                    continue;
                };
                if known.spec.url != spec.url {
                    // Its objects would be served under the name of another repository.
                    return Err(Refused::OtherUpstream { name: spec.name, url: known.spec.url.url().to_owned() });
                }
                if origin == Origin::Api && known.origin == Origin::File && known.spec != spec {
                    return Err(Refused::InFile { name: spec.name });
                }
                // Whoever named it in the file owns it.
                let origin = if known.origin == Origin::File { Origin::File } else { origin };
                if known.spec != spec || known.origin != origin {
                    plan.put.push(Record { spec, origin, ..Record::clone(known) });
                }
            }
            Change::Remove(name, origin) => match now.repos.get(&name) {
                None => return Err(Refused::Unknown { name }),
                Some(known) if known.origin != origin => return Err(Refused::InFile { name }),
                Some(_) => plan.removed.push(name),
            },
        }
    }
    Ok(plan)
}

/// What is on disk for a repository, before it is removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// Its name.
    pub name: RepoName,
    /// Directories that go.
    pub dirs: Vec<PathBuf>,
    /// Scratch refs: `session` (a repository of its own) or `refs/agents/session`. They cannot be made again.
    pub scratch: Vec<String>,
}

/// It was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemovalError {
    /// What sessions pushed is only here.
    #[error("'{name}' has scratch refs that are nowhere else: {}", list(scratch))]
    HasScratch {
        /// The repository.
        name: RepoName,
        /// Whose.
        scratch: Vec<String>,
    },
    /// Refs could not be read: what is not known to be absent is there.
    #[error("cannot tell whether '{name}' has scratch refs")]
    Unreadable {
        /// The repository.
        name: RepoName,
        /// What git said.
        source: GitError,
    },
    /// A directory could not be read or moved.
    #[error("cannot remove '{}'", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Whether a session's repository is one without refs: a push was refused, or all of it was deleted. What is not known
/// to be so is not.
fn is_empty(git: &Git, dir: &Path) -> bool {
    let refs = MirrorRepo::at(dir).git(git).args(["for-each-ref", "--format=%(refname)", "refs/agents"]);
    dir.join("HEAD").exists() && refs.output().is_ok_and(|out| out.stdout.is_empty())
}

fn list(scratch: &[String]) -> String {
    let first: Vec<&str> = scratch.iter().take(3).map(String::as_str).collect();
    let more = scratch.len().saturating_sub(3);
    if more == 0 { first.join(", ") } else { format!("{} and {more} more", first.join(", ")) }
}

impl Removal {
    /// Looks at what there is.
    pub fn look(git: &Git, layout: &Layout, name: &RepoName) -> Result<Self, RemovalError> {
        let (mirror, sessions) = (layout.mirror(name), layout.scratch_dir(name));
        let mut scratch = Vec::new();
        let unreadable = |path: &Path, source| RemovalError::Io { path: path.to_owned(), source };
        match std::fs::read_dir(&sessions) {
            Ok(entries) => {
                for entry in entries {
                    let entry = entry.map_err(|source| unreadable(&sessions, source))?;
                    if is_empty(git, &entry.path()) {
                        continue;
                    }
                    let file = entry.file_name();
                    let file = file.to_string_lossy();
                    scratch.push(sandbox_git::printable(file.trim_end_matches(".git").as_bytes()));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(unreadable(&sessions, source)),
        }
        if mirror.join("HEAD").exists() {
            let found = MirrorRepo::at(&mirror).git(git).args(["for-each-ref", "--format=%(refname)", "refs/agents"]);
            let found = found.output().map_err(|source| RemovalError::Unreadable { name: name.clone(), source })?;
            let lines = found.stdout.split(|b| *b == b'\n').filter(|line| !line.is_empty());
            scratch.extend(lines.map(sandbox_git::printable));
        }
        scratch.sort();
        let dirs = [mirror, sessions].into_iter().filter(|dir| dir.exists()).collect();
        Ok(Self { name: name.clone(), dirs, scratch })
    }

    /// Refuses while there is anything that cannot be made again.
    pub fn check(&self) -> Result<(), RemovalError> {
        if self.scratch.is_empty() {
            return Ok(());
        }
        Err(RemovalError::HasScratch { name: self.name.clone(), scratch: self.scratch.clone() })
    }

    /// Takes the directories away: first out of sight, whole, then from the disk.
    pub fn apply(&self, layout: &Layout) -> Result<(), RemovalError> {
        self.check()?;
        for dir in &self.dirs {
            let failed = |source| RemovalError::Io { path: dir.clone(), source };
            let aside = tempfile::Builder::new().prefix("removed-").tempdir_in(layout.tmp()).map_err(failed)?;
            std::fs::rename(dir, aside.path().join("x")).map_err(failed)?;
            aside.close().map_err(failed)?;
        }
        Ok(())
    }
}

impl fmt::Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "remove {}", self.name)?;
        self.dirs.iter().try_for_each(|dir| writeln!(f, "  {}", dir.display()))?;
        self.scratch.iter().try_for_each(|name| writeln!(f, "  lost for good: {name}"))
    }
}
