//! Raft messages from another peer.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use canal_proto::peer::RaftBatch;
use canal_proto::request::{VERSION, Welcome};
use canal_proto::{PeerId, frame};
use canal_sdk::BoxStream;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::net::links::read_frame;
use crate::node::Node;

/// For the greeting, which the other side waits for.
const GREETING: Duration = Duration::from_secs(3);

/// Greets, then takes messages until the stream ends or carries something else.
pub async fn serve(node: Arc<Node>, peer: PeerId, mut stream: BoxStream) {
    let welcome = Welcome {
        version: VERSION,
        peer: node.id.to_vec().into(),
        mesh: node.mesh.to_vec().into(),
        mesh_name: node.net.mesh().to_owned(),
        addresses: node.net.addresses(),
        ..Welcome::default()
    };
    let mut bytes = BytesMut::new();
    if frame::encode(&welcome, &mut bytes).is_err() {
        return;
    }
    let greet = async {
        stream.write_all(&bytes).await?;
        stream.flush().await
    };
    if !matches!(timeout(GREETING, greet).await, Ok(Ok(()))) {
        return;
    }
    while let Some(batch) = read_frame::<RaftBatch>(&mut stream).await {
        node.groups.receive(peer, batch.messages);
    }
    tracing::debug!(%peer, "a stream of raft messages has ended");
}
