//! What the tests share: meshes within a budget of processes, a publisher, subscribers, a small function, the CLI.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use canal_proto::catalog::{Start, TriggerInfo};
use canal_proto::event::Stored;
use canal_sdk::publisher::Deadline;
use canal_sdk::transport::libp2p::Libp2p;
use canal_sdk::{Client, Code, Delivered, Event, From, FunctionLimits, GroupId, Publisher, PublisherOptions};
use canal_testnet::replica::{self, Source};
use canal_testnet::{Options, Scenario, Testnet, until};
use futures::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinHandle;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};

/// For anything that has to happen: many elections of a debug build on a busy machine.
pub const SOON: Duration = Duration::from_secs(90);
/// Peers that run at a time, in all tests of this binary.
const MAX_PEERS: u32 = 9;

static PEERS: Semaphore = Semaphore::const_new(MAX_PEERS as usize);

/// The program under test.
pub fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_canal-testnet").into()
}

/// Room for so many peers, beside those of other tests.
pub async fn room(peers: usize) -> SemaphorePermit<'static> {
    PEERS.acquire_many(u32::try_from(peers).unwrap().min(MAX_PEERS)).await.unwrap()
}

/// A testnet, with its place in the budget.
pub struct Mesh {
    // before its place is given away
    net: Testnet,
    _room: SemaphorePermit<'static>,
}

impl Deref for Mesh {
    type Target = Testnet;

    fn deref(&self) -> &Testnet {
        &self.net
    }
}

/// A mesh of so many peers that stands.
pub async fn mesh(peers: usize) -> Mesh {
    let _room = room(peers).await;
    let options = Options { keep: std::env::var_os("CANAL_TEST_KEEP").is_some(), ..Options::new(program()) };
    Mesh { net: Testnet::start(&Scenario::of(peers), options).await.unwrap(), _room }
}

/// A mesh of so many peers, none of them started yet, with more arguments of `canal start`.
pub async fn prepared(peers: usize, arguments: &[&str]) -> Mesh {
    prepared_as(&Scenario::of(peers), arguments).await
}

/// The same for other peers.
pub async fn prepared_as(scenario: &Scenario, arguments: &[&str]) -> Mesh {
    let _room = room(scenario.expanded().len()).await;
    let options = Options {
        keep: std::env::var_os("CANAL_TEST_KEEP").is_some(),
        arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
        ..Options::new(program())
    };
    Mesh { net: Testnet::prepare(scenario, options).unwrap(), _room }
}

/// A publisher that never gives up.
pub async fn patient(client: &Client, topic: &str) -> Publisher {
    let options = PublisherOptions { deadline: Deadline::Never, ..PublisherOptions::default() };
    client.publisher_with(topic, options).await.unwrap()
}

/// The n-th event of a test: all have one key, so that functions handle them in order.
pub fn numbered(n: u64) -> Event {
    Event::new(n.to_string()).with_key("k")
}

/// Takes the events `range` without waiting for receipts; each receipt must name the offset that is its number.
pub async fn send(publisher: &Publisher, range: std::ops::Range<u64>) -> JoinHandle<u64> {
    let mut pending = Vec::new();
    for n in range {
        pending.push((n, publisher.send(numbered(n)).await.unwrap()));
    }
    tokio::spawn(async move {
        let mut acknowledged = 0;
        for (n, receipt) in pending {
            assert_eq!(receipt.await.unwrap().offset, Some(n), "the receipt of event {n}");
            acknowledged += 1;
        }
        acknowledged
    })
}

/// Waits for a handle of [`send`].
pub async fn received(sent: JoinHandle<u64>) -> u64 {
    tokio::time::timeout(2 * SOON, sent).await.expect("receipts come").unwrap()
}

/// Collects what a subscription of this client delivers until every topic has its count.
pub async fn collect(
    client: &Client,
    pattern: &str,
    from: From,
    counts: &[(&str, usize)],
) -> JoinHandle<BTreeMap<String, Vec<Delivered>>> {
    let mut subscription = client.subscribe(pattern, from).await.unwrap();
    let counts: BTreeMap<String, usize> = counts.iter().map(|(topic, count)| ((*topic).to_owned(), *count)).collect();
    tokio::spawn(async move {
        let mut seen: BTreeMap<String, Vec<Delivered>> = BTreeMap::new();
        let done = |seen: &BTreeMap<String, Vec<Delivered>>| {
            counts.iter().all(|(topic, count)| seen.get(topic).map_or(0, Vec::len) >= *count)
        };
        let all = async {
            while !done(&seen) {
                let delivered = subscription.next().await.expect("the subscription goes on").unwrap();
                seen.entry(delivered.topic.to_string()).or_default().push(delivered);
            }
        };
        let late = tokio::time::timeout(2 * SOON, all).await.is_err();
        let has: Vec<_> = seen.iter().map(|(topic, events)| (topic, events.len())).collect();
        assert!(!late, "wanted {counts:?}, got {has:?}");
        seen
    })
}

/// Asserts that these are the events 0, 1, 2 … at their offsets: none lost, none doubled, none out of order.
pub fn assert_numbered<'a>(what: &str, events: impl IntoIterator<Item = (u64, &'a Event)>, count: u64) {
    let mut next = 0;
    for (offset, event) in events {
        assert_eq!(offset, next, "{what}: offset");
        assert_eq!(event.payload, next.to_string().as_bytes(), "{what}: payload at offset {offset}");
        next += 1;
    }
    assert_eq!(next, count, "{what}: number of events");
}

/// The same for what was delivered.
pub fn assert_delivered(what: &str, seen: &BTreeMap<String, Vec<Delivered>>, topic: &str, count: u64) {
    let events = seen.get(topic).map(Vec::as_slice).unwrap_or_default();
    assert_numbered(&format!("{what}, {topic}"), events.iter().map(|d| (d.offset, &d.event)), count);
}

/// Reads a topic from every replica of its group that runs, at least so many events; asserts that there are
/// `replicas` and that they are alike, and returns what they hold.
pub async fn read_back(net: &Testnet, client: &Client, topic: &str, count: usize, replicas: usize) -> Vec<Stored> {
    let group = GroupId(client.topic_status(topic).await.unwrap().group);
    let status = net.wait_group(group).await.unwrap();
    let holds = |id| status.replicas.iter().any(|replica| replica.peer_id() == Ok(id));
    let transport = Libp2p::new().unwrap();
    let mut first: Option<Vec<Stored>> = None;
    let mut read = 0;
    for peer in net.peers().iter().filter(|peer| peer.is_running() && holds(peer.id().unwrap())) {
        let address = peer.address().unwrap();
        let source = Source { mesh: net.mesh(), address: &address, topic };
        let what = format!("peer {} serves {topic}", peer.number());
        let events = until(&what, SOON, async || match replica::read(&transport, source, count, SOON).await {
            // it has just come back
            Err(error) if matches!(error.code, Code::NotHere | Code::UnknownTopic | Code::Unreachable) => {
                Err(error.to_string())
            }
            other => Ok(other),
        });
        let events = events.await.unwrap().unwrap();
        read += 1;
        match &first {
            Some(first) => assert!(*first == events, "peer {} holds another `{topic}`", peer.number()),
            None => first = Some(events),
        }
    }
    assert_eq!(read, replicas, "replicas of {topic} that were read");
    first.unwrap()
}

/// A component that emits each event, as it is, to this topic.
pub fn forward(to: &str) -> Vec<u8> {
    let module = format!(
        r#"(module
  (import "canal:function/host@1.0.0" "emit" (func $emit (param i32 i32 i32 i32 i32 i32 i32 i32 i32)))
  (memory (export "memory") 64)
  (global $heap (mut i32) (i32.const 65536))
  (data (i32.const 2000) "{to}")
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
    (global.set $heap (i32.add (local.get $at) (local.get 3)))
    (local.get $at))
  (func (export "handle")
    (param $topic i32) (param $topic_len i32) (param $offset i64) (param $key i32) (param $key_len i32)
    (param $headers i32) (param $headers_len i32) (param $payload i32) (param $payload_len i32) (param $time i64)
    (result i32)
    (call $emit (i32.const 2000) (i32.const {len}) (local.get $key) (local.get $key_len)
      (local.get $headers) (local.get $headers_len) (local.get $payload) (local.get $payload_len) (i32.const 1024))
    ;; a host error fails the run: err(string "emit", 4 bytes)
    (if (result i32) (i32.load8_u (i32.const 1024)) (then (i32.const 3016)) (else (i32.const 3000))))
  (data (i32.const 2900) "emit")
  (data (i32.const 3016) "\01\00\00\00\54\0b\00\00\04\00\00\00"))"#,
        len = to.len()
    );
    component(&module)
}

/// A component whose `handle` never comes to an end.
pub fn endless() -> Vec<u8> {
    component(
        r#"(module
  (memory (export "memory") 2)
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 65536))
  (func (export "handle") (param i32 i32 i64 i32 i32 i32 i32 i32 i32 i64) (result i32)
    (loop $for_ever (br $for_ever)) (i32.const 0)))"#,
    )
}

fn component(module: &str) -> Vec<u8> {
    let mut module = wat::parse_str(module).unwrap();
    let mut resolve = wit_parser::Resolve::default();
    let package = resolve.push_str("function.wit", canal_proto::FUNCTION_WIT).unwrap();
    let world = resolve.select_world(&[package], None).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default().validate(true).module(&module).unwrap().encode().unwrap()
}

/// Deploys a component and fires it on a pattern, from the first event on.
pub async fn fire(client: &Client, name: &str, component: Vec<u8>, on: &str) -> TriggerInfo {
    client.deploy(name, component, FunctionLimits::default()).await.unwrap();
    let trigger = TriggerInfo {
        name: name.into(),
        function: name.into(),
        patterns: vec![on.into()],
        start: Start::Earliest.into(),
        ..TriggerInfo::default()
    };
    client.create_trigger(trigger).await.unwrap().info
}

/// What a command came to.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs the program with these arguments; it must end soon.
pub async fn run(arguments: &[&str], input: &[u8]) -> Ran {
    let mut command = tokio::process::Command::new(program());
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CANAL_")) {
        command.env_remove(name);
    }
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // one that ends early does not read all
    drop(stdin.write_all(input).await);
    drop(stdin);
    let output = tokio::time::timeout(3 * SOON, child.wait_with_output()).await.expect("the command ends").unwrap();
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs `canal` against a peer.
pub async fn canal(peer: &str, arguments: &[&str], input: &[u8]) -> Ran {
    run(&[&["canal"], arguments, &["--peer", peer]].concat(), input).await
}

/// A file in the mesh's own directory.
pub fn file(dir: &Path, name: &str, content: &[u8]) -> String {
    let path = dir.join(name);
    std::fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}
