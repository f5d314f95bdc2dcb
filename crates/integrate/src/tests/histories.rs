//! Two long branches in the style of public repositories, replayed: what comes of each kind of merge is what plain
//! git makes of it. The seed is printed; `SANDBOX_HISTORIES_SEED` takes another one.

use super::{World, identity};
use crate::{By, Choice, Choices, How, MergeError, MergeRequest, Side, UNDECIDED, apply, plan, plan_pick};
use sandbox_git::Oid;
use sandbox_testkit::Dice;

/// Commits of each branch.
const LONG: u64 = 24;
/// Pairs of branches of one run.
const PAIRS: usize = 3;

/// A branch that grows.
struct Branch<'w> {
    world: &'w World,
    name: &'static str,
    count: u64,
}

impl Branch<'_> {
    fn files(&self) -> Vec<String> {
        self.world.git(&["ls-files"]).lines().map(str::to_owned).collect()
    }

    /// One commit of a kind that the dice choose.
    fn grow(&mut self, dice: &mut Dice, other: Option<&str>) {
        self.count += 1;
        let (world, n) = (self.world, self.count);
        let files = self.files();
        // The one before may have moved or taken away the last.
        let file = files.get(dice.roll(files.len() as u64) as usize).cloned().unwrap_or_else(|| "src/again.txt".into());
        let dir = ["src", "lib/deep", "docs", "."][dice.roll(4) as usize];
        match dice.roll(20) {
            _ if files.is_empty() => world.write(&file, format!("{} {n}\n", self.name)),
            0..=8 if !file.ends_with(".bin") => {
                let text = world.read(&file);
                let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
                let at = dice.roll(lines.len().max(1) as u64) as usize;
                let line = format!("{} {n} {}", self.name, dice.roll(1000));
                if at < lines.len() && dice.roll(3) > 0 {
                    lines[at] = line
                } else {
                    lines.push(line)
                }
                world.write(&file, lines.join("\n") + "\n");
            }
            9 | 10 => {
                let text: String = (0..12).map(|m| format!("{} {n} {m}\n", self.name)).collect();
                world.write(&format!("{dir}/{}{n}.txt", self.name), text);
            }
            11 | 12 => {
                let to = format!("{dir}/moved-{}{n}.txt", self.name);
                std::fs::create_dir_all(world.host.join(dir)).unwrap();
                world.try_git(&["mv", &file, &to]);
            }
            13 if files.len() > 6 => drop(world.git(&["rm", "-q", &file])),
            14 => drop(world.git(&["update-index", "--chmod=+x", &file])),
            15 => {
                let bytes: Vec<u8> = (0..40).map(|_| dice.roll(256) as u8).chain([0]).collect();
                world.write("image.bin", bytes);
            }
            16 => {
                // The newest but one, if there are two.
                let last = world.git(&["rev-list", "--no-merges", "--skip=1", "-1", "HEAD"]);
                if !last.is_empty() && !world.try_git(&["revert", "--no-edit", last.trim()]) {
                    world.try_git(&["revert", "--abort"]);
                }
            }
            17 | 18 => {
                if let Some(other) = other
                    && !world.try_git(&["merge", "-q", "--no-edit", other])
                {
                    // As somebody resolves it who takes one side.
                    world.try_git(&["merge", "--abort"]);
                    if !world.try_git(&["merge", "-q", "--no-edit", "-X", "theirs", other]) {
                        world.try_git(&["merge", "--abort"]);
                    }
                }
            }
            _ => world.write("README", format!("{} {n}\n", self.name)),
        }
        // The executable bit is in the index: the file has to follow.
        if world.git(&["diff", "--name-only"]).contains(&file) && world.exists(&file) {
            let staged = world.git(&["ls-files", "-s", "--", &file]);
            let mode = if staged.starts_with("100755") { 0o755 } else { 0o644 };
            World::chmod(world.host.join(&file), mode);
        }
        world.git(&["add", "-A"]);
        world.git(&["commit", "-q", "--allow-empty", "-m", &format!("{} {n}", self.name)]);
    }
}

fn build(dice: &mut Dice) -> World {
    let text = |name: &str| (0..20).map(|n| format!("{name} {n}\n")).collect::<String>();
    let names = ["src/a.c", "src/b.c", "lib/deep/c.c", "docs/d.md", "Makefile", "README"];
    let files: Vec<(&str, String)> = names.iter().map(|name| (*name, text(name))).collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let world = World::new(&files);
    world.git(&["branch", "topic"]);
    let mut branches = ["main", "topic"].map(|name| Branch { world: &world, name, count: 0 });
    for step in 0..2 * LONG {
        let branch = &mut branches[(step % 2) as usize];
        world.git(&["checkout", "-q", branch.name]);
        // The topic takes over what has happened on the main branch now and then.
        branch.grow(dice, (branch.name == "topic").then_some("main"));
    }
    world.git(&["checkout", "-q", "main"]);
    assert_eq!(world.status(), "");
    world
}

fn id(world: &World, name: &str) -> Oid {
    Oid::parse(world.git(&["rev-parse", name]).trim()).unwrap()
}

fn tree(world: &World, name: &str) -> String {
    world.git(&["rev-parse", &format!("{name}^{{tree}}")])
}

/// What plain git makes of it in a detached HEAD; `None`: it conflicts.
fn plain(world: &World, args: &[&str], abort: &[&str]) -> Option<String> {
    world.git(&["checkout", "-q", "--detach", "main"]);
    let made = world.try_git(args).then(|| tree(world, "HEAD"));
    world.try_git(abort);
    world.git(&["reset", "-q", "--hard"]);
    world.git(&["clean", "-fdq"]);
    world.git(&["checkout", "-q", "main"]);
    made
}

#[test]
fn real_histories_are_as_git_merges_them() {
    compare(Dice::repeated("SANDBOX_HISTORIES_SEED", 2026), PAIRS);
}

#[test]
#[ignore = "some minutes: histories that nobody has seen, `cargo xtask test --all`"]
fn unknown_histories_are_as_git_merges_them() {
    compare(Dice::of("SANDBOX_HISTORIES_SEED"), 25 * PAIRS);
}

/// Each kind of merge of so many pairs of branches against git's.
fn compare(mut dice: Dice, pairs: usize) {
    let (mut clean, mut refused) = (0, 0);
    for pair in 0..pairs {
        println!("pair {pair}");
        let world = build(&mut dice);
        let (main, tip) = (id(&world, "main"), id(&world, "topic"));
        let base = Oid::parse(world.git(&["merge-base", "main", "topic"]).trim());
        let who = identity();
        let sides = [Side::Ours, Side::Theirs]
            .map(|side| Choices { sides: vec![Choice { side, path: None }], no_rerere: true });
        let request = |how, choices| MergeRequest {
            name: "topic",
            base,
            tip,
            captured: None,
            captured_index: None,
            left_inside: None,
            how,
            choices,
            message: None,
            identity: &who,
        };
        let merged = plain(&world, &["merge", "-q", "--no-edit", "--no-ff", "topic"], &["merge", "--abort"]);
        let rebase = [
            "rebase",
            "-q",
            "--no-keep-empty",
            "--empty=drop",
            "--reapply-cherry-picks",
            "--onto",
            "main",
            "main",
            "topic^0",
        ];
        let rebased = plain(&world, &rebase, &["rebase", "--abort"]);
        let mut expected = vec![(How::NoFf, &UNDECIDED, merged.clone()), (How::Squash, &UNDECIDED, merged)];
        // Commits that stand on the branch already stay as they are, merges among them too, which git would replay.
        let stands = world.try_git(&["merge-base", "--is-ancestor", "main", "topic"]);
        expected.push((How::Rebase, &UNDECIDED, if stands { Some(tree(&world, "topic")) } else { rebased }));
        for (how, choices, expected) in expected {
            let repo = world.repo();
            match (plan(&repo, &request(how, choices)), expected) {
                (Ok(plan), Some(expected)) => {
                    apply(&repo, &plan, &world.undo_dir()).unwrap();
                    assert_eq!((tree(&world, "HEAD"), world.status()), (expected, String::new()), "{how:?}");
                    assert!(plan.resolved.is_empty());
                    world.git(&["fsck", "--no-dangling"]);
                    world.git(&["reset", "-q", "--hard", &main.to_string()]);
                    clean += 1;
                }
                (Err(MergeError::Conflicts { conflicts, .. }), None) => {
                    assert!(conflicts.are_of_commits() && !conflicts.0.is_empty(), "{conflicts}");
                    assert_eq!((id(&world, "HEAD"), world.status()), (main, String::new()));
                    refused += 1;
                }
                (found, expected) => panic!("{how:?}: {:?} and git: {expected:?}", found.map(|plan| plan.describe())),
            }
        }
        for (choices, word) in sides.iter().zip(["ours", "theirs"]) {
            let args = ["merge", "-q", "--no-edit", "--no-ff", "-X", word, "topic"];
            // Where a side decides all of it, it is what git makes of it; we decide more than git does.
            let Some(expected) = plain(&world, &args, &["merge", "--abort"]) else { continue };
            let repo = world.repo();
            let plan =
                plan(&repo, &request(How::NoFf, choices)).unwrap_or_else(|error| panic!("{}", super::chain(&error)));
            let by = if word == "ours" { By::Ours } else { By::Theirs };
            assert!(plan.resolved.iter().all(|resolved| resolved.by == by));
            apply(&repo, &plan, &world.undo_dir()).unwrap();
            assert_eq!(tree(&world, "HEAD"), expected, "-X {word}");
            world.git(&["reset", "-q", "--hard", &main.to_string()]);
        }
        // Each commit of the topic picked alone.
        for commit in world.git(&["rev-list", "--no-merges", "--reverse", "main..topic"]).lines().take(6) {
            let picked = plain(
                &world,
                &["cherry-pick", "--allow-empty", "--keep-redundant-commits", commit],
                &["cherry-pick", "--abort"],
            );
            let repo = world.repo();
            let plan = plan_pick(&repo, &request(How::FastForward, &UNDECIDED), &[Oid::parse(commit).unwrap()], false);
            assert_eq!(plan.is_ok(), picked.is_some(), "{commit}");
            let found = match plan {
                Ok(Some(plan)) => {
                    Some(world.git(&["rev-parse", "main^{tree}"])).filter(|_| plan.paths.is_empty()).or_else(|| {
                        apply(&repo, &plan, &world.undo_dir()).unwrap();
                        let tree = tree(&world, "HEAD");
                        world.git(&["reset", "-q", "--hard", &main.to_string()]);
                        Some(tree)
                    })
                }
                Ok(None) => Some(tree(&world, "main")),
                Err(_) => None,
            };
            assert_eq!(found, picked, "{commit}");
        }
    }
    println!("{clean} merged, {refused} refused as git does");
}
