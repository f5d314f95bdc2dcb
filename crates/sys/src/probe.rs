//! System calls that are tried in order to be refused: with arguments that make the kernel fail
//! harmlessly where nothing refuses them before it looks at them.

use rustix::io::Errno;
use std::io;

/// A call, and how it is made so that it does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its name, and what of its arguments matters.
    pub name: &'static str,
    number: i64,
    args: [i64; 3],
}

const fn call(name: &'static str, number: i64, args: [i64; 3]) -> Call {
    Call { name, number, args }
}

/// `CLONE_NEWUSER | CLONE_FS`: a combination that the kernel itself never accepts.
const NEW_USER: i64 = 0x1000_0000 | 0x200;
const TIOCSTI: i64 = 0x5412;

/// What no program inside a sandbox may do. A bad descriptor is -1, a bad address 0, a bad flag all bits.
pub const FORBIDDEN: &[Call] = &[
    call("unshare", libc::SYS_unshare, [1, 0, 0]),
    call("clone (user namespace)", libc::SYS_clone, [NEW_USER, 0, 0]),
    call("clone3", libc::SYS_clone3, [0, 0, 0]),
    call("setns", libc::SYS_setns, [-1, 0, 0]),
    call("mount", libc::SYS_mount, [0, 0, 0]),
    call("umount2", libc::SYS_umount2, [0, -1, 0]),
    call("pivot_root", libc::SYS_pivot_root, [0, 0, 0]),
    call("open_tree", libc::SYS_open_tree, [-1, 0, -1]),
    call("move_mount", libc::SYS_move_mount, [-1, 0, -1]),
    call("fsopen", libc::SYS_fsopen, [0, -1, 0]),
    call("mount_setattr", libc::SYS_mount_setattr, [-1, 0, -1]),
    call("bpf", libc::SYS_bpf, [-1, 0, 0]),
    call("perf_event_open", libc::SYS_perf_event_open, [0, -1, -1]),
    call("userfaultfd", libc::SYS_userfaultfd, [-1, 0, 0]),
    call("io_uring_setup", libc::SYS_io_uring_setup, [0, 0, 0]),
    call("init_module", libc::SYS_init_module, [0, 0, 0]),
    call("finit_module", libc::SYS_finit_module, [-1, 0, 0]),
    call("kexec_load", libc::SYS_kexec_load, [-1, -1, 0]),
    call("reboot", libc::SYS_reboot, [0, 0, 0]),
    call("add_key", libc::SYS_add_key, [0, 0, 0]),
    call("request_key", libc::SYS_request_key, [0, 0, 0]),
    call("keyctl", libc::SYS_keyctl, [-1, 0, 0]),
    call("name_to_handle_at", libc::SYS_name_to_handle_at, [-1, 0, 0]),
    call("open_by_handle_at", libc::SYS_open_by_handle_at, [-1, 0, 0]),
    call("fanotify_init", libc::SYS_fanotify_init, [-1, 0, 0]),
    call("process_vm_readv", libc::SYS_process_vm_readv, [-1, 0, 0]),
    call("pidfd_getfd", libc::SYS_pidfd_getfd, [-1, -1, 0]),
    call("ioctl (TIOCSTI)", libc::SYS_ioctl, [-1, TIOCSTI, 0]),
    call("ioctl (TIOCSTI with a high bit)", libc::SYS_ioctl, [-1, 1 << 32 | TIOCSTI, 0]),
    call("a call that nobody has reviewed", 600, [0, 0, 0]),
];

impl Call {
    /// Makes the call and returns the error that came of it; `None` when it succeeded.
    pub fn attempt(&self) -> Option<io::Error> {
        let [a, b, c] = self.args;
        // SAFETY: every address among the arguments is null and every length behind one is 0, so that the
        // kernel reads and writes no memory of ours; no descriptor is valid; and no call of the table ends or
        // duplicates this process with these flags.
        let result = unsafe { libc::syscall(self.number, a, b, c, 0i64, 0i64, 0i64) };
        (result < 0).then(io::Error::last_os_error)
    }
}

/// Whether an error says that something was refused, and not that it was tried and found wanting.
pub fn is_refusal(error: &io::Error) -> bool {
    let refusals = [Errno::PERM, Errno::ACCESS, Errno::NOSYS, Errno::AFNOSUPPORT, Errno::PROTONOSUPPORT];
    Errno::from_io_error(error).is_some_and(|errno| refusals.contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The control: where nothing refuses them, they fail for their arguments. (Some need a capability
    /// that an ordinary user has not: those are refused here too.)
    #[test]
    fn the_calls_do_nothing_and_are_not_refused_outside() {
        let not_refused = |name: &str| {
            let call = FORBIDDEN.iter().find(|call| call.name == name).unwrap();
            let error = call.attempt().expect("it cannot succeed");
            assert!(!is_refusal(&error), "{name}: {error}");
        };
        for name in ["unshare", "clone (user namespace)", "setns", "fsopen", "ioctl (TIOCSTI)", "keyctl"] {
            if name == "fsopen" && !rustix::process::geteuid().is_root() {
                continue;
            }
            not_refused(name);
        }
        let unknown = FORBIDDEN.last().unwrap().attempt().unwrap();
        assert_eq!(unknown.raw_os_error(), Some(libc::ENOSYS));
    }
}
