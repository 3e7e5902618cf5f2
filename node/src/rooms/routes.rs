//! Routes: the leader signs a record for each name of its group and publishes it in the DHT, when it begins to lead,
//! when something changes, and again before the records expire.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use canal_consensus::{GroupHandle, Status};
use canal_dht::sign_by;
use canal_proto::route::{self, RouteRecord};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};

use crate::node::{NAMESPACE, Node, now_ms};

/// How long a record may be believed.
const LIFE: Duration = Duration::from_secs(300);
/// How often a record is published again: two may be lost before one expires.
const AGAIN: Duration = Duration::from_secs(100);
/// Wait before what could not be published is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Records published at a time.
const AT_ONCE: usize = 8;

/// Publishes the group's routes for as long as it is led here.
pub async fn run(node: Arc<Node>, group: GroupHandle) {
    let mut watch = group.watch();
    let mut done: BTreeSet<(String, u64)> = BTreeSet::new();
    let mut epoch = 0;
    let mut again = Instant::now() + AGAIN;
    loop {
        let status = watch.now();
        if epoch != status.epoch || Instant::now() >= again {
            epoch = status.epoch;
            again = Instant::now() + AGAIN;
            done.clear();
        }
        let names = names(&node, &group, &status);
        done.retain(|name| names.contains(name));
        let missing: Vec<_> = names.into_iter().filter(|name| !done.contains(name)).collect();
        let failed = publish(&node, &group, &status, missing, &mut done).await;
        let wake = if failed { Instant::now() + RETRY } else { again };
        loop {
            tokio::select! {
                biased;
                more = watch.changed() => {
                    if !more {
                        return;
                    }
                    let now = watch.now();
                    if now.epoch != status.epoch || now.spec.version != status.spec.version {
                        break;
                    }
                }
                () = sleep_until(wake) => break,
            }
        }
    }
}

fn names(node: &Node, group: &GroupHandle, status: &Status) -> BTreeSet<(String, u64)> {
    let mut names: BTreeSet<_> = status.spec.topics.iter().map(|topic| (topic.name.clone(), topic.id)).collect();
    names.insert((route::group_name(group.id()), 0));
    if group.id() == node.catalog_id() {
        names.insert((route::CATALOG.to_owned(), 0));
    }
    names
}

/// Publishes records; says whether any of them has to be tried again.
async fn publish(
    node: &Node,
    group: &GroupHandle,
    status: &Status,
    names: Vec<(String, u64)>,
    done: &mut BTreeSet<(String, u64)>,
) -> bool {
    let mut failed = false;
    let mut running = FuturesUnordered::new();
    let mut names = names.into_iter();
    loop {
        while running.len() < AT_ONCE
            && let Some(name) = names.next()
        {
            running.push(async {
                let result = publish_one(node, group, status, &name).await;
                (name, result)
            });
        }
        let Some((name, result)) = running.next().await else { return failed };
        match result {
            Ok(()) => {
                done.insert(name);
            }
            Err(error) => {
                tracing::debug!(name = %name.0, %error, "a route could not be published");
                failed = true;
            }
        }
    }
}

async fn publish_one(node: &Node, group: &GroupHandle, status: &Status, name: &(String, u64)) -> anyhow::Result<()> {
    let mut replicas = status.configuration.replicas.clone();
    for replica in &mut replicas {
        if replica.peer == node.id.to_vec() {
            replica.addresses = node.net.addresses();
        }
    }
    let record = RouteRecord {
        mesh: node.mesh.to_vec().into(),
        namespace: NAMESPACE.into(),
        name: name.0.clone(),
        topic: name.1,
        group: group.id().0,
        epoch: status.epoch,
        replicas,
        leader: status.replica,
        issued_ms: now_ms(),
        life_ms: u64::try_from(LIFE.as_millis()).unwrap_or(u64::MAX),
    };
    let signature = |bytes: &[u8]| {
        let signed = node.keys.sign(bytes).ok();
        signed.and_then(|bytes| <[u8; 64]>::try_from(bytes).ok()).unwrap_or([0; 64])
    };
    let signed = sign_by(&record, node.id, &signature)?;
    let published = node.dht.publish(&signed).await?;
    anyhow::ensure!(published.peers > 0 || node.net.neighbours() == 0, "no other peer has taken it");
    Ok(())
}
