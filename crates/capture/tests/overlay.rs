//! After any sequence of edits and captures a real mount of the stack shows the host tree.

mod common;

use common::*;
use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

#[test]
fn dump_helper() {
    dump_if_asked();
}

/// One thing that happens to the tree; paths are drawn from few, so that they meet.
#[derive(Clone, Debug)]
enum Edit {
    Write(String, u8),
    Append(String),
    Link(String, String),
    HardLink(String, String),
    Mkdir(String),
    Remove(String),
    Rename(String, String),
    Chmod(String, u32),
    Touch(String, u32),
    Tick,
    Capture,
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "D"]), 1..4).prop_map(|names| names.join("/"))
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        6 => (path(), any::<u8>()).prop_map(|(path, byte)| Edit::Write(path, byte)),
        1 => path().prop_map(Edit::Append),
        1 => (path(), path()).prop_map(|(path, to)| Edit::Link(path, to)),
        1 => (path(), path()).prop_map(|(path, to)| Edit::HardLink(path, to)),
        3 => path().prop_map(Edit::Mkdir),
        3 => path().prop_map(Edit::Remove),
        2 => (path(), path()).prop_map(|(from, to)| Edit::Rename(from, to)),
        1 => (path(), prop::sample::select(vec![0o755, 0o700, 0o711, 0o777])).prop_map(|(p, m)| Edit::Chmod(p, m)),
        1 => (path(), 0u32..2_000_000_000).prop_map(|(path, at)| Edit::Touch(path, at)),
        1 => Just(Edit::Tick),
        4 => Just(Edit::Capture),
    ]
}

/// Edits that do not fit the tree as it is are skipped.
fn apply(f: &mut Fixture, edit: &Edit) {
    let at = |path: &String| f.path(path);
    match edit {
        Edit::Write(path, byte) => {
            let _ = fs::create_dir_all(at(path).parent().unwrap());
            let _ = fs::write(at(path), vec![*byte; usize::from(*byte) * 40]);
        }
        Edit::Append(path) => {
            use std::io::Write;
            let file = fs::File::options().append(true).open(at(path));
            let _ = file.and_then(|mut file| file.write_all(b"more"));
        }
        Edit::Link(path, to) => drop(symlink(to, at(path))),
        Edit::HardLink(path, to) => drop(fs::hard_link(at(path), at(to))),
        Edit::Mkdir(path) => drop(fs::create_dir_all(at(path))),
        Edit::Remove(path) => drop(sandbox_capture::remove_tree(&at(path))),
        Edit::Rename(from, to) => drop(fs::rename(at(from), at(to))),
        Edit::Chmod(path, mode) => {
            if !at(path).is_symlink() {
                let _ = fs::set_permissions(at(path), fs::Permissions::from_mode(*mode));
            }
        }
        Edit::Touch(path, seconds) => {
            if let Ok(file) = fs::File::open(at(path)) {
                let when = std::time::UNIX_EPOCH + std::time::Duration::new(u64::from(*seconds), 123_456_789);
                let _ = file.set_modified(when);
            }
        }
        Edit::Tick => f.tick(),
        Edit::Capture => {
            let captured = f.snap();
            assert!(captured.unsettled.is_empty());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_mounted_stack_shows_the_host_tree(edits in prop::collection::vec(edit(), 5..60)) {
        let mut f = Fixture::new();
        for edit in &edits {
            apply(&mut f, edit);
        }
        let last = f.snap();
        f.assert_mounted_equals_host(&last);
        // And once more without any change: nothing is to be done.
        f.tick();
        f.snap();
        f.tick();
        prop_assert_eq!(f.snap().new_layer, None);
    }
}

#[test]
fn a_long_life_folds_and_stays_right() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut f = Fixture::new();
    let mut folded = 0;
    for round in 0..60 {
        for _ in 0..6 {
            apply(&mut f, &edit().new_tree(&mut runner).unwrap().current());
        }
        f.write("round", &round.to_string());
        let captured = f.snap();
        folded += usize::from(captured.rebased.is_some());
        if round % 5 == 0 || captured.rebased.is_some() {
            f.assert_mounted_equals_host(&captured);
        }
    }
    assert!(folded >= 3, "{folded}");
}
