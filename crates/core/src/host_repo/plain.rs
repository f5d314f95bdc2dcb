//! The usual repository, found without git: a directory `.git` of the caller's own, in or above the
//! current directory, with nothing said about it that changes where things are.
//!
//! `git rev-parse` costs 3 ms at each spawn, half of what all the rest costs before the fork. What is not
//! surely plain is git's to find: every doubt is `None`, and no error is told here. What makes a doubt:
//!
//! | git would look at | here |
//! |---|---|
//! | `GIT_DIR`, ceilings and the like | any of them set: `None`, by the caller |
//! | a gitfile, a symlink `.git`, `commondir` | `None` |
//! | a directory that is itself a git directory | a `HEAD` in it: `None` |
//! | another file system on the way up | `None` |
//! | another owner (`safe.directory`) | `None` |
//! | `core.bare`, `core.worktree`, `extensions.*`, format versions | a word of them other than the usual lines: `None` |

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Returns the canonical top of the work tree; its git directory is `.git` in it, of SHA-1.
pub fn top(cwd: &Path) -> Option<PathBuf> {
    let start = fs::canonicalize(cwd).ok()?;
    let device = fs::symlink_metadata(&start).ok()?.dev();
    for directory in start.ancestors() {
        let facts = fs::symlink_metadata(directory).ok()?;
        if facts.dev() != device {
            return None;
        }
        let git_dir = directory.join(".git");
        match fs::symlink_metadata(&git_dir) {
            Ok(git) => {
                let user = rustix::process::geteuid().as_raw();
                let own = git.is_dir() && git.uid() == user && facts.uid() == user && git.dev() == device;
                return (own && is_plain(&git_dir)).then(|| directory.to_owned());
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(_) => return None,
        }
        // As in a bare repository, or inside `.git`.
        if fs::symlink_metadata(directory.join("HEAD")).is_ok() {
            return None;
        }
    }
    None
}

fn is_plain(git_dir: &Path) -> bool {
    let directory = |name: &str| fs::symlink_metadata(git_dir.join(name)).is_ok_and(|facts| facts.is_dir());
    let file = |name: &str| {
        fs::symlink_metadata(git_dir.join(name)).ok().filter(fs::Metadata::is_file)?;
        fs::read_to_string(git_dir.join(name)).ok()
    };
    directory("objects")
        && directory("refs")
        && fs::symlink_metadata(git_dir.join("commondir")).is_err()
        && file("HEAD").is_some_and(|text| is_head(text.trim_end()))
        && file("config").is_some_and(|text| says_nothing(&text))
}

fn is_head(text: &str) -> bool {
    text.strip_prefix("ref: refs/").is_some_and(|name| !name.is_empty())
        || text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// True when a configuration has none of the words that change a layout, but in the lines of a usual one.
/// A branch of such a name is a doubt, too.
fn says_nothing(config: &str) -> bool {
    config.lines().all(|line| {
        let line = line.trim().to_ascii_lowercase();
        matches!(line.as_str(), "bare = false" | "repositoryformatversion = 0")
            || !["bare", "worktree", "extensions", "repositoryformatversion"].iter().any(|word| line.contains(word))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations() {
        let usual = "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n";
        assert!(says_nothing(usual));
        assert!(says_nothing(&format!("{usual}[remote \"origin\"]\n\turl = x\n")));
        for more in [
            "[core] bare = true",
            "\tbare = true",
            "\tBare=TRUE",
            "\tbare",
            "\tworktree = /x",
            "[extensions]\n\tobjectFormat = sha256",
            "[Extensions \"x\"]",
            "\trepositoryformatversion = 1",
            "[branch \"worktree\"]",
        ] {
            assert!(!says_nothing(&format!("{usual}{more}\n")), "{more}");
        }
    }

    #[test]
    fn heads() {
        assert!(is_head("ref: refs/heads/main") && is_head(&"0".repeat(40)));
        for other in ["", "ref: refs/", "ref: HEAD", "refs/heads/x", "ref:refs/heads/x", &"0".repeat(64)] {
            assert!(!is_head(other), "{other}");
        }
    }
}
