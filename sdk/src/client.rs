//! A client: asks the right peer, wherever it is, until the deadline.
//!
//! It learns who leads from answers and redirects, remembers it, and tries other replicas when a peer is gone or
//! silent. What can't double is asked again by itself; a write to function state, which could, is asked again only
//! where the first try certainly had no effect.

use std::sync::Arc;
use std::time::Duration;

use canal_proto::request::{Answer, Ask, Resolve, Route};
use canal_proto::{Code, GroupId, MeshId, TopicName, route};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::Error;
use crate::connection::{Connection, Opening};
use crate::pool::{Place, Pool};
use crate::routes::Routes;
use crate::transport::Transport;
use crate::transport::libp2p::Libp2p;

mod call;
mod search;

pub(crate) use call::Answered;

/// How a client behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the mesh.
    pub mesh: String,
    /// Namespace of all names.
    pub namespace: String,
    /// How long a call may take before it ends with [`Code::NoQuorum`] or [`Code::Unreachable`].
    pub deadline: Duration,
    /// More addresses at which the mesh can be entered, beside the one given.
    pub addresses: Vec<String>,
    /// Set by a peer that asks another peer.
    pub between_peers: Option<BetweenPeers>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mesh: "canal".into(),
            namespace: "default".into(),
            deadline: Duration::from_secs(10),
            addresses: Vec::new(),
            between_peers: None,
        }
    }
}

/// What a peer says of itself to other peers.
#[derive(Debug, Clone)]
pub struct BetweenPeers {
    /// Its mesh; none when it has yet to join.
    pub mesh: Option<MeshId>,
    /// Where it can be reached.
    pub addresses: Vec<String>,
}

/// Who is to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Any peer of the mesh.
    Any,
    /// The group of the topic with this name.
    Topic(String),
    /// This group.
    Group(GroupId),
    /// The namespace's catalog.
    Catalog,
}

impl Target {
    /// The name under which it is routed.
    fn route_name(&self) -> Option<String> {
        match self {
            Self::Any => None,
            Self::Topic(name) => Some(name.clone()),
            Self::Group(group) => Some(route::group_name(*group)),
            Self::Catalog => Some(route::CATALOG.to_owned()),
        }
    }
}

/// A handle to the mesh. Clones share everything.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    options: Options,
    bootstrap: Vec<String>,
    pool: Pool,
    routes: Routes,
}

impl Client {
    /// Connects to the mesh by a peer at this address: a multiaddress or `host:port`.
    ///
    /// # Errors
    /// `Unreachable`, `Incompatible` (another mesh or version), `InvalidArgument` (no address).
    pub async fn connect(address: &str, options: Options) -> Result<Self, Error> {
        let transport = Arc::new(Libp2p::new()?);
        let client = Self::with_transport(transport, vec![address.to_owned()], options);
        client.ready().await?;
        Ok(client)
    }

    /// A client over another transport; it connects when it has something to ask.
    pub fn with_transport(transport: Arc<dyn Transport>, addresses: Vec<String>, options: Options) -> Self {
        let (mesh, namespace) = (options.mesh.clone(), options.namespace.clone());
        let opening = match &options.between_peers {
            None => Opening::client(mesh, namespace),
            Some(us) => Opening::peer(mesh, namespace, us.mesh, us.addresses.clone()),
        };
        let bootstrap = addresses.into_iter().chain(options.addresses.iter().cloned()).collect();
        let pool = Pool::new(transport, opening);
        Self(Arc::new(Inner { options, bootstrap, pool, routes: Routes::default() }))
    }

    /// How this client behaves.
    pub fn options(&self) -> &Options {
        &self.0.options
    }

    /// Waits until a peer of the mesh can be talked to, and returns that conversation: with the first address that
    /// was given and answers.
    ///
    /// # Errors
    /// `Unreachable`, `Incompatible`.
    pub async fn ready(&self) -> Result<Connection, Error> {
        let mut problem = Error::new(Code::InvalidArgument, "no address was given: write host:port or a multiaddress");
        let give_up = Instant::now() + self.0.options.deadline;
        for place in self.0.bootstrap.iter().map(|address| Place::address(address)) {
            match tokio::time::timeout_at(give_up, self.0.pool.connect(&place)).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => problem = error,
                Err(_) => {
                    problem = Error::unreachable("no peer has answered within the deadline");
                    break;
                }
            }
        }
        Err(problem)
    }

    /// Asks, and waits for the answer until the client's deadline.
    ///
    /// # Errors
    /// What the peers answer; `NoQuorum` when some peer answered until the deadline, but none that could decide;
    /// `Unreachable` when none did.
    pub async fn call(&self, target: Target, ask: Ask) -> Result<Answer, Error> {
        self.call_until(target, ask, Instant::now() + self.0.options.deadline).await.map(|answered| answered.answer)
    }

    /// Where a name lives: a topic, [`route::CATALOG`] or a [`route::group_name`]. `fresh` asks the DHT again,
    /// whatever is cached.
    ///
    /// # Errors
    /// `UnknownTopic`, `UnknownGroup`; those of [`Client::call`].
    pub async fn resolve(&self, name: &str, fresh: bool) -> Result<Route, Error> {
        self.resolve_until(name.to_owned(), fresh, Instant::now() + self.0.options.deadline).await
    }

    pub(crate) async fn call_until(&self, target: Target, ask: Ask, deadline: Instant) -> Result<Answered, Error> {
        call::Call::new(self, target, ask, deadline).run().await
    }

    // boxed: a call resolves, and to resolve is a call
    pub(crate) fn resolve_until(
        &self,
        name: String,
        fresh: bool,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Route, Error>> {
        let client = self.clone();
        async move {
            if !name.starts_with('$') {
                name.parse::<TopicName>()?;
            }
            let mut fresh = fresh;
            loop {
                let ask = Ask::Resolve(Resolve { name: name.clone(), fresh, ..Resolve::default() });
                let error = match client.call_until(Target::Any, ask, deadline).await {
                    Ok(Answered { answer: Answer::Route(route), .. }) => {
                        client.0.routes.put(&name, route.clone());
                        return Ok(route);
                    }
                    Ok(_) => Error::unexpected("a resolve"),
                    Err(error) => error,
                };
                // what was created a moment ago may be missing in a cache
                if fresh || !matches!(error.code, Code::UnknownTopic | Code::UnknownGroup) {
                    return Err(error);
                }
                fresh = true;
            }
        }
        .boxed()
    }

    /// The cached route, or a new one.
    pub(crate) async fn route_until(&self, name: &str, deadline: Instant) -> Result<Route, Error> {
        match self.0.routes.get(name) {
            Some(route) => Ok(route),
            None => self.resolve_until(name.to_owned(), false, deadline).await,
        }
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.0.pool
    }

    pub(crate) fn routes(&self) -> &Routes {
        &self.0.routes
    }

    /// The peers by which the mesh was to be entered, in the order in which they were given.
    pub(crate) fn entries(&self) -> Vec<Place> {
        let place = |address: &String| {
            let place = Place::address(address);
            Place { peer: self.0.pool.peer_at(&place), ..place }
        };
        self.0.bootstrap.iter().map(place).collect()
    }

    /// Where any peer may be found: those that are connected, those that were named, those that were heard of.
    fn anywhere(&self) -> Vec<Place> {
        let connected = self.0.pool.connected().into_iter().map(|connection| Place {
            peer: Some(connection.peer()),
            addresses: connection.welcome().addresses.clone(),
        });
        connected
            .chain(self.0.bootstrap.iter().map(|address| Place::address(address)))
            .chain(self.0.routes.met())
            .collect()
    }
}
