//! Fuzz targets: for each room that reads what strangers write, one function over bytes that panics where something
//! does not hold. Knows the rooms by their public side only; who makes the bytes (`mutation`, libFuzzer) is not its business.

pub mod detokenizer;
mod folder;
pub mod gguf;
pub mod grammar;
pub mod mutation;
pub mod reasoning;
pub mod safetensors;
pub mod stop;
mod text;
pub mod tokenizer_json;
pub mod tools;
mod vocabulary;

/// Calls a macro with the name of each target.
#[macro_export]
macro_rules! every_target {
    ($target:ident) => {
        $target!(detokenizer);
        $target!(gguf);
        $target!(grammar);
        $target!(reasoning);
        $target!(safetensors);
        $target!(stop);
        $target!(tokenizer_json);
        $target!(tools);
    };
}
