//! `canal trigger`: which function fires on which topics.

use std::process::ExitCode;

use canal_proto::TriggerId;
use canal_proto::catalog::{Start, TriggerInfo};
use canal_proto::name::check_plain;
use canal_sdk::{Client, Error};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::connect::{Connect, Outcome, Reading};
use super::print::{Out, left, moment, name_of, object, right, span, table};

/// What to do with triggers.
#[derive(Debug, Subcommand)]
pub enum Trigger {
    /// Create a trigger; it is no error if it stands there already with the same definition
    Create(Create),
    /// List triggers
    Ls(Ls),
    /// Remove a trigger
    Rm(Named),
    /// Stop firing; what is published meanwhile waits
    Pause(Named),
    /// Fire again, beginning with what waits
    Resume(Named),
}

/// Where a trigger begins in a topic that is older than itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Begin {
    /// With the first event there is
    Earliest,
    /// With the next event
    Latest,
}

/// Flags of `canal trigger create`.
#[derive(Debug, Args)]
pub struct Create {
    /// Name of the trigger
    name: String,
    /// Topics on which it fires: a name, or a pattern with `+` and `#`; can be given more than once
    #[arg(long = "on", value_name = "PATTERN", required = true)]
    patterns: Vec<String>,
    /// The function that it runs
    #[arg(long = "fn", value_name = "FUNCTION")]
    function: String,
    /// Where it begins in topics that are older than itself
    #[arg(long, value_enum, default_value = "latest")]
    from: Begin,
    /// Runs of one event before it goes to the dead-letter topic [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    attempts: Option<u32>,
    /// Wait before the second run, in milliseconds; doubled for each further one, up to a minute [default: 100]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..=60_000))]
    backoff: Option<u32>,
    /// The rows that the function sees; triggers of one bucket share them [default: the trigger's name]
    #[arg(long, value_name = "BUCKET")]
    state: Option<String>,
    #[command(flatten)]
    connect: Connect,
}

impl Create {
    fn info(&self) -> TriggerInfo {
        let start = match self.from {
            Begin::Earliest => Start::Earliest,
            Begin::Latest => Start::Latest,
        };
        TriggerInfo {
            name: self.name.clone(),
            patterns: self.patterns.clone(),
            function: self.function.clone(),
            start: start.into(),
            max_attempts: self.attempts.unwrap_or(0),
            backoff_ms: self.backoff.unwrap_or(0),
            bucket: self.state.clone().unwrap_or_default(),
            ..TriggerInfo::default()
        }
    }
}

/// Flags of `canal trigger ls`.
#[derive(Debug, Args)]
pub struct Ls {
    #[command(flatten)]
    reading: Reading,
    #[command(flatten)]
    connect: Connect,
}

/// Flags of commands about one trigger.
#[derive(Debug, Args)]
pub struct Named {
    /// Name of the trigger
    name: String,
    #[command(flatten)]
    connect: Connect,
}

/// Runs the command.
pub fn run(command: Trigger) -> ExitCode {
    match command {
        Trigger::Create(args) => args.connect.run(async |client, out| create(client, out, &args).await),
        Trigger::Ls(args) => args.connect.run(async |client, out| {
            let triggers = client.catalog("", &["triggers"], args.reading.is_linearizable()).await?.triggers;
            Ok(out.show(|| triggers.iter().map(trigger_json).collect(), || triggers_text(&triggers))?)
        }),
        Trigger::Rm(args) => args.connect.run(async |client, out| {
            client.remove_trigger(&args.name).await?;
            let name = &args.name;
            Ok(out.show(|| json!({ "trigger": name, "removed": true }), || format!("trigger `{name}` is removed"))?)
        }),
        Trigger::Pause(args) => args.connect.run(async |client, out| pause(client, out, &args.name, true).await),
        Trigger::Resume(args) => args.connect.run(async |client, out| pause(client, out, &args.name, false).await),
    }
}

async fn create(client: Client, out: Out, args: &Create) -> Outcome {
    for name in args.state.iter().chain([&args.function]) {
        check_plain(name).map_err(Error::from)?;
    }
    let created = client.create_trigger(args.info()).await?;
    let trigger = &created.info;
    let json = || {
        let mut map = object(trigger_json(trigger));
        map.insert("existed".to_owned(), created.existed.into());
        Value::Object(map)
    };
    let text = || {
        let what = if created.existed { "was there already" } else { "is created" };
        let patterns = trigger.patterns.join("`, `");
        format!("trigger `{}` {what}: function `{}` on `{patterns}`", trigger.name, trigger.function)
    };
    Ok(out.show(json, text)?)
}

async fn pause(client: Client, out: Out, name: &str, paused: bool) -> Outcome {
    let trigger = client.pause_trigger(name, paused).await?;
    let what = if paused { "is paused" } else { "is active" };
    Ok(out.show(|| trigger_json(&trigger), || format!("trigger `{name}` {what}"))?)
}

fn trigger_json(trigger: &TriggerInfo) -> Value {
    json!({
        "id": TriggerId(trigger.id).to_string(),
        "name": trigger.name,
        "patterns": trigger.patterns,
        "function": trigger.function,
        "from": name_of::<Start>(trigger.start),
        "paused": trigger.paused,
        "attempts": trigger.attempts(),
        "backoff_ms": trigger.backoff(1),
        "bucket": trigger.state_bucket(),
        "created_ms": trigger.created_ms,
    })
}

fn triggers_text(triggers: &[TriggerInfo]) -> String {
    let columns = [
        left("NAME"),
        left("ON"),
        left("FUNCTION"),
        left("FROM"),
        left("STATE"),
        right("ATTEMPTS"),
        right("BACKOFF"),
        left("BUCKET"),
        left("CREATED"),
    ];
    let row = |trigger: &TriggerInfo| {
        [
            trigger.name.clone(),
            trigger.patterns.join(","),
            trigger.function.clone(),
            name_of::<Start>(trigger.start),
            if trigger.paused { "paused" } else { "active" }.to_owned(),
            trigger.attempts().to_string(),
            span(trigger.backoff(1) * 1000),
            trigger.state_bucket().to_owned(),
            moment(trigger.created_ms),
        ]
    };
    table(columns, triggers.iter().map(row))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn triggers_are_listed() {
        let trigger = TriggerInfo {
            id: 17,
            name: "t".into(),
            patterns: vec!["a/+".into(), "b".into()],
            function: "smooth".into(),
            start: Start::Earliest.into(),
            paused: true,
            max_attempts: 2,
            backoff_ms: 0,
            bucket: String::new(),
            created_ms: 1_767_225_600_000,
        };
        assert_eq!(
            triggers_text(std::slice::from_ref(&trigger)),
            "NAME  ON     FUNCTION  FROM      STATE   ATTEMPTS   BACKOFF  BUCKET  CREATED\n\
             t     a/+,b  smooth    earliest  paused         2  100.0 ms  t       2026-01-01 00:00:00Z\n"
        );
        assert_eq!(
            trigger_json(&trigger).to_string(),
            concat!(
                r#"{"attempts":2,"backoff_ms":100,"bucket":"t","created_ms":1767225600000,"from":"earliest","#,
                r#""function":"smooth","id":"0000000000000011","name":"t","patterns":["a/+","b"],"paused":true}"#
            )
        );
    }
}
