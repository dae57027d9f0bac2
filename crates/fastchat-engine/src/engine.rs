//! One engine: loads a model, starts its thread, and answers what can be answered on the caller's.

use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::channel;
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use fastchat_kernels::Kernels;
use fastchat_models::TokenizerSource;
use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::asides::Asides;
use crate::command::Command;
use crate::compilations::Compilations;
use crate::config::{EngineConfig, Prompt, Request};
use crate::constraint::MaskRules;
use crate::device::{TensorParallelDevice, open_devices};
use crate::doorbell::Doorbell;
use crate::error::EngineError;
use crate::front::{Front, no_tokenizer};
use crate::handle::RequestHandle;
use crate::info::{EngineStats, ModelInfo};
use crate::loading::Devices;
use crate::mask_watch::MaskWatch;
use crate::media::EncoderQueue;
use crate::prefix_disk::{DiskFigures, PrefixDisk};
use crate::restore::open_disk;
use crate::scheduler::{Scheduler, SchedulerConfig};
use crate::subscription::Subscription;
use crate::text::{ChatFormat, TextError, Tokenizer};
use crate::worker::{Book, Worker};

/// Between looks whether the engine is idle, and how many there are before what warms it up is done beside its work.
const WARM_UP_PAUSE: Duration = Duration::from_millis(300);
const WARM_UP_LOOKS: usize = 30;

/// One loaded model with its own thread.
#[derive(Debug)]
pub struct Engine {
    front: Arc<Front>,
    figures: Option<DiskFigures>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Engine {
    /// Loads a model onto `config.device` and starts its thread.
    ///
    /// # Errors
    /// What is wrong with the configuration, the model, or the memory there is, or missing of the device.
    pub fn load(path: &Path, config: EngineConfig) -> Result<Self, EngineError> {
        config.check()?;
        let devices = open_devices(config.device, config.tensor_parallel_size, config.kernel_options(), &[])?;
        Self::load_on(path, config, devices)
    }

    /// As `load`, on the given kernels.
    ///
    /// # Errors
    /// As `load`.
    pub fn load_with(path: &Path, config: EngineConfig, kernels: Arc<dyn Kernels>) -> Result<Self, EngineError> {
        Self::load_on(path, config, vec![TensorParallelDevice::alone(kernels)])
    }

    /// As `load`, on the given devices, which compute the model together.
    ///
    /// # Errors
    /// As `load`.
    pub fn load_on(path: &Path, config: EngineConfig, devices: Vec<TensorParallelDevice>) -> Result<Self, EngineError> {
        config.check()?;
        let name = device_line(&devices);
        let mut devices = Devices::new(devices, config)?;
        let config = devices.config.clone();
        let mut model = devices.open(path)?;
        let source = if config.skip_tokenizer_init { None } else { model.take_tokenizer() };
        // Beside the packing, of which parts run on one thread.
        let tokenizer = source.map(build_tokenizer).transpose()?;
        let model = devices.pack(path, model)?;
        let tokenizer = tokenizer.map(finish_tokenizer).transpose()?.map(Arc::new);
        let memory = devices.plan(&model)?;
        let mut info = ModelInfo::new(&model, tokenizer.as_deref(), memory, name)?;
        let mut scheduler = Scheduler::new(SchedulerConfig {
            num_blocks: memory.num_blocks,
            num_state_slots: memory.num_state_slots,
            max_batch_tokens: config.max_batch_tokens,
            max_num_seqs: config.max_num_seqs,
            max_model_len: memory.max_model_len,
            enable_prefix_caching: config.enable_prefix_caching,
        });
        let (sender, commands) = channel();
        let disk = open_disk(&config, &model, &mut info, &sender)?;
        if disk.is_some() {
            scheduler.tell_news();
        }
        let figures = disk.as_ref().map(PrefixDisk::figures);
        let runner = devices.runner(model.decoder, memory)?;
        info.graphs = runner.graphs_line();
        let total_blocks = memory.num_blocks;
        let idle = EngineStats { alive: true, free_blocks: total_blocks, total_blocks, ..EngineStats::default() };
        let stats = Arc::new(Mutex::new(idle));
        let front = Front {
            commands: sender.clone(),
            tokenizer: tokenizer.clone(),
            grammars: OnceLock::new(),
            compilations: Compilations::default(),
            masks: MaskRules { watch: MaskWatch::new(config.masks.timeout), aside: config.masks.aside },
            info,
            stats: stats.clone(),
            next_id: AtomicU64::new(0),
            queued: Arc::default(),
            max_queue: config.max_queue,
            speculation: config.speculation,
            vision: model.vision.as_ref().map(|tower| tower.spec().clone()),
        };
        let worker = Worker {
            runner,
            tower: model.vision,
            encoder: EncoderQueue::default(),
            pictures: HashMap::new(),
            scheduler,
            tokenizer,
            commands,
            stats,
            book: Book::new(&config),
            asides: Asides::new(sender),
            disk,
            queued: None,
        };
        let thread = std::thread::Builder::new()
            .name("fastchat-engine".to_owned())
            .spawn(move || worker.run())
            .map_err(|error| EngineError::Internal(format!("the engine thread did not start: {error}")))?;
        let front = Arc::new(front);
        if front.tokenizer.is_some() {
            let front = Arc::downgrade(&front);
            // Without a thread the first constrained request builds it.
            let _ = std::thread::Builder::new().name("fastchat-warm-up".to_owned()).spawn(move || warm_up(&front));
        }
        Ok(Self { front, figures, thread: Mutex::new(Some(thread)) })
    }

    /// Tokenises and checks on the calling thread, then hands over.
    ///
    /// # Errors
    /// A value out of range, a prompt that does not fit, a full queue, or a dead engine.
    pub fn submit(&self, request: Request) -> Result<RequestHandle, EngineError> {
        self.front.submit(request, None)
    }

    /// A doorbell for an event loop.
    ///
    /// # Errors
    /// When the system has no file descriptor left.
    pub fn subscribe(&self) -> Result<Subscription, EngineError> {
        let doorbell = Doorbell::new()
            .map_err(|error| EngineError::Internal(format!("no descriptor for a subscription: {error}")))?;
        Ok(Subscription { front: self.front.clone(), doorbell: Arc::new(doorbell) })
    }

    /// The tokenizer, unless the model has none or it was skipped.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.front.tokenizer.as_deref()
    }

    fn need_tokenizer(&self, param: &str) -> Result<&Tokenizer, EngineError> {
        self.tokenizer().ok_or_else(|| no_tokenizer(param))
    }

    /// Tokens of a prompt, those of its pictures by their headers.
    ///
    /// # Errors
    /// As `submit` for a prompt that is no prompt, but for pictures damaged past the header.
    pub fn count_tokens(&self, prompt: Prompt) -> Result<usize, EngineError> {
        self.front.count_tokens(prompt)
    }

    /// Token ids of a text.
    ///
    /// # Errors
    /// Without a tokenizer.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>, EngineError> {
        Ok(self.need_tokenizer("text")?.encode(text, add_special, parse_special)?)
    }

    /// Text of token ids.
    ///
    /// # Errors
    /// Without a tokenizer, or for an id outside the vocabulary.
    pub fn decode(&self, token_ids: &[u32], skip_special: bool) -> Result<String, EngineError> {
        Ok(self.need_tokenizer("token_ids")?.decode(token_ids, skip_special)?)
    }

    /// What a token adds to a text.
    ///
    /// # Errors
    /// Without a tokenizer, or for an id outside the vocabulary.
    pub fn token_bytes(&self, token_id: u32) -> Result<Vec<u8>, EngineError> {
        Ok(self.need_tokenizer("token_id")?.token_bytes(token_id)?.to_vec())
    }

    /// The id of a token by its spelling.
    ///
    /// # Errors
    /// Without a tokenizer.
    pub fn token_to_id(&self, token: &str) -> Result<Option<u32>, EngineError> {
        Ok(self.need_tokenizer("token")?.token_to_id(token))
    }

    /// The text with every name of a control token between two marks: what is between an odd mark and the next was not
    /// meant as a token.
    ///
    /// # Errors
    /// Without a tokenizer.
    pub fn fence(&self, text: &str, mark: &str) -> Result<String, EngineError> {
        Ok(self.need_tokenizer("text")?.fence(text, mark))
    }

    /// What a chat template says of how its model writes reasoning and tool calls.
    ///
    /// # Errors
    /// Without a tokenizer.
    pub fn chat_format(&self, chat_template: &str) -> Result<ChatFormat, EngineError> {
        let tokenizer = self.front.tokenizer.clone().ok_or_else(|| no_tokenizer("chat_template"))?;
        Ok(ChatFormat::detect(chat_template, tokenizer))
    }

    /// Counters since the start and gauges of now.
    pub fn stats(&self) -> EngineStats {
        let disk = self.figures.as_ref().map(DiskFigures::stats).unwrap_or_default();
        EngineStats { disk, ..self.front.stats.lock().clone() }
    }

    /// What was loaded.
    pub fn info(&self) -> &ModelInfo {
        &self.front.info
    }

    /// Ends every request with `Cancelled` and joins the thread. Twice does no harm.
    pub fn shutdown(&self) {
        // A thread that is gone needs no telling, and its panic was reported where it happened.
        let _ = self.front.commands.send(Command::Shutdown);
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

/// What serves the calls, and how many of them.
fn device_line(devices: &[TensorParallelDevice]) -> String {
    let name = devices.first().map_or_else(String::new, |device| device.kernels.name());
    if devices.len() > 1 { format!("{name}-tp{}", devices.len()) } else { name }
}

type Building = JoinHandle<Result<Tokenizer, TextError>>;

fn build_tokenizer(source: TokenizerSource) -> Result<Building, EngineError> {
    std::thread::Builder::new()
        .name("fastchat-text".to_owned())
        .spawn(move || Tokenizer::new(&source))
        .map_err(|error| EngineError::Internal(format!("the thread for the tokenizer did not start: {error}")))
}

fn finish_tokenizer(building: Building) -> Result<Tokenizer, EngineError> {
    // A panic goes on where it would have been without the thread.
    Ok(building.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?)
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Builds what constraints need when the engine has nothing else to do, or after a while in any case. A start's first
/// request needs the processors more.
fn warm_up(front: &Weak<Front>) {
    for left in (0..WARM_UP_LOOKS).rev() {
        std::thread::sleep(WARM_UP_PAUSE);
        let Some(front) = front.upgrade() else { return };
        let stats = front.stats.lock().clone();
        if left == 0 || (stats.running == 0 && stats.waiting == 0) {
            // What is wrong with it the first constrained request says.
            let _ = front.tokenizer.as_ref().map(|tokenizer| front.compiler(tokenizer).is_ok());
            return;
        }
    }
}
