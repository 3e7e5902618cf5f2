//! Random logs on a disk that loses power, tears writes and flips bits, compared with a plain model.
//!
//! A run is made by its seed. After each step the log is opened as a killed process, or a loss of power at any point of
//! any sync, would leave it. What is found has to be what stood after some step that is not older than the last synced
//! one: all that was acknowledged, nothing that was never written, no half of a turn, no hard state that went back.
//! `CANAL_SEEDS=N cargo test -p canal-consensus --lib log_store::tests::crash` tries more seeds.

use std::collections::VecDeque;

use super::*;

/// Seeds that are tried by default; some seconds of a debug build.
const SEEDS: u64 = 8;
const STEPS: usize = 40;
/// What a disk writes as a whole.
const SECTOR: usize = 512;

/// Splitmix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

pub fn seeds() -> std::ops::Range<u64> {
    let count = std::env::var("CANAL_SEEDS").ok().and_then(|count| count.parse().ok());
    let first = std::env::var("CANAL_SEED").ok().and_then(|seed| seed.parse().ok());
    match first {
        Some(first) => first..first + 1,
        None => 0..count.unwrap_or(SEEDS),
    }
}

/// One group, as it should be found.
#[derive(Debug, Clone, Default, PartialEq)]
struct Expected {
    loaded: Option<Loaded>,
    entries: Vec<Entry>,
    meta: Option<Vec<u8>>,
    gone: u64,
}

type Model = BTreeMap<GroupId, Expected>;

const GROUPS: [GroupId; 3] = [GroupId(3), GroupId(4), GroupId(u64::MAX - 5)];

/// What a log holds.
fn found(store: &LogStore) -> Result<Model, Error> {
    GROUPS
        .into_iter()
        .map(|group| {
            let loaded = store.load(group)?;
            let entries = match &loaded {
                Some(loaded) => store.entries(group, loaded.first, loaded.last + 1, None)?,
                None => Vec::new(),
            };
            Ok((group, Expected { loaded, entries, meta: store.meta(group)?, gone: store.gone(group)? }))
        })
        .collect()
}

struct Run {
    random: Random,
    store: LogStore,
    dir: PathBuf,
    model: Model,
    /// What stood after each step since the last synced one, which is the first of them.
    states: VecDeque<Model>,
    written: u64,
}

impl Run {
    fn new(seed: u64, dir: &Path) -> Self {
        faults::record(dir);
        let store = LogStore::open(dir, options()).unwrap();
        let model: Model = GROUPS.into_iter().map(|group| (group, Expected::default())).collect();
        let states = VecDeque::from([model.clone()]);
        Self { random: Random(seed), store, dir: dir.to_owned(), model, states, written: 0 }
    }

    fn step(&mut self) {
        let mut synced = true;
        match self.random.below(12) {
            0 => {
                let group = GROUPS[self.random.below(GROUPS.len())];
                let record = self.random.next().to_be_bytes();
                self.store.put_meta(group, &record).unwrap();
                self.model.get_mut(&group).unwrap().meta = Some(record.to_vec());
            }
            1 if self.random.one_in(4) => {
                let group = GROUPS[self.random.below(GROUPS.len())];
                let expected = self.model.get_mut(&group).unwrap();
                let id = expected.gone + 1;
                self.store.remove(group, id).unwrap();
                *expected = Expected { gone: id, ..Expected::default() };
            }
            2 => {
                self.store.purge().unwrap();
                synced = false;
            }
            3 => synced = self.turn(false),
            _ => synced = self.turn(true),
        }
        if synced {
            self.states.clear();
        }
        self.states.push_back(self.model.clone());
    }

    fn turn(&mut self, sync: bool) -> bool {
        let mut turn = Vec::new();
        for group in GROUPS {
            if self.random.one_in(3) {
                let write = self.write(group);
                // an empty turn writes and syncs nothing
                turn.extend((write != GroupWrite { group, ..GroupWrite::default() }).then_some(write));
            }
        }
        self.store.write(&turn, sync).unwrap();
        sync && !turn.is_empty()
    }

    /// What a group writes in a turn; the model takes it.
    fn write(&mut self, group: GroupId) -> GroupWrite {
        let random = &mut self.random;
        let expected = self.model.get_mut(&group).unwrap();
        let mut loaded = expected.loaded.clone().unwrap_or(Loaded { first: 1, ..Loaded::default() });
        let mut write = GroupWrite { group, ..GroupWrite::default() };
        if expected.loaded.is_some() && random.one_in(5) {
            let replace = random.one_in(4);
            let index = match replace {
                true => loaded.last + 1 + random.next() % 9,
                false => loaded.first + random.below((loaded.last + 1 - loaded.first) as usize) as u64,
            };
            if replace || index <= loaded.last {
                let compacted = Compacted { index, term: random.next() % 99, ..Compacted::default() };
                expected.entries.retain(|entry| entry.index > index && !replace);
                (loaded.first, loaded.last) = (index + 1, if replace { index } else { loaded.last });
                loaded.compacted = Some(compacted.clone());
                (write.compact, write.replace) = (Some(compacted), replace);
            }
        }
        if random.one_in(8) {
            let record = random.one_in(2).then(|| Bytes::from(random.next().to_be_bytes().to_vec()));
            write.installing = Some(record.clone());
            loaded.installing = record;
        }
        if random.one_in(2) {
            let term = loaded.hard_state.term + random.next() % 3;
            let commit = loaded.hard_state.commit + 1;
            loaded.hard_state = hard_state(term, 1 + random.next() % 3, commit);
            write.hard_state = Some(loaded.hard_state.clone());
        }
        if !random.one_in(4) {
            // at the end, or over a part of the tail
            let back =
                if random.one_in(4) { random.below((loaded.last + 1 - loaded.first) as usize + 1) as u64 } else { 0 };
            let start = loaded.last + 1 - back;
            let end = start + 1 + random.next() % 4;
            for index in start..end {
                self.written += 1;
                let length = if random.one_in(6) { 1500 } else { 40 };
                let mut data = self.written.to_be_bytes().to_vec();
                data.resize(8 + random.below(length), index as u8);
                write.entries.push(entry(index, 1 + self.written, data));
            }
            expected.entries.retain(|entry| entry.index < start);
            expected.entries.extend(write.entries.iter().cloned());
            loaded.last = end - 1;
        }
        let nothing = write == GroupWrite { group, ..GroupWrite::default() };
        if !nothing
            && (loaded.last >= loaded.first
                || write.hard_state.is_some()
                || loaded != Loaded { first: 1, ..Loaded::default() })
        {
            expected.loaded = Some(loaded);
        }
        write
    }

    /// Images of this moment, and of moments in the syncs before it: the process dies, and the power goes.
    fn images(&mut self) -> Vec<(&'static str, faults::Content)> {
        let recorded = faults::recorded(&self.dir);
        let random = &mut self.random;
        let on_disk = |name: &String| {
            let bytes = fs::read(self.dir.join(name)).unwrap_or_default();
            (name.clone(), Arc::new(bytes))
        };
        let mut killed: faults::Content = recorded.synced.keys().map(on_disk).collect();
        killed.insert(mark::NAME.to_owned(), Arc::new(recorded.notes.last().cloned().unwrap_or_default()));
        let mut images = vec![("killed", killed)];
        let older = |random: &mut Random, notes: &Vec<Vec<u8>>| match notes.len() {
            0 => Vec::new(),
            length => notes[random.below(length)].clone(),
        };
        let mut synced = recorded.synced.clone();
        synced.insert(mark::NAME.to_owned(), Arc::new(older(random, &recorded.notes)));
        // what was removed may be back, from the newest on
        for (name, content) in recorded.removed.iter().rev() {
            if random.one_in(2) {
                break;
            }
            synced.entry(name.clone()).or_insert_with(|| content.clone());
        }
        images.push(("lost power", synced));
        for flight in recorded.flights {
            let mut torn = flight.synced.clone();
            let before = torn.get(&flight.name).cloned().unwrap_or_default();
            torn.insert(flight.name.clone(), Arc::new(tear(random, &before, &flight.written)));
            torn.insert(mark::NAME.to_owned(), Arc::new(older(random, &flight.notes)));
            images.push(("torn", torn));
        }
        images
    }
}

/// A part of what was written arrives: up to some byte, or any of its sectors.
fn tear(random: &mut Random, before: &[u8], written: &[u8]) -> Vec<u8> {
    let differs = |at: &usize| before.get(*at) != written.get(*at);
    let Some(first) = (0..written.len()).find(differs) else { return written.to_vec() };
    let last = (0..written.len()).rev().find(differs).unwrap();
    let mut torn = before.to_vec();
    if random.one_in(2) {
        let cut = first + random.below(last + 2 - first);
        if torn.len() < cut {
            torn.resize(cut, 0);
        }
        torn[first..cut].copy_from_slice(&written[first..cut]);
    } else {
        torn.resize(written.len().max(before.len()), 0);
        for sector in (first / SECTOR)..=(last / SECTOR) {
            let range = sector * SECTOR..((sector + 1) * SECTOR).min(written.len());
            if random.one_in(2) {
                torn[range.clone()].copy_from_slice(&written[range]);
            }
        }
    }
    torn
}

/// Files as small as they can be, so that many are begun, cleared and used again.
fn options() -> Options {
    Options { file_size: 4 << 10, purge_above: 16 << 10 }
}

fn lay_out(content: &faults::Content) -> TempDir {
    let dir = in_memory();
    for (name, bytes) in content {
        // a note that was never written is none
        if name != mark::NAME || !bytes.is_empty() {
            fs::write(dir.path().join(name), bytes.as_slice()).unwrap();
        }
    }
    dir
}

#[test]
fn whatever_a_crash_leaves_is_a_state_that_stood_since_the_last_sync() {
    let (mut opened, mut torn) = (0, 0);
    for seed in seeds() {
        let dir = in_memory();
        let mut run = Run::new(seed, dir.path());
        for step in 0..STEPS {
            let before = run.states.clone();
            run.step();
            let place = format!("CANAL_SEED={seed}, step {step}");
            for (kind, image) in run.images() {
                let image = lay_out(&image);
                let store = LogStore::open(image.path(), options())
                    .unwrap_or_else(|error| panic!("{place}: {kind}: a healthy disk is refused: {error}"));
                let found = found(&store).unwrap_or_else(|error| panic!("{place}: {kind}: {error}"));
                let may_be = match kind {
                    "killed" => vec![run.states.back().unwrap()],
                    "lost power" => run.states.iter().collect(),
                    _ => before.iter().chain(&run.states).collect(),
                };
                assert!(
                    may_be.contains(&&found),
                    "{place}: {kind}: never stood since the last sync: {found:#?}\nbut {:#?}",
                    run.states.back().unwrap()
                );
                opened += 1;
                torn += u64::from(kind == "torn");
                // and it goes on from there
                let next = found[&GROUP_A].loaded.as_ref().map_or(1, |loaded| loaded.last + 1);
                store.write(&[append(GROUP_A, entries(next..next + 1, 1 << 40))], true).unwrap();
                drop(store);
                let store = LogStore::open(image.path(), options()).unwrap_or_else(|e| panic!("{place}: again: {e}"));
                assert_eq!(store.load(GROUP_A).unwrap().unwrap().last, next, "{place}: {kind}");
            }
        }
        faults::forget(dir.path());
    }
    assert!(opened > 0 && torn > 0);
}

const GROUP_A: GroupId = GROUPS[0];

fn without_zeros(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)]
}

#[test]
fn a_flipped_bit_is_noticed_or_does_no_harm() {
    let (mut refused, mut unreadable, mut harmless) = (0, 0, 0);
    for seed in seeds() {
        let dir = in_memory();
        let mut run = Run::new(seed, dir.path());
        (0..STEPS).for_each(|_| run.step());
        run.store.put_meta(GROUP_A, b"all of it is synced").unwrap();
        run.model.get_mut(&GROUP_A).unwrap().meta = Some(b"all of it is synced".to_vec());
        let Some((_, image)) = run.images().into_iter().next() else { panic!("no image") };
        for _ in 0..60 {
            let mut flipped = image.clone();
            let logs: Vec<String> = flipped.keys().filter(|name| *name != mark::NAME).cloned().collect();
            let name = logs[run.random.below(logs.len())].clone();
            let mut bytes = flipped[&name].to_vec();
            if bytes.is_empty() {
                continue;
            }
            // mostly where something stands
            let end = bytes.iter().rposition(|byte| *byte != 0).map_or(bytes.len(), |last| last + 1);
            let (at, bit) = (run.random.below(end), run.random.below(8));
            bytes[at] ^= 1 << bit;
            flipped.insert(name.clone(), Arc::new(bytes));
            let place = format!("CANAL_SEED={seed}: bit {bit} of byte {at} of {name}");
            let on_disk = lay_out(&flipped);
            match LogStore::open(on_disk.path(), options()) {
                Ok(store) => match found(&store) {
                    Ok(found) => {
                        assert!(found == run.model, "{place}: {found:#?}\nbut {:#?}", run.model);
                        harmless += 1;
                    }
                    Err(Error::Damaged { .. }) => {
                        // what can be read of it is right
                        for (group, expected) in &run.model {
                            let loaded = store.load(*group).unwrap_or_else(|e| panic!("{place}: {e}"));
                            assert_eq!(loaded, expected.loaded, "{place}");
                            for entry in &expected.entries {
                                if let Ok(found) = store.entry(*group, entry.index) {
                                    assert_eq!(found.as_ref(), Some(entry), "{place}");
                                }
                            }
                        }
                        unreadable += 1;
                    }
                    Err(error) => panic!("{place}: {error}"),
                },
                Err(error) => {
                    assert!(matches!(error, Error::Damaged { .. }), "{place}: {error}");
                    for (name, bytes) in &flipped {
                        let now = fs::read(on_disk.path().join(name)).unwrap();
                        // the zeros that a file is made longer by are cut off
                        assert!(
                            without_zeros(&now) == without_zeros(bytes),
                            "{place}: {name} was changed although the log was refused"
                        );
                    }
                    refused += 1;
                }
            }
        }
        faults::forget(dir.path());
    }
    assert!(refused > 0 && unreadable > 0 && harmless > 0, "{refused} {unreadable} {harmless}");
}

#[test]
fn what_was_synced_and_is_cut_off_or_missing_is_damage_that_is_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let store = LogStore::open(dir.path(), options()).unwrap();
    for index in 1..30 {
        store.write(&[append(GROUP, vec![entry(index, 1, [index as u8; 512])])], true).unwrap();
    }
    drop(store);
    let all = files(dir.path());
    assert!(all.len() > 3, "{all:?}");
    let refused = |change: &dyn Fn(&Path), says: &str| {
        let image = crash_image(dir.path());
        change(image.path());
        let error = LogStore::open(image.path(), options()).err().expect("it is refused");
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(says) && text.contains("restore the peer's data directory"), "{text}");
        // and again: nothing was made of it meanwhile
        assert_eq!(LogStore::open(image.path(), options()).err().expect("again").to_string(), text);
    };
    let name = |file: &Path| file.file_name().unwrap().to_owned();
    let last = all.last().unwrap();
    // the last sync: nothing comes behind it, as behind a torn one
    refused(
        &|image| {
            let mut bytes = fs::read(last).unwrap();
            let at = bytes.len() - 20;
            bytes[at] ^= 4;
            fs::write(image.join(name(last)), bytes).unwrap();
        },
        "can't be read from byte",
    );
    refused(&|image| fs::write(image.join(name(last)), b"").unwrap(), "it was synced up to byte");
    for file in [&all[0], &all[1], last] {
        refused(&|image| fs::remove_file(image.join(name(file))).unwrap(), "is missing");
    }
    // the last entries of an older file: raft-engine takes them for a torn tail
    refused(
        &|image| {
            let mut bytes = fs::read(&all[1]).unwrap();
            let at = bytes.windows(512).rposition(|window| window.iter().all(|byte| *byte == window[0])).unwrap();
            bytes[at + 100] ^= 1;
            fs::write(image.join(name(&all[1])), bytes).unwrap();
        },
        "can't be read from byte",
    );
    // without the note, or with one that is damaged, the log opens as it did before there were notes
    for note in [None, Some(vec![7; 80])] {
        let image = crash_image(dir.path());
        match note {
            Some(bytes) => fs::write(image.path().join(mark::NAME), bytes).unwrap(),
            None => fs::remove_file(image.path().join(mark::NAME)).unwrap(),
        }
        assert_eq!(open(image.path()).load(GROUP).unwrap().unwrap().last, 29);
    }
}

#[test]
fn what_opening_reads_is_synced_before_anybody_acts_upon_it() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("log");
    fs::create_dir(faults::durable(&dir)).unwrap();
    let store = open(&dir);
    store.write(&[append(GROUP, entries(1..3, 1))], true).unwrap();
    // the process dies between the write and its sync; what it wrote is in the system's memory
    store.write(&[append(GROUP, entries(3..5, 1))], false).unwrap();
    let image = crash_image(&dir);
    drop(store);
    fs::remove_dir_all(&dir).unwrap();
    fs::remove_dir_all(faults::durable(&dir)).unwrap();
    fs::create_dir(faults::durable(&dir)).unwrap();
    fs::create_dir(&dir).unwrap();
    for file in fs::read_dir(image.path()).unwrap().map(Result::unwrap) {
        // without the room that was made behind it: then nothing is cut, and raft-engine syncs nothing
        let bytes = fs::read(file.path()).unwrap();
        let log = file.path().extension().is_some_and(|extension| extension == "raftlog");
        let kept = if log { without_zeros(&bytes) } else { &bytes };
        fs::write(dir.join(file.file_name()), kept).unwrap();
    }
    let store = open(&dir);
    assert_eq!(store.load(GROUP).unwrap().unwrap().last, 4);
    assert_eq!(open(&faults::durable(&dir)).load(GROUP).unwrap().unwrap().last, 4, "after a loss of power");
}

/// After a sync that failed, what was written is in the system's memory, and never gets to the disk by itself.
#[test]
fn what_opening_reads_after_a_failed_sync_is_on_disk_before_anybody_acts_upon_it() {
    let dir = in_memory();
    faults::record(dir.path());
    let store = LogStore::open(dir.path(), options()).unwrap();
    store.write(&[append(GROUP, entries(1..3, 1))], true).unwrap();
    faults::fail_syncs(dir.path(), true);
    store.write(&[append(GROUP, entries(3..5, 1))], true).unwrap_err();
    // the process starts again, on what the system's memory has (this one still holds the directory)
    let image = crash_image(dir.path());
    faults::goes_on_in(dir.path(), image.path());
    let before = lay_out(&faults::recorded(image.path()).synced);
    assert_eq!(
        open(before.path()).load(GROUP).unwrap().unwrap().last,
        2,
        "what a loss of power leaves before the start"
    );
    let store = LogStore::open(image.path(), options()).unwrap();
    assert_eq!(store.load(GROUP).unwrap().unwrap().last, 4);
    let after = lay_out(&faults::recorded(image.path()).synced);
    assert_eq!(open(after.path()).load(GROUP).unwrap().unwrap().last, 4, "what a loss of power leaves after it");
    faults::forget(image.path());
}

#[test]
fn a_full_disk_stops_the_log_and_loses_nothing() {
    for room in [0, 1, 100, 700, 2000, 5000] {
        let dir = in_memory();
        let store = LogStore::open(dir.path(), options()).unwrap();
        store.write(&[append(GROUP, entries(1..3, 1))], true).unwrap();
        faults::leave_room(dir.path(), Some(room));
        let mut last = 2;
        let error = loop {
            match store.write(&[append(GROUP, vec![entry(last + 1, 1, [7; 300])])], true) {
                Ok(()) => last += 1,
                Err(error) => break error,
            }
        };
        let text = error.to_string();
        assert!(text.contains("No space left") && text.contains("free space"), "{text}");
        assert!(matches!(store.write(&[append(GROUP, entries(3..4, 1))], true), Err(Error::Stopped)));
        assert_eq!(store.load(GROUP).unwrap().unwrap().last, last, "it is read as before");
        // the next start, with room
        let image = crash_image(dir.path());
        let store = LogStore::open(image.path(), options()).unwrap();
        assert_eq!(store.load(GROUP).unwrap().unwrap().last, last, "room for {room}");
        store.write(&[append(GROUP, entries(last + 1..last + 2, 2))], true).unwrap();
        faults::forget(dir.path());
    }
}
