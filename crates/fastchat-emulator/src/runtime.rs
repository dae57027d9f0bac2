//! The emulator of `emu/` as a device: device memory is the host's, unset elements are NaN, launches end before they return.
//! A replay runs the captured work again, which shows that it reads what has changed from memory and not from the host.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Mutex;

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Result, Tensor, bail};

use fastchat_kernels::cuda::{Launchers, Runtime, Stream};
use fastchat_kernels::{Capture, Graph, PendingTokens, Work};

mod plain {
    fastchat_kernels::each_launcher!(fastchat_kernels::linked_launchers, "fc_");
}

mod checked {
    fastchat_kernels::each_launcher!(fastchat_kernels::linked_launchers, "fcc_");
}

unsafe extern "C" {
    fn emu_allow(start: *const c_void, bytes: usize);
    fn emu_finish(out: *mut u8, room: usize) -> usize;
}

/// A device that is none.
#[derive(Debug)]
pub struct Emulator {
    launchers: Launchers,
    checked: bool,
}

impl Emulator {
    /// With every access to memory watched, or without.
    pub fn new(checked: bool) -> Self {
        Self { launchers: if checked { checked::LAUNCHERS } else { plain::LAUNCHERS }, checked }
    }
}

/// What was captured, to be run again.
struct Again(Work);

impl std::fmt::Debug for Again {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Again")
    }
}

impl Graph for Again {
    fn replay(&self) -> Result<()> {
        (self.0)()
    }
}

/// Notes where a tensor's elements lie, and how many bytes there are.
struct Address(Mutex<Option<(*mut c_void, usize)>>);

// SAFETY: the pointer is only carried out of `inplace_op1`, which runs on the calling thread.
unsafe impl Sync for Address {}
// SAFETY: as above.
unsafe impl Send for Address {}

impl InplaceOp1 for Address {
    fn name(&self) -> &'static str {
        "address"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("kernels need contiguous tensors") };
        macro_rules! of {
            ($values:expr) => {{
                let values = &mut $values[start..end];
                (values.as_mut_ptr().cast(), std::mem::size_of_val(values))
            }};
        }
        let found = match storage {
            CpuStorage::U8(values) => of!(values),
            CpuStorage::U32(values) => of!(values),
            CpuStorage::I32(values) => of!(values),
            CpuStorage::I64(values) => of!(values),
            CpuStorage::F16(values) => of!(values),
            CpuStorage::BF16(values) => of!(values),
            CpuStorage::F32(values) => of!(values),
            CpuStorage::F64(values) => of!(values),
            _ => bail!("no kernel takes a tensor of this type"),
        };
        if let Ok(mut address) = self.0.lock() {
            *address = Some(found);
        }
        Ok(())
    }
}

impl Runtime for Emulator {
    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn name(&self) -> String {
        if self.checked { "cuda-emulated-checked".to_owned() } else { "cuda-emulated".to_owned() }
    }

    fn launchers(&self) -> &Launchers {
        &self.launchers
    }

    fn stream(&self) -> Stream {
        null_mut()
    }

    fn empty(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        match dtype {
            DType::F32 => Tensor::full(f32::NAN, shape, &Device::Cpu)?.contiguous(),
            DType::U8 => Tensor::full(0xcbu8, shape, &Device::Cpu)?.contiguous(),
            DType::U32 => Tensor::full(0xcbcb_cbcbu32, shape, &Device::Cpu)?.contiguous(),
            other => bail!("no kernel leaves a result of {other:?}"),
        }
    }

    fn address(&self, tensor: &Tensor) -> Result<*mut c_void> {
        let address = Address(Mutex::new(None));
        tensor.inplace_op1(&address)?;
        let Some((start, bytes)) = address.0.into_inner().ok().flatten() else { bail!("a tensor without an address") };
        // SAFETY: only noted, for the bounds check.
        unsafe { emu_allow(start, bytes) };
        Ok(start)
    }

    fn write(&self, tensor: &Tensor, words: &[u32]) -> Result<()> {
        tensor.slice_set(&Tensor::new(words, &Device::Cpu)?, 0, 0)
    }

    fn read_later(&self, tensor: &Tensor) -> Result<Box<dyn PendingTokens>> {
        Ok(Box::new(tensor.to_vec1::<u32>()?))
    }

    fn reach(&self, tensor: &Tensor) -> Result<()> {
        self.address(tensor).map(|_| ())
    }

    fn finish(&self, launcher: &'static str, status: i32) -> Result<()> {
        let mut message = vec![0; 512];
        // SAFETY: writes at most the length it is given.
        let length = unsafe { emu_finish(message.as_mut_ptr(), message.len()) };
        message.truncate(length);
        if status != 0 || length != 0 {
            bail!("{launcher} failed with {status}: {}", String::from_utf8_lossy(&message));
        }
        Ok(())
    }

    fn captures(&self) -> bool {
        true
    }

    fn capture(&self, work: Work) -> Result<Capture> {
        work()?;
        Ok(Capture::Graph(Box::new(Again(work))))
    }

    fn processors(&self) -> usize {
        4
    }
}
