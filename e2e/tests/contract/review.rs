//! What deserves a look is told before it is landed, and nothing of it runs on the host.

use crate::Subject;
use sandbox_testkit::{Output, Pty, Repo, State};
use std::collections::BTreeMap;
use std::path::PathBuf;

over_drivers! {
    each_trap_is_listed_by_every_verb,
    what_git_here_would_run_is_refused_in_a_script,
    a_terminal_is_asked,
    settings_of_the_user_silence_and_do_not_ask,
    uncommitted_files_are_looked_at_too,
    a_change_in_the_settings_of_a_submodule_fetches_nothing,
    names_of_any_bytes_are_valid_json,
    the_users_hooks_run_as_they_were_before,
}

/// One change for each kind of the threat model, with its grade. (Names of git's own cannot be committed.)
const TRAPS: &[(&str, &str)] = &[
    ("red", ".husky/pre-commit"),
    ("red", "lefthook.yml"),
    ("red", ".pre-commit-config.yaml"),
    ("red", ".gitattributes"),
    ("red", ".gitmodules"),
    ("red", ".lfsconfig"),
    ("red", ".gitconfig"),
    ("red", ".envrc"),
    ("red", "mise.toml"),
    ("red", ".tool-versions"),
    ("red", ".vscode/tasks.json"),
    ("red", "x.code-workspace"),
    ("red", ".idea/workspace.xml"),
    ("red", ".devcontainer/devcontainer.json"),
    ("red", ".nvim.lua"),
    ("red", ".exrc"),
    ("red", ".dir-locals.el"),
    ("red", ".claude/settings.json"),
    ("red", ".cursor/rules"),
    ("red", ".mcp.json"),
    ("red", "AGENTS.md"),
    ("red", "sub/CLAUDE.md"),
    ("red", ".github/copilot-instructions.md"),
    ("red", ".cargo/config.toml"),
    ("red", "rust-toolchain.toml"),
    ("red", "build.rs"),
    ("red", ".npmrc"),
    ("red", ".yarnrc.yml"),
    ("red", "package.json"),
    ("red", ".github/workflows/ci.yml"),
    ("red", ".gitlab-ci.yml"),
    ("red", "Jenkinsfile"),
    ("amber", "Makefile"),
    ("amber", "CMakeLists.txt"),
    ("amber", "configure"),
    ("amber", "justfile"),
    ("amber", "setup.py"),
    ("amber", "pyproject.toml"),
    ("amber", "conftest.py"),
    ("amber", "Cargo.lock"),
    ("amber", ".gitignore"),
];

fn grades(json: &str, list: &str) -> BTreeMap<String, String> {
    let value: serde_json::Value = serde_json::from_str(json).expect("valid JSON");
    let mut grades = BTreeMap::new();
    for finding in value.pointer(list).and_then(|list| list.as_array()).expect("a list") {
        let text = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
        let grade = grades.entry(text("path")).or_insert_with(|| text("grade"));
        if text("grade") == "red" {
            *grade = text("grade");
        }
    }
    grades
}

fn each_trap_is_listed_by_every_verb(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let mut script = String::from("set -e; put() { mkdir -p \"$(dirname \"$1\")\"; printf %s \"$2\" >\"$1\"; }\n");
    for (_, path) in TRAPS {
        let text = if *path == "package.json" { "{\"scripts\":{\"postinstall\":\"x\"}}" } else { "x" };
        script.push_str(&format!("put '{path}' '{text}'\n"));
    }
    script.push_str(
        r#"put tool '#!/bin/sh'; chmod +x tool
        put prog "$(printf '\177ELF')"; put bidi.c "$(printf 'int a; /* \342\200\256 */\n')"
        put pay.py "$(printf 'def p\320\260y(): pass\n')"; put ReadMe.md x
        ln -s ../../etc/passwd out; ln -s README.md in
        dd if=/dev/zero of=zero bs=1M count=6 2>/dev/null
        put hidden.log x; put ':(top)hidden.log' x
        put docs/bare/HEAD 'ref: refs/heads/x'; put docs/bare/objects/x x; put docs/bare/refs/x x
        git update-index --add --cacheinfo 160000,$(git rev-parse HEAD),lib
        git add -A -f; git update-index --add --cacheinfo 160000,$(git rev-parse HEAD),lib; git commit -qm traps"#,
    );
    subject.spawn(&repo, &["s"], &script).ok();
    let planned = repo.sandbox(&["merge", "--dry-run", "--json", "s"]).ok();
    let shown = repo.sandbox(&["show", "--json", "s"]).ok();
    let diffed = repo.sandbox(&["diff", "--json", "s"]).ok();
    let picked = repo.sandbox(&["pick", "--dry-run", "--json", "s"]).ok();
    let more = [
        ("amber", "tool"),
        ("amber", "prog"),
        ("amber", "bidi.c"),
        ("amber", "pay.py"),
        ("amber", "ReadMe.md"),
        ("red", "out"),
        ("amber", "in"),
        ("amber", "zero"),
        ("amber", "hidden.log"),
        ("amber", ":(top)hidden.log"),
        ("red", "docs/bare"),
        ("amber", "lib"),
    ];
    let lists = [
        ("merge", &planned, "/warnings"),
        ("show", &shown, "/look_first"),
        ("diff", &diffed, "/repositories/0/look_first"),
        ("pick", &picked, "/warnings"),
    ];
    for (verb, json, list) in lists {
        let found = grades(json, list);
        for (grade, path) in TRAPS.iter().chain(&more) {
            assert_eq!(found.get(*path).map(String::as_str), Some(*grade), "{verb}: {path}");
        }
        assert!(!found.contains_key("README.md"), "{verb}");
    }
    for verb in [&["show", "s"][..], &["diff", "--stat", "s"], &["branch", "s", "kept"], &["merge", "s"]] {
        let seen = repo.sandbox(verb).expect(0);
        let text = if verb[0] == "show" { &seen.stdout } else { &seen.stderr };
        assert!(text.contains("look here first:\n"), "{seen}");
        assert!(text.contains("  red   .envrc: is loaded by the shell, when a shell enters the directory ("), "{seen}");
        assert!(text.contains("; runs `x` at the next `npm install` ("), "{seen}");
    }
    assert_eq!(repo.id("HEAD"), repo.id("sandbox/s"), "nothing of it is of this host's git: a script goes on");
}

/// A repository whose git would run what the change brings, and what every such program makes.
fn trapped<'e>(subject: &'e Subject) -> (Repo<'e>, PathBuf) {
    let repo = subject.repo(State::Plain);
    let canary = subject.env.root().join("canary");
    let run = format!("touch '{}'; cat", canary.display());
    repo.write("tools/monitor", "#!/bin/sh\nexit 1\n");
    repo.chmod("tools/monitor", 0o755);
    repo.git(&["add", "-A"]).ok();
    repo.git(&["commit", "-qm", "tools"]).ok();
    for (key, value) in [
        ("core.hooksPath", ".githooks"),
        ("core.fsmonitor", "tools/monitor"),
        ("filter.up.clean", &run),
        ("filter.up.smudge", &run),
        ("merge.up.driver", &run),
        ("diff.up.textconv", &run),
        ("diff.up.command", &run),
        ("include.path", "../shared.gitconfig"),
    ] {
        repo.git(&["config", key, value]).ok();
    }
    let script = format!(
        r#"
        export GIT_CONFIG_COUNT=2 GIT_CONFIG_KEY_0=core.hooksPath GIT_CONFIG_VALUE_0=/dev/null \
            GIT_CONFIG_KEY_1=core.fsmonitor GIT_CONFIG_VALUE_1=false
        mkdir -p .githooks
        for hook in post-merge post-checkout post-commit pre-commit pre-merge-commit prepare-commit-msg commit-msg \
            reference-transaction post-index-change post-rewrite pre-push; do
            printf '#!/bin/sh\ntouch "{canary}"\n' >.githooks/$hook; chmod +x .githooks/$hook
        done
        printf '#!/bin/sh\ntouch "{canary}"\n' >tools/monitor
        printf '[core]\n\tpager = touch "{canary}"; cat\n[alias]\n\tst = !touch "{canary}"\n' >shared.gitconfig
        echo '* filter=up merge=up diff=up' >.gitattributes
        echo changed >>README.md
        git -c filter.up.clean=cat add -A && git -c filter.up.clean=cat commit -qm traps
        echo more >>README.md; echo '* filter=up' >.gitattributes"#,
        canary = canary.display()
    );
    subject.spawn(&repo, &["s"], &script).ok();
    (repo, canary)
}

fn what_git_here_would_run_is_refused_in_a_script(subject: &Subject) {
    let (repo, canary) = trapped(subject);
    let head = repo.id("HEAD");
    let refused = repo.sandbox(&["merge", "s"]).expect(1);
    for text in [
        "error: cannot merge 's': your git would run or obey what comes in\n",
        "caused by: '.gitattributes' selects your filter 'up' for '*'; runs `touch ",
        "caused by: '.gitattributes' selects your merge 'up' for '*'; runs `touch ",
        "caused by: '.githooks/commit-msg' is your git hook 'commit-msg', at the next `git commit`\n",
        "caused by: and ",
        "hint: `git sandbox diff s` shows it; `git sandbox merge --yes s` goes on all the same\n",
        "  red   tools/monitor: is named by your 'core.fsmonitor', at the next git command (",
        "  red   shared.gitconfig: is named by your 'include.path', at the next git command (",
    ] {
        assert!(refused.stderr.contains(text), "{text}: {refused}");
    }
    assert_eq!(repo.id("HEAD"), head);
    for verb in [&["pick", "s"][..], &["apply", "s"]] {
        let refused = repo.sandbox(verb).expect(1);
        assert!(refused.stderr.contains(&format!("cannot {} 's': your git would run", verb[0])), "{refused}");
    }
    assert_eq!((repo.id("HEAD"), repo.git(&["stash", "list"]).ok()), (head, String::new()));
    for verb in [
        &["list"][..],
        &["show", "s"],
        &["log", "s"],
        &["fetch", "s"],
        &["diff", "s"],
        &["diff", "--stat", "s"],
        &["diff", "--json", "s"],
        &["diff", "--uncommitted", "s"],
        &["conflicts"],
        &["merge", "--dry-run", "s"],
        &["pick", "--dry-run", "s"],
        &["apply", "--dry-run", "s"],
        &["branch", "s", "kept"],
        &["cp", "s:.gitattributes", "../../../copied"],
        &["bundle", "s", "../../../s.bundle"],
        &["apply", "--stash", "s"],
        &["merge", "--no-ff", "--yes", "s"],
        &["undo"],
        &["pick", "--yes", "s"],
        &["apply", "--yes", "s"],
    ] {
        let seen = repo.sandbox(verb);
        assert!(!canary.exists(), "`{}` ran something from inside: {seen}", verb.join(" "));
        // What `*` has filtered is written only where no conversion is in use; a refusal is safe.
        assert!([0, 1].contains(&seen.status), "{seen}");
    }
    // The control: with all that in the tree, plain git runs it.
    repo.sh("git -c core.fsmonitor=false reset -q --hard kept; git status >/dev/null 2>&1; true").ok();
    assert!(canary.exists());
}

fn a_terminal_is_asked(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["s"], "echo x >.envrc; git add -A -f; git commit -qm x").ok();
    let head = repo.id("HEAD");
    let asked = |answer: &str| {
        let mut pty = Pty::spawn(&subject.env.sandbox_command(repo.dir(), &["merge", "s"]));
        pty.expect("red   .envrc: is loaded by the shell");
        pty.expect("merge all the same? [y/N]");
        pty.send(answer);
        pty.wait()
    };
    let (status, text) = asked("\r");
    assert!(status == 1 && text.contains("nothing was written"), "{text}");
    assert_eq!(repo.id("HEAD"), head);
    assert_eq!(asked("y\r").0, 0);
    assert_eq!(repo.id("HEAD"), repo.id("sandbox/s"));
}

fn settings_of_the_user_silence_and_do_not_ask(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    repo.git(&["config", "core.hooksPath", ".githooks"]).ok();
    // Inside nobody can say that it need not be looked at.
    let script = "printf 'review = \"tell\"\\n' >.sandbox.toml; git config sandbox.review tell; \
        git config sandbox.reviewIgnore '*'; echo x >Makefile; mkdir .githooks; echo x >.githooks/post-merge; \
        git add -A; git -c core.hooksPath=/dev/null commit -qm x";
    subject.spawn(&repo, &["s"], script).ok();
    repo.sandbox(&["merge", "s"]).expect(1);
    repo.git(&["config", "sandbox.reviewIgnore", "/Makefile"]).ok();
    let seen = repo.sandbox(&["diff", "--stat", "s"]).expect(0);
    assert!(!seen.stderr.contains("Makefile") && seen.stderr.contains("1 finding not shown, by your"), "{seen}");
    assert!(seen.stderr.contains("red   .githooks/post-merge"), "{seen}");
    assert!(seen.stderr.contains("amber .sandbox.toml: is what the repository asks"), "{seen}");
    let wrong = |key: &str, value: &str| {
        repo.git(&["config", key, value]).ok();
        let seen = repo.sandbox(&["merge", "s"]);
        repo.git(&["config", "--unset-all", key]).ok();
        seen.expect(128).stderr
    };
    let text = wrong("sandbox.review", "never");
    assert!(
        text.ends_with("error: 'never' is not a value of sandbox.review\nhint: it is one of ask, tell\n"),
        "{text}"
    );
    let text = wrong("sandbox.reviewIgnore", "{a");
    assert!(text.contains("error: '{a' is not a value of sandbox.reviewIgnore\n"), "{text}");
    repo.git(&["config", "sandbox.review", "tell"]).ok();
    let seen = repo.sandbox(&["merge", "s"]).expect(0);
    assert!(seen.stderr.contains("red   .githooks/post-merge"), "{seen}");
}

fn uncommitted_files_are_looked_at_too(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["s"], "echo x >.envrc; ln -s /etc/passwd l; echo '* filter=x' >.gitattributes; \
        rm -rf docs; echo f >docs; rm README.md; mkdir README.md; echo d >README.md/d; truncate -s 1T huge; mkfifo pipe").ok();
    let wanted = [
        "red   .envrc:",
        "red   .gitattributes: selects a filter 'x', which you",
        "red   l: is a symlink that leads out",
    ];
    let all = |seen: &Output, text: &str| {
        for wanted in wanted {
            assert!(text.contains(wanted), "{wanted}: {seen}");
        }
    };
    let seen = repo.sandbox(&["show", "s"]).expect(0);
    all(&seen, &seen.stdout);
    for verb in
        [&["diff", "--uncommitted", "s"][..], &["apply", "--dry-run", "s"], &["apply", "--stash", "s"], &["apply", "s"]]
    {
        let seen = repo.sandbox(verb).expect(0);
        all(&seen, &seen.stderr);
        if verb[0] == "apply" && verb[1] != "--dry-run" {
            let left_out = "left out (a socket, a FIFO, a device or over 256 MiB): huge, pipe\n";
            assert!(seen.stderr.contains(left_out), "{seen}");
        }
    }
    assert!(repo.has(".envrc") && repo.has("README.md/d") && repo.read("docs") == "f\n");
}

fn a_change_in_the_settings_of_a_submodule_fetches_nothing(subject: &Subject) {
    let repo = subject.repo(State::Submodule);
    let canary = subject.env.root().join("canary");
    for key in ["submodule.recurse", "fetch.recurseSubmodules", "diff.submodule"] {
        let value = if key == "diff.submodule" { "diff" } else { "true" };
        repo.git(&["config", key, value]).ok();
    }
    repo.git(&["config", "protocol.ext.allow", "always"]).ok();
    let script = format!(
        "git config -f .gitmodules submodule.lib.url 'ext::sh -c touch% {0}'; git add .gitmodules; \
         git update-index --cacheinfo 160000,$(git rev-parse HEAD),lib; git commit -qm m",
        canary.display()
    );
    subject.spawn(&repo, &["s"], &script).ok();
    for verb in [&["fetch", "s"][..], &["diff", "s"], &["show", "s"], &["merge", "--yes", "s"], &["merge", "s"]] {
        let seen = repo.sandbox(verb);
        assert!([0, 1].contains(&seen.status) && !canary.exists(), "{seen}");
        if verb[0] == "diff" {
            assert!(
                seen.stderr.contains("red   .gitmodules: has submodule 'lib' come from 'ext::sh -c touch%"),
                "{seen}"
            );
            assert!(seen.stderr.contains("which names a program, at the next `git checkout`, `git pull`"), "{seen}");
            assert!(seen.stderr.contains("amber lib: moves a submodule to "), "{seen}");
        }
    }
    assert_eq!(repo.id("HEAD"), repo.id("sandbox/s"));
    // A command is refused before it comes home, whatever the shape of the pack that brings it.
    let script = "git config -f .gitmodules submodule.lib.update '!touch x'; git commit -qm m .gitmodules";
    let refused = subject.spawn(&repo, &["command"], script);
    assert!(refused.stderr.contains("gitmodulesUpdate: disallowed submodule update setting"), "{refused}");
    assert!(repo.git(&["rev-parse", "-q", "--verify", "refs/sandbox/command"]).status != 0);
}

/// Every byte that a name can have, in every listing.
fn names_of_any_bytes_are_valid_json(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let script = r#"perl -e '
        for my $n (1 .. 255) { next if $n == 47; my $c = chr $n;
            next if $c eq "." ;
            open my $f, ">", "n$c.sh" or die "$n: $!"; print $f "x"; close $f; chmod 0755, "n$c.sh"; }'
        git add -A && git commit -qm "$(printf 'all \033]0;x\007 \377 names')"
        perl -e 'for my $n (1 .. 255) { next if $n == 47 || $n == 46; my $c = chr $n;
            open my $f, ">", "u$c.sh" or die; print $f "x"; close $f; symlink "/x$c", "l$c" }'"#;
    subject.spawn(&repo, &["s"], script).ok();
    for verb in [
        &["list", "--json"][..],
        &["show", "--json", "s"],
        &["log", "--json", "s"],
        &["diff", "--json", "s"],
        &["conflicts", "--json"],
        &["conflicts", "--uncommitted", "--json"],
        &["pick", "--dry-run", "--json", "s"],
        &["merge", "--dry-run", "--json", "s"],
        &["events", "--json", "s"],
        &["merge", "--yes", "--json", "s"],
        &["ops", "--json"],
    ] {
        let seen = repo.sandbox(verb);
        // Of a stream, each line is one.
        let whole = serde_json::from_str::<serde_json::Value>(&seen.stdout).is_ok();
        let lines = || seen.stdout.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok());
        assert!(whole || lines(), "`{}`: {seen}", verb.join(" "));
        for (name, text) in [("stdout", &seen.stdout), ("stderr", &seen.stderr)] {
            let bad = text.chars().find(|c| c.is_control() && !matches!(c, '\n' | '\t'));
            assert!(bad.is_none(), "`{}` {name}: {bad:?}", verb.join(" "));
        }
    }
    assert_eq!(repo.sh("ls | LC_ALL=C grep -ac '^n.*\\.sh$'").ok().trim(), "252", "a line's end is two lines of `ls`");
}

/// Hooks in the tree, one a link to a script beside them; each writes what it got.
fn the_users_hooks_run_as_they_were_before(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let (canary, log) = (subject.env.root().join("canary"), subject.env.root().join("log"));
    let hooks = [
        "pre-merge-commit",
        "prepare-commit-msg",
        "commit-msg",
        "post-merge",
        "pre-commit",
        "post-commit",
        "reference-transaction",
    ];
    for hook in hooks {
        let more = match hook {
            "pre-merge-commit" | "pre-commit" => "git diff --cached --name-only HEAD",
            "commit-msg" => "grep -q refuse-me \"$1\" && exit 3; printf '\\nSigned: hook\\n' >>\"$1\"",
            _ => ":",
        };
        let text = format!(
            "#!/bin/sh\necho \"{hook} $(echo \"$2$1\" | grep -v message)\" >>'{0}'\n{{ {more}; }} >>'{0}'\n",
            log.display()
        );
        repo.write(&format!("hooks/{hook}"), text);
        repo.chmod(&format!("hooks/{hook}"), 0o755);
    }
    repo.sh("mv hooks/post-merge tools-post-merge && ln -s ../tools-post-merge hooks/post-merge && git add -A && git commit -qm hooks").ok();
    repo.git(&["config", "core.hooksPath", "hooks"]).ok();
    let script = format!(
        "for h in hooks/* tools-post-merge; do rm $h; printf '#!/bin/sh\\ntouch {0}\\n' >$h; chmod +x $h; done; \
         git add -A; git -c core.hooksPath=/dev/null commit -qm evil",
        canary.display()
    );
    subject.spawn(&repo, &["s"], &script).ok();
    let logged = || std::fs::read_to_string(&log).map(|text| text.replace(".git/", "")).unwrap_or_default();
    let head = repo.id("HEAD");
    // None runs unasked.
    repo.sandbox(&["merge", "--yes", "--no-ff", "s"]).expect(0);
    assert_eq!(logged(), "");
    repo.sandbox(&["undo"]).expect(0);
    // The list first: nobody runs anything before it was seen.
    repo.sandbox(&["merge", "--with-hooks", "--no-ff", "s"]).expect(1);
    assert_eq!(logged(), "");
    let refused = repo.sandbox(&["merge", "--with-hooks", "--yes", "--no-ff", "-m", "refuse-me", "s"]).expect(1);
    assert!(refused.stderr.ends_with("error: your hook 'commit-msg' refused: exit status: 3\nhint: nothing was written; without `--with-hooks` no hook runs\n"), "{refused}");
    assert_eq!(repo.id("HEAD"), head);
    std::fs::remove_file(&log).expect("the hooks wrote it");
    repo.sandbox(&["merge", "--with-hooks", "--yes", "--no-ff", "-m", "Take it", "s"]).expect(0);
    let text = logged();
    let order: Vec<&str> = text.lines().filter(|line| line.starts_with("p") || line.starts_with("c")).collect();
    assert_eq!(order, ["pre-merge-commit ", "prepare-commit-msg ", "commit-msg ", "post-merge 0"], "{text}");
    assert!(text.contains("\nhooks/commit-msg\n"), "the merged index is seen: {text}");
    assert_eq!(repo.git(&["log", "-1", "--format=%B"]).ok().trim(), "Take it\n\nSigned: hook");
    assert!(!canary.exists());
    repo.sandbox(&["undo"]).expect(0);
    std::fs::remove_file(&log).expect("the hooks wrote it");
    repo.sandbox(&["merge", "--with-hooks", "--yes", "--squash", "s"]).expect(0);
    let text = logged();
    let order: Vec<&str> = text.lines().filter(|line| line.starts_with("p") || line.starts_with("c")).collect();
    assert_eq!(order, ["pre-commit ", "prepare-commit-msg ", "commit-msg ", "post-commit ", "post-merge 1"], "{text}");
    repo.sandbox(&["undo"]).expect(0);
    std::fs::remove_file(&log).expect("the hooks wrote it");
    repo.sandbox(&["merge", "--with-hooks", "--yes", "s"]).expect(0);
    assert_eq!(logged(), "post-merge 0\n");
    assert!(!canary.exists());
    // The control: they are what came in now.
    repo.git(&["commit", "-q", "--allow-empty", "-m", "x"]).ok();
    assert!(canary.exists());
}
