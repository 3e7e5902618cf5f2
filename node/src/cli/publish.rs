//! `canal pub`: publishes one event, or the lines of standard input; with `--queue`, by way of a queue on disk.
//!
//! Lines are pipelined: the next is sent before the receipt of the last has come, and receipts are printed in the
//! order of the lines. A signal stops the reading; what was taken still gets its receipt. When it fails, what was
//! acknowledged before is printed and counted.

use std::ffi::OsString;
use std::io::BufRead;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use canal_proto::event::Durability;
use canal_proto::limits::MAX_PAYLOAD;
use canal_proto::{Code, Event, Receipt};
use canal_sdk::{Client, Error, Publisher};
use clap::Args;
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::connect::{Connect, Failure, Outcome};
use super::print::{Out, name_of};
use super::stop::Stop;

mod queued;

/// Lines that were read and wait to be sent: enough to keep the publisher busy.
const BUFFERED_LINES: usize = 64;

/// Flags of `canal pub`.
#[derive(Debug, Args)]
pub struct Pub {
    /// Name of the topic
    topic: String,
    /// The event's payload
    #[arg(
        value_name = "DATA",
        required_unless_present = "stdin",
        conflicts_with = "stdin",
        allow_negative_numbers = true
    )]
    payload: Option<OsString>,
    /// Publish each line of standard input as an event
    #[arg(long)]
    stdin: bool,
    /// Key: functions handle the events of one key in order
    #[arg(long, value_name = "KEY", allow_negative_numbers = true)]
    key: Option<OsString>,
    /// Header of every event; can be given more than once
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// Put it into the durable queue in this directory, and hand over what waits there: works while the mesh is away
    #[arg(long, value_name = "DIR", help_heading = "Queue")]
    queue: Option<PathBuf>,
    /// Only put it in; hand nothing over
    #[arg(long, requires = "queue", help_heading = "Queue")]
    no_wait: bool,
    /// Events that the queue holds at most [default: 1000000]
    #[arg(long, value_name = "N", requires = "queue", help_heading = "Queue")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    queue_events: Option<u64>,
    /// Megabytes that its events take at most [default: 256]
    #[arg(long, value_name = "MB", requires = "queue", help_heading = "Queue")]
    #[arg(value_parser = clap::value_parser!(u64).range(2..=1_000_000))]
    queue_mb: Option<u64>,
    #[command(flatten)]
    connect: Connect,
}

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write a header as NAME=VALUE".to_owned()),
    }
}

impl Pub {
    fn event(&self, payload: Vec<u8>) -> Event {
        let mut event = Event::new(payload);
        if let Some(key) = &self.key {
            event = event.with_key(key.as_bytes().to_vec());
        }
        self.headers.iter().fold(event, |event, (name, value)| event.with_header(name.clone(), value.clone()))
    }
}

/// Runs the command.
pub fn run(args: Pub) -> ExitCode {
    if let Some(dir) = &args.queue {
        return args.connect.run_detached(async |client, out| queued::publish(client, out, &args, dir).await);
    }
    args.connect.run(async |client, out| match &args.payload {
        Some(payload) => one(client, out, &args, payload.as_bytes().to_vec()).await,
        None => lines(client, out, &args).await,
    })
}

async fn one(client: Client, out: Out, args: &Pub, payload: Vec<u8>) -> Outcome {
    let event = args.event(payload);
    event.check().map_err(Error::from)?;
    let publisher = client.publisher(&args.topic).await?;
    let receipt = publisher.publish(event).await?;
    out.show(|| receipt_json(&args.topic, &receipt), || receipt_text(&args.topic, &receipt))?;
    end(publisher).await;
    Ok(())
}

/// Lets the group forget the producer. If that fails, the events are no less durable: it only remembers one more.
async fn end(publisher: Publisher) {
    if let Err(error) = publisher.close().await {
        tracing::debug!(%error, "the producer could not be ended");
    }
}

async fn lines(client: Client, out: Out, args: &Pub) -> Outcome {
    let mut stop = Stop::new()?;
    let publisher = client.publisher(&args.topic).await?;
    let mut lines = read_lines();
    let mut pending = FuturesOrdered::new();
    let mut summary = Summary::new(&args.topic);
    let mut shown = Ok(());
    let failed = loop {
        tokio::select! {
            biased;
            () = stop.wait() => break None,
            Some(receipt) = pending.next(), if !pending.is_empty() => match receipt {
                Ok(receipt) => summary.take(out, &receipt, &mut shown),
                Err(error) => break Some(error),
            },
            line = lines.recv() => match line {
                None => break None,
                Some(Err(error)) => break Some(error),
                Some(Ok(line)) => match publisher.send(args.event(line)).await {
                    Ok(receipt) => pending.push_back(receipt),
                    Err(error) => break Some(error),
                },
            },
        }
    };
    let mut failed = failed;
    while let Some(receipt) = pending.next().await {
        match receipt {
            Ok(receipt) => summary.take(out, &receipt, &mut shown),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    summary.end(out);
    match failed {
        Some(error) => Err(Failure::Mesh(error)),
        None => {
            end(publisher).await;
            Ok(shown?)
        }
    }
}

type Line = Result<Vec<u8>, Error>;

/// Reads standard input on a thread of its own, since such a read can't be cancelled.
fn read_lines() -> mpsc::Receiver<Line> {
    let (lines, receiver) = mpsc::channel(BUFFERED_LINES);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        for number in 1_u64.. {
            let line = next_line(&mut input, number);
            let ended = !matches!(line, Ok(Some(_)));
            if let Some(line) = line.transpose()
                && lines.blocking_send(line).is_err()
            {
                return;
            }
            if ended {
                return;
            }
        }
    });
    receiver
}

/// The next line, without its line feed; none at the end.
fn next_line(input: &mut impl BufRead, number: u64) -> Result<Option<Vec<u8>>, Error> {
    let mut line = Vec::new();
    // one more than a payload may have: the line feed, or the byte that is too much
    let mut bounded = std::io::Read::take(&mut *input, MAX_PAYLOAD as u64 + 1);
    let read = bounded
        .read_until(b'\n', &mut line)
        .map_err(|error| Error::new(Code::InvalidArgument, format!("standard input can't be read: {error}")))?;
    if read == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if line.len() > MAX_PAYLOAD {
        let message = format!("line {number} has more than {MAX_PAYLOAD} bytes, which an event may have at most");
        return Err(Error::new(Code::TooLarge, message));
    }
    Ok(Some(line))
}

/// What was published so far.
#[derive(Debug)]
struct Summary<'a> {
    topic: &'a str,
    begun: Instant,
    events: u64,
    duplicates: u64,
    first: Option<u64>,
    last: Option<u64>,
}

impl<'a> Summary<'a> {
    fn new(topic: &'a str) -> Self {
        Self { topic, begun: Instant::now(), events: 0, duplicates: 0, first: None, last: None }
    }

    /// Counts a receipt and prints it. That nobody reads the receipts is no reason to lose events.
    fn take(&mut self, out: Out, receipt: &Receipt, shown: &mut std::io::Result<()>) {
        self.count(receipt);
        if shown.is_ok() {
            *shown = out.show(|| receipt_json(self.topic, receipt), || receipt_text(self.topic, receipt));
        }
    }

    fn count(&mut self, receipt: &Receipt) {
        self.events += 1;
        self.duplicates += u64::from(receipt.duplicate);
        self.first = self.first.or(receipt.offset);
        self.last = receipt.offset.or(self.last);
    }

    fn end(&self, out: Out) {
        let seconds = self.begun.elapsed().as_secs_f64();
        out.note(|| self.json(seconds), || self.text(seconds));
    }

    fn json(&self, seconds: f64) -> Value {
        json!({ "summary": {
            "topic": self.topic,
            "events": self.events,
            "duplicates": self.duplicates,
            "first_offset": self.first,
            "last_offset": self.last,
            "seconds": seconds,
        }})
    }

    fn text(&self, seconds: f64) -> String {
        let offsets = match (self.first, self.last) {
            (Some(first), Some(last)) if first == last => format!(", offset {first}"),
            (Some(first), Some(last)) => format!(", offsets {first} to {last}"),
            _ => String::new(),
        };
        let plural = if self.events == 1 { "" } else { "s" };
        let rate = self.events as f64 / seconds.max(1e-3);
        format!("{} event{plural} published to `{}`{offsets}, in {seconds:.2} s ({rate:.0}/s)", self.events, self.topic)
    }
}

fn receipt_json(topic: &str, receipt: &Receipt) -> Value {
    json!({
        "topic": topic,
        "offset": receipt.offset,
        "term": receipt.term,
        "index": receipt.index,
        "duplicate": receipt.duplicate,
        "durability": name_of::<Durability>(receipt.durability),
    })
}

fn receipt_text(topic: &str, receipt: &Receipt) -> String {
    let offset = receipt.offset.map_or_else(|| "-".to_owned(), |offset| offset.to_string());
    let durability = name_of::<Durability>(receipt.durability);
    let again = if receipt.duplicate { ", a retry" } else { "" };
    format!("{topic} {offset} (term {}, index {}, durable: {durability}{again})", receipt.term, receipt.index)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    fn receipt(offset: u64) -> Receipt {
        Receipt { offset: Some(offset), count: 1, term: 3, index: 45, duplicate: false, durability: 0 }
    }

    #[test]
    fn a_receipt_is_shown() {
        assert_eq!(receipt_text("a/b", &receipt(12)), "a/b 12 (term 3, index 45, durable: quorum)");
        assert_eq!(
            receipt_json("a/b", &receipt(12)).to_string(),
            r#"{"duplicate":false,"durability":"quorum","index":45,"offset":12,"term":3,"topic":"a/b"}"#
        );
        let old = Receipt { offset: None, duplicate: true, ..receipt(0) };
        assert_eq!(receipt_text("t", &old), "t - (term 3, index 45, durable: quorum, a retry)");
    }

    #[test]
    fn a_summary_counts_receipts() {
        let mut summary = Summary::new("t");
        assert_eq!(summary.text(0.5), "0 events published to `t`, in 0.50 s (0/s)");
        for receipt in [receipt(5), Receipt { duplicate: true, ..receipt(6) }, receipt(9)] {
            summary.count(&receipt);
        }
        assert_eq!(summary.text(1.5), "3 events published to `t`, offsets 5 to 9, in 1.50 s (2/s)");
        assert_eq!(
            summary.json(1.5).to_string(),
            r#"{"summary":{"duplicates":1,"events":3,"first_offset":5,"last_offset":9,"seconds":1.5,"topic":"t"}}"#
        );
    }

    #[test]
    fn lines_are_bounded_and_keep_their_bytes() {
        let mut input = b"a\r\n\n\xff".as_slice();
        assert_eq!(next_line(&mut input, 1), Ok(Some(b"a\r".to_vec())));
        assert_eq!(next_line(&mut input, 2), Ok(Some(Vec::new())));
        assert_eq!(next_line(&mut input, 3), Ok(Some(b"\xff".to_vec())));
        assert_eq!(next_line(&mut input, 4), Ok(None));
        let mut most = vec![b'x'; MAX_PAYLOAD];
        most.push(b'\n');
        assert_eq!(next_line(&mut most.as_slice(), 1).unwrap().unwrap().len(), MAX_PAYLOAD);
        let long = vec![b'x'; MAX_PAYLOAD + 1];
        let error = next_line(&mut long.as_slice(), 7).unwrap_err();
        assert_eq!(error.code, Code::TooLarge);
        assert_eq!(error.message, "line 7 has more than 1048576 bytes, which an event may have at most");
    }

    #[test]
    fn a_header_has_a_name_and_a_value() {
        assert_eq!(header("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(header("a").is_err() && header("=b").is_err());
    }
}
