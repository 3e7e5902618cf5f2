//! Raft messages from another peer.
//!
//! The acceptor says its start, the opener answers with its own and with what it thinks of the acceptor's, the acceptor
//! gives its verdict; only then do messages flow ([`crate::starts`]).

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use canal_proto::limits::MAX_FRAME;
use canal_proto::peer::{RaftBatch, RaftHello, RaftVerdict};
use canal_proto::request::{VERSION, Welcome};
use canal_proto::{Code, PeerId, WireError, frame};
use canal_sdk::BoxStream;
use prost::encoding::{DecodeContext, decode_key, skip_field};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use super::greeting::first;
use crate::net::links::{GREETING, MAX_MESSAGES, write_frame};
use crate::net::refused::Reason;
use crate::node::Node;
use crate::starts::Start;

/// How long a frame may take from its first byte to its last: the sender gives up much sooner.
const FRAME_TIME: Duration = Duration::from_secs(30);
/// What a step of reading a batch stands for at least (see [`frame::read`]): entries can be as small as that.
const BYTES_A_STEP: usize = 2;

/// Agrees with the other side that messages may pass, then takes them until the stream ends or carries something else.
pub async fn serve(node: Arc<Node>, peer: PeerId, mut stream: BoxStream) {
    match timeout(GREETING, agree(&node, peer, &mut stream)).await {
        Ok(Some(())) => {}
        Ok(None) => return,
        Err(_) => return node.net.refused().count(Reason::Late),
    }
    loop {
        match batch(&mut stream).await {
            Ok(Some(_)) if node.starts.is_forgotten() => return,
            Ok(Some(batch)) => node.groups.receive(peer, batch.messages),
            Ok(None) => break,
            Err(reason) => {
                tracing::warn!(%peer, reason = reason.name(), "a stream of raft messages carries something else; it is ended");
                node.net.refused().count(reason);
                return;
            }
        }
    }
    tracing::debug!(%peer, "a stream of raft messages has ended");
}

/// The next batch; `None` at the end of the stream.
async fn batch(stream: &mut BoxStream) -> Result<Option<RaftBatch>, Reason> {
    let mut head = [0; 4];
    // as long as it likes: groups may be quiet
    let count = match stream.read(&mut head).await {
        Ok(0) | Err(_) => return Ok(None),
        Ok(count) => count,
    };
    let rest = async {
        stream.read_exact(head.get_mut(count..).unwrap_or_default()).await.ok()?;
        let length = u32::from_le_bytes(head) as usize;
        if length > MAX_FRAME {
            return None;
        }
        let mut bytes = BytesMut::new();
        let mut rest = stream.take(length as u64);
        while bytes.len() < length {
            if rest.read_buf(&mut bytes).await.ok()? == 0 {
                return None;
            }
        }
        Some(bytes.freeze())
    };
    let bytes = timeout(FRAME_TIME, rest).await.map_err(|_| Reason::Late)?.ok_or(Reason::Malformed)?;
    if is_crowded(&bytes) {
        return Err(Reason::Malformed);
    }
    frame::read(bytes, BYTES_A_STEP).map(Some).map_err(|_| Reason::Malformed)
}

/// Whether there are more messages than anybody sends at a time: each takes hundreds of bytes, even an empty one.
fn is_crowded(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    for _ in 0..MAX_MESSAGES {
        if rest.is_empty() {
            return false;
        }
        let skipped = decode_key(&mut rest)
            .and_then(|(tag, wire_type)| skip_field(wire_type, tag, &mut rest, DecodeContext::default()));
        if skipped.is_err() {
            // it is refused when it is read
            return false;
        }
    }
    !rest.is_empty()
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
    let verdict = match first::<RaftHello>(stream, node.net.refused()).await {
        Ok(hello) => verdict(node, peer, &hello?).await,
        Err(error) => RaftVerdict { refused: Some(error), ..RaftVerdict::default() },
    };
    if verdict.refused.as_ref().is_some_and(|error| error.code() == Code::Incompatible) {
        node.net.refused().count(Reason::Incompatible);
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use canal_proto::peer::RaftEnvelope;
    use prost::Message;

    #[test]
    fn only_more_messages_than_anybody_sends_are_a_crowd() {
        let batch = |count| RaftBatch { messages: vec![RaftEnvelope::default(); count] }.encode_to_vec();
        assert!(!is_crowded(&batch(MAX_MESSAGES)));
        assert!(is_crowded(&batch(MAX_MESSAGES + 1)));
        assert!(!is_crowded(b"") && !is_crowded(b"\xff\xff"));
    }
}
