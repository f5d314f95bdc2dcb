//! Reflogs: reading them, and cutting them to what was granted.

use crate::host_repo::HostRepo;
use sandbox_git::{Git, GitError, ObjectFormat, Oid};
use std::fs;
use std::path::Path;

/// How many of the newest entries of a log are carried.
const NEWEST: usize = 200;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Before.
    pub old: Oid,
    /// After.
    pub new: Oid,
    /// `name <mail> seconds zone TAB message`, as git wrote it.
    pub rest: Vec<u8>,
}

/// Reads a log of the files backend, oldest entry first; empty when there is none.
pub(super) fn read_file(path: &Path, newest: usize) -> Vec<Line> {
    let bytes = fs::read(path).unwrap_or_default();
    let parse = |line: &[u8]| {
        let mut words = line.splitn(3, |b| *b == b' ');
        Some(Line { old: Oid::parse(words.next()?)?, new: Oid::parse(words.next()?)?, rest: words.next()?.to_vec() })
    };
    let lines: Vec<Line> = bytes.split(|b| *b == b'\n').filter_map(parse).collect();
    lines[lines.len().saturating_sub(newest)..].to_vec()
}

/// Reads the newest entries of the log of `name` (`HEAD`, `refs/…`), oldest first.
pub(super) fn read(
    git: &Git,
    host: &HostRepo,
    name: &str,
    per_worktree: bool,
    all: bool,
) -> Result<Vec<Line>, GitError> {
    let newest = if all { usize::MAX } else { NEWEST };
    if host.common_dir().join("reftable").is_dir() {
        return ask(git, host, name, newest);
    }
    let base = if per_worktree { host.git_dir() } else { host.common_dir() };
    Ok(read_file(&base.join("logs").join(name), newest))
}

/// A reftable's log: git prints no old ids, but each is the new id of the entry before.
fn ask(git: &Git, host: &HostRepo, name: &str, newest: usize) -> Result<Vec<Line>, GitError> {
    let count = format!("--max-count={}", newest.min(100_000));
    let format = "--format=%H%x00%gn <%ge>%x00%gd%x00%gs";
    let args = ["log", "-g", "--date=raw", &count, format, name, "--"];
    let (status, out) = host.read(git).args(args).try_output()?;
    if !status.success() {
        return Ok(Vec::new());
    }
    let mut lines: Vec<Line> = Vec::new();
    let mut old = Oid::null(host.format());
    for line in out.stdout.split(|b| *b == b'\n').rev() {
        let fields: Vec<&[u8]> = line.splitn(4, |b| *b == 0).collect();
        let [id, who, selector, message] = fields[..] else { continue };
        let Some(new) = Oid::parse(id) else { continue };
        // `HEAD@{1700000000 +0100}`
        let when = selector.split(|b| *b == b'{').nth(1).and_then(|t| t.strip_suffix(b"}")).unwrap_or(b"0 +0000");
        let rest = [who, b" ", when, b"\t", message].concat();
        lines.push(Line { old, new, rest });
        old = new;
    }
    Ok(lines)
}

/// Returns the log's text with only the entries that `granted` admits. Each entry's old id is the
/// one before it, so that git sees no gap and no id that it does not have.
pub(super) fn cut(lines: &[Line], format: ObjectFormat, granted: impl Fn(&Oid) -> bool) -> Vec<u8> {
    let mut out = Vec::new();
    let mut old = None;
    for line in lines.iter().filter(|line| granted(&line.new)) {
        let first = if granted(&line.old) { line.old } else { Oid::null(format) };
        out.extend_from_slice(format!("{} {} ", old.unwrap_or(first), line.new).as_bytes());
        out.extend_from_slice(&line.rest);
        out.push(b'\n');
        old = Some(line.new);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_log_has_no_gaps_and_no_foreign_ids() {
        let id = |n: u8| Oid::from_raw(&[n; 20]).unwrap();
        let line = |a, b| Line { old: id(a), new: id(b), rest: b"x <x> 1 +0000\tm".to_vec() };
        let lines = [line(9, 1), line(1, 8), line(8, 2), line(2, 3)];
        let text = String::from_utf8(cut(&lines, ObjectFormat::Sha1, |oid| *oid < id(5))).unwrap();
        let pairs: Vec<_> = text.lines().map(|l| (l[..2].to_owned(), l[41..43].to_owned())).collect();
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(pairs, [pair("00", "01"), pair("01", "02"), pair("02", "03")]);
    }
}
