//! Beginning and end: a mesh of one, a drain, a stopped peer, a testnet that is killed.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use canal_sdk::{Client, Code, Options, TopicOptions};
use canal_testnet::until;
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::common::{SOON, assert_numbered, canal, file, mesh, patient, program, read_back, received, room, run, send};

/// A process that is killed with its owner.
struct Owned(std::process::Child);

impl Drop for Owned {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mesh_of_one_works_without_arguments() {
    let _room = room(1).await;
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(program());
    command.args(["canal", "start", "--json", "--listen", "127.0.0.1:0", "--data"]).arg(dir.path().join("data"));
    // a name of its own, and no mDNS: it must not meet other meshes that are tested on this machine
    command.args(["--mesh", "alone", "--no-mdns"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = Owned(command.spawn().unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    // its output stays open as long as it runs
    let (line, _lines) = tokio::task::spawn_blocking(move || (lines.next().unwrap().unwrap(), lines)).await.unwrap();
    let started: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(started["event"], "started");
    assert!(started["peer"].as_str().unwrap().starts_with("12D3KooW"), "{line}");
    let address = started["addresses"][0].as_str().unwrap().to_owned();
    let options = Options { mesh: "alone".into(), ..Options::default() };
    let client = Client::connect(&address, options).await.unwrap();
    client.create_topic("hello", TopicOptions::default()).await.unwrap();
    let ran = canal(&address, &["pub", "hello", "world", "--mesh", "alone", "--json"], b"").await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let receipt: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(receipt["offset"], 0, "{ran:?}");
    let lines = canal(&address, &["pub", "hello", "--stdin", "--mesh", "alone"], b"one\ntwo\n").await;
    assert_eq!(lines.code, Some(0), "{lines:?}");
    let sub = ["sub", "hello", "--from", "earliest", "--count", "3", "--mesh", "alone"];
    let read = canal(&address, &sub, b"").await;
    assert_eq!(read.code, Some(0), "{read:?}");
    let at = |text: &str| read.stdout.find(text).unwrap_or_else(|| panic!("`{text}` is missing: {read:?}"));
    assert!(at("world") < at("one") && at("one") < at("two"), "{read:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_peer_hands_its_groups_over_and_exits_0() {
    let mesh = mesh(3).await;
    let client = mesh.client(0).await.unwrap();
    let group = mesh.create_topic(&client, "t", "g", 3).await.unwrap();
    let leader = mesh.leader(group).await.unwrap();
    let other = mesh.peer((leader + 1) % 3).unwrap().client().await.unwrap();
    let before = other.group_status(group).await.unwrap();
    let publisher = patient(&other, "t").await;
    received(send(&publisher, 0..200).await).await;
    let under_way = send(&publisher, 200..400).await;
    let status = mesh.peer(leader).unwrap().terminate(SOON).await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", mesh.peer(leader).unwrap().logs().unwrap());
    // nobody had to find out that it is gone: another one led before it ended
    let after = other.group_status(group).await.unwrap();
    assert!(after.leader != 0 && after.leader != before.leader, "before {before:?}, after {after:?}");
    assert_eq!(received(under_way).await, 200);
    let events = read_back(&mesh, &other, "t", 400, 2).await;
    assert_numbered("t", events.iter().map(|stored| (stored.offset, &stored.event)), 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_on_the_same_data_is_refused() {
    let mesh = mesh(1).await;
    let peer = mesh.peer(0).unwrap();
    let data = peer.data().to_str().unwrap();
    let ran = run(&["canal", "start", "--no-mdns", "--listen", "127.0.0.1:0", "--data", data], b"").await;
    assert!(ran.code.is_some_and(|code| code != 0), "{ran:?}");
    assert!(ran.stderr.contains(data) && ran.stdout.is_empty(), "{ran:?}");
    assert!(peer.client().await.unwrap().peer_status().await.unwrap().joined, "the first one goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_testnet_that_is_dropped_ends_a_stopped_peer_too_and_leaves_no_directory() {
    let mesh = mesh(2).await;
    let pids: Vec<i32> = mesh.peers().iter().map(|peer| peer.pid().unwrap().try_into().unwrap()).collect();
    let dir = mesh.dir().to_owned();
    mesh.peer(0).unwrap().stop().unwrap();
    // a stopped peer that goes on is as good as new
    mesh.peer(1).unwrap().stop().unwrap();
    mesh.peer(1).unwrap().cont().unwrap();
    mesh.peer(1).unwrap().client().await.unwrap().peer_status().await.unwrap();
    assert!(dir.join("peer-0").is_dir() && dir.join("peer-0.log").is_file());
    drop(mesh);
    for pid in pids {
        assert_eq!(kill(Pid::from_raw(pid), None), Err(Errno::ESRCH), "process {pid}");
    }
    assert!(!dir.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_end_with_a_testnet_that_is_killed() {
    let _room = room(2).await;
    let dir = tempfile::tempdir().unwrap();
    let scenario = file(dir.path(), "two.toml", b"mesh = \"two\"\n[[peer]]\ncount = 2\n[[topic]]\nname = \"t\"\n");
    let mut command = Command::new(program());
    command.args(["up", &scenario, "--dir"]).arg(dir.path().join("net")).stdout(Stdio::piped()).stdin(Stdio::null());
    let mut child = Owned(command.spawn().unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let addresses: Vec<String> = tokio::task::spawn_blocking(move || {
        let words =
            lines.by_ref().map_while(Result::ok).map(|line| line.split_whitespace().map(str::to_owned).collect());
        let peers = words.filter(|words: &Vec<String>| words.first().is_some_and(|word| word == "peer")).take(2);
        peers.map(|words| words.into_iter().find(|word| word.starts_with("/ip4/")).unwrap()).collect()
    })
    .await
    .unwrap();
    let options = Options { mesh: "two".into(), ..Options::default() };
    for address in &addresses {
        let client = Client::connect(address, options.clone()).await.unwrap();
        assert_eq!(client.topics("t").await.unwrap().len(), 1, "the scenario's topic");
    }
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    for address in &addresses {
        until("nobody answers any more", SOON, async || match Client::connect(address, options.clone()).await {
            Err(error) if error.code == Code::Unreachable => Ok(()),
            Err(error) => Err(error.to_string()),
            Ok(_) => Err("somebody answers".into()),
        })
        .await
        .unwrap();
    }
}
