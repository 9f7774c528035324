//! Who a data directory belongs to, and the ids of a cluster that is started from a static list.
//!
//! `identity` in the data directory: 8 bytes magic `BRKIDNT1`, u32 LE length, postcard of [`Identity`],
//! u32 LE CRC-32 of all before it. Written once, to a temporary name, synced, renamed, directory synced.

use crate::raft::{MemberInfo, Membership};
use crate::types::NodeId;
use serde::{Deserialize, Serialize};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64_with_seed;

const MAGIC: &[u8; 8] = b"BRKIDNT1";
const FILE: &str = "identity";
/// A larger file is not ours.
const FILE_BYTES_MAX: u64 = 64 * 1024;
const CLUSTER_SEED: u64 = 0x636c_7573_7465_7231;
const MEMBER_SEED: u64 = 0x6d65_6d62_6572_3131;

/// Whose data a data directory holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster.
    pub cluster_id: u64,
    /// The member of it.
    pub member_id: NodeId,
    /// Its name when the directory was made; for messages only.
    pub name: String,
}

/// Why a data directory cannot be used.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// The directory holds another cluster's or member's data.
    #[error(
        "{path}: the data directory belongs to member {found_member:016x} ({found_name}) of cluster {found_cluster:016x}, \
         not to member {member:016x} of cluster {cluster:016x}; use that member's settings, or another data directory"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it says.
        found_member: u64,
        /// What it says.
        found_cluster: u64,
        /// What it says.
        found_name: String,
        /// What was expected.
        member: u64,
        /// What was expected.
        cluster: u64,
    },
    /// The file is damaged.
    #[error("{path}: {what}; if the file is lost, empty the data directory and add the node as a new member")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The file system refuses.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

fn io_error<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> IdentityError + 'a {
    move |source| IdentityError::Io { doing, path: path.to_owned(), source }
}

impl Identity {
    /// Reads the identity in `dir`; `None` in a directory that was never used.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub fn load(dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = dir.join(FILE);
        match std::fs::metadata(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io_error("read", &path)(e)),
            Ok(m) if m.len() > FILE_BYTES_MAX => {
                return Err(IdentityError::Damaged { path, what: format!("{} bytes long, expected at most {FILE_BYTES_MAX}", m.len()) });
            }
            Ok(_) => {}
        }
        let bytes = std::fs::read(&path).map_err(io_error("read", &path))?;
        Self::decode(&bytes).map(Some).map_err(|what| IdentityError::Damaged { path, what })
    }

    /// Makes `dir` this member's, or checks that it is: what a start does before it opens anything else.
    /// Returns whether the directory was new.
    ///
    /// # Errors
    /// When the directory belongs to another member or cluster, or cannot be read or written.
    pub fn claim(&self, dir: &Path) -> Result<bool, IdentityError> {
        match Self::load(dir)? {
            None => self.store(dir).map(|()| true),
            Some(found) if found.cluster_id == self.cluster_id && found.member_id == self.member_id => Ok(false),
            Some(found) => Err(IdentityError::Foreign {
                path: dir.join(FILE),
                found_member: found.member_id.0,
                found_cluster: found.cluster_id,
                found_name: found.name,
                member: self.member_id.0,
                cluster: self.cluster_id,
            }),
        }
    }

    /// Gives `dir` up: nothing was made in it yet.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn give_up(dir: &Path) -> Result<(), IdentityError> {
        let path = dir.join(FILE);
        std::fs::remove_file(&path).map_err(io_error("remove", &path))
    }

    fn store(&self, dir: &Path) -> Result<(), IdentityError> {
        let path = dir.join(FILE);
        let temporary = dir.join("identity.tmp");
        let mut file = std::fs::File::create(&temporary).map_err(io_error("create", &temporary))?;
        file.write_all(&self.encode()).and_then(|()| file.sync_all()).map_err(io_error("write", &temporary))?;
        std::fs::rename(&temporary, &path).map_err(io_error("rename to", &path))?;
        std::fs::File::open(dir).and_then(|d| d.sync_all()).map_err(io_error("sync", dir))
    }

    fn encode(&self) -> Vec<u8> {
        let body = postcard::to_allocvec(self).unwrap_or_default();
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(&body);
        out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let (head, sum) = bytes.split_last_chunk::<4>().ok_or_else(|| format!("only {} bytes", bytes.len()))?;
        let (found, expected) = (u32::from_le_bytes(*sum), crc32fast::hash(head));
        if found != expected {
            return Err(format!("checksum {found:08x}, expected {expected:08x}"));
        }
        let body = head.strip_prefix(MAGIC).ok_or("no identity file (magic)")?;
        let (length, body) = body.split_first_chunk::<4>().ok_or("no length")?;
        if u32::from_le_bytes(*length) as usize != body.len() {
            return Err(format!("length {}, found {}", u32::from_le_bytes(*length), body.len()));
        }
        postcard::from_bytes(body).map_err(|e| format!("content: {e}"))
    }
}

/// A member of a static list, as `--initial-cluster` names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitialMember {
    /// `--name`.
    pub name: String,
    /// Its peer URLs.
    pub peer_urls: Vec<String>,
}

/// The id of a member: the same on every member that computes it, as in etcd (a hash of peer URLs and
/// cluster token). `salt` is 0 in a static list and random for a member that is added later, so that an id is
/// never used twice.
#[must_use]
pub fn member_id(peer_urls: &[String], token: &str, salt: u64) -> NodeId {
    let mut urls = peer_urls.to_vec();
    urls.sort();
    let text = format!("{}\n{token}\n{salt}", urls.join("\n"));
    NodeId(xxh3_64_with_seed(text.as_bytes(), MEMBER_SEED).max(1))
}

/// The first membership of a cluster that starts from a static list, and the cluster's id.
#[must_use]
pub fn bootstrap(members: &[InitialMember], token: &str) -> (u64, Membership) {
    let mut membership = Membership::default();
    for m in members {
        let mut peer_urls = m.peer_urls.clone();
        peer_urls.sort();
        let info = MemberInfo { name: m.name.clone(), peer_urls, client_urls: Vec::new() };
        membership.voters.insert(member_id(&m.peer_urls, token, 0), info);
    }
    (cluster_id_of(&membership, token), membership)
}

/// The id of a cluster that these members found.
#[must_use]
pub fn cluster_id_of(founders: &Membership, token: &str) -> u64 {
    let mut text = String::from(token);
    for id in founders.voters.keys() {
        text.push_str(&format!("\n{:016x}", id.0));
    }
    xxh3_64_with_seed(text.as_bytes(), CLUSTER_SEED).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity { cluster_id: 7, member_id: NodeId(9), name: "a".into() }
    }

    #[test]
    fn a_directory_belongs_to_one_member() {
        let dir = tempfile::tempdir().expect("tempdir");
        assert!(identity().claim(dir.path()).expect("claim"));
        assert!(!identity().claim(dir.path()).expect("claim again"));
        let other = Identity { member_id: NodeId(8), ..identity() };
        let error = other.claim(dir.path()).expect_err("foreign").to_string();
        assert!(error.contains("belongs to member 0000000000000009"), "{error}");
    }

    #[test]
    fn every_damaged_bit_is_found() {
        let good = identity().encode();
        assert_eq!(Identity::decode(&good), Ok(identity()));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Identity::decode(&bad).is_err(), "bit {bit}");
        }
        for length in 0..good.len() {
            assert!(Identity::decode(&good[..length]).is_err(), "length {length}");
        }
    }

    #[test]
    fn ids_do_not_depend_on_order() {
        let a = InitialMember { name: "a".into(), peer_urls: vec!["http://127.0.0.1:1".into(), "http://127.0.0.1:2".into()] };
        let b = InitialMember { name: "b".into(), peer_urls: vec!["http://127.0.0.1:3".into()] };
        let mut turned = a.clone();
        turned.peer_urls.reverse();
        assert_eq!(bootstrap(&[a.clone(), b.clone()], "t"), bootstrap(&[b.clone(), turned], "t"));
        assert_ne!(bootstrap(&[a.clone(), b.clone()], "t").0, bootstrap(&[a, b], "u").0);
    }
}
