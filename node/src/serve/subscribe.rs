//! Subscriptions: the history of one topic from any offset, then what is new, from a replica here or through a relay.
//!
//! There is only one loop, over offsets: read what is there, and wait for the topic to grow when there is nothing. So
//! there is no seam between history and live where an event could be lost or doubled. Nothing is sent without credit; a
//! subscriber without credit is told how far it lags, and stops its own loop and nobody else's. Every second without
//! anything else it is told that the subscription stands.
//!
//! Of a durable subscription the cursor is moved beside the loop, and the subscriber is told when somebody else opens it.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use canal_proto::request::{Content, DEFAULT_CREDIT, Delivery, From, Opened, Standing, Subscribe, VERSION};
use canal_proto::{Code, WireError, frame};
use canal_sdk::BoxStream;
use tokio::io::{AsyncWriteExt, WriteHalf};
use tokio::time::{Instant, sleep_until, timeout};

use self::durable::Durable;
use self::flow::Credit;
use self::said::Said;
use self::source::Source;
use super::greeting::first;
use crate::net::refused::Reason;
use crate::node::{NAMESPACE, Node, internal};

pub mod batch;
mod durable;
mod flow;
mod said;
mod source;

/// Bytes of events in one delivery, about: a slow link shows progress, and a large event still fits.
const DELIVERY_BYTES: u64 = 512 << 10;
/// Without anything to send for so long, it is said that the subscription stands.
const BEAT: Duration = Duration::from_secs(1);
/// For a subscriber to take what it has granted credit for.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves one subscription to its end.
pub async fn serve(node: Arc<Node>, mut stream: BoxStream) {
    let ask = match first::<Subscribe>(&mut stream, node.net.refused()).await {
        Ok(Some(ask)) => ask,
        Ok(None) => return,
        Err(error) => {
            let (_, write) = tokio::io::split(stream);
            let mut out = Out { write, beat: Instant::now() + BEAT };
            let _ = out.send(Content::Error(error)).await;
            let _ = timeout(WRITE_TIMEOUT, out.write.shutdown()).await;
            return;
        }
    };
    let (read, write) = tokio::io::split(stream);
    let said = Said::new();
    let mut out = Out { write, beat: Instant::now() + BEAT };
    let mut durable = None;
    let ended = tokio::select! {
        biased;
        ended = said.listen(read) => ended,
        ended = begin(&node, &ask, &said, &mut out, &mut durable) => ended.err().flatten(),
    };
    if let Some(error) = ended {
        count(&node, &error);
        let _ = out.send(Content::Error(error)).await;
    }
    let _ = timeout(WRITE_TIMEOUT, out.write.shutdown()).await;
    if let Some(durable) = durable {
        durable.last_move(&node, &said).await;
    }
}

/// Counts what a subscriber should not have said.
fn count(node: &Node, error: &WireError) {
    match error.code() {
        Code::Malformed => node.net.refused().count(Reason::Malformed),
        Code::Incompatible => node.net.refused().count(Reason::Incompatible),
        _ => {}
    }
}

/// Why a subscription ended: with something to tell, or because the client is gone.
type Ended = Option<WireError>;

struct Out {
    write: WriteHalf<BoxStream>,
    /// When something has to be said.
    beat: Instant,
}

impl Out {
    async fn send(&mut self, content: Content) -> Result<(), Ended> {
        let mut bytes = BytesMut::new();
        frame::encode(&Delivery { content: Some(content) }, &mut bytes).map_err(|e| Some(internal(e)))?;
        self.put(&bytes).await
    }

    async fn put(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        let written = async {
            self.write.write_all(bytes).await?;
            self.write.flush().await
        };
        let written = timeout(WRITE_TIMEOUT, written).await;
        self.beat = Instant::now() + BEAT;
        if matches!(written, Ok(Ok(()))) { Ok(()) } else { Err(None) }
    }
}

async fn begin(
    node: &Arc<Node>,
    ask: &Subscribe,
    said: &Said,
    out: &mut Out,
    held: &mut Option<Durable>,
) -> Result<(), Ended> {
    if ask.version != VERSION {
        let message = format!("you speak version {} of the protocol, this peer {VERSION}", ask.version);
        return Err(Some(WireError::new(Code::Incompatible, message)));
    }
    if ask.namespace != NAMESPACE {
        return Err(Some(WireError::new(Code::InvalidArgument, format!("no namespace `{}`", ask.namespace))));
    }
    let mut source = Source::open(node, ask).await?;
    let mut opened = Opened { topic: source.topic(), head: source.head(), ..Opened::default() };
    let (mut durable, mut cursor) = (None, None);
    if !ask.durable.is_empty() {
        let (open, row) = Durable::open(node, ask, opened.topic).await?;
        (opened.session, opened.cursor) = (row.session, row.next);
        cursor = (!ask.again).then_some(row.next);
        durable = Some(open);
    }
    // the price of knowing it is a round trip where there is no replica: who begins at an offset learns it from reading
    let exact = cursor.is_none() && matches!(ask.from, Some(From::Offset(_) | From::Latest(_)));
    if !exact || matches!(source, Source::Here(_)) {
        opened.oldest = source.oldest(node, &ask.topic).await?;
    }
    opened.next = match (cursor, &ask.from) {
        (Some(cursor), _) => cursor.max(opened.oldest),
        (None, Some(From::Offset(offset))) if *offset < opened.oldest => {
            *held = durable;
            return Err(Some(source::too_old(&ask.topic, *offset, opened.oldest)));
        }
        (None, Some(From::Offset(offset))) => *offset,
        (None, Some(From::Latest(_))) => source.newest(),
        (None, Some(From::Earliest(_)) | None) => opened.oldest,
    };
    let next = opened.next;
    out.send(Content::Opened(opened)).await?;
    let credit = Credit::new(if ask.credit == 0 { DEFAULT_CREDIT } else { ask.credit });
    *held = durable;
    let Some(durable) = held.as_ref() else { return deliver(&mut source, next, credit, said, out).await };
    let replica = source.replica();
    tokio::select! {
        biased;
        error = durable.lost(node, replica) => Err(Some(error)),
        error = durable.keep_moving(node, said) => Err(Some(error)),
        ended = deliver(&mut source, next, credit, said, out) => ended,
    }
}

/// Sends events until something ends.
async fn deliver(
    source: &mut Source,
    mut next: u64,
    mut credit: Credit,
    said: &Said,
    out: &mut Out,
) -> Result<(), Ended> {
    // whether a subscriber without credit has been told how far it lags
    let mut told = false;
    loop {
        let more = said.take_credit();
        if more > 0 {
            credit.grant(more);
            told = false;
        }
        if let Some(committed) = said.take_committed() {
            out.send(Content::Handled(committed)).await?;
        }
        let head = source.head();
        let open = credit.left() > 0;
        if !open && !told && next < head {
            out.send(Content::Standing(Standing { next, head })).await?;
            told = true;
        }
        let beat = out.beat;
        tokio::select! {
            biased;
            () = said.wake.notified() => {}
            ready = source.ready(next), if open => {
                ready?;
                let events = source.read(next, credit.left().min(DELIVERY_BYTES)).await?;
                let sent = credit.take(&events);
                let events = events.get(..sent).unwrap_or_default();
                let Some(last) = events.last() else { continue };
                next = last.offset + 1;
                let frame = batch::deliver(events, source.head().max(next)).map_err(|e| Some(internal(e)))?;
                out.put(&frame).await?;
                source.on_out(events);
            }
            () = sleep_until(beat) => {
                if !open {
                    source.pause();
                }
                out.send(Content::Standing(Standing { next, head: source.head().max(next) })).await?;
            }
        }
    }
}
