//! Every vision family against the reference: the pixels of its processor, then the logits of a prompt with a picture,
//! whole, in chunks and in company.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)] // a test may fail loudly

mod checkpoints;
mod rows;

use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use checkpoints::Folder;
use fastchat_kernels::cpu::{CpuKernels, Isa};
use fastchat_kernels::{DefaultKernels, Kernels};
use fastchat_models::vision::placement::{Sight, Turns};
use fastchat_models::vision::spec::VisionSpec;
use fastchat_models::vision::{
    CrossSequence, Detail, ImageFeatures, Media, Picture, PictureLimits, Pixels, Placed, RopeMap,
};
use fastchat_models::{Decoder, LoadOptions, ModelError, inspect, load};
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
        let (decoder, tower) = (model.decoder, model.vision.unwrap());
        let spec = tower.spec();
        let pixels = pixels(spec, folder);
        let expected = reference(spec, &pixels, &golden(&file, "in.pixel_values"));
        assert!(pixels.planes.len() <= expected.len(), "{what}: {pixels:?}");
        let least = spec.processor.std.iter().fold(f32::MAX, |least, &std| least.min(std));
        let off = pixels.planes.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0., f32::max) * least * 255.;
        assert!(off <= BYTE, "{what}: pixels differ by {off} steps");
        // Tiles that a picture does not fill are zeros.
        assert!(expected[pixels.planes.len()..].iter().all(|&value| value == 0.));

        let features = decoder.look(tower.encode(&pixels).unwrap()).unwrap();
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

macro_rules! families {
    ($($name:ident)*) => {
        $(#[test] fn $name() { family(stringify!($name)); })*

        #[test]
        fn every_reference_folder_has_its_test() {
            let Some(shared) = rows::shared() else { return };
            let mut folders: Vec<_> = std::fs::read_dir(shared.join("vision")).unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            folders.sort();
            assert_eq!(folders, [$(stringify!($name)),*]);
        }
    };
}

families! { gemma3_vision idefics3 llava mllama qwen2_5_vl qwen3_vl }

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
    assert!(found.total.tensors > inspect(&gemma.0, None).unwrap().spec.layers.len() as u64);
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
