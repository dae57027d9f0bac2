//! Tool calls in what a model writes. Must hold for every format, any text and any cuts: the same events as for the whole,
//! calls counted from zero without gaps, arguments only of the call begun last, and no more text than came in.

use fastchat_engine::text::tools::{ToolEvent, ToolFormat, ToolParser, ToolSpec};

use crate::text::pieces;

const TOOLS: &str = r#"[{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties":
    {"city": {"type": "string"}, "days": {"type": "integer"}, "near": {"type": "array"}}}}}, {"function": {"name": "now"}}]"#;

/// The first byte is the format, the rest a text whose pieces are ended by ones.
pub fn check(input: &[u8]) {
    let Some((&format, rest)) = input.split_first() else { return };
    let format = ToolFormat::ALL[usize::from(format) % ToolFormat::ALL.len()];
    let tools = ToolSpec::list(TOOLS).expect("a good list");
    let pieces = pieces(rest);
    let text = pieces.concat();

    let whole = run(format, &tools, [text.as_str()].into_iter());
    let streamed = run(format, &tools, pieces.iter().map(String::as_str));
    assert_eq!(streamed, whole, "{format:?}");
    let letters: Vec<String> = text.chars().map(String::from).collect();
    assert_eq!(run(format, &tools, letters.iter().map(String::as_str)), whole, "{format:?}");
    // A character of the text may be written in JSON with six.
    let size: usize = whole.iter().map(size).sum();
    assert!(size <= 6 * text.len() + 64, "{format:?} made {size} bytes of {}", text.len());
}

fn size(event: &ToolEvent) -> usize {
    match event {
        ToolEvent::Content(text) | ToolEvent::Reasoning(text) => text.len(),
        ToolEvent::Start { name, .. } => name.len(),
        ToolEvent::Arguments { delta, .. } => delta.len(),
    }
}

/// The events of a stream, neighbours of one kind joined.
fn run<'a>(format: ToolFormat, tools: &[ToolSpec], pieces: impl Iterator<Item = &'a str>) -> Vec<ToolEvent> {
    let mut parser = ToolParser::new(format, tools);
    let mut events: Vec<ToolEvent> = pieces.flat_map(|piece| parser.push(piece)).collect();
    events.extend(parser.finish());
    let mut joined: Vec<ToolEvent> = Vec::new();
    let mut calls = 0;
    for event in events {
        match (joined.last_mut(), &event) {
            (Some(ToolEvent::Content(last)), ToolEvent::Content(more))
            | (Some(ToolEvent::Reasoning(last)), ToolEvent::Reasoning(more))
            | (Some(ToolEvent::Arguments { delta: last, .. }), ToolEvent::Arguments { delta: more, .. }) => {
                last.push_str(more);
                continue;
            }
            (_, ToolEvent::Start { index, .. }) => {
                assert_eq!(*index, calls);
                calls += 1;
            }
            (_, ToolEvent::Arguments { index, .. }) => assert_eq!(index + 1, calls),
            _ => {}
        }
        joined.push(event);
    }
    assert_eq!(parser.calls(), calls);
    joined
}
