//! The scheduler against a model of the replicated side: random failures, refusals, lost proposals that are
//! applied after all, client writes, leader changes, pauses. All from one seed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};

use canal_proto::PeerId;
use canal_proto::catalog::TriggerInfo;
use canal_proto::cursor::key_digest;
use canal_proto::event::Event;
use canal_proto::limits::MAX_CURSOR_GAP;
use canal_proto::log::{Disposition, ReadCheck, StateOp, Status, Target};

use super::lane::{BLOCKED_WAIT_MS, PROPOSE_WAIT_MS, REFUSED_WAIT_MS, UNAVAILABLE_WAIT_MS};
use super::*;

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.next() % 100 < chance
    }
}

type Rows = BTreeMap<String, Bytes>;

fn trigger(id: u64, name: &str, pattern: &str, bucket: &str) -> TriggerSpec {
    TriggerSpec {
        info: TriggerInfo {
            id,
            name: name.into(),
            patterns: vec![pattern.into()],
            function: name.into(),
            start: (id % 2) as i32,
            max_attempts: 3,
            backoff_ms: 50,
            bucket: bucket.into(),
            ..TriggerInfo::default()
        },
        dead: Target { topic: 90 + id, group: 2, name: format!("$dead/{name}") },
        ..TriggerSpec::default()
    }
}

/// The group: what every replica would hold, and one leader's scheduler.
struct World {
    seed: u64,
    random: Random,
    now: u64,
    term: u64,
    triggers: Vec<TriggerSpec>,
    topics: Vec<(TopicSpec, Vec<Stored>)>,
    cursors: BTreeMap<(u64, u64), Cursor>,
    rows: BTreeMap<String, Rows>,
    /// How each event ended, by trigger, topic and offset.
    ended: BTreeMap<(u64, u64, u64), Disposition>,
    emitted: Vec<String>,
    scheduler: Scheduler,
    asked: Vec<Output>,
    /// Batches that were given up and are still in the log.
    zombies: Vec<Vec<Outcome>>,
    wake: Option<u64>,
    /// Until then, a lane may be idle with work at hand.
    held: u64,
    faults: bool,
    last_id: u64,
    trace: Vec<String>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            seed,
            random: Random(seed),
            now: 1_000_000,
            term: 1,
            triggers: vec![
                trigger(11, "one", "a/+", ""),
                trigger(12, "two", "#", "shared"),
                trigger(13, "three", "a/x", "shared"),
            ],
            topics: ["a/x", "a/y", "b"]
                .into_iter()
                .zip([1, 2, 20])
                .map(|(name, id)| (TopicSpec { id, name: name.into(), ..TopicSpec::default() }, Vec::new()))
                .collect(),
            cursors: BTreeMap::new(),
            rows: BTreeMap::new(),
            ended: BTreeMap::new(),
            emitted: Vec::new(),
            scheduler: Scheduler::new(PeerId::from_public_key([1; 32]), 1),
            asked: Vec::new(),
            zombies: Vec::new(),
            wake: None,
            held: 0,
            faults: true,
            last_id: 13,
            trace: Vec::new(),
        };
        for _ in 0..world.random.below(20) {
            world.append();
        }
        world.lead();
        world
    }

    fn fail(&self, why: &str) -> ! {
        let tail = self.trace.len().saturating_sub(40);
        panic!("seed {}: {why}\n{}", self.seed, self.trace[tail..].join("\n"))
    }

    fn hosted(&mut self) -> Hosted {
        let specs: Vec<TopicSpec> = self.topics.iter().map(|(spec, _)| spec.clone()).collect();
        for (trigger, topics) in matching::pairs(&self.triggers, &specs) {
            let info = &self.triggers.iter().find(|t| t.info.id == trigger).unwrap().info;
            for topic in topics {
                let head = self.topics.iter().find(|(spec, _)| spec.id == topic.id).unwrap().1.len() as u64;
                self.cursors.entry((trigger, topic.id)).or_insert_with(|| Cursor::begin(info, topic.id, head));
            }
        }
        Hosted {
            triggers: self.triggers.clone(),
            topics: self.topics.iter().map(|(spec, events)| (spec.clone(), events.len() as u64)).collect(),
            cursors: self.cursors.values().cloned().collect(),
        }
    }

    fn lead(&mut self) {
        for batch in std::mem::take(&mut self.zombies) {
            if self.random.percent(50) {
                self.apply(&batch);
            }
        }
        self.term += 1;
        self.scheduler = Scheduler::new(PeerId::from_public_key([1; 32]), self.term);
        self.asked.clear();
        self.wake = None;
        let hosted = self.hosted();
        self.tell(Input::Start(hosted));
    }

    fn tell(&mut self, input: Input) {
        self.trace.push(format!("{} < {input:?}", self.now));
        for output in self.scheduler.handle(input, self.now) {
            self.trace.push(format!("{} > {output:?}", self.now));
            match output {
                Output::WakeAt(at) if at <= self.now => self.fail("a wake-up in the past"),
                Output::WakeAt(at) => self.wake = Some(at),
                Output::Run(run) if self.comes_early(&run) => self.fail("a retry before its time"),
                output => self.asked.push(output),
            }
        }
        let mut busy = BTreeSet::new();
        for output in &self.asked {
            match output {
                Output::Run(run) if !busy.insert(("run", run.bucket.clone())) => self.fail("two runs in a lane"),
                Output::Propose { outcomes, .. } if !busy.insert(("batch", outcomes[0].bucket.clone())) => {
                    self.fail("two batches of a lane")
                }
                _ => {}
            }
        }
    }

    fn comes_early(&self, run: &Run) -> bool {
        let parked = self.cursors.get(&(run.trigger.info.id, run.topic.id)).and_then(|c| c.parked(run.event.offset));
        parked.is_some_and(|parked| parked.attempts + 1 == run.attempt && parked.not_before_ms > self.now)
    }

    fn append(&mut self) -> (u64, u64) {
        let at = self.random.below(self.topics.len());
        let key = ["", "k1", "k2", "k3"][self.random.below(4)];
        let (spec, events) = &mut self.topics[at];
        let offset = events.len() as u64;
        events.push(Stored { offset, event: Event::new("p").with_key(key), ..Stored::default() });
        (spec.id, offset + 1)
    }

    fn digest(value: Option<&Bytes>) -> Bytes {
        value.map_or_else(Bytes::new, |value| Bytes::copy_from_slice(&blake3::hash(value).as_bytes()[..16]))
    }

    /// The function: counts the events of a key (but one), and looks at a row that clients write.
    fn call(&mut self, run: &Run) -> RunResult {
        let (trigger, topic, offset) = (run.trigger.info.id, run.topic.id, run.event.offset);
        if self.faults && self.random.percent(4) {
            self.hold(UNAVAILABLE_WAIT_MS);
            return RunResult { unavailable: true, ..RunResult::default() };
        }
        let hash = Random(self.seed ^ (trigger << 40) ^ (topic << 20) ^ offset).next() % 100;
        // 4 events of 100 never succeed, 8 succeed with their second run
        if hash < 4 || (hash < 12 && run.attempt < 2) || (self.faults && self.random.percent(3)) {
            return RunResult { status: Status::Error, error: "no".into(), ..RunResult::default() };
        }
        let emits =
            vec![(Target { topic: 99, ..Target::default() }, Event::new(format!("{trigger}/{topic}/{offset}")))];
        // without reads, nothing but the rule for batches keeps the order of this key
        if run.event.event.key == "k3" {
            return RunResult { emits, ..RunResult::default() };
        }
        let rows = self.rows.entry(run.bucket.clone()).or_default();
        let see = |key: &str| run.overlay.get(key).cloned().unwrap_or_else(|| rows.get(key).cloned());
        let key = format!("{trigger}/{topic}/{}", String::from_utf8_lossy(&run.event.event.key));
        let (count, client) = (see(&key), see("client"));
        let n: u64 = count.as_ref().map_or(0, |n| String::from_utf8_lossy(n).parse().unwrap());
        let check = |key: &str, seen| ReadCheck { key: key.to_owned(), digest: Self::digest(seen) };
        RunResult {
            reads: vec![check(&key, count.as_ref()), check("client", client.as_ref())],
            writes: vec![StateOp { key, value: Some((n + 1).to_string().into()) }],
            emits,
            ..RunResult::default()
        }
    }

    /// The state machine.
    fn apply(&mut self, outcomes: &[Outcome]) -> Vec<OutcomeResult> {
        let mut results = Vec::new();
        for outcome in outcomes {
            let result = if results.iter().any(|result| *result != OutcomeResult::Applied) {
                OutcomeResult::Conflict
            } else {
                self.apply_one(outcome)
            };
            results.push(result);
        }
        results
    }

    fn apply_one(&mut self, outcome: &Outcome) -> OutcomeResult {
        let pair = (outcome.trigger, outcome.topic);
        if !self.triggers.iter().any(|t| t.info.id == pair.0) {
            return OutcomeResult::Obsolete;
        }
        if !self.cursors[&pair].accepts(outcome.offset, outcome.attempt) {
            return OutcomeResult::Obsolete;
        }
        let rows = self.rows.entry(outcome.bucket.clone()).or_default();
        if outcome.reads.iter().any(|read| Self::digest(rows.get(&read.key)) != read.digest) {
            return OutcomeResult::Conflict;
        }
        if self.faults && self.random.percent(3) {
            self.hold(BLOCKED_WAIT_MS);
            return OutcomeResult::Blocked;
        }
        for op in &outcome.writes {
            rows.insert(op.key.clone(), op.value.clone().unwrap());
        }
        self.emitted.extend(outcome.emits.iter().map(|emit| match emit.target.topic {
            99 => String::from_utf8(emit.event.payload.to_vec()).unwrap(),
            dead => format!("{}/{}/{}", dead - 90, outcome.topic, outcome.offset),
        }));
        let cursor = self.cursors.get_mut(&pair).unwrap();
        assert!(cursor.apply(outcome));
        assert!(cursor.gap() <= MAX_CURSOR_GAP);
        let disposition = Disposition::try_from(outcome.disposition).unwrap();
        if disposition == Disposition::Retry {
            return OutcomeResult::Applied;
        }
        if self.ended.insert((pair.0, pair.1, outcome.offset), disposition).is_some() {
            self.fail("an event was handled twice");
        }
        let (events, cursor) = (self.events(pair.1), &self.cursors[&pair]);
        let key = &events[outcome.offset as usize].event.key;
        let earlier = events.iter().take(outcome.offset as usize);
        if !key.is_empty() && earlier.filter(|e| e.event.key == *key).any(|e| !cursor.is_done(e.offset)) {
            self.fail("an event overtook an earlier one of its key");
        }
        OutcomeResult::Applied
    }

    fn hold(&mut self, ms: u64) {
        self.held = self.held.max(self.now + ms);
    }

    fn events(&self, topic: u64) -> &[Stored] {
        &self.topics.iter().find(|(spec, _)| spec.id == topic).unwrap().1
    }

    /// Answers one thing that was asked for.
    fn answer(&mut self) {
        let at = self.random.below(self.asked.len());
        match self.asked.swap_remove(at) {
            Output::Load { trigger, topic, from, max } => {
                let events = self.events(topic).iter().skip(from as usize);
                let mut events: Vec<_> = events.take(max as usize).cloned().collect();
                if self.faults && self.random.percent(5) {
                    events.clear();
                    self.hold(super::feed::LOAD_WAIT_MS);
                } else if self.random.percent(30) {
                    events.truncate(1 + self.random.below(3));
                }
                self.tell(Input::Loaded { trigger, topic, from, events });
            }
            Output::Run(run) => {
                let result = self.call(&run);
                self.tell(Input::Ran { ticket: run.ticket, run: result });
            }
            Output::Propose { batch, outcomes } => {
                if self.faults && self.random.percent(5) {
                    self.hold(PROPOSE_WAIT_MS);
                    self.zombies.push(outcomes);
                    self.tell(Input::ProposeFailed { batch });
                    return;
                }
                let results = self.apply(&outcomes);
                if results[0] != OutcomeResult::Applied {
                    self.hold(REFUSED_WAIT_MS);
                }
                let pairs: BTreeSet<_> = outcomes.iter().map(|o| (o.trigger, o.topic)).collect();
                let cursors = pairs.iter().filter_map(|pair| self.cursors.get(pair).cloned()).collect();
                self.tell(Input::Committed { batch, results, cursors });
            }
            Output::WakeAt(_) => unreachable!("kept apart"),
        }
    }

    fn disturb(&mut self) {
        match self.random.below(13) {
            0 => self.lead(),
            1 => {
                let paused = self.random.percent(50);
                let at = self.random.below(self.triggers.len());
                self.triggers[at].info.paused = paused;
                let hosted = self.hosted();
                self.tell(Input::Spec(hosted));
            }
            2 | 3 if !self.zombies.is_empty() => {
                let at = self.random.below(self.zombies.len());
                let batch = self.zombies.swap_remove(at);
                if self.random.percent(70) {
                    self.apply(&batch);
                }
            }
            4 | 5 => {
                let value = self.random.below(3).to_string();
                let bucket = ["one", "shared"][self.random.below(2)];
                self.rows.entry(bucket.into()).or_default().insert("client".into(), value.into());
            }
            // the third trigger is removed, and created again under the same name
            12 if self.triggers.len() == 3 => {
                let gone = self.triggers.remove(2).info.id;
                self.cursors.retain(|(trigger, _), _| *trigger != gone);
                let hosted = self.hosted();
                self.tell(Input::Spec(hosted));
            }
            12 => {
                self.last_id += 1;
                self.triggers.push(trigger(self.last_id, "three", "a/x", "shared"));
                let hosted = self.hosted();
                self.tell(Input::Spec(hosted));
            }
            6 => self.now += self.random.next() % 40,
            _ => {
                let (topic, next) = self.append();
                self.tell(Input::Head { topic, next });
            }
        }
    }

    /// With nothing under way and nobody held, whatever may run has run.
    fn check_idle(&self) {
        // a wake-up that is due and not told yet explains idleness
        if self.now <= self.held || self.wake.is_some_and(|at| at <= self.now) {
            return;
        }
        for (pair, cursor) in &self.cursors {
            if self.triggers.iter().any(|t| t.info.id == pair.0 && t.info.paused) {
                continue;
            }
            let blocked: BTreeSet<_> = cursor.parked.iter().map(|p| &p.key_digest).collect();
            for event in self.events(pair.1) {
                let (at, digest) = (event.offset, key_digest(&event.event.key));
                let waits = match cursor.parked(at) {
                    Some(parked) => parked.not_before_ms > self.now,
                    None => !digest.is_empty() && blocked.contains(&digest),
                };
                if cursor.is_open(at) && !waits {
                    self.fail(&format!("{pair:?}: offset {at} is held up for no reason"));
                }
            }
        }
    }

    fn run(mut self) -> Self {
        for _ in 0..600 {
            if self.random.percent(12) {
                self.disturb();
            } else {
                self.step();
            }
        }
        self.faults = false;
        self.zombies.clear();
        self.triggers.iter_mut().for_each(|trigger| trigger.info.paused = false);
        let hosted = self.hosted();
        self.tell(Input::Spec(hosted));
        let mut left = 20_000;
        while self.step() {
            left -= 1;
            if left == 0 {
                self.fail("it does not come to an end");
            }
        }
        self.check_end();
        self
    }

    /// One answer, or else a wake-up; false when there is nothing to wait for.
    fn step(&mut self) -> bool {
        if !self.asked.is_empty() {
            self.answer();
            return true;
        }
        self.check_idle();
        let Some(at) = self.wake.take() else {
            return false;
        };
        self.now = self.now.max(at);
        self.tell(Input::Tick);
        true
    }

    fn check_end(&self) {
        for ((trigger, topic), cursor) in &self.cursors {
            let events = self.events(*topic);
            if *cursor != (Cursor { runs: cursor.runs, ..Cursor::new(*trigger, *topic, events.len() as u64) }) {
                self.fail(&format!("not all is handled: {cursor:?}"));
            }
        }
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for ((trigger, topic, offset), _) in self.ended.iter().filter(|(_, end)| **end == Disposition::Done) {
            let key = self.events(*topic)[*offset as usize].event.key.to_vec();
            if key == b"k3" {
                continue;
            }
            *counts.entry(format!("{trigger}/{topic}/{}", String::from_utf8(key).unwrap())).or_default() += 1;
        }
        let rows = self.rows.values().flatten().filter(|(key, _)| *key != "client");
        let have = rows.map(|(key, n)| (key.clone(), String::from_utf8(n.to_vec()).unwrap().parse().unwrap()));
        assert_eq!(have.collect::<BTreeMap<_, u64>>(), counts, "seed {}: state is not what the events make", self.seed);
        let mut emitted = self.emitted.clone();
        emitted.sort();
        let mut want: Vec<_> =
            self.ended.keys().map(|(trigger, topic, at)| format!("{trigger}/{topic}/{at}")).collect();
        want.sort();
        assert_eq!(emitted, want, "seed {}: effects that left are not those of the events", self.seed);
    }
}

#[test]
fn effects_happen_once_and_in_order_whatever_happens() {
    let (mut done, mut dead, mut spared) = (0, 0, 0);
    for seed in 0..400 {
        let world = World::new(seed).run();
        done += world.ended.values().filter(|end| **end == Disposition::Done).count();
        dead += world.ended.values().filter(|end| **end == Disposition::Dead).count();
        spared += world.trace.iter().filter(|line| line.contains("Conflict")).count();
    }
    // the model has to meet what it is there for
    assert!(done > 10_000 && dead > 300 && spared > 300, "{done} done, {dead} dead, {spared} refused");
}

#[test]
fn a_seed_replays_to_the_byte() {
    assert_eq!(World::new(7).run().trace, World::new(7).run().trace);
}
