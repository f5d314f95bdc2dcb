//! A commit of what is not committed in one repository inside, in the form of a stash entry.
//!
//! ```text
//!   W  "rescue of NAME"          the work tree: tracked files as they are now
//!   ├─ parent 1   HEAD           (an empty commit where nothing was committed yet)
//!   ├─ parent 2   I              the index: what was staged; parent HEAD
//!   └─ parent 3   U              untracked files that nothing ignores; only if there are any
//! ```
//!
//! `git stash apply W` puts it back. Made with an index of its own, a copy; objects go into a bare
//! repository in the scratch directory that borrows from the real one: neither the index nor the object
//! store of the repository is written. Filters run as they would for `git add`, here and within the time;
//! no hook and no monitor does. Unmerged paths are in I as HEAD's side has them.
//!
//! Left out by name: what may not be read, files over the bounds, repositories in the work tree. Left out
//! silently: what `.gitignore` or `.sandboxignore` names, FIFOs and the like.

use crate::repo_state::{Git, RepoStateError, only_files, read_regular};
use sandbox_protocol::{RescueAnswer, RescueQuestion, escape_bytes, unescape_bytes};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

/// Lines that are told of what is left out.
const MOST_TOLD: usize = 100;

/// A larger index is none that git wrote here.
const LARGEST_INDEX: u64 = 1 << 30;

/// What every command gets, each with what it prevents.
const CONFIG: &[&str] = &[
    // Hooks run when somebody inside runs git, not because we do.
    "core.hooksPath=/dev/null",
    // The copy is whole, and nothing of it is written beside the real one.
    "core.splitIndex=false",
    "core.untrackedCache=false",
    // Blobs go into one pack: a hundred thousand small files would need as many inodes of a memory
    // file system (both gits write blobs over this size straight into a pack).
    "core.bigFileThreshold=1",
    "core.fsync=none",
    "core.safecrlf=false",
    "advice.addEmbeddedRepo=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "commit.gpgSign=false",
    "i18n.commitEncoding=UTF-8",
];

/// Why there is no rescue commit.
#[derive(Debug, thiserror::Error)]
pub enum RescueError {
    /// Git, or the repository.
    #[error(transparent)]
    Git(#[from] RepoStateError),
    /// The scratch directory, or the copy of the index.
    #[error("cannot {action} '{path}'", path = path.display())]
    Io {
        /// `write`, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Git said something that is no id.
    #[error("`git {command}` did not tell an id")]
    NoId {
        /// The subcommand.
        command: String,
    },
}

type Result<T> = std::result::Result<T, RescueError>;

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RescueError {
    let path = path.to_owned();
    move |source| RescueError::Io { action, path, source }
}

fn path_of(escaped: &str) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape_bytes(escaped)))
}

/// Makes the commit that is asked for, or removes the scratch directory.
pub fn rescue(question: &RescueQuestion) -> Result<RescueAnswer> {
    let scratch = path_of(&question.scratch);
    if question.remove {
        return match fs::remove_dir_all(&scratch) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &scratch)(error)),
            _ => Ok(RescueAnswer::default()),
        };
    }
    let (gitdir, work_tree) = (path_of(&question.gitdir), path_of(&question.work_tree));
    if !work_tree.is_dir() {
        // A submodule that is not checked out has no files.
        return Ok(RescueAnswer::default());
    }
    only_files(&gitdir)?;
    fs::DirBuilder::new().mode(0o700).create(&scratch).map_err(failed("create", &scratch))?;
    let until = Instant::now() + Duration::from_secs(question.seconds);
    let mut rescue = Rescue {
        git: Git { gitdir: &gitdir, work_tree: &work_tree, until, env: Vec::new(), config: CONFIG },
        question,
        scratch: &scratch,
        answer: RescueAnswer::default(),
        bytes: 0,
    };
    rescue.make()?;
    Ok(rescue.answer)
}

struct Rescue<'a> {
    git: Git<'a>,
    question: &'a RescueQuestion,
    scratch: &'a Path,
    answer: RescueAnswer,
    /// Of all files so far.
    bytes: u64,
}

/// Which paths of the work tree are looked at.
#[derive(Default)]
struct Found {
    /// Tracked ones that differ from the index.
    changed: Vec<Vec<u8>>,
    untracked: Vec<Vec<u8>>,
}

impl Rescue<'_> {
    fn make(&mut self) -> Result<()> {
        let repo = self.scratch.join("repo.git");
        self.borrow(&repo)?;
        let index = self.scratch.join("index");
        self.copy_index(&index)?;
        self.git.env = vec![
            ("GIT_OBJECT_DIRECTORY", repo.join("objects").into()),
            ("GIT_INDEX_FILE", index.into()),
            ("GIT_AUTHOR_NAME", "git-sandbox".into()),
            ("GIT_AUTHOR_EMAIL", "git-sandbox@localhost".into()),
            ("GIT_COMMITTER_NAME", "git-sandbox".into()),
            ("GIT_COMMITTER_EMAIL", "git-sandbox@localhost".into()),
        ];
        let head = self.git.line(&["rev-parse", "-q", "--verify", "HEAD^{commit}"])?;
        let head_tree = match &head {
            Some(_) => self.id(&["rev-parse", "-q", "--verify", "HEAD^{tree}"], b"")?,
            None => self.id(&["mktree"], b"")?,
        };
        self.drop_conflicts()?;
        let staged = self.id(&["write-tree", "--missing-ok"], b"")?;
        let found = self.find()?;
        if !found.changed.is_empty() {
            self.update("index", &found.changed)?;
        }
        let work = self.id(&["write-tree", "--missing-ok"], b"")?;
        let untracked = if found.untracked.is_empty() {
            None
        } else {
            self.update("untracked", &found.untracked)?;
            Some(self.id(&["write-tree", "--missing-ok"], b"")?)
        };
        if staged == head_tree && work == head_tree && untracked.is_none() {
            return Ok(());
        }
        self.answer.files = self.count(&head_tree, &staged, &work)? + found.untracked.len() as u64;
        let base = match &head {
            Some(head) => head.clone(),
            None => self.id(&["commit-tree", &head_tree], b"nothing was committed yet\n")?,
        };
        let index = self.id(&["commit-tree", &staged, "-p", &base], b"rescue: what was staged\n")?;
        let mut parents = vec!["-p", &base, "-p", &index];
        let others;
        if let Some(tree) = &untracked {
            others = self.id(&["commit-tree", tree], b"rescue: untracked files\n")?;
            parents.extend(["-p", &others]);
        }
        let args = [&["commit-tree", work.as_str()][..], &parents].concat();
        self.answer.commit = Some(self.id(&args, b"rescue: what was not committed\n")?);
        self.answer.trees = [Some(base), Some(staged), Some(work), untracked].into_iter().flatten().collect();
        Ok(())
    }

    /// Makes the bare repository that the commit is served from.
    fn borrow(&self, repo: &Path) -> Result<()> {
        let objects = self.git.line(&["rev-parse", "--git-path", "objects"])?;
        let objects = objects.ok_or_else(|| RescueError::NoId { command: "rev-parse".into() })?;
        // Relative to where we are.
        let objects = std::path::absolute(path_of(&objects)).map_err(failed("find", repo))?;
        let format = self.git.line(&["rev-parse", "--show-object-format"])?;
        let partial = self.git.line(&["config", "--get", "extensions.partialclone"])?;
        let mut config = String::from("[core]\n\trepositoryFormatVersion = 1\n\tbare = true\n[extensions]\n");
        if format.as_deref() == Some("sha256") {
            config.push_str("\tobjectFormat = sha256\n");
        }
        if partial.is_some() {
            config.push_str("\tpartialClone = host\n[remote \"host\"]\n\tpromisor = true\n\turl = /dev/null/none\n");
        }
        for dir in ["objects/info", "objects/pack", "refs/heads"] {
            let dir = repo.join(dir);
            fs::create_dir_all(&dir).map_err(failed("create", &dir))?;
        }
        let write = |name: &str, bytes: &[u8]| {
            let path = repo.join(name);
            fs::write(&path, bytes).map_err(failed("write", &path))
        };
        write("config", config.as_bytes())?;
        write("HEAD", b"ref: refs/heads/none\n")?;
        write("objects/info/alternates", &[objects.as_os_str().as_bytes(), b"\n"].concat())?;
        if let Some(shallow) = read_regular(&self.git.gitdir.join("shallow"), 16 << 20) {
            write("shallow", &shallow)?;
        }
        Ok(())
    }

    fn copy_index(&self, to: &Path) -> Result<()> {
        let from = self.git.gitdir.join("index");
        let Ok(meta) = from.metadata() else { return Ok(()) };
        let bytes = read_regular(&from, LARGEST_INDEX);
        let bytes = bytes.ok_or_else(|| failed("read", &from)(io::ErrorKind::InvalidData.into()))?;
        let mut file = fs::File::create(to).map_err(failed("create", to))?;
        file.write_all(&bytes).map_err(failed("write", to))?;
        // Its time tells which entries may have been changed in the second in which it was written.
        meta.modified().and_then(|time| file.set_modified(time)).map_err(failed("change", to))
    }

    /// A tree can only be made of merged paths.
    fn drop_conflicts(&self) -> Result<()> {
        let unmerged = self.run(&["ls-files", "--unmerged", "-z"], b"")?;
        if unmerged.is_empty() {
            return Ok(());
        }
        let mut removed = Vec::new();
        let mut kept = Vec::new();
        for entry in unmerged.split(|byte| *byte == 0).filter(|entry| !entry.is_empty()) {
            let Some(tab) = entry.iter().position(|byte| *byte == b'\t') else { continue };
            let (meta, path) = (&entry[..tab], &entry[tab + 1..]);
            let mut fields = meta.split(|byte| *byte == b' ');
            let (Some(mode), Some(oid), Some(stage)) = (fields.next(), fields.next(), fields.next()) else { continue };
            removed.extend([b"0 ", &vec![b'0'; oid.len()][..], b"\t", path, b"\0"].concat());
            if stage == b"2" {
                kept.extend([mode, b" ", oid, b" 0\t", path, b"\0"].concat());
            }
        }
        self.run(&["update-index", "-z", "--index-info"], &[removed, kept].concat())?;
        Ok(())
    }

    /// Finds what differs from the index, without what is left out.
    fn find(&mut self) -> Result<Found> {
        let listing = self.run(&["diff-files", "--raw", "-z", "--no-renames", "--ignore-submodules=dirty"], b"")?;
        let mut changed: Vec<(Vec<u8>, bool)> = Vec::new();
        let mut fields = listing.split(|byte| *byte == 0);
        while let (Some(meta), Some(path)) = (fields.next(), fields.next()) {
            // ":100644 100644 <old> <new> M"
            let gitlink = meta.split(|byte| *byte == b' ').take(2).any(|mode| mode.ends_with(b"160000"));
            changed.push((path.to_vec(), gitlink));
        }
        let listing = self.run(&["ls-files", "--others", "--exclude-standard", "-z"], b"")?;
        let untracked: Vec<Vec<u8>> =
            listing.split(|byte| *byte == 0).filter(|path| !path.is_empty()).map(<[u8]>::to_vec).collect();
        let left_out = self.named_by_sandboxignore(&untracked)?;
        let nested: BTreeSet<Vec<u8>> = self.question.nested.iter().map(|path| unescape_bytes(path)).collect();
        let mut found = Found::default();
        for (path, gitlink) in changed {
            if left_out.contains(&path) {
            } else if gitlink && !nested.contains(&path) {
                self.leave_out(&path, "a repository that the host does not have");
            } else if gitlink || self.takes(&path) {
                found.changed.push(path);
            }
        }
        for path in untracked {
            match path.strip_suffix(b"/") {
                _ if left_out.contains(&path) => {}
                Some(repository) if nested.contains(repository) => {}
                Some(repository) => self.leave_out(repository, "a repository that the host does not have"),
                None if self.takes(&path) => found.untracked.push(path),
                None => {}
            }
        }
        Ok(found)
    }

    /// Which paths `.sandboxignore` files name, tracked or not. Git reads them as it reads `.gitignore`.
    fn named_by_sandboxignore(&self, untracked: &[Vec<u8>]) -> Result<BTreeSet<Vec<u8>>> {
        const NAME: &[u8] = b".sandboxignore";
        let is = |path: &[u8]| path == NAME || path.ends_with(b"/.sandboxignore");
        let tracked = self.run(&["ls-files", "-z", "--", ":(glob)**/.sandboxignore"], b"")?;
        if tracked.is_empty() && !untracked.iter().any(|path| is(path)) {
            return Ok(BTreeSet::new());
        }
        let mut named = BTreeSet::new();
        for kind in ["--cached", "--others"] {
            let args = ["ls-files", kind, "--ignored", "--exclude-per-directory=.sandboxignore", "-z"];
            let listing = self.run(&args, b"")?;
            named.extend(listing.split(|byte| *byte == 0).filter(|path| !path.is_empty()).map(<[u8]>::to_vec));
        }
        Ok(named)
    }

    /// Whether a path is taken; says why not, if that is worth a word. One that is gone is: its deletion.
    fn takes(&mut self, path: &[u8]) -> bool {
        let whole = self.git.work_tree.join(OsStr::from_bytes(path));
        let meta = match whole.symlink_metadata() {
            Ok(meta) => meta,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return true;
            }
            Err(_) => {
                self.leave_out(path, "it may not be read");
                return false;
            }
        };
        if meta.is_symlink() || meta.is_dir() {
            return true;
        }
        if !meta.is_file() {
            self.leave_out(path, "it is no regular file");
            return false;
        }
        if meta.len() > self.question.file_bytes {
            self.leave_out(path, &format!("it is larger than {} MiB", self.question.file_bytes >> 20));
            return false;
        }
        if self.bytes.saturating_add(meta.len()) > self.question.total_bytes {
            self.leave_out(path, &format!("all files are larger than {} MiB", self.question.total_bytes >> 20));
            return false;
        }
        let nonblocking = rustix::fs::OFlags::NONBLOCK.union(rustix::fs::OFlags::NOFOLLOW).bits() as i32;
        if fs::OpenOptions::new().read(true).custom_flags(nonblocking).open(&whole).is_err() {
            self.leave_out(path, "it may not be read");
            return false;
        }
        self.bytes += meta.len();
        true
    }

    fn leave_out(&mut self, path: &[u8], why: &str) {
        if self.answer.left_out.len() < MOST_TOLD {
            self.answer.left_out.push(format!("'{}': {why}", escape_bytes(path)));
        } else {
            self.answer.left_out_more += 1;
        }
    }

    /// Takes these paths into an index of the scratch directory; it is the one that is used from here on.
    fn update(&mut self, index: &str, paths: &[Vec<u8>]) -> Result<()> {
        let index: OsString = self.scratch.join(index).into();
        for (name, value) in &mut self.git.env {
            if *name == "GIT_INDEX_FILE" {
                value.clone_from(&index);
            }
        }
        let input: Vec<u8> = paths.iter().flat_map(|path| [path, &b"\0"[..]].concat()).collect();
        let output = self.output(&["update-index", "--add", "--remove", "--replace", "-z", "--stdin"], &input)?;
        // A name that git takes into no index, such as a link in the place of `.gitmodules`.
        for line in output.stderr.split(|byte| *byte == b'\n') {
            if let Some(path) = line.strip_prefix(b"Ignoring path ") {
                self.leave_out(path, "git does not take it");
            }
        }
        Ok(())
    }

    /// How many tracked paths differ from `HEAD`, staged or not.
    fn count(&self, head: &str, staged: &str, work: &str) -> Result<u64> {
        let mut paths: BTreeSet<Vec<u8>> = BTreeSet::new();
        for tree in [staged, work] {
            let listing = self.run(&["diff-tree", "-r", "-z", "--name-only", "--no-renames", head, tree], b"")?;
            paths.extend(listing.split(|byte| *byte == 0).filter(|path| !path.is_empty()).map(<[u8]>::to_vec));
        }
        Ok(paths.len() as u64)
    }

    /// Runs git; its "no" is an error here.
    fn run(&self, args: &[&str], input: &[u8]) -> Result<Vec<u8>> {
        Ok(self.output(args, input)?.stdout)
    }

    fn output(&self, args: &[&str], input: &[u8]) -> Result<Output> {
        let output = self.git.run(args, input)?;
        if output.status.success() {
            return Ok(output);
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let message = escape_bytes(text.lines().next_back().unwrap_or_default().as_bytes());
        Err(RepoStateError::Refused { command: args[0].to_owned(), message }.into())
    }

    fn id(&self, args: &[&str], input: &[u8]) -> Result<String> {
        let out = self.run(args, input)?;
        let id = String::from_utf8_lossy(out.trim_ascii()).into_owned();
        let is = matches!(id.len(), 40 | 64) && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        is.then_some(id).ok_or_else(|| RescueError::NoId { command: args[0].to_owned() })
    }
}
