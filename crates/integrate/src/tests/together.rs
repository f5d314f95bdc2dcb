//! Several sandboxes, on random histories, against what plain git does in a scratch clone.

use super::{World, identity};
use crate::{Cache, How, MergeRequest, Pair, UNDECIDED, apply, matrix, plan_pick, plan_several};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use sandbox_git::Oid;
use std::collections::BTreeMap;

const FILES: [&str; 3] = ["a", "b", "d/c"];
const LINES: usize = 9;

#[derive(Clone, Debug)]
enum Deed {
    /// File and line.
    Edit(usize, usize),
    Delete(usize),
    Add(usize),
    Rename(usize),
}

/// What one sandbox does, a commit each; it starts from an earlier one's tip, or from the base.
#[derive(Clone, Debug)]
struct Sandbox {
    from: Option<usize>,
    deeds: Vec<Deed>,
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        8 => (0..FILES.len(), 0..LINES).prop_map(|(file, line)| Deed::Edit(file, line)),
        1 => (0..FILES.len()).prop_map(Deed::Delete),
        2 => (0..3usize).prop_map(Deed::Add),
        1 => (0..FILES.len()).prop_map(Deed::Rename),
    ]
}

fn sandboxes() -> impl Strategy<Value = Vec<Sandbox>> {
    let one = (prop::option::weighted(0.3, 0..4usize), prop::collection::vec(deed(), 1..4));
    prop::collection::vec(one.prop_map(|(from, deeds)| Sandbox { from, deeds }), 2..5)
}

/// Makes the branches `s0`, `s1`, … and a commit on the host's own branch.
fn build(sandboxes: &[Sandbox], moved: bool) -> World {
    let text = |file: &str| (0..LINES).map(|n| format!("{file} {n}\n")).collect::<String>();
    let files: Vec<_> = FILES.iter().map(|file| (*file, text(file))).collect();
    let files: Vec<_> = files.iter().map(|(file, text)| (*file, text.as_str())).collect();
    let world = World::new(&files);
    for (n, sandbox) in sandboxes.iter().enumerate() {
        let from = sandbox.from.filter(|from| *from < n).map_or("main".to_owned(), |from| format!("s{from}"));
        world.git(&["checkout", "-q", "-b", &format!("s{n}"), &from]);
        for (m, deed) in sandbox.deeds.iter().enumerate() {
            match *deed {
                Deed::Edit(file, line) if world.exists(FILES[file]) => {
                    let text = world.read(FILES[file]);
                    let lines = text.lines().enumerate();
                    let new = lines.map(|(at, old)| if at == line { format!("{n} {m}\n") } else { format!("{old}\n") });
                    world.write(FILES[file], new.collect::<String>());
                }
                Deed::Delete(file) if world.exists(FILES[file]) => world.remove(FILES[file]),
                Deed::Add(file) => world.write(&format!("new{file}"), format!("{n}\n")),
                Deed::Rename(file) if world.exists(FILES[file]) => {
                    world.git(&["mv", "-f", FILES[file], &format!("moved{file}")]);
                }
                _ => {}
            }
            world.git(&["add", "-A"]);
            world.git(&["commit", "-q", "--allow-empty", "-m", &format!("{n} {m}")]);
        }
    }
    world.git(&["checkout", "-q", "main"]);
    if moved {
        world.write("host", "1\n");
        world.git(&["add", "host"]);
        world.git(&["commit", "-qm", "host"]);
    }
    world
}

fn id(world: &World, name: &str) -> Oid {
    Oid::parse(world.git(&["rev-parse", name]).trim()).unwrap()
}

fn request<'a>(name: &'a str, tip: Oid, base: Oid, how: How, who: &'a crate::Identity) -> MergeRequest<'a> {
    let (captured, captured_index, left_inside, message) = (None, None, None, None);
    let (base, choices) = (Some(base), &UNDECIDED);
    MergeRequest { name, base, tip, captured, captured_index, left_inside, how, choices, message, identity: who }
}

/// Whether plain `git merge` merges two commits, and the tree that it makes.
fn plain_merge(world: &World, ours: Oid, theirs: Oid) -> Option<String> {
    world.git(&["checkout", "-q", "--detach", &ours.to_string()]);
    let merged = world.try_git(&["merge", "-q", "--no-edit", &theirs.to_string()]);
    let tree = merged.then(|| world.git(&["rev-parse", "HEAD^{tree}"]));
    world.try_git(&["merge", "--abort"]);
    world.git(&["reset", "-q", "--hard"]);
    world.git(&["clean", "-fdq"]);
    world.git(&["checkout", "-q", "main"]);
    tree
}

fn check(sandboxes: &[Sandbox], moved: bool) -> Result<usize, TestCaseError> {
    let world = build(sandboxes, moved);
    let names: Vec<String> = (0..sandboxes.len()).map(|n| format!("s{n}")).collect();
    let head = id(&world, "main");
    let mut tips = vec![head];
    tips.extend(names.iter().map(|name| id(&world, name)));

    // The matrix equals merging each pair, and so does what the cache says, also turned round.
    let objects = world.git(&["count-objects"]);
    let mut cache = Cache::default();
    let aside = || world.repo();
    let found = matrix(&aside(), Some(head), &tips, &mut cache).unwrap();
    let turned: Vec<Oid> = tips.iter().rev().copied().collect();
    let again = matrix(&aside(), Some(head), &turned, &mut cache).unwrap();
    prop_assert_eq!(objects, world.git(&["count-objects"]), "an object was left behind");
    let last = tips.len() - 1;
    for a in 0..tips.len() {
        for b in a + 1..tips.len() {
            let (ours, theirs) = (tips[a].to_string(), tips[b].to_string());
            let reaches = |a: &str, b: &str| world.try_git(&["merge-base", "--is-ancestor", a, b]);
            let pair = found.get(a, b);
            prop_assert_eq!(&pair, &again.get(last - a, last - b));
            match &pair {
                Pair::Same => prop_assert_eq!(&ours, &theirs),
                Pair::Contains => prop_assert!(reaches(&theirs, &ours) && ours != theirs),
                Pair::Contained => prop_assert!(reaches(&ours, &theirs) && ours != theirs),
                Pair::Clean => prop_assert!(plain_merge(&world, tips[a], tips[b]).is_some()),
                Pair::Conflict { paths } => {
                    prop_assert!(!paths.is_empty());
                    prop_assert!(plain_merge(&world, tips[a], tips[b]).is_none());
                }
                Pair::Unrelated => prop_assert!(false, "all come from one base"),
            }
        }
    }

    // Merging one after the other gives the tree that plain git gives, leaving out what conflicts.
    let who = identity();
    let requests: Vec<_> =
        names.iter().zip(&tips[1..]).map(|(name, tip)| request(name, *tip, head, How::FastForward, &who)).collect();
    let repo = world.repo();
    let planned = plan_several(&repo, &requests, false).unwrap();
    world.git(&["checkout", "-q", "--detach", "main"]);
    let mut out = Vec::new();
    for name in &names {
        if !world.try_git(&["merge", "-q", "--no-edit", name]) {
            out.push(name.clone());
            world.git(&["merge", "--abort"]);
        }
    }
    let tree = world.git(&["rev-parse", "HEAD^{tree}"]);
    world.git(&["checkout", "-q", "main"]);
    let left: Vec<String> = planned.left_out.iter().map(|left| left.name.clone()).collect();
    prop_assert_eq!(&left, &out);
    if let Some(plan) = &planned.plan {
        apply(&repo, plan, &world.undo_dir()).unwrap();
        prop_assert_eq!(world.status(), "");
        prop_assert_eq!(world.git(&["rev-parse", "HEAD^{tree}"]), tree);
        prop_assert_eq!(world.git(&["reflog"]).matches("merge sandbox").count(), 1, "HEAD moves once");
        world.git(&["reset", "-q", "--hard", &head.to_string()]);
    }

    // Picking and rebasing the first one gives what plain git gives.
    let tip = tips[1];
    let listed = world.git(&["rev-list", "--reverse", &format!("{head}..{tip}")]);
    let commits: Vec<Oid> = listed.lines().filter_map(Oid::parse).collect();
    let picked = plan_pick(&repo, &request("s0", tip, head, How::FastForward, &who), &commits, false);
    world.git(&["checkout", "-q", "--detach", "main"]);
    let rebased = commits.iter().all(|commit| {
        let done = world.try_git(&["cherry-pick", "--allow-empty", "--keep-redundant-commits", &commit.to_string()]);
        if !done {
            world.try_git(&["cherry-pick", "--abort"]);
        }
        done
    });
    let tree = world.git(&["rev-parse", "HEAD^{tree}"]);
    world.git(&["checkout", "-q", "main"]);
    prop_assert_eq!(picked.is_ok(), rebased);
    if let Ok(Some(plan)) = picked {
        apply(&repo, &plan, &world.undo_dir()).unwrap();
        prop_assert_eq!(world.status(), "");
        prop_assert_eq!(world.git(&["rev-parse", "HEAD^{tree}"]), tree);
    }
    Ok(planned.merged.len())
}

#[test]
fn several_are_as_git_does_them() {
    // Bounded: each case is some hundred processes.
    let cases = std::env::var("SANDBOX_TEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(8);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 30, ..Config::default() };
    let merged = std::cell::Cell::new(0);
    let result = TestRunner::new(config).run(&(sandboxes(), any::<bool>()), |(sandboxes, moved)| {
        merged.set(merged.get() + check(&sandboxes, moved)?);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    assert!(merged.get() > 0, "nothing was ever merged");
}

#[test]
fn histories_that_have_nothing_in_common() {
    let world = World::new(&[("a", "1\n")]);
    world.git(&["checkout", "-q", "--orphan", "other"]);
    world.write("a", "2\n");
    world.git(&["add", "a"]);
    world.git(&["commit", "-qm", "other"]);
    world.git(&["checkout", "-q", "-b", "third"]);
    world.git(&["commit", "-q", "--allow-empty", "-m", "third"]);
    world.git(&["checkout", "-q", "main"]);
    let tips = ["main", "other", "third"].map(|name| id(&world, name));
    let found = matrix(&world.repo(), Some(tips[0]), &tips, &mut Cache::default()).unwrap();
    let pairs = BTreeMap::from([((0, 1), Pair::Unrelated), ((0, 2), Pair::Unrelated), ((1, 2), Pair::Contained)]);
    for ((a, b), pair) in pairs {
        assert_eq!(found.get(a, b), pair);
    }
    let none = matrix(&world.repo(), None, &[], &mut Cache::default()).unwrap();
    assert_eq!(none.conflicts().count(), 0);
}

#[test]
fn the_hosts_merge_attributes_decide() {
    let world = World::new(&[("log", "1\n"), ("x", "1\n2\n3\n"), (".gitattributes", "log merge=union\nx -merge\n")]);
    for (name, line) in [("one", "1\na\n"), ("two", "1\nb\n")] {
        world.git(&["checkout", "-q", "-b", name, "main"]);
        world.write("log", line);
        world.git(&["commit", "-qam", name]);
    }
    world.git(&["checkout", "-q", "main"]);
    let tips = ["one", "two"].map(|name| id(&world, name));
    let head = Some(id(&world, "main"));
    let mut cache = Cache::default();
    let pair = |cache: &mut Cache| matrix(&world.repo(), head, &tips, cache).unwrap().get(0, 1);
    assert_eq!(pair(&mut cache), Pair::Clean);
    // The attributes are part of what the cache knows.
    world.write(".gitattributes", "");
    assert_eq!(pair(&mut cache), Pair::Conflict { paths: vec!["log".into()] });
}
