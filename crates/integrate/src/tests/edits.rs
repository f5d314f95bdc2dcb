//! Uncommitted changes of a sandbox on the host.

use super::{NAME, World, chain, identity};
use crate::{
    Captured, Edit, EditsRequest, Kind, MergeError, RepoPath, StashRequest, apply_edits, plan_edits, restore, stash,
};
use sandbox_git::Oid;
use sandbox_testkit::Dice;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

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

/// Worlds of one run.
const WORLDS: usize = 15;

/// Few paths, so that both sides touch the same ones; two are below a name that can be a file.
const PATHS: [&str; 7] = ["a", "b", "c", "d", "d/x", "e/y", "e/z"];

type Files = BTreeMap<String, String>;

/// What some edits make of the files of a side.
fn edited(dice: &mut Dice, who: &str, files: &Files) -> Files {
    let mut files = files.clone();
    for n in 0..1 + dice.roll(4) {
        let path = PATHS[dice.roll(PATHS.len() as u64) as usize];
        let below = format!("{path}/");
        // A name is a file or a directory.
        let taken = files.keys().any(|known| known.starts_with(&below)) || path == "d/x" && files.contains_key("d");
        match (dice.roll(8), files.get_mut(path)) {
            (0, Some(_)) => drop(files.remove(path)),
            (1, Some(text)) => *text = "the same on both sides\n".into(),
            (_, Some(text)) => {
                let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
                let at = dice.roll(lines.len() as u64) as usize;
                lines[at] = format!("{who} {n}");
                *text = lines.join("\n") + "\n";
            }
            (_, None) if !taken => {
                files.insert(path.into(), (0..8).map(|n| format!("{who} new {n}\n")).collect());
            }
            _ => {}
        }
    }
    files
}

/// Makes the files of a directory these.
fn lay_out(dir: &Path, before: &Files, files: &Files) {
    for path in before.keys() {
        fs::remove_file(dir.join(path)).unwrap();
        for above in Path::new(path).ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
            let _ = fs::remove_dir(dir.join(above));
        }
    }
    for (path, text) in files {
        super::put(&dir.join(path), text.as_bytes());
    }
}

/// The commit of a directory's files, in a repository that has nothing to do with the host's.
fn commit_of(world: &World, plain: &Path, dir: &Path, parent: Option<&str>) -> String {
    let git_dir = format!("--git-dir={}", plain.display());
    let tree = format!("--work-tree={}", dir.display());
    world.run(dir, &[&git_dir, &tree, "add", "-A"]);
    let tree = world.run(dir, &[&git_dir, "write-tree"]);
    let mut args = vec![git_dir.as_str(), "commit-tree", "-m", "side", tree.trim()];
    args.extend(parent.map(|parent| ["-p", parent]).into_iter().flatten());
    world.run(dir, &args).trim().to_owned()
}

fn compare(mut dice: Dice, worlds: usize) {
    let (mut clean, mut refused) = (0, 0);
    for n in 0..worlds {
        println!("world {n}");
        let text: String = (0..8).map(|n| format!("line {n}\n")).collect();
        let base: Files = ["a", "b", "d", "e/y"].map(|path| (path.to_owned(), text.clone())).into();
        let list: Vec<(&str, &str)> = base.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        let mut world = World::new(&list);
        // Half of the hosts are as they were committed when they are captured.
        let captured = if dice.roll(2) == 0 { base.clone() } else { edited(&mut dice, "before", &base) };
        lay_out(&world.host, &base, &captured);
        world.spawn();
        let (ours, theirs) = (edited(&mut dice, "here", &captured), edited(&mut dice, "there", &captured));
        lay_out(&world.host, &captured, &ours);
        lay_out(&world.inside, &captured, &theirs);

        let plain: PathBuf = world.dir.path().join("plain.git");
        world.git(&["init", "-q", "--bare", plain.to_str().unwrap()]);
        let start = commit_of(&world, &plain, &world.dir.path().join("captured"), None);
        let here = commit_of(&world, &plain, &world.host, Some(&start));
        let there = commit_of(&world, &plain, &world.inside, Some(&start));
        let git_dir = format!("--git-dir={}", plain.display());
        // Which path became which is nobody's guess when files are applied.
        let merge = [&git_dir, "-c", "merge.renames=false", "merge-tree", "--write-tree", &here, &there];
        let merged = world.command(&plain, &merge).output().unwrap();

        let changed: BTreeSet<&String> = captured.keys().chain(theirs.keys()).collect();
        let changed = changed.into_iter().filter(|path| captured.get(*path) != theirs.get(*path));
        let edits: Vec<Edit> = changed.map(|path| edit(path, theirs.get(path).map(String::as_str))).collect();
        let before = world.everything();
        match (bring(&world, &edits, None), merged.status.code()) {
            (Ok(_), Some(0)) => {
                let expected = String::from_utf8(merged.stdout).unwrap();
                let expected = world.run(&plain, &[&git_dir, "rev-parse", &format!("{}^{{tree}}", expected.trim())]);
                let found = commit_of(&world, &plain, &world.host, None);
                let found = world.run(&plain, &[&git_dir, "rev-parse", &format!("{found}^{{tree}}")]);
                let diff = world.run(&plain, &[&git_dir, "diff", expected.trim(), found.trim()]);
                assert_eq!(found, expected, "{diff}");
                clean += 1;
            }
            (Err(error), Some(1)) => {
                assert!(matches!(error, MergeError::Conflicts { .. }), "{}", chain(&error));
                assert_eq!(before, world.everything(), "a refusal wrote something");
                refused += 1;
            }
            (found, status) => panic!(
                "{:?} and git: {status:?}\n{}\ncaptured {captured:?}\nhere {ours:?}\nthere {theirs:?}",
                found.map_err(|error| chain(&error)),
                String::from_utf8_lossy(&merged.stdout)
            ),
        }
    }
    println!("{clean} applied, {refused} refused as git does");
    assert!(clean > 0 && refused > 0);
}

#[test]
fn edits_at_random_are_applied_as_git_merges_them() {
    compare(Dice::repeated("SANDBOX_EDITS_SEED", 2026), WORLDS);
}

#[test]
#[ignore = "some minutes: edits that nobody has seen, `cargo xtask test --all`"]
fn unknown_edits_are_applied_as_git_merges_them() {
    compare(Dice::of("SANDBOX_EDITS_SEED"), 20 * WORLDS);
}
