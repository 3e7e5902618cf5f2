//! Frames on a stream: a length of four bytes, little-endian, and that many bytes of a protobuf message.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

use crate::limits::MAX_FRAME;

/// Why a frame was refused. The stream can't go on after it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The length exceeds [`MAX_FRAME`].
    #[error("a frame of {0} bytes; at most {MAX_FRAME} are allowed")]
    TooLarge(usize),
    /// The bytes are not the message that belongs here.
    #[error("a frame that can't be read: {0}")]
    Malformed(String),
}

/// Appends a message as a frame.
pub fn encode<M: Message>(message: &M, out: &mut BytesMut) -> Result<(), Error> {
    let len = message.encoded_len();
    if len > MAX_FRAME {
        return Err(Error::TooLarge(len));
    }
    out.reserve(4 + len);
    out.put_u32_le(u32::try_from(len).map_err(|_| Error::TooLarge(len))?);
    message.encode(out).map_err(|e| Error::Malformed(e.to_string()))
}

/// Takes the next whole frame off the front of `input`; `None` when it is not all there yet.
pub fn split(input: &mut BytesMut) -> Result<Option<Bytes>, Error> {
    let Some(head) = input.first_chunk::<4>() else {
        return Ok(None);
    };
    let len = u32::from_le_bytes(*head) as usize;
    if len > MAX_FRAME {
        return Err(Error::TooLarge(len));
    }
    if input.len() < 4 + len {
        // a hostile length reserves nothing: memory grows with what has really arrived
        return Ok(None);
    }
    input.advance(4);
    Ok(Some(input.split_to(len).freeze()))
}

/// Takes the next whole message off the front of `input`; `None` when it is not all there yet.
pub fn decode<M: Message + Default>(input: &mut BytesMut) -> Result<Option<M>, Error> {
    match split(input)? {
        Some(frame) => M::decode(frame).map(Some).map_err(|e| Error::Malformed(e.to_string())),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;

    #[test]
    fn a_frame_is_pinned_and_comes_back() {
        let mut bytes = BytesMut::new();
        let event = Event::new("hi").with_key("k");
        assert_eq!(encode(&event, &mut bytes), Ok(()));
        assert_eq!(bytes.as_ref(), b"\x07\0\0\0\x0a\x01k\x1a\x02hi");
        let mut partial = BytesMut::from(bytes.get(..6).unwrap_or_default());
        assert_eq!(decode::<Event>(&mut partial), Ok(None));
        assert_eq!(decode(&mut bytes), Ok(Some(event)));
        assert!(bytes.is_empty());
    }

    #[test]
    fn a_length_over_the_limit_and_garbage_are_refused() {
        let mut huge = BytesMut::from(&[0xff, 0xff, 0xff, 0xff, 0][..]);
        assert_eq!(decode::<Event>(&mut huge), Err(Error::TooLarge(u32::MAX as usize)));
        let mut garbage = BytesMut::from(&[2, 0, 0, 0, 0xff, 0xff][..]);
        assert!(matches!(decode::<Event>(&mut garbage), Err(Error::Malformed(_))));
    }
}
