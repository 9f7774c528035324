//! Hashes cold files on a thread of its own, hosted by tokio-uring: reads that miss the page cache would hold up a brick's
//! thread. This is an edge: it has a thread and a clockless queue, and the caller decides what to do with the sums.

use super::content::ContentSum;
use crate::heal::CHUNK_BYTES;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::mpsc;

/// Most files that wait to be hashed.
const JOBS_MAX: usize = 64;
/// Bytes in one read.
const READ_BYTES: usize = 4 * CHUNK_BYTES as usize;

/// A hashed file.
#[derive(Debug)]
pub struct Hashed {
    /// The caller's.
    pub token: u64,
    /// The content's sum ([`ContentSum`]) and the number of bytes read. Size and mtime must be looked at before and after:
    /// `HealCall::Sign` does the after.
    pub result: io::Result<(u128, u64)>,
}

/// The thread. It ends when this is dropped, after the file it is at.
pub struct Hasher {
    jobs: mpsc::Sender<(u64, std::fs::File)>,
    done: Receiver<Hashed>,
}

impl Hasher {
    /// Starts the thread.
    ///
    /// # Errors
    /// No thread can be had. Where io_uring is forbidden, every file is answered with that error: use
    /// [`Signer::step`](super::Signer::step) then.
    pub fn start() -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel(JOBS_MAX);
        let (answers, done) = channel();
        std::thread::Builder::new().name("brickraft-hash".into()).spawn(move || serve(queue, &answers))?;
        Ok(Self { jobs, done })
    }

    /// Queues a file; false when the queue is full.
    #[must_use]
    pub fn submit(&self, token: u64, file: std::fs::File) -> bool {
        self.jobs.try_send((token, file)).is_ok()
    }

    /// What has been hashed. Never blocks.
    #[must_use]
    pub fn poll(&self) -> Option<Hashed> {
        self.done.try_recv().ok()
    }
}

fn serve(mut queue: mpsc::Receiver<(u64, std::fs::File)>, answers: &Sender<Hashed>) {
    // Not `tokio_uring::start`, which panics where the kernel has no ring for us.
    let runtime = match tokio_uring::Runtime::new(&tokio_uring::builder()) {
        Ok(runtime) => runtime,
        Err(e) => {
            while let Some((token, _)) = queue.blocking_recv() {
                let result = Err(io::Error::new(e.kind(), format!("start the hasher's ring: {e}")));
                if answers.send(Hashed { token, result }).is_err() {
                    return;
                }
            }
            return;
        }
    };
    runtime.block_on(async move {
        while let Some((token, file)) = queue.recv().await {
            let result = hash(tokio_uring::fs::File::from_std(file)).await;
            if answers.send(Hashed { token, result }).is_err() {
                return;
            }
        }
    });
}

async fn hash(file: tokio_uring::fs::File) -> io::Result<(u128, u64)> {
    let (mut sum, mut at, mut buffer) = (ContentSum::default(), 0u64, vec![0; READ_BYTES]);
    let size = loop {
        // Short reads are filled up, so that chunks stay whole.
        let mut filled = 0;
        let ended = loop {
            let rest = buffer.split_off(filled);
            let (read, rest) = file.read_at(rest, at + filled as u64).await;
            buffer.extend_from_slice(&rest);
            match read? {
                0 => break true,
                n => filled += n,
            }
            if filled == READ_BYTES {
                break false;
            }
        };
        sum.bytes(at, &buffer[..filled]);
        at += filled as u64;
        if ended {
            break at;
        }
    };
    file.close().await?;
    Ok((sum.finish(), size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::time::Duration;

    #[test]
    fn hashes_as_the_signer_does() {
        let mut file = tempfile::tempfile().expect("make a temporary file");
        let data: Vec<u8> = (0..READ_BYTES + 300_000).map(|i| (i / 200_000) as u8).collect();
        file.write_all(&data).expect("write it");
        let mut sum = ContentSum::default();
        sum.bytes(0, &data);
        let hasher = Hasher::start().expect("start the thread");
        assert!(hasher.submit(7, file));
        let hashed = hasher.done.recv_timeout(Duration::from_secs(20)).expect("an answer");
        assert_eq!(hashed.token, 7);
        match hashed.result {
            Ok(result) => assert_eq!(result, (sum.finish(), data.len() as u64)),
            Err(e) => assert!(e.to_string().contains("ring"), "{e}"), // a sandbox without io_uring
        }
    }
}
