//! The CUDA sources as plain C++ beside the emulator, in one shared library, so that tests can be run on a changed one.
//! Compiled twice: as they are, and with every access to memory checked. Sets `cfg(emulated)` when there is a compiler.

use std::path::PathBuf;

/// Where the kernels are.
const CUDA: &str = "../fastchat-kernels/cuda";

/// A `.cu` file is a unit of its own for either compiler.
fn sources(folder: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let is_source = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "cu");
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_source).collect();
    found.sort();
    found
}

fn compiler() -> cc::Build {
    let mut build = cc::Build::new();
    // Contraction would make two roundings one, here and not there.
    build.cpp(true).std("c++17").opt_level(2).warnings(true).pic(true).flag("-ffp-contract=off");
    // The library is there when a program starts, so its variables per thread need no call.
    build.flag_if_supported("-ftls-model=initial-exec");
    build.include(CUDA).include(".");
    build
}

fn main() -> Result<(), String> {
    println!("cargo::rerun-if-changed={CUDA}");
    println!("cargo::rerun-if-changed=emu");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(emulated)");
    let tool = match compiler().try_get_compiler() {
        Ok(tool) => tool,
        Err(error) => {
            println!("cargo::warning=no C++ compiler, so the CUDA kernels are not emulated: {error}");
            return Ok(());
        }
    };
    let mut files = sources(CUDA);
    files.extend(sources("emu"));
    // The language must be said before the files, whose ending the compiler does not know.
    let mut objects = compiler().flag("-xc++").files(&files).compile_intermediates();
    let mut checked = compiler();
    checked.flag("-xc++").flag("-fsanitize=thread").define("EMU_CHECKED", None);
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    objects.extend(checked.out_dir(out.join("checked")).files(&files).compile_intermediates());
    objects.extend(compiler().file("emu/emu.cpp").compile_intermediates());
    let library = out.join("libfastchat_emulated.so");
    let linked = tool.to_command().arg("-shared").args(&objects).arg("-o").arg(&library).status();
    if !linked.is_ok_and(|status| status.success()) {
        return Err(format!("linking {} failed", library.display()));
    }
    println!("cargo::rustc-link-search=native={}", out.display());
    println!("cargo::rustc-link-lib=dylib=fastchat_emulated");
    println!("cargo::rustc-cfg=emulated");
    Ok(())
}
