//! From flags to a conversation with a peer, and from its end to an exit code.
//!
//! A flag beats the environment. Without either, the peer is the one that last ran on this machine's data directory,
//! by what it wrote down there; without that, whoever listens at the default port.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use canal_proto::Code;
use canal_sdk::transport::libp2p::Libp2p;
use canal_sdk::{Client, Error, Options};
use clap::Args;

use super::fail;
use super::print::Out;
use crate::config::{DEFAULT_PORT, default_data};
use crate::data;

/// Exit code of a read of a row that does not exist: no error on the wire, but scripts have to tell.
pub const NO_ROW: u8 = 3;
/// The longest deadline: a day.
const MAX_TIMEOUT: f64 = 86_400.0;

/// Which peer to talk to, and how.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Connection and output")]
pub struct Connect {
    /// Peer to ask: HOST:PORT or a multiaddress [env: CANAL_PEER] [default: the peer of the data directory, else
    /// 127.0.0.1:4040]
    #[arg(long, value_name = "ADDR")]
    peer: Option<String>,
    /// Name of the mesh [env: CANAL_MESH] [default: that of the peer of the data directory, else canal]
    #[arg(long, value_name = "NAME")]
    mesh: Option<String>,
    /// Data directory in which to look for the local peer [env: CANAL_DATA] [default: ~/.local/share/canal]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// How long to try before giving up
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    timeout: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How fresh an answer has to be.
#[derive(Debug, Clone, Copy, Args)]
pub struct Reading {
    /// Take what the replica that answers has, without asking a majority: works while there is none
    #[arg(long)]
    pub stale: bool,
}

impl Reading {
    /// Whether the leader asks its majority first, so that what was written a moment ago is there.
    pub fn is_linearizable(self) -> bool {
        !self.stale
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= MAX_TIMEOUT => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("give a number of seconds above 0, at most {MAX_TIMEOUT}")),
    }
}

/// Why a command failed.
#[derive(Debug)]
pub enum Failure {
    /// The mesh, or the library, said no.
    Mesh(Error),
    /// Standard output can't be written.
    Output(std::io::Error),
    /// The row does not exist.
    NoRow(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Mesh(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Output(error)
    }
}

/// What a command comes to.
pub type Outcome = Result<(), Failure>;

/// A mistake in what the user wrote.
pub fn invalid(message: impl Into<String>) -> Error {
    Error::new(Code::InvalidArgument, message)
}

/// Where the peer is.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    addresses: Vec<String>,
    mesh: String,
}

impl Connect {
    /// Whether output is for programs.
    pub fn json(&self) -> bool {
        self.json
    }

    /// Talks to the peer and does something with it; the exit code says how it went.
    pub fn run<F>(&self, command: F) -> ExitCode
    where
        F: AsyncFnOnce(Client, Out) -> Outcome,
    {
        self.on_runtime(async || {
            let place = self.place(&|name| std::env::var(name).ok())?;
            let client = self.connect(place).await?;
            command(client, Out::new(self.json)).await
        })
    }

    /// Does something that can be begun while the peer is away: nobody has been talked to. An error says that it is not
    /// known where a peer would be.
    pub fn run_detached<F>(&self, command: F) -> ExitCode
    where
        F: AsyncFnOnce(Result<Client, Error>, Out) -> Outcome,
    {
        self.on_runtime(async || {
            let place = self.place(&|name| std::env::var(name).ok());
            let client = place.and_then(|place| {
                let options = Options { mesh: place.mesh, deadline: self.timeout, ..Options::default() };
                Ok(Client::with_transport(Arc::new(Libp2p::new()?), place.addresses, options))
            });
            command(client, Out::new(self.json)).await
        })
    }

    /// How long to try before giving up.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    fn on_runtime(&self, command: impl AsyncFnOnce() -> Outcome) -> ExitCode {
        // a second thread, so that the connection stays alive while this one waits for a slow reader of its output
        let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return fail(Code::Internal, &format!("the runtime can't be started: {error}"), self.json),
        };
        let outcome = runtime.block_on(command());
        // reads of standard input can't be cancelled and must not hold up the end
        runtime.shutdown_background();
        self.exit(outcome)
    }

    fn exit(&self, outcome: Outcome) -> ExitCode {
        match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err(Failure::Mesh(error)) => fail(error.code, &error.message, self.json),
            // whoever read the output has seen enough
            Err(Failure::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            Err(Failure::Output(error)) => {
                fail(Code::Internal, &format!("the output can't be written: {error}"), self.json)
            }
            Err(Failure::NoRow(message)) => {
                if self.json {
                    eprintln!("{}", serde_json::json!({ "error": { "code": "unknown-row", "message": message } }));
                } else {
                    eprintln!("canal: {message}");
                }
                ExitCode::from(NO_ROW)
            }
        }
    }

    fn place(&self, env: &dyn Fn(&str) -> Option<String>) -> Result<Place, Error> {
        let env_of = |name: &str| env(name).filter(|text| !text.is_empty());
        // a directory named on the command line beats an address from the environment
        let named = self.peer.clone().or_else(|| self.data.is_none().then(|| env_of("CANAL_PEER")).flatten());
        let said = self.data.clone().or_else(|| env_of("CANAL_DATA").map(PathBuf::from));
        let dir = said.clone().unwrap_or_else(|| default_data(env));
        let contact = match data::contact(&dir) {
            Err(error) if named.is_none() => return Err(invalid(format!("{error:#}"))),
            other => other.ok().flatten(),
        };
        let mesh = self.mesh.clone().or_else(|| env_of("CANAL_MESH"));
        let mesh = mesh.or_else(|| contact.as_ref().map(|contact| contact.mesh.clone()));
        let addresses = match (named, contact) {
            (Some(address), _) => vec![address],
            (None, Some(contact)) => {
                contact.addresses.iter().map(|address| format!("{address}/p2p/{}", contact.peer)).collect()
            }
            (None, None) if said.is_some() => {
                let message = format!(
                    "no peer has run on the data directory {0}: start one with `canal start --data {0}`, or say where \
                     one is with --peer HOST:PORT",
                    dir.display()
                );
                return Err(Error::new(Code::Unreachable, message));
            }
            (None, None) => vec![format!("127.0.0.1:{DEFAULT_PORT}")],
        };
        Ok(Place { addresses, mesh: mesh.unwrap_or_else(|| "canal".to_owned()) })
    }

    async fn connect(&self, place: Place) -> Result<Client, Error> {
        let mut addresses = place.addresses.into_iter();
        let first = addresses.next().unwrap_or_default();
        let options = Options {
            mesh: place.mesh.clone(),
            deadline: self.timeout,
            addresses: addresses.collect(),
            ..Options::default()
        };
        let too_late = tokio::time::sleep(self.timeout);
        let connected = tokio::select! {
            biased;
            () = too_late => Err(Error::new(Code::Unreachable, "no answer within the deadline")),
            connected = Client::connect(&first, options) => connected,
        };
        connected.map_err(|error| explained(error, &first, &place.mesh))
    }
}

/// Says what to do about a peer that can't be talked to.
fn explained(error: Error, address: &str, mesh: &str) -> Error {
    let message = match error.code {
        Code::Unreachable => format!(
            "no peer can be reached at {address} ({}): start one with `canal start`, or say where one is with --peer \
             HOST:PORT",
            error.message
        ),
        Code::Incompatible => {
            format!("{}; this asked for mesh `{mesh}`, name another with --mesh", error.message)
        }
        _ => return error,
    };
    Error::new(error.code, message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    fn flags() -> Connect {
        Connect { peer: None, mesh: None, data: None, timeout: Duration::from_secs(10), json: false }
    }

    fn place(addresses: &[&str], mesh: &str) -> Place {
        Place { addresses: addresses.iter().map(|text| (*text).to_owned()).collect(), mesh: mesh.to_owned() }
    }

    #[test]
    fn a_flag_beats_the_environment_beats_the_data_directory_beats_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap().to_owned();
        let bare = |name: &str| (name == "HOME").then(|| home.clone());
        assert_eq!(flags().place(&bare).unwrap(), place(&["127.0.0.1:4040"], "canal"));

        let data = dir.path().join(".local/share/canal");
        std::fs::create_dir_all(&data).unwrap();
        let contact = r#"{ "peer": "P", "mesh": "m", "addresses": ["/ip4/10.0.0.1/udp/7/quic-v1"] }"#;
        std::fs::write(data.join("peer.json"), contact).unwrap();
        let local = place(&["/ip4/10.0.0.1/udp/7/quic-v1/p2p/P"], "m");
        assert_eq!(flags().place(&bare).unwrap(), local);

        let env = |name: &str| match name {
            "CANAL_PEER" => Some("e:1".to_owned()),
            "CANAL_MESH" => Some("n".to_owned()),
            other => bare(other),
        };
        assert_eq!(flags().place(&env).unwrap(), place(&["e:1"], "n"));
        let with_peer = Connect { peer: Some("f:2".into()), mesh: Some("o".into()), ..flags() };
        assert_eq!(with_peer.place(&env).unwrap(), place(&["f:2"], "o"));
        let with_data = Connect { data: Some(data), ..flags() };
        assert_eq!(with_data.place(&env).unwrap(), Place { mesh: "n".into(), ..local });
    }

    #[test]
    fn a_directory_that_was_named_must_have_a_peer() {
        let dir = tempfile::tempdir().unwrap();
        let named = Connect { data: Some(dir.path().to_owned()), ..flags() };
        let error = named.place(&|_| None).unwrap_err();
        assert_eq!(error.code, Code::Unreachable);
        assert!(error.message.starts_with("no peer has run on the data directory "), "{error}");
        std::fs::write(dir.path().join("peer.json"), "{").unwrap();
        let error = named.place(&|_| None).unwrap_err();
        assert_eq!(error.code, Code::InvalidArgument);
        assert!(error.message.contains("peer.json is damaged"), "{error}");
    }

    #[test]
    fn a_deadline_is_a_number_of_seconds() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["0", "-1", "NaN", "inf", "1e9", "soon"] {
            assert_eq!(seconds(text), Err("give a number of seconds above 0, at most 86400".to_owned()), "{text}");
        }
    }

    #[test]
    fn what_can_not_be_reached_says_what_to_do() {
        let error = explained(Error::new(Code::Unreachable, "why"), "a:1", "m");
        assert_eq!(
            error.message,
            "no peer can be reached at a:1 (why): start one with `canal start`, or say where one is with --peer \
             HOST:PORT"
        );
        let error = explained(Error::new(Code::Incompatible, "why"), "a:1", "m");
        assert_eq!(error.message, "why; this asked for mesh `m`, name another with --mesh");
    }
}
