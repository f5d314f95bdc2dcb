//! Capabilities, securebits and no_new_privs.
//!
//! ```text
//!   all capabilities ──keep_only_ambient(set)──► set   ──drop_all()──► none
//!   of a new user ns   (bounding set empty,      (survives
//!                       securebits locked)        one exec)
//! ```

use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_capabilities_secure_bits,
};
use std::io;

/// CAP_SYS_PTRACE: to read the memory of other processes of the same user namespace.
pub const SYS_PTRACE: CapabilitySet = CapabilitySet::SYS_PTRACE;

/// Reduces the calling thread to `keep`, which survives an exec as ambient capabilities while nothing
/// else can come back: the bounding set is emptied and the securebits are locked.
/// With the empty set this is the same as dropping all and locking the door.
///
/// Needs CAP_SETPCAP, which is gone afterwards unless kept.
pub fn keep_only_ambient(keep: CapabilitySet) -> io::Result<()> {
    let now = capabilities(None)?;
    // Inheritable first: ambient may only hold what is permitted and inheritable.
    set_capabilities(None, CapabilitySets { inheritable: keep, ..now })?;
    clear_ambient_capability_set()?;
    for one in keep.iter() {
        configure_capability_in_ambient_set(one, true)?;
    }
    drop_bounding()?;
    lock_securebits()?;
    set_capabilities(None, CapabilitySets { effective: keep, permitted: keep, inheritable: keep })?;
    Ok(())
}

/// Takes every capability from the calling thread: effective, permitted, inheritable, ambient, and
/// what is left of the bounding set if it still may. What [`keep_only_ambient`] did needs no privilege here.
pub fn drop_all() -> io::Result<()> {
    if capabilities(None)?.effective.contains(CapabilitySet::SETPCAP) {
        drop_bounding()?;
    }
    clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    Ok(())
}

/// Sets and locks `NOROOT`, `NO_SETUID_FIXUP` and `NO_CAP_AMBIENT_RAISE`, and locks `KEEP_CAPS` off:
/// uid 0 is nothing special any more, and no capability can be gained by an exec. Needs CAP_SETPCAP.
pub fn lock_securebits() -> io::Result<()> {
    let bits = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_SETUID_FIXUP
        | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
        | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    set_capabilities_secure_bits(bits)?;
    Ok(())
}

/// Sets `no_new_privs`: no exec of the calling thread and its children gains anything from a file.
pub fn no_new_privs() -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

fn drop_bounding() -> io::Result<()> {
    for number in 0..64 {
        let Some(one) = CapabilitySet::from_bits(1 << number) else { break };
        match remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            // Past the last capability that this kernel knows.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    /// What `/proc/self/status` says of a shell that is started after `prepare`.
    fn status_after(prepare: impl FnMut() -> io::Result<()> + Send + Sync + 'static) -> String {
        let mut command = Command::new("/bin/grep");
        command.args(["-E", "^(Cap|NoNew)", "/proc/self/status"]);
        // SAFETY: between fork and exec only system calls are made.
        unsafe { command.pre_exec(prepare) };
        let output = command.output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[test]
    fn nothing_is_left_after_drop_all() {
        let status = status_after(|| {
            no_new_privs()?;
            drop_all()
        });
        assert!(status.contains("CapPrm:\t0000000000000000"), "{status}");
        assert!(status.contains("CapAmb:\t0000000000000000"), "{status}");
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    }

    #[test]
    fn one_capability_survives_an_exec_and_no_other() {
        let status = status_after(|| {
            if !rustix::process::geteuid().is_root() {
                // SAFETY: a new user namespace leaves the descriptor table alone.
                unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWUSER)? };
            }
            keep_only_ambient(SYS_PTRACE)
        });
        let ptrace = "0000000000080000";
        for set in ["Inh", "Prm", "Eff", "Amb"] {
            assert!(status.contains(&format!("Cap{set}:\t{ptrace}")), "{status}");
        }
        assert!(status.contains("CapBnd:\t0000000000000000"), "{status}");
    }
}
