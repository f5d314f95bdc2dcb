//! Merges that fail or are cut half-way, and merges that are taken back.

use super::World;
use crate::work::fault::{AFTER, Fault};
use crate::{How, MergeError, Standing, apply, restore, standing};
use std::path::Path;

/// Files that are changed, added, removed, merged, and change places with directories.
fn world() -> World {
    let mut world =
        World::new(&[("change", "1\n2\n3\n"), ("d/gone", "1\n"), ("x", "1\n"), ("e/f", "1\n"), ("dirty", "1\n2\n3\n")]);
    World::chmod(world.host.join("change"), 0o640);
    world.write("dirty", "1\n2\n3 user\n");
    world.write("untracked", "u\n");
    world.spawn();
    world.agent(&["rm", "-qr", "d", "x", "e"]);
    world.agent_write("change", "1\n2\n3 agent\n");
    world.agent_write("dirty", "1 agent\n2\n3 user\n");
    world.agent_write("x/new", "2\n");
    world.agent_write("e", "2\n");
    world.agent_write("p/q/r", "2\n");
    world.agent(&["add", "-A"]);
    world.agent(&["commit", "-qm", "all"]);
    world
}

#[test]
fn a_failure_at_any_step_puts_everything_back() {
    let world = world();
    let plan = world.plan(How::FastForward).unwrap();
    let before = world.everything();
    let mut steps = 0;
    loop {
        AFTER.with(|after| after.set(Some((steps, Fault::Fail))));
        let undo = world.undo_dir();
        let result = apply(&world.repo(), &plan, &undo);
        AFTER.with(|after| after.set(None));
        match result {
            Ok(_) => break,
            Err(error) => assert!(matches!(error, MergeError::Io { .. }), "{error}"),
        }
        assert_eq!(before, world.everything(), "after {steps} steps");
        assert!(!undo.exists());
        assert_eq!(leftovers(&world.host), Vec::<String>::new());
        steps += 1;
    }
    assert!(steps > 10, "only {steps} steps were tried");
    assert_eq!(world.status(), "");
}

/// Our names in the git directory.
fn leftovers(host: &Path) -> Vec<String> {
    let names = std::fs::read_dir(host.join(".git")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(".sandbox") || name.ends_with(".lock")).collect()
}

#[test]
fn a_merge_is_taken_back() {
    let world = world();
    let (before, head) = (world.status(), world.git(&["rev-parse", "HEAD"]));
    let merged = world.merge(How::FastForward).unwrap();
    assert_eq!(world.status(), "");
    restore(&world.repo(), &merged.undo.unwrap()).unwrap();
    assert_eq!(world.status(), before);
    assert_eq!(world.git(&["rev-parse", "HEAD"]), head);
    assert_eq!(world.read("dirty"), "1\n2\n3 user\n");
    assert_eq!(world.read("e/f"), "1\n");
    assert!(!world.exists("p"));
    use std::os::unix::fs::MetadataExt;
    assert_eq!(std::fs::metadata(world.host.join("change")).unwrap().mode() & 0o777, 0o640);
}

#[test]
fn work_after_the_merge_is_not_taken_back() {
    let world = world();
    let undo = world.merge(How::FastForward).unwrap().undo.unwrap();
    world.write("change", "later\n");
    let before = world.everything();
    let error = restore(&world.repo(), &undo).unwrap_err();
    assert_eq!(error.to_string(), "'change' changed since the merge");
    assert_eq!(before, world.everything());
    world.git(&["commit", "-qam", "later"]);
    let before = world.everything();
    restore(&world.repo(), &undo).unwrap_err();
    assert_eq!(before, world.everything());
}

#[test]
fn how_far_a_merge_came() {
    let world = world();
    let old = world.git(&["rev-parse", "HEAD"]).trim().to_owned();
    let undo = world.merge(How::FastForward).unwrap().undo.unwrap();
    let now = || standing(&world.repo(), &undo).unwrap();
    let later = |what: &str| Standing::CarriedOut { since: Some(what.into()) };
    assert_eq!(now(), Standing::CarriedOut { since: None });
    // HEAD's move was the last step: what came later came later.
    world.write("change", "later\n");
    assert_eq!(now(), later("'change'"));
    // But not where something else is as it was, as a power cut leaves it.
    world.write("dirty", "1\n2\n3 user\n");
    assert_eq!(now(), Standing::Changed { what: "'change'".into() });
    world.write("change", "1\n2\n3 agent\n");
    assert_eq!(now(), Standing::Cut);
    world.write("dirty", "1 agent\n2\n3 user\n");
    assert_eq!(now(), Standing::CarriedOut { since: None });
    world.git(&["commit", "-q", "--allow-empty", "-m", "later"]);
    assert_eq!(now(), later("HEAD"));
    world.git(&["switch", "-q", "--detach"]);
    assert_eq!(now(), later("HEAD"));
    world.git(&["switch", "-q", "-"]);
    world.git(&["reset", "-q", "--soft", &old]);
    assert_eq!(now(), Standing::Cut);
    restore(&world.repo(), &undo).unwrap();
    assert_eq!(now(), Standing::Before);
}

#[test]
fn an_unborn_branch_is_unborn_again() {
    let mut world = World::unborn();
    world.write("mine", "m\n");
    world.spawn();
    world.agent_write("a", "1\n");
    world.agent(&["add", "-A"]);
    world.agent(&["commit", "-qm", "first"]);
    let undo = world.merge(How::FastForward).unwrap().undo.unwrap();
    assert_eq!(world.status(), "");
    restore(&world.repo(), &undo).unwrap();
    assert_eq!(world.status(), "?? mine\n");
    assert!(!world.try_git(&["rev-parse", "-q", "--verify", "HEAD"]));
}

/// Runs itself as a child that dies at a step, as by `kill -9`, and puts back what that left.
#[test]
fn a_cut_merge_is_put_back() {
    const STEP: &str = "SANDBOX_TEST_CRASH_AT";
    if let Ok(step) = std::env::var(STEP) {
        let world = world();
        let plan = world.plan(How::FastForward).unwrap();
        AFTER.with(|after| after.set(Some((step.parse().unwrap(), Fault::Crash))));
        apply(&world.repo(), &plan, &world.undo_dir()).unwrap();
        unreachable!("step {step} does not exist");
    }
    let whole = world();
    for step in [0, 9] {
        let dir = tempfile::tempdir().unwrap();
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["tests::faults::a_cut_merge_is_put_back", "--exact"])
            .env(STEP, step.to_string())
            .env("TMPDIR", dir.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&child.stdout).into_owned();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.status), Some(6), "{text}");
        let left = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        let cut = World::at(&left);
        assert!(!leftovers(&cut.host).is_empty());
        restore(&cut.repo(), &left.join("undo1")).unwrap();
        assert_eq!(leftovers(&cut.host), Vec::<String>::new());
        assert_eq!(cut.status(), whole.status());
        assert_eq!(cut.git(&["log", "--format=%s"]), "base\n");
        for file in ["change", "d/gone", "x", "e/f", "dirty", "untracked"] {
            assert_eq!(cut.read(file), whole.read(file));
        }
    }
}

/// Killed while a merge is taken back: the directory where files waited is noted before it is there.
#[test]
fn directories_that_a_kill_left_go() {
    let world = world();
    let before = world.status();
    let undo = world.merge(How::FastForward).unwrap().undo.unwrap();
    let git = world.host.join(".git");
    std::fs::create_dir(git.join(".sandbox-merge.noted")).unwrap();
    std::fs::write(git.join(".sandbox-merge.noted/old"), "it is in the undo directory, too\n").unwrap();
    std::fs::write(undo.join("staging"), ".sandbox-merge.noted").unwrap();
    // Whose it is nobody knows.
    std::fs::create_dir(git.join(".sandbox-merge.full")).unwrap();
    std::fs::write(git.join(".sandbox-merge.full/old"), "mine\n").unwrap();
    restore(&world.repo(), &undo).unwrap();
    assert_eq!(world.status(), before);
    assert_eq!(leftovers(&world.host), [".sandbox-merge.full"]);
    // What is being put back is noted as well.
    let noted = std::fs::read_to_string(undo.join("staging")).unwrap();
    assert!(noted.starts_with(".sandbox-merge.") && noted != ".sandbox-merge.noted", "{noted}");
}
