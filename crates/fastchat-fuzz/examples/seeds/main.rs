//! Writes the corpora: small good inputs of every kind, from which the others are made. Replaces only files named `seed-*`.
//!
//! `cargo run --release --locked -p fastchat-fuzz --example seeds`

mod models;
mod texts;

use fastchat_fuzz::mutation::home;

fn main() -> std::io::Result<()> {
    let mut corpora: Vec<(&str, Vec<Vec<u8>>)> = vec![("gguf", models::gguf()), ("safetensors", models::safetensors())];
    corpora.extend(texts::corpora());
    for (target, seeds) in corpora {
        let folder = home(target).join("corpus");
        std::fs::create_dir_all(&folder)?;
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("seed-")) {
                std::fs::remove_file(path)?;
            }
        }
        for (index, seed) in seeds.iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{index:02}")), seed)?;
        }
    }
    Ok(())
}
