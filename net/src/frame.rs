//! The one framing of all our TCP protocols (FORMAT.md, "frames").
//!
//! A connection begins with a [`Preface`] by the side that opened it; then both sides send frames: a fixed
//! header, a head (the message) and a payload (file content), which travels without a copy in user space.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::io::{self, IoSlice};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The first bytes of every connection; the last digit is the protocol's version.
pub const MAGIC: [u8; 7] = *b"BRKRFT1";
/// Header bytes: head length, payload length, id, CRC32 of these and the head.
pub const HEADER_BYTES: usize = 20;
/// The longest head, in bytes: a Raft append or a listing fits.
pub const HEAD_BYTES_MAX: usize = 16 << 20;
/// The longest payload, in bytes.
pub const FRAME_PAYLOAD_BYTES_MAX: usize = 4 << 20;

/// What a connection is for; follows [`MAGIC`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Preface {
    /// Raft messages from one member to another.
    Member = 1,
    /// File operations of a client.
    Client = 2,
    /// Messages from one brick to another of its group.
    Brick = 3,
    /// Management: JSON questions and answers.
    Management = 4,
    /// A question to a member: who belongs to the cluster?
    Members = 5,
}

impl Preface {
    /// The eight bytes on the wire.
    #[must_use]
    pub fn bytes(self) -> [u8; 8] {
        let mut b = [0; 8];
        b[..7].copy_from_slice(&MAGIC);
        b[7] = self as u8;
        b
    }

    /// Reads them back.
    ///
    /// # Errors
    /// `InvalidData` when the other side speaks something else.
    pub fn parse(b: [u8; 8]) -> io::Result<Self> {
        match (b[..7] == MAGIC, b[7]) {
            (true, 1) => Ok(Self::Member),
            (true, 2) => Ok(Self::Client),
            (true, 3) => Ok(Self::Brick),
            (true, 4) => Ok(Self::Management),
            (true, 5) => Ok(Self::Members),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the other side does not speak brickraft's protocol")),
        }
    }
}

/// One message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// A request's number, echoed by its answer; 0 where there are no answers.
    pub id: u64,
    /// The message.
    pub head: Bytes,
    /// File content.
    pub payload: Bytes,
}

/// Header and head of a frame, ready to be sent in front of `payload_len` bytes.
///
/// # Panics
/// When a bound is exceeded, which is the caller's mistake.
#[must_use]
pub fn encode(id: u64, head: &[u8], payload_len: usize) -> Bytes {
    let mut out = Vec::with_capacity(HEADER_BYTES + head.len());
    out.resize(HEADER_BYTES, 0);
    out.extend_from_slice(head);
    seal(id, out, payload_len)
}

/// The same without a copy: the head stands behind room for the header.
///
/// # Panics
/// When there is no such room, or a bound is exceeded.
#[must_use]
pub fn seal(id: u64, mut room_and_head: Vec<u8>, payload_len: usize) -> Bytes {
    let (header, head) = room_and_head.split_at_mut(HEADER_BYTES);
    assert!(head.len() <= HEAD_BYTES_MAX && payload_len <= FRAME_PAYLOAD_BYTES_MAX, "frame of {} + {payload_len} bytes", head.len());
    let (fields, sum) = header.split_at_mut(16);
    let mut rest = &mut *fields;
    rest.put_u32_le(head.len() as u32);
    rest.put_u32_le(payload_len as u32);
    rest.put_u64_le(id);
    let mut crc = crc32fast::Hasher::new();
    crc.update(fields);
    crc.update(head);
    sum.copy_from_slice(&crc.finalize().to_le_bytes());
    room_and_head.into()
}

/// A parsed header.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Bytes of the head.
    pub head_len: usize,
    /// Bytes of the payload.
    pub payload_len: usize,
    /// The request's number.
    pub id: u64,
    crc: u32,
    first: [u8; 16],
}

impl Header {
    /// Parses and checks the bounds.
    ///
    /// # Errors
    /// `InvalidData` when a length is out of bounds.
    pub fn parse(b: &[u8; HEADER_BYTES]) -> io::Result<Self> {
        let mut r = &b[..];
        let (head_len, payload_len) = (r.get_u32_le() as usize, r.get_u32_le() as usize);
        let (id, crc) = (r.get_u64_le(), r.get_u32_le());
        if head_len > HEAD_BYTES_MAX || payload_len > FRAME_PAYLOAD_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("frame of {head_len} + {payload_len} bytes is too long")));
        }
        Ok(Self { head_len, payload_len, id, crc, first: b[..16].try_into().expect("16 of 20 bytes") })
    }

    /// Checks the head against the header's CRC.
    ///
    /// # Errors
    /// `InvalidData` when they differ.
    pub fn check(&self, head: &[u8]) -> io::Result<()> {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&self.first);
        crc.update(head);
        let found = crc.finalize();
        if found == self.crc {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, format!("frame checksum: expected {:08x}, found {found:08x}", self.crc)))
    }
}

/// Reads frames; small ones share a read.
#[derive(Debug)]
pub struct FrameReader<R> {
    inner: R,
    buffer: BytesMut,
}

/// What one read asks for when nothing larger is known to come.
const READ_BYTES: usize = 64 << 10;
/// The least that one read asks for.
const READ_BYTES_MIN: usize = 8 << 10;

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// A reader at the start of a frame.
    pub fn new(inner: R) -> Self {
        Self { inner, buffer: BytesMut::new() }
    }

    /// The next frame; `None` when the other side closed between two frames.
    ///
    /// # Errors
    /// The connection's own, `UnexpectedEof` in the middle of a frame, `InvalidData` for nonsense.
    pub async fn next(&mut self) -> io::Result<Option<Frame>> {
        if !self.fill(HEADER_BYTES).await? {
            return Ok(None);
        }
        let header = Header::parse(self.buffer[..HEADER_BYTES].try_into().expect("length"))?;
        if !self.fill(HEADER_BYTES + header.head_len).await? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.buffer.advance(HEADER_BYTES);
        let head = self.buffer.split_to(header.head_len).freeze();
        header.check(&head)?;
        let payload = self.payload(header.payload_len).await?;
        Ok(Some(Frame { id: header.id, head, payload }))
    }

    /// Makes at least `want` bytes available; false at a clean end.
    async fn fill(&mut self, want: usize) -> io::Result<bool> {
        while self.buffer.len() < want {
            // What was read before may be in use yet, and keeps the whole buffer alive: it is filled before there is another.
            let missing = want - self.buffer.len();
            if self.buffer.capacity() - self.buffer.len() < missing.max(READ_BYTES_MIN) {
                self.buffer.reserve(missing.max(READ_BYTES));
            }
            if self.inner.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() { Ok(false) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
        Ok(true)
    }

    async fn payload(&mut self, len: usize) -> io::Result<Bytes> {
        if len <= self.buffer.len() {
            return Ok(self.buffer.split_to(len).freeze());
        }
        // The rest goes straight into its own buffer.
        let mut payload = BytesMut::with_capacity(len);
        payload.extend_from_slice(&self.buffer.split());
        let mut rest = (&mut self.inner).take((len - payload.len()) as u64);
        while payload.len() < len {
            if rest.read_buf(&mut payload).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(payload.freeze())
    }
}

/// Frames that go out in one vectored write at the most.
const WRITE_FRAMES_MAX: usize = 32;

/// Writes all of `parts` with as few system calls as the kernel allows.
///
/// # Errors
/// The connection's own.
pub async fn write_all<W: AsyncWrite + Unpin>(w: &mut W, parts: &mut [Bytes]) -> io::Result<()> {
    for batch in parts.chunks_mut(2 * WRITE_FRAMES_MAX) {
        let mut first = 0;
        while first < batch.len() {
            if batch[first].is_empty() {
                first += 1;
                continue;
            }
            let slices: Vec<IoSlice<'_>> = batch[first..].iter().filter(|b| !b.is_empty()).map(|b| IoSlice::new(b)).collect();
            let mut written = w.write_vectored(&slices).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            for part in &mut batch[first..] {
                let n = written.min(part.len());
                part.advance(n);
                written -= n;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<F: Future>(f: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().build().expect("runtime").block_on(f)
    }

    #[test]
    fn frames_survive_any_chunking() {
        block_on(async {
            let frames: Vec<Frame> = (0..20_usize)
                .map(|i| Frame {
                    id: i as u64,
                    head: Bytes::from(vec![i as u8; i * 37]),
                    payload: Bytes::from(vec![!(i as u8); i * i * 977]),
                })
                .collect();
            let (mut tx, rx) = tokio::io::duplex(1000);
            let sent = frames.clone();
            let send = async move {
                let mut parts: Vec<Bytes> = sent.iter().flat_map(|f| [encode(f.id, &f.head, f.payload.len()), f.payload.clone()]).collect();
                write_all(&mut tx, &mut parts).await.expect("write");
            };
            let receive = async move {
                let mut r = FrameReader::new(rx);
                let mut got = Vec::new();
                while let Some(f) = r.next().await.expect("read") {
                    got.push(f);
                }
                got
            };
            let ((), got) = tokio::join!(send, receive);
            assert_eq!(got, frames);
        });
    }

    #[test]
    fn a_flipped_bit_in_header_or_head_is_refused() {
        let good = encode(7, b"hello", 0);
        for bit in 0..good.len() * 8 {
            let mut bad = good.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            let result = block_on(async { FrameReader::new(&bad[..]).next().await });
            assert!(result.is_err(), "bit {bit} went unnoticed: {result:?}");
        }
    }

    #[test]
    fn a_cut_frame_is_an_error_and_a_clean_end_is_not() {
        let good = encode(7, b"hello", 3);
        for cut in 1..good.len() + 3 {
            let mut bytes = good.to_vec();
            bytes.extend_from_slice(b"abc");
            bytes.truncate(cut);
            assert!(block_on(async { FrameReader::new(&bytes[..]).next().await }).is_err());
        }
        assert_eq!(block_on(async { FrameReader::new(&b""[..]).next().await }).expect("clean end"), None);
    }

    #[test]
    fn the_page_says_what_the_code_does() {
        let page = include_str!("../../FORMAT.md");
        let chapter = page.split("## Frames").nth(1).expect("the chapter").split("\n## ").next().expect("its text");
        let grouped = |n: usize| {
            n.to_string().as_bytes().rchunks(3).rev().map(|c| std::str::from_utf8(c).expect("digits")).collect::<Vec<_>>().join(",")
        };
        for fact in [
            format!("`{}`", std::str::from_utf8(&MAGIC).expect("ASCII")),
            grouped(HEAD_BYTES_MAX),
            grouped(FRAME_PAYLOAD_BYTES_MAX),
            format!("| {HEADER_BYTES} | H |"),
        ] {
            assert!(chapter.contains(&fact), "FORMAT.md, Frames: {fact} is missing");
        }
    }

    #[test]
    fn only_our_preface_is_let_in() {
        for kind in [Preface::Member, Preface::Client, Preface::Brick, Preface::Management, Preface::Members] {
            assert_eq!(Preface::parse(kind.bytes()).expect("ours"), kind);
        }
        assert!(Preface::parse(*b"GET / HT").is_err());
    }
}
