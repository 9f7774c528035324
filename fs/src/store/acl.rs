//! Inheritance of POSIX ACLs (acl(5), "OBJECT CREATION AND DEFAULT ACLs"). A brick makes objects nameless, outside of
//! their directory, so the kernel does not do it for us.

const VERSION: u32 = 2;
const TAG_USER_OBJ: u16 = 0x01;
const TAG_USER: u16 = 0x02;
const TAG_GROUP_OBJ: u16 = 0x04;
const TAG_GROUP: u16 = 0x08;
const TAG_MASK: u16 = 0x10;
const TAG_OTHER: u16 = 0x20;

/// The access ACL (`None`: the mode says it all) and the mode of an object that is made with `mode` in a directory
/// with this default ACL. `None`: the text is no ACL.
pub(crate) fn inherit(default: &[u8], mode: u32) -> Option<(Option<Vec<u8>>, u32)> {
    let (version, rest) = default.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != VERSION || rest.is_empty() || rest.len() % 8 != 0 {
        return None;
    }
    let mut out = default.to_vec();
    let tag = |e: &[u8]| u16::from_le_bytes([e[0], e[1]]);
    let has_mask = rest.chunks_exact(8).any(|e| tag(e) == TAG_MASK);
    let mut new_mode = mode & !0o777;
    for entry in out[4..].chunks_exact_mut(8) {
        let shift = match tag(entry) {
            TAG_USER_OBJ => Some(6),
            TAG_MASK => Some(3),
            TAG_GROUP_OBJ if !has_mask => Some(3),
            TAG_OTHER => Some(0),
            TAG_USER | TAG_GROUP | TAG_GROUP_OBJ => None,
            _ => return None,
        };
        if let Some(shift) = shift {
            let perm = u16::from_le_bytes([entry[2], entry[3]]) & (mode >> shift & 7) as u16;
            entry[2..4].copy_from_slice(&perm.to_le_bytes());
            new_mode |= u32::from(perm) << shift;
        }
    }
    let extended = rest.chunks_exact(8).any(|e| !matches!(tag(e), TAG_USER_OBJ | TAG_GROUP_OBJ | TAG_OTHER));
    Some((extended.then_some(out), new_mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16)]) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for (tag, perm) in entries {
            out.extend_from_slice(&tag.to_le_bytes());
            out.extend_from_slice(&perm.to_le_bytes());
            out.extend_from_slice(&7u32.to_le_bytes());
        }
        out
    }

    #[test]
    fn the_mode_masks_the_inherited_entries() {
        let default = acl(&[(TAG_USER_OBJ, 7), (TAG_USER, 7), (TAG_GROUP_OBJ, 5), (TAG_MASK, 7), (TAG_OTHER, 5)]);
        let (access, mode) = inherit(&default, 0o4640).unwrap();
        assert_eq!(mode, 0o4640);
        assert_eq!(access.unwrap(), acl(&[(TAG_USER_OBJ, 6), (TAG_USER, 7), (TAG_GROUP_OBJ, 5), (TAG_MASK, 4), (TAG_OTHER, 0)]));
        let minimal = acl(&[(TAG_USER_OBJ, 7), (TAG_GROUP_OBJ, 5), (TAG_OTHER, 0)]);
        assert_eq!(inherit(&minimal, 0o666), Some((None, 0o640)));
        assert_eq!(inherit(b"junk", 0o666), None);
    }
}
