//! `canal peers` and `canal status`: who is in the mesh, and how the peer that was asked stands.

use std::collections::BTreeMap;
use std::process::ExitCode;

use canal_proto::peer::{PeerInfo, Tier};
use canal_proto::request::{GroupStatus, PeerStatus};
use canal_proto::{GroupId, PeerId};
use clap::Args;
use serde_json::{Map, Value, json};

use super::connect::Connect;
use super::group::{peer_text, status_json, topic_names};
use super::print::{base16, fields, left, name_of, printable, right, size, span, table};

/// Flags of `canal peers`.
#[derive(Debug, Args)]
pub struct Peers {
    #[command(flatten)]
    connect: Connect,
}

/// Flags of `canal status`.
#[derive(Debug, Args)]
pub struct Status {
    #[command(flatten)]
    connect: Connect,
}

/// Runs `canal peers`.
pub fn run(args: Peers) -> ExitCode {
    args.connect.run(async |client, out| {
        let peers = client.peers().await?;
        Ok(out.show(|| peers.iter().map(peer_json).collect(), || peers_text(&peers))?)
    })
}

/// Runs `canal status`.
pub fn status(args: Status) -> ExitCode {
    args.connect.run(async |client, out| {
        let status = client.peer_status().await?;
        // the names are the catalog's, which may be out of reach just when one wants to know how a peer stands
        let names = if out.json() { topic_names(&client).await.unwrap_or_default() } else { BTreeMap::new() };
        Ok(out.show(|| peer_status_json(&status, &names), || status_text(&status))?)
    })
}

fn id(info: &PeerInfo) -> String {
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
    })
}

fn peers_text(peers: &[PeerInfo]) -> String {
    let columns = [
        left("PEER"),
        left("TIER"),
        left("SITE"),
        right("CPUS"),
        right("MEMORY"),
        right("REPLICAS"),
        right("LEADS"),
        right("HEARD"),
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
            size(info.memory),
            info.replicas.to_string(),
            info.leads.to_string(),
            heard(info.heard_ms_ago),
            printable(info.version.as_bytes()),
            info.addresses.join(","),
            labels(info),
        ]
    };
    table(columns, peers.iter().map(row))
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
        "route_records": status.records,
        "route_records_refused": status.records_refused,
        "groups": groups,
    })
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
        ("machine", format!("{} processors, {}", info.cpus, size(info.memory))),
        ("version", printable(info.version.as_bytes())),
        ("mesh", if status.joined { "joined" } else { "not joined yet" }.to_owned()),
        ("neighbours", status.neighbours.to_string()),
        ("route records", format!("{} kept, {} refused", status.records, status.records_refused)),
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
        let role = match (group.leader == group.replica, group.voters.contains(&group.replica)) {
            (true, _) => "leader",
            (false, true) => "voter",
            (false, false) => "learner",
        };
        [
            group.name.clone(),
            GroupId(group.id).to_string(),
            role.to_owned(),
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
                "PEER{pad}  TIER  SITE  CPUS   MEMORY  REPLICAS  LEADS      HEARD  VERSION  ADDRESSES      LABELS\n\
                 {id}  edge  lab      4  8.0 GiB         2      1  1.5 s ago  0.1.0    /ip4/10.0.0.1  gpu=1\n"
            )
        );
        assert_eq!(
            peer_json(&info()).to_string(),
            format!(
                concat!(
                    r#"{{"addresses":["/ip4/10.0.0.1"],"cpus":4,"heard_ms_ago":1500,"id":"{}","#,
                    r#""labels":{{"gpu":"1"}},"leads":1,"memory_bytes":8589934592,"replicas":2,"site":"lab","#,
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
            ..PeerStatus::default()
        };
        let text = status_text(&status);
        let id = PeerId::from_public_key([1; 32]).to_string();
        assert!(text.starts_with(&format!("peer           {id}\naddresses      /ip4/10.0.0.1\n")), "{text}");
        assert!(text.contains("route records  5 kept, 1 refused\n"), "{text}");
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
