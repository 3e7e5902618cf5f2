//! Identifiers, wire types and limits of Canal.
//!
//! Everything that two processes, or one process at two times, must read alike is defined here: names and
//! patterns, the entries of the Raft log, the frames between clients and peers, route records, limits, and
//! the WIT world of functions (`wit/function.wit`). The crate does no IO, knows neither tokio nor libp2p, and
//! builds for `wasm32`. The bytes are described in `docs/format.md` and pinned by the tests in this crate.
#![deny(missing_docs)]

pub mod catalog;
pub mod cursor;
pub mod digest;
pub mod error;
pub mod event;
pub mod frame;
pub mod id;
pub mod limits;
pub mod log;
pub mod name;
pub mod peer;
pub mod request;
pub mod route;

#[cfg(test)]
mod golden;

pub use error::{Code, WireError};
pub use event::{Event, Header, Receipt};
pub use id::{ContentHash, GroupId, MeshId, PeerId, ProducerId, TopicId, TriggerId};
pub use name::{Pattern, TopicName};

/// The WIT package that functions are built against (`canal:function`).
pub const FUNCTION_WIT: &str = include_str!("../wit/function.wit");
