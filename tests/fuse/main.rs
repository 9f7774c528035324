//! The mount as applications see it, over a whole cluster on one machine.

mod applications;
mod fencing;
mod fsx;
mod posix;
mod survival;

#[path = "../support/mod.rs"]
mod support;
