//! What a libp2p stream sees when the process at its other end is killed: how long until the error, which
//! error, and what changes it.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::{Multiaddr, identity::Keypair, multiaddr::Protocol, swarm::SwarmEvent};

use crate::contenders::{PROTOCOL, dial, listen, swarm};

/// The argument that starts the process to be killed.
pub const ECHO: &str = "--echo";

/// One key for all echo processes, so that a restarted one is the same peer.
fn echo_key() -> Result<Keypair> {
    Ok(Keypair::ed25519_from_bytes([7; 32])?)
}

/// Echoes until killed; prints the port first.
pub async fn echo(port: u16) -> Result<()> {
    let mut server = swarm(echo_key()?, |config| config)?;
    let mut incoming = server.behaviour().new_control().accept(PROTOCOL)?;
    let address = listen(&mut server, port).await?;
    println!("{}", udp_port(&address)?);
    std::io::stdout().flush()?;
    tokio::select! {
        _ = async { loop { server.select_next_some().await; } } => {}
        _ = async {
            while let Some((_, mut stream)) = incoming.next().await {
                tokio::spawn(async move {
                    let mut byte = [0];
                    while stream.read_exact(&mut byte).await.is_ok() {
                        if stream.write_all(&byte).await.is_err() || stream.flush().await.is_err() {
                            break;
                        }
                    }
                });
            }
        } => {}
    }
    Ok(())
}

fn udp_port(address: &Multiaddr) -> Result<u16> {
    let port = |part| {
        if let Protocol::Udp(port) = part {
            Some(port)
        } else {
            None
        }
    };
    address
        .iter()
        .find_map(port)
        .context("no UDP port in the address")
}

fn spawn_echo(port: u16) -> Result<(Child, u16)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args([ECHO, &port.to_string()])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut line)?;
    Ok((child, line.trim().parse()?))
}

struct Case {
    name: &'static str,
    idle: Option<(u32, Duration)>,
    writes: bool,
    restarts: bool,
}

pub async fn show() -> Result<()> {
    println!(
        "| after SIGKILL of the other process | stream error (s) | what `read` gave | connection closed (s) | cause |"
    );
    println!("|---|---:|---|---:|---|");
    let short = Some((1_500, Duration::from_millis(500)));
    for case in [
        Case {
            name: "defaults, nothing sent",
            idle: None,
            writes: false,
            restarts: false,
        },
        Case {
            name: "defaults, a byte every 100 ms",
            idle: None,
            writes: true,
            restarts: false,
        },
        Case {
            name: "idle 1.5 s, keep-alive 0.5 s, nothing sent",
            idle: short,
            writes: false,
            restarts: false,
        },
        Case {
            name: "idle 1.5 s, keep-alive 0.5 s, a byte every 100 ms",
            idle: short,
            writes: true,
            restarts: false,
        },
        Case {
            name: "defaults, restarted at once on its port, nothing sent",
            idle: None,
            writes: false,
            restarts: true,
        },
        Case {
            name: "defaults, restarted at once, a byte every 100 ms",
            idle: None,
            writes: true,
            restarts: true,
        },
    ] {
        run(case).await?;
    }
    Ok(())
}

async fn run(case: Case) -> Result<()> {
    let (mut child, port) = spawn_echo(0)?;
    let address: Multiaddr = format!("/ip4/127.0.0.1/udp/{port}/quic-v1").parse()?;
    let mut client = swarm(Keypair::generate_ed25519(), |mut config| {
        if let Some((idle, keep_alive)) = case.idle {
            config.max_idle_timeout = idle;
            config.keep_alive_interval = keep_alive;
        }
        config
    })?;
    let mut control = client.behaviour().new_control();
    let peer = dial(&mut client, address).await?;
    let closed = tokio::spawn(async move {
        loop {
            if let SwarmEvent::ConnectionClosed { cause, .. } = client.select_next_some().await {
                return (
                    Instant::now(),
                    cause.map_or("none".to_owned(), |cause| format!("{cause}")),
                );
            }
        }
    });
    let (mut reader, mut writer) = control.open_stream(peer, PROTOCOL).await?.split();
    writer.write_all(&[1]).await?;
    writer.flush().await?;
    reader.read_exact(&mut [0]).await?;
    tokio::time::sleep(Duration::from_millis(200)).await;

    child.kill()?;
    child.wait()?;
    let start = Instant::now();
    let mut second = if case.restarts {
        Some(spawn_echo(port)?.0)
    } else {
        None
    };
    let writes = tokio::spawn(async move {
        while case.writes && writer.write_all(&[1]).await.is_ok() && writer.flush().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        writer // kept, so that the stream is not reset from here
    });
    let read = tokio::time::timeout(Duration::from_secs(40), reader.read(&mut [0])).await;
    let (failed, read) = (
        start.elapsed(),
        match read {
            Ok(Ok(n)) => format!("{n} bytes"),
            Ok(Err(error)) => format!("{:?}: {error}", error.kind()),
            Err(_) => bail!("{}: the stream still waits", case.name),
        },
    );
    let (at, cause) = tokio::time::timeout(Duration::from_secs(5), closed).await??;
    println!(
        "| {} | {:.2} | {read} | {:.2} | {cause} |",
        case.name,
        failed.as_secs_f64(),
        at.duration_since(start).as_secs_f64()
    );
    writes.abort();
    if let Some(child) = &mut second {
        child.kill()?;
        child.wait()?;
    }
    Ok(())
}
