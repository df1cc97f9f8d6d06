//! The `lcsc` command.
fn main() {}
