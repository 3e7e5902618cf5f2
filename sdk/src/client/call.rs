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

/// Silence after which the next replica is asked too: longer than a healthy quorum ever takes, shorter than it takes
/// to notice a peer that was killed.
pub(crate) const HEDGE: Duration = Duration::from_secs(1);
/// A replica may not know a topic yet that the catalog has just created. After this time it is believed.
const UNKNOWN_GRACE: Duration = Duration::from_secs(2);

/// An answer, who gave it, and whether an earlier try of the same call may have had effect before it.
pub(crate) struct Answered {
    pub(crate) answer: Answer,
    pub(crate) connection: Connection,
    pub(crate) repeated: bool,
}

pub(super) struct Call<'a> {
    client: &'a Client,
    target: Target,
    /// The name to resolve; none for [`Target::Any`].
    name: Option<String>,
    ask: Ask,
    deadline: Instant,
    search: Search,
    tries: FuturesUnordered<BoxFuture<'static, (Place, Tried)>>,
    /// One flag for each try under way: set once the request may have been sent.
    sent: Vec<(Place, Arc<AtomicBool>)>,
    resolving: Option<BoxFuture<'static, Result<Route, Error>>>,
    backoff: Backoff,
    hedge_at: Instant,
    round_at: Option<Instant>,
    fresh: bool,
    seen: Seen,
}

/// What the tries so far came to.
#[derive(Default)]
struct Seen {
    /// Some peer answered.
    answered: bool,
    /// A request may have been taken without its answer arriving.
    lost: bool,
    /// Nobody could be talked to for a reason that will not pass.
    refused: Option<Error>,
    unknown: Option<(Instant, Error)>,
    last: Option<Error>,
}

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
            hedge_at: now,
            round_at: Some(now),
            fresh: false,
            seen: Seen::default(),
        }
    }

    pub(super) async fn run(mut self) -> Result<Answered, Error> {
        loop {
            self.advance()?;
            let hedge = !self.tries.is_empty() && !self.search.is_exhausted() && repeatable(&self.ask);
            let round = self.round_at;
            tokio::select! {
                biased;
                () = sleep_until(self.deadline) => return Err(self.too_late()),
                Some((place, tried)) = self.tries.next(), if !self.tries.is_empty() => {
                    if let Some(answered) = self.on_tried(place, tried)? {
                        return Ok(answered);
                    }
                }
                route = async { self.resolving.as_mut()?.await.into() }, if self.resolving.is_some() => {
                    self.resolving = None;
                    if let Some(route) = route {
                        self.on_route(route)?;
                    }
                }
                () = sleep_until(self.hedge_at), if hedge => self.start_try(),
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
                && !self.seen.answered
            {
                return Err(refused);
            }
            self.round_at = Some(Instant::now() + self.backoff.next());
        } else if repeatable(&self.ask) {
            // whoever is silent keeps its chance; the others may know better by now
            self.round_at = Some(Instant::now().max(self.hedge_at) + self.backoff.next());
        }
        Ok(())
    }

    fn start_round(&mut self) {
        self.round_at = None;
        let fresh = std::mem::replace(&mut self.fresh, true);
        let Some(name) = self.name.clone() else {
            return self.search.round(self.client.anywhere());
        };
        match self.client.routes().get(&name).filter(|_| !fresh) {
            Some(route) => self.search.round(routes::places(&route)),
            None => self.resolving = Some(self.client.resolve_until(name, fresh, self.deadline)),
        }
    }

    fn on_route(&mut self, route: Result<Route, Error>) -> Result<(), Error> {
        match route {
            Ok(route) => {
                self.seen.answered = true;
                self.search.round(routes::places(&route));
                Ok(())
            }
            Err(error) if error.code == Code::NoQuorum => {
                self.seen.answered = true;
                self.seen.last = Some(error);
                Ok(())
            }
            // a try under way may still succeed
            Err(error) if error.code == Code::Unreachable && !self.tries.is_empty() => {
                self.seen.last = Some(error);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn start_try(&mut self) {
        let Some(place) = self.search.next() else { return };
        self.hedge_at = Instant::now() + HEDGE;
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
            Tried::Unconnected(error) => {
                self.note_refusal(&error);
                self.seen.last = Some(error);
                Ok(None)
            }
            Tried::Lost(error) => {
                if !repeatable(&self.ask) {
                    return Err(uncertain(&error));
                }
                self.note_refusal(&error);
                self.seen.lost = true;
                self.seen.last = Some(error);
                Ok(None)
            }
            Tried::Answered(_, Answer::Error(error)) => {
                self.seen.answered = true;
                self.on_error(place, error.into())?;
                Ok(None)
            }
            Tried::Answered(connection, answer) => {
                if let Some(name) = self.name.as_deref().filter(|_| needs_leader(&self.ask)) {
                    self.client.routes().leads(name, connection.peer());
                }
                let repeated = self.seen.lost || self.sent.iter().any(|(_, sent)| sent.load(Ordering::Relaxed));
                Ok(Some(Answered { answer, connection, repeated }))
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
                self.client.routes().forget(&name);
                self.offer(&error);
            }
            Code::Stopping | Code::WouldBlock | Code::NoQuorum => {
                if error.code == Code::NoQuorum {
                    if !repeatable(&self.ask) {
                        return Err(error);
                    }
                    self.seen.lost = true;
                }
            }
            Code::UnknownTopic | Code::UnknownGroup if self.is_doubtful(&error) => {
                self.client.routes().forget(&name);
                let since = self.seen.unknown.as_ref().map_or_else(Instant::now, |(since, _)| *since);
                self.seen.unknown = Some((since, error.clone()));
            }
            // another peer may do better
            Code::Internal | Code::Unreachable if self.target == Target::Any => {}
            _ => return Err(error),
        }
        tracing::debug!(?place, %error, "goes on to the next peer");
        self.seen.last = Some(error);
        Ok(())
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

    fn note_refusal(&mut self, error: &Error) {
        if matches!(error.code, Code::Incompatible | Code::Malformed | Code::TooLarge | Code::InvalidArgument) {
            self.seen.refused = Some(error.clone());
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

/// Whether asking twice is the same as asking once.
fn repeatable(ask: &Ask) -> bool {
    !matches!(ask, Ask::StatePut(_))
}

fn needs_leader(ask: &Ask) -> bool {
    matches!(
        ask,
        Ask::Publish(_) | Ask::EndProducer(_) | Ask::Change(_) | Ask::StatePut(_) | Ask::Activations(_) | Ask::Peers(_)
    )
}
