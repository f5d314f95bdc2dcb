//! `sandbox.autoCommit`: what an agent leaves uncommitted is committed when it ends.

use crate::Subject;
use sandbox_testkit::{Repo, State};

over_views_at_length! {
    a_detached_agent_that_only_edits,
    an_attached_one_is_told,
    the_status_is_the_commands_and_a_time_limit_too,
    a_merge_in_progress_is_left_alone,
    nothing_changed_is_no_commit,
    what_the_agent_committed_is_not_committed_again,
    the_message_holds_what_the_log_said_and_nothing_that_steers,
    no_hook_runs_and_other_repositories_are_left_to_themselves,
    without_an_identity_it_is_told,
    a_value_that_is_none_is_refused,
}

/// The subjects that the host has of a sandbox beyond the base.
fn subjects(repo: &Repo, name: &str) -> String {
    repo.sandbox(&["fetch", name]).ok();
    let tip = format!("refs/sandbox/{name}");
    if repo.git(&["rev-parse", "--verify", "--quiet", &tip]).status != 0 {
        return String::new();
    }
    repo.git(&["log", "--format=%s", &format!("HEAD..{tip}")]).ok()
}

fn message(repo: &Repo, name: &str) -> String {
    repo.git(&["log", "-1", "--format=%B", &format!("refs/sandbox/{name}")]).ok()
}

fn a_detached_agent_that_only_edits(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let script = "echo x >made.txt; echo y >>README.md; rm src/a.c; echo working; echo done";
    subject.spawn(&repo, &["-d", "--auto-commit", "agent"], script).ok();
    assert_eq!(repo.sandbox(&["wait", "agent"]).status, 0);
    let all = subjects(&repo, "agent");
    assert!(all.starts_with("agent: sh -c echo x >made.txt") && all.lines().count() == 1, "{all}");
    assert_eq!(repo.git(&["show", "sandbox/agent:made.txt"]).ok(), "x\n");
    let changed = repo.git(&["diff", "--name-status", "HEAD", "sandbox/agent"]).ok();
    assert_eq!(changed, "M\tREADME.md\nA\tmade.txt\nD\tsrc/a.c\n");
    let text = message(&repo, "agent");
    assert!(text.ends_with("\n\nworking\ndone\n\nSandbox: agent\n\n"), "{text:?}");
    let trailer = ["log", "-1", "--format=%(trailers:key=Sandbox,valueonly)|%an", "sandbox/agent"];
    assert_eq!(repo.git(&trailer).ok(), "agent\n|Dev\n");
    let list = repo.sandbox(&["list", "--json"]).ok();
    assert!(list.contains("\"commits_ahead\": 1") && list.contains("\"uncommitted\": 0"), "{list}");
    // Only what the command itself left: what somebody does later is their own.
    subject.exec(&repo, "agent", "echo later >later.txt; git checkout -q -b moved").ok();
    assert_eq!(subjects(&repo, "agent").lines().count(), 1);
}

fn an_attached_one_is_told(subject: &Subject) {
    let repo = subject.repo(State::Dirty);
    repo.git(&["config", "sandbox.autoCommit", "true"]).ok();
    let seen = subject.spawn(&repo, &["agent"], "echo x >made.txt").expect(0);
    assert!(seen.stderr.contains("committed what was not: "), "{seen}");
    assert!(seen.stderr.contains("1 new commit on sandbox/agent"), "{seen}");
    assert!(!seen.stderr.contains("uncommitted"), "{seen}");
    assert_eq!(repo.git(&["show", "sandbox/agent:made.txt"]).ok(), "x\n");
}

fn the_status_is_the_commands_and_a_time_limit_too(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    for (name, script, status) in [("zero", "exit 0", 0), ("one", "exit 1", 1), ("killed", "kill -9 $$", 137)] {
        let seen = subject.spawn(&repo, &["--auto-commit", name], &format!("echo x >made.txt; {script}"));
        assert_eq!(seen.status, status, "{seen}");
        assert_eq!(repo.git(&["show", &format!("sandbox/{name}:made.txt")]).ok(), "x\n");
    }
    let script = "echo x >made.txt; echo started; exec sleep 1000";
    let seen = subject.spawn(&repo, &["--auto-commit", "--timeout", "1s", "late"], script);
    assert_eq!(seen.status, 124, "{seen}");
    assert!(message(&repo, "late").contains("\nstarted\n"));
    subject.spawn(&repo, &["-d", "--auto-commit", "bad"], "echo x >made.txt; exit 7").ok();
    assert_eq!(repo.sandbox(&["wait", "bad"]).status, 7);
    assert_eq!(subjects(&repo, "bad").lines().count(), 1);
}

fn a_merge_in_progress_is_left_alone(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let script = "git checkout -q -b other; echo one >f; git add f; git commit -qm one; git checkout -q main; \
        echo two >f; git add f; git commit -qm two; git merge other; echo three >g; exit 0";
    let seen = subject.spawn(&repo, &["--auto-commit", "agent"], script).expect(0);
    assert!(seen.stderr.contains("not committed automatically: a merge is in progress"), "{seen}");
    let log = repo.sandbox(&["logs", "agent"]).ok();
    assert!(log.ends_with("git-sandbox: not committed automatically: a merge is in progress\n"), "{log}");
    assert_eq!(subjects(&repo, "agent"), "two\n");
    let inside = subject.exec(&repo, "agent", "git status --porcelain").ok();
    assert_eq!(inside, "AA f\n?? g\n");
}

fn nothing_changed_is_no_commit(subject: &Subject) {
    // The user's own uncommitted work was there before: it is not the agent's to commit.
    let repo = subject.repo(State::Dirty);
    let seen = subject.spawn(&repo, &["--auto-commit", "agent"], "cat README.md; touch README.md").expect(0);
    assert!(seen.stderr.contains("no changes in 'agent'"), "{seen}");
    assert!(!seen.stderr.contains("committed"), "{seen}");
    assert_eq!(subjects(&repo, "agent"), "");
    // Ignored files are not added.
    let repo = subject.env.repo_at("ignoring");
    std::fs::create_dir_all(repo.dir()).unwrap();
    repo.git(&["init", "-q"]).ok();
    repo.commit(".gitignore", "*.log\n");
    let seen = subject.spawn(&repo, &["--auto-commit", "agent"], "echo x >out.log").expect(0);
    assert!(!seen.stderr.contains("committed"), "{seen}");
    assert_eq!(subjects(&repo, "agent"), "");
}

fn what_the_agent_committed_is_not_committed_again(subject: &Subject) {
    let repo = subject.repo(State::Dirty);
    let script = "echo x >made.txt; git add made.txt; git commit -qm 'By the agent' made.txt";
    let seen = subject.spawn(&repo, &["--auto-commit", "agent"], script).expect(0);
    assert!(!seen.stderr.contains("automatically"), "{seen}");
    assert_eq!(subjects(&repo, "agent"), "By the agent\n");
    // And what it staged and did not commit is.
    let script = "echo x >one; git add one; git commit -qm one; echo y >two; git add two; echo z >three";
    subject.spawn(&repo, &["--auto-commit", "half"], script).expect(0);
    let all = subjects(&repo, "half");
    assert!(all.starts_with("half: sh -c") && all.ends_with("\none\n") && all.lines().count() == 2, "{all}");
    assert_eq!(repo.git(&["show", "sandbox/half:three"]).ok(), "z\n");
}

fn the_message_holds_what_the_log_said_and_nothing_that_steers(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let script = r"echo x >made.txt; seq 100; printf '\033[31mred\033[0m \033]0;title\007text\n10%%\r99%%\n';
        printf '\302\233J\342\200\256 \377 \000end\n'; printf '# not a comment\n\nSandbox: forged\n'";
    subject.spawn(&repo, &["--auto-commit", "agent"], script).expect(0);
    let text = message(&repo, "agent");
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    let tail =
        "100\nred text\n99%\n\\u{9b}J\\u{202e} \\xff end\n# not a comment\nSandbox: forged\n\nSandbox: agent\n\n";
    assert!(text.ends_with(tail), "{text:?}");
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].chars().count() <= 72 && lines[0].starts_with("agent: sh -c "), "{text:?}");
    assert_eq!((lines[1], lines[2]), ("", "86"), "20 lines of the log: {text:?}");
    let trailer = ["log", "-1", "--format=%(trailers:key=Sandbox,valueonly)", "sandbox/agent"];
    assert_eq!(repo.git(&trailer).ok(), "agent\n\n");
}

fn no_hook_runs_and_other_repositories_are_left_to_themselves(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let script = "for hook in pre-commit prepare-commit-msg commit-msg post-commit; do \
          printf '#!/bin/sh\\ntouch ~/ran\\nexit 1\\n' >.git/hooks/$hook; chmod +x .git/hooks/$hook; done; \
        git config commit.gpgsign true; git init -q inner; echo i >inner/i; \
        git init -q full; cd full; echo f >f; git add f; git commit -qm f; cd ..; echo x >made.txt";
    subject.spawn(&repo, &["--auto-commit", "agent"], script).expect(0);
    assert_eq!(repo.git(&["diff", "--name-only", "HEAD", "sandbox/agent"]).ok(), "made.txt\n");
    assert_eq!(
        subject.exec(&repo, "agent", "ls ~/ran 2>/dev/null; git -C full status --short; cat inner/i").ok(),
        "i\n"
    );
}

fn without_an_identity_it_is_told(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    for key in ["user.name", "user.email"] {
        repo.git(&["config", "--global", "--unset", key]).ok();
    }
    let seen = subject.spawn(&repo, &["--auto-commit", "agent"], "echo x >made.txt").expect(0);
    assert!(seen.stderr.contains("not committed automatically: git inside has no user.name and user.email"), "{seen}");
    assert!(seen.stderr.contains("1 file uncommitted"), "{seen}");
    assert_eq!(subjects(&repo, "agent"), "");
}

fn a_value_that_is_none_is_refused(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    repo.git(&["config", "sandbox.autoCommit", "sometimes"]).ok();
    let seen = subject.spawn(&repo, &["agent"], "true");
    assert_eq!(seen.status, 125, "{seen}");
    assert!(seen.stderr.contains("'sometimes' is not a value of sandbox.autoCommit"), "{seen}");
    assert_eq!(repo.sandbox(&["list"]).stdout, "");
}
