//! From a path and devices to a model that runs: every rank packs its share, all agree on the size of their caches.
//! Knows no requests and no scheduling.

use std::path::Path;
use std::sync::Arc;

use fastchat_kernels::Collective;
use fastchat_models::{Decoder, LoadOptions, LoadedModel, ModelError, OpenModel};
use parking_lot::Mutex;

use crate::config::EngineConfig;
use crate::device::TensorParallelDevice;
use crate::error::EngineError;
use crate::followers::{Followers, Seat};
use crate::memory::MemoryPlan;
use crate::rank::Rank;
use crate::runner::Runner;

/// The devices of a model before it is loaded: the first one's here, a thread for each of the others.
#[derive(Debug)]
pub(crate) struct Devices {
    pub config: Arc<EngineConfig>,
    first: TensorParallelDevice,
    followers: Option<Followers>,
}

impl Devices {
    /// # Errors
    /// Without a device, or when the system starts no more threads.
    pub fn new(mut devices: Vec<TensorParallelDevice>, config: EngineConfig) -> Result<Self, EngineError> {
        let others = devices.split_off(devices.len().min(1));
        let none = || EngineError::invalid("tensor_parallel_size", "a model needs at least one device");
        let first = devices.pop().ok_or_else(none)?;
        let followers =
            if others.is_empty() { None } else { Some(Followers::start(others, first.collective.clone())?) };
        Ok(Self { config: Arc::new(config), first, followers })
    }

    /// The model at `path`, as the first rank loads it.
    ///
    /// # Errors
    /// As `OpenModel::new`.
    pub fn open(&self, path: &Path) -> Result<OpenModel, EngineError> {
        Ok(OpenModel::new(path, options(&self.first.collective, &self.config))?)
    }

    /// Packs the model at `path`, which is `model`, at every rank.
    ///
    /// # Errors
    /// As `OpenModel::pack`.
    pub fn pack(&mut self, path: &Path, model: OpenModel) -> Result<LoadedModel, EngineError> {
        let kernels = self.first.kernels.clone();
        let own = || model.pack(kernels).map_err(EngineError::from);
        let Some(followers) = &mut self.followers else { return own() };
        let (path, config) = (path.to_owned(), self.config.clone());
        let theirs = move |seat: &mut Seat| {
            let pack = || OpenModel::new(&path, options(&seat.collective, &config))?.pack(seat.kernels.clone());
            seat.decoder = Some(pack().map_err(|error: ModelError| EngineError::from(error))?.decoder);
            Ok(None)
        };
        followers.together(theirs, || Ok(own()?)).map_err(|failed| failed.error)
    }

    /// What the caches of all ranks get: as many blocks as the rank with the least memory has.
    ///
    /// # Errors
    /// As `MemoryPlan::new`.
    pub fn plan(&mut self, model: &LoadedModel) -> Result<MemoryPlan, EngineError> {
        let kernels = self.first.kernels.clone();
        let config = self.config.clone();
        let own = || MemoryPlan::new(&model.decoder, kernels.as_ref(), &config);
        let Some(followers) = &mut self.followers else { return own() };
        let plans: Arc<Mutex<Vec<MemoryPlan>>> = Arc::default();
        let (theirs, config) = (plans.clone(), config.clone());
        let plan = move |seat: &mut Seat| {
            let decoder = seat.decoder.as_ref().ok_or_else(not_loaded)?;
            theirs.lock().push(MemoryPlan::new(decoder, seat.kernels.as_ref(), &config)?);
            Ok(None)
        };
        let own = followers.together(plan, || Ok(own()?)).map_err(|failed| failed.error)?;
        let theirs = plans.lock();
        Ok(theirs.iter().fold(own, MemoryPlan::least))
    }

    /// The model with its caches, ready for steps.
    ///
    /// # Errors
    /// A device's, which has no memory for them.
    pub fn runner(self, decoder: Decoder, plan: MemoryPlan) -> Result<Runner, EngineError> {
        let (kernels, config) = (self.first.kernels, self.config.clone());
        let own = || Rank::new(decoder, kernels, &plan, &config);
        let Some(mut followers) = self.followers else { return Ok(Runner::new(own()?, None)) };
        let config = self.config;
        let theirs = move |seat: &mut Seat| {
            let decoder = seat.decoder.take().ok_or_else(not_loaded)?;
            seat.rank = Some(Rank::new(decoder, seat.kernels.clone(), &plan, &config)?);
            Ok(None)
        };
        let rank = followers.together(theirs, || Ok(own()?)).map_err(|failed| failed.error)?;
        Ok(Runner::new(rank, Some(followers)))
    }
}

/// How a rank loads a model.
fn options(collective: &Arc<dyn Collective>, config: &EngineConfig) -> LoadOptions {
    let ranks = (collective.size() > 1).then(|| collective.clone());
    let EngineConfig { max_model_len, quantize, mmproj, .. } = config;
    LoadOptions { max_model_len: *max_model_len, quantize: *quantize, mmproj: mmproj.clone(), ranks }
}

fn not_loaded() -> EngineError {
    EngineError::Internal("a rank has nothing loaded; this is a bug".to_owned())
}
