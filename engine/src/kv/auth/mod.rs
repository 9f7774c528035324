//! Users, roles and permissions: etcd's auth store, as replicated state.
//!
//! [`AuthState`] is all of it, in memory, immutable and shared: readers take the current one and keep it as long as they
//! like; applying an [`AuthCommand`] makes the next. It stands in the table `auth` as well, so that it is in snapshots and
//! survives crashes with the same applied index as everything else.
//!
//! Who may do what is decided where a command is applied, against the state of that moment, so every member decides
//! alike. Nothing here reads a clock, hashes a password or draws a random number: hashes and keys come in the commands.

mod apply;
mod ranges;
mod state;
mod types;

pub use state::{AuthState, Grants};
pub use types::{AuthCommand, AuthError, Identity, Permission, PermissionKind, ROOT, Role, User};
