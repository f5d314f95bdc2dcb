//! Framing: bytes to frames and back, with hard limits, for input that may be hostile.

use crate::message::Message;

/// Bytes before the payload: length, type, stream.
pub const HEADER: usize = 9;

/// The largest payload of one frame, in bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameType {
    /// One JSON [`Message`].
    Control = 0,
    /// Bytes towards the session's standard input (or the terminal).
    Stdin = 1,
    /// Bytes of the session's standard output (or the terminal).
    Stdout = 2,
    /// Bytes of the session's standard error.
    Stderr = 3,
}

impl FrameType {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Control,
            1 => Self::Stdin,
            2 => Self::Stdout,
            3 => Self::Stderr,
            _ => return None,
        })
    }
}

/// One decoded frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What the payload is.
    pub kind: FrameType,
    /// The stream that it belongs to; 0 is the connection itself.
    pub stream: u32,
    /// The bytes; for [`FrameType::Control`] one JSON object.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Parses the payload of a control frame.
    pub fn message(&self) -> Result<Message, FrameError> {
        serde_json::from_slice(&self.payload).map_err(FrameError::Json)
    }
}

/// Why a byte stream is not a sequence of frames. None of these can be recovered from:
/// the connection is closed.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The length field is smaller than a header's rest or larger than the limit.
    #[error("frame of {0} bytes is not within the protocol's limits")]
    Length(u32),
    /// An unknown frame type.
    #[error("unknown frame type {0}")]
    Type(u8),
    /// A control frame is not a message.
    #[error("control message is not valid")]
    Json(#[source] serde_json::Error),
}

/// Cuts a byte stream into frames. Feed it with [`Decoder::push`], drain it with
/// [`Decoder::next_frame`]; it never holds more than one frame beyond what was pushed.
#[derive(Default, Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// Returns an empty decoder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes as they came from the wire.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns the next whole frame, `None` when more bytes are needed.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let rest = &self.buffer[self.start..];
        let Some(head) = rest.get(..HEADER) else { return Ok(None) };
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        if (length as usize) < HEADER - 4 || length as usize > MAX_PAYLOAD + HEADER - 4 {
            return Err(FrameError::Length(length));
        }
        let kind = FrameType::from_byte(head[4]).ok_or(FrameError::Type(head[4]))?;
        let stream = u32::from_le_bytes([head[5], head[6], head[7], head[8]]);
        let Some(payload) = rest.get(HEADER..4 + length as usize) else { return Ok(None) };
        let frame = Frame { kind, stream, payload: payload.to_vec() };
        self.start += 4 + length as usize;
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
            if self.buffer.capacity() > 2 * MAX_PAYLOAD {
                self.buffer.shrink_to(MAX_PAYLOAD);
            }
        }
        Ok(Some(frame))
    }
}

/// Appends one frame to `out`.
///
/// # Panics
/// If `payload` is longer than [`MAX_PAYLOAD`]: callers cut data into chunks.
pub fn encode(out: &mut Vec<u8>, kind: FrameType, stream: u32, payload: &[u8]) {
    assert!(payload.len() <= MAX_PAYLOAD, "payload over the frame limit");
    out.extend_from_slice(&((payload.len() + HEADER - 4) as u32).to_le_bytes());
    out.push(kind as u8);
    out.extend_from_slice(&stream.to_le_bytes());
    out.extend_from_slice(payload);
}

/// Appends one control frame to `out`.
///
/// # Panics
/// If the message is larger than a frame; messages carry names and numbers, bulk goes as data.
pub fn encode_control(out: &mut Vec<u8>, stream: u32, message: &Message) {
    assert!(try_encode_control(out, stream, message), "message over the frame limit");
}

/// As [`encode_control`], for a message whose size somebody else chose: false, and nothing
/// appended, when it is larger than a frame.
#[must_use]
pub fn try_encode_control(out: &mut Vec<u8>, stream: u32, message: &Message) -> bool {
    let json = serde_json::to_vec(message).expect("messages have no maps with non-string keys");
    let fits = json.len() <= MAX_PAYLOAD;
    if fits {
        encode(out, FrameType::Control, stream, &json);
    }
    fits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_cut() {
        let mut wire = Vec::new();
        encode(&mut wire, FrameType::Stdout, 4, b"hello");
        encode_control(&mut wire, 2, &Message::Signal { signal: 15 });
        encode(&mut wire, FrameType::Stdin, 4, b"");
        for cut in 0..wire.len() {
            let mut decoder = Decoder::new();
            let mut frames = Vec::new();
            for part in [&wire[..cut], &wire[cut..]] {
                decoder.push(part);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    frames.push(frame);
                }
            }
            assert_eq!(frames.len(), 3, "cut at {cut}");
            assert_eq!(frames[0].payload, b"hello");
            assert!(matches!(frames[1].message().unwrap(), Message::Signal { signal: 15 }));
        }
    }

    #[test]
    fn hostile_lengths_and_types_are_refused() {
        for head in [[0u8; 9], [0xff; 9], [4, 0, 0, 0, 0, 0, 0, 0, 0]] {
            let mut decoder = Decoder::new();
            decoder.push(&head);
            assert!(matches!(decoder.next_frame(), Err(FrameError::Length(_))));
        }
        let mut decoder = Decoder::new();
        decoder.push(&[5, 0, 0, 0, 9, 0, 0, 0, 0]);
        assert!(matches!(decoder.next_frame(), Err(FrameError::Type(9))));
    }

    #[test]
    fn a_message_over_the_limit_is_not_sent() {
        let exec = crate::Exec { argv: vec!["x".repeat(MAX_PAYLOAD)], ..Default::default() };
        let mut out = Vec::new();
        assert!(!try_encode_control(&mut out, 2, &Message::Exec(exec)));
        assert!(out.is_empty());
        assert!(try_encode_control(&mut out, 2, &Message::Done));
    }

    #[test]
    fn unknown_fields_are_ignored() {
        let json = br#"{"op":"signal","signal":2,"later":{"x":1}}"#;
        let frame = Frame { kind: FrameType::Control, stream: 2, payload: json.to_vec() };
        assert!(matches!(frame.message().unwrap(), Message::Signal { signal: 2 }));
    }
}
