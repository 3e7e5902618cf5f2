//! The producers that a topic remembers, a page at a time.

use bytes::Bytes;
use canal_proto::TopicId;
use canal_proto::request::ProducerInfo;

use super::{View, decode};
use crate::core::keys::{Table, end_of};
use crate::core::kv::KvError;
use crate::core::rows::Producer;

impl View {
    /// At most `limit` producers of a topic, by id, from this one on, and the one behind them if there are more.
    ///
    /// # Errors
    /// When the store fails or is damaged.
    pub fn producers(
        &self,
        topic: TopicId,
        from: &[u8],
        limit: usize,
    ) -> Result<(Vec<ProducerInfo>, Option<Bytes>), KvError> {
        let all = self.keys.topic_only(Table::Producers, topic);
        let start = self.keys.make(Table::Producers, &[&topic.0.to_be_bytes(), from]);
        let rows = self.kv.scan(&start, &end_of(&all), limit.saturating_add(1), false)?;
        let mut producers = Vec::new();
        for (key, value) in rows {
            let id = key.slice(all.len().min(key.len())..);
            if producers.len() == limit {
                return Ok((producers, Some(id)));
            }
            let row: Producer = decode(&key, value)?;
            let newest = row.runs.last().map(|run| run.offset + run.count.saturating_sub(1));
            producers.push(ProducerInfo { producer: id, last_sequence: row.last, newest });
        }
        Ok((producers, None))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use canal_proto::event::Event;
    use canal_proto::log::{Append, AppendItem, Kind};

    use crate::state_store::Backend;
    use crate::view::tests::{Bench, TOPICS};

    #[test]
    fn producers_are_read_a_page_at_a_time() {
        let mut bench = Bench::new(Backend::Sled);
        let id = |n: u8| vec![n; 16];
        for (topic, producer, count) in [(0, 1, 2), (0, 2, 1), (1, 3, 1), (0, 4, 3), (0, 1, 1)] {
            let first_sequence = if (producer, count) == (1, 1) { 3 } else { 1 };
            let item = AppendItem {
                topic: TOPICS[topic].0,
                producer: id(producer).into(),
                first_sequence,
                events: vec![Event::new("x"); count],
                origin: 0,
            };
            bench.command(Kind::Append(Append { items: vec![item] }));
        }
        let page = |from: &[u8], limit: usize| {
            let (producers, next) = bench.view().producers(TOPICS[0], from, limit).unwrap();
            let shown: Vec<_> = producers.iter().map(|p| (p.producer[0], p.last_sequence, p.newest)).collect();
            assert!(producers.iter().all(|producer| producer.producer.len() == 16));
            (shown, next.map(|next| next.to_vec()))
        };
        let (one, two, four) = ((1, 3, Some(6)), (2, 1, Some(2)), (4, 3, Some(5)));
        assert_eq!(page(&[], 10), (vec![one, two, four], None), "none of another topic");
        assert_eq!(page(&[], 3), (vec![one, two, four], None));
        assert_eq!(page(&[], 2), (vec![one, two], Some(id(4))));
        assert_eq!(page(&id(2), 1), (vec![two], Some(id(4))));
        assert_eq!(page(&id(3), 1), (vec![four], None));
        assert_eq!(page(&id(9), 1), (vec![], None));
    }
}
