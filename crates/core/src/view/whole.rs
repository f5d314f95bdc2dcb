//! `sandbox.objects = all`: a view of everything that the host has.
//!
//! The host's packs are hard-linked (copied where that cannot be, or where the link's owner would
//! have to change, because a link is the host's own file); its loose objects become one pack.

use super::{Draft, Record, Result, Step, View, ViewError, Views, Wanted, digest, failed};
use crate::host_repo::HostRepo;
use crate::space::Need;
use sandbox_git::Oid;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

pub(super) fn make(views: &Views<'_>, host: &HostRepo, wanted: &Wanted) -> Result<View> {
    let mut packs: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    let mut loose: BTreeSet<Oid> = BTreeSet::new();
    for objects in object_dirs(host.common_dir()) {
        collect_packs(&objects.join("pack"), &mut packs)?;
        collect_loose(&objects, &mut loose)?;
    }
    let loose: Vec<Oid> = loose.into_iter().collect();
    let mut text = format!("whole 1\n{}\n", host.format());
    for name in packs.keys() {
        text.push_str(&format!("{}\n", name.to_string_lossy()));
    }
    let roots: Vec<Oid> = wanted.roots().into_iter().collect();
    for (what, oids) in [("loose", &loose), ("shallow", &wanted.shallow), ("root", &roots)] {
        text.extend(oids.iter().map(|oid| format!("{what} {oid}\n")));
    }
    let key = digest(text.as_bytes());
    if let Some(view) = View::open(views.repo, &key)? {
        return Ok(view);
    }
    // Without a copy it takes nothing.
    if views.owner.is_some() {
        let bytes = packs.values().filter_map(|pack| fs::metadata(pack).ok()).map(|meta| meta.len()).sum();
        views.repo.has_room(Need { bytes, inodes: packs.len() as u64 })?;
    }
    let draft = Draft::new(views)?;
    for (name, source) in &packs {
        let target = draft.packs().join(name);
        // The index last is not needed here: nobody reads a draft.
        if views.owner.is_some() || fs::hard_link(source, &target).is_err() {
            fs::copy(source, &target).map_err(failed("copy", source))?;
        }
    }
    let extras_packs = draft.pack_exact(host, &loose)?;
    let record = Record {
        version: 1,
        format: host.format(),
        shallow: wanted.shallow.clone(),
        partial: wanted.partial,
        steps: vec![Step { roots, packs: Vec::new() }],
        extras: String::new(),
        extras_packs,
        whole: true,
    };
    draft.publish(key, record)
}

/// The repository's object directory and its alternates, recursively.
fn object_dirs(common_dir: &Path) -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    let mut open = vec![common_dir.join("objects")];
    while let Some(dir) = open.pop() {
        let Ok(dir) = fs::canonicalize(&dir) else { continue };
        if dirs.contains(&dir) || dirs.len() > 32 {
            continue;
        }
        let list = fs::read(dir.join("info").join("alternates")).unwrap_or_default();
        for line in list.split(|b| *b == b'\n').filter(|line| !line.is_empty() && line[0] != b'#') {
            open.push(dir.join(std::ffi::OsStr::from_bytes(line)));
        }
        dirs.push(dir);
    }
    dirs
}

fn collect_packs(dir: &Path, packs: &mut BTreeMap<OsString, PathBuf>) -> Result<()> {
    for name in list(dir)? {
        let text = name.to_string_lossy();
        let wanted = ["pack", "idx", "rev", "promisor"].iter().any(|end| text.ends_with(&format!(".{end}")));
        if text.starts_with("pack-") && wanted {
            packs.entry(name.clone()).or_insert_with(|| dir.join(&name));
        }
    }
    // A pack without an index is being written; an index without its pack is being removed.
    let have: BTreeSet<OsString> = packs.keys().cloned().collect();
    packs.retain(|name, _| {
        let text = name.to_string_lossy();
        let stem = text.rsplit_once('.').map_or(&*text, |(stem, _)| stem);
        ["pack", "idx"].iter().all(|end| have.contains(&OsString::from(format!("{stem}.{end}"))))
    });
    Ok(())
}

fn collect_loose(objects: &Path, loose: &mut BTreeSet<Oid>) -> Result<()> {
    for fan in list(objects)? {
        let Some(fan) = fan.to_str().filter(|name| name.len() == 2) else { continue };
        for rest in list(&objects.join(fan))? {
            loose.extend(rest.to_str().and_then(|rest| Oid::parse(format!("{fan}{rest}"))));
        }
    }
    Ok(())
}

fn list(dir: &Path) -> Result<Vec<OsString>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(source) => return Err(ViewError::Io { action: "list", path: dir.to_owned(), source }),
    };
    entries.map(|entry| Ok(entry.map_err(failed("list", dir))?.file_name())).collect()
}
