//! What of the host is shown inside, read-only: system directories, toolchains below the
//! home, and the few environment variables that carry no secret. Decides only; the driver mounts.

use crate::launch::Mount;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
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
    // Never `/nix` itself: the socket of its daemon, which builds with the network, is below `/nix/var`.
    "/nix/store",
    "/nix/var/nix/profiles",
    "/snap",
    "/gnu",
    "/home/linuxbrew",
];

/// Leaf directories below the home that hold programs or sources, never credentials.
/// (`.cargo` itself has `credentials.toml`, `.npm` has tokens in its logs, `.gem` has `credentials`,
/// `.local/share/uv` has `credentials/`, `.opam` has tokens of plugins: never those.)
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
    ".local/share/uv/tools",
    ".local/share/uv/python",
    ".local/share/pipx",
    ".local/share/mise",
    ".local/share/rtx",
    ".local/share/pnpm",
    ".npm-global",
    ".bun",
    ".deno",
    ".ghcup",
    ".juliaup",
    ".linuxbrew",
    "go/bin",
    "go/pkg/mod",
    ".go",
    "bin",
    "miniconda3",
    "anaconda3",
    "mambaforge",
    ".gem/ruby",
];

/// Directories below the home whose sub-directories are bound one by one, but for those named here.
const ALL_BUT: &[(&str, &[&str])] = &[(".opam", &["plugins", "log", "download-cache"])];

/// Where files with a login lie below what is bound, relative to it; `*` is any one directory. Beside these,
/// every file directly in it that [`names_a_credential`].
const LOGINS_BELOW: &[&str] = &[
    "etc/npmrc",
    ".npm/etc/npmrc",
    ".condarc",
    "condarc",
    ".mambarc",
    "pip.conf",
    "etc/gemrc",
    ".git/config",
    // One version of a language: nvm, n, pyenv and rbenv; fnm; mise and asdf; volta; conda, pipx and uv.
    "versions/*/etc/npmrc",
    "versions/*/pip.conf",
    "versions/*/etc/gemrc",
    "versions/*/*/etc/npmrc",
    "node-versions/*/installation/etc/npmrc",
    "installs/*/*/etc/npmrc",
    "installs/*/*/.npm/etc/npmrc",
    "installs/*/*/pip.conf",
    "tools/image/*/*/etc/npmrc",
    "envs/*/.condarc",
    "envs/*/pip.conf",
    "venvs/*/pip.conf",
    "*/pip.conf",
    "*/etc/npmrc",
    // Of SDKMAN.
    "maven/*/conf/settings.xml",
    "*/conf/settings.xml",
];

/// Directories below the home that hold credentials, with all that is in them.
const CREDENTIALS: &[&str] =
    &[".ssh", ".gnupg", ".aws", ".azure", ".docker", ".kube", ".password-store", ".mozilla", ".pki"];

/// Directories below the home that hold settings of one program each: what one has is its own affair,
/// and may be a login. Neither they nor those directories are bound because a link leads there, but
/// what lies deeper may be (`~/.local/share/claude/versions`).
const SETTINGS: &[&str] = &["", ".config", ".local", ".local/share", ".local/state", ".cache"];

/// Names of files that hold a login by their nature, lower case.
const LOGINS: &[&str] = &[
    ".credentials.json",
    ".git-credentials",
    ".netrc",
    ".npmrc",
    ".pypirc",
    "auth.json",
    "oauth_creds.json",
    "secrets.json",
    "secrets.toml",
    "secrets.yaml",
    "secrets.yml",
    "token.json",
    "tokens.json",
];

/// At most this many links of `PATH` directories are followed.
const MAX_LINKS: usize = 4096;

/// Returns the binds for toolchains below `home`: the fixed list, `extra` (relative to the
/// home or absolute), each directory of `path` that is below the home, and where links in those lead.
/// Nothing of the trees at `trees` is bound: they are mounted as copies.
pub fn toolchains(home: &Path, path: &OsStr, extra: &[PathBuf], trees: &[PathBuf]) -> Vec<Mount> {
    let mut dirs: BTreeSet<PathBuf> = BTreeSet::new();
    let mut files: BTreeSet<PathBuf> = BTreeSet::new();
    let mut programs: Vec<PathBuf> = Vec::new();
    for relative in TOOLCHAINS {
        let dir = home.join(relative);
        if dir.is_dir() {
            dirs.insert(dir);
        }
    }
    for (relative, but) in ALL_BUT {
        for entry in fs::read_dir(home.join(relative)).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) && but.iter().all(|name| entry.file_name() != *name) {
                dirs.insert(entry.path());
            }
        }
    }
    for part in path.as_bytes().split(|b| *b == b':').filter(|part| !part.is_empty()) {
        let dir = normalise(Path::new(OsStr::from_bytes(part)));
        if !dir.starts_with(home) || holds_credentials(home, &dir) || !dir.is_dir() {
            continue;
        }
        let known = dirs.iter().any(|bound| dir.starts_with(bound));
        if is_credentials(home, &dir) || has_login(&dir) || (!known && dir.join(".git").exists()) {
            // Programs beside settings, beside sources, or in the home itself: each alone.
            let entries = fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path());
            files.extend(entries.filter(|path| is_program(path) && !is_login(home, path)).take(MAX_LINKS));
        } else {
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
    // A known directory may itself be a link: then where it leads is that directory.
    let moved: Vec<PathBuf> = dirs.iter().flat_map(|dir| chain(dir)).collect();
    dirs.extend(
        moved.into_iter().filter(|step| step.starts_with(home) && step.is_dir() && !is_credentials(home, step)),
    );
    let mut links: Vec<PathBuf> = Vec::new();
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
    // A virtual environment that comes along has links of its own, to its interpreter.
    while let Some(link) = links.pop() {
        for step in chain(&link) {
            let below = step.starts_with(home) && step != home;
            if !below || dirs.iter().any(|dir| step.starts_with(dir)) {
                continue;
            }
            let package = package(home, &step);
            if let Some(dir) = package {
                if dir.join("pyvenv.cfg").is_file() {
                    links.push(dir.join("bin/python"));
                }
                dirs.insert(dir);
            } else if step.is_file() && !is_login(home, &step) {
                dirs.extend(libraries(&step));
                files.insert(step);
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
    binds.retain(|bind| !trees.iter().any(|tree| bind.starts_with(tree)));
    binds.into_iter().map(|path| Mount { source: path.clone(), at: path }).collect()
}

/// The directory that *is* the package which a path is in, by its make: the outermost `node_modules`, a
/// virtual environment, one version of a program (`…/versions/2.1/…`; when the version is the file itself,
/// the directory of versions). `None` for anything else: beside a script of `~/work/x` lies all of `~/work/x`.
fn package(home: &Path, path: &Path) -> Option<PathBuf> {
    let fits = |dir: &&Path| {
        dir.starts_with(home) && !is_credentials(home, dir) && !has_login(dir) && !dir.join(".git").exists()
    };
    let modules = path.ancestors().filter(|dir| dir.ends_with("node_modules")).last();
    let environment = path.ancestors().find(|dir| dir.join("pyvenv.cfg").is_file());
    // A link to what is current stands for what it leads to.
    let version = path.ancestors().find(|dir| {
        let in_versions = |dir: &Path| dir.parent().is_some_and(|parent| parent.ends_with("versions"));
        in_versions(dir) || dir.is_symlink() && dir.canonicalize().is_ok_and(|real| in_versions(&real))
    });
    let version = version.and_then(|dir| if dir.is_dir() { Some(dir) } else { dir.parent() });
    // Sources that are kept by version are sources.
    let version = version.filter(|dir| {
        let above = dir.ancestors().skip(1).take_while(|dir| dir.starts_with(home) && *dir != home);
        above.into_iter().all(|dir| !dir.join(".git").exists())
    });
    modules.or(environment).or(version).filter(fits).map(Path::to_owned)
}

/// What a program that goes inside alone looks for beside it: the packages of a script, the library of
/// an interpreter.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let Some(dir) = program.parent() else { return Vec::new() };
    let mut found = Vec::new();
    let modules = dir.join("node_modules");
    if modules.is_dir() && !modules.is_symlink() {
        found.push(modules);
    }
    let python = program.file_name().is_some_and(|name| name.as_bytes().starts_with(b"python"));
    if let (true, Some(prefix)) = (python && dir.ends_with("bin"), dir.parent()) {
        let entries = fs::read_dir(prefix.join("lib")).into_iter().flatten().flatten();
        let library = |entry: &fs::DirEntry| {
            entry.file_name().as_bytes().starts_with(b"python3.") && entry.file_type().is_ok_and(|kind| kind.is_dir())
        };
        found.extend(entries.filter(library).map(|entry| entry.path()));
    }
    found
}

/// Returns the files with a login below what is bound: they are covered inside by an empty file. A link is
/// followed to where it leads, if that is bound.
pub fn covers(binds: &[Mount]) -> Vec<PathBuf> {
    let mut found: BTreeSet<PathBuf> = BTreeSet::new();
    for bind in binds.iter().filter(|bind| bind.source.is_dir()) {
        let direct = fs::read_dir(&bind.source).into_iter().flatten().flatten().take(MAX_LINKS);
        let mut files: Vec<PathBuf> = direct
            .filter(|entry| names_a_credential(&entry.file_name().to_string_lossy()))
            .map(|entry| entry.path())
            .collect();
        for pattern in LOGINS_BELOW {
            matching(&bind.source, pattern, &mut files);
        }
        for file in files {
            let Ok(real) = file.canonicalize() else { continue };
            if !real.is_file() {
                continue;
            }
            for path in [&file, &real] {
                for bind in binds {
                    let sources = [Some(bind.source.clone()), bind.source.canonicalize().ok()];
                    let below = sources.iter().flatten().find_map(|source| path.strip_prefix(source).ok());
                    found.extend(below.filter(|below| !below.as_os_str().is_empty()).map(|below| bind.at.join(below)));
                }
            }
        }
    }
    found.into_iter().collect()
}

/// Adds the files below `dir` that fit a pattern of [`LOGINS_BELOW`].
fn matching(dir: &Path, pattern: &str, files: &mut Vec<PathBuf>) {
    match pattern.split_once("*/") {
        None => {
            let file = dir.join(pattern);
            if file.is_file() {
                files.push(file);
            }
        }
        Some((before, after)) => {
            for entry in fs::read_dir(dir.join(before)).into_iter().flatten().flatten().take(MAX_LINKS) {
                if entry.file_type().is_ok_and(|kind| !kind.is_file()) {
                    matching(&entry.path(), after, files);
                }
            }
        }
    }
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.mode() & 0o111 != 0)
}

/// Whether a file with a login lies directly in a directory.
fn has_login(dir: &Path) -> bool {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.take(MAX_LINKS).any(|entry| names_a_credential(&entry.file_name().to_string_lossy()))
}

/// Whether a single file must stay outside.
fn is_login(home: &Path, file: &Path) -> bool {
    holds_credentials(home, file) || file.file_name().is_some_and(|name| names_a_credential(&name.to_string_lossy()))
}

/// Returns whether a path is in (or is) a directory of the home that holds credentials.
pub fn holds_credentials(home: &Path, path: &Path) -> bool {
    CREDENTIALS.iter().any(|dir| path.starts_with(home.join(dir)))
}

/// Returns whether a file of this name holds a login by its nature.
pub fn names_a_credential(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    LOGINS.contains(&name.as_str())
        || name == "credentials"
        || name.starts_with("credentials.")
        || name.starts_with("id_") && !name.contains('.')
        || name == ".env"
        || name.starts_with(".env.") && !name.ends_with(".example")
        || [".pem", ".p12", ".pfx", ".kdbx"].iter().any(|end| name.ends_with(end))
}

/// Whether a directory must not be bound whole. A directory of the home itself without a dot is the
/// user's own work or a program's (`~/google-cloud-sdk`): it may.
fn is_credentials(home: &Path, dir: &Path) -> bool {
    let Ok(relative) = dir.strip_prefix(home) else { return false };
    if SETTINGS.iter().any(|name| relative == Path::new(name)) || holds_credentials(home, dir) {
        return true;
    }
    let hidden = relative.as_os_str().as_bytes().starts_with(b".");
    relative.parent().is_some_and(|parent| SETTINGS.iter().any(|name| parent == Path::new(name)))
        && hidden
        && !TOOLCHAINS.iter().any(|known| relative == Path::new(known))
        && relative != Path::new(".local/bin")
        && relative != Path::new(".local/lib")
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
    use std::os::unix::fs::{PermissionsExt, symlink};

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
        let binds = toolchains(&home, path.as_ref(), &["mine".into()], &[]);
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
        for bind in toolchains(&home, path.as_ref(), &[], &[]) {
            assert!(!home.join(".ssh").starts_with(&bind.at), "{bind:?} shows .ssh");
            assert!(!bind.at.starts_with(home.join(".ssh")) || bind.at.is_file(), "{bind:?}");
            assert!(bind.at != home.join(".ssh/id_rsa"), "{bind:?}");
        }
    }

    /// Makes files (and their directories) and links below a home, and returns what is bound.
    fn layout(files: &[&str], links: &[(&str, &str)], path: &[&str]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().canonicalize().unwrap().join("home/ann");
        for file in files {
            fs::create_dir_all(home.join(file).parent().unwrap()).unwrap();
            fs::write(home.join(file), "#!").unwrap();
            let program = file.contains("bin/") || !file.contains('.');
            fs::set_permissions(home.join(file), fs::Permissions::from_mode(if program { 0o755 } else { 0o644 }))
                .unwrap();
        }
        for (link, target) in links {
            fs::create_dir_all(home.join(link).parent().unwrap()).unwrap();
            symlink(target, home.join(link)).unwrap();
        }
        let path: Vec<String> = path.iter().map(|dir| home.join(dir).display().to_string()).collect();
        paths(&toolchains(&home, path.join(":").as_ref(), &[], &[home.join("src/tree")]), &home)
    }

    #[test]
    fn agents_are_found_as_their_installers_lay_them_out() {
        // The native installer of Claude Code: a link to a file named as the version.
        assert_eq!(
            layout(
                &[".local/share/claude/versions/2.1.0"],
                &[(".local/bin/claude", "../share/claude/versions/2.1.0")],
                &[".local/bin"]
            ),
            [".local/bin", ".local/share/claude/versions"]
        );
        // Its older place beside the login; a script there runs what is in node_modules.
        assert_eq!(
            layout(
                &[".claude/local/claude", ".claude/local/node_modules/x/cli.js", ".claude/.credentials.json"],
                &[(".local/bin/claude", "../../.claude/local/claude")],
                &[]
            ),
            [".claude/local/node_modules", ".local/bin", ".claude/local/claude"]
        );
        // npm with a prefix of one's own: the package needs its neighbours.
        assert_eq!(
            layout(
                &["n/lib/node_modules/@a/codex/bin/codex.js", "n/lib/node_modules/@a/codex-linux/codex"],
                &[("n/bin/codex", "../lib/node_modules/@a/codex/bin/codex.js")],
                &["n/bin"]
            ),
            ["n/bin", "n/lib/node_modules"]
        );
        // nvm, volta, bun: known directories. OpenCode: a directory of its own on PATH.
        assert_eq!(
            layout(
                &[".nvm/versions/node/v20/bin/node", ".volta/bin/volta-shim", ".bun/bin/bun", ".opencode/bin/opencode"],
                &[
                    (".nvm/versions/node/v20/bin/gemini", "../lib/node_modules/g/index.js"),
                    (".volta/bin/codex", "volta-shim")
                ],
                &[".nvm/versions/node/v20/bin", ".volta/bin", ".bun/bin", ".opencode/bin"]
            ),
            [".bun", ".nvm", ".opencode/bin", ".volta"]
        );
        // uv: tools and interpreters, never its credentials. pipx with a place of its own.
        assert_eq!(
            layout(
                &[
                    ".local/share/uv/tools/aider-chat/bin/aider",
                    ".local/share/uv/python/cpython-3.12/bin/python3.12",
                    ".local/share/uv/credentials/credentials.toml",
                    "py/venvs/goose/bin/goose",
                    "py/venvs/goose/pyvenv.cfg",
                    "py/base/bin/python3",
                    "py/base/lib/python3.12/os.py",
                    "py/base/notes",
                ],
                &[
                    (".local/bin/aider", "../share/uv/tools/aider-chat/bin/aider"),
                    (".local/bin/goose", "../../py/venvs/goose/bin/goose"),
                    ("py/venvs/goose/bin/python", "../../../base/bin/python3"),
                ],
                &[".local/bin"]
            ),
            [
                ".local/bin",
                ".local/share/uv/python",
                ".local/share/uv/tools",
                "py/base/lib/python3.12",
                "py/venvs/goose",
                "py/base/bin/python3"
            ]
        );
    }

    #[test]
    fn a_login_beside_a_program_stays_outside() {
        // Beside settings, or beside a login: only the program itself.
        assert_eq!(
            layout(
                &[".amp/amp", ".amp/settings", ".config/t/tool", ".local/share/o/o", "tools/t/t", "tools/t/auth.json"],
                &[
                    (".local/bin/amp", "../../.amp/amp"),
                    (".local/bin/tool", "../../.config/t/tool"),
                    (".local/bin/o", "../share/o/o"),
                    (".local/bin/t", "../../tools/t/t"),
                    (".local/bin/login", "../../tools/t/auth.json"),
                ],
                &[".local/bin", ".config", ".config/t", ".amp", ".local/share/o"]
            ),
            [".local/bin", ".amp/amp", ".config/t/tool", ".local/share/o/o", "tools/t/t"]
        );
        assert_eq!(
            layout(
                &[".opam/default/bin/ocaml", ".opam/plugins/p/x.token", ".gem/credentials", ".gem/ruby/3/x"],
                &[],
                &[]
            ),
            [".gem/ruby", ".opam/default"]
        );
    }

    #[test]
    fn a_script_of_ones_own_brings_nothing_of_what_lies_beside_it() {
        assert_eq!(
            layout(
                &[
                    "work/secret/tool",
                    "work/secret/.git/config",
                    "work/plain/tool",
                    "work/plain/notes.txt",
                    "work/kept/versions/1/tool",
                    "work/kept/.git/config",
                    "work/venv/pyvenv.cfg",
                    "work/venv/bin/run",
                    "work/venv/.git/config",
                    "work/path/run",
                    "work/path/.git/config",
                ],
                &[
                    (".local/bin/tool", "../../work/secret/tool"),
                    (".local/bin/whole", "../../work/secret"),
                    (".local/bin/plain", "../../work/plain/tool"),
                    (".local/bin/kept", "../../work/kept/versions/1/tool"),
                    (".local/bin/venv", "../../work/venv/bin/run"),
                ],
                &["work/path"]
            ),
            [
                ".local/bin",
                "work/kept/versions/1/tool",
                "work/path/run",
                "work/plain/tool",
                "work/secret/tool",
                "work/venv/bin/run"
            ]
        );
    }

    #[test]
    fn a_known_directory_that_is_a_link_comes_with_where_it_leads() {
        assert_eq!(
            layout(&["big/rustup/settings.toml", "big/notes"], &[(".rustup", "big/rustup")], &[]),
            [".rustup", "big/rustup"]
        );
    }

    #[test]
    fn a_login_below_a_toolchain_is_covered() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let logins = [
            "n/etc/npmrc",
            "nvm/versions/node/v20.1.0/etc/npmrc",
            "nvm/.git/config",
            "conda/.condarc",
            "conda/envs/x/pip.conf",
            "gem/credentials.d",
            "gem/credentials",
            "n/kept/npmrc",
        ];
        for file in logins.iter().chain(&["n/bin/node", "nvm/nvm.sh", "other/etc/npmrc"]) {
            fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
            fs::write(root.join(file), "x").unwrap();
        }
        symlink("../kept/npmrc", root.join("nvm/etc")).unwrap();
        fs::create_dir_all(root.join("linked/etc")).unwrap();
        symlink("../../n/kept/npmrc", root.join("linked/etc/npmrc")).unwrap();
        let bind = |name: &str| Mount { source: root.join(name), at: Path::new("/at").join(name) };
        let binds = ["n", "nvm", "conda", "gem", "linked", "absent"].map(bind);
        let mut expected: Vec<PathBuf> = logins.iter().map(|login| Path::new("/at").join(login)).collect();
        expected.push("/at/linked/etc/npmrc".into());
        expected.sort();
        assert_eq!(covers(&binds), expected);
    }

    #[test]
    fn nothing_of_the_tree_is_bound_over_its_copy() {
        assert_eq!(
            layout(
                &["src/tree/node_modules/.bin/x", "src/tree/bin/y"],
                &[(".local/bin/y", "../../src/tree/bin/y")],
                &["src/tree/node_modules/.bin", "src/tree/bin"]
            ),
            [".local/bin"]
        );
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
