//! The words of the auth store.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use thiserror::Error;

/// The name of the user and of the role that may do everything.
pub const ROOT: &str = "root";

/// Whom a command is from, as the member knew that took it from its client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The user's name.
    pub user: String,
    /// The auth revision at which the name was established. Where permissions have changed since, the command is refused
    /// with [`AuthError::OldRevision`], and the member establishes the name anew.
    pub revision: u64,
}

/// What a permission allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "etcd's own names")]
pub enum PermissionKind {
    Read,
    Write,
    ReadWrite,
}

/// A permission on one key (`range_end` empty), all keys from `key` on (`\0`), or `[key, range_end)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "etcd's own field names")]
pub struct Permission {
    pub kind: PermissionKind,
    pub key: Bytes,
    pub range_end: Bytes,
}

/// A user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The bcrypt hash; `None` for a user that has no password and is known by a certificate.
    pub password_hash: Option<String>,
    /// The roles granted, which all exist, but for `root`, which needs no record.
    pub roles: BTreeSet<String>,
    /// The auth revision that set the password. Tokens given out for an earlier one are void.
    pub since: u64,
}

/// A role.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Role {
    /// By key and range end, each pair once.
    pub permissions: Vec<Permission>,
}

/// A change of the auth store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "etcd's own names")]
pub enum AuthCommand {
    /// `token_key` is drawn by the proposer: what simple tokens are signed with until authentication is switched off.
    Enable {
        token_key: Bytes,
    },
    Disable,
    /// Passwords are hashed before they are proposed.
    UserAdd {
        name: String,
        password_hash: Option<String>,
    },
    UserDelete {
        name: String,
    },
    UserChangePassword {
        name: String,
        password_hash: String,
    },
    UserGrantRole {
        user: String,
        role: String,
    },
    UserRevokeRole {
        user: String,
        role: String,
    },
    RoleAdd {
        name: String,
    },
    RoleDelete {
        name: String,
    },
    RoleGrantPermission {
        role: String,
        permission: Permission,
    },
    RoleRevokePermission {
        role: String,
        key: Bytes,
        range_end: Bytes,
    },
}

/// Why the auth store refuses. The texts are etcd's, because clients match on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the texts say it")]
pub enum AuthError {
    #[error("etcdserver: root user does not exist")]
    RootUserNotExist,
    #[error("etcdserver: root user does not have root role")]
    RootRoleNotExist,
    #[error("etcdserver: user name already exists")]
    UserExists,
    #[error("etcdserver: user name is empty")]
    UserEmpty,
    #[error("etcdserver: user name not found")]
    UserNotFound,
    #[error("etcdserver: role name already exists")]
    RoleExists,
    #[error("etcdserver: role name not found")]
    RoleNotFound,
    #[error("etcdserver: role name is empty")]
    RoleEmpty,
    #[error("etcdserver: authentication failed, invalid user ID or password")]
    AuthFailed,
    #[error("etcdserver: permission not given")]
    PermissionNotGiven,
    #[error("etcdserver: permission denied")]
    PermissionDenied,
    #[error("etcdserver: role is not granted to the user")]
    RoleNotGranted,
    #[error("etcdserver: permission is not granted to the role")]
    PermissionNotGranted,
    #[error("etcdserver: authentication is not enabled")]
    NotEnabled,
    #[error("etcdserver: invalid auth token")]
    InvalidToken,
    #[error("etcdserver: invalid auth management")]
    InvalidManagement,
    #[error("etcdserver: revision of auth store is old")]
    OldRevision,
    /// etcd has no code of its own for this one.
    #[error("auth: authentication failed, password was given for no password user")]
    NoPasswordUser,
}
