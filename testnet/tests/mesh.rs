//! The mesh, end to end: real processes, real sockets, real disks.
//!
//! Each test has a testnet of its own; together they never run more than a few peers at a time. Tests wait for
//! conditions, with deadlines for a debug build on a busy machine.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "mesh/common.rs"]
mod common;

#[path = "mesh/chaos.rs"]
mod chaos;
#[path = "mesh/crash.rs"]
mod crash;
#[path = "mesh/demo.rs"]
mod demo;
#[path = "mesh/disks.rs"]
mod disks;
#[path = "mesh/drain.rs"]
mod drain;
#[path = "mesh/durable.rs"]
mod durable;
#[path = "mesh/emulated.rs"]
mod emulated;
#[path = "mesh/failover.rs"]
mod failover;
#[path = "mesh/functions.rs"]
mod functions;
#[path = "mesh/history.rs"]
mod history;
#[path = "mesh/hostile.rs"]
mod hostile;
#[path = "mesh/leaders.rs"]
mod leaders;
#[path = "mesh/lifecycle.rs"]
mod lifecycle;
#[path = "mesh/membership.rs"]
mod membership;
#[path = "mesh/peers.rs"]
mod peers;
#[path = "mesh/queue.rs"]
mod queue;
#[path = "mesh/refusals.rs"]
mod refusals;
#[path = "mesh/retention.rs"]
mod retention;
#[path = "mesh/subscribers.rs"]
mod subscribers;
