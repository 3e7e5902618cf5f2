//! `canal queue`: what waits on this device, and handing it over.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use canal_proto::Code;
use canal_sdk::queue::{Queue as Store, QueueOptions, Status, Waiting};
use canal_sdk::{Client, Error};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::connect::{Connect, Failure, Outcome, invalid};
use super::fail;
use super::print::{Out, left, moment, printable, right, size, table};
use super::stop::Stop;

/// How often, and how many times, the owner of a queue is expected to have written what waits.
const LOOK: Duration = Duration::from_millis(100);
const LOOKS: u32 = 10;

/// Commands about the queue of `canal pub --queue`.
#[derive(Debug, Subcommand)]
pub enum Queue {
    /// List what waits, and why
    Ls(Ls),
    /// Give up what waits for a topic: its events are thrown away
    Rm(Rm),
    /// Hand over what waits, until nothing does or no receipt has come for the deadline
    Flush(Flush),
}

/// Flags of `canal queue ls`.
#[derive(Debug, Args)]
pub struct Ls {
    /// The queue's directory
    dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Flags of `canal queue rm`.
#[derive(Debug, Args)]
pub struct Rm {
    /// The queue's directory
    dir: PathBuf,
    /// The topic
    topic: String,
    /// Do it; without this, it is only said what would be thrown away
    #[arg(long)]
    yes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Flags of `canal queue flush`.
#[derive(Debug, Args)]
pub struct Flush {
    /// The queue's directory
    dir: PathBuf,
    #[command(flatten)]
    connect: Connect,
}

/// Runs the command.
pub fn run(command: Queue) -> ExitCode {
    match command {
        Queue::Ls(args) => ended(list(&args, Out::new(args.json)), args.json),
        Queue::Rm(args) => ended(remove(&args, Out::new(args.json)), args.json),
        Queue::Flush(args) => args.connect.run_detached(async |client, out| flush(client, out, &args).await),
    }
}

/// How a command ends that asks no peer.
fn ended(outcome: Outcome, json: bool) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Mesh(error)) => fail(error.code, &error.message, json),
        // whoever read the output has seen enough
        Err(_) => ExitCode::SUCCESS,
    }
}

/// A queue that is there already, with room for what is in it.
fn open(dir: &PathBuf) -> Result<Store, Error> {
    if !Store::exists(dir) {
        let message = format!("there is no queue in {}: `canal pub --queue` makes one", dir.display());
        return Err(invalid(message));
    }
    Store::open(dir, QueueOptions::default())
}

fn list(args: &Ls, out: Out) -> Outcome {
    match open(&args.dir) {
        Ok(queue) => {
            let waiting = queue.waiting();
            Ok(out.show(|| listed_json(&waiting, None), || listed_text(&waiting))?)
        }
        Err(error) if error.code == Code::InUse => {
            let status = written(&args.dir).ok_or(error)?;
            let owner = Owner { process: status.process, age: age(status.written_ms) };
            let text = || format!("{}\n{}", owner.text(), listed_text(&status.waiting));
            Ok(out.show(|| listed_json(&status.waiting, Some(&owner)), text)?)
        }
        Err(error) => Err(error.into()),
    }
}

/// Who has the queue open, and how long ago it wrote what waits.
struct Owner {
    process: u32,
    age: Duration,
}

impl Owner {
    fn text(&self) -> String {
        let seconds = self.age.as_secs_f64();
        format!(
            "process {} has the queue open; this is what waited when it last changed, {seconds:.1} s ago",
            self.process
        )
    }
}

/// What the owner of a queue wrote of it. One that has just opened it is about to.
fn written(dir: &PathBuf) -> Option<Status> {
    let looks = (0..LOOKS).map(|look| {
        if look > 0 {
            std::thread::sleep(LOOK);
        }
        Store::status(dir)
    });
    looks.flatten().next()
}

fn age(written_ms: u64) -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_millis(written_ms)).unwrap_or_default()
}

fn listed_json(waiting: &[Waiting], owner: Option<&Owner>) -> Value {
    let topics = waiting.iter().map(|waiting| {
        let error = waiting.trouble.as_ref().map(|trouble| {
            json!({
                "code": trouble.error.code.name(), "message": trouble.error.message, "stopped": trouble.stopped
            })
        });
        json!({
            "topic": waiting.topic,
            "producer": waiting.producer.to_string(),
            "events": waiting.events,
            "bytes": waiting.bytes,
            "first_sequence": waiting.first,
            "oldest_ms": waiting.oldest_ms,
            "error": error,
        })
    });
    let open_in =
        owner.map(|owner| json!({ "process": owner.process, "written_ms_ago": owner.age.as_millis() as u64 }));
    json!({
        "open_in": open_in,
        "events": waiting.iter().map(|waiting| waiting.events).sum::<u64>(),
        "bytes": waiting.iter().map(|waiting| waiting.bytes).sum::<u64>(),
        "topics": topics.collect::<Vec<_>>(),
    })
}

fn listed_text(waiting: &[Waiting]) -> String {
    let columns = [
        left("TOPIC"),
        right("EVENTS"),
        right("SIZE"),
        right("FIRST"),
        left("OLDEST"),
        left("PRODUCER"),
        left("ERROR"),
    ];
    let rows = waiting.iter().map(|waiting| {
        let error = waiting.trouble.as_ref().map_or_else(String::new, |trouble| {
            let stopped = if trouble.stopped { "stopped: " } else { "" };
            format!("{stopped}{}", printable(trouble.error.message.as_bytes()))
        });
        [
            waiting.topic.clone(),
            waiting.events.to_string(),
            size(waiting.bytes),
            waiting.first.to_string(),
            moment(waiting.oldest_ms.unwrap_or_default()),
            waiting.producer.to_string(),
            error,
        ]
    });
    table(columns, rows)
}

fn remove(args: &Rm, out: Out) -> Outcome {
    let queue = open(&args.dir)?;
    let found = queue.waiting().into_iter().find(|waiting| waiting.topic == args.topic);
    let what = |events: u64, bytes: u64| format!("{events} events ({}) for `{}`", size(bytes), args.topic);
    if let Some(waiting) = found.as_ref().filter(|waiting| waiting.events > 0 && !args.yes) {
        let message = format!(
            "{} would be thrown away, some of which may have been published; nothing was done: --yes does it",
            what(waiting.events, waiting.bytes)
        );
        return Err(invalid(message).into());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|error| Error::new(Code::Internal, format!("no runtime: {error}")))?;
    let discarded = runtime.block_on(queue.discard(&args.topic))?;
    let text = || format!("{} thrown away", what(discarded, found.map_or(0, |waiting| waiting.bytes)));
    Ok(out.show(|| json!({ "topic": args.topic, "discarded": discarded }), text)?)
}

async fn flush(client: Result<Client, Error>, out: Out, args: &Flush) -> Outcome {
    let queue = open(&args.dir)?;
    let client = client?;
    let mut stop = Stop::new()?;
    let handing_over = queue.hand_over(client.clone())?;
    let end = settle(&queue, &client, args.connect.timeout(), &mut stop).await;
    handing_over.stop().await;
    let (done, waiting) = (queue.handed_over(), queue.len());
    let text = || format!("{done} handed over, {waiting} left in the queue in {}", args.dir.display());
    match end.why().filter(|_| waiting > 0) {
        None if waiting > 0 => {
            let message = format!("stopped with {waiting} events left in the queue in {}", args.dir.display());
            Err(Error::new(Code::Stopping, message).into())
        }
        None => Ok(out.show(|| json!({ "handed_over": done, "waiting": waiting }), text)?),
        Some(why) => Err(Error::new(why.code, format!("{}: {}", text(), why.message)).into()),
    }
}

/// How handing over ended.
#[derive(Debug)]
pub enum End {
    /// Nothing waits.
    Empty,
    /// Nothing is tried any more for what waits.
    Stopped(Error),
    /// Events wait, for this reason if it is known.
    Waits(Option<Error>),
}

impl End {
    /// Why events wait.
    pub fn why(&self) -> Option<&Error> {
        match self {
            Self::Empty => None,
            Self::Stopped(error) => Some(error),
            Self::Waits(why) => why.as_ref(),
        }
    }
}

/// Waits while a queue is handed over: until nothing waits, nobody can be reached, no receipt has come for so long, or
/// a signal comes.
pub async fn settle(queue: &Store, client: &Client, patience: Duration, stop: &mut Stop) -> End {
    let mut done = queue.handed_over();
    let reach = client.ready();
    tokio::pin!(reach);
    let mut reached = false;
    loop {
        tokio::select! {
            biased;
            emptied = queue.emptied() => return emptied.map_or_else(End::Stopped, |()| End::Empty),
            () = stop.wait() => return End::Waits(None),
            () = queue.progressed(done) => done = queue.handed_over(),
            ready = &mut reach, if !reached => match ready {
                Err(error) if queue.handed_over() == 0 => return End::Waits(Some(unreached(error))),
                _ => reached = true,
            },
            () = tokio::time::sleep(patience) => {
                let troubles = queue.waiting().into_iter().filter_map(|waiting| waiting.trouble);
                let why = troubles.map(|trouble| trouble.error).next();
                let late = || Error::new(Code::NoQuorum, "no receipt came within the deadline: try again later");
                return End::Waits(Some(why.unwrap_or_else(late)));
            }
        }
    }
}

fn unreached(error: Error) -> Error {
    match error.code {
        Code::Unreachable => Error::new(error.code, format!("no peer can be reached: {}", error.message)),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use canal_sdk::ProducerId;
    use canal_sdk::queue::Trouble;

    use super::*;

    #[test]
    fn what_waits_is_listed_with_its_reason() {
        let gap = Trouble { error: Error::new(Code::SequenceGap, "5 is\nexpected"), stopped: true };
        let one = Waiting {
            topic: "a/b".into(),
            producer: ProducerId([0xab; 16]),
            first: 7,
            events: 2,
            bytes: 2048,
            topic_id: 3,
            base: 0,
            oldest_ms: Some(1_767_225_600_000),
            trouble: Some(gap),
        };
        let none = Waiting { topic: "c".into(), events: 0, bytes: 0, oldest_ms: None, trouble: None, ..one.clone() };
        let text = listed_text(&[one.clone(), none.clone()]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with("a/b         2  2.0 KiB      7  2026-01-01 00:00:00Z  abab"), "{text}");
        assert!(lines[1].ends_with("stopped: 5 is\\nexpected") && lines[2].contains("  -  "), "{text}");
        let json = listed_json(&[one.clone(), none], None);
        assert_eq!((&json["events"], &json["topics"][0]["error"]["code"]), (&2.into(), &"sequence-gap".into()));
        assert_eq!(json["topics"][1]["error"], Value::Null);
        assert_eq!(json["topics"][0]["oldest_ms"], 1_767_225_600_000_u64);
        assert_eq!(json["open_in"], Value::Null);
        let owner = Owner { process: 7, age: Duration::from_millis(1500) };
        assert_eq!(listed_json(&[one], Some(&owner))["open_in"], json!({ "process": 7, "written_ms_ago": 1500 }));
        assert!(owner.text().starts_with("process 7 has the queue open") && owner.text().ends_with("1.5 s ago"));
    }

    #[test]
    fn what_waits_is_thrown_away_only_when_that_is_meant() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let put = |topic: &str| {
            let queue = Store::open(dir.path(), QueueOptions::default()).unwrap();
            runtime.block_on(queue.put(topic, canal_proto::Event::new("x"))).unwrap()
        };
        put("a");
        put("b");
        let run = |topic: &str, yes: bool| {
            let rm = Rm { dir: dir.path().into(), topic: topic.into(), yes, json: true };
            match remove(&rm, Out::new(true)) {
                Ok(()) => None,
                Err(Failure::Mesh(error)) => Some(error),
                Err(_) => panic!("it failed otherwise"),
            }
        };
        let refused = run("a", false).unwrap();
        assert_eq!(refused.code, Code::InvalidArgument);
        assert!(refused.message.starts_with("1 events (") && refused.message.contains("--yes does it"), "{refused}");
        assert_eq!(open(&dir.path().into()).unwrap().len(), 2);
        assert_eq!(run("a", true), None);
        assert_eq!(run("a", true).unwrap().code, Code::UnknownTopic);
        let waiting = open(&dir.path().into()).unwrap().waiting();
        assert_eq!((waiting.len(), waiting[0].topic.as_str()), (1, "b"));
    }

    #[test]
    fn a_directory_without_a_queue_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let error = open(&dir.path().join("q")).err().unwrap();
        assert_eq!(error.code, Code::InvalidArgument);
        assert!(error.message.contains("there is no queue in"), "{error}");
        assert!(!dir.path().join("q").exists());
    }
}
