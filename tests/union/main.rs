//! Union mounts as applications and containers see them, beside the kernel's overlayfs where it has an opinion.

mod ahead;
mod container;
mod fsx;
mod killed;
mod lazy;
mod links;
mod live;
mod notify;
mod objects;
mod passthrough;
mod posix;
mod replicated;
mod stack;
mod unnamed;
mod volatile;

#[path = "../volume/lab.rs"]
#[allow(dead_code, reason = "not all of it is used here")]
mod lab;
#[path = "../support/mod.rs"]
mod support;
