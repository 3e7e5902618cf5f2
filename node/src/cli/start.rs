//! `canal start` and `canal config`.

use std::io::{IsTerminal, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::Result;
use canal_proto::Code;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::fail;
use crate::config::{Config, Flags};
use crate::data::InUse;
use crate::peer::{BeginsAnew, Ended, Starting};

/// Flags of `canal start`.
#[derive(Debug, Args)]
pub struct Start {
    #[command(flatten)]
    flags: Flags,
    /// Say what happens as JSON, a line each
    #[arg(long)]
    json: bool,
    /// If what the peer holds is damaged, move it aside and begin empty, although groups may have no other copy
    #[arg(long)]
    discard_damaged: bool,
    /// Stop when standard input ends: for programs that start peers and must not leave any behind
    #[arg(long, hide = true)]
    exit_with_stdin: bool,
}

/// Flags of `canal config`.
#[derive(Debug, Args)]
pub struct Show {
    #[command(flatten)]
    flags: Flags,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Prints what is in force.
pub fn show(command: Show) -> ExitCode {
    let config = match Config::load(command.flags, &env) {
        Ok(config) => config,
        Err(error) => return fail(Code::InvalidArgument, &format!("{error:#}"), command.json),
    };
    if command.json {
        let settings: serde_json::Map<_, _> = config
            .origin
            .iter()
            .map(|(name, value, source)| ((*name).to_owned(), serde_json::json!({ "value": value, "source": source })))
            .collect();
        println!("{}", serde_json::Value::Object(settings));
    } else {
        for (name, value, source) in &config.origin {
            println!("{name:<18} {value:<40} {}", format!("{source:?}").to_lowercase());
        }
    }
    ExitCode::SUCCESS
}

/// Runs a peer until it is told to stop.
pub fn run(command: Start) -> ExitCode {
    let json = command.json;
    let config = match Config::load(command.flags.clone(), &env) {
        Ok(config) => config,
        Err(error) => return fail(Code::InvalidArgument, &format!("{error:#}"), json),
    };
    log(&config.log, json);
    if std::env::var_os("SSLKEYLOGFILE").is_some() {
        tracing::warn!("SSLKEYLOGFILE is set: the secrets of every connection are written there");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(Code::Internal, &format!("the runtime can't be started: {error}"), json),
    };
    let code = match runtime.block_on(serve(config, &command)) {
        Ok(code) => code,
        Err(error) if error.is::<InUse>() => fail(Code::InUse, &format!("{error:#}"), json),
        Err(error) => fail(Code::Internal, &format!("{error:#}"), json),
    };
    // reads of standard input can't be cancelled and must not hold up the end
    runtime.shutdown_background();
    code
}

fn log(filter: &str, json: bool) {
    // the libraries below say at `info` what only their authors need
    let filter = if filter.contains(['=', ',']) {
        filter.to_owned()
    } else {
        format!("warn,libp2p_kad=error,canal_node={filter},canal_consensus={filter}")
    };
    let filter = tracing_subscriber::EnvFilter::try_new(&filter).unwrap_or_else(|_| "warn,canal_node=info".into());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json {
        builder.json().init();
    } else {
        builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).init();
    }
}

async fn serve(config: Config, command: &Start) -> Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut starting = Starting::new(config).await?;
    if command.discard_damaged {
        starting.discard_damaged();
    }
    let started = starting.started();
    if command.json {
        say(&serde_json::to_string(&started)?);
    } else {
        say(&format!("peer {}", started.peer));
        for address in &started.addresses {
            say(&format!("listening at {address}/p2p/{}", started.peer));
        }
        say(&format!("data in {}", started.data));
        if started.addresses.iter().any(|address| !address.contains("/127.") && !address.contains("/::1/")) {
            say(&format!(
                "note: whoever reaches these addresses is in mesh `{}`: there are no credentials yet",
                started.mesh
            ));
        }
    }
    let mut orphaned = std::pin::pin!(orphaned(command.exit_with_stdin));
    let peer = tokio::select! {
        biased;
        _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
        _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
        () = &mut orphaned => return Ok(ExitCode::SUCCESS),
        peer = starting.join() => match peer {
            Err(error) if error.is::<BeginsAnew>() => {
                if command.json {
                    say(&serde_json::json!({ "event": "begins-anew" }).to_string());
                }
                return Ok(begin_anew(command.json));
            }
            peer => peer?,
        },
    };
    if command.json {
        say(&serde_json::json!({ "event": "serving", "peer": peer.id().to_string() }).to_string());
    }
    let ended = tokio::select! {
        biased;
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        () = &mut orphaned => None,
        ended = peer.ended() => Some(ended),
    };
    match ended {
        Some(Ended::Forgotten) => {
            peer.forget().await?;
            if command.json {
                say(&serde_json::json!({ "event": "begins-anew" }).to_string());
            }
            Ok(begin_anew(command.json))
        }
        Some(Ended::Failed(reason)) => {
            peer.stop().await;
            Ok(fail(Code::Internal, &format!("stopped, because the stores failed: {reason}"), command.json))
        }
        None => {
            peer.stop().await;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Starts the program again in this process, with the same arguments: nothing of what was in memory is left. Returns only
/// when that can't be done.
fn begin_anew(json: bool) -> ExitCode {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "canal".into());
    let again = std::env::current_exe().map(|path| Command::new(path).arg0(name).args(arguments).exec());
    let error = again.unwrap_or_else(|error| error);
    let message = format!(
        "what this peer held can't be trusted any more, and it can't begin anew by itself: {error}; start it again"
    );
    fail(Code::Forgotten, &message, json)
}

/// Prints a line. Whoever started the peer may have stopped reading, which is no reason to stop.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Returns when standard input ends, if that matters.
async fn orphaned(watch: bool) {
    if !watch {
        return std::future::pending().await;
    }
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut byte = [0; 64];
        while matches!(std::io::stdin().read(&mut byte), Ok(n) if n > 0) {}
        let _ = ended.send(());
    });
    let _ = end.await;
}
