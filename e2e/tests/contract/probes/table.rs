//! The catalogue: what is tried, and what shows that it can succeed where nothing refuses it.
//!
//! Scripts find in their environment what the host has laid out: `MARKS` (files), `GIT_MARK` (a file in the host's
//! git directory), `HIDDEN` (a branch that was not granted) and `HIDDEN_BLOB` (what is in it), `STATE` (the state
//! directory), `SOCK` (a socket), `ABSTRACT` (one by an abstract name), `PORT` (of the loopback device), `SHM` (a
//! System V segment) and `PROC` (a pattern that a process of the host has in its arguments). Descriptors 8 and 9
//! of the caller are open. [`PRELUDE`] has the functions.

/// One line.
pub struct Probe {
    /// Its name in the catalogue: a letter for the boundary and a number.
    pub id: &'static str,
    /// What it guards against.
    pub guards: &'static str,
    /// How.
    pub how: How,
}

/// How a probe is made.
pub enum How {
    /// A shell script inside, which exits 0 when it is contained.
    Shell(&'static str, Control),
    /// Tests of their own, by `file::name`, with a control in them; in words, what that is.
    Tests(&'static [&'static str], &'static str),
}

/// What shows that a probe can fail.
pub enum Control {
    /// The same script does not exit 0 on the host.
    Same,
    /// Another script exits 0 on the host: there it can be done. 77: this machine cannot show it.
    Host(&'static str),
    /// Another script exits 0 in namespaces of its own without any wall.
    Bare(&'static str),
    /// Another script exits 0 on the host, for root only: an ordinary user is refused there too.
    Root(&'static str),
    /// The host refuses it as well, and why it is looked at all the same.
    Refused(&'static str),
}

use Control::{Bare, Host, Refused, Root, Same};
use How::{Shell, Tests};

/// `refused NUMBER ARGUMENT…`: the call fails with EPERM or ENOSYS. `reaches …`: the kernel looks at its arguments.
/// An argument is a number, `=text`, `@N` for N zero bytes, or `pid`.
pub const PRELUDE: &str = r#"
call() { perl -e '
    my $want = shift; my @a = map { /^-?\d+$/ ? $_ + 0 : /^0x/ ? hex : /^@(\d+)$/ ? "\0" x $1 : $_ eq "pid" ? $$ : substr $_, 1 } @ARGV;
    my $number = shift @a; my $r = syscall($number, @a); my $no = ($r == -1 && ($!{EPERM} || $!{ENOSYS})) ? 1 : 0;
    if (!$no && $want) { print "@ARGV: $r $!\n" } exit($no == $want ? 0 : 1)' -- "$@"; }
refused() { call 1 "$@"; }
reaches() { call 0 "$@"; }
opens() { perl -e 'socket(S, $ARGV[0], $ARGV[1], $ARGV[2]) or do { $! + 0 == 97 || $! + 0 == 93 ? exit 1 : exit 2 }; exit 0' -- "$@"; }
"#;

const fn probe(id: &'static str, guards: &'static str, how: How) -> Probe {
    Probe { id, guards, how }
}

/// All of it, in the catalogue's order. An id may have several lines.
pub const ALL: &[Probe] = &[
    // A: the process.
    probe(
        "A01",
        "gaining rights by an exec; the first process without a filter",
        Shell(
            r#"for p in self 1; do
                grep -qE '^NoNewPrivs:\s+1' /proc/$p/status && grep -qE '^Seccomp:\s+2' /proc/$p/status || exit 1; done"#,
            Same,
        ),
    ),
    probe(
        "A02",
        "capabilities",
        Shell("! grep -E '^Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | grep -v 0000000000000000", Same),
    ),
    // NOROOT, NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE, all locked, and KEEP_CAPS locked off.
    probe("A02", "uid 0 gaining capabilities", Shell("perl -e 'exit(syscall(157, 27) == 0xef ? 0 : 1)'", Same)),
    probe("A04", "nested user namespaces", Shell("! unshare -Ur true", Same)),
    probe(
        "A05",
        "a namespace by a raw clone",
        Shell("perl -e '$r = syscall(56, 0x10000011, 0, 0, 0, 0); exit($r == -1 ? 0 : 1)'", Same),
    ),
    probe(
        "A06",
        "clone3 hides its flags from a filter",
        Shell(
            r#"perl -e '$a = pack "Q8", 0x10000000, 0, 0, 0, 17, 0, 0, 0; $r = syscall(435, $a, 64); exit($r == -1 ? 0 : 1)'"#,
            Same,
        ),
    ),
    probe("A07", "setns", Shell("refused 308 -1 0", Host("reaches 308 -1 0"))),
    probe(
        "A08",
        "further ids",
        Shell(
            r#"test $(wc -l </proc/self/uid_map) = 1 && test $(wc -l </proc/self/gid_map) = 1 &&
               grep -qx deny /proc/self/setgroups && read in out count </proc/self/uid_map &&
               test $count = 1 && test $out != 0"#,
            Same,
        ),
    ),
    probe(
        "A09",
        "descriptors of the caller (CVE-2024-21626)",
        Shell(
            r#"for fd in /proc/self/fd/*; do n=${fd##*/}; test $n -le 2 && continue
                case $(readlink $fd) in /proc/*|"") ;; *) echo "$fd $(readlink $fd)"; exit 1 ;; esac; done"#,
            Same,
        ),
    ),
    probe(
        "A10",
        "variables of the caller",
        Shell(
            r#"! env | cut -d= -f1 | grep -vxE 'PATH|HOME|USER|LOGNAME|SHELL|TERM|COLORTERM|LANG|LC_.*|TZ|TMPDIR|PWD|OLDPWD|SHLVL|_|(HTTPS?|ALL|NO|https?|all|no)_(PROXY|proxy)|.*CA.*|SSL_CERT_FILE|GIT_CONFIG_.*|GIT_TERMINAL_PROMPT|NO_COLOR|CI|GIT_SANDBOX.*|EDITOR|ZDOTDIR|MARKS|GIT_MARK|HIDDEN|HIDDEN_BLOB|STATE|SOCK|ABSTRACT|PORT|SHM|PROC'"#,
            Same,
        ),
    ),
    probe(
        "A11",
        "processes of the host",
        Shell(r#"! grep -lz "$PROC" /proc/[0-9]*/cmdline 2>/dev/null | grep ."#, Same),
    ),
    probe(
        "A11",
        "signals to processes of the host",
        Tests(&["wall::processes_end_with_their_sandbox"], "a process of the host is there before and after"),
    ),
    probe(
        "A12",
        "core files with secrets",
        Shell(r#"test "$(ulimit -Hc)" = 0"#, Host("test \"$(ulimit -Hc)\" != 0 || exit 77")),
    ),
    probe(
        "A12",
        "the other resource limits",
        Shell(
            r#"at() { awk -v name="$1" 'index($0, name) == 1 { sub(name, ""); print $1, $2 }' /proc/self/limits; }
               for want in 'Max locked memory=8388608 8388608' 'Max msgqueue size=819200 819200' \
                   'Max nice priority=0 0' 'Max realtime priority=0 0'; do
                   test "$(at "${want%%=*}")" = "${want#*=}" || { echo "$want: $(at "${want%%=*}")"; exit 1; }; done
               test "$(ulimit -Hn)" -le 65536"#,
            Refused(
                "most machines have these for their users too; without the hard limits of here a user has what the machine gives",
            ),
        ),
    ),
    probe(
        "A13",
        "an agent that outlives its supervisor",
        Tests(&["life::a_killed_supervisor_loses_nothing"], "it runs before the supervisor is killed"),
    ),
    // B: files.
    probe("B01", "files of the host", Shell("! ls -d $MARKS 2>/dev/null | grep .", Same)),
    probe(
        "B01",
        "files of the host's home and state",
        Tests(&["wall::files_of_the_host_are_not_visible"], "the files are made by the test"),
    ),
    probe(
        "B02",
        "system directories",
        Shell(
            "! touch /usr/x /etc/x /x 2>/dev/null && ! test -w /usr && ! test -w /etc && ! chmod 777 /usr 2>/dev/null",
            Root("test -w /usr && test -w /etc"),
        ),
    ),
    probe(
        "B03",
        "remounting and unmounting",
        Shell(
            r#"! mount -o remount,rw,bind /usr 2>/dev/null && ! umount /proc 2>/dev/null && ! umount -l /proc/sys 2>/dev/null &&
               refused 165 0 =/usr 0 4128 0 && refused 442 -100 =/usr 0 @32 32 && refused 166 =/proc 2"#,
            Bare(
                "mount --bind /usr /usr && mount -o remount,bind,ro /usr && umount -l /usr && reaches 442 -100 =/usr 0 @32 32",
            ),
        ),
    ),
    probe(
        "B04",
        "files by handle",
        Shell("refused 304 -1 0 0 && refused 303 -1 0 0 0 0", Host("reaches 303 -1 0 0 0 0")),
    ),
    probe(
        "B05",
        "device nodes",
        Shell(
            r#"! mknod /tmp/b b 254 0 2>/dev/null && ! mknod c c 1 3 2>/dev/null &&
               ! find / -xdev \( -type b -o -type c \) ! -path '/dev/*' 2>/dev/null | grep ."#,
            Root("d=$(mktemp -d) && mknod $d/b b 254 0 && rm -r $d"),
        ),
    ),
    probe(
        "B06",
        "the objects that are borrowed",
        Shell(
            r#"cd "$(head -n1 .git/objects/info/alternates)" || exit 1
               ! touch x 2>/dev/null && ! chmod 777 pack/* 2>/dev/null && ! ln pack/*.pack x 2>/dev/null &&
               ! mv pack x 2>/dev/null && ! rm -f pack/* 2>/dev/null && ls pack | grep -q pack"#,
            Host(
                "d=$(mktemp -d) && cd $d && mkdir pack && touch pack/p x && chmod 777 pack/* && rm -f pack/* && rm -r $d",
            ),
        ),
    ),
    probe("B07", "the host's git directory", Shell(r#"test -d .git && ! test -e "$GIT_MARK""#, Same)),
    probe(
        "B08",
        "mounts that spread, or let set-user-id programs and devices work",
        Shell(
            r#"! grep -E ' (shared|master):' /proc/self/mountinfo &&
               awk '$6 ~ /^rw/ && $5 !~ /^\/dev/ && !($6 ~ /nosuid/ && $6 ~ /nodev/) {print $5; bad=1} END {exit bad}' /proc/self/mountinfo"#,
            Same,
        ),
    ),
    probe(
        "B09",
        "the overlay's own directories",
        Shell(
            r#"! ls -d "$STATE" "$STATE"/sandboxes 2>/dev/null | grep . || exit 1
               for o in $(grep -oE '(upper|work)dir=[^, ]+' /proc/self/mountinfo | cut -d= -f2); do ls -d "$o" 2>/dev/null && exit 1; done; true"#,
            Same,
        ),
    ),
    probe(
        "B10",
        "removing everything",
        Tests(&["ordinary::the_remove_everything_command_does_not_reach_the_host"], "inside, the files are gone"),
    ),
    probe("B11", "other sandboxes", Tests(&["wall::sandboxes_do_not_see_each_other"], "the first one sees its own")),
    probe(
        "B12",
        "our own files inside",
        Shell(
            r#"cd /run/git-sandbox || exit 1
               for change in 'touch x' 'mv /run/git-sandbox /run/zz' 'mv bin zz' 'rm -f agent.sock' 'mv repo.config x' \
                   'mkdir x' 'ln -sf /bin/sh bin/git-remote-sandbox' 'chmod 700 .'; do
                   $change 2>/dev/null && { echo "$change"; exit 1; }; done
               test -S agent.sock && test -x bin/git-sandbox && touch /run/x"#,
            Host("d=$(mktemp -d) && cd $d && touch x && mv x y && mkdir z && chmod 700 . && rm -r $d"),
        ),
    ),
    // C: the kernel's own files.
    probe(
        "C01",
        "host root by a core pattern or sysrq; the kernel's log; immunity from the OOM killer",
        Shell(
            r#"! (echo x >/proc/sys/kernel/core_pattern) 2>/dev/null && ! (: >/proc/sysrq-trigger) 2>/dev/null &&
               ! dmesg 2>/dev/null | grep -q . && ! (echo -1000 >/proc/self/oom_score_adj) 2>/dev/null"#,
            Root("test -w /proc/sys/kernel/core_pattern"),
        ),
    ),
    probe(
        "C02",
        "kernel settings",
        Shell(
            "find /proc/sys -type f -writable 2>/dev/null | while read f; do (: >>$f) 2>/dev/null && echo $f; done | grep .; test $? = 1",
            Bare("(: >>/proc/sys/user/max_user_namespaces)"),
        ),
    ),
    probe(
        "C03",
        "what the kernel tells of the machine",
        Shell(
            r#"! head -c1 /proc/kcore 2>/dev/null | grep -q . && ! awk '$1!~/^0+$/{print;exit}' /proc/kallsyms 2>/dev/null | grep . &&
               ! cat /proc/keys /proc/timer_list /proc/interrupts 2>/dev/null | grep . &&
               for d in acpi asound bus driver fs irq scsi; do ls -A /proc/$d 2>/dev/null; done | { ! grep .; }"#,
            Same,
        ),
    ),
    probe(
        "C04",
        "sysfs, and the release agent of cgroups",
        Shell("! ls -A /sys 2>/dev/null | grep . && ! find / -xdev -name release_agent 2>/dev/null | grep .", Same),
    ),
    probe(
        "C05",
        "devices",
        Shell(
            "ls /dev | grep -vxE 'core|fd|full|null|ptmx|pts|random|shm|stderr|stdin|stdout|tty|urandom|zero|console'; test $? = 1",
            Same,
        ),
    ),
    probe(
        "C06",
        "new mounts",
        Shell(
            "for t in proc sysfs tmpfs overlay cgroup cgroup2 bpf debugfs tracefs mqueue binfmt_misc fuse; do mount -t $t x /tmp 2>/dev/null && exit 1; done; true",
            Bare("mount -t tmpfs x /tmp && mount -t mqueue x /tmp"),
        ),
    ),
    // D: the terminal.
    probe(
        "D01",
        "typing into a terminal (TIOCSTI, TIOCLINUX, TIOCCONS; CVE-2019-10063: with a high bit)",
        Shell(
            "refused 16 -1 0x5412 0 && refused 16 -1 0x541C 0 && refused 16 -1 0x541D 0 && refused 16 -1 0x100005412 0",
            Host("reaches 16 -1 0x5412 0 && reaches 16 -1 0x100005412 0"),
        ),
    ),
    probe(
        "D01",
        "the same on a terminal",
        Tests(&["wall::the_terminal_cannot_be_typed_into"], "without the filter the kernel looks at the descriptor"),
    ),
    probe(
        "D02",
        "the caller's terminal",
        Shell("! (: </dev/tty) 2>/dev/null", Host("script -qec ': </dev/tty' /dev/null >/dev/null")),
    ),
    probe(
        "D02",
        "the caller's files as standard output",
        Tests(&["wall::the_callers_files_are_not_standard_output_inside"], "the file has what was said"),
    ),
    // E: system calls.
    probe(
        "E01",
        "io_uring",
        Shell(
            "refused 425 8 @256 && refused 426 -1 0 0 0 0 0 && refused 427 -1 0 0 0",
            Host(
                "test \"$(cat /proc/sys/kernel/io_uring_disabled 2>/dev/null || echo 0)\" = 0 || exit 77; reaches 425 8 @256",
            ),
        ),
    ),
    probe("E02", "userfaultfd", Shell("refused 323 1", Host("reaches 323 1"))),
    probe(
        "E02",
        "bpf, perf",
        Shell(
            "refused 321 0 @256 72 && refused 298 @256 0 -1 -1 0",
            Root("reaches 321 -1 0 0 && reaches 298 0 0 -1 -1 0"),
        ),
    ),
    probe(
        "E03",
        "keyrings, modules, kexec, reboot, swap, quotas",
        Shell(
            r#"refused 248 =user =g =x 1 -3 && refused 249 =user =g 0 0 && refused 250 0 -3 0 && refused 246 -1 -1 0 0 &&
               refused 175 0 0 0 && refused 313 -1 0 0 && refused 169 0 0 0 0 && refused 167 =/x 0 && refused 179 0 0 0 0"#,
            Host("reaches 250 -1 0 0 && reaches 249 0 0 0 0"),
        ),
    ),
    probe(
        "E05",
        "the new mount interface (CVE-2021-41133)",
        Shell(
            r#"refused 430 =tmpfs 0 && refused 428 -100 =/ 1 && refused 429 -100 =/ -100 =/tmp 0 &&
               refused 442 -100 =/ 0 @32 32 && refused 467 -100 =/ 1 0 0"#,
            Bare("reaches 430 =tmpfs 0 && reaches 428 -100 =/ 1"),
        ),
    ),
    probe(
        "E06",
        "memory and descriptors of other processes",
        Shell(
            "refused 310 pid 0 0 0 0 0 && refused 311 pid 0 0 0 0 0 && refused 438 -1 0 0",
            Host("reaches 310 pid 0 0 0 0 0 && reaches 438 -1 0 0"),
        ),
    ),
    probe(
        "E07",
        "families of sockets with a history (AF_ALG, KEY, PACKET, CAN, TIPC, RXRPC, VSOCK, QIPCRTR, SMC, XDP)",
        Shell(
            "for f in 15 17 29 30 31 33 38 40 42 43 44; do for t in 1 2 3 5; do opens $f $t 0; test $? = 1 || { echo $f; exit 1; }; done; done",
            Same,
        ),
    ),
    probe(
        "E08",
        "netlink but route",
        Shell(
            "for p in 4 6 9 12 15 16; do opens 16 3 $p; test $? = 1 || { echo $p; exit 1; }; done; opens 16 3 0",
            Same,
        ),
    ),
    probe(
        "E09",
        "raw sockets, and MPTCP, which Landlock does not see",
        Shell("! opens 2 3 1 && ! opens 10 3 58 && ! opens 2 1 262", Bare("opens 2 3 1")),
    ),
    probe(
        "E10",
        "calls that nobody reviewed",
        Shell(
            "for n in 468 469 470 471 600; do perl -e 'exit(syscall($ARGV[0], -1, 0, 0, 0, 0, 0) == -1 && $!{ENOSYS} ? 0 : 1)' $n || { echo $n; exit 1; }; done",
            // Calls of Linux 6.17 with a descriptor that is none.
            Host("reaches 468 -1 0 0 0 0 0 || reaches 469 -1 0 0 0 0 0 || exit 77"),
        ),
    ),
    probe(
        "E10",
        "calls of another ABI (x32)",
        Shell(
            "perl -e 'exit(syscall(0x40000000 + 39) == -1 && $!{ENOSYS} ? 0 : 1)'",
            Refused(
                "most kernels are built without x32; that the filter refuses it is replayed in the tests of `drivers`",
            ),
        ),
    ),
    probe("E11", "what must work", Tests(&["tools::what_is_always_there"], "each line has what it prints")),
    // F: services of the host.
    probe(
        "F01",
        "sockets of daemons",
        Shell(
            "! ls -d /var/run/docker.sock /run/docker.sock /run/podman /run/containerd /run/dbus /run/systemd /run/WSL /run/user /tmp/.X11-unix 2>/dev/null | grep .",
            Refused("none of them need run on this machine; F03 has a socket that does"),
        ),
    ),
    probe(
        "F02",
        "abstract sockets",
        Shell(
            r#"! perl -e 'use Socket; socket(S, PF_UNIX, SOCK_STREAM, 0) or exit 3; exit(connect(S, pack("S", 1) . "\0$ENV{ABSTRACT}") ? 0 : 1)'"#,
            Same,
        ),
    ),
    probe(
        "F03",
        "sockets of the host, and variables that lead to some",
        Shell(
            r#"! test -e "$SOCK" && ! find / -xdev -type s 2>/dev/null | grep -v '^/run/git-sandbox/' | grep . &&
               ! env | grep -E '^(SSH_AUTH|DBUS|DISPLAY|GPG|VSCODE|DOCKER|KUBE)'"#,
            Same,
        ),
    ),
    probe("F04", "System V memory", Shell(r#"! ipcs -m | grep -qw "$SHM""#, Same)),
    probe(
        "F04",
        "the host's loopback device",
        Shell(
            r#"! perl -e 'use Socket; socket(S, PF_INET, SOCK_STREAM, 0) or exit 3; exit(connect(S, sockaddr_in($ENV{PORT}, inet_aton("127.0.0.1"))) ? 0 : 1)'"#,
            Same,
        ),
    ),
    probe(
        "F05",
        "the relay replaced",
        Shell(
            "cd /run/git-sandbox && ! rm -f agent.sock 2>/dev/null && ! mv agent.sock x 2>/dev/null && test -S agent.sock",
            Refused("the socket is only there inside; B12 has a control"),
        ),
    ),
    probe(
        "F06",
        "sockets below toolchains",
        Tests(&["wall::logins_and_sockets_below_toolchains_are_covered"], "the same is connected to from the host"),
    ),
    probe(
        "G01",
        "devices of the network",
        Shell("test $(grep -c : /proc/net/dev) = 1", Host("test $(grep -c : /proc/net/dev) -gt 1 || exit 77")),
    ),
    probe(
        "G01",
        "the host's network",
        Tests(&["wall::the_network_is_the_hosts_only_on_request"], "with --net host it is reached"),
    ),
    // The first process.
    probe(
        "A14",
        "the first process traced or read",
        Shell(
            r#"! cat /proc/1/environ 2>/dev/null | grep -q . && ! readlink /proc/1/root >/dev/null 2>&1 &&
               ! ls /proc/1/root/ 2>/dev/null | grep -q . && ! head -c1 /proc/1/mem 2>/dev/null | grep -q . && perl -e 'exit(syscall(101, 16, 1, 0, 0) == -1 ? 0 : 1)'"#,
            Host(
                "cat /proc/self/environ | grep -q . && readlink /proc/self/root >/dev/null && ls /proc/self/root/ | grep -q .",
            ),
        ),
    ),
    probe(
        "A15",
        "limits of the namespaces",
        Shell(
            r#"for n in user mnt net pid ipc uts cgroup time; do grep -qx 0 /proc/sys/user/max_${n}_namespaces || { echo $n; exit 1; }; done
               grep -qx 1024 /proc/sys/user/max_inotify_instances && grep -qx 65536 /proc/sys/user/max_inotify_watches"#,
            Same,
        ),
    ),
    // J: git inside.
    probe(
        "J01",
        "names and objects of branches that were not granted",
        Shell(
            r#"git rev-parse --git-common-dir >/dev/null && ! git for-each-ref | grep -q "$HIDDEN" &&
               ! git cat-file -e "$HIDDEN_BLOB" 2>/dev/null && git cat-file -e HEAD"#,
            Same,
        ),
    ),
    probe(
        "J02",
        "maintenance inside",
        Tests(&["ordinary::the_house_keeping_of_git_works"], "inside, unreachable objects are gone"),
    ),
    // K: credentials.
    probe(
        "K01",
        "secrets at rest",
        Tests(&["agents::a_key_is_in_no_list_of_arguments_and_in_no_log"], "the agent inside has the key"),
    ),
    probe(
        "K04",
        "credentials that git would find",
        Shell(
            r#"! printf 'protocol=https\nhost=example.com\n\n' | GIT_TERMINAL_PROMPT=0 timeout 10 git credential fill 2>/dev/null | grep password &&
               ! git config --list --show-origin | grep -iE 'credential\.|extraheader|askpass'"#,
            Same,
        ),
    ),
    // L: a mirror.
    probe(
        "L01",
        "refs of a mirror that are not a session's own",
        Tests(
            &[
                "mirror/push::everything_else_is_refused_ref_by_ref_and_the_rest_applies",
                "mirror/push::commands_that_lie_change_nothing",
                "mirror/push::readers_and_sessions_without_a_grant_push_nothing",
            ],
            "in the same push the session's own ref is made",
        ),
    ),
    probe(
        "L02",
        "objects that only another session's refs reach",
        Tests(
            &[
                "mirror/push::sessions_do_not_see_one_another",
                "mirror/fetch::refs_of_the_service_are_nobodys_and_other_services_are_refused",
            ],
            "the session that made them has them",
        ),
    ),
    probe(
        "L03",
        "requests to a mirror without measure",
        Tests(
            &[
                "mirror/push::a_push_has_limits",
                "mirror/http::bodies_may_be_compressed_and_in_pieces_but_not_without_end",
                "mirror/fetch::none_of_many_is_dropped",
                "mirror/fetch::who_goes_away_leaves_no_process",
            ],
            "what is within the limits is served",
        ),
    ),
    // M: what comes back.
    probe(
        "M01",
        "host git in a hostile repository",
        Tests(
            &[
                "landing::a_configuration_inside_runs_nothing_on_the_host",
                "lands::hooks_and_programs_of_either_side_do_not_run",
            ],
            "the same configuration runs a program where git opens it",
        ),
    ),
    probe(
        "M03",
        "objects that are none",
        Tests(
            &[
                "lands::a_bad_ref_is_refused_by_name_and_the_good_ones_land",
                "landing::a_bad_commit_is_refused_and_says_so",
            ],
            "good ones land beside them",
        ),
    ),
    probe(
        "M04",
        "leftovers of what was refused",
        Tests(&["lands::too_many_bytes_end_the_conversation_and_leave_nothing"], "a listing from before"),
    ),
    probe(
        "M05",
        "refs of others, and loss by a prune",
        Tests(&["landing::only_our_refs_change", "landing::an_amend_keeps_the_older_commit"], "our own do change"),
    ),
    probe(
        "M07",
        "names of refs",
        Tests(
            &["landing::names_of_branches_are_mapped_or_refused_one_by_one", "core/corpus::names_of_refs"],
            "git inside makes each of them",
        ),
    ),
    probe(
        "M08",
        "escapes for the terminal",
        Tests(&["landing::control_characters_do_not_reach_the_terminal"], "git itself prints them"),
    ),
    probe(
        "M09",
        "escapes in what the server inside says (CVE-2024-52005)",
        Tests(&["landing::what_the_server_inside_says_is_escaped"], "git inside prints them"),
    ),
    probe(
        "M02",
        "drivers of the host that attributes of inside select",
        Tests(&["review::what_git_here_would_run_is_refused_in_a_script"], "with the user's word they run"),
    ),
    probe(
        "M10",
        "review blinded by attributes",
        Tests(&["review::each_trap_is_listed_by_every_verb"], "what is harmless is not listed"),
    ),
    probe(
        "M11",
        "submodules that run a command",
        Tests(&["review::a_change_in_the_settings_of_a_submodule_fetches_nothing"], "the setting is there"),
    ),
    probe(
        "M12",
        "what runs by itself after a merge",
        Tests(&["review::each_trap_is_listed_by_every_verb"], "one file for each path"),
    ),
    probe(
        "M13",
        "files out",
        Tests(
            &["landing::files_can_be_copied", "errors/landing::files_that_cannot_be_copied"],
            "ordinary files are copied beside them",
        ),
    ),
    probe(
        "M14",
        "a thin pack over a private base",
        Tests(&["lands::a_private_object_can_neither_be_named_nor_used_as_a_base"], "plain fetch takes it"),
    ),
    probe(
        "M15",
        "a revert to old content",
        Tests(
            &["lands::a_revert_to_old_content_is_imported_although_a_bitmap_exists"],
            "the bitmap leaves the object out",
        ),
    ),
    // R: capacity.
    probe("R01", "fork bombs", Tests(&["drivers/wall::processes_are_limited"], "the limit of the host is as before")),
    probe("R02", "memory", Tests(&["drivers/wall::memory_is_limited"], "without a cgroup the test says so")),
    probe(
        "R03",
        "disks and inodes filled; what is in memory is bounded",
        Tests(
            &[
                "full/bombs::a_disk_fill",
                "full/bombs::an_inode_fill",
                "full/frozen::the_reserve_of_the_host_is_not_written",
                "full/frozen::the_last_inodes_are_kept",
            ],
            "it writes until it is frozen, and goes on where there is room",
        ),
    ),
    probe(
        "R03",
        "memory by way of /dev/shm",
        Shell(
            r#"test "$(df -Pk /dev/shm | awk 'NR == 2 { print $2 }')" -lt "$(awk '/^MemTotal/ { print $2 }' /proc/meminfo)""#,
            Host("test -d /dev/shm && test -w /dev/shm"),
        ),
    ),
    probe("R05", "the processors", Tests(&["wall::processors_are_shared"], "what starts it is not given them last")),
    probe(
        "R06",
        "a flood of output",
        Tests(
            &["full/bombs::an_output_flood", "life::input_and_output_pass_through_whole"],
            "the log has gone round, and what is read arrives whole",
        ),
    ),
    probe(
        "R07",
        "daemons that ignore signals",
        Tests(
            &["wall::processes_end_with_their_sandbox", "supervision::stop_ends_what_does_not_cooperate"],
            "they run before",
        ),
    ),
    probe(
        "W01",
        "no over-blocking by the probes' own means",
        Shell(
            r#"perl -e 'pipe(R, W); if (!fork) { print W "x"; exit } wait' && test -c /dev/null && echo >/dev/null &&
               head -c4 /dev/urandom >/dev/null && echo x >/tmp/x && echo x >/dev/shm/x && echo x >"$HOME/x" &&
               mkdir a b && echo z >a/f && mv a/f b/g && ln b/g a/h && ln -s x a/s && mkfifo a/p && rm -r a b"#,
            Refused("it is the counter-proof: what it does must work"),
        ),
    ),
    // V: a virtual machine.
    probe(
        "V01",
        "what a guest finds around it",
        Tests(&["drivers/qemu::a_guest_is_a_sandbox"], "the host's kernel and files are others"),
    ),
    probe(
        "V02",
        "writing to files that the host shows a guest",
        Tests(
            &["vhost/fs::nothing_is_written", "vhost/fs::nothing_leads_out", "vhost/fs::any_requests_are_survived"],
            "the same files are read",
        ),
    ),
    probe(
        "V03",
        "ports of the host's vsock",
        Tests(
            &["vhost/vsock::the_guest_connects_where_somebody_listens", "vhost/vsock::any_packets_are_survived"],
            "one port that is listened on is reached",
        ),
    ),
    probe(
        "V04",
        "what holds the processes of a machine",
        Tests(
            &[
                "drivers/qemu::a_guest_is_a_sandbox",
                "drivers/qemu/plan::the_machine_is_minimal_and_gets_descriptors",
                "devices::a_device_has_nothing_but_what_it_serves_and_ends_with_its_machine",
            ],
            "the process that starts them has none of it",
        ),
    ),
];
