//! Recovery as two tables: what a segment's header says, and how the chain of batches ends.
//!
//! Segments, in order of number (`-` stands for either):
//!
//! | header        | batches of this segment inside | newest | verdict                                          |
//! |---------------|--------------------------------|--------|--------------------------------------------------|
//! | valid         | -                              | -      | scan                                             |
//! | other version | -                              | -      | refuse: version                                  |
//! | other log     | -                              | -      | refuse: damaged (a file of another log)          |
//! | stale         | no                             | yes    | discard: renamed for reuse, not yet prepared     |
//! | garbage       | no                             | yes    | discard: created, not yet prepared               |
//! | stale         | yes, or not the newest         |        | refuse: damaged                                  |
//! | garbage       | yes, or not the newest         |        | refuse: damaged                                  |
//!
//! The end: batch `n` is the first that does not follow. `here` is what stands in its place; `later` is the
//! strongest header of a batch `>= n` anywhere behind it. A batch says up to which number all were durable
//! when it was written, and only what was durable was acknowledged:
//!
//! | here                                  | later                     | verdict                                |
//! |---------------------------------------|---------------------------|----------------------------------------|
//! | -                                     | says that `n` was durable | refuse: damaged                        |
//! | another batch of this segment         | nothing or unconfirmed    | refuse: damaged (the chain is broken)  |
//! | nothing                               | nothing                   | clean end                              |
//! | `n`'s header, its payload torn        | nothing or unconfirmed    | torn tail: cut here                    |
//! | nothing                               | unconfirmed               | torn tail: cut here                    |
//!
//! Missing segments are found beside the tables: the numbers below the newest are contiguous down to the
//! floor that the last batch names.

/// What a segment's first block says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderFact {
    /// This segment of this log.
    Valid,
    /// Another segment of this log.
    Stale,
    /// A segment of another log.
    OtherLog,
    /// Another format version.
    OtherVersion,
    /// Nothing readable.
    Garbage,
}

/// What to do with a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentCase {
    /// Read its batches.
    Scan,
    /// It never held anything: remove it.
    Discard,
    /// Refuse to open.
    Version,
    /// Refuse to open.
    Foreign,
    /// Refuse to open.
    Damaged,
}

/// What stands where the next batch should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Here {
    /// No header of a batch of this segment (or the segment is full).
    Nothing,
    /// The header of the right batch, its payload is not what was written.
    Torn,
    /// A header of this segment that does not follow.
    Stray,
}

/// The strongest evidence behind the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Later {
    /// No later batch.
    Nothing,
    /// Later batches, written while batch `n` was still in flight.
    Unconfirmed,
    /// A later batch, written when `n` was known to be durable.
    Confirms,
}

/// How the chain ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndCase {
    /// Append here.
    Clean,
    /// Cut, clean up, append here.
    Torn,
    /// Refuse to open: the chain is broken.
    Broken,
    /// Refuse to open: an acknowledged batch is gone.
    Damaged,
}

/// A row matches when its pattern does.
type SegmentRow = (fn(HeaderFact, bool, bool) -> bool, SegmentCase);
type EndRow = (fn(Here, Later) -> bool, EndCase);

const SEGMENT_TABLE: [SegmentRow; 5] = [
    (|h, _, _| h == HeaderFact::Valid, SegmentCase::Scan),
    (|h, _, _| h == HeaderFact::OtherVersion, SegmentCase::Version),
    (|h, _, _| h == HeaderFact::OtherLog, SegmentCase::Foreign),
    (|h, batches, newest| unprepared(h) && !batches && newest, SegmentCase::Discard),
    (|h, batches, newest| unprepared(h) && (batches || !newest), SegmentCase::Damaged),
];

const END_TABLE: [EndRow; 5] = [
    (|_, later| later == Later::Confirms, EndCase::Damaged),
    (|here, later| here == Here::Stray && later != Later::Confirms, EndCase::Broken),
    (|here, later| here == Here::Nothing && later == Later::Nothing, EndCase::Clean),
    (|here, later| here == Here::Torn && later != Later::Confirms, EndCase::Torn),
    (|here, later| here == Here::Nothing && later == Later::Unconfirmed, EndCase::Torn),
];

fn unprepared(header: HeaderFact) -> bool {
    matches!(header, HeaderFact::Stale | HeaderFact::Garbage)
}

/// Looks a segment up.
#[must_use]
pub fn segment_case(header: HeaderFact, batches: bool, newest: bool) -> SegmentCase {
    SEGMENT_TABLE.iter().find(|(matches, _)| matches(header, batches, newest)).map_or(SegmentCase::Damaged, |(_, case)| *case)
}

/// Looks the end up.
#[must_use]
pub fn end_case(here: Here, later: Later) -> EndCase {
    END_TABLE.iter().find(|(matches, _)| matches(here, later)).map_or(EndCase::Damaged, |(_, case)| *case)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_combination_matches_exactly_one_row() {
        use HeaderFact::{Garbage, OtherLog, OtherVersion, Stale, Valid};
        for header in [Valid, Stale, OtherLog, OtherVersion, Garbage] {
            for (batches, newest) in [(false, false), (false, true), (true, false), (true, true)] {
                let rows = SEGMENT_TABLE.iter().filter(|(m, _)| m(header, batches, newest)).count();
                assert_eq!(rows, 1, "{header:?}, batches {batches}, newest {newest}");
            }
        }
        for here in [Here::Nothing, Here::Torn, Here::Stray] {
            for later in [Later::Nothing, Later::Unconfirmed, Later::Confirms] {
                assert_eq!(END_TABLE.iter().filter(|(m, _)| m(here, later)).count(), 1, "{here:?}, {later:?}");
            }
        }
    }

    #[test]
    fn nothing_acknowledged_is_ever_cut() {
        for here in [Here::Nothing, Here::Torn, Here::Stray] {
            assert_eq!(end_case(here, Later::Confirms), EndCase::Damaged);
        }
    }
}
