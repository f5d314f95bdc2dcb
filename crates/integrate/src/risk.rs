//! Incoming paths that deserve a look before they are merged: what runs by itself, or on the next
//! routine command, or hides something from the reader.

use crate::path::{Entry, Mode, RepoPath};
use serde::Serialize;

/// How soon it could run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// When building or testing.
    Amber,
    /// Without a further decision, or on the next routine command.
    Red,
}

/// Something to look at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// How soon it could run.
    pub grade: Grade,
    /// The path.
    pub path: RepoPath,
    /// Why.
    pub why: String,
}

/// Patterns of [`matches`]: a name anywhere; `dir/` a directory anywhere; with `*` at one end.
const RED: &[(&str, &[&str])] = &[
    ("runs as a git hook", &[".husky/", ".githooks/", "lefthook.yml", "lefthook.yaml", ".pre-commit-config.yaml"]),
    ("configures git", &[".gitattributes", ".gitmodules", ".lfsconfig", ".gitconfig"]),
    ("is loaded by the shell", &[".envrc", "mise.toml", ".mise.toml", ".mise/", ".tool-versions", ".autoenv*"]),
    (
        "is loaded by an editor",
        &[
            ".vscode/",
            "*.code-workspace",
            ".idea/",
            ".devcontainer/",
            ".zed/",
            ".nvim.lua",
            ".exrc",
            ".vimrc",
            ".dir-locals.el",
        ],
    ),
    (
        "instructs coding agents",
        &[
            ".claude/",
            ".codex/",
            ".cursor/",
            ".gemini/",
            ".mcp.json",
            "AGENTS.md",
            "CLAUDE.md",
            ".cursorrules",
            "copilot-instructions.md",
        ],
    ),
    (
        "is run by a package manager or compiler",
        &[
            ".cargo/",
            "rust-toolchain*",
            "build.rs",
            ".npmrc",
            ".yarnrc*",
            ".pnpmfile.cjs",
            "bunfig.toml",
            "package.json",
        ],
    ),
    ("is run by continuous integration", &[".github/", ".gitlab-ci.yml", "Jenkinsfile", ".circleci/"]),
];

const AMBER: &[(&str, &[&str])] = &[
    (
        "runs in a build",
        &[
            "Makefile",
            "CMakeLists.txt",
            "configure",
            "meson.build",
            "*.gradle",
            "*.gradle.kts",
            "mvnw",
            "Dockerfile*",
            "Taskfile*",
            "justfile",
            "setup.py",
            "pyproject.toml",
            "Gemfile",
            "Rakefile",
            "*.gemspec",
            ".bundle/",
            "*.pth",
            "sitecustomize.py",
        ],
    ),
    ("runs in tests", &["conftest.py", "tox.ini", "noxfile.py"]),
    (
        "pins what is downloaded",
        &[
            "Cargo.lock",
            "package-lock.json",
            "yarn.lock",
            "pnpm-lock.yaml",
            "poetry.lock",
            "uv.lock",
            "Gemfile.lock",
            "go.sum",
        ],
    ),
];

fn matches(path: &RepoPath, pattern: &str) -> bool {
    let mut names = path.as_bytes().split(|b| *b == b'/').peekable();
    while let Some(name) = names.next() {
        let is_dir = names.peek().is_some();
        let name = name.to_ascii_lowercase();
        let hit = |text: &str| name == text.to_ascii_lowercase().as_bytes();
        let found = if let Some(dir) = pattern.strip_suffix('/') {
            is_dir && hit(dir)
        } else if is_dir {
            false
        } else if let Some(end) = pattern.strip_prefix('*') {
            name.ends_with(end.to_ascii_lowercase().as_bytes())
        } else if let Some(start) = pattern.strip_suffix('*') {
            name.starts_with(start.to_ascii_lowercase().as_bytes())
        } else {
            hit(pattern)
        };
        if found {
            return true;
        }
    }
    false
}

/// Looks at one incoming change. `target` is a symlink's target.
pub(crate) fn look(path: &RepoPath, old: Option<Entry>, new: Option<Entry>, target: Option<&[u8]>) -> Vec<Warning> {
    let Some(new) = new else { return Vec::new() };
    let mut all = Vec::new();
    let mut warn = |grade, why: &str| all.push(Warning { grade, path: path.clone(), why: why.to_owned() });
    for (grade, table) in [(Grade::Red, RED), (Grade::Amber, AMBER)] {
        for (why, patterns) in table {
            if patterns.iter().any(|pattern| matches(path, pattern)) {
                warn(grade, why);
            }
        }
    }
    match (old.map(|old| old.mode), new.mode) {
        (Some(Mode::Executable), Mode::Executable) => {}
        (_, Mode::Executable) => warn(Grade::Amber, "becomes executable"),
        (Some(Mode::Gitlink), Mode::Gitlink) => {}
        (_, Mode::Gitlink) => warn(Grade::Amber, "is a new submodule"),
        (_, Mode::Symlink) => match target {
            Some(target) if leaves(path, target) => warn(Grade::Red, "is a symlink that leads out of the tree"),
            _ => warn(Grade::Amber, "is a symlink"),
        },
        _ => {}
    }
    if sandbox_git::printable(path.as_bytes()).as_bytes() != path.as_bytes() {
        warn(Grade::Red, "has a name with invisible or control characters");
    }
    all
}

/// Whether a symlink's target is absolute or climbs above the top.
fn leaves(path: &RepoPath, target: &[u8]) -> bool {
    let mut depth = path.ancestors().count();
    if target.starts_with(b"/") {
        return true;
    }
    for name in target.split(|b| *b == b'/') {
        match name {
            b"" | b"." => {}
            b".." if depth == 0 => return true,
            b".." => depth -= 1,
            _ => depth += 1,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_git::{ObjectFormat, Oid};

    fn grades(path: &str, old: Option<Mode>, new: Mode, target: Option<&str>) -> Vec<Grade> {
        let entry = |mode| Entry { mode, id: Oid::null(ObjectFormat::Sha1) };
        let path = RepoPath::parse(path.as_bytes()).unwrap();
        let found = look(&path, old.map(entry), Some(entry(new)), target.map(str::as_bytes));
        found.into_iter().map(|w| w.grade).collect()
    }

    #[test]
    fn what_runs_by_itself_is_red() {
        let file = Some(Mode::File);
        for path in
            [".gitattributes", "a/.GitAttributes", ".husky/pre-commit", "x/.vscode/tasks.json", "CLAUDE.md", "build.rs"]
        {
            assert_eq!(grades(path, file, Mode::File, None), [Grade::Red], "{path}");
        }
        assert_eq!(grades("Makefile", file, Mode::File, None), [Grade::Amber]);
        assert_eq!(grades("src/main.rs", file, Mode::File, None), []);
        assert_eq!(grades("src/main.rs", file, Mode::Executable, None), [Grade::Amber]);
        assert_eq!(grades("a\u{202e}b", file, Mode::File, None), [Grade::Red]);
    }

    #[test]
    fn symlinks_out_of_the_tree_are_red() {
        assert_eq!(grades("d/l", None, Mode::Symlink, Some("../x")), [Grade::Amber]);
        assert_eq!(grades("d/l", None, Mode::Symlink, Some("../../x")), [Grade::Red]);
        assert_eq!(grades("l", None, Mode::Symlink, Some("/etc")), [Grade::Red]);
    }
}
