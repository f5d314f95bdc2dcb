//! What another command, a terminal or a setting of the machine is in the way of.

use super::{nothing_half_made, plain, spawn};
use sandbox_testkit::{Pty, Repo, State, TestEnv};
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

/// The state directory's part of the only repository.
fn repo_dir(env: &TestEnv) -> PathBuf {
    let mut all = fs::read_dir(env.state().join("repos")).unwrap();
    all.next().unwrap().unwrap().path()
}

fn with_a_commit(repo: &Repo, name: &str) {
    spawn(repo, &["-q", name], &format!("echo {name} >{name}.txt; git add .; git commit -qm {name}")).ok();
}

/// It is waited for, as long as for anybody: 10 s.
#[test]
fn a_working_tree_that_another_command_changes() {
    let env = TestEnv::new();
    let repo = plain(&env);
    with_a_commit(&repo, "a");
    let mut lock = File::create(repo_dir(&env).join("merge.lock")).unwrap();
    lock.lock().unwrap();
    // As a merge of ours writes it: a command, its pid, and the second of its boot.
    lock.write_all(b"merge 4711 0\n").unwrap();
    let said = repo.sandbox(&["apply", "a"]).expect(128);
    assert!(said.stderr.contains("hint: try again when that command has ended\n"), "{said}");
    assert!(said.stderr.contains("error: busy: 'merge' by pid 4711 since "), "{said}");
    assert!(!repo.has("a.txt"));
    drop(lock);
    repo.sandbox(&["merge", "a"]).ok();
    assert!(repo.has("a.txt"));
}

#[test]
fn a_check_of_several_repositories() {
    let env = TestEnv::new();
    let repo = plain(&env);
    State::Plain.build(&env, "lib");
    let both = "for tree in . ../lib; do (cd $tree && echo x >x.txt && git add . && git commit -qm x) || exit 1; done";
    spawn(&repo, &["-q", "s", "--with", "../lib"], both).ok();
    let said = repo.sandbox(&["merge", "--check", "true", "s"]).expect(129);
    assert!(said.stderr.contains("error: 's' has several repositories, and a check knows one\n"), "{said}");
    assert!(
        said.stderr.contains("hint: `--only PATH` merges one repository; `--no-check` merges all of them"),
        "{said}"
    );
    assert!(!repo.has("x.txt"));
    repo.sandbox(&["merge", "--check", "test -e x.txt", "--only", ".", "s"]).expect(0);
    assert!(repo.has("x.txt") && !repo.has("../lib/x.txt"));
    // A setting is no way around it, and the flag says so for once.
    repo.git(&["config", "sandbox.check", "true"]).ok();
    let said = repo.sandbox(&["merge", "s"]).expect(129);
    assert!(said.stderr.contains("a check knows one"), "{said}");
    repo.sandbox(&["merge", "--no-check", "s"]).expect(0);
    assert!(repo.has("../lib/x.txt"));
}

#[test]
fn a_patch_is_not_for_a_terminal() {
    let env = TestEnv::new();
    let repo = plain(&env);
    with_a_commit(&repo, "a");
    let mut shown = Pty::spawn(&env.sandbox_command(repo.dir(), &["diff", "--patch", "a"]));
    let (status, text) = shown.wait();
    assert_eq!(status, 129, "{text}");
    assert!(text.contains("error: a patch for other tools is not safe for a terminal"), "{text}");
    assert!(text.contains("hint: `git sandbox diff --patch NAME >FILE`"), "{text}");
    assert!(repo.sandbox(&["diff", "--patch", "a"]).ok().contains("+++ b/a.txt\n"));
}

#[test]
fn a_branch_without_a_commit() {
    let env = TestEnv::new();
    let repo = plain(&env);
    with_a_commit(&repo, "a");
    repo.git(&["checkout", "-q", "--orphan", "empty"]).ok();
    let said = repo.sandbox(&["pick", "a"]).expect(128);
    assert!(said.stderr.contains("error: 'empty' has no commit yet\n"), "{said}");
    assert!(said.stderr.contains("hint: `git sandbox merge a` takes all of its commits\n"), "{said}");
}

#[test]
fn a_machine_whose_administrator_requires_a_layer() {
    let env = TestEnv::new();
    let repo = plain(&env);
    // What the system's configuration requires, no flag lowers.
    let system = env.root().join("system.gitconfig");
    fs::write(&system, "[sandbox]\n\trequire = landlock\n").unwrap();
    let mut command = env.sandbox_command(repo.dir(), &["spawn", "--allow-weak", "landlock", "--", "true"]);
    let said = env.run(command.env("GIT_CONFIG_SYSTEM", &system).env_remove("GIT_CONFIG_NOSYSTEM"));
    assert_eq!(said.status, 125, "{said}");
    assert!(said.stderr.contains("error: 'landlock' is required by the configuration of this system\n"), "{said}");
    assert!(said.stderr.contains("hint: `git config --system sandbox.require` tells all that is"), "{said}");
    nothing_half_made(&repo);
}
