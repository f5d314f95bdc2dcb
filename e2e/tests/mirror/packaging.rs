//! What an administrator installs: the unit, the manifests, the image recipe and the configurations in them.

use crate::tools;
use sandbox_testkit::{TestEnv, skip, which};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;

const UNIT: &str = include_str!("../../../deploy/mirror/git-sandbox-mirror.service");
const MANIFESTS: &str = include_str!("../../../deploy/mirror/kubernetes/mirror.yaml");
const IMAGE: &str = include_str!("../../../deploy/mirror/Containerfile");

/// A file of the environment with this text.
fn file(env: &TestEnv, name: &str, text: &str) -> PathBuf {
    let file = env.root().join(name);
    fs::write(&file, text).unwrap();
    file
}

/// The unit with this build in place of the installed program, which `verify` looks for.
fn unit(env: &TestEnv) -> PathBuf {
    let product = env.root().join("bin/git-sandbox").canonicalize().unwrap();
    assert!(UNIT.contains("=/usr/bin/git-sandbox "), "{UNIT}");
    file(
        env,
        "git-sandbox-mirror.service",
        &UNIT.replace("=/usr/bin/git-sandbox ", &format!("={} ", product.display())),
    )
}

#[test]
fn the_unit_is_one_that_systemd_takes_whole() {
    if which("systemd-analyze").is_none() {
        skip!("no systemd-analyze");
    }
    let env = TestEnv::new();
    let unit = unit(&env);
    let verify =
        |file: &PathBuf| env.run(env.command("systemd-analyze", env.root()).args(["verify", "--man=no"]).arg(file));
    // Warnings of a directive that it does not know go to standard error, with status 0.
    let output = verify(&unit);
    assert_eq!(output.to_string(), "---- status 0\n");
    // The control: a directive that is none.
    fs::write(&unit, format!("{}\n[Service]\nProtectEverything=yes\n", fs::read_to_string(&unit).unwrap())).unwrap();
    let output = verify(&unit);
    assert!(output.to_string().contains("ProtectEverything"), "{output}");
}

#[test]
fn the_unit_keeps_its_hardening() {
    if which("systemd-analyze").is_none() {
        skip!("no systemd-analyze");
    }
    let env = TestEnv::new();
    let unit = unit(&env);
    // The number is ten times the level that the tool shows: 2.0 is what only a service that needs no network gets
    // far below.
    let args = ["security", "--offline=yes", "--threshold=20", "--no-pager"];
    let output = env.run(env.command("systemd-analyze", env.root()).args(args).arg(&unit));
    if output.stderr.contains("unrecognized option") {
        skip!("this systemd-analyze judges no files");
    }
    assert_eq!(output.status, 0, "{output}");
}

#[test]
fn the_manifests_follow_the_schema_of_kubernetes() {
    let Some(python) = tools::python("kubernetes_validate") else {
        skip!("no kubernetes-validate (PyPI) in target/tools");
    };
    let env = TestEnv::new();
    let check = |file: &PathBuf| {
        let mut command = env.command(&python.program, env.root());
        env.run(command.env("PYTHONPATH", &python.packages).args(["-m", "kubernetes_validate", "--strict"]).arg(file))
    };
    let output = check(&file(&env, "mirror.yaml", MANIFESTS));
    assert_eq!(output.status, 0, "{output}");
    for kind in ["daemonset/mirror", "service/mirror", "networkpolicy/mirror", "configmap/mirror"] {
        assert!(format!("{}{}", output.stdout, output.stderr).contains(kind), "{output}");
    }
    let wrong = MANIFESTS.replace("readinessProbe:", "readynessProbe:");
    let output = check(&file(&env, "wrong.yaml", &wrong));
    assert!(output.status != 0 && output.to_string().contains("readynessProbe"), "{output}");
}

#[test]
fn kubectl_takes_the_manifests() {
    if which("kubectl").is_none() {
        skip!("no kubectl");
    }
    let env = TestEnv::new();
    let server = Discovery::start();
    let apply = |file: &PathBuf| {
        let server = format!("--server=http://{}", server.address);
        let args = ["apply", "--dry-run=client", "--validate=false", &server, "-f"];
        env.run(env.command("kubectl", env.root()).args(args).arg(file))
    };
    let output = apply(&file(&env, "mirror.yaml", MANIFESTS));
    assert_eq!(output.status, 0, "{output}");
    for line in [
        "namespace/git-mirror created (dry run)",
        "serviceaccount/mirror created (dry run)",
        "configmap/mirror created (dry run)",
        "daemonset.apps/mirror created (dry run)",
        "service/mirror created (dry run)",
        "networkpolicy.networking.k8s.io/mirror created (dry run)",
    ] {
        assert!(output.stdout.contains(line), "no `{line}` in {output}");
    }
    let wrong = MANIFESTS.replace("kind: DaemonSet", "kind: DemonSet");
    assert_ne!(apply(&file(&env, "wrong.yaml", &wrong)).status, 0);
}

/// What `kubectl --dry-run=client` asks a cluster: which kinds there are, and whether an object exists. This one has
/// the kinds of the manifests, and no object.
struct Discovery {
    address: std::net::SocketAddr,
}

impl Discovery {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || Self::answer(&stream));
            }
        });
        Self { address }
    }

    fn answer(mut stream: &TcpStream) -> Option<()> {
        let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
        loop {
            let request = lines.next()?.ok()?;
            while !lines.next()?.ok()?.is_empty() {}
            let path = request.split(' ').nth(1)?.split('?').next()?.to_owned();
            let resource = |name: &str, kind: &str, namespaced: bool| {
                format!(
                    r#"{{"name":"{name}","singularName":"","kind":"{kind}","namespaced":{namespaced},"verbs":["get","create","patch"]}}"#
                )
            };
            let list = |version: &str, all: &[String]| {
                let all = all.join(",");
                format!(
                    r#"{{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"{version}","resources":[{all}]}}"#
                )
            };
            let group = |name: &str| {
                let version = format!(r#"{{"groupVersion":"{name}/v1","version":"v1"}}"#);
                format!(r#"{{"name":"{name}","versions":[{version}],"preferredVersion":{version}}}"#)
            };
            let body = match &*path {
                "/version" => r#"{"major":"1","minor":"32","gitVersion":"v1.32.0"}"#.to_owned(),
                "/api" => r#"{"kind":"APIVersions","versions":["v1"]}"#.to_owned(),
                "/apis" => format!(
                    r#"{{"kind":"APIGroupList","apiVersion":"v1","groups":[{},{}]}}"#,
                    group("apps"),
                    group("networking.k8s.io")
                ),
                "/api/v1" => list(
                    "v1",
                    &[
                        resource("namespaces", "Namespace", false),
                        resource("serviceaccounts", "ServiceAccount", true),
                        resource("configmaps", "ConfigMap", true),
                        resource("services", "Service", true),
                    ],
                ),
                "/apis/apps/v1" => list("apps/v1", &[resource("daemonsets", "DaemonSet", true)]),
                "/apis/networking.k8s.io/v1" => {
                    list("networking.k8s.io/v1", &[resource("networkpolicies", "NetworkPolicy", true)])
                }
                _ => String::new(),
            };
            let (status, body) = match body.is_empty() {
                false => ("200 OK", body),
                true => (
                    "404 Not Found",
                    r#"{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}"#
                        .to_owned(),
                ),
            };
            let length = body.len();
            let head =
                format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
            stream.write_all(format!("{head}{body}").as_bytes()).ok()?;
        }
    }
}

#[test]
fn the_image_has_what_the_service_runs() {
    let lines: Vec<&str> = IMAGE.lines().filter(|line| !line.starts_with('#')).collect();
    let words = lines.join("\n");
    for needed in ["FROM ", "git ", "openssh-client", "ca-certificates", "tini", "USER 65532", "ENTRYPOINT [\"tini\""] {
        assert!(words.contains(needed), "no '{needed}' in {IMAGE}");
    }
    // The same user as in the manifests.
    assert!(MANIFESTS.contains("runAsUser: 65532"));
}
