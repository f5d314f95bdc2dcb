//! What a host repository is at one instant, and what of it is granted to a sandbox.
//!
//! Granted roots: `HEAD`; the branch's upstream and push ref; where each `refs/remotes/*/HEAD` leads;
//! all stash entries; what an operation in progress names; what was asked for by name. Visible
//! besides, at no cost: each ref whose target those reach.

use super::config::Made as Config;
use super::notes;
use super::operation::Operation;
use super::reflog::{self, Line};
use super::{GitDirError, Grant, failed};
use crate::host_repo::HostRepo;
use crate::view::{Kind, Wanted, outside, resolve};
use sandbox_git::config::Listing;
use sandbox_git::index::Index;
use sandbox_git::refs::{RefStore, Target};
use sandbox_git::{Git, Oid, RefName};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::Path;

/// Commits before `HEAD` that the first step of a view stops at when there is no remote: so that an
/// amended commit packs nine commits anew and not the whole history.
const BACK: &str = "HEAD~8";

/// Refs that are never shown inside: ours, and those that are granted by rules of their own.
const HIDDEN: &[&str] = &[
    "refs/sandbox/",
    "refs/sandbox-meta/",
    "refs/notes/",
    "refs/replace/",
    "refs/bisect/",
    "refs/rewritten/",
    "refs/stash",
];

/// The index file as it was.
pub(super) struct IndexFile {
    /// Parsed; `None` when its format is not known, then it is copied as it is.
    pub index: Option<Index>,
    /// The bytes, if it could not be parsed.
    pub raw: Vec<u8>,
    /// Its own modification time, which git's check for racy entries needs.
    pub modified: std::time::SystemTime,
    /// Why it could not be parsed.
    pub note: Option<String>,
}

/// Everything that the layer is written from.
pub(super) struct Survey {
    pub listing: Listing,
    pub refs: RefStore,
    pub index: Option<IndexFile>,
    pub head: Option<Oid>,
    /// Refs to show, with what an annotated tag peels to.
    pub visible: BTreeMap<RefName, (Oid, Option<Oid>)>,
    /// Symbolic refs to show.
    pub symbolic: BTreeMap<RefName, RefName>,
    /// Refs of this work tree only: written loose.
    pub own: BTreeMap<RefName, Oid>,
    /// Names of logs, with the part of each that may be shown.
    pub logs: Vec<(String, Vec<u8>)>,
    pub wanted: Wanted,
    /// Ids that count as known to the host: roots, visible refs, log entries.
    pub granted: BTreeSet<Oid>,
    pub notes: Vec<String>,
}

pub(super) fn survey(
    git: &Git,
    host: &HostRepo,
    grants: &[Grant],
    all: bool,
    more_roots: &[Oid],
    vault: Option<&Path>,
) -> Result<Survey, GitDirError> {
    let listing = Listing::read(git, host.top_or_gitdir())?;
    let refs = RefStore::read(git, host.git_dir(), host.common_dir())?;
    let index = read_index(git, host)?;
    let operation = Operation::read(host.git_dir());
    let stash = reflog::read(git, host, "refs/stash", false, true)?;
    let mut notes = Vec::new();

    // Roots by name.
    let head = refs.head_oid();
    let branch = refs.head_branch().cloned();
    let lasting: BTreeSet<Oid> = remote_heads(&refs);
    let mut near: BTreeSet<Oid> = BTreeSet::new();
    for name in branch.iter().flat_map(|branch| tracking(&listing, branch)) {
        near.extend(refs.resolve(&name));
    }
    let mut own = BTreeMap::new();
    let mut rest: BTreeSet<Oid> = stash.iter().map(|line| line.new).collect();
    rest.extend(RefName::parse("refs/stash").and_then(|name| refs.resolve(&name)));
    for name in refs.refs.keys() {
        let bytes = name.as_bytes();
        if (bytes.starts_with(b"refs/bisect/") || bytes.starts_with(b"refs/rewritten/"))
            && let Some(oid) = refs.resolve(name)
        {
            rest.insert(oid);
            own.insert(name.clone(), oid);
        }
    }
    rest.extend(operation.branch.as_ref().and_then(|name| refs.resolve(name)));
    for grant in grants {
        let names = grant.matching(&refs);
        if names.is_empty() && grant.required {
            return Err(GitDirError::NoSuchRef { name: grant.pattern.clone() });
        }
        rest.extend(names.iter().filter_map(|name| refs.resolve(name)));
    }
    let whole = all.then(|| refs.refs.keys().filter_map(|name| refs.resolve(name)).collect::<Vec<_>>());
    rest.extend(more_roots);

    // One process answers what all these ids are.
    let mut asked: Vec<String> = Vec::new();
    let roots: Vec<Oid> =
        head.iter().chain(&lasting).chain(&near).chain(&rest).copied().collect::<BTreeSet<_>>().into_iter().collect();
    asked.extend(roots.iter().map(Oid::to_string));
    asked.extend(operation.ids.iter().cloned());
    let unpeeled: Vec<(&RefName, Oid)> = refs
        .refs
        .iter()
        .filter_map(|(name, target)| match target {
            Target::Direct { oid, peeling_known: false, .. } => Some((name, *oid)),
            _ => None,
        })
        .collect();
    asked.extend(unpeeled.iter().map(|(_, oid)| format!("{oid}^{{}}")));
    if let Some(head) = head {
        asked.push(format!("{head}^{{tree}}"));
        asked.push(format!("{head}{}", &BACK[4..]));
    }
    let mut answers = resolve(git, host, &asked)?.into_iter();
    let mut exists: HashSet<Oid> = HashSet::new();
    for (oid, found) in roots.iter().zip(answers.by_ref()) {
        exists.extend(found.map(|_| *oid));
    }
    for found in answers.by_ref().take(operation.ids.len()).flatten() {
        exists.insert(found.oid);
        rest.insert(found.oid);
    }
    let peeled: BTreeMap<&RefName, (Oid, Kind)> = unpeeled
        .iter()
        .zip(answers.by_ref().take(unpeeled.len()).collect::<Vec<_>>())
        .filter_map(|((name, _), found)| Some((*name, found.map(|found| (found.oid, found.kind))?)))
        .collect();
    let head_tree = head.and_then(|_| answers.next().flatten()).map(|found| found.oid);
    let back = head.and_then(|_| answers.next().flatten()).map(|found| found.oid);
    if let Some(head) = head.filter(|head| !exists.contains(head)) {
        return Err(GitDirError::MissingObject { oid: head, what: "HEAD" });
    }
    let keep = |set: &BTreeSet<Oid>| -> Vec<Oid> { set.iter().copied().filter(|oid| exists.contains(oid)).collect() };
    let mut steps = vec![keep(&lasting), keep(&near), head.into_iter().collect(), keep(&rest)];
    if steps[0].is_empty() && steps[1].is_empty() {
        steps[0] = back.into_iter().collect();
    }

    // What the roots reach is visible too.
    let reach: Vec<Oid> = steps.iter().flatten().copied().collect();
    let known: HashSet<Oid> = reach.iter().copied().collect();
    let mut shown: Vec<(&RefName, Oid, Option<Oid>)> = Vec::new();
    for (name, target) in &refs.refs {
        let Target::Direct { oid, peeled: packed, peeling_known } = target else { continue };
        let hidden = HIDDEN.iter().any(|prefix| name.as_bytes().starts_with(prefix.as_bytes()));
        if hidden {
            continue;
        }
        let peels = match (packed, peeling_known) {
            (Some(peeled), _) => Some(*peeled),
            (None, true) => None,
            (None, false) => match peeled.get(name) {
                Some((to, Kind::Commit)) => (to != oid).then_some(*to),
                _ => continue,
            },
        };
        shown.push((name, *oid, peels));
    }
    let mut logs = Vec::new();
    logs.push(("HEAD".to_owned(), reflog::read(git, host, "HEAD", true, false)?));
    if let Some(branch) = branch.as_ref().and_then(RefName::to_str) {
        logs.push((branch.to_owned(), reflog::read(git, host, branch, false, false)?));
    }
    let mut candidates: HashSet<Oid> = shown.iter().map(|(_, oid, peels)| peels.unwrap_or(*oid)).collect();
    candidates.extend(logs.iter().flat_map(|(_, lines)| lines).flat_map(|line: &Line| [line.old, line.new]));
    let annotations = notes::read(git, host, &refs, vault)?;
    candidates.extend(annotations.iter().flat_map(notes::Notes::annotated));
    let replaced: Vec<(RefName, Oid, Oid)> = replacements(&refs);
    candidates.extend(replaced.iter().map(|(_, original, _)| *original));
    candidates.retain(|oid| !known.contains(oid) && !oid.is_null());
    let outside = if all || candidates.is_empty() || reach.is_empty() {
        if all { HashSet::new() } else { candidates.clone() }
    } else {
        outside(git, host, &reach, &candidates)?
    };
    let inside = |oid: &Oid| known.contains(oid) || (candidates.contains(oid) && !outside.contains(oid));

    let mut visible = BTreeMap::new();
    let mut tags: BTreeSet<Oid> = BTreeSet::new();
    for (name, oid, peels) in shown {
        if inside(&peels.unwrap_or(oid)) {
            tags.extend(peels.map(|_| oid));
            visible.insert(name.clone(), (oid, peels));
        }
    }
    for (name, original, replacement) in replaced {
        if inside(&original) {
            tags.insert(replacement);
            visible.insert(name, (replacement, None));
        }
    }
    if let Some(name) = RefName::parse("refs/stash")
        && let Some(oid) = refs.resolve(&name)
        && exists.contains(&oid)
    {
        visible.insert(name, (oid, None));
    }
    steps.push(tags.into_iter().collect());
    let symbolic = refs
        .refs
        .iter()
        .filter_map(|(name, target)| match target {
            Target::Symbolic(to) if visible.contains_key(to) => Some((name.clone(), to.clone())),
            _ => None,
        })
        .collect();
    own.retain(|_, oid| exists.contains(oid));

    let mut granted: BTreeSet<Oid> = steps.iter().flatten().copied().collect();
    granted.extend(visible.values().map(|(oid, _)| *oid));
    granted.extend(whole.into_iter().flatten());
    let mut cut: Vec<(String, Vec<u8>)> = Vec::new();
    for (name, lines) in logs {
        granted.extend(lines.iter().map(|line| line.new).filter(|oid| inside(oid)));
        cut.push((name, reflog::cut(&lines, host.format(), |oid| inside(oid))));
    }
    let saved: Vec<Line> = stash.into_iter().filter(|line| exists.contains(&line.new)).collect();
    // Each stash entry's old id is the entry before it.
    cut.push(("refs/stash".to_owned(), reflog::cut(&saved, host.format(), |oid| exists.contains(oid))));
    cut.retain(|(_, text)| !text.is_empty());

    let mut extras = match &index {
        Some(IndexFile { index: Some(index), .. }) if !all => extras(git, host, index, head_tree)?,
        _ => Vec::new(),
    };
    for notes in &annotations {
        if let (Some(vault), false) = (vault, all)
            && let Some(made) = notes.cut(git, vault, inside)?
        {
            granted.insert(made.commit);
            visible.insert(notes.name.clone(), (made.commit, None));
            extras.extend(made.objects);
        } else if all {
            visible.insert(notes.name.clone(), (notes.commit, None));
        }
    }
    if let Some(note) = index.as_ref().and_then(|index| index.note.clone()) {
        notes.push(note);
    }
    let wanted = Wanted { format: host.format(), shallow: shallow(host), partial: host.is_partial(), steps, extras };
    Ok(Survey { listing, refs, index, head, visible, symbolic, own, logs: cut, wanted, granted, notes })
}

/// Ids of the index that the tree of `HEAD` does not have. No process when the index stands for
/// just that tree.
fn extras(git: &Git, host: &HostRepo, index: &Index, head_tree: Option<Oid>) -> Result<Vec<Oid>, GitDirError> {
    let oids = index.oids()?;
    let Some(tree) = head_tree else { return Ok(oids) };
    let mut have: HashSet<Oid> = HashSet::from([tree, host.format().empty_tree()]);
    if index.root_tree() != Some(tree) || index.has_resolve_undo() {
        let out = host.read(git).args(["ls-tree", "-r", "-t", "-z", "--full-tree"]).arg(tree.to_string()).output()?;
        // `mode type id TAB path NUL`
        let id = |record: &[u8]| Oid::parse(record.split(|b| matches!(b, b' ' | b'\t')).nth(2)?);
        have.extend(out.stdout.split(|b| *b == 0).filter_map(id));
        Ok(oids.into_iter().filter(|oid| !have.contains(oid)).collect())
    } else {
        Ok(Vec::new())
    }
}

fn read_index(git: &Git, host: &HostRepo) -> Result<Option<IndexFile>, GitDirError> {
    let path = host.git_dir().join("index");
    let mut raw = match fs::read(&path) {
        Ok(raw) => raw,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", &path)(error)),
    };
    let modified = fs::metadata(&path).and_then(|metadata| metadata.modified()).map_err(failed("look at", &path))?;
    let parsed = match Index::parse(raw.clone(), host.format()) {
        Ok(index) if index.is_split() => {
            raw = join_split(git, host, &raw)?;
            Index::parse(raw.clone(), host.format())
        }
        parsed => parsed,
    };
    Ok(Some(match parsed {
        Ok(index) => IndexFile { index: Some(index), raw: Vec::new(), modified, note: None },
        Err(error) => {
            let note = format!("{error}: it is carried as it is, and git inside looks at times and sizes only");
            IndexFile { index: None, raw, modified, note: Some(note) }
        }
    }))
}

/// Git joins a split index with its shared part, in a copy.
fn join_split(git: &Git, host: &HostRepo, raw: &[u8]) -> Result<Vec<u8>, GitDirError> {
    let dir = tempfile::tempdir().map_err(failed("create", Path::new("a temporary directory")))?;
    let copy = dir.path().join("index");
    fs::write(&copy, raw).map_err(failed("write", &copy))?;
    // Git looks for the shared part beside the repository's index, so only this one file is a copy.
    host.read(git)
        .env("GIT_INDEX_FILE", &copy)
        .args(["update-index", "--no-split-index", "--force-write-index"])
        .run()?;
    fs::read(&copy).map_err(failed("read", &copy))
}

pub(super) fn shallow(host: &HostRepo) -> Vec<Oid> {
    let text = fs::read(host.common_dir().join("shallow")).unwrap_or_default();
    text.split(|b| *b == b'\n').filter_map(Oid::parse).collect()
}

fn remote_heads(refs: &RefStore) -> BTreeSet<Oid> {
    refs.refs
        .keys()
        .filter(|name| name.strip_prefix("refs/remotes/").is_some_and(|rest| rest.ends_with(b"/HEAD")))
        .filter_map(|name| refs.resolve(name))
        .collect()
}

fn replacements(refs: &RefStore) -> Vec<(RefName, Oid, Oid)> {
    let of = |name: &RefName| {
        let original = Oid::parse(name.strip_prefix("refs/replace/")?)?;
        Some((name.clone(), original, refs.resolve(name)?))
    };
    refs.refs.keys().filter_map(of).collect()
}

/// The branch's upstream and where it is pushed to, as local names of tracking refs.
pub(super) fn tracking(listing: &Listing, branch: &RefName) -> Vec<RefName> {
    let mut names = Vec::new();
    let Some(short) = branch.to_str().and_then(|name| name.strip_prefix("refs/heads/")) else { return names };
    let setting = |key: &str| listing.value(&format!("branch.{short}.{key}"));
    let remote = setting("remote");
    if let (Some(remote), Some(merge)) = (remote, setting("merge")) {
        names.extend(if remote == "." { RefName::parse(merge) } else { fetched(listing, remote, merge) });
    }
    let push = setting("pushremote").or(listing.value("remote.pushdefault")).or(remote);
    if let (Some(push), Some(full)) = (push, branch.to_str()) {
        names.extend(fetched(listing, push, full));
    }
    names
}

/// Where a ref of a remote is kept here, by the remote's fetch refspecs.
fn fetched(listing: &Listing, remote: &str, name: &str) -> Option<RefName> {
    let key = format!("remote.{remote}.fetch");
    listing.0.iter().filter(|setting| setting.key == key).find_map(|setting| {
        let spec = setting.value.as_deref()?;
        let (from, to) = spec.trim_start_matches('+').split_once(':')?;
        match (from.split_once('*'), to.split_once('*')) {
            (Some((before, after)), Some((left, right))) => {
                let middle = name.strip_prefix(before)?.strip_suffix(after)?;
                RefName::parse(format!("{left}{middle}{right}"))
            }
            _ => (from == name).then(|| RefName::parse(to)).flatten(),
        }
    })
}

/// The configuration of a survey, sorted.
pub(super) fn configuration(survey: &Survey, git: &Git, top: &Path) -> Config {
    super::config::make(&survey.listing, top, git.env().home.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstream_and_push_are_found_by_refspecs() {
        let raw = b"local\0file:c\0branch.x.remote\norigin\0local\0file:c\0branch.x.merge\nrefs/heads/main\0\
            local\0file:c\0remote.origin.fetch\n+refs/heads/*:refs/remotes/origin/*\0\
            local\0file:c\0remote.fork.fetch\n+refs/heads/*:refs/remotes/fork/*\0\
            local\0file:c\0branch.x.pushremote\nfork\0";
        let listing = Listing::parse(raw).unwrap();
        let names = tracking(&listing, &RefName::parse("refs/heads/x").unwrap());
        assert_eq!(
            names.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["refs/remotes/origin/main", "refs/remotes/fork/x"]
        );
        assert!(tracking(&listing, &RefName::parse("refs/heads/y").unwrap()).is_empty());
    }
}
