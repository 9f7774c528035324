//! What a KV call looks like on the wire: pieces, nonsense, and time-outs.

use super::*;
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::SendRequest;
use prost::Message as _;
use tokio::net::TcpStream;

async fn connect(s: &Server) -> SendRequest<Bytes> {
    let socket = TcpStream::connect(s.address.trim_start_matches("http://")).await.expect("connect");
    let (send, connection) = h2::client::handshake(socket).await.expect("shake hands");
    tokio::task::spawn_local(connection);
    send
}

fn framed(flag: u8, message: &impl prost::Message) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(flag);
    bytes.put_u32(message.encoded_len() as u32);
    message.encode(&mut bytes).expect("room");
    bytes.freeze()
}

/// Sends the pieces one by one; returns the status, its text, and the message if there was one.
async fn call(
    send: &SendRequest<Bytes>,
    method: &str,
    timeout: Option<&str>,
    pieces: &[Bytes],
    end: bool,
) -> (Code, String, Option<Bytes>) {
    let mut request = ::http::Request::post(format!("http://x/etcdserverpb.KV/{method}")).header("content-type", "application/grpc");
    if let Some(timeout) = timeout {
        request = request.header("grpc-timeout", timeout);
    }
    let mut send = send.clone().ready().await.expect("ready");
    let (response, mut body) = send.send_request(request.body(()).expect("a request"), end && pieces.is_empty()).expect("send");
    for (i, piece) in pieces.iter().enumerate() {
        // So that each is read by itself.
        tokio::time::sleep(Duration::from_millis(5)).await;
        body.send_data(piece.clone(), end && i + 1 == pieces.len()).expect("send a piece");
    }
    let (head, mut answer) = response.await.expect("a response").into_parts();
    assert_eq!(
        (head.status, &head.headers["content-type"]),
        (::http::StatusCode::OK, &::http::HeaderValue::from_static("application/grpc"))
    );
    let mut message = BytesMut::new();
    while let Some(data) = answer.data().await {
        message.extend_from_slice(&data.expect("data"));
    }
    let trailers = answer.trailers().await.expect("an end");
    assert_eq!(trailers.is_some(), !message.is_empty(), "a refusal is all header");
    let status = Status::from_header_map(trailers.as_ref().unwrap_or(&head.headers)).expect("a status");
    (status.code(), status.message().to_owned(), (!message.is_empty()).then(|| message.freeze()))
}

#[test]
fn a_message_may_come_in_pieces() {
    with_server(|s| async move {
        let send = connect(&s).await;
        let put = pb::PutRequest { key: "k".into(), value: vec![7; 1000].into(), ..Default::default() };
        let whole = framed(0, &put);
        for cuts in [&[][..], &[1], &[5], &[4, 5], &[3, 9, 500], &[whole.len() - 1]] {
            let mut pieces = Vec::new();
            let mut rest = whole.clone();
            for at in cuts.iter().rev() {
                pieces.insert(0, rest.split_off(*at));
            }
            pieces.insert(0, rest);
            let (code, text, message) = call(&send, "Put", None, &pieces, true).await;
            assert_eq!((code, text.as_str()), (Code::Ok, ""), "cut at {cuts:?}");
            let answer = pb::PutResponse::decode(&message.expect("an answer")[5..]).expect("a message");
            assert!(answer.header.is_some_and(|h| h.revision > 1));
        }
        let range = pb::RangeRequest { key: "k".into(), ..Default::default() };
        let found = s.kv().range(range).await.expect("range").into_inner();
        assert_eq!(found.kvs[0].value, vec![7; 1000]);
    });
}

#[test]
fn nonsense_is_refused() {
    with_server(|s| async move {
        let send = connect(&s).await;
        let put = pb::PutRequest { key: "k".into(), ..Default::default() };
        let cases: [(&[Bytes], Code, &str); 6] = [
            (&[], Code::Internal, "Missing request message."),
            (&[Bytes::from_static(&[0, 0, 0])], Code::Internal, "Unexpected EOF decoding stream."),
            (&[framed(0, &put).slice(..6)], Code::Internal, "Unexpected EOF decoding stream."),
            (&[framed(1, &put)], Code::Internal, "protocol error: received message with compressed-flag"),
            (&[framed(9, &put)], Code::Internal, "protocol error: received message with invalid compression flag: 9"),
            (&[Bytes::from_static(&[0, 255, 0, 0, 0])], Code::ResourceExhausted, "grpc: received message larger than max"),
        ];
        for (pieces, code, text) in cases {
            let (got, said, message) = call(&send, "Put", None, pieces, true).await;
            assert!(got == code && said.starts_with(text) && message.is_none(), "{got:?} {said}");
        }
        let not_a_message = Bytes::from_static(&[0, 0, 0, 0, 2, 0xff, 0xff]);
        assert_eq!(call(&send, "Put", None, &[not_a_message], true).await.0, Code::Internal);
        // What the store refuses comes through as well, and the connection goes on.
        let empty = pb::PutRequest::default();
        let (code, text, _) = call(&send, "Put", None, &[framed(0, &empty)], true).await;
        assert_eq!((code, text.as_str()), (Code::InvalidArgument, "etcdserver: key is not provided"));
    });
}

#[test]
fn whoever_does_not_wait_is_told_so() {
    with_server(|s| async move {
        let send = connect(&s).await;
        // The rest never comes.
        let begun = [Bytes::from_static(&[0, 0, 0])];
        let (code, text, _) = call(&send, "Range", Some("20m"), &begun, false).await;
        assert_eq!((code, text.as_str()), (Code::Cancelled, "Timeout expired"));
        // In time.
        let range = pb::RangeRequest { key: "k".into(), ..Default::default() };
        assert_eq!(call(&send, "Range", Some("20S"), &[framed(0, &range)], true).await.0, Code::Ok);
    });
}
