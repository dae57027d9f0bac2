//! Where requests enter: checks them on the caller's thread and hands them to the engine's. Loads nothing and computes
//! nothing of a model.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};

use fastchat_models::vision::VisionSpec;
use parking_lot::Mutex;

use crate::block_hash::hash_media;
use crate::choice::ChoiceSeed;
use crate::command::{Command, Job, Queued};
use crate::compilations::Compilations;
use crate::config::{Prompt, Request};
use crate::constraint::{Constraint, MaskRules};
use crate::doorbell::Doorbell;
use crate::error::EngineError;
use crate::handle::RequestHandle;
use crate::info::{EngineStats, ModelInfo};
use crate::media::{Expanded, Expander};
use crate::prompt_logprobs::PromptLogprobsBuilder;
use crate::scheduler::Submission;
use crate::slot::{Slot, SlotOwner};
use crate::text::{GrammarCompiler, GrammarSpec, Matcher, TextError, Thinking, Tokenizer};

/// What submitting needs.
#[derive(Debug)]
pub(crate) struct Front {
    pub commands: Sender<Command>,
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// Built when the engine is idle after its start: its trie takes up to a second for a large vocabulary.
    pub grammars: OnceLock<Result<Arc<GrammarCompiler>, TextError>>,
    pub compilations: Compilations,
    /// Of constraints.
    pub masks: MaskRules,
    pub info: ModelInfo,
    pub stats: Arc<Mutex<EngineStats>>,
    pub next_id: AtomicU64,
    pub queued: Arc<AtomicUsize>,
    pub max_queue: usize,
    pub speculation: bool,
    pub vision: Option<VisionSpec>,
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

    pub fn count_tokens(&self, prompt: Prompt) -> Result<usize, EngineError> {
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
        let seed = params
            .seed
            .map_or_else(getrandom::u64, Ok)
            .map_err(|error| EngineError::Internal(format!("the system gave no random number for a seed: {error}")))?;
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
                seed,
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
        let wrong = |error: TextError| EngineError::invalid("structured", error.to_string());
        let compiler = self.compiler(tokenizer).as_ref().map_err(|error| wrong(error.clone()))?;
        let matcher = match compiler.known(spec).map_err(wrong)? {
            Some(matcher) => matcher,
            None => self.compile(compiler, spec)?.map_err(wrong)?,
        };
        let first = Constraint::new(matcher, self.masks.clone()).map_err(wrong)?;
        let mut all: Vec<Constraint> = (1..n).map(|_| first.fork()).collect();
        all.push(first);
        Ok(all)
    }

    fn compile(
        &self,
        compiler: &Arc<GrammarCompiler>,
        spec: &GrammarSpec,
    ) -> Result<Result<Matcher, TextError>, EngineError> {
        let name = spec.name();
        let (compiler, spec) = (compiler.clone(), spec.clone());
        self.compilations.run(move || compiler.compile(&spec)).map_err(|why| why.error(name))
    }

    pub fn compiler(&self, tokenizer: &Arc<Tokenizer>) -> &Result<Arc<GrammarCompiler>, TextError> {
        self.grammars.get_or_init(|| {
            let ends = self.info.eos_token_ids.iter().copied().filter(|&id| (id as usize) < tokenizer.vocab_size());
            GrammarCompiler::forcing(tokenizer, &ends.collect::<Vec<_>>()).map(Arc::new)
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

/// The error of an engine that deals in token ids only.
pub(crate) fn no_tokenizer(param: &str) -> EngineError {
    EngineError::invalid(param, format!("{param}: this engine has no tokenizer; pass and expect token ids"))
}
