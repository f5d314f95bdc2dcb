//! After a small change the manifest says only what differs, and says the same as a whole one.

mod common;

use common::*;
use sandbox_capture::*;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

#[test]
fn dump_helper() {
    dump_if_asked();
}

const DIRS: usize = 60;
const EACH: usize = 50;

/// A tree that is large enough for a delta.
fn large() -> Fixture {
    let mut f = Fixture::new();
    for dir in 0..DIRS {
        for file in 0..EACH {
            f.write(&format!("d{}/e{dir}/f{file}", dir % 7), "x");
        }
    }
    f.tick();
    f.snap();
    f.tick();
    f
}

/// The whole manifests beside a layer's delta.
fn bases(f: &Fixture, layer: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(f.layers.join(layer)).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("base-")).collect()
}

fn size(f: &Fixture, layer: &str) -> u64 {
    fs::metadata(f.layers.join(layer).join(MANIFEST)).unwrap().len()
}

fn ino(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

/// What is said about every entry, but for what only a layer's own copies have.
fn said(manifest: &Manifest) -> BTreeMap<Vec<u8>, (Stat, Option<Reason>, bool)> {
    manifest.walk(b"").map(|(path, entry)| (path, (entry.stat, entry.left_out, entry.layer.is_some()))).collect()
}

/// Compares with a capture of the same tree by one that knows nothing, and what is counted with what is there.
fn assert_says_all(f: &Fixture, captured: &Captured) {
    let mut fresh = Fixture::new();
    let none = fresh.capture_with(|request| request.root = &f.root).unwrap();
    assert_eq!(said(&captured.manifest), said(&none.manifest));
    let newest = Manifest::open(&f.layers.join(&captured.layers[0]).join(MANIFEST)).unwrap();
    assert_eq!(said(&newest), said(&captured.manifest), "what is on the disk is what was told");
    let mut sums = BTreeMap::<String, u64>::new();
    let (mut files, mut dirs) = (0, 0);
    for (_, entry) in newest.walk(b"") {
        match (entry.layer, entry.kind()) {
            (Some(_), Kind::Dir) => dirs += 1,
            (Some(layer), _) => {
                files += 1;
                *sums.entry(layer.to_owned()).or_default() += entry.stat.size;
            }
            (None, _) => {}
        }
    }
    assert_eq!((captured.stats.files, captured.stats.dirs, newest.files()), (files, dirs, files));
    let weight = weigh(&f.layers, &captured.layers, |_| 0).unwrap();
    let base = captured.layers.last().unwrap();
    assert_eq!(weight.base_live, sums.get(base).copied().unwrap_or_default());
    assert_eq!(weight.base_live + weight.above_live, sums.values().sum::<u64>());
}

#[test]
fn as_much_is_written_as_has_changed() {
    let mut f = large();
    assert!(size(&f, "l1") > 200_000);
    f.write("d1/e1/f1", "another");
    let one = f.snap();
    // An entry is 80 bytes and its place 8: the file and the top directory; layers, header and tables.
    assert!(size(&f, "l2") < 500, "{}", size(&f, "l2"));
    assert_eq!(one.stats.copied_files, 1);
    let base = bases(&f, "l2");
    assert_eq!(base.len(), 1);
    assert_eq!(ino(&base[0]), ino(&f.layers.join("l1").join(MANIFEST)), "nothing of the whole one is written");
    assert_says_all(&f, &one);
    f.assert_mounted_equals_host(&one);
    f.tick();
    f.snap();
    assert!(f.snap().new_layer.is_none());
    // What is added or goes takes its directory's entries along, and no other.
    f.tick();
    f.write("d1/e1/new", "new");
    f.remove("d2/e2/f7");
    f.remove("d3/e3");
    let more = f.snap();
    let top = more.new_layer.clone().unwrap();
    assert!(size(&f, &top) < (2 * EACH as u64 + 40) * 100, "{}", size(&f, &top));
    assert_says_all(&f, &more);
    f.assert_mounted_equals_host(&more);
    assert_eq!(ino(&bases(&f, &top)[0]), ino(&base[0]), "a delta stands on no other delta");
}

#[test]
fn any_change_says_the_same_as_a_whole_one() {
    let mut f = large();
    let mut seed = 7u64;
    let mut next = |n: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % n
    };
    let (mut deltas, mut folded) = (0, 0);
    for round in 0..30 {
        for _ in 0..=next(4) {
            let (dir, file) = (next(DIRS), next(EACH));
            let path = format!("d{}/e{dir}", dir % 7);
            match next(9) {
                0 => f.remove(&path),
                1 => f.write(&format!("{path}/new{round}/deep/x"), "new"),
                2 => drop(fs::remove_file(f.path(&format!("{path}/f{file}")))),
                3 => drop(fs::rename(f.path(&path), f.path(&format!("d{}/moved{round}", next(7))))),
                4 => drop(fs::hard_link(f.path(&format!("{path}/f{file}")), f.path(&format!("d1/hard{round}-{file}")))),
                5 if f.path(&path).is_dir() => f.chmod(&path, 0o700 + round % 8),
                6 => drop(std::os::unix::fs::symlink("nowhere", f.path(&format!("d2/link{round}-{file}")))),
                _ => f.write(&format!("{path}/f{file}"), &"y".repeat(round as usize + 2)),
            }
        }
        if next(3) > 0 {
            f.tick();
        }
        let captured = f.snap();
        deltas += usize::from(!bases(&f, &captured.layers[0]).is_empty());
        folded += usize::from(matches!(captured.rebased, Some(Rebased::Folded { .. })));
        assert_says_all(&f, &captured);
        if round % 5 == 4 {
            f.assert_mounted_equals_host(&captured);
        }
    }
    assert!(deltas > 15 && folded > 2, "{deltas} deltas, {folded} folded");
}

/// The stack does not grow with a file that is edited over and over, and neither does what is written.
#[test]
fn a_capture_that_folds_writes_as_much_as_has_changed() {
    let mut f = large();
    let mut folded = 0;
    for round in 0..12 {
        f.write("d1/e1/f1", &"z".repeat(round + 2));
        f.tick();
        let captured = f.snap();
        let top = &captured.layers[0];
        folded += usize::from(captured.rebased.is_some());
        assert!(size(&f, top) < 800, "round {round}: {}", size(&f, top));
        assert_says_all(&f, &captured);
    }
    assert!(folded > 1, "{folded}");
    let last = f.snap();
    f.assert_mounted_equals_host(&last);
}

#[test]
fn much_that_changed_is_written_whole() {
    let mut f = large();
    for dir in 0..DIRS {
        f.write(&format!("d{}/e{dir}/f1", dir % 7), "another");
    }
    for file in 0..EACH * 3 {
        f.write(&format!("many/{file}"), "new");
    }
    let captured = f.snap();
    assert!(bases(&f, &captured.layers[0]).is_empty());
    assert_says_all(&f, &captured);
    // Little by little it becomes much as well, and what is left over goes.
    let mut whole = 0;
    for round in 0..8 {
        f.tick();
        f.write(&format!("d1/e1/more{round}"), "new");
        let captured = f.snap();
        whole += usize::from(bases(&f, &captured.layers[0]).is_empty());
        assert_says_all(&f, &captured);
    }
    assert!((1..=3).contains(&whole), "{whole}");
}

#[test]
fn one_whose_base_is_gone_or_another_is_no_manifest() {
    let mut f = large();
    f.write("d1/e1/f1", "another");
    f.snap();
    let (delta, base) = (f.layers.join("l2").join(MANIFEST), bases(&f, "l2").remove(0));
    let bytes = fs::read(&delta).unwrap();
    for end in (0..bytes.len()).step_by(7) {
        fs::write(&delta, &bytes[..end]).unwrap();
        assert!(matches!(Manifest::open(&delta), Err(ManifestError::Damaged { .. })), "cut at {end}");
    }
    for at in 12..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0xff;
        fs::write(&delta, &bytes).unwrap();
        if let Ok(manifest) = Manifest::open(&delta) {
            let _ = manifest.lookup(b"d1/e1/f1");
            assert!(manifest.walk(b"").count() < 2 * DIRS * EACH);
        }
    }
    fs::write(&delta, &bytes).unwrap();
    assert!(Manifest::open(&delta).is_ok());
    // Another whole one of the same tree.
    let mut other = large();
    fs::remove_file(&base).unwrap();
    fs::copy(other.layers.join("l1").join(MANIFEST), &base).unwrap();
    assert!(matches!(Manifest::open(&delta), Err(ManifestError::Damaged { .. })));
    fs::remove_file(&base).unwrap();
    assert!(matches!(Manifest::open(&delta), Err(ManifestError::Io { path, .. }) if path == base));
    // Then everything is captured again.
    let again = f.snap();
    assert_eq!(again.rebased, Some(Rebased::Unusable));
    assert_says_all(&f, &again);
    drop(other.snap());
}

/// After a power cut the manifest that was replaced is read, and with it what that one stands on.
#[test]
fn a_refreshed_delta_is_as_safe_as_a_whole_one() {
    let mut f = large();
    f.write("d1/e1/f1", "another");
    f.snap();
    f.tick();
    // Back and forth: the stat is another, the content is not.
    f.chmod("d2/e2/f2", 0o600);
    f.chmod("d2/e2/f2", 0o644);
    let second = f.snap();
    assert_eq!(second.new_layer, None);
    let manifest = f.layers.join("l2").join(MANIFEST);
    assert!(manifest.with_extension("before").exists());
    fs::remove_file(&manifest).unwrap();
    fs::write(&manifest, "").unwrap();
    assert!(Manifest::open(&manifest).unwrap().lookup(b"d1/e1/f1").is_some());
    let third = f.snap();
    assert_eq!(third.new_layer, None);
    assert_says_all(&f, &third);
}
