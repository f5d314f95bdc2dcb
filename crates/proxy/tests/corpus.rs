//! The fuzz targets of the proxy without a fuzzer.

#[path = "../../../fuzz/entries/proxy.rs"]
mod entries;

use sandbox_testkit::Corpus;

/// What parsers trip over, to be put anywhere.
const PIECES: [&[u8]; 24] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b".",
    b"..",
    b"@",
    b"[",
    b"]",
    b"%",
    b"0x",
    b"xn--",
    b"*.",
    b"=",
    b"/",
    b",",
    b"Host: a.test\r\n",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"HTTP/1.0",
    b"\xc3\xbc",
];

#[test]
fn canonical_host() {
    Corpus::new("canonical_host", &PIECES).run(20_000, entries::canonical_host);
}

#[test]
fn rule() {
    Corpus::new("rule", &PIECES).run(20_000, entries::rule);
}

#[test]
fn connect_head() {
    Corpus::new("connect_head", &PIECES).run(20_000, entries::connect_head);
}
