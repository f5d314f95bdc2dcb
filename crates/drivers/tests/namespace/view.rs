//! What is seen inside, and what becomes of what is written.

use crate::kit::{Kit, is_root};
use sandbox_core::launch::{GeneratedFile, Mode, Mount, Network, Tree, View};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

pub fn the_tree_is_copy_on_write() -> Result<(), String> {
    let kit = Kit::new();
    let mut sandbox = kit.launch();
    assert_eq!(
        sandbox.out("pwd; ls; cat kept dir/deep; cat /workspace/new"),
        "/home/tester/project\ndir\nkept\nnew\nkept\ndeep\nnew\n"
    );
    sandbox.out("echo changed > kept; rm new; mkdir made; echo x > made/file; echo tmp > /tmp/t; echo home > ~/h");
    assert_eq!(fs::read_to_string(kit.path("base/kept")).unwrap(), "kept\n");
    assert!(kit.path("delta/new").exists());
    assert_eq!(fs::read_to_string(kit.path("upper/kept")).unwrap(), "changed\n");
    assert_eq!(fs::read_to_string(kit.path("upper/made/file")).unwrap(), "x\n");
    assert_eq!(fs::symlink_metadata(kit.path("upper/new")).unwrap().rdev(), 0);
    assert_eq!(fs::read_to_string(kit.path("tmp/t")).unwrap(), "tmp\n");
    let home = fs::metadata(kit.path("home/h")).unwrap();
    assert_eq!((home.uid(), home.gid()), (kit.spec.user.uid, kit.spec.user.gid));
    // Across directories, and a lower file as well.
    sandbox.out("mv dir/deep made/deep && mv kept dir/kept && cat made/deep dir/kept");
    // B10: everything inside is the sandbox's to destroy.
    sandbox.out("rm -rf -- * .[!.]*; echo x > new");
    assert_eq!(fs::read_to_string(kit.path("base/dir/deep")).unwrap(), "deep\n");
    Ok(())
}

pub fn mounts_are_exactly_what_was_planned() -> Result<(), String> {
    let mut kit = Kit::new();
    fs::create_dir_all(kit.path("view/pack")).unwrap();
    fs::write(kit.path("view/pack/p.pack"), "pack").unwrap();
    kit.spec.views = vec![View { key: "abc".into(), dir: kit.path("view") }];
    let repo_config =
        GeneratedFile { path: "/run/git-sandbox/repo.config".into(), mode: 0o600, contents: "[x]\n".into() };
    kit.spec.files =
        vec![repo_config, GeneratedFile { path: "/etc/passwd".into(), mode: 0o644, contents: "p\n".into() }];
    let mut sandbox = kit.launch();
    // B08
    sandbox.contained("propagation", "! grep -E ' (shared|master):' /proc/self/mountinfo");
    sandbox.contained(
        "nosuid, nodev",
        r"! awk '$6~/^rw/&&$5!~/^\/dev/&&!($6~/nosuid/&&$6~/nodev/){print $5;f=1}END{exit !f}' /proc/self/mountinfo",
    );
    let points = sandbox.out("awk '{print $5}' /proc/self/mountinfo");
    for hidden in ["/old", "/mnt", "upper", "layers"] {
        assert!(!points.lines().any(|point| point.contains(hidden)), "{points}");
    }
    // B09: neither half of the overlay is anywhere inside, nor told.
    let info = sandbox.out("grep overlay /proc/self/mountinfo");
    assert!(!info.contains(kit.dir.path().to_str().unwrap()), "{info}");
    sandbox
        .contained("upper", &format!("! ls -d {0}/upper {0}/work {0} 2>/dev/null | grep .", kit.dir.path().display()));
    // B02, B05
    sandbox.contained(
        "B02",
        "! touch /usr/x /etc/x /x /dev/x /sys/x /var/x 2>/dev/null && ! test -w /usr && ! test -w /etc",
    );
    sandbox.contained(
        "B05",
        r"! mknod /tmp/b b 254 0 2>/dev/null && ! find / -xdev \( -type b -o -type c \) ! -path '/dev/*' 2>/dev/null | grep .",
    );
    // B06
    sandbox.contained(
        "B06",
        "cd /run/git-sandbox/objects/abc && cat pack/p.pack && ! touch x && ! chmod 777 pack/* && ! ln pack/p.pack x \
         && ! mv pack q && ! rm pack/p.pack",
    );
    // Our own program cannot be written or replaced in place.
    sandbox.contained(
        "program",
        "! sh -c ': >> /run/git-sandbox/bin/git-sandbox' && ! rm -f /run/git-sandbox/bin/git-sandbox",
    );
    assert_eq!(sandbox.out("readlink /run/git-sandbox/bin/git-remote-sandbox; cat /run/git-sandbox/repo.config; stat -c %a /run/git-sandbox/repo.config; cat /etc/passwd"), "git-sandbox\n[x]\n600\np\n");
    // C05
    assert_eq!(
        sandbox.out("ls /dev | LC_ALL=C sort | tr '\\n' ' '"),
        "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero "
    );
    sandbox.contained(
        "devices",
        "head -c4 /dev/urandom | wc -c | grep -qx 4 && echo x > /dev/null && ! head -c1 /dev/full > /dev/full",
    );
    sandbox.contained("noexec", "! sh -c 'cp /bin/true /dev/shm/t && /dev/shm/t' 2>/dev/null");
    Ok(())
}

pub fn tools_work() -> Result<(), String> {
    let kit = Kit::new();
    let mut sandbox = kit.launch();
    sandbox
        .contained("E11 shell", "x=$(seq 3 | sort -r | head -1) && test $x = 3 && date >/dev/null && df / >/dev/null");
    if Path::new("/usr/bin/git").exists() {
        let git = "git -c user.name=t -c user.email=t@t -c init.defaultBranch=main";
        sandbox.contained(
            "E11 git",
            &format!("{git} init -q . && {git} add . && {git} commit -qm one && {git} gc -q && {git} fsck"),
        );
    }
    if Path::new("/usr/bin/gcc").exists() {
        sandbox.contained(
            "E11 gcc",
            "echo 'int main(){return 7;}' > /tmp/a.c && gcc -o /tmp/a /tmp/a.c && { /tmp/a; test $? = 7; }",
        );
    }
    if Path::new("/usr/bin/python3").exists() {
        sandbox.contained(
            "E11 python",
            "/usr/bin/python3 -c 'import multiprocessing,asyncio,sqlite3,ssl; multiprocessing.Pool(2).map(abs,[1]); \
             asyncio.run(asyncio.sleep(0)); sqlite3.connect(\"/tmp/d\").execute(\"create table t(x)\"); ssl.create_default_context()'",
        );
    }
    if Path::new("/usr/bin/strace").exists() {
        sandbox.contained("E11 strace", "strace -f -o /tmp/s true");
    }
    if Path::new("/usr/bin/perl").exists() {
        sandbox.contained("E11 perl", "perl -e1 2>&1");
    }
    Ok(())
}

pub fn twenty_layers() -> Result<(), String> {
    let mut kit = Kit::new();
    let mut lowers = Vec::new();
    for layer in 0..20 {
        let dir = kit.path(&format!("a-rather-long-name-of-a-layer-directory-{layer}-{}", "x".repeat(180)));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join(format!("file-{layer}")), "").unwrap();
        fs::write(dir.join("same"), format!("{layer}\n")).unwrap();
        lowers.push(dir);
    }
    kit.spec.trees[0].lowers = lowers;
    let mut sandbox = kit.launch();
    assert_eq!(sandbox.out("ls | wc -l; cat same"), "21\n0\n");
    Ok(())
}

pub fn a_helper_reads() -> Result<(), String> {
    let mut kit = Kit::new();
    kit.launch().out("echo changed > kept; rm new; mkdir -p dir2; echo home > ~/h");
    kit.spec.mode = Mode::Helper;
    kit.spec.network = Network::Host;
    let mut sandbox = kit.launch();
    assert_eq!(sandbox.out("cat kept; ls"), "changed\ndir\ndir2\nkept\n");
    sandbox.contained("read-only", "! touch x 2>/dev/null && ! ls ~/h 2>/dev/null && echo y > /tmp/y && echo z > ~/z");
    sandbox.contained("G01", "test $(grep -c : /proc/net/dev) = 1");
    drop(sandbox);
    assert!(!kit.path("home/z").exists() && !kit.path("tmp/y").exists());
    Ok(())
}

pub fn the_home_is_kept_and_not_trusted() -> Result<(), String> {
    let mut kit = Kit::new();
    let at = |path: &str| Mount { source: "/usr/bin".into(), at: Path::new("/home/tester").join(path) };
    kit.spec.toolchains = vec![
        at(".cargo/bin"),
        at(".tools/bin"),
        at(".deep/er/bin"),
        Mount { source: "/nowhere".into(), at: "/home/tester/n".into() },
    ];
    kit.spec.toolchains.push(Mount { source: "/etc/hostname".into(), at: "/home/tester/.file".into() });
    kit.spec.links.push(("/home/tester/link".into(), "/home/tester/project".into()));
    let mut sandbox = kit.launch();
    assert_eq!(sandbox.machine.notes().iter().filter(|note| note.contains("/home/tester")).count(), 0);
    sandbox.contained("toolchains", "~/.cargo/bin/true && ~/.tools/bin/true && ~/.deep/er/bin/true && test -s ~/.file && ls ~/link/kept && ! ls -d ~/n");
    sandbox.contained(
        "read-only",
        "! touch ~/.cargo/bin/x 2>/dev/null && touch ~/.cargo/config.toml && ! rm ~/.file 2>/dev/null",
    );
    // What a sandbox leaves in its home must not decide where the next start mounts.
    sandbox.out("mv ~/.tools ~/.tools.old; ln -s /etc ~/.tools; mv ~/.deep ~/.x; ln -s /home/tester/project ~/.deep");
    drop(sandbox);
    let mut sandbox = kit.launch();
    sandbox.contained("skipped", "~/.cargo/bin/true && ls ~/.cargo/config.toml && ! ls -d project/er 2>/dev/null && ! ls -d /etc/bin 2>/dev/null");
    let notes = sandbox.machine.notes();
    for path in [".tools/bin", ".deep/er/bin"] {
        assert!(notes.iter().any(|note| note.starts_with(&format!("'/home/tester/{path}' is not there"))), "{notes:?}");
    }
    Ok(())
}

pub fn trees_anywhere() -> Result<(), String> {
    for at in [
        "/srv/code/project",
        "/tmp/project",
        "/root/deep/project",
        "/home/tester",
        "/var/lib/x",
        "/dev/shm/p",
        "/opt/../opt",
    ] {
        let kit = Kit::at(Path::new(at));
        if at.contains("..") {
            assert!(kit.refused().0.to_string().contains("not a plain absolute path"));
            continue;
        }
        let mut sandbox = kit.launch();
        assert_eq!(sandbox.out("pwd; cat kept; echo x > made; cat /workspace/made"), format!("{at}\nkept\nx\n"));
        assert!(kit.path("upper/made").exists());
    }
    let mut kit = Kit::at(Path::new("/tmp/there/home/project"));
    kit.spec.home.at = "/tmp/there/home".into();
    let mut sandbox = kit.launch();
    sandbox.contained("a home below /tmp", "cat kept && echo x > ../y && cat /tmp/there/home/y");
    assert!(kit.path("home/y").exists());
    drop(sandbox);

    let mut kit = Kit::new();
    for name in ["second", "upper2", "work2"] {
        fs::create_dir(kit.path(name)).unwrap();
        if is_root() {
            std::os::unix::fs::chown(kit.path(name), Some(kit.spec.user.uid), Some(kit.spec.user.gid)).unwrap();
        }
    }
    fs::write(kit.path("second/s"), "second\n").unwrap();
    let (second, base) = (kit.path("second"), kit.path("base"));
    kit.spec.trees.push(Tree {
        at: "/srv/second".into(),
        lowers: vec![second.clone()],
        upper: kit.path("upper2"),
        work: kit.path("work2"),
        read_only: false,
        view: Default::default(),
    });
    kit.spec.trees.push(Tree {
        at: "/srv/ro".into(),
        lowers: vec![second, base],
        upper: "".into(),
        work: "".into(),
        read_only: true,
        view: Default::default(),
    });
    let mut sandbox = kit.launch();
    sandbox.contained(
        "three trees",
        "cat /srv/second/s && echo x > /srv/second/y && cat /srv/ro/s /srv/ro/kept && ! touch /srv/ro/x 2>/dev/null",
    );
    Ok(())
}

pub fn the_hosts_network() -> Result<(), String> {
    let mut kit = Kit::new();
    kit.spec.network = Network::Host;
    let mut sandbox = kit.launch();
    let host = fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(sandbox.out("readlink /proc/self/ns/net").trim(), host.to_str().unwrap());
    let resolver = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    assert_eq!(sandbox.out("cat /etc/resolv.conf"), resolver);
    sandbox.contained("nsswitch", "grep -q 'hosts: files dns' /etc/nsswitch.conf");
    Ok(())
}

pub fn root_inside() -> Result<(), String> {
    let mut kit = Kit::new();
    kit.spec.user.root = true;
    let mut sandbox = kit.launch();
    assert_eq!(sandbox.out("id -u; id -un; id -g"), "0\nroot\n0\n");
    let user = &kit.spec.user;
    assert_eq!(sandbox.out("awk '{print $1, $2, $3}' /proc/self/uid_map"), format!("0 {} 1\n", user.uid));
    sandbox.contained("no power", "! mount -t tmpfs x /tmp 2>/dev/null && ! chown 1 kept 2>/dev/null && grep -q 'CapEff:.0000000000000000' /proc/self/status");
    sandbox.contained("C02", "! (echo x >/proc/sys/kernel/core_pattern) 2>/dev/null && ! (echo 5 > /proc/sys/kernel/threads-max) 2>/dev/null");
    sandbox.out("echo root > made");
    assert_eq!(fs::metadata(kit.path("upper/made")).unwrap().uid(), user.uid);
    Ok(())
}

pub fn an_unreachable_parent() -> Result<(), String> {
    if !is_root() {
        return Err("needs root".into());
    }
    // As under /root: nobody but root may pass, and the sandbox's user is somebody else.
    let outer = tempfile::tempdir().unwrap();
    fs::set_permissions(outer.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let mut kit = Kit::in_dir(tempfile::tempdir_in(outer.path()).unwrap(), Path::new("/root/project"));
    fs::create_dir(kit.path("tool")).unwrap();
    fs::write(kit.path("tool/t"), "tool\n").unwrap();
    kit.spec.home.at = "/root".into();
    kit.spec.toolchains = vec![Mount { source: kit.path("tool"), at: "/root/.tool".into() }];
    assert_eq!(fs::metadata(outer.path()).unwrap().mode() & 0o777, 0o700);
    let mut sandbox = kit.launch();
    assert_eq!(sandbox.out("cat kept; cat /root/.tool/t; echo x > made; rm new; mv dir/deep d"), "kept\ntool\n");
    assert_eq!(fs::metadata(kit.path("upper/made")).unwrap().uid(), kit.spec.user.uid);
    sandbox.contained("files of root", "! cat /etc/shadow 2>/dev/null; ! ls /root/.ssh 2>/dev/null");
    Ok(())
}

pub fn overlays_of_older_kernels() -> Result<(), String> {
    use rustix::fs::{CWD, Mode, OFlags, openat};
    use sandbox_sys::mount::{Attributes, Overlay, make_all_private};
    use sandbox_sys::namespace::{Forked, Namespaces, exit_now, fork_into, switch_user, write_id_map};
    let kit = Kit::new();
    fs::create_dir(kit.path("at")).unwrap();
    let open = |name: &str| openat(CWD, kit.path(name), OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
    let (go, start) = rustix::pipe::pipe().unwrap();
    let user = &kit.spec.user;
    let ids = (user.uid, user.gid);
    // Asked before: in there, root's own number is not mapped.
    let root = is_root();
    match fork_into(Namespaces::USER.and(Namespaces::MOUNT), None).unwrap() {
        Forked::Child => {
            drop(start);
            let _ = rustix::io::read(&go, &mut [0u8; 1]);
            let mounted = make_all_private().and_then(|()| {
                // Opened here: a layer must be of this mount namespace.
                let lowers = [open("delta")?, open("base")?];
                let (upper, work) = (open("upper")?, open("work")?);
                if root {
                    switch_user(ids.0, ids.1)?;
                }
                let attributes = Attributes { no_suid: true, no_dev: true, ..Attributes::default() };
                Overlay { lowers: &lowers, writable: Some((&upper, &work)), attributes }.mount_by_options(open("at")?)
            });
            let at = kit.path("at");
            let good = mounted.is_ok()
                && fs::read(at.join("kept")).is_ok_and(|text| text == b"kept\n")
                && !at.join("gone").exists()
                && fs::write(at.join("made"), "").is_ok();
            exit_now(if good { 0 } else { 1 });
        }
        Forked::Parent { pid, pidfd } => {
            write_id_map(pid, ids, ids).unwrap();
            drop(start);
            let status = rustix::process::waitid(
                rustix::process::WaitId::PidFd(std::os::fd::AsFd::as_fd(&pidfd)),
                rustix::process::WaitIdOptions::EXITED,
            );
            assert_eq!(status.unwrap().unwrap().exit_status(), Some(0));
        }
    }
    assert!(kit.path("upper/made").exists());
    Ok(())
}
