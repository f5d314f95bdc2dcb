//! Every shape that a repository can have: the first `git status` inside says what it says on the
//! host, nothing is missing, work goes on, and commits come home.

use crate::lands::{land, name, oid, open, serve, update};
use crate::world::{Inside, World, age, each_git, write};
use sandbox_core::landing::{Bounds, Landing, Want};
use sandbox_core::view::View;
use std::fs;
use std::path::Path;

/// Commits inside and brings it home.
fn round_trip(world: &World, top: &Path, inside: &Inside<'_>) {
    let landing = open(inside, Bounds::default());
    write(&inside.top, "made-inside.txt", "inside\n");
    inside.git(&["add", "--sparse", "made-inside.txt"]);
    inside.git(&["commit", "-q", "-m", "made inside"]);
    let head = oid(&inside.git(&["rev-parse", "HEAD"]));
    let landed = land(inside, &landing, &[("refs/sandbox/x", head)]).unwrap();
    assert_eq!(landed.refused, []);
    landing.move_to_host(None, &world.host(top), "x", &[update("refs/sandbox/x", None, head)]).unwrap();
    assert_eq!(world.git(top, &["show", "sandbox/x:made-inside.txt"]), "inside\n");
    world.git(top, &["fsck", "--no-dangling", "--no-progress"]);
}

fn shape(init: &[&str], make: impl Fn(&World, &Path)) {
    each_git(|world| {
        let top = world.repo("r", init);
        age(&world, &top);
        make(&world, &top);
        let inside = world.spawn(&top, "in");
        inside.assert_same_as(&top);
        round_trip(&world, &top, &inside);
    });
}

#[test]
fn plain() {
    shape(&[], |_, _| {});
}

#[test]
fn dirty() {
    shape(&[], |_, top| {
        write(top, "a.txt", "one\nTWO\nthree\n");
        write(top, "untracked/x", "x\n");
        fs::remove_file(top.join("dir/b.txt")).unwrap();
    });
}

#[test]
fn staged_in_three_states() {
    shape(&[], |world, top| {
        write(top, "a.txt", "staged\n");
        write(top, "new.txt", "new\n");
        write(top, "later.txt", "");
        world.git(top, &["add", "a.txt", "new.txt"]);
        world.git(top, &["add", "-N", "later.txt"]);
        write(top, "a.txt", "and edited\n");
        world.git(top, &["rm", "-q", "--cached", "run.sh"]);
    });
}

#[test]
fn sha256() {
    shape(&["--object-format=sha256"], |world, top| {
        write(top, "a.txt", "staged\n");
        world.git(top, &["add", "a.txt"]);
    });
}

#[test]
fn detached() {
    shape(&[], |world, top| drop(world.git(top, &["checkout", "-q", "--detach", "HEAD~1"])));
}

#[test]
fn with_an_upstream() {
    each_git(|world| {
        let origin = world.repo("origin", &[]);
        let top = world.path("r");
        world.git(&world.home(), &["clone", "-q", origin.to_str().unwrap(), top.to_str().unwrap()]);
        age(&world, &top);
        world.git(&top, &["commit", "-q", "--allow-empty", "-m", "ahead"]);
        write(&origin, "u", "u\n");
        world.commit(&origin, "behind");
        world.git(&top, &["fetch", "-q"]);
        let inside = world.spawn(&top, "in");
        inside.assert_same_as(&top);
        assert!(inside.git(&["status", "--porcelain=v2", "-b"]).contains("# branch.ab +1 -1"));
        assert_eq!(inside.git(&["rev-parse", "origin/HEAD"]), world.git(&top, &["rev-parse", "origin/HEAD"]));
        round_trip(&world, &top, &inside);
    });
}

fn conflict(world: &World, top: &Path) {
    world.git(top, &["checkout", "-q", "-b", "theirs", "HEAD~1"]);
    write(top, "a.txt", "one\nTHEIRS\nthree\n");
    world.commit(top, "theirs");
    world.git(top, &["checkout", "-q", "main"]);
    write(top, "a.txt", "one\nOURS\nthree\n");
    world.commit(top, "ours");
}

fn finish_conflict(inside: &Inside<'_>, go_on: &[&str]) {
    write(&inside.top, "a.txt", "one\nBOTH\nthree\n");
    inside.git(&["add", "a.txt"]);
    inside.git(go_on);
    inside.git(&["fsck", "--no-dangling"]);
}

#[test]
fn a_merge_in_conflict() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        conflict(&world, &top);
        assert!(!world.try_git(&top, &["merge", "theirs"]).status.success());
        let inside = world.spawn(&top, "in");
        inside.assert_same_as(&top);
        finish_conflict(&inside, &["commit", "-q", "--no-edit"]);
        assert_eq!(inside.git(&["rev-list", "--count", "--merges", "HEAD"]), "1\n");
        round_trip(&world, &top, &inside);
        let inside = world.spawn(&top, "in2");
        inside.git(&["merge", "--abort"]);
        assert_eq!(inside.git(&["status", "--porcelain"]), "");
    });
}

#[test]
fn a_rebase_in_conflict_with_both_backends() {
    for backend in ["--merge", "--apply"] {
        each_git(|world| {
            let top = world.repo("r", &[]);
            conflict(&world, &top);
            assert!(!world.try_git(&top, &["rebase", backend, "theirs"]).status.success());
            let inside = world.spawn(&top, "in");
            inside.assert_same_as(&top);
            finish_conflict(&inside, &["rebase", "--continue"]);
            assert_eq!(inside.git(&["symbolic-ref", "HEAD"]), "refs/heads/main\n");
            round_trip(&world, &top, &inside);
            let inside = world.spawn(&top, "in2");
            inside.git(&["rebase", "--abort"]);
            assert_eq!(inside.git(&["log", "-1", "--format=%s"]), "ours\n");
        });
    }
}

#[test]
fn an_interactive_rebase_at_an_edit() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        let editor = ["-c", "sequence.editor=sed -i 1s/pick/edit/", "rebase", "-q", "-i", "HEAD~2"];
        world.git(&top, &editor);
        let inside = world.spawn(&top, "in");
        inside.assert_same_as(&top);
        inside.git(&["rebase", "--continue"]);
        assert_eq!(inside.git(&["status", "--porcelain"]), "");
    });
}

#[test]
fn cherry_pick_revert_and_bisect() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        conflict(&world, &top);
        assert!(!world.try_git(&top, &["cherry-pick", "theirs"]).status.success());
        let inside = world.spawn(&top, "pick");
        inside.assert_same_as(&top);
        finish_conflict(&inside, &["cherry-pick", "--continue"]);
        world.git(&top, &["cherry-pick", "--abort"]);

        world.git(&top, &["bisect", "start", "HEAD", "HEAD~3"]);
        let inside = world.spawn(&top, "bisect");
        inside.assert_same_as(&top);
        inside.git(&["bisect", "good"]);
        inside.git(&["bisect", "reset"]);
        assert_eq!(inside.git(&["symbolic-ref", "HEAD"]), "refs/heads/main\n");
    });
}

#[test]
fn stashes() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        for text in ["first stash\n", "second stash\n"] {
            write(&top, "a.txt", text);
            write(&top, "untracked", text);
            world.git(&top, &["stash", "-q", "-u"]);
        }
        write(&top, "a.txt", "dropped\n");
        world.git(&top, &["stash", "-q"]);
        let dropped = world.git(&top, &["rev-parse", "stash@{0}"]);
        world.git(&top, &["stash", "drop", "-q"]);
        let inside = world.spawn(&top, "in");
        inside.assert_same_as(&top);
        assert!(
            !inside.try_git(&["cat-file", "-e", dropped.trim()]).status.success(),
            "a dropped stash is not granted"
        );
        inside.git(&["stash", "pop", "-q", "stash@{1}"]);
        assert_eq!(fs::read_to_string(inside.top.join("untracked")).unwrap(), "first stash\n");
        round_trip(&world, &top, &inside);
    });
}

#[test]
fn unborn() {
    each_git(|world| {
        let top = world.path("r");
        fs::create_dir(&top).unwrap();
        world.git(&top, &["init", "-q"]);
        write(&top, "staged", "s\n");
        write(&top, "untracked", "u\n");
        world.git(&top, &["add", "staged"]);
        let inside = world.spawn(&top, "in");
        assert_eq!(inside.made.facts.base, None);
        inside.assert_same_as(&top);
        round_trip(&world, &top, &inside);
    });
}

#[test]
fn an_empty_repository() {
    each_git(|world| {
        let top = world.path("r");
        fs::create_dir(&top).unwrap();
        world.git(&top, &["init", "-q"]);
        let inside = world.spawn(&top, "in");
        round_trip(&world, &top, &inside);
    });
}

#[test]
fn a_linked_work_tree_becomes_an_ordinary_one() {
    each_git(|world| {
        let main = world.repo("main", &[]);
        let top = world.path("r");
        world.git(&main, &["worktree", "add", "-q", "-b", "topic", top.to_str().unwrap()]);
        age(&world, &top);
        write(&top, "a.txt", "staged in the linked one\n");
        world.git(&top, &["add", "a.txt"]);
        write(&main, "a.txt", "edited in the main one\n");
        let inside = world.spawn(&top, "in");
        assert!(inside.top.join(".git").is_dir());
        inside.assert_same_as(&top);
        assert_eq!(inside.git(&["rev-parse", "--git-common-dir"]), ".git\n");
        assert_eq!(inside.made.facts.views[0].host_gitdir, main.join(".git"));
        round_trip(&world, &top, &inside);
    });
}

#[test]
fn index_versions_and_settings() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        age(&world, &top);
        for command in [
            &["update-index", "--index-version", "4"][..],
            &["update-index", "--untracked-cache"],
            &[
                "-c",
                "index.recordEndOfIndexEntries=true",
                "-c",
                "index.recordOffsetTable=true",
                "-c",
                "index.threads=2",
                "update-index",
                "--force-write-index",
            ],
            &["update-index", "--split-index"],
            &["update-index", "--assume-unchanged", "a.txt"],
            &["update-index", "--no-split-index", "--index-version", "2", "--skip-worktree", "dir/b.txt"],
        ] {
            world.git(&top, command);
            write(&top, "more.txt", &format!("{command:?}\n"));
            world.git(&top, &["add", "more.txt"]);
            let inside = world.spawn(&top, &format!("in{}", command.len() + command[1].len()));
            inside.assert_same_as(&top);
            fs::remove_dir_all(&inside.top).unwrap();
        }
    });
}

#[test]
fn sparse() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        age(&world, &top);
        for cone in [
            &["sparse-checkout", "set", "--no-cone", "/a.txt"][..],
            &["sparse-checkout", "set", "--cone", "--sparse-index"],
        ] {
            world.git(&top, cone);
            let inside = world.spawn(&top, &format!("in{}", cone.len() + cone[2].len()));
            inside.assert_same_as(&top);
            assert!(!inside.top.join("dir/b.txt").exists());
            inside.git(&["sparse-checkout", "disable"]);
            assert!(inside.top.join("dir/b.txt").exists());
        }
    });
}

#[test]
fn shallow() {
    each_git(|world| {
        let origin = world.repo("origin", &[]);
        let top = world.path("r");
        let url = format!("file://{}", origin.display());
        world.git(&world.home(), &["clone", "-q", "--depth=2", &url, top.to_str().unwrap()]);
        age(&world, &top);
        let inside = world.spawn(&top, "in");
        inside.assert_same_as(&top);
        assert_eq!(inside.git(&["rev-list", "--count", "HEAD"]), "2\n");
        assert_eq!(inside.git(&["rev-parse", "--is-shallow-repository"]), "true\n");
        round_trip(&world, &top, &inside);
        // Deepened: another boundary is another view.
        world.git(&top, &["fetch", "-q", "--unshallow"]);
        let deeper = world.spawn(&top, "deeper");
        assert_ne!(deeper.view().key(), inside.view().key());
        assert_eq!(deeper.git(&["rev-list", "--count", "HEAD"]), "3\n");
        round_trip_again(&world, &top, &inside);
    });
}

/// A sandbox of before still brings its commits home.
fn round_trip_again(world: &World, top: &Path, inside: &Inside<'_>) {
    inside.git(&["commit", "-q", "--allow-empty", "-m", "again"]);
    let head = oid(&inside.git(&["rev-parse", "HEAD"]));
    let landing = open(inside, Bounds::default());
    assert_eq!(land(inside, &landing, &[("refs/sandbox/again", head)]).unwrap().refused, []);
    landing.move_to_host(None, &world.host(top), "again", &[update("refs/sandbox/again", None, head)]).unwrap();
}

#[test]
fn a_partial_clone() {
    each_git(|world| {
        let origin = world.repo("origin", &[]);
        world.git(&origin, &["config", "uploadpack.allowFilter", "true"]);
        let old = world.git(&origin, &["rev-parse", "HEAD~1:dir/b.txt"]);
        let top = world.path("r");
        let url = format!("file://{}", origin.display());
        world.git(&world.home(), &["clone", "-q", "--filter=blob:none", &url, top.to_str().unwrap()]);
        age(&world, &top);
        let inside = world.spawn(&top, "in");
        inside.assert_same_as(&top);
        assert!(inside.view().is_partial());
        assert_eq!(inside.git(&["config", "extensions.partialclone"]), "host\n");
        assert!(!inside.try_git(&["cat-file", "-e", old.trim()]).status.success(), "an absent object stays absent");
        let landing = open(&inside, Bounds::default());
        write(&inside.top, "made-inside.txt", "inside\n");
        inside.git(&["add", "-A"]);
        inside.git(&["commit", "-q", "-m", "made inside"]);
        let head = oid(&inside.git(&["rev-parse", "HEAD"]));
        assert_eq!(land(&inside, &landing, &[("refs/sandbox/x", head)]).unwrap().refused, []);
        landing.move_to_host(None, &world.host(&top), "x", &[update("refs/sandbox/x", None, head)]).unwrap();
        assert_eq!(world.git(&top, &["show", "sandbox/x:made-inside.txt"]), "inside\n");
        // The host did not fetch what it had not.
        let out = world
            .git
            .host(&top.join(".git"))
            .args(["rev-list", "--objects", "--all", "--missing=print"])
            .output()
            .unwrap();
        assert!(String::from_utf8_lossy(&out.stdout).contains(&format!("?{}", old.trim())));
    });
}

#[test]
fn large_files_by_pointer() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        write(&top, ".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n");
        write(&top, "x.bin", "version https://git-lfs.github.com/spec/v1\noid sha256:abcd\nsize 3\n");
        world.commit(&top, "pointer");
        write(&top, ".git/lfs/objects/ab/cd/abcd", "big");
        world.git(&top, &["config", "lfs.https://host.example/.access", "basic"]);
        let inside = world.spawn(&top, "in");
        inside.assert_same_as(&top);
        assert_eq!(fs::read_to_string(inside.top.join(".git/lfs/objects/ab/cd/abcd")).unwrap(), "big");
        assert!(!fs::read_to_string(inside.top.join(".git/config")).unwrap().contains("access"));
        if world.git.env().find_program("git-lfs").is_none() {
            assert_eq!(
                inside.made.facts.notes,
                ["'.gitattributes' uses the filter 'lfs', but 'git-lfs' is not installed"]
            );
        }
        round_trip(&world, &top, &inside);
    });
}

#[test]
fn reftable() {
    each_git(|world| {
        if !world.git.version().unwrap().has_reftable() {
            return;
        }
        let top = world.repo("r", &["--ref-format=reftable"]);
        age(&world, &top);
        world.git(&top, &["tag", "-a", "v1", "-m", "v1"]);
        write(&top, "a.txt", "stashed\n");
        world.git(&top, &["stash", "-q"]);
        world.git(&top, &["checkout", "-q", "-b", "topic"]);
        let inside = world.spawn(&top, "in");
        inside.assert_same_as(&top);
        assert_eq!(inside.git(&["describe"]), "v1\n");
        inside.git(&["stash", "pop", "-q"]);
        inside.git(&["checkout", "-q", "a.txt"]);
        round_trip(&world, &top, &inside);
        assert!(world.git(&top, &["reflog", "show", "refs/sandbox/x"]).contains("commit-back"));
    });
}

#[test]
fn borrowed_objects_replacements_and_odd_names() {
    each_git(|world| {
        let origin = world.repo("origin", &[]);
        let top = world.path("r");
        world.git(&world.home(), &["clone", "-q", "--shared", origin.to_str().unwrap(), top.to_str().unwrap()]);
        age(&world, &top);
        write(&top, "sp ace\u{e9}\n\tx", "odd\n");
        world.commit(&top, "odd");
        let other = world.git(&top, &["commit-tree", "-m", "replaced", "HEAD~1^{tree}"]);
        world.git(&top, &["replace", "HEAD~2", other.trim()]);
        let inside = world.spawn(&top, "in");
        inside.assert_same_as(&top);
        assert_eq!(inside.git(&["log", "--format=%s"]), world.git(&top, &["log", "--format=%s"]));
        let whole = world.spawn_with(&top, "whole", &[], true);
        fs::remove_dir_all(&origin).unwrap();
        for inside in [&inside, &whole] {
            inside.git(&["--no-replace-objects", "fsck", "--no-dangling"]);
        }
    });
}

#[test]
fn submodules_and_nested_repositories() {
    each_git(|world| {
        let library = world.repo("library", &[]);
        let top = world.repo("r", &[]);
        world.git(
            &top,
            &["-c", "protocol.file.allow=always", "submodule", "add", "-q", library.to_str().unwrap(), "libs/lib"],
        );
        world.commit(&top, "with a submodule");
        let nested = world.repo("r/vendor/own", &[]);
        write(&nested, "staged", "s\n");
        world.git(&nested, &["add", "staged"]);
        age(&world, &top);
        let inside = world.spawn(&top, "in");
        inside.assert_same_as(&top);
        let paths: Vec<String> = inside.made.facts.views.iter().map(|v| v.path.display().to_string()).collect();
        assert_eq!(paths, ["", "libs/lib", "vendor/own"]);
        let module = &inside.made.facts.views[1];
        assert_eq!(module.host_gitdir, top.join(".git/modules/libs/lib"));
        assert_eq!(module.inside_gitdir, top.join(".git/modules/libs/lib"));

        let lib = inside.top.join("libs/lib");
        assert_eq!(inside.git_in(&lib, &["status", "--porcelain"]), "");
        assert_eq!(inside.git_in(&inside.top.join("vendor/own"), &["status", "--porcelain"]), "A  staged\n");
        inside.git(&["submodule", "status"]);
        write(&lib, "fix", "f\n");
        inside.git_in(&lib, &["add", "fix"]);
        inside.git_in(&lib, &["commit", "-q", "-m", "fix in the library"]);
        inside.git(&["add", "libs/lib"]);
        inside.git(&["commit", "-q", "-m", "newer library"]);
        inside.git(&["mv", "libs/lib", "libs/renamed"]);
        inside.git_in(&inside.top.join("libs/renamed"), &["status"]);

        // The submodule's commit lands in the host's own git directory of it, first.
        let gitdir = inside.gitdir(module);
        let head = oid(&inside.git_in(&inside.top.join("libs/renamed"), &["rev-parse", "HEAD"]));
        let view = View::open(&inside.repo, &module.key).unwrap().unwrap();
        let landing = Landing::create(&world.git, &world.path("sub.landing"), &view, Bounds::default()).unwrap();
        let wants = [Want { name: name("refs/sandbox/x"), oid: head }];
        let landed = landing.land(&mut || serve(&inside, &gitdir), &wants).unwrap();
        assert_eq!(landed.refused, []);
        let host = sandbox_core::host_repo::HostRepo::from_git_dir(&module.host_gitdir).unwrap();
        landing.move_to_host(None, &host, "x", &[update("refs/sandbox/x", None, head)]).unwrap();
        let main = oid(&inside.git(&["rev-parse", "HEAD"]));
        let landing = open(&inside, Bounds::default());
        assert_eq!(land(&inside, &landing, &[("refs/sandbox/x", main)]).unwrap().refused, []);
        landing.move_to_host(None, &world.host(&top), "x", &[update("refs/sandbox/x", None, main)]).unwrap();
        world.git(&top, &["merge", "-q", "sandbox/x"]);
        world.git(&top, &["submodule", "update", "-q", "--no-fetch"]);
        assert_eq!(fs::read_to_string(top.join("libs/lib/fix")).unwrap(), "f\n");
    });
}

#[test]
fn a_work_tree_within_the_work_tree_is_named() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        world.git(&top, &["worktree", "add", "-q", "trees/one"]);
        let inside = world.spawn(&top, "in");
        assert_eq!(
            inside.made.facts.notes,
            ["'trees/one' is another work tree of this repository: its files are carried, its '.git' is not"]
        );
        assert_eq!(inside.git(&["status", "--porcelain"]), "?? trees/\n");
    });
}
