//! Other people's test suites, run against three members of ours that are called `etcd`. `cargo xtask setup` brings the
//! suites; `cargo xtask suites` runs these alone.

#[path = "../support/mod.rs"]
mod support;

mod etcd_client;
mod members;
mod python;
