//! The scheduling core: decides which event runs when on the leader of a group, and what each run comes to.
//!
//! It is synchronous and knows no clock, file or thread: [`Scheduler::handle`] takes an [`Input`] and the time and
//! returns [`Output`]s. The driver beside it reads events, runs components, proposes outcomes and reports back.
//!
//! The replicated truth is one [`canal_proto::cursor::Cursor`] per trigger and topic, which the state machine
//! changes when it applies an outcome. Everything here is a guess about what will be applied; it is thrown away
//! with the leadership, and rebuilt from the cursors.
//!
//! # Promises
//! - Triggers that share a bucket share a *lane*: their runs happen one after the other. Lanes run in parallel.
//! - A lane runs ahead of the commit. Later runs see earlier writes through an [`Overlay`]; if one outcome is
//!   refused, it and everything after it in the lane is run again.
//! - Events of one key in one topic are handled in order, retries included. Other keys, and events without a key,
//!   pass a parked event, up to [`canal_proto::limits::MAX_CURSOR_GAP`].
//! - Exactly one `Ran` is awaited for every `Run`, and one `Committed` or `ProposeFailed` for every `Propose`;
//!   answers that belong to dropped work are ignored.
//!
//! # What the state machine must do with a batch
//! Outcomes of a batch belong to one bucket and build on each other. Once one of them is not applied, all later
//! ones of that batch must be refused too ([`OutcomeResult::Conflict`]): otherwise an event could overtake an
//! earlier one of its key. An outcome is applied if its reads hold and [`canal_proto::cursor::Cursor::accepts`] it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use canal_proto::cursor::Cursor;
use canal_proto::event::Stored;
pub use canal_proto::log::OutcomeResult;
use canal_proto::log::{Outcome, TopicSpec, TriggerSpec};

mod feed;
mod lane;
pub mod matching;
pub mod outcome;
mod scheduler;
pub mod state;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

pub use outcome::RunResult;
pub use scheduler::Scheduler;

/// Writes of earlier runs that are not committed yet: rows by key, `None` where the row was removed. A run looks
/// here first, then in the group's state.
pub type Overlay = Arc<BTreeMap<String, Option<Bytes>>>;

/// What a group hosts and how far its triggers have come.
#[derive(Debug, Clone, Default)]
pub struct Hosted {
    /// The group's triggers.
    pub triggers: Vec<TriggerSpec>,
    /// The group's topics, each with the offset that its next event will get.
    pub topics: Vec<(TopicSpec, u64)>,
    /// A cursor for every trigger and topic that match ([`matching::pairs`]). A pair without one is not fired.
    pub cursors: Vec<Cursor>,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Input {
    /// This peer leads the group now, and has applied all of earlier terms. Whatever was under way is forgotten.
    Start(Hosted),
    /// What the group hosts has changed.
    Spec(Hosted),
    /// A topic grew.
    Head {
        /// The topic.
        topic: u64,
        /// The offset that its next event will get.
        next: u64,
    },
    /// The answer to [`Output::Load`]. It may hold fewer events than asked for; none means that they can't be
    /// read just now.
    Loaded {
        /// The trigger that asked.
        trigger: u64,
        /// The topic.
        topic: u64,
        /// The first offset that was asked for.
        from: u64,
        /// Events with the offsets `from`, `from + 1`, …
        events: Vec<Stored>,
    },
    /// The answer to [`Output::Run`].
    Ran {
        /// The run.
        ticket: u64,
        /// How it went.
        run: RunResult,
    },
    /// A proposed batch was applied.
    Committed {
        /// The batch.
        batch: u64,
        /// What became of each outcome, in their order.
        results: Vec<OutcomeResult>,
        /// The cursors of all triggers and topics that the batch names, as they stand now.
        cursors: Vec<Cursor>,
    },
    /// A proposed batch was refused, or nobody knows what became of it. It may still be committed: its outcomes
    /// then make those of a second run obsolete.
    ProposeFailed {
        /// The batch.
        batch: u64,
    },
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Read events. Answer with [`Input::Loaded`]; a driver may stop at a few MiB, but not before the first event.
    Load {
        /// The trigger that asks.
        trigger: u64,
        /// The topic.
        topic: u64,
        /// The first offset.
        from: u64,
        /// Events wanted at most.
        max: u64,
    },
    /// Run a function. Answer with [`Input::Ran`].
    Run(Box<Run>),
    /// Propose outcomes as one entry. Answer with [`Input::Committed`] or [`Input::ProposeFailed`].
    Propose {
        /// Names the batch in the answer.
        batch: u64,
        /// The outcomes, all of one bucket.
        outcomes: Vec<Outcome>,
    },
    /// Send [`Input::Tick`] at this time, in milliseconds since 1970-01-01 UTC. Replaces an earlier one.
    WakeAt(u64),
}

/// A run that is due.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Names the run in the answer.
    pub ticket: u64,
    /// The trigger, with the component and the limits of its function.
    pub trigger: Arc<TriggerSpec>,
    /// The rows that the function sees.
    pub bucket: String,
    /// The event's topic.
    pub topic: TopicSpec,
    /// The event.
    pub event: Stored,
    /// 1 for the first run of this event.
    pub attempt: u32,
    /// Writes that the run sees and the group's state does not have yet.
    pub overlay: Overlay,
}
