//! etcd's own client against a three-member cluster, and what becomes of its data when members die.

mod commands;
mod failures;

#[path = "../support/mod.rs"]
mod support;
