//! What is done about a store that is damaged as a whole: whether this peer may begin empty, or has to be mended by hand.
//!
//! A replica that has forgotten what it voted or acknowledged must not come back under its id. Where the voters beside it
//! are a majority, its group replaces it without anybody's help, so the peer may move aside what it holds and begin
//! empty. Where they are not, what lies here may be the only copy: then nothing is touched, and the peer says which groups
//! need it. Who holds a group besides this peer stands in rows, which are another store than the log.

use std::collections::BTreeSet;
use std::fmt;

use canal_proto::GroupId;
use canal_proto::peer::Seed;

use crate::core::group::{configuration_of, is_needed};
use crate::core::keys::{Keys, Table, end_of};
use crate::core::kv::{Kv, KvError};
use crate::core::txn::decode;
use crate::handle::Options;
use crate::state_store;

/// Groups that are named in a message.
const MAX_NAMED: usize = 20;

/// A store that can't be used any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// What is wrong with which store.
    pub reason: String,
    /// Names of the groups that can't go on without what this peer holds, as far as that is known.
    pub needed: BTreeSet<String>,
    /// There may be others: who else holds a group could not be found out.
    pub unknown: bool,
}

impl Damage {
    /// Whether all groups that have a replica here can go on without it, and replace it: then the peer may begin empty.
    pub fn heals(&self) -> bool {
        self.needed.is_empty() && !self.unknown
    }
}

impl std::error::Error for Damage {}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}. ", self.reason)?;
        if self.heals() {
            return write!(
                f,
                "Every group with a replica here has a majority elsewhere: what this peer holds can be moved aside, and \
                 its replicas are made anew"
            );
        }
        let mut named: Vec<&str> = self.needed.iter().take(MAX_NAMED).map(String::as_str).collect();
        if self.needed.len() > MAX_NAMED {
            named.push("…");
        }
        match (named.is_empty(), self.unknown) {
            (true, _) => {
                write!(f, "Which groups need what this peer holds can't be found out, so nothing was touched")?
            }
            (false, true) => {
                write!(
                    f,
                    "Groups that need what this peer holds: {}, and maybe others; nothing was touched",
                    named.join(", ")
                )?;
            }
            (false, false) => {
                write!(f, "Groups that need what this peer holds: {}; nothing was touched", named.join(", "))?
            }
        }
        write!(
            f,
            ". Restore the data directory from a copy; or start once with --discard-damaged, which moves it aside and begins \
             empty: events of these groups that no other peer has are gone from the mesh then"
        )
    }
}

/// Judges damage of a store other than the rows.
pub(crate) fn judge(options: &Options, reason: String) -> Damage {
    let unknown = |why: &dyn fmt::Display| {
        tracing::error!(%why, "who else holds the groups of this peer can't be found out");
        Damage { reason: reason.clone(), needed: BTreeSet::new(), unknown: true }
    };
    let dir = options.dir.join("state");
    if !dir.exists() {
        return unknown(&"there is no state beside it");
    }
    match state_store::open(&dir, options.backend, options.cache) {
        Ok(store) => by_rows(store.as_ref(), reason.clone()).unwrap_or_else(|error| unknown(&error)),
        Err(error) => unknown(&error),
    }
}

/// Judges by the rows.
pub(crate) fn by_rows(kv: &dyn Kv, reason: String) -> Result<Damage, KvError> {
    let mut damage = Damage { reason, needed: BTreeSet::new(), unknown: false };
    for id in groups_with_rows(kv)? {
        let key = Keys(id).one(Table::Seed);
        let Some(row) = kv.get(&key)? else {
            // of before it was written down, or being removed
            damage.unknown = true;
            continue;
        };
        let seed: Seed = decode(&key, row)?;
        if is_needed(&configuration_of(&seed, kv)?, seed.replica) {
            damage.needed.insert(seed.name);
        }
    }
    Ok(damage)
}

/// The groups that have rows: the first key of each is asked for.
pub(crate) fn groups_with_rows(kv: &dyn Kv) -> Result<Vec<GroupId>, KvError> {
    let mut groups = Vec::new();
    let mut start = Vec::new();
    while let Some((key, _)) = kv.scan(&start, &[], 1, false)?.pop() {
        let Some(prefix) = key.first_chunk::<8>() else {
            return Err(KvError("the state has a row of no group; restore the data directory".to_owned()));
        };
        groups.push(GroupId(u64::from_be_bytes(*prefix)));
        start = end_of(prefix);
        if start.is_empty() {
            break;
        }
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use canal_proto::peer::Replica;
    use prost::Message as _;

    use super::*;
    use crate::core::kv::{MemoryKv, WriteBatch};
    use crate::core::rows::Configuration;

    fn seed(group: u64, replicas: u64) -> Seed {
        let first = (1..=replicas).map(|id| Replica { id, ..Replica::default() }).collect();
        Seed { group, name: format!("g{group}"), replica: 1, first, ..Seed::default() }
    }

    fn rows(seeds: &[Seed], configurations: &[(u64, Configuration)]) -> MemoryKv {
        let kv = MemoryKv::default();
        let seeds =
            seeds.iter().map(|seed| (Keys(GroupId(seed.group)).one(Table::Seed), Some(seed.encode_to_vec().into())));
        let later = configurations
            .iter()
            .map(|(id, row)| (Keys(GroupId(*id)).one(Table::Configuration), Some(row.encode_to_vec().into())));
        kv.write(&WriteBatch { ops: seeds.chain(later).collect() });
        kv
    }

    fn voters(voters: &[u64], outgoing: &[u64]) -> Configuration {
        Configuration { voters: voters.to_vec(), voters_outgoing: outgoing.to_vec(), ..Configuration::default() }
    }

    #[test]
    fn a_peer_is_needed_where_the_others_are_no_majority() {
        let judge = |kv: &MemoryKv| by_rows(kv, "the log is damaged".into()).unwrap();
        assert!(judge(&MemoryKv::default()).heals());
        assert!(judge(&rows(&[seed(1, 3), seed(2, 4), seed(3, 5)], &[])).heals());
        let needed = judge(&rows(&[seed(1, 1), seed(2, 2), seed(3, 3)], &[]));
        assert_eq!(needed.needed, ["g1".to_owned(), "g2".to_owned()].into());
        let text = needed.to_string();
        assert!(text.starts_with("the log is damaged. Groups that need what this peer holds: g1, g2;"), "{text}");
        assert!(text.contains("Restore the data directory") && text.contains("--discard-damaged"), "{text}");
        // what was changed since counts, and both halves of a change
        let changed = |configuration| judge(&rows(&[seed(1, 1)], &[(1, configuration)])).heals();
        assert!(changed(voters(&[1, 2, 3], &[])));
        assert!(changed(voters(&[2], &[])), "a learner");
        assert!(!changed(voters(&[2, 3, 4], &[1])));
        assert!(!changed(voters(&[1, 2], &[1, 2, 3])));
    }

    #[test]
    fn what_can_not_be_found_out_counts_as_needed() {
        let kv = rows(&[seed(1, 3)], &[(2, voters(&[1, 2, 3], &[]))]);
        let damage = by_rows(&kv, "the log is damaged".into()).unwrap();
        assert!(damage.unknown && !damage.heals());
        assert!(damage.to_string().contains("can't be found out, so nothing was touched"), "{damage}");
    }
}
