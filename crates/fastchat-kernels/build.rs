//! Builds what is not Rust: the CUDA sources, by nvcc, and the trampolines that stand for NVIDIA's libraries.

#[path = "build/nvcc.rs"]
mod nvcc;
#[path = "build/trampolines.rs"]
mod trampolines;

fn main() -> Result<(), String> {
    println!("cargo::rerun-if-changed=cuda");
    println!("cargo::rerun-if-changed=build");
    if cfg!(feature = "cuda") {
        let toolkit = nvcc::Toolkit::find()?;
        nvcc::compile(&toolkit)?;
        trampolines::archive(&toolkit)?;
    }
    trampolines::for_tests()
}
