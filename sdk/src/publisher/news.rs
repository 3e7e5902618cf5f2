//! Asks the other replicas of a group whether they know another leader than the one that has gone silent.
//!
//! A peer that was killed says nothing, and its connection stands until it has been idle for long. The other replicas
//! notice earlier: they elect another. They hold the question until they have.

use std::time::Duration;

use canal_proto::PeerId;
use canal_proto::request::{Answer, Ask, Resolve, Route};
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use crate::client::Client;
use crate::pool::Place;
use crate::routes;

/// How long a replica may hold the question.
const WAIT: Duration = Duration::from_secs(1);
/// For its answer to arrive after that.
const TRAVEL: Duration = Duration::from_secs(1);

/// The route by another leader than `silent`, if a replica knows one; none when all have said what they know.
pub(super) async fn ask(client: Client, topic: String, silent: PeerId) -> Option<Route> {
    let known = client.routes().get(&topic)?;
    let old = known.replicas.iter().find(|replica| replica.peer == silent.public_key())?.id;
    let others = routes::places(&known).into_iter().filter(|place| place.peer != Some(silent));
    let mut asked: FuturesUnordered<_> = others.map(|place| ask_one(&client, place, &topic, old)).collect();
    while let Some(route) = asked.next().await {
        if let Some(route) = route.filter(|route| is_news(&known, route, old)) {
            return Some(route);
        }
    }
    None
}

async fn ask_one(client: &Client, place: Place, topic: &str, old: u64) -> Option<Route> {
    let connection = client.pool().connect(&place).await.ok()?;
    let wait_ms = u32::try_from(WAIT.as_millis()).unwrap_or(u32::MAX);
    let ask = Ask::Resolve(Resolve { name: topic.to_owned(), fresh: false, other_than: old, wait_ms });
    match connection.request(ask, WAIT + TRAVEL).await.ok()? {
        Answer::Route(route) => Some(route),
        _ => None,
    }
}

/// Whether a replica of the same group and topic names another leader, and where that is.
fn is_news(known: &Route, route: &Route, old: u64) -> bool {
    let named = route.replicas.iter().any(|replica| replica.id == route.leader);
    named && route.leader != old && (route.topic, route.group) == (known.topic, known.group)
}

#[cfg(test)]
mod tests {
    use super::*;
    use canal_proto::peer::Replica;

    #[test]
    fn only_another_leader_of_the_same_group_is_news() {
        let replicas = (1..4).map(|id| Replica { id, ..Replica::default() }).collect();
        let known = Route { topic: 7, group: 8, leader: 1, replicas, ..Route::default() };
        assert!(is_news(&known, &Route { leader: 2, ..known.clone() }, 1));
        for leader in [0, 1, 9] {
            assert!(!is_news(&known, &Route { leader, ..known.clone() }, 1), "leader {leader}");
        }
        assert!(!is_news(&known, &Route { leader: 2, group: 9, ..known.clone() }, 1));
    }
}
