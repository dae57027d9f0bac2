//! The CPU overrides against the plain defaults, on every instruction set of this machine, and bit by bit against
//! themselves in other company.
#![allow(clippy::unwrap_used)]

mod attention;
mod columns;
mod data;
mod full_attention;
mod gated_delta;
mod gated_delta_case;
mod linear;
mod moe;
mod most_likely;
mod qkv;
mod rows;
mod weights;
