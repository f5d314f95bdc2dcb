//! What of the host's system is shown inside, and what is made instead.
//!
//! ```text
//!   /usr /opt /nix …     the host's, read-only; a symlink stays the same symlink (/bin -> usr/bin)
//!   /etc                 generated: who, hosts, names; and of the host only what tools need to run
//!                        (certificates, linker cache, alternatives, time zone …), never the directory
//!   /dev                 null zero full random urandom tty, a pts of its own, nothing else
//! ```

use super::plan::{Access, Step};
use sandbox_core::launch::{LaunchSpec, Network};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The host's root directory: `/`, or a made-up one in tests.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Self { root: PathBuf::from("/") }
    }
}

/// Entries of `/etc` that are the same for every user of the machine, hold no secret, and without which
/// real tools do not run: certificates, the linker's cache, what `update-alternatives` chose, the time
/// zone, protocol and media type tables, the start files of shells, the configuration of languages.
const ETC: &[&str] = &[
    "alternatives",
    "bash.bashrc",
    "bash_completion.d",
    "bashrc",
    "chromium",
    "chromium.d",
    "crypto-policies",
    "debian_version",
    "fonts",
    "inputrc",
    "java",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "locale.conf",
    "localtime",
    "lsb-release",
    "mime.types",
    "os-release",
    "perl",
    "pki",
    "profile",
    "profile.d",
    "protocols",
    "python3",
    "redhat-release",
    "services",
    "shells",
    "ssl",
    "static",
    "terminfo",
    "timezone",
    "vim",
    "vimrc",
    "xml",
    "zsh",
    "zshrc",
];

/// Prefixes of further entries of `/etc`, with a version in their name (`java-17-openjdk`).
const ETC_PREFIXES: &[&str] = &["java-", "python3.", "php", "lua"];

/// Up to this size a file of `/etc` is copied: cheaper than a mount, at the start and at the end.
const COPY_LIMIT: u64 = 32 * 1024;

/// The character devices that are shown, with their numbers.
pub const DEVICES: &[(&str, u32, u32)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

impl Host {
    /// Returns a host whose root directory is `root`.
    #[cfg(test)]
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    fn real(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Returns whether the host has `path`, following symlinks.
    pub fn has(&self, path: &Path) -> bool {
        self.real(path).exists()
    }

    /// Returns whether `path` is a directory, following symlinks.
    pub fn is_dir(&self, path: &Path) -> bool {
        self.real(path).is_dir()
    }

    /// The steps that show the top directories of `system`.
    pub fn system(&self, system: &[PathBuf]) -> Vec<Step> {
        let mut steps = Vec::new();
        for top in system {
            let Ok(facts) = fs::symlink_metadata(self.real(top)) else { continue };
            if facts.is_symlink() {
                if let Ok(target) = fs::read_link(self.real(top)) {
                    steps.push(Step::Symlink { at: top.clone(), target });
                }
            } else if facts.is_dir() {
                steps.push(Step::Bind {
                    source: top.clone(),
                    at: top.clone(),
                    access: Access::SYSTEM,
                    directory: true,
                });
            }
        }
        steps
    }

    /// Where inside the sockets are that somebody listens on, or did, below directories that the steps show
    /// read-only: whoever can see a socket can connect to it, whatever the mount forbids. Read from the kernel's
    /// own list (`proc_net(5)`, "unix"), which is cheap where a walk is not.
    pub fn sockets_below(&self, steps: &[Step]) -> Vec<PathBuf> {
        let shown: Vec<(PathBuf, &Path)> = steps
            .iter()
            .filter_map(|step| match step {
                Step::Bind { source, at, access, directory: true } if access.read_only => {
                    Some((fs::canonicalize(self.real(source)).ok()?, at.as_path()))
                }
                _ => None,
            })
            .collect();
        let table = fs::read(self.real(Path::new("/proc/net/unix"))).unwrap_or_default();
        // Seven fields, then the path as it was given; a process may have given one with spaces.
        let path_of = |line: &[u8]| {
            let mut rest = line;
            for _ in 0..7 {
                rest = rest.trim_ascii_start();
                rest = &rest[rest.iter().position(|byte| *byte == b' ')?..];
            }
            rest.strip_prefix(b" ").filter(|path| path.starts_with(b"/")).map(<[u8]>::to_vec)
        };
        let paths: BTreeSet<Vec<u8>> = table.split(|byte| *byte == b'\n').filter_map(path_of).collect();
        let mut found = Vec::new();
        for path in paths {
            let path = Path::new(OsStr::from_bytes(&path));
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { continue };
            let Ok(real) = fs::canonicalize(self.real(parent)).map(|parent| parent.join(name)) else { continue };
            if !fs::symlink_metadata(&real).is_ok_and(|facts| facts.file_type().is_socket()) {
                continue;
            }
            found.extend(shown.iter().filter_map(|(source, at)| Some(at.join(real.strip_prefix(source).ok()?))));
        }
        found
    }

    /// The steps that make `/etc`, without the files that the spec generates itself.
    pub fn etc(&self, spec: &LaunchSpec) -> Vec<Step> {
        let mut steps = vec![Step::Symlink { at: "/etc/mtab".into(), target: "../proc/self/mounts".into() }];
        for (name, contents) in self.generated(spec) {
            let path = Path::new("/etc").join(name);
            if spec.files.iter().all(|file| file.path != path) {
                steps.push(Step::File { at: path, mode: 0o644, contents: contents.into_bytes() });
            }
        }
        let mut names: Vec<String> = ETC.iter().map(|name| (*name).to_owned()).collect();
        if let Ok(entries) = fs::read_dir(self.real(Path::new("/etc"))) {
            let more = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            names.extend(more.filter(|name| ETC_PREFIXES.iter().any(|prefix| name.starts_with(prefix))));
        }
        names.sort();
        names.dedup();
        for name in names {
            let path = Path::new("/etc").join(name);
            if spec.files.iter().all(|file| file.path != path) {
                steps.extend(self.etc_entry(spec, path));
            }
        }
        steps
    }

    fn etc_entry(&self, spec: &LaunchSpec, path: PathBuf) -> Option<Step> {
        let mut facts = fs::symlink_metadata(self.real(&path)).ok()?;
        if facts.is_symlink() {
            let target = fs::read_link(self.real(&path)).ok()?;
            let absolute = normal(&path.parent()?.join(&target));
            if spec.system.iter().any(|top| absolute.starts_with(top)) {
                return Some(Step::Symlink { at: path, target });
            }
            facts = fs::metadata(self.real(&path)).ok()?;
        }
        // What the host keeps from other users is not for a sandbox either.
        if facts.mode() & 0o004 == 0 {
            return None;
        }
        if facts.is_dir() {
            return Some(Step::Bind { source: path.clone(), at: path, access: Access::DATA, directory: true });
        }
        if !facts.is_file() {
            return None;
        }
        if facts.len() <= COPY_LIMIT {
            let contents = self.read(&path)?;
            return Some(Step::File { at: path, mode: facts.permissions().mode() & 0o755, contents });
        }
        Some(Step::Bind { source: path.clone(), at: path, access: Access::DATA, directory: false })
    }

    fn read(&self, path: &Path) -> Option<Vec<u8>> {
        // Room for all of it at once: small probing reads are most of the cost.
        let mut contents = Vec::with_capacity(COPY_LIMIT as usize + 1);
        fs::File::open(self.real(path)).ok()?.take(COPY_LIMIT).read_to_end(&mut contents).ok()?;
        Some(contents)
    }

    /// The files that say who and where one is.
    fn generated(&self, spec: &LaunchSpec) -> Vec<(&'static str, String)> {
        let user = &spec.user;
        let (name, group, home) = (&user.name, &user.group, spec.home.at.display());
        let shell = user.shell.display();
        let mut passwd = String::new();
        let mut groups = String::new();
        if user.root {
            passwd.push_str(&format!("root:x:0:0:root:{home}:{shell}\n"));
            groups.push_str("root:x:0:\n");
        } else {
            passwd.push_str("root:x:0:0:root:/root:/usr/sbin/nologin\n");
            passwd.push_str(&format!("{name}:x:{}:{}:{name}:{home}:{shell}\n", user.uid, user.gid));
            groups.push_str(&format!("root:x:0:\n{group}:x:{}:\n", user.gid));
        }
        passwd.push_str("nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n");
        groups.push_str("tty:x:5:\nnogroup:x:65534:\n");
        let host = spec.network == Network::Host;
        let own_hosts = format!("127.0.0.1\tlocalhost {0}\n::1\tlocalhost ip6-localhost {0}\n", spec.hostname);
        let of_host = |name: &str| {
            let bytes = if host { self.read(Path::new(name)) } else { None };
            bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        };
        let sources = if host { "files dns" } else { "files" };
        vec![
            ("passwd", passwd),
            ("group", groups),
            ("hostname", format!("{}\n", spec.hostname)),
            ("hosts", own_hosts + &of_host("/etc/hosts").unwrap_or_default()),
            ("resolv.conf", of_host("/etc/resolv.conf").unwrap_or_default()),
            (
                "nsswitch.conf",
                format!("passwd: files\ngroup: files\nshadow: files\nhosts: {sources}\nservices: files\n"),
            ),
            ("machine-id", format!("{}\n", spec.id)),
        ]
    }
}

/// Takes `.` and `..` out of a path by its text alone.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            std::path::Component::ParentDir => {
                out.pop();
            }
            std::path::Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::plan::tests::spec;
    use std::os::unix::fs::symlink;

    fn host() -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for path in ["usr/bin", "opt", "etc/ssl/certs", "etc/alternatives", "etc/secret.d", "etc/profile.d"] {
            fs::create_dir_all(root.join(path)).unwrap();
        }
        symlink("usr/bin", root.join("bin")).unwrap();
        symlink("/usr/share/zoneinfo/UTC", root.join("etc/localtime")).unwrap();
        symlink("../usr/lib/os-release", root.join("etc/os-release")).unwrap();
        fs::write(root.join("etc/services"), "ssh 22/tcp\n").unwrap();
        fs::write(root.join("etc/ld.so.cache"), vec![0u8; 40_000]).unwrap();
        fs::write(root.join("etc/shadow"), "root:!").unwrap();
        fs::write(root.join("etc/inputrc"), "private").unwrap();
        fs::write(root.join("etc/resolv.conf"), "nameserver 10.0.0.1\n").unwrap();
        fs::set_permissions(root.join("etc/inputrc"), fs::Permissions::from_mode(0o600)).unwrap();
        let host = Host::at(root);
        (dir, host)
    }

    fn lines(steps: &[Step]) -> String {
        steps.iter().map(|step| format!("{step}\n")).collect()
    }

    #[test]
    fn system_directories_keep_their_shape() {
        let (_dir, host) = host();
        let steps = host.system(&["/usr".into(), "/bin".into(), "/opt".into(), "/nix".into()]);
        assert_eq!(
            lines(&steps),
            "bind      /usr  ro,nosuid,nodev\nsymlink   /bin -> usr/bin\nbind      /opt  ro,nosuid,nodev\n"
        );
    }

    #[test]
    fn etc_is_made_and_shows_nothing_private() {
        let (_dir, host) = host();
        let text = lines(&host.etc(&spec()));
        for line in [
            "symlink   /etc/localtime -> /usr/share/zoneinfo/UTC",
            "symlink   /etc/os-release -> ../usr/lib/os-release",
            "bind      /etc/ssl  ro,nosuid,nodev,noexec",
            "bind      /etc/ld.so.cache  ro,nosuid,nodev,noexec",
            "file      /etc/services  644, 11 bytes",
            "file      /etc/resolv.conf  644, 0 bytes",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        for name in ["shadow", "secret", "inputrc", "gitconfig"] {
            assert!(!text.contains(name), "{name}\n{text}");
        }
    }

    #[test]
    fn the_hosts_network_brings_its_resolver() {
        let (_dir, host) = host();
        let mut spec = spec();
        spec.network = Network::Host;
        let of = |name: &str| host.generated(&spec).into_iter().find(|(file, _)| *file == name).unwrap().1;
        assert_eq!(of("resolv.conf"), "nameserver 10.0.0.1\n");
        assert!(of("nsswitch.conf").contains("hosts: files dns"));
    }

    #[test]
    fn root_inside_is_the_only_user() {
        let (_dir, host) = host();
        let mut spec = spec();
        spec.user.root = true;
        let passwd = &host.generated(&spec)[0].1;
        assert!(passwd.starts_with("root:x:0:0:root:/home/dev:/bin/bash\nnobody"), "{passwd}");
    }
}
