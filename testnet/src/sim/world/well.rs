//! Whether everything is as it should be once nothing goes wrong any more; and the story of a run.

use canal_consensus::Status;
use canal_consensus::core::keys::{Keys, Table};
use canal_consensus::core::kv::{Kv as _, WriteBatch};
use canal_consensus::core::retention;
use canal_consensus::core::rows::Topic;
use canal_consensus::core::txn::Txn;
use canal_proto::{GroupId, TopicId};
use prost::Message as _;

use super::World;
use crate::sim::around::Machine;
use crate::sim::seen::{Look as _, Seen};

impl World {
    /// Whether all is well; or what is not, for people.
    pub(super) fn is_well(&self) -> Result<(), String> {
        for slot in self.actors.values() {
            if let Some(actor) = slot.actor.as_ref().filter(|actor| !actor.is_done()) {
                return Err(format!("the {} on machine {} is not done: {}", slot.name, slot.machine, actor.describe()));
            }
        }
        self.groups().into_iter().try_for_each(|group| self.is_group_well(group))
    }

    fn statuses(&self, group: GroupId) -> Vec<(Machine, Status)> {
        let status = |(peer, held): (Machine, &crate::sim::peer::Peer)| {
            Some((peer, held.live.as_ref()?.members.get(&group)?.group.status()))
        };
        self.peers.iter().filter_map(status).collect()
    }

    fn is_group_well(&self, group: GroupId) -> Result<(), String> {
        let statuses = self.statuses(group);
        let Some((peer, leader)) = statuses.iter().find(|(_, status)| status.leads) else {
            return Err(format!("group {group} has no leader"));
        };
        let wanted = self.wanted(group);
        let configuration = &leader.configuration;
        if leader.joint || configuration.voters.len() != wanted || configuration.replicas.len() != wanted {
            return Err(format!("group {group} has not the {wanted} voters that it wants"));
        }
        if statuses.len() != wanted {
            return Err(format!("group {group} has {} replicas on peers, and wants {wanted}", statuses.len()));
        }
        for (peer, status) in &statuses {
            if !configuration.voters.contains(&status.replica) {
                return Err(format!("group {group}: replica {} on peer {peer} is no voter", status.replica));
            }
            if !status.serves() {
                return Err(format!("group {group}: replica {} on peer {peer} is not whole", status.replica));
            }
            if status.applied != leader.last || status.term != leader.term {
                return Err(format!("group {group}: replica {} on peer {peer} lags", status.replica));
            }
        }
        for (peer, held) in self.peers.iter().filter(|(_, held)| held.live.is_some()) {
            let member = held.live.as_ref().and_then(|live| live.members.get(&group));
            if let Some(history) = member.map(|member| &member.history).filter(|history| !history.lacking.is_empty()) {
                let first = history.lacking.front().map(|lacking| (lacking.fetch, lacking.segments.len()));
                let (count, work, fetching) = (history.lacking.len(), history.work, history.fetching);
                return Err(format!(
                    "group {group}: peer {peer} lacks segments of {count} seals, of the first {first:?} (to be fetched, how \
                     many); under way {work:?}, fetch {fetching:?}"
                ));
            }
            if held.disk.files.is_damaged() {
                return Err(format!("peer {peer} has a damaged file"));
            }
        }
        if leader.outbox > 0 {
            return Err(format!("group {group} has {} effects in its outbox", leader.outbox));
        }
        self.cursors_are_at_the_head(*peer, group, leader)
    }

    fn cursors_are_at_the_head(&self, peer: Machine, group: GroupId, leader: &Status) -> Result<(), String> {
        let kv = self.peers[peer].disk.rows.open_ref(group);
        let mut none = WriteBatch::default();
        let txn = Txn::new(group, kv, &mut none);
        for topic in leader.spec.topics.iter().map(|topic| TopicId(topic.id)) {
            let row = kv.get(&Keys(group).topic_only(Table::Topics, topic)).map_err(|e| e.to_string())?;
            let next = row.and_then(|row| Topic::decode(row).ok()).unwrap_or_default().next;
            let floor = retention::floor(&txn, &leader.spec, topic).map_err(|e| e.to_string())?;
            if let Some((low, trigger)) = floor.filter(|(low, _)| *low < next) {
                return Err(format!("group {group}: trigger {trigger} is at {low} of {next} in topic {topic}"));
            }
        }
        Ok(())
    }

    /// How everything stands, for people.
    pub(super) fn describe(&self) -> String {
        let mut lines = Vec::new();
        for group in self.groups() {
            let replica = |(peer, s): &(Machine, Status)| {
                format!(
                    "[peer {peer} id {}{} leader {} term {} log {}..={} applied {}/{} voters {:?}{:?} learners {:?} {}{}{}]",
                    s.replica,
                    if s.leads { " LEADS" } else { "" },
                    s.leader,
                    s.term,
                    s.first,
                    s.last,
                    s.applied,
                    s.committed,
                    s.configuration.voters,
                    s.configuration.voters_outgoing,
                    s.configuration.learners,
                    if s.hollow { "hollow " } else { "" },
                    if s.installing { "installing " } else { "" },
                    if s.forgotten { "forgotten" } else { "" },
                )
            };
            let replicas: Vec<String> = self.statuses(group).iter().map(replica).collect();
            lines.push(format!("group {group}: {}", replicas.join(" ")));
        }
        let busy = self.actors.values().filter(|slot| slot.actor.as_ref().is_some_and(|actor| !actor.is_done()));
        lines.extend(busy.take(5).map(|slot| {
            format!("{} {}: {}", slot.name, slot.machine, slot.actor.as_ref().map_or(String::new(), |a| a.describe()))
        }));
        lines.join("; ")
    }

    /// Tells a line of the story.
    pub(super) fn tell_story(&mut self, seen: &Seen) {
        let line = match seen {
            Seen::Leads { peer, group, replica, term } => {
                self.trace.note(&[self.now, *peer as u64, group.0, *term]);
                format!("peer {peer}: replica {replica} leads group {group} in term {term}")
            }
            Seen::Installed { peer, group, index, .. } => {
                format!("peer {peer}: has installed a snapshot of group {group} at {index}")
            }
            Seen::Receipt { peer, group, topic, first, count, offset, index, term, .. } => {
                self.trace.note(&[self.now, *topic, *first, *count, offset.unwrap_or(u64::MAX)]);
                format!(
                    "peer {peer}: group {group} acknowledges {count} from sequence {first} to topic {topic} at {offset:?}, \
                     entry {index} of term {term}"
                )
            }
            Seen::Fault { peer, text } => {
                self.trace.note(&[self.now, peer.map_or(u64::MAX, |peer| peer as u64)]);
                self.trace.bytes(text.as_bytes());
                match peer {
                    Some(peer) => format!("FAULT peer {peer}: {text}"),
                    None => format!("FAULT {text}"),
                }
            }
            Seen::Applied { .. } | Seen::Publishes { .. } | Seen::Delivered { .. } => return,
            Seen::Note { text } => text.clone(),
            other => {
                if !self.trace.is_told() {
                    return;
                }
                format!("{other:?}")
            }
        };
        self.trace.tell(self.now, || line);
    }
}
