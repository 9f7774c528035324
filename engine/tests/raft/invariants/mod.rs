//! One checked property per file, named after the paper's (figure 3).

pub mod election_safety;
pub mod leader_append_only;
pub mod leader_completeness;
pub mod log_matching;
pub mod read_linearizability;
pub mod state_machine_safety;

#[derive(Default)]
pub struct Checkers {
    pub election_safety: election_safety::ElectionSafety,
    pub leader_append_only: leader_append_only::LeaderAppendOnly,
    pub leader_completeness: leader_completeness::LeaderCompleteness,
    pub log_matching: log_matching::LogMatching,
    pub read_linearizability: read_linearizability::ReadLinearizability,
    pub state_machine_safety: state_machine_safety::StateMachineSafety,
}
