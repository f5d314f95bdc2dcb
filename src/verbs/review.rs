//! `look here first`: what of a change runs by itself, or hides something, before it is landed.
//!
//! ```text
//! look here first:
//!   red   .husky/pre-commit: runs as a git hook at the next `git commit` (1a2b3c4)
//!   amber a.sh, b.sh, c.sh and 4 more: becomes executable
//! ```
//!
//! What the list has is decided in `integrate::review`; here it is shown, and asked about. On a terminal
//! a landing with anything red asks. Where nobody can be asked it is told and goes on, unless the host's
//! own git would run or obey what comes in: that is refused until `--yes`. `sandbox.review = tell` never
//! asks and never refuses; `sandbox.reviewIgnore` names paths (gitignore syntax) that are not listed.

use crate::context::Context;
use crate::error::CliError;
use crate::text::{count, escape};
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::Store;
use sandbox_core::work::{self, Changed, ChangedFile};
use sandbox_git::Oid;
use sandbox_integrate::review::{review_between, review_edits};
use sandbox_integrate::{Edit, Finding, Grade, Kind, RepoPath};
use std::collections::BTreeMap;
use std::io::Write;

/// Lines that are shown.
const SHOWN: usize = 20;
/// Reasons of a refusal that are named.
const HELD: usize = 5;
/// Paths of one line.
const TOGETHER: usize = 3;

/// Removes what the user's settings silence; returns how much that was.
pub fn silence(context: &Context, findings: &mut Vec<Finding>) -> Result<usize, CliError> {
    let globs = context.settings("sandbox.reviewIgnore");
    if globs.is_empty() || findings.is_empty() {
        return Ok(0);
    }
    let silent = parse(&globs)?;
    let before = findings.len();
    findings.retain(|finding| !silent.matched_path_or_any_parents(finding.path.as_path(), false).is_ignore());
    Ok(before - findings.len())
}

fn parse(globs: &[String]) -> Result<Gitignore, CliError> {
    let bad = |glob: &str, error: ignore::Error| {
        CliError::new(format!("'{}' is not a value of sandbox.reviewIgnore", escape(glob)))
            .cause(escape(&error.to_string()))
            .hint("it is a pattern as in .gitignore, such as '/package.json' or 'docs/**'")
    };
    let mut builder = GitignoreBuilder::new("");
    for glob in globs {
        builder.add_line(None, glob).map_err(|error| bad(glob, error))?;
    }
    builder.build().map_err(|error| bad(&globs.join(" "), error))
}

/// Tells on standard error what deserves a look. Takes out what is silenced.
pub fn tell(context: &Context, findings: &mut Vec<Finding>) -> Result<(), CliError> {
    let silenced = silence(context, findings)?;
    for line in lines(findings, silenced) {
        eprintln!("{line}");
    }
    Ok(())
}

/// Larger uncommitted files are not read for a review, in bytes.
const READ: u64 = 1 << 20;
/// More uncommitted files are looked at by their names alone.
const FILES: usize = 2000;

/// What deserves a look of a sandbox's commits, without what is silenced.
pub fn of_commits(context: &Context, store: &Store, tree: &Sandbox) -> Result<Vec<Finding>, CliError> {
    let Some((base, tip)) = super::diff::range(context, store, tree)? else { return Ok(Vec::new()) };
    let repo = super::merge::open(context, store, tree)?;
    let mut found = review_between(&repo, base, tip)?;
    silence(context, &mut found)?;
    Ok(found)
}

/// The same of files that are not committed inside.
pub fn of_files(
    context: &Context,
    store: &Store,
    tree: &Sandbox,
    changed: &[ChangedFile],
) -> Result<Vec<Finding>, CliError> {
    if changed.is_empty() || !tree.mount().has_commits() {
        return Ok(Vec::new());
    }
    let edit = |(n, change): (usize, &ChangedFile)| {
        let path = RepoPath::parse(&change.path)?;
        let unread = || Some((Kind::File { executable: false }, Vec::new()));
        let after = match change.what {
            Changed::Deleted => None,
            _ if n >= FILES || change.bytes > READ => unread(),
            _ => match super::apply::read_edit(tree, change) {
                Ok(edit) => return edit,
                // What cannot be read cannot be landed either; its name still says something.
                Err(_) => unread(),
            },
        };
        Some(Edit { path, after })
    };
    let edits: Vec<Edit> = changed.iter().enumerate().filter_map(edit).collect();
    let since = work::tip(context.git()?, store, tree)?;
    let base = tree.snapshot(store)?.git.base.as_deref().and_then(Oid::parse);
    let mut found = review_edits(&super::merge::open(context, store, tree)?, since.or(base), &edits)?;
    silence(context, &mut found)?;
    Ok(found)
}

/// The list as lines; none if there is nothing.
pub fn lines(findings: &[Finding], silenced: usize) -> Vec<String> {
    let mut lines = Vec::new();
    if !findings.is_empty() {
        lines.push("look here first:".to_owned());
        let rows = rows(findings);
        lines.extend(rows.iter().take(SHOWN).cloned());
        if rows.len() > SHOWN {
            lines.push(format!("  … and {} more", rows.len() - SHOWN));
        }
    }
    if silenced > 0 {
        lines.push(format!("{} not shown, by your sandbox.reviewIgnore", count(silenced, "finding")));
    }
    lines
}

/// One line for each reason; the paths that share it stand together when they are many.
fn rows(findings: &[Finding]) -> Vec<String> {
    let mut order: Vec<String> = Vec::new();
    let mut paths: BTreeMap<String, Vec<&Finding>> = BTreeMap::new();
    for finding in findings {
        let why = why(finding);
        if !paths.contains_key(&why) {
            order.push(why.clone());
        }
        paths.entry(why).or_default().push(finding);
    }
    let mut rows = Vec::new();
    for why in order {
        let all = &paths[&why];
        let grade = if all[0].grade == Grade::Red { "red  " } else { "amber" };
        if all.len() > TOGETHER {
            let names: Vec<String> = all.iter().take(TOGETHER).map(|finding| finding.path.to_string()).collect();
            rows.push(format!("  {grade} {} and {} more: {why}", names.join(", "), all.len() - TOGETHER));
            continue;
        }
        for finding in all {
            let commit = finding.commit.map(|commit| format!(" ({})", commit.short())).unwrap_or_default();
            rows.push(format!("  {grade} {}: {why}{commit}", finding.path));
        }
    }
    rows
}

/// The reason in words, safe to print.
fn why(finding: &Finding) -> String {
    let mut text = escape(&finding.why);
    if let Some(runs) = &finding.runs {
        text.push_str(&format!("; runs `{}`", escape(runs)));
    }
    if let Some(when) = &finding.when {
        text.push_str(&format!("{}{}", if finding.runs.is_some() { " " } else { ", " }, escape(when)));
    }
    text
}

/// Whether what was told may be landed: asks for what is red where somebody can answer. `verb` and `name` are
/// those of the command, for the next step.
pub fn agreed<'f>(
    context: &Context,
    findings: impl IntoIterator<Item = &'f Finding>,
    (verb, name): (&str, &str),
    yes: bool,
) -> Result<bool, CliError> {
    let red: Vec<&Finding> = findings.into_iter().filter(|finding| finding.grade == Grade::Red).collect();
    if yes || red.is_empty() || !asks(context)? {
        return Ok(true);
    }
    if crate::prepare::asks() {
        eprint!("{verb} all the same? [y/N] ");
        let _ = std::io::stderr().flush();
        return Ok(crate::leave::yes(false));
    }
    let held: Vec<&&Finding> = red.iter().filter(|finding| finding.by_host).collect();
    if held.is_empty() {
        return Ok(true);
    }
    let mut error = CliError::new(format!("cannot {verb} '{name}': your git would run or obey what comes in"));
    for finding in held.iter().take(HELD) {
        error = error.cause(format!("'{}' {}", finding.path, why(finding)));
    }
    if held.len() > HELD {
        error = error.cause(format!("and {} more", held.len() - HELD));
    }
    Err(error
        .hint(format!("`git sandbox diff {name}` shows it; `git sandbox {verb} --yes {name}` goes on all the same"))
        .status(1))
}

/// `sandbox.review`: whether anything red stops.
fn asks(context: &Context) -> Result<bool, CliError> {
    match context.setting("sandbox.review").as_deref() {
        None | Some("ask") => Ok(true),
        Some("tell") => Ok(false),
        Some(other) => Err(CliError::new(format!("'{}' is not a value of sandbox.review", escape(other)))
            .hint("it is one of ask, tell")),
    }
}

/// The error of a landing that the user did not want after all.
pub fn declined() -> CliError {
    CliError::new("nothing was written").status(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(path: &str, why: &str) -> Finding {
        Finding {
            grade: Grade::Amber,
            path: RepoPath::parse(path.as_bytes()).unwrap(),
            why: why.to_owned(),
            runs: None,
            when: None,
            by_host: false,
            commit: None,
        }
    }

    #[test]
    fn many_paths_of_one_reason_share_a_line() {
        let mut all: Vec<Finding> = (0..6).map(|n| finding(&format!("{n}.sh"), "becomes executable")).collect();
        all.push(Finding {
            grade: Grade::Red,
            runs: Some("x\u{1b}[2J".into()),
            when: Some("at once".into()),
            ..finding("package.json", "adds the script '\u{202e}'")
        });
        assert_eq!(
            lines(&all, 2),
            [
                "look here first:",
                "  amber 0.sh, 1.sh, 2.sh and 3 more: becomes executable",
                "  red   package.json: adds the script '\\u{202e}'; runs `x\\u{1b}[2J` at once",
                "2 findings not shown, by your sandbox.reviewIgnore",
            ]
        );
        assert_eq!(lines(&[], 0), [] as [&str; 0]);
    }

    #[test]
    fn patterns_silence_as_in_gitignore() {
        let globs = ["/package.json".to_owned(), "docs/**".to_owned(), "*.lock".to_owned()];
        let silent = parse(&globs).unwrap();
        let hit = |path: &str| silent.matched_path_or_any_parents(path, false).is_ignore();
        assert!(hit("package.json") && hit("docs/a/Makefile") && hit("x/Cargo.lock"));
        assert!(!hit("web/package.json") && !hit("Makefile"));
    }
}
