//! `emit`: events that the run publishes if it is committed.

use std::sync::Arc;

use canal_proto::event::Event;
use canal_proto::log::Target;
use canal_proto::{TopicName, event};
use prost::Message;

use super::{Budget, Header, HostError};
use crate::runtime::Topics;

/// What an emitted event needs in the entry besides its own bytes: two targets with names of up to 255 bytes.
const ENVELOPE: usize = 640;

/// The events of one run.
pub struct Emits {
    topics: Arc<dyn Topics>,
    left: u64,
    limit: u64,
    time_ms: u64,
    trace: String,
    events: Vec<(Target, Event)>,
}

impl Emits {
    /// None so far, and at most `limit` bytes. They take time and trace of the event that caused them.
    pub fn new(topics: Arc<dyn Topics>, limit: u64, cause: &Event) -> Self {
        let (time_ms, trace) = (cause.time_ms, cause.trace.clone());
        Self { topics, left: limit, limit, time_ms, trace, events: Vec::new() }
    }

    /// Keeps an event.
    pub fn emit(
        &mut self,
        budget: &mut Budget,
        topic: &str,
        key: Vec<u8>,
        headers: Vec<Header>,
        payload: Vec<u8>,
    ) -> Result<(), HostError> {
        let headers = headers.into_iter().map(|header| event::Header { name: header.name, value: header.value.into() });
        let event = Event {
            key: key.into(),
            headers: headers.collect(),
            payload: payload.into(),
            time_ms: self.time_ms,
            trace: self.trace.clone(),
        };
        event.check().map_err(|error| budget.limit(error.message))?;
        let target = self.target(budget, topic)?;
        let bytes = event.encoded_len() + ENVELOPE;
        let Some(left) = self.left.checked_sub(bytes as u64) else {
            return Err(budget.limit(format!("all emitted events of a run have at most {} bytes", self.limit)));
        };
        budget.charge(bytes)?;
        self.left = left;
        self.events.push((target, event));
        Ok(())
    }

    fn target(&self, budget: &mut Budget, topic: &str) -> Result<Target, HostError> {
        let name: TopicName = topic.parse().map_err(|error| HostError::Invalid(format!("{error}")))?;
        if name.is_system() {
            return Err(HostError::Invalid(format!("`{name}` is the system's; a function can't write there")));
        }
        match self.topics.resolve(name.as_str()) {
            Ok(Some(target)) => Ok(target),
            Ok(None) => Err(HostError::Invalid(format!("there is no topic `{name}`; create it first"))),
            Err(reason) => Err(budget.unavailable(format!("topic `{name}` can't be looked up now: {reason}"))),
        }
    }

    /// The events, in the order in which they were emitted.
    pub fn finish(self) -> Vec<(Target, Event)> {
        self.events
    }
}
