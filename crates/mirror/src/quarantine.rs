//! Mirrors that were set aside because they were found corrupt: what there is, and what of it goes.
//!
//! They are kept for whoever wants to know what happened, and because something may be in them that is nowhere else:
//! with `isolation = "repo"` what sessions pushed. So one with scratch refs goes only by force, never by age.

use crate::layout::{Layout, stem};
use crate::measure;
use crate::name::RepoName;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::time::Duration;

/// One that was set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aside {
    /// Its directory in `quarantine/`.
    pub dir: String,
    /// What it was served as; nothing if that is not registered any more.
    pub repo: Option<RepoName>,
    /// Seconds since 1970 when it was set aside.
    pub since: u64,
    /// Bytes of its objects.
    pub bytes: u64,
    /// Scratch refs, which may be nowhere else.
    pub scratch: u64,
}

/// All of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllAside {
    /// The oldest first.
    pub quarantine: Vec<Aside>,
}

/// What emptying comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Emptied {
    /// What goes, or went.
    pub removed: Vec<Aside>,
    /// What is old enough and stays because of its scratch refs.
    pub kept: Vec<Aside>,
    /// It was done.
    pub done: bool,
}

/// What is set aside, the oldest first. Names are told by what is registered.
pub fn list<'n>(layout: &Layout, names: impl Iterator<Item = &'n RepoName>) -> Vec<Aside> {
    let stems: HashMap<String, &RepoName> = names.map(|name| (stem(name), name)).collect();
    let entries = fs::read_dir(layout.quarantined()).into_iter().flatten().flatten();
    let mut all: Vec<Aside> = entries
        .filter_map(|entry| {
            let dir = entry.file_name().to_str()?.to_owned();
            let (stem, since) = dir.strip_suffix(".git")?.rsplit_once('-')?;
            let (repo, since) = (stems.get(stem).map(|name| (*name).clone()), since.parse().ok()?);
            let size = measure::bare(&entry.path());
            Some(Aside { dir, repo, since, bytes: size.bytes, scratch: size.scratch_refs })
        })
        .collect();
    all.sort_by(|a, b| (a.since, &a.dir).cmp(&(b.since, &b.dir)));
    all
}

/// Decides what goes of what was set aside at least so long ago; `now` in seconds since 1970.
pub fn plan(all: Vec<Aside>, older: Duration, force: bool, now: u64) -> Emptied {
    let old = all.into_iter().filter(|aside| now.saturating_sub(aside.since) >= older.as_secs());
    let (removed, kept) = old.partition(|aside| force || aside.scratch == 0);
    Emptied { removed, kept, done: false }
}

/// Removes what was planned. What is in the middle of it when the service is killed goes with `tmp`.
pub fn apply(layout: &Layout, plan: &mut Emptied) -> io::Result<()> {
    for aside in &plan.removed {
        let (from, to) = (layout.quarantined().join(&aside.dir), layout.tmp().join(&aside.dir));
        match fs::rename(from, &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        }
        fs::remove_dir_all(to)?;
    }
    plan.done = true;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_old_goes_and_what_sessions_pushed_stays() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        layout.create().unwrap();
        let name: RepoName = "h/o/r".parse().unwrap();
        let make = |at: u64, files: &[&str]| {
            let dir = layout.quarantine(&name, at);
            for file in files {
                let path = dir.join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "0123456789").unwrap();
            }
        };
        make(100, &["HEAD", "objects/pack/pack-1.pack", "refs/heads/main"]);
        make(200, &["HEAD", "refs/agents/s1"]);
        make(900, &["HEAD"]);
        fs::create_dir(layout.quarantined().join("somebody's")).unwrap();
        let all = list(&layout, [&name].into_iter());
        assert_eq!(
            all.iter().map(|aside| (aside.since, aside.bytes, aside.scratch)).collect::<Vec<_>>(),
            [(100, 10, 0), (200, 0, 1), (900, 0, 0)]
        );
        assert!(all.iter().all(|aside| aside.repo.as_ref() == Some(&name)));
        assert_eq!(list(&layout, [].into_iter())[0].repo, None, "nothing of this name is registered");
        let mut planned = plan(all.clone(), Duration::from_secs(500), false, 1000);
        assert_eq!((planned.removed.len(), planned.kept.len(), planned.done), (1, 1, false));
        apply(&layout, &mut planned).unwrap();
        assert!(planned.done && !layout.quarantine(&name, 100).exists() && layout.quarantine(&name, 200).exists());
        // It is done once.
        apply(&layout, &mut planned).unwrap();
        let mut planned = plan(list(&layout, [&name].into_iter()), Duration::ZERO, true, 1000);
        apply(&layout, &mut planned).unwrap();
        assert_eq!(planned.removed.len(), 2);
        assert!(list(&layout, [&name].into_iter()).is_empty() && layout.quarantined().join("somebody's").exists());
    }
}
