//! What published chat templates are taken for.

#![allow(missing_docs, clippy::unwrap_used)] // a test may fail loudly

mod support;

use fastchat_engine::text::ReasoningMarkers;
use fastchat_engine::text::tools::ToolFormat;

/// Beginnings of file names in llama.cpp's `models/templates`, the format of calls, and the marker of reasoning.
const KNOWN: [(&str, Option<ToolFormat>, Option<&str>); 24] = [
    ("ByteDance-Seed-OSS", None, Some("<seed:think>")),
    ("CohereForAI-c4ai-command-r-plus", None, None),
    ("GLM-4.6", Some(ToolFormat::Glm), Some("<think>")),
    ("Kimi-K2-Thinking", Some(ToolFormat::KimiK2), Some("<think>")),
    ("MiniMax-M2", None, Some("<think>")),
    ("Mistral-Small-3.2", Some(ToolFormat::MistralNamed), None),
    ("NVIDIA-Nemotron-3-Nano", Some(ToolFormat::QwenXml), Some("<think>")),
    ("NVIDIA-Nemotron-Nano-v2", Some(ToolFormat::Nemotron), Some("<think>")),
    ("NousResearch-Hermes-3", Some(ToolFormat::Hermes), None),
    ("Qwen-Qwen2.5-7B", Some(ToolFormat::Hermes), None),
    ("Qwen-Qwen3-0.6B", Some(ToolFormat::Hermes), Some("<think>")),
    ("Qwen3-Coder", Some(ToolFormat::QwenXml), None),
    ("Qwen3.5-4B", Some(ToolFormat::QwenXml), Some("<think>")),
    ("deepseek-ai-DeepSeek-R1-Distill-Qwen", Some(ToolFormat::DeepSeekV3), Some("<think>")),
    ("deepseek-ai-DeepSeek-V3.1", Some(ToolFormat::DeepSeekV31), Some("<think>")),
    ("fireworks-ai", Some(ToolFormat::Phi4), None),
    ("google-gemma-2-2b-it", None, None),
    ("ibm-granite-granite-3.3", Some(ToolFormat::Granite), Some("<think>")),
    ("ibm-granite-granite-4.0", Some(ToolFormat::Hermes), None),
    ("meetkai-functionary-medium-v3.1", None, None),
    ("meta-llama-Llama-3.1", Some(ToolFormat::Llama3), None),
    ("mistralai-Ministral-3", Some(ToolFormat::MistralNamed), Some("[THINK]")),
    ("mistralai-Mistral-Nemo", Some(ToolFormat::MistralList), None),
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
