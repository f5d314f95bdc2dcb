//! `diff`: what a sandbox changed, computed by the host without any attribute, filter or driver having a say,
//! and escaped before it is printed.

use super::list::print_json;
use super::merge::open_to_read as open;
use super::review;
use super::trees::{of_which, several, tell_others, title};
use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::text::{escape, escape_lines};
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::Store;
use sandbox_core::work;
use sandbox_git::Oid;
use sandbox_integrate::review::{review_between, review_commits};
use sandbox_integrate::{
    Captured, FileStat, Finding, Form, Kind, Layers, RepoPath, diffstat, diffstat_between, patch, patch_between,
};
use serde::Serialize;
use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Larger files are only named in `diff --uncommitted`.
const SHOWN: u64 = 4 << 20;

pub fn run(context: &Context, args: &cli::Diff) -> Outcome {
    let store = context.store()?;
    let sandbox = context.sandbox(&store, &args.name)?;
    if let Some(second) = &args.other {
        return between(context, &store, &sandbox, second, args);
    }
    if args.uncommitted {
        for tree in sandbox.trees() {
            uncommitted(context, &store, &tree, args.stat)?;
        }
        return Ok(0);
    }
    super::fetch::bring_to_read(context, &store, &sandbox)?;
    if args.json {
        return as_json(context, &store, &sandbox);
    }
    let mut found = Vec::new();
    // A patch is for one repository: the one that the caller is in.
    let trees = if args.patch { vec![sandbox.clone()] } else { sandbox.trees().collect() };
    for tree in trees {
        found.extend(range(context, &store, &tree)?.map(|range| (tree, range)));
    }
    if found.is_empty() {
        eprintln!("no commits in '{}'{}", sandbox.name(), if args.patch { of_which(&sandbox) } else { String::new() });
    }
    if args.patch {
        tell_others(context, &store, &sandbox, &format!("diff --patch {}", sandbox.name()))?;
    }
    for (tree, (base, tip)) in found {
        let repo = open(context, &store, &tree)?;
        if several(&tree) && !args.patch {
            print(format!("{}\n", title(&tree)).as_bytes())?;
        }
        review::tell(context, &mut review_between(&repo, base, tip)?)?;
        match (args.stat, args.patch) {
            (true, _) => print(diffstat(&repo, base, tip)?.text().as_bytes())?,
            (_, true) => for_git(&patch(&repo, base, tip, Form::Apply)?)?,
            _ => print(escape_lines(&String::from_utf8_lossy(&patch(&repo, base, tip, Form::Read)?)).as_bytes())?,
        };
    }
    Ok(0)
}

/// What differs from one sandbox's tip to another's.
fn between(context: &Context, store: &Store, first: &Sandbox, second: &str, args: &cli::Diff) -> Outcome {
    let second = context.sandbox(store, second)?;
    super::conflicts::one_repository(&[first, &second])?;
    let tip = |sandbox: &Sandbox| -> Result<Oid, CliError> {
        super::fetch::bring_to_read(context, store, sandbox)?;
        let base = sandbox.snapshot(store)?.git.base.as_deref().and_then(Oid::parse);
        work::tip(context.git()?, store, sandbox)?.or(base).ok_or_else(|| {
            CliError::new(format!("the sandbox '{}' has no commit", sandbox.name()))
                .hint(format!("`git sandbox commit {} -m MSG` makes one of its files", sandbox.name()))
                .status(1)
        })
    };
    let (from, to) = (tip(first)?, tip(&second)?);
    let repo = open(context, store, first)?;
    let (one, two) = (first, &second);
    for (sandbox, partner) in [(one, two), (two, one)] {
        super::trees::tell_others_by(context, store, sandbox, &|other| {
            // Where only one of the two is, there is nothing to compare it with.
            let both = partner.trees().any(|tree| tree.mount().repo == other.mount().repo);
            if both { format!("diff {} {}", one.name(), two.name()) } else { format!("diff {}", sandbox.name()) }
        })?;
    }
    if from == to {
        eprintln!("nothing differs between '{}' and '{}'", first.name(), second.name());
        return Ok(0);
    }
    review::tell(context, &mut review_commits(&repo, from, to)?)?;
    match (args.stat, args.patch) {
        (true, _) => print(diffstat_between(&repo, from, to)?.text().as_bytes()),
        (_, true) => for_git(&patch_between(&repo, from, to, Form::Apply)?),
        _ => print(escape_lines(&String::from_utf8_lossy(&patch_between(&repo, from, to, Form::Read)?)).as_bytes()),
    }
}

/// Schema version 1.
#[derive(Serialize)]
struct Summary {
    version: u32,
    name: String,
    repositories: Vec<Summarised>,
}

#[derive(Serialize)]
struct Summarised {
    repository: PathBuf,
    base: Option<Oid>,
    tip: Oid,
    files: Vec<FileStat>,
    look_first: Vec<Finding>,
}

/// What was committed, by file, and what of it deserves a look.
fn as_json(context: &Context, store: &Store, sandbox: &Sandbox) -> Outcome {
    let mut repositories = Vec::new();
    for tree in sandbox.trees().filter(|tree| tree.mount().has_commits()) {
        let Some((base, tip)) = range(context, store, &tree)? else { continue };
        let repo = open(context, store, &tree)?;
        let mut look_first = review_between(&repo, base, tip)?;
        review::silence(context, &mut look_first)?;
        let files = diffstat(&repo, base, tip)?.files;
        repositories.push(Summarised { repository: tree.mount().worktree.clone(), base, tip, files, look_first });
    }
    print_json(&Summary { version: 1, name: sandbox.name().to_owned(), repositories })?;
    Ok(0)
}

/// A patch as git made it. A terminal gets none: its bytes come from inside.
fn for_git(patch: &[u8]) -> Outcome {
    if io::stdout().is_terminal() {
        return Err(CliError::usage("a patch for other tools is not safe for a terminal")
            .hint("`git sandbox diff --patch NAME >FILE`, or without `--patch` to read it"));
    }
    print(patch)
}

/// The base commit and the tip, if there is a tip that is not the base.
pub fn range(context: &Context, store: &Store, sandbox: &Sandbox) -> Result<Option<(Option<Oid>, Oid)>, CliError> {
    let base = sandbox.snapshot(store)?.git.base.and_then(Oid::parse);
    let tip = work::tip(context.git()?, store, sandbox)?;
    Ok(tip.filter(|tip| Some(*tip) != base).map(|tip| (base, tip)))
}

/// Prints bytes that are safe for a terminal.
pub fn print(bytes: &[u8]) -> Outcome {
    match io::stdout().lock().write_all(bytes) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(CliError::io("write to standard output")(error)),
        _ => Ok(0),
    }
}

/// Puts the captured and the present form of each changed file side by side in two scratch
/// directories and compares those: nothing of the host's repository is involved.
fn uncommitted(context: &Context, store: &Store, sandbox: &Sandbox, stat: bool) -> Outcome {
    crate::picture::fresh(context, store, sandbox)?;
    let left = work::uncommitted_now(context.git()?, store, sandbox)?;
    if several(sandbox) && left.files.is_empty() {
        return Ok(0);
    }
    if several(sandbox) {
        print(format!("{}\n", title(sandbox)).as_bytes())?;
    }
    review::tell(context, &mut review::of_files(context, store, sandbox, &left.files)?)?;
    let scratch = tempfile::Builder::new()
        .prefix("diff.")
        .tempdir_in(store.tmp())
        .map_err(CliError::io("make a scratch directory"))?;
    let (before, after) = (scratch.path().join("a"), scratch.path().join("b"));
    for dir in [&before, &after] {
        fs::create_dir(dir).map_err(CliError::io("make a scratch directory"))?;
    }
    let snapshot = sandbox.snapshot(store)?;
    let repo = store.repo(&sandbox.mount().repo);
    let captured = Layers::new(snapshot.layers.iter().map(|id| repo.layer_tree(id)));
    for change in &left.files {
        let path = change.as_path();
        // Only where there is a file: what was a directory before may be a file afterwards.
        let room = |side: &Path| {
            let parent = side.join(path).parent().map(Path::to_owned).unwrap_or_default();
            fs::create_dir_all(&parent).map_err(CliError::io("fill the scratch directory"))
        };
        let name = RepoPath::parse(&change.path).ok_or_else(|| CliError::new("a changed path cannot be shown"))?;
        if let Some(file) = captured.get(&name).map_err(CliError::io(format!("read the captured '{name}'")))? {
            room(&before)?;
            put(&before.join(path), file).map_err(CliError::io("fill the scratch directory"))?;
        }
        if change.what != work::Changed::Deleted {
            room(&after)?;
            let target = after.join(path);
            let large = || format!("it is larger than {}", crate::text::size(SHOWN));
            let shown = match work::read_changed(sandbox, change) {
                Ok(work::Content::File { bytes, .. }) if bytes.len() as u64 > SHOWN => Err(large()),
                Ok(work::Content::File { executable, bytes }) => {
                    let mode = if executable { 0o755 } else { 0o644 };
                    Ok(fs::write(&target, bytes).and_then(|()| {
                        fs::set_permissions(&target, std::os::unix::fs::PermissionsExt::from_mode(mode))
                    }))
                }
                // Wherever it leads: it is shown as its text, and nobody follows it.
                Ok(work::Content::Symlink(to)) => {
                    Ok(std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(&to), &target))
                }
                Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Err(large()),
                Err(error) => Err(error.to_string()),
            };
            match shown {
                Ok(written) => written.map_err(CliError::io("fill the scratch directory"))?,
                Err(why) => {
                    eprintln!("'{name}' is not shown: {}", escape(&why));
                    // Or it would look deleted.
                    let _ = fs::remove_file(before.join(path));
                }
            }
        }
    }
    let mut args =
        vec!["diff", "--no-index", "--no-ext-diff", "--no-textconv", "--no-color", "--no-renames", "--no-prefix"];
    if stat {
        args.push("--stat=100");
    }
    args.extend(["--", "a", "b"]);
    let (_, out) = context.git()?.anywhere().cwd(scratch.path()).args(args).try_output()?;
    let text = String::from_utf8_lossy(&out.stdout);
    // The two scratch directories are no news.
    let text = if stat { plain_stat(&text) } else { plain_patch(&text) };
    print(escape_lines(&text).as_bytes())
}

/// Names without the scratch directories, in one column.
fn plain_stat(text: &str) -> String {
    let name = |name: &str| {
        let name = name.trim();
        let name = name.strip_prefix("/dev/null => b/").unwrap_or(name);
        let name = name.strip_prefix("a/").and_then(|rest| rest.strip_suffix(" => /dev/null")).unwrap_or(name);
        name.replacen("{a => b}/", "", 1)
    };
    let lines: Vec<Result<(String, &str), &str>> =
        text.lines().map(|line| line.rsplit_once(" | ").map(|(path, rest)| (name(path), rest)).ok_or(line)).collect();
    let width = lines.iter().flatten().map(|(path, _)| path.chars().count()).max().unwrap_or(0);
    let line = |line: &Result<(String, &str), &str>| match line {
        Ok((path, rest)) => format!(" {path:width$} | {rest}\n"),
        Err(line) => format!("{line}\n"),
    };
    lines.iter().map(line).collect()
}

/// A patch whose header names both sides as git does, also for a file that only one side has.
fn plain_patch(text: &str) -> String {
    let line = |line: &str| {
        let both = line.strip_prefix("diff --git ").filter(|both| both.len() % 2 == 1);
        let same =
            both.and_then(|both| Some((both.get(..both.len() / 2)?, both))).filter(|(half, both)| both.ends_with(half));
        match same.and_then(|(half, _)| half.strip_prefix("a/").or(half.strip_prefix("b/"))) {
            Some(path) => format!("diff --git a/{path} b/{path}\n"),
            None => format!("{line}\n"),
        }
    };
    text.lines().map(line).collect()
}

fn put(target: &Path, mut file: sandbox_integrate::CapturedFile) -> io::Result<()> {
    let mut content = Vec::new();
    file.content.by_ref().take(SHOWN).read_to_end(&mut content)?;
    match file.kind {
        Kind::Symlink => std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(&content), target),
        Kind::File { executable } => {
            fs::write(target, content)?;
            let mode = if executable { 0o755 } else { 0o644 };
            fs::set_permissions(target, std::os::unix::fs::PermissionsExt::from_mode(mode))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{plain_patch, plain_stat};

    #[test]
    fn scratch_directories_do_not_show() {
        let stat = " {a => b}/src/x.c     | 2 +-\n /dev/null => b/l.log | 1 +\n a/gone => /dev/null  | 1 -\n 3 files changed\n";
        assert_eq!(plain_stat(stat), " src/x.c | 2 +-\n l.log   | 1 +\n gone    | 1 -\n 3 files changed\n");
        let patch = "diff --git b/n n b/n n\n+++ b/n n\n+diff --git b/x b/x\ndiff --git a/g a/g\ndiff --git a/m b/m\n";
        let plain = "diff --git a/n n b/n n\n+++ b/n n\n+diff --git b/x b/x\ndiff --git a/g b/g\ndiff --git a/m b/m\n";
        assert_eq!(plain_patch(patch), plain);
    }
}
