//! What a completion has to be, and what a chat template says of answers: shapes of the engine's text side.

use std::sync::Arc;

use fastchat_engine::EngineError;
use fastchat_engine::text::tools::{ToolChoice, ToolEvent, ToolSpec};
use fastchat_engine::text::{ChatFormat, ChatParser, GrammarSpec, ThinkingBudget};
use parking_lot::Mutex;
use pyo3::prelude::*;

use crate::errors::{invalid, to_py};

/// What a completion has to be; immutable.
#[pyclass(name = "StructuredOutput", module = "fastchat_rs._engine", frozen, from_py_object)]
#[derive(Clone, Debug)]
pub struct PyStructuredOutput(pub Arc<GrammarSpec>);

/// How long one output may think; immutable.
#[pyclass(name = "ThinkingBudget", module = "fastchat_rs._engine", frozen, from_py_object)]
#[derive(Clone, Debug)]
pub struct PyThinkingBudget(pub ThinkingBudget);

/// What a chat template says of how its model writes reasoning and tool calls.
#[pyclass(name = "ChatFormat", module = "fastchat_rs._engine", frozen)]
pub struct PyChatFormat(pub ChatFormat);

/// Takes one choice's text apart as it comes.
#[pyclass(name = "ChatParser", module = "fastchat_rs._engine", frozen)]
pub struct PyChatParser(Mutex<ChatParser>);

/// A piece of an answer.
#[pyclass(name = "ChatEvent", module = "fastchat_rs._engine", frozen, get_all)]
#[derive(Debug)]
pub struct PyChatEvent {
    kind: &'static str,
    text: String,
    index: u32,
}

impl From<GrammarSpec> for PyStructuredOutput {
    fn from(spec: GrammarSpec) -> Self {
        Self(Arc::new(spec))
    }
}

impl From<ToolEvent> for PyChatEvent {
    fn from(event: ToolEvent) -> Self {
        let (kind, text, index) = match event {
            ToolEvent::Content(text) => ("content", text, 0),
            ToolEvent::Reasoning(text) => ("reasoning", text, 0),
            ToolEvent::Start { index, name } => ("tool_call", name, index),
            ToolEvent::Arguments { index, delta } => ("arguments", delta, index),
        };
        Self { kind, text, index }
    }
}

#[pymethods]
#[allow(clippy::needless_pass_by_value, reason = "sequences are converted into owned values")]
impl PyStructuredOutput {
    #[staticmethod]
    fn json_schema(schema: &str) -> PyResult<Self> {
        let schema = serde_json::from_str(schema)
            .map_err(|error| invalid("structured", format!("json_schema: is not JSON: {error}")))?;
        Ok(GrammarSpec::JsonSchema(schema).into())
    }

    #[staticmethod]
    fn json_object() -> Self {
        GrammarSpec::JsonObject.into()
    }

    #[staticmethod]
    fn regex(pattern: String) -> Self {
        GrammarSpec::Regex(pattern).into()
    }

    #[staticmethod]
    fn lark(grammar: String) -> Self {
        GrammarSpec::Lark(grammar).into()
    }

    #[staticmethod]
    fn choice(choices: Vec<String>) -> Self {
        GrammarSpec::Choice(choices).into()
    }

    fn __repr__(&self) -> String {
        format!("StructuredOutput({})", self.0.name())
    }
}

#[pymethods]
impl PyChatFormat {
    #[getter]
    fn reasoning(&self) -> bool {
        self.0.has_reasoning()
    }

    #[getter]
    fn tools(&self) -> &'static str {
        self.0.tools()
    }

    #[getter]
    fn needs_special_tokens(&self) -> bool {
        self.0.needs_special_tokens()
    }

    #[pyo3(signature = (prompt, *, tools, reasoning=true))]
    fn parser(&self, prompt: &str, tools: Option<&str>, reasoning: bool) -> PyResult<PyChatParser> {
        let tools = tools.map(specs).transpose()?;
        Ok(PyChatParser(Mutex::new(self.0.parser(prompt, tools.as_deref(), reasoning))))
    }

    #[pyo3(signature = (prompt, *, tools, choice, parallel, structured=None))]
    fn constrain(
        &self,
        prompt: &str,
        tools: &str,
        choice: &str,
        parallel: bool,
        structured: Option<PyStructuredOutput>,
    ) -> PyResult<PyStructuredOutput> {
        // An answer of calls has no content that could be structured.
        drop(structured);
        let choice = match choice {
            "required" => ToolChoice::Required,
            name => ToolChoice::Named(name.to_owned()),
        };
        let spec = self.0.constrain(prompt, &specs(tools)?, choice, parallel);
        spec.map(PyStructuredOutput::from).map_err(|error| to_py(&EngineError::from(error)))
    }

    fn after_thinking(&self, prompt: &str, structured: &PyStructuredOutput) -> PyStructuredOutput {
        self.0.after_thinking(prompt, structured.0.as_ref().clone()).into()
    }

    fn thinking_budget(&self, prompt: &str, tokens: u32) -> Option<PyThinkingBudget> {
        self.0.thinking_budget(prompt, tokens).map(PyThinkingBudget)
    }
}

#[pymethods]
impl PyThinkingBudget {
    #[getter]
    fn tokens(&self) -> u32 {
        self.0.tokens
    }

    fn __repr__(&self) -> String {
        format!("ThinkingBudget({})", self.0.tokens)
    }
}

fn specs(tools: &str) -> PyResult<Vec<ToolSpec>> {
    ToolSpec::list(tools).map_err(|error| to_py(&EngineError::from(error)))
}

#[pymethods]
impl PyChatParser {
    fn push(&self, text: &str) -> Vec<PyChatEvent> {
        self.0.lock().push(text).into_iter().map(PyChatEvent::from).collect()
    }

    fn finish(&self) -> Vec<PyChatEvent> {
        self.0.lock().finish().into_iter().map(PyChatEvent::from).collect()
    }
}

#[pymethods]
impl PyChatEvent {
    fn __repr__(&self) -> String {
        format!("ChatEvent(kind={:?}, text={:?}, index={})", self.kind, self.text, self.index)
    }
}
