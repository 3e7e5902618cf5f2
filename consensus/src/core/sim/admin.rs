//! What the rest of a peer does for a group, as its leader's peer: brings the spec, creates replicas, and takes one step a
//! time towards the replicas that the group should have.

use canal_proto::log::{GroupSpec, Kind, TopicSpec};
use canal_proto::peer::Replica;

use super::client::TOPIC;
use super::oracle::Check;
use super::world::{Asker, World, peer_of, replica_of};
use crate::core::group::{ChangeSet, Input, Status};

impl World {
    pub(super) fn administer(&mut self) -> Check {
        if self.rng.chance(self.faults.desire) {
            self.desire();
        }
        let Some(leader) = self.leader().filter(|_| self.rng.chance(200)) else { return Ok(()) };
        let Some(peer) = self.peer_with(leader.replica) else { return Ok(()) };
        if !self.has_spec {
            let topics = vec![TopicSpec { id: TOPIC, name: "t".into(), ..TopicSpec::default() }];
            let spec = GroupSpec { version: 1, topics, ..GroupSpec::default() };
            self.ask(peer, Asker::Spec, |ticket| Input::Propose(ticket, Box::new(Kind::Spec(spec))));
        }
        for replica in &leader.configuration.replicas {
            let node = &self.nodes[peer_of(replica)];
            if node.seed.is_none() && node.gone < replica.id {
                let first = self.nodes[peer].seed.as_ref().map(|seed| seed.first.clone());
                self.create(peer_of(replica), first.unwrap_or_default(), replica.id)?;
            }
        }
        self.clear(&leader);
        self.next_step(peer, &leader);
        Ok(())
    }

    /// Draws the peers that should hold replicas from now on.
    pub(super) fn desire(&mut self) {
        let mut peers: Vec<usize> = (0..self.setup.peers).collect();
        while peers.len() > self.setup.wanted {
            let at = self.rng.below(peers.len() as u64) as usize;
            peers.remove(at);
        }
        self.desired = peers;
    }

    /// Replicas that the configuration does not name any more are removed from their peers.
    fn clear(&mut self, leader: &Status) {
        let configuration = &leader.configuration;
        for node in &mut self.nodes {
            let Some(id) = node.seed.as_ref().map(|seed| seed.replica) else { continue };
            if id <= configuration.last_id && !configuration.replicas.iter().any(|replica| replica.id == id) {
                node.remove();
            }
        }
    }

    fn next_step(&mut self, peer: usize, leader: &Status) {
        let configuration = &leader.configuration;
        if leader.joint {
            return;
        }
        let desired = |replica: &&Replica| self.desired.contains(&peer_of(replica));
        let lost = |replica: &&Replica| replica.id <= self.nodes[peer_of(replica)].gone;
        let held = &configuration.replicas;
        let votes = |replica: &&Replica| configuration.voters.contains(&replica.id);
        let own = held.iter().find(|replica| replica.id == leader.replica);
        let near = |replica: &&Replica| {
            leader.progress.get(&replica.id).is_some_and(|progress| progress.matched + 5 >= leader.last)
        };
        let ready: Vec<u64> = held.iter().filter(|r| !votes(r) && desired(r) && near(r)).map(|r| r.id).collect();
        let mut leaving: Vec<&Replica> = held.iter().filter(|r| r.id != leader.replica && lost(r)).collect();
        leaving.extend(held.iter().filter(|r| r.id != leader.replica && !lost(r) && !desired(r)));
        let leaving: Vec<u64> = leaving.into_iter().map(|replica| replica.id).collect();
        let learning = leaving.iter().copied().find(|id| configuration.learners.contains(id));
        let missing = self.desired.iter().copied().find(|wanted| !held.iter().any(|r| peer_of(r) == *wanted));
        let others = held.iter().find(|r| votes(r) && desired(r) && !lost(r) && near(r) && r.id != leader.replica);
        let going = leaving.iter().copied().find(|id| configuration.voters.contains(id));
        let lost_here = held.iter().find(|r| r.id != leader.replica && lost(r)).map(|r| r.id);
        let input: Box<dyn FnOnce(u64) -> Input> = match (missing, ready.first().copied(), going) {
            // a replica whose disk is empty stands in the way of a new one on its peer
            _ if lost_here.is_some() && self.rng.chance(500) => {
                let change = ChangeSet { promote: ready, remove: lost_here.into_iter().collect() };
                Box::new(move |ticket| Input::Change(ticket, change))
            }
            (Some(missing), ready, _) if ready.is_none() || self.all_at_once => {
                Box::new(move |ticket| Input::AddLearner(ticket, replica_of(missing, 0)))
            }
            (_, Some(_), Some(going)) => {
                let change = ChangeSet { promote: ready, remove: vec![going] };
                Box::new(move |ticket| Input::Change(ticket, change))
            }
            (_, Some(id), None) => Box::new(move |ticket| Input::Promote(ticket, id)),
            (_, None, going) => {
                // a voter that is not wanted goes by itself only when the others are enough
                let enough = configuration.voters.len() > self.setup.wanted;
                match learning.or(going.filter(|_| enough)) {
                    Some(id) => {
                        let change = ChangeSet { promote: Vec::new(), remove: vec![id] };
                        Box::new(move |ticket| Input::Change(ticket, change))
                    }
                    None => match others.filter(|_| !own.as_ref().is_some_and(desired)) {
                        Some(other) => {
                            let to = other.id;
                            self.nodes[peer].inbox.push(Input::Transfer(to));
                            return;
                        }
                        None => return,
                    },
                }
            }
        };
        self.ask(peer, Asker::Change, input);
    }
}
