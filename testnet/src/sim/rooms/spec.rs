//! What groups host: the catalog, which every run has whole and at once, and the room that brings each group its part.
//!
//! The room stands for the catalog's leader, which tells every group until the group has the newest version. A catalog
//! that could be cut off would only be later; so this one is asked where the group is led.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use canal_consensus::{Refused, Reply, Status};
use canal_proto::catalog::{Placement, Start, TriggerInfo};
use canal_proto::log::{FunctionLimits, GroupSpec, Kind, Target, TopicSpec, TriggerSpec};
use canal_proto::{ContentHash, GroupId};

use super::Place;
use super::timer::Timer;
use crate::sim::actors::register;
use crate::sim::around::{Actor, Answer, Around, Failed, Machine, Token};
use crate::sim::dht::Identities;
use crate::sim::setup::{self, GroupPlan, Wish};

/// How often it is looked whether the group has the newest version.
const LOOK_MS: u64 = 300;
/// The trigger that counts events.
pub const COUNT: u64 = 101;
/// The trigger that copies events to another group.
pub const COPY: u64 = 102;
/// The trigger that writes rows of clients again as it has read them.
pub const TOUCH: u64 = 103;
/// Rows of `count`.
pub const COUNT_BUCKET: &str = "count";
/// Rows of `copy`.
pub const COPY_BUCKET: &str = "copy";
/// Runs of one event before it goes to the dead-letter topic.
const ATTEMPTS: u32 = 4;
/// Wait before the second run, in milliseconds.
const BACKOFF_MS: u32 = 60;

/// All that people have asked for.
pub struct Catalog {
    groups: RefCell<BTreeMap<GroupId, Entry>>,
}

struct Entry {
    version: u64,
    first: Vec<Machine>,
    topics: Vec<(u64, String)>,
    wish: Wish,
}

impl Catalog {
    /// With these groups.
    pub fn new(groups: &[GroupPlan]) -> Self {
        let entry = |plan: &GroupPlan| {
            let topics = topics(plan.id);
            (plan.id, Entry { version: 1, first: plan.first.clone(), topics, wish: plan.wish.clone() })
        };
        Self { groups: RefCell::new(groups.iter().map(entry).collect()) }
    }

    /// From now on, a group should have its replicas like this.
    pub fn wish(&self, group: GroupId, wish: Wish) {
        self.change(group, |entry| entry.wish = wish);
    }

    /// From now on, a group hosts one more topic, which nobody publishes to; its id.
    pub fn add_topic(&self, group: GroupId) -> u64 {
        let mut id = 0;
        self.change(group, |entry| {
            id = group.0 * 1000 + entry.topics.len() as u64;
            entry.topics.push((id, format!("more/{id}")));
        });
        id
    }

    /// What a group should have.
    pub fn wished(&self, group: GroupId) -> Wish {
        self.groups.borrow().get(&group).map(|entry| entry.wish.clone()).unwrap_or_default()
    }

    /// The group and the id of a topic.
    pub fn topic(&self, name: &str) -> Option<(GroupId, u64)> {
        let groups = self.groups.borrow();
        let of = |(group, entry): (&GroupId, &Entry)| {
            entry.topics.iter().find(|(_, topic)| topic == name).map(|(id, _)| (*group, *id))
        };
        groups.iter().find_map(of)
    }

    /// The peers with which a group began.
    pub fn first(&self, group: GroupId) -> Vec<Machine> {
        self.groups.borrow().get(&group).map(|entry| entry.first.clone()).unwrap_or_default()
    }

    /// The newest version of what a group hosts.
    pub fn version(&self, group: GroupId) -> u64 {
        self.groups.borrow().get(&group).map_or(0, |entry| entry.version)
    }

    /// What a group hosts, in its newest version.
    pub fn spec(&self, group: GroupId, identities: &Identities) -> Option<GroupSpec> {
        let groups = self.groups.borrow();
        let entry = groups.get(&group)?;
        let topic = |(id, name): &(u64, String)| TopicSpec { id: *id, name: name.clone(), ..TopicSpec::default() };
        let pinned: Vec<_> = entry.wish.pinned.iter().map(|peer| identities.id(*peer).to_vec().into()).collect();
        Some(GroupSpec {
            version: entry.version,
            topics: entry.topics.iter().map(topic).collect(),
            triggers: if group == setup::WORK { triggers() } else { Vec::new() },
            replicas: u32::try_from(entry.wish.replicas).unwrap_or(u32::MAX),
            placement: (!pinned.is_empty()).then(|| Placement { pinned, ..Placement::default() }),
        })
    }

    fn change(&self, group: GroupId, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.groups.borrow_mut().get_mut(&group) {
            change(entry);
            entry.version += 1;
        }
    }
}

/// The topics of a group, by id.
pub fn topics(group: GroupId) -> Vec<(u64, String)> {
    let topic = |id: canal_proto::TopicId, name: &str| (id.0, name.to_owned());
    match group {
        setup::WORK => {
            vec![topic(setup::IN_A, "in/a"), topic(setup::IN_B, "in/b"), topic(setup::DEAD, "$dead/work")]
        }
        setup::OUT => vec![topic(setup::OUT_A, "out/a")],
        setup::LOGS => vec![topic(setup::logs_topic(group), "logs")],
        other => vec![topic(setup::logs_topic(other), &format!("logs/{}", other.0))],
    }
}

fn triggers() -> Vec<TriggerSpec> {
    let trigger = |id, name: &str, pattern: &str, bucket: &str| TriggerSpec {
        info: TriggerInfo {
            id,
            name: name.into(),
            patterns: vec![pattern.into()],
            function: name.into(),
            start: Start::Earliest.into(),
            max_attempts: ATTEMPTS,
            backoff_ms: BACKOFF_MS,
            bucket: bucket.into(),
            ..TriggerInfo::default()
        },
        component: ContentHash::of(name.as_bytes()).to_vec().into(),
        limits: FunctionLimits::default(),
        dead: Target { topic: setup::DEAD.0, group: setup::WORK.0, name: "$dead/work".into() },
    };
    vec![
        trigger(COUNT, "count", "in/+", COUNT_BUCKET),
        trigger(COPY, "copy", "in/b", COPY_BUCKET),
        trigger(TOUCH, "touch", "in/a", register::BUCKET),
    ]
}

/// Brings a group the newest version of its spec, for as long as it is led here.
pub struct Room {
    catalog: Rc<Catalog>,
    identities: Rc<Identities>,
    group: GroupId,
    /// A version is on its way; the number names the proposal.
    asked: Option<Token>,
    tokens: Token,
    timer: Timer,
}

impl Room {
    /// Of a group that has begun to be led.
    pub fn new(place: &Place, status: &Status) -> Self {
        Self {
            catalog: place.catalog.clone(),
            identities: place.identities.clone(),
            group: status.group,
            asked: None,
            tokens: 0,
            timer: Timer::default(),
        }
    }
}

impl Actor for Room {
    fn wake(&mut self, around: &mut dyn Around) {
        let Some(here) = around.replica() else { return };
        if self.asked.is_none()
            && here.status().spec.version < self.catalog.version(self.group)
            && let Some(spec) = self.catalog.spec(self.group, &self.identities)
        {
            self.tokens += 1;
            self.asked = Some(self.tokens);
            here.propose(self.tokens, Kind::Spec(spec));
        }
        let look = around.mono_ms() + LOOK_MS;
        self.timer.wake_at(look, around);
    }

    fn answered(&mut self, _: Token, _: Result<Answer, Failed>, _: &mut dyn Around) {}

    fn proposed(&mut self, token: Token, _: Result<Reply, Refused>, _: &mut dyn Around) {
        self.asked.take_if(|asked| *asked == token);
    }

    fn describe(&self) -> String {
        format!("spec of group {}: version {} should stand", self.group.0, self.catalog.version(self.group))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;
    use crate::sim::rooms::testing::World;

    #[test]
    fn a_group_gets_each_version_once() {
        let mut world = World::new();
        let mut room = Room::new(&world.place(0), &world.here.status);
        room.wake(&mut world);
        room.wake(&mut world);
        let Kind::Spec(spec) = world.here.proposed.remove(0).1 else { panic!("not a spec") };
        assert!(world.here.proposed.is_empty());
        assert_eq!((spec.version, spec.topics.len(), spec.triggers.len()), (1, 3, 3));
        world.here.status.spec = std::sync::Arc::new(spec);
        room.proposed(1, Ok(Reply::Done), &mut world);
        room.wake(&mut world);
        assert!(world.here.proposed.is_empty());
        world.catalog.wish(setup::WORK, Wish { replicas: 5, pinned: vec![1] });
        room.wake(&mut world);
        let Kind::Spec(spec) = world.here.proposed.remove(0).1 else { panic!("not a spec") };
        assert_eq!((spec.version, spec.replicas), (2, 5));
        assert_eq!(spec.placement.unwrap().pinned, [world.identities.id(1).to_vec()]);
        // it is not known whether that was taken: once more
        room.proposed(2, Err(Refused::NotLeader), &mut world);
        room.wake(&mut world);
        assert_eq!(world.here.proposed.len(), 1);
    }
}
