//! Uncommitted changes of a sandbox on the host.

use super::{NAME, World, chain, identity};
use crate::{
    Captured, Edit, EditsRequest, Kind, MergeError, RepoPath, StashRequest, apply_edits, plan_edits, restore, stash,
};
use sandbox_git::Oid;

fn edit(path: &str, content: Option<&str>) -> Edit {
    Edit {
        path: RepoPath::parse(path.as_bytes()).unwrap(),
        after: content.map(|text| (Kind::File { executable: false }, text.as_bytes().to_vec())),
    }
}

fn bring(world: &World, edits: &[Edit], since: Option<Oid>) -> Result<String, MergeError> {
    let layers = world.layers();
    let captured: &dyn Captured = &layers;
    let request = EditsRequest { name: NAME, edits, since, captured: Some(captured), base: world.base };
    let plan = plan_edits(&world.repo(), &request)?;
    apply_edits(&world.repo(), &plan, &world.undo_dir())?;
    Ok(plan.describe())
}

const LINES: &str = "1\n2\n3\n4\n5\n";

#[test]
fn edits_are_merged_with_those_of_the_host() {
    let mut world = World::new(&[("a", LINES), ("b", LINES), ("gone", "1\n")]);
    world.write("a", LINES.replace('1', "1 user"));
    world.git(&["add", "a"]);
    world.spawn();
    world.write("a", LINES.replace('1', "1 user").replace('5', "5 later"));
    let edits = [
        edit("a", Some(&LINES.replace('1', "1 user").replace('3', "3 agent"))),
        edit("new/file", Some("n\n")),
        edit("gone", None),
    ];
    let text = bring(&world, &edits, None).unwrap();
    insta::assert_snapshot!(text, @r"
    apply the uncommitted changes of 'fix'
      merge  a  (uncommitted changes are kept)
      delete gone
      write  new/file
    ");
    assert_eq!(world.status(), "MM a\n D gone\n?? new/file\n");
    assert_eq!(world.read("a"), "1 user\n2\n3 agent\n4\n5 later\n");
    assert_eq!(world.git(&["show", ":a"]), LINES.replace('1', "1 user"));
    assert_eq!(bring(&world, &edits, None).unwrap(), "nothing to apply: the working tree has all of 'fix'\n");
}

#[test]
fn overlapping_edits_stop_before_anything_is_written() {
    let mut world = World::new(&[("a", LINES), ("b", LINES)]);
    world.spawn();
    world.write("a", LINES.replace('3', "3 user"));
    world.write("new", "mine\n");
    let before = world.everything();
    let edits =
        [edit("a", Some(&LINES.replace('3', "3 agent"))), edit("b", Some("x\n")), edit("new", Some("theirs\n"))];
    assert_eq!(
        chain(&bring(&world, &edits, None).unwrap_err()),
        "cannot merge 'fix'\n'a' changed here since the sandbox was spawned, and there too\n\
         'new' is untracked here and has another content there"
    );
    assert_eq!(before, world.everything());
}

#[test]
fn a_deletion_does_not_take_later_edits_along() {
    let mut world = World::new(&[("a", LINES)]);
    world.spawn();
    world.write("a", "user\n");
    let error = bring(&world, &[edit("a", None)], None).unwrap_err();
    assert_eq!(chain(&error), "cannot merge 'fix'\n'a' has uncommitted changes here and is deleted there");
}

#[test]
fn edits_on_top_of_merged_commits() {
    let mut world = World::new(&[("a", LINES)]);
    world.spawn();
    world.agent_write("a", LINES.replace('1', "1 committed"));
    world.agent(&["commit", "-qam", "1"]);
    let tip = world.land();
    world.merged();
    let after = LINES.replace('1', "1 committed").replace('5', "5 not committed");
    bring(&world, &[edit("a", Some(&after))], Some(tip)).unwrap();
    assert_eq!((world.read("a"), world.status().as_str()), (after, " M a\n"));
}

#[test]
fn edits_are_taken_back() {
    let mut world = World::new(&[("a", LINES)]);
    world.spawn();
    let layers = world.layers();
    let edits = [edit("a", Some("x\n")), edit("d/n", Some("n\n"))];
    let request = EditsRequest { name: NAME, edits: &edits, since: None, captured: Some(&layers), base: world.base };
    let plan = plan_edits(&world.repo(), &request).unwrap();
    let undo = apply_edits(&world.repo(), &plan, &world.undo_dir()).unwrap().undo.unwrap();
    assert_eq!(world.status(), " M a\n?? d/n\n");
    restore(&world.repo(), &undo).unwrap();
    assert_eq!(world.status(), "");
    assert!(!world.exists("d"));
}

#[test]
fn a_stash_is_popped_by_git() {
    let mut world = World::new(&[("a", LINES), ("gone", "1\n")]);
    world.spawn();
    world.agent_write("committed", "c\n");
    world.agent(&["add", "-A"]);
    world.agent(&["commit", "-qm", "c"]);
    let tip = world.land();
    let edits = [edit("a", Some("x\n")), edit("gone", None), edit("new", Some("n\n"))];
    let request = StashRequest {
        name: NAME,
        commit: tip,
        branch: Some("main"),
        edits: &edits,
        message: "sandbox fix",
        identity: &identity(),
    };
    let before = world.status();
    let repo = world.repo();
    let made = stash(&repo, &request).unwrap();
    assert_eq!(world.git(&["stash", "list"]), "");
    made.take_back().unwrap();
    made.store().unwrap();
    // Wherever it is in the list by then.
    world.write("a", "mine\n");
    world.git(&["stash", "push", "-q", "-m", "mine"]);
    made.take_back().unwrap();
    assert_eq!(world.git(&["stash", "list"]), "stash@{0}: On main: mine\n");
    world.git(&["stash", "drop", "-q"]);
    made.store().unwrap();
    assert_eq!(world.status(), before);
    assert_eq!(world.git(&["stash", "list"]), "stash@{0}: On main: sandbox fix\n");
    world.merged();
    world.git(&["stash", "pop", "-q"]);
    assert_eq!(world.status(), " M a\n D gone\n?? new\n");
    assert_eq!((world.read("a").as_str(), world.read("new").as_str()), ("x\n", "n\n"));
}
