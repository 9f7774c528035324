//! FORMAT.md says what is on disk.

use crate::union::names;

#[test]
fn the_page_names_what_is_on_disk() {
    let page = include_str!("../../../../FORMAT.md");
    let on_disk = [
        names::OPAQUE,
        names::WHITEOUT_BASE,
        names::PLINKS,
        names::WORK,
        names::LAZY,
        names::XATTR_LAZY,
        names::XATTR_NUMBER,
        names::XATTR_IMPURE,
        names::XATTR_REDIRECT,
        names::XATTR_OVERLAY_OPAQUE,
        names::XATTR_OVERLAY_REDIRECT,
    ];
    for name in on_disk {
        let name = std::str::from_utf8(name).unwrap();
        assert!(page.contains(&format!("`{name}")), "FORMAT.md lacks {name}");
    }
    assert!(page.contains("`trusted.brickraft-union.*`"));
}
