//! What one would serve with instead: `git daemon`, and `git http-backend` behind Apache.

use sandbox_testkit::{Child, TestEnv, which};
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A server that ends with its value.
pub struct Peer {
    /// Where it listens.
    pub address: SocketAddr,
    child: Child,
}

impl Drop for Peer {
    /// Asks it to end: Apache that is killed leaves its workers behind.
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.pid()).ok().and_then(rustix::process::Pid::from_raw);
        let asked = pid.is_some_and(|pid| rustix::process::kill_process(pid, rustix::process::Signal::TERM).is_ok());
        let start = Instant::now();
        while asked && self.child.try_ended().is_none() && start.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A port that nobody has just now.
fn free() -> Result<SocketAddr, String> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(|error| error.to_string())?;
    listener.local_addr().map_err(|error| error.to_string())
}

fn up(address: SocketAddr, child: Child, what: &str) -> Result<Peer, String> {
    let start = Instant::now();
    while TcpStream::connect(address).is_err() {
        if start.elapsed() > Duration::from_secs(10) {
            return Err(format!("{what} does not listen"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(Peer { address, child })
}

fn exec_path(env: &TestEnv, dir: &Path) -> Result<PathBuf, String> {
    let output =
        env.command(&env.git_used().path, dir).arg("--exec-path").output().map_err(|error| error.to_string())?;
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// `git daemon` as it is, but for the number of connections, which is 32 at most by default.
pub fn daemon(env: &TestEnv, root: &Path, connections: Option<u32>) -> Result<Peer, String> {
    let address = free()?;
    // The program itself: a `git daemon` that is killed leaves it behind.
    let mut command = env.command(exec_path(env, root)?.join("git-daemon"), root);
    command.args(["--listen=127.0.0.1", "--reuseaddr", "--export-all"]);
    command.args([format!("--port={}", address.port()), format!("--base-path={}", root.display())]);
    if let Some(connections) = connections {
        command.arg(format!("--max-connections={connections}"));
    }
    command.env("GIT_CONFIG_COUNT", "1").env("GIT_CONFIG_KEY_0", "safe.directory").env("GIT_CONFIG_VALUE_0", "*");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    up(address, Child::spawn(&mut command), "`git daemon`")
}

/// `git http-backend` as CGI of Apache, as Debian builds it.
pub fn apache(env: &TestEnv, root: &Path) -> Result<Peer, String> {
    let program = which("apache2").ok_or("no apache2 (apache2-bin)")?;
    let address = free()?;
    let dir = env.root().join("apache");
    fs::create_dir_all(&dir).map_err(|error| error.to_string())?;
    let modules = "/usr/lib/apache2/modules";
    let backend = exec_path(env, root)?.join("git-http-backend");
    let (dir_text, root_text, backend) = (dir.display(), root.display(), backend.display());
    let config = format!(
        "ServerRoot {dir_text}\nDefaultRuntimeDir {dir_text}\nServerName localhost\nListen {address}\nPidFile pid\n\
         ErrorLog error.log\nMutex file:{dir_text} default\nScriptSock {dir_text}/cgi.sock\n\
         LoadModule mpm_event_module {modules}/mod_mpm_event.so\n\
         LoadModule authz_core_module {modules}/mod_authz_core.so\nLoadModule alias_module {modules}/mod_alias.so\n\
         LoadModule env_module {modules}/mod_env.so\nLoadModule cgid_module {modules}/mod_cgid.so\n\
         User nobody\nGroup nogroup\nSetEnv GIT_PROJECT_ROOT {root_text}\nSetEnv GIT_HTTP_EXPORT_ALL 1\n\
         SetEnv GIT_CONFIG_COUNT 1\nSetEnv GIT_CONFIG_KEY_0 safe.directory\nSetEnv GIT_CONFIG_VALUE_0 *\n\
         SetEnvIf Git-Protocol \".*\" GIT_PROTOCOL=$0\nLoadModule setenvif_module {modules}/mod_setenvif.so\n\
         ScriptAlias / {backend}/\n<Directory />\nRequire all granted\n</Directory>\n"
    );
    // A directive comes behind the module that brings it.
    let (loads, rest): (Vec<&str>, Vec<&str>) = config.lines().partition(|line| line.starts_with("LoadModule"));
    fs::write(dir.join("httpd.conf"), [loads, rest].concat().join("\n") + "\n").map_err(|error| error.to_string())?;
    let mut command = env.command(program, root);
    command.arg("-d").arg(&dir).arg("-f").arg(dir.join("httpd.conf")).arg("-DFOREGROUND");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    up(address, Child::spawn(&mut command), "Apache")
}
