//! The Watch service: many watches on one stream.
//!
//! One function owns the stream: it reads requests and is the only one to write answers, so that "created" stands before
//! the first event and "canceled" after the last. The updates of all its watches come in one queue. When the client does
//! not read, that fills up, and then the hub lets the watches fall back to history. Nothing grows.

use super::Api;
use super::answers::{Answers, Outlet};
use super::auth::Caller;
use super::convert;
use super::metrics::OpenStream;
use super::pb::etcdserverpb as pb;
use super::pb::mvccpb;
use super::status::ApiError;
use brickraft_engine::kv::types::{Event, Keyspace, KvError};
use brickraft_engine::kv::{WatchId, WatchOutput, WatchRequest};
use brickraft_engine::member::{MemberError, Watches};
use brickraft_engine::types::Revision;
use bytes::Bytes;
use pb::watch_create_request::FilterType;
use pb::watch_request::RequestUnion;
use pb::watch_server::Watch;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tonic::{Request, Response, Status, Streaming};

/// Watches on one stream.
const WATCHES_MAX: usize = 100_000;
/// The id in answers that belong to no watch, or to all.
const NO_WATCH: i64 = -1;

type Answer = Result<pb::WatchResponse, Status>;

struct Running {
    /// The member's number for it, which no other watch will ever have.
    watch: WatchId,
    fragment: bool,
    progress_notify: bool,
    /// Had no event since the last tick of the stream's clock.
    idle: bool,
}

/// A round of WatchProgressRequest: answered once every watch has delivered everything up to some revision.
#[derive(Default)]
struct Progress {
    waiting: BTreeSet<i64>,
    /// The least of what was answered.
    revision: Option<Revision>,
    /// Asked for again meanwhile: a round that has begun may answer with less than the second asker knows of.
    again: bool,
}

struct Session {
    api: Caller,
    out: Outlet<Answer>,
    watches: Watches,
    /// For as long as the stream lives.
    _open: OpenStream,
    /// By the client's ids.
    running: BTreeMap<i64, Running>,
    ids: BTreeMap<WatchId, i64>,
    next_id: i64,
    progress: Progress,
    /// When watches that asked for it hear of the revision although nothing happens; from the first such watch on.
    ticks: Option<Interval>,
}

async fn tick(ticks: &mut Option<Interval>) {
    match ticks {
        Some(ticks) => {
            ticks.tick().await;
        }
        None => std::future::pending().await,
    }
}

/// Splits events into messages of at most about `bytes_max`, each with at least one event.
fn fragments(events: Vec<mvccpb::Event>, bytes_max: usize) -> Vec<Vec<mvccpb::Event>> {
    let mut parts = vec![Vec::new()];
    let mut size = 0;
    for event in events {
        let event_size = event.encoded_len();
        if size + event_size > bytes_max && parts.last().is_some_and(|p| !p.is_empty()) {
            parts.push(Vec::new());
            size = 0;
        }
        size += event_size;
        if let Some(part) = parts.last_mut() {
            part.push(event);
        }
    }
    parts
}

/// A watch lives long: it shall not keep the whole buffer alive that its request came in.
fn kept(key: &Bytes) -> Bytes {
    Bytes::copy_from_slice(key)
}

fn watch_request(r: &pb::WatchCreateRequest, now: Revision) -> Result<WatchRequest, &'static str> {
    // As in etcd: the empty key stands for the smallest one.
    let key = if r.key.is_empty() { Bytes::from_static(b"\0") } else { kept(&r.key) };
    let bounded = !r.range_end.is_empty() && r.range_end.as_ref() != b"\0";
    if bounded && key >= r.range_end {
        return Err("mvcc: watcher range is empty");
    }
    // The answer's header says `now`, and a client that reconnects goes on from there: so that is where it starts.
    let start_revision = if r.start_revision > 0 { convert::revision(r.start_revision) } else { now.next() };
    Ok(WatchRequest {
        key,
        range_end: kept(&r.range_end),
        start_revision,
        no_put: r.filters().any(|f| f == FilterType::Noput),
        no_delete: r.filters().any(|f| f == FilterType::Nodelete),
        prev_kv: r.prev_kv,
    })
}

impl Caller {
    /// Whoever watches keys reads them.
    async fn may_watch(&self, r: &pb::WatchCreateRequest) -> Result<(), ApiError> {
        let key = if r.key.is_empty() { &b"\0"[..] } else { &r.key };
        Ok(self.grants().await?.read(key, &r.range_end)?)
    }
}

/// An error as Go's gRPC prints it: clients compare a watch's cancel reason with that, and log in again on some.
fn reason(e: &ApiError) -> String {
    format!("rpc error: code = {:?} desc = {e}", e.code())
}

impl Session {
    async fn send(&self, revision: Revision, response: pb::WatchResponse) {
        let header = Some(self.api.header(revision));
        self.out.send(Ok(pb::WatchResponse { header, ..response })).await;
    }

    async fn run(mut self, mut requests: Streaming<pb::WatchRequest>) {
        let api = Api::clone(&self.api);
        let end = api.stream_end(self.api.leader_required());
        tokio::pin!(end);
        // A client may close its half and go on listening.
        let mut asking = true;
        let end = loop {
            tokio::select! {
                request = requests.message(), if asking => match request {
                    // In a box: an idle stream shall not keep room for it.
                    Ok(Some(r)) => Box::pin(self.on_request(r)).await,
                    Ok(None) => asking = false,
                    // The client is gone; there is nobody to tell.
                    Err(_) => return,
                },
                update = self.watches.next() => match update {
                    Some((watch, output)) => Box::pin(self.on_update(watch, output)).await,
                    // Watches end by themselves only when their member does; the stream ends with it.
                    None => break MemberError::Stopped.into(),
                },
                () = tick(&mut self.ticks) => self.on_tick(),
                e = &mut end => break e,
            }
        };
        Box::pin(self.out.send(Err(end.into()))).await;
    }

    async fn on_request(&mut self, request: pb::WatchRequest) {
        match request.request_union {
            Some(RequestUnion::CreateRequest(r)) => self.create(r).await,
            Some(RequestUnion::CancelRequest(r)) => self.cancel(r.watch_id).await,
            Some(RequestUnion::ProgressRequest(_)) if self.progress.waiting.is_empty() => self.start_progress().await,
            Some(RequestUnion::ProgressRequest(_)) => self.progress.again = true,
            None => {}
        }
    }

    fn on_tick(&mut self) {
        for running in self.running.values_mut().filter(|w| w.progress_notify) {
            if std::mem::replace(&mut running.idle, true) {
                self.watches.request_progress(running.watch);
            }
        }
    }

    /// As in etcd, up to a tenth longer, so that streams that came together do not tick together.
    fn start_ticking(&mut self) {
        let interval = self.api.settings().watch_progress_interval;
        let interval = interval.mul_f64(rand::random_range(1.0..1.1));
        self.ticks.get_or_insert_with(|| {
            let mut ticks = tokio::time::interval_at(Instant::now() + interval, interval);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        });
    }

    fn choose_id(&mut self, wanted: i64) -> Result<i64, String> {
        if self.running.len() >= WATCHES_MAX {
            return Err(MemberError::TooManyRequests.to_string());
        }
        if wanted != 0 {
            let taken = self.running.contains_key(&wanted);
            return if taken { Err("mvcc: duplicate watch ID provided on the WatchStream".into()) } else { Ok(wanted) };
        }
        while self.running.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        let id = self.next_id;
        self.next_id += 1;
        Ok(id)
    }

    async fn open(&mut self, r: &pb::WatchCreateRequest, now: Revision) -> Result<(i64, WatchId), String> {
        self.api.may_watch(r).await.map_err(|e| reason(&e))?;
        let request = watch_request(r, now)?;
        let id = self.choose_id(r.watch_id)?;
        let watch = self.watches.create(Keyspace::User, request).await.map_err(|e| e.to_string())?;
        Ok((id, watch))
    }

    async fn create(&mut self, r: pb::WatchCreateRequest) {
        let now = self.api.revision();
        let (id, watch) = match self.open(&r, now).await {
            Ok(opened) => opened,
            Err(cancel_reason) => {
                let refusal = pb::WatchResponse { watch_id: NO_WATCH, created: true, canceled: true, cancel_reason, ..Default::default() };
                return self.send(now, refusal).await;
            }
        };
        self.send(now, pb::WatchResponse { watch_id: id, created: true, ..Default::default() }).await;
        if !self.progress.waiting.is_empty() {
            // The answer speaks for every watch of the stream, so it waits for this one too.
            self.progress.waiting.insert(id);
            self.watches.request_progress(watch);
        }
        if r.progress_notify {
            self.start_ticking();
        }
        self.running.insert(id, Running { watch, fragment: r.fragment, progress_notify: r.progress_notify, idle: true });
        self.ids.insert(watch, id);
    }

    fn forget(&mut self, id: i64) -> bool {
        let Some(running) = self.running.remove(&id) else { return false };
        self.watches.cancel(running.watch);
        self.ids.remove(&running.watch);
        true
    }

    async fn cancel(&mut self, id: i64) {
        if !self.forget(id) {
            return;
        }
        self.send(self.api.revision(), pb::WatchResponse { watch_id: id, canceled: true, ..Default::default() }).await;
        self.progress_lost(id).await
    }

    async fn on_update(&mut self, watch: WatchId, output: WatchOutput) {
        let Some(id) = self.ids.get(&watch).copied() else { return };
        let Some(running) = self.running.get_mut(&id) else { return };
        match output {
            WatchOutput::Events { revision, events } => {
                self.api.settings().metrics.watch_events.fetch_add(events.len() as u64, Ordering::Relaxed);
                running.idle = false;
                let fragment = running.fragment;
                self.events(id, fragment, revision, events).await
            }
            WatchOutput::Progress { revision } => {
                let notify = running.progress_notify;
                self.on_progress(id, notify, revision).await
            }
            WatchOutput::Compacted { compact_revision } => {
                self.forget(id);
                let response = pb::WatchResponse {
                    watch_id: id,
                    canceled: true,
                    compact_revision: convert::signed(compact_revision.0),
                    cancel_reason: KvError::Compacted.to_string(),
                    ..Default::default()
                };
                self.send(self.api.revision(), response).await;
                self.progress_lost(id).await
            }
        }
    }

    async fn events(&self, id: i64, fragment: bool, revision: Revision, events: Vec<Event>) {
        let events = events.into_iter().map(convert::event).collect();
        let bytes_max = if fragment { self.api.settings().limits.request_bytes_max } else { usize::MAX };
        let parts = fragments(events, bytes_max);
        let last = parts.len() - 1;
        for (i, events) in parts.into_iter().enumerate() {
            let part = pb::WatchResponse { watch_id: id, fragment: i < last, events, ..Default::default() };
            self.send(revision, part).await;
        }
    }

    async fn start_progress(&mut self) {
        self.progress = Progress { waiting: self.running.keys().copied().collect(), ..Default::default() };
        if self.running.is_empty() {
            return self.tell_progress(self.api.revision()).await;
        }
        self.running.values().for_each(|w| self.watches.request_progress(w.watch));
    }

    async fn tell_progress(&self, revision: Revision) {
        self.send(revision, pb::WatchResponse { watch_id: NO_WATCH, ..Default::default() }).await
    }

    async fn on_progress(&mut self, id: i64, notify: bool, revision: Revision) {
        if !self.progress.waiting.remove(&id) {
            if notify {
                self.send(revision, pb::WatchResponse { watch_id: id, ..Default::default() }).await;
            }
            return;
        }
        let least = self.progress.revision.map_or(revision, |r| r.min(revision));
        self.progress.revision = Some(least);
        self.progress_settled().await
    }

    async fn progress_lost(&mut self, id: i64) {
        if self.progress.waiting.remove(&id) {
            self.progress_settled().await;
        }
    }

    /// After the number of watches waited for went down.
    async fn progress_settled(&mut self) {
        if !self.progress.waiting.is_empty() {
            return;
        }
        let again = std::mem::take(&mut self.progress.again);
        match self.progress.revision.take() {
            Some(revision) => self.tell_progress(revision).await,
            // Every watch went away before it answered: ask those that are left, if any.
            None => return self.start_progress().await,
        }
        if again {
            self.start_progress().await;
        }
    }
}

#[tonic::async_trait]
impl Watch for Api {
    type WatchStream = Answers<Answer>;

    async fn watch(&self, request: Request<Streaming<pb::WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let (caller, requests) = self.caller(request);
        caller.require_a_leader()?;
        let session = |out| Session {
            watches: caller.handle().watches(),
            _open: OpenStream::new(caller.settings().metrics.clone()),
            api: caller,
            out,
            running: BTreeMap::new(),
            ids: BTreeMap::new(),
            next_id: 0,
            progress: Progress::default(),
            ticks: None,
        };
        Ok(Response::new(Answers::of(|out| session(out).run(requests))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_are_bounded_and_whole() {
        let event = |n: usize| mvccpb::Event {
            kv: Some(mvccpb::KeyValue { value: vec![0; n].into(), ..Default::default() }),
            ..Default::default()
        };
        let sizes = |events, max| fragments(events, max).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(sizes(vec![event(100), event(100), event(100)], 250), [2, 1]);
        assert_eq!(sizes(vec![event(1000), event(10)], 250), [1, 1]);
        assert_eq!(sizes(vec![event(1), event(1)], usize::MAX), [2]);
    }
}
