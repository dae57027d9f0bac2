//! SentencePiece byte-pair models: the neighbours whose joined token has the best score are merged first; what is left
//! and no token becomes byte tokens. Knows no special tokens.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::TextError;
use super::bpe::SPACE;
use super::spellings::Spellings;

/// Pieces of a text are joined by index; this ends a chain.
const NONE: u32 = u32::MAX;

/// What belongs to a SentencePiece vocabulary beside its spellings, which whoever holds it hands in.
#[derive(Debug)]
pub(crate) struct SentencePiece {
    scores: Vec<f32>,
    bytes: Vec<u32>,
    /// No token has a space after another character: merges never cross a space that follows a word.
    spaces_lead: bool,
}

/// A stretch of the text that is one token so far.
#[derive(Clone, Copy)]
struct Piece {
    start: u32,
    len: u32,
    previous: u32,
    next: u32,
}

/// Two neighbours that could become one token.
struct Merge {
    score: f32,
    left: u32,
    right: u32,
    len: u32,
}

impl Ord for Merge {
    fn cmp(&self, other: &Self) -> Ordering {
        // Best score first; among equals the leftmost.
        self.score.total_cmp(&other.score).then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Merge {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Merge {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Merge {}

impl SentencePiece {
    /// `unknown` stands in for bytes the vocabulary has no token for.
    pub(crate) fn new(tokens: &Spellings, scores: &[f32], unknown: Option<u32>) -> Result<Self, TextError> {
        if scores.len() != tokens.len() {
            let message = format!("has {} entries, tokenizer.ggml.tokens has {}", scores.len(), tokens.len());
            return Err(TextError::vocabulary("tokenizer.ggml.scores", message));
        }
        let mut bytes = Vec::with_capacity(256);
        for byte in 0..=255u8 {
            let id = tokens.id(&format!("<0x{byte:02X}>")).or(unknown);
            let missing = || TextError::vocabulary("tokenizer.ggml.tokens", format!("no token for byte 0x{byte:02X}"));
            bytes.push(id.ok_or_else(missing)?);
        }
        let spaces_lead = tokens.iter().all(|token| !token.trim_start_matches(SPACE).contains(SPACE));
        Ok(Self { scores: scores.to_vec(), bytes, spaces_lead })
    }

    /// Appends the tokens of `text`; `space_before` puts a space in front of it.
    pub(crate) fn encode(&self, names: &Spellings, text: &str, space_before: bool, out: &mut Vec<u32>) {
        let mut spelled = String::with_capacity(text.len() + text.len() / 4);
        if space_before {
            spelled.push_str(SPACE);
        }
        for (index, part) in text.split(' ').enumerate() {
            if index > 0 {
                spelled.push_str(SPACE);
            }
            spelled.push_str(part);
        }
        let mut rest = spelled.as_str();
        let mut scratch = (Vec::new(), BinaryHeap::new());
        while self.spaces_lead && !rest.is_empty() {
            let word = rest.len() - rest.trim_start_matches(SPACE).len();
            let end = rest[word..].find(SPACE).map_or(rest.len(), |at| word + at);
            self.merge(names, &rest[..end], &mut scratch, out);
            rest = &rest[end..];
        }
        self.merge(names, rest, &mut scratch, out);
    }

    fn merge(
        &self,
        names: &Spellings,
        text: &str,
        (pieces, queue): &mut (Vec<Piece>, BinaryHeap<Merge>),
        out: &mut Vec<u32>,
    ) {
        pieces.clear();
        queue.clear();
        for (start, letter) in text.char_indices() {
            let index = pieces.len() as u32;
            let previous = if index == 0 { NONE } else { index - 1 };
            pieces.push(Piece { start: start as u32, len: letter.len_utf8() as u32, previous, next: index + 1 });
        }
        let Some(last) = pieces.last_mut() else { return };
        last.next = NONE;
        for left in 0..pieces.len() as u32 {
            self.offer(names, text, pieces, left, queue);
        }
        while let Some(Merge { left, right, len, .. }) = queue.pop() {
            let (a, b) = (pieces[left as usize], pieces[right as usize]);
            // Either side may have been merged elsewhere since.
            if a.len == 0 || b.len == 0 || a.len + b.len != len || a.next != right {
                continue;
            }
            pieces[left as usize] = Piece { len, next: b.next, ..a };
            pieces[right as usize].len = 0;
            if b.next != NONE {
                pieces[b.next as usize].previous = left;
            }
            self.offer(names, text, pieces, a.previous, queue);
            self.offer(names, text, pieces, left, queue);
        }
        let mut at = 0;
        while at != NONE {
            let piece = pieces[at as usize];
            let spelling = &text[piece.start as usize..(piece.start + piece.len) as usize];
            match names.id(spelling) {
                Some(id) => out.push(id),
                None => out.extend(spelling.bytes().map(|byte| self.bytes[byte as usize])),
            }
            at = piece.next;
        }
    }

    /// Queues the merge of piece `left` with its right neighbour, if together they are a token.
    fn offer(&self, names: &Spellings, text: &str, pieces: &[Piece], left: u32, queue: &mut BinaryHeap<Merge>) {
        let Some(a) = pieces.get(left as usize) else { return };
        let Some(b) = pieces.get(a.next as usize) else { return };
        let len = a.len + b.len;
        if let Some(id) = names.id(&text[a.start as usize..(a.start + len) as usize]) {
            queue.push(Merge { score: self.scores[id as usize], left, right: a.next, len });
        }
    }
}

/// Exact bytes of an ordinary or byte token.
pub(crate) fn token_bytes(token: &str) -> Vec<u8> {
    let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')).filter(|hex| hex.len() == 2);
    match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
        Some(byte) => vec![byte],
        None => token.replace(SPACE, " ").into_bytes(),
    }
}
