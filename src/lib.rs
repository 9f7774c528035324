//! The pieces of the `brickraft` binary.
