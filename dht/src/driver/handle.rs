//! What callers hold of the DHT.

use bytes::Bytes;
use canal_proto::request::Route;
use canal_proto::route::{self, SignedRoute};
use prost::Message;
use tokio::sync::{mpsc, oneshot};

use super::{Error, Kind, Published};
use crate::core::cache::route_of;
use crate::core::record::Verified;
use crate::routes::Routes;

/// A lookup, and where its answer goes.
#[derive(Debug)]
pub(super) struct LookupAsk {
    pub mesh: canal_proto::MeshId,
    pub key: [u8; 32],
    pub reply: oneshot::Sender<Result<Verified, Error>>,
}

/// A publication, and where its answer goes.
#[derive(Debug)]
pub(super) struct PublishAsk {
    pub bytes: Bytes,
    pub reply: oneshot::Sender<Result<Published, Error>>,
}

/// Asks the [`Driver`](super::Driver). Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    commands: mpsc::Sender<Kind>,
    routes: Routes,
}

impl Handle {
    pub(super) fn new(commands: mpsc::Sender<Kind>, routes: Routes) -> Self {
        Self { commands, routes }
    }

    /// Where a name lives. What is known here is answered at once; `fresh` asks the DHT in any case.
    ///
    /// The route's `source` is `local` (this peer stores the record), `cache` or `dht`.
    pub async fn lookup(&self, namespace: &str, name: &str, fresh: bool) -> Result<Route, Error> {
        if !fresh && let Some(route) = self.routes.known(namespace, name) {
            return Ok(route);
        }
        self.find(namespace, name).await.map(|found| route_of(&found, "dht"))
    }

    /// The newest record of a name that the DHT has. It is remembered for [`Handle::lookup`].
    ///
    /// Lookups for one name that run at the same time share one query. Beside [`Error::NotFound`] and
    /// [`Error::Timeout`] it may be [`Error::Busy`] or [`Error::NoMesh`].
    pub async fn find(&self, namespace: &str, name: &str) -> Result<Verified, Error> {
        let mesh = self.routes.mesh().ok_or(Error::NoMesh)?;
        let key = route::key(mesh, namespace, name);
        let (reply, answer) = oneshot::channel();
        self.send(Kind::Lookup(LookupAsk { mesh, key, reply }))?;
        answer.await.unwrap_or(Err(Error::Stopped))
    }

    /// Stores a record here and at the peers that are closest to its key.
    ///
    /// [`Error::Refused`] says that this peer's own table has a newer one, or that it is not valid.
    /// It is stored here before anybody else is asked, so that a mesh of one peer works. Ends at the latest 5 s
    /// after it was begun; [`Error::Busy`] says that too many wait to begin.
    pub async fn publish(&self, record: &SignedRoute) -> Result<Published, Error> {
        let (reply, answer) = oneshot::channel();
        self.send(Kind::Publish(PublishAsk { bytes: record.encode_to_vec().into(), reply }))?;
        answer.await.unwrap_or(Err(Error::Stopped))
    }

    /// What this peer knows of routes: corrections by redirects go there, and counters are read there.
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// How many more commands may wait.
    #[cfg(test)]
    pub(super) fn room(&self) -> usize {
        self.commands.capacity()
    }

    fn send(&self, command: Kind) -> Result<(), Error> {
        self.commands.try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Error::Busy,
            mpsc::error::TrySendError::Closed(_) => Error::Stopped,
        })
    }
}
