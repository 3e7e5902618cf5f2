//! `canal peer`: who is in the mesh, how the peer that was asked stands, and how it is emptied before it is switched off.

use std::collections::BTreeMap;
use std::process::ExitCode;

use canal_proto::limits::MAX_KNOWN_PEERS;
use canal_proto::peer::{PeerInfo, Tier};
use canal_proto::request::{GroupStatus, PeerStatus};
use canal_proto::{GroupId, PeerId};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::connect::Connect;
use super::drain;
use super::group::{peer_text, status_json, topic_names};
use super::print::{base16, fields, left, name_of, printable, right, size, span, table};

/// What to do with peers.
#[derive(Debug, Subcommand)]
pub enum Peer {
    /// List the peers that the asked peer knows of: all of a mesh of up to 256, a changing sample of a larger one
    Ls(Ls),
    /// Show how the asked peer stands, with its groups
    Info(Info),
    /// Empty the asked peer before it is switched off: what it holds moves to others, and it takes nothing new
    Drain(drain::Drain),
}

/// Flags of `canal peer ls`.
#[derive(Debug, Args)]
pub struct Ls {
    #[command(flatten)]
    connect: Connect,
}

/// Flags of `canal peer info`.
#[derive(Debug, Args)]
pub struct Info {
    #[command(flatten)]
    connect: Connect,
}

/// Runs `canal peer`.
pub fn run(command: Peer) -> ExitCode {
    match command {
        Peer::Ls(args) => args.connect.run(async |client, out| {
            let peers = client.peers().await?;
            out.show(|| peers.iter().map(peer_json).collect(), || peers_text(&peers))?;
            if peers.len() >= MAX_KNOWN_PEERS {
                let note =
                    format!("these are the {} peers that the asked peer knows of; there may be more", peers.len());
                out.note(|| json!({ "note": note }), || note.clone());
            }
            Ok(())
        }),
        Peer::Info(args) => args.connect.run(async |client, out| {
            let status = client.peer_status().await?;
            // the names are the catalog's, which may be out of reach just when one wants to know how a peer stands
            let names = if out.json() { topic_names(&client).await.unwrap_or_default() } else { BTreeMap::new() };
            Ok(out.show(|| peer_status_json(&status, &names), || status_text(&status))?)
        }),
        Peer::Drain(args) => drain::run(args),
    }
}

/// A peer's id.
pub fn id(info: &PeerInfo) -> String {
    PeerId::from_slice(&info.peer).map_or_else(|_| base16(&info.peer), |peer| peer.to_string())
}

fn labels(info: &PeerInfo) -> String {
    let labels = info.labels.iter().map(|label| printable(format!("{}={}", label.key, label.value).as_bytes()));
    labels.collect::<Vec<_>>().join(",")
}

fn peer_json(info: &PeerInfo) -> Value {
    let labels: Map<String, Value> =
        info.labels.iter().map(|label| (label.key.clone(), label.value.clone().into())).collect();
    json!({
        "id": id(info),
        "addresses": info.addresses,
        "tier": name_of::<Tier>(info.tier),
        "site": info.site,
        "labels": labels,
        "cpus": info.cpus,
        "memory_bytes": info.memory,
        "replicas": info.replicas,
        "leads": info.leads,
        "version": info.version,
        "heard_ms_ago": info.heard_ms_ago,
        "load": f64::from(info.load) / 1000.0,
        "draining": info.draining,
        "boot": info.boot,
        "coordinate": info.coordinate.map(|at| json!({ "x": at.x, "y": at.y, "height": at.height, "error": at.error })),
    })
}

fn peers_text(peers: &[PeerInfo]) -> String {
    let columns = [
        left("PEER"),
        left("TIER"),
        left("SITE"),
        right("CPUS"),
        right("LOAD"),
        right("MEMORY"),
        right("REPLICAS"),
        right("LEADS"),
        left("STATE"),
        right("HEARD"),
        right("BOOT"),
        left("VERSION"),
        left("ADDRESSES"),
        left("LABELS"),
    ];
    let row = |info: &PeerInfo| {
        [
            id(info),
            name_of::<Tier>(info.tier),
            info.site.clone(),
            info.cpus.to_string(),
            load(info),
            size(info.memory),
            info.replicas.to_string(),
            info.leads.to_string(),
            state(info).to_owned(),
            heard(info.heard_ms_ago),
            info.boot.to_string(),
            printable(info.version.as_bytes()),
            info.addresses.join(","),
            labels(info),
        ]
    };
    table(columns, peers.iter().map(row))
}

fn load(info: &PeerInfo) -> String {
    format!("{} %", info.load / 10)
}

fn state(info: &PeerInfo) -> &'static str {
    match (info.draining, info.heard_ms_ago >= canal_topology::known::LOST_MS) {
        (_, true) => "silent",
        (true, false) => "draining",
        (false, false) => "up",
    }
}

fn heard(ms_ago: u64) -> String {
    if ms_ago == 0 { "now".to_owned() } else { format!("{} ago", span(ms_ago.saturating_mul(1000))) }
}

fn peer_status_json(status: &PeerStatus, names: &BTreeMap<u64, String>) -> Value {
    let groups: Vec<Value> = status.groups.iter().map(|group| status_json(group, names)).collect();
    json!({
        "peer": peer_json(&status.info),
        "joined": status.joined,
        "neighbours": status.neighbours,
        "known": status.known,
        "route_records": status.records,
        "route_records_refused": status.records_refused,
        "relayed_in_bytes": status.relayed_in,
        "relayed_out_bytes": status.relayed_out,
        "raft_messages": status.raft_messages,
        "raft_frames": status.raft_frames,
        "raft_bytes": status.raft_bytes,
        "refused": status.refused.iter().map(|one| (one.reason.clone(), one.count.into())).collect::<serde_json::Map<_, _>>(),
        "damage_found": status.damage_found,
        "damage_repaired": status.damage_repaired,
        "groups": groups,
    })
}

/// What the replica of the asked peer is in its group.
pub fn role(group: &GroupStatus) -> &'static str {
    match (group.leader == group.replica, group.voters.contains(&group.replica)) {
        (true, _) => "leader",
        (false, true) => "voter",
        (false, false) => "learner",
    }
}

fn status_text(status: &PeerStatus) -> String {
    let info = &status.info;
    let labels = labels(info);
    let mut text = fields([
        ("peer", id(info)),
        ("addresses", info.addresses.join(" ")),
        ("tier", name_of::<Tier>(info.tier)),
        ("site", info.site.clone()),
        ("labels", if labels.is_empty() { "-".to_owned() } else { labels }),
        (
            "state",
            if info.draining { "draining: it takes no new replicas, and what it has moves away" } else { "up" }
                .to_owned(),
        ),
        ("machine", format!("{} processors, loaded to {}, {}", info.cpus, load(info), size(info.memory))),
        ("starts", info.boot.to_string()),
        ("version", printable(info.version.as_bytes())),
        ("mesh", if status.joined { "joined" } else { "not joined yet" }.to_owned()),
        ("neighbours", status.neighbours.to_string()),
        ("known peers", format!("{}, itself included", status.known)),
        ("route records", format!("{} kept, {} refused", status.records, status.records_refused)),
        ("disk damage", format!("{} found, {} repaired", status.damage_found, status.damage_repaired)),
    ]);
    let columns = [
        left("GROUP"),
        left("ID"),
        left("ROLE"),
        left("LEADER"),
        right("TERM"),
        right("COMMITTED"),
        right("APPLIED"),
        right("REPLICAS"),
        right("TOPICS"),
        right("OUTBOX"),
    ];
    let row = |group: &GroupStatus| {
        let leader = group.replicas.iter().find(|replica| replica.id == group.leader);
        [
            group.name.clone(),
            GroupId(group.id).to_string(),
            role(group).to_owned(),
            leader.map_or_else(|| "-".to_owned(), peer_text),
            group.term.to_string(),
            group.committed.to_string(),
            group.applied.to_string(),
            format!("{}/{}", group.replicas.len(), group.wanted),
            group.topics.len().to_string(),
            group.outbox.to_string(),
        ]
    };
    text.push_str(&format!("\n{}", table(columns, status.groups.iter().map(row))));
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;
    use canal_proto::peer::{Label, Replica};

    fn info() -> PeerInfo {
        PeerInfo {
            peer: vec![1; 32],
            addresses: vec!["/ip4/10.0.0.1".into()],
            tier: Tier::Edge.into(),
            site: "lab".into(),
            labels: vec![Label { key: "gpu".into(), value: "1".into() }],
            cpus: 4,
            memory: 8 << 30,
            replicas: 2,
            leads: 1,
            version: "0.1.0".into(),
            heard_ms_ago: 1500,
            load: 425,
            boot: 3,
            draining: true,
            ..PeerInfo::default()
        }
    }

    #[test]
    fn peers_are_listed() {
        let id = PeerId::from_public_key([1; 32]).to_string();
        let pad = " ".repeat(id.len() - 4);
        assert_eq!(
            peers_text(&[info()]),
            format!(
                "PEER{pad}  TIER  SITE  CPUS  LOAD   MEMORY  REPLICAS  LEADS  STATE         HEARD  BOOT  VERSION  \
                 ADDRESSES      LABELS\n\
                 {id}  edge  lab      4  42 %  8.0 GiB         2      1  draining  1.5 s ago     3  0.1.0    \
                 /ip4/10.0.0.1  gpu=1\n"
            )
        );
        assert_eq!(
            peer_json(&info()).to_string(),
            format!(
                concat!(
                    r#"{{"addresses":["/ip4/10.0.0.1"],"boot":3,"coordinate":null,"cpus":4,"draining":true,"#,
                    r#""heard_ms_ago":1500,"id":"{}","labels":{{"gpu":"1"}},"leads":1,"load":0.425,"#,
                    r#""memory_bytes":8589934592,"replicas":2,"site":"lab","#,
                    r#""tier":"edge","version":"0.1.0"}}"#
                ),
                id
            )
        );
    }

    #[test]
    fn a_peer_is_shown_with_its_groups() {
        let group = GroupStatus {
            id: 255,
            name: "g".into(),
            replica: 1,
            leader: 1,
            term: 2,
            replicas: vec![Replica { id: 1, peer: vec![1; 32], addresses: Vec::new() }],
            voters: vec![1],
            wanted: 3,
            ..GroupStatus::default()
        };
        let status = PeerStatus {
            info: info(),
            groups: vec![group],
            neighbours: 2,
            records: 5,
            records_refused: 1,
            joined: true,
            damage_found: 2,
            damage_repaired: 1,
            ..PeerStatus::default()
        };
        let text = status_text(&status);
        let id = PeerId::from_public_key([1; 32]).to_string();
        assert!(text.starts_with(&format!("peer           {id}\naddresses      /ip4/10.0.0.1\n")), "{text}");
        assert!(text.contains("route records  5 kept, 1 refused\n"), "{text}");
        assert!(text.contains("disk damage    2 found, 1 repaired\n"), "{text}");
        let last = text.lines().last().unwrap();
        assert_eq!(
            last,
            format!("g      00000000000000ff  leader  {id}     2          0        0       1/3       0       0")
        );
        let json = peer_status_json(&status, &BTreeMap::new());
        assert_eq!((json["joined"].as_bool(), json["route_records"].as_u64()), (Some(true), Some(5)));
        assert_eq!(json["groups"][0]["leader"], id);
    }
}
