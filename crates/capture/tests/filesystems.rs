//! The same on real XFS and Btrfs, in a loop device: reflinks, subvolumes, other inode sizes.
//!
//! Needs root and mkfs. The test runs itself again in a mount namespace of its own, so that the mount
//! goes away with it however the test ends.

mod common;

use common::*;
use sandbox_capture::*;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

#[test]
fn dump_helper() {
    dump_if_asked();
}

/// Makes a filesystem in a file and runs the test `inner` in it.
fn run_on(mkfs: &[&str], inner: &str) {
    if !is_root() {
        eprintln!("skipped: {} needs root for a loop mount", mkfs[0]);
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    fs::File::create(&image).unwrap().set_len(512 << 20).unwrap();
    let made = Command::new(mkfs[0]).args(&mkfs[1..]).arg(&image).output();
    match made {
        Ok(output) if output.status.success() => {}
        Ok(output) => panic!("{}: {}", mkfs[0], String::from_utf8_lossy(&output.stderr)),
        Err(error) => {
            eprintln!("skipped: {} is not installed: {error}", mkfs[0]);
            return;
        }
    }
    let point = dir.path().join("mnt");
    fs::create_dir(&point).unwrap();
    let script = "mount -o loop \"$1\" \"$2\" || exit 42; exec \"$0\" --exact \"$3\" --nocapture";
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .args([image.as_os_str(), point.as_os_str()])
        .arg(inner)
        .env("REFLINK_DIR", &point)
        .output()
        .unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.code() == Some(42) {
        eprintln!("skipped: no loop mounts of {} here: {text}", mkfs[0]);
        return;
    }
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn xfs() {
    run_on(&["mkfs.xfs", "-q", "-m", "reflink=1"], "inner_reflinks");
}

#[test]
fn btrfs() {
    run_on(&["mkfs.btrfs", "-q"], "inner_reflinks");
}

#[test]
fn ext4_with_whole_seconds() {
    // Inodes of 128 bytes have no room for nanoseconds: every capture must compare by content for
    // two seconds, and must not miss an edit within one.
    run_on(&["mkfs.ext4", "-q", "-I", "128"], "inner_coarse");
}

#[test]
fn inner_reflinks() {
    let Some(dir) = std::env::var_os("REFLINK_DIR") else { return };
    let dir = Path::new(&dir);
    let mut f = Fixture::at(tempfile::tempdir_in(dir).unwrap());
    f.write("a", &"a".repeat(300_000));
    f.write("d/tiny", "t");
    f.write("d/empty", "");
    f.mkdir("ro");
    symlink("a", f.path("link")).unwrap();
    fs::hard_link(f.path("a"), f.path("d/hard")).unwrap();
    let image = fs::File::create(f.path("image")).unwrap();
    image.set_len(64 << 20).unwrap();
    image.write_all_at(b"data", 40 << 20).unwrap();
    // Much to carry, nothing to copy: neither the limit nor the announcement applies.
    f.write("cache/CACHEDIR.TAG", "Signature");
    f.write("cache/x", &"x".repeat(100_000));
    let limit = Limit { ignored_over: 10, cachedir_over: 0, with_reflinks: false, with: &[] };
    let first = f.capture_with(|r| r.limit = Some(limit)).unwrap();
    let first = f.keep(first);
    assert_eq!(left_out(&first), []);
    assert!(first.stats.reflinked >= 5, "{:?}", first.stats);
    f.assert_mounted_equals_host(&first);
    assert!(fs::metadata(f.in_layer(&first, "image")).unwrap().blocks() * 512 < 1 << 20);
    assert_eq!(
        fs::metadata(f.in_layer(&first, "a")).unwrap().ino(),
        fs::metadata(f.in_layer(&first, "d/hard")).unwrap().ino()
    );
    // The host goes on writing; the layer stays.
    f.tick();
    fs::File::options().write(true).open(f.path("a")).unwrap().write_all_at(b"bbbb", 1000).unwrap();
    assert!(fs::read(f.in_layer(&first, "a")).unwrap().iter().all(|b| *b == b'a'));
    f.remove("d/tiny");
    f.write("d/new", "n");
    let second = f.snap();
    f.assert_mounted_equals_host(&second);
    assert_eq!(second.stats.reflinked, 2, "the changed file once, and the new one: {:?}", second.stats);
    f.tick();
    assert_eq!(f.snap().new_layer, None);
    for n in 0..MAX_STACK {
        f.tick();
        f.write(&format!("d/new{n}"), &n.to_string());
        f.snap();
    }
    let folded = f.snap();
    assert!(folded.layers.len() < 5, "{:?}", folded.layers);
    f.assert_mounted_equals_host(&folded);
}

#[test]
fn inner_coarse() {
    let Some(dir) = std::env::var_os("REFLINK_DIR") else { return };
    let mut f = Fixture::at(tempfile::tempdir_in(Path::new(&dir)).unwrap());
    f.write("a", "0");
    f.snap();
    for n in 1..30 {
        f.write("a", &(n % 10).to_string());
        let captured = f.snap();
        assert_eq!(fs::read_to_string(f.in_layer(&captured, "a")).unwrap(), (n % 10).to_string());
        f.tick();
    }
    let last = f.snap();
    f.assert_mounted_equals_host(&last);
}
