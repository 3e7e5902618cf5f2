//! Placement of replicas: pure functions from data to data.
//!
//! [`choose`] says which peers should hold a group's replicas, [`next_step`] which change brings a group one step nearer
//! to that, and [`Vivaldi`] where a peer stands in the space of round trips. They know neither sockets nor clocks: whoever
//! calls them decides which peers count as being there, and carries the steps out.
#![deny(missing_docs)]

mod candidate;
pub mod judge;
pub mod known;
mod place;
mod steps;
mod vivaldi;

pub use candidate::{Candidate, Error};
pub use judge::{Patience, Signs, Surroundings};
pub use known::Known;
pub use place::{Objective, choose};
pub use steps::{Condition, Member, Role, Standing, Step, Wait, next_step};
pub use vivaldi::{Vivaldi, distance};
