//! How long a group is away when its leader is killed, and what peers cost that have nothing to do.
//!
//! Real processes on loopback, with their defaults. A publisher of the SDK, with its defaults as well, publishes without
//! pause. Each round kills the leader of its group (SIGKILL), and takes the time from just before the signal to the
//! first receipt of an event that was published after it. Meanwhile the survivors are asked again and again who leads, so
//! that this time falls into three parts: until a survivor stands for election, until one leads, and until the publisher
//! has its receipt from there. The killed peer is started again, and has to be a voter that has caught up before the next
//! round.
//!
//! Before that, the mesh is left at rest with as many groups as are asked for, and each peer's processor time, and what it
//! says to others for Raft, is read.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use canal_sdk::GroupId;

use crate::{Scenario, Testnet, until};
use load::Load;
use report::{Report, Round};
use watch::Watch;

mod idle;
mod load;
mod report;
mod watch;

pub use report::Times;

const TOPIC: &str = "failover";
/// Replicas of every group here: the smallest that outlives a leader.
const REPLICAS: u32 = 3;
/// For the first receipt after a kill, and for a killed peer to be whole again: far beyond all that is hoped for.
const PATIENCE: Duration = Duration::from_secs(90);
/// Receipts that have to come without trouble before the next kill.
const SETTLED: u64 = 50;

/// What is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How often the leader is killed
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub rounds: usize,
    /// Peers
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(3..=50))]
    pub peers: u32,
    /// Groups that have nothing to do, each with 3 replicas; 0: the mesh is not measured at rest
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(..=1000))]
    pub idle_groups: u32,
    /// How long the mesh is left at rest, in seconds
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub idle_seconds: u64,
    /// Milliseconds between two events of the publisher
    #[arg(long, value_name = "MS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub every_ms: u64,
    /// Ends with code 1 when the 99th percentile of the times to the first receipt is longer, in milliseconds
    #[arg(long, value_name = "MS")]
    pub p99_ms: Option<f64>,
    /// Prints one JSON document at the end, and nothing else
    #[arg(long)]
    pub json: bool,
}

/// Runs it with peers of this executable, and prints what came out. `false`: it was slower than it may be.
///
/// # Errors
/// When it could not be run to its end.
pub async fn run(options: &Options, executable: PathBuf) -> Result<bool> {
    let peers = usize::try_from(options.peers)?;
    let net_options = crate::Options { log: "warn".into(), ..crate::Options::new(executable) };
    let net = Testnet::start(&Scenario::of(peers), net_options).await?;
    let say = |text: String| -> Result<()> {
        if !options.json {
            writeln!(std::io::stdout(), "{text}")?;
        }
        Ok(())
    };
    let mut idle = Vec::new();
    if options.idle_groups > 0 {
        idle = idle::measure(&net, options.idle_groups, Duration::from_secs(options.idle_seconds)).await?;
        say(report::idle(options.idle_groups, &idle))?;
    }
    let group = net.create_topic(&net.client(0).await?, TOPIC, TOPIC, REPLICAS).await?;
    let load = Load::start(&net.client(0).await?, TOPIC, Duration::from_millis(options.every_ms)).await?;
    let mut rounds = Vec::new();
    for number in 1..=options.rounds {
        let round = kill_leader(&net, group, &load).await?;
        say(format!("{number:>3}  {round}"))?;
        rounds.push(round);
    }
    load.finish().await?;
    let report = Report::new(options, idle, rounds);
    match options.json {
        true => writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&report)?)?,
        false => writeln!(std::io::stdout(), "{report}")?,
    }
    let within = options.p99_ms.is_none_or(|most| report.first_ack().p99_ms <= most);
    if !within {
        writeln!(std::io::stderr(), "too slow: {report}")?;
    }
    Ok(within)
}

/// Kills the leader of the topic's group so many times, and returns for each time how long it took, in milliseconds, until
/// an event that was published afterwards had its receipt.
///
/// # Errors
/// When it could not be run to its end.
pub async fn rounds(net: &Testnet, topic: &str, count: usize) -> Result<Times> {
    let client = net.client(0).await?;
    let group = GroupId(client.topic_status(topic).await?.group);
    let load = Load::start(&client, topic, Duration::from_millis(5)).await?;
    let mut rounds = Vec::new();
    for _ in 0..count {
        rounds.push(kill_leader(net, group, &load).await?);
    }
    load.finish().await?;
    Ok(Times::of(rounds.iter().map(|round| round.first_ack_ms)))
}

async fn kill_leader(net: &Testnet, group: GroupId, load: &Load) -> Result<Round> {
    net.wait_group(group).await?;
    load.flows(SETTLED, PATIENCE).await?;
    let (leader, before) = until("a leader", PATIENCE, async || net.led(group).await).await?;
    let peer = net.peer(leader)?;
    let watch = Watch::start(net, group, leader, before.leader)?;
    let killed = Instant::now();
    load.mark(killed);
    peer.begin_kill();
    let acked = tokio::time::timeout(PATIENCE, load.first_ack()).await;
    let acked = acked.context("no event was acknowledged after the kill")??;
    let seen = watch.end().await;
    peer.kill()?;
    net.restart(leader).await?;
    caught_up(net, group, leader).await?;
    ensure!(load.is_whole(), "receipts came out of order");
    let ms = |at: Instant| at.saturating_duration_since(killed).as_secs_f64() * 1000.0;
    Ok(Round {
        peer: leader,
        first_ack_ms: ms(acked),
        longest_gap_ms: load.longest_gap().as_secs_f64() * 1000.0,
        stands_ms: seen.stands.map(ms),
        leads_ms: seen.leads.map(ms),
    })
}

/// Waits until a peer that was started again votes, and has applied what the leader had committed.
async fn caught_up(net: &Testnet, group: GroupId, number: usize) -> Result<()> {
    let peer = net.peer(number)?;
    until(&format!("peer {number} has caught up"), PATIENCE, async || {
        let (_, led) = net.led(group).await?;
        let status = peer.status().await.map_err(|error| error.to_string())?;
        let here = status.groups.into_iter().find(|status| status.id == group.0).ok_or("it has no replica")?;
        if !led.voters.contains(&here.replica) {
            return Err("it does not vote".into());
        }
        if here.applied < led.committed || here.leader != led.leader {
            return Err(format!("{} of {}", here.applied, led.committed));
        }
        Ok(())
    })
    .await?;
    Ok(())
}
