//! The way to NVIDIA's libraries, with stand-ins for them: what is missing is named, nothing is used by halves, and then
//! calls arrive. Needs a C compiler and nothing of NVIDIA's.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(missing_docs, clippy::unwrap_used)] // a test may fail loudly

#[path = "../src/nvidia/loader.rs"]
mod loader;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

// The build links the trampolines into this test.
unsafe extern "C" {
    fn cuInit(flags: u32) -> i32;
    fn cuDeviceGetCount(count: *mut i32) -> i32;
    fn cublasCreate_v2(handle: *mut i32) -> i32;
}

const FILES: [(&str, &str); 4] = [
    ("cuda", "libcuda.so.1"),
    ("cublasLt", "libcublasLt.so.13"),
    ("cublas", "libcublas.so.13"),
    ("curand", "libcurand.so.10"),
];

/// A library that defines its functions, all but `without`.
fn stand_in(folder: &Path, library: &str, without: &str) {
    fs::create_dir_all(folder).unwrap();
    let symbols = fs::read_to_string("cuda/symbols.txt").unwrap();
    let mut code = String::new();
    for line in symbols.lines() {
        let Some((_, function)) = line.split_once(' ').filter(|(owner, name)| *owner == library && *name != without)
        else {
            continue;
        };
        let body = match function {
            "cuDeviceGetCount" => "*out = 3; return 0;",
            "cublasCreate_v2" => "*out = 5; return 0;",
            "cuInit" => "return 0;",
            _ => "return 999;",
        };
        writeln!(code, "int {function}(int *out) {{ {body} }}").unwrap();
    }
    let source = folder.join(format!("{library}.c"));
    fs::write(&source, code).unwrap();
    let file = FILES.iter().find(|(name, _)| *name == library).unwrap().1;
    let mut cc = Command::new("cc");
    let built = cc.args(["-shared", "-fPIC", "-w", "-o"]).arg(folder.join(file)).arg(source).status();
    assert!(built.unwrap().success());
}

fn statuses() -> (i32, i32, i32) {
    let mut out = 0;
    // SAFETY: these are the trampolines, or the stand-ins above, which write at most one integer.
    unsafe { (cuInit(0), cuDeviceGetCount(&raw mut out), cublasCreate_v2(&raw mut out)) }
}

#[test]
fn names_what_is_missing_and_takes_all_or_nothing() {
    if Path::new("/proc/driver/nvidia").exists() {
        return; // With a driver nothing is missing.
    }
    let root = std::env::temp_dir().join(format!("fastchat-loader-{}", std::process::id()));
    let folder = |name: &str| -> PathBuf { root.join(name) };
    stand_in(&folder("driver"), "cuda", "");
    for (library, _) in FILES {
        stand_in(&folder("old"), library, "cuDeviceGetCount");
        stand_in(&folder("whole"), library, "");
    }
    fs::create_dir_all(folder("broken")).unwrap();
    fs::write(folder("broken").join("libcuda.so.1"), "not a library").unwrap();
    let nowhere: [PathBuf; 0] = [];
    let refused = |folders: &[PathBuf], words: &[&str]| {
        let error = loader::load(folders).unwrap_err();
        assert!(words.iter().all(|word| error.contains(word)) && !error.contains('\n'), "{error}");
        assert_eq!(statuses(), (34, 34, 1), "nothing is used by halves");
    };
    refused(&nowhere, &["libcuda.so.1", "the NVIDIA driver", "the system's library path", "580"]);
    refused(&[folder("broken")], &["libcuda.so.1", "broken", "file too short"]);
    refused(&[folder("driver")], &["libcublasLt.so.13", "driver,", "fastchat-rs[cuda]"]);
    refused(&[folder("old")], &["libcuda.so.1", "cuDeviceGetCount", "too old"]);
    assert_eq!(loader::load(&[folder("whole")]), Ok(()));
    let mut count = 0;
    // SAFETY: the stand-in writes one integer.
    assert_eq!((unsafe { cuDeviceGetCount(&raw mut count) }, count), (0, 3));
    assert_eq!(statuses(), (0, 0, 0));
    // What is loaded stays loaded.
    assert_eq!(loader::load(&nowhere), Ok(()));
    fs::remove_dir_all(root).unwrap();
}
