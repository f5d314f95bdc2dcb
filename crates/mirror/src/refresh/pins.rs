//! Pins: what was served once stays fetchable (rule S5).
//!
//! ```text
//! refs/keep/<oid>     hidden, names <oid> itself
//! <mirror>/pins.json  {"<oid>": seconds since 1970}: when it was left; one that is not in it is new
//! ```

use crate::repo::MirrorRepo;
use sandbox_git::{Git, GitError, Oid};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

const FILE: &str = "pins.json";

/// Returns the pins of a mirror.
pub fn pinned(git: &Git, repo: &MirrorRepo) -> Result<BTreeSet<Oid>, GitError> {
    let out = repo.git(git).args(["for-each-ref", "--format=%(refname)", "refs/keep"]).output()?.stdout;
    let oid = |line: &[u8]| line.strip_prefix(b"refs/keep/").and_then(Oid::parse);
    Ok(out.split(|b| *b == b'\n').filter_map(oid).collect())
}

/// Of tips that nothing advertises any more, returns those that are not part of `tips`: one process.
pub(super) fn to_pin(
    git: &Git,
    repo: &MirrorRepo,
    left: &BTreeSet<Oid>,
    tips: impl Iterator<Item = Oid>,
) -> Result<BTreeSet<Oid>, GitError> {
    if left.is_empty() {
        return Ok(BTreeSet::new());
    }
    // Tags are objects of their own: a walk over commits does not meet them.
    let mut input: String = left.iter().map(|oid| format!("{oid}\n")).collect();
    let kinds =
        repo.git(git).stdin(input.clone()).args(["cat-file", "--batch-check=%(objectname) %(objecttype)"]).output()?;
    let kinds = String::from_utf8_lossy(&kinds.stdout).into_owned();
    let kinds: BTreeMap<&str, &str> = kinds.lines().filter_map(|line| line.split_once(' ')).collect();
    input.clear();
    let mut pins = BTreeSet::new();
    for oid in left {
        match kinds.get(oid.to_string().as_str()) {
            Some(&"commit") => input.push_str(&format!("{oid}\n")),
            // A tip that is not there any more cannot be pinned.
            None | Some(&"missing") => {}
            Some(_) => drop(pins.insert(*oid)),
        }
    }
    // Not `--not`: git 2.39 takes no options there.
    tips.for_each(|oid| input.push_str(&format!("^{oid}\n")));
    let walk = repo.git(git).stdin(input).args(["rev-list", "--stdin"]);
    walk.lines(|line| {
        if let Some(oid) = Oid::parse(line)
            && left.contains(&oid)
        {
            pins.insert(oid);
        }
        std::ops::ControlFlow::Continue(())
    })?;
    Ok(pins)
}

fn times(dir: &Path) -> BTreeMap<String, i64> {
    std::fs::read(dir.join(FILE)).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

fn write_times(dir: &Path, times: &BTreeMap<String, i64>) -> std::io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(serde_json::to_string(times).expect("plain data").as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(dir.join(FILE)).map(drop).map_err(|error| error.error)
}

/// Says when these were pinned: anew, if they were before.
pub(super) fn note(dir: &Path, pins: &BTreeSet<Oid>, now: i64) -> std::io::Result<()> {
    if pins.is_empty() {
        return Ok(());
    }
    let mut times = times(dir);
    times.extend(pins.iter().map(|oid| (oid.to_string(), now)));
    write_times(dir, &times)
}

/// Removes pins that are older than `age`; returns how many. One whose time nobody knows begins now.
pub fn expire(git: &Git, repo: &MirrorRepo, age: Duration, now: i64) -> Result<usize, GitError> {
    let oldest = now.saturating_sub(i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
    let known = times(repo.dir());
    let (mut kept, mut input, mut removed) = (BTreeMap::new(), Vec::new(), 0);
    for oid in pinned(git, repo)? {
        let text = oid.to_string();
        match known.get(&text) {
            Some(at) if *at < oldest => {
                input.extend_from_slice(format!("delete refs/keep/{text}\0\0").as_bytes());
                removed += 1;
            }
            at => drop(kept.insert(text, at.copied().unwrap_or(now))),
        }
    }
    if removed > 0 {
        repo.git(git).stdin(input).args(["update-ref", "-z", "--stdin"]).run()?;
    }
    if kept != known {
        // Not written, they only live longer.
        let _ = write_times(repo.dir(), &kept);
    }
    Ok(removed)
}
