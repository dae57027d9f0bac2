//! Which hardware serves: what can be asked for, and the way from there to kernels. Says what is missing and where it
//! was looked for, so that nobody has to guess why a GPU is idle.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use crate::cpu::CpuKernels;
use crate::{Collective, HostRank, Kernels};

/// What can be asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first CUDA device if this build and this machine can use one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA device by its number, or an error.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |digits: &str| digits.parse().ok().filter(|&ordinal: &usize| ordinal < 1024);
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(number)
                .map(Self::Cuda)
                .ok_or_else(|| format!("device is '{text}'; it must be auto, cpu, cuda or cuda:N")),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// Memory of a device with memory of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Bytes nobody uses.
    pub free: u64,
    /// Bytes there are.
    pub total: u64,
}

/// What the error of an operation says about the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: the operation failed, the next one may succeed.
    Plain,
    /// Its memory is full; with less work in the step it may do.
    OutOfMemory,
    /// Every operation after this one fails too, until the process ends.
    Sticky,
}

/// How a device computes.
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelOptions {
    /// Threads of a CPU; `None` is what affinity and cgroup quota allow.
    pub threads: Option<usize>,
    /// Rounds inputs of bf16 weights to bf16 where the device multiplies that; else such products have the precision of
    /// f32. `None` rounds on a GPU, where it is what every server does.
    pub bf16_products: Option<bool>,
}

/// One of the devices that compute a model together.
#[derive(Debug)]
pub struct TensorParallelDevice {
    /// Its kernels.
    pub kernels: Arc<dyn Kernels>,
    /// Its link to the others.
    pub collective: Arc<dyn Collective>,
}

impl TensorParallelDevice {
    /// The only one.
    pub fn alone(kernels: Arc<dyn Kernels>) -> Self {
        Self { kernels, collective: Arc::new(HostRank::alone()) }
    }
}

/// Opens `size` devices from `choice` on, in the order of their numbers, for one model. `libraries` as in `open`.
///
/// # Errors
/// In one line, as `open`; also what they lack to speak to each other.
pub fn open_all(
    choice: DeviceChoice,
    size: usize,
    options: KernelOptions,
    libraries: &[PathBuf],
) -> Result<Vec<TensorParallelDevice>, String> {
    let first = match choice {
        _ if size == 1 => return Ok(vec![TensorParallelDevice::alone(open(choice, options, libraries)?)]),
        DeviceChoice::Cpu => {
            return Err(format!("tensor_parallel_size is {size}; the cores of a CPU are one device, so it must be 1"));
        }
        DeviceChoice::Auto => 0,
        DeviceChoice::Cuda(ordinal) => ordinal,
    };
    let bf16 = options.bf16_products != Some(false);
    cuda_ranks(first..first + size, bf16, libraries)
        .map_err(|problem| format!("tensor_parallel_size is {size}, from cuda:{first} on: {problem}"))
}

/// Opens the kernels of `choice`. `libraries` are folders to look for NVIDIA's libraries in before the system's.
///
/// # Errors
/// In one line, what a CUDA device that was asked for by name lacks.
pub fn open(choice: DeviceChoice, options: KernelOptions, libraries: &[PathBuf]) -> Result<Arc<dyn Kernels>, String> {
    let bf16 = options.bf16_products != Some(false);
    let kernels = if options.bf16_products == Some(true) { CpuKernels::with_bf16_products } else { CpuKernels::new };
    let cpu = || -> Arc<dyn Kernels> { Arc::new(kernels(options.threads)) };
    match choice {
        DeviceChoice::Cpu => Ok(cpu()),
        DeviceChoice::Auto => Ok(cuda(0, bf16, libraries).unwrap_or_else(|_| cpu())),
        DeviceChoice::Cuda(ordinal) => {
            cuda(ordinal, bf16, libraries).map_err(|problem| format!("device {choice} cannot be used: {problem}"))
        }
    }
}

#[cfg(feature = "cuda")]
fn cuda(ordinal: usize, bf16: bool, libraries: &[PathBuf]) -> Result<Arc<dyn Kernels>, String> {
    crate::nvidia::open(ordinal, bf16, libraries)
}

#[cfg(feature = "cuda")]
fn cuda_ranks(ordinals: Range<usize>, bf16: bool, libraries: &[PathBuf]) -> Result<Vec<TensorParallelDevice>, String> {
    crate::nvidia::open_ranks(ordinals, bf16, libraries)
}

#[cfg(not(feature = "cuda"))]
const NO_CUDA: &str = "this build of fastchat-rs has no CUDA code; the wheel made by `make wheel-cuda` has";

#[cfg(not(feature = "cuda"))]
fn cuda(_ordinal: usize, _bf16: bool, _libraries: &[PathBuf]) -> Result<Arc<dyn Kernels>, String> {
    Err(NO_CUDA.to_owned())
}

#[cfg(not(feature = "cuda"))]
fn cuda_ranks(_: Range<usize>, _: bool, _: &[PathBuf]) -> Result<Vec<TensorParallelDevice>, String> {
    Err(NO_CUDA.to_owned())
}
