//! What a chat template says of its model's answers, and the parser and the grammars that follow from it. Joins the
//! reasoning and the tool side; renders no template and knows no HTTP.

use std::sync::Arc;

use super::lark::{has_token, marker};
use super::tools::{ToolChoice, ToolConstraint, ToolEvent, ToolFormat, ToolParser, ToolSpec, analysis, tool_grammar};
use super::{GrammarSpec, ReasoningDelta, ReasoningMarkers, ReasoningSplitter, TextError, ThinkingBudget, Tokenizer};

/// Name of the call syntax where a template shows none.
const FALLBACK: &str = "json";

/// How one model writes reasoning and calls.
#[derive(Clone, Debug)]
pub struct ChatFormat {
    reasoning: Option<ReasoningMarkers>,
    tools: Option<ToolFormat>,
    tokenizer: Arc<Tokenizer>,
}

impl ChatFormat {
    /// Reads the source of a chat template.
    pub fn detect(template: &str, tokenizer: Arc<Tokenizer>) -> Self {
        let tools = ToolFormat::detect(template);
        let reasoning = ReasoningMarkers::detect(template).filter(|_| tools != Some(ToolFormat::Harmony));
        Self { reasoning, tools, tokenizer }
    }

    /// Whether the model writes its reasoning in a block of its own.
    pub fn has_reasoning(&self) -> bool {
        self.reasoning.is_some() || self.tools == Some(ToolFormat::Harmony)
    }

    /// Name of the call syntax.
    pub fn tools(&self) -> &'static str {
        self.tools.map_or(FALLBACK, ToolFormat::name)
    }

    /// Whether a marker is a special token, which a text without special tokens would lose.
    pub fn needs_special_tokens(&self) -> bool {
        let reasoning = self.reasoning.iter().flat_map(|markers| [markers.open, markers.close]);
        let tools = self.tools.into_iter().flat_map(|format| format.markers().iter().copied());
        reasoning.chain(tools).any(|marker| has_token(&self.tokenizer, marker))
    }

    /// Calls a model without a syntax of its own makes are Hermes', or bare JSON, which that parser understands too.
    fn format(&self) -> ToolFormat {
        self.tools.unwrap_or(ToolFormat::Hermes)
    }

    /// Whether the output begins inside the reasoning; `None` where the model will not think.
    fn thinking(&self, prompt: &str) -> Option<(ReasoningMarkers, bool)> {
        let markers = self.reasoning?;
        (!prompt.trim_end().ends_with(markers.close)).then(|| (markers, markers.opened_by(prompt)))
    }

    /// A parser of one output behind `prompt`. Without `tools` their syntax is text, as reasoning is if not wanted.
    pub fn parser(&self, prompt: &str, tools: Option<&[ToolSpec]>, reasoning: bool) -> ChatParser {
        let splits = self.reasoning.filter(|_| reasoning);
        let offered = tools.filter(|tools| !tools.is_empty());
        let format = self.format();
        // Channels are no text in any case.
        let parses = offered.is_some() || format == ToolFormat::Harmony;
        ChatParser {
            splitter: splits.map(|markers| ReasoningSplitter::new(markers, markers.opened_by(prompt))),
            tools: parses.then(|| ToolParser::new(format, offered.unwrap_or_default())),
            reasoning,
            calls: offered.is_some(),
        }
    }

    /// An answer of calls alone, in the model's own syntax, after its thoughts.
    ///
    /// # Errors
    /// A choice that no tool satisfies.
    pub fn constrain(
        &self,
        prompt: &str,
        tools: &[ToolSpec],
        choice: ToolChoice,
        parallel: bool,
    ) -> Result<GrammarSpec, TextError> {
        let constraint = ToolConstraint { format: self.format(), choice, parallel, thinking: self.thinking(prompt) };
        tool_grammar(&constraint, tools, &self.tokenizer)
    }

    /// A bound on the thoughts of an output behind `prompt`; `None` where the model does not think, or not in a block.
    pub fn thinking_budget(&self, prompt: &str, tokens: u32) -> Option<ThinkingBudget> {
        self.thinking(prompt).map(|(markers, opened)| ThinkingBudget { tokens, markers, opened })
    }

    /// `answer` behind the thoughts of a model that thinks.
    #[must_use]
    pub fn after_thinking(&self, prompt: &str, answer: GrammarSpec) -> GrammarSpec {
        if self.tools == Some(ToolFormat::Harmony) {
            let (channel, message) = (marker(&self.tokenizer, "<|channel|>"), marker(&self.tokenizer, "<|message|>"));
            let thoughts = format!("start: {} {channel} \"final\" {message} @answer\n", analysis(&self.tokenizer));
            return GrammarSpec::AfterThinking { thoughts, answer: Box::new(answer) };
        }
        match self.thinking(prompt) {
            Some((markers, opened)) => answer.after_thinking(markers, opened, &self.tokenizer),
            None => answer,
        }
    }
}

/// Takes one output apart.
#[derive(Debug)]
pub struct ChatParser {
    splitter: Option<ReasoningSplitter>,
    tools: Option<ToolParser>,
    reasoning: bool,
    calls: bool,
}

impl ChatParser {
    /// Takes the next piece of text.
    pub fn push(&mut self, piece: &str) -> Vec<ToolEvent> {
        let delta = match &mut self.splitter {
            Some(splitter) => splitter.push(piece),
            None => ReasoningDelta { content: piece.to_owned(), ..ReasoningDelta::default() },
        };
        self.events(delta)
    }

    /// Gives out what was held when the output ends.
    pub fn finish(&mut self) -> Vec<ToolEvent> {
        let held = self.splitter.as_mut().map(ReasoningSplitter::finish).unwrap_or_default();
        let mut events = self.events(held);
        let rest = self.tools.as_mut().map(ToolParser::finish).unwrap_or_default();
        events.extend(rest.into_iter().filter_map(|event| self.wanted(event)));
        events
    }

    fn events(&mut self, delta: ReasoningDelta) -> Vec<ToolEvent> {
        let ReasoningDelta { reasoning, content } = delta;
        let mut events = Vec::new();
        if !reasoning.is_empty() {
            events.push(ToolEvent::Reasoning(reasoning));
        }
        match &mut self.tools {
            Some(tools) => {
                let found = tools.push(&content);
                events.extend(found.into_iter().filter_map(|event| self.wanted(event)));
            }
            None if content.is_empty() => {}
            None => events.push(ToolEvent::Content(content)),
        }
        events
    }

    /// What the reader did not ask for is content to him.
    fn wanted(&self, event: ToolEvent) -> Option<ToolEvent> {
        Some(match event {
            ToolEvent::Reasoning(text) if !self.reasoning => ToolEvent::Content(text),
            ToolEvent::Start { .. } if !self.calls => return None,
            ToolEvent::Arguments { delta, .. } if !self.calls => ToolEvent::Content(delta),
            event => event,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::super::grammar_tests::END;
    use super::super::test_vocabulary::byte_level;
    use super::super::{GrammarCompiler, GrammarSpec, TextError};
    use super::{ChatFormat, ToolChoice, ToolEvent, ToolSpec};

    const QWEN3: &str = "<tool_call>\n{\"name\": <function-name>}\n</tool_call> {% if '</think>' in content %}";
    const TOOLS: &str = r#"[{"type": "function", "function": {"name": "now", "parameters": {"type": "object",
        "properties": {}, "additionalProperties": false}}}]"#;

    fn detect(template: &str) -> ChatFormat {
        ChatFormat::detect(template, Arc::new(byte_level()))
    }

    fn run(format: &ChatFormat, prompt: &str, tools: Option<&str>, reasoning: bool, text: &str) -> Vec<ToolEvent> {
        let tools = tools.map(|tools| ToolSpec::list(tools).unwrap());
        let mut parser = format.parser(prompt, tools.as_deref(), reasoning);
        let mut events = parser.push(text);
        events.extend(parser.finish());
        events
    }

    fn content(text: &str) -> ToolEvent {
        ToolEvent::Content(text.to_owned())
    }

    #[test]
    fn a_template_says_how_its_model_answers() {
        let qwen = detect(QWEN3);
        assert!(qwen.has_reasoning() && !qwen.needs_special_tokens());
        assert_eq!(qwen.tools(), "hermes");
        let plain = detect("{{ message.content }}<|im_end|>");
        assert!(!plain.has_reasoning() && !plain.needs_special_tokens());
        assert_eq!(plain.tools(), "json");
        let harmony = detect("<|channel|>analysis");
        assert!(harmony.has_reasoning());
        assert_eq!(harmony.tools(), "harmony");
    }

    #[test]
    fn reasoning_and_calls_come_apart_where_wanted() {
        let call = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
        let text = format!("<think>\nhm\n</think>\n\n{call}");
        let start = ToolEvent::Start { index: 0, name: "now".into() };
        let arguments = ToolEvent::Arguments { index: 0, delta: "{}".into() };
        let thought = ToolEvent::Reasoning("hm".into());
        let format = detect(QWEN3);
        assert_eq!(run(&format, "", Some(TOOLS), true, &text), [thought.clone(), start, arguments]);
        assert_eq!(run(&format, "", None, true, &text), [thought.clone(), content(call)]);
        assert_eq!(run(&format, "", None, false, &text), [content(&text)]);
        assert_eq!(run(&format, "assistant\n<think>\n", None, true, "hm</think>a"), [thought, content("a")]);
        let harmony = detect("<|channel|>");
        let text = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>a";
        assert_eq!(run(&harmony, "", None, true, text), [ToolEvent::Reasoning("hm".into()), content("a")]);
    }

    /// Whether the compiled grammar allows every byte of `text` and then the end.
    fn accepts(spec: &GrammarSpec, text: &str) -> bool {
        let tokenizer = byte_level();
        let mut matcher = GrammarCompiler::new(&tokenizer, &[END]).unwrap().compile(spec).unwrap();
        text.bytes().all(|byte| matcher.accept(u32::from(byte)).is_ok()) && matcher.can_stop().unwrap()
    }

    #[test]
    fn forced_answers_begin_behind_the_thoughts() {
        let (format, tools) = (detect(QWEN3), ToolSpec::list(TOOLS).unwrap());
        let call = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
        let required = |prompt: &str| format.constrain(prompt, &tools, ToolChoice::Required, false).unwrap();
        let thinking = format!("hm</think>\n\n{call}");
        assert!(accepts(&required("a"), call) && accepts(&required("a"), &format!("<think>{thinking}")));
        assert!(accepts(&required("a<think>\n"), &thinking) && !accepts(&required("a<think>\n"), call));
        assert!(!accepts(&required("<think>\n\n</think>\n\n"), &format!("<think>{thinking}")));
        let named = format.constrain("", &tools, ToolChoice::Named("later".into()), false);
        assert!(matches!(named, Err(TextError::Grammar { kind: "tool_choice", .. })));

        let number = || GrammarSpec::JsonSchema(json!({"type": "integer"}));
        assert!(accepts(&format.after_thinking("<think>", number()), "hm</think>7"));
        assert!(accepts(&detect("").after_thinking("<think>", number()), "7"));
        let harmony = detect("<|channel|>").after_thinking("", number());
        assert!(accepts(&harmony, "<|channel|>final<|message|>7") && !accepts(&harmony, "7"));
    }

    #[test]
    fn a_list_of_tools_is_refused_by_field() {
        for (tools, says) in [
            ("{}", "a list"),
            ("[", "JSON"),
            (r#"[{"type": "function"}]"#, "[0].function"),
            (r#"[{"function": {"name": ""}}]"#, "[0].function.name"),
            (r#"[{"function": {"name": "a", "parameters": 3}}]"#, "[0].function.parameters"),
        ] {
            let Err(TextError::Grammar { kind: "tools", message }) = ToolSpec::list(tools) else { panic!("{tools}") };
            assert!(message.contains(says) && !message.contains('\n'), "{message}");
        }
    }
}
