//! The fuzz targets of what comes from inside, without a fuzzer.

#[path = "../../../fuzz/entries/frame.rs"]
mod frame;
#[path = "../../../fuzz/entries/index.rs"]
mod index;
#[path = "../../../fuzz/entries/ref_name.rs"]
mod ref_name;
#[path = "../../../fuzz/entries/relay.rs"]
mod relay;

use sandbox_testkit::Corpus;

#[test]
fn frames() {
    let pieces: [&[u8]; 10] = [
        b"\0\0\0\0",
        b"\x05\0\0\0\0\0\0\0\0",
        b"\xff\xff\xff\xff",
        b"\x05\0\x01\0",
        b"{",
        b"}",
        b"\"op\":\"hello\"",
        b",",
        b"\\u0000",
        b"1e999",
    ];
    Corpus::new("frame", &pieces).run(20_000, frame::frame);
}

#[test]
fn names_of_refs() {
    let pieces: [&[u8]; 14] = [
        b"/",
        b"+",
        b"+/",
        b"%",
        b"%41",
        b"%C3%A9",
        b"..",
        b"@{",
        b".lock",
        b"\0",
        b"\x1b",
        b"\xff",
        b"refs/heads/",
        b" ",
    ];
    Corpus::new("ref_name", &pieces).run(20_000, ref_name::ref_name);
}

#[test]
fn indexes() {
    let pieces: [&[u8]; 12] = [
        b"DIRC",
        b"\0\0\0\x02",
        b"\0\0\0\x04",
        b"TREE",
        b"REUC",
        b"link",
        b"EOIE",
        b"IEOT",
        b"sdir",
        b"\0",
        b"\xff\xff\xff\xff",
        b"\x80\0",
    ];
    Corpus::new("index", &pieces).run(20_000, index::index);
}

/// Each is a conversation with two threads.
#[test]
fn relayed_bytes() {
    let pieces: [&[u8]; 5] = [b"0000", b"0001", b"ffff", b"PACK", b"\0"];
    Corpus::new("relay", &pieces).run(500, relay::relay);
}
