//! Scrub: finds what was altered behind our back, and says which brick is right.

pub mod signature;
