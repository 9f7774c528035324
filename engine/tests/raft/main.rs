//! Raft under a deterministic network: the paper's properties over many seeds, and directed scenarios.

mod directed;
mod harness;
mod invariants;
mod membership;
mod random;
mod reads;
