// What must hold of any bytes that an upload-pack inside sends; panics if it does not.

use sandbox_core::landing::{Conversation, relay};
use std::io::{Cursor, Read, sink};
use std::os::unix::net::UnixStream;

/// What git is given is what came, in order, and never more than the limit (the first two bytes).
pub fn relay(bytes: &[u8]) {
    let Some((head, sent)) = bytes.split_first_chunk::<2>() else { return };
    let limit = u64::from(u16::from_le_bytes(*head));
    let conversation = Conversation { from: Box::new(Cursor::new(sent.to_vec())), to: Box::new(sink()) };
    let (theirs, relay) = relay::start(conversation, limit).expect("a pair of sockets and two threads");
    let mut git = UnixStream::from(theirs);
    let mut got = Vec::new();
    // A conversation that is cut may end in a reset.
    let _ = git.read_to_end(&mut got);
    drop(git);
    let relayed = relay.finish();
    assert!(sent.starts_with(&got));
    assert_eq!(relayed.over, sent.len() as u64 > limit);
    if relayed.over {
        assert!(got.len() as u64 <= limit);
    } else {
        assert_eq!((got.len(), relayed.bytes), (sent.len(), sent.len() as u64));
    }
}
