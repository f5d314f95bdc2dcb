//! What the user has set about virtual machines, and the launch spec with it.

use crate::context::Context;
use crate::error::CliError;
use crate::text::escape;
use sandbox_core::driver::Isolation;
use sandbox_core::launch::{Accel, LaunchSpec, Mode, Vm, VmSettings};
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::Store;

const KERNEL: &str = "sandbox.vm.kernel";
const ACCEL: &str = "sandbox.vm.accel";

/// Reads `sandbox.vm.*`.
pub fn settings(context: &Context) -> Result<VmSettings, CliError> {
    let kernel = match context.setting(KERNEL) {
        None => None,
        Some(path) if path.starts_with('/') => Some(path.into()),
        Some(path) => match path.strip_prefix("~/") {
            Some(rest) => Some(context.home.join(rest)),
            None => {
                return Err(CliError::new(format!("'{}' is not an absolute path", escape(&path)))
                    .hint(format!("{KERNEL} names the guest's kernel, for example /boot/vmlinuz-6.1.0-cloud-amd64")));
            }
        },
    };
    let accel = match context.setting(ACCEL) {
        None => Accel::default(),
        Some(text) => Accel::parse(&text).ok_or_else(|| {
            CliError::new(format!("'{}' is not a value of {ACCEL}", escape(&text)))
                .hint("it is auto (KVM where it really works), kvm, or tcg (emulation)")
        })?,
    };
    Ok(VmSettings { cache: context.cache_dir().join("vm"), kernel, accel })
}

/// The launch spec of a sandbox, for the driver that its record names.
pub fn launch_spec(context: &Context, store: &Store, sandbox: &Sandbox, mode: Mode) -> Result<LaunchSpec, CliError> {
    let mut spec = sandbox_core::assemble::launch_spec(store, sandbox, mode, &context.program)?;
    if crate::verbs::spawn::driver(&sandbox.record.driver)?.isolation() == Isolation::Vm {
        spec.vm = Some(Vm { dir: sandbox.dir.path().to_owned(), settings: settings(context)? });
    }
    Ok(spec)
}
