//! Requests and answers of the key-value store, in etcd's terms but free of gRPC.

use super::alarm::Alarm;
use super::auth::{AuthCommand, AuthError, Identity};
use crate::types::Revision;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The store holds two key spaces with revisions of their own: what clients see, and what the cluster
/// itself keeps (peers, volumes, bricks, group configurations). No client request reaches the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Keyspace {
    /// The etcd API's keys.
    User = 0,
    /// The cluster store.
    System = 1,
}

/// A key with its value and history numbers (etcd `mvccpb.KeyValue`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// The value; empty in a deletion event.
    pub value: Bytes,
    /// The revision of the creation.
    pub create_revision: Revision,
    /// The revision of the last modification.
    pub mod_revision: Revision,
    /// 1 at creation, one more at each modification.
    pub version: u64,
    /// The lease that the key is attached to; 0 for none.
    pub lease: i64,
}

/// One change (etcd `mvccpb.Event`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// True for a deletion, false for a put.
    pub delete: bool,
    /// The pair after the change; after a deletion only `key` and `mod_revision` are set.
    pub kv: KeyValue,
    /// The pair before the change, if there was one.
    pub prev_kv: Option<KeyValue>,
}

/// The order of a range's answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SortOrder {
    /// As the store yields them: by key, ascending.
    #[default]
    None,
    /// Ascending.
    Ascend,
    /// Descending.
    Descend,
}

/// What a range is sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the fields of KeyValue")]
pub enum SortTarget {
    #[default]
    Key,
    Version,
    Create,
    Mod,
    Value,
}

/// etcd `RangeRequest`. `range_end` empty: one key; `\0`: all keys from `key` on; else `[key, range_end)`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "etcd's own field names")]
pub struct RangeRequest {
    pub key: Bytes,
    pub range_end: Bytes,
    /// At most so many pairs; 0 for no limit.
    pub limit: u64,
    /// Read as of this revision; 0 for now.
    pub revision: Revision,
    pub sort_order: SortOrder,
    pub sort_target: SortTarget,
    pub keys_only: bool,
    pub count_only: bool,
    pub min_mod_revision: Revision,
    pub max_mod_revision: Revision,
    pub min_create_revision: Revision,
    pub max_create_revision: Revision,
}

/// etcd `RangeResponse` without its header.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "etcd's own field names")]
pub struct RangeResponse {
    pub kvs: Vec<KeyValue>,
    /// More pairs lie in the range than `limit` let through.
    pub more: bool,
    /// Pairs in the range, whatever the limit.
    pub count: u64,
}

/// etcd `PutRequest`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "etcd's own field names")]
pub struct PutRequest {
    #[serde(deserialize_with = "crate::shared::bytes")]
    pub key: Bytes,
    #[serde(deserialize_with = "crate::shared::bytes")]
    pub value: Bytes,
    pub lease: i64,
    pub prev_kv: bool,
    pub ignore_value: bool,
    pub ignore_lease: bool,
}

/// etcd `DeleteRangeRequest`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "etcd's own field names")]
pub struct DeleteRangeRequest {
    pub key: Bytes,
    pub range_end: Bytes,
    pub prev_kv: bool,
}

/// What a comparison looks at, with the value it compares to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the fields of KeyValue")]
pub enum CompareTarget {
    Version(u64),
    Create(Revision),
    Mod(Revision),
    Value(Bytes),
    Lease(i64),
}

/// The relation a comparison asks for: stored value `op` given value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub enum CompareOp {
    Equal,
    Greater,
    Less,
    NotEqual,
}

/// etcd `Compare`: with `range_end`, every key in the range must satisfy it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "etcd's own field names")]
pub struct Compare {
    pub key: Bytes,
    pub range_end: Bytes,
    pub op: CompareOp,
    pub target: CompareTarget,
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "etcd's own names")]
pub enum TxnOp {
    Range(RangeRequest),
    Put(PutRequest),
    DeleteRange(DeleteRangeRequest),
    Txn(TxnRequest),
}

/// etcd `TxnRequest`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "etcd's own field names")]
pub struct TxnRequest {
    pub compare: Vec<Compare>,
    pub success: Vec<TxnOp>,
    pub failure: Vec<TxnOp>,
}

/// The answer to one operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "etcd's own names")]
pub enum OpResponse {
    Range(RangeResponse),
    /// Boxed, since most have none, and a transaction has many answers.
    Put { prev_kv: Option<Box<KeyValue>> },
    DeleteRange { deleted: u64, prev_kvs: Vec<KeyValue> },
    Txn { succeeded: bool, responses: Vec<OpResponse> },
}

/// What goes through the Raft log to the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "etcd's own names")]
pub enum Command {
    Put(Keyspace, PutRequest),
    DeleteRange(Keyspace, DeleteRangeRequest),
    Txn(Keyspace, TxnRequest),
    /// Forget history below `revision`.
    Compact {
        keyspace: Keyspace,
        revision: Revision,
    },
    /// `ttl_s` is in seconds; `id` is never 0 here (the proposer picks one).
    LeaseGrant {
        id: i64,
        ttl_s: i64,
    },
    /// Also what the leader proposes when a lease runs out.
    LeaseRevoke {
        id: i64,
    },
    /// A member tells its name and client URLs once it runs.
    MemberAttributes {
        id: crate::types::NodeId,
        name: String,
        client_urls: Vec<String>,
    },
    /// Raise an alarm, or take it back.
    Alarm {
        activate: bool,
        alarm: Alarm,
    },
    /// Change users, roles and permissions.
    Auth(AuthCommand),
    /// A client's command while authentication is on; `who` is `None` for a client that said no name. Never holds another.
    As {
        who: Option<Identity>,
        command: Box<Command>,
    },
}

impl Command {
    /// The command itself, and whom it is from; `None` where nobody asked for a name.
    #[must_use]
    pub fn unwrapped(&self) -> (Option<Option<&Identity>>, &Command) {
        match self {
            Self::As { who, command } => (Some(who.as_ref()), command),
            other => (None, other),
        }
    }
}

/// What applying a [`Command`] yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The key space's revision after the command.
    pub revision: Revision,
    /// The answer.
    pub result: Result<CommandResponse, KvError>,
}

/// The command's own answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "etcd's own names")]
pub enum CommandResponse {
    Op(OpResponse),
    Compacted,
    LeaseGranted {
        id: i64,
        ttl_s: i64,
    },
    LeaseRevoked,
    /// What an alarm command found or changed.
    Alarms(Vec<Alarm>),
    Done,
}

/// Why the store refuses. The texts are etcd's, because clients match on them.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the texts say it")]
pub enum KvError {
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound,
    #[error("etcdserver: lease already exists")]
    LeaseExists,
    #[error("etcdserver: too large lease TTL")]
    LeaseTtlTooLarge,
    #[error("etcdserver: key not found")]
    KeyNotFound,
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    #[error("etcdserver: value is provided")]
    ValueProvided,
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    #[error("etcdserver: too many operations in txn request")]
    TooManyOps,
    #[error("etcdserver: request is too large")]
    RequestTooLarge,
    #[error("etcdserver: invalid sort option")]
    InvalidSortOption,
    #[error("etcdserver: mvcc: database space exceeded")]
    NoSpace,
    #[error("etcdserver: corrupt cluster")]
    Corrupt,
    #[error(transparent)]
    Auth(#[from] AuthError),
}
