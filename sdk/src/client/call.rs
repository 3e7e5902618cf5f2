//! One call: rounds of tries at the places that could answer, until one does or the deadline has passed.
//!
//! A place that stays silent for [`HEDGE`] while others could answer is not waited for any longer than it takes
//! them: the next is asked beside it. That doubles nothing, since what is asked twice is recognised (a publish by
//! its producer and sequence), says the same twice (a change of the catalog), or has no effect (a read). A write to
//! function state is none of these, so it is neither hedged nor sent again after a try that may have had effect.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use canal_proto::Code;
use canal_proto::request::{Answer, Ask, Route};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};

use super::search::Search;
use super::{Client, Target};
use crate::Error;
use crate::backoff::Backoff;
use crate::connection::Connection;
use crate::pool::Place;
use crate::routes;

/// Silence after which the next replica is asked too: some times what a healthy quorum takes, and shorter than an
/// election. A replica that has not heard of its leader for about as long waits until there is another, and names it.
pub(crate) const HEDGE: Duration = Duration::from_millis(400);
/// The same for a conversation that does not come about: on a healthy path it takes a few round trips, and to begin
/// another one beside it costs nobody anything.
const CONNECT_HEDGE: Duration = Duration::from_millis(300);
/// A replica may not know a topic yet that the catalog has just created. After this time it is believed.
const UNKNOWN_GRACE: Duration = Duration::from_secs(2);

/// An answer, who gave it, and whether an earlier try of the same call may have had effect before it.
pub(crate) struct Answered {
    pub(crate) answer: Answer,
    pub(crate) connection: Connection,
    pub(crate) repeated: bool,
}

type Tries = FuturesUnordered<BoxFuture<'static, (Place, Tried)>>;

pub(super) struct Call<'a> {
    client: &'a Client,
    target: Target,
    /// The name to resolve; none for [`Target::Any`].
    name: Option<String>,
    ask: Ask,
    deadline: Instant,
    search: Search,
    tries: Tries,
    /// One flag for each try under way: set once the request may have been sent.
    sent: Vec<(Place, Arc<AtomicBool>)>,
    resolving: Option<BoxFuture<'static, Result<Route, Error>>>,
    backoff: Backoff,
    /// When the latest try was started, and when it has been silent for long enough to start another.
    started: Instant,
    hedge_at: Instant,
    round_at: Option<Instant>,
    /// The route that is cached led astray.
    stale: bool,
    /// Places that failed during this call: asked after the others.
    failed: Vec<Place>,
    seen: Seen,
}

/// What the tries so far came to.
#[derive(Default)]
struct Seen {
    /// Some peer answered.
    answered: bool,
    /// A request may have been taken without its answer arriving.
    lost: bool,
    /// In this round, somebody could not be talked to for a reason that will not pass.
    refused: Option<Error>,
    /// In this round, somebody answered, or failed for a reason that may pass.
    hopeful: bool,
    unknown: Option<(Instant, Error)>,
    last: Option<Error>,
}

#[expect(clippy::large_enum_variant, reason = "it lives until it is looked at, a line later")]
enum Tried {
    /// There was no conversation: the request was not sent.
    Unconnected(Error),
    /// The conversation ended before the answer came.
    Lost(Error),
    Answered(Connection, Answer),
}

impl<'a> Call<'a> {
    pub(super) fn new(client: &'a Client, target: Target, ask: Ask, deadline: Instant) -> Self {
        let now = Instant::now();
        Self {
            client,
            name: target.route_name(),
            target,
            ask,
            deadline,
            search: Search::default(),
            tries: FuturesUnordered::new(),
            sent: Vec::new(),
            resolving: None,
            backoff: Backoff::new(),
            started: now,
            hedge_at: now,
            round_at: Some(now),
            stale: false,
            failed: Vec::new(),
            seen: Seen::default(),
        }
    }

    pub(super) async fn run(mut self) -> Result<Answered, Error> {
        loop {
            self.advance()?;
            let hedge = !self.search.is_exhausted() && hedgeable(&self.tries, &self.ask);
            let round = self.round_at;
            tokio::select! {
                biased;
                () = sleep_until(self.deadline) => return Err(self.too_late()),
                Some((place, tried)) = self.tries.next(), if !self.tries.is_empty() => {
                    if let Some(answered) = self.on_tried(place, tried)? {
                        return Ok(answered);
                    }
                    self.round_at = None;
                    if hedgeable(&self.tries, &self.ask) {
                        // whoever is still silent was given its time before this one was asked
                        self.start_try();
                    }
                }
                route = resolved(&mut self.resolving), if self.resolving.is_some() => {
                    self.resolving = None;
                    self.on_route(route)?;
                }
                () = sleep_until(self.hedge_at), if hedge => self.hedge(),
                () = sleep_until(round.unwrap_or(self.deadline)), if round.is_some() => self.start_round(),
            }
        }
    }

    /// Starts what can be started without waiting.
    fn advance(&mut self) -> Result<(), Error> {
        if self.tries.is_empty() && !self.search.is_exhausted() {
            self.start_try();
        }
        let idle = self.search.is_exhausted() && self.resolving.is_none() && self.round_at.is_none();
        if !idle {
            return Ok(());
        }
        if self.tries.is_empty() {
            if let Some(refused) = self.seen.refused.take()
                && !self.seen.hopeful
            {
                return Err(refused);
            }
            self.round_at = Some(Instant::now() + self.backoff.next());
        } else if repeatable(&self.ask) {
            // whoever is silent keeps its chance; the others may know better by now
            self.round_at = Some(if self.seen.hopeful {
                Instant::now() + self.backoff.next()
            } else {
                (self.started + HEDGE).max(Instant::now() + HEDGE / 2)
            });
        }
        Ok(())
    }

    fn start_round(&mut self) {
        self.round_at = None;
        let fresh = std::mem::take(&mut self.stale) || !(self.tries.is_empty() || self.seen.hopeful);
        let Some(name) = self.name.clone() else {
            return self.begin_round(self.client.anywhere());
        };
        match self.client.routes().get(&name).filter(|_| !fresh) {
            Some(route) => self.begin_round(routes::places(&route)),
            None => {
                // leaves time to use the route, and to ask once more
                let now = Instant::now();
                let end = now + self.deadline.saturating_duration_since(now) / 2;
                self.resolving = Some(self.client.resolve_until(name, fresh, end));
            }
        }
    }

    fn begin_round(&mut self, mut places: Vec<Place>) {
        places.sort_by_key(|place| self.failed.iter().any(|failed| failed.same(place)));
        self.seen.refused = None;
        self.seen.hopeful = false;
        self.search.round(places);
    }

    fn hedge(&mut self) {
        let connected = self.sent.last().is_some_and(|(_, sent)| sent.load(Ordering::Relaxed));
        if connected && self.started.elapsed() < HEDGE {
            self.hedge_at = self.started + HEDGE;
        } else {
            self.start_try();
        }
    }

    fn on_route(&mut self, route: Result<Route, Error>) -> Result<(), Error> {
        match route {
            Ok(route) => {
                self.seen.answered = true;
                self.begin_round(routes::places(&route));
                Ok(())
            }
            Err(error) if matches!(error.code, Code::NoQuorum | Code::Unreachable) => {
                self.seen.answered |= error.code == Code::NoQuorum;
                self.stale = true;
                self.seen.last = Some(error);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn start_try(&mut self) {
        let Some(place) = self.search.next() else {
            return;
        };
        self.started = Instant::now();
        self.hedge_at = self.started + CONNECT_HEDGE;
        let sent = Arc::new(AtomicBool::new(false));
        self.sent.push((place.clone(), Arc::clone(&sent)));
        let (client, ask, deadline) = (self.client.clone(), self.ask.clone(), self.deadline);
        self.tries.push(Box::pin(async move {
            let tried = attempt(&client, &place, ask, deadline, &sent).await;
            (place, tried)
        }));
    }

    fn on_tried(&mut self, place: Place, tried: Tried) -> Result<Option<Answered>, Error> {
        self.search.done(&place);
        self.sent.retain(|(other, _)| !other.same(&place));
        match tried {
            Tried::Unconnected(error) if error.code == Code::TooLarge => Err(error),
            Tried::Unconnected(error) => {
                self.note_failure(place);
                self.note_refusal(&error);
                self.seen.last = Some(error);
                Ok(None)
            }
            Tried::Lost(error) => {
                if !repeatable(&self.ask) {
                    return Err(uncertain(&error));
                }
                self.note_failure(place);
                self.note_refusal(&error);
                self.seen.lost = true;
                self.seen.last = Some(error);
                Ok(None)
            }
            Tried::Answered(_, Answer::Error(error)) => {
                self.seen.answered = true;
                self.seen.hopeful = true;
                self.on_error(place, error.into())?;
                Ok(None)
            }
            Tried::Answered(connection, answer) => {
                if let Some(name) = self.name.as_deref().filter(|_| needs_leader(&self.ask)) {
                    self.client.routes().leads(name, connection.peer());
                }
                Ok(Some(Answered { answer, connection, repeated: self.is_repeated() }))
            }
        }
    }

    /// A peer answered with an error: either it ends the call, or it says where to go on.
    fn on_error(&mut self, place: Place, error: Error) -> Result<(), Error> {
        let name = self.name.clone().unwrap_or_default();
        match error.code {
            Code::NotLeader => {
                self.client.routes().redirect(&name, &error);
                self.offer(&error);
            }
            Code::NotHere => {
                self.stale = true;
                self.client.routes().forget(&name);
                self.offer(&error);
            }
            Code::Stopping => self.note_failure(place.clone()),
            Code::WouldBlock => {}
            Code::NoQuorum if repeatable(&self.ask) => self.seen.lost = true,
            Code::UnknownTopic | Code::UnknownGroup if self.is_doubtful(&error) => {
                self.stale = true;
                self.client.routes().forget(&name);
                let since = self.seen.unknown.as_ref().map_or_else(Instant::now, |(since, _)| *since);
                self.seen.unknown = Some((since, error.clone()));
            }
            // another peer may do better
            Code::Internal | Code::Unreachable if self.target == Target::Any => {}
            _ => {
                return Err(Error { repeated: self.is_repeated(), ..error });
            }
        }
        tracing::debug!(?place, %error, "goes on to the next peer");
        self.seen.last = Some(error);
        Ok(())
    }

    /// Whether a try other than the one that has just been answered may have had effect.
    fn is_repeated(&self) -> bool {
        self.seen.lost || self.sent.iter().any(|(_, sent)| sent.load(Ordering::Relaxed))
    }

    /// A replica does not know what the catalog has: it lags, or it is gone.
    fn is_doubtful(&self, error: &Error) -> bool {
        let ours = matches!(
            (&self.target, error.code),
            (Target::Topic(_), Code::UnknownTopic) | (Target::Group(_), Code::UnknownGroup)
        );
        let patience = self.seen.unknown.as_ref().is_none_or(|(since, _)| since.elapsed() < UNKNOWN_GRACE);
        ours && patience
    }

    fn offer(&mut self, error: &Error) {
        for place in error.replicas.iter().filter_map(Place::replica) {
            self.search.last(place);
        }
        if let Some(leader) = error.leader.as_ref().and_then(Place::replica) {
            self.search.first(leader);
        }
    }

    fn note_failure(&mut self, place: Place) {
        self.stale = true;
        if let (Some(name), Some(peer)) = (&self.name, place.peer) {
            self.client.routes().suspect(name, peer);
        }
        if !self.failed.iter().any(|failed| failed.same(&place)) {
            self.failed.push(place);
        }
    }

    fn note_refusal(&mut self, error: &Error) {
        if matches!(error.code, Code::Incompatible | Code::Malformed | Code::InvalidArgument) {
            self.seen.refused = Some(error.clone());
        } else {
            self.seen.hopeful = true;
        }
    }

    fn too_late(&mut self) -> Error {
        if let Some((_, unknown)) = self.seen.unknown.take() {
            return unknown;
        }
        let why = self.seen.last.take().map_or_else(|| "no answer".to_owned(), |error| error.message);
        let waits = self.sent.iter().any(|(_, sent)| sent.load(Ordering::Relaxed));
        if self.seen.answered || waits {
            let message = format!("no majority decided within the deadline ({why}): try again when more peers are up");
            Error::new(Code::NoQuorum, message)
        } else {
            Error::unreachable(format!("no peer could be reached within the deadline ({why}): is it running?"))
        }
    }
}

async fn resolved(resolving: &mut Option<BoxFuture<'static, Result<Route, Error>>>) -> Result<Route, Error> {
    match resolving {
        Some(resolving) => resolving.await,
        None => std::future::pending().await,
    }
}

async fn attempt(client: &Client, place: &Place, ask: Ask, deadline: Instant, sent: &AtomicBool) -> Tried {
    let connection = match client.pool().connect(place).await {
        Ok(connection) => connection,
        Err(error) => return Tried::Unconnected(error),
    };
    let left = deadline.saturating_duration_since(Instant::now());
    let reply = match connection.begin(ask, left).await {
        Ok(reply) => reply,
        Err(error) => return Tried::Unconnected(error),
    };
    sent.store(true, Ordering::Relaxed);
    match reply.answer().await {
        Ok(answer) => Tried::Answered(connection, answer),
        Err(error) => {
            sent.store(false, Ordering::Relaxed);
            Tried::Lost(error)
        }
    }
}

fn uncertain(error: &Error) -> Error {
    let message = format!("{}: the write may or may not have taken effect; read it back", error.message);
    Error::new(Code::NoQuorum, message)
}

fn hedgeable(tries: &Tries, ask: &Ask) -> bool {
    !tries.is_empty() && repeatable(ask)
}

/// Whether asking twice is the same as asking once.
fn repeatable(ask: &Ask) -> bool {
    !matches!(ask, Ask::StatePut(_))
}

fn needs_leader(ask: &Ask) -> bool {
    matches!(
        ask,
        Ask::Publish(_)
            | Ask::EndProducer(_)
            | Ask::Change(_)
            | Ask::StatePut(_)
            | Ask::Activations(_)
            | Ask::Peers(_)
            | Ask::Subscription(_)
    )
}
