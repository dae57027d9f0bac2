//! Which format a chat template teaches: its own markers say so.

use super::ToolFormat;

/// Texts that show a format, most telling first: some templates mention a second format's markers too.
const SIGNS: [(&[&str], ToolFormat); 15] = [
    (&["<|channel|>"], ToolFormat::Harmony),
    (&["<|tool_call_argument_begin|>"], ToolFormat::KimiK2),
    (&["<tool_call>\n<function=", "<tool_call>\\n<function="], ToolFormat::QwenXml),
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
    (&["func_name1(params_name1="], ToolFormat::Pythonic),
    (&["{\"name\": function name, \"parameters\":"], ToolFormat::Llama3),
];

impl ToolFormat {
    /// The format of the calls that `template` shows, if it shows one that is known.
    pub fn detect(template: &str) -> Option<Self> {
        let shows = |signs: &[&str]| signs.iter().any(|sign| template.contains(sign));
        SIGNS.iter().find(|(signs, _)| shows(signs)).map(|&(_, format)| format)
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
            ("<function=x>{\"a\": 1}</function>", None),
            ("{% for message in messages %}{{ message.content }}", None),
        ] {
            assert_eq!(ToolFormat::detect(template), format, "{template}");
        }
    }
}
