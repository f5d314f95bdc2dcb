//! `Cargo.toml`: what runs while a package is compiled.

use super::{Finding, Grade};
use crate::path::RepoPath;
use toml::{Table, Value};

pub(super) fn look(path: &RepoPath, old: Option<&[u8]>, new: &[u8], all: &mut Vec<Finding>) {
    const BUILD: &str = "at the next `cargo build`";
    let Some(new) = parse(new) else {
        all.push(Finding::amber(path, "cannot be read as a Cargo.toml").when(BUILD));
        return;
    };
    let old = old.and_then(parse).unwrap_or_default();
    let changed = |keys: &[&str]| {
        let value = at(&new, keys)?;
        (at(&old, keys) != Some(value)).then(|| value.clone())
    };
    if let Some(script) = changed(&["package", "build"]).filter(|build| build.as_bool() != Some(false)) {
        let script = script.as_str().map_or_else(|| script.to_string(), str::to_owned);
        all.push(Finding::red(path, "names a build script").runs(script).when(BUILD));
    }
    let rows: [(Grade, &[&str], &str); 10] = [
        (Grade::Red, &["patch"], "puts other sources in the place of dependencies ('patch')"),
        (Grade::Red, &["replace"], "puts other sources in the place of dependencies ('replace')"),
        (Grade::Amber, &["lib", "proc-macro"], "is a procedural macro, which runs in the compiler"),
        (Grade::Amber, &["lib", "proc_macro"], "is a procedural macro, which runs in the compiler"),
        (Grade::Amber, &["package", "links"], "links a library of the system"),
        (Grade::Amber, &["build-dependencies"], "changes what build scripts are made of"),
        (Grade::Amber, &["dependencies"], "changes dependencies, whose build scripts and macros run"),
        (Grade::Amber, &["dev-dependencies"], "changes dependencies, whose build scripts and macros run"),
        (Grade::Amber, &["workspace", "dependencies"], "changes dependencies, whose build scripts and macros run"),
        (Grade::Amber, &["target"], "changes dependencies, whose build scripts and macros run"),
    ];
    for (grade, keys, why) in rows {
        if changed(keys).is_some_and(|value| value.as_bool() != Some(false)) {
            all.push(Finding::new(grade, path, why).when(BUILD));
        }
    }
}

fn parse(bytes: &[u8]) -> Option<Table> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

fn at<'t>(table: &'t Table, keys: &[&str]) -> Option<&'t Value> {
    let (first, rest) = keys.split_first()?;
    rest.iter().try_fold(table.get(*first)?, |value, key| value.get(*key))
}
