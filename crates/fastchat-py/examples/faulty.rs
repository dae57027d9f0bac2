//! `fastchat_rs._engine` as it is shipped, except that its kernels break when the file named by FASTCHAT_FAULTY says so:
//! `panic`, `full` (no memory for a step), `lost` (the device is gone). A token of id FASTCHAT_POISON has no numbers in
//! its row. For tests/faults; the shipped library has no such hook.

#[path = "../src/chat.rs"]
mod chat;
#[path = "../src/device.rs"]
mod device;
#[path = "../src/embed.rs"]
mod embed;
#[path = "../src/engine.rs"]
mod engine;
#[path = "../src/errors.rs"]
mod errors;
#[path = "../src/handle.rs"]
mod handle;
#[path = "../src/info.rs"]
mod info;
#[path = "../src/media.rs"]
mod media;
#[path = "../src/params.rs"]
mod params;

#[path = "../src/module.rs"]
mod module;

mod kernels {
    use std::path::PathBuf;
    use std::sync::Arc;

    use candle_core::{Device, Error, Result, Tensor};
    use fastchat_engine::{DeviceChoice, EngineError, TensorParallelDevice};
    use fastchat_kernels::{
        DefaultKernels, Fault, ForwardBatch, KernelOptions, Kernels, Linear, MoeSpec, MoeWeights, Plan, Rope,
    };

    /// The reference kernels, and what to break.
    #[derive(Debug)]
    struct Faulty {
        plain: DefaultKernels,
        order: PathBuf,
        poison: Option<u32>,
    }

    #[allow(clippy::unnecessary_wraps, clippy::needless_pass_by_value, reason = "the twin's signature")]
    pub fn open_device(
        _: DeviceChoice,
        _: KernelOptions,
        _: &[PathBuf],
    ) -> std::result::Result<Arc<dyn Kernels>, EngineError> {
        let order = std::env::var_os("FASTCHAT_FAULTY").map(PathBuf::from).unwrap_or_default();
        let poison = std::env::var("FASTCHAT_POISON").ok().and_then(|id| id.parse().ok());
        Ok(Arc::new(Faulty { plain: DefaultKernels(Device::Cpu), order, poison }))
    }

    /// One, however many are asked for.
    pub fn open_devices(
        choice: DeviceChoice,
        _: usize,
        options: KernelOptions,
        libraries: &[PathBuf],
    ) -> std::result::Result<Vec<TensorParallelDevice>, EngineError> {
        Ok(vec![TensorParallelDevice::alone(open_device(choice, options, libraries)?)])
    }

    impl Kernels for Faulty {
        fn device(&self) -> &Device {
            self.plain.device()
        }

        fn name(&self) -> String {
            "faulty".to_owned()
        }

        fn fault(&self, error: &Error) -> Fault {
            match error.to_string() {
                text if text.starts_with("full") => Fault::OutOfMemory,
                text if text.starts_with("lost") => Fault::Sticky,
                _ => Fault::Plain,
            }
        }

        fn plan(&self, batch: &ForwardBatch, ropes: &[Rope]) -> Result<Plan> {
            let order = std::fs::read_to_string(&self.order).unwrap_or_default();
            assert!(order.trim() != "panic", "a kernel gave way");
            match order.trim() {
                "" => self.plain.plan(batch, ropes),
                order => Err(Error::Msg(order.to_owned())),
            }
        }

        fn embed(&self, table: &Linear, ids: &[u32]) -> Result<Tensor> {
            let rows = self.plain.embed(table, ids)?;
            let poisoned = |&id: &u32| if Some(id) == self.poison { f32::NAN } else { 0.0 };
            rows.broadcast_add(&Tensor::from_vec(ids.iter().map(poisoned).collect(), (ids.len(), 1), rows.device())?)
        }

        fn moe(&self, x: &Tensor, spec: &MoeSpec, weights: &MoeWeights) -> Result<Tensor> {
            self.plain.moe(x, spec, weights)
        }
    }
}
