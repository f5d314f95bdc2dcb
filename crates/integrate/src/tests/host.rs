//! States of the host in which a merge is made, or refused by name.

use super::{World, chain};
use crate::{How, MergeError, Operation, Relation, apply, commits, diffstat, relation};

fn one_commit(world: &World) {
    world.agent_write("a", "2\n");
    world.agent(&["add", "-A"]);
    world.agent(&["commit", "-qm", "two"]);
}

#[test]
fn unborn_here_and_committed_there() {
    let mut world = World::unborn();
    world.write("a", "1\n");
    world.write("mine", "m\n");
    world.git(&["add", "mine"]);
    world.spawn();
    world.agent(&["add", "a"]);
    world.agent(&["commit", "-qm", "first", "a"]);
    assert_eq!(world.merged(), "A  mine\n");
    assert_eq!(world.git(&["log", "--format=%s"]), "first\n");
}

#[test]
fn detached_head_moves_alone() {
    let mut world = World::new(&[("a", "1\n")]);
    world.git(&["checkout", "-q", "--detach"]);
    world.spawn();
    one_commit(&world);
    let main = world.git(&["rev-parse", "main"]);
    assert_eq!(world.merged(), "");
    assert_eq!(world.git(&["rev-parse", "main"]), main);
    assert_eq!(world.git(&["rev-parse", "HEAD"]), world.git(&["rev-parse", "refs/sandbox/fix"]));
}

#[test]
fn another_branch_gets_a_merge_of_its_own() {
    let mut world = World::new(&[("a", "1\n"), ("c", "1\n")]);
    world.spawn();
    one_commit(&world);
    world.git(&["checkout", "-qb", "topic"]);
    world.write("c", "3\n");
    world.git(&["commit", "-qam", "topic"]);
    let plan = world.plan(How::FastForward).unwrap();
    insta::with_settings!({ filters => vec![("[0-9a-f]{7}", "<id>")] }, {
        insta::assert_snapshot!(plan.describe(), @r"
        merge 'fix' into 'topic', 1 commit beside 1 commit
          write  a
        move refs/heads/topic from <id> to <id>
        ");
    });
    assert_eq!(world.merged(), "");
    assert_eq!(world.git(&["log", "-1", "--format=%s"]), "Merge sandbox 'fix' into topic\n");
}

#[test]
fn a_linked_worktree_is_merged_into_by_itself() {
    let mut world = World::new(&[("a", "1\n")]);
    let main = world.host.clone();
    let linked = main.parent().unwrap().join("linked");
    world.git(&["worktree", "add", "-q", "-b", "side", linked.to_str().unwrap()]);
    // The sandbox of a linked worktree has a git directory of its own.
    world.spawn();
    one_commit(&world);
    world.host = linked;
    assert_eq!(world.merged(), "");
    assert_eq!(world.read("a"), "2\n");
    assert_eq!(std::fs::read_to_string(main.join("a")).unwrap(), "1\n");
    assert_eq!(world.git(&["log", "-1", "--format=%s", "side"]), "two\n");
    assert_eq!(world.git(&["log", "-1", "--format=%s", "main"]), "base\n");
}

#[test]
fn diverged_and_only_a_fast_forward_asked() {
    let mut world = World::new(&[("a", "1\n"), ("c", "1\n")]);
    world.spawn();
    one_commit(&world);
    world.write("c", "2\n");
    world.git(&["commit", "-qam", "c"]);
    assert_eq!(
        world.refused_as(How::FastForwardOnly),
        "cannot fast-forward to 'fix': 'main' has 1 commit that it has not"
    );
}

#[test]
fn commits_that_conflict_name_the_files() {
    let mut world = World::new(&[("a", "1\n"), ("c", "1\n")]);
    world.spawn();
    one_commit(&world);
    world.write("a", "3\n");
    world.git(&["commit", "-qam", "three"]);
    world.write("c", "dirty\n");
    assert_eq!(world.refused(), "cannot merge 'fix'\n'a' conflicts in the commits: Merge conflict in a");
    let error = world.plan(How::NoFf).unwrap_err();
    let hint = error.hint().unwrap();
    let names = ["`git sandbox merge --into-sandbox fix`", "`--resolve ours`", "`git sandbox branch fix BRANCH`"];
    assert!(names.iter().all(|name| hint.contains(name)), "{hint}");
}

#[test]
fn merge_attributes_of_the_host_count_and_incoming_ones_do_not() {
    let mut world =
        World::new(&[("log", "1\n"), ("own", "1\n"), (".gitattributes", "log merge=union\nown merge=mine\n")]);
    let canary = world.host.parent().unwrap().join("canary");
    world.git(&["config", "merge.mine.driver", &format!("touch {}", canary.display())]);
    world.git(&["config", "merge.theirs.driver", &format!("touch {}", canary.display())]);
    world.spawn();
    world.agent_write("log", "1\nthere\n");
    world.agent(&["commit", "-qam", "log"]);
    world.write("log", "1\nhere\n");
    world.git(&["commit", "-qam", "log"]);
    assert_eq!(world.merged(), "");
    assert_eq!(world.read("log"), "1\nhere\nthere\n");

    world.spawn_again();
    world.agent_write("own", "there\n");
    world.agent_write(".gitattributes", "own merge=theirs\n");
    world.agent(&["commit", "-qam", "own"]);
    world.write("own", "here\n");
    world.git(&["commit", "-qam", "own"]);
    assert!(world.refused().contains("is merged by driver 'mine', which is not run"));
    assert!(!canary.exists());
}

#[test]
fn unrelated_histories() {
    let mut world = World::new(&[("a", "1\n")]);
    world.spawn();
    world.agent(&["checkout", "-q", "--orphan", "other"]);
    one_commit(&world);
    assert_eq!(world.refused(), "'fix' and 'main' have no commit in common");
}

#[test]
fn history_rewritten_inside_merges_from_the_merge_base() {
    let mut world = World::new(&[("a", "1\n"), ("b", "1\n")]);
    world.write("b", "2\n");
    world.git(&["commit", "-qam", "second"]);
    world.spawn();
    world.agent(&["reset", "-q", "--hard", "HEAD^"]);
    one_commit(&world);
    assert_eq!(world.merged(), "");
    assert_eq!((world.read("a").as_str(), world.read("b").as_str()), ("2\n", "2\n"));
}

#[test]
fn operations_in_progress_are_refused_by_name() {
    let conflict = || {
        let mut world = World::new(&[("a", "1\n")]);
        world.git(&["branch", "side"]);
        world.spawn();
        one_commit(&world);
        world.write("a", "main\n");
        world.git(&["commit", "-qam", "main"]);
        world.git(&["checkout", "-q", "side"]);
        world.write("a", "side\n");
        world.git(&["commit", "-qam", "side"]);
        world
    };
    let cases: [(&[&str], Operation); 4] = [
        (&["merge", "main"], Operation::Merge),
        (&["rebase", "main"], Operation::Rebase),
        (&["cherry-pick", "main"], Operation::CherryPick),
        (&["bisect", "start"], Operation::Bisect),
    ];
    for (args, expected) in cases {
        let world = conflict();
        world.try_git(args);
        world.land();
        let before = world.everything();
        match world.merge(How::FastForward) {
            Err(MergeError::InProgress { operation, .. }) => assert_eq!(operation, expected),
            other => panic!("{args:?}: {other:?}"),
        }
        assert_eq!(before, world.everything());
    }
}

#[test]
fn an_unmerged_index_is_refused() {
    let mut world = World::new(&[("a", "1\n")]);
    world.spawn();
    one_commit(&world);
    world.write("a", "dirty\n");
    world.git(&["stash", "-q"]);
    world.write("a", "main\n");
    world.git(&["commit", "-qam", "main"]);
    assert!(!world.try_git(&["stash", "pop"]));
    assert_eq!(world.refused(), "'a' has an unresolved conflict in the index");
}

#[test]
fn a_lock_of_somebody_else_is_reported_and_stays() {
    let mut world = World::new(&[("a", "1\n")]);
    world.spawn();
    one_commit(&world);
    let plan = world.plan(How::FastForward).unwrap();
    let lock = world.host.join(".git/index.lock");
    std::fs::write(&lock, "").unwrap();
    let before = world.everything();
    let error = apply(&world.repo(), &plan, &world.undo_dir()).unwrap_err();
    assert!(matches!(&error, MergeError::Locked { path } if *path == lock), "{}", chain(&error));
    assert_eq!(before, world.everything());
    assert!(lock.exists());
}

#[test]
fn a_locked_branch_is_reported_and_nothing_is_written() {
    let mut world = World::new(&[("a", "1\n")]);
    world.spawn();
    one_commit(&world);
    let plan = world.plan(How::FastForward).unwrap();
    std::fs::write(world.host.join(".git/refs/heads/main.lock"), "").unwrap();
    let before = world.everything();
    assert!(matches!(apply(&world.repo(), &plan, &world.undo_dir()), Err(MergeError::Git(_))));
    assert_eq!(before, world.everything());
    assert!(!world.host.join(".git/index.lock").exists());
}

#[test]
fn what_changed_after_the_plan_is_noticed() {
    type Change = fn(&World);
    let changes: [(&str, Change); 4] = [
        ("'a'", |world| world.write("a", "1 changed\n")),
        ("the index", |world| {
            world.write("n", "n\n");
            world.git(&["add", "n"]);
        }),
        ("HEAD", |world| drop(world.git(&["commit", "-q", "--allow-empty", "-m", "x"]))),
        ("HEAD", |world| drop(world.git(&["checkout", "-qb", "other"]))),
    ];
    for (what, change) in changes {
        let mut world = World::new(&[("a", "1\n")]);
        world.spawn();
        one_commit(&world);
        let plan = world.plan(How::FastForward).unwrap();
        change(&world);
        let before = world.everything();
        let error = apply(&world.repo(), &plan, &world.undo_dir()).unwrap_err();
        assert_eq!(error.to_string(), format!("{what} changed meanwhile"));
        assert_eq!(before, world.everything());
    }
}

#[test]
fn a_refreshed_index_is_no_change() {
    let mut world = World::new(&[("a", "1\n"), ("b", "1\n")]);
    world.spawn();
    one_commit(&world);
    let plan = world.plan(How::FastForward).unwrap();
    world.write("b", "1\n");
    world.git(&["update-index", "--refresh"]);
    apply(&world.repo(), &plan, &world.undo_dir()).unwrap();
    assert_eq!(world.status(), "");
}

#[test]
fn sparse_checkouts_stay_sparse() {
    let mut world = World::new(&[("in/a", "1\n"), ("out/b", "1\n"), ("top", "1\n")]);
    world.git(&["sparse-checkout", "set", "--cone", "in"]);
    world.spawn();
    world.agent(&["sparse-checkout", "disable"]);
    for path in ["in/a", "out/b", "out/new", "in/new", "gone/x"] {
        world.agent_write(path, "2\n");
    }
    world.agent(&["add", "-A"]);
    world.agent(&["commit", "-qm", "all"]);
    assert_eq!(world.merged(), "");
    assert_eq!(world.read("in/a"), "2\n");
    assert_eq!(world.read("in/new"), "2\n");
    for path in ["out/b", "out/new", "gone/x"] {
        assert!(!world.exists(path), "{path}");
        assert_eq!(world.git(&["show", &format!(":{path}")]), "2\n");
    }
}

#[test]
fn a_sha256_repository() {
    let mut world = World::unborn();
    std::fs::remove_dir_all(world.host.join(".git")).unwrap();
    world.git(&["init", "-q", "--object-format=sha256"]);
    world.write("a", "1\n");
    world.write("b", "1\n");
    world.git(&["add", "-A"]);
    world.git(&["commit", "-qm", "base"]);
    world.write("b", "user\n");
    world.spawn();
    one_commit(&world);
    world.write("c", "1\n");
    world.git(&["add", "c"]);
    world.git(&["commit", "-qm", "c", "c"]);
    assert_eq!(world.merged(), "");
    assert_eq!(world.read("b"), "user\n");
}

#[test]
fn a_split_index_and_a_shallow_history() {
    let mut world = World::new(&[("a", "1\n"), ("c", "1\n")]);
    world.git(&["commit", "-q", "--allow-empty", "-m", "second"]);
    let origin = world.host.clone();
    let shallow = origin.parent().unwrap().join("shallow");
    let url = format!("file://{}", origin.display());
    world.git(&["clone", "-q", "--depth=1", &url, shallow.to_str().unwrap()]);
    world.host = shallow;
    world.git(&["update-index", "--split-index"]);
    world.spawn();
    one_commit(&world);
    world.write("c", "2\n");
    world.git(&["commit", "-qam", "c"]);
    assert_eq!(world.merged(), "");
}

#[test]
fn hooks_do_not_run() {
    let mut world = World::new(&[("a", "1\n")]);
    let canary = world.host.parent().unwrap().join("canary");
    for hook in ["reference-transaction", "post-index-change", "post-merge", "post-checkout", "pre-merge-commit"] {
        let path = world.host.join(".husky").join(hook);
        world.write(&format!(".husky/{hook}"), format!("#!/bin/sh\ntouch {}\n", canary.display()));
        World::chmod(path, 0o755);
    }
    world.git(&["add", "-A"]);
    world.git(&["commit", "-qm", "hooks"]);
    world.spawn();
    one_commit(&world);
    world.land();
    world.git(&["config", "core.hooksPath", ".husky"]);
    world.git(&["config", "core.fsmonitor", &format!("touch {}", canary.display())]);
    let tip =
        world.git(&["-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "rev-parse", "refs/sandbox/fix"]);
    let identity = super::identity();
    let request = crate::MergeRequest {
        name: super::NAME,
        base: world.base,
        tip: sandbox_git::Oid::parse(tip.trim()).unwrap(),
        captured: None,
        captured_index: None,
        left_inside: None,
        how: How::NoFf,
        choices: &crate::UNDECIDED,
        message: Some("m"),
        identity: &identity,
    };
    let repo = world.repo();
    let _ = std::fs::remove_file(&canary);
    let plan = crate::plan(&repo, &request).unwrap();
    apply(&repo, &plan, &world.undo_dir()).unwrap();
    assert!(!canary.exists());
    assert_eq!(world.read("a"), "2\n");
}

#[test]
fn relation_log_and_statistics() {
    let mut world = World::new(&[("a", "1\n2\n"), ("old name", "1\n2\n3\n4\n")]);
    world.spawn();
    let repo = world.repo();
    let head = world.base;
    assert_eq!(relation(&repo, head, world.land()).unwrap(), Relation::Contained);
    world.agent(&["mv", "old name", "new name"]);
    world.agent_write("a", "1\n2 \u{1b}[31m\n");
    world.agent(&["commit", "-qam", "subject\n\nbody\nof it"]);
    let tip = world.land();
    assert_eq!(relation(&repo, head, tip).unwrap(), Relation::FastForward { ahead: 1 });
    assert_eq!(relation(&repo, None, tip).unwrap(), Relation::FastForward { ahead: 2 });
    assert_eq!(relation(&repo, Some(tip), head.unwrap()).unwrap(), Relation::Contained);
    let list = commits(&repo, head, tip, None).unwrap();
    assert_eq!(list.len(), 1);
    assert_eq!((list[0].subject.as_str(), list[0].body.as_str()), ("subject", "body\nof it"));
    assert_eq!((list[0].parents.as_slice(), list[0].authored), ([head.unwrap()].as_slice(), 1_000_000_000));
    assert_eq!(commits(&repo, None, tip, Some(1)).unwrap(), list);
    assert_eq!(commits(&repo, None, tip, None).unwrap().len(), 2);
    let stat = diffstat(&repo, head, tip).unwrap();
    assert_eq!(
        stat.text(),
        " a                    |   2 +-\n old name => new name |   0\n 2 files changed, 1 insertion(+), 1 deletion(-)\n"
    );
    world.write("a", "other\n");
    world.git(&["commit", "-qam", "here"]);
    let here = sandbox_git::Oid::parse(world.git(&["rev-parse", "HEAD"]).trim());
    assert_eq!(relation(&repo, here, tip).unwrap(), Relation::Diverged { ahead: 1, behind: 1 });
    assert_eq!(diffstat(&repo, here, tip).unwrap(), stat);
    assert!(
        String::from_utf8(crate::patch(&repo, here, tip, crate::Form::Read).unwrap())
            .unwrap()
            .contains("rename to new name")
    );
}
