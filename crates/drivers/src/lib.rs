//! Ways to isolate, each an implementation of [`Driver`]. This file is the one list of them.
#![forbid(unsafe_code)]

pub mod namespace;
pub mod qemu;
pub mod vm;

use sandbox_core::driver::Driver;

static ALL: &[&dyn Driver] = &[&namespace::Namespace, &qemu::Qemu];

/// Returns every driver, the default one first.
pub fn all() -> &'static [&'static dyn Driver] {
    ALL
}

/// Returns the driver of this name.
pub fn by_name(name: &str) -> Option<&'static dyn Driver> {
    all().iter().copied().find(|driver| driver.name() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        for driver in all() {
            assert_eq!(by_name(driver.name()).map(|found| found.name()), Some(driver.name()));
            assert_eq!(all().iter().filter(|other| other.name() == driver.name()).count(), 1);
        }
        assert!(by_name("chroot").is_none());
    }
}
