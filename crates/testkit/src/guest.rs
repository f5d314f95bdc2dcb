//! What tests of virtual machines need of this machine: QEMU, and a kernel for guests.

use crate::which;
use std::path::{Path, PathBuf};

/// Returns a kernel for guests and says what is missing otherwise. `xtask` has the product unpack one below its
/// tools; `TESTKIT_GUEST_KERNEL` names another.
///
/// # Errors
///
/// The reason for which tests of virtual machines are skipped.
pub fn guest_kernel() -> Result<PathBuf, &'static str> {
    if cfg!(not(target_arch = "x86_64")) {
        return Err("guests of this processor are not emulated");
    }
    if which("qemu-system-x86_64").is_none() {
        return Err("there is no QEMU here");
    }
    if let Some(kernel) = std::env::var_os("TESTKIT_GUEST_KERNEL") {
        return Ok(kernel.into());
    }
    let tools = std::env::var_os("TESTKIT_TOOLS").map(PathBuf::from);
    let tools = tools.unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/tools").into());
    guest_kernel_below(&tools).ok_or("there is no kernel for guests: `cargo xtask test` unpacks one")
}

/// Returns the newest kernel for guests that was unpacked below a directory.
pub fn guest_kernel_below(tools: &Path) -> Option<PathBuf> {
    let list = |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let images = list(tools.join("vm/kernels")).flat_map(|package| list(package.join("boot")));
    let is_image = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"));
    images.filter(is_image).max()
}
