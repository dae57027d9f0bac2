//! Which format a chat template teaches: its own markers say so.

use super::ToolFormat;

/// Markers, most telling first: some templates mention a second format's markers too.
const SIGNS: [(&str, ToolFormat); 14] = [
    ("<|channel|>", ToolFormat::Harmony),
    ("<|tool_call_argument_begin|>", ToolFormat::KimiK2),
    ("<function=", ToolFormat::QwenXml),
    ("[ARGS]", ToolFormat::MistralNamed),
    ("[TOOL_CALLS]", ToolFormat::MistralList),
    ("<｜tool▁sep｜>' + tool['function']['name']", ToolFormat::DeepSeekV3),
    ("<｜tool▁sep｜>", ToolFormat::DeepSeekV31),
    ("<|/tool_call|>", ToolFormat::Phi4),
    ("functools", ToolFormat::Phi4),
    ("<|tool_call|>", ToolFormat::Granite),
    ("<tool_call>", ToolFormat::Hermes),
    ("<|python_start|>", ToolFormat::Pythonic),
    ("func_name1(params_name1=", ToolFormat::Pythonic),
    ("\"parameters\": ", ToolFormat::Llama3),
];

impl ToolFormat {
    /// The format of the calls that `template` shows, if it knows tools at all.
    pub fn detect(template: &str) -> Option<Self> {
        if !template.contains("tools") && !template.contains("tool_calls") {
            return None;
        }
        // Meetkai's functions end in `</function>` on one line and hold JSON, which is another format.
        let signs = SIGNS.iter().filter(|(sign, _)| *sign != "<function=" || template.contains("<parameter="));
        signs.into_iter().find(|(sign, _)| template.contains(sign)).map(|&(_, format)| format)
    }
}
