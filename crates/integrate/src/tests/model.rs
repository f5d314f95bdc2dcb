//! Random states of host and sandbox, checked against what must always hold.
//!
//! Every line that somebody writes is unique, so that it can be followed:
//!
//! 1. a refusal leaves everything as it was;
//! 2. paths that the merge does not touch keep their bytes and their index entries;
//! 3. a line that the user has in the working tree or the index is in one of them afterwards, unless it
//!    was captured and the sandbox went on from it in place (nothing uncommitted left inside);
//! 4. what the sandbox committed is there;
//! 5. on a clean tree the result is that of plain `git merge`.

use super::World;
use crate::How;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

const PATHS: [&str; 3] = ["a", "b", "d/c"];
const LINES: usize = 7;

/// What is done to one file. Lines are replaced by new ones, by position.
#[derive(Clone, Debug)]
enum Deed {
    Nothing,
    Edit(usize),
    EditTwo(usize, usize),
    Delete,
    /// Back to what HEAD has.
    Revert,
}

/// How the user stages a file before the spawn, or after.
#[derive(Clone, Debug)]
struct Path {
    tracked: bool,
    before: Deed,
    staged_before: bool,
    before_again: Deed,
    agent: Deed,
    committed: bool,
    after: Deed,
    staged_after: bool,
}

#[derive(Clone, Debug)]
struct Case {
    paths: Vec<Path>,
    /// The sandbox stashes the user's changes first.
    stash: bool,
    /// The host commits something else meanwhile.
    moved: bool,
}

fn deed(revert: bool) -> impl Strategy<Value = Deed> {
    let revert = if revert { 1 } else { 0 };
    prop_oneof![
        4 => Just(Deed::Nothing),
        4 => (0..LINES).prop_map(Deed::Edit),
        2 => (0..LINES, 0..LINES).prop_map(|(a, b)| Deed::EditTwo(a, b)),
        1 => Just(Deed::Delete),
        revert => Just(Deed::Revert),
    ]
}

fn path() -> impl Strategy<Value = Path> {
    let deeds = (deed(false), deed(false), deed(true), deed(true));
    (prop::bool::weighted(0.8), deeds, any::<[bool; 3]>()).prop_map(|(tracked, (before, again, agent, after), bits)| {
        Path {
            tracked,
            before,
            staged_before: bits[0],
            before_again: if bits[0] { again } else { Deed::Nothing },
            agent,
            committed: bits[1],
            after,
            staged_after: bits[2],
        }
    })
}

fn case() -> impl Strategy<Value = Case> {
    let bits = (prop::bool::weighted(0.2), prop::bool::weighted(0.3));
    (prop::collection::vec(path(), PATHS.len()), bits).prop_map(|(paths, (stash, moved))| Case { paths, stash, moved })
}

struct Author {
    name: &'static str,
    count: usize,
}

impl Author {
    fn edit(&mut self, dir: &std::path::Path, path: &str, deed: &Deed, head: Option<&str>) {
        let file = dir.join(path);
        let text = fs::read_to_string(&file).ok();
        let mut replace = |text: &str, positions: &[usize]| {
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            for position in positions {
                self.count += 1;
                if let Some(line) = lines.get_mut(*position) {
                    *line = format!("{} {}", self.name, self.count);
                }
            }
            lines.join("\n") + "\n"
        };
        let new = match (deed, &text) {
            (Deed::Nothing, _) => return,
            (Deed::Edit(at), Some(text)) => Some(replace(text, &[*at])),
            (Deed::EditTwo(a, b), Some(text)) => Some(replace(text, &[*a, *b])),
            (Deed::Edit(_) | Deed::EditTwo(..), None) => Some(replace(&"x\n".repeat(LINES), &[0, 1, 2, 3, 4, 5, 6])),
            (Deed::Delete, _) => None,
            (Deed::Revert, _) => head.map(str::to_owned),
        };
        match new {
            Some(new) => {
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, new).unwrap();
            }
            None => drop(fs::remove_file(file)),
        }
    }
}

type Texts = BTreeMap<&'static str, BTreeSet<String>>;

fn lines(text: &str, who: &str) -> BTreeSet<String> {
    text.lines().filter(|line| line.starts_with(who)).map(str::to_owned).collect()
}

/// Lines of one author in the working tree and in the index.
fn lines_of(world: &World, who: &str) -> (Texts, Texts) {
    let listed = world.git(&["ls-files", "-z"]);
    let working = PATHS.map(|path| (path, lines(&fs::read_to_string(world.host.join(path)).unwrap_or_default(), who)));
    let index = PATHS.map(|path| {
        let text = if listed.split('\0').any(|name| name == path) {
            world.git(&["show", &format!(":{path}")])
        } else {
            String::new()
        };
        (path, lines(&text, who))
    });
    (working.into(), index.into())
}

fn build(case: &Case) -> World {
    let mut world = World::unborn();
    let base = |path: &str| (0..LINES).map(|n| format!("{path} {n}\n")).collect::<String>();
    world.write("untouched", "1\n");
    for (path, state) in PATHS.iter().zip(&case.paths) {
        if state.tracked {
            world.write(path, base(path));
        }
    }
    world.git(&["add", "-A"]);
    world.git(&["commit", "-qm", "base"]);
    let head: Vec<_> = PATHS.iter().zip(&case.paths).map(|(path, state)| state.tracked.then(|| base(path))).collect();
    let mut user = Author { name: "user", count: 0 };
    let deeds = |user: &mut Author, pick: fn(&Path) -> &Deed, staged: fn(&Path) -> bool| {
        for ((path, state), head) in PATHS.iter().zip(&case.paths).zip(&head) {
            user.edit(&world.host, path, pick(state), head.as_deref());
            if staged(state) {
                world.try_git(&["add", "-A", path]);
            }
        }
    };
    deeds(&mut user, |path| &path.before, |path| path.staged_before);
    deeds(&mut user, |path| &path.before_again, |_| false);
    world.spawn();
    let mut agent = Author { name: "agent", count: 0 };
    if case.stash && !world.agent(&["status", "--porcelain", "-uno"]).is_empty() {
        world.agent(&["stash", "-q"]);
    }
    world.agent_write("agents", "agent file\n");
    world.agent(&["add", "agents"]);
    world.agent(&["commit", "-qm", "agents", "agents"]);
    for ((path, state), head) in PATHS.iter().zip(&case.paths).zip(&head) {
        agent.edit(&world.inside, path, &state.agent, head.as_deref());
        let known = world.inside.join(path).exists() || !world.agent(&["ls-files", path]).is_empty();
        if state.committed && known {
            world.agent(&["add", "-A", "--", path]);
            // Nothing to commit, if it was known to the index only and is deleted now.
            world.try_agent(&["commit", "-q", "--allow-empty", "-m", path, "--", path]);
        }
    }
    let deeds = |user: &mut Author| {
        for ((path, state), head) in PATHS.iter().zip(&case.paths).zip(&head) {
            user.edit(&world.host, path, &state.after, head.as_deref());
            if state.staged_after {
                world.try_git(&["add", "-A", path]);
            }
        }
    };
    deeds(&mut user);
    if case.moved {
        world.write("untouched", "2\n");
        world.git(&["commit", "-qm", "moved", "untouched"]);
    }
    world
}

fn check(case: &Case) -> Result<bool, TestCaseError> {
    let world = build(case);
    world.land();
    // `git status` writes the index.
    let clean = world.status().is_empty();
    let before = world.everything();
    let entries = |path: &str| world.git(&["ls-files", "--stage", "--debug", "--", path]);
    let touched: BTreeSet<String> =
        world.git(&["diff", "--name-only", "HEAD...refs/sandbox/fix"]).lines().map(str::to_owned).collect();
    let kept: Vec<_> = PATHS.into_iter().chain(["untouched"]).filter(|path| !touched.contains(*path)).collect();
    let bytes = |path: &str| fs::read(world.host.join(path)).ok();
    let state = |paths: &[&str]| paths.iter().map(|path| (entries(path), bytes(path))).collect::<Vec<_>>();
    let kept_before = state(&kept);
    let (working, index) = lines_of(&world, "user");
    let captured = |path: &str| fs::read_to_string(world.inside.parent().unwrap().join("captured").join(path));
    let mut left: BTreeSet<_> = world.left_inside().iter().map(ToString::to_string).collect();
    if !world.agent(&["stash", "list"]).is_empty() {
        left.extend(world.agent(&["diff", "--name-only", "stash^", "stash"]).lines().map(str::to_owned));
        left.extend(world.agent(&["diff", "--name-only", "stash^", "stash^2"]).lines().map(str::to_owned));
    }

    if world.merge(How::FastForward).is_err() {
        prop_assert_eq!(before, world.everything(), "a refusal wrote something");
        prop_assert!(!clean, "a clean tree was refused");
        return Ok(false);
    }
    prop_assert_eq!(kept_before, state(&kept), "a path that is not touched changed");
    let (working_after, index_after) = lines_of(&world, "user");
    for path in PATHS {
        let captured = lines(&captured(path).unwrap_or_default(), "user");
        let went_on = !left.contains(path);
        for (what, had) in [("working tree", &working[path]), ("index", &index[path])] {
            for line in had {
                let there = working_after[path].contains(line) || index_after[path].contains(line);
                // What is staged in an older state than what was captured went on with it.
                let excused = went_on && (captured.contains(line) || what == "index" && !captured.is_empty());
                prop_assert!(there || excused, "'{}' of the {} of '{}' is lost", line, what, path);
            }
        }
    }
    let (agents, _) = lines_of(&world, "agent");
    for path in PATHS.into_iter().filter(|path| touched.contains(*path)) {
        let tip = format!("refs/sandbox/fix:{path}");
        if world.try_git(&["cat-file", "-e", &tip]) {
            let committed = lines(&world.git(&["show", &tip]), "agent");
            prop_assert!(committed.is_subset(&agents[path]), "'{}' lacks what was committed", path);
        }
    }
    if clean {
        let tree = world.git(&["rev-parse", "HEAD^{tree}"]);
        prop_assert_eq!(world.status(), "");
        world.git(&["reset", "-q", "--hard", "ORIG_HEAD"]);
        world.git(&["merge", "-q", "--no-edit", "refs/sandbox/fix"]);
        prop_assert_eq!(tree, world.git(&["rev-parse", "HEAD^{tree}"]));
    }
    Ok(true)
}

#[test]
fn what_must_always_hold() {
    // Bounded: each case is some sixty processes.
    let cases = std::env::var("SANDBOX_TEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(10);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 30, ..Config::default() };
    let merged = std::cell::Cell::new(0);
    let result = TestRunner::new(config).run(&case(), |case| {
        merged.set(merged.get() + usize::from(check(&case)?));
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    assert!(merged.get() > 0, "every case was refused");
}
