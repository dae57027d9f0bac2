//! Builds what is not Rust. With feature `cuda`: our `.cu` files, and the archives that stand for NVIDIA's libraries. With
//! feature `cuda-emulator`: the same files for the host.

#[path = "build/emulator.rs"]
mod emulator;
#[path = "build/nvcc.rs"]
mod nvcc;
#[path = "build/trampolines.rs"]
mod trampolines;

fn main() -> Result<(), String> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    println!("cargo:rustc-check-cfg=cfg(emulated)");
    if std::env::var_os("CARGO_FEATURE_CUDA_EMULATOR").is_some() {
        println!("cargo:rerun-if-changed=cuda");
        emulator::build()?;
    }
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        let toolkit = nvcc::Toolkit::find()?;
        nvcc::compile(&toolkit)?;
        trampolines::archive(&toolkit)?;
    }
    Ok(())
}
