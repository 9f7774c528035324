//! Tests of the store as a whole; helpers that they share.

mod auth;
mod crash;
mod history;
mod layers;
mod model;
mod semantics;
mod snapshot;
mod watch;

use super::types::*;
use super::*;
use crate::types::{Index, Revision, Term};
use bytes::Bytes;
use redb::backends::InMemoryBackend;

pub(super) const U: Keyspace = Keyspace::User;

pub(super) fn memory() -> Store {
    Store::with_backend(InMemoryBackend::new(), InMemoryBackend::new(), 16 << 20).unwrap()
}

pub(super) fn b(s: &str) -> Bytes {
    Bytes::copy_from_slice(s.as_bytes())
}

pub(super) fn entry(index: u64, command: Command) -> ApplyEntry {
    ApplyEntry { index: Index(index), term: Term(1), command: Some(command), membership: None }
}

/// Applies one command as the next entry.
pub(super) fn run(store: &Store, command: Command) -> ApplyOutcome {
    let index = store.applied().0.next().0;
    store.apply(&[entry(index, command)]).unwrap().remove(0)
}

pub(super) fn put(key: &str, value: &str) -> Command {
    Command::Put(U, PutRequest { key: b(key), value: b(value), ..Default::default() })
}

pub(super) fn put_lease(key: &str, lease: i64) -> Command {
    Command::Put(U, PutRequest { key: b(key), value: b("v"), lease, ..Default::default() })
}

pub(super) fn delete(key: &str, end: &str) -> Command {
    Command::DeleteRange(U, DeleteRangeRequest { key: b(key), range_end: b(end), prev_kv: true })
}

pub(super) fn compact(revision: u64) -> Command {
    Command::Compact { keyspace: U, revision: Revision(revision) }
}

pub(super) fn all() -> RangeRequest {
    RangeRequest { key: b("\0"), range_end: b("\0"), ..Default::default() }
}

pub(super) fn at(revision: u64) -> RangeRequest {
    RangeRequest { revision: Revision(revision), ..all() }
}

/// `key=value` of each pair.
pub(super) fn show(response: &RangeResponse) -> String {
    let pairs = response.kvs.iter().map(|kv| format!("{}={}", String::from_utf8_lossy(&kv.key), String::from_utf8_lossy(&kv.value)));
    pairs.collect::<Vec<_>>().join(" ")
}

pub(super) fn read(store: &Store, request: &RangeRequest) -> RangeResponse {
    store.range(U, request).unwrap().0
}

pub(super) fn refusal(store: &Store, request: &RangeRequest) -> KvError {
    match store.range(U, request) {
        Err(ReadError::Kv(error)) => error,
        other => panic!("{other:?}"),
    }
}
