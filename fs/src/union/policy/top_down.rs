//! `tdp`: the highest branch in which the parent exists, else the nearest one above it.

use super::Candidate;

pub(super) fn pick(candidates: &[Candidate]) -> Option<&Candidate> {
    candidates.iter().find(|c| c.has_parent).or_else(|| candidates.iter().rfind(|c| c.above)).or_else(|| candidates.last())
}
