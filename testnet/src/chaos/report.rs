//! What a run came to, as a text and as a document.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::away::{Cost, Times};
use super::storm::Made;
use crate::demo::stats::Latency;

/// The result of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether every promise was kept.
    pub ok: bool,
    /// What was not; empty when all were.
    pub problems: Vec<String>,
    /// The seed of the plan.
    pub seed: u64,
    /// For how long faults were made, in minutes.
    pub minutes: f64,
    /// Peers.
    pub peers: u32,
    /// `emulated` or `loopback`.
    pub network: &'static str,
    /// What each kind of fault cost.
    pub faults: Vec<Cost>,
    /// The faults, in their order.
    pub made: Vec<Made>,
    /// Faults of the plan that could not be made here.
    pub skipped: BTreeMap<&'static str, u64>,
    /// Events that were published.
    pub events_published: u64,
    /// Events that were acknowledged.
    pub events_acknowledged: u64,
    /// Events that went through a queue on disk.
    pub events_queued: u64,
    /// How often that queue was closed and opened again.
    pub queue_restarts: u64,
    /// Runs of functions, by their records.
    pub activations: u64,
    /// Events that functions emitted.
    pub effects: u64,
    /// Changes of a group's leader.
    pub leader_changes: u64,
    /// How often the durable subscriber was opened.
    pub durable_openings: usize,
    /// Reads and writes of registers.
    pub register_operations: usize,
    /// Those of them of which nobody knows whether they had an effect.
    pub register_unknown: usize,
    /// From a reading to its receipt, over the whole run.
    pub publish: Latency,
    /// From the end of the faults until the functions had handled everything.
    pub caught_up_ms: Option<u64>,
    /// Replicas of each topic that were read back, the fewest.
    pub replicas_read: usize,
    /// Data and logs, if they were kept.
    pub directory: Option<PathBuf>,
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        let made: usize = self.faults.iter().map(|cost| cost.count).sum();
        let mut text = format!(
            "seed {}, {:.1} minutes, {} peers ({})\n\
             published {}, acknowledged {}; through the queue {} ({} restarts)\n\
             activations {}, effects {}, leader changes {}\n\
             durable subscriber opened {} times; {} operations on registers, {} of them unknown\n\
             publish p50 {} ms, p99 {} ms, longest {} ms; caught up after {}\n\
             read back from {} replicas of each topic at least\n\n",
            self.seed,
            self.minutes,
            self.peers,
            self.network,
            self.events_published,
            self.events_acknowledged,
            self.events_queued,
            self.queue_restarts,
            self.activations,
            self.effects,
            self.leader_changes,
            self.durable_openings,
            self.register_operations,
            self.register_unknown,
            self.publish.p50_us / 1000,
            self.publish.p99_us / 1000,
            self.publish.max_us / 1000,
            self.caught_up_ms.map_or("never".to_owned(), |ms| format!("{ms} ms")),
            self.replicas_read,
        );
        text.push_str(&format!(
            "{made} faults. Times in ms: median / p99 / worst\n{:<18}{:>5}  {:>24}  {:>24}  {:>24}\n",
            "kind", "made", "to the next receipt", "longest without one", "whole again after"
        ));
        for cost in &self.faults {
            text.push_str(&format!(
                "{:<18}{:>5}  {:>24}  {:>24}  {:>24}\n",
                cost.kind,
                cost.count,
                times(cost.next_ack),
                times(cost.longest),
                times(cost.whole)
            ));
        }
        if !self.skipped.is_empty() {
            let skipped: Vec<String> = self.skipped.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
            text.push_str(&format!("not possible here: {}\n", skipped.join(", ")));
        }
        if self.ok {
            text.push_str(
                "\nok: what was acknowledged is there once and in order, every effect happened once, reads were \
                 linearizable\n",
            );
        } else {
            text.push_str("\nNOT ok:\n");
            self.problems.iter().for_each(|problem| text.push_str(&format!("  {problem}\n")));
        }
        if let Some(dir) = &self.directory {
            text.push_str(&format!("data and logs are in {}\n", dir.display()));
        }
        text
    }
}

fn times(times: Option<Times>) -> String {
    times.map_or("-".to_owned(), |t| format!("{:.0} / {:.0} / {:.0}", t.median_ms, t.p99_ms, t.worst_ms))
}
