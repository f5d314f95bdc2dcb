//! What of the host is shown inside, read-only: system directories, toolchains below the
//! home, and the few environment variables that carry no secret. Decides only; the driver mounts.

use crate::launch::Mount;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Top directories that are shown when the host has them.
pub const SYSTEM: &[&str] = &[
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/opt",
    "/nix",
    "/snap",
    "/gnu",
    "/home/linuxbrew",
];

/// Leaf directories below the home that hold programs or sources, never credentials.
/// (`.cargo` itself has `credentials.toml`, `.npm` has tokens in its logs: never those.)
pub const TOOLCHAINS: &[&str] = &[
    ".cargo/bin",
    ".cargo/registry/cache",
    ".cargo/registry/index",
    ".cargo/registry/src",
    ".cargo/git/db",
    ".rustup",
    ".nvm",
    ".fnm",
    ".local/share/fnm",
    ".volta",
    ".pyenv",
    ".rbenv",
    ".rvm",
    ".asdf",
    ".sdkman/candidates",
    ".local/bin",
    ".local/lib",
    ".local/pipx",
    ".local/share/uv",
    ".local/share/pipx",
    ".local/share/mise",
    ".local/share/rtx",
    ".local/share/pnpm",
    ".npm-global",
    ".bun",
    ".deno",
    ".ghcup",
    ".opam",
    ".juliaup",
    ".linuxbrew",
    "go/bin",
    "go/pkg/mod",
    ".go",
    "bin",
    "miniconda3",
    "anaconda3",
    "mambaforge",
    ".gem",
];

/// Directories below the home that are never bound because a link leads there.
const CREDENTIALS: &[&str] = &[
    ".ssh",
    ".gnupg",
    ".aws",
    ".azure",
    ".config",
    ".docker",
    ".kube",
    ".password-store",
    ".mozilla",
    ".cargo",
    ".npm",
    ".local",
    ".local/share",
    ".cache",
    ".gcloud",
    ".terraform.d",
    ".claude",
    ".codex",
    ".gemini",
];

/// At most this many links of `PATH` directories are followed.
const MAX_LINKS: usize = 4096;

/// Returns the binds for toolchains below `home`: the fixed list, `extra` (relative to the
/// home or absolute), each directory of `path` that is below the home, and where links in those lead.
pub fn toolchains(home: &Path, path: &OsStr, extra: &[PathBuf]) -> Vec<Mount> {
    let mut dirs: BTreeSet<PathBuf> = BTreeSet::new();
    let mut files: BTreeSet<PathBuf> = BTreeSet::new();
    let mut programs: Vec<PathBuf> = Vec::new();
    for relative in TOOLCHAINS {
        let dir = home.join(relative);
        if dir.is_dir() {
            dirs.insert(dir);
        }
    }
    for part in path.as_bytes().split(|b| *b == b':').filter(|part| !part.is_empty()) {
        let dir = PathBuf::from(OsStr::from_bytes(part));
        if dir.starts_with(home) && dir != home && !is_credentials(home, &dir) && dir.is_dir() {
            programs.push(dir.clone());
            dirs.insert(dir);
        }
    }
    for dir in [".local/bin", "bin"] {
        programs.push(home.join(dir));
    }
    for dir in extra {
        let dir = home.join(dir);
        if dir.is_dir() {
            dirs.insert(dir);
        } else if dir.exists() {
            files.insert(dir);
        }
    }
    let mut seen = 0;
    let mut links: Vec<PathBuf> = dirs.iter().cloned().collect();
    programs.sort();
    programs.dedup();
    for dir in &programs {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if seen < MAX_LINKS && entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
                seen += 1;
                links.push(entry.path());
            }
        }
    }
    for link in links {
        for step in chain(&link) {
            let below = step.starts_with(home) && step != home;
            if !below || dirs.iter().any(|dir| step.starts_with(dir)) {
                continue;
            }
            // A program's neighbours (its libraries, its other versions) come along, unless the
            // directory is the home or holds credentials.
            match step.parent() {
                _ if step.is_dir() && is_credentials(home, &step) => {}
                _ if step.is_dir() => {
                    dirs.insert(step);
                }
                Some(parent) if parent != home && !is_credentials(home, parent) => {
                    dirs.insert(parent.to_owned());
                }
                _ if step.is_file() && !is_credentials(home, &step) => {
                    files.insert(step);
                }
                _ => {}
            }
        }
    }
    // A directory below another one that is bound comes with it.
    let mut binds: Vec<PathBuf> = Vec::new();
    for dir in dirs {
        if !binds.iter().any(|bound| dir.starts_with(bound)) {
            binds.push(dir);
        }
    }
    files.retain(|file| !binds.iter().any(|bound| file.starts_with(bound)));
    binds.extend(files);
    binds.into_iter().map(|path| Mount { source: path.clone(), at: path }).collect()
}

fn is_credentials(home: &Path, dir: &Path) -> bool {
    let Ok(relative) = dir.strip_prefix(home) else { return false };
    relative.as_os_str().is_empty()
        || CREDENTIALS.iter().any(|name| relative == Path::new(name))
        || relative.components().next().is_some_and(|first| {
            [".ssh", ".gnupg", ".aws", ".azure", ".kube", ".docker", ".password-store"]
                .iter()
                .any(|name| first == Component::Normal(OsStr::new(name)))
        })
}

/// Every path that a link leads over: each target made absolute, at most 16 steps.
fn chain(link: &Path) -> Vec<PathBuf> {
    let mut steps = Vec::new();
    let mut at = link.to_owned();
    for _ in 0..16 {
        let Ok(target) = fs::read_link(&at) else { break };
        at = normalise(&at.parent().unwrap_or(Path::new("/")).join(target));
        steps.push(at.clone());
    }
    if let Ok(real) = fs::canonicalize(link)
        && !steps.contains(&real)
        && !steps.is_empty()
    {
        steps.push(real);
    }
    steps
}

/// Removes `.` and `..` by text.
fn normalise(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    out
}

/// Variables that go inside as they are on the host.
const PASS: &[&str] = &["PATH", "TERM", "COLORTERM", "LANG", "LANGUAGE", "TZ", "NO_COLOR", "CI", "SHELL"];

/// Variables that say where a toolchain is; their value must be an absolute path.
const PASS_PATHS: &[&str] = &[
    "CARGO_HOME",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
    "JAVA_HOME",
    "GOROOT",
    "GOPATH",
    "PYENV_ROOT",
    "NVM_DIR",
    "NVM_BIN",
    "VOLTA_HOME",
    "BUN_INSTALL",
    "DENO_INSTALL",
    "PNPM_HOME",
    "SDKMAN_DIR",
    "ASDF_DIR",
    "RBENV_ROOT",
    "HOMEBREW_PREFIX",
    "HOMEBREW_CELLAR",
    "HOMEBREW_REPOSITORY",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
];

/// Returns the host's variables that go inside: an allow-list, so that no token does.
pub fn environment(host: &BTreeMap<String, String>) -> Vec<(String, String)> {
    host.iter()
        .filter(|(name, value)| {
            PASS.contains(&name.as_str())
                || name.starts_with("LC_")
                || (PASS_PATHS.contains(&name.as_str()) && value.starts_with('/'))
        })
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn home() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home/ann");
        for sub in [".cargo/bin", ".local/bin", ".local/share/claude/versions/1.2", ".ssh", "tools/x/bin", "mine"] {
            fs::create_dir_all(home.join(sub)).unwrap();
        }
        fs::write(home.join(".local/share/claude/versions/1.2/claude"), "#!").unwrap();
        fs::write(home.join("solo"), "#!").unwrap();
        fs::write(home.join(".ssh/id_rsa"), "k").unwrap();
        dir
    }

    fn paths(mounts: &[Mount], home: &Path) -> Vec<String> {
        mounts.iter().map(|m| m.at.strip_prefix(home).unwrap().display().to_string()).collect()
    }

    #[test]
    fn links_on_the_path_lead_to_their_real_directories() {
        let dir = home();
        let home = dir.path().canonicalize().unwrap().join("home/ann");
        symlink("../share/claude/versions/1.2/claude", home.join(".local/bin/claude")).unwrap();
        symlink(home.join("solo"), home.join(".local/bin/solo")).unwrap();
        let path = format!("/usr/bin:{}", home.join("tools/x/bin").display());
        let binds = toolchains(&home, path.as_ref(), &["mine".into()]);
        assert_eq!(
            paths(&binds, &home),
            [".cargo/bin", ".local/bin", ".local/share/claude/versions/1.2", "mine", "tools/x/bin", "solo"]
        );
    }

    #[test]
    fn credentials_are_never_bound() {
        let dir = home();
        let home = dir.path().canonicalize().unwrap().join("home/ann");
        symlink("../../.ssh", home.join(".local/bin/dir")).unwrap();
        symlink("../../.ssh/id_rsa", home.join(".local/bin/key")).unwrap();
        symlink("../..", home.join(".local/bin/up")).unwrap();
        let path = format!("{}:{}", home.join(".ssh").display(), home.display());
        for bind in toolchains(&home, path.as_ref(), &[]) {
            assert!(!home.join(".ssh").starts_with(&bind.at), "{bind:?} shows .ssh");
            assert!(!bind.at.starts_with(home.join(".ssh")) || bind.at.is_file(), "{bind:?}");
            assert!(bind.at != home.join(".ssh/id_rsa"), "{bind:?}");
        }
    }

    #[test]
    fn tokens_do_not_pass() {
        let host = [
            ("PATH", "/usr/bin"),
            ("LC_ALL", "C.UTF-8"),
            ("GITHUB_TOKEN", "x"),
            ("SSH_AUTH_SOCK", "/s"),
            ("JAVA_HOME", "/opt/java"),
            ("GOPATH", "relative"),
            ("LD_PRELOAD", "/x.so"),
            ("BASH_ENV", "/x"),
        ];
        let host = host.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let names: Vec<String> = environment(&host).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["JAVA_HOME", "LC_ALL", "PATH"]);
    }
}
