#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::time::Instant;

use bytes::Bytes;
use canal_proto::Code;
use crossbeam_channel::Receiver;
use parking_lot::Mutex;
use tempfile::TempDir;

use super::*;

const GROUP: GroupId = GroupId(3);

/// Peers with files; some answer wrong, some not at all.
#[derive(Default)]
struct Peers {
    files: BTreeMap<PeerId, Files>,
    wrong: BTreeSet<PeerId>,
    silent: BTreeSet<PeerId>,
    /// Requests that are answered before a peer falls silent.
    left: Mutex<BTreeMap<PeerId, usize>>,
    asked: Mutex<Vec<(PeerId, u64)>>,
}

impl Fetch for Peers {
    fn fetch(&self, from: PeerId, _: Vec<String>, ask: PieceAsk) -> Fetching {
        self.asked.lock().push((from, ask.offset));
        let mut left = self.left.lock();
        let silent = left.get(&from) == Some(&0) || self.silent.contains(&from);
        if let Some(left) = left.get_mut(&from) {
            *left = left.saturating_sub(1);
        }
        if silent {
            return Box::pin(async { Err(WireError::new(Code::Unreachable, "it is away")) });
        }
        let hash = ContentHash::from_slice(&ask.hash).unwrap();
        let files = &self.files[&from];
        let data = files.read(&hash, ask.offset, ask.length as usize).unwrap();
        let answer = match data {
            Some(data) if self.wrong.contains(&from) => {
                Ok(PieceData { data: vec![0; data.len()].into(), size: files.size(&hash).unwrap() })
            }
            Some(data) => Ok(PieceData { data, size: files.size(&hash).unwrap() }),
            None => Err(WireError::new(Code::NotHere, "it has no such file")),
        };
        Box::pin(async move { answer })
    }
}

fn peer(n: u8) -> PeerId {
    PeerId::from_public_key([n; 32])
}

fn sources(peers: &[u8]) -> Vec<Source> {
    peers.iter().map(|n| Source { peer: peer(*n), addresses: Vec::new() }).collect()
}

struct Bench {
    _dirs: Vec<TempDir>,
    own: Files,
    pieces: Vec<Piece>,
    peers: Peers,
}

/// Peers 1 and 2 have three files, of which the last takes several requests.
fn bench() -> Bench {
    let dirs: Vec<TempDir> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut peers = Peers::default();
    let contents = [vec![1; 100], vec![2; MAX_PIECE], (0..3 * MAX_PIECE + 5).map(|n| (n % 251) as u8).collect()];
    let mut pieces = Vec::new();
    for n in [1, 2] {
        let files = Files::open(dirs[usize::from(n)].path()).unwrap();
        pieces = contents.iter().map(|content| files.put(content).unwrap()).collect();
        peers.files.insert(peer(n), files);
    }
    Bench { own: Files::open(dirs[0].path()).unwrap(), _dirs: dirs, pieces, peers }
}

/// What became of tasks, by their numbers.
type Reports = Receiver<(u64, Result<(), String>)>;

fn start(files: &Files, peers: Peers) -> (Transfer, Reports, Arc<Peers>) {
    let (reports, receiver) = crossbeam_channel::unbounded();
    let peers = Arc::new(peers);
    let report = move |report| match report {
        Report::Fetched { group, number, result } => {
            assert_eq!(group, GROUP);
            reports.send((number, result)).unwrap();
        }
        other => panic!("{other:?}"),
    };
    (Transfer::start(files.clone(), peers.clone(), report).unwrap(), receiver, peers)
}

fn next(reports: &Reports) -> (u64, Result<(), String>) {
    reports.recv_deadline(Instant::now() + Duration::from_secs(30)).unwrap()
}

fn task(number: u64, pieces: &[Piece], peers: &[u8]) -> Task {
    Task { group: GROUP, number, pieces: pieces.to_vec(), sources: sources(peers) }
}

fn assert_all_here(files: &Files, pieces: &[Piece]) {
    for piece in pieces {
        let hash = ContentHash::from_slice(&piece.hash).unwrap();
        assert_eq!(files.whole(&hash).unwrap().map(|bytes: Bytes| bytes.len() as u64), Some(piece.size));
    }
}

#[test]
fn files_come_whole_and_what_is_here_is_not_asked_for() {
    let Bench { own, pieces, peers, _dirs } = bench();
    own.put(&[1; 100]).unwrap();
    let (transfer, reports, peers) = start(&own, peers);
    transfer.begin(task(1, &pieces, &[1]));
    assert_eq!(next(&reports), (1, Ok(())));
    assert_all_here(&own, &pieces);
    let mut offsets: Vec<u64> = peers.asked.lock().iter().map(|(_, offset)| *offset).collect();
    offsets.sort_unstable();
    let part = MAX_PIECE as u64;
    assert_eq!(offsets, [0, 0, part, 2 * part, 3 * part]);
}

#[test]
fn another_source_is_asked_when_one_is_wrong_or_away() {
    for bad in ["wrong", "silent"] {
        let Bench { own, pieces, mut peers, _dirs } = bench();
        match bad {
            "wrong" => peers.wrong.insert(peer(1)),
            _ => peers.silent.insert(peer(1)),
        };
        let (transfer, reports, _) = start(&own, peers);
        transfer.begin(task(1, &pieces, &[1, 2]));
        assert_eq!(next(&reports), (1, Ok(())), "{bad}");
        assert_all_here(&own, &pieces);
    }
}

#[test]
fn what_has_come_is_kept_when_the_source_goes_away() {
    let Bench { own, pieces, mut peers, _dirs } = bench();
    peers.left = Mutex::new([(peer(1), 2)].into());
    let large = &pieces[2..];
    let (transfer, reports, _) = start(&own, peers);
    transfer.begin(task(1, large, &[1]));
    let (number, result) = next(&reports);
    assert_eq!(number, 1);
    assert!(result.unwrap_err().contains("it is away"));
    drop(transfer);
    let Bench { peers, _dirs: _others, .. } = bench();
    let (transfer, reports, peers) = start(&own, peers);
    transfer.begin(task(2, large, &[2]));
    assert_eq!(next(&reports), (2, Ok(())));
    assert_all_here(&own, large);
    let part = MAX_PIECE as u64;
    assert_eq!(*peers.asked.lock(), [(peer(2), 2 * part), (peer(2), 3 * part)]);
}

#[test]
fn a_later_task_of_a_group_takes_the_place_of_one_before() {
    let Bench { own, pieces, mut peers, _dirs } = bench();
    peers.silent.insert(peer(1));
    let (transfer, reports, _) = start(&own, peers);
    transfer.begin(task(1, &pieces, &[1]));
    transfer.begin(task(2, &pieces, &[2]));
    assert_eq!(next(&reports), (2, Ok(())));
    assert_all_here(&own, &pieces);
    transfer.begin(task(3, &pieces, &[1]));
    assert_eq!(next(&reports), (3, Ok(())), "nothing was left to fetch");
}
