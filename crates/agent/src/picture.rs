//! A picture of what one tree has that was not captured: what git would commit here, with its contents; what git
//! ignores, by name, size and time; the git directories without their objects.
//!
//! Asked of git and not of the overlay's upper directory: with `redirect_dir` that does not tell by itself what is
//! where, and only root may read what does.

use crate::repo_state::{Git, RepoStateError, only_files};
use sandbox_protocol::{OWN, PictureEntry, PictureKind, PictureQuestion, end_picture, unescape_bytes};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// Git, or a repository.
    #[error(transparent)]
    Git(#[from] RepoStateError),
    /// The tree's own changes are not shown.
    #[error("cannot read '{path}'", path = path.display())]
    Own {
        /// Where they should be.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Nobody takes it.
    #[error("cannot write the picture")]
    Write(#[source] io::Error),
}

type Result<T> = std::result::Result<T, PictureError>;

fn path_of(escaped: &str) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape_bytes(escaped)))
}

fn below(top: &Path, path: &[u8]) -> PathBuf {
    top.join(OsStr::from_bytes(path))
}

/// Draws the picture that is asked for.
pub fn picture(question: &PictureQuestion, out: &mut impl Write) -> Result<()> {
    let own = Path::new(OWN).join(question.number.to_string());
    // Before anything is read: who is not there now comes only when a session is started.
    let alone = alone(Path::new("/proc"), std::process::id());
    draw(question, &own, alone, out)
}

fn draw(question: &PictureQuestion, own: &Path, alone: bool, out: &mut impl Write) -> Result<()> {
    let tree = path_of(&question.tree);
    fs::read_dir(own).map_err(|source| PictureError::Own { path: own.to_owned(), source })?;
    let until = Instant::now() + Duration::from_secs(question.seconds);
    let mut pen = Pen { tree: &tree, own, question, out, left: question.total_bytes, drawn: BTreeSet::new() };
    let (mut found, mut untold) = (Found::default(), Vec::new());
    for (repo, base) in &question.repos {
        let at = unescape_bytes(repo);
        let work_tree = below(&tree, &at);
        let Some(gitdir) = crate::repo_state::gitdir_of(&work_tree) else { continue };
        only_files(&gitdir)?;
        let git = Git { gitdir: &gitdir, work_tree: &work_tree, until, env: Vec::new(), config: &[] };
        if found.ask(&git, &at, base.as_deref()).is_err() {
            // Git can be stopped by what lies in the tree (a `.gitignore` of terabytes).
            untold.push(at);
        }
    }
    // What is drawn first has its contents.
    for path in &question.whole {
        pen.walk(&unescape_bytes(path), Depth::All)?;
    }
    for path in &found.here {
        pen.now(path)?;
    }
    // Where git does not tell, what was written does, but for what lies in a directory that was renamed.
    for path in &untold {
        pen.walk(path, Depth::Git)?;
    }
    for (repo, _) in &question.repos {
        let at = unescape_bytes(repo);
        pen.walk(&join(&at, b".git"), Depth::Git)?;
    }
    for path in &found.ignored {
        pen.walk(path, Depth::Names)?;
    }
    end_picture(pen.out, alone).map_err(PictureError::Write)
}

/// Nothing runs but the first process, the nursery, and `own` with those above it. What cannot be read is somebody.
fn alone(proc: &Path, own: u32) -> bool {
    let stat = |pid: u32| {
        let text = fs::read_to_string(proc.join(pid.to_string()).join("stat")).ok()?;
        sandbox_sys::process::read_state_and_parent(&text)
    };
    let Ok(listed) = fs::read_dir(proc) else { return false };
    let mut pids: Vec<u32> = listed.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    let mut known = vec![1, own];
    while let Some((_, parent)) = known.last().and_then(|pid| stat(*pid)).filter(|(_, parent)| *parent > 1) {
        known.push(parent);
    }
    let words = |pid: u32| fs::read(proc.join(pid.to_string()).join("cmdline")).unwrap_or_default();
    let first = words(1);
    // A copy of the first process from before any session.
    let nursery = |pid: &&u32| !known.contains(*pid) && stat(**pid).is_some_and(|(_, parent)| parent == 1);
    known.extend(pids.iter().find(nursery).filter(|pid| !first.is_empty() && words(**pid) == first).copied());
    // One that has ended meanwhile, or was not waited for yet, writes nothing any more.
    let gone = |pid: u32| match stat(pid) {
        Some((state, _)) => matches!(state, 'Z' | 'X'),
        None => !proc.join(pid.to_string()).exists(),
    };
    pids.iter().all(|pid| known.contains(pid) || gone(*pid))
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_owned() } else { [dir, b"/", name].concat() }
}

/// What git says, relative to the tree.
#[derive(Default)]
struct Found {
    /// What it would commit, and what was committed since.
    here: BTreeSet<Vec<u8>>,
    ignored: BTreeSet<Vec<u8>>,
}

impl Found {
    fn ask(&mut self, git: &Git<'_>, at: &[u8], base: Option<&str>) -> Result<()> {
        let args = ["status", "--porcelain=v1", "-z", "--no-renames", "--untracked-files=all", "--ignored=traditional"];
        for line in git.run(&args, b"")?.stdout.split(|byte| *byte == 0) {
            let Some((state, path)) = line.split_at_checked(3) else { continue };
            let path = join(at, path.strip_suffix(b"/").unwrap_or(path));
            let sort = if state.starts_with(b"!!") { &mut self.ignored } else { &mut self.here };
            sort.insert(path);
        }
        let Some(base) = base.filter(|id| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_hexdigit())) else {
            return Ok(());
        };
        // Unborn, or without a commit that it had: what is there then is what git says above.
        if let Ok(out) = git.run(&["diff-tree", "-r", "-z", "--no-renames", "--name-only", base, "HEAD", "--"], b"") {
            let paths = out.stdout.split(|byte| *byte == 0).filter(|path| !path.is_empty()).map(|path| join(at, path));
            self.here.extend(paths);
        }
        Ok(())
    }
}

/// How much is told of what is walked through.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// Names, sizes and times.
    Names,
    /// Contents too, but no objects.
    Git,
    /// Contents too.
    All,
}

struct Pen<'a, W> {
    tree: &'a Path,
    own: &'a Path,
    question: &'a PictureQuestion,
    out: &'a mut W,
    /// Bytes of contents that may still be sent.
    left: u64,
    drawn: BTreeSet<Vec<u8>>,
}

impl<W: Write> Pen<'_, W> {
    /// Draws a path as it is in the tree now.
    fn now(&mut self, path: &[u8]) -> Result<()> {
        let at = below(self.tree, path);
        match at.symlink_metadata() {
            Ok(facts) if facts.is_dir() => {
                // A repository that git does not look into.
                self.parents(path)?;
                self.entry(path, &at, &facts, false)?;
                let inner = join(path, b".git");
                match below(self.tree, &inner).symlink_metadata() {
                    Ok(facts) => self.entry(&inner, &below(self.tree, &inner), &facts, true),
                    Err(_) => Ok(()),
                }
            }
            Ok(facts) => {
                self.parents(path)?;
                self.entry(path, &at, &facts, true)
            }
            Err(_) => {
                self.parents(path)?;
                self.send(path, PictureKind::Gone, None, 0, Vec::new())
            }
        }
    }

    /// Draws what is below a path: of the upper directory, where nothing is if nothing was changed; of what is wanted
    /// whole, as it is now.
    fn walk(&mut self, top: &[u8], depth: Depth) -> Result<()> {
        let root = if depth == Depth::All && !top.is_empty() { self.tree } else { self.own };
        let mut waiting = vec![top.to_owned()];
        while let Some(path) = waiting.pop() {
            let at = below(root, &path);
            let Ok(facts) = at.symlink_metadata() else { continue };
            if !path.is_empty() {
                self.parents(&path)?;
                self.entry(&path, &at, &facts, depth != Depth::Names)?;
            }
            let objects = depth == Depth::Git && path.ends_with(b"/objects");
            if !facts.is_dir() || objects {
                continue;
            }
            let names = fs::read_dir(&at).into_iter().flatten().flatten();
            let mut names: Vec<Vec<u8>> = names.map(|entry| join(&path, entry.file_name().as_bytes())).collect();
            names.sort();
            waiting.extend(names.into_iter().rev());
        }
        Ok(())
    }

    /// Draws the directories above a path. One that is none is what changed, and is drawn by itself.
    fn parents(&mut self, path: &[u8]) -> Result<()> {
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(n, _)| n);
        for end in slashes.collect::<Vec<_>>() {
            let parent = &path[..end];
            let mode = below(self.tree, parent).symlink_metadata().map_or(0o755, |facts| facts.mode());
            if !self.drawn.contains(parent) {
                self.send(parent, PictureKind::Directory, None, mode, Vec::new())?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &[u8], at: &Path, facts: &fs::Metadata, contents: bool) -> Result<()> {
        let kind = facts.file_type();
        if kind.is_dir() {
            return self.send(path, PictureKind::Directory, Some(facts), facts.mode(), Vec::new());
        }
        if kind.is_symlink() {
            let target = fs::read_link(at).map(|to| to.into_os_string().into_vec()).unwrap_or_default();
            return self.send(path, PictureKind::Link, Some(facts), facts.mode(), target);
        }
        if kind.is_char_device() && facts.rdev() == 0 {
            return self.send(path, PictureKind::Gone, None, 0, Vec::new());
        }
        if !kind.is_file() {
            return self.send(path, PictureKind::Other, Some(facts), facts.mode(), Vec::new());
        }
        if !contents {
            return self.send(path, PictureKind::File, Some(facts), facts.mode(), Vec::new());
        }
        let mut data = Vec::new();
        let read = match facts.len() <= self.question.file_bytes.min(self.left) {
            true => fs::File::open(at).and_then(|file| file.take(facts.len()).read_to_end(&mut data)).is_ok(),
            false => false,
        };
        if !read || data.len() as u64 != facts.len() {
            // Not as a file of zeros: that it changed is told, and nobody takes that for its contents.
            return self.send(path, PictureKind::Other, Some(facts), facts.mode(), Vec::new());
        }
        self.left -= data.len() as u64;
        self.send(path, PictureKind::File, Some(facts), facts.mode(), data)
    }

    fn send(
        &mut self,
        path: &[u8],
        kind: PictureKind,
        facts: Option<&fs::Metadata>,
        mode: u32,
        data: Vec<u8>,
    ) -> Result<()> {
        if !self.drawn.insert(path.to_owned()) {
            return Ok(());
        }
        let mtime = facts.map_or((0, 0), |facts| (facts.mtime(), facts.mtime_nsec() as u32));
        let size = facts.filter(|facts| facts.is_file()).map_or(0, fs::Metadata::len);
        let entry = PictureEntry { path: path.to_owned(), kind, mode, mtime, size, data };
        entry.write(self.out).map_err(PictureError::Write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_protocol::{escape_bytes, read_entry};
    use std::process::Command;

    /// The lines of a picture of a tree whose whole content is its own.
    fn drawn(tree: &Path, own: &Path, question: PictureQuestion) -> Vec<String> {
        let question = PictureQuestion {
            tree: escape_bytes(tree.as_os_str().as_bytes()),
            seconds: 60,
            file_bytes: 100,
            total_bytes: 1000,
            ..question
        };
        let mut bytes = Vec::new();
        draw(&question, own, false, &mut bytes).unwrap();
        let mut rest = &bytes[..];
        let mut lines = Vec::new();
        while let Some(entry) = read_entry(&mut rest).unwrap() {
            let path = String::from_utf8_lossy(&entry.path).into_owned();
            if !path.starts_with(".git/") {
                let data = String::from_utf8_lossy(&entry.data).into_owned();
                lines.push(format!("{:?} {path} {} {data}", entry.kind, entry.size).trim_end().to_owned());
            }
        }
        lines
    }

    #[test]
    fn only_the_nursery_may_be_beside_whoever_draws() {
        let seen = |others: &[(u32, &str, u32, &str)]| {
            let dir = tempfile::tempdir().unwrap();
            let base = [(1, "S", 0, "agent"), (2, "S", 1, "agent"), (7, "S", 1, "sh"), (9, "R", 7, "draw")];
            for (pid, state, parent, words) in base.iter().chain(others) {
                let at = dir.path().join(pid.to_string());
                fs::create_dir(&at).unwrap();
                fs::write(at.join("stat"), format!("{pid} (a) S 5 (b) {state} {parent} 1 1\n")).unwrap();
                fs::write(at.join("cmdline"), format!("{words}\0")).unwrap();
            }
            fs::create_dir(dir.path().join("self")).unwrap();
            alone(dir.path(), 9)
        };
        assert!(seen(&[]));
        assert!(seen(&[(11, "Z", 1, "")]), "it has ended");
        assert!(!seen(&[(11, "S", 1, "sleep")]));
        assert!(!seen(&[(11, "S", 1, "agent")]), "there is one nursery");
        assert!(!seen(&[(11, "S", 7, "sleep")]) && !seen(&[(11, "T", 2, "agent")]));
        assert!(!alone(Path::new("/nowhere"), 9));
    }

    #[test]
    fn what_git_would_commit_has_contents_and_what_it_ignores_has_names() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path();
        let git = |args: &[&str]| {
            let id = ["-c", "user.name=x", "-c", "user.email=x@x", "-c", "init.defaultBranch=m"];
            let out = Command::new("git").current_dir(tree).args(id).args(args).output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            String::from_utf8_lossy(&out.stdout).trim().to_owned()
        };
        git(&["init", "-q"]);
        for (name, text) in [("kept", "k"), ("changed", "old"), ("gone", "g"), (".gitignore", "*.o\nout/\n")] {
            fs::write(tree.join(name), text).unwrap();
        }
        git(&["add", "-A"]);
        git(&["commit", "-qm", "1"]);
        let base = git(&["rev-parse", "HEAD"]);
        fs::write(tree.join("landed"), "l").unwrap();
        git(&["add", "landed"]);
        git(&["commit", "-qm", "2"]);
        fs::write(tree.join("changed"), "new").unwrap();
        fs::remove_file(tree.join("gone")).unwrap();
        fs::create_dir_all(tree.join("out/deep")).unwrap();
        fs::write(tree.join("out/deep/a.o"), "object").unwrap();
        fs::create_dir(tree.join("src")).unwrap();
        fs::write(tree.join("src/new"), "n").unwrap();
        fs::write(tree.join("src/large"), "x".repeat(101)).unwrap();
        std::os::unix::fs::symlink("/etc", tree.join("src/link")).unwrap();
        git(&["init", "-q", "inner"]);
        let question = || PictureQuestion { repos: vec![(String::new(), Some(base.clone()))], ..Default::default() };
        let expected = [
            "File changed 3 new",
            "Gone gone 0",
            "Directory inner 0",
            "Directory inner/.git 0",
            "File landed 1 l",
            "Directory src 0",
            "Other src/large 101",
            "Link src/link 0 /etc",
            "File src/new 1 n",
            "Directory .git 0",
            "Directory out 0",
            "Directory out/deep 0",
            "File out/deep/a.o 6",
        ];
        assert_eq!(drawn(tree, tree, question()), expected);
        let whole = PictureQuestion { whole: vec!["out/deep".into()], ..PictureQuestion::default() };
        assert_eq!(drawn(tree, tree, whole), ["Directory out 0", "Directory out/deep 0", "File out/deep/a.o 6 object"]);
        // Git does not tell: all that was written, with nothing that git would ignore.
        fs::write(tree.join(".git/index"), "no index").unwrap();
        let told = drawn(tree, tree, question());
        for line in ["File changed 3 new", "File src/new 1 n", "File out/deep/a.o 6 object", "Other src/large 101"] {
            assert!(told.iter().any(|told| told == line), "{line}: {told:?}");
        }
    }
}
