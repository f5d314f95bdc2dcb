//! Listeners that are not plain TCP: TLS with a certificate of an own authority, and vsock.

use crate::world::{PRIVATE, SHA1, TOKEN, World};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use sandbox_mirror::identity::Gate;
use sandbox_mirror::serve::listen::{ListenError, Listener, Socket, Speaks};
use sandbox_mirror::tls;
use sandbox_testkit::skip;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::PathBuf;

/// An authority, and a certificate of it for loopback: the files of authority, certificate and key.
fn authority(world: &World, name: &str) -> [PathBuf; 3] {
    let (key, leaf_key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, format!("authority {name}"));
    let ca = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&leaf_key, &issuer).unwrap();
    let files = ["ca", "cert", "key"].map(|part| world.dir(&format!("{name}.{part}")));
    for (file, text) in files.iter().zip([ca.pem(), leaf.pem(), leaf_key.serialize_pem()]) {
        fs::write(file, text).unwrap();
    }
    files
}

#[test]
fn tls_is_spoken_and_a_client_that_knows_another_authority_refuses() {
    let world = World::new();
    let [ca, cert, key] = authority(&world, "right");
    let [other, ..] = authority(&world, "other");
    let port = world.runtime.block_on(async {
        let socket = Socket::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let port = socket.address().unwrap().port();
        let tls = Some(tls::server(&cert, &key).unwrap());
        world.service.listen(Listener { socket, speaks: Speaks::Http, gate: Gate::Anyone, tls });
        port
    });
    let trusting = |ca: &PathBuf| format!("http.sslCAInfo={}", ca.display());
    let (right, wrong) = (trusting(&ca), trusting(&other));
    let url = |name: &str| format!("https://127.0.0.1:{port}/{name}");
    world.run(&["-c", &right, "clone", "-q", &url(SHA1), "over-tls"]).ok();
    world.at(&world.dir("over-tls"), &["fsck", "--no-dangling"]).ok();
    let refused = world.run(&["-c", &wrong, "ls-remote", &url(SHA1)]).expect(128).stderr;
    assert!(refused.to_lowercase().contains("certificate"), "{refused}");
    // Not the name that the certificate is for.
    let elsewhere = url(SHA1).replace("127.0.0.1", "mirror.test");
    let there = format!("http.curloptResolve=mirror.test:{port}:127.0.0.1");
    let refused = world.run(&["-c", &right, "-c", &there, "ls-remote", &elsewhere]).expect(128).stderr;
    assert!(refused.contains("mirror.test"), "{refused}");
    // A token goes only where it cannot be read on the way.
    let token = format!("http.extraHeader=Authorization: Bearer {TOKEN}");
    let listed = world.run(&["-c", &right, "-c", &token, "ls-remote", &url(PRIVATE)]).ok();
    assert!(listed.contains("refs/heads/main"), "{listed}");
    assert!(world.run(&["-c", &right, "ls-remote", &url(PRIVATE)]).expect(128).stderr.contains("not found"));
    let before = world.seen.served().len();
    let plain = format!("http://127.0.0.1:{port}/{SHA1}");
    world.run(&["-c", &token, "ls-remote", &plain]).expect(128);
    assert_eq!(world.seen.served().len(), before, "what is not TLS is not answered");
}

#[test]
fn a_guest_reaches_it_by_vsock() {
    let world = World::new();
    // Ports of vsock are the machine's: another test run may have this one.
    let base = 40_000 + std::process::id() % 20_000;
    let mut found = None;
    for port in base..base + 50 {
        match world.runtime.block_on(async { Socket::vsock(port) }) {
            Ok(socket) => {
                found = Some((port, socket));
                break;
            }
            Err(error @ ListenError::NoVsock { .. }) => {
                let said = format!("cannot listen on vsock port {port}: this kernel has no vsock (module `vsock`)");
                assert_eq!(error.to_string(), said);
                skip!("{error}");
            }
            Err(_) => {}
        }
    }
    let (port, socket) = found.expect("one of fifty ports is free");
    world.runtime.block_on(async {
        world.service.listen(Listener { socket, speaks: Speaks::Http, gate: Gate::Anyone, tls: None });
    });
    let mut stream = match sandbox_sys::vsock::connect_local(port) {
        Ok(fd) => {
            rustix::io::ioctl_fionbio(&fd, false).unwrap();
            File::from(fd)
        }
        Err(error) => skip!("the kernel has no loopback for vsock: {error}"),
    };
    let path = format!("/{SHA1}/info/refs?service=git-upload-pack");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: mirror\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("refs/heads/main"), "{answer}");
}
