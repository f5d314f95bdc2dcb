//! Which system calls are refused inside, and with what. One table for both architectures.
//!
//! A deny list with a ceiling: what is not named is allowed, and what is newer than the last review
//! does not exist. A session's programs are ordinary development tools, so an allow list would break
//! one of them with each release; what the list names is kernel surface that such a tool never needs.
//!
//! | refused with | because |
//! |---|---|
//! | `EPERM` | the caller sees that it may not, and most programs go on without |
//! | `ENOSYS` (`clone3`, unknown numbers) | libc falls back to the older call, whose flags the filter can read |
//! | `EAFNOSUPPORT`, `EPROTONOSUPPORT` | as a kernel without that protocol would say |
//! | killed | another architecture's table: never an accident |

use sandbox_sys::seccomp::{ARCH_AARCH64, ARCH_X86_64, Answer, NATIVE_ARCH, Policy, Rule, Test};

/// The highest call number that was reviewed (`open_tree_attr`, Linux 6.15).
pub const MAX_REVIEWED: u32 = 467;

const EPERM: Answer = Answer::Errno(1);
const ENOSYS: Answer = Answer::Errno(38);
const EPROTONOSUPPORT: Answer = Answer::Errno(93);
const EAFNOSUPPORT: Answer = Answer::Errno(97);

/// A call by name and by its numbers (x86-64, aarch64); the newer ones are the same everywhere.
type Call = (&'static str, Option<u32>, Option<u32>);

const fn both(name: &'static str, nr: u32) -> Call {
    (name, Some(nr), Some(nr))
}

const fn call(name: &'static str, x86_64: u32, aarch64: u32) -> Call {
    (name, Some(x86_64), Some(aarch64))
}

const fn x86(name: &'static str, nr: u32) -> Call {
    (name, Some(nr), None)
}

/// Control of the kernel and of the machine.
const KERNEL: &[Call] = &[
    call("bpf", 321, 280),
    call("perf_event_open", 298, 241),
    call("userfaultfd", 323, 282),
    both("io_uring_setup", 425),
    both("io_uring_enter", 426),
    both("io_uring_register", 427),
    call("init_module", 175, 105),
    call("finit_module", 313, 273),
    call("delete_module", 176, 106),
    call("kexec_load", 246, 104),
    call("kexec_file_load", 320, 294),
    call("reboot", 169, 142),
    call("swapon", 167, 224),
    call("swapoff", 168, 225),
    call("syslog", 103, 116),
    call("quotactl", 179, 60),
    both("quotactl_fd", 443),
    call("acct", 163, 89),
    call("settimeofday", 164, 170),
    call("clock_settime", 227, 112),
    call("adjtimex", 159, 171),
    call("clock_adjtime", 305, 266),
    x86("iopl", 172),
    x86("ioperm", 173),
    x86("modify_ldt", 154),
    x86("uselib", 134),
    x86("ustat", 136),
    x86("sysfs", 139),
    x86("_sysctl", 156),
    call("vhangup", 153, 58),
    call("lookup_dcookie", 212, 18),
    call("nfsservctl", 180, 42),
    both("lsm_set_self_attr", 460),
];

/// Namespaces and mounts, by the old interface and the new one (CVE-2021-41133). With `--nested` they are
/// permitted: the kernel still asks for a capability, which only a namespace made inside gives, and over itself.
const NAMESPACES: &[Call] = &[
    call("unshare", 272, 97),
    call("setns", 308, 268),
    call("mount", 165, 40),
    call("umount2", 166, 39),
    call("pivot_root", 155, 41),
    call("chroot", 161, 51),
    both("open_tree", 428),
    both("move_mount", 429),
    both("fsopen", 430),
    both("fsconfig", 431),
    both("fsmount", 432),
    both("fspick", 433),
    both("mount_setattr", 442),
    both("open_tree_attr", 467),
    call("sethostname", 170, 161),
];

/// What no inner sandbox was seen to need.
const MOUNT_TABLE: &[Call] = &[both("statmount", 457), both("listmount", 458), call("setdomainname", 171, 162)];

/// Reaching into other processes. `ptrace` stays for debuggers: the only process of the namespace
/// that is not user code is not dumpable.
const PROCESSES: &[Call] = &[
    call("process_vm_readv", 310, 270),
    call("process_vm_writev", 311, 271),
    both("pidfd_getfd", 438),
    call("kcmp", 312, 272),
];

/// File handles, keyrings, memory that the accounting does not see.
const HANDLES: &[Call] = &[
    call("open_by_handle_at", 304, 265),
    call("name_to_handle_at", 303, 264),
    call("fanotify_init", 300, 262),
    call("add_key", 248, 217),
    call("request_key", 249, 218),
    call("keyctl", 250, 219),
    both("memfd_secret", 447),
    call("remap_file_pages", 216, 234),
    call("vmsplice", 278, 75),
    call("move_pages", 279, 239),
    call("migrate_pages", 256, 238),
    call("mbind", 237, 235),
    call("set_mempolicy", 238, 237),
    both("set_mempolicy_home_node", 450),
];

/// The C library, Go's runtime and container runtimes fall back to `clone`, whose flags are in a register.
const CLONE3: Call = both("clone3", 435);

const CLONE: Call = call("clone", 56, 220);
const IOCTL: Call = call("ioctl", 16, 29);
const SOCKET: Call = call("socket", 41, 198);
const SOCKETPAIR: Call = call("socketpair", 53, 199);
const PERSONALITY: Call = call("personality", 135, 92);

/// The calls of which the agent is told, so that it can rename directories with a lower part.
const RENAMES: &[Call] = &[("rename", Some(82), None), call("renameat", 264, 38), call("renameat2", 316, 276)];

/// Every `CLONE_NEW*` flag.
const CLONE_NEW: u32 = 0x7E02_0000;
/// TIOCSTI, TIOCLINUX, TIOCCONS: input put into a terminal from outside of it.
const TERMINAL_INJECTION: [u32; 3] = [0x5412, 0x541C, 0x541D];
const AF_UNIX: u32 = 1;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const AF_NETLINK: u32 = 16;
const SOCK_RAW: u32 = 3;
const SOCK_PACKET: u32 = 10;
const IPPROTO_MPTCP: u32 = 262;

fn among(arg: u8, values: &[u32]) -> Test {
    Test { arg, mask: u32::MAX, values: values.to_vec(), among: true }
}

fn not_among(arg: u8, values: &[u32]) -> Test {
    Test { among: false, ..among(arg, values) }
}

fn masked(mask: u32, test: Test) -> Test {
    Test { mask, ..test }
}

/// Returns the policy of PID 1 and of all that it starts, for one architecture. `nested` permits what a
/// sandbox inside this one needs, and nothing else.
pub fn base(arch: u32, nested: bool) -> Policy {
    let number = |call: &Call| match arch {
        ARCH_X86_64 => call.1,
        ARCH_AARCH64 => call.2,
        _ => None,
    };
    let mut rules = Vec::new();
    let mut add = |call: &Call, tests: Vec<Test>, answer: Answer| {
        if let Some(nr) = number(call) {
            rules.push(Rule { nr, tests, answer });
        }
    };
    for group in [KERNEL, MOUNT_TABLE, PROCESSES, HANDLES] {
        for call in group {
            add(call, vec![], EPERM);
        }
    }
    if !nested {
        for call in NAMESPACES {
            add(call, vec![], EPERM);
        }
        add(&CLONE, vec![masked(CLONE_NEW, not_among(0, &[0]))], EPERM);
    }
    add(&CLONE3, vec![], ENOSYS);
    add(&IOCTL, vec![among(1, &TERMINAL_INJECTION)], EPERM);
    add(&SOCKET, vec![not_among(0, &[AF_UNIX, AF_INET, AF_INET6, AF_NETLINK])], EAFNOSUPPORT);
    // NETLINK_ROUTE (0) only: to list interfaces, not to reach XFRM, netfilter or audit.
    add(&SOCKET, vec![among(0, &[AF_NETLINK]), not_among(2, &[0])], EPROTONOSUPPORT);
    let inet = || among(0, &[AF_INET, AF_INET6]);
    // The type's low four bits; SOCK_NONBLOCK and SOCK_CLOEXEC are above.
    add(&SOCKET, vec![inet(), masked(0xf, among(1, &[SOCK_RAW, SOCK_PACKET]))], EPERM);
    // Landlock's rules for TCP do not see it.
    add(&SOCKET, vec![inet(), among(2, &[IPPROTO_MPTCP])], EPROTONOSUPPORT);
    add(&SOCKETPAIR, vec![not_among(0, &[AF_UNIX])], EAFNOSUPPORT);
    // PER_LINUX, PER_LINUX32, both with UNAME26, and the query.
    add(&PERSONALITY, vec![not_among(0, &[0, 8, 0x2_0000, 0x2_0008, u32::MAX])], EPERM);
    Policy { arch, ceiling: MAX_REVIEWED, rules, otherwise: Answer::Allow }
}

/// Returns the policy of the sessions: the base, and with `rename_notify` the agent is asked about renames.
pub fn session(arch: u32, rename_notify: bool, nested: bool) -> Policy {
    let mut policy = base(arch, nested);
    if rename_notify {
        for call in RENAMES {
            let nr = if arch == ARCH_X86_64 { call.1 } else { call.2 };
            policy.rules.extend(nr.map(|nr| Rule { nr, tests: vec![], answer: Answer::Notify }));
        }
    }
    policy
}

/// Returns the bytes of both programs for this machine: (base, session).
pub fn programs(rename_notify: bool, nested: bool) -> std::io::Result<(Vec<u8>, Vec<u8>)> {
    let base = base(NATIVE_ARCH, nested).compile()?.to_bytes();
    let session = session(NATIVE_ARCH, rename_notify, nested).compile()?.to_bytes();
    Ok((base, session))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_sys::seccomp::X32_BIT;

    const ARCHES: [u32; 2] = [ARCH_X86_64, ARCH_AARCH64];

    /// Values that lie on both sides of every comparison of the table, with high bits set as well.
    fn interesting() -> Vec<u64> {
        let mut values: Vec<u64> = (0..=46).collect();
        values.extend([0x5412, 0x5413, 0x541C, 0x541D, 262, 263, 0x2_0000, 0x2_0008, 0xffff_ffff, 0x80802, 0x80803]);
        values.extend((0..32).map(|bit| 1u64 << bit));
        values.extend([0x7E02_0000, 17, 0x1200011, 0x3d0f00]);
        let high: Vec<u64> = values.iter().map(|value| value | 1 << 32).collect();
        values.extend(high);
        values
    }

    #[test]
    fn the_programs_answer_as_the_table() {
        let values = interesting();
        for arch in ARCHES {
            for policy in [base(arch, false), session(arch, true, false), base(arch, true), session(arch, true, true)] {
                let program = policy.compile().unwrap();
                let mut numbers: Vec<u32> = (0..=MAX_REVIEWED + 40).collect();
                numbers.extend([600, X32_BIT - 1, X32_BIT, X32_BIT + 59, u32::MAX]);
                for nr in numbers {
                    let tested = policy.rules.iter().any(|rule| rule.nr == nr && !rule.tests.is_empty());
                    let seconds: &[u64] = if tested { &values } else { &values[..1] };
                    for first in seconds {
                        for second in seconds {
                            for third in [0u64, 6, 262] {
                                let args = [*first, *second, third, 0, 0, 0];
                                let expected = policy.decide(arch, nr, &args).raw();
                                assert_eq!(program.run(arch, nr, &args), Some(expected), "{nr} {args:x?}");
                            }
                        }
                    }
                }
                for other in ARCHES.into_iter().chain([0x4000_0003, 0]).filter(|other| *other != arch) {
                    assert_eq!(program.run(other, 1, &[0; 6]), Some(Answer::Kill.raw()));
                }
            }
        }
    }

    /// Both tables are those of the kernel, as far as this machine has its headers (`linux-libc-dev`).
    #[test]
    fn the_numbers_are_those_of_the_kernels_headers() {
        let read = |path: &str| std::fs::read_to_string(path).ok();
        let headers = [
            (ARCH_X86_64, read("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")),
            // What aarch64 takes, as every newer architecture.
            (ARCH_AARCH64, read("/usr/include/asm-generic/unistd.h")),
        ];
        let groups = [KERNEL, NAMESPACES, MOUNT_TABLE, PROCESSES, HANDLES, RENAMES];
        let single = [CLONE3, CLONE, IOCTL, SOCKET, SOCKETPAIR, PERSONALITY];
        for (arch, text) in headers {
            let Some(text) = text else {
                println!("SKIP: no header with the numbers of {arch:x}");
                continue;
            };
            let number = |name: &str| -> Option<u32> {
                text.lines().find_map(|line| {
                    let mut words = line.strip_prefix("#define ")?.split_whitespace();
                    let known = words.next()?.trim_start_matches("__NR3264_").trim_start_matches("__NR_");
                    (known == name).then(|| words.next()?.parse().ok())?
                })
            };
            let mut compared = 0;
            for call in groups.iter().copied().flatten().chain(&single) {
                let ours = if arch == ARCH_X86_64 { call.1 } else { call.2 };
                match (ours, number(call.0)) {
                    (Some(ours), Some(theirs)) => {
                        assert_eq!(ours, theirs, "{} of {arch:x}", call.0);
                        compared += 1;
                    }
                    // Newer than the header, and the same everywhere.
                    (Some(ours), None) => assert!(ours > 440, "{} of {arch:x} has no number {ours}", call.0),
                    (None, theirs) => assert_eq!(theirs, None, "{} of {arch:x} is left out", call.0),
                }
            }
            assert!(compared > 60, "{compared} of {arch:x}");
        }
    }

    #[test]
    fn what_must_be_refused_is_refused() {
        let says = |arch: u32, nr: u32, args: &[u64]| {
            let mut six = [0u64; 6];
            six[..args.len()].copy_from_slice(args);
            base(arch, false).decide(arch, nr, &six)
        };
        let x = |nr, args: &[u64]| says(ARCH_X86_64, nr, args);
        let a = |nr, args: &[u64]| says(ARCH_AARCH64, nr, args);
        // A05, A06: user namespaces through clone and clone3.
        assert_eq!(x(56, &[0x1000_0011]), EPERM);
        assert_eq!(x(56, &[0x11]), Answer::Allow);
        assert_eq!(x(56, &[0x3d_0f00]), Answer::Allow);
        assert_eq!(a(220, &[0x4000_0011]), EPERM);
        assert_eq!(x(435, &[]), ENOSYS);
        // CVE-2019-10063: an ioctl with high bits is the same ioctl.
        assert_eq!(x(16, &[0, 0x1_0000_5412]), EPERM);
        assert_eq!(a(29, &[0, 0x541C]), EPERM);
        assert_eq!(x(16, &[0, 0x5413]), Answer::Allow);
        // E07–E09: families, netlink protocols, raw sockets, MPTCP.
        for family in [15u64, 17, 29, 30, 31, 33, 38, 40, 42, 43, 44, 0x1_0000_0026] {
            assert_eq!(x(41, &[family, 1]), EAFNOSUPPORT, "{family}");
        }
        for protocol in [4, 6, 9, 12, 15, 16] {
            assert_eq!(x(41, &[16, 3, protocol]), EPROTONOSUPPORT);
        }
        assert_eq!(x(41, &[16, 3, 0]), Answer::Allow);
        assert_eq!(x(41, &[2, 3 | 0o2000000, 1]), EPERM);
        assert_eq!(x(41, &[2, 1, 262]), EPROTONOSUPPORT);
        assert_eq!(x(41, &[10, 2 | 0o2000000, 0]), Answer::Allow);
        assert_eq!(x(41, &[1, 1, 0]), Answer::Allow);
        assert_eq!(x(53, &[2, 1, 0]), EAFNOSUPPORT);
        assert_eq!(x(135, &[0x4_0000]), EPERM);
        assert_eq!(x(135, &[0xffff_ffff]), Answer::Allow);
        // E10: what nobody has reviewed; and x32.
        for nr in [468, 469, 600, X32_BIT + 41] {
            assert_eq!(x(nr, &[]), ENOSYS);
        }
        for nr in [425, 426, 427, 428, 429, 430, 431, 432, 433, 442, 443, 447, 457, 458, 467] {
            assert_eq!((x(nr, &[]), a(nr, &[])), (EPERM, EPERM), "{nr}");
        }
    }

    #[test]
    fn only_sessions_notify() {
        for (arch, numbers) in [(ARCH_X86_64, &[82, 264, 316][..]), (ARCH_AARCH64, &[38, 276][..])] {
            for nr in numbers {
                assert_eq!(base(arch, false).decide(arch, *nr, &[0; 6]), Answer::Allow);
                for nested in [false, true] {
                    assert_eq!(session(arch, true, nested).decide(arch, *nr, &[0; 6]), Answer::Notify);
                    assert_eq!(session(arch, false, nested).decide(arch, *nr, &[0; 6]), Answer::Allow);
                }
            }
        }
    }

    #[test]
    fn nested_permits_namespaces_and_mounts_and_nothing_else() {
        for arch in ARCHES {
            let number = |call: &Call| if arch == ARCH_X86_64 { call.1 } else { call.2 };
            let (strict, nested) = (base(arch, false), base(arch, true));
            let permitted: Vec<u32> = NAMESPACES.iter().chain([&CLONE]).filter_map(number).collect();
            for nr in 0..=MAX_REVIEWED + 1 {
                let with = |policy: &Policy| policy.decide(arch, nr, &[0x7E02_0000, 1, 0, 0, 0, 0]);
                if permitted.contains(&nr) {
                    assert_eq!((with(&strict), with(&nested)), (EPERM, Answer::Allow), "{nr}");
                } else {
                    assert_eq!(with(&strict), with(&nested), "{nr}");
                }
            }
        }
    }

    #[test]
    fn a_program_may_shut_itself_in() {
        // Landlock (444–446), seccomp, prctl: what needs no privilege is how tools confine their own children.
        for (arch, numbers) in [(ARCH_X86_64, [444, 445, 446, 317, 157]), (ARCH_AARCH64, [444, 445, 446, 277, 167])] {
            for nr in numbers {
                assert_eq!(session(arch, true, false).decide(arch, nr, &[0; 6]), Answer::Allow, "{nr}");
            }
        }
    }

    #[test]
    fn no_number_is_told_twice() {
        for arch in ARCHES {
            let policy = base(arch, false);
            let plain: Vec<u32> = policy.rules.iter().filter(|r| r.tests.is_empty()).map(|r| r.nr).collect();
            for nr in &plain {
                assert_eq!(policy.rules.iter().filter(|rule| rule.nr == *nr).count(), 1, "{nr}");
                assert!(*nr <= MAX_REVIEWED);
            }
        }
    }
}
