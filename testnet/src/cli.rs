//! The command line of `canal-testnet`.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::demo;
use crate::{Options, Scenario, Testnet};

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
    },
    /// Streams real readings through functions on real peers, kills a leader, and checks every promise
    Demo(demo::Options),
    /// Is the `canal` program: `canal-testnet canal help`
    #[command(disable_help_flag = true)]
    Canal {
        /// Its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = std::env::var("CANAL_LOG").unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into()),
    };
    runtime.block_on(async {
        tokio::select! {
            biased;
            // dropping what runs ends its peers
            ended = interrupted() => ended.map_or_else(|error| failed(&error), |()| ExitCode::from(INTERRUPTED)),
            code = perform(cli.command) => code.unwrap_or_else(|error| failed(&error)),
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

async fn perform(command: Command) -> Result<ExitCode> {
    let executable = std::env::current_exe().context("this program's own path is not known")?;
    match command {
        Command::Up { scenario, dir } => up(&scenario, dir, executable).await,
        Command::Demo(options) => {
            let kept = demo::run(&options, executable).await?;
            Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        // `main` takes it before it comes here
        Command::Canal { arguments } => {
            let name = [std::ffi::OsString::from("canal")];
            Ok(tokio::task::block_in_place(|| canal_node::cli::main_with(name.into_iter().chain(arguments))))
        }
    }
}

async fn up(path: &std::path::Path, dir: Option<PathBuf>, executable: PathBuf) -> Result<ExitCode> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{} can't be read", path.display()))?;
    let scenario: Scenario = text.parse().with_context(|| format!("{} can't be used", path.display()))?;
    let program = executable.display().to_string();
    let net = Testnet::start(&scenario, Options { dir, ..Options::new(executable) }).await?;
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
    std::io::stdout().write_all(text.as_bytes())?;
    // until a signal ends the program
    std::future::pending().await
}
