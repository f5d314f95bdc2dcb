//! Modes, symlinks, binary files, files and directories in each other's place.

use super::World;
use crate::How;
use std::os::unix::fs::symlink;

#[test]
fn executable_bits_come_and_go() {
    let mut world = World::new(&[("run", "#!/bin/sh\n"), ("tool", "t\n")]);
    World::chmod(world.host.join("tool"), 0o755);
    world.git(&["commit", "-qam", "+x"]);
    world.spawn();
    World::chmod(world.inside.join("run"), 0o755);
    World::chmod(world.inside.join("tool"), 0o644);
    world.agent(&["commit", "-qam", "modes"]);
    assert_eq!(world.merged(), "");
    assert_eq!(world.git(&["ls-files", "--format=%(objectmode) %(path)"]), "100755 run\n100644 tool\n");
}

#[test]
fn an_executable_bit_of_the_user_is_kept_beside_new_content() {
    let mut world = World::new(&[("run", "1\n2\n")]);
    world.spawn();
    World::chmod(world.host.join("run"), 0o755);
    world.agent_write("run", "1\n2 AGENT\n");
    world.agent(&["commit", "-qam", "run"]);
    assert_eq!(world.merged(), " M run\n");
    assert_eq!(world.git(&["diff", "--summary"]), " mode change 100644 => 100755 run\n");
    assert_eq!(world.read("run"), "1\n2 AGENT\n");
}

#[test]
fn permissions_of_a_file_stay() {
    use std::os::unix::fs::MetadataExt;
    let mut world = World::new(&[("secret", "1\n")]);
    World::chmod(world.host.join("secret"), 0o600);
    world.spawn();
    world.agent_write("secret", "2\n");
    world.agent(&["commit", "-qam", "2"]);
    assert_eq!(world.merged(), "");
    assert_eq!(std::fs::metadata(world.host.join("secret")).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn symlinks_are_written_as_symlinks() {
    let mut world = World::new(&[("a", "1\n"), ("b", "1\n")]);
    symlink("a", world.host.join("link")).unwrap();
    world.git(&["add", "-A"]);
    world.git(&["commit", "-qm", "link"]);
    world.spawn();
    for name in ["link", "b"] {
        std::fs::remove_file(world.inside.join(name)).unwrap();
        symlink("elsewhere", world.inside.join(name)).unwrap();
    }
    world.agent(&["add", "-A"]);
    world.agent(&["commit", "-qm", "links"]);
    assert_eq!(world.merged(), "");
    for name in ["link", "b"] {
        assert_eq!(std::fs::read_link(world.host.join(name)).unwrap().to_str(), Some("elsewhere"));
    }
}

#[test]
fn a_symlink_changed_on_both_sides_conflicts() {
    let mut world = World::new(&[("a", "1\n")]);
    symlink("a", world.host.join("link")).unwrap();
    world.git(&["add", "-A"]);
    world.git(&["commit", "-qm", "link"]);
    world.spawn();
    for (top, target) in [(&world.host, "here"), (&world.inside, "there")] {
        std::fs::remove_file(top.join("link")).unwrap();
        symlink(target, top.join("link")).unwrap();
    }
    world.agent(&["commit", "-qam", "link"]);
    assert_eq!(world.refused(), "cannot merge 'fix'\n'link' changed here since the sandbox was spawned, and there too");
}

#[test]
fn nothing_is_written_through_a_symlink() {
    let mut world = World::new(&[("a", "1\n")]);
    world.spawn();
    let outside = world.host.parent().unwrap().join("outside");
    std::fs::create_dir(&outside).unwrap();
    symlink(&outside, world.host.join("dir")).unwrap();
    world.agent_write("dir/file", "x\n");
    world.agent(&["add", "-A"]);
    world.agent(&["commit", "-qm", "dir"]);
    assert_eq!(
        world.refused(),
        "cannot merge 'fix'\n'dir/file' cannot be written below 'dir', which is not a directory here"
    );
    assert_eq!(std::fs::read_dir(outside).unwrap().count(), 0);
}

#[test]
fn binary_files_are_taken_or_refused_whole() {
    let mut world = World::new(&[("bin", "\0\x01old"), ("bin2", "\0\x01old")]);
    world.write("bin2", "\0user");
    world.spawn();
    world.agent_write("bin", "\0agent");
    world.agent_write("bin2", "\0user and agent");
    world.agent(&["commit", "-qam", "bin"]);
    assert_eq!(world.merged(), "");
    assert_eq!(world.read("bin2"), "\0user and agent");

    world.spawn_again();
    world.agent_write("bin", "\0agent again");
    world.agent(&["commit", "-qam", "bin"]);
    world.write("bin", "\0user");
    assert_eq!(world.refused(), "cannot merge 'fix'\n'bin' is binary, and changed here and there");
}

#[test]
fn deleted_here_and_changed_there() {
    let mut world = World::new(&[("a", "1\n"), ("b", "1\n")]);
    world.spawn();
    world.agent_write("a", "2\n");
    world.agent_write("b", "2\n");
    world.agent(&["commit", "-qam", "a b"]);
    world.remove("a");
    assert_eq!(world.refused(), "cannot merge 'fix'\n'a' is deleted here and changed there");
    world.git(&["checkout", "a"]);
    world.git(&["rm", "-q", "--cached", "b"]);
    assert_eq!(world.refused(), "cannot merge 'fix'\n'b' has staged changes that overlap with those there");
}

#[test]
fn a_file_becomes_a_directory_and_back() {
    let mut world = World::new(&[("x", "1\n"), ("d/one", "1\n"), ("d/two/three", "1\n")]);
    world.spawn();
    world.agent(&["rm", "-qr", "x", "d"]);
    world.agent_write("x/inner", "2\n");
    world.agent_write("d", "2\n");
    world.agent(&["add", "-A"]);
    world.agent(&["commit", "-qm", "swap"]);
    assert_eq!(world.merged(), "");
    assert_eq!(world.read("x/inner"), "2\n");
    assert_eq!(world.read("d"), "2\n");
}

#[test]
fn a_directory_with_other_files_is_not_replaced() {
    let mut world = World::new(&[("d/one", "1\n"), (".gitignore", "ignored\n")]);
    world.spawn();
    world.agent(&["rm", "-qr", "d"]);
    world.agent_write("d", "2\n");
    world.agent(&["add", "-A"]);
    world.agent(&["commit", "-qm", "d"]);
    world.write("d/ignored", "mine\n");
    assert_eq!(
        world.refused(),
        "cannot merge 'fix'\n'd' is a directory here, with 'd/ignored' in it, and a file there"
    );
}

#[test]
fn a_directory_goes_with_its_last_file_only() {
    let mut world = World::new(&[("d/one", "1\n"), ("e/f/one", "1\n"), ("keep", "1\n")]);
    world.write("d/untracked", "u\n");
    world.spawn();
    world.agent(&["rm", "-qr", "d/one", "e"]);
    world.agent(&["commit", "-qm", "rm"]);
    assert_eq!(world.merged(), "?? d/untracked\n");
    assert!(!world.exists("e"));
}

#[test]
fn names_of_any_bytes() {
    let mut world = World::new(&[("a", "1\n")]);
    world.spawn();
    for name in ["with space", "new\nline", "tab\tquote\"", "*", "[x]", "-dash", "\u{202e}"] {
        world.agent_write(name, name);
    }
    world.agent(&["add", "-A"]);
    world.agent(&["commit", "-qm", "names"]);
    assert_eq!(world.merged(), "");
    assert_eq!(world.read("new\nline"), "new\nline");
}

#[test]
fn submodules_move_in_the_index_and_are_not_looked_into() {
    let mut world = World::new(&[("a", "1\n")]);
    let id = world.git(&["rev-parse", "HEAD"]);
    let cacheinfo = |id: &str| format!("160000,{id},sub");
    world.git(&["update-index", "--add", "--cacheinfo", &cacheinfo(id.trim())]);
    world.git(&["commit", "-qm", "sub"]);
    let second = world.git(&["rev-parse", "HEAD"]);
    std::fs::create_dir(world.host.join("sub")).unwrap();
    world.spawn();
    world.agent(&["update-index", "--cacheinfo", &cacheinfo(second.trim())]);
    world.agent(&["update-index", "--add", "--cacheinfo", &format!("160000,{},new", second.trim())]);
    world.agent(&["commit", "-qm", "move"]);
    assert_eq!(world.merged(), "");
    assert!(world.git(&["ls-files", "-s", "sub"]).contains(second.trim()));
    assert!(world.host.join("new").is_dir());
}

#[test]
fn squash_and_merge_commits() {
    let mut world = World::new(&[("a", "1\n")]);
    world.spawn();
    for n in 2..4 {
        world.agent_write("a", format!("{n}\n"));
        world.agent(&["commit", "-qam", &format!("change {n}")]);
    }
    let base = world.git(&["rev-parse", "HEAD"]);
    world.merge(How::Squash).unwrap();
    assert_eq!(
        world.git(&["log", "-1", "--format=%P%n%B"]),
        format!("{base}Squash sandbox 'fix'\n\n* change 2\n* change 3\n\n")
    );
    assert_eq!((world.status().as_str(), world.read("a").as_str()), ("", "3\n"));
    // the same again has nothing to add
    assert_eq!(world.plan(How::Squash).unwrap().what, crate::What::UpToDate);
    world.git(&["reset", "-q", "--hard", "HEAD^"]);
    world.merge(How::NoFf).unwrap();
    let tip = world.git(&["rev-parse", "refs/sandbox/fix"]);
    assert_eq!(world.git(&["log", "-1", "--format=%P%n%B"]), format!("{} {}Merge sandbox 'fix'\n\n", base.trim(), tip));
    assert_eq!(world.git(&["rev-parse", "ORIG_HEAD"]), base);
}
