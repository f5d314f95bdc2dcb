//! `--from REV` and `--clean`: exactly the tracked files of a commit, written by us.
//!
//! No filter, hook or attribute driver runs: files are the blobs' bytes. The index is made
//! from what was written, so that the first `git status` opens nothing.

use super::config::{self, Made as Config};
use super::survey::shallow;
use super::write::Out;
use super::{GitDirError, Request, failed};
use crate::host_repo::HostRepo;
use crate::record::{GitFacts, ViewRecord};
use crate::view::{Views, Wanted, resolve};
use sandbox_git::config::{Listing, Writer};
use sandbox_git::index::{NewEntry, Stat, build};
use sandbox_git::refs::{RefStore, write_packed};
use sandbox_git::{Git, ObjectFormat, Oid, RefName, printable};
use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// What was written.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckedOut {
    /// What is known about git.
    pub facts: GitFacts,
    /// The commit.
    pub commit: Oid,
    /// How many files and symlinks.
    pub files: usize,
    /// How many bytes.
    pub bytes: u64,
}

/// Writes the tracked files of `rev` into `tree` and their git directory into `layer` (both empty
/// directories, or none yet). `top` is where the tree will be inside. `HEAD` is the branch that `rev`
/// names (the current one for `HEAD`), else detached. Only that commit is granted.
pub fn tree_checkout(
    request: &Request<'_>,
    rev: &str,
    top: &Path,
    tree: &Path,
    layer: &Path,
) -> Result<CheckedOut, GitDirError> {
    let (git, host) = (request.git, request.host);
    git.version()?;
    let refs = RefStore::read(git, host.git_dir(), host.common_dir())?;
    let (commit, branch) = find(git, host, &refs, rev)?;
    let asked = [format!("{commit}^{{tree}}"), format!("{commit}~8")];
    let mut answers = resolve(git, host, &asked)?.into_iter();
    let root = answers.next().flatten().ok_or(GitDirError::MissingObject { oid: commit, what: "the commit" })?.oid;
    let back = answers.next().flatten().map(|found| found.oid);

    let listing = Listing::read(git, host.top_or_gitdir())?;
    let wanted = Wanted {
        format: host.format(),
        shallow: shallow(host),
        partial: host.is_partial(),
        steps: vec![back.into_iter().collect(), vec![commit]],
        extras: Vec::new(),
    };
    let view = Views { git, repo: request.repo, owner: request.owner, vault: true }.ensure(host, &wanted)?;

    fs::create_dir_all(tree).map_err(failed("create", tree))?;
    let date = commit_date(git, host, commit)?;
    let written = write_tree(request, root, tree, date)?;
    let made = config::make(&listing, top, git.env().home.as_deref());
    let out = Out { dir: layer.join(".git") };
    out.skeleton(&view)?;
    match &branch {
        Some(name) => {
            out.file("HEAD", &[b"ref: ", name.as_bytes(), b"\n"].concat())?;
            out.file("packed-refs", &write_packed([(name, commit, None)]))?;
        }
        None => out.file("HEAD", format!("{commit}\n").as_bytes())?,
    }
    out.file("index", &build(written.entries, &written.trees, host.format()))?;
    if !wanted.shallow.is_empty() {
        let text: String = wanted.shallow.iter().map(|oid| format!("{oid}\n")).collect();
        out.file("shallow", text.as_bytes())?;
    }
    out.file("config", config_text(&made, host.format(), view.is_partial()).as_bytes())?;
    super::write::settle(layer, layer, &[], request.owner)?;

    let branch = branch.as_ref().and_then(RefName::to_str).map(str::to_owned);
    let granted: Vec<String> = wanted.roots().iter().map(Oid::to_string).collect();
    let record = ViewRecord {
        path: PathBuf::new(),
        host_gitdir: host.common_dir().to_owned(),
        inside_gitdir: top.join(".git"),
        key: view.key().to_owned(),
        base: Some(commit.to_string()),
        branch: branch.clone(),
        granted: granted.clone(),
        object_format: host.format().to_string(),
        shallow: wanted.shallow.iter().map(Oid::to_string).collect(),
        partial: view.is_partial(),
    };
    let facts = GitFacts {
        base: Some(commit.to_string()),
        branch,
        granted,
        object_format: host.format().to_string(),
        user_config: made.user,
        remotes: made.remotes,
        notes: made.notes,
        views: vec![record],
    };
    Ok(CheckedOut { facts, commit, files: written.files, bytes: written.bytes })
}

/// The commit that `rev` names, and the branch if it names one.
fn find(git: &Git, host: &HostRepo, refs: &RefStore, rev: &str) -> Result<(Oid, Option<RefName>), GitDirError> {
    let unknown = || GitDirError::NoSuchCommit { rev: rev.to_owned() };
    if rev.starts_with('-') || rev.contains(['\n', '\0']) {
        return Err(unknown());
    }
    let found = resolve(git, host, &[format!("{rev}^{{commit}}")])?.pop().flatten().ok_or_else(unknown)?;
    let named = if rev == "HEAD" || rev == "@" {
        refs.head_branch().cloned()
    } else {
        let spellings = [format!("refs/heads/{rev}"), format!("refs/{rev}"), rev.to_owned()];
        let branch = |name: &RefName| name.as_bytes().starts_with(b"refs/heads/") && refs.refs.contains_key(name);
        spellings.iter().filter_map(RefName::parse).find(branch)
    };
    // `rev` may also be a tag of that name: the branch counts only if it is the commit.
    let named = named.filter(|name| refs.resolve(name) == Some(found.oid));
    Ok((found.oid, named))
}

fn config_text(made: &Config, format: ObjectFormat, partial: bool) -> String {
    let mut writer = Writer::new();
    writer.set("include.path", Some(&format!("{}/repo.config", crate::launch::INSIDE)));
    let version = if format == ObjectFormat::Sha256 || partial { "1" } else { "0" };
    writer.set("core.repositoryformatversion", Some(version));
    writer.set("core.bare", Some("false"));
    if format == ObjectFormat::Sha256 {
        writer.set("extensions.objectformat", Some("sha256"));
    }
    if partial {
        writer.set("extensions.partialclone", Some("host"));
        writer.set("remote.host.promisor", Some("true"));
    }
    // A sparse work tree on the host is not one here: all files were written.
    for (key, value) in made.local.iter().filter(|(key, _)| !key.starts_with("core.sparse")) {
        writer.set(key, value.as_deref());
    }
    writer.finish()
}

/// The committer's date, at least two seconds ago: a file as young as the index would be read again.
fn commit_date(git: &Git, host: &HostRepo, commit: Oid) -> Result<SystemTime, GitDirError> {
    let text = host.read(git).args(["log", "-1", "--format=%ct", &commit.to_string(), "--"]).line()?;
    let seconds = text.trim().parse().unwrap_or(0);
    let date = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(SystemTime::UNIX_EPOCH);
    Ok(date.min(SystemTime::now() - Duration::from_secs(2)))
}

struct Written {
    entries: Vec<NewEntry>,
    trees: Vec<(Vec<u8>, Oid)>,
    files: usize,
    bytes: u64,
}

struct Item {
    mode: u32,
    oid: Oid,
    path: Vec<u8>,
}

fn write_tree(request: &Request<'_>, root: Oid, dest: &Path, date: SystemTime) -> Result<Written, GitDirError> {
    let (git, host) = (request.git, request.host);
    let out = host.read(git).args(["ls-tree", "-r", "-t", "-z", "--full-tree"]).arg(root.to_string()).output()?;
    let items = parse_listing(&out.stdout)?;
    let mut trees = vec![(Vec::new(), root)];
    let mut entries = Vec::with_capacity(items.len());
    // Only directories that were made here are gone into: never through a symlink.
    let mut dirs: HashSet<Vec<u8>> = HashSet::from([Vec::new()]);
    let mut made: Vec<PathBuf> = vec![dest.to_owned()];
    let mut blobs = Blobs::start(git, host, &items)?;
    let (mut files, mut bytes) = (0, 0);
    for item in items {
        let parent = item.path.iter().rposition(|b| *b == b'/').map_or(&[][..], |at| &item.path[..at]);
        if !dirs.contains(parent) {
            return Err(GitDirError::BadPath { path: printable(&item.path) });
        }
        let path = dest.join(std::ffi::OsStr::from_bytes(&item.path));
        let kind = item.mode & 0o170000;
        match kind {
            0o040000 | 0o160000 => {
                fs::DirBuilder::new().mode(0o755).create(&path).map_err(failed("create", &path))?;
                made.push(path.clone());
                if kind == 0o040000 {
                    dirs.insert(item.path.clone());
                    trees.push((item.path, item.oid));
                    continue;
                }
            }
            0o120000 => {
                let target = blobs.next(item.oid)?;
                symlink(std::ffi::OsStr::from_bytes(&target), &path).map_err(failed("create", &path))?;
                files += 1;
            }
            _ => {
                let content = blobs.next(item.oid)?;
                let mode = if item.mode & 0o111 != 0 { 0o755 } else { 0o644 };
                let options = fs::OpenOptions::new().write(true).create_new(true).mode(mode).to_owned();
                let mut file = options.open(&path).map_err(failed("create", &path))?;
                file.write_all(&content).map_err(failed("write", &path))?;
                file.set_modified(date).map_err(failed("change", &path))?;
                files += 1;
                bytes += content.len() as u64;
            }
        }
        if let Some((uid, gid)) = request.owner {
            std::os::unix::fs::lchown(&path, Some(uid), Some(gid)).map_err(failed("change the owner of", &path))?;
        }
        let metadata = fs::symlink_metadata(&path).map_err(failed("look at", &path))?;
        let stat = if kind == 0o160000 { Stat::default() } else { Stat::from_metadata(&metadata) };
        entries.push(NewEntry { path: item.path, oid: item.oid, mode: item.mode, stat });
    }
    blobs.finish()?;
    if let Some((uid, gid)) = request.owner {
        for path in made {
            std::os::unix::fs::lchown(&path, Some(uid), Some(gid)).map_err(failed("change the owner of", &path))?;
        }
    }
    Ok(Written { entries, trees, files, bytes })
}

/// Parses `mode SP type SP id TAB path NUL` records and refuses paths that no work tree can have.
fn parse_listing(bytes: &[u8]) -> Result<Vec<Item>, GitDirError> {
    let mut items = Vec::new();
    for record in bytes.split(|b| *b == 0).filter(|record| !record.is_empty()) {
        let bad = || GitDirError::BadPath { path: printable(record) };
        let tab = record.iter().position(|b| *b == b'\t').ok_or_else(bad)?;
        let mut words = record[..tab].split(|b| *b == b' ');
        let mode = words.next().and_then(|word| std::str::from_utf8(word).ok());
        let mode = mode.and_then(|word| u32::from_str_radix(word, 8).ok()).ok_or_else(bad)?;
        let oid = words.nth(1).and_then(Oid::parse).ok_or_else(bad)?;
        let path = record[tab + 1..].to_vec();
        let impossible = |part: &[u8]| matches!(part, b"" | b"." | b"..") || part.eq_ignore_ascii_case(b".git");
        if path.split(|b| *b == b'/').any(impossible) {
            return Err(GitDirError::BadPath { path: printable(&path) });
        }
        // As git normalises the modes that old trees have.
        let mode = match mode & 0o170000 {
            0o100000 if mode & 0o111 != 0 => 0o100755,
            0o100000 => 0o100644,
            other => other,
        };
        items.push(Item { mode, oid, path });
    }
    Ok(items)
}

/// `git cat-file --batch`, asked for all blobs at once and read in the same order.
struct Blobs {
    running: sandbox_git::Running,
    out: BufReader<std::process::ChildStdout>,
}

impl Blobs {
    fn start(git: &Git, host: &HostRepo, items: &[Item]) -> Result<Self, GitDirError> {
        let blob = |item: &&Item| matches!(item.mode & 0o170000, 0o100000 | 0o120000);
        let input: String = items.iter().filter(blob).map(|item| format!("{}\n", item.oid)).collect();
        let mut running = host.read(git).args(["cat-file", "--batch", "--buffer"]).stdin(input).spawn()?;
        let out = running.stdout.take().expect("standard output is piped");
        Ok(Self { running, out: BufReader::with_capacity(256 * 1024, out) })
    }

    fn next(&mut self, oid: Oid) -> Result<Vec<u8>, GitDirError> {
        let pipe = Path::new("git cat-file");
        let mut head = Vec::new();
        self.out.read_until(b'\n', &mut head).map_err(failed("read", pipe))?;
        // `id SP type SP size LF`
        let text = String::from_utf8_lossy(&head);
        let mut words = text.trim_end().split(' ');
        let same = words.next().and_then(Oid::parse) == Some(oid);
        let size: Option<usize> = words.nth(1).and_then(|word| word.parse().ok());
        let Some(size) = size.filter(|_| same) else {
            return Err(GitDirError::MissingObject { oid, what: "the tree" });
        };
        let mut content = vec![0; size];
        self.out.read_exact(&mut content).map_err(failed("read", pipe))?;
        self.out.read_exact(&mut [0]).map_err(failed("read", pipe))?;
        Ok(content)
    }

    fn finish(self) -> Result<(), GitDirError> {
        drop(self.out);
        Ok(self.running.finish()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_would_leave_the_tree_are_refused() {
        let id = "1".repeat(40);
        let record = |path: &str| format!("100644 blob {id}\t{path}\0").into_bytes();
        assert_eq!(parse_listing(&record("a/b")).unwrap()[0].path, b"a/b");
        for path in ["../x", ".git/config", "a/.GIT/x", "/etc/x", "a//b", "."] {
            assert!(matches!(parse_listing(&record(path)), Err(GitDirError::BadPath { .. })), "{path}");
        }
    }
}
