//! Messages as JSON, as protocol buffers map them: bytes in base64, 64-bit integers as strings, enumerations by name;
//! names as in the .proto files, and nothing for what has its default value, as etcd's gateway has it.

use super::super::unary::PREFIX_LEN;
use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost_reflect::{DeserializeOptions, DynamicMessage, Kind, MessageDescriptor, SerializeOptions};
use serde_json::Value;

const WRITE: SerializeOptions = SerializeOptions::new().use_proto_field_name(true);
// etcd's gateway passes over names that it does not know.
const READ: DeserializeOptions = DeserializeOptions::new().deny_unknown_fields(false);

/// Refuses names that an enumeration does not have: they would be passed over as well, and the request ask for something else.
fn check_names(kind: &MessageDescriptor, value: &Value) -> Result<(), String> {
    let Value::Object(fields) = value else { return Ok(()) };
    for (name, value) in fields {
        let Some(field) = kind.get_field_by_json_name(name).or_else(|| kind.get_field_by_name(name)) else { continue };
        let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        match field.kind() {
            Kind::Enum(names) => {
                if let Some(unknown) = values.iter().filter_map(Value::as_str).find(|name| names.get_value_by_name(name).is_none()) {
                    let package = names.package_name();
                    let go_name = names.full_name().trim_start_matches(package).trim_start_matches('.').replace('.', "_");
                    return Err(format!("unknown value {unknown:?} for enum {package}.{go_name}"));
                }
            }
            Kind::Message(kind) => values.iter().try_for_each(|value| check_names(&kind, value))?,
            _ => {}
        }
    }
    Ok(())
}

/// Reads a message of a kind from JSON, and frames it for gRPC.
pub(super) fn to_frame(kind: &MessageDescriptor, value: Value) -> Result<Bytes, String> {
    check_names(kind, &value)?;
    let message = DynamicMessage::deserialize_with_options(kind.clone(), value, &READ).map_err(|e| e.to_string())?;
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(PREFIX_LEN + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).map_err(|_| "the message is too long".to_owned())?);
    message.encode(&mut frame).map_err(|e| e.to_string())?;
    Ok(frame.freeze())
}

/// A message's JSON.
pub(super) fn from_message(kind: &MessageDescriptor, message: Bytes) -> Result<Value, String> {
    let message = DynamicMessage::decode(kind.clone(), message).map_err(|e| e.to_string())?;
    message.serialize_with_options(serde_json::value::Serializer, &WRITE).map_err(|e| e.to_string())
}

/// What of a stream of JSON values has arrived.
pub(super) enum Next {
    /// A value.
    Value(Value),
    /// Not all of it.
    More,
    /// Something else.
    Malformed(String),
}

/// Takes the next JSON value off `buffer`.
pub(super) fn take_value(buffer: &mut BytesMut) -> Next {
    let mut values = serde_json::Deserializer::from_slice(buffer).into_iter::<Value>();
    match values.next() {
        // A number may go on in the next bytes; nothing that we are sent is one.
        Some(Ok(value)) => {
            let taken = values.byte_offset();
            let _ = buffer.split_to(taken);
            Next::Value(value)
        }
        Some(Err(e)) if e.is_eof() => Next::More,
        None => Next::More,
        Some(Err(e)) => Next::Malformed(e.to_string()),
    }
}

/// Takes the next gRPC message off `buffer`.
pub(super) fn take_message(buffer: &mut BytesMut) -> Option<Bytes> {
    let prefix: [u8; PREFIX_LEN] = buffer.get(..PREFIX_LEN)?.try_into().ok()?;
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    if buffer.len() < PREFIX_LEN + length {
        return None;
    }
    let mut frame = buffer.split_to(PREFIX_LEN + length);
    Some(frame.split_off(PREFIX_LEN).freeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::pb;
    use serde_json::json;

    fn kind(name: &str) -> MessageDescriptor {
        pb::descriptors().get_message_by_name(name).expect(name)
    }

    fn there(name: &str, value: Value) -> Bytes {
        to_frame(&kind(name), value).expect(name).slice(PREFIX_LEN..)
    }

    #[test]
    fn names_bytes_numbers_and_enumerations() {
        let range = json!({ "key": "Zm9v", "range_end": "AA==", "limit": "7", "revision": 3, "sort_order": "DESCEND", "sort_target": 2, "unheard_of": 1 });
        let range = pb::etcdserverpb::RangeRequest::decode(there("etcdserverpb.RangeRequest", range)).expect("a message");
        assert_eq!((range.key.as_ref(), range.range_end.as_ref(), range.limit, range.revision), (&b"foo"[..], &b"\0"[..], 7, 3));
        assert_eq!((range.sort_order, range.sort_target), (2, 2));
        let camel = there("etcdserverpb.RangeRequest", json!({ "key": "_-8=", "rangeEnd": "+/8=" }));
        let camel = pb::etcdserverpb::RangeRequest::decode(camel).expect("a message");
        assert_eq!((camel.key.as_ref(), camel.range_end.as_ref()), (&[0xff, 0xef][..], &[0xfb, 0xff][..]));
        assert!(to_frame(&kind("etcdserverpb.RangeRequest"), json!({ "key": 7 })).is_err());
        let refused = |name, value| to_frame(&kind(name), value).expect_err("an unknown name");
        let compare = json!({ "compare": [{ "target": "VALUE" }, { "target": "VALU" }] });
        assert_eq!(refused("etcdserverpb.TxnRequest", compare), "unknown value \"VALU\" for enum etcdserverpb.Compare_CompareTarget");
        let alarm = json!({ "action": "DEACTIVAT" });
        assert_eq!(
            refused("etcdserverpb.AlarmRequest", alarm),
            "unknown value \"DEACTIVAT\" for enum etcdserverpb.AlarmRequest_AlarmAction"
        );
        let filter = json!({ "create_request": { "filters": ["NOPUT", "NO"] } });
        assert!(refused("etcdserverpb.WatchRequest", filter).contains("\"NO\""));

        let response = pb::etcdserverpb::LeaseGrantResponse { id: i64::MAX, ttl: 5, ..Default::default() };
        let shown = from_message(&kind("etcdserverpb.LeaseGrantResponse"), response.encode_to_vec().into()).expect("JSON");
        assert_eq!(shown, json!({ "ID": "9223372036854775807", "TTL": "5" }));
        let watch = pb::etcdserverpb::WatchResponse {
            header: Some(pb::etcdserverpb::ResponseHeader { revision: 2, ..Default::default() }),
            events: vec![pb::mvccpb::Event {
                r#type: 1,
                kv: Some(pb::mvccpb::KeyValue { key: "k".into(), mod_revision: 2, ..Default::default() }),
                prev_kv: None,
            }],
            ..Default::default()
        };
        let shown = from_message(&kind("etcdserverpb.WatchResponse"), watch.encode_to_vec().into()).expect("JSON");
        assert_eq!(
            shown,
            json!({ "header": { "revision": "2" }, "events": [{ "type": "DELETE", "kv": { "key": "aw==", "mod_revision": "2" } }] })
        );
    }

    #[test]
    fn values_are_taken_off_a_stream() {
        let mut buffer = BytesMut::from(&b"{\"a\":1} {\"b\""[..]);
        assert!(matches!(take_value(&mut buffer), Next::Value(v) if v == json!({ "a": 1 })));
        assert!(matches!(take_value(&mut buffer), Next::More));
        buffer.extend_from_slice(b":2}\n");
        assert!(matches!(take_value(&mut buffer), Next::Value(v) if v == json!({ "b": 2 })));
        assert!(matches!(take_value(&mut buffer), Next::More));
        buffer.extend_from_slice(b"}");
        assert!(matches!(take_value(&mut buffer), Next::Malformed(_)));
        let mut frames = BytesMut::from(&[0, 0, 0, 0, 2, b'h', b'i', 0, 0, 0, 0, 1][..]);
        assert_eq!(take_message(&mut frames).as_deref(), Some(&b"hi"[..]));
        assert_eq!(take_message(&mut frames), None);
    }
}
