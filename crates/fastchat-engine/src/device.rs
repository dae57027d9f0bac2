//! The hardware a model runs on, as the engine sees it: opened by choice, and what a failed step says about it. Knows
//! nothing of drivers.

use std::path::PathBuf;
use std::sync::Arc;

pub use fastchat_kernels::device::TensorParallelDevice;
use fastchat_kernels::{DeviceChoice, Fault, KernelOptions, Kernels, device};

use crate::error::EngineError;

/// Kernels of `choice`; `libraries` are folders that may hold NVIDIA's.
///
/// # Errors
/// What a device that was asked for by name lacks, and where it was looked for.
pub fn open_device(
    choice: DeviceChoice,
    options: KernelOptions,
    libraries: &[PathBuf],
) -> Result<Arc<dyn Kernels>, EngineError> {
    device::open(choice, options, libraries).map_err(|problem| EngineError::invalid("device", problem))
}

/// As many devices as `size` from `choice` on, for one model.
///
/// # Errors
/// As `open_device`; also when there are fewer, or what they need to speak to each other is missing.
pub fn open_devices(
    choice: DeviceChoice,
    size: usize,
    options: KernelOptions,
    libraries: &[PathBuf],
) -> Result<Vec<TensorParallelDevice>, EngineError> {
    let param = if size > 1 { "tensor_parallel_size" } else { "device" };
    device::open_all(choice, size, options, libraries).map_err(|problem| EngineError::invalid(param, problem))
}

/// Why a step gave nothing, and what that says about the device.
#[derive(Debug)]
pub(crate) struct StepError {
    pub error: EngineError,
    pub fault: Fault,
}

impl From<EngineError> for StepError {
    fn from(error: EngineError) -> Self {
        Self { error, fault: Fault::Plain }
    }
}
