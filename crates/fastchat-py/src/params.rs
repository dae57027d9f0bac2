//! `SamplingParams`: keywords in, the engine's struct out, checked once when it is made.

use std::collections::BTreeMap;

use fastchat_engine::SamplingParams;
use pyo3::prelude::*;

use crate::chat::{PyStructuredOutput, PyThinkingBudget};
use crate::errors::to_py;

/// How to choose tokens; immutable.
#[pyclass(name = "SamplingParams", module = "fastchat_rs._engine", frozen, get_all)]
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "the flags of the Python class")]
pub struct PySamplingParams {
    n: u32,
    temperature: f32,
    top_p: f32,
    top_k: i32,
    min_p: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    repetition_penalty: f32,
    seed: Option<i64>,
    stop: Vec<String>,
    stop_token_ids: Vec<u32>,
    include_stop_str_in_output: bool,
    ignore_eos: bool,
    max_tokens: Option<u32>,
    min_tokens: u32,
    logprobs: Option<u32>,
    prompt_logprobs: Option<i32>,
    logit_bias: BTreeMap<u32, f32>,
    skip_special_tokens: bool,
    structured: Option<PyStructuredOutput>,
    thinking: Option<PyThinkingBudget>,
}

#[pymethods]
#[allow(clippy::too_many_arguments, reason = "keywords of the Python constructor")]
impl PySamplingParams {
    #[new]
    #[pyo3(signature = (*, n=1, temperature=1.0, top_p=1.0, top_k=-1, min_p=0.0, presence_penalty=0.0,
        frequency_penalty=0.0, repetition_penalty=1.0, seed=None, stop=Vec::new(), stop_token_ids=Vec::new(),
        include_stop_str_in_output=false, ignore_eos=false, max_tokens=None, min_tokens=0, logprobs=None,
        prompt_logprobs=None, logit_bias=None, skip_special_tokens=true, structured=None, thinking=None))]
    fn new(
        n: u32,
        temperature: f32,
        top_p: f32,
        top_k: i32,
        min_p: f32,
        presence_penalty: f32,
        frequency_penalty: f32,
        repetition_penalty: f32,
        seed: Option<i64>,
        stop: Vec<String>,
        stop_token_ids: Vec<u32>,
        include_stop_str_in_output: bool,
        ignore_eos: bool,
        max_tokens: Option<u32>,
        min_tokens: u32,
        logprobs: Option<u32>,
        prompt_logprobs: Option<i32>,
        logit_bias: Option<BTreeMap<u32, f32>>,
        skip_special_tokens: bool,
        structured: Option<PyStructuredOutput>,
        thinking: Option<PyThinkingBudget>,
    ) -> PyResult<Self> {
        let logit_bias = logit_bias.unwrap_or_default();
        let params = Self {
            n,
            temperature,
            top_p,
            top_k,
            min_p,
            presence_penalty,
            frequency_penalty,
            repetition_penalty,
            seed,
            stop,
            stop_token_ids,
            include_stop_str_in_output,
            ignore_eos,
            max_tokens,
            min_tokens,
            logprobs,
            prompt_logprobs,
            logit_bias,
            skip_special_tokens,
            structured,
            thinking,
        };
        params.to_engine().check().map_err(|error| to_py(&error))?;
        Ok(params)
    }

    fn __repr__(&self) -> String {
        format!("{self:?}").replacen("Py", "", 1)
    }
}

impl PySamplingParams {
    /// The engine's own struct.
    pub fn to_engine(&self) -> SamplingParams {
        SamplingParams {
            n: self.n,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            repetition_penalty: self.repetition_penalty,
            // The wire allows negative seeds; the bits are what matters.
            seed: self.seed.map(|seed| seed as u64),
            stop: self.stop.clone(),
            stop_token_ids: self.stop_token_ids.clone(),
            include_stop_str_in_output: self.include_stop_str_in_output,
            ignore_eos: self.ignore_eos,
            max_tokens: self.max_tokens,
            min_tokens: self.min_tokens,
            logprobs: self.logprobs,
            prompt_logprobs: self.prompt_logprobs,
            logit_bias: self.logit_bias.iter().map(|(&id, &bias)| (id, bias)).collect(),
            skip_special_tokens: self.skip_special_tokens,
            structured: self.structured.as_ref().map(|structured| structured.0.clone()),
            thinking: self.thinking.as_ref().map(|thinking| thinking.0.clone()),
        }
    }
}
