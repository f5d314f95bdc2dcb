//! The object database in conversations: one process that reads, one that writes blobs, one that writes
//! commits, however many objects there are. They begin when they are needed and end when a plan is made.
//!
//! ```text
//!   cat-file --batch-command       commits and blobs
//!   diff-tree --stdin              what differs between two trees
//!   hash-object --stdin-paths      a blob, a commit: its bytes wait in a scratch file
//! ```

use crate::attributes::Attributes;
use crate::error::MergeError;
use crate::objects::Difference;
use crate::path::RepoPath;
use crate::plan::Identity;
use crate::repo::{Repo, parse_oid};
use crate::run::{Talk, unexpected};
use sandbox_git::Oid;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;

/// What is said at the end of an answer.
const END: &str = "end";

/// The conversations of one repository.
#[derive(Default)]
pub(crate) struct Database {
    reader: RefCell<Option<Talk>>,
    differ: RefCell<Option<Talk>>,
    blobs: RefCell<Option<Talk>>,
    commits: RefCell<Option<Talk>>,
    /// Commits that were made here, in the order in which they were made.
    made: RefCell<Vec<Oid>>,
    /// Attributes of paths on the host, as they were when what is being planned began.
    pub(crate) attributes: RefCell<BTreeMap<RepoPath, Attributes>>,
    /// Whoever works with it.
    users: Cell<usize>,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").field("made", &self.made).finish_non_exhaustive()
    }
}

/// Ends the conversations when the last of those who need them is done: a process that is about to launch
/// something has no helpers running.
pub(crate) struct Resting<'r>(&'r Repo);

impl Drop for Resting<'_> {
    fn drop(&mut self) {
        let database = self.0.database();
        database.users.set(database.users.get() - 1);
        if database.users.get() == 0 {
            database.rest();
        }
    }
}

impl Database {
    fn rest(&self) {
        for talk in [&self.reader, &self.differ, &self.blobs, &self.commits] {
            talk.take();
        }
    }
}

/// A commit as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub tree: Oid,
    pub parents: Vec<Oid>,
    /// `name <address> seconds zone`
    pub author: Vec<u8>,
    /// The same of who committed it.
    pub committer: Vec<u8>,
    /// Its text is in another encoding than UTF-8.
    pub encoded: bool,
    pub message: Vec<u8>,
}

impl Stored {
    fn parse(content: &[u8]) -> Option<Self> {
        let end = content.windows(2).position(|two| two == b"\n\n").unwrap_or(content.len());
        let (head, message) = (&content[..end], content.get(end + 2..).unwrap_or_default());
        let (mut tree, mut parents, mut author, mut committer, mut encoded) = (None, Vec::new(), None, None, false);
        for line in head.split(|b| *b == b'\n') {
            let space = line.iter().position(|b| *b == b' ')?;
            let value = &line[space + 1..];
            match &line[..space] {
                b"tree" => tree = Oid::parse(value),
                b"parent" => parents.push(Oid::parse(value)?),
                b"author" => author = Some(value.to_vec()),
                b"committer" => committer = Some(value.to_vec()),
                b"encoding" => encoded = !value.eq_ignore_ascii_case(b"utf-8"),
                // A signature, and the lines that go on with it.
                _ => {}
            }
        }
        Some(Self { tree: tree?, parents, author: author?, committer: committer?, encoded, message: message.to_vec() })
    }

    /// Its bytes, without a signature.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = format!("tree {}\n", self.tree).into_bytes();
        out.extend(self.parents.iter().flat_map(|parent| format!("parent {parent}\n").into_bytes()));
        for (role, who) in [(&b"author "[..], &self.author), (b"committer ", &self.committer)] {
            out.extend([role, who, b"\n"].concat());
        }
        out.push(b'\n');
        out.extend_from_slice(&self.message);
        out
    }
}

impl Repo {
    /// Lets the conversations go on until the returned value is dropped.
    pub(crate) fn working(&self) -> Resting<'_> {
        let users = &self.database().users;
        users.set(users.get() + 1);
        Resting(self)
    }

    /// Lets the conversations go on from a plan to its application, until this is dropped: for a caller that starts
    /// nothing in between that could outlive it.
    pub fn keep_talking(&self) {
        let users = &self.database().users;
        users.set(users.get() + 1);
    }

    /// Ends the conversations until the next question: what is about to be started, and waits for a person, has no
    /// helpers of ours beside it.
    pub(crate) fn hush(&self) {
        self.database().rest();
    }

    /// Returns what differs between two trees, in git's order.
    pub(crate) fn diff_trees(&self, old: Oid, new: Oid) -> Result<Vec<Difference>, MergeError> {
        let mut talk = self.database().differ.borrow_mut();
        if talk.is_none() {
            let args = ["diff-tree", "--stdin", "-r", "-z", "--raw", "--no-renames", "--no-abbrev"];
            *talk = Some(Talk::start(self.pure().args(args))?);
        }
        let differ = talk.as_mut().expect("it was just started");
        // A line that is no id is said again, which is what gitk knows the end of an answer by.
        differ.send(format!("{old} {new}\n{END}\n").as_bytes())?;
        let mut all = Vec::new();
        loop {
            match differ.peek()? {
                b':' => {
                    let meta = differ.field()?;
                    all.push(Difference::parse(&meta, &differ.field()?)?);
                }
                _ => match differ.line()?.as_str() {
                    END => return Ok(all),
                    header if header == format!("{old} {new}") => {}
                    other => return Err(unexpected("git diff-tree", other.as_bytes()).into()),
                },
            }
        }
    }

    /// The tree that a name leads to.
    pub(crate) fn tree_named(&self, name: &str) -> Result<Oid, MergeError> {
        let found = self.ask(&format!("info {name}^{{tree}}\n"), |_, id, _, _| Ok(id))?;
        found.ok_or_else(|| unexpected("git cat-file", name.as_bytes()).into())
    }

    /// Reads an object by any name: its id, its type and its bytes; `None` if there is none.
    pub(crate) fn object(&self, name: &str) -> Result<Option<(Oid, String, Vec<u8>)>, MergeError> {
        self.ask(&format!("contents {name}\n"), |reader, id, kind, size| {
            let size = usize::try_from(size).map_err(|_| unexpected("git cat-file", b"a size"))?;
            let mut content = vec![0; size + 1];
            reader.stdout.read_exact(&mut content).map_err(|_| unexpected("git cat-file", b"a short object"))?;
            content.truncate(size);
            Ok((id, kind, content))
        })
    }

    /// The size of an object in bytes; `None` if there is none.
    pub(crate) fn object_size(&self, name: &str) -> Result<Option<u64>, MergeError> {
        self.ask(&format!("info {name}\n"), |_, _, _, size| Ok(size))
    }

    fn ask<T>(
        &self,
        line: &str,
        read: impl FnOnce(&mut Talk, Oid, String, u64) -> Result<T, MergeError>,
    ) -> Result<Option<T>, MergeError> {
        let mut talk = self.database().reader.borrow_mut();
        if talk.is_none() {
            *talk = Some(Talk::start(self.pure().args(["cat-file", "--batch-command"]))?);
        }
        let reader = talk.as_mut().expect("it was just started");
        reader.send(line.as_bytes())?;
        let header = reader.line()?;
        if header.ends_with(" missing") {
            return Ok(None);
        }
        // `<id> <kind> <size>`
        let bad = || MergeError::from(unexpected("git cat-file", header.as_bytes()));
        let words: Vec<&str> = header.split(' ').collect();
        let [id, kind, size] = words[..] else { return Err(bad()) };
        let size = size.parse().map_err(|_| bad())?;
        read(reader, parse_oid(id)?, kind.to_owned(), size).map(Some)
    }

    /// Reads a commit.
    pub(crate) fn commit(&self, id: Oid) -> Result<Stored, MergeError> {
        let bad = || MergeError::from(unexpected("git cat-file", id.to_string().as_bytes()));
        match self.object(&id.to_string())? {
            Some((_, kind, content)) if kind == "commit" => Stored::parse(&content).ok_or_else(bad),
            _ => Err(bad()),
        }
    }

    /// The tree of a commit; without one, the empty tree.
    pub(crate) fn tree(&self, commit: Option<Oid>) -> Result<Oid, MergeError> {
        commit.map_or_else(|| Ok(self.format().empty_tree()), |commit| Ok(self.commit(commit)?.tree))
    }

    /// Writes a blob.
    pub(crate) fn write_blob(&self, content: &[u8]) -> Result<Oid, MergeError> {
        self.hash(&self.database().blobs, "blob", content)
    }

    /// Writes a commit. Git checks its form.
    pub(crate) fn write_commit(&self, commit: &Stored) -> Result<Oid, MergeError> {
        let id = self.hash(&self.database().commits, "commit", &commit.bytes())?;
        self.note_made(id);
        Ok(id)
    }

    /// Remembers a commit that was made here.
    pub(crate) fn note_made(&self, id: Oid) {
        self.database().made.borrow_mut().push(id);
    }

    /// The commits that were made here and that `tip` reaches, parents before children.
    pub(crate) fn made_for(&self, tip: Oid) -> Result<Vec<Oid>, MergeError> {
        let made = self.database().made.borrow().clone();
        let all: BTreeSet<Oid> = made.iter().copied().collect();
        let (mut reached, mut todo) = (BTreeSet::new(), vec![tip]);
        while let Some(id) = todo.pop() {
            if all.contains(&id) && reached.insert(id) {
                todo.extend(self.commit(id)?.parents);
            }
        }
        let mut order: Vec<Oid> = Vec::new();
        for id in made {
            if reached.remove(&id) {
                order.push(id);
            }
        }
        Ok(order)
    }

    fn hash(&self, talk: &RefCell<Option<Talk>>, kind: &str, content: &[u8]) -> Result<Oid, MergeError> {
        let path = self.temp_path(&format!("{kind}.new"));
        fs::write(&path, content).map_err(MergeError::io("write", &path))?;
        let mut talk = talk.borrow_mut();
        if talk.is_none() {
            let args = ["hash-object", "-w", "-t", kind, "--no-filters", "--stdin-paths"];
            *talk = Some(Talk::start(self.pure().args(args))?);
        }
        let writer = talk.as_mut().expect("it was just started");
        // Quoted as git does it: a path may begin with a quote.
        writer.send(&[quoted(path.as_os_str()), b"\n".to_vec()].concat())?;
        let said = writer.line()?;
        parse_oid(&said)
    }
}

/// A path as `--stdin-paths` reads it.
fn quoted(path: &std::ffi::OsStr) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    let mut out = vec![b'"'];
    for byte in path.as_bytes() {
        match byte {
            b'"' | b'\\' => out.extend([b'\\', *byte]),
            0..=31 | 127.. => out.extend(format!("\\{byte:03o}").into_bytes()),
            _ => out.push(*byte),
        }
    }
    out.push(b'"');
    out
}

impl Identity {
    /// As a commit has it.
    pub(crate) fn line(&self) -> Vec<u8> {
        let date = self.date.as_deref().map(|date| date.strip_prefix('@').unwrap_or(date).to_owned());
        let date = date.unwrap_or_else(|| {
            let now = sandbox_sys::clock::unix_seconds();
            format!("{now} +0000")
        });
        format!("{} <{}> {date}", plain(&self.name), plain(&self.email)).into_bytes()
    }
}

/// A name or an address without what the form of a commit does not allow, as git leaves it out.
fn plain(text: &str) -> String {
    let crud = |c: char| c <= ' ' || ".,:;<>\"\\'".contains(c);
    text.trim_matches(crud).chars().filter(|c| !matches!(c, '\n' | '<' | '>' | '\0')).collect()
}

impl Stored {
    /// The message as text; bytes that are not UTF-8 are replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.message).into_owned()
    }

    /// A commit that is to be written.
    pub fn new(tree: Oid, parents: &[Oid], message: &str, author: Vec<u8>, committer: &Identity) -> Self {
        let message = format!("{}\n", message.trim_end()).into_bytes();
        let committer = committer.line();
        Self { tree, parents: parents.to_vec(), author, committer, encoded: false, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_read_and_written() {
        let id = "d3a0ac4db630f50359a9722e6ae403db088a6538";
        let text = format!(
            "tree {id}\nparent {id}\nauthor A <a@b> 1 +0200\ncommitter C <c@d> 2 +0000\ngpgsig -----BEGIN\n \n x\n -----END\n\nOne\n\nBody\n"
        );
        let commit = Stored::parse(text.as_bytes()).unwrap();
        assert_eq!((commit.parents.len(), commit.text().as_str(), commit.encoded), (1, "One\n\nBody\n", false));
        let plain = text.replace("gpgsig -----BEGIN\n \n x\n -----END\n", "");
        assert_eq!(String::from_utf8(commit.bytes()).unwrap(), plain);
        let latin = text.replace("gpgsig", "encoding latin1\ngpgsig");
        assert!(Stored::parse(latin.as_bytes()).unwrap().encoded);
        assert_eq!(Stored::parse(b"tree x\n"), None);
    }

    #[test]
    fn names_are_written_as_git_writes_them() {
        let who = Identity { name: " \"A <B>. ".into(), email: "<a@b>\n".into(), date: Some("@5 +0100".into()) };
        assert_eq!(String::from_utf8(who.line()).unwrap(), "A B <a@b> 5 +0100");
        assert_eq!(quoted(std::ffi::OsStr::new("/a\"b\n")), b"\"/a\\\"b\\012\"");
    }
}
