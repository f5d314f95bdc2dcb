//! The stand-in agent of `examples/stand-in`, installed into the home of a test by its own installer.

use crate::env::TestEnv;
use crate::tls::Origin;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Name, contents and whether it is a program.
const FILES: &[(&str, &str)] = &[
    ("standin", include_str!("../../../examples/stand-in/standin")),
    ("server", include_str!("../../../examples/stand-in/server")),
    ("install", include_str!("../../../examples/stand-in/install")),
    ("standin.toml", include_str!("../../../examples/stand-in/standin.toml")),
];

/// An installed stand-in and its API; both are gone when it goes out of scope.
pub struct StandIn<'e> {
    env: &'e TestEnv,
    dir: PathBuf,
}

impl<'e> StandIn<'e> {
    /// What it needs that is not there; `None` when all is.
    pub fn missing() -> Option<String> {
        Origin::missing()
    }

    /// Installs it and starts its API.
    ///
    /// # Panics
    /// If the installer fails.
    #[track_caller]
    pub fn install(env: &'e TestEnv) -> Self {
        let dir = env.root().join("stand-in");
        fs::create_dir_all(&dir).expect("a new directory");
        for (name, contents) in FILES {
            fs::write(dir.join(name), contents).expect("ours");
            fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o755)).expect("ours");
        }
        let installed = Self { env, dir };
        installed.installer(&[]);
        installed
    }

    #[track_caller]
    fn installer(&self, args: &[&str]) {
        self.env.run(self.env.command(self.dir.join("install"), &self.dir).args(args)).ok();
    }

    /// The directory of the API: certificate, requests, `release`.
    pub fn api(&self) -> PathBuf {
        self.env.root().join("state/standin-api")
    }

    /// The launcher's path, as a user's `PATH` would find it.
    pub fn launcher(&self) -> PathBuf {
        self.env.home().join(".local/bin/standin")
    }

    /// The agent's dot directory on the host.
    pub fn dot(&self) -> PathBuf {
        self.env.home().join(".standin")
    }

    /// The key in its credentials on the host.
    ///
    /// # Panics
    /// If there is none.
    pub fn key(&self) -> String {
        let text = fs::read(self.dot().join("credentials.json")).expect("it was installed");
        let json: serde_json::Value = serde_json::from_slice(&text).expect("it was installed");
        json["api_key"].as_str().expect("it was installed").to_owned()
    }

    /// The port of its API.
    ///
    /// # Panics
    /// If it is not there.
    pub fn port(&self) -> u16 {
        let text = fs::read_to_string(self.api().join("port")).expect("it was installed");
        text.trim().parse().expect("a port")
    }

    /// Every request that the API has seen.
    pub fn requests(&self) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.api().join("requests.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("the API writes JSON")).collect()
    }

    /// Every prompt that is the last of a request, in the order they came.
    pub fn prompts(&self) -> Vec<String> {
        let last = |request: &serde_json::Value| Some(request["prompts"].as_array()?.last()?.as_str()?.to_owned());
        self.requests().iter().filter_map(last).collect()
    }

    /// Lets prompts that end in "and wait" come to their end; `false` takes that back.
    ///
    /// # Panics
    /// If the file cannot be written.
    pub fn release(&self, now: bool) {
        let file = self.api().join("release");
        if now { fs::write(file, "").expect("ours") } else { drop(fs::remove_file(file)) }
    }

    /// Runs the installer again.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn install_again(&self) {
        self.installer(&[]);
    }

    /// What is left of it in a directory, for a look after its end.
    pub fn left(home: &Path) -> Vec<PathBuf> {
        [".standin", ".local/bin/standin", ".local/share/standin"]
            .iter()
            .map(|name| home.join(name))
            .filter(|path| path.symlink_metadata().is_ok())
            .collect()
    }
}

impl Drop for StandIn<'_> {
    fn drop(&mut self) {
        // Not by `run`, which panics: this may be the end of a failed test.
        let mut command = self.env.command(self.dir.join("install"), &self.dir);
        let _ = command.arg("--remove").output();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_laid_out_like_a_real_one_and_goes_without_a_trace() {
        if let Some(missing) = StandIn::missing() {
            crate::skip!("{missing}");
        }
        let env = TestEnv::new();
        let agent = StandIn::install(&env);
        let real = agent.launcher().canonicalize().unwrap();
        assert!(real.ends_with(".local/share/standin/versions/1.0.0/standin"), "{}", real.display());
        assert_eq!(env.run(env.command(agent.launcher(), env.root()).arg("--version")).ok(), "standin 1.0.0\n");
        let (key, port) = (agent.key(), agent.port());
        agent.install_again();
        assert_eq!((agent.key(), agent.port()), (key, port), "installing again changes nothing");
        let pid = fs::read_to_string(agent.api().join("pid")).unwrap();
        drop(agent);
        assert!(StandIn::left(&env.home()).is_empty());
        crate::wait_until("the API has ended", std::time::Duration::from_secs(10), || {
            !Path::new("/proc").join(pid.trim()).join("fd").is_dir()
        });
    }
}
