//! Chaos: real processes under load, faults from a seed, and a checked history at the end.
//!
//! Five peers in three tiers, on an emulated network where that is allowed, run the demo's application (four functions, a
//! chain over two groups). Beside it, publishers and a queue on disk share a topic of a third group, a durable subscriber
//! comes and goes, live subscribers watch everything, clients read and write registers, and each group has a publisher
//! that never pauses, by which its unavailable time is taken. Meanwhile a [`plan`] is carried out, one or two faults at a
//! time; before the next ones, the mesh has to be whole again. In the end everything is read back from every replica and
//! [`check`]ed.
//!
//! The seed fixes the plan: which faults, in which order, for how long, at whom. Real processes are not deterministic, so
//! the same plan does not make the same run: how far a run gets in it, who leads, and what was under way, differ.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use canal_proto::route;
use canal_sdk::publisher::Deadline;
use canal_sdk::transport::libp2p::Libp2p;
use canal_sdk::{Client, Consistency, From, GroupId};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use self::check::{History, Silence};
use self::load::{Clock, Line, Queued};
use self::plan::{Bounds, Plan};
use self::report::Report;
use self::storm::{Done, Storm};
use crate::demo::layout::{self, LEARNING, Layout, SENSING, TARGET};
use crate::demo::readings::Readings;
use crate::demo::report::Screen;
use crate::demo::settle;
use crate::demo::stats::Stats;
use crate::demo::traffic::{self, Pace, Published};
use crate::demo::watch::{Leaders, Watcher};
use crate::emulated::{Network, Quality};
use crate::scenario::LinkSpec;
use crate::sim::rng::Rng;
use crate::{Scenario, Testnet, until};

mod away;
pub mod check;
pub mod load;
pub mod plan;
pub mod readers;
mod report;
mod storm;

/// The group beside those of the application.
const ORDERS: &str = "orders";
/// Its topic, with several publishers.
const ORDERS_TOPIC: &str = "chaos/orders";
/// Everything.
const ALL: &str = "#";
/// Replicas of a group.
const REPLICAS: u32 = 3;
/// Publishers of the shared topic.
const PUBLISHERS: usize = 3;
/// Clients of registers.
const REGISTER_CLIENTS: usize = 4;
/// For one operation on a register: shorter than an outage, so that some operations end unknown.
const REGISTER_DEADLINE: Duration = Duration::from_secs(3);
/// Between two events of a publisher of the shared topic.
const EVERY: Duration = Duration::from_millis(100);
/// Between two events of a publisher that takes the time: short against an election.
const PROBE_EVERY: Duration = Duration::from_millis(40);
/// Readings a second of each sensor of the application.
const RATE: u32 = 3;
/// After so much silence a peer's replicas are replaced: shorter than by default, so that a run has such losses.
const REPLACE_AFTER: Duration = Duration::from_secs(20);
/// Runs that are long enough for such a loss, in minutes.
const LONG: f64 = 3.0;
/// The kind of fault in which a disk fails.
const DISK_FAILS: &str = "failing-sync";
/// What peers log: why a replica has not moved can't be told afterwards without it.
const LOG: &str = "info,canal_node::rooms::membership=debug";
/// Between two lines of progress.
const SHOW_EVERY: Duration = Duration::from_secs(10);

/// How chaos is run.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// For how long faults are made; what follows takes a minute or two more
    #[arg(long, value_name = "N", default_value_t = 10.0, value_parser = minutes)]
    pub minutes: f64,
    /// Fixes the plan of faults: which, in which order, for how long, at whom
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub seed: u64,
    /// Peers, in three tiers
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(4..=16))]
    pub peers: u32,
    /// Stays on loopback, also where a network can be emulated: links have no faults then
    #[arg(long)]
    pub loopback: bool,
    /// Prints one JSON document at the end, and nothing else
    #[arg(long)]
    pub json: bool,
    /// Keeps the peers' data and logs, also when all is well
    #[arg(long)]
    pub keep: bool,
}

/// Two hours at most: what was published is kept in memory to compare with.
fn minutes(text: &str) -> Result<f64, String> {
    let minutes: f64 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    if (0.1..=120.0).contains(&minutes) { Ok(minutes) } else { Err("use 0.1 to 120 minutes".into()) }
}

/// Runs it with peers of this executable, prints what happens, and tells whether every promise was kept.
///
/// # Errors
/// When it could not be run to its end.
pub async fn run(options: &Options, executable: PathBuf, network: Option<Network>) -> Result<bool> {
    let screen = Mutex::new(Screen::new(options.json));
    let say = |line: String| screen.lock().say(&line);
    if let Err(why) = crate::faults::available() {
        say(format!("disks and clocks have no faults: {why}"));
    }
    let where_ = if network.is_some() { "an emulated network" } else { "loopback" };
    say(format!("starting {} peers on {where_}", options.peers));
    let mut net = start(options, executable, network.clone()).await?;
    let mut report = match Run::prepare(options, &net).await {
        Ok(run) => run.perform(network, &say).await,
        Err(error) => Err(error),
    };
    // whoever wants to know why needs the logs
    if options.keep || !report.as_ref().is_ok_and(|report| report.ok) {
        net.keep();
        match &mut report {
            Ok(report) => {
                report.directory = Some(net.dir().to_owned());
                std::fs::write(net.dir().join("report.json"), serde_json::to_vec_pretty(report)?)?;
            }
            Err(_) => say(format!("data and logs are in {}", net.dir().display())),
        }
    }
    let report = report?;
    if options.json {
        writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        say(format!("\n{}", report.text()));
    }
    Ok(report.ok)
}

async fn start(options: &Options, executable: PathBuf, network: Option<Network>) -> Result<Testnet> {
    let link = |a: &str, b: &str, delay_ms: f64| LinkSpec {
        between: (a.into(), b.into()),
        quality: Quality { delay_ms, jitter_ms: delay_ms / 4.0, ..Quality::default() },
    };
    let links = vec![link("*", "*", 0.5), link("iot", "*", 4.0), link("edge", "cloud", 2.0)];
    let scenario = Scenario { links, ..Scenario::three_tiers(usize::try_from(options.peers)?) };
    let arguments = vec!["--replace-after".into(), format!("{}s", REPLACE_AFTER.as_secs())];
    let net_options =
        crate::Options { arguments, network, faults: true, log: LOG.into(), ..crate::Options::new(executable) };
    Ok(Testnet::start(&scenario, net_options).await?)
}

/// The topic of a group's publisher that takes the time.
fn probe(group: &str) -> String {
    format!("chaos/probe/{group}")
}

/// A run that is ready to begin.
struct Run<'a> {
    options: &'a Options,
    net: &'a Testnet,
    layout: Layout,
    orders: GroupId,
    admin: Client,
    readings: Option<Readings>,
    stats: Arc<Stats>,
    watchers: Vec<(String, Watcher)>,
}

/// What runs beside the application.
struct Load {
    lines: JoinSet<Result<Line>>,
    registers: JoinSet<readers::History>,
    queue: JoinSet<Result<Queued>>,
    durable: JoinSet<Result<Vec<readers::Session>>>,
    goal: watch::Sender<Option<u64>>,
}

impl<'a> Run<'a> {
    async fn prepare(options: &'a Options, net: &'a Testnet) -> Result<Self> {
        let admin = net.client(0).await?;
        let readings = Readings::open(None, u64::MAX)?;
        let layout = Layout::create(net, &admin, &readings.names()).await.context("creating the application")?;
        let orders = net.create_topic(&admin, ORDERS_TOPIC, ORDERS, REPLICAS).await?;
        for group in [SENSING, LEARNING, ORDERS] {
            net.create_topic(&admin, &probe(group), group, REPLICAS).await?;
        }
        let stats = Arc::new(Stats::new()?);
        let mut watchers = Vec::new();
        let last = net.peers().len() - 1;
        for (number, counts) in [(last / 2, true), (last, false)] {
            let client = net.client(number).await?;
            let subscription = client.subscribe(ALL, From::Earliest).await.context("subscribing")?;
            watchers.push((format!("peer {number}"), Watcher::start(subscription, counts.then(|| Arc::clone(&stats)))));
        }
        let readings = Some(readings);
        Ok(Self { options, net, layout, orders, admin, readings, stats, watchers })
    }

    /// All groups; the catalog's own is the first.
    async fn groups(&self) -> Result<Vec<(String, GroupId)>> {
        let catalog = GroupId(self.admin.resolve(route::CATALOG, false).await?.group);
        let mut groups = vec![("catalog".to_owned(), catalog)];
        groups.extend(self.layout.groups().map(|(name, group)| (name.to_owned(), group)));
        groups.push((ORDERS.to_owned(), self.orders));
        Ok(groups)
    }

    fn topics(&self) -> Vec<(String, GroupId)> {
        let mut topics = self.layout.topics();
        let groups = self.layout.groups().into_iter().chain([(ORDERS, self.orders)]);
        topics.extend(groups.map(|(name, group)| (probe(name), group)));
        topics.push((ORDERS_TOPIC.to_owned(), self.orders));
        topics
    }

    /// Begins everything beside the application.
    async fn load(&self, clock: &Clock) -> Result<Load> {
        let count = self.net.peers().len();
        let mut lines = JoinSet::new();
        for group in [SENSING, LEARNING, ORDERS] {
            let client = self.net.client(0).await?;
            lines.spawn(load::publish(client, probe(group), format!("probe-{group}"), PROBE_EVERY, clock.clone()));
        }
        for number in 0..PUBLISHERS {
            let client = self.net.client(number % count).await?;
            lines.spawn(load::publish(client, ORDERS_TOPIC.into(), format!("p{number}"), EVERY, clock.clone()));
        }
        // numbers of their own, whatever the plan draws
        let rng = |part: u64| Rng::new(self.options.seed).fork(part);
        let mut registers = JoinSet::new();
        let moments = readers::Moments::default();
        for number in 0..REGISTER_CLIENTS {
            let addresses = self.net.addresses();
            let options =
                canal_sdk::Options { deadline: REGISTER_DEADLINE, addresses, ..canal_sdk::Options::default() };
            let client = self.net.peer(number % count)?.client_with(options).await?;
            let (moments, clock) = (Arc::clone(&moments), clock.clone());
            registers.spawn(readers::register(client, self.orders, number, moments, clock, rng(10 + number as u64)));
        }
        let mut queue = JoinSet::new();
        let options = canal_sdk::Options { mesh: self.net.mesh().to_owned(), ..canal_sdk::Options::default() };
        let client = Client::with_transport(Arc::new(Libp2p::new()?), self.net.addresses(), options);
        let dir = self.net.dir().join("queue");
        queue.spawn(load::queue(dir, client, ORDERS_TOPIC.into(), EVERY, clock.clone(), rng(1)));
        let mut durable = JoinSet::new();
        let (goal, goal_of) = watch::channel(None);
        let mut clients = Vec::new();
        for number in 0..count {
            clients.push(self.net.client(number).await?);
        }
        durable.spawn(readers::durable(clients, ORDERS_TOPIC.into(), "audit".into(), goal_of, rng(2)));
        Ok(Load { lines, registers, queue, durable, goal })
    }

    async fn perform(mut self, network: Option<Network>, say: &impl Fn(String)) -> Result<Report> {
        let groups = self.groups().await?;
        let clock = Clock::start();
        let mut load = self.load(&clock).await?;
        let network_name = if network.is_some() { "emulated" } else { "loopback" };
        let storm = Storm::new(self.net, network, self.admin.clone(), groups.clone(), clock.began)?;
        let long = self.options.minutes >= LONG;
        let bounds =
            Bounds { peers: self.net.peers().len(), groups: groups.len(), replaced_after: REPLACE_AFTER, long };
        let end = Instant::now() + Duration::from_secs_f64(self.options.minutes * 60.0);
        let leaders = Leaders::default();
        let ids: Vec<GroupId> = groups.iter().map(|(_, group)| *group).collect();
        let readings = self.readings.take().context("there is nothing to stream")?;
        let rage = async {
            storm.rage(Plan::new(self.options.seed, bounds), end, say).await;
            clock.enough.store(true, Ordering::Relaxed);
            say("no more faults; waiting for receipts and functions".to_owned());
        };
        let traffic = self.traffic(readings, &clock);
        let (_, published) = tokio::select! {
            // neither of the first two ends by itself
            () = leaders.watch(self.net, &ids) => anyhow::bail!("nobody watches the leaders"),
            () = self.show(&clock, &storm, say) => anyhow::bail!("nobody shows progress"),
            both = async { tokio::join!(rage, traffic) } => both,
        };
        let ended = Instant::now();
        let Done { made, mut problems, skipped } = storm.done();
        let mut history = History::default();
        let published = note(&mut problems, "the application's readings", published).unwrap_or_default();
        while let Some(line) = load.lines.join_next().await {
            history.lines.extend(note(&mut problems, "a publisher", line?));
        }
        while let Some(queued) = load.queue.join_next().await {
            history.queued.extend(note(&mut problems, "the queue", queued?));
        }
        while let Some(registers) = load.registers.join_next().await {
            history.registers.extend(registers?);
        }
        let caught_up = settle::catch_up(self.net, &self.admin, &self.layout, &published).await;
        let caught_up_ms = caught_up.is_ok().then(|| u64::try_from(ended.elapsed().as_millis()).unwrap_or(u64::MAX));
        problems.extend(caught_up.err());
        say("reading back from the replicas".to_owned());
        self.collect(&mut history, published, &mut problems).await;
        let goal = history.application.replicas.get(ORDERS_TOPIC).and_then(|all| all.first()).map(|(_, all)| all.len());
        load.goal.send_replace(Some(goal.unwrap_or_default() as u64));
        while let Some(sessions) = load.durable.join_next().await {
            let sessions = note(&mut problems, "the durable subscriber", sessions?);
            history.sessions.extend(sessions.map(|sessions| (ORDERS_TOPIC.to_owned(), sessions)));
        }
        let name = |group: GroupId| groups.iter().find(|(_, id)| *id == group).map(|(name, _)| probe(name));
        let silences = made.iter().filter_map(|made| made.silent);
        history.silences =
            silences.filter_map(|(group, from, until)| Some(Silence { topic: name(group)?, from, until })).collect();
        problems.extend(check::problems(&history));
        let disks_failed = made.iter().any(|made| made.kind == DISK_FAILS);
        problems.extend(panics(self.net, disks_failed));
        problems.extend(untrue(self.net));
        let activations =
            note(&mut problems, "counting activations", settle::activations(&self.admin, &self.layout).await);
        let probes: Vec<Line> = history.lines.iter().filter(|line| line.topic != ORDERS_TOPIC).cloned().collect();
        let snapshot = self.stats.snapshot();
        let count = |of: &dyn Fn(&Line) -> usize| history.lines.iter().map(of).sum::<usize>() as u64;
        let queued: u64 = history.queued.iter().map(|queued| queued.put).sum();
        Ok(Report {
            ok: problems.is_empty(),
            problems,
            seed: self.options.seed,
            minutes: self.options.minutes,
            peers: self.options.peers,
            network: network_name,
            faults: away::costs(&made, &probes),
            made,
            skipped,
            events_published: snapshot.published + queued + count(&|line| line.sent.len()),
            events_acknowledged: snapshot.acknowledged
                + history.queued.iter().map(|queued| queued.put - queued.left).sum::<u64>()
                + count(&|line| line.sent.iter().filter(|sent| sent.receipt.is_some()).count()),
            events_queued: queued,
            queue_restarts: history.queued.iter().map(|queued| queued.restarts).sum(),
            activations: activations.unwrap_or_default(),
            effects: self.effects(&history),
            leader_changes: leaders.changes(),
            durable_openings: history.sessions.iter().map(|(_, sessions)| sessions.len()).sum(),
            register_operations: history.registers.len(),
            register_unknown: history.registers.iter().filter(|(_, operation)| operation.returned.is_none()).count(),
            publish: snapshot.publish,
            caught_up_ms,
            replicas_read: history.application.replicas.values().map(Vec::len).min().unwrap_or_default(),
            directory: None,
        })
    }

    /// The application's readings, until it is time to end.
    async fn traffic(&self, readings: Readings, clock: &Clock) -> Result<Vec<Published>> {
        let last = self.net.peers().len() - 1;
        let publishers = [self.net.client(0).await?, self.net.client(last).await?];
        let (topics, stats) = (self.layout.published(), Arc::clone(&self.stats));
        let pace = Pace { rounds: u64::MAX, rate: RATE, deadline: Deadline::Never, enough: &clock.enough };
        let late = async {
            while !clock.is_over() {
                sleep(Duration::from_secs(1)).await;
            }
            sleep(load::RECEIPTS).await;
        };
        tokio::select! {
            published = traffic::stream(&publishers, &topics, readings, pace, &stats) => published,
            () = late => anyhow::bail!("not every reading had its receipt {} s after the last fault", load::RECEIPTS.as_secs()),
        }
    }

    async fn show(&self, clock: &Clock, storm: &Storm<'_>, say: &impl Fn(String)) {
        loop {
            sleep(SHOW_EVERY).await;
            let snapshot = self.stats.snapshot();
            say(format!(
                "{:>5.0} s  {} faults so far, {} readings acknowledged, {} effects seen",
                clock.now().as_secs_f64(),
                storm.count(),
                snapshot.acknowledged,
                snapshot.effects
            ));
        }
    }

    /// Reads everything back, from every replica, and ends the live subscribers.
    async fn collect(&mut self, history: &mut History, published: Vec<Published>, problems: &mut Vec<String>) {
        history.application.inputs.clone_from(&self.layout.inputs);
        history.application.published = published;
        for (topic, group) in self.topics() {
            let read = settle::read_back(self.net, &self.admin, &topic, group).await;
            if let Some(replicas) = note(problems, &format!("reading `{topic}` back"), read) {
                history.application.replicas.insert(topic, replicas);
            }
        }
        let dead = settle::dead_letters(&self.admin).await;
        history.application.dead = note(problems, "counting dead letters", dead).unwrap_or_default();
        let count = self.admin.state(self.layout.learning, "train").get("count", Consistency::Linearizable).await;
        if let Some(count) = note(problems, "reading what `train` has counted", count.map_err(Into::into)) {
            let text = count.map_or("0".to_owned(), |count| String::from_utf8_lossy(&count).into_owned());
            let count = text.parse().unwrap_or(u64::MAX);
            history.counts.push(("what `train` has counted".into(), count, TARGET.into()));
        }
        let lengths = history.application.replicas.iter();
        let lengths: Vec<(String, usize)> =
            lengths.map(|(topic, all)| (topic.clone(), all.first().map_or(0, |(_, events)| events.len()))).collect();
        for (who, watcher) in std::mem::take(&mut self.watchers) {
            let seen = until("the subscriber to see everything", settle::READ_BACK, async || {
                let behind = lengths.iter().find(|(topic, count)| watcher.count(topic) < *count);
                match behind.filter(|_| watcher.ended().is_none()) {
                    Some((topic, count)) => Err(format!("{} of {count} events of `{topic}`", watcher.count(topic))),
                    None => Ok(()),
                }
            });
            if let Err(error) = seen.await {
                tracing::debug!(%error, who, "the verdict will say what is missing");
            }
            history.application.live.push((who, watcher.finish()));
        }
    }

    /// Events that functions emitted.
    fn effects(&self, history: &History) -> u64 {
        let published = self.layout.published();
        let of_functions = history
            .application
            .replicas
            .iter()
            .filter(|(topic, _)| layout::is_of_the_application(topic) && !published.contains(topic));
        of_functions.filter_map(|(_, all)| all.first()).map(|(_, events)| events.len() as u64).sum()
    }
}

/// What went well; else it is a problem.
fn note<T>(problems: &mut Vec<String>, what: &str, outcome: Result<T>) -> Option<T> {
    outcome.map_err(|error| problems.push(format!("{what}: {error:#}"))).ok()
}

/// What a peer only says when one has lost what it promised to keep, or differs from the others. No fault here takes from a
/// disk what was synced.
const UNTRUE: [&str; 3] = [
    "this replica has acknowledged entries that its log does not have",
    "a replica contradicts what is committed here",
    "a segment made here differs from the group's",
];

/// Peers that have found out that something is not as it was promised.
fn untrue(net: &Testnet) -> Vec<String> {
    logged(net, "found", |line| UNTRUE.iter().any(|text| line.contains(text)))
}

/// Peers that have a line like this in their logs, each with the first.
fn logged(net: &Testnet, what: &str, is_one: impl Fn(&str) -> bool) -> Vec<String> {
    let of = |log: Vec<u8>| String::from_utf8_lossy(&log).lines().find(|line| is_one(line)).map(str::to_owned);
    let peers = net.peers().iter().filter_map(|peer| Some((peer.number(), of(std::fs::read(peer.log()).ok()?)?)));
    peers.map(|(number, line)| format!("peer {number} has {what}: {line}")).collect()
}

/// Peers that have panicked. That raft-engine does so when a sync fails, by its own decision, is not one of them: the peer
/// takes it for the error that it is, and ends.
fn panics(net: &Testnet, disks_failed: bool) -> Vec<String> {
    let expected = |line: &str| disks_failed && line.contains("/raft-engine-") && line.contains("log_file.rs");
    logged(net, "panicked", |line| line.contains("panicked at") && !expected(line))
}
