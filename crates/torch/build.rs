//! Compiles the shims against libtorch's headers.

use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=csrc");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let libtorch = std::env::var("LIBTORCH").unwrap_or_else(|_| "../../.libtorch".into());
    let include = Path::new(&libtorch).join("include");
    assert!(include.exists(), "{} is missing: run scripts/setup.sh", include.display());
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .warnings(false)
        .define("USE_C10D_GLOO", None)
        .flag("-fvisibility=hidden")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .include("csrc/stubs/gloo")
        .files(["csrc/shim.cpp", "csrc/group.cpp"])
        .compile("lcsc_shim");
}
