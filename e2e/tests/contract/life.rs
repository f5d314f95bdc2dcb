//! From spawn to drop.

use crate::Subject;
use sandbox_testkit::{Pty, State, wait_until};
use serde_json::Value;
use std::time::Duration;

over_views! {
    a_link_in_the_way_of_the_tree_is_moved_aside,
    the_status_is_that_of_the_command,
    input_and_output_pass_through_whole,
    a_detached_command_can_be_followed_and_waited_for,
    many_commands_run_at_once,
    a_terminal_works_inside,
    attach_and_leave,
    stop_keeps_files_and_start_brings_them_back,
    a_killed_supervisor_loses_nothing,
    the_host_can_be_changed_meanwhile,
    the_host_can_lose_its_objects,
    a_time_limit_ends_the_command,
    work_is_not_dropped_unasked,
    the_trash_gives_back_what_was_dropped,
    a_name_is_free_when_its_refs_are_gone,
    a_drop_that_fails_keeps_its_name,
    several_are_spawned_at_once,
    list_and_show_tell_what_is_true,
    the_cache_directory_is_not_needed,
    one_command_after_the_other_in_a_stopped_sandbox,
    a_moved_repository_is_found_again,
}

fn the_status_is_that_of_the_command(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "s");
    for (script, status) in [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -9 $$", 137)] {
        assert_eq!(subject.exec(&repo, "s", script).status, status, "{script}");
    }
    let seen = repo.sandbox(&["exec", "s", "--", "no-such-command"]);
    assert_eq!(seen.status, 127, "{seen}");
    let seen = repo.sandbox(&["exec", "s", "--", "./README.md"]);
    assert_eq!(seen.status, 126, "{seen}");
    assert_eq!(subject.spawn(&repo, &["t"], "exit 9").status, 9);
}

fn input_and_output_pass_through_whole(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "s");
    let input: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let mut command = subject.env.sandbox_command(repo.dir(), &["exec", "s", "--", "sha256sum"]);
    let inside = subject.env.run_with_input(&mut command, &input).ok();
    let mut command = subject.env.command("sha256sum", repo.dir());
    assert_eq!(inside, subject.env.run_with_input(&mut command, &input).ok());
    let seen = subject.exec(&repo, "s", "head -c 5000000 /dev/zero; echo done >&2").expect(0);
    assert_eq!((seen.stdout.len(), &*seen.stderr), (5_000_000, "done\n"));
    let mut command = subject.env.sandbox_command(repo.dir(), &["spawn", "cat", "--", "cat"]);
    assert_eq!(subject.env.run_with_input(&mut command, b"through").ok(), "through");
}

fn a_detached_command_can_be_followed_and_waited_for(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["-d", "job"], "echo first; until test -e go; do sleep 0.05; done; echo second; exit 3").ok();
    wait_until("its first output", Duration::from_secs(10), || repo.sandbox(&["logs", "job"]).stdout == "first\n");
    subject.exec(&repo, "job", "touch go").ok();
    assert_eq!(repo.sandbox(&["wait", "job"]).status, 3);
    assert_eq!(repo.sandbox(&["logs", "job"]).ok(), "first\nsecond\n");
    assert_eq!(repo.sandbox(&["logs", "-f", "job"]).ok(), "first\nsecond\n");
    assert!(repo.sandbox(&["list"]).ok().contains("exited 3"));
}

fn many_commands_run_at_once(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "s");
    std::thread::scope(|scope| {
        for n in 0..8 {
            let (repo, subject) = (&repo, subject);
            scope.spawn(move || {
                let seen = subject.exec(repo, "s", &format!("echo a{n}; sleep 0.3; echo b{n}"));
                assert_eq!(seen.ok(), format!("a{n}\nb{n}\n"));
            });
        }
    });
}

fn a_terminal_works_inside(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "s");
    let mut pty = Pty::spawn(&subject.env.sandbox_command(repo.dir(), &["exec", "-t", "s", "--", "sh"]));
    pty.send("PS1='in> '\r");
    pty.expect("in> ");
    pty.resize(31, 97);
    pty.send("sleep 0.3; stty size; tty\r");
    pty.expect("31 97");
    pty.expect("/dev/pts/");
    pty.send("sleep 100\r");
    pty.expect("sleep 100");
    std::thread::sleep(Duration::from_millis(300));
    pty.send("\x03");
    pty.expect("in> ");
    pty.send("(exit 4)\r");
    pty.expect("in> ");
    pty.send("exit\r");
    assert_eq!(pty.wait().0, 4);
}

fn attach_and_leave(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    repo.sandbox(&[
        "spawn",
        "--driver",
        subject.driver,
        "-d",
        "-t",
        "job",
        "--",
        "sh",
        "-c",
        "while read line; do echo \"got $line\"; done",
    ])
    .ok();
    let mut pty = Pty::spawn(&subject.env.sandbox_command(repo.dir(), &["attach", "job"]));
    pty.send("one\r");
    pty.expect("got one");
    pty.send("\x10\x11");
    assert_eq!(pty.wait().0, 0);
    let mut pty = Pty::spawn(&subject.env.sandbox_command(repo.dir(), &["attach", "job"]));
    pty.expect("got one");
    pty.send("two\r");
    pty.expect("got two");
    pty.send("\x04");
    assert_eq!(pty.wait().0, 0);
}

fn stop_keeps_files_and_start_brings_them_back(subject: &Subject) {
    let repo = subject.repo(State::Dirty);
    subject.idle(&repo, "s");
    let write = "echo kept >kept.txt; echo home >~/home.txt; echo tmp >/tmp/tmp.txt; mkdir -p new && git mv src/b.c new/; rm -rf docs; git add kept.txt";
    subject.exec(&repo, "s", write).ok();
    let look = "git status --porcelain; cat kept.txt ~/home.txt; ls /tmp/tmp.txt 2>/dev/null; true";
    let before = subject.exec(&repo, "s", "git status --porcelain; cat kept.txt ~/home.txt").ok();
    repo.sandbox(&["stop", "s"]).ok();
    assert!(subject.env.live_processes().is_empty());
    assert!(repo.sandbox(&["list"]).ok().contains("stopped"));
    repo.sandbox(&["start", "s"]).ok();
    assert_eq!(subject.exec(&repo, "s", look).ok(), before);
    repo.sandbox(&["stop", "s"]).ok();
    assert_eq!(subject.exec(&repo, "s", look).ok(), before, "exec starts it");
}

fn a_killed_supervisor_loses_nothing(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "s");
    subject.exec(&repo, "s", "echo work >work.txt; git add work.txt; git commit -qm Work; echo more >more.txt").ok();
    let live = subject.env.live_processes();
    let (_, pid) = live.iter().find(|(role, _)| role == "supervisor").expect("a supervisor");
    let pid = rustix::process::Pid::from_raw(i32::try_from(*pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    // A guest writes its disk out first.
    wait_until("nothing of it runs", Duration::from_secs(120), || subject.env.live_processes().is_empty());
    let list = repo.sandbox(&["list"]).ok();
    assert!(list.contains("crashed"), "{list}");
    repo.sandbox(&["fetch", "s"]).ok();
    assert_eq!(repo.git(&["log", "-1", "--format=%s", "sandbox/s"]).ok(), "Work\n");
    repo.sandbox(&["start", "s"]).ok();
    assert_eq!(
        subject.exec(&repo, "s", "cat work.txt more.txt; git status --porcelain").ok(),
        "work\nmore\n?? more.txt\n"
    );
}

fn the_host_can_be_changed_meanwhile(subject: &Subject) {
    let repo = subject.repo(State::Dirty);
    subject.idle(&repo, "s");
    let look = "cat src/a.c docs/more.md; ls; git status --porcelain; git log --oneline | wc -l";
    let before = subject.exec(&repo, "s", look).ok();
    repo.write("src/a.c", "changed on the host later\n");
    repo.write("later.txt", "later\n");
    repo.git(&["checkout", "-q", "-f", "other"]).ok();
    repo.git(&["clean", "-qfdx"]).ok();
    assert_eq!(subject.exec(&repo, "s", look).ok(), before);
    assert!(subject.spawn(&repo, &["again"], "ls docs").ok().contains("other.md"));
}

/// What the sandbox borrows is its own: no gc, and not even losing the host's objects, disturbs it.
fn the_host_can_lose_its_objects(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "s");
    repo.git(&["checkout", "-q", "--orphan", "fresh"]).ok();
    repo.git(&["commit", "-qm", "Fresh"]).ok();
    repo.sh("git branch -q -D main other; git tag -d v1; git reflog expire --expire=now --all; git gc -q --prune=now")
        .ok();
    let seen =
        subject.exec(&repo, "s", "git log --format=%s | tail -n1; git cat-file -p HEAD:README.md; git fsck").ok();
    assert_eq!(seen, "Start\nA small project.\n");
    subject.exec(&repo, "s", "git commit -q --allow-empty -m Still").ok();
    repo.sandbox(&["fetch", "s"]).ok();
    assert_eq!(repo.git(&["log", "--format=%s", "sandbox/s"]).ok().lines().next(), Some("Still"));
}

fn a_time_limit_ends_the_command(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    assert_eq!(subject.spawn(&repo, &["late", "--timeout", "1s"], "sleep 100").status, 124);
    assert_eq!(subject.spawn(&repo, &["soon", "--timeout", "60s"], "exit 6").status, 6);
}

fn work_is_not_dropped_unasked(subject: &Subject) {
    let repo = subject.repo(State::Dirty);
    subject.spawn(&repo, &["clean"], "true").ok();
    repo.sandbox(&["drop", "clean"]).ok();
    subject.spawn(&repo, &["commit"], "echo x >x; git add x; git commit -qm x").ok();
    assert_eq!(repo.sandbox(&["drop", "commit"]).status, 1, "its commit is in no branch");
    subject.spawn(&repo, &["file"], "echo x >x.txt").ok();
    let seen = repo.sandbox(&["drop", "file"]);
    assert!(seen.status == 1 && seen.stderr.contains("x.txt"), "{seen}");
    repo.git(&["stash", "-q", "-u"]).ok();
    repo.git(&["merge", "-q", "--ff-only", "sandbox/commit"]).ok();
    repo.sandbox(&["drop", "commit"]).ok();
    let list = repo.sandbox(&["list"]).ok();
    assert!(list.contains("file") && !list.contains("commit "), "{list}");
    assert_eq!(repo.git(&["for-each-ref", "refs/sandbox/commit", "refs/sandbox-meta/commit"]).ok(), "");
}

fn the_trash_gives_back_what_was_dropped(subject: &Subject) {
    let repo = subject.repo(State::Dirty);
    let script = "echo x >x.txt; echo i >i.log; echo h >~/h.txt; rm src/b.c; echo c >c; git add c; git commit -qm c";
    subject.spawn(&repo, &["s"], script).ok();
    let look = "git status --porcelain --ignored; git log --format=%s -1; cat x.txt i.log ~/h.txt";
    let before = subject.exec(&repo, "s", look).ok();
    repo.sandbox(&["drop", "--force", "s"]).ok();
    assert!(repo.sandbox(&["trash", "list"]).ok().contains('s'));
    assert_eq!(repo.sandbox(&["exec", "s", "--", "true"]).status, 125);
    repo.sandbox(&["trash", "restore", "s"]).ok();
    assert_eq!(subject.exec(&repo, "s", look).ok(), before);
}

/// Names that are given, in all repositories.
fn given(subject: &Subject) -> Vec<String> {
    let repos = std::fs::read_dir(subject.env.state().join("repos")).unwrap();
    let names = repos.flat_map(|repo| std::fs::read_dir(repo.unwrap().path().join("names")).into_iter().flatten());
    names.map(|name| name.unwrap().file_name().into_string().unwrap()).collect()
}

fn a_name_is_free_when_its_refs_are_gone(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["s"], "echo x >x; git add x; git commit -qm first").ok();
    let lock = repo.dir().join(".git/packed-refs.lock");
    std::fs::write(&lock, "").unwrap();
    let dropped = repo.sandbox(&["drop", "--force", "s"]);
    assert_eq!(dropped.status, 0, "{dropped}");
    assert!(dropped.stderr.contains("warning: its refs are still here, and its name is not free"), "{dropped}");
    assert_eq!(given(subject), ["s"]);
    std::fs::remove_file(&lock).unwrap();
    let list = repo.sandbox(&["list"]);
    assert!(list.stderr.contains("a 'drop' of 's' was cut off: it was finished"), "{list}");
    assert_eq!(repo.git(&["for-each-ref", "refs/sandbox", "refs/sandbox-meta"]).ok(), "");
    assert!(given(subject).is_empty());
    // The next one of this name can bring its commits home.
    subject.spawn(&repo, &["s"], "echo y >y; git add y; git commit -qm second").ok();
    assert_eq!(repo.git(&["log", "-1", "--format=%s", "sandbox/s"]).ok(), "second\n");
}

fn a_drop_that_fails_keeps_its_name(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["s"], "echo x >x; git add x; git commit -qm x").ok();
    repo.sandbox(&["merge", "s"]).ok();
    std::fs::write(repo.dir().join(".git/packed-refs.lock"), "").unwrap();
    std::thread::scope(|scope| {
        let drop = scope.spawn(|| repo.sandbox(&["drop", "s"]));
        let tmp = subject.env.state().join("tmp");
        let away = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("dropped-"))
        };
        wait_until("it is on its way out", Duration::from_secs(120), || std::fs::read_dir(&tmp).unwrap().any(away));
        // While git waits for that lock.
        repo.sandbox(&["gc"]).ok();
        assert_eq!(given(subject), ["s"]);
        let second = subject.spawn(&repo, &["s"], "true");
        assert!(
            second.stderr.contains("error: the sandbox 's' is being dropped, and its name is not free"),
            "{second}"
        );
        let drop = drop.join().unwrap();
        assert!(drop.stderr.contains("packed-refs.lock"), "{drop}");
    });
    assert_eq!(given(subject), ["s"]);
    subject.exec(&repo, "s", "true").ok();
    std::fs::remove_file(repo.dir().join(".git/packed-refs.lock")).unwrap();
    repo.sandbox(&["drop", "s"]).ok();
    assert!(given(subject).is_empty());
}

fn several_are_spawned_at_once(subject: &Subject) {
    let repo = subject.repo(State::Dirty);
    std::thread::scope(|scope| {
        for n in 0..6 {
            let (repo, subject) = (&repo, subject);
            scope.spawn(move || {
                let name = format!("n{n}");
                let script =
                    format!("git status --porcelain | wc -l; echo {n} >mine; git add mine; git commit -qm {n}");
                assert_eq!(subject.spawn(repo, &[&name], &script).ok(), "8\n");
            });
        }
    });
    for n in 0..6 {
        assert_eq!(repo.git(&["log", "-1", "--format=%s", &format!("sandbox/n{n}")]).ok(), format!("{n}\n"));
    }
}

fn list_and_show_tell_what_is_true(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    assert_eq!(repo.sandbox(&["list"]).expect(0).stdout, "");
    subject.idle(&repo, "s");
    subject.exec(&repo, "s", "echo x >x; git add x; git commit -qm x; echo y >y").ok();
    let find = |text: &str| -> Value {
        let json: Value = serde_json::from_str(text).expect("list prints JSON");
        let all = json["sandboxes"].as_array().or(json.as_array()).expect("an array of sandboxes").clone();
        all.into_iter().find(|one| one["name"] == "s").expect("the sandbox is listed")
    };
    wait_until("the commit is counted", Duration::from_secs(5), || {
        let one = find(&repo.sandbox(&["list", "--json"]).ok());
        one["driver"] == subject.driver
            && one["state"] == "running"
            && one["commits_ahead"] == 1
            && one["uncommitted"] == 1
    });
    let show = repo.sandbox(&["show", "s", "--json"]).ok();
    let show: Value = serde_json::from_str(&show).expect("show prints JSON");
    assert_eq!(show["name"], "s", "{show}");
    let elsewhere = subject.env.sandbox(&subject.env.home(), &["list", "-A"]).ok();
    assert!(elsewhere.contains("running"), "{elsewhere}");
}

fn the_cache_directory_is_not_needed(subject: &Subject) {
    let repo = subject.repo(State::Dirty);
    subject.spawn(&repo, &["s"], "echo x >x").ok();
    std::fs::remove_dir_all(subject.env.root().join("cache")).unwrap();
    assert_eq!(subject.exec(&repo, "s", "cat x").ok(), "x\n");
}

fn a_moved_repository_is_found_again(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["s"], "echo x >x; git add x; git commit -qm x").ok();
    let moved = subject.env.repo_at("moved");
    std::fs::rename(repo.dir(), moved.dir()).unwrap();
    assert!(moved.sandbox(&["list"]).ok().contains('s'));
    moved.sandbox(&["fetch", "s"]).ok();
    assert_eq!(moved.git(&["log", "-1", "--format=%s", "sandbox/s"]).ok(), "x\n");
}

/// Anybody inside can do that by accident.
fn a_link_in_the_way_of_the_tree_is_moved_aside(subject: &Subject) {
    let env = &subject.env;
    let below = env.home().join("p/q");
    std::fs::create_dir_all(&below).unwrap();
    let built = State::Plain.build(env, "built");
    let top = below.join("r");
    std::fs::rename(built.dir(), &top).unwrap();
    let run = |args: &[&str]| env.sandbox(&top, args);
    run(&["spawn", "--driver", subject.driver, "moved", "--", "sh", "-c", "echo kept >new"]);
    let script = "cd ~ && mv p old && ln -s /tmp p && echo done";
    let moved = run(&["exec", "moved", "--", "sh", "-c", script]);
    assert!(moved.stdout.contains("done"), "{moved}");
    let seen = run(&["exec", "moved", "--", "sh", "-c", "pwd; cat new; readlink ~/p.moved-1; ls -d ~/old"]);
    assert!(seen.status == 0 && seen.stdout.contains("kept\n/tmp\n"), "{seen}");
    assert!(seen.stdout.contains("old"), "{seen}");
}

/// Each of these starts the sandbox for its own command, and the one before is stopping it at that moment.
fn one_command_after_the_other_in_a_stopped_sandbox(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["s"], "true").ok();
    for n in 0..12 {
        let mut command = subject.env.sandbox_command(repo.dir(), &["exec", "s", "--", "cat"]);
        let said = subject.env.run_with_input(&mut command, format!("input {n}\n").as_bytes());
        assert_eq!(said.ok(), format!("input {n}\n"));
    }
}
