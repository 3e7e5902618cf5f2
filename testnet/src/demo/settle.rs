//! After the last reading: waits for the functions, and reads back what is there.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use canal_proto::event::Stored;
use canal_sdk::transport::libp2p::Libp2p;
use canal_sdk::{Client, Code, GroupId};

use super::check;
use super::layout::{self, Layout};
use super::traffic::Published;
use crate::replica::{self, Source};
use crate::{Testnet, until};

/// Until the functions have handled everything after the last reading: many elections, and a backlog.
pub const CATCH_UP: Duration = Duration::from_secs(120);
/// For one topic to be read back from one replica that may have just come back.
pub const READ_BACK: Duration = Duration::from_secs(60);

/// Waits until every function has handled everything, and everything it emitted has arrived.
///
/// # Errors
/// What was missing at the deadline.
pub async fn catch_up(
    net: &Testnet,
    admin: &Client,
    layout: &Layout,
    published: &[Published],
) -> std::result::Result<(), String> {
    let mut wanted: BTreeMap<String, u64> = BTreeMap::new();
    for Published { topic, sent, .. } in published {
        wanted.insert(topic.clone(), sent.len() as u64);
        if let Some(name) = topic.strip_prefix("demo/sensor/") {
            wanted.insert(layout::smoothed(name), sent.len() as u64);
        } else {
            let trained = sent.len().saturating_sub(check::UNTRAINED) as u64;
            wanted.extend([layout::MODEL, layout::PREDICTION].map(|topic| (topic.to_owned(), trained)));
        }
    }
    let done = until("the functions to catch up", CATCH_UP, async || {
        for (topic, wanted) in &wanted {
            let next = admin.topic_status(topic).await.map_err(|error| error.to_string())?.next;
            if next < *wanted {
                return Err(format!("`{topic}` holds {next} of {wanted} events"));
            }
        }
        // the learning group first: what it hands over, the other one then has
        for (name, group) in layout.groups().into_iter().rev() {
            let (_, status) = net.led(group).await?;
            let waiting: u64 = status.triggers.iter().map(|lag| lag.waiting + lag.parked).sum();
            if waiting + status.outbox > 0 {
                return Err(format!(
                    "group `{name}` has {waiting} events to handle and {} to hand over",
                    status.outbox
                ));
            }
        }
        Ok(())
    });
    done.await.map_err(|error| error.to_string())
}

/// A topic as each of its replicas that run has it.
///
/// # Errors
/// When the group is not whole soon, or a replica does not serve it.
pub async fn read_back(
    net: &Testnet,
    admin: &Client,
    topic: &str,
    group: GroupId,
) -> Result<Vec<(String, Vec<Stored>)>> {
    let transport = Libp2p::new()?;
    let count = usize::try_from(admin.topic_status(topic).await?.next)?;
    let holders = net.wait_group(group).await?.replicas;
    let mut read = Vec::new();
    for peer in net.peers().iter().filter(|peer| peer.is_running()) {
        let id = peer.id()?;
        if !holders.iter().any(|replica| replica.peer_id().is_ok_and(|holder| holder == id)) {
            continue;
        }
        let address = peer.address()?;
        let source = Source { mesh: net.mesh(), address: &address, topic };
        let what = format!("peer {} to serve `{topic}`", peer.number());
        let events =
            until(&what, READ_BACK, async || match replica::read(&transport, source, count, READ_BACK).await {
                Err(error) if matches!(error.code, Code::Unreachable | Code::NotHere | Code::UnknownTopic) => {
                    Err(error.to_string())
                }
                other => Ok(other),
            });
        read.push((format!("peer {}", peer.number()), events.await??));
    }
    Ok(read)
}

/// Topics of dead letters with the number of their events.
///
/// # Errors
/// Those of asking the mesh.
pub async fn dead_letters(admin: &Client) -> Result<Vec<(String, u64)>> {
    let mut dead = Vec::new();
    for topic in admin.topics("$dead/#").await? {
        let status = admin.topic_status(&topic.name).await?;
        dead.push((topic.name, status.next));
    }
    Ok(dead)
}

/// Runs of the functions. Records are numbered: the newest tells how many there were.
///
/// # Errors
/// Those of asking the mesh.
pub async fn activations(admin: &Client, layout: &Layout) -> Result<u64> {
    let mut runs = 0;
    for (_, group) in layout.groups() {
        for trigger in Layout::triggers() {
            match admin.activations(group, trigger, 1).await {
                Ok(records) => runs += records.first().map_or(0, |record| record.number),
                Err(error) if error.code == Code::UnknownTrigger => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(runs)
}
