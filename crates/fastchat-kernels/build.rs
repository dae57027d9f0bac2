//! Builds what is not Rust. With feature `cuda`: our `.cu` files by nvcc, and the archives that stand for NVIDIA's
//! libraries. With feature `cuda-emulator`: the same files by the host's C++ compiler.

#[cfg(feature = "cuda-emulator")]
#[path = "build/emulator.rs"]
mod emulator;
#[path = "build/nvcc.rs"]
mod nvcc;
#[path = "build/trampolines.rs"]
mod trampolines;

fn main() -> Result<(), String> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=cuda");
    println!("cargo::rustc-check-cfg=cfg(emulated)");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        let toolkit = nvcc::Toolkit::find()?;
        nvcc::compile(&toolkit)?;
        trampolines::archive(&toolkit)?;
        // The launchers of the emulator have the same names.
        return Ok(());
    }
    #[cfg(feature = "cuda-emulator")]
    emulator::build();
    Ok(())
}
