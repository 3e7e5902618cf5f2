#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use proptest::prelude::*;

use super::*;

pub(crate) const MESH: MeshId = MeshId([7; 16]);
pub(crate) const NOW: u64 = 1_700_000_000_000;
pub(crate) const LIFE: u64 = 60_000;

pub(crate) fn seed(n: u8) -> [u8; 32] {
    [n; 32]
}

pub(crate) fn peer(n: u8) -> PeerId {
    PeerId::from_public_key(SigningKey::from_bytes(&seed(n)).verifying_key().to_bytes())
}

pub(crate) fn replica(n: u8) -> Replica {
    Replica { id: u64::from(n), peer: peer(n).to_vec(), addresses: vec![format!("/ip4/10.0.0.{n}/udp/4001/quic-v1")] }
}

/// The record of a topic whose replicas 1, 2 and 3 are held by the peers with those seeds; 1 leads.
pub(crate) fn record(name: &str) -> RouteRecord {
    RouteRecord {
        mesh: MESH.to_vec().into(),
        namespace: "default".into(),
        name: name.into(),
        topic: 5,
        group: 9,
        epoch: 3,
        replicas: vec![replica(1), replica(2), replica(3)],
        leader: 1,
        issued_ms: NOW,
        life_ms: LIFE,
    }
}

pub(crate) fn encode(signed: &SignedRoute) -> Vec<u8> {
    signed.encode_to_vec()
}

/// Signs whatever it is given, as a hostile peer would.
pub(crate) fn sign_anything(record: &RouteRecord, n: u8) -> SignedRoute {
    let bytes = record.encode_to_vec();
    let key = SigningKey::from_bytes(&seed(n));
    SignedRoute {
        signature: key.sign(&route::signed_bytes(&bytes)).to_bytes().to_vec().into(),
        signer: peer(n).to_vec().into(),
        record: bytes.into(),
    }
}

fn open_now(signed: &SignedRoute) -> Result<Verified, Error> {
    open(&encode(signed), MESH, NOW)
}

/// What is said of a record that a member signed, but that was changed before.
fn refusal(change: impl FnOnce(&mut RouteRecord)) -> Error {
    let mut changed = record("a/b");
    change(&mut changed);
    let error = open_now(&sign_anything(&changed, 1)).unwrap_err();
    // what nobody would store is not signed either, except that a signer knows no other mesh than the record's
    if error != Error::OtherMesh {
        assert_eq!(sign(&changed, &seed(1)), Err(error));
    }
    error
}

#[test]
fn a_signed_record_is_pinned_to_the_byte() {
    let signed = sign(&record("a/b"), &seed(1)).unwrap();
    let hash = canal_proto::ContentHash::of(&encode(&signed)).to_string();
    let signature: String = signed.signature.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!((encode(&signed).len(), signature.as_str(), hash.as_str()), GOLDEN);
}

/// ed25519 is deterministic (RFC 8032), and prost writes fields in the order of their tags.
const GOLDEN: (usize, &str, &str) = (
    364,
    "b688a302c361f4097800efb289156849c37820dbc2ac3778cd75f492d77cfee4\
     e7ef42f33db4e8fea0c0a6849046d178e12a2a3aee51c9e31f3e9dd26d27bd01",
    "1cddd88ba271058818f6d10e81993002013eb01da8ce4505156cda4769642374",
);

#[test]
fn a_good_record_opens() {
    let signed = sign(&record("a/b"), &seed(2)).unwrap();
    let open = open_now(&signed).unwrap();
    assert_eq!(open.route(), &record("a/b"));
    assert_eq!(open.signer(), peer(2));
    assert_eq!(open.key(), route::key(MESH, "default", "a/b"));
    assert_eq!(open.bytes().as_ref(), encode(&signed));
    assert_eq!(open.expires_ms(), NOW + LIFE);
    assert_eq!(open.clone().until(NOW + 5).expires_ms(), NOW + 5);
    assert_eq!(open.clone().until(u64::MAX).expires_ms(), NOW + LIFE);
    assert_eq!(open.order(), (5, 3, NOW));
    assert!(open.has_member(peer(3)) && !open.has_member(peer(4)));
    assert_eq!(open_at(&open.key(), &encode(&signed), MESH, NOW), Ok(open));
}

#[test]
fn a_key_that_stays_elsewhere_signs_alike() {
    let key = SigningKey::from_bytes(&seed(1));
    let by = sign_by(&record("a/b"), peer(1), &|bytes| key.sign(bytes).to_bytes());
    assert_eq!(by, sign(&record("a/b"), &seed(1)));
}

#[test]
fn catalogs_and_groups_have_the_ids_that_follow_from_their_names() {
    let catalog = GroupId::of_catalog(MESH, "default").0;
    let of = |name: &str, topic, group| {
        let record = RouteRecord { topic, group, ..record(name) };
        open_now(&sign_anything(&record, 1)).map(|open| open.route().group)
    };
    assert_eq!(of(route::CATALOG, 0, catalog), Ok(catalog));
    assert_eq!(of(route::CATALOG, 0, 9), Err(Error::BadIds));
    assert_eq!(of(route::CATALOG, 1, catalog), Err(Error::BadIds));
    assert_eq!(of("$group/0000000000000009", 0, 9), Ok(9));
    assert_eq!(of("$group/0000000000000009", 0, 8), Err(Error::BadIds));
    assert_eq!(of("$group/9", 0, 9), Err(Error::BadIds));
    assert_eq!(of("$dead/t", 4, 9), Ok(9));
    assert_eq!(of("a/b", 0, 9), Err(Error::BadIds));
}

#[test]
fn bad_records_are_refused_with_their_reason() {
    assert_eq!(refusal(|r| r.mesh = vec![8; 16].into()), Error::OtherMesh);
    assert_eq!(refusal(|r| r.mesh = vec![7; 15].into()), Error::OtherMesh);
    assert_eq!(refusal(|r| r.namespace = "a/b".into()), Error::BadName);
    assert_eq!(refusal(|r| r.namespace = String::new()), Error::BadName);
    assert_eq!(refusal(|r| r.name = "a/+".into()), Error::BadName);
    assert_eq!(refusal(|r| r.name = "x".repeat(256)), Error::BadName);
    assert_eq!(refusal(|r| r.life_ms = 0), Error::BadLife);
    assert_eq!(refusal(|r| r.life_ms = MAX_LIFE_MS + 1), Error::BadLife);
    assert_eq!(refusal(|r| r.replicas.clear()), Error::BadReplicas);
    assert_eq!(refusal(|r| r.replicas = (1..=10).map(replica).collect()), Error::BadReplicas);
    assert_eq!(refusal(|r| r.replicas[1].id = 1), Error::BadReplicas);
    assert_eq!(refusal(|r| r.replicas[1].id = 0), Error::BadReplicas);
    assert_eq!(refusal(|r| r.replicas[1].peer = r.replicas[0].peer.clone()), Error::BadReplicas);
    assert_eq!(refusal(|r| r.replicas[2].peer.truncate(31)), Error::BadReplicas);
    assert_eq!(refusal(|r| r.leader = 4), Error::BadReplicas);
    assert_eq!(refusal(|r| r.replicas[0].addresses = vec!["/ip4/10.0.0.1".into(); 9]), Error::BadReplicas);
    assert_eq!(refusal(|r| r.replicas[0].addresses[0] = "10.0.0.1:4001".into()), Error::BadReplicas);
    assert_eq!(refusal(|r| r.replicas[0].addresses[0] = format!("/{}", "x".repeat(255))), Error::BadReplicas);
    assert_eq!(
        refusal(|r| r.replicas = vec![replica(2), replica(4)]
            .into_iter()
            .map(|mut r| {
                r.id = if r.id == 4 { 1 } else { r.id };
                r
            })
            .collect()),
        Error::NotMember
    );
}

#[test]
fn unsigned_and_forged_records_are_refused() {
    let good = sign(&record("a/b"), &seed(1)).unwrap();
    let forged = |change: &dyn Fn(&mut SignedRoute)| {
        let mut signed = good.clone();
        change(&mut signed);
        open_now(&signed).unwrap_err()
    };
    assert_eq!(forged(&|s| s.signature = Bytes::new()), Error::Unsigned);
    assert_eq!(forged(&|s| s.signer = Bytes::new()), Error::Unsigned);
    // a member's name under a stranger's signature, and under another member's
    assert_eq!(forged(&|s| s.signature = sign_anything(&record("a/b"), 4).signature), Error::Forged);
    assert_eq!(forged(&|s| s.signer = peer(2).to_vec().into()), Error::Forged);
    // a good signature for something else: another epoch, or the record without the text before it
    let later = RouteRecord { epoch: 4, ..record("a/b") };
    assert_eq!(forged(&|s| s.record = later.encode_to_vec().into()), Error::Forged);
    let bare = SigningKey::from_bytes(&seed(1)).sign(&good.record).to_bytes();
    assert_eq!(forged(&|s| s.signature = bare.to_vec().into()), Error::Forged);
    assert_eq!(forged(&|s| s.signature = s.signature.slice(..63)), Error::Forged);
    assert_eq!(forged(&|s| s.signer = s.signer.slice(..31)), Error::Forged);
    // a stranger who signs well
    assert_eq!(open_now(&sign_anything(&record("a/b"), 4)), Err(Error::NotMember));
    assert_eq!(sign(&record("a/b"), &seed(4)), Err(Error::NotMember));
}

#[test]
fn a_key_under_which_any_signature_holds_is_refused() {
    // the neutral point as public key: without strict checks, R = neutral and s = 0 sign every message
    let mut neutral = [0u8; 32];
    neutral[0] = 1;
    let mut weak = record("a/b");
    weak.replicas[0].peer = neutral.to_vec();
    let signature = [neutral.as_slice(), &[0; 32]].concat();
    let signed = SignedRoute {
        record: weak.encode_to_vec().into(),
        signer: neutral.to_vec().into(),
        signature: signature.into(),
    };
    assert_eq!(open_now(&signed), Err(Error::Forged));
}

#[test]
fn size_comes_before_parsing_and_the_key_after_all() {
    assert_eq!(open(&vec![0xff; MAX_ROUTE_RECORD + 1], MESH, NOW), Err(Error::TooLarge));
    assert_eq!(open(&vec![0xff; MAX_ROUTE_RECORD], MESH, NOW), Err(Error::Malformed));
    assert_eq!(open(&[], MESH, NOW), Err(Error::OtherMesh));
    let broken = SignedRoute { record: vec![0xff].into(), ..sign(&record("a/b"), &seed(1)).unwrap() };
    assert_eq!(open_now(&broken), Err(Error::Malformed));
    let mut large = record("a/b");
    for replica in &mut large.replicas {
        replica.addresses = vec![format!("/{}", "x".repeat(254)); 8];
    }
    large.replicas =
        (1..=5).map(|n| Replica { id: n, peer: peer(n as u8).to_vec(), ..large.replicas[0].clone() }).collect();
    assert_eq!(sign(&large, &seed(1)), Err(Error::TooLarge));

    let good = encode(&sign(&record("a/b"), &seed(1)).unwrap());
    assert_eq!(open_at(&route::key(MESH, "default", "a/c"), &good, MESH, NOW), Err(Error::WrongKey));
    assert_eq!(open_at(&[], &good, MESH, NOW), Err(Error::WrongKey));
    assert_eq!(open(&good, MeshId([8; 16]), NOW), Err(Error::OtherMesh));
}

#[test]
fn the_newest_of_several_is_chosen_by_topic_then_epoch_then_time() {
    let of = |topic, epoch, issued_ms| {
        let record = RouteRecord { topic, epoch, issued_ms, ..record("a/b") };
        open_now(&sign(&record, &seed(1)).unwrap()).unwrap()
    };
    let found = [of(5, 3, NOW), of(5, 4, NOW - 9), of(4, 9, NOW + 9), of(5, 4, NOW - 8), of(5, 3, NOW + 1)];
    assert_eq!(newest(found.clone()).unwrap().order(), (5, 4, NOW - 8));
    assert_eq!(newest(found.into_iter().rev()).unwrap().order(), (5, 4, NOW - 8));
    assert_eq!(newest([]), None);
    // two members that sign the same: all peers pick the same one
    let twins = [1, 2].map(|n| open_now(&sign(&record("a/b"), &seed(n)).unwrap()).unwrap());
    let [one, two] = twins.clone();
    assert_ne!(one, two);
    assert_eq!(newest(twins), newest([two, one]));
}

prop_compose! {
    fn any_record()(
        levels in prop::collection::vec("[a-z0-9_.-]{1,9}", 1..4),
        topic in 1u64..,
        group: u64,
        epoch: u64,
        count in 1u8..=9,
        leader in 1u8..=9,
        addresses in 0usize..=8,
        issued_ms: u64,
        life_ms in 1..=MAX_LIFE_MS,
    ) -> RouteRecord {
        let mut replicas: Vec<Replica> = (1..=count).map(replica).collect();
        replicas[0].addresses = vec!["/ip6/::1/udp/1/quic-v1".into(); addresses];
        let leader = u64::from(leader.min(count));
        RouteRecord { topic, group, epoch, replicas, leader, issued_ms, life_ms, ..record(&levels.join("/")) }
    }
}

proptest! {
    // unoptimised ed25519 takes some milliseconds a record
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn records_survive_signing_and_opening(record in any_record(), now: u64) {
        let signed = sign(&record, &seed(1)).unwrap();
        let open = open(&encode(&signed), MESH, now).unwrap();
        prop_assert_eq!(open.route(), &record);
        prop_assert_eq!(open.expires_ms(), now.saturating_add(record.life_ms));
        prop_assert_eq!(SignedRoute::decode(open.bytes().clone()).unwrap(), signed);
    }

    #[test]
    fn no_flipped_bit_survives(record in any_record(), at: prop::sample::Index, bit in 0u8..8) {
        let mut bytes = encode(&sign(&record, &seed(1)).unwrap());
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        // it does not open, or says the same: protobuf writes some lengths and tags in more than one way
        if let Ok(open) = open(&bytes, MESH, NOW) {
            prop_assert_eq!(open.route(), &record);
            prop_assert_eq!(open.signer(), peer(1));
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(open(&bytes, MESH, NOW).is_err());
    }
}
