//! brickraft
fn main() {}
