//! Reads a topic from the replica of one given peer: what that peer itself has, and not what a client, which may turn
//! to another replica, makes of it.

use std::time::Duration;

use bytes::BytesMut;
use canal_proto::event::Stored;
use canal_proto::request::{self, Content, Delivery, Done, From, Subscribe, VERSION};
use canal_proto::{Code, frame};
use canal_sdk::{Error, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

/// Room made for each read.
const READ_CHUNK: usize = 64 << 10;

/// Where and what to read.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// Name of the mesh.
    pub mesh: &'a str,
    /// Multiaddress of the peer.
    pub address: &'a str,
    /// Name of the topic.
    pub topic: &'a str,
}

/// Reads a topic from one peer's replica: all events that it has when it is asked, and at least `count`, for which it
/// waits. Checks nothing: gaps and doubles are handed on as they came.
///
/// # Errors
/// `NotHere` when the peer holds no replica, and what else it answers; `Unreachable` when it ends the stream;
/// `NoQuorum` when it has sent fewer events at the deadline, whose number is the detail.
pub async fn read(
    transport: &dyn Transport,
    source: Source<'_>,
    count: usize,
    deadline: Duration,
) -> Result<Vec<Stored>, Error> {
    let end = Instant::now() + deadline;
    let protocol = request::protocol(source.mesh, "subscribe");
    let late = |read: usize| {
        let message = format!("{} has sent {read} of {count} events of `{}` in time", source.address, source.topic);
        let mut error = Error::new(Code::NoQuorum, message);
        error.detail = read as u64;
        error
    };
    let broke =
        |e: std::io::Error| Error::new(Code::Unreachable, format!("the stream from {} broke: {e}", source.address));
    let addresses = [source.address.to_owned()];
    let opened = timeout_at(end, transport.open(None, &addresses, &protocol)).await;
    let (_, mut stream) = opened.map_err(|_| late(0))??;
    let subscribe = Subscribe {
        version: VERSION,
        namespace: "default".into(),
        topic: source.topic.into(),
        topic_id: 0,
        from: Some(From::Earliest(Done::default())),
        // whatever there is: it is collected here
        credit: u64::MAX,
        ..Subscribe::default()
    };
    let mut bytes = BytesMut::new();
    frame::encode(&subscribe, &mut bytes)?;
    stream.write_all(&bytes).await.map_err(broke)?;
    stream.flush().await.map_err(broke)?;
    let mut events = Vec::new();
    let mut buffer = BytesMut::new();
    let mut head = None;
    while head.is_none_or(|head: u64| (events.len() as u64) < head) || events.len() < count {
        match frame::decode::<Delivery>(&mut buffer)? {
            Some(Delivery { content: Some(Content::Error(error)) }) => return Err(error.into()),
            Some(Delivery { content: Some(Content::Events(more)) }) => events.extend(more.events),
            Some(Delivery { content: Some(Content::Opened(opened)) }) => {
                head = Some(opened.head.saturating_sub(opened.next))
            }
            Some(_) => {}
            None => {
                buffer.reserve(READ_CHUNK);
                let read = timeout_at(end, stream.read_buf(&mut buffer)).await.map_err(|_| late(events.len()))?;
                if read.map_err(broke)? == 0 {
                    let message = format!("{} ended the stream of `{}`", source.address, source.topic);
                    return Err(Error::new(Code::Unreachable, message));
                }
            }
        }
    }
    Ok(events)
}
