use super::*;
use crate::etcd::client::{Client, Dial};
use crate::etcd::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use brickraft_engine::kv::BackupReader;
use pb::alarm_request::AlarmAction;
use pb::downgrade_request::DowngradeAction;
use std::io::Cursor;

fn alarm(action: AlarmAction, member_id: u64, alarm: pb::AlarmType) -> pb::AlarmRequest {
    pb::AlarmRequest { action: action.into(), member_id, alarm: alarm.into() }
}

#[test]
fn alarms_refuse_what_etcd_refuses() {
    with_server(|s| async move {
        let mut m = MaintenanceClient::new(s.channel.clone());
        let mut lease = s.lease();
        let held = s.grant(60).await;
        let put = |key: &'static str| pb::PutRequest { key: key.into(), ..Default::default() };
        let op = |r| pb::RequestOp { request: Some(r) };
        let txn = |success| pb::TxnRequest { success, ..Default::default() };
        let full = "etcdserver: mvcc: database space exceeded";

        let raised = m.alarm(alarm(AlarmAction::Activate, 7, pb::AlarmType::Nospace)).await.expect("raise").into_inner();
        assert_eq!(raised.alarms, [pb::AlarmMember { member_id: 7, alarm: 1 }]);
        assert_refused(s.kv().put(put("a")).await, Code::ResourceExhausted, full);
        assert_refused(lease.lease_grant(pb::LeaseGrantRequest { ttl: 9, id: 0 }).await, Code::ResourceExhausted, full);
        let nested = txn(vec![op(pb::request_op::Request::RequestTxn(txn(vec![op(pb::request_op::Request::RequestPut(put("b")))])))]);
        assert_refused(s.kv().txn(nested).await, Code::ResourceExhausted, full);
        s.kv().txn(txn(Vec::new())).await.expect("a transaction that puts nothing");
        s.delete("a").await;
        let status = m.status(pb::StatusRequest {}).await.expect("status").into_inner();
        assert_eq!((status.errors, status.db_size_quota), (vec!["memberID:7 alarm:NOSPACE ".to_owned()], 8 << 20));

        m.alarm(alarm(AlarmAction::Activate, 8, pb::AlarmType::Corrupt)).await.expect("raise");
        let listed = m.alarm(alarm(AlarmAction::Get, 0, pb::AlarmType::None)).await.expect("list").into_inner().alarms;
        assert_eq!(listed.len(), 2);
        let listed = m.alarm(alarm(AlarmAction::Get, 0, pb::AlarmType::Corrupt)).await.expect("list").into_inner().alarms;
        assert_eq!(listed, [pb::AlarmMember { member_id: 8, alarm: 2 }]);
        let delete = pb::DeleteRangeRequest { key: "a".into(), ..Default::default() };
        assert_refused(s.kv().delete_range(delete).await, Code::DataLoss, "etcdserver: corrupt cluster");
        assert_refused(lease.lease_revoke(pb::LeaseRevokeRequest { id: held }).await, Code::DataLoss, "etcdserver: corrupt cluster");
        assert_eq!(s.count("a").await, 0, "reads go on");

        for (member, kind) in [(7, pb::AlarmType::Nospace), (8, pb::AlarmType::Corrupt)] {
            m.alarm(alarm(AlarmAction::Deactivate, member, kind)).await.expect("disarm");
        }
        let again = m.alarm(alarm(AlarmAction::Deactivate, 7, pb::AlarmType::Nospace)).await.expect("disarm").into_inner();
        assert!(again.alarms.is_empty(), "nothing was active");
        s.put("a", "1").await;
        lease.lease_revoke(pb::LeaseRevokeRequest { id: held }).await.expect("revoke");
    });
}

#[test]
fn the_quota_raises_an_alarm() {
    with_server(|s| async move {
        let value = bytes::Bytes::from(vec![b'x'; 1 << 20]);
        let put = |n: u8| pb::PutRequest { key: vec![b'k', n].into(), value: value.clone(), ..Default::default() };
        let mut n = 0;
        let refused = loop {
            match s.kv().put(put(n)).await {
                Ok(_) => n += 1,
                Err(e) => break e,
            }
            assert!(n < 9, "the quota of 8 MiB was never reached");
        };
        assert_eq!((n >= 6, refused.code()), (true, Code::ResourceExhausted), "{n} {refused}");
        assert_eq!(s.handle.store().alarms().len(), 1);
        assert_refused(
            s.kv().put(pb::PutRequest { key: "small".into(), ..Default::default() }).await,
            Code::ResourceExhausted,
            refused.message(),
        );
    });
}

#[test]
fn a_snapshot_arrives_whole() {
    with_server(|s| async move {
        for key in ["a", "b", "c"] {
            s.put(key, "1").await;
        }
        let client = Client::connect(&s.address, &Dial::default()).await.expect("connect");
        let mut file = Vec::new();
        let bytes = client
            .snapshot(&mut |portion| {
                file.extend_from_slice(portion);
                Ok(())
            })
            .await
            .expect("snapshot");
        assert_eq!((bytes, bytes % 512), (file.len() as u64, 32));
        let summary = BackupReader::open(Cursor::new(&file), false).expect("a backup").summary().expect("whole");
        assert_eq!((summary.keys, summary.cluster_id), (3, s.handle.last_status().cluster_id));
        let mut m = MaintenanceClient::new(s.channel.clone());
        let first =
            m.snapshot(pb::SnapshotRequest {}).await.expect("snapshot").into_inner().message().await.expect("a portion").expect("one");
        assert_eq!((first.blob.len() as u64 + first.remaining_bytes, first.version.as_str()), (bytes, crate::etcd::ETCD_VERSION));
    });
}

#[test]
fn hashes_and_downgrades() {
    with_server(|s| async move {
        let mut m = MaintenanceClient::new(s.channel.clone());
        s.put("a", "1").await;
        let before = m.hash(pb::HashRequest {}).await.expect("hash").into_inner().hash;
        assert_eq!(m.hash(pb::HashRequest {}).await.expect("hash").into_inner().hash, before);
        s.put("a", "2").await;
        assert_ne!(m.hash(pb::HashRequest {}).await.expect("hash").into_inner().hash, before);
        let request = pb::CompactionRequest { revision: 3, physical: true };
        s.kv().compact(request).await.expect("compact");
        assert_eq!(s.handle.store().collected_revision(brickraft_engine::kv::types::Keyspace::User).0, 3);
        let kv = m.hash_kv(pb::HashKvRequest { revision: 0 }).await.expect("hash").into_inner();
        assert_eq!((kv.compact_revision, kv.hash_revision), (3, 3));
        assert_refused(
            m.hash_kv(pb::HashKvRequest { revision: 9 }).await,
            Code::OutOfRange,
            "etcdserver: mvcc: required revision is a future revision",
        );

        let ask = |action: DowngradeAction, version: &str| pb::DowngradeRequest { action: action.into(), version: version.into() };
        let valid = m.downgrade(ask(DowngradeAction::Validate, "3.4.0")).await.expect("valid").into_inner();
        assert_eq!(valid.version, "3.5.0");
        for (action, version, code, text) in [
            (DowngradeAction::Validate, "x", Code::InvalidArgument, "etcdserver: wrong downgrade target version format"),
            (DowngradeAction::Validate, "3.3.0", Code::InvalidArgument, "etcdserver: invalid downgrade target version"),
            (
                DowngradeAction::Enable,
                "3.4.0",
                Code::FailedPrecondition,
                "brickraft: there is no older version of this server to go back to",
            ),
            (DowngradeAction::Cancel, "", Code::FailedPrecondition, "etcdserver: no inflight downgrade job"),
        ] {
            assert_refused(m.downgrade(ask(action, version)).await, code, text);
        }
    });
}
