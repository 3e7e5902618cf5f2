//! `canal subscription`: durable subscriptions, with how far they are.

use std::process::ExitCode;

use canal_proto::Code;
use canal_proto::request::Subscriptions;
use canal_sdk::Client;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::connect::{Connect, Outcome};
use super::print::{Out, left, moment, right, table};

/// What to do with durable subscriptions.
#[derive(Debug, Subcommand)]
pub enum Durable {
    /// List those of a topic, or of all topics, with how far they are
    Ls(Ls),
    /// Remove one of a topic; who has it open ends
    Rm(Rm),
}

/// Flags of `canal subscription ls`.
#[derive(Debug, Args)]
pub struct Ls {
    /// Name of the topic
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    topic: Option<String>,
    /// Those of all topics
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    connect: Connect,
}

/// Flags of `canal subscription rm`.
#[derive(Debug, Args)]
pub struct Rm {
    /// Name of the topic
    topic: String,
    /// Name of the subscription
    name: String,
    #[command(flatten)]
    connect: Connect,
}

/// Runs the command.
pub fn run(command: Durable) -> ExitCode {
    match command {
        Durable::Ls(args) => args.connect.run(async |client, out| ls(client, out, &args).await),
        Durable::Rm(args) => args.connect.run(async |client, out| {
            client.remove_subscription(&args.topic, &args.name).await?;
            let (topic, name) = (&args.topic, &args.name);
            Ok(out.show(
                || json!({ "topic": topic, "name": name, "removed": true }),
                || format!("durable subscription `{name}` of `{topic}` is removed"),
            )?)
        }),
    }
}

async fn ls(client: Client, out: Out, args: &Ls) -> Outcome {
    let topics = match &args.topic {
        Some(topic) => vec![topic.clone()],
        None => client.topics("#").await?.into_iter().map(|topic| topic.name).collect(),
    };
    let mut listed = Vec::new();
    for topic in topics {
        match client.subscriptions(&topic).await {
            Ok(subscriptions) => listed.push((topic, subscriptions)),
            // removed while we list
            Err(error) if args.all && error.code == Code::UnknownTopic => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(out.show(|| list_json(&listed), || list_text(&listed))?)
}

fn list_json(listed: &[(String, Subscriptions)]) -> Value {
    let of = |(topic, all): &(String, Subscriptions)| {
        let row = |row: &canal_proto::log::Subscription| {
            json!({
                "topic": topic,
                "name": row.name,
                "next": row.next,
                "head": all.head,
                "lag": all.head.saturating_sub(row.next),
                "lost": all.oldest.saturating_sub(row.next),
                "session": row.session,
                "changed_ms": row.changed_ms,
            })
        };
        all.subscriptions.iter().map(row).collect::<Vec<Value>>()
    };
    listed.iter().flat_map(of).collect()
}

fn list_text(listed: &[(String, Subscriptions)]) -> String {
    let of = |(topic, all): &(String, Subscriptions)| {
        let row = |row: &canal_proto::log::Subscription| {
            [
                topic.clone(),
                row.name.clone(),
                row.next.to_string(),
                all.head.saturating_sub(row.next).to_string(),
                all.oldest.saturating_sub(row.next).to_string(),
                moment(row.changed_ms),
            ]
        };
        all.subscriptions.iter().map(row).collect::<Vec<_>>()
    };
    let columns = [left("TOPIC"), left("NAME"), right("NEXT"), right("LAG"), right("LOST"), left("MOVED")];
    table(columns, listed.iter().flat_map(of))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;
    use canal_proto::log::Subscription;

    #[test]
    fn durable_subscriptions_are_listed_with_how_far_they_are() {
        let row = Subscription {
            topic: 1,
            name: "audit".into(),
            next: 5,
            session: 9,
            changed_ms: 1_767_225_600_000,
            ..Subscription::default()
        };
        let listed = vec![("t".to_owned(), Subscriptions { subscriptions: vec![row], head: 12, oldest: 6 })];
        assert_eq!(
            list_text(&listed),
            "TOPIC  NAME   NEXT  LAG  LOST  MOVED\nt      audit     5    7     1  2026-01-01 00:00:00Z\n"
        );
        assert_eq!(
            list_json(&listed).to_string(),
            r#"[{"changed_ms":1767225600000,"head":12,"lag":7,"lost":1,"name":"audit","next":5,"session":9,"topic":"t"}]"#
        );
    }
}
