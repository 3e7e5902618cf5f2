//! Answers: requests of clients and peers, subscriptions, Raft messages.
//!
//! Every stream is a task of its own; their number is bounded, and so is what each of them may have under way. A
//! conversation that goes wrong ends with a typed answer and harms no other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::net::{Incoming, Protocol};
use crate::node::Node;

mod answers;
mod conversation;
mod peers;
mod publish;
mod raft;
pub mod relay;
mod replicas;
pub mod subscribe;
mod subscriptions;

/// Streams served at a time: each costs some ten KiB.
const MAX_STREAMS: usize = 8192;

/// Serves streams until the network stops.
pub async fn run(node: Arc<Node>, mut incoming: mpsc::Receiver<Incoming>) {
    let mut tasks = JoinSet::new();
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        tokio::select! {
            biased;
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            next = incoming.recv() => {
                let Some(Incoming { protocol, peer, stream }) = next else { return };
                if open.load(Ordering::Relaxed) >= MAX_STREAMS {
                    tracing::warn!(%peer, "this peer serves {MAX_STREAMS} streams already; one more is closed");
                    continue;
                }
                open.fetch_add(1, Ordering::Relaxed);
                let (node, open) = (node.clone(), open.clone());
                tasks.spawn(async move {
                    match protocol {
                        Protocol::Client | Protocol::Peer => conversation::serve(node, protocol, peer, stream).await,
                        Protocol::Subscribe => subscribe::serve(node, stream).await,
                        Protocol::Raft => raft::serve(node, peer, stream).await,
                    }
                    open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        }
    }
}

pub use answers::change_catalog;
