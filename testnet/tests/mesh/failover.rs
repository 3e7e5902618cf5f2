//! How long a group is without its killed leader, with the defaults of peers and publisher.

use canal_testnet::failover;

use crate::common::mesh;

/// Kills of the run.
const ROUNDS: usize = 5;
/// What the least of them may take, in milliseconds, in a debug build on a busy machine: a release build takes about 550. A
/// busy machine lengthens some rounds, a timeout that somebody made longer lengthens all.
const BOUND_MS: f64 = 1500.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_replaced_within_its_time() {
    let mesh = mesh(3).await;
    let client = mesh.client(0).await.unwrap();
    mesh.create_topic(&client, "t", "g", 3).await.unwrap();
    let times = failover::rounds(&mesh, "t", ROUNDS).await.unwrap();
    assert_eq!(times.count, ROUNDS);
    assert!(times.min_ms < BOUND_MS, "{times:?}");
}
