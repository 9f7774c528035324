//! Alarms: part of the replicated state, so that all members refuse the same commands.

use super::codec::damaged;
use super::error::StoreError;
use super::types::{Command, Keyspace, KvError, TxnOp, TxnRequest};
use crate::types::NodeId;
use redb::ReadableTable;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What is wrong (etcd `AlarmType`). The numbers are etcd's and stand in the `alarms` table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum AlarmType {
    /// The store is larger than `--quota-backend-bytes`: what would add to it is refused.
    NoSpace = 1,
    /// Members disagree: clients' writes are refused.
    Corrupt = 2,
}

impl AlarmType {
    /// From etcd's number; `None` for 0 and unknown ones.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::NoSpace),
            2 => Some(Self::Corrupt),
            _ => None,
        }
    }

    /// etcd's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NoSpace => "NOSPACE",
            Self::Corrupt => "CORRUPT",
        }
    }
}

/// One active alarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Alarm {
    /// Who raised it.
    pub member: NodeId,
    /// Why.
    pub kind: AlarmType,
}

impl Alarm {
    /// The key in `alarms`.
    pub(super) fn key(self) -> [u8; 9] {
        let mut key = [0; 9];
        key[..8].copy_from_slice(&self.member.0.to_be_bytes());
        key[8] = self.kind as u8;
        key
    }

    fn from_key(key: &[u8]) -> Result<Self, StoreError> {
        let parse = || {
            let (member, kind) = key.split_first_chunk::<8>()?;
            let &[kind] = kind else { return None };
            Some(Self { member: NodeId(u64::from_be_bytes(*member)), kind: AlarmType::from_number(kind)? })
        };
        parse().ok_or_else(|| damaged("alarms", "key", key))
    }
}

/// The active alarms, in memory beside their table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Alarms(pub BTreeSet<Alarm>);

impl Alarms {
    pub(super) fn read(table: &impl ReadableTable<&'static [u8], &'static [u8]>) -> Result<Self, StoreError> {
        let mut alarms = BTreeSet::new();
        for item in table.range::<&[u8]>(..)? {
            alarms.insert(Alarm::from_key(item?.0.value())?);
        }
        Ok(Self(alarms))
    }

    fn active(&self, kind: AlarmType) -> bool {
        self.0.iter().any(|alarm| alarm.kind == kind)
    }

    /// Why a client's command is refused while alarms are active. The cluster's own records are small, and
    /// needed to get out of the trouble: they are never refused.
    pub(super) fn refuse(&self, command: &Command) -> Option<KvError> {
        if self.0.is_empty() {
            return None;
        }
        let writes = match command {
            Command::Put(ks, _) | Command::DeleteRange(ks, _) | Command::Txn(ks, _) | Command::Compact { keyspace: ks, .. } => {
                *ks == Keyspace::User
            }
            Command::LeaseGrant { .. } | Command::LeaseRevoke { .. } => true,
            _ => false,
        };
        if writes && self.active(AlarmType::Corrupt) {
            return Some(KvError::Corrupt);
        }
        (writes && adds(command) && self.active(AlarmType::NoSpace)).then_some(KvError::NoSpace)
    }
}

/// Whether a command may make the user's part of the store larger.
#[must_use]
pub fn adds(command: &Command) -> bool {
    match command {
        Command::Put(Keyspace::User, _) | Command::LeaseGrant { .. } => true,
        Command::Txn(Keyspace::User, txn) => txn_puts(txn),
        _ => false,
    }
}

fn txn_puts(txn: &TxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match op {
        TxnOp::Put(_) => true,
        TxnOp::Txn(inner) => txn_puts(inner),
        TxnOp::Range(_) | TxnOp::DeleteRange(_) => false,
    })
}
