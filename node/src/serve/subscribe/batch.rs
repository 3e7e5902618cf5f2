//! Events in the form in which they travel: encoded once, sent to any number of subscribers.

use bytes::{BufMut, Bytes, BytesMut};
use canal_proto::event::Stored;
use canal_proto::frame;
use canal_proto::limits::MAX_FRAME;
use canal_proto::request::Events;
use prost::encoding::{self, WireType};

/// An event as it stands in an encoded [`Events`]: with its field's key and its length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Its offset.
    pub offset: u64,
    /// The bytes.
    pub bytes: Bytes,
}

impl Encoded {
    /// What it costs of a subscriber's credit.
    pub fn cost(&self) -> u64 {
        self.bytes.len() as u64
    }
}

/// Encodes events, all into one allocation.
pub fn encode(events: &[Stored]) -> Vec<Encoded> {
    let size: u64 = events.iter().map(Events::cost).sum();
    let mut bytes = BytesMut::with_capacity(usize::try_from(size).unwrap_or(0));
    let mut encoded = Vec::with_capacity(events.len());
    for event in events {
        encoding::message::encode(1, event, &mut bytes);
        encoded.push(Encoded { offset: event.offset, bytes: bytes.split().freeze() });
    }
    encoded
}

/// The frame of a delivery with these events: the same bytes that [`frame::encode`] makes of it.
pub fn deliver(events: &[Encoded], head: u64) -> Result<BytesMut, frame::Error> {
    let events_len: usize = events.iter().map(|event| event.bytes.len()).sum();
    let head_len = if head == 0 { 0 } else { encoding::uint64::encoded_len(2, &head) };
    let inner = events_len + head_len;
    let len = encoding::key_len(3) + encoding::encoded_len_varint(inner as u64) + inner;
    if len > MAX_FRAME {
        return Err(frame::Error::TooLarge(len));
    }
    let mut out = BytesMut::with_capacity(4 + len);
    out.put_u32_le(u32::try_from(len).map_err(|_| frame::Error::TooLarge(len))?);
    encoding::encode_key(3, WireType::LengthDelimited, &mut out);
    encoding::encode_varint(inner as u64, &mut out);
    for event in events {
        out.put_slice(&event.bytes);
    }
    if head != 0 {
        encoding::uint64::encode(2, &head, &mut out);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;
    use canal_proto::event::Event;
    use canal_proto::request::{Content, Delivery};

    #[test]
    fn the_frame_is_what_the_types_would_make_of_it() {
        let stored = |offset: u64| Stored {
            offset,
            event: Event::new(vec![7; 100 * usize::try_from(offset).unwrap()]).with_key("k"),
            producer: Bytes::from_static(&[1; 16]),
            sequence: offset + 1,
        };
        for (events, head) in [(vec![], 0), (vec![stored(0)], 1), ((3..40).map(stored).collect(), 1 << 40)] {
            let encoded = encode(&events);
            let costs: Vec<u64> = encoded.iter().map(Encoded::cost).collect();
            assert_eq!(costs, events.iter().map(Events::cost).collect::<Vec<_>>());
            let ours = deliver(&encoded, head).unwrap();
            let mut theirs = BytesMut::new();
            frame::encode(&Delivery { content: Some(Content::Events(Events { events, head })) }, &mut theirs).unwrap();
            assert_eq!(ours, theirs);
        }
    }
}
