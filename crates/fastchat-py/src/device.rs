//! What can be learnt of a device without a model: whether its kernels are right, and how fast it is.

use std::path::PathBuf;

use fastchat_engine::EngineError;
use fastchat_kernels::{KernelOptions, probe, selftest};
use pyo3::prelude::*;

use crate::engine::device_choice;
use crate::errors::to_py;
use crate::kernels::open_device;

/// (operation, difference, bound, error) of every operation against the plain default on the CPU.
type Findings = Vec<(String, f32, f32, Option<String>)>;

/// Runs every operation of a device's kernels; returns their name and the findings.
#[pyfunction]
#[pyo3(signature = (device, *, cuda_libraries=Vec::new()))]
#[allow(clippy::needless_pass_by_value, reason = "sequences are converted into owned values")]
pub fn check_kernels(py: Python<'_>, device: &str, cuda_libraries: Vec<PathBuf>) -> PyResult<(String, Findings)> {
    let choice = device_choice(device)?;
    py.detach(|| {
        let kernels = open_device(choice, KernelOptions::default(), &cuda_libraries)?;
        let findings = selftest::run(kernels.as_ref()).into_iter();
        Ok((kernels.name(), findings.map(|f| (f.name, f.difference, f.bound, f.error)).collect()))
    })
    .map_err(|error: EngineError| to_py(&error))
}

/// (kernels, bytes a second, operations a second, (free, total) bytes of the device's own memory).
type Probe = (String, f64, f64, Option<(u64, u64)>);

/// Measures a large copy and a large matrix product.
#[pyfunction]
#[pyo3(signature = (device, *, cuda_libraries=Vec::new()))]
#[allow(clippy::needless_pass_by_value, reason = "sequences are converted into owned values")]
pub fn probe_device(py: Python<'_>, device: &str, cuda_libraries: Vec<PathBuf>) -> PyResult<Probe> {
    let choice = device_choice(device)?;
    py.detach(|| {
        let kernels = open_device(choice, KernelOptions::default(), &cuda_libraries)?;
        let memory = kernels.memory().map(|memory| (memory.free, memory.total));
        let rates =
            probe::rates(kernels.device()).map_err(|error| EngineError::Internal(format!("the probe: {error}")))?;
        Ok((kernels.name(), rates.bytes_per_second, rates.flops, memory))
    })
    .map_err(|error: EngineError| to_py(&error))
}
