//! Throw-away bare repositories that git may ask questions of: the granted refs for `git fetch
//! host` inside, and a sandbox's own refs for `git fetch sandbox::NAME` on the host.

use crate::gitdir::{GitDirError, granted_refs};
use crate::host_repo::{HostRepoError, write_bare};
use crate::landing::unescape_ref;
use crate::sandbox::{Sandbox, SandboxError};
use crate::store::{self, Store, StoreError};
use crate::view::{ServeError, View, ViewError, Views, prepare_serve};
use crate::work::{self, WorkError};
use sandbox_git::refs::{RefStore, RefsError, write_packed};
use sandbox_git::{Git, Oid, RefName};
use sandbox_sys::lock::FileLock;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use tempfile::TempDir;

/// Why there is nothing to serve from.
#[derive(Debug, thiserror::Error)]
pub enum ServedError {
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The host repository.
    #[error(transparent)]
    Work(#[from] WorkError),
    /// The host repository.
    #[error(transparent)]
    Host(#[from] HostRepoError),
    /// Refs could not be read.
    #[error("cannot read the refs")]
    Refs(#[from] RefsError),
    /// The layer's refs could not be read.
    #[error("cannot read what was granted")]
    Granted(#[from] GitDirError),
    /// The view could not be extended.
    #[error("cannot extend the view of the object store")]
    View(#[from] ViewError),
    /// The throw-away repository could not be made.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The view is gone.
    #[error("the view '{key}' is gone")]
    NoView {
        /// Its key.
        key: String,
    },
    /// The throw-away repository could not be made.
    #[error("cannot make a directory in '{path}'", path = path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

type Result<T> = std::result::Result<T, ServedError>;

fn temp(store: &Store, prefix: &str) -> Result<TempDir> {
    let path = store.tmp();
    tempfile::Builder::new().prefix(prefix).tempdir_in(&path).map_err(|source| ServedError::Io { path, source })
}

/// What a sandbox may fetch from the host: everything that was granted, and of the branch that
/// was checked out at the spawn whatever it is now. The view is extended by the branch's new
/// commits first; nothing is ever served from the host repository.
pub fn for_inside(git: &Git, store: &Store, sandbox: &Sandbox) -> Result<TempDir> {
    let snapshot = sandbox.snapshot(store)?;
    let repo = store.repo(&sandbox.mount().repo);
    let key = snapshot.git.views.first().map(|view| view.key.clone()).unwrap_or_default();
    // `gc` removes views that no snapshot names, which the extended one is: not before it is held.
    let lock = repo.lock_file();
    let _lock = FileLock::exclusive(&lock).map_err(|source| ServedError::Io { path: lock, source })?;
    let mut view = View::open(&repo, &key)?.ok_or(ServedError::NoView { key })?;
    let mut refs: BTreeMap<RefName, Oid> = granted_refs(&repo.layer_tree(&snapshot.git_layer).join(".git"))?;
    refs.retain(|name, _| !name.as_bytes().starts_with(b"refs/stash"));
    let branch = snapshot.git.branch.as_deref().and_then(RefName::parse);
    if let (Some(branch), Ok(host)) = (&branch, work::host(store, sandbox)) {
        let now = RefStore::read(git, host.git_dir(), host.common_dir())?.resolve(branch);
        if let Some(now) = now {
            let owner = host.foreign_owner();
            view = Views { git, repo: &repo, owner, vault: true }.extend(&host, &view, &[now])?;
            refs.insert(branch.clone(), now);
        }
    }
    let dir = temp(store, "serve.")?;
    let refs: Vec<(RefName, Oid)> = refs.into_iter().collect();
    prepare_serve(&view, &refs, branch.as_ref(), dir.path())?;
    Ok(dir)
}

/// A sandbox's refs under the names that they have inside, over the host's objects: what `git
/// fetch sandbox::NAME` reads after they were brought home.
pub fn for_host(git: &Git, store: &Store, sandbox: &Sandbox) -> Result<TempDir> {
    let host = work::host(store, sandbox)?;
    let all = RefStore::read(git, host.git_dir(), host.common_dir())?;
    let meta = format!("refs/sandbox-meta/{}/", sandbox.name());
    let mut refs: BTreeMap<RefName, Oid> = BTreeMap::new();
    for name in all.refs.keys() {
        let Some(rest) = name.strip_prefix(&meta) else { continue };
        if let (Some(inner), Some(oid)) = (inner_name(rest), all.resolve(name)) {
            refs.insert(inner, oid);
        }
    }
    let tip = RefName::parse(format!("refs/sandbox/{}", sandbox.name())).and_then(|name| all.resolve(&name));
    let snapshot = sandbox.snapshot(store)?;
    let head = snapshot.git.branch.as_deref().and_then(RefName::parse);
    if let (Some(tip), Some(head)) = (tip, &head) {
        refs.entry(head.clone()).or_insert(tip);
    }
    let dir = temp(store, "served.")?;
    write_bare(dir.path(), host.format(), "")?;
    let mut line = host.common_dir().join("objects").as_os_str().as_bytes().to_vec();
    line.push(b'\n');
    store::write_whole(&dir.path().join("objects/info/alternates"), &line, false)?;
    let packed = write_packed(refs.iter().map(|(name, oid)| (name, *oid, None)));
    store::write_whole(&dir.path().join("packed-refs"), &packed, false)?;
    let text = match (tip, &head) {
        (Some(tip), None) => format!("{tip}\n").into_bytes(),
        (_, Some(head)) => [b"ref: ", head.as_bytes(), b"\n"].concat(),
        (None, None) => b"ref: refs/heads/main\n".to_vec(),
    };
    store::write_whole(&dir.path().join("HEAD"), &text, false)?;
    Ok(dir)
}

/// The name inside of `…/heads/a+/b`, if it is one of a branch, tag or note.
fn inner_name(rest: &[u8]) -> Option<RefName> {
    let rest = std::str::from_utf8(rest).ok()?;
    let (kind, escaped) = rest.split_once('/')?;
    if !matches!(kind, "heads" | "tags" | "notes") {
        return None;
    }
    RefName::parse([format!("refs/{kind}/").as_bytes(), &unescape_ref(escaped)?].concat())
}
