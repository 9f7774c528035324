//! The asking side, for threads that may block: one request at a time on a connection.
//!
//! A FUSE worker sends straight from the kernel's request buffer and reads straight into the answer's, so
//! that no other thread and no copy lies between.

use crate::frame::{Frame, HEADER_BYTES, Header, Preface, encode};
use bytes::{Bytes, BytesMut};
use std::io::{self, BufReader, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// How often a waiting call asks whether it shall go on waiting.
const WAIT_SLICE: Duration = Duration::from_millis(200);
/// Small answers are read with one system call of this size.
const READ_BYTES: usize = 8 << 10;

/// A connection for requests and answers.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
    next_id: u64,
}

impl Connection {
    /// Connects to the first of `address`'s addresses that answers within `timeout`.
    ///
    /// # Errors
    /// The last attempt's.
    pub fn open(address: &str, preface: Preface, hello: &[u8], timeout: Duration) -> io::Result<Self> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{address}: no such host"));
        for addr in address.to_socket_addrs()? {
            match Self::open_one(addr, preface, hello, timeout) {
                Ok(c) => return Ok(c),
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    fn open_one(addr: SocketAddr, preface: Preface, hello: &[u8], timeout: Duration) -> io::Result<Self> {
        let mut stream = TcpStream::connect_timeout(&addr, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(WAIT_SLICE))?;
        stream.set_write_timeout(Some(timeout))?;
        let mut first = preface.bytes().to_vec();
        first.extend_from_slice(&encode(0, hello, 0));
        stream.write_all(&first)?;
        Ok(Self { stream: BufReader::with_capacity(READ_BYTES, stream), next_id: 0 })
    }

    /// The address that this end has, which is how the other side sees it.
    ///
    /// # Errors
    /// The socket's own.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.get_ref().local_addr()
    }

    /// The other end's address.
    ///
    /// # Errors
    /// The socket's own.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.stream.get_ref().peer_addr()
    }

    /// Sends a request and waits for its answer. `go_on` is asked five times a second; when it says no,
    /// the call ends with `TimedOut`. After any error the connection is of no more use.
    ///
    /// # Errors
    /// The connection's own, `TimedOut`, `InvalidData` for nonsense.
    pub fn call(&mut self, head: &[u8], payload: &[u8], go_on: &mut dyn FnMut(Duration) -> bool) -> io::Result<(Bytes, Bytes)> {
        self.next_id += 1;
        let id = self.next_id;
        self.send(&encode(id, head, payload.len()), payload)?;
        let started = Instant::now();
        let mut wait = |e: io::Error| match e.kind() {
            io::ErrorKind::Interrupted => Ok(()),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut if go_on(started.elapsed()) => Ok(()),
            io::ErrorKind::WouldBlock => Err(io::ErrorKind::TimedOut.into()),
            _ => Err(e),
        };
        let frame = self.receive(&mut wait)?;
        if frame.id != id {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("answer to request {}, expected {id}", frame.id)));
        }
        Ok((frame.head, frame.payload))
    }

    fn send(&mut self, mut head: &[u8], mut payload: &[u8]) -> io::Result<()> {
        let stream = self.stream.get_mut();
        while !head.is_empty() {
            let n = match stream.write_vectored(&[IoSlice::new(head), IoSlice::new(payload)]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            let of_head = n.min(head.len());
            head = &head[of_head..];
            payload = &payload[n - of_head..];
        }
        stream.write_all(payload)
    }

    fn receive(&mut self, wait: &mut dyn FnMut(io::Error) -> io::Result<()>) -> io::Result<Frame> {
        let mut header = [0; HEADER_BYTES];
        self.read_exact(&mut header, wait)?;
        let header = Header::parse(&header)?;
        let mut head = BytesMut::zeroed(header.head_len);
        self.read_exact(&mut head, wait)?;
        header.check(&head)?;
        let mut payload = BytesMut::zeroed(header.payload_len);
        self.read_exact(&mut payload, wait)?;
        Ok(Frame { id: header.id, head: head.freeze(), payload: payload.freeze() })
    }

    fn read_exact(&mut self, mut into: &mut [u8], wait: &mut dyn FnMut(io::Error) -> io::Result<()>) -> io::Result<()> {
        while !into.is_empty() {
            match self.stream.read(into) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => into = &mut into[n..],
                Err(e) => wait(e)?,
            }
        }
        Ok(())
    }
}
