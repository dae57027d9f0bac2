//! The search for the largest product against all products, on every instruction set this machine has.

use candle_core::{DType, Device, Tensor};
use fastchat_kernels::cpu::CpuKernels;
use fastchat_kernels::{DefaultKernels, Kernels, Weight, WeightKind};
use proptest::prelude::*;

use crate::data::{Random, assert_same_bits};
use crate::linear::ISAS;
use crate::weights::{DENSE, QUANTISED, weight};

/// The first of the largest of each row.
fn largest(y: &Tensor) -> Vec<Option<u32>> {
    let rows = y.to_vec2::<f32>().unwrap();
    let of = |row: &Vec<f32>| {
        let best = (0..).zip(row).filter(|entry| *entry.1 > f32::NEG_INFINITY);
        best.reduce(|best, entry| if entry.1 > best.1 { entry } else { best }).map(|(at, _)| at)
    };
    rows.iter().map(of).collect()
}

/// A weight that is split, for no scale is below zero, and its elements.
fn vocabulary(rows: usize, cols: usize, random: &mut Random) -> (Weight, Vec<f32>) {
    let mut bytes = weight(WeightKind::Q8_0, rows, cols, random).bytes().to_vec();
    bytes.chunks_exact_mut(34).for_each(|block| block[1] &= 0x7f);
    let weight = Weight::new(WeightKind::Q8_0, rows, cols, bytes.into()).unwrap();
    let elements = weight.to_f32().unwrap();
    (weight, elements)
}

/// Inputs that are each near to one row, as far as there is no noise.
fn input(tokens: usize, cols: usize, elements: &[f32], noise: f32, random: &mut Random) -> Tensor {
    let rows = elements.len() / cols;
    let mut x = random.tensor(&[tokens, cols], noise).flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (token, x) in x.chunks_exact_mut(cols).enumerate() {
        let row = token * 7919 % rows;
        x.iter_mut().zip(&elements[row * cols..]).for_each(|(x, w)| *x += w);
    }
    Tensor::from_vec(x, (tokens, cols), &Device::Cpu).unwrap()
}

fn check(kernels: &CpuKernels, weight: &Weight, x: &Tensor, what: &str) {
    let head = kernels.pack_lm_head(weight).unwrap();
    let whole = kernels.pack(std::slice::from_ref(weight), None).unwrap();
    let y = kernels.linear(x, &whole).unwrap();
    assert_same_bits(what, &kernels.linear(x, &head).unwrap(), &y);
    // More than once: searches that do not pay are left out for a while.
    for _ in 0..3 {
        assert_eq!(kernels.most_likely(x, &head).unwrap(), largest(&y), "{what} of {:?}", x.dims());
    }
    assert_eq!(kernels.most_likely(x, &whole).unwrap(), largest(&y), "{what} of {:?}, packed as others", x.dims());
}

#[test]
fn the_largest_of_every_kind_is_that_of_all_products() {
    for isa in ISAS {
        let kernels = CpuKernels::with_isa(Some(2), isa);
        for (i, kind) in QUANTISED.into_iter().chain(DENSE).enumerate() {
            let mut random = Random(i as u64);
            let weight = weight(kind, 530, 256, &mut random);
            for tokens in [0, 1, 3, 9] {
                check(&kernels, &weight, &random.tensor(&[tokens, 256], 1.), &format!("{isa} {kind:?}"));
            }
        }
    }
}

#[test]
fn it_is_as_large_as_the_default_s() {
    for isa in ISAS {
        let kernels = CpuKernels::with_isa(Some(2), isa);
        let plain = DefaultKernels(Device::Cpu);
        let mut random = Random(11);
        let (weight, elements) = vocabulary(2000, 320, &mut random);
        let x = input(4, 320, &elements, 0.5, &mut random);
        let default = plain.pack_lm_head(&weight).unwrap();
        let y = plain.linear(&x, &default).unwrap().to_vec2::<f32>().unwrap();
        let found = kernels.most_likely(&x, &kernels.pack_lm_head(&weight).unwrap()).unwrap();
        for ((y, found), best) in y.iter().zip(found).zip(plain.most_likely(&x, &default).unwrap()) {
            let (found, best) = (y[found.unwrap() as usize], y[best.unwrap() as usize]);
            assert!(best - found <= 0.01 * best.abs(), "{isa}: {found} of {best}");
        }
    }
}

#[test]
fn a_row_that_is_meant_is_found() {
    let mut random = Random(5);
    let (weight, elements) = vocabulary(4000, 640, &mut random);
    for isa in ISAS {
        let kernels = CpuKernels::with_isa(Some(2), isa);
        for tokens in 1..=5 {
            check(&kernels, &weight, &input(tokens, 640, &elements, 0.2, &mut random), &format!("{isa} near a row"));
        }
    }
}

#[test]
fn the_first_of_equals_wins_wherever_the_search_cuts() {
    for isa in ISAS {
        let kernels = CpuKernels::with_isa(Some(2), isa);
        let mut random = Random(6);
        let (one, _) = vocabulary(3, 64, &mut random);
        let bytes = one.bytes().repeat(1000);
        let weight = Weight::new(WeightKind::Q8_0, 3000, 64, bytes.into()).unwrap();
        check(&kernels, &weight, &random.tensor(&[3, 64], 1.), &format!("{isa} equals"));
        check(&kernels, &weight, &Tensor::zeros((2, 64), DType::F32, &Device::Cpu).unwrap(), &format!("{isa} zeros"));
    }
}

#[test]
fn extremes_are_found_as_without_a_search() {
    for isa in ISAS {
        let kernels = CpuKernels::with_isa(Some(2), isa);
        let mut random = Random(8);
        let (weight, _) = vocabulary(1500, 96, &mut random);
        for (i, value) in
            [f32::NAN, f32::INFINITY, f32::MAX, 1e30, 1e19, 1e-30, 1e-38, f32::from_bits(1)].into_iter().enumerate()
        {
            let scaled = (random.tensor(&[2, 96], 1.) * f64::from(if value.is_finite() { value } else { 1. })).unwrap();
            check(&kernels, &weight, &scaled, &format!("{isa} times {value}"));
            let mut x = random.tensor(&[3, 96], 1.).flatten_all().unwrap().to_vec1::<f32>().unwrap();
            x[96 + 11 * i] = value;
            check(&kernels, &weight, &Tensor::from_vec(x, (3, 96), &Device::Cpu).unwrap(), &format!("{isa} {value}"));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_shape_and_noise(
        rows in 1..700usize, groups in 1..12usize, tokens in 1..6usize, noise in 0.0..3.0f32, seed: u64, isa in 0..5usize,
    ) {
        let kernels = CpuKernels::with_isa(Some(2), ISAS[isa]);
        let mut random = Random(seed);
        let (weight, elements) = vocabulary(rows, 32 * groups, &mut random);
        check(&kernels, &weight, &input(tokens, 32 * groups, &elements, noise, &mut random), "any");
    }
}
