//! The guest's kernel: which one, and where its modules are.
//!
//! ```text
//!   1  sandbox.vm.kernel        a file; its modules beside it (…/boot/x → …/lib/modules/VERSION) or in the system's place
//!   2  installed                /boot/vmlinuz-* with /lib/modules/*; /usr/lib/modules/*/vmlinuz
//!   3  unpacked without root    CACHE/kernels/PACKAGE/boot/vmlinuz-*, by `git sandbox doctor --fix`
//! ```
//! Of several, the one of the highest version that can be read and has what a guest needs.

use super::modules::Modules;
use std::cmp::Ordering;
use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// What a guest cannot be without, as modules or built in.
pub const WANTED: &[&str] = &["virtio_mmio", "virtio_console", "virtio_blk", "ext4", "fuse", "virtiofs", "overlay"];

/// What makes it better: memory goes back to the host, it has random numbers at once, and it can have [`SOCKETS`].
pub const WELCOME: &[&str] = &["virtio_balloon", "virtio_rng", SOCKETS];

/// What a way out of the guest (a proxy, a mirror) needs.
pub const SOCKETS: &str = "vmw_vsock_virtio_transport";

/// A kernel for guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestKernel {
    /// The image that a boot loader takes.
    pub image: PathBuf,
    /// The directory of its modules (the one with `modules.order`).
    pub modules: PathBuf,
    /// As `uname -r` says it.
    pub version: String,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// None of the places has one that will do.
    #[error("there is no kernel for guests{}", reasons(.refused))]
    None {
        /// Those that were found and will not do, and why.
        refused: Vec<String>,
    },
    /// The one that was set will not do.
    #[error("'{path}' is no kernel for guests: {why}", path = path.display())]
    Refused {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

fn reasons(refused: &[String]) -> String {
    refused.iter().map(|reason| format!("; {reason}")).collect()
}

impl GuestKernel {
    /// Returns whether guests can have ways out.
    pub fn has_sockets(&self) -> bool {
        Modules::open(&self.modules).is_ok_and(|modules| modules.has(SOCKETS))
    }
}

/// Finds the kernel. `root` is the host's root directory, or a made-up one in tests.
pub fn find(setting: Option<&Path>, cache: &Path, root: &Path) -> Result<GuestKernel, KernelError> {
    if let Some(path) = setting {
        return look_at(path, root).map_err(|why| KernelError::Refused { path: path.to_owned(), why });
    }
    let mut refused = Vec::new();
    for places in [installed(root), unpacked(cache)] {
        let mut found: Vec<GuestKernel> = Vec::new();
        for image in places {
            match look_at(&image, root) {
                Ok(kernel) => found.push(kernel),
                Err(why) => refused.push(format!("'{}': {why}", image.display())),
            }
        }
        if let Some(best) = found.into_iter().max_by(|a, b| by_version(&a.version, &b.version)) {
            return Ok(best);
        }
    }
    Err(KernelError::None { refused })
}

fn installed(root: &Path) -> Vec<PathBuf> {
    let mut images = entries(&root.join("boot"), "vmlinuz-");
    for modules in ["usr/lib/modules", "lib/modules"] {
        for version in entries(&root.join(modules), "") {
            let image = version.join("vmlinuz");
            if image.is_file() && !images.contains(&image) {
                images.push(image);
            }
        }
    }
    images
}

fn unpacked(cache: &Path) -> Vec<PathBuf> {
    let packages = entries(&cache.join("kernels"), "");
    packages.iter().flat_map(|package| entries(&package.join("boot"), "vmlinuz-")).collect()
}

fn entries(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        // One that is being unpacked.
        .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    paths
}

/// The kernel of one image, or why it will not do.
fn look_at(image: &Path, root: &Path) -> Result<GuestKernel, String> {
    let version = version(image).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => "only root may read it".to_owned(),
        io::ErrorKind::NotFound => "it does not exist".to_owned(),
        _ => error.to_string(),
    })?;
    let beside = image.parent().into_iter().flat_map(|dir| {
        let up = dir.parent().unwrap_or(dir);
        [dir.to_owned(), up.join("lib/modules").join(&version), up.join("usr/lib/modules").join(&version)]
    });
    let system = ["lib/modules", "usr/lib/modules"].map(|dir| root.join(dir).join(&version));
    let modules = beside.chain(system).find(|dir| dir.join("modules.order").is_file());
    let modules = modules.ok_or_else(|| format!("the modules of '{version}' are nowhere"))?;
    let known = Modules::open(&modules).map_err(|error| error.to_string())?;
    if let Some(missing) = WANTED.iter().find(|name| !known.has(name)) {
        return Err(format!("it has no module '{missing}'"));
    }
    Ok(GuestKernel { image: image.to_owned(), modules, version })
}

/// The version that an image was built as (the x86 boot protocol, `Documentation/arch/x86/boot.rst`: "HdrS" at
/// 0x202, the offset of the text less 0x200 at 0x20e).
fn version(image: &Path) -> io::Result<String> {
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let mut file = fs::File::open(image)?;
    let mut head = [0u8; 0x210];
    file.read_exact(&mut head).map_err(|_| invalid("it is not a kernel image"))?;
    if &head[0x202..0x206] != b"HdrS" {
        return Err(invalid("it is not an x86 kernel image"));
    }
    let offset = u16::from_le_bytes([head[0x20e], head[0x20f]]);
    file.seek(SeekFrom::Start(u64::from(offset) + 0x200))?;
    let mut text = Vec::new();
    file.take(256).read_to_end(&mut text)?;
    // "6.1.0-48-cloud-amd64 (debian-kernel@…) #1 SMP …"
    let word = text.split(|byte| matches!(byte, b' ' | 0)).next().unwrap_or_default();
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-+~".contains(byte);
    match std::str::from_utf8(word) {
        Ok(version) if !word.is_empty() && word.iter().all(plain) => Ok(version.to_owned()),
        _ => Err(invalid("it does not say its version")),
    }
}

/// Compares versions: numbers as numbers.
fn by_version(a: &str, b: &str) -> Ordering {
    let parts = |text: &str| -> Vec<(u64, String)> {
        text.split(['.', '-', '+', '~', '_']).map(|part| (part.parse().unwrap_or(0), part.to_owned())).collect()
    };
    parts(a).cmp(&parts(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(path: &Path, version: &str) {
        let mut bytes = vec![0u8; 0x400];
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        bytes.truncate(0x300);
        bytes.extend_from_slice(format!("{version} (who@where) #1\0").as_bytes());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn modules(dir: &Path, without: &str) {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("modules.order"), "").unwrap();
        let builtin: String =
            WANTED.iter().filter(|name| **name != without).map(|name| format!("kernel/{name}.ko\n")).collect();
        fs::write(dir.join("modules.builtin"), builtin).unwrap();
    }

    #[test]
    fn the_newest_installed_one_that_will_do() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for version in ["6.9.0-1-amd64", "6.10.2-1-amd64", "6.11.0-1-amd64"] {
            image(&root.join(format!("boot/vmlinuz-{version}")), version);
        }
        modules(&root.join("lib/modules/6.9.0-1-amd64"), "");
        modules(&root.join("lib/modules/6.10.2-1-amd64"), "");
        modules(&root.join("lib/modules/6.11.0-1-amd64"), "virtiofs");
        let found = find(None, &root.join("cache"), root).unwrap();
        assert_eq!(found.version, "6.10.2-1-amd64");
        assert_eq!(found.modules, root.join("lib/modules/6.10.2-1-amd64"));
    }

    #[test]
    fn fedora_has_it_among_the_modules() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let at = root.join("usr/lib/modules/6.8.5-301.fc40.x86_64");
        image(&at.join("vmlinuz"), "6.8.5-301.fc40.x86_64");
        modules(&at, "");
        let found = find(None, &root.join("cache"), root).unwrap();
        assert_eq!((found.image, found.modules), (at.join("vmlinuz"), at));
    }

    #[test]
    fn an_unpacked_one_comes_last_and_a_set_one_first() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let cache = root.join("cache");
        image(&cache.join("kernels/p/boot/vmlinuz-6.1.0-48-cloud-amd64"), "6.1.0-48-cloud-amd64");
        modules(&cache.join("kernels/p/lib/modules/6.1.0-48-cloud-amd64"), "");
        assert_eq!(find(None, &cache, root).unwrap().version, "6.1.0-48-cloud-amd64");
        image(&root.join("boot/vmlinuz-5.1"), "5.1");
        modules(&root.join("lib/modules/5.1"), "");
        assert_eq!(find(None, &cache, root).unwrap().version, "5.1");
        image(&root.join("own/bzImage"), "4.4");
        modules(&root.join("lib/modules/4.4"), "");
        assert_eq!(find(Some(&root.join("own/bzImage")), &cache, root).unwrap().version, "4.4");
    }

    #[test]
    fn why_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let said = || find(None, &root.join("cache"), root).unwrap_err().to_string();
        assert_eq!(said(), "there is no kernel for guests");
        fs::create_dir(root.join("boot")).unwrap();
        fs::write(root.join("boot/vmlinuz-x"), "text").unwrap();
        let at = root.display();
        assert_eq!(said(), format!("there is no kernel for guests; '{at}/boot/vmlinuz-x': it is not a kernel image"));
        image(&root.join("boot/vmlinuz-x"), "6.1");
        let nowhere = "the modules of '6.1' are nowhere";
        assert_eq!(said(), format!("there is no kernel for guests; '{at}/boot/vmlinuz-x': {nowhere}"));
        modules(&root.join("lib/modules/6.1"), "overlay");
        let set = find(Some(&root.join("boot/vmlinuz-x")), &root.join("cache"), root).unwrap_err().to_string();
        assert_eq!(set, format!("'{at}/boot/vmlinuz-x' is no kernel for guests: it has no module 'overlay'"));
        let gone = find(Some(&root.join("gone")), &root.join("cache"), root).unwrap_err().to_string();
        assert_eq!(gone, format!("'{at}/gone' is no kernel for guests: it does not exist"));
    }
}
