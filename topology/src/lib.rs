//! Placement of replicas: pure functions from data to data.
//!
//! [`choose`] says which peers should hold a group's replicas, given what stands and who is there. It knows neither
//! sockets nor clocks: whoever calls it decides which peers count as being there, and moves replicas in safe steps.
#![deny(missing_docs)]

mod candidate;
mod place;

pub use candidate::{Candidate, Error};
pub use place::choose;
