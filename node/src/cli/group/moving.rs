//! `canal group move`: names the peers that should hold a group's replicas, or takes that back.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use canal_proto::catalog::{Change, Placement, SetGroup};
use canal_proto::limits::MAX_KNOWN_PEERS;
use canal_proto::peer::PeerInfo;
use canal_proto::{Code, PeerId, route};
use canal_sdk::{Client, Error};
use clap::Args;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::find;
use crate::cli::connect::{Connect, Outcome};
use crate::cli::print::{Out, span};

/// How often the asked peer is asked for one that it does not know, and for how long.
const LOOK: Duration = Duration::from_millis(250);
const KNOWN: Duration = Duration::from_secs(3);

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

/// Peers that can be moved to are known; what keeps one of them from taking a replica now.
///
/// # Errors
/// `InvalidArgument` when one is unknown; those of asking a peer.
async fn known(client: &Client, pinned: &BTreeSet<PeerId>) -> Result<Vec<String>, Error> {
    let end = Instant::now() + KNOWN;
    loop {
        let peers = client.peers().await?;
        match judge(&peers, pinned) {
            // one that has just come, or is asked just after its start, takes a moment to be known
            Err(_) if Instant::now() < end => sleep(LOOK).await,
            judged => return judged,
        }
    }
}

fn judge(peers: &[PeerInfo], pinned: &BTreeSet<PeerId>) -> Result<Vec<String>, Error> {
    let mut doubts = Vec::new();
    for peer in pinned {
        match peers.iter().find(|info| info.peer == peer.to_vec()) {
            Some(info) if info.draining => {
                doubts.push(format!("peer {peer} is being emptied, and takes nothing until `canal peer drain --undo`"));
            }
            Some(info) if info.heard_ms_ago >= canal_topology::known::LOST_MS => {
                let silent = span(info.heard_ms_ago.saturating_mul(1000));
                doubts.push(format!("peer {peer} has not been heard of for {silent}: the group moves when it is back"));
            }
            Some(_) => {}
            // in a larger mesh, nobody knows all
            None if peers.len() >= MAX_KNOWN_PEERS => {
                doubts.push(format!("peer {peer} is not among those that the asked peer knows of"));
            }
            None => {
                let message = format!(
                    "no peer {peer} is known: `canal peer ls` lists those that are; nothing was moved. One that is to \
                     come has to be started first"
                );
                return Err(Error::new(Code::InvalidArgument, message));
            }
        }
    }
    Ok(doubts)
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
    for doubt in known(&client, &pinned).await? {
        out.note(|| json!({ "warning": doubt }), || format!("canal: {doubt}"));
    }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn a_peer_that_nobody_knows_is_refused_and_one_that_can_not_is_said() {
        let id = |n: u8| PeerId::from_public_key([n; 32]);
        let info = |n: u8| PeerInfo { peer: id(n).to_vec(), ..PeerInfo::default() };
        let peers = [info(1), PeerInfo { draining: true, ..info(2) }, PeerInfo { heard_ms_ago: 60_000, ..info(3) }];
        let judged = |named: &[u8]| judge(&peers, &named.iter().map(|n| id(*n)).collect());
        assert_eq!(judged(&[]).unwrap(), Vec::<String>::new());
        assert_eq!(judged(&[1]).unwrap(), Vec::<String>::new());
        let doubts = judged(&[1, 2, 3]).unwrap();
        assert_eq!(doubts.len(), 2, "{doubts:?}");
        assert!(
            doubts.iter().any(|doubt| doubt.starts_with(&format!("peer {} is being emptied", id(2)))),
            "{doubts:?}"
        );
        assert!(doubts.iter().any(|doubt| doubt.contains("has not been heard of for")), "{doubts:?}");
        let error = judged(&[1, 9]).unwrap_err();
        assert_eq!(error.code, Code::InvalidArgument);
        assert!(error.message.starts_with(&format!("no peer {} is known", id(9))), "{error}");
        // in a mesh where nobody knows all, it may be there
        let many = vec![info(1); MAX_KNOWN_PEERS];
        assert_eq!(judge(&many, &BTreeSet::from([id(9)])).unwrap().len(), 1);
    }
}
