//! Hostile clients and peers: whatever they send, or don't, a peer answers with a typed error where there is somebody to
//! answer, counts it, keeps its memory, and serves everybody else.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::BytesMut;
use canal_proto::PeerId;
use canal_proto::frame;
use canal_proto::limits::MAX_FRAME;
use canal_proto::log::{StateOp, StateWrite};
use canal_proto::peer::{RaftBatch, RaftEnvelope, RaftHello, RaftMessage, RaftVerdict, Seed};
use canal_proto::request::{
    Answer, Ask, BlobAsk, Content, Delivery, Hello, PieceAsk, Publish, RemoveReplica, Request, Response, StateGet,
    StatePut, Subscribe, Welcome, protocol,
};
use canal_sdk::transport::libp2p::Libp2p;
use canal_sdk::{BoxStream, Client, Code, Connection, Event, From, GroupId, Opening, Transport};
use canal_testnet::decoders::mutate::Rng;
use canal_testnet::until;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use crate::common::{Mesh, SOON, canal, mesh};

/// A well-behaved client is served within this time while others misbehave: a debug build on a busy machine.
const PROMPTLY: Duration = Duration::from_secs(20);
/// A peer gives up a frame that was begun so long ago and has not come whole.
const UNFINISHED: Duration = Duration::from_secs(40);
const MIB: u64 = 1 << 20;

/// Memory of a peer's process that is in RAM.
fn resident(mesh: &Mesh) -> u64 {
    let pid = mesh.peer(0).unwrap().pid().expect("the peer runs");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

fn assert_grew_less(what: &str, before: u64, after: u64, limit: u64) {
    println!("{what}: {} MiB, then {} MiB", before / MIB, after / MIB);
    assert!(after < before + limit, "{what}: {} MiB, then {} MiB", before / MIB, after / MIB);
}

/// A mesh of one peer with a topic `t`, and a client that behaves.
async fn victim() -> (Mesh, Client, GroupId) {
    let mesh = mesh(1).await;
    let client = mesh.client(0).await.unwrap();
    let group = mesh.create_topic(&client, "t", "g", 1).await.unwrap();
    // what a peer takes for its first requests is not counted
    for n in 0..20u8 {
        client.publisher("t").await.unwrap().publish(Event::new(vec![n; 1000])).await.unwrap();
    }
    (mesh, client, group)
}

/// Somebody else is served, on a connection of their own: connects, publishes, reads back.
async fn assert_serves(mesh: &Mesh) {
    let begun = Instant::now();
    let served = async {
        let client = mesh.client(0).await.unwrap();
        let receipt = client.publisher("t").await.unwrap().publish(Event::new("served")).await.unwrap();
        let offset = receipt.offset.unwrap();
        let mut events = client.subscribe("t", From::Offset(offset)).await.unwrap();
        assert_eq!(events.next().await.unwrap().unwrap().event.payload, "served");
    };
    timeout(PROMPTLY, served).await.expect("others are served meanwhile");
    println!("somebody else was served in {:?}", begun.elapsed());
}

/// What the peer has refused, as the command line says it.
async fn refused(mesh: &Mesh) -> BTreeMap<String, u64> {
    let address = mesh.peer(0).unwrap().address().unwrap();
    let ran = canal(&address, &["peer", "info", "--json"], b"").await;
    let status: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{ran:?}"));
    let counts = status["refused"].as_object().unwrap_or_else(|| panic!("{status}"));
    counts.iter().map(|(reason, count)| (reason.clone(), count.as_u64().unwrap())).collect()
}

/// A stream of one of the peer's protocols, over a connection of its own or a given one. Of two connections of one client
/// the peer keeps the newer, so one that is opened just then may break.
async fn open(mesh: &Mesh, transport: &Libp2p, what: &str) -> BoxStream {
    open_at(mesh, transport, None, what).await
}

/// The same, over the connection that there is when the peer is named.
async fn open_at(mesh: &Mesh, transport: &Libp2p, peer: Option<PeerId>, what: &str) -> BoxStream {
    let addresses = [mesh.peer(0).unwrap().address().unwrap()];
    let opened = until("a stream is open", SOON, async || {
        let opened = transport.open(peer, &addresses, &protocol(mesh.mesh(), what)).await;
        opened.map(|(_, stream)| stream).map_err(|error| error.to_string())
    });
    opened.await.unwrap()
}

/// A conversation that has begun: a stream that is opened beside others may be dropped before it is served, which the answer
/// to the greeting tells.
async fn greeted(mesh: &Mesh, transport: &Libp2p) -> BoxStream {
    let begun = until("a greeting is answered", SOON, async || {
        let mut stream = open_at(mesh, transport, mesh.peer(0).unwrap().id().ok(), "client").await;
        let greeting = ask(1, Ask::Hello(hello()));
        stream.write_all(&greeting).await.map_err(|error| error.to_string())?;
        stream.flush().await.map_err(|error| error.to_string())?;
        let mut buffer = BytesMut::new();
        while frame::decode::<Response>(&mut buffer).map_err(|error| error.to_string())?.is_none() {
            let read = timeout(PROMPTLY, stream.read_buf(&mut buffer)).await.map_err(|_| "no answer".to_owned())?;
            if read.map_err(|error| error.to_string())? == 0 {
                return Err("the stream ended".to_owned());
            }
        }
        Ok(stream)
    });
    begun.await.unwrap()
}

fn framed<M: Message>(message: &M) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    frame::encode(message, &mut bytes).unwrap();
    bytes.to_vec()
}

fn ask(id: u64, ask: Ask) -> Vec<u8> {
    framed(&Request { id, deadline_ms: 30_000, ask: Some(ask) })
}

fn hello() -> Hello {
    Hello { version: 1, namespace: "default".into(), ..Hello::default() }
}

async fn say(stream: &mut BoxStream, bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
    stream.flush().await.unwrap();
}

/// Says these bytes, and that nothing more comes if `end`; gives what the peer answers until it ends the stream.
async fn answered<M: Message + Default>(stream: &mut BoxStream, bytes: &[u8], end: bool) -> Vec<M> {
    // a peer that has read enough may end the stream before all is written
    let _ = stream.write_all(bytes).await;
    let _ = stream.flush().await;
    if end {
        let _ = stream.shutdown().await;
    }
    let mut buffer = BytesMut::new();
    let read = async { while stream.read_buf(&mut buffer).await.is_ok_and(|count| count > 0) {} };
    timeout(SOON, read).await.expect("the peer ends the stream");
    let mut all = Vec::new();
    while let Some(message) = frame::decode(&mut buffer).unwrap() {
        all.push(message);
    }
    all
}

fn code_of(response: Option<&Response>) -> Option<Code> {
    match &response?.answer {
        Some(Answer::Error(error)) if !error.message.is_empty() => Some(error.code()),
        _ => None,
    }
}

fn garbage(rng: &mut Rng, length: usize) -> Vec<u8> {
    (0..length).map(|_| rng.below(256) as u8).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_words_are_answered_with_their_error_and_counted() {
    let (mesh, client, _) = victim().await;
    let transport = Libp2p::new().unwrap();
    let crowd = Publish { events: vec![Event::default(); MAX_FRAME / 4], ..Publish::default() };
    let greeted = |rest: &[u8]| [&ask(1, Ask::Hello(hello())), rest].concat();
    let conversations: Vec<(&str, Vec<u8>, Code)> = vec![
        ("another version", ask(1, Ask::Hello(Hello { version: 99, ..hello() })), Code::Incompatible),
        ("another mesh", ask(1, Ask::Hello(Hello { mesh: vec![1; 16].into(), ..hello() })), Code::Incompatible),
        ("another namespace", ask(1, Ask::Hello(Hello { namespace: "x".into(), ..hello() })), Code::InvalidArgument),
        ("no greeting", ask(1, Ask::GroupStatus(1)), Code::Malformed),
        ("a length above the limit", vec![0xff; 4], Code::Malformed),
        ("half a frame", ask(1, Ask::Hello(hello()))[..7].to_vec(), Code::Malformed),
        ("garbage behind a greeting", greeted(b"\x05\0\0\0\xff\xff\xff\xff\xff"), Code::Malformed),
        ("a length above the limit behind a greeting", greeted(b"\xff\xff\xff\x7f"), Code::Malformed),
        ("a million empty events", greeted(&ask(2, Ask::Publish(crowd))), Code::Malformed),
    ];
    let mut wanted = BTreeMap::<&str, u64>::new();
    // all over one connection: of several the peer would end the older ones
    let id = mesh.peer(0).unwrap().id().ok();
    for (what, bytes, code) in conversations {
        for name in ["client", "peer"] {
            let mut stream = open_at(&mesh, &transport, id, name).await;
            let answers = answered::<Response>(&mut stream, &bytes, what == "half a frame").await;
            assert_eq!(code_of(answers.last()), Some(code), "{what}: {answers:?}");
            *wanted.entry(if code == Code::Malformed { "malformed" } else { "incompatible" }).or_default() += 1;
        }
    }
    let subscribe = Subscribe { version: 1, namespace: "default".into(), topic: "t".into(), ..Subscribe::default() };
    let subscriptions: Vec<(&str, Vec<u8>, Code)> = vec![
        ("another version", framed(&Subscribe { version: 7, ..subscribe.clone() }), Code::Incompatible),
        ("a length above the limit", b"\xff\xff\xff\x7f".to_vec(), Code::TooLarge),
        ("garbage", b"\x02\0\0\0\xff\xff".to_vec(), Code::Malformed),
        ("garbage behind the greeting", [framed(&subscribe), b"\x02\0\0\0\xff\xff".to_vec()].concat(), Code::Malformed),
    ];
    for (what, bytes, code) in subscriptions {
        let mut stream = open_at(&mesh, &transport, id, "subscribe").await;
        let answers = answered::<Delivery>(&mut stream, &bytes, false).await;
        let Some(Content::Error(error)) = answers.last().and_then(|delivery| delivery.content.clone()) else {
            panic!("{what}: {answers:?}")
        };
        assert_eq!(error.code(), code, "{what}: {error:?}");
        *wanted.entry(if code == Code::Incompatible { "incompatible" } else { "malformed" }).or_default() += 1;
    }
    let greeting = RaftHello { version: 1, boot: 1, nonce: 9, ..RaftHello::default() };
    let raft: Vec<(&str, Vec<u8>, Code)> = vec![
        ("another version", framed(&RaftHello { version: 7, ..greeting.clone() }), Code::Incompatible),
        ("no start", framed(&RaftHello { boot: 0, ..greeting.clone() }), Code::Malformed),
        ("a length above the limit", vec![0xff; 4], Code::TooLarge),
        ("garbage", b"\x02\0\0\0\xff\xff".to_vec(), Code::Malformed),
    ];
    for (what, bytes, code) in raft {
        let mut stream = open(&mesh, &transport, "raft").await;
        say(&mut stream, &bytes).await;
        let verdict = verdict(&mut stream).await;
        assert_eq!(verdict.refused.map(|error| error.code()), Some(code), "{what}");
    }
    assert_eq!(mesh_code(&mesh, "another").await, Code::Incompatible);
    let counts = refused(&mesh).await;
    assert!(wanted.iter().all(|(reason, count)| counts.get(*reason) >= Some(count)), "{counts:?}, wanted {wanted:?}");
    assert_serves(&mesh).await;
    assert!(client.peer_status().await.unwrap().joined);
}

/// What a client of another mesh gets at the peer.
async fn mesh_code(mesh: &Mesh, name: &str) -> Code {
    let options = canal_sdk::Options { mesh: name.into(), ..canal_sdk::Options::default() };
    let connected = Client::connect(&mesh.peer(0).unwrap().address().unwrap(), options).await;
    connected.map(|_| ()).unwrap_err().code
}

/// What the acceptor of a Raft stream says: its greeting, then its verdict.
async fn verdict(stream: &mut BoxStream) -> RaftVerdict {
    let mut buffer = BytesMut::new();
    let mut welcomed = false;
    let read = async {
        loop {
            if !welcomed {
                if frame::decode::<Welcome>(&mut buffer).unwrap().is_some() {
                    welcomed = true;
                    continue;
                }
            } else if let Some(verdict) = frame::decode::<RaftVerdict>(&mut buffer).unwrap() {
                return verdict;
            }
            assert!(stream.read_buf(&mut buffer).await.unwrap() > 0, "the stream ended");
        }
    };
    timeout(SOON, read).await.expect("a verdict comes")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_frames_take_no_more_than_their_room() {
    let (mesh, _, _) = victim().await;
    let before = resident(&mesh);
    let began = Instant::now();
    // 384 MiB of frames that never end
    let transports: Vec<Libp2p> = (0..16).map(|_| Libp2p::new().unwrap()).collect();
    let mut half = u32::try_from(MAX_FRAME).unwrap().to_le_bytes().to_vec();
    half.resize(3 << 20, 0);
    let bytes = [ask(1, Ask::Hello(hello())), half].concat();
    let opened: FuturesUnordered<_> = (0..128)
        .map(|n| {
            let (mesh, transport, bytes) = (&mesh, &transports[n % transports.len()], &bytes);
            async move {
                let mut stream = open(mesh, transport, "client").await;
                // one that is refused meanwhile is ended by the peer
                let _ = timeout(SOON, stream.write_all(bytes)).await;
                let _ = stream.flush().await;
                stream
            }
        })
        .collect();
    let streams: Vec<BoxStream> = opened.collect().await;
    assert_serves(&mesh).await;
    assert_grew_less("half frames of 384 MiB", before, resident(&mesh), 192 * MIB);
    let counts = refused(&mesh).await;
    // (on a slow machine the first were given up before the last came, and there was room for all)
    assert!(counts.get("busy") > Some(&0) || began.elapsed() > UNFINISHED, "{counts:?}");
    // and a frame that comes a byte at a time is not waited for
    until("a frame that does not end is given up", SOON, async || {
        let counts = refused(&mesh).await;
        counts.get("late").filter(|late| **late > 0).map(|_| ()).ok_or(format!("{counts:?}"))
    })
    .await
    .unwrap();
    drop(streams);
    assert_serves(&mesh).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_nobody_reads_are_bounded_and_end_their_conversation() {
    let (mesh, client, group) = victim().await;
    let opening = Opening::client(mesh.mesh(), "default");
    let transport = Libp2p::new().unwrap();
    let addresses = [mesh.peer(0).unwrap().address().unwrap()];
    let connection = Connection::open(&transport, None, &addresses, &opening, SOON).await.unwrap();
    let op = StateOp { key: "k".into(), value: Some(vec![7; 200 << 10].into()) };
    let put = StatePut { group: group.0, write: StateWrite { bucket: "b".into(), ops: vec![op] } };
    connection.request(Ask::StatePut(put), SOON).await.unwrap();
    let before = resident(&mesh);
    // 400 MiB of answers, on each of four conversations
    let get = StateGet { group: group.0, bucket: "b".into(), key: "k".into(), consistency: 1 };
    let mut streams = Vec::new();
    for _ in 0..4 {
        let mut stream = open(&mesh, &transport, "client").await;
        say(&mut stream, &ask(1, Ask::Hello(hello()))).await;
        let asks: Vec<u8> = (2..2000).flat_map(|id| ask(id, Ask::StateGet(get.clone()))).collect();
        let _ = timeout(Duration::from_secs(5), stream.write_all(&asks)).await;
        let _ = stream.flush().await;
        streams.push(stream);
    }
    assert_serves(&mesh).await;
    assert_grew_less("answers of 1600 MiB", before, resident(&mesh), 192 * MIB);
    until("conversations whose answers nobody takes are ended", SOON, async || {
        let counts = refused(&mesh).await;
        counts.get("unread").filter(|unread| **unread >= 4).map(|_| ()).ok_or(format!("{counts:?}"))
    })
    .await
    .unwrap();
    assert_serves(&mesh).await;
    assert!(client.peer_status().await.unwrap().joined);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_reads_nothing_lags_alone() {
    let (mesh, client, _) = victim().await;
    let publisher = client.publisher("t").await.unwrap();
    let publish = async |megabytes: u8| {
        for n in 0..megabytes {
            publisher.send(Event::new(vec![n; 1 << 20])).await.unwrap();
        }
        publisher.flush().await.unwrap();
    };
    // logs and segments have their buffers by then
    publish(24).await;
    let subscribe = Subscribe {
        version: 1,
        namespace: "default".into(),
        topic: "t".into(),
        from: Some(canal_proto::request::From::Latest(Default::default())),
        credit: u64::MAX,
        ..Subscribe::default()
    };
    let transport = Libp2p::new().unwrap();
    let mut streams = Vec::new();
    for _ in 0..8 {
        let mut stream = open(&mesh, &transport, "subscribe").await;
        say(&mut stream, &framed(&subscribe)).await;
        streams.push(stream);
    }
    let before = resident(&mesh);
    publish(120).await;
    assert_grew_less("120 MiB past eight subscribers that read nothing", before, resident(&mesh), 160 * MIB);
    assert_serves(&mesh).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_idle_connections_and_streams_cost_little() {
    const MANY: usize = 1000;
    let (mesh, _, _) = victim().await;
    let before = resident(&mesh);
    let transport = Libp2p::new().unwrap();
    let mut idle = Vec::new();
    for _ in 0..MANY {
        idle.push(greeted(&mesh, &transport).await);
    }
    assert_serves(&mesh).await;
    let between = resident(&mesh);
    assert_grew_less("a thousand idle conversations", before, between, 96 * MIB);
    drop(idle);
    let begun = Instant::now();
    let mut connections = Vec::new();
    for few in 0..MANY / 20 {
        let opened: FuturesUnordered<_> = (0..20)
            .map(|_| async {
                let transport = Libp2p::new().unwrap();
                let stream = open(&mesh, &transport, "client").await;
                (transport, stream)
            })
            .collect();
        connections.extend(timeout(SOON, opened.collect::<Vec<_>>()).await.expect("connections are taken"));
        if few == 0 {
            println!("the first twenty connections took {:?}", begun.elapsed());
        }
    }
    println!("a thousand connections took {:?}", begun.elapsed());
    assert_serves(&mesh).await;
    assert_grew_less("a thousand idle connections", between, resident(&mesh), 640 * MIB);
    // none of them has said anything: their streams are given up
    until("streams without a greeting are ended", SOON, async || {
        let counts = refused(&mesh).await;
        counts.get("late").filter(|late| **late >= 100).map(|_| ()).ok_or(format!("{counts:?}"))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_s_raft_messages_and_requests_do_no_harm() {
    let (mesh, client, group) = victim().await;
    let before = resident(&mesh);
    let transport = Libp2p::new().unwrap();
    let mut stream = open(&mesh, &transport, "raft").await;
    say(&mut stream, &framed(&RaftHello { version: 1, boot: 1, nonce: 9, ..RaftHello::default() })).await;
    assert_eq!(verdict(&mut stream).await.refused, None);
    let mut rng = Rng::new(11);
    for _ in 0..200 {
        let messages = (0..100).map(|_| {
            let number = |rng: &mut Rng| rng.next_u64() >> rng.below(64);
            let message = RaftMessage {
                msg_type: rng.below(20) as i32,
                to: 1,
                // in the name of the group's own replica, which is on another peer than this one
                from: 1,
                term: number(&mut rng),
                index: number(&mut rng),
                log_term: number(&mut rng),
                commit: number(&mut rng),
                context: garbage(&mut rng, 16).into(),
                ..RaftMessage::default()
            };
            let of = if rng.below(2) == 0 { group.0 } else { rng.next_u64() };
            RaftEnvelope { group: of, message }
        });
        say(&mut stream, &framed(&RaftBatch { messages: messages.collect() })).await;
    }
    // more messages than anybody sends at a time: two bytes each, and hundreds in memory
    let crowd = RaftBatch { messages: vec![RaftEnvelope::default(); 1 << 20] };
    let rest = answered::<RaftVerdict>(&mut stream, &framed(&crowd), false).await;
    assert!(rest.is_empty());
    assert_serves(&mesh).await;

    let opening = Opening { protocol: "peer", ..Opening::client(mesh.mesh(), "default") };
    let addresses = [mesh.peer(0).unwrap().address().unwrap()];
    let opened = until("a conversation is open", SOON, async || {
        let opened = Connection::open(&transport, None, &addresses, &opening, SOON).await;
        opened.map_err(|error| error.to_string())
    });
    let peer = opened.await.unwrap();
    let asked = async |ask: Ask| peer.request(ask, SOON).await.map(|_| ()).map_err(|error| error.code);
    let piece = |hash: Vec<u8>| Ask::Piece(PieceAsk { hash: hash.into(), offset: u64::MAX, length: u32::MAX });
    assert_eq!(asked(piece(vec![9; 32])).await, Err(Code::NotHere));
    assert_eq!(asked(piece(vec![9; 31])).await, Err(Code::InvalidArgument));
    let seed = Seed { group: 7, mesh: vec![1; 16], ..Seed::default() };
    assert_eq!(asked(Ask::CreateReplica(seed.clone())).await, Err(Code::Incompatible));
    assert_eq!(asked(Ask::RemoveReplica(RemoveReplica { group: 7, replica: 1 })).await, Ok(()));
    assert_eq!(asked(Ask::GroupStatus(7)).await.map_err(|code| code == Code::UnknownGroup), Err(true));
    let absent = asked(Ask::Blob(BlobAsk { hash: vec![9; 32].into(), number: u32::MAX })).await;
    println!("a piece of a component that is not there: {absent:?}");
    let opening = Opening::client(mesh.mesh(), "default");
    let guest = Connection::open(&transport, None, &addresses, &opening, SOON).await.unwrap();
    let refused_seed = guest.request(Ask::CreateReplica(seed), SOON).await.map(|_| ()).map_err(|error| error.code);
    assert_eq!(refused_seed, Err(Code::InvalidArgument), "only peers ask this of each other");
    assert_serves(&mesh).await;
    assert_grew_less("messages of a stranger", before, resident(&mesh), 96 * MIB);
    assert!(refused(&mesh).await.get("malformed") >= Some(&1));
    assert!(client.peer_status().await.unwrap().joined);
    let log = std::fs::read_to_string(mesh.peer(0).unwrap().log()).unwrap();
    assert!(!log.contains("panicked at"), "{log}");
}
