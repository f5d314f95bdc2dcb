//! Commits come home: one function for a sandbox that runs, was stopped, or crashed. The only
//! difference is who is on the other end of the connection: the supervisor of a live sandbox, or
//! a read-only helper over a stopped one's directories.
//!
//! ```text
//! for each repository, inner ones first:
//!   state  ◄── `__repo-state` inside (untrusted)
//!   plan   = which refs of the host that means            (landing::plan_refs)
//!   land   ◄── `git upload-pack` inside ─ checks          (landing::Landing)
//!   move   ─► objects, then one ref transaction           (Landing::move_to_host)
//! ```

use crate::brought::Seen;
use crate::connection::{Connection, ConnectionError};
use crate::gitdir::{GitDirError, granted_refs};
use crate::host_repo::{HostRepo, HostRepoError};
use crate::id::SandboxId;
use crate::journal::{End, Home, Journal, Plan, Verb, recover};
use crate::landing::{
    Base, Bounds, Conversation, Landing, LandingError, Owner, Planned, Update, Want, delete_refs, plan_refs,
};
use crate::launch::INSIDE;
use crate::orphan;
use crate::record::{Snapshot, ViewRecord};
use crate::sandbox::{Sandbox, SandboxError};
use crate::store::{Store, StoreError, make_dir, read_json, write_json};
use crate::view::{View, ViewError};
use crate::work::{self, WorkError};
use sandbox_git::refs::{RefStore, RefsError};
use sandbox_git::{Git, GitError, Oid, RefName};
use sandbox_protocol::{Exec, ExitStatus, REPO_STATE_VERB, RepoQuestion, RepoState, escape_bytes};
use sandbox_sys::lock::FileLock;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Bytes of a repository's state at most: 100 000 refs with long names.
const MAX_STATE: usize = 32 << 20;

/// How long one repository may take to tell its state. Inside, it is given less.
const MAX_TIME: Duration = Duration::from_secs(30);

/// What came home.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Brought {
    /// One line per ref that moved.
    pub lines: Vec<String>,
    /// Refs that were refused, and why.
    pub refused: Vec<(String, String)>,
}

/// Why nothing (more) came home.
#[derive(Debug, thiserror::Error)]
pub enum CommitBackError {
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The connection.
    #[error("cannot speak with the sandbox")]
    Connection(#[from] ConnectionError),
    /// The host repository.
    #[error(transparent)]
    Work(#[from] WorkError),
    /// The host repository.
    #[error(transparent)]
    Host(#[from] HostRepoError),
    /// Landing or moving.
    #[error("cannot bring commits home")]
    Landing(#[from] LandingError),
    /// Refs of the host.
    #[error("cannot read the refs of the repository")]
    Refs(#[from] RefsError),
    /// What was granted.
    #[error("cannot read what was granted")]
    Granted(#[from] GitDirError),
    /// The view.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Git.
    #[error("cannot remove the sandbox's refs")]
    Git(#[from] GitError),
    /// A view is gone.
    #[error("the view '{key}' is gone")]
    NoView {
        /// Its key.
        key: String,
    },
    /// What the sandbox said about its repository is not readable.
    #[error("the sandbox '{name}' cannot tell the state of its repository: {why}")]
    State {
        /// The sandbox.
        name: String,
        /// What it said, escaped.
        why: String,
    },
    /// A ref of this name was written by somebody else.
    #[error("'{name}' exists and was not written for this sandbox")]
    Foreign {
        /// The ref.
        name: String,
    },
    /// An earlier sandbox of this name left it, and nothing else has its commits.
    #[error("'refs/sandbox/{name}' has commits of an earlier sandbox of this name, and no branch or tag has them")]
    Earlier {
        /// Both.
        name: String,
    },
    /// A sandbox that is not here has this name, or had it.
    #[error("'refs/sandbox/{name}' is of the sandbox {id}, which is not in this state directory")]
    Elsewhere {
        /// Both.
        name: String,
        /// The other.
        id: SandboxId,
    },
    /// The lock.
    #[error("cannot lock '{path}'", path = path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

type Result<T> = std::result::Result<T, CommitBackError>;

/// Serialises commit-backs of one sandbox. Held while it is spoken with, and so nobody else's:
/// a sandbox that never answers holds up only itself.
pub(crate) fn bring_lock(sandbox: &Sandbox) -> Result<FileLock> {
    let path = sandbox.dir.path().join("bring.lock");
    FileLock::exclusive(&path).map_err(|source| CommitBackError::Lock { path, source })
}

/// Serialises ref moves of one repository: the order of locks stays store < repository < sandbox,
/// because this one is only ever taken last and never while waiting for another, or for a sandbox.
pub(crate) fn ref_lock(store: &Store, sandbox: &Sandbox) -> Result<FileLock> {
    // A copy of a state directory has no refs.
    store.id()?;
    let path = store.repo(&sandbox.mount().repo).path().join("refs.lock");
    FileLock::exclusive(&path).map_err(|source| CommitBackError::Lock { path, source })
}

/// Brings everything home that the sandbox committed, into each of its repositories.
pub fn commit_back(connection: &mut Connection, git: &Git, store: &Store, sandbox: &Sandbox) -> Result<Brought> {
    let _lock = bring_lock(sandbox)?;
    // One that was killed: what it left is gone before the next begins, and a git of it that still writes is waited for.
    let home = Home::Sandbox(sandbox.record.id.clone());
    recover::run(store, &mut recover::NoHands, recover::Which::Of(&home, &[Verb::Import], Duration::from_secs(10)))?;
    let (mut brought, mut seen) = (Brought::default(), Seen::before(store, sandbox));
    // One that cannot take its commits does not keep the others from theirs.
    let mut failed = None;
    for tree in sandbox.trees().filter(|tree| tree.mount().has_commits()) {
        if let Err(error) = bring_tree(connection, git, store, &tree, &mut brought, &mut seen) {
            failed.get_or_insert(error);
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    seen.keep(sandbox)?;
    let refused = refused_lines(&brought);
    write_json(&refused_file(sandbox), &refused, false)?;
    Ok(brought)
}

/// Of one repository and of those inside it.
fn bring_tree(
    connection: &mut Connection,
    git: &Git,
    store: &Store,
    sandbox: &Sandbox,
    brought: &mut Brought,
    seen: &mut Seen,
) -> Result<()> {
    let snapshot = sandbox.snapshot(store)?;
    // Inner repositories first: a commit of the outer one that names theirs is never without them.
    let mut views: Vec<(usize, &ViewRecord)> = snapshot.git.views.iter().enumerate().collect();
    views.sort_by_key(|(_, view)| std::cmp::Reverse(view.path.components().count()));
    for (n, view) in views {
        let main = view.path.as_os_str().is_empty();
        let state = ask(connection, sandbox.name(), view)?;
        let host = if main {
            work::host(store, sandbox)?
        } else {
            nested_host(view, &snapshot, &work::host(store, sandbox)?)?
        };
        let mut job = Job { git, store, sandbox, snapshot: &snapshot, view, host: &host, number: n };
        job.bring(connection, &state, brought, seen)?;
    }
    Ok(())
}

/// Of a submodule or nested repository: its own git directory on the host.
pub(crate) fn nested_host(view: &ViewRecord, snapshot: &Snapshot, main: &HostRepo) -> Result<HostRepo> {
    // The outer repository was moved, and this one with it: what is at the old place is none of them.
    let moved = match (view.host_gitdir.strip_prefix(&snapshot.worktree), main.top()) {
        (Ok(relative), Some(top)) if top != snapshot.worktree => top.join(relative),
        _ => view.host_gitdir.clone(),
    };
    Ok(HostRepo::from_git_dir(&moved)?)
}

/// Asks git inside about one repository of the sandbox `name`. Runs as an internal session, without privilege; what it
/// answers is checked where it is used.
pub(crate) fn ask(connection: &mut Connection, name: &str, view: &ViewRecord) -> Result<RepoState> {
    let failed = |why: String| CommitBackError::State { name: name.to_owned(), why };
    let path = escape_bytes(view.inside_gitdir.as_os_str().as_bytes());
    let question = RepoQuestion { path, granted: view.granted.clone() };
    let input = serde_json::to_vec(&question).map_err(|error| failed(error.to_string()))?;
    let exec = Exec {
        argv: vec![format!("{INSIDE}/bin/git-sandbox"), REPO_STATE_VERB.into()],
        cwd: "/".into(),
        internal: true,
        ..Exec::default()
    };
    let (status, out, err) = match connection.run_within(exec, &input, MAX_STATE, MAX_TIME) {
        Err(error @ ConnectionError::Late(_)) => return Err(failed(error.to_string())),
        answer => answer?,
    };
    if status != ExitStatus::Code(0) {
        let said = sandbox_git::printable(err.trim_ascii());
        return Err(failed(format!("status {} {said}", status.shell())));
    }
    serde_json::from_slice(&out).map_err(|error| failed(error.to_string()))
}

/// One repository of one sandbox.
struct Job<'a> {
    git: &'a Git,
    store: &'a Store,
    sandbox: &'a Sandbox,
    snapshot: &'a Snapshot,
    view: &'a ViewRecord,
    host: &'a HostRepo,
    number: usize,
}

impl Job<'_> {
    fn bring(
        &mut self,
        connection: &mut Connection,
        state: &RepoState,
        brought: &mut Brought,
        seen: &mut Seen,
    ) -> Result<()> {
        let name = &self.sandbox.record.name;
        let repo = self.store.repo(&self.sandbox.mount().repo);
        let all = RefStore::read(self.git, self.host.git_dir(), self.host.common_dir())?;
        let owner_ref = meta(name.as_str(), "owner");
        let own = own_refs(&all, name.as_str());
        let own = match self.check_owner(&own, &owner_ref) {
            Ok(()) => own,
            Err(error) => {
                self.make_way(&all, error)?;
                BTreeMap::new()
            }
        };
        let base = Base {
            branch: self.view.branch.as_deref().and_then(RefName::parse),
            refs: granted_refs(&self.layer_gitdir(&repo))?,
            granted: self.view.granted.iter().filter_map(Oid::parse).collect(),
        };
        let plan = plan_refs(name, state, &base, &own, self.host.format());
        brought.refused.extend(plan.refused.iter().map(|refused| (self.named(&refused.inner), refused.reason.clone())));
        if !plan.refused.is_empty() {
            seen.doubt();
        }
        if plan.updates.is_empty() {
            seen.home(self.sandbox, self.number, &own);
            return Ok(());
        }
        let view =
            View::open(&repo, &self.view.key)?.ok_or_else(|| CommitBackError::NoView { key: self.view.key.clone() })?;
        let dir = landing_dir(self.sandbox, self.number);
        make_dir(dir.parent().unwrap_or(&dir))?;
        let landing = Landing::create(self.git, &dir, &view, Bounds::default())?;
        let wants: Vec<Want> =
            plan.updates.iter().map(|update| Want { name: update.name.clone(), oid: update.new }).collect();
        let gitdir = escape_bytes(self.view.inside_gitdir.as_os_str().as_bytes());
        let landed = receive(connection, &landing, &gitdir, &wants)?;
        let refused: BTreeMap<&RefName, &String> =
            landed.refused.iter().map(|(want, reason)| (&want.name, reason)).collect();
        let mut updates: Vec<Update> = Vec::new();
        for planned in &plan.updates {
            match refused.get(&planned.name) {
                Some(reason) => {
                    brought.refused.push((self.named(&planned.inner), (*reason).clone()));
                    seen.doubt();
                }
                None => updates.push(Update { name: planned.name.clone(), old: planned.old, new: Some(planned.new) }),
            }
        }
        if updates.is_empty() {
            return Ok(());
        }
        if !own.contains_key(&owner_ref) {
            let (repo, sandbox) = (self.sandbox.mount().repo.clone(), self.sandbox.record.id.clone());
            let blob = landing.blob(&Owner { repo, sandbox, store: Some(self.store.id()?) }.bytes())?;
            updates.push(Update { name: owner_ref, old: None, new: Some(blob) });
        }
        let _lock = ref_lock(self.store, self.sandbox)?;
        let journal = Journal::of_sandbox(self.store, &self.sandbox.record.id);
        let mut op = journal.start(Plan::new(Verb::Import).of(name.as_str()))?;
        match landing.move_to_host(Some(&mut op), self.host, name.as_str(), &updates) {
            Ok(_) => op.end(End::Done),
            Err(error) => {
                op.end(End::Failed);
                return Err(error.into());
            }
        }
        let mut own = own;
        own.extend(updates.iter().filter_map(|update| Some((update.name.clone(), update.new?))));
        if plan_refs(name, state, &base, &own, self.host.format()).updates.is_empty() {
            seen.home(self.sandbox, self.number, &own);
        } else {
            seen.doubt();
        }
        for planned in plan.updates.iter().filter(|planned| !refused.contains_key(&planned.name)) {
            brought.lines.push(self.line(planned));
        }
        Ok(())
    }

    /// The repository's git directory in the git layer.
    fn layer_gitdir(&self, repo: &crate::store::RepoDir) -> PathBuf {
        let tree = repo.layer_tree(&self.snapshot.git_layer);
        match self.view.inside_gitdir.strip_prefix(&self.snapshot.worktree) {
            Ok(relative) => tree.join(relative),
            Err(_) => tree.join(".git"),
        }
    }

    /// A ref that we did not write is never moved.
    fn check_owner(&self, own: &BTreeMap<RefName, Oid>, owner_ref: &RefName) -> Result<()> {
        let foreign = |name: &RefName| CommitBackError::Foreign { name: sandbox_git::printable(name.as_bytes()) };
        let Some(first) = own.keys().next() else { return Ok(()) };
        let Some(blob) = own.get(owner_ref) else { return Err(foreign(first)) };
        let found = self.host.read(self.git).args(["cat-file", "blob", &blob.to_string()]).output()?.stdout;
        // A copy of a state directory has the same sandboxes.
        let store = self.store.id()?;
        let ours = |owner: Owner| {
            owner.repo == self.sandbox.mount().repo
                && owner.sandbox == self.sandbox.record.id
                && owner.store.is_none_or(|of| of == store)
        };
        if Owner::parse(&found).is_some_and(ours) { Ok(()) } else { Err(foreign(owner_ref)) }
    }

    /// Takes away what an earlier sandbox of this name left, if it was one of this state directory and nothing is
    /// lost by that.
    fn make_way(&self, all: &RefStore, foreign: CommitBackError) -> Result<()> {
        let (name, repo) = (self.sandbox.name(), &self.sandbox.mount().repo);
        let Some(orphan) = orphan::of_name(self.git, self.store, repo, self.host, all, name)? else {
            return Err(foreign);
        };
        let name = name.to_owned();
        match (orphan.ours, orphan.saved) {
            (true, true) => {
                let _lock = ref_lock(self.store, self.sandbox)?;
                Ok(delete_refs(self.git, self.host, &orphan.refs)?)
            }
            (true, false) => Err(CommitBackError::Earlier { name }),
            (false, _) => Err(CommitBackError::Elsewhere { name, id: orphan.id }),
        }
    }

    /// With the repository in front where it is not the main one.
    fn named(&self, inner: &str) -> String {
        let path = match (self.sandbox.tree, self.view.path.as_os_str().is_empty()) {
            (0, true) => return inner.to_owned(),
            (0, false) => self.view.path.clone(),
            // Without a slash at its end.
            (_, true) => self.sandbox.mount().worktree.clone(),
            (_, false) => self.sandbox.mount().worktree.join(&self.view.path),
        };
        format!("{}: {inner}", sandbox_git::printable(path.as_os_str().as_bytes()))
    }

    fn line(&self, planned: &Planned) -> String {
        let name = sandbox_git::printable(planned.name.as_bytes());
        let short = name.strip_prefix("refs/").unwrap_or(&name);
        let from = planned.old.map_or_else(|| "new".to_owned(), |old| old.short());
        self.named(&format!("{short}  {from}..{}", planned.new.short()))
    }
}

/// Where commits of repository `number` of a tree are received.
pub(crate) fn landing_dir(sandbox: &Sandbox, number: usize) -> PathBuf {
    let name = match sandbox.tree {
        0 => number.to_string(),
        tree => format!("{tree}-{number}"),
    };
    sandbox.dir.path().join("landing").join(name)
}

/// Receives what is wanted from a repository inside, by its path as [`escape_bytes`] writes it.
pub(crate) fn receive(
    connection: &mut Connection,
    landing: &Landing,
    gitdir: &str,
    wants: &[Want],
) -> Result<crate::landing::Landed> {
    let (argv, env) = Landing::upload_pack(gitdir);
    let exec = Exec {
        argv,
        env: env.into_iter().map(|(name, value)| (name, Some(value))).collect(),
        cwd: "/".into(),
        internal: true,
        ..Exec::default()
    };
    // One conversation after the other: each waits until the one before has given the connection back.
    let shared = Arc::new(Mutex::new(connection));
    std::thread::scope(|scope| {
        let mut connect = || -> io::Result<Conversation> {
            let (ours, theirs) = UnixStream::pair()?;
            let (shared, exec) = (Arc::clone(&shared), exec.clone());
            scope.spawn(move || {
                if let Ok(mut connection) = shared.lock() {
                    // Its end is all that the listener needs to know.
                    let _ = connection.relay(exec, &theirs);
                }
                let _ = theirs.shutdown(Shutdown::Both);
            });
            let from: Box<dyn Read + Send> = Box::new(ours.try_clone()?);
            Ok(Conversation { from, to: Box::new(HangUp(ours)) })
        };
        Ok(landing.land(&mut connect, wants)?)
    })
}

/// Closes the writing direction when it is dropped, whoever else still reads.
struct HangUp(UnixStream);

impl Write for HangUp {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Drop for HangUp {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Write);
    }
}

fn meta(name: &str, short: &str) -> RefName {
    RefName::parse(format!("refs/sandbox-meta/{name}/{short}")).expect("names of sandboxes are valid in refs")
}

/// Where a sandbox's refs are: its own, and those below.
pub(crate) fn own_names(name: &str) -> (String, String) {
    (format!("refs/sandbox/{name}"), format!("refs/sandbox-meta/{name}"))
}

/// The host's refs under our names for one sandbox.
pub(crate) fn own_refs(all: &RefStore, name: &str) -> BTreeMap<RefName, Oid> {
    let (main, meta) = own_names(name);
    let below =
        |known: &RefName| known.as_bytes().strip_prefix(meta.as_bytes()).is_some_and(|rest| rest.starts_with(b"/"));
    all.refs
        .keys()
        .filter(|known| known.as_bytes() == main.as_bytes() || below(known))
        .filter_map(|known| Some((known.clone(), all.resolve(known)?)))
        .collect()
}

fn refused_file(sandbox: &Sandbox) -> PathBuf {
    sandbox.dir.path().join("refused.json")
}

fn refused_lines(brought: &Brought) -> Vec<String> {
    let refused = brought.refused.iter().map(|(name, why)| format!("'{name}' was refused: {why}"));
    refused.collect()
}

/// What the last commit-back could not bring home, one line each.
pub fn refused(sandbox: &Sandbox) -> Option<Vec<String>> {
    read_json(&refused_file(sandbox)).ok().flatten()
}

/// Removes the sandbox's refs from the host, of all its repositories. A ref that was not written
/// for it stays.
pub fn remove_refs(git: &Git, store: &Store, sandbox: &Sandbox) -> Result<()> {
    let _bring = bring_lock(sandbox)?;
    let mut failed = None;
    for tree in sandbox.trees().filter(|tree| tree.mount().has_commits()) {
        if let Err(error) = remove_refs_of_tree(git, store, &tree) {
            failed.get_or_insert(error);
        }
    }
    failed.map_or(Ok(()), Err)
}

/// As [`remove_refs`], where a repository or a snapshot that is gone has no refs.
pub fn remove_refs_if_there(git: &Git, store: &Store, sandbox: &Sandbox) -> Result<()> {
    match remove_refs(git, store, sandbox) {
        Err(
            CommitBackError::Host(_)
            | CommitBackError::Work(_)
            | CommitBackError::Sandbox(SandboxError::Vanished { .. }),
        ) => Ok(()),
        other => other,
    }
}

fn remove_refs_of_tree(git: &Git, store: &Store, sandbox: &Sandbox) -> Result<()> {
    let _lock = ref_lock(store, sandbox)?;
    for (host, _, refs) in owned_refs(git, store, sandbox)? {
        let refs: Vec<(RefName, Oid)> = refs.into_iter().collect();
        delete_refs(git, &host, &refs)?;
    }
    Ok(())
}

/// A repository of the host, what it is inside, and the refs in it.
pub(crate) type Owned = (HostRepo, ViewRecord, BTreeMap<RefName, Oid>);

/// The host's refs that were written for a sandbox, of the repository that it is looked at from and of those inside.
pub(crate) fn owned_refs(git: &Git, store: &Store, sandbox: &Sandbox) -> Result<Vec<Owned>> {
    let snapshot = sandbox.snapshot(store)?;
    let mut all_owned = Vec::new();
    for (number, view) in snapshot.git.views.iter().enumerate() {
        let main = work::host(store, sandbox)?;
        let host = if view.path == Path::new("") { main } else { nested_host(view, &snapshot, &main)? };
        let all = RefStore::read(git, host.git_dir(), host.common_dir())?;
        let own = own_refs(&all, sandbox.name());
        let job = Job { git, store, sandbox, snapshot: &snapshot, view, host: &host, number };
        if job.check_owner(&own, &meta(sandbox.name(), "owner")).is_err() {
            continue;
        }
        all_owned.push((host.clone(), view.clone(), own));
    }
    Ok(all_owned)
}
