//! What is mirrored: this project's own history, and a generated tree of 20,000 files with 2,000 commits behind it.

use super::super::measure::time;
use super::stage::printed;
use crate::build::workspace;
use sandbox_testkit::TestEnv;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// Commits of the generated history behind its first one.
const COMMITS: usize = 2_000;
/// Files that each of them changes.
const CHANGED: usize = 3;

/// Makes `own.git` below `dir`: this project, with all of its branches gone but one.
pub fn own(env: &TestEnv, dir: &Path) -> Result<(), String> {
    let bare = dir.join("own.git");
    let mut git = env.command(&env.git_used().path, dir);
    git.args(["-c", "safe.directory=*", "clone", "--quiet", "--bare", "--no-local", "--single-branch", "--no-tags"]);
    time(git.arg(workspace()).arg(&bare))?;
    // Whatever branch is checked out here.
    time(env.command(&env.git_used().path, &bare).args(["branch", "-M", "main"]))?;
    served(env, &bare)
}

/// Makes `generated.git` below `dir`.
pub fn generated(env: &TestEnv, dir: &Path, files: usize) -> Result<(), String> {
    let bare = dir.join("generated.git");
    time(env.command(&env.git_used().path, dir).args(["init", "--quiet", "--bare"]).arg(&bare))?;
    let mut import = env.command(&env.git_used().path, &bare);
    import.args(["fast-import", "--quiet", "--force"]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = import.spawn().map_err(|error| error.to_string())?;
    let stream = child.stdin.take().ok_or("no input")?;
    history(stream, files).map_err(|error| format!("cannot write the history: {error}"))?;
    if !child.wait().is_ok_and(|status| status.success()) {
        return Err("`git fast-import` failed".to_owned());
    }
    served(env, &bare)
}

/// A bare repository as an upstream has it: packed, any object can be asked for, filters work.
fn served(env: &TestEnv, bare: &Path) -> Result<(), String> {
    for args in [
        &["repack", "-adbq"][..],
        &["config", "uploadpack.allowFilter", "true"],
        &["config", "uploadpack.allowAnySHA1InWant", "true"],
    ] {
        time(env.command(&env.git_used().path, bare).args(args))?;
    }
    fs::write(bare.join("git-daemon-export-ok"), "").map_err(|error| error.to_string())
}

/// Text that looks like source: words that come again, so that deltas and compression have something to do.
fn text(seed: u64, lines: usize) -> String {
    const WORDS: [&str; 16] = [
        "let", "match", "return", "value", "index", "error", "commit", "object", "buffer", "length", "offset",
        "result", "while", "struct", "public", "static",
    ];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut text = String::new();
    for line in 0..lines {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let word = |at: u32| WORDS[(state >> at & 15) as usize];
        let _ = writeln!(text, "    {} {}_{} = {}({:x}); // {line}", word(0), word(4), word(8), word(12), state >> 40);
    }
    text
}

fn history(stream: impl Write, files: usize) -> std::io::Result<()> {
    let mut out = BufWriter::new(stream);
    let path = |n: usize| format!("src/d{}/e{}/file{n}.rs", n / 1000, n / 40 % 25);
    let lines = |n: usize| 20 + n * 7919 % 120;
    let mut commit = |n: usize, changes: &mut dyn Iterator<Item = (usize, u64)>| -> std::io::Result<()> {
        let message = format!("Commit {n}");
        let at = 1_700_000_000 + n * 60;
        writeln!(out, "commit refs/heads/main\ncommitter Dev <dev@example.com> {at} +0000")?;
        writeln!(out, "data {}\n{message}", message.len())?;
        for (file, version) in changes {
            // A version differs from the one before it by a few lines at its end.
            let mut body = text(file as u64, lines(file));
            for edit in 0..version.min(8) {
                body.push_str(&text(file as u64 ^ (version - edit) << 32, 3));
            }
            writeln!(out, "M 100644 inline {}\ndata {}\n{body}", path(file), body.len())?;
        }
        Ok(())
    };
    commit(0, &mut (0..files).map(|file| (file, 0)))?;
    for n in 1..=COMMITS {
        commit(n, &mut (0..CHANGED).map(|k| ((n * 31 + k * 997) % files, n as u64)))?;
    }
    out.flush()
}

/// Makes commits on top of `main` that no branch has yet; returns their ids, oldest first.
pub fn ahead(env: &TestEnv, bare: &Path, commits: usize) -> Result<Vec<String>, String> {
    let git = || env.command(&env.git_used().path, bare);
    let tip = printed(git().args(["rev-parse", "refs/heads/main"]))?;
    let mut import = git();
    import.args(["fast-import", "--quiet", "--force"]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = import.spawn().map_err(|error| error.to_string())?;
    let mut stream = child.stdin.take().ok_or("no input")?;
    let mut write = |n: usize| -> std::io::Result<()> {
        let from = if n == 0 { format!("from {tip}\n") } else { String::new() };
        let (message, body) = (format!("After {tip} {n}"), text(n as u64, 40 + n % 50));
        let at = 1_800_000_000 + n * 60;
        writeln!(stream, "commit refs/bench/ahead\ncommitter Dev <dev@example.com> {at} +0000")?;
        writeln!(stream, "data {}\n{message}\n{from}M 100644 inline bench/file{}.rs", message.len(), n % 30)?;
        writeln!(stream, "data {}\n{body}", body.len())
    };
    (0..commits).try_for_each(&mut write).map_err(|error| format!("cannot write the history: {error}"))?;
    drop(stream);
    if !child.wait().is_ok_and(|status| status.success()) {
        return Err("`git fast-import` failed".to_owned());
    }
    let list = printed(git().args(["rev-list", "--reverse", &format!("{tip}..refs/bench/ahead")]))?;
    Ok(list.lines().map(str::to_owned).collect())
}

/// How a directory's size and a repository's commits are told in the table.
pub fn describe(env: &TestEnv, bare: &Path) -> Result<String, String> {
    let count = |args: &[&str]| -> Result<usize, String> {
        let output = env.command(&env.git_used().path, bare).args(args).output().map_err(|error| error.to_string())?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().count())
    };
    let (commits, files) = (count(&["rev-list", "HEAD"])?, count(&["ls-tree", "-r", "HEAD"])?);
    let mut size = Command::new("du");
    let size = size.arg("-sk").arg(bare.join("objects")).output().map_err(|error| error.to_string())?;
    let kib: u64 = String::from_utf8_lossy(&size.stdout).split('\t').next().unwrap_or("").parse().unwrap_or(0);
    Ok(format!("{commits} commits, {files} files, {} MiB", kib / 1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_history_is_one_that_git_takes() {
        let env = TestEnv::new();
        generated(&env, env.root(), 50).unwrap();
        let bare = env.root().join("generated.git");
        assert_eq!(
            describe(&env, &bare).unwrap().split(", ").take(2).collect::<Vec<_>>(),
            ["2001 commits", "50 files"]
        );
        assert_eq!(ahead(&env, &bare, 3).unwrap().len(), 3);
        env.git(&bare, &["fsck", "--strict"]).expect(0);
    }
}
