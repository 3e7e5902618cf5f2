//! The event that a function is called with.

use crate::Error;

/// A header of an event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Header {
    /// Its name.
    pub name: String,
    /// Its value, any bytes.
    pub value: Vec<u8>,
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Event {
    /// The topic's name.
    pub topic: String,
    /// Its place in the topic: 0, 1, 2 … without gaps.
    pub offset: u64,
    /// Events of one key are handled in order. May be empty.
    pub key: Vec<u8>,
    /// Its headers, in the publisher's order.
    pub headers: Vec<Header>,
    /// The content.
    pub payload: Vec<u8>,
    /// When it was published, in milliseconds since 1970-01-01 UTC.
    pub time_ms: u64,
}

impl Event {
    /// An event with this topic and payload and nothing else.
    pub fn new(topic: impl Into<String>, payload: impl Into<Vec<u8>>) -> Self {
        Self { topic: topic.into(), payload: payload.into(), ..Self::default() }
    }

    /// The same event with one more header.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push(Header { name: name.into(), value: value.into() });
        self
    }

    /// The payload as text; an error if it is not UTF-8.
    pub fn payload_str(&self) -> Result<&str, Error> {
        text("payload", &self.payload)
    }

    /// The key as text; an error if it is not UTF-8.
    pub fn key_str(&self) -> Result<&str, Error> {
        text("key", &self.key)
    }

    /// The value of the first header of this name.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|header| header.name == name).map(|header| header.value.as_slice())
    }

    /// The last level of the topic's name: `cpu` of `sensors/attic/cpu`.
    pub fn last_level(&self) -> &str {
        self.topic.rsplit('/').next().unwrap_or_default()
    }
}

fn text<'a>(what: &str, bytes: &'a [u8]) -> Result<&'a str, Error> {
    std::str::from_utf8(bytes).map_err(|error| Error::new(format!("the {what} is not text: {error}")))
}
