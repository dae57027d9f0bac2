//! What each family writes, cut anywhere.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{ToolEvent, ToolFormat, ToolParser, ToolSpec};

pub(super) fn tools() -> Vec<ToolSpec> {
    let weather = json!({"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                         "required": ["city"], "additionalProperties": false});
    vec![
        ToolSpec { name: "weather".into(), parameters: weather },
        ToolSpec { name: "now".into(), parameters: json!({"type": "object", "properties": {}}) },
    ]
}

/// Content, reasoning and calls of a whole output.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    content: String,
    reasoning: String,
    pub(super) calls: Vec<(String, String)>,
}

impl Outcome {
    pub(super) fn is_calls_only(&self) -> bool {
        self.content.is_empty() && self.reasoning.is_empty()
    }
}

pub(super) fn run(format: ToolFormat, pieces: &[&str]) -> Outcome {
    let mut parser = ToolParser::new(format, &tools());
    let mut events: Vec<ToolEvent> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    events.extend(parser.finish());
    let mut outcome = Outcome::default();
    for event in events {
        match event {
            ToolEvent::Content(text) => outcome.content.push_str(&text),
            ToolEvent::Reasoning(text) => outcome.reasoning.push_str(&text),
            ToolEvent::Start { index, name } => {
                assert_eq!(index as usize, outcome.calls.len());
                outcome.calls.push((name, String::new()));
            }
            ToolEvent::Arguments { index, delta } => {
                assert_eq!(index as usize + 1, outcome.calls.len());
                outcome.calls[index as usize].1.push_str(&delta);
            }
        }
    }
    outcome
}

#[track_caller]
fn check(format: ToolFormat, text: &str, content: &str, calls: &[(&str, Value)]) {
    let letters: Vec<String> = text.chars().map(String::from).collect();
    let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
    for outcome in [run(format, &[text]), run(format, &letters)] {
        assert_eq!(outcome.content, content, "{format:?} {text}");
        let found: Vec<(&str, Value)> = outcome
            .calls
            .iter()
            .map(|(name, arguments)| (name.as_str(), serde_json::from_str(arguments).expect(arguments)))
            .collect();
        assert_eq!(found, calls, "{format:?} {text}");
    }
}

fn paris() -> (&'static str, Value) {
    ("weather", json!({"city": "Paris"}))
}

fn now() -> (&'static str, Value) {
    ("now", json!({}))
}

/// Both calls as a family writes them.
fn two_calls(format: ToolFormat) -> &'static str {
    match format {
        ToolFormat::Hermes => concat!(
            "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>\n",
            "<tool_call>\n{\"arguments\": {}, \"name\": \"now\"}\n</tool_call>"
        ),
        ToolFormat::Llama3 => concat!(
            "<|python_tag|>{\"name\": \"weather\", \"parameters\": {\"city\": \"Paris\"}}; ",
            "{\"name\": \"now\", \"parameters\": {}}"
        ),
        ToolFormat::MistralList => concat!(
            "[TOOL_CALLS] [{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\"}, \"id\": \"123456789\"}, ",
            "{\"name\": \"now\", \"arguments\": {}}]"
        ),
        ToolFormat::MistralNamed => {
            "[TOOL_CALLS]weather[CALL_ID]123456789[ARGS]{\"city\": \"Paris\"}[TOOL_CALLS]now[ARGS]{}"
        }
        ToolFormat::Pythonic => "[weather(city='Paris'), now()]",
        ToolFormat::DeepSeekV3 => concat!(
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{\"city\": \"Paris\"}\n```",
            "<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜>",
            "<｜tool▁calls▁end｜>"
        ),
        ToolFormat::DeepSeekV31 => concat!(
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{\"city\": \"Paris\"}<｜tool▁call▁end｜>",
            "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
        ),
        ToolFormat::KimiK2 => concat!(
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>",
            "{\"city\": \"Paris\"}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}",
            "<|tool_call_end|><|tool_calls_section_end|>"
        ),
        ToolFormat::Harmony => concat!(
            "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{\"city\": \"Paris\"}<|call|>",
            "<|start|>assistant to=functions.now<|channel|>commentary <|constrain|>json<|message|>{}<|call|>"
        ),
        ToolFormat::QwenXml => concat!(
            "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>\n",
            "<tool_call>\n<function=now>\n</function>\n</tool_call>"
        ),
        ToolFormat::Nemotron => concat!(
            "<TOOLCALL>[{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\"}}, ",
            "{\"name\": \"now\", \"arguments\": {}}]</TOOLCALL>"
        ),
        ToolFormat::Glm => concat!(
            "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>\n",
            "<tool_call>now</tool_call>"
        ),
        ToolFormat::Granite => concat!(
            "<|tool_call|>[{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\"}}, ",
            "{\"name\": \"now\", \"arguments\": null}]"
        ),
        ToolFormat::Phi4 => concat!(
            "<|tool_call|>[{\"type\": \"function\", \"function\": {\"name\": \"weather\", \"arguments\": ",
            "{\"city\": \"Paris\"}}}, {\"name\": \"now\"}]<|/tool_call|>"
        ),
        ToolFormat::Seed => concat!(
            "<seed:tool_call>\n<function=weather>\n<parameter=city>Paris</parameter>\n</function>\n</seed:tool_call>\n",
            "<seed:tool_call>\n<function=now>\n</function>\n</seed:tool_call>"
        ),
        ToolFormat::MiniMaxM1 => concat!(
            "<tool_calls>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\"}}\n",
            "{\"name\": \"now\", \"arguments\": {}}\n</tool_calls>"
        ),
        ToolFormat::MiniMaxM2 => concat!(
            "\n<minimax:tool_call>\n<invoke name=\"weather\">\n<parameter name=\"city\">Paris</parameter>\n</invoke>\n",
            "<invoke name=\"now\">\n</invoke>\n</minimax:tool_call>"
        ),
        ToolFormat::Muse => concat!(
            "<atem:function_calls>\n<atem:invoke name=\"weather\">\n<atem:parameter name=\"city\">Paris</atem:parameter>\n",
            "</atem:invoke>\n</atem:function_calls>\n",
            "<atem:function_calls>\n<atem:invoke name=\"now\">\n</atem:invoke>\n</atem:function_calls>"
        ),
        ToolFormat::DeepSeekV32 => concat!(
            "\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"weather\">\n",
            "<｜DSML｜parameter name=\"city\" string=\"true\">Paris</｜DSML｜parameter>\n</｜DSML｜invoke>\n",
            "<｜DSML｜invoke name=\"now\">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>"
        ),
        ToolFormat::DeepSeekV4 => concat!(
            "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"weather\">\n",
            "<｜DSML｜parameter name=\"city\" string=\"false\">\"Paris\"</｜DSML｜parameter>\n</｜DSML｜invoke>\n",
            "<｜DSML｜invoke name=\"now\">\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
        ),
        ToolFormat::Apriel => concat!(
            "\n<tool_calls>[{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\"}, \"id\": \"1\"}, ",
            "{\"name\": \"now\", \"arguments\": {}}]</tool_calls>"
        ),
        ToolFormat::Lfm2 => "<|tool_call_start|>[weather(city=\"Paris\"), now()]<|tool_call_end|>",
        ToolFormat::Functionary => "<function=weather>{\"city\": \"Paris\"}</function><function=now>{}</function>",
        ToolFormat::FunctionGemma => concat!(
            "<start_function_call>call:weather{city:<escape>Paris<escape>}<end_function_call>",
            "<start_function_call>call:now{}<end_function_call><start_function_response>"
        ),
        ToolFormat::Gemma4 => concat!(
            "<|tool_call>call:weather{city:<|\"|>Paris<|\"|>}<tool_call|><|tool_call>call:now{}<tool_call|>",
            "<|tool_response>"
        ),
    }
}

#[test]
fn every_family_writes_two_calls() {
    for format in ToolFormat::ALL {
        check(format, two_calls(format), "", &[paris(), now()]);
    }
}

#[test]
fn text_before_a_call_is_content() {
    let call = "<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>";
    check(ToolFormat::Hermes, &format!("One moment.\n\n{call}\n"), "One moment.", &[now()]);
    check(ToolFormat::MistralNamed, "Hi [TOOL_CALLS]now[ARGS]{}", "Hi", &[now()]);
    check(ToolFormat::Lfm2, "Hi<|tool_call_start|>[now()]<|tool_call_end|>", "Hi", &[now()]);
    check(ToolFormat::Gemma4, "Hi<|tool_call>call:now{}<tool_call|>", "Hi", &[now()]);
    check(
        ToolFormat::MiniMaxM2,
        "Hi\n<minimax:tool_call><invoke name=\"now\"></invoke></minimax:tool_call>",
        "Hi",
        &[now()],
    );
    let text = "<|channel|>analysis<|message|>Think<|end|><|start|>assistant<|channel|>final<|message|>Hi<|return|>";
    let outcome = run(ToolFormat::Harmony, &[text]);
    assert_eq!((outcome.reasoning.as_str(), outcome.content.as_str()), ("Think", "Hi"));
}

#[test]
fn bare_json_is_a_call_only_with_a_known_name() {
    let bare = "{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\"}}";
    check(ToolFormat::Hermes, bare, "", &[paris()]);
    check(ToolFormat::Hermes, &format!("```json\n{bare}\n```\n"), "", &[paris()]);
    for block in ["```json\n{\"age\": 3}\n```", "x\n```json\n{}\n```", "```python\n1\n```"] {
        check(ToolFormat::Hermes, block, block, &[]);
    }
    check(ToolFormat::Llama3, &bare.replace("arguments", "parameters"), "", &[paris()]);
    for other in ["{\"name\": \"Bob\", \"arguments\": {}}", "{\"age\": 3}", "{}", "[1, 2]", "{\"name\": \"weather\""] {
        check(ToolFormat::Hermes, other, other, &[]);
    }
    // Its first key says that it is none, so it is not held back.
    let mut parser = ToolParser::new(ToolFormat::Hermes, &tools());
    assert_eq!(parser.push("{\"age\":"), [ToolEvent::Content("{\"age\":".into())]);
}

#[test]
fn what_is_no_call_stays_content() {
    for text in [
        "<tool_call>nonsense</tool_call>",
        "<tool_call>\n{\"nam\": 1}\n</tool_call> more",
        "<tool_call>{\"name\": \"now\", \"arguments\": {}",
        "a <tool_cal> b",
        "</tool_call>",
    ] {
        let expected = if text.ends_with("{}") { "" } else { text };
        let calls: &[_] = if text.ends_with("{}") { &[now()] } else { &[] };
        check(ToolFormat::Hermes, text, expected, calls);
    }
    check(ToolFormat::Pythonic, "[1, 2, 3]", "[1, 2, 3]", &[]);
    check(ToolFormat::Pythonic, "[weather(city)]", "[weather(city)]", &[]);
    check(ToolFormat::MistralNamed, "[TOOL_CALLS]not a name[ARGS]{}", "[TOOL_CALLS]not a name[ARGS]{}", &[]);
    check(ToolFormat::QwenXml, "<tool_call>text</tool_call>", "<tool_call>text</tool_call>", &[]);
    check(ToolFormat::KimiK2, "<|tool_call_begin|>x", "<|tool_call_begin|>x", &[]);
    check(ToolFormat::Granite, "<|tool_call|>{\"a\": 1}", "<|tool_call|>{\"a\": 1}", &[]);
    for (format, text) in [
        (ToolFormat::MiniMaxM1, "<tool_calls>\n</tool_calls>"),
        (ToolFormat::MiniMaxM2, "<minimax:tool_call>\n</minimax:tool_call>"),
        (ToolFormat::MiniMaxM2, "<invoke name=now></invoke>"),
        (ToolFormat::MiniMaxM2, "<invoke name=\"now\" string=\"true\"></invoke>"),
        (ToolFormat::Lfm2, "<|tool_call_start|>now()<|tool_call_end|>"),
        (ToolFormat::Gemma4, "<|tool_call>now{}<tool_call|>"),
        (ToolFormat::Gemma4, "<|tool_call>call:{}<tool_call|>"),
        (ToolFormat::Gemma4, "<|tool_call>call:now{a}<tool_call|>"),
        (ToolFormat::FunctionGemma, "<start_function_call>call:now{city:<escape>Par"),
    ] {
        check(format, text, text, &[]);
    }
}

#[test]
fn arguments_stream_before_the_call_ends() {
    let mut parser = ToolParser::new(ToolFormat::Hermes, &tools());
    assert_eq!(parser.push("<tool_call>{\"name\": \"weather\", \"arg"), []);
    let events = parser.push("uments\": {\"ci");
    let expected = [
        ToolEvent::Start { index: 0, name: "weather".into() },
        ToolEvent::Arguments { index: 0, delta: "{\"ci".into() },
    ];
    assert_eq!(events, expected);
}

#[test]
fn xml_values_have_their_schemas_types() {
    let text = "<function=weather>\n<parameter=city>\n12 <b>\n\n</parameter>\n<parameter=days>\n3\n</parameter>\n\
                <parameter=other>\n[1]\n</parameter>\n</function>\n</tool_call>";
    let expected = json!({"city": "12 <b>\n", "days": 3, "other": [1]});
    check(ToolFormat::QwenXml, text, "", &[("weather", expected)]);
}

#[test]
fn parameters_say_whether_they_are_text() {
    let call = |fields: &str| {
        format!(
            "<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"weather\">\n{fields}</｜DSML｜invoke>\n</｜DSML｜function_calls>"
        )
    };
    let fields = "<｜DSML｜parameter name=\"days\" string=\"true\">3</｜DSML｜parameter>\n\
                  <｜DSML｜parameter name=\"x\" string=\"false\">{\"a\": [1]}</｜DSML｜parameter>\n\
                  <｜DSML｜parameter name=\"city\">12</｜DSML｜parameter>\n";
    let expected = json!({"days": "3", "x": {"a": [1]}, "city": "12"});
    check(ToolFormat::DeepSeekV32, &call(fields), "", &[("weather", expected)]);
    let text = "<invoke name=\"weather\"><parameter name=\"city\">\n12\n</parameter><parameter name=\"days\">3</parameter></invoke>";
    check(ToolFormat::MiniMaxM2, text, "", &[("weather", json!({"city": "\n12\n", "days": 3}))]);
}

#[test]
fn lines_may_call_unknown_functions_like_any_marked_call() {
    let lines = "{\"name\": \"now\", \"arguments\": {}}\n{\"name\": \"other\", \"arguments\": {}}\n";
    check(ToolFormat::MiniMaxM1, &format!("<tool_calls>\n{lines}</tool_calls>"), "", &[now(), ("other", json!({}))]);
    let (first, second) = lines.split_once('\n').unwrap();
    check(ToolFormat::MiniMaxM1, &format!("{first}\n{second}"), second.trim_end(), &[now()]);
}

fn pieces() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "<tool_call>",
        "</tool_call>",
        "{\"name\": \"now\"",
        "{\"name\": \"weather\", ",
        "\"arguments\": {",
        "\"a\": [1, ",
        "]",
        "}",
        "}}",
        ", ",
        "[",
        "(",
        ")",
        "now",
        "weather",
        "city=",
        "'x'",
        "\"",
        "\\",
        "\n",
        " ",
        "é",
        "x",
        "[TOOL_CALLS]",
        "[ARGS]",
        "[CALL_ID]",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "function",
        "<｜tool▁call▁end｜>",
        "<|tool_call_begin|>",
        "functions.now:0",
        "<|tool_call_argument_begin|>",
        "<|tool_call_end|>",
        "<|channel|>",
        "analysis",
        "final",
        "commentary to=functions.now",
        "<|message|>",
        "<|call|>",
        "<|end|>",
        "<|start|>",
        "<function=now>",
        "<parameter=a>",
        "</parameter>",
        "</function>",
        "<|tool_call|>",
        "<|/tool_call|>",
        "<",
        "<|python_tag|>",
        "```json\n",
        "\n```",
        "<TOOLCALL>",
        "</TOOLCALL>",
        "<arg_key>",
        "</arg_key>",
        "<arg_value>",
        "</arg_value>",
        "<tool_calls>",
        "</tool_calls>",
        "<seed:tool_call>",
        "</seed:tool_call>",
        "<minimax:tool_call>",
        "</minimax:tool_call>",
        "<invoke name=\"now\">",
        "<parameter name=\"a\">",
        "</invoke>",
        "<｜DSML｜tool_calls>",
        "<｜DSML｜invoke name=\"now\">",
        "<｜DSML｜parameter name=\"a\" string=\"true\">",
        "</｜DSML｜parameter>",
        "</｜DSML｜invoke>",
        "<|tool_call_start|>",
        "<|tool_call_end|>",
        "<|tool_call>",
        "call:now{",
        "a:",
        "<|\"|>",
        "<tool_call|>",
        "<|tool_response>",
        "<start_function_call>",
        "<escape>",
        "<end_function_call>",
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_cut_gives_the_same(
        parts in prop::collection::vec(pieces(), 0..14),
        cuts in prop::collection::vec(0usize..120, 0..8),
    ) {
        let text = parts.concat();
        let mut borders: Vec<usize> = cuts.into_iter().filter(|&cut| cut < text.len() && text.is_char_boundary(cut)).collect();
        borders.extend([0, text.len()]);
        borders.sort_unstable();
        let cut: Vec<&str> = borders.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
        for format in ToolFormat::ALL {
            let whole = run(format, &[&text]);
            prop_assert_eq!(&run(format, &cut), &whole, "{:?}", format);
            // Without a call nothing is lost.
            let framed = matches!(format, ToolFormat::Harmony);
            let sections = ["</tool_call>", "<|tool_call_end|>", "<｜tool▁call▁end｜>"];
            let framed = framed || (format == ToolFormat::Functionary && text.contains("</function>"));
            if whole.calls.is_empty() && !framed && !sections.iter().any(|end| text.contains(end)) {
                prop_assert_eq!(&whole.content, &text, "{:?}", format);
            }
        }
    }
}

/// The string literals of a C++ source, quoted and raw.
fn literals(source: &str) -> Vec<String> {
    let raw = regex::Regex::new(r#"(?s)R"([A-Za-z_]*)\((.*?)\)[A-Za-z_]*""#).unwrap();
    let quoted = regex::Regex::new(r#""((?:[^"\\\n]|\\.)*)""#).unwrap();
    let mut all: Vec<String> = raw.captures_iter(source).map(|found| found[2].to_owned()).collect();
    let plain = |found: regex::Captures<'_>| serde_json::from_str::<String>(&format!("\"{}\"", &found[1])).ok();
    // Neighbouring literals are one text in C++; a line after the other is close enough here.
    let pieces: Vec<String> = quoted.captures_iter(source).filter_map(plain).collect();
    all.extend(pieces.windows(6).step_by(3).map(<[String]>::concat));
    all.extend(pieces);
    all
}

#[test]
fn what_llama_cpp_tests_with_is_read_alike_in_any_pieces() {
    let repository = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let models = std::env::var_os("FASTCHAT_MODELS").map_or_else(|| repository.join("models"), Into::into);
    let file = models.join("llama-chat-tests/test-chat.cpp");
    let Ok(source) = std::fs::read_to_string(&file) else {
        use std::io::Write;
        let hint = "`python tests/assets.py chat-cases` fetches it";
        let _ = writeln!(std::io::stderr(), "SKIPPED: {} is absent; {hint}", file.display());
        return;
    };
    let texts: Vec<String> = literals(&source).into_iter().filter(|text| text.contains(['<', '[', '{'])).collect();
    let mut random = crate::text::grammar_tests::random(7);
    let mut calls = 0;
    for text in &texts {
        let letters: Vec<&str> = text.split("").filter(|letter| !letter.is_empty()).collect();
        for format in ToolFormat::ALL {
            let whole = run(format, &[text]);
            calls += whole.calls.len();
            assert_eq!(run(format, &letters), whole, "{format:?}: {text}");
            let mut pieces = Vec::new();
            let mut rest = text.as_str();
            while let Some((end, _)) = rest.char_indices().nth(1 + random(9)) {
                pieces.push(&rest[..end]);
                rest = &rest[end..];
            }
            pieces.push(rest);
            assert_eq!(run(format, &pieces), whole, "{format:?}: {text}");
        }
    }
    assert!(texts.len() > 500 && calls > 500, "{} texts, {calls} calls", texts.len());
}
