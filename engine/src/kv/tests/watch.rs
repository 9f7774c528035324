//! Watchers: completeness and order for ever, whatever the pace.

use super::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

fn request(key: &str, end: &str, start: u64) -> WatchRequest {
    let start_revision = Revision(start);
    WatchRequest { key: b(key), range_end: b(end), start_revision, prev_kv: true, ..Default::default() }
}

fn run_watched(store: &Store, hub: &mut WatchHub, command: Command) -> ApplyOutcome {
    let outcome = run(store, command);
    hub.on_events(outcome.keyspace, outcome.applied.revision, &outcome.events);
    outcome
}

fn catch_up(store: &Store, hub: &mut WatchHub) {
    while hub.catch_up(store).unwrap() {}
}

/// Polls until empty: `+key` and `-key` with revisions.
fn drain(hub: &mut WatchHub, id: WatchId) -> Vec<String> {
    let mut shown = Vec::new();
    while let Some(output) = hub.poll(id, 100) {
        match output {
            WatchOutput::Events { events, revision } => {
                assert_eq!(events.last().unwrap().kv.mod_revision, revision);
                for e in events {
                    let sign = if e.delete { '-' } else { '+' };
                    shown.push(format!("{sign}{}@{}", String::from_utf8_lossy(&e.kv.key), e.kv.mod_revision));
                }
            }
            WatchOutput::Progress { revision } => shown.push(format!("progress@{revision}")),
            WatchOutput::Compacted { compact_revision } => shown.push(format!("compacted@{compact_revision}")),
        }
    }
    shown
}

#[test]
fn watchers_see_now_the_past_and_the_future() {
    let store = memory();
    let mut hub = WatchHub::new(WatchConfig::default(), &store);
    for i in 0..3 {
        run_watched(&store, &mut hub, put("a", &i.to_string())); // 2, 3, 4
    }
    let now = hub.create(U, request("a", "", 0));
    let past = hub.create(U, request("a", "b", 3));
    let future = hub.create(U, request("\0", "\0", 6));
    let system = hub.create(Keyspace::System, request("\0", "\0", 0));
    catch_up(&store, &mut hub);
    run_watched(&store, &mut hub, put("a/b", "")); // 5
    run_watched(&store, &mut hub, delete("a", "")); // 6
    assert_eq!(drain(&mut hub, now), ["-a@6"]);
    assert_eq!(drain(&mut hub, past), ["+a@3", "+a@4", "+a/b@5", "-a@6"]);
    assert_eq!(drain(&mut hub, future), ["-a@6"]);
    assert!(drain(&mut hub, system).is_empty());
    assert!(hub.cancel(now) && !hub.cancel(now));
    run_watched(&store, &mut hub, put("a", ""));
    assert_eq!(hub.poll(now, 1), None);
    assert_eq!(hub.counts(U), WatchCounts { watchers: 2, slow: 0, pending_events: 2 }, "the two have not taken the last put");
    assert_eq!(hub.counts(Keyspace::System).watchers, 1);
}

#[test]
fn filters_and_previous_pairs() {
    let store = memory();
    let mut hub = WatchHub::new(WatchConfig::default(), &store);
    let no_put = hub.create(U, WatchRequest { no_put: true, ..request("a", "", 0) });
    let no_delete = hub.create(U, WatchRequest { no_delete: true, prev_kv: false, ..request("a", "", 0) });
    run_watched(&store, &mut hub, put("a", "1"));
    run_watched(&store, &mut hub, put("a", "2"));
    run_watched(&store, &mut hub, delete("a", ""));
    let late = hub.create(U, request("a", "", 2));
    catch_up(&store, &mut hub);
    let prev = |hub: &mut WatchHub, id| {
        let Some(WatchOutput::Events { events, .. }) = hub.poll(id, 100) else { panic!() };
        events.into_iter().map(|e| e.prev_kv.map(|kv| kv.value)).collect::<Vec<_>>()
    };
    assert_eq!(prev(&mut hub, no_put), [Some(b("2"))]);
    assert_eq!(prev(&mut hub, no_delete), [None, None]);
    assert_eq!(prev(&mut hub, late), [None, Some(b("1")), Some(b("2"))]);
}

#[test]
fn a_compacted_start_cancels() {
    let store = memory();
    let mut hub = WatchHub::new(WatchConfig::default(), &store);
    for i in 0..10 {
        run_watched(&store, &mut hub, put("a", &i.to_string()));
    }
    run_watched(&store, &mut hub, compact(8));
    let gone = hub.create(U, request("a", "", 7));
    let kept = hub.create(U, request("a", "", 8));
    catch_up(&store, &mut hub);
    assert_eq!(drain(&mut hub, gone), ["compacted@8"]);
    assert_eq!(drain(&mut hub, kept), ["+a@8", "+a@9", "+a@10", "+a@11"]);
    assert_eq!(hub.counts(U), WatchCounts { watchers: 1, ..WatchCounts::default() });
}

#[test]
fn a_slow_watcher_lags_in_bounded_memory_and_loses_nothing() {
    let store = memory();
    let config = WatchConfig { queue_events_max: 10, catch_up_events_max: 7, ..Default::default() };
    let mut hub = WatchHub::new(config, &store);
    let slow = hub.create(U, request("a", "b", 0));
    let quick = hub.create(U, request("a", "b", 0));
    let mut seen = 0;
    for i in 0..100 {
        run_watched(&store, &mut hub, put(&format!("a{}", i % 7), ""));
        seen += drain(&mut hub, quick).len();
    }
    assert_eq!((seen, hub.counts(U)), (100, WatchCounts { watchers: 2, slow: 1, pending_events: 10 }));
    catch_up(&store, &mut hub); // no room: nothing to do
    let mut all = Vec::new();
    while hub.counts(U).slow > 0 {
        all.extend(drain(&mut hub, slow));
        catch_up(&store, &mut hub);
    }
    all.extend(drain(&mut hub, slow));
    let expected: Vec<String> = (0..100).map(|i| format!("+a{}@{}", i % 7, i + 2)).collect();
    assert_eq!(all, expected);
}

#[test]
fn progress_tells_what_has_been_delivered() {
    let store = memory();
    let mut hub = WatchHub::new(WatchConfig::default(), &store);
    run_watched(&store, &mut hub, put("x", ""));
    let in_step = hub.create(U, request("a", "", 0));
    let lagging = hub.create(U, request("x", "", 1));
    hub.request_progress(lagging);
    assert_eq!(hub.next_ready(), None, "not in step yet");
    hub.request_progress(in_step);
    assert_eq!(hub.next_ready(), Some(in_step));
    assert_eq!(drain(&mut hub, in_step), ["progress@2"]);
    run_watched(&store, &mut hub, put("a", ""));
    assert_eq!(drain(&mut hub, in_step), ["+a@3"]);
    catch_up(&store, &mut hub);
    assert_eq!(drain(&mut hub, lagging), ["+x@2", "progress@3"]);
}

#[test]
fn watchers_go_on_over_a_restored_snapshot() {
    let (ahead, store) = (memory(), memory());
    let mut hub = WatchHub::new(WatchConfig::default(), &store);
    let id = hub.create(U, request("a", "", 0));
    for i in 0..5 {
        run(&ahead, put("a", &i.to_string()));
        if i == 0 {
            run_watched(&store, &mut hub, put("a", "0"));
        }
    }
    store.restore(ahead.snapshot().unwrap().map(Result::unwrap)).unwrap();
    hub.on_restore(&store);
    catch_up(&store, &mut hub);
    assert_eq!(drain(&mut hub, id), ["+a@2", "+a@3", "+a@4", "+a@5", "+a@6"]);
}

/// Random transactions, watchers created and polled at random: each gets exactly the history of its range,
/// whole revisions at a time.
#[test]
fn every_watcher_gets_its_history_exactly() {
    for seed in 0..10 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let store = memory();
        let config = WatchConfig { queue_events_max: 5, queue_bytes_max: 200, catch_up_events_max: 4 };
        let mut hub = WatchHub::new(config, &store);
        let mut history: Vec<Event> = Vec::new();
        let mut watchers: Vec<(WatchId, WatchRequest, u64, Vec<Event>)> = Vec::new();
        for _ in 0..300 {
            let ops = (0..rng.random_range(1..4)).map(|i| {
                let key = b(&format!("{}{}", ["a", "b", "c"][i], rng.random_range(0..5)));
                if rng.random_ratio(1, 3) {
                    TxnOp::DeleteRange(DeleteRangeRequest { key, ..Default::default() })
                } else {
                    TxnOp::Put(PutRequest { key, value: b("value"), ..Default::default() })
                }
            });
            let txn = TxnRequest { success: ops.collect(), ..Default::default() };
            history.extend(run_watched(&store, &mut hub, Command::Txn(U, txn)).events);
            if rng.random_ratio(1, 20) {
                let ranges = [("a", "b"), ("a", "c"), ("b1", ""), ("b", "\0"), ("a2", "c1")];
                let (key, end) = ranges[rng.random_range(0..ranges.len())];
                let request = request(key, end, rng.random_range(0..=store.revision(U).0 + 3));
                let start = if request.start_revision.0 == 0 { hub.seen(U).0 + 1 } else { request.start_revision.0 };
                watchers.push((hub.create(U, request.clone()), request, start, Vec::new()));
            }
            if rng.random_ratio(1, 3) {
                hub.catch_up(&store).unwrap();
            }
            if !watchers.is_empty() && rng.random_ratio(1, 2) {
                let at = rng.random_range(0..watchers.len());
                poll_once(&mut hub, &mut watchers[at], rng.random_range(1..4));
            }
        }
        for _ in 0..1000 {
            watchers.iter_mut().for_each(|w| poll_once(&mut hub, w, 3));
            hub.catch_up(&store).unwrap();
        }
        for (_, request, start, got) in &watchers {
            let wanted = |e: &&Event| {
                let key = &e.kv.key;
                let inside = match &request.range_end[..] {
                    [] => *key == request.key,
                    [0] => *key >= request.key,
                    _ => *key >= request.key && *key < request.range_end,
                };
                inside && e.kv.mod_revision.0 >= *start
            };
            assert_eq!(got, &history.iter().filter(wanted).cloned().collect::<Vec<_>>(), "{seed} {request:?}");
        }
        assert_eq!(hub.counts(U), WatchCounts { watchers: watchers.len(), ..WatchCounts::default() });
        watchers.iter().for_each(|(id, ..)| assert!(hub.cancel(*id)));
        assert_eq!(hub.counts(U), WatchCounts::default());
    }
}

fn poll_once(hub: &mut WatchHub, watcher: &mut (WatchId, WatchRequest, u64, Vec<Event>), max: usize) {
    if let Some(WatchOutput::Events { events, .. }) = hub.poll(watcher.0, max) {
        let last = watcher.3.last().map(|e| e.kv.mod_revision);
        assert!(last.is_none_or(|last| events[0].kv.mod_revision > last), "a revision was split");
        watcher.3.extend(events);
    }
}
