//! `bu` and `bup`: the nearest branch above the object; the nearest in which the parent exists.

use super::Candidate;

pub(super) fn pick(candidates: &[Candidate]) -> Option<&Candidate> {
    candidates.last()
}

pub(super) fn pick_with_parent(candidates: &[Candidate]) -> Option<&Candidate> {
    candidates.iter().rfind(|c| c.has_parent).or_else(|| candidates.last())
}
