//! The first bytes of a tunnel: a ClientHello, in as many pieces and records as it likes.

use rustls::server::Acceptor;
use std::io::Cursor;

/// Bytes within which the ClientHello has to end. Post-quantum key shares, tickets and GREASE make
/// some 2 KiB; a record holds 16.
pub(crate) const MAX_HELLO: usize = 32 * 1024;

/// A handshake record, of a version that nobody looks at, of some length, with a ClientHello in it (RFC 8446 §4, §5.1).
const START: [Option<u8>; 6] = [Some(22), Some(3), None, None, None, Some(1)];

/// What is not the beginning of a TLS connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no TLS ClientHello")]
pub struct NotTls;

/// Reads a ClientHello as its bytes come.
#[derive(Default)]
pub struct Hello {
    acceptor: Acceptor,
    seen: usize,
}

impl std::fmt::Debug for Hello {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hello").field("seen", &self.seen).finish_non_exhaustive()
    }
}

impl Hello {
    /// Takes more bytes. Returns `None` while the message is not whole, and then the server name in it,
    /// if there is one. Not to be called again after that.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Option<Option<String>>, NotTls> {
        // What every ClientHello starts with, by itself: somebody who sends four bytes of another protocol
        // and waits is told so now.
        for (at, byte) in bytes.iter().enumerate().take(START.len()) {
            if START.get(self.seen + at).is_some_and(|start| start.is_some_and(|start| start != *byte)) {
                return Err(NotTls);
            }
        }
        self.seen += bytes.len();
        let mut rest = Cursor::new(bytes);
        while (rest.position() as usize) < bytes.len() {
            self.acceptor.read_tls(&mut rest).map_err(|_| NotTls)?;
            if let Some(accepted) = self.acceptor.accept().map_err(|_| NotTls)? {
                return Ok(Some(accepted.client_hello().server_name().map(str::to_owned)));
            }
        }
        if self.seen > MAX_HELLO { Err(NotTls) } else { Ok(None) }
    }
}
