//! What peers cost that have nothing to do.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use canal_proto::request::PeerStatus;
use canal_sdk::TopicOptions;
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;

use super::REPLICAS;
use crate::Testnet;

/// After the last group was made, the mesh has this long to come to rest: descriptions are told, routes published.
const COME_TO_REST: Duration = Duration::from_secs(10);
/// Clock ticks a second in which Linux tells processor time, on all its platforms of today.
const USER_HZ: f64 = 100.0;
/// Topics that are made at a time.
const AT_ONCE: usize = 4;

/// What one peer cost while nothing happened.
#[derive(Debug, Clone, Serialize)]
pub struct Cost {
    /// The peer's number.
    pub peer: usize,
    /// Replicas on it, the catalog's included.
    pub replicas: usize,
    /// Of these, leaders.
    pub leads: usize,
    /// Seconds of processor time in a minute.
    pub cpu_s_per_min: f64,
    /// Raft messages sent a second.
    pub raft_messages_per_s: f64,
    /// Frames that they were sent in, a second.
    pub raft_frames_per_s: f64,
    /// Bytes of these, a second.
    pub raft_bytes_per_s: f64,
}

struct Look {
    at: Instant,
    cpu: f64,
    status: PeerStatus,
}

/// Makes so many groups, leaves the mesh alone for `length`, and says what it cost.
///
/// # Errors
/// When a group can't be made, or a peer does not answer.
pub async fn measure(net: &Testnet, groups: u32, length: Duration) -> Result<Vec<Cost>> {
    let client = net.client(0).await?;
    let made = futures::stream::iter(0..groups).map(|number| {
        let client = client.clone();
        async move {
            let name = format!("idle-{number}");
            let options = TopicOptions { group: Some(name.clone()), replicas: Some(REPLICAS), ..Default::default() };
            client.create_topic(&name, options).await
        }
    });
    let made: Vec<_> = made.buffer_unordered(AT_ONCE).try_collect().await?;
    for status in made {
        net.wait_group(canal_sdk::GroupId(status.info.group)).await?;
    }
    tokio::time::sleep(COME_TO_REST).await;
    let before = looks(net).await?;
    tokio::time::sleep(length).await;
    let after = looks(net).await?;
    let pairs = before.into_iter().zip(after).enumerate();
    Ok(pairs.map(|(peer, (before, after))| cost(peer, &before, &after)).collect())
}

async fn looks(net: &Testnet) -> Result<Vec<Look>> {
    let mut looks = Vec::new();
    for peer in net.peers() {
        let status = peer.status().await?;
        let pid = peer.pid().context("a peer has ended")?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the time of a peer is not known")?;
        let ticks = ticks(&stat).context("the system's words on a process can't be read")?;
        looks.push(Look { at: Instant::now(), cpu: ticks as f64 / USER_HZ, status });
    }
    Ok(looks)
}

fn cost(peer: usize, before: &Look, after: &Look) -> Cost {
    let seconds = after.at.duration_since(before.at).as_secs_f64();
    let rate =
        |count: fn(&PeerStatus) -> u64| count(&after.status).saturating_sub(count(&before.status)) as f64 / seconds;
    let groups = &after.status.groups;
    Cost {
        peer,
        replicas: groups.len(),
        leads: groups.iter().filter(|group| group.leader == group.replica).count(),
        cpu_s_per_min: (after.cpu - before.cpu) * 60.0 / seconds,
        raft_messages_per_s: rate(|status| status.raft_messages),
        raft_frames_per_s: rate(|status| status.raft_frames),
        raft_bytes_per_s: rate(|status| status.raft_bytes),
    }
}

/// Clock ticks that a process has run, in user and system mode, by its `/proc/PID/stat`.
fn ticks(stat: &str) -> Option<u64> {
    // the name of the program may hold anything, so it is counted from behind its bracket: state is the first
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_read_from_the_kernels_words() {
        let stat = "4242 (a ) b) S 1 4242 4242 0 -1 4194560 100 0 1 0 250 75 3 4 20 0 12 0 100 200 300";
        assert_eq!(ticks(stat), Some(325));
        assert_eq!(ticks("nonsense"), None);
    }
}
