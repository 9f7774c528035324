//! Changes of the auth store, and whether commands are allowed, inside a write transaction.

use super::state::{AuthState, Grants, META_KEY, ROLE_PREFIX, USER_PREFIX};
use super::types::{AuthCommand, AuthError, Identity, Permission, ROOT, Role, User};
use crate::kv::apply::{Stop, Writer, insert, lease_keys, remove};
use crate::kv::error::StoreError;
use crate::kv::types::{Command, CommandResponse, Keyspace, KvError, PutRequest, TxnOp, TxnRequest};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::Arc;

fn refused(error: AuthError) -> Stop {
    Stop::Kv(KvError::Auth(error))
}

fn record_key(prefix: u8, name: &str) -> Vec<u8> {
    [&[prefix], name.as_bytes()].concat()
}

fn encode(record: &impl serde::Serialize) -> Result<Vec<u8>, StoreError> {
    postcard::to_allocvec(record).map_err(|e| StoreError::Damaged { table: "auth", what: format!("encode: {e}") })
}

/// Whether `[key, range_end)` holds a key.
fn is_range(key: &Bytes, range_end: &Bytes) -> bool {
    !key.is_empty() && (range_end.is_empty() || range_end[..] == [0] || key < range_end)
}

impl Writer<'_> {
    /// Whether the command's sender may have it done, by the state as it is now. `who`: `None` for the cluster's own
    /// commands (and those of clients that came while authentication was off), `Some(None)` for nobody.
    ///
    /// The cluster's own key space is not the users' affair, and neither is what members do for everybody: let leases
    /// run out, tell their names.
    pub(in crate::kv) fn authorize(&self, who: Option<Option<&Identity>>, command: &Command) -> Result<(), Stop> {
        let auth = &self.auth;
        if !auth.enabled() {
            return Ok(());
        }
        match (who, command) {
            (_, Command::Put(Keyspace::System, _) | Command::DeleteRange(Keyspace::System, _) | Command::Txn(Keyspace::System, _)) => {
                Ok(())
            }
            (who, Command::Put(_, put)) => self.authorize_put(&grants(auth, who)?, put),
            (who, Command::DeleteRange(_, delete)) => {
                let grants = grants(auth, who)?;
                grants.write(&delete.key, &delete.range_end).map_err(refused)?;
                if delete.prev_kv { grants.read(&delete.key, &delete.range_end).map_err(refused) } else { Ok(()) }
            }
            (who, Command::Txn(_, txn)) => self.authorize_txn(&grants(auth, who)?, txn),
            (None, _) => Ok(()),
            (Some(who), Command::LeaseRevoke { id }) => {
                auth.check_user(who).map_err(refused)?;
                self.authorize_lease(&auth.grants(who).map_err(refused)?, *id)
            }
            (Some(who), Command::LeaseGrant { .. } | Command::Compact { .. }) => auth.check_user(who).map_err(refused),
            (Some(who), _) => auth.check_admin(who).map_err(refused),
        }
    }

    fn authorize_put(&self, grants: &Grants, put: &PutRequest) -> Result<(), Stop> {
        grants.write(&put.key, b"").map_err(refused)?;
        if put.prev_kv {
            grants.read(&put.key, b"").map_err(refused)?;
        }
        // Whoever cannot revoke a lease may not tie a key to it either.
        if put.lease != 0 { self.authorize_lease(grants, put.lease) } else { Ok(()) }
    }

    fn authorize_lease(&self, grants: &Grants, id: i64) -> Result<(), Stop> {
        if grants.is_everything() {
            return Ok(());
        }
        lease_keys(&self.attached.rows(), id)?.iter().try_for_each(|key| grants.write(key, b"").map_err(refused))
    }

    /// Both branches, whichever runs: what a transaction may do must not tell what it found.
    fn authorize_txn(&self, grants: &Grants, txn: &TxnRequest) -> Result<(), Stop> {
        for compare in &txn.compare {
            grants.read(&compare.key, &compare.range_end).map_err(refused)?;
        }
        for op in txn.success.iter().chain(&txn.failure) {
            match op {
                TxnOp::Range(range) => grants.read(&range.key, &range.range_end).map_err(refused)?,
                TxnOp::Put(put) => self.authorize_put(grants, put)?,
                TxnOp::DeleteRange(delete) => {
                    grants.write(&delete.key, &delete.range_end).map_err(refused)?;
                    if delete.prev_kv {
                        grants.read(&delete.key, &delete.range_end).map_err(refused)?;
                    }
                }
                TxnOp::Txn(nested) => self.authorize_txn(grants, nested)?,
            }
        }
        Ok(())
    }

    /// Changes the auth store; each change is one revision.
    pub(in crate::kv) fn auth_command(&mut self, command: &AuthCommand) -> Result<CommandResponse, Stop> {
        match command {
            AuthCommand::Enable { token_key } => self.auth_enable(token_key)?,
            AuthCommand::Disable => self.auth_disable()?,
            AuthCommand::UserAdd { name, password_hash } => self.user_add(name, password_hash.clone())?,
            AuthCommand::UserDelete { name } => self.user_delete(name)?,
            AuthCommand::UserChangePassword { name, password_hash } => self.user_change_password(name, password_hash)?,
            AuthCommand::UserGrantRole { user, role } => self.user_grant_role(user, role)?,
            AuthCommand::UserRevokeRole { user, role } => self.user_revoke_role(user, role)?,
            AuthCommand::RoleAdd { name } => self.role_add(name)?,
            AuthCommand::RoleDelete { name } => self.role_delete(name)?,
            AuthCommand::RoleGrantPermission { role, permission } => self.role_grant(role, permission)?,
            AuthCommand::RoleRevokePermission { role, key, range_end } => self.role_revoke(role, key, range_end)?,
        }
        Ok(CommandResponse::Done)
    }

    /// The state, to be changed.
    fn auth_mut(&mut self) -> &mut AuthState {
        let auth = Arc::make_mut(&mut self.auth);
        auth.forget_ranges();
        auth
    }

    fn save_meta(&mut self) -> Result<(), StoreError> {
        let record = encode(&self.auth.meta)?;
        insert(&mut self.auth_table, &mut self.state.used_bytes, META_KEY, &record)
    }

    /// Counts a change.
    fn next_revision(&mut self) -> Result<u64, StoreError> {
        self.auth_mut().meta.revision += 1;
        self.save_meta()?;
        Ok(self.auth.revision())
    }

    fn save_user(&mut self, name: &str, user: User) -> Result<(), StoreError> {
        insert(&mut self.auth_table, &mut self.state.used_bytes, &record_key(USER_PREFIX, name), &encode(&user)?)?;
        self.auth_mut().users.insert(name.to_owned(), Arc::new(user));
        Ok(())
    }

    fn save_role(&mut self, name: &str, role: Role) -> Result<(), StoreError> {
        insert(&mut self.auth_table, &mut self.state.used_bytes, &record_key(ROLE_PREFIX, name), &encode(&role)?)?;
        self.auth_mut().roles.insert(name.to_owned(), Arc::new(role));
        Ok(())
    }

    fn user_now(&self, name: &str) -> Result<User, Stop> {
        self.auth.user(name).cloned().ok_or(refused(AuthError::UserNotFound))
    }

    fn role_now(&self, name: &str) -> Result<Role, Stop> {
        self.auth.role(name).cloned().ok_or(refused(AuthError::RoleNotFound))
    }

    fn auth_enable(&mut self, token_key: &Bytes) -> Result<(), Stop> {
        if self.auth.enabled() {
            return Ok(());
        }
        let root = self.auth.user(ROOT).ok_or(refused(AuthError::RootUserNotExist))?;
        if !root.roles.contains(ROOT) {
            return Err(refused(AuthError::RootRoleNotExist));
        }
        let meta = &mut self.auth_mut().meta;
        meta.enabled = true;
        meta.enabled_at = meta.revision;
        meta.token_key = token_key.clone();
        Ok(self.save_meta()?)
    }

    fn auth_disable(&mut self) -> Result<(), Stop> {
        if !self.auth.enabled() {
            return Ok(());
        }
        let meta = &mut self.auth_mut().meta;
        meta.enabled = false;
        meta.token_key = Bytes::new();
        self.next_revision()?;
        Ok(())
    }

    fn user_add(&mut self, name: &str, password_hash: Option<String>) -> Result<(), Stop> {
        if name.is_empty() {
            return Err(refused(AuthError::UserEmpty));
        }
        if self.auth.user(name).is_some() {
            return Err(refused(AuthError::UserExists));
        }
        let since = self.next_revision()?;
        Ok(self.save_user(name, User { password_hash, roles: BTreeSet::new(), since })?)
    }

    fn user_delete(&mut self, name: &str) -> Result<(), Stop> {
        if self.auth.enabled() && name == ROOT {
            return Err(refused(AuthError::InvalidManagement));
        }
        self.user_now(name)?;
        remove(&mut self.auth_table, &mut self.state.used_bytes, &record_key(USER_PREFIX, name))?;
        self.auth_mut().users.remove(name);
        self.next_revision()?;
        Ok(())
    }

    fn user_change_password(&mut self, name: &str, password_hash: &str) -> Result<(), Stop> {
        let user = self.user_now(name)?;
        let since = self.next_revision()?;
        // A user without a password stays so, as in etcd.
        let password_hash = user.password_hash.is_some().then(|| password_hash.to_owned());
        Ok(self.save_user(name, User { password_hash, since, ..user })?)
    }

    fn user_grant_role(&mut self, name: &str, role: &str) -> Result<(), Stop> {
        let mut user = self.user_now(name)?;
        // The root role means what it means whether it has a record or not.
        if role != ROOT {
            self.role_now(role)?;
        }
        if user.roles.insert(role.to_owned()) {
            self.save_user(name, user)?;
            self.next_revision()?;
        }
        Ok(())
    }

    fn user_revoke_role(&mut self, name: &str, role: &str) -> Result<(), Stop> {
        if self.auth.enabled() && name == ROOT && role == ROOT {
            return Err(refused(AuthError::InvalidManagement));
        }
        let mut user = self.user_now(name)?;
        if !user.roles.remove(role) {
            return Err(refused(AuthError::RoleNotGranted));
        }
        self.save_user(name, user)?;
        self.next_revision()?;
        Ok(())
    }

    fn role_add(&mut self, name: &str) -> Result<(), Stop> {
        if name.is_empty() {
            return Err(refused(AuthError::RoleEmpty));
        }
        if self.auth.role(name).is_some() {
            return Err(refused(AuthError::RoleExists));
        }
        self.save_role(name, Role::default())?;
        self.next_revision()?;
        Ok(())
    }

    fn role_delete(&mut self, name: &str) -> Result<(), Stop> {
        if self.auth.enabled() && name == ROOT {
            return Err(refused(AuthError::InvalidManagement));
        }
        self.role_now(name)?;
        remove(&mut self.auth_table, &mut self.state.used_bytes, &record_key(ROLE_PREFIX, name))?;
        self.auth_mut().roles.remove(name);
        let holders: Vec<String> = self.auth.users.iter().filter(|(_, u)| u.roles.contains(name)).map(|(n, _)| n.clone()).collect();
        for holder in holders {
            let mut user = self.user_now(&holder)?;
            user.roles.remove(name);
            self.save_user(&holder, user)?;
        }
        self.next_revision()?;
        Ok(())
    }

    fn role_grant(&mut self, name: &str, permission: &Permission) -> Result<(), Stop> {
        if !is_range(&permission.key, &permission.range_end) {
            return Err(refused(AuthError::InvalidManagement));
        }
        let mut role = self.role_now(name)?;
        let place = role.permissions.binary_search_by(|p| (&p.key, &p.range_end).cmp(&(&permission.key, &permission.range_end)));
        match place {
            Ok(at) => role.permissions[at].kind = permission.kind,
            Err(at) => role.permissions.insert(at, permission.clone()),
        }
        self.save_role(name, role)?;
        self.next_revision()?;
        Ok(())
    }

    fn role_revoke(&mut self, name: &str, key: &Bytes, range_end: &Bytes) -> Result<(), Stop> {
        let mut role = self.role_now(name)?;
        let before = role.permissions.len();
        role.permissions.retain(|p| p.key != key || p.range_end != range_end);
        if role.permissions.len() == before {
            return Err(refused(AuthError::PermissionNotGranted));
        }
        self.save_role(name, role)?;
        self.next_revision()?;
        Ok(())
    }
}

/// What the sender of a command on keys may do.
fn grants(auth: &AuthState, who: Option<Option<&Identity>>) -> Result<Grants, Stop> {
    auth.grants(who.flatten()).map_err(refused)
}
