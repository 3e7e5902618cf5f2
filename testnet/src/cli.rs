//! The command line of `canal-testnet`.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::emulated::{Network, Quality};
use crate::{Options, Scenario, Testnet};
use crate::{chaos, control, demo, failover, fill};

/// Exit code of a run that was interrupted: what a shell gives a program that SIGINT ended.
const INTERRUPTED: u8 = 130;

/// Many Canal peers on one machine.
#[derive(Debug, Parser)]
#[command(name = "canal-testnet", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the peers of a scenario until Ctrl-C
    Up {
        /// The scenario, a TOML file
        scenario: PathBuf,
        /// Where data and logs go; a directory that was used before is taken up again [default: a temporary one]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// Gives each peer a network namespace of its own, even if the scenario names no links (needs root or user
        /// namespaces, and /dev/net/tun)
        #[arg(long)]
        emulate: bool,
        /// Seed of the emulated network's losses and jitter
        #[arg(long, value_name = "N", default_value_t = 1)]
        seed: u64,
    },
    /// Shows or changes a link of a testnet that runs on an emulated network
    Link(LinkArguments),
    /// Streams real readings through functions on real peers, kills a leader, and checks every promise
    Demo(demo::Options),
    /// Kills the leader of a group again and again under a publisher, and shows how long it is without receipts; and what
    /// peers cost that have nothing to do
    Failover(failover::Options),
    /// Makes faults in real peers under load, by a plan that the seed fixes, and checks the whole history in the end
    Chaos(chaos::Options),
    /// Fills a topic with many small events, and shows what they cost each peer
    Fill(fill::Options),
    /// Simulates meshes under faults, each from a seed
    Sim(crate::sim::cli::Options),
    /// Is the `canal` program: `canal-testnet canal help`
    #[command(disable_help_flag = true)]
    Canal {
        /// Its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
}

#[derive(Debug, clap::Args)]
struct LinkArguments {
    /// The testnet's directory, as `up` printed it
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Number of the first peer
    from: usize,
    /// Number of the second peer
    to: usize,
    /// Only from the first to the second
    #[arg(long)]
    one_way: bool,
    /// Time on the wire, in milliseconds
    #[arg(long, value_name = "MS")]
    delay: Option<f64>,
    /// Up to so much more, in milliseconds
    #[arg(long, value_name = "MS")]
    jitter: Option<f64>,
    /// Share of packets that are lost, from 0 to 1
    #[arg(long, value_name = "SHARE")]
    loss: Option<f64>,
    /// Bandwidth in kilobits a second; 0: unbounded
    #[arg(long, value_name = "KBIT")]
    rate: Option<u64>,
    /// Nothing passes from now on
    #[arg(long, conflicts_with = "heal")]
    cut: bool,
    /// Packets pass again
    #[arg(long)]
    heal: bool,
}

impl LinkArguments {
    fn changes(&self) -> bool {
        let numbers = self.delay.is_some() || self.jitter.is_some() || self.loss.is_some() || self.rate.is_some();
        numbers || self.cut || self.heal
    }

    fn changed(&self, was: Quality) -> Quality {
        Quality {
            delay_ms: self.delay.unwrap_or(was.delay_ms),
            jitter_ms: self.jitter.unwrap_or(was.jitter_ms),
            loss: self.loss.unwrap_or(was.loss),
            rate_kbit: self.rate.unwrap_or(was.rate_kbit),
            cut: (was.cut || self.cut) && !self.heal,
        }
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = std::env::var("CANAL_LOG").unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    // before any other thread is there: it is for this one and those that it starts
    let network = match network(&cli.command) {
        Ok(network) => network,
        Err(error) => return failed(&error),
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into()),
    };
    runtime.block_on(async {
        tokio::select! {
            biased;
            // dropping what runs ends its peers
            ended = interrupted() => ended.map_or_else(|error| failed(&error), |()| ExitCode::from(INTERRUPTED)),
            code = perform(cli.command, network) => code.unwrap_or_else(|error| failed(&error)),
        }
    })
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}

async fn interrupted() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

fn scenario(path: &std::path::Path) -> Result<Scenario> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{} can't be read", path.display()))?;
    text.parse().with_context(|| format!("{} can't be used", path.display()))
}

/// The emulated network that a command asks for, if it can be had.
fn network(command: &Command) -> Result<Option<Network>> {
    let seed = match command {
        Command::Up { scenario: path, emulate, seed, .. } if *emulate || !scenario(path)?.links.is_empty() => *seed,
        Command::Chaos(options) if !options.loopback => options.seed,
        _ => return Ok(None),
    };
    match Network::here(seed) {
        Ok(network) => Ok(Some(network)),
        Err(error) => {
            eprintln!("warning: {error}; the peers run on loopback, and links are as fast as it is");
            Ok(None)
        }
    }
}

async fn link(arguments: &LinkArguments) -> Result<ExitCode> {
    let mut ends = vec![(arguments.from, arguments.to)];
    if !arguments.one_way {
        ends.push((arguments.to, arguments.from));
    }
    let mut text = String::new();
    for (from, to) in ends {
        let mut answer = control::ask(&arguments.dir, &control::Ask { from, to, set: None }).await?;
        if arguments.changes() {
            let set = Some(arguments.changed(answer.quality));
            answer = control::ask(&arguments.dir, &control::Ask { from, to, set }).await?;
        }
        let Quality { delay_ms, jitter_ms, loss, rate_kbit, cut } = answer.quality;
        let rate = if rate_kbit == 0 { "any rate".to_owned() } else { format!("{rate_kbit} kbit/s") };
        let state = if cut { "cut" } else { "open" };
        text.push_str(&format!(
            "{from} -> {to}  {state}  {delay_ms} ms + up to {jitter_ms} ms, loss {loss}, {rate}; passed {}, lost {}\n",
            answer.passed, answer.lost
        ));
    }
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

async fn perform(command: Command, network: Option<Network>) -> Result<ExitCode> {
    let executable = std::env::current_exe().context("this program's own path is not known")?;
    match command {
        Command::Up { scenario, dir, .. } => up(&scenario, dir, executable, network).await,
        Command::Link(arguments) => link(&arguments).await,
        Command::Demo(options) => {
            let kept = demo::run(&options, executable).await?;
            Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Failover(options) => {
            let within = failover::run(&options, executable).await?;
            Ok(if within { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Chaos(options) => {
            let kept = chaos::run(&options, executable, network).await?;
            Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Fill(options) => fill::run(&options, executable).await.map(|()| ExitCode::SUCCESS),
        Command::Sim(options) => Ok(tokio::task::block_in_place(|| crate::sim::cli::main(&options))?),
        // `main` takes it before it comes here
        Command::Canal { arguments } => {
            let name = [std::ffi::OsString::from("canal")];
            Ok(tokio::task::block_in_place(|| canal_node::cli::main_with(name.into_iter().chain(arguments))))
        }
    }
}

async fn up(
    path: &std::path::Path,
    dir: Option<PathBuf>,
    executable: PathBuf,
    network: Option<Network>,
) -> Result<ExitCode> {
    let scenario = scenario(path)?;
    let program = executable.display().to_string();
    let options = Options { dir, network: network.clone(), ..Options::new(executable) };
    let net = Testnet::start(&scenario, options).await?;
    let mut text = format!("mesh `{}`, data and logs in {}\n", net.mesh(), net.dir().display());
    for peer in net.peers() {
        let spec = peer.spec();
        let (number, address, id) = (peer.number(), peer.address()?, peer.id()?);
        text.push_str(&format!("peer {number}  {:<5} {:<10} {address}  {id}\n", spec.tier, spec.site));
    }
    if let Some(first) = net.peers().first() {
        let address = first.address()?;
        text.push_str(&format!(
            "\ntalk to it with, for example:\n  export CANAL_PEER={address} CANAL_MESH={mesh}\n  \
             {program} canal topic create greetings\n  {program} canal pub greetings hello\n  \
             {program} canal sub greetings --from earliest --count 1\nand end it with Ctrl-C\n",
            mesh = net.mesh()
        ));
    }
    let Some(network) = network else {
        std::io::stdout().write_all(text.as_bytes())?;
        // until a signal ends the program
        return std::future::pending().await;
    };
    text.push_str(&format!(
        "\nthe peers live in network namespaces; put in front of these commands, as the same user:\n  \
         {enter}\nchange a link with, for example:\n  \
         {program} link --dir {dir} 0 1 --delay 50 --loss 0.01\n",
        enter = network.enter(),
        dir = net.dir().display()
    ));
    std::io::stdout().write_all(text.as_bytes())?;
    control::serve(net.dir(), network).await.context("the socket for changing links")?;
    Ok(ExitCode::SUCCESS)
}
