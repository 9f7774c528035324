//! What is refused before it reaches the store, in etcd's words. What a command may hold is the store's own rule
//! ([`check_command`]); here stand the bounds and what only reads have.

use super::pb::etcdserverpb as pb;
use super::status::ApiError;
use brickraft_engine::kv::check_command;
use brickraft_engine::kv::types::{Command, KvError};
use prost::Message;

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

/// What a message may be larger than a request: etcd's overhead, so that "request is too large" is said by us.
const MESSAGE_OVERHEAD_BYTES: usize = 512 * 1024;

impl Limits {
    /// Bytes of a message that is read at all.
    pub(super) fn message_bytes_max(&self) -> usize {
        self.request_bytes_max.saturating_add(MESSAGE_OVERHEAD_BYTES)
    }

    /// Refuses what is too large to be proposed.
    pub(super) fn size(&self, request: &impl Message) -> Result<(), ApiError> {
        if request.encoded_len() > self.request_bytes_max {
            return Err(KvError::RequestTooLarge.into());
        }
        Ok(())
    }

    pub(super) fn command(&self, command: &Command) -> Result<(), ApiError> {
        check_command(command, self.txn_ops_max).map_err(Into::into)
    }
}

pub(super) fn range(r: &pb::RangeRequest) -> Result<(), ApiError> {
    if r.key.is_empty() {
        return Err(KvError::EmptyKey.into());
    }
    if pb::range_request::SortOrder::try_from(r.sort_order).is_err() || pb::range_request::SortTarget::try_from(r.sort_target).is_err() {
        return Err(KvError::InvalidSortOption.into());
    }
    Ok(())
}
