//! A kernel for guests out of the distribution's own package, without root: downloaded by the system's package
//! manager, which checks its signature, and unpacked below the cache instead of being installed.
//!
//! ```text
//! CACHE/kernels/<package>/boot/vmlinuz-<version>
//!                        /lib/modules/<version>/…
//! ```

use super::accel::last_line;
use sandbox_core::driver::Check;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Packages that bring a kernel for virtual machines, the smallest first. They are empty: each depends on the one
/// that has it now.
const DEBIAN: [&str; 4] = ["linux-image-cloud-amd64", "linux-image-virtual", "linux-image-kvm", "linux-image-amd64"];

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// No package manager that is known here.
    #[error("there is no apt-get here, the one package manager that guest kernels are taken from")]
    NoManager,
    /// The lists of packages know none.
    #[error("apt-get knows no package of a kernel for virtual machines")]
    NoPackage,
    /// A command failed.
    #[error("`{command}` failed: {said}")]
    Command {
        /// Its program and first words.
        command: String,
        /// Its last line.
        said: String,
    },
    /// What the package has is no kernel.
    #[error("'{package}' has no kernel image")]
    NoImage {
        /// Which.
        package: String,
    },
    /// A file.
    #[error("cannot {action} '{path}'", path = path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

type Result<T> = std::result::Result<T, PackageError>;

fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PackageError {
    let path = path.to_owned();
    move |source| PackageError::Io { action, path, source }
}

/// Downloads and unpacks the newest kernel for guests; returns its image. One that is there already is returned
/// as it is.
pub fn unpack(cache: &Path) -> Result<PathBuf> {
    if !program("apt-get") || !program("dpkg-deb") {
        return Err(PackageError::NoManager);
    }
    let image = DEBIAN.iter().find_map(|meta| image_package(&depends(meta)?)).ok_or(PackageError::NoPackage)?;
    let target = cache.join("kernels").join(&image);
    if let Some(found) = kernel_in(&target) {
        return Ok(found);
    }
    // Ubuntu has the modules in a package beside.
    let modules = depends(&image).and_then(|text| modules_package(&text));
    let work = cache.join("kernels").join(format!(".{image}.{}", std::process::id()));
    fs::create_dir_all(&work).map_err(io("create", &work))?;
    let made = fill(&work, &image, modules.as_deref());
    let placed = made.and_then(|()| {
        kernel_in(&work.join("root")).ok_or_else(|| PackageError::NoImage { package: image.clone() })?;
        match fs::rename(work.join("root"), &target) {
            // Another one was faster.
            Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => Err(io("create", &target)(error)),
            _ => Ok(()),
        }
    });
    let _ = fs::remove_dir_all(&work);
    placed?;
    kernel_in(&target).ok_or(PackageError::NoImage { package: image })
}

/// What `doctor` says when there is none, and how to get one.
pub fn fix(mut check: Check) -> Check {
    check.fix = Some(match program("apt-get") {
        true => {
            "git sandbox doctor --fix   # unpacks the distribution's kernel for virtual machines, without root".into()
        }
        false => "install a kernel of the distribution, or set sandbox.vm.kernel".into(),
    });
    check
}

fn fill(work: &Path, image: &str, modules: Option<&str>) -> Result<()> {
    let mut download = Command::new("apt-get");
    download.current_dir(work).args(["-qq", "-o", "Acquire::http::Timeout=30", "download", image]).args(modules);
    run(download)?;
    let root = work.join("root");
    let packages = fs::read_dir(work).map_err(io("read", work))?.flatten().map(|entry| entry.path());
    for package in packages.filter(|path| path.extension() == Some(OsStr::new("deb"))) {
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("-x").arg(package).arg(&root);
        run(unpack)?;
    }
    // Documentation, and what only a debugger wants.
    let _ = fs::remove_dir_all(root.join("usr/share"));
    for map in entries(&root.join("boot")).filter(|path| !is_image(path)) {
        let _ = fs::remove_file(map);
    }
    Ok(())
}

fn kernel_in(root: &Path) -> Option<PathBuf> {
    entries(&root.join("boot")).find(|path| is_image(path))
}

fn is_image(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"vmlinuz-"))
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn program(name: &str) -> bool {
    ["/usr/bin", "/bin", "/usr/sbin", "/sbin"].iter().any(|dir| Path::new(dir).join(name).is_file())
}

/// What `apt-cache depends` says of a package that the lists know.
fn depends(package: &str) -> Option<String> {
    let out = Command::new("apt-cache")
        .args(["depends", "--no-recommends", "--no-suggests", package])
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).into_owned())
}

/// The package of an image that another depends on.
fn image_package(depends: &str) -> Option<String> {
    named(depends, "linux-image-")
}

/// The package of modules that an image depends on.
fn modules_package(depends: &str) -> Option<String> {
    named(depends, "linux-modules-")
}

fn named(depends: &str, prefix: &str) -> Option<String> {
    let words = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    // With a version in it: an empty package may depend on another empty one.
    let version =
        |name: &&str| name.starts_with(prefix) && name[prefix.len()..].starts_with(|c: char| c.is_ascii_digit());
    words.map(str::trim).find(version).map(str::to_owned)
}

fn run(mut command: Command) -> Result<()> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let shown: Vec<String> = words.take(2).map(|word| word.to_string_lossy().into_owned()).collect();
    let out = command.env("LC_ALL", "C").stdin(Stdio::null()).output();
    let said = match out {
        Ok(out) if out.status.success() => return Ok(()),
        Ok(out) => last_line(&out.stderr),
        Err(error) => error.to_string(),
    };
    Err(PackageError::Command { command: shown.join(" "), said })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_found_in_what_others_depend_on() {
        let debian = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-48-cloud-amd64\n";
        assert_eq!(image_package(debian).as_deref(), Some("linux-image-6.1.0-48-cloud-amd64"));
        assert_eq!(modules_package("x\n  Depends: kmod\n |Depends: linux-base\n"), None);
        let ubuntu = "linux-image-6.8.0-60-generic\n  Depends: kmod\n  Depends: linux-modules-6.8.0-60-generic\n";
        assert_eq!(modules_package(ubuntu).as_deref(), Some("linux-modules-6.8.0-60-generic"));
        assert_eq!(image_package("linux-image-virtual\n  Depends: linux-image-generic\n"), None);
    }

    #[test]
    fn a_command_that_fails_says_why() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo 'E: no such \x1bpackage' >&2; echo >&2; exit 100"]);
        let error = run(command).unwrap_err().to_string();
        assert_eq!(error, "`/bin/sh -c` failed: E: no such package");
    }

    #[test]
    fn why_there_is_none() {
        let said = |error: PackageError| error.to_string();
        assert_eq!(
            said(PackageError::NoManager),
            "there is no apt-get here, the one package manager that guest kernels are taken from"
        );
        assert_eq!(said(PackageError::NoPackage), "apt-get knows no package of a kernel for virtual machines");
        assert_eq!(said(PackageError::NoImage { package: "p".into() }), "'p' has no kernel image");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kernels");
        fs::write(&file, "").unwrap();
        let source = fs::create_dir_all(file.join("x")).unwrap_err();
        assert_eq!(said(io("create", Path::new("/k"))(source)), "cannot create '/k'");
    }

    #[test]
    fn one_that_is_there_is_found() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(kernel_in(dir.path()), None);
        let image = dir.path().join("boot/vmlinuz-6.1.0");
        fs::create_dir(dir.path().join("boot")).unwrap();
        fs::write(dir.path().join("boot/config-6.1.0"), "").unwrap();
        fs::write(&image, "").unwrap();
        assert_eq!(kernel_in(dir.path()), Some(image));
    }
}
