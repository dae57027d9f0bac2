//! Graphs of a real GPU: what a stream was given between two calls of the driver, to be launched as one. Knows no kernels.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use candle_core::Result;
use candle_core::cuda_backend::cudarc::driver::CudaGraph;
use candle_core::cuda_backend::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use candle_core::cuda_backend::{CudaDevice, WrapErr};

use crate::{Capture, Graph, Work};

/// A graph, and what it was captured from: tensors whose addresses it holds live there.
struct GpuGraph {
    graph: CudaGraph,
    _work: Work,
}

// SAFETY: the driver's graph calls may come from any thread, one at a time (its "Graph object thread safety"); the type is
// not `Sync`, so there is one at a time.
unsafe impl Send for GpuGraph {}

impl std::fmt::Debug for GpuGraph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GpuGraph")
    }
}

impl Graph for GpuGraph {
    fn replay(&self) -> Result<()> {
        self.graph.launch().w()
    }
}

/// Runs `work`, and captures what it queues on the device's stream.
///
/// # Errors
/// Those of the run.
pub(super) fn capture(cuda: &CudaDevice, work: Work) -> Result<Capture> {
    // Shapes and strides that candle's kernels read from the device are kept there from the run on, and copies to the host
    // are refused while capturing. Other small copies to the device would be served from what the run has kept, and be old
    // in every replay: captured work has none, which the emulator's replays show.
    let _kept = cuda.enable_cuda_graph_htod_cache();
    work()?;
    Ok(match capture_again(cuda, &work) {
        Ok(graph) => Capture::Graph(Box::new(GpuGraph { graph, _work: work })),
        Err(error) => Capture::Failed(error),
    })
}

/// Captures `work`, of which the first run has made whatever is made once: modules, tables, counters.
fn capture_again(cuda: &CudaDevice, work: &Work) -> Result<CudaGraph> {
    let stream = cuda.cuda_stream();
    // Other threads may talk to the driver meanwhile: of this one alone, calls that cannot be captured are refused.
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).w()?;
    let queued = catch_unwind(AssertUnwindSafe(work));
    // What tensors could not give back is kept by the context for its next call. That call must end the capture instead,
    // and the one after it has nothing to do with it.
    let before = stream.context().check_err();
    let ended = stream.end_capture(CUgraphInstantiate_flags(0));
    let after = stream.context().check_err();
    queued.unwrap_or_else(|panic| resume_unwind(panic))?;
    before.and(after).w()?;
    match ended.w()? {
        Some(graph) => Ok(graph),
        None => candle_core::bail!("nothing was queued"),
    }
}
