//! Which kernels engines run on. The faulty twin of this file is `examples/faulty.rs`, which no wheel contains.

pub use fastchat_engine::{open_device, open_devices};
