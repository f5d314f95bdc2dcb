//! A directory of the user that is no repository: what `--with` captures besides repositories. It has
//! an id and a place in the store as a repository has, and no file of ours in it.
//!
//! ```text
//!   repos/<id>/repo.json  { directory: true, common_dir: the directory, dev, ino }
//!
//!   same path, same inode                 → it
//!   same inode, the old path is gone      → moved: the record follows
//!   else                                  → a new one
//! ```

use crate::id::RepoId;
use crate::record::RepoRecord;
use crate::store::{Store, StoreError, make_dir, read_json, write_twice};
use sandbox_sys::lock::FileLock;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The id that a directory has in the store, if it has one. Writes nothing.
pub fn known_id(store: &Store, path: &Path) -> Result<Option<RepoId>, StoreError> {
    Ok(find(store, path)?.map(|record| record.id))
}

/// The id of a directory in the store. Makes its place there.
pub fn id(store: &Store, path: &Path) -> Result<RepoId, StoreError> {
    if let Some(record) = find(store, path)?.filter(|record| record.common_dir == path) {
        return Ok(record.id);
    }
    store.writable()?;
    let lock_file = store.lock_file();
    let _lock = FileLock::exclusive(&lock_file).map_err(StoreError::io("lock", lock_file))?;
    let meta = fs::metadata(path).map_err(StoreError::io("look at", path))?;
    let record = match find(store, path)? {
        Some(record) => RepoRecord { common_dir: path.to_owned(), ..record },
        None => RepoRecord {
            id: RepoId::random(),
            common_dir: path.to_owned(),
            dev: meta.dev(),
            ino: meta.ino(),
            carry_secrets: None,
            carry_credentials: Default::default(),
            with: Default::default(),
            checks: Default::default(),
            directory: true,
        },
    };
    let dir = store.repo(&record.id);
    for part in [dir.path().to_owned(), dir.layers(), dir.snapshots()] {
        make_dir(&part)?;
    }
    write_twice(&dir.record(), &record, true)?;
    Ok(record.id)
}

/// Its record: the one of this path, else of the same directory at a path where it is no more.
fn find(store: &Store, path: &Path) -> Result<Option<RepoRecord>, StoreError> {
    let meta = fs::metadata(path).map_err(StoreError::io("look at", path))?;
    let mut moved = None;
    for id in store.repo_ids()? {
        let Ok(Some(record)) = read_json::<RepoRecord>(&store.repo(&id).record()) else { continue };
        if !record.directory || (record.dev, record.ino) != (meta.dev(), meta.ino()) {
            continue;
        }
        if record.common_dir == path {
            return Ok(Some(record));
        }
        if fs::symlink_metadata(&record.common_dir).is_err() {
            moved = Some(record);
        }
    }
    Ok(moved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moved_directory_is_found_again_and_another_one_at_its_place_is_new() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(&root.path().join("s")).unwrap();
        let (here, there) = (root.path().join("here"), root.path().join("there"));
        fs::create_dir(&here).unwrap();
        assert_eq!(known_id(&store, &here).unwrap(), None);
        let first = id(&store, &here).unwrap();
        assert_eq!(id(&store, &here).unwrap(), first);
        fs::rename(&here, &there).unwrap();
        assert_eq!(id(&store, &there).unwrap(), first);
        fs::create_dir(&here).unwrap();
        let other = id(&store, &here).unwrap();
        assert_ne!(other, first);
        assert_eq!((known_id(&store, &here).unwrap(), known_id(&store, &there).unwrap()), (Some(other), Some(first)));
        assert_eq!(fs::read_dir(&here).unwrap().count(), 0, "nothing of ours is in it");
    }
}
