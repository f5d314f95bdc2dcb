//! Where a watcher must doubt, and where nobody may make it wait or believe it.

use rustix::fs::{Mode, OFlags, mkdirat, openat};
use rustix::process::{Uid, geteuid};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities, set_thread_res_uid};
use sandbox_watch::{Answer, Config, Kind, Mark, Serve, Sweeps, Token, WatchError, Watcher, ask, serve, status, stop};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

fn tree() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap().join("tree");
    fs::create_dir(&root).unwrap();
    (dir, root)
}

fn begun(config: Config) -> Watcher {
    let mut watcher = Watcher::new(config).unwrap();
    // As many steps as a tree of some thousand directories takes; one that never ends fails.
    run(&mut watcher);
    watcher
}

fn run(watcher: &mut Watcher) {
    for _ in 0..1000 {
        if watcher.is_busy() {
            watcher.step();
        }
    }
}

fn token(watcher: &mut Watcher) -> Token {
    match watcher.answer(None) {
        Answer::All { token: Some(token), .. } => token,
        other => panic!("{other:?}"),
    }
}

fn since(watcher: &mut Watcher, token: &Token) -> Vec<Mark> {
    match watcher.answer(Some(token)) {
        Answer::Since { marks, .. } => marks,
        other => panic!("{other:?}"),
    }
}

fn names(marks: &[Mark], path: &str) -> bool {
    marks.iter().any(|mark| matches!(mark, Mark::Path(marked, _) if marked == path.as_bytes()))
}

#[test]
fn a_tree_deeper_than_a_path_can_say_is_watched() {
    let (_dir, root) = tree();
    let mut at = rustix::fs::open(&root, OFlags::DIRECTORY, Mode::empty()).unwrap();
    let name = "d".repeat(200);
    for _ in 0..25 {
        mkdirat(&at, &name, Mode::RWXU).unwrap();
        at = openat(&at, &name, OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    let mut watcher = begun(Config::new(root));
    let before = token(&mut watcher);
    mkdirat(&at, "new", Mode::RWXU).unwrap();
    assert!(names(&since(&mut watcher, &before), &format!("{}new", format!("{name}/").repeat(25))));
}

/// What will not be better the next time is tried once: neither for ever, nor within itself until the stack ends.
#[test]
fn a_tree_in_other_mounts_than_ours_is_given_up_at_once() {
    if !geteuid().is_root() {
        eprintln!("skipped: only root can mount");
        return;
    }
    let (_dir, root) = tree();
    let mut command = std::process::Command::new("unshare");
    command.args(["-m", "sh", "-c", "mount -t tmpfs tmpfs \"$1\" && echo there && read end", "sh"]).arg(&root);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "there\n");
    let theirs = format!("/proc/{}/root{}", child.id(), root.display());
    let mut watcher = begun(Config::new(theirs.into()));
    assert!(!watcher.is_busy());
    assert!(
        matches!(watcher.answer(None), Answer::All { token: None, why } if why == "the tree's mount is not listed")
    );
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn a_file_system_that_others_change_is_refused_by_name() {
    let error = Watcher::new(Config::new("/proc".into())).unwrap_err();
    assert!(matches!(error, WatchError::Filesystem { .. }));
    assert_eq!(error.to_string(), "'/proc' is on a file system that cannot be watched");
    let error = Watcher::new(Config::new("/nowhere/at/all".into())).unwrap_err();
    assert_eq!(error.to_string(), "cannot open '/nowhere/at/all'");
}

/// What a thread without the right to read everything does, as a user who is not root; as one who is not anyway,
/// simply what it does.
fn unprivileged(work: impl FnOnce() + Send + 'static) {
    std::thread::spawn(|| {
        let mut sets = capabilities(None).unwrap();
        let all = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
        sets.effective.remove(all);
        set_capabilities(None, sets).unwrap();
        work();
    })
    .join()
    .unwrap();
}

#[test]
fn what_was_made_below_a_closed_directory_is_watched_once_it_is_open() {
    unprivileged(|| {
        for closed in ["a", ""] {
            let (_dir, root) = tree();
            fs::create_dir_all(root.join("a/b")).unwrap();
            let mut watcher = begun(Config::new(root.clone()));
            let before = token(&mut watcher);
            // Whoever is in there already still makes things.
            let inner = rustix::fs::open(root.join("a/b"), OFlags::DIRECTORY, Mode::empty()).unwrap();
            let mode = |mode| fs::set_permissions(root.join(closed), fs::Permissions::from_mode(mode)).unwrap();
            mode(0o000);
            mkdirat(&inner, "new", Mode::RWXU).unwrap();
            let _ = watcher.answer(Some(&before));
            mode(0o755);
            // From here on all is as usual, or there is doubt; but not nothing.
            let now = match watcher.answer(Some(&before)) {
                Answer::Since { token, .. } => token,
                Answer::All { .. } => {
                    run(&mut watcher);
                    token(&mut watcher)
                }
            };
            fs::write(root.join("a/b/new/file"), "unseen?").unwrap();
            assert!(names(&since(&mut watcher, &now), "a/b/new/file"), "closed: '{closed}'");
        }
    });
}

/// Serves a tree until the end of the work.
fn served(root: &Path, work: impl FnOnce(&Path)) {
    let dir = tempfile::tempdir().unwrap();
    let (read, write) = UnixStream::pair().unwrap();
    let mut watcher = begun(Config::new(root.to_owned()));
    std::thread::scope(|scope| {
        let at = dir.path();
        scope.spawn(move || {
            let stop = Some(read.as_fd());
            serve(&mut watcher, Serve { dir: at, name: "s", stop, idle: None, needed: &mut || true }).unwrap();
        });
        while status(at, "s", PATIENCE).is_err() {
            std::thread::sleep(Duration::from_millis(5));
        }
        work(at);
        drop(write);
    });
}

#[test]
fn a_client_that_never_ends_its_question_is_sent_away() {
    let (_dir, root) = tree();
    served(&root, |at| {
        let mut slow = UnixStream::connect(at.join("s")).unwrap();
        // A byte at a time, each well within the time that one read may take: far fewer than a question may have.
        let said = (0..40).take_while(|_| {
            std::thread::sleep(Duration::from_millis(200));
            slow.write_all(b"1").is_ok()
        });
        assert!(said.count() < 40, "it is listened to for ever");
        // Nor does one that says nonsense, or goes at once, end anything.
        let mut nonsense = UnixStream::connect(at.join("s")).unwrap();
        nonsense.write_all(&[0; 4096]).unwrap();
        let _ = nonsense.read_to_end(&mut Vec::new());
        drop(UnixStream::connect(at.join("s")).unwrap());
        assert!(matches!(ask(at, "s", None, PATIENCE), Ok(Answer::All { token: Some(_), .. })));
        stop(at, "s", PATIENCE).unwrap();
    });
}

#[test]
fn a_client_that_does_not_take_its_answer_is_sent_away() {
    let (_dir, root) = tree();
    served(&root, |at| {
        let Ok(Answer::All { token: Some(token), .. }) = ask(at, "s", None, PATIENCE) else { panic!() };
        // An answer that no socket's buffer holds.
        for n in 0..5000 {
            fs::write(root.join(format!("{n}-{}", "x".repeat(200))), "").unwrap();
        }
        let mut slow = UnixStream::connect(at.join("s")).unwrap();
        slow.write_all(format!("1\0since\0{token}\0").as_bytes()).unwrap();
        let Ok(Answer::Since { marks, .. }) = ask(at, "s", Some(&token), PATIENCE) else { panic!("it waits for ever") };
        assert_eq!(marks.len(), 5000);
        drop(slow);
    });
}

#[test]
fn another_users_watcher_is_not_believed() {
    if !geteuid().is_root() {
        eprintln!("skipped: only root can be another user");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let at = dir.path().join("s");
    let listener = std::thread::spawn(move || {
        let keep = Uid::ROOT;
        set_thread_res_uid(keep, Uid::from_raw(1000), keep).unwrap();
        UnixListener::bind(at).unwrap()
    });
    let listener = listener.join().unwrap();
    let error = ask(dir.path(), "s", None, PATIENCE).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{error}");
    assert_eq!(error.to_string(), "the watcher is another user's");
    drop(listener);
}

#[test]
fn a_directory_that_went_out_and_came_back_is_looked_at_as_a_whole() {
    let (dir, root) = tree();
    fs::create_dir_all(root.join("d/sub")).unwrap();
    fs::write(root.join("d/sub/f"), "1").unwrap();
    let mut watcher = begun(Config::new(root.clone()));
    let before = token(&mut watcher);
    let outside = dir.path().join("outside");
    fs::rename(root.join("d"), &outside).unwrap();
    for asked_between in [false, true] {
        if asked_between {
            fs::rename(root.join("d"), &outside).unwrap();
            assert!(names(&since(&mut watcher, &before), "d"));
        }
        fs::write(outside.join("sub/f"), "2").unwrap();
        fs::create_dir_all(outside.join("sub/made-outside")).unwrap();
        fs::rename(&outside, root.join("d")).unwrap();
        let marks = since(&mut watcher, &before);
        assert!(marks.contains(&Mark::Path(b"d".to_vec(), Kind::Subtree)), "{marks:?}");
        let now = match watcher.answer(Some(&before)) {
            Answer::Since { token, .. } => token,
            other => panic!("{other:?}"),
        };
        fs::write(root.join("d/sub/made-outside/f"), "3").unwrap();
        fs::write(root.join("d/sub/f"), "3").unwrap();
        let marks = since(&mut watcher, &now);
        assert!(names(&marks, "d/sub/f") && names(&marks, "d/sub/made-outside/f"), "{marks:?}");
    }
    // A symlink in its place, and what it leads to, is none of the tree.
    let before = token(&mut watcher);
    fs::rename(root.join("d"), &outside).unwrap();
    std::os::unix::fs::symlink(&outside, root.join("d")).unwrap();
    assert!(names(&since(&mut watcher, &before), "d"));
    let before = token(&mut watcher);
    fs::write(outside.join("sub/f"), "4").unwrap();
    assert_eq!(since(&mut watcher, &before), []);
}

/// Nobody is answered from marks alone for ever: what the kernel does not tell must have been looked for.
#[test]
fn who_asks_after_a_long_time_without_a_look_is_told_to_look() {
    let (_dir, root) = tree();
    fs::write(root.join("f"), "one").unwrap();
    let sweeps = Sweeps { trusted: Duration::ZERO, ..Sweeps::default() };
    let mut watcher = begun(Config { sweeps, ..Config::new(root) });
    let before = token(&mut watcher);
    match watcher.answer(Some(&before)) {
        Answer::All { token: Some(_), why } => assert_eq!(why, "all files were last looked at 0 s ago"),
        other => panic!("{other:?}"),
    }
    assert_eq!(watcher.status().doubts, 2, "and the first question of all");
}

/// A look is there for those who ask, and ends.
#[test]
fn all_files_are_looked_at_again_while_somebody_asks() {
    let (dir, root) = tree();
    for n in 0..200 {
        fs::create_dir(root.join(format!("d{n}"))).unwrap();
        fs::write(root.join(format!("d{n}/f")), "one").unwrap();
    }
    let every = Duration::from_millis(200);
    let sweeps = Sweeps { every, trusted: PATIENCE, wanted: PATIENCE };
    let mut watcher = begun(Config { sweeps, ..Config::new(root.clone()) });
    let before = token(&mut watcher);
    fs::hard_link(root.join("d7/f"), dir.path().join("outside")).unwrap();
    fs::write(dir.path().join("outside"), "two").unwrap();
    assert_eq!(since(&mut watcher, &before), []);
    std::thread::sleep(every * 2);
    assert!(watcher.is_busy(), "it is time");
    run(&mut watcher);
    assert!(!watcher.is_busy() && names(&since(&mut watcher, &before), "d7/f"));
    let unasked = Sweeps { wanted: Duration::ZERO, ..sweeps };
    let mut watcher = begun(Config { sweeps: unasked, ..Config::new(root) });
    std::thread::sleep(every * 2);
    assert!(!watcher.is_busy(), "nobody asked");
    let _ = token(&mut watcher);
}
