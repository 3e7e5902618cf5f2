//! Which triggers fire on which topics of a group.
//!
//! Pure functions over specs. The meaning of patterns is [`canal_proto::Pattern`]'s; a trigger never fires on its
//! own dead letters.

use std::collections::BTreeMap;

use canal_proto::log::{TopicSpec, TriggerSpec};

/// The triggers that fire on the topic of this name, in the order given.
pub fn triggers_of<'a>(triggers: &'a [TriggerSpec], topic: &str) -> Vec<&'a TriggerSpec> {
    triggers.iter().filter(|trigger| trigger.info.filter()(topic)).collect()
}

/// The topics that each trigger fires on, by trigger id; triggers without a topic included.
pub fn pairs<'a>(
    triggers: &[TriggerSpec],
    topics: impl IntoIterator<Item = &'a TopicSpec> + Clone,
) -> BTreeMap<u64, Vec<&'a TopicSpec>> {
    let of = |trigger: &TriggerSpec| {
        let fires = trigger.info.filter();
        topics.clone().into_iter().filter(|topic| fires(&topic.name)).collect()
    };
    triggers.iter().map(|trigger| (trigger.info.id, of(trigger))).collect()
}

#[cfg(test)]
mod tests {
    use canal_proto::catalog::TriggerInfo;

    use super::*;

    #[test]
    fn wildcards_match_and_own_dead_letters_do_not() {
        let trigger = |id, name: &str, patterns: &[&str]| TriggerSpec {
            info: TriggerInfo {
                id,
                name: name.into(),
                patterns: patterns.iter().map(|p| (*p).to_owned()).collect(),
                ..TriggerInfo::default()
            },
            ..TriggerSpec::default()
        };
        let triggers =
            [trigger(1, "all", &["#"]), trigger(2, "dead", &["$dead/+"]), trigger(3, "two", &["a/+", "b", "//"])];
        let topics: Vec<_> = ["a/x", "b", "$dead/all", "$dead/dead"]
            .into_iter()
            .zip(1..)
            .map(|(name, id)| TopicSpec { id, name: name.into(), ..TopicSpec::default() })
            .collect();
        let ids: BTreeMap<_, Vec<_>> =
            pairs(&triggers, &topics).into_iter().map(|(t, of)| (t, of.iter().map(|t| t.id).collect())).collect();
        assert_eq!(ids, BTreeMap::from([(1, vec![1, 2]), (2, vec![3]), (3, vec![1, 2])]));
        let on: Vec<_> = triggers_of(&triggers, "a/x").iter().map(|t| t.info.id).collect();
        assert_eq!(on, [1, 3]);
    }
}
