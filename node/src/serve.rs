//! Answers: requests of clients and peers, subscriptions, Raft messages.
//!
//! Every stream is a task of its own; their number is bounded, and so is what each of them may have under way. A
//! conversation that goes wrong ends with a typed answer and harms no other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use canal_proto::request::{Answer, Content, Delivery, Response};
use canal_proto::{Code, WireError};
use canal_sdk::BoxStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::net::links::write_frame;
use crate::net::refused::Reason;
use crate::net::{Incoming, Protocol};
use crate::node::Node;

mod answers;
mod conversation;
mod greeting;
mod leaders;
mod peers;
mod publish;
mod raft;
pub mod relay;
mod replicas;
mod room;
pub mod subscribe;
mod subscriptions;

pub use leaders::MAX_WAITING;

/// Streams served at a time: each costs some ten KiB.
const MAX_STREAMS: usize = 8192;

/// Streams more that are told so at a time: a few words each.
const MAX_REFUSALS: usize = 64;
/// For somebody who is refused to take these words.
const REFUSAL: Duration = Duration::from_secs(2);

/// Serves streams until the network stops.
pub async fn run(node: Arc<Node>, mut incoming: mpsc::Receiver<Incoming>) {
    let mut tasks = JoinSet::new();
    let open = Arc::new(AtomicUsize::new(0));
    let room = room::Room::default();
    loop {
        tokio::select! {
            biased;
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            next = incoming.recv() => {
                let Some(Incoming { protocol, peer, stream }) = next else { return };
                if open.load(Ordering::Relaxed) >= MAX_STREAMS {
                    node.net.refused().count(Reason::Streams);
                    tracing::debug!(%peer, "this peer serves {MAX_STREAMS} streams already; one more is closed");
                    if tasks.len() < MAX_STREAMS + MAX_REFUSALS {
                        tasks.spawn(refuse(protocol, stream));
                    }
                    continue;
                }
                open.fetch_add(1, Ordering::Relaxed);
                let (node, open, room) = (node.clone(), open.clone(), room.clone());
                tasks.spawn(async move {
                    match protocol {
                        Protocol::Client | Protocol::Peer => conversation::serve(node, room, protocol, peer, stream).await,
                        Protocol::Subscribe => subscribe::serve(node, stream).await,
                        Protocol::Raft => raft::serve(node, peer, stream).await,
                    }
                    open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        }
    }
}

/// Says that there is no room, in the words of the protocol. A stream of Raft messages has none before its greeting.
async fn refuse(protocol: Protocol, mut stream: BoxStream) {
    let message = format!("this peer serves {MAX_STREAMS} streams, which is all it may; try again, or ask another");
    let error = WireError::new(Code::WouldBlock, message);
    let told = async {
        match protocol {
            Protocol::Client | Protocol::Peer => {
                write_frame(&mut stream, &Response { id: 0, answer: Some(Answer::Error(error)) }).await
            }
            Protocol::Subscribe => write_frame(&mut stream, &Delivery { content: Some(Content::Error(error)) }).await,
            Protocol::Raft => None,
        }
    };
    let _ = timeout(REFUSAL, told).await;
}

pub use answers::change_catalog;
