//! The thread that owns a queue's store. What has arrived together is one commit, so concurrent puts share a sync.
//!
//! Answers are given when the commit is on disk. An error of the store is final: redb does not go on after one, and a
//! queue that can't trust its disk must not say that anything is safe. Everything later gets the same error.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use canal_proto::{Code, Event, ProducerId};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use super::rows::{Ledger, TroubleRow};
use super::status::Writer;
use super::store::{Op, Store};
use super::{QueueOptions, Trouble, Waiting};
use crate::Error;
use crate::backoff::random;

/// Commands in one commit at most, and room for those that wait: as many puts as a device has under way at a time.
pub(super) const MAX_TURN: usize = 256;
/// Bytes in one commit, about: what a small device can hold beside its own work.
const MAX_TURN_BYTES: usize = 4 << 20;

type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What is asked of the thread.
pub(super) enum Command {
    /// Encoded events of one topic: all or none.
    Put { topic: String, events: Vec<Vec<u8>>, reply: Reply<Range<u64>> },
    /// Everything up to this sequence has its receipt.
    Settle { topic: String, through: u64, reply: Reply<()> },
    /// This topic, of this group, has the name now.
    Bind { topic: String, id: u64, group: u64, reply: Reply<()> },
    /// What waits for a topic is given up. The answer is how many events that were.
    Discard { topic: String, reply: Reply<u64> },
    /// Something went wrong with a topic.
    Note { topic: String, trouble: Option<TroubleRow>, reply: Reply<()> },
    /// Events from a sequence on.
    Read { topic: String, from: u64, max: usize, max_bytes: usize, reply: Reply<Vec<Event>> },
}

/// What everybody sees of a queue.
pub(super) struct Shared {
    board: Mutex<Board>,
    /// Changes whenever the board does.
    pub(super) changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Board {
    topics: BTreeMap<String, Waiting>,
    settled: u64,
    failed: Option<Error>,
}

impl Shared {
    pub(super) fn waiting(&self) -> Vec<Waiting> {
        self.board.lock().topics.values().cloned().collect()
    }

    pub(super) fn of(&self, topic: &str) -> Option<Waiting> {
        self.board.lock().topics.get(topic).cloned()
    }

    /// Events that got their receipts since the queue was opened.
    pub(super) fn settled(&self) -> u64 {
        self.board.lock().settled
    }

    pub(super) fn failed(&self) -> Option<Error> {
        self.board.lock().failed.clone()
    }

    fn touch(&self) {
        self.changed.send_modify(|version| *version += 1);
    }
}

/// Answers that are given once the commit is on disk.
enum Answer {
    Put(Reply<Range<u64>>, Range<u64>),
    Discarded(Reply<u64>, u64),
    Done(Reply<()>),
}

pub(super) struct Keeper {
    // before the lock is given up
    status: Option<Writer>,
    store: Store,
    options: QueueOptions,
    ledger: Ledger,
    shared: std::sync::Arc<Shared>,
}

impl Keeper {
    pub(super) fn new(store: Store, options: QueueOptions) -> Result<Self, Error> {
        let ledger = store.load()?;
        let shared = Shared { board: Mutex::default(), changed: watch::Sender::new(0) };
        let keeper = Self { store, options, ledger, shared: std::sync::Arc::new(shared), status: None };
        keeper.show(0)?;
        Ok(keeper)
    }

    /// Keeps a file in this directory that says what waits.
    pub(super) fn write_status(&mut self, dir: &Path) -> Result<(), Error> {
        let writer = Writer::start(dir.to_owned(), self.shared())?;
        writer.tell();
        self.status = Some(writer);
        Ok(())
    }

    pub(super) fn shared(&self) -> std::sync::Arc<Shared> {
        std::sync::Arc::clone(&self.shared)
    }

    /// Until nobody is left who could ask.
    pub(super) fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        while let Some(first) = commands.blocking_recv() {
            let mut turn = vec![first];
            let mut bytes = 0;
            while turn.len() < MAX_TURN && bytes < MAX_TURN_BYTES {
                let Ok(more) = commands.try_recv() else { break };
                if let Command::Put { events, .. } = &more {
                    bytes += events.iter().map(Vec::len).sum::<usize>();
                }
                turn.push(more);
            }
            self.take(turn);
        }
    }

    /// Does what has arrived together. A topic is forgotten in a commit of its own: what comes behind it may be of
    /// another that has its name.
    pub(super) fn take(&mut self, commands: Vec<Command>) {
        let alone = |command: &Command| matches!(command, Command::Discard { .. });
        let mut turn = Vec::new();
        for command in commands {
            if alone(&command) || turn.last().is_some_and(alone) {
                self.turn(std::mem::take(&mut turn));
            }
            turn.push(command);
        }
        self.turn(turn);
    }

    fn turn(&mut self, turn: Vec<Command>) {
        if let Some(error) = self.shared.failed() {
            turn.into_iter().for_each(|command| refuse(command, &error));
            return;
        }
        let mut ledger = self.ledger.clone();
        let (mut ops, mut answers, mut reads) = (Vec::new(), Vec::new(), Vec::new());
        let mut settled = 0;
        for command in turn {
            match command {
                Command::Put { topic, events, reply } => {
                    let sizes: Vec<u64> = events.iter().map(|event| event.len() as u64).collect();
                    match ledger.admit(&topic, &sizes, &self.options, random) {
                        Ok(sequences) => {
                            ops.push(Op::Insert { topic, first: sequences.start, events });
                            answers.push(Answer::Put(reply, sequences));
                        }
                        // nobody has to wait for it
                        Err(error) => drop(reply.send(Err(error))),
                    }
                }
                Command::Settle { topic, through, reply } => {
                    let sequences = ledger.settle(&topic, through);
                    if !sequences.is_empty() {
                        settled += sequences.end - sequences.start;
                        ops.push(Op::Remove { topic, sequences });
                    }
                    answers.push(Answer::Done(reply));
                }
                Command::Bind { topic, id, group, reply } => match ledger.bind(&topic, id, group, random) {
                    Ok(news) => {
                        if news {
                            ops.push(Op::Touch { topic });
                        }
                        answers.push(Answer::Done(reply));
                    }
                    Err(error) => drop(reply.send(Err(error))),
                },
                Command::Discard { topic, reply } => match ledger.discard(&topic) {
                    Ok(sequences) => {
                        answers.push(Answer::Discarded(reply, sequences.end - sequences.start));
                        ops.push(Op::Discard { topic, sequences });
                    }
                    Err(error) => drop(reply.send(Err(error))),
                },
                Command::Note { topic, trouble, reply } => {
                    if ledger.note(&topic, trouble) {
                        ops.push(Op::Touch { topic });
                    }
                    answers.push(Answer::Done(reply));
                }
                read @ Command::Read { .. } => reads.push(read),
            }
        }
        if let Err(error) = self.commit(&ops, ledger, settled) {
            tracing::error!(%error, "the queue has failed");
            self.shared.board.lock().failed = Some(error.clone());
            self.shared.touch();
            answers.into_iter().for_each(|answer| match answer {
                Answer::Put(reply, _) => drop(reply.send(Err(error.clone()))),
                Answer::Discarded(reply, _) => drop(reply.send(Err(error.clone()))),
                Answer::Done(reply) => drop(reply.send(Err(error.clone()))),
            });
            reads.into_iter().for_each(|command| refuse(command, &error));
            return;
        }
        for answer in answers {
            match answer {
                Answer::Put(reply, sequences) => drop(reply.send(Ok(sequences))),
                Answer::Discarded(reply, events) => drop(reply.send(Ok(events))),
                Answer::Done(reply) => drop(reply.send(Ok(()))),
            }
        }
        reads.into_iter().for_each(|command| self.read(command));
    }

    fn commit(&mut self, ops: &[Op], mut ledger: Ledger, settled: u64) -> Result<(), Error> {
        if ops.is_empty() {
            return Ok(());
        }
        self.store.apply(ops, &mut ledger)?;
        self.ledger = ledger;
        self.show(settled)
    }

    fn read(&self, command: Command) {
        let Command::Read { topic, from, max, max_bytes, reply } = command else { return };
        let end = self.ledger.topics.get(&topic).map_or(from, |row| row.next);
        drop(reply.send(self.store.read(&topic, from..end, max, max_bytes)));
    }

    /// Tells everybody how it stands.
    fn show(&self, settled: u64) -> Result<(), Error> {
        let mut board = self.shared.board.lock();
        board.settled += settled;
        board.topics.retain(|topic, _| self.ledger.topics.contains_key(topic));
        for (topic, row) in &self.ledger.topics {
            let before = board.topics.get(topic);
            let oldest_ms = match before {
                Some(before) if before.first == row.first && before.oldest_ms.is_some() => before.oldest_ms,
                _ => {
                    let oldest = self.store.read(topic, row.first..row.next, 1, 0)?;
                    oldest.first().map(|event| event.time_ms)
                }
            };
            let producer: [u8; 16] = row.producer.as_slice().try_into().map_err(|_| {
                Error::new(Code::Internal, format!("the queue holds a damaged row of `{topic}`: move it aside"))
            })?;
            let waiting = Waiting {
                topic: topic.clone(),
                producer: ProducerId(producer),
                topic_id: row.topic,
                base: row.base,
                first: row.first,
                events: row.waiting(),
                bytes: row.bytes,
                oldest_ms,
                trouble: row.trouble.as_ref().map(Trouble::from),
            };
            board.topics.insert(topic.clone(), waiting);
        }
        drop(board);
        self.shared.touch();
        if let Some(status) = &self.status {
            status.tell();
        }
        Ok(())
    }
}

fn refuse(command: Command, error: &Error) {
    match command {
        Command::Put { reply, .. } => drop(reply.send(Err(error.clone()))),
        Command::Discard { reply, .. } => drop(reply.send(Err(error.clone()))),
        Command::Settle { reply, .. } | Command::Note { reply, .. } | Command::Bind { reply, .. } => {
            drop(reply.send(Err(error.clone())));
        }
        Command::Read { reply, .. } => drop(reply.send(Err(error.clone()))),
    }
}
