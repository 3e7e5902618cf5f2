//! Route records of the DHT.

use canal_dht::core::record::{self, MAX_LIFE_MS};
use canal_dht::core::table::Table;
use canal_proto::limits::{MAX_REPLICAS, MAX_ROUTE_RECORD};
use canal_proto::route::SignedRoute;
use canal_proto::{MeshId, route};
use ed25519_dalek::{Signer as _, SigningKey};
use prost::Message as _;

/// The mesh of all records of the corpus.
const MESH: MeshId = MeshId([7; 16]);

/// When they come in.
const NOW_MS: u64 = 1_000_000;

/// Seed of the key with which records are signed here.
const KEY: [u8; 32] = [5; 32];

/// A route record, as the DHT stores it. The first byte says how: 0, signed already; else a record that is signed here, as
/// somebody would who has a key and no scruples.
pub fn routes(data: &[u8]) -> bool {
    let Some((how, data)) = data.split_first() else { return false };
    if *how == 0 {
        return signed(data);
    }
    let key = SigningKey::from_bytes(&KEY);
    let signature = key.sign(&route::signed_bytes(data)).to_bytes();
    let record = SignedRoute {
        record: data.to_vec().into(),
        signer: key.verifying_key().to_bytes().to_vec().into(),
        signature: signature.to_vec().into(),
    };
    signed(&record.encode_to_vec())
}

/// Taken only when everything about it is right, and then the change of any bit of it is noticed.
fn signed(data: &[u8]) -> bool {
    let mut table = Table::new(Some(MESH));
    let Ok(verified) = record::open(data, MESH, NOW_MS) else {
        assert!(table.put(&[0; 32], data, NOW_MS).is_err() && table.is_empty());
        return false;
    };
    let route = verified.route();
    assert!(data.len() <= MAX_ROUTE_RECORD && (1..=MAX_REPLICAS).contains(&route.replicas.len()));
    assert!(verified.expires_ms() > NOW_MS && verified.expires_ms() <= NOW_MS + MAX_LIFE_MS);
    assert!(verified.has_member(verified.signer()));
    let key = route::key(MESH, &route.namespace, &route.name);
    assert_eq!(verified.key(), key);
    assert!(table.put(&key, data, NOW_MS).is_ok() && table.get(&key, NOW_MS).is_some());
    assert!(table.put(&key, data, NOW_MS).is_ok() && table.len() == 1, "the same bytes change nothing");
    assert!(table.put(&[1; 32], data, NOW_MS).is_err(), "it stands under another key");
    assert!(record::open(data, MeshId([8; 16]), NOW_MS).is_err(), "it belongs to another mesh");
    // the signature covers the record, whatever the envelope is
    if let Ok(signed) = SignedRoute::decode(data) {
        let at = data.len() % signed.record.len().max(1);
        let mut forged = signed.record.to_vec();
        forged.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1);
        let forged = SignedRoute { record: forged.into(), ..signed }.encode_to_vec();
        assert!(record::open(&forged, MESH, NOW_MS).is_err(), "a forged record was taken");
    }
    table.expire(NOW_MS + MAX_LIFE_MS);
    assert!(table.is_empty());
    true
}
