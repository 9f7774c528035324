//! Majorities. Pure functions over the set of voters.

use super::membership::Membership;
use crate::types::NodeId;

/// How many of `voters` are a majority.
pub(super) fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// Whether a majority of the voters is `true`. Never, without voters.
pub(super) fn reached(members: &Membership, mut yes: impl FnMut(NodeId) -> bool) -> bool {
    members.voters.keys().filter(|id| yes(**id)).count() >= majority(members.voters.len())
}

/// The highest value that a majority of the voters has reached; 0 without voters.
///
/// Quadratic in the number of voters, which is at most seven or so, and without allocation.
pub(super) fn agreed(members: &Membership, value: impl Fn(NodeId) -> u64) -> u64 {
    let candidates = members.voters.keys().map(|id| value(*id));
    candidates.filter(|v| reached(members, |id| value(id) >= *v)).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(n: u64) -> Membership {
        Membership { voters: (1..=n).map(|i| (NodeId(i), Default::default())).collect(), ..Default::default() }
    }

    #[test]
    fn agreed_is_the_median_from_above() {
        for (values, want) in
            [(vec![], 0), (vec![5], 5), (vec![5, 7], 5), (vec![3, 9, 5], 5), (vec![1, 2, 3, 4], 2), (vec![9, 9, 1, 2, 3], 3)]
        {
            let got = agreed(&members(values.len() as u64), |id| values[id.0 as usize - 1]);
            assert_eq!(got, want, "{values:?}");
        }
    }
}
