//! A web server under made-up names, with certificates that are made when the test runs.

use crate::env::TestEnv;
use crate::process::{Child, wait_until};
use crate::which;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

const SCRIPT: &str = include_str!("tls_origin.py");

/// Makes `ca.pem`, and `cert.pem` with `key.pem` signed by it, good for these names and for this
/// long that no test outlives it. By the `openssl` program: no library for one call in tests.
fn certificates(env: &TestEnv, dir: &Path, names: &[&str]) {
    let san = names.iter().map(|name| format!("DNS:{name}")).collect::<Vec<_>>().join(",");
    fs::write(dir.join("extensions"), format!("subjectAltName={san}\nextendedKeyUsage=serverAuth\n")).expect("ours");
    let script = r#"
        set -e
        ec='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'
        openssl req -x509 $ec -days 2 -keyout ca-key.pem -out ca.pem -subj '/CN=test CA' \
            -addext keyUsage=critical,keyCertSign
        openssl req $ec -keyout key.pem -out request.pem -subj /CN=test
        openssl x509 -req -in request.pem -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 2 \
            -extfile extensions -out cert.pem"#;
    env.run(env.command("sh", dir).args(["-c", script])).ok();
}

/// HTTPS and plain HTTP on loopback; ended when it goes out of scope. What it serves is told in `tls_origin.py`.
pub struct Origin {
    dir: PathBuf,
    https: u16,
    http: u16,
    child: Child,
}

impl Origin {
    /// What it needs that is not there; `None` when all is.
    pub fn missing() -> Option<String> {
        let missing: Vec<&str> =
            ["python3", "openssl"].into_iter().filter(|program| which(program).is_none()).collect();
        (!missing.is_empty()).then(|| format!("no {}", missing.join(" and no ")))
    }

    /// Makes the directory of an origin that somebody else starts with [`Origin::script`].
    ///
    /// # Panics
    /// If no certificate can be made.
    #[track_caller]
    pub fn prepare(env: &TestEnv, names: &[&str]) -> PathBuf {
        let dir = env.root().join(format!("origin-{}", names[0]));
        fs::create_dir_all(dir.join("files")).expect("a new directory");
        fs::create_dir_all(dir.join("git")).expect("a new directory");
        certificates(env, &dir, names);
        fs::write(dir.join("origin.py"), SCRIPT).expect("ours");
        dir
    }

    /// Starts it for these names.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn start(env: &TestEnv, names: &[&str]) -> Self {
        let dir = Self::prepare(env, names);
        let mut command = env.command("python3", &dir);
        command.arg(dir.join("origin.py")).arg(&dir).stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = Child::spawn(&mut command);
        wait_until("the web server listens", Duration::from_secs(20), || {
            assert_eq!(child.try_ended(), None, "the web server has ended");
            dir.join("ports").exists()
        });
        let ports = fs::read_to_string(dir.join("ports")).expect("it appears whole");
        let (https, http) = ports.split_once(' ').expect("two ports");
        let (https, http) = (https.parse().expect("a port"), http.parse().expect("a port"));
        Self { dir, https, http, child }
    }

    /// Its directory: `files/` and `git/` are served.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The certificate of the authority that signed the server's.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// The port of HTTPS.
    pub fn https(&self) -> u16 {
        self.https
    }

    /// The port of plain HTTP.
    pub fn http(&self) -> u16 {
        self.http
    }

    /// The rule by which a sandbox reaches it as `name`, port 443.
    pub fn rule(&self, name: &str) -> String {
        format!("{name}=127.0.0.1:{}", self.https)
    }

    /// The rule by which a sandbox reaches its plain HTTP as `name`, port 80.
    pub fn plain_rule(&self, name: &str) -> String {
        format!("{name}:80=127.0.0.1:{}", self.http)
    }

    /// What it has seen so far: accepted connections and requests.
    pub fn log(&self) -> Vec<String> {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// Lets the answers of `/hold` come to their end.
    ///
    /// # Panics
    /// If the file cannot be written.
    pub fn release(&self) {
        fs::write(self.dir.join("release"), "").expect("ours");
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_answers_under_its_name_and_no_other() {
        if let Some(missing) = Origin::missing() {
            crate::skip!("{missing}");
        }
        if which("curl").is_none() {
            crate::skip!("no curl");
        }
        let env = TestEnv::new();
        let origin = Origin::start(&env, &["allow.test"]);
        let get = |url: &str| {
            let resolve = |name: &str| format!("{name}:{}:127.0.0.1", origin.https());
            let mut curl = env.command("curl", env.root());
            curl.args(["-sS", "--resolve", &resolve("allow.test"), "--resolve", &resolve("evil.test"), "--cacert"]);
            env.run(curl.arg(origin.ca()).arg(url))
        };
        assert_eq!(get(&format!("https://allow.test:{}/", origin.https())).ok(), "reached allow.test\n");
        assert_eq!(get(&format!("http://127.0.0.1:{}/", origin.http())).ok(), "reached 127.0.0.1\n");
        assert_eq!(get(&format!("https://evil.test:{}/", origin.https())).status, 60);
        let seen = origin.log();
        assert_eq!(seen.iter().filter(|line| *line == "accept https").count(), 2, "{seen:?}");
        assert!(seen.contains(&format!("https allow.test:{} GET /", origin.https())), "{seen:?}");
    }
}
