//! Compiles `cuda/*.cu` into one static archive for every architecture we ship. Knows no kernel by name.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// Machine code for these, and PTX of the last for whatever comes later.
const ARCHITECTURES: [&str; 4] = ["80", "90a", "100", "120"];

/// A CUDA compiler and what lies around it.
pub struct Toolkit {
    nvcc: PathBuf,
    /// `None` for the stand-in of `make lint-cuda`, whose outputs are empty.
    pub home: Option<PathBuf>,
}

impl Toolkit {
    /// `CUDA_HOME`, else the compiler that `NVCC` names.
    pub fn find() -> Result<Self, String> {
        for name in ["CUDA_HOME", "NVCC"] {
            println!("cargo:rerun-if-env-changed={name}");
        }
        if env::var("TARGET").as_deref() != Ok("x86_64-unknown-linux-gnu") {
            return Err("feature cuda is for x86_64-unknown-linux-gnu".to_owned());
        }
        if let Some(home) = env::var_os("CUDA_HOME").map(PathBuf::from) {
            return Ok(Self { nvcc: home.join("bin/nvcc"), home: Some(home) });
        }
        let nvcc = env::var_os("NVCC").map(PathBuf::from);
        let nvcc = nvcc.ok_or("feature cuda needs CUDA_HOME; `make cuda-toolkit` makes one in .cuda")?;
        Ok(Self { nvcc, home: None })
    }
}

/// Where cargo wants what is built.
pub fn out_dir() -> Result<PathBuf, String> {
    env::var_os("OUT_DIR").map(PathBuf::from).ok_or_else(|| "cargo sets OUT_DIR".to_owned())
}

/// Runs a program to its end.
pub fn run(command: &mut Command) -> Result<(), String> {
    let status = command.status().map_err(|error| format!("{command:?}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}")) }
}

/// All `.cu` files, as many at a time as cargo allows.
pub fn compile(toolkit: &Toolkit) -> Result<(), String> {
    println!("cargo:rerun-if-changed=cuda");
    let mut sources = Vec::new();
    for entry in fs::read_dir("cuda").map_err(|error| format!("cuda/: {error}"))?.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "cu") {
            sources.push(path);
        }
    }
    if sources.is_empty() {
        return Ok(());
    }
    sources.sort();
    let out = out_dir()?;
    let objects: Vec<PathBuf> = sources.iter().map(|path| object(&out, path)).collect();
    let queue = Mutex::new(sources.iter().zip(&objects));
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1_usize);
    let work = || -> Result<(), String> {
        loop {
            let next = queue.lock().map_err(|_| "another compilation panicked")?.next();
            let Some((source, object)) = next else { return Ok(()) };
            run(&mut command(toolkit, source, object))?;
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.min(sources.len())).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| "a compilation panicked")?)
    })?;
    let archive = out.join("libfastchat_cuda.a");
    let _ = fs::remove_file(&archive);
    run(Command::new(&toolkit.nvcc).arg("--lib").arg("-o").arg(&archive).args(&objects))?;
    println!("cargo:rustc-link-search=native={}", out.display());
    if toolkit.home.is_some() {
        println!("cargo:rustc-link-lib=static=fastchat_cuda");
    }
    Ok(())
}

fn object(out: &Path, source: &Path) -> PathBuf {
    out.join(source.file_name().unwrap_or_default()).with_extension("o")
}

fn command(toolkit: &Toolkit, source: &Path, object: &Path) -> Command {
    let mut command = Command::new(&toolkit.nvcc);
    command.args(["-std=c++17", "-O3", "-Werror", "all-warnings", "--expt-relaxed-constexpr", "-lineinfo"]);
    command.args(["--compress-mode=size", "-Xcompiler", "-fPIC", "-Icuda"]);
    for architecture in ARCHITECTURES {
        command.arg(format!("-gencode=arch=compute_{architecture},code=sm_{architecture}"));
    }
    command.arg("-gencode=arch=compute_120,code=compute_120");
    command.arg("-c").arg("-o").arg(object).arg(source);
    command
}
