//! Tokens chosen on the device: bit for bit as the default chooses them, and both against the rules in double precision.

use candle_core::{Device, Tensor};
use fastchat_kernels::cuda::CudaKernels;
use fastchat_kernels::random::uniform;
use fastchat_kernels::{DefaultKernels, Kernels, SampleRow};
use proptest::prelude::*;

use crate::backends;
use crate::data::Random;

/// (token, weight) of what a row may yield, largest first, after limits; the whole row in order of index without.
fn candidates(logits: &[f32], row: &SampleRow) -> Vec<(usize, f64)> {
    let mut row_logits = logits.to_vec();
    if let Some(mask) = &row.mask {
        for (i, logit) in row_logits.iter_mut().enumerate() {
            if mask.get(i / 32).is_none_or(|word| word >> (i % 32) & 1 == 0) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
    row.barred.iter().for_each(|&token| row_logits[token as usize] = f32::NEG_INFINITY);
    row.bias.iter().for_each(|&(token, bias)| row_logits[token as usize] += bias);
    for &(token, count) in &row.counts {
        let logit = &mut row_logits[token as usize];
        let penalty = row.repetition_penalty;
        *logit = if *logit > 0. { *logit / penalty } else { *logit * penalty };
        if count > 0 {
            *logit -= row.frequency_penalty * count as f32 + row.presence_penalty;
        }
    }
    let max = row_logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // As in the engine, a top_k as wide as the row limits nothing, and the draw then goes by index.
    let cut = row.top_k > 0 && (row.top_k as usize) < logits.len();
    let limited = row.temperature < 1e-5 || cut || row.top_p < 1. || row.min_p > 0.;
    let temperature = if row.temperature < 1e-5 { 1. } else { row.temperature };
    let weight = |logit: f32| (f64::from(logit - max) / f64::from(temperature)).exp();
    let mut all: Vec<(usize, f32)> = row_logits.iter().copied().enumerate().collect();
    all.retain(|entry| entry.1 > f32::NEG_INFINITY);
    if limited {
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    }
    if row.temperature < 1e-5 {
        all.truncate(1);
    }
    if row.top_k > 0 {
        all.truncate(row.top_k as usize);
    }
    if row.min_p > 0. {
        let floor = max + row.min_p.ln() * temperature;
        all.retain(|entry| entry.1 >= floor);
    }
    let mut all: Vec<(usize, f64)> = all.into_iter().map(|(token, logit)| (token, weight(logit))).collect();
    if row.top_p < 1. {
        let target = f64::from(row.top_p) * all.iter().map(|entry| entry.1).sum::<f64>();
        let mut sum = 0.;
        let kept = all.iter().take_while(|entry| {
            let enough = sum >= target;
            sum += entry.1;
            !enough
        });
        let kept = kept.count().max(1);
        all.truncate(kept);
    }
    all
}

/// Whether `token` is what `random` draws from the candidates, give or take what sums may differ by.
fn drawn(all: &[(usize, f64)], random: f64, token: usize) -> bool {
    let total: f64 = all.iter().map(|entry| entry.1).sum();
    let mut sum = 0.;
    for &(candidate, weight) in all {
        let (start, end) = (sum - 1e-5 * total, sum + weight + 1e-5 * total);
        if candidate == token {
            return random * total >= start && random * total < end;
        }
        sum += weight;
    }
    false
}

fn row(random: &mut Random, vocab: usize) -> SampleRow {
    let mut pick = |n: u64| random.next() % n;
    let mut row = SampleRow::greedy();
    (row.seed, row.position) = (pick(u64::MAX), pick(1 << 40));
    if pick(5) > 0 {
        row.temperature = 0.3 + pick(20) as f32 / 10.;
    }
    if pick(2) > 0 {
        row.top_k = pick(vocab as u64 + 3) as u32;
    }
    if pick(2) > 0 {
        row.top_p = (1 + pick(99)) as f32 / 100.;
    }
    if pick(3) == 0 {
        row.min_p = pick(50) as f32 / 100.;
    }
    if pick(2) == 0 {
        (row.repetition_penalty, row.frequency_penalty, row.presence_penalty) = (1.3, 0.25, -0.5);
        row.counts = (0..vocab as u32).filter(|_| pick(3) == 0).map(|token| (token, token % 3)).collect();
    }
    if pick(3) == 0 {
        row.bias = (0..vocab as u32).step_by(3).map(|token| (token, 1.5)).collect();
    }
    if pick(3) == 0 {
        row.barred = (0..vocab as u32).step_by(4).take(3).collect();
    }
    if pick(3) == 0 {
        let words = vocab as u64 / 32 + pick(2);
        let mask: Vec<u32> = (0..words).map(|_| pick(1 << 32) as u32).collect();
        row.mask = Some(mask);
    }
    if pick(2) == 0 {
        row.logprobs = Some(pick(6) as u32);
    }
    row
}

fn check(kernels: &CudaKernels, logits: &[Vec<f32>], rows: &[SampleRow]) {
    let vocab = logits[0].len();
    let tensor = Tensor::from_vec(logits.concat(), (rows.len(), vocab), &Device::Cpu).unwrap();
    let sampled = kernels.sample(&tensor, rows).unwrap();
    assert_eq!(sampled, DefaultKernels(Device::Cpu).sample(&tensor, rows).unwrap(), "override == default");
    assert_eq!(tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap(), logits.concat(), "logits are the caller's");
    for ((sampled, row), logits) in sampled.iter().zip(rows).zip(logits) {
        let random = uniform(row.seed, row.position);
        let all = candidates(logits, row);
        let Some(token) = sampled.token else {
            assert!(all.is_empty(), "{row:?}");
            continue;
        };
        assert!(drawn(&all, random, token as usize), "{token} of {all:?} by {random}: {row:?}");
        let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let normaliser = max + logits.iter().map(|&x| (f64::from(x) - max).exp()).sum::<f64>().ln();
        assert_eq!(sampled.logprobs.is_some(), row.logprobs.is_some());
        if let (Some((logprob, rank, top)), Some(wanted)) = (&sampled.logprobs, row.logprobs) {
            let of = |token: usize| (f64::from(logits[token]) - normaliser) as f32;
            assert!((logprob - of(token as usize)).abs() < 1e-4, "{logprob}");
            let larger = logits.iter().filter(|&&x| x > logits[token as usize]).count();
            assert_eq!(*rank as usize, larger + 1);
            let mut order: Vec<usize> = (0..vocab).collect();
            // Stable: of equals, 0 and -0 among them, the first by index.
            order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap());
            order.truncate(wanted as usize);
            assert_eq!(top.iter().map(|&(token, _)| token as usize).collect::<Vec<_>>(), order);
            assert!(top.iter().all(|&(token, logprob)| (logprob - of(token as usize)).abs() < 1e-4));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn chooses_as_the_rules_say(seed: u64, rows in 1..4usize, vocab in 1..300usize, ties: bool) {
        let mut random = Random(seed);
        let rows: Vec<SampleRow> = (0..rows).map(|_| row(&mut random, vocab)).collect();
        let logits: Vec<Vec<f32>> = rows.iter().map(|_| {
            let logits = random.floats(vocab, 5.);
            // Few distinct values: ties are where mistakes hide.
            if ties { logits.into_iter().map(f32::round).collect() } else { logits }
        }).collect();
        check(&fastchat_emulator::kernels(false), &logits, &rows);
    }
}

#[test]
fn a_few_rows_with_every_access_checked() {
    let mut random = Random(5);
    for kernels in backends() {
        let mut rows: Vec<SampleRow> = (0..12).map(|_| row(&mut random, 70)).collect();
        // Everything that changes the same logits, by threads of their own.
        (rows[0].mask, rows[0].barred) = (Some(vec![0xffff_0f0f; 3]), (1..70).collect());
        (rows[0].bias, rows[0].counts) = ((0..70).map(|t| (t, 1.)).collect(), (0..70).map(|t| (t, 1)).collect());
        let logits: Vec<Vec<f32>> = rows.iter().map(|_| random.floats(70, 5.)).collect();
        check(&kernels, &logits, &rows);
    }
}

/// A cut inside a run of equals keeps the first of them by index.
#[test]
fn a_cut_among_equals_keeps_the_first() {
    for kernels in backends() {
        let row = |seed| SampleRow { seed, temperature: 1., top_k: 5, ..SampleRow::greedy() };
        let rows: Vec<SampleRow> = (0..24).map(row).collect();
        let logits: Vec<f32> = (0..40).map(|token| if [30, 39].contains(&token) { 2. } else { 1. }).collect();
        check(&kernels, &vec![logits; rows.len()], &rows);
    }
}

#[test]
fn the_first_of_the_largest_over_several_pieces() {
    for kernels in backends() {
        let vocab = 20_000;
        let mut logits = [Random(9).floats(vocab, 1.), vec![f32::NEG_INFINITY; vocab], vec![f32::NAN; vocab]];
        (logits[0][5], logits[0][9_000], logits[0][19_999], logits[0][3]) = (2., 2., 2., f32::NAN);
        let tensor = Tensor::from_vec(logits.concat(), (3, vocab), &Device::Cpu).unwrap();
        let sampled = kernels.sample(&tensor, &[0; 3].map(|_| SampleRow::greedy())).unwrap();
        let tokens: Vec<_> = sampled.into_iter().map(|sampled| sampled.token).collect();
        assert_eq!(tokens, [Some(5), None, None]);
    }
}

#[test]
fn random_numbers_are_the_hosts_bit_by_bit() {
    let mut random = Random(1);
    let keys: Vec<(u64, u64)> = (0..100).map(|i| (random.next(), random.next() >> (i % 64))).chain([(0, 0)]).collect();
    for kernels in backends() {
        for (&(seed, position), actual) in keys.iter().zip(kernels.uniforms(&keys).unwrap()) {
            assert_eq!(actual.to_bits(), uniform(seed, position).to_bits());
        }
    }
}

#[test]
fn refuses_what_does_not_fit() {
    let kernels = fastchat_emulator::kernels(false);
    let logits = Random(1).tensor(&[1, 10], 1.);
    let outside = SampleRow { bias: vec![(10, 1.)], ..SampleRow::greedy() };
    assert!(kernels.sample(&logits, &[outside]).is_err());
    assert!(kernels.sample(&logits, &[]).is_err());
}

/// A penalty takes from a logit below zero by multiplication: divided, it would become the best of this row.
#[test]
fn a_penalty_lowers_what_is_below_zero() {
    let row = SampleRow { repetition_penalty: 2., counts: vec![(1, 1)], ..SampleRow::greedy() };
    let logits = Tensor::new(&[[-4f32, -2., -3.]], &Device::Cpu).unwrap();
    for kernels in backends() {
        assert_eq!(kernels.sample(&logits, std::slice::from_ref(&row)).unwrap()[0].token, Some(2));
    }
}
