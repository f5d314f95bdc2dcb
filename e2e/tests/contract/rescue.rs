//! Rescue and trash: what is not committed, and what only the sandbox has, survives every way of ending.

use crate::Subject;
use rustix::process::{Pid, Signal, kill_process};
use sandbox_testkit::{Repo, State, wait_until};
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;

over_drivers! {
    what_a_command_leaves_is_rescued_when_it_ends,
    stop_rescues_what_was_done_since,
    a_killed_supervisors_work_is_rescued_from_outside,
    it_is_rescued_every_so_often_and_only_when_something_ran,
    commits_that_nothing_names_survive_a_crash_and_drop,
    what_is_hostile_is_named_and_holds_nothing_up,
    submodules_and_repositories_made_inside,
    a_repository_without_a_work_tree_counts,
    the_vault_has_it_when_the_directory_is_lost,
    commits_of_a_submodule_outlive_a_lost_directory,
    a_fifo_is_left_out_by_apply,
    the_trash_expires_as_a_whole,
    what_it_stands_on_may_be_gone,
    names_in_the_trash,
    an_auto_commit_that_fails_is_told_once_and_hides_nothing,
}

const LIMIT: Duration = Duration::from_secs(120);

fn shown(repo: &Repo, name: &str) -> Value {
    serde_json::from_str(&repo.sandbox(&["show", name, "--json"]).ok()).unwrap()
}

/// The vault of the only repository.
fn vault(subject: &Subject) -> PathBuf {
    let repos = subject.env.state().join("repos");
    let mut all = std::fs::read_dir(repos).unwrap().map(|entry| entry.unwrap().path().join("packs"));
    all.find(|vault| vault.join("HEAD").exists()).expect("a vault")
}

#[track_caller]
fn in_vault(subject: &Subject, repo: &Repo, args: &[&str]) -> String {
    let dir = format!("--git-dir={}", vault(subject).display());
    repo.git(&[&[dir.as_str()], args].concat()).ok()
}

fn vault_refs(subject: &Subject, repo: &Repo) -> String {
    in_vault(subject, repo, &["for-each-ref", "--format=%(refname)"])
}

fn id(repo: &Repo, name: &str) -> String {
    shown(repo, name)["id"].as_str().expect("an id").to_owned()
}

/// Kills the supervisor, and so everything inside, without a word.
pub fn crash(subject: &Subject, repo: &Repo, name: &str) {
    let status = subject.env.state().join("sandboxes").join(id(repo, name)).join("status.json");
    let status: Value = serde_json::from_slice(&std::fs::read(status).unwrap()).unwrap();
    let pid = i32::try_from(status["supervisor"]["pid"].as_i64().expect("it runs")).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    wait_until("it counts as crashed", LIMIT, || repo.sandbox(&["list"]).stdout.contains("crashed"));
}

fn rescued(repo: &Repo, name: &str) -> Option<u64> {
    shown(repo, name)["rescue"]["files"].as_u64()
}

fn what_a_command_leaves_is_rescued_when_it_ends(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let before = repo.sh("git for-each-ref; git status --porcelain; find .git -type f | sort").ok();
    let script = "echo staged >README.md; git add README.md; echo work >>README.md; echo new >new.txt; \
        rm src/a.c; mkdir -p target; echo i >ignored.log; echo '*.log' >.git/info/exclude; cp .git/index /tmp/index; \
        sha256sum .git/index >index.sum; exit 3";
    subject.spawn(&repo, &["-d", "agent"], script).ok();
    assert_eq!(repo.sandbox(&["wait", "agent"]).status, 3);
    wait_until("it is rescued", LIMIT, || rescued(&repo, "agent").is_some());
    assert_eq!(rescued(&repo, "agent"), Some(4), "{}", repo.sandbox(&["show", "agent"]));
    let words = repo.sandbox(&["show", "agent"]).ok();
    assert!(words.contains("rescued     4 files ("), "{words}");
    let show = |what: &str| in_vault(subject, &repo, &["show", what]);
    assert_eq!(show("refs/agent/rescue^2:README.md"), "staged\n");
    assert_eq!(show("refs/agent/rescue:README.md"), "staged\nwork\n");
    assert_eq!(show("refs/agent/rescue^3:new.txt"), "new\n");
    let others = in_vault(subject, &repo, &["ls-tree", "-r", "--name-only", "refs/agent/rescue^3"]);
    assert_eq!(others, "index.sum\nnew.txt\n");
    assert_eq!(in_vault(subject, &repo, &["rev-parse", "refs/agent/rescue^1"]).trim(), repo.id("HEAD"));
    in_vault(subject, &repo, &["fsck", "--full", "--strict"]);
    // Inside, the index is what it was; on the host there is nothing new but our own id.
    subject.exec(&repo, "agent", "sha256sum -c index.sum && ls -A /tmp | grep -c rescue | grep -qx 0").ok();
    let after = repo.sh("git for-each-ref; git status --porcelain; find .git -type f ! -name sandbox-id | sort").ok();
    assert_eq!(after, before);
}

fn stop_rescues_what_was_done_since(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "s");
    subject.exec(&repo, "s", "echo 1 >one").ok();
    repo.sandbox(&["stop", "s"]).ok();
    assert_eq!(rescued(&repo, "s"), Some(1));
    // Nothing was done: the same one is still the newest.
    let refs = vault_refs(subject, &repo);
    repo.sandbox(&["start", "s"]).ok();
    repo.sandbox(&["stop", "s"]).ok();
    assert_eq!(vault_refs(subject, &repo), refs);
    let seen = repo.sandbox(&["rescue", "s"]).expect(0);
    assert!(seen.stderr.starts_with("nothing has changed since 's' was rescued: 1 file ("), "{seen}");
    // All of it is committed: there is nothing to rescue any more.
    repo.sandbox(&["start", "s"]).ok();
    subject.exec(&repo, "s", "git add . && git commit -qm one").ok();
    repo.sandbox(&["stop", "s"]).ok();
    assert_eq!(rescued(&repo, "s"), None);
    assert_eq!(repo.sandbox(&["rescue", "s"]).expect(0).stderr, "nothing is uncommitted in 's'\n");
    repo.git(&["merge", "-q", "refs/sandbox/s"]).ok();
    repo.sandbox(&["drop", "s"]).ok();
    assert_eq!(vault_refs(subject, &repo), "");
    assert_eq!(std::fs::read_dir(vault(subject).join("../kept")).unwrap().count(), 0);
}

fn a_killed_supervisors_work_is_rescued_from_outside(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "s");
    subject.exec(&repo, "s", "echo 1 >one; git add one; echo 2 >>one; touch .git/index.lock").ok();
    crash(subject, &repo, "s");
    let seen = repo.sandbox(&["rescue", "s"]).expect(0);
    assert!(seen.stderr.starts_with("rescued 1 file ("), "{seen}");
    assert_eq!(in_vault(subject, &repo, &["show", "refs/s/rescue:one"]), "1\n2\n");
    assert_eq!(in_vault(subject, &repo, &["show", "refs/s/rescue^2:one"]), "1\n");
    repo.sandbox(&["drop", "s"]).expect(1);
    repo.sandbox(&["drop", "--force", "s"]).ok();
    let told = repo.sandbox(&["trash", "show", "s"]).ok();
    assert!(told.contains("files       1 not committed") && told.contains("A one"), "{told}");
    assert!(told.contains("rescued     1 file (") && told.contains("/rescue\n"), "{told}");
    repo.sandbox(&["trash", "restore", "s"]).ok();
    assert!(vault_refs(subject, &repo).contains("refs/s/rescue\n"));
    assert!(!vault_refs(subject, &repo).contains("refs/trash/"));
    assert_eq!(subject.exec(&repo, "s", "cat one; git show :one; test -e .git/index.lock").ok(), "1\n2\n1\n");
}

fn it_is_rescued_every_so_often_and_only_when_something_ran(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    repo.git(&["config", "sandbox.rescueEvery", "1s"]).ok();
    subject
        .spawn(&repo, &["-d", "busy"], "echo 1 >one; while ! test -e go; do sleep 0.1; done; echo 2 >two; sleep 1000")
        .ok();
    wait_until("it is rescued while it runs", LIMIT, || rescued(&repo, "busy") == Some(1));
    subject.exec(&repo, "busy", "touch go").ok();
    wait_until("it is rescued again", LIMIT, || rescued(&repo, "busy") == Some(3));
    repo.sandbox(&["stop", "busy"]).ok();
    repo.git(&["config", "sandbox.rescueEvery", "0"]).ok();
    subject.spawn(&repo, &["-d", "off"], "echo 1 >one; echo ready; sleep 1000").ok();
    wait_until("it wrote", LIMIT, || repo.sandbox(&["logs", "off"]).stdout == "ready\n");
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(rescued(&repo, "off"), None);
    repo.sandbox(&["stop", "off"]).ok();
    assert_eq!(rescued(&repo, "off"), Some(1), "at its end all the same");
    repo.git(&["config", "sandbox.rescueEvery", "often"]).ok();
    let seen = subject.spawn(&repo, &["-d", "never"], "true").expect(125);
    assert!(seen.stderr.contains("'often' is not a value of sandbox.rescueEvery"), "{seen}");
}

fn commits_that_nothing_names_survive_a_crash_and_drop(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let commit = "echo $RANDOM$$ >f; git add f; git commit -qm made; git rev-parse HEAD";
    let cases = [
        ("reset", format!("{commit}; git reset -q --hard HEAD^")),
        ("stash", "echo x >>README.md; git stash -q; git rev-parse stash".to_owned()),
        ("tag", format!("git checkout -q --detach; {commit}; git tag -am t v9; git checkout -q main")),
        ("notes", "git notes add -m note HEAD; git rev-parse refs/notes/commits".to_owned()),
        ("detached", format!("git checkout -q --detach; {commit}")),
        ("orig", format!("{commit}; git reset -q --hard HEAD^; git rev-parse ORIG_HEAD >/dev/null")),
        ("reflog", format!("git checkout -q -b gone; {commit}; git checkout -q main; git branch -q -D gone")),
    ];
    for (name, script) in &cases {
        subject.idle(&repo, name);
        let made = subject.exec(&repo, name, script).ok();
        let made = made.trim();
        crash(subject, &repo, name);
        let seen = repo.sandbox(&["drop", "--force", name]).expect(0);
        assert!(seen.stderr.contains("into the trash\n"), "{seen}");
        // In the vault, of its own: the host has no ref of it.
        in_vault(subject, &repo, &["cat-file", "-e", made]);
        let reachable = in_vault(subject, &repo, &["rev-list", "--all"]);
        assert!(reachable.lines().any(|line| line == made), "{name}: {made}\n{}", vault_refs(subject, &repo));
        assert_eq!(repo.git(&["for-each-ref", "refs/sandbox", "refs/sandbox-meta"]).ok(), "");
        repo.sandbox(&["trash", "restore", name]).ok();
        let again = repo.git(&["rev-list", "--all"]).ok();
        assert!(again.lines().any(|line| line == made), "{name}: the host has it again");
        assert_eq!(subject.exec(&repo, name, &format!("git cat-file -t {made}")).ok(), "commit\n");
        repo.sandbox(&["drop", "--force", name]).ok();
    }
    in_vault(subject, &repo, &["fsck", "--full"]);
}

fn what_is_hostile_is_named_and_holds_nothing_up(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "s");
    let script = "echo x >fine; echo x >shut; chmod 000 shut; mkfifo fifo; truncate -s 1T sparse; echo x >\"$(printf 'a\\nb')\"; \
        mkdir closed; echo x >closed/f; chmod 000 closed; touch .git/index.lock; \
        git config core.fsmonitor 'touch /tmp/monitored; false'; mkdir -p .git/hooks; \
        printf '#!/bin/sh\\ntouch /tmp/hooked\\n' >.git/hooks/post-index-change; chmod +x .git/hooks/post-index-change";
    subject.exec(&repo, "s", script).ok();
    repo.sandbox(&["stop", "s"]).ok();
    let shown = shown(&repo, "s");
    let left_out: Vec<&str> =
        shown["rescue"]["left_out"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    assert!(left_out.contains(&"'shut': it may not be read"), "{left_out:?}");
    assert!(left_out.contains(&"'sparse': it is larger than 256 MiB"), "{left_out:?}");
    let others = in_vault(subject, &repo, &["ls-tree", "-rz", "--name-only", "refs/s/rescue^3"]);
    assert_eq!(others, "a\nb\0fine\0");
    // A filter that does not end: stop ends all the same, and why there is no new one is told.
    repo.sandbox(&["start", "s"]).ok();
    subject
        .exec(
            &repo,
            "s",
            "test ! -e /tmp/hooked && test ! -e /tmp/monitored; rm .git/index.lock; \
        git config filter.slow.clean 'sleep 1000'; echo 'slow.* filter=slow' >.gitattributes; echo x >slow.txt",
        )
        .ok();
    repo.sandbox(&["stop", "s"]).ok();
    assert!(!repo.sandbox(&["list"]).ok().contains("running"));
    let seen = repo.sandbox(&["drop", "s"]).expect(1);
    assert!(seen.stderr.contains("files not committed"), "{seen}");
    // The earlier one is there.
    assert_eq!(in_vault(subject, &repo, &["show", "refs/s/rescue^3:fine"]), "x\n");
    let refused = "git config --unset filter.slow.clean; rm slow.txt; ln -s x .gitmodules; \
        blob=$(git hash-object -w README.md); tree=$(printf '100644 blob %s\t.GIT\n' $blob | git mktree); \
        git update-ref HEAD $(git commit-tree -m x $tree)";
    repo.sandbox(&["start", "s"]).ok();
    subject.exec(&repo, "s", refused).ok();
    repo.sandbox(&["stop", "s"]).ok();
    let words = repo.sandbox(&["show", "s"]).ok();
    assert!(words.contains("the last try failed: refused: "), "{words}");
    let seen = repo.sandbox(&["rescue", "s"]).expect(1);
    assert!(
        seen.stderr.starts_with("error: cannot rescue what is not committed in 's'\ncaused by: refused: "),
        "{seen}"
    );
    let seen = repo.sandbox(&["drop", "--force", "s"]).expect(0);
    assert!(seen.stderr.contains("warning: only its directory has everything: cannot rescue"), "{seen}");
    repo.sandbox(&["trash", "restore", "s"]).ok();
    subject.exec(&repo, "s", "test -p fifo && test -L .gitmodules && test -e closed").ok();
}

fn submodules_and_repositories_made_inside(subject: &Subject) {
    let repo = subject.repo(State::Submodule);
    let path = repo.git(&["config", "-f", ".gitmodules", "--get-regexp", "path"]).ok();
    let path = path.split_whitespace().nth(1).expect("a submodule").to_owned();
    subject.idle(&repo, "s");
    let script = format!("echo inner >{path}/inner.txt; echo outer >outer.txt; git init -q made; echo x >made/x");
    subject.exec(&repo, "s", &script).ok();
    repo.sandbox(&["stop", "s"]).ok();
    // What was dirty on the host is in it, too.
    assert!(rescued(&repo, "s") >= Some(2), "{}", repo.sandbox(&["show", "s"]));
    let words = repo.sandbox(&["show", "s"]).ok();
    assert!(words.contains("not in it: 'made': a repository that the host does not have"), "{words}");
    let refs = vault_refs(subject, &repo);
    assert!(refs.contains(&format!("refs/s/nested/{}/rescue\n", path.replace('/', "+/"))), "{refs}");
    let outer = in_vault(subject, &repo, &["ls-tree", "-r", "refs/s/rescue^3"]);
    assert!(outer.contains("outer.txt") && !outer.contains("160000"), "{outer}");
}

fn a_repository_without_a_work_tree_counts(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "s");
    let script = "mkdir -p .git/modules && git init -q --bare .git/modules/lib && cd .git/modules/lib && \
        git update-ref refs/heads/main $(git commit-tree -m x $(git mktree </dev/null))";
    subject.exec(&repo, "s", script).ok();
    let seen = repo.sandbox(&["drop", "s"]).expect(1);
    assert!(seen.stderr.contains("'.git/modules/lib' is a repository that the host does not have"), "{seen}");
}

fn the_vault_has_it_when_the_directory_is_lost(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "s");
    subject.exec(&repo, "s", "echo c >c; git add c; git commit -qm c; echo u >u").ok();
    let made = subject.exec(&repo, "s", "git rev-parse HEAD").ok();
    let dir = subject.env.state().join("trash").join(id(&repo, "s"));
    repo.sandbox(&["drop", "--force", "s"]).ok();
    let mut remove = subject.env.command("rm", repo.dir());
    subject.env.run(remove.arg("-rf").arg(&dir)).ok();
    // Neither gc here nor the removal of what is idle there takes it.
    repo.sandbox(&["gc"]).ok();
    repo.sh("git reflog expire --expire=now --all; git gc -q --prune=now").ok();
    assert_eq!(repo.git(&["cat-file", "-e", made.trim()]).status, 1, "the host has let it go");
    let list = repo.sandbox(&["trash", "list"]).ok();
    assert!(list.contains("  lost  "), "{list}");
    let told = repo.sandbox(&["trash", "show", "s"]).ok();
    assert!(told.contains("directory   lost") && told.contains("/commits/tip\n"), "{told}");
    let seen = repo.sandbox(&["trash", "restore", "s"]).expect(0);
    assert!(seen.stdout.contains("restored/s/tip\n") && seen.stdout.contains("restored/s/rescue\n"), "{seen}");
    assert!(seen.stderr.contains("`git stash apply restored/s/rescue`"), "{seen}");
    assert_eq!(repo.id("restored/s/tip"), made.trim());
    repo.git(&["merge", "-q", "restored/s/tip"]).ok();
    repo.git(&["stash", "apply", "-q", "restored/s/rescue"]).ok();
    assert_eq!(repo.read("u"), "u\n");
    repo.sandbox(&["trash", "empty", "--yes"]).ok();
    assert_eq!(vault_refs(subject, &repo), "");
}

fn what_it_stands_on_may_be_gone(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "s");
    let script = "echo c >c; git add c; git commit -qm c; echo u >u; rm src/a.c; ln -s /etc/passwd out; \
        ln -s ../../up away; mkdir -p deep/er; echo d >deep/er/d";
    subject.exec(&repo, "s", script).ok();
    let made = subject.exec(&repo, "s", "git rev-parse HEAD").ok();
    repo.sandbox(&["stop", "s"]).ok();
    let repos = vault(subject).join("..");
    std::fs::rename(repos.join("layers"), repos.join("gone")).unwrap();
    let seen = repo.sandbox(&["start", "s"]).expect(125);
    assert!(seen.stderr.contains("which is gone") && seen.stderr.contains("`git sandbox rescue s --to DIR`"), "{seen}");
    let seen = repo.sandbox(&["rescue", "s", "--to", "../saved"]).expect(0);
    assert!(seen.stderr.contains("copied 5 changed files") && !seen.stderr.contains("skipped"), "{seen}");
    let links = repo.sh("cd ../saved/files; readlink out away").ok();
    assert_eq!(links, "/etc/passwd\n../../up\n", "links are copied as links");
    assert_eq!(
        repo.sh("cd ../saved; cat files/c files/u files/deep/er/d; ls -A files").ok(),
        "c\nu\nd\naway\nc\ndeep\nout\nsrc\nu\n"
    );
    let heads = repo
        .sh("git init -q ../fresh; cd ../fresh; git bundle verify -q ../saved/commits.bundle; \
        git bundle list-heads ../saved/commits.bundle")
        .ok();
    assert!(heads.contains(made.trim()), "{heads}");
    let seen = repo.sandbox(&["rescue", "s", "--to", "../saved"]).expect(128);
    assert!(seen.stderr.contains("error: cannot create '../saved'"), "{seen}");
    // What cannot be copied is named, and the status says so.
    let upper = subject.env.state().join("sandboxes").join(id(&repo, "s")).join("trees/0/upper");
    repo.sh(&format!("mkfifo '{}'", upper.join("pipe").display())).ok();
    let seen = repo.sandbox(&["rescue", "s", "--to", "../again"]).expect(1);
    assert!(
        seen.stderr.contains("skipped 'pipe': not a regular file\nhint: what was skipped is still below '"),
        "{seen}"
    );
    std::fs::rename(repos.join("gone"), repos.join("layers")).unwrap();
    assert_eq!(subject.exec(&repo, "s", "cat u; test ! -e src/a.c").ok(), "u\n");
}

fn commits_of_a_submodule_outlive_a_lost_directory(subject: &Subject) {
    let repo = subject.repo(State::Submodule);
    let path = repo.git(&["config", "-f", ".gitmodules", "--get-regexp", "path"]).ok();
    let path = path.split_whitespace().nth(1).expect("a submodule").to_owned();
    subject.idle(&repo, "s");
    let script = format!("cd {path}; echo c >c; git add c; git commit -qm inner; echo u >u; echo o >../outer.txt");
    subject.exec(&repo, "s", &script).ok();
    let made = subject.exec(&repo, "s", &format!("git -C {path} rev-parse HEAD")).ok();
    repo.sandbox(&["rescue", "s"]).ok();
    let shown = shown(&repo, "s");
    let commits = shown["rescue"]["commits"].as_array().unwrap();
    assert_eq!(commits.len(), 2, "{shown}");
    assert!(commits.iter().any(|one| one["worktree"].as_str().unwrap().ends_with(&path)), "{shown}");
    let dir = subject.env.state().join("trash").join(id(&repo, "s"));
    repo.sandbox(&["drop", "--force", "s"]).ok();
    let mut remove = subject.env.command("rm", repo.dir());
    subject.env.run(remove.arg("-rf").arg(&dir)).ok();
    let inner = |args: &[&str]| repo.git(&[&["-C", path.as_str()], args].concat());
    inner(&["reflog", "expire", "--expire=now", "--all"]).ok();
    inner(&["gc", "-q", "--prune=now"]).ok();
    assert_eq!(inner(&["cat-file", "-e", made.trim()]).status, 1, "the host has let it go");
    let seen = repo.sandbox(&["trash", "restore", "s"]).expect(0);
    assert!(seen.stderr.contains(&format!("in '{}", repo.dir().display())), "{seen}");
    let has = inner(&["branch", "--list", "restored/*", "--contains", made.trim()]).ok();
    assert!(has.contains("restored/s/"), "{has}: {seen}");
    assert_eq!(inner(&["show", "restored/s/rescue^3:u"]).ok(), "u\n");
    assert_eq!(repo.git(&["branch", "--list", "restored/s/nested*"]).ok(), "", "not in the other one");
}

fn a_fifo_is_left_out_by_apply(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "s");
    subject.exec(&repo, "s", "mkfifo ff; echo x >x").ok();
    let applied = repo.sandbox(&["apply", "s"]).expect(0);
    assert_eq!(
        applied.stderr,
        "left out (a socket, a FIFO, a device or over 256 MiB): ff\n1 file applied here, uncommitted\n"
    );
    assert!(repo.has("x") && !repo.has("ff"));
}

fn the_trash_expires_as_a_whole(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "s");
    subject.exec(&repo, "s", "echo c >c; git add c; git commit -qm c; echo u >u").ok();
    let id = id(&repo, "s");
    repo.sandbox(&["drop", "--force", "s"]).ok();
    repo.sandbox(&["gc"]).ok();
    assert!(vault_refs(subject, &repo).contains("/commits/tip"), "not before its time");
    let old = |path: PathBuf, pointer: &str| {
        let mut value: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let at = value.pointer_mut(pointer).unwrap();
        *at = (at.as_u64().unwrap() - 32 * 86_400).into();
        std::fs::write(path, value.to_string()).unwrap();
    };
    old(subject.env.state().join("trash").join(&id).join("dropped.json"), "/at");
    old(vault(subject).join("../kept").join(format!("{id}.json")), "/trash/at");
    // A clock that says so is not enough: only a week passes from one run to the next, whatever it says.
    let days = subject.env.state().join("days.json");
    repo.sandbox(&["gc"]).ok();
    old(days.clone(), "/at");
    repo.sandbox(&["gc"]).ok();
    assert!(vault_refs(subject, &repo).contains("/commits/tip"), "one jump of the clock takes nothing");
    for _ in 0..3 {
        old(days.clone(), "/at");
        repo.sandbox(&["gc"]).ok();
    }
    old(days, "/at");
    for (setting, told) in [
        ("never", "kept in the trash: 1 dropped sandbox, none goes by itself (sandbox.trashExpiry)"),
        ("40d", "kept in the trash: 1 dropped sandbox, the next one goes in 8 days (sandbox.trashExpiry)"),
    ] {
        repo.git(&["config", "sandbox.trashExpiry", setting]).ok();
        let kept = repo.sandbox(&["gc", "--dry-run"]).expect(0);
        assert!(kept.stderr.contains(told) && !kept.stdout.contains("dropped sandbox"), "{kept}");
    }
    repo.git(&["config", "sandbox.trashExpiry", "0"]).ok();
    let refused = repo.sandbox(&["gc"]).expect(128);
    assert!(
        refused.stderr.starts_with("error: '0' is not a value of sandbox.trashExpiry\nhint: it is a number of days"),
        "{refused}"
    );
    repo.git(&["config", "--unset", "sandbox.trashExpiry"]).ok();
    let plan = repo.sandbox(&["gc", "--dry-run"]).ok();
    assert!(plan.contains("dropped sandbox 's' of 32 days ago"), "{plan}");
    assert!(plan.contains("rescued work and commits of 's' of 32 days ago"), "{plan}");
    assert!(vault_refs(subject, &repo).contains("/commits/tip"), "a plan changes nothing");
    repo.sandbox(&["gc"]).ok();
    assert_eq!(vault_refs(subject, &repo), "");
    assert!(repo.sandbox(&["trash", "list"]).expect(0).stderr.contains("the trash is empty"));
    let packs = std::fs::read_dir(vault(subject).join("objects/pack")).unwrap().flatten();
    let single = |path: PathBuf| std::os::unix::fs::MetadataExt::nlink(&path.metadata().unwrap()) == 1;
    assert_eq!(packs.filter(|entry| single(entry.path())).count(), 0, "nothing is left over");
}

fn names_in_the_trash(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    for n in 0..2 {
        subject.idle(&repo, "s");
        subject.exec(&repo, "s", &format!("echo {n} >n")).ok();
        repo.sandbox(&["drop", "--force", "s"]).ok();
    }
    subject.idle(&repo, "s");
    let seen = repo.sandbox(&["trash", "show", "s"]).expect(128);
    assert!(seen.stderr.contains("there is more than one 's' in the trash"), "{seen}");
    let list: Value = serde_json::from_str(&repo.sandbox(&["trash", "list", "--json"]).ok()).unwrap();
    let ids: Vec<&str> = list["trash"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect();
    let seen = repo.sandbox(&["trash", "restore", ids[0], "--as", "s"]).expect(1);
    assert!(seen.stderr.contains("error: there is a sandbox named 's'\nhint: `--as NAME`"), "{seen}");
    repo.sandbox(&["trash", "restore", ids[0], "--as", "newer"]).ok();
    let seen = repo.sandbox(&["trash", "restore", ids[1]]).expect(0);
    assert!(seen.stderr.contains("as 's-2', since there is a new 's'"), "{seen}");
    assert_eq!(subject.exec(&repo, "newer", "cat n").ok(), "1\n");
    assert_eq!(subject.exec(&repo, "s-2", "cat n").ok(), "0\n");
    let refs = vault_refs(subject, &repo);
    assert!(refs.contains("refs/newer/rescue\n") && refs.contains("refs/s-2/rescue\n"), "{refs}");
    let seen = repo.sandbox(&["trash", "restore", "nothing"]).expect(128);
    assert!(seen.stderr.contains("there is no 'nothing' in the trash"), "{seen}");
    // A sandbox may be called as the trash is in the vault.
    subject.idle(&repo, "trash");
    subject.exec(&repo, "trash", "echo t >t").ok();
    subject.exec(&repo, "newer", "echo t >t").ok();
    repo.sandbox(&["drop", "--force", "newer"]).ok();
    repo.sandbox(&["rescue", "trash"]).ok();
    let refs = vault_refs(subject, &repo);
    assert!(
        refs.contains("refs/trash/rescue\n") && refs.contains(&format!("refs/trash/{}/rescue\n", ids[0])),
        "{refs}"
    );
}

fn an_auto_commit_that_fails_is_told_once_and_hides_nothing(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let script = "echo c >c; git add c; git commit -qm c; echo u >u; rm .git/HEAD; mkfifo .git/HEAD; echo over";
    subject.spawn(&repo, &["-d", "--auto-commit", "s"], script).ok();
    repo.sandbox(&["wait", "s"]).expect(0);
    repo.sandbox(&["stop", "s"]);
    let dir = subject.env.state().join("sandboxes").join(id(&repo, "s"));
    // Commits cannot be asked for at all: nothing is committed automatically, and nothing is lost.
    assert!(subject.env.state().exists() && dir.join("trees/0/upper/u").exists());
}
