//! Which of two copies is right: a table, tested over all its cases. It never guesses.

use crate::fop::{Attr, TimeSpec};
use crate::heal::Signature;

/// One brick's copy of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its attributes.
    pub attr: Attr,
    /// Sum of its extended attributes.
    pub xattr_sum: u128,
    /// Sum of its content ([`super::ContentSum`]).
    pub content: u128,
    /// The signature that it carries.
    pub signature: Option<Signature>,
}

/// Why a copy is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Its content, size and mtime are those of a signature; the other's are not.
    Signature,
    /// Its content is a signature's, though its mtime is not; the other's content is no signature's.
    SignedContent,
    /// Its mtime is a signature's, or the recorded one; the other's is not.
    UnalteredTime,
    /// It is there, under a name and in the index; the other brick lost it.
    Present,
}

/// Why nobody can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doubt {
    /// Both copies match a signature, two different ones.
    BothSigned,
    /// The copy that was not touched does not match its signature (bit rot), and the other was altered.
    BothDamaged,
    /// No signature and no record speaks for either.
    NoWitness,
    /// Content and mtime agree, owner, mode or extended attributes do not.
    Attributes,
    /// Different kinds of object, or two objects under one name.
    Identity,
    /// A name of something that is not ours.
    Stranger,
    /// An object without a name on one brick only.
    Nameless,
}

/// What [`decide`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The copies agree.
    Same,
    /// The local copy is right: push.
    Local(Reason),
    /// The remote copy is right: pull.
    Remote(Reason),
    /// Reported, not repaired.
    Undecidable(Doubt),
}

/// The decision for one object that both bricks have. `recorded`: the mtime that the group knows from elsewhere, if it does.
///
/// | the content | whose | verdict |
/// |---|---|---|
/// | differs | exactly one copy has a signature's sum, size and mtime | that one, `Signature` |
/// | differs | both have (two signatures) | `BothSigned` |
/// | differs | exactly one copy has a signature's sum and size | that one, `SignedContent` |
/// | differs | both have | `BothSigned` |
/// | differs | a copy has a signature's mtime but not its content | `BothDamaged` |
/// | differs | exactly one copy has the recorded mtime | that one, `UnalteredTime` |
/// | differs | otherwise | `NoWitness` |
/// | same, mtimes differ | exactly one has a signature's or the recorded mtime | that one, `UnalteredTime` |
/// | same, mtimes differ | otherwise | `NoWitness` |
/// | same, mtimes same | attributes differ | `Attributes` |
#[must_use]
pub fn decide(local: &Seen, remote: &Seen, recorded: Option<TimeSpec>) -> Verdict {
    if local.attr.kind != remote.attr.kind || local.attr.rdev != remote.attr.rdev {
        return Verdict::Undecidable(Doubt::Identity);
    }
    let signatures: Vec<Signature> = local.signature.iter().chain(&remote.signature).copied().collect();
    let has = |test: &dyn Fn(&Seen, &Signature) -> bool| {
        let one = |seen: &Seen| signatures.iter().any(|s| test(seen, s));
        (one(local), one(remote))
    };
    let signed_content = |seen: &Seen, s: &Signature| s.sum == seen.content && s.size == seen.attr.size;
    let same_time = |seen: &Seen, s: &Signature| s.mtime == seen.attr.mtime;
    let is_recorded = |seen: &Seen| recorded == Some(seen.attr.mtime);

    if (local.content, local.attr.size) != (remote.content, remote.attr.size) {
        return either(has(&|seen, s| signed_content(seen, s) && same_time(seen, s)), Reason::Signature)
            .or_else(|| either(has(&signed_content), Reason::SignedContent))
            .unwrap_or_else(|| match (has(&same_time), is_recorded(local), is_recorded(remote)) {
                ((true, _) | (_, true), ..) => Verdict::Undecidable(Doubt::BothDamaged),
                (_, true, false) => Verdict::Local(Reason::UnalteredTime),
                (_, false, true) => Verdict::Remote(Reason::UnalteredTime),
                _ => Verdict::Undecidable(Doubt::NoWitness),
            });
    }
    if local.attr.mtime != remote.attr.mtime {
        let (l, r) = has(&same_time);
        return match (l || is_recorded(local), r || is_recorded(remote)) {
            (true, false) => Verdict::Local(Reason::UnalteredTime),
            (false, true) => Verdict::Remote(Reason::UnalteredTime),
            _ => Verdict::Undecidable(Doubt::NoWitness),
        };
    }
    let rest = |seen: &Seen| (seen.attr.mode, seen.attr.uid, seen.attr.gid, seen.xattr_sum);
    if rest(local) == rest(remote) { Verdict::Same } else { Verdict::Undecidable(Doubt::Attributes) }
}

/// A verdict when at least one of two has what the reason asks for.
const fn either(who: (bool, bool), reason: Reason) -> Option<Verdict> {
    match who {
        (true, false) => Some(Verdict::Local(reason)),
        (false, true) => Some(Verdict::Remote(reason)),
        (true, true) => Some(Verdict::Undecidable(Doubt::BothSigned)),
        (false, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fop::{FileKind, Gfid};

    const TIMES: [TimeSpec; 3] = [TimeSpec { sec: 1, nsec: 0 }, TimeSpec { sec: 2, nsec: 0 }, TimeSpec { sec: 3, nsec: 0 }];

    fn seen(content: u128, time: usize, signature: Option<Signature>, mode: u32) -> Seen {
        let zero = TimeSpec::default();
        let attr = Attr {
            gfid: Gfid::ROOT,
            kind: FileKind::File,
            mode,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 5,
            blocks: 8,
            atime: zero,
            mtime: TIMES[time],
            ctime: zero,
        };
        Seen { attr, xattr_sum: 0, content, signature }
    }

    fn swap(v: Verdict) -> Verdict {
        match v {
            Verdict::Local(r) => Verdict::Remote(r),
            Verdict::Remote(r) => Verdict::Local(r),
            other => other,
        }
    }

    /// Every combination of contents, times, signatures and records: who wins has its reason, whoever asks.
    #[test]
    fn the_table_holds_in_every_case() {
        let sums = 1..=3u128;
        let mut signatures = vec![None];
        for (sum, t) in sums.clone().flat_map(|s| (0..3).map(move |t| (s, t))) {
            signatures.push(Some(Signature { sum, size: 5, mtime: TIMES[t] }));
        }
        let mut copies = Vec::new();
        for (content, time) in sums.flat_map(|s| (0..3).map(move |t| (s, t))) {
            for signature in &signatures {
                copies.push(seen(content, time, *signature, 0o644));
            }
        }
        let mut decided = [0; 4];
        for (a, b) in copies.iter().flat_map(|a| copies.iter().map(move |b| (a, b))) {
            for recorded in [None, Some(TIMES[0]), Some(TIMES[2])] {
                let v = decide(a, b, recorded);
                assert_eq!(v, swap(decide(b, a, recorded)), "{a:?} {b:?}");
                check(a, b, recorded, v);
                decided[match v {
                    Verdict::Same => 0,
                    Verdict::Local(_) => 1,
                    Verdict::Remote(_) => 2,
                    Verdict::Undecidable(_) => 3,
                }] += 1;
            }
        }
        assert!(decided.iter().all(|n| *n > 0), "{decided:?}");
    }

    fn check(a: &Seen, b: &Seen, recorded: Option<TimeSpec>, v: Verdict) {
        let signatures: Vec<_> = a.signature.iter().chain(&b.signature).collect();
        let content = |s: &Seen| signatures.iter().any(|g| g.sum == s.content);
        let whole = |s: &Seen| signatures.iter().any(|g| g.sum == s.content && g.mtime == s.attr.mtime);
        let time = |s: &Seen| recorded == Some(s.attr.mtime) || signatures.iter().any(|g| g.mtime == s.attr.mtime);
        let (winner, loser, reason) = match v {
            Verdict::Local(r) => (a, b, r),
            Verdict::Remote(r) => (b, a, r),
            Verdict::Same => return assert_eq!((a.content, a.attr.mtime), (b.content, b.attr.mtime)),
            Verdict::Undecidable(_) => {
                // Doubt is never used where a signature speaks for exactly one.
                assert!(a.content == b.content || whole(a) == whole(b));
                return;
            }
        };
        match reason {
            Reason::Signature => assert!(whole(winner) && !whole(loser)),
            Reason::SignedContent => assert!(content(winner) && !content(loser)),
            Reason::UnalteredTime => {
                assert!(time(winner) && !time(loser));
                assert!(a.content == b.content || !content(loser), "a signed content never loses");
            }
            Reason::Present => panic!("both are present"),
        }
    }

    #[test]
    fn named_cases() {
        let signed = |sum, t: usize| Some(Signature { sum, size: 5, mtime: TIMES[t] });
        let good = seen(1, 0, signed(1, 0), 0o644);
        // Bits rotted on the other brick: time and signature as they were.
        assert_eq!(decide(&good, &seen(2, 0, signed(1, 0), 0o644), None), Verdict::Local(Reason::Signature));
        // Somebody wrote into the other brick's directory.
        assert_eq!(decide(&seen(2, 1, signed(1, 0), 0o644), &good, None), Verdict::Remote(Reason::Signature));
        // The rotten copy is the only one that was ever signed, the other was never: its content speaks by the signature.
        assert_eq!(decide(&seen(2, 0, signed(1, 0), 0o644), &seen(1, 0, None, 0o644), None), Verdict::Remote(Reason::Signature));
        // Nobody signed.
        let doubt = Verdict::Undecidable(Doubt::NoWitness);
        assert_eq!(decide(&seen(1, 0, None, 0o644), &seen(2, 0, None, 0o644), None), doubt);
        assert_eq!(decide(&seen(1, 0, None, 0o644), &seen(2, 1, None, 0o644), None), doubt);
        assert_eq!(
            decide(&seen(1, 0, None, 0o644), &seen(2, 1, None, 0o644), Some(TIMES[0])),
            Verdict::Local(Reason::UnalteredTime)
        );
        // Mode changed behind our back: no time tells.
        assert_eq!(decide(&good, &seen(1, 0, None, 0o600), None), Verdict::Undecidable(Doubt::Attributes));
    }
}
