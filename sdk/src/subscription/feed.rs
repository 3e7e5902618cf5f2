//! The events of one topic, from one replica after the other.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use canal_proto::Code;
use canal_proto::frame;
use canal_proto::request::{self, Content, Delivery, Done, Opened, Route, Subscribe, VERSION};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

use super::{Batch, Delivered, From};
use crate::Error;
use crate::backoff::Backoff;
use crate::client::Client;
use crate::pool::Place;
use crate::routes;
use crate::transport::BoxStream;

/// For a replica to accept a subscription; after that another is tried.
const OPEN_TIMEOUT: Duration = Duration::from_secs(3);
/// Room made for each read.
const READ_CHUNK: usize = 64 << 10;

pub(super) struct Feed {
    client: Client,
    topic: Arc<str>,
    topic_id: u64,
    from: From,
    /// The offset that comes next; unknown until the subscription stands.
    next: Option<u64>,
    batches: mpsc::Sender<Batch>,
}

type Stands = Option<oneshot::Sender<Result<(), Error>>>;

/// Why reading from a replica stopped.
enum Stop {
    /// Another replica may do better.
    Elsewhere(Error),
    /// The route is wrong.
    Lost(Error),
    /// The subscription can't go on.
    Final(Error),
    /// Nobody reads any more.
    Unread,
}

impl Feed {
    pub(super) fn new(client: Client, topic: &str, topic_id: u64, from: From, batches: mpsc::Sender<Batch>) -> Self {
        Self { client, topic: topic.into(), topic_id, from, next: None, batches }
    }

    /// Reads until there is nobody to read for, or an error that is told: to `opened` before the subscription
    /// stands, to the reader after it.
    pub(super) async fn run(mut self, opened: oneshot::Sender<Result<(), Error>>) {
        let mut opened = Some(opened);
        if let Err(error) = self.rounds(&mut opened).await {
            match opened {
                Some(opened) => drop(opened.send(Err(error))),
                None => drop(self.batches.send(Err(error)).await),
            }
        }
    }

    /// The same for one topic among many: the error comes back, with whether the subscription stood before it.
    pub(super) async fn run_among(mut self, opened: oneshot::Sender<Result<(), Error>>) -> (bool, Option<Error>) {
        let mut opened = Some(opened);
        let error = self.rounds(&mut opened).await.err();
        let stood = opened.is_none();
        if let (Some(opened), Some(error)) = (opened, &error) {
            drop(opened.send(Err(error.clone())));
        }
        (stood, error)
    }

    async fn rounds(&mut self, opened: &mut Stands) -> Result<(), Error> {
        let mut give_up = Instant::now() + self.client.options().deadline;
        let mut backoff = Backoff::new();
        let mut fresh = false;
        let (mut answered, mut beyond) = (false, None);
        loop {
            let route = match self.route(fresh).await {
                // a topic of the same name that was created later is another one
                Ok(route) if self.topic_id != 0 && route.topic > self.topic_id => {
                    return Err(self.replaced());
                }
                Ok(route) => Some(route),
                Err(error) if matches!(error.code, Code::NoQuorum | Code::Unreachable) => {
                    answered |= error.code == Code::NoQuorum;
                    None
                }
                Err(error) => return Err(error),
            };
            fresh = true;
            for place in self.order(route) {
                let before = (self.next, opened.is_some());
                let stop = self.read(&place, opened).await;
                if (self.next, opened.is_some()) != before {
                    // it went well for a while
                    backoff.reset();
                    give_up = Instant::now() + self.client.options().deadline;
                }
                let error = match stop {
                    Stop::Elsewhere(error) => error,
                    Stop::Lost(error) => {
                        self.client.routes().forget(&self.topic);
                        error
                    }
                    Stop::Final(error) => return Err(error),
                    Stop::Unread => return Ok(()),
                };
                tracing::debug!(topic = %self.topic, ?place, %error, "subscription goes on elsewhere");
                answered |= error.code != Code::Unreachable;
                if error.code == Code::OutOfRange {
                    beyond = Some(error);
                }
            }
            if opened.is_some() {
                // every replica denies an offset that nobody has seen yet: the caller is told
                if let Some(beyond) = beyond.take() {
                    return Err(beyond);
                }
                if Instant::now() >= give_up {
                    return Err(self.too_late(answered));
                }
            }
            sleep(backoff.next()).await;
        }
    }

    async fn route(&self, fresh: bool) -> Result<Route, Error> {
        let end = Instant::now() + self.client.options().deadline;
        if fresh {
            self.client.resolve_until(self.topic.to_string(), true, end).await
        } else {
            self.client.route_until(&self.topic, end).await
        }
    }

    /// Replicas in the order in which they are tried: those with which there is a conversation first.
    fn order(&self, route: Option<Route>) -> Vec<Place> {
        let mut places = route.map(|route| routes::places(&route)).unwrap_or_default();
        places.sort_by_key(|place| !place.peer.is_some_and(|peer| self.client.pool().is_connected(peer)));
        places
    }

    fn too_late(&self, answered: bool) -> Error {
        let topic = &self.topic;
        if answered {
            Error::new(Code::NoQuorum, format!("no replica of `{topic}` serves subscribers: try again later"))
        } else {
            Error::unreachable(format!("no replica of `{topic}` can be reached: are its peers running?"))
        }
    }

    /// Reads from one replica until that stops.
    async fn read(&mut self, place: &Place, opened: &mut Stands) -> Stop {
        let begun = match timeout(OPEN_TIMEOUT, self.open(place)).await {
            Ok(begun) => begun,
            Err(_) => Err(Error::unreachable("the replica does not answer")),
        };
        let mut reader = match begun {
            Ok(reader) => reader,
            Err(error) if error.code == Code::Malformed => return Stop::Final(error),
            Err(error) => return Stop::Elsewhere(error),
        };
        loop {
            // before it stands, a silent replica is not waited for
            let content = match self.next {
                None => timeout(OPEN_TIMEOUT, reader.content()).await,
                Some(_) => Ok(reader.content().await),
            };
            let content = match content {
                Ok(Ok(content)) => content,
                Ok(Err(error)) if error.code == Code::Malformed => return Stop::Final(error),
                Ok(Err(error)) => return Stop::Elsewhere(error),
                Err(_) => {
                    return Stop::Elsewhere(Error::unreachable("the replica does not answer"));
                }
            };
            let result = match content {
                Content::Error(error) => return self.judge(error.into()),
                Content::Standing(_) | Content::Handled(_) => Ok(()),
                Content::Opened(stands) => self.on_opened(stands, opened),
                Content::Events(events) => match self.accept(events.events) {
                    Ok(batch) if batch.is_empty() => Ok(()),
                    Ok(batch) => match self.batches.send(Ok(batch)).await {
                        Ok(()) => Ok(()),
                        Err(_) => return Stop::Unread,
                    },
                    Err(error) => Err(error),
                },
            };
            if let Err(error) = result {
                return Stop::Final(error);
            }
        }
    }

    async fn open(&self, place: &Place) -> Result<Reader, Error> {
        let pool = self.client.pool();
        let opening = pool.opening();
        let protocol = request::protocol(&opening.mesh, "subscribe");
        let (_, mut stream) = pool.transport().open(place.peer, &place.addresses, &protocol).await?;
        let from = match (self.next, self.from) {
            (Some(next), _) | (None, From::Offset(next)) => request::From::Offset(next),
            (None, From::Earliest) => request::From::Earliest(Done::default()),
            (None, From::Latest) => request::From::Latest(Done::default()),
        };
        let subscribe = Subscribe {
            version: VERSION,
            namespace: opening.hello.namespace.clone(),
            topic: self.topic.to_string(),
            topic_id: self.topic_id,
            from: Some(from),
            ..Subscribe::default()
        };
        let mut bytes = BytesMut::new();
        frame::encode(&subscribe, &mut bytes)?;
        let broke = |e: std::io::Error| Error::unreachable(format!("the subscription broke: {e}"));
        stream.write_all(&bytes).await.map_err(broke)?;
        stream.flush().await.map_err(broke)?;
        Ok(Reader { stream, buffer: BytesMut::new() })
    }

    fn on_opened(&mut self, stands: Opened, opened: &mut Stands) -> Result<(), Error> {
        if self.topic_id != 0 && stands.topic != self.topic_id {
            return Err(self.replaced());
        }
        self.topic_id = stands.topic;
        let wanted = match (self.next, self.from) {
            (Some(next), _) | (None, From::Offset(next)) => next,
            (None, _) => stands.next,
        };
        if stands.next > wanted {
            return Err(self.gap(wanted, stands.next));
        }
        self.next = Some(wanted);
        if let Some(opened) = opened.take() {
            drop(opened.send(Ok(())));
        }
        Ok(())
    }

    /// Takes what comes next, drops what was delivered before, and refuses a gap.
    fn accept(&mut self, events: Vec<canal_proto::event::Stored>) -> Result<Vec<Delivered>, Error> {
        let Some(mut next) = self.next else {
            return Err(Error::malformed("the replica sent events before it accepted the subscription"));
        };
        let mut batch = Vec::with_capacity(events.len());
        for stored in events {
            if stored.offset > next {
                return Err(self.gap(next, stored.offset));
            }
            if stored.offset == next {
                batch.push(Delivered::new(&self.topic, stored)?);
                next += 1;
            }
        }
        self.next = Some(next);
        Ok(batch)
    }

    fn replaced(&self) -> Error {
        Error::new(Code::UnknownTopic, format!("topic `{}` was removed and created again", self.topic))
    }

    fn gap(&self, wanted: u64, found: u64) -> Error {
        let topic = &self.topic;
        let message =
            format!("events {wanted} to {} of `{topic}` are missing: subscribe again from {found}", found - 1);
        Error { detail: found, ..Error::new(Code::OutOfRange, message) }
    }

    /// What an error that a replica answered means.
    fn judge(&self, error: Error) -> Stop {
        let wanted = match (self.next, self.from) {
            (Some(next), _) | (None, From::Offset(next)) => next,
            _ => 0,
        };
        match error.code {
            // a replica that lags does not have the offset yet; one that has let it go has only later ones
            Code::OutOfRange if error.detail <= wanted => Stop::Elsewhere(error),
            Code::NotHere | Code::UnknownTopic | Code::UnknownGroup => Stop::Lost(error),
            Code::NotLeader | Code::NoQuorum | Code::WouldBlock | Code::Stopping | Code::Internal => {
                Stop::Elsewhere(error)
            }
            _ => Stop::Final(error),
        }
    }
}

struct Reader {
    stream: BoxStream,
    buffer: BytesMut,
}

impl Reader {
    async fn content(&mut self) -> Result<Content, Error> {
        loop {
            let delivery = frame::decode::<Delivery>(&mut self.buffer);
            match delivery.map_err(|error| Error::malformed(error.to_string()))? {
                Some(Delivery { content: Some(content) }) => return Ok(content),
                Some(_) => {
                    return Err(Error::malformed("a delivery that this version does not know"));
                }
                None => {}
            }
            self.buffer.reserve(READ_CHUNK);
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(Error::unreachable("the replica ended the subscription")),
                Ok(_) => {}
                Err(error) => {
                    return Err(Error::unreachable(format!("the subscription broke: {error}")));
                }
            }
        }
    }
}
