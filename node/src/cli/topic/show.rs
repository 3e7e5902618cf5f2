//! How topics are shown.

use std::time::Duration;

use canal_proto::catalog::{Retention, TopicInfo};
use canal_proto::log::Subscription;
use canal_proto::request::TopicStatus;
use canal_proto::{GroupId, TopicId};
use serde_json::{Value, json};

use crate::cli::print::{fields, left, moment, object, right, size, table};
use crate::config::Span;

/// A topic as the catalog has it.
pub fn topic_json(topic: &TopicInfo) -> Value {
    json!({
        "id": TopicId(topic.id).to_string(),
        "name": topic.name,
        "group": GroupId(topic.group).to_string(),
        "group_name": topic.group_name,
        "created_ms": topic.created_ms,
        "retention": retention_json(topic.retention),
    })
}

/// A list of topics.
pub fn topics_text(topics: &[TopicInfo]) -> String {
    let row = |topic: &TopicInfo| [topic.name.clone(), topic.group_name.clone(), moment(topic.created_ms)];
    table([left("NAME"), left("GROUP"), left("CREATED")], topics.iter().map(row))
}

/// How long events are kept: the bounds that there are, or null.
pub fn retention_json(retention: Option<Retention>) -> Value {
    let bound = |bound: u64| if bound == 0 { Value::Null } else { bound.into() };
    retention.map_or(Value::Null, |retention| {
        json!({
            "events": bound(retention.events),
            "bytes": bound(retention.bytes),
            "age_ms": bound(retention.age_ms),
        })
    })
}

/// How long events are kept.
pub fn retention_text(retention: Option<Retention>) -> String {
    let retention = retention.unwrap_or_default();
    let bounds = [
        (retention.events > 0).then(|| format!("{} events", retention.events)),
        (retention.bytes > 0).then(|| size(retention.bytes)),
        (retention.age_ms > 0).then(|| Span(Duration::from_millis(retention.age_ms)).to_string()),
    ];
    let bounds: Vec<String> = bounds.into_iter().flatten().collect();
    if bounds.is_empty() { "everything".to_owned() } else { format!("at most {}", bounds.join(", ")) }
}

/// How a topic stands.
pub fn info_json(topic: &TopicInfo, status: &TopicStatus) -> Value {
    let subscription = |subscription: &Subscription| {
        json!({
            "name": subscription.name,
            "next": subscription.next,
            "lag": status.next.saturating_sub(subscription.next),
            "changed_ms": subscription.changed_ms,
        })
    };
    let mut map = object(topic_json(topic));
    let held_by = (!status.held_by.is_empty()).then(|| status.held_by.clone());
    map.extend(object(json!({
        "oldest": status.oldest,
        "next": status.next,
        "sealed": status.sealed,
        "bytes": status.bytes,
        "kept_bytes": status.kept_bytes,
        "segments": status.segments,
        "segment_bytes": status.segment_bytes,
        "held_by": held_by,
        "producers": status.producers,
        "subscriptions": status.subscriptions.iter().map(subscription).collect::<Vec<_>>(),
    })));
    Value::Object(map)
}

/// How a topic stands.
pub fn info_text(topic: &TopicInfo, status: &TopicStatus) -> String {
    let held_by = if status.held_by.is_empty() {
        String::new()
    } else {
        format!(", but trigger `{}` has yet to handle older ones", status.held_by)
    };
    let mut text = fields([
        ("topic", topic.name.clone()),
        ("id", TopicId(topic.id).to_string()),
        ("group", format!("{} ({})", topic.group_name, GroupId(topic.group))),
        ("created", moment(topic.created_ms)),
        ("oldest offset", status.oldest.to_string()),
        ("next offset", status.next.to_string()),
        ("payload", format!("{}, {} of it kept", size(status.bytes), size(status.kept_bytes))),
        ("in segments", format!("before offset {}", status.sealed)),
        ("segments", format!("{}, {}", status.segments, size(status.segment_bytes))),
        ("keeps", format!("{}{held_by}", retention_text(topic.retention))),
        ("producers", status.producers.to_string()),
    ]);
    if !status.subscriptions.is_empty() {
        let row = |subscription: &Subscription| {
            let lag = status.next.saturating_sub(subscription.next);
            let Subscription { name, next, changed_ms, .. } = subscription;
            [name.clone(), next.to_string(), lag.to_string(), moment(*changed_ms)]
        };
        let columns = [left("SUBSCRIPTION"), right("NEXT"), right("LAG"), left("MOVED")];
        text.push_str(&format!("\n{}", table(columns, status.subscriptions.iter().map(row))));
    }
    text
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
            concat!(
                r#"{"created_ms":1767225600000,"group":"00000000000000ff","group_name":"default","#,
                r#""id":"000000000000000a","name":"plant/t","retention":null}"#
            )
        );
    }

    #[test]
    fn a_retention_is_shown_by_its_bounds() {
        assert_eq!(retention_text(None), "everything");
        let retention = Retention { events: 9, bytes: 2048, age_ms: 300_000 };
        assert_eq!(retention_text(Some(retention)), "at most 9 events, 2.0 KiB, 5m");
        let events = Retention { events: 9, ..Retention::default() };
        assert_eq!(retention_text(Some(events)), "at most 9 events");
        assert_eq!(retention_json(Some(events)), json!({ "events": 9, "bytes": null, "age_ms": null }));
    }

    #[test]
    fn a_topic_is_shown() {
        let status = TopicStatus {
            id: 10,
            group: 255,
            oldest: 2,
            next: 7,
            producers: 1,
            bytes: 2048,
            kept_bytes: 1024,
            sealed: 5,
            segments: 1,
            segment_bytes: 3072,
            held_by: "t".into(),
            subscriptions: vec![Subscription {
                name: "s".into(),
                next: 4,
                changed_ms: 1_767_225_600_000,
                ..Subscription::default()
            }],
            ..TopicStatus::default()
        };
        let topic = TopicInfo { retention: Some(Retention { events: 3, ..Retention::default() }), ..topic() };
        assert_eq!(
            info_text(&topic, &status),
            "topic          plant/t\n\
             id             000000000000000a\n\
             group          default (00000000000000ff)\n\
             created        2026-01-01 00:00:00Z\n\
             oldest offset  2\n\
             next offset    7\n\
             payload        2.0 KiB, 1.0 KiB of it kept\n\
             in segments    before offset 5\n\
             segments       1, 3.0 KiB\n\
             keeps          at most 3 events, but trigger `t` has yet to handle older ones\n\
             producers      1\n\
             \n\
             SUBSCRIPTION  NEXT  LAG  MOVED\n\
             s                4    3  2026-01-01 00:00:00Z\n"
        );
        let json = info_json(&topic, &status);
        let numbers = ["oldest", "next", "sealed", "bytes", "kept_bytes", "segments", "segment_bytes"];
        assert_eq!(numbers.map(|name| json[name].as_u64().unwrap()), [2, 7, 5, 2048, 1024, 1, 3072]);
        assert_eq!((json["held_by"].as_str(), json["retention"]["events"].as_u64()), (Some("t"), Some(3)));
        let subscription = json!([{ "name": "s", "next": 4, "lag": 3, "changed_ms": 1_767_225_600_000u64 }]);
        assert_eq!(json["subscriptions"], subscription);
    }
}
