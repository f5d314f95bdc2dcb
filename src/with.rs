//! `--with PATH[:ro]`, `sandbox.with` and `with` of `.sandbox.toml`: what comes along besides the working
//! tree, at its own path. Every place is looked at, and refused by name, before anything is made.

use crate::cli;
use crate::context::Context;
use crate::error::CliError;
use crate::prepare::{asks, refuse_place};
use crate::project::{self, Project};
use crate::text::escape_bytes;
use sandbox_core::host_repo::{HostRepo, HostRepoError};
use sandbox_core::record::RepoRecord;
use sandbox_core::store::{Store, read_json, write_twice};
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// The user's setting: what always comes along.
const SETTING: &str = "sandbox.with";

/// One place that comes along.
#[derive(Debug)]
pub struct Place {
    /// Where it is, canonical: outside and inside.
    pub path: PathBuf,
    /// Its repository; a plain directory has none.
    pub repo: Option<HostRepo>,
    /// Nothing in it can be changed inside.
    pub read_only: bool,
    /// The caller's spelling of its path, where that is another one.
    pub spelled: Option<PathBuf>,
    /// The caller, seen from there: its repository's settings count for it.
    pub context: Context,
    /// What its own `.sandbox.toml` asks for.
    pub project: Project,
}

/// Who asks for a place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Flag,
    Setting,
    Project,
}

/// `PATH` or `PATH:ro`, as it is written.
struct Asked {
    who: Who,
    text: String,
}

impl Asked {
    /// The path, and whether it is read-only. A directory whose name ends with `:ro` is written with a `/`.
    fn parts(&self) -> (&str, bool) {
        match self.text.strip_suffix(":ro") {
            Some(path) => (path, true),
            None => (&self.text, false),
        }
    }
}

/// The path as errors show it.
fn shown(path: &Path) -> String {
    escape_bytes(path.as_os_str().as_bytes())
}

/// Finds everything that comes along with the working tree `top` of `main`.
pub fn places(
    context: &Context,
    store: &Store,
    main: &HostRepo,
    top: &Path,
    args: &cli::Spawn,
    project: &Project,
) -> Result<Vec<Place>, CliError> {
    let flags = args.with.iter().map(|text| Asked { who: Who::Flag, text: text.clone() });
    let settings = context.settings(SETTING).into_iter().map(|text| Asked { who: Who::Setting, text });
    let projects = project.with.iter().map(|text| Asked { who: Who::Project, text: text.clone() });
    let asked: Vec<Asked> = flags.chain(settings).chain(projects).collect();
    if asked.is_empty() {
        return Ok(Vec::new());
    }
    if let Some(name) = ["GIT_DIR", "GIT_WORK_TREE"].iter().find(|name| context.vars.contains_key(**name)) {
        return Err(CliError::new(format!("{name} is set, so that there is one repository only"))
            .hint(format!("`unset {name}`, and `-C DIR` to start elsewhere")));
    }
    let mut places: Vec<(Who, Place)> = Vec::new();
    for asked in asked {
        let (text, read_only) = asked.parts();
        let base = if asked.who == Who::Flag { &context.cwd } else { top };
        let path = match (asked.who, text.strip_prefix("~/")) {
            (Who::Setting, Some(rest)) => context.home.join(rest),
            _ => base.join(text),
        };
        if asked.who == Who::Project && fs::symlink_metadata(&path).is_err() {
            told(args, &format!("left out: '{}' asks for '{}', which is not there", project::FILE, shown(&path)));
            continue;
        }
        let blame = |error: CliError| match asked.who {
            Who::Flag => error,
            Who::Setting => error.cause(format!("`{SETTING}` names it")),
            Who::Project => error.cause(format!("'{}' asks for it", project::FILE)),
        };
        let path = canonical(&path).map_err(blame)?;
        if asked.who != Who::Flag && path.starts_with(top) {
            continue;
        }
        if let Some((who, known)) = places.iter_mut().find(|(_, known)| known.path == path) {
            if *who == Who::Flag && asked.who == Who::Flag {
                return Err(CliError::usage(format!("'{}' is given twice", shown(&path))).hint("name it once"));
            }
            // The tighter of two wishes.
            known.read_only |= read_only;
            continue;
        }
        outside(context, store, top, &path).map_err(blame)?;
        if let Some((_, other)) =
            places.iter().find(|(_, other)| path.starts_with(&other.path) || other.path.starts_with(&path))
        {
            let (inner, outer) =
                if path.starts_with(&other.path) { (&path, &other.path) } else { (&other.path, &path) };
            let text = format!("'{}' is in '{}', which comes along too", shown(inner), shown(outer));
            return Err(blame(CliError::new(text).hint("name one of the two")));
        }
        let repo = repository(context, &path).map_err(blame)?;
        if let Some(repo) = &repo {
            let known = places.iter().filter_map(|(_, place)| place.repo.as_ref());
            own_git_dir(repo, &path, std::iter::once(main).chain(known)).map_err(blame)?;
        }
        if asked.who == Who::Project && !agreed(store, main, &path, repo.is_some(), read_only, args)? {
            continue;
        }
        let spelled = if asked.who == Who::Flag { spelling(context, text, &path) } else { None };
        let place = Place {
            context: context.at(&path, repo.clone())?,
            project: Project::read(&path).map_err(|error| error.cause(format!("it is in '{}'", shown(&path))))?,
            path,
            repo,
            read_only,
            spelled,
        };
        places.push((asked.who, place));
    }
    let mut places: Vec<Place> = places.into_iter().map(|(_, place)| place).collect();
    // A link in a tree is what was captured there.
    let trees: Vec<PathBuf> = places.iter().map(|place| place.path.clone()).chain([top.to_owned()]).collect();
    for place in &mut places {
        place.spelled.take_if(|link| trees.iter().any(|tree| link.starts_with(tree)));
    }
    Ok(places)
}

fn told(args: &cli::Spawn, line: &str) {
    if !args.quiet {
        eprintln!("{line}");
    }
}

/// The directory that a path leads to.
fn canonical(path: &Path) -> Result<PathBuf, CliError> {
    let found = fs::canonicalize(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            CliError::new(format!("there is no '{}'", shown(path))).hint("`--with` names a directory that exists")
        }
        _ => CliError::new(format!("cannot read '{}'", shown(path))).cause(error.to_string()),
    })?;
    if !found.is_dir() {
        return Err(CliError::new(format!("'{}' is not a directory", shown(&found)))
            .hint("`git sandbox cp FILE NAME:PATH` copies a file into a sandbox"));
    }
    fs::read_dir(&found)
        .map_err(|error| CliError::new(format!("cannot read '{}'", shown(&found))).cause(error.to_string()))?;
    Ok(found)
}

/// Refuses what cannot come along: parts of the system, the home, and what has the working tree in common.
fn outside(context: &Context, store: &Store, top: &Path, path: &Path) -> Result<(), CliError> {
    if path.as_os_str().as_bytes().contains(&b'\n') {
        return Err(
            CliError::new(format!("there is a line break in the path '{}'", shown(path))).hint("rename the directory")
        );
    }
    if ["/proc", "/sys", "/dev"].iter().any(|dir| path.starts_with(dir)) {
        return Err(CliError::new(format!("'{}' cannot come along", shown(path)))
            .cause("it is part of the system's own view inside".to_owned())
            .hint("`--with` is for directories with files of yours"));
    }
    if path.starts_with(top) {
        return Err(CliError::new(format!("'{}' is in the working tree already", shown(path)))
            .hint(format!("`--with` is for what is outside of '{}'", shown(top))));
    }
    let home = fs::canonicalize(&context.home).unwrap_or_else(|_| context.home.clone());
    if path != Path::new("/") && home.starts_with(path) {
        return Err(CliError::new(format!("'{}' holds your home directory", shown(path)))
            .hint("a sandbox has a home of its own: name a directory below it"));
    }
    refuse_place(context, store, path)?;
    if top.starts_with(path) {
        return Err(CliError::new(format!("'{}' holds the working tree '{}'", shown(path), shown(top)))
            .hint("name directories beside the working tree, or spawn up there"));
    }
    Ok(())
}

/// The repository whose work tree's top is `path`; `None` for a directory that no repository tracks.
fn repository(context: &Context, path: &Path) -> Result<Option<HostRepo>, CliError> {
    let git = context.git()?;
    let repo = match HostRepo::ask(git, path) {
        Ok(repo) => repo,
        Err(HostRepoError::NotARepository { .. }) if path.join(".git").symlink_metadata().is_err() => return Ok(None),
        Err(HostRepoError::DubiousOwnership { path: other })
            if other != path && path.join(".git").symlink_metadata().is_err() =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    match repo.top() {
        Some(top) if top == path => Ok(Some(repo)),
        Some(top) => {
            let tracked = git.user(path).args(["ls-files", "-z", "--cached", "--", "."]).output()?;
            if tracked.stdout.is_empty() {
                return Ok(None);
            }
            Err(CliError::new(format!("'{}' is part of the repository '{}'", shown(path), shown(top)))
                .hint(format!("`--with '{}'` takes all of it", shown(top))))
        }
        None if repo.is_bare() => Err(CliError::new(format!("'{}' is a bare repository", shown(path)))
            .hint("`git clone` it, and take the clone along")),
        None => Err(HostRepoError::InsideGitDir { path: repo.git_dir().to_owned() }.into()),
    }
}

/// Refuses a repository that shares its git directory with another one of the sandbox: a work tree of the
/// same repository, or of a submodule of it. The sandbox's refs of both would have the same names.
fn own_git_dir<'a>(repo: &HostRepo, path: &Path, others: impl Iterator<Item = &'a HostRepo>) -> Result<(), CliError> {
    for other in others {
        let (mine, theirs) = (repo.common_dir(), other.common_dir());
        let tree = shown(other.top_or_gitdir());
        if mine == theirs {
            return Err(CliError::new(format!("'{}' is another work tree of the repository of '{tree}'", shown(path)))
                .hint("a sandbox has one work tree of a repository: `--grant BRANCH` makes a branch visible inside"));
        }
        let nested = |inner: &Path, outer: &HostRepo| {
            inner.starts_with(outer.common_dir()) || outer.top().is_some_and(|top| inner.starts_with(top))
        };
        if nested(mine, other) || nested(theirs, repo) {
            return Err(CliError::new(format!(
                "'{}' shares its git directory with a repository inside '{tree}'",
                shown(path)
            ))
            .hint("that one comes along with its repository: work on it there"));
        }
    }
    Ok(())
}

/// Whether the user lets the repository have what its `.sandbox.toml` asks for. Asked once; without a
/// terminal the answer is no, and nothing is remembered.
fn agreed(
    store: &Store,
    main: &HostRepo,
    path: &Path,
    repository: bool,
    read_only: bool,
    args: &cli::Spawn,
) -> Result<bool, CliError> {
    let wide = sandbox_protocol::escape_bytes(path.as_os_str().as_bytes());
    let key = if read_only { format!("{wide}:ro") } else { wide.clone() };
    let file = store.repo(&main.repo_id(store)?).record();
    let record: Option<RepoRecord> = read_json(&file)?;
    let answers = record.as_ref().map(|record| &record.with);
    // Who may change it may read it.
    let answer = answers.and_then(|with| with.get(&key).or(with.get(&wide).filter(|yes| read_only && **yes)));
    let shown = shown(path);
    let ro = if read_only { ":ro" } else { "" };
    match answer {
        Some(true) => return Ok(true),
        Some(false) => {
            told(args, &format!("left out, as you said: '{shown}', which '{}' asks for", project::FILE));
            return Ok(false);
        }
        None if !asks() || args.dry_run => {
            told(args, &format!("left out: '{shown}', which '{}' asks for and nobody agreed to", project::FILE));
            told(args, &format!("hint: `--with '{shown}{ro}'` or `git config --add {SETTING} '{shown}{ro}'` agrees"));
            return Ok(false);
        }
        None => {}
    }
    let kind = if repository { "a repository" } else { "a directory" };
    let how = match (read_only, repository) {
        (true, _) => "read-only",
        (false, true) => "a copy to work in; its commits come home to it",
        (false, false) => "a copy to work in",
    };
    eprintln!("'{}' asks for more than this working tree:", project::FILE);
    eprintln!("  {shown} ({kind}, {how})");
    eprint!("shall sandboxes of this repository have it? [y/N] ");
    let _ = io::stderr().flush();
    let yes = crate::leave::yes(false);
    if let Some(mut record) = read_json::<RepoRecord>(&file)? {
        record.with.insert(key, yes);
        write_twice(&file, &record, true)?;
    }
    let change = if yes {
        "a change of what it asks for is asked anew".to_owned()
    } else {
        format!("`--with '{shown}{ro}'` takes it along")
    };
    eprintln!("remembered: {change}");
    Ok(yes)
}

/// The caller's own spelling of a path, if it leads there by links.
fn spelling(context: &Context, text: &str, path: &Path) -> Option<PathBuf> {
    let base = context.spelled.as_ref().unwrap_or(&context.cwd);
    let mut spelled = PathBuf::new();
    for part in base.join(text).components() {
        match part {
            Component::ParentDir => drop(spelled.pop()),
            Component::CurDir => {}
            part => spelled.push(part),
        }
    }
    let leads_there = fs::canonicalize(&spelled).is_ok_and(|found| found == path);
    (spelled != path && leads_there && spelled.to_str().is_some()).then_some(spelled)
}
