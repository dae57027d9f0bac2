//! Choosing a device, and what the self-test says of a backend that is right and of one that is not. Not beside what they
//! test: a library's own tests would compile every backend a second time.
#![allow(missing_docs, clippy::unwrap_used)] // a test may fail loudly

use candle_core::{Device, Result, Tensor};
use fastchat_kernels::cpu::CpuKernels;
use fastchat_kernels::device::{DeviceChoice, KernelOptions, open};
use fastchat_kernels::{DefaultKernels, Kernels, MoeSpec, MoeWeights, selftest};

#[test]
fn reads_what_it_writes_and_nothing_else() {
    for choice in [DeviceChoice::Auto, DeviceChoice::Cpu, DeviceChoice::Cuda(0), DeviceChoice::Cuda(7)] {
        assert_eq!(choice.to_string().parse(), Ok(choice));
    }
    assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
    for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:1024", "cuda:99999999999999999999", "CPU"] {
        let error = text.parse::<DeviceChoice>().expect_err(text);
        assert!(error.contains(&format!("'{text}'")), "{error}");
    }
}

#[test]
fn a_box_without_a_gpu_falls_back_only_when_it_may() {
    if open(DeviceChoice::Cuda(0), KernelOptions::default(), &[]).is_ok() {
        return;
    }
    let auto = open(DeviceChoice::Auto, KernelOptions { threads: Some(1), ..KernelOptions::default() }, &[])
        .expect("the CPU is always there");
    assert!(auto.name().starts_with("cpu-"), "{}", auto.name());
    let error = open(DeviceChoice::Cuda(3), KernelOptions::default(), &[]).expect_err("there is no such device");
    assert!(error.starts_with("device cuda:3 cannot be used: ") && !error.contains('\n'), "{error}");
}

/// Honest but for one operation.
#[derive(Debug)]
struct Liar(DefaultKernels);

impl Kernels for Liar {
    fn device(&self) -> &Device {
        self.0.device()
    }

    fn name(&self) -> String {
        "liar".to_owned()
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        self.0.rms_norm(x, weight, eps)? * 1.001
    }

    fn moe(&self, x: &Tensor, spec: &MoeSpec, weights: &MoeWeights) -> Result<Tensor> {
        self.0.moe(x, spec, weights)
    }
}

#[test]
fn trusts_what_is_right_and_finds_what_is_not() {
    for finding in selftest::run(&CpuKernels::new(Some(2))) {
        assert!(finding.ok(), "{finding:?}");
    }
    let wrong: Vec<_> = selftest::run(&Liar(DefaultKernels(Device::Cpu))).into_iter().filter(|f| !f.ok()).collect();
    assert_eq!(wrong.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["rms_norm"]);
}
