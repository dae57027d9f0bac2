//! Builds what is not Rust: the CUDA sources, by the host's C++ compiler for the emulator or by nvcc for GPUs, and the
//! trampolines that stand for NVIDIA's libraries.

#[cfg(all(feature = "cuda-emulator", not(feature = "cuda")))]
#[path = "build/emulator.rs"]
mod emulator;
#[path = "build/nvcc.rs"]
mod nvcc;
#[path = "build/trampolines.rs"]
mod trampolines;

fn main() -> Result<(), String> {
    println!("cargo::rerun-if-changed=cuda");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rustc-check-cfg=cfg(emulated)");
    if cfg!(feature = "cuda") {
        let toolkit = nvcc::Toolkit::find()?;
        nvcc::compile(&toolkit)?;
        trampolines::archive(&toolkit)?;
    }
    #[cfg(all(feature = "cuda-emulator", not(feature = "cuda")))]
    emulator::build()?;
    trampolines::for_tests()
}
