//! A snapshot is of one instant, while several programs write at once.

mod common;

use common::{Fixture, dump_if_asked};
use sandbox_capture::*;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

#[test]
fn dump_helper() {
    dump_if_asked();
}

/// Ends the writers also when an assertion fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Puts a file in another's place: one that is being written is empty at some instants.
fn replace(draft: &Path, target: &Path, text: &str) {
    fs::write(draft, text).unwrap();
    fs::rename(draft, target).unwrap();
}

/// What version a text names; panics when it is no version that was ever written.
fn version(text: &str) -> u64 {
    let number = text.strip_prefix("version ").and_then(|rest| rest.strip_suffix(" end\n"));
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("never written: {text:?}"))
}

const FILES: usize = 8;

/// Two writers write `first` before `second`, at places that a scan passes in the other order. A third
/// swaps a directory whole: all files of it have one version, and it has all of them.
fn turn(root: &Path, drafts: &Path, writer: usize, n: u64) {
    let draft = drafts.join(format!("draft{writer}"));
    let text = format!("version {n} end\n");
    if writer < 2 {
        replace(&draft, &root.join(format!("z{writer}/first")), &text);
        replace(&draft, &root.join(format!("a{writer}/second")), &text);
        return;
    }
    fs::create_dir(&draft).unwrap();
    for file in 0..FILES {
        fs::write(draft.join(format!("f{file}")), &text).unwrap();
    }
    let (set, old) = (root.join("set"), drafts.join("old"));
    // Both names stand for a whole directory at every instant.
    rustix::fs::renameat_with(rustix::fs::CWD, &draft, rustix::fs::CWD, &set, rustix::fs::RenameFlags::EXCHANGE)
        .unwrap();
    fs::rename(&draft, &old).unwrap();
    fs::remove_dir_all(&old).unwrap();
}

fn check(f: &Fixture, captured: &Captured) {
    let read = |path: &str| version(&fs::read_to_string(f.in_layer(captured, path)).unwrap());
    for writer in 0..2 {
        let (first, second) = (read(&format!("z{writer}/first")), read(&format!("a{writer}/second")));
        assert!(first >= second && first <= second + 1, "writer {writer}: {first} {second}");
    }
    let versions: Vec<u64> = (0..FILES).map(|file| read(&format!("set/f{file}"))).collect();
    assert!(versions.iter().all(|version| *version == versions[0]), "{versions:?}");
    let listed = captured.manifest.lookup(b"set").is_some();
    assert!(listed && captured.manifest.lookup(format!("set/f{FILES}").as_bytes()).is_none());
}

#[test]
fn several_writers_are_caught_at_one_instant() {
    let mut f = Fixture::new();
    let drafts = f.dir.path().join("drafts");
    fs::create_dir(&drafts).unwrap();
    for path in ["z0/first", "a0/second", "z1/first", "a1/second"] {
        f.write(path, "version 0 end\n");
    }
    for file in 0..FILES {
        f.write(&format!("set/f{file}"), "version 0 end\n");
    }
    for n in 0..300 {
        f.write(&format!("m{}/filler{n}", n % 7), "filler");
    }
    f.snap();
    let stop = AtomicBool::new(false);
    let mut settled = 0;
    let root = f.root.clone();
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        for writer in 0..3 {
            let (root, drafts, stop) = (&root, &drafts, &stop);
            scope.spawn(move || {
                let mut n = 0;
                while !stop.load(Relaxed) {
                    n += 1;
                    turn(root, drafts, writer, n);
                    // Between bursts there is time for a scan, and none for all the captures.
                    std::thread::sleep(Duration::from_millis(if n % 8 == 0 { 60 } else { 8 }));
                }
            });
        }
        for _ in 0..60 {
            let captured = f.snap();
            assert!(captured.stats.scans <= 5);
            if captured.unsettled.is_empty() {
                settled += 1;
                check(&f, &captured);
            } else {
                // What it names is what was written.
                let known = |path: &Path| {
                    ["a0", "a1", "z0", "z1", "set"].iter().any(|top| path.starts_with(top))
                        || path.as_os_str().is_empty()
                };
                assert!(captured.unsettled.iter().all(|path| known(path)), "{:?}", captured.unsettled);
            }
        }
    });
    println!("{settled} of 60 captures settled");
    assert!(settled > 0);
    let last = f.snap();
    assert!(last.unsettled.is_empty());
    check(&f, &last);
    f.assert_mounted_equals_host(&last);
}
