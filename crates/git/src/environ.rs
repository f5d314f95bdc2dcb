//! What git may know of the user's environment, as a value.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// The part of the user's environment that git is allowed to see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostEnv {
    /// `PATH`.
    pub path: OsString,
    /// `HOME`, if there is one.
    pub home: Option<PathBuf>,
    /// `XDG_CONFIG_HOME`, if it is set.
    pub xdg_config_home: Option<PathBuf>,
    /// What decides where configuration and repository are found: `GIT_CONFIG_*`, `GIT_DIR`,
    /// `GIT_WORK_TREE`, `GIT_CEILING_DIRECTORIES`, `GIT_DISCOVERY_ACROSS_FILESYSTEM`, `SUDO_UID`.
    /// Seen only by commands that discover a repository or read the user's configuration.
    pub discovery: Vec<(OsString, OsString)>,
    /// What a program that signs needs to find its agent and to ask for a passphrase. Seen only by commands that
    /// sign ([`GitCommand::signing`](crate::GitCommand::signing)).
    pub signing: Vec<(OsString, OsString)>,
    /// How the user reaches remotes: ssh, proxies, certificates, what asks for passwords. Seen only by commands that
    /// speak with one for the user ([`Git::remote`](crate::Git::remote)).
    pub network: Vec<(OsString, OsString)>,
}

/// Variables of [`HostEnv::network`], of git and of curl; a `*` at the end stands for any rest.
const NETWORK: &[&str] = &[
    "ALL_PROXY",
    "CURL_CA_BUNDLE",
    "GIT_ALLOW_PROTOCOL",
    "GIT_ASKPASS",
    "GIT_CURL_VERBOSE",
    "GIT_HTTP_*",
    "GIT_PROXY_*",
    "GIT_SSH",
    "GIT_SSH_COMMAND",
    "GIT_SSH_VARIANT",
    "GIT_SSL_*",
    "GIT_TERMINAL_PROMPT",
    "GIT_TRACE*",
    "HTTPS_PROXY",
    "NO_PROXY",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "all_proxy",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

/// Variables of [`HostEnv::signing`]: where gpg and ssh have keys and agents, and how they ask.
const SIGNING: &[&str] = &[
    "DBUS_SESSION_BUS_ADDRESS",
    "DISPLAY",
    "GNUPGHOME",
    "GPG_TTY",
    "LOGNAME",
    "PINENTRY_USER_DATA",
    "SSH_ASKPASS",
    "SSH_ASKPASS_REQUIRE",
    "SSH_AUTH_SOCK",
    "TERM",
    "USER",
    "WAYLAND_DISPLAY",
    "XDG_RUNTIME_DIR",
];

/// Variables of [`HostEnv::discovery`]; a `*` at the end stands for any rest.
const DISCOVERY: &[&str] = &[
    "GIT_CONFIG_GLOBAL",
    "GIT_CONFIG_SYSTEM",
    "GIT_CONFIG_NOSYSTEM",
    "GIT_CONFIG_PARAMETERS",
    "GIT_CONFIG_COUNT",
    "GIT_CONFIG_KEY_*",
    "GIT_CONFIG_VALUE_*",
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_COMMON_DIR",
    "GIT_CEILING_DIRECTORIES",
    "GIT_DISCOVERY_ACROSS_FILESYSTEM",
    // git trusts a repository of the user that called sudo.
    "SUDO_UID",
];

impl HostEnv {
    /// Picks what git may see from a whole environment.
    pub fn from_vars(vars: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let mut env = Self::default();
        for (name, value) in vars {
            match name.to_str() {
                Some("PATH") => env.path = value,
                Some("HOME") => env.home = Some(value.into()),
                Some("XDG_CONFIG_HOME") if !value.is_empty() => env.xdg_config_home = Some(value.into()),
                Some(name) if SIGNING.contains(&name) => env.signing.push((name.into(), value)),
                Some(name) if listed(DISCOVERY, name) => env.discovery.push((name.into(), value)),
                Some(name) if listed(NETWORK, name) => env.network.push((name.into(), value)),
                _ => {}
            }
        }
        env.discovery.sort();
        env.signing.sort();
        env.network.sort();
        env
    }

    /// The value of a variable of [`HostEnv::discovery`].
    pub fn discovery_var(&self, name: &str) -> Option<&OsStr> {
        self.discovery.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_os_str())
    }

    /// Finds a program as a shell would.
    pub fn find_program(&self, name: &str) -> Option<PathBuf> {
        if name.contains('/') {
            return is_executable(Path::new(name)).then(|| name.into());
        }
        std::env::split_paths(&self.path)
            .filter(|dir| dir.is_absolute())
            .map(|dir| dir.join(name))
            .find(|path| is_executable(path))
    }

    /// Files where git looks for the user's configuration, whether they exist or not.
    pub fn config_files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        match self.discovery_var("GIT_CONFIG_SYSTEM") {
            Some(file) => files.push(file.into()),
            None => files.push("/etc/gitconfig".into()),
        }
        match self.discovery_var("GIT_CONFIG_GLOBAL") {
            Some(file) => files.push(file.into()),
            None => {
                files.extend(self.xdg_file("config"));
                files.extend(self.home.as_ref().map(|home| home.join(".gitconfig")));
            }
        }
        files
    }

    /// `$XDG_CONFIG_HOME/git/<name>`, or the same below `~/.config`.
    pub fn xdg_file(&self, name: &str) -> Option<PathBuf> {
        let base = self.xdg_config_home.clone().or_else(|| Some(self.home.as_ref()?.join(".config")))?;
        Some(base.join("git").join(name))
    }
}

fn listed(list: &[&str], name: &str) -> bool {
    list.iter().any(|known| match known.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == *known,
    })
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_passes() {
        let vars =
            ["PATH=/bin", "HOME=/h", "GIT_SSH_COMMAND=evil", "GIT_DIR=/r", "GIT_TRACE=1", "GIT_CONFIG_KEY_0=a.b"];
        let env = HostEnv::from_vars(vars.iter().map(|v| {
            let (name, value) = v.split_once('=').unwrap();
            (name.into(), value.into())
        }));
        assert_eq!(env.path, "/bin");
        let names: Vec<_> = env.discovery.iter().map(|(name, _)| name.to_str().unwrap()).collect();
        assert_eq!(names, ["GIT_CONFIG_KEY_0", "GIT_DIR"]);
        assert_eq!(env.xdg_file("ignore").unwrap(), Path::new("/h/.config/git/ignore"));
    }
}
