//! The GlusterFS lab on three hosts: real processes in network namespaces, bricks on file systems of their own.
//! See ARCHITECTURE.md, "Tests".

mod damage;
mod faults;
mod lab;
mod refusals;
#[path = "../support/mod.rs"]
mod support;
mod tree;
mod walk;
mod writer;
