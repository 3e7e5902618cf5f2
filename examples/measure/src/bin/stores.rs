//! Two state stores under Canal's write pattern: overwrites of few keys, in atomic batches of 64, unsynced,
//! with a flush every second beside them.
//!
//! Each backend runs in a fresh process, so that memory figures do not mix; the parent prints the table.
//! Then a writer is killed with SIGKILL again and again, and the reopened state must be a prefix of its
//! batches, every batch whole. A SIGKILL leaves the page cache standing: this says nothing about power loss.
//!
//! `stores [--dir DIR] [--keys N] [--puts N] [--limit SECONDS] [--kills N] [--backend NAME]...`

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

const BATCH: u64 = 64;
const VALUE: usize = 100;
const KEY: usize = 16;
const CACHE: u64 = 64 << 20;
const FLUSH_EVERY: Duration = Duration::from_secs(1);
const BACKENDS: [&str; 4] = ["sled", "sled-low-space", "fjall", "fjall-small"];

/// Bytes of the keys and values that are not yet overwritten.
fn live(keys: u64) -> u64 {
    keys * (KEY + VALUE) as u64
}

type Pair = ([u8; KEY], [u8; VALUE]);

/// What Canal asks of a state store, as far as it is measured here.
trait Store: Send + Sync {
    fn apply(&self, batch: &[Pair]) -> Result<()>;
    fn get(&self, key: &[u8; KEY], seen: &mut dyn FnMut(&[u8])) -> Result<()>;
    fn flush(&self) -> Result<()>;
}

struct Sled(sled::Db);

impl Store for Sled {
    fn apply(&self, pairs: &[Pair]) -> Result<()> {
        let mut batch = sled::Batch::default();
        for (key, value) in pairs {
            batch.insert(&key[..], &value[..]);
        }
        Ok(self.0.apply_batch(batch)?)
    }

    fn get(&self, key: &[u8; KEY], seen: &mut dyn FnMut(&[u8])) -> Result<()> {
        if let Some(value) = self.0.get(key)? {
            seen(&value);
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.0.flush()?;
        Ok(())
    }
}

struct Fjall {
    db: fjall::Database,
    state: fjall::Keyspace,
}

impl Store for Fjall {
    fn apply(&self, pairs: &[Pair]) -> Result<()> {
        let mut batch = fjall::OwnedWriteBatch::with_capacity(self.db.clone(), pairs.len());
        for (key, value) in pairs {
            batch.insert(&self.state, &key[..], &value[..]);
        }
        Ok(batch.commit()?)
    }

    fn get(&self, key: &[u8; KEY], seen: &mut dyn FnMut(&[u8])) -> Result<()> {
        if let Some(value) = self.state.get(key)? {
            seen(&value);
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(self.db.persist(fjall::PersistMode::SyncData)?)
    }
}

fn open(backend: &str, dir: &Path) -> Result<Arc<dyn Store>> {
    let sled = |mode| -> Result<Arc<dyn Store>> {
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(CACHE)
            .flush_every_ms(None)
            .mode(mode);
        Ok(Arc::new(Sled(config.open()?)))
    };
    match backend {
        "sled" => sled(sled::Mode::HighThroughput),
        "sled-low-space" => sled(sled::Mode::LowSpace),
        "fjall" => {
            let db = fjall::Database::builder(dir).cache_size(CACHE).open()?;
            let state = db.keyspace("state", fjall::KeyspaceCreateOptions::default)?;
            Ok(Arc::new(Fjall { db, state }))
        }
        // The least journal that fjall accepts, and a memtable an eighth of the default.
        "fjall-small" => {
            let db = fjall::Database::builder(dir)
                .cache_size(CACHE)
                .max_journaling_size(64 << 20)
                .open()?;
            let options = || fjall::KeyspaceCreateOptions::default().max_memtable_size(8 << 20);
            let state = db.keyspace("state", options)?;
            Ok(Arc::new(Fjall { db, state }))
        }
        other => bail!("unknown backend {other}; use one of {BACKENDS:?}"),
    }
}

/// xorshift64*: reproducible, and cheap beside a put.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Incompressible bytes, so that no backend gains by compression.
    fn value(&mut self) -> [u8; VALUE] {
        let mut value = [0; VALUE];
        for chunk in value.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
        value
    }
}

/// A group of 100 by the first half of the key, as state keys are prefixed in Canal.
fn key(n: u64) -> [u8; KEY] {
    let mut key = [0; KEY];
    key[..8].copy_from_slice(&(n % 100).to_be_bytes());
    key[8..].copy_from_slice(&n.to_be_bytes());
    key
}

fn random_batch(random: &mut Random, keys: u64, batch: &mut Vec<Pair>) {
    batch.clear();
    for _ in 0..BATCH {
        let key = key(random.next() % keys);
        batch.push((key, random.value()));
    }
}

/// Allocated bytes, not lengths: preallocated journals count, holes do not.
fn disk(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => disk(&entry.path()),
        Ok(meta) => meta.blocks() * 512,
        Err(_) => 0, // removed by a compaction meanwhile
    };
    entries.flatten().map(size).sum()
}

fn memory(field: &str) -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .context("no such field")?;
    let kib: u64 = line
        .trim_start_matches(':')
        .split_whitespace()
        .next()
        .context("no figure")?
        .parse()?;
    Ok(kib * 1024)
}

fn quantile(sorted: &[Duration], q: f64) -> f64 {
    let at = ((sorted.len().saturating_sub(1)) as f64 * q).round() as usize;
    sorted.get(at).map_or(f64::NAN, |d| d.as_secs_f64() * 1e6)
}

/// Flushes every second, and keeps the worst seen of disk and of the flush itself.
struct Flusher {
    stop: Arc<AtomicBool>,
    disk_peak: Arc<AtomicU64>,
    thread: thread::JoinHandle<Result<Vec<Duration>>>,
}

impl Flusher {
    fn start(store: Arc<dyn Store>, dir: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let disk_peak = Arc::new(AtomicU64::new(0));
        let (stopped, peak) = (stop.clone(), disk_peak.clone());
        let thread = thread::spawn(move || {
            let mut took = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                thread::sleep(FLUSH_EVERY);
                let start = Instant::now();
                store.flush()?;
                took.push(start.elapsed());
                peak.fetch_max(disk(&dir), Ordering::Relaxed);
            }
            Ok(took)
        });
        Self {
            stop,
            disk_peak,
            thread,
        }
    }

    fn finish(self) -> Result<(Vec<Duration>, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        let mut took = self
            .thread
            .join()
            .map_err(|_| anyhow::anyhow!("the flusher panicked"))??;
        took.sort();
        Ok((took, self.disk_peak.load(Ordering::Relaxed)))
    }
}

fn overwrite(backend: &str, dir: &Path, keys: u64, puts: u64, limit: Duration) -> Result<()> {
    let store = open(backend, dir)?;
    let base = memory("VmRSS")?;
    let flusher = Flusher::start(store.clone(), dir.to_owned());
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut batch = Vec::new();

    // Each key once, so that all of the live data is there whatever the number of puts.
    for n in 0..keys {
        let pair = (key(n), random.value());
        store.apply(&[pair])?;
    }
    let start = Instant::now();
    let mut done = 0;
    while done < puts && start.elapsed() < limit {
        random_batch(&mut random, keys, &mut batch);
        store.apply(&batch)?;
        done += BATCH;
    }
    let elapsed = start.elapsed();
    let (rss_end, disk_end) = (memory("VmRSS")?, disk(dir));
    thread::sleep(Duration::from_secs(5)); // the flusher runs on; only writes are idle
    let (rss_idle, disk_idle) = (memory("VmRSS")?, disk(dir));

    let mut batches = Vec::with_capacity(20_000);
    for _ in 0..20_000 {
        random_batch(&mut random, keys, &mut batch);
        let start = Instant::now();
        store.apply(&batch)?;
        batches.push(start.elapsed());
    }
    batches.sort();
    let mut gets = Vec::with_capacity(200_000);
    let mut found = 0;
    for _ in 0..200_000 {
        let key = key(random.next() % keys);
        let start = Instant::now();
        store.get(&key, &mut |value| found += value.len())?;
        gets.push(start.elapsed());
    }
    gets.sort();
    if found != gets.len() * VALUE {
        bail!("a get found no value, or a wrong one");
    }
    let (flushes, disk_peak) = flusher.finish()?;
    let rss_peak = memory("VmHWM")?;
    drop(store);
    let disk_closed = disk(dir);
    let start = Instant::now();
    let store = open(backend, dir)?;
    let reopen = start.elapsed();
    drop(store);

    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / 1048576.0);
    let ratio = |bytes: u64| format!("{:.1}", bytes as f64 / live(keys) as f64);
    for (name, value) in [
        ("puts (M)", format!("{:.2}", done as f64 / 1e6)),
        ("elapsed (s)", format!("{:.1}", elapsed.as_secs_f64())),
        (
            "puts a second (k)",
            format!("{:.0}", done as f64 / elapsed.as_secs_f64() / 1e3),
        ),
        ("disk at end (MiB)", mib(disk_end)),
        ("disk after 5 s idle (MiB)", mib(disk_idle)),
        ("disk peak, sampled (MiB)", mib(disk_peak)),
        ("disk after close (MiB)", mib(disk_closed)),
        ("disk at end / live", ratio(disk_end)),
        ("disk idle / live", ratio(disk_idle)),
        ("RSS before (MiB)", mib(base)),
        ("RSS at end (MiB)", mib(rss_end)),
        ("RSS after 5 s idle (MiB)", mib(rss_idle)),
        ("RSS peak (MiB)", mib(rss_peak)),
        (
            "RSS at end / cache",
            format!("{:.2}", rss_end as f64 / CACHE as f64),
        ),
        (
            "batch of 64 median (us)",
            format!("{:.1}", quantile(&batches, 0.5)),
        ),
        (
            "batch of 64 p99 (us)",
            format!("{:.1}", quantile(&batches, 0.99)),
        ),
        (
            "batch of 64 max (us)",
            format!("{:.0}", quantile(&batches, 1.0)),
        ),
        ("get median (us)", format!("{:.2}", quantile(&gets, 0.5))),
        ("get p99 (us)", format!("{:.2}", quantile(&gets, 0.99))),
        (
            "flush median (ms)",
            format!("{:.1}", quantile(&flushes, 0.5) / 1e3),
        ),
        (
            "flush max (ms)",
            format!("{:.1}", quantile(&flushes, 1.0) / 1e3),
        ),
        ("reopen (ms)", format!("{:.0}", reopen.as_secs_f64() * 1e3)),
    ] {
        println!("{name}={value}");
    }
    Ok(())
}

/// Batch `n` writes the slot `n % SLOTS` of 64 keys, and the counter, all with the value `n`.
const SLOTS: u64 = 10_000 / BATCH;
const COUNTER: u64 = u64::MAX;

fn counted(n: u64) -> [u8; VALUE] {
    let mut value = [0; VALUE];
    for chunk in value.chunks_exact_mut(8) {
        chunk.copy_from_slice(&n.to_be_bytes());
    }
    value
}

/// Reads a counted value back; `0` when the key is absent.
fn count_at(store: &dyn Store, at: u64) -> Result<u64> {
    let mut found = Ok(0);
    store.get(&key(at), &mut |value| {
        let n = value
            .first_chunk::<8>()
            .map_or(0, |bytes| u64::from_be_bytes(*bytes));
        found = if value == counted(n) {
            Ok(n)
        } else {
            Err(anyhow::anyhow!("key {at} holds a torn value"))
        };
    })?;
    found
}

/// The last whole batch, if the state is exactly the batches up to it.
fn prefix(store: &dyn Store) -> Result<u64> {
    let last = count_at(store, COUNTER)?;
    for slot in 0..SLOTS {
        let wanted = if last < slot {
            0
        } else {
            last - (last - slot) % SLOTS
        };
        for at in slot * BATCH..(slot + 1) * BATCH {
            let n = count_at(store, at)?;
            if n != wanted {
                bail!("counter at {last}: key {at} of slot {slot} holds batch {n}, not {wanted}");
            }
        }
    }
    Ok(last)
}

/// Writes counted batches until it is killed. What was applied and flushed is noted in `marks`.
fn write_until_killed(backend: &str, dir: &Path, marks: &Path) -> Result<()> {
    let store = open(backend, dir)?;
    let marks = Arc::new(fs::OpenOptions::new().write(true).open(marks)?);
    let mut n = count_at(&*store, COUNTER)?;
    let applied = Arc::new(AtomicU64::new(n));
    let (flushing, seen, noted) = (store.clone(), applied.clone(), marks.clone());
    let _flusher = thread::spawn(move || -> Result<()> {
        loop {
            thread::sleep(FLUSH_EVERY / 4);
            let before = seen.load(Ordering::Acquire);
            flushing.flush()?;
            noted.write_all_at(&before.to_le_bytes(), 8)?;
        }
    });
    loop {
        n += 1;
        let slot = n % SLOTS;
        let mut batch: Vec<Pair> = (slot * BATCH..(slot + 1) * BATCH)
            .map(|at| (key(at), counted(n)))
            .collect();
        batch.push((key(COUNTER), counted(n)));
        store.apply(&batch)?;
        applied.store(n, Ordering::Release);
        marks.write_all_at(&n.to_le_bytes(), 0)?;
    }
}

fn crash(backend: &str, dir: &Path, kills: u64) -> Result<()> {
    fs::create_dir_all(dir)?;
    let (state, marks) = (dir.join("state"), dir.join("marks"));
    let mut random = Random(0xD1B5_4A32_D192_ED03);
    let (mut lost, mut broken, mut last_seen, mut open_worst) = (Vec::new(), 0, 0, Duration::ZERO);
    for _ in 0..kills {
        fs::write(&marks, [0; 16])?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--write", backend, "--dir"])
            .args([&state, &marks])
            .stdin(Stdio::null())
            .spawn()?;
        while fs::read(&marks)?.first_chunk() == Some(&[0u8; 8]) && child.try_wait()?.is_none() {
            thread::sleep(Duration::from_millis(5)); // it still opens the store
        }
        thread::sleep(Duration::from_millis(100 + random.next() % 1200));
        if let Some(status) = child.try_wait()? {
            bail!("the writer ended by itself: {status}");
        }
        child.kill()?;
        child.wait()?;
        let noted = fs::read(&marks)?;
        let mark = |at: usize| {
            let bytes = noted.get(at..).and_then(|rest| rest.first_chunk::<8>());
            bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
        };
        let start = Instant::now();
        let store = open(backend, &state)?;
        open_worst = open_worst.max(start.elapsed());
        match prefix(&*store) {
            Ok(last) if last >= mark(8) && last >= last_seen => {
                lost.push(mark(0).saturating_sub(last));
                last_seen = last;
            }
            Ok(last) => {
                eprintln!(
                    "{backend}: batch {last} recovered, but {} was flushed and {last_seen} seen",
                    mark(8)
                );
                broken += 1;
            }
            Err(error) => {
                eprintln!("{backend}: {error}");
                broken += 1;
            }
        }
    }
    lost.sort();
    println!("SIGKILLs={kills}");
    println!("not a whole prefix={broken}");
    println!("batches written={last_seen}");
    println!(
        "unflushed batches lost, median={}",
        lost.get(lost.len() / 2).copied().unwrap_or(0)
    );
    println!(
        "unflushed batches lost, max={}",
        lost.last().copied().unwrap_or(0)
    );
    println!(
        "reopen after SIGKILL, max (ms)={:.0}",
        open_worst.as_secs_f64() * 1e3
    );
    Ok(())
}

#[derive(Default)]
struct Options {
    dir: Option<PathBuf>,
    marks: Option<PathBuf>,
    keys: Option<u64>,
    puts: Option<u64>,
    limit: Option<u64>,
    kills: Option<u64>,
    backends: Vec<String>,
    /// Set in child processes: the phase to run.
    phase: Option<String>,
}

fn options() -> Result<Options> {
    let mut options = Options::default();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--keys" => options.keys = Some(value()?.parse()?),
            "--puts" => options.puts = Some(value()?.parse()?),
            "--limit" => options.limit = Some(value()?.parse()?),
            "--kills" => options.kills = Some(value()?.parse()?),
            "--backend" => options.backends.push(value()?),
            "--overwrite" | "--crash" | "--write" => {
                options.backends.push(value()?);
                options.phase = Some(arg);
            }
            "--dir" => {
                options.dir = Some(value()?.into());
                if options.phase.as_deref() == Some("--write") {
                    options.marks = Some(value()?.into());
                }
            }
            other => bail!("unknown argument {other}; see the head of stores.rs"),
        }
    }
    Ok(options)
}

fn main() -> Result<()> {
    let options = options()?;
    let keys = options.keys.unwrap_or(10_000);
    let puts = options.puts.unwrap_or(10_000_000);
    let limit = options.limit.unwrap_or(240);
    let kills = options.kills.unwrap_or(10);
    if let (Some(phase), Some(backend), Some(dir)) =
        (&options.phase, options.backends.first(), &options.dir)
    {
        return match (phase.as_str(), &options.marks) {
            ("--write", Some(marks)) => write_until_killed(backend, dir, marks),
            ("--crash", _) => crash(backend, dir, kills),
            _ => overwrite(backend, dir, keys, puts, Duration::from_secs(limit)),
        };
    }
    let root = options.dir.unwrap_or_else(|| {
        std::env::temp_dir().join(format!("canal-stores-{}", std::process::id()))
    });
    let backends = if options.backends.is_empty() {
        BACKENDS.map(String::from).to_vec()
    } else {
        options.backends
    };

    let mut names = Vec::new();
    let mut rows: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for backend in &backends {
        for phase in ["--overwrite", "--crash"] {
            let dir = root.join(format!("{backend}{phase}"));
            let output = Command::new(std::env::current_exe()?)
                .args([
                    phase,
                    backend,
                    "--keys",
                    &keys.to_string(),
                    "--puts",
                    &puts.to_string(),
                ])
                .args([
                    "--limit",
                    &limit.to_string(),
                    "--kills",
                    &kills.to_string(),
                    "--dir",
                ])
                .arg(&dir)
                .stderr(Stdio::inherit())
                .output()?;
            for line in String::from_utf8_lossy(&output.stdout).lines() {
                let Some((name, value)) = line.rsplit_once('=') else {
                    continue;
                };
                eprintln!("{backend}: {name} = {value}");
                if !names.iter().any(|known| known == name) {
                    names.push(name.to_owned());
                }
                rows.entry(name.to_owned())
                    .or_default()
                    .push(value.to_owned());
            }
            fs::remove_dir_all(&dir).ok();
            if !output.status.success() {
                bail!("{backend} {phase} ended with {}", output.status);
            }
        }
    }
    fs::remove_dir_all(&root).ok();

    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "| live data {:.2} MiB | {} |",
        live(keys) as f64 / 1048576.0,
        backends.join(" | ")
    )?;
    writeln!(out, "|---|{}", "---:|".repeat(backends.len()))?;
    for name in names {
        writeln!(out, "| {name} | {} |", rows[&name].join(" | "))?;
    }
    Ok(())
}
