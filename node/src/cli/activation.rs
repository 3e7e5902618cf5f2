//! `canal activation`: the records of runs of functions.
//!
//! A record's number counts the runs of its trigger in one group, so in another group the same number is another run.

use std::process::ExitCode;

use canal_proto::log::{ActivationRecord, Disposition, Status};
use canal_proto::{Code, GroupId, PeerId};
use canal_sdk::{Client, Error};
use clap::{Args, Subcommand};
use futures::future::{join_all, try_join_all};
use serde_json::{Value, json};

use super::connect::{Connect, Outcome, invalid};
use super::print::{Out, base16, fields, left, moment, name_of, printable, right, span, table};

/// Records listed at most: with their log lines, that many fit a frame.
const MOST: i64 = 200;

/// What to do with activations.
#[derive(Debug, Subcommand)]
pub enum Activation {
    /// List activations, the newest first
    Ls(Ls),
    /// Show one activation, with its log
    Get(Get),
}

/// Flags of `canal activation ls`.
#[derive(Debug, Args)]
pub struct Ls {
    /// Only of this trigger
    #[arg(long, value_name = "NAME")]
    trigger: Option<String>,
    /// Records at most
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u32).range(1..=MOST))]
    limit: u32,
    /// Only of this group
    #[arg(long, value_name = "NAME|ID")]
    group: Option<String>,
    #[command(flatten)]
    connect: Connect,
}

/// Flags of `canal activation get`.
#[derive(Debug, Args)]
pub struct Get {
    /// Name of the trigger
    trigger: String,
    /// Number of the activation, as listed
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    number: u64,
    /// The group in which it ran; needed where the trigger ran in several
    #[arg(long, value_name = "NAME|ID")]
    group: Option<String>,
    #[command(flatten)]
    connect: Connect,
}

/// A record, and the group in which it ran.
struct Run {
    group: GroupId,
    group_name: String,
    record: ActivationRecord,
}

/// Runs the command.
pub fn run(command: Activation) -> ExitCode {
    match command {
        Activation::Ls(args) => args.connect.run(async |client, out| ls(client, out, &args).await),
        Activation::Get(args) => args.connect.run(async |client, out| get(client, out, &args).await),
    }
}

type Groups = Vec<(GroupId, String)>;

/// The groups to ask: the one that was named, those of the trigger, or all.
async fn groups(client: &Client, trigger: Option<&str>, group: Option<&str>) -> Result<Groups, Error> {
    let Some(trigger) = trigger else {
        return match group {
            Some(group) => Ok(vec![super::group::find(client, group).await?]),
            None => {
                let groups = client.catalog("", &["groups"], true).await?.groups;
                let active = groups.into_iter().filter(|group| group.active);
                Ok(active.map(|group| (GroupId(group.id), group.name)).collect())
            }
        };
    };
    let triggers = client.catalog("", &["triggers"], true).await?.triggers;
    if !triggers.iter().any(|known| known.name == trigger) {
        let message = format!("no trigger `{trigger}`; see `canal trigger ls`");
        return Err(Error::new(Code::UnknownTrigger, message));
    }
    match group {
        Some(group) => Ok(vec![super::group::find(client, group).await?]),
        None => client.state_groups(trigger).await,
    }
}

async fn ls(client: Client, out: Out, args: &Ls) -> Outcome {
    let trigger = args.trigger.as_deref();
    let groups = groups(&client, trigger, args.group.as_deref()).await?;
    let asked = groups.into_iter().map(async |(group, group_name)| {
        let records = client.activations(group, trigger.unwrap_or_default(), args.limit).await?;
        let run = |record| Run { group, group_name: group_name.clone(), record };
        Ok::<_, Error>(records.into_iter().map(run).collect::<Vec<_>>())
    });
    let mut runs: Vec<Run> = try_join_all(asked).await?.into_iter().flatten().collect();
    runs.sort_by_key(|run| std::cmp::Reverse((run.record.start_ms, run.record.number)));
    runs.truncate(usize::try_from(args.limit).unwrap_or(usize::MAX));
    Ok(out.show(|| runs.iter().map(run_json).collect(), || runs_text(&runs))?)
}

async fn get(client: Client, out: Out, args: &Get) -> Outcome {
    let (trigger, number) = (&args.trigger, args.number);
    let groups = groups(&client, Some(trigger), args.group.as_deref()).await?;
    let asked = groups.into_iter().map(async |(group, group_name)| {
        let record = client.activation(group, trigger, number).await?;
        Ok::<_, Error>(Run { group, group_name, record })
    });
    let mut found = Vec::new();
    for asked in join_all(asked).await {
        match asked {
            Ok(run) => found.push(run),
            Err(error) if error.code == Code::UnknownActivation => {}
            Err(error) => return Err(error.into()),
        }
    }
    match found.as_slice() {
        [run] => Ok(out.show(|| run_json(run), || run_text(run))?),
        [] => {
            let message = format!(
                "no activation {number} of trigger `{trigger}`: it has yet to run, or was let go as an old one"
            );
            Err(Error::new(Code::UnknownActivation, message).into())
        }
        several => {
            let names: Vec<&str> = several.iter().map(|run| run.group_name.as_str()).collect();
            let message = format!(
                "trigger `{trigger}` has an activation {number} in each of the groups {}: say which with --group",
                names.join(", ")
            );
            Err(invalid(message).into())
        }
    }
}

fn executor(record: &ActivationRecord) -> String {
    PeerId::from_slice(&record.executor).map_or_else(|_| base16(&record.executor), |peer| peer.to_string())
}

fn run_json(run: &Run) -> Value {
    let record = &run.record;
    json!({
        "trigger": record.trigger,
        "number": record.number,
        "group": run.group.to_string(),
        "group_name": run.group_name,
        "function": record.function,
        "component": base16(&record.component),
        "topic": record.topic,
        "offset": record.offset,
        "attempt": record.attempt,
        "start_ms": record.start_ms,
        "duration_us": record.duration_us,
        "status": name_of::<Status>(record.status),
        "disposition": name_of::<Disposition>(record.disposition),
        "error": record.error,
        "log": record.log,
        "writes": record.writes,
        "emits": record.emits,
        "executor": executor(record),
    })
}

fn runs_text(runs: &[Run]) -> String {
    let columns = [
        left("TRIGGER"),
        right("NUMBER"),
        left("GROUP"),
        left("TOPIC"),
        right("OFFSET"),
        right("ATTEMPT"),
        left("STATUS"),
        left("EVENT"),
        right("TOOK"),
        right("WRITES"),
        right("EMITS"),
        left("STARTED"),
    ];
    let row = |run: &Run| {
        let record = &run.record;
        [
            record.trigger.clone(),
            record.number.to_string(),
            run.group_name.clone(),
            record.topic.clone(),
            record.offset.to_string(),
            record.attempt.to_string(),
            name_of::<Status>(record.status),
            name_of::<Disposition>(record.disposition),
            span(record.duration_us),
            record.writes.to_string(),
            record.emits.to_string(),
            moment(record.start_ms),
        ]
    };
    table(columns, runs.iter().map(row))
}

fn run_text(run: &Run) -> String {
    let record = &run.record;
    let error = if record.error.is_empty() { "-".to_owned() } else { printable(record.error.as_bytes()) };
    let mut text = fields([
        ("activation", format!("{} of trigger {}", record.number, record.trigger)),
        ("group", format!("{} ({})", run.group_name, run.group)),
        ("event", format!("{} {}", record.topic, record.offset)),
        ("attempt", record.attempt.to_string()),
        ("function", record.function.clone()),
        ("component", base16(&record.component)),
        ("executor", executor(record)),
        ("started", moment(record.start_ms)),
        ("took", span(record.duration_us)),
        ("status", name_of::<Status>(record.status)),
        ("event is", name_of::<Disposition>(record.disposition)),
        ("error", error),
        ("writes", record.writes.to_string()),
        ("emits", record.emits.to_string()),
    ]);
    for line in &record.log {
        text.push_str(&format!("log         {}\n", printable(line.as_bytes())));
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    fn a_run() -> Run {
        let record = ActivationRecord {
            trigger: "t".into(),
            function: "smooth".into(),
            component: vec![0xab; 32].into(),
            topic: "a/b".into(),
            offset: 4,
            attempt: 2,
            start_ms: 1_767_225_600_000,
            duration_us: 1500,
            status: Status::Trap.into(),
            error: "out of\nbounds".into(),
            log: vec!["info: \u{1b}hello".into()],
            writes: 1,
            emits: 0,
            executor: vec![1; 32].into(),
            number: 9,
            disposition: Disposition::Retry.into(),
        };
        Run { group: GroupId(255), group_name: "g".into(), record }
    }

    #[test]
    fn activations_are_listed() {
        assert_eq!(
            runs_text(&[a_run()]),
            "TRIGGER  NUMBER  GROUP  TOPIC  OFFSET  ATTEMPT  STATUS  EVENT    TOOK  WRITES  EMITS  STARTED\n\
             t             9  g      a/b         4        2  trap    retry  1.5 ms       1      0  2026-01-01 00:00:00Z\n"
        );
        let peer = PeerId::from_public_key([1; 32]);
        assert_eq!(
            run_json(&a_run()).to_string(),
            format!(
                concat!(
                    r#"{{"attempt":2,"component":"{}","disposition":"retry","duration_us":1500,"emits":0,"#,
                    r#""error":"out of\nbounds","executor":"{}","function":"smooth","group":"00000000000000ff","#,
                    r#""group_name":"g","log":["info: \u001bhello"],"number":9,"offset":4,"#,
                    r#""start_ms":1767225600000,"status":"trap","topic":"a/b","trigger":"t","writes":1}}"#
                ),
                "ab".repeat(32),
                peer
            )
        );
    }

    #[test]
    fn an_activation_is_shown_with_its_log() {
        let text = run_text(&a_run());
        assert!(text.starts_with("activation  9 of trigger t\ngroup       g (00000000000000ff)\n"), "{text}");
        assert!(text.contains("error       out of\\nbounds\n"), "{text}");
        assert!(text.ends_with("log         info: \\u{1b}hello\n"), "{text}");
    }
}
