use super::*;
use sandbox_git::ObjectFormat;
use sandbox_git::config::Listing;
use std::path::Path;

const FILE: Option<Mode> = Some(Mode::File);

fn path(text: &str) -> RepoPath {
    RepoPath::parse(text.as_bytes()).unwrap()
}

fn side(mode: Mode, content: &[u8]) -> Side {
    Side { entry: Entry { mode, id: Oid::null(ObjectFormat::Sha1) }, content: Content::Read(content.into()) }
}

fn changed(path: &str, old: Option<(Mode, &str)>, new: Option<(Mode, &str)>) -> Changed {
    let side = |(mode, text): (Mode, &str)| side(mode, text.as_bytes());
    Changed { path: self::path(path), old: old.map(side), new: new.map(side) }
}

/// A file of the host whose text changes.
fn edit(path: &str, old: &str, new: &str) -> Changed {
    changed(path, Some((Mode::File, old)), Some((Mode::File, new)))
}

fn host(settings: &[&str], hooks: &[HookFile]) -> Host {
    let text: String =
        settings.iter().map(|s| format!("local\0file:.git/config\0{}\0", s.replace('=', "\n"))).collect();
    Host::new(&Listing::parse(text.as_bytes()).unwrap(), Path::new("/w/tree"), Some(Path::new("/w")), hooks)
}

fn found(host: &Host, changes: &[Changed]) -> Vec<Finding> {
    let (directories, ignored) = (Directories::new(), BTreeSet::new());
    Review { changes, directories: &directories, ignored: &ignored, host }.findings()
}

fn told(host: &Host, change: Changed) -> Vec<String> {
    let text = |finding: Finding| {
        let grade = if finding.grade == Grade::Red { "red" } else { "amber" };
        let runs = finding.runs.map(|runs| format!(" `{runs}`")).unwrap_or_default();
        let when = finding.when.map(|when| format!(" {when}")).unwrap_or_default();
        format!("{grade}: {}{runs}{when}", finding.why)
    };
    found(host, &[change]).into_iter().map(text).collect()
}

fn grades(path: &str, old: Option<Mode>, new: Mode, target: &str) -> Vec<Grade> {
    let change = changed(path, old.map(|mode| (mode, "old")), Some((new, target)));
    found(&Host::default(), &[change]).into_iter().map(|finding| finding.grade).collect()
}

/// Every path that the threat model names, with its grade.
#[test]
fn each_path_of_the_specification_has_its_grade() {
    let red = [
        ".husky/pre-commit",
        ".githooks/x",
        "lefthook.yml",
        "lefthook.yaml",
        ".pre-commit-config.yaml",
        ".gitattributes",
        "a/.GitAttributes",
        ".gitmodules",
        ".lfsconfig",
        ".gitconfig",
        ".envrc",
        "mise.toml",
        ".mise.toml",
        ".mise/config.toml",
        ".tool-versions",
        ".autoenv.zsh",
        ".vscode/tasks.json",
        "x/.vscode/settings.json",
        ".vscode/launch.json",
        "my.code-workspace",
        ".idea/workspace.xml",
        ".devcontainer/devcontainer.json",
        ".zed/tasks.json",
        ".nvim.lua",
        ".exrc",
        ".vimrc",
        ".dir-locals.el",
        ".claude/settings.json",
        ".codex/config.toml",
        ".cursor/rules/a.mdc",
        ".gemini/settings.json",
        ".mcp.json",
        "AGENTS.md",
        "sub/CLAUDE.md",
        ".cursorrules",
        ".github/copilot-instructions.md",
        ".cargo/config.toml",
        "rust-toolchain",
        "rust-toolchain.toml",
        "build.rs",
        "crates/a/build.rs",
        ".npmrc",
        ".yarnrc.yml",
        ".pnpmfile.cjs",
        "bunfig.toml",
        ".github/workflows/ci.yml",
        ".gitlab-ci.yml",
        "Jenkinsfile",
        ".circleci/config.yml",
    ];
    for path in red {
        assert_eq!(grades(path, FILE, Mode::File, "new")[0], Grade::Red, "{path}");
    }
    let amber = [
        "Makefile",
        "CMakeLists.txt",
        "configure",
        "meson.build",
        "build.gradle",
        "app/build.gradle.kts",
        "gradle/wrapper/gradle-wrapper.properties",
        "mvnw",
        "Dockerfile",
        "Dockerfile.dev",
        "docker-compose.yml",
        "compose.yaml",
        "Taskfile.yml",
        "justfile",
        "setup.py",
        "pyproject.toml",
        "conftest.py",
        "tests/conftest.py",
        "tox.ini",
        "noxfile.py",
        "sitecustomize.py",
        "a.pth",
        "Gemfile",
        "Rakefile",
        "x.gemspec",
        ".bundle/config",
        "Cargo.lock",
        "package-lock.json",
        "yarn.lock",
        "pnpm-lock.yaml",
        "poetry.lock",
        "uv.lock",
        "go.sum",
        ".gitignore",
    ];
    for path in amber {
        assert_eq!(grades(path, FILE, Mode::File, "new"), [Grade::Amber], "{path}");
    }
    for path in ["src/main.rs", "docs/workflows/a.md", "github/workflows/x", "makefile.txt", "husky/x", "src/agents.rs"]
    {
        assert_eq!(grades(path, FILE, Mode::File, "new"), [], "{path}");
    }
}

#[test]
fn modes_and_links() {
    assert_eq!(grades("src/run", FILE, Mode::Executable, "x"), [Grade::Amber]);
    assert_eq!(grades("src/run", Some(Mode::Executable), Mode::Executable, "x"), []);
    assert_eq!(grades("d/l", None, Mode::Symlink, "../x"), [Grade::Amber]);
    for out in ["../../x", "/etc", "../.git/hooks/post-merge"] {
        assert_eq!(grades("d/l", None, Mode::Symlink, out), [Grade::Red], "{out}");
    }
    assert_eq!(
        told(&Host::default(), changed("l", None, Some((Mode::Symlink, "/etc/\u{1b}x")))),
        ["red: is a symlink that leads out of the tree, to '/etc/\\u{1b}x'"]
    );
}

#[test]
fn hooks_are_where_the_host_has_them() {
    let tree = host(&["core.hookspath=tools/hooks"], &[]);
    let why = |path: &str| told(&tree, edit(path, "a", "b"));
    assert_eq!(why("tools/hooks/post-merge"), ["red: is your git hook 'post-merge' at the next `git merge`"]);
    assert_eq!(
        why("tools/hooks/lib/common.sh"),
        ["red: is among your git hooks, by your 'core.hookspath' at the next git command with a hook"]
    );
    assert_eq!(why("tools/other"), [] as [&str; 0]);
    for spelled in ["/w/tree/tools/hooks", "~/tree/tools/hooks", "./x/../tools/hooks/"] {
        let host = host(&[&format!("core.hookspath={spelled}")], &[]);
        assert_eq!(told(&host, edit("tools/hooks/pre-push", "a", "b")).len(), 1, "{spelled}");
    }
    // The last value counts, and one outside of the tree is none of it.
    let outside = host(&["core.hookspath=tools/hooks", "core.hookspath=/etc/hooks"], &[]);
    assert_eq!(told(&outside, edit("tools/hooks/pre-push", "a", "b")), [] as [&str; 0]);
    let top = host(&["core.hookspath=."], &[]);
    assert_eq!(
        told(&top, edit("post-merge", "a", "b")),
        ["red: is your git hook 'post-merge' at the next `git merge`"]
    );
    assert_eq!(told(&top, edit("other", "a", "b")), [] as [&str; 0]);
}

#[test]
fn what_settings_and_hooks_name_is_found() {
    let settings = [
        "core.fsmonitor=.tools/monitor",
        "alias.t=!sh scripts/t.sh --fast",
        "alias.st=status",
        "include.path=../conf/shared.gitconfig",
        "filter.up.clean=$(git rev-parse --show-toplevel)/scripts/clean %f",
        "core.editor=vim",
        "remote.origin.url=/w/tree/remote",
        "sandbox.reviewignore=/silent x/silent",
        "gpg.program=/w/tree/gpg/wrap",
    ];
    let hooks = [
        HookFile {
            name: "pre-commit".into(),
            target: Some("/w/tree/.git/hooks/../../ci/pre.sh".into()),
            ..HookFile::default()
        },
        HookFile { name: "pre-push".into(), text: b"#!/bin/sh\nexec ./ci/push.sh README.md\n".to_vec(), target: None },
    ];
    let host = host(&settings, &hooks);
    for path in [
        ".tools/monitor",
        "scripts/t.sh",
        "conf/shared.gitconfig",
        "scripts/clean",
        "gpg/wrap",
        "ci/pre.sh",
        "ci/push.sh",
    ] {
        assert!(host.names(path), "{path}");
        assert_eq!(found(&host, &[edit(path, "a", "b")])[0].grade, Grade::Red, "{path}");
    }
    for path in ["status", "vim", "remote", "x/silent"] {
        assert!(!host.names(path), "{path}");
    }
    assert_eq!(
        told(&host, edit("README.md", "a", "b")),
        ["amber: is named by your hook 'pre-push' at the next `git push`"],
        "it may be an argument"
    );
    assert_eq!(
        told(&host, edit(".tools/monitor", "a", "b")),
        ["red: is named by your 'core.fsmonitor' at the next git command"]
    );
}

#[test]
fn attributes_are_told_by_what_the_host_has() {
    let host = host(
        &["filter.lfs.smudge=git-lfs smudge", "filter.lfs.process=git-lfs filter-process", "diff.x.textconv=x2txt"],
        &[],
    );
    let text = "*.bin filter=lfs\n*.x diff=x\n*.y diff=y\nsecret filter=crypt\n*.py -diff\n*.md merge=union\n# *.c filter=lfs\n";
    assert_eq!(
        told(&host, edit(".gitattributes", "*.txt text\n", text)),
        [
            "red: selects your filter 'lfs' for '*.bin' `git-lfs smudge | git-lfs filter-process` at the next checkout or `git add`",
            "red: merges '*.md' without ever a conflict from then on",
            "red: hides changes of '*.py' from `git diff` and `git log -p` from then on",
            "red: selects your diff 'x' for '*.x' `x2txt` at the next `git diff` or `git log -p`",
            "red: selects a filter 'crypt', which you have not configured",
        ]
    );
    assert_eq!(
        told(&host, changed(".gitattributes", Some((Mode::File, "*.bin filter=lfs\n")), None)),
        ["red: takes your filter 'lfs' away from '*.bin': it is stored as it is at the next `git add`"]
    );
    assert_eq!(
        told(&host, edit(".gitattributes", "*.bin filter=lfs\n", "*.bin filter=lfs\n*.c eol=lf\n")),
        ["red: configures git: attributes of files at the next git command"]
    );
}

#[test]
fn packages_are_told_by_what_changes() {
    let old = r#"{"name":"a","version":"1","scripts":{"test":"jest","build":"tsc"},"dependencies":{"x":"1"}}"#;
    let host = Host::default();
    assert_eq!(
        told(&host, edit("package.json", old, &old.replace("\"1\",\"scripts", "\"2\",\"scripts"))),
        [] as [&str; 0]
    );
    let new = old.replace("\"test\":\"jest\"", "\"test\":\"jest && curl x\",\"postinstall\":\"node evil.js\"");
    assert_eq!(
        told(&host, edit("web/package.json", old, &new.replace("\"x\":\"1\"", "\"x\":\"2\""))),
        [
            "red: adds the script 'postinstall' `node evil.js` at the next `npm install`",
            "red: changes the script 'test' `jest && curl x` with `npm run test`",
            "red: changes what is downloaded ('dependencies') at the next `npm install`",
        ]
    );
    assert_eq!(
        told(&host, edit("package.json", old, "{")),
        ["red: cannot be read as a package.json at the next `npm install`"]
    );
    let manifest = "[package]\nname = 'a'\n";
    assert_eq!(told(&host, edit("Cargo.toml", manifest, &format!("{manifest}version = '2'\n"))), [] as [&str; 0]);
    assert_eq!(
        told(
            &host,
            edit(
                "Cargo.toml",
                manifest,
                &format!("{manifest}build = 'b.rs'\n[lib]\nproc-macro = true\n[patch.x]\ny = {{ path = 'z' }}\n")
            )
        ),
        [
            "red: names a build script `b.rs` at the next `cargo build`",
            "red: puts other sources in the place of dependencies ('patch') at the next `cargo build`",
            "amber: is a procedural macro, which runs in the compiler at the next `cargo build`",
        ]
    );
    assert_eq!(
        told(
            &host,
            edit(
                "Cargo.lock",
                "source = \"registry+https://a.test/index\"\n",
                "source = \"git+https://b.test/x?rev=1\"\n"
            )
        ),
        [
            "red: downloads from 'b.test', from which it did not before at the next install or build",
            "amber: pins what is downloaded at the next install or build",
        ]
    );
    assert_eq!(
        told(&host, edit("a/gen.go", "package a\n", "package a\n//go:generate sh -c 'x'\n")),
        ["amber: has a command for `go generate` `sh -c 'x'` with `go generate`"]
    );
}

#[test]
fn submodules_are_told_with_their_source() {
    let old = "[submodule \"lib\"]\n\tpath = lib\n\turl = https://a.test/lib\n";
    let new = "[submodule \"lib\"]\n\tpath = lib\n\turl = ext::sh -c touch% x\n\tupdate = !touch x\n";
    assert_eq!(
        told(&Host::default(), edit(".gitmodules", old, new)),
        [
            "red: has a command for updates of submodule 'lib' `touch x` at the next `git submodule update`",
            "red: has submodule 'lib' come from 'ext::sh -c touch% x', which names a program at the next `git submodule update`",
        ]
    );
    let recursive = host(&["submodule.recurse=true"], &[]);
    assert!(told(&recursive, edit(".gitmodules", old, &format!("{old}\tbranch = x\n")))[0].contains("`git pull`"));
}

#[test]
fn what_hides_in_a_text_is_told_once_with_its_line() {
    let host = Host::default();
    let why = |old: &str, new: &str| told(&host, edit("a.py", old, new));
    assert_eq!(
        why("", "x = 1\nif a: # \u{202e}x\u{2066}\n"),
        ["amber: has characters that turn the order of text, in line 2"]
    );
    assert_eq!(why("a\n", "a\nad\u{200b}min\n"), ["amber: has characters that do not show, in line 2"]);
    assert_eq!(why("", "ok\n\u{1b}[2Jx\nabc\rd\n"), ["amber: has control characters, in line 2"]);
    assert_eq!(why("", "def p\u{430}y(): pass\n"), ["amber: has a word of mixed alphabets, 'p\u{430}y', in line 1"]);
    // What was there before, emoji, other scripts, line ends of another system, a byte order mark.
    let usual = "\u{feff}Grüße 日本 Привет\r\n👩\u{200d}💻 ❤\u{fe0f} می\u{200c}خواهم\ncafé_x naïve\n";
    assert_eq!(why("", usual), [] as [&str; 0]);
    assert_eq!(why("x\u{202e}\n", "x\u{202e}\nnew\n"), [] as [&str; 0]);
    assert_eq!(why("", "\0\u{202e}"), ["amber: is binary: a diff does not show it"]);
    assert_eq!(why("", "\x7fELF\0"), ["amber: is a compiled program (ELF)"]);
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123456789abcdef\nsize 5\n";
    assert_eq!(
        why("", pointer),
        [
            "amber: is a Git LFS pointer (sha256:0123456789abc…): its content is not in the commit when Git LFS fetches it"
        ]
    );
}

#[test]
fn names_that_deceive() {
    let grade = |path: &str| told(&Host::default(), edit(path, "a", "b"));
    assert_eq!(grade("a\u{202e}b"), ["red: has a name with invisible or control characters"]);
    assert_eq!(grade(".g\u{456}tmodules"), ["red: has a name that looks like '.gitmodules'"]);
    assert_eq!(grade("src/p\u{430}y.rs"), ["amber: has a name of mixed alphabets"]);
    assert_eq!(grade("docs/Grüße.md"), [] as [&str; 0]);
    let named = |names: &[(&str, bool)]| names.iter().map(|(n, d)| (n.as_bytes().to_vec(), *d)).collect::<Vec<_>>();
    let directories = Directories::from([
        (
            b"".to_vec(),
            named(&[("README.md", false), ("readme.MD", false), ("Src", true), ("src", true), ("docs", true)]),
        ),
        (b"src".to_vec(), named(&[("caf\u{e9}", false), ("cafe\u{301}", false)])),
        (b"docs".to_vec(), named(&[("HEAD", false), ("objects", true), ("refs", true), ("config", false)])),
    ]);
    let new = |path| changed(path, None, Some((Mode::File, "x")));
    let changes = [new("readme.MD"), new("src/caf\u{e9}"), new("docs/config")];
    let (ignored, host) = (BTreeSet::from([path("docs/config")]), Host::default());
    let found = Review { changes: &changes, directories: &directories, ignored: &ignored, host: &host }.findings();
    let lines: Vec<String> = found.iter().map(|finding| format!("{} {}", finding.path, finding.why)).collect();
    assert_eq!(
        lines,
        [
            "docs is a repository within the tree: git run in it reads its configuration",
            "docs/config is new although your ignore rules hide it",
            "readme.MD has a name that is 'README.md' on file systems without case or accents",
            "src has a name that is 'Src' on file systems without case or accents",
            "src/caf\u{e9} has a name that is 'cafe\u{301}' on file systems without case or accents",
        ]
    );
}

#[test]
fn contents_that_are_not_there_are_named() {
    let large = |size| Changed {
        path: path("data"),
        old: None,
        new: Some(Side { content: Content::Large(size), ..side(Mode::File, b"") }),
    };
    assert_eq!(told(&Host::default(), large(6 << 20)), ["amber: is large: 6 MiB"]);
    assert_eq!(told(&Host::default(), large(2 << 20)), ["amber: is too large to be looked into"]);
}
