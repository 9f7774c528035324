//! Between etcd's messages and the store's own requests. Signed numbers from clients are brought to the store's
//! unsigned ones here, so that a negative one means what it means to etcd.

use super::pb::etcdserverpb as pb;
use super::pb::mvccpb;
use super::status::ApiError;
use brickraft_engine::kv::types as kv;
use brickraft_engine::types::Revision;
use pb::request_op::Request;
use pb::response_op::Response;

/// A revision, count or version as the wire has it.
pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A lower bound or "as of" revision: negative ones ask for nothing, as 0 does.
pub(super) fn revision(value: i64) -> Revision {
    Revision(u64::try_from(value).unwrap_or(0))
}

/// An upper bound: 0 is none, and below a negative one there is nothing. No key is as old as revision 1, that of
/// the empty store.
fn upper(value: i64) -> Revision {
    Revision(u64::try_from(value).unwrap_or(1))
}

pub(super) fn range(r: pb::RangeRequest) -> kv::RangeRequest {
    let sort_order = match r.sort_order() {
        pb::range_request::SortOrder::None => kv::SortOrder::None,
        pb::range_request::SortOrder::Ascend => kv::SortOrder::Ascend,
        pb::range_request::SortOrder::Descend => kv::SortOrder::Descend,
    };
    let sort_target = match r.sort_target() {
        pb::range_request::SortTarget::Key => kv::SortTarget::Key,
        pb::range_request::SortTarget::Version => kv::SortTarget::Version,
        pb::range_request::SortTarget::Create => kv::SortTarget::Create,
        pb::range_request::SortTarget::Mod => kv::SortTarget::Mod,
        pb::range_request::SortTarget::Value => kv::SortTarget::Value,
    };
    kv::RangeRequest {
        limit: u64::try_from(r.limit).unwrap_or(0),
        revision: revision(r.revision),
        sort_order,
        sort_target,
        keys_only: r.keys_only,
        count_only: r.count_only,
        min_mod_revision: revision(r.min_mod_revision),
        max_mod_revision: upper(r.max_mod_revision),
        min_create_revision: revision(r.min_create_revision),
        max_create_revision: upper(r.max_create_revision),
        key: r.key,
        range_end: r.range_end,
    }
}

pub(super) fn put(r: pb::PutRequest) -> kv::PutRequest {
    kv::PutRequest {
        key: r.key,
        value: r.value,
        lease: r.lease,
        prev_kv: r.prev_kv,
        ignore_value: r.ignore_value,
        ignore_lease: r.ignore_lease,
    }
}

pub(super) fn delete_range(r: pb::DeleteRangeRequest) -> kv::DeleteRangeRequest {
    kv::DeleteRangeRequest { key: r.key, range_end: r.range_end, prev_kv: r.prev_kv }
}

/// A comparison with a negative number, which no stored number equals or is less than, becomes one with the
/// largest (for equality) or the smallest number.
fn compare_number(value: Option<i64>, op: kv::CompareOp) -> (u64, kv::CompareOp) {
    match (u64::try_from(value.unwrap_or(0)), op) {
        (Ok(v), op) => (v, op),
        (Err(_), kv::CompareOp::Less) => (0, kv::CompareOp::Less),
        (Err(_), kv::CompareOp::Equal) => (u64::MAX, kv::CompareOp::Equal),
        (Err(_), kv::CompareOp::Greater | kv::CompareOp::NotEqual) => (u64::MAX, kv::CompareOp::NotEqual),
    }
}

fn compare(c: pb::Compare) -> kv::Compare {
    use pb::compare::{CompareResult, CompareTarget, TargetUnion};
    let mut op = match c.result() {
        CompareResult::Equal => kv::CompareOp::Equal,
        CompareResult::Greater => kv::CompareOp::Greater,
        CompareResult::Less => kv::CompareOp::Less,
        CompareResult::NotEqual => kv::CompareOp::NotEqual,
    };
    let which = c.target();
    // A union member that does not fit the target counts as its zero, as in Go's generated getters.
    let number = match (which, &c.target_union) {
        (CompareTarget::Version, Some(TargetUnion::Version(v)))
        | (CompareTarget::Create, Some(TargetUnion::CreateRevision(v)))
        | (CompareTarget::Mod, Some(TargetUnion::ModRevision(v)))
        | (CompareTarget::Lease, Some(TargetUnion::Lease(v))) => Some(*v),
        _ => None,
    };
    let target = match which {
        CompareTarget::Value => kv::CompareTarget::Value(match c.target_union {
            Some(TargetUnion::Value(v)) => v,
            _ => bytes::Bytes::new(),
        }),
        CompareTarget::Lease => kv::CompareTarget::Lease(number.unwrap_or(0)),
        CompareTarget::Version | CompareTarget::Create | CompareTarget::Mod => {
            let (value, adjusted) = compare_number(number, op);
            op = adjusted;
            match which {
                CompareTarget::Version => kv::CompareTarget::Version(value),
                CompareTarget::Create => kv::CompareTarget::Create(Revision(value)),
                _ => kv::CompareTarget::Mod(Revision(value)),
            }
        }
    };
    kv::Compare { key: c.key, range_end: c.range_end, op, target }
}

fn txn_op(op: pb::RequestOp) -> Result<kv::TxnOp, ApiError> {
    Ok(match op.request {
        Some(Request::RequestRange(r)) => kv::TxnOp::Range(range(r)),
        Some(Request::RequestPut(r)) => kv::TxnOp::Put(put(r)),
        Some(Request::RequestDeleteRange(r)) => kv::TxnOp::DeleteRange(delete_range(r)),
        Some(Request::RequestTxn(r)) => kv::TxnOp::Txn(txn(r)?),
        None => return Err(kv::KvError::KeyNotFound.into()),
    })
}

pub(super) fn txn(r: pb::TxnRequest) -> Result<kv::TxnRequest, ApiError> {
    Ok(kv::TxnRequest {
        compare: r.compare.into_iter().map(compare).collect(),
        success: r.success.into_iter().map(txn_op).collect::<Result<_, _>>()?,
        failure: r.failure.into_iter().map(txn_op).collect::<Result<_, _>>()?,
    })
}

pub(super) fn key_value(p: kv::KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        create_revision: signed(p.create_revision.0),
        mod_revision: signed(p.mod_revision.0),
        version: signed(p.version),
        lease: p.lease,
        key: p.key,
        value: p.value,
    }
}

pub(super) fn event(e: kv::Event) -> mvccpb::Event {
    let kind = if e.delete { mvccpb::event::EventType::Delete } else { mvccpb::event::EventType::Put };
    mvccpb::Event { r#type: kind.into(), kv: Some(key_value(e.kv)), prev_kv: e.prev_kv.map(key_value) }
}

pub(super) fn range_response(r: kv::RangeResponse, header: pb::ResponseHeader) -> pb::RangeResponse {
    pb::RangeResponse { header: Some(header), kvs: r.kvs.into_iter().map(key_value).collect(), more: r.more, count: signed(r.count) }
}

/// The answers inside a transaction's: their headers carry the revision alone, as etcd's do.
pub(super) fn txn_responses(responses: Vec<kv::OpResponse>, revision: Revision) -> Vec<pb::ResponseOp> {
    responses.into_iter().map(|r| pb::ResponseOp { response: Some(op_response(r, revision)) }).collect()
}

fn op_response(response: kv::OpResponse, revision: Revision) -> Response {
    let header = pb::ResponseHeader { revision: signed(revision.0), ..Default::default() };
    match response {
        kv::OpResponse::Range(r) => Response::ResponseRange(range_response(r, header)),
        kv::OpResponse::Put { prev_kv } => {
            Response::ResponsePut(pb::PutResponse { header: Some(header), prev_kv: prev_kv.map(|kv| key_value(*kv)) })
        }
        kv::OpResponse::DeleteRange { deleted, prev_kvs } => Response::ResponseDeleteRange(pb::DeleteRangeResponse {
            header: Some(header),
            deleted: signed(deleted),
            prev_kvs: prev_kvs.into_iter().map(key_value).collect(),
        }),
        kv::OpResponse::Txn { succeeded, responses } => {
            Response::ResponseTxn(pb::TxnResponse { header: Some(header), succeeded, responses: txn_responses(responses, revision) })
        }
    }
}
