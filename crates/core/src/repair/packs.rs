//! Packs of the vault and of views: a flipped bit is found by the hash at the end of each file, and mended by what the
//! host's repository still has.
//!
//! ```text
//! packs/objects/pack/pack-1.pack ─┐
//! views/a/objects/pack/pack-1.pack ─┤ one file with several names ─► a new one of the same objects, name by name
//! views/b/objects/pack/pack-1.pack ─┘
//! ```
//!
//! A damaged pack harms the sandboxes that borrow from it, and the spawns that would: git says so when it meets the
//! place. What only the vault had (rescues, commits of dropped sandboxes) cannot be mended, and stays.

use super::{Failure, Finding, Fix, entries, file_name};
use crate::host_repo::HostRepo;
use crate::record::{RepoRecord, Snapshot};
use crate::store::{Store, read_json};
use crate::view::View;
use sandbox_git::{Git, ObjectFormat, pack};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A damaged pack.
#[derive(Clone, Debug)]
pub struct DamagedPack {
    /// Its names, without an ending: the vault's and those of views.
    stems: Vec<PathBuf>,
    /// Repositories that may have its objects.
    hosts: Vec<PathBuf>,
    format: ObjectFormat,
    /// Its index is whole, so that it is known what was in it.
    index: bool,
}

/// Reads every file of every pack of a repository.
pub(super) fn find(store: &Store, record: &RepoRecord, found: &mut Vec<Finding>) {
    let repo = store.repo(&record.id);
    let mut hosts: BTreeMap<String, PathBuf> = BTreeMap::new();
    for path in entries(&repo.snapshots()) {
        let snapshot = read_json::<Snapshot>(&path).ok().flatten();
        hosts.extend(snapshot.into_iter().flat_map(|one| one.git.views).map(|view| (view.key, view.host_gitdir)));
    }
    let vault = repo.vault();
    let of_vault = match fs::read_to_string(vault.join("config")) {
        Ok(config) if config.contains("objectFormat = sha256") => ObjectFormat::Sha256,
        _ => ObjectFormat::Sha1,
    };
    let mut dirs = vec![(vault.join("objects/pack"), of_vault, record.common_dir.clone())];
    for view in entries(&repo.views()) {
        let key = file_name(&view);
        let format = View::open(&repo, &key).ok().flatten().map_or(of_vault, |view| view.format());
        let host = hosts.get(&key).unwrap_or(&record.common_dir).clone();
        dirs.push((view.join("objects/pack"), format, host));
    }
    // Each file once, whatever it is called.
    let mut packs: BTreeMap<(u64, u64), DamagedPack> = BTreeMap::new();
    for (dir, format, host) in dirs {
        for path in entries(&dir).into_iter().filter(|path| path.extension().is_some_and(|ext| ext == "pack")) {
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            let new = DamagedPack { stems: Vec::new(), hosts: Vec::new(), format, index: true };
            let pack = packs.entry((meta.dev(), meta.ino())).or_insert(new);
            pack.stems.push(path.with_extension(""));
            if !pack.hosts.contains(&host) {
                pack.hosts.push(host.clone());
            }
        }
    }
    for mut pack in packs.into_values() {
        if let Some(what) = pack.damage() {
            found.push(Finding { kind: "damaged", what, fix: Fix::Pack(pack) });
        }
    }
}

impl DamagedPack {
    /// Says which of its files is damaged. Under another name an index of its own may be in order: git has read that.
    fn damage(&mut self) -> Option<String> {
        let bad = |path: &Path| matches!(pack::is_whole(path, self.format), Ok(false) | Err(_)) && path.exists();
        let mut seen = BTreeSet::new();
        let files = self.stems.iter().flat_map(|stem| ["pack", "idx", "rev"].map(|ext| stem.with_extension(ext)));
        let once = |path: &PathBuf| fs::symlink_metadata(path).is_ok_and(|meta| seen.insert((meta.dev(), meta.ino())));
        let damaged: Vec<PathBuf> = files.filter(once).filter(|path| bad(path)).collect();
        self.index = !damaged.iter().any(|path| path.extension().is_some_and(|ext| ext == "idx"));
        let first = damaged.first()?;
        let places = match self.stems.len() {
            1 => String::new(),
            n => format!(", which has {n} names"),
        };
        Some(format!("'{}' is damaged{places}", first.display()))
    }

    /// What is left to do where it cannot be mended.
    pub fn hint(&self) -> String {
        let dir = self.stems.first().and_then(|stem| stem.ancestors().nth(3)).unwrap_or(Path::new("."));
        format!(
            "what only this file had is lost: `git --git-dir='{}' fsck` names it; commits made inside are in each sandbox's own directory",
            dir.display()
        )
    }

    /// Makes it anew of the same objects and puts that in the place of each of its names; `false` when it is gone.
    pub(super) fn mend(&self, git: &Git, store: &Store) -> Result<bool, Failure> {
        let Some(first) = self.stems.iter().find(|stem| stem.with_extension("pack").exists()) else {
            return Ok(false);
        };
        let out = tempfile::Builder::new().prefix("repair.").tempdir_in(store.tmp())?;
        let format = format!("--object-format={}", self.format.as_str());
        if pack::is_whole(&first.with_extension("pack"), self.format)? {
            // Only what is beside it: that follows from it.
            let (pack, index) = (out.path().join("new.pack"), out.path().join("new.idx"));
            fs::copy(first.with_extension("pack"), &pack)?;
            git.anywhere().args(["index-pack", "--rev-index", &format, "-o"]).arg(index).arg(pack).run()?;
        } else if self.index {
            let index = fs::read(first.with_extension("idx"))?;
            let listed = git.anywhere().args(["show-index", &format]).stdin(index).output()?;
            let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
            let ids: String =
                listed.lines().filter_map(|line| Some(format!("{}\n", line.split(' ').nth(1)?))).collect();
            let mut refused = None;
            let made = self.hosts.iter().any(|host| {
                let made = HostRepo::from_git_dir(host).map_err(Failure::from).and_then(|host| {
                    let pack = host.read(git).args(["pack-objects", "-q", "--delta-base-offset"]);
                    Ok(pack.arg(out.path().join("pack")).stdin(ids.clone()).run()?)
                });
                made.map_err(|error| refused = Some(error)).is_ok()
            });
            if !made {
                return Err(refused.unwrap_or_else(|| "no repository has its objects".into()));
            }
        } else {
            return Err("the pack and its index are damaged: what was in it is not known".into());
        }
        let made = entries(out.path());
        let is = |ext: &str| made.iter().find(|path| path.extension().is_some_and(|one| one == ext));
        if made.iter().filter(|path| path.extension().is_some_and(|one| one == "pack")).count() != 1 {
            return Err("git made more than one pack of its objects: unset 'pack.packSizeLimit'".into());
        }
        for ext in ["pack", "rev", "idx"] {
            match is(ext) {
                Some(new) => self.replace(new, ext)?,
                // An older git makes none, and an old one does not fit.
                None => self.stems.iter().for_each(|stem| drop(fs::remove_file(stem.with_extension(ext)))),
            }
        }
        Ok(true)
    }

    fn replace(&self, new: &Path, ext: &str) -> Result<(), Failure> {
        fs::File::open(new)?.sync_all()?;
        for stem in &self.stems {
            let (old, beside) = (stem.with_extension(ext), stem.with_extension("new"));
            let owner = fs::symlink_metadata(stem.with_extension("pack"))?;
            if rustix::process::geteuid().is_root() {
                std::os::unix::fs::lchown(new, Some(owner.uid()), Some(owner.gid()))?;
            }
            let _ = fs::remove_file(&beside);
            fs::hard_link(new, &beside)?;
            fs::rename(&beside, &old)?;
        }
        Ok(())
    }
}
