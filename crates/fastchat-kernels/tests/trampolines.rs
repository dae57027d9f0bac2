//! The archive that stands for NVIDIA's libraries: its functions fail before the table is filled, and reach what is put
//! there. Runs where the wheel is built, x86-64 Linux, without anything of NVIDIA's.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
// A test may fail loudly; the build script uses the rest, and speaks to cargo on its output.
#![allow(missing_docs, dead_code, clippy::unwrap_used, clippy::print_stdout)]

#[path = "../build/nvcc.rs"]
mod nvcc;
#[path = "../build/trampolines.rs"]
mod trampolines;

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

#[test]
fn functions_fail_until_they_are_found() {
    let folder = std::env::temp_dir().join(format!("fastchat-trampolines-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let symbols = fs::read_to_string("cuda/symbols.txt").unwrap();
    let count = symbols.lines().filter(|line| !line.starts_with('#')).count();
    fs::write(folder.join("trampolines.s"), trampolines::assembly(&symbols).unwrap()).unwrap();
    let program = folder.join("program");
    let sources = [folder.join("trampolines.s"), "tests/nvidia/trampolines.c".into()];
    // Bound at once, as the extension is.
    let built = Command::new("cc").args(["-fPIE", "-pie", "-Wl,-z,now", "-o"]).arg(&program).args(sources).status();
    assert!(built.unwrap().success());
    let output = Command::new(&program).output().unwrap();
    fs::remove_dir_all(&folder).unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("34 1 1 101 {count} 7 42\n"));
}

#[test]
fn a_bad_line_is_named() {
    for line in ["cuInit", "cudart cudaMalloc"] {
        let error = trampolines::assembly(&format!("# names\ncuda cuInit\n{line}\n")).unwrap_err();
        assert!(error.contains("symbols.txt:3") && error.contains(line), "{error}");
    }
}

#[test]
fn no_function_is_listed_twice() {
    let symbols = fs::read_to_string("cuda/symbols.txt").unwrap();
    let mut seen = BTreeSet::new();
    assert!(symbols.lines().all(|line| seen.insert(line)));
}
