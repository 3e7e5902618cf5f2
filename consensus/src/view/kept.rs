//! What a topic's retention lets go of, as a replica sees it.

use std::ops::Range;

use canal_proto::TopicId;

use super::View;
use crate::core::kv::KvError;
use crate::core::retention::{self, Decision};

impl View {
    /// What a topic's policy lets go of at this time, and which trigger holds back more. It reads entries where the age
    /// of what is not in segments counts, at most [`retention::MAX_AGED`] of them.
    ///
    /// # Errors
    /// When the store fails or is damaged.
    pub fn retention(&self, topic: TopicId, now_ms: u64) -> Result<Decision, KvError> {
        let mut run: Option<(Range<u64>, u64)> = None;
        let mut time = |offset: u64| {
            if run.as_ref().is_none_or(|(run, _)| !run.contains(&offset)) {
                // what can't be told now keeps its place until it can be
                run = self.appended(topic, offset).unwrap_or_default();
            }
            Ok(run.as_ref().map(|(_, time)| *time))
        };
        retention::decide(self.kv.as_ref(), self.group, topic, now_ms, &mut time)
    }
}
