//! Starts that fail, ends of every kind, and what the machine is told to be able to do.

use crate::kit::{Kit, Sandbox, groups_left, is_root};
use sandbox_core::driver::{Driver, DriverError, Verdict};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

pub fn killed_at_once() -> Result<(), String> {
    let kit = Kit::new();
    let mut sandbox = kit.launch();
    sandbox.out(
        "trap '' TERM HUP INT; setsid nohup sh -c 'trap \"\" TERM HUP INT; sleep 1000' >/dev/null 2>&1 & sleep 0.1",
    );
    let pid = sandbox.machine.process().pid;
    let pidfd = sandbox.machine.pidfd().try_clone_to_owned().unwrap();
    let started = Instant::now();
    assert!(!sandbox_sys::process::wait_gone(&pidfd, Some(Duration::ZERO)).unwrap());
    sandbox.machine.kill().unwrap();
    assert!(started.elapsed() < Duration::from_secs(3));
    assert!(sandbox_sys::process::wait_gone(&pidfd, Some(Duration::from_secs(5))).unwrap());
    sandbox.machine.kill().unwrap();
    drop(sandbox);
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "a zombie is left");
    assert_eq!(groups_left(), Vec::<PathBuf>::new());
    // A plain drop does the same.
    let sandbox = kit.launch();
    let pid = sandbox.machine.process().pid;
    drop(sandbox);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    Ok(())
}

/// Launches the sandbox of the spec in the given file, prints its pid, and waits.
pub fn supervisor(spec: String) -> ExitCode {
    let spec = serde_json::from_str(&fs::read_to_string(spec).unwrap()).unwrap();
    let machine = sandbox_drivers::by_name("namespace").unwrap().launch(&spec).unwrap();
    println!("{}", machine.process().pid);
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

pub fn dies_with_its_supervisor() -> Result<(), String> {
    let kit = Kit::new();
    let file = kit.path("spec.json");
    fs::write(&file, serde_json::to_string(&kit.spec).unwrap()).unwrap();
    let mut supervisor = Command::new(std::env::current_exe().unwrap())
        .arg0("supervisor")
        .arg(&file)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(supervisor.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let pid: u32 = line.trim().parse().unwrap();
    let boot = sandbox_sys::process::boot_id().unwrap();
    let start = sandbox_sys::process::start_time(pid).unwrap();
    let pidfd = sandbox_sys::process::open_identified(pid, start, &boot).unwrap().expect("it runs");
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    assert!(
        sandbox_sys::process::wait_gone(&pidfd, Some(Duration::from_secs(2))).unwrap(),
        "it outlives its supervisor"
    );
    // What the killed supervisor could not remove, the next sandbox that ends removes.
    drop(kit.launch());
    let left = format!("git-sandbox-{}-", supervisor.id());
    let found =
        Command::new("find").args(["/sys/fs/cgroup", "-maxdepth", "4", "-name", &format!("{left}*")]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    Ok(())
}

pub fn errors_name_their_object() -> Result<(), String> {
    let mut kit = Kit::new();
    kit.spec.trees[0].lowers[1] = kit.path("nowhere");
    assert_eq!(kit.refused().0.to_string(), format!("'{}' is gone", kit.path("nowhere").display()));

    let mut kit = Kit::new();
    kit.spec.program = kit.path("no-program");
    assert_eq!(kit.refused().0.to_string(), format!("'{}' is gone", kit.path("no-program").display()));

    let mut kit = Kit::new();
    fs::write(kit.path("not-a-program"), "#!/nowhere\n").unwrap();
    kit.spec.program = kit.path("not-a-program");
    let (error, cause) = kit.refused();
    assert_eq!(error.to_string(), format!("cannot execute '{}' inside", kit.path("not-a-program").display()));
    assert!(cause.contains("ermission denied"), "{cause}");

    let mut kit = Kit::new();
    let elsewhere = tempfile::tempdir_in("/dev/shm").map_err(|_| "no /dev/shm")?;
    kit.spec.trees[0].work = elsewhere.path().to_owned();
    let (error, cause) = kit.refused();
    let text = format!(
        "cannot mount the overlay of '/home/tester/project' (upper directory '{}', work directory '{}')",
        kit.path("upper").display(),
        elsewhere.path().display()
    );
    assert_eq!((error.to_string(), cause), (text, "they are on two file systems".to_owned()));

    let mut kit = Kit::new();
    kit.spec.trees[0].work = kit.path("upper");
    let (error, cause) = kit.refused();
    assert!(matches!(error, DriverError::Overlay { .. }), "{error:?}");
    assert_eq!(cause, "one of them is inside the other");

    let mut kit = Kit::new();
    kit.spec.user.uid = 0;
    assert!(matches!(kit.refused().0, DriverError::Unsupported { .. }));
    if !is_root() {
        kit.spec.user.uid = rustix::process::geteuid().as_raw() + 1;
        assert!(kit.refused().0.to_string().contains("run as uid"));
    }

    // A sandbox that put a link where the tree's parent was has it mounted there all the same, and not elsewhere.
    let kit = Kit::at(Path::new("/home/tester/a/project"));
    symlink("/etc", kit.path("home/a")).unwrap();
    let note = "'/home/tester/a' was in the way of '/home/tester/a/project' and is now 'a.moved-1'";
    let sandbox = kit.launch();
    assert!(sandbox.machine.notes().iter().any(|line| line == note), "{:?}", sandbox.machine.notes());
    drop(sandbox);
    assert_eq!(fs::read_link(kit.path("home/a.moved-1")).unwrap(), Path::new("/etc"));
    assert!(kit.path("home/a/project").is_dir());
    Ok(())
}

pub fn an_agent_that_ends_early() -> Result<(), String> {
    let mut kit = Kit::new();
    kit.spec.env.push(("AGENT_EXITS".into(), "3".into()));
    let (error, cause) = kit.refused();
    assert!(matches!(error, DriverError::NotReady { .. }), "{error:?}");
    assert_eq!(cause, "it exited with status 3");
    Ok(())
}

pub fn frozen_and_thawed() -> Result<(), String> {
    let kit = Kit::new();
    let mut sandbox = kit.launch();
    match sandbox.machine.freeze() {
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {
            return Err("no cgroup that this user may make".into());
        }
        other => other.unwrap(),
    }
    let pid = sandbox.machine.process().pid;
    let status = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
    sandbox.machine.thaw().unwrap();
    assert_eq!(sandbox.out("echo thawed"), "thawed\n", "{status}");
    sandbox.machine.freeze().unwrap();
    sandbox.machine.kill().unwrap();
    drop(sandbox);
    assert_eq!(groups_left(), Vec::<PathBuf>::new());
    Ok(())
}

pub fn the_machine_is_checked() -> Result<(), String> {
    let checks = sandbox_drivers::namespace::Namespace.check(&sandbox_core::launch::VmSettings::default());
    for check in &checks {
        assert_ne!(check.verdict, Verdict::Missing, "{check:?}");
        assert!(!check.found.is_empty());
    }
    for name in [
        "kernel",
        "user-namespaces",
        "proc",
        "overlay",
        "network",
        "seccomp",
        "landlock",
        "directory-renames",
        "limits",
    ] {
        assert_eq!(checks.iter().filter(|check| check.name == name).count(), 1, "{name}");
    }
    Ok(())
}

pub fn no_user_namespaces() -> Result<(), String> {
    let mut kit = Kit::new();
    const NOBODY: u32 = 65534;
    let mut unshare = Command::new("unshare");
    if is_root() {
        (kit.spec.user.uid, kit.spec.user.gid) = (NOBODY, NOBODY);
        unshare.uid(NOBODY).gid(NOBODY);
    }
    let file = kit.path("spec.json");
    fs::write(&file, serde_json::to_string(&kit.spec).unwrap()).unwrap();
    // In a user namespace whose own limit is 0; the number of the user is the same there.
    let output = unshare
        .args(["-U", "--map-current-user", "--keep-caps", "sh", "-c"])
        .arg("echo 0 > /proc/sys/user/max_user_namespaces && exec \"$0\" --launch \"$1\"")
        .arg(std::env::current_exe().unwrap())
        .arg(&file)
        .output()
        .map_err(|error| format!("needs unshare(1): {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text, "cannot create a user namespace: No space left on device (os error 28)\n", "{output:?}");
    Ok(())
}

/// Launches the sandbox of the spec in the given file and prints the error.
pub fn launch(spec: &str) {
    let spec = serde_json::from_str(&fs::read_to_string(spec).unwrap()).unwrap();
    match sandbox_drivers::by_name("namespace").unwrap().launch(&spec) {
        Ok(_) => println!("launched"),
        Err(error) => println!("{error}: {}", std::error::Error::source(&error).unwrap()),
    }
}

/// Prints how long a launch takes, from the call to the agent's first word, and the end.
pub fn bench() {
    let kit = Kit::new();
    let (mut starts, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..100 {
        let begin = Instant::now();
        let sandbox: Sandbox = kit.launch();
        starts.push(begin.elapsed());
        let begin = Instant::now();
        drop(sandbox);
        ends.push(begin.elapsed());
    }
    for (name, mut times) in [("launch", starts), ("end", ends)] {
        times.sort();
        println!("{name}: median {:?}, fastest {:?}, 95 % {:?}", times[50], times[0], times[95]);
    }
}
