//! GPUs of one process that speak to each other through NCCL, which is loaded when several are asked for. Terms are gathered
//! and not summed there: which order NCCL adds in depends on how much there is to add.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::PathBuf;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::cuda_backend::CudaError;
use candle_core::cuda_backend::cudarc::driver::DriverError;
use candle_core::cuda_backend::cudarc::driver::sys::CUresult;
use candle_core::{DType, Error, Result, Tensor, bail};
use libloading::os::unix::Library;

use super::loader::{Wanted, open};
use crate::Collective;
use crate::cuda::{GpuRuntime, Runtime};

const NCCL: Wanted =
    Wanted { file: "libnccl.so.2", what: "NCCL 2", remedy: "`pip install 'fastchat-rs[tensor-parallel]'` brings it" };

/// `ncclFloat32`.
const FLOAT32: c_int = 7;

type Comm = *mut c_void;

/// What is called of the library, with the signatures of nccl.h.
#[derive(Debug)]
struct Api {
    comm_init_all: unsafe extern "C" fn(*mut Comm, c_int, *const c_int) -> c_int,
    all_gather: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Comm, *mut c_void) -> c_int,
    comm_abort: unsafe extern "C" fn(Comm) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    /// Keeps the functions where they are.
    _library: Library,
}

impl Api {
    fn load(folders: &[PathBuf]) -> std::result::Result<Self, String> {
        let library = open(&NCCL, folders)?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the field's type is the signature that nccl.h gives the function.
                *unsafe { library.get($name) }.map_err(|error| format!("{}: {error}", NCCL.file))?
            };
        }
        Ok(Self {
            comm_init_all: function!(b"ncclCommInitAll\0"),
            all_gather: function!(b"ncclAllGather\0"),
            comm_abort: function!(b"ncclCommAbort\0"),
            error_string: function!(b"ncclGetErrorString\0"),
            _library: library,
        })
    }

    fn check(&self, status: c_int) -> std::result::Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the library gives a string of its own for any status.
        let text = unsafe { CStr::from_ptr((self.error_string)(status)) };
        Err(format!("NCCL: {}", text.to_string_lossy()))
    }
}

/// The communicators of all ranks of a model.
#[derive(Debug)]
struct Group {
    api: Api,
    comms: Vec<Comm>,
    aborted: AtomicBool,
}

// SAFETY: NCCL's communicators may be used from any thread, each from one at a time, which is its rank's; `ncclCommAbort` may
// be called from another thread meanwhile.
unsafe impl Send for Group {}
// SAFETY: as above.
unsafe impl Sync for Group {}

impl Group {
    /// Ends what runs on any of the GPUs and waits for another. The communicators are of no more use.
    fn abort(&self) {
        if self.aborted.swap(true, Ordering::SeqCst) {
            return;
        }
        for &comm in &self.comms {
            // SAFETY: the communicator is alive: only here is one ended, once. What an abort fails with changes nothing.
            unsafe { (self.api.comm_abort)(comm) };
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.abort();
    }
}

/// One GPU of those that compute a model.
#[derive(Debug)]
pub struct NcclRank {
    rank: usize,
    group: Arc<Group>,
    runtime: GpuRuntime,
}

impl NcclRank {
    /// A link for each GPU of a model; `ordinals` are the driver's numbers of those of `runtimes`.
    ///
    /// # Errors
    /// In one line, that NCCL is missing, or what it says.
    pub fn all(
        ordinals: &[c_int],
        runtimes: Vec<GpuRuntime>,
        libraries: &[PathBuf],
    ) -> std::result::Result<Vec<Self>, String> {
        let api = Api::load(libraries)?;
        let mut comms = vec![null_mut(); ordinals.len()];
        // SAFETY: both arrays have as many entries as the number says.
        let status = unsafe { (api.comm_init_all)(comms.as_mut_ptr(), ordinals.len() as c_int, ordinals.as_ptr()) };
        api.check(status)?;
        let group = Arc::new(Group { api, comms, aborted: AtomicBool::new(false) });
        let rank = |(rank, runtime)| Self { rank, group: group.clone(), runtime };
        Ok(runtimes.into_iter().enumerate().map(rank).collect())
    }
}

impl Collective for NcclRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.group.comms.len()
    }

    fn all_gather(&self, own: &Tensor) -> Result<Vec<Tensor>> {
        if own.dtype() != DType::F32 {
            bail!("ranks gather f32, not {:?}", own.dtype());
        }
        if self.group.aborted.load(Ordering::SeqCst) {
            return Err(lost("another device of this model has failed"));
        }
        let own = own.contiguous()?;
        let shape = [&[self.size()], own.dims()].concat();
        let all = self.runtime.empty(&shape, DType::F32)?;
        let (from, to) = (self.runtime.address(&own)?, self.runtime.address(&all)?);
        let (comm, stream) = (self.group.comms[self.rank], self.runtime.stream());
        // SAFETY: `from` has as many floats and `to` as many from every rank; both are given back in the order of the stream.
        let status = unsafe { (self.group.api.all_gather)(from, to, own.elem_count(), FLOAT32, comm, stream.cast()) };
        self.group.api.check(status).map_err(|problem| lost(&problem))?;
        (0..self.size()).map(|rank| all.get(rank)).collect()
    }

    fn abort(&self) {
        self.group.abort();
    }
}

/// A communicator that has failed does not serve again, so the model is lost as with a sticky error of the driver.
fn lost(problem: &str) -> Error {
    let error: Error = CudaError::from(DriverError(CUresult::CUDA_ERROR_LAUNCH_FAILED)).into();
    error.context(problem.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Fault;

    #[test]
    fn a_lost_rank_is_a_lost_model() {
        let error = lost("NCCL: unhandled system error");
        assert_eq!(super::super::fault(&error), Fault::Sticky);
        assert!(error.to_string().contains("NCCL: unhandled system error"), "{error}");
    }

    #[test]
    fn says_what_brings_nccl() {
        let folder = std::env::temp_dir();
        match Api::load(&[folder]) {
            // It is there: what it says of a status is text.
            Ok(api) => assert!(api.check(1).expect_err("not 0").starts_with("NCCL: ")),
            Err(problem) => assert!(problem.contains("fastchat-rs[tensor-parallel]"), "{problem}"),
        }
    }
}
