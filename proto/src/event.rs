//! Events and receipts.

use bytes::Bytes;

use crate::error::{Code, WireError};
use crate::limits::{MAX_HEADERS, MAX_KEY, MAX_PAYLOAD};

/// A header of an event.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Header {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its value, any bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

/// An event as it is published and stored. Its topic, offset, producer and sequence stand around it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Event {
    /// Events of one key are handled in order by functions. May be empty.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// Headers, in the publisher's order.
    #[prost(message, repeated, tag = "2")]
    pub headers: Vec<Header>,
    /// The content.
    #[prost(bytes = "bytes", tag = "3")]
    pub payload: Bytes,
    /// When the publisher made it, in milliseconds since 1970-01-01 UTC. Zero: the leader sets its own clock.
    #[prost(uint64, tag = "4")]
    pub time_ms: u64,
    /// W3C trace context (`traceparent`), or empty.
    #[prost(string, tag = "5")]
    pub trace: String,
}

impl Event {
    /// An event with this payload and nothing else.
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self { payload: payload.into(), ..Self::default() }
    }

    /// The same event with a key.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = key.into();
        self
    }

    /// The same event with one more header.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.push(Header { name: name.into(), value: value.into() });
        self
    }

    /// Refuses what exceeds a limit, and names the limit.
    pub fn check(&self) -> Result<(), WireError> {
        let headers: usize = self.headers.iter().map(|h| h.name.len() + h.value.len()).sum();
        for (what, size, limit) in [
            ("payload", self.payload.len(), MAX_PAYLOAD),
            ("key", self.key.len(), MAX_KEY),
            ("headers", headers, MAX_HEADERS),
            ("trace context", self.trace.len(), 256),
        ] {
            if size > limit {
                let message = format!("the {what} has {size} bytes; at most {limit} are allowed");
                return Err(WireError::new(Code::TooLarge, message).with_detail(limit as u64));
            }
        }
        Ok(())
    }
}

/// What a publish is answered with once it is durable.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Receipt {
    /// Offset of the first event of the request. Absent for a duplicate that is older than
    /// [`crate::limits::RECEIPT_WINDOW`]: it is stored, at an offset that is no longer remembered.
    #[prost(uint64, optional, tag = "1")]
    pub offset: Option<u64>,
    /// Events covered.
    #[prost(uint32, tag = "2")]
    pub count: u32,
    /// Raft term of the entry.
    #[prost(uint64, tag = "3")]
    pub term: u64,
    /// Raft index of the entry.
    #[prost(uint64, tag = "4")]
    pub index: u64,
    /// The events had been appended by an earlier try.
    #[prost(bool, tag = "5")]
    pub duplicate: bool,
    /// How durable it is.
    #[prost(enumeration = "Durability", tag = "6")]
    pub durability: i32,
}

/// How durable an acknowledged event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum Durability {
    /// A majority of the group's voters has it on disk, synced.
    Quorum = 0,
}

/// An event at its place in a topic, as a subscriber gets it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Stored {
    /// Its offset.
    #[prost(uint64, tag = "1")]
    pub offset: u64,
    /// The event.
    #[prost(message, required, tag = "2")]
    pub event: Event,
    /// The producer, 16 bytes; empty for what a function emitted in its own group.
    #[prost(bytes = "bytes", tag = "3")]
    pub producer: Bytes,
    /// The producer's sequence; 0 for what a function emitted in its own group.
    #[prost(uint64, tag = "4")]
    pub sequence: u64,
}
