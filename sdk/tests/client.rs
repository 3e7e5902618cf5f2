//! The client against scripted peers: redirects, deadlines, what is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::time::Duration;

use canal_proto::error::WireError;
use canal_proto::request::{Answer, Ask};
use canal_proto::{Code, GroupId};
use canal_sdk::{Connection, FunctionLimits, Opening, Options, Target, TopicOptions};

use self::fake::{Behaviour, Fake};

#[path = "support/fake.rs"]
mod fake;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_redirect_is_followed_and_remembered() {
    let fake = Fake::new(3);
    fake.topic("t", 2);
    let client = fake.client(1);
    // the route names peer 1 as the leader; peer 1 knows better
    fake.stale_leader(Some(1));
    let publisher = client.publisher("t").await.unwrap();
    assert_eq!(publisher.publish("a".into_event()).await.unwrap().offset, Some(0));
    assert_eq!(fake.published_at(), [1, 2]);
    assert_eq!(client.publisher("t").await.unwrap().publish("b".into_event()).await.unwrap().offset, Some(1));
    assert_eq!(fake.published_at(), [1, 2, 2]);
    assert_eq!(fake.count("resolve"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_dead_leader_is_replaced_by_the_next() {
    let fake = Fake::new(3);
    fake.topic("t", 1);
    let client = fake.client(2);
    client.topic_status("t").await.unwrap();
    fake.kill(1);
    fake.lead(3);
    let publisher = client.publisher("t").await.unwrap();
    assert_eq!(publisher.publish("a".into_event()).await.unwrap().offset, Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_silent_leader_is_not_waited_for() {
    let fake = Fake::new(3);
    fake.topic("t", 1);
    let client = fake.client(2);
    fake.behave(1, Behaviour::Silent);
    let begun = tokio::time::Instant::now();
    let asked = tokio::spawn({
        let client = client.clone();
        async move { client.publisher("t").await.unwrap().publish("a".into_event()).await }
    });
    tokio::time::sleep(SECOND / 2).await;
    fake.lead(3);
    assert_eq!(asked.await.unwrap().unwrap().offset, Some(0));
    assert!(begun.elapsed() < 2 * SECOND, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_deadline_tells_no_quorum_from_unreachable() {
    let fake = Fake::new(3);
    fake.topic("t", 1);
    let client = fake.client(1);
    client.topic_status("t").await.unwrap();
    fake.lead(0);
    let begun = tokio::time::Instant::now();
    let error = client.publisher("t").await.unwrap().publish("a".into_event()).await.unwrap_err();
    assert_eq!(error.code, Code::NoQuorum, "{error}");
    assert_eq!(begun.elapsed().as_secs(), 10);
    assert!(fake.logged("t").is_empty());
    for peer in 1..=3 {
        fake.kill(peer);
    }
    let begun = tokio::time::Instant::now();
    let error = client.topic_status("t").await.unwrap_err();
    assert_eq!(error.code, Code::Unreachable, "{error}");
    assert_eq!(begun.elapsed().as_secs(), 10);
    fake.revive(3);
    fake.lead(3);
    // nobody is up that was given as an address: the replicas are still known
    client.topic_status("t").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_final_comes_back_at_once() {
    let fake = Fake::new(3);
    let client = fake.client(1);
    let begun = tokio::time::Instant::now();
    assert_eq!(client.publisher("nowhere").await.err().unwrap().code, Code::UnknownTopic);
    assert_eq!(client.publisher("a//b").await.err().unwrap().code, Code::InvalidArgument);
    assert_eq!(client.group_status(GroupId(77)).await.err().unwrap().code, Code::UnknownGroup);
    assert!(begun.elapsed() < SECOND);
}

#[tokio::test(start_paused = true)]
async fn topics_are_created_and_a_repeated_removal_succeeds() {
    let fake = Fake::new(3);
    fake.lead(2);
    let client = fake.client(1);
    let created = client.create_topic("new", TopicOptions::default()).await.unwrap();
    assert!(!created.existed);
    assert!(client.create_topic("new", TopicOptions::default()).await.unwrap().existed);
    assert_eq!(client.topics("#").await.unwrap().len(), 1);
    fake.behave(2, Behaviour::HangUpAfter(1));
    client.remove_topic("new").await.unwrap();
    assert_eq!(client.remove_topic("new").await.unwrap_err().code, Code::UnknownTopic);
}

#[tokio::test(start_paused = true)]
async fn a_write_to_state_is_not_sent_again_when_it_may_have_had_effect() {
    let fake = Fake::new(3);
    fake.topic("t", 1);
    let client = fake.client(2);
    let state = client.state(fake.group(), "bucket");
    state.put("k", "v").await.unwrap();
    assert_eq!(state.get("k", canal_sdk::Consistency::Linearizable).await.unwrap().unwrap(), "v");
    fake.behave(1, Behaviour::HangUpAfter(1));
    let error = state.put("k", "w").await.unwrap_err();
    assert_eq!(error.code, Code::NoQuorum, "{error}");
    assert_eq!(fake.count("put"), 2);
    assert!(state.put("k", vec![0; (256 << 10) + 1]).await.unwrap_err().code == Code::TooLarge);
    assert_eq!(state.list("", 0, canal_sdk::Consistency::Stale).await.unwrap(), [("k".to_owned(), "w".into())]);
}

#[tokio::test(start_paused = true)]
async fn a_component_goes_in_pieces_and_only_once() {
    let fake = Fake::new(1);
    fake.lead(1);
    let client = fake.client(1);
    let component = vec![7; (512 << 10) + 1];
    let info = client.deploy("f", component.clone(), FunctionLimits::default()).await.unwrap();
    assert_eq!((info.size, fake.count("chunk")), ((512 << 10) + 1, 2));
    client.deploy("g", component, FunctionLimits::default()).await.unwrap();
    assert_eq!(fake.count("chunk"), 2);
    let error = client.deploy("f", vec![], FunctionLimits::default()).await.unwrap_err();
    assert_eq!(error.code, Code::BadComponent);
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_cannot_be_read_is_a_typed_error() {
    let fake = Fake::new(1);
    fake.topic("t", 1);
    let client = fake.client(1);
    client.topic_status("t").await.unwrap();
    for garbage in [&b"\x02\0\0\0\xff\xff"[..], &b"\xff\xff\xff\xff"[..]] {
        fake.behave(1, Behaviour::Garbage(garbage));
        let begun = tokio::time::Instant::now();
        let error = client.topic_status("t").await.unwrap_err();
        assert_eq!(error.code, Code::Malformed, "{error}");
        assert!(begun.elapsed() < SECOND);
    }
}

#[tokio::test(start_paused = true)]
async fn another_mesh_or_version_is_refused() {
    let fake = Fake::new(1);
    fake.topic("t", 1);
    let other = Options { mesh: "other".into(), ..Options::default() };
    let client = fake.client_with(1, other);
    assert_eq!(client.ready().await.err().unwrap().code, Code::Incompatible);
    assert_eq!(client.topic_status("t").await.unwrap_err().code, Code::Incompatible);
    fake.behave(1, Behaviour::Version(2));
    assert_eq!(fake.client(1).ready().await.err().unwrap().code, Code::Incompatible);
    fake.behave(1, Behaviour::MeshName("canal2"));
    assert_eq!(fake.client(1).ready().await.err().unwrap().code, Code::Incompatible);
}

#[tokio::test(start_paused = true)]
async fn requests_in_flight_are_bounded_and_fail_with_the_stream() {
    let fake = Fake::new(1);
    let opening = Opening::client("canal", "default");
    let connection = Connection::open(&fake, None, &["p1".into()], &opening, SECOND).await.unwrap();
    assert_eq!(connection.welcome().mesh_name, "canal");
    fake.behave(1, Behaviour::Silent);
    let ask = || Ask::GroupStatus(1);
    let replies: Vec<_> = (0..canal_sdk::connection::MAX_IN_FLIGHT)
        .map(|_| connection.try_begin(ask(), 60 * SECOND).ok().unwrap())
        .collect();
    assert_eq!(connection.try_begin(ask(), SECOND).err().unwrap().code, Code::WouldBlock);
    assert_eq!(connection.request(ask(), SECOND).await.unwrap_err().code, Code::NoQuorum);
    fake.kill(1);
    for reply in replies {
        assert_eq!(reply.answer().await.unwrap_err().code, Code::Unreachable);
    }
    assert!(connection.is_closed());
    assert_eq!(connection.request(ask(), SECOND).await.unwrap_err().code, Code::Unreachable);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_is_waited_for() {
    let fake = Fake::new(1);
    fake.topic("t", 1);
    fake.behave(1, Behaviour::Errors(vec![WireError::new(Code::WouldBlock, "full"); 3]));
    let answer = fake.client(1).call(Target::Group(fake.group()), Ask::GroupStatus(fake.group().0)).await.unwrap();
    assert!(matches!(answer, Answer::GroupStatus(_)));
}

use self::fake::IntoEvent;
