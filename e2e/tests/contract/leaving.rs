//! The end of a command: on a terminal a short conversation, off a terminal nothing is asked.

use crate::Subject;
use sandbox_testkit::{Pty, Repo, State};

over_views_at_length! {
    enter_takes_the_commits_and_drops_the_sandbox,
    no_keeps_them,
    nothing_is_asked_off_a_terminal,
    no_changes_is_said_and_an_unnamed_sandbox_is_gone,
    uncommitted_work_can_be_committed,
    uncommitted_work_can_be_applied,
    uncommitted_work_can_be_discarded_and_restored,
    another_branch_on_the_host_is_not_touched,
    a_diverged_branch_is_said,
    the_setting_merges_without_asking,
    autocommit_commits_for_agents_that_never_do,
    the_prompt_names_the_sandbox,
    a_sparse_file_is_not_read_to_its_end,
    a_fifo_in_the_git_directory_holds_nobody_up,
    uncommitted_links_are_shown_and_what_is_not_shown_is_named,
}

/// Each command must end within the time that the harness gives it: the file is 4 TiB long.
fn a_sparse_file_is_not_read_to_its_end(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let tracked = repo.git(&["ls-files"]).ok().lines().next().unwrap().to_owned();
    subject.spawn(&repo, &["sparse"], &format!("truncate -s 4T {tracked}")).ok();
    let listed = repo.sandbox(&["list"]).ok();
    assert!(listed.contains("sparse") && listed.contains('1'), "{listed}");
    let refused = repo.sandbox(&["drop", "sparse"]);
    assert!(refused.status != 0 && refused.stderr.contains("1 file"), "{refused}");
    repo.sandbox(&["drop", "--force", "sparse"]).ok();
}

/// A link is shown as its text, wherever it leads; what was replaced by one does not look deleted.
fn uncommitted_links_are_shown_and_what_is_not_shown_is_named(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let tracked: Vec<String> = repo.git(&["ls-files"]).ok().lines().map(str::to_owned).collect();
    let (one, two) = (&tracked[0], &tracked[1]);
    let script = format!("ln -s {one} near; ln -s /etc/passwd far; ln -sf /etc/shadow {one}; rm {two}; mkfifo {two}");
    subject.spawn(&repo, &["links"], &script).ok();
    let seen = repo.sandbox(&["diff", "--uncommitted", "links"]).expect(0);
    for text in [&format!("+{one}"), "+/etc/passwd", "+/etc/shadow", "new file mode 120000"] {
        assert!(seen.stdout.contains(text), "{text}: {seen}");
    }
    assert!(!seen.stdout.contains("root:"), "{seen}");
    assert!(seen.stderr.contains(&format!("'{two}' is not shown: neither")), "{seen}");
    assert!(!seen.stdout.contains(two.as_str()), "{seen}");
}

/// Nobody ever writes into it.
fn a_fifo_in_the_git_directory_holds_nobody_up(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["fifo"], "rm -f .git/packed-refs; mkfifo .git/packed-refs");
    let refused = repo.sandbox(&["drop", "fifo"]);
    assert!(refused.status != 0, "{refused}");
    assert!(refused.stderr.contains("not a regular file"), "{refused}");
    repo.sandbox(&["drop", "--force", "fifo"]).ok();
    assert_eq!(repo.sandbox(&["list"]).ok(), "");
}

/// A shell in a new sandbox on a terminal, with `script` typed into it and left.
fn shell<'e>(subject: &'e Subject, repo: &Repo<'e>, name: &[&str], script: &str) -> Pty {
    let args = [&["spawn", "--driver", subject.driver], name, &["--", "sh", "-c", script]].concat();
    Pty::spawn(&subject.env.sandbox_command(repo.dir(), &args))
}

const COMMIT_TWICE: &str = "echo x >x; git add x; git commit -qm one; echo y >>x; git commit -qam two";

fn enter_takes_the_commits_and_drops_the_sandbox(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let mut pty = shell(subject, &repo, &["fix"], COMMIT_TWICE);
    pty.expect("2 new commits on sandbox/fix");
    pty.expect("[Y/n]");
    pty.send("\r");
    pty.expect("drop it? [Y/n]");
    pty.send("\r");
    assert_eq!(pty.wait().0, 0);
    assert_eq!(repo.git(&["log", "-2", "--format=%s"]).ok(), "two\none\n");
    assert_eq!(repo.git(&["status", "--porcelain"]).ok(), "");
    assert_eq!(repo.sandbox(&["list"]).stdout, "");
}

fn no_keeps_them(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let before = repo.id("HEAD");
    let mut pty = shell(subject, &repo, &["fix"], COMMIT_TWICE);
    pty.expect("[Y/n]");
    pty.send("n\r");
    assert_eq!(pty.wait().0, 0);
    assert_eq!(repo.id("HEAD"), before);
    assert_eq!(repo.git(&["log", "-1", "--format=%s", "sandbox/fix"]).ok(), "two\n");
}

fn nothing_is_asked_off_a_terminal(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let before = repo.id("HEAD");
    let seen = subject.spawn(&repo, &["fix"], COMMIT_TWICE).expect(0);
    assert!(seen.stderr.contains("2 new commits on sandbox/fix"), "{seen}");
    assert!(!seen.stderr.contains("[Y/n]"), "{seen}");
    assert_eq!(repo.id("HEAD"), before);
}

fn no_changes_is_said_and_an_unnamed_sandbox_is_gone(subject: &Subject) {
    let repo = subject.repo(State::Dirty);
    let seen = subject.spawn(&repo, &[], "touch README.md; cat src/a.c >/dev/null; git status >/dev/null").expect(0);
    assert!(seen.stderr.to_lowercase().contains("no changes"), "{seen}");
    assert_eq!(repo.sandbox(&["list"]).stdout, "");
    let seen = subject.spawn(&repo, &["named"], "true").expect(0);
    assert!(seen.stderr.to_lowercase().contains("no changes"), "{seen}");
    assert!(repo.sandbox(&["list"]).stdout.contains("named"));
}

fn uncommitted_work_can_be_committed(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let mut pty = shell(subject, &repo, &["fix"], "echo x >x; echo y >>README.md");
    pty.expect("2 files uncommitted");
    pty.expect("[c]ommit");
    pty.send("c\r");
    pty.expect("message:");
    pty.send("From the conversation\r");
    pty.expect("[Y/n]");
    pty.send("\r");
    pty.expect("[Y/n]");
    pty.send("n\r");
    assert_eq!(pty.wait().0, 0);
    assert_eq!(repo.git(&["log", "-1", "--format=%s"]).ok(), "From the conversation\n");
    assert_eq!(repo.read("x"), "x\n");
}

fn uncommitted_work_can_be_applied(subject: &Subject) {
    let repo = subject.repo(State::Dirty);
    let before = repo.read("src/a.c");
    let mut pty = shell(subject, &repo, &["fix"], "echo x >x; echo y >>README.md");
    pty.expect("2 files uncommitted");
    pty.expect("[c]ommit");
    pty.send("a\r");
    pty.expect("drop it? [Y/n]");
    pty.send("\r");
    assert_eq!(pty.wait().0, 0);
    assert_eq!(
        (&*repo.read("x"), &*repo.read("README.md"), repo.read("src/a.c")),
        ("x\n", "A small project.\ny\n", before)
    );
}

fn uncommitted_work_can_be_discarded_and_restored(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let mut pty = shell(subject, &repo, &["fix"], "echo x >x");
    pty.expect("1 file uncommitted");
    pty.expect("[d]iscard");
    pty.send("d\r");
    assert_eq!(pty.wait().0, 0);
    assert_eq!(repo.sandbox(&["list"]).stdout, "");
    repo.sandbox(&["trash", "restore", "fix"]).ok();
    assert_eq!(subject.exec(&repo, "fix", "cat x").ok(), "x\n");
}

fn another_branch_on_the_host_is_not_touched(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "go");
    let wait = format!("{COMMIT_TWICE}; echo ready; read line");
    let mut pty = shell(subject, &repo, &["fix"], &wait);
    pty.expect("ready");
    repo.git(&["checkout", "-q", "other"]).ok();
    pty.send("\r");
    assert_eq!(pty.wait().0, 0);
    let text = pty.text();
    assert!(text.contains("2 new commits") && text.contains("'main'") && text.contains("'other'"), "{text}");
    assert_eq!(repo.git(&["log", "-1", "--format=%s", "main"]).ok(), "Change docs/more.md\n");
    assert_eq!(repo.git(&["symbolic-ref", "HEAD"]).ok(), "refs/heads/other\n");
}

fn a_diverged_branch_is_said(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let wait = format!("{COMMIT_TWICE}; echo ready; read line");
    let mut pty = shell(subject, &repo, &["fix"], &wait);
    pty.expect("ready");
    let here = repo.commit("host.txt", "host\n");
    pty.send("\r");
    assert_eq!(pty.wait().0, 0);
    let text = pty.text();
    assert!(text.contains("2 new commits") && text.contains("git sandbox merge fix"), "{text}");
    assert_eq!(repo.id("HEAD"), here);
}

fn the_setting_merges_without_asking(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    repo.git(&["config", "sandbox.onExit", "merge"]).ok();
    subject.spawn(&repo, &["fix"], COMMIT_TWICE).ok();
    assert_eq!(repo.git(&["log", "-1", "--format=%s"]).ok(), "two\n");
    subject.spawn(&repo, &["keep", "--on-exit", "keep"], "git commit -q --allow-empty -m three").ok();
    assert_eq!(repo.git(&["log", "-1", "--format=%s"]).ok(), "two\n");
}

fn autocommit_commits_for_agents_that_never_do(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    repo.git(&["config", "sandbox.autoCommit", "true"]).ok();
    subject.spawn(&repo, &["agent"], "echo x >made.txt").ok();
    assert_eq!(repo.git(&["show", "sandbox/agent:made.txt"]).ok(), "x\n");
}

fn the_prompt_names_the_sandbox(subject: &Subject) {
    if !std::path::Path::new("/bin/bash").exists() {
        sandbox_testkit::skip!("no bash");
    }
    let repo = subject.repo(State::Plain);
    let mut command = subject.env.sandbox_command(repo.dir(), &["spawn", "--driver", subject.driver, "fix"]);
    let mut pty = Pty::spawn(command.env("SHELL", "/bin/bash"));
    pty.expect("fix");
    pty.send("echo \"shell is $0 in $GIT_SANDBOX\"\r");
    pty.expect("in fix");
    pty.send("exit\r");
    let (status, text) = pty.wait();
    assert!(status == 0 && text.contains("bash in fix"), "{status} {text}");
}
