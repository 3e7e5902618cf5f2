//! For tests: rows and topics in memory, and components made of WAT.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;

use bytes::Bytes;
use canal_proto::log::{StateOp, Target};
use parking_lot::Mutex;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};

use super::{StateView, Topics};

/// Rows in memory.
#[derive(Default)]
pub struct Rows(Mutex<BTreeMap<String, Bytes>>);

impl Rows {
    pub fn of(rows: &[(&str, &str)]) -> Self {
        let all = Self::default();
        rows.iter().for_each(|(key, value)| all.put(key, value));
        all
    }

    pub fn apply(&self, writes: &[StateOp]) {
        for StateOp { key, value } in writes {
            match value {
                Some(value) => self.0.lock().insert(key.clone(), value.clone()),
                None => self.0.lock().remove(key),
            };
        }
    }

    pub fn put(&self, key: &str, value: &str) {
        self.0.lock().insert(key.to_owned(), Bytes::copy_from_slice(value.as_bytes()));
    }
}

impl StateView for Rows {
    fn get(&self, key: &str) -> Result<Option<Bytes>, String> {
        Ok(self.0.lock().get(key).cloned())
    }

    fn scan(&self, prefix: &str, limit: u32) -> Result<Vec<(String, Bytes)>, String> {
        let rows = self.0.lock();
        let found = rows.iter().filter(|(key, _)| key.starts_with(prefix)).take(limit as usize);
        Ok(found.map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}

/// State and topics that can't be read.
pub struct Broken;

impl StateView for Broken {
    fn get(&self, _: &str) -> Result<Option<Bytes>, String> {
        Err("no quorum".into())
    }

    fn scan(&self, _: &str, _: u32) -> Result<Vec<(String, Bytes)>, String> {
        Err("no quorum".into())
    }
}

impl Topics for Broken {
    fn resolve(&self, _: &str) -> Result<Option<Target>, String> {
        Err("no quorum".into())
    }
}

/// Knows every topic under `out/`, in group 7; the id is the name's length.
pub struct Out;

impl Out {
    pub fn target(name: &str) -> Target {
        Target { topic: name.len() as u64, group: 7, name: name.to_owned() }
    }
}

impl Topics for Out {
    fn resolve(&self, name: &str) -> Result<Option<Target>, String> {
        Ok(name.starts_with("out/").then(|| Self::target(name)))
    }
}

/// A component of a core module's text, in a world of this WIT.
pub fn component_of(wit: &str, module: &str) -> Vec<u8> {
    let mut module = wat::parse_str(module).unwrap();
    let mut resolve = wit_parser::Resolve::default();
    let package = resolve.push_str("test.wit", wit).unwrap();
    let world = resolve.select_world(&[package], None).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default().validate(true).module(&module).unwrap().encode().unwrap()
}

/// A function whose `handle` has this body, with these data segments and further fields of the module.
///
/// The body sees the event's flat parameters, calls `$get` and so on, and leaves the address of its result; `$ok`
/// is that of success, `$failed` of an error that says what stands at 2000, 5 bytes. The result of host calls goes
/// to 1024.
pub fn function(fields: &str, body: &str) -> Vec<u8> {
    let host = "canal:function/host@1.0.0";
    let module = format!(
        r#"(module
  (import "{host}" "get" (func $get (param i32 i32 i32)))
  (import "{host}" "put" (func $put (param i32 i32 i32 i32 i32)))
  (import "{host}" "delete" (func $delete (param i32 i32 i32)))
  (import "{host}" "scan" (func $scan (param i32 i32 i32 i32)))
  (import "{host}" "emit" (func $emit (param i32 i32 i32 i32 i32 i32 i32 i32 i32)))
  (import "{host}" "log" (func $log (param i32 i32 i32)))
  (import "{host}" "now-ms" (func $now (result i64)))
  (import "{host}" "random-u64" (func $random (result i64)))
  (memory (export "memory") 2)
  (global $heap (mut i32) (i32.const 65536))
  (global $ok i32 (i32.const 3000))
  (global $failed i32 (i32.const 3016))
  ;; 3000: ok. 3016: err(string at 2000, 5 bytes)
  (data (i32.const 3016) "\01\00\00\00\d0\07\00\00\05\00\00\00")
  (data (i32.const 2000) "sorry")
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
    (global.set $heap (i32.add (local.get $at) (local.get 3)))
    (local.get $at))
  {fields}
  (func (export "handle")
    (param $topic i32) (param $topic_len i32) (param $offset i64) (param $key i32) (param $key_len i32)
    (param $headers i32) (param $headers_len i32) (param $payload i32) (param $payload_len i32) (param $time i64)
    (result i32)
    (local $n i32)
    {body}))"#
    );
    component_of(canal_proto::FUNCTION_WIT, &module)
}
