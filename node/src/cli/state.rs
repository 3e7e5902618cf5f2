//! `canal state`: the rows of functions.
//!
//! A bucket has rows of its own in each group that hosts a topic of its triggers. Where there is one such group it
//! need not be named; where there are more, it must.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use canal_proto::name::check_plain;
use canal_proto::{Code, GroupId};
use canal_sdk::{Client, Consistency, Error};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::connect::{Connect, Failure, Outcome, Reading, invalid};
use super::print::{Out, left, object, printable, put_bytes, table};

/// What to do with rows.
#[derive(Debug, Subcommand)]
pub enum State {
    /// Print the value of a row; exit code 3 when there is none
    Get(Get),
    /// Write a row
    Put(Put),
    /// List rows, by key
    Ls(Ls),
}

/// Where the rows are.
#[derive(Debug, Args)]
pub struct Place {
    /// The bucket: a trigger's name, unless it has another one
    bucket: String,
    /// The group; needed where the bucket's triggers fire in several, or in none
    #[arg(long, value_name = "NAME|ID")]
    group: Option<String>,
}

/// Flags of `canal state get`.
#[derive(Debug, Args)]
pub struct Get {
    #[command(flatten)]
    place: Place,
    /// Key of the row
    key: String,
    #[command(flatten)]
    reading: Reading,
    #[command(flatten)]
    connect: Connect,
}

/// Flags of `canal state put`.
#[derive(Debug, Args)]
pub struct Put {
    #[command(flatten)]
    place: Place,
    /// Key of the row
    key: String,
    /// The new value
    #[arg(allow_negative_numbers = true)]
    value: OsString,
    #[command(flatten)]
    connect: Connect,
}

/// Flags of `canal state ls`.
#[derive(Debug, Args)]
pub struct Ls {
    #[command(flatten)]
    place: Place,
    /// Only keys that begin with this
    #[arg(default_value = "", hide_default_value = true)]
    prefix: String,
    /// Rows at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=canal_proto::limits::MAX_SCAN as i64))]
    limit: Option<u32>,
    #[command(flatten)]
    reading: Reading,
    #[command(flatten)]
    connect: Connect,
}

/// Runs the command.
pub fn run(command: State) -> ExitCode {
    match command {
        State::Get(args) => args.connect.run(async |client, out| get(client, out, &args).await),
        State::Put(args) => args.connect.run(async |client, out| put(client, out, &args).await),
        State::Ls(args) => args.connect.run(async |client, out| ls(client, out, &args).await),
    }
}

fn consistency(reading: Reading) -> Consistency {
    if reading.is_linearizable() { Consistency::Linearizable } else { Consistency::Stale }
}

/// The group that was named, or the only one in which the bucket has rows.
async fn group(client: &Client, place: &Place) -> Result<(GroupId, String), Error> {
    check_plain(&place.bucket)?;
    match &place.group {
        Some(group) => super::group::find(client, group).await,
        None => only(&place.bucket, client.state_groups(&place.bucket).await?),
    }
}

fn only(bucket: &str, groups: Vec<(GroupId, String)>) -> Result<(GroupId, String), Error> {
    match groups.as_slice() {
        [group] => Ok(group.clone()),
        [] => {
            let message =
                format!("no topic of the triggers of bucket `{bucket}` exists yet: say which group with --group");
            Err(Error::new(Code::UnknownGroup, message))
        }
        several => {
            let names: Vec<String> = several.iter().map(|(id, name)| format!("{name} ({id})")).collect();
            let message = format!(
                "bucket `{bucket}` has rows in {} groups: say which with --group: {}",
                names.len(),
                names.join(", ")
            );
            Err(invalid(message))
        }
    }
}

async fn get(client: Client, out: Out, args: &Get) -> Outcome {
    let (group, name) = group(&client, &args.place).await?;
    let value = client.state(group, &args.place.bucket).get(&args.key, consistency(args.reading)).await?;
    let Some(value) = value else {
        let (key, bucket) = (printable(args.key.as_bytes()), &args.place.bucket);
        return Err(Failure::NoRow(format!("no row `{key}` in bucket `{bucket}` of group {name}")));
    };
    let json = || {
        let mut map = place_json(group, &name, &args.place.bucket);
        map.extend(object(row_json(&args.key, &value)));
        Value::Object(map)
    };
    Ok(out.show(json, || printable(&value))?)
}

async fn put(client: Client, out: Out, args: &Put) -> Outcome {
    let (group, name) = group(&client, &args.place).await?;
    let bucket = &args.place.bucket;
    let index = client.state(group, bucket).put(&args.key, args.value.as_bytes().to_vec()).await?;
    let json = || {
        let mut map = place_json(group, &name, bucket);
        map.insert("key".to_owned(), args.key.clone().into());
        map.insert("index".to_owned(), index.into());
        Value::Object(map)
    };
    let text = || format!("row `{}` is written to bucket `{bucket}` of group {name}", printable(args.key.as_bytes()));
    Ok(out.show(json, text)?)
}

async fn ls(client: Client, out: Out, args: &Ls) -> Outcome {
    let (group, _) = group(&client, &args.place).await?;
    let state = client.state(group, &args.place.bucket);
    let rows = state.list(&args.prefix, args.limit.unwrap_or(0), consistency(args.reading)).await?;
    let json = || rows.iter().map(|(key, value)| row_json(key, value)).collect();
    let text = || {
        let row = |(key, value): &(String, _)| [printable(key.as_bytes()), printable(AsRef::<[u8]>::as_ref(value))];
        table([left("KEY"), left("VALUE")], rows.iter().map(row))
    };
    Ok(out.show(json, text)?)
}

fn place_json(group: GroupId, name: &str, bucket: &str) -> Map<String, Value> {
    object(json!({ "group": group.to_string(), "group_name": name, "bucket": bucket }))
}

fn row_json(key: &str, value: &[u8]) -> Value {
    let mut map = object(json!({ "key": key }));
    put_bytes(&mut map, "value", value);
    Value::Object(map)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn a_row_says_whether_its_value_is_text() {
        assert_eq!(row_json("k", b"5").to_string(), r#"{"key":"k","value":"5","value_base16":false}"#);
        assert_eq!(row_json("k", b"\xff").to_string(), r#"{"key":"k","value":"ff","value_base16":true}"#);
    }

    #[test]
    fn one_group_is_taken_and_several_are_named() {
        let (a, b) = ((GroupId(1), "a".to_owned()), (GroupId(2), "b".to_owned()));
        assert_eq!(only("t", vec![a.clone()]), Ok(a.clone()));
        let error = only("t", vec![a, b]).unwrap_err();
        assert_eq!(error.code, Code::InvalidArgument);
        assert_eq!(
            error.message,
            "bucket `t` has rows in 2 groups: say which with --group: a (0000000000000001), b (0000000000000002)"
        );
        assert_eq!(only("t", Vec::new()).unwrap_err().code, Code::UnknownGroup);
    }
}
