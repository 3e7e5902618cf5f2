//! The transport over real QUIC on the loopback interface, against a swarm that only greets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::time::{Duration, Instant};

use bytes::BytesMut;
use canal_proto::request::{Answer, Ask, GroupStatus, Request, Response, VERSION, Welcome, protocol};
use canal_proto::{Code, PeerId, frame};
use canal_sdk::transport::libp2p::{IDLE_TIMEOUT, Libp2p};
use canal_sdk::{Client, Connection, Opening, Options, Transport};
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::swarm::SwarmEvent;
use libp2p::{Stream, StreamProtocol, SwarmBuilder};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

const PATIENCE: Duration = Duration::from_secs(20);

struct Greeter {
    peer: PeerId,
    address: String,
    port: u16,
    task: JoinHandle<()>,
}

async fn greeter() -> Greeter {
    let mut swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_quic()
        .with_behaviour(|_| libp2p_stream::Behaviour::new())
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(PATIENCE))
        .build();
    let peer = PeerId::from_multihash(&swarm.local_peer_id().to_bytes()).unwrap();
    let name = StreamProtocol::try_from_owned(protocol("canal", "client")).unwrap();
    let mut incoming = swarm.behaviour().new_control().accept(name).unwrap();
    swarm.listen_on("/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()).unwrap();
    let (listening, address) = oneshot::channel();
    let task = tokio::spawn(async move {
        let (mut listening, mut streams) = (Some(listening), JoinSet::new());
        loop {
            tokio::select! {
                event = swarm.select_next_some() => {
                    if let SwarmEvent::NewListenAddr { address, .. } = event {
                        listening.take().unwrap().send(address.to_string()).unwrap();
                    }
                }
                Some((_, stream)) = incoming.next() => {
                    streams.spawn(greet(stream, peer));
                }
            }
        }
    });
    let address = address.await.unwrap();
    let port = address.split('/').nth(4).unwrap().parse().unwrap();
    Greeter { peer, address, port, task }
}

async fn greet(mut stream: Stream, peer: PeerId) {
    let mut buffer = BytesMut::new();
    let mut chunk = [0; 4096];
    loop {
        while let Some(Request { id, ask, .. }) = frame::decode(&mut buffer).unwrap() {
            let answer = match ask.unwrap() {
                Ask::Hello(_) => Answer::Welcome(Welcome {
                    version: VERSION,
                    peer: peer.to_vec().into(),
                    mesh_name: "canal".into(),
                    ..Welcome::default()
                }),
                Ask::GroupStatus(id) => Answer::GroupStatus(GroupStatus { id, ..GroupStatus::default() }),
                other => panic!("{other:?}"),
            };
            let mut bytes = BytesMut::new();
            frame::encode(&Response { id, answer: Some(answer) }, &mut bytes).unwrap();
            stream.write_all(&bytes).await.unwrap();
            stream.flush().await.unwrap();
        }
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(len) => buffer.extend_from_slice(&chunk[..len]),
        }
    }
}

#[tokio::test]
async fn people_connect_by_host_and_port_and_peers_by_id() {
    let peer = greeter().await;
    let client = Client::connect(&format!("localhost:{}", peer.port), Options::default()).await;
    // `localhost` may mean ::1 first; both ways have to be tried
    assert_eq!(client.unwrap().ready().await.unwrap().peer(), peer.peer);
    let transport = Libp2p::new().unwrap();
    let opening = Opening::client("canal", "default");
    let addresses = [peer.address.clone()];
    let connection = Connection::open(&transport, Some(peer.peer), &addresses, &opening, PATIENCE).await.unwrap();
    for n in 0..100 {
        let answer = connection.request(Ask::GroupStatus(n), PATIENCE).await.unwrap();
        assert!(matches!(answer, Answer::GroupStatus(status) if status.id == n));
    }
    let other = PeerId::from_public_key(*peer.peer.public_key());
    assert!(transport.open(Some(other), &[], &protocol("canal", "client")).await.is_ok(), "the connection stands");
    peer.task.abort();
}

#[tokio::test]
async fn another_mesh_another_key_and_nobody_are_told_apart() {
    let (peer, stranger) = (greeter().await, greeter().await);
    let other = Options { mesh: "other".into(), ..Options::default() };
    assert_eq!(Client::connect(&peer.address, other).await.err().unwrap().code, Code::Incompatible);
    let transport = Libp2p::new().unwrap();
    let name = protocol("canal", "client");
    let error = transport.open(Some(stranger.peer), std::slice::from_ref(&peer.address), &name).await.err().unwrap();
    assert_eq!(error.code, Code::Unreachable, "{error}");
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap().to_string();
    let error = Client::connect(&address, Options::default()).await.err().unwrap();
    assert_eq!(error.code, Code::Unreachable, "{error}");
    let error = Client::connect("nonsense", Options::default()).await.err().unwrap();
    assert_eq!(error.code, Code::InvalidArgument, "{error}");
    peer.task.abort();
    stranger.task.abort();
}

#[test]
fn a_peer_that_freezes_is_noticed() {
    // a runtime of its own, so that the peer can be stopped without a word of farewell
    let frozen = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let peer = frozen.block_on(async { tokio::spawn(greeter()).await.unwrap() });
    let ours = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    ours.block_on(async {
        let transport = Libp2p::new().unwrap();
        let opening = Opening::client("canal", "default");
        let addresses = [peer.address.clone()];
        let connection = Connection::open(&transport, None, &addresses, &opening, PATIENCE).await.unwrap();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let (holding, holds) = oneshot::channel();
        frozen.spawn(async move {
            // keeps the only worker busy
            holding.send(()).unwrap();
            held.recv().ok();
        });
        holds.await.unwrap();
        let begun = Instant::now();
        let error = connection.request(Ask::GroupStatus(1), PATIENCE).await.unwrap_err();
        assert_eq!(error.code, Code::Unreachable, "{error}");
        assert!(begun.elapsed() < IDLE_TIMEOUT + Duration::from_secs(3), "{:?}", begun.elapsed());
        drop(release);
    });
    frozen.shutdown_background();
}
