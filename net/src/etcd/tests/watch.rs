use super::*;
use crate::etcd::pb::etcdserverpb::watch_client::WatchClient;
use crate::etcd::pb::etcdserverpb::watch_request::RequestUnion;
use crate::etcd::pb::mvccpb::event::EventType;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

pub(super) struct Watching {
    requests: mpsc::Sender<pb::WatchRequest>,
    responses: Streaming<pb::WatchResponse>,
}

impl Watching {
    pub(super) async fn start(s: &Server) -> Self {
        let (requests, stream) = mpsc::channel(16);
        let responses = WatchClient::new(s.channel.clone()).watch(ReceiverStream::new(stream)).await.expect("watch").into_inner();
        Self { requests, responses }
    }

    pub(super) async fn ask(&self, request: RequestUnion) {
        self.requests.send(pb::WatchRequest { request_union: Some(request) }).await.expect("ask");
    }

    pub(super) async fn next(&mut self) -> pb::WatchResponse {
        self.responses.message().await.expect("a response").expect("no end")
    }

    pub(super) async fn create(&mut self, request: pb::WatchCreateRequest) -> pb::WatchResponse {
        self.ask(RequestUnion::CreateRequest(request)).await;
        let created = self.next().await;
        assert!(created.created);
        created
    }

    /// The next `count` events, as "put key value" or "delete key".
    pub(super) async fn events(&mut self, id: i64, count: usize) -> Vec<String> {
        let mut all = Vec::new();
        while all.len() < count {
            let response = self.next().await;
            assert_eq!(response.watch_id, id, "{response:?}");
            for event in response.events {
                let kv = event.kv.clone().expect("a pair");
                let (key, value) = (String::from_utf8_lossy(&kv.key).into_owned(), String::from_utf8_lossy(&kv.value).into_owned());
                all.push(if event.r#type() == EventType::Delete { format!("delete {key}") } else { format!("put {key} {value}") });
            }
        }
        all
    }
}

fn prefix_a() -> pb::WatchCreateRequest {
    pb::WatchCreateRequest { key: "a".into(), range_end: "b".into(), ..Default::default() }
}

#[test]
fn past_and_present() {
    with_server(|s| async move {
        s.put("a1", "1").await;
        s.put("b1", "no").await;
        let mut w = Watching::start(&s).await;
        let created = w.create(pb::WatchCreateRequest { start_revision: 1, prev_kv: true, ..prefix_a() }).await;
        assert_eq!((created.watch_id, created.header.expect("header").revision), (0, 3));
        assert_eq!(w.events(0, 1).await, ["put a1 1"]);
        s.put("a1", "2").await;
        let response = w.next().await;
        assert_eq!(response.header.expect("header").revision, 4);
        assert_eq!(response.events[0].prev_kv.as_ref().expect("previous").value.as_ref(), b"1");
        s.delete("a1").await;
        assert_eq!(w.events(0, 1).await, ["delete a1"]);

        w.ask(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 0 })).await;
        let canceled = w.next().await;
        assert!(canceled.canceled && canceled.watch_id == 0);
    });
}

#[test]
fn several_watches_and_filters() {
    with_server(|s| async move {
        let mut w = Watching::start(&s).await;
        let first = w.create(pb::WatchCreateRequest { watch_id: 7, filters: vec![0], ..prefix_a() }).await;
        assert_eq!(first.watch_id, 7);
        let twice = w.create(pb::WatchCreateRequest { watch_id: 7, ..prefix_a() }).await;
        assert!(twice.canceled && twice.watch_id == -1);
        assert_eq!(twice.cancel_reason, "mvcc: duplicate watch ID provided on the WatchStream");
        let void = w.create(pb::WatchCreateRequest { key: "b".into(), range_end: "a".into(), ..Default::default() }).await;
        assert!(void.canceled && void.cancel_reason == "mvcc: watcher range is empty");
        let second = w.create(pb::WatchCreateRequest { key: "c".into(), filters: vec![1], ..Default::default() }).await;
        assert_eq!(second.watch_id, 0);
        s.put("a", "1").await;
        s.put("c", "1").await;
        assert_eq!(w.events(0, 1).await, ["put c 1"]);
        s.delete("c").await;
        s.delete("a").await;
        assert_eq!(w.events(7, 1).await, ["delete a"]);
    });
}

#[test]
fn compacted_start_cancels() {
    with_server(|s| async move {
        for value in ["1", "2", "3"] {
            s.put("a", value).await;
        }
        s.kv().compact(pb::CompactionRequest { revision: 4, physical: false }).await.expect("compact");
        let mut w = Watching::start(&s).await;
        w.create(pb::WatchCreateRequest { start_revision: 2, ..prefix_a() }).await;
        let response = w.next().await;
        assert_eq!((response.canceled, response.compact_revision), (true, 4));
    });
}

#[test]
fn progress_on_request() {
    with_server(|s| async move {
        let mut w = Watching::start(&s).await;
        let ask = || RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
        w.ask(ask()).await;
        assert_eq!(w.next().await.watch_id, -1);
        w.create(prefix_a()).await;
        w.create(pb::WatchCreateRequest { key: "c".into(), ..Default::default() }).await;
        let revision = s.put("other", "1").await.header.expect("header").revision;
        w.ask(ask()).await;
        let progress = w.next().await;
        assert_eq!((progress.watch_id, progress.header.expect("header").revision, progress.events.len()), (-1, revision, 0));
    });
}

#[test]
fn fragments_add_up() {
    with_server(|s| async move {
        let put = |key: String| pb::RequestOp {
            request: Some(pb::request_op::Request::RequestPut(pb::PutRequest {
                key: key.into(),
                value: vec![7; 700_000].into(),
                ..Default::default()
            })),
        };
        s.kv().txn(pb::TxnRequest { success: vec![put("a1".into()), put("a2".into())], ..Default::default() }).await.expect("txn");
        // One revision of more than one message: with the previous values it is twice as large.
        s.kv().txn(pb::TxnRequest { success: vec![put("a1".into()), put("a2".into())], ..Default::default() }).await.expect("txn");
        let mut w = Watching::start(&s).await;
        w.create(pb::WatchCreateRequest { start_revision: 3, fragment: true, prev_kv: true, ..prefix_a() }).await;
        let (first, last) = (w.next().await, w.next().await);
        assert_eq!((first.fragment, first.events.len(), last.fragment, last.events.len()), (true, 1, false, 1));
    });
}

#[test]
fn shutdown_ends_streams() {
    with_server(|s| async move {
        let mut w = Watching::start(&s).await;
        w.create(prefix_a()).await;
        s.closing.notify_one();
        assert_refused(w.responses.message().await, Code::Unavailable, "etcdserver: server stopped");
    });
}

#[test]
fn idle_watches_hear_of_the_revision() {
    let often = |settings| Settings { watch_progress_interval: Duration::from_millis(200), ..settings };
    with_settings(often, |s| async move {
        let mut w = Watching::start(&s).await;
        let told = w.create(pb::WatchCreateRequest { progress_notify: true, ..prefix_a() }).await.watch_id;
        let untold = w.create(pb::WatchCreateRequest { progress_notify: false, ..prefix_a() }).await.watch_id;
        assert_ne!(told, untold);
        s.put("b", "not watched").await;
        // Again and again, and only whoever asked for it.
        let mut revision = 0;
        for _ in 0..3 {
            let progress = w.next().await;
            assert_eq!((progress.watch_id, progress.events.len()), (told, 0));
            revision = progress.header.expect("a header").revision;
        }
        assert_eq!(revision, 2);
        // Who gets events within the interval needs no progress: at most one was on its way.
        let (mut events, mut between) = (0, 0);
        for n in 0..20 {
            s.put("a1", "x").await;
            while events < 2 * (n + 1) {
                let answer = w.next().await;
                events += answer.events.len();
                between += usize::from(answer.events.is_empty());
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        assert!(between <= 1, "{between} times");
        assert_eq!(w.next().await.header.expect("a header").revision, 22);
    });
}
