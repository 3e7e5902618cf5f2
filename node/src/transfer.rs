//! Parts of files from other peers: snapshots and segments that replicas here lack.
//!
//! One conversation a peer, kept while it is used. It is not the one of Raft messages, which must not wait behind MiBs.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use canal_consensus::{Fetch, Fetching};
use canal_proto::request::{Answer, Ask, PieceAsk, PieceData};
use canal_proto::{Code, PeerId, WireError};
use canal_sdk::{Connection, Error, Opening};
use parking_lot::Mutex;
use tokio_util::task::AbortOnDropHandle;

use crate::node::{NAMESPACE, Node};

/// For opening a conversation.
const OPEN: Duration = Duration::from_secs(5);
/// For one part: a MiB over a slow link.
const PART: Duration = Duration::from_secs(15);
/// Conversations kept: a peer fills a few replicas at a time, each from one or two others.
const MAX_KEPT: usize = 16;

/// Fetches from other peers.
pub struct Transfer {
    runtime: tokio::runtime::Handle,
    node: OnceLock<Weak<Node>>,
    kept: Arc<Mutex<HashMap<PeerId, Connection>>>,
}

impl Transfer {
    /// Gives nothing until [`Self::connect`].
    pub fn new() -> Arc<Self> {
        let runtime = tokio::runtime::Handle::current();
        Arc::new(Self { runtime, node: OnceLock::new(), kept: Arc::default() })
    }

    /// From now on, other peers are asked.
    pub fn connect(&self, node: &Arc<Node>) {
        let _ = self.node.set(Arc::downgrade(node));
    }
}

impl Fetch for Transfer {
    fn fetch(&self, from: PeerId, addresses: Vec<String>, ask: PieceAsk) -> Fetching {
        let node = self.node.get().and_then(Weak::upgrade);
        let Some(node) = node else {
            return Box::pin(async {
                Err(WireError::new(Code::Stopping, "this peer has yet to join, or is stopping"))
            });
        };
        let kept = self.kept.clone();
        // the conversation needs the peer's own runtime
        let asked = AbortOnDropHandle::new(self.runtime.spawn(async move {
            match part(&node, &kept, from, addresses, ask).await {
                Ok(data) => Ok(data),
                Err(error) => {
                    kept.lock().remove(&from);
                    Err(error)
                }
            }
        }));
        Box::pin(async move {
            let stopped = |_| WireError::new(Code::Stopping, "this peer is stopping");
            asked.await.map_err(stopped)?.map_err(|error| WireError::new(Code::Unreachable, error.to_string()))
        })
    }
}

async fn part(
    node: &Node,
    kept: &Mutex<HashMap<PeerId, Connection>>,
    from: PeerId,
    addresses: Vec<String>,
    ask: PieceAsk,
) -> Result<PieceData, Error> {
    let known = kept.lock().get(&from).filter(|connection| !connection.is_closed()).cloned();
    let connection = match known {
        Some(connection) => connection,
        None => {
            let addresses = node.peers.addresses(from).unwrap_or(addresses);
            let opening = Opening::peer(node.net.mesh(), NAMESPACE, Some(node.mesh), node.net.addresses());
            let connection = Connection::open(&node.net, Some(from), &addresses, &opening, OPEN).await?;
            let mut kept = kept.lock();
            kept.retain(|_, connection| !connection.is_closed());
            if kept.len() < MAX_KEPT {
                kept.insert(from, connection.clone());
            }
            connection
        }
    };
    match connection.request(Ask::Piece(ask), PART).await? {
        Answer::Piece(part) => Ok(part),
        _ => Err(WireError::new(Code::Malformed, "the peer gave another answer").into()),
    }
}
