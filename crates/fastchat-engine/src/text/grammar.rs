//! Constraints on a generated text: what may be asked for, its limits, and its compilation for one tokenizer.
//! Knows tokens as bytes; the sampler sees masks only.

use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::api::TopLevelGrammar;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::grammar_cache::GrammarCache;
use super::grammar_tokens::GrammarTokens;
use super::schema::{complaint, prepare};
use super::together::{check_lark, check_schema};
use super::{Matcher, ReasoningMarkers, TextError, Tokenizer, lark};

/// Largest schema, regex, grammar or list of choices, in bytes of text.
pub const MAX_GRAMMAR_BYTES: usize = 256 << 10;
/// Deepest nesting of a schema.
pub const MAX_SCHEMA_DEPTH: usize = 64;
/// Most alternatives of a choice.
pub const MAX_CHOICES: usize = 4096;
/// Longest message of the compiler that is passed on; it may quote the whole grammar.
const MAX_MESSAGE_BYTES: usize = 400;
/// Memory of a compiled grammar's rules per byte of its text, about.
const RULE_BYTES: usize = 32;
/// Longest token a constrained text may use; the trie counts depth in ten bits.
const MAX_TOKEN_BYTES: usize = 1000;

/// What a generated text must be.
#[derive(Clone, Debug, PartialEq)]
pub enum GrammarSpec {
    /// JSON that a schema accepts.
    JsonSchema(Value),
    /// Any JSON object.
    JsonObject,
    /// A regular expression that matches the whole text.
    Regex(String),
    /// A grammar in llguidance's dialect of Lark.
    Lark(String),
    /// One of these strings.
    Choice(Vec<String>),
    /// Thoughts, then an answer that is constrained; see [`GrammarSpec::after_thinking`].
    AfterThinking {
        /// Lark grammar of the thoughts; its rule `start` ends in `@answer`.
        thoughts: String,
        /// What follows them.
        answer: Box<GrammarSpec>,
    },
}

impl GrammarSpec {
    /// Name of the constraint in errors.
    pub fn name(&self) -> &'static str {
        match self {
            Self::JsonSchema(_) => "json_schema",
            Self::JsonObject => "json_object",
            Self::Regex(_) => "regex",
            Self::Lark(_) => "grammar",
            Self::Choice(_) => "choice",
            Self::AfterThinking { answer, .. } => answer.name(),
        }
    }

    /// The same constraint for a model that thinks first. `opened`: the prompt already began the thoughts; otherwise
    /// they may be left out.
    #[must_use]
    pub fn after_thinking(self, markers: ReasoningMarkers, opened: bool, tokenizer: &Tokenizer) -> Self {
        if matches!(self, Self::AfterThinking { .. }) {
            return self;
        }
        let (body, rule) = lark::until(tokenizer, "thoughts", markers.close, lark::Length::default());
        let blanks = r"/\n{0,2}/";
        let thoughts = if opened {
            format!("start: {body} {blanks} @answer\n{rule}")
        } else {
            let open = lark::marker(tokenizer, markers.open);
            format!("start: ({open} {body} {blanks})? @answer\n{rule}")
        };
        Self::AfterThinking { thoughts, answer: Box::new(self) }
    }

    fn error(&self, message: &str) -> TextError {
        TextError::Grammar { kind: self.name(), message: one_line(message) }
    }

    /// The text the cache knows this constraint by; checks all limits on the way.
    fn key(&self) -> Result<String, TextError> {
        let text = match self {
            Self::JsonSchema(schema) => {
                if depth_exceeds(schema, MAX_SCHEMA_DEPTH) {
                    return Err(self.error(&format!("nests deeper than the limit of {MAX_SCHEMA_DEPTH}")));
                }
                if !(schema.is_object() || schema.is_boolean()) {
                    return Err(self.error("must be an object or a boolean"));
                }
                schema.to_string()
            }
            Self::JsonObject => String::new(),
            Self::Regex(text) | Self::Lark(text) => text.clone(),
            Self::Choice(choices) => {
                if choices.is_empty() || choices.len() > MAX_CHOICES {
                    return Err(self.error(&format!("has {} entries, allowed are 1 to {MAX_CHOICES}", choices.len())));
                }
                Value::from(choices.as_slice()).to_string()
            }
            Self::AfterThinking { thoughts, answer } => return Ok(format!("{thoughts}\n{}", answer.key()?)),
        };
        if text.len() > MAX_GRAMMAR_BYTES {
            return Err(self.error(&format!("is {} bytes, the limit is {MAX_GRAMMAR_BYTES}", text.len())));
        }
        Ok(format!("{}\n{text}", self.name()))
    }

    fn grammar(&self) -> Result<TopLevelGrammar, TextError> {
        Ok(match self {
            Self::JsonSchema(schema) => {
                let schema = prepare(schema).map_err(|says| self.error(&says))?;
                check_schema(&schema).map_err(|says| self.error(&says))?;
                TopLevelGrammar::from_json_schema(schema)
            }
            Self::JsonObject => Self::JsonSchema(json!({"type": "object"})).grammar()?,
            Self::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Self::Lark(grammar) => {
                check_lark(grammar).map_err(|says| self.error(&says))?;
                TopLevelGrammar::from_lark(grammar.clone())
            }
            Self::Choice(choices) => {
                let options: Vec<String> =
                    choices.iter().map(|choice| Value::from(choice.as_str()).to_string()).collect();
                TopLevelGrammar::from_lark(format!("start: {}", options.join(" | ")))
            }
            Self::AfterThinking { thoughts, answer } => {
                let mut grammar = TopLevelGrammar::from_lark(thoughts.clone());
                let mut rest = answer.grammar()?;
                if let Some(first) = rest.grammars.first_mut() {
                    first.name = Some("answer".to_owned());
                }
                grammar.grammars.append(&mut rest.grammars);
                grammar
            }
        })
    }
}

fn depth_exceeds(value: &Value, limit: usize) -> bool {
    let Some(rest) = limit.checked_sub(1) else { return true };
    match value {
        Value::Array(items) => items.iter().any(|item| depth_exceeds(item, rest)),
        Value::Object(fields) => fields.values().any(|field| depth_exceeds(field, rest)),
        _ => false,
    }
}

fn first_line(message: &str) -> &str {
    message.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("is not valid")
}

fn one_line(message: &str) -> String {
    let mut line = first_line(message).to_owned();
    if line.len() > MAX_MESSAGE_BYTES {
        let end = (0..=MAX_MESSAGE_BYTES).rev().find(|&end| line.is_char_boundary(end)).unwrap_or(0);
        line.truncate(end);
        line.push('…');
    }
    line
}

/// Compiles constraints for one tokenizer and remembers the latest ones.
pub struct GrammarCompiler {
    factory: ParserFactory,
    /// Where masks need more than llguidance to be right.
    incomplete: Option<Arc<GrammarTokens>>,
    cache: Mutex<GrammarCache>,
}

impl GrammarCompiler {
    /// Builds the trie of all tokens once. `end_tokens` are what may follow a complete text. Where a grammar leaves no
    /// choice of text, masks leave no choice of tokens either: the model's own cut of it.
    pub fn forcing(tokenizer: &Arc<Tokenizer>, end_tokens: &[u32]) -> Result<Self, TextError> {
        let tokens = Arc::new(GrammarTokens::new(trie(tokenizer, end_tokens)?, tokenizer.clone()));
        let mut compiler = Self::with(&(tokens.clone() as TokEnv))?;
        compiler.incomplete = Some(tokens).filter(|tokens| tokens.is_incomplete());
        Ok(compiler)
    }

    /// The same, with every cut of a forced text allowed.
    pub fn new(tokenizer: &Tokenizer, end_tokens: &[u32]) -> Result<Self, TextError> {
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie(tokenizer, end_tokens)?));
        Self::with(&environment)
    }

    fn with(environment: &TokEnv) -> Result<Self, TextError> {
        let slices = SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(environment, InferenceCapabilities::default(), &slices)
            .map_err(|e| TextError::vocabulary("tokens", one_line(&e.to_string())))?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(Self { factory, incomplete: None, cache: Mutex::new(GrammarCache::default()) })
    }

    /// A matcher of a constraint compiled lately.
    ///
    /// # Errors
    /// A constraint beyond a limit.
    pub(crate) fn known(&self, spec: &GrammarSpec) -> Result<Option<Matcher>, TextError> {
        Ok(self.cache.lock().get(&spec.key()?))
    }

    /// A matcher at the beginning of a text. Compiling takes milliseconds; call it off the engine's thread.
    pub fn compile(&self, spec: &GrammarSpec) -> Result<Matcher, TextError> {
        let key = spec.key()?;
        if let Some(matcher) = self.cache.lock().get(&key) {
            return Ok(matcher);
        }
        let parser = self.factory.create_parser(spec.grammar()?);
        // The lexer counts its own bytes; the rules are in proportion to the text.
        let bytes = parser.as_ref().map_or(0, |parser| parser.parser.lexer_stats().num_bytes) + RULE_BYTES * key.len();
        let inner = llguidance::Matcher::new(parser);
        if let Some(message) = inner.get_error() {
            return Err(spec.error(&complaint(first_line(&message))));
        }
        let matcher = Matcher::new(inner, self.incomplete.clone());
        self.cache.lock().insert(key, matcher.fresh_copy(), bytes);
        Ok(matcher)
    }
}

/// All tokens by their bytes.
fn trie(tokenizer: &Tokenizer, end_tokens: &[u32]) -> Result<TokTrie, TextError> {
    let size = tokenizer.vocab_size();
    let Some(&first_end) = end_tokens.first() else {
        return Err(TextError::vocabulary("eos_token_id", "is missing; constrained text needs a token to end with"));
    };
    if let Some(&id) = end_tokens.iter().find(|&&id| id as usize >= size) {
        return Err(TextError::TokenId { id, size });
    }
    let mut words = Vec::with_capacity(size);
    for id in 0..size as u32 {
        let bytes = tokenizer.token_bytes(id)?;
        let mut word = Vec::with_capacity(bytes.len() + 1);
        // Ordinary text never spells a control token.
        if tokenizer.is_special(id) || end_tokens.contains(&id) {
            word.push(TokTrie::SPECIAL_TOKEN_MARKER);
        }
        word.extend_from_slice(bytes);
        // A token without bytes is never allowed.
        words.push(if word.len() > MAX_TOKEN_BYTES { Vec::new() } else { word });
    }
    let mut info = TokRxInfo::new(size as u32, first_end);
    info.tok_eos = first_end;
    Ok(TokTrie::from(&info, &words).with_eos_tokens(end_tokens))
}

impl std::fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarCompiler").field("cache", &self.cache).finish_non_exhaustive()
    }
}
