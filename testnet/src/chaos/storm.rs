//! Carries a plan out: makes the faults, ends them, and waits until the mesh is whole again before the next.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use canal_proto::catalog::Placement;
use canal_proto::request::GroupStatus;
use canal_sdk::{Client, GroupId};
use futures::future::join_all;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::{sleep, timeout};

use super::plan::{Fault, Round, Target, What};
use crate::emulated::{Network, Quality};
use crate::{Error, Faults, Peer, Testnet, until};

/// For the mesh to be whole again after a round, and for one of a round's steps that wait for the mesh: many elections, a
/// snapshot, and the 30 s after which a replica that never came is given up, of a debug build on a busy machine.
const HEAL: Duration = Duration::from_secs(150);
/// For a disk that fails to end its peer. One that has nothing to sync does not notice.
const NOTICED: Duration = Duration::from_secs(10);
/// For a question that may have to wait for an election.
const PATIENCE: Duration = Duration::from_secs(15);
/// Bytes of the end of a log that a problem shows.
const TAIL: usize = 600;

/// A fault that was made.
#[derive(Debug, Clone, Serialize)]
pub struct Made {
    /// Its kind.
    pub kind: &'static str,
    /// What went wrong, and where, for people.
    pub what: String,
    /// When it began, after the begin of the run.
    pub began: Duration,
    /// From when on an answer could be hoped for: its begin, or when the peers that are needed were started again.
    pub hope: Duration,
    /// When it ended.
    pub ended: Duration,
    /// When the mesh was whole again.
    pub whole: Option<Duration>,
    /// The group that had no majority, and for how long.
    #[serde(skip)]
    pub silent: Option<(GroupId, Duration, Duration)>,
}

/// Links from one peer to another, and how they are.
type Links = BTreeMap<(usize, usize), Quality>;

/// What makes the faults.
pub struct Storm<'a> {
    net: &'a Testnet,
    network: Option<Network>,
    links: Links,
    /// Links that are not as they should be, by the peer that the fault is at.
    hit: Mutex<BTreeMap<usize, Links>>,
    shim: bool,
    /// Peers of this round whose disks fail: they may end by themselves.
    failing: Mutex<BTreeSet<usize>>,
    admin: Client,
    groups: Vec<(String, GroupId)>,
    began: Instant,
    made: Mutex<Vec<Made>>,
    problems: Mutex<Vec<String>>,
    skipped: Mutex<BTreeMap<&'static str, u64>>,
}

/// What a storm has done.
pub struct Done {
    /// The faults.
    pub made: Vec<Made>,
    /// What must not have happened.
    pub problems: Vec<String>,
    /// Faults of the plan that can't be made here, by kind.
    pub skipped: BTreeMap<&'static str, u64>,
}

impl<'a> Storm<'a> {
    /// Over a mesh that stands, with its groups: the catalog's first.
    pub fn new(
        net: &'a Testnet,
        network: Option<Network>,
        admin: Client,
        groups: Vec<(String, GroupId)>,
        began: Instant,
    ) -> Result<Self> {
        let shim = net.peers().iter().all(|peer| peer.faults(&Faults::default()).is_ok());
        let mut links = BTreeMap::new();
        if let Some(network) = &network {
            for (from, to) in pairs(net.peers().len()) {
                links.insert((from, to), network.link(from, to)?.quality);
            }
        }
        Ok(Self {
            net,
            network,
            links,
            hit: Mutex::default(),
            shim,
            failing: Mutex::default(),
            admin,
            groups,
            began,
            made: Mutex::default(),
            problems: Mutex::default(),
            skipped: Mutex::default(),
        })
    }

    /// Makes the faults of a plan until it is time, and leaves the mesh whole. `say` is told what happens.
    pub async fn rage(&self, plan: impl Iterator<Item = Round>, end: Instant, say: impl Fn(String)) {
        for round in plan {
            let possible: Vec<Fault> = round.faults.iter().filter(|fault| self.can(fault)).copied().collect();
            if possible.is_empty() {
                continue;
            }
            if Instant::now() >= end {
                return;
            }
            let first = self.made.lock().len();
            self.make(&possible, round.between, &say).await;
            self.end_all().await;
            let whole = until("the mesh is whole again", HEAL, async || self.is_whole().await).await;
            let at = self.began.elapsed();
            match whole {
                Ok(()) => self.made.lock().iter_mut().skip(first).for_each(|made| made.whole = Some(at)),
                Err(error) => {
                    let after: Vec<String> =
                        self.made.lock().iter().skip(first).map(|made| made.what.clone()).collect();
                    self.problem(format!("after \"{}\": {error}", after.join("\" and \"")));
                    return;
                }
            }
            sleep(round.pause).await;
        }
    }

    /// What was done.
    pub fn done(self) -> Done {
        let Self { made, problems, skipped, .. } = self;
        Done { made: made.into_inner(), problems: problems.into_inner(), skipped: skipped.into_inner() }
    }

    /// How many faults were made so far.
    pub fn count(&self) -> usize {
        self.made.lock().len()
    }

    fn can(&self, fault: &Fault) -> bool {
        let can = (!fault.what.needs_links() || self.network.is_some()) && (!fault.what.needs_shim() || self.shim);
        if !can {
            *self.skipped.lock().entry(fault.what.kind(fault.target)).or_default() += 1;
        }
        can
    }

    fn problem(&self, problem: String) {
        self.problems.lock().push(problem);
    }

    async fn make(&self, faults: &[Fault], between: Duration, say: &impl Fn(String)) {
        let mut targets: Vec<usize> = Vec::new();
        for fault in faults {
            let mut number = self.target(fault.target).await;
            // two faults, two peers
            if targets.contains(&number) {
                number = (number + 1) % self.net.peers().len();
            }
            targets.push(number);
        }
        let made = faults.iter().zip(&targets).zip(0u32..).map(|((fault, number), at)| async move {
            sleep(between * at).await;
            if let Err(error) = self.one(fault, *number, say).await {
                self.problem(format!("{} at peer {number} could not be carried out: {error:#}", fault.what));
            }
        });
        join_all(made).await;
    }

    /// The peer that is meant.
    async fn target(&self, target: Target) -> usize {
        match target {
            Target::Peer(number) => number % self.net.peers().len(),
            Target::Leader(group) => {
                let (_, group) = self.group(group);
                // no leader just now: anyone
                timeout(PATIENCE, self.net.leader(group)).await.ok().and_then(Result::ok).unwrap_or_default()
            }
        }
    }

    fn group(&self, place: usize) -> (&str, GroupId) {
        let at = place % self.groups.len().max(1);
        self.groups.get(at).map_or(("", GroupId(0)), |(name, group)| (name.as_str(), *group))
    }

    /// One fault from its begin to its end.
    async fn one(&self, fault: &Fault, number: usize, say: &impl Fn(String)) -> Result<()> {
        let Fault { what, target, lasts, draw } = *fault;
        let peer = self.net.peer(number)?;
        let led = match target {
            Target::Leader(group) => format!(", who leads `{}`", self.group(group).0),
            Target::Peer(_) => String::new(),
        };
        let text = match (what, target) {
            (What::KillAll, _) => what.to_string(),
            (What::Move, Target::Leader(group)) => format!("`{}`: {what}", self.group(group).0),
            (What::NoMajority, Target::Leader(group)) => format!("`{}`: {what}", self.group(group).0),
            _ => format!("peer {number}{led}: {what}"),
        };
        let began = self.began.elapsed();
        say(format!("{:>5.1} s  {text}, {:.1} s", began.as_secs_f64(), lasts.as_secs_f64()));
        let mut hope = began;
        let mut silent = None;
        match what {
            What::Kill | What::Away => {
                peer.kill()?;
                sleep(lasts).await;
                self.net.restart(number).await?;
            }
            What::Stop => {
                peer.stop()?;
                sleep(lasts).await;
                peer.cont()?;
            }
            What::Cut { inward, outward } => {
                let cut = Quality { cut: true, ..Quality::default() };
                let pairs = pairs(self.net.peers().len());
                let hit = pairs.filter(|(from, to)| (inward && *to == number) || (outward && *from == number));
                self.hit(number, hit.map(|pair| (pair, cut)).collect())?;
                sleep(lasts).await;
                self.mend(number)?;
            }
            What::Split => {
                let count = self.net.peers().len();
                let other = (number + 1 + usize::try_from(draw)? % (count - 1).max(1)) % count;
                let inside = |at: usize| at == number || at == other;
                let cut = Quality { cut: true, ..Quality::default() };
                let hit = pairs(count).filter(|(from, to)| inside(*from) != inside(*to));
                self.hit(number, hit.map(|pair| (pair, cut)).collect())?;
                sleep(lasts).await;
                self.mend(number)?;
            }
            What::SlowLink { delay_ms } => {
                let delay_ms = f64::from(delay_ms);
                let slow = |was: Quality| Quality { delay_ms, jitter_ms: delay_ms / 4.0, ..was };
                self.change(number, slow)?;
                sleep(lasts).await;
                self.mend(number)?;
            }
            What::LossyLink { percent } => {
                self.change(number, |was| Quality { loss: f64::from(percent) / 100.0, ..was })?;
                sleep(lasts).await;
                self.mend(number)?;
            }
            What::SlowDisk { ms } => {
                peer.faults(&Faults { slow_sync_ms: ms, ..Faults::default() })?;
                sleep(lasts).await;
                peer.faults(&Faults::default())?;
            }
            What::Clock { shift_ms } => {
                peer.faults(&Faults { clock_shift_ms: shift_ms, ..Faults::default() })?;
                sleep(lasts).await;
                peer.faults(&Faults::default())?;
            }
            What::FailingSync | What::FullDisk => {
                let (fail_sync, full_disk) = (what == What::FailingSync, what == What::FullDisk);
                self.failing.lock().insert(number);
                peer.faults(&Faults { fail_sync, full_disk, ..Faults::default() })?;
                let ended = peer.ended(NOTICED).await;
                sleep(lasts).await;
                peer.faults(&Faults::default())?;
                if ended.is_ok() {
                    self.net.restart(number).await?;
                }
            }
            What::Move => self.relocate(target, draw).await?,
            What::Drain => {
                self.drain(peer, true).await?;
                sleep(lasts).await;
                self.drain(peer, false).await?;
            }
            What::KillAll => {
                self.net.kill_all()?;
                sleep(lasts).await;
                hope = self.began.elapsed();
                self.net.start_all().await?;
            }
            What::NoMajority => {
                let Target::Leader(group) = target else { return Ok(()) };
                let (_, group) = self.group(group);
                let dead = self.kill_majority(group, draw).await?;
                let from = self.began.elapsed();
                sleep(lasts).await;
                hope = self.began.elapsed();
                silent = Some((group, from, hope));
                join_all(dead.iter().map(|number| self.net.restart(*number)))
                    .await
                    .into_iter()
                    .collect::<Result<(), Error>>()?;
            }
        }
        let (kind, ended) = (what.kind(target), self.began.elapsed());
        self.made.lock().push(Made { kind, what: text, began, hope, ended, whole: None, silent });
        Ok(())
    }

    fn set(&self, (from, to): (usize, usize), quality: Quality) -> Result<()> {
        if let Some(network) = &self.network {
            network.set(from, to, quality)?;
        }
        Ok(())
    }

    /// Changes all links of a peer.
    fn change(&self, number: usize, how: impl Fn(Quality) -> Quality) -> Result<()> {
        let of = self.links.iter().filter(|((from, to), _)| *from == number || *to == number);
        self.hit(number, of.map(|(pair, was)| (*pair, how(*was))).collect())
    }

    /// Changes links, until the fault at this peer is over.
    fn hit(&self, number: usize, links: Links) -> Result<()> {
        let set = links.iter().try_for_each(|(pair, quality)| self.set(*pair, *quality));
        self.hit.lock().insert(number, links);
        set
    }

    /// The fault of links at this peer is over; what another one does to the same links goes on.
    fn mend(&self, number: usize) -> Result<()> {
        let mut hit = self.hit.lock();
        let over = hit.remove(&number).unwrap_or_default();
        over.keys().try_for_each(|pair| {
            let other = hit.values().find_map(|links| links.get(pair));
            other.or_else(|| self.links.get(pair)).map_or(Ok(()), |quality| self.set(*pair, *quality))
        })
    }

    /// Pins a group's replicas to as many peers as it has, chosen by the number.
    async fn relocate(&self, target: Target, draw: u64) -> Result<()> {
        let Target::Leader(group) = target else { return Ok(()) };
        let (_, group) = self.group(group);
        let (_, status) = timeout(PATIENCE, self.led(group)).await.context("the group has no leader")??;
        let mut peers: Vec<&Peer> = self.net.peers().iter().collect();
        let mut pinned = Vec::new();
        let mut rest = draw;
        for _ in 0..status.wanted.min(u32::try_from(peers.len())?) {
            let count = u64::try_from(peers.len())?;
            let peer = peers.remove(usize::try_from(rest % count)?);
            rest /= count;
            pinned.push(peer.id()?);
        }
        let placement =
            Placement { pinned: pinned.iter().map(|id| id.to_vec().into()).collect(), ..Placement::default() };
        until("the move is taken", HEAL, async || {
            self.admin.set_group(group, None, Some(placement.clone())).await.map_err(|error| error.to_string())
        })
        .await?;
        let moved = until("the replicas are where they should be", HEAL, async || {
            let (_, status) = self.net.led(group).await?;
            let there = pinned.iter().filter(|id| status.replicas.iter().any(|r| r.peer_id() == Ok(**id))).count();
            let all = there == pinned.len() && status.replicas.len() == there && status.voters.len() == there;
            if all { Ok(()) } else { Err(format!("{there} of {} are there", pinned.len())) }
        });
        Ok(moved.await?)
    }

    async fn led(&self, group: GroupId) -> Result<(usize, GroupStatus)> {
        Ok(until("a leader", PATIENCE, async || self.net.led(group).await).await?)
    }

    async fn drain(&self, peer: &Peer, on: bool) -> Result<()> {
        until("the peer takes the wish to be drained, or not", HEAL, async || {
            let client = peer.client().await.map_err(|error| error.to_string())?;
            client.drain(on).await.map_err(|error| error.to_string())
        })
        .await?;
        Ok(())
    }

    /// Kills so many voters that those that are left are no majority.
    async fn kill_majority(&self, group: GroupId, draw: u64) -> Result<Vec<usize>> {
        let (_, status) = self.led(group).await?;
        let voters = status.replicas.iter().filter(|replica| status.voters.contains(&replica.id));
        let voters: Vec<usize> = voters
            .filter_map(|replica| {
                let id = replica.peer_id().ok()?;
                self.net.peers().iter().find(|peer| peer.id().is_ok_and(|of| of == id)).map(Peer::number)
            })
            .collect();
        let enough = voters.len() - voters.len() / 2;
        let first = usize::try_from(draw % u64::try_from(voters.len().max(1))?)?;
        let dead: Vec<usize> = voters.iter().cycle().skip(first).take(enough).copied().collect();
        for number in &dead {
            self.net.peer(*number)?.kill()?;
        }
        Ok(dead)
    }

    /// Ends whatever is left of a round, and finds who has ended for no reason.
    async fn end_all(&self) {
        let failing = std::mem::take(&mut *self.failing.lock());
        self.hit.lock().clear();
        for (pair, quality) in &self.links {
            if let Err(error) = self.set(*pair, *quality) {
                self.problem(format!("link {pair:?} could not be healed: {error:#}"));
            }
        }
        for peer in self.net.peers() {
            if self.shim
                && let Err(error) = peer.faults(&Faults::default())
            {
                tracing::debug!(peer = peer.number(), %error, "it is not up");
            }
            // one that a failed step has left stopped
            drop(peer.cont());
            if peer.is_running() {
                continue;
            }
            if !failing.contains(&peer.number()) {
                let tail = tail(peer);
                self.problem(format!("peer {} ended though nobody ended it; its log ends with: {tail}", peer.number()));
            }
            if let Err(error) = self.net.restart(peer.number()).await {
                self.problem(format!("peer {} does not start again: {error}", peer.number()));
            }
        }
    }

    /// Whether each group has a leader, all the voters that it wants, and each of them has what is committed.
    async fn is_whole(&self) -> std::result::Result<(), String> {
        let asked = self.net.peers().iter().map(|peer| async move { (peer, peer.status().await) });
        let mut all: BTreeMap<u64, Vec<GroupStatus>> = BTreeMap::new();
        for (peer, status) in join_all(asked).await {
            let status = status.map_err(|error| format!("peer {}: {error}", peer.number()))?;
            status.groups.into_iter().for_each(|group| all.entry(group.id).or_default().push(group));
        }
        for (name, group) in &self.groups {
            let said = all.get(&group.0).map(Vec::as_slice).unwrap_or_default();
            check_whole(said, self.net.peers().len()).map_err(|why| format!("group `{name}` {why}"))?;
        }
        Ok(())
    }
}

/// Entries that a follower may lack of what its leader has committed while events come: those of a moment.
const BEHIND: u64 = 200;

/// Whether a group is whole, by what all its replicas say.
fn check_whole(said: &[GroupStatus], peers: usize) -> std::result::Result<(), String> {
    let leaders = said.iter().filter(|status| status.leader == status.replica);
    let leader = leaders.max_by_key(|status| status.term).ok_or("has no leader")?;
    let (voters, wanted) = (leader.voters.len(), usize::try_from(leader.wanted).unwrap_or(usize::MAX).min(peers));
    if voters < wanted || leader.replicas.len() != voters {
        return Err(format!("has {voters} voters of {} replicas, and wants {wanted}", leader.replicas.len()));
    }
    for voter in &leader.voters {
        let status = said.iter().find(|status| status.replica == *voter);
        let status = status.ok_or_else(|| format!("has a voter {voter} that no peer knows of"))?;
        if status.leader != leader.replica || status.applied + BEHIND < leader.committed {
            let (applied, committed) = (status.applied, leader.committed);
            return Err(format!("has a voter {voter} that has applied {applied} of {committed}"));
        }
    }
    Ok(())
}

fn pairs(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count).flat_map(move |from| (0..count).filter(move |to| *to != from).map(move |to| (from, to)))
}

fn tail(peer: &Peer) -> String {
    let log = peer.logs().unwrap_or_else(|error| error.to_string());
    let start = log.len().saturating_sub(TAIL);
    let start = (start..=log.len()).find(|at| log.is_char_boundary(*at)).unwrap_or(log.len());
    log.get(start..).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use canal_proto::peer::Replica;

    use super::*;

    fn status(replica: u64, leader: u64, applied: u64) -> GroupStatus {
        let replicas = [1, 2, 3].map(|id| Replica { id, peer: vec![0; 32], addresses: Vec::new() });
        let voters = vec![1, 2, 3];
        GroupStatus {
            replica,
            leader,
            term: 5,
            applied,
            committed: 1_000,
            replicas: replicas.into(),
            voters,
            wanted: 3,
            ..GroupStatus::default()
        }
    }

    #[test]
    fn a_group_is_whole_when_all_its_voters_follow() {
        let all = [status(1, 1, 1_000), status(2, 1, 990), status(3, 1, 900)];
        assert_eq!(check_whole(&all, 5), Ok(()));
        assert!(check_whole(&all[1..], 5).unwrap_err().contains("no leader"));
        assert!(check_whole(&all[..2], 5).unwrap_err().contains("voter 3 that no peer knows of"));
        let late = [status(1, 1, 1_000), status(2, 1, 990), status(3, 1, 500)];
        assert!(check_whole(&late, 5).unwrap_err().contains("applied 500 of 1000"));
        let mut short = all.clone();
        short[0].voters.pop();
        assert!(check_whole(&short, 5).unwrap_err().contains("2 voters of 3 replicas"));
        assert_eq!(pairs(3).collect::<Vec<_>>(), [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]);
    }
}
