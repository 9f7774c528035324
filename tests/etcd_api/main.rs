//! etcd's own client against a three-member cluster, and what becomes of its data when members die.

mod as_etcd;
mod auth;
mod commands;
mod failures;
mod membership;
mod metrics;
mod recovery;
mod servers;
mod snapshot;

#[path = "../support/mod.rs"]
mod support;
