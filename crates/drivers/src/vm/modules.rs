//! Which kernel modules a guest loads, and in which order: those that are wanted, each after all that it needs.
//!
//! What a module needs is written in itself (`depends=` of its section `.modinfo`), so that a tree that was only
//! unpacked, and never seen by depmod(8), will do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// A module to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name, with underscores.
    pub name: String,
    /// Its file as the kernel takes it, not compressed.
    pub contents: Vec<u8>,
}

/// The modules of one kernel.
#[derive(Debug)]
pub struct Modules {
    dir: PathBuf,
    /// Name → path below `dir` without what says how it is compressed.
    files: BTreeMap<String, String>,
    builtin: BTreeSet<String>,
}

/// Why there is no list of modules.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// A file could not be read.
    #[error("cannot read '{path}'", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel cannot do something that a guest needs.
    #[error("the kernel of '{dir}' has no module '{name}'", dir = dir.display())]
    Missing {
        /// Whose.
        dir: PathBuf,
        /// Which.
        name: String,
    },
}

/// A module of the largest drivers has a few megabytes.
const LARGEST: u64 = 64 << 20;

impl Modules {
    /// Reads the lists of a directory such as `/lib/modules/6.1.0-1-amd64`.
    pub fn open(dir: &Path) -> Result<Self, ModuleError> {
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).map_err(|source| ModuleError::Read { path, source })
        };
        let files = read("modules.order")?.lines().map(|line| (name_of(line), line.to_owned())).collect();
        let builtin = read("modules.builtin")?.lines().map(name_of).collect();
        Ok(Self { dir: dir.to_owned(), files, builtin })
    }

    /// Returns whether the kernel can do what this module is for.
    pub fn has(&self, name: &str) -> bool {
        self.builtin.contains(name) || self.files.get(name).is_some_and(|file| self.file(file).is_some())
    }

    /// Returns the modules that `wanted` and `welcome` come to, in the order to load them. Of what is only welcome,
    /// nothing need be there.
    pub fn in_order(&self, wanted: &[&str], welcome: &[&str]) -> Result<Vec<Module>, ModuleError> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for name in wanted {
            self.add(name, &mut seen, &mut order)?;
        }
        for name in welcome.iter().filter(|name| self.has(name)) {
            self.add(name, &mut seen, &mut order)?;
        }
        Ok(order)
    }

    fn add(&self, name: &str, seen: &mut BTreeSet<String>, order: &mut Vec<Module>) -> Result<(), ModuleError> {
        if self.builtin.contains(name) || !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let missing = || ModuleError::Missing { dir: self.dir.clone(), name: name.to_owned() };
        let path = self.files.get(name).and_then(|file| self.file(file)).ok_or_else(missing)?;
        let contents = contents(&path).map_err(|source| ModuleError::Read { path, source })?;
        for needed in needs(&contents) {
            self.add(&needed, seen, order)?;
        }
        order.push(Module { name: name.to_owned(), contents });
        Ok(())
    }

    fn file(&self, listed: &str) -> Option<PathBuf> {
        ["", ".xz", ".zst", ".gz"].iter().map(|end| self.dir.join(format!("{listed}{end}"))).find(|path| path.is_file())
    }
}

/// `kernel/drivers/char/hw_random/virtio-rng.ko` → `virtio_rng`.
fn name_of(path: &str) -> String {
    path.rsplit('/').next().unwrap_or(path).trim_end_matches(".ko").replace('-', "_")
}

fn contents(path: &Path) -> io::Result<Vec<u8>> {
    let file = fs::File::open(path)?;
    let mut out = Vec::new();
    match path.extension().and_then(|end| end.to_str()) {
        Some("xz") => lzma_rust2::XzReader::new(file, true).take(LARGEST).read_to_end(&mut out)?,
        Some("zst") => ruzstd::decoding::StreamingDecoder::new(file)
            .map_err(io::Error::other)?
            .take(LARGEST)
            .read_to_end(&mut out)?,
        Some("gz") => flate2::read::GzDecoder::new(file).take(LARGEST).read_to_end(&mut out)?,
        _ => file.take(LARGEST).read_to_end(&mut out)?,
    };
    Ok(out)
}

/// What a module says that it needs: `depends=a,b` and `softdep=pre: c`, each ended by a NUL.
fn needs(module: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    for entry in module.split(|byte| *byte == 0) {
        let Some(list) = entry.strip_prefix(b"depends=") else { continue };
        let list = String::from_utf8_lossy(list);
        names.extend(list.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let module = |depends: &str| format!("\x7fELF..\0license=GPL\0depends={depends}\0name=x\0").into_bytes();
        for sub in ["kernel/fs/fuse", "kernel/fs/overlayfs", "kernel/drivers/virtio"] {
            fs::create_dir_all(dir.path().join(sub)).unwrap();
        }
        let at = |path: &str| dir.path().join(path);
        fs::write(at("kernel/fs/fuse/fuse.ko"), module("")).unwrap();
        fs::write(at("kernel/fs/fuse/virtiofs.ko"), module("fuse,virtio,virtio_ring")).unwrap();
        fs::write(at("kernel/drivers/virtio/virtio.ko"), module("virtio_ring")).unwrap();
        let packed = fs::File::create(at("kernel/drivers/virtio/virtio_ring.ko.gz")).unwrap();
        let mut packed = flate2::write::GzEncoder::new(packed, flate2::Compression::fast());
        packed.write_all(&module("")).unwrap();
        packed.finish().unwrap();
        fs::write(at("kernel/fs/overlayfs/overlay.ko"), module("gone")).unwrap();
        let order = "kernel/fs/fuse/fuse.ko\nkernel/fs/fuse/virtiofs.ko\nkernel/fs/overlayfs/overlay.ko\n\
                     kernel/drivers/virtio/virtio.ko\nkernel/drivers/virtio/virtio_ring.ko\nkernel/listed-only.ko\n";
        fs::write(at("modules.order"), order).unwrap();
        fs::write(at("modules.builtin"), "kernel/fs/ext4/ext4.ko\nkernel/drivers/char/hw_random/rng-core.ko\n")
            .unwrap();
        dir
    }

    #[test]
    fn each_comes_after_what_it_needs() {
        let dir = tree();
        let modules = Modules::open(dir.path()).unwrap();
        let order = modules.in_order(&["virtiofs", "ext4", "fuse"], &["virtio_balloon", "rng_core"]).unwrap();
        let names: Vec<&str> = order.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["fuse", "virtio_ring", "virtio", "virtiofs"]);
        assert!(order.iter().all(|module| module.contents.starts_with(b"\x7fELF")), "not compressed");
    }

    #[test]
    fn what_is_not_there_is_named() {
        let dir = tree();
        let modules = Modules::open(dir.path()).unwrap();
        let said = |names: &[&str]| modules.in_order(names, &[]).unwrap_err().to_string();
        let of = dir.path().display();
        assert_eq!(said(&["overlay"]), format!("the kernel of '{of}' has no module 'gone'"));
        assert_eq!(said(&["listed_only"]), format!("the kernel of '{of}' has no module 'listed_only'"));
        assert!(!modules.has("listed_only") && modules.has("ext4") && modules.has("virtio_ring"));
        let error = Modules::open(&dir.path().join("none")).unwrap_err().to_string();
        assert_eq!(error, format!("cannot read '{of}/none/modules.order'"));
    }
}
