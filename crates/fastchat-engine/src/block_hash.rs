//! Names of cache blocks: hashes of what they hold and of everything before it. Pure; knows no pool and no sequence.

use fastchat_kernels::BLOCK_SIZE;

/// Hash of a block's tokens and everything before them.
pub type BlockHash = u128;

/// Hash of a full block: its parent's hash (the salt for the first) and its tokens. 128 bits of BLAKE3, because tokens
/// come from strangers and a collision would show one tenant another's context.
pub fn hash_block(parent: BlockHash, tokens: &[u32]) -> BlockHash {
    debug_assert_eq!(tokens.len(), BLOCK_SIZE);
    let mut bytes = [0; 16 + 4 * BLOCK_SIZE];
    bytes[..16].copy_from_slice(&parent.to_le_bytes());
    for (out, token) in bytes[16..].chunks_exact_mut(4).zip(tokens) {
        out.copy_from_slice(&token.to_le_bytes());
    }
    truncate(&blake3::hash(&bytes))
}

/// Hash of a block some of whose tokens belong to a picture.
pub fn hash_media(block: BlockHash, picture: BlockHash) -> BlockHash {
    truncate(&blake3::Hasher::new().update(&block.to_le_bytes()).update(&picture.to_le_bytes()).finalize())
}

/// Start of a chain for requests that name a `cache_salt`; different salts never share blocks.
pub fn hash_salt(domain: &str, salt: &[u8]) -> BlockHash {
    truncate(&blake3::Hasher::new().update(domain.as_bytes()).update(&[0]).update(salt).finalize())
}

fn truncate(hash: &blake3::Hash) -> BlockHash {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.as_bytes()[..16]);
    u128::from_le_bytes(bytes)
}
