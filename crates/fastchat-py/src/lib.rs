//! The compiled half of the Python package, `fastchat_rs._engine`: converts values, lets go of the interpreter lock, and
//! decides nothing. `python/fastchat_rs/_engine.pyi` is its documentation.

mod chat;
mod device;
mod embed;
mod engine;
mod errors;
mod handle;
mod info;
mod kernels;
mod media;
mod module;
mod params;
