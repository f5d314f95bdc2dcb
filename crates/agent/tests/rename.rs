//! Renames of captured directories on a real overlay, which refuses them by itself.

mod common;

use common::{Home, eventually};
use sandbox_protocol::*;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Fills a directory: nested directories, links, modes, times.
fn project(at: &Path) {
    let script = r#"
        mkdir -p src/app/deep/er docs empty
        for i in 1 2 3; do echo "file $i" >src/app/f$i; echo "deep $i" >src/app/deep/d$i; done
        echo bottom >src/app/deep/er/bottom
        ln -s ../app/f1 src/app/link
        ln src/app/f2 src/app/hard
        echo text >docs/text
        mkdir src/locked; echo in >src/locked/in; chmod 555 src/locked
        chmod 750 src/app/deep; touch -d 2001-02-03 src/app/deep
    "#;
    assert!(Command::new("bash").args(["-ec", script]).current_dir(at).status().unwrap().success());
}

/// A project of which the captured part is a git repository.
fn repository(home: &Home) {
    project(&home.lower());
    let script = "git init -q -b main . && git add -A && git -c user.name=n -c user.email=e commit -qm first";
    let done = Command::new("bash")
        .args(["-ec", script])
        .current_dir(home.lower())
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .status()
        .unwrap();
    assert!(done.success());
}

/// What a tree looks like, in one text.
const LOOK: &str = "find . -path ./.git -prune -o -printf '%P %y %m %l\\n' | LC_ALL=C sort; \
                    find . -path ./.git -prune -o -type f -print0 | LC_ALL=C sort -z | xargs -0 cat";

#[test]
fn without_our_work_the_overlay_refuses() {
    let home = Home::new();
    project(&home.lower());
    let mut agent = home.start_with(|config| {
        config.session_filter = config.base_filter.clone();
        config.rename_notify = false;
    });
    let ran = agent.sh("python3 -c 'import os; os.rename(\"src\", \"lib\")'");
    assert!(String::from_utf8_lossy(&ran.err).contains("Invalid cross-device link"), "{ran:?}");
}

#[test]
fn git_mv_of_a_captured_directory() {
    for git in ["/usr/bin/git", "/usr/local/bin/git"] {
        if !Path::new(git).exists() {
            continue;
        }
        let home = Home::new();
        repository(&home);
        let mut agent = home.start();
        let id = "-c user.name=n -c user.email=e";
        agent.ok(&format!("{git} mv src lib && {git} mv docs lib/docs && {git} {id} commit -qm moved"));
        assert_eq!(agent.ok(&format!("{git} status --porcelain")), "");
        let moved = agent.ok(&format!("{git} show --stat=200 --format= -M | grep -c '=>'"));
        assert_eq!(moved.trim(), "11");
        assert_eq!(agent.ok("ls -A | tr '\\n' ' '; cat lib/app/deep/er/bottom"), ".git empty lib bottom\n");
    }
}

#[test]
fn a_moved_directory_is_the_same() {
    let home = Home::new();
    project(&home.lower());
    let mut agent = home.start();
    let plain = tempfile::tempdir().unwrap();
    project(plain.path());
    let script =
        format!("mv src lib && mv lib/app/deep lib/deep2 && mv lib/locked lib/kept && mkdir a && mv lib a/b; {LOOK}");
    let expected = Command::new("bash").args(["-ec", &script]).current_dir(plain.path()).output().unwrap();
    assert_eq!(agent.ok(&script), String::from_utf8(expected.stdout).unwrap());
    assert_eq!(agent.ok("stat -c %y a/b/deep2 | cut -c1-10"), "2001-02-03\n");
    // After a restart, from upper and lower alone, it is still so.
    let seen = agent.ok(LOOK);
    agent.crash();
    assert_eq!(home.start().ok(LOOK), seen);
}

#[test]
fn errors_are_those_of_rename() {
    let home = Home::new();
    project(&home.lower());
    let mut agent = home.start();
    let plain = tempfile::tempdir().unwrap();
    project(plain.path());
    let script = r#"
import os, errno, ctypes
libc = ctypes.CDLL(None, use_errno=True)
def rename(old, new, flags=0):
    r = libc.renameat2(-100, old.encode(), -100, new.encode(), flags)
    e = ctypes.get_errno() if r else 0
    print(old, new, flags, errno.errorcode.get(e, e))
rename("src", "src")
rename("src", "src/app/x")
rename("src/app", "src")
rename("src", "docs")
rename("src", "docs/text")
rename("docs/text", "src")
rename("src", "docs", 1)
rename("src", "empty", 1)
rename("src/.", "x")
rename("src", "no/where")
rename("gone", "x")
rename("src/app/link/", "x")
rename("docs/text/", "x")
rename("src", "x" * 300)
rename("src", "x", 64)
rename("src/", "empty")
rename("empty/", "src///")
rename("src", "new", 1)
os.chdir("new"); rename("app", "../up"); rename("../up", "app2")
fd = os.open("app2", os.O_RDONLY)
print(libc.renameat(fd, b"deep", -100, b"deep-out"))
print(sorted(os.listdir(".")), sorted(os.listdir("app2")))
"#;
    std::fs::write(plain.path().join("r.py"), script).unwrap();
    std::fs::write(home.upper().join("r.py"), script).unwrap();
    let expected = Command::new("python3").arg("r.py").current_dir(plain.path()).output().unwrap();
    assert_eq!(agent.ok("python3 r.py"), String::from_utf8(expected.stdout).unwrap());
}

const EXCHANGE: &str = r#"
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def exchange(one, two):
    failed = libc.renameat2(-100, one.encode(), -100, two.encode(), 2)
    print(one, two, errno.errorcode.get(ctypes.get_errno()) if failed else "ok")
for pair in sys.argv[1:]:
    exchange(*pair.split(":"))
"#;

#[test]
fn an_exchange_changes_places() {
    let home = Home::new();
    let plain = tempfile::tempdir().unwrap();
    for at in [home.lower().as_path(), plain.path()] {
        project(at);
    }
    for at in [home.upper().as_path(), plain.path()] {
        std::fs::write(at.join("x.py"), EXCHANGE).unwrap();
        std::fs::create_dir(at.join("own")).unwrap();
        std::fs::write(at.join("own/mine"), "mine").unwrap();
    }
    let mut agent = home.start();
    let pairs = "src:docs docs/app:empty src/text:docs own:docs src/text:empty docs:docs/locked docs/locked:docs \
                 gone:src src:gone src:src docs/locked:src own/locked:src/mine";
    let script = format!(
        "python3 x.py {pairs}; find . -path ./.git -prune -o -printf '%P %y %m %l\\n' | LC_ALL=C sort; \
                          find . -path ./.git -prune -o -type f -print0 | LC_ALL=C sort -z | xargs -0 cat"
    );
    let expected = Command::new("bash").args(["-c", &script]).current_dir(plain.path()).output().unwrap();
    assert_eq!(agent.ok(&script), String::from_utf8(expected.stdout).unwrap());
    assert_eq!(agent.ok("ls -A | grep gs-rename | wc -l"), "0\n");
}

#[test]
fn a_crash_in_an_exchange_loses_nothing() {
    let mut cuts = 0;
    for after in [1, 5, 10, 20, 40, 80] {
        let home = Home::new();
        big(&home, false);
        std::fs::create_dir_all(home.lower().join("small/in")).unwrap();
        std::fs::write(home.lower().join("small/in/f"), "small").unwrap();
        std::fs::write(home.upper().join("x.py"), EXCHANGE).unwrap();
        let mut agent = home.start();
        let exec = agent.command(&["python3", "x.py", "big:small"]);
        let stream = agent.client.open(&Message::Exec(exec));
        agent.client.until(stream, |message| matches!(message, Message::Started { .. }));
        let (new, start) = (home.upper().join(".gs-rename/new"), Instant::now());
        while !new.exists() && start.elapsed() < Duration::from_secs(2) {}
        std::thread::sleep(Duration::from_millis(after));
        agent.crash();
        let cut = home.upper().join(".gs-rename").exists();
        cuts += u32::from(cut);
        let mut agent = home.start();
        assert_eq!(agent.ok("ls -A"), "big\nsmall\nx.py\n", "cut: {cut}");
        // Either both have their old names or both have the other's.
        let placed = "if test -d small/in; then big=big small=small; else big=small small=big; fi; cat $small/in/f; ls $small; \
                      cd $big; for f in part*/f*; do p=${f%/*}; test \"$(<$f)\" = \"${p#part}/${f##*/f}\" || echo wrong $f; done; \
                      ls -d part*/f* | wc -l";
        assert_eq!(agent.ok(placed), "smallin\n2000\n", "cut: {cut}");
        assert_eq!(agent.ok("python3 x.py big:small"), "big small ok\n");
        assert_eq!(agent.ok(placed), "smallin\n2000\n");
    }
    assert!(cuts > 0, "no crash came in the middle");
}

#[test]
#[ignore = "half a minute: cargo xtask test --all"]
fn fifty_thousand_captured_files_are_moved() {
    let home = Home::new();
    for part in 0..100 {
        let at = home.lower().join(format!("big/part{part}"));
        std::fs::create_dir_all(&at).unwrap();
        for file in 0..500 {
            std::fs::write(at.join(format!("f{file}")), format!("{part}/{file}")).unwrap();
        }
    }
    let mut agent = home.start();
    let start = Instant::now();
    agent.ok("mv big moved");
    println!("50 000 captured files: {:?}", start.elapsed());
    assert_eq!(
        agent.ok("test ! -e big; cd moved; find . -type f | wc -l; cat part99/f499; ls -A .. | wc -l"),
        "50000\n99/4991\n"
    );
}

#[test]
fn open_files_and_locks_stay() {
    let home = Home::new();
    project(&home.lower());
    let mut agent = home.start();
    let out = agent.ok("exec 5>>src/app/f1; flock 5; echo before >&5; mv src lib; echo after >&5; cat lib/app/f1; \
         flock -n lib/app/f1 true || echo locked");
    assert_eq!(out, "file 1\nbefore\nafter\nlocked\n");
}

#[test]
fn magic_links_are_left_to_the_kernel() {
    let home = Home::new();
    project(&home.lower());
    let mut agent = home.start();
    // Resolved by PID 1 these would name something else; the kernel's own answer is EXDEV, then mv copies.
    agent.ok("mv /proc/self/cwd/docs lib && cat lib/text >/dev/null && test ! -e docs");
    let ran = agent.sh("mkdir d && mv d /proc/1/cwd/tmp/x");
    assert_ne!(ran.status, Ok(ExitStatus::Code(0)));
}

#[test]
fn many_renames_at_once() {
    let home = Home::new();
    for n in 0..8 {
        let at = home.lower().join(format!("d{n}/in/er"));
        std::fs::create_dir_all(&at).unwrap();
        for file in 0..50 {
            std::fs::write(at.join(format!("f{file}")), "x").unwrap();
        }
    }
    let mut agent = home.start();
    let streams: Vec<u32> = (0..8)
        .map(|n| {
            let script = format!("for i in 1 2 3; do mv d{n} e{n} && mv e{n} d{n} || exit 1; done; mv d{n} z{n}");
            let exec = agent.command(&["bash", "-c", &script]);
            agent.client.open(&Message::Exec(exec))
        })
        .collect();
    // Readers of the same tree, and renames of files, go on meanwhile.
    agent.ok("for i in {1..50}; do ls -R >/dev/null 2>&1; echo $i >t.$i; mv t.$i t; done; cat t");
    for stream in streams {
        let ran = agent.client.finish(stream, b"");
        assert_eq!(ran.status, Ok(ExitStatus::Code(0)), "{}", String::from_utf8_lossy(&ran.err));
    }
    assert_eq!(agent.ok("find z* -type f | wc -l; ls -A"), "400\nt\nz0\nz1\nz2\nz3\nz4\nz5\nz6\nz7\n");
}

/// A large directory: captured, or with the sandbox's own files in captured directories, which need
/// no copy and so make the renames themselves the larger part.
fn big(home: &Home, captured: bool) {
    for part in 0..20 {
        for layer in [home.lower(), home.upper()] {
            let at = layer.join(format!("big/part{part}"));
            if captured && layer == home.upper() {
                continue;
            }
            std::fs::create_dir_all(&at).unwrap();
            if !captured && layer == home.lower() {
                continue;
            }
            for file in 0..(if captured { 25 } else { 100 }) {
                std::fs::write(at.join(format!("f{file}")), format!("{part}/{file}")).unwrap();
            }
        }
    }
}

const CHECK_BIG: &str = "cd big 2>/dev/null || cd moved; \
    for f in part*/f*; do p=${f%/*}; test \"$(<$f)\" = \"${p#part}/${f##*/f}\" || echo wrong $f; done; ls -d part*/f* | wc -l";

#[test]
fn a_large_directory_is_moved_whole() {
    let home = Home::new();
    big(&home, true);
    let mut agent = home.start();
    let timed = |agent: &mut common::Agent, script: &str| {
        let start = Instant::now();
        agent.ok(script);
        start.elapsed()
    };
    let ours = timed(&mut agent, "mv big moved");
    let again = timed(&mut agent, "mv moved back");
    println!("500 captured files: {ours:?}; once more, now the sandbox's own: {again:?}");
    assert_eq!(agent.ok("cd back; ls -d part*/f* | wc -l"), "500\n");
}

#[test]
fn a_crash_in_the_middle_loses_nothing() {
    let mut cuts = 0;
    for after in [1, 5, 10, 20, 40, 80] {
        let home = Home::new();
        big(&home, false);
        let mut agent = home.start();
        let exec = agent.command(&["mv", "big", "moved"]);
        let stream = agent.client.open(&Message::Exec(exec));
        agent.client.until(stream, |message| matches!(message, Message::Started { .. }));
        let (new, start) = (home.upper().join(".gs-rename/new"), Instant::now());
        while !new.exists() && start.elapsed() < Duration::from_secs(2) {}
        std::thread::sleep(Duration::from_millis(after));
        agent.crash();
        let cut = new.read_dir().is_ok_and(|mut entries| entries.next().is_some());
        cuts += u32::from(cut);
        let mut agent = home.start();
        let now = agent.ok("ls -A");
        assert!(now == "big\n" || (!cut && now == "moved\n"), "cut: {cut}, now: {now}");
        assert_eq!(agent.ok(CHECK_BIG), "2000\n");
        // And it can be done again.
        agent.ok("test -d moved || mv big moved; test -d moved && test ! -e big");
        assert_eq!(agent.ok(CHECK_BIG), "2000\n");
    }
    assert!(cuts > 0, "no crash came in the middle");
}

#[test]
fn a_killed_helper_is_undone_and_told() {
    let home = Home::new();
    big(&home, false);
    let mut agent = home.start();
    let script =
        "import os\ntry: os.rename('big','moved'); print('done')\nexcept OSError as e: print('errno', e.errno)";
    let exec = agent.command(&["python3", "-c", script]);
    // Everything inside but PID 1 dies, as soon as the work begins.
    let killer = agent.command(&[
        "bash",
        "-c",
        "while ! test -e .gs-rename/new; do :; done; pkill -9 -P 1 -f '^git-sandbox-agent'",
    ]);
    let killer = agent.client.open(&Message::Exec(killer));
    agent.client.until(killer, |message| matches!(message, Message::Started { .. }));
    let stream = agent.client.open(&Message::Exec(exec));
    agent.client.until(killer, |message| matches!(message, Message::Exited(_)));
    let out = agent.client.expect(stream, "\n");
    assert!(out == "errno 5\n" || out == "done\n", "{out}");
    eventually("sessions start again", || agent.sh("true").status == Ok(ExitStatus::Code(0)));
    let expected = if out == "done\n" { "moved\n" } else { "big\n" };
    eventually("it is undone", || agent.ok("ls -A") == expected);
    assert_eq!(agent.ok(CHECK_BIG), "2000\n");
    agent.ok("test -d moved || mv big moved");
}

#[test]
fn moves_of_refs_are_told() {
    let home = Home::new();
    repository(&home);
    let mut agent = home.start();
    let gitdir = home.tree().join(".git").to_str().unwrap().to_owned();
    agent.ok("git status >/dev/null; git add -A; echo x >new; git add new");
    let start = Instant::now();
    let exec = agent.command(&["git", "-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "second"]);
    agent.client.run(exec, b"");
    assert_eq!(agent.client.message_of(0), Message::RefsMoved { gitdir: gitdir.clone() });
    assert!(start.elapsed() < Duration::from_millis(1500), "{:?}", start.elapsed());
    // Nothing more of that commit; then a branch, told while its session goes on.
    let exec = agent.command(&["bash", "-c", "git status >/dev/null; echo now; git branch other; exec sleep 60"]);
    let stream = agent.client.open(&Message::Exec(exec));
    agent.client.expect(stream, "now");
    let start = Instant::now();
    assert_eq!(agent.client.message_of(0), Message::RefsMoved { gitdir });
    assert!(start.elapsed() < Duration::from_millis(1500), "{:?}", start.elapsed());
}

#[test]
fn a_ref_is_told_before_the_end_of_who_moved_it() {
    for notify in [true, false] {
        let home = Home::new();
        repository(&home);
        let mut agent = home.start_with(|config| {
            config.rename_notify = notify;
            if !notify {
                config.session_filter = config.base_filter.clone();
            }
        });
        for n in 0..5 {
            let exec = agent.command(&["git", "branch", &format!("b{n}")]);
            let stream = agent.client.open(&Message::Exec(exec));
            let mut told = false;
            loop {
                let frame = agent.client.try_frame().unwrap();
                match frame.message().unwrap() {
                    Message::RefsMoved { .. } => told = true,
                    Message::Exited(_) if frame.stream == stream => break,
                    _ => {}
                }
            }
            assert!(told, "branch {n}, notifications: {notify}");
        }
    }
}

#[test]
fn moves_of_refs_are_told_without_notifications() {
    let home = Home::new();
    repository(&home);
    let mut agent = home.start_with(|config| {
        config.session_filter = config.base_filter.clone();
        config.rename_notify = false;
    });
    assert!(!agent.hello.enforced.iter().any(|name| name == "rename-notify"));
    // One look has been taken at the start.
    agent.ok("git branch other");
    assert!(matches!(agent.client.message_of(0), Message::RefsMoved { .. }));
}

#[test]
fn a_rename_of_a_file_stays_cheap() {
    let home = Home::new();
    let mut agent = home.start();
    let script = "import os,time\nopen('a','w').close()\nn=4000\nt=time.perf_counter()\n\
                  for i in range(n): os.rename('a','b'); os.rename('b','a')\n\
                  print((time.perf_counter()-t)/n/2*1e6)";
    let exec = agent.command(&["python3", "-c", script]);
    let micros: f64 = agent.client.run(exec, b"").stdout().trim().parse().unwrap();
    println!("{micros:.1} µs for each rename of a file");
    assert!(micros < 2000.0);
}
