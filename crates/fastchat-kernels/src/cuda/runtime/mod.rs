//! What the overrides need of a device: memory, addresses, a stream, and the launchers compiled for it.

#[cfg(feature = "cuda")]
mod device;
#[cfg(feature = "cuda")]
mod graph;
#[cfg(feature = "cuda")]
mod staging;

use std::ffi::c_void;
use std::fmt::Debug;

use candle_core::{DType, Device, Error, Result, Tensor};

#[cfg(feature = "cuda")]
pub use device::GpuRuntime;

pub use super::launchers::{Launchers, Stream};
use crate::{Capture, DeviceMemory, Fault, PendingTokens, Work};

/// A device that runs the kernels.
pub trait Runtime: Send + Sync + Debug {
    /// Where tensors live.
    fn device(&self) -> &Device;

    /// What serves the calls, for logs and the fingerprint.
    fn name(&self) -> String;

    /// The kernels compiled for it.
    fn launchers(&self) -> &Launchers;

    /// Where launches are queued.
    fn stream(&self) -> Stream;

    /// A tensor of unset elements.
    ///
    /// # Errors
    /// The allocation error of the device.
    fn empty(&self, shape: &[usize], dtype: DType) -> Result<Tensor>;

    /// The first element of a contiguous tensor of this device.
    ///
    /// # Errors
    /// For a tensor that is neither.
    fn address(&self, tensor: &Tensor) -> Result<*mut c_void>;

    /// Writes words over the first elements of a contiguous u32 tensor, in the order of the stream. The host goes on.
    ///
    /// # Errors
    /// For a tensor that is not as long, or the device's.
    fn write(&self, tensor: &Tensor, words: &[u32]) -> Result<()>;

    /// The elements of a contiguous u32 tensor as they are once what is queued so far has run.
    ///
    /// # Errors
    /// The device's.
    fn read_later(&self, tensor: &Tensor) -> Result<Box<dyn PendingTokens>>;

    /// Tells that the next launch follows addresses into the tensor.
    ///
    /// # Errors
    /// For a tensor that is not contiguous and of this device.
    fn reach(&self, _tensor: &Tensor) -> Result<()> {
        Ok(())
    }

    /// Ends one launcher's call, which returned `status`.
    ///
    /// # Errors
    /// What the status says.
    fn finish(&self, launcher: &'static str, status: i32) -> Result<()>;

    /// Memory of the device as it is now; `None` where tensors lie in the host's.
    fn memory(&self) -> Option<DeviceMemory> {
        None
    }

    /// What an error says about the device.
    fn fault(&self, _error: &Error) -> Fault {
        Fault::Plain
    }

    /// Whether it captures work.
    fn captures(&self) -> bool;

    /// Runs `work`, and captures what it queues.
    ///
    /// # Errors
    /// Those of the run.
    fn capture(&self, work: Work) -> Result<Capture>;

    /// Multiprocessors, by which work is cut.
    fn processors(&self) -> usize;
}
