//! The probes of the threat model as one table (`table.rs`), run as whoever runs the suite: `cargo xtask test` does
//! so as an ordinary user and as root. Each has a control outside that shows that it can fail.

mod table;

use crate::Subject;
use sandbox_testkit::{Child, Output, Repo, State, is_root, skip};
use std::collections::BTreeMap;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use table::{ALL, Control, How, PRELUDE};

over_views_at_length! {
    every_probe_is_contained,
    every_probe_can_fail,
    every_probe_has_a_line,
    the_threat_model_names_tests_that_exist,
}

/// The developer set of the catalogue. G has a suite of its own (`egress`); of K is left out what needs a gateway that
/// puts secrets in (docs/threat-model.md).
const CATALOGUE: &str = "A01 A02 A04 A05 A06 A07 A08 A09 A10 A11 A12 A13 B01 B02 B03 B04 B05 B06 B07 B08 B09 B10 B11 \
    C01 C02 C03 C04 C05 C06 D01 D02 E01 E02 E03 E05 E06 E07 E08 E09 E10 E11 F01 F02 F03 F04 F05 G01 \
    J01 J02 M01 M02 M03 M04 M05 M07 M08 M09 M10 M11 M12 M13 M14 M15 R01 R02 R03 R05 R06 R07 K01 K04 \
    L01 L02 L03 V01 V02 V03 V04";

/// Where the tests are that a line can name.
const SUITES: &[(&str, &str)] = &[
    ("probes", include_str!("mod.rs")),
    ("ci", include_str!("../ci.rs")),
    ("agents", include_str!("../agents.rs")),
    ("egress", include_str!("../egress.rs")),
    ("guest", include_str!("../guest.rs")),
    ("merging", include_str!("../merging.rs")),
    ("review", include_str!("../review.rs")),
    ("wall", include_str!("../wall.rs")),
    ("hostile", include_str!("../hostile.rs")),
    ("secrecy", include_str!("../secrecy.rs")),
    ("full/bombs", include_str!("../../full/bombs.rs")),
    ("full/frozen", include_str!("../../full/frozen.rs")),
    ("remove", include_str!("../../../../crates/capture/src/remove.rs")),
    ("life", include_str!("../life.rs")),
    ("ordinary", include_str!("../ordinary.rs")),
    ("landing", include_str!("../landing.rs")),
    ("supervision", include_str!("../supervision.rs")),
    ("tools", include_str!("../tools.rs")),
    ("errors/landing", include_str!("../../errors/landing.rs")),
    ("lands", include_str!("../../../../crates/core/tests/git/lands.rs")),
    ("drivers/wall", include_str!("../../../../crates/drivers/tests/namespace/wall.rs")),
    ("drivers/view", include_str!("../../../../crates/drivers/tests/namespace/view.rs")),
    ("drivers/life", include_str!("../../../../crates/drivers/tests/namespace/life.rs")),
    ("git/ignored", include_str!("../../../../crates/git/tests/ignored.rs")),
    ("drivers/filter", include_str!("../../../../crates/drivers/src/namespace/wall.rs")),
    ("agent", include_str!("../../../../crates/agent/tests/sessions.rs")),
    ("core/picture", include_str!("../../../../crates/core/src/picture.rs")),
    ("protocol/picture", include_str!("../../../../crates/protocol/src/picture.rs")),
    ("vhost/fs", include_str!("../../../../crates/vhost/src/fs/tests.rs")),
    ("vhost/wall", include_str!("../../../../crates/vhost/src/wall.rs")),
    ("vhost/hostile", include_str!("../../../../crates/vhost/tests/hostile/main.rs")),
    ("vhost/vsock", include_str!("../../../../crates/vhost/src/vsock/tests.rs")),
    ("core/corpus", include_str!("../../../../crates/core/tests/corpus.rs")),
    ("proxy/corpus", include_str!("../../../../crates/proxy/tests/corpus.rs")),
    ("mirror/push", include_str!("../../../../crates/mirror/tests/serving/push.rs")),
    ("mirror/fetch", include_str!("../../../../crates/mirror/tests/serving/fetch.rs")),
    ("mirror/http", include_str!("../../../../crates/mirror/tests/serving/http.rs")),
    ("drivers/qemu", include_str!("../../../../crates/drivers/tests/qemu/main.rs")),
    ("drivers/qemu/plan", include_str!("../../../../crates/drivers/src/qemu/mod.rs")),
    ("devices", include_str!("../../devices.rs")),
    ("nested", include_str!("../../nested.rs")),
    ("project", include_str!("../../../../src/project.rs")),
];

/// The text of a suite, if there is one of this name.
fn suite(name: &str) -> Option<&'static str> {
    SUITES.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// What the host lays out; it goes when this does.
struct Laid {
    vars: BTreeMap<&'static str, String>,
    _files: Vec<tempfile::NamedTempFile>,
    _sockets: Vec<UnixListener>,
    _port: std::net::TcpListener,
    _process: Child,
    segment: String,
}

impl Drop for Laid {
    fn drop(&mut self) {
        let _ = Command::new("ipcrm").args(["-m", &self.segment]).status();
    }
}

impl Laid {
    fn out(subject: &Subject, repo: &Repo) -> Self {
        let file = |dir: &str| tempfile::Builder::new().prefix("gs-marker-").tempfile_in(dir).unwrap();
        let files: Vec<_> = ["/tmp", "/var/tmp", "/dev/shm"].into_iter().map(file).collect();
        let path = |file: &tempfile::NamedTempFile| file.path().display().to_string();
        let marks: Vec<String> = files.iter().map(path).collect();
        let unique = files[0].path().file_name().unwrap().to_str().unwrap().to_owned();
        let sock = format!("{}.sock", marks[0]);
        let named = UnixListener::bind(&sock).unwrap();
        let hidden = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&unique).unwrap()).unwrap();
        let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        // The pattern does not match itself.
        let argument = format!("gs-host-marker-{unique}");
        let process =
            Child::spawn(Command::new("sleep").arg0(&argument).arg("600").stdin(Stdio::null()).stdout(Stdio::null()));
        let made = Command::new("ipcmk").args(["-M", "4096"]).output().unwrap();
        let segment = String::from_utf8_lossy(&made.stdout).split(' ').next_back().unwrap_or("").trim().to_owned();
        repo.write(".git/gs-marker", "host\n");
        let config = subject.env.home().join(".gitconfig");
        let text = std::fs::read_to_string(&config).unwrap();
        let helper = "[credential]\n\thelper = \"!echo username=u; echo password=gs-canary; :\"\n";
        std::fs::write(&config, text + helper).unwrap();
        let blob = repo.sh("echo gs-hidden | git hash-object -w --stdin").ok().trim().to_owned();
        let script = format!(
            "tree=$(printf '100644 blob {blob}\\thidden\\n' | git mktree) &&
             git update-ref refs/heads/gs-hidden $(git commit-tree -m hidden $tree)"
        );
        repo.sh(&script).ok();
        let vars = BTreeMap::from([
            ("MARKS", marks.join(" ")),
            ("GIT_MARK", repo.dir().join(".git/gs-marker").display().to_string()),
            ("HIDDEN", "gs-hidden".to_owned()),
            ("HIDDEN_BLOB", blob),
            ("STATE", subject.env.state().display().to_string()),
            ("SOCK", sock),
            ("ABSTRACT", unique),
            ("PORT", port.local_addr().unwrap().port().to_string()),
            ("PROC", argument.replace("marker", "marke[r]")),
            ("SHM", segment.clone()),
        ]);
        Self { vars, _files: files, _sockets: vec![named, hidden], _port: port, _process: process, segment }
    }

    /// A command with further descriptors open, and variables that must not come in.
    fn with_descriptors(&self, subject: &Subject, dir: &Path, words: &[&str]) -> Output {
        let mut command = subject.env.command("sh", dir);
        command.args(["-c", "exec 8</ 9</etc/passwd; exec \"$@\"", "sh"]).args(words);
        command.env("MY_TOKEN", "gs-canary").env("SSH_AUTH_SOCK", "/tmp/gs-canary").env("AWS_SECRET", "gs-canary");
        command.envs(&self.vars);
        subject.env.run(&mut command)
    }
}

/// Each script in a shell of its own; what is not `ok N` has failed.
fn several(scripts: &[(usize, &str)]) -> String {
    let mut all = PRELUDE.to_owned();
    for (n, script) in scripts {
        all.push_str(&format!(
            "said=$( ( {script}\n) 2>&1 ); status=$?; printf '%s\\n' \"= {n} $status\"; test $status = 0 || printf '%s\\n' \"$said\"\n"
        ));
    }
    all
}

/// The status of each.
fn statuses(output: &Output) -> BTreeMap<usize, i32> {
    let line = |line: &str| {
        let mut words = line.strip_prefix("= ")?.split(' ');
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    };
    output.stdout.lines().filter_map(line).collect()
}

fn every_probe_is_contained(subject: &Subject) {
    if !cfg!(target_arch = "x86_64") {
        skip!("the probes have the call numbers of x86_64");
    }
    let repo = subject.repo(State::Plain);
    let laid = Laid::out(subject, &repo);
    let before = host(&repo);
    let scripts: Vec<(usize, &str)> = ALL
        .iter()
        .enumerate()
        .filter_map(|(n, probe)| if let How::Shell(inside, _) = probe.how { Some((n, inside)) } else { None })
        .collect();
    let script = several(&scripts);
    let program = subject.env.root().join("bin/git-sandbox");
    let mut words = vec![program.to_str().unwrap(), "spawn", "--driver", subject.driver];
    let vars: Vec<String> = laid.vars.iter().map(|(name, value)| format!("{name}={value}")).collect();
    for var in &vars {
        words.extend(["--env", var]);
    }
    words.extend(["probe", "--", "sh", "-c", &script]);
    let seen = laid.with_descriptors(subject, repo.dir(), &words);
    let statuses = statuses(&seen);
    let mut failed = String::new();
    for (n, _) in &scripts {
        if statuses.get(n) != Some(&0) {
            failed.push_str(&format!("{} ({}): line {n}\n", ALL[*n].id, ALL[*n].guards));
        }
    }
    assert!(failed.is_empty(), "{failed}{seen}");
    assert_eq!(host(&repo), before, "the host's repository is as before");
}

/// Refs that are not ours, and files of the repository.
fn host(repo: &Repo) -> String {
    repo.sh("git for-each-ref | grep -v refs/sandbox; find .git/objects .git/hooks -type f | sort; git fsck 2>&1")
        .stdout
}

fn every_probe_can_fail(subject: &Subject) {
    if !cfg!(target_arch = "x86_64") {
        skip!("the probes have the call numbers of x86_64");
    }
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "there");
    let laid = Laid::out(subject, &repo);
    let bare = ["unshare", "-Urmnipf", "--mount-proc", "sh", "-c"];
    let (mut on_host, mut in_bare, mut same) = (Vec::new(), Vec::new(), Vec::new());
    for (n, probe) in ALL.iter().enumerate() {
        match probe.how {
            How::Shell(inside, Control::Same) => {
                same.push(n);
                on_host.push((n, inside));
            }
            How::Shell(_, Control::Host(script)) => on_host.push((n, script)),
            How::Shell(_, Control::Root(script)) if is_root() => on_host.push((n, script)),
            How::Shell(_, Control::Bare(script)) => in_bare.push((n, script)),
            How::Shell(_, Control::Root(_) | Control::Refused(_)) | How::Tests(..) => {}
        }
    }
    let seen = laid.with_descriptors(subject, repo.dir(), &["sh", "-c", &several(&on_host)]);
    let (script, mut all) = (several(&in_bare), statuses(&seen));
    let words: Vec<&str> = bare.into_iter().chain([script.as_str()]).collect();
    let seen_bare = laid.with_descriptors(subject, repo.dir(), &words);
    all.extend(statuses(&seen_bare));
    let mut proves_nothing = String::new();
    for (n, _) in on_host.iter().chain(&in_bare) {
        let (id, guards) = (ALL[*n].id, ALL[*n].guards);
        match (same.contains(n), all.get(n)) {
            (false, Some(77)) => println!("SKIP: {id} ({guards}): this machine has no control for it"),
            (false, Some(0)) | (true, Some(1..)) => {}
            _ => proves_nothing.push_str(&format!("{id} ({guards}): line {n}\n")),
        }
    }
    assert!(proves_nothing.is_empty(), "these prove nothing:\n{proves_nothing}{seen}{seen_bare}");
}

fn every_probe_has_a_line(_: &Subject) {
    for id in CATALOGUE.split_whitespace() {
        assert!(ALL.iter().any(|probe| probe.id == id), "{id}");
    }
    for probe in ALL {
        if let How::Tests(tests, control) = probe.how {
            assert!(!control.is_empty(), "{}", probe.id);
            for test in tests {
                let (suite, name) = test.rsplit_once("::").unwrap();
                let text = self::suite(suite).unwrap_or_else(|| panic!("{}: no suite '{suite}'", probe.id));
                assert!(text.contains(&format!("fn {name}(")), "{}: there is no test '{test}'", probe.id);
            }
        }
        if let How::Shell(_, Control::Refused(why)) = probe.how {
            assert!(!why.is_empty(), "{}", probe.id);
        }
    }
}

/// Whoever reads the document can run what it says.
fn the_threat_model_names_tests_that_exist(_: &Subject) {
    let text = include_str!("../../../../docs/threat-model.md");
    let settings = include_str!("../../../../docs/threats-coverage.md");
    let mut named = 0;
    for word in text.split('`').chain(settings.split('`')).filter(|word| word.contains("::") && !word.contains(' ')) {
        let (suite, name) = word.rsplit_once("::").unwrap();
        let tests = self::suite(suite).unwrap_or_else(|| panic!("there is no suite '{suite}'"));
        assert!(name == "*" || tests.contains(&format!("fn {name}(")), "there is no test '{word}'");
        named += 1;
    }
    assert!(named > 100, "{named}");
    // Each setting is shown by something, or says that it is not.
    for line in settings.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| setting")) {
        let shown = line.split('|').nth(3).unwrap_or_default();
        assert!(["::", "probe", "not tried"].iter().any(|how| shown.contains(how)), "{line}");
    }
    // Each boundary of the table is tested by something.
    for line in text.lines().filter(|line| line.starts_with('|') && line.split('|').count() > 6) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if cells[1].parse::<u32>().is_ok() {
            assert!(cells[5].contains("::"), "{line}");
        }
    }
}
