//! Fills a topic with many small events, and shows what that costs each peer: memory, log, segments, and the time that a
//! restart takes. With a log that is never cut and an index that holds every event, these would grow with the number of
//! events; they should not.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use canal_sdk::publisher::{Deadline, PublisherOptions};
use canal_sdk::{Event, GroupId};
use serde::Serialize;

use crate::{Scenario, Testnet, until};

/// Peers, each with a replica.
const PEERS: usize = 3;
/// How often it is shown how things stand.
const SHOW_EVERY: u64 = 1_000_000;
/// For a peer to end in order.
const END: Duration = Duration::from_secs(30);
/// For a restarted peer to have everything again.
const CATCH_UP: Duration = Duration::from_secs(300);
const TOPIC: &str = "fill";

/// What is filled in.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Events
    #[arg(long, value_name = "N", default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub events: u64,
    /// Bytes of payload of each
    #[arg(long, value_name = "B", default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=65_536))]
    pub bytes: u32,
    /// Prints one JSON document at the end, and nothing else
    #[arg(long)]
    pub json: bool,
    /// Bytes of events in the log, in KiB, above which they move to segments [default: the peer's own]
    #[arg(long, value_name = "KB")]
    pub seal_kb: Option<u64>,
}

/// How one peer stands.
#[derive(Debug, Clone, Serialize)]
struct Stand {
    resident_kib: u64,
    peak_kib: u64,
    log_entries: u64,
    log_bytes: u64,
    segments: u64,
    segment_bytes: u64,
}

/// How all of them stand after so many events.
#[derive(Debug, Clone, Serialize)]
struct Line {
    events: u64,
    seconds: f64,
    peers: Vec<Stand>,
}

#[derive(Debug, Serialize)]
struct Restart {
    peer: usize,
    up_ms: u64,
    caught_up_ms: u64,
    after: Stand,
}

#[derive(Debug, Serialize)]
struct Report {
    events: u64,
    bytes: u32,
    lines: Vec<Line>,
    restart: Restart,
}

/// Runs it with peers of this executable, and prints what they cost.
///
/// # Errors
/// When it could not be run to its end.
pub async fn run(options: &Options, executable: PathBuf) -> Result<()> {
    let seal = options.seal_kb.map(|kb| vec!["--seal-kb".to_owned(), kb.to_string()]);
    let net_options =
        crate::Options { arguments: seal.unwrap_or_default(), log: "warn".into(), ..crate::Options::new(executable) };
    let net = Testnet::start(&Scenario::three_tiers(PEERS), net_options).await?;
    let client = net.client(0).await?;
    let group = net.create_topic(&client, TOPIC, TOPIC, u32::try_from(PEERS)?).await?;
    let publishing = PublisherOptions { deadline: Deadline::Never, ..PublisherOptions::default() };
    let publisher = client.publisher_with(TOPIC, publishing).await?;
    let payload = vec![b'x'; usize::try_from(options.bytes)?];
    let began = Instant::now();
    let mut lines = Vec::new();
    for n in 1..=options.events {
        // the receipt is not waited for; should there be none, flushing says so
        drop(publisher.send(Event::new(payload.clone())).await?);
        if n.is_multiple_of(SHOW_EVERY) || n == options.events {
            publisher.flush().await?;
            let mut peers = Vec::new();
            for number in 0..PEERS {
                peers.push(stand(&net, number).await?);
            }
            let line = Line { events: n, seconds: began.elapsed().as_secs_f64(), peers };
            show(options, &line.to_string())?;
            lines.push(line);
        }
    }
    publisher.close().await?;
    let found = client.topic_status(TOPIC).await?.next;
    ensure!(found == options.events, "{} events were acknowledged, but the topic has {found}", options.events);
    let restart = restart(&net, group).await?;
    show(
        options,
        &format!(
            "peer {} restarted: up after {} ms, has everything after {} ms, {}",
            restart.peer, restart.up_ms, restart.caught_up_ms, restart.after
        ),
    )?;
    if options.json {
        let report = Report { events: options.events, bytes: options.bytes, lines, restart };
        writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&report)?)?;
    }
    Ok(())
}

fn show(options: &Options, text: &str) -> Result<()> {
    if !options.json {
        writeln!(std::io::stdout(), "{text}")?;
    }
    Ok(())
}

async fn stand(net: &Testnet, number: usize) -> Result<Stand> {
    let peer = net.peer(number)?;
    let status = until(&format!("peer {number} says how it stands"), END, async || {
        peer.status().await.map_err(|error| error.to_string())
    })
    .await?;
    let pid = peer.pid().with_context(|| format!("peer {number} does not run"))?;
    let memory = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the memory of a peer is not known")?;
    Ok(Stand {
        resident_kib: field(&memory, "VmRSS:"),
        peak_kib: field(&memory, "VmHWM:"),
        log_entries: status.log_entries,
        log_bytes: status.log_bytes,
        segments: status.segments,
        segment_bytes: status.segment_bytes,
    })
}

/// A number of `/proc/PID/status`; 0 when it is not there.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Ends a follower in order, starts it again, and says how long it took until it was up, and until it had applied
/// everything that the leader had by then.
async fn restart(net: &Testnet, group: GroupId) -> Result<Restart> {
    let leader = net.leader(group).await?;
    let number = (leader + 1) % PEERS;
    net.peer(number)?.terminate(END).await?;
    let began = Instant::now();
    net.restart(number).await?;
    let up = began.elapsed();
    until(&format!("peer {number} has everything"), CATCH_UP, async || {
        let (_, led) = net.led(group).await?;
        let status = net.peer(number).map_err(|e| e.to_string())?.status().await.map_err(|e| e.to_string())?;
        let applied = status.groups.iter().find(|status| status.id == group.0).map_or(0, |status| status.applied);
        if applied >= led.committed { Ok(()) } else { Err(format!("{applied} of {}", led.committed)) }
    })
    .await?;
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Ok(Restart { peer: number, up_ms: ms(up), caught_up_ms: ms(began.elapsed()), after: stand(net, number).await? })
}

impl std::fmt::Display for Stand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        write!(
            f,
            "{:.0} MiB resident (peak {:.0}), log {} entries {:.1} MiB, {} segments {:.1} MiB",
            mib(self.resident_kib << 10),
            mib(self.peak_kib << 10),
            self.log_entries,
            mib(self.log_bytes),
            self.segments,
            mib(self.segment_bytes)
        )
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} events, {:.0} s", self.events, self.seconds)?;
        self.peers.iter().enumerate().try_for_each(|(number, stand)| write!(f, "\n  peer {number}: {stand}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_kernels_words() {
        let text = "Name:\tcanal\nVmHWM:\t   51234 kB\nVmRSS:\t   41000 kB\n";
        assert_eq!((field(text, "VmRSS:"), field(text, "VmHWM:"), field(text, "VmSwap:")), (41_000, 51_234, 0));
    }
}
