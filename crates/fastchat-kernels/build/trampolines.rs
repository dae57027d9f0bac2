//! Makes the archives that are linked in place of NVIDIA's libraries, so that the result loads where there are none.
//!
//! Each function in `cuda/symbols.txt` is a jump through a table. Until the loader (`src/nvidia/`) has filled the table
//! the jump ends in a function that returns the library's own status for "not there". The runtime is linked statically,
//! for it registers kernels before anything could be loaded.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::nvcc::{Toolkit, out_dir, run};

/// Libraries in the order the loader numbers them, and what their functions return before they are loaded:
/// CUDA_ERROR_STUB_LIBRARY, CUBLAS_STATUS_NOT_INITIALIZED (twice), CURAND_STATUS_NOT_INITIALIZED, NVRTC_ERROR_INTERNAL_ERROR.
const LIBRARIES: [(&str, u32); 5] = [("cuda", 34), ("cublasLt", 1), ("cublas", 1), ("curand", 101), ("nvrtc", 11)];
const EMPTY_ARCHIVE: &[u8] = b"!<arch>\n";

/// Writes `libcuda.a` with all trampolines, empty archives beside it, and the static runtime and C++ library under the
/// names that candle's build links.
pub fn archive(toolkit: &Toolkit) -> Result<(), String> {
    let Some(home) = &toolkit.home else { return Ok(()) };
    let folder = out_dir()?.join("link");
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let object = assemble()?;
    let trampolines = folder.join("libcuda.a");
    let _ = fs::remove_file(&trampolines);
    run(Command::new("ar").arg("crs").arg(&trampolines).arg(&object))?;
    for name in ["cublas", "cublasLt", "curand", "nvrtc"] {
        write(&folder.join(format!("lib{name}.a")), EMPTY_ARCHIVE)?;
    }
    copy(&home.join("lib/libcudart_static.a"), &folder.join("libcudart.a"))?;
    copy(&static_cpp()?, &folder.join("libstdc++.a"))?;
    // `moe` is candle's own.
    for name in ["cuda", "cublas", "cublasLt", "curand", "nvrtc", "cudart", "moe"] {
        // A linker that is told to take the shared library, and takes nothing else, finds the archive by this script.
        write(&folder.join(format!("lib{name}.so")), format!("INPUT(lib{name}.a)\n").as_bytes())?;
    }
    println!("cargo:rustc-link-search=native={}", folder.display());
    for name in ["dl", "rt", "pthread"] {
        println!("cargo:rustc-link-lib={name}");
    }
    Ok(())
}

/// Links the trampolines into the tests of this package, so that the loader is tested without a toolkit.
pub fn for_tests() -> Result<(), String> {
    if std::env::var("TARGET").as_deref() == Ok("x86_64-unknown-linux-gnu") {
        println!("cargo::rustc-link-arg-tests={}", assemble()?.display());
    }
    Ok(())
}

/// The object file with all trampolines.
fn assemble() -> Result<PathBuf, String> {
    let symbols = fs::read_to_string("cuda/symbols.txt").map_err(|error| format!("cuda/symbols.txt: {error}"))?;
    let out = out_dir()?;
    let (source, object) = (out.join("trampolines.s"), out.join("trampolines.o"));
    write(&source, assembly(&symbols)?.as_bytes())?;
    run(Command::new("cc").arg("-c").arg("-o").arg(&object).arg(&source))?;
    Ok(object)
}

/// x86-64 code: a jump and a table entry per function, and the list by which the loader finds both.
pub fn assembly(symbols: &str) -> Result<String, String> {
    let (mut jumps, mut table, mut names, mut entries) = (String::new(), String::new(), String::new(), String::new());
    let known = |result: std::fmt::Result| result.map_err(|error| error.to_string());
    for (number, line) in symbols.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let bad = || format!("cuda/symbols.txt:{}: expected `library function`, found `{line}`", number + 1);
        let (library, symbol) = line.split_once(' ').ok_or_else(bad)?;
        let index = LIBRARIES.iter().position(|known| known.0 == library).ok_or_else(bad)?;
        known(writeln!(
            jumps,
            ".globl {symbol}\n.hidden {symbol}\n.type {symbol},@function\n{symbol}:\n endbr64\n jmp *.Lslot_{symbol}(%rip)\n\
             .size {symbol},.-{symbol}"
        ))?;
        known(writeln!(table, ".Lslot_{symbol}: .quad .Labsent_{library}"))?;
        known(writeln!(names, ".Lname_{symbol}: .asciz \"{symbol}\""))?;
        known(writeln!(entries, " .quad .Lname_{symbol}, .Lslot_{symbol}, {index}"))?;
    }
    let mut absent = String::new();
    for (library, status) in LIBRARIES {
        known(writeln!(absent, ".Labsent_{library}:\n endbr64\n movl ${status}, %eax\n ret"))?;
    }
    let list = |name: &str| format!(".globl {name}\n.hidden {name}\n.type {name},@object\n{name}:\n");
    Ok(format!(
        ".text\n{absent}{jumps}.data\n.balign 8\n{table}.section .rodata\n{names}\
         .section .data.rel.ro,\"aw\"\n.balign 8\n{}{entries}{} .quad 0\n.section .note.GNU-stack,\"\",@progbits\n",
        list("fastchat_nvidia_functions"),
        list("fastchat_nvidia_functions_end"),
    ))
}

/// The C++ library as an archive: a shared one would raise the oldest Linux that the wheel runs on.
fn static_cpp() -> Result<PathBuf, String> {
    let output = Command::new("g++").arg("-print-file-name=libstdc++.a").output();
    let output = output.map_err(|error| format!("g++: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().into())
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    fs::write(path, bytes).map_err(|error| format!("{}: {error}", path.display()))
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    fs::copy(from, to).map(drop).map_err(|error| format!("{}: {error}", from.display()))
}
