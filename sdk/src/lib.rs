//! The client library of Canal: connect to any peer of a mesh, publish, subscribe, read and write function state,
//! deploy functions.
//!
//! A client finds leaders, follows redirects and reconnects by itself, and a retry never doubles: a
//! [`Publisher`] numbers its events, and a group appends each number once. Nothing is dropped in silence: a full
//! window makes [`Publisher::send`] wait and [`Publisher::try_publish`] answer `WouldBlock`, and a gap in a
//! [`Subscription`] is an error.
//!
//! ```no_run
//! use canal_sdk::{Client, Event, From, Options, TopicOptions};
//! use futures::StreamExt;
//!
//! # async fn example() -> Result<(), canal_sdk::Error> {
//! let client = Client::connect("127.0.0.1:4040", Options::default()).await?;
//! client.create_topic("plant/line1/temperature", TopicOptions::default()).await?;
//!
//! let mut events = client.subscribe("plant/+/temperature", From::Latest).await?;
//!
//! let publisher = client.publisher("plant/line1/temperature").await?;
//! let receipt = publisher.publish(Event::new("21.5").with_key("sensor-7")).await?;
//! println!("durable at offset {:?}", receipt.offset);
//!
//! // pipelined: many events on their way, each with its own receipt
//! let pending = publisher.send(Event::new("21.7")).await?;
//! publisher.flush().await?;
//! println!("durable at offset {:?}", pending.await?.offset);
//! publisher.close().await?;
//!
//! while let Some(delivered) = events.next().await {
//!     let delivered = delivered?;
//!     println!("{} {}: {:?}", delivered.topic, delivered.offset, delivered.event.payload);
//! }
//! # Ok(())
//! # }
//! ```
#![deny(missing_docs)]

mod backoff;
mod catalog;
pub mod client;
pub mod connection;
mod deploy;
mod error;
mod pool;
pub mod publisher;
#[cfg(feature = "queue")]
pub mod queue;
mod routes;
pub mod state;
pub mod subscription;
pub mod transport;

pub use canal_proto::log::FunctionLimits;
pub use canal_proto::request::Consistency;
pub use canal_proto::{Code, Event, GroupId, PeerId, ProducerId, Receipt, TopicId};
pub use catalog::{Created, TopicOptions};
pub use client::{BetweenPeers, Client, Options, Target};
pub use connection::{Connection, Opening, Reply};
pub use error::Error;
pub use publisher::{Deadline, Pending, Publisher, PublisherOptions, Refused};
pub use state::State;
pub use subscription::{Delivered, From, Lag, Lost, SubscribeOptions, Subscription, TopicLag};
pub use transport::{AsyncReadWrite, BoxStream, Transport};

/// The code in the README, so that it goes on to compile.
#[cfg(all(doctest, feature = "queue"))]
#[doc = include_str!("../../README.md")]
mod readme {}
