//! How a group is shown.

use std::collections::BTreeMap;

use canal_proto::catalog::Placement;
use canal_proto::log::Step;
use canal_proto::peer::{Replica, Tier};
use canal_proto::request::{GroupStatus, ReplicaProgress};
use canal_proto::{GroupId, PeerId, TopicId};
use serde_json::{Value, json};

use super::{leader_of, peer_text};
use crate::cli::print::{base16, fields, left, moment, name_of, printable, right, size, span, table};

/// Sites by peer.
pub type Sites = BTreeMap<Vec<u8>, String>;

fn progress(status: &GroupStatus, id: u64) -> Option<&ReplicaProgress> {
    status.progress.iter().find(|progress| progress.replica == id)
}

fn peer_of(key: &[u8]) -> Option<String> {
    let text = || PeerId::from_slice(key).map_or_else(|_| base16(key), |peer| peer.to_string());
    (!key.is_empty()).then(text)
}

/// How a group stands, for programs.
pub fn status_json(status: &GroupStatus, names: &BTreeMap<u64, String>) -> Value {
    let replicas: Vec<Value> = status
        .replicas
        .iter()
        .map(|replica| {
            let progress = progress(status, replica.id);
            json!({
                "id": replica.id.to_string(),
                "peer": peer_text(replica),
                "addresses": replica.addresses,
                "leader": replica.id == status.leader,
                "voter": status.voters.contains(&replica.id),
                "matched": progress.map(|progress| progress.matched),
                "silent_ms": progress.map(|progress| progress.silent_ms),
                "filled_by_snapshot": progress.map(|progress| progress.snapshot),
            })
        })
        .collect();
    let topics: Vec<Value> = status
        .topics
        .iter()
        .map(|topic| {
            json!({
                "id": TopicId(topic.id).to_string(),
                "name": names.get(&topic.id),
                "oldest": topic.oldest,
                "next": topic.next,
                "bytes": topic.bytes,
                "producers": topic.producers,
            })
        })
        .collect();
    let triggers: Vec<Value> = status
        .triggers
        .iter()
        .map(|lag| {
            json!({
                "trigger": lag.trigger,
                "topic": lag.topic,
                "low": lag.low,
                "waiting": lag.waiting,
                "parked": lag.parked,
            })
        })
        .collect();
    json!({
        "id": GroupId(status.id).to_string(),
        "name": status.name,
        "replica": status.replica.to_string(),
        "leader": leader_of(&status.replicas, status.leader),
        "term": status.term,
        "committed": status.committed,
        "applied": status.applied,
        "first": status.first,
        "last": status.last,
        "log_bytes": status.log_bytes,
        "epoch": status.epoch,
        "replicas_wanted": status.wanted,
        "replicas": replicas,
        "placement": placement_json(status.placement.as_ref()),
        "under_way": (!status.under_way.is_empty()).then_some(&status.under_way),
        "steps": status.steps.iter().map(step_json).collect::<Vec<_>>(),
        "spec_version": status.spec_version,
        "outbox": status.outbox,
        "topics": topics,
        "triggers": triggers,
    })
}

/// The same with the sites of the replicas, where they are known.
pub fn info_json(status: &GroupStatus, names: &BTreeMap<u64, String>, sites: &Sites) -> Value {
    let mut value = status_json(status, names);
    if let Some(Value::Array(replicas)) = value.get_mut("replicas") {
        for (shown, replica) in replicas.iter_mut().zip(&status.replicas) {
            if let Value::Object(shown) = shown {
                shown.insert("site".to_owned(), sites.get(&replica.peer).cloned().into());
            }
        }
    }
    value
}

fn placement_json(placement: Option<&Placement>) -> Value {
    let Some(placement) = placement else { return Value::Null };
    let labels = placement.labels.iter().map(|label| (label.key.clone(), label.value.clone().into())).collect();
    json!({
        "tier": placement.tier.map(name_of::<Tier>),
        "labels": Value::Object(labels),
        "pinned": placement.pinned.iter().filter_map(|key| peer_of(key)).collect::<Vec<_>>(),
    })
}

fn step_json(step: &Step) -> Value {
    let some = |id: u64| (id != 0).then(|| id.to_string());
    json!({
        "number": step.number,
        "what": step.what,
        "replica": some(step.replica),
        "peer": peer_of(&step.peer),
        "gone": some(step.gone),
        "gone_peer": peer_of(&step.gone_peer),
        "began_ms": step.began_ms,
        "ended_ms": step.ended_ms,
        "took_ms": step.ended_ms.saturating_sub(step.began_ms),
        "stood_still_ms": step.stood_still_ms,
    })
}

fn placement_text(placement: Option<&Placement>) -> String {
    let mut wishes = Vec::new();
    if let Some(placement) = placement {
        wishes.extend(placement.tier.map(|tier| format!("tier {}", name_of::<Tier>(tier))));
        let labels = placement.labels.iter();
        wishes.extend(labels.map(|label| printable(format!("label {}={}", label.key, label.value).as_bytes())));
        wishes.extend(placement.pinned.iter().filter_map(|key| peer_of(key)).map(|peer| format!("peer {peer}")));
    }
    if wishes.is_empty() { "anywhere, spread over sites".to_owned() } else { wishes.join(", ") }
}

/// How a group stands, for people.
pub fn info_text(status: &GroupStatus, names: &BTreeMap<u64, String>, sites: &Sites) -> String {
    let under_way = if status.under_way.is_empty() { "nothing".to_owned() } else { status.under_way.clone() };
    let log = format!(
        "applied {} of {} committed; {} to {} are in the log, {}",
        status.applied,
        status.committed,
        status.first,
        status.last,
        size(status.log_bytes)
    );
    let mut text = fields([
        ("group", status.name.clone()),
        ("id", GroupId(status.id).to_string()),
        ("answered by", format!("replica {}", status.replica)),
        ("leader", leader_of(&status.replicas, status.leader).unwrap_or_else(|| "none just now".to_owned())),
        ("term", status.term.to_string()),
        ("log", log),
        ("epoch", status.epoch.to_string()),
        ("replicas", format!("{} of {} wanted", status.voters.len(), status.wanted)),
        ("placed", placement_text(status.placement.as_ref())),
        // only the leader knows
        ("under way", if status.replica == status.leader { under_way } else { "ask the leader".to_owned() }),
        ("outbox", status.outbox.to_string()),
    ]);
    text.push_str(&format!("\n{}", replicas_text(status, sites)));
    if !status.topics.is_empty() {
        let rows = status.topics.iter().map(|topic| {
            let name = names.get(&topic.id).cloned().unwrap_or_else(|| TopicId(topic.id).to_string());
            [name, topic.oldest.to_string(), topic.next.to_string(), size(topic.bytes), topic.producers.to_string()]
        });
        let columns = [left("TOPIC"), right("OLDEST"), right("NEXT"), right("PAYLOAD"), right("PRODUCERS")];
        text.push_str(&format!("\n{}", table(columns, rows)));
    }
    if !status.triggers.is_empty() {
        let rows = status.triggers.iter().map(|lag| {
            [
                lag.trigger.clone(),
                lag.topic.clone(),
                lag.low.to_string(),
                lag.waiting.to_string(),
                lag.parked.to_string(),
            ]
        });
        let columns = [left("TRIGGER"), left("TOPIC"), right("HANDLED BELOW"), right("WAITING"), right("PARKED")];
        text.push_str(&format!("\n{}", table(columns, rows)));
    }
    if !status.steps.is_empty() {
        text.push_str(&format!("\n{}", steps_text(&status.steps)));
    }
    text
}

fn replicas_text(status: &GroupStatus, sites: &Sites) -> String {
    let row = |replica: &Replica| {
        let role = match (replica.id == status.leader, status.voters.contains(&replica.id)) {
            (true, _) => "leader",
            (false, true) => "voter",
            (false, false) => "learner",
        };
        let progress = progress(status, replica.id);
        let has = match progress {
            Some(progress) if progress.snapshot => "snapshot".to_owned(),
            Some(progress) => progress.matched.to_string(),
            None => "-".to_owned(),
        };
        let silent = progress.map_or("-".to_owned(), |progress| span(progress.silent_ms.saturating_mul(1000)));
        let site = sites.get(&replica.peer).map_or("-".to_owned(), |site| printable(site.as_bytes()));
        [replica.id.to_string(), role.to_owned(), peer_text(replica), site, has, silent, replica.addresses.join(",")]
    };
    let columns =
        [right("REPLICA"), left("ROLE"), left("PEER"), left("SITE"), right("HAS"), right("SILENT"), left("ADDRESSES")];
    table(columns, status.replicas.iter().map(row))
}

fn steps_text(steps: &[Step]) -> String {
    let row = |step: &Step| {
        let one = |id: u64, key: &[u8]| match (id, peer_of(key)) {
            (0, _) => "-".to_owned(),
            (id, Some(peer)) => format!("{id} on {peer}"),
            (id, None) => id.to_string(),
        };
        [
            step.number.to_string(),
            moment(step.ended_ms),
            printable(step.what.as_bytes()),
            one(step.replica, &step.peer),
            one(step.gone, &step.gone_peer),
            span(step.ended_ms.saturating_sub(step.began_ms).saturating_mul(1000)),
            span(step.stood_still_ms.saturating_mul(1000)),
        ]
    };
    let columns =
        [right("STEP"), left("DONE"), left("WHAT"), left("CAME"), left("WENT"), right("TOOK"), right("STOOD STILL")];
    table(columns, steps.iter().map(row))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;
    use canal_proto::peer::Label;
    use canal_proto::request::{TopicStatus, TriggerLag};

    fn replica(id: u64) -> Replica {
        Replica { id, peer: vec![u8::try_from(id).unwrap(); 32], addresses: vec![format!("/ip4/10.0.0.{id}")] }
    }

    fn peer(id: u8) -> String {
        PeerId::from_public_key([id; 32]).to_string()
    }

    fn status() -> GroupStatus {
        GroupStatus {
            id: 255,
            name: "g".into(),
            replica: 2,
            leader: 2,
            term: 4,
            committed: 10,
            applied: 9,
            first: 3,
            last: 11,
            log_bytes: 2048,
            epoch: 5,
            replicas: vec![replica(1), replica(2)],
            voters: vec![2],
            wanted: 3,
            spec_version: 6,
            outbox: 1,
            under_way: "replica 1 catches up: it has 4 of 10".into(),
            placement: Some(Placement {
                tier: Some(Tier::Cloud.into()),
                labels: vec![Label { key: "disk".into(), value: "fast".into() }],
                pinned: vec![vec![1; 32].into()],
            }),
            progress: vec![
                ReplicaProgress { replica: 1, matched: 4, silent_ms: 12, snapshot: false },
                ReplicaProgress { replica: 2, matched: 11, silent_ms: 0, snapshot: false },
            ],
            steps: vec![Step {
                number: 7,
                what: "replaced".into(),
                replica: 2,
                peer: vec![2; 32].into(),
                gone: 3,
                gone_peer: vec![3; 32].into(),
                began_ms: 1000,
                ended_ms: 2500,
                stood_still_ms: 40,
                report: None,
            }],
            topics: vec![TopicStatus { id: 7, group: 255, next: 3, producers: 1, bytes: 12, ..TopicStatus::default() }],
            triggers: vec![TriggerLag { trigger: "x".into(), topic: "t".into(), low: 2, waiting: 1, parked: 1 }],
            ..GroupStatus::default()
        }
    }

    #[test]
    fn a_group_is_shown() {
        let status = status();
        let names = BTreeMap::from([(7, "t".to_owned())]);
        let sites = BTreeMap::from([(vec![2; 32], "berlin".to_owned())]);
        let (one, two, three) = (peer(1), peer(2), peer(3));
        assert_eq!(
            info_text(&status, &names, &sites),
            format!(
                "group        g\n\
                 id           00000000000000ff\n\
                 answered by  replica 2\n\
                 leader       {two}\n\
                 term         4\n\
                 log          applied 9 of 10 committed; 3 to 11 are in the log, 2.0 KiB\n\
                 epoch        5\n\
                 replicas     1 of 3 wanted\n\
                 placed       tier cloud, label disk=fast, peer {one}\n\
                 under way    replica 1 catches up: it has 4 of 10\n\
                 outbox       1\n\
                 \n\
                 REPLICA  ROLE     PEER                                                  SITE    HAS   SILENT  ADDRESSES\n      \
                 1  learner  {one}  -         4  12.0 ms  /ip4/10.0.0.1\n      \
                 2  leader   {two}  berlin   11     0 µs  /ip4/10.0.0.2\n\
                 \n\
                 TOPIC  OLDEST  NEXT  PAYLOAD  PRODUCERS\n\
                 t           0     3     12 B          1\n\
                 \n\
                 TRIGGER  TOPIC  HANDLED BELOW  WAITING  PARKED\n\
                 x        t                  2        1       1\n\
                 \n\
                 STEP  DONE                  WHAT      CAME                                                       \
                 WENT                                                        TOOK  STOOD STILL\n   \
                 7  1970-01-01 00:00:02Z  replaced  2 on {two}  3 on {three}  1.5 s      40.0 ms\n"
            )
        );
    }

    #[test]
    fn a_group_is_told_to_programs() {
        let status = status();
        let names = BTreeMap::from([(7, "t".to_owned())]);
        let sites = BTreeMap::from([(vec![2; 32], "berlin".to_owned())]);
        let json = info_json(&status, &names, &sites);
        assert_eq!(json["leader"], peer(2));
        assert_eq!(json["topics"][0]["name"], "t");
        assert_eq!((&json["replicas"][0]["voter"], &json["replicas"][0]["site"]), (&false.into(), &Value::Null));
        assert_eq!(json["replicas"][1]["site"], "berlin");
        assert_eq!((&json["replicas"][0]["matched"], &json["replicas"][0]["silent_ms"]), (&4.into(), &12.into()));
        assert_eq!(json["placement"], json!({ "tier": "cloud", "labels": { "disk": "fast" }, "pinned": [peer(1)] }));
        assert_eq!(
            json["steps"],
            json!([{
                "number": 7, "what": "replaced", "replica": "2", "peer": peer(2), "gone": "3", "gone_peer": peer(3),
                "began_ms": 1000, "ended_ms": 2500, "took_ms": 1500, "stood_still_ms": 40,
            }])
        );
        let mut fields: Vec<_> = json.as_object().unwrap().keys().cloned().collect();
        fields.sort();
        assert_eq!(
            fields.join(" "),
            "applied committed epoch first id last leader log_bytes name outbox placement replica replicas \
             replicas_wanted spec_version steps term topics triggers under_way"
        );
        // a follower knows neither how far the others are nor what is under way
        let follower = GroupStatus { replica: 1, progress: Vec::new(), under_way: String::new(), ..status };
        let json = status_json(&follower, &names);
        assert_eq!((&json["replicas"][0]["matched"], &json["under_way"]), (&Value::Null, &Value::Null));
    }
}
