//! Programs that `cargo xtask test` puts below `target/tools`; a test that lacks one says so.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where they are: `TESTKIT_TOOLS`, else where they were installed.
fn tools() -> PathBuf {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools");
    std::env::var_os("TESTKIT_TOOLS").map_or_else(built, PathBuf::from)
}

/// A Python and the directory of packages that it takes.
pub struct Python {
    /// The interpreter.
    pub program: PathBuf,
    /// `PYTHONPATH`.
    pub packages: PathBuf,
}

/// Returns a Python that can import a module.
pub fn python(module: &str) -> Option<Python> {
    let packages = tools().join("python");
    let works = |program: &PathBuf| {
        let mut command = Command::new(program);
        command.env("PYTHONPATH", &packages).args(["-c", &format!("import {module}")]);
        command.output().is_ok_and(|output| output.status.success())
    };
    let program = PathBuf::from("/usr/bin/python3");
    works(&program).then_some(Python { program, packages })
}

/// Returns the directory whose `node_modules` has a package of Node.js.
pub fn node(package: &str) -> Option<PathBuf> {
    let dir = tools().join("node");
    dir.join("node_modules").join(package).is_dir().then_some(dir)
}
