//! Random walks through masks: whatever the mask allows must end in a text the constraint accepts.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::test_vocabulary::{byte_level, byte_level_without};
use super::{GrammarCompiler, GrammarSpec, Matcher, REASONING_MARKERS, TextError, Tokenizer};

pub(crate) const END: u32 = 257;

fn compiler(tokenizer: &Tokenizer) -> GrammarCompiler {
    GrammarCompiler::new(tokenizer, &[END]).unwrap()
}

/// Follows random allowed tokens, rarely blanks; calls `check` with every prefix and whether it may end there.
pub(crate) fn walk(
    tokenizer: &Tokenizer,
    matcher: &mut Matcher,
    random: &mut impl FnMut(usize) -> usize,
    check: &mut dyn FnMut(&[u8], bool),
) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for step in 0..300 {
        let mask = matcher.mask().unwrap();
        let may_end = mask.allows(END);
        assert_eq!(may_end, matcher.can_stop().unwrap());
        check(&bytes, may_end);
        let blank = |id: u32| tokenizer.token_bytes(id).unwrap().iter().all(u8::is_ascii_whitespace);
        let mut ids = mask.ids();
        assert!(!ids.is_empty(), "no token may follow {:?}", String::from_utf8_lossy(&bytes));
        if ids.iter().any(|&id| !blank(id)) && step % 7 != 0 {
            ids.retain(|&id| !blank(id));
        }
        let ends = may_end && (step > 60 || matcher.is_finished() || random(4) == 0);
        let id = if ends { END } else { ids[random(ids.len())] };
        if id == END {
            return Some(bytes);
        }
        bytes.extend_from_slice(tokenizer.token_bytes(id).unwrap());
        matcher.accept(id).unwrap();
    }
    None
}

/// Numbers below a limit, the same for the same seed.
pub(crate) fn random(seed: u64) -> impl FnMut(usize) -> usize {
    let mut state = (seed ^ 0x5851_f42d).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    move |limit| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % limit
    }
}

pub(crate) fn schemas() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!({"type": "integer", "minimum": -20, "maximum": 300})),
        Just(json!({"type": "number", "minimum": -1.5, "maximum": 1000})),
        Just(json!({"type": "boolean"})),
        Just(json!({"type": "null"})),
        Just(json!({"type": "string", "maxLength": 4})),
        Just(json!({"type": "string", "pattern": "^[ab]{1,3}$"})),
        Just(json!({"enum": ["true", "é", 1, null]})),
        Just(json!({"const": {"a": [1]}})),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            (inner.clone(), 0usize..2).prop_map(|(items, least)| {
                json!({"type": "array", "items": items, "minItems": least, "maxItems": 2})
            }),
            (inner.clone(), inner.clone(), any::<bool>()).prop_map(|(a, b, both)| {
                let required = if both { json!(["a", "b"]) } else { json!(["b"]) };
                json!({"type": "object", "properties": {"a": a, "b": b}, "required": required,
                       "additionalProperties": false})
            }),
            (inner.clone(), inner).prop_map(|(a, b)| json!({"anyOf": [a, b]})),
        ]
    })
}

/// The part of JSON Schema that [`schemas`] makes.
pub(crate) fn accepts(schema: &Value, value: &Value) -> bool {
    if let Some(options) = schema["anyOf"].as_array() {
        return options.iter().any(|option| accepts(option, value));
    }
    if let Some(options) = schema["enum"].as_array() {
        return options.contains(value);
    }
    if !schema["const"].is_null() {
        return schema["const"] == *value;
    }
    match schema["type"].as_str().unwrap() {
        "integer" => value.as_f64().is_some_and(|n| n.fract() == 0.0 && (-20.0..=300.0).contains(&n)),
        "number" => value.as_f64().is_some_and(|n| (-1.5..=1000.0).contains(&n)),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "string" => value.as_str().is_some_and(|text| {
            let fits = text.chars().count() <= 4;
            let pattern = (1..=3).contains(&text.len()) && text.chars().all(|c| "ab".contains(c));
            if schema["pattern"].is_null() { fits } else { pattern }
        }),
        "array" => value.as_array().is_some_and(|items| {
            items.len() <= 2
                && items.len() as u64 >= schema["minItems"].as_u64().unwrap()
                && items.iter().all(|item| accepts(&schema["items"], item))
        }),
        "object" => value.as_object().is_some_and(|fields| {
            let required = schema["required"].as_array().unwrap();
            required.iter().all(|name| fields.contains_key(name.as_str().unwrap()))
                && fields.iter().all(|(name, field)| accepts(&schema["properties"][name], field))
        }),
        other => panic!("no schema of type {other} is made"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_path_of_a_schema_is_valid_json(schema in schemas(), seed in any::<u64>()) {
        let tokenizer = byte_level();
        let mut matcher = compiler(&tokenizer).compile(&GrammarSpec::JsonSchema(schema.clone())).unwrap();
        let mut random = random(seed);
        let mut check = |bytes: &[u8], may_end: bool| {
            let value = serde_json::from_slice::<Value>(bytes).ok();
            let complete = value.as_ref().is_some_and(|value| accepts(&schema, value));
            // The grammar may refuse another spelling of a number, never end on something the schema refuses.
            assert!(!may_end || complete, "{schema} may end after {:?}", String::from_utf8_lossy(bytes));
        };
        let text = walk(&tokenizer, &mut matcher, &mut random, &mut check);
        prop_assert!(text.is_some(), "{schema} never ends");
    }
}

fn all_texts(tokenizer: &Tokenizer, matcher: &Matcher, prefix: &[u8], out: &mut Vec<String>) {
    let mut matcher = matcher.fork();
    for id in matcher.mask().unwrap().ids() {
        if id == END {
            out.push(String::from_utf8(prefix.to_vec()).unwrap());
            continue;
        }
        let mut next = matcher.fork();
        next.accept(id).unwrap();
        let longer = [prefix, tokenizer.token_bytes(id).unwrap()].concat();
        all_texts(tokenizer, &next, &longer, out);
    }
}

#[test]
fn a_choice_allows_its_strings_and_nothing_else() {
    let tokenizer = byte_level();
    let choices = ["true", "tr", "a\"b\n", "ab", "é"].map(str::to_owned).to_vec();
    let matcher = compiler(&tokenizer).compile(&GrammarSpec::Choice(choices.clone())).unwrap();
    let mut texts = Vec::new();
    all_texts(&tokenizer, &matcher, b"", &mut texts);
    texts.sort();
    texts.dedup();
    let mut expected = choices;
    expected.sort();
    assert_eq!(texts, expected);
}

#[test]
fn a_finished_text_allows_its_end_only() {
    let tokenizer = byte_level();
    let mut matcher = compiler(&tokenizer).compile(&GrammarSpec::Regex("a+b".into())).unwrap();
    for id in tokenizer.encode("aaa", false, false).unwrap() {
        assert!(!matcher.can_stop().unwrap());
        matcher.accept(id).unwrap();
    }
    assert!(matcher.accept(u32::from(b'x')).is_err());
    matcher.accept(u32::from(b'b')).unwrap();
    assert!(matcher.is_finished());
    assert_eq!(matcher.mask().unwrap().ids(), [END]);
}

#[test]
fn lark_and_json_object_compile() {
    let tokenizer = byte_level();
    let compiler = compiler(&tokenizer);
    let mut lark = compiler.compile(&GrammarSpec::Lark("start: \"a\" | \"b\" <|im_start|>".into())).unwrap();
    assert_eq!(lark.mask().unwrap().ids(), [u32::from(b'a'), u32::from(b'b')]);
    lark.accept(u32::from(b'b')).unwrap();
    assert_eq!(lark.mask().unwrap().ids(), [256]);
    let mut object = compiler.compile(&GrammarSpec::JsonObject).unwrap();
    let starts = object.mask().unwrap();
    assert!(starts.allows(u32::from(b'{')) && !starts.allows(u32::from(b'[')) && !starts.allows(END));
}

#[test]
fn what_is_too_large_or_broken_is_refused_in_one_line() {
    let tokenizer = byte_level();
    let compiler = compiler(&tokenizer);
    let deep = (0..super::grammar::MAX_SCHEMA_DEPTH).fold(json!({}), |inner, _| json!({"items": inner}));
    let long = "a".repeat(super::grammar::MAX_GRAMMAR_BYTES + 1);
    for (spec, word) in [
        (GrammarSpec::JsonSchema(deep), "64"),
        (GrammarSpec::JsonSchema(json!("string")), "object"),
        (GrammarSpec::JsonSchema(json!({"type": "strin"})), "strin"),
        (GrammarSpec::JsonSchema(json!({"type": "array", "uniqueItems": true})), "uniqueItems"),
        (GrammarSpec::Regex(long), "262144"),
        (GrammarSpec::Regex("a(".into()), ""),
        (GrammarSpec::Lark("start: missing".into()), "missing"),
        (GrammarSpec::Choice(Vec::new()), "entries"),
    ] {
        let error = compiler.compile(&spec).expect_err(spec.name());
        let text = error.to_string();
        assert!(matches!(error, TextError::Grammar { kind, .. } if kind == spec.name()), "{text}");
        assert!(text.contains(word) && !text.contains('\n') && text.len() < 500, "{text}");
    }
}

/// A grammar that fits the limits may still be costly to follow; the matcher gives up instead of the engine waiting.
#[test]
fn a_costly_grammar_ends_in_an_error_or_a_quick_mask() {
    let tokenizer = byte_level();
    let compiler = compiler(&tokenizer);
    let start = std::time::Instant::now();
    for regex in ["(a{1,9999}b{1,9999}){1,9999}", "(a|aa)*(a|aaa)*[ab]{500}c", "(.*a.{40}|.*b.{40})*"] {
        let Ok(mut matcher) = compiler.compile(&GrammarSpec::Regex(regex.into())) else { continue };
        for _ in 0..100 {
            if matcher.mask().is_err() || matcher.accept(u32::from(b'a')).is_err() {
                break;
            }
        }
    }
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}

#[test]
fn every_constraint_can_wait_for_thoughts() {
    let tokenizer = byte_level();
    let compiler = compiler(&tokenizer);
    let specs = [
        (GrammarSpec::JsonSchema(json!({"type": "object", "properties": {"a": {"type": "integer"}}})), "{\"a\": 1}"),
        (GrammarSpec::JsonObject, "{}"),
        (GrammarSpec::Regex("[0-9]+".into()), "42"),
        (GrammarSpec::Lark("start: x\nx: \"a\" | x \"b\"".into()), "abb"),
        (GrammarSpec::Choice(vec!["yes".into(), "no".into()]), "no"),
    ];
    for (spec, answer) in specs {
        for (opened, before) in [(true, "hm { 4\n</think>\n\n"), (false, "<think>x</think>"), (false, "")] {
            let spec = spec.clone().after_thinking(REASONING_MARKERS[0], opened, &tokenizer);
            let mut matcher = compiler.compile(&spec).unwrap();
            for (at, id) in
                tokenizer.encode(&format!("{before}{answer}"), false, false).unwrap().into_iter().enumerate()
            {
                assert!(at >= before.len() || !matcher.can_stop().unwrap());
                matcher.accept(id).unwrap_or_else(|e| panic!("{before}{answer} at {at}: {e}"));
            }
            assert!(matcher.can_stop().unwrap());
            assert!(!matcher.mask().unwrap().allows(u32::from(b'<')), "{answer} goes on");
        }
    }
}

/// A vocabulary from outside may hold anything: tokens of any length, empty ones, the same bytes twice.
#[test]
fn strange_tokens_do_no_harm() {
    let tokenizer = super::test_vocabulary::with_words(&["", "aa", &"a".repeat(3000), "<0x61>"]);
    let compiler = compiler(&tokenizer);
    let mut matcher = compiler.compile(&GrammarSpec::Regex("a*".into())).unwrap();
    let spelled: Vec<&[u8]> =
        matcher.mask().unwrap().ids().iter().map(|&id| tokenizer.token_bytes(id).unwrap()).collect();
    assert!(spelled.contains(&&b"aa"[..]) && spelled.iter().all(|bytes| bytes.len() < 100), "{spelled:?}");
}

/// U+B538A is F2 B5 8E 8A. Without the byte F2 nothing spells it but tokens of several bytes; without 8A nothing does.
#[test]
fn bytes_that_no_token_spells_are_never_left_out() {
    let whole = |lacking: &[u8]| Arc::new(byte_level_without(lacking));
    let masks = |tokenizer: &Arc<Tokenizer>, regex: &str, text: &str| -> Result<Vec<Vec<Vec<u8>>>, TextError> {
        let compiler = GrammarCompiler::forcing(tokenizer, &[END]).unwrap();
        let mut matcher = compiler.compile(&GrammarSpec::Regex(regex.into()))?;
        let mut found = Vec::new();
        let mut left = text.as_bytes();
        loop {
            let ids = matcher.mask()?.ids();
            let mut spelled: Vec<_> = ids.iter().map(|&id| tokenizer.token_bytes(id).unwrap().to_vec()).collect();
            spelled.sort();
            found.push(spelled);
            if matcher.is_finished() {
                return Ok(found);
            }
            assert!(matcher.forced().is_none_or(|id| ids == [id]));
            let fits = |id: &&u32| **id != END && left.starts_with(tokenizer.token_bytes(**id).unwrap());
            let Some(&id) = ids.iter().filter(fits).max_by_key(|&&id| tokenizer.token_bytes(id).unwrap().len()) else {
                return Ok(found);
            };
            left = &left[tokenizer.token_bytes(id).unwrap().len()..];
            matcher.accept(id).unwrap();
        }
    };
    let (first, two, three): (&[u8], &[u8], &[u8]) = (b"\xF2", b"\xF2\xB5", b"\xF2\xB5\x8E");
    let text = "\u{b538a}";
    // Every byte is there: what is forced is cut as the model would.
    assert_eq!(masks(&whole(&[]), text, text).unwrap()[0], [three]);
    assert_eq!(masks(&whole(&[0xF2]), text, text).unwrap()[0], [two, three]);
    assert_eq!(masks(&whole(&[0xF2, 0x8E]), text, text).unwrap()[0], [three]);
    // Forced bytes that end inside a token.
    let two_ways = "(\u{b538a}|\u{b53bf})";
    assert_eq!(masks(&whole(&[0xF2]), two_ways, text).unwrap()[0], [two, three]);
    assert_eq!(masks(&whole(&[0xF2]), "(\u{b538a}|\u{b6000})", text).unwrap()[0], [two, three]);
    assert_eq!(masks(&whole(&[]), "(\u{b538a}|\u{b6000})", text).unwrap()[0], [first, two, three]);
    // What has to come is seen from the beginning.
    for regex in [text, "yes, \u{b538a}!", "[\u{b538a}]", "\u{b538a}{2}x"] {
        let dead = masks(&whole(&[0x8A]), regex, "yes, \u{b538a}!");
        let Err(TextError::Constraint(message)) = dead else { panic!("{regex}: {dead:?}") };
        assert!(!message.contains('\n') && !message.is_empty(), "{message}");
    }
    // Where there is a choice nothing else is taken away, and the end of the other way is an error.
    assert!(masks(&whole(&[0x8A]), "(a|b\u{b538a})", "a").is_ok());
    let dead = masks(&whole(&[0x8A]), "(a|b\u{b538a})", "b\u{b538a}");
    assert!(matches!(dead, Err(TextError::Constraint(_))), "{dead:?}");
}

#[test]
fn a_cached_grammar_starts_afresh() {
    let tokenizer = byte_level();
    let compiler = compiler(&tokenizer);
    let spec = GrammarSpec::Choice(vec!["ab".into(), "b".into()]);
    let mut first = compiler.compile(&spec).unwrap();
    first.accept(u32::from(b'b')).unwrap();
    let mut second = compiler.compile(&spec).unwrap();
    assert!(first.is_finished() && !second.is_finished());
    assert!(second.mask().unwrap().allows(u32::from(b'a')));
}

#[test]
fn what_threads_share_may_be_shared() {
    fn sent<T: Send>() {}
    fn shared<T: Send + Sync>() {}
    sent::<Matcher>();
    sent::<super::tools::ToolParser>();
    shared::<GrammarCompiler>();
    shared::<Tokenizer>();
}
