//! See ARCHITECTURE.md, "Tests".

#[path = "../support/mod.rs"]
mod support;
