//! Packs that are made once.

use crate::world::{SHA1, World, commit, until};
use sandbox_mirror::event::{CacheEvent, Event};
use std::process::Stdio;

/// Processes of `git pack-objects` that the service started: the git in use writes them down. What a hook
/// makes itself is git's own, and told as such.
fn made(world: &World) -> usize {
    std::fs::read_to_string(world.dir("git-log"))
        .unwrap_or_default()
        .lines()
        .filter(|line| line.contains("pack-objects"))
        .count()
}

fn events(world: &World, wanted: CacheEvent) -> usize {
    world.seen.all().iter().filter(|event| matches!(event, Event::Cache { what, .. } if *what == wanted)).count()
}

fn clone(world: &World, n: &str, args: &[&str]) -> std::process::Child {
    let mut command = world.env.command(&world.env.git_used().path, world.env.root());
    command.args(["clone", "-q"]).args(args).arg(world.url(SHA1)).arg(world.dir(n));
    command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn fine(child: std::process::Child) {
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn a_storm_of_equal_clones_costs_one_pack() {
    let world = World::logged();
    let storm: Vec<_> = (0..16).map(|n| clone(&world, &format!("storm{n}"), &["--depth=1"])).collect();
    storm.into_iter().for_each(fine);
    assert_eq!(made(&world), 1);
    let shared = events(&world, CacheEvent::Followed) + events(&world, CacheEvent::Hit);
    assert_eq!(shared, 15);
    for n in 0..16 {
        world.at(&world.dir(&format!("storm{n}")), &["fsck", "--no-progress"]).ok();
    }
    // All history is kept from the second time on.
    for (n, expected) in [(0, 1), (1, 2), (2, 2), (3, 2)] {
        fine(clone(&world, &format!("full{n}"), &["--no-checkout"]));
        assert_eq!(made(&world), expected, "{n}");
        assert_eq!(events(&world, CacheEvent::Passed), 1);
    }
    // Something new is another pack.
    commit(&world.env, &world.source(SHA1), "new");
    world.refresh(SHA1);
    fine(clone(&world, "new", &["--depth=1"]));
    assert_eq!(made(&world), 3);
}

#[test]
fn a_cache_that_is_lost_is_no_error() {
    let world = World::logged();
    fine(clone(&world, "first", &["--depth=1"]));
    let packs = || std::fs::read_dir(world.layout.packcache()).unwrap().flatten().collect::<Vec<_>>();
    until("a pack is kept", || packs().len() == 1);
    std::fs::remove_file(packs()[0].path()).unwrap();
    fine(clone(&world, "second", &["--depth=1"]));
    assert_eq!(made(&world), 2);
    // The directory, and then the socket, are gone: git makes its packs itself.
    std::fs::remove_dir_all(world.layout.packcache()).unwrap();
    fine(clone(&world, "third", &["--depth=1"]));
    std::fs::remove_file(world.layout.run().join("packs")).unwrap();
    fine(clone(&world, "fourth", &["--depth=1"]));
    assert_eq!(made(&world), 2);
}

#[test]
fn what_does_not_fit_or_is_old_goes() {
    use sandbox_mirror::cache;
    let settings = cache::Settings { max_bytes: 1, ..Default::default() };
    let world = World::cached(settings);
    fine(clone(&world, "one", &["--depth=1"]));
    until("it is removed", || std::fs::read_dir(world.layout.packcache()).unwrap().next().is_none());
    fine(clone(&world, "two", &["--depth=1"]));
    assert_eq!(made(&world), 2);
}
