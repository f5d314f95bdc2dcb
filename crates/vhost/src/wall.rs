//! What is left of the host around a device process: it speaks with a guest that may be hostile, so it is
//! treated as if the guest had taken it over already.
//!
//! ```text
//!   new mount, network, IPC, UTS, cgroup namespaces (an ordinary user: and a user namespace)
//!     └─ root = tmpfs, read-only: /0 /1 … = the given directories, read-only, nosuid, nodev, noexec
//!          └─ the sandbox's user, no capability, no_new_privs, limits, an allow list of system calls
//! ```
//! No pid namespace: a process can only enter one as a child, and a second process for each device would cost
//! more memory than the devices may have. What it would keep away (signals, ptrace) the allow list does.

use crate::ServeError;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{DumpableBehavior, Pid, Signal};
use sandbox_sys::caps;
use sandbox_sys::mount::{self, Attributes, Filesystem};
use sandbox_sys::namespace::{self, Namespaces, resource};
use sandbox_sys::seccomp::{self, Answer, NATIVE_ARCH, Policy, Rule, Test};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Descriptors that a process may have, when the host allows that many.
const DESCRIPTORS: u64 = 8192;
/// Memory of its own that it may have, in bytes; the guest's is not counted.
const MEMORY: u64 = 256 << 20;
/// What uids and gids without a name in a user namespace look like (`/proc/sys/kernel/overflowuid`).
const UNKNOWN: u32 = 65534;

/// What is left.
#[derive(Debug)]
pub struct Inside {
    /// The given directories, opened with `O_PATH`.
    pub roots: Vec<OwnedFd>,
    /// How owners that this process cannot name look to it.
    pub unknown: Option<(u32, u32)>,
    /// How many descriptors it may have.
    pub descriptors: usize,
}

/// Leaves everything behind but `dirs` (names for errors, paths). The process must have one thread.
pub fn enter(
    dirs: &[(&str, &Path)],
    user: Option<(u32, u32)>,
    parent: u32,
    calls: &[i64],
) -> Result<Inside, ServeError> {
    let during = |step| move |source: io::Error| ServeError::Wall { step, source };
    let root = rustix::process::geteuid().is_root();
    let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mut new = [Namespaces::NET, Namespaces::IPC, Namespaces::UTS, Namespaces::CGROUP]
        .into_iter()
        .fold(Namespaces::MOUNT, Namespaces::and);
    if !root {
        new = new.and(Namespaces::USER);
    }
    namespace::unshare(new).map_err(during("create namespaces for a device"))?;
    let unknown = if root {
        None
    } else {
        namespace::write_id_map(std::process::id(), own, own).map_err(during("write the id map of a device"))?;
        let overflow = |id: &str| {
            let text = std::fs::read_to_string(format!("/proc/sys/kernel/overflow{id}")).unwrap_or_default();
            text.trim().parse().unwrap_or(UNKNOWN)
        };
        // An owner that really has this id would be taken for an unknown one.
        Some((overflow("uid"), overflow("gid"))).filter(|unknown| unknown.0 != own.0 && unknown.1 != own.1)
    };
    mount::make_all_private().map_err(during("make the mounts of a device private"))?;
    let roots = new_root(dirs)?;
    if root {
        namespace::set_groups(&[]).map_err(during("drop the groups of a device"))?;
    }
    let nofile = limits().map_err(during("set the limits of a device"))?;
    caps::no_new_privs().map_err(during("set no_new_privs"))?;
    caps::lock_securebits().map_err(during("lock the securebits of a device"))?;
    if let Some((uid, gid)) = user.filter(|_| root) {
        namespace::switch_user(uid, gid).map_err(during("become the user of a device"))?;
    }
    caps::drop_all().map_err(during("drop the capabilities of a device"))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| during("hide the memory of a device")(error.into()))?;
    // After the last change of credentials, which would clear it; then look whether it came too late.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| during("ask for a signal when the starting program ends")(error.into()))?;
    if rustix::process::getppid().map(Pid::as_raw_pid) != i32::try_from(parent).ok() {
        return Err(ServeError::Orphan);
    }
    let program = policy(calls).compile().map_err(during("compile the system call filter of a device"))?;
    seccomp::load(&program).map_err(during("load the system call filter of a device"))?;
    Ok(Inside { roots, unknown, descriptors: usize::try_from(nofile).unwrap_or(usize::MAX) })
}

/// Makes a root directory that holds the given ones and nothing else.
fn new_root(dirs: &[(&str, &Path)]) -> Result<Vec<OwnedFd>, ServeError> {
    let during = |step| move |source: io::Error| ServeError::Wall { step, source };
    let open = |dir: &OwnedFd, path: &str| {
        openat(dir, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(io::Error::from)
    };
    let shut = Attributes { read_only: true, no_suid: true, no_dev: true, no_exec: true };
    let mut trees = Vec::new();
    for (name, dir) in dirs {
        let export = |source| ServeError::Export { name: (*name).to_owned(), source };
        let tree = mount::clone_tree(dir).map_err(export)?;
        mount::set_attributes(&tree, shut, true).map_err(export)?;
        trees.push(tree);
    }
    let make = || -> io::Result<OwnedFd> {
        let memory = Filesystem::new("tmpfs")?;
        for (key, value) in [("size", "64k"), ("nr_inodes", "1024"), ("mode", "555")] {
            memory.set(key, value)?;
        }
        let root = memory.mount(Attributes { read_only: false, ..shut })?;
        let old = openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        mount::attach(&root, &old)?;
        for (number, tree) in trees.iter().enumerate() {
            let name = number.to_string();
            rustix::fs::mkdirat(&root, &name, Mode::from_raw_mode(0o555))?;
            mount::attach(tree, open(&root, &name)?)?;
        }
        mount::set_attributes(&root, shut, false)?;
        mount::pivot_to(&root)?;
        Ok(root)
    };
    let root = make().map_err(during("build the root directory of a device"))?;
    let mut roots = Vec::new();
    for (number, (name, _)) in dirs.iter().enumerate() {
        let open = open(&root, &number.to_string());
        roots.push(open.map_err(|source| ServeError::Export { name: (*name).to_owned(), source })?);
    }
    Ok(roots)
}

/// Returns how many descriptors there may be.
fn limits() -> io::Result<u64> {
    let now = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let nofile = now.maximum.unwrap_or(DESCRIPTORS).min(DESCRIPTORS);
    for (what, most) in [
        (resource::NOFILE, nofile),
        (resource::CORE, 0),
        (resource::FSIZE, 0),
        (resource::MEMLOCK, 0),
        (resource::MSGQUEUE, 0),
        (resource::DATA, MEMORY),
    ] {
        namespace::limit(what, Some(most), Some(most))?;
    }
    Ok(nofile)
}

/// Calls of both devices: memory, threads, events, the VMM's socket.
const COMMON: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_accept4,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_fcntl,
];

/// Calls of the file server besides.
pub const FILES: &[i64] = &[
    libc::SYS_openat2,
    libc::SYS_statx,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_fstatfs,
];

/// Calls of vsock besides.
pub const SOCKETS: &[i64] = &[libc::SYS_connect];

/// What a device may ask of the kernel; everything else is refused with `EPERM`.
fn policy(calls: &[i64]) -> Policy {
    const EPERM: Answer = Answer::Errno(libc::EPERM as u16);
    let number = |nr: i64| u32::try_from(nr).unwrap_or(u32::MAX);
    let plain = |nr, answer| Rule { nr: number(nr), tests: vec![], answer };
    let unless = |nr, arg, mask: i32, values: &[i32]| {
        let values = values.iter().map(|value| *value as u32).collect();
        Rule { nr: number(nr), tests: vec![Test { arg, mask: mask as u32, values, among: false }], answer: EPERM }
    };
    let mut rules: Vec<Rule> = COMMON.iter().chain(calls).map(|nr| plain(*nr, Answer::Allow)).collect();
    #[cfg(target_arch = "x86_64")]
    rules.push(plain(libc::SYS_epoll_wait, Answer::Allow));
    // The C library then calls `clone`, whose flags can be read: threads only.
    rules.push(plain(libc::SYS_clone3, Answer::Errno(libc::ENOSYS as u16)));
    rules.push(unless(libc::SYS_clone, 0, libc::CLONE_THREAD | libc::CLONE_NEWUSER, &[libc::CLONE_THREAD]));
    // Nothing becomes code.
    rules.push(unless(libc::SYS_mmap, 2, libc::PROT_EXEC, &[0]));
    rules.push(unless(libc::SYS_mprotect, 2, libc::PROT_EXEC, &[0]));
    // Only for reading, as the mounts say too.
    rules.push(unless(libc::SYS_openat, 2, libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC, &[0]));
    rules.push(unless(libc::SYS_socket, 0, -1, &[libc::AF_UNIX]));
    rules.push(unless(libc::SYS_ioctl, 1, -1, &[libc::FIONBIO as i32]));
    rules.push(unless(libc::SYS_prctl, 0, -1, &[libc::PR_SET_NAME]));
    // For abort(3): a signal to itself.
    rules.push(unless(libc::SYS_tgkill, 2, -1, &[libc::SIGABRT]));
    Policy { arch: NATIVE_ARCH, ceiling: seccomp::X32_BIT - 1, rules, otherwise: EPERM }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_device_needs_is_allowed() {
        for calls in [FILES, SOCKETS] {
            let policy = policy(calls);
            let program = policy.compile().unwrap();
            let says = |nr: i64, args: [u64; 3]| {
                let args = [args[0], args[1], args[2], 0, 0, 0];
                let answer = policy.decide(NATIVE_ARCH, nr as u32, &args);
                assert_eq!(program.run(NATIVE_ARCH, nr as u32, &args), Some(answer.raw()), "{nr}");
                answer == Answer::Allow
            };
            for nr in [
                libc::SYS_execve,
                libc::SYS_fork,
                libc::SYS_ptrace,
                libc::SYS_kill,
                libc::SYS_mount,
                libc::SYS_unshare,
                libc::SYS_setns,
                libc::SYS_bpf,
                libc::SYS_io_uring_setup,
                libc::SYS_mkdirat,
                libc::SYS_unlinkat,
                libc::SYS_renameat2,
                libc::SYS_ftruncate,
                libc::SYS_fchmod,
                libc::SYS_fsetxattr,
                libc::SYS_pwrite64,
                libc::SYS_bind,
                libc::SYS_process_vm_readv,
                libc::SYS_setuid,
                libc::SYS_clone3,
            ] {
                assert!(!says(nr, [0; 3]), "{nr}");
            }
            assert!(!says(libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0]), "a process");
            assert!(says(libc::SYS_clone, [libc::CLONE_THREAD as u64 | libc::CLONE_VM as u64, 0, 0]), "a thread");
            assert!(!says(libc::SYS_mmap, [0, 0, libc::PROT_EXEC as u64]));
            assert!(!says(libc::SYS_mprotect, [0, 0, libc::PROT_EXEC as u64 | libc::PROT_READ as u64]));
            assert!(says(libc::SYS_mmap, [0, 0, libc::PROT_READ as u64 | libc::PROT_WRITE as u64]));
            assert!(!says(libc::SYS_openat, [0, 0, libc::O_RDWR as u64]));
            assert!(!says(libc::SYS_openat, [0, 0, libc::O_CREAT as u64]));
            assert!(!says(libc::SYS_socket, [libc::AF_INET as u64, 0, 0]));
            assert!(says(libc::SYS_socket, [libc::AF_UNIX as u64, 0, 0]));
        }
        let connects = |calls| policy(calls).decide(NATIVE_ARCH, libc::SYS_connect as u32, &[0; 6]);
        assert_eq!((connects(FILES), connects(SOCKETS)), (Answer::Errno(libc::EPERM as u16), Answer::Allow));
    }
}
