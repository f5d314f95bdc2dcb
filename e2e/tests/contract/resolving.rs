//! Conflicts that are decided, messages that are edited, signatures, and what is told of histories.

use crate::Subject;
use sandbox_testkit::{Output, Repo, State, skip, tree_digest, which};
use std::os::unix::fs::PermissionsExt;

over_views_at_length! {
    a_side_wins_where_it_is_asked_for,
    a_conflict_names_commits_and_choices,
    a_conflict_is_left_here_where_that_is_asked_for,
    a_conflict_is_resolved_in_a_sandbox_and_remembered,
    a_message_is_edited,
    commits_are_signed_on_the_host,
    commits_are_signed_with_gpg,
    what_was_recorded_here_is_used_where_a_conflict_is_resolved,
    what_makes_no_sense_together_is_refused,
    files_are_applied_by_their_paths,
    several_histories_are_one_picture,
    a_rewritten_branch_is_compared,
    a_list_marks_what_collides,
}

/// `a` is merged; `b` collides with it in line 1 of `src/b.c`, and changes line 20 too.
fn two<'e>(subject: &'e Subject) -> Repo<'e> {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["-q", "a"], "sed -i 's/^line 1$/AAA/' src/b.c; git commit -qam 'A one'").ok();
    let script = "sed -i 's/^line 1$/BBB/; s/^line 20$/BB20/' src/b.c; git commit -qam 'B one'";
    subject.spawn(&repo, &["-q", "b"], script).ok();
    repo.sandbox(&["merge", "a"]).expect(0);
    repo
}

/// All that a refusal must leave alone.
fn state(repo: &Repo) -> (String, String) {
    (tree_digest(repo.dir()), repo.git(&["for-each-ref"]).ok())
}

fn a_side_wins_where_it_is_asked_for(subject: &Subject) {
    let repo = two(subject);
    let start = repo.id("HEAD");
    for (side, first) in [("ours", "AAA\n"), ("theirs", "BBB\n")] {
        let told = if side == "ours" { "what is here" } else { "what the sandbox has" };
        let seen = repo.sandbox(&["merge", "--resolve", side, "b"]).expect(0);
        assert!(seen.stderr.starts_with(&format!("conflict in 'src/b.c' resolved with {told}\n")), "{seen}");
        let text = repo.read("src/b.c");
        assert!(text.starts_with(first) && text.ends_with("BB20\n"), "what does not collide comes along: {text}");
        // As git itself does it.
        let tree = repo.git(&["rev-parse", "HEAD^{tree}"]).ok();
        repo.git(&["reset", "-q", "--hard", &start]).ok();
        repo.git(&["merge", "-q", "--no-edit", "-X", side, "sandbox/b"]).ok();
        assert_eq!(repo.git(&["rev-parse", "HEAD^{tree}"]).ok(), tree);
        repo.git(&["reset", "-q", "--hard", &start]).ok();
    }
    // By path: the most exact one decides, and what nobody decided still stops all of it.
    let before = state(&repo);
    repo.sandbox(&["merge", "--resolve", "theirs:docs", "b"]).expect(1);
    assert_eq!(state(&repo), before);
    let args = ["merge", "--json", "--resolve", "theirs:src/", "--resolve", "ours:src/b.c", "b"];
    let seen = repo.sandbox(&args).expect(0);
    let json: serde_json::Value = serde_json::from_str(&seen.stdout).unwrap();
    assert_eq!((&json["resolved"][0]["path"], &json["resolved"][0]["by"]), (&"src/b.c".into(), &"ours".into()));
    assert_eq!(json["head"]["new"], repo.id("HEAD"));
    // It is taken back as any merge.
    repo.sandbox(&["undo"]).expect(0);
    assert_eq!((state(&repo).1, repo.git(&["status", "--porcelain"]).ok()), (before.1, String::new()));
    // Deleted on one side, and a commit that is picked.
    subject.spawn(&repo, &["-q", "d"], "git rm -q src/b.c; git commit -qm 'D one'").ok();
    repo.sandbox(&["pick", "--resolve", "theirs", "b"]).expect(0);
    assert!(repo.read("src/b.c").starts_with("BBB\n"));
    let seen = repo.sandbox(&["merge", "d"]).expect(1);
    assert!(seen.stderr.contains("'src/b.c' conflicts in the commits: "), "{seen}");
    repo.sandbox(&["merge", "--resolve", "theirs", "d"]).expect(0);
    assert!(!repo.has("src/b.c") && repo.git(&["status", "--porcelain"]).ok().is_empty());
}

fn a_conflict_names_commits_and_choices(subject: &Subject) {
    let repo = two(subject);
    let before = state(&repo);
    let short = |name: &str| repo.id(name)[..7].to_owned();
    let seen = repo.sandbox(&["merge", "b"]).expect(1);
    let text = format!(
        "error: cannot merge 'b'\n\
         caused by: 'src/b.c' conflicts in the commits: Merge conflict in src/b.c\n\
         caused by: here: {} A one\n\
         caused by: there: {} B one\n\
         hint: nothing was written; `git sandbox merge --into-sandbox b` opens a sandbox to resolve it, `--markers` \
         begins the merge here with conflict markers, `--resolve ours` (or `theirs`, `theirs:PATH`) takes a side, `git sandbox branch b BRANCH` keeps the commits on a branch of their \
         own\n",
        short("HEAD"),
        short("sandbox/b")
    );
    assert_eq!(seen.stderr, text);
    let seen = repo.sandbox(&["merge", "--json", "b"]).expect(1);
    let json: serde_json::Value = serde_json::from_str(&seen.stdout).unwrap();
    assert_eq!((&json["version"], &json["conflicts"][0]["path"]), (&1.into(), &"src/b.c".into()));
    assert_eq!((&json["here"][0]["subject"], &json["there"][0]["subject"]), (&"A one".into(), &"B one".into()));
    assert_eq!(state(&repo), before);
}

fn a_conflict_is_left_here_where_that_is_asked_for(subject: &Subject) {
    let repo = two(subject);
    let hook = repo.dir().join(".git/hooks/pre-merge-commit");
    std::fs::create_dir_all(hook.parent().unwrap()).unwrap();
    std::fs::write(&hook, "#!/bin/sh\ntouch ran\n").unwrap();
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    let before = state(&repo);
    // Uncommitted work is not mixed with it.
    repo.write("src/a.c", "uncommitted\n");
    let dirty = state(&repo);
    let seen = repo.sandbox(&["merge", "--markers", "b"]).expect(128);
    assert_eq!(
        seen.stderr,
        "error: 1 file is not committed here: a merge with conflict markers would mix with it\n\
         hint: nothing was written; commit it or `git stash` it first\n"
    );
    assert_eq!(state(&repo), dirty);
    repo.git(&["checkout", "-q", "src/a.c"]).ok();
    // As git itself leaves it.
    repo.git(&["merge", "-q", "sandbox/b"]).expect(1);
    let stages = repo.git(&["ls-files", "--stage"]).ok();
    let markers = repo.read("src/b.c").replace(">>>>>>> sandbox/b", ">>>>>>> ");
    repo.git(&["merge", "--abort"]).ok();
    let seen = repo.sandbox(&["merge", "--markers", "b"]).expect(1);
    assert_eq!(
        seen.stderr,
        "the merge of 'b' is in progress here: 1 file with conflicts\n  src/b.c\n\
         hint: resolve them, `git add` each and `git commit`; `git merge --abort` takes the merge back\n"
    );
    assert_eq!(repo.git(&["ls-files", "--stage"]).ok(), stages);
    assert_eq!(repo.read("src/b.c").replace(&repo.id("sandbox/b"), ""), markers);
    assert_eq!(repo.id("MERGE_HEAD"), repo.id("sandbox/b"));
    repo.git(&["merge", "--abort"]).ok();
    assert_eq!((state(&repo).1, repo.git(&["status", "--porcelain"]).ok()), (before.1, String::new()));
    let seen = repo.sandbox(&["merge", "--markers", "--json", "b"]).expect(1);
    let json: serde_json::Value = serde_json::from_str(&seen.stdout).unwrap();
    assert_eq!((&json["in_progress"], &json["conflicts"][0]), (&true.into(), &"src/b.c".into()));
    repo.write("src/b.c", "both\n");
    repo.sh("git add src/b.c && git -c core.hooksPath=/dev/null commit -q --no-edit").ok();
    assert_eq!(
        repo.git(&["log", "-1", "--format=%s %P"]).ok(),
        format!("Merge sandbox 'b' {} {}\n", repo.id("HEAD^1"), repo.id("sandbox/b"))
    );
    assert!(!repo.has("ran"), "no hook");
    // Without a conflict it is a merge as any other.
    subject.spawn(&repo, &["-q", "c"], "echo c >c; git add c; git commit -qm 'C one'").ok();
    repo.sandbox(&["merge", "--markers", "c"]).expect(0);
    assert_eq!(repo.git(&["status", "--porcelain"]).ok(), "");
}

fn a_conflict_is_resolved_in_a_sandbox_and_remembered(subject: &Subject) {
    let repo = two(subject);
    repo.git(&["config", "rerere.enabled", "true"]).ok();
    let start = repo.id("HEAD");
    // What is uncommitted here is not part of it, and what is ignored comes along.
    repo.write("src/a.c", "uncommitted\n");
    repo.write("target/built", "ignored\n");
    repo.write(".git/info/exclude", "target\n");
    let before = state(&repo);
    let script = "test -f target/built && git diff --quiet HEAD -- src/a.c && test -f .git/MERGE_HEAD || exit 9; \
                  sed -i -e '/^<<<<<<< /d' -e '/^=======$/d' -e '/^>>>>>>> /d' src/b.c; git commit -qam 'Both'";
    let seen = repo.sandbox(&["merge", "--into-sandbox", "b", "--", "sh", "-c", script]).expect(0);
    assert!(
        seen.stderr.starts_with(
            "the merge of 'b' goes on in 'b-merge': resolve it there and commit; `git sandbox merge b-merge` then \
             brings the result\n"
        ),
        "{seen}"
    );
    let refs = |state: (String, String)| state.1.lines().filter(|line| line.contains("refs/heads")).count();
    assert_eq!((tree_digest(repo.dir()), refs(before.clone())), (before.0.clone(), refs(state(&repo))));
    repo.git(&["checkout", "-q", "src/a.c"]).ok();
    let seen = repo.sandbox(&["merge", "b-merge"]).expect(0);
    assert!(seen.stderr.contains("kept for the next time (git rerere): how 1 conflict was resolved\n"), "{seen}");
    assert!(repo.read("src/b.c").starts_with("AAA\nBBB\nline 2\n"));
    // The same conflict once more: as it was resolved, and only if that is wanted.
    repo.git(&["reset", "-q", "--hard", &start]).ok();
    repo.sandbox(&["merge", "--no-rerere", "b"]).expect(1);
    let seen = repo.sandbox(&["merge", "b"]).expect(0);
    assert!(
        seen.stderr.starts_with("conflict in 'src/b.c' resolved as it was resolved before (git rerere)\n"),
        "{seen}"
    );
    assert!(repo.read("src/b.c").starts_with("AAA\nBBB\nline 2\n") && repo.read("src/b.c").ends_with("BB20\n"));
    // Git itself knows it too.
    repo.git(&["reset", "-q", "--hard", &start]).ok();
    let seen = repo.git(&["merge", "-q", "sandbox/b"]);
    assert_eq!(seen.status, 1, "{seen}");
    assert!(repo.read("src/b.c").starts_with("AAA\nBBB\nline 2\n"), "{seen}");
    repo.git(&["merge", "--abort"]).ok();
    // Switched off, neither is used.
    repo.git(&["config", "rerere.enabled", "false"]).ok();
    repo.sandbox(&["merge", "b"]).expect(1);
    // What does not conflict needs no sandbox.
    subject.spawn(&repo, &["-q", "c"], "echo c >c; git add c; git commit -qm c").ok();
    let seen = repo.sandbox(&["merge", "--into-sandbox", "c"]).expect(1);
    let text = "error: 'c' merges without a conflict\nhint: `git sandbox merge c` merges it here\n";
    assert_eq!(seen.stderr, text);
    let seen = repo.sandbox(&["merge", "--into-sandbox", "b", "c"]).expect(129);
    assert!(seen.stderr.starts_with("error: a conflict of one sandbox is resolved at a time\n"), "{seen}");
}

/// `git sandbox` with an editor: a shell script that gets the file as `$1`.
fn with_editor(repo: &Repo, script: &str, args: &[&str]) -> Output {
    let file = repo.env().root().join("editor");
    std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = repo.env().sandbox_command(repo.dir(), args);
    repo.env().run(command.env("GIT_EDITOR", &file))
}

fn a_message_is_edited(subject: &Subject) {
    let repo = two(subject);
    let args = ["merge", "--edit", "--resolve", "ours", "b"];
    let before = state(&repo);
    let seen = with_editor(&repo, ":>\"$1\"", &args).expect(1);
    let text = "error: the message is empty\nhint: nothing was written; merge again, or give the message with `-m`\n";
    assert!(seen.stderr.ends_with(text), "{seen}");
    let seen = with_editor(&repo, "exit 3", &args).expect(128);
    assert!(seen.stderr.contains("error: there was a problem with the editor '"), "{seen}");
    assert_eq!(state(&repo), before);
    let script = "grep -q '^# Please enter' \"$1\" && sed -i '1s/^/Edited: /' \"$1\"";
    with_editor(&repo, script, &args).expect(0);
    assert_eq!(repo.git(&["log", "-1", "--format=%B"]).ok(), "Edited: Merge sandbox 'b'\n\n");
    assert_eq!(repo.git(&["status", "--porcelain"]).ok(), "");
    // One commit after the other, of several; nothing is asked where none is made.
    repo.git(&["reset", "-q", "--hard", "HEAD~1"]).ok();
    for name in ["c", "d"] {
        subject
            .spawn(&repo, &["-q", name], &format!("echo {name} >{name}; git add {name}; git commit -qm {name}"))
            .ok();
    }
    // While somebody writes, the command has no process but the editor.
    let children = repo.env().root().join("children");
    let script = format!(
        "p=$$; until [ \"$(cat /proc/$p/comm)\" = git-sandbox ]; do p=$(awk '/^PPid:/ {{ print $2 }}' /proc/$p/status); done\n\
         cat /proc/[0-9]*/status 2>/dev/null | awk -v p=$p '/^Name:/ {{ n = $2 }} /^PPid:/ && $2 == p {{ print n }}' >>'{}'\n\
         sed -i '1s/^/E /' \"$1\"",
        children.display()
    );
    with_editor(&repo, &script, &["merge", "-e", "--no-ff", "c", "d"]).expect(0);
    let children = std::fs::read_to_string(children).unwrap();
    assert_eq!(children.lines().count(), 2, "one for each commit: {children}");
    assert!(!children.lines().any(|name| name == "git"), "{children}");
    let log = repo.git(&["log", "--first-parent", "-2", "--format=%s"]).ok();
    assert_eq!(log, "E Merge sandbox 'd'\nE Merge sandbox 'c'\n");
    assert_eq!(repo.git(&["fsck"]).status, 0);
    subject.spawn(&repo, &["-q", "f"], "echo f >f; git add f; git commit -qm f").ok();
    with_editor(&repo, "exit 3", &["merge", "--edit", "f"]).expect(0);
}

fn commits_are_signed_on_the_host(subject: &Subject) {
    let repo = two(subject);
    let key = repo.env().root().join("key");
    let made =
        std::process::Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status();
    assert!(made.unwrap().success());
    let public = key.with_extension("pub");
    let allowed = repo.env().root().join("allowed");
    std::fs::write(&allowed, format!("* {}", std::fs::read_to_string(&public).unwrap())).unwrap();
    let before = state(&repo);
    let set = |key: &str, value: &str| drop(repo.git(&["config", key, value]).ok());
    set("gpg.format", "ssh");
    set("gpg.ssh.allowedSignersFile", allowed.to_str().unwrap());
    set("user.signingKey", "/no/such/key.pub");
    let seen = repo.sandbox(&["merge", "--sign", "--resolve", "ours", "b"]).expect(128);
    assert!(seen.stderr.contains("error: cannot sign the commit\ncaused by: "), "{seen}");
    assert!(
        seen.stderr.ends_with(
            "hint: nothing was written; `git config user.signingKey` names the key, `--no-sign` merges without a \
             signature\n"
        ),
        "{seen}"
    );
    // A plan asks for no key.
    repo.sandbox(&["merge", "--dry-run", "--sign", "--resolve", "ours", "b"]).expect(0);
    assert_eq!(state(&repo), before);
    let good = |name: &str| repo.git(&["log", "-1", "--format=%G?", name]).ok();
    repo.sandbox(&["merge", &format!("--sign={}", public.display()), "--resolve", "ours", "b"]).expect(0);
    assert_eq!((good("HEAD"), good("HEAD^2")), ("G\n".into(), "N\n".into()), "only what was made here");
    repo.git(&["verify-commit", "HEAD"]).ok();
    assert_eq!(repo.git(&["status", "--porcelain"]).ok(), "");
    // As the configuration has it, for all that makes commits.
    set("user.signingKey", public.to_str().unwrap());
    set("commit.gpgSign", "true");
    for (name, args) in
        [("c", &["merge", "--squash", "c"][..]), ("d", &["pick", "d"]), ("e", &["merge", "--rebase", "e"])]
    {
        let start = repo.id("HEAD");
        let script =
            format!("echo 1 >{name}; git add {name}; git commit -qm {name}; echo 2 >{name}; git commit -qam {name}2");
        subject.spawn(&repo, &["-q", name], &script).ok();
        repo.commit("host.txt", name);
        repo.sandbox(args).expect(0);
        let all = repo.git(&["log", "--format=%G?", &format!("{start}..")]).ok();
        assert!(all.starts_with("G\n") && !all.contains('B'), "{name}: {all}");
    }
    subject.spawn(&repo, &["-q", "f"], "echo f >f; git add f; git commit -qm f").ok();
    repo.sandbox(&["merge", "--no-ff", "--no-sign", "f"]).expect(0);
    assert_eq!(good("HEAD"), "N\n");
    // The key is on the host only.
    assert_eq!(subject.exec(&repo, "f", &format!("test ! -e {}", key.display())).status, 0);
    repo.sandbox(&["stop", "--all"]).expect(0);
}

/// A program of the host's own home, which is ended with the test.
struct Agent<'r>(&'r Repo<'r>);

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        let _ = self.0.sh("gpgconf --kill all");
    }
}

fn commits_are_signed_with_gpg(subject: &Subject) {
    if which("gpg").is_none() {
        skip!("no gpg");
    }
    let repo = two(subject);
    let _agent = Agent(&repo);
    let made = "mkdir -m 700 ~/.gnupg && gpg --batch -q --passphrase '' --quick-generate-key 'Dev <dev@example.com>' \
                ed25519 sign never 2>/dev/null && gpg --batch --list-secret-keys --with-colons";
    let listed = repo.sh(made).ok();
    let key = listed.lines().find_map(|line| line.strip_prefix("fpr:")).unwrap().trim_matches(':').to_owned();
    repo.sandbox(&["merge", &format!("--sign={key}"), "--resolve", "ours", "b"]).expect(0);
    let told = repo.git(&["log", "-1", "--format=%G? %GF"]).ok();
    assert_eq!(told, format!("G {key}\n"));
    repo.git(&["verify-commit", "HEAD"]).ok();
    // Any other key: nothing is written.
    subject.spawn(&repo, &["-q", "c"], "echo c >c; git add c; git commit -qm c").ok();
    let before = state(&repo);
    let seen = repo.sandbox(&["merge", "--no-ff", "--sign=0123456789ABCDEF0123456789ABCDEF01234567", "c"]).expect(128);
    assert!(
        seen.stderr.contains("error: cannot sign the commit\ncaused by: ") && seen.stderr.contains("gpg"),
        "{seen}"
    );
    assert_eq!(state(&repo), before);
    // Neither the key nor its agent is inside.
    let look = "test ! -e ~/.gnupg && ! env | grep -i gpg && ! find / -name 'S.gpg-agent*' 2>/dev/null | grep .";
    assert_eq!(subject.exec(&repo, "c", look).status, 0);
    repo.sandbox(&["stop", "--all"]).expect(0);
}

/// Of two conflicts one was resolved here before: inside, only the other is left, and both are remembered here.
fn what_was_recorded_here_is_used_where_a_conflict_is_resolved(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    repo.git(&["config", "rerere.enabled", "true"]).ok();
    subject.spawn(&repo, &["-q", "a"], "sed -i 's/^line 1$/AAA/' src/b.c; echo A >src/a.c; git commit -qam A").ok();
    subject.spawn(&repo, &["-q", "one"], "sed -i 's/^line 1$/BBB/' src/b.c; git commit -qam One").ok();
    subject.spawn(&repo, &["-q", "b"], "sed -i 's/^line 1$/BBB/' src/b.c; echo B >src/a.c; git commit -qam B").ok();
    repo.sandbox(&["merge", "a"]).expect(0);
    let start = repo.id("HEAD");
    repo.git(&["merge", "-q", "sandbox/one"]);
    repo.write("src/b.c", repo.read("src/b.c").replace("<<<<<<< HEAD\n", "").replace("=======\n", ""));
    repo.sh("sed -i '/^>>>>>>> /d' src/b.c && git commit -qam Resolved && git reset -q --hard HEAD^").ok();
    assert_eq!(repo.id("HEAD"), start);
    let script =
        "grep -c '^<<<<<<<' src/a.c && ! grep '^<<<<<<<' src/b.c && grep -q ^AAA src/b.c && grep -q ^BBB src/b.c &&
        printf 'A\\nB\\n' >src/a.c && git add -A && git commit -qm Both";
    repo.sandbox(&["merge", "--into-sandbox", "b", "--", "sh", "-ec", script]).expect(0);
    repo.sandbox(&["merge", "b-merge"]).expect(0);
    let merged = repo.read("src/b.c");
    assert!(merged.starts_with("AAA\nBBB\n") && repo.read("src/a.c") == "A\nB\n", "{merged}");
    repo.git(&["reset", "-q", "--hard", &start]).ok();
    let seen = repo.sandbox(&["merge", "b"]).expect(0);
    assert_eq!(seen.stderr.matches("as it was resolved before (git rerere)").count(), 2, "{seen}");
    assert_eq!(repo.read("src/b.c"), merged);
}

fn what_makes_no_sense_together_is_refused(subject: &Subject) {
    let repo = two(subject);
    let before = state(&repo);
    for args in [
        &["--edit", "--ff-only"][..],
        &["--edit", "--rebase"],
        &["--edit", "--dry-run"],
        &["--sign", "--ff-only"],
        &["--sign", "--no-sign"],
        &["--resolve", "ours", "--ff-only"],
        &["--into-sandbox", "--squash"],
        &["--into-sandbox", "--dry-run"],
        &["--into-sandbox", "--resolve", "ours"],
        &["--detach"],
    ] {
        let seen = repo.sandbox(&[&["merge"], args, &["b"]].concat()).expect(129);
        assert!(seen.stderr.starts_with("error: the "), "{args:?}: {seen}");
    }
    let seen = repo.sandbox(&["merge", "b", "--", "true"]).expect(129);
    assert!(seen.stderr.contains("--into-sandbox"), "{seen}");
    let seen = repo.sandbox(&["merge", "--resolve", "mine", "b"]).expect(129);
    let text = "error: 'mine' is no side of a merge\n\
                hint: `ours` is what is here, `theirs` what the sandbox has: `--resolve theirs:src/main.rs`\n";
    assert_eq!(seen.stderr, text);
    let seen = repo.sandbox(&["merge", "--resolve", "ours:../x", "b"]).expect(129);
    let text = "error: '../x' is not a path of the repository\n\
                hint: as the conflict names it, from the top of the working tree\n";
    assert_eq!(seen.stderr, text);
    repo.sandbox(&["log", "--graph", "--json", "b"]).expect(129);
    let seen = repo.sandbox(&["log", "--json", "a", "b"]).expect(129);
    let text =
        "error: the commits of one sandbox at a time are told as JSON\nhint: `git sandbox log --json NAME` for each\n";
    assert_eq!(seen.stderr, text);
    assert_eq!(state(&repo), before);
}

fn files_are_applied_by_their_paths(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let script = "echo 1 >>src/a.c; echo 2 >>src/b.c; mkdir -p new/deep; echo 3 >new/deep/f; echo 4 >new/g";
    subject.spawn(&repo, &["-q", "s"], script).ok();
    let before = state(&repo);
    let seen = repo.sandbox(&["apply", "s", "src/a.c", "nothing"]).expect(1);
    let text = "error: nothing changed at 'nothing' in 's'\n\
                hint: `git sandbox apply --dry-run s` lists what changed; nothing was written\n";
    assert_eq!(seen.stderr, text);
    assert_eq!(state(&repo), before);
    let seen = repo.sandbox(&["apply", "--json", "--dry-run", "s", "new", "src/a.c"]).expect(0);
    let json: serde_json::Value = serde_json::from_str(&seen.stdout).unwrap();
    let files: Vec<&str> = json["repositories"][0]["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| file["path"].as_str().unwrap())
        .collect();
    assert_eq!(files, ["new/deep/f", "new/g", "src/a.c"]);
    assert_eq!(state(&repo), before);
    // From where the caller is.
    let seen = repo.env().sandbox(&repo.dir().join("src"), &["apply", "s", "./a.c", "../new/deep"]).expect(0);
    assert_eq!(seen.stderr.lines().last(), Some("2 files applied here, uncommitted"), "{seen}");
    assert_eq!(repo.git(&["status", "--porcelain", "-uall"]).ok(), " M src/a.c\n?? new/deep/f\n");
    repo.sandbox(&["undo"]).expect(0);
    assert_eq!(repo.git(&["status", "--porcelain", "-uall"]).ok(), "");
    repo.sandbox(&["apply", "--stash", "s", "src"]).expect(0);
    repo.git(&["stash", "pop", "-q"]).ok();
    assert_eq!(repo.git(&["status", "--porcelain", "-uall"]).ok(), " M src/a.c\n M src/b.c\n");
}

fn several_histories_are_one_picture(subject: &Subject) {
    let repo = two(subject);
    subject.spawn(&repo, &["-q", "c"], "echo c >c; git add c; git commit -qm \"$(printf 'C \\033[31mone')\"").ok();
    let seen = repo.sandbox(&["log", "--graph", "b", "c"]).expect(0);
    assert!(!seen.stdout.contains('\u{1b}'), "{seen}");
    let lines: Vec<&str> = seen.stdout.lines().collect();
    let has = |words: &[&str]| lines.iter().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(has(&["* ", "(sandbox/c) C \\u{1b}[31mone (Dev, "]), "{seen}");
    assert!(has(&["* ", "(sandbox/b) B one (Dev, "]), "{seen}");
    assert!(has(&["* ", "(main) A one (Dev, "]) && lines.iter().any(|line| line.contains("|/")), "{seen}");
    let seen = repo.sandbox(&["log", "a", "b"]).expect(0);
    assert!(seen.stdout.contains(" A one (") && seen.stdout.contains(" B one ("), "{seen}");
}

fn a_rewritten_branch_is_compared(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "s");
    let script = "echo 1 >one; git add one; git commit -qm One; seq 30 >two; git add two; git commit -qm Two";
    subject.exec(&repo, "s", script).ok();
    repo.sandbox(&["fetch", "s"]).expect(0);
    let seen = repo.sandbox(&["range-diff", "s"]).expect(1);
    assert_eq!(seen.stderr, "'s' was not rewritten\n");
    let old = repo.id("sandbox/s");
    subject
        .exec(
            &repo,
            "s",
            "sed -i 's/^15$/AMENDED/' two; git commit -q --amend -am Two; echo 3 >t; git add t; git commit -qm Three",
        )
        .ok();
    repo.sandbox(&["fetch", "s"]).expect(0);
    let seen = repo.sandbox(&["range-diff", "s"]).expect(0);
    let lines: Vec<&str> = seen.stdout.lines().filter(|line| !line.starts_with(' ')).collect();
    assert_eq!(lines.len(), 3, "{seen}");
    assert!(lines[0].contains(" = ") && lines[1].contains(" ! ") && lines[2].contains(" > "), "{seen}");
    assert!(seen.stdout.contains("AMENDED"), "{seen}");
    let seen = repo.sandbox(&["range-diff", "--json", "s", &old[..8]]).expect(0);
    let json: serde_json::Value = serde_json::from_str(&seen.stdout).unwrap();
    let became: Vec<&str> =
        json["commits"].as_array().unwrap().iter().map(|commit| commit["how"].as_str().unwrap()).collect();
    assert_eq!((became, &json["old"]), (vec!["unchanged", "changed", "new"], &old.clone().into()));
    let seen = repo.sandbox(&["range-diff", "s", "main"]).expect(1);
    assert!(seen.stderr.starts_with("error: 'main' is no former tip of 's'\nhint: it was at "), "{seen}");
    repo.sandbox(&["stop", "s"]).expect(0);
    subject.spawn(&repo, &["-q", "none"], "true").ok();
    assert_eq!(repo.sandbox(&["range-diff", "none"]).expect(1).stderr, "no commits in 'none'\n");
}

fn a_list_marks_what_collides(subject: &Subject) {
    let repo = two(subject);
    subject.spawn(&repo, &["-q", "c"], "echo c >c; git add c; git commit -qm c").ok();
    for _ in 0..2 {
        // Also from the cache.
        let seen = repo.sandbox(&["list", "--json"]).expect(0);
        let json: serde_json::Value = serde_json::from_str(&seen.stdout).unwrap();
        let of = |name: &str| {
            let all = json["sandboxes"].as_array().unwrap();
            all.iter().find(|row| row["name"] == name).unwrap()["collides"].to_string()
        };
        assert_eq!([of("a"), of("b"), of("c")], [r#"["b"]"#, r#"["HEAD","a","c"]"#, r#"["b"]"#], "c has what a did");
    }
    let seen = repo.sandbox(&["list"]).expect(0);
    assert!(seen.stdout.lines().next().unwrap().contains("COMMITS  COLLIDES WITH  UNCOMMITTED"), "{seen}");
    assert!(seen.stdout.contains("  HEAD, a, c  "), "{seen}");
    repo.sandbox(&["drop", "--force", "a", "b"]).expect(0);
    assert!(!repo.sandbox(&["list"]).expect(0).stdout.contains("COLLIDES"));
}
