//! The exact words of smart HTTP.

use crate::world::{SHA1, World, curl};
use std::io::Write;

fn body(lines: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in lines {
        sandbox_mirror::pktline::write(&mut bytes, format!("{line}\n").as_bytes());
    }
    sandbox_mirror::pktline::flush(&mut bytes);
    bytes
}

/// Headers in small letters, and what follows them.
fn parts(answer: &str) -> (String, String) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_ascii_lowercase(), body.to_owned())
}

#[test]
fn headers_are_gits() {
    let world = World::new();
    for (service, protocol, first) in [
        ("git-upload-pack", "", "001e# service=git-upload-pack\n0000"),
        ("git-upload-pack", "version=1", "001e# service=git-upload-pack\n0000000eversion 1\n"),
        ("git-upload-pack", "version=2", "000eversion 2\n"),
        ("git-receive-pack", "version=2", "001f# service=git-receive-pack\n0000"),
    ] {
        let url = format!("{}/info/refs?service={service}", world.url(SHA1));
        // Twice: the second time from memory, where it is kept.
        for _ in 0..2 {
            let (head, body) = parts(&curl(&world.env, &["-H", &format!("Git-Protocol: {protocol}"), &url]).ok());
            assert!(head.starts_with("http/1.1 200 ok\r\n"), "{head}");
            for line in [
                &*format!("content-type: application/x-{service}-advertisement"),
                "cache-control: no-cache, max-age=0, must-revalidate",
                "pragma: no-cache",
                "expires: fri, 01 jan 1980 00:00:00 gmt",
                "x-mirror-age: ",
            ] {
                assert!(head.contains(line), "{line} in {head}");
            }
            assert!(body.starts_with(first), "{body}");
        }
    }
}

#[test]
fn what_is_not_spoken_is_refused_with_a_word() {
    let world = World::new();
    let url = world.url(SHA1);
    let post = ["-X", "POST", "-d", "x"];
    let kind = "Content-Type: application/x-git-upload-pack-request";
    let refs = "info/refs?service=git-upload-pack";
    let cases: [(&[&str], String, &str, &str); 9] = [
        (&[], format!("{url}/info/refs"), "403", "only git's smart protocol is spoken here"),
        (&[], format!("{url}/HEAD"), "403", "only git's smart protocol is spoken here"),
        (&post, format!("{url}/git-upload-archive"), "403", "only git's smart protocol is spoken here"),
        (&post, format!("{url}/git-upload-pack"), "415", "the body must be application/x-git-upload-pack-request"),
        (
            &["-X", "POST", "-d", "x", "-H", kind, "-H", "Content-Encoding: br"],
            format!("{url}/git-upload-pack"),
            "415",
            "the only encoding of a body is gzip",
        ),
        (
            &["-X", "POST", "-d", "x", "-H", kind, "-H", "Content-Encoding: gzip"],
            format!("{url}/git-upload-pack"),
            "400",
            "the request is not git's, or was not sent to its end",
        ),
        (&[], format!("http://{}/forge.test/o/%2e%2e/r/{refs}", world.http), "404", "no such repository"),
        (&[], format!("http://{}/forge.test/o/absent/{refs}", world.http), "404", "no such repository"),
        (&[], format!("http://{}/other", world.http), "404", "not found"),
    ];
    for (args, url, status, said) in cases {
        let args: Vec<&str> = args.iter().copied().chain(["--path-as-is", &url]).collect();
        let (head, body) = parts(&curl(&world.env, &args).ok());
        assert!(head.starts_with(&format!("http/1.1 {status} ")), "{url}: {head}");
        assert_eq!(body, format!("{said}\n"));
    }
    let away = format!("http://{}/public.test/o/r/{refs}", world.http);
    let (head, _) = parts(&curl(&world.env, &[&away]).ok());
    assert!(
        head.starts_with("http/1.1 302 ") && head.contains(&format!("location: https://public.test/o/r/{refs}")),
        "{head}"
    );
}

/// A session that was taken away is nobody, also on its own socket; what is gone is told so.
#[test]
fn what_is_taken_away_is_not_served_any_more() {
    use sandbox_mirror::catalog::{Catalog, Entry, State};
    use std::sync::Arc;
    let world = World::new();
    let now = world.publisher.now();
    let gone: Vec<_> =
        now.entries().map(|entry| Arc::new(Entry { state: State::Gone, ..Entry::clone(entry) })).collect();
    world.publish(Catalog::new(gone, []));
    let refs = "info/refs?service=git-upload-pack";
    let of = |address| parts(&curl(&world.env, &[&format!("http://{address}/{SHA1}/{refs}")]).ok());
    let (head, body) = of(world.http);
    assert!(
        head.starts_with("http/1.1 410 ") && body == "the upstream does not have this repository any more\n",
        "{head}{body}"
    );
    let (head, body) = of(world.session);
    assert!(head.starts_with("http/1.1 401 ") && body == "no session has this token\n", "{head}{body}");
    let said = world.run(&["ls-remote", &format!("git://{}/{SHA1}", world.session_git)]).expect(128).stderr;
    assert_eq!(said.trim(), "fatal: remote error: the session has ended");
}

#[test]
fn bodies_may_be_compressed_and_in_pieces_but_not_without_end() {
    use sandbox_mirror::serve::Settings;
    let world = World::with(
        Settings { request_body_max: 100_000, inflate_max: 1 << 20, ..Default::default() },
        Default::default(),
    );
    let url = format!("{}/git-upload-pack", world.url(SHA1));
    let kind = "Content-Type: application/x-git-upload-pack-request";
    let list = [&body(&["command=ls-refs"])[..4 + 16], b"0000"].concat();
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let send = |name: &str, bytes: &[u8], headers: &[&str]| {
        let file = world.dir(name);
        std::fs::write(&file, bytes).unwrap();
        let data = format!("@{}", file.display());
        let mut args = vec!["-H", kind, "-H", "Git-Protocol: version=2", "--data-binary", &data];
        headers.iter().for_each(|header| args.extend(["-H", header]));
        args.push(&url);
        curl(&world.env, &args).ok()
    };
    let main = " refs/heads/main\n";
    assert!(send("plain", &list, &[]).contains(main));
    assert!(send("gzip", &gzip(&list), &["Content-Encoding: gzip"]).contains(main));
    assert!(send("chunked", &gzip(&list), &["Content-Encoding: x-gzip", "Transfer-Encoding: chunked"]).contains(main));
    let continued = send("continued", &list, &["Expect: 100-continue"]);
    assert!(continued.starts_with("HTTP/1.1 100 Continue\r\n") && continued.contains(main), "{continued}");
    let have = format!("0032have {}\n", "1".repeat(40)).repeat(100_000);
    let request = [&b"0011command=fetch0001"[..], have.as_bytes()].concat();
    let bomb = gzip(&request);
    assert!(bomb.len() < 100_000);
    let answer = send("bomb", &bomb, &["Content-Encoding: gzip"]);
    assert!(answer.contains("413 ") && answer.ends_with("the request is too large\n"), "{answer}");
    let answer = send("large", &request[..200_000], &["Expect:"]);
    assert!(answer.contains("413 "), "{answer}");
}
