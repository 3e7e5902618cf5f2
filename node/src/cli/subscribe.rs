//! `canal sub`: prints events as they come.
//!
//! A line each, flushed at once. It ends with success after `--count` events, at a signal, or when nobody reads its
//! output any more. With `--durable`, what was printed is handled, and is not printed again by the next run of that name.
//! When it is far behind it says so, beside the output.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use canal_sdk::{Client, Delivered, From, Lag, Lost, SubscribeOptions, Subscription};
use clap::Args;
use futures::StreamExt;
use serde_json::{Value, json};

use super::connect::{Connect, Outcome};
use super::print::{Out, object, printable, put_bytes, word};
use super::stop::Stop;

/// How often it is said that it lags.
const LAG_EVERY: Duration = Duration::from_secs(5);
/// Events behind which are worth a word: fewer are on their way at any time.
const LAG_WORTH: u64 = 100;

/// Flags of `canal sub`.
#[derive(Debug, Args)]
pub struct Sub {
    /// Name of a topic, or a pattern: `+` is one level, `#` the rest
    #[arg(value_name = "TOPIC|PATTERN")]
    pattern: String,
    /// Go on where the last run of this name ended; the group keeps how far it was. With a pattern, in each topic
    #[arg(long, value_name = "NAME")]
    durable: Option<String>,
    /// Where to begin, or where a new durable subscription begins: earliest, latest (with the next event), or an offset
    /// (of one topic)
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
    let options = SubscribeOptions { from: args.from, durable: args.durable.clone(), ..SubscribeOptions::default() };
    let mut events = tokio::select! {
        biased;
        () = stop.wait_or_unread() => return Ok(()),
        events = client.subscribe_with(&args.pattern, options) => events?,
    };
    let from = begin_text(args.from);
    match &args.durable {
        Some(name) => out.note(
            || json!({ "subscribed": { "pattern": args.pattern, "durable": name, "lag": events.lag().total() } }),
            || {
                let behind = events.lag().total();
                let pattern = &args.pattern;
                format!("canal: `{name}` goes on in `{pattern}`, {behind} events behind; topic, offset, key and payload follow")
            },
        ),
        None => out.note(
            || json!({ "subscribed": { "pattern": args.pattern, "from": from } }),
            || format!("canal: subscribed to `{}` from {from}; topic, offset, key and payload follow", args.pattern),
        ),
    }
    if let (From::Offset(offset), None) = (args.from, &args.durable) {
        // a replica waits for what is yet to come; who mistyped an offset should not wait with it
        match client.topic_status(&args.pattern).await {
            Ok(status) if offset > status.next => out.note(
                || json!({ "waiting": { "offset": offset, "next": status.next } }),
                || format!("canal: offset {offset} is yet to come; the topic's next is {}", status.next),
            ),
            _ => {}
        }
    }
    let printed = print(&mut events, out, args.count, &mut stop).await;
    let closed = tokio::select! {
        biased;
        closed = events.close() => closed,
        () = stop.wait() => Ok(()),
    };
    printed?;
    Ok(closed?)
}

async fn print(events: &mut Subscription, out: Out, count: Option<u64>, stop: &mut Stop) -> Outcome {
    let mut left = count;
    let mut said = Instant::now();
    while left != Some(0) {
        let delivered = tokio::select! {
            biased;
            () = stop.wait_or_unread() => return Ok(()),
            next = events.next() => match next {
                Some(delivered) => delivered?,
                None => return Ok(()),
            },
        };
        for lost in events.take_lost() {
            out.note(|| lost_json(&lost), || lost_text(&lost));
        }
        out.show(|| event_json(&delivered), || event_text(&delivered))?;
        events.handled(&delivered);
        left = left.map(|left| left - 1);
        if said.elapsed() >= LAG_EVERY {
            said = Instant::now();
            let lag = events.lag();
            if lag.total() >= LAG_WORTH {
                out.note(|| lag_json(&lag), || format!("canal: {} events behind", lag.total()));
            }
        }
    }
    Ok(())
}

fn lag_json(lag: &Lag) -> Value {
    let topics: Vec<Value> = lag
        .topics
        .iter()
        .filter(|topic| topic.events() > 0)
        .map(|topic| json!({ "topic": &*topic.topic, "next": topic.next, "head": topic.head, "lag": topic.events() }))
        .collect();
    json!({ "lag": { "total": lag.total(), "topics": topics } })
}

fn lost_json(lost: &Lost) -> Value {
    json!({ "lost": { "topic": &*lost.topic, "first": lost.first, "end": lost.end } })
}

fn lost_text(lost: &Lost) -> String {
    let (count, last) = (lost.end - lost.first, lost.end.saturating_sub(1));
    format!(
        "canal: {count} events of `{}` are gone, offsets {} to {last}: they were not kept so long",
        lost.topic, lost.first
    )
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
    fn lag_and_loss_are_said() {
        let topic = |name: &str, next, head| canal_sdk::TopicLag {
            topic: name.into(),
            id: canal_sdk::TopicId(1),
            oldest: 0,
            next,
            head,
        };
        let lag = Lag { topics: vec![topic("a", 2, 9), topic("b", 5, 5)] };
        assert_eq!(
            lag_json(&lag).to_string(),
            r#"{"lag":{"topics":[{"head":9,"lag":7,"next":2,"topic":"a"}],"total":7}}"#
        );
        let lost = Lost { topic: "a".into(), first: 3, end: 7 };
        assert_eq!(lost_json(&lost).to_string(), r#"{"lost":{"end":7,"first":3,"topic":"a"}}"#);
        assert_eq!(lost_text(&lost), "canal: 4 events of `a` are gone, offsets 3 to 6: they were not kept so long");
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
