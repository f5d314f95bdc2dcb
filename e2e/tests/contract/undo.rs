//! `undo` and `ops`: what a verb did to the host is taken back exactly, or refused with nothing written.

use crate::Subject;
use insta::assert_snapshot;
use sandbox_testkit::{Repo, State};

over_drivers! {
    a_merge_onto_uncommitted_work,
    several_merged_at_once_go_back_at_once,
    a_pick_and_edits,
    newest_first_and_each_once,
    what_came_later_is_not_overwritten,
    a_merge_that_was_cut_past_its_last_step_is_an_operation,
    a_merge_that_was_cut_before_its_last_step_is_none,
    a_branch,
    a_dropped_sandbox,
    what_a_drop_stood_on_is_not_undone,
    what_a_killed_drop_stood_on_is_not_undone,
    two_drops_at_once_keep_what_both_had,
    what_was_done_is_listed,
}

/// Everything that `undo` promises: files, index and refs (ours come and go with fetches).
fn look(repo: &Repo) -> String {
    let said = repo
        .sh("git status --porcelain=v2 --branch; git ls-files --stage; git stash list; git symbolic-ref -q HEAD
         git for-each-ref | grep -v refs/sandbox; git diff; git diff --cached");
    // Git writes its own notes below `.git` whenever it looks.
    let files = repo.sh("find . -path ./.git -prune -o -type f -print0 | sort -z | xargs -0 sha256sum").ok();
    let shape = repo.sh("find . -path ./.git -prune -o -printf '%p %y %m %l\\n' | sort").ok();
    format!("{}{files}{shape}", said.ok())
}

/// What a command says, without the ids of commits.
fn said(repo: &Repo, args: &[&str]) -> String {
    let said = repo.sandbox(args).to_string();
    let id = regex::Regex::new(" at [0-9a-f]{7}").unwrap();
    id.replace_all(&said, " at ID").into_owned()
}

/// A repository with staged, unstaged and untracked work, and a sandbox `s` with two commits that touch all
/// kinds of paths.
fn with_work(subject: &Subject) -> Repo<'_> {
    let repo = subject.repo(State::Plain);
    let b = repo.read("src/b.c").replace("line 20\n", "USER EDIT\n");
    repo.write("src/b.c", b);
    repo.write("staged", "staged\n");
    repo.git(&["add", "staged"]).ok();
    repo.write("untracked", "untracked\n");
    let script = "sed -i 's/^line 1$/AGENT/' src/b.c; git add -p src/b.c </dev/null >/dev/null 2>&1
         git stash push -q -- staged 2>/dev/null; git checkout -q HEAD -- src/b.c
         sed -i 's/^line 1$/AGENT/' src/b.c; git commit -qm one src/b.c
         git mv src/a.c src/moved.c; ln -s moved.c src/link; echo x >run; chmod +x run; git add src run; git commit -qm two";
    subject.spawn(&repo, &["s"], script).ok();
    repo
}

fn a_merge_onto_uncommitted_work(subject: &Subject) {
    let repo = with_work(subject);
    for how in ["--ff-only", "--no-ff", "--squash", "--rebase"] {
        let before = look(&repo);
        repo.sandbox(&["merge", how, "s"]).ok();
        assert_ne!(look(&repo), before, "{how} changes nothing");
        assert!(repo.read("src/b.c").contains("USER EDIT") && repo.read("src/b.c").contains("AGENT"));
        let dry = repo.sandbox(&["undo", "-n"]).ok();
        assert!(dry.starts_with("put back files, index and HEAD of "), "{dry}");
        repo.sandbox(&["undo"]).ok();
        assert_eq!(look(&repo), before, "{how}");
    }
    repo.git(&["fsck", "--full"]).ok();
}

fn several_merged_at_once_go_back_at_once(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    for name in ["a", "b", "c"] {
        subject.spawn(&repo, &[name], &format!("echo {name} >{name}; git add {name}; git commit -qm {name}")).ok();
    }
    let before = look(&repo);
    repo.sandbox(&["merge", "--all"]).ok();
    assert!(repo.has("a") && repo.has("b") && repo.has("c"));
    repo.sandbox(&["undo"]).ok();
    assert_eq!(look(&repo), before);
}

fn a_pick_and_edits(subject: &Subject) {
    let repo = with_work(subject);
    let before = look(&repo);
    repo.sandbox(&["pick", "s", &repo.id("sandbox/s")]).ok();
    let picked = look(&repo);
    assert!(repo.has("run") && !repo.read("src/b.c").contains("AGENT"));
    repo.sandbox(&["apply", "s"]).ok();
    assert!(repo.read("src/b.c").contains("AGENT"));
    repo.sandbox(&["undo"]).ok();
    assert_eq!(look(&repo), picked);
    repo.sandbox(&["undo"]).ok();
    assert_eq!(look(&repo), before);
}

fn newest_first_and_each_once(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let start = look(&repo);
    for name in ["a", "b"] {
        subject.spawn(&repo, &[name], &format!("echo {name} >{name}; git add {name}; git commit -qm {name}")).ok();
        repo.sandbox(&["merge", name]).ok();
    }
    let both = look(&repo);
    // The first cannot go while the second stands on it.
    assert_snapshot!(said(&repo, &["undo", "1"]), @r#"
        ---- stderr
        error: cannot undo operation 1: fast-forwarded by 1 commit from 'a' into 'main': now at ID
        caused by: the index changed since
        hint: `git sandbox undo 2` takes the newest one back first
        ---- status 1
        "#);
    assert_eq!(look(&repo), both);
    repo.sandbox(&["undo"]).ok();
    repo.sandbox(&["undo"]).ok();
    assert_eq!(look(&repo), start);
    assert_snapshot!(said(&repo, &["undo"]), @r#"
        ---- stderr
        error: there is nothing to undo here
        hint: `git sandbox ops` lists what was done
        ---- status 1
        "#);
    assert_snapshot!(said(&repo, &["undo", "2"]), @r#"
        ---- stderr
        error: cannot undo operation 2: fast-forwarded by 1 commit from 'b' into 'main': now at ID
        caused by: it was undone [TIME] ago
        ---- status 1
        "#);
    assert_snapshot!(said(&repo, &["undo", "7"]), @r#"
        ---- stderr
        error: there is no operation 7 here
        hint: `git sandbox ops` lists them; `gc` forgets them after 30 days
        ---- status 128
        "#);
}

fn what_came_later_is_not_overwritten(subject: &Subject) {
    let repo = with_work(subject);
    repo.sandbox(&["merge", "s"]).ok();
    let merged = repo.read("src/b.c");
    repo.write("src/b.c", format!("later\n{merged}"));
    let before = look(&repo);
    assert_snapshot!(said(&repo, &["undo"]), @r#"
        ---- stderr
        error: cannot undo operation 1: fast-forwarded by 2 commits from 's' into 'main': now at ID
        caused by: 'src/b.c' changed since
        hint: commit or put back what came later, or take the change back with git itself (`git revert`)
        ---- status 1
        "#);
    assert_eq!(look(&repo), before);
    repo.write("src/b.c", merged);
    // Somebody else's lock.
    repo.write(".git/index.lock", "");
    assert_snapshot!(said(&repo, &["undo"]), @r#"
        ---- stderr
        error: cannot undo operation 1: fast-forwarded by 2 commits from 's' into 'main': now at ID
        caused by: '[REPO]/.git/index.lock' exists: another git process seems to be at work here
        ---- status 128
        "#);
    assert!(repo.has(".git/index.lock"));
    std::fs::remove_file(repo.dir().join(".git/index.lock")).unwrap();
    // An index that says something else.
    repo.git(&["add", "src/b.c"]).ok();
    let before = look(&repo);
    assert_snapshot!(said(&repo, &["undo"]), @r#"
        ---- stderr
        error: cannot undo operation 1: fast-forwarded by 2 commits from 's' into 'main': now at ID
        caused by: the index changed since
        hint: commit or put back what came later, or take the change back with git itself (`git revert`)
        ---- status 1
        "#);
    assert_eq!(look(&repo), before);
    // A commit on top.
    repo.git(&["commit", "-qm", "later"]).ok();
    let before = look(&repo);
    let refused = repo.sandbox(&["undo"]).expect(1).stderr;
    assert!(refused.contains("changed since"), "{refused}");
    assert_eq!(look(&repo), before);
}

/// Killed when files, index and HEAD are as the merge makes them: whatever comes next finishes it, also when work
/// came on top, and `undo` takes it back as any other.
fn a_merge_that_was_cut_past_its_last_step_is_an_operation(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["a"], "echo a >a; git add a; git commit -qm a").ok();
    let start = look(&repo);
    let tip = repo.id("refs/sandbox/a");
    for (point, later) in [("merge.log", ""), ("merge.done", ""), ("merge.log", "later"), ("merge.log", "commit")] {
        let mut cut = subject.env.sandbox_command(repo.dir(), &["merge", "a"]);
        assert_eq!(subject.env.run(cut.env("GIT_SANDBOX_FAULT", format!("{point}:kill"))).status, 137);
        match later {
            "later" => repo.write("a", "later\n"),
            "commit" => drop(repo.commit("mine", "mine\n")),
            _ => {}
        }
        let there = look(&repo);
        let listed = repo.sandbox(&["ops"]);
        assert!(listed.stderr.contains("a 'merge' of 'a' was cut off: it was finished"), "{point} {later}: {listed}");
        assert_eq!(look(&repo), there, "{point} {later}");
        if later == "later" {
            repo.write("a", "a\n");
        }
        if later == "commit" {
            assert_eq!(repo.id("HEAD^"), tip);
            repo.git(&["reset", "-q", "--hard", "HEAD^"]).ok();
        }
        assert!(repo.sandbox(&["undo"]).expect(0).stderr.contains("undone: "), "{point} {later}");
        assert_eq!(look(&repo), start, "{point} {later}");
    }
    let last = repo.sandbox(&["ops"]).stdout;
    assert!(last.contains("the merge of 'a', which was cut off and then finished (undone)"), "{last}");
}

/// Killed before HEAD moved: it is taken back, and what was done before is what is left to undo.
fn a_merge_that_was_cut_before_its_last_step_is_none(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    for name in ["a", "b"] {
        subject.spawn(&repo, &[name], &format!("echo {name} >{name}; git add {name}; git commit -qm {name}")).ok();
    }
    let start = look(&repo);
    repo.sandbox(&["merge", "a"]).ok();
    let before = look(&repo);
    let mut cut = subject.env.sandbox_command(repo.dir(), &["merge", "b"]);
    let said = subject.env.run(cut.env("GIT_SANDBOX_FAULT", "merge.head:kill"));
    assert_eq!(said.status, 137, "{said}");
    let listed = repo.sandbox(&["ops"]);
    assert!(listed.stderr.contains("was taken back"), "{listed}");
    assert_eq!(look(&repo), before);
    assert_eq!(listed.stdout.lines().count(), 2, "{listed}");
    repo.sandbox(&["undo"]).ok();
    assert_eq!(look(&repo), start);
}

fn a_branch(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["s"], "echo x >x; git add x; git commit -qm x").ok();
    repo.sandbox(&["branch", "s", "fix/x"]).ok();
    repo.git(&["checkout", "-q", "fix/x"]).ok();
    assert_snapshot!(said(&repo, &["undo"]), @r#"
        ---- stderr
        error: cannot undo operation 1: made the branch 'fix/x' at ID of 's'
        caused by: the branch 'fix/x' is checked out
        hint: check another branch out, then undo it
        ---- status 1
        "#);
    repo.git(&["commit", "-q", "--allow-empty", "-m", "on top"]).ok();
    repo.git(&["checkout", "-q", "main"]).ok();
    assert_snapshot!(said(&repo, &["undo"]), @r#"
        ---- stderr
        error: cannot undo operation 1: made the branch 'fix/x' at ID of 's'
        caused by: the branch 'fix/x' has moved since
        ---- status 1
        "#);
    repo.git(&["branch", "-f", "fix/x", "fix/x~1"]).ok();
    repo.sandbox(&["undo"]).ok();
    repo.git(&["rev-parse", "--verify", "-q", "fix/x"]).expect(1);

    repo.sandbox(&["branch", "s", "gone"]).ok();
    repo.git(&["branch", "-qD", "gone"]).ok();
    assert_snapshot!(said(&repo, &["undo"]), @r#"
        ---- stderr
        error: cannot undo operation 2: made the branch 'gone' at ID of 's'
        caused by: the branch 'gone' is gone
        ---- status 1
        "#);
}

fn a_dropped_sandbox(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["s"], "echo x >x; git add x; git commit -qm x; echo y >y; echo z >$HOME/z").ok();
    let upper = |repo: &Repo| repo.sandbox(&["diff", "s"]).ok() + &repo.id("sandbox/s");
    let before = upper(&repo);
    repo.sandbox(&["drop", "--force", "s"]).ok();
    repo.sandbox(&["show", "s"]).expect(128);
    repo.sandbox(&["undo"]).ok();
    assert_eq!(upper(&repo), before);
    repo.sandbox(&["start", "s"]).ok();
    assert_eq!(subject.exec(&repo, "s", "cat y $HOME/z").ok(), "y\nz\n");

    repo.sandbox(&["drop", "--force", "s"]).ok();
    repo.sandbox(&["trash", "empty", "--yes"]).ok();
    assert_snapshot!(said(&repo, &["undo"]), @r#"
        ---- stderr
        error: cannot undo operation 2: dropped into the trash: 's'
        caused by: it is not in the trash any more
        ---- status 1
        "#);

    // One that came back by itself is not in the way of what was done before it.
    repo.sandbox(&["branch", "u", "b"]).expect(128);
    subject.spawn(&repo, &["u"], "echo u >u; git add u; git commit -qm u").ok();
    repo.sandbox(&["branch", "u", "b"]).ok();
    subject.exec(&repo, "u", "echo more >more").ok();
    repo.sandbox(&["drop", "--force", "u"]).ok();
    repo.sandbox(&["trash", "restore", "u"]).ok();
    assert_eq!(repo.sandbox(&["undo", "-n"]).ok(), "delete the branch 'b'\n");
    let refused = repo.sandbox(&["undo", "4"]).expect(1).stderr;
    assert!(refused.contains("it was restored since"), "{refused}");

    subject.spawn(&repo, &["t"], "true").ok();
    repo.sandbox(&["drop", "t"]).ok();
    assert_snapshot!(said(&repo, &["undo"]), @r#"
        ---- stderr
        error: cannot undo operation 5: dropped: 't'
        caused by: it was deleted, since everything of it is here
        hint: `git sandbox spawn --from COMMIT` makes a new one of a commit
        hint: `git sandbox undo 3` takes back what was done before: made the branch 'b' at ID of 'u'
        ---- status 1
        "#);
}

fn what_was_done_is_listed(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    assert_snapshot!(said(&repo, &["ops"]), @r#"
        ---- stderr
        nothing was done here yet
        ---- status 0
        "#);
    assert_snapshot!(said(&repo, &["undo"]), @r#"
        ---- stderr
        error: there is nothing to undo here
        hint: `git sandbox ops` lists what was done
        ---- status 1
        "#);
    subject.spawn(&repo, &["s"], "echo x >x; git add x; git commit -qm x").ok();
    repo.sandbox(&["merge", "s"]).ok();
    repo.sandbox(&["branch", "s", "kept"]).ok();
    repo.sandbox(&["undo", "1"]).ok();
    let listed = repo.sandbox(&["ops"]).ok();
    let rows: Vec<&str> = listed.lines().collect();
    assert!(rows[0].starts_with("OP"), "{listed}");
    assert!(rows[1].starts_with("2 ") && rows[1].contains("made the branch 'kept'"), "{listed}");
    assert!(rows[2].starts_with("1 ") && rows[2].ends_with("(undone)"), "{listed}");
    let json: serde_json::Value = serde_json::from_str(&repo.sandbox(&["ops", "--json", "-n", "1"]).ok()).unwrap();
    assert_eq!(json["version"], 1);
    assert_eq!(json["operations"].as_array().unwrap().len(), 1);
    assert_eq!(json["operations"][0]["verb"], "branch");
    assert!(json["operations"][0]["undone"].is_null());
    // Outside of a repository there is nothing to list.
    assert_snapshot!(subject.env.sandbox(&subject.env.home(), &["ops"]), @r#"
        ---- stderr
        error: not a git repository: '[HOME]'
        hint: `cd` into a repository, or make one with `git init`
        ---- status 128
        "#);
}

/// A clean drop deletes because everything is here: what brought it here stays.
fn what_a_drop_stood_on_is_not_undone(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["a"], "echo only >new").ok();
    repo.sandbox(&["apply", "a"]).ok();
    repo.sandbox(&["drop", "a"]).ok();
    assert_snapshot!(said(&repo, &["undo", "1"]), @r#"
        ---- stderr
        error: cannot undo operation 1: 1 file applied here, uncommitted, from 'a'
        caused by: 'a' was dropped since (operation 2), because all that it had is here
        hint: nothing else has it any more; git itself takes it away: `git revert`, `git branch -D`, `git restore`
        ---- status 1
        "#);
    assert_eq!(repo.read("new"), "only\n");
    subject.spawn(&repo, &["b"], "echo b >b; git add b; git commit -qm b").ok();
    repo.sandbox(&["branch", "b", "kept"]).ok();
    let commit = repo.id("kept");
    repo.sandbox(&["drop", "b"]).ok();
    let refused = repo.sandbox(&["undo", "3"]).expect(1).stderr;
    assert!(refused.contains("'b' was dropped since"), "{refused}");
    assert_eq!(repo.id("kept"), commit);
}

/// A drop that is killed once its sandbox is gone is finished by the next command: it stood on the same. One that is
/// killed before has done nothing, and is in nobody's way.
fn what_a_killed_drop_stood_on_is_not_undone(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    for (point, is_gone) in [("drop.rename", false), ("drop.kept", true), ("drop.delete", true)] {
        subject.spawn(&repo, &["a"], "date >>f; git add f; git commit -qm a").ok();
        repo.sandbox(&["branch", "a", "kept"]).ok();
        let commit = repo.id("kept");
        let mut cut = subject.env.sandbox_command(repo.dir(), &["drop", "a"]);
        assert_eq!(subject.env.run(cut.env("GIT_SANDBOX_FAULT", format!("{point}:kill"))).status, 137);
        let listed = repo.sandbox(&["ops"]).ok();
        assert_eq!(listed.lines().nth(1).unwrap().contains("dropped: 'a'"), is_gone, "{point}: {listed}");
        let branch = listed.lines().find(|line| line.contains("made the branch 'kept'")).unwrap();
        let undone = repo.sandbox(&["undo", branch.split(' ').next().unwrap()]);
        if is_gone {
            assert!(undone.status == 1 && undone.stderr.contains("'a' was dropped since"), "{point}: {undone}");
            assert_eq!(repo.id("kept"), commit);
            repo.git(&["branch", "-qD", "kept"]).ok();
        } else {
            undone.ok();
            repo.sandbox(&["drop", "--force", "a"]).ok();
        }
    }
}

/// Each of two sandboxes has the other's commit: one of them goes, or both are refused, never both.
fn two_drops_at_once_keep_what_both_had(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    for round in 0..4 {
        let (a, b) = (format!("a{round}"), format!("b{round}"));
        subject.spawn(&repo, &[&a], &format!("echo {round} >f{round}; git add .; git commit -qm {round}")).ok();
        repo.sandbox(&["fork", &a, &b]).ok();
        repo.sandbox(&["fetch", "--all"]).ok();
        let commit = repo.id(&format!("sandbox/{a}"));
        // Both have looked before either can delete a ref, if nothing keeps them apart.
        repo.write(".git/packed-refs.lock", "");
        let mut both = [&a, &b].map(|name| subject.env.start(repo.dir(), &["drop", name]));
        std::thread::sleep(std::time::Duration::from_millis(600));
        std::fs::remove_file(repo.dir().join(".git/packed-refs.lock")).unwrap();
        for one in &mut both {
            one.wait(std::time::Duration::from_secs(60));
        }
        let refs = repo.git(&["for-each-ref", "--contains", &commit]).ok();
        assert_ne!(refs, "", "round {round}: nothing has {commit} any more");
        repo.sandbox(&["drop", "--all", "--force"]).ok();
    }
}
