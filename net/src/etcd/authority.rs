//! Lets etcd 3.4's clients in.
//!
//! For requests to one given endpoint (status, defragmentation, hashes ...) they send the endpoint's URL as HTTP/2
//! `:authority`, as in `http://127.0.0.1:2379`. That is no authority, and our HTTP/2 library, rightly, refuses such a
//! connection's requests; etcd's own does not look. So the first header block of a connection is looked at, and where
//! it has that defect, `://` becomes `B--`, in place: these characters have Huffman codes of the same lengths, so
//! neither frame nor header table changes its size. Nobody reads the authority. Connections without the defect are
//! handed through untouched after their first header block.

use super::Api;
use super::metrics::Metrics;
use super::peer_name::ClientCertName;
use crate::stream::Stream;
use crate::tls;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER_BYTES: usize = 9;
const HEADERS: u8 = 1;
const FLAG_PADDED: u8 = 0x8;
const FLAG_PRIORITY: u8 = 0x20;
/// HTTP/2's default largest frame; a larger header block is let through as it is.
const HEADERS_BYTES_MAX: usize = 16 * 1024;
/// `:authority`'s place in HPACK's static table.
const AUTHORITY_INDEX: usize = 1;

/// A client's connection.
pub(super) struct ClientStream {
    stream: Stream,
    /// Whom its certificate names; nobody, where it is empty.
    name: ClientCertName,
    /// Where its bytes are counted.
    metrics: Arc<Metrics>,
    /// `None` once there is nothing more to look for.
    filter: Option<Filter>,
    /// What was read and is not handed on yet: ready up to `ready`, the rest an incomplete header block.
    held: Vec<u8>,
    ready: usize,
}

/// Where in the stream of frames the next byte lies.
enum Filter {
    Preface,
    /// At a frame's header.
    Frame,
    /// Inside a frame that is of no interest, with so many bytes to go.
    Inside(usize),
}

/// What to do with a portion of bytes.
struct Verdict {
    /// So many may go on.
    pass: usize,
    /// No need to look at anything further.
    done: bool,
}

impl Filter {
    /// Looks at bytes that follow those passed before, and mends header blocks that are complete.
    fn inspect(&mut self, bytes: &mut [u8]) -> Verdict {
        let mut pass = 0;
        loop {
            let Some(rest) = bytes.get_mut(pass..).filter(|rest| !rest.is_empty()) else { return Verdict { pass, done: false } };
            match self {
                Self::Preface => {
                    let known = rest.len().min(PREFACE.len());
                    if rest[..known] != PREFACE[..known] {
                        return Verdict { pass: bytes.len(), done: true };
                    }
                    if known < PREFACE.len() {
                        return Verdict { pass, done: false };
                    }
                    pass += known;
                    *self = Self::Frame;
                }
                Self::Inside(left) => {
                    let step = rest.len().min(*left);
                    pass += step;
                    *left -= step;
                    if *left == 0 {
                        *self = Self::Frame;
                    }
                }
                Self::Frame => {
                    let Some(header) = rest.first_chunk::<FRAME_HEADER_BYTES>() else { return Verdict { pass, done: false } };
                    let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
                    let (kind, flags) = (header[3], header[4]);
                    let whole = FRAME_HEADER_BYTES + length;
                    if kind != HEADERS || length > HEADERS_BYTES_MAX {
                        *self = Self::Inside(whole);
                        continue;
                    }
                    let Some(payload) = rest.get_mut(FRAME_HEADER_BYTES..whole) else { return Verdict { pass, done: false } };
                    if !mend_block(payload, flags) {
                        return Verdict { pass: bytes.len(), done: true };
                    }
                    pass += whole;
                }
            }
        }
    }
}

/// Mends the authority in a header block; false when it needed nothing.
fn mend_block(payload: &mut [u8], flags: u8) -> bool {
    let start = usize::from(flags & FLAG_PADDED != 0) + if flags & FLAG_PRIORITY != 0 { 5 } else { 0 };
    let Some(block) = payload.get_mut(start..) else { return false };
    let mut at = 0;
    while let Some((index, value)) = next_field(block, &mut at) {
        if index != AUTHORITY_INDEX {
            continue;
        }
        let Some(Text { huffman, range }) = value else { return false };
        let Some(text) = block.get_mut(range) else { return false };
        return if huffman { mend_huffman(text) } else { mend_plain(text) };
    }
    false
}

/// A string literal of HPACK.
struct Text {
    huffman: bool,
    range: std::ops::Range<usize>,
}

/// RFC 7541, 5.1: an integer whose first byte has `bits` bits of it.
fn integer(block: &[u8], at: &mut usize, bits: u32) -> Option<usize> {
    let mask = (1_usize << bits) - 1;
    let mut value = usize::from(*block.get(*at)?) & mask;
    *at += 1;
    if value < mask {
        return Some(value);
    }
    // No header block that we hold has a length of more than three such bytes.
    for shift in [0, 7, 14] {
        let byte = *block.get(*at)?;
        *at += 1;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn text(block: &[u8], at: &mut usize) -> Option<Text> {
    let huffman = block.get(*at)? & 0x80 != 0;
    let length = integer(block, at, 7)?;
    let range = *at..at.checked_add(length).filter(|end| *end <= block.len())?;
    *at = range.end;
    Some(Text { huffman, range })
}

/// RFC 7541, 6: steps over one field; its name's index (0: spelled out) and its value, where it is spelled out.
fn next_field(block: &[u8], at: &mut usize) -> Option<(usize, Option<Text>)> {
    let first = *block.get(*at)?;
    if first & 0x80 != 0 {
        return Some((integer(block, at, 7)?, None));
    }
    if first & 0xe0 == 0x20 {
        // A change of the table's size is no field.
        integer(block, at, 5)?;
        return Some((0, None));
    }
    let index = integer(block, at, if first & 0x40 != 0 { 6 } else { 4 })?;
    if index == 0 {
        text(block, at)?;
    }
    Some((index, Some(text(block, at)?)))
}

fn mend_plain(text: &mut [u8]) -> bool {
    let Some(at) = text.windows(3).position(|w| w == b"://") else { return false };
    text[at] = b'B';
    text[at..].iter_mut().filter(|b| **b == b'/').for_each(|b| *b = b'-');
    true
}

/// Codes of RFC 7541, appendix B. URLs have no character with a code of more than 8 bits; the codes of one length are
/// consecutive, and these are the first of each length.
const FIRST_CODES: [(usize, u16); 4] = [(5, 0x0), (6, 0x14), (7, 0x5c), (8, 0xf8)];
const SLASH: (usize, u16) = (6, 0x18);
const DASH: u16 = 0x16;
const COLON: (usize, u16) = (7, 0x5c);
const LETTER_B: u16 = 0x5d;

fn bits(text: &[u8], at: usize, count: usize) -> Option<u16> {
    let bit = |i: usize| text.get(i / 8).map(|byte| u16::from(byte >> (7 - i % 8)) & 1);
    (at..at + count).try_fold(0, |code, i| Some(code << 1 | bit(i)?))
}

fn set_bits(text: &mut [u8], at: usize, count: usize, code: u16) {
    for i in 0..count {
        let (byte, mask) = ((at + i) / 8, 0x80 >> ((at + i) % 8));
        if code >> (count - 1 - i) & 1 == 1 { text[byte] |= mask } else { text[byte] &= !mask }
    }
}

/// The code at a bit: its length and itself; `None` at the end, or at a character that no URL has.
fn code_at(text: &[u8], at: usize) -> Option<(usize, u16)> {
    for (i, (length, first)) in FIRST_CODES.into_iter().enumerate() {
        let code = bits(text, at, length)?;
        // A longer code starts with more than the last of this length.
        let end = FIRST_CODES.get(i + 1).map_or(0xfe, |(_, next)| next >> 1);
        if (first..end).contains(&code) {
            return Some((length, code));
        }
    }
    None
}

fn mend_huffman(text: &mut [u8]) -> bool {
    let (mut at, mut mended) = (0, false);
    while let Some(code) = code_at(text, at) {
        if code == COLON && code_at(text, at + COLON.0) == Some(SLASH) {
            set_bits(text, at, COLON.0, LETTER_B);
            mended = true;
        } else if code == SLASH && mended {
            set_bits(text, at, SLASH.0, DASH);
        }
        at += code.0;
    }
    mended
}

impl ClientStream {
    pub(super) fn new(stream: Stream, api: &Api) -> Self {
        let settings = api.settings();
        let certificate = stream.peer_certificate().filter(|_| settings.client_cert_auth);
        let name = ClientCertName(certificate.and_then(tls::common_name).unwrap_or_default());
        Self { stream, name, metrics: settings.metrics.clone(), filter: Some(Filter::Preface), held: Vec::new(), ready: 0 }
    }

    /// Whom the client's certificate names.
    pub(super) fn name(&self) -> ClientCertName {
        self.name.clone()
    }

    /// Hands on what is ready; false when nothing is.
    fn take_ready(&mut self, out: &mut ReadBuf<'_>) -> bool {
        let step = self.ready.min(out.remaining());
        out.put_slice(&self.held[..step]);
        self.held.drain(..step);
        self.ready -= step;
        step > 0
    }

    fn look(&mut self) {
        let Some(filter) = &mut self.filter else { return };
        let verdict = filter.inspect(&mut self.held[self.ready..]);
        self.ready += verdict.pass;
        if verdict.done {
            self.filter = None;
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if out.remaining() == 0 || this.take_ready(out) {
                return Poll::Ready(Ok(()));
            }
            if this.filter.is_none() && this.held.is_empty() {
                let before = out.filled().len();
                ready!(Pin::new(&mut this.stream).poll_read(cx, out))?;
                this.metrics.received_bytes.fetch_add((out.filled().len() - before) as u64, Ordering::Relaxed);
                return Poll::Ready(Ok(()));
            }
            let mut chunk = [0; 4096];
            let mut buffer = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                // The end: what was held back is no complete block, and goes on as it is.
                this.filter = None;
                this.ready = this.held.len();
                this.take_ready(out);
                return Poll::Ready(Ok(()));
            }
            this.metrics.received_bytes.fetch_add(buffer.filled().len() as u64, Ordering::Relaxed);
            this.held.extend_from_slice(buffer.filled());
            this.look();
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let sent = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.metrics.sent_bytes.fetch_add(sent as u64, Ordering::Relaxed);
        Poll::Ready(Ok(sent))
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let sent = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, slices))?;
        self.metrics.sent_bytes.fetch_add(sent as u64, Ordering::Relaxed);
        Poll::Ready(Ok(sent))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "http://" in HPACK's Huffman code, then 1-bits as padding.
    const HTTP_HUFFMAN: [u8; 6] = [0x9d, 0x29, 0xae, 0xe3, 0x0c, 0x7f];
    /// "httpB--".
    const MENDED: [u8; 6] = [0x9d, 0x29, 0xae, 0xea, 0xcb, 0x7f];

    /// A connection's start: preface, an empty SETTINGS frame, and a HEADERS frame with the given authority.
    fn connection(authority: &[u8], huffman: bool) -> Vec<u8> {
        let length = u8::try_from(authority.len()).expect("short") | if huffman { 0x80 } else { 0 };
        let block = [&[0x83, 0x86, 0x44, 2, b'/', b'x', 0x41, length][..], authority, &[0x5f, 1, b't']].concat();
        let mut bytes = PREFACE.to_vec();
        bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
        bytes.extend([0, 0, u8::try_from(block.len()).expect("short"), HEADERS, 4, 0, 0, 0, 1]);
        bytes.extend(block);
        bytes
    }

    /// Passes the bytes in pieces of `step`, as the reader does.
    fn filtered(bytes: &[u8], step: usize) -> (Vec<u8>, bool) {
        let (mut filter, mut held, mut out, mut done) = (Filter::Preface, Vec::new(), Vec::new(), false);
        for piece in bytes.chunks(step) {
            held.extend_from_slice(piece);
            if !done {
                let verdict = filter.inspect(&mut held);
                done = verdict.done;
                out.extend(held.drain(..verdict.pass));
            } else {
                out.append(&mut held);
            }
        }
        out.append(&mut held);
        (out, done)
    }

    #[test]
    fn urls_are_mended_in_place() {
        for (bad, good, huffman) in [(&HTTP_HUFFMAN[..], &MENDED[..], true), (b"http://127.0.0.1:2379", b"httpB--127.0.0.1:2379", false)] {
            for step in [1, 7, 1000] {
                assert_eq!(filtered(&connection(bad, huffman), step), (connection(good, huffman), false), "{step}");
            }
        }
    }

    #[test]
    fn everything_else_is_let_through() {
        for authority in [&b"127.0.0.1:2379"[..], b"localhost", b""] {
            let bytes = connection(authority, false);
            assert_eq!(filtered(&bytes, 5), (bytes, true));
        }
        let plain = b"GET /version HTTP/1.1\r\n\r\n".to_vec();
        assert_eq!(filtered(&plain, 3), (plain, true));
        // Blocks that are cut short or nonsense are the HTTP/2 library's to refuse.
        for end in PREFACE.len()..connection(b"http://x", false).len() {
            let bytes = connection(b"http://x", false)[..end].to_vec();
            assert_eq!(filtered(&bytes, 4).0, bytes);
        }
        let mut wrong = connection(b"x", false);
        wrong.iter_mut().skip(PREFACE.len() + 18).for_each(|b| *b = 0xff);
        assert_eq!(filtered(&wrong, 1000), (wrong, true));
    }
}
