//! Compiles what is not Rust: the CUDA sources, by the host's C++ compiler for the emulator.

#[path = "build/emulator.rs"]
mod emulator;

fn main() {
    println!("cargo::rerun-if-changed=cuda");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rustc-check-cfg=cfg(emulated)");
    if std::env::var_os("CARGO_FEATURE_CUDA_EMULATOR").is_some() {
        emulator::build();
    }
}
