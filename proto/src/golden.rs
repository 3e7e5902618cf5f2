//! Pins the bytes of what is persisted: a change here is a change of the format, and needs a new version of it.

use bytes::Bytes;
use prost::Message;

use crate::catalog::{
    BlobChunk, CatalogCommand, Change, CreateTopic, FunctionInfo, GroupInfo, Placement, Retention, SetGroup, SetPaused,
    SetTopic, Start, TopicInfo, TriggerInfo,
};
use crate::event::{Event, Header, Stored};
use crate::log::{
    ActivationRecord, Advance, Append, AppendItem, Command, Disposition, Emit, EndProducer, FunctionLimits, GroupSpec,
    Kind, OutboxAck, Outcome, Outcomes, ReadCheck, ScanCheck, Seal, Segment, StateOp, StateWrite, Status, Step,
    Subscription, SubscriptionChange, SubscriptionOp, Target, TopicSpec, TriggerSpec, Trim,
};
use crate::peer::{Label, Manifest, Piece, Replica, Row, Rows, Seed, Tier};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[track_caller]
fn pinned<M: Message + Default + PartialEq + std::fmt::Debug>(message: &M, want: &str) {
    let bytes = message.encode_to_vec();
    assert_eq!(hex(&bytes), want);
    assert_eq!(M::decode(bytes.as_slice()).as_ref(), Ok(message));
}

fn replica() -> Replica {
    Replica { id: 2, peer: vec![7; 2], addresses: vec!["/a".into()] }
}

fn target() -> Target {
    Target { topic: 4, group: 5, name: "t".into() }
}

fn retention() -> Retention {
    Retention { events: 300, bytes: 2, age_ms: 3 }
}

fn placement() -> Placement {
    Placement {
        tier: Some(Tier::Edge.into()),
        labels: vec![Label { key: "k".into(), value: "v".into() }],
        pinned: vec![Bytes::from_static(&[7; 2])],
    }
}

fn segment() -> Segment {
    let hash = Bytes::from_static(&[1; 2]);
    Segment { topic: 3, first: 300, count: 4, hash, size: 5, payload: 6, last_ms: 7, before: 8, appended_ms: 9 }
}

fn trigger() -> TriggerInfo {
    TriggerInfo {
        id: 1,
        name: "n".into(),
        patterns: vec!["a/#".into()],
        function: "f".into(),
        start: Start::Earliest.into(),
        paused: true,
        max_attempts: 3,
        backoff_ms: 9,
        bucket: "b".into(),
        created_ms: 10,
    }
}

fn limits() -> FunctionLimits {
    FunctionLimits { memory: 1, time_ms: 2, emit_bytes: 3, writes: 4 }
}

#[test]
fn a_seed() {
    let seed = Seed {
        group: 1,
        name: "g".into(),
        namespace: "n".into(),
        first: vec![replica()],
        replica: 2,
        mesh: vec![9; 2],
    };
    pinned(&seed, "08011201671a016e220a0802120207071a022f61280232020909");
}

#[test]
fn an_event() {
    let event = Event {
        key: Bytes::from_static(b"k"),
        headers: vec![Header { name: "h".into(), value: Bytes::from_static(b"v") }],
        payload: Bytes::from_static(b"p"),
        time_ms: 300,
        trace: "t".into(),
    };
    pinned(&event, "0a016b12060a01681201761a017020ac022a0174");
}

#[test]
fn a_stored_event() {
    let producer = Bytes::from_static(&[1; 2]);
    let stored = Stored { offset: 300, event: Event::new("x"), producer, sequence: 2 };
    pinned(&stored, "08ac0212031a01781a0201012002");
}

#[test]
fn an_append_from_an_outbox() {
    let item = AppendItem {
        topic: 3,
        producer: Bytes::from_static(&[1; 2]),
        first_sequence: 1,
        events: vec![Event::new("x")],
        origin: 8,
    };
    let command = Command { time_ms: 1, kind: Some(Kind::Append(Append { items: vec![item] })) };
    pinned(&command, "080112110a0f080312020101180122031a01782808");
}

#[test]
fn segments() {
    pinned(&segment(), "080310ac0218042202010128053006380740084809");
    let seal = Seal { through: 300, segments: vec![segment()] };
    pinned(
        &Command { time_ms: 1, kind: Some(Kind::Seal(seal)) },
        "08014a1a08ac021215080310ac0218042202010128053006380740084809",
    );
    let trim = Trim { topic: 3, before: 300 };
    pinned(&Command { time_ms: 1, kind: Some(Kind::Trim(trim)) }, "08015205080310ac02");
}

#[test]
fn subscriptions() {
    let change = |op| SubscriptionChange { topic: 3, name: "s".into(), op: Some(op), ..SubscriptionChange::default() };
    let command = |change| Command { time_ms: 1, kind: Some(Kind::Subscription(change)) };
    let open = SubscriptionChange { holder: "h".into(), again: true, ..change(SubscriptionOp::Open(0)) };
    pinned(&command(open), "08015a0c080312017318003201683801");
    let advance = change(SubscriptionOp::Advance(Advance { session: 9, next: 300 }));
    pinned(&command(advance), "08015a0c08031201732205080910ac02");
    pinned(&command(change(SubscriptionOp::Remove(true))), "08015a0708031201732801");
    let row = Subscription { topic: 3, name: "s".into(), next: 300, session: 9, changed_ms: 7, holder: "h".into() };
    pinned(&row, "080312017318ac0220092807320168");
}

#[test]
fn a_step() {
    let step = Step {
        number: 300,
        what: "moved".into(),
        replica: 2,
        peer: Bytes::from_static(&[7; 2]),
        gone: 1,
        gone_peer: Bytes::from_static(&[6; 2]),
        began_ms: 7,
        ended_ms: 8,
        stood_still_ms: 9,
        report: Some(Emit { target: target(), event: Event::new("x"), dead: target() }),
    };
    pinned(
        &Command { time_ms: 1, kind: Some(Kind::Step(step)) },
        "0801623508ac0212056d6f76656418022202070728013202060638074008480952170a07080410051a017412031a01781a07080410051a0174",
    );
}

#[test]
fn what_a_snapshot_consists_of() {
    let piece = Piece { hash: Bytes::from_static(&[1; 2]), size: 300 };
    let manifest = Manifest { rows: vec![piece.clone()], segments: vec![piece], peer: Bytes::from_static(&[7; 2]) };
    pinned(&manifest, "0a070a02010110ac0212070a02010110ac021a020707");
    pinned(&Rows { rows: vec![Row { key: "k".into(), value: "v".into() }] }, "0a060a016b120176");
}

#[test]
fn an_outcome() {
    let record = ActivationRecord {
        trigger: "n".into(),
        function: "f".into(),
        component: Bytes::from_static(&[1; 2]),
        topic: "t".into(),
        offset: 3,
        attempt: 1,
        start_ms: 5,
        duration_us: 6,
        status: Status::Trap.into(),
        error: "e".into(),
        log: vec!["info: l".into()],
        writes: 1,
        emits: 1,
        executor: Bytes::from_static(&[2; 2]),
        number: 7,
        disposition: Disposition::Dead.into(),
    };
    let outcome = Outcome {
        trigger: 1,
        topic: 2,
        offset: 3,
        attempt: 1,
        reads: vec![ReadCheck { key: "r".into(), digest: Bytes::from_static(&[3; 2]) }],
        scans: vec![ScanCheck { prefix: "s".into(), limit: 4, digest: Bytes::from_static(&[4; 2]) }],
        writes: vec![StateOp { key: "w".into(), value: Some(Bytes::from_static(b"v")) }],
        emits: vec![Emit { target: target(), event: Event::new("x"), dead: target() }],
        disposition: Disposition::Dead.into(),
        not_before_ms: 8,
        record,
        bucket: "b".into(),
        key_digest: Bytes::from_static(&[5; 2]),
    };
    let command = Command { time_ms: 1, kind: Some(Kind::Outcomes(Outcomes { outcomes: vec![outcome] })) };
    pinned(
        &command,
        "08011a7c0a7a08011002180320012a070a01721202030332090a017310041a0204043a060a017712017642170a07080410051a017412031a01781a07080410051a0174480250085a300a016e1201661a020101220174280330013805400648025201655a07696e666f3a206c600168017202020278078001026201626a020505",
    );
}

#[test]
fn a_spec() {
    let spec = GroupSpec {
        version: 1,
        topics: vec![TopicSpec { id: 2, name: "t".into(), ..TopicSpec::default() }],
        triggers: vec![TriggerSpec {
            info: trigger(),
            component: Bytes::from_static(&[1; 2]),
            limits: limits(),
            dead: target(),
        }],
        replicas: 3,
        ..GroupSpec::default()
    };
    pinned(
        &Command { time_ms: 1, kind: Some(Kind::Spec(spec)) },
        "080122400801120508021201741a330a1a080112016e1a03612f2322016628013001380340094a0162500a120201011a0808011002180320042207080410051a01742003",
    );
}

#[test]
fn a_spec_with_retention_and_place() {
    let spec = GroupSpec {
        version: 1,
        topics: vec![TopicSpec { id: 2, name: "t".into(), retention: Some(retention()) }],
        replicas: 3,
        placement: Some(placement()),
        ..GroupSpec::default()
    };
    pinned(
        &Command { time_ms: 1, kind: Some(Kind::Spec(spec)) },
        "080122240801120e08021201741a0708ac021002180320032a0e080112060a016b1201761a020707",
    );
}

#[test]
fn small_commands() {
    let put = StateOp { key: "k".into(), value: None };
    let write = StateWrite { bucket: "b".into(), ops: vec![put] };
    pinned(&Command { time_ms: 0, kind: Some(Kind::StateWrite(write)) }, "2a080a016212030a016b");
    let ack = OutboxAck { topic: 1, through: 2, refused: true };
    pinned(&Command { time_ms: 0, kind: Some(Kind::OutboxAck(ack)) }, "3206080110021801");
    let end = EndProducer { topic: 1, producer: Bytes::from_static(&[1; 2]), last_sequence: 3 };
    pinned(&Command { time_ms: 0, kind: Some(Kind::EndProducer(end)) }, "42080801120201011803");
}

#[test]
fn changes_of_the_catalog() {
    let change = |change| CatalogCommand { change: Some(change), placement: vec![replica()] };
    let create = CreateTopic { name: "t".into(), group: "g".into(), replicas: 3, ..CreateTopic::default() };
    pinned(&change(Change::CreateTopic(create)), "0a080a017412016718037a0a0802120207071a022f61");
    pinned(&change(Change::RemoveTopic("t".into())), "1201747a0a0802120207071a022f61");
    let chunk = BlobChunk { hash: Bytes::from_static(&[1; 2]), number: 1, data: Bytes::from_static(b"d") };
    pinned(&change(Change::PutChunk(chunk)), "1a090a02010110011a01647a0a0802120207071a022f61");
    pinned(
        &change(Change::Deploy(function())),
        "22150a01661202010118022208080110021803200428037a0a0802120207071a022f61",
    );
    pinned(&change(Change::RemoveFunction("f".into())), "2a01667a0a0802120207071a022f61");
    pinned(
        &change(Change::CreateTrigger(trigger())),
        "321a080112016e1a03612f2322016628013001380340094a0162500a7a0a0802120207071a022f61",
    );
    pinned(&change(Change::RemoveTrigger("n".into())), "3a016e7a0a0802120207071a022f61");
    let paused = SetPaused { trigger: "n".into(), paused: true };
    pinned(&change(Change::SetPaused(paused)), "42050a016e10017a0a0802120207071a022f61");
    pinned(&change(Change::GroupActive(1)), "48017a0a0802120207071a022f61");
    let create = CreateTopic {
        name: "t".into(),
        group: "g".into(),
        replicas: 3,
        retention: Some(retention()),
        placement: Some(placement()),
    };
    pinned(
        &change(Change::CreateTopic(create)),
        "0a210a01741201671803220708ac02100218032a0e080112060a016b1201761a0207077a0a0802120207071a022f61",
    );
    let set = SetTopic { name: "t".into(), retention: Some(retention()) };
    pinned(&change(Change::SetTopic(set)), "520c0a0174120708ac02100218037a0a0802120207071a022f61");
    let set = SetGroup { group: 1, replicas: 3, placement: Some(placement()) };
    pinned(&change(Change::SetGroup(set)), "5a14080110031a0e080112060a016b1201761a0207077a0a0802120207071a022f61");
}

fn function() -> FunctionInfo {
    FunctionInfo { name: "f".into(), component: Bytes::from_static(&[1; 2]), size: 2, limits: limits(), deployed_ms: 3 }
}

#[test]
fn rows_of_the_catalog() {
    let topic =
        TopicInfo { id: 1, name: "t".into(), group: 2, group_name: "g".into(), created_ms: 3, ..TopicInfo::default() };
    pinned(&topic, "080112017418022201672803");
    let group = GroupInfo {
        id: 1,
        name: "g".into(),
        replicas: 3,
        first: vec![replica()],
        active: true,
        spec_version: 4,
        ..GroupInfo::default()
    };
    pinned(&group, "08011201671803220a0802120207071a022f6128013004");
    let kept = TopicInfo { retention: Some(retention()), ..topic };
    pinned(&kept, "080112017418022201672803320708ac0210021803");
    let placed = GroupInfo { placement: Some(placement()), ..group };
    pinned(&placed, "08011201671803220a0802120207071a022f61280130043a0e080112060a016b1201761a020707");
    pinned(&function(), "0a0166120201011802220808011002180320042803");
    pinned(&trigger(), "080112016e1a03612f2322016628013001380340094a0162500a");
}
