//! Reads what a review looks at: contents and directories through one `git cat-file`, the host's
//! settings through one `git config`, all within caps. Nothing that is read here is run.

use super::{Changed, Content, Directories, Finding, HookFile, Host, LARGE, Review, Side};
use crate::captured::Kind;
use crate::edits::Edit;
use crate::error::MergeError;
use crate::inspect::tree_of;
use crate::objects::{Difference, Found, Objects, differences, entries};
use crate::path::{Entry, Mode, RepoPath};
use crate::repo::Repo;
use crate::run::Answer;
use sandbox_git::Oid;
use sandbox_git::config::Listing;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

/// Larger files are not looked into, in bytes.
const CONTENT: u64 = 1 << 20;
/// All that is read of one change, in bytes.
const TOGETHER: u64 = 128 << 20;
/// Directories that are listed, and bytes of one.
const DIRECTORIES: usize = 2000;
const DIRECTORY: u64 = 4 << 20;
/// Hooks that are looked into, and bytes of one.
const HOOKS: usize = 64;
const HOOK: u64 = 64 << 10;
/// Paths whose commits are asked for.
const COMMITS: usize = 200;

/// Commits that came in: those of the tips that `without` has not.
pub(crate) struct Range {
    pub without: Vec<Oid>,
    pub tips: Vec<Oid>,
}

/// Reviews what changed from the best common ancestor of `onto` and `tip` to `tip`, as `diff` shows it.
pub fn review_between(repo: &Repo, onto: Option<Oid>, tip: Oid) -> Result<Vec<Finding>, MergeError> {
    let base = crate::inspect::fork_point(repo, onto, tip)?;
    review_of(repo, &base, Range { without: onto.into_iter().collect(), tips: vec![tip] }, tip)
}

/// Reviews what differs from one commit to another.
pub fn review_commits(repo: &Repo, from: Oid, to: Oid) -> Result<Vec<Finding>, MergeError> {
    review_of(repo, &tree_of(repo, Some(from)), Range { without: vec![from], tips: vec![to] }, to)
}

fn review_of(repo: &Repo, base: &str, range: Range, tip: Oid) -> Result<Vec<Finding>, MergeError> {
    let next = tree_of(repo, Some(tip));
    let touched = differences(repo, base, &next)?;
    if touched.is_empty() {
        return Ok(Vec::new());
    }
    let listing = repo.listing()?;
    let mut found = review(&mut Objects::new(repo), &listing, &touched, &next)?;
    attribute_commits(repo, &range, &mut found);
    Ok(found)
}

/// Reviews uncommitted changes against the tree of a commit.
pub fn review_edits(repo: &Repo, since: Option<Oid>, edits: &[Edit]) -> Result<Vec<Finding>, MergeError> {
    let base = tree_of(repo, since);
    let before = entries(repo, &base, edits.iter().map(|edit| &edit.path))?;
    let mut objects = Objects::new(repo);
    let difference = |edit: &Edit| {
        let new = edit.after.as_ref().map(|(kind, bytes)| {
            let mode = match kind {
                Kind::Symlink => Mode::Symlink,
                Kind::File { executable: true } => Mode::Executable,
                Kind::File { executable: false } => Mode::File,
            };
            Entry { mode, id: objects.remember(bytes.clone()) }
        });
        Difference { path: edit.path.clone(), old: before.get(&edit.path).copied(), new }
    };
    let touched: Vec<Difference> =
        edits.iter().map(difference).filter(|difference| difference.old != difference.new).collect();
    if touched.is_empty() {
        return Ok(Vec::new());
    }
    let listing = repo.listing()?;
    review(&mut objects, &listing, &touched, &base)
}

/// Reviews a list of differences. `next` names the tree that is the result, or the one that it is made in.
pub(crate) fn review(
    objects: &mut Objects<'_>,
    listing: &Listing,
    touched: &[Difference],
    next: &str,
) -> Result<Vec<Finding>, MergeError> {
    let repo = objects.repo();
    let hooks = hooks(repo, listing);
    let host = Host::new(listing, repo.worktree(), repo.home(), &hooks);
    let mut left = TOGETHER;
    let mut changes = Vec::with_capacity(touched.len());
    for Difference { path, old, new } in touched {
        let new = side(objects, *new, &mut left)?;
        // The former content matters only where there is a new one to compare with it.
        let wanted = new.is_some() || path.name() == b".gitattributes";
        let old = match (old, wanted) {
            (Some(entry), true) => side(objects, Some(*entry), &mut left)?,
            (Some(entry), false) => Some(Side { entry: *entry, content: Content::Unread }),
            (None, _) => None,
        };
        changes.push(Changed { path: path.clone(), old, new });
    }
    let added: Vec<&RepoPath> =
        touched.iter().filter(|d| d.old.is_none() && d.new.is_some()).map(|d| &d.path).collect();
    let directories = directories(objects, next, &added)?;
    let ignored = ignored(repo, &added);
    Ok(Review { changes: &changes, directories: &directories, ignored: &ignored, host: &host }.findings())
}

fn side(objects: &mut Objects<'_>, entry: Option<Entry>, left: &mut u64) -> Result<Option<Side>, MergeError> {
    let Some(entry) = entry else { return Ok(None) };
    if entry.mode == Mode::Gitlink {
        return Ok(Some(Side { entry, content: Content::Unread }));
    }
    let content = match objects.look(&entry.id.to_string(), CONTENT.min(*left))? {
        Found::Whole { bytes, .. } => {
            *left = left.saturating_sub(bytes.len() as u64);
            Content::Read(bytes)
        }
        Found::Large { size } => Content::Large(size),
        Found::Missing => Content::Unread,
    };
    Ok(Some(Side { entry, content }))
}

/// Lists the directories on the way to the paths, each once.
fn directories(objects: &mut Objects<'_>, next: &str, added: &[&RepoPath]) -> Result<Directories, MergeError> {
    let mut wanted: BTreeSet<Vec<u8>> = BTreeSet::new();
    for path in added {
        wanted.insert(Vec::new());
        wanted.extend(path.ancestors().map(|dir| dir.as_bytes().to_vec()));
        if wanted.len() > DIRECTORIES {
            break;
        }
    }
    let mut ids: BTreeMap<Vec<u8>, String> = BTreeMap::from([(Vec::new(), next.to_owned())]);
    let mut all = Directories::new();
    // A directory sorts after the one that it is in, which names its id.
    for dir in wanted {
        let Some(id) = ids.remove(&dir) else { continue };
        let Found::Whole { bytes, .. } = objects.look(&id, DIRECTORY)? else { continue };
        let mut names = Vec::new();
        for (name, mode, oid) in entries_of(&bytes, objects.repo().format().raw_len()) {
            let is_dir = mode == b"40000";
            if is_dir {
                let path = if dir.is_empty() { name.to_vec() } else { [&dir[..], b"/", name].concat() };
                ids.insert(path, oid.to_string());
            }
            names.push((name.to_vec(), is_dir));
        }
        all.insert(dir, names);
    }
    Ok(all)
}

/// Name, mode and id of each entry of a tree object.
fn entries_of(mut tree: &[u8], raw: usize) -> Vec<(&[u8], &[u8], Oid)> {
    let mut all = Vec::new();
    while let Some(space) = tree.iter().position(|b| *b == b' ')
        && let Some(nul) = tree.iter().position(|b| *b == 0)
        && let Some(oid) = tree.get(nul + 1..nul + 1 + raw).and_then(Oid::from_raw)
        && space < nul
    {
        all.push((&tree[space + 1..nul], &tree[..space], oid));
        tree = &tree[nul + 1 + raw..];
    }
    all
}

/// Paths that the host's ignore rules hide.
fn ignored(repo: &Repo, added: &[&RepoPath]) -> BTreeSet<RepoPath> {
    let git = repo.host().timeout(Duration::from_secs(10));
    // An answer that cannot be had only takes a remark away.
    let hidden = sandbox_git::ignored(git, repo.worktree(), added.iter().map(|path| path.as_bytes()));
    hidden.unwrap_or_default().into_iter().filter_map(RepoPath::parse).collect()
}

/// The hooks that git would run, unless they are in the tree: those are looked at as a part of it.
fn hooks(repo: &Repo, listing: &Listing) -> Vec<HookFile> {
    let dir = match listing.value("core.hookspath") {
        Some(path) => match (path.strip_prefix("~/"), repo.home()) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => repo.worktree().join(path),
        },
        None => repo.common_dir().join("hooks"),
    };
    let Ok(list) = fs::read_dir(&dir) else { return Vec::new() };
    let mut hooks = Vec::new();
    for entry in list.flatten().take(HOOKS) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".sample") {
            continue;
        }
        let path = entry.path();
        let link = fs::read_link(&path).ok().map(|target| dir.join(target));
        hooks.push(HookFile { name, text: hook_text(&path).unwrap_or_default(), target: link });
    }
    hooks
}

fn hook_text(path: &Path) -> Option<Vec<u8>> {
    let meta = fs::metadata(path).ok()?;
    if !meta.is_file() || meta.len() > HOOK {
        return None;
    }
    let mut text = Vec::new();
    fs::File::open(path).ok()?.take(HOOK).read_to_end(&mut text).ok()?;
    Some(text)
}

/// Tells for each finding the newest incoming commit that changed its path. One `git log`; what it does
/// not tell stays open.
pub(crate) fn attribute_commits(repo: &Repo, range: &Range, findings: &mut [Finding]) {
    let paths: BTreeSet<&RepoPath> = findings.iter().map(|finding| &finding.path).take(COMMITS).collect();
    if paths.is_empty() || range.tips.is_empty() {
        return;
    }
    // `-c`: of a merge, only what it has from none of its parents.
    let args = ["log", "-z", "--raw", "-c", "--no-renames", "--no-abbrev", "--no-show-signature", "--no-notes"];
    let mut git = repo.pure().args(args).args(["--no-ext-diff", "--no-textconv", "--format=%H"]);
    git = git.args(range.tips.iter().map(Oid::to_string));
    git = git.args(range.without.iter().map(|oid| format!("^{oid}"))).arg("--");
    git = git.args(paths.iter().map(|path| path.as_path())).timeout(Duration::from_secs(10));
    let Ok(answer) = Answer::of(git) else { return };
    let newest = newest(&answer.stdout());
    for finding in findings {
        let below = |path: &&RepoPath| path.is_below(&finding.path);
        let commit =
            newest.get(&finding.path).or_else(|| newest.iter().find(|(path, _)| below(path)).map(|(_, id)| id));
        finding.commit = commit.copied();
    }
}

/// Reads `<commit> NUL (:<meta> NUL <path> NUL)*`: a path follows its meta data, so none can pass for a commit.
fn newest(log: &[u8]) -> BTreeMap<RepoPath, Oid> {
    let mut found = BTreeMap::new();
    let mut at = None;
    let mut fields = log.split(|b| *b == 0);
    while let Some(field) = fields.next() {
        let field = field.strip_prefix(b"\n").unwrap_or(field);
        if field.starts_with(b":") {
            let path = fields.next().and_then(RepoPath::parse);
            if let (Some(path), Some(commit)) = (path, at) {
                found.entry(path).or_insert(commit);
            }
        } else if let Some(commit) = Oid::parse(field) {
            at = Some(commit);
        }
    }
    found
}

const _: () = assert!(CONTENT < LARGE);
