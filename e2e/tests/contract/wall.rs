//! What must not be possible inside is not: what takes more than a script. The table of all probes is `probes`.

use crate::Subject;
use sandbox_testkit::{Child, State};
use std::process::Stdio;
use std::time::Duration;

over_views_at_length! {
    files_of_the_host_are_not_visible,
    logins_and_sockets_below_toolchains_are_covered,
    nothing_of_the_callers_environment_comes_in,
    the_terminal_cannot_be_typed_into,
    processes_end_with_their_sandbox,
    sandboxes_do_not_see_each_other,
    the_network_is_the_hosts_only_on_request,
    the_callers_files_are_not_standard_output_inside,
    the_probes_of_doctor_hold,
    processors_are_shared,
}

fn files_of_the_host_are_not_visible(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let marker = tempfile::Builder::new().prefix("gs-marker").tempfile_in("/tmp").expect("a file in /tmp");
    std::fs::write(subject.env.home().join("secret.txt"), "secret").unwrap();
    let other = State::Plain.build(&subject.env, "other");
    subject.idle(&repo, "idle");
    let names = [
        marker.path().to_owned(),
        subject.env.home().join("secret.txt"),
        subject.env.home().join(".gitconfig"),
        subject.env.state(),
        other.dir().to_owned(),
        repo.dir().join(".git/sandbox-id"),
        "/root/.ssh".into(),
        "/var/run/docker.sock".into(),
        "/run/dbus".into(),
        "/run/systemd".into(),
        "/boot/vmlinuz".into(),
    ];
    let list = names.clone().map(|name| format!("'{}'", name.display())).join(" ");
    let seen = subject.exec(&repo, "idle", &format!("ls -d {list} 2>/dev/null; ls -A ~ /tmp; grep -c . /etc/shadow"));
    assert!(!seen.stdout.contains("secret") && !seen.stdout.contains("gs-marker"), "{seen}");
    for line in seen.stdout.lines() {
        assert!(!names.iter().any(|name| *name == std::path::Path::new(line)), "visible: {seen}");
    }
    assert!(!seen.stdout.lines().any(|line| line.parse::<u32>().is_ok_and(|n| n > 0)), "/etc/shadow: {seen}");
}

/// What is bound read-only is there as it is, but for logins in it and for sockets of the host's daemons: a
/// read-only mount does not keep anybody from connecting.
fn logins_and_sockets_below_toolchains_are_covered(subject: &Subject) {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let repo = subject.repo(State::Plain);
    let home = subject.env.home();
    let logins = [".nvm/versions/node/v20.1.0/etc/npmrc", ".npm-global/etc/npmrc", "miniconda3/.condarc"];
    let beside = ["work/secret/.git/config", "work/secret/notes"];
    let shown = [".nvm/nvm.sh", "work/secret/tool"];
    for file in logins.iter().chain(&beside).chain(&shown) {
        std::fs::create_dir_all(home.join(file).parent().unwrap()).unwrap();
        std::fs::write(home.join(file), "gs-canary\n").unwrap();
        std::fs::set_permissions(home.join(file), PermissionsExt::from_mode(0o755)).unwrap();
    }
    std::fs::create_dir_all(home.join(".local/bin")).unwrap();
    symlink("../../work/secret/tool", home.join(".local/bin/tool")).unwrap();
    let socket = home.join(".nvm/daemon.sock");
    let _daemon = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o777)).unwrap();
    let connect = format!(
        "perl -e 'use Socket; socket(S, PF_UNIX, SOCK_STREAM, 0) or exit 3;
         exit(connect(S, pack_sockaddr_un(\"{}\")) ? 0 : 1)'",
        socket.display()
    );
    let mut script = "cd".to_owned();
    for (files, word) in [(&logins[..], "login"), (&beside, "beside"), (&shown, "shown")] {
        for file in files {
            script.push_str(&format!("; grep -qs gs-canary {file} && echo {word}"));
        }
    }
    // The name is there, and nothing can be done with it.
    script.push_str(&format!("; cat {} | wc -c; (rm -f {0} || mv {0} x) 2>/dev/null || echo kept", logins[0]));
    script.push_str(&format!("; {connect}; echo $?"));
    assert_eq!(repo.sh(&connect).status, 0, "the control");
    let seen = subject.spawn(&repo, &["covered"], &script);
    assert_eq!(seen.stdout, "shown\nshown\n0\nkept\n1\n", "{seen}");
}

fn nothing_of_the_callers_environment_comes_in(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let script =
        "cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'; env; cat /proc/[0-9]*/cmdline | tr '\\0' '\\n'";
    let args = ["spawn", "--driver", subject.driver, "--env", "WANTED=yes", "env", "--", "sh", "-c", script];
    let mut command = subject.env.sandbox_command(repo.dir(), &args);
    command
        .env("MY_TOKEN", "gs-canary")
        .env("SSH_AUTH_SOCK", "/tmp/gs-canary")
        .env("AWS_SECRET_ACCESS_KEY", "gs-canary");
    let seen = subject.env.run(&mut command).ok();
    assert!(seen.contains("WANTED=yes"), "{seen}");
    assert!(!seen.contains("gs-canary"), "{seen}");
    for name in ["SSH_AUTH_SOCK", "DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR", "DISPLAY", "GIT_CONFIG_NOSYSTEM"] {
        assert!(!seen.lines().any(|line| line.starts_with(&format!("{name}="))), "{name}: {seen}");
    }
}

/// TIOCSTI, also with bits above the 32 that the kernel looks at, and TIOCLINUX.
fn the_terminal_cannot_be_typed_into(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let probe = r#"perl -e '$c = "x"; for $n (0x5412, 0x541C, 0x541D, 0x100005412) {
        $r = syscall(16, 0, $n, $c); print "refused\n" if $r == -1 && $!{EPERM} }'"#;
    let args = ["spawn", "--driver", subject.driver, "-t", "tty", "--", "sh", "-c", probe];
    let seen = subject.env.sandbox(repo.dir(), &args);
    assert_eq!(seen.stdout.matches("refused").count(), 4, "{seen}");
    // Outside the kernel looks at the descriptor, which is no terminal.
    assert_eq!(repo.sh(probe).stdout, "", "the control");
}

fn processes_end_with_their_sandbox(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let mark = format!("{}", 900_000 + std::process::id());
    let stays = format!("setsid nohup sh -c 'trap \"\" TERM HUP INT; sleep {mark}' >/dev/null 2>&1 & sleep 0.1");
    subject.spawn(&repo, &["leaver"], &stays).ok();
    let running = || {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
            .any(|line| String::from_utf8_lossy(&line).contains(&mark))
    };
    sandbox_testkit::wait_until("the daemon of the sandbox is gone", Duration::from_secs(5), || !running());
    let outside = Child::spawn(std::process::Command::new("sleep").arg("60").stdin(Stdio::null()));
    let seen = subject.spawn(&repo, &["killer"], "kill -9 -1");
    assert!(seen.status != 125, "{seen}");
    assert!(std::path::Path::new(&format!("/proc/{}", outside.pid())).exists());
}

fn sandboxes_do_not_see_each_other(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "one");
    subject.idle(&repo, "two");
    let write = "echo one >/tmp/mine; echo one >/dev/shm/mine; echo one >~/mine; echo one >mine; git add mine; git commit -qm one; (sleep 100 &); \
                 n=0; until pgrep -x sleep >/dev/null || [ $n = 1000 ]; do n=$((n+1)); done; pgrep -cx sleep";
    assert_eq!(subject.exec(&repo, "one", write).ok(), "1\n");
    let look = "ls /tmp/mine /dev/shm/mine ~/mine mine 2>/dev/null; git log --format=%s | grep -c one; pgrep -cx sleep";
    assert_eq!(subject.exec(&repo, "two", look).stdout, "0\n0\n");
    assert!(!repo.has("mine"));
}

/// A user can see for themselves; that each probe can fail is shown beside them (`src/probe.rs`).
fn the_probes_of_doctor_hold(subject: &Subject) {
    let env = &subject.env;
    let report = env.sandbox(env.root(), &["doctor", "--probe", "--json"]).ok();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let probes = report["probes"].as_array().unwrap();
    assert!(probes.len() > 40, "{}", probes.len());
    for probe in probes {
        assert_eq!(probe["outcome"], "held", "{probe}");
    }
    for probe in probes {
        assert!(probe["ids"].as_array().is_some_and(|ids| !ids.is_empty()), "{probe}");
        assert!(["held", "broken"].contains(&probe["outside"].as_str().unwrap_or_default()), "{probe}");
    }
    // Most are possible on the host: what is held by nothing proves nothing.
    let possible = probes.iter().filter(|probe| probe["outside"] == "broken").count();
    assert!(possible > 20, "{possible}");
    for name in ["host-files", "host-ports", "capabilities", "call: setns", "call: ioctl (TIOCSTI)"] {
        assert!(probes.iter().any(|probe| probe["probe"] == name), "{name}");
    }
    assert!(env.live_processes().is_empty());
    let left = std::fs::read_dir(env.state().join("tmp")).unwrap().count();
    assert_eq!(left, 0, "the probes' own store is gone");
    let text = env.sandbox(env.root(), &["doctor", "--probe"]).ok();
    assert!(text.lines().any(|line| line.contains("held    B01") && line.contains("host-files")), "{text}");
}

fn the_network_is_the_hosts_only_on_request(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = format!(
        "perl -e 'use Socket; socket(S, PF_INET, SOCK_STREAM, 0) or exit 3;
         exit(connect(S, sockaddr_in({port}, inet_aton(\"127.0.0.1\"))) ? 0 : 1)'"
    );
    assert_eq!(subject.spawn(&repo, &["closed"], &script).status, 1);
    assert_eq!(subject.spawn(&repo, &["open", "--net", "host"], &script).status, 0);
}

/// With `>> log` code inside could cut the host's file through `/proc/self/fd/1`.
fn the_callers_files_are_not_standard_output_inside(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let log = subject.env.root().join("host.log");
    std::fs::write(&log, "before\n").unwrap();
    let file = std::fs::OpenOptions::new().append(true).open(&log).unwrap();
    let script = "echo said; : >/proc/self/fd/1; readlink /proc/self/fd/1 | grep -c host.log";
    let args = ["spawn", "--driver", subject.driver, "logger", "--", "sh", "-c", script];
    let mut command = subject.env.sandbox_command(repo.dir(), &args);
    let mut child = Child::spawn(command.stdin(Stdio::null()).stdout(file).stderr(Stdio::null()));
    child.wait(Duration::from_secs(30));
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "before\nsaid\n0\n");
}

/// Where a control group limits it, by that; else whatever runs inside comes last.
fn processors_are_shared(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    repo.sandbox(&["spawn", "-q", "--driver", subject.driver, "-d", "--cpus", "1", "s"]).ok();
    let nice =
        |stat: &str| stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap().parse::<i32>().unwrap();
    let inside = nice(&subject.exec(&repo, "s", "exec cat /proc/self/stat").ok());
    // The control: what starts it is not given the processor last.
    let here = nice(&std::fs::read_to_string("/proc/self/stat").unwrap());
    let shown: serde_json::Value = serde_json::from_str(&repo.sandbox(&["show", "--json", "s"]).ok()).unwrap();
    let fallback = shown["notes"].to_string().contains("cpu limit not enforced: no delegated cgroup");
    if fallback {
        assert_eq!(inside, (here + 10).min(19), "{shown}");
    } else {
        let live = subject.env.live_processes();
        let (_, pid) = live.iter().find(|(role, _)| role == "init").expect("it runs");
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let quota = groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
            let root = std::path::Path::new("/sys/fs/cgroup");
            let one = std::fs::read_to_string(root.join(path).join("cpu.max")).ok().filter(|_| controllers.is_empty());
            let two = || std::fs::read_to_string(root.join(controllers).join(path).join("cpu.cfs_quota_us")).ok();
            one.or_else(two)
        });
        let quota = quota.unwrap_or_else(|| panic!("no limit: {groups}{shown}"));
        assert!(quota.trim() == "100000" || quota.trim() == "100000 100000", "{quota}");
        assert_eq!(inside, here, "the limit is enough");
    }
    repo.sandbox(&["stop", "s"]).ok();
}
