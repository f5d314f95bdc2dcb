//! `--with`: further repositories and directories come along, each as it is, and each gets its own back.

use crate::Subject;
use crate::rescue::crash;
use crate::states::{LOOK, similar};
use sandbox_testkit::{DIGEST_SCRIPT, Pty, Repo, State, skip, wait_until, which};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::time::Duration;

over_drivers! {
    a_second_repository_is_what_it_is_outside,
    commits_come_back_to_each,
    commits_come_back_while_it_runs_and_the_host_serves_each,
    what_one_repository_was_not_granted_is_not_seen,
    read_only_is_read_only,
    a_directory_has_changed_files_and_no_commits,
    a_merge_is_all_or_none,
    a_merge_that_fails_in_between_changes_nothing,
    a_merge_that_is_killed_at_any_moment_is_all_or_none,
    a_merge_that_was_cut_waits_for_what_is_in_the_way,
    an_undo_that_was_killed_is_finished_by_the_next,
    edits_are_applied_to_all_or_none,
    stash_entries_are_made_in_all_or_none,
    names_are_one_in_all,
    fork_drop_and_restore_take_all_along,
    each_vault_has_its_part_when_the_directory_is_lost,
    every_verb_says_which,
    verbs_of_one_repository_are_about_the_one_that_the_caller_is_in,
    a_command_that_never_commits_is_committed_for_in_each,
    the_callers_links_lead_there,
    what_a_repository_asks_for_is_asked_once,
    without_a_terminal_nobody_agrees,
    a_second_repository_tightens_too,
    secrets_of_each_stay_at_home,
    nobody_waits_for_the_answer_about_secrets,
    at_the_end_each_is_told_of,
    a_stopped_sandbox_starts_with_all_of_it,
    a_drop_is_undone_wherever_that_is_asked_and_once,
    a_copy_has_all_of_them_too,
    what_a_crash_left_in_each_is_rescued_dropped_and_restored,
}

/// A main repository, and a second one called `lib`.
fn two<'s>(subject: &'s Subject, lib: State) -> (Repo<'s>, Repo<'s>) {
    (subject.repo(State::Plain), lib.build(&subject.env, "lib"))
}

/// `spawn NAME --with LIB -- sh -c SCRIPT`, in which `$LIB` is the second repository.
#[track_caller]
fn spawn(subject: &Subject, repo: &Repo, name: &str, lib: &Repo, script: &str) -> sandbox_testkit::Output {
    let path = lib.dir().to_str().unwrap();
    subject.spawn(repo, &[name, "--with", path], &format!("LIB='{path}'; {script}"))
}

/// One commit of `file` in each of both.
const COMMIT_BOTH: &str =
    "for dir in . \"$LIB\"; do (cd \"$dir\" && echo new >new && git add new && git commit -qm Both); done";

fn head(repo: &Repo) -> String {
    repo.id("HEAD")
}

/// All of the working tree, index and HEAD, and no ref of ours.
fn look(repo: &Repo) -> String {
    let script =
        "git status --porcelain=v2 --branch; git ls-files --stage; git diff; git for-each-ref | grep -v refs/sandbox
        find . -path ./.git -prune -o -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum";
    repo.sh(script).stdout
}

fn a_second_repository_is_what_it_is_outside(subject: &Subject) {
    let repo = subject.repo(State::Dirty);
    let states = [
        State::Dirty,
        State::Conflict,
        State::Stash,
        State::Submodule,
        State::LinkedWorktree,
        State::Unborn,
        State::Shallow,
    ];
    for (n, state) in states.into_iter().enumerate() {
        if let Some(reason) = state.unavailable(&subject.env) {
            skip!("{reason}");
        }
        let lib = state.build(&subject.env, &format!("lib{n}"));
        let look = format!("{LOOK}{DIGEST_SCRIPT}");
        let (main_before, before) = (repo.sh(&look).stdout, lib.sh(&look).stdout);
        let name = format!("s{n}");
        let inside = spawn(subject, &repo, &name, &lib, &format!("cd \"$LIB\"\n{look}")).expect(0).stdout;
        assert_eq!(lib.sh(&look).stdout, before, "{state:?}: the host changed");
        similar(&inside, &before);
        let main = subject.exec(&repo, &name, &look).ok();
        similar(&main, &main_before);
        subject.exec(&repo, &name, &format!("cd '{}' && git fsck --full --strict 2>&1", lib.dir().display())).ok();
    }
}

fn commits_come_back_to_each(subject: &Subject) {
    let (repo, lib) = two(subject, State::Dirty);
    let (before, lib_before) = (look(&repo), look(&lib));
    let script = "git commit -q --allow-empty -m Main; git rev-parse HEAD; cd \"$LIB\" && git commit -qam Lib; git rev-parse HEAD";
    let tips = spawn(subject, &repo, "s", &lib, script).ok();
    let tips: Vec<&str> = tips.lines().collect();
    assert_eq!([repo.id("refs/sandbox/s"), lib.id("refs/sandbox/s")], [tips[0], tips[1]]);
    assert_eq!((look(&repo), look(&lib)), (before, lib_before), "nothing but our refs changed");
    assert!(repo.git(&["cat-file", "-e", tips[1]]).status != 0, "no object of the second is in the first");
    assert_eq!(lib.git(&["fsck", "--full"]).status, 0);
    // Only what is committed in one of them moves there.
    subject.exec(&repo, "s", &format!("cd '{}' && git commit -q --allow-empty -m More", lib.dir().display())).ok();
    repo.sandbox(&["fetch", "s"]).ok();
    assert_eq!(repo.id("refs/sandbox/s"), tips[0]);
    assert_eq!(lib.git(&["log", "-1", "--format=%s", "refs/sandbox/s"]).ok(), "More\n");
    assert_eq!(lib.sandbox(&["-C", lib.dir().to_str().unwrap(), "fetch", "s"]).status, 0);
}

fn commits_come_back_while_it_runs_and_the_host_serves_each(subject: &Subject) {
    let (repo, lib) = two(subject, State::Plain);
    let path = lib.dir().to_str().unwrap();
    repo.sandbox(&["spawn", "--driver", subject.driver, "-d", "s", "--with", path]).ok();
    let there = |script: &str| subject.exec(&repo, "s", &format!("cd '{path}' && {script}"));
    there("git commit -q --allow-empty -m There").ok();
    let here = || lib.git(&["log", "-1", "--format=%s", "refs/sandbox/s", "--"]).stdout == "There\n";
    wait_until("the commit is here", Duration::from_secs(5), here);
    let pushed = there("git commit -q --allow-empty -m Pushed && git push host HEAD 2>&1").ok();
    assert!(pushed.contains(&format!("{path}: sandbox/s")), "it says which: {pushed}");
    assert_eq!(lib.git(&["log", "-1", "--format=%s", "refs/sandbox/s"]).ok(), "Pushed\n");
    lib.commit("later-lib", "later\n");
    repo.commit("later-main", "later\n");
    let seen = there(
        "git fetch -q host && git log -1 --format=%s host/main && cd deep 2>/dev/null; git log -1 --format=%s host/main",
    );
    assert_eq!(seen.ok(), "Change later-lib\nChange later-lib\n");
    assert_eq!(
        subject.exec(&repo, "s", "git fetch -q host && git log -1 --format=%s host/main").ok(),
        "Change later-main\n"
    );
}

fn what_one_repository_was_not_granted_is_not_seen(subject: &Subject) {
    let (repo, lib) = two(subject, State::Plain);
    lib.git(&["checkout", "-q", "-b", "private"]).ok();
    let secret = lib.commit("secret", "secret\n");
    lib.git(&["checkout", "-q", "main"]).ok();
    let script = format!(
        "git cat-file -e {secret} && echo main; cd \"$LIB\"; git cat-file -e {secret} && echo lib; git branch -a"
    );
    assert_eq!(spawn(subject, &repo, "s", &lib, &script).stdout, "* main\n");
}

fn read_only_is_read_only(subject: &Subject) {
    let (repo, lib) = two(subject, State::Dirty);
    let path = lib.dir().to_str().unwrap();
    let before = look(&lib);
    let script = format!(
        "cd '{path}' && git status --porcelain && git log --oneline | wc -l
         for deed in 'touch new' 'rm src/a.c' 'git commit -qam x' 'mv src other'; do $deed 2>/dev/null && echo \"did $deed\"; done
         perl -e 'use Errno; mkdir \"d\" or print $!{{EROFS}} ? \"EROFS\\n\" : \"$!\\n\"'"
    );
    let seen = subject.spawn(&repo, &["s", "--with", &format!("{path}:ro")], &script);
    let host = lib.sh("git status --porcelain; git log --oneline | wc -l").stdout;
    assert_eq!(seen.stdout, format!("{host}EROFS\n"), "{seen}");
    assert!(seen.stderr.contains("(read-only)"), "{seen}");
    assert_eq!(look(&lib), before);
    assert_eq!(lib.git(&["for-each-ref", "refs/sandbox", "refs/sandbox-meta"]).stdout, "");
    let shown = repo.sandbox(&["show", "s"]).ok();
    assert!(shown.contains("lib (read-only, branch main)"), "{shown}");
    let trees =
        fs::read_dir(subject.env.state().join("sandboxes")).unwrap().flatten().next().unwrap().path().join("trees");
    assert_eq!(fs::read_dir(trees).unwrap().count(), 1, "it has no upper directory");
    repo.sandbox(&["drop", "s"]).ok();
}

fn a_directory_has_changed_files_and_no_commits(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let data = subject.env.home().join("data");
    fs::create_dir_all(data.join("deep")).unwrap();
    for (file, text) in [("deep/kept", "kept\n"), ("changed", "before\n"), ("gone", "gone\n"), ("left.log", "left\n")] {
        fs::write(data.join(file), text).unwrap();
    }
    fs::write(data.join(".sandboxignore"), "*.log\n").unwrap();
    let path = data.to_str().unwrap();
    let script = format!(
        "cd '{path}' && ls -A . deep | sort && echo after >changed && rm gone && echo n >deep/new && git rev-parse --git-dir"
    );
    let seen = subject.spawn(&repo, &["s", "--with", path], &script);
    assert_eq!(seen.stdout, "\n.:\n.sandboxignore\nchanged\ndeep\ndeep:\ngone\nkept\n", "{seen}");
    assert!(seen.stderr.contains("(a directory)") && seen.stderr.contains("3 files uncommitted"), "{seen}");
    assert!(seen.stderr.contains("has no commits: `git sandbox cp s:"), "{seen}");
    assert_eq!(fs::read_to_string(data.join("changed")).unwrap(), "before\n");
    let diff = repo.sandbox(&["diff", "--uncommitted", "s"]).ok();
    for text in [&format!("directory {path}\n"), "+after", "-before", "+++ b/deep/new", "--- a/gone"] {
        assert!(diff.contains(text), "{text}: {diff}");
    }
    let merged = repo.sandbox(&["merge", "s"]).expect(1);
    assert!(merged.stderr.contains("nothing to merge from 's'\nhint: '"), "{merged}");
    assert!(merged.stderr.contains("is no repository and has no commits: `git sandbox cp s:"), "{merged}");
    let kept = repo.sandbox(&["drop", "s"]).expect(1);
    assert!(
        kept.stderr.contains("3 files not committed") && kept.stderr.contains(&format!("cp s:{path}/FILE")),
        "{kept}"
    );
    for file in ["changed", "deep/new"] {
        repo.sandbox(&["cp", &format!("s:{path}/{file}"), data.join(file).to_str().unwrap()]).ok();
    }
    fs::remove_file(data.join("gone")).unwrap();
    // The host has all of it now.
    repo.sandbox(&["drop", "s"]).ok();
    assert_eq!(fs::read_to_string(data.join("changed")).unwrap(), "after\n");
    // A file goes in, too.
    subject.spawn(&repo, &["t", "--with", path], "true").ok();
    repo.sandbox(&["cp", "README.md", &format!("t:{path}/in")]).ok();
    subject.exec(&repo, "t", &format!("cmp README.md '{path}/in'")).ok();
    assert!(!data.join("in").exists());
}

fn a_merge_is_all_or_none(subject: &Subject) {
    let (repo, lib) = two(subject, State::Plain);
    let path = lib.dir().to_str().unwrap();
    spawn(subject, &repo, "s", &lib, COMMIT_BOTH).ok();
    lib.commit("new", "another\n");
    let (before, lib_before) = (look(&repo), look(&lib));
    for from in [&repo, &lib] {
        let refused = from.sandbox(&["merge", "s"]).expect(1);
        assert!(refused.stderr.contains("error: cannot merge 's'"), "{refused}");
        assert!(
            refused.stderr.contains(&format!("caused by: in '{path}'; nothing was written in any repository of 's'")),
            "{refused}"
        );
        assert_eq!((look(&repo), look(&lib)), (before.clone(), lib_before.clone()));
    }
    // One alone, if that is what is wanted.
    let only = repo.sandbox(&["merge", "s", "--only", repo.dir().to_str().unwrap()]).expect(0);
    assert!(only.stderr.contains("fast-forwarded by 1 commit"), "{only}");
    assert_eq!((head(&repo), look(&lib)), (repo.id("refs/sandbox/s"), lib_before));
    // The rest, from the second one.
    lib.git(&["reset", "-q", "--hard", "HEAD^"]).ok();
    let rest = lib.sandbox(&["merge", "s"]).expect(0);
    assert!(rest.stderr.contains("fast-forwarded by 1 commit from 's' into 'main'"), "{rest}");
    assert_eq!(head(&lib), lib.id("refs/sandbox/s"));
    repo.sandbox(&["merge", "s"]).expect(1);
    // All of it goes back in one step, wherever that is asked.
    subject.exec(&repo, "s", &format!("LIB='{path}'; echo more >>new; git commit -qam More; cd \"$LIB\"; echo more >>new; git commit -qam More")).ok();
    let (before, lib_before) = (look(&repo), look(&lib));
    repo.sandbox(&["merge", "s"]).ok();
    assert!(look(&repo) != before && look(&lib) != lib_before);
    lib.sandbox(&["undo"]).ok();
    assert_eq!((look(&repo), look(&lib)), (before, lib_before));
    let again = repo.sandbox(&["undo", "2"]).expect(1);
    assert!(again.stderr.contains("it was undone"), "{again}");
}

fn a_merge_that_fails_in_between_changes_nothing(subject: &Subject) {
    let (repo, lib) = two(subject, State::Plain);
    spawn(subject, &repo, "s", &lib, COMMIT_BOTH).ok();
    let (before, lib_before) = (look(&repo), look(&lib));
    for busy in [&repo, &lib] {
        busy.write(".git/index.lock", "");
        let refused = repo.sandbox(&["merge", "s"]);
        assert!(refused.status != 0 && refused.stderr.contains("the others are as they were"), "{refused}");
        fs::remove_file(busy.dir().join(".git/index.lock")).unwrap();
        assert_eq!((look(&repo), look(&lib)), (before.clone(), lib_before.clone()));
    }
    repo.sandbox(&["merge", "s"]).ok();
    assert_eq!((head(&repo), head(&lib)), (repo.id("refs/sandbox/s"), lib.id("refs/sandbox/s")));
}

/// Before each file that is put in place: that is when what is on the disk changes.
fn a_merge_that_is_killed_at_any_moment_is_all_or_none(subject: &Subject) {
    if which("strace").is_none() {
        skip!("no strace");
    }
    let (repo, lib) = two(subject, State::Plain);
    spawn(subject, &repo, "s", &lib, COMMIT_BOTH).ok();
    // Whose edits make the next command look at what was left.
    subject.spawn(&repo, &["other"], "echo edit >edit").ok();
    let (old, lib_old) = (head(&repo), head(&lib));
    let (tip, lib_tip) = (repo.id("refs/sandbox/s"), lib.id("refs/sandbox/s"));
    let (mut seen, mut ended) = ([0, 0], None);
    // The count is one of each system call.
    let calls = ["rename", "renameat2", "linkat", "fsync"];
    for (call, n) in calls.into_iter().flat_map(|call| (1..200).map(move |n| (call, n))) {
        if ended == Some(call) {
            continue;
        }
        let sandbox = subject.env.sandbox_command(repo.dir(), &["merge", "s"]);
        let mut command = subject.env.command("strace", repo.dir());
        command.args(["-qqq", "-o", "/dev/null", "-e", &format!("trace={call}")]);
        command.args(["-e", &format!("inject={call}:signal=KILL:when={n}"), "--"]);
        command.arg(sandbox.get_program()).args(sandbox.get_args());
        for (name, value) in sandbox.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let killed = command.output().unwrap().status.signal() == Some(9);
        let mut apply = repo.sandbox(&["apply", "other"]);
        if apply.stderr.contains("was taken back")
            && apply.stderr.contains("nothing was written; run the command again")
        {
            apply = repo.sandbox(&["apply", "other"]);
        }
        assert_eq!(apply.status, 0, "after {call} {n}: {apply}");
        let now = (head(&repo), head(&lib));
        match now == (tip.clone(), lib_tip.clone()) {
            true => seen[1] += 1,
            false => {
                assert_eq!(now, (old.clone(), lib_old.clone()), "cut at {call} {n}, both or none: {apply}");
                seen[0] += 1;
            }
        }
        for (repo, old) in [(&repo, &old), (&lib, &lib_old)] {
            assert_eq!(repo.sh("rm -f edit; git status --porcelain").ok(), "", "cut at {call} {n}");
            repo.git(&["reset", "-q", "--hard", old]).ok();
        }
        if !killed {
            ended = Some(call);
        }
    }
    assert_eq!(ended, calls.last().copied(), "each was counted to its end");
    assert!(seen[0] > 20 && seen[1] > calls.len(), "{seen:?}");
}

/// Killed when it was carried out in one repository, or in all: never half of it, whatever was edited since.
fn a_merge_that_was_cut_waits_for_what_is_in_the_way(subject: &Subject) {
    let (repo, lib) = two(subject, State::Plain);
    let path = repo.dir().to_str().unwrap();
    spawn(subject, &repo, "s", &lib, COMMIT_BOTH).ok();
    let (start, lib_start) = (look(&repo), look(&lib));
    let (tip, lib_tip) = (repo.id("refs/sandbox/s"), lib.id("refs/sandbox/s"));
    let cut = |point: &str| {
        let mut cut = subject.env.sandbox_command(repo.dir(), &["merge", "s"]);
        assert_eq!(subject.env.run(cut.env("GIT_SANDBOX_FAULT", point)).status, 137);
    };
    // Carried out in the first, not in the second, and the first was edited: neither way is open.
    cut("merge.head:2:kill");
    let merged = repo.read("new");
    repo.write("new", "mine\n");
    let (half, lib_half) = (look(&repo), look(&lib));
    for args in [&["list"][..], &["repair"], &["repair", "--dry-run"], &["merge", "s"]] {
        let said = lib.sandbox(args);
        let said = said.stdout + &said.stderr;
        assert!(said.contains(&format!("all of them are left as they are: in '{path}' 'new' changed since")), "{said}");
        assert!(said.contains(&format!("move that out of the way in '{path}'")), "{said}");
        assert_eq!((look(&repo), look(&lib)), (half.clone(), lib_half.clone()), "{args:?}");
    }
    // Out of the way, it is taken back in both by whatever comes next.
    repo.write("new", merged);
    let said = lib.sandbox(&["list"]);
    assert!(said.stderr.contains("a 'merge' of 's' was cut off: it was taken back"), "{said}");
    assert_eq!((look(&repo), look(&lib)), (start.clone(), lib_start.clone()));
    // Carried out in both: what was edited since stays, and the merge too.
    cut("merge.all:kill");
    let merged = lib.read("new");
    lib.write("new", "mine\n");
    let said = repo.sandbox(&["list"]);
    assert!(said.stderr.contains("a 'merge' of 's' was cut off: it was finished"), "{said}");
    assert_eq!((head(&repo), head(&lib)), (tip, lib_tip));
    assert_eq!(lib.read("new"), "mine\n");
    lib.write("new", merged);
    repo.sandbox(&["undo"]).ok();
    assert_eq!((look(&repo), look(&lib)), (start, lib_start));
}

/// Wherever it is cut, in one repository or between two, everything is taken back when it is asked for again, or was by
/// the command in between.
fn an_undo_that_was_killed_is_finished_by_the_next(subject: &Subject) {
    let (repo, lib) = two(subject, State::Plain);
    spawn(subject, &repo, "s", &lib, COMMIT_BOTH).ok();
    let (start, lib_start) = (look(&repo), look(&lib));
    for point in ["merge.begin:1", "merge.change:1", "merge.begin:2", "merge.change:2"] {
        repo.sandbox(&["merge", "s"]).ok();
        assert_eq!((repo.read("new"), lib.read("new")), ("new\n".to_owned(), "new\n".to_owned()), "{point}");
        let mut cut = subject.env.sandbox_command(repo.dir(), &["undo"]);
        assert_eq!(subject.env.run(cut.env("GIT_SANDBOX_FAULT", format!("{point}:kill"))).status, 137, "{point}");
        let again = repo.sandbox(&["undo"]);
        // Finished in both by looking: then there is nothing left to undo, which is said.
        assert!(matches!(again.status, 0 | 1), "{point}: {again}");
        assert_eq!((look(&repo), look(&lib)), (start.clone(), lib_start.clone()), "{point}: {again}");
        // The other one's log may still have it: taking it back once more changes nothing.
        for asked in [&repo, &lib] {
            let more = asked.sandbox(&["undo"]);
            assert!(matches!(more.status, 0 | 1), "{point}: {more}");
            assert_eq!((look(&repo), look(&lib)), (start.clone(), lib_start.clone()), "{point}: {more}");
        }
        let open = std::fs::read_dir(subject.env.state().join("open")).unwrap().count();
        assert_eq!(open, 0, "{point}");
    }
}

fn edits_are_applied_to_all_or_none(subject: &Subject) {
    let (repo, lib) = two(subject, State::Plain);
    let script = "echo agent >>src/a.c; echo agent >>\"$LIB/src/a.c\"; echo n >\"$LIB/n\"";
    spawn(subject, &repo, "s", &lib, script).ok();
    lib.write("n", "mine\n");
    let (before, lib_before) = (look(&repo), look(&lib));
    let refused = repo.sandbox(&["apply", "s"]).expect(1);
    assert!(refused.stderr.contains(&format!("in '{}'", lib.dir().display())), "{refused}");
    assert_eq!((look(&repo), look(&lib)), (before, lib_before));
    fs::remove_file(lib.dir().join("n")).unwrap();
    let dry = repo.sandbox(&["apply", "--dry-run", "s"]).ok();
    assert_eq!(
        dry,
        format!("repository {}\nM src/a.c\nrepository {}\nA n\nM src/a.c\n", repo.dir().display(), lib.dir().display())
    );
    repo.sandbox(&["apply", "s"]).ok();
    assert!(repo.read("src/a.c").ends_with("agent\n") && lib.read("src/a.c").ends_with("agent\n") && lib.has("n"));
    repo.sandbox(&["drop", "s"]).ok();
}

fn stash_entries_are_made_in_all_or_none(subject: &Subject) {
    let (repo, lib) = two(subject, State::Plain);
    lib.write("src/b.c", "mine\n");
    lib.git(&["stash", "push", "-q", "-m", "mine"]).ok();
    let script = "echo agent >>src/a.c; echo agent >>\"$LIB/src/a.c\"; echo n >\"$LIB/n\"";
    spawn(subject, &repo, "s", &lib, script).ok();
    let lists = || (repo.git(&["stash", "list"]).ok(), lib.git(&["stash", "list"]).ok());
    // All but the stash itself.
    let looks = || {
        let rest =
            |text: String| text.lines().filter(|line| !line.ends_with("refs/stash")).collect::<Vec<_>>().join("\n");
        [&repo, &lib].map(|one| rest(look(one)))
    };
    let (before, was) = (lists(), looks());
    for (stands, one) in [("a lock of somebody else", &lib), ("in the other", &repo)] {
        let lock = one.dir().join(".git/refs/stash.lock");
        fs::write(&lock, stands).unwrap();
        let refused = repo.sandbox(&["apply", "--stash", "s"]).expect(128);
        let place = one.dir().display();
        assert!(refused.stderr.contains(&format!("in '{place}'; nothing was stashed in any repository")), "{refused}");
        fs::remove_file(&lock).unwrap();
        assert_eq!(lists(), before);
    }
    let done = repo.sandbox(&["apply", "--stash", "s"]).expect(0);
    for (dir, files) in [(repo.dir(), "1 file"), (lib.dir(), "2 files")] {
        assert!(done.stderr.contains(&format!("{}: {files} in the stash: ", dir.display())), "{done}");
    }
    assert_eq!(looks(), was);
    assert!(
        lib.git(&["stash", "list"]).ok().starts_with("stash@{0}: On main: sandbox 's': uncommitted work\nstash@{1}")
    );
    for one in [&repo, &lib] {
        one.git(&["stash", "pop", "-q"]).ok();
        assert!(one.read("src/a.c").ends_with("agent\n"));
    }
    assert_eq!(lists(), before);
}

fn names_are_one_in_all(subject: &Subject) {
    let (repo, lib) = two(subject, State::Plain);
    let path = lib.dir().to_str().unwrap();
    subject.spawn(&lib, &["fix"], "true").ok();
    let refused = subject.spawn(&repo, &["fix", "--with", path], "true").expect(125);
    assert!(
        refused.stderr.contains(&format!("error: there is a sandbox named 'fix' already in '{path}'")),
        "{refused}"
    );
    // The first number that is free in both.
    spawn(subject, &repo, "fax", &lib, "true").ok();
    subject.spawn(&lib, &["fax-2"], "true").ok();
    let forked = repo.sandbox(&["fork", "fax", "--", "true"]);
    assert!(forked.stderr.contains("sandbox 'fax-3'"), "{forked}");
    let refused = repo.sandbox(&["fork", "fax", "fix", "--", "true"]);
    assert!(refused.status != 0 && refused.stderr.contains("'fix' already"), "{refused}");
    let taken = subject.spawn(&lib, &["fax"], "true").expect(125);
    assert!(taken.stderr.contains("there is a sandbox named 'fax' already"), "{taken}");
}

fn fork_drop_and_restore_take_all_along(subject: &Subject) {
    let (repo, lib) = two(subject, State::Plain);
    spawn(subject, &repo, "s", &lib, &format!("{COMMIT_BOTH}; echo left >\"$LIB/left\"")).ok();
    let path = lib.dir().display();
    let look = format!(
        "git log -1 --format=%s; cd '{path}' && git log -1 --format=%s && cat left && git commit -q --allow-empty -m Forked"
    );
    assert_eq!(repo.sandbox(&["fork", "s", "t", "--", "sh", "-c", &look]).ok(), "Both\nBoth\nleft\n");
    assert_eq!(lib.git(&["log", "-1", "--format=%s", "refs/sandbox/t"]).ok(), "Forked\n");
    repo.sandbox(&["drop", "--force", "t"]).ok();
    let kept = lib.sandbox(&["drop", "s"]).expect(1);
    for text in [
        "1 commit only at refs/sandbox/s",
        &format!("1 commit of '{path}' only at refs/sandbox/s there"),
        &format!("'{path}/left'"),
    ] {
        assert!(kept.stderr.contains(text), "{text}: {kept}");
    }
    repo.sandbox(&["drop", "--force", "s"]).ok();
    for repo in [&repo, &lib] {
        assert_eq!(repo.git(&["for-each-ref", "refs/sandbox/s", "refs/sandbox-meta/s"]).stdout, "");
    }
    subject.spawn(&lib, &["s"], "true").ok();
    let back = repo.sandbox(&["trash", "restore", "s"]).expect(0);
    assert!(back.stderr.contains("restored 's' as 's-2'"), "{back}");
    assert!(lib.sandbox(&["list"]).ok().contains("s-2"));
    lib.sandbox(&["fetch", "s-2"]).ok();
    assert_eq!(lib.git(&["log", "-1", "--format=%s", "refs/sandbox/s-2"]).ok(), "Both\n");
    repo.sandbox(&["gc"]).ok();
    assert_eq!(subject.exec(&lib, "s-2", &format!("cat '{path}/left'")).ok(), "left\n");
}

fn a_drop_is_undone_wherever_that_is_asked_and_once(subject: &Subject) {
    let (repo, lib) = two(subject, State::Plain);
    let path = lib.dir().display();
    spawn(subject, &repo, "s", &lib, "echo main >left; echo lib >\"$LIB/left\"").ok();
    // The second time after the first was undone: each is an operation of its own.
    for (n, undo) in [(1, &lib), (2, &repo)] {
        repo.sandbox(&["drop", "--force", "s"]).ok();
        for from in [&repo, &lib] {
            let ops = from.sandbox(&["ops"]).ok();
            assert_eq!(ops.matches("dropped into the trash: 's'").count(), n, "{ops}");
            assert_eq!(ops.matches("(undone)").count(), n - 1, "{ops}");
        }
        let undone = undo.sandbox(&["undo"]).expect(0);
        assert!(undone.stderr.contains("undone: dropped into the trash: 's'"), "{undone}");
        for from in [&repo, &lib] {
            let ops = from.sandbox(&["ops"]).ok();
            assert_eq!(ops.matches("(undone)").count(), n, "{ops}");
            let again = from.sandbox(&["undo", &n.to_string()]).expect(1);
            assert!(again.stderr.contains("it was undone"), "{again}");
        }
        assert_eq!(subject.exec(&repo, "s", &format!("cat left '{path}/left'")).ok(), "main\nlib\n");
        repo.sandbox(&["stop", "s"]);
    }
}

fn a_copy_has_all_of_them_too(subject: &Subject) {
    let (repo, lib) = two(subject, State::Plain);
    let data = subject.env.home().join("data");
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("f"), "data\n").unwrap();
    let (path, only) = (lib.dir().to_str().unwrap(), format!("{}:ro", data.display()));
    let script = format!(
        "LIB='{path}'; {COMMIT_BOTH}; echo left >\"$LIB/left\"; cat '{0}/f'; touch '{0}/x' 2>/dev/null || echo refused",
        data.display()
    );
    let seen = subject.spawn(&repo, &["s", "--view", "copy", "--with", path, "--with", &only], &script);
    assert_eq!(seen.stdout, "data\nrefused\n", "{seen}");
    assert!(repo.sandbox(&["show", "s"]).ok().contains("view        copy"), "{seen}");
    for repo in [&repo, &lib] {
        assert_eq!(repo.git(&["log", "-1", "--format=%s", "refs/sandbox/s"]).ok(), "Both\n");
    }
    repo.sandbox(&["start", "s"]).ok();
    let look = format!("cat new '{path}/new' '{path}/left' '{}/f'", data.display());
    assert_eq!(subject.exec(&repo, "s", &look).ok(), "new\nnew\nleft\ndata\n");
    assert_eq!(repo.sandbox(&["fork", "s", "t", "--", "sh", "-c", &look]).ok(), "new\nnew\nleft\ndata\n");
    repo.sandbox(&["stop", "s"]).ok();
    assert!(!data.join("x").exists() && !lib.dir().join("left").exists());
}

fn what_a_crash_left_in_each_is_rescued_dropped_and_restored(subject: &Subject) {
    let (repo, lib) = two(subject, State::Plain);
    let data = subject.env.home().join("data");
    fs::create_dir_all(&data).unwrap();
    let (path, dir) = (lib.dir().to_str().unwrap(), data.to_str().unwrap());
    repo.sandbox(&["spawn", "--driver", subject.driver, "-d", "s", "--with", path, "--with", dir]).ok();
    subject.exec(&repo, "s", &format!("echo main >left; echo lib >'{path}/left'; echo data >'{dir}/left'")).ok();
    crash(subject, &repo, "s");
    // What is not committed is told of each, and comes here, as of one that runs.
    let shown = repo.sandbox(&["show", "s"]).ok();
    for text in ["  A left\n", &format!("  A {path}/left\n"), &format!("  A {dir}/left\n")] {
        assert!(shown.contains(text), "{text}: {shown}");
    }
    repo.sandbox(&["conflicts", "--uncommitted"]).expect(0);
    repo.sandbox(&["rescue", "s"]).ok();
    for kept in [&repo, &lib] {
        let seen = in_vault(subject, kept, &["show", "refs/s/rescue^3:left"]);
        assert_eq!(seen, if kept.dir() == repo.dir() { "main\n" } else { "lib\n" });
    }
    let out = subject.env.root().join("out");
    repo.sandbox(&["rescue", "s", "--to", out.to_str().unwrap()]).ok();
    for (from, text) in [("files", "main\n"), ("files-1", "lib\n"), ("files-2", "data\n")] {
        assert_eq!(fs::read_to_string(out.join(from).join("left")).unwrap(), text);
    }
    repo.sandbox(&["drop", "s"]).expect(1);
    repo.sandbox(&["drop", "--force", "s"]).ok();
    let told = repo.sandbox(&["trash", "show", "s"]).ok();
    for text in ["files       3 not committed", "  A left\n", &format!("{path}/left"), &format!("{dir}/left")] {
        assert!(told.contains(text), "{text}: {told}");
    }
    repo.sandbox(&["trash", "restore", "s"]).ok();
    let look = format!("cat left '{path}/left' '{dir}/left'");
    assert_eq!(subject.exec(&repo, "s", &look).ok(), "main\nlib\ndata\n");
    repo.sandbox(&["stop", "s"]);
    repo.sandbox(&["apply", "s"]).ok();
    assert_eq!(fs::read_to_string(lib.dir().join("left")).unwrap(), "lib\n");
    assert_eq!(fs::read_to_string(repo.dir().join("left")).unwrap(), "main\n");
}

/// Asks git in the vault of a repository, which its id leads to.
#[track_caller]
fn in_vault(subject: &Subject, repo: &Repo, args: &[&str]) -> String {
    let id = fs::read_to_string(repo.dir().join(".git/sandbox-id")).unwrap();
    let dir = subject.env.state().join("repos").join(id.trim()).join("packs");
    repo.git(&[&[&*format!("--git-dir={}", dir.display())], args].concat()).ok()
}

fn each_vault_has_its_part_when_the_directory_is_lost(subject: &Subject) {
    let (repo, lib) = two(subject, State::Plain);
    spawn(subject, &repo, "s", &lib, COMMIT_BOTH).ok();
    let tips = [&repo, &lib].map(|repo| repo.id("refs/sandbox/s"));
    let shown: serde_json::Value = serde_json::from_str(&repo.sandbox(&["show", "s", "--json"]).ok()).unwrap();
    let dir = subject.env.state().join("trash").join(shown["id"].as_str().unwrap());
    repo.sandbox(&["drop", "--force", "s"]).ok();
    repo.sh(&format!("rm -rf '{}'", dir.display())).ok();
    let list = repo.sandbox(&["trash", "list"]).ok();
    assert_eq!(list.lines().count(), 2, "one line below the heading: {list}");
    let told = repo.sandbox(&["trash", "show", "s"]).ok();
    assert_eq!(told.matches("/commits/tip\n").count(), 2, "{told}");
    let seen = repo.sandbox(&["trash", "restore", "s"]).expect(0);
    assert_eq!(seen.stdout.matches("restored/s/tip\n").count(), 2, "{seen}");
    for (repo, tip) in [&repo, &lib].into_iter().zip(tips) {
        assert_eq!(repo.id("restored/s/tip"), tip);
    }
    repo.sandbox(&["trash", "empty", "--yes"]).ok();
    assert!(repo.sandbox(&["trash", "list"]).expect(0).stderr.contains("the trash is empty"));
}

fn every_verb_says_which(subject: &Subject) {
    let (repo, lib) = two(subject, State::Plain);
    let (main, path) = (repo.dir().display().to_string(), lib.dir().display().to_string());
    let out = spawn(subject, &repo, "s", &lib, &format!("{COMMIT_BOTH}; echo left >\"$LIB/left\""));
    assert!(out.stderr.contains(&format!("with '{path}': ")), "{out}");
    assert!(out.stderr.contains(&format!("1 new commit on sandbox/s in '{path}', 1 file uncommitted")), "{out}");
    let log = repo.sandbox(&["log", "s"]);
    for dir in [&main, &path] {
        assert!(log.stdout.contains(&format!("repository {dir}\n")), "{log}");
        assert!(log.stderr.contains(&format!("1 commit on sandbox/s in '{dir}'")), "{log}");
        assert!(repo.sandbox(&["diff", "s"]).ok().contains(&format!("repository {dir}\ndiff --git a/new b/new")));
        assert!(repo.sandbox(&["merge", "--dry-run", "s"]).ok().contains(&format!("repository {dir}\n")));
    }
    let json = |args: &[&str]| serde_json::from_str::<serde_json::Value>(&repo.sandbox(args).ok()).unwrap();
    assert_eq!(json(&["log", "--json", "s"])["with"][0]["repository"], path.as_str());
    assert_eq!(json(&["log", "--json", "s"])["with"][0]["commits"][0]["subject"], "Both");
    let plans = json(&["merge", "--json", "--dry-run", "s"]);
    let repositories: Vec<&str> =
        plans["repositories"].as_array().unwrap().iter().map(|one| one["repository"].as_str().unwrap()).collect();
    assert_eq!(repositories, [&main, &path]);
    let along = &json(&["list", "--json"])["sandboxes"][0]["with"][0];
    assert_eq!(
        (&along["worktree"], &along["commits_ahead"], &along["uncommitted"]),
        (&path.as_str().into(), &1.into(), &1.into())
    );
    let listed = repo.sandbox(&["list"]).ok();
    assert!(listed.contains("1, lib: 1") && listed.contains("lib: 1  "), "{listed}");
    assert!(!listed.contains(" OF "), "{listed}");
    // In the second one it is shown as that of the first.
    let there = lib.sandbox(&["list"]).ok();
    assert!(there.contains(" OF ") && there.contains("/repo"), "{there}");
    let shown = lib.sandbox(&["show", "s"]).ok();
    assert!(shown.contains("1 commit at refs/sandbox/s, 1 file not committed)"), "{shown}");
    assert!(shown.contains(&format!("A {path}/left")), "{shown}");
    let merged = repo.sandbox(&["merge", "s"]);
    for dir in [&main, &path] {
        assert!(merged.stderr.contains(&format!("{dir}: fast-forwarded by 1 commit")), "{merged}");
    }
}

fn verbs_of_one_repository_are_about_the_one_that_the_caller_is_in(subject: &Subject) {
    let (repo, lib) = two(subject, State::Plain);
    let path = lib.dir().display().to_string();
    spawn(subject, &repo, "s", &lib, &COMMIT_BOTH.replace("Both", "\"In $dir\"")).ok();
    let made = repo.sandbox(&["branch", "s", "topic"]).expect(0);
    assert!(
        made.stderr
            .contains(&format!("note: 's' has 1 commit in '{path}' too: `git sandbox -C '{path}' branch s BRANCH`")),
        "{made}"
    );
    lib.sandbox(&["branch", "s", "topic"]).ok();
    assert_eq!((repo.id("topic"), lib.id("topic")), (repo.id("refs/sandbox/s"), lib.id("refs/sandbox/s")));
    lib.sandbox(&["bundle", "s", "out.bundle"]).ok();
    assert!(lib.git(&["bundle", "list-heads", "out.bundle"]).ok().contains(&lib.id("refs/sandbox/s")));
    let patch = lib.sandbox(&["diff", "--patch", "s"]);
    assert_eq!(patch.stdout.matches("diff --git").count(), 1, "{patch}");
    lib.sandbox(&["pick", "s"]).ok();
    assert!(lib.has("new") && !repo.has("new"));
    lib.git(&["fetch", "-q", "sandbox::s"]).ok();
    assert_eq!(lib.id("FETCH_HEAD"), lib.id("refs/sandbox/s"));
    // What is compared is of one repository; the others are named, each with what can be said of it there.
    spawn(subject, &repo, "t", &lib, &COMMIT_BOTH.replace("new", "newer")).ok();
    let hint = |name: &str, verb: &str| {
        format!("note: '{name}' has 1 commit in '{path}' too: `git sandbox -C '{path}' {verb}`\n")
    };
    let between = repo.sandbox(&["diff", "s", "t"]);
    assert!(between.stderr.contains(&(hint("s", "diff s t") + &hint("t", "diff s t"))), "{between}");
    let table = repo.sandbox(&["conflicts", "s", "t"]);
    assert!(table.stderr.contains(&(hint("s", "conflicts") + &hint("t", "conflicts"))), "{table}");
    let there = lib.sandbox(&["conflicts", "s", "t"]);
    assert_eq!(there.status, table.status, "{there}");
    subject.spawn(&repo, &["one"], "echo x >one && git add one && git commit -qm One").ok();
    let between = repo.sandbox(&["diff", "one", "s"]);
    assert!(between.stderr.contains(&hint("s", "diff s")), "{between}");
    repo.sandbox(&["drop", "--force", "t", "one"]).ok();
    // Another sandbox of the first knows nothing of the second.
    subject.spawn(&repo, &["alone"], "git commit -q --allow-empty -m Alone").ok();
    assert!(lib.sandbox(&["log", "alone"]).status != 0);
    let refused = repo.sandbox(&["merge", "alone", "s"]).expect(129);
    assert!(refused.stderr.contains("'s' has several repositories, which are merged together"), "{refused}");
    let all = repo.sandbox(&["merge", "--all"]).expect(0);
    assert!(all.stderr.contains("left out 's': it has several repositories"), "{all}");
    assert_eq!(repo.git(&["log", "-1", "--format=%s"]).ok(), "Alone\n");
}

fn a_command_that_never_commits_is_committed_for_in_each(subject: &Subject) {
    let (repo, lib) = two(subject, State::Plain);
    let path = lib.dir().to_str().unwrap();
    let script = format!("echo m >m; echo l >'{path}/l'");
    let seen = subject.spawn(&repo, &["s", "--auto-commit", "--with", path], &script).expect(0);
    assert!(seen.stderr.contains("committed what was not: 1 file"), "{seen}");
    assert!(seen.stderr.contains(&format!("; in '{path}': committed what was not: 1 file")), "{seen}");
    for (repo, file) in [(&repo, "m"), (&lib, "l")] {
        assert_eq!(repo.git(&["diff", "--name-only", "HEAD", "refs/sandbox/s"]).ok(), format!("{file}\n"));
    }
    subject.exec(&repo, "s", &script.replace("echo", "echo more; echo")).ok();
    subject.exec(&repo, "s", &format!("echo x >x; echo x >'{path}/x'")).ok();
    repo.sandbox(&["commit", "s", "-m", "By hand"]).ok();
    for repo in [&repo, &lib] {
        assert_eq!(repo.git(&["log", "-1", "--format=%s", "refs/sandbox/s"]).ok(), "By hand\n");
    }
}

fn the_callers_links_lead_there(subject: &Subject) {
    let (repo, lib) = two(subject, State::Plain);
    let link = subject.env.home().join("short");
    std::os::unix::fs::symlink(lib.dir(), &link).unwrap();
    let script = format!("readlink '{0}'; cd '{0}' && pwd -P && git rev-parse --show-toplevel", link.display());
    let seen = subject.spawn(&repo, &["s", "--with", link.to_str().unwrap()], &script).ok();
    assert_eq!(seen, format!("{0}\n{0}\n{0}\n", lib.dir().display()));
    // As it is typed, from a subdirectory.
    let seen = subject.spawn_in(&repo.dir().join("src"), &["t", "--with", "../../../short:ro"], &script).ok();
    assert_eq!(seen, format!("{0}\n{0}\n{0}\n", lib.dir().display()));
}

/// A repository whose `.sandbox.toml` asks for the second one.
fn asking<'s>(subject: &'s Subject, with: &str) -> (Repo<'s>, Repo<'s>) {
    let (repo, lib) = two(subject, State::Plain);
    repo.write(".sandbox.toml", format!("with = [{with}]\n"));
    (repo, lib)
}

fn what_a_repository_asks_for_is_asked_once(subject: &Subject) {
    let (repo, lib) = asking(subject, "\"../lib:ro\"");
    let args = |name| {
        ["spawn", "--driver", subject.driver, name, "--", "sh", "-c", "cat ../lib/README.md >&2 && touch ../lib/x"]
    };
    let mut terminal = Pty::spawn(&subject.env.sandbox_command(repo.dir(), &args("a")));
    terminal.expect("'.sandbox.toml' asks for more than this working tree:");
    terminal.expect(&format!("{} (a repository, read-only)", lib.dir().display()));
    terminal.expect("shall sandboxes of this repository have it? [y/N]");
    terminal.send("y\r");
    terminal.expect("remembered");
    terminal.expect("Read-only file system");
    terminal.wait();
    // It is known now, with or without a terminal.
    let seen = repo.sandbox(&args("b"));
    assert!(!seen.stderr.contains("asks for"), "{seen}");
    assert!(seen.stderr.contains("Read-only file system"), "{seen}");
    // More than that is another question, and no is an answer too.
    repo.write(".sandbox.toml", "with = [\"../lib\"]\n");
    let mut terminal = Pty::spawn(&subject.env.sandbox_command(repo.dir(), &args("c")));
    terminal.expect("(a repository, a copy to work in; its commits come home to it)");
    terminal.send("n\r");
    terminal.expect("No such file");
    terminal.wait();
    let seen = repo.sandbox(&args("d"));
    assert!(seen.stderr.contains(&format!("left out, as you said: '{}'", lib.dir().display())), "{seen}");
}

fn without_a_terminal_nobody_agrees(subject: &Subject) {
    let (repo, lib) = asking(subject, "\"../lib\", \"../no-such\"");
    let path = lib.dir().to_str().unwrap();
    let there = "test -e ../lib && echo there || echo not there";
    let seen = subject.spawn(&repo, &["a"], there);
    assert_eq!(seen.stdout, "not there\n", "{seen}");
    assert!(
        seen.stderr.contains(&format!("left out: '{path}', which '.sandbox.toml' asks for and nobody agreed to")),
        "{seen}"
    );
    assert!(
        seen.stderr.contains(&format!("hint: `--with '{path}'` or `git config --add sandbox.with '{path}'` agrees")),
        "{seen}"
    );
    assert!(seen.stderr.contains("no-such', which is not there"), "{seen}");
    // The flag agrees, and so does the setting; both at once are one.
    let seen = subject.spawn(&repo, &["b", "--with", path], there);
    assert_eq!(seen.stdout, "there\n", "{seen}");
    repo.git(&["config", "--add", "sandbox.with", path]).ok();
    let seen = subject.spawn(&repo, &["c"], "touch ../lib/x && echo written");
    assert_eq!(seen.stdout, "written\n", "{seen}");
    // The tighter of two wishes counts.
    repo.write(".sandbox.toml", "with = [\"../lib:ro\"]\n");
    let seen = subject.spawn(&repo, &["d"], "touch ../lib/x 2>/dev/null && echo written || echo tight");
    assert_eq!(seen.stdout, "tight\n", "{seen}");
    // What comes along asks for nothing.
    let third = State::Plain.build(&subject.env, "third");
    lib.write(".sandbox.toml", format!("with = [\"{}\"]\n", third.dir().display()));
    let seen = subject.spawn(&repo, &["e"], "test -e ../third && echo there || echo not there");
    assert_eq!(seen.stdout, "not there\n", "{seen}");
}

fn a_second_repository_tightens_too(subject: &Subject) {
    let (repo, lib) = two(subject, State::Plain);
    lib.write(".sandbox.toml", "net = \"none\"\npids = 100\n");
    repo.git(&["config", "sandbox.net", "host"]).ok();
    subject.spawn(&repo, &["s", "--with", lib.dir().to_str().unwrap()], "true").ok();
    subject.spawn(&repo, &["t"], "true").ok();
    let net = |name| repo.sandbox(&["show", "--json", name]).ok().contains("\"network\": \"none\"");
    assert!(net("s") && !net("t"));
}

fn secrets_of_each_stay_at_home(subject: &Subject) {
    let (repo, lib) = two(subject, State::Plain);
    lib.write(".env.local", "API_TOKEN=x\n");
    lib.write("server.pem", "-----BEGIN PRIVATE KEY-----\n");
    let seen = spawn(subject, &repo, "s", &lib, "ls -A \"$LIB\" | grep -c pem");
    assert_eq!(seen.stdout, "0\n", "{seen}");
    let path = lib.dir().display();
    assert!(seen.stderr.contains(&format!("looks like a secret: {path}/")), "{seen}");
    assert!(
        seen.stderr.contains(&format!("`git -C '{path}' config sandbox.carrySecrets true` carries such files")),
        "{seen}"
    );
    // What one repository is set to says nothing of the other.
    repo.git(&["config", "sandbox.carrySecrets", "true"]).ok();
    assert_eq!(spawn(subject, &repo, "t", &lib, "ls -A \"$LIB\" | grep -c pem").stdout, "0\n");
    lib.git(&["config", "sandbox.carrySecrets", "true"]).ok();
    assert_eq!(spawn(subject, &repo, "u", &lib, "ls -A \"$LIB\" | grep -c pem").stdout, "1\n");
}

fn nobody_waits_for_the_answer_about_secrets(subject: &Subject) {
    let (repo, lib) = two(subject, State::Plain);
    repo.write("server.pem", "-----BEGIN PRIVATE KEY-----\n");
    lib.write("client.pem", "-----BEGIN PRIVATE KEY-----\n");
    let path = lib.dir().to_str().unwrap();
    let script = "test -e server.pem && test ! -e ../lib/client.pem && echo as it was said";
    let args = ["spawn", "--driver", subject.driver, "s", "--with", path, "--", "sh", "-c", script];
    let mut terminal = Pty::spawn(&subject.env.sandbox_command(repo.dir(), &args));
    let mut asked = Vec::new();
    for _ in 0..2 {
        let said = terminal.expect("[y/N]");
        // Both repositories are free meanwhile.
        for one in [&repo, &lib] {
            one.sandbox(&["spawn", "--driver", subject.driver, "--rm", "-q", "--carry-secrets", "no", "--", "true"])
                .ok();
        }
        asked.push(said.contains("server.pem"));
        terminal.send(if said.contains("server.pem") { "y\r" } else { "n\r" });
    }
    terminal.expect("as it was said");
    terminal.wait();
    asked.sort_unstable();
    assert_eq!(asked, [false, true], "each is asked about once");
    // Both answers are known the next time.
    assert_eq!(subject.spawn(&repo, &["t", "--with", path], script).stdout, "as it was said\n");
}

fn at_the_end_each_is_told_of(subject: &Subject) {
    let (repo, lib) = two(subject, State::Plain);
    let path = lib.dir().to_str().unwrap();
    let script = format!("LIB='{path}'; {COMMIT_BOTH}");
    let args = |name| {
        ["spawn", "--driver", subject.driver, name, "--with", path, "--", "sh", "-c", &*script].map(str::to_owned)
    };
    let start = |name| {
        let args = args(name);
        Pty::spawn(&subject.env.sandbox_command(repo.dir(), &args.each_ref().map(String::as_str)))
    };
    let mut terminal = start("a");
    terminal.expect("1 new commit on sandbox/a in '");
    terminal.expect("fast-forward each repository to them? [Y/n]");
    terminal.send("n\r");
    terminal.expect("kept: `git sandbox merge a` takes them later");
    assert_eq!(terminal.wait().0, 0);
    repo.git(&["config", "sandbox.onExit", "merge"]).ok();
    let merged = repo.sandbox(&args("b").each_ref().map(String::as_str)).expect(0);
    assert!(merged.stderr.contains(&format!("{path}: fast-forwarded by 1 commit")), "{merged}");
    assert_eq!((head(&repo), head(&lib)), (repo.id("refs/sandbox/b"), lib.id("refs/sandbox/b")));
    // One of them cannot go forward: none does.
    lib.commit("other", "other\n");
    let before = (head(&repo), head(&lib));
    let script = format!(
        "echo c >c; git add c; git commit -qm c; cd '{path}'; git reset -q --hard HEAD^; git commit -q --allow-empty -m c"
    );
    let kept = subject.spawn(&repo, &["c", "--with", path], &script).expect(0);
    assert!(kept.stderr.contains("nothing was merged"), "{kept}");
    assert_eq!((head(&repo), head(&lib)), before);
    // With nothing new in any, nothing is left.
    let gone = subject.spawn(&repo, &["--with", path], "true").expect(0);
    assert!(gone.stderr.contains("no changes in"), "{gone}");
}

fn a_stopped_sandbox_starts_with_all_of_it(subject: &Subject) {
    let (repo, lib) = two(subject, State::Plain);
    let path: PathBuf = lib.dir().to_owned();
    repo.sandbox(&["spawn", "--driver", subject.driver, "-d", "s", "--with", path.to_str().unwrap()]).ok();
    subject.exec(&repo, "s", &format!("cd '{}' && mv src source && echo x >x", path.display())).ok();
    repo.sandbox(&["stop", "s"]).ok();
    repo.sandbox(&["start", "s"]).ok();
    let seen = subject.exec(&lib, "s", &format!("cd '{}' && ls source x && pwd", path.display())).ok();
    assert!(seen.contains("a.c") && seen.contains("x\n"), "{seen}");
    lib.sandbox(&["stop", "s"]).ok();
}
