//! Subscriptions: the history of one topic from any offset, then what is new, from this replica.
//!
//! There is only one loop, over offsets: read what is there, and wait for the topic to grow when there is nothing. So
//! there is no seam between history and live where an event could be lost or doubled. A subscriber that does not read
//! stops its own loop and nobody else's.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use canal_consensus::GroupHandle;
use canal_proto::limits::MAX_DELIVERY;
use canal_proto::request::{Content, Delivery, Events, From, Opened, Subscribe, VERSION};
use canal_proto::{Code, TopicId, WireError, frame};
use canal_sdk::BoxStream;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::timeout;

use crate::net::links::read_frame;
use crate::node::{NAMESPACE, Node, internal, unknown_topic};

/// How long a client has to say what it wants.
const GREETING: Duration = Duration::from_secs(10);
/// Bytes of events in one delivery, about: a slow link shows progress, and a large event still fits.
const DELIVERY_BYTES: usize = 512 << 10;

/// Serves one subscription to its end.
pub async fn serve(node: Arc<Node>, mut stream: BoxStream) {
    let Ok(Some(ask)) = timeout(GREETING, read_frame::<Subscribe>(&mut stream)).await else { return };
    let (read, mut write) = tokio::io::split(stream);
    let gone = closed(read);
    tokio::select! {
        biased;
        () = gone => {}
        result = deliver(&node, ask, &mut write) => {
            if let Err(Some(error)) = result {
                let _ = send(&mut write, Content::Error(error)).await;
            }
            let _ = write.shutdown().await;
        }
    }
}

/// Returns when the client has closed its side, or breaks the protocol by saying more.
async fn closed(mut read: ReadHalf<BoxStream>) {
    let mut byte = [0; 1];
    let _ = tokio::io::AsyncReadExt::read(&mut read, &mut byte).await;
}

/// Why a subscription ended: with something to tell, or because the client is gone.
type Ended = Option<WireError>;

async fn deliver(node: &Node, ask: Subscribe, write: &mut WriteHalf<BoxStream>) -> Result<(), Ended> {
    if ask.version != VERSION {
        let message = format!("you speak version {} of the protocol, this peer {VERSION}", ask.version);
        return Err(Some(WireError::new(Code::Incompatible, message)));
    }
    if ask.namespace != NAMESPACE {
        return Err(Some(WireError::new(Code::InvalidArgument, format!("no namespace `{}`", ask.namespace))));
    }
    let Some((group, topic)) = node.hosting(&ask.topic) else { return Err(Some(node.elsewhere(&ask.topic).await)) };
    if ask.topic_id != 0 && ask.topic_id != topic.0 {
        return Err(Some(unknown_topic(&ask.topic)));
    }
    let mut watch = group.watch();
    let head = group.head(topic).unwrap_or_default();
    let mut next = match ask.from {
        Some(From::Offset(offset)) => offset,
        Some(From::Latest(_)) => head,
        Some(From::Earliest(_)) | None => 0,
    };
    send(write, Content::Opened(Opened { topic: topic.0, next, head, ..Opened::default() })).await?;
    loop {
        watch.now();
        let Some(head) = group.head(topic) else { return Err(Some(unknown_topic(&ask.topic))) };
        if next >= head {
            if !watch.changed().await {
                let message = "this peer is shutting down; go on at another";
                return Err(Some(WireError::new(Code::Stopping, message)));
            }
            continue;
        }
        let events = read(&group, topic, next).await?;
        let Some(last) = events.last() else {
            let message = format!("event {next} of `{}` can't be read here", ask.topic);
            return Err(Some(WireError::new(Code::Internal, message)));
        };
        next = last.offset + 1;
        send(write, Content::Events(Events { events, ..Events::default() })).await?;
    }
}

async fn read(group: &GroupHandle, topic: TopicId, from: u64) -> Result<Vec<canal_proto::event::Stored>, Ended> {
    let view = group.view();
    let read = tokio::task::spawn_blocking(move || view.events(topic, from, MAX_DELIVERY, DELIVERY_BYTES));
    match read.await {
        Ok(Ok(events)) => Ok(events),
        Ok(Err(error)) => Err(Some(internal(error))),
        Err(_) => Err(Some(WireError::new(Code::Stopping, "this peer is shutting down; go on at another"))),
    }
}

async fn send(write: &mut WriteHalf<BoxStream>, content: Content) -> Result<(), Ended> {
    let mut bytes = BytesMut::new();
    frame::encode(&Delivery { content: Some(content) }, &mut bytes).map_err(|e| Some(internal(e)))?;
    let written = async {
        write.write_all(&bytes).await?;
        write.flush().await
    };
    written.await.map_err(|_| None)
}
