//! What a running function can do: the interface `canal:function/host`, one capability a file.
//!
//! Nothing here takes effect outside of the run. Reads are noted, writes and emits are kept, and what all of it
//! comes to is handed over at the end. Time and random numbers are the event's.

use canal_proto::event::Event;
use canal_proto::limits::MAX_ENTRY;
use canal_proto::log::{ReadCheck, ScanCheck, StateOp, Target};

use super::Job;
use super::bindings::canal::function::{host, types};
use super::limiter::Limiter;
use types::{Header, HostError, Level, Row};

mod emit;
mod log;
mod random;
mod state;

/// Room that an entry keeps for what is not a run's effects: the command around it, the record with its log.
const RESERVE: usize = 64 << 10;
/// All effects and noted reads of one run: they are one outcome, and that must fit one entry.
pub const MAX_EFFECTS: usize = MAX_ENTRY - RESERVE;
/// What one call may hand to the host. Above what is ever accepted, so that most excesses get an answer and not a
/// trap; bounded, since the host holds it outside of the guest's memory limit.
pub const MAX_CALL: usize = 8 << 20;

/// One run's capabilities, and what it has done with them.
pub struct Capabilities {
    pub limiter: Limiter,
    time_ms: u64,
    budget: Budget,
    random: random::Random,
    log: log::Log,
    state: state::State,
    emits: emit::Emits,
}

/// What a run did, whatever becomes of it.
pub struct Traces {
    pub reads: Vec<ReadCheck>,
    pub scans: Vec<ScanCheck>,
    pub writes: Vec<StateOp>,
    pub emits: Vec<(Target, Event)>,
    pub log: Vec<String>,
    /// A call was refused because a limit was met.
    pub limited: bool,
    /// A call failed by the host's fault: the run must not count, whatever the guest made of it.
    pub fault: Option<String>,
}

/// What is left of a run's room in an entry, and how calls were refused.
struct Budget {
    left: usize,
    limited: bool,
    fault: Option<String>,
}

impl Budget {
    fn charge(&mut self, bytes: usize) -> Result<(), HostError> {
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                let text = format!("all reads, writes and emits of a run together have at most {MAX_EFFECTS} bytes");
                Err(self.limit(text))
            }
        }
    }

    fn refund(&mut self, bytes: usize) {
        self.left = self.left.saturating_add(bytes).min(MAX_EFFECTS);
    }

    fn limit(&mut self, text: String) -> HostError {
        self.limited = true;
        HostError::Limit(text)
    }

    fn unavailable(&mut self, text: String) -> HostError {
        self.fault.get_or_insert_with(|| text.clone());
        HostError::Unavailable(text)
    }
}

impl Capabilities {
    pub fn new(job: &Job) -> Self {
        let Job { event, limits, .. } = job;
        Self {
            limiter: Limiter::new(limits.memory_bytes()),
            time_ms: event.event.time_ms,
            budget: Budget { left: MAX_EFFECTS, limited: false, fault: None },
            random: random::Random::new(job.topic_id, event),
            log: log::Log::default(),
            state: state::State::new(job.state.clone(), limits.rows()),
            emits: emit::Emits::new(job.topics.clone(), limits.emitted(), &event.event),
        }
    }

    pub fn finish(self) -> Traces {
        let (reads, scans, writes) = self.state.finish();
        Traces {
            reads,
            scans,
            writes,
            emits: self.emits.finish(),
            log: self.log.finish(),
            limited: self.budget.limited,
            fault: self.budget.fault,
        }
    }
}

impl types::Host for Capabilities {}

impl host::Host for Capabilities {
    fn get(&mut self, key: String) -> Result<Option<Vec<u8>>, HostError> {
        self.state.get(&mut self.budget, &key)
    }

    fn put(&mut self, key: String, value: Vec<u8>) -> Result<(), HostError> {
        self.state.write(&mut self.budget, key, Some(value.into()))
    }

    fn delete(&mut self, key: String) -> Result<(), HostError> {
        self.state.write(&mut self.budget, key, None)
    }

    fn scan(&mut self, prefix: String, limit: u32) -> Result<Vec<Row>, HostError> {
        self.state.scan(&mut self.budget, prefix, limit)
    }

    fn emit(&mut self, topic: String, key: Vec<u8>, headers: Vec<Header>, payload: Vec<u8>) -> Result<(), HostError> {
        self.emits.emit(&mut self.budget, &topic, key, headers, payload)
    }

    fn log(&mut self, level: Level, message: String) {
        self.log.line(level, &message);
    }

    fn now_ms(&mut self) -> u64 {
        self.time_ms
    }

    fn random_u64(&mut self) -> u64 {
        self.random.next()
    }
}
