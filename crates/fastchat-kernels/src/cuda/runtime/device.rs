//! The runtime of a real GPU: candle's tensors, on the one stream that loading and stepping share.

use std::ffi::c_void;

use candle_core::cuda_backend::cudarc::driver::{DevicePtr, sys};
use candle_core::cuda_backend::{CudaDevice, CudaStorage, CudaStorageSlice};
use candle_core::{DType, Device, Error, Result, Storage, Tensor, bail};

use super::staging::Staging;
use super::{Launchers, Runtime, Stream, graph};
use crate::nvidia::{Gpu, fault};
use crate::{Capture, DeviceMemory, Fault, PendingTokens, Work};

mod linked {
    crate::each_launcher!(crate::linked_launchers, "fc_");
}

/// A GPU, opened.
#[derive(Debug)]
pub struct GpuRuntime {
    gpu: Gpu,
    cuda: CudaDevice,
    processors: usize,
    staging: Staging,
}

impl GpuRuntime {
    /// Over an opened GPU.
    ///
    /// # Errors
    /// The driver's, in one line.
    pub fn new(gpu: Gpu) -> std::result::Result<Self, String> {
        let Device::Cuda(cuda) = gpu.device().clone() else {
            return Err("not a CUDA device; this is a bug".to_owned());
        };
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let processors = cuda.cuda_stream().context().attribute(attribute).map_err(|error| error.to_string())?;
        let staging = Staging::new(cuda.cuda_stream());
        Ok(Self { gpu, cuda, processors: processors as usize, staging })
    }

    /// Address of a u32 tensor of at least `words` elements.
    fn words(&self, tensor: &Tensor, words: usize) -> Result<u64> {
        if tensor.dtype() != DType::U32 || tensor.elem_count() < words {
            bail!("{words} words for a tensor {:?} of {:?}", tensor.dims(), tensor.dtype());
        }
        Ok(self.address(tensor)?.addr() as u64)
    }

    fn start(&self, storage: &CudaStorage) -> Result<u64> {
        let stream = self.cuda.cuda_stream();
        macro_rules! of {
            ($slice:expr) => {
                $slice.device_ptr(&stream).0
            };
        }
        Ok(match &storage.slice {
            CudaStorageSlice::U8(slice) => of!(slice),
            CudaStorageSlice::U32(slice) => of!(slice),
            CudaStorageSlice::I32(slice) => of!(slice),
            CudaStorageSlice::I64(slice) => of!(slice),
            CudaStorageSlice::F16(slice) => of!(slice),
            CudaStorageSlice::BF16(slice) => of!(slice),
            CudaStorageSlice::F32(slice) => of!(slice),
            CudaStorageSlice::F64(slice) => of!(slice),
            _ => bail!("no kernel takes a tensor of this type"),
        })
    }
}

impl Runtime for GpuRuntime {
    fn device(&self) -> &Device {
        self.gpu.device()
    }

    fn name(&self) -> String {
        self.gpu.name().to_owned()
    }

    fn memory(&self) -> Option<DeviceMemory> {
        self.gpu.memory()
    }

    fn fault(&self, error: &Error) -> Fault {
        fault(error)
    }

    fn launchers(&self) -> &Launchers {
        &linked::LAUNCHERS
    }

    fn stream(&self) -> Stream {
        self.cuda.cuda_stream().cu_stream().cast()
    }

    fn empty(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        // SAFETY: who asks for unset elements writes all of them before anything reads one.
        unsafe { Tensor::empty(shape, dtype, self.device()) }
    }

    fn address(&self, tensor: &Tensor) -> Result<*mut c_void> {
        let (storage, layout) = tensor.storage_and_layout();
        let Some((start, _)) = layout.contiguous_offsets() else { bail!("kernels need contiguous tensors") };
        let Storage::Cuda(storage) = &*storage else {
            bail!("a kernel of the GPU was handed a tensor of another device")
        };
        let address = self.start(storage)? + (start * tensor.dtype().size_in_bytes()) as u64;
        Ok(std::ptr::without_provenance_mut(address as usize))
    }

    fn write(&self, tensor: &Tensor, words: &[u32]) -> Result<()> {
        let to = self.words(tensor, words.len())?;
        // SAFETY: the tensor has as many words, and device memory is given back in the order of the stream.
        unsafe { self.staging.write(to, words) }
    }

    fn read_later(&self, tensor: &Tensor) -> Result<Box<dyn PendingTokens>> {
        let words = tensor.elem_count();
        let from = self.words(tensor, words)?;
        // SAFETY: as in `write`.
        unsafe { self.staging.read_later(from, words) }
    }

    fn finish(&self, launcher: &'static str, status: i32) -> Result<()> {
        Gpu::launched(launcher, status)
    }

    fn captures(&self) -> bool {
        true
    }

    fn capture(&self, work: Work) -> Result<Capture> {
        graph::capture(&self.cuda, work)
    }

    fn processors(&self) -> usize {
        self.processors
    }
}
