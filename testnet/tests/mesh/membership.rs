//! The mesh looks after its replicas: groups grow, shrink, move and are repaired while events flow through them.

use std::collections::BTreeSet;

use canal_proto::request::GroupStatus;
use canal_proto::route;
use canal_sdk::{Client, From, GroupId, PeerId, Publisher, TopicOptions};
use canal_testnet::{Scenario, Testnet, until};
use futures::StreamExt;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::common::{SOON, assert_numbered, canal, mesh, numbered, patient, prepared, prepared_as, read_back};

/// Events that are published one after the other, each when the one before is acknowledged, until somebody says stop.
struct Flow {
    stop: watch::Sender<bool>,
    sent: watch::Receiver<u64>,
    task: JoinHandle<u64>,
}

impl Flow {
    /// Publishes the events from 0 on; an error of the publisher fails the test.
    fn begin(publisher: Publisher) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (count, sent) = watch::channel(0);
        let task = tokio::spawn(async move {
            let mut n = 0;
            while !*stopped.borrow() {
                let receipt = publisher.send(numbered(n)).await.unwrap().await.unwrap();
                assert_eq!(receipt.offset, Some(n), "the receipt of event {n}");
                n += 1;
                count.send_replace(n);
            }
            n
        });
        Self { stop, sent, task }
    }

    /// Waits until so many more events were acknowledged than when it was asked: publishing goes on.
    async fn goes_on(&self, more: u64) {
        let mut sent = self.sent.clone();
        let goal = *sent.borrow_and_update() + more;
        tokio::time::timeout(SOON, sent.wait_for(|sent| *sent >= goal)).await.expect("publishing goes on").unwrap();
    }

    /// Ends it; all that was acknowledged.
    async fn end(self) -> u64 {
        self.stop.send_replace(true);
        tokio::time::timeout(SOON, self.task).await.expect("the last receipt comes").unwrap()
    }
}

fn voters(status: &GroupStatus) -> BTreeSet<PeerId> {
    let votes = status.replicas.iter().filter(|replica| status.voters.contains(&replica.id));
    votes.map(|replica| replica.peer_id().unwrap()).collect()
}

/// Waits until exactly these peers vote in a group, and no replica is on its way.
async fn held_by(net: &Testnet, group: GroupId, peers: &BTreeSet<PeerId>) -> GroupStatus {
    until(&format!("{peers:?} hold the group"), SOON, async || {
        let (_, status) = net.led(group).await?;
        if voters(&status) == *peers && status.replicas.len() == peers.len() {
            Ok(status)
        } else {
            Err(format!("{:?} of {:?}, {}", voters(&status), status.replicas, status.under_way))
        }
    })
    .await
    .unwrap()
}

/// Waits until so many peers vote in a group, and no replica is on its way.
async fn held_by_so_many(net: &Testnet, group: GroupId, count: usize) -> GroupStatus {
    until(&format!("{count} peers hold the group"), SOON, async || {
        let (_, status) = net.led(group).await?;
        if status.voters.len() == count && status.replicas.len() == count {
            Ok(status)
        } else {
            Err(format!("{:?} of {:?}, {}", status.voters, status.replicas, status.under_way))
        }
    })
    .await
    .unwrap()
}

/// Waits until a peer holds no replica of a group any more.
async fn let_go(net: &Testnet, group: GroupId, peer: PeerId) {
    let peer = net.peers().iter().find(|other| other.id().unwrap() == peer).unwrap();
    until(&format!("peer {} has removed its replica", peer.number()), SOON, async || {
        let status = peer.status().await.map_err(|error| error.to_string())?;
        match status.groups.iter().find(|status| status.id == group.0) {
            None => Ok(()),
            Some(status) => Err(format!("replica {} is still there", status.replica)),
        }
    })
    .await
    .unwrap();
}

/// Waits until a group has recorded a step of each of these kinds, and returns its steps, the newest first.
async fn recorded(net: &Testnet, group: GroupId, wanted: &[&str]) -> Vec<canal_proto::log::Step> {
    until(&format!("steps {wanted:?} are recorded"), SOON, async || {
        let (_, status) = net.led(group).await?;
        let count = |what: &str| status.steps.iter().filter(|step| step.what == what).count();
        let has = |what: &&str| count(what) >= wanted.iter().filter(|other| *other == what).count();
        let steps: Vec<_> = status.steps.iter().map(|step| step.what.clone()).collect();
        if wanted.iter().all(has) { Ok(status.steps) } else { Err(format!("{steps:?}")) }
    })
    .await
    .unwrap()
}

async fn set_replicas(net: &Testnet, topic: &str, replicas: u32) {
    let address = net.peer(0).unwrap().address().unwrap();
    let ran = canal(&address, &["topic", "set", topic, "--replicas", &replicas.to_string()], b"").await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

async fn create(client: &Client, topic: &str, group: &str, replicas: u32) -> GroupId {
    let options = TopicOptions { group: Some(group.into()), replicas: Some(replicas), ..TopicOptions::default() };
    GroupId(client.create_topic(topic, options).await.unwrap().info.group)
}

fn id(net: &Testnet, number: usize) -> PeerId {
    net.peer(number).unwrap().id().unwrap()
}

async fn assert_all_there(net: &Testnet, client: &Client, topic: &str, count: u64, replicas: usize) {
    let events = read_back(net, client, topic, usize::try_from(count).unwrap(), replicas).await;
    let first = events.iter().take(usize::try_from(count).unwrap());
    assert_numbered(topic, first.map(|stored| (stored.offset, &stored.event)), count);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_grows_with_its_mesh_while_events_flow() {
    let mesh = prepared(3, &[]).await;
    mesh.restart(0).await.unwrap();
    let client = mesh.client(0).await.unwrap();
    let group = create(&client, "grows", "g", 3).await;
    let catalog = GroupId(client.resolve("$catalog", false).await.unwrap().group);
    held_by_so_many(&mesh, group, 1).await;
    let flow = Flow::begin(patient(&client, "grows").await);
    flow.goes_on(20).await;
    for (peer, count) in [(1, 2), (2, 3)] {
        mesh.restart(peer).await.unwrap();
        held_by_so_many(&mesh, group, count).await;
        held_by_so_many(&mesh, catalog, count).await;
        flow.goes_on(20).await;
    }
    let count = flow.end().await;
    assert_all_there(&mesh, &client, "grows", count, 3).await;
    let steps = recorded(&mesh, group, &["joined"]).await;
    for (step, peer) in steps.iter().rev().filter(|step| step.what == "joined").zip([1, 2]) {
        assert_eq!(step.peer, id(&mesh, peer).to_vec());
        assert!(step.began_ms > 0 && step.ended_ms >= step.began_ms, "{step:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_gone_for_good_is_replaced() {
    // where one is a better place than its stand-in, the replica moves back to it
    let mesh = prepared_as(&Scenario::alike(4), &["--replace-after", "2s"]).await;
    mesh.start_all().await.unwrap();
    mesh.wait_ready().await.unwrap();
    let client = mesh.client(0).await.unwrap();
    let group = mesh.create_topic(&client, "kept", "g", 3).await.unwrap();
    let status = held_by_so_many(&mesh, group, 3).await;
    let holders = voters(&status);
    let leader = mesh.leader(group).await.unwrap();
    let fresh = (0..4).find(|number| !holders.contains(&id(&mesh, *number))).unwrap();
    let gone = leader;
    let flow = Flow::begin(patient(&client, "kept").await);
    flow.goes_on(50).await;
    mesh.peer(gone).unwrap().kill().unwrap();
    let mut now = holders.clone();
    now.remove(&id(&mesh, gone));
    now.insert(id(&mesh, fresh));
    held_by(&mesh, group, &now).await;
    flow.goes_on(20).await;
    let steps = recorded(&mesh, group, &["handed-over", "replaced"]).await;
    let step = steps.iter().find(|step| step.what == "handed-over").unwrap();
    // nobody led until an election: that is how long publishing stood still at least
    assert_eq!(step.gone_peer.as_ref(), &*id(&mesh, gone).to_vec());
    assert!(step.stood_still_ms > 100, "{step:?}");
    let step = steps.iter().find(|step| step.what == "replaced").unwrap();
    assert_eq!(
        (step.peer.as_ref(), step.gone_peer.as_ref()),
        (&*id(&mesh, fresh).to_vec(), &*id(&mesh, gone).to_vec())
    );
    let count = flow.end().await;
    assert_all_there(&mesh, &client, "kept", count, 3).await;
    // when it comes back after all, it finds out that it was replaced, and has nothing left of the group
    mesh.restart(gone).await.unwrap();
    let_go(&mesh, group, id(&mesh, gone)).await;
    held_by(&mesh, group, &now).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_disk_is_empty_comes_back_under_a_new_id() {
    let mesh = mesh(3).await;
    let client = mesh.client(0).await.unwrap();
    let group = mesh.create_topic(&client, "lost", "g", 3).await.unwrap();
    let before = held_by_so_many(&mesh, group, 3).await;
    let leader = mesh.leader(group).await.unwrap();
    let flow = Flow::begin(patient(&client, "lost").await);
    flow.goes_on(50).await;
    let victim = (1..3).find(|number| *number != leader).unwrap();
    let peer = mesh.peer(victim).unwrap();
    peer.kill().unwrap();
    for entry in std::fs::read_dir(peer.data()).unwrap() {
        let entry = entry.unwrap();
        // its key and its notes stay, what it knew of the groups goes
        if entry.file_type().unwrap().is_dir() {
            std::fs::remove_dir_all(entry.path()).unwrap();
        }
    }
    mesh.restart(victim).await.unwrap();
    let old = before.replicas.iter().find(|replica| replica.peer_id() == Ok(id(&mesh, victim))).unwrap().id;
    until("it holds a new replica", SOON, async || {
        let (_, status) = mesh.led(group).await?;
        let here = status.replicas.iter().find(|replica| replica.peer_id() == Ok(id(&mesh, victim)));
        match here {
            Some(replica) if replica.id > old && status.voters.contains(&replica.id) => Ok(()),
            other => Err(format!("{other:?}, {}", status.under_way)),
        }
    })
    .await
    .unwrap();
    flow.goes_on(20).await;
    let count = flow.end().await;
    held_by_so_many(&mesh, group, 3).await;
    assert_all_there(&mesh, &client, "lost", count, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_number_of_replicas_can_be_changed() {
    let mesh = mesh(3).await;
    let client = mesh.client(0).await.unwrap();
    let group = mesh.create_topic(&client, "sized", "g", 1).await.unwrap();
    let flow = Flow::begin(patient(&client, "sized").await);
    flow.goes_on(20).await;
    set_replicas(&mesh, "sized", 3).await;
    let three = held_by_so_many(&mesh, group, 3).await;
    flow.goes_on(20).await;
    set_replicas(&mesh, "sized", 1).await;
    let one = held_by_so_many(&mesh, group, 1).await;
    // the leader stays, so nothing stood still
    assert_eq!(one.leader, three.leader);
    flow.goes_on(20).await;
    for peer in voters(&three).difference(&voters(&one)) {
        let_go(&mesh, group, *peer).await;
    }
    let count = flow.end().await;
    assert_all_there(&mesh, &client, "sized", count, 1).await;
    recorded(&mesh, group, &["joined", "removed"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_whose_first_replica_was_never_there_lives_without_it() {
    let mesh = mesh(3).await;
    let client = mesh.client(0).await.unwrap();
    let catalog = GroupId(client.resolve(route::CATALOG, false).await.unwrap().group);
    held_by_so_many(&mesh, catalog, 3).await;
    let leader = mesh.leader(catalog).await.unwrap();
    let down = (1..3).find(|number| *number != leader).unwrap();
    // nobody knows yet that it is down
    mesh.peer(down).unwrap().kill().unwrap();
    let group = create(&client, "early", "early", 3).await;
    until("the group is active", SOON, async || {
        let groups = client.catalog("", &["groups"], true).await.map_err(|error| error.to_string())?.groups;
        let early = groups.iter().find(|info| info.id == group.0).ok_or("it is not there")?;
        if early.active { Ok(()) } else { Err(format!("{early:?}")) }
    })
    .await
    .unwrap();
    assert_eq!(mesh.led(group).await.unwrap().1.replicas.len(), 3, "one of them was never there");
    mesh.restart(down).await.unwrap();
    // and it holds one under an id that never was
    until("there is a third replica", SOON, async || {
        let (_, status) = mesh.led(group).await?;
        let here = status.replicas.iter().find(|replica| replica.peer_id() == Ok(id(&mesh, down)));
        match here {
            Some(replica) if replica.id > 3 && status.voters.contains(&replica.id) => Ok(()),
            other => Err(format!("{other:?}, {}", status.under_way)),
        }
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_moves_and_nobody_notices() {
    let mesh = mesh(4).await;
    let client = mesh.client(0).await.unwrap();
    let group = mesh.create_topic(&client, "moves", "g", 2).await.unwrap();
    let here = voters(&held_by_so_many(&mesh, group, 2).await);
    let there: BTreeSet<PeerId> = (0..4).map(|number| id(&mesh, number)).filter(|id| !here.contains(id)).collect();
    // one that knows only a peer of those that the group leaves, and where the group is now
    let holder = mesh.peers().iter().find(|peer| here.contains(&peer.id().unwrap())).unwrap();
    let old = holder.client().await.unwrap();
    let late = patient(&old, "moves").await;
    assert_eq!(late.send(numbered(0)).await.unwrap().await.unwrap().offset, Some(0));
    let publisher = client.publisher("moves").await.unwrap();
    let (stop, stopped) = watch::channel(false);
    let publishing = tokio::spawn(async move {
        let mut n = 1;
        while !*stopped.borrow() {
            assert_eq!(publisher.send(numbered(n)).await.unwrap().await.unwrap().offset, Some(n));
            n += 1;
        }
        n
    });
    let names: Vec<String> = there.iter().map(PeerId::to_string).collect();
    let address = holder.address().unwrap();
    let ran = canal(&address, &["group", "move", "g", "--to", &names.join(","), "--json"], b"").await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    held_by(&mesh, group, &there).await;
    for peer in &here {
        let_go(&mesh, group, *peer).await;
    }
    stop.send_replace(true);
    let count = tokio::time::timeout(SOON, publishing).await.unwrap().unwrap();
    // everybody that it knew has moved away
    let receipt = tokio::time::timeout(SOON, late.send(numbered(count)).await.unwrap()).await.unwrap().unwrap();
    assert_eq!(receipt.offset, Some(count));
    assert_all_there(&mesh, &client, "moves", count + 1, 2).await;

    let steps = recorded(&mesh, group, &["moved", "moved", "handed-over"]).await;
    for step in steps.iter().filter(|step| step.what != "joined") {
        let (what, took) = (&step.what, step.ended_ms - step.began_ms);
        eprintln!("{what}: {took} ms, publishing stood still for {} ms", step.stood_still_ms);
    }
    assert_eq!(steps.iter().filter(|step| step.what == "moved").count(), 2, "{steps:?}");
    assert_eq!(steps.iter().filter(|step| step.what == "handed-over").count(), 1, "{steps:?}");
    let ran = canal(&address, &["group", "info", "g", "--json"], b"").await;
    let info: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let pinned: BTreeSet<PeerId> = info["placement"]["pinned"]
        .as_array()
        .unwrap()
        .iter()
        .map(|peer| peer.as_str().unwrap().parse().unwrap())
        .collect();
    assert_eq!(pinned, there);
    assert_eq!(info["steps"].as_array().unwrap().len(), steps.len());
    // each step is told once on the topic of steps
    let mut reports = client.subscribe("$mesh/steps", From::Earliest).await.unwrap();
    let mut told: Vec<String> = Vec::new();
    let all = async {
        while told.len() < steps.len() {
            let report = reports.next().await.unwrap().unwrap();
            let report: serde_json::Value = serde_json::from_slice(&report.event.payload).unwrap();
            if report["group_name"] == "g" {
                told.push(report["what"].as_str().unwrap().to_owned());
            }
        }
    };
    tokio::time::timeout(SOON, all).await.expect("the steps are told");
    let recorded: Vec<String> = steps.iter().rev().map(|step| step.what.clone()).collect();
    assert_eq!(told, recorded);
    // and the mesh may place it again: what stands stays
    let ran = canal(&address, &["group", "move", "g", "--free"], b"").await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let all: Vec<String> = there.iter().chain(&here).map(PeerId::to_string).collect();
    let refused = canal(&address, &["group", "move", "g", "--to", &all.join(",")], b"").await;
    assert_eq!(refused.code, Some(2), "{refused:?}");
    // nobody has ever heard of this one, and nothing is wished of it
    let nobody = PeerId::from_public_key([9; 32]).to_string();
    let refused = canal(&address, &["group", "move", "g", "--to", &nobody], b"").await;
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains(&format!("no peer {nobody} is known: `canal peer ls`")), "{refused:?}");
    let groups = client.catalog("", &["groups"], true).await.unwrap().groups;
    assert!(groups.iter().all(|group| group.placement.is_none()), "{groups:?}");
}
