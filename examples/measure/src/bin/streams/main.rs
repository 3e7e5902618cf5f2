//! What libp2p's raw streams cost over quinn's: 128 B messages on long-lived bidirectional streams over
//! loopback, both transports in one run, taking turns.
//!
//! `streams` measures with both endpoints on one tokio runtime of two workers; `streams --apart` gives each
//! endpoint a runtime of one worker, so that every message crosses threads, as it does between processes.
//! `streams --killed` shows instead what a libp2p stream sees when the other process gets a SIGKILL.

mod contenders;
mod killed;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use contenders::{Duplex, Libp2p, Quinn};
use futures::{
    AsyncReadExt as _, AsyncWriteExt as _, FutureExt as _,
    future::BoxFuture,
    io::{BufReader, BufWriter},
};
use tokio::runtime::{Builder, Handle, Runtime};

const MESSAGE: usize = 128;
const BUFFER: usize = 64 << 10;
const ROUND_TRIPS: usize = 20_000;
const BATCHES: usize = 2_000;
const BATCH: usize = 64;
const ONE_WAY: u64 = 500_000;

/// The first byte of a stream says what it is for.
const PING: u8 = b'p';
const BATCHED: u8 = b'b';
const SINK: u8 = b's';

/// The serving side: echoes single messages or batches, or counts what arrives.
fn serve<S: Duplex>(stream: S) -> BoxFuture<'static, ()> {
    async move {
        let _ = answer(stream).await; // a stream ends with the process
    }
    .boxed()
}

async fn answer<S: Duplex>(mut stream: S) -> std::io::Result<()> {
    let mut kind = [0];
    stream.read_exact(&mut kind).await?;
    stream.write_all(&kind).await?;
    stream.flush().await?;
    match kind {
        [PING] => loop {
            let mut message = [0; MESSAGE];
            stream.read_exact(&mut message).await?;
            stream.write_all(&message).await?;
            stream.flush().await?;
        },
        [BATCHED] => {
            let mut stream = BufReader::with_capacity(BUFFER, stream);
            loop {
                let mut answer = Vec::with_capacity(BATCH * (MESSAGE + 4));
                for _ in 0..BATCH {
                    let message = read_framed(&mut stream).await?;
                    answer.extend_from_slice(&(MESSAGE as u32).to_be_bytes());
                    answer.extend_from_slice(&message);
                }
                stream.get_mut().write_all(&answer).await?;
                stream.get_mut().flush().await?;
            }
        }
        _ => {
            let mut stream = BufReader::with_capacity(BUFFER, stream);
            loop {
                for _ in 0..ONE_WAY {
                    read_framed(&mut stream).await?;
                }
                stream.get_mut().write_all(&ONE_WAY.to_be_bytes()).await?;
                stream.get_mut().flush().await?;
            }
        }
    }
}

async fn read_framed<S: Duplex>(stream: &mut BufReader<S>) -> std::io::Result<[u8; MESSAGE]> {
    let (mut length, mut message) = ([0; 4], [0; MESSAGE]);
    stream.read_exact(&mut length).await?;
    if u32::from_be_bytes(length) as usize != MESSAGE {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// The long-lived streams of one contender.
struct Streams<S> {
    ping: S,
    batched: S,
    sink: S,
}

/// The kind is answered before the next stream is opened: libp2p-stream drops an inbound stream
/// when another one still waits to be accepted.
async fn hello<S: Duplex>(mut stream: S, kind: u8) -> Result<S> {
    stream.write_all(&[kind]).await?;
    stream.flush().await?;
    let mut answer = [0];
    stream.read_exact(&mut answer).await?;
    ensure!(answer == [kind], "the other side answered {answer:?}");
    Ok(stream)
}

#[derive(Clone, Copy)]
struct Figures {
    datagrams: f64,
    median: f64,
    p99: f64,
    batched: f64,
    one_way: f64,
}

impl<S: Duplex> Streams<S> {
    async fn measure(&mut self) -> Result<Figures> {
        self.round_trips(ROUND_TRIPS / 10).await?;
        let before = datagrams()?;
        let mut took = self.round_trips(ROUND_TRIPS).await?;
        let datagrams = (datagrams()? - before) as f64 / ROUND_TRIPS as f64;
        took.sort();
        let at = |q: usize| {
            took.get(took.len() * q / 100)
                .map_or(f64::NAN, |d| d.as_secs_f64() * 1e6)
        };
        let (median, p99) = (at(50), at(99));
        self.batches(BATCHES / 10).await?;
        let start = Instant::now();
        self.batches(BATCHES).await?;
        let batched = (BATCHES * BATCH) as f64 / start.elapsed().as_secs_f64();
        let start = Instant::now();
        self.one_way().await?;
        Ok(Figures {
            datagrams,
            median,
            p99,
            batched,
            one_way: ONE_WAY as f64 / start.elapsed().as_secs_f64(),
        })
    }

    async fn round_trips(&mut self, n: usize) -> Result<Vec<Duration>> {
        let (message, mut answer) = ([7; MESSAGE], [0; MESSAGE]);
        let mut took = Vec::with_capacity(n);
        for _ in 0..n {
            let start = Instant::now();
            self.ping.write_all(&message).await?;
            self.ping.flush().await?;
            self.ping.read_exact(&mut answer).await?;
            took.push(start.elapsed());
        }
        ensure!(answer == message, "the echo differs");
        Ok(took)
    }

    async fn batches(&mut self, n: usize) -> Result<()> {
        let mut answer = [0; BATCH * (MESSAGE + 4)];
        for _ in 0..n {
            let mut out = BufWriter::with_capacity(BUFFER, &mut self.batched);
            for _ in 0..BATCH {
                out.write_all(&(MESSAGE as u32).to_be_bytes()).await?;
                out.write_all(&[7; MESSAGE]).await?;
            }
            out.flush().await?;
            self.batched.read_exact(&mut answer).await?;
        }
        Ok(())
    }

    async fn one_way(&mut self) -> Result<()> {
        let mut out = BufWriter::with_capacity(BUFFER, &mut self.sink);
        for _ in 0..ONE_WAY {
            out.write_all(&(MESSAGE as u32).to_be_bytes()).await?;
            out.write_all(&[7; MESSAGE]).await?;
        }
        out.flush().await?;
        let mut count = [0; 8];
        self.sink.read_exact(&mut count).await?;
        ensure!(
            u64::from_be_bytes(count) == ONE_WAY,
            "the other side lost messages"
        );
        Ok(())
    }
}

/// UDP datagrams received on this machine: the proof that a round trip went through the socket.
fn datagrams() -> Result<u64> {
    let snmp = std::fs::read_to_string("/proc/net/snmp")?;
    let figures = snmp
        .lines()
        .filter_map(|line| line.strip_prefix("Udp: "))
        .nth(1)
        .context("no UDP figures")?;
    Ok(figures
        .split(' ')
        .next()
        .context("no datagrams received")?
        .parse()?)
}

macro_rules! streams {
    ($contender:expr) => {
        Streams {
            ping: hello($contender.open().await?, PING).await?,
            batched: hello($contender.open().await?, BATCHED).await?,
            sink: hello($contender.open().await?, SINK).await?,
        }
    };
}

const NAMES: [&str; 3] = [
    "quinn, libp2p's limits",
    "quinn, its defaults",
    "libp2p raw stream",
];

const REPETITIONS: usize = 5;

async fn compare(server: Handle) -> Result<()> {
    let mut like = Quinn::connect(&server, true, serve).await?;
    let mut plain = Quinn::connect(&server, false, serve).await?;
    let mut raw = Libp2p::connect(&server, serve).await?;
    let (mut like_streams, mut plain_streams, mut raw_streams) =
        (streams!(like), streams!(plain), streams!(raw));

    let mut seen: [Vec<Figures>; 3] = Default::default();
    for rep in 0..REPETITIONS {
        for turn in 0..NAMES.len() {
            let who = (rep + turn) % NAMES.len();
            let figures = match who {
                0 => like_streams.measure().await?,
                1 => plain_streams.measure().await?,
                _ => raw_streams.measure().await?,
            };
            seen[who].push(figures);
        }
    }
    print(&seen);
    Ok(())
}

/// Median over the repetitions, with least and most.
fn spread(figures: &[Figures], field: fn(&Figures) -> f64, scale: f64) -> (f64, String) {
    let mut values: Vec<f64> = figures.iter().map(|f| field(f) / scale).collect();
    values.sort_by(f64::total_cmp);
    let median = values[values.len() / 2];
    (
        median,
        format!(
            "{median:.1} ({:.1}–{:.1})",
            values[0],
            values[values.len() - 1]
        ),
    )
}

fn print(seen: &[Vec<Figures>; 3]) {
    let rows: [(&str, fn(&Figures) -> f64, f64); 5] = [
        ("round trip, median (us)", |f| f.median, 1.0),
        ("round trip, p99 (us)", |f| f.p99, 1.0),
        ("datagrams a round trip", |f| f.datagrams, 1.0),
        ("batches of 64 echoed (k msg/s)", |f| f.batched, 1e3),
        ("one way, pipelined (k msg/s)", |f| f.one_way, 1e3),
    ];
    println!(
        "| median of {} (least–most) | {} | libp2p / quinn with its limits |",
        seen[0].len(),
        NAMES.join(" | ")
    );
    println!("|---|---:|---:|---:|---:|");
    for (name, field, scale) in rows {
        let cells = seen.each_ref().map(|figures| spread(figures, field, scale));
        let ratio = cells[2].0 / cells[0].0;
        println!(
            "| {name} | {} | {} | {} | {ratio:.2} |",
            cells[0].1, cells[1].1, cells[2].1
        );
    }
}

fn runtime(workers: usize) -> std::io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let apart = args[..] == ["--apart"];
    let here = runtime(if apart { 1 } else { 2 })?;
    let other = runtime(1)?; // idle, unless apart
    let server = if apart { other.handle() } else { here.handle() }.clone();
    // Spawned, so that nothing measured runs on the blocked main thread.
    let task = match args[..] {
        [] | ["--apart"] => here.spawn(compare(server)),
        ["--killed"] => here.spawn(killed::show()),
        [killed::ECHO, port] => here.spawn(killed::echo(port.parse()?)),
        _ => bail!("usage: streams [--apart | --killed]"),
    };
    here.block_on(task)?
}
