//! Reading a ref store without a process where that is cheap.
//!
//! ```text
//! <git dir>/HEAD, refs/{bisect,worktree,rewritten}/**   of one work tree
//! <common dir>/refs/**, packed-refs                     of all work trees
//! <common dir>/reftable/                                a store that only git reads: `for-each-ref`
//! ```

use crate::command::{Git, GitError};
use crate::oid::Oid;
use crate::refname::RefName;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What a ref holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An object; with what it peels to, when the store says so (annotated tags).
    Direct {
        /// The object.
        oid: Oid,
        /// What an annotated tag finally names.
        peeled: Option<Oid>,
        /// The store said that there is nothing to peel, or what it is.
        peeling_known: bool,
    },
    /// Another ref.
    Symbolic(RefName),
}

/// What `HEAD` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// A branch, which may not exist yet.
    Branch(RefName),
    /// A commit.
    Detached(Oid),
}

/// All refs of a repository as one work tree sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RefStore {
    /// By name, sorted.
    pub refs: BTreeMap<RefName, Target>,
    /// `HEAD`, if it can be read.
    pub head: Option<Head>,
    /// Names that hold nothing readable; git ignores them too.
    pub broken: Vec<String>,
    /// Only git can read this store (reftable).
    pub reftable: bool,
}

/// Refs that belong to one work tree.
const PER_WORKTREE: [&str; 3] = ["refs/bisect", "refs/worktree", "refs/rewritten"];

/// Why refs could not be read.
#[derive(Debug, thiserror::Error)]
pub enum RefsError {
    /// A file could not be read.
    #[error("cannot read '{path}'", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Git could not list them.
    #[error("cannot list the refs")]
    Git(#[from] GitError),
}

impl RefStore {
    /// Reads all refs: from files, or with one `for-each-ref` for a reftable.
    pub fn read(git: &Git, git_dir: &Path, common_dir: &Path) -> Result<Self, RefsError> {
        if common_dir.join("reftable").is_dir() {
            Self::ask(git, git_dir)
        } else {
            Self::read_files(git_dir, common_dir)
        }
    }

    /// Reads loose and packed refs.
    pub fn read_files(git_dir: &Path, common_dir: &Path) -> Result<Self, RefsError> {
        let mut store = Self::default();
        let packed = common_dir.join("packed-refs");
        match fs::read(&packed) {
            Ok(bytes) => store.add_packed(&bytes, |_| true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(RefsError::Io { path: packed, source }),
        }
        store.walk(&common_dir.join("refs"), b"refs", git_dir != common_dir)?;
        if git_dir != common_dir {
            for part in PER_WORKTREE {
                store.walk(&git_dir.join(part), part.as_bytes(), false)?;
            }
        }
        let head = git_dir.join("HEAD");
        match fs::read(&head) {
            Ok(bytes) => store.head = parse_head(&bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(RefsError::Io { path: head, source }),
        }
        Ok(store)
    }

    /// Reads these refs and what is below them, and no `HEAD`: what they cost does not grow with the others, but for
    /// the packed ones, which are looked through.
    pub fn read_below(git: &Git, common_dir: &Path, names: &[&str]) -> Result<Self, RefsError> {
        if common_dir.join("reftable").is_dir() {
            return Self::ask_for(git, common_dir, names);
        }
        let mut store = Self::default();
        let packed = common_dir.join("packed-refs");
        let below = |name: &[u8]| {
            names
                .iter()
                .any(|top| name.strip_prefix(top.as_bytes()).is_some_and(|rest| matches!(rest, [] | [b'/', ..])))
        };
        match fs::read(&packed) {
            Ok(bytes) => store.add_packed(&bytes, below),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(RefsError::Io { path: packed, source }),
        }
        for name in names {
            let path = common_dir.join(name);
            match fs::symlink_metadata(&path) {
                Ok(facts) if facts.is_dir() => store.walk(&path, name.as_bytes(), false)?,
                Ok(_) => store.add_loose(&path, name.as_bytes())?,
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(source) => return Err(RefsError::Io { path, source }),
            }
        }
        Ok(store)
    }

    fn ask(git: &Git, git_dir: &Path) -> Result<Self, RefsError> {
        let mut store = Self::ask_for(git, git_dir, &[])?;
        let (status, symbolic) = git.host(git_dir).args(["symbolic-ref", "-q", "HEAD"]).try_output()?;
        store.head = if status.success() {
            RefName::parse(symbolic.stdout.trim_ascii_end()).map(Head::Branch)
        } else {
            let (_, out) = git.host(git_dir).args(["rev-parse", "-q", "--verify", "HEAD"]).try_output()?;
            Oid::parse(out.stdout.trim_ascii_end()).map(Head::Detached)
        };
        Ok(store)
    }

    /// The refs below these names, or all.
    fn ask_for(git: &Git, git_dir: &Path, names: &[&str]) -> Result<Self, RefsError> {
        let mut store = Self { reftable: true, ..Self::default() };
        let format = "--format=%(objectname) %(objecttype) %(*objectname) %(symref) %(refname)";
        let out = git.host(git_dir).args(["for-each-ref", format]).args(names).output()?;
        for line in out.stdout.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            let mut fields = line.splitn(5, |b| *b == b' ');
            let mut next = || fields.next().unwrap_or_default();
            let (oid, kind, peeled, symref, name) = (next(), next(), next(), next(), next());
            let (Some(name), Some(oid)) = (RefName::parse(name), Oid::parse(oid)) else {
                store.broken.push(crate::printable(name));
                continue;
            };
            let target = match RefName::parse(symref) {
                Some(to) => Target::Symbolic(to),
                None => Target::Direct {
                    oid,
                    peeled: Oid::parse(peeled),
                    peeling_known: kind != b"tag" || !peeled.is_empty(),
                },
            };
            store.refs.insert(name, target);
        }
        Ok(store)
    }

    fn add_packed(&mut self, bytes: &[u8], wanted: impl Fn(&[u8]) -> bool) {
        let mut last: Option<RefName> = None;
        let mut fully = false;
        for line in bytes.split(|b| *b == b'\n') {
            if let Some(header) = line.strip_prefix(b"# pack-refs with:") {
                fully = header.split(|b| *b == b' ').any(|word| word == b"fully-peeled");
            } else if let Some(peeled) = line.strip_prefix(b"^") {
                if let (Some(Target::Direct { peeled: slot, peeling_known, .. }), Some(oid)) =
                    (last.as_ref().and_then(|name| self.refs.get_mut(name)), Oid::parse(peeled))
                {
                    *slot = Some(oid);
                    *peeling_known = true;
                }
            } else if let Some(space) = line.iter().position(|b| *b == b' ') {
                if !wanted(&line[space + 1..]) {
                    last = None;
                    continue;
                }
                let (oid, name) = (Oid::parse(&line[..space]), RefName::parse(&line[space + 1..]));
                match (oid, name) {
                    (Some(oid), Some(name)) => {
                        self.refs.insert(name.clone(), Target::Direct { oid, peeled: None, peeling_known: fully });
                        last = Some(name);
                    }
                    _ => last = None,
                }
            }
        }
    }

    fn walk(&mut self, dir: &Path, prefix: &[u8], skip_per_worktree: bool) -> Result<(), RefsError> {
        let failed = |source| RefsError::Io { path: dir.to_owned(), source };
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(());
            }
            Err(source) => return Err(failed(source)),
        };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let mut name = prefix.to_vec();
            name.push(b'/');
            name.extend_from_slice(entry.file_name().as_bytes());
            if skip_per_worktree && PER_WORKTREE.iter().any(|part| part.as_bytes() == name) {
                continue;
            }
            let path = entry.path();
            let kind = entry.file_type().map_err(failed)?;
            if kind.is_dir() {
                self.walk(&path, &name, skip_per_worktree)?;
                continue;
            }
            self.add_loose(&path, &name)?;
        }
        Ok(())
    }

    fn add_loose(&mut self, path: &Path, name: &[u8]) -> Result<(), RefsError> {
        if name.ends_with(b".lock") {
            return Ok(());
        }
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            // Deleted or turned into a directory meanwhile.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory) => {
                return Ok(());
            }
            Err(source) => return Err(RefsError::Io { path: path.to_owned(), source }),
        };
        let target = match parse_head(&bytes) {
            Some(Head::Branch(to)) => Some(Target::Symbolic(to)),
            // Branches and remote-tracking refs hold commits; elsewhere an annotated tag is possible.
            Some(Head::Detached(oid)) => Some(Target::Direct {
                oid,
                peeled: None,
                peeling_known: name.starts_with(b"refs/heads/") || name.starts_with(b"refs/remotes/"),
            }),
            None => None,
        };
        match (RefName::parse(name), target) {
            (Some(name), Some(target)) => {
                self.refs.insert(name, target);
            }
            _ => self.broken.push(crate::printable(name)),
        }
        Ok(())
    }

    /// Follows a name to its object.
    pub fn resolve(&self, name: &RefName) -> Option<Oid> {
        let mut name = name;
        for _ in 0..5 {
            match self.refs.get(name)? {
                Target::Direct { oid, .. } => return Some(*oid),
                Target::Symbolic(to) => name = to,
            }
        }
        None
    }

    /// The commit of `HEAD`; `None` when it is unborn.
    pub fn head_oid(&self) -> Option<Oid> {
        match self.head.as_ref()? {
            Head::Branch(name) => self.resolve(name),
            Head::Detached(oid) => Some(*oid),
        }
    }

    /// The branch that `HEAD` names, born or not.
    pub fn head_branch(&self) -> Option<&RefName> {
        match self.head.as_ref()? {
            Head::Branch(name) => Some(name),
            Head::Detached(_) => None,
        }
    }
}

/// Reads `HEAD` and the commit that it names (`None`: the branch is unborn) from files alone. `None` as a whole where
/// only git can say: a reftable, a link as `HEAD`, a branch that names another, bytes that are neither.
pub fn read_head(git_dir: &Path, common_dir: &Path) -> Option<(Head, Option<Oid>)> {
    let head = git_dir.join("HEAD");
    if common_dir.join("reftable").is_dir() || fs::symlink_metadata(&head).ok()?.is_symlink() {
        return None;
    }
    let name = match parse_head(&fs::read(&head).ok()?)? {
        Head::Detached(oid) => return Some((Head::Detached(oid), Some(oid))),
        Head::Branch(name) => name,
    };
    if !name.as_bytes().starts_with(b"refs/heads/") {
        return None;
    }
    // Git writes a packed ref before it removes the loose one: what is not loose any more is packed by now.
    match fs::read(common_dir.join(OsStr::from_bytes(name.as_bytes()))) {
        Ok(bytes) => match parse_head(&bytes)? {
            Head::Detached(oid) => Some((Head::Branch(name), Some(oid))),
            Head::Branch(_) => None,
        },
        Err(error) if is_absent(&error) => match fs::read(common_dir.join("packed-refs")) {
            Ok(packed) => {
                let oid = packed.split(|b| *b == b'\n').find_map(|line| {
                    let oid = line.strip_suffix(name.as_bytes())?.strip_suffix(b" ")?;
                    Oid::parse(oid)
                });
                Some((Head::Branch(name), oid))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some((Head::Branch(name), None)),
            Err(_) => None,
        },
        Err(_) => None,
    }
}

/// No such file, or a directory in its place or on the way to it.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory)
}

/// Parses `ref: <name>` or an id: the content of `HEAD` and of loose refs.
pub fn parse_head(bytes: &[u8]) -> Option<Head> {
    let line = bytes.split(|b| *b == b'\n').next()?.trim_ascii_end();
    match line.strip_prefix(b"ref:") {
        Some(name) => RefName::parse(name.trim_ascii_start()).map(Head::Branch),
        None => Oid::parse(line).map(Head::Detached),
    }
}

/// Writes refs in the format of `packed-refs`, sorted and fully peeled.
pub fn write_packed<'a>(refs: impl IntoIterator<Item = (&'a RefName, Oid, Option<Oid>)>) -> Vec<u8> {
    let mut refs: Vec<_> = refs.into_iter().collect();
    refs.sort_by(|a, b| a.0.cmp(b.0));
    let mut out = b"# pack-refs with: peeled fully-peeled sorted \n".to_vec();
    for (name, oid, peeled) in refs {
        out.extend_from_slice(format!("{oid} ").as_bytes());
        out.extend_from_slice(name.as_bytes());
        out.push(b'\n');
        if let Some(peeled) = peeled {
            out.extend_from_slice(format!("^{peeled}\n").as_bytes());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "1111111111111111111111111111111111111111";
    const B: &str = "2222222222222222222222222222222222222222";

    #[test]
    fn head_is_read_from_files_or_left_to_git() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let read = || read_head(dir.path(), dir.path());
        let main = || Head::Branch(RefName::parse("refs/heads/a/main").unwrap());
        assert_eq!(read(), None, "no HEAD at all");
        write("HEAD", "ref: refs/heads/a/main\n");
        assert_eq!(read(), Some((main(), None)), "unborn");
        write("packed-refs", &format!("# pack-refs with: peeled \n{B} refs/heads/a/main2\n{A} refs/heads/a/main\n"));
        assert_eq!(read(), Some((main(), Oid::parse(A))));
        fs::create_dir_all(dir.path().join("refs/heads/a/main")).unwrap();
        assert_eq!(read(), Some((main(), Oid::parse(A))), "an empty directory is no ref");
        fs::remove_dir(dir.path().join("refs/heads/a/main")).unwrap();
        write("refs/heads/a/main", &format!("{B}\n"));
        assert_eq!(read(), Some((main(), Oid::parse(B))), "loose before packed");
        for left in ["ref: refs/heads/b\n", "", "zzz\n"] {
            write("refs/heads/a/main", left);
            assert_eq!(read(), None, "{left:?} is left to git");
        }
        write("HEAD", &format!("{A}\n"));
        assert_eq!(read(), Some((Head::Detached(Oid::parse(A).unwrap()), Oid::parse(A))));
        fs::create_dir(dir.path().join("reftable")).unwrap();
        assert_eq!(read(), None);
    }

    #[test]
    fn what_is_below_some_names_is_what_all_refs_have_there() {
        let git = Git::with_program("/no/git".into(), crate::HostEnv::default());
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: String| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let names = ["refs/sandbox/a", "refs/sandbox-meta/a"];
        let read = || RefStore::read_below(&git, dir.path(), &names).unwrap();
        assert!(read().refs.is_empty(), "nothing there at all");
        write(
            "packed-refs",
            format!(
                "# pack-refs with: peeled fully-peeled sorted \n{A} refs/heads/main\n^{B}\n{A} refs/sandbox-meta/a/tags/t\n^{B}\n\
                 {A} refs/sandbox-meta/ab/head\n{A} refs/sandbox/a\n{A} refs/sandbox/ab\n"
            ),
        );
        let both = |wanted: &[&str]| {
            let (some, all) = (read(), RefStore::read_files(dir.path(), dir.path()).unwrap());
            assert_eq!(some.refs.keys().map(RefName::to_string).collect::<Vec<_>>(), wanted);
            assert!(some.refs.iter().all(|(name, target)| all.refs.get(name) == Some(target)));
        };
        both(&["refs/sandbox-meta/a/tags/t", "refs/sandbox/a"]);
        write("refs/sandbox/a", format!("{B}\n"));
        write("refs/sandbox/b", format!("{B}\n"));
        write("refs/sandbox-meta/a/heads/x+/y", format!("{B}\n"));
        write("refs/sandbox-meta/a/heads/z.lock", String::new());
        write("refs/sandbox-meta/b/heads/x", format!("{B}\n"));
        both(&["refs/sandbox-meta/a/heads/x+/y", "refs/sandbox-meta/a/tags/t", "refs/sandbox/a"]);
        assert_eq!(read().resolve(&RefName::parse("refs/sandbox/a").unwrap()).unwrap().to_string(), B, "loose first");
        fs::create_dir(dir.path().join("reftable")).unwrap();
        assert!(RefStore::read_below(&git, dir.path(), &names).is_err(), "only git reads a reftable");
    }

    #[test]
    fn loose_shadows_packed_and_links_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: String| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("HEAD", "ref: refs/heads/main\n".into());
        write(
            "packed-refs",
            format!("# pack-refs with: peeled fully-peeled sorted \n{A} refs/heads/main\n{A} refs/tags/v1\n^{B}\n"),
        );
        write("refs/heads/main", format!("{B}\n"));
        write("refs/remotes/origin/HEAD", "ref: refs/remotes/origin/main\n".into());
        write("refs/remotes/origin/main", format!("{A}\n"));
        write("refs/heads/x.lock", String::new());
        write("refs/heads/bad", "zzz\n".into());
        let store = RefStore::read_files(dir.path(), dir.path()).unwrap();
        assert_eq!(store.head_oid().unwrap().to_string(), B);
        assert_eq!(store.resolve(&RefName::parse("refs/remotes/origin/HEAD").unwrap()).unwrap().to_string(), A);
        assert_eq!(store.broken, ["refs/heads/bad"]);
        assert_eq!(
            store.refs[&RefName::parse("refs/tags/v1").unwrap()],
            Target::Direct { oid: Oid::parse(A).unwrap(), peeled: Oid::parse(B), peeling_known: true }
        );
        assert_eq!(store.refs.len(), 4);
    }
}
