//! The works of the table, and what each is to reach.

use super::load::{Load, Op, PUT_KEYS};
use super::report::Metric;

/// What is done in one line of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Load(Load),
    /// So many watches in all, so many on one stream.
    Watchers {
        watchers: u32,
        per_stream: u32,
    },
    /// So many keys that lie there.
    Rest {
        keys: u32,
    },
}

/// The largest ratio ours / etcd that meets a target; for throughput the least.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) metric: Metric,
    pub(crate) ratio: f64,
}

const fn at_most(metric: Metric, ratio: f64) -> Target {
    Target { metric, ratio }
}

/// One line of the table.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    /// For `--only`.
    pub(crate) name: &'static str,
    pub(crate) text: &'static str,
    pub(crate) kind: Kind,
    pub(crate) targets: &'static [Target],
}

const fn load(op: Op, clients: usize, connections: usize) -> Kind {
    Kind::Load(Load { op, clients, connections, rate: None })
}

const PUT: Op = Op::Put { prefix: "p", keys: PUT_KEYS };
const LINEARIZABLE: Op = Op::Range { serializable: false };
const SERIALIZABLE: Op = Op::Range { serializable: true };

/// All works. Targets are those of issue 3.
pub(crate) const WORKS: &[Work] = &[
    Work {
        name: "put-1",
        text: "put, 1 client (of the leader)",
        kind: load(PUT, 1, 1),
        targets: &[at_most(Metric::P50, 0.5), at_most(Metric::ServerCpu, 0.3)],
    },
    Work {
        name: "put-100",
        text: "put, 100 clients, 10 connections",
        kind: load(PUT, 100, 10),
        targets: &[at_most(Metric::ServerCpu, 0.2), Target { metric: Metric::Throughput, ratio: 2.5 }],
    },
    Work {
        name: "put-1000",
        text: "put, 1,000 clients, 100 connections",
        kind: load(PUT, 1000, 100),
        targets: &[at_most(Metric::ServerCpu, 0.2), at_most(Metric::P99, 0.4)],
    },
    Work {
        name: "put-rate",
        text: "put, open loop, 2,000 a second, 10 connections",
        kind: Kind::Load(Load { op: PUT, clients: 100, connections: 10, rate: Some(2000) }),
        targets: &[],
    },
    Work { name: "range-1", text: "linearizable range, 1 client (of the leader)", kind: load(LINEARIZABLE, 1, 1), targets: &[] },
    Work { name: "range-100", text: "linearizable range, 100 clients, 10 connections", kind: load(LINEARIZABLE, 100, 10), targets: &[] },
    Work {
        name: "range-1000",
        text: "linearizable range, 1,000 clients, 100 connections",
        kind: load(LINEARIZABLE, 1000, 100),
        targets: &[at_most(Metric::ServerCpu, 0.1), at_most(Metric::P99, 0.2)],
    },
    Work {
        name: "serializable-1000",
        text: "serializable range, 1,000 clients, 100 connections",
        kind: load(SERIALIZABLE, 1000, 100),
        targets: &[],
    },
    Work {
        name: "txn-100",
        text: "txn of 10 puts, 100 clients, 10 connections",
        kind: load(Op::Txn { puts: 10 }, 100, 10),
        targets: &[at_most(Metric::ServerCpu, 0.1)],
    },
    Work { name: "keepalive-100", text: "lease keep-alive, 100 streams, 10 connections", kind: load(Op::KeepAlive, 100, 10), targets: &[] },
    Work {
        name: "watch-streams",
        text: "10,000 idle watchers, a stream each on 100 connections, then 1,000 puts",
        kind: Kind::Watchers { watchers: 10_000, per_stream: 1 },
        targets: &[at_most(Metric::Rss, 0.25), at_most(Metric::Pss, 0.25)],
    },
    Work {
        name: "watch-shared",
        text: "10,000 idle watchers, 100 on each of 100 streams, then 1,000 puts",
        kind: Kind::Watchers { watchers: 10_000, per_stream: 100 },
        targets: &[at_most(Metric::Rss, 0.25), at_most(Metric::Pss, 0.25)],
    },
    Work {
        name: "rest",
        text: "at rest with one million 256-byte keys",
        kind: Kind::Rest { keys: 1_000_000 },
        targets: &[at_most(Metric::Rss, 0.5), at_most(Metric::Pss, 0.5)],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<&str> = WORKS.iter().map(|w| w.name).collect();
        assert_eq!(names.len(), WORKS.len());
    }
}
