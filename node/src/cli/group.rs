//! `canal group` and `canal route`: who replicates what, how it stands, and where it should be.

use std::collections::BTreeMap;
use std::process::ExitCode;

use canal_proto::catalog::{GroupInfo, TopicInfo};
use canal_proto::peer::Replica;
use canal_proto::request::Route;
use canal_proto::{Code, GroupId, TopicId, TopicName, route};
use canal_sdk::{Client, Error};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::connect::{Connect, Outcome, Reading};
use super::print::{Out, fields, left, object, right, table};

mod moving;
mod show;

pub use show::status_json;

/// What to do with groups.
#[derive(Debug, Subcommand)]
pub enum Group {
    /// List groups
    Ls(Ls),
    /// Show how a group stands: its replicas, the step under way, and the last steps with how long each took
    Info(Info),
    /// Say which peers should hold a group's replicas
    Move(moving::Move),
}

/// Flags of `canal group ls`.
#[derive(Debug, Args)]
pub struct Ls {
    #[command(flatten)]
    reading: Reading,
    #[command(flatten)]
    connect: Connect,
}

/// Flags of `canal group info`.
#[derive(Debug, Args)]
pub struct Info {
    /// Name or id of the group; `$catalog` for the catalog's
    #[arg(value_name = "NAME|ID")]
    group: String,
    #[command(flatten)]
    connect: Connect,
}

/// Flags of `canal route`.
#[derive(Debug, Args)]
pub struct Find {
    /// Name of the topic; `$catalog` for the catalog
    topic: String,
    /// Ask the DHT again, whatever is cached
    #[arg(long)]
    fresh: bool,
    #[command(flatten)]
    connect: Connect,
}

/// Runs `canal group`.
pub fn run(command: Group) -> ExitCode {
    match command {
        Group::Ls(args) => args.connect.run(async |client, out| ls(client, out, args.reading).await),
        Group::Info(args) => args.connect.run(async |client, out| info(client, out, &args.group).await),
        Group::Move(args) => moving::run(args),
    }
}

/// Runs `canal route`.
pub fn route(args: Find) -> ExitCode {
    args.connect.run(async |client, out| {
        let name = &args.topic;
        let route = client.resolve(name, args.fresh).await?;
        Ok(out.show(|| route_json(name, &route), || route_text(name, &route))?)
    })
}

/// The group with this name or id, and its name.
///
/// # Errors
/// `UnknownGroup`; those of asking the catalog.
pub async fn find(client: &Client, text: &str) -> Result<(GroupId, String), Error> {
    if text == route::CATALOG {
        let route = client.resolve(route::CATALOG, false).await?;
        return Ok((GroupId(route.group), text.to_owned()));
    }
    // what a replica knows of a group stays true, so it is asked first: that works without a majority, too
    for linearizable in [false, true] {
        let groups = client.catalog("", &["groups"], linearizable).await?.groups;
        let called = |group: &&GroupInfo| group.name == text || GroupId(group.id).to_string() == text;
        if let Some(group) = groups.iter().find(called) {
            return Ok((GroupId(group.id), group.name.clone()));
        }
    }
    // the catalog's own is not among them, but has an id
    let id = text.parse::<GroupId>().ok().filter(|id| id.to_string() == text);
    let id = id.ok_or_else(|| Error::new(Code::UnknownGroup, format!("no group `{text}`; see `canal group ls`")))?;
    Ok((id, text.to_owned()))
}

async fn ls(client: Client, out: Out, reading: Reading) -> Outcome {
    let view = client.catalog("", &["groups", "topics"], reading.is_linearizable()).await?;
    let (groups, topics) = (view.groups, view.topics);
    Ok(out.show(|| groups.iter().map(|group| group_json(group, &topics)).collect(), || groups_text(&groups, &topics))?)
}

async fn info(client: Client, out: Out, text: &str) -> Outcome {
    let (group, _) = find(&client, text).await?;
    let status = client.group_status(group).await?;
    let names = topic_names(&client).await?;
    // as far as the peer that is asked knows the others
    let sites = client.peers().await.unwrap_or_default().into_iter().map(|info| (info.peer, info.site)).collect();
    Ok(out.show(|| show::info_json(&status, &names, &sites), || show::info_text(&status, &names, &sites))?)
}

/// Names of topics by id; the system's as well.
///
/// # Errors
/// Those of asking the catalog.
pub async fn topic_names(client: &Client) -> Result<BTreeMap<u64, String>, Error> {
    let mut names = BTreeMap::new();
    for pattern in ["", "$dead/#", "$mesh/#"] {
        let topics = client.catalog(pattern, &["topics"], false).await?.topics;
        names.extend(topics.into_iter().map(|topic| (topic.id, topic.name)));
    }
    Ok(names)
}

/// A peer's id as it prints; of a key that can't be one, its bytes.
pub fn peer_text(replica: &Replica) -> String {
    replica.peer_id().map_or_else(|_| super::print::base16(&replica.peer), |peer| peer.to_string())
}

fn leader_of(replicas: &[Replica], leader: u64) -> Option<String> {
    replicas.iter().find(|replica| replica.id == leader).map(peer_text)
}

fn group_json(group: &GroupInfo, topics: &[TopicInfo]) -> Value {
    let first: Vec<String> = group.first.iter().map(peer_text).collect();
    json!({
        "id": GroupId(group.id).to_string(),
        "name": group.name,
        "replicas_wanted": group.replicas,
        "active": group.active,
        "first_peers": first,
        "topics": topics.iter().filter(|topic| topic.group == group.id).count(),
    })
}

fn groups_text(groups: &[GroupInfo], topics: &[TopicInfo]) -> String {
    let row = |group: &GroupInfo| {
        [
            group.name.clone(),
            GroupId(group.id).to_string(),
            group.replicas.to_string(),
            topics.iter().filter(|topic| topic.group == group.id).count().to_string(),
            if group.active { "active" } else { "coming up" }.to_owned(),
        ]
    };
    table([left("NAME"), left("ID"), right("WANTED"), right("TOPICS"), left("STATE")], groups.iter().map(row))
}

fn route_json(name: &str, route: &Route) -> Value {
    let replicas: Vec<Value> = route
        .replicas
        .iter()
        .map(|replica| {
            json!({
                "id": replica.id.to_string(),
                "peer": peer_text(replica),
                "addresses": replica.addresses,
                "leader": replica.id == route.leader,
            })
        })
        .collect();
    let mut map = object(json!({
        "name": name,
        "group": GroupId(route.group).to_string(),
        "epoch": route.epoch,
        "leader": leader_of(&route.replicas, route.leader),
        "replicas": replicas,
        "source": route.source,
    }));
    // a group or the catalog is no topic
    let topic = (route.topic != 0).then(|| TopicId(route.topic).to_string());
    map.insert("topic".to_owned(), topic.into());
    Value::Object(map)
}

fn route_text(name: &str, route: &Route) -> String {
    let is_topic = name.parse::<TopicName>().is_ok() && route.topic != 0;
    let mut text = fields([
        (if is_topic { "topic" } else { "name" }, name.to_owned()),
        ("group", GroupId(route.group).to_string()),
        ("epoch", route.epoch.to_string()),
        ("found by", route.source.clone()),
    ]);
    let row = |replica: &Replica| {
        let role = if replica.id == route.leader { "leader" } else { "replica" };
        [replica.id.to_string(), role.to_owned(), peer_text(replica), replica.addresses.join(",")]
    };
    let columns = [right("REPLICA"), left("ROLE"), left("PEER"), left("ADDRESSES")];
    text.push_str(&format!("\n{}", table(columns, route.replicas.iter().map(row))));
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;
    use canal_proto::PeerId;

    fn replica(id: u64) -> Replica {
        Replica { id, peer: vec![u8::try_from(id).unwrap(); 32], addresses: vec![format!("/ip4/10.0.0.{id}")] }
    }

    fn peer(id: u8) -> String {
        PeerId::from_public_key([id; 32]).to_string()
    }

    #[test]
    fn groups_are_listed() {
        let group = GroupInfo {
            id: 255,
            name: "g".into(),
            replicas: 3,
            first: vec![replica(1)],
            active: true,
            spec_version: 9,
            ..GroupInfo::default()
        };
        let topic = TopicInfo {
            id: 1,
            name: "t".into(),
            group: 255,
            group_name: "g".into(),
            created_ms: 0,
            ..TopicInfo::default()
        };
        assert_eq!(
            groups_text(std::slice::from_ref(&group), std::slice::from_ref(&topic)),
            "NAME  ID                WANTED  TOPICS  STATE\ng     00000000000000ff       3       1  active\n"
        );
        assert_eq!(
            group_json(&group, &[topic]).to_string(),
            format!(
                r#"{{"active":true,"first_peers":["{}"],"id":"00000000000000ff","name":"g","replicas_wanted":3,"topics":1}}"#,
                peer(1)
            )
        );
    }

    #[test]
    fn a_route_is_shown() {
        let route =
            Route { topic: 10, group: 255, epoch: 4, replicas: vec![replica(1)], leader: 1, source: "dht".into() };
        let one = peer(1);
        assert_eq!(
            route_text("a/b", &route),
            format!(
                "topic     a/b\n\
                 group     00000000000000ff\n\
                 epoch     4\n\
                 found by  dht\n\
                 \n\
                 REPLICA  ROLE    PEER                                                  ADDRESSES\n      \
                 1  leader  {one}  /ip4/10.0.0.1\n"
            )
        );
        assert_eq!(
            route_json("a/b", &route).to_string(),
            format!(
                concat!(
                    r#"{{"epoch":4,"group":"00000000000000ff","leader":"{0}","name":"a/b","replicas":"#,
                    r#"[{{"addresses":["/ip4/10.0.0.1"],"id":"1","leader":true,"peer":"{0}"}}],"#,
                    r#""source":"dht","topic":"000000000000000a"}}"#
                ),
                one
            )
        );
    }
}
