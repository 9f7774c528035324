//! The Auth service. Users and roles are not there yet: authentication is off and says so, and whatever would change
//! that is refused, so that nobody believes a store to be closed that is open.

use super::Api;
use super::pb::etcdserverpb as pb;
use super::status::ApiError;
use pb::auth_server::Auth;
use tonic::{Request, Response, Status};

macro_rules! auth_service {
    ($($method:ident($request:ident) -> $response:ident, $name:literal;)*) => {
        #[tonic::async_trait]
        impl Auth for Api {
            async fn auth_disable(&self, _request: Request<pb::AuthDisableRequest>) -> Result<Response<pb::AuthDisableResponse>, Status> {
                Ok(Response::new(pb::AuthDisableResponse { header: Some(self.header_now()) }))
            }

            async fn auth_status(&self, _request: Request<pb::AuthStatusRequest>) -> Result<Response<pb::AuthStatusResponse>, Status> {
                // 1 is the auth store's first revision in etcd.
                Ok(Response::new(pb::AuthStatusResponse { header: Some(self.header_now()), enabled: false, auth_revision: 1 }))
            }

            async fn authenticate(&self, _request: Request<pb::AuthenticateRequest>) -> Result<Response<pb::AuthenticateResponse>, Status> {
                Err(ApiError::AuthNotEnabled.into())
            }

            $(
                async fn $method(&self, _request: Request<pb::$request>) -> Result<Response<pb::$response>, Status> {
                    Err(ApiError::Unsupported($name).into())
                }
            )*
        }
    };
}

auth_service! {
    auth_enable(AuthEnableRequest) -> AuthEnableResponse, "AuthEnable";
    user_add(AuthUserAddRequest) -> AuthUserAddResponse, "UserAdd";
    user_get(AuthUserGetRequest) -> AuthUserGetResponse, "UserGet";
    user_list(AuthUserListRequest) -> AuthUserListResponse, "UserList";
    user_delete(AuthUserDeleteRequest) -> AuthUserDeleteResponse, "UserDelete";
    user_change_password(AuthUserChangePasswordRequest) -> AuthUserChangePasswordResponse, "UserChangePassword";
    user_grant_role(AuthUserGrantRoleRequest) -> AuthUserGrantRoleResponse, "UserGrantRole";
    user_revoke_role(AuthUserRevokeRoleRequest) -> AuthUserRevokeRoleResponse, "UserRevokeRole";
    role_add(AuthRoleAddRequest) -> AuthRoleAddResponse, "RoleAdd";
    role_get(AuthRoleGetRequest) -> AuthRoleGetResponse, "RoleGet";
    role_list(AuthRoleListRequest) -> AuthRoleListResponse, "RoleList";
    role_delete(AuthRoleDeleteRequest) -> AuthRoleDeleteResponse, "RoleDelete";
    role_grant_permission(AuthRoleGrantPermissionRequest) -> AuthRoleGrantPermissionResponse, "RoleGrantPermission";
    role_revoke_permission(AuthRoleRevokePermissionRequest) -> AuthRoleRevokePermissionResponse, "RoleRevokePermission";
}
