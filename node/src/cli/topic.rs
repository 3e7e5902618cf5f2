//! `canal topic`: the topics of the namespace.

use std::process::ExitCode;

use canal_proto::catalog::{Placement, Retention, TopicInfo};
use canal_proto::limits::MAX_REPLICAS;
use canal_proto::peer::{Label, Tier};
use canal_proto::{Code, GroupId, TopicName};
use canal_sdk::{Client, Error, TopicOptions};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::connect::{Connect, Outcome, Reading};
use super::print::{Out, object};
use crate::config::Span;

mod producers;
mod show;

use show::{info_json, info_text, retention_json, retention_text, topic_json, topics_text};

/// What to do with topics.
#[derive(Debug, Subcommand)]
pub enum Topic {
    /// Create a topic; it is no error if it stands there already with the same definition
    Create(Create),
    /// List topics
    Ls(Ls),
    /// Show how a topic stands
    Info(Info),
    /// Change how long a topic's events are kept, or how many replicas it has
    Set(Set),
    /// Remove a topic and its events
    Rm(Named),
    /// List and end the producers that a topic remembers
    #[command(subcommand)]
    Producers(producers::Producers),
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
    /// Tier of the peers that should hold the replicas: iot, edge or cloud
    #[arg(long, value_name = "TIER")]
    tier: Option<Tier>,
    /// Label that the peers which hold the replicas should have; may be repeated
    #[arg(long = "label", value_name = "K=V", value_parser = label)]
    labels: Vec<Label>,
    #[command(flatten)]
    retain: Retain,
    #[command(flatten)]
    connect: Connect,
}

/// How long events are kept. Whatever is exceeded first lets go of the oldest.
#[derive(Debug, Default, Args)]
pub struct Retain {
    /// Keep at most so many events; 0: no such bound
    #[arg(long, value_name = "N")]
    retain_events: Option<u64>,
    /// Keep at most so many bytes of payload: 1000, 64K, 10M, 2G; 0: no such bound
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    retain_bytes: Option<u64>,
    /// Keep events for so long after they were appended: 90s, 5m, 2h, 7d; 0: no such bound
    #[arg(long, value_name = "TIME", value_parser = age)]
    retain_age: Option<u64>,
}

impl Retain {
    /// What is kept when these bounds take the place of those before; `None` when none is given.
    fn over(&self, before: Retention) -> Option<Retention> {
        let given = self.retain_events.or(self.retain_bytes).or(self.retain_age).is_some();
        given.then(|| Retention {
            events: self.retain_events.unwrap_or(before.events),
            bytes: self.retain_bytes.unwrap_or(before.bytes),
            age_ms: self.retain_age.unwrap_or(before.age_ms),
        })
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    let units = [("K", 10), ("M", 20), ("G", 30), ("T", 40)];
    let unit = units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)));
    let (number, shift) = unit.unwrap_or((text, 0));
    let size = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    size.ok_or_else(|| format!("`{text}` is not a size; write it as 1000, 64K, 10M or 2G"))
}

fn age(text: &str) -> Result<u64, String> {
    if text == "0" {
        return Ok(0);
    }
    let span: Span = text.parse()?;
    Ok(u64::try_from(span.0.as_millis()).unwrap_or(u64::MAX))
}

fn label(text: &str) -> Result<Label, String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok(Label { key: key.to_owned(), value: value.to_owned() }),
        _ => Err(format!("`{text}` is not of the form K=V")),
    }
}

/// Flags of `canal topic set`.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("change").required(true).multiple(true).args([
    "replicas", "retain_events", "retain_bytes", "retain_age",
])))]
pub struct Set {
    /// Name of the topic
    name: String,
    /// Replicas wanted, of the topic's group and so of all topics in it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MAX_REPLICAS as i64))]
    replicas: Option<u32>,
    #[command(flatten)]
    retain: Retain,
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
        Topic::Set(args) => args.connect.run(async |client, out| set(client, out, &args).await),
        Topic::Info(args) => args.connect.run(async |client, out| info(client, out, &args.name, args.reading).await),
        Topic::Producers(command) => producers::run(command),
        Topic::Rm(args) => args.connect.run(async |client, out| {
            client.remove_topic(&args.name).await?;
            let name = &args.name;
            Ok(out.show(|| json!({ "topic": name, "removed": true }), || format!("topic `{name}` is removed"))?)
        }),
    }
}

async fn create(client: Client, out: Out, args: &Create) -> Outcome {
    let placement = Placement { tier: args.tier.map(Into::into), labels: args.labels.clone(), pinned: Vec::new() };
    let options = TopicOptions {
        group: args.group.clone(),
        replicas: args.replicas,
        retention: args.retain.over(Retention::default()),
        placement: (placement != Placement::default()).then_some(placement),
    };
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

async fn find(client: &Client, name: &str, linearizable: bool) -> Result<TopicInfo, Error> {
    let topics = client.catalog(name, &["topics"], linearizable).await?.topics;
    topics.into_iter().find(|topic| topic.name == name).ok_or_else(|| {
        let message = format!("no topic `{name}`; create it with `canal topic create {name}`");
        Error::new(Code::UnknownTopic, message)
    })
}

async fn set(client: Client, out: Out, args: &Set) -> Outcome {
    let name = &args.name;
    name.parse::<TopicName>().map_err(Error::from)?;
    let mut topic = find(&client, name, true).await?;
    let mut map = Map::new();
    let mut text = Vec::new();
    map.insert("topic".to_owned(), name.as_str().into());
    if let Some(retention) = args.retain.over(topic.retention.unwrap_or_default()) {
        topic = client.set_retention(name, retention).await?;
        map.insert("retention".to_owned(), retention_json(topic.retention));
        text.push(format!("topic `{name}` keeps {}", retention_text(topic.retention)));
    }
    if let Some(replicas) = args.replicas {
        let group = GroupId(topic.group);
        client.set_group(group, Some(replicas), None).await?;
        let others = others_in(&client, &topic).await?;
        map.insert("group".to_owned(), group.to_string().into());
        map.insert("group_name".to_owned(), topic.group_name.as_str().into());
        map.insert("replicas_wanted".to_owned(), replicas.into());
        map.insert("other_topics".to_owned(), others.clone().into());
        let also = match others.as_slice() {
            [] => String::new(),
            others => format!(", and so for {}", others.join(", ")),
        };
        let group = &topic.group_name;
        let many = if replicas == 1 { "replica" } else { "replicas" };
        text.push(format!("group `{group}` goes to {replicas} {many} for topic `{name}`{also}"));
    }
    Ok(out.show(|| Value::Object(map), || text.join("\n"))?)
}

/// The other topics of a topic's group, by name; the system's as well.
async fn others_in(client: &Client, topic: &TopicInfo) -> Result<Vec<String>, Error> {
    let mut others = Vec::new();
    for pattern in ["", "$dead/#", "$mesh/#"] {
        let topics = client.catalog(pattern, &["topics"], false).await?.topics;
        let beside = topics.into_iter().filter(|other| other.group == topic.group && other.id != topic.id);
        others.extend(beside.map(|other| other.name));
    }
    Ok(others)
}

async fn info(client: Client, out: Out, name: &str, reading: Reading) -> Outcome {
    name.parse::<TopicName>().map_err(Error::from)?;
    let topic = find(&client, name, reading.is_linearizable()).await?;
    let status = client.topic_status(name).await?;
    Ok(out.show(|| info_json(&topic, &status), || info_text(&topic, &status))?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn sizes_and_ages_are_read() {
        assert_eq!(["0", "1000", "64K", "10M", "2G"].map(bytes), [0, 1000, 65_536, 10 << 20, 2 << 30].map(Ok));
        for bad in ["", "K", "-1", "1.5M", "10MB", "99999999999T"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
        assert_eq!(["0", "90s", "5m", "7d"].map(age), [0, 90_000, 300_000, 604_800_000].map(Ok));
        assert!(age("5").is_err());
    }

    #[test]
    fn bounds_that_are_not_given_stay() {
        let before = Retention { events: 1, bytes: 2, age_ms: 3 };
        let retain = Retain { retain_bytes: Some(9), ..Retain::default() };
        assert_eq!(retain.over(before), Some(Retention { bytes: 9, ..before }));
        assert_eq!(Retain::default().over(before), None);
        let none = Retain { retain_events: Some(0), ..Retain::default() };
        assert_eq!(none.over(Retention::default()), Some(Retention::default()));
    }

    #[test]
    fn labels_are_read() {
        assert_eq!(label("gpu=1"), Ok(Label { key: "gpu".into(), value: "1".into() }));
        assert_eq!(label("gpu="), Ok(Label { key: "gpu".into(), value: String::new() }));
        assert!(label("=1").is_err() && label("gpu").is_err());
    }
}
