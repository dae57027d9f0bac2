//! Builds what is not Rust. With feature `cuda`: our `.cu` files, and the archives that stand for NVIDIA's libraries.

#[path = "build/nvcc.rs"]
mod nvcc;
#[path = "build/trampolines.rs"]
mod trampolines;

fn main() -> Result<(), String> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        let toolkit = nvcc::Toolkit::find()?;
        nvcc::compile(&toolkit)?;
        trampolines::archive(&toolkit)?;
    }
    Ok(())
}
