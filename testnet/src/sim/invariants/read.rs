//! How invariants read replicas: rows by their keys, who leads, who stands in the configuration.

use std::hash::{DefaultHasher, Hash, Hasher};

use canal_consensus::Status;
use canal_consensus::core::keys::{Keys, Table};
use canal_consensus::core::kv::Kv as _;
use canal_consensus::core::rows::Topic;
use canal_proto::{GroupId, TopicId};
use prost::Message;
use raft::eraftpb::{Entry, EntryType};

use crate::sim::seen::{Look, Replica};

/// A replica with how it stands.
pub(super) type Standing<'a> = (Box<dyn Replica + 'a>, Status);

/// The number of the field that says what an entry does: [`canal_proto::log::Kind`]'s tags.
pub(super) const OUTBOX_ACK: u8 = 6;

/// The row at a key, as a replica has applied it.
pub(super) fn row<M: Message + Default>(replica: &dyn Replica, key: &[u8]) -> Result<Option<M>, String> {
    let bytes = replica.kv().get(key).map_err(|e| e.0)?;
    bytes.map(M::decode).transpose().map_err(|e| format!("the row at {key:02x?} is damaged: {e}"))
}

/// The row of a topic.
pub(super) fn topic(replica: &dyn Replica, group: GroupId, topic: TopicId) -> Result<Option<Topic>, String> {
    row(replica, &Keys(group).topic_only(Table::Topics, topic))
}

/// The replicas of a group whose peers are up.
pub(super) fn standing(look: &dyn Look, group: GroupId) -> Vec<Standing<'_>> {
    let replicas = look.replicas(group).into_iter();
    replicas.filter_map(|replica| replica.status().map(|status| (replica, status))).collect()
}

/// Of the replicas that say that they lead, the one of the highest term: others have not heard of it yet.
pub(super) fn leader<'a, 'b>(standing: &'b [Standing<'a>]) -> Option<&'b Standing<'a>> {
    standing.iter().filter(|(_, status)| status.leads).max_by_key(|(_, status)| status.term)
}

/// The voters of a group's newest configuration that are up and have all of its rows.
pub(super) fn voters(look: &dyn Look, group: GroupId) -> Vec<Standing<'_>> {
    let mut standing = standing(look, group);
    let voters = leader(&standing).map(|(_, status)| status.configuration.voters.clone()).unwrap_or_default();
    standing.retain(|(_, status)| voters.contains(&status.replica) && !(status.hollow || status.installing));
    standing
}

/// The topics of a group, by the spec of its leader: id and name.
pub(super) fn topics(standing: &[Standing<'_>]) -> Vec<(TopicId, String)> {
    let spec = leader(standing).map(|(_, status)| status.spec.clone());
    spec.iter().flat_map(|spec| &spec.topics).map(|topic| (TopicId(topic.id), topic.name.clone())).collect()
}

/// Stands for some bytes.
pub(super) fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// Stands for what an entry does, its place left out.
pub(super) fn digest_of(entry: &Entry) -> u64 {
    let mut hasher = DefaultHasher::new();
    (entry.entry_type as i32, entry.data.as_ref() as &[u8], entry.context.as_ref() as &[u8]).hash(&mut hasher);
    hasher.finish()
}

/// What an entry is: the tag of its command's kind, without reading all of it; 0 for anything else.
pub(super) fn kind(entry: &Entry) -> u8 {
    const TIME: u8 = 1 << 3;
    let mut data: &[u8] = entry.data.as_ref();
    if entry.entry_type != EntryType::EntryNormal {
        return 0;
    }
    if let [TIME, rest @ ..] = data {
        // behind the number's last byte, the only one without its highest bit
        let end = rest.iter().position(|byte| *byte < 0x80).map_or(rest.len(), |at| at + 1);
        data = rest.get(end..).unwrap_or_default();
    }
    data.first().map_or(0, |tag| tag >> 3)
}

/// A producer, as text for people.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use canal_proto::log::{Append, Command, Kind, OutboxAck};

    use super::*;

    fn entry(time_ms: u64, kind: Kind) -> Entry {
        let data = Command { time_ms, kind: Some(kind) }.encode_to_vec();
        Entry { data: data.into(), ..Entry::default() }
    }

    #[test]
    fn the_kind_of_an_entry_is_seen_without_reading_it() {
        for time in [0, 1, 300, u64::MAX] {
            assert_eq!(kind(&entry(time, Kind::OutboxAck(OutboxAck::default()))), OUTBOX_ACK);
            assert_eq!(kind(&entry(time, Kind::Append(Append::default()))), 2);
        }
        assert_eq!(kind(&Entry::default()), 0);
        assert_eq!(
            kind(&Entry { entry_type: EntryType::EntryConfChangeV2, data: vec![0x32, 0].into(), ..Entry::default() }),
            0
        );
    }
}
