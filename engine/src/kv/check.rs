//! What makes a request malformed whatever the state: checked before proposing, and again in applying,
//! because nothing may fall over a command from the log.

use super::auth::AuthError;
use super::types::{Command, DeleteRangeRequest, KvError, PutRequest, RangeRequest, TxnOp, TxnRequest};
use bytes::Bytes;
use std::collections::BTreeSet;

/// Transactions nest no deeper.
const TXN_DEPTH_MAX: usize = 64;

/// Checks what etcd checks of a request before it is proposed: keys given, options that go together, no key
/// put twice, at most `ops_max` operations in a transaction (along any path). Applying checks it again,
/// without a limit.
pub fn check_command(command: &Command, ops_max: usize) -> Result<(), KvError> {
    match command {
        Command::Put(_, put) => check_put(put),
        Command::DeleteRange(_, delete) => check_delete(delete),
        Command::Txn(_, txn) => {
            check_txn(txn, ops_max, TXN_DEPTH_MAX)?;
            check_branch(&txn.success)?;
            check_branch(&txn.failure)
        }
        Command::Compact { .. } | Command::LeaseGrant { .. } | Command::LeaseRevoke { .. } => Ok(()),
        Command::MemberAttributes { .. } | Command::Alarm { .. } => Ok(()),
        Command::Auth(_) => Ok(()),
        Command::As { command, .. } => match **command {
            Command::As { .. } => Err(KvError::Auth(AuthError::InvalidManagement)),
            ref command => check_command(command, ops_max),
        },
    }
}

fn check_key(key: &Bytes) -> Result<(), KvError> {
    if key.is_empty() { Err(KvError::EmptyKey) } else { Ok(()) }
}

pub(super) fn check_range(range: &RangeRequest) -> Result<(), KvError> {
    check_key(&range.key)
}

fn check_put(put: &PutRequest) -> Result<(), KvError> {
    check_key(&put.key)?;
    if put.ignore_value && !put.value.is_empty() {
        return Err(KvError::ValueProvided);
    }
    if put.ignore_lease && put.lease != 0 {
        return Err(KvError::LeaseProvided);
    }
    Ok(())
}

fn check_delete(delete: &DeleteRangeRequest) -> Result<(), KvError> {
    check_key(&delete.key)
}

fn check_txn(txn: &TxnRequest, ops_max: usize, depth: usize) -> Result<(), KvError> {
    let ops = txn.compare.len().max(txn.success.len()).max(txn.failure.len());
    let left = ops_max.checked_sub(ops).ok_or(KvError::TooManyOps)?;
    let depth = depth.checked_sub(1).ok_or(KvError::TooManyOps)?;
    for compare in &txn.compare {
        check_key(&compare.key)?;
    }
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            TxnOp::Range(range) => check_range(range)?,
            TxnOp::Put(put) => check_put(put)?,
            TxnOp::DeleteRange(delete) => check_delete(delete)?,
            TxnOp::Txn(nested) => check_txn(nested, left, depth)?,
        }
    }
    Ok(())
}

/// [`check_keys_once`], in short where nothing but puts can meet.
fn check_branch(ops: &[TxnOp]) -> Result<(), KvError> {
    if ops.iter().any(|op| matches!(op, TxnOp::DeleteRange(_) | TxnOp::Txn(_))) {
        return check_keys_once(ops).map(drop);
    }
    let keys = ops.iter().filter_map(|op| if let TxnOp::Put(put) = op { Some(&put.key[..]) } else { None });
    // Most have few.
    let (mut few, mut many) = ([&[][..]; 16], Vec::new());
    let puts = if ops.len() <= few.len() {
        let count = few.iter_mut().zip(keys).map(|(to, key)| *to = key).count();
        &mut few[..count]
    } else {
        many.extend(keys);
        &mut many[..]
    };
    puts.sort_unstable();
    if puts.windows(2).any(|pair| pair[0] == pair[1]) { Err(KvError::DuplicateKey) } else { Ok(()) }
}

/// Deleted ranges `[start, end)`, `None` for no end; looked up by a scan, since they are few.
type Deleted = Vec<(Bytes, Option<Bytes>)>;

fn deletes(deleted: &Deleted, key: &Bytes) -> bool {
    deleted.iter().any(|(start, end)| start <= key && end.as_ref().is_none_or(|end| key < end))
}

/// No key may be put twice, nor put and deleted, by operations that could run in one transaction (etcd
/// `checkIntervals`). Both branches of a nested transaction may put the same key, because one of them runs.
fn check_keys_once(ops: &[TxnOp]) -> Result<(BTreeSet<Bytes>, Deleted), KvError> {
    let mut deleted: Deleted = Vec::new();
    for op in ops {
        if let TxnOp::DeleteRange(d) = op {
            let end = match &d.range_end[..] {
                [] => Some([&d.key[..], &[0]].concat().into()),
                [0] => None,
                _ => Some(d.range_end.clone()),
            };
            deleted.push((d.key.clone(), end));
        }
    }
    let mut puts: BTreeSet<Bytes> = BTreeSet::new();
    for op in ops {
        let TxnOp::Txn(nested) = op else { continue };
        let (then_puts, then_deleted) = check_keys_once(&nested.success)?;
        let (else_puts, else_deleted) = check_keys_once(&nested.failure)?;
        for key in then_puts.union(&else_puts) {
            if puts.contains(key) || deletes(&deleted, key) {
                return Err(KvError::DuplicateKey);
            }
        }
        puts.extend(then_puts);
        puts.extend(else_puts);
        deleted.extend(then_deleted);
        deleted.extend(else_deleted);
    }
    for op in ops {
        if let TxnOp::Put(put) = op
            && (deletes(&deleted, &put.key) || !puts.insert(put.key.clone()))
        {
            return Err(KvError::DuplicateKey);
        }
    }
    Ok((puts, deleted))
}
