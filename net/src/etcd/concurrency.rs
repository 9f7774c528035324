//! What locks and elections share: contenders under one prefix, first come first served by creation revision.
//!
//! As in etcd's concurrency package: a contender's key is `name/` + its lease in hexadecimal, and it waits for the
//! deletion of the one key that was created just before its own, so that a release wakes one waiter and not all.

use super::auth::Caller;
use super::convert;
use super::status::ApiError;
use brickraft_engine::kv::types::{
    Command, CommandResponse, Compare, CompareOp, CompareTarget, DeleteRangeRequest, KeyValue, Keyspace, OpResponse, PutRequest,
    RangeRequest, SortOrder, SortTarget, TxnOp, TxnRequest,
};
use brickraft_engine::kv::{WatchOutput, WatchRequest};
use brickraft_engine::member::MemberError;
use brickraft_engine::types::Revision;
use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::sync::oneshot;

/// The lease of a contender that brought none, in seconds: etcd's session default.
const SESSION_TTL_S: i64 = 60;

/// A contender whose turn has come.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) key: Bytes,
    pub(super) created: Revision,
    pub(super) lease: i64,
    /// The store's revision when its turn had come.
    pub(super) revision: Revision,
}

struct Contender {
    key: Bytes,
    prefix: Bytes,
    created: Revision,
    lease: i64,
    value: Bytes,
    /// The key was made by this request, and is this request's to remove.
    new: bool,
}

/// `name/`: the prefix of all contenders.
pub(super) fn prefix(name: &[u8]) -> Bytes {
    let mut prefix = BytesMut::with_capacity(name.len() + 1);
    prefix.put_slice(name);
    prefix.put_u8(b'/');
    prefix.freeze()
}

/// The end of the range of all keys with this prefix, which ends in `/`.
pub(super) fn prefix_end(prefix: &Bytes) -> Bytes {
    let mut end = BytesMut::from(prefix.as_ref());
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.freeze()
}

fn contender_key(prefix: &Bytes, lease: i64) -> Bytes {
    // Go's %x: the sign, then the magnitude.
    let sign = if lease < 0 { "-" } else { "" };
    let mut key = BytesMut::from(prefix.as_ref());
    key.put_slice(format!("{sign}{:x}", lease.unsigned_abs()).as_bytes());
    key.freeze()
}

/// The transaction "if `key` was created at `created` (0: does not exist) then ... else ...".
pub(super) fn if_created(key: &Bytes, created: Revision, success: Vec<TxnOp>, failure: Vec<TxnOp>) -> TxnRequest {
    let compare = Compare { key: key.clone(), range_end: Bytes::new(), op: CompareOp::Equal, target: CompareTarget::Create(created) };
    TxnRequest { compare: vec![compare], success, failure }
}

impl Caller {
    /// Runs a transaction; its branch, the answers and the revision.
    pub(super) async fn run_txn(&self, txn: TxnRequest) -> Result<(bool, Vec<OpResponse>, Revision), ApiError> {
        match self.propose(Command::Txn(Keyspace::User, txn)).await? {
            (CommandResponse::Op(OpResponse::Txn { succeeded, responses }), revision) => Ok((succeeded, responses, revision)),
            _ => Err(ApiError::Internal("no transaction's answer")),
        }
    }

    /// Who has held out longest under the prefix: the lock's owner, or the leader.
    pub(super) async fn holder(&self, prefix: &Bytes) -> Result<(Option<KeyValue>, Revision), ApiError> {
        let request = RangeRequest {
            key: prefix.clone(),
            range_end: prefix_end(prefix),
            limit: 1,
            sort_order: SortOrder::Ascend,
            sort_target: SortTarget::Create,
            ..Default::default()
        };
        let (mut range, revision) = self.range(request, false).await?;
        Ok((range.kvs.pop(), revision))
    }

    async fn contend(&self, name: &[u8], lease: i64, value: Bytes) -> Result<Contender, ApiError> {
        let lease = if lease == 0 { self.lease_grant(0, SESSION_TTL_S).await?.0 } else { lease };
        let prefix = prefix(name);
        let key = contender_key(&prefix, lease);
        let put = PutRequest { key: key.clone(), value: value.clone(), lease, ..Default::default() };
        let get = RangeRequest { key: key.clone(), ..Default::default() };
        let txn = if_created(&key, Revision(0), vec![TxnOp::Put(put)], vec![TxnOp::Range(get)]);
        let (new, mut responses, revision) = self.run_txn(txn).await?;
        let mut contender = Contender { key, prefix, created: revision, lease, value, new };
        if !new {
            let Some(OpResponse::Range(mut range)) = responses.pop() else {
                return Err(ApiError::Internal("no range's answer"));
            };
            let known = range.kvs.pop().ok_or(ApiError::Internal("a key that exists was not found"))?;
            contender.created = known.create_revision;
            if known.value != contender.value {
                self.proclaim(&contender.key, contender.created, contender.lease, contender.value.clone()).await?;
            }
        }
        Ok(contender)
    }

    /// Changes the value of a contender's key, if it is still the same key.
    pub(super) async fn proclaim(&self, key: &Bytes, created: Revision, lease: i64, value: Bytes) -> Result<Revision, ApiError> {
        let put = PutRequest { key: key.clone(), value, lease, ..Default::default() };
        let (done, _, revision) = self.run_txn(if_created(key, created, vec![TxnOp::Put(put)], vec![])).await?;
        if done { Ok(revision) } else { Err(ApiError::ElectionNotLeader) }
    }

    /// Removes a contender's key, unless it is another one by now.
    pub(super) async fn withdraw(&self, key: &Bytes, created: Revision) -> Result<Revision, ApiError> {
        let delete = DeleteRangeRequest { key: key.clone(), ..Default::default() };
        let (_, _, revision) = self.run_txn(if_created(key, created, vec![TxnOp::DeleteRange(delete)], vec![])).await?;
        Ok(revision)
    }

    async fn wait_turn(&self, contender: &Contender) -> Result<Revision, ApiError> {
        loop {
            let request = RangeRequest {
                key: contender.prefix.clone(),
                range_end: prefix_end(&contender.prefix),
                limit: 1,
                sort_order: SortOrder::Descend,
                sort_target: SortTarget::Create,
                max_create_revision: Revision(contender.created.0.saturating_sub(1)),
                keys_only: true,
                ..Default::default()
            };
            let (mut range, revision) = self.range(request, false).await?;
            let Some(before) = range.kvs.pop() else { break };
            self.wait_deletion(before.key, revision).await?;
        }
        // Its own lease may have run out while it waited.
        let own = RangeRequest { key: contender.key.clone(), ..Default::default() };
        let (mut range, revision) = self.range(own, false).await?;
        let alive = range.kvs.pop().is_some_and(|kv| kv.create_revision == contender.created);
        if alive { Ok(revision) } else { Err(ApiError::LockSessionExpired) }
    }

    /// Waits until `key`, which existed at `revision`, is deleted, or may have been.
    async fn wait_deletion(&self, key: Bytes, revision: Revision) -> Result<(), ApiError> {
        let request = WatchRequest { key, start_revision: revision.next(), no_put: true, ..Default::default() };
        let mut watch = self.handle().watch(Keyspace::User, request).await?;
        loop {
            match watch.next().await {
                Some(WatchOutput::Events { .. } | WatchOutput::Compacted { .. }) => return Ok(()),
                Some(WatchOutput::Progress { .. }) => {}
                None => return Err(MemberError::Stopped.into()),
            }
        }
    }

    /// Contends and waits. Runs as a task of its own, so that it sees its transaction through even when the client
    /// goes away in the middle, and then takes the key back: nobody would ever release it.
    async fn contend_and_wait(self, request: (Bytes, i64, Bytes), mut answer: oneshot::Sender<Result<Turn, ApiError>>) {
        let (name, lease, value) = request;
        let contender = match self.contend(&name, lease, value).await {
            Ok(contender) => contender,
            Err(e) => {
                let _ = answer.send(Err(e));
                return;
            }
        };
        let turn = tokio::select! {
            turn = self.wait_turn(&contender) => turn,
            e = self.stream_end(false) => Err(e),
            () = answer.closed() => Err(ApiError::Internal("the client is gone")),
        };
        let failed = turn.is_err();
        let Contender { key, created, lease, new, .. } = contender;
        let turn = turn.map(|revision| Turn { key: key.clone(), created, lease, revision });
        let unheard = answer.send(turn).is_err();
        if new
            && (failed || unheard)
            && let Err(e) = self.withdraw(&key, created).await
        {
            tracing::warn!(key = ?key, error = %e, "take back the key of a contender that is gone; its lease will");
        }
    }

    /// Waits for this contender's turn.
    pub(super) async fn take_turn(self, name: Bytes, lease: i64, value: Bytes) -> Result<Turn, ApiError> {
        let (answer, turn) = oneshot::channel();
        tokio::spawn(self.contend_and_wait((name, lease, value), answer));
        turn.await.unwrap_or(Err(MemberError::Stopped.into()))
    }
}

impl Turn {
    pub(super) fn created(&self) -> i64 {
        convert::signed(self.created.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_as_etcd_makes_them() {
        let prefix = prefix(b"a/b");
        assert_eq!(prefix.as_ref(), b"a/b/");
        assert_eq!(prefix_end(&prefix).as_ref(), b"a/b0");
        assert_eq!(contender_key(&prefix, 0x1234_abcd).as_ref(), b"a/b/1234abcd");
        assert_eq!(contender_key(&prefix, -16).as_ref(), b"a/b/-10");
    }
}
