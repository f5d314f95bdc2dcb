//! Whatever a sandbox puts into its repository and its tree, looking at it and landing it changes nothing
//! of the host but what was asked for: no file outside the tree, no setting, no hook, and nothing runs.
//!
//! Repositories are made of random pieces: odd names, links that lead out, attributes and settings that
//! select programs, hooks, submodules, repositories within, special files. The seeds are fixed.

use crate::Subject;
use sandbox_testkit::{Dice, Repo, State, tree_digest};
use std::fmt::Write;
use std::fs;
use std::path::Path;

over_drivers! {
    names_that_git_reads_as_patterns_are_names,
    hostile_repositories_change_nothing_2,
    hostile_repositories_change_nothing_3,
    hostile_repositories_change_nothing_4,
    hostile_repositories_change_nothing_7,
    hostile_repositories_change_nothing_9,
}

fn hostile_repositories_change_nothing_2(subject: &Subject) {
    hostile(subject, 2);
}

fn hostile_repositories_change_nothing_3(subject: &Subject) {
    hostile(subject, 3);
}

fn hostile_repositories_change_nothing_4(subject: &Subject) {
    hostile(subject, 4);
}

fn hostile_repositories_change_nothing_7(subject: &Subject) {
    hostile(subject, 7);
}

fn hostile_repositories_change_nothing_9(subject: &Subject) {
    hostile(subject, 9);
}

/// One of them.
/// Names that git takes for pathspec magic, and files below what is a link on the host: git would give up at each.
fn names_that_git_reads_as_patterns_are_names(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    repo.sh("ln -s src leads && git add leads && git commit -qm leads").ok();
    let script = "echo 1 >':(bad)x'; echo 2 >':!y'; echo 3 >:z.log; rm leads; mkdir leads; echo 4 >leads/f";
    subject.spawn(&repo, &["s"], script).ok();
    assert!(repo.sandbox(&["list"]).ok().contains("s "), "list");
    let refused = repo.sandbox(&["drop", "s"]);
    assert_eq!(refused.status, 1, "{refused}");
    // The ignored one does not count: the two others, the link that is gone and the file in its place.
    assert!(refused.stderr.contains("4 files not committed: "), "{refused}");
    repo.sandbox(&["apply", "s", "--", ":(bad)x", ":!y"]).ok();
    assert_eq!((repo.read(":(bad)x"), repo.read(":!y")), ("1\n".to_owned(), "2\n".to_owned()));
    repo.sandbox(&["drop", "--force", "s"]).ok();
}

fn of<'a>(dice: &mut Dice, all: &[&'a str]) -> &'a str {
    all[roll(dice, all.len())]
}

fn roll(dice: &mut Dice, sides: usize) -> usize {
    dice.roll(sides as u64) as usize
}

const NAMES: &[&str] = &[
    "a",
    "README.md",
    "src/b.c",
    "docs/HEAD",
    "docs/objects/x",
    "docs/refs/x",
    "docs/config",
    ".githooks/post-merge",
    ".githooks/post-checkout",
    ".githooks/pre-commit",
    ".husky/post-merge",
    "tools/monitor",
    ".gitconfig",
    ".gitmodules",
    ".gitattributes",
    "src/.gitattributes",
    ".gitignore",
    ".lfsconfig",
    ".mailmap",
    "package.json",
    "Cargo.toml",
    "Cargo.lock",
    ".envrc",
    "-rf",
    "--output=x",
    "$(touch x)",
    "`id`",
    "a b",
    "\\303\\251",
    "\\377\\376",
    "\\033[2J",
    "\\302\\233x",
    "\\342\\200\\256",
    "new\\nline",
    "\\\"quote\\\"",
    "back\\\\slash",
    "con",
    "a:b",
    "CLAUDE.md",
    "deep/d/d/d/d/d/d/d/d/d/d/f",
    "%s%n",
    "lib",
    "*",
    ":(glob)x",
    "refs/heads/main",
    "HEAD",
    "objects",
    "index",
];

const TARGETS: &[&str] = &[
    "/etc/passwd",
    "../../../outside/secret",
    "../../../outside",
    "../.git/config",
    ".git/hooks",
    "a",
    ".",
    "..",
    "/",
    "../../../outside/new",
    "/proc/self/environ",
    "x\\033y",
];

/// A stream for `git fast-import` on top of HEAD, and a script for the working tree.
fn make(dice: &mut Dice, canary: &Path, lands: bool) -> (String, String) {
    let run = format!("touch {}", canary.display());
    let texts = [
        "* filter=up diff=up merge=up\n*.c -diff\n* working-tree-encoding=UTF-16\n[attr]m filter=up\n".to_owned(),
        format!(
            "[core]\n\tfsmonitor = {run}\n\tpager = {run}\n\thooksPath = .githooks\n[filter \"up\"]\n\tclean = {run}\n"
        ),
        format!("#!/bin/sh\n{run}\n"),
        format!("[submodule \"l\"]\n\tpath = lib\n\turl = ext::sh -c '{run}'\n\tupdate = !{run}\n"),
        format!("{{\"scripts\":{{\"postinstall\":\"{run}\"}}}}"),
        "\u{202e}\u{1b}]0;x\u{7} \0 \u{200b}".to_owned(),
        "ref: refs/heads/x\n".to_owned(),
        String::new(),
    ];
    let mut stream = String::new();
    for n in 0..3 {
        let _ = write!(stream, "commit refs/heads/hostile\nmark :{}\n", n + 1);
        let message = "m \u{1b}]52;c;x\u{7}";
        let _ = write!(stream, "committer \u{1b}[2J <x@y> 170000000{n} +0000\ndata {}\n{message}\n", message.len());
        stream.push_str(if n == 0 { "from refs/heads/main^0\n" } else { "" });
        for _ in 0..12 {
            let (name, kind) = (of(dice, NAMES), roll(dice, 8));
            // What git's own checks refuse would keep all the rest from coming home.
            let refused = name == ".gitmodules"
                || (kind == 1 && matches!(name, "README.md" | "src/b.c"))
                || (kind == 0 && name.rsplit('/').next().is_some_and(is_gits_own));
            if lands && refused {
                continue;
            }
            match kind {
                0 => {
                    let target = of(dice, TARGETS).replace("\\033", "\u{1b}");
                    let _ = write!(stream, "M 120000 inline \"{name}\"\ndata {}\n{target}\n", target.len());
                }
                1 => {
                    let _ = writeln!(stream, "M 160000 {} \"{name}\"", "ab".repeat(20));
                }
                2 => {
                    let _ = writeln!(stream, "D \"{name}\"");
                }
                mode => {
                    let text = &texts[roll(dice, texts.len())];
                    let mode = if mode < 5 { "100755" } else { "100644" };
                    let _ = write!(stream, "M {mode} inline \"{name}\"\ndata {}\n{text}\n", text.len());
                }
            }
        }
        stream.push('\n');
    }
    let mut script = String::from("cd \"$(git rev-parse --show-toplevel)\"\n");
    for _ in 0..10 {
        let name =
            ["w1", "w2", "wd", "README.md", "src", ".git/hooks/post-merge", ".gitattributes", "docs"][roll(dice, 8)];
        let deed = match roll(dice, 8) {
            0 => format!(
                "rm -rf '{name}'; ln -s {} '{name}'",
                of(dice, &["/etc/passwd", "../../../outside", "/", ".git"])
            ),
            1 => format!("rm -rf '{name}'; mkfifo '{name}'"),
            2 => format!(
                "rm -rf '{name}'; perl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Local=>\"{name}\",Listen=>1)'"
            ),
            3 => format!("rm -rf '{name}'; printf x >'{name}'; chmod 6777 '{name}'"),
            4 => format!("rm -rf '{name}'; mkdir -p '{name}/d'; printf x >'{name}/d/f'; chmod 0 '{name}/d'"),
            5 if !lands => format!("rm -rf '{name}'; truncate -s 1T '{name}'"),
            6 => format!("rm -rf '{name}'; printf '#!/bin/sh\\n{run}\\n' >'{name}'; chmod +x '{name}'"),
            _ => format!("rm -rf '{name}'; git init -q '{name}'; git -C '{name}' config core.fsmonitor '{run}'"),
        };
        let _ = writeln!(script, "({deed}) 2>/dev/null");
    }
    for key in [
        "core.fsmonitor",
        "core.pager",
        "diff.external",
        "filter.up.clean",
        "core.sshCommand",
        "uploadpack.packObjectsHook",
    ] {
        let _ = writeln!(script, "git config {key} '{run}'");
    }
    (stream, script)
}

fn is_gits_own(name: &str) -> bool {
    name.starts_with(".git") || name == ".mailmap"
}

/// What of the host's repository no verb may change, and everything beside it.
fn untouched(subject: &Subject, repo: &Repo) -> String {
    let git = repo.sh("cat .git/config .git/info/* 2>/dev/null; ls -lA .git/hooks; cat .git/hooks/* 2>/dev/null").ok();
    let git = git.lines().filter(|line| !line.starts_with("total")).collect::<Vec<_>>().join("\n");
    let outside = tree_digest(&subject.env.root().join("outside"));
    let home = fs::read_to_string(subject.env.home().join(".gitconfig")).expect("it is there");
    let beside = repo.sh("ls -A ..").ok();
    format!("{git}\n{outside}\n{home}\n{beside}")
}

fn hostile(subject: &Subject, seed: u64) {
    let repo = subject.repo(State::Plain);
    let canary = subject.env.root().join("canary");
    let outside = subject.env.root().join("outside");
    fs::create_dir_all(outside.join("d")).expect("a new directory");
    fs::write(outside.join("secret"), "GS-CANARY\n").expect("a new file");
    // The host has what content could select.
    let run = format!("touch '{}'; cat", canary.display());
    for (key, value) in [
        ("filter.up.clean", run.as_str()),
        ("filter.up.smudge", &run),
        ("diff.up.textconv", &run),
        ("diff.up.command", &run),
        ("merge.up.driver", &run),
        ("core.hooksPath", ".githooks"),
        ("core.fsmonitor", "tools/monitor"),
        ("include.path", "../shared.gitconfig"),
        ("submodule.recurse", "true"),
        ("protocol.ext.allow", "always"),
    ] {
        repo.git(&["config", key, value]).ok();
    }
    let mut dice = Dice::new(0x9e37_79b9_7f4a_7c15 ^ (seed << 7));
    let (stream, script) = make(&mut dice, &canary, seed % 2 == 1);
    let args = ["spawn", "--driver", subject.driver, "-d", "s"];
    repo.sandbox(&args).ok();
    let mut import =
        subject.env.sandbox_command(repo.dir(), &["exec", "s", "--", "git", "fast-import", "--quiet", "--force"]);
    subject.env.run_with_input(&mut import, stream.as_bytes());
    let off = "export GIT_CONFIG_COUNT=3 GIT_CONFIG_KEY_0=core.hooksPath GIT_CONFIG_VALUE_0=/dev/null \
        GIT_CONFIG_KEY_1=core.fsmonitor GIT_CONFIG_VALUE_1=false GIT_CONFIG_KEY_2=filter.up.clean GIT_CONFIG_VALUE_2=cat;";
    // What cannot be checked out stays a branch; both come home.
    let imported =
        subject.exec(&repo, "s", &format!("{off} git update-ref refs/heads/main hostile && git reset -q --hard"));
    subject.exec(&repo, "s", &script);
    let before = untouched(subject, &repo);
    let head = repo.id("HEAD");
    let mut worked = 0;
    for verb in [
        &["fetch", "s"][..],
        &["list"],
        &["show", "s"],
        &["show", "--json", "s"],
        &["log", "s"],
        &["diff", "s"],
        &["diff", "--stat", "s"],
        &["diff", "--json", "s"],
        &["diff", "--uncommitted", "s"],
        &["conflicts", "--uncommitted"],
        &["bundle", "s", "../../../s.bundle"],
        &["cp", "s:.", "../../../copied"],
        &["cp", "--links", "s:.", "../../../linked"],
        &["branch", "s", "kept"],
        &["merge", "--dry-run", "s"],
        &["stop", "s"],
        &["diff", "--uncommitted", "--stat", "s"],
        &["merge", "--yes", "s"],
        &["undo"],
        &["pick", "--yes", "s"],
        &["undo"],
        &["apply", "--stash", "s"],
        &["apply", "--yes", "s"],
        &["undo"],
        &["drop", "--force", "s"],
        &["trash", "empty", "--yes"],
    ] {
        let seen = repo.sandbox(verb);
        let name = verb.join(" ");
        assert!(!canary.exists(), "seed {seed}: `{name}` ran something from inside: {seen}");
        assert!([0, 1, 128].contains(&seen.status), "seed {seed}: `{name}`: {seen}");
        worked += usize::from(seen.status == 0);
        let last = seen.stderr.lines().rfind(|line| line.starts_with("error") || line.starts_with("caused"));
        println!("seed {seed}: `{name}` {} {}", seen.status, last.unwrap_or_default());
        assert_eq!(untouched(subject, &repo), before, "seed {seed}: `{name}` changed something: {seen}");
        let shown = seen.stdout + &seen.stderr;
        let steers = shown.chars().find(|c| c.is_control() && !matches!(c, '\n' | '\t'));
        assert!(steers.is_none(), "seed {seed}: `{name}`: {steers:?}");
    }
    let wanted = if seed % 2 == 1 { 14 } else { 6 };
    assert!(worked >= wanted, "seed {seed}: {worked} verbs had something to do (import: {imported})");
    let left = subject.env.state().join("git-sandbox/sandboxes");
    assert_eq!(fs::read_dir(left).map_or(0, Iterator::count), 0, "seed {seed}: nothing resists its removal");
    assert_eq!(fs::read_to_string(outside.join("secret")).expect("it is there"), "GS-CANARY\n");
    for copied in ["copied", "linked"] {
        let odd = subject.env.root().join(copied);
        // A copy that met what it may not read has left nothing.
        if !odd.exists() {
            continue;
        }
        let kinds =
            format!("find '{}' ! -type f ! -type d ! -type l -o -type f -perm /7000 2>/dev/null", odd.display());
        assert_eq!(repo.sh(&kinds).ok(), "", "seed {seed}");
        let grep = format!("grep -rl GS-CANARY '{}' 2>/dev/null; true", odd.display());
        assert_eq!(repo.sh(&grep).ok(), "", "seed {seed}");
    }
    // Undone, the host is where it was.
    assert_eq!(repo.id("HEAD"), head, "seed {seed}");
}
