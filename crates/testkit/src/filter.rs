//! Makes output the same on every run: what differs becomes a word in brackets.

use regex::Regex;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};

/// Replacements, applied in the order: paths (longest first), then patterns.
#[derive(Debug, Default)]
pub struct Filters {
    paths: Mutex<Vec<(PathBuf, String)>>,
}

/// What differs between two runs of the same thing, whoever prints it.
static PATTERNS: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    [
        (r"\b(?:[0-9a-f]{64}|[0-9a-f]{40})\b", "[OID]"),
        (r"\b[0-9a-f]{32}\b", "[ID]"),
        (r"\bpid \d+\b", "pid [PID]"),
        (r"\b(?:an?|\d+) (?:second|minute|hour|day)s? ago\b", "[AGE] ago"),
        (r"\bjust now\b", "[AGE] ago"),
        (r"\b\d+(?:\.\d+)? ?(?:ms|µs|seconds?|s)\b", "[TIME]"),
        (r"\b\d+(?:\.\d+)? ?(?:KiB|MiB|GiB)\b", "[SIZE]"),
        (r"git-sandbox \d+\.\d+\.\d+", "git-sandbox [VERSION]"),
        // Whether the user has one is the machine's; a test of its own looks at it.
        (r" \(no cgroup\)|, no cgroup\b", ""),
    ]
    .into_iter()
    .map(|(pattern, word)| (Regex::new(pattern).expect("the pattern is constant"), word))
    .collect()
});

impl Filters {
    /// Shows `path`, and every path below it, as `word`.
    pub fn path(&self, path: &Path, word: &str) {
        let mut paths = self.paths.lock().expect("no test panics while it adds a filter");
        paths.push((path.to_owned(), word.to_owned()));
        paths.sort_by_key(|(path, _)| std::cmp::Reverse(path.as_os_str().len()));
    }

    /// Returns the text as it is compared.
    pub fn apply(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (path, word) in self.paths.lock().expect("no test panics while it adds a filter").iter() {
            text = text.replace(&*path.to_string_lossy(), word);
        }
        for (pattern, word) in PATTERNS.iter() {
            text = pattern.replace_all(&text, *word).into_owned();
        }
        text.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_between_runs_is_named() {
        let filters = Filters::default();
        filters.path(Path::new("/t/abc"), "[ROOT]");
        filters.path(Path::new("/t/abc/home/src/plain"), "[REPO]");
        let text = "/t/abc/home/src/plain/x /t/abc/state 2 minutes ago, 13 ms, 1.5 MiB, pid 4711\n\
                    da39a3ee5e6b4b0d3255bfef95601890afd80709 0123456789abcdef0123456789abcdef   \n";
        assert_eq!(filters.apply(text), "[REPO]/x [ROOT]/state [AGE] ago, [TIME], [SIZE], pid [PID]\n[OID] [ID]\n");
    }
}
