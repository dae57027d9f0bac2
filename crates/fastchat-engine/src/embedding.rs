//! The embedding engine's front: loads an encoder, starts its thread, tokenises and checks on the caller's thread. Knows
//! nothing of HTTP.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use fastchat_kernels::{DeviceChoice, KernelOptions, Kernels};
use fastchat_models::{Embedder, Encoder, LoadOptions, Quantize, load_encoder};
use parking_lot::Mutex;

use crate::config::Prompt;
use crate::device::open_device;
use crate::embedding_worker::{Answer, Command, Job, Sequence, Worker};
use crate::error::EngineError;
use crate::text::Tokenizer;

/// How to load an encoder and how much to run at once.
#[derive(Clone, Copy, Debug)]
pub struct EmbeddingConfig {
    /// Where the model runs.
    pub device: DeviceChoice,
    /// Tokens of a text; `None` is what the model's authors allow.
    pub max_model_len: Option<usize>,
    /// Tokens per step; a longer text has a step of its own.
    pub max_batch_tokens: usize,
    /// Texts that may wait; requests that would bring more are refused.
    pub max_queue: usize,
    /// Threads of the CPU kernels; `None` is what the process may use.
    pub threads: Option<usize>,
    /// Rounds inputs of bf16 weights to bf16 where the device multiplies that, or does not; `None` does on a GPU.
    pub bf16_products: Option<bool>,
    /// Serves token ids only.
    pub skip_tokenizer_init: bool,
    /// Rounds matrices stored as floats.
    pub quantize: Option<Quantize>,
}

impl Default for EmbeddingConfig {
    fn default() -> Self {
        Self {
            device: DeviceChoice::Auto,
            max_model_len: None,
            max_batch_tokens: 2048,
            max_queue: 1 << 16,
            threads: None,
            bf16_products: None,
            skip_tokenizer_init: false,
            quantize: None,
        }
    }
}

impl EmbeddingConfig {
    /// How the device computes.
    pub fn kernel_options(&self) -> KernelOptions {
        KernelOptions { threads: self.threads, bf16_products: self.bf16_products }
    }

    /// # Errors
    /// Names the first field that is out of range.
    pub fn check(&self) -> Result<(), EngineError> {
        let counts = [
            ("max_model_len", self.max_model_len, 1 << 24),
            ("max_batch_tokens", Some(self.max_batch_tokens), 1 << 20),
            ("max_queue", Some(self.max_queue), 1 << 24),
            ("threads", self.threads, 1024),
        ];
        for (param, value, most) in counts {
            if let Some(value) = value.filter(|value| !(1..=most).contains(value)) {
                return Err(EngineError::invalid(param, format!("{param} is {value}; it must be 1 to {most}")));
            }
        }
        Ok(())
    }
}

/// What was loaded; constant for the life of the engine.
#[derive(Clone, Debug)]
pub struct EmbeddingInfo {
    /// Tokens of a text.
    pub max_model_len: usize,
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Elements of a vector.
    pub dimensions: usize,
    /// A cross-encoder: it scores pairs of texts and makes no vectors.
    pub makes_scores: bool,
    /// Whether texts can be served.
    pub has_tokenizer: bool,
    /// Hash of weights, pooling and kernels.
    pub fingerprint: String,
    /// What serves the operations.
    pub kernels: String,
    /// The resolved encoder.
    pub spec: serde_json::Value,
}

/// One loaded encoder with its own thread.
#[derive(Debug)]
pub struct EmbeddingEngine {
    commands: Sender<Command>,
    tokenizer: Option<Tokenizer>,
    info: EmbeddingInfo,
    waiting: Arc<AtomicUsize>,
    alive: Arc<AtomicBool>,
    max_queue: usize,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl EmbeddingEngine {
    /// Loads an encoder onto `config.device` and starts its thread.
    ///
    /// # Errors
    /// What is wrong with the configuration or the model, or missing of the device.
    pub fn load(path: &Path, config: EmbeddingConfig) -> Result<Self, EngineError> {
        config.check()?;
        Self::load_with(path, config, open_device(config.device, config.kernel_options(), &[])?)
    }

    /// As `load`, on the given kernels.
    ///
    /// # Errors
    /// As `load`.
    pub fn load_with(path: &Path, config: EmbeddingConfig, kernels: Arc<dyn Kernels>) -> Result<Self, EngineError> {
        config.check()?;
        let name = kernels.name();
        let model = load_encoder(
            path,
            kernels,
            &LoadOptions { max_model_len: config.max_model_len, quantize: config.quantize, ..LoadOptions::default() },
        )?;
        let source = model.tokenizer.as_ref().filter(|_| !config.skip_tokenizer_init);
        let tokenizer = source.map(Tokenizer::new).transpose()?;
        let encoder = model.encoder;
        let spec = match &encoder {
            Embedder::Encoder(encoder) => serde_json::to_value(encoder.spec()),
            Embedder::Decoder(decoder) => serde_json::to_value(decoder.spec()),
        };
        let spec = spec.map_err(|error| EngineError::Internal(format!("the model's description: {error}")))?;
        let (vocab_size, dimensions) = encoder.sizes();
        let info = EmbeddingInfo {
            max_model_len: encoder.max_model_len(),
            vocab_size,
            dimensions,
            makes_scores: encoder.encoder().is_some_and(Encoder::makes_scores),
            has_tokenizer: tokenizer.is_some(),
            fingerprint: blake3::hash(format!("{} {name}", model.fingerprint).as_bytes()).to_hex()[..16].to_owned(),
            kernels: name,
            spec,
        };
        let (sender, commands) = channel();
        let (waiting, alive) = (Arc::<AtomicUsize>::default(), Arc::new(AtomicBool::new(true)));
        let worker = Worker::new(encoder, commands, config.max_batch_tokens, waiting.clone(), alive.clone());
        let thread = std::thread::Builder::new()
            .name("fastchat-embed".to_owned())
            .spawn(move || worker.run())
            .map_err(|error| EngineError::Internal(format!("the engine thread did not start: {error}")))?;
        let thread = Mutex::new(Some(thread));
        Ok(Self { commands: sender, tokenizer, info, waiting, alive, max_queue: config.max_queue, thread })
    }

    /// What was loaded.
    pub fn info(&self) -> &EmbeddingInfo {
        &self.info
    }

    /// Whether requests can be served.
    pub fn alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }

    /// Texts that wait for their step.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Token ids of a text, framed as the model was trained unless `add_special_tokens` is off.
    ///
    /// # Errors
    /// Without a tokenizer.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, EngineError> {
        let missing = || EngineError::invalid("input", "input: this engine has no tokenizer; pass token ids");
        Ok(self.tokenizer.as_ref().ok_or_else(missing)?.encode(text, add_special_tokens, true)?)
    }

    /// Tokenises and checks on the calling thread, then hands over. Nothing is cut off: a text that is too long is an error.
    ///
    /// # Errors
    /// A text that is empty, too long or holds an unknown token id, a full queue, or a dead engine.
    pub fn submit(&self, inputs: &[Prompt]) -> Result<EmbeddingHandle, EngineError> {
        if self.info.makes_scores {
            return Err(EngineError::invalid("model", "model: this one scores pairs of texts and makes no embeddings"));
        }
        let sequences = inputs.iter().enumerate().map(|(i, input)| self.sequence(i, input));
        self.enqueue(sequences.collect::<Result<Vec<_>, _>>()?)
    }

    /// How well each document answers the query, as vectors of one element. `most` tokens of a document are read; what
    /// is longer than the model takes with the query is an error.
    ///
    /// # Errors
    /// As `submit`, and for a model without a head that scores, or a tokenizer without a frame for pairs.
    pub fn submit_pairs(
        &self,
        query: &str,
        documents: &[String],
        most: Option<usize>,
    ) -> Result<EmbeddingHandle, EngineError> {
        if !self.info.makes_scores {
            return Err(EngineError::invalid("model", "model: this one has no head that scores pairs of texts"));
        }
        let sequences = documents.iter().enumerate().map(|(i, document)| {
            let missing = || EngineError::invalid("model", "model: its tokenizer has no frame for pairs of texts");
            let tokenizer = self.tokenizer.as_ref().ok_or_else(missing)?;
            let (ids, second) = tokenizer.encode_pair(query, document, most)?.ok_or_else(missing)?;
            let ids = self.checked(&format!("documents[{i}]"), ids, "documents")?;
            Ok(Sequence { ids, second: Some(second) })
        });
        self.enqueue(sequences.collect::<Result<Vec<_>, EngineError>>()?)
    }

    fn enqueue(&self, sequences: Vec<Sequence>) -> Result<EmbeddingHandle, EngineError> {
        let lengths = sequences.iter().map(|sequence| sequence.ids.len()).collect();
        let coming = sequences.len();
        let waiting = self.waiting.fetch_add(sequences.len(), Ordering::Relaxed);
        if waiting + sequences.len() > self.max_queue {
            self.waiting.fetch_sub(sequences.len(), Ordering::Relaxed);
            let message = format!("{waiting} texts are waiting, {coming} more came; max_queue is {}", self.max_queue);
            return Err(EngineError::Overloaded(message));
        }
        let (reply, answer) = channel();
        let cancelled = Arc::<AtomicBool>::default();
        let count = sequences.len();
        let job = Job::new(sequences, reply, cancelled.clone());
        if self.commands.send(Command::Embed(job)).is_err() {
            self.waiting.fetch_sub(count, Ordering::Relaxed);
            return Err(EngineError::Internal("the engine has stopped".to_owned()));
        }
        Ok(EmbeddingHandle { answer: Mutex::new(answer), cancelled, lengths })
    }

    fn sequence(&self, index: usize, input: &Prompt) -> Result<Sequence, EngineError> {
        let ids = match input {
            Prompt::Tokens(ids) => ids.clone(),
            Prompt::Media { .. } => return Err(EngineError::invalid("images", "images: an encoder takes none")),
            Prompt::Text { text, add_special_tokens } => self.encode(text, *add_special_tokens)?,
        };
        Ok(Sequence { ids: self.checked(&format!("input[{index}]"), ids, "input")?, second: None })
    }

    fn checked(&self, place: &str, ids: Vec<u32>, field: &str) -> Result<Vec<u32>, EngineError> {
        let bad = |problem: String| Err(EngineError::invalid(field, format!("{place} {problem}")));
        let (limit, vocab) = (self.info.max_model_len, self.info.vocab_size);
        if ids.is_empty() || ids.len() > limit {
            return bad(format!("has {} tokens; this model takes 1 to {limit}", ids.len()));
        }
        match ids.iter().find(|&&id| id as usize >= vocab) {
            Some(id) => bad(format!("has token id {id}; it must be below {vocab}, the size of the vocabulary")),
            None => Ok(ids),
        }
    }

    /// Ends every request with `Cancelled` and joins the thread. Twice does no harm.
    pub fn shutdown(&self) {
        // A thread that is gone needs no telling.
        let _ = self.commands.send(Command::Shutdown);
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

impl Drop for EmbeddingEngine {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// One request's place in the engine. Dropping it ends the request.
#[derive(Debug)]
pub struct EmbeddingHandle {
    answer: Mutex<Receiver<Answer>>,
    cancelled: Arc<AtomicBool>,
    lengths: Vec<usize>,
}

impl EmbeddingHandle {
    /// Tokens of each text.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// The vectors in order once they are there, or `None` when `timeout` passed first. Call until it answers.
    ///
    /// # Errors
    /// What ended the request instead.
    pub fn wait(&self, timeout: Duration) -> Result<Option<Vec<Vec<f32>>>, EngineError> {
        match self.answer.lock().recv_timeout(timeout) {
            Ok(answer) => answer.map(Some),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(EngineError::Cancelled),
        }
    }
}

impl Drop for EmbeddingHandle {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}
