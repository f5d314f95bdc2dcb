//! A stack of layers as one ordinary directory: what an overlay of it would show, without the overlay.

mod common;

use common::*;
use rustix::fs::XattrFlags;
use sandbox_capture::*;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

#[test]
fn dump_helper() {
    dump_if_asked();
}

/// Copies a fixture's stack into an empty directory beside it.
fn copied(f: &Fixture, name: &str) -> (PathBuf, Result<Whole, WholeError>) {
    let target = f.dir.path().canonicalize().unwrap().join(name);
    fs::create_dir(&target).unwrap();
    let done = whole(&WholeRequest { layers: &trees(f), target: &target, threads: 2, progress: &() });
    (target, done)
}

fn trees(f: &Fixture) -> Vec<PathBuf> {
    f.stack.iter().map(|id| f.layers.join(id).join(TREE)).collect()
}

#[track_caller]
fn assert_copy_is_the_host(f: &Fixture, name: &str) -> (PathBuf, Whole) {
    let (target, done) = copied(f, name);
    assert_eq!(dump(&target), dump(&f.root));
    (target, done.unwrap())
}

#[test]
fn unusual_files_and_names_are_as_on_the_host() {
    let mut f = Fixture::new();
    for name in [&b"latin-\xe9"[..], b"two\nlines", b"tab\there", b" blank ", b"-dash", b"Case", b"cASE", b"\xff"] {
        fs::write(f.root.join(OsStr::from_bytes(name)), name).unwrap();
    }
    let dir = f.root.join(OsStr::from_bytes(b"dir-\xff\n"));
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join(OsStr::from_bytes(&[b'n'; 255])), "the longest name").unwrap();
    f.write("empty", "");
    f.mkdir("no/files/in/here");
    symlink("/nonexistent/absolute", f.path("absolute")).unwrap();
    symlink("dangling\n", f.path("link")).unwrap();
    for (path, mode) in [("read-only", 0o444), ("executable", 0o755), ("nobody", 0o000), ("set", 0o6755)] {
        f.write(path, path);
        f.chmod(path, mode);
    }
    f.write("closed/inside", "x");
    f.write("sticky/inside", "x");
    let sparse = fs::File::create(f.path("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_all_at(b"data", 32 << 20).unwrap();
    f.write("pair/one", "two names");
    fs::hard_link(f.path("pair/one"), f.path("pair/two")).unwrap();
    fs::hard_link(f.path("pair/one"), f.path("no/three")).unwrap();
    f.chmod("sticky", 0o1777);
    f.chmod("closed", 0o500);
    if !is_root() {
        // Whom nobody may read is not captured.
        f.remove("nobody");
    }
    let captured = f.snap();
    let (target, done) = assert_copy_is_the_host(&f, "copy");
    assert_eq!(done.files, captured.stats.files);
    let meta = |path: &str| fs::metadata(target.join(path)).unwrap();
    assert_eq!((meta("pair/one").ino(), meta("pair/one").nlink()), (meta("no/three").ino(), 3));
    assert!(meta("sparse").blocks() * 512 < 8 << 20, "holes stay holes");
    assert_eq!(meta("set").mode() & 0o7777, 0o755, "as in a layer");
    f.chmod("closed", 0o700);
}

#[test]
fn whiteouts_hide_and_are_not_there() {
    let mut f = Fixture::new();
    for path in ["gone", "kept", "dir/a", "dir/b/c", "was-dir/x", "was-file", "again/old", "deep/er/one", "deep/er/two"]
    {
        f.write(path, "first");
    }
    f.snap();
    f.tick();
    for path in ["gone", "dir/b", "was-dir", "was-file", "again", "deep/er/one"] {
        f.remove(path);
    }
    f.write("was-dir", "a file now");
    f.write("was-file/y", "a directory now");
    f.write("dir/new", "second");
    f.snap();
    f.tick();
    f.write("again/new", "third");
    f.remove("was-dir");
    f.write("was-dir/z", "a directory again");
    f.remove("was-file");
    fs::hard_link(f.path("kept"), f.path("was-file")).unwrap();
    f.snap();
    assert_eq!(f.stack.len(), 3);
    let (target, _) = assert_copy_is_the_host(&f, "copy");
    assert!(!target.join("again/old").exists() && !target.join("was-dir/x").exists());
    // Of a part of the stack too.
    f.stack.remove(0);
    let (target, done) = copied(&f, "before");
    done.unwrap();
    assert_eq!(fs::read_to_string(target.join("was-dir")).unwrap(), "a file now");
    assert!(!target.join("again").exists() && target.join("was-file/y").exists());
}

#[test]
fn attributes_come_along() {
    let mut f = Fixture::new();
    f.write("dir/file", "x");
    let set = |path: &str, value: &[u8]| rustix::fs::setxattr(f.path(path), "user.note", value, XattrFlags::empty());
    if let Err(error) = set("dir/file", b"of a file\0\xff") {
        eprintln!("skipped: no user attributes here: {error}");
        return;
    }
    set("dir", b"of a directory").unwrap();
    f.snap();
    let (target, _) = assert_copy_is_the_host(&f, "copy");
    let get = |path: &str| {
        let mut value = [0; 64];
        rustix::fs::getxattr(target.join(path), "user.note", &mut value[..]).map(|len| value[..len].to_vec())
    };
    assert_eq!(get("dir/file").unwrap(), b"of a file\0\xff");
    assert_eq!(get("dir").unwrap(), b"of a directory");
}

#[test]
fn what_cannot_be_copied_is_named() {
    let mut f = Fixture::new();
    f.write("a/file", "x");
    f.write("b", "y");
    f.snap();
    let target = f.dir.path().canonicalize().unwrap().join("copy");
    let fill = |layers: &[PathBuf]| whole(&WholeRequest { layers, target: &target, threads: 1, progress: &() });
    let error = fill(&trees(&f)).unwrap_err();
    assert_eq!((error.path.as_path(), error.to_string()), (&*target, format!("cannot copy '{}'", target.display())));
    fs::create_dir(&target).unwrap();
    let missing = f.layers.join("l9/tree");
    assert_eq!(fill(&[trees(&f), vec![missing.clone()]].concat()).unwrap_err().path, missing);
    // What is there already is never written over.
    fs::write(target.join("b"), "mine").unwrap();
    let error = fill(&trees(&f)).unwrap_err();
    assert_eq!((error.path, error.source.kind()), (target.join("b"), std::io::ErrorKind::AlreadyExists));
    assert_eq!(fs::read_to_string(target.join("b")).unwrap(), "mine");
    if !is_root() {
        fs::remove_dir_all(&target).unwrap();
        fs::create_dir(&target).unwrap();
        let layer = f.layers.join(&f.stack[0]).join(TREE).join("b");
        fs::set_permissions(&layer, fs::Permissions::from_mode(0o000)).unwrap();
        assert_eq!(fill(&trees(&f)).unwrap_err().source.kind(), std::io::ErrorKind::PermissionDenied);
    }
}

#[derive(Default)]
struct Heard {
    announced: (AtomicU64, AtomicU64),
    copied: (AtomicU64, AtomicU64),
}

impl Progress for Heard {
    fn whole(&self, files: u64, bytes: u64) {
        self.announced.0.store(files, Relaxed);
        self.announced.1.store(bytes, Relaxed);
    }
    fn copied(&self, files: u64, bytes: u64) {
        self.copied.0.fetch_add(files, Relaxed);
        self.copied.1.fetch_add(bytes, Relaxed);
    }
}

#[test]
fn what_is_announced_is_what_is_copied() {
    let mut f = Fixture::new();
    for n in 0..200 {
        f.write(&format!("d{}/f{n}", n % 3), &"x".repeat(n));
    }
    f.snap();
    let target = f.dir.path().join("copy");
    fs::create_dir(&target).unwrap();
    let heard = Heard::default();
    let done = whole(&WholeRequest { layers: &trees(&f), target: &target, threads: 4, progress: &heard }).unwrap();
    let bytes = (0..200).sum::<u64>();
    assert_eq!((done.files, done.bytes), (200, bytes));
    for (files, all) in [&heard.announced, &heard.copied] {
        assert_eq!((files.load(Relaxed), all.load(Relaxed)), (200, bytes));
    }
}

#[test]
fn the_manifest_of_a_copy_knows_its_inodes() {
    let mut f = Fixture::new();
    for path in ["a", "dir/b", "dir/c"] {
        f.write(path, path);
    }
    let captured = f.snap();
    let (target, _) = assert_copy_is_the_host(&f, "copy");
    let manifest_of = |manifest: &Manifest, before: Option<&Path>, tree: &Path| {
        let path = f.dir.path().join("manifest");
        fs::write(&path, restated(manifest, before, tree).unwrap()).unwrap();
        Manifest::open(&path).unwrap()
    };
    let copy = manifest_of(&captured.manifest, None, &target);
    let same = |manifest: &Manifest, tree: &Path, path: &str| {
        let meta = fs::symlink_metadata(tree.join(path)).unwrap();
        let entry = manifest.lookup(path.as_bytes()).unwrap();
        entry.copy.map(|copy| (copy.ino, copy.ctime.sec)) == Some((meta.ino(), meta.ctime()))
    };
    for path in ["a", "dir/b", "dir/c"] {
        assert!(same(&copy, &target, path), "{path}");
    }
    // Of a copy of that copy: what was changed in the first one is compared by content.
    fs::write(target.join("dir/b"), "changed").unwrap();
    let twin = f.dir.path().join("twin");
    assert!(std::process::Command::new("cp").arg("-a").args([&target, &twin]).status().unwrap().success());
    let inherited = manifest_of(&copy, Some(&target), &twin);
    assert!(same(&inherited, &twin, "a") && same(&inherited, &twin, "dir/c"));
    assert_eq!(inherited.lookup(b"dir/b").unwrap().copy, None);
    fs::remove_file(twin.join("dir/c")).unwrap();
    fs::create_dir(twin.join("dir/c")).unwrap();
    assert_eq!(manifest_of(&copy, Some(&target), &twin).lookup(b"dir/c").unwrap().copy, None, "another thing");
}
