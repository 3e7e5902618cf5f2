//! `canal peer drain`: empties a peer and says how far it is, what its groups have then, and what can't move and why.
//!
//! A group leaves a peer that is being emptied also where no other peer can take its replica: it then has one less. That
//! is said of each, and so are the groups that are short at the end. Where it would leave a group fewer replicas than a
//! majority of those that it wants, nothing is done without `--force`.

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
/// How long a peer that is needed may take to become known, before its absence is believed.
const KNOWN: Duration = Duration::from_secs(5);
/// How long there must be no other peer before that is taken for the end.
const ALONE: Duration = Duration::from_secs(5);

/// Flags of `canal peer drain`.
#[derive(Debug, Args)]
pub struct Drain {
    /// Give it up: the peer may hold replicas again
    #[arg(long, conflicts_with = "wait")]
    undo: bool,
    /// Do it also where a group is left with fewer replicas than a majority of those that it wants
    #[arg(long, conflicts_with = "undo")]
    force: bool,
    /// How long to wait until nothing is left; 0: not at all. The peer goes on in any case
    #[arg(long, value_name = "SECONDS", default_value = "600")]
    wait: u64,
    #[command(flatten)]
    connect: Connect,
}

/// Runs `canal peer drain`.
pub fn run(args: Drain) -> ExitCode {
    args.connect.run(async |client, out| {
        if !args.undo && !args.force {
            check(&client).await?;
        }
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

/// Refuses what would leave a group with less than is good for it.
async fn check(client: &Client) -> Result<(), Error> {
    let end = Instant::now() + KNOWN;
    loop {
        let (status, peers) = (client.peer_status().await?, client.peers().await?);
        let others = others(&status, &peers);
        let short = if status.info.draining { Vec::new() } else { too_short(&status, others) };
        if short.is_empty() {
            return Ok(());
        }
        // those that it has yet to hear of count as well
        if Instant::now() >= end {
            return Err(Error::new(Code::InUse, refusal(&short, others)));
        }
        sleep(LOOK).await;
    }
}

/// Groups here that would have fewer replicas than a majority of those that they want. One that has never had another peer
/// does not leave.
fn too_short(status: &PeerStatus, others: usize) -> Vec<Stand> {
    // those that hold the others may only be away just now, and the drain would go on when they are back
    let leaves = |group: &&GroupStatus| others > 0 || group.replicas.len() > 1;
    let left = status.groups.iter().filter(leaves).map(|group| {
        let wanted = group.wanted as usize;
        Stand { id: group.id, name: group.name.clone(), replicas: wanted.min(others), wanted }
    });
    // one that has yet to be told what it wants is told of no number
    left.filter(|left| left.wanted > 0 && left.replicas < left.wanted / 2 + 1).collect()
}

fn refusal(short: &[Stand], others: usize) -> String {
    let peers = if others == 1 { "1 other peer is" } else { &format!("{others} other peers are") };
    format!(
        "only {peers} there to hold replicas, so this would leave {}: less than a majority of what they want. Start \
         another peer first, or do it all the same with --force; nothing was done",
        listed(short)
    )
}

/// How a group stands, or would.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stand {
    id: u64,
    name: String,
    replicas: usize,
    wanted: usize,
}

impl Stand {
    fn is_short(&self) -> bool {
        self.replicas < self.wanted
    }

    /// With so many peers that can take replicas.
    fn text(&self, others: usize) -> String {
        let Self { name, replicas, wanted, .. } = self;
        let why = match wanted.saturating_sub(*replicas) {
            0 => String::new(),
            _ if others > *replicas => ": its leader is about to bring it to another peer".to_owned(),
            1 => format!(": no other peer can take the {}", ordinal(*wanted)),
            missing => format!(": no other peers can take the {missing} that are missing"),
        };
        format!("moved  {name}: it has now {replicas} of {wanted} replicas{why}")
    }

    fn json(&self) -> Value {
        json!({
            "group": GroupId(self.id).to_string(),
            "group_name": self.name,
            "replicas": self.replicas,
            "replicas_wanted": self.wanted,
        })
    }
}

fn ordinal(number: usize) -> String {
    match number {
        1 => "first".to_owned(),
        2 => "second".to_owned(),
        3 => "third".to_owned(),
        other => format!("{other}th"),
    }
}

fn listed(stands: &[Stand]) -> String {
    let each = stands.iter().map(|stand| format!("{} with {} of {}", stand.name, stand.replicas, stand.wanted));
    each.collect::<Vec<_>>().join(", ")
}

/// What a group has without this peer, which has been left, as its other replicas say.
async fn stand(client: &Client, id: u64, name: &str, left: &[u8]) -> Result<Stand, Error> {
    let status = client.group_status(GroupId(id)).await?;
    // one that lags may have yet to hear that it is out
    let others = status.replicas.iter().filter(|replica| replica.peer != left && status.voters.contains(&replica.id));
    Ok(Stand { id, name: name.to_owned(), replicas: others.count(), wanted: status.wanted as usize })
}

/// What the groups have that were here.
async fn stands(client: &Client, moved: &BTreeMap<u64, String>, left: &[u8]) -> Result<Vec<Stand>, Error> {
    let mut stands = Vec::new();
    for (id, name) in moved {
        match stand(client, *id, name, left).await {
            Ok(stand) => stands.push(stand),
            // it was removed with its last topic meanwhile
            Err(error) if error.code == Code::UnknownGroup => {}
            Err(error) => return Err(error),
        }
    }
    Ok(stands)
}

/// Says that the peer is empty, and which groups are short now.
async fn tell_empty(client: &Client, out: Out, moved: &BTreeMap<u64, String>, left: &[u8]) -> Outcome {
    let text = "empty: nothing is left on this peer, it can be switched off";
    let stands = match stands(client, moved, left).await {
        Ok(stands) => stands,
        Err(error) => {
            let why = error.message;
            let text = || format!("{text}; how its groups stand now could not be asked ({why}): `canal group ls`");
            return Ok(out.show(|| json!({ "event": "empty", "short": null }), text)?);
        }
    };
    let short: Vec<Stand> = stands.into_iter().filter(Stand::is_short).collect();
    let json = || json!({ "event": "empty", "short": short.iter().map(Stand::json).collect::<Vec<_>>() });
    let all = || match short.as_slice() {
        [] => text.to_owned(),
        short => format!(
            "{text}. But fewer peers are left than replicas are wanted: {}. That is made good by itself when another \
             peer comes",
            listed(short)
        ),
    };
    Ok(out.show(json, all)?)
}

/// Says what is left, until nothing is.
async fn watch(client: &Client, out: Out, wait: Duration) -> Outcome {
    let end = Instant::now() + wait;
    let mut last: BTreeMap<u64, (String, String)> = BTreeMap::new();
    let mut empty = 0;
    let mut alone: Option<Instant> = None;
    let mut newest: Option<PeerStatus> = None;
    let mut moved: BTreeMap<u64, String> = BTreeMap::new();
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
        let others = others(status, &peers);
        for (id, (name, _)) in last.iter().filter(|(id, _)| !now.contains_key(id)) {
            moved.insert(*id, name.clone());
            let stand = stand(client, *id, name, &status.info.peer).await.ok();
            let json = || with_stand(event("moved", *id, name, None), stand.as_ref());
            out.show(json, || stand.as_ref().map_or_else(|| format!("moved  {name}"), |stand| stand.text(others)))?;
        }
        for (id, (name, how)) in now.iter().filter(|(id, now)| last.get(id) != Some(now)) {
            moved.remove(id);
            out.show(|| event("left", *id, name, Some(how)), || format!("left   {name}: {how}"))?;
        }
        empty = if now.is_empty() { empty + 1 } else { 0 };
        if empty >= EMPTY_LOOKS {
            return tell_empty(client, out, &moved, &status.info.peer).await;
        }
        last = now;
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

fn with_stand(mut event: Value, stand: Option<&Stand>) -> Value {
    if let (Some(stand), Some(map)) = (stand, event.as_object_mut()) {
        map.insert("replicas".into(), stand.replicas.into());
        map.insert("replicas_wanted".into(), stand.wanted.into());
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
    use canal_proto::peer::Replica;

    use super::*;

    fn peer(n: u8) -> PeerInfo {
        PeerInfo { peer: vec![n; 32], ..PeerInfo::default() }
    }

    #[test]
    fn a_group_says_what_it_has_when_it_has_left() {
        let stand = |replicas, wanted| Stand { id: 1, name: "g".into(), replicas, wanted };
        assert_eq!(stand(3, 3).text(3), "moved  g: it has now 3 of 3 replicas");
        assert_eq!(stand(2, 3).text(2), "moved  g: it has now 2 of 3 replicas: no other peer can take the third");
        assert_eq!(
            stand(2, 5).text(2),
            "moved  g: it has now 2 of 5 replicas: no other peers can take the 3 that are missing"
        );
        assert!(stand(2, 3).text(4).ends_with("its leader is about to bring it to another peer"));
        assert_eq!(listed(&[stand(2, 3), stand(1, 2)]), "g with 2 of 3, g with 1 of 2");
        let event = with_stand(event("moved", 1, "g", None), Some(&stand(2, 3)));
        assert_eq!((&event["replicas"], &event["replicas_wanted"]), (&2.into(), &3.into()));
    }

    #[test]
    fn less_than_a_majority_of_what_is_wanted_takes_force() {
        let group = |name: &str, wanted| GroupStatus { name: name.into(), wanted, ..GroupStatus::default() };
        let groups = vec![group("none", 0), group("one", 1), group("three", 3), group("five", 5)];
        let status = PeerStatus { info: peer(1), groups, ..PeerStatus::default() };
        let names = |others| too_short(&status, others).into_iter().map(|stand| stand.name).collect::<Vec<_>>();
        assert!(names(3).is_empty());
        assert_eq!(names(2), ["five"]);
        assert_eq!(names(1), ["three", "five"]);
        // nobody is there to take anything: it stays, and that is said later
        assert!(names(0).is_empty());
        let held = GroupStatus { replicas: vec![Replica::default(); 3], ..group("held", 3) };
        let away = PeerStatus { groups: vec![held, group("one", 1)], ..status.clone() };
        let short: Vec<_> = too_short(&away, 0).into_iter().map(|stand| stand.name).collect();
        assert_eq!(short, ["held"], "its other peers are away, and come back");
        assert_eq!(
            refusal(&too_short(&status, 1), 1),
            "only 1 other peer is there to hold replicas, so this would leave three with 1 of 3, five with 1 of 5: less \
             than a majority of what they want. Start another peer first, or do it all the same with --force; nothing \
             was done"
        );
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
