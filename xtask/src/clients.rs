//! Git clients of other makes and a schema checker: what the tests of the mirror speak with, from the registries of
//! Python and Node.js, below `target/tools`.

use crate::build;
use sandbox_testkit::which;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The interpreter that tests run with: the first on their `PATH`.
const PYTHON: &str = "/usr/bin/python3";
/// Packages of Python, by the module that they bring.
const MODULES: &[(&str, &str)] =
    &[("pygit2", "pygit2"), ("dulwich", "dulwich"), ("kubernetes_validate", "kubernetes-validate")];
/// Packages of Node.js.
const PACKAGES: &[&str] = &["isomorphic-git"];

/// Installs what is missing if that is allowed, says what is still missing, and returns the directory.
pub fn install(allowed: bool) -> PathBuf {
    let tools = build::workspace().join("target/tools");
    let (python, node) = (tools.join("python"), tools.join("node"));
    let module = |name: &str| {
        let mut command = Command::new(PYTHON);
        quiet(command.env("PYTHONPATH", &python).args(["-c", &format!("import {name}")]))
    };
    let package = |name: &str| node.join("node_modules").join(name).is_dir();
    let wanted: Vec<&str> = MODULES.iter().filter(|(name, _)| !module(name)).map(|(_, package)| *package).collect();
    if !wanted.is_empty() && allowed {
        eprintln!("installing {} (Python)", wanted.join(", "));
        pip(&python, &wanted);
        one_schema(&python.join("kubernetes_validate/kubernetes-json-schema"));
    }
    let wanted: Vec<&str> = PACKAGES.iter().filter(|name| !package(name)).copied().collect();
    if !wanted.is_empty() && allowed && which("npm").is_some() {
        eprintln!("installing {} (Node.js)", wanted.join(", "));
        let args = ["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"];
        quiet(Command::new("npm").args(args).arg(&node).args(&wanted));
    }
    let lost = MODULES.iter().filter(|(name, _)| !module(name)).map(|(_, package)| *package);
    for name in lost.chain(PACKAGES.iter().filter(|name| !package(name)).copied()) {
        eprintln!("without '{name}': skips what the mirror's tests do with it");
    }
    tools
}

/// Installs built packages for [`PYTHON`], whichever interpreter the installer itself runs with.
fn pip(to: &Path, packages: &[&str]) {
    let script = "import sys; print('%d.%d' % sys.version_info[:2])";
    let Ok(output) = Command::new(PYTHON).args(["-c", script]).output() else { return };
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    for python in [OsStr::new(PYTHON), OsStr::new("python3")] {
        let mut command = Command::new(python);
        command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]);
        command.args(["--implementation", "cp", "--python-version", &version, "--upgrade", "--target"]);
        if quiet(command.arg(to).args(packages)) {
            return;
        }
    }
}

/// Keeps the newest schema of the many that the checker brings.
fn one_schema(dir: &Path) {
    let versions = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut versions: Vec<PathBuf> = versions.map(|entry| entry.path()).collect();
    let number = |path: &PathBuf| -> Vec<u32> {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or("").trim_start_matches('v').to_owned();
        name.split('-').next().unwrap_or("").split('.').filter_map(|part| part.parse().ok()).collect()
    };
    versions.sort_by_key(number);
    let Some(newest) = versions.last().map(number) else { return };
    for old in versions.iter().filter(|path| number(path) != newest) {
        let _ = fs::remove_dir_all(old);
    }
}

fn quiet(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_schema_stays() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["v1.9.0-local", "v1.31.0-local", "v1.31.0-local-strict", "v1.30.0-local-strict"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        one_schema(dir.path());
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["v1.31.0-local", "v1.31.0-local-strict"]);
    }
}
