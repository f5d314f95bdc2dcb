//! Repositories inside a repository: submodules, checked out or not, and clones that lie in it.
//!
//! ```text
//! <work tree>/lib/.git            a file "gitdir: ../.git/modules/lib", or a directory
//! <git dir>/modules/lib           also when lib was deinitialised and has no work tree
//! <git dir>/modules/lib/modules/… and so on
//! ```
//!
//! A linked worktree is the same repository and is not listed.

use sandbox_protocol::{NestedRepo, escape_bytes};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

/// The most directories that are looked into, and for how long: this is asked at each move of a ref.
const MAX_DIRECTORIES: usize = 200_000;
const MAX_TIME: Duration = Duration::from_secs(3);

/// The most repositories that are listed.
const MAX_FOUND: usize = 1000;

/// What a search has found.
#[derive(Debug, Default)]
pub struct Search {
    /// In the order of their paths.
    pub found: Vec<NestedRepo>,
    /// A limit was met.
    pub cut: bool,
}

/// True for a directory that git would take for a repository's.
pub fn is_gitdir(path: &Path) -> bool {
    path.join("HEAD").symlink_metadata().is_ok()
        && (path.join("objects").is_dir() || path.join("commondir").is_file())
        && (path.join("refs").is_dir() || path.join("commondir").is_file())
}

/// Returns the directory that a `.git` file names.
pub fn read_gitfile(file: &Path) -> Option<PathBuf> {
    let bytes = super::read_regular(file, 8191)?;
    let named = bytes.strip_prefix(b"gitdir:")?.trim_ascii();
    Some(clean(&file.parent()?.join(OsStr::from_bytes(named))))
}

/// Resolves `.` and `..` by name alone.
fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    out
}

/// Searches a work tree and its git directory.
pub fn search(work_tree: &Path, gitdir: &Path) -> Search {
    let mut search = Search::default();
    let mut found: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    let until = Instant::now() + MAX_TIME;
    if work_tree != gitdir {
        walk(work_tree, until, &mut search.cut, &mut found);
    }
    let checked_out: Vec<PathBuf> = found.values().cloned().collect();
    let mut modules = Vec::new();
    collect_modules(&gitdir.join("modules"), 0, &mut modules);
    for own in checked_out.iter().filter(|own| !own.starts_with(gitdir)) {
        collect_modules(&own.join("modules"), 0, &mut modules);
    }
    for module in modules.into_iter().filter(|module| !checked_out.contains(module)) {
        let path = configured_work_tree(&module)
            .and_then(|path| path.strip_prefix(work_tree).ok().map(Path::to_owned))
            // Its name, which is its path unless somebody chose another.
            .or_else(|| module.strip_prefix(gitdir.join("modules")).ok().map(Path::to_owned));
        if let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) {
            found.entry(path).or_insert(module);
        }
    }
    search.cut |= found.len() > MAX_FOUND;
    let escape = |path: &Path| escape_bytes(path.as_os_str().as_bytes());
    search.found = found
        .iter()
        .take(MAX_FOUND)
        .map(|(path, gitdir)| NestedRepo { path: escape(path), gitdir: escape(gitdir) })
        .collect();
    search
}

fn walk(top: &Path, until: Instant, cut: &mut bool, found: &mut BTreeMap<PathBuf, PathBuf>) {
    let mut directories = vec![top.to_owned()];
    let mut seen = 0;
    while let Some(directory) = directories.pop() {
        seen += 1;
        if seen > MAX_DIRECTORIES || found.len() > MAX_FOUND || Instant::now() > until {
            *cut = true;
            return;
        }
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            if entry.file_name() == ".git" {
                let gitdir = if kind.is_dir() { Some(entry.path()) } else { read_gitfile(&entry.path()) };
                let inner = gitdir
                    .filter(|gitdir| directory != top && is_gitdir(gitdir) && !gitdir.join("commondir").is_file());
                if let (Some(gitdir), Ok(path)) = (inner, directory.strip_prefix(top)) {
                    found.insert(path.to_owned(), gitdir);
                }
            } else if kind.is_dir() {
                directories.push(entry.path());
            }
        }
    }
}

/// Names of submodules may hold slashes, so a directory that is no repository may hold some.
fn collect_modules(directory: &Path, depth: u32, out: &mut Vec<PathBuf>) {
    if depth > 12 || out.len() > MAX_FOUND {
        return;
    }
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        if is_gitdir(&path) {
            collect_modules(&path.join("modules"), depth + 1, out);
            out.push(path);
        } else {
            collect_modules(&path, depth + 1, out);
        }
    }
}

/// Returns `core.worktree` of a submodule's git directory; git writes it on a line of its own.
fn configured_work_tree(gitdir: &Path) -> Option<PathBuf> {
    let config = super::read_regular(&gitdir.join("config"), 1 << 20)?;
    let line = config.split(|byte| *byte == b'\n').find_map(|line| line.trim_ascii().strip_prefix(b"worktree"))?;
    let value = line.trim_ascii().strip_prefix(b"=")?.trim_ascii();
    Some(clean(&gitdir.join(OsStr::from_bytes(value))))
}
