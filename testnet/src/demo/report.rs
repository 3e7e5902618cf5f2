//! What the demo says: lines while it runs, a table or a JSON document at the end.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write as _, stdout};
use std::path::PathBuf;

use serde::Serialize;

use super::repair::Loss;
use super::stats::{Latency, Snapshot};

/// Between two lines where they can't be written over each other.
const PLAIN_EVERY: u64 = 5;

/// The result of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Whether every promise was kept.
    pub ok: bool,
    /// What was not; empty when all were.
    pub problems: Vec<String>,
    /// Peers.
    pub peers: usize,
    /// What was streamed.
    pub source: String,
    /// Seconds for which readings were streamed.
    pub seconds: f64,
    /// Readings published.
    pub events_published: u64,
    /// Readings acknowledged.
    pub events_acknowledged: u64,
    /// Runs of functions, by their records.
    pub activations: u64,
    /// Events that functions emitted.
    pub effects: u64,
    /// Changes of a group's leader.
    pub leader_changes: u64,
    /// From a reading to its receipt.
    pub publish: Latency,
    /// From a reading to its smoothed one at a subscriber.
    pub publish_to_effect: Latency,
    /// The kill.
    pub outage: Option<Outage>,
    /// The peer that was taken away for good; none where there were too few to lose one.
    pub loss: Option<Loss>,
    /// For each group, the seconds from that loss until it had its replicas again: as many as it wants, all of them
    /// voting, none at the lost peer. None for a group that never had.
    pub restored_after_s: Option<BTreeMap<String, Option<f64>>>,
    /// From the last reading until all functions had caught up.
    pub caught_up_ms: Option<u64>,
    /// Replicas that each topic was read back from, at the least.
    pub replicas_read: usize,
    /// Where data and logs were kept.
    pub directory: Option<PathBuf>,
}

/// The kill of a leader.
#[derive(Debug, Clone, Serialize)]
pub struct Outage {
    /// The group that had most to do.
    pub group: &'static str,
    /// Its leader.
    pub peer: usize,
    /// When it was killed, after the first reading.
    pub killed_at_s: f64,
    /// When it was up again, after the first reading.
    pub restarted_at_s: Option<f64>,
    /// From the kill to the first receipt for a reading made after it.
    pub first_ack_ms: Option<u64>,
}

/// Writes what happens as it happens: for people, or not at all.
#[derive(Debug)]
pub struct Screen {
    quiet: bool,
    terminal: bool,
    open: bool,
}

impl Screen {
    /// On standard output; `quiet` says nothing.
    pub fn new(quiet: bool) -> Self {
        Self { quiet, terminal: stdout().is_terminal(), open: false }
    }

    /// Something happened.
    pub fn say(&mut self, line: &str) {
        if self.quiet {
            return;
        }
        let mut out = stdout().lock();
        let clear = if self.open { "\r\x1b[2K" } else { "" };
        self.open = false;
        // nobody listens: the exit code still tells
        drop(writeln!(out, "{clear}{line}"));
    }

    /// How far it is: written over the line before on a terminal, else now and then.
    pub fn progress(&mut self, second: u64, line: &str) {
        if self.quiet {
            return;
        }
        let mut out = stdout().lock();
        if self.terminal {
            self.open = true;
            drop(write!(out, "\r\x1b[2K{line}").and_then(|()| out.flush()));
        } else if second.is_multiple_of(PLAIN_EVERY) {
            drop(writeln!(out, "{line}"));
        }
    }
}

/// The line of progress.
pub fn line(second: u64, snapshot: &Snapshot, leaders: &str) -> String {
    format!(
        "{:>4} s  published {}  acknowledged {}  effects {}  publish p50 {} p99 {}  to effect p50 {}  {leaders}",
        second,
        snapshot.published,
        snapshot.acknowledged,
        snapshot.effects,
        time(snapshot.publish.p50_us),
        time(snapshot.publish.p99_us),
        time(snapshot.effect.p50_us),
    )
}

impl Report {
    /// The table, and what is wrong.
    pub fn table(&self) -> String {
        let latency = |l: &Latency| format!("p50 {}  p99 {}  max {}", time(l.p50_us), time(l.p99_us), time(l.max_us));
        let mut rows = vec![
            ("peers", self.peers.to_string()),
            ("readings", self.source.clone()),
            ("events published", format!("{} in {:.1} s", self.events_published, self.seconds)),
            ("events acknowledged", self.events_acknowledged.to_string()),
            ("activations", self.activations.to_string()),
            ("effects", self.effects.to_string()),
            ("leader changes", self.leader_changes.to_string()),
            ("publish", latency(&self.publish)),
            ("publish to effect", latency(&self.publish_to_effect)),
        ];
        if let Some(outage) = &self.outage {
            let killed = format!("peer {}, leader of `{}`, at {:.1} s", outage.peer, outage.group, outage.killed_at_s);
            rows.push(("killed", killed));
            rows.push(("first ack after it", outage.first_ack_ms.map_or("none".into(), |ms| time(ms * 1000))));
            rows.push(("restarted", outage.restarted_at_s.map_or("no".into(), |s| format!("at {s:.1} s"))));
        }
        if let Some(loss) = &self.loss {
            let lost = format!("peer {}, for good, at {:.1} s", loss.peer, loss.lost_at_s);
            rows.push(("taken away", lost));
            rows.push(("fresh", format!("peer {}, at {:.1} s", loss.fresh, loss.joined_at_s)));
        }
        if let Some(restored) = &self.restored_after_s {
            let after = |after: &Option<f64>| after.map_or("never".into(), |after| format!("{after:.1} s"));
            let groups: Vec<String> = restored.iter().map(|(name, took)| format!("{name} {}", after(took))).collect();
            rows.push(("replicas back after", groups.join("  ")));
        }
        let caught_up =
            self.caught_up_ms.map_or("no".into(), |ms| format!("{} after the last reading", time(ms * 1000)));
        rows.push(("functions caught up", caught_up));
        rows.push(("read back from", format!("{} replicas of each topic", self.replicas_read)));
        if let Some(dir) = &self.directory {
            rows.push(("data and logs", dir.display().to_string()));
        }
        let mut text = String::new();
        for (name, value) in rows {
            text.push_str(&format!("{name:<22}{value}\n"));
        }
        if self.ok {
            text.push_str("\nok: every acknowledged event is there once and in order, every effect happened once\n");
        } else {
            text.push_str("\nNOT ok:\n");
            for problem in &self.problems {
                text.push_str(&format!("  {problem}\n"));
            }
        }
        text
    }
}

/// Microseconds, for people.
fn time(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{:.2} s", micros as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn the_table_says_what_is_wrong() {
        let latency = Latency { count: 1, p50_us: 900, p99_us: 1_500, max_us: 2_000_000 };
        let mut report = Report {
            ok: true,
            problems: Vec::new(),
            peers: 5,
            source: "live".into(),
            seconds: 30.0,
            events_published: 1500,
            events_acknowledged: 1500,
            activations: 3000,
            effects: 1700,
            leader_changes: 1,
            publish: latency,
            publish_to_effect: latency,
            outage: Some(Outage {
                group: "learning",
                peer: 2,
                killed_at_s: 15.0,
                restarted_at_s: Some(18.0),
                first_ack_ms: Some(1200),
            }),
            loss: None,
            restored_after_s: Some([("learning".into(), Some(6.25)), ("sensing".into(), None)].into()),
            caught_up_ms: Some(40),
            replicas_read: 3,
            directory: None,
        };
        let table = report.table();
        assert!(table.contains("publish               p50 900 µs  p99 1.5 ms  max 2.00 s"), "{table}");
        assert!(table.contains("first ack after it    1.20 s") && table.contains("\nok: "), "{table}");
        assert!(table.contains("replicas back after   learning 6.2 s  sensing never\n"), "{table}");
        report.ok = false;
        report.problems.push("something".into());
        assert!(report.table().ends_with("NOT ok:\n  something\n"));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["outage"]["first_ack_ms"], 1200);
        assert_eq!(json["publish"]["p99_us"], 1500);
        assert_eq!(json["restored_after_s"]["learning"], 6.25);
    }
}
