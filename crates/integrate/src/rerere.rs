//! Resolutions that git recorded (`git rerere`), used and added to without a working tree of the host.
//!
//! ```text
//!   scratch working tree   the conflicting files, with markers, as the host's git merged them
//!   scratch index          their stages
//!   git rerere             ─► scratch rr-cache/<id>/preimage: which conflict it is
//!   host rr-cache/<id>     copied beside ─► git rerere ─► the file as it was resolved before
//! ```
//!
//! What a sandbox says is never put into the host's `rr-cache`: a preimage is made here by the host's git, and a
//! resolution is taken from a merge commit that has landed.

use crate::attributes::Rules;
use crate::error::MergeError;
use crate::merger::{Merger, Over, Unclean};
use crate::path::{Entry, RepoPath};
use crate::plan::{MergePlan, What};
use crate::repo::{Repo, parse_oid};
use sandbox_git::{GitCommand, Oid};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// More conflicting paths than this are not looked up.
const MOST: usize = 500;

/// Merge commits of one landing that are learnt from.
const LEARN: usize = 50;

/// A conflict set up beside the host.
struct Scratch<'r> {
    repo: &'r Repo,
    tree: PathBuf,
    /// The files and what git made of them, markers included.
    files: BTreeMap<RepoPath, Vec<u8>>,
}

impl<'r> Scratch<'r> {
    /// `None`: there is no conflict of texts in it.
    fn new(repo: &'r Repo, unclean: &Unclean) -> Result<Option<Self>, MergeError> {
        let texts = unclean.kinds.iter().filter(|(path, kinds)| {
            let [_, ours, theirs] = unclean.stages.get(path).copied().unwrap_or_default();
            let is_file = |entry: Option<Entry>| entry.is_some_and(|entry| entry.mode.is_file());
            kinds.contains("CONFLICT (contents)") && kinds.len() == 1 && is_file(ours) && is_file(theirs)
        });
        let (mut files, mut input) = (BTreeMap::new(), Vec::new());
        for (path, _) in texts.take(MOST) {
            let name = [unclean.tree.to_string().as_bytes(), b":", path.as_bytes()].concat();
            // A path with a line break cannot be asked for.
            let Ok(name) = String::from_utf8(name) else { continue };
            if name.contains('\n') {
                continue;
            }
            let Some((_, _, content)) = repo.object(&name)?.filter(|(_, kind, _)| kind == "blob") else { continue };
            for (stage, entry) in unclean.stages[path].iter().enumerate() {
                if let Some(entry) = entry {
                    input.extend(format!("{} {} {}\t", entry.mode.as_str(), entry.id, stage + 1).bytes());
                    input.extend(path.as_bytes());
                    input.push(0);
                }
            }
            files.insert(path.clone(), content);
        }
        if files.is_empty() {
            return Ok(None);
        }
        let scratch = Self { repo, tree: repo.temp_path("rerere"), files };
        scratch.clear()?;
        fs::create_dir_all(scratch.cache()).map_err(MergeError::io("create", scratch.cache()))?;
        for (path, content) in &scratch.files {
            scratch.write(path, content)?;
        }
        scratch.git().args(["update-index", "-z", "--index-info"]).stdin(input).run()?;
        scratch.run()?;
        Ok(Some(scratch))
    }

    fn git(&self) -> GitCommand {
        let git = self.repo.pure().config("core.bare=false").config("rerere.enabled=true");
        let git = git.config("rerere.autoUpdate=false").cwd(&self.tree);
        git.env("GIT_WORK_TREE", &self.tree).env("GIT_INDEX_FILE", self.index())
    }

    /// Looks at the conflicts, and records or replays.
    fn run(&self) -> Result<(), MergeError> {
        Ok(self.git().args(["rerere"]).run()?)
    }

    fn index(&self) -> PathBuf {
        self.repo.temp_path("rerere.index")
    }

    fn cache(&self) -> PathBuf {
        self.repo.temp_path("git/rr-cache")
    }

    fn list(&self) -> PathBuf {
        self.repo.temp_path("git/MERGE_RR")
    }

    fn write(&self, path: &RepoPath, content: &[u8]) -> Result<(), MergeError> {
        let file = self.tree.join(path.as_path());
        let write = || {
            fs::create_dir_all(file.parent().unwrap_or(&self.tree))?;
            fs::write(&file, content)
        };
        write().map_err(MergeError::io("write", &file))
    }

    fn clear(&self) -> Result<(), MergeError> {
        for path in [&self.tree, &self.cache()] {
            gone(fs::remove_dir_all(path)).map_err(MergeError::io("remove", path))?;
        }
        for path in [self.index(), self.list()] {
            gone(fs::remove_file(&path)).map_err(MergeError::io("remove", &path))?;
        }
        fs::create_dir_all(&self.tree).map_err(MergeError::io("create", &self.tree))
    }

    /// The name of each file's conflict.
    fn ids(&self) -> Result<BTreeMap<RepoPath, String>, MergeError> {
        let list = match fs::read(self.list()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other.map_err(MergeError::io("read", self.list()))?,
        };
        let mut ids = BTreeMap::new();
        // `<id>[.<variant>]\t<path>\0`
        for record in list.split(|b| *b == 0).filter(|record| !record.is_empty()) {
            let Some(tab) = record.iter().position(|b| *b == b'\t') else { continue };
            let id = String::from_utf8_lossy(&record[..tab]);
            let id = id.split('.').next().unwrap_or_default().to_owned();
            if id.len() >= 40
                && id.bytes().all(|b| b.is_ascii_hexdigit())
                && let Some(path) = RepoPath::parse(&record[tab + 1..])
            {
                ids.insert(path, id);
            }
        }
        Ok(ids)
    }
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Whether a file still has a marker of a conflict.
fn has_marker(content: &[u8]) -> bool {
    let marks = [&b"<<<<<<< "[..], b"=======", b">>>>>>> "];
    content
        .split(|b| *b == b'\n')
        .any(|line| marks[0] == line || line.starts_with(marks[0]) || line.starts_with(marks[2]))
}

/// Where resolutions are recorded, if the user lets git do that: `rerere.enabled`, or, where nothing is said, a
/// directory that is there already (git-rerere).
pub(crate) fn cache(repo: &Repo, rules: &Rules) -> Option<PathBuf> {
    let cache = repo.common_dir().join("rr-cache");
    rules.rerere.unwrap_or_else(|| cache.is_dir()).then_some(cache)
}

/// Records how merge commits that came with a change of HEAD resolved their conflicts, if the user lets git record
/// resolutions. Returns the paths.
///
/// # Errors
///
/// When git or the disk fails; the change of HEAD is not touched by that.
pub fn learn(repo: &Repo, plan: &MergePlan) -> Result<Vec<RepoPath>, MergeError> {
    if plan.what == What::UpToDate {
        return Ok(Vec::new());
    }
    let Some(cache) = cache(repo, &plan.rules) else { return Ok(Vec::new()) };
    let _working = repo.working();
    let mut git = repo.pure().args(["rev-list", "--merges", &format!("--max-count={LEARN}")]);
    git = git.arg(plan.head.new.to_string());
    if let Some(old) = plan.head.old {
        git = git.arg(format!("^{old}"));
    }
    let listed = git.arg("--").output()?.stdout;
    let listed = String::from_utf8_lossy(&listed);
    let mut merges = listed.lines().map(parse_oid).collect::<Result<Vec<_>, _>>()?;
    // What was resolved by a side that was asked for is no resolution of somebody's.
    let made = repo.made_for(plan.head.new)?;
    merges.retain(|merge| !made.contains(merge));
    if merges.is_empty() {
        return Ok(Vec::new());
    }
    record(&mut Merger::new(repo, &plan.rules, plan.head.old), &cache, &merges)
}

/// Files as they were resolved before, of those that conflict.
pub(crate) fn known(repo: &Repo, cache: &Path, unclean: &Unclean) -> Result<BTreeMap<RepoPath, Vec<u8>>, MergeError> {
    if !cache.is_dir() {
        return Ok(BTreeMap::new());
    }
    let Some(scratch) = Scratch::new(repo, unclean)? else { return Ok(BTreeMap::new()) };
    let mut found = false;
    for id in scratch.ids()?.into_values() {
        let from = cache.join(&id);
        let to = scratch.cache().join(&id);
        if !holds_resolution(&from) {
            continue;
        }
        gone(fs::remove_dir_all(&to)).map_err(MergeError::io("remove", &to))?;
        copy_entry(&from, &to).map_err(MergeError::io("copy", &from))?;
        found = true;
    }
    if !found {
        return Ok(BTreeMap::new());
    }
    gone(fs::remove_file(scratch.list())).map_err(MergeError::io("remove", scratch.list()))?;
    scratch.run()?;
    let mut resolved = BTreeMap::new();
    for (path, before) in &scratch.files {
        let file = scratch.tree.join(path.as_path());
        let now = fs::read(&file).map_err(MergeError::io("read", &file))?;
        if now != *before && !has_marker(&now) {
            resolved.insert(path.clone(), now);
        }
    }
    Ok(resolved)
}

/// Files of an entry: the conflict, and how it was resolved; of each variant.
fn is_part(name: &str) -> bool {
    ["preimage", "postimage"].iter().any(|part| {
        name.strip_prefix(part).is_some_and(|rest| {
            rest.is_empty() || rest.strip_prefix('.').is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()))
        })
    })
}

fn holds_resolution(entry: &Path) -> bool {
    let names = fs::read_dir(entry).into_iter().flatten().flatten().map(|file| file.file_name());
    names.into_iter().any(|name| name.to_str().is_some_and(|name| is_part(name) && name.starts_with("post")))
}

fn copy_entry(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for file in fs::read_dir(from)? {
        let file = file?;
        if file.file_name().to_str().is_some_and(is_part) && file.file_type()?.is_file() {
            fs::write(to.join(file.file_name()), fs::read(file.path())?)?;
        }
    }
    Ok(())
}

/// What an entry of the host's `rr-cache` is called until it is whole; with the number of the process.
const UNFINISHED: &str = ".sandbox-";

/// Removes entries whose makers were killed.
pub(crate) fn sweep(common_dir: &Path) {
    for entry in fs::read_dir(common_dir.join("rr-cache")).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let maker = name.to_str().and_then(|name| name.strip_prefix(UNFINISHED)?.parse::<u32>().ok());
        if maker.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Records how merge commits that have landed resolved their conflicts, in the host's `rr-cache`. What is recorded
/// there already stays. Returns the paths.
fn record(merger: &mut Merger<'_>, cache: &Path, merges: &[Oid]) -> Result<Vec<RepoPath>, MergeError> {
    let repo = merger.repo();
    let mut learnt = Vec::new();
    for merge in merges {
        let commit = repo.commit(*merge)?;
        let [ours, theirs] = commit.parents[..] else { continue };
        merger.know([ours, theirs])?;
        let Err(unclean) = merger.merge(Over::Found, ours, theirs)? else { continue };
        let Some(scratch) = Scratch::new(repo, &unclean)? else { continue };
        let ids = scratch.ids()?;
        for path in ids.keys() {
            let name = format!("{}:{}", commit.tree, path.as_path().display());
            match repo.object(&name)? {
                Some((_, kind, content)) if kind == "blob" && !has_marker(&content) => scratch.write(path, &content)?,
                // Not a file any more: nothing that could be used again.
                _ => {}
            }
        }
        scratch.run()?;
        for (path, id) in ids {
            let (from, to) = (scratch.cache().join(&id), cache.join(&id));
            if !holds_resolution(&from) || to.exists() {
                continue;
            }
            let place = || -> io::Result<()> {
                fs::create_dir_all(cache)?;
                let temp = cache.join(format!("{UNFINISHED}{}", std::process::id()));
                gone(fs::remove_dir_all(&temp))?;
                copy_entry(&from, &temp)?;
                sandbox_sys::fault::point("finish.learn").inspect_err(|_| drop(fs::remove_dir_all(&temp)))?;
                let placed = fs::rename(&temp, &to);
                if placed.is_err() {
                    gone(fs::remove_dir_all(&temp))?;
                }
                // Or somebody else has just recorded it.
                if to.exists() { Ok(()) } else { placed }
            };
            place().map_err(MergeError::io("write", &to))?;
            learnt.push(path);
        }
    }
    Ok(learnt)
}
