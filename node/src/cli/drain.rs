//! `canal peer drain`: empties a peer and says how far it is, and what can't move and why.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use canal_proto::peer::PeerInfo;
use canal_proto::request::{GroupStatus, PeerStatus};
use canal_proto::{Code, GroupId};
use canal_sdk::{Client, Error};
use clap::Args;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::connect::{Connect, Outcome};
use super::peers::{id, role};
use super::print::Out;

/// How often the peer is asked what is left.
const LOOK: Duration = Duration::from_millis(500);
/// How often it must have said that nothing is left: a replica that was on its way to it may still come.
const EMPTY_LOOKS: u32 = 3;
/// How long there must be no other peer before that is taken for the end.
const ALONE: Duration = Duration::from_secs(5);

/// Flags of `canal peer drain`.
#[derive(Debug, Args)]
pub struct Drain {
    /// Give it up: the peer may hold replicas again
    #[arg(long, conflicts_with = "wait")]
    undo: bool,
    /// How long to wait until nothing is left; 0: not at all. The peer goes on in any case
    #[arg(long, value_name = "SECONDS", default_value = "600")]
    wait: u64,
    #[command(flatten)]
    connect: Connect,
}

/// Runs `canal peer drain`.
pub fn run(args: Drain) -> ExitCode {
    args.connect.run(async |client, out| {
        client.drain(!args.undo).await?;
        if args.undo {
            return Ok(out.show(|| json!({ "event": "undone" }), || "the peer is no longer being emptied".into())?);
        }
        if args.wait == 0 {
            return Ok(out.show(|| json!({ "event": "draining" }), || "the peer is being emptied".into())?);
        }
        watch(&client, out, Duration::from_secs(args.wait)).await
    })
}

/// Says what is left, until nothing is.
async fn watch(client: &Client, out: Out, wait: Duration) -> Outcome {
    let end = Instant::now() + wait;
    let mut last: BTreeMap<u64, (String, String)> = BTreeMap::new();
    let mut empty = 0;
    let mut alone: Option<Instant> = None;
    let mut newest: Option<PeerStatus> = None;
    loop {
        // it may be busy, or its leaders on the move
        let peers = match (client.peer_status().await, client.peers().await) {
            (Ok(status), Ok(peers)) => {
                newest = Some(status);
                peers
            }
            (Err(error), _) | (_, Err(error)) if Instant::now() >= end => return Err(error.into()),
            _ => Vec::new(),
        };
        let Some(status) = &newest else {
            sleep(LOOK).await;
            continue;
        };
        let now: BTreeMap<u64, (String, String)> =
            status.groups.iter().map(|group| (group.id, (group.name.clone(), how(group)))).collect();
        for (id, (name, _)) in last.iter().filter(|(id, _)| !now.contains_key(id)) {
            out.show(|| event("moved", *id, name, None), || format!("moved  {name}"))?;
        }
        for (id, (name, how)) in now.iter().filter(|(id, now)| last.get(id) != Some(now)) {
            out.show(|| event("left", *id, name, Some(how)), || format!("left   {name}: {how}"))?;
        }
        empty = if now.is_empty() { empty + 1 } else { 0 };
        if empty >= EMPTY_LOOKS {
            let text = || "empty: nothing is left on this peer, it can be switched off".to_owned();
            return Ok(out.show(|| json!({ "event": "empty" }), text)?);
        }
        last = now;
        let others = others(status, &peers);
        alone = (others == 0 && !peers.is_empty()).then(|| alone.unwrap_or_else(Instant::now));
        if !status.groups.is_empty() && (Instant::now() >= end || alone.is_some_and(|since| since.elapsed() >= ALONE)) {
            return Err(stuck(status, others).into());
        }
        sleep(LOOK).await;
    }
}

fn event(what: &str, id: u64, name: &str, how: Option<&str>) -> Value {
    let mut event = json!({ "event": what, "group": GroupId(id).to_string(), "group_name": name });
    if let (Some(how), Some(map)) = (how, event.as_object_mut()) {
        map.insert("how".into(), how.into());
    }
    event
}

/// How the peer's replica stands, for people.
fn how(group: &GroupStatus) -> String {
    let way = if group.under_way.is_empty() { String::new() } else { format!("; {}", group.under_way) };
    format!("{}, {} of {} replicas wanted{way}", role(group), group.replicas.len(), group.wanted)
}

/// Other peers that can take replicas.
fn others(status: &PeerStatus, peers: &[PeerInfo]) -> usize {
    let can = |info: &&PeerInfo| {
        info.peer != status.info.peer && !info.draining && info.heard_ms_ago < canal_topology::known::LOST_MS
    };
    peers.iter().filter(can).count()
}

/// Why a group is still here.
fn why(group: &GroupStatus, others: usize) -> String {
    if group.leader == 0 {
        "it has no leader: a majority of its replicas is out of reach".into()
    } else if others == 0 {
        "no other peer is there to take it".into()
    } else if group.under_way.is_empty() {
        "its leader has yet to move it; `canal group info` shows its steps".into()
    } else {
        group.under_way.clone()
    }
}

fn stuck(status: &PeerStatus, others: usize) -> Error {
    let groups: Vec<String> =
        status.groups.iter().map(|group| format!("{} ({})", group.name, why(group, others))).collect();
    let message = format!(
        "{} of this peer's groups did not move: {}; peer {} goes on trying, `canal peer drain --undo` gives it up",
        groups.len(),
        groups.join(", "),
        id(&status.info)
    );
    Error::new(Code::InUse, message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    fn peer(n: u8) -> PeerInfo {
        PeerInfo { peer: vec![n; 32], ..PeerInfo::default() }
    }

    #[test]
    fn what_can_not_move_is_named_with_its_reason() {
        let group = GroupStatus { name: "g".into(), leader: 1, replica: 1, wanted: 1, ..GroupStatus::default() };
        let status = PeerStatus { info: peer(1), groups: vec![group.clone()], ..PeerStatus::default() };
        let draining = PeerInfo { draining: true, ..peer(2) };
        let silent = PeerInfo { heard_ms_ago: 60_000, ..peer(3) };
        assert_eq!(others(&status, &[peer(1), draining.clone(), silent.clone()]), 0);
        assert_eq!(others(&status, &[peer(1), draining, silent, peer(4)]), 1);
        let error = stuck(&status, 0);
        assert_eq!(error.code, Code::InUse);
        assert!(
            error.message.starts_with("1 of this peer's groups did not move: g (no other peer is there to take it); "),
            "{error}"
        );
        assert!(why(&GroupStatus { leader: 0, ..group.clone() }, 2).starts_with("it has no leader"));
        assert_eq!(why(&GroupStatus { under_way: "x".into(), ..group.clone() }, 2), "x");
        assert_eq!(how(&GroupStatus { under_way: "x".into(), ..group }), "leader, 0 of 1 replicas wanted; x");
    }
}
