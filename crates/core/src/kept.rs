//! What the vault keeps of one sandbox: rescue commits, and of a dropped one its commits too.
//!
//! ```text
//! repos/<repo-id>/kept/<sandbox-id>.json       this record
//! repos/<repo-id>/packs/                       the vault
//!   refs/<name>/rescue                         the newest rescue commit of the main repository
//!   refs/<name>/rescues/<n>                    the newest few
//!   refs/<name>/nested/<path>/…                the same of a submodule or nested repository
//!   refs/trash/<sandbox-id>/…                  all of that of a dropped sandbox, and
//!   refs/trash/<sandbox-id>/commits/…          what was at refs/sandbox[-meta]/<name> of the host
//! ```
//!
//! The record names the packs and views that those refs need; `gc` keeps what a record names. It names a pack
//! before the pack is there, so that no `gc` takes it between the two. Each rescue's packs stand for
//! themselves, on the view alone: an old one goes without a look at the others. Refs follow the record: they are
//! set to what it says, however often.
//!
//! Nothing here needs the sandbox's directory: when that is lost, the record and its refs are still there.

mod dropped;

pub(crate) use dropped::taken_out;
pub use dropped::{Branches, DropError, as_branches, branches, forget, forget_kept, into_trash, out_of_trash};

use crate::id::{Name, SandboxId};
use crate::landing::escape_ref;
use crate::record::SandboxRecord;
use crate::store::{Readable, RepoDir, Store, StoreError, copy_of, make_dir, read_json, write_twice};
use sandbox_git::refs::{RefStore, RefsError};
use sandbox_git::{Git, GitError, Oid, RefName};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Rescues that are kept at most.
const MOST: usize = 10;

/// Older ones than the newest only as long as all are together no larger, in bytes.
const MOST_BYTES: u64 = 64 << 20;

/// Why the vault cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// The record.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The refs.
    #[error("cannot read the refs of the vault")]
    Refs(#[from] RefsError),
    /// Git.
    #[error("cannot set the refs of the vault")]
    Git(#[from] GitError),
}

type Result<T> = std::result::Result<T, KeptError>;

/// `kept/<sandbox-id>.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// The sandbox.
    pub id: SandboxId,
    /// The name that its refs have; the sandbox's own, as long as it is not in the trash.
    pub name: Name,
    /// The work tree that it was made of.
    pub worktree: PathBuf,
    /// Oldest first.
    #[serde(default)]
    pub rescues: Vec<Rescue>,
    /// Since the newest one nothing was left uncommitted (Unix seconds).
    #[serde(default)]
    pub clean: Option<u64>,
    /// When the last try failed, and why, in words that are safe to print.
    #[serde(default)]
    pub failed: Option<(u64, String)>,
    /// Packs that are being put in place.
    #[serde(default)]
    pub placing: Vec<String>,
    /// It was dropped.
    #[serde(default)]
    pub trash: Option<Dropped>,
}

/// One rescue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rescue {
    /// Its number.
    pub n: u64,
    /// Unix seconds.
    pub at: u64,
    /// Files in it that differ from `HEAD`, or are untracked.
    pub files: u64,
    /// Bytes of its packs.
    pub bytes: u64,
    /// One commit for each repository with anything uncommitted.
    pub parts: Vec<Part>,
    /// What is not in it, one line each, safe to print.
    #[serde(default)]
    pub left_out: Vec<String>,
}

/// Of one repository.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Its work tree relative to the main one, as bytes; empty for the main repository.
    pub path: Vec<u8>,
    /// The view that it stands on.
    pub view: String,
    /// The commit.
    pub commit: String,
    /// What it was made of: the same trees need not be kept twice.
    pub trees: Vec<String>,
    /// Names of its packs, without an ending.
    pub packs: Vec<String>,
}

/// What is kept of a dropped sandbox besides.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Dropped {
    /// Unix seconds.
    pub at: u64,
    /// The host's refs of it, below `refs/trash/<id>/commits/`.
    pub commits: BTreeMap<String, String>,
    /// Packs of them.
    pub packs: Vec<String>,
    /// Views that they stand on.
    pub views: Vec<String>,
}

/// Where the record of a sandbox is.
pub fn file(repo: &RepoDir, id: &SandboxId) -> PathBuf {
    repo.path().join("kept").join(format!("{id}.json"))
}

impl Kept {
    /// Nothing is kept yet.
    pub fn new(record: &SandboxRecord) -> Self {
        Self {
            id: record.id.clone(),
            name: record.name.clone(),
            worktree: record.repos[0].worktree.clone(),
            rescues: Vec::new(),
            clean: None,
            failed: None,
            placing: Vec::new(),
            trash: None,
        }
    }

    /// Reads the record; `None` when nothing is kept.
    pub fn load(repo: &RepoDir, id: &SandboxId) -> Result<Option<Self>> {
        Ok(read_json(&file(repo, id))?)
    }

    /// Reads all records of a repository.
    pub fn all(repo: &RepoDir) -> std::result::Result<Readable<Self>, StoreError> {
        let dir = repo.path().join("kept");
        let mut all = Readable::default();
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(all),
            Err(source) => return Err(StoreError::Io { action: "list", path: dir, source }),
        };
        for entry in entries {
            let entry = entry.map_err(StoreError::io("list", &dir))?;
            let name = entry.file_name();
            let id = name.to_str().and_then(|name| SandboxId::parse(name.strip_suffix(".json")?));
            if let Some(id) = id {
                all.add(read_json(&file(repo, &id)));
            }
        }
        Ok(all)
    }

    /// Writes it.
    pub fn save(&self, repo: &RepoDir) -> Result<()> {
        let file = file(repo, &self.id);
        make_dir(file.parent().unwrap_or(&file))?;
        Ok(write_twice(&file, self, true)?)
    }

    /// The newest rescue.
    pub fn newest(&self) -> Option<&Rescue> {
        self.rescues.last()
    }

    /// Packs that it needs, without an ending.
    pub fn packs(&self) -> BTreeSet<String> {
        let rescued = self.rescues.iter().flat_map(|rescue| &rescue.parts).flat_map(|part| &part.packs);
        let dropped = self.trash.iter().flat_map(|dropped| &dropped.packs);
        rescued.chain(dropped).chain(&self.placing).cloned().collect()
    }

    /// Views that its packs stand on.
    pub fn views(&self) -> BTreeSet<String> {
        let rescued = self.rescues.iter().flat_map(|rescue| &rescue.parts).map(|part| &part.view);
        rescued.chain(self.trash.iter().flat_map(|dropped| &dropped.views)).cloned().collect()
    }

    /// Bytes on disk of its record and packs.
    pub fn bytes(&self, repo: &RepoDir) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let packs = repo.vault().join("objects/pack");
        let size = |path: PathBuf| fs::symlink_metadata(path).map_or(0, |meta| meta.blocks() * 512);
        let files = self.packs().into_iter().flat_map(|pack| [format!("{pack}.pack"), format!("{pack}.idx")]);
        files.map(|name| size(packs.join(name))).sum::<u64>() + size(file(repo, &self.id))
    }

    /// When it last was of use (Unix seconds): with the sandbox's directory gone, what its age is counted from.
    pub fn since(&self) -> u64 {
        let rescued = self.rescues.last().map(|rescue| rescue.at);
        self.trash.as_ref().map(|dropped| dropped.at).or(rescued).unwrap_or_default()
    }

    /// Forgets rescues that are more than are kept.
    pub fn trim(&mut self) {
        let mut bytes = 0u64;
        let mut keep = 0;
        for rescue in self.rescues.iter().rev() {
            bytes = bytes.saturating_add(rescue.bytes);
            if keep == MOST || (keep > 0 && bytes > MOST_BYTES) {
                break;
            }
            keep += 1;
        }
        self.rescues.drain(..self.rescues.len() - keep);
    }

    /// The refs that the vault must have for it.
    pub fn refs(&self) -> BTreeMap<String, String> {
        let below = match &self.trash {
            Some(_) => format!("refs/trash/{}", self.id),
            None => format!("refs/{}", self.name),
        };
        let mut refs = BTreeMap::new();
        for rescue in &self.rescues {
            for part in &rescue.parts {
                let at = match part.path.as_slice() {
                    b"" => below.clone(),
                    path => format!("{below}/nested/{}", escape_ref(path)),
                };
                refs.insert(format!("{at}/rescues/{}", rescue.n), part.commit.clone());
                // The newest of each repository: later ones come later.
                refs.insert(format!("{at}/rescue"), part.commit.clone());
            }
        }
        for (name, commit) in self.trash.iter().flat_map(|dropped| &dropped.commits) {
            refs.insert(format!("{below}/commits/{name}"), commit.clone());
        }
        refs
    }

    /// Sets the vault's refs to what the record says: under the sandbox's name or in the trash, and
    /// nowhere else. Whoever calls this must own the name, and the lock of the repository's refs.
    pub fn set_refs(&self, git: &Git, repo: &RepoDir) -> Result<()> {
        let vault = repo.vault();
        let wanted: BTreeMap<RefName, Oid> =
            self.refs().iter().filter_map(|(name, oid)| Some((RefName::parse(name)?, Oid::parse(oid)?))).collect();
        let mut lines = Vec::new();
        let there = RefStore::read_files(&vault, &vault)?;
        let (named, trashed) = (format!("refs/{}/", self.name), format!("refs/trash/{}/", self.id));
        for name in there.refs.keys() {
            let ours = name.as_bytes().starts_with(named.as_bytes()) || name.as_bytes().starts_with(trashed.as_bytes());
            // A sandbox may be called 'trash'.
            let others = name.as_bytes().starts_with(b"refs/trash/")
                && !name.as_bytes().starts_with(trashed.as_bytes())
                && is_trash(name);
            if ours && !others && !wanted.contains_key(name) {
                lines.extend([b"delete ", name.as_bytes(), b"\0\0"].concat());
            }
        }
        for (name, oid) in &wanted {
            if there.resolve(name) != Some(*oid) {
                lines.extend([b"update ", name.as_bytes(), format!("\0{oid}\0\0").as_bytes()].concat());
            }
        }
        if lines.is_empty() {
            return Ok(());
        }
        git.vault(&vault)
            .config("core.fsync=committed,reference")
            .config("core.filesRefLockTimeout=2000")
            .config("core.packedRefsTimeout=2000")
            .env("GIT_COMMITTER_NAME", "git-sandbox")
            .env("GIT_COMMITTER_EMAIL", "git-sandbox@localhost")
            .args(["update-ref", "--no-deref", "--create-reflog", "-m", "kept", "-z", "--stdin"])
            .stdin(lines)
            .run()?;
        sandbox_sys::writeback::names(&vault, wanted.keys().map(RefName::as_bytes))
            .map_err(StoreError::io("sync", &vault))?;
        Ok(())
    }

    /// Removes all of it: refs, record, and the packs that no other record names. The lock of the
    /// repository's refs must be held. The refs are files: nobody packs those of a vault.
    fn remove(self, repo: &RepoDir) -> std::result::Result<(), StoreError> {
        let vault = repo.vault();
        let named = ["rescue", "rescues", "nested"].map(|last| format!("{}/{last}", self.name));
        for below in named.into_iter().chain([format!("trash/{}", self.id)]) {
            for dir in ["refs", "logs/refs"] {
                let path = vault.join(dir).join(&below);
                let removed = match fs::symlink_metadata(&path) {
                    Ok(meta) if meta.is_dir() => fs::remove_dir_all(&path),
                    Ok(_) => fs::remove_file(&path),
                    Err(_) => Ok(()),
                };
                removed.map_err(StoreError::io("delete", &path))?;
            }
        }
        let record = file(repo, &self.id);
        fs::remove_file(&record).map_err(StoreError::io("delete", &record))?;
        let _ = fs::remove_file(copy_of(&record));
        remove_packs(repo, self.packs())
    }
}

/// Below `refs/trash/` of the vault, with an id: not of a sandbox that is called 'trash'.
fn is_trash(name: &RefName) -> bool {
    let id = name.to_str().and_then(|name| name.strip_prefix("refs/trash/")?.split('/').next());
    id.is_some_and(|id| SandboxId::parse(id).is_some())
}

/// Deletes packs of the vault that no record names and no view links; none as long as one record cannot be read.
pub(crate) fn remove_packs(repo: &RepoDir, mut packs: BTreeSet<String>) -> std::result::Result<(), StoreError> {
    use std::os::unix::fs::MetadataExt;
    let all = Kept::all(repo)?;
    if !all.damaged.is_empty() {
        // What they need is not known: `gc` takes the packs when it is.
        return Ok(());
    }
    for kept in all.whole {
        packs.retain(|pack| !kept.packs().contains(pack));
    }
    let dir = repo.vault().join("objects/pack");
    for pack in packs.iter().filter(|pack| is_pack(pack)) {
        let path = dir.join(format!("{pack}.pack"));
        if fs::symlink_metadata(&path).is_ok_and(|meta| meta.nlink() == 1) {
            remove_pack(&dir.join(pack));
        }
    }
    Ok(())
}

/// The index first: without it a pack does not count.
fn remove_pack(stem: &Path) {
    for ext in ["idx", "rev", "promisor", "pack"] {
        let _ = fs::remove_file(stem.with_extension(ext));
    }
}

fn is_pack(name: &str) -> bool {
    name.strip_prefix("pack-").is_some_and(|hash| Oid::parse(hash).is_some())
}

/// Its sandbox is neither there nor in the trash: the directory was lost.
pub fn is_lost(store: &Store, kept: &Kept) -> bool {
    !has_directory(store, &kept.id)
}

/// Whether the directory of a sandbox is there, or in the trash.
pub(crate) fn has_directory(store: &Store, id: &SandboxId) -> bool {
    store.sandbox(id).record().exists() || store.trash(id).record().exists()
}

/// Whose record a file is.
pub(crate) fn id_of(repo: &RepoDir, path: &Path) -> Option<SandboxId> {
    let id = SandboxId::parse(path.file_stem()?.to_str()?)?;
    (file(repo, &id) == path).then_some(id)
}

/// Removes what is kept of one; false when nothing is.
pub fn expire(repo: &RepoDir, id: &SandboxId) -> std::result::Result<bool, StoreError> {
    match read_json(&file(repo, id))? {
        Some(kept) => forget_kept(repo, kept).map(|()| true),
        None => Ok(false),
    }
}

/// Of one sandbox, of each of its repositories that has anything, with its number.
pub fn all_of(store: &Store, record: &SandboxRecord) -> Result<Vec<(usize, Kept)>> {
    let mut all = Vec::new();
    for (n, mount) in record.repos.iter().enumerate().filter(|(_, mount)| mount.has_commits()) {
        all.extend(Kept::load(&store.repo(&mount.repo), &record.id)?.map(|kept| (n, kept)));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(sizes: &[u64]) -> Kept {
        let rescue = |(n, bytes): (usize, &u64)| Rescue {
            n: n as u64,
            at: 10 + n as u64,
            files: 1,
            bytes: *bytes,
            parts: vec![
                Part {
                    path: Vec::new(),
                    view: "v".into(),
                    commit: format!("{n:040}"),
                    trees: Vec::new(),
                    packs: vec![format!("p{n}")],
                },
                Part {
                    path: b"libs/a b".to_vec(),
                    view: "w".into(),
                    commit: format!("{:040}", n + 100),
                    trees: Vec::new(),
                    packs: Vec::new(),
                },
            ],
            left_out: Vec::new(),
        };
        Kept {
            id: SandboxId::parse("0123456789abcdef0123456789abcdef").unwrap(),
            name: Name::parse("fix").unwrap(),
            worktree: "/w".into(),
            rescues: sizes.iter().enumerate().map(rescue).collect(),
            clean: None,
            failed: None,
            placing: Vec::new(),
            trash: None,
        }
    }

    #[test]
    fn refs_follow_the_record_to_the_trash() {
        let mut kept = kept(&[1, 2]);
        let names = |kept: &Kept| kept.refs().into_keys().collect::<Vec<_>>();
        assert_eq!(
            names(&kept),
            [
                "refs/fix/nested/libs+/a%20b/rescue",
                "refs/fix/nested/libs+/a%20b/rescues/0",
                "refs/fix/nested/libs+/a%20b/rescues/1",
                "refs/fix/rescue",
                "refs/fix/rescues/0",
                "refs/fix/rescues/1",
            ]
        );
        assert_eq!(kept.refs()["refs/fix/rescue"], format!("{:040}", 1));
        let commits = BTreeMap::from([("head".to_owned(), format!("{:040}", 7))]);
        kept.trash = Some(Dropped { at: 99, commits, packs: vec!["q".into()], views: vec!["x".into()] });
        assert!(names(&kept).iter().all(|name| name.starts_with("refs/trash/0123456789abcdef0123456789abcdef/")));
        assert_eq!(kept.packs().into_iter().collect::<Vec<_>>(), ["p0", "p1", "q"]);
        assert_eq!(kept.views().into_iter().collect::<Vec<_>>(), ["v", "w", "x"]);
        assert_eq!(kept.since(), 99);
    }

    #[test]
    fn the_newest_is_kept_whatever_its_size_and_older_ones_within_bounds() {
        let left = |sizes: &[u64]| {
            let mut kept = kept(sizes);
            kept.trim();
            kept.rescues.iter().map(|rescue| rescue.n).collect::<Vec<_>>()
        };
        assert_eq!(left(&[1; 12]), (2..12).collect::<Vec<_>>());
        assert_eq!(left(&[1, 1, 1 << 40]), [2]);
        assert_eq!(left(&[40 << 20, 40 << 20, 20 << 20]), [1, 2]);
        assert_eq!(left(&[]), [] as [u64; 0]);
    }
}
