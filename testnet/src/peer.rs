//! One peer: a process, its data directory and its log.
//!
//! A signal only ever goes to a process that this program started and has not reaped, so a number that the system
//! gave away again is never hit. The peer holds the read end of a pipe as its standard input and ends when the pipe
//! does: if this program is killed, its peers go too.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use canal_proto::request::PeerStatus;
use canal_sdk::{Client, PeerId};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::{OnceCell, oneshot};

use crate::Error;
use crate::emulated::{Network, Space};
use crate::faults::{Control, Faults, Made, Shim};
use crate::scenario::PeerSpec;
use crate::wait::until;

/// Until a peer says that it is up: a debug build on a busy machine that replays a log.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// For a peer to say how it stands: a peer that is up does so in milliseconds, one that is stopped never.
const STATUS_DEADLINE: Duration = Duration::from_secs(3);
/// Bytes of a log's end that an error shows.
const TAIL: usize = 2000;

/// What a peer prints when it is up.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Started {
    pub(crate) event: String,
    pub(crate) peer: String,
    pub(crate) addresses: Vec<String>,
}

/// How the processes of a testnet are started.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    pub(crate) executable: PathBuf,
    pub(crate) mesh: String,
    pub(crate) log: String,
    pub(crate) arguments: Vec<String>,
    pub(crate) network: Option<Network>,
    /// What makes faults in them.
    pub(crate) shim: Option<Shim>,
}

/// One peer of a testnet.
pub struct Peer {
    number: usize,
    spec: PeerSpec,
    launch: Launch,
    data: PathBuf,
    log: PathBuf,
    state: Mutex<State>,
    /// Where its process lives on an emulated network, over all its restarts.
    space: OnceLock<Space>,
    /// What it is told to do wrong, over all its restarts.
    control: OnceLock<Control>,
    /// Knows no other peer: what it is told, this one has said.
    own: OnceCell<Client>,
}

#[derive(Default)]
struct State {
    child: Option<Child>,
    /// The child has said that it is up.
    up: bool,
    started: Option<Started>,
}

impl Peer {
    pub(crate) fn new(number: usize, spec: PeerSpec, launch: Launch, dir: &Path) -> Self {
        let data = dir.join(format!("peer-{number}"));
        let log = dir.join(format!("peer-{number}.log"));
        Self {
            number,
            spec,
            launch,
            data,
            log,
            state: Mutex::default(),
            space: OnceLock::new(),
            control: OnceLock::new(),
            own: OnceCell::new(),
        }
    }

    /// Its number, from 0.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Its tier, site and labels.
    pub fn spec(&self) -> &PeerSpec {
        &self.spec
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Where its log is collected, over all its restarts.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// What it has logged so far.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn logs(&self) -> Result<String, Error> {
        let bytes = std::fs::read(&self.log).map_err(Error::io(format!("reading {}", self.log.display())))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The multiaddress at which it was last up, without its id.
    ///
    /// # Errors
    /// [`Error::NotRunning`] when it never was.
    pub fn address(&self) -> Result<String, Error> {
        let address = self.state.lock().started.as_ref().and_then(|started| started.addresses.first().cloned());
        address.ok_or(Error::NotRunning(self.number))
    }

    /// Its peer id.
    ///
    /// # Errors
    /// [`Error::NotRunning`] when it was never up.
    pub fn id(&self) -> Result<PeerId, Error> {
        let text = self.state.lock().started.as_ref().map(|started| started.peer.clone());
        text.and_then(|text| text.parse().ok()).ok_or(Error::NotRunning(self.number))
    }

    /// The process's number, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.state.lock().child.as_ref().map(Child::id)
    }

    /// A client that enters the mesh at this peer.
    ///
    /// # Errors
    /// Those of [`Client::connect`].
    pub async fn client(&self) -> Result<Client, Error> {
        self.client_with(canal_sdk::Options::default()).await
    }

    /// The same with options; the mesh's name is set here.
    ///
    /// # Errors
    /// Those of [`Client::connect`].
    pub async fn client_with(&self, options: canal_sdk::Options) -> Result<Client, Error> {
        let options = canal_sdk::Options { mesh: self.launch.mesh.clone(), ..options };
        Ok(Client::connect(&self.address()?, options).await?)
    }

    /// How this peer stands, as it says itself.
    ///
    /// # Errors
    /// When it does not answer soon.
    pub async fn status(&self) -> Result<PeerStatus, Error> {
        let options = canal_sdk::Options { deadline: STATUS_DEADLINE, ..canal_sdk::Options::default() };
        let client = self.own.get_or_try_init(|| self.client_with(options)).await?;
        Ok(tokio::time::timeout(STATUS_DEADLINE, client.peer_status())
            .await
            .map_err(|_| Error::NotRunning(self.number))??)
    }

    /// Starts the process and waits until it is up. It keeps its data, its id and its address.
    ///
    /// # Errors
    /// [`Error::NotStarted`] with the end of its log.
    pub(crate) async fn start(&self, join: &[String]) -> Result<(), Error> {
        let up = self.spawn(join)?;
        let why = match tokio::time::timeout(START_DEADLINE, up).await {
            Ok(Ok(started)) => {
                let mut state = self.state.lock();
                state.started = Some(started);
                state.up = true;
                return Ok(());
            }
            Ok(Err(_)) => "it ended, or closed its output, before it was up".to_owned(),
            Err(_) => format!("it said nothing for {} s", START_DEADLINE.as_secs()),
        };
        self.kill()?;
        Err(Error::NotStarted { peer: self.number, why, log: self.log.clone(), tail: self.tail() })
    }

    fn spawn(&self, join: &[String]) -> Result<oneshot::Receiver<Started>, Error> {
        let mut state = self.state.lock();
        if let Some(child) = &mut state.child {
            if child.try_wait().map_err(Error::io("looking after a peer"))?.is_none() {
                return Err(Error::Scenario(format!("peer {} runs already: end it first", self.number)));
            }
            state.child = None;
        }
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.map_err(Error::io(format!("opening {}", self.log.display())))?;
        let mut command = Command::new(&self.launch.executable);
        let space = self.space()?;
        let listen = space.map_or("127.0.0.1:0".to_owned(), |space| format!("{}:0", space.address()));
        command.args(self.arguments(&listen, join)).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        // what a person has set for their own peer is not meant for these
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CANAL_")) {
            command.env_remove(name);
        }
        command.env("CANAL_LOG", &self.launch.log);
        if let Some(control) = self.control()? {
            control.preload(&mut command);
        }
        let what = format!("starting {}", self.launch.executable.display());
        let started = match space {
            Some(space) => space.spawn(command),
            None => command.spawn(),
        };
        let mut child = started.map_err(Error::io(what))?;
        let (up, waits) = oneshot::channel();
        if let Some(stdout) = child.stdout.take() {
            // ends with the process, whose output it reads
            std::thread::spawn(move || read_output(stdout, up));
        }
        state.child = Some(child);
        state.up = false;
        Ok(waits)
    }

    /// Its place on the emulated network, if there is one.
    fn space(&self) -> Result<Option<&Space>, Error> {
        let Some(network) = &self.launch.network else { return Ok(None) };
        if let Some(space) = self.space.get() {
            return Ok(Some(space));
        }
        // the caller holds the lock on the state, so nobody makes another meanwhile
        let space = network.space(self.number).map_err(Error::io("making a network namespace"))?;
        Ok(Some(self.space.get_or_init(|| space)))
    }

    /// The page that tells it what to do wrong, if there is one. Under the lock on the state.
    fn control(&self) -> Result<Option<&Control>, Error> {
        let Some(shim) = &self.launch.shim else { return Ok(None) };
        if let Some(control) = self.control.get() {
            return Ok(Some(control));
        }
        let page = self.data.with_extension("faults");
        let control = Control::new(shim, page, self.data.clone()).map_err(Error::io("making a page of faults"))?;
        Ok(Some(self.control.get_or_init(|| control)))
    }

    fn arguments(&self, listen: &str, join: &[String]) -> Vec<OsString> {
        let mut arguments: Vec<OsString> =
            ["canal", "start", "--json", "--no-mdns", "--exit-with-stdin", "--listen", listen].map(Into::into).into();
        arguments.extend(self.launch.arguments.iter().map(OsString::from));
        let mut push = |flag: &str, value: OsString| arguments.extend([flag.into(), value]);
        push("--data", self.data.clone().into());
        push("--mesh", self.launch.mesh.clone().into());
        push("--tier", self.spec.tier.clone().into());
        push("--site", self.spec.site.clone().into());
        for (key, value) in &self.spec.labels {
            push("--label", format!("{key}={value}").into());
        }
        for address in join {
            push("--join", address.into());
        }
        arguments
    }

    /// Kills the process (SIGKILL), also when it is stopped. Returns when it is gone. Without effect when it does
    /// not run.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&self) -> Result<(), Error> {
        let mut state = self.state.lock();
        if let Some(mut child) = state.child.take() {
            child.kill().map_err(Error::io("killing a peer"))?;
            child.wait().map_err(Error::io("waiting for a killed peer"))?;
        }
        Ok(())
    }

    /// Asks the process to drain and end (SIGTERM), and returns how it ended.
    ///
    /// # Errors
    /// [`Error::TooLate`] when it still runs after the deadline; [`Error::NotRunning`].
    pub async fn terminate(&self, deadline: Duration) -> Result<ExitStatus, Error> {
        self.signal(Signal::SIGTERM)?;
        self.ended(deadline).await
    }

    /// Waits until the process has ended, and returns how.
    ///
    /// # Errors
    /// [`Error::TooLate`]; [`Error::NotRunning`].
    pub async fn ended(&self, deadline: Duration) -> Result<ExitStatus, Error> {
        let what = format!("the end of peer {}", self.number);
        let ended = until(&what, deadline, async || {
            let mut state = self.state.lock();
            let Some(child) = &mut state.child else {
                return Ok(None);
            };
            match child.try_wait() {
                Ok(Some(status)) => {
                    state.child = None;
                    Ok(Some(status))
                }
                Ok(None) => Err("it still runs".into()),
                Err(error) => Err(error.to_string()),
            }
        });
        ended.await?.ok_or(Error::NotRunning(self.number))
    }

    /// Stops the process (SIGSTOP): it keeps its place and says nothing.
    ///
    /// # Errors
    /// [`Error::NotRunning`].
    pub fn stop(&self) -> Result<(), Error> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets a stopped process go on (SIGCONT).
    ///
    /// # Errors
    /// [`Error::NotRunning`].
    pub fn cont(&self) -> Result<(), Error> {
        self.signal(Signal::SIGCONT)
    }

    /// What goes wrong in it from now on, also after a restart, until something else is said. [`Faults::default`] ends
    /// all of it.
    ///
    /// # Errors
    /// [`Error::NoFaults`] when the testnet was not started for it ([`Options::faults`](crate::Options)), or the process
    /// runs without what makes faults (it is linked statically, for example).
    pub fn faults(&self, faults: &Faults) -> Result<(), Error> {
        let state = self.state.lock();
        let control = self.control()?.ok_or_else(no_shim)?;
        if let Some(child) = &state.child
            && state.up
            && !control.used_by(child.id()).map_err(Error::io("reading a page of faults"))?
        {
            return Err(Error::NoFaults(format!("peer {} has not loaded the library for it", self.number)));
        }
        control.set(faults).map_err(Error::io("writing a page of faults"))
    }

    /// How often something was done wrong in it so far, over all its restarts.
    ///
    /// # Errors
    /// As [`Peer::faults`].
    pub fn faults_made(&self) -> Result<Made, Error> {
        let _state = self.state.lock();
        self.control()?.ok_or_else(no_shim)?.made().map_err(Error::io("reading a page of faults"))
    }

    /// Whether the process runs (or is stopped).
    pub fn is_running(&self) -> bool {
        let mut state = self.state.lock();
        state.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    fn signal(&self, signal: Signal) -> Result<(), Error> {
        let mut state = self.state.lock();
        // under the lock and not reaped yet: the number is still ours
        let child = state.child.as_mut().ok_or(Error::NotRunning(self.number))?;
        if !matches!(child.try_wait(), Ok(None)) {
            return Err(Error::NotRunning(self.number));
        }
        let pid = i32::try_from(child.id()).map_err(|_| Error::NotRunning(self.number))?;
        nix::sys::signal::kill(Pid::from_raw(pid), signal)
            .map_err(|errno| Error::io(format!("sending {signal} to a peer"))(errno.into()))
    }

    /// Sends SIGKILL without waiting: so that many peers can end at the same time.
    pub(crate) fn begin_kill(&self) {
        if let Some(child) = &mut self.state.lock().child
            && let Err(error) = child.kill()
        {
            tracing::warn!(peer = self.number, %error, "could not be killed");
        }
    }

    fn tail(&self) -> String {
        let log = self.logs().unwrap_or_else(|error| error.to_string());
        let start = log.len().saturating_sub(TAIL);
        let start = (start..log.len()).find(|at| log.is_char_boundary(*at)).unwrap_or(log.len());
        log.get(start..).unwrap_or_default().to_owned()
    }
}

fn no_shim() -> Error {
    Error::NoFaults("this testnet was not started for it, or can't make any (its warning says why)".into())
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            tracing::warn!(peer = self.number, %error, "could not be ended");
        }
    }
}

fn read_output(output: impl std::io::Read, up: oneshot::Sender<Started>) {
    let mut up = Some(up);
    // everything after the first line is read so that the peer never waits for us
    for line in BufReader::new(output).lines() {
        let Ok(line) = line else { return };
        let started = serde_json::from_str::<Started>(&line).ok().filter(|started| started.event == "started");
        if let Some(started) = started
            && let Some(up) = up.take()
        {
            // nobody waits any more: the deadline has passed
            drop(up.send(started));
        }
    }
}
