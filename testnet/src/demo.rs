//! The demo: real peers, real readings, four chained functions, a killed leader, a lost peer, and a verdict.
//!
//! It streams readings for the given time. Half way it kills the leader of the group that has most to do and restarts it
//! a moment later; then it takes another peer away for good and starts a fresh one, and times until every group has all
//! its replicas again. When the functions have caught up, it reads every topic back from each of its replicas. What is
//! checked then stands in [`check`].

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use canal_sdk::publisher::Deadline;
use canal_sdk::{Client, From, GroupId};
use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use self::check::Evidence;
use self::layout::Layout;
use self::readings::Readings;
use self::repair::Loss;
use self::report::{Outage, Report, Screen, line};
use self::stats::Stats;
use self::traffic::{Pace, Published};
use self::watch::{Leaders, Watcher};
use crate::{Scenario, Testnet, until};

pub mod check;
pub(crate) mod layout;
mod live;
pub(crate) mod readings;
mod repair;
pub(crate) mod report;
pub(crate) mod settle;
pub(crate) mod stats;
mod table;
pub(crate) mod traffic;
pub(crate) mod watch;

/// Silence after which a peer counts as gone for good in this mesh: longer than a restart takes, short enough to be
/// watched.
const REPLACE_AFTER: &str = "5s";
/// Until the killed leader is started again: a tenth of the run, but well below [`REPLACE_AFTER`].
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How long a reading may be without its receipt before the run fails: many times an election.
const READINGS_DEADLINE: Deadline = Deadline::After(Duration::from_secs(90));
/// Nobody ends the stream before its last round.
static NEVER: AtomicBool = AtomicBool::new(false);
/// Peers that it takes to lose one: the others are a majority of three replicas.
const ENOUGH_TO_LOSE_ONE: u32 = 3;
/// How soon people see what has happened.
const SHOW_EVERY: Duration = Duration::from_millis(100);
/// Rounds of one run at most: what is kept in memory to compare with.
const MAX_ROUNDS: u64 = 1_000_000;

/// How the demo is run.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// For how long readings are streamed
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(4..=86_400))]
    pub seconds: u32,
    /// Readings a second of each sensor
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub rate: u32,
    /// Peers; of five, one is in the iot tier, two at the edge, two in the cloud. From three on, one of them is taken
    /// away for good
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=32))]
    pub peers: u32,
    /// Streams the rows of a CSV file with a header: the first four columns of numbers, and the fifth (or the last)
    /// as the target
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Prints one JSON document at the end, and nothing else
    #[arg(long)]
    pub json: bool,
    /// Keeps the peers' data and logs
    #[arg(long)]
    pub keep: bool,
}

/// Runs the demo with peers of this executable, prints what happens, and tells whether every promise was kept.
///
/// # Errors
/// When it could not be run to its end.
pub async fn run(options: &Options, executable: PathBuf) -> Result<bool> {
    let mut screen = Screen::new(options.json);
    let wanted = u64::from(options.seconds) * u64::from(options.rate);
    if wanted > MAX_ROUNDS {
        bail!("{wanted} rounds are too many to be checked; at most {MAX_ROUNDS}: lower --seconds or --rate");
    }
    let readings = Readings::open(options.csv.as_deref(), wanted)?;
    let rounds = readings.rounds().map_or(wanted, |rounds| rounds.min(wanted));
    screen.say(&format!("starting {} peers", options.peers));
    // one more, which comes when another one has gone
    let spare = usize::from(options.peers >= ENOUGH_TO_LOSE_ONE);
    let arguments = vec!["--replace-after".into(), REPLACE_AFTER.into()];
    let net_options = crate::Options { keep: options.keep, arguments, spare, ..crate::Options::new(executable) };
    let net = Testnet::start(&Scenario::three_tiers(options.peers as usize + spare), net_options).await?;
    for peer in net.peers().iter().filter(|peer| peer.is_running()) {
        let spec = peer.spec();
        screen.say(&format!(
            "peer {}  {:<5} {:<6} {}  {}",
            peer.number(),
            spec.tier,
            spec.site,
            peer.address()?,
            peer.id()?
        ));
    }
    let run = Run::prepare(options, &net, &readings, rounds).await?;
    let report = run.perform(readings, &mut screen).await?;
    if options.json {
        writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        screen.say(&format!("\n{}", report.table()));
    }
    Ok(report.ok)
}

/// What has happened and was not shown yet: a few lines a run.
type Notes = Mutex<Vec<String>>;

/// A run that is ready to begin.
struct Run<'a> {
    options: &'a Options,
    net: &'a Testnet,
    layout: Layout,
    admin: Client,
    publishers: Vec<Client>,
    watchers: Vec<(String, Watcher)>,
    stats: Arc<Stats>,
    leaders: Leaders,
    notes: Notes,
    rounds: u64,
    source: String,
}

impl<'a> Run<'a> {
    async fn prepare(options: &'a Options, net: &'a Testnet, readings: &Readings, rounds: u64) -> Result<Self> {
        let admin = net.client(0).await?;
        let layout = Layout::create(net, &admin, &readings.names()).await.context("creating the application")?;
        let stats = Arc::new(Stats::new()?);
        // sensors publish where they are, the others somewhere else
        let last = options.peers as usize - 1;
        let publishers = vec![net.client(0).await?, net.client(last).await?];
        let mut watchers = Vec::new();
        for (number, counts) in [(last / 2, true), (last, false)] {
            let client = net.client(number).await?;
            let subscription = client.subscribe(layout::ALL, From::Earliest).await.context("subscribing")?;
            let stats = counts.then(|| Arc::clone(&stats));
            watchers.push((format!("peer {number}"), Watcher::start(subscription, stats)));
        }
        let source = readings.describe();
        let (leaders, notes) = (Leaders::default(), Notes::default());
        Ok(Self { options, net, layout, admin, publishers, watchers, stats, leaders, notes, rounds, source })
    }

    async fn perform(mut self, readings: Readings, screen: &mut Screen) -> Result<Report> {
        let groups: Vec<GroupId> = self.layout.groups().map(|(_, group)| group).into();
        let (leaders, topics) = (self.leaders.clone(), self.layout.published());
        let began = Instant::now();
        let pace = Pace { rounds: self.rounds, rate: self.options.rate, deadline: READINGS_DEADLINE, enough: &NEVER };
        screen.say(&format!("streaming {}", self.source));
        let traffic = traffic::stream(&self.publishers, &topics, readings, pace, &self.stats);
        let traffic = async { Ok((traffic.await?, began.elapsed().as_secs_f64())) };
        let ((published, seconds), (outage, loss)) = tokio::select! {
            // neither of the first two ends by itself
            () = leaders.watch(self.net, &groups) => bail!("nobody watches the leaders"),
            () = self.show(screen, began) => bail!("nobody shows progress"),
            both = async { tokio::try_join!(traffic, self.break_and_mend(began)) } => both?,
        };
        self.notes.lock().drain(..).for_each(|note| screen.say(&note));
        screen.say("streamed; waiting for the functions");
        let waits = Instant::now();
        let caught_up = settle::catch_up(self.net, &self.admin, &self.layout, &published).await;
        let caught_up_ms = caught_up.is_ok().then(|| millis(waits.elapsed()));
        screen.say("reading back from the replicas");
        let (evidence, mut problems) = self.collect(published).await;
        problems.extend(caught_up.err());
        problems.extend(loss.iter().flat_map(Loss::problems));
        problems.extend(check::problems(&evidence));
        let activations = match settle::activations(&self.admin, &self.layout).await {
            Ok(activations) => activations,
            Err(error) => {
                problems.push(format!("the activations could not be counted: {error:#}"));
                0
            }
        };
        let snapshot = self.stats.snapshot();
        let replicas_read = evidence.replicas.values().map(Vec::len).min().unwrap_or_default();
        Ok(Report {
            ok: problems.is_empty(),
            problems,
            peers: self.options.peers as usize,
            source: self.source.clone(),
            seconds,
            events_published: snapshot.published,
            events_acknowledged: snapshot.acknowledged,
            activations,
            effects: evidence.effects() as u64,
            leader_changes: self.leaders.changes(),
            publish: snapshot.publish,
            publish_to_effect: snapshot.effect,
            outage: Some(Outage { first_ack_ms: snapshot.first_ack.map(millis), ..outage }),
            restored_after_s: loss.as_ref().map(|loss| loss.restored_after_s.clone()),
            loss,
            caught_up_ms,
            replicas_read,
            directory: self.options.keep.then(|| self.net.dir().to_owned()),
        })
    }

    /// Half way, what this run is about: a leader that comes back, then a peer that does not.
    async fn break_and_mend(&self, began: Instant) -> Result<(Outage, Option<Loss>)> {
        let outage = self.kill_and_restart(began).await?;
        if self.options.peers < ENOUGH_TO_LOSE_ONE {
            return Ok((outage, None));
        }
        let loss = self.lose_and_replace(outage.peer, began).await?;
        Ok((outage, Some(loss)))
    }

    /// Kills the leader of the busiest group half way, and restarts it.
    async fn kill_and_restart(&self, began: Instant) -> Result<Outage> {
        let run = Duration::from_secs_f64(self.rounds as f64 / f64::from(self.options.rate));
        sleep_until((began + run / 2).into()).await;
        let mut busiest: Option<(u64, &'static str, GroupId)> = None;
        for (name, group) in self.layout.groups() {
            let Ok((_, status)) = self.net.led(group).await else { continue };
            let events: u64 = status.topics.iter().map(|topic| topic.next).sum();
            if busiest.is_none_or(|(most, ..)| events > most) {
                busiest = Some((events, name, group));
            }
        }
        let (_, group_name, group) = busiest.context("there is no group")?;
        let peer = self.net.leader(group).await?;
        let topics = self.layout.topics().into_iter().filter(|(_, of)| *of == group).map(|(topic, _)| topic).collect();
        self.stats.killed(topics);
        let killed_at_s = began.elapsed().as_secs_f64();
        self.net.peer(peer)?.kill()?;
        self.note(format!("{killed_at_s:>4.0} s  killed peer {peer}, the leader of `{group_name}`"));
        let pause = (run / 10).clamp(LONGEST_PAUSE / 2, LONGEST_PAUSE);
        sleep_until((Instant::now() + pause).into()).await;
        self.net.restart(peer).await?;
        let restarted = began.elapsed().as_secs_f64();
        self.note(format!("{restarted:>4.0} s  peer {peer} is up again"));
        let restarted_at_s = Some(restarted);
        Ok(Outage { group: group_name, peer, killed_at_s, restarted_at_s, first_ack_ms: None })
    }

    /// Reads everything back, from every replica that runs.
    async fn collect(&mut self, published: Vec<Published>) -> (Evidence, Vec<String>) {
        let mut problems = Vec::new();
        let mut evidence = Evidence { inputs: self.layout.inputs.clone(), published, ..Evidence::default() };
        for (topic, group) in self.layout.topics() {
            match settle::read_back(self.net, &self.admin, &topic, group).await {
                Ok(replicas) => drop(evidence.replicas.insert(topic, replicas)),
                Err(error) => problems.push(format!("`{topic}` could not be read back: {error:#}")),
            }
        }
        match settle::dead_letters(&self.admin).await {
            Ok(dead) => evidence.dead = dead,
            Err(error) => problems.push(format!("the dead letters could not be counted: {error:#}")),
        }
        for (who, watcher) in std::mem::take(&mut self.watchers) {
            // it may have some of the last events still before it
            let all = evidence
                .replicas
                .iter()
                .map(|(topic, replicas)| (topic.clone(), replicas.first().map_or(0, |(_, events)| events.len())));
            let all: Vec<(String, usize)> = all.collect();
            let seen = until("the subscriber to see everything", settle::READ_BACK, async || {
                let behind = all.iter().find(|(topic, count)| watcher.count(topic) < *count);
                match behind.filter(|_| watcher.ended().is_none()) {
                    Some((topic, count)) => Err(format!("{} of {count} events of `{topic}`", watcher.count(topic))),
                    None => Ok(()),
                }
            });
            if let Err(error) = seen.await {
                tracing::debug!(%error, who, "the verdict will say what is missing");
            }
            evidence.live.push((who, watcher.finish()));
        }
        (evidence, problems)
    }

    /// Something happened that people should see.
    fn note(&self, line: String) {
        self.notes.lock().push(line);
    }

    /// Shows progress every second, and what has happened.
    async fn show(&self, screen: &mut Screen, began: Instant) {
        let mut ticks = interval(SHOW_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut shown = None;
        loop {
            ticks.tick().await;
            let notes = std::mem::take(&mut *self.notes.lock());
            notes.iter().for_each(|note| screen.say(note));
            let second = began.elapsed().as_secs();
            if shown.replace(second) != Some(second) {
                let changes = format!("leader changes {}", self.leaders.changes());
                screen.progress(second, &line(second, &self.stats.snapshot(), &changes));
            }
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
