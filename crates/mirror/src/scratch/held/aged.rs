//! What time does to sessions' repositories: one that nobody pushes to goes (`scratch.ttl`), and one that stays keeps
//! what it borrows from the mirror below, when that is about to be lost there.
//!
//! ```text
//! mirrors/<stem>.git ◄── borrows ── scratch/<stem>/<session>.git ◄── settle: its own pack of what it reaches
//!      full repack: what no ref                                              and no ref of the mirror does
//!      of the mirror has goes
//! ```

use super::{HeldError, Holdings, Isolation, PREFIX, Place, io_error, last_push, read};
use crate::identity::SessionId;
use crate::name::RepoName;
use crate::repo::MirrorRepo;
use sandbox_git::Oid;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A session's refs that went since nobody had pushed to them for as long as they are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expired {
    /// Whose they were.
    pub session: SessionId,
    /// How many.
    pub refs: usize,
    /// Somebody had all of them.
    pub saved: bool,
}

impl Holdings {
    /// Takes away the sessions' repositories that nobody pushed to for `ttl`. With [`Isolation::Repo`] nothing goes:
    /// there nobody knows when something was pushed.
    pub fn expire(&self, repo: &RepoName, ttl: Duration, now: SystemTime) -> Result<Vec<Expired>, HeldError> {
        let mut expired = Vec::new();
        for (session, dir) in self.own(repo)? {
            let refs = read(&self.git, &dir, &format!("{PREFIX}{session}"))?;
            // After the refs were read: a push since then is seen when they are compared.
            let last = last_push(&dir).map_err(io_error(&dir))?;
            if !now.duration_since(last).is_ok_and(|age| age >= ttl) {
                continue;
            }
            let place = Place { dir, isolation: Isolation::Session, session: session.clone(), refs };
            let saved = place.told(repo)?.saved;
            match self.remove_own(repo, &place) {
                Ok(()) => expired.push(Expired { session, refs: place.refs.len(), saved }),
                Err(HeldError::Changed { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(expired)
    }

    /// Gives each session's repository its own copy of what it stands on and no ref of the mirror has (any more):
    /// who prunes a mirror does not look into the repositories that borrow from it. Returns how many objects that were.
    pub fn settle(&self, repo: &RepoName) -> Result<usize, HeldError> {
        let own = self.own(repo)?;
        let mirror = self.layout.mirror(repo);
        if own.is_empty() || !mirror.join("HEAD").exists() {
            return Ok(0);
        }
        let ids = |dir: &Path| -> Result<BTreeSet<Oid>, HeldError> {
            let out = MirrorRepo::at(dir).git(&self.git).args(["for-each-ref", "--format=%(objectname)"]).output()?;
            Ok(out.stdout.split(|byte| *byte == b'\n').filter_map(Oid::parse).collect())
        };
        let stays: String = ids(&mirror)?.iter().map(|oid| format!("^{oid}\n")).collect();
        own.iter().map(|(_, dir)| self.settle_one(dir, &ids(dir)?, &stays)).sum()
    }

    fn settle_one(&self, dir: &Path, tips: &BTreeSet<Oid>, stays: &str) -> Result<usize, HeldError> {
        let git = || MirrorRepo::at(dir).git(&self.git);
        if tips.is_empty() {
            return Ok(0);
        }
        let revs: String = tips.iter().map(|oid| format!("{oid}\n")).collect();
        let mut borrowed = BTreeSet::new();
        let walk = git().args(["rev-list", "--objects", "--no-object-names", "--stdin"]).stdin(revs + stays);
        walk.lines(|line| {
            borrowed.extend(Oid::parse(line));
            ControlFlow::Continue(())
        })?;
        for index in indexes(dir).map_err(io_error(dir))? {
            let mut bytes = Vec::new();
            File::open(&index).and_then(|mut file| file.read_to_end(&mut bytes)).map_err(io_error(&index))?;
            git().args(["show-index"]).stdin(bytes).lines(|line| {
                // `offset oid (crc)`
                let oid = line.split(|byte| *byte == b' ').nth(1).and_then(Oid::parse);
                if let Some(oid) = oid {
                    borrowed.remove(&oid);
                }
                ControlFlow::Continue(())
            })?;
        }
        if !borrowed.is_empty() {
            let list: String = borrowed.iter().map(|oid| format!("{oid}\n")).collect();
            let pack = dir.join("objects/pack/pack");
            git().args(["pack-objects", "-q"]).arg(pack).stdin(list).run()?;
        }
        Ok(borrowed.len())
    }

    /// The sessions' own repositories over a mirror, with refs or without.
    pub(super) fn own(&self, repo: &RepoName) -> Result<Vec<(SessionId, PathBuf)>, HeldError> {
        let sessions = self.layout.scratch_dir(repo);
        let entries = match std::fs::read_dir(&sessions) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => {
                entries.map_err(io_error(&sessions))?.collect::<Result<Vec<_>, _>>().map_err(io_error(&sessions))?
            }
        };
        let named = |entry: std::fs::DirEntry| {
            let session = entry.file_name().to_str()?.strip_suffix(".git")?.parse().ok()?;
            Some((session, entry.path()))
        };
        Ok(entries.into_iter().filter_map(named).collect())
    }
}

fn indexes(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let pack = std::fs::read_dir(dir.join("objects/pack"))?;
    let paths = pack.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    Ok(paths.into_iter().filter(|path| path.extension().is_some_and(|kind| kind == "idx")).collect())
}
