//! One path as the host has it: what is in the working tree, in the form that git stores.

use crate::attributes::Attributes;
use crate::captured::{Captured, Kind};
use crate::eol::{self, Action};
use crate::error::{MergeError, Reason};
use crate::index::{Cached, Staged, Stamp};
use crate::objects::blob_id;
use crate::path::{Entry, Mode, RepoPath};
use crate::paths::Gatherer;
use crate::threeway::{Merged, Side};
use crate::worktree::{Found, Seen, State};
use sandbox_git::Oid;
use std::io::{self, Read};

/// One path as the host has it now.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    pub state: State,
    /// In the form that git stores.
    pub working: Side,
    /// It is stored without any conversion: byte for byte the object of HEAD.
    pub is_raw: bool,
    /// Not in the working tree because of the sparse checkout.
    pub sparse: bool,
    /// A file or symlink above it.
    pub under: Option<RepoPath>,
}

impl<'a> Gatherer<'a, '_, '_> {
    pub fn entry(&self, path: &RepoPath) -> Option<&'a Staged> {
        self.settings.index.entries.get(path)
    }

    /// I; a path that is only announced (`add -N`) has nothing staged.
    pub fn staged(&self, path: &RepoPath) -> Side {
        self.entry(path).filter(|staged| !staged.intent_to_add).map(|staged| staged.entry)
    }

    pub fn attributes(&self, path: &RepoPath) -> Attributes {
        self.settings.now.get(path).cloned().unwrap_or_default()
    }

    fn action(&self, path: &RepoPath) -> Action {
        self.settings.rules.eol(&self.attributes(path))
    }

    /// Line ends that a file is written with: those of the attributes after the merge, as git does.
    pub fn action_then(&self, path: &RepoPath) -> Action {
        match self.settings.then.get(path) {
            Some(then) => self.settings.rules.eol(then),
            None => self.action(path),
        }
    }

    /// Looks at a path of the working tree.
    pub fn local(&mut self, path: &RepoPath, head: Side, next: Side) -> Result<Merged<Local>, MergeError> {
        let found = self.tree.look(path).map_err(MergeError::io("read", path.as_path()))?;
        let mut local = Local { state: found.state(), working: None, is_raw: false, sparse: false, under: None };
        let gitlink = |side: Side| side.is_some_and(|entry| entry.mode == Mode::Gitlink);
        if gitlink(head) || gitlink(next) || gitlink(self.staged(path)) {
            return Ok(self.local_submodule(head, next, local, &found));
        }
        if !self.settings.rules.symlinks && [head, next].iter().flatten().any(|entry| entry.mode == Mode::Symlink) {
            return Ok(Err(Reason::NoSymlinks));
        }
        match found {
            Found::Special => return Ok(Err(Reason::Special)),
            Found::Directory => {}
            Found::Absent { under } => {
                let outside = self.cone.as_ref().is_some_and(|cone| !cone.has(path));
                let skipped = self.entry(path).map(|staged| staged.skip_worktree);
                local.sparse = under.is_none() && skipped.unwrap_or(outside && head.is_none());
                if local.sparse {
                    local.working = self.staged(path);
                }
                local.under = under;
            }
            Found::File(seen) => match self.working(path, seen, head, next)? {
                Ok((working, is_raw)) => (local.working, local.is_raw) = (working, is_raw),
                Err(reason) => return Ok(Err(reason)),
            },
        }
        Ok(Ok(local))
    }

    /// A submodule's directory is never looked into: its commits are its own repository's matter, and
    /// `git submodule update` is the user's.
    fn local_submodule(&self, head: Side, next: Side, mut local: Local, found: &Found) -> Merged<Local> {
        let is_link = |entry: &Entry| entry.mode == Mode::Gitlink;
        if [head, next].iter().flatten().any(|entry| !is_link(entry)) {
            return Err(Reason::TypeChanged);
        }
        match found {
            Found::Directory if head.is_some() => local.working = head,
            // What will be its content is there already, or it is empty.
            Found::Directory => local.working = next,
            Found::Absent { under: None } => local.working = head,
            Found::Absent { under } => local.under = under.clone(),
            Found::File(_) => return Err(Reason::TypeChanged),
            Found::Special => return Err(Reason::Special),
        }
        Ok(local)
    }

    /// A file of the working tree as git would store it, and whether that is what HEAD has, raw.
    fn working(
        &mut self,
        path: &RepoPath,
        seen: Seen,
        head: Side,
        next: Side,
    ) -> Result<Merged<(Side, bool)>, MergeError> {
        if seen.symlink {
            let id = self.objects.remember(seen.bytes);
            return Ok(Ok((Some(Entry { mode: Mode::Symlink, id }), false)));
        }
        let mode = self.file_mode(path, seen.executable, head);
        let raw = blob_id(self.repo().format(), &seen.bytes);
        let is = |side: Side| side.is_some_and(|entry| entry.mode.is_file() && entry.id == raw);
        if is(head) || is(next) {
            return Ok(Ok((Some(Entry { mode, id: raw }), is(head))));
        }
        if let Some(by) = self.conversion(path, &seen.bytes, next)? {
            let clean = self.entry(path).is_some_and(|staged| {
                Some(staged.entry) == head && is_clean(staged.stat, &seen, self.settings.index.stamp)
            });
            // To remove a file it is enough to know that it has no change.
            return Ok(if clean && next.is_none() { Ok((head, false)) } else { Err(Reason::Conversion { by }) });
        }
        let id = self.store_form(path, seen.bytes)?;
        Ok(Ok((Some(Entry { mode, id }), false)))
    }

    fn file_mode(&self, path: &RepoPath, executable: bool, head: Side) -> Mode {
        if self.settings.rules.file_mode {
            return if executable { Mode::Executable } else { Mode::File };
        }
        let known = self.staged(path).or(head).map(|entry| entry.mode);
        known.filter(|mode| mode.is_file()).unwrap_or(Mode::File)
    }

    /// Converts line ends and remembers the result.
    pub fn store_form(&mut self, path: &RepoPath, bytes: Vec<u8>) -> Result<Oid, MergeError> {
        let action = self.action(path);
        let staged = self.staged(path).filter(|entry| entry.mode.is_file());
        let mut failed = None;
        let objects = &mut *self.objects;
        let stored = eol::to_stored(&bytes, action, || {
            let content = staged.map(|entry| objects.read(entry.id)).transpose();
            content.map_err(|error| failed = Some(error)).ok().flatten().is_some_and(|content| eol::has_crlf(&content))
        });
        match failed {
            Some(error) => Err(error),
            None => Ok(self.objects.remember(stored.unwrap_or(bytes))),
        }
    }

    /// A conversion of this path that is not done here.
    pub fn conversion(&mut self, path: &RepoPath, working: &[u8], next: Side) -> Result<Option<String>, MergeError> {
        let attributes = self.attributes(path);
        let objects = &mut *self.objects;
        self.settings.rules.conversion(&attributes, || {
            let has = |bytes: &[u8]| bytes.windows(3).any(|window| window == b"$Id");
            match next {
                Some(next) if next.mode.is_file() => Ok(has(working) || has(&objects.read(next.id)?)),
                _ => Ok(has(working)),
            }
        })
    }

    /// S, as git would store it.
    pub fn captured(&mut self, path: &RepoPath, base: Side) -> Result<Side, MergeError> {
        let Some(captured) = self.inside.captured else { return Ok(base) };
        let read = |captured: &dyn Captured| -> io::Result<_> {
            let Some(mut file) = captured.get(path)? else { return Ok(None) };
            let mut bytes = Vec::new();
            file.content.read_to_end(&mut bytes)?;
            Ok(Some((file.kind, bytes)))
        };
        let file = read(captured).map_err(MergeError::io("read the captured", path.as_path()))?;
        Ok(match file {
            None => None,
            Some((Kind::Symlink, bytes)) => Some(Entry { mode: Mode::Symlink, id: self.objects.remember(bytes) }),
            Some((Kind::File { executable }, bytes)) => {
                let mode = self.file_mode(path, executable, base);
                Some(Entry { mode, id: self.store_form(path, bytes)? })
            }
        })
    }
}

/// Whether the index knows a file to be unchanged.
fn is_clean(cached: Cached, seen: &Seen, index: Option<Stamp>) -> bool {
    let stat = &seen.stat;
    // A file as young as the index may have changed after it was looked at.
    index.is_some_and(|index| cached.mtime < index.mtime)
        && cached == Cached { mtime: stat.mtime, ino: stat.ino as u32, size: stat.size as u32 }
}
