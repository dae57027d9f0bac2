//! Tokens that a step chooses for the next: those of `sample`, and the next step's sequences have them.

use candle_core::{Device, Tensor};
use fastchat_kernels::cuda::CudaKernels;
use fastchat_kernels::{ForwardBatch, KNOWN, Kernels, SampleRow, StepInput, StepRoom, Weight, WeightKind};
use proptest::prelude::*;

use crate::backends;
use crate::data::Random;

/// A decode step of sequences that begin, with tokens 1, 2, 3, ..
fn batch(sequences: usize) -> ForwardBatch {
    let rows = 0..sequences as u32;
    ForwardBatch {
        token_ids: rows.clone().map(|row| 1 + row).collect(),
        positions: vec![0; sequences],
        slot_mapping: rows.clone().map(|row| 16 * row).collect(),
        query_start: (0..=sequences as u32).collect(),
        context_lens: vec![1; sequences],
        block_tables: rows.clone().map(|row| vec![row]).collect(),
        logits_rows: rows.collect(),
        ..ForwardBatch::default()
    }
}

/// Row `row` of the asked ones: every third as likely as can be, unless all are.
fn asked(row: usize, greedy: bool) -> SampleRow {
    let plain = SampleRow { seed: row as u64, position: 3 * row as u64, ..SampleRow::greedy() };
    match row % 3 {
        0 => plain,
        _ if greedy => plain,
        1 => SampleRow { temperature: 0.8, top_p: 0.9, min_p: 0.01, ..plain },
        _ => SampleRow { temperature: 1.2, top_k: 7, ..plain },
    }
}

fn check(seed: u64, (rows, next): (usize, usize), vocab: usize, greedy: bool, kernels: &CudaKernels) {
    let mut random = Random(seed);
    let most = rows.max(next);
    let room = StepRoom { sequences: most, context: 16, blocks: most, vocab, slots: 0 };
    let plan = kernels.lasting_plan(&room, &[]).unwrap();

    let asked: Vec<_> = (0..rows).map(|row| asked(row, greedy)).collect();
    let mut values = random.floats(rows * vocab, 5.);
    // Nothing can be chosen from the last row.
    values[(rows - 1) * vocab..].fill(f32::NEG_INFINITY);
    let logits = Tensor::from_vec(values, (rows, vocab), &Device::Cpu).unwrap();
    let expected: Vec<_> = kernels.sample(&logits, &asked).unwrap().into_iter().map(|chosen| chosen.token).collect();

    let first = plan.first(rows).unwrap();
    kernels.replan(&first, &StepInput { batch: &batch(rows), follows: &[], asked: &asked }).unwrap();
    kernels.choose_next(&logits, &first, greedy).unwrap();
    let chosen = kernels.chosen(&first).unwrap();

    let follows: Vec<u32> =
        (0..next).map(|place| if place % 4 == 3 { KNOWN } else { ((5 * place + 1) % rows) as u32 }).collect();
    let second = plan.first(next).unwrap();
    kernels.replan(&second, &StepInput { batch: &batch(next), follows: &follows, asked: &[] }).unwrap();
    kernels.follow(&second).unwrap();
    let ids: Vec<u32> = (0..)
        .zip(&follows)
        .map(|(place, &row)| if row == KNOWN { 1 + place } else { expected[row as usize].unwrap_or(0) })
        .collect();
    let bytes: Vec<u8> = random.floats(vocab * 8, 1.).iter().flat_map(|value| value.to_le_bytes()).collect();
    let table = kernels.pack(&[Weight::new(WeightKind::F32, vocab, 8, bytes.into()).unwrap()], None).unwrap();
    let embedded = kernels.embed_tokens(&table, &second).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(embedded, kernels.embed(&table, &ids).unwrap().to_vec2::<f32>().unwrap());

    let tokens: Vec<_> = expected.into_iter().map(|token| token.unwrap_or(u32::MAX)).collect();
    assert_eq!(chosen.wait().unwrap(), tokens, "what came later changed it");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn the_next_step_has_the_tokens_of_sample(
        seed in any::<u64>(),
        rows in 1..70usize,
        next in 1..70usize,
        vocab in 80..9000usize,
        greedy in any::<bool>(),
    ) {
        check(seed, (rows, next), vocab, greedy, &fastchat_emulator::kernels(false));
    }
}

#[test]
fn chosen_sizes_are_right_with_every_access_checked() {
    for kernels in backends() {
        check(1, (5, 37), 100, false, &kernels);
        check(2, (33, 2), 8200, true, &kernels);
    }
}

#[test]
fn nobody_follows_a_row_that_no_step_can_have() {
    let room = StepRoom { sequences: 3, context: 16, blocks: 3, vocab: 9, slots: 0 };
    for kernels in backends() {
        let plan = kernels.lasting_plan(&room, &[]).unwrap().first(2).unwrap();
        let replan = |row| kernels.replan(&plan, &StepInput { batch: &batch(2), follows: &[KNOWN, row], asked: &[] });
        assert!(replan(2).is_ok());
        assert!(replan(3).unwrap_err().to_string().contains("row 3"));
        let logits = Tensor::zeros((3, 9), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(kernels.choose_next(&logits, &plan, true).is_err(), "a row too many");
    }
}
