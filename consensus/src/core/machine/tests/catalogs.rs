//! The catalog: what is created, refused and removed, and which groups have to hear of it.

use canal_proto::ContentHash;
use canal_proto::catalog::{
    BlobChunk, CatalogCommand, Change, CreateTopic, FunctionInfo, GroupInfo, Placement, Retention, SetGroup, SetPaused,
    SetTopic, TopicInfo,
};
use canal_proto::peer::{Label, Replica, Tier};

use super::*;

fn place() -> Vec<Replica> {
    (1..=4).map(|id| Replica { id, peer: vec![id as u8; 32], addresses: vec![] }).collect()
}

fn topic(name: &str, group: &str, replicas: u32) -> Change {
    Change::CreateTopic(CreateTopic { name: name.into(), group: group.into(), replicas, ..CreateTopic::default() })
}

fn chunk(whole: &[u8], number: u32, data: &'static str) -> Change {
    Change::PutChunk(BlobChunk { hash: ContentHash::of(whole).to_vec().into(), number, data: data.into() })
}

fn function(whole: &[u8]) -> FunctionInfo {
    FunctionInfo { name: "f".into(), component: ContentHash::of(whole).to_vec().into(), ..FunctionInfo::default() }
}

fn fires(name: &str, pattern: &str) -> TriggerInfo {
    let name = name.to_owned();
    TriggerInfo { name, patterns: vec![pattern.into()], function: "f".into(), ..TriggerInfo::default() }
}

impl Bench {
    fn change(&mut self, change: Change) -> Result<CatalogReply, WireError> {
        let command = CatalogCommand { change: Some(change), placement: place() };
        match self.run(Kind::Catalog(command)) {
            (Reply::Catalog(result), effects) => {
                assert_eq!(effects, [Effect::Catalog]);
                *result
            }
            other => panic!("{other:?}"),
        }
    }

    /// The names of the groups that a change touched; their rows must say so with this entry's index.
    #[track_caller]
    fn touches(&mut self, change: Change) -> Vec<String> {
        let groups = self.change(change).unwrap().groups;
        for group in &groups {
            assert_eq!(group.spec_version, self.index);
            assert_eq!(self.group(group.id).as_ref(), Some(group));
        }
        groups.into_iter().map(|group| group.name).collect()
    }

    /// Asserts that a change is refused like this, and changes nothing.
    #[track_caller]
    fn refused(&mut self, change: Change, code: Code, message: &str) {
        let before = self.kv.snapshot();
        assert_eq!(self.change(change), Err(WireError::new(code, message)));
        assert_eq!(self.kv.snapshot(), before);
    }

    /// Asserts that a change finds what it wants.
    #[track_caller]
    fn existed(&mut self, change: Change) {
        let before = self.kv.snapshot();
        let reply = self.change(change).unwrap();
        assert!(reply.existed && reply.groups.is_empty());
        assert_eq!(self.kv.snapshot(), before);
    }

    fn group(&self, id: u64) -> Option<GroupInfo> {
        self.row(keys().make(Table::CatalogGroups, &[&id.to_be_bytes()]))
    }

    fn spec_of(&self, id: u64) -> Option<GroupSpec> {
        group_spec(&Txn::new(GROUP, &self.kv, &mut WriteBatch::default()), GroupId(id)).unwrap()
    }

    fn deployed() -> Self {
        let mut bench = Self::default();
        bench.change(chunk(b"abc", 0, "abc")).unwrap();
        bench.change(Change::Deploy(function(b"abc"))).unwrap();
        bench
    }
}

#[test]
fn a_topic_is_created_with_its_group() {
    let mut bench = Bench::default();
    let reply = bench.change(topic("a/b", "", 0)).unwrap();
    let id = GroupId::of_entry(MESH, "n", 1).0;
    let first = place()[..3].to_vec();
    let group = GroupInfo {
        id,
        name: "default".into(),
        replicas: 3,
        first,
        active: false,
        spec_version: 1,
        ..GroupInfo::default()
    };
    let info = TopicInfo {
        id: 1,
        name: "a/b".into(),
        group: id,
        group_name: "default".into(),
        created_ms: 1000,
        ..TopicInfo::default()
    };
    let want = CatalogReply { topic: Some(info), groups: vec![group.clone()], ..CatalogReply::default() };
    assert_eq!(reply, want);
    assert_eq!(bench.group(id), Some(group));
    for same in [topic("a/b", "", 0), topic("a/b", "default", 0), topic("a/b", "", 3)] {
        bench.existed(same);
    }
    let other = "topic `a/b` exists in group `default` with 3 replicas; remove it first, or use it as it is";
    bench.refused(topic("a/b", "g", 0), Code::AlreadyExists, other);
    bench.refused(topic("a/b", "", 5), Code::AlreadyExists, other);
    assert_eq!(bench.touches(topic("c", "", 1)), ["default-r1"]);
    assert_eq!(bench.touches(topic("d", "default", 3)), ["default"]);
    bench.change(Change::GroupActive(id)).unwrap();
    assert!(bench.group(id).unwrap().active);
    bench.refused(Change::GroupActive(5), Code::UnknownGroup, "no group 0000000000000005");
}

#[test]
fn a_topic_that_cannot_be_is_refused() {
    let mut bench = Bench::default();
    bench.refused(topic("$dead/x", "", 0), Code::InvalidArgument, "names that begin with `$` are the system's");
    bench.refused(topic("a//b", "", 0), Code::InvalidArgument, "`a//b` has an empty level; write levels as a/b/c");
    let plain = "`g/h` is not a plain name; use letters, digits, `-`, `_` and `.`";
    bench.refused(topic("a", "g/h", 0), Code::InvalidArgument, plain);
    bench.refused(topic("a", "g", 10), Code::InvalidArgument, "10 replicas; at most 9 are allowed");
    bench.change(topic("a", "g", 2)).unwrap();
    let replicas = "group `g` has 2 replicas, not 3; leave --replicas out or name another group";
    bench.refused(topic("b", "g", 3), Code::AlreadyExists, replicas);
    let nowhere = CatalogCommand { change: Some(topic("b", "h", 0)), placement: vec![] };
    let blocked = "no peer is known yet that could hold the group; try again in a moment";
    let (reply, _) = bench.run(Kind::Catalog(nowhere));
    assert_eq!(reply, Reply::Catalog(Box::new(Err(WireError::new(Code::WouldBlock, blocked)))));
    let unknown = CatalogCommand { change: None, placement: place() };
    let message = "a change that this version does not know; update the peer";
    let (reply, _) = bench.run(Kind::Catalog(unknown));
    assert_eq!(reply, Reply::Catalog(Box::new(Err(WireError::new(Code::InvalidArgument, message)))));
    let gone = "no topic `b`; `canal topic ls` lists what there is";
    bench.refused(Change::RemoveTopic("b".into()), Code::UnknownTopic, gone);
    assert_eq!(bench.touches(Change::RemoveTopic("a".into())), ["g"]);
    assert_eq!(bench.count(keys().one(Table::CatalogTopics)), 0);
}

#[test]
fn a_function_is_deployed_from_its_pieces() {
    let mut bench = Bench::default();
    let bad = "the component's pieces do not make its hash; send them all again, then deploy";
    bench.refused(Change::Deploy(function(b"abcd")), Code::BadComponent, bad);
    bench.change(chunk(b"abcd", 1, "cd")).unwrap();
    bench.refused(Change::Deploy(function(b"abcd")), Code::BadComponent, bad);
    bench.change(chunk(b"abcd", 0, "ab")).unwrap();
    let reply = bench.change(Change::Deploy(function(b"abcd"))).unwrap();
    let info = FunctionInfo { size: 4, deployed_ms: 1000, ..function(b"abcd") };
    assert_eq!(reply, CatalogReply { function: Some(info), ..CatalogReply::default() });
    bench.existed(Change::Deploy(function(b"abcd")));
    // a second function on the same component keeps it
    bench.change(Change::Deploy(FunctionInfo { name: "g".into(), ..function(b"abcd") })).unwrap();
    bench.change(chunk(b"new", 0, "new")).unwrap();
    let pieces =
        |bench: &Bench, whole: &[u8]| bench.count(keys().make(Table::CatalogBlobs, &[&ContentHash::of(whole).0]));
    bench.change(Change::Deploy(function(b"new"))).unwrap();
    assert_eq!((pieces(&bench, b"abcd"), pieces(&bench, b"new")), (2, 1));
    bench.change(Change::Deploy(FunctionInfo { name: "g".into(), ..function(b"new") })).unwrap();
    assert_eq!((pieces(&bench, b"abcd"), pieces(&bench, b"new")), (0, 1));
    for name in ["f", "g"] {
        assert_eq!(pieces(&bench, b"new"), 1);
        bench.change(Change::RemoveFunction(name.into())).unwrap();
    }
    assert_eq!(pieces(&bench, b"new"), 0);
    let unknown = "no function `f`; deploy it first with `canal fn deploy`";
    bench.refused(Change::RemoveFunction("f".into()), Code::UnknownFunction, unknown);
    let piece = "a piece of a component has a hash of 32 bytes and 1 to 524288 bytes of data";
    bench.refused(chunk(b"abcd", 0, ""), Code::InvalidArgument, piece);
    bench.refused(chunk(b"abcd", 32, "x"), Code::TooLarge, "a component has at most 16777216 bytes");
}

#[test]
fn a_trigger_needs_its_function_and_holds_what_it_uses() {
    let mut bench = Bench::default();
    let unknown = "no function `f`; deploy it first with `canal fn deploy`";
    bench.refused(Change::CreateTrigger(fires("t", "a")), Code::UnknownFunction, unknown);
    let mut bench = Bench::deployed();
    let none = TriggerInfo { patterns: vec![], ..fires("t", "a") };
    bench.refused(Change::CreateTrigger(none), Code::InvalidArgument, "a trigger has 1 to 16 patterns");
    bench.change(topic("a", "g", 0)).unwrap();
    let reply = bench.change(Change::CreateTrigger(fires("t", "a"))).unwrap();
    let id = bench.index;
    let info = TriggerInfo { id, created_ms: 1000, bucket: "t".into(), ..fires("t", "a") };
    assert_eq!(reply.trigger, Some(info.clone()));
    let dead: TopicInfo = bench.row(keys().make(Table::CatalogTopics, &[b"$dead/t"])).unwrap();
    assert_eq!((dead.id, dead.group_name.as_str()), (id, "g"), "dead letters live beside the events");
    bench.existed(Change::CreateTrigger(fires("t", "a")));
    bench.existed(Change::CreateTrigger(info));
    let other = "trigger `t` exists with another definition; remove it first";
    bench.refused(Change::CreateTrigger(fires("t", "b")), Code::AlreadyExists, other);
    let used = "trigger `t` runs function `f`; remove the trigger first";
    bench.refused(Change::RemoveFunction("f".into()), Code::InUse, used);
    let used = "`$dead/t` takes the dead letters of trigger `t`; remove the trigger first";
    bench.refused(Change::RemoveTopic("$dead/t".into()), Code::InUse, used);
    let pause = |paused| Change::SetPaused(SetPaused { trigger: "t".into(), paused });
    bench.existed(pause(false));
    assert_eq!(bench.touches(pause(true)), ["g"]);
    bench.existed(pause(true));
    assert_eq!(bench.touches(Change::RemoveTrigger("t".into())), ["g"]);
    let unknown = "no trigger `t`; `canal trigger ls` lists what there is";
    bench.refused(Change::RemoveTrigger("t".into()), Code::UnknownTrigger, unknown);
    bench.refused(pause(true), Code::UnknownTrigger, unknown);
    bench.change(Change::RemoveTopic("$dead/t".into())).unwrap();
    bench.change(Change::RemoveFunction("f".into())).unwrap();
}

#[test]
fn only_the_groups_that_host_a_match_are_touched() {
    let mut bench = Bench::deployed();
    for (name, group) in [("a/x", "g"), ("a/y", "h"), ("b", "i"), ("a/z", "h")] {
        assert_eq!(bench.touches(topic(name, group, 0)), [group]);
    }
    assert_eq!(bench.touches(Change::CreateTrigger(fires("all", "a/#"))), ["g", "h"]);
    assert_eq!(bench.touches(Change::CreateTrigger(fires("one", "b"))), ["i"]);
    // nothing matches yet: only the group that gets the dead letters
    assert_eq!(bench.touches(Change::CreateTrigger(fires("none", "c"))), ["default"]);
    bench.change(chunk(b"new", 0, "new")).unwrap();
    assert_eq!(bench.touches(Change::Deploy(function(b"new"))), ["g", "h", "i"]);
    let pause = Change::SetPaused(SetPaused { trigger: "all".into(), paused: true });
    assert_eq!(bench.touches(pause), ["g", "h"]);
    assert_eq!(bench.touches(Change::RemoveTrigger("one".into())), ["i"]);
    assert_eq!(bench.touches(Change::RemoveTopic("a/z".into())), ["h"]);
}

#[test]
fn a_groups_spec_is_what_the_catalog_says() {
    let mut bench = Bench::deployed();
    bench.change(topic("a/x", "g", 1)).unwrap();
    bench.change(topic("a/y", "h", 2)).unwrap();
    bench.change(Change::CreateTrigger(fires("t", "a/#"))).unwrap();
    let (g, h) = (GroupId::of_entry(MESH, "n", 3).0, GroupId::of_entry(MESH, "n", 4).0);
    let spec = TriggerSpec {
        info: TriggerInfo { id: 5, created_ms: 1000, bucket: "t".into(), ..fires("t", "a/#") },
        component: function(b"abc").component,
        limits: FunctionLimits::default(),
        dead: Target { topic: 5, group: g, name: "$dead/t".into() },
    };
    let want = GroupSpec { replicas: 1, ..spec_of(5, &[(3, "a/x"), (5, "$dead/t")], std::slice::from_ref(&spec)) };
    assert_eq!(bench.spec_of(g), Some(want));
    assert_eq!(bench.spec_of(h), Some(GroupSpec { replicas: 2, ..spec_of(5, &[(4, "a/y")], &[spec]) }));
    assert_eq!(bench.spec_of(1), None);
    bench.change(Change::RemoveTrigger("t".into())).unwrap();
    assert_eq!(bench.spec_of(h), Some(GroupSpec { replicas: 2, ..spec_of(6, &[(4, "a/y")], &[]) }));
}

fn kept(name: &str, events: Option<u64>) -> Change {
    let retention = events.map(|events| Retention { events, ..Retention::default() });
    Change::CreateTopic(CreateTopic { name: name.into(), retention, ..CreateTopic::default() })
}

fn placed(name: &str, group: &str, placement: Placement) -> Change {
    let placement = Some(placement);
    Change::CreateTopic(CreateTopic { name: name.into(), group: group.into(), placement, ..CreateTopic::default() })
}

fn edge() -> Placement {
    let labels = vec![Label { key: "gpu".into(), value: "a b".into() }];
    Placement { tier: Some(Tier::Edge.into()), labels, pinned: vec![] }
}

#[test]
fn the_systems_names_are_refused_but_for_the_topic_of_steps() {
    let mut bench = Bench::default();
    for name in ["$mesh", "$mesh/step", "$mesh/steps/a"] {
        bench.refused(topic(name, "", 0), Code::InvalidArgument, "names that begin with `$` are the system's");
    }
    assert_eq!(bench.touches(topic(TopicName::STEPS, "", 0)), ["default"]);
    bench.existed(topic(TopicName::STEPS, "", 0));
}

#[test]
fn a_topics_retention_is_told_to_its_group() {
    let mut bench = Bench::default();
    bench.change(kept("a", Some(9))).unwrap();
    let id = GroupId::of_entry(MESH, "n", 1).0;
    let told = |bench: &Bench| {
        let spec = bench.spec_of(id).unwrap();
        (spec.version, spec.topics[0].retention.map(|retention| retention.events))
    };
    assert_eq!(told(&bench), (1, Some(9)));
    bench.existed(kept("a", Some(9)));
    bench.existed(kept("a", None));
    let other = "topic `a` exists with another retention; `canal topic set` changes it";
    bench.refused(kept("a", Some(8)), Code::AlreadyExists, other);
    let set = |name: &str, events: Option<u64>| {
        let retention = events.map(|events| Retention { events, ..Retention::default() });
        Change::SetTopic(SetTopic { name: name.into(), retention })
    };
    let reply = bench.change(set("a", Some(5))).unwrap();
    assert_eq!(reply.topic.unwrap().retention, Some(Retention { events: 5, ..Retention::default() }));
    assert_eq!((reply.groups[0].id, told(&bench)), (id, (bench.index, Some(5))));
    bench.existed(set("a", Some(5)));
    bench.existed(set("a", None));
    // without any bound, it is kept for ever
    assert_eq!(bench.touches(set("a", Some(0))), ["default"]);
    assert_eq!(told(&bench), (bench.index, None));
    bench.existed(kept("a", Some(0)));
    bench.refused(set("b", Some(5)), Code::UnknownTopic, "no topic `b`; `canal topic ls` lists what there is");
}

#[test]
fn topics_that_ask_for_a_place_share_a_group_there() {
    let mut bench = Bench::default();
    assert_eq!(bench.touches(placed("a", "", edge())), ["default-edge-gpu.a_b"]);
    let id = GroupId::of_entry(MESH, "n", 1).0;
    assert_eq!(bench.group(id).unwrap().placement, Some(edge()));
    assert_eq!(bench.spec_of(id).unwrap().placement, Some(edge()));
    assert_eq!(bench.touches(placed("b", "", edge())), ["default-edge-gpu.a_b"]);
    bench.existed(placed("a", "", edge()));
    bench.existed(topic("a", "", 0));
    let other = "topic `a` exists in group `default-edge-gpu.a_b`, which is placed otherwise";
    bench.refused(placed("a", "", Placement::default()), Code::AlreadyExists, other);
    assert_eq!(bench.touches(topic("c", "g", 0)), ["g"]);
    let other = "group `g` is placed otherwise; leave --tier and --label out or name another group";
    bench.refused(placed("d", "g", edge()), Code::AlreadyExists, other);
    assert_eq!(bench.touches(placed("d", "g", Placement::default())), ["g"]);
    let iot = Placement { tier: Some(Tier::Iot.into()), ..Placement::default() };
    let three = CreateTopic { name: "e".into(), replicas: 5, placement: Some(iot), ..CreateTopic::default() };
    assert_eq!(bench.touches(Change::CreateTopic(three)), ["default-r5-iot"]);
}

#[test]
fn a_group_that_was_moved_is_still_what_was_asked_for() {
    let mut bench = Bench::default();
    bench.change(placed("a", "", edge())).unwrap();
    let pins = |peer: u8| Placement { pinned: vec![vec![peer; 32].into()], ..edge() };
    let group = GroupId::of_entry(MESH, "n", 1).0;
    bench.change(Change::SetGroup(SetGroup { group, replicas: 0, placement: Some(pins(7)) })).unwrap();
    bench.existed(placed("a", "", edge()));
    assert_eq!(bench.touches(placed("b", "", edge())), ["default-edge-gpu.a_b"]);
    bench.existed(placed("a", "", pins(7)));
    let other = "topic `a` exists in group `default-edge-gpu.a_b`, which is placed otherwise";
    bench.refused(placed("a", "", pins(8)), Code::AlreadyExists, other);
    assert_eq!(bench.group(group).unwrap().placement, Some(pins(7)), "asking again moves nothing");
}

#[test]
fn a_placement_that_cannot_be_is_refused() {
    let mut bench = Bench::default();
    let mut refused = |placement: Placement, message: &str| {
        bench.refused(placed("a", "g", placement), Code::InvalidArgument, message);
    };
    refused(Placement { tier: Some(9), ..edge() }, "no such tier; use iot, edge or cloud");
    let label = |key: &str, value: &str| Label { key: key.into(), value: value.into() };
    let many = (0..17).map(|at| label(&format!("k{at}"), "")).collect();
    refused(Placement { labels: many, ..edge() }, "17 labels; at most 16 are allowed");
    let nameless = Placement { labels: vec![label("", "v")], ..edge() };
    refused(nameless, "label ``: a name has 1 to 64 bytes, a value at most as many");
    let pin = |peers: &[u8]| Placement { pinned: peers.iter().map(|peer| vec![*peer; 32].into()).collect(), ..edge() };
    refused(pin(&[1; 10]), "10 pinned peers; a group has at most 9 replicas");
    let peer = canal_proto::PeerId::from_public_key([1; 32]);
    refused(pin(&[1, 2, 1]), &format!("peer {peer} is pinned twice"));
    let short = Placement { pinned: vec![vec![1; 31].into()], ..edge() };
    assert!(bench.change(placed("a", "g", short)).is_err());
    assert_eq!(bench.touches(placed("a", "g", pin(&[1, 2]))), ["g"]);
}

#[test]
fn a_groups_replicas_and_place_can_be_changed() {
    let mut bench = Bench::default();
    bench.change(topic("a", "g", 3)).unwrap();
    let id = GroupId::of_entry(MESH, "n", 1).0;
    let set = |group, replicas, placement| Change::SetGroup(SetGroup { group, replicas, placement });
    assert_eq!(bench.touches(set(id, 5, None)), ["g"]);
    assert_eq!(bench.touches(set(id, 0, Some(edge()))), ["g"]);
    let spec = bench.spec_of(id).unwrap();
    assert_eq!((spec.version, spec.replicas, spec.placement), (bench.index, 5, Some(edge())));
    for same in [set(id, 0, None), set(id, 5, None), set(id, 5, Some(edge()))] {
        bench.existed(same);
    }
    assert_eq!(bench.touches(set(id, 1, Some(Placement::default()))), ["g"]);
    assert_eq!(bench.group(id).map(|group| (group.replicas, group.placement)), Some((1, None)));
    let many = "10 replicas; at most 9 are allowed";
    bench.refused(set(id, 10, None), Code::InvalidArgument, many);
    let tier = "no such tier; use iot, edge or cloud";
    bench.refused(set(id, 0, Some(Placement { tier: Some(3), ..edge() })), Code::InvalidArgument, tier);
    let unknown = "no group 0000000000000005; `canal group ls` lists what there is";
    bench.refused(set(5, 1, None), Code::UnknownGroup, unknown);
    // the catalog's own group has no row until it is changed
    bench.existed(set(GROUP.0, 3, None));
    assert_eq!(bench.touches(set(GROUP.0, 5, None)), ["$catalog"]);
    let spec = GroupSpec { version: bench.index, replicas: 5, ..GroupSpec::default() };
    assert_eq!(bench.spec_of(GROUP.0), Some(spec));
    assert!(bench.group(GROUP.0).unwrap().active, "nobody is to create its replicas");
    bench.refused(
        topic("b", "$catalog", 0),
        Code::InvalidArgument,
        "`$catalog` is not a plain name; use letters, digits, `-`, `_` and `.`",
    );
}
