//! Inputs that are right, and some that are wrong in one way: what the corpora begin with. `ok-…` must be taken, `bad-…`
//! refused.

use bytes::{Bytes, BytesMut};
use canal_consensus::core::group::Install;
use canal_consensus::core::keys::{Keys, Table};
use canal_consensus::core::log::Compacted;
use canal_consensus::core::rows::{Applied, Configuration, Locator, OutboxRow, Producer, Topic};
use canal_consensus::files::Files;
use canal_proto::catalog::{CatalogCommand, Change, CreateTopic, FunctionInfo, TopicInfo, TriggerInfo};
use canal_proto::cursor::{Cursor, Parked, Span};
use canal_proto::error::{Code, WireError};
use canal_proto::event::{Event, Header, Stored};
use canal_proto::frame;
use canal_proto::log::{
    Append, AppendItem, Command, Emit, GroupSpec, Kind, Outcome, Outcomes, Seal, Segment, StateOp, StateWrite,
    SubscriptionChange, SubscriptionOp, TopicSpec, TriggerSpec, Trim,
};
use canal_proto::peer::{
    Coordinate, Label, Manifest, PeerInfo, RaftBatch, RaftEntry, RaftEnvelope, RaftHello, RaftMessage, RaftSnapshot,
    RaftVerdict, Replica, Row, Rows, Seed, Tier,
};
use canal_proto::request::{
    Answer, Ask, Content, Delivery, Events, From, Hello, Opened, Peers, PieceAsk, PieceData, Publish, Request, Resolve,
    Response, Route, Say, StatePut, Subscribe, SubscriberFrame, Version, Welcome,
};
use canal_proto::route::RouteRecord;
use canal_proto::{GroupId, MeshId, ProducerId, TopicId};
use prost::Message;

type Input = (&'static str, &'static str, Vec<u8>);

const MESH: MeshId = MeshId([7; 16]);

/// All of them: target, name, bytes.
pub fn all() -> Vec<Input> {
    let mut all = Vec::new();
    for more in [requests(), answers(), deliveries(), greetings(), raft(), replica(), routes(), commands(), records()] {
        all.extend(more);
    }
    for more in [segments(), snapshots(), components(), settings(), directories(), names(), queues()] {
        all.extend(more);
    }
    all
}

fn framed<M: Message>(messages: &[M]) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    messages.iter().for_each(|message| frame::encode(message, &mut bytes).unwrap());
    bytes.to_vec()
}

fn part(bytes: &[u8]) -> Vec<u8> {
    [u16::try_from(bytes.len()).unwrap().to_le_bytes().as_slice(), bytes].concat()
}

fn parts(all: &[Vec<u8>]) -> Vec<u8> {
    all.iter().flat_map(|bytes| part(bytes)).collect()
}

fn peer(id: u8) -> Replica {
    Replica { id: id.into(), peer: vec![id; 32], addresses: vec![format!("/ip4/10.0.0.{id}/udp/4040/quic-v1")] }
}

fn event(n: u8) -> Event {
    let header = Header { name: "h".into(), value: Bytes::from(vec![n]) };
    Event { headers: vec![header], time_ms: 9, ..Event::new(vec![n; usize::from(n)]).with_key("k") }
}

fn info(id: u8) -> PeerInfo {
    PeerInfo {
        peer: vec![id; 32],
        addresses: peer(id).addresses,
        tier: Tier::Edge.into(),
        site: "s".into(),
        labels: vec![Label { key: "gpu".into(), value: "1".into() }],
        coordinate: Some(Coordinate { x: 1.0, y: f64::NAN, height: -0.0, error: f64::INFINITY }),
        boot: 2,
        revision: 3,
        ..PeerInfo::default()
    }
}

fn requests() -> Vec<Input> {
    let publish = Publish {
        topic: "a/b".into(),
        producer: Bytes::from_static(&[1; 16]),
        first_sequence: 1,
        events: (0..4).map(event).collect(),
        ..Publish::default()
    };
    let hello = Hello { version: 1, namespace: "default".into(), mesh: MESH.to_vec().into(), ..Hello::default() };
    let known = vec![Version { peer: 9, boot: 1, revision: 2 }];
    let seed = Seed { group: 3, first: vec![peer(1)], replica: 1, mesh: MESH.to_vec(), ..Seed::default() };
    let write = StateWrite { bucket: "b".into(), ops: vec![StateOp { key: "k".into(), value: Some("v".into()) }] };
    let create = CreateTopic { name: "a/b".into(), replicas: 3, ..CreateTopic::default() };
    let create = CatalogCommand { change: Some(Change::CreateTopic(create)), placement: vec![peer(2)] };
    let asks = [
        Ask::Hello(hello),
        Ask::Publish(publish),
        Ask::Resolve(Resolve { name: "$catalog".into(), fresh: true, ..Resolve::default() }),
        Ask::Gossip(Peers { peers: vec![info(1), info(2)], known }),
        Ask::CreateReplica(seed),
        Ask::StatePut(StatePut { group: 3, write }),
        Ask::Change(create),
        Ask::Piece(PieceAsk { hash: vec![5; 32].into(), offset: 7, length: u32::MAX }),
        Ask::GroupStatus(u64::MAX),
    ];
    let request = |(id, ask): (u64, &Ask)| Request { id, deadline_ms: 1000, ask: Some(ask.clone()) };
    let all: Vec<Request> = (1..).zip(&asks).map(request).collect();
    let mut inputs: Vec<Input> = vec![
        ("requests", "ok-all", framed(&all)),
        ("requests", "ok-publish", framed(&all[1..2])),
        ("requests", "ok-gossip", framed(&all[3..4])),
        ("requests", "ok-empty", framed(&[Request::default()])),
        ("requests", "bad-half", framed(&all[1..2])[..3].to_vec()),
        ("requests", "bad-length", vec![0xff; 4]),
        ("requests", "bad-garbage", b"\x05\0\0\0\xff\xff\xff\xff\xff".to_vec()),
    ];
    // two thousand empty events: few bytes, much memory
    let crowd = Publish { events: vec![Event::default(); 2000], ..Publish::default() };
    inputs.push(("requests", "ok-crowd", framed(&[Request { ask: Some(Ask::Publish(crowd)), ..Request::default() }])));
    inputs
}

fn answers() -> Vec<Input> {
    let error = WireError { replicas: vec![peer(1)], ..WireError::new(Code::NotLeader, "ask there") };
    let welcome = Welcome { version: 1, peer: vec![1; 32].into(), addresses: peer(1).addresses, ..Welcome::default() };
    let route = Route { topic: 1, group: 2, replicas: vec![peer(1), peer(2)], ..Route::default() };
    let topic = TopicInfo { id: 1, name: "a".into(), ..TopicInfo::default() };
    let view = canal_proto::request::CatalogView { topics: vec![topic], applied: 4, ..Default::default() };
    let answers = [
        Answer::Welcome(welcome),
        Answer::Error(error),
        Answer::Route(route),
        Answer::Catalog(view),
        Answer::Piece(PieceData { data: "abc".into(), size: u64::MAX }),
        Answer::Peers(Peers { peers: vec![info(3)], known: Vec::new() }),
    ];
    let all: Vec<Response> = (1..).zip(answers).map(|(id, answer)| Response { id, answer: Some(answer) }).collect();
    vec![
        ("answers", "ok-all", framed(&all)),
        ("answers", "ok-error", framed(&all[1..2])),
        ("answers", "bad-half", framed(&all[2..3])[..9].to_vec()),
        ("answers", "bad-garbage", b"\x02\0\0\0\xff\xff".to_vec()),
    ]
}

fn deliveries() -> Vec<Input> {
    let subscribe = Subscribe {
        version: 1,
        namespace: "default".into(),
        topic: "a".into(),
        from: Some(From::Offset(7)),
        durable: "d".into(),
        credit: 1,
        ..Subscribe::default()
    };
    let events = (0..3).map(|n| Stored { offset: n.into(), event: event(n), ..Stored::default() }).collect();
    let delivered = [
        Delivery { content: Some(Content::Opened(Opened { topic: 1, head: 9, ..Opened::default() })) },
        Delivery { content: Some(Content::Events(Events { events, head: 9 })) },
        Delivery { content: Some(Content::Error(WireError::new(Code::TakenOver, "gone"))) },
    ];
    let said = [SubscriberFrame { say: Some(Say::Credit(u64::MAX)) }, SubscriberFrame { say: Some(Say::Handled(0)) }];
    vec![
        ("deliveries", "ok-subscribe", framed(&[subscribe])),
        ("deliveries", "ok-delivered", framed(&delivered)),
        ("deliveries", "ok-said", framed(&said)),
        ("deliveries", "bad-length", b"\xff\xff\xff\x7f\0".to_vec()),
        ("deliveries", "bad-garbage", b"\x02\0\0\0\x0f\xff".to_vec()),
    ]
}

fn greetings() -> Vec<Input> {
    let hello = RaftHello { version: 1, boot: 3, nonce: u64::MAX, ..RaftHello::default() };
    let refused = Some(WireError::new(Code::Forgotten, "begin anew"));
    let verdict = RaftVerdict { refused, boot: 2, nonce: 3 };
    let client = Hello { version: 1, namespace: "default".into(), addresses: peer(1).addresses, ..Hello::default() };
    vec![
        ("greetings", "ok-raft", hello.encode_to_vec()),
        ("greetings", "ok-verdict", verdict.encode_to_vec()),
        ("greetings", "ok-client", client.encode_to_vec()),
        ("greetings", "bad-length", b"\x12\xff\xff\xff\xff\x0f".to_vec()),
        ("greetings", "bad-tag", b"\x00\x01".to_vec()),
    ]
}

fn messages() -> Vec<RaftMessage> {
    let entry = |index, data: &[u8]| RaftEntry { term: 2, index, data: data.to_vec().into(), ..RaftEntry::default() };
    let change = RaftEntry { entry_type: 2, ..entry(3, b"\x12\x04\x08\x02\x10\x04") };
    let write = Kind::StateWrite(StateWrite { bucket: "b".into(), ops: Vec::new() });
    let command = Command { time_ms: 1, kind: Some(write) }.encode_to_vec();
    let from = |msg_type| RaftMessage { msg_type, to: 1, from: 2, term: 2, ..RaftMessage::default() };
    let rows = vec![Row { key: Keys(GroupId(3)).one(Table::Applied).slice(8..), value: applied(5).into() }];
    let snapshot = RaftSnapshot {
        data: Rows { rows }.encode_to_vec().into(),
        index: 5,
        term: 2,
        voters: vec![1, 2, 3],
        ..RaftSnapshot::default()
    };
    vec![
        RaftMessage { entries: vec![entry(1, b""), entry(2, &command), change], commit: 2, ..from(3) },
        RaftMessage { commit: 3, ..from(8) },
        RaftMessage { index: 3, log_term: 2, term: 3, ..from(5) },
        RaftMessage { index: 3, log_term: 2, term: 4, ..from(17) },
        RaftMessage { snapshot: Some(snapshot), term: 4, ..from(7) },
        RaftMessage { index: 5, term: 4, ..from(4) },
        RaftMessage { term: 4, ..from(14) },
        RaftMessage { reject: true, reject_hint: 1, term: 4, ..from(4) },
    ]
}

fn applied(index: u64) -> Vec<u8> {
    Applied { index, term: 2, began: 1 }.encode_to_vec()
}

fn raft() -> Vec<Input> {
    let batch =
        RaftBatch { messages: messages().into_iter().map(|message| RaftEnvelope { group: 3, message }).collect() };
    let local = RaftMessage { msg_type: 0, ..RaftMessage::default() };
    let local = RaftBatch { messages: vec![RaftEnvelope { group: 3, message: local }] };
    vec![
        ("raft_batches", "ok-all", batch.encode_to_vec()),
        ("raft_batches", "ok-one", RaftBatch { messages: batch.messages[..1].to_vec() }.encode_to_vec()),
        ("raft_batches", "bad-local", local.encode_to_vec()),
        ("raft_batches", "bad-length", b"\x0a\xff\xff\xff\xff\x0f\x08\x07".to_vec()),
    ]
}

fn replica() -> Vec<Input> {
    let all: Vec<Vec<u8>> = messages().iter().map(Message::encode_to_vec).collect();
    let sent = parts(&all);
    let ticks: Vec<u8> = std::iter::repeat_n(part(b""), 24).flatten().collect();
    let alone = [&[1][..], &part(b"\x01"), &part(b"\xff\xff"), &sent, &ticks].concat();
    vec![
        ("replica", "ok-follower", [&[0][..], &sent].concat()),
        ("replica", "ok-candidate", [&[0][..], &ticks, &sent, &ticks].concat()),
        ("replica", "ok-alone", alone),
        ("replica", "ok-restart", [&[0][..], &part(&all[0]), &part(b"\xff\xff\xff"), &sent].concat()),
        ("replica", "bad-silence", [&[0][..], &ticks].concat()),
    ]
}

fn routes() -> Vec<Input> {
    let key = |n: u8| [n; 32];
    let signer = ed25519(key(5));
    let record = RouteRecord {
        mesh: MESH.to_vec().into(),
        namespace: "default".into(),
        name: "a/b".into(),
        topic: 4,
        group: 9,
        epoch: 11,
        replicas: vec![Replica { peer: signer.to_vec(), ..peer(1) }, peer(2)],
        leader: 1,
        issued_ms: 5,
        life_ms: 60_000,
    };
    let signed = |record: &RouteRecord| canal_dht::sign(record, &key(5)).unwrap().encode_to_vec();
    let group = GroupId::of_catalog(MESH, "default");
    let catalog = RouteRecord { name: canal_proto::route::CATALOG.into(), topic: 0, group: group.0, ..record.clone() };
    let mut forged = signed(&record);
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let given = |bytes: Vec<u8>| [vec![0], bytes].concat();
    let to_sign = |record: &RouteRecord| [vec![1], record.encode_to_vec()].concat();
    vec![
        ("routes", "ok-topic", given(signed(&record))),
        ("routes", "ok-catalog", given(signed(&catalog))),
        ("routes", "ok-to-sign", to_sign(&record)),
        ("routes", "ok-catalog-to-sign", to_sign(&catalog)),
        ("routes", "bad-life", to_sign(&RouteRecord { life_ms: u64::MAX, ..record.clone() })),
        ("routes", "bad-leader", to_sign(&RouteRecord { leader: 9, ..record })),
        ("routes", "bad-forged", given(forged)),
        ("routes", "bad-length", given(b"\x0a\xff\xff\xff\xff\x0f".to_vec())),
    ]
}

/// The public key of a seed.
fn ed25519(seed: [u8; 32]) -> [u8; 32] {
    ed25519_dalek::SigningKey::from_bytes(&seed).verifying_key().to_bytes()
}

fn commands() -> Vec<Input> {
    let command = |kind| Command { time_ms: 1000, kind: Some(kind) }.encode_to_vec();
    let create = |name: &str| {
        let create = CreateTopic { name: name.into(), group: "g".into(), replicas: 1, ..CreateTopic::default() };
        command(Kind::Catalog(CatalogCommand { change: Some(Change::CreateTopic(create)), placement: vec![peer(1)] }))
    };
    let topic = TopicSpec { id: 1, name: "a".into(), ..TopicSpec::default() };
    let trigger = TriggerInfo {
        id: 2,
        name: "t".into(),
        patterns: vec!["a".into()],
        function: "f".into(),
        ..TriggerInfo::default()
    };
    let spec = GroupSpec {
        version: 1,
        topics: vec![topic],
        triggers: vec![TriggerSpec { info: trigger, ..TriggerSpec::default() }],
        ..GroupSpec::default()
    };
    let item = AppendItem {
        topic: 1,
        producer: ProducerId([1; 16]).to_vec().into(),
        first_sequence: 1,
        events: vec![event(1), event(2)],
        origin: 0,
    };
    let outcome = Outcome { trigger: 2, topic: 1, offset: 0, attempt: 1, ..Outcome::default() };
    let subscription = SubscriptionChange {
        topic: 1,
        name: "d".into(),
        op: Some(SubscriptionOp::Open(0)),
        ..SubscriptionChange::default()
    };
    let segment = Segment { topic: 1, first: 0, count: 2, hash: vec![4; 32].into(), size: 99, ..Segment::default() };
    let write = StateWrite { bucket: "b".into(), ops: vec![StateOp { key: "k".into(), value: Some("v".into()) }] };
    let function = FunctionInfo { name: "f".into(), component: vec![1; 32].into(), size: 1, ..FunctionInfo::default() };
    let hosted = parts(&[
        command(Kind::Spec(spec)),
        command(Kind::Append(Append { items: vec![item.clone(), item] })),
        command(Kind::Outcomes(Outcomes { outcomes: vec![outcome] })),
        command(Kind::Subscription(subscription)),
        command(Kind::Seal(Seal { through: 2, segments: vec![segment] })),
        command(Kind::Trim(Trim { topic: 1, before: 1 })),
        command(Kind::StateWrite(write)),
    ]);
    let catalog = parts(&[
        create("a/b"),
        create("a/b"),
        create("c"),
        command(Kind::Catalog(CatalogCommand { change: Some(Change::Deploy(function)), placement: Vec::new() })),
        command(Kind::Catalog(CatalogCommand { change: Some(Change::RemoveTopic("c".into())), placement: Vec::new() })),
    ]);
    vec![
        ("commands", "ok-hosted", hosted),
        ("commands", "ok-catalog", catalog),
        ("commands", "bad-empty", part(b"")),
        ("commands", "bad-garbage", part(b"\xff\xff")),
        ("commands", "bad-length", part(b"\x12\xff\xff\xff\xff\x0f")),
    ]
}

fn configuration() -> Configuration {
    Configuration {
        voters: vec![1, 2],
        learners: vec![3],
        replicas: vec![peer(1), peer(2), peer(3)],
        last_id: 3,
        index: 4,
        ..Configuration::default()
    }
}

fn records() -> Vec<Input> {
    let install = Install { index: 5, term: 2, data: "d".into(), own_term: 3, vote: 1 };
    let compacted = Compacted { index: 5, term: 2, configuration: configuration() };
    let seed = Seed {
        group: 3,
        name: "g".into(),
        namespace: "default".into(),
        first: vec![peer(1), peer(2)],
        replica: 1,
        mesh: MESH.to_vec(),
    };
    let mut producer = Producer::default();
    producer.note(7, 3);
    let cursor = Cursor {
        done: vec![Span { first: 5, end: 7 }],
        parked: vec![Parked { offset: 9, attempts: 2, ..Parked::default() }],
        ..Cursor::new(1, 2, 3)
    };
    let outbox = OutboxRow { emit: Emit::default() };
    let row = |kind: u8, bytes: Vec<u8>| [vec![kind], bytes].concat();
    vec![
        ("records", "ok-install", row(0, install.encode_to_vec())),
        ("records", "ok-compacted", row(1, compacted.encode_to_vec())),
        ("records", "ok-seed", row(2, seed.encode_to_vec())),
        ("records", "ok-configuration", row(3, configuration().encode_to_vec())),
        ("records", "ok-topic", row(4, Topic { next: 7, sealed: 3, ..Topic::default() }.encode_to_vec())),
        ("records", "ok-producer", row(5, producer.encode_to_vec())),
        ("records", "ok-outbox", row(6, outbox.encode_to_vec())),
        ("records", "ok-locator", row(7, Locator { index: 1, part: 2, count: 3, before: 4 }.encode_to_vec())),
        ("records", "ok-cursor", row(8, cursor.encode_to_vec())),
        ("records", "bad-install", row(0, b"\x08\xff".to_vec())),
        ("records", "bad-mesh", row(2, Seed { mesh: vec![1], ..seed }.encode_to_vec())),
    ]
}

fn segments() -> Vec<Input> {
    let dir = tempfile::tempdir().unwrap();
    let files = Files::open(dir.path()).unwrap();
    let mut writer = files.segment(TopicId(5), 100).unwrap();
    for n in 0..40u8 {
        let stored = Stored { offset: 100 + u64::from(n), event: event(n % 9), ..Stored::default() };
        writer.push(&stored).unwrap();
    }
    let segment = writer.finish().unwrap();
    let hash = canal_proto::ContentHash::from_slice(&segment.hash).unwrap();
    let whole = files.whole(&hash).unwrap().unwrap();
    // blocks that lie where the index says, of events that are not there
    let mut crowded = whole.to_vec();
    crowded[28 + 8..28 + 12].copy_from_slice(&u32::MAX.to_le_bytes());
    let events: Vec<Vec<u8>> = (0..30).map(|n| event(n).encode_to_vec()).collect();
    let made = [&[2][..], &5u64.to_le_bytes(), &200u64.to_le_bytes(), &777u64.to_le_bytes(), &parts(&events)].concat();
    vec![
        ("segments", "ok-file", [&[0][..], &whole].concat()),
        ("segments", "ok-summed", [&[1][..], &whole].concat()),
        ("segments", "ok-flipped", made),
        ("segments", "bad-crowded", [&[1][..], &crowded].concat()),
        ("segments", "bad-short", [&[0][..], &whole[..whole.len() - 1]].concat()),
    ]
}

fn snapshots() -> Vec<Input> {
    let keys = Keys(GroupId(3));
    let row = |key: Bytes, value: Vec<u8>| Row { key: key.slice(8..), value: value.into() };
    let rows = vec![
        row(keys.one(Table::Applied), applied(5)),
        row(keys.one(Table::Configuration), configuration().encode_to_vec()),
        row(keys.topic_only(Table::Topics, TopicId(1)), Topic { next: 3, ..Topic::default() }.encode_to_vec()),
    ];
    let piece = Rows { rows }.encode_to_vec();
    let install = Install { index: 5, term: 2, data: Bytes::new(), own_term: 3, vote: 1 }.encode_to_vec();
    let lacking = canal_proto::peer::Piece { hash: vec![1; 32].into(), size: u64::MAX };
    let lacking = Manifest { rows: vec![lacking], ..Manifest::default() }.encode_to_vec();
    vec![
        ("snapshots", "ok-whole", parts(&[Vec::new(), install.clone(), piece.clone()])),
        ("snapshots", "ok-restart", parts(&[lacking.clone(), Vec::new(), piece.clone()])),
        ("snapshots", "bad-rows", parts(&[lacking, install, b"\x0a\xff\xff\xff\xff\x0f".to_vec()])),
    ]
}

fn components() -> Vec<Input> {
    let handle = r#"(module
  (memory (export "memory") 2)
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 65536))
  (func (export "handle") (param i32 i32 i64 i32 i32 i32 i32 i32 i32 i64) (result i32) (i32.const 0)))"#;
    let mut module = wat::parse_str(handle).unwrap();
    let mut resolve = wit_parser::Resolve::default();
    let package = resolve.push_str("function.wit", canal_proto::FUNCTION_WIT).unwrap();
    let world = resolve.select_world(&[package], None).unwrap();
    wit_component::embed_component_metadata(&mut module, &resolve, world, wit_component::StringEncoding::UTF8).unwrap();
    let good = wit_component::ComponentEncoder::default().validate(true).module(&module).unwrap().encode().unwrap();
    // a table of four thousand million entries, and a memory of as many pages as there can be
    let huge = wat::parse_str("(component (core module (memory 65536) (table 4294967295 funcref)))").unwrap();
    vec![
        ("components", "ok-handle", good),
        ("components", "bad-module", b"\0asm\x01\0\0\0".to_vec()),
        ("components", "bad-huge", huge),
        ("components", "bad-empty", wat::parse_str("(component)").unwrap()),
    ]
}

fn settings() -> Vec<Input> {
    let scenario = include_str!("../../scenarios/three-tiers.toml");
    let links = "[[peer]]\ncount = 2\n[[link]]\nbetween = [\"*\", \"1\"]\ndelay_ms = 20.5\nloss = 0.01\n[[topic]]\nname = \"a/b\"\n";
    let file = "site = \"hall\"\ntier = \"iot\"\nlisten = [\"127.0.0.1:0\"]\nlabels = { gpu = \"1\" }\nmdns = false\n\
                tick_ms = 50\nreplace_after = \"2m\"\nlog_budget_mb = 64\nseal_kb = 100\nlog = \"debug\"\n";
    let environment = "\0CANAL_SITE=e\nCANAL_LABEL=a=b,c=d\nCANAL_REPLACE_AFTER=7d\nCANAL_DATA=/nowhere\n";
    vec![
        ("scenarios", "ok-three-tiers", scenario.into()),
        ("scenarios", "ok-links", links.into()),
        ("scenarios", "bad-many", b"[[peer]]\ncount = 9223372036854775807".to_vec()),
        ("scenarios", "bad-delay", b"[[peer]]\n[[link]]\nbetween = [\"*\", \"*\"]\ndelay_ms = nan".to_vec()),
        ("configurations", "ok-file", file.into()),
        ("configurations", "ok-environment", [file, environment].concat().into()),
        ("configurations", "ok-nothing", Vec::new()),
        ("configurations", "bad-field", b"sight = 1".to_vec()),
        ("configurations", "bad-span", b"replace_after = \"99999999999999999999d\"".to_vec()),
    ]
}

fn directories() -> Vec<Input> {
    let file = |kind: u8, content: &[u8]| [&[kind], content].concat();
    vec![
        ("directories", "ok-mesh", file(1, b"{\"name\":\"canal\",\"id\":\"01010101010101010101010101010101\"}")),
        ("directories", "ok-boot", file(2, b"18446744073709551615\n")),
        ("directories", "ok-ports", file(3, b"{\"127.0.0.1:0\": 4041}")),
        ("directories", "ok-known", file(4, b"[\"/ip4/127.0.0.1/udp/1/quic-v1\"]")),
        (
            "directories",
            "ok-seen",
            file(5, b"{\"12D3KooW9pNAk8aiBuGVQtWRdbkLmo5qVL3e2h5UxbN2Nz9ttwiw\":{\"boot\":3,\"nonce\":9}}"),
        ),
        ("directories", "ok-forgotten", file(6, b"{\"boot\":18446744073709551615,\"aside\":4294967295}")),
        ("directories", "ok-contact", file(7, b"{\"peer\":\"x\",\"mesh\":\"m\",\"addresses\":[]}")),
        ("directories", "bad-identity", file(0, b"\x08\x01\x12\x40")),
        ("directories", "bad-boot", file(2, b"-1")),
        ("directories", "bad-mesh", file(1, b"{\"name\":\"work\",\"id\":\"01010101010101010101010101010101\"}")),
    ]
}

fn names() -> Vec<Input> {
    vec![
        ("names", "ok-pattern", b"plant/+/temperature/#\nplant/line1/temperature/a/b".to_vec()),
        ("names", "ok-system", b"#\n$mesh/steps".to_vec()),
        ("names", "ok-peer", b"12D3KooW9pNAk8aiBuGVQtWRdbkLmo5qVL3e2h5UxbN2Nz9ttwiw".to_vec()),
        ("names", "ok-mesh", b"01010101010101010101010101010101".to_vec()),
        ("names", "ok-unicode", "\u{e9}t\u{e9}/+\n\u{e9}t\u{e9}/\u{1f980}".as_bytes().to_vec()),
        ("names", "bad-level", b"a//b\na//b".to_vec()),
        ("names", "bad-wildcard", b"a/#/b\na/b".to_vec()),
        ("names", "bad-utf8", b"\xff\xfe/#".to_vec()),
    ]
}

fn queues() -> Vec<Input> {
    let patch = |at: u32, with: &[u8]| part(&[&at.to_le_bytes()[..3], with].concat());
    vec![
        ("queues", "ok-sound", Vec::new()),
        ("queues", "bad-magic", patch(0, b"xedb")),
        ("queues", "bad-cut", vec![255, 100, 0, 0]),
        ("queues", "bad-empty", vec![255, 0, 0, 0]),
        ("queues", "header", patch(64, &[0xff; 16])),
        ("queues", "page", patch(4096, &[0xff; 64])),
        ("queues", "pages", [patch(8192, &[0xff; 8]), patch(12_288, &[0; 64]), patch(16_384, &[1; 8])].concat()),
    ]
}
