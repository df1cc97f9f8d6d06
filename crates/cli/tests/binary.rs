//! The binary itself. That there is a test of it has cargo build it along with all other tests, for those at the root too.

use std::process::Command;

#[test]
fn it_tells_its_version() {
    let output = Command::new(env!("CARGO_BIN_EXE_lcsc")).arg("--version").output().unwrap();
    let version = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && version.starts_with(concat!("lcsc ", env!("CARGO_PKG_VERSION"))), "{version}");
}
