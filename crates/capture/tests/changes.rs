//! What an upper directory says, written by a real overlay mount or by hand.

mod common;

use common::*;
use sandbox_capture::*;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

#[test]
fn dump_helper() {
    dump_if_asked();
}

fn told(upper: &Path, f: &Fixture, captured: &Captured) -> Vec<String> {
    let changes = changes(upper, &f.layers, &captured.manifest).unwrap();
    changes
        .iter()
        .map(|change| {
            let mark = match change.kind {
                ChangeKind::Added => "A",
                ChangeKind::Modified => "M",
                ChangeKind::Deleted => "D",
                ChangeKind::Unreadable => "?",
            };
            format!("{mark} {}", change.path.display())
        })
        .collect()
}

fn sample() -> (Fixture, Captured) {
    let mut f = Fixture::new();
    for name in ["a", "b", "c", "dir/x", "dir/sub/y", "dir/sub/z", "other/k", "exec", "same"] {
        f.write(name, name);
    }
    symlink("a", f.path("link")).unwrap();
    f.write(".git/HEAD", "x");
    f.snap();
    f.write("dir/x", "newer");
    f.mkdir("hollow/inner");
    let captured = f.snap();
    (f, captured)
}

#[test]
fn a_mount_that_changed_everything_in_some_way() {
    let (f, captured) = sample();
    let top = f.dir.path().join("s/1");
    let script = "echo new > a; rm b; touch c; chmod 755 exec; printf same > same; rm -r dir/sub; mkdir dir/sub; \
         echo q > dir/sub/q; rm -r other; echo file > other; ln -sf c link; mkdir -p n/m; echo 1 > n/m/f; \
         mkdir empty; mkdir .git; echo x > .git/x; echo deep > hollow/inner/f; rmdir hollow/inner 2>/dev/null || true; \
         mkfifo pipe; mv dir/x moved; ln a hard";
    if f.inside(&captured.layers, &top, script).is_none() {
        return;
    }
    let expected = [
        "M a",
        "D b",
        "D dir/sub/y",
        "A dir/sub/q",
        "D dir/sub/z",
        "D dir/x",
        "M exec",
        "A hard",
        "A hollow/inner/f",
        "M link",
        "A moved",
        "A n/m/f",
        "A other",
        "D other/k",
        "A pipe",
    ];
    let mut expected = expected.map(str::to_owned).to_vec();
    expected.sort_by_key(|line| PathBuf::from(&line[2..]));
    assert_eq!(told(&top.join("upper"), &f, &captured), expected);
    assert_eq!(told(&top.join("no such upper"), &f, &captured), Vec::<String>::new());
}

#[test]
fn an_idle_mount_changed_nothing() {
    let (f, captured) = sample();
    let top = f.dir.path().join("s/1");
    // Read, opened for appending and left alone, written with what was there already.
    let script = "cat a dir/x > /dev/null; : >> b; printf c > c; chmod 700 dir; chmod 755 dir; cp a t; rm t";
    if f.inside(&captured.layers, &top, script).is_some() {
        assert_eq!(told(&top.join("upper"), &f, &captured), Vec::<String>::new());
    }
}

#[test]
fn a_hostile_upper_directory_is_only_read() {
    let (f, captured) = sample();
    let upper = f.dir.path().join("upper");
    fs::create_dir_all(upper.join("dir")).unwrap();
    // A symlink where a directory was captured leads nowhere.
    symlink("/etc", upper.join("other")).unwrap();
    fs::create_dir(upper.join("closed")).unwrap();
    fs::write(upper.join("closed/in"), "x").unwrap();
    fs::write(upper.join("same"), "same").unwrap();
    fs::set_permissions(upper.join("closed"), std::os::unix::fs::PermissionsExt::from_mode(0o0)).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, upper.join("a"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, upper.join("dir/x"), rustix::fs::FileType::CharacterDevice, 0.into(), 0)
        .unwrap();
    let mut at = rustix::fs::open(&upper, rustix::fs::OFlags::DIRECTORY, 0.into()).unwrap();
    for _ in 0..2500 {
        rustix::fs::mkdirat(&at, "d", 0o755.into()).unwrap();
        at = rustix::fs::openat(&at, "d", rustix::fs::OFlags::DIRECTORY, 0.into()).unwrap();
    }
    rustix::fs::openat(&at, "leaf", rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY, 0o644.into()).unwrap();
    drop(at);
    let found = changes(&upper, &f.layers, &captured.manifest).unwrap();
    let has = |path: &str, kind| found.iter().any(|change| change.path == Path::new(path) && change.kind == kind);
    assert!(has("a", ChangeKind::Modified) && has("dir/x", ChangeKind::Deleted));
    assert!(has("other", ChangeKind::Added) && has("other/k", ChangeKind::Deleted));
    let closed = if is_root() { has("closed/in", ChangeKind::Added) } else { has("closed", ChangeKind::Unreadable) };
    assert!(closed, "{found:?}");
    assert!(found.iter().any(|change| change.path.ends_with("d/d/d/leaf")));
    assert_eq!(found.len(), 6);
    remove_tree(&upper).unwrap();
}

#[test]
fn opaque_directories_and_attribute_whiteouts() {
    let (f, captured) = sample();
    let upper = f.dir.path().join("upper");
    fs::create_dir_all(upper.join("dir/sub")).unwrap();
    fs::write(upper.join("dir/sub/y"), "dir/sub/y").unwrap();
    fs::write(upper.join("b"), "").unwrap();
    let set =
        |path: &str, name: &str| rustix::fs::setxattr(upper.join(path), name, b"y", rustix::fs::XattrFlags::empty());
    if let Err(error) = set("dir", "user.overlay.opaque") {
        eprintln!("skipped: no user attributes here: {error}");
        return;
    }
    set("b", "user.overlay.whiteout").unwrap();
    assert_eq!(told(&upper, &f, &captured), ["D b", "D dir/sub/z", "D dir/x"]);
}
