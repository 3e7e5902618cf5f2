//! Brings a function into the mesh: its component piece by piece, then its name.

use bytes::Bytes;
use canal_proto::catalog::{BlobChunk, Change, FunctionInfo};
use canal_proto::limits::{BLOB_CHUNK, MAX_COMPONENT};
use canal_proto::log::FunctionLimits;
use canal_proto::{Code, ContentHash};

use crate::Error;
use crate::client::Client;

impl Client {
    /// Deploys a component under a name; a function that has the name runs the new component from then on. Asking
    /// again after an error is safe: pieces are named by the hash of the whole.
    ///
    /// # Errors
    /// `BadComponent`, `TooLarge`, `InvalidArgument` for the name; those of [`Client::call`].
    pub async fn deploy(
        &self,
        name: &str,
        component: impl Into<Bytes>,
        limits: FunctionLimits,
    ) -> Result<FunctionInfo, Error> {
        canal_proto::name::check_plain(name)?;
        let component = component.into();
        if component.is_empty() {
            return Err(Error::new(Code::BadComponent, "the component is empty: give the bytes of a .wasm file"));
        }
        if component.len() > MAX_COMPONENT {
            let message = format!("the component has {} bytes; at most {MAX_COMPONENT} are allowed", component.len());
            return Err(Error::new(Code::TooLarge, message));
        }
        let hash = Bytes::from(ContentHash::of(&component).to_vec());
        if !self.functions().await?.iter().any(|function| function.component == hash) {
            self.upload(&hash, &component).await?;
        }
        let size = component.len() as u64;
        let info = FunctionInfo { name: name.into(), component: hash, size, limits, deployed_ms: 0 };
        let reply = self.change(Change::Deploy(info)).await?;
        reply.function.ok_or_else(|| Error::unexpected("a deployment"))
    }

    async fn upload(&self, hash: &Bytes, component: &Bytes) -> Result<(), Error> {
        let starts = (0..component.len()).step_by(BLOB_CHUNK);
        for (number, start) in (0..).zip(starts) {
            let data = component.slice(start..component.len().min(start + BLOB_CHUNK));
            self.change(Change::PutChunk(BlobChunk { hash: hash.clone(), number, data })).await?;
        }
        Ok(())
    }
}
