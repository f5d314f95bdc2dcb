//! What a view holds, what it shares, and what it must never show.

use crate::world::{Inside, World, each_git, write};
use sandbox_core::view::{Views, prepare_serve, serve_command};
use sandbox_git::{Oid, RefName};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

fn packs(inside: &Inside<'_>) -> Vec<(String, u64)> {
    let dir = inside.view().objects().join("pack");
    let mut packs: Vec<(String, u64)> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name().to_string_lossy().ends_with(".pack"))
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().nlink()))
        .collect();
    packs.sort();
    packs
}

#[test]
fn no_sandbox_reads_what_another_was_granted() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        world.git(&top, &["checkout", "-q", "-b", "private"]);
        write(&top, "secret.txt", "private blob\n");
        world.commit(&top, "private");
        let secret = world.git(&top, &["rev-parse", "HEAD:secret.txt"]).trim().to_owned();
        let first = world.spawn(&top, "first");
        assert!(first.objects().contains(&secret));

        world.git(&top, &["checkout", "-q", "main"]);
        write(&top, "staged.txt", "staged once\n");
        world.git(&top, &["add", "staged.txt"]);
        let staged = world.git(&top, &["rev-parse", ":staged.txt"]).trim().to_owned();
        let second = world.spawn(&top, "second");
        assert!(second.objects().contains(&staged));
        assert!(!second.objects().contains(&secret));

        world.git(&top, &["rm", "-q", "-f", "staged.txt"]);
        let third = world.spawn(&top, "third");
        assert!(!third.objects().contains(&staged) && !third.objects().contains(&secret));
        let granted = world.git(&top, &["rev-list", "--objects", "--no-object-names", "main"]);
        let mut granted: Vec<&str> = granted.lines().collect();
        granted.sort_unstable();
        assert_eq!(third.objects(), granted, "exactly the closure of what was granted");
    });
}

#[test]
fn the_same_roots_are_the_same_view_and_new_commits_add_a_pack() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        for n in 0..12 {
            write(&top, "dir/b.txt", &format!("more {n}\n"));
            world.commit(&top, "more");
        }
        let first = world.spawn(&top, "first");
        let second = world.spawn(&top, "second");
        assert_eq!(first.view().key(), second.view().key());
        first.view().sync().unwrap();
        assert_eq!(packs(&first).len(), 2, "the history before HEAD~8, and the rest");

        write(&top, "new.txt", "x\n");
        world.commit(&top, "one more");
        let third = world.spawn(&top, "third");
        let (old, new) = (packs(&first), packs(&third));
        assert_eq!(new.len(), 3);
        assert!(old.iter().all(|(name, _)| new.iter().any(|(other, _)| other == name)), "taken over by links");
        assert!(new.iter().all(|(_, links)| *links >= 2), "each is in the vault as well: {new:?}");

        world.git(&top, &["commit", "-q", "--amend", "-m", "amended"]);
        let fourth = world.spawn(&top, "fourth");
        let amended = packs(&fourth);
        assert!(amended.iter().any(|(name, _)| old.iter().any(|(other, _)| other == name)));
        fourth.assert_same_as(&top);
        let size = |inside: &Inside<'_>| -> u64 {
            let dir = inside.view().objects().join("pack");
            fs::read_dir(dir)
                .unwrap()
                .map(|e| e.unwrap().metadata().unwrap())
                .filter(|m| m.nlink() <= 2)
                .map(|m| m.len())
                .sum()
        };
        assert!(size(&fourth) < 20_000, "an amend does not pack the history again");
    });
}

/// The host's repository is on another file system, under a name that a list of paths would be cut at,
/// and nothing is written there, not even for a moment.
#[test]
fn the_hosts_objects_are_only_read() {
    each_git(|world| {
        let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
        let dev = |path: &std::path::Path| fs::metadata(path).unwrap().dev();
        assert_ne!(dev(elsewhere.path()), dev(world.dir.path()), "the test needs two file systems");
        let top = elsewhere.path().join("re:po \\ \"x\"");
        let top = world.repo(top.to_str().unwrap(), &[]);
        let objects = top.join(".git/objects");
        let stamps = || {
            let dirs = [objects.clone(), objects.join("pack"), objects.join("info")];
            dirs.map(|dir| fs::metadata(dir).unwrap()).map(|meta| (meta.mtime(), meta.mtime_nsec()))
        };
        let before = stamps();
        let first = world.spawn(&top, "first");
        first.assert_same_as(&top);
        write(&top, "staged.txt", "only in the index\n");
        world.git(&top, &["add", "staged.txt"]);
        let before_second = stamps();
        let second = world.spawn(&top, "second");
        second.assert_same_as(&top);
        assert_eq!(stamps(), before_second);
        assert_eq!(before[1], before_second[1], "no pack was made there");
    });
}

/// The first view of a large history costs what the host's pack costs: its deltas are taken over as they are.
#[test]
fn deltas_of_the_host_are_reused() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        let mut lines: Vec<String> = (0..400u64).map(line).collect();
        for n in 0..60u64 {
            lines[(n * 7 % 400) as usize] = line(1000 + n);
            write(&top, "grows.txt", &lines.concat());
            world.commit(&top, "one line");
        }
        world.git(&top, &["gc", "-q"]);
        let size = |dir: std::path::PathBuf| -> u64 {
            let packs = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
            let packs = packs.filter(|entry| entry.file_name().to_string_lossy().ends_with(".pack"));
            packs.map(|entry| entry.metadata().unwrap().len()).sum()
        };
        let host = size(top.join(".git/objects/pack"));
        let view = size(world.spawn(&top, "in").view().objects().join("pack"));
        // Each of its two packs has the file once as a whole.
        assert!(view < 3 * host, "{view} bytes, the host has {host}");
        // The control: without deltas it would be many times as much.
        let whole = world.path("whole");
        fs::create_dir(&whole).unwrap();
        let pack = format!(
            "git rev-parse HEAD | git pack-objects -q --revs --window=0 --no-reuse-delta '{}' >/dev/null",
            whole.join("pack").display()
        );
        assert!(Command::new("sh").arg("-c").arg(pack).current_dir(&top).status().unwrap().success());
        let whole = size(whole);
        assert!(whole > 10 * host, "{whole} bytes, the host has {host}");
    });
}

/// A line that does not compress and is another for each number.
fn line(n: u64) -> String {
    let mut x = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let word = |x: &mut u64| {
        *x ^= *x << 13;
        *x ^= *x >> 7;
        *x ^= *x << 17;
        format!("{x:016x}")
    };
    (0..4).map(|_| word(&mut x)).collect::<String>() + "\n"
}

#[test]
fn a_long_chain_is_begun_again() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        let mut longest = 0;
        for n in 0..16 {
            write(&top, "a.txt", &format!("{n}\n"));
            world.commit(&top, "step");
            let inside = world.spawn(&top, &format!("in{n}"));
            longest = longest.max(packs(&inside).len());
            inside.git(&["fsck", "--no-dangling"]);
        }
        assert!((3..=14).contains(&longest), "{longest}");
    });
}

#[test]
fn a_host_gc_or_removal_disturbs_nothing() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        write(&top, "a.txt", "staged\n");
        world.git(&top, &["add", "a.txt"]);
        let inside = world.spawn(&top, "in");
        world.git(&top, &["reset", "-q", "--hard", "HEAD~1"]);
        world.git(&top, &["reflog", "expire", "--expire=now", "--all"]);
        world.git(&top, &["gc", "-q", "--prune=now"]);
        inside.git(&["fsck", "--no-dangling"]);
        fs::remove_dir_all(&top).unwrap();
        inside.git(&["fsck", "--no-dangling"]);
        assert_eq!(inside.git(&["show", ":a.txt"]), "staged\n");
        inside.git(&["commit", "-q", "-m", "still works"]);
    });
}

fn upload_pack(world: &World, dir: &std::path::Path) -> String {
    let script = world.path("serve.sh");
    fs::write(
        &script,
        format!("#!/bin/sh\nexec '{}' upload-pack --strict '{}'\n", world.git.program().display(), dir.display()),
    )
    .unwrap();
    format!("sh {}", script.display())
}

#[test]
fn what_is_served_is_the_granted_refs_and_no_other_object() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        let inside = world.spawn(&top, "in");
        world.git(&top, &["checkout", "-q", "-b", "private"]);
        write(&top, "p", "p\n");
        let private = world.commit(&top, "private");
        world.git(&top, &["checkout", "-q", "main"]);
        write(&top, "n", "n\n");
        let newer = world.commit(&top, "newer on the host");
        let host = world.host(&top);
        let views = Views { git: &world.git, repo: &inside.repo, owner: None, vault: true };
        let view = views.extend(&host, &inside.view(), &[Oid::parse(&newer).unwrap()]).unwrap();
        assert_ne!(view.key(), inside.view().key());
        assert_eq!(views.extend(&host, &view, &[Oid::parse(&newer).unwrap()]).unwrap().key(), view.key());

        let dir = world.path("serve.git");
        let main = RefName::parse("refs/heads/main").unwrap();
        prepare_serve(&view, &[(main.clone(), Oid::parse(&newer).unwrap())], Some(&main), &dir).unwrap();
        assert_eq!(serve_command(&world.git, &dir).name(), "git upload-pack");
        // No snapshot names the extended view: a `gc` may take it away at any moment.
        fs::remove_dir_all(view.objects().parent().unwrap()).unwrap();
        let pack = upload_pack(&world, &dir);
        let fetch = |what: &str| {
            inside.try_git(&[
                "-c",
                "protocol.file.allow=always",
                "fetch",
                "-q",
                "--upload-pack",
                &pack,
                dir.to_str().unwrap(),
                what,
            ])
        };
        let out = fetch("main:refs/remotes/host/main");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        assert_eq!(inside.git(&["rev-parse", "host/main"]).trim(), newer);
        let out = fetch(&private);
        assert!(!out.status.success());
    });
}

#[test]
fn a_served_repository_answers_on_pipes() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        let inside = world.spawn(&top, "in");
        let dir = world.path("serve.git");
        let head = Oid::parse(world.git(&top, &["rev-parse", "HEAD"]).trim()).unwrap();
        prepare_serve(&inside.view(), &[(RefName::parse("refs/heads/main").unwrap(), head)], None, &dir).unwrap();
        let out = Command::new(world.git.program())
            .args(["upload-pack", "--strict"])
            .arg(&dir)
            .stdin(Stdio::null())
            .env("HOME", world.home())
            .output()
            .unwrap();
        assert!(String::from_utf8_lossy(&out.stdout).contains(&format!("{head} refs/heads/main")));
    });
}
