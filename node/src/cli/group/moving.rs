//! `canal group move`: names the peers that should hold a group's replicas, or takes that back.

use std::collections::BTreeSet;
use std::process::ExitCode;

use canal_proto::catalog::{Change, Placement, SetGroup};
use canal_proto::{Code, PeerId, route};
use canal_sdk::{Client, Error};
use clap::Args;
use serde_json::json;

use super::find;
use crate::cli::connect::{Connect, Outcome};
use crate::cli::print::Out;

/// Flags of `canal group move`.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("where").required(true).args(["to", "free"])))]
pub struct Move {
    /// Name or id of the group
    #[arg(value_name = "NAME|ID")]
    group: String,
    /// Peers that come before all others, while they are there
    #[arg(long, value_name = "PEER,…", value_delimiter = ',')]
    to: Vec<PeerId>,
    /// No peer comes before another any more: the mesh places the replicas
    #[arg(long)]
    free: bool,
    #[command(flatten)]
    connect: Connect,
}

/// Runs it. It ends when the wish is committed; the leader of the group does the rest, step by step.
pub fn run(args: Move) -> ExitCode {
    let Move { group, to, connect, .. } = args;
    connect.run(async |client, out| set(client, out, &group, to.into_iter().collect()).await)
}

async fn set(client: Client, out: Out, text: &str, pinned: BTreeSet<PeerId>) -> Outcome {
    let (id, name) = find(&client, text).await?;
    let groups = client.catalog("", &["groups"], true).await?.groups;
    let Some(group) = groups.into_iter().find(|group| group.id == id.0) else {
        let message = match name.as_str() {
            route::CATALOG => "the catalog's own group is placed by the mesh; drain a peer to move it away".to_owned(),
            _ => format!("no group `{text}`; see `canal group ls`"),
        };
        return Err(Error::new(Code::UnknownGroup, message).into());
    };
    let wanted = usize::try_from(group.replicas).unwrap_or(usize::MAX);
    if pinned.len() > wanted {
        let message = format!(
            "group `{name}` wants {wanted} replicas and can't be moved to {} peers; raise the number first, with \
             `canal topic set --replicas`",
            pinned.len()
        );
        return Err(Error::new(Code::InvalidArgument, message).into());
    }
    let placement = Placement {
        pinned: pinned.iter().map(|peer| peer.to_vec().into()).collect(),
        ..group.placement.unwrap_or_default()
    };
    client.change(Change::SetGroup(SetGroup { group: id.0, replicas: 0, placement: Some(placement) })).await?;
    let peers: Vec<String> = pinned.iter().map(PeerId::to_string).collect();
    Ok(out.show(
        || json!({ "group": id.to_string(), "name": name, "pinned": peers }),
        || match peers.is_empty() {
            true => format!("group `{name}` goes where the mesh places it; see `canal group info {name}`"),
            false => format!("group `{name}` moves to {}; see `canal group info {name}`", peers.join(", ")),
        },
    )?)
}
