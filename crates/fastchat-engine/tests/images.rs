//! Prompts with pictures through the whole engine: the reference's next token in any company and any chunks, pictures
//! remembered by content, prefixes shared by what they show.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)] // a test may fail loudly

mod harness;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fastchat_engine::{
    Detail, Engine, EngineConfig, EngineError, FinishReason, ImageData, ImageInput, Prompt, Request, Segment,
};
use harness::{all_blocks_come_back, complete, config, drain, greedy, request, shared, together, tokens};

/// The reference's prompts, with one marker where its picture stands; the marker's rows are the families' affair.
const FAMILIES: &[(&str, &[u32])] = &[
    ("llava", &[1, 5, 250, 9, 10, 11]),
    ("mllama", &[1, 250, 7, 8, 9, 10, 11, 12]),
    ("qwen2_5_vl", &[5, 6, 248, 250, 249, 9, 10, 11, 12]),
    ("qwen3_vl", &[5, 6, 248, 250, 249, 9, 10, 11, 12]),
];

fn folder(name: &str) -> Option<PathBuf> {
    shared(&format!("parity/vision/{name}"))
}

fn picture(folder: &Path) -> ImageInput {
    ImageInput {
        data: ImageData::Encoded(std::fs::read(folder.join("image.png")).unwrap().into()),
        detail: Detail::Auto,
    }
}

/// A picture of one colour.
fn plain(colour: u8) -> ImageInput {
    let data = ImageData::Pixels { width: 100, height: 70, channels: 3, bytes: vec![colour; 21_000].into() };
    ImageInput { data, detail: Detail::Auto }
}

fn pictured(ids: &[u32], images: &[ImageInput], tokens: u32) -> Request {
    let prompt = Prompt::Media { segments: vec![Segment::Tokens(ids.to_vec())], images: images.to_vec() };
    Request { prompt, ..request(&[], greedy(tokens)) }
}

/// The next token after the reference's prompt, and its length.
fn reference(folder: &Path) -> (u32, usize) {
    let tensors = candle_core::safetensors::load(folder.join("golden.safetensors"), &candle_core::Device::Cpu).unwrap();
    let rows = tensors["logits"].to_vec2::<f32>().unwrap();
    let last = rows.last().unwrap();
    let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap();
    (best as u32, rows.len())
}

#[test]
fn the_next_token_is_the_references_in_any_company() {
    for &(name, ids) in FAMILIES {
        let Some(folder) = folder(name) else { return };
        let (next, len) = reference(&folder);
        let small = EngineConfig { max_batch_tokens: 16, num_blocks: Some(64), kv_memory: None, ..config() };
        let mut answers = Vec::new();
        for config in [config(), small] {
            let engine = Engine::load(&folder, config).unwrap();
            let image = picture(&folder);
            let prompt = pictured(ids, std::slice::from_ref(&image), 8).prompt;
            assert_eq!(engine.count_tokens(prompt).unwrap(), len, "{name}: tokens by the picture's header");
            let alone = complete(&engine, pictured(ids, std::slice::from_ref(&image), 8));
            assert_eq!(alone[0].tokens[0], next, "{name}");
            assert_eq!(alone[0].usage.prompt_tokens, len, "{name}: usage counts the picture's tokens");
            let requests =
                [request(&[9, 10, 11, 12, 13], greedy(8)), pictured(ids, &[image], 8), pictured(ids, &[plain(200)], 8)];
            let company = together(&engine, &requests);
            assert_eq!(company[1][0].tokens, alone[0].tokens, "{name} in company");
            assert_ne!(company[2][0].error, Some(EngineError::Cancelled));
            all_blocks_come_back(&engine);
            answers.push(tokens(&company));
        }
        assert_eq!(answers[0], answers[1], "{name}: results do not depend on the size of steps");
    }
}

#[test]
fn tokens_that_see_each_other_are_computed_in_one_step() {
    let Some(folder) = folder("gemma3_vision") else { return };
    // The tiny model has no tokenizer for the line breaks around a picture, so the prompt is not the reference's.
    let engine = Engine::load(&folder, config()).unwrap();
    let error = engine.submit(pictured(&[2, 5, 248, 9], &[plain(7)], 4)).unwrap_err();
    assert!(error.to_string().contains("no tokenizer"), "{error}");
}

#[test]
fn prefixes_are_shared_by_what_they_show() {
    let Some(folder) = folder("qwen2_5_vl") else { return };
    let engine = Engine::load(&folder, config()).unwrap();
    let ids: Vec<u32> = [5, 6, 248, 250, 249].into_iter().chain(20..60).collect();
    let cached = |image: &ImageInput| {
        let outcome = complete(&engine, pictured(&ids, std::slice::from_ref(image), 4));
        (outcome[0].usage.cached_tokens, outcome[0].tokens.clone())
    };
    let (first, tokens) = cached(&picture(&folder));
    let (second, again) = cached(&picture(&folder));
    assert_eq!((first, second), (0, 48), "the same picture again");
    assert_eq!(tokens, again);
    let (other, _) = cached(&plain(3));
    assert_eq!(other, 0, "another picture under the same tokens");
    // A second turn: the picture, the answer, more words.
    let longer: Vec<u32> = ids.iter().copied().chain(tokens).chain([7; 20]).collect();
    let outcome = complete(&engine, pictured(&longer, &[picture(&folder)], 2));
    assert!(outcome[0].usage.cached_tokens >= 48);
}

#[test]
fn pictures_that_are_looked_at_share_nothing_with_others() {
    let Some(folder) = folder("mllama") else { return };
    let engine = Engine::load(&folder, config()).unwrap();
    let ids: Vec<u32> = [1, 250].into_iter().chain(20..60).collect();
    let run = |image: ImageInput| complete(&engine, pictured(&ids, &[image], 6)).remove(0);
    let (a, b) = (run(picture(&folder)), run(plain(90)));
    let (again, text) = (run(picture(&folder)), complete(&engine, request(&[1, 20, 21, 22], greedy(6))).remove(0));
    assert_eq!((a.usage.cached_tokens, b.usage.cached_tokens, again.usage.cached_tokens), (0, 0, 32));
    assert_eq!(a.tokens, again.tokens);
    assert_eq!(text.finish.map(|finish| finish.reason), Some(FinishReason::Length));
    let two = complete(&engine, pictured(&[1, 250, 250, 7, 8, 250, 9], &[plain(1), plain(2), picture(&folder)], 6));
    assert_eq!(two[0].tokens.len(), 6);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let Some(folder) = folder("llava") else { return };
    let engine = Engine::load(&folder, EngineConfig { max_model_len: Some(64), ..config() }).unwrap();
    let refused = |request: Request| engine.submit(request).unwrap_err().to_string();
    let damaged = |bytes: &[u8]| ImageInput { data: ImageData::Encoded(Arc::from(bytes)), detail: Detail::Auto };
    assert!(
        refused(pictured(&[1, 250], &[plain(1), damaged(b"text")], 4))
            .contains("images.1: image = data of another kind")
    );
    assert!(refused(pictured(&[1, 250, 250], &[plain(1)], 4)).contains("1 for 2 places"));
    assert!(refused(pictured(&[1, 2], &[plain(1)], 4)).contains("1 for 0 places"));
    assert!(matches!(
        engine.submit(pictured(&[1, 250, 250, 250, 250, 2], &vec![plain(1); 4], 4)),
        Err(EngineError::ContextLength { limit: 64, .. })
    ));
    assert!(refused(pictured(&[1, 999, 250], &[plain(1)], 4)).contains("token id 999"));
    assert!(refused(pictured(&[250; 40], &vec![plain(1); 40], 4)).contains("at most 32"));
    // The engine is none the worse for it.
    assert_eq!(complete(&engine, pictured(&[1, 250], &[plain(1)], 4))[0].tokens.len(), 4);
    let Some(text) = shared("parity/text/llama3") else { return };
    let engine = Engine::load(&text, config()).unwrap();
    let error = engine.submit(pictured(&[1, 2], &[plain(1)], 4)).unwrap_err();
    assert!(error.to_string().contains("does not support image input"), "{error}");
}

#[test]
fn a_request_that_waits_for_its_picture_can_be_given_up() {
    let Some(folder) = folder("qwen3_vl") else { return };
    let engine = Engine::load(&folder, config()).unwrap();
    let handles: Vec<_> =
        (0..20).map(|i| engine.submit(pictured(&[5, 248, 250, 249, 9], &[plain(i)], 50)).unwrap()).collect();
    handles.iter().step_by(2).for_each(fastchat_engine::RequestHandle::abort);
    for (i, handle) in handles.iter().enumerate() {
        let outcome = drain(handle).remove(0);
        assert_eq!(outcome.finish.unwrap().reason == FinishReason::Length, i % 2 == 1 || outcome.tokens.len() == 50);
    }
    all_blocks_come_back(&engine);
}
