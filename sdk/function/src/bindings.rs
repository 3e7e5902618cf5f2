//! What wit-bindgen generates from the WIT world, and the little that leads from there to the rest of the crate.
//! Not for use by hand.
#![allow(missing_docs, reason = "generated; the WIT file has the documentation")]
#![allow(unsafe_code, reason = "the generated code crosses the border to the host")]
#![allow(clippy::all, reason = "generated")]

use crate::context::{Backend, Context, Level, Message, Row};
use crate::error::Error;

wit_bindgen::generate!({
    path: "../../proto/wit",
    world: "function",
    pub_export_macro: true,
    default_bindings_module: "canal_function::bindings",
    runtime_path: "canal_function::bindings::rt",
});

#[doc(hidden)]
pub use wit_bindgen::rt;

use canal::function::{host, types};

/// Calls a handler with an event from the host. Where a panic comes from is told in the activation's log, since the
/// trap that follows can't say.
pub fn call(event: Event, handle: fn(&crate::Event, &mut Context) -> Result<(), Error>) -> Result<(), String> {
    #[cfg(target_family = "wasm")]
    std::panic::set_hook(Box::new(|info| host::log(types::Level::Error, &info.to_string())));
    let event = crate::Event {
        topic: event.topic,
        offset: event.offset,
        key: event.key,
        headers: event.headers.into_iter().map(|h| crate::Header { name: h.name, value: h.value }).collect(),
        payload: event.payload,
        time_ms: event.time_ms,
    };
    handle(&event, &mut Context::new(&mut Host)).map_err(|error| error.to_string())
}

struct Host;

impl Backend for Host {
    fn get(&mut self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        Ok(host::get(key)?)
    }

    fn put(&mut self, key: &str, value: &[u8]) -> Result<(), Error> {
        Ok(host::put(key, value)?)
    }

    fn delete(&mut self, key: &str) -> Result<(), Error> {
        Ok(host::delete(key)?)
    }

    fn scan(&mut self, prefix: &str, limit: u32) -> Result<Vec<Row>, Error> {
        let rows = host::scan(prefix, limit)?;
        Ok(rows.into_iter().map(|row| Row { key: row.key, value: row.value }).collect())
    }

    fn emit(&mut self, topic: &str, message: Message) -> Result<(), Error> {
        let headers = message.headers.into_iter().map(|h| types::Header { name: h.name, value: h.value });
        Ok(host::emit(topic, &message.key, &headers.collect::<Vec<_>>(), &message.payload)?)
    }

    fn log(&mut self, level: Level, text: &str) {
        let level = match level {
            Level::Debug => types::Level::Debug,
            Level::Info => types::Level::Info,
            Level::Warn => types::Level::Warn,
            Level::Error => types::Level::Error,
        };
        host::log(level, text);
    }

    fn now_ms(&mut self) -> u64 {
        host::now_ms()
    }

    fn random_u64(&mut self) -> u64 {
        host::random_u64()
    }
}

impl From<types::HostError> for Error {
    fn from(error: types::HostError) -> Self {
        let (types::HostError::Limit(text) | types::HostError::Invalid(text) | types::HostError::Unavailable(text)) =
            error;
        Error::new(text)
    }
}
