//! `canal topic`: the topics of the namespace.

use std::process::ExitCode;

use canal_proto::catalog::TopicInfo;
use canal_proto::limits::MAX_REPLICAS;
use canal_proto::request::TopicStatus;
use canal_proto::{Code, GroupId, TopicId, TopicName};
use canal_sdk::{Client, Error, TopicOptions};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::connect::{Connect, Outcome, Reading};
use super::print::{Out, fields, left, moment, object, size, table};

/// What to do with topics.
#[derive(Debug, Subcommand)]
pub enum Topic {
    /// Create a topic; it is no error if it stands there already with the same definition
    Create(Create),
    /// List topics
    Ls(Ls),
    /// Show how a topic stands
    Info(Info),
    /// Remove a topic and its events
    Rm(Named),
}

/// Flags of `canal topic create`.
#[derive(Debug, Args)]
pub struct Create {
    /// Name: levels divided by `/`
    name: String,
    /// Replicas wanted [default: 3, or what the group has]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MAX_REPLICAS as i64))]
    replicas: Option<u32>,
    /// Group that hosts it; it is created if need be [default: one for all topics of that many replicas]
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    #[command(flatten)]
    connect: Connect,
}

/// Flags of `canal topic ls`.
#[derive(Debug, Args)]
pub struct Ls {
    /// Only topics that this matches: `+` is one level, `#` the rest [default: all but the system's `$…`]
    pattern: Option<String>,
    #[command(flatten)]
    reading: Reading,
    #[command(flatten)]
    connect: Connect,
}

/// Flags of `canal topic info`.
#[derive(Debug, Args)]
pub struct Info {
    /// Name of the topic
    name: String,
    #[command(flatten)]
    reading: Reading,
    #[command(flatten)]
    connect: Connect,
}

/// Flags of `canal topic rm`.
#[derive(Debug, Args)]
pub struct Named {
    /// Name of the topic
    name: String,
    #[command(flatten)]
    connect: Connect,
}

/// Runs the command.
pub fn run(command: Topic) -> ExitCode {
    match command {
        Topic::Create(args) => args.connect.run(async |client, out| create(client, out, &args).await),
        Topic::Ls(args) => args.connect.run(async |client, out| ls(client, out, &args).await),
        Topic::Info(args) => args.connect.run(async |client, out| info(client, out, &args.name, args.reading).await),
        Topic::Rm(args) => args.connect.run(async |client, out| {
            client.remove_topic(&args.name).await?;
            let name = &args.name;
            Ok(out.show(|| json!({ "topic": name, "removed": true }), || format!("topic `{name}` is removed"))?)
        }),
    }
}

async fn create(client: Client, out: Out, args: &Create) -> Outcome {
    let options = TopicOptions { group: args.group.clone(), replicas: args.replicas };
    let created = client.create_topic(&args.name, options).await?;
    let json = || {
        let mut map = object(topic_json(&created.info));
        map.insert("existed".to_owned(), created.existed.into());
        Value::Object(map)
    };
    let text = || {
        let what = if created.existed { "was there already" } else { "is created" };
        format!("topic `{}` {what}, in group `{}`", created.info.name, created.info.group_name)
    };
    Ok(out.show(json, text)?)
}

async fn ls(client: Client, out: Out, args: &Ls) -> Outcome {
    let pattern = args.pattern.as_deref().unwrap_or_default();
    if !pattern.is_empty() {
        pattern.parse::<canal_proto::Pattern>().map_err(Error::from)?;
    }
    let topics = client.catalog(pattern, &["topics"], args.reading.is_linearizable()).await?.topics;
    Ok(out.show(|| topics.iter().map(topic_json).collect(), || topics_text(&topics))?)
}

async fn info(client: Client, out: Out, name: &str, reading: Reading) -> Outcome {
    name.parse::<TopicName>().map_err(Error::from)?;
    let topics = client.catalog(name, &["topics"], reading.is_linearizable()).await?.topics;
    let found = topics.into_iter().find(|topic| topic.name == name);
    let topic = found.ok_or_else(|| {
        let message = format!("no topic `{name}`; create it with `canal topic create {name}`");
        Error::new(Code::UnknownTopic, message)
    })?;
    let status = client.topic_status(name).await?;
    Ok(out.show(|| info_json(&topic, &status), || info_text(&topic, &status))?)
}

fn topic_json(topic: &TopicInfo) -> Value {
    json!({
        "id": TopicId(topic.id).to_string(),
        "name": topic.name,
        "group": GroupId(topic.group).to_string(),
        "group_name": topic.group_name,
        "created_ms": topic.created_ms,
    })
}

fn topics_text(topics: &[TopicInfo]) -> String {
    let row = |topic: &TopicInfo| [topic.name.clone(), topic.group_name.clone(), moment(topic.created_ms)];
    table([left("NAME"), left("GROUP"), left("CREATED")], topics.iter().map(row))
}

fn info_json(topic: &TopicInfo, status: &TopicStatus) -> Value {
    let mut map = object(topic_json(topic));
    map.insert("oldest".to_owned(), status.oldest.into());
    map.insert("next".to_owned(), status.next.into());
    map.insert("bytes".to_owned(), status.bytes.into());
    map.insert("producers".to_owned(), status.producers.into());
    Value::Object(map)
}

fn info_text(topic: &TopicInfo, status: &TopicStatus) -> String {
    fields([
        ("topic", topic.name.clone()),
        ("id", TopicId(topic.id).to_string()),
        ("group", format!("{} ({})", topic.group_name, GroupId(topic.group))),
        ("created", moment(topic.created_ms)),
        ("oldest offset", status.oldest.to_string()),
        ("next offset", status.next.to_string()),
        ("payload", size(status.bytes)),
        ("producers", status.producers.to_string()),
    ])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    fn topic() -> TopicInfo {
        TopicInfo {
            id: 10,
            name: "plant/t".into(),
            group: 255,
            group_name: "default".into(),
            created_ms: 1_767_225_600_000,
            ..TopicInfo::default()
        }
    }

    #[test]
    fn topics_are_listed() {
        assert_eq!(topics_text(&[topic()]), "NAME     GROUP    CREATED\nplant/t  default  2026-01-01 00:00:00Z\n");
        assert_eq!(
            topic_json(&topic()).to_string(),
            r#"{"created_ms":1767225600000,"group":"00000000000000ff","group_name":"default","id":"000000000000000a","name":"plant/t"}"#
        );
    }

    #[test]
    fn a_topic_is_shown() {
        let status =
            TopicStatus { id: 10, group: 255, oldest: 2, next: 7, producers: 1, bytes: 2048, ..TopicStatus::default() };
        assert_eq!(
            info_text(&topic(), &status),
            "topic          plant/t\n\
             id             000000000000000a\n\
             group          default (00000000000000ff)\n\
             created        2026-01-01 00:00:00Z\n\
             oldest offset  2\n\
             next offset    7\n\
             payload        2.0 KiB\n\
             producers      1\n"
        );
        let json = info_json(&topic(), &status);
        assert_eq!(
            (json["oldest"].as_u64(), json["next"].as_u64(), json["bytes"].as_u64()),
            (Some(2), Some(7), Some(2048))
        );
    }
}
