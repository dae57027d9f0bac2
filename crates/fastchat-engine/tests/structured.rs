//! Constrained texts through the engine over random weights: always what was asked for or cut at the limit, in any
//! company, and nobody beside them notices.
#![allow(clippy::unwrap_used, clippy::print_stderr)] // a test may fail loudly

mod harness;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fastchat_engine::text::{GrammarSpec, ThinkingBudget};
use fastchat_engine::{Engine, EngineConfig, EngineError, FinishReason, MaskLimits, Request, SamplingParams};
use harness::{all_blocks_come_back, complete, config, drain, greedy, request, shared, together, tokens};
use regex::Regex;
use serde_json::{Value, json};

/// Tokens of the test's vocabulary; the model has 256 rows.
const TOKENS: usize = 250;

/// A tiny model of the parity suite with a vocabulary of bytes: three control tokens (2 ends a text), every byte UTF-8
/// may contain, a few words. `name` keeps tests that run side by side apart.
fn model(name: &str) -> Option<PathBuf> {
    let source = shared("parity/text/llama3")?;
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("structured-{name}"));
    std::fs::create_dir_all(&folder).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(source.join(file), folder.join(file)).unwrap();
    }
    let control = ["<pad>", "<s>", "</s>"];
    let bytes = (0..=255_u8).filter(|byte| !matches!(byte, 0xC0 | 0xC1 | 0xF5..)).map(spelled);
    let words = ["true", "{\"", "\":", "ab"].map(str::to_owned);
    let all: Vec<String> = control.iter().map(|&name| name.to_owned()).chain(bytes).chain(words).collect();
    assert_eq!(all.len(), TOKENS);
    let vocab: serde_json::Map<String, Value> = all.into_iter().zip(0..).map(|(t, id)| (t, json!(id))).collect();
    let added = control.iter().enumerate().map(|(id, name)| {
        json!({"id": id, "content": name, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false})
    });
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false, "trim_offsets": false});
    let tokenizer = json!({"version": "1.0", "added_tokens": added.collect::<Vec<_>>(), "pre_tokenizer": level,
        "decoder": level, "model": {"type": "BPE", "vocab": vocab, "merges": []}});
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    Some(folder)
}

/// The letter that stands for a byte in GPT-2's alphabet.
fn spelled(byte: u8) -> String {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..);
    let rank = (0..byte).filter(|&other| !printable(other)).count() as u32;
    char::from_u32(if printable(byte) { u32::from(byte) } else { 256 + rank }).unwrap().into()
}

fn constrained(spec: &GrammarSpec, seed: u64) -> SamplingParams {
    SamplingParams {
        temperature: 1.0,
        seed: Some(seed),
        max_tokens: Some(200),
        structured: Some(Arc::new(spec.clone())),
        ..SamplingParams::default()
    }
}

fn schema() -> GrammarSpec {
    GrammarSpec::JsonSchema(json!({"type": "object", "required": ["name", "size", "tags"],
        "additionalProperties": false, "properties": {
            "name": {"type": "string", "maxLength": 5}, "size": {"type": "integer", "minimum": 0, "maximum": 999},
            "tags": {"type": "array", "items": {"enum": ["new", "old", true]}, "maxItems": 3}}}))
}

fn is_valid(text: &str) -> bool {
    let Ok(Value::Object(fields)) = serde_json::from_str(text) else { return false };
    let tag = |tag: &Value| tag == "new" || tag == "old" || tag == &json!(true);
    fields.len() == 3
        && fields["name"].as_str().is_some_and(|name| name.chars().count() <= 5)
        && fields["size"].as_f64().is_some_and(|size| size.fract() == 0.0 && (0.0..=999.0).contains(&size))
        && fields["tags"].as_array().is_some_and(|tags| tags.len() <= 3 && tags.iter().all(tag))
}

fn load(model: &Path, config: EngineConfig) -> Engine {
    Engine::load(model, config).unwrap()
}

#[test]
fn random_weights_write_valid_json() {
    let Some(model) = model("json") else { return };
    let engine = load(&model, config());
    let requests: Vec<Request> = (0..200).map(|seed| request(&[5, 6, 7], constrained(&schema(), seed))).collect();
    let mut whole = 0;
    for (seed, outcome) in together(&engine, &requests).into_iter().flatten().enumerate() {
        assert_eq!(outcome.error, None, "seed {seed}");
        match outcome.finish.unwrap().reason {
            FinishReason::Stop => {
                assert!(is_valid(&outcome.text), "seed {seed}: {}", outcome.text);
                whole += 1;
            }
            reason => assert_eq!((reason, outcome.tokens.len()), (FinishReason::Length, 200), "{}", outcome.text),
        }
        assert!(outcome.tokens.iter().all(|&id| (id as usize) < TOKENS));
    }
    assert!(whole > 100, "only {whole} of 200 came to an end");
    all_blocks_come_back(&engine);
}

#[test]
fn a_text_ends_when_it_is_complete() {
    let Some(model) = model("ends") else { return };
    let engine = load(&model, config());
    let choices: Vec<String> = ["yes", "no", "not at all"].map(str::to_owned).into();
    let regex = r"[a-c]{2,4}-\d+;";
    let lark = "start: \"<\" word (\",\" word)* \">\"\nword: /[xyz]+/";
    let whole = Regex::new(&format!("^{regex}$")).unwrap();
    let words = Regex::new("^<[xyz]+(,[xyz]+)*>$").unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..40 {
        let run = |spec: GrammarSpec| {
            let outcome = complete(&engine, request(&[9, 8], constrained(&spec, seed))).remove(0);
            let finish = outcome.finish.clone().unwrap();
            assert_eq!((finish.reason, finish.stop), (FinishReason::Stop, None), "{}", outcome.text);
            outcome.text
        };
        let chosen = run(GrammarSpec::Choice(choices.clone()));
        assert!(choices.contains(&chosen), "{chosen}");
        seen.insert(chosen);
        let text = run(GrammarSpec::Regex(regex.to_owned()));
        assert!(whole.is_match(&text), "{text}");
        let text = run(GrammarSpec::Lark(lark.to_owned()));
        assert!(words.is_match(&text), "{text}");
    }
    assert!(seen.len() > 1, "always {seen:?}");
}

#[test]
fn completeness_wins_over_min_tokens_and_ignore_eos() {
    let Some(model) = model("limits") else { return };
    let engine = load(&model, config());
    let run = |spec: GrammarSpec, change: SamplingParams| {
        let params = SamplingParams { structured: Some(Arc::new(spec)), max_tokens: Some(60), ..change };
        complete(&engine, request(&[9, 8], params)).remove(0)
    };
    let stubborn = |seed| SamplingParams { min_tokens: 20, ignore_eos: true, seed: Some(seed), ..Default::default() };
    for seed in 0..20 {
        let only = run(GrammarSpec::Choice(vec!["abc".to_owned()]), stubborn(seed));
        assert_eq!((only.text.as_str(), only.finish.unwrap().reason), ("abc", FinishReason::Stop));
        // Complete after every letter: nothing ends it before the least length, an end token may after it.
        let many = run(GrammarSpec::Regex("[a-d]+".to_owned()), stubborn(seed));
        assert!(many.tokens.len() > 20, "{}", many.text);
        assert!(!many.text.is_empty() && many.text.bytes().all(|byte| (b'a'..=b'd').contains(&byte)));
        // At the end only the end is left, however much the request bars it.
        let optional = GrammarSpec::Regex("[a-d]{0,3}".to_owned());
        assert_eq!(run(optional, stubborn(seed)).finish.unwrap().reason, FinishReason::Stop);
    }
    let cut = run(GrammarSpec::Regex("a{61,}".to_owned()), greedy(1));
    assert_eq!((cut.text.len(), cut.finish.unwrap().reason), (60, FinishReason::Length));
}

#[test]
fn choices_do_not_share_a_place() {
    let Some(model) = model("choices") else { return };
    let engine = load(&model, config());
    let ask = |n| {
        let params = SamplingParams { n, logprobs: Some(1), ..constrained(&schema(), 77) };
        complete(&engine, request(&(3..40).collect::<Vec<_>>(), params))
    };
    let (one, three) = (ask(1), ask(3));
    assert_eq!((&one[0].tokens, &one[0].logprobs), (&three[0].tokens, &three[0].logprobs));
    assert!(three[0].text != three[1].text && three[1].text != three[2].text);
    for choice in &three {
        assert!(is_valid(&choice.text) || choice.finish.as_ref().unwrap().reason == FinishReason::Length);
    }
}

#[test]
fn company_and_preemption_change_nothing() {
    let Some(model) = model("company") else { return };
    let alone = load(&model, config());
    let requests: Vec<Request> = (0..8_u64)
        .map(|seed| {
            let prompt: Vec<u32> = (0..10 + 5 * seed as u32).collect();
            let free = SamplingParams { temperature: 1.0, seed: Some(seed), ..greedy(60) };
            let bound = SamplingParams { n: 2, max_tokens: Some(60), ..constrained(&schema(), seed) };
            request(&prompt, if seed % 2 == 0 { free } else { bound })
        })
        .collect();
    let expected: Vec<_> = requests.iter().map(|request| complete(&alone, request.clone())).collect();
    let expected = tokens(&expected);
    assert_eq!(tokens(&together(&alone, &requests)), expected, "in a batch");
    let tiny = load(&model, EngineConfig { num_blocks: Some(16), max_batch_tokens: 32, ..config() });
    let crowd: Vec<_> = requests.iter().cycle().take(4 * requests.len()).cloned().collect();
    let found = tokens(&together(&tiny, &crowd));
    assert!(found.chunks(requests.len()).all(|found| found == expected), "preempted");
    assert!(tiny.stats().preemptions > 0, "nobody was preempted");
    all_blocks_come_back(&tiny);
}

#[test]
fn masks_that_are_computed_aside_change_nothing() {
    let Some(model) = model("aside") else { return };
    let inline = load(&model, config());
    let requests: Vec<Request> = (0..12_u64)
        .map(|seed| {
            let free = SamplingParams { temperature: 1.0, seed: Some(seed), ..greedy(60) };
            let bound = SamplingParams { n: 2, max_tokens: Some(60), ..constrained(&schema(), seed) };
            request(&[5, 6, 7], if seed % 3 == 0 { free } else { bound })
        })
        .collect();
    let expected = tokens(&together(&inline, &requests));
    let masks = MaskLimits { aside: Duration::ZERO, ..MaskLimits::default() };
    // Few blocks, so that those who sit out are preempted too.
    for num_blocks in [None, Some(16)] {
        let aside = load(&model, EngineConfig { masks, num_blocks, ..config() });
        let gone: Vec<_> = requests.iter().map(|request| aside.submit(request.clone()).unwrap()).collect();
        drop(gone);
        assert_eq!(tokens(&together(&aside, &requests)), expected);
        assert_eq!(tokens(&[complete(&aside, requests[1].clone())]), expected[1..2], "alone");
        all_blocks_come_back(&aside);
    }
}

#[test]
fn a_mask_that_takes_too_long_ends_its_request_only() {
    let Some(model) = model("timeout") else { return };
    let masks = MaskLimits { timeout: Duration::from_nanos(1), ..MaskLimits::default() };
    let engine = load(&model, EngineConfig { masks, ..config() });
    let free = engine.submit(request(&[5, 6, 7], greedy(60))).unwrap();
    let refused = engine.submit(request(&[5, 6, 7], constrained(&schema(), 1))).err();
    let Some(EngineError::InvalidRequest { param, message }) = refused else { panic!("{refused:?}") };
    assert!(param == "structured" && message.contains("limit"), "{message}");
    assert_eq!(drain(&free)[0].tokens.len(), 60);
    all_blocks_come_back(&engine);
}

#[test]
fn what_cannot_be_enforced_is_refused_by_name() {
    let Some(model) = model("refused") else { return };
    let engine = load(&model, config());
    let deep = (0..100).fold(json!({}), |inner, _| json!({"items": inner}));
    for (spec, says) in [
        (GrammarSpec::JsonSchema(json!({"type": "array", "uniqueItems": true})), "uniqueItems"),
        (GrammarSpec::JsonSchema(json!({"not": {"type": "string"}})), "not"),
        (GrammarSpec::JsonSchema(json!({"type": "nothing"})), "nothing"),
        (GrammarSpec::JsonSchema(json!(7)), "json_schema"),
        (GrammarSpec::JsonSchema(deep), "64"),
        (GrammarSpec::Regex("(".to_owned()), "regex"),
        (GrammarSpec::Lark("start: other".to_owned()), "other"),
        (GrammarSpec::Choice(Vec::new()), "choice"),
    ] {
        let refused = engine.submit(request(&[1], constrained(&spec, 0))).err();
        let Some(EngineError::InvalidRequest { param, message }) = refused else { panic!("{spec:?}: {refused:?}") };
        assert_eq!(param, "structured", "{message}");
        assert!(message.contains(says) && !message.contains('\n'), "{message}");
    }
    // A refusal gives its place in the queue back.
    drain(&engine.submit(request(&[1], greedy(1))).unwrap());
    let skipped = load(&model, EngineConfig { skip_tokenizer_init: true, ..config() });
    let refused = skipped.submit(request(&[1], constrained(&GrammarSpec::JsonObject, 0))).err();
    assert!(matches!(refused, Some(EngineError::InvalidRequest { param, .. }) if param == "structured"));
}

#[test]
fn forced_tokens_change_nothing_but_the_number_of_steps() {
    let Some(model) = model("forced") else { return };
    let specs = [
        schema(),
        GrammarSpec::Choice(["a long answer, all of it given", "another one of some length"].map(str::to_owned).into()),
        GrammarSpec::Regex("(yes|no), because [a-z]{1,3} is the case in every respect".to_owned()),
    ];
    let mut steps = [0; 2];
    let mut texts = [Vec::new(), Vec::new()];
    for (at, speculation) in [false, true].into_iter().enumerate() {
        // Tokens of a step and blocks are few, so that forced ones are cut and make others give way.
        let tight = EngineConfig { num_blocks: Some(40), max_batch_tokens: 16, speculation, ..config() };
        let engine = load(&model, tight);
        let requests: Vec<Request> = (0..24_u64)
            .map(|seed| {
                let params = SamplingParams { n: 2, ..constrained(&specs[seed as usize % 3], seed) };
                request(&[5, 6, 7], SamplingParams { max_tokens: Some(90), ..params })
            })
            .collect();
        let outcomes = together(&engine, &requests);
        assert!(outcomes.iter().flatten().all(|outcome| outcome.error.is_none()));
        texts[at] = tokens(&outcomes);
        let logprobs = SamplingParams { logprobs: Some(0), ..constrained(&specs[1], 1) };
        let whole = complete(&engine, request(&[5, 6, 7], logprobs)).remove(0);
        assert_eq!(whole.logprobs.len(), whole.tokens.len(), "every token has its own");
        assert_eq!(whole.tokens, complete(&engine, request(&[5, 6, 7], constrained(&specs[1], 1)))[0].tokens);
        steps[at] = engine.stats().steps;
        assert_eq!(engine.stats().forced_tokens > 0, speculation);
        all_blocks_come_back(&engine);
    }
    assert_eq!(texts[0], texts[1]);
    eprintln!("steps without and with forced tokens appended: {steps:?}");
    assert!(steps[1] < steps[0], "{steps:?}");
}

#[test]
fn thoughts_end_within_their_budget() {
    let Some(model) = model("thinking") else { return };
    let engine = load(&model, config());
    let markers = fastchat_engine::text::REASONING_MARKERS[0];
    for (budget, logprobs) in [(0, None), (7, None), (7, Some(0))] {
        let thinking = Some(ThinkingBudget { tokens: budget, markers, opened: true });
        let params = SamplingParams { thinking, logprobs, seed: Some(3), ..greedy(60) };
        let outcome = complete(&engine, request(&[5, 6, 7], params)).remove(0);
        assert_eq!(outcome.error, None);
        let at = outcome.text.find(markers.close).unwrap();
        // Tokens are bytes or words of at most five letters.
        assert!(at <= 5 * budget as usize, "{}", outcome.text);
        assert_eq!(outcome.tokens.len(), 60);
        let schema = schema().after_thinking(markers, true, engine.tokenizer().unwrap());
        let thinking = Some(ThinkingBudget { tokens: budget, markers, opened: true });
        let params = SamplingParams { thinking, logprobs, ..constrained(&schema, 5) };
        let outcome = complete(&engine, request(&[5, 6, 7], params)).remove(0);
        let (_, answer) = outcome.text.split_once(markers.close).unwrap();
        let cut = outcome.finish.unwrap().reason == FinishReason::Length;
        assert!(cut || is_valid(answer.trim_start()), "{answer}");
    }
}
