//! What a function can do while it handles an event.

use crate::{Error, Header};

/// What stands behind a [`Context`]: the host, or a mock of it.
pub(crate) trait Backend {
    fn get(&mut self, key: &str) -> Result<Option<Vec<u8>>, Error>;
    fn put(&mut self, key: &str, value: &[u8]) -> Result<(), Error>;
    fn delete(&mut self, key: &str) -> Result<(), Error>;
    fn scan(&mut self, prefix: &str, limit: u32) -> Result<Vec<Row>, Error>;
    fn emit(&mut self, topic: &str, message: Message) -> Result<(), Error>;
    fn log(&mut self, level: Level, text: &str);
    fn now_ms(&mut self) -> u64;
    fn random_u64(&mut self) -> u64;
}

/// A row of the function's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
}

/// How much a log line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For whoever debugs the function.
    Debug,
    /// Worth knowing.
    Info,
    /// Not right, but handled.
    Warn,
    /// Wrong.
    Error,
}

/// An event to publish. A text or bytes are one with just a payload.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message {
    /// Events of one key are handled in order. May be empty.
    pub key: Vec<u8>,
    /// Its headers.
    pub headers: Vec<Header>,
    /// The content.
    pub payload: Vec<u8>,
}

impl Message {
    /// An event with this payload and nothing else.
    pub fn new(payload: impl Into<Vec<u8>>) -> Self {
        Self { payload: payload.into(), ..Self::default() }
    }

    /// The same with a key.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.key = key.into();
        self
    }

    /// The same with one more header.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push(Header { name: name.into(), value: value.into() });
        self
    }
}

impl From<String> for Message {
    fn from(payload: String) -> Self {
        Self::new(payload)
    }
}

impl From<&str> for Message {
    fn from(payload: &str) -> Self {
        Self::new(payload)
    }
}

impl From<Vec<u8>> for Message {
    fn from(payload: Vec<u8>) -> Self {
        Self::new(payload)
    }
}

/// What a function can do while it handles an event. Nothing of it takes effect unless the function returns `Ok`.
///
/// The calls fail when a limit is met, when an argument can't be used (a topic that does not exist, a key too long),
/// or when the state can't be read just now; most functions pass the error on with `?`.
pub struct Context<'a> {
    backend: &'a mut dyn Backend,
}

impl<'a> Context<'a> {
    pub(crate) fn new(backend: &'a mut dyn Backend) -> Self {
        Self { backend }
    }

    /// The value of a row of the state, if there is one. Sees this run's own writes.
    pub fn get(&mut self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        self.backend.get(key)
    }

    /// The value of a row as text; an error if it is not UTF-8.
    pub fn get_str(&mut self, key: &str) -> Result<Option<String>, Error> {
        let value = self.get(key)?.map(String::from_utf8).transpose();
        value.map_err(|error| Error::new(format!("the row `{key}` is not text: {error}")))
    }

    /// Sets a row.
    pub fn put(&mut self, key: &str, value: impl AsRef<[u8]>) -> Result<(), Error> {
        self.backend.put(key, value.as_ref())
    }

    /// Removes a row.
    pub fn delete(&mut self, key: &str) -> Result<(), Error> {
        self.backend.delete(key)
    }

    /// The rows whose keys start with `prefix`, in key order, at most `limit` and at most 1024. Sees this run's own
    /// writes.
    pub fn scan(&mut self, prefix: &str, limit: u32) -> Result<Vec<Row>, Error> {
        self.backend.scan(prefix, limit)
    }

    /// Publishes an event: once, however often the run is repeated.
    pub fn emit(&mut self, topic: &str, message: impl Into<Message>) -> Result<(), Error> {
        self.backend.emit(topic, message.into())
    }

    /// Adds a line to the activation's record. Lines that find no room there are dropped.
    pub fn log(&mut self, level: Level, text: impl AsRef<str>) {
        self.backend.log(level, text.as_ref());
    }

    /// The event's time, in milliseconds since 1970-01-01 UTC: the same at every run of the same event.
    pub fn now_ms(&mut self) -> u64 {
        self.backend.now_ms()
    }

    /// The next pseudo-random number: the same sequence at every run of the same event. Not for secrets.
    pub fn random_u64(&mut self) -> u64 {
        self.backend.random_u64()
    }
}
