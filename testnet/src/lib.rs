//! Many peers on one machine, as real processes: for people (`canal-testnet up`), for the demo, and for tests.
//!
//! A [`Testnet`] runs the peers of a [`Scenario`] on loopback, on ports that they chose themselves, each with a data
//! directory and a log file of its own. Any of them can be killed, stopped, continued and restarted. It signals only
//! processes that it started, and leaves none behind: not when it is dropped, not when a peer is stopped, and not
//! when the process that holds it is killed (a peer ends when its standard input does).
//!
//! The executable that it runs is a program whose first argument may be `canal`, and which then is the `canal`
//! binary: `canal-testnet` itself.

mod error;
mod net;
mod peer;
mod scenario;
mod wait;

pub mod chaos;
pub mod cli;
pub mod control;
pub mod decoders;
pub mod demo;
pub mod emulated;
pub mod failover;
pub mod faults;
pub mod fill;
pub mod replica;
pub mod sim;

pub use error::Error;
pub use faults::Faults;
pub use net::{Options, Testnet};
pub use peer::Peer;
pub use scenario::{PeerSpec, Scenario, TopicSpec};
pub use wait::until;
