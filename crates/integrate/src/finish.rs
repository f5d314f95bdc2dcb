//! The last touch to commits that were made here, before anything of the host changes: their message, as the user
//! edits it, and a signature with the user's key.
//!
//! ```text
//!   commits that a plan made, parents first ─► message ─► `git commit-tree -S` ─► their children go on from there
//! ```
//!
//! A plan is made without either, so that showing one asks for nothing, and one that is refused costs no passphrase.

use crate::apply::stop;
use crate::database::Stored;
use crate::error::{MergeError, Said};
use crate::plan::{Identity, MergePlan, What};
use crate::repo::{Repo, parse_oid};
use sandbox_git::{Oid, printable};
use std::collections::BTreeMap;

/// With which key commits are signed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signing {
    /// As git's `--gpg-sign=KEY` takes it; `None`: `user.signingKey`, or the committer's.
    pub key: Option<String>,
}

/// What a new message is made from.
#[derive(Clone, Debug)]
pub struct Draft<'a> {
    /// The message as it is.
    pub message: &'a str,
    /// It is a merge: its other parents are the sandboxes' commits.
    pub parents: &'a [Oid],
}

/// What edits a message; `Ok(None)`: nothing shall be committed.
pub type Editor<'a> = &'a mut dyn FnMut(&Draft<'_>) -> std::io::Result<Option<String>>;

/// Gives the commits that a plan made other messages, signatures, or both, and the plan the last of them. Those
/// that came from a sandbox or were there before stay. False: a message came back empty, and the plan is as it was.
///
/// # Errors
///
/// When git cannot sign, or the editor fails. Nothing of the host has changed then.
pub fn finish_commits(
    repo: &Repo,
    plan: &mut MergePlan,
    editor: Option<Editor<'_>>,
    signing: Option<&Signing>,
) -> Result<bool, MergeError> {
    if editor.is_none() && signing.is_none() {
        return Ok(true);
    }
    let _working = repo.working();
    // A message of somebody else stays as it is.
    let mut editor = editor.filter(|_| !matches!(plan.what, What::Rebase { .. } | What::Pick { .. }));
    let mut now: BTreeMap<Oid, Oid> = BTreeMap::new();
    for id in repo.made_for(plan.head.new)? {
        let mut commit = repo.commit(id)?;
        for parent in &mut commit.parents {
            *parent = now.get(parent).copied().unwrap_or(*parent);
        }
        if let Some(edit) = &mut editor {
            stop("finish.edit", repo.gitdir())?;
            let message = commit.text();
            repo.hush();
            let draft = Draft { message: &message, parents: &commit.parents };
            match edit(&draft).map_err(MergeError::io("edit", repo.gitdir()))? {
                Some(message) => commit.message = format!("{}\n", message.trim_end()).into_bytes(),
                None => return Ok(false),
            }
        }
        let new = match signing {
            Some(signing) => {
                stop("finish.sign", repo.gitdir())?;
                signed(repo, &commit, &plan.identity, signing)?
            }
            None => repo.write_commit(&commit)?,
        };
        now.insert(id, new);
    }
    plan.head.new = now.get(&plan.head.new).copied().unwrap_or(plan.head.new);
    Ok(true)
}

/// Writes a commit with a signature: by the user's git and configuration, as `git commit -S` would.
fn signed(repo: &Repo, commit: &Stored, identity: &Identity, signing: &Signing) -> Result<Oid, MergeError> {
    let mut git = repo.host().signing().env("GIT_OBJECT_DIRECTORY", repo.own_objects());
    git = git.config("i18n.commitEncoding=UTF-8");
    let key = signing.key.as_deref().unwrap_or_default();
    git = git.args(["commit-tree", &format!("-S{key}"), &commit.tree.to_string()]);
    for parent in &commit.parents {
        git = git.arg("-p").arg(parent.to_string());
    }
    for (role, line) in [("AUTHOR", &commit.author), ("COMMITTER", &commit.committer)] {
        let (name, email, date) = parts(line).unwrap_or((&identity.name, &identity.email, "@0 +0000".to_owned()));
        git = git.env(format!("GIT_{role}_NAME"), name).env(format!("GIT_{role}_EMAIL"), email);
        git = git.env(format!("GIT_{role}_DATE"), date);
    }
    let (status, output) = git.args(["-F", "-"]).stdin(commit.message.clone()).try_output()?;
    if !status.success() {
        return Err(MergeError::NotSigned { said: Said(telling(&output.stderr)) });
    }
    let id = parse_oid(String::from_utf8_lossy(&output.stdout).trim())?;
    repo.note_made(id);
    Ok(id)
}

/// Name, address and date of `name <address> seconds zone`.
fn parts(line: &[u8]) -> Option<(&str, &str, String)> {
    let line = std::str::from_utf8(line).ok()?;
    let (name, rest) = line.split_once('<')?;
    let (email, date) = rest.split_once('>')?;
    Some((name.trim_end(), email, format!("@{}", date.trim())))
}

/// What tells most of what a program for signatures said: not its protocol, and not who gave up because of it.
fn telling(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines = text.lines().map(|line| line.strip_prefix("error: ").unwrap_or(line).trim());
    let noise = |line: &str| line.is_empty() || line.starts_with("[GNUPG:]") || line.starts_with("fatal: ");
    let lines: Vec<String> = lines.filter(|line| !noise(line)).take(4).map(|line| printable(line.as_bytes())).collect();
    if lines.is_empty() { "no reason was given".to_owned() } else { lines.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_signature_says_why() {
        let said = b"error: gpg failed to sign the data:\ngpg: skipped \"x\": No secret key\n[GNUPG:] INV_SGNR 9 x\n\nfatal: failed to write commit object\n";
        assert_eq!(telling(said), "gpg failed to sign the data:; gpg: skipped \"x\": No secret key");
        assert_eq!(telling(b""), "no reason was given");
        assert_eq!(parts(b"A B <a@b> 5 +0100"), Some(("A B", "a@b", "@5 +0100".to_owned())));
    }
}
