// What must hold of any bytes that come from the other end of a control channel; panics if it does not.

use sandbox_protocol::{Decoder, Frame, FrameType, MAX_PAYLOAD, encode};

/// Where the bytes are cut does not matter, and a frame is exactly the bytes that it came from.
pub fn frame(bytes: &[u8]) {
    let (whole, ended) = frames(&[bytes]);
    let middle = bytes.len() / 2;
    assert_eq!(frames(&[&bytes[..middle], &bytes[middle..]]), (whole.clone(), ended.clone()));
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(frames(&single), (whole.clone(), ended));
    let mut again = Vec::new();
    for frame in &whole {
        assert!(frame.payload.len() <= MAX_PAYLOAD);
        encode(&mut again, frame.kind, frame.stream, &frame.payload);
        if frame.kind == FrameType::Control
            && let Ok(message) = frame.message()
        {
            // What is understood can be said, and is understood in the same way.
            let said = serde_json::to_vec(&message).unwrap();
            assert_eq!(serde_json::from_slice::<sandbox_protocol::Message>(&said).unwrap(), message);
        }
    }
    assert!(bytes.starts_with(&again), "{:?}", again.escape_ascii().to_string());
}

fn frames(chunks: &[&[u8]]) -> (Vec<Frame>, Option<String>) {
    let (mut decoder, mut frames) = (Decoder::new(), Vec::new());
    for chunk in chunks {
        decoder.push(chunk);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error.to_string())),
            }
        }
    }
    (frames, None)
}
