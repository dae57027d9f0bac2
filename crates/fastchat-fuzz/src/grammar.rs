//! A client's schema, expression, grammar or choices, compiled and followed. Must hold: a typed error in one line or a
//! matcher; every token that a mask allows is accepted; a finished text of a schema is JSON.

use fastchat_engine::text::{GrammarCompiler, GrammarSpec, Matcher, TextError};

use crate::text::check_message;
use crate::vocabulary;

/// Tokens that are followed.
const STEPS: usize = 48;

/// The first byte is the kind (`r`egex, `l`ark, `c`hoices by line, all else a schema), the rest its text.
pub fn check(input: &[u8]) {
    let Some((&kind, rest)) = input.split_first() else { return };
    let text = String::from_utf8_lossy(rest).into_owned();
    let spec = match kind {
        b'r' => GrammarSpec::Regex(text),
        b'l' => GrammarSpec::Lark(text),
        b'c' => GrammarSpec::Choice(text.lines().map(str::to_owned).collect()),
        _ => match serde_json::from_str(&text) {
            Ok(schema) => GrammarSpec::JsonSchema(schema),
            Err(_) => return,
        },
    };
    let compiler = GrammarCompiler::new(&vocabulary::tokenizer(), &[vocabulary::END]).expect("a good vocabulary");
    match compiler.compile(&spec) {
        Ok(matcher) => follow(matcher, &spec, rest),
        Err(error) => {
            assert!(matches!(error, TextError::Grammar { .. }), "{error:?}");
            check_message(&error);
        }
    }
}

/// Takes allowed tokens, which ones the input says.
fn follow(mut matcher: Matcher, spec: &GrammarSpec, choices: &[u8]) {
    let mut text = Vec::new();
    for step in 0..STEPS {
        let mask = match matcher.mask() {
            Ok(mask) => mask,
            // A grammar may be too costly to follow, or lead nowhere.
            Err(error) => return check_message(&error),
        };
        let allowed = mask.ids();
        let turn = usize::from(choices.get(step).copied().unwrap_or(0));
        let id = allowed[turn % allowed.len()];
        // Once nothing else can follow, the end is what the mask shows and is not taken any more.
        let finished = matcher.is_finished();
        assert!(!finished || allowed == [vocabulary::END], "{allowed:?} behind the end");
        if !finished {
            matcher.accept(id).expect("a token of the mask");
        }
        if id == vocabulary::END {
            assert!(matcher.is_finished());
            let json = matches!(spec, GrammarSpec::JsonSchema(_));
            assert!(!json || is_json(&text), "{text:?}");
            return;
        }
        text.extend_from_slice(vocabulary::tokenizer().token_bytes(id).expect("an id of the vocabulary"));
    }
}

/// By JSON's grammar: a number may be larger than any float, which a reader of values would refuse.
fn is_json(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok())
}
