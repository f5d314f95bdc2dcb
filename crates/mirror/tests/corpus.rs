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
