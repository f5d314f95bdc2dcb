//! The first files of a guest: this program as its first process, and the modules that it loads.
//!
//! ```text
//!   /git-sandbox-guest      this program (static: there is no libc beside it)
//!   /modules/00-NAME …      in the order to load them
//!   /dev/console            what the kernel opens for the first process
//! ```
//! Built once for each program and kernel, and kept in the cache under a name that stands for both.

use super::cpio::Archive;
use super::kernel::{GuestKernel, WANTED, WELCOME};
use super::modules::{ModuleError, Modules};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What this program is called as the first process of a guest: how it knows that it is one.
pub const GUEST_ARGV0: &str = "git-sandbox-guest";

/// Changes when what is put in changes.
const FORMAT: u32 = 1;

/// Why there is no initramfs.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// The program needs libraries that a guest has not got at its start.
    #[error("'{program}' is linked dynamically, and cannot be the first process of a guest", program = program.display())]
    Dynamic {
        /// Which program.
        program: PathBuf,
    },
    /// The modules.
    #[error(transparent)]
    Modules(#[from] ModuleError),
    /// A file could not be read or written.
    #[error("cannot {action} '{path}'", path = path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

fn during(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InitramfsError {
    let path = path.to_owned();
    move |source| InitramfsError::Io { action, path, source }
}

/// Returns the initramfs of this program for this kernel, built if it is not in `cache` yet.
pub fn ensure(program: &Path, kernel: &GuestKernel, cache: &Path) -> Result<PathBuf, InitramfsError> {
    if is_dynamic(program).map_err(during("read", program))? {
        return Err(InitramfsError::Dynamic { program: program.to_owned() });
    }
    let dir = cache.join("initramfs");
    let path = dir.join(format!("{}.cpio", key(program, kernel)?));
    if path.is_file() {
        return Ok(path);
    }
    fs::create_dir_all(&dir).map_err(during("create", &dir))?;
    let modules = Modules::open(&kernel.modules)?.in_order(WANTED, WELCOME)?;
    let temporary = dir.join(format!(".{}.tmp", std::process::id()));
    let write = || -> io::Result<()> {
        let mut archive = Archive::new(BufWriter::new(File::create(&temporary)?));
        archive.directory("dev", 0o755)?;
        archive.device("dev/console", 0o600, (5, 1))?;
        archive.directory("modules", 0o755)?;
        for (n, module) in modules.iter().enumerate() {
            let name = format!("modules/{n:02}-{}", module.name);
            archive.file(&name, 0o644, module.contents.len() as u64, &*module.contents)?;
        }
        let file = File::open(program)?;
        archive.file(GUEST_ARGV0, 0o755, file.metadata()?.len(), file)?;
        archive.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&temporary, &path)
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&temporary);
        during("write", &path)(source)
    })?;
    Ok(path)
}

/// A name for a program and a kernel. By what the kernel of the host says of the files, not by reading them: they
/// have some fifty megabytes, and each start asks.
fn key(program: &Path, kernel: &GuestKernel) -> Result<String, InitramfsError> {
    let mut sum = Sha256::new();
    sum.update(format!("{FORMAT} {WANTED:?} {WELCOME:?} {}\n", kernel.version));
    for path in [program, &kernel.image, &kernel.modules.join("modules.order")] {
        let facts = fs::metadata(path).map_err(during("look at", path))?;
        let (changed, nanos) = (facts.ctime(), facts.ctime_nsec());
        sum.update(format!("{} {} {} {changed}.{nanos}\n", facts.dev(), facts.ino(), facts.len()));
    }
    Ok(sum.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Returns whether an ELF program names an interpreter (PT_INTERP, the dynamic linker).
fn is_dynamic(program: &Path) -> io::Result<bool> {
    let mut file = File::open(program)?;
    let mut head = [0u8; 64];
    file.read_exact(&mut head)?;
    if &head[..5] != b"\x7fELF\x02" {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a 64-bit ELF program"));
    }
    let half = |at: usize| u64::from(u16::from_le_bytes([head[at], head[at + 1]]));
    let table = u64::from_le_bytes(head[32..40].try_into().unwrap_or_default());
    let (size, count) = (half(54), half(56));
    for n in 0..count {
        let mut kind = [0u8; 4];
        file.read_exact_at(&mut kind, table + n * size)?;
        if u32::from_le_bytes(kind) == 3 {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(dir: &Path) -> GuestKernel {
        let modules = dir.join("lib/modules/1");
        fs::create_dir_all(&modules).unwrap();
        fs::write(modules.join("modules.order"), "kernel/fuse.ko\n").unwrap();
        fs::write(modules.join("fuse.ko"), "").unwrap();
        fs::create_dir(modules.join("kernel")).unwrap();
        fs::write(modules.join("kernel/fuse.ko"), b"x\0depends=\0").unwrap();
        let builtin: String =
            WANTED.iter().filter(|name| **name != "fuse").map(|name| format!("kernel/{name}.ko\n")).collect();
        fs::write(modules.join("modules.builtin"), builtin).unwrap();
        fs::write(dir.join("vmlinuz"), "").unwrap();
        GuestKernel { image: dir.join("vmlinuz"), modules, version: "1".into() }
    }

    #[test]
    fn it_is_built_once() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = kernel(dir.path());
        let program = std::env::current_exe().unwrap();
        let path = ensure(&program, &kernel, dir.path()).unwrap();
        let bytes = fs::read(&path).unwrap();
        let has = |name: &[u8]| bytes.windows(name.len()).any(|window| window == name);
        assert!(has(b"git-sandbox-guest\0") && has(b"modules/00-fuse\0") && has(b"dev/console\0"));
        let made = fs::metadata(&path).unwrap().ino();
        assert_eq!(ensure(&program, &kernel, dir.path()).unwrap(), path);
        assert_eq!(fs::metadata(&path).unwrap().ino(), made);
        assert_eq!(fs::read_dir(dir.path().join("initramfs")).unwrap().count(), 1, "nothing is left over");
        let other = GuestKernel { version: "2".into(), ..kernel };
        assert_ne!(ensure(&program, &other, dir.path()).unwrap(), path);
    }

    #[test]
    fn a_dynamic_program_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = kernel(dir.path());
        let shell = fs::canonicalize("/bin/sh").unwrap();
        assert!(is_dynamic(&shell).unwrap());
        let error = ensure(&shell, &kernel, dir.path()).unwrap_err().to_string();
        let shell = shell.display();
        assert_eq!(error, format!("'{shell}' is linked dynamically, and cannot be the first process of a guest"));
        assert!(!is_dynamic(&std::env::current_exe().unwrap()).unwrap());
        let error = ensure(&dir.path().join("vmlinuz"), &kernel, dir.path()).unwrap_err().to_string();
        assert_eq!(error, format!("cannot read '{}/vmlinuz'", dir.path().display()));
    }
}
