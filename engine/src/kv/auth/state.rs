//! The auth store at one moment, and what it allows.

use super::ranges::KeySet;
use super::types::{AuthError, Identity, PermissionKind, ROOT, Role, User};
use crate::kv::codec::damaged;
use crate::kv::error::StoreError;
use bytes::Bytes;
use redb::ReadableTable;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

/// Keys of the table `auth`: one letter, then a name.
pub(super) const META_KEY: &[u8] = b"m";
pub(super) const USER_PREFIX: u8 = b'u';
pub(super) const ROLE_PREFIX: u8 = b'r';

/// The record under [`META_KEY`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meta {
    pub(super) enabled: bool,
    /// One more at each change; 1 before the first, as in etcd.
    pub(super) revision: u64,
    /// The revision at which authentication was last switched on.
    pub(super) enabled_at: u64,
    pub(super) token_key: Bytes,
}

/// The keys that a user may read and write.
#[derive(Debug)]
struct Ranges {
    read: KeySet,
    write: KeySet,
}

/// All users and roles at one moment.
#[derive(Debug)]
pub struct AuthState {
    pub(super) meta: Meta,
    pub(super) users: BTreeMap<String, Arc<User>>,
    pub(super) roles: BTreeMap<String, Arc<Role>>,
    /// What users' permissions add up to, worked out when first asked for. Belongs to this state alone: a change makes
    /// another state, with nothing in it.
    ranges: RwLock<BTreeMap<String, Arc<Ranges>>>,
}

impl Default for AuthState {
    fn default() -> Self {
        let meta = Meta { enabled: false, revision: 1, enabled_at: 0, token_key: Bytes::new() };
        Self { meta, users: BTreeMap::new(), roles: BTreeMap::new(), ranges: RwLock::default() }
    }
}

impl Clone for AuthState {
    fn clone(&self) -> Self {
        Self { meta: self.meta.clone(), users: self.users.clone(), roles: self.roles.clone(), ranges: RwLock::default() }
    }
}

/// What somebody may do.
#[derive(Clone, Debug)]
pub struct Grants(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Everything,
    Ranges(Arc<Ranges>),
}

impl Grants {
    /// What everybody may do while authentication is off.
    #[must_use]
    pub fn everything() -> Self {
        Self(Kind::Everything)
    }

    /// Whether this is root's.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        matches!(self.0, Kind::Everything)
    }

    /// Refuses a range of keys that may not be read.
    ///
    /// # Errors
    /// `PermissionDenied`.
    pub fn read(&self, key: &[u8], range_end: &[u8]) -> Result<(), AuthError> {
        self.check(|ranges| &ranges.read, key, range_end)
    }

    /// Refuses a range of keys that may not be written.
    ///
    /// # Errors
    /// `PermissionDenied`.
    pub fn write(&self, key: &[u8], range_end: &[u8]) -> Result<(), AuthError> {
        self.check(|ranges| &ranges.write, key, range_end)
    }

    fn check(&self, set: fn(&Ranges) -> &KeySet, key: &[u8], range_end: &[u8]) -> Result<(), AuthError> {
        match &self.0 {
            Kind::Everything => Ok(()),
            Kind::Ranges(ranges) if set(ranges).covers(key, range_end) => Ok(()),
            Kind::Ranges(_) => Err(AuthError::PermissionDenied),
        }
    }
}

impl AuthState {
    /// Whether authentication is on.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.meta.enabled
    }

    /// Counts the changes.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.meta.revision
    }

    /// The revision at which authentication was last switched on: tokens of an earlier time are void.
    #[must_use]
    pub fn enabled_at(&self) -> u64 {
        self.meta.enabled_at
    }

    /// What simple tokens are signed with.
    #[must_use]
    pub fn token_key(&self) -> &[u8] {
        &self.meta.token_key
    }

    /// 0 while authentication is off, else the revision.
    #[must_use]
    pub fn mark(&self) -> u64 {
        if self.meta.enabled { self.meta.revision } else { 0 }
    }

    /// A user.
    #[must_use]
    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name).map(|user| &**user)
    }

    /// A role.
    #[must_use]
    pub fn role(&self, name: &str) -> Option<&Role> {
        self.roles.get(name).map(|role| &**role)
    }

    /// The users' names, in order.
    pub fn user_names(&self) -> impl Iterator<Item = &str> {
        self.users.keys().map(String::as_str)
    }

    /// The roles' names, in order.
    pub fn role_names(&self) -> impl Iterator<Item = &str> {
        self.roles.keys().map(String::as_str)
    }

    /// What somebody may do with keys. Everything, while authentication is off.
    ///
    /// # Errors
    /// `UserEmpty` for nobody, `OldRevision` where something changed since the name was established, `PermissionDenied`
    /// for a user that does not exist.
    pub fn grants(&self, who: Option<&Identity>) -> Result<Grants, AuthError> {
        if !self.meta.enabled {
            return Ok(Grants::everything());
        }
        let who = who.ok_or(AuthError::UserEmpty)?;
        if who.revision < self.meta.revision {
            return Err(AuthError::OldRevision);
        }
        let user = self.user(&who.user).ok_or(AuthError::PermissionDenied)?;
        if user.roles.contains(ROOT) {
            return Ok(Grants::everything());
        }
        let known = self.ranges.read().unwrap_or_else(PoisonError::into_inner).get(&who.user).cloned();
        let ranges = known.unwrap_or_else(|| {
            let ranges = Arc::new(self.ranges_of(user));
            self.ranges.write().unwrap_or_else(PoisonError::into_inner).insert(who.user.clone(), ranges.clone());
            ranges
        });
        Ok(Grants(Kind::Ranges(ranges)))
    }

    fn ranges_of(&self, user: &User) -> Ranges {
        let permissions = || user.roles.iter().filter_map(|role| self.role(role)).flat_map(|role| &role.permissions);
        Ranges {
            read: KeySet::new(permissions().filter(|p| p.kind != PermissionKind::Write)),
            write: KeySet::new(permissions().filter(|p| p.kind != PermissionKind::Read)),
        }
    }

    /// Refuses all but those who have the root role. As in etcd, the revision does not matter here.
    ///
    /// # Errors
    /// `UserEmpty`, `UserNotFound`, `PermissionDenied`.
    pub fn check_admin(&self, who: Option<&Identity>) -> Result<(), AuthError> {
        let Some(user) = self.known(who)? else { return Ok(()) };
        if user.roles.contains(ROOT) { Ok(()) } else { Err(AuthError::PermissionDenied) }
    }

    /// Refuses nobody and users that do not exist.
    ///
    /// # Errors
    /// `UserEmpty`, `UserNotFound`.
    pub fn check_user(&self, who: Option<&Identity>) -> Result<(), AuthError> {
        self.known(who).map(drop)
    }

    /// `None` while authentication is off.
    fn known(&self, who: Option<&Identity>) -> Result<Option<&User>, AuthError> {
        if !self.meta.enabled {
            return Ok(None);
        }
        let who = who.ok_or(AuthError::UserEmpty)?;
        self.user(&who.user).map(Some).ok_or(AuthError::UserNotFound)
    }

    /// A change follows: what was worked out is void.
    pub(super) fn forget_ranges(&mut self) {
        self.ranges.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Reads the table `auth`.
    pub(in crate::kv) fn load(table: &impl ReadableTable<&'static [u8], &'static [u8]>) -> Result<Self, StoreError> {
        let mut state = Self::default();
        for item in table.range::<&[u8]>(..)? {
            let (key, value) = item?;
            let (key, value) = (key.value(), value.value());
            let broken = || damaged("auth", "record", value);
            if key == META_KEY {
                state.meta = postcard::from_bytes(value).map_err(|_| broken())?;
                continue;
            }
            let (kind, name) = key.split_first().ok_or_else(broken)?;
            let name = String::from_utf8(name.to_vec()).map_err(|_| damaged("auth", "key", key))?;
            match *kind {
                USER_PREFIX => drop(state.users.insert(name, Arc::new(postcard::from_bytes(value).map_err(|_| broken())?))),
                ROLE_PREFIX => drop(state.roles.insert(name, Arc::new(postcard::from_bytes(value).map_err(|_| broken())?))),
                _ => return Err(damaged("auth", "key", key)),
            }
        }
        Ok(state)
    }
}
