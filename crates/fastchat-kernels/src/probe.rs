//! What the hardware gives at best here and now: bytes a second of a copy, operations a second of a matrix product. The
//! figures of a benchmark are fractions of these. Plain candle, on any device.

use std::time::{Duration, Instant};

use candle_core::{DType, Device, Result, Tensor};

/// Rates of a device.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Bytes read and written by a large copy.
    pub bytes_per_second: f64,
    /// Multiplications and additions of a large product of bf16 matrices (f32 on the CPU).
    pub flops: f64,
}

/// Longest that one probe repeats itself.
const PATIENCE: Duration = Duration::from_secs(2);

/// Measures both.
///
/// # Errors
/// The device's.
pub fn rates(device: &Device) -> Result<Rates> {
    // Far beyond the caches, and small beside the memory.
    let (elements, side, dtype) = match device {
        Device::Cpu => (64 << 20, 1024, DType::F32),
        _ => (1 << 30, 8192, DType::BF16),
    };
    let source = Tensor::zeros(elements, DType::BF16, device)?;
    let copied = best(device, || source.copy().map(drop))?;
    drop(source);
    let (a, b) = (Tensor::randn(0_f32, 1., (side, side), device)?, Tensor::randn(0_f32, 1., (side, side), device)?);
    let (a, b) = (a.to_dtype(dtype)?, b.to_dtype(dtype)?);
    let multiplied = best(device, || a.matmul(&b).map(drop))?;
    Ok(Rates { bytes_per_second: 2. * 2. * elements as f64 / copied, flops: 2. * (side as f64).powi(3) / multiplied })
}

/// Seconds of the fastest of several runs.
fn best(device: &Device, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    run()?;
    device.synchronize()?;
    let (began, mut best) = (Instant::now(), f64::INFINITY);
    for _ in 0..20 {
        let start = Instant::now();
        run()?;
        device.synchronize()?;
        best = best.min(start.elapsed().as_secs_f64());
        if began.elapsed() > PATIENCE {
            break;
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    #[test]
    fn measures_something() {
        let rates = super::rates(&candle_core::Device::Cpu).expect("the CPU copies and multiplies");
        // Any machine does a million of either; infinite means that nothing was timed.
        assert!(rates.bytes_per_second > 1e6 && rates.bytes_per_second.is_finite());
        assert!(rates.flops > 1e6 && rates.flops.is_finite());
    }
}
