//! The one map from errors to gRPC status. Codes and texts are etcd's: clients match on both.

use brickraft_engine::kv::auth::AuthError;
use brickraft_engine::kv::types::KvError;
use brickraft_engine::member::MemberError;
use thiserror::Error;
use tonic::{Code, Status};

/// Why a client's request is refused.
#[derive(Debug, Error)]
pub enum ApiError {
    /// By the store.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// By the member.
    #[error(transparent)]
    Member(#[from] MemberError),
    /// The method is part of the API but not of this server.
    #[error("brickraft: {0} is not supported yet")]
    Unsupported(&'static str),
    /// Peer URLs that are none.
    #[error("etcdserver: given member URLs are invalid")]
    MemberBadUrls,
    /// bcrypt would not look at all of it.
    #[error("bcrypt: password length exceeds 72 bytes")]
    PasswordTooLong,
    /// A lock whose lease ran out while it waited.
    #[error("mutex: session is expired")]
    LockSessionExpired,
    /// A resignation or proclamation without the key that the campaign returned.
    #[error("\"leader\" field must be provided")]
    MissingLeaderKey,
    /// Somebody else leads.
    #[error("election: not leader")]
    ElectionNotLeader,
    /// Nobody leads.
    #[error("election: no leader")]
    ElectionNoLeader,
    /// An action that the method does not know.
    #[error("etcdserver: unknown method")]
    UnknownMethod,
    /// A downgrade to what is no version.
    #[error("etcdserver: wrong downgrade target version format")]
    DowngradeVersionFormat,
    /// A downgrade to anything but the minor version below.
    #[error("etcdserver: invalid downgrade target version")]
    DowngradeTarget,
    /// A downgrade that is to be cancelled and was never begun.
    #[error("etcdserver: no inflight downgrade job")]
    NoDowngrade,
    /// A downgrade that etcd would begin.
    #[error("brickraft: there is no older version of this server to go back to")]
    NothingOlder,
    /// An answer that does not fit the request: a defect.
    #[error("etcdserver: internal: {0}")]
    Internal(&'static str),
}

fn kv_code(e: &KvError) -> Code {
    match e {
        KvError::Compacted | KvError::FutureRevision | KvError::LeaseTtlTooLarge => Code::OutOfRange,
        KvError::LeaseNotFound => Code::NotFound,
        KvError::LeaseExists => Code::FailedPrecondition,
        KvError::KeyNotFound
        | KvError::EmptyKey
        | KvError::ValueProvided
        | KvError::LeaseProvided
        | KvError::DuplicateKey
        | KvError::TooManyOps
        | KvError::RequestTooLarge
        | KvError::InvalidSortOption => Code::InvalidArgument,
        KvError::NoSpace => Code::ResourceExhausted,
        KvError::Corrupt => Code::DataLoss,
        KvError::Auth(e) => auth_code(e),
    }
}

fn auth_code(e: &AuthError) -> Code {
    match e {
        AuthError::RootUserNotExist
        | AuthError::RootRoleNotExist
        | AuthError::UserExists
        | AuthError::UserNotFound
        | AuthError::RoleExists
        | AuthError::RoleNotFound
        | AuthError::RoleNotGranted
        | AuthError::PermissionNotGranted
        | AuthError::NotEnabled => Code::FailedPrecondition,
        AuthError::UserEmpty
        | AuthError::RoleEmpty
        | AuthError::AuthFailed
        | AuthError::PermissionNotGiven
        | AuthError::InvalidManagement
        | AuthError::OldRevision => Code::InvalidArgument,
        AuthError::PermissionDenied => Code::PermissionDenied,
        AuthError::InvalidToken => Code::Unauthenticated,
        AuthError::NoPasswordUser => Code::Unknown,
    }
}

fn member_code(e: &MemberError) -> Code {
    match e {
        MemberError::NoLeader
        | MemberError::LeaderChanged
        | MemberError::Timeout
        | MemberError::TimeoutLeaderFail
        | MemberError::TimeoutLeaderTransfer
        | MemberError::Stopped
        | MemberError::UnhealthyCluster => Code::Unavailable,
        MemberError::NotLeader
        | MemberError::BadLeaderTransferee
        | MemberError::MemberExists
        | MemberError::PeerUrlExists
        | MemberError::NotEnoughStarted
        | MemberError::LearnerNotReady
        | MemberError::NotLearner
        | MemberError::TooManyLearners => Code::FailedPrecondition,
        MemberError::TooManyRequests => Code::ResourceExhausted,
        MemberError::RequestTooLarge => Code::InvalidArgument,
        MemberError::MemberNotFound => Code::NotFound,
        MemberError::Kv(e) => kv_code(e),
        MemberError::Storage(_) => Code::Internal,
    }
}

impl ApiError {
    /// The gRPC code that etcd answers this with.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Kv(e) => kv_code(e),
            Self::Member(e) => member_code(e),
            Self::Unsupported(_) => Code::Unimplemented,
            Self::MemberBadUrls | Self::UnknownMethod | Self::DowngradeVersionFormat | Self::DowngradeTarget => Code::InvalidArgument,
            Self::NoDowngrade | Self::NothingOlder => Code::FailedPrecondition,
            // etcd returns these as plain Go errors.
            Self::PasswordTooLong
            | Self::LockSessionExpired
            | Self::MissingLeaderKey
            | Self::ElectionNotLeader
            | Self::ElectionNoLeader => Code::Unknown,
            Self::Internal(_) => Code::Internal,
        }
    }
}

impl From<AuthError> for ApiError {
    fn from(e: AuthError) -> Self {
        Self::Kv(e.into())
    }
}

impl From<ApiError> for Status {
    fn from(e: ApiError) -> Self {
        Self::new(e.code(), e.to_string())
    }
}
