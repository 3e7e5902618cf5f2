//! Raft messages from another peer.
//!
//! The acceptor says its start, the opener answers with its own and with what it thinks of the acceptor's, the acceptor
//! gives its verdict; only then do messages flow ([`crate::starts`]).

use std::sync::Arc;

use canal_proto::peer::{RaftBatch, RaftHello, RaftVerdict};
use canal_proto::request::{VERSION, Welcome};
use canal_proto::{Code, PeerId, WireError};
use canal_sdk::BoxStream;
use tokio::time::timeout;

use crate::net::links::{GREETING, read_frame, write_frame};
use crate::node::Node;
use crate::starts::Start;

/// Agrees with the other side that messages may pass, then takes them until the stream ends or carries something else.
pub async fn serve(node: Arc<Node>, peer: PeerId, mut stream: BoxStream) {
    if !matches!(timeout(GREETING, agree(&node, peer, &mut stream)).await, Ok(Some(()))) {
        return;
    }
    while let Some(batch) = read_frame::<RaftBatch>(&mut stream).await {
        if node.starts.is_forgotten() {
            return;
        }
        node.groups.receive(peer, batch.messages);
    }
    tracing::debug!(%peer, "a stream of raft messages has ended");
}

async fn agree(node: &Node, peer: PeerId, stream: &mut BoxStream) -> Option<()> {
    let own = node.starts.own();
    let welcome = Welcome {
        version: VERSION,
        peer: node.id.to_vec().into(),
        mesh: node.mesh.to_vec().into(),
        mesh_name: node.net.mesh().to_owned(),
        addresses: node.net.addresses(),
        boot: own.boot,
        nonce: own.nonce,
    };
    write_frame(stream, &welcome).await?;
    let hello = read_frame::<RaftHello>(stream).await?;
    let verdict = verdict(node, peer, &hello).await;
    let agreed = verdict.refused.is_none();
    write_frame(stream, &verdict).await?;
    agreed.then_some(())
}

async fn verdict(node: &Node, peer: PeerId, hello: &RaftHello) -> RaftVerdict {
    let refused =
        |code, message: String| RaftVerdict { refused: Some(WireError::new(code, message)), ..RaftVerdict::default() };
    if hello.version != VERSION {
        let message =
            format!("you speak version {} of the protocol, this peer {VERSION}; update the older", hello.version);
        return refused(Code::Incompatible, message);
    }
    if hello.boot == 0 {
        return refused(Code::Malformed, "say which start of you this is, from 1".into());
    }
    if hello.seen_boot > 0 {
        node.starts.told(peer, Start { boot: hello.seen_boot, nonce: hello.seen_nonce });
        return refused(Code::Stopping, "you take this peer for older than its promises".into());
    }
    if node.starts.is_forgotten() {
        return refused(Code::Stopping, "this peer is about to begin anew".into());
    }
    match node.starts.admit(peer, Start { boot: hello.boot, nonce: hello.nonce }).await {
        Ok(()) => RaftVerdict::default(),
        Err(None) => refused(Code::Internal, "your start can't be written down here; try again".into()),
        Err(Some(seen)) => {
            tracing::warn!(
                %peer, says = hello.boot, seen = seen.boot,
                "its disk is older than what was seen of it; no message of it is taken until it has begun anew"
            );
            let message = format!(
                "your disk says that this is your start number {}, but {} were seen: it is older than what you have \
                 promised; begin anew",
                hello.boot, seen.boot
            );
            RaftVerdict { boot: seen.boot, nonce: seen.nonce, ..refused(Code::Forgotten, message) }
        }
    }
}
