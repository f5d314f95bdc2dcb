//! How a sandbox's tree is put together: what a full copy gives, and where it takes the overlay's place.

use crate::Subject;
use sandbox_testkit::{Output, Repo, State, is_root, skip, which};
use std::fs;
use std::time::{Duration, Instant};

over_drivers! {
    a_copy_is_an_ordinary_tree,
    what_changed_in_a_copy_is_told,
    a_copy_opens_no_file_that_the_host_would_not,
    a_fork_of_a_copy_opens_no_file_either,
    a_killed_copy_leaves_nothing,
    the_view_is_told,
    a_view_that_is_none_is_refused,
    on_overlayfs_a_copy_is_chosen,
    on_overlayfs_a_large_tree_is_refused,
    on_tmpfs_an_overlay_is_chosen,
    on_fuse_a_copy_is_chosen,
    on_disks_with_and_without_reflinks,
}

/// Runs a script in a mount namespace of its own, as the same user; `$gs` is the product.
fn in_mounts(subject: &Subject, repo: &Repo, script: &str) -> Output {
    let product = subject.env.sandbox_command(repo.dir(), &[]);
    let product = product.get_program().to_string_lossy().into_owned();
    let head = format!(
        "d=$XDG_STATE_HOME; mkdir -p \"$d/git-sandbox\"
         gs() {{ setpriv --inh-caps=-all --ambient-caps=-all '{product}' \"$@\"; }}
         spawn() {{ gs spawn --driver {} \"$@\"; }}\n",
        subject.driver
    );
    let mut command = subject.env.command("unshare", repo.dir());
    if !is_root() {
        command.args(["--user", "--map-current-user", "--keep-caps"]);
    }
    subject.env.run(command.args(["--mount", "sh", "-ec", &(head + script)]))
}

/// What the overlay without privilege does not give: see `docs/limits.md`.
fn a_copy_is_an_ordinary_tree(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    repo.sh("ln src/a.c linked.c").ok();
    subject.spawn(&repo, &["-d", "c", "--view", "copy"], "sleep 1000").ok();
    let script = r#"
        set -e
        test "$(stat -c %h src/a.c)" = 2
        echo through >>linked.c && tail -n1 src/a.c | grep -qx through
        before=$(stat -c %i src); mv src lib && test "$(stat -c %i lib)" = "$before" && mv lib src
        perl -e 'open my $f, "<", "src/b.c" or die; open my $g, ">>", "src/b.c" or die; print $g "x"; close $g;
            my @a = stat $f; my @b = stat "src/b.c"; $a[1] == $b[1] or die "inode"'
        find . -path ./.git -prune -o -printf '%i %p\n' | LC_ALL=C sort"#;
    let before = subject.exec(&repo, "c", script).ok();
    repo.sandbox(&["stop", "c"]).ok();
    repo.sandbox(&["start", "c"]).ok();
    let inodes = "find . -path ./.git -prune -o -printf '%i %p\\n' | LC_ALL=C sort";
    assert_eq!(subject.exec(&repo, "c", inodes).ok(), before, "inode numbers over stop and start");
    assert!(!subject.exec(&repo, "c", "cat /proc/self/mountinfo").ok().contains(" overlay "));
    assert!(!repo.read("src/a.c").contains("through"), "the host's file");
}

fn what_changed_in_a_copy_is_told(subject: &Subject) {
    let repo = subject.repo(State::Dirty);
    subject.spawn(&repo, &["c", "--view", "copy"], "true").ok();
    assert_eq!(repo.sandbox(&["diff", "c", "--uncommitted", "--stat"]).stdout, "");
    repo.sandbox(&["drop", "c"]).ok();
    let script =
        "rm docs/guide.md; mv bin tools; echo more >>README.md; touch src/a.c; chmod 755 src/b.c; echo new >new";
    let mut told = Vec::new();
    for view in ["overlay", "copy"] {
        subject.spawn(&repo, &[view, "--view", view], script).ok();
        let shown: serde_json::Value =
            serde_json::from_str(&repo.sandbox(&["show", "--json", view]).ok()).expect("JSON");
        assert_eq!(shown["view"], view);
        told.push((shown["uncommitted_files"].clone(), repo.sandbox(&["diff", view, "--uncommitted"]).ok()));
        let refused = repo.sandbox(&["drop", view]);
        assert!(refused.status == 1 || refused.status == 128, "{refused}");
        repo.sandbox(&["drop", "--force", view]).ok();
        repo.sandbox(&["trash", "restore", view]).ok();
        assert_eq!(subject.exec_stopped(&repo, view, "cat new").ok(), "new\n");
    }
    assert!(told[0].0.as_array().is_some_and(|files| files.len() >= 4), "{told:?}");
    assert_eq!(told[0], told[1]);
}

impl Subject {
    /// Starts a stopped sandbox, and runs a script there.
    fn exec_stopped(&self, repo: &Repo, name: &str, script: &str) -> Output {
        repo.sandbox(&["start", name]).ok();
        self.exec(repo, name, script)
    }
}

/// How many files of the tree `git status` opens, as `strace` inside sees it.
const OPENS: &str = r#"
    GIT_OPTIONAL_LOCKS=0 strace -f -e trace=openat -o "$HOME/opens" git status --porcelain >/dev/null
    grep -v ENOENT "$HOME/opens" | grep -c '\(src\|docs\|bin\|many\)/[a-z0-9]*\.\?[a-z0-9]*", O_RDONLY' || true"#;

fn a_copy_opens_no_file_that_the_host_would_not(subject: &Subject) {
    if which("strace").is_none() {
        skip!("no strace");
    }
    let repo = subject.repo(State::Plain);
    // Older than the index, so that nothing of it is compared by content.
    let many = "mkdir many && cd many && for n in $(seq 200); do echo $n >$n.c; done && touch -d '1 hour ago' *.c && git add . && git commit -qm many && sleep 1 && git update-index --refresh";
    repo.sh(many).ok();
    let host: u32 = repo.sh(&OPENS.replace("$HOME", "$TMPDIR")).ok().trim().parse().expect("a number");
    let seen = subject.spawn(&repo, &["c", "--view", "copy"], OPENS).ok();
    assert!(host < 50, "{host} on the host");
    assert_eq!(seen.trim().parse(), Ok(host));
}

fn a_fork_of_a_copy_opens_no_file_either(subject: &Subject) {
    if which("strace").is_none() {
        skip!("no strace");
    }
    let repo = subject.repo(State::Plain);
    let many = "mkdir many && cd many && for n in $(seq 200); do echo $n >$n.c; done && touch -d '1 hour ago' *.c && git add . && git commit -qm many && sleep 1 && git update-index --refresh";
    repo.sh(many).ok();
    subject.spawn(&repo, &["-d", "c", "--view", "copy"], "sleep 1000").ok();
    subject.exec(&repo, "c", "echo other >many/7.c; rm many/8.c").ok();
    repo.sandbox(&["fork", "-d", "c", "d"]).ok();
    let opens: u32 = subject.exec(&repo, "d", OPENS).ok().trim().parse().expect("a number");
    assert!(opens < 50, "{opens}");
    assert_eq!(subject.exec(&repo, "d", "git status --porcelain").ok(), " M many/7.c\n D many/8.c\n");
    let list = repo.sandbox(&["diff", "d", "--uncommitted", "--stat"]).ok();
    assert!(list.contains("many/7.c") && list.contains("many/8.c") && list.contains("2 files"), "{list}");
}

fn a_killed_copy_leaves_nothing(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    repo.sh("mkdir many; cd many; for d in $(seq 60); do mkdir $d; (cd $d; seq 250 | xargs touch); done").ok();
    // The capture is done before: what is killed is the copy.
    subject.spawn(&repo, &["first"], "true").ok();
    repo.sandbox(&["drop", "first"]).ok();
    let sandboxes = || -> Vec<_> {
        let dirs = fs::read_dir(subject.env.state().join("sandboxes")).into_iter().flatten().flatten();
        dirs.map(|dir| dir.path()).collect()
    };
    let args = ["spawn", "--driver", subject.driver, "-d", "c", "--view", "copy"];
    let mut spawn = subject.env.start(repo.dir(), &args);
    let until = Instant::now() + Duration::from_secs(30);
    let half = loop {
        assert!(Instant::now() < until, "no copy begins");
        if let Some(dir) = sandboxes().into_iter().find(|dir| dir.join("trees/0/upper/many").exists()) {
            break dir;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    spawn.kill();
    spawn.wait(Duration::from_secs(10));
    if !half.join("sandbox.json").exists() {
        assert!(!repo.sandbox(&["list"]).ok().contains("\nc "));
        repo.sandbox(&["gc"]).ok();
        assert!(!half.exists());
    } else {
        repo.sandbox(&["drop", "--force", "c"]).ok();
    }
    repo.sandbox(&args).ok();
    assert_eq!(subject.exec(&repo, "c", "find many -type f | wc -l").ok(), "15000\n");
}

fn the_view_is_told(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["-d", "c", "--view", "copy"], "sleep 1000").ok();
    let seen = repo.sandbox(&["list", "--json"]).ok();
    assert!(seen.contains("\"view\": \"copy\""), "{seen}");
    let seen = repo.sandbox(&["show", "c"]).ok();
    assert!(seen.contains("\nview        copy: all of the tree is its own\n"), "{seen}");
    let plan = repo.sandbox(&["spawn", "--driver", subject.driver, "x", "--view", "copy", "--dry-run"]).ok();
    assert!(plan.contains(&format!("copy      {}  rw,nosuid,nodev  from ", repo.dir().display())), "{plan}");
    assert!(!plan.contains("lowerdir"), "{plan}");
    let doctor = |args: &[&str]| repo.env().sandbox(repo.dir(), &[&["doctor"], args].concat()).stdout;
    assert!(doctor(&[]).contains("ok      view                 an overlay\n"));
    repo.git(&["config", "sandbox.view", "copy"]).ok();
    assert!(doctor(&[]).contains("ok      view                 a full copy for each sandbox (sandbox.view = copy)\n"));
}

fn a_view_that_is_none_is_refused(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    repo.git(&["config", "sandbox.view", "cubist"]).ok();
    insta::assert_snapshot!(subject.spawn(&repo, &["x"], "true"), @r#"
    ---- stderr
    error: 'cubist' is not a value of sandbox.view
    hint: it is auto, overlay or copy
    ---- status 125
    "#);
}

/// A mount of overlayfs, which cannot be an upper directory, as state directory.
const ON_OVERLAY: &str = r#"
    mkdir -p "$d/lower" "$d/upper" "$d/work"
    mount -t overlay overlay -o "lowerdir=$d/lower,upperdir=$d/upper,workdir=$d/work,userxattr" "$d/git-sandbox"
"#;

fn on_overlayfs_a_copy_is_chosen(subject: &Subject) {
    let repo = subject.repo(State::Dirty);
    // Twice, and something is gone at the second time: no whiteout can be made there.
    let script = r#"
        git status --porcelain=v2 >"$TMPDIR/host"
        spawn a -- sh -c 'git status --porcelain=v2; git mv src lib; git commit -qam moved' >"$TMPDIR/inside"
        cmp "$TMPDIR/host" "$TMPDIR/inside"
        git log --format=%s -1 sandbox/a
        rm bin/run.sh
        spawn b -- sh -c 'test ! -e bin/run.sh && git status --porcelain | grep bin/'
        gs fork b c -- sh -c 'git status --porcelain | grep bin/'
        gs list --json | grep -c '"view": "copy",'
        gs doctor | grep ' view '
        gs drop --all --force 2>/dev/null"#;
    let seen = in_mounts(subject, &repo, &format!("{ON_OVERLAY}{script}"));
    assert_eq!(seen.status, 0, "{seen}");
    let out: Vec<&str> = seen.stdout.lines().map(str::trim).collect();
    assert_eq!(
        out,
        [
            "moved",
            "D bin/run.sh",
            "D bin/run.sh",
            "3",
            "weak    view                 the state directory is on overlayfs, which cannot hold an upper directory: a full copy for each sandbox, of trees up to 1.0 GiB (sandbox.captureLimit)",
        ]
    );
    let line = "note: a full copy instead of an overlay: the state directory '";
    assert_eq!(seen.stderr.matches(line).count(), 2, "{seen}");
}

fn on_overlayfs_a_large_tree_is_refused(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    repo.git(&["config", "sandbox.captureLimit", "100"]).ok();
    let seen = in_mounts(subject, &repo, &format!("{ON_OVERLAY}spawn x -- true"));
    insta::assert_snapshot!(seen, @r#"
    ---- stderr
    error: no overlay can be mounted on the state directory '[STATE]'
    caused by: it is on overlayfs, which cannot hold an upper directory, and a full copy of 273 B without shared blocks is over `sandbox.captureLimit` (100 B)
    hint: `git config --global sandbox.stateDir DIR` names a directory on a local file system such as ext4, XFS or Btrfs; in a container: on a volume
    hint: `--view copy` makes a full copy for each sandbox whatever its size
    ---- status 125
    "#);
    let seen = in_mounts(subject, &repo, &format!("{ON_OVERLAY}spawn x --view overlay -- true"));
    insta::assert_snapshot!(seen, @r#"
    ---- stderr
    error: no overlay can be mounted on the state directory '[STATE]'
    caused by: it is on overlayfs, which cannot hold an upper directory
    hint: `git config --global sandbox.stateDir DIR` names a directory on a local file system such as ext4, XFS or Btrfs; in a container: on a volume
    hint: `--view copy` (`sandbox.view`) makes a full copy for each sandbox
    ---- status 125
    "#);
    let seen = in_mounts(subject, &repo, &format!("{ON_OVERLAY}spawn x --view copy -- git status --porcelain"));
    assert_eq!((seen.status, &*seen.stdout), (0, ""), "{seen}");
}

fn on_tmpfs_an_overlay_is_chosen(subject: &Subject) {
    let repo = subject.repo(State::Dirty);
    let script = r#"
        mount -t tmpfs -o mode=700 tmpfs "$d/git-sandbox"
        spawn a -- sh -c 'rm -r src && mkdir src && git status --porcelain >/dev/null; grep -c " / .* overlay " /proc/self/mountinfo >/dev/null; echo done'
        gs list --json | grep '"view"'
        spawn b --view copy -- sh -c 'ls src >/dev/null; git mv src lib; echo done'
        gs drop --all --force 2>/dev/null"#;
    let seen = in_mounts(subject, &repo, script);
    assert_eq!(seen.status, 0, "{seen}");
    let out: Vec<&str> = seen.stdout.lines().map(str::trim).collect();
    assert_eq!(out, ["done", "\"view\": \"overlay\",", "done"], "{seen}");
    assert!(!seen.stderr.contains("instead of an overlay"), "{seen}");
}

/// What a mounted state directory is tried with.
const TRY: &str = r#"
    chmod 700 "$d/git-sandbox"
    git status --porcelain=v2 >"$TMPDIR/host"
    spawn a VIEW -- sh -c 'git status --porcelain=v2; git mv src lib; echo more >>README.md; git commit -qam moved' >"$TMPDIR/inside"
    cmp "$TMPDIR/host" "$TMPDIR/inside"
    git log --format=%s -1 sandbox/a
    rm bin/run.sh
    spawn b VIEW -- sh -c 'test ! -e bin/run.sh && git status --porcelain | grep bin/'
    gs fork b c -- sh -c 'git status --porcelain | grep bin/'
    gs list --json | grep -c '"view": "copy",'
    gs drop --all --force 2>/dev/null
"#;

fn on_fuse_a_copy_is_chosen(subject: &Subject) {
    if !is_root() {
        skip!("mounting a FUSE file system needs root here");
    }
    if which("fuse2fs").is_none() || which("mkfs.ext4").is_none() || !std::path::Path::new("/dev/fuse").exists() {
        skip!("no fuse2fs, mkfs.ext4 or /dev/fuse");
    }
    let repo = subject.repo(State::Dirty);
    let mount = r#"
        truncate -s 64m "$d/image"; mkfs.ext4 -q "$d/image"
        fuse2fs "$d/image" "$d/git-sandbox" -o allow_other,fakeroot,default_permissions 2>/dev/null
        rmdir "$d/git-sandbox/lost+found"
    "#;
    let seen = in_mounts(subject, &repo, &format!("{mount}{}umount \"$d/git-sandbox\"", TRY.replace("VIEW", "")));
    assert_eq!(seen.status, 0, "{seen}");
    let out: Vec<&str> = seen.stdout.lines().map(str::trim).collect();
    assert_eq!(out, ["moved", "D bin/run.sh", "D bin/run.sh", "3"], "{seen}");
    assert!(seen.stderr.contains("is on FUSE, which cannot hold an upper directory"), "{seen}");
}

fn on_disks_with_and_without_reflinks(subject: &Subject) {
    if !is_root() {
        skip!("loop mounts need root");
    }
    let mut tried = 0;
    for (n, mkfs) in ["mkfs.ext4 -q", "mkfs.xfs -q -m reflink=1", "mkfs.btrfs -q"].into_iter().enumerate() {
        if which(mkfs.split(' ').next().unwrap_or_default()).is_none() {
            println!("skipped: no {mkfs}");
            continue;
        }
        let repo = State::Dirty.build(&subject.env, &format!("disk{n}"));
        repo.sh("ln src/a.c linked.c").ok();
        let mount = format!(
            "truncate -s 512m \"$d/image{n}\"; {mkfs} \"$d/image{n}\" >/dev/null && mount -o loop \"$d/image{n}\" \"$d/git-sandbox\" || exit 42\n\
             rmdir \"$d/git-sandbox/lost+found\" 2>/dev/null || true\n"
        );
        let seen = in_mounts(subject, &repo, &(mount + &TRY.replace("VIEW", "--view copy")));
        if seen.status == 42 {
            println!("skipped: no loop mounts of {mkfs} here");
            continue;
        }
        assert_eq!(seen.status, 0, "{mkfs}: {seen}");
        let out: Vec<&str> = seen.stdout.lines().map(str::trim).collect();
        assert_eq!(out, ["moved", "D bin/run.sh", "D bin/run.sh", "3"], "{mkfs}: {seen}");
        tried += 1;
    }
    if tried == 0 {
        skip!("no file system to mount");
    }
}
