//! Notes, cut to the commits that are granted: a note on a private commit tells about it.
//!
//! A notes ref is a commit whose tree has one file for each annotated object, named by its id (with
//! slashes in it when there are many). The cut one is made in the vault, without a parent and always
//! the same for the same notes, so that it is the same view again.

use super::GitDirError;
use crate::host_repo::HostRepo;
use sandbox_git::refs::RefStore;
use sandbox_git::{Git, GitError, Oid, RefName, printable};
use std::path::Path;

/// One notes ref of the host.
pub(super) struct Notes {
    /// Its name.
    pub name: RefName,
    /// Its commit on the host.
    pub commit: Oid,
    /// Annotated object and the blob with its note.
    entries: Vec<(Oid, Oid)>,
}

/// Notes that may be shown.
pub(super) struct Cut {
    /// What the ref shall name.
    pub commit: Oid,
    /// Everything that it consists of.
    pub objects: Vec<Oid>,
}

/// Reads all notes refs; none without a vault to cut them in. One process for each.
pub(super) fn read(
    git: &Git,
    host: &HostRepo,
    refs: &RefStore,
    vault: Option<&Path>,
) -> Result<Vec<Notes>, GitDirError> {
    let mut all = Vec::new();
    for name in refs.refs.keys().filter(|name| vault.is_some() && name.strip_prefix("refs/notes/").is_some()) {
        let Some(commit) = refs.resolve(name) else { continue };
        let out = host.read(git).args(["ls-tree", "-r", "-z", "--full-tree"]).arg(commit.to_string()).output()?;
        let entry = |record: &[u8]| {
            let tab = record.iter().position(|b| *b == b'\t')?;
            let blob = Oid::parse(record[..tab].split(|b| *b == b' ').nth(2)?)?;
            let id: Vec<u8> = record[tab + 1..].iter().copied().filter(|b| *b != b'/').collect();
            Some((Oid::parse(id)?, blob))
        };
        let entries = out.stdout.split(|b| *b == 0).filter_map(entry).collect();
        all.push(Notes { name: name.clone(), commit, entries });
    }
    Ok(all)
}

impl Notes {
    /// What is annotated.
    pub fn annotated(&self) -> impl Iterator<Item = Oid> + '_ {
        self.entries.iter().map(|(annotated, _)| *annotated)
    }

    /// Makes the notes of granted objects; `None` when there are none.
    pub fn cut(&self, git: &Git, vault: &Path, granted: impl Fn(&Oid) -> bool) -> Result<Option<Cut>, GitDirError> {
        let kept: Vec<&(Oid, Oid)> = self.entries.iter().filter(|(annotated, _)| granted(annotated)).collect();
        if kept.is_empty() {
            return Ok(None);
        }
        let list: Vec<u8> = kept
            .iter()
            .flat_map(|(annotated, blob)| format!("100644 blob {blob}\t{annotated}\0").into_bytes())
            .collect();
        // The notes themselves are the host's objects: `--missing`.
        let tree = id(git.vault(vault).args(["mktree", "-z", "--missing"]).stdin(list).line()?)?;
        let mut command = git.vault(vault);
        for who in ["AUTHOR", "COMMITTER"] {
            command = command
                .env(format!("GIT_{who}_NAME"), "git-sandbox")
                .env(format!("GIT_{who}_EMAIL"), "git-sandbox@localhost")
                .env(format!("GIT_{who}_DATE"), "@0 +0000");
        }
        let message = "Notes of the granted commits\n";
        let commit = id(command.args(["commit-tree", "-m", message]).arg(tree.to_string()).line()?)?;
        let mut objects: Vec<Oid> = kept.into_iter().map(|(_, blob)| *blob).collect();
        objects.extend([tree, commit]);
        Ok(Some(Cut { commit, objects }))
    }
}

fn id(text: String) -> Result<Oid, GitError> {
    let what = printable(text.as_bytes());
    Oid::parse(text).ok_or(GitError::Unexpected { command: "git mktree".into(), what })
}
