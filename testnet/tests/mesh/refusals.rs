//! Bad input gets its error, over the wire and on the command line, and the peers go on.

use std::time::Duration;

use bytes::BytesMut;
use canal_proto::catalog::TriggerInfo;
use canal_proto::frame;
use canal_proto::limits::MAX_PAYLOAD;
use canal_proto::request::{Answer, Ask, Publish, Response, protocol};
use canal_sdk::transport::libp2p::Libp2p;
use canal_sdk::{Client, Code, Connection, Event, From, FunctionLimits, Opening, Options, Transport};
use canal_testnet::until;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::{Ran, SOON, canal, file, mesh};

fn code<T>(result: Result<T, canal_sdk::Error>) -> Code {
    result.map(|_| ()).unwrap_err().code
}

fn assert_exit(ran: &Ran, code: Code) {
    assert_eq!(ran.code, Some(i32::from(code.exit_code())), "{ran:?}");
    assert!(!ran.stderr.trim().is_empty(), "an error is explained: {ran:?}");
    assert!(ran.stdout.is_empty(), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_answered_with_its_error() {
    let mesh = mesh(1).await;
    let client = mesh.client(0).await.unwrap();
    mesh.create_topic(&client, "t", "g", 1).await.unwrap();
    let address = mesh.peer(0).unwrap().address().unwrap();

    assert_eq!(code(client.publisher("absent").await), Code::UnknownTopic);
    assert_eq!(code(client.subscribe("absent", From::Earliest).await), Code::UnknownTopic);
    assert_exit(&canal(&address, &["pub", "absent", "x"], b"").await, Code::UnknownTopic);
    assert_exit(&canal(&address, &["sub", "absent", "--count", "1"], b"").await, Code::UnknownTopic);

    let bad = b"\0asm\x01\0\0\0".to_vec();
    assert_eq!(code(client.deploy("bad", bad.clone(), FunctionLimits::default()).await), Code::BadComponent);
    let path = file(mesh.dir(), "bad.wasm", &bad);
    assert_exit(&canal(&address, &["fn", "deploy", "bad", &path], b"").await, Code::BadComponent);
    assert!(client.functions().await.unwrap().is_empty());

    let trigger = TriggerInfo {
        name: "x".into(),
        function: "absent".into(),
        patterns: vec!["t".into()],
        ..TriggerInfo::default()
    };
    assert_eq!(code(client.create_trigger(trigger).await), Code::UnknownFunction);
    let create = ["trigger", "create", "x", "--on", "t", "--fn", "absent"];
    assert_exit(&canal(&address, &create, b"").await, Code::UnknownFunction);

    // the library refuses it before it is sent; the peer must refuse it too
    let large = Event::new(vec![b'x'; MAX_PAYLOAD + 1]);
    assert_eq!(code(client.publisher("t").await.unwrap().publish(large.clone()).await), Code::TooLarge);
    let opening = Opening::client(mesh.mesh(), "default");
    let transport = Libp2p::new().unwrap();
    let addresses = [address.clone()];
    let connection = Connection::open(&transport, None, &addresses, &opening, SOON).await.unwrap();
    let publish = Publish {
        topic: "t".into(),
        producer: vec![1; 16].into(),
        first_sequence: 1,
        events: vec![large],
        ..Publish::default()
    };
    assert_eq!(code(connection.request(Ask::Publish(publish), SOON).await), Code::TooLarge);
    let line = vec![b'x'; MAX_PAYLOAD + 1];
    assert_exit(&canal(&address, &["pub", "t", "--stdin"], &line).await, Code::TooLarge);

    assert_exit(&canal("127.0.0.1:1", &["peer", "ls"], b"").await, Code::Unreachable);
    assert_eq!(client.topic_status("t").await.unwrap().next, 0, "nothing of it was taken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malformed_frame_is_answered_and_the_peer_goes_on() {
    let mesh = mesh(1).await;
    let client = mesh.client(0).await.unwrap();
    let addresses = [mesh.peer(0).unwrap().address().unwrap()];
    let transport = Libp2p::new().unwrap();
    let garbage: [(&[u8], Code); 2] =
        [(b"\x05\0\0\0\xff\xff\xff\xff\xff", Code::Malformed), (b"\xff\xff\xff\xff", Code::TooLarge)];
    for (bytes, wanted) in garbage {
        let (_, mut stream) = transport.open(None, &addresses, &protocol(mesh.mesh(), "client")).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.flush().await.unwrap();
        let mut answered = Vec::new();
        let read = tokio::time::timeout(SOON, stream.read_to_end(&mut answered)).await;
        read.expect("the peer ends the stream").unwrap();
        let response = frame::decode::<Response>(&mut BytesMut::from(&answered[..])).unwrap().unwrap();
        let Some(Answer::Error(error)) = response.answer else { panic!("{response:?}") };
        let code = Code::try_from(error.code).unwrap();
        assert!(code == wanted || code == Code::Malformed, "{error:?}");
        assert!(!error.message.is_empty());
    }
    // another mesh's protocol is not spoken at all
    let other = Options { mesh: "another".into(), ..Options::default() };
    assert_eq!(code(Client::connect(&addresses[0], other).await), Code::Incompatible);
    assert!(client.peer_status().await.unwrap().joined);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_the_deadline_is_answered_and_the_mesh_heals() {
    let mesh = mesh(3).await;
    let admin = mesh.client(0).await.unwrap();
    let group = mesh.create_topic(&admin, "t", "g", 3).await.unwrap();
    let leader = mesh.leader(group).await.unwrap();
    let peer = mesh.peer(leader).unwrap();
    let client = peer.client_with(Options { deadline: Duration::from_secs(4), ..Options::default() }).await.unwrap();
    client.publisher("t").await.unwrap().publish(Event::new("before")).await.unwrap();
    let (_, status) = mesh.led(group).await.unwrap();
    assert_eq!(status.voters.len(), 3, "two of three is what this is about: {status:?}");
    let stopped = [(leader + 1) % 3, (leader + 2) % 3];
    stopped.iter().for_each(|other| mesh.peer(*other).unwrap().stop().unwrap());
    let publisher = client.publisher("t").await.unwrap();
    assert_eq!(code(publisher.publish(Event::new("lost?")).await), Code::NoQuorum);
    assert_exit(&canal(&peer.address().unwrap(), &["pub", "t", "lost?"], b"").await, Code::NoQuorum);
    stopped.iter().for_each(|other| mesh.peer(*other).unwrap().cont().unwrap());
    // nobody has to do anything
    until("events are taken again", SOON, async || {
        let publisher = client.publisher("t").await.map_err(|error| error.to_string())?;
        publisher.publish(Event::new("after")).await.map(|_| ()).map_err(|error| error.to_string())
    })
    .await
    .unwrap();
}
