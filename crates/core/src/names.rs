//! Names of sandboxes: who has one, and when it is free again.
//!
//! ```text
//! given        under the repository's lock, when nobody holds it
//! held         sandbox there, or being made  ─►  drop under way (its refs may still be there)  ─►  free
//! given back   only by its own sandbox: compared and removed in one
//! ```

use crate::id::{Name, SandboxId};
use crate::journal::{Home, homes};
use crate::store::{RepoDir, Store, StoreError, make_dir, write_whole};
use sandbox_sys::lock::FileLock;
use std::fs;
use std::path::PathBuf;

/// `repos/<id>/names/<name>`: a file with the sandbox's id, so that a name is found without
/// reading every record, and given only once.
#[derive(Debug)]
pub struct Names {
    dir: PathBuf,
    lock: PathBuf,
}

/// Whether a sandbox has a right to its name: it is there, somebody makes it or drops it now, or a drop of it
/// that was cut is still to be finished. One that was never made to the end has none.
pub(crate) fn holds(store: &Store, id: &SandboxId) -> bool {
    let there = || {
        let dir = store.sandbox(id);
        dir.record().exists() || FileLock::is_held(&dir.lock_file())
    };
    let leaving = || {
        let trash = store.trash(id);
        let out = store.dropped(id);
        FileLock::is_held(&trash.lock_file())
            || FileLock::is_held(&out.join("lock"))
            || (trash.path().is_dir() || out.is_dir()) && homes(store).any(|home| home == Home::Sandbox(id.clone()))
    };
    // What comes back while this looks is found by the second look.
    there() || leaving() || there()
}

impl Names {
    /// The names of one repository.
    pub fn of(repo: &RepoDir) -> Self {
        Self { dir: repo.path().join("names"), lock: repo.path().join("names.lock") }
    }

    /// Whom this name was given to, whatever became of it.
    pub fn get(&self, name: &str) -> Option<SandboxId> {
        Name::parse(name).ok()?;
        SandboxId::parse(fs::read_to_string(self.dir.join(name)).ok()?.trim())
    }

    /// Which name this one was given.
    pub fn name_of(&self, id: &SandboxId) -> Option<Name> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut names = entries.filter_map(|entry| Name::parse(entry.file_name().to_str()?).ok());
        names.find(|name| self.get(name.as_str()).as_ref() == Some(id))
    }

    /// Who has this name; `None`: it is free.
    pub fn holder(&self, store: &Store, name: &Name) -> Option<SandboxId> {
        self.get(name.as_str()).filter(|id| holds(store, id))
    }

    /// Gives a name; the repository's lock must be held.
    pub fn give(&self, name: &Name, id: &SandboxId) -> Result<(), StoreError> {
        make_dir(&self.dir)?;
        let _lock = self.lock()?;
        self.write(name, id)
    }

    /// Gives a name to who had it, unless somebody has it.
    pub(crate) fn give_again(&self, name: &Name, id: &SandboxId) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        match self.get(name.as_str()) {
            Some(_) => Ok(()),
            None => self.write(name, id),
        }
    }

    /// Gives names free whose sandbox is nowhere; the repository's lock must be held.
    pub(crate) fn free_unused(&self, store: &Store) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let Some(name) = entry.file_name().to_str().and_then(|name| Name::parse(name).ok()) else { continue };
            if let Some(id) = self.get(name.as_str()).filter(|id| !store.sandbox(id).path().exists())
                && !holds(store, &id)
            {
                self.take_back(&name, &id);
            }
        }
    }

    /// Takes a name back, if this sandbox has it. What cannot be taken back is taken by the next `gc`.
    pub fn take_back(&self, name: &Name, id: &SandboxId) {
        let Ok(_lock) = self.lock() else { return };
        if self.get(name.as_str()).as_ref() == Some(id) {
            let _ = fs::remove_file(self.dir.join(name.as_str()));
        }
    }

    fn write(&self, name: &Name, id: &SandboxId) -> Result<(), StoreError> {
        write_whole(&self.dir.join(name.as_str()), format!("{id}\n").as_bytes(), false)
    }

    /// Held for a moment, and nothing is waited for meanwhile: may be taken with any other lock held.
    fn lock(&self) -> Result<FileLock, StoreError> {
        FileLock::exclusive(&self.lock).map_err(StoreError::io("lock", &self.lock))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::RepoId;
    use crate::journal::{Journal, Plan, Verb};

    fn world() -> (tempfile::TempDir, Store, Names) {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(&root.path().join("s")).unwrap();
        let repo = store.repo(&RepoId::random());
        make_dir(repo.path()).unwrap();
        let names = Names::of(&repo);
        (root, store, names)
    }

    #[test]
    fn a_name_is_held_until_the_drop_of_its_sandbox_is_at_its_end() {
        let (_root, store, names) = world();
        let (name, id) = (Name::parse("kilo").unwrap(), SandboxId::random());
        let dir = store.sandbox(&id);
        make_dir(dir.path()).unwrap();
        names.give(&name, &id).unwrap();
        assert_eq!(names.holder(&store, &name), None, "one that was never made has no right to it");
        fs::write(dir.record(), "{}").unwrap();
        for away in [store.dropped(&id), store.trash(&id).path().to_owned()] {
            let op = Journal::of_sandbox(&store, &id).start(Plan::new(Verb::Drop)).unwrap();
            fs::rename(dir.path(), &away).unwrap();
            let still = |what: &str| {
                assert_eq!(names.holder(&store, &name), Some(id.clone()), "{what}: {}", away.display());
                names.free_unused(&store);
                assert_eq!(names.get("kilo"), Some(id.clone()), "{what}: {}", away.display());
            };
            still("its owner lives");
            drop(op);
            still("its owner was killed");
            for marker in crate::journal::markers(&store) {
                fs::remove_file(marker.path).unwrap();
            }
            assert_eq!(names.holder(&store, &name), None);
            // Without room for a marker, whoever drops it has its lock.
            let lock = FileLock::exclusive(&away.join("lock")).unwrap();
            assert_eq!(names.holder(&store, &name), Some(id.clone()));
            drop(lock);
            fs::rename(&away, dir.path()).unwrap();
            assert_eq!(names.holder(&store, &name), Some(id.clone()));
        }
        fs::rename(dir.path(), store.trash(&id).path()).unwrap();
        names.free_unused(&store);
        assert_eq!(names.get("kilo"), None);
    }

    #[test]
    fn what_comes_back_gets_its_name_and_takes_nobodys() {
        let (_root, store, names) = world();
        let (name, old, new) = (Name::parse("kilo").unwrap(), SandboxId::random(), SandboxId::random());
        names.give(&name, &old).unwrap();
        names.take_back(&name, &new);
        assert_eq!(names.get("kilo"), Some(old.clone()), "only its own sandbox gives it back");
        names.take_back(&name, &old);
        names.give_again(&name, &old).unwrap();
        assert_eq!(names.get("kilo"), Some(old.clone()));
        names.give(&name, &new).unwrap();
        names.give_again(&name, &old).unwrap();
        names.take_back(&name, &old);
        assert_eq!(names.get("kilo"), Some(new.clone()));
        assert_eq!(names.holder(&store, &name), None);
    }
}
