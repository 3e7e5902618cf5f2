//! `canal sub`: prints events as they come.
//!
//! A line each, flushed at once. It ends with success after `--count` events, at a signal, or when nobody reads its
//! output any more.

use std::process::ExitCode;

use canal_sdk::{Client, Delivered, From};
use clap::Args;
use futures::StreamExt;
use serde_json::{Value, json};

use super::connect::{Connect, Outcome};
use super::print::{Out, object, printable, put_bytes, word};
use super::stop::Stop;

/// Flags of `canal sub`.
#[derive(Debug, Args)]
pub struct Sub {
    /// Name of a topic, or a pattern: `+` is one level, `#` the rest
    #[arg(value_name = "TOPIC|PATTERN")]
    pattern: String,
    /// Where to begin: earliest, latest (with the next event), or an offset (of one topic)
    #[arg(long, value_name = "earliest|latest|N", default_value = "latest", value_parser = begin)]
    from: From,
    /// Stop after this many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    #[command(flatten)]
    connect: Connect,
}

fn begin(text: &str) -> Result<From, String> {
    match text {
        "earliest" => Ok(From::Earliest),
        "latest" => Ok(From::Latest),
        other => other
            .parse()
            .map(From::Offset)
            .map_err(|_| "give `earliest`, `latest` or the number of an offset".to_owned()),
    }
}

fn begin_text(from: From) -> String {
    match from {
        From::Earliest => "earliest".to_owned(),
        From::Latest => "latest".to_owned(),
        From::Offset(offset) => offset.to_string(),
    }
}

/// Runs the command.
pub fn run(args: Sub) -> ExitCode {
    args.connect.run(async |client, out| follow(client, out, &args).await)
}

async fn follow(client: Client, out: Out, args: &Sub) -> Outcome {
    let mut stop = Stop::new()?;
    let mut events = tokio::select! {
        biased;
        () = stop.wait_or_unread() => return Ok(()),
        events = client.subscribe(&args.pattern, args.from) => events?,
    };
    let from = begin_text(args.from);
    out.note(
        || json!({ "subscribed": { "pattern": args.pattern, "from": from } }),
        || format!("canal: subscribed to `{}` from {from}; topic, offset, key and payload follow", args.pattern),
    );
    if let From::Offset(offset) = args.from {
        // a replica waits for what is yet to come; who mistyped an offset should not wait with it
        match client.topic_status(&args.pattern).await {
            Ok(status) if offset > status.next => out.note(
                || json!({ "waiting": { "offset": offset, "next": status.next } }),
                || format!("canal: offset {offset} is yet to come; the topic's next is {}", status.next),
            ),
            _ => {}
        }
    }
    let mut left = args.count;
    while left != Some(0) {
        let delivered = tokio::select! {
            biased;
            () = stop.wait_or_unread() => return Ok(()),
            next = events.next() => match next {
                Some(delivered) => delivered?,
                None => return Ok(()),
            },
        };
        out.show(|| event_json(&delivered), || event_text(&delivered))?;
        left = left.map(|left| left - 1);
    }
    Ok(())
}

fn event_json(delivered: &Delivered) -> Value {
    let event = &delivered.event;
    let headers: Vec<Value> = event
        .headers
        .iter()
        .map(|header| {
            let mut map = object(json!({ "name": header.name }));
            put_bytes(&mut map, "value", &header.value);
            Value::Object(map)
        })
        .collect();
    let mut map = object(json!({
        "topic": &*delivered.topic,
        "offset": delivered.offset,
        "headers": headers,
        "time_ms": event.time_ms,
        "trace": event.trace,
        "producer": delivered.producer.to_string(),
        "sequence": delivered.sequence,
    }));
    put_bytes(&mut map, "key", &event.key);
    put_bytes(&mut map, "payload", &event.payload);
    Value::Object(map)
}

fn event_text(delivered: &Delivered) -> String {
    let event = &delivered.event;
    format!("{} {} {} {}", delivered.topic, delivered.offset, word(&event.key), printable(&event.payload))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;
    use canal_sdk::{Event, ProducerId};

    fn delivered(event: Event) -> Delivered {
        Delivered { topic: "a/b".into(), offset: 7, event, producer: ProducerId([0xab; 16]), sequence: 3 }
    }

    #[test]
    fn an_event_is_a_line() {
        assert_eq!(event_text(&delivered(Event::new("21.5 C").with_key("s 1"))), "a/b 7 s\\x201 21.5 C");
        assert_eq!(event_text(&delivered(Event::new(&b"x\n\xff"[..]))), "a/b 7 - x\\n\\xff");
    }

    #[test]
    fn an_event_is_a_json_line() {
        let event = Event { time_ms: 9, ..Event::new(&b"\xff"[..]).with_key("k").with_header("h", "v") };
        assert_eq!(
            event_json(&delivered(event)).to_string(),
            concat!(
                r#"{"headers":[{"name":"h","value":"v","value_base16":false}],"key":"k","key_base16":false,"#,
                r#""offset":7,"payload":"ff","payload_base16":true,"producer":"abababababababababababababababab","#,
                r#""sequence":3,"time_ms":9,"topic":"a/b","trace":""}"#
            )
        );
    }

    #[test]
    fn a_beginning_is_a_word_or_an_offset() {
        for (text, from) in [("earliest", From::Earliest), ("latest", From::Latest), ("12", From::Offset(12))] {
            assert_eq!(begin(text), Ok(from));
            assert_eq!(begin_text(from), text);
        }
        assert!(begin("first").is_err() && begin("-1").is_err());
    }
}
