//! A CUDA device as this process finds it: libraries, driver, one GPU of an age we have code for, its memory, and what
//! its errors mean. What is computed on it is decided elsewhere.

mod loader;
mod nccl;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::cuda_backend::CudaError;
use candle_core::cuda_backend::cudarc::cublas::sys::cublasStatus_t;
use candle_core::cuda_backend::cudarc::driver::sys::{self, CUresult};
use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError};
use candle_core::{Device, Error};

use self::nccl::NcclRank;
use crate::Kernels;
use crate::cuda::{CudaKernels, GpuRuntime};
use crate::device::{DeviceMemory, Fault, TensorParallelDevice};

/// Oldest compute capability there is code for.
const OLDEST: (i32, i32) = (8, 0);

/// Kernels of CUDA device `ordinal`.
///
/// # Errors
/// In one line, what is missing and where it was looked for.
pub fn open(ordinal: usize, bf16: bool, libraries: &[PathBuf]) -> Result<Arc<dyn Kernels>, String> {
    loader::load(libraries)?;
    Ok(Arc::new(CudaKernels::on_gpu(Gpu::open(ordinal)?, bf16)?))
}

/// Kernels of the CUDA devices `ordinals` and their links to each other, for one model.
///
/// # Errors
/// In one line, what is missing and where it was looked for.
pub fn open_ranks(
    ordinals: Range<usize>,
    bf16: bool,
    libraries: &[PathBuf],
) -> Result<Vec<TensorParallelDevice>, String> {
    loader::load(libraries)?;
    let gpus = ordinals.clone().map(Gpu::open).collect::<Result<Vec<_>, _>>()?;
    let runtimes = gpus.iter().cloned().map(GpuRuntime::new).collect::<Result<_, _>>()?;
    let numbers: Vec<_> = ordinals.map(|ordinal| ordinal as i32).collect();
    let links = NcclRank::all(&numbers, runtimes, libraries)?;
    let device = |(gpu, link)| {
        let kernels = Arc::new(CudaKernels::on_gpu(gpu, bf16)?);
        Ok(TensorParallelDevice { kernels, collective: Arc::new(link) })
    };
    gpus.into_iter().zip(links).map(device).collect()
}

/// One GPU.
#[derive(Clone, Debug)]
pub struct Gpu {
    device: Device,
    context: Arc<CudaContext>,
    name: String,
}

impl Gpu {
    fn open(ordinal: usize) -> Result<Self, String> {
        let count = CudaContext::device_count().map_err(driver)? as usize;
        if ordinal >= count {
            return Err(format!("the driver sees {count} CUDA device(s), so the number must be below {count}"));
        }
        // A stream of our own: the default one differs from thread to thread, and loading and stepping are on two.
        let device = Device::new_cuda_with_stream(ordinal).map_err(|error| first_line(&error))?;
        let Device::Cuda(cuda) = &device else { return Err("candle opened another kind of device".to_owned()) };
        // SAFETY: all tensors of this device are made and used on its one stream, in order; events guard nothing there.
        unsafe { cuda.disable_event_tracking() };
        let context = cuda.cuda_stream().context().clone();
        keep_freed_memory(ordinal)?;
        let (major, minor) = context.compute_capability().map_err(driver)?;
        let model = context.name().map_err(driver)?;
        if (major, minor) < OLDEST {
            return Err(format!("{model} has compute capability {major}.{minor}; {}.{} is needed", OLDEST.0, OLDEST.1));
        }
        Ok(Self { device, context, name: format!("cuda-sm{major}{minor}") })
    }
}

/// Lets the stream's pool keep what tensors give back: taking it again costs nothing, and what is free afterwards is what
/// the largest step so far has left.
fn keep_freed_memory(ordinal: usize) -> Result<(), String> {
    let mut pool = std::ptr::null_mut();
    let mut keep = u64::MAX;
    // SAFETY: the device exists, and both calls write to or read from locals that outlive them.
    let status = unsafe {
        sys::cuDeviceGetDefaultMemPool(&raw mut pool, ordinal as i32)
            .result()
            .and_then(|()| sys::cuMemPoolSetAttribute(pool, RELEASE_THRESHOLD, (&raw mut keep).cast()).result())
    };
    status.map_err(driver)
}

const RELEASE_THRESHOLD: sys::CUmemPool_attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;

impl Gpu {
    /// Where its tensors live.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What it is, e.g. `cuda-sm90`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its memory as it is now.
    pub fn memory(&self) -> Option<DeviceMemory> {
        let (free, total) = self.context.mem_get_info().ok()?;
        Some(DeviceMemory { free: free as u64, total: total as u64 })
    }

    /// The error of a launcher that returned the runtime's `status`.
    pub fn launched(launcher: &str, status: i32) -> Result<(), Error> {
        if status == 0 {
            return Ok(());
        }
        // The runtime numbers these errors as the driver does.
        let error = match STICKY.iter().find(|&&code| code as i32 == status) {
            Some(&code) => CudaError::from(DriverError(code)).into(),
            None if status == CUresult::CUDA_ERROR_OUT_OF_MEMORY as i32 => {
                CudaError::from(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)).into()
            }
            None => Error::Msg(format!("CUDA error {status}")),
        };
        Err(error.context(format!("kernel {launcher}")))
    }
}

/// What `error` says about the device it came from.
pub fn fault(error: &Error) -> Fault {
    match error {
        Error::Context { inner, .. } | Error::WithPath { inner, .. } | Error::WithBacktrace { inner, .. } => {
            fault(inner)
        }
        Error::Cuda(cause) => match cause.downcast_ref::<CudaError>() {
            Some(CudaError::Cuda(error) | CudaError::Load { cuda: error, .. }) => of_driver(error.0),
            Some(CudaError::Cublas(error)) if error.0 == cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED => {
                Fault::OutOfMemory
            }
            Some(CudaError::Cublas(error)) if error.0 == cublasStatus_t::CUBLAS_STATUS_EXECUTION_FAILED => {
                Fault::Sticky
            }
            _ => Fault::Plain,
        },
        _ => Fault::Plain,
    }
}

/// Errors after which a context is of no more use ("This leaves the process in an inconsistent state").
const STICKY: [CUresult; 11] = [
    CUresult::CUDA_ERROR_DEINITIALIZED,
    CUresult::CUDA_ERROR_ECC_UNCORRECTABLE,
    CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR,
    CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
    CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION,
    CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE,
    CUresult::CUDA_ERROR_INVALID_PC,
    CUresult::CUDA_ERROR_LAUNCH_FAILED,
    CUresult::CUDA_ERROR_LAUNCH_TIMEOUT,
    CUresult::CUDA_ERROR_MISALIGNED_ADDRESS,
    CUresult::CUDA_ERROR_ASSERT,
];

fn of_driver(code: CUresult) -> Fault {
    match code {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Fault::OutOfMemory,
        _ if STICKY.contains(&code) => Fault::Sticky,
        _ => Fault::Plain,
    }
}

fn driver(error: DriverError) -> String {
    match error.0 {
        CUresult::CUDA_ERROR_NO_DEVICE => "the NVIDIA driver is there but sees no GPU".to_owned(),
        _ => first_line(&error),
    }
}

/// Errors of candle end in a backtrace.
fn first_line(error: &impl std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or("no message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: CUresult) -> Error {
        CudaError::from(DriverError(code)).into()
    }

    #[test]
    fn launchers_speak_as_the_driver_does() {
        assert!(Gpu::launched("rms_norm", 0).is_ok());
        for (status, expected) in
            [(2, Fault::OutOfMemory), (700, Fault::Sticky), (719, Fault::Sticky), (1, Fault::Plain)]
        {
            let error = Gpu::launched("rms_norm", status).expect_err("not 0");
            assert_eq!(fault(&error), expected, "{status}");
            assert!(error.to_string().contains("rms_norm"), "{error}");
        }
    }

    #[test]
    fn tells_full_memory_from_a_lost_device() {
        assert_eq!(fault(&of(CUresult::CUDA_ERROR_OUT_OF_MEMORY)), Fault::OutOfMemory);
        assert_eq!(fault(&of(CUresult::CUDA_ERROR_OUT_OF_MEMORY).context("while stepping")), Fault::OutOfMemory);
        assert_eq!(fault(&of(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS)), Fault::Sticky);
        assert_eq!(fault(&of(CUresult::CUDA_ERROR_INVALID_VALUE)), Fault::Plain);
        assert_eq!(fault(&Error::Msg("out of memory".to_owned())), Fault::Plain);
    }
}
