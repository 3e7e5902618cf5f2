//! What a topic's retention lets go of, as a replica sees it.

use canal_proto::TopicId;
use canal_proto::event::Stored;

use super::View;
use crate::core::kv::KvError;
use crate::core::retention::{self, Decision};

/// Events that are read at a time to learn how old they are.
const PAGE: usize = 256;
/// Their bytes.
const PAGE_BYTES: usize = 1 << 20;

impl View {
    /// What a topic's policy lets go of at this time, and which trigger holds back more. It reads events where the age
    /// of what is not in segments counts, at most [`retention::MAX_AGED`] of them.
    ///
    /// # Errors
    /// When the store fails or is damaged.
    pub fn retention(&self, topic: TopicId, now_ms: u64) -> Result<Decision, KvError> {
        let mut page: Vec<Stored> = Vec::new();
        let mut time = |offset: u64| {
            let known = |page: &[Stored]| {
                let at = offset.checked_sub(page.first()?.offset)?;
                page.get(usize::try_from(at).ok()?).map(|stored| stored.event.time_ms)
            };
            if known(&page).is_none() {
                // what can't be read now keeps its place until it can be
                page = self.events(topic, offset, PAGE, PAGE_BYTES).unwrap_or_default();
            }
            Ok(known(&page))
        };
        retention::decide(self.kv.as_ref(), self.group, topic, now_ms, &mut time)
    }
}
