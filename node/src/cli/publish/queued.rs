//! `canal pub --queue`: what is published is on this device's disk first, so it may be away from its mesh.
//!
//! Every event is told as soon as it is safe here. What waits is handed over meanwhile and afterwards, until nothing
//! does, nobody can be reached, or no receipt has come for the deadline. That events wait is no error: they are kept,
//! and whoever opens the queue next goes on.

use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Instant;

use canal_proto::{Code, Event};
use canal_sdk::queue::{Queue, QueueOptions};
use canal_sdk::{Client, Error};
use serde_json::{Value, json};

use super::{BUFFERED_LINES, Pub, read_lines};
use crate::cli::connect::{Failure, Outcome};
use crate::cli::print::Out;
use crate::cli::queue::{self, End};
use crate::cli::stop::Stop;

pub(super) async fn publish(client: Result<Client, Error>, out: Out, args: &Pub, dir: &Path) -> Outcome {
    let begun = Instant::now();
    let mut stop = Stop::new()?;
    let queue = Queue::open(dir, args.queue_options())?;
    let handing_over = match &client {
        Ok(client) if !args.no_wait => Some(queue.hand_over(client.clone())?),
        _ => None,
    };
    let mut puts = Puts { queue: &queue, out, topic: &args.topic, first: None, last: None, count: 0, shown: Ok(()) };
    let put = match &args.payload {
        Some(payload) => puts.put(vec![args.event(payload.as_bytes().to_vec())]).await,
        None => puts.lines(args, &mut stop).await,
    };
    let (first, last, count, shown) = (puts.first, puts.last, puts.count, puts.shown);
    let end = match (&client, &handing_over, &put) {
        (Ok(client), Some(_), Ok(Go::On)) => queue::settle(&queue, client, args.connect.timeout(), &mut stop).await,
        (Err(error), ..) if !args.no_wait => End::Waits(Some(error.clone())),
        _ => End::Waits(None),
    };
    if let Some(handing_over) = handing_over {
        handing_over.stop().await;
    }
    let end = if queue.is_empty() { End::Empty } else { end };
    let summary = Summary {
        topic: &args.topic,
        dir,
        count,
        first,
        last,
        handed_over: queue.handed_over(),
        waiting: queue.len(),
        why: end.why(),
        seconds: begun.elapsed().as_secs_f64(),
    };
    out.note(|| summary.json(), || summary.text());
    put?;
    match end {
        End::Stopped(error) => Err(Failure::Mesh(error)),
        End::Waits(Some(error)) if !passes(error.code) => Err(Failure::Mesh(error)),
        End::Empty | End::Waits(_) => Ok(shown?),
    }
}

/// Whether waiting helps against this error. Events that wait for such a reason are no failure.
fn passes(code: Code) -> bool {
    matches!(code, Code::Unreachable | Code::NoQuorum | Code::UnknownTopic | Code::WouldBlock | Code::Stopping)
}

impl Pub {
    fn queue_options(&self) -> QueueOptions {
        let default = QueueOptions::default();
        QueueOptions {
            max_events: self.queue_events.unwrap_or(default.max_events),
            max_bytes: self.queue_mb.map_or(default.max_bytes, |mb| mb << 20),
        }
    }
}

/// Whether there is time for what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Go {
    On,
    /// A signal came.
    Away,
}

/// What was put in.
struct Puts<'a> {
    queue: &'a Queue,
    out: Out,
    topic: &'a str,
    first: Option<u64>,
    last: Option<u64>,
    count: u64,
    shown: std::io::Result<()>,
}

impl Puts<'_> {
    /// Lines that have arrived together are put in with one sync.
    async fn lines(&mut self, args: &Pub, stop: &mut Stop) -> Result<Go, Error> {
        let mut lines = read_lines();
        loop {
            let mut arrived = Vec::new();
            let ended = tokio::select! {
                biased;
                () = stop.wait() => return Ok(Go::Away),
                count = lines.recv_many(&mut arrived, BUFFERED_LINES) => count == 0,
            };
            let mut failed = None;
            let mut events = Vec::new();
            for line in arrived {
                match line {
                    Ok(line) => events.push(args.event(line)),
                    Err(error) => failed = Some(error),
                }
            }
            if !events.is_empty() {
                self.put(events).await?;
            }
            match failed {
                Some(error) => return Err(error),
                None if ended => return Ok(Go::On),
                None => {}
            }
        }
    }

    /// In this order, as many as there is room for.
    async fn put(&mut self, events: Vec<Event>) -> Result<Go, Error> {
        match self.queue.put_all(self.topic, events.clone()).await {
            Ok(sequences) => self.note(sequences),
            Err(error) if error.code == Code::WouldBlock && events.len() > 1 => {
                for event in events {
                    let sequence = self.queue.put(self.topic, event).await?;
                    self.note(sequence..sequence + 1);
                }
            }
            Err(error) => return Err(error),
        }
        Ok(Go::On)
    }

    /// That nobody reads it is no reason to lose events.
    fn note(&mut self, sequences: Range<u64>) {
        for sequence in sequences {
            self.count += 1;
            self.first = self.first.or(Some(sequence));
            self.last = Some(sequence);
            if self.shown.is_ok() {
                let json = || json!({ "topic": self.topic, "queued": sequence });
                self.shown = self.out.show(json, || format!("{} queued as {sequence}", self.topic));
            }
        }
    }
}

/// What has become of it.
#[derive(Debug)]
struct Summary<'a> {
    topic: &'a str,
    dir: &'a Path,
    count: u64,
    first: Option<u64>,
    last: Option<u64>,
    handed_over: u64,
    waiting: u64,
    why: Option<&'a Error>,
    seconds: f64,
}

impl Summary<'_> {
    fn json(&self) -> Value {
        let why = self.why.map(|error| json!({ "code": error.code.name(), "message": error.message }));
        json!({ "summary": {
            "topic": self.topic,
            "queued": self.count,
            "first_sequence": self.first,
            "last_sequence": self.last,
            "handed_over": self.handed_over,
            "waiting": self.waiting,
            "why": why,
            "seconds": self.seconds,
        }})
    }

    fn text(&self) -> String {
        let events = |count: u64| if count == 1 { "1 event".to_owned() } else { format!("{count} events") };
        let mut text = format!("{} put into the queue in {}", events(self.count), self.dir.display());
        if self.handed_over > 0 {
            text.push_str(&format!(", {} handed over", self.handed_over));
        }
        if self.waiting == 0 {
            text.push_str("; none waits");
        } else {
            let verb = if self.waiting == 1 { "waits" } else { "wait" };
            text.push_str(&format!("; {} {verb} there", events(self.waiting)));
            match self.why {
                Some(error) => text.push_str(&format!(" ({})", error.message)),
                None => text.push_str(": `canal queue flush` hands over"),
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn a_summary_says_what_waits_and_why() {
        let error = Error::new(Code::Unreachable, "nobody is there");
        let mut summary = Summary {
            topic: "t",
            dir: Path::new("q"),
            count: 1,
            first: Some(4),
            last: Some(4),
            handed_over: 0,
            waiting: 3,
            why: Some(&error),
            seconds: 0.5,
        };
        assert_eq!(summary.text(), "1 event put into the queue in q; 3 events wait there (nobody is there)");
        assert_eq!(
            summary.json().to_string(),
            r#"{"summary":{"first_sequence":4,"handed_over":0,"last_sequence":4,"queued":1,"seconds":0.5,"topic":"t","waiting":3,"why":{"code":"unreachable","message":"nobody is there"}}}"#
        );
        summary.why = None;
        summary.waiting = 1;
        let text = "1 event put into the queue in q; 1 event waits there: `canal queue flush` hands over";
        assert_eq!(summary.text(), text);
        summary = Summary { handed_over: 5, waiting: 0, count: 5, ..summary };
        assert_eq!(summary.text(), "5 events put into the queue in q, 5 handed over; none waits");
    }
}
