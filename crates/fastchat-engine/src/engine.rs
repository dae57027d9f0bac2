//! The engine's front: loads a model, starts its thread, checks requests on the caller's thread and hands them over.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use fastchat_kernels::Kernels;
use fastchat_models::vision::VisionSpec;
use fastchat_models::{LoadOptions, load};
use parking_lot::Mutex;

use crate::asides::Asides;
use crate::block_hash::hash_media;
use crate::choice::ChoiceSeed;
use crate::config::{EngineConfig, Prompt, Request};
use crate::constraint::{Constraint, MaskRules};
use crate::device::open_device;
use crate::doorbell::Doorbell;
use crate::error::EngineError;
use crate::handle::{RequestHandle, Subscription};
use crate::info::{EngineStats, ModelInfo};
use crate::mask_watch::MaskWatch;
use crate::media::{EncoderQueue, Expanded, Expander};
use crate::memory::MemoryPlan;
use crate::prompt_logprobs::PromptLogprobsBuilder;
use crate::runner::Runner;
use crate::scheduler::{Scheduler, SchedulerConfig, Submission};
use crate::slot::{Slot, SlotOwner};
use crate::text::{ChatFormat, GrammarCompiler, GrammarSpec, TextError, Thinking, Tokenizer};
use crate::worker::{Book, Command, Job, Queued, Worker};

/// One loaded model with its own thread.
#[derive(Debug)]
pub struct Engine {
    front: Arc<Front>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What submitting needs.
#[derive(Debug)]
pub(crate) struct Front {
    commands: Sender<Command>,
    tokenizer: Option<Arc<Tokenizer>>,
    /// Built beside the engine's start: its trie takes some hundred milliseconds for a large vocabulary.
    grammars: OnceLock<Result<GrammarCompiler, TextError>>,
    /// Of constraints.
    masks: MaskRules,
    info: ModelInfo,
    stats: Arc<Mutex<EngineStats>>,
    next_id: AtomicU64,
    queued: Arc<AtomicUsize>,
    max_queue: usize,
    speculation: bool,
    vision: Option<VisionSpec>,
}

impl Engine {
    /// Loads a model onto `config.device` and starts its thread.
    ///
    /// # Errors
    /// What is wrong with the configuration, the model, or the memory there is, or missing of the device.
    pub fn load(path: &Path, config: EngineConfig) -> Result<Self, EngineError> {
        config.check()?;
        let kernels = open_device(config.device, config.threads, &[])?;
        Self::load_with(path, config, kernels)
    }

    /// As `load`, on the given kernels.
    ///
    /// # Errors
    /// As `load`.
    pub fn load_with(path: &Path, mut config: EngineConfig, kernels: Arc<dyn Kernels>) -> Result<Self, EngineError> {
        config.check()?;
        let options = LoadOptions {
            max_model_len: config.max_model_len,
            quantize: config.quantize,
            mmproj: config.mmproj.take(),
        };
        let name = kernels.name();
        let model = load(path, kernels.clone(), &options)?;
        let source = model.tokenizer.as_ref().filter(|_| !config.skip_tokenizer_init);
        let tokenizer = source.map(Tokenizer::new).transpose()?.map(Arc::new);
        let memory = MemoryPlan::new(&model.decoder, kernels.as_ref(), &config)?;
        let info = ModelInfo::new(&model, tokenizer.as_deref(), memory, name)?;
        let scheduler = Scheduler::new(SchedulerConfig {
            num_blocks: memory.num_blocks,
            num_state_slots: memory.num_state_slots,
            max_batch_tokens: config.max_batch_tokens,
            max_num_seqs: config.max_num_seqs,
            max_model_len: memory.max_model_len,
            enable_prefix_caching: config.enable_prefix_caching,
        });
        let runner = Runner::new(model.decoder, kernels, &memory)?;
        let (sender, commands) = channel();
        let total_blocks = memory.num_blocks;
        let idle = EngineStats { alive: true, free_blocks: total_blocks, total_blocks, ..EngineStats::default() };
        let stats = Arc::new(Mutex::new(idle));
        let front = Front {
            commands: sender.clone(),
            tokenizer: tokenizer.clone(),
            grammars: OnceLock::new(),
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
        };
        let thread = std::thread::Builder::new()
            .name("fastchat-engine".to_owned())
            .spawn(move || worker.run())
            .map_err(|error| EngineError::Internal(format!("the engine thread did not start: {error}")))?;
        let front = Arc::new(front);
        if front.tokenizer.is_some() {
            let front = front.clone();
            // Without a thread the first constrained request builds it.
            let warm_up = move || front.tokenizer.as_ref().map(|tokenizer| front.compiler(tokenizer).is_ok());
            let _ = std::thread::Builder::new().name("fastchat-warm-up".to_owned()).spawn(warm_up);
        }
        Ok(Self { front, thread: Mutex::new(Some(thread)) })
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
        *self.front.stats.lock()
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

impl Drop for Engine {
    fn drop(&mut self) {
        self.shutdown();
    }
}

fn no_tokenizer(param: &str) -> EngineError {
    EngineError::invalid(param, format!("{param}: this engine has no tokenizer; pass and expect token ids"))
}

impl Front {
    fn expander(&self) -> Expander<'_> {
        Expander {
            vision: self.vision.as_ref(),
            tokenizer: self.tokenizer.as_deref(),
            limit: self.info.max_model_len,
            vocab: self.info.vocab_size,
        }
    }

    fn count_tokens(&self, prompt: Prompt) -> Result<usize, EngineError> {
        match prompt {
            Prompt::Media { segments, images } => self.expander().count(&segments, &images),
            Prompt::Text { text, add_special_tokens } => Ok(self.encode(&text, add_special_tokens)?.len()),
            Prompt::Tokens(ids) => Ok(ids.len()),
        }
    }

    pub fn submit(&self, request: Request, doorbell: Option<Arc<Doorbell>>) -> Result<RequestHandle, EngineError> {
        let Request { prompt, params, cache_salt, priority, tenant } = request;
        let (vocab, limit) = (self.info.vocab_size, self.info.max_model_len);
        params.validate(vocab)?;
        if self.tokenizer.is_none() && !params.stop.is_empty() {
            return Err(no_tokenizer("stop"));
        }
        let (prompt, media) = match prompt {
            Prompt::Media { segments, images } => {
                let Expanded { tokens, media } = self.expander().expand(&segments, &images)?;
                (tokens, media)
            }
            Prompt::Text { text, add_special_tokens } => (self.encode(&text, add_special_tokens)?, None),
            Prompt::Tokens(ids) => (ids, None),
        };
        if prompt.is_empty() {
            return Err(EngineError::invalid("prompt", "prompt has 0 tokens; it must have at least 1"));
        }
        if let Some(id) = prompt.iter().find(|&&id| id as usize >= vocab).filter(|_| media.is_none()) {
            let message = format!("prompt has token id {id}; it must be below {vocab}, the size of the vocabulary");
            return Err(EngineError::invalid("prompt", message));
        }
        if prompt.len() >= limit {
            return Err(EngineError::ContextLength { limit, prompt: prompt.len() });
        }
        if let Some(asked) = params.prompt_logprobs {
            PromptLogprobsBuilder::check(asked, prompt.len(), vocab)?;
        }
        let queued = self.enter_queue()?;
        let constraints = match &params.structured {
            Some(spec) => self.constraints(spec, params.n)?,
            None => Vec::new(),
        };
        let thinking = match (&params.thinking, &self.tokenizer) {
            (Some(budget), Some(tokenizer)) => Some(Thinking::new(budget.clone(), tokenizer)?),
            (Some(_), None) => return Err(no_tokenizer("thinking_budget")),
            (None, _) => None,
        };
        let hashes: Vec<_> = media.iter().flat_map(|media| &media.images).map(|(hash, _)| *hash).collect();
        let spans = media.as_ref().map_or_else(Vec::new, |media| media.layout.spans(&hashes));
        let looks = media.as_ref().is_some_and(|media| !media.layout.markers.is_empty());
        let surroundings = looks.then(|| hashes.iter().fold(0, |all, &hash| hash_media(all, hash)));
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let shared: Arc<[u32]> = prompt.as_slice().into();
        let slot = Arc::new(Slot::new(id, shared.clone(), params.n, doorbell));
        let job = Job {
            slot: SlotOwner(slot.clone()),
            submission: Submission {
                request: id,
                n: params.n,
                max_tokens: params.max_tokens.map_or(usize::MAX, |tokens| tokens as usize),
                priority,
                cache_salt,
                tenant,
                wants_prompt_logits: params.prompt_logprobs.is_some(),
                drafts: self.speculation && !params.has_history() && constraints.is_empty(),
                spans,
                surroundings,
                prompt,
            },
            constraints,
            media,
            prompt_logprobs: params.prompt_logprobs.map(|k| PromptLogprobsBuilder::new(k, shared.len(), vocab)),
            choices: ChoiceSeed {
                seed: params.seed.unwrap_or_else(|| RandomState::new().hash_one(id)),
                prompt: shared,
                eos: self.info.eos_token_ids.as_slice().into(),
                params: Arc::new(params),
                thinking,
            },
            queued,
        };
        let gone = |_| EngineError::Internal("the engine has stopped".to_owned());
        self.commands.send(Command::Submit(Box::new(job))).map_err(gone)?;
        Ok(RequestHandle { slot, commands: self.commands.clone() })
    }

    /// One constraint per choice, compiled and forked here so that the engine's thread does neither.
    fn constraints(&self, spec: &GrammarSpec, n: u32) -> Result<Vec<Constraint>, EngineError> {
        let tokenizer = self.tokenizer.as_ref().ok_or_else(|| no_tokenizer("structured"))?;
        let first = self.compiler(tokenizer).as_ref().map_err(Clone::clone).and_then(|compiler| compiler.compile(spec));
        let first = first.and_then(|matcher| Constraint::new(matcher, self.masks.clone()));
        let first = first.map_err(|error| EngineError::invalid("structured", error.to_string()))?;
        let mut all: Vec<Constraint> = (1..n).map(|_| first.fork()).collect();
        all.push(first);
        Ok(all)
    }

    fn compiler(&self, tokenizer: &Arc<Tokenizer>) -> &Result<GrammarCompiler, TextError> {
        self.grammars.get_or_init(|| {
            let ends = self.info.eos_token_ids.iter().copied().filter(|&id| (id as usize) < tokenizer.vocab_size());
            GrammarCompiler::forcing(tokenizer, &ends.collect::<Vec<_>>())
        })
    }

    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, EngineError> {
        let tokenizer = self.tokenizer.as_ref().ok_or_else(|| no_tokenizer("prompt"))?;
        Ok(tokenizer.encode(text, add_special_tokens, true)?)
    }

    fn enter_queue(&self) -> Result<Queued, EngineError> {
        let waiting = self.queued.fetch_add(1, Ordering::Relaxed);
        let place = Queued(self.queued.clone());
        if waiting >= self.max_queue {
            let message = format!("{waiting} requests are waiting; max_queue is {}", self.max_queue);
            return Err(EngineError::Overloaded(message));
        }
        Ok(place)
    }
}
