//! Landlock: a second wall around files, that holds even where a mount was forgotten.
//!
//! ```text
//!   abi() ─► Ruleset::new(abi) ─► allow(directory, rights)… ─► enforce(): for ever, for all that is started
//! ```
//! What is handled and not allowed is refused with `EACCES`. On ABI 1 every rename across directories would be
//! refused with `EXDEV`, so it is not used there.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// The lowest ABI under which a file can be renamed into another directory.
pub const FIRST_USABLE: u32 = 2;

/// The highest ABI whose rights were reviewed; a newer kernel is used as if it were this one.
const LAST_REVIEWED: u32 = 7;

const EXECUTE: u64 = 1;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const MAKE_CHAR: u64 = 1 << 6;
const MAKE_BLOCK: u64 = 1 << 11;
/// Rights of ABI 1: everything up to MAKE_SYM.
const ABI_1: u64 = (1 << 13) - 1;
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;

/// What may be done below a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Read and execute.
    Read,
    /// Read, execute, and write files that are there already.
    ReadWriteFiles,
    /// As `ReadWriteFiles`, and the requests of devices.
    Devices,
    /// Everything but making device nodes.
    All,
}

impl Rights {
    fn bits(self) -> u64 {
        let read = EXECUTE | READ_FILE | READ_DIR;
        match self {
            Self::Read => read,
            Self::ReadWriteFiles => read | WRITE_FILE | TRUNCATE,
            Self::Devices => read | WRITE_FILE | TRUNCATE | IOCTL_DEV,
            Self::All => (ABI_1 | REFER | TRUNCATE | IOCTL_DEV) & !(MAKE_CHAR | MAKE_BLOCK),
        }
    }
}

/// `struct landlock_ruleset_attr` up to ABI 6.
#[repr(C)]
struct RulesetAttr {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`, which is packed.
#[repr(C, packed)]
struct PathBeneath {
    allowed_access: u64,
    parent_fd: i32,
}

/// Returns the ABI of this kernel, 0 when it has no Landlock or it is switched off.
pub fn abi() -> u32 {
    const VERSION: libc::c_uint = 1;
    // SAFETY: with the version flag the kernel wants a null pointer and size 0, and reads nothing.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<RulesetAttr>(), 0usize, VERSION) };
    u32::try_from(version).unwrap_or(0)
}

/// Returns the ABI that is used on a kernel of this one.
pub fn effective(abi: u32) -> u32 {
    abi.min(LAST_REVIEWED)
}

/// Rules that are being collected.
#[derive(Debug)]
pub struct Ruleset {
    fd: OwnedFd,
    handled: u64,
}

impl Ruleset {
    /// Opens a ruleset that handles all that `abi` knows: every right over files, and from ABI 6 signals and
    /// abstract sockets of what is outside.
    pub fn new(abi: u32) -> io::Result<Self> {
        let abi = effective(abi);
        let mut handled = ABI_1;
        for (since, right) in [(2, REFER), (3, TRUNCATE), (5, IOCTL_DEV)] {
            if abi >= since {
                handled |= right;
            }
        }
        let attr =
            RulesetAttr { handled_access_fs: handled, handled_access_net: 0, scoped: if abi >= 6 { 3 } else { 0 } };
        // An older kernel refuses a structure that is longer than its own, unless the rest is zero.
        let size = size_of::<RulesetAttr>();
        // SAFETY: `attr` has the size that is passed and lives over the call.
        let fd = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attr, size, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the result is a new descriptor that nobody else has; it is close-on-exec.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd as i32) }, handled })
    }

    /// Allows `rights` for what `directory` (opened with `O_PATH`) names and all below it.
    pub fn allow(&self, directory: impl AsFd, rights: Rights) -> io::Result<()> {
        const PATH_BENEATH: libc::c_int = 1;
        let directory = directory.as_fd();
        let attr = PathBeneath { allowed_access: rights.bits() & self.handled, parent_fd: directory.as_raw_fd() };
        // SAFETY: `attr` is the structure of this rule type and lives over the call, as does the descriptor in it.
        let result = unsafe {
            libc::syscall(libc::SYS_landlock_add_rule, self.fd.as_raw_fd(), PATH_BENEATH, &raw const attr, 0)
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Puts the rules on the calling thread and all that it starts, for ever. Needs `no_new_privs`.
    pub fn enforce(self) -> io::Result<()> {
        // SAFETY: takes the descriptor of a ruleset and no flags.
        let result = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, self.fd.as_raw_fd(), 0) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags, open};
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    #[test]
    fn rights_grow() {
        assert_eq!(Rights::Read.bits() & !Rights::ReadWriteFiles.bits(), 0);
        assert_eq!(Rights::ReadWriteFiles.bits() & !Rights::Devices.bits(), 0);
        assert_eq!(Rights::Devices.bits() & !Rights::All.bits(), 0);
        assert_eq!(Rights::All.bits() & (MAKE_CHAR | MAKE_BLOCK), 0);
    }

    #[test]
    fn what_is_not_allowed_is_refused() {
        if abi() < FIRST_USABLE {
            return assert_eq!(Ruleset::new(1).is_err(), abi() == 0);
        }
        let dir = tempfile::tempdir().unwrap();
        for name in ["open/one", "open/two", "shut"] {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        let mut command = Command::new("/bin/sh");
        let script =
            "echo a > open/one/f && mv open/one/f open/two/g && ! echo b 2>/dev/null > shut/f && cat open/two/g";
        command.args(["-c", script]).current_dir(dir.path());
        let opened = dir.path().join("open");
        // SAFETY: between fork and exec only system calls are made, and no other thread's lock is needed.
        unsafe {
            command.pre_exec(move || {
                let rules = Ruleset::new(abi())?;
                rules.allow(open("/", OFlags::PATH, Mode::empty())?, Rights::Read)?;
                rules.allow(open("/dev", OFlags::PATH, Mode::empty())?, Rights::Devices)?;
                rules.allow(open(&opened, OFlags::PATH, Mode::empty())?, Rights::All)?;
                rustix::thread::set_no_new_privs(true)?;
                rules.enforce()
            })
        };
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(output.stdout, b"a\n");
        assert!(!dir.path().join("shut/f").exists());
    }
}
