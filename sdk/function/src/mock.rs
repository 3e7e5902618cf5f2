//! A host in memory, to test a function's logic without WebAssembly.
//!
//! It keeps the promise that tests need most: what a failed run did is undone. It knows every topic and no limits.
//!
//! ```
//! use canal_function::{mock::Mock, Context, Error, Event};
//!
//! fn double(event: &Event, ctx: &mut Context) -> Result<(), Error> {
//!     let number: i64 = event.payload_str()?.parse()?;
//!     ctx.emit("doubled", (2 * number).to_string())
//! }
//!
//! let mut mock = Mock::default();
//! mock.run(double, &Event::new("numbers", "21")).unwrap();
//! assert_eq!(mock.emitted[0].0, "doubled");
//! assert_eq!(mock.emitted[0].1.payload, b"42");
//! assert!(mock.run(double, &Event::new("numbers", "x")).is_err());
//! ```

use std::collections::BTreeMap;

use crate::context::Backend;
use crate::{Context, Error, Event, Level, Message, Row};

/// A host in memory.
#[derive(Debug, Clone, Default)]
pub struct Mock {
    /// The function's rows.
    pub rows: BTreeMap<String, Vec<u8>>,
    /// What was published, in order, with its topic.
    pub emitted: Vec<(String, Message)>,
    /// The log lines of all runs, failed ones too.
    pub log: Vec<(Level, String)>,
    now_ms: u64,
    drawn: u64,
}

impl Mock {
    /// Calls a function with an event. If it fails, rows and published events are as before.
    pub fn run(
        &mut self,
        handle: impl FnOnce(&Event, &mut Context) -> Result<(), Error>,
        event: &Event,
    ) -> Result<(), Error> {
        let before = (self.rows.clone(), self.emitted.len());
        (self.now_ms, self.drawn) = (event.time_ms, 0);
        let result = handle(event, &mut Context::new(self));
        if result.is_err() {
            self.rows = before.0;
            self.emitted.truncate(before.1);
        }
        result
    }
}

impl Backend for Mock {
    fn get(&mut self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.rows.get(key).cloned())
    }

    fn put(&mut self, key: &str, value: &[u8]) -> Result<(), Error> {
        self.rows.insert(key.to_owned(), value.to_vec());
        Ok(())
    }

    fn delete(&mut self, key: &str) -> Result<(), Error> {
        self.rows.remove(key);
        Ok(())
    }

    fn scan(&mut self, prefix: &str, limit: u32) -> Result<Vec<Row>, Error> {
        let rows = self.rows.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        let rows = rows.take(limit.min(1024) as usize);
        Ok(rows.map(|(key, value)| Row { key: key.clone(), value: value.clone() }).collect())
    }

    fn emit(&mut self, topic: &str, message: Message) -> Result<(), Error> {
        self.emitted.push((topic.to_owned(), message));
        Ok(())
    }

    fn log(&mut self, level: Level, text: &str) {
        self.log.push((level, text.to_owned()));
    }

    fn now_ms(&mut self) -> u64 {
        self.now_ms
    }

    /// Not the numbers of a real host: SplitMix64 (Steele, Lea and Flood 2014) seeded by the event's time.
    fn random_u64(&mut self) -> u64 {
        self.drawn += 1;
        let mut z = self.now_ms.wrapping_add(self.drawn.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

    use super::*;

    fn busy(event: &Event, ctx: &mut Context) -> Result<(), Error> {
        let (now, random) = (ctx.now_ms(), ctx.random_u64());
        ctx.put("row", format!("{now} {random}"))?;
        ctx.emit("out", Message::new("x").with_key("k").with_header("round", "1"))?;
        ctx.log(Level::Info, "ran");
        event.payload_str()?.parse::<u32>()?;
        Ok(())
    }

    #[test]
    fn a_failed_run_leaves_only_its_log() {
        let mut mock = Mock::default();
        assert_eq!(mock.run(busy, &Event::new("t", "x")), Err(Error::new("invalid digit found in string")));
        assert!(mock.rows.is_empty() && mock.emitted.is_empty());
        assert_eq!(mock.log, [(Level::Info, "ran".to_owned())]);
        mock.run(busy, &Event::new("t", "7")).unwrap();
        let first = mock.rows.clone();
        mock.run(busy, &Event::new("t", "7")).unwrap();
        assert_eq!((mock.rows.clone(), mock.emitted.len()), (first, 2), "the same event draws the same numbers");
    }

    #[test]
    fn a_scan_stays_under_its_prefix() {
        let mut mock = Mock::default();
        for key in ["a", "p/1", "p/2", "p/3", "q"] {
            mock.put(key, b"v").unwrap();
        }
        let keys = |rows: Vec<Row>| rows.into_iter().map(|row| row.key).collect::<Vec<_>>();
        assert_eq!(keys(mock.scan("p/", 2).unwrap()), ["p/1", "p/2"]);
        assert_eq!(keys(mock.scan("p/", 9).unwrap()), ["p/1", "p/2", "p/3"]);
    }

    #[test]
    fn what_an_event_says_of_itself() {
        let event = Event::new("sensors/attic/cpu", [0xff]).with_header("round", "4").with_header("round", "5");
        assert_eq!(event.last_level(), "cpu");
        assert_eq!(event.header("round"), Some(b"4".as_slice()));
        assert_eq!(event.header("none"), None);
        assert!(event.payload_str().unwrap_err().to_string().starts_with("the payload is not text"));
    }
}
