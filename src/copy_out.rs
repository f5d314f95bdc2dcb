//! `spawn --copy-out SRC:DST`: files out of a sandbox whose command has ended, before it may be dropped. By the rules
//! of `cp`: what is inside decides neither what is read nor where it is written.

use crate::context::Context;
use crate::error::CliError;
use crate::report::Copied;
use crate::text::{count, escape, size};
use crate::verbs::cp;
use sandbox_core::copy_out::matching::{is_pattern, matching};
use sandbox_core::copy_out::{CopyOut, Links, copy_out};
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::Store;
use std::path::{Path, PathBuf};

/// Bytes that one `--copy-out` takes at most, by apparent size.
const LIMIT: u64 = 1 << 30;

/// What to copy, and where to.
#[derive(Clone, Debug, PartialEq)]
pub struct Wish {
    /// A path or a pattern, relative to the top of the working tree.
    pub from: String,
    /// On the host.
    pub to: PathBuf,
}

impl Wish {
    /// Reads `SRC:DST`; what is relative in DST is relative to `cwd`.
    pub fn parse(text: &str, cwd: &Path) -> Result<Self, CliError> {
        match text.split_once(':') {
            Some((from, to)) if !from.is_empty() && !to.is_empty() => {
                Ok(Self { from: from.to_owned(), to: cwd.join(to) })
            }
            _ => Err(CliError::usage(format!("'{}' is not SRC:DST", escape(text)))
                .hint("for example `--copy-out 'target/*.xml:reports/'`")),
        }
    }

    /// Whether what matches goes into a directory of this name.
    fn is_for_a_directory(&self) -> bool {
        is_pattern(&self.from) || self.to.as_os_str().as_encoded_bytes().ends_with(b"/") || self.to.is_dir()
    }
}

/// Copies all that is wished for. What went wrong is told and is in the result; the rest is copied all the same.
pub fn all(context: &Context, store: &Store, sandbox: &Sandbox, wishes: &[Wish], quiet: bool) -> Vec<Copied> {
    let seen = see(context, store, sandbox, wishes);
    let copied: Vec<Copied> = wishes.iter().map(|wish| one(store, sandbox, wish, &seen)).collect();
    for copied in &copied {
        for (path, why) in &copied.skipped {
            eprintln!("skipped '{path}': {why}");
        }
        match &copied.error {
            Some(why) => eprintln!("error: cannot copy '{}' out\ncaused by: {why}", escape(&copied.from)),
            None if quiet => {}
            None => eprintln!(
                "copied {}, {}, to '{}'",
                count(copied.files, "file"),
                size(copied.bytes),
                escape(&copied.to.to_string_lossy())
            ),
        }
    }
    copied
}

/// Has what is wished for seen, where what a sandbox writes is not on the host. All of what a pattern can match is.
fn see(context: &Context, store: &Store, sandbox: &Sandbox, wishes: &[Wish]) -> Result<(), String> {
    let fixed = |wish: &Wish| {
        let (tree, relative) = cp::relative(sandbox, &wish.from).ok()?;
        let parts = relative.components().take_while(|part| !is_pattern(&part.as_os_str().to_string_lossy()));
        Some((tree.tree, parts.collect::<PathBuf>()))
    };
    let paths: Vec<(usize, PathBuf)> = wishes.iter().filter_map(fixed).collect();
    let paths: Vec<(usize, &Path)> = paths.iter().map(|(n, path)| (*n, path.as_path())).collect();
    crate::picture::fresh_with(context, store, sandbox, &paths).map_err(|error| words(&error))
}

fn words(error: &CliError) -> String {
    std::iter::once(&error.message).chain(&error.causes).cloned().collect::<Vec<_>>().join(": ")
}

fn one(store: &Store, sandbox: &Sandbox, wish: &Wish, seen: &Result<(), String>) -> Copied {
    let mut copied = Copied { from: wish.from.clone(), to: wish.to.clone(), ..Copied::default() };
    let done = seen.clone().and_then(|()| copy(store, sandbox, wish, &mut copied).map_err(|error| words(&error)));
    copied.error = done.err();
    copied
}

fn copy(store: &Store, sandbox: &Sandbox, wish: &Wish, copied: &mut Copied) -> Result<(), CliError> {
    let (tree, relative) = cp::relative(sandbox, &wish.from)?;
    let paths = if is_pattern(&wish.from) {
        let pattern = relative.to_str().ok_or_else(|| CliError::new("it is not UTF-8"))?;
        let paths = matching(store, &tree, pattern).map_err(|error| CliError::chain(&error))?;
        if paths.is_empty() {
            return Err(CliError::new("nothing matches it"));
        }
        paths
    } else {
        vec![relative]
    };
    let into = wish.is_for_a_directory();
    let parent = if into { Some(wish.to.as_path()) } else { wish.to.parent() };
    if let Some(parent) = parent {
        std::fs::create_dir_all(parent).map_err(CliError::io(format!("make '{}'", parent.display())))?;
    }
    for path in paths {
        let target = match path.file_name().filter(|_| into) {
            Some(name) => wish.to.join(name),
            None => wish.to.clone(),
        };
        let limit = LIMIT.saturating_sub(copied.bytes);
        let request = CopyOut { path: &path, target: &target, links: Links::Inside, limit };
        let done = copy_out(store, &tree, &request)?;
        copied.files += done.files;
        copied.bytes += done.bytes;
        copied.skipped.extend(done.skipped.into_iter().map(|(below, why)| {
            let shown = path.join(below);
            (escape(&shown.to_string_lossy()), why.to_owned())
        }));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_has_two_sides() {
        let cwd = Path::new("/w");
        let wish = Wish::parse("target/*.xml:reports/", cwd).unwrap();
        assert_eq!((wish.from.as_str(), wish.to.as_path()), ("target/*.xml", Path::new("/w/reports/")));
        assert!(wish.is_for_a_directory());
        assert!(!Wish::parse("a.xml:/nowhere/b.xml", cwd).unwrap().is_for_a_directory());
        for bad in ["a", ":b", "a:", ""] {
            assert_eq!(Wish::parse(bad, cwd).unwrap_err().status, crate::error::USAGE, "{bad}");
        }
    }
}
