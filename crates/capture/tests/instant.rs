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

/// What a writer does in its `n`th turn, and what may be in a snapshot that settled.
struct Writer {
    name: &'static str,
    begin: fn(&Path),
    turn: fn(&Path, u64),
    check: fn(&Fixture, &Captured),
}

/// Lines of 8 bytes; a file of them is one of its versions if it is a beginning of all that were ever appended.
fn line(n: u64) -> String {
    format!("{n:07}\n")
}

fn is_a_beginning(text: &str) -> bool {
    text.as_bytes().chunks(8).enumerate().all(|(n, chunk)| line(n as u64 + 1).as_bytes().starts_with(chunk))
}

fn append(path: &Path, text: &str) {
    use std::io::Write;
    fs::File::options().append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

fn text_of(f: &Fixture, captured: &Captured, path: &str) -> String {
    fs::read_to_string(f.in_layer(captured, path)).unwrap()
}

const WRITERS: &[Writer] = &[
    Writer {
        name: "a directory that is moved from one to another and back",
        begin: |root| {
            fs::create_dir_all(root.join("x/t/deep")).unwrap();
            fs::create_dir(root.join("y")).unwrap();
            fs::write(root.join("x/t/deep/file"), "one").unwrap();
        },
        turn: |root, n| {
            let (from, to) = if n % 2 == 1 { ("x/t", "y/t") } else { ("y/t", "x/t") };
            fs::rename(root.join(from), root.join(to)).unwrap();
        },
        check: |f, captured| {
            let there: Vec<bool> =
                ["x/t", "y/t"].iter().map(|path| captured.manifest.lookup(path.as_bytes()).is_some()).collect();
            assert!(there[0] != there[1], "it is in one of the two: {there:?}");
            let at = if there[0] { "x/t/deep/file" } else { "y/t/deep/file" };
            assert_eq!(text_of(f, captured, at), "one");
        },
    },
    Writer {
        name: "two directories that are renamed into each other",
        begin: |root| {
            for (dir, file) in [("a", "of-a"), ("b", "of-b")] {
                fs::create_dir(root.join(dir)).unwrap();
                fs::write(root.join(dir).join(file), file).unwrap();
            }
        },
        turn: |root, _| {
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            rustix::fs::renameat_with(rustix::fs::CWD, root.join("a"), rustix::fs::CWD, root.join("b"), flags).unwrap();
        },
        check: |_, captured| {
            let has = |path: &str| captured.manifest.lookup(path.as_bytes()).is_some();
            let (same, swapped) = ((has("a/of-a"), has("b/of-b")), (has("a/of-b"), has("b/of-a")));
            assert!(
                same == (true, true) && swapped == (false, false) || same == (false, false) && swapped == (true, true),
                "{same:?} {swapped:?}: {:?}",
                captured.stats
            );
        },
    },
    Writer {
        name: "a file that grows",
        begin: |root| fs::write(root.join("log"), "").unwrap(),
        turn: |root, n| append(&root.join("log"), &line(n)),
        check: |f, captured| {
            let text = text_of(f, captured, "log");
            assert!(is_a_beginning(&text), "{text:?}");
            assert_eq!(captured.manifest.lookup(b"log").unwrap().stat.size, text.len() as u64);
        },
    },
    Writer {
        name: "a file that is cut to nothing and written anew",
        begin: |root| fs::write(root.join("state"), "version 0 end\n").unwrap(),
        turn: |root, n| fs::write(root.join("state"), format!("version {n} end\n")).unwrap(),
        check: |f, captured| {
            let text = text_of(f, captured, "state");
            assert!(text.is_empty() || version(&text) < u64::MAX);
            assert_eq!(captured.manifest.lookup(b"state").unwrap().stat.size, text.len() as u64);
        },
    },
    Writer {
        name: "a file that takes another's place",
        begin: |root| fs::write(root.join("config"), "version 0 end\n").unwrap(),
        turn: |root, n| replace(&root.join("config.new"), &root.join("config"), &format!("version {n} end\n")),
        check: |f, captured| {
            version(&text_of(f, captured, "config"));
            // The draft is another file, and is whole or empty if it is there.
            if captured.manifest.lookup(b"config.new").is_some() {
                let text = text_of(f, captured, "config.new");
                assert!(text.is_empty() || version(&text) < u64::MAX);
            }
        },
    },
    Writer {
        name: "a file and a directory that take turns",
        begin: |root| fs::write(root.join("thing"), "file").unwrap(),
        turn: |root, n| {
            let thing = root.join("thing");
            if n % 2 == 1 {
                fs::remove_file(&thing).unwrap();
                fs::create_dir(&thing).unwrap();
                fs::write(thing.join("inside"), "inside").unwrap();
            } else {
                fs::remove_dir_all(&thing).unwrap();
                fs::write(&thing, "file").unwrap();
            }
        },
        check: |f, captured| {
            let inside = captured.manifest.lookup(b"thing/inside").is_some();
            match captured.manifest.lookup(b"thing").map(|entry| entry.kind()) {
                None => assert!(!inside),
                Some(Kind::Dir) if inside => {
                    assert!(["", "inside"].contains(&&*text_of(f, captured, "thing/inside")));
                }
                Some(Kind::Dir) => {}
                Some(_) => assert!(!inside && ["", "file"].contains(&&*text_of(f, captured, "thing"))),
            }
        },
    },
];

/// Each is a version that was there at some instant; what does not settle in five tries is named.
#[test]
fn whatever_a_writer_does_a_version_is_caught() {
    for writer in WRITERS {
        let mut f = Fixture::new();
        (writer.begin)(&f.root);
        for n in 0..200 {
            f.write(&format!("m{}/filler{n}", n % 7), "filler");
        }
        f.snap();
        let stop = AtomicBool::new(false);
        let root = f.root.clone();
        let (mut settled, mut named) = (0, 0);
        std::thread::scope(|scope| {
            let _stop = Stop(&stop);
            let (root, stop) = (&root, &stop);
            scope.spawn(move || {
                let mut n = 0;
                while !stop.load(Relaxed) {
                    n += 1;
                    (writer.turn)(root, n);
                    std::thread::sleep(Duration::from_millis(if n % 16 == 0 { 60 } else { 2 }));
                }
            });
            for _ in 0..25 {
                let captured = f.snap();
                assert!(captured.stats.scans <= 5, "{}", writer.name);
                if captured.unsettled.is_empty() {
                    settled += 1;
                    (writer.check)(&f, &captured);
                } else {
                    named += 1;
                }
            }
        });
        println!("{}: {settled} settled, {named} named what did not", writer.name);
        assert!(settled > 0, "{}", writer.name);
        let last = f.snap();
        assert!(last.unsettled.is_empty(), "{}", writer.name);
        (writer.check)(&f, &last);
        f.assert_mounted_equals_host(&last);
    }
}

/// Moves a directory away while files are copied, and back again before the next scan.
struct Mover<'a> {
    root: &'a Path,
    calls: std::sync::atomic::AtomicU32,
}

impl Progress for Mover<'_> {
    fn copied(&self, _: u64, _: u64) {
        let (from, to) = match self.calls.fetch_add(1, Relaxed) {
            0 => ("x/t", "away"),
            1 => ("away", "x/t"),
            _ => return,
        };
        fs::rename(self.root.join(from), self.root.join(to)).unwrap();
    }
}

/// What is below a directory that is elsewhere for a moment cannot be copied then, and its own directory's times say
/// nothing of that.
#[test]
fn a_directory_that_was_away_for_a_moment_is_whole() {
    let mut f = Fixture::new();
    let files = ["a/b/c/f", "x/t/deep/f", "z/b/c/f"];
    for file in files {
        f.write(file, "first");
        f.write(&format!("{file}.still"), "untouched");
    }
    f.tick();
    f.snap();
    for file in files {
        f.write(file, "second");
    }
    f.tick();
    let root = f.root.clone();
    let mover = Mover { root: &root, calls: 0.into() };
    let captured = f.capture_with(|request| {
        request.threads = 1;
        request.progress = &mover;
    });
    let captured = f.keep(captured.unwrap());
    assert!(mover.calls.load(Relaxed) >= 2 && captured.unsettled.is_empty());
    for file in files {
        assert_eq!(text_of(&f, &captured, file), "second");
        assert_eq!(text_of(&f, &captured, &format!("{file}.still")), "untouched");
    }
    f.assert_mounted_equals_host(&captured);
    f.tick();
    assert_eq!(f.snap().new_layer, None);
}
