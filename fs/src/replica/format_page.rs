//! FORMAT.md says what the messages are.

use super::types::*;
use crate::fop::Fop;

fn number(msg: &PeerMsg) -> u8 {
    postcard::to_allocvec(msg).unwrap()[0]
}

#[test]
fn the_page_has_the_numbers_of_the_messages() {
    let page = include_str!("../../../FORMAT.md");
    let tag = HealTag { epoch: 1, attempt: 1, heal: 1, floor: 1, id: 1 };
    let fop = Fop::StatFs;
    let all = [
        ("Hello(Identity)", PeerMsg::Hello(Identity::default())),
        ("Config(GroupConfig)", PeerMsg::Config(GroupConfig::default())),
        ("NeedConfig", PeerMsg::NeedConfig { epoch: 1 }),
        ("Ack", PeerMsg::Ack { epoch: 1, seq: 1, result: Ok(()) }),
        ("Complete", PeerMsg::Complete { epoch: 1, complete: 1, ping: true }),
        ("Pong", PeerMsg::Pong { epoch: 1 }),
        ("Query", PeerMsg::Query { epoch: 1, id: 1, after: 1, fop }),
        ("Join", PeerMsg::Join { identity: Identity::default(), attempt: 1 }),
        ("Heal(HealTag)", PeerMsg::Heal(tag)),
        ("HealReturn(HealTag)", PeerMsg::HealReturn(tag)),
        ("JoinReadyDone", PeerMsg::JoinReadyDone { epoch: 1, attempt: 1, seq: 1 }),
        ("TakeOver", PeerMsg::TakeOver { epoch: 1 }),
        ("Recent", PeerMsg::Recent { epoch: 1, objects: Vec::new() }),
        ("TookOverDone", PeerMsg::TookOverDone { epoch: 1 }),
        ("Checkpoint", PeerMsg::Checkpoint { epoch: 1, mark: 1 }),
        ("CheckpointCommit", PeerMsg::CheckpointCommit { epoch: 1, mark: 1 }),
    ];
    for (name, msg) in all {
        let row = format!("| {} | `{name}` |", number(&msg));
        assert!(page.contains(&row), "FORMAT.md lacks {row}");
    }
}
