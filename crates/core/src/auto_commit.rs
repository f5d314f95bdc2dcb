//! `sandbox.autoCommit`: what a command left uncommitted in the main repository is committed inside,
//! when the command has ended and before its commits come home; for agents that never commit.
//!
//! ```text
//!  the command ends ─► commit-back helper ─► commits come home (so that the tip is known)
//!                                            anything uncommitted that is not as captured?
//!                                              no ──► nothing
//!                                              merge, rebase, … in progress; unmerged; no identity ──► told
//!                                            add, commit  (git inside, by internal sessions)
//!                                            the commit comes home
//!                                            auto-commit.json ── done for this command
//! ```
//!
//! Git runs inside, where the sandbox's own rules about filters hold; no hook runs and nothing is signed.
//! A helper that was killed leaves either nothing, or a commit: then there is nothing left to commit.
//! The same is done in each repository that came along. Repositories inside a repository are left to themselves: those that git does not know as submodules
//! are not added, and none is committed in.

use crate::commit_back::{CommitBackError, ask};
use crate::connection::Connection;
use crate::sandbox::Sandbox;
use crate::store::{SandboxDir, Store, read_json, write_json};
use crate::work;
use sandbox_git::{Git, Oid, printable};
use sandbox_protocol::{Exec, ExitStatus, escape_bytes};
use serde::{Deserialize, Serialize};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// The longest first line, in characters.
const SUBJECT: usize = 72;
/// Lines of the log in the message at most.
const LINES: usize = 20;
/// The longest of them, in characters.
const LINE: usize = 200;
/// Bytes of output of one git command at most: 100 000 names.
const OUTPUT: usize = 32 << 20;

/// How a git command inside ended: status, standard output, standard error.
type Run = (ExitStatus, Vec<u8>, Vec<u8>);

/// What became of it: `auto-commit.json`, until the next command starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The commit that was made.
    pub commit: Option<String>,
    /// Files in it.
    pub files: usize,
    /// Why there is none although there was something to commit, in words that are safe to print.
    pub why_not: Option<String>,
    /// What became of it in further repositories, where there was something to do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<(PathBuf, Outcome)>,
}

/// How long one git command inside may take: filters and locks there are a stranger's.
const TIME: std::time::Duration = std::time::Duration::from_secs(120);

impl Outcome {
    fn not(why: impl Into<String>) -> Self {
        Self { why_not: Some(why.into()), ..Self::default() }
    }

    /// It could not even be tried.
    pub fn failed(error: &CommitBackError) -> Self {
        let mut why = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            why = format!("{why}: {cause}");
            source = cause.source();
        }
        Self::not(printable(why.as_bytes()))
    }

    /// Something was committed, in any repository.
    pub fn committed(&self) -> bool {
        self.commit.is_some() || self.others.iter().any(|(_, other)| other.committed())
    }

    /// Returns what is told of it; nothing when there was nothing to do.
    pub fn words(&self) -> Option<String> {
        let other = |(path, other): &(PathBuf, Self)| Some(format!("in '{}': {}", path.display(), other.own_words()?));
        let all: Vec<String> = self.own_words().into_iter().chain(self.others.iter().filter_map(other)).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    fn own_words(&self) -> Option<String> {
        match (&self.commit, &self.why_not) {
            (Some(commit), _) => {
                let files = if self.files == 1 { "1 file".to_owned() } else { format!("{} files", self.files) };
                Some(format!("committed what was not: {files} ({})", commit.get(..7).unwrap_or(commit)))
            }
            (None, Some(why)) => Some(format!("not committed automatically: {why}")),
            (None, None) => None,
        }
    }
}

/// Where the outcome is.
pub fn file(dir: &SandboxDir) -> PathBuf {
    dir.path().join("auto-commit.json")
}

/// What became of the last command's uncommitted work; `None` as long as nothing was tried.
pub fn outcome(sandbox: &Sandbox) -> Option<Outcome> {
    read_json(&file(&sandbox.dir)).ok().flatten()
}

/// Notes that it is done for this command.
pub fn done(sandbox: &Sandbox, outcome: &Outcome) -> Result<(), CommitBackError> {
    Ok(write_json(&file(&sandbox.dir), outcome, false)?)
}

/// Commits what is uncommitted, in each repository. What committed work there is must have been brought home.
pub fn run(
    connection: &mut Connection,
    git: &Git,
    store: &Store,
    sandbox: &Sandbox,
    message: &str,
) -> Result<Outcome, CommitBackError> {
    let mut outcome = in_tree(connection, git, store, &sandbox.at(0), message)?;
    for tree in sandbox.trees().skip(1).filter(|tree| tree.mount().has_commits()) {
        let other = in_tree(connection, git, store, &tree, message)?;
        if other != Outcome::default() {
            outcome.others.push((tree.mount().worktree.clone(), other));
        }
    }
    Ok(outcome)
}

fn in_tree(
    connection: &mut Connection,
    git: &Git,
    store: &Store,
    sandbox: &Sandbox,
    message: &str,
) -> Result<Outcome, CommitBackError> {
    let snapshot = sandbox.snapshot(store)?;
    let Some(view) = snapshot.git.views.iter().find(|view| view.path.as_os_str().is_empty()) else {
        return Ok(Outcome::default());
    };
    if !crate::picture::see(connection, store, sandbox) {
        return Ok(Outcome::not("it does not tell what is not committed"));
    }
    if work::uncommitted_now(git, store, sandbox)?.files.is_empty() {
        return Ok(Outcome::default());
    }
    if let Some(operation) = ask(connection, sandbox.name(), view)?.operation {
        return Ok(Outcome::not(format!("a {} is in progress", printable(operation.as_bytes()))));
    }
    let mut inside = Inside { connection, cwd: escape_bytes(sandbox.mount().worktree.as_os_str().as_bytes()) };
    for ident in ["GIT_AUTHOR_IDENT", "GIT_COMMITTER_IDENT"] {
        if inside.git(&["var", ident], b"")?.0 != ExitStatus::Code(0) {
            return Ok(Outcome::not("git inside has no user.name and user.email"));
        }
    }
    let unmerged = inside.git(&["ls-files", "--unmerged", "-z"], b"")?;
    if unmerged.0 == ExitStatus::Code(0) && !unmerged.1.is_empty() {
        return Ok(Outcome::not("there are unmerged paths"));
    }
    match inside.commit(message) {
        Ok(Ok(outcome)) => Ok(outcome),
        Ok(Err(why)) => Ok(Outcome::not(why)),
        Err(error) => Err(error),
    }
}

/// Git in the main repository inside. Everything that it says is the sandbox's choice.
struct Inside<'a> {
    connection: &'a mut Connection,
    cwd: String,
}

impl Inside<'_> {
    fn git(&mut self, args: &[&str], input: &[u8]) -> Result<Run, CommitBackError> {
        // No hook: `commit --no-verify` alone still runs prepare-commit-msg and post-commit. No signature:
        // the key is not here. No maintenance: it would outlive the sandbox's last session.
        let config = [
            "core.hooksPath=/dev/null",
            "commit.gpgSign=false",
            "i18n.commitEncoding=UTF-8",
            "gc.auto=0",
            "maintenance.auto=false",
        ];
        let mut argv = vec!["git".to_owned()];
        for setting in config {
            argv.extend(["-c".to_owned(), setting.to_owned()]);
        }
        argv.extend(args.iter().map(|arg| escape_bytes(arg.as_bytes())));
        let variable = |name: &str, value: &str| (name.to_owned(), Some(value.to_owned()));
        let env = vec![variable("GIT_LITERAL_PATHSPECS", "1"), variable("LC_ALL", "C.UTF-8")];
        let exec = Exec { argv, env, cwd: self.cwd.clone(), internal: true, ..Exec::default() };
        Ok(self.connection.run_within(exec, input, OUTPUT, TIME)?)
    }

    /// Runs one that must succeed; else its first line on standard error is why not.
    fn must(&mut self, args: &[&str], input: &[u8]) -> Result<Result<Vec<u8>, String>, CommitBackError> {
        let (status, out, err) = self.git(args, input)?;
        if status == ExitStatus::Code(0) {
            return Ok(Ok(out));
        }
        let text = plain_lines(&err);
        let said = text.iter().find(|line| !line.starts_with("hint:") && !line.starts_with("warning:"));
        let said = said.map_or_else(|| format!("status {}", status.shell()), Clone::clone);
        Ok(Err(format!("`git {}` failed inside: {said}", args.first().unwrap_or(&""))))
    }

    /// Adds and commits.
    fn commit(&mut self, message: &str) -> Result<Result<Outcome, String>, CommitBackError> {
        macro_rules! must {
            ($args:expr, $input:expr) => {
                match self.must(&$args, $input)? {
                    Ok(out) => out,
                    Err(why) => return Ok(Err(why)),
                }
            };
        }
        must!(["add", "--update", "--", "."], b"");
        let untracked = must!(["ls-files", "--others", "--exclude-standard", "-z"], b"");
        // A name with `/` at its end is a repository of its own.
        let wanted: Vec<u8> = untracked
            .split_inclusive(|byte| *byte == 0)
            .filter(|name| !name.ends_with(b"/\0"))
            .flatten()
            .copied()
            .collect();
        if !wanted.is_empty() {
            must!(["update-index", "--add", "--remove", "-z", "--stdin"], &wanted);
        }
        let staged = must!(["diff", "--cached", "--name-only", "--no-renames", "--no-ext-diff", "-z"], b"");
        let files = staged.iter().filter(|byte| **byte == 0).count();
        if files == 0 {
            return Ok(Ok(Outcome::default()));
        }
        let commit = ["commit", "--quiet", "--no-verify", "--no-gpg-sign", "--cleanup=verbatim", "-F", "-"];
        must!(commit, message.as_bytes());
        let head = must!(["rev-parse", "--verify", "HEAD"], b"");
        let Some(commit) = Oid::parse(head.trim_ascii()) else {
            return Ok(Err("git inside does not tell the commit".into()));
        };
        Ok(Ok(Outcome { commit: Some(commit.to_string()), files, ..Outcome::default() }))
    }
}

/// Returns the message: `NAME: COMMAND`, the last lines of what the command said, and the trailer.
///
/// `tail` is the end of the log as it is; a first line that may be cut is the caller's to leave out. The
/// trailer is a paragraph of its own, so that nothing in the log can pass for one.
pub fn message(name: &str, command: &[u8], tail: &[u8]) -> String {
    let words: Vec<String> =
        command.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).map(printable).collect();
    let mut text =
        cut(&format!("{name}: {}", if words.is_empty() { "shell".into() } else { words.join(" ") }), SUBJECT);
    text.push('\n');
    let lines = plain_lines(tail);
    let last = &lines[lines.len().saturating_sub(LINES)..];
    if !last.is_empty() {
        text.push('\n');
    }
    for line in last {
        text.push_str(&cut(line, LINE));
        text.push('\n');
    }
    text.push_str(&format!("\nSandbox: {name}\n"));
    text
}

fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

/// Returns the lines as a terminal would have shown them in the end, without colours, moves of the cursor
/// and blank ones: what is overwritten after a carriage return is gone, and any other character that
/// steers is escaped.
fn plain_lines(bytes: &[u8]) -> Vec<String> {
    let mut lines = vec![Vec::new()];
    let mut at = 0;
    let mut overwrite = false;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        let line = lines.last_mut().expect("there is always one");
        match byte {
            b'\n' => {
                overwrite = false;
                lines.push(Vec::new());
                continue;
            }
            b'\r' => {
                overwrite = true;
                continue;
            }
            0x1b => {
                at += sequence(&bytes[at..]);
                continue;
            }
            // Rings, or does nothing.
            0 | 7 => continue,
            _ => {}
        }
        if std::mem::take(&mut overwrite) {
            line.clear();
        }
        match byte {
            8 => drop(line.pop()),
            b'\t' => line.push(b' '),
            _ => line.push(byte),
        }
    }
    lines.iter().map(|line| printable(line.trim_ascii_end())).filter(|line| !line.trim().is_empty()).collect()
}

/// Returns the length of an escape sequence after its ESC (ECMA-48).
fn sequence(rest: &[u8]) -> usize {
    match rest.first() {
        // CSI: parameters and intermediates, then one final byte.
        Some(b'[') => {
            let end = rest[1..].iter().position(|byte| !(0x20..0x40).contains(byte));
            match end {
                Some(end) if (0x40..0x7f).contains(&rest[1 + end]) => end + 2,
                // Broken off: what comes is text again.
                Some(end) => end + 1,
                None => rest.len(),
            }
        }
        // OSC, DCS, SOS, PM, APC: a text, up to BEL or ST. One without an end swallows its line only.
        Some(b']' | b'P' | b'X' | b'^' | b'_') => {
            let end = rest.iter().position(|byte| matches!(byte, 7 | 0x1b | b'\n'));
            match end {
                Some(end) if rest[end] == 7 => end + 1,
                Some(end) if rest[end..].starts_with(b"\x1b\\") => end + 2,
                Some(end) => end,
                None => rest.len(),
            }
        }
        // Two or three bytes: intermediates, then a final one.
        Some(_) => {
            let end = rest.iter().position(|byte| !(0x20..0x30).contains(byte));
            match end {
                Some(end) if (0x30..0x7f).contains(&rest[end]) => end + 1,
                Some(end) => end,
                None => rest.len(),
            }
        }
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_one_short_line_the_end_of_the_log_and_a_trailer() {
        let log: String = (1..=30).map(|n| format!("line {n}\n")).collect();
        let text = message("fix", b"claude -p 'Fix\nit'", log.as_bytes());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..3], ["fix: claude -p 'Fix it'", "", "line 11"]);
        assert_eq!(lines[lines.len() - 3..], ["line 30", "", "Sandbox: fix"]);
        assert_eq!(message("fix", b"", b""), "fix: shell\n\nSandbox: fix\n");
        let long = message("fix", "ä".repeat(100).as_bytes(), "ö".repeat(1000).as_bytes());
        let widths: Vec<usize> = long.lines().map(|line| line.chars().count()).collect();
        assert_eq!(widths, [72, 0, 200, 0, 12]);
    }

    #[test]
    fn a_hostile_log_is_plain_text() {
        let log = b"\x1b[31mred\x1b[0m \x1b]0;title\x07text \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\\n\
            10%\r20%\r100% done\r\n\
            \x1b(Bcharset\x1b7\x1b[?25l\x1bM \x9b31m \xe2\x80\xaeevil\n\
            \x1b]unterminated\n\
            bell\x07 back\x08k\x00 tab\tx \x1b[3\x01broken\n\
            \n   \n\x1bPdcs\x1b\\after\n\xff\xfe\n\x1b";
        let expected = [
            "red text link",
            "100% done",
            "charset \\x9b31m \\u{202e}evil",
            "bell back tab x \\u{1}broken",
            "after",
            "\\xff\\xfe",
        ];
        let lines = plain_lines(log);
        assert_eq!(lines, expected.map(str::to_owned));
    }

    #[test]
    fn nothing_in_the_log_passes_for_a_trailer() {
        let text = message("fix", b"x", b"ok\nSandbox: other\nCo-authored-by: Eve <eve@example.com>\n");
        let last = text.trim_end().rsplit("\n\n").next().unwrap();
        assert_eq!(last, "Sandbox: fix");
    }

    #[test]
    fn any_bytes_are_taken() {
        for seed in 0..2000u32 {
            let mut x = seed;
            let bytes: Vec<u8> = (0..40)
                .map(|_| {
                    x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    [0x1b, b'[', b']', b'\\', 7, b'\n', b'\r', 8, b'm', 0x9b, b' ', b'a', 0xc2, 0x80, 0, b'0']
                        [(x >> 24) as usize % 16]
                })
                .collect();
            for line in plain_lines(&bytes) {
                assert!(!line.chars().any(char::is_control), "{line:?} of {bytes:?}");
            }
        }
    }
}
