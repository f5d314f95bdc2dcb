//! Folding in the background: the new stack shows what the old one shows, which stays as it was.

mod common;

use common::*;
use sandbox_capture::*;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

#[test]
fn dump_helper() {
    dump_if_asked();
}

/// A stack with all that a layer can hold.
fn varied(f: &mut Fixture) -> Captured {
    for n in 0..30 {
        f.write(&format!("base/{n}"), &"b".repeat(n * 10));
    }
    f.write("gone/deep/x", "x");
    f.write("typ", "a file");
    f.write("set/x", "x");
    f.snap();
    for n in 0..6 {
        f.tick();
        f.write(&format!("new/{n}/x"), "x");
        match n {
            0 => f.remove("gone"),
            1 => {
                f.remove("typ");
                f.write("typ/inner", "a directory");
            }
            2 => fs::hard_link(f.path("base/7"), f.path("new/hard")).unwrap(),
            3 => symlink("../base/1", f.path("new/link")).unwrap(),
            4 => f.chmod("set", 0o711),
            _ => f.write("base/3", "changed"),
        }
        f.snap();
    }
    f.tick();
    f.snap()
}

/// Every layer's files as a mount would show them: inode, times, names.
fn stats(f: &Fixture, layers: &[String]) -> Vec<(String, u64, i64, u64)> {
    let of = |id: &String| {
        let list = layer_content(f, id).into_iter().map(move |path| (id.clone(), path));
        list.collect::<Vec<_>>()
    };
    let path = |id: &str, path: &str| f.layers.join(id).join(TREE).join(path.trim_start_matches('-'));
    let mut all: Vec<_> = layers
        .iter()
        .flat_map(of)
        .map(|(id, name)| {
            let meta = fs::symlink_metadata(path(&id, &name)).unwrap();
            (format!("{id}/{name}"), meta.ino(), meta.ctime() * 1_000_000_000 + meta.ctime_nsec(), meta.nlink())
        })
        .collect();
    all.sort();
    all
}

fn folded(f: &Fixture, stack: &[String], id: &str, everything: bool) -> Vec<String> {
    let out = f.tmp.join(id);
    fs::create_dir(&out).unwrap();
    let new =
        fold(&FoldRequest { stack, layers_dir: &f.layers, out_dir: &out, new_layer_id: id, owner: None, everything })
            .unwrap();
    fs::rename(out.join(id), f.layers.join(id)).unwrap();
    remove_tree(&out).unwrap();
    new
}

fn check(everything: bool) {
    let mut f = Fixture::new();
    let before = varied(&mut f);
    let old = before.layers.clone();
    assert_eq!(old.len(), 7);
    let shown = f.mounted(&old);
    let stats_before = stats(&f, &old);
    let new = folded(&f, &old, "folded", everything);
    assert_eq!(new, if everything { vec!["folded".to_owned()] } else { vec!["folded".to_owned(), "l1".to_owned()] });
    assert_eq!(f.mounted(&new), shown);
    assert_eq!(stats(&f, &old), stats_before, "what live sandboxes stand on was touched");

    // The next capture goes on from it as if nothing had happened.
    f.stack.clone_from(&new);
    let same = f.snap();
    assert_eq!((same.new_layer.clone(), same.stats.scans), (None, 1));
    f.tick();
    f.write("after", "x");
    f.remove("base/5");
    f.remove("typ");
    let after = f.snap();
    assert_eq!(after.layers.len(), new.len() + 1);
    assert_eq!(after.stats.copied_files, 1);
    f.assert_mounted_equals_host(&after);
}

#[test]
fn deltas_become_one() {
    check(false);
}

#[test]
fn everything_becomes_a_new_base() {
    check(true);
}

#[test]
fn a_stack_is_weighed_by_what_is_in_use() {
    let mut f = Fixture::new();
    f.write("a", &"a".repeat(100_000));
    f.write("b", &"b".repeat(50_000));
    f.snap();
    f.tick();
    f.write("a", &"A".repeat(30_000));
    let second = f.snap();
    let weight = weigh(&f.layers, &second.layers, |_| 40_000).unwrap();
    let expected = StackWeight { layers: 2, base: 150_000, base_live: 50_000, above: 40_000, above_live: 30_000 };
    assert_eq!(weight, expected);
    assert_eq!(weigh(&f.layers, &["l2".into()], |_| 0), None, "the manifest is not of this stack");
    assert_eq!(weigh(Path::new("/nowhere"), &second.layers, |_| 0), None);
}

#[test]
fn a_fold_that_fails_leaves_the_layers_alone() {
    let mut f = Fixture::new();
    let before = varied(&mut f);
    let old = before.layers.clone();
    let lost = before.manifest.lookup(b"base/3").unwrap().layer.unwrap().to_owned();
    fs::remove_file(f.layers.join(lost).join(TREE).join("base/3")).unwrap();
    let names = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let layers = names(&f.layers);
    let out = f.tmp.join("out");
    fs::create_dir(&out).unwrap();
    let error = fold(&FoldRequest {
        stack: &old,
        layers_dir: &f.layers,
        out_dir: &out,
        new_layer_id: "folded",
        owner: None,
        everything: false,
    })
    .unwrap_err();
    assert!(error.to_string().contains("base/3"), "{error}");
    assert_eq!(names(&f.layers), layers);
    assert!(names(&out.join("making")).is_empty(), "the half-made layer is taken away");
}
