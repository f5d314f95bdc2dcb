//! From a sandbox's record and its snapshots to a [`LaunchSpec`]: the value that a driver gets.

use crate::launch::{GeneratedFile, INSIDE, LaunchSpec, Mode, Mount, Network, PROXY_PORT, Tree, TreeView, View};
use crate::record::{GitFacts, MirrorAccess, Snapshot};
use crate::sandbox::{Sandbox, SandboxError};
use crate::store::Store;
use sandbox_git::config::Writer;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Makes the launch spec of a sandbox, in the state in which it is now.
pub fn launch_spec(store: &Store, sandbox: &Sandbox, mode: Mode, program: &Path) -> Result<LaunchSpec, SandboxError> {
    let record = &sandbox.record;
    let mut trees = Vec::new();
    let mut views: Vec<View> = Vec::new();
    let mut remotes = BTreeSet::new();
    let mut user_config = String::new();
    for tree in sandbox.trees() {
        let (n, mount) = (tree.tree, tree.mount());
        let snapshot = tree.snapshot(store)?;
        let repo = store.repo(&mount.repo);
        let gone = |path: PathBuf| SandboxError::Vanished { name: sandbox.name().to_owned(), path };
        let lowers = match record.view {
            TreeView::Overlay => stack(&snapshot, |id| repo.layer_tree(id)),
            TreeView::Copy => Vec::new(),
        };
        if let Some(missing) = lowers.iter().find(|path| !path.is_dir()) {
            return Err(gone(missing.clone()));
        }
        for view in &snapshot.git.views {
            let dir = repo.view(&view.key).join("objects");
            if !dir.is_dir() {
                return Err(gone(dir));
            }
            if views.iter().all(|known| known.key != view.key) {
                views.push(View { key: view.key.clone(), dir });
            }
        }
        remotes.extend(remote_names(&snapshot.git));
        if n == 0 {
            user_config.clone_from(&snapshot.git.user_config);
        }
        trees.push(Tree {
            at: mount.worktree.clone(),
            lowers,
            upper: tree.upper(),
            work: sandbox.dir.work(n),
            read_only: mount.read_only,
            view: record.view,
        });
    }
    let mut env = record.env.clone();
    set(&mut env, "HOME", &record.home.to_string_lossy());
    for name in ["USER", "LOGNAME"] {
        set(&mut env, name, if record.user.root { "root" } else { &record.user.name });
    }
    set(&mut env, "SHELL", &record.user.shell.to_string_lossy());
    set(&mut env, "GIT_SANDBOX", record.name.as_str());
    set(&mut env, "GIT_TERMINAL_PROMPT", "0");
    // A git built for another prefix would look for its system configuration there.
    set(&mut env, "GIT_CONFIG_SYSTEM", "/etc/gitconfig");
    set(&mut env, "ZDOTDIR", &format!("{INSIDE}/zsh"));
    if !env.iter().any(|(name, _)| name == "LANG" || name == "LC_ALL") {
        set(&mut env, "LANG", "C.UTF-8");
    }
    let path = env.iter().find(|(name, _)| name == "PATH").map(|(_, path)| path.clone());
    let path = path.unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    set(&mut env, "PATH", &format!("{path}:{INSIDE}/bin"));

    let mut links = record.links.clone();
    if let Some(first) = record.repos.first() {
        links.push((PathBuf::from("/workspace"), first.worktree.clone()));
    }
    let offline = record.network == Network::None;
    if offline {
        links.push((format!("{INSIDE}/bin/git-remote-sandbox-offline").into(), "git-sandbox".into()));
    }
    set(&mut env, "GIT_SANDBOX_NET", record.network.as_str());
    let leads = record.mirror.as_ref().filter(|_| mode == Mode::Work && sandbox.dir.mirror().exists());
    for led in leads.iter().flat_map(|mirror| &mirror.led) {
        // It can be fetched from, without a network too.
        remotes.remove(&led.remote);
    }
    let mut own_config = repo_config(offline.then_some(&remotes), record.user.root);
    if let Some(mirror) = leads {
        own_config.push_str(&mirror_remote(mirror));
        user_config.push_str(&mirror_config(mirror));
    }
    let mut files = files(record.name.as_str(), &user_config, &own_config);
    let trees_text = trees.iter().map(|tree| format!("{}\n", tree.at.display())).collect();
    files.push(GeneratedFile { path: format!("{INSIDE}/trees").into(), mode: 0o644, contents: trees_text });
    if record.network == Network::Allow {
        for (name, value) in proxy_variables() {
            set(&mut env, name, &value);
        }
        links.push((NO_SSH.into(), "git-sandbox".into()));
        files.push(apt_proxy());
        for file in files.iter_mut().filter(|file| file.path == Path::new("/etc/gitconfig")) {
            file.contents.push_str(&format!("[http]\n\tproxy = {}\n", proxy_url()));
        }
    }
    let toolchains: Vec<Mount> =
        record.toolchains.iter().map(|(source, at)| Mount { source: source.clone(), at: at.clone() }).collect();
    Ok(LaunchSpec {
        id: record.id.to_string(),
        name: record.name.to_string(),
        mode,
        trees,
        views,
        home: Mount { source: sandbox.dir.home(), at: record.home.clone() },
        tmp: sandbox.dir.tmp(),
        system: crate::host_view::SYSTEM.iter().map(PathBuf::from).collect(),
        covers: crate::host_view::covers(&toolchains),
        toolchains,
        links,
        files,
        user: record.user.clone(),
        hostname: record.name.as_str().replace(['.', '_'], "-"),
        env,
        network: record.network,
        mirror: leads.is_some(),
        limits: record.limits.clone(),
        allow_weak: record.allow_weak.clone(),
        require: record.require.clone(),
        nested: record.nested,
        program: program.to_owned(),
        vm: None,
    })
}

/// The lower directories of a snapshot, uppermost first: git's own layer, then the tree's.
pub fn stack(snapshot: &Snapshot, tree: impl Fn(&crate::id::LayerId) -> PathBuf) -> Vec<PathBuf> {
    std::iter::once(&snapshot.git_layer).chain(&snapshot.layers).map(tree).collect()
}

fn set(env: &mut Vec<(String, String)>, name: &str, value: &str) {
    env.retain(|(known, _)| known != name);
    env.push((name.to_owned(), value.to_owned()));
}

fn remote_names(git: &GitFacts) -> Vec<String> {
    git.remotes.clone()
}

/// What stands for ssh inside where only the proxy leads out: it says so.
const NO_SSH: &str = "/run/git-sandbox/bin/git-sandbox-no-ssh";

/// The proxy as tools inside see it.
fn proxy_url() -> String {
    format!("http://127.0.0.1:{PROXY_PORT}")
}

/// Variables that lead tools to the proxy: the general ones in both cases (curl reads `http_proxy` only in
/// lower case, others the upper), and those of tools that would not read them.
fn proxy_variables() -> Vec<(&'static str, String)> {
    let url = proxy_url();
    let mut variables: Vec<(&str, String)> = [
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "CARGO_HTTP_PROXY",
        "PIP_PROXY",
        "npm_config_proxy",
        "npm_config_https_proxy",
        "YARN_HTTP_PROXY",
        "YARN_HTTPS_PROXY",
    ]
    .map(|name| (name, url.clone()))
    .into();
    for name in ["no_proxy", "NO_PROXY"] {
        variables.push((name, "localhost,127.0.0.1,::1".into()));
    }
    // Node's own `fetch` looks at the variables only when told to (22.21, 24.0).
    variables.push(("NODE_USE_ENV_PROXY", "1".into()));
    variables.push(("GIT_SSH_COMMAND", NO_SSH.into()));
    variables
}

/// apt reads no variable of the upper case and, under sudo, none at all.
fn apt_proxy() -> GeneratedFile {
    let url = proxy_url();
    let contents = format!("Acquire::http::Proxy \"{url}\";\nAcquire::https::Proxy \"{url}\";\n");
    GeneratedFile { path: "/etc/apt/apt.conf".into(), mode: 0o644, contents }
}

/// What is generated inside besides what every driver makes.
fn files(name: &str, user_config: &str, repo_config: &str) -> Vec<GeneratedFile> {
    let file = |path: String, contents: String| GeneratedFile { path: path.into(), mode: 0o644, contents };
    vec![
        file("/etc/gitconfig".into(), user_config.to_owned()),
        file(format!("{INSIDE}/repo.config"), repo_config.to_owned()),
        file(
            format!("{INSIDE}/bashrc"),
            format!(
                "[ -r /etc/bash.bashrc ] && . /etc/bash.bashrc\n[ -r ~/.bashrc ] && . ~/.bashrc\n\
                 PS1='\\[\\e[1;36m\\]({name})\\[\\e[0m\\] \\w\\$ '\n"
            ),
        ),
        file(
            format!("{INSIDE}/zsh/.zshrc"),
            format!("[[ -r ~/.zshrc ]] && ZDOTDIR=~ source ~/.zshrc\nPROMPT='%B%F{{cyan}}({name})%f%b %~%# '\n"),
        ),
    ]
}

/// Git configuration of one sandbox, included by each generated `.git/config`.
///
/// Objects and refs are synced to the disk, so that a power cut takes no commit that git reported; the index too,
/// since git in a repository with a torn one does nothing at all (XFS gives a file its new name before its bytes are
/// there). Each object by itself: the method `batch` begins with `sync_file_range`, which
/// overlayfs answers with success and does nothing about, so that objects would have their names after a power
/// cut, and be empty. Seen as root (`--root`), the owner that the captured index names is not the one that git
/// sees: it compares less.
fn repo_config(offline_remotes: Option<&BTreeSet<String>>, root: bool) -> String {
    let mut text = String::from("[core]\n\tfsync = committed,pack-metadata,reference,index\n\tfsyncMethod = fsync\n");
    if root {
        text.push_str("\tcheckStat = minimal\n\ttrustctime = false\n");
    }
    text.push_str("[remote \"host\"]\n\turl = sandbox::host\n\tfetch = +refs/heads/*:refs/remotes/host/*\n");
    for remote in offline_remotes.into_iter().flatten() {
        // Without a network git would fail late and say nothing of `host`: this helper fails at
        // once and says it. The URL that the user sees stays as it is.
        let quoted = remote.replace('\\', "\\\\").replace('"', "\\\"");
        if !remote.contains(['\n', '\0']) && remote != "host" {
            text.push_str(&format!("[remote \"{quoted}\"]\n\tvcs = sandbox-offline\n"));
        }
    }
    text
}

/// What leads git inside to the mirror, in whatever directory a recipe runs it. Recipes keep naming the upstream. Pushes
/// go to the mirror too, which takes those below the session's ref and says of all others where they may go: nothing
/// inside could push elsewhere.
fn mirror_config(mirror: &MirrorAccess) -> String {
    let mut writer = Writer::new();
    for led in &mirror.led {
        writer.set(&format!("url.{}/{}.insteadOf", mirror.url, led.path), Some(&led.url));
    }
    // Without it git sends the whole tree for one commit on a base that the mirror has and does not advertise.
    writer.set("push.negotiate", Some("true"));
    for (key, value) in [("http.lowSpeedLimit", "1000"), ("http.lowSpeedTime", "30")] {
        writer.set(key, Some(value));
    }
    writer.finish()
}

/// The remote `mirror` of the sandbox's repository.
fn mirror_remote(mirror: &MirrorAccess) -> String {
    let mut writer = Writer::new();
    if let Some(first) = mirror.led.first() {
        writer.set("remote.mirror.url", Some(&format!("{}/{}", mirror.url, first.path)));
        if let Some(session) = &mirror.session {
            writer.set("remote.mirror.push", Some(&format!("HEAD:refs/agents/{session}")));
        }
        writer.set("remote.mirror.skipFetchAll", Some("true"));
    }
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Led;

    #[test]
    fn every_tool_is_led_to_the_proxy() {
        let variables = proxy_variables();
        let value = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str());
        for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "CARGO_HTTP_PROXY", "PIP_PROXY"] {
            assert_eq!(value(name), Some("http://127.0.0.1:3128"), "{name}");
        }
        assert_eq!(value("no_proxy"), value("NO_PROXY"));
        assert!(NO_SSH.starts_with(INSIDE));
        assert!(apt_proxy().contents.contains("Acquire::http::Proxy \"http://127.0.0.1:3128\";"));
    }

    #[test]
    fn git_inside_is_led_to_the_mirror() {
        let led = |remote: &str, name: &str| Led {
            remote: remote.into(),
            url: format!("https://forge.test/{name}"),
            path: format!("forge.test/{name}"),
        };
        let mirror = MirrorAccess {
            address: "unix:/run/m.sock".into(),
            url: "http://127.0.0.1:9480".into(),
            led: vec![led("origin", "o/n"), led("up\"stream", "u/n")],
            session: Some("fix-1".into()),
            record: true,
        };
        assert_eq!(
            mirror_config(&mirror),
            "[url \"http://127.0.0.1:9480/forge.test/o/n\"]\n\tinsteadOf = https://forge.test/o/n\n\
             [url \"http://127.0.0.1:9480/forge.test/u/n\"]\n\tinsteadOf = https://forge.test/u/n\n\
             [push]\n\tnegotiate = true\n[http]\n\tlowSpeedLimit = 1000\n\tlowSpeedTime = 30\n"
        );
        assert_eq!(
            mirror_remote(&mirror),
            "[remote \"mirror\"]\n\turl = http://127.0.0.1:9480/forge.test/o/n\n\
             \tpush = HEAD:refs/agents/fix-1\n\tskipFetchAll = true\n"
        );
    }

    #[test]
    fn offline_remotes_fail_at_once_and_host_is_there() {
        let remotes = ["origin", "we\"ird", "host"].map(str::to_owned).into();
        let text = repo_config(Some(&remotes), false);
        assert_eq!(
            text,
            "[core]\n\tfsync = committed,pack-metadata,reference,index\n\tfsyncMethod = fsync\n\
             [remote \"host\"]\n\turl = sandbox::host\n\tfetch = +refs/heads/*:refs/remotes/host/*\n\
             [remote \"origin\"]\n\tvcs = sandbox-offline\n[remote \"we\\\"ird\"]\n\tvcs = sandbox-offline\n"
        );
        assert!(!repo_config(None, false).contains("vcs"));
        assert!(repo_config(None, true).contains("checkStat = minimal"));
    }
}
