//! The host's index: read whole, changed as a copy, put in place under git's own lock.

use crate::error::MergeError;
use crate::objects::checked;
use crate::path::{Entry, Mode, RepoPath};
use crate::repo::Repo;
use crate::run::unexpected;
use sandbox_git::Oid;
use sha2::Digest;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// One entry of stage 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Staged {
    pub entry: Entry,
    /// Outside the sparse checkout: not in the working tree.
    pub skip_worktree: bool,
    /// `add -N`: the path is known, no content is staged.
    pub intent_to_add: bool,
    /// What `stat` said when it was last known to be clean.
    pub stat: Cached,
}

/// The part of the cached stat data that identifies a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Cached {
    pub mtime: (i64, u32),
    pub ino: u32,
    pub size: u32,
}

/// The index.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    pub entries: BTreeMap<RepoPath, Staged>,
    /// The first path with a conflict.
    pub unmerged: Option<RepoPath>,
    /// Digest of all that it says about paths; cached stat data is not in it.
    pub digest: String,
    /// The file that was read; `None` if there is none.
    pub stamp: Option<Stamp>,
}

/// What tells an index file from another, and from what git makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    dev: u64,
    ino: u64,
    size: u64,
    /// When it was written, to know racy entries.
    pub mtime: (i64, u32),
    ctime: (i64, i64),
}

impl Stamp {
    pub fn of(repo: &Repo) -> Result<Option<Self>, MergeError> {
        use std::os::unix::fs::MetadataExt;
        match fs::metadata(repo.index()) {
            Ok(meta) => Ok(Some(Self {
                dev: meta.dev(),
                ino: meta.ino(),
                size: meta.size(),
                mtime: (meta.mtime(), meta.mtime_nsec() as u32),
                ctime: (meta.ctime(), meta.ctime_nsec()),
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(MergeError::io("read", repo.index())(source)),
        }
    }
}

/// An index that a plan was made from.
#[derive(Clone, Debug)]
pub(crate) struct Mark {
    /// Digest of what it said.
    pub digest: String,
    stamp: Option<Stamp>,
}

impl Mark {
    /// Whether the index still says the same. That git refreshed it is no change.
    pub fn holds(&self, repo: &Repo) -> Result<bool, MergeError> {
        let same = self.stamp.is_some() && Stamp::of(repo)? == self.stamp;
        Ok(same || Index::read(repo)?.digest == self.digest)
    }
}

const INTENT_TO_ADD: u32 = 1 << 29;
const SKIP_WORKTREE: u32 = 1 << 30;

impl Index {
    pub fn read(repo: &Repo) -> Result<Self, MergeError> {
        let stamp = Stamp::of(repo)?;
        let mut index = match Self::of_file(repo, repo.index()) {
            Some(index) => index?,
            None => Self::parse(&repo.host().args(["ls-files", "--stage", "-z", "--debug"]).output()?.stdout)?,
        };
        index.stamp = stamp;
        Ok(index)
    }

    /// What a plan keeps of it.
    pub fn mark(&self) -> Mark {
        Mark { digest: self.digest.clone(), stamp: self.stamp }
    }

    /// Reads another index file of the same repository.
    pub fn read_file(repo: &Repo, file: &Path) -> Result<Self, MergeError> {
        if let Some(index) = Self::of_file(repo, file) {
            return index;
        }
        let git = repo.host().env("GIT_INDEX_FILE", file);
        Self::parse(&git.args(["ls-files", "--stage", "-z", "--debug"]).output()?.stdout)
    }

    /// Reads an index without a process; `None`: it is one that git has to put together (split, sparse), or to judge.
    fn of_file(repo: &Repo, file: &Path) -> Option<Result<Self, MergeError>> {
        let bytes = match fs::read(file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(Self::of_entries(&[])),
            Err(_) => return None,
        };
        let parsed = sandbox_git::index::Index::parse(bytes, repo.format()).ok()?;
        let is_sparse = |entry: &sandbox_git::index::Entry| entry.mode & 0o170_000 == 0o040_000;
        if parsed.is_split() || parsed.entries().iter().any(is_sparse) {
            return None;
        }
        Some(Self::of_entries(parsed.entries()))
    }

    fn of_entries(entries: &[sandbox_git::index::Entry]) -> Result<Self, MergeError> {
        let mut index = Self::default();
        let mut digest = sha2::Sha256::new();
        let mut record = Vec::new();
        for entry in entries {
            record.clear();
            write!(record, "{:06o} {} {}\t", entry.mode, entry.oid, entry.stage).expect("a vector takes all");
            record.extend_from_slice(&entry.path);
            let stat = Cached {
                mtime: (i64::from(entry.stat.mtime.0), entry.stat.mtime.1),
                ino: entry.stat.ino,
                size: entry.stat.size,
            };
            let flag = |set: bool, flag: u32| if set { flag } else { 0 };
            let flags = flag(entry.intent_to_add, INTENT_TO_ADD) | flag(entry.skip_worktree, SKIP_WORKTREE);
            index.add(&mut digest, &record, flags, stat)?;
        }
        index.digest = hex(&digest.finalize());
        Ok(index)
    }

    /// Adds `<mode> <id> <stage>\t<path>`.
    fn add(&mut self, digest: &mut sha2::Sha256, record: &[u8], flags: u32, stat: Cached) -> Result<(), MergeError> {
        let bad = || MergeError::from(unexpected("git ls-files", b"an entry of another form"));
        let tab = record.iter().position(|b| *b == b'\t').ok_or_else(bad)?;
        let words: Vec<_> = record[..tab].split(|b| *b == b' ').collect();
        let [mode, id, stage] = words[..] else { return Err(bad()) };
        let path = checked(&record[tab + 1..])?;
        digest.update(record);
        digest.update(((flags & (INTENT_TO_ADD | SKIP_WORKTREE)) | u32::from(stage == b"0")).to_be_bytes());
        if stage != b"0" {
            self.unmerged.get_or_insert(path);
            return Ok(());
        }
        let (Some(mode), Some(id)) = (Mode::parse(mode), Oid::parse(id)) else { return Err(bad()) };
        let staged = Staged {
            entry: Entry { mode, id },
            skip_worktree: flags & SKIP_WORKTREE != 0,
            intent_to_add: flags & INTENT_TO_ADD != 0,
            stat,
        };
        self.entries.insert(path, staged);
        Ok(())
    }

    /// Parses `<mode> <id> <stage>\t<path>\0` followed by the indented lines of `--debug`.
    fn parse(mut output: &[u8]) -> Result<Self, MergeError> {
        let bad = || MergeError::from(unexpected("git ls-files", b"an entry of another form"));
        let mut index = Self::default();
        let mut digest = sha2::Sha256::new();
        while !output.is_empty() {
            let end = output.iter().position(|b| *b == 0).ok_or_else(bad)?;
            let (record, rest) = (&output[..end], &output[end + 1..]);
            let debug = Debug::parse(rest).ok_or_else(bad)?;
            output = &rest[debug.length..];
            index.add(&mut digest, record, debug.flags, debug.stat)?;
        }
        index.digest = hex(&digest.finalize());
        Ok(index)
    }

    /// The entries below a directory.
    pub fn below<'a>(&'a self, dir: &'a RepoPath) -> impl Iterator<Item = &'a RepoPath> {
        self.entries
            .range(dir..)
            .map(|(path, _)| path)
            .skip_while(move |path| *path == dir)
            .take_while(move |path| {
                // 'a-b' sorts between 'a' and 'a/b'
                path.as_bytes().starts_with(dir.as_bytes())
            })
            .filter(move |path| path.is_below(dir))
    }
}

struct Debug {
    stat: Cached,
    flags: u32,
    length: usize,
}

impl Debug {
    fn parse(text: &[u8]) -> Option<Self> {
        let mut parsed = Self { stat: Cached::default(), flags: 0, length: 0 };
        // ctime, mtime, dev+ino, uid+gid, size+flags
        for line in text.split_inclusive(|b| *b == b'\n').take(5) {
            parsed.length += line.len();
            let line = std::str::from_utf8(line).ok()?.trim();
            for field in line.split('\t') {
                let (name, value) = field.split_once(": ")?;
                match name {
                    "mtime" => {
                        let (s, ns) = value.split_once(':')?;
                        parsed.stat.mtime = (s.parse().ok()?, ns.parse().ok()?);
                    }
                    "ino" => parsed.stat.ino = value.parse().ok()?,
                    "size" => parsed.stat.size = value.parse().ok()?,
                    "flags" => parsed.flags = u32::from_str_radix(value, 16).ok()?,
                    _ => {}
                }
            }
        }
        Some(parsed)
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A change of the index.
pub(crate) struct Update<'a> {
    pub path: &'a RepoPath,
    pub entry: Option<Entry>,
    pub skip_worktree: bool,
}

/// Makes a changed copy of the index at `to`. The working tree must still be as it was: git looks at
/// files whose cached stat data is too young to be trusted.
pub(crate) fn changed_copy(repo: &Repo, updates: &[Update<'_>], to: &Path) -> Result<(), MergeError> {
    copy_index(repo.index(), to)?;
    let null = Oid::null(repo.format());
    let mut input = Vec::new();
    // Removals first, so that a file can take the place of a directory.
    for update in updates.iter().filter(|u| u.entry.is_none()) {
        line(&mut input, format_args!("0 {null}\t"), update.path);
    }
    for update in updates {
        if let Some(entry) = update.entry {
            line(&mut input, format_args!("{} {}\t", entry.mode.as_str(), entry.id), update.path);
        }
    }
    let git = || repo.host().env("GIT_INDEX_FILE", to);
    git().args(["update-index", "-z", "--index-info"]).stdin(input).run()?;
    let mut skipped = Vec::new();
    for update in updates.iter().filter(|u| u.skip_worktree && u.entry.is_some()) {
        line(&mut skipped, format_args!(""), update.path);
    }
    if !skipped.is_empty() {
        git().args(["update-index", "--skip-worktree", "-z", "--stdin"]).stdin(skipped).run()?;
    }
    Ok(())
}

fn line(input: &mut Vec<u8>, head: std::fmt::Arguments<'_>, path: &RepoPath) {
    write!(input, "{head}").expect("a vector takes all");
    input.extend_from_slice(path.as_bytes());
    input.push(0);
}

/// Copies an index file with its time: the time tells git which entries are too young to be trusted.
/// Without one, the copy is absent too.
pub(crate) fn copy_index(from: &Path, to: &Path) -> Result<bool, MergeError> {
    let copy = || {
        let bytes = fs::read(from)?;
        let time = fs::metadata(from)?.modified()?;
        let mut file = File::create(to)?;
        file.write_all(&bytes)?;
        file.set_modified(time)
    };
    match copy() {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !from.exists() => Ok(false),
        Err(source) => Err(MergeError::io("copy", from)(source)),
    }
}

/// Git's lock on the index, taken by us. Dropping it gives it up.
#[derive(Debug)]
pub(crate) struct IndexLock {
    path: PathBuf,
    index: PathBuf,
    file: Option<File>,
}

impl IndexLock {
    /// Takes the lock; one that exists is reported, never removed.
    pub fn take(repo: &Repo) -> Result<Self, MergeError> {
        let index = repo.index().to_owned();
        let mut path = index.clone().into_os_string();
        path.push(".lock");
        let path = PathBuf::from(path);
        match fs::OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => Ok(Self { path, index, file: Some(file) }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(MergeError::Locked { path }),
            Err(source) => Err(MergeError::io("create", path)(source)),
        }
    }

    /// The lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the lock by giving `file`, which is empty and beside the index, its name: what is known of `file`
    /// is known of the lock from its first moment on.
    pub fn take_as(repo: &Repo, file: &Path) -> Result<Self, MergeError> {
        let index = repo.index().to_owned();
        let mut path = index.clone().into_os_string();
        path.push(".lock");
        let path = PathBuf::from(path);
        let open = fs::OpenOptions::new().write(true).open(file).map_err(MergeError::io("open", file))?;
        match fs::hard_link(file, &path) {
            Ok(()) => Ok(Self { path, index, file: Some(open) }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(MergeError::Locked { path }),
            Err(source) => Err(MergeError::io("create", path)(source)),
        }
    }

    /// Writes what the index will be into the lock file. `keep_time`: with the time of `from`.
    pub fn fill(&mut self, from: &Path, keep_time: bool) -> Result<(), MergeError> {
        let file = self.file.as_mut().expect("the lock is held");
        let mut fill = || {
            file.write_all(&fs::read(from)?)?;
            if let Ok(meta) = fs::metadata(&self.index) {
                file.set_permissions(meta.permissions())?;
            }
            if keep_time {
                file.set_modified(fs::metadata(from)?.modified()?)?;
            }
            Ok(())
        };
        fill().map_err(MergeError::io("write", &self.path))
    }

    /// Makes the lock file the index. What is staged is nowhere else: a power cut must not leave it torn.
    pub fn commit(mut self) -> io::Result<()> {
        if let Some(file) = &self.file {
            file.sync_all()?;
        }
        fs::rename(&self.path, &self.index)?;
        self.file = None;
        Ok(())
    }

    /// Removes the index, for a repository that had none.
    pub fn remove_index(self) -> io::Result<()> {
        fs::remove_file(&self.index)
    }
}

impl Drop for IndexLock {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::World;

    const ID: &str = "b6ddd0c430e287bf3c3cc901a0ffd5ed7ef8b17b";

    /// The digest outlives the program in what `undo` stands on: both ways must say the same, byte for byte.
    #[test]
    fn the_file_is_read_as_git_reads_it() {
        let world = World::new(&[("a", "1\n"), ("b", "1\n"), ("d/e", "1\n"), ("d-e", "1\n")]);
        let repo = world.repo();
        let both = || {
            let asked = repo.host().args(["ls-files", "--stage", "-z", "--debug"]).output().unwrap().stdout;
            (Index::of_file(&repo, repo.index()).map(Result::unwrap), Index::parse(&asked).unwrap())
        };
        let same = |what: &str| {
            let (read, asked) = both();
            let read = read.unwrap_or_else(|| panic!("{what}: left to git"));
            assert_eq!((read.digest, read.unmerged), (asked.digest, asked.unmerged), "{what}");
            assert_eq!(read.entries, asked.entries, "{what}");
        };
        same("plain");
        world.write("n", "new\n");
        world.git(&["add", "-N", "n"]);
        world.git(&["update-index", "--skip-worktree", "b"]);
        world.git(&["update-index", "--assume-unchanged", "a"]);
        world.git(&["update-index", "--chmod=+x", "d/e"]);
        same("flags and modes");
        world.git(&["update-index", "--index-version", "4"]);
        same("version 4");
        let id = world.git(&["rev-parse", ":a"]);
        let stages = (1..=3).map(|stage| format!("100644 {} {stage}\td/c\n", id.trim())).collect::<String>();
        let file = repo.temp_file(stages.as_bytes()).unwrap();
        let feed = format!("git update-index --index-info <'{}'", file.path().display());
        world.git(&["-c", &format!("alias.feed=!{feed}"), "feed"]);
        same("a conflict");
        assert!(both().1.unmerged.is_some());
        world.git(&["update-index", "--split-index"]);
        assert!(both().0.is_none(), "a split index is put together by git");
        fs::remove_file(repo.index()).unwrap();
        assert!(both().0.unwrap().entries.is_empty() && both().1.entries.is_empty());
    }

    fn record(path: &str, stage: u8, flags: u32) -> String {
        format!(
            "100644 {ID} {stage}\t{path}\0  ctime: 1:2\n  mtime: 3:4\n  dev: 5\tino: 6\n  uid: 7\tgid: 8\n  size: 9\tflags: {flags:x}\n"
        )
    }

    #[test]
    fn flags_and_cached_times_are_read() {
        let text = record("a\nb", 0, 0x4000_4000) + &record("n", 0, 0x2000_4000);
        let index = Index::parse(text.as_bytes()).unwrap();
        let entries: Vec<_> = index.entries.values().collect();
        assert!(entries[0].skip_worktree && !entries[0].intent_to_add);
        assert!(entries[1].intent_to_add && !entries[1].skip_worktree);
        assert_eq!(entries[0].stat, Cached { mtime: (3, 4), ino: 6, size: 9 });
        assert_eq!(index.unmerged, None);
    }

    #[test]
    fn unmerged_entries_are_named() {
        let index = Index::parse((record("x", 1, 0x1000) + &record("x", 2, 0x2000)).as_bytes()).unwrap();
        assert_eq!(index.unmerged, RepoPath::parse(b"x"));
    }

    #[test]
    fn below_a_directory_is_not_beside_it() {
        let text = ["a", "a-b", "a/b", "a/c/d", "ab"].map(|path| record(path, 0, 0)).concat();
        let index = Index::parse(text.as_bytes()).unwrap();
        let dir = RepoPath::parse(b"a").unwrap();
        let below: Vec<_> = index.below(&dir).map(ToString::to_string).collect();
        assert_eq!(below, ["a/b", "a/c/d"]);
    }
}
