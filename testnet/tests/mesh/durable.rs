//! Durable subscriptions, flow and relays: subscribers, the peers that serve them and leaders die, and nothing is lost.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use canal_proto::Code;
use canal_proto::request::{Answer, Ask, SubscriptionsAsk};
use canal_sdk::{Client, Delivered, Event, From, GroupId, SubscribeOptions, Subscription, Target};
use canal_testnet::until;
use futures::StreamExt;
use futures::future::join_all;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::common::{Mesh, SOON, canal, mesh, patient, program, received, send};

/// A `canal sub --durable` in a process of its own, with the offsets that it has printed.
struct Process {
    child: Child,
    printed: Arc<Mutex<Vec<u64>>>,
    reader: JoinHandle<()>,
}

impl Process {
    fn start(peer: &str, topic: &str, name: &str) -> Self {
        let mut command = tokio::process::Command::new(program());
        command.args(["canal", "sub", topic, "--durable", name, "--from", "earliest", "--json", "--timeout", "60"]);
        command.args(["--peer", peer]).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CANAL_")) {
            command.env_remove(name);
        }
        let mut child = command.spawn().unwrap();
        let printed: Arc<Mutex<Vec<u64>>> = Arc::default();
        let (into, mut lines) = (Arc::clone(&printed), BufReader::new(child.stdout.take().unwrap()).lines());
        let reader = tokio::spawn(async move {
            while let Some(line) = lines.next_line().await.unwrap() {
                let event: Value = serde_json::from_str(&line).unwrap();
                let offset = event["offset"].as_u64().unwrap();
                assert_eq!(event["payload"], offset.to_string());
                into.lock().push(offset);
            }
        });
        Self { child, printed, reader }
    }

    /// Waits until it has printed the event before this offset.
    async fn until_printed(&self, next: u64) {
        until("the subscriber prints", SOON, async || {
            let last = self.printed.lock().last().copied();
            if last.is_some_and(|last| last + 1 >= next) { Ok(()) } else { Err(format!("{last:?} of {next}")) }
        })
        .await
        .unwrap();
    }

    /// Kills it (SIGKILL), and gives what it has printed.
    async fn kill(mut self) -> Vec<u64> {
        self.child.kill().await.unwrap();
        self.reader.await.unwrap();
        std::mem::take(&mut *self.printed.lock())
    }
}

fn assert_consecutive(what: &str, offsets: &[u64]) {
    assert!(offsets.windows(2).all(|pair| pair[1] == pair[0] + 1), "{what}: {offsets:?}");
}

async fn cursor(client: &Client, topic: &str, name: &str) -> u64 {
    let all = client.subscriptions(topic).await.unwrap();
    all.subscriptions.iter().find(|row| row.name == name).unwrap().next
}

/// The number of a peer that holds no replica of a group.
async fn outsider(mesh: &Mesh, group: GroupId) -> usize {
    let status = mesh.wait_group(group).await.unwrap();
    let holds = |id| status.replicas.iter().any(|replica| replica.peer_id() == Ok(id));
    mesh.peers().iter().find(|peer| !holds(peer.id().unwrap())).unwrap().number()
}

async fn named(client: &Client, pattern: &str, name: &str) -> Subscription {
    let options = SubscribeOptions { from: From::Earliest, durable: Some(name.into()), ..SubscribeOptions::default() };
    client.subscribe_with(pattern, options).await.unwrap()
}

async fn take(events: &mut Subscription, count: usize) -> Vec<Delivered> {
    let mut taken = Vec::new();
    for _ in 0..count {
        taken.push(timeout(SOON, events.next()).await.expect("events come").unwrap().unwrap());
    }
    taken
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_durable_subscription_outlives_its_subscriber_its_peer_and_its_leader() {
    let mesh = mesh(3).await;
    let client = mesh.client(0).await.unwrap();
    let group = mesh.create_topic(&client, "t", "g", 3).await.unwrap();
    let publisher = patient(&client, "t").await;
    let leader = mesh.leader(group).await.unwrap();
    let serving = (leader + 1) % 3;
    let entry = |number: usize| mesh.peer(number).unwrap().address().unwrap();

    received(send(&publisher, 0..200).await).await;
    let first = Process::start(&entry(serving), "t", "audit");
    first.until_printed(200).await;
    let under_way = send(&publisher, 200..2_000).await;
    first.until_printed(300).await;
    let before = cursor(&client, "t", "audit").await;
    let first = first.kill().await;
    assert_consecutive("the first subscriber", &first);
    assert_eq!(first[0], 0);
    received(under_way).await;

    // the second goes on where the first was known to be: nothing is lost, and what comes again was not handled
    let second = Process::start(&entry(serving), "t", "audit");
    second.until_printed(2_000).await;
    {
        let printed = second.printed.lock();
        assert!(printed[0] >= before && printed[0] <= first.last().unwrap() + 1, "{before} {} {first:?}", printed[0]);
    }

    // the peer that serves it dies, then the leader: the same subscriber gets every event once
    mesh.peer(serving).unwrap().kill().unwrap();
    received(send(&publisher, 2_000..2_500).await).await;
    second.until_printed(2_500).await;
    mesh.restart(serving).await.unwrap();
    mesh.wait_group(group).await.unwrap();
    let leader = mesh.leader(group).await.unwrap();
    let under_way = send(&publisher, 2_500..3_000).await;
    mesh.peer(leader).unwrap().kill().unwrap();
    received(under_way).await;
    second.until_printed(3_000).await;
    // its cursor follows
    let survivor = mesh.client((leader + 1) % 3).await.unwrap();
    until("all is handled", SOON, async || {
        let rows = survivor.subscriptions("t").await.map_err(|error| error.to_string())?.subscriptions;
        let next = rows.first().map(|row| row.next);
        if next == Some(3_000) { Ok(()) } else { Err(format!("{next:?}")) }
    })
    .await
    .unwrap();
    let second = second.kill().await;
    assert_consecutive("the second subscriber", &second);
    assert_eq!(second.last(), Some(&2_999));

    // the third finds nothing left, and one more event is its first
    received(send(&publisher, 3_000..3_001).await).await;
    let third = Process::start(&entry((leader + 1) % 3), "t", "audit");
    third.until_printed(3_001).await;
    assert_eq!(third.kill().await, [3_000]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_later_subscriber_takes_over_wherever_it_is() {
    let mesh = mesh(4).await;
    let client = mesh.client(0).await.unwrap();
    let group = mesh.create_topic(&client, "t", "g", 3).await.unwrap();
    let outsider = outsider(&mesh, group).await;
    let publisher = patient(&client, "t").await;
    received(send(&publisher, 0..20).await).await;
    let mut holder = named(&mesh.client(outsider).await.unwrap(), "t", "n").await;
    take(&mut holder, 20).await;
    let mut sent = 20;
    // at a replica, at a peer without one, and at a replica again
    for number in [(outsider + 1) % 4, outsider, (outsider + 2) % 4] {
        let mut later = named(&mesh.client(number).await.unwrap(), "t", "n").await;
        let told = timeout(Duration::from_secs(10), async {
            loop {
                if let Err(error) = holder.next().await.expect("an error comes before the end") {
                    return error;
                }
            }
        });
        assert_eq!(told.await.expect("the earlier one is told").code, Code::TakenOver);
        received(send(&publisher, sent..sent + 10).await).await;
        sent += 10;
        let seen = take(&mut later, 30).await;
        let offsets: Vec<u64> = seen.iter().map(|delivered| delivered.offset).collect();
        assert_eq!(offsets, (sent - 30..sent).collect::<Vec<_>>(), "what nobody has handled comes again");
        later.handled(&seen[9]);
        // it keeps it, also when it has to go elsewhere
        until("the cursor is moved", SOON, async || {
            let next = cursor(&client, "t", "n").await;
            if next == sent - 20 { Ok(()) } else { Err(format!("{next}")) }
        })
        .await
        .unwrap();
        holder = later;
    }
    // one can be asked for by its name; how the group stands says nothing of any
    let _other = named(&client, "t", "o").await;
    let ask = |name: &str| Ask::Subscriptions(SubscriptionsAsk { topic: "t".into(), name: name.into() });
    for (name, found) in [("", vec!["n", "o"]), ("n", vec!["n"]), ("m", vec![])] {
        let answer = client.call(Target::Topic("t".into()), ask(name)).await.unwrap();
        let Answer::Subscriptions(answer) = answer else { panic!("{answer:?}") };
        let names: Vec<_> = answer.subscriptions.iter().map(|row| row.name.as_str()).collect();
        assert_eq!((names, answer.head), (found, sent), "asked for `{name}`");
    }
    assert_eq!(client.topic_status("t").await.unwrap().subscriptions.len(), 2);
    let brief = client.group_status(group).await.unwrap().topics.remove(0);
    assert_eq!((brief.next, brief.producers, brief.subscriptions.len()), (sent, 1, 0));
    client.remove_subscription("t", "o").await.unwrap();
    let topic = mesh.peer(0).unwrap().address().unwrap();
    let listed = canal(&topic, &["subscription", "ls", "--all", "--json"], b"").await;
    let listed: Value = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!((&listed[0]["name"], &listed[0]["next"], &listed[0]["lag"]), (&"n".into(), &30.into(), &20.into()));
    let removed = canal(&topic, &["subscription", "rm", "t", "n"], b"").await;
    assert_eq!((removed.code, removed.stdout.as_str()), (Some(0), "durable subscription `n` of `t` is removed\n"));
    let told = timeout(Duration::from_secs(10), holder.next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(told.code, Code::UnknownSubscription);
    let again = canal(&topic, &["subscription", "rm", "t", "n"], b"").await;
    assert_eq!(again.code, Some(Code::UnknownSubscription.exit_code().into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_subscriber_lags_alone_and_is_told_by_how_much() {
    const EVENTS: u64 = 8_000;
    let mesh = mesh(4).await;
    let client = mesh.client(0).await.unwrap();
    let group = mesh.create_topic(&client, "t", "g", 3).await.unwrap();
    let outsider = outsider(&mesh, group).await;
    let mut slow = Vec::new();
    let mut fast = Vec::new();
    // at a replica, and at a peer without one, where the events are more than its ring holds
    for number in [(outsider + 1) % 4, outsider] {
        let at = mesh.client(number).await.unwrap();
        let options = SubscribeOptions { from: From::Earliest, credit: 64 << 10, ..SubscribeOptions::default() };
        slow.push(at.subscribe_with("t", options).await.unwrap());
        let mut events = at.subscribe("t", From::Earliest).await.unwrap();
        fast.push(tokio::spawn(async move {
            let seen = take(&mut events, EVENTS.try_into().unwrap()).await;
            assert!(seen.iter().map(|delivered| delivered.offset).eq(0..EVENTS));
        }));
    }
    let publisher = patient(&client, "t").await;
    let payload = vec![b'x'; 1_000];
    for _ in 0..EVENTS {
        drop(publisher.send(Event::new(payload.clone())).await.unwrap());
    }
    publisher.flush().await.unwrap();
    for fast in fast {
        timeout(SOON, fast).await.expect("who reads fast has all, whoever reads slowly").unwrap();
    }
    for mut events in slow {
        take(&mut events, 1).await;
        until("it is told how far it lags", SOON, async || {
            let lag = events.lag();
            if lag.total() == EVENTS - 1 { Ok(()) } else { Err(format!("{lag:?}")) }
        })
        .await
        .unwrap();
        let seen = take(&mut events, (EVENTS - 1).try_into().unwrap()).await;
        assert!(seen.iter().map(|delivered| delivered.offset).eq(1..EVENTS), "nothing was dropped for it");
        assert_eq!(events.lag().total(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_durable_pattern_takes_up_topics_that_come_later() {
    let mesh = mesh(1).await;
    let client = mesh.client(0).await.unwrap();
    mesh.create_topic(&client, "p/a", "g", 1).await.unwrap();
    let a = patient(&client, "p/a").await;
    received(send(&a, 0..10).await).await;
    let mut events = named(&client, "p/+", "n").await;
    for delivered in take(&mut events, 10).await {
        events.handled(&delivered);
    }
    events.close().await.unwrap();
    // created and written to while nobody listens
    received(send(&a, 10..15).await).await;
    mesh.create_topic(&client, "p/b", "g", 1).await.unwrap();
    received(send(&patient(&client, "p/b").await, 0..5).await).await;
    let mut events = named(&client, "p/+", "n").await;
    let mut seen = take(&mut events, 10).await;
    // and while somebody does
    mesh.create_topic(&client, "p/c", "g", 1).await.unwrap();
    received(send(&patient(&client, "p/c").await, 0..5).await).await;
    seen.extend(take(&mut events, 5).await);
    let mut rows: Vec<(String, u64)> = seen.iter().map(|event| (event.topic.to_string(), event.offset)).collect();
    rows.sort();
    let expected = [("p/a", 10..15), ("p/b", 0..5), ("p/c", 0..5)];
    let expected = expected.into_iter().flat_map(|(topic, range)| range.map(move |n| (topic.to_owned(), n)));
    assert_eq!(rows, expected.collect::<Vec<_>>());
    seen.iter().for_each(|delivered| events.handled(delivered));
    events.close().await.unwrap();
    for (topic, next) in [("p/a", 15), ("p/b", 5), ("p/c", 5)] {
        assert_eq!(cursor(&client, topic, "n").await, next, "{topic}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_crosses_to_a_peer_once_however_many_read_it_there() {
    const SUBSCRIBERS: u64 = 200;
    const EVENTS: u64 = 100;
    const PAYLOAD: u64 = 1_000;
    let mesh = mesh(4).await;
    let client = mesh.client(0).await.unwrap();
    let group = mesh.create_topic(&client, "t", "g", 3).await.unwrap();
    let outsider = mesh.peer(outsider(&mesh, group).await).unwrap();
    let before = outsider.status().await.unwrap();
    // several clients: their streams share a connection each
    let mut subscriptions = Vec::new();
    for _ in 0..4 {
        let at = outsider.client().await.unwrap();
        let opened = (0..SUBSCRIBERS / 4).map(|_| at.subscribe("t", From::Earliest));
        subscriptions.extend(join_all(opened).await.into_iter().map(Result::unwrap));
    }
    let publisher = patient(&client, "t").await;
    for _ in 0..EVENTS {
        drop(publisher.send(Event::new(vec![b'x'; usize::try_from(PAYLOAD).unwrap()])).await.unwrap());
    }
    publisher.flush().await.unwrap();
    let read = subscriptions.into_iter().map(|mut events| async move {
        let seen = take(&mut events, EVENTS.try_into().unwrap()).await;
        assert!(seen.iter().map(|delivered| delivered.offset).eq(0..EVENTS));
        events
    });
    let held = join_all(read).await;
    let after = outsider.status().await.unwrap();
    let (came_in, went_out) = (after.relayed_in - before.relayed_in, after.relayed_out - before.relayed_out);
    let payload = EVENTS * PAYLOAD;
    assert!((payload..=payload * 3 / 2).contains(&came_in), "{came_in} bytes came in for {payload} of payload");
    // a subscriber that hears nothing for 3 s, on a busy machine, goes to a replica
    let copies = went_out / came_in;
    assert!((SUBSCRIBERS * 9 / 10..=SUBSCRIBERS).contains(&copies), "{went_out} bytes went out of {came_in}");
    // the replica that it reads from dies: it goes on at another one, and still once
    drop(held);
    let mut events = outsider.client().await.unwrap().subscribe("t", From::Latest).await.unwrap();
    let leader = mesh.leader(group).await.unwrap();
    mesh.peer(leader).unwrap().kill().unwrap();
    for n in 0..50 {
        drop(publisher.send(Event::new(n.to_string())).await.unwrap());
    }
    publisher.flush().await.unwrap();
    let seen = take(&mut events, 50).await;
    assert!(seen.iter().map(|delivered| delivered.offset).eq(EVENTS..EVENTS + 50));
}
