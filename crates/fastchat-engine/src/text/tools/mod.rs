//! Tool calls in a model's output: found and taken apart while they come. Every parser decides per character, so a
//! stream cut anywhere gives the same calls as the whole; what turns out to be no call is content, unchanged.

mod arguments;
mod constrain;
mod detect;
mod events;
mod families;
mod gemma;
mod gemma_grammar;
mod gemma_value;
mod glm;
mod harmony;
mod json_call;
mod json_list;
mod json_value;
mod named;
mod python_value;
mod pythonic;
mod spec;
mod tagged;
mod tags;
#[cfg(test)]
mod tests;
mod xml;

pub(crate) use constrain::analysis;
pub use constrain::{ToolChoice, ToolConstraint, tool_grammar};
pub use events::ToolEvent;
pub use spec::ToolSpec;

use events::Events;
use tagged::Tagged;

/// How a family of models writes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ToolFormat {
    /// `<tool_call>{"name": .., "arguments": ..}</tool_call>` (Hermes, Qwen, Granite 4); bare JSON is understood too.
    Hermes,
    /// `{"name": .., "parameters": ..}`, perhaps behind `<|python_tag|>` (Llama 3).
    Llama3,
    /// `[TOOL_CALLS][{"name": .., "arguments": ..}]` (Mistral before 2025).
    MistralList,
    /// `[TOOL_CALLS]name[ARGS]{..}` (Mistral since 2025).
    MistralNamed,
    /// `[name(key=value), ..]` (Llama 3.2 and 4).
    Pythonic,
    /// `<｜tool▁call▁begin｜>function<｜tool▁sep｜>name` and a fenced block (DeepSeek V3, R1).
    DeepSeekV3,
    /// `<｜tool▁call▁begin｜>name<｜tool▁sep｜>{..}` (DeepSeek V3.1).
    DeepSeekV31,
    /// `<|tool_call_begin|>functions.name:0<|tool_call_argument_begin|>{..}` (Kimi K2).
    KimiK2,
    /// Channels; `commentary to=functions.name` is a call and `analysis` is reasoning (gpt-oss).
    Harmony,
    /// `<function=name><parameter=key>value</parameter></function>` (Qwen3-Coder).
    QwenXml,
    /// `<|tool_call|>[{"name": .., "arguments": ..}]` (Granite 3).
    Granite,
    /// `<|tool_call|>[..]<|/tool_call|>` or `functools[..]` (Phi 4).
    Phi4,
    /// `<TOOLCALL>[{"name": .., "arguments": ..}]</TOOLCALL>` (Nemotron Nano 2).
    Nemotron,
    /// `<tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>` (GLM 4.5 and later).
    Glm,
    /// As Qwen's, in `<seed:tool_call>` and without line breaks around values (Seed-OSS).
    Seed,
    /// `<tool_calls>`, a line of `{"name": .., "arguments": ..}` per call (MiniMax M1).
    MiniMaxM1,
    /// `<minimax:tool_call><invoke name=".."><parameter name="..">value</parameter></invoke>` (MiniMax M2).
    MiniMaxM2,
    /// The same with `atem:` in every tag (Muse).
    Muse,
    /// `<｜DSML｜function_calls>`, invocations whose parameters say whether they are text (DeepSeek V3.2).
    DeepSeekV32,
    /// The same in `<｜DSML｜tool_calls>` (DeepSeek V4).
    DeepSeekV4,
    /// `<tool_calls>[{"name": .., "arguments": ..}]</tool_calls>` (Apriel).
    Apriel,
    /// `<|tool_call_start|>[name(key=value), ..]<|tool_call_end|>` (LFM2).
    Lfm2,
    /// `<function=name>{..}</function>` (Functionary 3.1).
    Functionary,
    /// `<start_function_call>call:name{key:<escape>text<escape>}<end_function_call>` (FunctionGemma).
    FunctionGemma,
    /// `<|tool_call>call:name{key:<|"|>text<|"|>}<tool_call|>` (Gemma 4).
    Gemma4,
}

impl ToolFormat {
    /// Every format.
    pub const ALL: [Self; 25] = [
        Self::Hermes,
        Self::Llama3,
        Self::MistralList,
        Self::MistralNamed,
        Self::Pythonic,
        Self::DeepSeekV3,
        Self::DeepSeekV31,
        Self::KimiK2,
        Self::Harmony,
        Self::QwenXml,
        Self::Granite,
        Self::Phi4,
        Self::Nemotron,
        Self::Glm,
        Self::Seed,
        Self::MiniMaxM1,
        Self::MiniMaxM2,
        Self::Muse,
        Self::DeepSeekV32,
        Self::DeepSeekV4,
        Self::Apriel,
        Self::Lfm2,
        Self::Functionary,
        Self::FunctionGemma,
        Self::Gemma4,
    ];
}

/// One format's state.
pub(crate) trait Format: Send + std::fmt::Debug {
    /// Takes one character.
    fn feed(&mut self, letter: char, out: &mut Events);
    /// The output has ended.
    fn finish(&mut self, out: &mut Events);
}

/// Finds the calls in one output.
#[derive(Debug)]
pub struct ToolParser {
    format: Box<dyn Format>,
    events: Events,
}

impl ToolParser {
    /// `tools` tell calls from other JSON where a format has no marker, and types where it has none.
    pub fn new(format: ToolFormat, tools: &[ToolSpec]) -> Self {
        let names: Vec<String> = tools.iter().map(|tool| tool.name.clone()).collect();
        let tagged = |openers, closers, bare| -> Box<dyn Format> { Box::new(Tagged::new(openers, closers, bare)) };
        let format: Box<dyn Format> = match format {
            ToolFormat::Hermes => tagged(&["<tool_call>"], &["</tool_call>"], Some(names)),
            ToolFormat::Llama3 => tagged(&["<|python_tag|>"], &[";"], Some(names)),
            ToolFormat::Granite => tagged(&["<|tool_call|>", "<tool_call>"], &["</tool_call>"], None),
            ToolFormat::Phi4 => tagged(&["<|tool_call|>", "functools"], &["<|/tool_call|>"], None),
            ToolFormat::Nemotron => tagged(&["<TOOLCALL>"], &["</TOOLCALL>"], None),
            ToolFormat::Apriel => tagged(&["<tool_calls>"], &["</tool_calls>"], None),
            ToolFormat::MiniMaxM1 => Box::new(Tagged::lines(&["<tool_calls>"], &["</tool_calls>"], names)),
            ToolFormat::Glm => Box::new(glm::Glm::new(tools)),
            ToolFormat::MistralList | ToolFormat::MistralNamed => Box::new(named::Named::new(named::MISTRAL)),
            ToolFormat::DeepSeekV3 | ToolFormat::DeepSeekV31 => Box::new(named::Named::new(named::DEEPSEEK)),
            ToolFormat::KimiK2 => Box::new(named::Named::new(named::KIMI)),
            ToolFormat::Functionary => Box::new(named::Named::new(named::FUNCTIONARY)),
            ToolFormat::Pythonic => Box::new(pythonic::Pythonic::new("<|python_start|>", "<|python_end|>")),
            ToolFormat::Lfm2 => Box::new(pythonic::Pythonic::new("<|tool_call_start|>", "<|tool_call_end|>")),
            ToolFormat::Harmony => Box::new(harmony::Harmony::new()),
            ToolFormat::FunctionGemma => Box::new(gemma::Gemma::new(&gemma::FUNCTION_GEMMA, tools)),
            ToolFormat::Gemma4 => Box::new(gemma::Gemma::new(&gemma::GEMMA_4, tools)),
            ToolFormat::QwenXml => Box::new(xml::Xml::new(&families::QWEN, tools)),
            ToolFormat::Seed => Box::new(xml::Xml::new(&families::SEED, tools)),
            ToolFormat::MiniMaxM2 => Box::new(xml::Xml::new(&families::MINIMAX_M2, tools)),
            ToolFormat::Muse => Box::new(xml::Xml::new(&families::MUSE, tools)),
            ToolFormat::DeepSeekV32 => Box::new(xml::Xml::new(&families::DEEPSEEK_V32, tools)),
            ToolFormat::DeepSeekV4 => Box::new(xml::Xml::new(&families::DEEPSEEK_V4, tools)),
        };
        Self { format, events: Events::default() }
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, piece: &str) -> Vec<ToolEvent> {
        for letter in piece.chars() {
            self.format.feed(letter, &mut self.events);
        }
        self.events.take()
    }

    /// Gives out what was held when the output ends.
    pub fn finish(&mut self) -> Vec<ToolEvent> {
        self.format.finish(&mut self.events);
        self.events.end();
        self.events.take()
    }

    /// Number of calls begun so far.
    pub fn calls(&self) -> u32 {
        self.events.calls()
    }
}
