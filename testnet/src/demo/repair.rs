//! A peer that is taken away for good, a fresh one that joins, and how long each group takes to be whole again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use canal_proto::request::GroupStatus;
use canal_proto::route;
use canal_sdk::{GroupId, PeerId};
use futures::future::join_all;
use serde::Serialize;

use super::Run;
use crate::until;

/// Until the leader that was killed follows in all its groups again: a restart that replays a log.
const BACK: Duration = Duration::from_secs(60);
/// Until every group has its replicas again: the silence that counts as a loss, and a snapshot, on a busy machine.
const RESTORED: Duration = Duration::from_secs(90);
/// The catalog's name in the report.
const CATALOG: &str = "catalog";

/// The loss of a peer.
#[derive(Debug, Clone, Serialize)]
pub struct Loss {
    /// The peer that went.
    pub peer: usize,
    /// When, after the first reading.
    pub lost_at_s: f64,
    /// The peer that came.
    pub fresh: usize,
    /// When it was up, after the first reading.
    pub joined_at_s: f64,
    /// From the loss until each group had as many replicas as it wants, all of them voting and none at the lost peer.
    #[serde(skip)]
    pub restored_after_s: BTreeMap<String, Option<f64>>,
    #[serde(skip)]
    why: Vec<String>,
}

impl Loss {
    /// Groups that have not their replicas back.
    pub fn problems(&self) -> impl Iterator<Item = String> {
        self.why.iter().cloned()
    }
}

impl Run<'_> {
    /// Waits until the peer that was restarted serves again, takes another one away for good, starts the spare one, and
    /// waits until all groups are whole.
    pub(super) async fn lose_and_replace(&self, restarted: usize, began: Instant) -> Result<Loss> {
        let catalog = GroupId(self.admin.resolve(route::CATALOG, false).await?.group);
        let mut groups: Vec<(String, GroupId)> = vec![(CATALOG.into(), catalog)];
        groups.extend(self.layout.groups().map(|(name, group)| (name.to_owned(), group)));
        // two of three replicas away at a time would be a majority
        self.follows(restarted, &groups).await?;
        let (victim, id) = self.victim(restarted, &groups).await?;
        let lost = Instant::now();
        let lost_at_s = began.elapsed().as_secs_f64();
        self.net.peer(victim)?.kill()?;
        self.note(format!("{lost_at_s:>4.0} s  took peer {victim} away for good"));
        let restored = join_all(groups.iter().map(|(name, group)| async move {
            let what = format!("group `{name}` has its replicas back");
            let whole = until(&what, RESTORED, async || {
                let (_, status) = self.net.led(*group).await?;
                is_whole(&status, id)
            });
            let after = whole.await.map(|()| lost.elapsed().as_secs_f64());
            if let Ok(after) = &after {
                let at = began.elapsed().as_secs_f64();
                self.note(format!("{at:>4.0} s  group `{name}` has its replicas back, after {after:.1} s"));
            }
            (name.clone(), after)
        }));
        let fresh = self.options.peers as usize;
        let joins = async {
            self.net.restart(fresh).await?;
            let joined_at_s = began.elapsed().as_secs_f64();
            self.note(format!("{joined_at_s:>4.0} s  peer {fresh} is fresh and has joined"));
            anyhow::Ok(joined_at_s)
        };
        let (restored, joined_at_s) = tokio::join!(restored, joins);
        let why = restored.iter().filter_map(|(_, after)| after.as_ref().err().map(ToString::to_string)).collect();
        let restored_after_s = restored.into_iter().map(|(name, after)| (name, after.ok())).collect();
        Ok(Loss { peer: victim, lost_at_s, fresh, joined_at_s: joined_at_s?, restored_after_s, why })
    }

    /// Waits until a peer has a leader, and has applied what was committed when it was asked, in all groups of which it
    /// holds a replica.
    async fn follows(&self, number: usize, groups: &[(String, GroupId)]) -> Result<()> {
        let peer = self.net.peer(number)?;
        let id = peer.id()?;
        for (name, group) in groups {
            let mut goal = None;
            let what = format!("peer {number} follows in `{name}`");
            let follows = until(&what, BACK, async || {
                let goal = match goal {
                    Some(goal) => goal,
                    None => {
                        let (_, status) = self.net.led(*group).await?;
                        let holds = status.replicas.iter().any(|replica| replica.peer_id() == Ok(id));
                        // one that was replaced meanwhile has nothing to catch up with
                        *goal.insert(if holds { status.committed } else { 0 })
                    }
                };
                let own = peer.status().await.map_err(|error| error.to_string())?;
                match own.groups.iter().find(|own| own.id == group.0) {
                    _ if goal == 0 => Ok(()),
                    Some(own) if own.leader != 0 && own.applied >= goal => Ok(()),
                    Some(own) => Err(format!("it has applied {} of {goal}", own.applied)),
                    None => Err("it holds no replica".into()),
                }
            });
            follows.await?;
        }
        Ok(())
    }

    /// The peer that holds replicas of most groups, other than this one.
    async fn victim(&self, spared: usize, groups: &[(String, GroupId)]) -> Result<(usize, PeerId)> {
        let mut held: BTreeMap<PeerId, usize> = BTreeMap::new();
        for (_, group) in groups {
            for replica in self.net.wait_group(*group).await?.replicas {
                if let Ok(peer) = replica.peer_id() {
                    *held.entry(peer).or_default() += 1;
                }
            }
        }
        let others = self.net.peers().iter().filter(|peer| peer.is_running() && peer.number() != spared);
        let holders = others.filter_map(|peer| {
            let id = peer.id().ok()?;
            Some((held.get(&id).copied().unwrap_or_default(), peer.number(), id))
        });
        // of several, the last: the first peers are where clients enter
        let (_, number, id) =
            holders.max_by_key(|(held, number, _)| (*held, *number)).context("there is no other peer")?;
        Ok((number, id))
    }
}

/// Whether a group has all the replicas that it wants, all of them voting, and none at a peer that has gone.
fn is_whole(status: &GroupStatus, gone: PeerId) -> Result<(), String> {
    let at_gone = status.replicas.iter().any(|replica| replica.peer_id() == Ok(gone));
    let (voters, replicas) = (status.voters.len(), status.replicas.len());
    if at_gone {
        Err("a replica is still said to be at the lost peer".into())
    } else if voters < status.wanted as usize || replicas != voters {
        Err(format!("{voters} of {replicas} replicas vote, {} are wanted", status.wanted))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use canal_proto::peer::Replica;

    use super::*;

    #[test]
    fn a_group_is_whole_with_all_its_voters_and_none_at_the_lost_peer() {
        let replica = |id: u64| Replica { id, peer: vec![u8::try_from(id).unwrap(); 32], addresses: Vec::new() };
        let status = |replicas: &[u64], voters: &[u64]| GroupStatus {
            replicas: replicas.iter().copied().map(replica).collect(),
            voters: voters.to_vec(),
            wanted: 3,
            ..GroupStatus::default()
        };
        let gone = PeerId::from_public_key([2; 32]);
        assert_eq!(is_whole(&status(&[1, 3, 4], &[1, 3, 4]), gone), Ok(()));
        assert!(is_whole(&status(&[1, 2, 3], &[1, 2, 3]), gone).unwrap_err().contains("the lost peer"));
        assert!(is_whole(&status(&[1, 3], &[1, 3]), gone).unwrap_err().contains("2 of 2 replicas vote, 3 are wanted"));
        assert!(is_whole(&status(&[1, 3, 4, 5], &[1, 3, 4]), gone).is_err(), "a learner is on its way");
    }
}
