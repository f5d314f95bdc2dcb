//! How a sandbox's tip relates to the host, and what is in it: values for `list`, `log`, `diff` and
//! `merge`. Everything runs in the scratch repository: no attribute, driver, hook or setting is read.

use crate::error::MergeError;
use crate::objects::checked;
use crate::path::RepoPath;
use crate::repo::{Repo, parse_oid};
use crate::run::{Answer, unexpected};
use sandbox_git::Oid;
use serde::Serialize;
use std::collections::BTreeSet;

/// Where a tip stands against a commit of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Relation {
    /// The host has it already.
    Contained,
    /// The host has nothing that it has not.
    FastForward {
        /// Commits of the tip alone.
        ahead: u64,
    },
    /// Each has something of its own.
    Diverged {
        /// Commits of the tip alone.
        ahead: u64,
        /// Commits of the host alone.
        behind: u64,
    },
    /// They have no commit in common.
    Unrelated,
}

/// Compares a tip with a commit of the host (`None`: unborn).
pub fn relation(repo: &Repo, onto: Option<Oid>, tip: Oid) -> Result<Relation, MergeError> {
    let Some(onto) = onto else {
        let count = repo.pure().args(["rev-list", "--count", &tip.to_string()]).line()?;
        return Ok(Relation::FastForward { ahead: number(&count)? });
    };
    if onto == tip {
        return Ok(Relation::Contained);
    }
    let range = format!("{onto}...{tip}");
    let counts = repo.pure().args(["rev-list", "--left-right", "--count", &range]).line()?;
    let (behind, ahead) = counts.split_once('\t').ok_or_else(|| unexpected("git rev-list", counts.as_bytes()))?;
    Ok(match (number(ahead)?, number(behind)?) {
        (0, _) => Relation::Contained,
        (ahead, 0) => Relation::FastForward { ahead },
        (ahead, behind) if merge_base(repo, onto, tip)?.is_some() => Relation::Diverged { ahead, behind },
        _ => Relation::Unrelated,
    })
}

fn number(text: &str) -> Result<u64, MergeError> {
    text.parse().map_err(|_| unexpected("git rev-list", text.as_bytes()).into())
}

/// The newest commit that all of these have; `None`: they have none.
pub(crate) fn common_of(repo: &Repo, commits: &[String]) -> Result<Option<String>, MergeError> {
    let answer = Answer::of(repo.pure().args(["merge-base", "--octopus"]).args(commits))?;
    match answer.code() {
        Some(0) => Ok(Some(answer.line()?)),
        Some(1) => Ok(None),
        _ => Err(answer.failed().into()),
    }
}

/// The best common ancestor.
pub(crate) fn merge_base(repo: &Repo, a: Oid, b: Oid) -> Result<Option<Oid>, MergeError> {
    let answer = Answer::of(repo.pure().args(["merge-base", &a.to_string(), &b.to_string()]))?;
    match answer.code() {
        Some(0) => Ok(Some(parse_oid(&answer.line()?)?)),
        Some(1) => Ok(None),
        _ => Err(answer.failed().into()),
    }
}

/// One commit. All text is as it was written: escape it before it meets a terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Commit {
    /// Its id.
    pub id: Oid,
    /// Its parents.
    pub parents: Vec<Oid>,
    /// Author's name.
    pub author: String,
    /// Author's address.
    pub email: String,
    /// When it was written, Unix seconds.
    pub authored: i64,
    /// When it was committed, Unix seconds.
    pub committed: i64,
    /// First paragraph on one line.
    pub subject: String,
    /// The rest of the message.
    pub body: String,
}

/// Lists the commits of `tip` that `without` has not, the newest first, at most `limit`.
pub fn commits(repo: &Repo, without: Option<Oid>, tip: Oid, limit: Option<u32>) -> Result<Vec<Commit>, MergeError> {
    listed(repo, without, tip, &[], limit)
}

/// Lists those that changed one of the paths.
pub(crate) fn commits_of(
    repo: &Repo,
    without: Oid,
    tip: Oid,
    paths: &[&RepoPath],
    limit: u32,
) -> Result<Vec<Commit>, MergeError> {
    listed(repo, Some(without), tip, paths, Some(limit))
}

fn listed(
    repo: &Repo,
    without: Option<Oid>,
    tip: Oid,
    paths: &[&RepoPath],
    limit: Option<u32>,
) -> Result<Vec<Commit>, MergeError> {
    const FIELDS: usize = 8;
    let format = "--format=%H%x00%P%x00%an%x00%ae%x00%at%x00%ct%x00%s%x00%b";
    let mut git = repo.pure().args(["log", "-z", "--no-show-signature", "--no-mailmap", "--no-notes", format]);
    if let Some(limit) = limit {
        git = git.arg(format!("--max-count={limit}"));
    }
    git = git.arg(tip.to_string());
    if let Some(without) = without {
        git = git.arg(format!("^{without}"));
    }
    let output = git.arg("--").args(paths.iter().map(|path| path.as_path())).output()?.stdout;
    let text = String::from_utf8_lossy(&output);
    let fields: Vec<_> = text.split_terminator('\0').collect();
    let bad = || MergeError::from(unexpected("git log", &output));
    // An empty body of the last commit ends in no field at all.
    let chunks = fields.chunks(FIELDS);
    chunks.map(|f| parse_commit(f).ok_or_else(bad)).collect()
}

fn parse_commit(fields: &[&str]) -> Option<Commit> {
    let (head, body) = match fields {
        [head @ .., body] if fields.len() == 8 => (head, *body),
        head => (head, ""),
    };
    let [id, parents, author, email, authored, committed, subject] = head else { return None };
    Some(Commit {
        id: Oid::parse(id)?,
        parents: parents.split(' ').filter(|p| !p.is_empty()).map(Oid::parse).collect::<Option<_>>()?,
        author: (*author).to_owned(),
        email: (*email).to_owned(),
        authored: authored.parse().ok()?,
        committed: committed.parse().ok()?,
        subject: (*subject).to_owned(),
        body: body.trim_end().to_owned(),
    })
}

/// How much each file changed.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize)]
pub struct DiffStat {
    /// The files, in git's order.
    pub files: Vec<FileStat>,
}

/// How much one file changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileStat {
    /// Its path.
    pub path: RepoPath,
    /// Its former path, if it was renamed.
    pub from: Option<RepoPath>,
    /// Added and deleted lines; `None` for a binary file.
    pub lines: Option<(u64, u64)>,
}

impl DiffStat {
    /// Added lines of all files.
    pub fn added(&self) -> u64 {
        self.files.iter().filter_map(|file| file.lines).map(|(added, _)| added).sum()
    }

    /// Deleted lines of all files.
    pub fn deleted(&self) -> u64 {
        self.files.iter().filter_map(|file| file.lines).map(|(_, deleted)| deleted).sum()
    }

    /// The table that `git diff --stat` prints, names escaped.
    pub fn text(&self) -> String {
        const BAR: u64 = 40;
        let name = |file: &FileStat| match &file.from {
            Some(from) => format!("{from} => {}", file.path),
            None => file.path.to_string(),
        };
        let width = self.files.iter().map(|file| name(file).chars().count()).max().unwrap_or(0);
        let most = self.files.iter().filter_map(|file| file.lines).map(|(a, d)| a + d).max().unwrap_or(0);
        let digits = most.to_string().len().max(3);
        let mut out = String::new();
        for file in &self.files {
            let name = name(file);
            let pad = " ".repeat(width - name.chars().count());
            match file.lines {
                None => out.push_str(&format!(" {name}{pad} | {:>digits$}\n", "Bin")),
                Some((added, deleted)) => {
                    let scale = |n: u64| if most <= BAR { n } else { (n * BAR).div_ceil(most) } as usize;
                    let bar = "+".repeat(scale(added)) + &"-".repeat(scale(deleted));
                    let line = format!(" {name}{pad} | {:>digits$} {bar}", added + deleted);
                    out.push_str(line.trim_end());
                    out.push('\n');
                }
            }
        }
        let plural = |n: u64| if n == 1 { "" } else { "s" };
        let count = self.files.len() as u64;
        out.push_str(&format!(" {count} file{} changed", plural(count)));
        let (added, deleted) = (self.added(), self.deleted());
        if added > 0 || deleted == 0 {
            out.push_str(&format!(", {added} insertion{}(+)", plural(added)));
        }
        if deleted > 0 || added == 0 {
            out.push_str(&format!(", {deleted} deletion{}(-)", plural(deleted)));
        }
        out.push('\n');
        out
    }
}

/// Returns how much changed from the best common ancestor of `onto` and `tip` to `tip` (from nothing,
/// if there is none).
pub fn diffstat(repo: &Repo, onto: Option<Oid>, tip: Oid) -> Result<DiffStat, MergeError> {
    let base = fork_point(repo, onto, tip)?;
    diffstat_of(repo, &base, tip)
}

/// Returns how much differs from one commit to another.
pub fn diffstat_between(repo: &Repo, from: Oid, to: Oid) -> Result<DiffStat, MergeError> {
    diffstat_of(repo, &tree_of(repo, Some(from)), to)
}

fn diffstat_of(repo: &Repo, base: &str, tip: Oid) -> Result<DiffStat, MergeError> {
    let args = ["diff-tree", "-r", "-z", "--numstat", "-M", "--no-ext-diff", "--no-textconv", base];
    let output = repo.pure().args(args).arg(format!("{tip}^{{tree}}")).output()?.stdout;
    let mut fields = output.split(|b| *b == 0);
    let mut files = Vec::new();
    while let Some(record) = fields.next().filter(|record| !record.is_empty()) {
        let bad = || unexpected("git diff-tree", record);
        let mut parts = record.splitn(3, |b| *b == b'\t');
        let (Some(added), Some(deleted), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(bad().into());
        };
        let count = |text: &[u8]| std::str::from_utf8(text).ok()?.parse::<u64>().ok();
        let lines = count(added).zip(count(deleted));
        // Of a rename, both names follow as fields of their own.
        let (from, path) = if path.is_empty() {
            let from = checked(fields.next().ok_or_else(bad)?)?;
            (Some(from), checked(fields.next().ok_or_else(bad)?)?)
        } else {
            (None, checked(path)?)
        };
        files.push(FileStat { path, from, lines });
    }
    Ok(DiffStat { files })
}

/// Returns the patch from the best common ancestor of `onto` and `tip` to `tip`: bytes as git prints
/// them, not safe for a terminal. Every file is shown as text if its content is; no attribute hides it.
pub fn patch(repo: &Repo, onto: Option<Oid>, tip: Oid, form: Form) -> Result<Vec<u8>, MergeError> {
    let base = fork_point(repo, onto, tip)?;
    patch_of(repo, &base, tip, form)
}

/// Returns the patch from one commit to another, as [`patch`].
pub fn patch_between(repo: &Repo, from: Oid, to: Oid, form: Form) -> Result<Vec<u8>, MergeError> {
    patch_of(repo, &tree_of(repo, Some(from)), to, form)
}

/// What a patch is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// To be read: a binary file is only named.
    Read,
    /// For `git apply`: with the content of binary files.
    Apply,
}

fn patch_of(repo: &Repo, base: &str, tip: Oid, form: Form) -> Result<Vec<u8>, MergeError> {
    let args = ["diff-tree", "-r", "-p", "-M", "--no-ext-diff", "--no-textconv", "--no-color", "--submodule=short"];
    let mut git = repo.pure().args(args);
    if form == Form::Apply {
        git = git.args(["--binary", "--full-index"]);
    }
    Ok(git.arg(base).arg(format!("{tip}^{{tree}}")).output()?.stdout)
}

pub(crate) fn fork_point(repo: &Repo, onto: Option<Oid>, tip: Oid) -> Result<String, MergeError> {
    let base = match onto {
        Some(onto) => merge_base(repo, onto, tip)?,
        None => None,
    };
    Ok(tree_of(repo, base))
}

/// Reads the paths that `git status --porcelain -z -uall` names, both of a rename: what is left
/// uncommitted. `None` if it is not such a listing.
pub fn status_paths(porcelain: &[u8]) -> Option<BTreeSet<RepoPath>> {
    let mut paths = BTreeSet::new();
    let mut records = porcelain.split(|b| *b == 0);
    while let Some(record) = records.next().filter(|record| !record.is_empty()) {
        let (state, path) = (record.get(..2)?, record.get(3..)?);
        // An untracked repository is named as a directory.
        paths.insert(RepoPath::parse(path.strip_suffix(b"/").unwrap_or(path))?);
        if state.iter().any(|b| matches!(b, b'R' | b'C')) {
            paths.insert(RepoPath::parse(records.next()?)?);
        }
    }
    Some(paths)
}

/// A name for a commit's tree; without a commit, the empty tree.
pub(crate) fn tree_of(repo: &Repo, commit: Option<Oid>) -> String {
    commit.map_or_else(|| repo.format().empty_tree().to_string(), |commit| format!("{commit}^{{tree}}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_names_both_sides_of_a_rename() {
        let paths = status_paths(b" M a\0R  new\0old\0?? d/u\0?? repo/\0").unwrap();
        assert_eq!(paths.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a", "d/u", "new", "old", "repo"]);
        assert_eq!(status_paths(b""), Some(BTreeSet::new()));
        assert_eq!(status_paths(b"?"), None);
    }

    #[test]
    fn the_table_reads_as_gits() {
        let file = |path: &str, lines| FileStat { path: RepoPath::parse(path.as_bytes()).unwrap(), from: None, lines };
        let stat = DiffStat { files: vec![file("src/a.rs", Some((3, 1))), file("x\u{1b}", None)] };
        assert_eq!(
            stat.text(),
            " src/a.rs | \u{20}\u{20}4 +++-\n x\\u{1b}  | Bin\n 2 files changed, 3 insertions(+), 1 deletion(-)\n"
        );
    }
}
