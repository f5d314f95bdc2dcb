//! The fuzz targets of the mirror without a fuzzer.

#[path = "../../../fuzz/entries/mirror.rs"]
mod entries;

use sandbox_testkit::Corpus;

/// What parsers trip over, to be put anywhere.
const PIECES: [&[u8]; 20] = [
    b"/",
    b"//",
    b"..",
    b".",
    b"%2e",
    b"%2f",
    b"%25",
    b"%00",
    b"@",
    b":",
    b"::",
    b"-",
    b".git",
    b"[",
    b"]",
    b"\n",
    b"\\",
    b" ",
    b"://",
    b"\xc3\xbc",
];

#[test]
fn repo_name() {
    Corpus::new("repo_name", &PIECES).run(20_000, entries::repo_name);
}

#[test]
fn upstream() {
    Corpus::new("upstream", &PIECES).run(20_000, entries::upstream);
}

/// What requests are made of.
const LINES: [&[u8]; 16] = [
    b"0000",
    b"0001",
    b"0002",
    b"0003",
    b"0004",
    b"0005x",
    b"fff0",
    b"ffff",
    b"-001",
    b"0011command=fetch",
    b"0014command=ls-refs\n",
    b"0032want 1111111111111111111111111111111111111111\n",
    b"0032have 1111111111111111111111111111111111111111\n",
    b"000cdeepen 1",
    b"0014filter blob:none\n",
    b"001bref-prefix refs/heads/\n",
];

#[test]
fn pktline() {
    Corpus::new("pktline", &LINES).run(20_000, entries::pktline);
}
