//! What is refused before it reaches the store, in etcd's order and words.

use super::pb::etcdserverpb as pb;
use super::status::ApiError;
use brickraft_engine::kv::types::KvError;
use bytes::Bytes;
use pb::request_op::Request;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};

/// The bounds of one request.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Operations in one list of a transaction (etcd `--max-txn-ops`).
    pub txn_ops_max: usize,
    /// Bytes of one encoded request (etcd `--max-request-bytes`).
    pub request_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { txn_ops_max: 128, request_bytes_max: 1_572_864 }
    }
}

impl Limits {
    /// Refuses what is too large to be proposed.
    pub(super) fn size(&self, request: &impl Message) -> Result<(), ApiError> {
        if request.encoded_len() > self.request_bytes_max {
            return Err(KvError::RequestTooLarge.into());
        }
        Ok(())
    }

    pub(super) fn txn(&self, r: &pb::TxnRequest) -> Result<(), ApiError> {
        check_txn(r, self.txn_ops_max)?;
        intervals(&r.success)?;
        intervals(&r.failure)?;
        Ok(())
    }
}

fn key_given(key: &[u8]) -> Result<(), ApiError> {
    if key.is_empty() { Err(KvError::EmptyKey.into()) } else { Ok(()) }
}

pub(super) fn range(r: &pb::RangeRequest) -> Result<(), ApiError> {
    key_given(&r.key)?;
    if pb::range_request::SortOrder::try_from(r.sort_order).is_err()
        || pb::range_request::SortTarget::try_from(r.sort_target).is_err()
    {
        return Err(KvError::InvalidSortOption.into());
    }
    Ok(())
}

pub(super) fn put(r: &pb::PutRequest) -> Result<(), ApiError> {
    key_given(&r.key)?;
    if r.ignore_value && !r.value.is_empty() {
        return Err(KvError::ValueProvided.into());
    }
    if r.ignore_lease && r.lease != 0 {
        return Err(KvError::LeaseProvided.into());
    }
    Ok(())
}

pub(super) fn delete_range(r: &pb::DeleteRangeRequest) -> Result<(), ApiError> {
    key_given(&r.key)
}

/// A nested transaction has what its parent left of the bound, so nesting ends too.
fn check_txn(r: &pb::TxnRequest, ops_max: usize) -> Result<(), ApiError> {
    let ops = r.compare.len().max(r.success.len()).max(r.failure.len());
    let left = ops_max.checked_sub(ops).ok_or(KvError::TooManyOps)?;
    r.compare.iter().try_for_each(|c| key_given(&c.key))?;
    for op in r.success.iter().chain(&r.failure) {
        match &op.request {
            Some(Request::RequestRange(r)) => range(r)?,
            Some(Request::RequestPut(r)) => put(r)?,
            Some(Request::RequestDeleteRange(r)) => delete_range(r)?,
            Some(Request::RequestTxn(r)) => check_txn(r, left)?,
            None => return Err(KvError::KeyNotFound.into()),
        }
    }
    Ok(())
}

/// Disjoint spans of keys: start -> end, `None` for no end. Merged as they come, so that a hostile transaction of
/// many deletions costs no more than n log n.
#[derive(Default)]
struct Spans(BTreeMap<Bytes, Option<Bytes>>);

fn ends_before(end: Option<&Bytes>, key: &Bytes) -> bool {
    end.is_some_and(|e| e < key)
}

impl Spans {
    fn insert(&mut self, mut start: Bytes, mut end: Option<Bytes>) {
        if end.as_ref().is_some_and(|e| *e <= start) {
            return;
        }
        loop {
            // The last span that starts within reach of this one; it overlaps unless it ends before it.
            let last = match &end {
                Some(e) => self.0.range(..=e.clone()).next_back(),
                None => self.0.iter().next_back(),
            };
            let Some((s, e)) = last.map(|(s, e)| (s.clone(), e.clone())) else { break };
            if ends_before(e.as_ref(), &start) {
                break;
            }
            self.0.remove(&s);
            start = start.min(s);
            end = match (end, e) {
                (Some(a), Some(b)) => Some(a.max(b)),
                _ => None,
            };
        }
        self.0.insert(start, end);
    }

    fn insert_request(&mut self, r: &pb::DeleteRangeRequest) {
        let end = match r.range_end.as_ref() {
            [] => {
                let mut next = r.key.to_vec();
                next.push(0);
                Some(next.into())
            }
            [0] => None,
            _ => Some(r.range_end.clone()),
        };
        self.insert(r.key.clone(), end);
    }

    fn contains(&self, key: &Bytes) -> bool {
        let span = self.0.range(..=key.clone()).next_back();
        span.is_some_and(|(_, end)| end.as_ref().is_none_or(|e| key < e))
    }

    fn append(&mut self, other: Self) {
        for (start, end) in other.0 {
            self.insert(start, end);
        }
    }
}

/// No key is put twice, or put and deleted, in one path through a transaction.
fn intervals(ops: &[pb::RequestOp]) -> Result<(BTreeSet<Bytes>, Spans), ApiError> {
    let mut puts = BTreeSet::new();
    let mut deletes = Spans::default();
    for op in ops {
        if let Some(Request::RequestDeleteRange(r)) = &op.request {
            deletes.insert_request(r);
        }
    }
    for op in ops {
        let Some(Request::RequestTxn(r)) = &op.request else { continue };
        let (puts_then, deletes_then) = intervals(&r.success)?;
        let (puts_else, deletes_else) = intervals(&r.failure)?;
        // Both branches may put the same key, since only one of them runs.
        if puts_then.iter().chain(&puts_else).any(|k| puts.contains(k) || deletes.contains(k)) {
            return Err(KvError::DuplicateKey.into());
        }
        puts.extend(puts_then);
        puts.extend(puts_else);
        deletes.append(deletes_then);
        deletes.append(deletes_else);
    }
    for op in ops {
        let Some(Request::RequestPut(r)) = &op.request else { continue };
        if deletes.contains(&r.key) || !puts.insert(r.key.clone()) {
            return Err(KvError::DuplicateKey.into());
        }
    }
    Ok((puts, deletes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(request: Request) -> pb::RequestOp {
        pb::RequestOp { request: Some(request) }
    }

    fn put_op(key: &'static str) -> pb::RequestOp {
        op(Request::RequestPut(pb::PutRequest { key: key.into(), ..Default::default() }))
    }

    fn delete_op(key: &'static str, end: &'static str) -> pb::RequestOp {
        op(Request::RequestDeleteRange(pb::DeleteRangeRequest { key: key.into(), range_end: end.into(), prev_kv: false }))
    }

    fn txn_op(success: Vec<pb::RequestOp>, failure: Vec<pb::RequestOp>) -> pb::RequestOp {
        op(Request::RequestTxn(pb::TxnRequest { compare: vec![], success, failure }))
    }

    fn check(success: Vec<pb::RequestOp>) -> Result<(), String> {
        let r = pb::TxnRequest { success, ..Default::default() };
        Limits::default().txn(&r).map_err(|e| e.to_string())
    }

    #[test]
    fn duplicate_keys() {
        let duplicate = Err(KvError::DuplicateKey.to_string());
        assert_eq!(check(vec![put_op("a"), put_op("b")]), Ok(()));
        assert_eq!(check(vec![put_op("a"), put_op("a")]), duplicate);
        assert_eq!(check(vec![put_op("b"), delete_op("a", "c")]), duplicate);
        assert_eq!(check(vec![put_op("c"), delete_op("a", "c")]), Ok(()));
        assert_eq!(check(vec![put_op("c"), delete_op("a", "\0")]), duplicate);
        assert_eq!(check(vec![put_op("a"), delete_op("a", "")]), duplicate);
        assert_eq!(check(vec![put_op("aa"), delete_op("a", "")]), Ok(()));
        assert_eq!(check(vec![txn_op(vec![put_op("a")], vec![put_op("a")])]), Ok(()));
        assert_eq!(check(vec![put_op("a"), txn_op(vec![], vec![put_op("a")])]), duplicate);
        assert_eq!(check(vec![put_op("a"), txn_op(vec![delete_op("a", "b")], vec![])]), duplicate);
        assert_eq!(check(vec![txn_op(vec![put_op("a")], vec![]), txn_op(vec![put_op("a")], vec![])]), duplicate);
    }

    #[test]
    fn bounds() {
        let keys = |n| vec![op(Request::RequestRange(pb::RangeRequest { key: "a".into(), ..Default::default() })); n];
        assert_eq!(check(keys(128)), Ok(()));
        assert_eq!(check(keys(129)), Err(KvError::TooManyOps.to_string()));
        assert_eq!(check(vec![txn_op(keys(128), vec![])]), Err(KvError::TooManyOps.to_string()));
        assert_eq!(check(vec![txn_op(keys(127), vec![])]), Ok(()));
        assert_eq!(check(vec![put_op("")]), Err(KvError::EmptyKey.to_string()));
        assert_eq!(check(vec![pb::RequestOp { request: None }]), Err(KvError::KeyNotFound.to_string()));
    }

    #[test]
    fn spans_merge() {
        let mut spans = Spans::default();
        for (start, end) in [("c", "d"), ("a", "b"), ("f", "h"), ("b", "c"), ("e", "g")] {
            spans.insert(start.into(), Some(end.into()));
        }
        assert_eq!(spans.0.len(), 2);
        for (key, inside) in [("a", true), ("cz", true), ("d", false), ("e", true), ("gz", true), ("h", false)] {
            assert_eq!(spans.contains(&key.into()), inside, "{key}");
        }
    }
}
