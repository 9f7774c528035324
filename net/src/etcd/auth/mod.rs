//! The Auth service, and who clients are.
//!
//! - `caller`: a client, and the store as it may use it: the only way from the services to the users' keys;
//! - `tokens`, `jwt`: what clients show instead of a password;
//! - `password`: bcrypt, before anything is proposed: the log holds hashes only.

mod caller;
mod jwt;
mod password;
mod tokens;

#[cfg(test)]
mod tests;

pub(super) use caller::Caller;
#[cfg(test)]
pub(super) use caller::with_cert;
pub use jwt::{JwtKeys, TokenSpec, TokenSpecError};
pub(super) use password::Passwords;
pub use tokens::TokenKind;
pub(super) use tokens::Tokens;

use super::Api;
use super::pb::authpb;
use super::pb::etcdserverpb as pb;
use super::status::ApiError;
use brickraft_engine::kv::auth::{AuthCommand, AuthError, AuthState, Identity, Permission, PermissionKind, ROOT};
use brickraft_engine::kv::types::Command;
use brickraft_engine::types::Revision;
use bytes::Bytes;
use pb::auth_server::Auth;
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// etcd's default of `--auth-token-ttl`.
const TOKEN_TTL_DEFAULT: Duration = Duration::from_secs(300);
/// etcd's default of `--bcrypt-cost`.
pub const BCRYPT_COST_DEFAULT: u32 = 10;
/// Bytes of the key of simple tokens.
const TOKEN_KEY_BYTES: usize = 32;
/// A password that was changed while it was compared is compared again so often.
const PASSWORD_TRIES: u32 = 8;

/// How authentication is done here. All members of a cluster must have the same tokens.
#[derive(Clone, Debug)]
pub struct AuthSettings {
    /// bcrypt's cost (`--bcrypt-cost`).
    pub bcrypt_cost: u32,
    /// What tokens are given out.
    pub tokens: TokenKind,
}

impl Default for AuthSettings {
    fn default() -> Self {
        Self { bcrypt_cost: BCRYPT_COST_DEFAULT, tokens: TokenKind::Simple(TOKEN_TTL_DEFAULT) }
    }
}

impl AuthSettings {
    /// `bcrypt_cost` as it is used: what bcrypt does not know is etcd's default, as there.
    #[must_use]
    pub fn cost(&self) -> u32 {
        if password::COSTS.contains(&self.bcrypt_cost) { self.bcrypt_cost } else { BCRYPT_COST_DEFAULT }
    }
}

fn permission(p: Option<authpb::Permission>) -> Result<Permission, AuthError> {
    let p = p.ok_or(AuthError::PermissionNotGiven)?;
    let kind = match authpb::permission::Type::try_from(p.perm_type) {
        Ok(authpb::permission::Type::Read) => PermissionKind::Read,
        Ok(authpb::permission::Type::Write) => PermissionKind::Write,
        Ok(authpb::permission::Type::Readwrite) => PermissionKind::ReadWrite,
        Err(_) => return Err(AuthError::InvalidManagement),
    };
    Ok(Permission { kind, key: p.key, range_end: p.range_end })
}

fn permission_answer(p: &Permission) -> authpb::Permission {
    let kind = match p.kind {
        PermissionKind::Read => authpb::permission::Type::Read,
        PermissionKind::Write => authpb::permission::Type::Write,
        PermissionKind::ReadWrite => authpb::permission::Type::Readwrite,
    };
    authpb::Permission { perm_type: kind.into(), key: p.key.clone(), range_end: p.range_end.clone() }
}

impl Api {
    /// Proposes a change of the auth store in the client's name; the header of the answer.
    async fn auth_change(&self, caller: &Caller, command: AuthCommand) -> Result<Option<pb::ResponseHeader>, ApiError> {
        let (_, revision): (_, Revision) = caller.propose(Command::Auth(command)).await?;
        Ok(Some(self.header(revision)))
    }

    /// The auth store as of now, for who `fits`.
    async fn auth_read(
        &self,
        caller: &Caller,
        fits: impl Fn(&AuthState, Option<&Identity>) -> Result<(), AuthError>,
    ) -> Result<Arc<AuthState>, ApiError> {
        self.handle().read_index().await?;
        if let Some((auth, who)) = caller.identity().await? {
            fits(&auth, who.as_ref())?;
            return Ok(auth);
        }
        Ok(self.handle().store().auth())
    }

    /// A token for a user and its password.
    async fn log_in(&self, name: &str, password: &str) -> Result<String, ApiError> {
        self.handle().read_index().await?;
        for _ in 0..PASSWORD_TRIES {
            let auth = self.handle().store().auth();
            if !auth.enabled() {
                return Err(AuthError::NotEnabled.into());
            }
            let user = auth.user(name).ok_or(AuthError::AuthFailed)?;
            let hash = user.password_hash.clone().ok_or(AuthError::NoPasswordUser)?;
            if !self.0.passwords.matches(password.to_owned(), hash).await? {
                tracing::warn!(user = name, "a wrong password");
                return Err(AuthError::AuthFailed.into());
            }
            let now = self.handle().store().auth();
            if now.user(name).is_some_and(|u| u.since == user.since) && now.enabled_at() == auth.enabled_at() {
                return Ok(self.0.tokens.assign(&now, name)?);
            }
        }
        Err(AuthError::AuthFailed.into())
    }
}

/// Methods that are one command: request, response, and the command out of the request.
macro_rules! auth_service {
    ($($method:ident($message:ident: $request:ident) -> $response:ident { $command:expr })*) => {
        #[tonic::async_trait]
        impl Auth for Api {
            $(
                async fn $method(&self, request: Request<pb::$request>) -> Result<Response<pb::$response>, Status> {
                    let (caller, $message) = self.caller(request);
                    let header = self.auth_change(&caller, $command).await?;
                    Ok(Response::new(pb::$response { header }))
                }
            )*

            async fn auth_status(&self, request: Request<pb::AuthStatusRequest>) -> Result<Response<pb::AuthStatusResponse>, Status> {
                let (caller, _) = self.caller(request);
                let auth = self.auth_read(&caller, AuthState::check_admin).await?;
                let (enabled, auth_revision) = (auth.enabled(), auth.revision());
                Ok(Response::new(pb::AuthStatusResponse { header: Some(self.header_now()), enabled, auth_revision }))
            }

            async fn authenticate(&self, request: Request<pb::AuthenticateRequest>) -> Result<Response<pb::AuthenticateResponse>, Status> {
                let request = request.into_inner();
                let token = self.log_in(&request.name, &request.password).await?;
                Ok(Response::new(pb::AuthenticateResponse { header: Some(self.header_now()), token }))
            }

            async fn user_add(&self, request: Request<pb::AuthUserAddRequest>) -> Result<Response<pb::AuthUserAddResponse>, Status> {
                let (caller, request) = self.caller(request);
                if request.name.is_empty() {
                    return Err(ApiError::from(AuthError::UserEmpty).into());
                }
                let no_password = request.options.is_some_and(|options| options.no_password);
                // Who may not add users may not keep the server busy either.
                self.may_hash(&caller).await?;
                let password_hash = if no_password { None } else { Some(self.0.passwords.hash(request.password).await?) };
                let header = self.auth_change(&caller, AuthCommand::UserAdd { name: request.name, password_hash }).await?;
                Ok(Response::new(pb::AuthUserAddResponse { header }))
            }

            async fn user_change_password(
                &self,
                request: Request<pb::AuthUserChangePasswordRequest>,
            ) -> Result<Response<pb::AuthUserChangePasswordResponse>, Status> {
                let (caller, request) = self.caller(request);
                self.may_hash(&caller).await?;
                let password_hash = self.0.passwords.hash(request.password).await?;
                let header = self.auth_change(&caller, AuthCommand::UserChangePassword { name: request.name, password_hash }).await?;
                Ok(Response::new(pb::AuthUserChangePasswordResponse { header }))
            }

            async fn user_get(&self, request: Request<pb::AuthUserGetRequest>) -> Result<Response<pb::AuthUserGetResponse>, Status> {
                let (caller, pb::AuthUserGetRequest { name }) = self.caller(request);
                // Everybody may know about himself.
                let fits = |auth: &AuthState, who: Option<&Identity>| match who {
                    Some(who) if who.user == name => Ok(()),
                    _ => auth.check_admin(who),
                };
                let auth = self.auth_read(&caller, fits).await?;
                let user = auth.user(&name).ok_or(ApiError::from(AuthError::UserNotFound))?;
                let roles = user.roles.iter().cloned().collect();
                Ok(Response::new(pb::AuthUserGetResponse { header: Some(self.header_now()), roles }))
            }

            async fn user_list(&self, request: Request<pb::AuthUserListRequest>) -> Result<Response<pb::AuthUserListResponse>, Status> {
                let (caller, _) = self.caller(request);
                let auth = self.auth_read(&caller, AuthState::check_admin).await?;
                let users = auth.user_names().map(str::to_owned).collect();
                Ok(Response::new(pb::AuthUserListResponse { header: Some(self.header_now()), users }))
            }

            async fn role_get(&self, request: Request<pb::AuthRoleGetRequest>) -> Result<Response<pb::AuthRoleGetResponse>, Status> {
                let (caller, pb::AuthRoleGetRequest { role }) = self.caller(request);
                // And about the roles that he has.
                let fits = |auth: &AuthState, who: Option<&Identity>| {
                    let has = who.and_then(|who| auth.user(&who.user)).is_some_and(|user| user.roles.contains(&role));
                    if has { Ok(()) } else { auth.check_admin(who) }
                };
                let auth = self.auth_read(&caller, fits).await?;
                let found = auth.role(&role).ok_or(ApiError::from(AuthError::RoleNotFound))?;
                let perm = if role == ROOT {
                    let all = authpb::permission::Type::Readwrite.into();
                    vec![authpb::Permission { perm_type: all, key: Bytes::new(), range_end: Bytes::from_static(b"\0") }]
                } else {
                    found.permissions.iter().map(permission_answer).collect()
                };
                Ok(Response::new(pb::AuthRoleGetResponse { header: Some(self.header_now()), perm }))
            }

            async fn role_list(&self, request: Request<pb::AuthRoleListRequest>) -> Result<Response<pb::AuthRoleListResponse>, Status> {
                let (caller, _) = self.caller(request);
                let auth = self.auth_read(&caller, AuthState::check_admin).await?;
                let roles = auth.role_names().map(str::to_owned).collect();
                Ok(Response::new(pb::AuthRoleListResponse { header: Some(self.header_now()), roles }))
            }

            async fn role_grant_permission(
                &self,
                request: Request<pb::AuthRoleGrantPermissionRequest>,
            ) -> Result<Response<pb::AuthRoleGrantPermissionResponse>, Status> {
                let (caller, request) = self.caller(request);
                let permission = permission(request.perm).map_err(ApiError::from)?;
                let header = self.auth_change(&caller, AuthCommand::RoleGrantPermission { role: request.name, permission }).await?;
                Ok(Response::new(pb::AuthRoleGrantPermissionResponse { header }))
            }
        }
    };
}

impl Api {
    async fn may_hash(&self, caller: &Caller) -> Result<(), ApiError> {
        self.auth_read(caller, AuthState::check_admin).await.map(drop)
    }
}

fn token_key() -> Bytes {
    Bytes::from_owner(rand::random::<[u8; TOKEN_KEY_BYTES]>())
}

auth_service! {
    auth_enable(_r: AuthEnableRequest) -> AuthEnableResponse { AuthCommand::Enable { token_key: token_key() } }
    auth_disable(_r: AuthDisableRequest) -> AuthDisableResponse { AuthCommand::Disable }
    user_delete(r: AuthUserDeleteRequest) -> AuthUserDeleteResponse { AuthCommand::UserDelete { name: r.name } }
    user_grant_role(r: AuthUserGrantRoleRequest) -> AuthUserGrantRoleResponse { AuthCommand::UserGrantRole { user: r.user, role: r.role } }
    user_revoke_role(r: AuthUserRevokeRoleRequest) -> AuthUserRevokeRoleResponse { AuthCommand::UserRevokeRole { user: r.name, role: r.role } }
    role_add(r: AuthRoleAddRequest) -> AuthRoleAddResponse { AuthCommand::RoleAdd { name: r.name } }
    role_delete(r: AuthRoleDeleteRequest) -> AuthRoleDeleteResponse { AuthCommand::RoleDelete { name: r.role } }
    role_revoke_permission(r: AuthRoleRevokePermissionRequest) -> AuthRoleRevokePermissionResponse {
        AuthCommand::RoleRevokePermission { role: r.role, key: r.key, range_end: r.range_end }
    }
}
