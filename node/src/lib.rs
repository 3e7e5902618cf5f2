//! The Canal peer: where routing, groups and functions meet.
//!
//! `net` owns the libp2p swarm and gives streams to named protocols. `serve` answers clients and other peers.
//! `rooms` are the tasks that act where this peer leads a group: they publish its routes, fire its functions, empty
//! its outbox, keep its replicas, and, for a catalog, bring groups to life and tell them what they host. Every room works
//! from replicated state and can be stopped and begun again at any point. [`cli`] is the command line.

pub mod cli;
pub mod config;
pub mod data;
mod net;
mod node;
mod peer;
mod peers;
mod rooms;
mod serve;
mod starts;
mod transfer;

pub use peer::Peer;
