//! Upstreams over ssh: a real sshd on loopback with a host key, a user's key and a configuration of its own.

use crate::stand::{Mirror, PATIENCE, source, wait};
use sandbox_testkit::{Child, Repo, TestEnv, is_root, skip, wait_until, which};
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// A server that ends with its value.
struct Sshd {
    port: u16,
    key: PathBuf,
    /// The public half of its own key, as known_hosts has it.
    host_key: String,
    user: String,
    _child: Child,
}

fn keygen(env: &TestEnv, file: &Path) -> String {
    let mut keygen = env.command("ssh-keygen", env.root());
    env.run(keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"]).arg(file)).ok();
    fs::read_to_string(file.with_extension("pub")).unwrap().trim_end_matches(" test\n").to_owned()
}

impl Sshd {
    /// Starts one that lets who runs this test in, with a key.
    fn start(env: &TestEnv, program: &Path) -> Self {
        let dir = env.root().join("ssh dir");
        fs::create_dir(&dir).unwrap();
        let (host, key) = (dir.join("host"), dir.join("key"));
        let host_key = keygen(env, &host);
        fs::write(dir.join("authorized"), format!("restrict {}\n", keygen(env, &key))).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let text = format!(
            "ListenAddress 127.0.0.1:{port}\nListenAddress 127.0.0.2:{port}\nHostKey \"{}\"\nPidFile none\nUsePAM no\n\
             AuthorizedKeysFile \"{}\"\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             PermitRootLogin prohibit-password\n",
            host.display(),
            dir.join("authorized").display()
        );
        fs::write(dir.join("config"), text).unwrap();
        if is_root() {
            // Where the package's unit makes it: without it sshd does not serve as root.
            let _ = fs::create_dir("/run/sshd");
        }
        let mut command = env.command(program, env.root());
        let log = fs::File::create(dir.join("log")).unwrap();
        command.args(["-D", "-e", "-f"]).arg(dir.join("config"));
        let mut child = Child::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log));
        wait_until("sshd listens", PATIENCE, || {
            assert_eq!(child.try_ended(), None, "{}", fs::read_to_string(dir.join("log")).unwrap());
            TcpStream::connect(("127.0.0.2", port)).is_ok()
        });
        let user = env.run(env.command("id", env.root()).arg("-un")).ok().trim().to_owned();
        Self { port, key, host_key, user, _child: child }
    }

    /// `[[credential]]` and `[[repo]]` for a repository at this address.
    fn entry(&self, address: &str, bare: &Path, name: &str) -> String {
        let (port, user, key) = (self.port, &self.user, self.key.display());
        format!(
            "[[credential]]\nid = \"{address}\"\nhost = \"{address}:{port}\"\nsource = \"file:{key}\"\n\
             [[repo]]\nurl = \"ssh://{user}@{address}:{port}{}\"\nname = \"{name}\"\ncredential = \"{address}\"\n\
             interval = \"1s\"\n",
            bare.display()
        )
    }
}

fn publish(env: &TestEnv, source: &Repo) -> PathBuf {
    let bare = env.root().join("forge/project.git");
    env.git(env.root(), &["init", "-q", "--bare", bare.to_str().unwrap()]).ok();
    source.git(&["remote", "add", "forge", bare.to_str().unwrap()]).ok();
    source.git(&["push", "-q", "forge", "main"]).ok();
    bare
}

#[test]
fn an_upstream_over_ssh_is_followed_and_one_with_another_key_is_not() {
    let Some(program) = which("sshd") else { skip!("no sshd (openssh-server)") };
    let env = TestEnv::new();
    let source = source(&env, "project");
    let bare = publish(&env, &source);
    let sshd = Sshd::start(&env, &program);
    let other = keygen(&env, &env.root().join("other"));
    let known = env.root().join("known hosts");
    let port = sshd.port;
    fs::write(&known, format!("[127.0.0.1]:{port} {}\n[127.0.0.2]:{port} {other}\n", sshd.host_key)).unwrap();
    let config = format!("known_hosts = \"{}\"\n", known.display())
        + &sshd.entry("127.0.0.1", &bare, "up.test/right")
        + &sshd.entry("127.0.0.2", &bare, "up.test/wrong");
    let mirror = Mirror::start(&env, &config);
    mirror.wait_for("up.test/right", "refs/heads/main", &source.id("HEAD"));
    let second = source.commit("src/d0/file.txt", "new\n");
    source.git(&["push", "-q", "forge", "main", "main:topic"]).ok();
    mirror.wait_for("up.test/right", "refs/heads/topic", &second);

    let refused = |line: &serde_json::Value| {
        line["repo"] == "up.test/wrong" && line["error"].as_str().is_some_and(|error| error.contains("Host key"))
    };
    wait("the other key is refused", || mirror.log().iter().any(refused));
    let url = format!("{}/up.test/wrong", mirror.http);
    assert_ne!(env.git(env.root(), &["ls-remote", &url]).status, 0);
    // The key is nobody's to read: not in the log, and not in what is told of the repository.
    let secret = fs::read_to_string(&sshd.key).unwrap();
    let line = secret.lines().nth(1).unwrap();
    let told = mirror.verb(&["show", "--json", "up.test/right"]).ok();
    assert!(!told.contains(line) && !format!("{:?}", mirror.log()).contains(line));
}
