//! Publishers that lose their mesh: what they queued is published once and in order, whoever dies and comes back.

use std::process::Stdio;
use std::time::{SystemTime, UNIX_EPOCH};

use canal_sdk::Code;
use canal_testnet::until;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

use crate::common::{SOON, assert_numbered, canal, mesh, program, read_back, run};

/// Lines with the numbers of a range: the payloads of `numbered` events.
fn lines(range: std::ops::Range<u64>) -> Vec<u8> {
    range.map(|n| format!("{n}\n")).collect::<String>().into_bytes()
}

fn spawn(arguments: &[&str]) -> Child {
    let mut command = Command::new(program());
    command.arg("canal").args(arguments).kill_on_drop(true);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CANAL_")) {
        command.env_remove(name);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

async fn listed(queue: &str) -> Value {
    let ran = run(&["canal", "queue", "ls", queue, "--json"], b"").await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    serde_json::from_str(&ran.stdout).unwrap()
}

fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_queued_while_all_peers_are_down_arrives_once_and_in_order() {
    let mesh = mesh(3).await;
    let client = mesh.client(0).await.unwrap();
    let group = mesh.create_topic(&client, "t", "g", 3).await.unwrap();
    let old = mesh.leader(group).await.unwrap();
    let address = mesh.peer(0).unwrap().address().unwrap();
    let queue = mesh.dir().join("queue").to_str().unwrap().to_owned();
    // one goes through, so that the group knows the producer
    let ran = canal(&address, &["pub", "t", "0", "--queue", &queue], b"").await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "t queued as 1\n"), "{ran:?}");
    assert!(ran.stderr.contains("1 handed over; none waits"), "{ran:?}");
    mesh.kill_all().unwrap();

    // nobody can be reached: that is no failure
    let ran = canal(&address, &["pub", "t", "--stdin", "--queue", &queue, "--timeout", "5"], &lines(1..200)).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(ran.stdout.lines().last(), Some("t queued as 200"));
    assert!(ran.stderr.contains("199 events wait there (no peer can be reached"), "{ran:?}");
    let before = listed(&queue).await;
    assert_eq!((&before["events"], &before["topics"][0]["topic"]), (&199.into(), &"t".into()));
    assert_eq!(before["topics"][0]["first_sequence"], 2);

    // the device loses its power while it goes on
    let mut device = spawn(&["pub", "t", "--stdin", "--queue", &queue, "--peer", &address, "--timeout", "60"]);
    let mut input = device.stdin.take().unwrap();
    let mut told = BufReader::new(device.stdout.take().unwrap()).lines();
    for n in 200..300_u64 {
        input.write_all(format!("{n}\n").as_bytes()).await.unwrap();
        input.flush().await.unwrap();
        let line = tokio::time::timeout(SOON, told.next_line()).await.unwrap().unwrap();
        assert_eq!(line.unwrap(), format!("t queued as {}", n + 1));
    }
    // only one may have it, and others may look
    let second = run(&["canal", "queue", "rm", &queue, "t", "--yes"], b"").await;
    assert_eq!(second.code, Some(i32::from(Code::InUse.exit_code())), "{second:?}");
    let owner = device.id().unwrap();
    assert!(second.stderr.contains(&format!("is open in another process ({owner})")), "{second:?}");
    until("what waits is shown", SOON, async || {
        let shown = listed(&queue).await;
        assert_eq!(shown["open_in"]["process"], owner, "{shown}");
        if shown["events"] == 299 { Ok(()) } else { Err(shown.to_string()) }
    })
    .await
    .unwrap();
    device.start_kill().unwrap();
    device.wait().await.unwrap();
    assert_eq!(listed(&queue).await["events"], 299, "what was told is there");
    let put_by = now_ms();

    // the leader of before stays away
    let others: Vec<usize> = (0..3).filter(|number| *number != old).collect();
    let (one, two) = tokio::join!(mesh.restart(others[0]), mesh.restart(others[1]));
    one.and(two).unwrap();
    let new = mesh.leader(group).await.unwrap();
    assert_ne!(new, old);
    let address = mesh.peer(others[0]).unwrap().address().unwrap();
    let ran = canal(&address, &["queue", "flush", &queue, "--json", "--timeout", "60"], b"").await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(serde_json::from_str::<Value>(&ran.stdout).unwrap()["waiting"], 0);
    assert_eq!(listed(&queue).await["events"], 0);

    mesh.restart(old).await.unwrap();
    let client = mesh.client(others[1]).await.unwrap();
    let events = read_back(&mesh, &client, "t", 300, 3).await;
    assert_numbered("t", events.iter().map(|stored| (stored.offset, &stored.event)), 300);
    assert!(events.iter().all(|stored| stored.event.time_ms <= put_by), "events keep their times");
    let producers: std::collections::BTreeSet<_> = events.iter().map(|stored| stored.producer.to_vec()).collect();
    assert_eq!(producers.len(), 1, "one producer over all restarts");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_dies_while_a_queue_is_handed_over_costs_nothing() {
    const EVENTS: u64 = 30_000;
    let mesh = mesh(3).await;
    let queue = mesh.dir().join("queue").to_str().unwrap().to_owned();
    let mut device = spawn(&["pub", "t", "--stdin", "--queue", &queue, "--no-wait"]);
    let mut input = device.stdin.take().unwrap();
    // what it says has to be read meanwhile
    let writes = tokio::spawn(async move { input.write_all(&lines(0..EVENTS)).await });
    let output = tokio::time::timeout(SOON, device.wait_with_output()).await.unwrap().unwrap();
    writes.await.unwrap().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout.ends_with(format!("t queued as {EVENTS}\n").as_bytes()));
    let client = mesh.client(0).await.unwrap();
    let survivor = |leader: usize| mesh.peer((leader + 1) % 3).unwrap().address().unwrap();

    // the topic is not there yet: that is waited for, and said
    let address = survivor(0);
    let ran = canal(&address, &["queue", "flush", &queue, "--timeout", "3"], b"").await;
    assert_eq!(ran.code, Some(i32::from(Code::UnknownTopic.exit_code())), "{ran:?}");
    assert_eq!(listed(&queue).await["topics"][0]["error"]["code"], "unknown-topic");

    let group = mesh.create_topic(&client, "t", "g", 3).await.unwrap();
    let leader = mesh.leader(group).await.unwrap();
    let watching = mesh.client((leader + 1) % 3).await.unwrap();
    let mut flush = spawn(&["queue", "flush", &queue, "--timeout", "60", "--peer", &survivor(leader)]);
    until("the hand-over has begun", SOON, async || {
        let next = watching.topic_status("t").await.map_err(|error| error.to_string())?.next;
        if next > 0 { Ok(()) } else { Err("nothing has arrived".into()) }
    })
    .await
    .unwrap();
    assert!(flush.try_wait().unwrap().is_none(), "it is on its way");
    mesh.peer(leader).unwrap().kill().unwrap();
    let ended = tokio::time::timeout(2 * SOON, flush.wait()).await.expect("it goes on with another leader").unwrap();
    assert!(ended.success(), "{ended}");
    assert_eq!(listed(&queue).await["events"], 0);
    let count = usize::try_from(EVENTS).unwrap();
    let events = read_back(&mesh, &watching, "t", count, 2).await;
    assert_numbered("t", events.iter().map(|stored| (stored.offset, &stored.event)), EVENTS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_made_again_gets_what_waits_and_an_ended_producer_is_given_up() {
    let mesh = mesh(3).await;
    let client = mesh.client(0).await.unwrap();
    mesh.create_topic(&client, "t", "g", 3).await.unwrap();
    let address = mesh.peer(0).unwrap().address().unwrap();
    let queue = mesh.dir().join("queue").to_str().unwrap().to_owned();
    let publish = async |range: std::ops::Range<u64>| {
        canal(&address, &["pub", "t", "--stdin", "--queue", &queue, "--timeout", "30"], &lines(range)).await
    };
    let ran = publish(0..5).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let before = listed(&queue).await["topics"][0]["producer"].clone();

    // under its name there is another one: it has none of these, and gets what comes
    client.remove_topic("t").await.unwrap();
    mesh.create_topic(&client, "t", "g", 3).await.unwrap();
    let ran = publish(0..20).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let events = read_back(&mesh, &client, "t", 20, 3).await;
    assert_numbered("t", events.iter().map(|stored| (stored.offset, &stored.event)), 20);
    let ran = publish(20..30).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let events = read_back(&mesh, &client, "t", 30, 3).await;
    assert_numbered("t", events.iter().map(|stored| (stored.offset, &stored.event)), 30);

    // somebody takes the producer for one that is done
    let ran = canal(&address, &["topic", "producers", "ls", "t", "--json"], b"").await;
    let producers: Value = serde_json::from_str(&ran.stdout).unwrap();
    let known = &producers["producers"][0];
    let producer = known["producer"].as_str().unwrap();
    assert!(producers["all"] == 1 && known["last_sequence"] == 30 && known["newest_offset"] == 29, "{ran:?}");
    assert_ne!(before, producer, "the topic before had another");
    let ended = canal(&address, &["topic", "producers", "end", "t", producer], b"").await;
    assert_eq!(ended.stdout, format!("producer {producer} of `t` is ended, at sequence 30\n"), "{ended:?}");
    let again = canal(&address, &["topic", "producers", "end", "t", producer], b"").await;
    assert_eq!(again.code, Some(i32::from(Code::InvalidArgument.exit_code())), "{again:?}");
    let ran = publish(30..31).await;
    assert_eq!(ran.code, Some(i32::from(Code::SequenceGap.exit_code())), "{ran:?}");
    assert!(ran.stderr.contains("it was ended") && ran.stderr.contains("`canal queue rm`"), "{ran:?}");

    // which nobody can make good but by giving up what waits
    let asked = run(&["canal", "queue", "rm", &queue, "t"], b"").await;
    assert_eq!(asked.code, Some(i32::from(Code::InvalidArgument.exit_code())), "{asked:?}");
    assert!(asked.stderr.contains("1 events (") && asked.stderr.contains("--yes"), "{asked:?}");
    let removed = run(&["canal", "queue", "rm", &queue, "t", "--yes"], b"").await;
    assert_eq!(removed.code, Some(0), "{removed:?}");
    let ran = publish(30..40).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let events = read_back(&mesh, &client, "t", 40, 3).await;
    assert_numbered("t", events.iter().map(|stored| (stored.offset, &stored.event)), 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_would_block() {
    let dir = tempfile::tempdir().unwrap();
    let queue = dir.path().join("q").to_str().unwrap().to_owned();
    let offline = ["canal", "pub", "t", "--stdin", "--queue", &queue, "--no-wait", "--queue-events", "10"];
    let ran = run(&offline, &lines(0..15)).await;
    assert_eq!(ran.code, Some(i32::from(Code::WouldBlock.exit_code())), "{ran:?}");
    assert_eq!(ran.stdout.lines().count(), 10, "{ran:?}");
    assert!(ran.stderr.contains("the queue is full: 10 events of 10"), "{ran:?}");
    assert_eq!(listed(&queue).await["events"], 10);
    // nothing was dropped to make room, and there is none for one more
    let ran = run(&["canal", "pub", "t", "x", "--queue", &queue, "--no-wait", "--queue-events", "10"], b"").await;
    assert_eq!(ran.code, Some(i32::from(Code::WouldBlock.exit_code())), "{ran:?}");
    let ran = run(&["canal", "pub", "t", "x", "--queue", &queue, "--no-wait", "--queue-events", "11"], b"").await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "t queued as 11\n"), "{ran:?}");
    // a moment is enough to see that nobody is there
    let ran = tokio::time::timeout(SOON / 2, canal("127.0.0.1:1", &["queue", "flush", &queue], b"")).await.unwrap();
    assert_eq!(ran.code, Some(i32::from(Code::Unreachable.exit_code())), "{ran:?}");
    assert!(ran.stderr.contains("11 left in the queue"), "{ran:?}");
}
