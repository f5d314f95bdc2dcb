//! Captures, one behaviour each.

mod common;

use common::*;
use rustix::fs::XattrFlags;
use sandbox_capture::*;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

#[test]
fn dump_helper() {
    dump_if_asked();
}

#[test]
fn a_tree_is_captured_as_it_is() {
    let mut f = Fixture::new();
    f.write("a.txt", "one");
    f.write("src/deep/er/x.rs", "fn main() {}");
    f.write("bin/tool", "#!/bin/sh\n");
    f.chmod("bin/tool", 0o755);
    f.mkdir("empty");
    f.chmod("empty", 0o1777);
    f.write("ro/file", "x");
    f.chmod("ro/file", 0o444);
    f.chmod("ro", 0o555);
    symlink("../nowhere", f.path("src/link")).unwrap();
    f.write("name with \n newline", "");
    let captured = f.snap();
    assert_eq!((captured.stats.files, captured.stats.dirs), (6, 6));
    assert_eq!(captured.stats.copied_files, 6);
    assert!(captured.left_out.is_empty() && captured.unsettled.is_empty());
    assert_eq!(captured.layers, ["l1"]);
    f.assert_mounted_equals_host(&captured);
    let link = captured.manifest.lookup(b"src/link").unwrap();
    let copy = fs::symlink_metadata(f.in_layer(&captured, "src/link")).unwrap();
    assert_eq!((link.copy.unwrap().ino, link.copy.unwrap().ctime.sec), (copy.ino(), copy.ctime()));
    f.chmod("ro", 0o755);
}

#[test]
fn nothing_changed_makes_no_layer_and_needs_one_scan() {
    let mut f = Fixture::new();
    f.write("a", "1");
    f.write("d/b", "2");
    f.tick();
    f.snap();
    f.tick();
    let again = f.snap();
    assert_eq!((again.new_layer.clone(), again.layers.clone(), again.stats.scans), (None, vec!["l1".into()], 1));
    assert_eq!((again.stats.unchanged, again.stats.copied_files), (2, 0));
    assert_eq!(fs::read_dir(&f.layers).unwrap().count(), 1);
}

#[test]
fn a_delta_holds_only_what_changed() {
    let mut f = Fixture::new();
    for name in ["a", "d/b", "d/c", "d/e/f", "gone/x/y", "gone/z"] {
        f.write(name, name);
    }
    f.tick();
    f.snap();
    f.tick();
    f.write("d/b", "changed");
    f.write("d/e/new", "new");
    f.remove("gone");
    f.remove("a");
    let second = f.snap();
    assert_eq!(second.layers, ["l2", "l1"]);
    assert_eq!(layer_content(&f, "l2"), ["-a", "-gone", "d/", "d/b", "d/e/", "d/e/new"]);
    assert_eq!((second.stats.copied_files, second.stats.deleted), (2, 2));
    f.assert_mounted_equals_host(&second);
    assert_eq!(second.manifest.lookup(b"d/c").unwrap().layer, Some("l1"));
    assert_eq!(second.manifest.lookup(b"d/b").unwrap().layer, Some("l2"));
}

#[test]
fn a_replaced_directory_is_one_whiteout_per_vanished_name() {
    let mut f = Fixture::new();
    for name in ["d/old", "d/kept", "d/sub/x", "other"] {
        f.write(name, name);
    }
    f.snap();
    f.remove("d");
    f.write("d/kept", "d/kept");
    f.write("d/new", "new");
    let second = f.snap();
    let content = layer_content(&f, "l2");
    assert_eq!(content, ["-d/old", "-d/sub", "d/", "d/kept", "d/new"]);
    f.assert_mounted_equals_host(&second);
}

#[test]
fn types_change_in_all_directions() {
    let mut f = Fixture::new();
    f.write("file-dir", "x");
    f.write("dir-file/a/b", "x");
    f.write("file-link", "x");
    f.write("dir-link/a", "x");
    symlink("x", f.path("link-file")).unwrap();
    symlink("x", f.path("link-dir")).unwrap();
    f.snap();
    for name in ["file-dir", "dir-file", "file-link", "dir-link", "link-file", "link-dir"] {
        f.remove(name);
    }
    f.write("file-dir/n", "1");
    f.write("dir-file", "2");
    symlink("y", f.path("file-link")).unwrap();
    symlink("y", f.path("dir-link")).unwrap();
    f.write("link-file", "3");
    f.write("link-dir/q/r", "4");
    let second = f.snap();
    f.assert_mounted_equals_host(&second);
    // And back: what lies below in the base must not shine through.
    f.remove("dir-file");
    f.mkdir("dir-file");
    f.remove("dir-link");
    f.write("dir-link/b", "5");
    f.remove("file-dir");
    let third = f.snap();
    f.assert_mounted_equals_host(&third);
    f.write("dir-file/a", "6");
    let fourth = f.snap();
    assert_eq!(fourth.layers.len(), 4);
    f.assert_mounted_equals_host(&fourth);
}

#[test]
fn modes_and_times_alone_make_a_delta() {
    let mut f = Fixture::new();
    f.write("a", "a");
    f.write("d/b", "b");
    f.write("d/e/c", "c");
    f.tick();
    f.snap();
    f.tick();
    f.chmod("a", 0o600);
    f.chmod("d/e", 0o700);
    let second = f.snap();
    assert_eq!(layer_content(&f, "l2"), ["a", "d/", "d/e/"]);
    f.assert_mounted_equals_host(&second);
    f.tick();
    fs::File::options().write(true).open(f.path("d/b")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    let third = f.snap();
    assert_eq!(layer_content(&f, "l3"), ["d/", "d/b"]);
    f.assert_mounted_equals_host(&third);
}

#[test]
fn an_edit_that_keeps_size_and_mtime_is_seen() {
    let mut f = Fixture::new();
    f.write("a", "aaaa");
    f.tick();
    f.snap();
    f.tick();
    let before = fs::metadata(f.path("a")).unwrap().modified().unwrap();
    f.write("a", "bbbb");
    fs::File::options().write(true).open(f.path("a")).unwrap().set_modified(before).unwrap();
    let second = f.snap();
    assert_eq!(second.stats.copied_files, 1);
    f.assert_mounted_equals_host(&second);
}

#[test]
fn an_edit_in_the_same_tick_is_seen() {
    // Written, captured, written again: with a coarse clock both writes can have the same times.
    let mut f = Fixture::new();
    f.write("a", "aaaa");
    f.write("b", "bbbb");
    let stamp = fs::metadata(f.path("a")).unwrap().modified().unwrap();
    f.snap();
    for round in 0..20 {
        f.write("a", &format!("{round:04}"));
        fs::File::options().write(true).open(f.path("a")).unwrap().set_modified(stamp).unwrap();
        let captured = f.snap();
        assert_eq!(fs::read_to_string(f.in_layer(&captured, "a")).unwrap(), format!("{round:04}"));
    }
}

#[test]
fn a_touched_inode_with_the_same_content_makes_no_layer() {
    let mut f = Fixture::new();
    f.write("a", "a");
    f.write("d/b", "b");
    symlink("t", f.path("l")).unwrap();
    f.tick();
    f.snap();
    f.tick();
    // Back and forth: only ctime is another in the end.
    f.chmod("a", 0o600);
    f.chmod("a", 0o644);
    f.chmod("d", 0o700);
    f.chmod("d", 0o755);
    fs::rename(f.path("l"), f.path("l2")).unwrap();
    fs::rename(f.path("l2"), f.path("l")).unwrap();
    let second = f.snap();
    assert_eq!(second.new_layer, None);
    f.assert_mounted_equals_host(&second);
    // The refreshed manifest spares the next capture the comparison.
    f.tick();
    f.snap();
    let manifest = f.layers.join("l1").join(MANIFEST);
    let seen = fs::metadata(&manifest).unwrap().ino();
    f.tick();
    f.snap();
    assert_eq!(fs::metadata(&manifest).unwrap().ino(), seen);
    let now = Manifest::open(&manifest).unwrap();
    let host = fs::symlink_metadata(f.path("a")).unwrap();
    let ctime = now.lookup(b"a").unwrap().stat.ctime;
    assert_eq!((ctime.sec, i64::from(ctime.nsec)), (host.ctime(), host.ctime_nsec()));
    // A power cut has left nothing of the new one: the one before says the same about the layers.
    drop(now);
    fs::remove_file(&manifest).unwrap();
    fs::write(&manifest, "").unwrap();
    let before = Manifest::open(&manifest).unwrap();
    assert!(before.lookup(b"a").is_some());
    let third = f.snap();
    assert_eq!(third.new_layer, None);
    f.assert_mounted_equals_host(&third);
    assert!(fs::metadata(&manifest).unwrap().len() > 0, "and is made again");
}

#[test]
fn a_moved_work_tree_is_compared_and_not_copied() {
    let mut f = Fixture::new();
    f.write("a", "a");
    f.write("d/b", "b");
    f.snap();
    let status = std::process::Command::new("cp")
        .args(["-a", f.root.to_str().unwrap(), f.dir.path().join("copy").to_str().unwrap()])
        .status()
        .unwrap();
    assert!(status.success());
    f.root = f.dir.path().canonicalize().unwrap().join("copy");
    let second = f.snap();
    assert_eq!((second.new_layer, second.stats.copied_files), (None, 0));
}

#[test]
fn set_id_bits_are_dropped_and_hard_links_kept() {
    let mut f = Fixture::new();
    f.write("a", "linked");
    f.mkdir("d");
    fs::hard_link(f.path("a"), f.path("d/b")).unwrap();
    f.write("suid", "x");
    f.chmod("suid", 0o4755);
    let first = f.snap();
    let ino = |path| fs::metadata(f.in_layer(&first, path)).unwrap().ino();
    assert_eq!(ino("a"), ino("d/b"));
    assert_eq!(fs::metadata(f.in_layer(&first, "suid")).unwrap().mode() & 0o7777, 0o755);
    for name in ["a", "d/b"] {
        let copy = first.manifest.lookup(name.as_bytes()).unwrap().copy.unwrap();
        let meta = fs::metadata(f.in_layer(&first, name)).unwrap();
        assert_eq!(
            (copy.ino, copy.ctime.sec, i64::from(copy.ctime.nsec)),
            (meta.ino(), meta.ctime(), meta.ctime_nsec())
        );
    }
    // A third name joins: the whole group is one file again in the new layer.
    fs::hard_link(f.path("a"), f.path("c")).unwrap();
    let second = f.snap();
    let ino = |path| fs::metadata(f.in_layer(&second, path)).unwrap().ino();
    assert_eq!((ino("a"), ino("a")), (ino("d/b"), ino("c")));
    f.assert_mounted_equals_host(&second);
}

#[test]
fn sparse_files_stay_sparse() {
    let mut f = Fixture::new();
    let file = fs::File::create(f.path("image")).unwrap();
    file.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"data", 40 << 20).unwrap();
    let captured = f.snap();
    let copy = fs::metadata(f.in_layer(&captured, "image")).unwrap();
    assert_eq!(copy.len(), 64 << 20);
    assert!(copy.blocks() * 512 < 1 << 20);
}

#[test]
fn special_files_are_left_out_and_named_every_time() {
    let mut f = Fixture::new();
    f.write("d/a", "a");
    let fifo = f.path("d/pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(f.path("sock")).unwrap();
    let named = [("d/pipe".to_owned(), Reason::Special), ("sock".to_owned(), Reason::Special)];
    let first = f.snap();
    assert_eq!(left_out(&first), named);
    f.tick();
    let second = f.snap();
    assert_eq!((left_out(&second), second.new_layer.is_none()), (named.to_vec(), true));
    fs::remove_file(&fifo).unwrap();
    f.write("d/pipe", "a file now");
    let third = f.snap();
    assert_eq!(left_out(&third), named[1..]);
    assert_eq!(fs::read_to_string(f.in_layer(&third, "d/pipe")).unwrap(), "a file now");
}

#[test]
fn what_we_may_not_read_is_left_out_until_we_may() {
    if is_root() {
        eprintln!("skipped: root may read everything");
        return;
    }
    let mut f = Fixture::new();
    f.write("secret", "s");
    f.write("locked/in", "x");
    f.write("ok", "x");
    f.chmod("secret", 0);
    f.chmod("locked", 0);
    let named = [("locked".to_owned(), Reason::Unreadable), ("secret".to_owned(), Reason::Unreadable)];
    let first = f.snap();
    assert_eq!(left_out(&first), named);
    f.tick();
    let second = f.snap();
    assert_eq!((left_out(&second), second.new_layer), (named.to_vec(), None));
    f.chmod("secret", 0o600);
    f.chmod("locked", 0o700);
    let third = f.snap();
    assert_eq!(left_out(&third), []);
    f.assert_mounted_equals_host(&third);
    // And the other way: what was carried is hidden again.
    f.tick();
    f.chmod("secret", 0);
    let fourth = f.snap();
    assert_eq!(left_out(&fourth), named[1..]);
    let shown = f.mounted(&fourth.layers);
    assert!(shown.is_none_or(|shown| !shown.contains_key("secret")));
    f.chmod("locked", 0o700);
}

#[test]
fn a_directory_that_may_be_listed_and_not_searched() {
    if is_root() {
        eprintln!("skipped: root may search everything");
        return;
    }
    let mut f = Fixture::new();
    f.write("d/a", "x");
    f.snap();
    f.chmod("d", 0o400);
    let second = f.snap();
    assert_eq!(left_out(&second), [("d/a".to_owned(), Reason::Unreadable)]);
    f.chmod("d", 0o755);
    let third = f.snap();
    f.assert_mounted_equals_host(&third);
}

#[test]
fn git_directories_are_boundaries() {
    let mut f = Fixture::new();
    f.write(".git/HEAD", "ref: refs/heads/x");
    f.write("a", "a");
    f.write("sub/.git", "gitdir: ../.git/modules/sub");
    f.write("sub/b", "b");
    f.write("deep/er/.git/HEAD", "x");
    let boundaries = ["", "deep/er", "sub"].map(std::path::PathBuf::from);
    let first = f.snap();
    assert_eq!(first.git_boundaries, boundaries);
    assert!(first.manifest.lookup(b".git").is_none() && first.manifest.lookup(b"sub/.git").is_none());
    f.tick();
    // Work of git in there is no change of the tree.
    f.write(".git/index", "x");
    let second = f.snap();
    assert_eq!((second.git_boundaries, second.new_layer), (boundaries.to_vec(), None));
    f.remove("sub/.git");
    let third = f.snap();
    assert_eq!(third.git_boundaries, boundaries[..2]);
}

#[test]
fn sandboxignore_keeps_files_out() {
    let mut f = Fixture::new();
    f.write(".sandboxignore", "*.log\nbig/\nvendor/*\n!vendor/keep\n");
    f.write("a.log", "x");
    f.write("tracked.log", "x");
    f.write("big/data", "x");
    f.write("big2/sub/x.log", "x");
    f.write("big2/sub/x.txt", "x");
    f.write("vendor/drop", "x");
    f.write("vendor/keep", "x");
    f.write("half/.sandboxignore", "/in/\n");
    f.write("half/in/tracked", "x");
    f.write("half/in/not", "x");
    let tracked = |path: &[u8]| matches!(path, b"tracked.log" | b"half/in/tracked" | b"half/in/" | b"half/");
    let names = |captured: &Captured| left_out(captured).into_iter().map(|(path, _)| path).collect::<Vec<_>>();
    let first = f.capture_with(|r| r.tracked = &tracked).unwrap();
    let first = f.keep(first);
    assert_eq!(names(&first), ["a.log", "big", "big2/sub/x.log", "half/in/not", "vendor/drop"]);
    assert!(first.left_out.iter().all(|entry| entry.reason == Reason::Ignored));
    f.tick();
    let again = f.capture_with(|r| r.tracked = &tracked).unwrap();
    assert_eq!((names(&again), again.new_layer.clone()), (names(&first), None));
    f.keep(again);
    // Nothing new slips in beside a tracked file of an ignored directory.
    f.write("half/in/new", "x");
    let third = f.capture_with(|r| r.tracked = &tracked).unwrap();
    let third = f.keep(third);
    assert!(names(&third).contains(&"half/in/new".to_owned()));
    // Other rules: what was carried goes, what was left out comes.
    f.write(".sandboxignore", "*.txt\n");
    let fourth = f.capture_with(|r| r.tracked = &tracked).unwrap();
    let fourth = f.keep(fourth);
    assert_eq!(names(&fourth), ["big2/sub/x.txt", "half/in/new", "half/in/not"]);
    let shown = f.mounted(&fourth.layers);
    assert!(shown.is_none_or(|shown| !shown.contains_key("big2/sub/x.txt") && shown.contains_key("big/data")));
    f.remove(".sandboxignore");
    f.remove("half/.sandboxignore");
    let fifth = f.capture_with(|r| r.tracked = &tracked).unwrap();
    let fifth = f.keep(fifth);
    assert_eq!(names(&fifth), [""; 0]);
    f.assert_mounted_equals_host(&fifth);
}

#[test]
fn secrets_are_carried_or_left_out_and_told() {
    let mut f = Fixture::new();
    f.write("src/a", "x");
    f.write(".env", "TOKEN=1");
    f.write("conf/server.pem", "key");
    f.write("fixtures/test.pem", "key");
    f.write("node_modules/p/test.pem", "key");
    f.write(".npmrc", "registry=x");
    let tracked = |path: &[u8]| path == b"fixtures/test.pem";
    let out = f.capture_with(|r| (r.secrets, r.tracked) = (Secrets::LeaveOut, &tracked)).unwrap();
    let out = f.keep(out);
    let both = [".env", "conf/server.pem"].map(std::path::PathBuf::from);
    assert_eq!(left_out(&out), [(".env".into(), Reason::Secret), ("conf/server.pem".into(), Reason::Secret)]);
    assert!(out.carried_secrets.is_empty() && out.manifest.lookup(b"node_modules/p/test.pem").unwrap().layer.is_some());
    f.tick();
    // The other answer brings them in, and back.
    let carried = f.capture_with(|r| r.tracked = &tracked).unwrap();
    let carried = f.keep(carried);
    assert_eq!((carried.carried_secrets.clone(), left_out(&carried)), (both.to_vec(), vec![]));
    f.assert_mounted_equals_host(&carried);
    f.tick();
    let again = f.capture_with(|r| r.tracked = &tracked).unwrap();
    let again = f.keep(again);
    assert_eq!((again.carried_secrets.clone(), again.new_layer.clone()), (both.to_vec(), None));
    let out = f.capture_with(|r| (r.secrets, r.tracked) = (Secrets::LeaveOut, &tracked)).unwrap();
    let out = f.keep(out);
    assert_eq!(out.left_out.len(), 2);
    let shown = f.mounted(&out.layers);
    assert!(shown.is_none_or(|shown| !shown.contains_key(".env")));
    // A harmless file becomes one; one becomes tracked.
    f.write(".npmrc", "//x/:_authToken=1");
    let all = |path: &[u8]| path != b".npmrc";
    let out = f.capture_with(|r| (r.secrets, r.tracked) = (Secrets::LeaveOut, &all)).unwrap();
    let out = f.keep(out);
    assert_eq!(left_out(&out), [(".npmrc".into(), Reason::Secret)]);
    assert!(out.manifest.lookup(b".env").unwrap().layer.is_some() && out.carried_secrets.is_empty());
}

#[test]
fn git_is_asked_once_for_each_of_its_states() {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    let mut f = Fixture::new();
    f.write(".sandboxignore", "*.log\n");
    for name in [".env", "x.log", "a", "out/big", "conf/tracked.pem"] {
        f.write(name, &"x".repeat(1000));
    }
    f.tick();
    let asked: &'static AtomicU32 = Box::leak(Box::default());
    let count = |answer| {
        asked.fetch_add(1, Relaxed);
        answer
    };
    let tracked = |path: &[u8]| count(path == b"conf/tracked.pem");
    let ignored = |path: &[u8], _: bool| count(path == b"out");
    let ask = |f: &mut Fixture, git_state, secrets| {
        asked.store(0, Relaxed);
        let captured = f
            .capture_with(|r| {
                (r.tracked, r.ignored, r.git_state, r.secrets) = (&tracked, &ignored, git_state, secrets);
                r.limit = Some(limit(500));
            })
            .unwrap();
        let captured = f.keep(captured);
        (captured, asked.load(Relaxed))
    };
    let (first, n) = ask(&mut f, 7, Secrets::LeaveOut);
    assert!(n > 0);
    let out = [(".env".into(), Reason::Secret), ("out".into(), Reason::OverLimit), ("x.log".into(), Reason::Ignored)];
    assert_eq!(left_out(&first), out);
    f.tick();
    f.write("a", "changed");
    let (second, n) = ask(&mut f, 7, Secrets::LeaveOut);
    assert_eq!((left_out(&second), n), (out.to_vec(), 0));
    f.tick();
    let (third, n) = ask(&mut f, 8, Secrets::LeaveOut);
    assert_eq!((left_out(&third), third.new_layer, n > 0), (out.to_vec(), None, true));
    let (_, n) = ask(&mut f, 8, Secrets::LeaveOut);
    assert_eq!(n, 0, "the state was not remembered");
    // Unknown is always asked.
    assert!(ask(&mut f, 0, Secrets::LeaveOut).1 > 0 && ask(&mut f, 0, Secrets::LeaveOut).1 > 0);
    ask(&mut f, 9, Secrets::Carry);
    let (carried, n) = ask(&mut f, 9, Secrets::Carry);
    assert_eq!((carried.carried_secrets, n), (vec![".env".into()], 0));
}

#[test]
fn git_is_not_asked_about_small_directories() {
    let mut f = Fixture::new();
    for n in 0..50 {
        f.write(&format!("d{n}/sub/f"), "small");
    }
    f.write("deep/er/big", &"x".repeat(100_000));
    let asked = std::sync::Mutex::new(Vec::new());
    let ignored = |path: &[u8], _: bool| {
        asked.lock().unwrap().push(String::from_utf8(path.to_vec()).unwrap());
        false
    };
    let first = f.capture_with(|r| (r.limit, r.ignored) = (Some(limit(60_000)), &ignored)).unwrap();
    assert_eq!(first.left_out, []);
    assert_eq!(*asked.lock().unwrap(), ["deep", "deep/er"]);
}

#[test]
fn the_state_directory_in_the_tree_is_not_there() {
    let mut f = Fixture::new();
    f.write("a", "a");
    f.write(".state/x/y", "z");
    let exclude = [f.root.join(".state"), std::path::PathBuf::from("/elsewhere")];
    let exclude: &'static [std::path::PathBuf] = Box::leak(Box::new(exclude));
    let first = f.capture_with(|r| r.exclude = exclude).unwrap();
    let first = f.keep(first);
    assert!(first.left_out.is_empty() && first.manifest.lookup(b".state").is_none());
    f.tick();
    f.write(".state/x/z", "z");
    let second = f.capture_with(|r| r.exclude = exclude).unwrap();
    assert_eq!(second.new_layer, None);
}

fn limit(over: u64) -> Limit<'static> {
    Limit { ignored_over: over, cachedir_over: 0, with_reflinks: true, with: &[] }
}

#[test]
fn large_directories_that_can_be_made_again_are_left_out() {
    let mut f = Fixture::new();
    f.write("src/main", "x");
    f.write("out/obj/a", &"o".repeat(50_000));
    f.write("out/obj/b", &"o".repeat(50_000));
    f.write("cache/CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55");
    f.write("cache/x", "x");
    f.write("small/a", "x");
    let ignored = |path: &[u8], _: bool| matches!(path, b"out" | b"small") || path.starts_with(b"out/");
    let first = f.capture_with(|r| (r.limit, r.ignored) = (Some(limit(60_000)), &ignored)).unwrap();
    let first = f.keep(first);
    assert_eq!(left_out(&first), [("cache".into(), Reason::OverLimit), ("out".into(), Reason::OverLimit)]);
    assert!(first.manifest.lookup(b"small/a").is_some() && first.manifest.lookup(b"out/obj").is_none());
    f.tick();
    let again = f.capture_with(|r| (r.limit, r.ignored) = (Some(limit(60_000)), &ignored)).unwrap();
    let again = f.keep(again);
    assert_eq!((again.left_out.clone(), again.new_layer.clone()), (first.left_out.clone(), None));
    // Asked for by name.
    let with: &'static [std::path::PathBuf] = Box::leak(Box::new(["out".into(), "cache/x".into()]));
    let third = f.capture_with(|r| (r.limit, r.ignored) = (Some(Limit { with, ..limit(60_000) }), &ignored)).unwrap();
    let third = f.keep(third);
    assert_eq!(left_out(&third), []);
    f.assert_mounted_equals_host(&third);
    // Later the old state serves; the rest of the tree is up to date.
    f.tick();
    f.write("out/obj/a", &"p".repeat(50_000));
    f.write("out/obj/c", &"p".repeat(50_000));
    f.remove("out/obj/b");
    f.write("src/main", "y");
    let fourth = f.capture_with(|r| (r.limit, r.ignored) = (Some(limit(60_000)), &ignored)).unwrap();
    let fourth = f.keep(fourth);
    assert_eq!(left_out(&fourth), [("out".into(), Reason::Stale)]);
    assert_eq!(layer_content(&f, fourth.new_layer.as_ref().unwrap()), ["src/", "src/main"]);
    assert!(fs::read_to_string(f.in_layer(&fourth, "out/obj/a")).unwrap().starts_with('o'));
    f.tick();
    let fifth = f.capture_with(|r| (r.limit, r.ignored) = (Some(limit(60_000)), &ignored)).unwrap();
    let fifth = f.keep(fifth);
    assert_eq!((left_out(&fifth), fifth.new_layer.clone()), (left_out(&fourth), None));
    // What hardly changed is brought up to date however large it is.
    let sixth = f.capture_with(|r| (r.limit, r.ignored) = (Some(limit(200_000)), &ignored)).unwrap();
    let sixth = f.keep(sixth);
    assert_eq!(left_out(&sixth), []);
    f.assert_mounted_equals_host(&sixth);
}

#[test]
fn a_tracked_cache_is_no_cache() {
    let mut f = Fixture::new();
    f.write("cache/CACHEDIR.TAG", "Signature");
    f.write("cache/x", "x");
    let tracked = |path: &[u8]| path.starts_with(b"cache/");
    let first = f.capture_with(|r| (r.limit, r.tracked) = (Some(limit(0)), &tracked)).unwrap();
    assert_eq!(left_out(&first), []);
}

#[test]
fn a_full_stack_is_folded_onto_its_base() {
    let mut f = Fixture::new();
    f.write("base/a", "a");
    f.write("base/b", "b");
    f.write("gone", "x");
    f.write("dir/x", "x");
    f.snap();
    for n in 0..MAX_STACK - 1 {
        f.tick();
        f.write(&format!("n/{n}"), "x");
        match n {
            3 => f.remove("gone"),
            4 => f.write("base/a", "changed"),
            5 => f.remove("dir"),
            6 => f.write("dir/y", "again"),
            7 => fs::hard_link(f.path("base/b"), f.path("base/c")).unwrap(),
            8 => symlink("x", f.path("link")).unwrap(),
            9 => f.chmod("base", 0o711),
            _ => {}
        }
        f.snap();
    }
    assert_eq!(f.stack.len(), MAX_STACK);
    f.tick();
    let full = f.snap();
    assert_eq!((full.layers.len(), full.rebased), (MAX_STACK, None));
    f.write("last", "x");
    let folded = f.snap();
    assert_eq!((folded.layers.len(), folded.rebased), (2, Some(Rebased::Folded { kept: true })));
    assert_eq!(folded.layers[1], "l1");
    f.assert_mounted_equals_host(&folded);
    let content = layer_content(&f, &folded.layers[0]);
    assert!(
        content.contains(&"-gone".into()) && content.contains(&"-dir/x".into()) && !content.contains(&"base/n".into())
    );
    assert_eq!(folded.manifest.lookup(b"base/b").unwrap().copy.unwrap().ino, {
        let meta = fs::metadata(f.in_layer(&folded, "base/c")).unwrap();
        meta.ino()
    });
    f.tick();
    let after = f.snap();
    assert_eq!(after.new_layer, None);
    f.write("more", "x");
    let after = f.snap();
    assert_eq!(after.layers.len(), 3);
    f.assert_mounted_equals_host(&after);
}

/// Bytes of all layers of a stack, each file once.
fn weight(f: &Fixture, layers: &[String]) -> u64 {
    let files = layers
        .iter()
        .flat_map(|id| layer_content(f, id).into_iter().map(move |path| f.layers.join(id).join(TREE).join(path)));
    files.filter_map(|path| fs::symlink_metadata(path).ok()).filter(|meta| meta.is_file()).map(|meta| meta.len()).sum()
}

#[test]
fn a_tree_that_goes_back_and_forth_has_few_layers() {
    let mut f = Fixture::new();
    for n in 0..70 {
        f.write(&format!("same/{n}"), &"s".repeat(1000));
        f.write(&format!("src/{n}"), &"main".repeat(100));
    }
    f.write("only/main", "m");
    f.snap();
    let mut heaviest = 0;
    for round in 0..2 * MAX_STACK {
        f.tick();
        // As a checkout does it: files are written anew, one goes, another comes.
        let (word, comes, goes) = if round % 2 == 0 { ("other", "other", "main") } else { ("main", "main", "other") };
        for n in 0..70 {
            f.write(&format!("src/{n}"), &word.repeat(100));
        }
        f.remove("only");
        f.write(&format!("only/{comes}"), "x");
        f.write(&format!("{comes}/deep/er/x"), "x");
        if f.path(goes).exists() {
            f.remove(goes);
        }
        // And somebody adds a note now and then, that stays.
        if round % 7 == 3 {
            f.write(&format!("note{round}"), "n");
        }
        let captured = f.snap();
        // The base, in the end one with the notes, and one for the branch.
        assert!(captured.layers.len() <= 3, "round {round}: {:?}", captured.layers);
        assert!(captured.layers.ends_with(&["l1".into()]));
        heaviest = heaviest.max(weight(&f, &captured.layers));
        if round % 5 == 0 {
            f.assert_mounted_equals_host(&captured);
        }
        f.tick();
        assert_eq!(f.snap().new_layer, None, "round {round}");
    }
    let once = 70 * 1000 + 70 * 4 * 100;
    assert!(heaviest < 2 * once, "{heaviest} bytes, the tree has {once}");
    let last = f.snap();
    f.assert_mounted_equals_host(&last);
}

#[test]
fn a_file_that_is_edited_over_and_over_has_few_copies() {
    let mut f = Fixture::new();
    f.write("a", "0");
    f.write("b", "0");
    f.snap();
    let mut folded = 0;
    for n in 1..12 {
        f.tick();
        f.write("a", &n.to_string());
        let captured = f.snap();
        assert!(captured.layers.len() <= 4, "{:?}", captured.layers);
        assert_eq!(captured.stats.copied_files, 1);
        folded += usize::from(captured.rebased == Some(Rebased::Folded { kept: false }));
    }
    assert!(folded >= 2, "{folded}");
    for n in 1..8 {
        f.tick();
        f.write("b", &n.to_string());
        let captured = f.snap();
        assert!(
            captured.layers.len() <= 5,
            "one more, for the layer of 'a', which is still in use: {:?}",
            captured.layers
        );
        f.assert_mounted_equals_host(&captured);
    }
}

#[test]
fn a_damaged_or_missing_stack_is_replaced() {
    let mut f = Fixture::new();
    f.write("a", "a");
    f.snap();
    fs::write(f.layers.join("l1").join(MANIFEST), "garbage").unwrap();
    let second = f.snap();
    assert_eq!((second.layers.len(), second.rebased), (1, Some(Rebased::Unusable)));
    f.stack = vec!["no-such-layer".into()];
    let third = f.snap();
    assert_eq!(third.rebased, Some(Rebased::Unusable));
    f.assert_mounted_equals_host(&third);
}

#[test]
fn user_attributes_are_kept_and_those_of_overlays_are_not() {
    let mut f = Fixture::new();
    f.write("a", "a");
    let set = |name: &str| rustix::fs::setxattr(f.path("a"), name, b"v", rustix::fs::XattrFlags::empty());
    if let Err(error) = set("user.note") {
        eprintln!("skipped: no user attributes here: {error}");
        return;
    }
    set("user.overlay.opaque").unwrap();
    let first = f.snap();
    let get = |name: &str, captured: &Captured| {
        let mut value = [0; 8];
        rustix::fs::getxattr(f.in_layer(captured, "a"), name, &mut value[..]).ok()
    };
    assert_eq!((get("user.note", &first), get("user.overlay.opaque", &first)), (Some(1), None));
}

/// An access control list in the kernel's format: tag, rights, id.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, rights, id) in entries {
        list.extend(tag.to_le_bytes().into_iter().chain(rights.to_le_bytes()).chain(id.to_le_bytes()));
    }
    list
}

#[test]
fn access_control_lists_are_carried_as_far_as_they_mean_something_inside() {
    let (none, me, stranger) = (u32::MAX, rustix::process::geteuid().as_raw(), 4242);
    let theirs = acl(&[(1, 7, none), (2, 6, me), (2, 7, stranger), (4, 5, none), (16, 7, none), (32, 0, none)]);
    let ours = acl(&[(1, 7, none), (2, 6, me), (4, 5, none), (16, 7, none), (32, 0, none)]);
    let mut f = Fixture::new();
    for path in ["d/mine", "d/theirs", "d/plain"] {
        f.write(path, "x");
    }
    f.mkdir("d/below");
    let set = |path: &str, name: &str, value: &[u8]| {
        rustix::fs::setxattr(f.path(path), name, value, rustix::fs::XattrFlags::empty())
    };
    if let Err(error) = set("d/mine", "system.posix_acl_access", &ours) {
        eprintln!("skipped: no access control lists here: {error}");
        return;
    }
    set("d/theirs", "system.posix_acl_access", &theirs).unwrap();
    set("d", "system.posix_acl_default", &theirs).unwrap();
    set("d", "user.note", b"of a directory").unwrap();
    let first = f.snap();
    let get = |f: &Fixture, layer: &str, path: &str, name: &str| {
        let mut value = [0; 512];
        let at = f.layers.join(layer).join(TREE).join(path);
        rustix::fs::getxattr(at, name, &mut value[..]).ok().map(|len| value[..len].to_vec())
    };
    let access = "system.posix_acl_access";
    assert_eq!(get(&f, "l1", "d/mine", access), Some(ours.clone()));
    assert_eq!(get(&f, "l1", "d/theirs", access), Some(ours.clone()), "the stranger's entry is not there");
    assert_eq!(get(&f, "l1", "d", "system.posix_acl_default"), Some(ours.clone()));
    assert_eq!(get(&f, "l1", "d", "user.note").as_deref(), Some(&b"of a directory"[..]));
    assert_eq!(get(&f, "l1", "d/plain", access), None);
    assert_eq!(fs::metadata(f.in_layer(&first, "d/theirs")).unwrap().mode() & 0o777, 0o770);
    assert_eq!(first.stats.lessened, 2, "the file and the directory");
    f.tick();
    let second = f.snap();
    assert_eq!((second.new_layer, second.stats.lessened), (None, 2), "nothing has changed");
    // Only an attribute of a directory is another: neither its mode nor its mtime tells.
    f.tick();
    rustix::fs::setxattr(f.path("d/below"), "user.note", b"new", rustix::fs::XattrFlags::empty()).unwrap();
    let third = f.snap();
    assert_eq!(third.stats.lessened, 2);
    let id = third.new_layer.clone().expect("a delta");
    assert_eq!(get(&f, &id, "d/below", "user.note").as_deref(), Some(&b"new"[..]));
    assert_eq!(
        get(&f, &id, "d", "system.posix_acl_default"),
        Some(ours.clone()),
        "what the delta holds, it holds whole"
    );
    f.assert_mounted_equals_host(&third);
    f.tick();
    // A change elsewhere, of which the layer with the attribute is a part that may be given up.
    f.write("d/plain", "another");
    let fourth = f.snap();
    let top = fourth.layers.iter().find(|id| f.layers.join(id).join(TREE).join("d/below").exists()).unwrap().clone();
    assert_eq!(get(&f, &top, "d/below", "user.note").as_deref(), Some(&b"new"[..]));
    f.tick();
    rustix::fs::removexattr(f.path("d/below"), "user.note").unwrap();
    let id = f.snap().new_layer.expect("a delta");
    assert_eq!(get(&f, &id, "d/below", "user.note"), None);
    f.tick();
    // What is not carried is known of each entry, not counted when it is copied.
    rustix::fs::setxattr(f.path("d/theirs"), access, &ours, XattrFlags::empty()).unwrap();
    assert_eq!(f.snap().stats.lessened, 1);
    rustix::fs::setxattr(f.path("d/below"), "system.posix_acl_default", &theirs, XattrFlags::empty()).unwrap();
    assert_eq!(f.snap().stats.lessened, 2);
    f.remove("d/below");
    f.tick();
    assert_eq!(f.snap().stats.lessened, 1);
    assert_eq!(f.snap().root_attributes, []);
    for (name, value) in [("user.note", &b"of the top"[..]), (access, &theirs)] {
        rustix::fs::setxattr(f.path(""), name, value, XattrFlags::empty()).unwrap();
    }
    let last = f.snap();
    let top = [(access.into(), ours), (b"user.note".to_vec(), b"of the top".to_vec())];
    assert_eq!((last.root_attributes.as_slice(), last.stats.lessened), (&top[..], 2));
}

#[test]
fn file_capabilities_are_left_out_and_counted() {
    if !is_root() {
        eprintln!("skipped: only root gives capabilities");
        return;
    }
    let mut f = Fixture::new();
    f.write("ping", "x");
    // linux/capability.h: revision 2, effective; CAP_NET_RAW permitted.
    let mut value = 0x0200_0001u32.to_le_bytes().to_vec();
    value.extend([0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    rustix::fs::setxattr(f.path("ping"), "security.capability", &value, rustix::fs::XattrFlags::empty()).unwrap();
    let first = f.snap();
    let left = rustix::fs::getxattr(f.in_layer(&first, "ping"), "security.capability", &mut [0u8; 64][..]);
    assert_eq!(left, Err(rustix::io::Errno::NODATA));
    assert_eq!(first.stats.lessened, 1);
}

#[test]
fn a_failing_capture_leaves_nothing_behind() {
    struct No;
    impl Progress for No {
        fn estimate(&self, estimate: &Estimate) -> Decision {
            assert_eq!(estimate.files, 2);
            assert_eq!(estimate.largest[0].0.to_str(), Some("data"));
            Decision::Abort
        }
    }
    let mut f = Fixture::new();
    f.write("small", "x");
    f.mkdir("data");
    // Allocated without being written: large for the estimate, quick for the test.
    let file = fs::File::create(f.path("data/big")).unwrap();
    if rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, (1 << 30) + 1).is_err() {
        eprintln!("skipped: no room for a file of 1 GiB");
        return;
    }
    let result = f.capture_with(|r| r.progress = &No);
    match result {
        Err(CaptureError::Aborted) => assert_eq!(fs::read_dir(&f.layers).unwrap().count(), 0),
        Ok(_) => eprintln!("skipped: reflinks here, nothing to announce"),
        Err(other) => panic!("{other}"),
    }
    assert_eq!(fs::read_dir(&f.tmp).unwrap().count(), 0);
}

#[test]
fn progress_adds_up() {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    #[derive(Default)]
    struct Count(AtomicU64, AtomicU64);
    impl Progress for Count {
        fn copied(&self, files: u64, bytes: u64) {
            self.0.fetch_add(files, Relaxed);
            self.1.fetch_add(bytes, Relaxed);
        }
    }
    let mut f = Fixture::new();
    for n in 0..300 {
        f.write(&format!("d{}/f{n}", n % 3), "12345");
    }
    let count: &'static Count = Box::leak(Box::default());
    let captured = f.capture_with(|r| r.progress = count).unwrap();
    assert_eq!((count.0.load(Relaxed), count.1.load(Relaxed)), (300, 1500));
    assert_eq!((captured.stats.copied_files, captured.stats.copied_bytes), (300, 1500));
}

#[test]
fn a_tree_that_never_rests_names_the_file() {
    // Whenever something has been copied, the log has another mode again.
    struct Restless(std::path::PathBuf, std::sync::atomic::AtomicU32);
    impl Progress for Restless {
        fn copied(&self, _: u64, _: u64) {
            let n = self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            fs::set_permissions(&self.0, fs::Permissions::from_mode(0o600 + n % 0o100)).unwrap();
        }
    }
    let mut f = Fixture::new();
    f.write("still", "x");
    f.write("log", "x");
    let restless: &'static Restless = Box::leak(Box::new(Restless(f.path("log"), 0.into())));
    // On a busy machine so much time may pass between two steps that a capture settles.
    let captured = (0..50).find_map(|_| {
        let captured = f.capture_with(|r| r.progress = restless).unwrap();
        let captured = f.keep(captured);
        f.chmod("log", 0o700);
        (!captured.unsettled.is_empty()).then_some(captured)
    });
    let captured = captured.expect("each of 50 captures settled");
    assert_eq!(captured.unsettled, [std::path::PathBuf::from("log")]);
    assert_eq!(captured.stats.scans, 5);
    assert_eq!(fs::read_to_string(f.in_layer(&captured, "still")).unwrap(), "x");
    f.tick();
    let settled = f.snap();
    assert!(settled.unsettled.is_empty());
    f.assert_mounted_equals_host(&settled);
}

/// Ends the other thread also when an assertion fails.
struct Stop<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Runs something once, while files are copied.
struct Meanwhile<F: Fn() + Sync>(std::sync::Once, F);

impl<F: Fn() + Sync> Progress for Meanwhile<F> {
    fn copied(&self, _: u64, _: u64) {
        self.0.call_once(&self.1);
    }
}

#[test]
fn one_scan_is_enough_when_times_prove_it() {
    let mut f = Fixture::new();
    for n in 0..100 {
        f.write(&format!("d{}/f{n}", n % 7), "x");
    }
    symlink("d0", f.path("link")).unwrap();
    f.tick();
    let first = f.snap();
    assert_eq!((first.stats.scans, first.stats.copied_files), (1, 101));
    f.assert_mounted_equals_host(&first);
    f.write("d1/f1", "changed");
    f.write("d2/new/deep", "new");
    f.remove("d3/f3");
    fs::hard_link(f.path("d4/f4"), f.path("d5/linked")).unwrap();
    f.chmod("d6", 0o711);
    f.tick();
    let second = f.snap();
    assert_eq!(second.stats.scans, 1);
    f.assert_mounted_equals_host(&second);
    f.tick();
    assert_eq!(f.snap().new_layer, None);
    // What was written in this very tick can be written again without a trace.
    f.write("d1/f1", "just now");
    assert!(f.snap().stats.scans > 1);
}

#[test]
fn a_change_while_files_are_copied_gets_another_scan() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 6] = [
        ("a new file in a changed directory", |root| fs::write(root.join("src/later"), "x").unwrap()),
        ("one that goes from there", |root| fs::remove_file(root.join("src/gone")).unwrap()),
        ("the changed file itself, once more", |root| fs::write(root.join("src/deep/a"), "third").unwrap()),
        ("a replaced directory above it", |root| {
            fs::rename(root.join("src"), root.join("old")).unwrap();
            fs::rename(root.join("other"), root.join("src")).unwrap();
        }),
        ("an entry of the top directory", |root| fs::write(root.join("top"), "x").unwrap()),
        ("a file replaced by rename", |root| fs::rename(root.join("other/deep/a"), root.join("src/deep/a")).unwrap()),
    ];
    for (what, change) in changes {
        let mut f = Fixture::new();
        for name in ["src/deep/a", "src/gone", "other/deep/a", "b"] {
            f.write(name, "first");
        }
        f.snap();
        f.tick();
        f.write("src/deep/a", "second");
        f.write("src/new", "new");
        f.tick();
        let root = f.root.clone();
        let meanwhile = Box::leak(Box::new(Meanwhile(std::sync::Once::new(), move || change(&root))));
        let captured = f.capture_with(|r| r.progress = meanwhile).unwrap();
        let captured = f.keep(captured);
        if what == "the changed file itself, once more" && captured.stats.scans == 1 {
            // It was read before: the snapshot is older than this write, as a whole.
            assert_eq!(fs::read_to_string(f.in_layer(&captured, "src/deep/a")).unwrap(), "second");
            continue;
        }
        assert!(captured.stats.scans > 1, "{what}");
        f.assert_mounted_equals_host(&captured);
    }
}

#[test]
fn what_changes_elsewhere_meanwhile_is_not_in_the_snapshot() {
    let mut f = Fixture::new();
    f.write("src/a", "1");
    f.write("far/away/b", "1");
    f.snap();
    f.tick();
    f.write("src/a", "2");
    f.tick();
    let b = f.path("far/away/b");
    let meanwhile = Box::leak(Box::new(Meanwhile(std::sync::Once::new(), move || fs::write(&b, "2").unwrap())));
    let captured = f.capture_with(|r| r.progress = meanwhile).unwrap();
    let captured = f.keep(captured);
    let read = |captured: &Captured, path| fs::read_to_string(f.in_layer(captured, path)).unwrap();
    assert_eq!(
        (captured.stats.scans, read(&captured, "src/a"), read(&captured, "far/away/b")),
        (1, "2".into(), "1".into())
    );
    let next = f.snap();
    assert_eq!(fs::read_to_string(f.in_layer(&next, "far/away/b")).unwrap(), "2");
}

#[test]
fn a_busy_tree_ends_in_one_instant() {
    // Files `a` and `b` are always written in this order with the same number: no capture may hold
    // a newer `b` than `a`.
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    let mut f = Fixture::new();
    f.write("a", "00000000");
    f.write("z/b", "00000000");
    for n in 0..200 {
        f.write(&format!("m{n}"), "filler");
    }
    let stop = AtomicBool::new(false);
    let (a, b, draft) = (f.path("a"), f.path("z/b"), f.tmp.join("../draft"));
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| {
            let mut n = 0;
            while !stop.load(Relaxed) {
                n += 1;
                // By rename: a file that is being written is empty at some instants.
                for target in [&a, &b] {
                    fs::write(&draft, format!("{n:08}")).unwrap();
                    fs::rename(&draft, target).unwrap();
                }
                std::thread::sleep(std::time::Duration::from_millis(25));
            }
        });
        for _ in 0..20 {
            let captured = f.snap();
            if captured.unsettled.is_empty() {
                let a = fs::read_to_string(f.in_layer(&captured, "a")).unwrap();
                let b = fs::read_to_string(f.in_layer(&captured, "z/b")).unwrap();
                assert!(a >= b, "{a} {b}");
            }
        }
    });
}

#[test]
fn a_tree_that_is_turned_over_meanwhile() {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    let mut f = Fixture::new();
    for n in 0..40 {
        f.write(&format!("d{}/e{}/f{n}", n % 4, n % 3), "x");
    }
    let stop = AtomicBool::new(false);
    let root = f.root.clone();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0u32;
            while !stop.load(Relaxed) {
                n = n.wrapping_mul(1_103_515_245).wrapping_add(12_345);
                let dir = root.join(format!("d{}/e{}", (n >> 8) % 4, (n >> 12) % 3));
                let _ = match (n >> 16) % 7 {
                    0 => remove_tree(&dir),
                    1 => fs::rename(&dir, root.join(format!("d{}/e{}", (n >> 20) % 4, (n >> 24) % 3))),
                    2 => fs::create_dir_all(dir.join("sub")),
                    3 => fs::write(&dir, "a file"),
                    4 => symlink("x", dir.join("link")),
                    _ => fs::write(dir.join(format!("f{}", (n >> 20) % 9)), n.to_string()),
                };
            }
        });
        let _stop = Stop(&stop);
        for _ in 0..30 {
            f.snap();
        }
    });
    f.tick();
    let last = f.snap();
    assert!(last.unsettled.is_empty());
    f.assert_mounted_equals_host(&last);
}

#[test]
fn deep_trees_and_wide_directories() {
    let mut f = Fixture::new();
    // Deeper than one path can name.
    let mut at = rustix::fs::open(&f.root, rustix::fs::OFlags::DIRECTORY, 0.into()).unwrap();
    for _ in 0..60 {
        let name = "d".repeat(120);
        rustix::fs::mkdirat(&at, &name, 0o755.into()).unwrap();
        at = rustix::fs::openat(&at, &name, rustix::fs::OFlags::DIRECTORY, 0.into()).unwrap();
    }
    rustix::fs::openat(&at, "leaf", rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY, 0o644.into()).unwrap();
    for n in 0..5000 {
        f.write(&format!("wide/{n}"), "");
    }
    f.tick();
    let first = f.snap();
    assert_eq!((first.stats.files, first.stats.dirs), (5001, 61));
    let deep = vec!["d".repeat(120); 60].join("/") + "/leaf";
    assert!(first.manifest.lookup(deep.as_bytes()).unwrap().copy.is_some());
    f.tick();
    assert_eq!(f.snap().new_layer, None);
    f.write("wide/4999", "changed");
    let third = f.snap();
    assert_eq!(third.stats.copied_files, 1);
    remove_tree(&f.root).unwrap();
    for id in &third.layers {
        remove_tree(&f.layers.join(id)).unwrap();
    }
}

#[test]
fn the_layer_belongs_to_the_owner() {
    if !is_root() {
        eprintln!("skipped: only root gives files away");
        return;
    }
    let mut f = Fixture::new();
    f.write("d/a", "x");
    f.write("gone", "x");
    symlink("x", f.path("l")).unwrap();
    let first = f.capture_with(|r| r.owner = Some((4321, 8765))).unwrap();
    f.keep(first);
    f.remove("gone");
    let second = f.capture_with(|r| r.owner = Some((4321, 8765))).unwrap();
    for id in &second.layers {
        for path in ["", "manifest", "tree", "tree/d", "tree/d/a", "tree/l", "tree/gone"] {
            if let Ok(meta) = fs::symlink_metadata(f.layers.join(id).join(path)) {
                assert_eq!((meta.uid(), meta.gid()), (4321, 8765), "{id}/{path}");
            }
        }
    }
    assert_eq!(fs::metadata(f.layers.join("l1")).unwrap().permissions().mode() & 0o777, 0o700);
}
