//! What a run comes to: builds the [`Outcome`] and its [`ActivationRecord`].
//!
//! Pure. Promises that every outcome fits an entry of the log: a run whose effects do not is a failed run, and
//! what is only for people (error texts, log lines, headers of a dead letter) is cut to its bound.

use std::collections::BTreeMap;

use canal_proto::PeerId;
use canal_proto::cursor::key_digest;
use canal_proto::event::{Event, Header, Stored};
use canal_proto::limits::{MAX_ACTIVATION_LOG, MAX_ENTRY, MAX_HEADERS};
use canal_proto::log::{
    ActivationRecord, Disposition, Emit, Outcome, ReadCheck, ScanCheck, StateOp, Status, Target, TopicSpec, TriggerSpec,
};
use prost::Message;

/// One outcome, and all outcomes of one batch: an entry less room for the command around them.
pub const MAX_OUTCOME: usize = MAX_ENTRY - (64 << 10);
/// The error text of a record: enough for a message and the top of a backtrace.
pub const MAX_ERROR: usize = 1 << 10;

/// How a run went.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RunResult {
    /// How it ended.
    pub status: Status,
    /// What went wrong, for people.
    pub error: String,
    /// Rows that it read, own writes left out.
    pub reads: Vec<ReadCheck>,
    /// Ranges that it read.
    pub scans: Vec<ScanCheck>,
    /// What it wrote. Of two writes to one row the later counts.
    pub writes: Vec<StateOp>,
    /// What it emitted, in order.
    pub emits: Vec<(Target, Event)>,
    /// Its log lines, `level: text` each.
    pub log: Vec<String>,
    /// How long it ran, in microseconds.
    pub duration_us: u64,
    /// When it started, in milliseconds since 1970-01-01 UTC.
    pub start_ms: u64,
    /// It could not be tried just now (the component or the state is out of reach): no attempt is counted, and
    /// nothing else of this result matters.
    pub unavailable: bool,
}

/// What was run.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The trigger, as it was when the run began.
    pub trigger: &'a TriggerSpec,
    /// The event's topic.
    pub topic: &'a TopicSpec,
    /// The event.
    pub event: &'a Stored,
    /// 1 for the first run of this event.
    pub attempt: u32,
    /// The peer that ran it.
    pub executor: PeerId,
}

/// What this run comes to.
pub fn build(subject: &Subject<'_>, run: RunResult, now_ms: u64) -> Outcome {
    let mut failure = (run.status, run.error.clone());
    if run.status == Status::Ok {
        match done(subject, &run) {
            Ok(outcome) => return outcome,
            Err(error) => failure = (Status::Limit, error),
        }
    }
    failed(subject, &run, failure.0, &failure.1, now_ms)
}

/// An outcome without effects.
fn plain(subject: &Subject<'_>, run: &RunResult, status: Status, error: &str, disposition: Disposition) -> Outcome {
    let Subject { trigger, topic, event, attempt, executor } = *subject;
    Outcome {
        trigger: trigger.info.id,
        topic: topic.id,
        offset: event.offset,
        attempt,
        disposition: disposition as i32,
        bucket: trigger.info.state_bucket().to_owned(),
        record: ActivationRecord {
            trigger: trigger.info.name.clone(),
            function: trigger.info.function.clone(),
            component: trigger.component.clone(),
            topic: topic.name.clone(),
            offset: event.offset,
            attempt,
            start_ms: run.start_ms,
            duration_us: run.duration_us,
            status: status as i32,
            error: cut(error, MAX_ERROR).to_owned(),
            log: cut_lines(&run.log),
            executor: executor.to_vec().into(),
            disposition: disposition as i32,
            ..ActivationRecord::default()
        },
        ..Outcome::default()
    }
}

fn done(subject: &Subject<'_>, run: &RunResult) -> Result<Outcome, String> {
    for (_, event) in &run.emits {
        event.check().map_err(|error| format!("an emitted event was refused: {}", error.message))?;
    }
    let writes: BTreeMap<_, _> = run.writes.iter().map(|op| (&op.key, op)).collect();
    let mut outcome = plain(subject, run, Status::Ok, "", Disposition::Done);
    outcome.reads = run.reads.clone();
    outcome.scans = run.scans.clone();
    outcome.writes = writes.into_values().cloned().collect();
    outcome.emits = run
        .emits
        .iter()
        .map(|(target, event)| Emit {
            target: target.clone(),
            event: event.clone(),
            dead: subject.trigger.dead.clone(),
        })
        .collect();
    outcome.record.writes = count(outcome.writes.len());
    outcome.record.emits = count(outcome.emits.len());
    let size = outcome.encoded_len();
    if size > MAX_OUTCOME {
        return Err(format!(
            "the run's effects take {size} bytes; an entry has room for {MAX_OUTCOME}, so write, emit or read less"
        ));
    }
    Ok(outcome)
}

fn failed(subject: &Subject<'_>, run: &RunResult, status: Status, error: &str, now_ms: u64) -> Outcome {
    let trigger = subject.trigger;
    let mut outcome = if subject.attempt < trigger.info.attempts() {
        let mut outcome = plain(subject, run, status, error, Disposition::Retry);
        outcome.not_before_ms = now_ms.saturating_add(trigger.info.backoff(subject.attempt));
        outcome.key_digest = key_digest(&subject.event.event.key);
        outcome
    } else {
        let mut outcome = plain(subject, run, status, error, Disposition::Dead);
        let event = dead_letter(subject, error);
        outcome.emits = vec![Emit { target: trigger.dead.clone(), event, dead: trigger.dead.clone() }];
        outcome.record.emits = 1;
        outcome
    };
    // it may have failed of what it read; if that has changed, the failure does not count
    outcome.reads = run.reads.clone();
    outcome.scans = run.scans.clone();
    if outcome.encoded_len() > MAX_OUTCOME {
        outcome.reads.clear();
        outcome.scans.clear();
    }
    outcome
}

/// The event with headers that say where it failed and why. The four that lead back to the original always
/// stand; the publisher's own give way from the end, and the error text takes what is left.
fn dead_letter(subject: &Subject<'_>, error: &str) -> Event {
    let header = |name: &str, value: String| Header { name: name.to_owned(), value: value.into() };
    let origin = [
        header("canal-trigger", subject.trigger.info.name.clone()),
        header("canal-topic", subject.topic.name.clone()),
        header("canal-offset", subject.event.offset.to_string()),
        header("canal-attempts", subject.attempt.to_string()),
    ];
    const ERROR: &str = "canal-error";
    let size = |header: &Header| header.name.len() + header.value.len();
    let mut room = MAX_HEADERS.saturating_sub(origin.iter().map(size).sum());
    let mut event = subject.event.event.clone();
    // a dead letter that dies again tells of its last death; the first is told by the event it names
    event.headers.retain(|h| h.name != ERROR && origin.iter().all(|o| o.name != h.name));
    let mut keep = 0;
    for header in &event.headers {
        let Some(left) = room.checked_sub(size(header)) else {
            break;
        };
        room = left;
        keep += 1;
    }
    event.headers.truncate(keep);
    event.headers.extend(origin);
    let error = cut(error, room.saturating_sub(ERROR.len()).min(MAX_ERROR));
    if !error.is_empty() {
        event.headers.push(header(ERROR, error.to_owned()));
    }
    event
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// The longest beginning of the text with at most `max` bytes.
fn cut(text: &str, max: usize) -> &str {
    text.get(..text.floor_char_boundary(max)).unwrap_or_default()
}

/// The first lines, as far as [`MAX_ACTIVATION_LOG`] goes.
fn cut_lines(lines: &[String]) -> Vec<String> {
    let mut room = MAX_ACTIVATION_LOG;
    let mut kept = Vec::new();
    for line in lines {
        if room == 0 {
            break;
        }
        let line = cut(line, room);
        // an empty line is not free, or their number would have no bound
        room = room.saturating_sub(line.len().max(1));
        kept.push(line.to_owned());
    }
    kept
}
