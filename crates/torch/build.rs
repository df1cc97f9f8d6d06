//! Compiles the shims against libtorch's headers.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=csrc");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let libtorch = std::env::var("LIBTORCH").unwrap_or_else(|_| "../../.libtorch".into());
    let include = Path::new(&libtorch).join("include");
    assert!(include.exists(), "{} is missing: run scripts/setup.sh", include.display());
    // NVRTC compiles the text of the GPU's kernels at run time.
    let out = std::env::var("OUT_DIR")?;
    let text = std::fs::read_to_string("csrc/norm.cu")?;
    let header = format!("static const char kNormText[] = R\"cuda({text})cuda\";\n");
    std::fs::write(format!("{out}/norm_text.h"), header)?;
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
        .include(out)
        .files(["csrc/shim.cpp", "csrc/group.cpp", "csrc/norm.cpp"])
        .compile("lcsc_shim");
    Ok(())
}
