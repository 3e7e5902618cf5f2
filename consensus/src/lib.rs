//! Raft groups, the topic log and the state machine.
//!
//! [`core`] decides and does no IO. Around it: [`log_store`] holds the Raft logs of all groups of a peer,
//! [`state_store`] what they have applied, a worker thread takes turns over all groups with one synced write a turn,
//! and [`Handle`] is how the rest of a peer talks to it. Nothing is acknowledged, and no message sent, before what it
//! stands on is on disk.

pub mod compaction;
pub mod convert;
pub mod core;
mod damage;
pub mod dump;
pub mod files;
mod handle;
pub mod log_store;
#[cfg(feature = "mutants")]
pub mod mutants;
mod scrub;
mod sealer;
pub mod state_store;
mod transfer;
pub mod view;
mod worker;

pub use core::group::{ChangeSet, Progress, Refused, Status, Ticks};
pub use core::machine::{OutcomeResult, Reply};
pub use core::rows::Configuration;
pub use damage::Damage;
pub use handle::{
    Appending, Error, Forgotten, GroupHandle, Handle, History, Membership, Options, Outgoing, Service, Totals, Watch,
};
pub use transfer::{Fetch, Fetching};
pub use view::View;

// what the tests of whole services share names the crate as its users do
#[cfg(test)]
extern crate self as canal_consensus;
