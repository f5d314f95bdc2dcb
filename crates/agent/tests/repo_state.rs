//! The state of repositories in every condition, asked with each git of the machine.

mod common;

use common::Home;
use sandbox_protocol::*;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

struct Repo {
    dir: TempDir,
    path: String,
}

/// Runs a test with each git: its directory goes first in `PATH`.
fn with_each_git(test: impl Fn(&Repo)) {
    let mut tried = 0;
    for bin in ["/usr/bin", "/usr/local/bin"] {
        if !Path::new(bin).join("git").exists() {
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let others = std::env::var("PATH").unwrap();
        let repo = Repo { dir, path: format!("{bin}:{others}") };
        std::fs::write(
            repo.dir.path().join("config"),
            "[user]\nname = n\nemail = e@e\n[init]\ndefaultBranch = main\n[protocol \"file\"]\nallow = always\n\
             [advice]\ndetachedHead = false\n[core]\neditor = true\n",
        )
        .unwrap();
        repo.sh("git init -q top && cd top && git commit -q --allow-empty -m base");
        test(&repo);
        tried += 1;
    }
    assert!(tried > 0, "no git on this machine");
}

impl Repo {
    fn top(&self) -> PathBuf {
        self.dir.path().join("top").canonicalize().unwrap()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", &self.path)
            .env("HOME", self.dir.path())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", self.dir.path().join("config"))
            .env("GIT_AUTHOR_DATE", "1700000000 +0000")
            .env("GIT_COMMITTER_DATE", "1700000000 +0000");
        command
    }

    /// Runs a script above the repository; returns what it printed.
    #[track_caller]
    fn sh(&self, script: &str) -> String {
        let output = self.command("/bin/bash").args(["-ec", script]).current_dir(self.dir.path()).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Runs a script that may fail, as an operation that stops does.
    fn try_sh(&self, script: &str) {
        self.command("/bin/bash").args(["-c", script]).current_dir(self.dir.path()).output().unwrap();
    }

    fn id(&self, rev: &str) -> String {
        self.sh(&format!("git -C top rev-parse {rev}"))
    }

    fn ask(&self, path: &Path, granted: &[String]) -> Result<RepoState, String> {
        let mut child = self
            .command(env!("CARGO_BIN_EXE_agent-for-tests"))
            .arg(REPO_STATE_VERB)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let question = RepoQuestion { path: path.to_str().unwrap().into(), granted: granted.to_vec() };
        child.stdin.take().unwrap().write_all(&serde_json::to_vec(&question).unwrap()).unwrap();
        let output = child.wait_with_output().unwrap();
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(serde_json::from_slice(&output.stdout).unwrap())
    }

    #[track_caller]
    fn state(&self) -> RepoState {
        self.ask(&self.top(), &[]).unwrap()
    }
}

#[test]
fn head_refs_and_stash() {
    with_each_git(|repo| {
        repo.sh("cd top; git branch a/b; git tag v1; git tag -am x v2; git update-ref refs/notes/commits HEAD; \
                 git update-ref refs/remotes/origin/main HEAD; echo x >f; git add f; git stash -q; echo y >f; git add f; git stash -q");
        let state = repo.state();
        let head = repo.id("HEAD");
        assert_eq!((state.head_ref.as_deref(), state.head.as_ref()), (Some("refs/heads/main"), Some(&head)));
        let names: Vec<&str> = state.refs.iter().map(|(name, _)| name.as_str()).collect();
        let all =
            ["refs/heads/a/b", "refs/heads/main", "refs/notes/commits", "refs/stash", "refs/tags/v1", "refs/tags/v2"];
        assert_eq!(names, all);
        assert_eq!(state.refs[5].1, repo.id("v2"), "a tag's own id");
        assert_eq!(state.stash, [repo.id("stash@{0}"), repo.id("stash@{1}")]);
        assert_eq!((state.operation, state.operation_branch), (None, None));
        assert_eq!(state.reflog_tips, [] as [String; 0], "stash entries are no tips of reflogs");
    });
}

#[test]
fn unborn_detached_and_names_that_are_no_text() {
    with_each_git(|repo| {
        repo.sh("git init -q empty; cd top; git update-ref \"refs/heads/$(printf 'caf\\351')\" HEAD; git checkout -q --detach");
        let state = repo.state();
        assert_eq!((state.head_ref, state.head), (None, Some(repo.id("HEAD"))));
        assert_eq!(state.refs[0].0, "refs/heads/caf\\xe9");
        let empty = repo.ask(&repo.dir.path().join("empty"), &[]).unwrap();
        assert_eq!(empty, RepoState { head_ref: Some("refs/heads/main".into()), ..RepoState::default() });
        let gone = repo.ask(&repo.dir.path().join("nowhere"), &[]).unwrap_err();
        assert!(gone.contains("nowhere' is not a git repository"), "{gone}");
        // A directory in a repository is not one.
        repo.sh("mkdir top/sub");
        assert!(repo.ask(&repo.top().join("sub"), &[]).is_err());
    });
}

#[test]
fn commits_that_only_reflogs_reach() {
    with_each_git(|repo| {
        let granted =
            repo.sh("cd top; git commit -q --allow-empty -m granted; git rev-parse HEAD; git reset -q --hard HEAD~");
        repo.sh("cd top; git commit -q --allow-empty -m lost1; git commit -q --allow-empty -m lost2");
        let lost = repo.id("HEAD");
        repo.sh("cd top; git reset -q --hard HEAD~2; git worktree add -q --detach ../linked; cd ../linked; git commit -q --allow-empty -m detached");
        let detached = repo.sh("git -C linked rev-parse HEAD");
        let mut tips = repo.ask(&repo.top(), std::slice::from_ref(&granted)).unwrap().reflog_tips;
        tips.sort();
        let mut expected = vec![lost.clone(), detached];
        expected.sort();
        assert_eq!(tips, expected);
        // Ids that are none, or that this repository has not, are no harm.
        let odd = [granted, "0123456789012345678901234567890123456789".into(), "--all".into(), String::new()];
        let mut tips = repo.ask(&repo.top(), &odd).unwrap().reflog_tips;
        tips.sort();
        assert_eq!(tips, expected);
        repo.sh(&format!("cd top; git branch -f keep {lost}"));
        assert!(!repo.state().reflog_tips.contains(&lost));
    });
}

#[test]
fn operations_in_progress() {
    with_each_git(|repo| {
        repo.sh(
            "cd top; echo base >f; git add f; git commit -qm f; git checkout -qb side; echo side >f; git commit -qam s1; \
             echo 2 >g; git add g; git commit -qm s2; git format-patch -q -1 HEAD~ -o ..; git checkout -q main; echo main >f; git commit -qam m1",
        );
        let doing = |script: &str, abort: &str| {
            repo.try_sh(&format!("cd top; {script}"));
            let state = repo.state();
            repo.sh(&format!("cd top; {abort}"));
            (state.operation, state.operation_branch, state.head_ref)
        };
        let (some, main) = (|text: &str| Some(text.to_owned()), Some("refs/heads/main".to_owned()));
        assert_eq!(doing("git merge side", "git merge --abort"), (some("merge"), None, main.clone()));
        assert_eq!(
            doing("git cherry-pick side~", "git cherry-pick --abort"),
            (some("cherry-pick"), None, main.clone())
        );
        assert_eq!(doing("git revert HEAD~", "git revert --abort"), (some("revert"), None, main.clone()));
        assert_eq!(doing("git am -3 ../0001*", "git am --abort"), (some("am 1/1"), None, main.clone()));
        assert_eq!(
            doing("git rebase main side", "git rebase --abort"),
            (some("rebase 1/2"), some("refs/heads/side"), None)
        );
        repo.sh("git -C top checkout -q main");
        assert_eq!(
            doing("git rebase --apply main side", "git rebase --abort; git checkout -q main"),
            (some("rebase 1/2"), some("refs/heads/side"), None)
        );
        assert_eq!(doing("git bisect start HEAD HEAD~2", "git bisect reset"), (some("bisect"), main.clone(), None));
        assert_eq!(doing("true", "true"), (None, None, main));
    });
}

#[test]
fn repositories_inside() {
    with_each_git(|repo| {
        repo.sh(
            "git init -q lib; git -C lib commit -q --allow-empty -m l; cd top; \
             git submodule -q add ../lib sub/one; git submodule -q add ../lib two; git commit -qm subs; \
             git -C sub/one submodule -q add ../../lib deep 2>/dev/null || git -C sub/one submodule -q add \"$PWD/../lib\" deep; \
             git submodule -q deinit -f two; mkdir -p vendor/x; git init -q vendor/x/clone; \
             echo vendor >.gitignore; git worktree add -q linked; mkdir fake; echo gitdir: /nowhere >fake/.git",
        );
        let top = repo.top();
        let modules = top.join(".git/modules");
        // Each can be asked in turn, by its git directory too.
        let own = repo.sh("git -C lib rev-parse HEAD");
        assert_eq!(repo.ask(&top.join("sub/one"), &[]).unwrap().head, Some(own.clone()));
        assert_eq!(repo.ask(&modules.join("two"), &[]).unwrap().head, Some(own));
    });
}

#[test]
fn a_hostile_repository_says_nothing_it_should_not() {
    with_each_git(|repo| {
        let marker = repo.dir.path().join("ran");
        repo.sh(&format!(
            "cd top; git config core.fsmonitor 'touch {0}'; git config core.pager 'touch {0}'; git config log.showSignature true; \
             git config alias.log '!touch {0}'; git config gpg.program 'touch {0}'; echo x >f; git add f; git stash -q",
            marker.display()
        ));
        let _ = std::fs::remove_file(&marker);
        assert_eq!(repo.state().stash.len(), 1);
        assert!(!marker.exists(), "its configuration was executed");
    });
}

/// Nobody ever writes into these FIFOs: whoever opens one waits.
#[test]
fn nothing_is_waited_for() {
    with_each_git(|repo| {
        repo.sh("cd top; mkdir a b; mkfifo a/.git; git init -q b; rm b/.git/config; mkfifo b/.git/config; \
                 mkdir -p .git/modules/m; cp -r b/.git/objects b/.git/refs b/.git/HEAD .git/modules/m; \
                 mkfifo .git/modules/m/config .git/BISECT_START .git/BISECT_LOG; mkdir .git/rebase-merge; \
                 mkfifo .git/rebase-merge/msgnum");
        assert_eq!(repo.state().operation.as_deref(), Some("rebase"));
        repo.sh("cd top; git pack-refs --all; mv .git/packed-refs kept; mkfifo .git/packed-refs");
        let said = repo.ask(&repo.top(), &[]).unwrap_err();
        assert!(said.contains("packed-refs' is not a regular file"), "{said}");
        repo.sh("cd top; rm .git/packed-refs; ln -s /dev/zero .git/packed-refs");
        assert!(repo.ask(&repo.top(), &[]).is_err());
        repo.sh("cd top; rm .git/packed-refs; mv kept .git/packed-refs");
        assert!(repo.state().head.is_some());
    });
}

#[test]
fn the_agent_answers_for_a_repository_inside() {
    let home = Home::new();
    let mut agent = home.start();
    agent.ok("git init -q -b main . && git -c user.name=n -c user.email=e commit -q --allow-empty -m x");
    let head = agent.ok("git rev-parse HEAD");
    let path = home.tree().to_str().unwrap().to_owned();
    let ask = |path: String| Message::AskRepoState { path, granted: vec!["0".repeat(40)] };
    let stream = agent.client.open(&ask(path));
    match agent.client.message_of(stream) {
        Message::RepoState(state) => assert_eq!(state.head.as_deref(), Some(head.trim())),
        other => panic!("{other:?}"),
    }
    let stream = agent.client.open(&ask("/etc".into()));
    match agent.client.message_of(stream) {
        Message::Error(failure) => assert!(failure.message == "'/etc' is not a git repository", "{failure:?}"),
        other => panic!("{other:?}"),
    }
    // More refs than a message holds: said, not cut.
    agent.ok("for i in {1..1500}; do echo \"create refs/heads/branch-number-$i HEAD\"; done | git update-ref --stdin");
    let stream = agent.client.open(&ask(home.tree().to_str().unwrap().into()));
    match agent.client.message_of(stream) {
        Message::Error(failure) => assert_eq!(failure.kind, FailureKind::Limit),
        other => panic!("{other:?}"),
    }
    // As a session there is no such limit.
    let exec = agent.command(&[PROGRAM, REPO_STATE_VERB]);
    let question = RepoQuestion { path: home.tree().to_str().unwrap().into(), granted: vec![] };
    let ran = agent.client.run(exec, &serde_json::to_vec(&question).unwrap());
    let state: RepoState = serde_json::from_slice(&ran.out).unwrap();
    assert_eq!(state.refs.len(), 1501);
}
