//! Into the trash of the vault, and out of it again. Each step can be repeated: it ends in the same state.

use super::{Dropped, Kept, KeptError, remove_packs};
use crate::commit_back::{CommitBackError, owned_refs, ref_lock};
use crate::host_repo::{HostRepo, write_bare};
use crate::landing::{LandingError, escape_ref, place, unescape_ref};
use crate::record::{SandboxRecord, ViewRecord};
use crate::rescue::rescue_lock;
use crate::sandbox::Sandbox;
use crate::store::{RepoDir, Store, StoreError, write_whole};
use crate::view::{self, View};
use sandbox_git::{Git, GitError, Oid, RefName};
use sandbox_sys::clock::unix_seconds;
use sandbox_sys::fault;
use sandbox_sys::lock::FileLock;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Why the vault has not got what a dropped sandbox had.
#[derive(Debug, thiserror::Error)]
pub enum DropError {
    /// The sandbox, or its refs in the host.
    #[error(transparent)]
    Sandbox(#[from] CommitBackError),
    /// The vault.
    #[error(transparent)]
    Kept(#[from] KeptError),
    /// Git, on the host's objects.
    #[error("cannot pack the sandbox's commits")]
    Git(#[from] GitError),
    /// A pack.
    #[error("cannot put the sandbox's commits into the vault")]
    Place(#[from] LandingError),
}

type Result<T> = std::result::Result<T, DropError>;

/// Puts the commits that the host has only from this sandbox into the vault, and its rescues into the trash
/// there. The sandbox's lock is held, it does not run, and its name is still its own. Returns how many refs of the
/// host are kept.
pub fn into_trash(git: &Git, store: &Store, sandbox: &Sandbox) -> Result<usize> {
    let repo = store.repo(&sandbox.mount().repo);
    let snapshot = sandbox.snapshot(store).map_err(CommitBackError::from)?;
    let out = tempfile::tempdir_in(sandbox.dir.path()).map_err(StoreError::io("create", sandbox.dir.path()));
    let out = out.map_err(KeptError::from)?;
    let mut dropped = Dropped { at: unix_seconds(), ..Dropped::default() };
    for (host, view, refs) in owned_refs(git, store, sandbox)? {
        if refs.is_empty() || view.object_format != snapshot.git.object_format {
            continue;
        }
        let below = match view.path.as_os_str().as_bytes() {
            b"" => String::new(),
            path => format!("nested/{}/", escape_ref(path)),
        };
        for (name, oid) in &refs {
            dropped.commits.insert(format!("{below}{}", short(sandbox.name(), name)), oid.to_string());
        }
        dropped.packs.extend(pack(git, &host, &repo, &view, refs.values().copied().collect(), out.path())?);
        dropped.views.push(view.key.clone());
    }
    let count = dropped.commits.len();
    // A rescue that outlived its supervisor may still be at work: what it writes is read, not written over.
    let _rescue = rescue_lock(sandbox)?;
    let _lock = ref_lock(store, sandbox)?;
    let stop = |name| fault::point(name).map_err(StoreError::io("write", repo.vault())).map_err(KeptError::from);
    let mut kept = Kept::load(&repo, &sandbox.record.id)?.unwrap_or_else(|| Kept::new(&sandbox.record));
    kept.placing.clone_from(&dropped.packs);
    stop("trash.placing")?;
    kept.save(&repo)?;
    for pack in &dropped.packs {
        stop("trash.place")?;
        place(&repo.vault(), &out.path().join("objects/pack").join(format!("{pack}.pack")))?;
    }
    kept.placing.clear();
    kept.trash = Some(dropped);
    stop("trash.record")?;
    kept.save(&repo)?;
    stop("trash.kept")?;
    kept.set_refs(git, &repo)?;
    Ok(count)
}

/// After a sandbox came back from the trash and its commits were brought home again: its rescues are under its name,
/// which may be another one now, and the commits are the host's.
pub fn out_of_trash(git: &Git, store: &Store, sandbox: &Sandbox) -> Result<()> {
    let _rescue = rescue_lock(sandbox)?;
    taken_out(git, store, sandbox)
}

/// As [`out_of_trash`], by whoever holds the lock of the sandbox's rescues.
pub(crate) fn taken_out(git: &Git, store: &Store, sandbox: &Sandbox) -> Result<()> {
    let repo = store.repo(&sandbox.mount().repo);
    let _lock = ref_lock(store, sandbox)?;
    let Some(mut kept) = Kept::load(&repo, &sandbox.record.id)? else { return Ok(()) };
    let before = kept.packs();
    kept.trash = None;
    kept.name.clone_from(&sandbox.record.name);
    kept.save(&repo)?;
    kept.set_refs(git, &repo)?;
    let needed = kept.packs();
    let idle = before.into_iter().filter(|pack| !needed.contains(pack)).collect();
    Ok(remove_packs(&repo, idle).map_err(KeptError::from)?)
}

/// Nothing of a sandbox is kept any more: it is deleted for good, or the host has everything.
pub fn forget(store: &Store, record: &SandboxRecord) -> std::result::Result<(), StoreError> {
    for mount in &record.repos {
        super::expire(&store.repo(&mount.repo), &record.id)?;
    }
    Ok(())
}

/// As [`forget`], by what is kept.
pub fn forget_kept(repo: &RepoDir, kept: Kept) -> std::result::Result<(), StoreError> {
    let lock = repo.path().join("refs.lock");
    let _lock = FileLock::exclusive(&lock).map_err(StoreError::io("lock", lock))?;
    kept.remove(repo)
}

/// `refs/sandbox/<name>` is `tip`; the others have the names that they have below `refs/sandbox-meta/<name>`.
fn short(sandbox: &str, name: &RefName) -> String {
    let text = name.to_str().unwrap_or_default();
    match text.strip_prefix(&format!("refs/sandbox-meta/{sandbox}/")) {
        Some(rest) => format!("meta/{rest}"),
        None => "tip".to_owned(),
    }
}

/// Packs what these tips reach beyond the view, from the host's objects.
fn pack(
    git: &Git,
    host: &HostRepo,
    repo: &RepoDir,
    view: &ViewRecord,
    tips: BTreeSet<Oid>,
    out: &Path,
) -> Result<Vec<String>> {
    let roots: Vec<Oid> = View::open(repo, &view.key)
        .map_err(CommitBackError::from)?
        .map(|view| view.roots().into_iter().collect())
        .unwrap_or_default();
    // A branch that was granted may be gone from the host by now.
    let found = view::look_up(git, host, &roots)?;
    let mut input: String = tips.iter().map(|oid| format!("{oid}\n")).collect();
    input.push_str("--not\n");
    input.extend(found.into_iter().flatten().map(|found| format!("{}\n", found.oid)));
    let objects = out.join("objects");
    let packs = objects.join("pack");
    fs::create_dir_all(&packs).map_err(StoreError::io("create", &packs)).map_err(KeptError::from)?;
    let listing = host
        .read(git)
        .config("core.fsync=none")
        .env("GIT_OBJECT_DIRECTORY", &objects)
        .env("GIT_ALTERNATE_OBJECT_DIRECTORIES", view::alternates(&[host.common_dir().join("objects")]))
        .args(["pack-objects", "-q", "--revs", "--non-empty", "--delta-base-offset"])
        .args(view.partial.then_some("--missing=allow-promisor"))
        .arg(packs.join("pack"))
        .stdin(input)
        .output()?;
    let names = String::from_utf8_lossy(&listing.stdout);
    Ok(names.lines().filter(|name| !name.is_empty()).map(|name| format!("pack-{name}")).collect())
}

/// Branches, by the work tree that they are for: relative to the main one, empty for that itself.
pub type Branches = BTreeMap<Vec<u8>, BTreeMap<String, String>>;

/// Which branches below `restored/<name>/` a dropped sandbox becomes whose directory was lost, and at which commits.
pub fn branches(kept: &Kept) -> Branches {
    let prefix = format!("refs/trash/{}/", kept.id);
    let mut all = Branches::new();
    for (name, oid) in kept.refs() {
        let inner = name.strip_prefix(&prefix).or_else(|| name.strip_prefix(&format!("refs/{}/", kept.name)));
        let Some((path, inner)) = inner.and_then(of_tree) else { continue };
        let branch = format!("restored/{}/{inner}", kept.name);
        let is_news = !inner.starts_with("rescues/") && inner != "meta/owner";
        if is_news && RefName::parse(format!("refs/heads/{branch}")).is_some() {
            all.entry(path).or_default().insert(branch, oid);
        }
    }
    all
}

/// Takes apart `[commits/][nested/<path>/]<name>`.
fn of_tree(inner: &str) -> Option<(Vec<u8>, &str)> {
    let inner = inner.strip_prefix("commits/").unwrap_or(inner);
    let Some(rest) = inner.strip_prefix("nested/") else { return Some((Vec::new(), inner)) };
    // A slash of the path has a '+' before it.
    let end = rest.match_indices('/').find(|(at, _)| !rest[..*at].ends_with('+'))?.0;
    Some((unescape_ref(&rest[..end])?, &rest[end + 1..]))
}

/// Brings branches into a repository, with what the vault and the views have of them. Those that are there with that
/// commit are right already.
pub fn as_branches(
    git: &Git,
    store: &Store,
    host: &HostRepo,
    (repo, kept): (&RepoDir, &Kept),
    branches: &BTreeMap<String, String>,
) -> Result<()> {
    let failed = |error: StoreError| DropError::from(KeptError::from(error));
    let from = tempfile::Builder::new().prefix("dropped-branches.").tempdir_in(store.tmp());
    let from = from.map_err(StoreError::io("create", store.tmp())).map_err(failed)?;
    write_bare(from.path(), host.format(), "").map_err(failed)?;
    // Packs of a submodule stand on its own view, which the vault has not got.
    let views = kept.views().into_iter().map(|view| repo.view(&view).join("objects"));
    let mut lines = Vec::new();
    for objects in std::iter::once(repo.vault().join("objects")).chain(views).filter(|path| path.is_dir()) {
        lines.extend([objects.as_os_str().as_bytes(), b"\n"].concat());
    }
    write_whole(&from.path().join("objects/info/alternates"), &lines, false).map_err(failed)?;
    let spec: String = branches.iter().map(|(branch, oid)| format!("{oid}:refs/heads/{branch}\n")).collect();
    host.write(git)
        .config("protocol.file.allow=always")
        .config("uploadpack.allowAnySHA1InWant=true")
        .args(["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance", "--stdin"])
        .arg(from.path())
        .stdin(spec)
        .run()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_of_a_submodule_is_told_from_the_rest() {
        let of = |inner| of_tree(inner).map(|(path, name)| (String::from_utf8(path).unwrap(), name));
        let is = |path: &str, name| Some((path.to_owned(), name));
        assert_eq!(of("rescue"), is("", "rescue"));
        assert_eq!(of("commits/meta/heads/a/b"), is("", "meta/heads/a/b"));
        assert_eq!(of("nested/libs+/a%20b/rescues/3"), is("libs/a b", "rescues/3"));
        assert_eq!(of("commits/nested/lib/tip"), is("lib", "tip"));
        assert_eq!(of("nested/lib"), None);
    }
}
