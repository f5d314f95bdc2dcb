//! A capture that asks a watcher equals one that looks at everything.

mod common;

use common::{Fixture, left_out};
use rustix::fs::{AtFlags, CWD, Mode, RenameFlags, Timespec, Timestamps, XattrFlags};
use sandbox_capture::*;
use sandbox_watch::{Answer, Config, Mark, Sweeps, Token, Watcher};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

#[test]
fn dump_helper() {
    common::dump_if_asked();
}

/// A watcher in this process, and what the last capture left.
struct Watched {
    watcher: Mutex<Watcher>,
    token: Mutex<Option<Token>>,
    seen: Option<Seen>,
    answered: Mutex<(u32, u32)>,
}

impl Watch for Watched {
    fn changed(&self) -> Option<Vec<Mark>> {
        let mut token = self.token.lock().unwrap();
        let mut answered = self.answered.lock().unwrap();
        match self.watcher.lock().unwrap().answer(token.as_ref()) {
            Answer::Since { token: new, marks, .. } => {
                answered.0 += 1;
                *token = Some(new);
                Some(marks)
            }
            Answer::All { token: new, .. } => {
                answered.1 += 1;
                *token = new;
                None
            }
        }
    }

    fn seen(&self) -> Option<&Seen> {
        self.seen.as_ref()
    }
}

impl Watched {
    fn new(config: Config) -> Self {
        let mut watcher = Watcher::new(config).unwrap();
        while watcher.is_busy() {
            watcher.step();
        }
        let (token, answered) = (Mutex::new(None), Mutex::new((0, 0)));
        Self { watcher: Mutex::new(watcher), token, seen: None, answered }
    }

    fn snap(&mut self, fixture: &mut Fixture) -> Captured {
        let captured = fixture.capture_with(|request| request.watch = Some(self)).unwrap();
        let captured = fixture.keep(captured);
        self.seen = Some(captured.seen(0));
        captured
    }
}

/// Everything that a manifest says, without what differs between two stores.
fn told(captured: &Captured) -> BTreeMap<Vec<u8>, String> {
    let entries = captured.manifest.walk(b"");
    let told = entries.map(|(path, entry)| {
        let Stat { mode, size, mtime, ino, .. } = entry.stat;
        let size = if entry.kind() == Kind::Dir { 0 } else { size };
        let what =
            format!("{mode:o} {size} {mtime:?} {ino} {:?} {} {}", entry.left_out, entry.secret, entry.copy.is_some());
        (path, what)
    });
    told.collect()
}

/// Compares what two captures of the same tree say and hold.
fn assert_same(watched: (&Fixture, &Captured), full: (&Fixture, &Captured), seed: u64) {
    let (a, b) = (told(watched.1), told(full.1));
    for (path, what) in &b {
        assert_eq!(a.get(path), Some(what), "'{}', seed {seed}", path.escape_ascii());
    }
    assert_eq!(a.len(), b.len(), "seed {seed}: {:?}", a.keys().find(|path| !b.contains_key(*path)));
    for (path, entry) in watched.1.manifest.walk(b"") {
        let name = String::from_utf8(path.clone()).unwrap();
        if entry.kind() == Kind::File && entry.layer.is_some() {
            let (ours, theirs) = (watched.0.in_layer(watched.1, &name), full.0.in_layer(full.1, &name));
            assert_eq!(fs::read(&ours).unwrap(), fs::read(theirs).unwrap(), "content of '{name}', seed {seed}");
        }
    }
    assert_eq!(left_out(watched.1), left_out(full.1), "seed {seed}");
    assert_eq!(watched.1.git_boundaries, full.1.git_boundaries, "seed {seed}");
    assert_eq!(watched.1.carried_secrets, full.1.carried_secrets, "seed {seed}");
}

/// Small, repeatable random numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// A process that writes files through mappings.
struct Mapper(RefCell<(Child, BufReader<ChildStdout>)>);

const MAPPER: &str = "
import sys, mmap
maps = {}
for line in sys.stdin:
    word, path = line.rstrip('\\n').split(' ', 1)
    try:
        if word == 'map':
            f = open(path, 'r+b'); maps[path] = mmap.mmap(f.fileno(), 0); f.close()
        elif word == 'write' and path in maps:
            m = maps[path]; m[0] = (m[0] + 1) % 256
        elif word == 'unmap' and path in maps:
            maps.pop(path).close()
        print('ok', flush=True)
    except Exception as e:
        print('no', e, flush=True)
";

impl Mapper {
    fn new() -> Option<Self> {
        Self::start().map(|process| Self(RefCell::new(process)))
    }

    fn start() -> Option<(Child, BufReader<ChildStdout>)> {
        let mut command = Command::new("python3");
        command.args(["-c", MAPPER]);
        Self::begin(command)
    }

    fn begin(mut command: Command) -> Option<(Child, BufReader<ChildStdout>)> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().ok()?;
        let answers = BufReader::new(child.stdout.take()?);
        Some((child, answers))
    }

    fn say(&self, word: &str, path: &Path) {
        let mut process = self.0.borrow_mut();
        let said = writeln!(process.0.stdin.as_ref().unwrap(), "{word} {}", path.display());
        let heard = said.and_then(|()| process.1.read_line(&mut String::new()));
        if !heard.is_ok_and(|length| length > 0) {
            // A file was cut short under its mapping.
            let _ = process.0.wait();
            *process = Self::start().unwrap();
        }
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        let process = self.0.get_mut();
        let _ = process.0.kill();
        let _ = process.0.wait();
    }
}

/// One change of the tree, of any kind; most of them may fail, because names collide.
fn change(root: &Path, outside: &Path, random: &mut Random, mapper: Option<&Mapper>) {
    let dirs = ["", "a", "a/b", "a/b/c", "d", "d/e", "f"];
    let mut pick = |prefix: &str| {
        let dir = dirs[random.below(dirs.len() as u64) as usize];
        root.join(dir).join(format!("{prefix}{}", random.below(6)))
    };
    let (x, y) = (pick("f"), pick("f"));
    let (p, q) = (pick("sub"), pick("sub"));
    let bytes = vec![b'a' + random.below(26) as u8; random.below(40) as usize];
    let _ = match random.below(26) {
        0..=3 => fs::write(&x, &bytes),
        4 => fs::OpenOptions::new().append(true).open(&x).and_then(|mut file| file.write_all(&bytes)),
        5 => fs::OpenOptions::new().write(true).open(&x).and_then(|file| file.set_len(random.below(30))),
        6 => fs::rename(&x, &y),
        7 => fs::rename(&p, &q),
        8 => rustix::fs::renameat_with(CWD, &x, CWD, &y, RenameFlags::EXCHANGE).map_err(std::io::Error::from),
        9 => rustix::fs::renameat_with(CWD, &p, CWD, &q, RenameFlags::EXCHANGE).map_err(std::io::Error::from),
        10 => fs::hard_link(&x, &y),
        11 => std::os::unix::fs::symlink(format!("to{}", random.below(9)), &x),
        12 => fs::set_permissions(&x, fs::Permissions::from_mode(0o600 + random.below(64) as u32)),
        13 => fs::set_permissions(&p, fs::Permissions::from_mode(0o700 + random.below(64) as u32)),
        14 => {
            let time =
                Timespec { tv_sec: random.below(2_000_000_000) as i64, tv_nsec: random.below(1_000_000_000) as i64 };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(CWD, &x, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(std::io::Error::from)
        }
        15 => rustix::fs::setxattr(&x, "user.x", &bytes, XattrFlags::empty()).map_err(std::io::Error::from),
        16 => fs::remove_file(&x),
        17 => fs::remove_file(&x).and_then(|()| fs::write(&x, &bytes)),
        18 => fs::remove_dir_all(&p),
        19 => {
            let deep = p.join("n/o/p");
            fs::create_dir_all(&deep).and_then(|()| {
                for n in 0..random.below(8) {
                    fs::write(deep.join(format!("f{n}")), &bytes)?;
                    fs::write(p.join(format!("f{n}")), &bytes)?;
                }
                Ok(())
            })
        }
        20 => {
            let away = outside.join(format!("away{}", random.0));
            fs::rename(&p, &away).and_then(|()| {
                fs::write(away.join("f1"), &bytes)?;
                fs::create_dir_all(away.join("came"))?;
                fs::rename(&away, &q).or_else(|_| fs::rename(&away, &p))
            })
        }
        21 => fs::rename(&p, outside.join(format!("gone{}", random.0))),
        22 => fs::create_dir(p.join(".git")).or_else(|_| fs::remove_dir(p.join(".git"))),
        23 => fs::write(p.join(".env"), format!("TOKEN=ghp_{}", "x".repeat(36)))
            .or_else(|_| fs::remove_file(p.join(".env"))),
        // Under a name that nobody opens: an open waits for the other end.
        24 => {
            let pipe = p.join("pipe");
            rustix::fs::mknodat(CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RUSR, 0).map_err(std::io::Error::from)
        }
        _ => {
            for (word, path) in [("map", &x), ("write", &x), ("write", &y), ("unmap", &y)] {
                if let Some(mapper) = mapper {
                    mapper.say(word, path);
                }
            }
            Ok(())
        }
    };
}

fn rounds(seed: u64, rounds: u32, config: impl Fn(PathBuf) -> Config) -> (u32, u32) {
    let mut ours = Fixture::new();
    let mut theirs = Fixture::new();
    theirs.root.clone_from(&ours.root);
    let outside = ours.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    for dir in ["a/b/c", "d/e", "f"] {
        ours.mkdir(dir);
    }
    let mapper = Mapper::new();
    if mapper.is_none() {
        eprintln!("skipped in part: no python3, so nothing is written through mappings");
    }
    let mut watched = Watched::new(config(ours.root.clone()));
    let mut random = Random(seed);
    for _ in 0..rounds {
        let (root, outside) = (&ours.root, &outside);
        let other = random.below(1 << 40);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut random = Random(other);
                for _ in 0..random.below(25) {
                    change(root, outside, &mut random, None);
                }
            });
            for _ in 0..random.below(25) {
                change(root, outside, &mut random, mapper.as_ref());
            }
        });
        let a = watched.snap(&mut ours);
        let b = theirs.snap();
        assert_same((&ours, &a), (&theirs, &b), seed);
    }
    *watched.answered.lock().unwrap()
}

#[test]
fn whatever_happens_the_capture_is_that_of_a_whole_scan() {
    let seeds = std::env::var("SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(6);
    for seed in 1..=seeds {
        let (answered, doubts) = rounds(seed, 25, Config::new);
        assert!(answered > 20 && doubts <= 2, "it must have answered: {answered}, {doubts} doubts");
    }
}

#[test]
fn a_watcher_that_forgets_and_gives_up_costs_scans_and_nothing_else() {
    let (answered, doubts) = rounds(99, 25, |root| Config { most_marks: 12, patience: 3, ..Config::new(root) });
    assert!(doubts > 5, "{answered} answers, {doubts} doubts");
}

#[test]
fn more_events_than_the_queue_holds_are_doubt() {
    let queue = sandbox_watch::limits().2;
    let mut fixture = Fixture::new();
    for n in 0..40 {
        fixture.write(&format!("f{n}"), "x");
    }
    let mut watched = Watched::new(Config::new(fixture.root.clone()));
    watched.snap(&mut fixture);
    watched.snap(&mut fixture);
    let before = watched.answered.lock().unwrap().1;
    let open: Vec<_> =
        (0..2).map(|n| fs::File::options().write(true).open(fixture.path(&format!("f{n}"))).unwrap()).collect();
    // Alternating, so that the kernel cannot make one event of two.
    for n in 0..queue + 10 {
        rustix::fs::fchmod(&open[n as usize % 2], Mode::from_raw_mode(0o644)).unwrap();
    }
    fixture.write("f39", "the one that matters");
    let captured = watched.snap(&mut fixture);
    assert!(watched.answered.lock().unwrap().1 > before, "the queue of {queue} events did not overflow");
    assert_eq!(fs::read(fixture.in_layer(&captured, "f39")).unwrap(), b"the one that matters");
    // It recovers by itself.
    while watched.watcher.lock().unwrap().is_busy() {
        watched.watcher.lock().unwrap().step();
    }
    watched.snap(&mut fixture);
    let before = watched.answered.lock().unwrap().1;
    fixture.write("f38", "again");
    let captured = watched.snap(&mut fixture);
    assert_eq!(watched.answered.lock().unwrap().1, before);
    assert_eq!(fs::read(fixture.in_layer(&captured, "f38")).unwrap(), b"again");
}

#[test]
fn a_name_outside_of_the_tree_that_was_there_before_is_no_secret_door() {
    let mut fixture = Fixture::new();
    fixture.write("f", "one");
    fixture.write("d/g", "one");
    fs::hard_link(fixture.path("f"), fixture.dir.path().join("outside")).unwrap();
    fs::hard_link(fixture.path("d/g"), fixture.path("d/g2")).unwrap();
    fixture.tick();
    let mut watched = Watched::new(Config::new(fixture.root.clone()));
    watched.snap(&mut fixture);
    fs::write(fixture.dir.path().join("outside"), "two").unwrap();
    fs::write(fixture.path("d/g2"), "two").unwrap();
    let captured = watched.snap(&mut fixture);
    assert_eq!(watched.answered.lock().unwrap().1, 1);
    for path in ["f", "d/g", "d/g2"] {
        assert_eq!(fs::read(fixture.in_layer(&captured, path)).unwrap(), b"two", "{path}");
    }
}

/// Lets the watcher look at all files again.
fn look_again(watched: &Watched) {
    std::thread::sleep(SOON.every * 2);
    let mut watcher = watched.watcher.lock().unwrap();
    while watcher.is_busy() {
        watcher.step();
    }
}

/// All files are looked at as soon as somebody has the time for it, and not more often than that.
const SOON: Sweeps =
    Sweeps { every: Duration::from_millis(200), trusted: Duration::from_secs(300), wanted: Duration::from_secs(300) };

/// The limit of `docs/limits.md`: nothing tells of a name that a file gets outside of the tree, until all files
/// are looked at; from then on that file is watched.
#[test]
fn a_name_that_a_file_gets_outside_later_is_seen_with_the_next_look() {
    let mut fixture = Fixture::new();
    fixture.write("f", "one");
    fixture.write("d/other", "untouched");
    fixture.tick();
    let mut watched = Watched::new(Config::new(fixture.root.clone()));
    watched.snap(&mut fixture);
    watched.snap(&mut fixture);
    let outside = fixture.dir.path().join("later");
    fs::hard_link(fixture.path("f"), &outside).unwrap();
    fs::write(&outside, "two").unwrap();
    let captured = watched.snap(&mut fixture);
    assert_eq!(fs::read(fixture.in_layer(&captured, "f")).unwrap(), b"one", "docs/limits.md is out of date: better");
    // A whole scan sees it.
    let captured = fixture.snap();
    assert_eq!(fs::read(fixture.in_layer(&captured, "f")).unwrap(), b"two");

    let mut fixture = Fixture::new();
    fixture.write("f", "one");
    fixture.tick();
    let mut watched = Watched::new(Config { sweeps: SOON, ..Config::new(fixture.root.clone()) });
    watched.snap(&mut fixture);
    watched.snap(&mut fixture);
    let outside = fixture.dir.path().join("later");
    fs::hard_link(fixture.path("f"), &outside).unwrap();
    fs::write(&outside, "two").unwrap();
    look_again(&watched);
    let captured = watched.snap(&mut fixture);
    assert_eq!(watched.answered.lock().unwrap().1, 1, "no doubt: it knew");
    assert_eq!(fs::read(fixture.in_layer(&captured, "f")).unwrap(), b"two");
    fs::write(&outside, "three, at once").unwrap();
    let captured = watched.snap(&mut fixture);
    assert_eq!(watched.answered.lock().unwrap().1, 1);
    assert_eq!(fs::read(fixture.in_layer(&captured, "f")).unwrap(), b"three, at once");
}

#[test]
fn a_mapping_that_is_written_again_and_again_is_seen_each_time() {
    let Some(mapper) = Mapper::new() else {
        eprintln!("skipped: no python3");
        return;
    };
    let mut fixture = Fixture::new();
    fixture.write("d/f", "0123456789");
    fixture.tick();
    let mut watched = Watched::new(Config::new(fixture.root.clone()));
    let path = fixture.path("d/f");
    mapper.say("map", &path);
    watched.snap(&mut fixture);
    for round in 0..5 {
        fixture.tick();
        mapper.say("write", &path);
        if round == 4 {
            mapper.say("unmap", &path);
        }
        let captured = watched.snap(&mut fixture);
        assert_eq!(fs::read(fixture.in_layer(&captured, "d/f")).unwrap(), fs::read(&path).unwrap(), "{round}");
    }
    assert_eq!(watched.answered.lock().unwrap().1, 1);
}

#[test]
fn rules_and_what_git_says_are_asked_again_where_they_may_have_changed() {
    let mut fixture = Fixture::new();
    fixture.write("d/x.bin", "x");
    fixture.write("d/keep", "x");
    fixture.write(".env", "SECRET=1");
    fixture.tick();
    let mut watched = Watched::new(Config::new(fixture.root.clone()));
    watched.snap(&mut fixture);
    fixture.write(".sandboxignore", "*.bin\n");
    let captured = watched.snap(&mut fixture);
    assert_eq!(left_out(&captured), [("d/x.bin".to_owned(), Reason::Ignored)]);
    assert_eq!(captured.carried_secrets, [PathBuf::from(".env")]);
    let captured = watched.snap(&mut fixture);
    assert_eq!(left_out(&captured), [("d/x.bin".to_owned(), Reason::Ignored)], "told each time");
    fs::remove_file(fixture.path(".sandboxignore")).unwrap();
    assert_eq!(left_out(&watched.snap(&mut fixture)), []);
    // Git tracks it now: no word about it. And then not any more.
    for (state, is_tracked) in [(7, true), (8, false)] {
        let tracked = move |_: &[u8]| is_tracked;
        let captured = fixture
            .capture_with(|request| {
                request.watch = Some(&watched);
                request.git_state = state;
                request.tracked = Box::leak(Box::new(tracked));
            })
            .unwrap();
        let captured = fixture.keep(captured);
        assert_eq!(captured.carried_secrets.is_empty(), is_tracked);
        watched.seen = Some(captured.seen(state));
    }
    assert_eq!(watched.answered.lock().unwrap().1, 1);
}

/// The limit of `docs/limits.md`: a file can be open under a name that is none any more, and what is written
/// through that is told under that name. It is seen when all files are looked at.
#[test]
fn what_is_written_through_a_name_that_is_gone_is_seen_with_the_next_look() {
    use rustix::fs::{OFlags, linkat, openat};
    let mut fixture = Fixture::new();
    fixture.write("d/f", "one");
    fs::create_dir(fixture.path("e")).unwrap();
    fixture.tick();
    let mut watched = Watched::new(Config { sweeps: SOON, ..Config::new(fixture.root.clone()) });
    watched.snap(&mut fixture);
    let outside = fixture.dir.path().to_owned();
    // Made without a name, and by a link and an unlink instead of a rename, within the tree and from outside.
    let mut open = Vec::new();
    for (n, dir) in [fixture.path("d"), fixture.path("e"), outside.clone()].iter().enumerate() {
        let flags = OFlags::TMPFILE | OFlags::RDWR;
        let fd = openat(CWD, dir, flags, Mode::from_raw_mode(0o644)).unwrap();
        rustix::io::write(&fd, b"one").unwrap();
        fs::create_dir(fixture.path(&format!("t{n}"))).unwrap();
        let name = format!("t{n}/f");
        let own = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
        linkat(CWD, own, CWD, fixture.path(&name), AtFlags::SYMLINK_FOLLOW).unwrap();
        open.push((name, fs::File::from(fd)));
        fs::create_dir(fixture.path(&format!("l{n}"))).unwrap();
        let (from, name) = (dir.join("from"), format!("l{n}/f"));
        let mut file = fs::File::create(&from).unwrap();
        file.write_all(b"one").unwrap();
        fs::hard_link(&from, fixture.path(&name)).unwrap();
        fs::remove_file(&from).unwrap();
        open.push((name, file));
    }
    watched.snap(&mut fixture);
    watched.snap(&mut fixture);
    let doubts = watched.answered.lock().unwrap().1;
    for (_, file) in &mut open {
        file.write_all(b" and two").unwrap();
    }
    let captured = watched.snap(&mut fixture);
    assert_eq!(watched.answered.lock().unwrap().1, doubts);
    let stale: Vec<_> = open
        .iter()
        .map(|(name, _)| name)
        .filter(|name| fs::read(fixture.in_layer(&captured, name)).unwrap() != b"one and two")
        .collect();
    assert_eq!(stale.len(), open.len(), "docs/limits.md is out of date: better: {stale:?}");
    look_again(&watched);
    let captured = watched.snap(&mut fixture);
    assert_eq!(watched.answered.lock().unwrap().1, doubts, "no doubt: it knew");
    for (name, _) in &open {
        assert_eq!(fs::read(fixture.in_layer(&captured, name)).unwrap(), b"one and two", "{name}");
    }
}

#[test]
fn a_mapping_in_other_mounts_is_not_taken_for_what_its_path_is_here() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can mount");
        return;
    }
    let mut fixture = Fixture::new();
    fixture.write("a/f", "0123456789");
    fixture.write("b/f", "0123456789");
    fixture.tick();
    let mut command = Command::new("unshare");
    let script = "mount --bind \"$1/b\" \"$1/a\" && exec python3 -c \"$2\"";
    command.args(["-m", "sh", "-c", script, "sh"]).arg(&fixture.root).arg(MAPPER);
    let Some(process) = Mapper::begin(command) else {
        eprintln!("skipped: no unshare");
        return;
    };
    let mapper = Mapper(RefCell::new(process));
    let mut watched = Watched::new(Config::new(fixture.root.clone()));
    // What is 'a/f' there is 'b/f' here.
    mapper.say("map", &fixture.path("a/f"));
    watched.snap(&mut fixture);
    fixture.tick();
    mapper.say("write", &fixture.path("a/f"));
    let captured = watched.snap(&mut fixture);
    assert_eq!(watched.answered.lock().unwrap().1, 1);
    assert_eq!(fs::read(fixture.path("b/f")).unwrap(), b"1123456789", "the control");
    assert_eq!(fs::read(fixture.in_layer(&captured, "b/f")).unwrap(), b"1123456789");
    assert_eq!(fs::read(fixture.in_layer(&captured, "a/f")).unwrap(), b"0123456789");
}
