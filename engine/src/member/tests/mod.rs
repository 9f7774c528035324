//! Whole clusters in one thread: simulated disks, network and clock; and one cluster on tokio.

mod alone;
mod auth;
mod chaos;
mod cluster;
mod driver;
mod membership;
mod scenarios;
