//! `canal topic producers`: who has published to a topic, and ending those that will not come back.

use std::process::ExitCode;

use canal_proto::limits::MAX_PRODUCERS;
use canal_proto::request::ProducerInfo;
use canal_proto::{Code, ProducerId, TopicName};
use canal_sdk::{Client, Error};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::cli::connect::{Connect, Outcome};
use crate::cli::print::{Out, base16, left, right, table};

/// What to do with the producers of a topic.
#[derive(Debug, Subcommand)]
pub enum Producers {
    /// List those that the topic remembers
    Ls(Ls),
    /// End producers that will not come back: one that publishes later is refused, also a queue that still holds events
    End(End),
}

/// Flags of `canal topic producers ls`.
#[derive(Debug, Args)]
pub struct Ls {
    /// Name of the topic
    topic: String,
    /// Begin with this one, or the next that is there
    #[arg(long, value_name = "PRODUCER")]
    from: Option<ProducerId>,
    /// List at most so many
    #[arg(long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u64).range(1..=MAX_PRODUCERS))]
    limit: u64,
    #[command(flatten)]
    connect: Connect,
}

/// Flags of `canal topic producers end`.
#[derive(Debug, Args)]
pub struct End {
    /// Name of the topic
    topic: String,
    /// The producers
    #[arg(required = true, value_name = "PRODUCER")]
    producers: Vec<ProducerId>,
    #[command(flatten)]
    connect: Connect,
}

/// Runs the command.
pub fn run(command: Producers) -> ExitCode {
    match command {
        Producers::Ls(args) => args.connect.run(async |client, out| list(client, out, &args).await),
        Producers::End(args) => args.connect.run(async |client, out| {
            args.topic.parse::<TopicName>().map_err(Error::from)?;
            for producer in &args.producers {
                end(&client, out, &args.topic, *producer).await?;
            }
            Ok(())
        }),
    }
}

async fn list(client: Client, out: Out, args: &Ls) -> Outcome {
    args.topic.parse::<TopicName>().map_err(Error::from)?;
    let mut listed = Listed { from: args.from, ..Listed::default() };
    loop {
        let missing = args.limit - listed.producers.len() as u64;
        let page = client.producers(&args.topic, listed.from, u32::try_from(missing).unwrap_or(u32::MAX)).await?;
        listed.all = page.all;
        listed.from = match page.next.as_ref() {
            [] => None,
            next => Some(ProducerId::from_slice(next).map_err(|e| Error::new(Code::Malformed, e.to_string()))?),
        };
        // a page that brings nothing has no next one
        let empty = page.producers.is_empty();
        listed.producers.extend(page.producers);
        if listed.from.is_none() || empty || listed.producers.len() as u64 >= args.limit {
            break;
        }
    }
    Ok(out.show(|| listed.json(), || listed.text())?)
}

#[derive(Default)]
struct Listed {
    producers: Vec<ProducerInfo>,
    /// Producers in all.
    all: u64,
    /// Where the next page begins, if there is one.
    from: Option<ProducerId>,
}

impl Listed {
    fn json(&self) -> Value {
        let producers = self.producers.iter().map(|info| {
            json!({
                "producer": base16(&info.producer), "last_sequence": info.last_sequence, "newest_offset": info.newest
            })
        });
        json!({
            "producers": producers.collect::<Vec<_>>(),
            "all": self.all,
            "next": self.from.map(|from| from.to_string()),
        })
    }

    fn text(&self) -> String {
        let rows = self.producers.iter().map(|info| {
            let newest = info.newest.map_or_else(|| "-".to_owned(), |offset| offset.to_string());
            [base16(&info.producer), info.last_sequence.to_string(), newest]
        });
        let mut text = table([left("PRODUCER"), right("LAST SEQUENCE"), right("NEWEST OFFSET")], rows);
        if let Some(from) = self.from {
            text.push_str(&format!(
                "{} of {} producers; --limit lists more, and --from {from} the next\n",
                self.producers.len(),
                self.all
            ));
        }
        text
    }
}

/// Ends a producer as it stands: one that publishes meanwhile is left alone.
async fn end(client: &Client, out: Out, topic: &str, producer: ProducerId) -> Outcome {
    let Some(known) = known(client, topic, producer).await? else {
        let message = format!("topic `{topic}` has no producer {producer}: `canal topic producers ls` lists them");
        return Err(Error::new(Code::InvalidArgument, message).into());
    };
    client.end_producer(topic, producer, known.last_sequence).await?;
    // a replica that lags may still have it
    if let Some(now) = self::known(client, topic, producer).await?
        && now.last_sequence != known.last_sequence
    {
        let message = format!(
            "producer {producer} has published to `{topic}` a moment ago, so it was left alone: end it when it is done"
        );
        return Err(Error::new(Code::InUse, message).into());
    }
    let json = || json!({ "topic": topic, "producer": producer.to_string(), "last_sequence": known.last_sequence });
    let text = || format!("producer {producer} of `{topic}` is ended, at sequence {}", known.last_sequence);
    Ok(out.show(json, text)?)
}

async fn known(client: &Client, topic: &str, producer: ProducerId) -> Result<Option<ProducerInfo>, Error> {
    let page = client.producers(topic, Some(producer), 1).await?;
    Ok(page.producers.into_iter().find(|info| info.producer == producer.to_vec()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn producers_are_listed_with_how_far_they_are() {
        let info = |id: u8, newest| ProducerInfo { producer: vec![id; 16].into(), last_sequence: 7, newest };
        let mut listed = Listed { producers: vec![info(1, Some(9)), info(2, None)], all: 2, from: None };
        let text = listed.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(lines[1], format!("{}              7              9", "01".repeat(16)));
        assert!(lines[2].ends_with("7              -"), "{text}");
        listed.from = Some(ProducerId([3; 16]));
        listed.all = 5;
        assert!(
            listed
                .text()
                .ends_with(&format!("2 of 5 producers; --limit lists more, and --from {} the next\n", "03".repeat(16)))
        );
        let json = listed.json();
        assert_eq!((&json["producers"][0]["newest_offset"], &json["next"]), (&9.into(), &"03".repeat(16).into()));
    }
}
