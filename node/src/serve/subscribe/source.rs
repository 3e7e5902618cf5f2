//! Where a subscriber's events come from: a replica here, or a relay.

use std::sync::Arc;

use canal_consensus::{GroupHandle, Watch, view};
use canal_proto::limits::MAX_DELIVERY;
use canal_proto::request::Subscribe;
use canal_proto::{Code, TopicId, WireError};

use super::batch::{Encoded, encode};
use crate::node::{Node, internal, unknown_topic};
use crate::serve::relay::Relayed;

/// Where events come from.
pub enum Source {
    /// A replica on this peer.
    Here(Here),
    /// A replica elsewhere.
    Elsewhere(Relayed),
}

/// A replica on this peer.
pub struct Here {
    node: Arc<Node>,
    name: String,
    group: GroupHandle,
    topic: TopicId,
    watch: Watch,
}

impl Source {
    /// Finds the topic, here or through a relay if the subscriber lets that be.
    pub async fn open(node: &Arc<Node>, ask: &Subscribe) -> Result<Self, WireError> {
        let name = &ask.topic;
        let source = match node.hosting(name) {
            Some((group, topic)) => {
                let watch = group.watch();
                Self::Here(Here { node: Arc::clone(node), name: name.clone(), group, topic, watch })
            }
            None if ask.relay => match node.relays.open(&node.client, name).await {
                Some(relayed) => Self::Elsewhere(relayed?),
                // it may go to a replica itself
                None => return Err(node.elsewhere(name).await),
            },
            None => return Err(node.elsewhere(name).await),
        };
        if ask.topic_id != 0 && ask.topic_id != source.topic() {
            return Err(unknown_topic(name));
        }
        Ok(source)
    }

    /// The topic's id.
    pub fn topic(&self) -> u64 {
        match self {
            Self::Here(here) => here.topic.0,
            Self::Elsewhere(relayed) => relayed.topic_and_head().0,
        }
    }

    /// The group, if it has a replica here.
    pub fn replica(&self) -> Option<GroupHandle> {
        match self {
            Self::Here(here) => Some(here.group.clone()),
            Self::Elsewhere(_) => None,
        }
    }

    /// Offset that the topic's next event gets, as far as is known here.
    pub fn head(&self) -> u64 {
        match self {
            Self::Here(here) => here.group.head(here.topic).unwrap_or_default(),
            Self::Elsewhere(relayed) => relayed.topic_and_head().1,
        }
    }

    /// Offset behind the newest event that can be read here.
    pub fn newest(&self) -> u64 {
        match self {
            Self::Here(_) => self.head(),
            Self::Elsewhere(relayed) => relayed.next(),
        }
    }

    /// Offset of the topic's oldest event.
    pub async fn oldest(&self, node: &Node, name: &str) -> Result<u64, WireError> {
        match self {
            Self::Here(here) => here.group.view().oldest(here.topic).map_err(internal),
            Self::Elsewhere(_) => Ok(node.client.topic_status(name).await?.oldest),
        }
    }

    /// Returns when the event at this offset can be read here. May be dropped and called again.
    pub async fn ready(&mut self, next: u64) -> Result<(), WireError> {
        match self {
            Self::Here(here) => here.ready(next).await,
            Self::Elsewhere(relayed) => relayed.ready(next).await,
        }
    }

    /// Events from this offset on, which [`Self::ready`] was asked for: about so many bytes, one event at least.
    pub async fn read(&mut self, next: u64, max_bytes: u64) -> Result<Vec<Encoded>, WireError> {
        match self {
            Self::Here(here) => here.read(next, max_bytes).await,
            Self::Elsewhere(relayed) => Ok(relayed.read(next, max_bytes)),
        }
    }

    /// The subscriber takes nothing for now.
    pub fn pause(&mut self) {
        if let Self::Elsewhere(relayed) = self {
            relayed.pause();
        }
    }

    /// Events were sent.
    pub fn on_out(&self, events: &[Encoded]) {
        if let Self::Elsewhere(relayed) = self {
            relayed.on_out(events);
        }
    }
}

impl Here {
    async fn ready(&mut self, next: u64) -> Result<(), WireError> {
        loop {
            self.watch.now();
            match self.group.head(self.topic) {
                Some(head) if next < head => return Ok(()),
                Some(_) => {}
                // the topic is gone, or only its replica here
                None if self.node.groups.group(self.group.id()).is_some() => return Err(unknown_topic(&self.name)),
                None => return Err(moved()),
            }
            if !self.watch.changed().await {
                return Err(moved());
            }
        }
    }

    async fn read(&self, next: u64, max_bytes: u64) -> Result<Vec<Encoded>, WireError> {
        let (view, topic) = (self.group.view(), self.topic);
        let max_bytes = usize::try_from(max_bytes).unwrap_or(usize::MAX);
        let read = tokio::task::spawn_blocking(move || {
            view.events(topic, next, MAX_DELIVERY, max_bytes).map(|events| encode(&events))
        });
        let events = match read.await {
            Ok(Ok(events)) => events,
            Ok(Err(error)) => return Err(unread(&self.name, error)),
            Err(_) => return Err(moved()),
        };
        if events.is_empty() {
            let message = format!("event {next} of `{}` can't be read here", self.name);
            return Err(WireError::new(Code::Internal, message));
        }
        Ok(events)
    }
}

fn moved() -> WireError {
    WireError::new(Code::Stopping, "this peer no longer serves the topic; go on at another")
}

/// The oldest event is a later one.
pub fn too_old(topic: &str, wanted: u64, oldest: u64) -> WireError {
    let message = format!("event {wanted} of `{topic}` is no longer kept: the oldest is {oldest}; go on from there");
    WireError::new(Code::OutOfRange, message).with_detail(oldest)
}

fn unread(topic: &str, error: view::Error) -> WireError {
    match error {
        view::Error::OutOfRange { oldest } => {
            let message = format!("the oldest event of `{topic}` that is kept has offset {oldest}; go on from there");
            WireError::new(Code::OutOfRange, message).with_detail(oldest)
        }
        view::Error::Lacking => WireError::new(Code::WouldBlock, error.to_string()),
        error => internal(error),
    }
}
