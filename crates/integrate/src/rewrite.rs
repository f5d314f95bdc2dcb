//! Histories beside each other: several tips in one picture, and a branch with what it was before.

use crate::error::MergeError;
use crate::inspect::{common_of, merge_base};
use crate::repo::{Repo, parse_oid};
use crate::run::{Answer, unexpected};
use sandbox_git::{GitCommand, Oid};
use serde::Serialize;

/// A line of a picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphLine {
    /// Stars and lines, with a blank at the end.
    pub drawing: String,
    /// The commit that the line is of.
    pub commit: Option<GraphCommit>,
}

/// What a picture tells of a commit. All text is as it was written: escape it before it meets a terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphCommit {
    /// Its id.
    pub id: Oid,
    /// Author's name.
    pub author: String,
    /// When it was committed, Unix seconds.
    pub committed: i64,
    /// First paragraph on one line.
    pub subject: String,
}

/// Draws the histories of tips, down to the commit that all of them have.
pub fn graph(repo: &Repo, tips: &[Oid], limit: Option<u32>) -> Result<Vec<GraphLine>, MergeError> {
    let names: Vec<String> = tips.iter().map(Oid::to_string).collect();
    let common = common_of(repo, &names)?;
    let format = "--format=%x01%H%x01%an%x01%ct%x01%s";
    let mut git = repo.pure().args(["log", "--graph", "--no-color", "--no-show-signature", "--no-mailmap"]);
    git = git.args(["--no-notes", "--no-decorate", format]);
    if let Some(limit) = limit {
        git = git.arg(format!("--max-count={limit}"));
    }
    git = git.args(&names);
    if let Some(common) = common {
        // With that one, and without what is before.
        git = git.args(["--not", &format!("{common}^@"), "--not", &common]);
    }
    let output = git.arg("--").output()?.stdout;
    String::from_utf8_lossy(&output).lines().map(|line| parse(line).ok_or_else(|| bad("git log", line))).collect()
}

fn bad(command: &str, line: &str) -> MergeError {
    unexpected(command, line.as_bytes()).into()
}

fn parse(line: &str) -> Option<GraphLine> {
    let Some((drawing, rest)) = line.split_once('\u{1}') else {
        return Some(GraphLine { drawing: line.to_owned(), commit: None });
    };
    let mut fields = rest.splitn(4, '\u{1}');
    let (id, author, committed, subject) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let commit = GraphCommit {
        id: Oid::parse(id)?,
        author: author.to_owned(),
        committed: committed.parse().ok()?,
        subject: subject.to_owned(),
    };
    Some(GraphLine { drawing: drawing.to_owned(), commit: Some(commit) })
}

/// The commits that a ref was at before, the newest first, each once.
pub fn former(repo: &Repo, reference: &str) -> Result<Vec<Oid>, MergeError> {
    let args = ["log", "-g", "--no-show-signature", "--no-notes", "--format=%H", reference, "--"];
    let answer = Answer::of(repo.host().args(args))?;
    if answer.code() != Some(0) {
        return Err(answer.failed().into());
    }
    let mut all: Vec<Oid> = Vec::new();
    for line in String::from_utf8_lossy(&answer.stdout()).lines() {
        let id = parse_oid(line)?;
        if !all.contains(&id) {
            all.push(id);
        }
    }
    Ok(all)
}

/// The newest of the former tips that the present one does not have.
pub fn rewritten(repo: &Repo, former: &[Oid], tip: Oid) -> Result<Option<Oid>, MergeError> {
    for old in former {
        if merge_base(repo, *old, tip)? != Some(*old) {
            return Ok(Some(*old));
        }
    }
    Ok(None)
}

/// What became of a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Counterpart {
    /// `unchanged`, `changed`, `gone` or `new`.
    pub how: Became,
    /// It, in the version before.
    pub old: Option<Oid>,
    /// It now.
    pub new: Option<Oid>,
    /// First paragraph of its message.
    pub subject: String,
}

/// What can become of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Became {
    /// The same change with the same message.
    Unchanged,
    /// Another change or message.
    Changed,
    /// There is none like it any more.
    Gone,
    /// There was none like it.
    New,
}

/// Compares two versions of a branch commit by commit. `base` is where the sandbox began.
pub fn range_diff(repo: &Repo, base: Option<Oid>, old: Oid, new: Oid) -> Result<Vec<Counterpart>, MergeError> {
    // Whole ids: `--abbrev` has no say in git 2.39, `core.abbrev` has.
    let output = command(repo, base, old, new, &["--no-patch", "--abbrev=64"])?.output()?.stdout;
    let text = String::from_utf8_lossy(&output);
    text.lines().map(|line| counterpart(line).ok_or_else(|| bad("git range-diff", line))).collect()
}

/// The same as git prints it, with the differences between patches: bytes that are not safe for a terminal.
pub fn range_diff_text(repo: &Repo, base: Option<Oid>, old: Oid, new: Oid) -> Result<Vec<u8>, MergeError> {
    Ok(command(repo, base, old, new, &[])?.output()?.stdout)
}

fn command(repo: &Repo, base: Option<Oid>, old: Oid, new: Oid, more: &[&str]) -> Result<GitCommand, MergeError> {
    // What the sandbox took over from the branch here is not its own.
    let head = repo.head()?.commit;
    let range = |tip: Oid| -> Result<String, MergeError> {
        let here = match head {
            Some(head) => merge_base(repo, head, tip)?.filter(|common| *common != tip),
            None => None,
        };
        Ok(match here.or(base) {
            Some(from) => format!("{from}..{tip}"),
            None => tip.to_string(),
        })
    };
    let git = if more.is_empty() { repo.pure() } else { repo.pure().config("core.abbrev=no") };
    let git = git.args(["range-diff", "--no-color", "--no-ext-diff", "--no-textconv"]).args(more);
    Ok(git.args([range(old)?, range(new)?]))
}

/// `1:  <id> = 1:  <id> subject`; what there is not is `-:  -----`.
fn counterpart(line: &str) -> Option<Counterpart> {
    let mut rest = line;
    let mut word = || -> Option<&str> {
        rest = rest.trim_start();
        let end = rest.find(' ').unwrap_or(rest.len());
        let word = &rest[..end];
        rest = &rest[end..];
        Some(word).filter(|word| !word.is_empty())
    };
    let (_, old, how, _, new) = (word()?, word()?, word()?, word()?, word()?);
    let id = |word: &str| if word.starts_with('-') { Some(None) } else { Oid::parse(word).map(Some) };
    let how = match how {
        "=" => Became::Unchanged,
        "!" => Became::Changed,
        "<" => Became::Gone,
        ">" => Became::New,
        _ => return None,
    };
    Some(Counterpart { how, old: id(old)?, new: id(new)?, subject: rest.trim_start().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_read_as_git_writes_them() {
        let id = "d3a0ac4db630f50359a9722e6ae403db088a6538";
        let none = "-".repeat(40);
        let parse = |line: &str| counterpart(line).map(|found| (found.how, found.old, found.new, found.subject));
        let some = Oid::parse(id);
        assert_eq!(parse(&format!("1:  {id} ! 2:  {id} A b")), Some((Became::Changed, some, some, "A b".into())));
        assert_eq!(parse(&format!("-:  {none} > 10:  {id} N")), Some((Became::New, None, some, "N".into())));
        assert_eq!(parse("x"), None);
        assert_eq!(super::parse("|/").unwrap().commit, None);
        let line = super::parse(&format!("* | \u{1}{id}\u{1}A\u{1}5\u{1}s\u{1}t")).unwrap();
        assert_eq!((line.drawing.as_str(), line.commit.unwrap().subject.as_str()), ("* | ", "s\u{1}t"));
    }
}
