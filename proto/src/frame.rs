//! Frames on a stream: a length of four bytes, little-endian, and that many bytes of a protobuf message.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

use crate::limits::MAX_FRAME;

/// Steps that a small message may take to read, whatever its length.
const BASE_STEPS: usize = 64 << 10;

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
    /// It is made of so many small parts that it would take many times its own size in memory.
    #[error("a frame of {0} bytes with more parts than any message of that size has; send fewer at a time")]
    TooManyParts(usize),
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

/// Decodes a message, and gives up when it has more parts than one of its size should have: an empty message costs two
/// bytes on the wire and hundreds in memory, so a hostile frame could take a hundred times its size. Reading a number, or
/// the bytes of a field, is a step; a field has two or three. `bytes_a_step` is what a step of an honest large message
/// stands for at least; small messages have plenty in any case.
pub fn read<M: Message + Default>(frame: Bytes, bytes_a_step: usize) -> Result<M, Error> {
    let length = frame.len();
    let mut metered = Metered { frame, left: BASE_STEPS.saturating_add(length / bytes_a_step.max(1)) };
    let message = M::decode(&mut metered);
    // when no step was left, the rest looked like the end
    if metered.left == 0 {
        return Err(Error::TooManyParts(length));
    }
    message.map_err(|e| Error::Malformed(e.to_string()))
}

/// Bytes that end when too many steps were taken.
struct Metered {
    frame: Bytes,
    left: usize,
}

impl Buf for Metered {
    fn remaining(&self) -> usize {
        if self.left == 0 { 0 } else { self.frame.remaining() }
    }

    fn chunk(&self) -> &[u8] {
        if self.left == 0 { &[] } else { self.frame.chunk() }
    }

    fn advance(&mut self, count: usize) {
        self.frame.advance(count);
        self.left = self.left.saturating_sub(1);
    }

    fn copy_to_bytes(&mut self, length: usize) -> Bytes {
        self.left = self.left.saturating_sub(1);
        // what was asked for is there: it was looked at before this step
        self.frame.copy_to_bytes(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;
    use crate::peer::{RaftBatch, RaftEnvelope, RaftMessage};

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
    fn a_frame_of_empty_parts_is_refused_and_an_honest_one_is_read() {
        let empty = Bytes::from([0x0a, 0].repeat(MAX_FRAME / 2));
        assert_eq!(read::<RaftBatch>(empty.clone(), 16), Err(Error::TooManyParts(empty.len())));
        let heartbeat = RaftMessage { msg_type: 8, to: 1, from: 2, term: 3, commit: 4, ..RaftMessage::default() };
        let messages = vec![RaftEnvelope { group: u64::MAX, message: heartbeat }; 4096];
        let batch = RaftBatch { messages };
        let bytes = Bytes::from(batch.encode_to_vec());
        assert_eq!(read(bytes, 16), Ok(batch));
        let garbage = Bytes::from_static(&[0xff, 0xff]);
        assert!(matches!(read::<Event>(garbage, 16), Err(Error::Malformed(_))));
        // bytes are not copied
        let bytes = Bytes::from(Event::new("payload").encode_to_vec());
        let inside = bytes.as_ptr_range();
        assert_eq!(read::<Event>(bytes, 1).map(|event| inside.contains(&event.payload.as_ptr())), Ok(true));
    }

    #[test]
    fn a_length_over_the_limit_and_garbage_are_refused() {
        let mut huge = BytesMut::from(&[0xff, 0xff, 0xff, 0xff, 0][..]);
        assert_eq!(decode::<Event>(&mut huge), Err(Error::TooLarge(u32::MAX as usize)));
        let mut garbage = BytesMut::from(&[2, 0, 0, 0, 0xff, 0xff][..]);
        assert!(matches!(decode::<Event>(&mut garbage), Err(Error::Malformed(_))));
    }
}
