//! Asks the survivors who leads, so that it is known on what the time went.

use std::time::{Duration, Instant};

use anyhow::Result;
use canal_proto::route;
use canal_sdk::{Client, GroupId};
use tokio::task::JoinSet;

use crate::Testnet;

/// Between two looks at a survivor: a small part of what is measured.
const LOOK_EVERY: Duration = Duration::from_millis(3);

/// When survivors were first seen to have noticed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    /// One does not follow the killed leader any more.
    pub stands: Option<Instant>,
    /// One follows another leader, or is it.
    pub leads: Option<Instant>,
}

/// Watches until it is ended.
pub struct Watch(JoinSet<Seen>);

impl Watch {
    /// Looks at all running peers but the one that is to be killed, which leads as replica `old`.
    ///
    /// # Errors
    /// When a peer has no address.
    pub fn start(net: &Testnet, group: GroupId, killed: usize, old: u64) -> Result<Self> {
        let mut tasks = JoinSet::new();
        for peer in net.peers().iter().filter(|peer| peer.is_running() && peer.number() != killed) {
            let (address, mesh) = (peer.address()?, net.mesh().to_owned());
            tasks.spawn(look(address, mesh, route::group_name(group), old));
        }
        Ok(Self(tasks))
    }

    /// What was seen. Everybody is given a moment to have seen the new leader.
    pub async fn end(mut self) -> Seen {
        let mut first = Seen::default();
        let all = async {
            while let Some(Ok(seen)) = self.0.join_next().await {
                first.stands = first.stands.into_iter().chain(seen.stands).min();
                first.leads = first.leads.into_iter().chain(seen.leads).min();
            }
        };
        // what is not seen by then is not told
        let _ = tokio::time::timeout(Duration::from_secs(2), all).await;
        first
    }
}

async fn look(address: String, mesh: String, name: String, old: u64) -> Seen {
    let mut seen = Seen::default();
    let options = canal_sdk::Options { mesh, ..canal_sdk::Options::default() };
    // it enters the mesh at this peer, which answers for its own replica
    let Ok(client) = Client::connect(&address, options).await else { return seen };
    loop {
        let leader = client.resolve(&name, false).await.ok().filter(|route| route.source == "local");
        let now = Instant::now();
        match leader.map(|route| route.leader) {
            Some(leader) if leader == old => {}
            Some(0) => seen.stands = seen.stands.or(Some(now)),
            Some(_) => {
                (seen.stands, seen.leads) = (seen.stands.or(Some(now)), Some(now));
                return seen;
            }
            None => {}
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
