//! Topic routing over a Kademlia DHT.
//!
//! The DHT maps a name of a namespace (a topic, a catalog, a group) to a signed route record: the group and its
//! replicas with addresses. A record is a hint: the group's own configuration is the truth, and a stale record costs
//! a redirect, never a fork.
//!
//! [`core`] says what a valid record is and which one replaces which, without IO. [`Routes`] is what one peer knows:
//! the records that it stores for others, and those that it has looked up. [`behaviour`] makes a libp2p Kademlia
//! behaviour that stores records in it, [`Driver`] turns commands into queries and queries into answers, and
//! [`Handle`] is what callers hold. The swarm belongs to whoever composes it:
//!
//! ```no_run
//! # async fn example(keys: libp2p::identity::Keypair) -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::{Instant, SystemTime, UNIX_EPOCH};
//!
//! use futures::StreamExt;
//! use libp2p::swarm::SwarmEvent;
//!
//! let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
//! let routes = canal_dht::Routes::new(None, clock);
//! let kad = canal_dht::behaviour(keys.public().to_peer_id(), "home", routes.clone())?;
//! let mut swarm = libp2p::SwarmBuilder::with_existing_identity(keys)
//!     .with_tokio()
//!     .with_quic()
//!     .with_behaviour(|_| kad)?
//!     .build();
//! let (mut driver, handle) = canal_dht::Driver::new(routes);
//! # drop(handle);
//! loop {
//!     tokio::select! {
//!         command = driver.next_command() => driver.handle_command(swarm.behaviour_mut(), command, Instant::now()),
//!         event = swarm.select_next_some() => {
//!             if let SwarmEvent::Behaviour(event) = event {
//!                 driver.handle_event(swarm.behaviour_mut(), event, Instant::now());
//!             }
//!         }
//!     }
//! }
//! # }
//! ```
#![deny(missing_docs)]

pub mod core;
mod driver;
#[cfg(feature = "mutants")]
pub mod mutants;
pub mod peer_id;
mod routes;
mod store;

pub use crate::core::record::{Verified, sign, sign_by};
pub use crate::core::table::{Accepted, Refused};
pub use crate::driver::{Command, Driver, Error, Handle, Published, behaviour, forget_peer};
pub use crate::routes::Routes;
pub use crate::store::RouteStore;
