//! Steps: what became of a group's replicas is recorded in the group, and told on the topic `$mesh/steps`.
//!
//! A record is an entry of the group like any other; its report travels through the group's outbox, so it is told once,
//! whoever dies. A step whose leader dies between the step and its record is not recorded: nothing depends on it.
//!
//! The report is JSON: `group`, `group_name`, `what` (`joined`, `replaced`, `moved`, `removed`, `handed-over`), `replica` and
//! `peer` (who came, or leads), `gone` and `gone_peer` (who went, or led), each null where there is none, `began_ms` and
//! `ended_ms` since 1970-01-01 UTC, `took_ms`, and `stood_still_ms`: how long publishing stood still for it. Its key is
//! the group's id.

use std::sync::Arc;
use std::time::Duration;

use canal_consensus::{GroupHandle, Refused, Status};
use canal_proto::catalog::{Change, CreateTopic, Retention, TopicInfo};
use canal_proto::event::Event;
use canal_proto::log::{Emit, Kind, Step, Target};
use canal_proto::{GroupId, PeerId, TopicName};
use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, sleep, timeout};

use crate::node::{Node, now_ms};

/// Records that wait: steps take seconds each.
pub const MAX_WAITING: usize = 16;
/// How long the topic is looked for before a step is recorded without a report.
const FIND: Duration = Duration::from_secs(15);
/// How long the topic is believed to be where it was found.
const KNOWN: Duration = Duration::from_secs(60);
/// Wait before a record that was not taken is proposed again.
const RETRY: Duration = Duration::from_millis(300);
/// How often a record is proposed.
const TRIES: u32 = 10;
/// How long after a hand-over its record waits for publishers to come back: what they waited is known only then.
const COME_BACK: Duration = Duration::from_millis(1500);
/// Reports that are kept: months of a mesh of some hundred groups.
const KEPT: u64 = 100_000;

/// Where reports go.
#[derive(Default)]
pub struct Reports {
    topic: Mutex<Option<(Target, Instant)>>,
}

/// The leader before.
#[derive(Debug, Clone)]
pub struct Before {
    replica: u64,
    peer: Vec<u8>,
    /// When it was last heard of, in milliseconds since 1970; known when it has gone.
    heard_ms: Option<u64>,
}

impl Before {
    /// Follows what a replica sees of its leaders.
    pub fn follow(before: &mut Option<Self>, group: &GroupHandle, status: &Status) {
        if status.leader != 0 && status.leader != status.replica {
            let replica = status.configuration.replicas.iter().find(|replica| replica.id == status.leader);
            let peer = replica.map(|replica| replica.peer.clone()).unwrap_or_default();
            *before = Some(Self { replica: status.leader, peer, heard_ms: None });
        } else if let Some(before) = before
            && before.heard_ms.is_none()
        {
            before.heard_ms = Some(now_ms().saturating_sub(group.silent_ms(before.replica)));
        }
    }

    /// The record of the hand-over to this replica, which has just begun to lead.
    fn record(self, node: &Node, group: &GroupHandle) -> Step {
        let ended_ms = now_ms();
        Step {
            what: "handed-over".into(),
            replica: group.status().replica,
            peer: node.id.to_vec().into(),
            gone: self.replica,
            gone_peer: self.peer.into(),
            began_ms: self.heard_ms.unwrap_or(ended_ms),
            ended_ms,
            ..Step::default()
        }
    }
}

/// How long publishing stood still, for two who ask at different times: [`GroupHandle::stall`] tells each time once.
pub struct Stalls {
    group: GroupHandle,
    longest: parking_lot::Mutex<(u64, u64)>,
}

impl Stalls {
    /// For this group.
    pub fn new(group: GroupHandle) -> Self {
        Self { group, longest: parking_lot::Mutex::default() }
    }

    fn poll(&self) -> parking_lot::MutexGuard<'_, (u64, u64)> {
        let now = self.group.stall();
        let mut longest = self.longest.lock();
        *longest = (longest.0.max(now), longest.1.max(now));
        longest
    }

    /// The longest time since the hand-over.
    fn of_hand_over(&self) -> u64 {
        std::mem::take(&mut self.poll().0)
    }

    /// The longest time since the last call.
    pub fn of_step(&self) -> u64 {
        std::mem::take(&mut self.poll().1)
    }
}

/// Records the steps of a group for as long as it is led here; the first is that it came here, if it was led elsewhere.
pub async fn run(
    node: Arc<Node>,
    group: GroupHandle,
    reports: Arc<Reports>,
    before: Option<Before>,
    stalls: Arc<Stalls>,
    mut steps: mpsc::Receiver<Step>,
) {
    if let Some(before) = before {
        let step = before.record(&node, &group);
        sleep(COME_BACK).await;
        let step = Step { stood_still_ms: stalls.of_hand_over(), ..step };
        record(&node, &group, &reports, step).await;
    }
    while let Some(step) = steps.recv().await {
        record(&node, &group, &reports, step).await;
    }
}

async fn record(node: &Node, group: &GroupHandle, reports: &Reports, mut step: Step) {
    let name = &group.seed().name;
    match timeout(FIND, reports.target(node)).await {
        Ok(target) => step.report = Some(report(group.id(), name, &step, target)),
        Err(_) => tracing::debug!(group = %name, "a step is recorded without a report: its topic can't be found"),
    }
    for _ in 0..TRIES {
        match group.propose(Kind::Step(step.clone())).await {
            Ok(_) => return,
            // whoever leads now goes on, and has a step of its own to record
            Err(canal_consensus::Error::Refused(Refused::NotLeader | Refused::Uncertain)) => return,
            Err(error) => tracing::debug!(group = %name, %error, "a step is not recorded yet"),
        }
        sleep(RETRY).await;
    }
    tracing::warn!(group = %name, what = step.what, "a step could not be recorded");
}

impl Reports {
    /// The topic, created when it is missing.
    async fn target(&self, node: &Node) -> Target {
        // one looks for it, the others wait
        let mut topic = self.topic.lock().await;
        loop {
            if let Some((target, since)) = topic.as_ref()
                && since.elapsed() < KNOWN
            {
                return target.clone();
            }
            match find_or_create(node).await {
                Ok(info) => {
                    let target = Target { topic: info.id, group: info.group, name: info.name };
                    *topic = Some((target, Instant::now()));
                }
                Err(error) => {
                    tracing::debug!(%error, "the topic of steps can't be found just now");
                    sleep(RETRY).await;
                }
            }
        }
    }
}

async fn find_or_create(node: &Node) -> anyhow::Result<TopicInfo> {
    let name = TopicName::STEPS;
    let view = node.client.catalog(name, &["topics"], true).await?;
    if let Some(info) = view.topics.into_iter().find(|topic| topic.name == name) {
        return Ok(info);
    }
    let retention = Some(Retention { events: KEPT, ..Retention::default() });
    let create = CreateTopic { name: name.into(), retention, ..CreateTopic::default() };
    let created = node.client.change(Change::CreateTopic(create)).await?.topic;
    created.ok_or_else(|| anyhow::anyhow!("the catalog gave another answer"))
}

fn report(group: GroupId, name: &str, step: &Step, target: Target) -> Emit {
    let some = |id: u64| if id == 0 { Value::Null } else { id.to_string().into() };
    let peer = |bytes: &[u8]| PeerId::from_slice(bytes).map_or(Value::Null, |peer| peer.to_string().into());
    let payload = json!({
        "group": group.to_string(),
        "group_name": name,
        "what": step.what,
        "replica": some(step.replica),
        "peer": peer(&step.peer),
        "gone": some(step.gone),
        "gone_peer": peer(&step.gone_peer),
        "began_ms": step.began_ms,
        "ended_ms": step.ended_ms,
        "took_ms": step.ended_ms.saturating_sub(step.began_ms),
        "stood_still_ms": step.stood_still_ms,
    });
    let event = Event::new(payload.to_string()).with_key(group.to_string());
    Emit { target: target.clone(), event, dead: target }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn a_report_is_as_documented() {
        let step = Step {
            what: "replaced".into(),
            replica: 4,
            peer: vec![4; 32].into(),
            gone: 2,
            gone_peer: vec![2; 32].into(),
            began_ms: 1000,
            ended_ms: 1500,
            stood_still_ms: 7,
            ..Step::default()
        };
        let target = Target { topic: 9, group: 8, name: TopicName::STEPS.into() };
        let emit = report(GroupId(255), "g", &step, target.clone());
        assert_eq!((&emit.target, &emit.dead), (&target, &target));
        assert_eq!(emit.event.key, "00000000000000ff");
        let (four, two) = (PeerId::from_public_key([4; 32]), PeerId::from_public_key([2; 32]));
        assert_eq!(
            serde_json::from_slice::<Value>(&emit.event.payload).unwrap(),
            json!({
                "group": "00000000000000ff", "group_name": "g", "what": "replaced", "replica": "4", "peer": four.to_string(),
                "gone": "2", "gone_peer": two.to_string(), "began_ms": 1000, "ended_ms": 1500, "took_ms": 500,
                "stood_still_ms": 7,
            })
        );
        let joined = Step { gone: 0, gone_peer: Vec::new().into(), ..step };
        let payload: Value = serde_json::from_slice(&report(GroupId(255), "g", &joined, target).event.payload).unwrap();
        assert_eq!((&payload["gone"], &payload["gone_peer"]), (&Value::Null, &Value::Null));
    }
}
