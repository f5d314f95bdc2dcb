//! Refs under our names in a host repository whose sandbox is not among the sandboxes of this state directory.
//!
//! Several state directories can have sandboxes of one repository. A sandbox that is not here may be alive
//! there, so its refs are ours to remove only when this state directory can show that the sandbox was its own:
//!
//! ```text
//! owner names this state directory                          ours
//! owner names another                                       not
//! owner names none (an older program)   in the trash here   ours
//!                                       else                not
//! ```

use crate::commit_back::own_refs;
use crate::host_repo::HostRepo;
use crate::id::{RepoId, SandboxId};
use crate::landing::Owner;
use crate::store::{Store, StoreError};
use sandbox_git::refs::RefStore;
use sandbox_git::{Git, Oid, RefName};

/// Such refs of one name.
#[derive(Clone, Debug)]
pub struct Orphan {
    /// Their sandbox.
    pub id: SandboxId,
    /// It was one of this state directory.
    pub ours: bool,
    /// It is in the trash here.
    pub trashed: bool,
    /// What they have is in the trash, or branches, tags or remote-tracking refs have it.
    pub saved: bool,
    /// The refs.
    pub refs: Vec<(RefName, Oid)>,
}

/// Looks at the refs of one name. `None`: there are none, it is not told whose they are, or it is of a sandbox that
/// is here or on its way out.
pub fn of_name(
    git: &Git,
    store: &Store,
    repo: &RepoId,
    host: &HostRepo,
    all: &RefStore,
    name: &str,
) -> Result<Option<Orphan>, StoreError> {
    let own = own_refs(all, name);
    let blob = own.iter().find(|(known, _)| known.as_bytes().ends_with(b"/owner")).map(|(_, oid)| *oid);
    let text = blob.and_then(|oid| host.read(git).args(["cat-file", "blob", &oid.to_string()]).output().ok());
    let Some(owner) = text.and_then(|out| Owner::parse(&out.stdout)).filter(|owner| owner.repo == *repo) else {
        return Ok(None);
    };
    let id = owner.sandbox;
    if store.sandbox(&id).path().exists() || crate::names::holds(store, &id) {
        return Ok(None);
    }
    let trashed = store.trash(&id).path().exists();
    let ours = match owner.store {
        Some(owner) => owner == store.id()?,
        None => trashed,
    };
    let tips: String = own.iter().filter(|(_, oid)| Some(**oid) != blob).map(|(_, oid)| format!("{oid}\n")).collect();
    let count = host
        .read(git)
        .args(["rev-list", "--count", "--stdin", "--not", "--branches", "--tags", "--remotes"])
        .stdin(tips)
        .line();
    let saved = trashed || count.is_ok_and(|count| count == "0");
    Ok(Some(Orphan { id, ours, trashed, saved, refs: own.into_iter().collect() }))
}
