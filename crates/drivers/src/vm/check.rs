//! What guests need of this machine: the lines of `doctor`.

use super::{accel, disk, kernel, kernel_package};
use sandbox_core::driver::{Check, Verdict};
use sandbox_core::launch::VmSettings;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// QEMU, the file systems' tool, the kernel and what runs its instructions.
pub fn checks(settings: &VmSettings, qemu: Option<&Path>) -> Vec<Check> {
    let kernel = kernel::find(settings.kernel.as_deref(), &settings.cache, Path::new("/"));
    let mut checks = vec![
        machine(qemu),
        match disk::program() {
            Some(path) => check("mke2fs", Verdict::Ok, path.display().to_string()),
            None => Check {
                fix: Some(install(&os_release(), "e2fsprogs", "e2fsprogs")),
                ..check("mke2fs", Verdict::Missing, "it makes the disks of guests, and is not here".into())
            },
        },
        match &kernel {
            Ok(kernel) => {
                check("guest-kernel", Verdict::Ok, format!("{} ('{}')", kernel.version, kernel.image.display()))
            }
            Err(error) => kernel_package::fix(check("guest-kernel", Verdict::Missing, error.to_string())),
        },
    ];
    if let (Some(qemu), Ok(kernel)) = (qemu, &kernel) {
        checks.push(accel::check(settings.accel, &settings.cache, qemu, &kernel.image));
    }
    checks
}

fn check(name: &str, verdict: Verdict, found: String) -> Check {
    Check { name: name.into(), verdict, found, fix: None }
}

fn machine(qemu: Option<&Path>) -> Check {
    let Some(qemu) = qemu else {
        return Check {
            fix: Some(install(&os_release(), "qemu-system-x86", "qemu-system-x86-core")),
            ..check("qemu", Verdict::Missing, "there is no QEMU for this processor".into())
        };
    };
    let out = Command::new(qemu).arg("--version").stdin(Stdio::null()).output();
    match out {
        Ok(out) if out.status.success() => {
            check("qemu", Verdict::Ok, accel::last_line(out.stdout.split(|byte| *byte == b'\n').next().unwrap_or(b"")))
        }
        Ok(out) => check("qemu", Verdict::Missing, format!("'{}' ends with {}", qemu.display(), out.status)),
        Err(error) => check("qemu", Verdict::Missing, format!("'{}': {error}", qemu.display())),
    }
}

fn os_release() -> String {
    fs::read_to_string("/etc/os-release").unwrap_or_default()
}

/// The command that installs a package, by the distribution (os-release(5)): of Debian's kin, of Fedora's.
fn install(os_release: &str, debian: &str, fedora: &str) -> String {
    let words: Vec<&str> = os_release
        .lines()
        .filter_map(|line| line.strip_prefix("ID=").or_else(|| line.strip_prefix("ID_LIKE=")))
        .flat_map(|value| value.trim_matches('"').split(' '))
        .collect();
    let is = |names: &[&str]| words.iter().any(|word| names.contains(word));
    if is(&["debian", "ubuntu"]) {
        format!("sudo apt install {debian}")
    } else if is(&["fedora", "rhel", "centos"]) {
        format!("sudo dnf install {fedora}")
    } else if is(&["arch"]) {
        format!("sudo pacman -S {debian}")
    } else {
        format!("install {debian} (or what your distribution calls it)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_distribution_has_its_command() {
        let command = |text: &str| install(text, "qemu-system-x86", "qemu-system-x86-core");
        assert_eq!(command("NAME=x\nID=debian\n"), "sudo apt install qemu-system-x86");
        assert_eq!(command("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"), "sudo apt install qemu-system-x86");
        assert_eq!(command("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n"), "sudo dnf install qemu-system-x86-core");
        assert_eq!(command("ID=arch\n"), "sudo pacman -S qemu-system-x86");
        assert_eq!(command(""), "install qemu-system-x86 (or what your distribution calls it)");
    }

    #[test]
    fn what_is_missing_is_said() {
        let seen = machine(None);
        assert_eq!((seen.verdict, seen.found.as_str()), (Verdict::Missing, "there is no QEMU for this processor"));
        let seen = machine(Some(Path::new("/bin/false")));
        assert_eq!(seen.found, "'/bin/false' ends with exit status: 1");
        assert!(machine(Some(Path::new("/no/qemu"))).found.starts_with("'/no/qemu': No such file"));
    }
}
