//! FORMAT.md says what the constants say.

use crate::heal::scrub::signature::{SIGNATURE_BYTES, SIGNATURE_VERSION};
use crate::heal::*;

#[test]
fn the_page_has_the_constants() {
    let page = include_str!("../../../../FORMAT.md");
    let rows = [
        ("CHUNK_BYTES", CHUNK_BYTES),
        ("CALL_BYTES_MAX", CALL_BYTES_MAX as u64),
        ("OBJECTS_MAX", OBJECTS_MAX as u64),
        ("ENTRIES_MAX", ENTRIES_MAX as u64),
        ("SUM_BYTES_MAX", SUM_BYTES_MAX),
        ("BATCH_CALLS_MAX", BATCH_CALLS_MAX as u64),
    ];
    for (name, value) in rows {
        assert!(page.contains(&format!("| `{name}` | {value} |")), "FORMAT.md lacks {name} = {value}");
    }
    assert_eq!((SIGNATURE_BYTES, SIGNATURE_VERSION), (37, 1));
}
