//! What published chat templates are taken for.

#![allow(missing_docs, clippy::unwrap_used)] // a test may fail loudly

mod support;

use fastchat_engine::text::ReasoningMarkers;
use fastchat_engine::text::tools::ToolFormat;

/// Beginnings of file names in llama.cpp's `models/templates`, the format of calls, and the marker of reasoning.
const KNOWN: [(&str, Option<ToolFormat>, Option<&str>); 38] = [
    ("Apriel-1.6", Some(ToolFormat::Apriel), None),
    ("ByteDance-Seed-OSS", Some(ToolFormat::Seed), Some("<seed:think>")),
    ("CohereForAI-c4ai-command-r-plus", None, None),
    ("GLM-4.6", Some(ToolFormat::Glm), Some("<think>")),
    ("Kimi-K2-Thinking", Some(ToolFormat::KimiK2), Some("<think>")),
    ("LFM2-8B", Some(ToolFormat::Lfm2), None),
    ("LFM2.5-8B", Some(ToolFormat::Lfm2), Some("<think>")),
    ("LFM2.5-Instruct", Some(ToolFormat::Lfm2), Some("<think>")),
    ("MiniMax-M1", Some(ToolFormat::MiniMaxM1), None),
    ("MiniMax-M2", Some(ToolFormat::MiniMaxM2), Some("<think>")),
    ("MiniMax-M3", None, Some("<mm:think>")),
    ("Mistral-Small-3.2", Some(ToolFormat::MistralNamed), None),
    ("NVIDIA-Nemotron-3-Nano", Some(ToolFormat::QwenXml), Some("<think>")),
    ("NVIDIA-Nemotron-Nano-v2", Some(ToolFormat::Nemotron), Some("<think>")),
    ("NousResearch-Hermes-3", Some(ToolFormat::Hermes), None),
    ("Qwen-Qwen2.5-7B", Some(ToolFormat::Hermes), None),
    ("Qwen-Qwen3-0.6B", Some(ToolFormat::Hermes), Some("<think>")),
    ("Qwen3-Coder", Some(ToolFormat::QwenXml), None),
    ("Qwen3.5-4B", Some(ToolFormat::QwenXml), Some("<think>")),
    ("deepseek-ai-DeepSeek-R1-Distill-Qwen", Some(ToolFormat::DeepSeekV3), Some("<think>")),
    ("deepseek-ai-DeepSeek-V3.2", Some(ToolFormat::DeepSeekV32), Some("<think>")),
    ("deepseek-ai-DeepSeek-V4.jinja", Some(ToolFormat::DeepSeekV4), Some("<think>")),
    ("deepseek-ai-DeepSeek-V4-Flash", Some(ToolFormat::DeepSeekV4), Some("<think>")),
    ("deepseek-ai-DeepSeek-V3.1", Some(ToolFormat::DeepSeekV31), Some("<think>")),
    ("fireworks-ai", Some(ToolFormat::Phi4), None),
    ("google-gemma-2-2b-it", None, None),
    ("google-gemma-4-31B-it.jinja", Some(ToolFormat::Gemma4), Some("<|channel>thought")),
    ("google-gemma-4-31B-it-interleaved", Some(ToolFormat::Gemma4), Some("<|channel>thought")),
    ("ibm-granite-granite-3.3", Some(ToolFormat::Granite), Some("<think>")),
    ("ibm-granite-granite-4.0", Some(ToolFormat::Hermes), None),
    ("meetkai-functionary-medium-v3.1", Some(ToolFormat::Functionary), None),
    ("meetkai-functionary-medium-v3.2", None, None),
    ("meta-llama-Llama-3.1", Some(ToolFormat::Llama3), None),
    ("mistralai-Ministral-3", Some(ToolFormat::MistralNamed), Some("[THINK]")),
    ("mistralai-Mistral-Nemo", Some(ToolFormat::MistralList), None),
    ("muse-glimmer", Some(ToolFormat::Muse), None),
    ("unsloth-Apriel-1.5", Some(ToolFormat::Apriel), None),
    ("openai-gpt-oss", Some(ToolFormat::Harmony), None),
];

#[test]
fn published_templates_are_recognised() {
    let Some(folder) = support::folder("FASTCHAT_TEMPLATES", "models/llama-cpp/templates", false) else { return };
    let names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    for (beginning, format, open) in KNOWN {
        let file = names.iter().find(|path| path.file_name().unwrap().to_string_lossy().starts_with(beginning));
        let text = std::fs::read_to_string(file.expect(beginning)).unwrap();
        assert_eq!(ToolFormat::detect(&text), format, "{beginning}");
        assert_eq!(ReasoningMarkers::detect(&text).map(|markers| markers.open), open, "{beginning}");
    }
}
