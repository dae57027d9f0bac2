//! Which format a chat template teaches: its own markers say so.

use super::ToolFormat;

/// Texts that show a format, most telling first: some templates mention a second format's markers too.
const SIGNS: [(&[&str], ToolFormat); 26] = [
    (&["<|channel|>"], ToolFormat::Harmony),
    (&["<|tool_call_argument_begin|>"], ToolFormat::KimiK2),
    (&["<tool_call>\n<function=", "<tool_call>\\n<function="], ToolFormat::QwenXml),
    (&["<seed:tool_call>"], ToolFormat::Seed),
    (&["<minimax:tool_call>"], ToolFormat::MiniMaxM2),
    (&["<atem:function_calls>"], ToolFormat::Muse),
    (&["<｜DSML｜tool_calls>", "dsml_token + 'tool_calls>"], ToolFormat::DeepSeekV4),
    (&["｜DSML｜"], ToolFormat::DeepSeekV32),
    (&["<|tool_call>call:"], ToolFormat::Gemma4),
    (&["<start_function_call>"], ToolFormat::FunctionGemma),
    (&["<tool_calls>["], ToolFormat::Apriel),
    (&["<tool_calls>\n{", "<tool_calls>\\n{"], ToolFormat::MiniMaxM1),
    (&["<|tool_call_start|>", "<|tool_list_start|>", "\"List of tools: [\""], ToolFormat::Lfm2),
    (&["<arg_key>"], ToolFormat::Glm),
    (&["[ARGS]"], ToolFormat::MistralNamed),
    (&["[TOOL_CALLS]"], ToolFormat::MistralList),
    (&["function<｜tool▁sep｜>", "['type'] + '<｜tool▁sep｜>"], ToolFormat::DeepSeekV3),
    (&["<｜tool▁sep｜>"], ToolFormat::DeepSeekV31),
    (&["<TOOLCALL>["], ToolFormat::Nemotron),
    (&["<|/tool_call|>", "functools["], ToolFormat::Phi4),
    (&["<|tool_call|>"], ToolFormat::Granite),
    (&["<tool_call></tool_call>", "<tool_call>{", "<tool_call>\n{", "<tool_call>\\n{"], ToolFormat::Hermes),
    (&["<|python_start|>"], ToolFormat::Pythonic),
    (&["<function=example_function_name>{"], ToolFormat::Functionary),
    (&["func_name1(params_name1="], ToolFormat::Pythonic),
    (&["{\"name\": function name, \"parameters\":"], ToolFormat::Llama3),
];

impl ToolFormat {
    /// The format of the calls that `template` shows, if it shows one that is known.
    pub fn detect(template: &str) -> Option<Self> {
        let shows = |signs: &[&str]| signs.iter().any(|sign| template.contains(sign));
        SIGNS.iter().find(|(signs, _)| shows(signs)).map(|&(_, format)| format)
    }

    /// What it is called in settings and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hermes => "hermes",
            Self::Llama3 => "llama3",
            Self::MistralList => "mistral_list",
            Self::MistralNamed => "mistral",
            Self::Pythonic => "pythonic",
            Self::DeepSeekV3 => "deepseek_v3",
            Self::DeepSeekV31 => "deepseek_v31",
            Self::KimiK2 => "kimi_k2",
            Self::Harmony => "harmony",
            Self::QwenXml => "qwen_xml",
            Self::Granite => "granite",
            Self::Phi4 => "phi4",
            Self::Nemotron => "nemotron",
            Self::Glm => "glm",
            Self::Seed => "seed",
            Self::MiniMaxM1 => "minimax_m1",
            Self::MiniMaxM2 => "minimax_m2",
            Self::Muse => "muse",
            Self::DeepSeekV32 => "deepseek_v32",
            Self::DeepSeekV4 => "deepseek_v4",
            Self::Apriel => "apriel",
            Self::Lfm2 => "lfm2",
            Self::Functionary => "functionary",
            Self::FunctionGemma => "functiongemma",
            Self::Gemma4 => "gemma4",
        }
    }

    /// Markers its parser must see; some vocabularies have them as control tokens.
    pub fn markers(self) -> &'static [&'static str] {
        match self {
            Self::Hermes | Self::QwenXml => &["<tool_call>", "</tool_call>"],
            Self::Llama3 => &["<|python_tag|>"],
            Self::MistralList => &["[TOOL_CALLS]"],
            Self::MistralNamed => &["[TOOL_CALLS]", "[ARGS]"],
            Self::Pythonic => &["<|python_start|>", "<|python_end|>"],
            Self::DeepSeekV3 | Self::DeepSeekV31 => &["<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"],
            Self::KimiK2 => &["<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"],
            Self::Harmony => &["<|channel|>", "<|message|>", "<|end|>"],
            Self::Granite => &["<|tool_call|>", "<tool_call>"],
            Self::Phi4 => &["<|tool_call|>", "<|/tool_call|>"],
            Self::Nemotron => &["<TOOLCALL>", "</TOOLCALL>"],
            Self::Glm => &["<tool_call>", "</tool_call>", "<arg_key>", "<arg_value>"],
            Self::Seed => &["<seed:tool_call>", "</seed:tool_call>"],
            Self::MiniMaxM1 | Self::Apriel => &["<tool_calls>", "</tool_calls>"],
            Self::MiniMaxM2 => &["<minimax:tool_call>", "</minimax:tool_call>"],
            Self::Muse => &["<atem:function_calls>", "</atem:function_calls>"],
            Self::DeepSeekV32 | Self::DeepSeekV4 => &["｜DSML｜"],
            Self::Lfm2 => &["<|tool_call_start|>", "<|tool_call_end|>"],
            Self::Functionary => &["<function="],
            Self::FunctionGemma => &["<start_function_call>", "<escape>", "<end_function_call>"],
            Self::Gemma4 => &["<|tool_call>", "<|\"|>", "<tool_call|>"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ToolFormat;

    #[test]
    fn templates_show_their_format() {
        for (template, format) in [
            (
                "within <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>",
                Some(ToolFormat::Hermes),
            ),
            ("{{- '\\n<tool_call>\\n<function=' + tool_call.name + '>\\n' }}", Some(ToolFormat::QwenXml)),
            ("Respond in the format {\"name\": function name, \"parameters\": dictionary", Some(ToolFormat::Llama3)),
            ("{{ '[TOOL_CALLS]' + name + '[ARGS]' }}", Some(ToolFormat::MistralNamed)),
            ("{{ '<tool_call>' + tc.name }}<arg_key>", Some(ToolFormat::Glm)),
            ("{{ '<start_function_call>call:' + name }}", Some(ToolFormat::FunctionGemma)),
            ("<function=x>{\"a\": 1}</function>", None),
            ("{% for message in messages %}{{ message.content }}", None),
        ] {
            assert_eq!(ToolFormat::detect(template), format, "{template}");
        }
    }
}
