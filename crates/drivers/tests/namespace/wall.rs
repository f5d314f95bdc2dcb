//! The wall, seen from inside: the probes of the threat model, each a script that exits 0 if it is contained.

use crate::kit::{Kit, groups_left, is_root};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub fn a_session_has_nothing() -> Result<(), String> {
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

pub fn the_first_process_has_one_capability() -> Result<(), String> {
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

pub fn the_kernel_is_out_of_reach() -> Result<(), String> {
    for nested in [false, true] {
        kernel_is_out_of_reach(nested);
    }
    Ok(())
}

fn kernel_is_out_of_reach(nested: bool) {
    let mut kit = Kit::new();
    kit.spec.nested = nested;
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
        // What `--nested` permits.
        if !nested || !matches!(name, "A04" | "limits") {
            sandbox.contained(name, script);
        }
    }
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

pub fn system_calls_are_refused() -> Result<(), String> {
    if !Path::new("/usr/bin/python3").exists() || cfg!(not(target_arch = "x86_64")) {
        return Err("needs /usr/bin/python3 on x86-64".into());
    }
    for nested in [false, true] {
        calls_are_refused(nested);
    }
    Ok(())
}

fn calls_are_refused(nested: bool) {
    let mut kit = Kit::new();
    kit.spec.nested = nested;
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
        (
            "E05",
            "end(no(430,b'tmpfs',0),no(428,-100,b'/',1),no(429,-100,b'/',-100,b'/tmp',0),no(442,-100,b'/',0,bytes(32),32))",
        ),
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
        match name {
            // What `--nested` permits.
            "A05" if nested => continue,
            _ => sandbox.contained(name, &line),
        }
        // Root of a namespace made inside is as powerless, but for what a namespace of its own gives.
        if nested && !matches!(name, "A07" | "B03" | "E05" | "loopback") {
            sandbox.contained(name, &format!("unshare -Urmnpf --mount-proc sh -c '{}'", line.replace('\'', "'\\''")));
        }
    }
    // B09: what is set as an attribute of the overlay inside is stored under another name, if at all.
    sandbox.run("/usr/bin/python3 -c 'import os; os.setxattr(\".\", \"user.overlay.redirect\", b\"/etc\")'");
    let own = rustix::fs::getxattr(kit.path("upper"), "user.overlay.redirect", &mut [0u8; 16][..]);
    assert_eq!(own.err(), Some(rustix::io::Errno::NODATA));
}

/// What an inner sandbox does at its start.
const INNER: &[(&str, &str)] = &[
    ("user namespace", "unshare -Ur true"),
    ("namespaces and a /proc", "unshare -Urmnipuf --mount-proc sh -c 'test $$ = 1 && grep -qx sh /proc/1/comm'"),
    (
        "bubblewrap",
        "bwrap --unshare-all --ro-bind / / --dev /dev --proc /proc --tmpfs /tmp sh -c 'test -w /tmp && ! touch /home/x'",
    ),
    (
        "bubblewrap with the tree",
        "bwrap --unshare-user --unshare-pid --ro-bind / / --bind \"$PWD\" \"$PWD\" --dev /dev touch made",
    ),
];

pub fn an_inner_sandbox_starts_when_nested() -> Result<(), String> {
    if !Path::new("/usr/bin/bwrap").exists() {
        return Err("needs /usr/bin/bwrap (Debian's package `bubblewrap`)".into());
    }
    let mut kit = Kit::new();
    let mut strict = kit.launch();
    for (name, script) in INNER {
        let outcome = strict.run(script);
        assert_ne!(outcome.status, 0, "{name}: {outcome:?}");
        let told = ["Operation not permitted", "No permissions to create new namespace"];
        assert!(told.iter().any(|told| outcome.stderr.contains(told)), "{name}: {outcome:?}");
    }
    assert!(!strict.machine.notes().iter().any(|note| note.starts_with("nested")));
    drop(strict);
    kit.spec.nested = true;
    let mut nested = kit.launch();
    for (name, script) in INNER {
        nested.contained(name, script);
    }
    assert!(nested.machine.notes().iter().any(|note| note.starts_with("nested: ")));
    Ok(())
}

/// Each as root of namespaces made inside, with a `/proc` that was mounted there.
const FROM_A_NAMESPACE: &[(&str, &str)] = &[
    ("system directories", "mount -o remount,bind,rw /usr || umount -l /usr; test $? != 0 && ! touch /usr/x"),
    ("the host's files", "! grep -q . /etc/shadow && ! ls /root/.ssh && ! ls /run/proc"),
    ("what covers", "! umount -l /run && ! umount -l /dev/null && ! umount -l / && ! mount --move /run /mnt"),
    ("core_pattern", "! echo x >/proc/sys/kernel/core_pattern && ! echo b >/proc/sysrq-trigger"),
    ("kernel memory", "! head -c1 /proc/kcore | grep -q . && ! awk '$1!~/^0+$/{print;exit}' /proc/kallsyms | grep ."),
    ("kernel log", "! dmesg | grep -q . && ! timeout 1 head -c1 /proc/kmsg | grep -q ."),
    (
        "sysctls",
        // Its own network, ipc and limits; nothing of the machine's.
        "find /proc/sys -type f -writable | while read f; do (: >>$f) && echo $f; done | grep -vE '^/proc/sys/(net|user)/|^/proc/sys/kernel/(msg|sem|shm|auto_msgmni|ns_last_pid|pid_max)|^/proc/sys/fs/mqueue/'; test $? = 1",
    ),
    (
        "devices",
        "! mknod /tmp/d c 1 1 && ! mount -t devtmpfs d /mnt && ! mount -t sysfs s /mnt && ! mount -t cgroup2 c /mnt",
    ),
    ("disks", "for t in ext4 xfs btrfs vfat iso9660; do mount -t $t /tmp/x /mnt && exit 1; done; true"),
    ("other users", "! chown 1:1 /tmp && test $(wc -l </proc/self/uid_map) = 1"),
];

pub fn a_namespace_inside_gains_nothing_outside() -> Result<(), String> {
    let mut kit = Kit::new();
    kit.spec.nested = true;
    let mut sandbox = kit.launch();
    for (name, script) in FROM_A_NAMESPACE {
        // /mnt is not there; /tmp has a directory to mount on.
        let script = script.replace("/mnt", "/tmp/mnt");
        let script = format!("exec 2>/dev/null; {script}").replace('\'', "'\\''");
        sandbox.contained(name, &format!("mkdir -p /tmp/mnt; unshare -Urmnipuf --mount-proc sh -c '{script}'"));
    }
    // Without a namespace of its own a session is what it always is.
    for (name, script) in [
        ("capabilities", "! grep -E '^Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | grep -v 0000000000000000"),
        (
            "no_new_privs",
            "grep -qE '^NoNewPrivs:\\s+1' /proc/self/status && grep -qE '^Seccomp:\\s+2' /proc/self/status",
        ),
        (
            "the agent",
            "! unshare -Urm sh -c 'nsenter -t 1 -m true || ls /proc/1/root/ || cat /proc/1/environ' 2>/dev/null",
        ),
        ("/run/proc", "! ls /run/proc 2>/dev/null"),
        ("hostname", "! hostname other 2>/dev/null"),
        ("bounded", "grep -qx 1024 /proc/sys/user/max_user_namespaces"),
    ] {
        sandbox.contained(name, script);
    }
    Ok(())
}

pub fn nothing_of_the_hosts_is_seen() -> Result<(), String> {
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

pub fn processes_are_limited() -> Result<(), String> {
    let mut kit = Kit::new();
    kit.spec.limits.pids = Some(40);
    let before = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap();
    let mut sandbox = kit.launch();
    let out = sandbox.run("i=0; while [ $i -lt 100 ]; do sleep 5 & i=$((i+1)); done; echo made; wait");
    assert!(out.stderr.contains("ork") || out.status != 0, "{out:?}");
    // R01: a bomb is capped, and its end does not need its cooperation.
    sandbox.run("timeout 1 sh -c 'bomb() { bomb | bomb & }; bomb; sleep 9' 2>/dev/null");
    let started = Instant::now();
    sandbox.machine.kill().unwrap();
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    let mut second = Kit::new();
    second.spec.limits.pids = Some(400);
    let mut other = second.launch();
    assert_eq!(other.out("i=0; while [ $i -lt 60 ]; do sleep 1 & i=$((i+1)); done; echo made"), "made\n");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/pid_max").unwrap(), before, "the host's own limit was changed");
    Ok(())
}

pub fn memory_is_limited() -> Result<(), String> {
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
