//! Work that cannot come home, and sandboxes that cannot go.

use super::{plain, spawn};
use insta::assert_snapshot;
use sandbox_testkit::{State, TestEnv};
use std::fs;

#[test]
fn a_merge_with_conflicts() {
    let env = TestEnv::new();
    let repo = plain(&env);
    spawn(&repo, &["s"], "echo there >src/a.c; echo new >new; git add -A; git commit -qm there").ok();
    repo.write("src/a.c", "here, uncommitted\n");
    repo.write("new", "untracked here\n");
    assert_snapshot!(repo.sandbox(&["merge", "s"]), @r#"
        ---- stderr
        error: cannot merge 's'
        caused by: 'new' is untracked here and has another content there
        caused by: 'src/a.c' changed here since the sandbox was spawned, and there too
        hint: nothing was written; commit or stash the files named and merge again, bring the changes as uncommitted edits with `git sandbox apply s`, or keep the commits on a branch of their own with `git sandbox branch s BRANCH`
        ---- status 1
        "#);
    repo.git(&["checkout", "-q", "src/a.c"]).ok();
    fs::remove_file(repo.dir().join("new")).unwrap();
    repo.commit("src/a.c", "here, committed\n");
    let short = |name: &str| repo.id(name)[..7].to_owned();
    let seen = repo.sandbox(&["merge", "s"]).to_string();
    let seen = seen.replace(&short("HEAD"), "[HERE]").replace(&short("sandbox/s"), "[THERE]");
    assert_snapshot!(seen, @r#"
        ---- stderr
        error: cannot merge 's'
        caused by: 'src/a.c' conflicts in the commits: Merge conflict in src/a.c
        caused by: here: [HERE] Change src/a.c
        caused by: there: [THERE] there
        hint: nothing was written; `git sandbox merge --into-sandbox s` opens a sandbox to resolve it, `--markers` begins the merge here with conflict markers, `--resolve ours` (or `theirs`, `theirs:PATH`) takes a side, `git sandbox branch s BRANCH` keeps the commits on a branch of their own
        ---- status 1
        "#);
    assert_snapshot!(repo.sandbox(&["merge", "--ff-only", "s"]), @r#"
        ---- stderr
        error: cannot fast-forward to 's': 'main' has 1 commit that it has not
        hint: `git sandbox merge s` makes a merge commit; `git sandbox branch s BRANCH` keeps the commits on a branch of their own
        ---- status 1
        "#);
    assert_eq!(repo.git(&["status", "--porcelain"]).ok(), "");
}

#[test]
fn nothing_to_take() {
    let env = TestEnv::new();
    let repo = plain(&env);
    spawn(&repo, &["s"], "true").ok();
    assert_snapshot!(repo.sandbox(&["merge", "s"]), @r#"
        ---- stderr
        nothing to merge from 's'
        ---- status 1
        "#);
    assert_snapshot!(repo.sandbox(&["apply", "s"]), @r#"
        ---- stderr
        nothing changed in 's'
        ---- status 1
        "#);
    assert_snapshot!(repo.sandbox(&["commit", "s", "-m", "Nothing"]), @r#"
        ---- stderr
        nothing to commit in 's'
        ---- status 1
        "#);
    assert_snapshot!(repo.sandbox(&["fetch", "s"]), @r#"
        ---- stderr
        s: nothing new
        ---- status 0
        "#);
    assert_snapshot!(repo.sandbox(&["log", "s"]), @r#"
        ---- stderr
        no commits in 's'
        ---- status 0
        "#);
    assert_snapshot!(repo.sandbox(&["diff", "s"]), @r#"
        ---- stderr
        no commits in 's'
        ---- status 0
        "#);
}

#[test]
fn histories_with_nothing_in_common() {
    let env = TestEnv::new();
    let repo = plain(&env);
    spawn(&repo, &["s"], "git checkout -q --orphan new; git commit -qm new").ok();
    assert_snapshot!(repo.sandbox(&["merge", "s"]), @r#"
        ---- stderr
        error: 's' and 'main' have no commit in common
        hint: `git sandbox branch s BRANCH` keeps the commits on a branch of their own; `git sandbox apply s` brings the changes as uncommitted edits
        ---- status 1
        "#);
}

#[test]
fn a_merge_during_a_rebase() {
    let env = TestEnv::new();
    let repo = plain(&env);
    spawn(&repo, &["s"], "echo s >s; git add s; git commit -qm s").ok();
    repo.git(&["rebase", "-q", "other"]).expect(1);
    assert_snapshot!(repo.sandbox(&["merge", "s"]), @r#"
        ---- stderr
        error: a rebase is in progress in '[REPO]'
        hint: finish it with `git rebase --continue`, or leave it with `git rebase --abort`
        ---- status 128
        "#);
    assert!(!repo.has("s"));
}

#[test]
fn a_merge_while_git_is_at_work() {
    let env = TestEnv::new();
    let repo = plain(&env);
    spawn(&repo, &["s"], "echo s >s; git add s; git commit -qm s").ok();
    repo.write(".git/index.lock", "");
    assert_snapshot!(repo.sandbox(&["merge", "s"]), @r#"
        ---- stderr
        error: '[REPO]/.git/index.lock' exists: another git process seems to be at work here
        hint: if no git process is running here any more, remove '[REPO]/.git/index.lock'
        ---- status 128
        "#);
    assert!(repo.has(".git/index.lock") && !repo.has("s"));
}

#[test]
fn edits_that_cannot_be_applied() {
    let env = TestEnv::new();
    let repo = plain(&env);
    spawn(&repo, &["s"], "echo there >src/a.c").ok();
    repo.write("src/a.c", "here\n");
    assert_snapshot!(repo.sandbox(&["apply", "s"]), @r#"
        ---- stderr
        error: cannot apply the changes of 's'
        caused by: 'src/a.c' changed here since the sandbox was spawned, and there too
        hint: nothing was written; commit or stash the files named and apply again, or `git sandbox apply --stash s` puts the changes into the stash
        ---- status 1
        "#);
    assert_eq!(repo.read("src/a.c"), "here\n");
    let unborn = State::Unborn.build(&env, "unborn");
    spawn(&unborn, &["u"], "echo x >x").ok();
    assert_snapshot!(unborn.sandbox(&["apply", "--stash", "u"]), @r#"
        ---- stderr
        error: a stash needs a commit, and there is none
        hint: `git sandbox apply u` brings the files as edits
        ---- status 128
        "#);
    assert_snapshot!(unborn.sandbox(&["branch", "u", "topic"]), @r#"
        ---- stderr
        error: the sandbox 'u' has no commit
        hint: `git sandbox commit u -m MSG` makes one of its files
        ---- status 1
        "#);
    assert_snapshot!(unborn.sandbox(&["merge", "u"]), @r#"
        ---- stderr
        nothing to merge from 'u'
        hint: 1 file is not committed there: `git sandbox apply u` brings it, `git sandbox commit u -m MSG` commits it
        ---- status 1
        "#);
}

#[test]
fn a_branch_that_cannot_be_made() {
    let env = TestEnv::new();
    let repo = plain(&env);
    spawn(&repo, &["s"], "echo s >s; git add s; git commit -qm s").ok();
    assert_snapshot!(repo.sandbox(&["branch", "s", "other"]), @r#"
        ---- stderr
        error: cannot make the branch 'other'
        caused by: a branch named 'other' already exists
        hint: take another name
        ---- status 128
        "#);
    assert_snapshot!(repo.sandbox(&["branch", "s", "not..valid"]), @r#"
        ---- stderr
        error: cannot make the branch 'not..valid'
        caused by: 'not..valid' is not a valid branch name
        hint: take another name
        ---- status 128
        "#);
}

#[test]
fn a_commit_that_a_hook_refuses() {
    let env = TestEnv::new();
    let repo = plain(&env);
    spawn(&repo, &["s"], "echo s >s; printf '#!/bin/sh\necho no commits today\nexit 1\n' >.git/hooks/pre-commit; chmod +x .git/hooks/pre-commit").ok();
    assert_snapshot!(repo.sandbox(&["commit", "s", "-m", "Try"]), @r#"
        ---- stderr
        error: `git commit` failed inside 's'
        caused by: no commits today
        hint: `git sandbox shell s` opens a shell to look at it
        ---- status 128
        "#);
}

#[test]
fn a_sandbox_that_is_busy_or_has_work_is_not_dropped() {
    let env = TestEnv::new();
    let repo = plain(&env);
    repo.sandbox(&["spawn", "-d", "busy", "--", "sleep", "60"]).ok();
    assert_snapshot!(repo.sandbox(&["drop", "busy"]), @r#"
        ---- stderr
        error: cannot drop 'busy': a command runs in it
        hint: `git sandbox stop busy` ends it; `--force` does both and keeps everything in the trash
        ---- status 1
        "#);
    spawn(&repo, &["files"], "echo 1 >1; echo 2 >2; echo 3 >3; echo 4 >4").ok();
    assert_snapshot!(repo.sandbox(&["drop", "files"]), @r#"
        ---- stderr
        error: cannot drop 'files': the host has not got everything
        caused by: 4 files not committed: '1', '2', '3', …
        hint: `git sandbox apply files` takes the files, `git sandbox commit files -m MSG` commits them
        hint: `git sandbox drop --force files` moves it to the trash for 30 days
        ---- status 1
        "#);
    spawn(
        &repo,
        &["commits"],
        "echo x >x; git add x; git commit -qm x; git checkout -qb side; echo y >y; git add y; git commit -qm y",
    )
    .ok();
    assert_snapshot!(repo.sandbox(&["drop", "commits"]), @r#"
        ---- stderr
        error: cannot drop 'commits': the host has not got everything
        caused by: 2 commits only at refs/sandbox/commits: no branch or tag here contains them
        hint: `git sandbox merge commits` or `git sandbox branch commits BRANCH` takes the commits
        hint: `git sandbox drop --force commits` moves it to the trash for 30 days
        ---- status 1
        "#);
    spawn(&repo, &["empty"], "true").ok();
    let all = repo.sandbox(&["drop", "--all"]);
    assert_eq!(all.status, 1, "{all}");
    assert!(all.stderr.contains("dropped 'empty'\n"), "{all}");
    repo.sandbox(&["stop", "busy", "--grace", "0s"]).ok();
}

#[test]
fn trash_that_is_not_there() {
    let env = TestEnv::new();
    let repo = plain(&env);
    assert_snapshot!(repo.sandbox(&["trash"]), @r#"
        ---- stderr
        the trash is empty
        ---- status 0
        "#);
    assert_snapshot!(repo.sandbox(&["trash", "restore", "x"]), @r#"
        ---- stderr
        error: there is no 'x' in the trash
        hint: `git sandbox trash list` shows what is
        ---- status 128
        "#);
    spawn(&repo, &["x"], "echo 1 >1").ok();
    assert_snapshot!(repo.sandbox(&["drop", "--force", "x"]), @r#"
        ---- stderr
        dropped 'x' into the trash
        hint: `git sandbox trash restore x` brings it back for 30 days
        ---- status 0
        "#);
    assert_snapshot!(repo.sandbox(&["trash", "empty"]), @r#"
        ---- stderr
        error: emptying the trash cannot be undone
        hint: `git sandbox trash empty --yes` does it
        ---- status 129
        "#);
    spawn(&repo, &["x"], "echo 2 >2").ok();
    assert_snapshot!(repo.sandbox(&["trash", "restore", "x"]), @r#"
        ---- stderr
        restored 'x' as 'x-2', since there is a new 'x': `git sandbox start x-2` goes on
        ---- status 0
        "#);
    repo.sandbox(&["drop", "--force", "x"]).ok();
    assert_snapshot!(repo.sandbox(&["trash", "restore", "x"]), @r#"
        ---- stderr
        restored 'x': `git sandbox start x` goes on
        ---- status 0
        "#);
    for _ in 0..2 {
        spawn(&repo, &["twice"], "echo 1 >1").ok();
        repo.sandbox(&["drop", "--force", "twice"]).ok();
    }
    assert_snapshot!(repo.sandbox(&["trash", "restore", "twice"]), @r#"
        ---- stderr
        error: there is more than one 'twice' in the trash
        hint: by its id: `git sandbox trash restore [ID]`
        ---- status 128
        "#);
    assert_snapshot!(repo.sandbox(&["trash", "empty", "--yes"]), @r#"
        ---- stderr
        deleted 2 dropped sandboxes
        ---- status 0
        "#);
    assert_snapshot!(repo.sandbox(&["trash", "empty", "--yes"]), @r#"
        ---- stderr
        the trash is empty
        ---- status 0
        "#);
}

#[test]
fn files_that_cannot_be_copied() {
    let env = TestEnv::new();
    let repo = plain(&env);
    spawn(&repo, &["s"], "head -c 5000 /dev/zero >large; ln -s /etc/passwd symlink; mkdir d; echo f >d/f").ok();
    assert_snapshot!(repo.sandbox(&["cp", "s:no/such", "."]), @r#"
        ---- stderr
        error: there is no 'no/such' in the sandbox
        hint: paths are relative to the top of the working tree
        ---- status 1
        "#);
    assert_snapshot!(repo.sandbox(&["cp", "s:../other", "."]), @r#"
        ---- stderr
        error: '../other' is not below the work tree
        hint: paths in a sandbox are relative to the top of its work tree
        ---- status 129
        "#);
    assert_snapshot!(repo.sandbox(&["cp", "s:/etc/passwd", "."]), @r#"
        ---- stderr
        error: '/etc/passwd' is not below the work tree
        hint: paths in a sandbox are relative to the top of its work tree
        ---- status 129
        "#);
    assert_snapshot!(repo.sandbox(&["cp", "s:large", ".", "--max-size", "1k"]), @r#"
        ---- stderr
        error: 'large' is more than 1024 bytes
        hint: `--max-size SIZE` allows more
        ---- status 128
        "#);
    assert_snapshot!(repo.sandbox(&["cp", "s:symlink", "."]), @r#"
        ---- stderr
        skipped 'symlink': a symbolic link
        copied 0 files, 0 B
        ---- status 1
        "#);
    assert_snapshot!(repo.sandbox(&["cp", "s:large", "no/such/directory/"]), @r#"
        ---- stderr
        error: there is no directory 'no/such'
        hint: `mkdir -p 'no/such'` makes it
        ---- status 128
        "#);
    assert_snapshot!(repo.sandbox(&["cp", "no-such:large", "."]), @r#"
        ---- stderr
        error: no sandbox named 'no-such'
        hint: `git sandbox list` shows them all
        ---- status 128
        "#);
    assert!(!repo.has("large") && !repo.has("symlink"));
    assert_snapshot!(repo.sandbox(&["cp", "no-such", "s:x"]), @r#"
        ---- stderr
        error: cannot read 'no-such'
        caused by: No such file or directory (os error 2)
        ---- status 128
        "#);
    assert_snapshot!(repo.sandbox(&["cp", "src", "s:x"]), @r#"
        ---- stderr
        error: 'src' is not a regular file
        hint: directories: `tar c DIR | git sandbox exec NAME -- tar x`
        ---- status 128
        "#);
    assert_snapshot!(repo.sandbox(&["cp", "src/a.c", "s:../x"]), @r#"
        ---- stderr
        error: '../x' is not below the work tree
        hint: paths in a sandbox are relative to the top of its work tree
        ---- status 129
        "#);
    assert_snapshot!(repo.sandbox(&["cp", "src/a.c", "s:x", "--max-size", "1"]), @r#"
        ---- stderr
        error: 'src/a.c' is larger than 1 B
        hint: `--max-size SIZE` allows more
        ---- status 128
        "#);
    let seen = repo.sandbox(&["cp", "src/a.c", "s:large/x"]);
    assert!(seen.stderr.starts_with("error: cannot write 'large/x' inside 's'\ncaused by: mkdir: "), "{seen}");
    assert_eq!(seen.status, 128);
    repo.sandbox(&["cp", "src/a.c", "s:d"]).ok();
    assert_eq!(repo.sandbox(&["exec", "s", "--", "ls", "-A", "d", "large"]).ok(), "large\n\nd:\na.c\nf\n");
}
