//! The launchers of `cuda/*.cu` as Rust calls them: one table per way in which they were compiled. Pointers are the
//! device's, counts are elements; all return 0 or a CUDA error code.

#![allow(missing_docs)] // fields and functions are described where they are read: in the .cu files

pub use std::ffi::c_void;

/// A CUDA stream; null in the emulator.
pub type Stream = *mut c_void;

/// Hands the launchers to a macro: what it is told, then `name(argument: type, ..);` for each.
#[macro_export]
macro_rules! each_launcher {
    ($($then:ident)::+ $(, $told:literal)?) => {
        $($then)::+! { $($told;)?
            rms_norm(x: *const f32, residual: *const f32, weight: *const f32, sum: *mut f32, out: *mut f32, rows: i32,
                width: i32, eps: f32);
            layer_norm(x: *const f32, weight: *const f32, bias: *const f32, out: *mut f32, rows: i32, width: i32, eps: f32);
            act(x: *const f32, out: *mut f32, count: i64, act: *const ActivationArgs);
            gated_act(x: *const f32, out: *mut f32, rows: i64, width: i32, act: *const ActivationArgs);
            round_rows(x: *const f32, out: *mut c_void, rows: i64, cols: i32);
            multiply(product: *const ProductArgs, format: *const FormatArgs, chunks: i32, tokens: i32);
            decode(table: *const c_void, ids: *const u32, out: *mut f32, count: i32, cols: i32, format: *const FormatArgs);
            dense(product: *const ProductArgs, element: i32, chunks: i32, tokens: i32, aligned: i32);
            split_rows(x: *const f32, out: *mut c_void, terms: i32, rows: i64, cols: i32);
            dense_bf16(product: *const ProductArgs, element: i32, terms: i32, chunks: i32, tokens: i32);
            gather_codes(table: *const c_void, ids: *const u32, out: *mut f32, count: i32, rows: i32, cols: i32);
            gather(table: *const c_void, element: i32, ids: *const u32, out: *mut f32, count: i32, cols: i32);
            qk_norm_rope_write(args: *const QkvArgs, element: i32);
            rope(x: *const f32, cos: *const f32, sin: *const f32, angles: *const u32, out: *mut f32, tokens: i32, heads: i32,
                dim: i32, half: i32, start: i32, interleaved: i32);
            write_kv(x: *const f32, slots: *const u32, cache: *mut c_void, element: i32, tokens: i32, kv_heads: i32, dim: i32);
            attention(args: *const AttentionArgs, element: i32, rows: i32);
            flash_attention(args: *const AttentionArgs, element: i32, terms: i32);
            route(args: *const RoutingArgs);
            sort_entries(experts_of: *const i32, entries: i32, experts: i32, top_k: i32, most: i32, tokens_of: *mut u32,
                place_of: *mut i32, chunks: *mut i32, room: i32);
            combine(y: *const f32, place_of: *const i32, factors: *const f32, out: *mut f32, tokens: i32, top_k: i32,
                hidden: i32);
            gated_delta(args: *const DeltaArgs);
            change_logits(args: *const SamplingArgs);
            choose(args: *const SamplingArgs);
            report_logprobs(args: *const SamplingArgs);
            argmax(logits: *const f32, rows: i32, vocab: i32, values: *mut f32, indices: *mut i32, tokens: *mut i32);
            follow_tokens(token_ids: *mut u32, follows: *const u32, chosen: *const i32, count: i32);
            uniforms(seeds: *const u64, positions: *const u64, out: *mut f64, count: i32);
        }
    };
}

/// `LAUNCHERS`: the table of the launchers that are linked under a prefix.
#[macro_export]
macro_rules! linked_launchers {
    ($prefix:literal; $($name:ident($($argument:ident: $type:ty),* $(,)?);)*) => {
        mod linked {
            #[allow(clippy::wildcard_imports)]
            use $crate::cuda::launchers::*;
            unsafe extern "C" {
                $(#[link_name = concat!($prefix, stringify!($name))]
                pub fn $name($($argument: $type,)* stream: Stream) -> i32;)*
            }
        }

        /// Those that are linked.
        pub const LAUNCHERS: $crate::cuda::Launchers = $crate::cuda::Launchers { $($name: linked::$name,)* };
    };
}

macro_rules! table {
    ($($name:ident($($argument:ident: $type:ty),* $(,)?);)*) => {
        /// One way in which the kernels were compiled.
        #[derive(Clone, Copy, Debug)]
        #[allow(missing_docs)] // the kernels say what they do
        pub struct Launchers {
            $(pub $name: unsafe extern "C" fn($($argument: $type,)* stream: Stream) -> i32,)*
        }
    };
}

each_launcher!(table);

/// `Activation` of activation.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ActivationArgs {
    pub kind: i32,
    pub alpha: f32,
    pub limit: f32,
}

/// `Format` of linear.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FormatArgs {
    pub plane: i32,
    pub scales: i32,
    pub offset: i32,
    pub unit: f32,
    pub has_table: i32,
    pub table: [u32; 4],
}

/// `Product` of linear.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ProductArgs {
    pub weight: *const c_void,
    pub experts: *const *const c_void,
    pub chunks: *const i32,
    pub gather: *const u32,
    pub x: *const f32,
    pub rounded: *const c_void,
    pub bias: *const f32,
    pub expert_bias: *const *const f32,
    pub out: *mut f32,
    pub rows: i32,
    pub cols: i32,
    pub entries: i32,
    pub out_stride: i32,
    pub out_column: i32,
    pub gated: i32,
    pub act: ActivationArgs,
}

/// `Qkv` of qkv.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct QkvArgs {
    pub qkv: *const f32,
    pub q_weight: *const f32,
    pub k_weight: *const f32,
    pub cos: *const f32,
    pub sin: *const f32,
    pub angles: *const u32,
    pub slots: *const u32,
    pub q: *mut f32,
    pub k_cache: *mut c_void,
    pub v_cache: *mut c_void,
    pub eps: f32,
    pub tokens: i32,
    pub heads: i32,
    pub kv_heads: i32,
    pub head_dim: i32,
    pub half: i32,
    pub scope: i32,
    pub interleaved: i32,
}

/// `Attention` of attention.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AttentionArgs {
    pub q: *const f32,
    pub k_cache: *const c_void,
    pub v_cache: *const c_void,
    pub positions: *const u32,
    pub last_seen: *const u32,
    pub query_start: *const u32,
    pub table_start: *const u32,
    pub tables: *const u32,
    pub sinks: *const f32,
    pub out: *mut f32,
    pub parts: *mut f32,
    pub done: *mut u32,
    pub scale: f32,
    pub softcap: f32,
    pub sequences: i32,
    pub tokens: i32,
    pub heads: i32,
    pub kv_heads: i32,
    pub dim: i32,
    pub v_dim: i32,
    pub window: i32,
    pub splits: i32,
    pub spans: i32,
}

/// `Routing` of moe.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RoutingArgs {
    pub logits: *const f32,
    pub bias: *const f32,
    pub experts_of: *mut i32,
    pub factors: *mut f32,
    pub tokens: i32,
    pub experts: i32,
    pub top_k: i32,
    pub score: i32,
    pub renormalize: i32,
    pub scaling: f32,
    pub groups: i32,
    pub kept: i32,
}

/// `Delta` of gated_delta.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DeltaArgs {
    pub qkv: *const f32,
    pub beta: *const f32,
    pub decay: *const f32,
    pub taps: *const f32,
    pub query_start: *const u32,
    pub sources: *const i32,
    pub save_start: *const u32,
    pub saves: *const u32,
    pub conv: *mut f32,
    pub states: *mut f32,
    pub mixed: *mut f32,
    pub out: *mut f32,
    pub l2_eps: f32,
    pub sequences: i32,
    pub tokens: i32,
    pub channels: i32,
    pub num_taps: i32,
    pub k_heads: i32,
    pub v_heads: i32,
    pub k_dim: i32,
    pub v_dim: i32,
}

/// `Row` of sample.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RowArgs {
    pub seed: u64,
    pub position: u64,
    pub temperature: f32,
    pub top_p: f32,
    pub min_p: f32,
    pub top_k: i32,
    pub repetition: f32,
    pub frequency: f32,
    pub presence: f32,
    pub counts: i32,
    pub counts_end: i32,
    pub biases: i32,
    pub biases_end: i32,
    pub barred: i32,
    pub barred_end: i32,
    pub mask: i32,
    pub logprobs: i32,
    /// Up to a multiple of 8 bytes.
    pub unused: i32,
}

/// `Sampling` of sample.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SamplingArgs {
    pub logits: *mut f32,
    pub rows: *const RowArgs,
    pub counts: *const u32,
    pub bias_tokens: *const u32,
    pub bias_values: *const f32,
    pub barred: *const u32,
    pub masks: *const u32,
    pub tokens: *mut i32,
    pub logprobs: *mut f32,
    pub top_tokens: *mut i32,
    pub num_rows: i32,
    pub vocab: i32,
    pub mask_words: i32,
    pub room: i32,
}
