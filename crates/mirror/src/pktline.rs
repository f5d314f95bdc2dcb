//! Git's framing (gitprotocol-common(5)): four hexadecimal digits with the length, then the bytes.
//!
//! ```text
//! 0000 flush   0001 delimiter   0002 end of a response   0004 nothing   0005… up to fff0: data
//! ```

/// Bytes of the longest packet, with its length.
pub const LONGEST: usize = 65520;

/// One packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// `0000`
    Flush,
    /// `0001`
    Delimiter,
    /// `0002`
    ResponseEnd,
    /// Bytes.
    Data(&'a [u8]),
}

impl<'a> Packet<'a> {
    /// The bytes without a line's end; `None` for what has none.
    pub fn line(self) -> Option<&'a [u8]> {
        match self {
            Self::Data(bytes) => Some(bytes.strip_suffix(b"\n").unwrap_or(bytes)),
            _ => None,
        }
    }
}

/// Bytes that are no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not git's protocol: a packet with a wrong length")]
pub struct PktError;

/// Reads the packet at the beginning of `bytes`; returns it with the bytes that it takes, or `None`
/// when it is not all there yet.
pub fn read(bytes: &[u8]) -> Result<Option<(Packet<'_>, usize)>, PktError> {
    let Some(digits) = bytes.get(..4) else {
        // What is there must be the beginning of one.
        return if bytes.iter().all(u8::is_ascii_hexdigit) { Ok(None) } else { Err(PktError) };
    };
    let digit = |byte: &u8| char::from(*byte).to_digit(16).ok_or(PktError);
    let length = digits.iter().try_fold(0, |sum, byte| Ok(sum * 16 + digit(byte)?))? as usize;
    let packet = match length {
        0 => (Packet::Flush, 4),
        1 => (Packet::Delimiter, 4),
        2 => (Packet::ResponseEnd, 4),
        3 => return Err(PktError),
        4..=LONGEST => match bytes.get(4..length) {
            Some(data) => (Packet::Data(data), length),
            None => return Ok(None),
        },
        _ => return Err(PktError),
    };
    Ok(Some(packet))
}

/// Adds a packet with these bytes, at most [`LONGEST`] − 4 of them.
pub fn write(out: &mut Vec<u8>, data: &[u8]) {
    debug_assert!(data.len() <= LONGEST - 4);
    out.extend_from_slice(format!("{:04x}", data.len() + 4).as_bytes());
    out.extend_from_slice(data);
}

/// Adds a flush.
pub fn flush(out: &mut Vec<u8>) {
    out.extend_from_slice(b"0000");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_every_kind() {
        let mut bytes = Vec::new();
        write(&mut bytes, b"want x\n");
        write(&mut bytes, b"");
        bytes.extend_from_slice(b"00010002");
        flush(&mut bytes);
        let (mut rest, mut seen) = (&bytes[..], Vec::new());
        while let Some((packet, length)) = read(rest).unwrap() {
            seen.push(format!(
                "{:?}",
                packet.line().map(|line| String::from_utf8_lossy(line).into_owned()).ok_or(packet)
            ));
            rest = &rest[length..];
        }
        assert_eq!(seen, ["Ok(\"want x\")", "Ok(\"\")", "Err(Delimiter)", "Err(ResponseEnd)", "Err(Flush)"]);
    }

    #[test]
    fn what_is_not_whole_is_waited_for_and_what_is_wrong_is_not() {
        for part in ["", "0", "000", "0008", "0008abc"] {
            assert_eq!(read(part.as_bytes()), Ok(None), "{part}");
        }
        for wrong in ["0003", "fff1", "ffff", "x", "00g0", "PACK", "-001"] {
            assert_eq!(read(wrong.as_bytes()), Err(PktError), "{wrong}");
        }
        assert_eq!(PktError.to_string(), "this is not git's protocol: a packet with a wrong length");
    }
}
