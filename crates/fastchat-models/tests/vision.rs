//! Every vision family against the reference: the pixels of its processor, then the logits of a prompt with a picture,
//! whole, in chunks and in company.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)] // a test may fail loudly

mod checkpoints;
#[macro_use]
mod rows;

use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use checkpoints::Folder;
use fastchat_kernels::cpu::{CpuKernels, Isa};
use fastchat_kernels::{DefaultKernels, Kernels};
use fastchat_models::vision::placement::{Sight, Turns};
use fastchat_models::vision::spec::VisionSpec;
use fastchat_models::vision::{
    CrossSequence, Detail, ImageFeatures, Media, Picture, PictureLimits, Pixels, Placed, RopeMap,
};
use fastchat_models::{Decoder, LoadOptions, ModelError, VisionTower, inspect, load};
use rows::{Feed, Sequence, argmax, batch, cache, difference, golden};

/// Largest difference of a logit, both sides computed in f32.
const TOLERANCE: f32 = 1e-3;

/// Largest difference of a processed value, in steps of the picture's bytes.
const BYTE: f32 = 0.01;

fn picture(folder: &Path) -> Picture {
    let bytes = std::fs::read(folder.join("image.png")).unwrap();
    Picture::decode(&bytes, &PictureLimits::default()).unwrap()
}

fn pixels(spec: &VisionSpec, folder: &Path) -> Pixels {
    let picture = picture(folder);
    let fitting = spec.processor.fit(picture.width, picture.height, Detail::Auto).unwrap();
    let pixels = spec.processor.process(&picture, &fitting);
    assert_eq!(spec.grid(&fitting), spec.grid_of(&pixels));
    pixels
}

/// The reference's pixels as planes; families of patches have them cut already.
fn reference(spec: &VisionSpec, pixels: &Pixels, expected: &Tensor) -> Vec<f32> {
    let values = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    if expected.rank() > 2 {
        return values;
    }
    let patch = spec.patch;
    let area = patch.size * patch.size;
    let mut planes = vec![0.; pixels.planes.len()];
    let columns = pixels.width / patch.size / patch.group;
    let (group, width) = (patch.group * patch.group, 3 * patch.frames * area);
    for (row, values) in values.chunks_exact(width).enumerate() {
        let (square, within) = (row / group, row % group);
        let line = square / columns * patch.group + within / patch.group;
        let column = square % columns * patch.group + within % patch.group;
        for (i, value) in values.iter().enumerate() {
            let (channel, at) = (i / (patch.frames * area), i % area);
            let (y, x) = (line * patch.size + at / patch.size, column * patch.size + at % patch.size);
            planes[(channel * pixels.height + y) * pixels.width + x] = *value;
        }
    }
    planes
}

struct Case {
    ids: Vec<u32>,
    logits: Vec<Vec<f32>>,
    spec: VisionSpec,
    features: ImageFeatures,
    /// Tokens in whose place the picture's rows stand, run by run.
    runs: Vec<Range<usize>>,
    ropes: RopeMap,
}

impl Case {
    fn new(spec: &VisionSpec, features: ImageFeatures, pixels: &Pixels, file: &Path) -> Self {
        let ids: Vec<u32> = golden(file, "input_ids").to_dtype(DType::U32).unwrap().to_vec1().unwrap();
        let token = spec.placement.token;
        let first = ids.iter().position(|&id| id == token).unwrap();
        let count = ids.iter().filter(|&&id| id == token).count();
        let looks = features.num_rows() == 0;
        assert!(looks || count == features.num_rows(), "{count} tokens for {} rows", features.num_rows());
        let grid = spec.grid_of(pixels);
        let pictures = if spec.placement.turns == Turns::Grid { vec![(first, grid)] } else { vec![] };
        Self {
            logits: golden(file, "logits").to_vec2().unwrap(),
            ropes: RopeMap::new(ids.len(), &pictures),
            runs: (!looks).then_some(first..first + count).into_iter().collect(),
            spec: spec.clone(),
            features,
            ids,
        }
    }

    /// Rows of tokens `range`, fed to `sequence`.
    fn feed(
        &self,
        decoder: &Decoder,
        cache: &fastchat_models::Cache,
        sequence: &mut Sequence,
        range: Range<usize>,
    ) -> Vec<Vec<f32>> {
        let start = range.start;
        let mut batch = batch(decoder, &mut [Feed { sequence, tokens: &self.ids[range.clone()] }]);
        batch.rope_positions = range.clone().map(|position| self.ropes.at(position)).collect();
        let mut media = Media::default();
        if self.spec.placement.sight == Sight::Whole {
            batch.reach = batch.positions.clone();
        }
        for run in &self.runs {
            let (from, to) = (run.start.max(start), run.end.min(range.end));
            if from < to {
                media.placed.push(Placed {
                    features: &self.features,
                    rows: from - start..to - start,
                    from: from - run.start,
                });
                if self.spec.placement.sight == Sight::Whole {
                    batch.reach[from - start..to - start].fill(run.end as u32 - 1);
                }
            }
        }
        if self.runs.is_empty() {
            let marker = self.ids.iter().position(|&id| id == self.spec.placement.marker).unwrap();
            let seen = range.map(|position| 0..usize::from(position >= marker)).collect();
            media.looking.push(CrossSequence { rows: 0..batch.num_tokens(), images: vec![&self.features], seen });
        }
        decoder.forward_media(&batch, &media, cache).unwrap().to_vec2::<f32>().unwrap()
    }

    fn check(&self, what: &str, from: usize, rows: &[Vec<f32>]) {
        let expected = &self.logits[from..from + rows.len()];
        let most = difference(rows, expected);
        assert!(most <= TOLERANCE, "{what}: logits differ by {most}");
        for (row, expected) in rows.iter().zip(expected) {
            assert_eq!(argmax(row), argmax(expected), "{what}: greedy token");
        }
        eprintln!("{what}: {most}");
    }
}

fn kernels() -> Vec<(Arc<dyn Kernels>, bool)> {
    let mut sets = vec![Isa::Avx512Vnni, Isa::Avx2, Isa::Portable];
    for isa in &mut sets {
        *isa = (*isa).min(Isa::detect());
    }
    sets.dedup();
    let cpu = sets.into_iter().map(|isa| (Arc::new(CpuKernels::with_isa(None, isa)) as Arc<dyn Kernels>, true));
    std::iter::once((Arc::new(DefaultKernels(Device::Cpu)) as Arc<dyn Kernels>, false)).chain(cpu).collect()
}

fn family(name: &str) {
    let Some(shared) = rows::shared() else { return };
    let folder = shared.join("vision").join(name);
    compare(name, &folder, &folder, kernels());
}

/// The same from a GGUF file and the file of its tower, which lie in one folder.
fn gguf(name: &str, architecture: &str, projector: &str) {
    let Some(shared) = rows::shared().filter(|_| checkpoints::writer()) else { return };
    let folder = shared.join("vision").join(name);
    let out = Folder::new(&format!("mmproj-{name}"));
    pair(&folder, &out, architecture, projector);
    compare(&format!("{name} from GGUF"), &folder, &out.0, kernels().into_iter().take(1).collect());
}

/// The model of `folder` as `model.gguf` and `mmproj-model.gguf` in `out`.
fn pair(folder: &Path, out: &Folder, architecture: &str, projector: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gguf/mmproj.py");
    let output = Command::new("python3").arg(script).arg(folder).arg(&out.0).args([architecture, projector]).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{projector}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The model at `path` against the reference outputs in `folder`.
fn compare(name: &str, folder: &Path, path: &Path, kernels: Vec<(Arc<dyn Kernels>, bool)>) {
    let file = folder.join("golden.safetensors");
    for (kernels, exact) in kernels {
        let what = format!("{name} on {}", kernels.name());
        let model = load(path, kernels, &LoadOptions::default()).unwrap_or_else(|error| panic!("{error}"));
        let (decoder, mut tower) = (model.decoder, model.vision.unwrap());
        let spec = tower.spec();
        let pixels = pixels(spec, folder);
        let expected = reference(spec, &pixels, &golden(&file, "in.pixel_values"));
        assert!(pixels.planes.len() <= expected.len(), "{what}: {pixels:?}");
        let least = spec.processor.std.iter().fold(f32::MAX, |least, &std| least.min(std));
        let off = pixels.planes.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0., f32::max) * least * 255.;
        assert!(off <= BYTE, "{what}: pixels differ by {off} steps");
        // Tiles that a picture does not fill are zeros.
        assert!(expected[pixels.planes.len()..].iter().all(|&value| value == 0.));

        let features = tower.encode(&pixels).unwrap();
        in_pieces(&what, &mut tower, &pixels, &features);
        let spec = tower.spec();
        let features = decoder.look(features).unwrap();
        let case = Case::new(spec, features, &pixels, &file);
        let all = case.ids.len();
        let whole = case.feed(&decoder, &cache(&decoder, 1, DType::F32), &mut Sequence::new(0, 1), 0..all);
        case.check(&what, 0, &whole);
        for chunk in [1, 3, 7] {
            // What sees later tokens is computed with them.
            let mut cuts: Vec<usize> = (0..all).step_by(chunk).chain([all]).collect();
            if spec.placement.sight == Sight::Whole {
                cuts.retain(|cut| !case.runs.iter().any(|run| run.start < *cut && *cut < run.end));
            }
            let (cache, mut sequence) = (cache(&decoder, 1, DType::F32), Sequence::new(0, 1));
            for cut in cuts.windows(2) {
                let rows = case.feed(&decoder, &cache, &mut sequence, cut[0]..cut[1]);
                case.check(&format!("{what}, tokens {cut:?}"), cut[0], &rows);
                if exact && case.features.num_rows() > 0 {
                    assert!(rows == whole[cut[0]..cut[1]], "{what}, tokens {cut:?}: some bit differs from the whole");
                }
            }
        }
    }
}

/// However little a piece of the tower's work is, the rows are the same, bit for bit.
fn in_pieces(what: &str, tower: &mut VisionTower, pixels: &Pixels, whole: &ImageFeatures) {
    let values = |rows: &Tensor| rows.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let mut steps = Vec::new();
    for (piece, until) in [(usize::MAX, None), (usize::MAX, Some(Instant::now())), (1, None)] {
        tower.set_piece(piece);
        let (mut encoding, mut count) = (tower.start(pixels).unwrap(), 0);
        let features = loop {
            count += 1;
            if let Some(features) = tower.advance(&mut encoding, until).unwrap() {
                break features;
            }
        };
        steps.push(count);
        for (rows, expected) in features.all_rows().zip(whole.all_rows()) {
            assert!(values(rows) == values(expected), "{what}: rows in pieces of {piece} until {until:?} are others");
        }
    }
    assert_eq!(steps[0], tower.spec().layers.len() + 1, "{what}");
    assert!(steps[0] < steps[1] && steps[1] <= steps[2], "{what}: {steps:?}");
}

every_folder! { "vision", family: gemma3_vision idefics3 llava mllama qwen2_5_vl qwen3_vl }

macro_rules! pairs {
    ($($test:ident $name:ident $architecture:literal $projector:literal)*) => {
        $(#[test] fn $test() { gguf(stringify!($name), $architecture, $projector); })*
    };
}

pairs! {
    gemma3_vision_mmproj gemma3_vision "gemma3" "gemma3"
    idefics3_mmproj idefics3 "llama" "idefics3"
    llava_mmproj llava "llama" "mlp"
    qwen2_5_vl_mmproj qwen2_5_vl "qwen2vl" "qwen2.5vl_merger"
    qwen3_vl_mmproj qwen3_vl "qwen3vl" "qwen3vl_merger"
}

/// Which file a model takes its tower from, and what is said of files that do not go together.
#[test]
fn files_of_towers() {
    let Some(shared) = rows::shared().filter(|_| checkpoints::writer()) else { return };
    let (idefics, gemma) = (Folder::new("mmproj-one"), Folder::new("mmproj-other"));
    pair(&shared.join("vision/idefics3"), &idefics, "llama", "idefics3");
    pair(&shared.join("vision/gemma3_vision"), &gemma, "gemma3", "gemma3");
    let (model, tower) = (idefics.0.join("model.gguf"), idefics.0.join("mmproj-model.gguf"));
    let open = |path: &Path, mmproj: Option<&Path>| {
        let options = LoadOptions { mmproj: mmproj.map(Path::to_owned), ..LoadOptions::default() };
        load(path, Arc::new(DefaultKernels(Device::Cpu)), &options)
    };
    let fingerprint = |path: &Path, mmproj: Option<&Path>| open(path, mmproj).unwrap().fingerprint;
    let found = inspect(&model, None).unwrap();
    assert_eq!(found.mmproj.as_deref(), Some(tower.as_path()));
    assert_eq!(found.vision, inspect(&idefics.0, Some(&tower)).unwrap().vision);
    assert!(found.total.tensors > inspect(&gemma.0, None).unwrap().spec.decoder().unwrap().layers.len() as u64);
    let with = fingerprint(&model, None);
    assert_eq!(fingerprint(&idefics.0, Some(&tower)), with);
    // Of several models in a folder nobody knows whose the tower is.
    std::fs::copy(gemma.0.join("model.gguf"), idefics.0.join("other.gguf")).unwrap();
    assert!(open(&model, None).unwrap().vision.is_none());
    assert_ne!(fingerprint(&model, None), with);
    assert_eq!(fingerprint(&model, Some(&tower)), with);

    let refused = |path: &Path, mmproj: Option<&Path>| -> ModelError { open(path, mmproj).unwrap_err() };
    let line = |error: ModelError| {
        let line = error.to_string();
        assert!(!line.contains('\n'), "{line}");
        line.replace(idefics.0.to_str().unwrap(), "ONE").replace(gemma.0.to_str().unwrap(), "OTHER")
    };
    assert_eq!(
        line(refused(&model, Some(&gemma.0.join("mmproj-model.gguf")))),
        "OTHER/mmproj-model.gguf: clip.projector_type = gemma3: expected a file of the model beside it, which has no token \
         <start_of_image>"
    );
    assert_eq!(
        line(refused(&tower, None)),
        "ONE/mmproj-model.gguf: general.architecture = clip is not supported; it is a tower for pictures, which belongs \
         beside its model (mmproj)"
    );
    assert_eq!(
        line(refused(&model, Some(&idefics.0.join("other.gguf")))),
        "ONE/other.gguf: general.architecture = gemma3 is not supported; clip is, for a tower beside a model"
    );
    let folder = shared.join("vision/llava");
    let whole = line(refused(&folder, Some(&tower)));
    assert_eq!(whole, "mmproj = ONE/mmproj-model.gguf: only GGUF files have their tower in another file");
}

/// A Pixtral model of random weights, for whose tower there is no reference.
fn pixtral(name: &str) -> Folder {
    let folder = Folder::new(name);
    let config = serde_json::json!({
        "model_type": "llava", "image_token_index": 250, "projector_hidden_act": "gelu", "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "text_config": {
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 256,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
            "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
        },
        "vision_config": {
            "model_type": "pixtral", "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 3, "patch_size": 14, "image_size": 112, "hidden_act": "silu", "rope_theta": 10000.0,
        },
    });
    folder.write("config.json", config.to_string());
    let half = [0.5; 3];
    let processor = serde_json::json!({"size": {"longest_edge": 112}, "image_mean": half, "image_std": half});
    folder.write("preprocessor_config.json", processor.to_string());
    let mut all: Vec<(String, Vec<usize>)> = Vec::new();
    let mut add = |name: &str, shape: &[usize]| all.push((name.to_owned(), shape.to_vec()));
    add("language_model.lm_head.weight", &[256, 64]);
    add("language_model.model.embed_tokens.weight", &[256, 64]);
    add("language_model.model.norm.weight", &[64]);
    add("vision_tower.patch_conv.weight", &[48, 3, 14, 14]);
    add("vision_tower.ln_pre.weight", &[48]);
    for (layer, shape) in [("linear_1", [64, 48]), ("linear_2", [64, 64])] {
        add(&format!("multi_modal_projector.{layer}.weight"), &shape);
        add(&format!("multi_modal_projector.{layer}.bias"), &shape[..1]);
    }
    for layer in 0..2 {
        let text = format!("language_model.model.layers.{layer}");
        let tower = format!("vision_tower.transformer.layers.{layer}");
        for (name, width) in [("input_layernorm", 64), ("post_attention_layernorm", 64)] {
            add(&format!("{text}.{name}.weight"), &[width]);
        }
        for name in ["attention_norm", "ffn_norm"] {
            add(&format!("{tower}.{name}.weight"), &[48]);
        }
        for (name, rows) in [("q_proj", 64), ("k_proj", 32), ("v_proj", 32), ("o_proj", 64)] {
            add(&format!("{text}.self_attn.{name}.weight"), &[rows, 64]);
            add(&format!("{tower}.attention.{name}.weight"), &[48, 48]);
        }
        for (name, [rows, cols]) in [("gate_proj", [2, 1]), ("up_proj", [2, 1]), ("down_proj", [1, 2])] {
            add(&format!("{text}.mlp.{name}.weight"), &[64 * rows, 64 * cols]);
            add(&format!("{tower}.feed_forward.{name}.weight"), &[48 * rows, 48 * cols]);
        }
    }
    checkpoints::write(&folder.0.join("model.safetensors"), &all);
    folder
}

/// Both formats of one Pixtral are the same tower, its heads in another order of rows.
#[test]
fn pixtral_mmproj() {
    if !checkpoints::writer() {
        return;
    }
    let (folder, out) = (pixtral("pixtral"), Folder::new("mmproj-pixtral"));
    pair(&folder.0, &out, "llama", "pixtral");
    let open = |path: &Path| {
        let model = load(path, Arc::new(DefaultKernels(Device::Cpu)), &LoadOptions::default());
        model.unwrap_or_else(|error| panic!("{error}")).vision.unwrap()
    };
    let (one, other) = (open(&folder.0), open(&out.0));
    assert_eq!(one.spec(), other.spec());
    let bytes: Vec<u8> = (0..90 * 60 * 3).map(|i| (i * i % 251) as u8).collect();
    let picture = Picture::from_pixels(90, 60, 3, &bytes, &PictureLimits::default()).unwrap();
    let fitting = one.spec().processor.fit(90, 60, Detail::Auto).unwrap();
    let pixels = one.spec().processor.process(&picture, &fitting);
    let rows = |tower: &VisionTower| {
        let features = tower.encode(&pixels).unwrap();
        features.all_rows().next().unwrap().to_vec2::<f32>().unwrap()
    };
    let (expected, got) = (rows(&one), rows(&other));
    assert_eq!(expected.len(), 35);
    assert!(difference(&got, &expected) <= 1e-5);
}
