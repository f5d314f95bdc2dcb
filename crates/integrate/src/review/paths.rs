//! Names of files that programs look for by themselves.

use super::{Finding, Grade};
use crate::path::RepoPath;

/// Why, when, and the patterns of [`matches`].
struct Row {
    grade: Grade,
    why: &'static str,
    when: &'static str,
    patterns: &'static [&'static str],
}

const HOOK: &str = "runs as a git hook";

/// A name anywhere, `dir/` a directory anywhere, `dir/name` one below the other; with `*` at one end.
const TABLE: &[Row] = &[
    Row {
        grade: Grade::Red,
        why: HOOK,
        when: "at the next `git commit`, checkout or push, where its hook manager is installed",
        patterns: &[
            ".husky/",
            ".githooks/",
            ".hooks/",
            "lefthook.y*ml",
            "lefthook-local.y*ml",
            ".lefthook.y*ml",
            ".lefthook/",
            ".pre-commit-config.yaml",
            ".pre-commit-config.yml",
            ".overcommit.yml",
            ".huskyrc*",
            ".lintstagedrc*",
        ],
    },
    Row {
        grade: Grade::Red,
        why: "configures git",
        when: "at the next git command",
        patterns: &[".lfsconfig", ".gitconfig"],
    },
    Row {
        grade: Grade::Red,
        why: "is loaded by the shell",
        when: "when a shell enters the directory",
        patterns: &[
            ".envrc",
            ".env.mise",
            "mise.toml",
            "mise.local.toml",
            ".mise*",
            ".mise/",
            ".config/mise/",
            ".config/mise.toml",
            ".tool-versions",
            ".autoenv*",
            ".rtx.toml",
        ],
    },
    Row {
        grade: Grade::Red,
        why: "is loaded by an editor",
        when: "when an editor opens the directory",
        patterns: &[
            ".vscode/",
            "*.code-workspace",
            ".idea/",
            ".devcontainer/",
            ".devcontainer.json",
            ".zed/",
            ".fleet/",
            ".nvim.lua",
            ".nvimrc",
            ".exrc",
            ".vimrc",
            ".lvimrc",
            ".dir-locals.el",
            ".dir-locals-2.el",
            "*.sublime-project",
        ],
    },
    Row {
        grade: Grade::Red,
        why: "instructs coding agents",
        when: "when an agent starts here",
        patterns: &[
            ".claude/",
            ".codex/",
            ".cursor/",
            ".gemini/",
            ".opencode/",
            ".windsurf/",
            ".roo/",
            ".continue/",
            ".junie/",
            ".kiro/",
            ".amazonq/",
            ".mcp.json",
            "mcp.json",
            "AGENTS.md",
            "AGENT.md",
            "CLAUDE.md",
            "CLAUDE.local.md",
            "GEMINI.md",
            ".cursorrules",
            ".windsurfrules",
            ".clinerules",
            ".clinerules/",
            ".goosehints",
            ".aider.conf.yml",
            "opencode.json*",
            ".github/copilot-instructions.md",
            ".github/instructions/",
        ],
    },
    Row {
        grade: Grade::Red,
        why: "is run by a compiler or package manager",
        when: "at the next `cargo`, `npm` or `yarn` command",
        patterns: &[
            ".cargo/config.toml",
            ".cargo/config",
            "rust-toolchain",
            "rust-toolchain.toml",
            "build.rs",
            ".npmrc",
            ".yarnrc*",
            ".yarn/",
            ".pnp.cjs",
            ".pnp.loader.mjs",
            ".pnpmfile.cjs",
            "bunfig.toml",
        ],
    },
    Row {
        grade: Grade::Red,
        why: "is run by continuous integration",
        when: "when it is pushed",
        patterns: &[
            ".github/workflows/",
            ".github/actions/",
            ".gitea/workflows/",
            ".forgejo/workflows/",
            ".gitlab-ci.yml",
            "Jenkinsfile",
            ".circleci/",
            ".buildkite/",
            ".travis.yml",
            ".drone.yml",
            ".woodpecker*",
            ".woodpecker/",
            ".cirrus.yml",
            "appveyor.yml",
            "azure-pipelines.yml",
            "bitbucket-pipelines.yml",
        ],
    },
    Row {
        grade: Grade::Amber,
        why: "runs in a build",
        when: "at the next build",
        patterns: &[
            "Makefile",
            "GNUmakefile",
            "*.mk",
            "CMakeLists.txt",
            "*.cmake",
            "configure",
            "configure.ac",
            "meson.build",
            "*.gradle",
            "*.gradle.kts",
            "gradle/wrapper/",
            "gradlew",
            "mvnw",
            ".mvn/",
            "pom.xml",
            "Dockerfile*",
            "*.dockerfile",
            "Containerfile*",
            "compose*.yml",
            "compose*.yaml",
            "docker-compose*",
            "Taskfile*",
            "justfile",
            ".justfile",
            "setup.py",
            "setup.cfg",
            "pyproject.toml",
            "Gemfile",
            "Rakefile",
            "*.gemspec",
            ".bundle/",
            "*.pth",
            "sitecustomize.py",
            "usercustomize.py",
            "WORKSPACE",
            "BUILD.bazel",
            "*.bzl",
            "flake.nix",
            "shell.nix",
            "default.nix",
            "webpack.config.*",
            "vite.config.*",
            "gulpfile.*",
            "Gruntfile.*",
        ],
    },
    Row {
        grade: Grade::Amber,
        why: "runs in tests",
        when: "at the next test run",
        patterns: &["conftest.py", "tox.ini", "noxfile.py", "jest.config.*", "vitest.config.*", ".mocharc*"],
    },
    Row {
        grade: Grade::Amber,
        why: "is what the repository asks of its sandboxes",
        when: "at the next `git sandbox spawn`",
        patterns: &[".sandbox.toml", ".sandboxignore"],
    },
    Row { grade: Grade::Amber, why: "hides files from `git status`", when: "at once", patterns: &[".gitignore"] },
    Row {
        grade: Grade::Amber,
        why: "changes who seems to have written commits",
        when: "at the next `git log` or `git blame`",
        patterns: &[".mailmap"],
    },
];

/// `is_hook`: it is told already that the host runs it as a hook.
pub(super) fn look(path: &RepoPath, is_hook: bool, all: &mut Vec<Finding>) {
    for row in TABLE.iter().filter(|row| !(is_hook && row.why == HOOK)) {
        if row.patterns.iter().any(|pattern| matches(path, pattern)) {
            all.push(Finding::new(row.grade, path, row.why).when(row.when));
        }
    }
}

/// Whether a path has a pattern's names one below the other; without regard to case, because some file
/// systems have none.
pub(super) fn matches(path: &RepoPath, pattern: &str) -> bool {
    let names: Vec<&[u8]> = path.as_bytes().split(|b| *b == b'/').collect();
    let is_dir = pattern.ends_with('/');
    let parts: Vec<&str> = pattern.trim_end_matches('/').split('/').collect();
    let fits = |window: &[&[u8]]| window.iter().zip(&parts).all(|(name, part)| one(name, part));
    match (names.len().checked_sub(parts.len()), is_dir) {
        (Some(last), true) => (0..last).any(|at| fits(&names[at..at + parts.len()])),
        (Some(last), false) => fits(&names[last..]),
        (None, _) => false,
    }
}

/// One name; a `*` in the pattern stands for anything.
fn one(name: &[u8], pattern: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let pattern = pattern.to_ascii_lowercase();
    match pattern.split_once('*') {
        None => name == pattern.as_bytes(),
        Some((start, end)) => {
            name.len() >= start.len() + end.trim_end_matches('*').len()
                && name.starts_with(start.as_bytes())
                && name.ends_with(end.as_bytes())
        }
    }
}
