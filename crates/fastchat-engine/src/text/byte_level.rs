//! GPT-2's printable alphabet for bytes: each of the 256 bytes has one character, so that a vocabulary file is text.

use std::collections::HashMap;

/// Both directions of the alphabet.
#[derive(Debug)]
pub(crate) struct ByteAlphabet {
    chars: [char; 256],
    bytes: HashMap<char, u8>,
}

impl ByteAlphabet {
    pub(crate) fn new() -> Self {
        let mut chars = ['\0'; 256];
        let mut moved = 0x100;
        for byte in 0..=255u8 {
            // Printable Latin-1 stands for itself; the 68 others follow each other from U+0100.
            chars[byte as usize] = if matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) {
                char::from(byte)
            } else {
                moved += 1;
                char::from_u32(moved - 1).expect("the alphabet ends at U+0143; this is a bug")
            };
        }
        let bytes = chars.iter().enumerate().map(|(byte, &letter)| (letter, byte as u8)).collect();
        Self { chars, bytes }
    }

    /// Spells `bytes` in the alphabet, onto the end of `out`.
    pub(crate) fn spell(&self, bytes: &[u8], out: &mut String) {
        out.extend(bytes.iter().map(|&byte| self.chars[byte as usize]));
    }

    /// Bytes that `token` spells; a character outside the alphabet stands for its own UTF-8 bytes.
    pub(crate) fn read(&self, token: &str) -> Vec<u8> {
        let mut out = Vec::with_capacity(token.len());
        for letter in token.chars() {
            match self.bytes.get(&letter) {
                Some(&byte) => out.push(byte),
                None => out.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::ByteAlphabet;

    #[test]
    fn every_byte_has_its_own_letter() {
        let alphabet = ByteAlphabet::new();
        let all: Vec<u8> = (0..=255).collect();
        let mut spelled = String::new();
        alphabet.spell(&all, &mut spelled);
        assert_eq!(alphabet.read(&spelled), all);
        assert!(spelled.chars().all(|letter| !letter.is_whitespace() && !letter.is_control()));
        assert_eq!(spelled.chars().nth(b' ' as usize), Some('Ġ'));
        assert_eq!(spelled.chars().nth(b'\n' as usize), Some('Ċ'));
    }
}
