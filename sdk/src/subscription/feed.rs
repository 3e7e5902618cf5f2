//! The events of one topic, from one peer after the other.
//!
//! Peers that the client was told to connect to come first, and fetch the events where they have none; then the topic's
//! replicas. A peer that says nothing for [`SILENCE`] is left.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use canal_proto::Code;
use canal_proto::request::{self, Content, Done, Events, Opened, Route, Say, Subscribe, VERSION};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use self::line::Line;
use super::flow::Window;
use super::shared::{Shared, Terms};
use super::{Batch, Delivered, From};
use crate::Error;
use crate::backoff::Backoff;
use crate::pool::Place;
use crate::routes;

mod line;

/// For a peer to accept a subscription; after that another is tried.
const OPEN_TIMEOUT: Duration = Duration::from_secs(3);
/// The same where the group has to agree: it may be electing.
const OPEN_DURABLE_TIMEOUT: Duration = Duration::from_secs(6);
/// A peer says every second that the subscription stands: three that are missing are no accident.
const SILENCE: Duration = Duration::from_secs(3);
/// Tries at one peer whose streams end before they say a word: a busy one drops some of many that are opened at a time.
const MAX_DROPPED: u32 = 5;
/// Between two words about what is handled: it is the latest that counts.
const HANDLED_EVERY: Duration = Duration::from_millis(100);

pub(super) struct Feed {
    terms: Arc<Terms>,
    shared: Arc<Shared>,
    topic_id: u64,
    from: From,
    /// The offset that comes next; unknown until the subscription stands.
    next: Option<u64>,
    window: Window,
    batches: mpsc::UnboundedSender<Batch>,
    /// Peers that failed since the subscription last stood: tried after the others.
    failed: Vec<Place>,
}

type Stands = Option<oneshot::Sender<Result<(), Error>>>;

/// Why reading from a peer stopped.
enum Stop {
    /// Another peer may do better.
    Elsewhere(Error),
    /// The stream ended before the peer said a word.
    Dropped(Error),
    /// The route is wrong.
    Lost(Error),
    /// The subscription can't go on.
    Final(Error),
    /// Nobody reads any more.
    Unread,
}

/// A peer, and whether it may fetch the events elsewhere.
struct Server {
    place: Place,
    relay: bool,
}

impl Feed {
    pub(super) fn new(
        terms: Arc<Terms>,
        topic: &str,
        topic_id: u64,
        from: From,
        batches: mpsc::UnboundedSender<Batch>,
    ) -> Self {
        let shared = terms.add(topic);
        let (window, failed) = (Window::default(), Vec::new());
        Self { terms, shared, topic_id, from, next: None, window, batches, failed }
    }

    /// Reads until there is nobody to read for, or an error that is told: to `opened` before the subscription
    /// stands, to the reader after it.
    pub(super) async fn run(mut self, opened: oneshot::Sender<Result<(), Error>>) {
        let mut opened = Some(opened);
        if let Err(error) = self.rounds(&mut opened).await {
            match opened {
                Some(opened) => drop(opened.send(Err(error))),
                None => drop(self.batches.send(Err(error))),
            }
        }
    }

    /// The same for one topic among many: the error comes back, with whether the subscription stood before it.
    pub(super) async fn run_among(mut self, opened: oneshot::Sender<Result<(), Error>>) -> (bool, Option<Error>) {
        let mut opened = Some(opened);
        let error = self.rounds(&mut opened).await.err();
        self.terms.remove(&self.shared);
        let stood = opened.is_none();
        if let (Some(opened), Some(error)) = (opened, &error) {
            drop(opened.send(Err(error.clone())));
        }
        (stood, error)
    }

    async fn rounds(&mut self, opened: &mut Stands) -> Result<(), Error> {
        let deadline = self.terms.client.options().deadline;
        let mut give_up = Instant::now() + deadline;
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
            for server in self.order(route) {
                let before = (self.next, opened.is_some());
                let stop = self.read_patiently(&server, opened, &mut backoff).await;
                if (self.next, opened.is_some()) != before {
                    // it went well for a while
                    backoff.reset();
                    give_up = Instant::now() + deadline;
                }
                let error = match stop {
                    Stop::Elsewhere(error) | Stop::Dropped(error) => error,
                    Stop::Lost(error) => {
                        self.terms.client.routes().forget(&self.shared.topic);
                        error
                    }
                    Stop::Final(error) => return Err(error),
                    Stop::Unread => return Ok(()),
                };
                tracing::debug!(topic = %self.shared.topic, place = ?server.place, %error, "subscription goes on elsewhere");
                self.failed.retain(|failed| !failed.same(&server.place));
                self.failed.push(server.place);
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
        let client = &self.terms.client;
        let end = Instant::now() + client.options().deadline;
        if fresh {
            client.resolve_until(self.shared.topic.to_string(), true, end).await
        } else {
            client.route_until(&self.shared.topic, end).await
        }
    }

    /// Peers in the order in which they are tried: those that the client entered the mesh by and that it talks to; then
    /// replicas, first those that it talks to; then where else it may enter. Who has just failed comes last. A peer
    /// fetches nothing for another peer.
    fn order(&self, route: Option<Route>) -> Vec<Server> {
        let client = &self.terms.client;
        let talks = |place: &Place| place.peer.is_some_and(|peer| client.pool().is_connected(peer));
        let mut replicas = route.map(|route| routes::places(&route)).unwrap_or_default();
        replicas.sort_by_key(|place| !talks(place));
        let entries: Vec<Place> = if client.options().between_peers.is_some() { Vec::new() } else { client.entries() };
        let (near, far): (Vec<Place>, Vec<Place>) = entries.into_iter().partition(talks);
        let entry = |place| Server { place, relay: true };
        let replica = |place| Server { place, relay: false };
        let all =
            near.into_iter().map(entry).chain(replicas.into_iter().map(replica)).chain(far.into_iter().map(entry));
        let mut servers: Vec<Server> = Vec::new();
        for server in all {
            if !servers.iter().any(|other| other.place.same(&server.place)) {
                servers.push(server);
            }
        }
        servers.sort_by_key(|server| self.failed.iter().any(|failed| failed.same(&server.place)));
        servers
    }

    fn too_late(&self, answered: bool) -> Error {
        let topic = &self.shared.topic;
        if answered {
            Error::new(Code::NoQuorum, format!("no replica of `{topic}` serves subscribers: try again later"))
        } else {
            Error::unreachable(format!("no replica of `{topic}` can be reached: are its peers running?"))
        }
    }

    /// Reads from one peer until that stops; tries again where it has not begun.
    async fn read_patiently(&mut self, server: &Server, opened: &mut Stands, backoff: &mut Backoff) -> Stop {
        for _ in 1..MAX_DROPPED {
            match self.read(server, opened).await {
                Stop::Dropped(error) => {
                    tracing::debug!(topic = %self.shared.topic, place = ?server.place, %error, "subscribes once more");
                    sleep(backoff.next()).await;
                }
                stop => return stop,
            }
        }
        self.read(server, opened).await
    }

    /// Reads from one peer until that stops.
    async fn read(&mut self, server: &Server, opened: &mut Stands) -> Stop {
        let patience = if self.terms.durable.is_some() { OPEN_DURABLE_TIMEOUT } else { OPEN_TIMEOUT };
        let begun = Instant::now();
        let mut line = match timeout(patience, self.open(server)).await {
            Ok(Ok(line)) => line,
            Ok(Err(stop)) => return stop,
            Err(_) => return Stop::Elsewhere(Error::unreachable("the peer does not answer")),
        };
        let (mut stands, mut said, mut say_at) = (false, 0, begun);
        loop {
            let silent_at = if stands { line.heard + SILENCE } else { begun + patience };
            let mut handled_waits = false;
            if stands {
                let window = self.terms.window();
                let consumed = self.shared.consumed(window);
                if let Some(credit) = self.window.grant(consumed, window)
                    && let Err(error) = line.say(Say::Credit(credit)).await
                {
                    return Stop::Elsewhere(error);
                }
                let handled = self.shared.handled();
                handled_waits = self.terms.durable.is_some() && handled > said.max(self.shared.committed());
                if handled_waits && (Instant::now() >= say_at || self.shared.is_flushing()) {
                    if let Err(error) = line.say(Say::Handled(handled)).await {
                        return Stop::Elsewhere(error);
                    }
                    (said, say_at, handled_waits) = (handled, Instant::now() + HANDLED_EVERY, false);
                }
            }
            let content = tokio::select! {
                biased;
                () = self.batches.closed() => return Stop::Unread,
                content = line.content() => content,
                () = self.shared.wake.notified() => continue,
                () = sleep_until(say_at), if handled_waits => continue,
                () = sleep_until(silent_at) => {
                    if stands && line.heard + SILENCE > Instant::now() {
                        continue;
                    }
                    return Stop::Elsewhere(Error::unreachable("the peer says nothing"));
                }
            };
            let result = match content {
                Err(error) if error.code == Code::Malformed => return Stop::Final(error),
                Err(error) if !line.spoke => return Stop::Dropped(error),
                Err(error) => return Stop::Elsewhere(error),
                Ok(Content::Error(error)) => return self.judge(error.into()),
                Ok(Content::Standing(standing)) => {
                    self.shared.on_head(standing.head);
                    Ok(())
                }
                Ok(Content::Handled(next)) => {
                    self.shared.on_committed(next);
                    Ok(())
                }
                Ok(Content::Opened(opening)) => {
                    stands = true;
                    self.on_opened(&opening, opened)
                }
                Ok(Content::Events(events)) => self.on_events(events),
            };
            if let Err(error) = result {
                return Stop::Final(error);
            }
        }
    }

    async fn open(&mut self, server: &Server) -> Result<Line, Stop> {
        let client = self.terms.client.clone();
        let pool = client.pool();
        let opening = pool.opening();
        let protocol = request::protocol(&opening.mesh, "subscribe");
        let stream = pool.transport().open(server.place.peer, &server.place.addresses, &protocol).await;
        let (_, stream) = stream.map_err(|error| match error.code {
            Code::Malformed => Stop::Final(error),
            _ => Stop::Elsewhere(error),
        })?;
        let from = match (self.next, self.from) {
            (Some(next), _) | (None, From::Offset(next)) => request::From::Offset(next),
            (None, From::Earliest) => request::From::Earliest(Done::default()),
            (None, From::Latest) => request::From::Latest(Done::default()),
        };
        let window = self.terms.window();
        let durable = self.terms.durable.as_ref();
        let subscribe = Subscribe {
            version: VERSION,
            namespace: opening.hello.namespace.clone(),
            topic: self.shared.topic.to_string(),
            topic_id: self.topic_id,
            from: Some(from),
            durable: durable.map(|durable| durable.name.clone()).unwrap_or_default(),
            credit: self.window.open(self.shared.consumed(window), window),
            relay: server.relay,
            holder: durable.map(|durable| Bytes::copy_from_slice(&durable.holder)).unwrap_or_default(),
            again: durable.is_some() && self.next.is_some(),
        };
        Line::open(stream, &subscribe).await.map_err(Stop::Dropped)
    }

    fn on_opened(&mut self, stands: &Opened, opened: &mut Stands) -> Result<(), Error> {
        if self.topic_id != 0 && stands.topic != self.topic_id {
            return Err(self.replaced());
        }
        self.topic_id = stands.topic;
        let durable = self.terms.durable.is_some();
        let wanted = match (self.next, self.from) {
            (Some(next), _) => next,
            // the cursor says where it goes on
            _ if durable => stands.next.min(stands.cursor),
            (None, From::Offset(next)) => next,
            (None, _) => stands.next,
        };
        self.shared.on_opened(stands, stands.next.max(wanted));
        if stands.next > wanted {
            self.skip(wanted, stands.next)?;
        }
        self.next = Some(stands.next.max(wanted));
        self.failed.clear();
        if let Some(opened) = opened.take() {
            drop(opened.send(Ok(())));
        }
        Ok(())
    }

    /// Events are gone. A durable subscription tells so and goes on; any other ends, and whoever made it decides.
    fn skip(&mut self, wanted: u64, found: u64) -> Result<(), Error> {
        if self.terms.durable.is_none() {
            return Err(self.gap(wanted, found));
        }
        self.shared.on_lost(wanted..found);
        self.next = Some(found);
        Ok(())
    }

    /// Takes what comes next, drops what was delivered before, and refuses a gap.
    fn on_events(&mut self, events: Events) -> Result<(), Error> {
        let Some(mut next) = self.next else {
            return Err(Error::malformed("the peer sent events before it accepted the subscription"));
        };
        self.shared.on_head(events.head);
        let mut batch = Vec::with_capacity(events.events.len());
        for stored in events.events {
            if stored.offset > next {
                return Err(self.gap(next, stored.offset));
            }
            let cost = Events::cost(&stored);
            self.window.receive(cost);
            if stored.offset == next {
                batch.push((cost, Delivered::new(&self.shared.topic, stored)?));
                next += 1;
            } else {
                self.shared.on_consumed(cost);
            }
        }
        self.next = Some(next);
        if !batch.is_empty() {
            // bounded by the window; that nobody reads any more is noticed by the caller
            let _ = self.batches.send(Ok((Arc::clone(&self.shared), batch)));
        }
        Ok(())
    }

    fn replaced(&self) -> Error {
        Error::new(Code::UnknownTopic, format!("topic `{}` was removed and created again", self.shared.topic))
    }

    fn gap(&self, wanted: u64, found: u64) -> Error {
        let topic = &self.shared.topic;
        let message =
            format!("events {wanted} to {} of `{topic}` are missing: subscribe again from {found}", found - 1);
        Error { detail: found, ..Error::new(Code::OutOfRange, message) }
    }

    /// What an error that a peer answered means.
    fn judge(&mut self, error: Error) -> Stop {
        let wanted = match (self.next, self.from) {
            (Some(next), _) | (None, From::Offset(next)) => next,
            _ => 0,
        };
        match error.code {
            // a replica that lags does not have the offset yet; one that has let it go has only later ones
            Code::OutOfRange if error.detail <= wanted => Stop::Elsewhere(error),
            Code::OutOfRange if self.next.is_some() => match self.skip(wanted, error.detail) {
                Ok(()) => Stop::Elsewhere(error),
                Err(_) => Stop::Final(error),
            },
            Code::NotHere | Code::UnknownTopic | Code::UnknownGroup => Stop::Lost(error),
            Code::NotLeader
            | Code::NoQuorum
            | Code::Unreachable
            | Code::WouldBlock
            | Code::Stopping
            | Code::Internal => Stop::Elsewhere(error),
            _ => Stop::Final(error),
        }
    }
}
