//! The services against a real member.
