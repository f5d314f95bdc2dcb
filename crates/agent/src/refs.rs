//! Which git directories had a ref moved: from the renames that are seen anyway, else by looking.
//!
//! git writes a ref, `HEAD`, `packed-refs` and a reftable's list as `<name>.lock` (or `.new`) and
//! renames it into place. A note is held back for a moment, because one command moves several refs
//! and because it is made before the rename happens.

use sandbox_protocol::AgentConfig;
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// How long a note is held back.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// How often refs are looked at while something happens inside, and when nothing does.
const LOOK_BUSY: Duration = Duration::from_millis(250);
const LOOK_IDLE: Duration = Duration::from_secs(2);

/// How long after the last sign of life a sandbox counts as busy.
const BUSY: Duration = Duration::from_secs(10);

/// The most directories below `refs` that are looked at.
const MAX_DIRECTORIES: usize = 256;

/// Cheap first look at a rename: could it put a ref in place?
pub fn may_be_ref(old: &[u8], new: &[u8]) -> bool {
    (old.ends_with(b".lock") || old.ends_with(b".new")) && !new.ends_with(b"/index") && new != b"index"
}

/// Returns the git directory whose refs a rename to this absolute path changes; `None` when it
/// changes none. For a submodule it is `…/.git/modules/<name>`, for a linked worktree the main one.
pub fn gitdir_of(path: &[u8]) -> Option<Vec<u8>> {
    let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    let git = parts.iter().rposition(|part| *part == b".git")?;
    let is_start = |part: &&[u8]| matches!(*part, b"refs" | b"reftable" | b"worktrees" | b"HEAD" | b"packed-refs");
    let below = parts[git + 1..].iter().position(is_start).map(|at| git + 1 + at)?;
    // A name before it must be a submodule's, else it is not a git directory's own entry.
    let modules = parts.get(git + 1) == Some(&&b"modules"[..]);
    if below > git + 1 && !modules {
        return None;
    }
    let is_ref = match parts[below] {
        b"HEAD" | b"packed-refs" => below + 1 == parts.len(),
        b"worktrees" => parts.last() == Some(&&b"HEAD"[..]) || parts[below..].contains(&&b"refs"[..]),
        _ => below + 1 < parts.len(),
    };
    is_ref.then(|| parts[..below].iter().flat_map(|part| [b"/", *part].concat()).collect())
}

/// Notes that are held back.
#[derive(Debug, Default)]
pub struct Debounce {
    due: BTreeMap<Vec<u8>, Instant>,
}

impl Debounce {
    /// Takes a note; a second one within the moment is the same.
    pub fn note(&mut self, gitdir: Vec<u8>, now: Instant) {
        self.due.entry(gitdir).or_insert(now + DEBOUNCE);
    }

    /// When the next one is to be told.
    pub fn deadline(&self) -> Option<Instant> {
        self.due.values().min().copied()
    }

    /// Returns all, though it is not their time.
    pub fn take_all(&mut self) -> impl Iterator<Item = Vec<u8>> + use<> {
        std::mem::take(&mut self.due).into_keys()
    }

    /// Returns those that are to be told now.
    pub fn take_due(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let (due, rest) = std::mem::take(&mut self.due).into_iter().partition(|(_, at)| *at <= now);
        self.due = rest;
        let due: BTreeMap<Vec<u8>, Instant> = due;
        due.into_keys().collect()
    }
}

/// Looks at the refs of each tree from time to time, where renames are not seen.
#[derive(Debug)]
pub struct Poller {
    gitdirs: Vec<(PathBuf, Vec<SystemTime>)>,
    next: Option<Instant>,
    active: Option<Instant>,
}

impl Poller {
    /// Returns a poller of the trees' repositories; it never looks when renames are `seen`.
    pub fn new(config: &AgentConfig, seen: bool) -> Self {
        let trees = config.trees.iter().filter(|tree| !seen && !tree.read_only && !config.helper);
        // Before anything runs: what the first command moves is told too.
        let gitdirs = trees.map(|tree| tree.at.join(".git")).map(|gitdir| (gitdir.clone(), signature(&gitdir)));
        let gitdirs = gitdirs.collect();
        Self { gitdirs, next: None, active: None }
    }

    /// Something happens inside.
    pub fn activity(&mut self, now: Instant) {
        self.active = Some(now);
    }

    /// When to look next.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        (!self.gitdirs.is_empty()).then(|| self.next.unwrap_or(now))
    }

    /// Looks if it is time; returns the git directories in which something moved.
    pub fn look(&mut self, now: Instant) -> Vec<Vec<u8>> {
        if self.gitdirs.is_empty() || self.next.is_some_and(|next| next > now) {
            return Vec::new();
        }
        let busy = self.active.is_some_and(|active| now.saturating_duration_since(active) < BUSY);
        self.next = Some(now + if busy { LOOK_BUSY } else { LOOK_IDLE });
        self.look_now()
    }

    /// Looks, whatever the time.
    pub fn look_now(&mut self) -> Vec<Vec<u8>> {
        let mut moved = Vec::new();
        for (gitdir, last) in &mut self.gitdirs {
            let seen = signature(gitdir);
            // Of one that is gone there is nothing to tell.
            if *last != seen && gitdir.exists() {
                moved.push(gitdir.as_os_str().as_bytes().to_vec());
            }
            *last = seen;
        }
        moved
    }
}

/// The times of everything that a move of a ref touches: a file put in place changes its directory.
fn signature(gitdir: &Path) -> Vec<SystemTime> {
    let mut times = Vec::new();
    let mut add = |path: &Path| {
        times.extend(path.symlink_metadata().and_then(|metadata| metadata.modified()).ok());
    };
    for name in ["HEAD", "packed-refs", "logs/HEAD", "reftable/tables.list"] {
        add(&gitdir.join(name));
    }
    let mut directories = vec![gitdir.join("refs")];
    let mut at = 0;
    while at < directories.len() && at < MAX_DIRECTORIES {
        let directory = directories[at].clone();
        add(&directory);
        let inner = std::fs::read_dir(&directory).into_iter().flatten().flatten();
        directories.extend(inner.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|entry| entry.path()));
        at += 1;
    }
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gitdir(path: &str) -> Option<String> {
        gitdir_of(path.as_bytes()).map(|path| String::from_utf8(path).unwrap())
    }

    #[test]
    fn refs_are_told_from_other_files() {
        let own = Some("/w/.git".to_owned());
        assert_eq!(gitdir("/w/.git/HEAD"), own);
        assert_eq!(gitdir("/w/./.git//refs/heads/a/b"), own);
        assert_eq!(gitdir("/w/.git/refs/stash"), own);
        assert_eq!(gitdir("/w/.git/packed-refs"), own);
        assert_eq!(gitdir("/w/.git/reftable/tables.list"), own);
        assert_eq!(gitdir("/w/.git/worktrees/x/HEAD"), own);
        assert_eq!(gitdir("/w/.git/modules/lib/deep/refs/heads/m"), Some("/w/.git/modules/lib/deep".into()));
        assert_eq!(gitdir("/w/.git/modules/lib/HEAD"), Some("/w/.git/modules/lib".into()));
        for other in ["/w/.git/index", "/w/.git/objects/pack/p.pack", "/w/.git/logs/HEAD", "/w/.git/config", "/w/HEAD"]
        {
            assert_eq!(gitdir(other), None, "{other}");
        }
    }

    #[test]
    fn only_files_put_in_place_are_looked_at() {
        assert!(may_be_ref(b".git/HEAD.lock", b".git/HEAD"));
        assert!(may_be_ref(b"packed-refs.new", b"packed-refs"));
        assert!(!may_be_ref(b".git/index.lock", b".git/index"));
        assert!(!may_be_ref(b"a", b"b"));
    }

    #[test]
    fn notes_are_held_back_and_joined() {
        let (mut debounce, start) = (Debounce::default(), Instant::now());
        debounce.note(b"/a".to_vec(), start);
        debounce.note(b"/a".to_vec(), start + Duration::from_millis(50));
        debounce.note(b"/b".to_vec(), start + Duration::from_millis(50));
        assert_eq!(debounce.take_due(start + Duration::from_millis(99)), [] as [Vec<u8>; 0]);
        assert_eq!(debounce.take_due(start + DEBOUNCE), [b"/a".to_vec()]);
        assert_eq!(debounce.deadline(), Some(start + Duration::from_millis(150)));
    }

    #[test]
    fn a_moved_ref_changes_what_is_seen() {
        let top = std::env::temp_dir().join(format!("refs-{}", std::process::id()));
        let heads = top.join(".git/refs/heads/deep");
        std::fs::create_dir_all(&heads).unwrap();
        let tree = sandbox_protocol::AgentTree { at: top.clone(), ..Default::default() };
        let config = AgentConfig { trees: vec![tree], ..AgentConfig::default() };
        let (mut poller, start) = (Poller::new(&config, false), Instant::now());
        assert!(poller.look(start).is_empty());
        let later = start + LOOK_IDLE;
        assert!(poller.look(later).is_empty());
        std::thread::sleep(Duration::from_millis(20));
        std::fs::write(heads.join("b"), "x").unwrap();
        assert!(poller.look(later).is_empty(), "not before its time");
        assert_eq!(poller.look(later + LOOK_IDLE), [top.join(".git").as_os_str().as_bytes().to_vec()]);
        std::fs::remove_dir_all(top.join(".git")).unwrap();
        assert!(poller.look_now().is_empty(), "a repository that is gone");
        assert_eq!(Poller::new(&config, true).deadline(start), None);
        std::fs::remove_dir_all(top).unwrap();
    }
}
