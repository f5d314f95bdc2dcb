//! Builds the workspace once and says which executables came out of it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What cargo built.
#[derive(Debug, Default, PartialEq)]
pub struct Built {
    /// The program itself.
    pub product: Option<PathBuf>,
    /// Every test executable.
    pub tests: Vec<TestExecutable>,
}

/// An executable that libtest made.
#[derive(Clone, Debug, PartialEq)]
pub struct TestExecutable {
    /// Package and target, as `e2e/contract`.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// The directory of its package.
    pub manifest_dir: PathBuf,
}

/// The directory of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is below the workspace")
}

/// Builds the program and all tests with the development profile.
pub fn tests() -> Result<Built, String> {
    let mut text = cargo(&["build", "--workspace"])?;
    text.push_str(&cargo(&["test", "--workspace", "--no-run"])?);
    Ok(parse(&text))
}

/// Builds the program with the release profile.
pub fn release() -> Result<PathBuf, String> {
    let text = cargo(&["build", "--release", "--package", "git-sandbox"])?;
    parse(&text).product.ok_or_else(|| "cargo built no program".to_owned())
}

/// Builds an example of a package with the release profile.
pub fn example(package: &str, name: &str) -> Result<PathBuf, String> {
    let text = cargo(&["build", "--release", "--package", package, "--example", name])?;
    executable(&text, "example", name).ok_or_else(|| format!("cargo built no example '{name}'"))
}

fn executable(messages: &str, kind: &str, name: &str) -> Option<PathBuf> {
    messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()).find_map(|message| {
        let target = &message["target"];
        (target["name"] == name && target["kind"][0] == kind)
            .then(|| message["executable"].as_str().map(PathBuf::from))?
    })
}

fn cargo(args: &[&str]) -> Result<String, String> {
    eprintln!("cargo {}", args.join(" "));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(args).args(["--message-format=json-render-diagnostics", "--quiet"]);
    command.current_dir(workspace()).stderr(Stdio::inherit());
    let output = command.output().map_err(|error| format!("cannot run cargo: {error}"))?;
    if !output.status.success() {
        return Err(format!("`cargo {}` failed", args.join(" ")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Reads cargo's messages, one JSON object a line.
fn parse(messages: &str) -> Built {
    let mut built = Built::default();
    for line in messages.lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        let Some(executable) = message["executable"].as_str() else { continue };
        let target = message["target"]["name"].as_str().unwrap_or_default();
        let manifest = Path::new(message["manifest_path"].as_str().unwrap_or_default());
        let manifest_dir = manifest.parent().unwrap_or(Path::new("/")).to_owned();
        if message["profile"]["test"] == true {
            let package = manifest_dir.file_name().unwrap_or_default().to_string_lossy();
            let name = if *package == *target.trim_start_matches("sandbox_") {
                package.into_owned()
            } else {
                format!("{package}/{target}")
            };
            let made = TestExecutable { name, path: executable.into(), manifest_dir };
            if !built.tests.contains(&made) {
                built.tests.push(made);
            }
        } else if target == "git-sandbox" {
            built.product = Some(executable.into());
        }
    }
    built.tests.sort_by(|a, b| a.name.cmp(&b.name));
    built
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_found_in_cargos_messages() {
        let messages = r#"
{"reason":"compiler-artifact","manifest_path":"/w/crates/git/Cargo.toml","target":{"name":"sandbox_git"},"profile":{"test":true},"executable":"/t/deps/sandbox_git-1"}
{"reason":"compiler-artifact","manifest_path":"/w/crates/git/Cargo.toml","target":{"name":"sandbox_git"},"profile":{"test":false},"executable":null}
{"reason":"compiler-artifact","manifest_path":"/w/e2e/Cargo.toml","target":{"name":"contract"},"profile":{"test":true},"executable":"/t/deps/contract-2"}
{"reason":"compiler-artifact","manifest_path":"/w/Cargo.toml","target":{"name":"git-sandbox"},"profile":{"test":false},"executable":"/t/git-sandbox"}
{"reason":"build-finished","success":true}
not json"#;
        let built = parse(messages);
        assert_eq!(built.product, Some("/t/git-sandbox".into()));
        let names: Vec<&str> = built.tests.iter().map(|test| test.name.as_str()).collect();
        assert_eq!(names, ["e2e/contract", "git"]);
    }
}
