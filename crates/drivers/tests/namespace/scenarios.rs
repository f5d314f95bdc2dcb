//! The scenarios, by what they are about. `Err` is a reason why one cannot be tried here.

use crate::kit::{Kit, Sandbox, groups_left, is_root};
use sandbox_core::driver::{Driver, DriverError, Verdict};
use sandbox_core::launch::{GeneratedFile, Mode, Mount, Network, Tree, View};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

type Scenario = fn() -> Result<(), String>;

pub const ALL: &[(&str, Scenario)] = &[
    ("the_tree_is_copy_on_write", the_tree_is_copy_on_write),
    ("a_session_has_nothing", a_session_has_nothing),
    ("the_first_process_has_one_capability", the_first_process_has_one_capability),
    ("mounts_are_exactly_what_was_planned", mounts_are_exactly_what_was_planned),
    ("the_kernel_is_out_of_reach", the_kernel_is_out_of_reach),
    ("system_calls_are_refused", system_calls_are_refused),
    ("tools_work", tools_work),
    ("nothing_of_the_hosts_is_seen", nothing_of_the_hosts_is_seen),
    ("processes_are_limited", processes_are_limited),
    ("twenty_layers", twenty_layers),
    ("a_helper_reads", a_helper_reads),
    ("the_home_is_kept_and_not_trusted", the_home_is_kept_and_not_trusted),
    ("trees_anywhere", trees_anywhere),
    ("the_hosts_network", the_hosts_network),
    ("root_inside", root_inside),
    ("killed_at_once", killed_at_once),
    ("dies_with_its_supervisor", dies_with_its_supervisor),
    ("errors_name_their_object", errors_name_their_object),
    ("an_agent_that_ends_early", an_agent_that_ends_early),
    ("frozen_and_thawed", frozen_and_thawed),
    ("an_unreachable_parent", an_unreachable_parent),
    ("the_machine_is_checked", the_machine_is_checked),
    ("no_user_namespaces", no_user_namespaces),
    ("overlays_of_older_kernels", overlays_of_older_kernels),
    ("memory_is_limited", memory_is_limited),
];

fn the_tree_is_copy_on_write() -> Result<(), String> {
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

fn a_session_has_nothing() -> Result<(), String> {
    let kit = Kit::new();
    let mut sandbox = kit.launch();
    let status = sandbox.out("cat /proc/self/status");
    for set in ["Inh", "Prm", "Eff", "Bnd", "Amb"] {
        assert!(status.contains(&format!("Cap{set}:\t0000000000000000")), "{set} {status}");
    }
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    assert!(status.contains("Seccomp:\t2"), "{status}");
    // An ordinary user cannot give groups away; root can, and does.
    if is_root() {
        assert!(status.contains("Groups:\t\n") || status.contains("Groups:\t \n"), "{status}");
    }
    let user = &kit.spec.user;
    // A08
    assert_eq!(
        sandbox.out("awk '{print $1, $2, $3}' /proc/self/uid_map /proc/self/gid_map; cat /proc/self/setgroups; id -un"),
        format!("{0} {0} 1\n{1} {1} 1\ndeny\ntester\n", user.uid, user.gid)
    );
    sandbox.contained("A12", "test \"$(ulimit -Hc)\" = 0");
    assert_eq!(sandbox.out("cat /proc/self/oom_score_adj"), "500\n");
    sandbox.contained("C01", "! (echo -1000 >/proc/self/oom_score_adj) 2>/dev/null");
    assert_eq!(sandbox.out("hostname 2>/dev/null || cat /proc/sys/kernel/hostname"), "inside\n");
    Ok(())
}

fn the_first_process_has_one_capability() -> Result<(), String> {
    let kit = Kit::new();
    let mut sandbox = kit.launch();
    let status = sandbox.out("cat /proc/1/status");
    let ptrace = "0000000000080000";
    for (set, value) in
        [("Inh", ptrace), ("Prm", ptrace), ("Eff", ptrace), ("Amb", ptrace), ("Bnd", "0000000000000000")]
    {
        assert!(status.contains(&format!("Cap{set}:\t{value}")), "{set} {status}");
    }
    assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");
    assert!(status.contains("Threads:\t1"), "{status}");
    // Rule 7: not even a name of the host's environment, and nothing to attach to.
    sandbox.contained("environ", "! cat /proc/1/environ 2>/dev/null | grep -q .");
    sandbox.contained("mem", "! head -c1 /proc/1/mem 2>/dev/null; ! ls /proc/1/fd 2>/dev/null | grep -q .");
    // Seen from outside: the descriptors that were promised and no other.
    let pid = sandbox.machine.process().pid;
    if is_root() {
        let mut fds: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let target = fs::read_link(entry.path()).unwrap_or_default();
                format!("{} {}", entry.file_name().to_string_lossy(), target.display())
            })
            .collect();
        fds.sort();
        for (fd, target) in fds.iter().zip(["0 /dev/null", "1 /dev/null", "2 /dev/null", "3 socket:", "4 /memfd:agent"])
        {
            assert!(fd.starts_with(target), "{fds:?}");
        }
        assert_eq!(fs::read(format!("/proc/{pid}/environ")).unwrap(), b"");
        let death = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(death.contains(&format!("Uid:\t{0}\t{0}\t{0}\t{0}", kit.spec.user.uid)), "{death}");
    }
    assert_eq!(sandbox_sys::process::start_time(pid).unwrap(), sandbox.machine.process().start_time);
    Ok(())
}

fn mounts_are_exactly_what_was_planned() -> Result<(), String> {
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

fn the_kernel_is_out_of_reach() -> Result<(), String> {
    let kit = Kit::new();
    let mut sandbox = kit.launch();
    for (name, script) in [
        ("A04", "! unshare -Ur true"),
        (
            "C01",
            "! (echo x >/proc/sys/kernel/core_pattern) 2>/dev/null && ! (:>/proc/sysrq-trigger && echo b > /proc/sysrq-trigger && test -s /proc/sysrq-trigger) 2>/dev/null && ! dmesg 2>/dev/null | grep -q .",
        ),
        (
            "C02",
            "! find /proc/sys -type f -writable 2>/dev/null | while read f; do (:>>$f) 2>/dev/null && echo $f; done | grep .",
        ),
        (
            "C03",
            "! head -c1 /proc/kcore 2>/dev/null | grep -q . && ! awk '$1!~/^0+$/{print;exit}' /proc/kallsyms 2>/dev/null | grep . && ! cat /proc/keys /proc/timer_list /proc/interrupts 2>/dev/null | grep .",
        ),
        ("C03b", "for d in acpi asound bus driver fs irq scsi; do ls -A /proc/$d 2>/dev/null; done | { ! grep .; }"),
        (
            "C04",
            "! find /sys -maxdepth 4 -type f -writable 2>/dev/null | grep -m1 . && ! find / -name release_agent 2>/dev/null | grep .",
        ),
        (
            "C06",
            "for t in proc sysfs tmpfs overlay cgroup cgroup2 bpf debugfs tracefs mqueue binfmt_misc fuse; do mount -t $t x /tmp 2>/dev/null && exit 1; done; true",
        ),
        (
            "B03",
            "! mount -o remount,rw,bind /usr 2>/dev/null && ! umount /proc/sys 2>/dev/null && ! umount -l /proc/kcore 2>/dev/null",
        ),
        (
            "limits",
            "grep -qx 0 /proc/sys/user/max_user_namespaces && grep -qx 0 /proc/sys/user/max_mnt_namespaces && grep -qx 1024 /proc/sys/user/max_inotify_instances",
        ),
        (
            "landlock",
            "! mknod c 0 0 2>/dev/null; echo x > /proc/self/comm && echo y > /dev/null && mkdir a b && echo z > a/f && mv a/f b/g && ln b/g a/h && ln -s x a/s && mkfifo a/p && rm -r a b",
        ),
        ("meminfo", "grep -q MemTotal /proc/meminfo && grep -q . /proc/cpuinfo /proc/stat"),
    ] {
        sandbox.contained(name, script);
    }
    Ok(())
}

/// The harness of the probes: raw system calls by number, of x86-64.
const PROBES: &str = r#"
import ctypes,os,sys,errno,socket,fcntl
L=ctypes.CDLL(None,use_errno=True)
def sc(n,*a):
    ctypes.set_errno(0); r=L.syscall(ctypes.c_long(n),*[ctypes.c_long(x) if isinstance(x,int) else x for x in a]); return r,ctypes.get_errno()
def no(n,*a):
    r,e=sc(n,*a); e=errno.errorcode.get(e,e); print(n,r,e); return r==-1 and e in("EPERM","ENOSYS")
def nosock(f,t=1,p=0):
    try: socket.socket(f,t,p).close(); print("OPEN",f,t,p); return False
    except OSError: return True
def tio(c):
    import pty; m,s=pty.openpty(); p=os.fork()
    if p==0: os.setsid(); fcntl.ioctl(s,0x540E,0); os._exit(0 if sc(16,s,c,b"x")[0]==-1 else 1)
    return os.waitpid(p,0)[1]==0
def end(*b): sys.exit(0 if all(b) else 1)
"#;

fn system_calls_are_refused() -> Result<(), String> {
    if !Path::new("/usr/bin/python3").exists() || cfg!(not(target_arch = "x86_64")) {
        return Err("needs /usr/bin/python3 on x86-64".into());
    }
    let kit = Kit::new();
    fs::write(kit.path("tmp/h.py"), PROBES).unwrap();
    let mut sandbox = kit.launch();
    for (name, script) in [
        ("A05", "r,e=sc(56,0x10000000|17,0,0,0,0); (r==0) and os._exit(0); end(r==-1)"),
        (
            "A06",
            "r,e=sc(435,ctypes.byref((ctypes.c_ulong*8)(0x10000000,0,0,0,17,0,0,0)),64); (r==0) and os._exit(0); end(r==-1)",
        ),
        ("A07", "end(no(308,os.open('/proc/self/ns/net',0),0))"),
        ("B03", "end(no(165,0,b'/usr',0,32|4096,0),no(442,-100,b'/usr',0,bytes(32),32),no(166,b'/proc',2))"),
        ("B04", "end(no(304,-100,0,0),no(303,-100,0,0,0,0))"),
        ("D01", "end(tio(0x5412),tio(0x541C),tio(0x100005412))"),
        ("E01", "end(no(425,8,ctypes.create_string_buffer(256)))"),
        (
            "E02",
            "end(no(321,0,ctypes.create_string_buffer(256),72),no(298,ctypes.create_string_buffer(b'\\1\\0\\0\\0\\x70'+bytes(115)),0,-1,-1,0),no(323,1))",
        ),
        (
            "E03",
            "end(no(248,b'user',b'g',b'x',1,-3),no(249,b'user',b'g',0,0),no(250,0,-3,0),no(246,0,0,0,0),no(175,0,0,0),no(313,0,0,0),no(169,1,2,3,0),no(167,b'/x',0),no(179,0,0,0,0))",
        ),
        ("E05", "end(no(430,b'tmpfs',0),no(428,-100,b'/',1),no(429,-100,b'/',-100,b'/tmp',0),no(442,-100,b'/',0,0,0))"),
        ("E06", "end(no(310,1,0,0,0,0,0),no(438,0,0,0))"),
        ("E07", "end(nosock(38,5),*[nosock(f,t) for f in (15,17,29,30,31,33,40,42,43,44) for t in (1,2,3,5)])"),
        ("E08", "[socket.if_nameindex()]; end(*[nosock(16,3,p) for p in (4,6,9,12,15,16)])"),
        ("E09", "end(nosock(2,3,1),nosock(10,3,58),nosock(2,1,262))"),
        ("E10", "end(sc(600)==(-1,38),sc(469)==(-1,38),sc(0x40000000+39)==(-1,38))"),
        ("F02", "s=socket.socket(1);s.settimeout(2);end(s.connect_ex('\\0gs-probe')!=0)"),
        ("F04", "s=socket.socket();s.settimeout(2);end(s.connect_ex(('127.0.0.1',39999))!=0)"),
        ("G01", "s=socket.socket();s.settimeout(2);end(s.connect_ex(('1.1.1.1',443))!=0)"),
        (
            "loopback",
            "a=socket.socket();a.bind(('127.0.0.1',0));a.listen();b=socket.create_connection(a.getsockname(),2);end(True)",
        ),
        ("pty", "import pty; m,s=pty.openpty(); print(os.ttyname(s)); end(os.ttyname(s).startswith('/dev/pts/'))"),
    ] {
        let line = format!("cd /tmp && timeout 20 /usr/bin/python3 -c \"from h import *\n{script}\"");
        sandbox.contained(name, &line);
    }
    Ok(())
}

fn tools_work() -> Result<(), String> {
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

fn nothing_of_the_hosts_is_seen() -> Result<(), String> {
    let marker = tempfile::Builder::new().prefix("gs-marker").tempfile().unwrap();
    let abstract_name = format!("gs-probe-{}", std::process::id());
    let address =
        <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(&abstract_name)
            .unwrap();
    let _listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
    let kit = Kit::new();
    let mut sandbox = kit.launch();
    sandbox.contained("B01", &format!("! ls -d {} /root/.ssh /home/dev 2>/dev/null | grep .", marker.path().display()));
    sandbox.contained(
        "etc",
        "! ls -d /etc/shadow /etc/gitconfig /etc/ssh /etc/sudoers /etc/hostname.host 2>/dev/null | grep .",
    );
    sandbox.contained(
        "A11",
        "test $(ls -d /proc/[0-9]* | wc -l) -lt 12 && ! grep -lz 'rust[c]\\|carg[o]' /proc/[0-9]*/cmdline 2>/dev/null | grep .",
    );
    sandbox.contained("F01", "! ls -d /var/run/docker.sock /run/docker.sock /run/dbus /run/systemd /run/user /tmp/.X11-unix 2>/dev/null | grep .");
    sandbox.contained("F03", "! find / -xdev -type s 2>/dev/null | grep .");
    sandbox.contained("G01", "test $(grep -c : /proc/net/dev) = 1");
    sandbox.contained("abstract", &format!("! grep -q {abstract_name} /proc/net/unix"));
    // Every session of the sandbox is ended, no process of the host.
    let outcome = sandbox.run("kill -9 -1");
    assert_ne!(outcome.status, 0);
    assert_eq!(sandbox.out("echo alive"), "alive\n");
    Ok(())
}

fn processes_are_limited() -> Result<(), String> {
    let mut kit = Kit::new();
    kit.spec.limits.pids = Some(40);
    let before = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap();
    let mut sandbox = kit.launch();
    let out = sandbox.run("i=0; while [ $i -lt 100 ]; do sleep 5 & i=$((i+1)); done; echo made; wait");
    assert!(out.stderr.contains("ork") || out.status != 0, "{out:?}");
    let mut second = Kit::new();
    second.spec.limits.pids = Some(400);
    let mut other = second.launch();
    assert_eq!(other.out("i=0; while [ $i -lt 60 ]; do sleep 1 & i=$((i+1)); done; echo made"), "made\n");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/pid_max").unwrap(), before, "the host's own limit was changed");
    Ok(())
}

fn twenty_layers() -> Result<(), String> {
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

fn a_helper_reads() -> Result<(), String> {
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

fn the_home_is_kept_and_not_trusted() -> Result<(), String> {
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

fn trees_anywhere() -> Result<(), String> {
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
    });
    kit.spec.trees.push(Tree {
        at: "/srv/ro".into(),
        lowers: vec![second, base],
        upper: "".into(),
        work: "".into(),
        read_only: true,
    });
    let mut sandbox = kit.launch();
    sandbox.contained(
        "three trees",
        "cat /srv/second/s && echo x > /srv/second/y && cat /srv/ro/s /srv/ro/kept && ! touch /srv/ro/x 2>/dev/null",
    );
    Ok(())
}

fn the_hosts_network() -> Result<(), String> {
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

fn root_inside() -> Result<(), String> {
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

fn killed_at_once() -> Result<(), String> {
    let kit = Kit::new();
    let mut sandbox = kit.launch();
    sandbox.out(
        "trap '' TERM HUP INT; setsid nohup sh -c 'trap \"\" TERM HUP INT; sleep 1000' >/dev/null 2>&1 & sleep 0.1",
    );
    let pid = sandbox.machine.process().pid;
    let pidfd = sandbox.machine.pidfd().try_clone_to_owned().unwrap();
    let started = Instant::now();
    assert!(!sandbox_sys::process::wait_gone(&pidfd, Some(Duration::ZERO)).unwrap());
    sandbox.machine.kill().unwrap();
    assert!(started.elapsed() < Duration::from_secs(3));
    assert!(sandbox_sys::process::wait_gone(&pidfd, Some(Duration::ZERO)).unwrap());
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "a zombie is left");
    sandbox.machine.kill().unwrap();
    drop(sandbox);
    assert_eq!(groups_left(), Vec::<PathBuf>::new());
    // A plain drop does the same.
    let sandbox = kit.launch();
    let pid = sandbox.machine.process().pid;
    drop(sandbox);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    Ok(())
}

/// Launches the sandbox of the spec in the given file, prints its pid, and waits.
pub fn supervisor(spec: String) -> ExitCode {
    let spec = serde_json::from_str(&fs::read_to_string(spec).unwrap()).unwrap();
    let machine = sandbox_drivers::by_name("namespace").unwrap().launch(&spec).unwrap();
    println!("{}", machine.process().pid);
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

fn dies_with_its_supervisor() -> Result<(), String> {
    let kit = Kit::new();
    let file = kit.path("spec.json");
    fs::write(&file, serde_json::to_string(&kit.spec).unwrap()).unwrap();
    let mut supervisor = Command::new(std::env::current_exe().unwrap())
        .arg0("supervisor")
        .arg(&file)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(supervisor.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let pid: u32 = line.trim().parse().unwrap();
    let boot = sandbox_sys::process::boot_id().unwrap();
    let start = sandbox_sys::process::start_time(pid).unwrap();
    let pidfd = sandbox_sys::process::open_identified(pid, start, &boot).unwrap().expect("it runs");
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    assert!(
        sandbox_sys::process::wait_gone(&pidfd, Some(Duration::from_secs(2))).unwrap(),
        "it outlives its supervisor"
    );
    // What the killed supervisor could not remove, the next sandbox that ends removes.
    drop(kit.launch());
    let left = format!("git-sandbox-{}-", supervisor.id());
    let found =
        Command::new("find").args(["/sys/fs/cgroup", "-maxdepth", "4", "-name", &format!("{left}*")]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    Ok(())
}

fn errors_name_their_object() -> Result<(), String> {
    let mut kit = Kit::new();
    kit.spec.trees[0].lowers[1] = kit.path("nowhere");
    assert_eq!(kit.refused().0.to_string(), format!("'{}' is gone", kit.path("nowhere").display()));

    let mut kit = Kit::new();
    kit.spec.program = kit.path("no-program");
    assert_eq!(kit.refused().0.to_string(), format!("'{}' is gone", kit.path("no-program").display()));

    let mut kit = Kit::new();
    fs::write(kit.path("not-a-program"), "#!/nowhere\n").unwrap();
    kit.spec.program = kit.path("not-a-program");
    let (error, cause) = kit.refused();
    assert_eq!(error.to_string(), format!("cannot execute '{}' inside", kit.path("not-a-program").display()));
    assert!(cause.contains("ermission denied"), "{cause}");

    let mut kit = Kit::new();
    let elsewhere = tempfile::tempdir_in("/dev/shm").map_err(|_| "no /dev/shm")?;
    kit.spec.trees[0].work = elsewhere.path().to_owned();
    let (error, cause) = kit.refused();
    let text = format!(
        "cannot mount the overlay of '/home/tester/project' (upper directory '{}', work directory '{}')",
        kit.path("upper").display(),
        elsewhere.path().display()
    );
    assert_eq!((error.to_string(), cause), (text, "they are on two file systems".to_owned()));

    let mut kit = Kit::new();
    kit.spec.trees[0].work = kit.path("upper");
    let (error, cause) = kit.refused();
    assert!(matches!(error, DriverError::Overlay { .. }), "{error:?}");
    assert_eq!(cause, "one of them is inside the other");

    let mut kit = Kit::new();
    kit.spec.user.uid = 0;
    assert!(matches!(kit.refused().0, DriverError::Unsupported { .. }));
    if !is_root() {
        kit.spec.user.uid = rustix::process::geteuid().as_raw() + 1;
        assert!(kit.refused().0.to_string().contains("run as uid"));
    }

    // A sandbox that put a file where the tree's parent was cannot have it mounted elsewhere.
    let kit = Kit::at(Path::new("/home/tester/a/project"));
    symlink("/etc", kit.path("home/a")).unwrap();
    let (error, _) = kit.refused();
    assert_eq!(error.to_string(), "cannot make the mount point '/home/tester/a/project'");
    Ok(())
}

fn an_agent_that_ends_early() -> Result<(), String> {
    let mut kit = Kit::new();
    kit.spec.env.push(("AGENT_EXITS".into(), "3".into()));
    let (error, cause) = kit.refused();
    assert!(matches!(error, DriverError::NotReady { .. }), "{error:?}");
    assert_eq!(cause, "it exited with status 3");
    Ok(())
}

fn frozen_and_thawed() -> Result<(), String> {
    let kit = Kit::new();
    let mut sandbox = kit.launch();
    match sandbox.machine.freeze() {
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {
            return Err("no cgroup that this user may make".into());
        }
        other => other.unwrap(),
    }
    let pid = sandbox.machine.process().pid;
    let status = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
    sandbox.machine.thaw().unwrap();
    assert_eq!(sandbox.out("echo thawed"), "thawed\n", "{status}");
    sandbox.machine.freeze().unwrap();
    sandbox.machine.kill().unwrap();
    drop(sandbox);
    assert_eq!(groups_left(), Vec::<PathBuf>::new());
    Ok(())
}

fn an_unreachable_parent() -> Result<(), String> {
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

fn the_machine_is_checked() -> Result<(), String> {
    let checks = sandbox_drivers::namespace::Namespace.check();
    for check in &checks {
        assert_ne!(check.verdict, Verdict::Missing, "{check:?}");
        assert!(!check.found.is_empty());
    }
    for name in [
        "kernel",
        "user-namespaces",
        "proc",
        "overlay",
        "network",
        "seccomp",
        "landlock",
        "directory-renames",
        "limits",
    ] {
        assert_eq!(checks.iter().filter(|check| check.name == name).count(), 1, "{name}");
    }
    Ok(())
}

fn no_user_namespaces() -> Result<(), String> {
    let mut kit = Kit::new();
    const NOBODY: u32 = 65534;
    let mut unshare = Command::new("unshare");
    if is_root() {
        (kit.spec.user.uid, kit.spec.user.gid) = (NOBODY, NOBODY);
        unshare.uid(NOBODY).gid(NOBODY);
    }
    let file = kit.path("spec.json");
    fs::write(&file, serde_json::to_string(&kit.spec).unwrap()).unwrap();
    // In a user namespace whose own limit is 0; the number of the user is the same there.
    let output = unshare
        .args(["-U", "--map-current-user", "--keep-caps", "sh", "-c"])
        .arg("echo 0 > /proc/sys/user/max_user_namespaces && exec \"$0\" --launch \"$1\"")
        .arg(std::env::current_exe().unwrap())
        .arg(&file)
        .output()
        .map_err(|error| format!("needs unshare(1): {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text, "cannot create a user namespace: No space left on device (os error 28)\n", "{output:?}");
    Ok(())
}

/// Launches the sandbox of the spec in the given file and prints the error.
pub fn launch(spec: &str) {
    let spec = serde_json::from_str(&fs::read_to_string(spec).unwrap()).unwrap();
    match sandbox_drivers::by_name("namespace").unwrap().launch(&spec) {
        Ok(_) => println!("launched"),
        Err(error) => println!("{error}: {}", std::error::Error::source(&error).unwrap()),
    }
}

fn overlays_of_older_kernels() -> Result<(), String> {
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

fn memory_is_limited() -> Result<(), String> {
    let mut kit = Kit::new();
    kit.spec.limits.memory = Some(64 << 20);
    let mut sandbox = kit.launch();
    if let Some(note) = sandbox.machine.notes().iter().find(|note| note.starts_with("memory")) {
        return Err(note.clone());
    }
    let outcome = sandbox.run("head -c 300000000 /dev/zero | tail | wc -c");
    assert_ne!(outcome.stdout.trim(), "300000000", "{outcome:?}");
    assert_eq!(sandbox.out("echo alive"), "alive\n");
    drop(sandbox);
    assert_eq!(groups_left(), Vec::<PathBuf>::new());
    Ok(())
}

/// Prints how long a launch takes, from the call to the agent's first word, and the end.
pub fn bench() {
    let kit = Kit::new();
    let (mut starts, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..100 {
        let begin = Instant::now();
        let sandbox: Sandbox = kit.launch();
        starts.push(begin.elapsed());
        let begin = Instant::now();
        drop(sandbox);
        ends.push(begin.elapsed());
    }
    for (name, mut times) in [("launch", starts), ("end", ends)] {
        times.sort();
        println!("{name}: median {:?}, fastest {:?}, 95 % {:?}", times[50], times[0], times[95]);
    }
}
