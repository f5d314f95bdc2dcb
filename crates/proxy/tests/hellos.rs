//! ClientHellos as bytes.

mod support;

use sandbox_proxy::hello::{Hello, NotTls};
use support::{hello, in_records};

fn fed(pieces: &[&[u8]]) -> Result<Option<Option<String>>, NotTls> {
    let mut hello = Hello::default();
    for (n, piece) in pieces.iter().enumerate() {
        match hello.feed(piece)? {
            None => {}
            whole => {
                assert_eq!(n + 1, pieces.len(), "whole before its end");
                return Ok(whole);
            }
        }
    }
    Ok(None)
}

#[test]
fn a_hello_comes_in_any_pieces_and_records() {
    let name = Ok(Some(Some("allow.test".to_owned())));
    let whole = hello("allow.test");
    assert_eq!(fed(&[&whole]), name);
    assert_eq!(fed(&whole.chunks(1).collect::<Vec<_>>()), name);
    for size in [1, 7, 100] {
        let records = in_records(&whole, size);
        assert_eq!(fed(&[&records]), name, "{size}");
        assert_eq!(fed(&records.chunks(1).collect::<Vec<_>>()), name, "{size}");
    }
    // With more behind it, as with early data.
    let more = [&whole[..], b"\x14\x03\x03\x00\x01\x01", b"\x17\x03\x03\x00\x03abc"].concat();
    assert_eq!(fed(&[&more]), name);
    assert_eq!(fed(&[&whole[..whole.len() - 1]]), Ok(None));
    assert_eq!(fed(&[&hello("127.0.0.1")]), Ok(Some(None)), "an address has no name");
}

#[test]
fn what_is_no_hello_is_told_at_once() {
    let whole = hello("allow.test");
    for (n, byte) in [(0, 0x15), (0, 0x80), (0, b'G'), (1, 2), (5, 2)] {
        let mut other = whole.clone();
        other[n] = byte;
        assert_eq!(fed(&[&other[..=n]]), Err(NotTls), "byte {n}");
    }
    // Two names, a name with a zero in it, a length that lies.
    let at = whole.windows(10).position(|part| part == b"allow.test").unwrap();
    for (n, byte) in [(at + 5, 0), (at - 1, 200), (at - 3, 7)] {
        let mut other = whole.clone();
        other[n] = byte;
        assert!(!matches!(fed(&[&other]), Ok(Some(Some(name))) if name == "allow.test"), "byte {n}");
    }
}

#[test]
fn a_hello_has_a_largest_size() {
    // A handshake message of 60,000 bytes that never ends, in records of 1,000.
    let mut message = vec![1, 0, 0xea, 0x60];
    message.resize(60_004, 0);
    let record = |part: &[u8]| [&[0x16, 3, 1][..], &(part.len() as u16).to_be_bytes(), part].concat();
    let mut hello = Hello::default();
    let stopped = message.chunks(1000).map(record).position(|record| hello.feed(&record).is_err());
    assert_eq!(stopped, Some(32));
}
