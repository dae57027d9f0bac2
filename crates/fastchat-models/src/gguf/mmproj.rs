//! The file beside a GGUF model that holds its tower for pictures. What its keys say is said again in the words of
//! config.json, so that the tower is described once, in `hf`; only the names of its tensors are this file's own.

use std::path::{Path, PathBuf};

use fastchat_kernels::MappedFile;
use serde_json::{Map, Value, json};

use super::meta::Meta;
use super::{header, projectors, shards};
use crate::ModelError;
use crate::checkpoint::{TextSide, TokenizerSource};
use crate::hf;
use crate::hf::config::Config;
use crate::names::{Names, Slot, Source, Step};
use crate::spec::{DecoderSpec, Mixer};
use crate::vision::VisionDescription;
use crate::weights::{StoredKind, TensorMap};

/// A file's keys, and the model that it belongs to.
pub struct Tower<'a> {
    /// Its keys are those of the architecture `clip`.
    pub m: &'a Meta<'a>,
    pub decoder: &'a DecoderSpec,
    tokens: &'a [String],
    /// Token that nothing else stands for.
    spare: Option<u32>,
}

/// A tower in the words of config.json and preprocessor_config.json, and the names of its tensors.
pub struct Said {
    pub model_type: &'static str,
    pub whole: Value,
    pub vision: Value,
    pub processor: Value,
    pub names: Names,
}

/// The tower in the file `path`, for a model of that decoder and text side.
pub fn open(path: &Path, decoder: &DecoderSpec, text: &TextSide) -> Result<(VisionDescription, TensorMap), ModelError> {
    let file = MappedFile::open(path).map_err(|error| ModelError::io(path, error))?;
    let mut header = header::read(&file)?;
    let m = Meta::new(&header, path, None)?;
    if m.arch != "clip" {
        return Err(m.unsupported("general.architecture", m.arch, "clip is, for a tower beside a model"));
    }
    let Some(TokenizerSource::Gguf(vocab)) = &text.tokenizer else {
        return Err(ModelError::field(path, "tokenizer.ggml.tokens", "nothing", "names of tokens in the model's file"));
    };
    let tower = Tower { m: &m, decoder, tokens: &vocab.tokens, spare: vocab.unk.or(vocab.pad) };
    let Said { model_type, whole, vision, processor, names } = projectors::describe(&tower)?;
    let mut fields = fields(whole);
    fields.insert("model_type".to_owned(), model_type.into());
    fields.insert("vision_config".to_owned(), Value::Object(all(tower.sizes()?, vision)));
    let mut pictures = all(tower.pixels()?, processor);
    pictures.insert("do_resize".to_owned(), true.into());
    let config = Config::from_fields(path, fields);
    let described = hf::describe_vision(&config, decoder, || Ok(Config::from_fields(path, pictures)))?;
    let Some(description) = described else {
        return Err(m.unsupported("clip.projector_type", model_type, "it has no tower here"));
    };
    join_frames(&mut header.tensors)?;
    Ok((VisionDescription { names, ..description }, header.tensors))
}

fn fields(value: Value) -> Map<String, Value> {
    if let Value::Object(fields) = value { fields } else { Map::new() }
}

fn all(mut some: Map<String, Value>, more: Value) -> Map<String, Value> {
    some.extend(fields(more));
    some
}

impl Tower<'_> {
    /// Sizes that all towers have.
    fn sizes(&self) -> Result<Map<String, Value>, ModelError> {
        let m = self.m;
        let (layers, heads) = (m.size(".vision.block_count")?, m.size(".vision.attention.head_count")?);
        Ok(fields(json!({
            "hidden_size": m.size(".vision.embedding_length")?,
            "intermediate_size": m.size(".vision.feed_forward_length")?,
            "num_hidden_layers": layers, "depth": layers,
            "num_attention_heads": heads, "num_heads": heads,
            "patch_size": m.size(".vision.patch_size")?,
            "image_size": m.size(".vision.image_size")?,
            "layer_norm_eps": m.positive_or(".vision.attention.layer_norm_epsilon", 1e-6)?,
        })))
    }

    /// What is done to bytes.
    fn pixels(&self) -> Result<Map<String, Value>, ModelError> {
        let three = |key: &str| match self.m.floats(key, 3)? {
            list if list.len() == 3 => Ok(list),
            list => Err(self.m.bad(key, format!("{} numbers", list.len()), "3 numbers")),
        };
        Ok(fields(json!({"image_mean": three(".vision.image_mean")?, "image_std": three(".vision.image_std")?})))
    }

    /// The activation of the tower's layers, where the flag for GELU means `gelu`.
    pub fn act(&self, gelu: &'static str) -> Result<&'static str, ModelError> {
        Ok(match (self.m.flag_or(".use_gelu", false)?, self.m.flag_or(".use_silu", false)?) {
            (true, _) => gelu,
            (_, true) => "silu",
            _ => "quick_gelu",
        })
    }

    /// The token of that name.
    pub fn token(&self, name: &str) -> Result<u32, ModelError> {
        let found = self.tokens.iter().position(|token| token == name);
        found.map(|id| id as u32).ok_or_else(|| {
            let expected = format!("a file of the model beside it, which has no token {name}");
            self.m.bad(".projector_type", self.m.text(".projector_type").ok().flatten().unwrap_or("mlp"), expected)
        })
    }

    /// The same, or a token that is never read from text: only a place for a picture's rows.
    pub fn token_or_spare(&self, name: &str) -> Result<u32, ModelError> {
        self.token(name).or_else(|error| self.spare.ok_or(error))
    }

    /// The least window of the decoder's layers.
    pub fn window(&self) -> Option<usize> {
        let windows = self.decoder.layers.iter().filter_map(|layer| match &layer.mixer {
            Mixer::Attention(attention) => attention.window,
            _ => None,
        });
        windows.min()
    }
}

/// The names that all towers share.
pub fn names() -> Names {
    let mut names = Names { roots: vec![("", "")], ..Names::default() };
    names.set(Slot::Embed, Source::stem("v.patch_embd").then(Step::Flatten));
    names.set(Slot::ClassToken, Source::exact("v.class_embd", ""));
    names.set(Slot::Positions, Source::stem("v.position_embd"));
    names.set(Slot::EmbedNorm, Source::stem("v.pre_ln"));
    names.set(Slot::FinalNorm, Source::stem("v.post_ln"));
    for (slot, stem) in [
        (Slot::PreAttn, "ln1"),
        (Slot::PreMlp, "ln2"),
        (Slot::Q, "attn_q"),
        (Slot::K, "attn_k"),
        (Slot::V, "attn_v"),
        (Slot::O, "attn_out"),
        (Slot::Gate, "ffn_gate"),
        (Slot::Up, "ffn_up"),
        (Slot::Down, "ffn_down"),
    ] {
        names.set(slot, Source::stem(&format!("v.blk.{{l}}.{stem}")));
    }
    names
}

/// Puts the kernels of two frames, which exporters cut apart, together again: `[hidden, 3, 2, size, size]`.
fn join_frames(map: &mut TensorMap) -> Result<(), ModelError> {
    const FIRST: &str = "v.patch_embd.weight";
    const SECOND: &str = "v.patch_embd.weight.1";
    let Some(second) = map.tensors.remove(SECOND) else { return Ok(()) };
    let fail = |problem: String| ModelError::tensor(&second.file, SECOND, problem);
    let Some(first) = map.tensors.get_mut(FIRST) else { return Err(fail(format!("has no {FIRST} beside it"))) };
    let (StoredKind::Weight(kind), &[hidden, channels, height, width]) = (&second.kind, &second.shape[..]) else {
        return Err(fail(format!("is {} {:?}, expected floats of 4 dimensions", second.kind.name(), second.shape)));
    };
    if !kind.is_dense() || first.shape != second.shape || first.kind.name() != second.kind.name() {
        let (kind, shape) = (first.kind.name(), &first.shape);
        return Err(fail(format!("is {} {:?}, {FIRST} {kind} {shape:?}", second.kind.name(), second.shape)));
    }
    let plane = height * width * kind.block().1;
    let pairs = first.bytes.chunks_exact(plane).zip(second.bytes.chunks_exact(plane));
    let bytes: Vec<u8> = pairs.flat_map(|(first, second)| first.iter().chain(second).copied()).collect();
    first.bytes = bytes.into();
    first.shape = vec![hidden, channels, 2, height, width];
    Ok(())
}

/// Whether a file is named as those of towers are.
pub fn is_named(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().to_ascii_lowercase().contains("mmproj"))
}

/// The tower beside `model`: of a folder that holds one model and one tower.
pub fn beside(model: &Path) -> Option<PathBuf> {
    let folder = model.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let is_gguf = |path: &PathBuf| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    let files = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).filter(is_gguf);
    let (towers, models): (Vec<_>, Vec<_>) = files.partition(|path| is_named(path));
    match &towers[..] {
        [tower] if !is_named(model) && shards::one_model(&models).is_some() => Some(tower.clone()),
        _ => None,
    }
}
