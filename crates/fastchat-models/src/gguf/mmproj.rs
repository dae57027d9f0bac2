//! The file beside a GGUF model that holds its tower for pictures. What its keys say is said again in the words of
//! config.json, so that the tower is described once, in `hf`; only the names of its tensors are this file's own.

use std::path::{Path, PathBuf};

use fastchat_kernels::MappedFile;
use serde_json::Value;

use super::meta::Meta;
use super::tower::{Said, Tower, all, fields};
use super::{header, projectors, shards};
use crate::ModelError;
use crate::checkpoint::{TextSide, TokenizerSource};
use crate::hf;
use crate::hf::config::Config;
use crate::spec::DecoderSpec;
use crate::vision::VisionDescription;
use crate::weights::{StoredKind, TensorMap};

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
