//! What sessions have pushed, for the administrator: looked at, saved as a bundle, dropped.
//!
//! ```text
//! list ─► Held ─┬─► bundle ─► a file that git clones and fetches from ── it arrived ─► saved
//!               └─► drop: at once when it is saved as it is now, otherwise only when that is insisted on
//!
//! <the repository>/objects/info/saved-<session>    lines `<oid> <ref>` of what is known to be elsewhere
//! ```

mod aged;

pub use aged::Expired;

use super::{Isolation, PREFIX, last_push, used};
use crate::identity::SessionId;
use crate::layout::Layout;
use crate::name::RepoName;
use crate::repo::{MirrorRepo, RepoError};
use sandbox_git::{Git, GitError, Oid, printable};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// How long making a bundle may take.
const BUNDLE: Duration = Duration::from_secs(3600);
/// Commits of a reader that are left out of a bundle.
const HAVES: usize = 1024;
/// What is asked of each ref, separated by NUL.
const FORMAT: &str =
    "--format=%(objectname)%00%(objecttype)%00%(refname)%00%(creatordate:unix)%00%(authorname)%00%(subject)";

/// What one session has pushed to one repository. Names, authors and subjects are from inside a sandbox: what is not
/// printable in them is escaped here, and a terminal is still to be protected from the rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The repository.
    pub repo: RepoName,
    /// The session.
    pub session: SessionId,
    /// Who can read it.
    pub isolation: Isolation,
    /// Its refs, sorted by name.
    pub refs: Vec<HeldRef>,
    /// Bytes, where the session has a repository of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Seconds since 1970 of the last push, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pushed: Option<u64>,
    /// Somebody has all of it as it is now.
    pub saved: bool,
}

/// One ref of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldRef {
    /// Its full name.
    pub name: String,
    /// What it points to.
    pub oid: Oid,
    /// Seconds since 1970, by the clock of whoever made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<i64>,
    /// The author.
    pub author: String,
    /// The first line of its message.
    pub subject: String,
}

/// All of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllHeld {
    /// Sorted by repository and session.
    pub scratch: Vec<Held>,
}

/// Which part of it a bundle shall have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// Commits that the reader has with all that is behind them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub haves: Vec<Oid>,
}

/// What somebody has elsewhere: refs and where they pointed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// By the names of [`HeldRef`].
    pub refs: BTreeMap<String, Oid>,
}

/// It could not be done.
#[derive(Debug, thiserror::Error)]
pub enum HeldError {
    /// There is nothing of it.
    #[error("session '{session}' has pushed nothing to '{repo}'")]
    Absent {
        /// The repository.
        repo: RepoName,
        /// The session.
        session: SessionId,
    },
    /// Nobody has it elsewhere.
    #[error("what session '{session}' has pushed to '{repo}' is nowhere else")]
    NotSaved {
        /// The repository.
        repo: RepoName,
        /// The session.
        session: SessionId,
    },
    /// A push came in between.
    #[error("session '{session}' has just pushed to '{repo}'")]
    Changed {
        /// The repository.
        repo: RepoName,
        /// The session.
        session: SessionId,
    },
    /// Git said no.
    #[error(transparent)]
    Git(#[from] GitError),
    /// A repository could not be made.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// A file could not be read or written.
    #[error("cannot use '{}'", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Looks at the scratch refs of a store, and changes them.
#[derive(Clone, Debug)]
pub struct Holdings {
    git: Git,
    layout: Layout,
}

/// One session's refs in one repository of the store.
struct Place {
    dir: PathBuf,
    isolation: Isolation,
    session: SessionId,
    refs: Vec<Ref>,
}

struct Ref {
    name: Vec<u8>,
    commit: bool,
    shown: HeldRef,
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> HeldError {
    let path = path.to_owned();
    move |source| HeldError::Io { path, source }
}

impl Holdings {
    /// Of this store.
    pub fn new(git: Git, layout: Layout) -> Self {
        Self { git, layout }
    }

    /// All that sessions have pushed to a repository, and still have refs to.
    pub fn list(&self, repo: &RepoName) -> Result<Vec<Held>, HeldError> {
        let mut held = self.places(repo)?.iter().map(|place| place.told(repo)).collect::<Result<Vec<_>, _>>()?;
        held.sort_by(|a, b| a.session.cmp(&b.session));
        Ok(held)
    }

    /// What one session has pushed to it.
    pub fn show(&self, repo: &RepoName, session: &SessionId) -> Result<Held, HeldError> {
        self.place(repo, session)?.told(repo)
    }

    /// Makes a bundle of it: a file that `git clone` and `git fetch` read. It has each ref under its own name, and
    /// commits as branches too (`refs/heads/<session>…`), with `HEAD` on one of them. All history is in it, without what
    /// is behind the commits that are not wanted; `None` if nothing is left then.
    pub fn bundle(&self, repo: &RepoName, session: &SessionId, wanted: &Wanted) -> Result<Option<File>, HeldError> {
        let place = self.place(repo, session)?;
        let tmp = self.layout.tmp();
        let beside = tempfile::Builder::new().prefix("bundle-").tempdir_in(&tmp).map_err(io_error(&tmp))?;
        let (made, file) = (beside.path().join("r.git"), beside.path().join("bundle"));
        let format = place.refs.first().map(|of| of.shown.oid.format()).unwrap_or_default();
        // In a repository of its own: what is named here is nobody else's to see.
        let view = MirrorRepo::create_plain(&self.git, &made, format)?;
        let alternates = made.join("objects/info/alternates");
        let line = format!("{}\n", place.dir.join("objects").display());
        std::fs::create_dir_all(made.join("objects/info")).map_err(io_error(&made))?;
        std::fs::write(&alternates, line).map_err(io_error(&alternates))?;
        let (mut updates, mut names) = (Vec::new(), Vec::new());
        let mut add = |name: &[u8], oid: &Oid| {
            updates.extend_from_slice(b"create ");
            updates.extend_from_slice(name);
            updates.extend_from_slice(format!(" {oid}\n").as_bytes());
            names.extend_from_slice(name);
            names.push(b'\n');
        };
        for of in &place.refs {
            add(&of.name, &of.shown.oid);
            if of.commit {
                add(&branch(&of.name), &of.shown.oid);
            }
        }
        view.git(&self.git).args(["update-ref", "--stdin"]).stdin(updates).run()?;
        let own = format!("{PREFIX}{session}").into_bytes();
        let newest = place.refs.iter().filter(|of| of.commit).max_by_key(|of| (of.name == own, of.shown.time));
        if let Some(head) = newest {
            let head = branch(&head.name);
            view.git(&self.git).args(["symbolic-ref", "HEAD"]).arg(os(&head)).run()?;
            names.extend_from_slice(b"HEAD\n");
        }
        let haves = self.known(&view, &wanted.haves)?;
        haves.iter().for_each(|oid| names.extend_from_slice(format!("^{oid}\n").as_bytes()));
        if !haves.is_empty() {
            let count = view.git(&self.git).args(["rev-list", "--objects", "--max-count=1", "--stdin"]);
            if count.stdin(names.clone()).output()?.stdout.is_empty() {
                return Ok(None);
            }
        }
        let create =
            view.git(&self.git).timeout(BUNDLE).args(["bundle", "create", "--quiet"]).arg(&file).arg("--stdin");
        create.stdin(names).run()?;
        // Its name goes with the directory; whoever has it open reads on.
        File::open(&file).map(Some).map_err(io_error(&file))
    }

    /// The commits among these that are here.
    fn known(&self, view: &MirrorRepo, haves: &[Oid]) -> Result<Vec<Oid>, HeldError> {
        if haves.is_empty() {
            return Ok(Vec::new());
        }
        let input: String = haves.iter().take(HAVES).map(|oid| format!("{oid}\n")).collect();
        let asked = ["cat-file", "--batch-check=%(objectname) %(objecttype)"];
        let there = view.git(&self.git).args(asked).stdin(input).output()?.stdout;
        let there = String::from_utf8_lossy(&there);
        Ok(there.lines().filter_map(|line| Oid::parse(line.strip_suffix(" commit")?)).collect())
    }

    /// Remembers what somebody has elsewhere now.
    pub fn saved(&self, repo: &RepoName, session: &SessionId, saved: &Saved) -> Result<(), HeldError> {
        let place = self.place(repo, session)?;
        let mut lines = String::new();
        for of in &place.refs {
            if saved.refs.get(&of.shown.name) == Some(&of.shown.oid) {
                let _ = writeln!(lines, "{} {}", of.shown.oid, of.shown.name);
            }
        }
        let path = place.saved_file();
        let mut file = tempfile::NamedTempFile::new_in(&place.dir).map_err(io_error(&path))?;
        file.write_all(lines.as_bytes()).map_err(io_error(&path))?;
        file.persist(&path).map_err(|error| io_error(&path)(error.error))?;
        Ok(())
    }

    /// Drops all refs of a session, and what only they have; `force`: also what is nowhere else.
    pub fn drop(&self, repo: &RepoName, session: &SessionId, force: bool) -> Result<Held, HeldError> {
        let place = self.place(repo, session)?;
        let held = place.told(repo)?;
        if !force && !held.saved {
            return Err(HeldError::NotSaved { repo: repo.clone(), session: session.clone() });
        }
        let changed = || HeldError::Changed { repo: repo.clone(), session: session.clone() };
        match place.isolation {
            Isolation::Session => self.remove_own(repo, &place)?,
            Isolation::Repo => {
                let mut updates = b"start\n".to_vec();
                for of in &place.refs {
                    updates.extend_from_slice(b"delete ");
                    updates.extend_from_slice(&of.name);
                    updates.extend_from_slice(format!(" {}\n", of.shown.oid).as_bytes());
                }
                updates.extend_from_slice(b"prepare\ncommit\n");
                let gone = MirrorRepo::at(&place.dir).git(&self.git).args(["update-ref", "--stdin"]).stdin(updates);
                // Each is deleted as it was looked at, or none.
                gone.run().map_err(|_| changed())?;
                let _ = std::fs::remove_file(place.saved_file());
            }
        }
        Ok(held)
    }

    /// Removes a session's own repository as it was looked at: first it goes out of the way of pushes, then it is looked
    /// at once more.
    fn remove_own(&self, repo: &RepoName, place: &Place) -> Result<(), HeldError> {
        let tmp = self.layout.tmp();
        let aside = tempfile::Builder::new().prefix("dropped-").tempdir_in(&tmp).map_err(io_error(&tmp))?;
        let moved = aside.path().join("r.git");
        std::fs::rename(&place.dir, &moved).map_err(io_error(&place.dir))?;
        let now = read(&self.git, &moved, &format!("{PREFIX}{}", place.session));
        if !matches!(&now, Ok(now) if same(now, &place.refs)) {
            // Who pushes meanwhile has made a new one: then this one stays aside, and is not lost.
            std::fs::rename(&moved, &place.dir).map_err(|error| {
                let _ = aside.keep();
                io_error(&place.dir)(error)
            })?;
            let changed = HeldError::Changed { repo: repo.clone(), session: place.session.clone() };
            return Err(now.map_or_else(|error| error, |_| changed));
        }
        aside.close().map_err(io_error(&place.dir))
    }

    fn place(&self, repo: &RepoName, session: &SessionId) -> Result<Place, HeldError> {
        let found = self.places(repo)?.into_iter().find(|place| place.session == *session);
        found.ok_or_else(|| HeldError::Absent { repo: repo.clone(), session: session.clone() })
    }

    fn places(&self, repo: &RepoName) -> Result<Vec<Place>, HeldError> {
        let mut places = Vec::new();
        for (session, dir) in self.own(repo)? {
            let refs = read(&self.git, &dir, &format!("{PREFIX}{session}"))?;
            if !refs.is_empty() {
                places.push(Place { dir, isolation: Isolation::Session, session, refs });
            }
        }
        let mirror = self.layout.mirror(repo);
        if mirror.join("HEAD").exists() {
            let mut by: BTreeMap<SessionId, Vec<Ref>> = BTreeMap::new();
            for of in read(&self.git, &mirror, PREFIX.trim_end_matches('/'))? {
                let rest = of.name.strip_prefix(PREFIX.as_bytes()).unwrap_or_default();
                let session = rest.split(|byte| *byte == b'/').next().and_then(|id| std::str::from_utf8(id).ok());
                if let Some(session) = session.and_then(|id| id.parse().ok()) {
                    by.entry(session).or_default().push(of);
                }
            }
            places.extend(by.into_iter().map(|(session, refs)| Place {
                dir: mirror.clone(),
                isolation: Isolation::Repo,
                session,
                refs,
            }));
        }
        Ok(places)
    }
}

impl Place {
    fn saved_file(&self) -> PathBuf {
        // Where its writing is not taken for a push.
        self.dir.join(format!("objects/info/saved-{}", self.session))
    }

    fn told(&self, repo: &RepoName) -> Result<Held, HeldError> {
        let own = self.isolation == Isolation::Session;
        let known = std::fs::read_to_string(self.saved_file()).unwrap_or_default();
        let known: BTreeMap<&str, &str> =
            known.lines().filter_map(|line| line.split_once(' ')).map(|(oid, name)| (name, oid)).collect();
        let is_saved = |of: &Ref| known.get(&*of.shown.name).is_some_and(|oid| Oid::parse(oid) == Some(of.shown.oid));
        let pushed = own.then(|| last_push(&self.dir)).transpose().map_err(io_error(&self.dir))?;
        Ok(Held {
            repo: repo.clone(),
            session: self.session.clone(),
            isolation: self.isolation,
            refs: self.refs.iter().map(|of| of.shown.clone()).collect(),
            bytes: own.then(|| used(&self.dir)).transpose().map_err(io_error(&self.dir))?,
            pushed: pushed.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map(|since| since.as_secs()),
            saved: self.refs.iter().all(is_saved),
        })
    }
}

/// The refs of a repository that are `prefix` or below it.
fn read(git: &Git, dir: &Path, prefix: &str) -> Result<Vec<Ref>, HeldError> {
    let out = MirrorRepo::at(dir).git(git).args(["for-each-ref", FORMAT, prefix]).output()?.stdout;
    let of = |line: &[u8]| {
        let mut parts = line.split(|byte| *byte == 0);
        let oid = Oid::parse(parts.next()?)?;
        let commit = parts.next()? == b"commit";
        let name = parts.next()?.to_vec();
        let time = std::str::from_utf8(parts.next()?).ok()?.parse().ok();
        let author = printable(parts.next()?);
        let subject = printable(parts.next()?);
        Some(Ref { commit, shown: HeldRef { name: printable(&name), oid, time, author, subject }, name })
    };
    Ok(out.split(|byte| *byte == b'\n').filter_map(of).collect())
}

fn same(one: &[Ref], other: &[Ref]) -> bool {
    let of = |refs: &[Ref]| -> Vec<(Vec<u8>, Oid)> { refs.iter().map(|of| (of.name.clone(), of.shown.oid)).collect() };
    of(one) == of(other)
}

/// The branch of a bundle for a scratch ref: `refs/agents/s42/wip` is `refs/heads/s42/wip`.
fn branch(name: &[u8]) -> Vec<u8> {
    let rest = name.strip_prefix(PREFIX.as_bytes()).unwrap_or(name);
    [b"refs/heads/", rest].concat()
}

fn os(bytes: &[u8]) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(bytes)
}
